//! What the process uses, measured by the control plane once a second and read by shards (for an Observer) and the admin endpoint.
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Hundredths, so that two decimals are kept without floating point; `UNKNOWN` where the system does not say.
pub struct ProcessStats {
    process_cpu: AtomicU64,
    total_cpu: AtomicU64,
    process_memory: AtomicU64,
    total_memory: AtomicU64,
}

const UNKNOWN: u64 = u64::MAX;

/// One reading. None: unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Hundredths of a percent of the whole machine (all cores are 100 %).
    pub process_cpu: Option<u64>,
    /// Hundredths of a percent of the whole machine.
    pub total_cpu: Option<u64>,
    /// Hundredths of a MB (1,048,576 bytes, as .NET tools count) of resident memory.
    pub process_memory: Option<u64>,
    /// Hundredths of a percent of the machine's memory in use.
    pub total_memory: Option<u64>,
}

impl Default for ProcessStats {
    fn default() -> Self {
        let unknown = || AtomicU64::new(UNKNOWN);
        ProcessStats {
            process_cpu: unknown(),
            total_cpu: unknown(),
            process_memory: unknown(),
            total_memory: unknown(),
        }
    }
}

impl ProcessStats {
    pub fn set(&self, usage: Usage) {
        let pairs = [
            (&self.process_cpu, usage.process_cpu),
            (&self.total_cpu, usage.total_cpu),
            (&self.process_memory, usage.process_memory),
            (&self.total_memory, usage.total_memory),
        ];
        for (cell, value) in pairs {
            cell.store(value.unwrap_or(UNKNOWN), Relaxed);
        }
    }

    pub fn get(&self) -> Usage {
        let read = |cell: &AtomicU64| Some(cell.load(Relaxed)).filter(|value| *value != UNKNOWN);
        Usage {
            process_cpu: read(&self.process_cpu),
            total_cpu: read(&self.total_cpu),
            process_memory: read(&self.process_memory),
            total_memory: read(&self.total_memory),
        }
    }
}

/// What /metrics says of the process, in Prometheus's units. None: unknown, and not exported.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessInfo {
    /// User and system.
    pub cpu_seconds: Option<f64>,
    pub resident_bytes: Option<u64>,
    pub open_fds: Option<u64>,
    pub max_fds: Option<u64>,
    /// Unix time.
    pub start_seconds: Option<f64>,
}
