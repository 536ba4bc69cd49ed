//! BroadcastVM of the load tester (contract 7.1): one for all, in a group, ticking.
use serde_json::{Value, json};
use std::time::{Duration, Instant};

use super::super::clock;
use super::{Exception, Object, Turn, ViewModel, interval};

const TICK: &str = "tick";
const TICK_INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
/// A shorter one would keep the ticker busy with nothing else.
const TICK_INTERVAL_MIN: Duration = Duration::from_millis(1);

pub struct Broadcast {
    tick_interval: Duration,
    /// Of the next tick. They keep time, as those of .NET's timer: one that is late does not delay all that follow.
    due: Instant,
    count: u64,
    tick: Value,
}

impl Default for Broadcast {
    fn default() -> Self {
        Broadcast { tick_interval: TICK_INTERVAL_DEFAULT, due: Instant::now(), count: 0, tick: Value::Null }
    }
}

impl ViewModel for Broadcast {
    fn created(&mut self, turn: &mut Turn) -> Result<(), Exception> {
        self.due = Instant::now() + TICK_INTERVAL_DEFAULT;
        turn.after(TICK_INTERVAL_DEFAULT, TICK, "");
        Ok(())
    }

    fn state(&self) -> Object {
        let mut state = Object::default();
        state.push("TickInterval", self.tick_interval.as_millis() as u64);
        state.push("Tick", self.tick.clone());
        state
    }

    fn set(&mut self, property: &str, value: &Value, _turn: &mut Turn) -> Result<(), Exception> {
        if property == "TickInterval" {
            self.tick_interval = interval(property, value)?.max(TICK_INTERVAL_MIN);
        }
        Ok(())
    }

    fn timer(&mut self, _tag: &str, turn: &mut Turn) {
        self.count += 1;
        self.tick = json!({ "Time": clock::iso(turn.now), "Sequence": self.count });
        turn.change("Tick", self.tick.clone());
        turn.push_updates();
        let now = Instant::now();
        self.due = (self.due + self.tick_interval).max(now);
        turn.after(self.due - now, TICK, "");
    }
}
