//! Metrics: one table of names (`table`), plain integers per shard, and the text of /metrics (`exposition`).
//!
//! A shard owns a [`ShardMetrics`] and counts with an array add. Once a turn it publishes the whole array into its [`Published`] with
//! relaxed stores, and the admin endpoint reads those from its own thread. A reader may see one shard's values from two
//! neighbouring turns; each value by itself is whole, and counters never fall.
//!
//! ```text
//! shard thread:  metrics.add(Counter::X, 1) ... metrics.publish(&published)      control thread: exposition::encode(&[&published], &node)
//! ```
pub mod exposition;
pub mod process;
pub mod table;

pub use exposition::{CONTENT_TYPE, JournalInfo, LaneInfo, LaneState, NodeInfo, Reloads};
pub use table::{Counter, Gauge, Histogram, UpstreamCounter, UpstreamGauge};

use crate::ids::UpstreamIndex;
use crate::limits::UPSTREAMS_MAX;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use table::{BUCKETS, COUNTERS, GAUGES, HISTOGRAMS, UPSTREAM_COUNTERS, UPSTREAM_GAUGES};

/// One histogram: a count per bucket (the last one is everything above), and the sum of what was observed.
pub(crate) const HISTOGRAM_CELLS: usize = BUCKETS + 2;
pub(crate) const GAUGES_AT: usize = COUNTERS.len();
pub(crate) const HISTOGRAMS_AT: usize = GAUGES_AT + GAUGES.len();
/// Behind everything else, an upstream after the other: those that are not configured cost nothing when the rest is published.
pub(crate) const UPSTREAMS_AT: usize = HISTOGRAMS_AT + HISTOGRAMS.len() * HISTOGRAM_CELLS;
/// One upstream: its counters, then its gauges.
pub(crate) const UPSTREAM_CELLS: usize = UPSTREAM_COUNTERS.len() + UPSTREAM_GAUGES.len();
pub(crate) const CELLS: usize = UPSTREAMS_AT + UPSTREAMS_MAX * UPSTREAM_CELLS;

fn upstream_counter_at(upstream: UpstreamIndex, counter: UpstreamCounter) -> usize {
    UPSTREAMS_AT + usize::from(upstream.0) * UPSTREAM_CELLS + counter as usize
}

fn upstream_gauge_at(upstream: UpstreamIndex, gauge: UpstreamGauge) -> usize {
    UPSTREAMS_AT + usize::from(upstream.0) * UPSTREAM_CELLS + UPSTREAM_COUNTERS.len() + gauge as usize
}

/// What a shard's numbers take: its own, and where others read them.
pub const METRICS_BYTES: usize = 2 * CELLS * size_of::<u64>();

/// A shard's own numbers: no atomics, no allocation after `new`.
pub struct ShardMetrics {
    cells: Box<[u64; CELLS]>,
    /// Cells up to the last upstream that was ever counted.
    used: usize,
}

impl Default for ShardMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl ShardMetrics {
    pub fn new() -> Self {
        ShardMetrics { cells: Box::new([0; CELLS]), used: UPSTREAMS_AT }
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

    /// `upstream` is a place in the configuration, below `UPSTREAMS_MAX`.
    #[inline]
    pub fn add_upstream(&mut self, upstream: UpstreamIndex, counter: UpstreamCounter, n: u64) {
        let cell = self.upstream_cell(upstream, upstream_counter_at(upstream, counter));
        *cell = cell.wrapping_add(n);
    }

    /// Likewise.
    #[inline]
    pub fn set_upstream(&mut self, upstream: UpstreamIndex, gauge: UpstreamGauge, value: u64) {
        *self.upstream_cell(upstream, upstream_gauge_at(upstream, gauge)) = value;
    }

    #[inline]
    fn upstream_cell(&mut self, upstream: UpstreamIndex, at: usize) -> &mut u64 {
        self.used = self.used.max(UPSTREAMS_AT + (usize::from(upstream.0) + 1) * UPSTREAM_CELLS);
        &mut self.cells[at]
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

    pub fn upstream_counter(&self, upstream: UpstreamIndex, counter: UpstreamCounter) -> u64 {
        self.cells[upstream_counter_at(upstream, counter)]
    }

    pub fn upstream_gauge(&self, upstream: UpstreamIndex, gauge: UpstreamGauge) -> u64 {
        self.cells[upstream_gauge_at(upstream, gauge)]
    }

    /// Lets the other side see this turn's numbers. Fewer than two hundred plain stores on x86.
    pub fn publish(&self, published: &Published) {
        for (cell, value) in published.0.iter().zip(&self.cells[..self.used]) {
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

    pub fn upstream_counter(&self, upstream: UpstreamIndex, counter: UpstreamCounter) -> u64 {
        self.0[upstream_counter_at(upstream, counter)].load(Relaxed)
    }

    pub fn upstream_gauge(&self, upstream: UpstreamIndex, gauge: UpstreamGauge) -> u64 {
        self.0[upstream_gauge_at(upstream, gauge)].load(Relaxed)
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
    fn every_upstream_has_cells_of_its_own() {
        let (mut metrics, published) = (ShardMetrics::new(), Published::new());
        metrics.publish(&published);
        // Backwards, so that nothing depends on who is counted first.
        for upstream in (0..UPSTREAMS_MAX as u8).rev().map(UpstreamIndex) {
            for (index, counter) in UpstreamCounter::ALL.iter().enumerate() {
                metrics.add_upstream(upstream, *counter, 1000 * (u64::from(upstream.0) + 1) + index as u64);
            }
            for (index, gauge) in UpstreamGauge::ALL.iter().enumerate() {
                metrics.set_upstream(upstream, *gauge, 5_000_000 + 1000 * u64::from(upstream.0) + index as u64);
            }
        }
        metrics.publish(&published);
        for upstream in (0..UPSTREAMS_MAX as u8).map(UpstreamIndex) {
            for (index, counter) in UpstreamCounter::ALL.iter().enumerate() {
                let expected = 1000 * (u64::from(upstream.0) + 1) + index as u64;
                assert_eq!(metrics.upstream_counter(upstream, *counter), expected);
                assert_eq!(published.upstream_counter(upstream, *counter), expected);
            }
            for (index, gauge) in UpstreamGauge::ALL.iter().enumerate() {
                let expected = 5_000_000 + 1000 * u64::from(upstream.0) + index as u64;
                assert_eq!(metrics.upstream_gauge(upstream, *gauge), expected);
                assert_eq!(published.upstream_gauge(upstream, *gauge), expected);
            }
        }
        assert_eq!(published.snapshot().iter().filter(|&&cell| cell > 0).count(), UPSTREAMS_MAX * UPSTREAM_CELLS);
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
