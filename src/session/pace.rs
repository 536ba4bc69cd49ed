//! How fast a client sends, in four bytes: a bucket that fills with messages and leaks as fast as messages may come. Full, it says when it
//! is not any more.
use crate::ids::Time;
use core::time::Duration;

/// What a client may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Messages a second in the long run; 0: any number.
    pub per_second: u32,
    /// Messages at once, at most `limits::MESSAGE_BURST_MAX`.
    pub burst: u16,
}

impl Rate {
    pub const ANY: Rate = Rate { per_second: 0, burst: 0 };
}

/// Length of a tick. A pause is as long as the shard's timing wheel can tell anyway.
const TICK_NS: u64 = 100_000_000;
const TICKS_PER_SECOND: u64 = 1_000_000_000 / TICK_NS;

#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Messages that have not leaked out. It stops at its end: what a client is charged has a bound.
    level: u16,
    /// When it last leaked. Wraps around after two hours, which is then too short a time, for a bucket that was not full.
    tick: u16,
}

impl Pace {
    /// One more message.
    pub fn count(&mut self) {
        self.level = self.level.saturating_add(1);
    }

    /// If it is full: when it will have room again.
    pub fn full_until(&mut self, now: Time, rate: Rate) -> Option<Time> {
        if rate.per_second == 0 {
            self.level = 0;
            return None;
        }
        self.leak(now, rate);
        let over = self.level.checked_sub(rate.burst).filter(|over| *over > 0)?;
        let nanos = u64::from(over) * 1_000_000_000 / u64::from(rate.per_second);
        Some(now.after(Duration::from_nanos(nanos.max(1))))
    }

    fn leak(&mut self, now: Time, rate: Rate) {
        let tick = (now.0 / TICK_NS) as u16;
        let ticks = tick.wrapping_sub(self.tick);
        if ticks == 0 {
            return;
        }
        let messages = u64::from(ticks) * u64::from(rate.per_second) / TICKS_PER_SECOND;
        if messages >= u64::from(self.level) {
            *self = Pace { level: 0, tick };
        } else if messages > 0 {
            self.level -= messages as u16;
            // Where a tick is less than a message, what is left of the time counts for the next one.
            let used = (messages * TICKS_PER_SECOND).div_ceil(u64::from(rate.per_second));
            self.tick = self.tick.wrapping_add(used as u16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time::from_millis(7_000_000);

    fn after(ms: u64) -> Time {
        START.after(Duration::from_millis(ms))
    }

    fn send(pace: &mut Pace, count: u32) {
        (0..count).for_each(|_| pace.count());
    }

    #[test]
    fn a_burst_is_free_and_what_is_over_it_has_to_wait() {
        let rate = Rate { per_second: 100, burst: 50 };
        let mut pace = Pace::default();
        assert_eq!(pace.full_until(START, rate), None);
        send(&mut pace, 50);
        assert_eq!(pace.full_until(START, rate), None);
        send(&mut pace, 30);
        assert_eq!(pace.full_until(START, rate), Some(after(300)));
        assert_eq!(pace.full_until(after(200), rate), Some(after(300)));
        assert_eq!(pace.full_until(after(300), rate), None);
        send(&mut pace, 1);
        assert_eq!(pace.full_until(after(300), rate), Some(after(310)));
        // A rest brings no more than the burst.
        assert_eq!(pace.full_until(after(60_000), rate), None);
        send(&mut pace, 51);
        assert!(pace.full_until(after(60_000), rate).is_some());
    }

    #[test]
    fn in_the_long_run_no_more_comes_than_may_however_it_comes() {
        for (per_second, burst, at_once) in
            [(1, 1, 1), (3, 5, 2), (7, 1, 40), (1000, 2000, 136), (250_000, 30_000, 680)]
        {
            let rate = Rate { per_second, burst };
            let (mut pace, mut now, mut sent) = (Pace::default(), START, 0u64);
            let seconds = 100;
            while now < START.after(Duration::from_secs(seconds)) {
                send(&mut pace, at_once);
                sent += u64::from(at_once);
                // As the timing wheel does: at the tick after.
                if let Some(until) = pace.full_until(now, rate) {
                    now = Time(until.0.div_ceil(TICK_NS) * TICK_NS);
                } else {
                    now = now.after(Duration::from_micros(1));
                }
            }
            let allowed = u64::from(per_second) * seconds + u64::from(burst) + 2 * u64::from(at_once);
            assert!(sent <= allowed, "{per_second}/s: {sent} of {allowed}");
            assert!(sent * 10 >= allowed * 8, "{per_second}/s: only {sent} of {allowed}");
        }
    }

    #[test]
    fn who_is_not_limited_is_never_held() {
        let mut pace = Pace::default();
        send(&mut pace, 200_000);
        assert_eq!(pace.full_until(START, Rate::ANY), None);
    }
}
