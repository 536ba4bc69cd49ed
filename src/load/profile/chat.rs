//! ChatRoom: some talk, all of the room listen.
//!
//! What a member is owed is known, not guessed: every sender's latest number stands where all members see it. A member that joins
//! notes them; everything after these has to come, up to the last number each sender has used when the load ends.
//!
//! The numbering of rooms is the original's: lurkers start first, then chatty and casual senders, and each of the three is dealt over the rooms.
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use tokio::time::Instant;

use super::super::sequence::{Arrival, Gaps, Sequence};
use super::super::tally::Tally;
use super::{Average, Behaviour, Shared, Turn, now_text, since};
use crate::limits::LOAD_STRANGERS_MAX;

/// Below this many clients all are chatty.
const CROWD: u32 = 10;
const CHATTY_INTERVALS: u32 = 11;
const CASUAL_INTERVALS: u32 = 59;
/// Between the first messages of senders, by index.
const STAGGER: Duration = Duration::from_millis(100);
/// Streams in a member's `Gaps` from here on are strangers'.
const STRANGERS: u32 = 1 << 31;

/// Who is in which room, and how far each sender has come.
#[derive(Default)]
pub struct Rooms {
    groups: u32,
    lurkers: u32,
    chatty: u32,
    senders: Vec<Sender>,
    /// By room, indexes into `senders`.
    rooms: Vec<Vec<u32>>,
}

#[derive(Default)]
struct Sender {
    room: u32,
    /// Which of its room's senders it is.
    slot: u32,
    /// The number it used last.
    last: AtomicU32,
    /// Its connection broke: whether its last message was sent, nobody knows.
    lost: AtomicBool,
}

/// One client's part.
struct Role {
    room: u32,
    /// `None` for those who only listen.
    sender: Option<u32>,
    intervals: u32,
    /// Of its kind, from 1 as in the original.
    index: u32,
}

impl Rooms {
    pub fn new(clients: u32, groups: u32) -> Rooms {
        let (chatty, casual) = if clients < CROWD { (clients, 0) } else { (clients / 10, clients / 5) };
        let mut rooms = Rooms {
            groups,
            lurkers: clients - chatty - casual,
            chatty,
            senders: Vec::new(),
            rooms: vec![Vec::new(); groups as usize],
        };
        for sender in 0..chatty + casual {
            let room = rooms.role(rooms.lurkers + sender).room;
            let members = &mut rooms.rooms[room as usize];
            rooms.senders.push(Sender { room, slot: members.len() as u32, ..Sender::default() });
            members.push(sender);
        }
        rooms
    }

    fn role(&self, client: u32) -> Role {
        let (index, sender, intervals) = match client.checked_sub(self.lurkers) {
            None => (client + 1, None, 0),
            Some(sender) if sender < self.chatty => (sender + 1, Some(sender), CHATTY_INTERVALS),
            Some(sender) => (sender - self.chatty + 1, Some(sender), CASUAL_INTERVALS),
        };
        Role { room: index % self.groups, sender, intervals, index }
    }

    /// The senders of a room, in the order of their slots.
    fn senders(&self, room: u32) -> impl Iterator<Item = &Sender> {
        self.rooms[room as usize].iter().map(|sender| &self.senders[*sender as usize])
    }
}

pub struct Chat {
    shared: Arc<Shared>,
    role: Role,
    client_id: String,
    period: Duration,
    next_message: Option<Instant>,
    sent: u32,
    /// By slot: what each sender of the room still owes this member. Empty before it has joined.
    heard: Vec<Sequence>,
    /// Senders of other programs, by id.
    strangers: HashMap<String, (u32, Sequence)>,
    gaps: Gaps,
    is_renewed: bool,
    average: Average,
}

#[derive(Deserialize)]
struct State {
    #[serde(rename = "Messages_add")]
    message: Option<Payload>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Payload {
    message_id: String,
    sender_id: String,
    time: String,
    sequence: u32,
}

impl Chat {
    pub fn new(interval: Duration, shared: Arc<Shared>, index: u32) -> Chat {
        let role = shared.rooms.role(index);
        Chat {
            client_id: format!("{}{index}", shared.id_prefix),
            period: interval * role.intervals,
            role,
            shared,
            next_message: None,
            sent: 0,
            heard: Vec::new(),
            strangers: HashMap::new(),
            gaps: Gaps::default(),
            is_renewed: false,
            average: Average::default(),
        }
    }

    /// The sender of this run with this id.
    fn sender(&self, id: &str) -> Option<&Sender> {
        let client: u32 = id.strip_prefix(&self.shared.id_prefix)?.parse().ok()?;
        let sender = client.checked_sub(self.shared.rooms.lurkers)?;
        self.shared.rooms.senders.get(sender as usize)
    }

    fn message(&mut self, message: &Payload, turn: &mut Turn) {
        let Some(&Sender { room, slot, .. }) = self.sender(&message.sender_id) else {
            self.strangers_message(message, turn);
            return;
        };
        if room != self.role.room {
            turn.tally.misdelivered += 1;
            return;
        }
        let Some(sequence) = self.heard.get_mut(slot as usize) else { return };
        let arrival = sequence.arrives(message.sequence, slot, &mut self.gaps);
        turn.tally.arrival(arrival);
        if !matches!(arrival, Arrival::Repeated | Arrival::Unowed)
            && let Some(delay) = since(&message.time)
        {
            turn.tally.delivery.record(delay);
            self.average.add(delay);
        }
    }

    /// Another load tester's, or one behind another server of this one: what it sends can be followed, what it owes is not known.
    fn strangers_message(&mut self, message: &Payload, turn: &mut Turn) {
        let stream = STRANGERS + self.strangers.len() as u32;
        if !self.strangers.contains_key(&message.sender_id) {
            if self.strangers.len() == LOAD_STRANGERS_MAX {
                return;
            }
            let first = Sequence::starting_with(message.sequence);
            self.strangers.insert(message.sender_id.clone(), (stream, first));
        }
        if let Some((stream, sequence)) = self.strangers.get_mut(&message.sender_id) {
            turn.tally.arrival(sequence.arrives(message.sequence, *stream, &mut self.gaps));
        }
    }
}

impl Behaviour for Chat {
    fn view_model(&self) -> &'static str {
        "ChatRoomVM"
    }

    fn argument(&self) -> Value {
        json!({ "ChatRoom": format!("Room{}", self.role.room + 1), "ClientId": self.client_id })
    }

    fn joined(&mut self, _data: &str, turn: &mut Turn) -> Result<(), serde_json::Error> {
        let after = |sender: &Sender| Sequence::starting_with(sender.last.load(Ordering::Acquire) + 1);
        self.heard = self.shared.rooms.senders(self.role.room).map(after).collect();
        if self.role.sender.is_some() && !self.is_renewed {
            self.next_message = Some(turn.now + STAGGER * self.role.index);
        }
        Ok(())
    }

    /// It joins the room again, and goes on with its own messages where it was.
    fn renewed(&mut self) {
        self.is_renewed = true;
        self.gaps = Gaps::default();
        self.strangers.clear();
    }

    fn response(&mut self, data: &str, turn: &mut Turn) -> Result<(), serde_json::Error> {
        if let Some(message) = serde_json::from_str::<State>(data)?.message {
            self.message(&message, turn);
        }
        Ok(())
    }

    fn due(&self) -> Option<Instant> {
        self.next_message
    }

    fn timer(&mut self, turn: &mut Turn) {
        let (Some(due), Some(sender)) = (self.next_message, self.role.sender) else { return };
        self.sent += 1;
        // Before it is sent: who joins from now on is not owed it.
        self.shared.rooms.senders[sender as usize].last.store(self.sent, Ordering::Release);
        turn.updates.push(json!({ "SendMessage": Payload {
            message_id: format!("{}.{}", self.client_id, self.sent),
            sender_id: self.client_id.clone(),
            time: now_text(),
            sequence: self.sent,
        }}));
        // What was late does not make the rest come faster.
        self.next_message = Some((due + self.period).max(turn.now));
    }

    fn stop(&mut self, _now: Instant) {
        self.next_message = None;
    }

    fn is_settled(&self) -> bool {
        let senders = self.shared.rooms.senders(self.role.room);
        let has_all = |(sequence, sender): (&Sequence, &Sender)| {
            sequence.next() > sender.last.load(Ordering::Acquire) || sender.lost.load(Ordering::Acquire)
        };
        self.heard.iter().zip(senders).all(has_all)
    }

    fn close_books(&mut self, tally: &mut Tally) {
        for (sequence, sender) in self.heard.iter_mut().zip(self.shared.rooms.senders(self.role.room)) {
            if !sender.lost.load(Ordering::Acquire) {
                let last = sender.last.load(Ordering::Acquire);
                tally.missed += u64::from(sequence.ends_with(last, sender.slot, &mut self.gaps));
            }
        }
        if let Some(missed) = self.gaps.shown() {
            tally.fault(format!("[{}] Missed={missed}", self.client_id));
        }
        self.average.close(tally);
    }

    fn lost(&mut self) {
        if let Some(sender) = self.role.sender {
            self.shared.rooms.senders[sender as usize].lost.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_dealt_as_by_the_original() {
        let rooms = Rooms::new(100, 3);
        assert_eq!((rooms.lurkers, rooms.chatty, rooms.senders.len()), (70, 10, 30));
        assert!(rooms.role(69).sender.is_none());
        let chatty = rooms.role(70);
        assert_eq!((chatty.sender, chatty.intervals, chatty.index, chatty.room), (Some(0), 11, 1, 1));
        let casual = rooms.role(80);
        assert_eq!((casual.sender, casual.intervals, casual.index, casual.room), (Some(10), 59, 1, 1));
        let slots: Vec<u32> = rooms.senders(2).map(|sender| sender.slot).collect();
        assert_eq!(slots, (0..slots.len() as u32).collect::<Vec<_>>());
        assert_eq!((0..3).map(|room| rooms.senders(room).count()).sum::<usize>(), 30);
        let few = Rooms::new(9, 1);
        assert_eq!((few.lurkers, few.chatty), (0, 9));
    }
}
