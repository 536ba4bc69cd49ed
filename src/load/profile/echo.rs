//! Echo and SharedEcho: the server pings, the client answers with the same payload, and only then the next ping is due.
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

use super::super::sequence::{Arrival, Gaps, Sequence};
use super::super::tally::Tally;
use super::{Average, Behaviour, Shared, Turn, since};

/// EchoVM takes this long for its first ping, whatever `PingInterval` says (contract 7.1).
const FIRST_PING: Duration = Duration::from_secs(1);

pub struct Echo {
    /// One view model for all; the client begins.
    is_shared: bool,
    interval: Duration,
    shared: Arc<Shared>,
    sequence: Sequence,
    gaps: Gaps,
    /// Of the first ping; another one's is somebody else's.
    connection_id: Option<String>,
    /// The server's next ping, if one is to come.
    next_ping: Option<Instant>,
    stopped: bool,
    average: Average,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    ping: Option<Payload>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Payload {
    connection_id: String,
    time: String,
    sequence: u32,
    prev_latency: f64,
    avg_latency: f64,
}

impl Echo {
    pub fn new(is_shared: bool, interval: Duration, shared: Arc<Shared>) -> Echo {
        Echo {
            is_shared,
            interval,
            shared,
            sequence: Sequence::starting_with(1),
            gaps: Gaps::default(),
            connection_id: None,
            next_ping: None,
            stopped: false,
            average: Average::default(),
        }
    }

    fn ping(&mut self, ping: Payload, turn: &mut Turn) {
        let own = self.connection_id.get_or_insert_with(|| ping.connection_id.clone());
        if *own != ping.connection_id {
            turn.tally.misdelivered += 1;
            return;
        }
        let arrival = self.sequence.arrives(ping.sequence, 0, &mut self.gaps);
        turn.tally.arrival(arrival);
        if arrival == Arrival::Repeated {
            // A second answer would make the server ping twice from now on.
            return;
        }
        if self.shared.same_clock
            && let Some(delay) = since(&ping.time)
        {
            turn.tally.delivery.record(delay);
        }
        // The first ping reports on none before it.
        if ping.sequence > 1 {
            let latency = Duration::try_from_secs_f64(ping.prev_latency / 1000.0).unwrap_or_default();
            turn.tally.round_trip.record(latency);
            self.average.add(latency);
        }
        self.next_ping = None;
        if !self.stopped {
            turn.updates.push(json!({ "Pong": ping }));
            self.next_ping = Some(turn.now + self.interval);
        }
    }
}

impl Behaviour for Echo {
    fn view_model(&self) -> &'static str {
        if self.is_shared { "SharedEchoVM" } else { "EchoVM" }
    }

    fn argument(&self) -> Value {
        json!({ "PingInterval": self.interval.as_millis().to_string() })
    }

    fn joined(&mut self, _data: &str, turn: &mut Turn) -> Result<(), serde_json::Error> {
        // There is a second time, when it is renewed.
        if self.stopped {
            return Ok(());
        }
        if self.is_shared {
            turn.updates.push(json!({ "Pong": {} }));
        }
        self.next_ping = Some(turn.now + if self.is_shared { self.interval } else { FIRST_PING });
        Ok(())
    }

    /// It knows the client by another id and counts from 1 again.
    fn renewed(&mut self) {
        self.connection_id = None;
        (self.sequence, self.gaps) = (Sequence::starting_with(1), Gaps::default());
        self.next_ping = None;
    }

    fn response(&mut self, data: &str, turn: &mut Turn) -> Result<(), serde_json::Error> {
        if let Some(ping) = serde_json::from_str::<State>(data)?.ping {
            self.ping(ping, turn);
        }
        Ok(())
    }

    fn stop(&mut self, now: Instant) {
        self.stopped = true;
        // What is due only later is not waited for.
        self.next_ping = self.next_ping.filter(|due| *due <= now);
    }

    fn is_settled(&self) -> bool {
        self.next_ping.is_none()
    }

    fn close_books(&mut self, tally: &mut Tally) {
        if self.next_ping.is_some() {
            let owed = self.sequence.next();
            tally.missed += u64::from(self.sequence.ends_with(owed, 0, &mut self.gaps));
        }
        if let Some(missed) = self.gaps.shown() {
            tally.fault(format!("[{}] Missed={missed}", self.connection_id.as_deref().unwrap_or("no ping came")));
        }
        self.average.close(tally);
    }
}
