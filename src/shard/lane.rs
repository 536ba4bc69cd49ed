//! Lanes of this shard: the way of requests to the app server, and what waits in front of it. What losing one means is in `replay`.
use super::client::write_message;
use super::delivery::{Deliver, Failure, Forgets, LaneSide};
use super::forwarding::plain;
use super::replay::upstreams_of;
use super::secure::Secure;
use super::socket::{Client, Conn, Input, Life, Link, Pin, Socket, Stage, Tie, origin_at};
use super::upstreams::Hub;
use super::{Random, Settings, Shard, WallClock};
use crate::bus::ControlOrder;
use crate::ids::{HubId, LaneIndex, LaneKey, LanePlace, OriginId, SLOT_MAX, SlotKey, Time};
use crate::journal::Cell;
use crate::limits::*;
use crate::mem::frames::FramePool;
use crate::mem::slab::Slab;
use crate::metrics::{Counter, Histogram, ShardMetrics, UpstreamCounter};
use crate::proto::dotnetify::context::{Context, Items, Tail};
use crate::proto::dotnetify::forward::{self, Forward};
use crate::proto::dotnetify::request::Call;
use crate::proto::dotnetify::telemetry::{self, Telemetry};
use crate::proto::signalr::{Protocol, json};
use crate::proto::ws::frame::write_frame;
use crate::session::client::{write_failure, write_refusal};
use crate::session::fault::{LaneEnd, Refusal};
use crate::session::flight::{Cargo, Flight};
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
    pub(super) index: LaneIndex,
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
    pub(super) last: Option<SlotKey>,
    /// Clients pinned to it.
    pub(super) clients: u32,
    /// Records to and from the app server; wrap around.
    pub(super) sent: u64,
    pub(super) received: u64,
    /// What the app server has not answered.
    pub(super) flight: Flight,
    /// Requests that wait for it, oldest first.
    waiting: VecDeque<Waiting>,
    waiting_bytes: u64,
    /// Clients pinned to it whose view models are to be requested again. Some may have moved on, or be gone.
    pub(super) replays: VecDeque<SlotKey>,
    /// Without acknowledgements: when the next of them may be, and how many since.
    paced: (Time, u32),
    /// Clients that are gone, or known by another id, while nobody could be told.
    pub(super) notices: VecDeque<Notice>,
    /// Nobody is told while clients wait to be known by their new ids.
    pub(super) held: bool,
    /// Those who were told of, oldest first, until that is acknowledged; without acknowledgements, for as long as the lane may be dead
    /// without our knowing.
    pub(super) told: VecDeque<Notice>,
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
                index: LaneIndex(lanes.len() as u16),
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
                flight: Flight::default(),
                waiting: VecDeque::new(),
                waiting_bytes: 0,
                replays: VecDeque::new(),
                paced: (Time::default(), 0),
                notices: VecDeque::new(),
                held: false,
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
    /// The view model that began with it, a `Request_VM`; of a `Dispose_VM` the last one that was there, None if there was nothing that it
    /// could dispose of.
    opens: Option<Opening>,
    vm_id_bytes: u32,
    has_argument: bool,
    /// The vm id, then the argument.
    bytes: Box<[u8]>,
    since: Time,
}

/// What a `Dispose_VM` takes that waits in front of a lane, its name apart.
pub const WAITING_BYTES: usize = size_of::<Waiting>();

impl Waiting {
    /// What it counts for against the bound, the entry itself included.
    fn cost(&self) -> u64 {
        (self.bytes.len() + size_of::<Waiting>()) as u64
    }
    fn cargo(&self) -> Cargo {
        cargo(self.client, self.call, self.opens)
    }
    fn vm_id(&self) -> &[u8] {
        &self.bytes[..self.vm_id_bytes as usize]
    }
    /// Does it end something that the app server may have?
    fn is_needed_disposal(&self) -> bool {
        self.call == Call::DisposeVm && self.opens.is_some()
    }
    /// Does it belong to the same view model of the same client?
    fn goes_with(&self, other: &Waiting) -> bool {
        self.client == other.client && self.vm_id() == other.vm_id()
    }
    pub(super) fn message(&self) -> Message<'_> {
        let (vm_id, argument) = self.bytes.split_at(self.vm_id_bytes as usize);
        Message { call: self.call, vm_id, argument: self.has_argument.then_some(argument) }
    }
}

fn cargo(client: SlotKey, call: Call, opens: Option<Opening>) -> Cargo {
    let is_request = call == Call::RequestVm;
    Cargo::Message { client, opens: opens.filter(|_| is_request), is_request }
}

/// A client that is gone, or known by another id.
pub(super) struct Notice {
    pub(super) origin: OriginId,
    /// When it was written to the lane, if it was.
    pub(super) at: Time,
    /// Behind which an Observer saw it; None: the lane's own.
    pub(super) hub_id: Option<HubId>,
    /// Where it is kept in case this process dies.
    pub(super) cell: Option<Cell>,
    /// It will be told again, or has been told before: that is enough, however often its lane is lost.
    pub(super) is_repeated: bool,
}

/// Whose request it is.
#[derive(Clone, Copy)]
pub(super) struct From<'a> {
    pub(super) client: SlotKey,
    pub(super) origin: &'a OriginId,
    pub(super) shown: Shown<'a>,
    /// The view model that begins with it; of a `Dispose_VM` the last one that is there.
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
    /// Clients whose messages had to wait and wait no longer.
    pub(super) relieved: &'a mut Vec<SlotKey>,
}

impl Gate<'_> {
    /// Something of a client is on its way to a place under its present id.
    pub(super) fn know(&mut self, place: LanePlace, client: SlotKey, pin: &mut Pin) {
        pin.tie = Tie::Known;
        self.settings.journal.live(place, client.slot, pin.serial);
    }

    /// The end of the id that a place knows a client by.
    pub(super) fn bury(&self, place: LanePlace, client: SlotKey, pin: &Pin, first: &OriginId) -> Notice {
        let journal = &self.settings.journal;
        // In this order: whoever dies between the two leaves it in the journal twice, and not nowhere.
        let cell = journal.bury(place, client.slot, pin.serial);
        journal.gone(place.upstream, client.slot);
        Notice {
            origin: origin_at(self.settings, client.slot, pin, first),
            at: Time::default(),
            hub_id: None,
            cell,
            is_repeated: false,
        }
    }

    /// An end that need not be told again.
    pub(super) fn settled(&self, notice: Option<Notice>) {
        if let Some(cell) = notice.and_then(|notice| notice.cell) {
            self.settings.journal.buried(cell);
        }
    }

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
    /// Tells its connections apart.
    pub(super) fn incarnation(&self) -> u32 {
        self.incarnation
    }
    pub(super) fn upstream(&self) -> usize {
        usize::from(self.place.upstream.0)
    }
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }
    pub(super) fn waiting_bytes(&self) -> u64 {
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

    /// Can something be written right now? Not more than the app server is known to work on.
    pub(super) fn has_room(&self, settings: &Settings) -> bool {
        self.has_room_beyond(settings, 0)
    }

    /// The same with so many messages more than the app server works on.
    fn has_room_beyond(&self, settings: &Settings, more: usize) -> bool {
        let State::Up(link) = &self.state else { return false };
        let window = settings.upstreams.of(self.place).window.map_or(usize::MAX, |window| window.messages as usize);
        link.socket.queue.bytes() < LANE_SEND_BYTES_HIGH && self.flight.len() < window.saturating_add(more)
    }

    /// Can a message be written right now, without overtaking one that waits?
    pub(super) fn is_free(&self, settings: &Settings) -> bool {
        self.waiting.is_empty() && self.has_room(settings)
    }

    /// The same for the end of a client.
    fn may_tell(&self, settings: &Settings) -> bool {
        self.flight.notices() < NOTICES_IN_FLIGHT_MAX && self.has_room(settings)
    }

    /// Can the end of somebody else's client be written right now, in nobody's way?
    pub(super) fn has_nothing_to_tell(&self, settings: &Settings) -> bool {
        self.is_free(settings) && self.notices.is_empty() && self.may_tell(settings)
    }

    /// The same for a view model that is requested again.
    fn may_replay(&self, now: Time, settings: &Settings) -> bool {
        let is_paced = settings.upstreams.of(self.place).window.is_some()
            || now >= self.paced.0
            || self.paced.1 < REPLAYS_IN_FLIGHT_MAX;
        self.flight.replays() < REPLAYS_IN_FLIGHT_MAX && is_paced && self.has_room(settings)
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
        if self.is_free(gate.settings) {
            self.last = Some(from.client);
            let cargo = cargo(from.client, message.call, from.opens);
            return self.write(now, &message.forward(), None, from.origin, from.shown, cargo, gate).map(|()| true);
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
        // What is not wanted any more must come to be known as such. A client has so many view models and no more (`Views::open`), which
        // bounds this as well.
        if self.waiting_bytes + waiting.cost() > u64::from(bytes_max) && !waiting.is_needed_disposal() {
            return Err(waiting);
        }
        self.waiting_bytes += waiting.cost();
        self.waiting.push_back(waiting);
        Ok(())
    }

    /// By the time since when each waits, as what came from another lane may have waited longer. Those of a client keep their order.
    pub(super) fn sort_waiting(&mut self) {
        self.waiting.make_contiguous().sort_by_key(|waiting| waiting.since);
    }

    pub(super) fn take_waiting(&mut self) -> VecDeque<Waiting> {
        self.waiting_bytes = 0;
        core::mem::take(&mut self.waiting)
    }

    /// The last message of a client that reached the app server on this lane.
    pub(super) fn disconnected(&mut self, now: Time, notice: Notice, shown: Shown<'_>, gate: &mut Gate<'_>) {
        let Notice { origin, hub_id, .. } = &notice;
        if self.notices.is_empty()
            && self.may_tell(gate.settings)
            && self.write(now, &Forward::Disconnected, hub_id.as_ref(), origin, shown, Cargo::Notice, gate).is_ok()
        {
            return self.remember(Notice { at: now, ..notice }, gate);
        }
        self.notice(notice, gate);
    }

    /// Keeps a notice that has been written until it is acknowledged, or for as long as the lane may be dead without our knowing. An app
    /// server that never hears it keeps the client's view models for good (contract 4.5), and hearing it twice is harmless (contract
    /// 2.5).
    fn remember(&mut self, notice: Notice, gate: &mut Gate<'_>) {
        while !self.is_acknowledged(gate.settings)
            && self.told.len() + self.notices.len() >= LANE_NOTICES_MAX
            && let Some(oldest) = self.told.pop_front()
        {
            gate.settled(Some(oldest));
        }
        self.told.push_back(notice);
    }

    fn is_acknowledged(&self, settings: &Settings) -> bool {
        settings.upstreams.of(self.place).window.is_some()
    }

    /// Without acknowledgements: what has been told is done when the lane has been alive since, or ends in order behind it.
    fn settle_told(&mut self, now: Time, is_over: bool, gate: &Gate<'_>) {
        let silence = Duration::from_millis(TOLD_KEPT_MS);
        while let Some(oldest) = self.told.front()
            && !self.is_acknowledged(gate.settings)
            && (is_over || oldest.at.after(silence) <= now)
        {
            gate.settled(self.told.pop_front());
        }
    }

    /// Tells of a client of whom nothing is known but its id.
    pub(super) fn bury(&mut self, now: Time, origin: OriginId, gate: &mut Gate<'_>) {
        let shown = self.unknown(gate.settings);
        self.disconnected(now, Notice { origin, at: now, hub_id: None, cell: None, is_repeated: false }, shown, gate);
    }

    /// What is shown of a client that is gone and was not kept: an Observer wants more than an app server (contract 7.2).
    fn unknown(&self, settings: &Settings) -> Shown<'static> {
        let upstreams = &settings.upstreams;
        let is_observer = upstreams.routes.is_observer(self.upstream());
        let context = if is_observer { nobody(upstreams.of(self.place).protocol) } else { Tail::Unknown };
        Shown { context, items: Items::default() }
    }

    /// The end of a client on a lane that is given up: behind everything that was said on it, however much that is.
    pub(super) fn say_end(&mut self, now: Time, origin: &OriginId, gate: &mut Gate<'_>) {
        let shown = self.unknown(gate.settings);
        let _ = self.write(now, &Forward::Disconnected, None, origin, shown, Cargo::Notice, gate);
    }

    /// The same for all who have gone and of whom the app server is yet to hear. It is told again elsewhere.
    pub(super) fn say_notices(&mut self, now: Time, gate: &mut Gate<'_>) {
        for index in 0..self.notices.len() {
            let origin = self.notices[index].origin;
            self.say_end(now, &origin, gate);
        }
    }

    /// The app server hears of a client's end once it can.
    pub(super) fn notice(&mut self, notice: Notice, gate: &mut Gate<'_>) {
        if self.notices.len() >= LANE_NOTICES_MAX {
            // What the journal has of it stays: the next process says it.
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
        // Never acknowledged, so it counts for nothing.
        let cargo = Cargo::Message { client: from.client, opens: None, is_request: false };
        self.is_free(gate.settings)
            && self.write(Time::default(), &message.forward(), hub_id, from.origin, from.shown, cargo, gate).is_ok()
    }

    /// Tells an Observer how the process does, once for each hub id that it knows (contract 7.2).
    pub(super) fn report(&mut self, hub_id: &HubId, telemetry: &Telemetry, gate: &mut Gate<'_>) {
        if !self.is_free(gate.settings) {
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
    #[allow(clippy::too_many_arguments)] // What an invocation is made of.
    fn write(
        &mut self,
        now: Time,
        forward: &Forward<'_>,
        hub_id: Option<&HubId>,
        origin: &OriginId,
        mut shown: Shown<'_>,
        cargo: Cargo,
        gate: &mut Gate<'_>,
    ) -> Result<(), Refusal> {
        let protocol = gate.settings.upstreams.of(self.place).protocol;
        let written = self.try_write(now, forward, hub_id, origin, shown, cargo, gate);
        // The app server would close the lane with everybody on it (contract 4.6, 6.6). What it takes without the client's headers it gets.
        if written == Err(Refusal::TooLargeUpstream)
            && let Tail::Client { headers, .. } = &mut shown.context
        {
            *headers = no_headers(protocol);
            self.try_write(now, forward, hub_id, origin, shown, cargo, gate)?;
            gate.metrics.add(Counter::DroppedHeaders, 1);
            return Ok(());
        }
        written
    }

    #[allow(clippy::too_many_arguments)] // As `write`.
    fn try_write(
        &mut self,
        now: Time,
        forward: &Forward<'_>,
        hub_id: Option<&HubId>,
        origin: &OriginId,
        shown: Shown<'_>,
        cargo: Cargo,
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
        let number = upstream.window.map(|_| self.flight.next());
        let mask = gate.random.mask();
        let written = link.socket.out(gate.frames, gate.dirty, |out| {
            let start = out.len();
            let bytes = write_frame(out, opcode(protocol), Some(mask), |out| {
                let payload = out.len();
                forward::write(protocol, forward, &context, number, out);
                out.len() - payload
            });
            if bytes > limit {
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
        if number.is_some() {
            let vm_id = if let Forward::Vm { vm_id, .. } = *forward { vm_id } else { &[] };
            self.flight.sent(now, cargo, vm_id);
        }
        Ok(())
    }

    /// When this lane wants a turn.
    pub(super) fn next_wake(&self, settings: &Settings) -> Time {
        let expires = self.waiting.front().map_or(Time::NEVER, |w| w.since.after(settings.lane_queue_timeout));
        let timed = if matches!(self.state, State::Down) { Time::NEVER } else { self.next_time };
        let report = if self.is_reportable() { self.next_time } else { Time::NEVER };
        // The lane took everything and more waits: go on at once, nothing else would wake the shard.
        let tells = !self.notices.is_empty() && !self.held && self.may_tell(settings);
        let drains = tells || !self.waiting.is_empty() && self.has_room(settings);
        let replays = match self.replays.is_empty() {
            false if self.may_replay(Time::default(), settings) => Time(0),
            false if self.has_room(settings) && settings.upstreams.of(self.place).window.is_none() => self.paced.0,
            _ => Time::NEVER,
        };
        let stuck = self.stuck_at(settings).unwrap_or(Time::NEVER);
        expires.min(timed).min(report).min(replays).min(stuck).min(if drains { Time(0) } else { Time::NEVER })
    }

    /// When the app server will have done nothing for too long of what is on the lane.
    fn stuck_at(&self, settings: &Settings) -> Option<Time> {
        let window = settings.upstreams.of(self.place).window.filter(|_| self.is_up())?;
        Some(self.flight.owed_since()?.after(window.timeout))
    }

    fn is_reportable(&self) -> bool {
        self.unreported && matches!(self.state, State::Down)
    }

    /// Sends what waited, as far as the lane takes it. Where each lane has a hub id of its own, old ids are given up behind the replay
    /// under new ones, so that a view model that is shared keeps its state; where the node has one, before it, because a dead
    /// tie may swallow what is for groups (contract 6.3).
    fn drain(&mut self, now: Time, conns: &mut Slab<Conn>, views: &mut Views, gate: &mut Gate<'_>) {
        let is_shared = gate.settings.upstreams.of(self.place).hub_scope == HubScope::Node;
        if is_shared {
            self.drain_notices(now, gate);
        }
        self.drain_replays(now, conns, views, gate);
        if !is_shared && !self.held {
            self.drain_notices(now, gate);
        }
        self.drain_waiting(now, conns, views, gate);
    }

    fn drain_notices(&mut self, now: Time, gate: &mut Gate<'_>) {
        while self.may_tell(gate.settings)
            && let Some(notice) = self.notices.pop_front()
        {
            let shown = self.unknown(gate.settings);
            let (origin, hub_id) = (notice.origin, notice.hub_id);
            // Not refused: there is room, and the context has a few dozen bytes.
            let _ = self.write(now, &Forward::Disconnected, hub_id.as_ref(), &origin, shown, Cargo::Notice, gate);
            self.remember(Notice { at: now, ..notice }, gate);
        }
    }

    fn drain_replays(&mut self, now: Time, conns: &mut Slab<Conn>, views: &Views, gate: &mut Gate<'_>) {
        while self.may_replay(now, gate.settings)
            && let Some(key) = self.replays.pop_front()
        {
            let Some(Conn { socket, stage: Stage::Client(client) }) = conns.get_mut(key) else { continue };
            if self.is_owed(&client.pins[self.upstream()], socket) {
                self.catch_up(now, key, client, views, gate);
            }
        }
    }

    /// Is it a client of this lane whose view models are to be requested again?
    fn is_owed(&self, pin: &Pin, socket: &Socket) -> bool {
        pin.tie == Tie::Owed && pin.lane == Some(self.index) && socket.life == Life::Open
    }

    /// Requests everything again that a client has, whatever else waits.
    pub(super) fn catch_up(
        &mut self,
        now: Time,
        key: SlotKey,
        client: &mut Client,
        views: &Views,
        gate: &mut Gate<'_>,
    ) {
        let upstream = self.upstream();
        let origin = client.origin_at(gate.settings, key.slot, upstream);
        let shown = client.shown(&gate.settings.upstreams, upstream);
        let from = From { client: key, origin: &origin, shown, opens: None };
        self.replay(now, from, views.requested_from(client.views, upstream), gate);
        gate.know(self.place, key, &mut client.pins[upstream]);
    }

    /// Requests view models again for a client, under its new id: name and argument of each, in order (contract 6.3).
    pub(super) fn replay<'a>(
        &mut self,
        now: Time,
        from: From<'_>,
        views: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
        gate: &mut Gate<'_>,
    ) {
        if now >= self.paced.0 {
            self.paced = (now.after(Duration::from_millis(REPLAY_PACE_MS)), 0);
        }
        self.last = Some(from.client);
        let mut vm_id = Vec::new();
        for (name, argument) in views {
            vm_id.clear();
            vm_id.push(b'"');
            json::escape(name, &mut vm_id);
            vm_id.push(b'"');
            let forward = Forward::Vm { call: Call::RequestVm, vm_id: &vm_id, argument };
            let cargo = Cargo::Replay { client: from.client };
            // It was not too large the first time, and an id is as long as another; headers that it changed since may be longer.
            let written = self.write(now, &forward, None, from.origin, from.shown, cargo, gate).is_ok();
            gate.metrics.add(if written { Counter::Replayed } else { Counter::DroppedReplay }, 1);
            self.paced.1 += 1;
        }
    }

    fn drain_waiting(&mut self, now: Time, conns: &mut Slab<Conn>, views: &mut Views, gate: &mut Gate<'_>) {
        while self.has_room(gate.settings)
            && let Some(waiting) = self.waiting.pop_front()
        {
            self.waiting_bytes -= waiting.cost();
            let Some(Conn { socket, stage: Stage::Client(client) }) = conns.get_mut(waiting.client) else {
                gate.metrics.add(Counter::DroppedGoneClient, 1);
                continue;
            };
            gate.metrics.observe_us(Histogram::QueueWait, now.since(waiting.since).as_micros() as u64);
            if self.is_owed(&client.pins[self.upstream()], socket) {
                self.catch_up(now, waiting.client, client, views, gate);
            }
            self.send_waiting(now, waiting, socket, client, views, gate);
        }
    }

    /// A message that has waited goes onto the lane, or its client is told why not.
    fn send_waiting(
        &mut self,
        now: Time,
        waiting: Waiting,
        socket: &mut Socket,
        client: &mut Client,
        views: &mut Views,
        gate: &mut Gate<'_>,
    ) {
        let upstream = self.upstream();
        client.pins[upstream].waits_no_longer(waiting.client, gate.relieved);
        self.last = Some(waiting.client);
        let origin = client.origin_at(gate.settings, waiting.client.slot, upstream);
        let shown = client.shown(&gate.settings.upstreams, upstream);
        match self.write(now, &waiting.message().forward(), None, &origin, shown, waiting.cargo(), gate) {
            Ok(()) => {
                gate.know(self.place, waiting.client, &mut client.pins[upstream]);
                gate.metrics.add_upstream(self.place.upstream, UpstreamCounter::Forwarded, 1);
                match (waiting.call, waiting.opens) {
                    (Call::RequestVm, Some(opening)) => views.requested(client.views, opening),
                    (Call::DisposeVm, Some(last)) => {
                        views.left(&mut client.views, upstream, &plain(waiting.vm_id()), last);
                    }
                    _ => {}
                }
            }
            Err(refusal) => self.refuse(waiting, refusal, socket, client, views, gate),
        }
    }

    /// Can what a client that leaves has said go now, beyond what the app server is known to work on? As much as a replay may be over.
    pub(super) fn has_room_for_last_words(&self, settings: &Settings) -> bool {
        self.has_room_beyond(settings, VIEWS_PER_CLIENT_MAX as usize)
    }

    /// What a client that leaves has said and what still waits, so many messages: it goes now, whatever waits before it. The queue may be
    /// long, and everybody in it may leave at once: nothing is looked at behind the last of them.
    pub(super) fn take_waiting_of(&mut self, key: SlotKey, count: u16) -> Vec<Waiting> {
        let (mut own, mut index) = (Vec::new(), 0);
        while own.len() < usize::from(count)
            && let Some(waiting) = self.waiting.get(index)
        {
            if waiting.client != key {
                index += 1;
            } else if let Some(waiting) = self.waiting.remove(index) {
                self.waiting_bytes -= waiting.cost();
                own.push(waiting);
            }
        }
        own
    }

    /// One of the last words of a client, behind which its end follows. False: it is lost.
    pub(super) fn last_words(&mut self, now: Time, waiting: &Waiting, from: From<'_>, gate: &mut Gate<'_>) -> bool {
        let has_room = self.has_room_for_last_words(gate.settings);
        let forward = waiting.message().forward();
        if !has_room || self.write(now, &forward, None, from.origin, from.shown, waiting.cargo(), gate).is_err() {
            gate.metrics.add(Counter::DroppedGoneClient, 1);
            return false;
        }
        gate.metrics.observe_us(Histogram::QueueWait, now.since(waiting.since).as_micros() as u64);
        gate.metrics.add_upstream(self.place.upstream, UpstreamCounter::Forwarded, 1);
        true
    }

    /// What a storm has made long is given back when it is over.
    fn let_go(&mut self) {
        if self.waiting.is_empty() {
            self.waiting.shrink_to(LANE_PLACES_KEPT);
        }
        if self.replays.is_empty() {
            self.replays.shrink_to(LANE_PLACES_KEPT);
        }
        if self.notices.is_empty() {
            self.notices.shrink_to(LANE_PLACES_KEPT);
        }
    }

    /// Answers what has waited too long.
    fn expire(&mut self, now: Time, conns: &mut Slab<Conn>, views: &mut Views, gate: &mut Gate<'_>) {
        let mut kept = Vec::new();
        while let Some(front) = self.waiting.front()
            && now >= front.since.after(gate.settings.lane_queue_timeout)
            && let Some(waiting) = self.waiting.pop_front()
        {
            self.waiting_bytes -= waiting.cost();
            match conns.get_mut(waiting.client) {
                Some(Conn { socket, stage: Stage::Client(client) }) => {
                    let upstream = self.upstream();
                    if waiting.is_needed_disposal() && client.pins[upstream].tie == Tie::Known {
                        // The app server has what is not wanted any more, and is told whenever that can be.
                        kept.push(waiting);
                        continue;
                    }
                    gate.metrics.observe_us(Histogram::QueueWait, now.since(waiting.since).as_micros() as u64);
                    client.pins[upstream].waits_no_longer(waiting.client, gate.relieved);
                    self.refuse(waiting, Refusal::QueueTimeout, socket, client, views, gate);
                }
                _ => gate.metrics.add(Counter::DroppedGoneClient, 1),
            }
        }
        // They are looked at again with whoever is next: the queue is in the order of time, so that its front tells when that is.
        let since = self.waiting.front().map_or(now, |next| next.since);
        for waiting in kept.into_iter().rev() {
            self.waiting_bytes += waiting.cost();
            self.waiting.push_front(Waiting { since, ..waiting });
        }
    }

    /// A message does not go out. What was a view model's beginning takes along what was said to it, up to where it is requested again.
    fn refuse(
        &mut self,
        waiting: Waiting,
        refusal: Refusal,
        socket: &mut Socket,
        client: &mut Client,
        views: &mut Views,
        gate: &mut Gate<'_>,
    ) {
        let upstream = self.upstream();
        let mut opens = waiting.opens.filter(|_| waiting.call == Call::RequestVm);
        // The queue may be long, and every request of it may be refused at once: nothing is looked at behind the client's last message.
        let (mut others, mut index) = (client.pins[upstream].waiting, 0);
        let is_known = client.pins[upstream].tie == Tie::Known;
        while opens.is_some()
            && others > 0
            && let Some(other) = self.waiting.get_mut(index)
        {
            others -= u16::from(other.client == waiting.client);
            // A disposal may be of more than this one: of what is inside it, and the app server has.
            if !other.goes_with(&waiting) || is_known && other.is_needed_disposal() {
                index += 1;
                continue;
            }
            if other.call == Call::RequestVm {
                // One that began anew behind a disposal has a beginning of its own.
                other.opens = other.opens.or_else(|| opens.take());
                break;
            }
            let Some(lost) = self.waiting.remove(index) else { break };
            self.waiting_bytes -= lost.cost();
            client.pins[upstream].waits_no_longer(lost.client, gate.relieved);
            refuse(&lost, refusal, socket, client, views, upstream, gate);
        }
        let waiting = if waiting.call == Call::RequestVm { Waiting { opens, ..waiting } } else { waiting };
        refuse(&waiting, refusal, socket, client, views, upstream, gate);
    }

    /// Takes the connection out; None where it is not up.
    pub(super) fn take_link(&mut self) -> Option<Link> {
        match core::mem::take(&mut self.state) {
            State::Up(link) => Some(link),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Its connection is over; until the kernel has let go of the socket it stays the lane's.
    pub(super) fn over(&mut self, now: Time, socket: Socket) {
        self.state = State::Over(socket);
        self.next_time = super::socket::linger_until(now);
    }

    /// The socket that the kernel has not let go of, if its connection is over.
    pub(super) fn old_socket(&mut self) -> Option<&mut Socket> {
        if let State::Over(socket) = &mut self.state { Some(socket) } else { None }
    }

    /// The control plane is to dial it again, once it can.
    pub(super) fn is_lost(&mut self) {
        self.unreported = true;
    }
}

/// A context for who is gone and was not kept: an Observer wants more of it than an app server (contract 7.2).
fn nobody(protocol: Protocol) -> Tail<'static> {
    Tail::Client { connection: b"0 0.0.0.0 0.0.0.0 0 0", headers: no_headers(protocol) }
}

/// Headers of a context that has none.
fn no_headers(protocol: Protocol) -> &'static [u8] {
    match protocol {
        Protocol::Json => {
            b",\\\"HttpRequestHeaders\\\":{\\\"AllHeaders\\\":{},\\\"UserAgent\\\":null},\\\"Items\\\":{}}"
        }
        Protocol::MessagePack => b",\"HttpRequestHeaders\":{\"AllHeaders\":{},\"UserAgent\":null},\"Items\":{}}",
    }
}

pub(super) fn refuse(
    waiting: &Waiting,
    refusal: Refusal,
    socket: &mut Socket,
    client: &mut Client,
    views: &mut Views,
    upstream: usize,
    gate: &mut Gate<'_>,
) {
    match (waiting.call, waiting.opens) {
        // As if it had not been asked for: the next request of it is decided anew.
        (Call::RequestVm, Some(opening)) => views.cancel(&mut client.views, opening),
        // Nobody knows it under the client's present id, and nobody will be told of it.
        (Call::DisposeVm, opens) => {
            if let Some(last) = opens {
                views.left(&mut client.views, upstream, &plain(waiting.vm_id()), last);
            }
            return gate.metrics.add(Counter::DroppedDisposal, 1);
        }
        _ => {}
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
    pub(super) fn lane_key(&self, index: LaneIndex) -> LaneKey {
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
        lane.flight.clear();
        if let Some(window) = upstream.window {
            lane.flight.prepare(window.messages);
        }
        lane.next_time = now;
        self.metrics.add(Counter::LaneConnected, 1);
        if let Some(suppressed) = self.quiet.lane_up.admit(now) {
            info!(lane = %name, upstream = upstream.name, "lane up{suppressed}");
        }
        // Bytes behind the handshake's answer were read by the control plane: they come first.
        if !early.is_empty() {
            self.on_lane_bytes(now, index, Input::Bytes(&mut early));
        }
    }

    pub(super) fn on_lane_bytes(&mut self, now: Time, index: LaneIndex, mut input: Input<'_>) {
        let Shard { io, conns, lanes, hubs, frames, pool, dirty, random, metrics, settings, shards, failed, .. } = self;
        let lane = &mut lanes[index.0 as usize];
        let (place, hub, received) = (lane.place, lane.hub, &mut lane.received);
        let (flight, told) = (&mut lane.flight, &mut lane.told);
        let addressed = match settings.upstreams.of(place).hub_scope {
            HubScope::Lane => usize::from(index.0)..usize::from(index.0) + 1,
            HubScope::Node => lane.siblings.clone(),
        };
        let State::Up(Link { socket, session }) = &mut lane.state else { return };
        let bytes = input.bytes(io);
        let deliver = Deliver::new(addressed, place, &mut hubs[hub], conns, frames, dirty, metrics, settings);
        let mut side = LaneSide { now, socket, random, received, flight, told, failed, shards, deliver };
        let ended = session.on_bytes(now, bytes, pool, &mut side);
        self.tell_failures();
        if let Err(end) = ended {
            self.lane_ends(now, index, end);
        }
    }

    /// Tells clients what an app server failed at.
    pub(super) fn tell_failures(&mut self) {
        let Shard { conns, views, frames, dirty, random, clock, metrics, settings, failed, relieved, .. } = self;
        let mut gate = Gate { settings, frames, dirty, random, clock, metrics, relieved };
        for Failure { client: key, upstream, vm_id, refusal, forgets, error } in failed.drain(..) {
            let Some(Conn { socket, stage: Stage::Client(client) }) = conns.get_mut(key) else { continue };
            gate.metrics.add(Counter::refusal(refusal.label()), 1);
            if !gate.settings.upstreams.routes.is_answering(upstream) {
                // What a mirror makes of it is nothing to the client.
                if forgets != Forgets::Nothing {
                    views.spare(client.views, upstream, &plain(&vm_id));
                }
                continue;
            }
            // Nobody calls a view model by a name that is too long to be kept.
            if vm_id.is_empty() {
                continue;
            }
            match forgets {
                Forgets::Nothing => {}
                Forgets::Opened(opening) => views.cancel(&mut client.views, opening),
                Forgets::Named => views.forget(&mut client.views, &plain(&vm_id)),
            }
            if socket.life == Life::Open {
                let form = client.session.form();
                write_message(socket, client.carried.as_deref_mut(), form, &mut gate, |out| {
                    write_failure(form, &vm_id, refusal, &error, out);
                });
            }
        }
    }

    /// Timers, reports and queues of all lanes.
    pub(super) fn on_lanes(&mut self, now: Time) {
        self.hurry_lanes(now);
        self.share_replays();
        let up = upstreams_of(&self.lanes, Lane::is_up);
        for index in 0..self.lanes.len() {
            if up.has(self.lanes[index].upstream()) {
                self.move_waiting(LaneIndex(index as u16));
            }
            let name = self.lane_key(LaneIndex(index as u16));
            let Shard {
                conns, lanes, views, frames, dirty, random, clock, metrics, settings, control, relieved, ..
            } = self;
            let lane = &mut lanes[index];
            let mut gate = Gate { settings, frames, dirty, random, clock, metrics, relieved };
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
            if !lane.waiting.is_empty() || !lane.notices.is_empty() || !lane.replays.is_empty() {
                lane.drain(now, conns, views, &mut gate);
                lane.expire(now, conns, views, &mut gate);
                lane.let_go();
            }
            lane.settle_told(now, false, &gate);
            if lost.is_none() && lane.stuck_at(settings).is_some_and(|at| now >= at) {
                lost = Some(LaneEnd::Stuck);
            }
            if let Some(end) = lost {
                self.lane_ends(now, LaneIndex(index as u16), end);
            }
        }
        if self.lanes.iter().any(|lane| lane.held) {
            self.hold_notices();
        }
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

    /// Nothing more to tell: the lanes on which everything has been said and answered say goodbye, or all of them. True when all are
    /// closed.
    pub(super) fn close_lanes(&mut self, now: Time, at_once: bool) -> bool {
        for index in 0..self.lanes.len() {
            let Shard { lanes, frames, dirty, random, clock, metrics, settings, relieved, .. } = self;
            let lane = &mut lanes[index];
            // What nobody acknowledges in time is not waited for: the goodbye itself still has to leave.
            if let State::Up(link) = &lane.state
                && (at_once || link.socket.queue.is_empty() && lane.notices.is_empty() && lane.flight.is_empty())
            {
                let is_said = link.socket.queue.is_empty();
                let gate = Gate { settings, frames, dirty, random, clock, metrics, relieved };
                lane.settle_told(now, is_said, &gate);
                self.lane_ends(now, LaneIndex(index as u16), LaneEnd::Stopping);
            }
        }
        self.lanes.iter().all(|lane| matches!(lane.state, State::Down))
    }
}

/// What pings and the goodbye need: the lane's own socket.
pub(super) struct Pinger<'a> {
    pub(super) socket: &'a mut Socket,
    pub(super) frames: &'a mut FramePool,
    pub(super) dirty: &'a mut Vec<SlotKey>,
    pub(super) random: &'a mut Random,
}

impl LaneOut for Pinger<'_> {
    fn out<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        self.socket.out(self.frames, self.dirty, write)
    }
    fn mask(&mut self) -> [u8; 4] {
        self.random.mask()
    }
}
