//! Burst: updates back to back, each echoed by BurstVM. It needs `signalring app`: dotNetify's load tester has no such view model.
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

use super::super::sequence::{Arrival, Gaps, Sequence};
use super::super::tally::Tally;
use super::{Average, Behaviour, Shared, Turn};
use crate::limits::{LOAD_BURST, LOAD_BURSTS_UNDER_WAY_MAX};

pub struct Burst {
    client_id: String,
    interval: Duration,
    next_burst: Option<Instant>,
    sent: u32,
    sequence: Sequence,
    gaps: Gaps,
    /// When the messages were sent that have not come back, in their order.
    under_way: VecDeque<(u32, Instant)>,
    /// Of what is under way, some may be lost and the rest still come: the next number begins the sequence.
    is_renewed: bool,
    average: Average,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    echo: Option<Payload>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Payload {
    client_id: String,
    sequence: u32,
}

impl Burst {
    pub fn new(interval: Duration, shared: &Shared, index: u32) -> Burst {
        Burst {
            client_id: format!("{}{index}", shared.id_prefix),
            interval,
            next_burst: None,
            sent: 0,
            sequence: Sequence::starting_with(1),
            gaps: Gaps::default(),
            under_way: VecDeque::new(),
            is_renewed: false,
            average: Average::default(),
        }
    }
}

impl Behaviour for Burst {
    fn view_model(&self) -> &'static str {
        "BurstVM"
    }

    fn argument(&self) -> Value {
        json!({})
    }

    fn joined(&mut self, _data: &str, turn: &mut Turn) -> Result<(), serde_json::Error> {
        if !self.is_renewed {
            self.next_burst = Some(turn.now + self.interval);
        }
        Ok(())
    }

    fn renewed(&mut self) {
        self.is_renewed = true;
        self.gaps = Gaps::default();
    }

    fn response(&mut self, data: &str, turn: &mut Turn) -> Result<(), serde_json::Error> {
        let Some(echo) = serde_json::from_str::<State>(data)?.echo else { return Ok(()) };
        if echo.client_id != self.client_id {
            turn.tally.misdelivered += 1;
            return Ok(());
        }
        if std::mem::take(&mut self.is_renewed) {
            self.sequence = Sequence::starting_with(echo.sequence);
        }
        let arrival = self.sequence.arrives(echo.sequence, 0, &mut self.gaps);
        turn.tally.arrival(arrival);
        if matches!(arrival, Arrival::InOrder | Arrival::Ahead(_)) {
            while let Some((number, sent)) = self.under_way.pop_front_if(|(number, _)| *number <= echo.sequence) {
                if number == echo.sequence {
                    turn.tally.round_trip.record(turn.now - sent);
                    self.average.add(turn.now - sent);
                }
            }
        }
        Ok(())
    }

    fn due(&self) -> Option<Instant> {
        self.next_burst
    }

    fn timer(&mut self, turn: &mut Turn) {
        let Some(due) = self.next_burst else { return };
        // A server that does not keep up is not drowned: its clients wait for it.
        if self.under_way.len() < (LOAD_BURSTS_UNDER_WAY_MAX * LOAD_BURST) as usize {
            for _ in 0..LOAD_BURST {
                self.sent += 1;
                let payload = Payload { client_id: self.client_id.clone(), sequence: self.sent };
                turn.updates.push(json!({ "Send": payload }));
                self.under_way.push_back((self.sent, turn.now));
            }
        }
        self.next_burst = Some((due + self.interval).max(turn.now));
    }

    fn stop(&mut self, _now: Instant) {
        self.next_burst = None;
    }

    fn is_settled(&self) -> bool {
        self.is_renewed || self.sequence.next() > self.sent
    }

    fn close_books(&mut self, tally: &mut Tally) {
        if !self.is_renewed {
            tally.missed += u64::from(self.sequence.ends_with(self.sent, 0, &mut self.gaps));
        }
        if let Some(missed) = self.gaps.shown() {
            tally.fault(format!("[{}] Missed={missed}", self.client_id));
        }
        self.average.close(tally);
    }
}
