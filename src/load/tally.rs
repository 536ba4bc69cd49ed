//! What one thread counts for one server, and how the counts of several come together.
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::time::Duration;

use super::sequence::Arrival;
use crate::limits::LOAD_FAULTS_MAX;

/// The histogram grows with the longest time in it: no clock that jumps may make it huge. An hour.
const LONGEST_MICROS: u64 = 3_600_000_000;

/// Microseconds, three significant digits.
#[derive(Clone)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        Times(Histogram::new(3).expect("three digits are allowed"))
    }
}

impl Times {
    pub fn record(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).map_or(LONGEST_MICROS, |micros| micros.min(LONGEST_MICROS));
        self.0.record(micros).expect("it grows as it must");
    }

    fn add(&mut self, other: &Times) {
        self.0.add(&other.0).expect("it grows as it must");
    }

    /// What came since `earlier`, of the same clients.
    pub fn since(mut self, earlier: &Times) -> Times {
        self.0.subtract(&earlier.0).expect("times are never taken back");
        self
    }

    pub fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }
}

/// Each client's own average, as the closing line of the original wants them. Milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Averages {
    pub clients: u32,
    sum: f64,
    pub min: f64,
    pub max: f64,
}

impl Default for Averages {
    fn default() -> Self {
        Averages { clients: 0, sum: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY }
    }
}

impl Averages {
    pub fn of_client(&mut self, milliseconds: f64) {
        self.add(&Averages { clients: 1, sum: milliseconds, min: milliseconds, max: milliseconds });
    }

    fn add(&mut self, other: &Averages) {
        self.clients += other.clients;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    pub fn mean(&self) -> f64 {
        self.sum / f64::from(self.clients)
    }
}

/// The counts themselves; what each means stands at `report::Figures`.
#[derive(Default)]
pub struct Tally {
    pub started: u64,
    pub connected: u64,
    pub active: u64,
    pub failed_connects: u64,
    pub disconnects: u64,
    pub renewed: u64,
    pub requests: u64,
    pub updates: u64,
    pub disposes: u64,
    pub responses: u64,
    pub received: u64,
    pub missed: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub misdelivered: u64,
    pub errors: u64,
    pub connect: Times,
    pub round_trip: Times,
    pub delivery: Times,
    pub interval: Times,
    pub averages: Averages,
    /// What went wrong, in words, and how often.
    pub faults: BTreeMap<String, u64>,
    /// Others, for which there was no room.
    pub faults_more: u64,
}

impl Tally {
    pub fn arrival(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::InOrder => self.received += 1,
            Arrival::Ahead(skipped) => {
                self.received += 1;
                self.missed += u64::from(skipped);
            }
            Arrival::Late => {
                self.received += 1;
                self.missed -= 1;
                self.reordered += 1;
            }
            Arrival::Repeated => self.duplicated += 1,
            Arrival::Unowed => {}
        }
    }

    pub fn fault(&mut self, text: String) {
        tracing::debug!("{text}");
        self.faults_of(text, 1);
    }

    fn faults_of(&mut self, text: String, times: u64) {
        if let Some(count) = self.faults.get_mut(&text) {
            *count += times;
        } else if self.faults.len() < LOAD_FAULTS_MAX {
            self.faults.insert(text, times);
        } else {
            self.faults_more += times;
        }
    }

    pub fn add(&mut self, other: &Tally) {
        // Taken apart, so that no count can be forgotten here.
        let Tally {
            started,
            connected,
            active,
            failed_connects,
            disconnects,
            renewed,
            requests,
            updates,
            disposes,
            responses,
            received,
            missed,
            duplicated,
            reordered,
            misdelivered,
            errors,
            connect,
            round_trip,
            delivery,
            interval,
            averages,
            faults,
            faults_more,
        } = other;
        self.started += started;
        self.connected += connected;
        self.active += active;
        self.failed_connects += failed_connects;
        self.disconnects += disconnects;
        self.renewed += renewed;
        self.requests += requests;
        self.updates += updates;
        self.disposes += disposes;
        self.responses += responses;
        self.received += received;
        self.missed += missed;
        self.duplicated += duplicated;
        self.reordered += reordered;
        self.misdelivered += misdelivered;
        self.errors += errors;
        self.connect.add(connect);
        self.round_trip.add(round_trip);
        self.delivery.add(delivery);
        self.interval.add(interval);
        self.averages.add(averages);
        for (text, times) in faults {
            self.faults_of(text.clone(), *times);
        }
        self.faults_more += faults_more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_since_a_mark_are_those_that_came_after_it() {
        let mut times = Times::default();
        times.record(Duration::from_millis(900));
        let mark = times.clone();
        assert!(times.clone().since(&mark).histogram().is_empty());
        for _ in 0..3 {
            times.record(Duration::from_millis(2));
        }
        let since = times.since(&mark);
        assert_eq!((since.histogram().len(), since.histogram().max() / 1000), (3, 2));
    }
}
