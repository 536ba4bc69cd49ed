//! What a shard keeps at a moment: nothing of whoever has left, as tests see to.
use super::Shard;
use crate::sys::Io;

/// What a shard keeps for its clients, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Residue {
    /// Connections of every kind, clients among them.
    pub connections: usize,
    pub clients: usize,
    /// Connection ids of clients whose socket comes and goes.
    pub held_ids: usize,
    /// Frames of outgoing bytes.
    pub frames: usize,
    pub view_models: usize,
    /// Groups with a member, and users.
    pub groups: usize,
    pub users: usize,
    /// Clients' headers, and what filters see of clients.
    pub headers: usize,
    pub seen: usize,
    /// Clients that lanes count as pinned to them.
    pub pinned: usize,
    /// Messages and disconnect notices in front of lanes, and bytes of the messages.
    pub waiting: usize,
    pub waiting_bytes: usize,
    pub notices: usize,
    /// View models to be requested again, and invocations that are not answered.
    pub replays: usize,
    pub in_flight: usize,
    /// Entries in the lists of a turn that are for the next one.
    pub unfinished: usize,
}

impl Residue {
    pub fn is_empty(&self) -> bool {
        *self == Residue::default()
    }
}

impl<I: Io> Shard<I> {
    pub fn residue(&self) -> Residue {
        let lanes = || self.lanes.iter();
        Residue {
            connections: self.conns.len() as usize,
            clients: self.clients as usize,
            held_ids: self.connections.held(),
            frames: self.frames.live(),
            view_models: self.views.len(),
            groups: self.hubs.iter().map(|hub| hub.groups.len()).sum(),
            users: self.hubs.iter().map(|hub| hub.users.len()).sum(),
            headers: self.headers.len(),
            seen: self.seen.len(),
            pinned: lanes().map(|lane| lane.clients as usize).sum(),
            waiting: lanes().map(|lane| lane.waiting()).sum(),
            waiting_bytes: lanes().map(|lane| lane.waiting_bytes() as usize).sum(),
            notices: lanes().map(|lane| lane.notices()).sum(),
            replays: lanes().map(|lane| lane.replays.len()).sum(),
            in_flight: lanes().map(|lane| lane.flight.len()).sum(),
            unfinished: self.dirty.len()
                + self.ending.len()
                + self.starved.len()
                + self.pumped.len()
                + self.unserved.len()
                + self.failed.len()
                + self.relieved.len()
                + self.looks.len(),
        }
    }
}
