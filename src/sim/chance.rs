//! Everything that a world leaves to chance, from one number.
use crate::ids::Time;
use crate::shard::Random;
use core::time::Duration;

/// A generator with the questions that a world asks.
pub(super) struct Chance(Random);

impl Chance {
    pub(super) fn new(seed: u64) -> Chance {
        Chance(Random::new(seed))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0.next()
    }

    /// Below `end`, which is not 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Both ends included.
    pub(super) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least + 1)
    }

    pub(super) fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_micros(self.between(least * 1000, most * 1000))
    }

    /// So often in a thousand.
    pub(super) fn happens(&mut self, per_mille: u32) -> bool {
        self.next() % 1000 < u64::from(per_mille)
    }

    pub(super) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// A moment soon after `now`.
    pub(super) fn soon(&mut self, now: Time, least_ms: u64, most_ms: u64) -> Time {
        now.after(self.millis(least_ms, most_ms))
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        core::array::from_fn(|_| self.next() as u8)
    }
}
