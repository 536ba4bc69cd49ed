//! HelloWorldVM of dotNetify's demos: two editable names, what follows from them, and a clock.
use serde_json::Value;
use std::time::{Duration, SystemTime};

use super::super::clock;
use super::{Exception, Object, Turn, ViewModel, interval, text};

const TICK: &str = "tick";

pub struct HelloWorld {
    first_name: String,
    last_name: String,
    /// Zero: no clock, for tests that count messages.
    tick_interval: Duration,
    now: SystemTime,
}

impl Default for HelloWorld {
    fn default() -> Self {
        HelloWorld {
            first_name: "Hello".into(),
            last_name: "World".into(),
            tick_interval: Duration::from_secs(1),
            now: SystemTime::now(),
        }
    }
}

impl HelloWorld {
    fn full_name(&self) -> String {
        format!("{} {}", self.first_name, self.last_name)
    }

    fn greetings(&self) -> String {
        format!("{}!", self.full_name())
    }

    fn name_changed(&self, turn: &mut Turn) {
        turn.change("FullName", self.full_name());
        turn.change("Greetings", self.greetings());
    }
}

impl ViewModel for HelloWorld {
    fn created(&mut self, turn: &mut Turn) -> Result<(), Exception> {
        self.now = turn.now;
        if !self.tick_interval.is_zero() {
            turn.after(self.tick_interval, TICK, "");
        }
        Ok(())
    }

    fn state(&self) -> Object {
        let mut state = Object::default();
        state.push("FirstName", self.first_name.as_str());
        state.push("LastName", self.last_name.as_str());
        state.push("FullName", self.full_name());
        state.push("Greetings", self.greetings());
        state.push("ServerTime", clock::of_day(self.now));
        state
    }

    fn set(&mut self, property: &str, value: &Value, turn: &mut Turn) -> Result<(), Exception> {
        match property {
            "FirstName" => {
                self.first_name = text(value);
                turn.change(property, self.first_name.as_str());
                self.name_changed(turn);
            }
            "LastName" => {
                self.last_name = text(value);
                turn.change(property, self.last_name.as_str());
                self.name_changed(turn);
            }
            "TickInterval" => self.tick_interval = interval(property, value)?,
            "Throw" => return Err(Exception::new("UnauthorizedAccessException", text(value))),
            _ => {}
        }
        Ok(())
    }

    fn timer(&mut self, _tag: &str, turn: &mut Turn) {
        self.now = turn.now;
        turn.change("ServerTime", clock::of_day(turn.now));
        turn.push_updates();
        if !self.tick_interval.is_zero() {
            turn.after(self.tick_interval, TICK, "");
        }
    }
}
