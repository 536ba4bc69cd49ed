//! From the app server to clients: whom a delivery addresses, and its frame, encoded once a form and queued on each of them.
use super::client::keep;
use super::lane::Notice;
use super::socket::{Client, Conn, Life, Socket, Stage};
use super::upstreams::Hub;
use super::{Random, Settings, Shard};
use crate::bus::{Sender, ShardOrder};
use crate::ids::{LanePlace, SlotKey, Time};
use crate::mem::frames::{FramePool, FrameRef};
use crate::mem::slab::Slab;
use crate::metrics::{Counter, Histogram, ShardMetrics, UpstreamCounter};
use crate::proto::dotnetify::response::{self, Delivery, Recipients};
use crate::proto::signalr::{self, Protocol, Span};
use crate::session::fault::Refusal;
use crate::session::flight::{Cargo, Flight};
use crate::session::form::Form;
use crate::session::groups::{Joined, Memberships};
use crate::session::lane::{LaneEnv, LaneNote, LaneOut};
use crate::session::routing::HubScope;
use crate::session::views::Opening;
use crate::sys::Io;
use core::ops::Range;
use std::collections::VecDeque;
use std::sync::Arc;

/// What a lane's session acts on: its own socket, and the shard's clients.
pub(super) struct LaneSide<'a> {
    pub(super) now: Time,
    pub(super) socket: &'a mut Socket,
    pub(super) random: &'a mut Random,
    /// Records that came on the lane.
    pub(super) received: &'a mut u64,
    /// What the app server has not answered.
    pub(super) flight: &'a mut Flight,
    /// The ends of clients among it.
    pub(super) told: &'a mut VecDeque<Notice>,
    /// What it answers with an error.
    pub(super) failed: &'a mut Vec<Failure>,
    /// The way to the other shards, where clients of the same hub may be.
    pub(super) shards: &'a [Sender<ShardOrder>],
    pub(super) deliver: Deliver<'a>,
}

/// An invocation that an app server answered with an error, for its client.
pub(super) struct Failure {
    pub(super) client: SlotKey,
    /// Whose failure it is.
    pub(super) upstream: usize,
    /// Raw JSON string.
    pub(super) vm_id: Vec<u8>,
    pub(super) refusal: Refusal,
    pub(super) forgets: Forgets,
    pub(super) error: String,
}

/// Which view model the app server does not have, then.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Forgets {
    Nothing,
    /// What the request opened, and not what has its name since.
    Opened(Opening),
    Named,
}

/// The clients that an app server addresses.
pub(super) struct Deliver<'a> {
    place: LanePlace,
    protocol: Protocol,
    /// Lanes whose clients are in the hub.
    lanes: Range<usize>,
    hub: &'a mut Hub,
    conns: &'a mut Slab<Conn>,
    frames: &'a mut FramePool,
    dirty: &'a mut Vec<SlotKey>,
    metrics: &'a mut ShardMetrics,
    settings: &'a Settings,
}

impl<'a> Deliver<'a> {
    /// What a record addresses that came on a lane to this place; `lanes` share its hub.
    #[allow(clippy::too_many_arguments)] // The parts of a shard that it needs, each borrowed by itself.
    pub(super) fn new(
        lanes: Range<usize>,
        place: LanePlace,
        hub: &'a mut Hub,
        conns: &'a mut Slab<Conn>,
        frames: &'a mut FramePool,
        dirty: &'a mut Vec<SlotKey>,
        metrics: &'a mut ShardMetrics,
        settings: &'a Settings,
    ) -> Deliver<'a> {
        let protocol = settings.upstreams.of(place).protocol;
        Deliver { place, protocol, lanes, hub, conns, frames, dirty, metrics, settings }
    }
}

impl LaneOut for LaneSide<'_> {
    fn out<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        self.socket.out(self.deliver.frames, self.deliver.dirty, write)
    }

    fn mask(&mut self) -> [u8; 4] {
        self.random.mask()
    }
}

impl LaneEnv for LaneSide<'_> {
    fn note(&mut self, note: LaneNote) {
        let metrics = &mut *self.deliver.metrics;
        match note {
            LaneNote::Ping => metrics.add(Counter::AppPing, 1),
            LaneNote::NotADelivery(_) => metrics.add(Counter::DroppedAppMessage, 1),
            LaneNote::Ignored => metrics.add(Counter::AppOther, 1),
        }
    }

    fn completed(&mut self, number: u64, error: Option<&str>) {
        let metrics = &mut *self.deliver.metrics;
        let mut vm_id = Vec::new();
        let Some(answered) = self.flight.answered(self.now, number, error.map(|_| &mut vm_id)) else {
            return metrics.add(Counter::AppOther, 1);
        };
        metrics.observe_us(Histogram::Answer, self.now.since(answered.at).as_micros() as u64);
        let (client, forgets) = match answered.cargo {
            Cargo::Message { client, opens, .. } => (client, opens.map_or(Forgets::Nothing, Forgets::Opened)),
            Cargo::Replay { client } => (client, Forgets::Named),
            Cargo::Notice => {
                if let Some(Notice { cell: Some(cell), .. }) = self.told.pop_front() {
                    self.deliver.settings.journal.buried(cell);
                }
                return;
            }
        };
        if let Some(error) = error {
            let (upstream, error) = (usize::from(self.deliver.place.upstream.0), error.to_string());
            self.failed.push(Failure { client, upstream, vm_id, refusal: Refusal::Failed, forgets, error });
        }
    }

    fn deliver(&mut self, delivery: &Delivery, record: &[u8]) {
        *self.received += 1;
        let Deliver { place, settings, metrics, .. } = &mut self.deliver;
        if settings.upstreams.routes.is_observer(usize::from(place.upstream.0)) {
            // An Observer never answers (contract 7.2): clients asked it nothing, and it may not say a word to them.
            return metrics.add(Counter::DroppedObserverMessage, 1);
        }
        let kind = match delivery {
            Delivery::Send { .. } => Counter::AppSend,
            Delivery::SendToMany { .. } => Counter::AppSendMany,
            Delivery::SendToUsers { .. } => Counter::AppSendUsers,
            Delivery::SendToGroup { .. } | Delivery::SendToGroupExcept { .. } => Counter::AppGroupSend,
            Delivery::AddToGroup { .. } => Counter::AppGroupAdd,
            Delivery::RemoveFromGroup { .. } => Counter::AppGroupRemove,
            Delivery::ToLane => Counter::AppOther,
        };
        self.deliver.metrics.add(kind, 1);
        self.deliver.metrics.add_upstream(self.deliver.place.upstream, UpstreamCounter::Deliveries, 1);
        self.relay(delivery, record);
        self.deliver.deliver(delivery, record);
    }
}

impl LaneSide<'_> {
    /// With one hub id for the whole node an app server sends what is for many over any lane (contract 3.3): the clients of other
    /// shards are theirs to tell.
    fn relay(&mut self, delivery: &Delivery, record: &[u8]) {
        let Deliver { place, settings, metrics, .. } = &mut self.deliver;
        let is_for_many = matches!(
            delivery,
            Delivery::SendToMany { .. }
                | Delivery::SendToGroup { .. }
                | Delivery::SendToGroupExcept { .. }
                | Delivery::SendToUsers { .. }
        );
        if !is_for_many || self.shards.len() < 2 || settings.upstreams.of(*place).hub_scope == HubScope::Lane {
            return;
        }
        let record: Arc<[u8]> = record.into();
        for (index, shard) in self.shards.iter().enumerate() {
            if index == usize::from(settings.shard.0) {
                continue;
            }
            let is_taken = shard.relay(*place, record.clone());
            let counter = if is_taken { Counter::Relayed } else { Counter::DroppedRelay };
            metrics.add(counter, 1);
        }
    }
}

impl<I: Io> Shard<I> {
    /// What an app server sent for many clients over a lane of another shard.
    pub(super) fn on_relayed(&mut self, place: LanePlace, record: &[u8]) {
        let Shard { conns, lanes, hubs, frames, dirty, metrics, settings, .. } = self;
        let Some(lane) = lanes.iter().find(|lane| lane.place == place) else { return };
        let protocol = settings.upstreams.of(place).protocol;
        let Ok(message) = signalr::parse(protocol, record) else { return };
        let Ok(delivery) = response::parse(protocol, record, &message) else { return };
        let (hub, addressed) = (&mut hubs[lane.hub], lane.siblings.clone());
        Deliver::new(addressed, place, hub, conns, frames, dirty, metrics, settings).deliver(&delivery, record);
    }
}

impl Deliver<'_> {
    fn deliver(&mut self, delivery: &Delivery, record: &[u8]) {
        match *delivery {
            Delivery::Send { to: Recipients::One(id), vm, data } => match self.client_of(id.of(record)) {
                Some(key) => self.send_to_one(key, vm.of(record), data.of(record)),
                None => self.metrics.add(Counter::DroppedUnknownClient, 1),
            },
            Delivery::Send { to, vm, data } | Delivery::SendToMany { to, vm, data } => {
                let mut many = self.many(record, vm, data, Counter::DeliveredMany);
                response::each_recipient(record, to, |id| {
                    match id.and_then(|id| client_of(many.settings, many.conns, many.place, id)) {
                        Some(key) => many.send(key),
                        // Another shard's, which is told as well.
                        None if many.is_shared => {}
                        None => many.metrics.add(Counter::DroppedUnknownClient, 1),
                    }
                });
                many.end();
            }
            Delivery::SendToGroup { group, vm, data } => {
                self.send_to_group(record, group, None, vm, data);
            }
            Delivery::SendToGroupExcept { group, except, vm, data } => {
                self.send_to_group(record, group, except, vm, data);
            }
            Delivery::SendToUsers { users, listed, vm, data } => self.send_to_users(record, users, listed, vm, data),
            Delivery::AddToGroup { group, who } => {
                let name = group.of(record);
                response::each_recipient(record, who, |id| {
                    if let Some((key, memberships)) =
                        find_memberships(self.settings, self.conns, self.place, &self.lanes, id)
                    {
                        if self.hub.groups.join(key, memberships, name) == Joined::TooMany {
                            self.metrics.add(Counter::DroppedGroupJoin, 1);
                        }
                    } else {
                        self.metrics.add(Counter::DroppedUnknownClient, 1);
                    }
                });
            }
            Delivery::RemoveFromGroup { group, who } => {
                let name = group.of(record);
                response::each_recipient(record, who, |id| {
                    if let Some((_, memberships)) =
                        find_memberships(self.settings, self.conns, self.place, &self.lanes, id)
                    {
                        self.hub.groups.leave(memberships, name);
                    }
                });
            }
            // A response to the lane itself should not occur (contract 3.1).
            Delivery::ToLane => self.metrics.add(Counter::DroppedAppMessage, 1),
        }
    }

    fn client_of(&self, id: &[u8]) -> Option<SlotKey> {
        client_of(self.settings, self.conns, self.place, id)
    }

    fn send_to_one(&mut self, key: SlotKey, vm: &[u8], data: &[u8]) {
        let Some((socket, client)) = open_client(self.conns, key, self.place) else {
            return self.metrics.add(Counter::DroppedUnknownClient, 1);
        };
        if client.carried.is_some() {
            let mut many = self.many_of(vm, data, Counter::DeliveredOne);
            many.send(key);
            return many.end();
        }
        let (form, from) = (client.session.form(), self.protocol);
        client.sent = client.sent.wrapping_add(1);
        socket.out(self.frames, self.dirty, |out| write_client(from, form, vm, data, out));
        self.metrics.add(Counter::DeliveredOne, 1);
    }

    fn send_to_group(&mut self, record: &[u8], group: Span, except: Option<Recipients>, vm: Span, data: Span) {
        // Most lists of exceptions hold a single null (contract 3.2): nobody, and nothing is allocated.
        let mut left_out = Vec::new();
        if let Some(except) = except {
            response::each_recipient(record, except, |id| {
                left_out.extend(id.and_then(|id| self.client_of(id)).map(|key| (key.slot, key.generation)));
            });
            left_out.sort_unstable();
        }
        let groups = core::mem::take(&mut self.hub.groups);
        let mut many = self.many(record, vm, data, Counter::DeliveredGroup);
        for key in groups.members(group.of(record)) {
            if left_out.binary_search(&(key.slot, key.generation)).is_err() {
                many.send(key);
            }
        }
        many.end();
        self.hub.groups = groups;
    }

    /// To every client of this lane whose user is listed (contract 3.2); once, however often it is.
    fn send_to_users(&mut self, record: &[u8], users: Option<Span>, listed: Option<Recipients>, vm: Span, data: Span) {
        let mut addressed = Vec::new();
        let list = users.map(Recipients::Many).or(listed);
        if let Some(list) = list {
            response::each_recipient(record, list, |id| {
                addressed.extend(id.into_iter().flat_map(|id| self.hub.users.members(id)));
            });
        }
        addressed.sort_unstable_by_key(|key: &SlotKey| key.slot);
        addressed.dedup();
        let mut many = self.many(record, vm, data, Counter::DeliveredUsers);
        for key in addressed {
            many.send(key);
        }
        many.end();
    }

    fn many<'s>(&'s mut self, record: &'s [u8], vm: Span, data: Span, kind: Counter) -> Many<'s> {
        self.many_of(vm.of(record), data.of(record), kind)
    }

    fn many_of<'s>(&'s mut self, vm: &'s [u8], data: &'s [u8], kind: Counter) -> Many<'s> {
        let Deliver { conns, frames, dirty, metrics, settings, protocol, place, .. } = self;
        let is_shared = settings.upstreams.of(*place).hub_scope == HubScope::Node;
        Many {
            place: *place,
            vm,
            data,
            kind,
            encoded: [const { None }; Form::COUNT],
            is_shared,
            protocol: *protocol,
            conns,
            frames,
            dirty,
            metrics,
            settings,
        }
    }
}

/// One message for many clients: encoded once for each form that one of them has.
struct Many<'a> {
    /// Whose app server sends it.
    place: LanePlace,
    vm: &'a [u8],
    data: &'a [u8],
    kind: Counter,
    encoded: [Option<FrameRef>; Form::COUNT],
    /// Who is not this shard's may be another's, which is told as well.
    is_shared: bool,
    /// Of the lane.
    protocol: Protocol,
    conns: &'a mut Slab<Conn>,
    frames: &'a mut FramePool,
    dirty: &'a mut Vec<SlotKey>,
    metrics: &'a mut ShardMetrics,
    settings: &'a Settings,
}

impl Many<'_> {
    fn send(&mut self, key: SlotKey) {
        let Some((socket, client)) = open_client(self.conns, key, self.place) else {
            return self.metrics.add(Counter::DroppedUnknownClient, 1);
        };
        let form = client.session.form();
        let frame = match &mut self.encoded[form.index()] {
            Some(frame) => frame,
            none => {
                let frame = self.frames.create();
                let out = self.frames.bytes_mut(&frame);
                write_client(self.protocol, form, self.vm, self.data, out);
                none.insert(frame)
            }
        };
        self.frames.share(frame, &mut socket.queue);
        socket.mark(self.dirty);
        client.sent = client.sent.wrapping_add(1);
        if let Some(outbound) = client.carried.as_mut().and_then(|carried| carried.outbound.as_mut()) {
            keep(outbound, frame, self.frames, self.settings, self.metrics);
        }
        self.metrics.add(self.kind, 1);
    }

    fn end(self) {
        for frame in self.encoded.into_iter().flatten() {
            self.frames.release(frame);
        }
    }
}

fn write_client(from: Protocol, form: Form, vm: &[u8], data: &[u8], out: &mut Vec<u8>) {
    form.write(out, |out| response::write_client(from, form.protocol, vm, data, out));
}

/// The client that an app server at this place means with an origin id, if it is one of this shard's and has not got another since.
fn client_of(settings: &Settings, conns: &Slab<Conn>, place: LanePlace, id: &[u8]) -> Option<SlotKey> {
    let address = settings.origin_key.open(id).filter(|address| address.shard == settings.shard)?;
    let Conn { socket, stage: Stage::Client(client) } = conns.at(address.slot)? else { return None };
    (client.pins[usize::from(place.upstream.0)].serial == address.serial).then_some(socket.key)
}

/// A client that an app server at this place may send messages. Its user's id makes one known from its first request on, but in front
/// of the handshake's answer a message would break the handshake, and the client's protocol is not known yet. To an upstream that has
/// seen nothing of it its id means nothing, wherever the app server has it from.
fn open_client(conns: &mut Slab<Conn>, key: SlotKey, place: LanePlace) -> Option<(&mut Socket, &mut Client)> {
    let Conn { socket, stage: Stage::Client(client) } = conns.get_mut(key)? else { return None };
    let is_known = client.pins[usize::from(place.upstream.0)].lane.is_some();
    (is_known && socket.life == Life::Open && client.session.is_open()).then_some((socket, client))
}

/// The group list of a client pinned to one of these lanes. An app server that names another lane's client gets nothing: that list
/// leads into another hub's table.
fn find_memberships<'a>(
    settings: &Settings,
    conns: &'a mut Slab<Conn>,
    place: LanePlace,
    lanes: &Range<usize>,
    id: Option<&[u8]>,
) -> Option<(SlotKey, &'a mut Memberships)> {
    let key = client_of(settings, conns, place, id?)?;
    let Stage::Client(client) = &mut conns.get_mut(key)?.stage else { return None };
    let pin = &mut client.pins[usize::from(place.upstream.0)];
    pin.lane.filter(|lane| lanes.contains(&usize::from(lane.0)))?;
    Some((key, &mut pin.memberships))
}
