//! Sockets and their lives: what is in flight for them, when they may be closed.
//!
//! ```text
//! Open --end()--> Draining --queue empty--> Lingering --peer's end, 5 s--> Ending --operations joined--> (closed, freed)
//!   \____________________________ nothing left to say _________________________^
//! ```
//! A descriptor is closed and a slot freed only in the last step, when no operation of it is in the kernel any more.
use super::Settings;
use super::lane::Shown;
use super::pause::Pauses;
use super::secure::Secure;
use super::upstreams::{Seen, Upstreams};
use crate::bus::Peer;
use crate::ids::{Address, LaneIndex, OriginId, Serial, ShardId, SlotKey, Time};
use crate::limits::{CLIENT_PROGRESS_BYTES, LINGER_MS, SETUP_TIMEOUT_MS_MAX};
use crate::mem::frames::{FramePool, SendQueue};
use crate::mem::wheel::TICK_NS;
use crate::metrics::{Counter, ShardMetrics};
use crate::proto::dotnetify::context::{Items, Tail};
use crate::proto::http::{HttpError, OwnedCors};
use crate::proto::signalr::Protocol;
use crate::session::client::ClientSession;
use crate::session::groups::Memberships;
use crate::session::lane::LaneSession;
use crate::session::resume::Outbound;
use crate::session::token::ConnectionId;
use crate::session::views::ViewList;
use crate::sys::{BufferGroup, Io, Op, Received, Token};
use core::time::Duration;
use serde_json::{Map, Value};
use smallvec::SmallVec;
use std::os::fd::RawFd;
use std::rc::Rc;

/// Operations in the kernel for one socket, at most one of each kind.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ops(u8);

impl Ops {
    pub(super) const READABLE: u8 = 1;
    pub(super) const RECEIVE: u8 = 2;
    pub(super) const WRITABLE: u8 = 4;

    pub(super) fn has(self, op: u8) -> bool {
        self.0 & op != 0
    }
    pub(super) fn add(&mut self, op: u8) {
        debug_assert!(!self.has(op), "one operation of a kind at a time");
        self.0 |= op;
    }
    pub(super) fn done(&mut self, op: u8) {
        self.0 &= !op;
    }
    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Open,
    /// On its way to another shard: nothing is answered here any more.
    Leaving,
    /// Our last bytes are queued; what arrives is thrown away.
    Draining,
    /// Our side is shut; waiting for the peer's end.
    Lingering,
    /// Waiting for the kernel to let go.
    Ending,
}

pub(super) struct Socket {
    pub(super) key: SlotKey,
    pub(super) fd: RawFd,
    pub(super) ops: Ops,
    pub(super) life: Life,
    /// Is it on the dirty list?
    pub(super) dirty: bool,
    /// The kernel's buffer is full; `Op::Writable` is armed.
    pub(super) blocked: bool,
    /// Something became readable while a receive was in flight, or while nothing was to be read.
    pub(super) again: bool,
    /// Why nothing is received at present, if so.
    pub(super) paused: Pauses,
    /// Of what the kernel did not take at a full buffer, so many bytes are still to leave in time, counted since ...
    behind: u16,
    /// ... and when that was, in ticks; wraps around.
    behind_since: u16,
    /// What is to be sent; with TLS, in plain.
    pub(super) queue: SendQueue,
    pub(super) secure: Option<Box<Secure>>,
}

/// Of a client that has no socket of its own: what is queued leaves on the connection that carries it.
pub(super) const NO_SOCKET: RawFd = -1;

/// Received bytes, to be decoded in place.
pub(super) enum Input<'a> {
    /// In a buffer of the ring.
    Received(&'a Received),
    /// Opened, or gathered before.
    Bytes(&'a mut [u8]),
}

impl Input<'_> {
    pub(super) fn bytes<'b>(&'b mut self, io: &'b mut impl Io) -> &'b mut [u8] {
        match self {
            Input::Received(received) => io.buffer(received),
            Input::Bytes(bytes) => bytes,
        }
    }
}

impl Socket {
    pub(super) fn new(key: SlotKey, fd: RawFd) -> Socket {
        Socket {
            key,
            fd,
            ops: Ops::default(),
            life: Life::Open,
            dirty: false,
            blocked: false,
            again: false,
            paused: Pauses::default(),
            behind: 0,
            behind_since: 0,
            queue: SendQueue::default(),
            secure: None,
        }
    }

    pub(super) fn has_fd(&self) -> bool {
        self.fd != NO_SOCKET
    }

    pub(super) fn arm_readable(&mut self, io: &mut impl Io) {
        self.ops.add(Ops::READABLE);
        io.arm_readable(self.fd, Token { op: Op::Readable, key: self.key });
    }

    pub(super) fn receive(&mut self, io: &mut impl Io, group: BufferGroup) {
        if self.ops.has(Ops::RECEIVE) || !self.paused.is_empty() {
            self.again = true;
            return;
        }
        self.again = false;
        self.ops.add(Ops::RECEIVE);
        io.receive(self.fd, self.key, group);
    }

    pub(super) fn arm_writable(&mut self, io: &mut impl Io) {
        self.blocked = true;
        if !self.ops.has(Ops::WRITABLE) {
            self.ops.add(Ops::WRITABLE);
            io.arm_writable(self.fd, Token { op: Op::Writable, key: self.key });
        }
    }

    /// Appends bytes to what is sent and remembers the socket for the end of the turn.
    pub(super) fn out<R>(
        &mut self,
        frames: &mut FramePool,
        dirty: &mut Vec<SlotKey>,
        write: impl FnOnce(&mut Vec<u8>) -> R,
    ) -> R {
        debug_assert!(self.life == Life::Open);
        let result = frames.append(&mut self.queue, write);
        self.mark(dirty);
        result
    }

    pub(super) fn mark(&mut self, dirty: &mut Vec<SlotKey>) {
        if !self.dirty && self.has_unsent() {
            self.dirty = true;
            dirty.push(self.key);
        }
    }

    /// Is there anything that has not left yet? At its end TLS has a goodbye to say.
    pub(super) fn has_unsent(&self) -> bool {
        let is_unsent =
            |secure: &Secure| !secure.sealed.is_empty() || self.life == Life::Draining && secure.owes_goodbye();
        !self.queue.is_empty() || self.secure.as_deref().is_some_and(is_unsent)
    }

    /// What goes to the kernel next.
    pub(super) fn outgoing(&self) -> &SendQueue {
        self.secure.as_ref().map_or(&self.queue, |secure| &secure.sealed)
    }

    /// The kernel has taken so many bytes of it.
    pub(super) fn sent(&mut self, count: u32, frames: &mut FramePool) {
        let queue = self.secure.as_mut().map_or(&mut self.queue, |secure| &mut secure.sealed);
        frames.advance(queue, count);
        self.behind = self.behind.saturating_sub(u16::try_from(count).unwrap_or(u16::MAX));
    }

    /// The kernel's buffer is full. Of what waits behind it a piece is watched: all of it, or as much as a peer that reads at all takes in
    /// the time. When that has left the next piece is watched, from then on: who reads slowly but steadily gets everything, who takes a byte
    /// now and then is as one that takes nothing, and no frame needs a time of its own. True: a piece is watched from now on.
    pub(super) fn fell_behind(&mut self, now: Time) -> bool {
        let is_new = self.behind == 0;
        if is_new {
            let sealed = self.secure.as_ref().map_or(0, |secure| secure.sealed.bytes());
            let bytes = self.queue.bytes().saturating_add(sealed);
            self.behind =
                u16::try_from(bytes).map_or(CLIENT_PROGRESS_BYTES, |bytes| bytes.clamp(1, CLIENT_PROGRESS_BYTES));
            self.behind_since = ticks(now);
        }
        is_new
    }

    /// Everything has left.
    pub(super) fn caught_up(&mut self) {
        self.behind = 0;
    }

    /// When what is watched has waited for so long; never while the peer takes what it is sent.
    pub(super) fn stalled_at(&self, now: Time, patience: Duration) -> Time {
        if !self.blocked || self.behind == 0 {
            return Time::NEVER;
        }
        let waited = Duration::from_nanos(u64::from(ticks(now).wrapping_sub(self.behind_since)) * TICK_NS);
        now.after(patience.saturating_sub(waited))
    }

    /// The last bytes are queued: send them, then wait for the peer's end.
    pub(super) fn drain(&mut self, io: &mut impl Io, dirty: &mut Vec<SlotKey>) {
        if self.life == Life::Open {
            self.life = Life::Draining;
        }
        self.mark(dirty);
        self.drained(io);
        // What still comes is thrown away, up to the peer's end, which must be met.
        if !core::mem::take(&mut self.paused).is_empty() && self.has_fd() {
            self.receive(io, BufferGroup::Client);
        }
    }

    /// Shuts our side once everything has left. True when it just did.
    pub(super) fn drained(&mut self, io: &mut impl Io) -> bool {
        let done = self.life == Life::Draining && !self.has_unsent();
        if done {
            self.life = Life::Lingering;
            io.shutdown_write(self.fd);
        }
        done
    }

    /// Nothing more to say or to hear: drops what is queued and calls the kernel's operations back.
    pub(super) fn end(&mut self, io: &mut impl Io, frames: &mut FramePool, metrics: &mut ShardMetrics) {
        if self.life == Life::Ending {
            return;
        }
        self.life = Life::Ending;
        metrics.add(Counter::DroppedUnsent, u64::from(frames.clear(&mut self.queue)));
        if self.has_fd() {
            io.shutdown(self.fd);
        }
        for (op, kind) in [(Ops::READABLE, Op::Readable), (Ops::WRITABLE, Op::Writable)] {
            if self.ops.has(op) {
                io.cancel(Token { op: kind, key: self.key });
            }
        }
    }

    /// May it be closed now?
    pub(super) fn is_over(&self) -> bool {
        self.life == Life::Ending && self.ops.is_empty()
    }
}

/// The wheel's; a patience that can be configured is far shorter than it takes them to wrap around.
fn ticks(now: Time) -> u16 {
    (now.0 / TICK_NS) as u16
}

const _: () = assert!(SETUP_TIMEOUT_MS_MAX * 1_000_000 / TICK_NS < u16::MAX as u64 / 2);

pub(super) fn linger_until(now: Time) -> Time {
    now.after(Duration::from_millis(LINGER_MS))
}

/// A connection that was accepted.
pub(super) struct Conn {
    pub(super) socket: Socket,
    pub(super) stage: Stage,
}

pub(super) enum Stage {
    /// Before the upgrade, and between requests.
    Http(Box<HttpStage>),
    Client(Client),
    /// The socket of a client that has a place of its own.
    Carrier(SlotKey),
    /// A polling client that has ended; what it has not fetched waits for its last polls, until then.
    LastPolls(ConnectionId, Time),
    /// Only the socket is left.
    Over,
}

pub(super) struct HttpStage {
    pub(super) peer: Peer,
    /// What arrived of the next request; before the PROXY header has been read, of that.
    pub(super) buffer: Vec<u8>,
    /// How far `buffer` has been searched for the end of the head.
    pub(super) scanned: usize,
    /// Bytes of a body still to be thrown away.
    pub(super) body_left: u64,
    /// Bytes of head and body that the next request is known to have; it is looked at when they are there.
    pub(super) wanted: usize,
    /// Its deadline. Kept, because it may lie further away than the wheel reaches.
    pub(super) until: Time,
    /// A PROXY header has to come first.
    pub(super) proxied: bool,
    /// One too many: its first request is answered so.
    pub(super) surplus: Option<HttpError>,
    /// Its request is there, and waits until there is no pause of its client.
    pub(super) waits: bool,
    /// A request of it has been answered, and it stayed.
    pub(super) is_served: bool,
    pub(super) parked: Option<Parked>,
    /// The shard it is on its way to.
    pub(super) leaving_to: Option<ShardId>,
}

impl HttpStage {
    pub(super) fn new(peer: Peer, until: Time) -> HttpStage {
        HttpStage {
            peer,
            buffer: Vec::new(),
            scanned: 0,
            body_left: 0,
            wanted: 0,
            until,
            proxied: false,
            surplus: None,
            waits: false,
            is_served: false,
            parked: None,
            leaving_to: None,
        }
    }
}

impl HttpStage {
    /// Between two requests.
    pub(super) fn is_idle(&self) -> bool {
        self.is_served && self.buffer.is_empty() && self.body_left == 0 && self.parked.is_none()
    }
}

/// A poll that waits for something to say (reference 9.1).
pub(super) struct Parked {
    pub(super) client: SlotKey,
    pub(super) cors: OwnedCors,
    pub(super) keep_alive: bool,
    /// Of the poll itself, which nobody wants.
    pub(super) body_bytes: u64,
}

pub(super) struct Client {
    pub(super) session: ClientSession,
    /// The first id it had upstream, and its name as long as it lives.
    pub(super) origin: OriginId,
    /// Its tie to each upstream, by place in the configuration.
    pub(super) pins: Pins,
    /// Its live view models, and where they were requested from.
    pub(super) views: ViewList,
    /// Requests and messages, in and out; wrap around.
    pub(super) received: u32,
    pub(super) sent: u32,
    /// The constant part of its context: values of its own connection ...
    pub(super) connection: Box<[u8]>,
    /// ... and its headers as `Upstreams::show` prepared them, which other clients may have alike.
    pub(super) headers: Rc<[u8]>,
    /// What filters look at, if they do; other clients may have it alike.
    pub(super) seen: Option<Rc<Seen>>,
    pub(super) user: Option<Box<User>>,
    /// What it has because it may change its socket; None for a plain WebSocket, which lives and ends with its own.
    pub(super) carried: Option<Box<Carried>>,
}

impl Client {
    /// The id that an upstream knows it by.
    pub(super) fn origin_at(&self, settings: &Settings, slot: u32, upstream: usize) -> OriginId {
        origin_at(settings, slot, &self.pins[upstream], &self.origin)
    }

    /// What an upstream is shown of it.
    pub(super) fn shown(&self, upstreams: &Upstreams, upstream: usize) -> Shown<'_> {
        let tail = Tail::Client { connection: &self.connection, headers: upstreams.headers(upstream, &self.headers) };
        let items = items_of(self.user.as_deref(), upstreams.get(upstream).protocol);
        Shown { context: tail, items }
    }
}

/// The id that an upstream knows a client of this slot by; `first` is the one that it began with.
pub(super) fn origin_at(settings: &Settings, slot: u32, pin: &Pin, first: &OriginId) -> OriginId {
    if !pin.renewed {
        return *first;
    }
    settings.origin_key.seal(Address { shard: settings.shard, slot, serial: pin.serial })
}

/// A client's tie to one upstream.
#[derive(Clone, Copy)]
pub(super) struct Pin {
    /// Of the origin id that the upstream knows it by.
    pub(super) serial: Serial,
    /// The lane its messages take, from the first one on.
    pub(super) lane: Option<LaneIndex>,
    /// Of its messages so many wait in front of that lane.
    pub(super) waiting: u16,
    pub(super) tie: Tie,
    /// The id is not the client's first one.
    pub(super) renewed: bool,
    /// In the groups of the lane's hub.
    pub(super) memberships: Memberships,
    /// Among the hub's users, where it has a user id.
    pub(super) as_user: Memberships,
}

/// What an upstream knows of a client under its present id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tie {
    /// Nothing.
    Unknown,
    /// Nothing yet: its view models are to be requested again before anything else.
    Owed,
    /// Something of it is on its way or there: its end must be, too.
    Known,
}

impl Pin {
    /// One of its messages is no longer in front of the lane.
    pub(super) fn waits_no_longer(&mut self, client: SlotKey, relieved: &mut Vec<SlotKey>) {
        self.waiting = self.waiting.saturating_sub(1);
        if self.waiting == 0 {
            relieved.push(client);
        }
    }

    /// It has got a new id there.
    pub(super) fn renew(&mut self, serial: Serial) {
        (self.serial, self.renewed, self.tie) = (serial, true, Tie::Unknown);
    }

    pub(super) fn new(serial: Serial) -> Pin {
        Pin {
            serial,
            lane: None,
            waiting: 0,
            tie: Tie::Unknown,
            renewed: false,
            memberships: Memberships::default(),
            as_user: Memberships::default(),
        }
    }
}

/// Most nodes have one upstream.
pub(super) type Pins = SmallVec<[Pin; 1]>;

/// Who a client is, from a verified token.
pub(super) struct User {
    pub(super) id: Option<Box<str>>,
    /// Unix seconds.
    pub(super) expires: Option<u64>,
    /// Claims for app servers, as each protocol that lanes speak writes them: how many, and their bytes.
    pub(super) items: [(u32, Box<[u8]>); 2],
    /// All of them, if filters look at them.
    pub(super) claims: Option<Map<String, Value>>,
    /// From the connection's own request; what a message's `$headers` say does not change it.
    pub(super) is_connections: bool,
}

/// Claims, as a lane's protocol writes them.
pub(super) fn items_of(user: Option<&User>, protocol: Protocol) -> Items<'_> {
    user.map_or(Items::default(), |user| {
        let (count, bytes) = &user.items[protocol as usize];
        Items { count: *count, bytes }
    })
}

/// A client whose socket comes and goes: an event stream with its POSTs, polls, a WebSocket with stateful reconnect.
pub(super) struct Carried {
    pub(super) id: ConnectionId,
    /// The WebSocket, the event stream, the poll that waits.
    pub(super) carrier: Option<SlotKey>,
    /// When a waiting poll is answered with nothing, or, without a carrier, the client is given up.
    pub(super) until: Time,
    /// What a stateful reconnect would send again.
    pub(super) outbound: Option<Outbound>,
}

/// A lane's connection while it is up.
pub(super) struct Link {
    pub(super) socket: Socket,
    pub(super) session: LaneSession,
}

const _: () = assert!(size_of::<Conn>() <= 272, "an idle client must stay small");
