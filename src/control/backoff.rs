//! How long to wait before dialling again: 1, 2, 5, 10, 10.. s as the original (contract 4.1), spread so that the lanes of many
//! nodes do not knock at a restarted app server all at once.
use crate::limits::LANE_STEADY_MS;
use core::time::Duration;

const DELAYS_MS: [u64; 4] = [1000, 2000, 5000, 10_000];
/// After a loss the first attempt comes at once, but not all lanes' in the same moment.
const AFTER_LOSS_MS: u64 = 250;

#[derive(Default)]
pub(super) struct Backoff {
    /// Attempts that failed since a lane last stayed.
    failures: usize,
    /// The last lane did not stay.
    was_brief: bool,
}

impl Backoff {
    /// The wait after a failed attempt: between 75% and 125% of the step. `random` is any number.
    pub(super) fn failed(&mut self, random: u64) -> Duration {
        let step = DELAYS_MS[self.failures.min(DELAYS_MS.len() - 1)];
        self.failures += 1;
        Duration::from_millis(step * 3 / 4 + random % (step / 2))
    }

    /// The wait after a lane that was up for so long is lost. An app server that takes lanes and drops them again is dialled at once one
    /// time, and then as one that does not take them.
    pub(super) fn lost(&mut self, lasted: Duration, random: u64) -> Duration {
        if lasted >= Duration::from_millis(LANE_STEADY_MS) {
            *self = Backoff::default();
        }
        if core::mem::replace(&mut self.was_brief, true) {
            return self.failed(random);
        }
        Duration::from_millis(random % AFTER_LOSS_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_grow_to_ten_seconds_with_jitter_and_start_over() {
        for random in [0, 1, 12_345, u64::MAX] {
            let mut backoff = Backoff::default();
            for step in [1000u64, 2000, 5000, 10_000, 10_000] {
                let wait = backoff.failed(random).as_millis() as u64;
                assert!(wait >= step * 3 / 4 && wait < step * 5 / 4, "{wait} for {step}");
            }
            let (brief, steady) = (Duration::from_millis(LANE_STEADY_MS - 1), Duration::from_millis(LANE_STEADY_MS));
            assert!(backoff.lost(brief, random).as_millis() < 250);
            assert!(backoff.lost(brief, random).as_millis() >= 7500, "it goes on where it was");
            assert!(backoff.lost(steady, random).as_millis() < 250);
            for step in [1000u64, 2000, 5000] {
                let wait = backoff.lost(brief, random).as_millis() as u64;
                assert!(wait >= step * 3 / 4 && wait < step * 5 / 4, "{wait} for {step}");
            }
            assert!(backoff.lost(steady, random).as_millis() < 250);
            assert!(backoff.failed(random).as_millis() < 1250);
        }
    }
}
