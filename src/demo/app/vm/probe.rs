//! View models for tests: one that throws, one that is slow, one that addresses users.
use serde_json::Value;

use super::{Effect, Exception, Object, Turn, ViewModel, text};

/// Refuses to be created: vmArg `{"ExceptionType":…,"Message":…}` chooses the exception, `{"Late":true}` lets it be created, so that
/// `Update_VM {"Throw":"text"}` can fail instead.
#[derive(Default)]
pub struct Faulty {
    kind: Option<String>,
    message: Option<String>,
    late: bool,
}

impl ViewModel for Faulty {
    fn created(&mut self, _turn: &mut Turn) -> Result<(), Exception> {
        if self.late {
            return Ok(());
        }
        let kind = self.kind.as_deref().unwrap_or("UnauthorizedAccessException");
        Err(Exception::new(kind, self.message.as_deref().unwrap_or("Attempted to perform an unauthorized operation.")))
    }

    fn state(&self) -> Object {
        Object::default()
    }

    fn set(&mut self, property: &str, value: &Value, _turn: &mut Turn) -> Result<(), Exception> {
        match property {
            "ExceptionType" => self.kind = Some(text(value)),
            "Message" => self.message = Some(text(value)),
            "Late" => self.late = value == &Value::Bool(true),
            "Throw" => return Err(Exception::new("InvalidOperationException", text(value))),
            _ => {}
        }
        Ok(())
    }
}

/// vmArg `{"Delay":ms}` is how long its creation takes, `Update_VM {"Work":ms}` how long a command takes (`vm::creation_delay`,
/// `vm::update_delay`). Both hold up the connection they came over.
#[derive(Default)]
pub struct Slow {
    delay: String,
    done: u64,
}

impl ViewModel for Slow {
    fn state(&self) -> Object {
        let mut state = Object::default();
        state.push("Delay", self.delay.as_str());
        state.push("Done", self.done);
        state
    }

    fn set(&mut self, property: &str, value: &Value, turn: &mut Turn) -> Result<(), Exception> {
        match property {
            "Delay" => self.delay = text(value),
            "Work" => {
                self.done += 1;
                turn.change("Done", self.done);
            }
            _ => {}
        }
        Ok(())
    }
}

/// `Update_VM {"Alert":{"Users":["u1"],"Text":"…"}}` sends `{"Alert":"…"}` to these users' connections.
#[derive(Default)]
pub struct UserAlert {}

impl ViewModel for UserAlert {
    fn state(&self) -> Object {
        let mut state = Object::default();
        state.push("Alert", "");
        state
    }

    fn set(&mut self, property: &str, value: &Value, turn: &mut Turn) -> Result<(), Exception> {
        if property == "Alert" {
            let users = value
                .get("Users")
                .and_then(Value::as_array)
                .map_or_else(Vec::new, |users| users.iter().map(text).collect());
            let mut data = Object::default();
            data.push("Alert", value.get("Text").map(text).unwrap_or_default());
            turn.effects.push(Effect::SendToUsers(users, data));
        }
        Ok(())
    }
}
