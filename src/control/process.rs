//! What the process uses, and the machine beside it: read from /proc, where `procfs` knows what the fields mean.
//!
//! The figures are those of the original's reporter, so that an Observer shows a node as it shows a C# proxy (contract 7.2). One differs:
//! a processor that waits for a disk counts as idle here, as in `top`; there it counts as busy.
use crate::metrics::process::{ProcessInfo, Usage};
use crate::sys::probe;
use core::cell::RefCell;
use core::time::Duration;
use procfs::process::Process;
use procfs::{CpuTime, Current, CurrentSI, KernelStats, Meminfo};
use std::time::Instant;

/// Reads now and then, and says what was used since the last time.
pub(super) struct Meter {
    processors: u64,
    /// Unix time.
    started: Option<f64>,
    last: RefCell<Reading>,
}

/// What counts up.
#[derive(Clone, Copy)]
struct Reading {
    at: Instant,
    process: Duration,
    machine: Option<Machine>,
}

/// Ticks of all processors together.
#[derive(Clone, Copy)]
struct Machine {
    busy: u64,
    total: u64,
}

impl Meter {
    pub(super) fn new() -> Meter {
        Meter { processors: probe::processors() as u64, started: started(), last: RefCell::new(Reading::now()) }
    }

    /// Processors since the last call, memory at present.
    pub(super) fn measure(&self) -> Usage {
        let now = Reading::now();
        let last = self.last.replace(now);
        Usage {
            process_cpu: now.process_share(&last, self.processors),
            total_cpu: now.machine.zip(last.machine).and_then(|(now, last)| now.busy_share(&last)),
            process_memory: resident_bytes().map(|bytes| hundredths(bytes, 1024 * 1024)),
            total_memory: memory().map(|(total, available)| percent(total.saturating_sub(available), total)),
        }
    }

    pub(super) fn info(&self) -> ProcessInfo {
        ProcessInfo {
            cpu_seconds: Some(processor_time().as_secs_f64()),
            resident_bytes: resident_bytes(),
            open_fds: Process::myself().and_then(|process| process.fd_count()).ok().map(|count| count as u64),
            max_fds: rlimit::Resource::NOFILE.get_soft().ok(),
            start_seconds: self.started,
        }
    }
}

impl Reading {
    fn now() -> Reading {
        let machine = KernelStats::current().ok().map(|stats| Machine::of(&stats.total));
        Reading { at: Instant::now(), process: processor_time(), machine }
    }

    /// Hundredths of a percent of all processors together.
    fn process_share(&self, last: &Reading, processors: u64) -> Option<u64> {
        let elapsed = self.at.duration_since(last.at).as_nanos() * u128::from(processors);
        let used = self.process.saturating_sub(last.process).as_nanos();
        // The two clocks are read one after the other.
        let share = (used * 10_000 + elapsed / 2).checked_div(elapsed)?.min(10_000);
        Some(share as u64)
    }
}

impl Machine {
    fn of(time: &CpuTime) -> Machine {
        // The guests' time is in `user` and `nice` already (proc(5)).
        let counted = [time.irq, time.softirq, time.steal].into_iter().flatten();
        let busy = time.user + time.nice + time.system + counted.sum::<u64>();
        Machine { busy, total: busy + time.idle + time.iowait.unwrap_or_default() }
    }

    fn busy_share(&self, last: &Machine) -> Option<u64> {
        // proc(5): iowait may fall.
        let total = self.total.checked_sub(last.total).filter(|total| *total > 0)?;
        Some(percent(self.busy.saturating_sub(last.busy).min(total), total))
    }
}

/// `part / unit` in hundredths, rounded.
fn hundredths(part: u64, unit: u64) -> u64 {
    ((u128::from(part) * 100 + u128::from(unit) / 2) / u128::from(unit)) as u64
}

/// Hundredths of a percent; `whole` is not 0.
fn percent(part: u64, whole: u64) -> u64 {
    hundredths(part.saturating_mul(100), whole)
}

/// User and system, of all threads: by the clock that counts nanoseconds, where /proc/self/stat counts ticks of 10 ms.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn resident_bytes() -> Option<u64> {
    let memory = Process::myself().and_then(|process| process.statm()).ok()?;
    Some(memory.resident * procfs::page_size())
}

/// Total and available, in bytes.
fn memory() -> Option<(u64, u64)> {
    let memory = Meminfo::current().ok()?;
    Some((memory.mem_total, memory.mem_available?)).filter(|(total, _)| *total > 0)
}

fn started() -> Option<f64> {
    let stat = Process::myself().and_then(|process| process.stat()).ok()?;
    let boot = KernelStats::current().ok()?.btime;
    Some(boot as f64 + stat.starttime as f64 / procfs::ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    #[test]
    fn shares_are_of_all_processors_in_hundredths_of_a_percent() {
        let start = Reading { at: Instant::now(), process: Duration::from_secs(5), machine: None };
        let later = |ms, used_us| Reading {
            at: start.at + Duration::from_millis(ms),
            process: start.process + Duration::from_micros(used_us),
            machine: None,
        };
        assert_eq!(later(1000, 25_000).process_share(&start, 2), Some(125));
        assert_eq!(later(2000, 4_000_000).process_share(&start, 2), Some(10_000));
        assert_eq!(later(1000, 1_010_000).process_share(&start, 1), Some(10_000), "no more than all");
        assert_eq!(later(1000, 0).process_share(&start, 4), Some(0));
        assert_eq!(later(0, 10).process_share(&start, 4), None, "no time has passed");

        let (last, now) = (Machine { busy: 100, total: 1000 }, Machine { busy: 142, total: 1400 });
        assert_eq!(now.busy_share(&last), Some(1050));
        assert_eq!(last.busy_share(&now), None);
        assert_eq!(now.busy_share(&now), None);
        assert_eq!(hundredths(89_454_018, 1024 * 1024), 8531);
    }

    #[test]
    fn this_process_is_measured() {
        let meter = Meter::new();
        let (start, mut spun) = (Instant::now(), 0u64);
        while start.elapsed() < Duration::from_millis(100) {
            spun = std::hint::black_box(spun + 1);
        }
        let usage = meter.measure();
        assert!(usage.process_cpu.is_some_and(|cpu| cpu > 0 && cpu <= 10_000), "{usage:?}");
        assert!(usage.total_cpu.is_some_and(|cpu| cpu > 0 && cpu <= 10_000), "{usage:?}");
        // A test binary has at least 1 MB, and a machine some memory in use.
        assert!(usage.process_memory.is_some_and(|memory| memory > 100), "{usage:?}");
        assert!(usage.total_memory.is_some_and(|memory| memory > 0 && memory <= 10_000), "{usage:?}");

        let info = meter.info();
        assert!(info.cpu_seconds.is_some_and(|seconds| seconds > 0.0), "{info:?}");
        assert!(info.resident_bytes.is_some_and(|bytes| bytes > 1024 * 1024), "{info:?}");
        assert!(info.open_fds.is_some_and(|count| count >= 3) && info.open_fds <= info.max_fds, "{info:?}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(info.start_seconds.is_some_and(|start| start < now + 2.0 && start > now - 3600.0), "{info:?}");
    }
}
