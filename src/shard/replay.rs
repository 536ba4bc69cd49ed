//! What the loss of a lane means to its clients: a new id on another lane, and everything they have requested again (contract 6.3).
//!
//! ```text
//! lane lost -> each of its clients: old id to be given up, new id, another lane, messages that wait move with it
//!           -> view models requested again, in order, a few at a time; first those of clients that have something to say
//!           -> behind all of them, the ends of the old ids
//! ```
//! Whether the app server has lost one connection or everything makes no difference. What was on the lane and not acknowledged is not
//! repeated, for it may have been done: what the view model is then, its new state says.
use super::delivery::Failure;
use super::forwarding::choose_lane;
use super::lane::{Gate, Lane, Notice, Pinger, refuse};
use super::pause::Pause;
use super::socket::{Client, Conn, Stage, Tie};
use super::upstreams::Hub;
use super::{Settings, Shard};
use crate::ids::{LaneIndex, LaneKey, OriginId, Serial, SlotKey, Time, UpstreamIndex};
use crate::limits::{REPLAYS_IN_FLIGHT_MAX, TELL_AGAIN_MS, TOLD_KEPT_MS};
use crate::metrics::Counter;
use crate::session::fault::{End, LaneEnd, Refusal};
use crate::session::flight::Cargo;
use crate::session::views::Views;
use crate::sys::Io;
use core::time::Duration;
use std::collections::VecDeque;
use tracing::warn;

impl<I: Io> Shard<I> {
    /// A lane is lost, or closed because this node stops.
    pub(super) fn lane_ends(&mut self, now: Time, index: LaneIndex, end: LaneEnd) {
        if end == LaneEnd::Stuck {
            self.say_ends(now, index);
        }
        let lane = &mut self.lanes[usize::from(index.0)];
        let Some(mut link) = lane.take_link() else {
            // Already lost: the peer's end after ours. The socket stays the lane's until the kernel has let go of it (`join`).
            if let Some(socket) = lane.old_socket() {
                socket.end(&mut self.io, &mut self.frames, &mut self.metrics);
            }
            return;
        };
        let stopping = end == LaneEnd::Stopping;
        if stopping || matches!(end, LaneEnd::ServerClose { .. } | LaneEnd::CloseFrame(_) | LaneEnd::Stuck) {
            let Shard { frames, dirty, random, pool, .. } = self;
            link.session.close(pool, &mut Pinger { socket: &mut link.socket, frames, dirty, random });
            link.socket.drain(&mut self.io, &mut self.dirty);
        } else {
            link.socket.end(&mut self.io, &mut self.frames, &mut self.metrics);
        }
        let key = link.socket.key;
        let lane = &mut self.lanes[usize::from(index.0)];
        lane.over(now, link.socket);
        if !stopping {
            lane.is_lost();
            self.metrics.add(Counter::LaneLost, 1);
            if end == LaneEnd::Stuck {
                self.metrics.add(Counter::LaneStuck, 1);
                self.give_up_oldest(index);
            }
            self.move_clients(now, index, &end);
            self.move_waiting(index);
        }
        self.join(now, key);
    }

    /// An app server that is stuck will work on what it has of this lane, some day: behind that it is to find the ends of those who go.
    fn say_ends(&mut self, now: Time, index: LaneIndex) {
        let Shard { conns, lanes, frames, dirty, random, clock, metrics, settings, relieved, .. } = self;
        let lane = &mut lanes[usize::from(index.0)];
        let mut gate = Gate { settings, frames, dirty, random, clock, metrics, relieved };
        for slot in 0..conns.slots() {
            let Some(Conn { socket, stage: Stage::Client(client) }) = conns.at(slot) else { continue };
            let pin = &client.pins[lane.upstream()];
            if pin.lane == Some(index) && pin.tie == Tie::Known {
                let origin = client.origin_at(gate.settings, socket.key.slot, lane.upstream());
                lane.say_end(now, &origin, &mut gate);
            }
        }
    }

    /// Ends that are told again are due.
    pub(super) fn tell_again(&mut self, now: Time) {
        let Shard { lanes, frames, dirty, random, clock, metrics, settings, relieved, again, .. } = self;
        let mut gate = Gate { settings, frames, dirty, random, clock, metrics, relieved };
        for queue in again.iter_mut() {
            while let Some(Again { lane, notice, .. }) = queue.pop_front_if(|again| now >= again.at) {
                let other = on_way(lanes, lane);
                lanes[other].notice(notice, &mut gate);
            }
        }
    }

    /// What a stuck app server works on would make the next lane stick as well, if it is the request of a view model: that one is not
    /// requested again, and its client is told.
    fn give_up_oldest(&mut self, index: LaneIndex) {
        let lane = &self.lanes[usize::from(index.0)];
        let Some((cargo, vm_id)) = lane.flight.oldest() else { return };
        let client = match cargo {
            Cargo::Message { client, is_request: true, .. } | Cargo::Replay { client } => client,
            Cargo::Message { .. } | Cargo::Notice => return,
        };
        let (upstream, error) = (lane.upstream(), Refusal::Stuck.message().to_string());
        self.failed.push(Failure { client, upstream, vm_id, refusal: Refusal::Stuck, forgets: true, error });
        self.tell_failures();
    }

    /// The clients of a lane that is lost get new ids, and other lanes as far as there are any.
    fn move_clients(&mut self, now: Time, index: LaneIndex, end: &LaneEnd) {
        let own = usize::from(index.0);
        let upstream = self.lanes[own].upstream();
        let Shard {
            conns,
            lanes,
            hubs,
            views,
            frames,
            dirty,
            random,
            clock,
            metrics,
            settings,
            ending,
            relieved,
            serials,
            again,
            ..
        } = self;
        let settings = &*settings;
        let routes = &settings.upstreams.routes;
        let mut gate = Gate { settings, frames, dirty, random, clock, metrics, relieved };
        // What was not acknowledged may have been done, or not. The app server disposes of the view models of whoever spoke last on the
        // lane (contract 4.4): where messages are dealt one by one, that may be a client of another lane.
        let mut strangers: Vec<SlotKey> = lanes[own].last.take().into_iter().collect();
        for cargo in lanes[own].flight.unanswered() {
            match cargo {
                Cargo::Message { client, .. } => {
                    gate.metrics.add(Counter::UnknownFates, 1);
                    strangers.push(client);
                }
                Cargo::Replay { client } => strangers.push(client),
                Cargo::Notice => {}
            }
        }
        lanes[own].flight.clear();
        strangers.sort_unstable_by_key(|key| (key.slot, key.generation));
        strangers.dedup();
        let silence = Duration::from_millis(TOLD_KEPT_MS);
        let other = on_way(lanes, own);
        let is_acknowledged = settings.upstreams.get(upstream).window.is_some();
        for notice in core::mem::take(&mut lanes[own].told) {
            if is_acknowledged || notice.at.after(silence) > now {
                repeat(again, now, own, notice.origin);
                lanes[other].notice(notice, &mut gate);
            } else {
                gate.settled(Some(notice));
            }
        }
        let (mut moved, mut closed) = (0u32, 0u32);
        let slots = if routes.is_observer(upstream) { 0 } else { conns.slots() };
        for slot in 0..slots {
            let Some(Conn { socket, stage: Stage::Client(client) }) = conns.at_mut(slot) else { continue };
            let (key, pin) = (socket.key, client.pins[upstream]);
            let is_own = pin.lane == Some(index);
            let place = (key.slot, key.generation);
            let has_fate = strangers.binary_search_by_key(&place, |key| (key.slot, key.generation)).is_ok();
            if !is_own && !has_fate {
                continue;
            }
            if pin.tie == Tie::Known && (has_fate || !is_acknowledged) {
                repeat(again, now, own, client.origin_at(settings, slot, upstream));
            }
            match pin.tie {
                Tie::Known if routes.is_answering(upstream) && !views.is_replayable(client.views, upstream) => {
                    // Its end is told upstream when it leaves.
                    ending.push((key, End::LaneLost));
                    gate.metrics.add(Counter::MovedClosed, 1);
                    closed += 1;
                }
                Tie::Known => {
                    let to = if is_own { lane_for(lanes, settings, own) } else { pin_lane(client, upstream, own) };
                    let notice = gate.bury(lanes[own].place, key, &pin, &client.origin);
                    lanes[other].notice(notice, &mut gate);
                    renew(key, client, upstream, to, serials, views, lanes, hubs, &mut gate);
                    moved += 1;
                }
                // It has not come to be known here: it goes on where it can.
                Tie::Owed if is_own => {
                    let to = lane_for(lanes, settings, own);
                    client.pins[upstream].repin(key, Some(to), client.user.as_deref(), lanes, hubs);
                    lanes[to].replays.push_back(key);
                }
                Tie::Owed | Tie::Unknown => {}
            }
        }
        lanes[own].replays.retain(|key| {
            conns.get(*key).is_some_and(
                |conn| matches!(&conn.stage, Stage::Client(client) if client.pins[upstream].lane == Some(index)),
            )
        });
        let name = settings.upstreams.get(upstream).name.as_str();
        warn!(
            lane = %LaneKey { shard: settings.shard, index }, upstream = name, clients = moved, asked_to_reconnect = closed,
            "lane lost: {end}; its clients go on over others, as soon as there are any"
        );
    }

    /// What waits in front of a lane that is down goes where its clients have gone, or can go: to a lane that is up, unless they are
    /// known behind the first. Else who was dealt to a url that is down would wait there as long as others do, whatever comes up
    /// meanwhile.
    pub(super) fn move_waiting(&mut self, index: LaneIndex) {
        let Shard { conns, lanes, hubs, views, frames, dirty, random, clock, metrics, settings, relieved, .. } = self;
        let own = usize::from(index.0);
        let upstream = lanes[own].upstream();
        if lanes[own].is_up()
            || lanes[own].waiting() == 0
            || !lanes.iter().any(|lane| lane.upstream() == upstream && lane.is_up())
        {
            return;
        }
        let mut gate = Gate { settings, frames, dirty, random, clock, metrics, relieved };
        for waiting in lanes[own].take_waiting() {
            let Some(Conn { socket, stage: Stage::Client(client) }) = conns.get_mut(waiting.client) else {
                gate.metrics.add(Counter::DroppedGoneClient, 1);
                continue;
            };
            let pin = &mut client.pins[upstream];
            if pin.lane == Some(index) && pin.tie != Tie::Known {
                let chosen = choose_lane(lanes, settings, upstream);
                pin.repin(socket.key, Some(chosen), client.user.as_deref(), lanes, hubs);
                if pin.tie == Tie::Owed {
                    lanes[chosen].replays.push_back(socket.key);
                }
            }
            let lane = pin.lane.map_or(own, |lane| usize::from(lane.0));
            if let Err(waiting) = lanes[lane].wait(waiting, settings.lane_queue_bytes_max) {
                client.pins[upstream].waits_no_longer(waiting.client, gate.relieved);
                refuse(&waiting, Refusal::QueueFull, socket, client, views, upstream, &mut gate);
            }
        }
    }

    /// Lanes that are up take clients from those that are down, as many as they can serve at once.
    pub(super) fn share_replays(&mut self) {
        if self.lanes.iter().all(|lane| lane.replays.is_empty()) {
            return;
        }
        let Shard { conns, lanes, hubs, .. } = self;
        for taker in 0..lanes.len() {
            let upstream = lanes[taker].upstream();
            if !lanes[taker].is_up() {
                continue;
            }
            for giver in 0..lanes.len() {
                if lanes[giver].upstream() != upstream || lanes[giver].is_up() {
                    continue;
                }
                while lanes[taker].replays.len() < REPLAYS_IN_FLIGHT_MAX as usize
                    && let Some(key) = lanes[giver].replays.pop_front()
                {
                    let Some(Conn { stage: Stage::Client(client), .. }) = conns.get_mut(key) else { continue };
                    let pin = &mut client.pins[upstream];
                    // Whose messages wait goes with them (`move_waiting`).
                    if pin.tie == Tie::Owed && pin.lane == Some(lanes[giver].index) && pin.waiting == 0 {
                        pin.repin(key, Some(taker), client.user.as_deref(), lanes, hubs);
                        lanes[taker].replays.push_back(key);
                    }
                }
            }
        }
        self.hold_notices();
    }

    /// Ends of old ids wait until everybody who is to be known by a new one is: a view model that is shared keeps its state as long as
    /// somebody has it (contract 6.3).
    pub(super) fn hold_notices(&mut self) {
        for lane in 0..self.lanes.len() {
            let upstream = self.lanes[lane].upstream();
            let mut others = self.lanes.iter().filter(|other| other.upstream() == upstream);
            self.lanes[lane].held = others.any(|other| !other.replays.is_empty());
        }
    }

    /// Clients that were read no further because too much of them waited.
    pub(super) fn relieve(&mut self, now: Time) {
        while let Some(key) = self.relieved.pop() {
            self.read_on(now, key, Pause::Lane);
        }
    }
}

/// Where a client of this lane goes on: on one that is up, or on the same one some day, where what it has said waits.
fn lane_for(lanes: &[Lane], settings: &Settings, lost: usize) -> usize {
    let chosen = choose_lane(lanes, settings, lanes[lost].upstream());
    if lanes[chosen].is_up() { chosen } else { lost }
}

/// The lane that a client has, or this one.
fn pin_lane(client: &Client, upstream: usize, otherwise: usize) -> usize {
    client.pins[upstream].lane.map_or(otherwise, |lane| usize::from(lane.0))
}

/// The end of an id that is told again.
pub(super) struct Again {
    at: Time,
    /// The lane that was lost.
    lane: usize,
    notice: Notice,
}

/// Those that are due the same time after the loss of their lane stand in one queue, in order.
pub(super) type AgainQueues = [VecDeque<Again>; TELL_AGAIN_MS.len()];

fn repeat(queues: &mut AgainQueues, now: Time, lane: usize, origin: OriginId) {
    for (queue, ms) in queues.iter_mut().zip(TELL_AGAIN_MS) {
        // The journal has it from the first time.
        let notice = Notice { origin, at: now, hub_id: None, cell: None };
        queue.push_back(Again { at: now.after(Duration::from_millis(ms)), lane, notice });
    }
}

/// A lane to where this one leads, itself if no other is up.
fn on_way(lanes: &[Lane], lane: usize) -> usize {
    lanes[lane].siblings.clone().find(|other| lanes[*other].is_up()).unwrap_or(lane)
}

/// A client is known at an upstream by a new id from now on, on this lane: what the old one is bound to is dead (contract 3.3, 4.4).
#[allow(clippy::too_many_arguments)] // The parts of a shard that it needs, each borrowed by itself.
fn renew(
    key: SlotKey,
    client: &mut Client,
    upstream: usize,
    to: usize,
    serials: &mut Serial,
    views: &Views,
    lanes: &mut [Lane],
    hubs: &mut [Hub],
    gate: &mut Gate<'_>,
) {
    let settings = gate.settings;
    let old = client.pins[upstream];
    let serial = serials.take();
    settings.journal.gone(UpstreamIndex(upstream as u8), key.slot);
    // An Observer is to know it by the id that the app server knows which answers (contract 7.2).
    let routes = &settings.upstreams.routes;
    for observer in 0..client.pins.len() {
        let pin = client.pins[observer];
        if !routes.is_answering(upstream) || !routes.is_observer(observer) || pin.serial != old.serial {
            continue;
        }
        if let (Tie::Known, Some(lane)) = (pin.tie, pin.lane) {
            let hub_id = old.lane.and_then(|lane| lanes[usize::from(lane.0)].hub_id().copied());
            let lane = &mut lanes[usize::from(lane.0)];
            let notice = gate.bury(lane.place, key, &pin, &client.origin);
            settings.journal.gone(UpstreamIndex(observer as u8), key.slot);
            lane.notice(Notice { hub_id, ..notice }, gate);
        }
        client.pins[observer].renew(serial);
    }
    let Client { pins, user, views: list, .. } = client;
    let pin = &mut pins[upstream];
    pin.renew(serial);
    pin.repin(key, Some(to), user.as_deref(), lanes, hubs);
    if views.requested_from(*list, upstream).next().is_some() {
        pin.tie = Tie::Owed;
        lanes[to].replays.push_back(key);
        gate.metrics.add(Counter::MovedReplay, 1);
    } else {
        gate.metrics.add(Counter::MovedIdle, 1);
    }
}
