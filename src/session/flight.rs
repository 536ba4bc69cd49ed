//! Invocations of a lane that the app server has not answered yet (contract 6.2).
//!
//! An app server works through a lane in order, so completions come in the order of the invocations. One that is told to work on several
//! at a time may answer out of turn: then what was answered early waits until all before it have been. Ends of clients are few and alike:
//! whichever is answered, the oldest counts as heard.
use super::views::Opening;
use crate::ids::{SlotKey, Time};
use crate::limits::{FLIGHT_NAME_BYTES_MAX, FLIGHT_NAME_BYTES_USUAL, IN_FLIGHT_DEFAULT};
use std::collections::VecDeque;

/// What an invocation was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cargo {
    /// A client's message; the view model that began with it, and whether it asks for one.
    Message { client: SlotKey, opens: Option<Opening>, is_request: bool },
    /// A view model requested again for a client that lost its lane.
    Replay { client: SlotKey },
    /// The end of a client.
    Notice,
}

#[derive(Clone, Copy)]
struct Entry {
    cargo: Cargo,
    at: Time,
    /// Of its view model's name, among `names`.
    name_bytes: u32,
    answered: bool,
}

/// Bytes of one invocation in flight, its name apart; both lists grow by doubling.
pub const FLIGHT_BYTES: usize = size_of::<Entry>();

/// The invocations of one incarnation of a lane.
#[derive(Default)]
pub struct Flight {
    entries: VecDeque<Entry>,
    /// Names of view models as raw JSON strings, of all entries in order.
    names: VecDeque<u8>,
    /// The number of the oldest entry. Numbers begin at 1.
    first: u64,
    /// When the last answer came.
    heard: Time,
    notices: u32,
    replays: u32,
}

/// An invocation that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    pub cargo: Cargo,
    /// When it was sent.
    pub at: Time,
}

impl Flight {
    /// Everything anew, for the next incarnation: what a lane that was lost needed the next one may never need.
    pub fn clear(&mut self) {
        *self = Flight { heard: self.heard, ..Flight::default() };
    }

    /// Room for as many as an app server usually owes at most, so that none is taken with a message.
    pub fn prepare(&mut self, window: u32) {
        let places = window.min(IN_FLIGHT_DEFAULT) as usize;
        self.entries.reserve(places);
        self.names.reserve(places * FLIGHT_NAME_BYTES_USUAL);
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Ends of clients that have not been answered.
    pub fn notices(&self) -> u32 {
        self.notices
    }

    /// View models requested again, and not answered.
    pub fn replays(&self) -> u32 {
        self.replays
    }

    /// The number that the next invocation gets.
    pub fn next(&self) -> u64 {
        self.first.max(1) + self.entries.len() as u64
    }

    /// An invocation is on its way. `vm_id` is what an error is told to; one that is longer than `FLIGHT_NAME_BYTES_MAX` is not kept.
    pub fn sent(&mut self, now: Time, cargo: Cargo, vm_id: &[u8]) {
        let vm_id = if vm_id.len() <= FLIGHT_NAME_BYTES_MAX { vm_id } else { &[] };
        self.first = self.first.max(1);
        match cargo {
            Cargo::Notice => self.notices += 1,
            Cargo::Replay { .. } => self.replays += 1,
            Cargo::Message { .. } => {}
        }
        self.names.extend(vm_id);
        self.entries.push_back(Entry { cargo, at: now, name_bytes: vm_id.len() as u32, answered: false });
    }

    /// The app server has answered an invocation. None: it is not one that waits for an answer. `name`: also give the name of its view
    /// model.
    pub fn answered(&mut self, now: Time, number: u64, name: Option<&mut Vec<u8>>) -> Option<Answered> {
        let index = usize::try_from(number.checked_sub(self.first.max(1))?).ok()?;
        let entry = self.entries.get_mut(index).filter(|entry| !entry.answered)?;
        entry.answered = true;
        self.heard = now;
        let Entry { cargo, at, name_bytes, .. } = *entry;
        if let Some(name) = name {
            let start: usize = self.entries.iter().take(index).map(|entry| entry.name_bytes as usize).sum();
            name.extend(self.names.range(start..start + name_bytes as usize));
        }
        match cargo {
            Cargo::Notice => self.notices -= 1,
            Cargo::Replay { .. } => self.replays -= 1,
            Cargo::Message { .. } => {}
        }
        while let Some(oldest) = self.entries.front().filter(|oldest| oldest.answered) {
            self.names.drain(..oldest.name_bytes as usize);
            self.entries.pop_front();
            self.first += 1;
        }
        Some(Answered { cargo, at })
    }

    /// Has everything been answered that was sent up to this number?
    pub fn is_settled(&self, number: u64) -> bool {
        number < self.first
    }

    /// Since when the app server should have answered something and did not. None: it owes nothing.
    pub fn owed_since(&self) -> Option<Time> {
        self.entries.front().map(|oldest| oldest.at.max(self.heard))
    }

    /// The invocation that holds up all others, and its view model's name as a raw JSON string.
    pub fn oldest(&self) -> Option<(Cargo, Vec<u8>)> {
        let oldest = self.entries.front()?;
        Some((oldest.cargo, self.names.range(..oldest.name_bytes as usize).copied().collect()))
    }

    /// Those that were never answered.
    pub fn unanswered(&self) -> impl Iterator<Item = Cargo> {
        self.entries.iter().filter(|entry| !entry.answered).map(|entry| entry.cargo)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(slot: u32) -> Cargo {
        Cargo::Message { client: SlotKey { slot, generation: 0 }, opens: None, is_request: false }
    }

    #[test]
    fn answers_in_order_out_of_turn_twice_and_to_nothing() {
        let mut flight = Flight::default();
        assert_eq!((flight.next(), flight.answered(Time(1), 1, None), flight.owed_since()), (1, None, None));
        for (slot, name) in [(1, "\"A\""), (2, "\"Bee\""), (3, "\"C\"")] {
            flight.sent(Time(u64::from(slot)), message(slot), name.as_bytes());
        }
        flight.sent(Time(4), Cargo::Notice, b"");
        assert_eq!((flight.next(), flight.notices(), flight.owed_since()), (5, 1, Some(Time(1))));
        let mut name = Vec::new();
        assert_eq!(flight.answered(Time(9), 2, Some(&mut name)), Some(Answered { cargo: message(2), at: Time(2) }));
        assert_eq!(name, b"\"Bee\"");
        assert_eq!(flight.answered(Time(9), 2, None), None, "twice");
        assert_eq!((flight.len(), flight.owed_since()), (4, Some(Time(9))));
        assert_eq!(flight.oldest(), Some((message(1), b"\"A\"".to_vec())));
        flight.answered(Time(10), 1, None).unwrap();
        assert_eq!((flight.len(), flight.oldest()), (2, Some((message(3), b"\"C\"".to_vec()))));
        assert_eq!(flight.unanswered().collect::<Vec<_>>(), [message(3), Cargo::Notice]);
        assert_eq!(flight.answered(Time(10), 0, None), None);
        assert_eq!(flight.answered(Time(10), u64::MAX, None), None);
        flight.answered(Time(11), 4, None).unwrap();
        assert_eq!((flight.notices(), flight.len()), (0, 2));
        flight.clear();
        assert_eq!((flight.next(), flight.len(), flight.names.len()), (1, 0, 0));
    }

    proptest! {
        /// Against a map, with any order of sends and answers.
        #[test]
        fn every_invocation_is_answered_once(steps in proptest::collection::vec((any::<bool>(), 0..12u64, 0..5usize), 0..80)) {
            let (mut flight, mut model) = (Flight::default(), std::collections::BTreeMap::new());
            for (step, (sends, which, length)) in steps.into_iter().enumerate() {
                if sends {
                    let number = flight.next();
                    let name = vec![step as u8; length];
                    flight.sent(Time(step as u64), message(step as u32), &name);
                    model.insert(number, (message(step as u32), name));
                } else {
                    let number = flight.next().saturating_sub(which);
                    let mut name = Vec::new();
                    let found = flight.answered(Time(step as u64), number, Some(&mut name)).map(|answered| (answered.cargo, name));
                    prop_assert_eq!(found, model.remove(&number));
                }
                prop_assert_eq!(flight.unanswered().count(), model.len());
                prop_assert_eq!(flight.oldest().map(|(cargo, _)| cargo), model.values().next().map(|(cargo, _)| *cargo));
                prop_assert_eq!(flight.names.len(), flight.entries.iter().map(|entry| entry.name_bytes as usize).sum::<usize>());
            }
        }
    }
}
