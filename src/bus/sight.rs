//! What a shard shows of itself to whoever looks at the node (the live picture). Copies, made on demand: nothing is kept for it.
use crate::ids::{LaneIndex, OriginId};
use crate::session::form::Form;
use core::time::Duration;
use std::net::SocketAddr;

/// A shard at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// Clients it has.
    pub clients: u32,
    /// All of them, or an even sample: every beginning of the list is one, too. The same clients from one look to the next, as long as
    /// they are there and the shard grows or shrinks little.
    pub shown: Vec<ClientSight>,
    /// By index.
    pub lanes: Vec<LaneSight>,
}

/// A lane at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneSight {
    /// Clients pinned to it.
    pub clients: u32,
    /// Messages in front of it.
    pub waiting: u32,
    /// Messages that the app server has not acknowledged.
    pub in_flight: u32,
    /// How long it has acknowledged nothing although it should; zero where it owes nothing.
    pub owed: Duration,
    /// Clients whose view models are to be requested again.
    pub replays: u32,
    /// Messages since the node's start, to the app server ...
    pub sent: u64,
    /// ... and from it.
    pub received: u64,
}

/// A client at one moment, as small as a picture needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientSight {
    pub origin: OriginId,
    /// Hub messages from it; wraps.
    pub received: u32,
    /// Hub messages for it; wraps.
    pub sent: u32,
}

/// Everything that is known of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientDetail {
    pub origin: OriginId,
    /// Where it connects from, as the app server is told; unspecified on a Unix socket.
    pub remote: SocketAddr,
    pub local: SocketAddr,
    /// None: it sent none, or `forward_headers` leaves it out.
    pub user_agent: Option<String>,
    pub user: Option<String>,
    pub form: Form,
    /// Its handshake is done.
    pub is_open: bool,
    /// Nobody carries it at present: between two polls, or gone and expected back.
    pub is_away: bool,
    pub received: u32,
    pub sent: u32,
    /// Bytes queued for it.
    pub queued_bytes: u32,
    /// Live view models, oldest first, at most `limits::DETAIL_NAMES_MAX` of them ...
    pub views: Vec<String>,
    /// ... of so many.
    pub view_count: u32,
    pub pins: Vec<PinDetail>,
}

/// A client on one of its lanes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinDetail {
    pub lane: LaneIndex,
    /// Groups it is in on this lane, at most `limits::DETAIL_NAMES_MAX` of them ...
    pub groups: Vec<String>,
    /// ... of so many.
    pub group_count: u32,
}
