//! BurstVM of `signalring load --profile burst`: each `Send` comes back as an `Echo`, one response for one update. dotNetify has none such.
use serde_json::Value;

use super::{Exception, Object, Turn, ViewModel};

#[derive(Default)]
pub struct Burst {
    /// As the app server knows the client: another one tells it that this is another life.
    connection_id: String,
}

impl ViewModel for Burst {
    fn created(&mut self, turn: &mut Turn) -> Result<(), Exception> {
        self.connection_id = turn.caller.clone();
        Ok(())
    }

    fn state(&self) -> Object {
        let mut state = Object::default();
        state.push("ConnectionId", self.connection_id.as_str());
        state.push("Echo", Value::Null);
        state
    }

    fn set(&mut self, property: &str, value: &Value, turn: &mut Turn) -> Result<(), Exception> {
        if property == "Send" {
            turn.change("Echo", value.clone());
        }
        Ok(())
    }
}
