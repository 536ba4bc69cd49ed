//! Which connection ids are in use: where their clients are, and which tokens have been used up.
use crate::ids::{SlotKey, Time};
use crate::limits::USED_TOKENS_MAX;
use crate::session::token::{ConnectionId, TOKEN_SECONDS};
use core::time::Duration;
use std::collections::{HashMap, VecDeque};

/// What a connection id stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A client whose requests come over several sockets, or what is left of one.
    Held(SlotKey),
    /// Used for a WebSocket; its client may be gone.
    Used(SlotKey),
    /// Never seen, or so long ago that its token is no longer good.
    Unknown,
}

/// Plain WebSocket clients are remembered only as long as their token is good, so that an idle one costs nothing here.
#[derive(Default)]
pub(super) struct Connections {
    held: HashMap<ConnectionId, SlotKey>,
    used: HashMap<ConnectionId, SlotKey>,
    /// Oldest first.
    forget: VecDeque<(Time, ConnectionId)>,
}

impl Connections {
    pub(super) fn find(&self, id: &ConnectionId) -> Found {
        match (self.held.get(id), self.used.get(id)) {
            (Some(key), _) => Found::Held(*key),
            (None, Some(key)) => Found::Used(*key),
            (None, None) => Found::Unknown,
        }
    }

    /// A token has begun a connection; it does not begin another one. Past the bound the oldest is forgotten early.
    pub(super) fn used(&mut self, now: Time, id: ConnectionId, key: SlotKey) {
        while let Some((until, oldest)) = self.forget.front()
            && (*until <= now || self.forget.len() >= USED_TOKENS_MAX)
        {
            self.used.remove(oldest);
            self.forget.pop_front();
        }
        // A second longer than the token: both ends of its life are rounded.
        self.forget.push_back((now.after(Duration::from_secs(TOKEN_SECONDS + 1)), id));
        self.used.insert(id, key);
    }

    pub(super) fn hold(&mut self, id: ConnectionId, key: SlotKey) {
        self.held.insert(id, key);
    }

    pub(super) fn release(&mut self, id: &ConnectionId) {
        self.held.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_remembered_as_long_as_it_is_good_and_no_more_than_the_bound() {
        let key = |slot| SlotKey { slot, generation: 0 };
        let id = |n: u32| {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&n.to_ne_bytes());
            id
        };
        let mut connections = Connections::default();
        connections.used(Time(0), id(1), key(1));
        assert_eq!(connections.find(&id(1)), Found::Used(key(1)));
        connections.hold(id(1), key(1));
        assert_eq!(connections.find(&id(1)), Found::Held(key(1)));
        connections.release(&id(1));
        assert_eq!(connections.find(&id(1)), Found::Used(key(1)));
        let later = Time(0).after(Duration::from_secs(TOKEN_SECONDS + 1));
        connections.used(later, id(2), key(2));
        assert_eq!(connections.find(&id(1)), Found::Unknown);
        for n in 3..3 + USED_TOKENS_MAX as u32 {
            connections.used(later, id(n), key(n));
        }
        assert_eq!(connections.find(&id(2)), Found::Unknown);
        assert_eq!(connections.used.len(), USED_TOKENS_MAX);
        assert_eq!(connections.forget.len(), USED_TOKENS_MAX);
    }
}
