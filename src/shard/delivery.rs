//! From the app server to clients: whom a delivery addresses, and its frame, encoded once and queued on each of them.
use super::socket::{Conn, Life, Socket, Stage};
use super::{Random, Settings};
use crate::ids::{LaneIndex, SlotKey};
use crate::mem::frames::FramePool;
use crate::mem::slab::Slab;
use crate::metrics::{Counter, ShardMetrics};
use crate::proto::dotnetify::response::{self, Delivery, Recipients};
use crate::proto::signalr::{Protocol, Span};
use crate::proto::ws::Opcode;
use crate::proto::ws::frame::write_frame;
use crate::session::groups::{Groups, Joined};
use crate::session::lane::{LaneEnv, LaneNote, LaneOut};

/// What a lane's session acts on: its own socket, its groups, and the shard's clients.
pub(super) struct LaneSide<'a> {
    pub(super) socket: &'a mut Socket,
    /// Which lane it is: its groups are for clients pinned to it.
    pub(super) index: LaneIndex,
    pub(super) groups: &'a mut Groups,
    pub(super) conns: &'a mut Slab<Conn>,
    pub(super) frames: &'a mut FramePool,
    pub(super) dirty: &'a mut Vec<SlotKey>,
    pub(super) random: &'a mut Random,
    pub(super) metrics: &'a mut ShardMetrics,
    pub(super) settings: &'a Settings,
}

impl LaneOut for LaneSide<'_> {
    fn out<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        self.socket.out(self.frames, self.dirty, write)
    }

    fn mask(&mut self) -> [u8; 4] {
        self.random.mask()
    }
}

impl LaneEnv for LaneSide<'_> {
    fn note(&mut self, note: LaneNote) {
        match note {
            LaneNote::Ping => self.metrics.add(Counter::AppPing, 1),
            LaneNote::NotADelivery(_) => self.metrics.add(Counter::DroppedAppMessage, 1),
            LaneNote::Ignored => self.metrics.add(Counter::AppOther, 1),
        }
    }

    fn deliver(&mut self, delivery: &Delivery, record: &[u8]) {
        let kind = match delivery {
            Delivery::Send { .. } => Counter::AppSend,
            Delivery::SendToMany { .. } => Counter::AppSendMany,
            Delivery::SendToUsers { .. } => Counter::AppSendUsers,
            Delivery::SendToGroup { .. } | Delivery::SendToGroupExcept { .. } => Counter::AppGroupSend,
            Delivery::AddToGroup { .. } => Counter::AppGroupAdd,
            Delivery::RemoveFromGroup { .. } => Counter::AppGroupRemove,
            Delivery::ToLane => Counter::AppOther,
        };
        self.metrics.add(kind, 1);
        match *delivery {
            Delivery::Send { to: Recipients::One(id), vm, data } => match client_of(self.settings, id.of(record)) {
                Some(key) => self.send_to_one(key, vm.of(record), data.of(record)),
                None => self.metrics.add(Counter::DroppedUnknownClient, 1),
            },
            Delivery::Send { to, vm, data } | Delivery::SendToMany { to, vm, data } => {
                let frame = self.encode(record, vm, data);
                response::each_recipient(record, to, |id| match id.and_then(|id| client_of(self.settings, id)) {
                    Some(key) => self.share(&frame, key, Counter::DeliveredMany),
                    None => self.metrics.add(Counter::DroppedUnknownClient, 1),
                });
                self.frames.release(frame);
            }
            Delivery::SendToGroup { group, vm, data } => {
                self.send_to_group(record, group, None, vm, data);
            }
            Delivery::SendToGroupExcept { group, except, vm, data } => {
                self.send_to_group(record, group, except, vm, data);
            }
            // Nobody is authenticated here yet, so no user id matches any client.
            Delivery::SendToUsers { .. } => self.metrics.add(Counter::DroppedUsers, 1),
            Delivery::AddToGroup { group, who } => {
                let name = group.of(record);
                response::each_recipient(record, who, |id| {
                    if let Some((key, memberships)) = find_memberships(self.settings, self.conns, self.index, id) {
                        if self.groups.join(key, memberships, name) == Joined::TooMany {
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
                    if let Some((_, memberships)) = find_memberships(self.settings, self.conns, self.index, id) {
                        self.groups.leave(memberships, name);
                    }
                });
            }
            // A response to the lane itself should not occur (contract 3.1).
            Delivery::ToLane => self.metrics.add(Counter::DroppedAppMessage, 1),
        }
    }
}

impl LaneSide<'_> {
    fn encode(&mut self, record: &[u8], vm: Span, data: Span) -> crate::mem::frames::FrameRef {
        let frame = self.frames.create();
        write_client_frame(self.frames.bytes_mut(&frame), vm.of(record), data.of(record));
        frame
    }

    fn send_to_one(&mut self, key: SlotKey, vm: &[u8], data: &[u8]) {
        let Some(socket) = client_socket(self.conns, key) else {
            return self.metrics.add(Counter::DroppedUnknownClient, 1);
        };
        socket.out(self.frames, self.dirty, |out| write_client_frame(out, vm, data));
        self.metrics.add(Counter::DeliveredOne, 1);
    }

    fn send_to_group(&mut self, record: &[u8], group: Span, except: Option<Recipients>, vm: Span, data: Span) {
        let frame = self.encode(record, vm, data);
        // Most lists of exceptions hold a single null (contract 3.2): nobody, and nothing is allocated.
        let mut left_out = Vec::new();
        if let Some(except) = except {
            response::each_recipient(record, except, |id| {
                left_out.extend(id.and_then(|id| client_of(self.settings, id)).map(|key| (key.slot, key.generation)));
            });
            left_out.sort_unstable();
        }
        let LaneSide { groups, conns, frames, dirty, metrics, .. } = self;
        for key in groups.members(group.of(record)) {
            if left_out.binary_search(&(key.slot, key.generation)).is_err() {
                share(&frame, key, Counter::DeliveredGroup, conns, frames, dirty, metrics);
            }
        }
        self.frames.release(frame);
    }

    fn share(&mut self, frame: &crate::mem::frames::FrameRef, key: SlotKey, kind: Counter) {
        let LaneSide { conns, frames, dirty, metrics, .. } = self;
        share(frame, key, kind, conns, frames, dirty, metrics);
    }
}

// The fields of `LaneSide` that are free while its groups are walked.
fn share(
    frame: &crate::mem::frames::FrameRef,
    key: SlotKey,
    kind: Counter,
    conns: &mut Slab<Conn>,
    frames: &mut FramePool,
    dirty: &mut Vec<SlotKey>,
    metrics: &mut ShardMetrics,
) {
    let Some(socket) = client_socket(conns, key) else {
        return metrics.add(Counter::DroppedUnknownClient, 1);
    };
    frames.share(frame, &mut socket.queue);
    socket.mark(dirty);
    metrics.add(kind, 1);
}

fn write_client_frame(out: &mut Vec<u8>, vm: &[u8], data: &[u8]) {
    write_frame(out, Opcode::Text, None, |out| response::write_client(Protocol::Json, Protocol::Json, vm, data, out));
}

/// The client an origin id stands for, if it is one of this shard's.
fn client_of(settings: &Settings, id: &[u8]) -> Option<SlotKey> {
    let address = settings.origin_key.open(id)?;
    (address.shard == settings.shard).then_some(address.key)
}

fn client_socket(conns: &mut Slab<Conn>, key: SlotKey) -> Option<&mut Socket> {
    match conns.get_mut(key)? {
        Conn { socket, stage: Stage::Client(_) } if socket.life == Life::Open => Some(socket),
        _ => None,
    }
}

/// The group list of a client pinned to this lane. An app server that names another lane's client gets nothing: that list leads
/// into the other lane's table.
fn find_memberships<'a>(
    settings: &Settings,
    conns: &'a mut Slab<Conn>,
    lane: LaneIndex,
    id: Option<&[u8]>,
) -> Option<(SlotKey, &'a mut crate::session::groups::Memberships)> {
    let key = client_of(settings, id?)?;
    match &mut conns.get_mut(key)?.stage {
        Stage::Client(client) if client.lane == lane => Some((key, &mut client.memberships)),
        _ => None,
    }
}
