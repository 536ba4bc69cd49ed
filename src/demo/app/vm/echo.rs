//! EchoVM and SharedEchoVM of the load tester (contract 7.1): the server pings, the client answers, and only then the next ping is due.
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use super::super::clock;
use super::{Effect, Exception, Object, Turn, ViewModel, interval, round, text};

/// Of the first ping, whatever PingInterval says, and the default afterwards.
const PING_INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
const PING: &str = "ping";

pub struct Echo {
    /// The client's connection id, which it checks to notice misdelivery.
    connection_id: String,
    ping_interval: Duration,
    count: u64,
    delta_sum: f64,
    previous: f64,
    ping: Value,
}

impl Default for Echo {
    fn default() -> Self {
        Echo {
            connection_id: String::new(),
            ping_interval: PING_INTERVAL_DEFAULT,
            count: 0,
            delta_sum: 0.0,
            previous: 0.0,
            ping: Value::Null,
        }
    }
}

impl ViewModel for Echo {
    fn created(&mut self, turn: &mut Turn) -> Result<(), Exception> {
        self.connection_id = turn.caller.clone();
        turn.after(PING_INTERVAL_DEFAULT, PING, "");
        Ok(())
    }

    fn state(&self) -> Object {
        let mut state = Object::default();
        state.push("Ping", self.ping.clone());
        state.push("PingInterval", self.ping_interval.as_millis() as u64);
        state
    }

    fn set(&mut self, property: &str, value: &Value, turn: &mut Turn) -> Result<(), Exception> {
        match property {
            "PingInterval" => self.ping_interval = interval(property, value)?,
            "Pong" => {
                let delta = since(value, turn.now)?;
                self.delta_sum += delta;
                self.previous = delta;
                turn.after(self.ping_interval, PING, "");
            }
            _ => {}
        }
        Ok(())
    }

    fn timer(&mut self, _tag: &str, turn: &mut Turn) {
        let average = if self.count > 0 { self.delta_sum / self.count as f64 } else { 0.0 };
        self.count += 1;
        self.ping = ping(&self.connection_id, turn.now, self.count, self.previous, average);
        turn.change("Ping", self.ping.clone());
        turn.push_updates();
    }
}

/// One instance for all: each client is answered by a `SendToManyAsync` with its one id.
pub struct SharedEcho {
    ping_interval: Duration,
    clients: HashMap<String, Client>,
}

struct Client {
    count: u64,
    delta_sum: f64,
    previous: f64,
}

impl Default for SharedEcho {
    fn default() -> Self {
        SharedEcho { ping_interval: PING_INTERVAL_DEFAULT, clients: HashMap::new() }
    }
}

impl ViewModel for SharedEcho {
    fn state(&self) -> Object {
        let mut state = Object::default();
        state.push("Ping", Value::Null);
        state.push("PingInterval", self.ping_interval.as_millis() as u64);
        state
    }

    fn set(&mut self, property: &str, value: &Value, turn: &mut Turn) -> Result<(), Exception> {
        match property {
            "PingInterval" => self.ping_interval = interval(property, value)?,
            "Pong" => {
                let client = self.clients.entry(turn.caller.clone()).or_insert(Client {
                    count: 1,
                    delta_sum: 0.0,
                    previous: 0.0,
                });
                client.previous = 0.0;
                // The first pong is empty: the client's way to start.
                if value.get("ConnectionId").is_some_and(|id| !text(id).is_empty()) {
                    client.previous = since(value, turn.now)?;
                    client.delta_sum += client.previous;
                }
                let caller = turn.caller.clone();
                turn.after(self.ping_interval, PING, &caller);
            }
            _ => {}
        }
        Ok(())
    }

    fn timer(&mut self, connection_id: &str, turn: &mut Turn) {
        let Some(client) = self.clients.get_mut(connection_id) else { return };
        let average = client.delta_sum / client.count as f64;
        let mut data = Object::default();
        data.push("Ping", ping(connection_id, turn.now, client.count, client.previous, average));
        client.count += 1;
        turn.effects.push(Effect::SendTo(vec![connection_id.to_owned()], data));
    }

    fn left(&mut self, member: &str, _turn: &mut Turn) {
        self.clients.remove(member);
    }
}

fn ping(connection_id: &str, now: SystemTime, sequence: u64, previous: f64, average: f64) -> Value {
    json!({
        "ConnectionId": connection_id,
        "Time": clock::iso(now),
        "Sequence": sequence,
        "PrevLatency": round(previous),
        "AvgLatency": round(average),
    })
}

/// Milliseconds since the payload's `Time`, by this server's clock.
fn since(payload: &Value, now: SystemTime) -> Result<f64, Exception> {
    let time = payload.get("Time").and_then(Value::as_str).and_then(clock::parse);
    let Some(time) = time else {
        return Err(Exception::new(
            "JsonReaderException",
            "Could not convert Pong to Payload: Time is missing or not a date.",
        ));
    };
    Ok(match now.duration_since(time) {
        Ok(delta) => delta.as_secs_f64() * 1000.0,
        Err(ahead) => -ahead.duration().as_secs_f64() * 1000.0,
    })
}
