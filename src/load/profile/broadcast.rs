//! Broadcast: one view model ticks for all; clients listen.
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::time::Instant;

use super::super::sequence::{Arrival, Gaps, Sequence};
use super::super::tally::Tally;
use super::{Average, Behaviour, Shared, Turn, since};

/// The latest tick that any client of one server has had, so that the others know what they are owed. This takes one app server:
/// several behind one proxy would each count for themselves.
#[derive(Default)]
pub struct Ticks {
    latest: AtomicU32,
    /// ... when the load ended. Later ones are nobody's duty.
    owed: AtomicU32,
}

impl Ticks {
    pub fn load_ends(&self) {
        self.owed.store(self.latest.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

pub struct Broadcast {
    interval: Duration,
    shared: Arc<Shared>,
    sequence: Sequence,
    gaps: Gaps,
    previous: Option<Instant>,
    is_renewed: bool,
    average: Average,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    tick: Option<Payload>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Payload {
    time: String,
    sequence: u32,
}

impl Broadcast {
    pub fn new(interval: Duration, shared: Arc<Shared>) -> Broadcast {
        Broadcast {
            interval,
            shared,
            sequence: Sequence::starting_with(1),
            gaps: Gaps::default(),
            previous: None,
            is_renewed: false,
            average: Average::default(),
        }
    }
}

impl Behaviour for Broadcast {
    fn view_model(&self) -> &'static str {
        "BroadcastVM"
    }

    fn argument(&self) -> Value {
        json!({ "TickInterval": self.interval.as_millis().to_string() })
    }

    /// The state holds the latest tick: all from the next one on are owed.
    fn joined(&mut self, data: &str, _turn: &mut Turn) -> Result<(), serde_json::Error> {
        let latest = serde_json::from_str::<State>(data)?.tick.map_or(0, |tick| tick.sequence);
        self.sequence = Sequence::starting_with(latest.saturating_add(1));
        if self.is_renewed {
            // An app server that was started again counts from 1. One that was not has told others more, or will in a moment.
            self.shared.ticks.latest.store(latest, Ordering::Relaxed);
        }
        Ok(())
    }

    fn renewed(&mut self) {
        self.is_renewed = true;
        self.gaps = Gaps::default();
        self.previous = None;
    }

    fn response(&mut self, data: &str, turn: &mut Turn) -> Result<(), serde_json::Error> {
        let Some(tick) = serde_json::from_str::<State>(data)?.tick else { return Ok(()) };
        let arrival = self.sequence.arrives(tick.sequence, 0, &mut self.gaps);
        turn.tally.arrival(arrival);
        if matches!(arrival, Arrival::Repeated | Arrival::Unowed) {
            return Ok(());
        }
        self.shared.ticks.latest.fetch_max(tick.sequence, Ordering::Relaxed);
        if let Some(previous) = self.previous.replace(turn.now) {
            let interval = turn.now - previous;
            turn.tally.interval.record(interval);
            self.average.add(interval);
        }
        if self.shared.same_clock
            && let Some(delay) = since(&tick.time)
        {
            turn.tally.delivery.record(delay);
        }
        Ok(())
    }

    fn is_settled(&self) -> bool {
        self.sequence.next() > self.shared.ticks.owed.load(Ordering::Relaxed)
    }

    fn close_books(&mut self, tally: &mut Tally) {
        let last = self.shared.ticks.owed.load(Ordering::Relaxed);
        tally.missed += u64::from(self.sequence.ends_with(last, 0, &mut self.gaps));
        if let Some(missed) = self.gaps.shown() {
            tally.fault(format!("a client Missed={missed}"));
        }
        self.average.close(tally);
    }
}
