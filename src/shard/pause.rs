//! Reading from one client can pause: what it sends stays in the kernel, where it is bounded, and from there TCP holds the client back.
//! Nobody else notices.
//!
//! A pause has reasons, each set and ended by whoever has it; the client is read again when none is left. A client without a WebSocket
//! sends by POST: one that comes during a pause is answered after it, or refused when that takes too long (`Served::Later`).
use super::Shard;
use super::socket::{Carried, Client, Conn, Life, Socket, Stage};
use crate::ids::{SlotKey, Time};
use crate::metrics::Counter;
use crate::sys::{BufferGroup, Io};

/// Why nothing is read for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// A client sends more messages than it may.
    Rate = 1,
    /// Too much of a client waits in front of a lane.
    Lane = 2,
    /// An HTTP connection, whose request waits for the pause of its client to end.
    Request = 4,
}

/// The reasons of one socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pauses(u8);

impl Pauses {
    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }
    pub(super) fn has(self, pause: Pause) -> bool {
        self.0 & pause as u8 != 0
    }
    pub(super) fn add(&mut self, pause: Pause) {
        self.0 |= pause as u8;
    }
    pub(super) fn remove(&mut self, pause: Pause) {
        self.0 &= !(pause as u8);
    }
}

impl Socket {
    /// One reason less; what came meanwhile is received if it was the last. True: it was.
    pub(super) fn read_on(&mut self, io: &mut impl Io, pause: Pause) -> bool {
        if !self.paused.has(pause) {
            return false;
        }
        self.paused.remove(pause);
        let is_read = self.paused.is_empty();
        if is_read && self.has_fd() && !matches!(self.life, Life::Ending | Life::Leaving) {
            self.receive(io, BufferGroup::Client);
        }
        is_read
    }
}

impl<I: Io> Shard<I> {
    /// Reads nothing from a client until `read_on` is called with the same reason. A receive that is under way still arrives. The client's
    /// timeout does not run meanwhile.
    pub(super) fn pause(&mut self, key: SlotKey, pause: Pause) {
        let Some(Conn { socket, stage: Stage::Client(client) }) = self.conns.get_mut(key) else { return };
        if socket.paused.has(pause) {
            return;
        }
        socket.paused.add(pause);
        let carrier = carrier_of(client);
        self.metrics.add(if pause == Pause::Rate { Counter::PausedRate } else { Counter::PausedLane }, 1);
        if let Some(Conn { socket, stage: Stage::Carrier(_) }) = carrier.and_then(|carrier| self.conns.get_mut(carrier))
        {
            socket.paused.add(pause);
        }
    }

    /// One reason less; the client is read again at once if it was the last.
    pub(super) fn read_on(&mut self, now: Time, key: SlotKey, pause: Pause) {
        let Shard { conns, io, .. } = self;
        let Some(Conn { socket, stage: Stage::Client(client) }) = conns.get_mut(key) else { return };
        if socket.read_on(io, pause) {
            client.session.excuse(now);
        }
        let carrier = carrier_of(client);
        if let Some(Conn { socket, stage: Stage::Carrier(_) }) = carrier.and_then(|carrier| conns.get_mut(carrier)) {
            socket.read_on(io, pause);
        }
    }

    /// Is nothing to be taken from this client at present?
    pub(super) fn is_paused(&self, key: SlotKey) -> bool {
        self.conns.get(key).is_some_and(|conn| !conn.socket.paused.is_empty())
    }
}

fn carrier_of(client: &Client) -> Option<SlotKey> {
    let Carried { carrier, .. } = client.carried.as_deref()?;
    *carrier
}
