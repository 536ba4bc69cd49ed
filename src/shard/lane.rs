//! Lanes of this shard: the way of requests to the app server, what waits while there is none, and what losing one means.
use super::client::write_message;
use super::delivery::{Deliver, LaneSide};
use super::secure::Secure;
use super::socket::{Client, Conn, Input, Life, Link, Socket, Stage};
use super::upstreams::Hub;
use super::{Random, Settings, Shard, WallClock};
use crate::bus::ControlOrder;
use crate::ids::{HubId, LaneIndex, LaneKey, LanePlace, OriginId, SLOT_MAX, SlotKey, Time};
use crate::limits::*;
use crate::mem::frames::FramePool;
use crate::mem::slab::Slab;
use crate::metrics::{Counter, Histogram, ShardMetrics};
use crate::proto::dotnetify::context::{Context, Items, Tail};
use crate::proto::dotnetify::forward::{self, Forward};
use crate::proto::dotnetify::request::Call;
use crate::proto::dotnetify::telemetry::{self, Telemetry};
use crate::proto::signalr::Protocol;
use crate::proto::ws::frame::write_frame;
use crate::session::client::write_refusal;
use crate::session::fault::{End, LaneEnd, Refusal};
use crate::session::lane::{LaneOut, LaneSession, opcode};
use crate::session::routing::HubScope;
use crate::session::views::{Opening, Views};
use crate::sys::Io;
use crate::tls::Tls;
use core::ops::Range;
use core::time::Duration;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use tracing::{info, warn};

/// Slots that name lanes instead of connections in tokens and on the dirty list.
pub(super) const LANE_SLOTS: Range<u32> = SLOT_MAX - LANES_PER_SHARD_MAX as u32..SLOT_MAX;

/// The lane a key stands for, if it is one.
pub(super) fn lane_of(key: SlotKey) -> Option<LaneIndex> {
    LANE_SLOTS.contains(&key.slot).then(|| LaneIndex((key.slot - LANE_SLOTS.start) as u16))
}

#[derive(Default)]
enum State {
    /// The control plane is dialling.
    #[default]
    Down,
    Up(Link),
    /// Lost; the kernel has not let go of its socket yet.
    Over(Socket),
}

pub(super) struct Lane {
    /// Where it leads.
    pub(super) place: LanePlace,
    /// The lanes that lead to the same url, itself included.
    pub(super) siblings: Range<usize>,
    /// Whose groups and users it addresses.
    pub(super) hub: usize,
    state: State,
    /// Counts connects; part of the lane's tokens, so that completions of the last socket are not taken for this one's.
    incarnation: u32,
    /// Of this incarnation, or of the last one.
    hub_id: Option<HubId>,
    /// Whose message it carried last.
    last: Option<SlotKey>,
    /// Clients pinned to it.
    pub(super) clients: u32,
    /// Records to and from the app server; wrap around.
    pub(super) sent: u64,
    pub(super) received: u64,
    /// Requests that wait for it, oldest first.
    waiting: VecDeque<Waiting>,
    waiting_bytes: u32,
    /// Clients that are gone while nobody could be told.
    notices: VecDeque<Notice>,
    /// Those who were told of lately, oldest first: what was written to a lane that is lost may never have arrived.
    told: VecDeque<Notice>,
    /// Lost, and the control plane has not been told: that waits for the old socket to be closed.
    unreported: bool,
    next_time: Time,
}

/// The lanes of a shard and the hubs behind them, all down.
pub(super) fn lanes(settings: &Settings) -> (Vec<Lane>, Vec<Hub>) {
    let (mut lanes, mut hubs): (Vec<Lane>, Vec<Hub>) = (Vec::new(), Vec::new());
    for pool in settings.lanes.chunk_by(|place, next| place == next) {
        let siblings = lanes.len()..lanes.len() + pool.len();
        for place in pool {
            if settings.upstreams.of(*place).hub_scope == HubScope::Lane || lanes.len() == siblings.start {
                hubs.push(Hub::default());
            }
            lanes.push(Lane {
                place: *place,
                siblings: siblings.clone(),
                hub: hubs.len() - 1,
                state: State::Down,
                incarnation: 0,
                hub_id: None,
                last: None,
                clients: 0,
                sent: 0,
                received: 0,
                waiting: VecDeque::new(),
                waiting_bytes: 0,
                notices: VecDeque::new(),
                told: VecDeque::new(),
                unreported: false,
                next_time: Time::default(),
            });
        }
    }
    (lanes, hubs)
}

/// A request on its way to an upstream.
#[derive(Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) call: Call,
    /// Raw JSON string.
    pub(super) vm_id: &'a [u8],
    /// Raw JSON; None for Dispose_VM.
    pub(super) argument: Option<&'a [u8]>,
}

impl<'a> Message<'a> {
    fn forward(self) -> Forward<'a> {
        Forward::Vm { call: self.call, vm_id: self.vm_id, argument: self.argument }
    }
}

/// A request in front of a lane.
pub(super) struct Waiting {
    pub(super) client: SlotKey,
    call: Call,
    /// The view model that began with it, a `Request_VM`.
    opens: Option<Opening>,
    vm_id_bytes: u32,
    has_argument: bool,
    /// The vm id, then the argument.
    bytes: Box<[u8]>,
    since: Time,
}

impl Waiting {
    /// What it counts for against the bound, the entry itself included.
    fn cost(&self) -> u32 {
        (self.bytes.len() + size_of::<Waiting>()) as u32
    }
    fn message(&self) -> Message<'_> {
        let (vm_id, argument) = self.bytes.split_at(self.vm_id_bytes as usize);
        Message { call: self.call, vm_id, argument: self.has_argument.then_some(argument) }
    }
}

/// A client that is gone.
pub(super) struct Notice {
    origin: OriginId,
    /// When it was written to the lane, if it was.
    at: Time,
    /// Behind which an Observer saw it; None: the lane's own.
    hub_id: Option<HubId>,
}

/// Whose request it is.
#[derive(Clone, Copy)]
pub(super) struct From<'a> {
    pub(super) client: SlotKey,
    pub(super) origin: &'a OriginId,
    pub(super) shown: Shown<'a>,
    /// The view model that begins with it.
    pub(super) opens: Option<Opening>,
}

/// What the app server is shown of a client, beside its id.
#[derive(Clone, Copy)]
pub(super) struct Shown<'a> {
    /// The constant part of its context.
    pub(super) context: Tail<'a>,
    /// Members of the metadata beside the context.
    pub(super) items: Items<'a>,
}

/// The parts of a shard that writing to a lane needs, apart from the lane.
pub(super) struct Gate<'a> {
    pub(super) settings: &'a Settings,
    pub(super) frames: &'a mut FramePool,
    pub(super) dirty: &'a mut Vec<SlotKey>,
    pub(super) random: &'a mut Random,
    pub(super) clock: &'a mut WallClock,
    pub(super) metrics: &'a mut ShardMetrics,
}

impl Gate<'_> {
    pub(super) fn unix_seconds(&self) -> u64 {
        self.clock.unix_seconds()
    }
}

impl Lane {
    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }
    pub(super) fn hub_id(&self) -> Option<&HubId> {
        self.hub_id.as_ref()
    }
    pub(super) fn upstream(&self) -> usize {
        usize::from(self.place.upstream.0)
    }
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }
    pub(super) fn waiting_bytes(&self) -> u32 {
        self.waiting_bytes
    }
    pub(super) fn notices(&self) -> usize {
        self.notices.len()
    }

    /// Its socket, if the key is that of the present incarnation.
    pub(super) fn socket(&mut self, key: SlotKey) -> Option<&mut Socket> {
        let socket = match &mut self.state {
            State::Up(link) => &mut link.socket,
            State::Over(socket) => socket,
            State::Down => return None,
        };
        (socket.key == key).then_some(socket)
    }

    /// Closes its socket at the very end of its shard.
    pub(super) fn abandon(&mut self, io: &mut impl Io) {
        if let State::Up(Link { socket, .. }) | State::Over(socket) = core::mem::take(&mut self.state) {
            io.shutdown(socket.fd);
            io.close(socket.fd);
        }
    }

    /// Can a message be written right now, without overtaking one that waits? A notice may be about its own client: a mirror that was
    /// lost hears of the old tie's end before anything new.
    pub(super) fn is_free(&self) -> bool {
        match &self.state {
            State::Up(link) => {
                self.waiting.is_empty() && self.notices.is_empty() && link.socket.queue.bytes() < LANE_SEND_BYTES_HIGH
            }
            _ => false,
        }
    }

    /// A request of a pinned client: onto the lane, or into the queue in front of it. True if it went onto the lane. Nothing waits for a
    /// mirror: it answers nobody, and what it cannot take at once it does not get.
    pub(super) fn request(
        &mut self,
        now: Time,
        from: From<'_>,
        message: Message<'_>,
        gate: &mut Gate<'_>,
    ) -> Result<bool, Refusal> {
        if self.is_free() {
            self.last = Some(from.client);
            return self.write(&message.forward(), None, from.origin, from.shown, gate).map(|()| true);
        }
        if !gate.settings.upstreams.routes.is_answering(self.upstream()) {
            return Err(Refusal::QueueFull);
        }
        let Message { call, vm_id, argument } = message;
        let bytes = [vm_id, argument.unwrap_or_default()].concat().into_boxed_slice();
        let waiting = Waiting {
            client: from.client,
            call,
            opens: from.opens,
            vm_id_bytes: vm_id.len() as u32,
            has_argument: argument.is_some(),
            bytes,
            since: now,
        };
        self.wait(waiting, gate.settings.lane_queue_bytes_max).map_err(|_| Refusal::QueueFull)?;
        gate.metrics.add(Counter::MessagesQueued, 1);
        Ok(false)
    }

    /// Puts a request into the queue, or gives it back where that is full.
    pub(super) fn wait(&mut self, waiting: Waiting, bytes_max: u32) -> Result<(), Waiting> {
        if self.waiting_bytes + waiting.cost() > bytes_max {
            return Err(waiting);
        }
        self.waiting_bytes += waiting.cost();
        self.waiting.push_back(waiting);
        Ok(())
    }

    pub(super) fn take_waiting(&mut self) -> VecDeque<Waiting> {
        self.waiting_bytes = 0;
        core::mem::take(&mut self.waiting)
    }

    /// The last message of a client that reached the app server on this lane.
    pub(super) fn disconnected(
        &mut self,
        now: Time,
        origin: &OriginId,
        hub_id: Option<&HubId>,
        shown: Shown<'_>,
        gate: &mut Gate<'_>,
    ) {
        let notice = Notice { origin: *origin, at: now, hub_id: hub_id.copied() };
        if self.is_free() && self.write(&Forward::Disconnected, hub_id, origin, shown, gate).is_ok() {
            return self.remember(notice);
        }
        self.notice(notice, gate);
    }

    /// Keeps a notice that has been written for as long as the lane may be dead without our knowing. Nothing says that it arrived, an app
    /// server that never hears it keeps the client's view models for good (contract 4.5), and hearing it twice is harmless (contract
    /// 2.5).
    fn remember(&mut self, notice: Notice) {
        let silence = Duration::from_millis(LANE_SILENCE_MS);
        while let Some(oldest) = self.told.front()
            && (oldest.at.after(silence) <= notice.at || self.told.len() + self.notices.len() >= LANE_NOTICES_MAX)
        {
            self.told.pop_front();
        }
        self.told.push_back(notice);
    }

    /// Tells of a client of whom nothing is known but its id.
    pub(super) fn bury(&mut self, now: Time, origin: OriginId, gate: &mut Gate<'_>) {
        let shown = self.unknown(gate.settings);
        self.disconnected(now, &origin, None, shown, gate);
    }

    /// What is shown of a client that is gone and was not kept: an Observer wants more than an app server (contract 7.2).
    fn unknown(&self, settings: &Settings) -> Shown<'static> {
        let upstreams = &settings.upstreams;
        let is_observer = upstreams.routes.is_observer(self.upstream());
        let context = if is_observer { nobody(upstreams.of(self.place).protocol) } else { Tail::Unknown };
        Shown { context, items: Items::default() }
    }

    /// The app server hears of a client's end before anything else, once it can.
    fn notice(&mut self, notice: Notice, gate: &mut Gate<'_>) {
        if self.notices.len() >= LANE_NOTICES_MAX {
            self.notices.pop_front();
            gate.metrics.add(Counter::DroppedNotice, 1);
        }
        self.notices.push_back(notice);
    }

    /// Shows an Observer a request, without what it carries (contract 7.2), under the hub id that the app server knows. It never waits:
    /// a picture of what was is worth nothing. False if the Observer did not get it.
    pub(super) fn observe(
        &mut self,
        from: From<'_>,
        message: Message<'_>,
        hub_id: Option<&HubId>,
        gate: &mut Gate<'_>,
    ) -> bool {
        let argument = match message.call {
            Call::RequestVm | Call::DisposeVm => None,
            Call::UpdateVm => Some(&b"{}"[..]),
        };
        let message = Message { argument, ..message };
        self.is_free() && self.write(&message.forward(), hub_id, from.origin, from.shown, gate).is_ok()
    }

    /// Tells an Observer how the process does, once for each hub id that it knows (contract 7.2).
    pub(super) fn report(&mut self, hub_id: &HubId, telemetry: &Telemetry, gate: &mut Gate<'_>) {
        if !self.is_free() {
            return;
        }
        let State::Up(link) = &mut self.state else { return };
        let protocol = gate.settings.upstreams.of(self.place).protocol;
        let mask = gate.random.mask();
        link.socket.out(gate.frames, gate.dirty, |out| {
            write_frame(out, opcode(protocol), Some(mask), |out| telemetry::write(protocol, &hub_id.0, telemetry, out));
        });
        self.sent += 1;
    }

    /// `hub_id`: None for its own.
    fn write(
        &mut self,
        forward: &Forward<'_>,
        hub_id: Option<&HubId>,
        origin: &OriginId,
        shown: Shown<'_>,
        gate: &mut Gate<'_>,
    ) -> Result<(), Refusal> {
        let (State::Up(link), Some(hub_id)) = (&mut self.state, hub_id.or(self.hub_id.as_ref())) else {
            return Err(Refusal::QueueFull);
        };
        let context = Context {
            hub_id: &hub_id.0,
            ticks: gate.clock.next(),
            connection_id: &origin.0,
            tail: shown.context,
            items: shown.items,
        };
        let upstream = gate.settings.upstreams.of(self.place);
        let (protocol, limit) = (upstream.protocol, upstream.message_bytes_max as usize);
        let mask = gate.random.mask();
        let written = link.socket.out(gate.frames, gate.dirty, |out| {
            let start = out.len();
            let bytes = write_frame(out, opcode(protocol), Some(mask), |out| {
                let payload = out.len();
                forward::write(protocol, forward, &context, None, out);
                out.len() - payload
            });
            if bytes > limit {
                // The app server would close the lane with everybody on it (contract 4.6).
                out.truncate(start);
                return false;
            }
            true
        });
        if !written {
            return Err(Refusal::TooLargeUpstream);
        }
        let kind = match forward {
            Forward::Vm { call: Call::RequestVm, .. } => Counter::ForwardedRequestVm,
            Forward::Vm { call: Call::UpdateVm, .. } => Counter::ForwardedUpdateVm,
            Forward::Vm { call: Call::DisposeVm, .. } => Counter::ForwardedDisposeVm,
            Forward::Disconnected => Counter::ForwardedDisconnect,
        };
        gate.metrics.add(kind, 1);
        self.sent += 1;
        Ok(())
    }

    /// When this lane wants a turn.
    pub(super) fn next_wake(&self, settings: &Settings) -> Time {
        let expires = self.waiting.front().map_or(Time::NEVER, |w| w.since.after(settings.lane_queue_timeout));
        let timed = if matches!(self.state, State::Down) { Time::NEVER } else { self.next_time };
        let report = if self.is_reportable() { self.next_time } else { Time::NEVER };
        // The lane took everything and more waits: go on at once, nothing else would wake the shard.
        let drains = match &self.state {
            State::Up(link) if link.socket.queue.bytes() < LANE_SEND_BYTES_HIGH => {
                !self.waiting.is_empty() || !self.notices.is_empty()
            }
            _ => false,
        };
        expires.min(timed).min(report).min(if drains { Time(0) } else { Time::NEVER })
    }

    fn is_reportable(&self) -> bool {
        self.unreported && matches!(self.state, State::Down)
    }

    /// Sends what waited, as far as the lane takes it.
    fn drain(&mut self, now: Time, conns: &mut Slab<Conn>, views: &mut Views, gate: &mut Gate<'_>) {
        while let State::Up(link) = &self.state
            && link.socket.queue.bytes() < LANE_SEND_BYTES_HIGH
        {
            if let Some(Notice { origin, hub_id, .. }) = self.notices.pop_front() {
                // Cannot be too large: the minimal context has a few dozen bytes.
                let shown = self.unknown(gate.settings);
                let _ = self.write(&Forward::Disconnected, hub_id.as_ref(), &origin, shown, gate);
                self.remember(Notice { origin, at: now, hub_id });
                continue;
            }
            let Some(waiting) = self.waiting.pop_front() else { return };
            self.waiting_bytes -= waiting.cost();
            let Some(Conn { socket, stage: Stage::Client(client) }) = conns.get_mut(waiting.client) else {
                gate.metrics.add(Counter::DroppedGoneClient, 1);
                continue;
            };
            gate.metrics.observe_us(Histogram::QueueWait, now.since(waiting.since).as_micros() as u64);
            self.last = Some(waiting.client);
            let (origin, upstream) = (client.origin, self.upstream());
            let shown = client.shown(&gate.settings.upstreams, upstream);
            match self.write(&waiting.message().forward(), None, &origin, shown, gate) {
                Ok(()) => {
                    let pin = &mut client.pins[upstream];
                    pin.forwarded = true;
                    gate.settings.journal.live(self.place, waiting.client.slot, pin.serial);
                }
                Err(refusal) => refuse(&waiting, refusal, socket, client, views, gate),
            }
        }
    }

    /// Answers what has waited too long.
    fn expire(&mut self, now: Time, conns: &mut Slab<Conn>, views: &mut Views, gate: &mut Gate<'_>) {
        while let Some(front) = self.waiting.front()
            && now >= front.since.after(gate.settings.lane_queue_timeout)
        {
            let Some(waiting) = self.waiting.pop_front() else { return };
            self.waiting_bytes -= waiting.cost();
            match conns.get_mut(waiting.client) {
                Some(Conn { socket, stage: Stage::Client(client) }) => {
                    gate.metrics.observe_us(Histogram::QueueWait, now.since(waiting.since).as_micros() as u64);
                    refuse(&waiting, Refusal::QueueTimeout, socket, client, views, gate);
                }
                _ => gate.metrics.add(Counter::DroppedGoneClient, 1),
            }
        }
    }
}

/// A context for who is gone and was not kept: an Observer wants more of it than an app server (contract 7.2).
fn nobody(protocol: Protocol) -> Tail<'static> {
    let headers: &[u8] = match protocol {
        Protocol::Json => {
            b",\\\"HttpRequestHeaders\\\":{\\\"AllHeaders\\\":{},\\\"UserAgent\\\":null},\\\"Items\\\":{}}"
        }
        Protocol::MessagePack => b",\"HttpRequestHeaders\":{\"AllHeaders\":{},\"UserAgent\":null},\"Items\":{}}",
    };
    Tail::Client { connection: b"0 0.0.0.0 0.0.0.0 0 0", headers }
}

pub(super) fn refuse(
    waiting: &Waiting,
    refusal: Refusal,
    socket: &mut Socket,
    client: &mut Client,
    views: &mut Views,
    gate: &mut Gate<'_>,
) {
    if let Some(opening) = waiting.opens {
        // As if it had not been asked for: the next request of it is decided anew.
        views.cancel(&mut client.views, opening);
    }
    gate.metrics.add(Counter::refusal(refusal.label()), 1);
    if socket.life == Life::Open {
        let form = client.session.form();
        write_message(socket, client.carried.as_deref_mut(), form, gate, |out| {
            write_refusal(form, waiting.message().vm_id, refusal, out);
        });
    }
}

impl<I: Io> Shard<I> {
    fn lane_key(&self, index: LaneIndex) -> LaneKey {
        LaneKey { shard: self.settings.shard, index }
    }

    pub(super) fn on_lane_up(
        &mut self,
        now: Time,
        index: LaneIndex,
        socket: OwnedFd,
        hub_id: HubId,
        mut early: Vec<u8>,
        tls: Option<Box<Tls>>,
    ) {
        let name = self.lane_key(index);
        let lane = &mut self.lanes[index.0 as usize];
        if self.stopping.is_some() || !matches!(lane.state, State::Down) {
            // Dropping it closes it.
            warn!(lane = %name, "a lane was dialled that is not wanted");
            return;
        }
        lane.incarnation += 1;
        let key = SlotKey { slot: LANE_SLOTS.start + u32::from(index.0), generation: lane.incarnation };
        let mut socket = Socket::new(key, self.io.adopt(socket));
        socket.secure = tls.map(|tls| Box::new(Secure::new(tls)));
        socket.arm_readable(&mut self.io);
        let upstream = self.settings.upstreams.of(lane.place);
        lane.state = State::Up(Link { socket, session: LaneSession::new(now, upstream.protocol) });
        lane.hub_id = Some(hub_id);
        lane.next_time = now;
        self.metrics.add(Counter::LaneConnected, 1);
        info!(lane = %name, upstream = upstream.name, "lane up");
        // Bytes behind the handshake's answer were read by the control plane: they come first.
        if !early.is_empty() {
            self.on_lane_bytes(now, index, Input::Bytes(&mut early));
        }
    }

    pub(super) fn on_lane_bytes(&mut self, now: Time, index: LaneIndex, mut input: Input<'_>) {
        let Shard { io, conns, lanes, hubs, frames, pool, dirty, random, metrics, settings, shards, .. } = self;
        let lane = &mut lanes[index.0 as usize];
        let (place, hub, received) = (lane.place, lane.hub, &mut lane.received);
        let addressed = match settings.upstreams.of(place).hub_scope {
            HubScope::Lane => usize::from(index.0)..usize::from(index.0) + 1,
            HubScope::Node => lane.siblings.clone(),
        };
        let State::Up(Link { socket, session }) = &mut lane.state else { return };
        let bytes = input.bytes(io);
        let deliver = Deliver::new(addressed, place, &mut hubs[hub], conns, frames, dirty, metrics, settings);
        let mut side = LaneSide { socket, random, received, shards, deliver };
        if let Err(end) = session.on_bytes(now, bytes, pool, &mut side) {
            self.lane_ends(now, index, end);
        }
    }

    /// Timers, reports and queues of all lanes.
    pub(super) fn on_lanes(&mut self, now: Time) {
        self.hurry_lanes(now);
        for index in 0..self.lanes.len() {
            self.move_waiting(LaneIndex(index as u16));
            let name = self.lane_key(LaneIndex(index as u16));
            let Shard { conns, lanes, views, frames, dirty, random, clock, metrics, settings, control, .. } = self;
            let lane = &mut lanes[index];
            let mut gate = Gate { settings, frames, dirty, random, clock, metrics };
            let mut lost = None;
            if let State::Up(Link { socket, session }) = &mut lane.state
                && now >= lane.next_time
            {
                let mut side = Pinger { socket, frames: gate.frames, dirty: gate.dirty, random: gate.random };
                match session.on_time(now, &mut side) {
                    Ok(next) => lane.next_time = next,
                    Err(end) => lost = Some(end),
                }
            }
            if lane.is_reportable() && now >= lane.next_time {
                lane.unreported = control.send(ControlOrder::LaneLost { lane: name }).is_err();
                if lane.unreported {
                    // The control plane's queue is full: it is at work on what it has.
                    lane.next_time = now.after(Duration::from_millis(LANE_REPORT_AGAIN_MS));
                }
            }
            if !lane.waiting.is_empty() || !lane.notices.is_empty() {
                lane.drain(now, conns, views, &mut gate);
                lane.expire(now, conns, views, &mut gate);
            }
            if let Some(end) = lost {
                self.lane_ends(now, LaneIndex(index as u16), end);
            }
        }
    }

    /// A lane is lost: its clients cannot be answered any more (contract 4.4), so they are asked to come back, which makes them
    /// request their view models again under new ids; the app server hears of the old ids as soon as it can.
    pub(super) fn lane_ends(&mut self, now: Time, index: LaneIndex, end: LaneEnd) {
        let name = self.lane_key(index);
        let lane = &mut self.lanes[index.0 as usize];
        let (mut socket, mut session) = match core::mem::take(&mut lane.state) {
            State::Up(Link { socket, session }) => (socket, session),
            // Already lost: the peer's end after ours. The socket stays the lane's until the kernel has let go of it (`join`).
            State::Over(mut socket) => {
                socket.end(&mut self.io, &mut self.frames, &mut self.metrics);
                lane.state = State::Over(socket);
                return;
            }
            State::Down => return,
        };
        let stopping = end == LaneEnd::Stopping;
        if stopping || matches!(end, LaneEnd::ServerClose { .. } | LaneEnd::CloseFrame(_)) {
            let Shard { frames, dirty, random, pool, .. } = self;
            session.close(pool, &mut Pinger { socket: &mut socket, frames, dirty, random });
            socket.drain(&mut self.io, &mut self.dirty);
        } else {
            socket.end(&mut self.io, &mut self.frames, &mut self.metrics);
        }
        let lane = &mut self.lanes[index.0 as usize];
        let key = socket.key;
        lane.state = State::Over(socket);
        lane.next_time = super::socket::linger_until(now);
        if stopping {
            return self.join(now, key);
        }
        self.metrics.add(Counter::LaneLost, 1);
        let Shard { conns, lanes, hubs, frames, dirty, random, clock, metrics, settings, ending, .. } = self;
        let (upstream, settings) = (lanes[index.0 as usize].upstream(), &*settings);
        let mut siblings = lanes[index.0 as usize].siblings.clone();
        let other = siblings.find(|other| lanes[*other].is_up()).unwrap_or(usize::from(index.0));
        let upstream_name = &settings.upstreams.get(upstream).name;
        let mut gate = Gate { settings, frames, dirty, random, clock, metrics };
        let silence = Duration::from_millis(LANE_SILENCE_MS);
        for notice in core::mem::take(&mut lanes[index.0 as usize].told) {
            if notice.at.after(silence) > now {
                lanes[other].notice(notice, &mut gate);
            }
        }
        let mut told = 0u32;
        // The app server disposes of the view models of whoever spoke last on the lane (contract 4.4). That is one of its own clients,
        // unless messages are dealt one by one.
        if let Some(last) = lanes[usize::from(index.0)].last.take()
            && settings.upstreams.routes.is_answering(upstream)
            && let Some(Conn { stage: Stage::Client(client), .. }) = conns.get(last)
            && client.pins[upstream].lane != Some(index)
        {
            ending.push((last, End::LaneLost));
            told += 1;
        }
        for slot in 0..conns.slots() {
            let Some(Conn { socket, stage: Stage::Client(client) }) = conns.at_mut(slot) else { continue };
            if client.pins[upstream].lane != Some(index) || !client.pins[upstream].forwarded {
                continue;
            }
            if settings.upstreams.routes.is_answering(upstream) {
                ending.push((socket.key, End::LaneLost));
                told += 1;
            } else if !settings.upstreams.routes.is_observer(upstream) {
                // What it answers is nothing that clients wait for, so they stay, and begin anew there with their next message: behind
                // the end of what was, on the same lane, and in no group of the lane that is gone.
                let shown = client.shown(&settings.upstreams, upstream);
                lanes[other].disconnected(now, &client.origin, None, shown, &mut gate);
                settings.journal.gone(lanes[other].place.upstream, socket.key.slot);
                let Client { pins, user, .. } = client;
                pins[upstream].forwarded = false;
                pins[upstream].repin(socket.key, Some(other), user.as_deref(), lanes, hubs);
            }
        }
        warn!(lane = %name, upstream = upstream_name, clients = told, "lane lost: {end}; its clients are asked to reconnect");
        self.lanes[index.0 as usize].unreported = true;
        self.join(now, key);
    }

    /// A lost lane's socket is closed: it can be dialled again.
    pub(super) fn lane_closed(&mut self, now: Time, index: LaneIndex) {
        let lane = &mut self.lanes[index.0 as usize];
        lane.state = State::Down;
        lane.next_time = now;
    }

    /// Lanes that have been told to go and whose app server does not close its side.
    fn hurry_lanes(&mut self, now: Time) {
        for index in 0..self.lanes.len() {
            let lane = &mut self.lanes[index];
            if let State::Over(socket) = &mut lane.state
                && now >= lane.next_time
            {
                socket.end(&mut self.io, &mut self.frames, &mut self.metrics);
                lane.next_time = Time::NEVER;
                let key = socket.key;
                self.join(now, key);
            }
        }
    }

    /// Nothing more to tell: the lanes that have sent everything say goodbye. True when all are closed.
    pub(super) fn close_lanes(&mut self, now: Time) -> bool {
        for index in 0..self.lanes.len() {
            let lane = &self.lanes[index];
            if let State::Up(link) = &lane.state
                && link.socket.queue.is_empty()
                && lane.notices.is_empty()
            {
                self.lane_ends(now, LaneIndex(index as u16), LaneEnd::Stopping);
            }
        }
        self.lanes.iter().all(|lane| matches!(lane.state, State::Down))
    }
}

/// What pings and the goodbye need: the lane's own socket.
struct Pinger<'a> {
    socket: &'a mut Socket,
    frames: &'a mut FramePool,
    dirty: &'a mut Vec<SlotKey>,
    random: &'a mut Random,
}

impl LaneOut for Pinger<'_> {
    fn out<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        self.socket.out(self.frames, self.dirty, write)
    }
    fn mask(&mut self) -> [u8; 4] {
        self.random.mask()
    }
}
