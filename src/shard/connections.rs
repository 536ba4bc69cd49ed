//! Which connection ids are in use: where their clients are, and which tokens have been used up.
use crate::ids::{SlotKey, Time};
use crate::limits::{EARLY_BODIES_BYTES_MAX, EARLY_BODIES_MAX, USED_TOKENS_MAX};
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

/// What a used token takes at most, among those that wait to be forgotten and in a table with room; a client that is held stands in another.
pub const USED_TOKEN_BYTES: usize = 2 * (size_of::<(Time, ConnectionId)>() + size_of::<(ConnectionId, SlotKey)>());
/// ... and a client that is held.
pub const HELD_CLIENT_BYTES: usize = 2 * size_of::<(ConnectionId, SlotKey)>() + size_of::<super::socket::Carried>();

/// Plain WebSocket clients are remembered only as long as their token is good, so that an idle one costs nothing here.
#[derive(Default)]
pub(super) struct Connections {
    held: HashMap<ConnectionId, SlotKey>,
    used: HashMap<ConnectionId, SlotKey>,
    /// Oldest first.
    forget: VecDeque<(Time, ConnectionId)>,
    /// What was POSTed before its connection had a transport, until when that may wait; oldest first. Few clients do that.
    early: VecDeque<(Time, ConnectionId, Vec<u8>)>,
    early_bytes: usize,
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

    /// Keeps the body of a POST that came before the transport was started (reference 1.2). False: there is no room.
    pub(super) fn keep_early(&mut self, until: Time, id: ConnectionId, body: &[u8], bytes_max: usize) -> bool {
        let count = self.early.len();
        let known = self.early.iter_mut().find(|(_, other, _)| *other == id);
        let kept = known.as_ref().map_or(0, |(_, _, kept)| kept.len());
        let is_room = known.is_some() || count < EARLY_BODIES_MAX;
        if !is_room || kept + body.len() > bytes_max || self.early_bytes + body.len() > EARLY_BODIES_BYTES_MAX {
            return false;
        }
        self.early_bytes += body.len();
        match known {
            Some((_, _, kept)) => kept.extend_from_slice(body),
            None => self.early.push_back((until, id, body.to_vec())),
        }
        true
    }

    /// What came before the transport that starts now.
    pub(super) fn take_early(&mut self, id: &ConnectionId) -> Option<Vec<u8>> {
        let at = self.early.iter().position(|(_, other, _)| other == id)?;
        let (_, _, body) = self.early.remove(at)?;
        self.early_bytes -= body.len();
        Some(body)
    }

    /// Drops what has waited for its transport for too long, and says for how many connections.
    pub(super) fn forget_early(&mut self, now: Time) -> u64 {
        let mut forgotten = 0;
        while let Some((_, _, body)) = self.early.pop_front_if(|(until, ..)| *until <= now) {
            self.early_bytes -= body.len();
            forgotten += 1;
        }
        forgotten
    }

    /// How many have a client that is held.
    pub(super) fn held(&self) -> usize {
        self.held.len()
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
    fn early_bodies_wait_for_their_transport_within_bounds() {
        let at = Time::from_millis;
        let mut connections = Connections::default();
        assert!(connections.keep_early(at(1000), [1; 16], b"one", 10));
        assert!(connections.keep_early(at(1000), [2; 16], b"other", 10));
        assert!(connections.keep_early(at(2000), [1; 16], b"two", 10));
        assert!(!connections.keep_early(at(2000), [1; 16], b"three", 10), "over the bound of one");
        assert_eq!(connections.take_early(&[1; 16]).as_deref(), Some(&b"onetwo"[..]));
        assert_eq!(connections.take_early(&[1; 16]), None);
        assert_eq!((connections.forget_early(at(999)), connections.forget_early(at(1000))), (0, 1));
        assert_eq!(connections.take_early(&[2; 16]), None, "too late");
        assert_eq!(connections.early_bytes, 0);
        let much = vec![0; EARLY_BODIES_BYTES_MAX];
        assert!(connections.keep_early(at(6), [3; 16], &much, usize::MAX));
        assert!(!connections.keep_early(at(6), [4; 16], b"x", 10), "over the bound of all");
        assert_eq!(connections.forget_early(at(6)), 1);
        assert!(connections.keep_early(at(7), [4; 16], b"x", 10), "what was too old is gone");
        assert_eq!(connections.early_bytes, 1);
        for n in 1..EARLY_BODIES_MAX as u128 {
            assert!(connections.keep_early(at(7), (n << 64).to_be_bytes(), b"x", 10), "{n}");
        }
        assert!(!connections.keep_early(at(7), [9; 16], b"x", 10), "there are many");
        assert!(connections.keep_early(at(7), [4; 16], b"x", 10), "but it is one of them");
    }

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
