//! Idle: a view model that says nothing unasked is requested, and that is all.
use serde_json::{Value, json};

use super::Behaviour;

pub struct Idle;

impl Behaviour for Idle {
    /// Every server with the load tester's view models has it, it is in no group, and it waits for a first `Pong`.
    fn view_model(&self) -> &'static str {
        "SharedEchoVM"
    }

    fn argument(&self) -> Value {
        json!({})
    }
}
