//! ChatRoomVM: the load tester's (contract 7.1), with a list of who is in the room for the demo page.
//!
//! The group is vmArg's `ChatRoom`: rooms are there as on a server whose chat middleware runs before header extraction, which on a real
//! one takes some forwarding-type middleware beside it (contract 7.1). Without a `ChatRoom` all share one ungrouped room.
//! Only clients that give a `Name` are listed, so that the load tester's do not cause an update each.
use serde_json::{Value, json};
use std::collections::VecDeque;

use super::{Exception, Object, Turn, ViewModel, text};

/// Messages a newcomer is shown. The original keeps all; a room has to be bounded.
const MESSAGES_KEPT: usize = 50;
/// Longest name shown to others.
const NAME_CHARS_MAX: usize = 40;

#[derive(Default)]
pub struct ChatRoom {
    room: String,
    client_id: String,
    messages: VecDeque<Value>,
    /// In order of joining.
    users: Vec<User>,
    joined: u64,
}

struct User {
    member: String,
    /// Shown to others: a connection id is nobody else's business.
    id: String,
    name: String,
}

impl User {
    fn value(&self) -> Value {
        json!({ "Id": self.id, "Name": self.name })
    }
}

impl ChatRoom {
    fn name(&mut self, value: &Value, turn: &mut Turn) {
        let name: String =
            text(value).chars().filter(|character| !character.is_control()).take(NAME_CHARS_MAX).collect();
        if name.trim().is_empty() {
            return;
        }
        if let Some(user) = self.users.iter_mut().find(|user| user.member == turn.caller) {
            user.name = name;
            turn.change("Users_update", user.value());
        } else {
            self.joined += 1;
            let user = User { member: turn.caller.clone(), id: format!("u{}", self.joined), name };
            turn.change("Users_add", user.value());
            self.users.push(user);
        }
        turn.push_updates();
    }
}

impl ViewModel for ChatRoom {
    fn state(&self) -> Object {
        let mut state = Object::default();
        state.push("Messages", self.messages.iter().cloned().collect::<Vec<_>>());
        state.push("Messages_itemKey", "MessageId");
        state.push("Users", self.users.iter().map(User::value).collect::<Vec<_>>());
        state.push("Users_itemKey", "Id");
        state.push("ChatRoom", self.room.as_str());
        state.push("ClientId", self.client_id.as_str());
        state
    }

    fn set(&mut self, property: &str, value: &Value, turn: &mut Turn) -> Result<(), Exception> {
        match property {
            "ChatRoom" => self.room = text(value),
            "ClientId" => self.client_id = text(value),
            "Name" => self.name(value, turn),
            "SendMessage" => {
                if !value.is_object() {
                    return Err(Exception::new("JsonSerializationException", "SendMessage takes an object."));
                }
                self.messages.push_back(value.clone());
                if self.messages.len() > MESSAGES_KEPT {
                    self.messages.pop_front();
                }
                turn.change("Messages_add", value.clone());
                turn.push_updates();
            }
            _ => {}
        }
        Ok(())
    }

    fn left(&mut self, member: &str, turn: &mut Turn) {
        if let Some(index) = self.users.iter().position(|user| user.member == member) {
            let user = self.users.remove(index);
            turn.change("Users_remove", user.id);
            turn.push_updates();
        }
    }
}
