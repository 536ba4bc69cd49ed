//! One core: its ring, listeners, clients and lanes, in one loop (`turn`). Nothing here is shared with another thread except the bus, the
//! published metrics, and the configurations of TLS.
//!
//! A turn is: completions -> timers -> orders from the bus -> lanes -> sends. Handlers never touch the kernel directly: they queue
//! bytes and mark the socket dirty, and all sends of the turn leave in batches at its end.
//!
//! ```text
//! accept        connections and their requests, until one begins a client      handover      to the shard that owns what they ask for
//! client        clients: requests, deadlines, ends                             carried       ... whose socket comes and goes
//! connections   which connection ids are in use                                authenticate  who a request comes from
//! lane          the way to the app server, and what waits in front of it       delivery      the way back
//! forwarding    which upstreams a request goes to, and on which lanes          upstreams     what is known of them, who shares a hub id
//! socket        lives of sockets, what is in flight for them                   secure        TLS between a socket and the rest
//! replay        what the loss of a lane means to its clients                   burial        clients of a process that is dead
//! pause         clients from which nothing is read for a while                 residue       what it keeps
//! addresses     how many connections one address has                           occupancy     ... and the node
//! sight         what the shard shows of itself to who looks at the node        suspects      requests that lose lane after lane
//! renewal       settings that change while it runs                             stop          how it ends
//! ```

mod accept;
mod addresses;
mod authenticate;
mod burial;
mod carried;
mod client;
mod connections;
mod delivery;
mod forwarding;
mod handover;
mod lane;
mod occupancy;
mod pause;
mod quiet;
mod renewal;
mod replay;
mod residue;
mod secure;
mod sight;
mod socket;
mod stop;
mod suspects;
mod turn;
mod upstreams;

pub use accept::Listener;
pub use addresses::{ADDRESS_BYTES, Addresses};
pub use connections::{HELD_CLIENT_BYTES, USED_TOKEN_BYTES};
pub use lane::WAITING_BYTES;
pub use occupancy::Occupancy;
pub use residue::Residue;
pub use upstreams::{Upstream, Upstreams, Window};

use crate::bus::{ControlOrder, Receiver, Sender, ShardOrder};
use crate::identity::Authentication;
use crate::ids::{LanePlace, OriginKey, Serial, ShardId, SlotKey, Time};
use crate::journal::ShardJournal;
use crate::limits::CONNECTIONS_SPARE;
use crate::mem::frames::FramePool;
use crate::mem::intern::Interner;
use crate::mem::pool::BytePool;
use crate::mem::slab::Slab;
use crate::mem::wheel::Wheel;
use crate::metrics::process::ProcessStats;
use crate::metrics::{Published, ShardMetrics};
use crate::proto::http::{HttpPolicy, Trusted};
use crate::session::client::ClientSettings;
use crate::session::fault::End;
use crate::session::token::TokenKey;
use crate::session::views::Views;
use crate::sys::{Completion, Io, ShortSend};
use core::time::Duration;
use std::sync::Arc;
use upstreams::{Hub, Seen};

/// A connection's place in the table, whatever it is: its socket, its state, its deadline.
pub const CONNECTION_BYTES: usize = Slab::<socket::Conn>::SLOT_BYTES + crate::mem::wheel::LINK_BYTES;
/// What an HTTP connection has beside it until it is upgraded.
pub const HTTP_STAGE_BYTES: usize = size_of::<socket::HttpStage>();
/// A lane, its queues apart.
pub const LANE_BYTES: usize = size_of::<lane::Lane>();
/// A disconnect notice in front of a lane that is down.
pub const NOTICE_BYTES: usize = size_of::<lane::Notice>();
/// Ends of clients that are told again, at most.
pub const AGAIN_BYTES: usize = replay::AGAIN_BYTES;
/// A client that waits for its view models to be requested again. The list grows by doubling.
pub const OWED_BYTES: usize = 2 * size_of::<SlotKey>();
/// The end of a client that a stuck lane is told of before it is given up: what is in flight, and the message, whose context has nothing
/// but ids (contract 3.3). Both grow by doubling.
pub const SAID_END_BYTES: usize = 2 * (crate::session::flight::FLIGHT_BYTES + 512);
/// What a turn gathers, and the wheel.
pub const TURN_BYTES: usize = size_of::<Wheel>()
    + COMPLETIONS_KEPT * size_of::<Completion>()
    + DIRTY_KEPT * size_of::<SlotKey>()
    + crate::limits::SEND_BATCH * (size_of::<turn::Attempt>() + size_of::<ShortSend>())
    + ENDING_KEPT * (size_of::<(SlotKey, End)>() + size_of::<SlotKey>());
/// A place in the lists that a turn gathers, if every connection is in each of them; they grow by doubling.
pub const LISTED_BYTES: usize = 2 * (4 * size_of::<SlotKey>() + size_of::<(SlotKey, End)>());
/// Who a client is, apart from its claims.
pub const USER_BYTES: usize = size_of::<socket::User>();
/// Room of a turn's lists from the start; they grow where a turn has more.
const COMPLETIONS_KEPT: usize = 4096;
const DIRTY_KEPT: usize = 4096;
const ENDING_KEPT: usize = 256;

/// Slots of a shard for so many connections; the spare ones are for saying 503 to those over the limit.
pub const fn places(connections_max: u32) -> u32 {
    connections_max + CONNECTIONS_SPARE
}

/// What a shard is told at start. The control plane makes it from the configuration.
#[derive(Clone)]
pub struct Settings {
    pub shard: ShardId,
    pub http: HttpPolicy,
    pub client: ClientSettings,
    /// Whose word on the real client is taken.
    pub trusted: Trusted,
    /// Every connection of one of them begins with a PROXY header.
    pub proxy_protocol: bool,
    pub authentication: Option<Authentication>,
    /// Bytes kept for a client's stateful reconnect; None: not offered.
    pub resume_bytes_max: Option<u32>,
    /// How long a poll waits for something to say.
    pub poll_timeout: Duration,
    /// How long a client may be without a poll, or without its socket if it can resume.
    pub disconnect_timeout: Duration,
    pub upstreams: Upstreams,
    /// Where each of this shard's lanes leads, in the order of their indices; those to one upstream stand together, and
    /// among them those to one url. At least one to each url.
    pub lanes: Vec<LanePlace>,
    /// What an Observer is told of the process.
    pub process: Arc<ProcessStats>,
    /// Some listener or the lanes have TLS.
    pub has_tls: bool,
    /// Connections this shard holds at most.
    pub connections_max: u32,
    /// ... and all shards together.
    pub occupancy: Arc<Occupancy>,
    /// Connections it accepts in a second; 0: any number.
    pub accept_rate: u32,
    /// Where one address may have so many connections only.
    pub addresses: Option<Arc<Addresses>>,
    /// Clients may begin while no upstream that answers can be reached.
    pub begins_unavailable: bool,
    pub send_queue_bytes_max: u32,
    /// How long what is queued may wait for a client that takes nothing.
    pub send_queue_time: Duration,
    pub send_buffer_bytes: u32,
    pub request_head_timeout: Duration,
    /// Client messages waiting in front of a lane: bytes, and for how long.
    pub lane_queue_bytes_max: u32,
    pub lane_queue_timeout: Duration,
    /// Bytes of what a client's view models were requested with that are kept to request them again.
    pub replay_bytes_max: u32,
    pub origin_key: OriginKey,
    /// Where the ids that app servers know its clients by outlive the process; has a place for each of its slots.
    pub journal: ShardJournal,
    pub tokens: TokenKey,
    /// Seed of frame masks and ids, from the operating system.
    pub seed: u64,
}

/// A shard and everything it owns.
pub struct Shard<I: Io> {
    settings: Settings,
    io: I,
    /// None: closed, when the shard ends.
    listeners: Vec<Option<Listener>>,
    /// Listeners that rest until `accept_again`.
    resting: Vec<usize>,
    /// Accepts under way, for each listener.
    accepts: Vec<u16>,
    /// When the connections accepted so far would have come, at `accept_rate`.
    accepted_until: Time,
    /// Whom each place in the table is counted for, if there is a limit for addresses.
    sites: Vec<Option<addresses::Site>>,
    /// The way to every shard of the node, by id.
    shards: Vec<Sender<ShardOrder>>,
    /// The shard that the last token was for.
    next_shard: usize,
    connections: connections::Connections,
    conns: Slab<socket::Conn>,
    lanes: Vec<lane::Lane>,
    hubs: Vec<Hub>,
    /// View models of this shard's clients.
    views: Views,
    /// Clients, whatever carries them.
    clients: u32,
    /// The next origin id's.
    serials: Serial,
    frames: FramePool,
    pool: BytePool,
    wheel: Wheel,
    /// Header parts of contexts.
    headers: Interner<[u8]>,
    /// What filters see of clients.
    seen: Interner<Seen>,
    random: Random,
    clock: WallClock,
    orders: Receiver<ShardOrder>,
    control: Sender<ControlOrder>,
    metrics: ShardMetrics,
    published: Arc<Published>,

    // What a turn gathers; kept so that it allocates nothing.
    completions: Vec<Completion>,
    /// Sockets with something to send.
    dirty: Vec<SlotKey>,
    sending: Vec<turn::Attempt>,
    short: Vec<ShortSend>,
    /// Connections found to be at their end while somebody else's bytes were handled.
    ending: Vec<(SlotKey, End)>,
    /// What app servers answered with an error.
    failed: Vec<delivery::Failure>,
    /// Ends that are told again.
    again: replay::AgainQueues,
    /// Clients whose messages had to wait and wait no longer.
    relieved: Vec<SlotKey>,
    /// The client whose bytes are handled has too much waiting.
    holds: bool,
    /// Sockets whose receive found no buffer; tried again in the next turn.
    starved: Vec<SlotKey>,
    /// Carried clients with something to move to what carries them.
    pumped: Vec<SlotKey>,
    /// Connections whose waiting poll was answered while more requests were there already.
    unserved: Vec<SlotKey>,
    /// What one receive opened.
    plain: Vec<u8>,
    /// Looks under way, oldest first.
    looks: Vec<sight::Look>,
    burials: burial::Burials,
    /// The lane that took the last message that was dealt by itself.
    next_lane: usize,
    /// The second that Observers were last told of.
    told_second: u64,
    /// Accepting rests, for want of descriptors or because enough have come; armed again at this time.
    accept_again: Option<Time>,
    draining: Option<stop::Drain>,
    /// The shard has until then to end.
    stopping: Option<Time>,
    stopped: bool,
    quiet: QuietLines,
    suspects: suspects::Suspects,
}

/// The log lines that peers can cause, each with its own bound.
#[derive(Default)]
struct QuietLines {
    accept: quiet::Quiet,
    accept_rate: quiet::Quiet,
    address: quiet::Quiet,
    surplus: quiet::Quiet,
    rate: quiet::Quiet,
    unavailable: quiet::Quiet,
    http_ended: quiet::Quiet,
    http_idle: quiet::Quiet,
    detached: quiet::Quiet,
    origin: quiet::Quiet,
    client_ended: quiet::Quiet,
    headers: quiet::Quiet,
    proxy: quiet::Quiet,
    filter: quiet::Quiet,
    tls: quiet::Quiet,
    lane_up: quiet::Quiet,
    lane_lost: quiet::Quiet,
    suspect: quiet::Quiet,
}

/// A small generator for what need not be secret: masks of frames to the app server (RFC 6455 §5.3 guards against what
/// browsers' scripts could do), names of HTTP connections. SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Some time of the window that begins now.
    pub(crate) fn moment(&mut self, now: Time, window: Duration) -> Time {
        now.after(Duration::from_nanos(self.next() % (window.as_nanos() as u64).max(1)))
    }
    pub(crate) fn mask(&mut self) -> [u8; 4] {
        (self.next() as u32).to_ne_bytes()
    }
}

/// Time stamps for contexts: wall time, but strictly increasing (contract 2.3: an Observer drops what is not newer).
#[derive(Default)]
pub(crate) struct WallClock {
    last: u64,
    /// As the system says it, set back or not: tokens of others are measured by it.
    wall: u64,
}

impl WallClock {
    /// Once a turn.
    pub(crate) fn set(&mut self, ticks: u64) {
        self.wall = ticks;
        self.last = self.last.max(ticks);
    }
    pub(crate) fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
    pub(crate) fn unix_seconds(&self) -> u64 {
        self.wall / 10_000_000
    }
    /// How long the present second still lasts, and a moment more.
    pub(crate) fn until_second(&self) -> Duration {
        Duration::from_nanos((10_000_000 - self.wall % 10_000_000) * 100 + 100_000)
    }
}

impl<I: Io> Shard<I> {
    pub fn new(
        settings: Settings,
        io: I,
        listeners: Vec<Listener>,
        shards: Vec<Sender<ShardOrder>>,
        orders: Receiver<ShardOrder>,
        control: Sender<ControlOrder>,
        published: Arc<Published>,
    ) -> Shard<I> {
        let now = io.now();
        let places = places(settings.connections_max);
        let (lanes, hubs) = lane::lanes(&settings);
        let mut shard = Shard {
            conns: Slab::new(places),
            lanes,
            hubs,
            views: Views::default(),
            clients: 0,
            serials: Serial::default(),
            next_lane: 0,
            told_second: 0,
            frames: FramePool::new(),
            pool: BytePool::new(),
            wheel: Wheel::new(places, now),
            headers: Interner::default(),
            seen: Interner::default(),
            random: Random(settings.seed),
            clock: WallClock::default(),
            orders,
            control,
            metrics: ShardMetrics::new(),
            published,
            completions: Vec::with_capacity(COMPLETIONS_KEPT),
            dirty: Vec::with_capacity(DIRTY_KEPT),
            sending: Vec::with_capacity(crate::limits::SEND_BATCH),
            short: Vec::with_capacity(crate::limits::SEND_BATCH),
            ending: Vec::with_capacity(ENDING_KEPT),
            failed: Vec::new(),
            again: replay::AgainQueues::default(),
            relieved: Vec::new(),
            holds: false,
            starved: Vec::with_capacity(ENDING_KEPT),
            accept_again: None,
            draining: None,
            stopping: None,
            stopped: false,
            quiet: QuietLines::default(),
            suspects: suspects::Suspects::default(),
            accepts: vec![0; listeners.len()],
            listeners: listeners.into_iter().map(Some).collect(),
            resting: Vec::new(),
            accepted_until: now,
            sites: Vec::new(),
            shards,
            next_shard: 0,
            connections: connections::Connections::default(),
            pumped: Vec::with_capacity(ENDING_KEPT),
            unserved: Vec::new(),
            plain: Vec::new(),
            looks: Vec::new(),
            burials: burial::Burials::default(),
            settings,
            io,
        };
        shard.arm_accept(now);
        let token = turn::own_token(crate::sys::Op::Doorbell);
        let bell = shard.orders.bell().fd();
        shard.io.arm_readable(bell, token);
        // Whoever looks before the first turn sees a shard whose lanes are down, not one without lanes.
        shard.publish();
        shard
    }

    /// Runs until the control plane orders it to stop and everybody has been told.
    pub fn run(mut self) {
        while self.turn() {}
        self.end();
    }

    /// Lets go of everything, after the last turn.
    pub fn end(mut self) {
        // Whoever did not close its side in time. The kernel's polls end with the ring, which goes next.
        for slot in 0..self.conns.slots() {
            if let Some(conn) = self.conns.at_mut(slot)
                && conn.socket.has_fd()
            {
                self.io.shutdown(conn.socket.fd);
                self.io.close(conn.socket.fd);
            }
        }
        for lane in &mut self.lanes {
            lane.abandon(&mut self.io);
        }
    }

    /// Connections of every kind.
    pub fn connections(&self) -> u32 {
        self.conns.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::TokenFault;
    use crate::metrics::Counter;
    use crate::proto::dotnetify::request::RequestError;
    use crate::proto::http::HttpError;
    use crate::session::fault::{self, Refusal};

    #[test]
    fn time_stamps_only_grow_but_seconds_follow_a_clock_that_is_set_back() {
        let mut clock = WallClock::default();
        clock.set(50_000_000);
        assert_eq!((clock.next(), clock.next()), (50_000_001, 50_000_002));
        clock.set(20_000_000);
        assert_eq!((clock.next(), clock.unix_seconds()), (50_000_003, 2));
    }

    /// `session` and `proto` know no metrics: their reasons and the table of names meet here.
    #[test]
    fn every_reason_has_a_counter_of_its_own() {
        let requests = [
            RequestError::UnknownMethod,
            RequestError::ArgumentCount,
            RequestError::ArgumentType,
            RequestError::Streaming,
        ];
        let refusals = HttpError::ALL
            .iter()
            .map(|error| error.label())
            .chain(Refusal::ALL.iter().map(|refusal| refusal.label()))
            .chain(requests.into_iter().map(fault::request_label));
        for label in refusals {
            assert_ne!(Counter::refusal(label), Counter::RefusedOther, "{label}");
        }
        for label in End::LABELS {
            assert_ne!(Counter::client_end(label), Counter::EndedOther, "{label}");
        }
        for fault in TokenFault::ALL {
            assert_ne!(Counter::token(fault.label()), Counter::TokenOther, "{fault:?}");
        }
    }
}
