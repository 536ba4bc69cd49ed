//! Metrics: one table of names (`table`), plain integers per shard, and the text of /metrics (`exposition`).
//!
//! A shard owns a [`ShardMetrics`] and counts with an array add. Once a turn it publishes the whole array into its [`Published`] with
//! relaxed stores, and the admin endpoint reads those from its own thread. A reader may see one shard's values from two
//! neighbouring turns; each value by itself is whole, and counters never fall.
//!
//! ```text
//! shard thread:  metrics.add(Counter::X, 1) ... metrics.publish(&published)      control thread: exposition::encode(&[&published], &lanes)
//! ```
pub mod exposition;
pub mod process;
pub mod table;

pub use exposition::{CONTENT_TYPE, LaneInfo, LaneState};
pub use table::{Counter, Gauge, Histogram};

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use table::{BUCKETS, COUNTERS, GAUGES, HISTOGRAMS};

/// One histogram: a count per bucket (the last one is everything above), and the sum of what was observed.
pub(crate) const HISTOGRAM_CELLS: usize = BUCKETS + 2;
pub(crate) const GAUGES_AT: usize = COUNTERS.len();
pub(crate) const HISTOGRAMS_AT: usize = GAUGES_AT + GAUGES.len();
pub(crate) const CELLS: usize = HISTOGRAMS_AT + HISTOGRAMS.len() * HISTOGRAM_CELLS;

/// What a shard's numbers take: its own, and where others read them.
pub const METRICS_BYTES: usize = 2 * CELLS * size_of::<u64>();

/// A shard's own numbers: no atomics, no allocation after `new`.
pub struct ShardMetrics {
    cells: Box<[u64; CELLS]>,
}

impl Default for ShardMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl ShardMetrics {
    pub fn new() -> Self {
        ShardMetrics { cells: Box::new([0; CELLS]) }
    }

    #[inline]
    pub fn add(&mut self, counter: Counter, n: u64) {
        let cell = &mut self.cells[counter as usize];
        *cell = cell.wrapping_add(n);
    }

    /// Gauges are set from what they measure (a slab's length, a queue's), never moved by one here and there.
    #[inline]
    pub fn set(&mut self, gauge: Gauge, value: u64) {
        self.cells[GAUGES_AT + gauge as usize] = value;
    }

    /// Adds an observation, in the histogram's unit of microseconds.
    #[inline]
    pub fn observe_us(&mut self, histogram: Histogram, us: u64) {
        let bounds = &HISTOGRAMS[histogram as usize].bounds_us;
        let bucket = bounds.iter().position(|&bound| us <= bound).unwrap_or(BUCKETS);
        let at = HISTOGRAMS_AT + histogram as usize * HISTOGRAM_CELLS;
        self.cells[at + bucket] += 1;
        self.cells[at + BUCKETS + 1] += us;
    }

    pub fn counter(&self, counter: Counter) -> u64 {
        self.cells[counter as usize]
    }

    pub fn gauge(&self, gauge: Gauge) -> u64 {
        self.cells[GAUGES_AT + gauge as usize]
    }

    /// Lets the other side see this turn's numbers. About a hundred plain stores on x86.
    pub fn publish(&self, published: &Published) {
        for (cell, value) in published.0.iter().zip(self.cells.iter()) {
            cell.store(*value, Relaxed);
        }
    }
}

/// Where a shard's numbers can be read by other threads. Share it in an `Arc`.
pub struct Published(Box<[AtomicU64]>);

impl Default for Published {
    fn default() -> Self {
        Self::new()
    }
}

impl Published {
    pub fn new() -> Self {
        Published((0..CELLS).map(|_| AtomicU64::new(0)).collect())
    }

    pub fn counter(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Relaxed)
    }

    pub fn gauge(&self, gauge: Gauge) -> u64 {
        self.0[GAUGES_AT + gauge as usize].load(Relaxed)
    }

    pub(crate) fn snapshot(&self) -> Vec<u64> {
        self.0.iter().map(|cell| cell.load(Relaxed)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_has_a_cell_of_its_own() {
        let mut metrics = ShardMetrics::new();
        let published = Published::new();
        for (index, counter) in Counter::ALL.iter().enumerate() {
            metrics.add(*counter, 1000 + index as u64);
        }
        for (index, gauge) in Gauge::ALL.iter().enumerate() {
            metrics.set(*gauge, 5000 + index as u64);
        }
        for histogram in Histogram::ALL {
            metrics.observe_us(*histogram, u64::from(u32::MAX));
        }
        assert_eq!(published.counter(Counter::ALL[0]), 0);
        metrics.publish(&published);
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(published.counter(*counter), 1000 + index as u64);
            assert_eq!(published.counter(*counter), metrics.counter(*counter));
        }
        for (index, gauge) in Gauge::ALL.iter().enumerate() {
            assert_eq!(published.gauge(*gauge), 5000 + index as u64);
            assert_eq!(published.gauge(*gauge), metrics.gauge(*gauge));
        }
        assert!(
            published.snapshot().iter().filter(|&&cell| cell > 0).count()
                >= Counter::ALL.len() + Gauge::ALL.len() + 2 * Histogram::ALL.len()
        );
    }

    #[test]
    fn an_observation_falls_into_the_first_bucket_that_holds_it() {
        let mut metrics = ShardMetrics::new();
        let bounds = HISTOGRAMS[Histogram::QueueWait as usize].bounds_us;
        for us in [0, bounds[0], bounds[0] + 1, bounds[BUCKETS - 1], bounds[BUCKETS - 1] + 1] {
            metrics.observe_us(Histogram::QueueWait, us);
        }
        let at = HISTOGRAMS_AT + Histogram::QueueWait as usize * HISTOGRAM_CELLS;
        let buckets = &metrics.cells[at..at + BUCKETS + 1];
        assert_eq!((buckets[0], buckets[1], buckets[BUCKETS - 1], buckets[BUCKETS]), (2, 1, 1, 1));
        assert_eq!(metrics.cells[at + BUCKETS + 1], 2 * bounds[0] + 1 + 2 * bounds[BUCKETS - 1] + 1);
    }
}
