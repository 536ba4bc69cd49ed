//! How long to wait before dialling again: 1, 2, 5, 10, 10.. s as the original (contract 4.1), spread so that the lanes of many
//! nodes do not knock at a restarted app server all at once.
use core::time::Duration;

const DELAYS_MS: [u64; 4] = [1000, 2000, 5000, 10_000];
/// After a loss the first attempt comes at once, but not all lanes' in the same moment.
const AFTER_LOSS_MS: u64 = 250;

#[derive(Default)]
pub(super) struct Backoff {
    failures: usize,
}

impl Backoff {
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// The wait after a failed attempt: between 75% and 125% of the step. `random` is any number.
    pub(super) fn failed(&mut self, random: u64) -> Duration {
        let step = DELAYS_MS[self.failures.min(DELAYS_MS.len() - 1)];
        self.failures += 1;
        Duration::from_millis(step * 3 / 4 + random % (step / 2))
    }

    /// The wait after a lane that was up is lost.
    pub(super) fn lost(random: u64) -> Duration {
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
            backoff.succeeded();
            assert!(backoff.failed(random).as_millis() < 1250);
            assert!(Backoff::lost(random).as_millis() < 250);
        }
    }
}
