//! What the loss of a lane means to its clients: a new id on another lane, and everything they have requested again (contract 6.3).
//!
//! ```text
//! lane lost -> each of its clients: old id to be given up, new id, another lane, messages that wait move with it
//!           -> view models requested again, in order, a few at a time; first those of clients that have something to say
//!           -> behind all of them, the ends of the old ids
//! ```
//! Whether the app server has lost one connection or everything makes no difference. What was on the lane and not acknowledged is not
//! repeated, for it may have been done: what the view model is then, its new state says.
use super::delivery::{Failure, Forgets};
use super::forwarding::choose_lane;
use super::lane::{Gate, Lane, Notice, Pinger, refuse};
use super::pause::Pause;
use super::socket::{Client, Conn, Pin, Stage, Tie};
use super::upstreams::Hub;
use super::{Settings, Shard};
use crate::ids::{LaneIndex, LaneKey, OriginId, Serial, SlotKey, Time};
use crate::limits::{AGAIN_MAX, LANE_NOTICES_MAX, REPLAYS_IN_FLIGHT_MAX, SUSPECT_TIMES, TELL_AGAIN_MS, TOLD_KEPT_MS};
use crate::metrics::Counter;
use crate::session::fault::{End, LaneEnd, Refusal};
use crate::session::flight::Cargo;
use crate::session::views::{Upstreams, Views};
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
                self.give_up_oldest(now, index);
            } else {
                self.suspect_oldest(now, index);
            }
            self.move_clients(now, index, &end);
            self.move_waiting(index);
            // Lanes that have their turn behind this one tell nobody before it.
            self.hold_notices();
        }
        self.join(now, key);
    }

    /// An app server that is stuck will work on what it has of this lane, some day: behind that it is to find the ends of those who go,
    /// and of those who have gone meanwhile.
    fn say_ends(&mut self, now: Time, index: LaneIndex) {
        let Shard { conns, lanes, frames, dirty, random, clock, metrics, settings, relieved, .. } = self;
        let own = usize::from(index.0);
        let mut gate = Gate { settings, frames, dirty, random, clock, metrics, relieved };
        lanes[own].say_notices(now, &mut gate);
        let upstream = lanes[own].upstream();
        let strangers = strangers(&lanes[own]);
        for slot in 0..conns.slots() {
            let Some(Conn { socket, stage: Stage::Client(client) }) = conns.at(slot) else { continue };
            let pin = &client.pins[upstream];
            let is_on_it = pin.lane == Some(index) || has_fate(lanes, own, pin, &strangers, socket.key);
            if is_on_it && pin.tie == Tie::Known {
                let origin = client.origin_at(gate.settings, socket.key.slot, upstream);
                lanes[own].say_end(now, &origin, &mut gate);
            }
        }
    }

    /// Ends that are told again are due.
    pub(super) fn tell_again(&mut self, now: Time) {
        let Shard { lanes, frames, dirty, random, clock, metrics, settings, relieved, again, .. } = self;
        let mut gate = Gate { settings, frames, dirty, random, clock, metrics, relieved };
        let mut turn = 0;
        while let Some(again) = again.due(now) {
            again.tell(lanes, &mut turn, &mut gate);
        }
    }

    /// What a stuck app server works on would make the next lane stick as well, if it is the request of a view model, or the end of a
    /// client: the one is not requested again, and its client is told; the other is not told again at once.
    fn give_up_oldest(&mut self, now: Time, index: LaneIndex) {
        let Shard { lanes, frames, dirty, random, clock, metrics, settings, relieved, again, .. } = self;
        let own = usize::from(index.0);
        let lane = &mut lanes[own];
        let Some((cargo, vm_id)) = lane.flight.oldest() else { return };
        let client = match cargo {
            Cargo::Message { client, is_request: true, .. } | Cargo::Replay { client } => client,
            Cargo::Message { .. } => return,
            Cargo::Notice => {
                let Some(mut notice) = lane.told.pop_front() else { return };
                if notice.is_repeated {
                    // It has been heard more than once. In the journal it stays: the next process says it again.
                    return metrics.add(Counter::DroppedNotice, 1);
                }
                // Nobody knows whether it has been heard, for a lane that is dead looks like that as well: later, and not for ever.
                let mut gate = Gate { settings, frames, dirty, random, clock, metrics, relieved };
                return again.tell_later(now, own, &mut notice, lanes, &mut gate);
            }
        };
        let upstream = lane.upstream();
        self.give_up(client, upstream, vm_id, Refusal::Stuck);
    }

    /// What the app server had before it may be why the lane is lost: an app server that dies of it, or drops the lane for it, would do the
    /// same to the next lane, and to everybody there.
    fn suspect_oldest(&mut self, now: Time, index: LaneIndex) {
        let lane = &self.lanes[usize::from(index.0)];
        let Some((Cargo::Message { client, is_request: true, .. } | Cargo::Replay { client }, vm_id)) =
            lane.flight.oldest()
        else {
            return;
        };
        let upstream = lane.upstream();
        if vm_id.is_empty() || !self.suspects.again(now, client, upstream, &vm_id) {
            return;
        }
        if let Some(suppressed) = self.quiet.suspect.admit(now) {
            let name = self.settings.upstreams.get(upstream).name.as_str();
            warn!(
                upstream = name, view_model = %String::from_utf8_lossy(&vm_id), lanes = SUSPECT_TIMES,
                "a view model is not requested again for its client: lane after lane was lost with it{suppressed}"
            );
        }
        self.give_up(client, upstream, vm_id, Refusal::EndsLanes);
    }

    /// A view model is not requested again, and its client is told why.
    fn give_up(&mut self, client: SlotKey, upstream: usize, vm_id: Vec<u8>, refusal: Refusal) {
        let error = refusal.message().to_string();
        self.failed.push(Failure { client, upstream, vm_id, refusal, forgets: Forgets::Named, error });
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
            quiet,
            ..
        } = self;
        let settings = &*settings;
        let routes = &settings.upstreams.routes;
        let mut gate = Gate { settings, frames, dirty, random, clock, metrics, relieved };
        // What was not acknowledged may have been done, or not. The app server disposes of the view models of whoever spoke last on the
        // lane (contract 4.4): where messages are dealt one by one, that may be a client of another lane.
        let strangers = strangers(&lanes[own]);
        let is_message = |cargo: &Cargo| matches!(cargo, Cargo::Message { .. });
        gate.metrics.add(Counter::UnknownFates, lanes[own].flight.unanswered().filter(is_message).count() as u64);
        lanes[own].last = None;
        lanes[own].flight.clear();
        let silence = Duration::from_millis(TOLD_KEPT_MS);
        let mut turn = 0;
        // What is yet to be told here need not wait until this lane is up again.
        for mut notice in core::mem::take(&mut lanes[own].notices) {
            again.tell_later(now, own, &mut notice, lanes, &mut gate);
            let other = on_way(lanes, own, &mut turn);
            lanes[other].notice(notice, &mut gate);
        }
        let is_acknowledged = settings.upstreams.get(upstream).window.is_some();
        // The loss of a mirror is nothing to a client.
        let answers = routes.is_answering(upstream);
        for mut notice in core::mem::take(&mut lanes[own].told) {
            if is_acknowledged || notice.at.after(silence) > now {
                again.tell_later(now, own, &mut notice, lanes, &mut gate);
                let other = on_way(lanes, own, &mut turn);
                lanes[other].notice(notice, &mut gate);
            } else {
                gate.settled(Some(notice));
            }
        }
        let (mut moved, mut closed) = (0u32, 0u32);
        // Who still is owed something here is met below, and listed anew: once, however often the lane is lost.
        lanes[own].replays.clear();
        let slots = if routes.is_observer(upstream) { 0 } else { conns.slots() };
        let mut own_left = lanes[own].clients;
        for slot in 0..slots {
            // Where there are many lanes nobody is far from being the last one.
            if own_left == 0 && strangers.last().is_none_or(|last| last.slot < slot) {
                break;
            }
            let Some(Conn { socket, stage: Stage::Client(client) }) = conns.at_mut(slot) else { continue };
            let (key, pin) = (socket.key, client.pins[upstream]);
            let is_own = pin.lane == Some(index);
            let has_fate = has_fate(lanes, own, &pin, &strangers, key);
            own_left -= u32::from(is_own);
            if !is_own && !has_fate {
                continue;
            }
            let is_overtaken = has_fate || !is_acknowledged;
            match pin.tie {
                Tie::Known if answers && !views.is_replayable(client.views, upstream) => {
                    // Its end is told upstream when it leaves.
                    if is_overtaken {
                        let origin = client.origin_at(settings, slot, upstream);
                        let mut notice = Notice { origin, at: now, hub_id: None, cell: None, is_repeated: false };
                        again.tell_later(now, own, &mut notice, lanes, &mut gate);
                    }
                    ending.push((key, End::LaneLost));
                    gate.metrics.add(Counter::MovedClosed, 1);
                    closed += 1;
                }
                Tie::Known => {
                    let to = if is_own { lane_for(lanes, settings, own) } else { pin_lane(client, upstream, own) };
                    let mut notice = gate.bury(lanes[own].place, key, &pin, &client.origin);
                    if is_overtaken {
                        again.tell_later(now, own, &mut notice, lanes, &mut gate);
                    }
                    let other = on_way(lanes, own, &mut turn);
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
        let name = settings.upstreams.get(upstream).name.as_str();
        let Some(suppressed) = quiet.lane_lost.admit(now) else { return };
        warn!(
            lane = %LaneKey { shard: settings.shard, index }, upstream = name, clients = moved, asked_to_reconnect = closed,
            "lane lost: {end}; its clients go on over others, as soon as there are any{suppressed}"
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
        let mut grown = Vec::new();
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
            } else if !grown.contains(&lane) {
                grown.push(lane);
            }
        }
        for lane in grown {
            lanes[lane].sort_waiting();
        }
    }

    /// Lanes that are up take clients from those that are down, as many as they can serve at once.
    pub(super) fn share_replays(&mut self) {
        if self.lanes.iter().all(|lane| lane.replays.is_empty()) {
            return;
        }
        let Shard { conns, lanes, hubs, .. } = self;
        // Of all of its upstream: they stand together, and each is looked at twice.
        let (mut giver, mut end) = (0, 0);
        for taker in 0..lanes.len() {
            let upstream = lanes[taker].upstream();
            if taker == end {
                end += lanes[taker..].iter().take_while(|lane| lane.upstream() == upstream).count();
                giver = taker;
            }
            if !lanes[taker].is_up() {
                continue;
            }
            while giver < end && lanes[taker].replays.len() < REPLAYS_IN_FLIGHT_MAX as usize {
                let next = if lanes[giver].is_up() { None } else { lanes[giver].replays.pop_front() };
                if let Some(key) = next {
                    let Some(Conn { stage: Stage::Client(client), .. }) = conns.get_mut(key) else { continue };
                    let pin = &mut client.pins[upstream];
                    // Whose messages wait goes with them (`move_waiting`).
                    if pin.tie == Tie::Owed && pin.lane == Some(lanes[giver].index) && pin.waiting == 0 {
                        pin.repin(key, Some(taker), client.user.as_deref(), lanes, hubs);
                        lanes[taker].replays.push_back(key);
                    }
                } else {
                    giver += 1;
                }
            }
        }
        self.hold_notices();
    }

    /// Ends of old ids wait until everybody who is to be known by a new one is: a view model that is shared keeps its state as long as
    /// somebody has it (contract 6.3).
    pub(super) fn hold_notices(&mut self) {
        let held = upstreams_of(&self.lanes, |lane| !lane.replays.is_empty());
        for lane in &mut self.lanes {
            lane.held = held.has(lane.upstream());
        }
    }

    /// Clients that were read no further because too much of them waited.
    pub(super) fn relieve(&mut self, now: Time) {
        while let Some(key) = self.relieved.pop() {
            self.read_on(now, key, Pause::Lane);
        }
    }
}

/// The upstreams of the lanes that are like this.
pub(super) fn upstreams_of(lanes: &[Lane], is_meant: impl Fn(&Lane) -> bool) -> Upstreams {
    let mut upstreams = Upstreams::default();
    lanes.iter().filter(|lane| is_meant(lane)).for_each(|lane| upstreams.add(lane.upstream()));
    upstreams
}

/// Of whom something on a lane was not acknowledged, or came last, in order. They may be clients of other lanes, or gone.
fn strangers(lane: &Lane) -> Vec<SlotKey> {
    let of = |cargo| match cargo {
        Cargo::Message { client, .. } | Cargo::Replay { client } => Some(client),
        Cargo::Notice => None,
    };
    let mut strangers: Vec<SlotKey> = lane.flight.unanswered().filter_map(of).chain(lane.last).collect();
    strangers.sort_unstable_by_key(place_of);
    strangers.dedup();
    strangers
}

/// Is a client one of those, and does it still have to do with the app server of this lane? Who has gone to another url since is known there
/// by another id, of which this one knows nothing.
fn has_fate(lanes: &[Lane], own: usize, pin: &Pin, strangers: &[SlotKey], key: SlotKey) -> bool {
    let is_there = |lane: LaneIndex| lanes[usize::from(lane.0)].place == lanes[own].place;
    strangers.binary_search_by_key(&place_of(&key), place_of).is_ok() && pin.lane.is_some_and(is_there)
}

fn place_of(key: &SlotKey) -> (u32, u32) {
    (key.slot, key.generation)
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

impl Again {
    fn tell(self, lanes: &mut [Lane], turn: &mut usize, gate: &mut Gate<'_>) {
        let other = on_way(lanes, self.lane, turn);
        if lanes[other].notices() < LANE_NOTICES_MAX {
            lanes[other].notice(self.notice, gate);
        } else {
            // What was never told is worth more.
            gate.metrics.add(Counter::DroppedNotice, 1);
        }
    }
}

/// Those that are due the same time after the loss of their lane stand in one queue, in order.
#[derive(Default)]
pub(super) struct AgainQueues([VecDeque<Again>; TELL_AGAIN_MS.len()]);

/// What they take at most.
pub(super) const AGAIN_BYTES: usize = TELL_AGAIN_MS.len() * AGAIN_MAX * size_of::<Again>();

impl AgainQueues {
    /// An id whose end is told, and is to be told again. What there is no room for any more is told at once.
    fn tell_later(&mut self, now: Time, lane: usize, notice: &mut Notice, lanes: &mut [Lane], gate: &mut Gate<'_>) {
        if core::mem::replace(&mut notice.is_repeated, true) {
            return;
        }
        let mut turn = 0;
        for again in self.add(now, lane, notice.origin).into_iter().flatten() {
            again.tell(lanes, &mut turn, gate);
        }
    }

    /// What there is no room for any more comes back.
    fn add(&mut self, now: Time, lane: usize, origin: OriginId) -> [Option<Again>; TELL_AGAIN_MS.len()] {
        core::array::from_fn(|index| {
            let queue = &mut self.0[index];
            let oldest = if queue.len() >= AGAIN_MAX { queue.pop_front() } else { None };
            // The journal has it from the first time.
            let notice = Notice { origin, at: now, hub_id: None, cell: None, is_repeated: true };
            queue.push_back(Again { at: now.after(Duration::from_millis(TELL_AGAIN_MS[index])), lane, notice });
            oldest
        })
    }

    /// One that is due.
    fn due(&mut self, now: Time) -> Option<Again> {
        self.0.iter_mut().find_map(|queue| queue.pop_front_if(|again| now >= again.at))
    }
}

/// A lane to where this one leads, itself if none is up; of several each in its turn.
fn on_way(lanes: &[Lane], lane: usize, turn: &mut usize) -> usize {
    let siblings = lanes[lane].siblings.clone();
    for _ in siblings.clone() {
        *turn = turn.wrapping_add(1);
        let other = siblings.start + *turn % siblings.len();
        if lanes[other].is_up() {
            return other;
        }
    }
    lane
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ID_BYTES;

    fn origin(number: usize) -> OriginId {
        OriginId(format!("{number:0width$}", width = ID_BYTES).into_bytes().try_into().expect("so many digits"))
    }

    #[test]
    fn ends_are_told_again_twice_and_at_once_where_there_are_too_many() {
        let mut queues = AgainQueues::default();
        let start = Time::from_millis(1000);
        for number in 0..AGAIN_MAX {
            assert!(queues.add(start, 3, origin(number)).iter().all(Option::is_none));
        }
        for number in 0..5 {
            let early = queues.add(start.after(Duration::from_secs(1)), 3, origin(AGAIN_MAX + number));
            assert!(early.iter().flatten().all(|again| again.notice.origin == origin(number) && again.lane == 3));
            assert_eq!(early.iter().flatten().count(), 2);
        }
        let room: usize = queues.0.iter().map(|queue| queue.capacity() * size_of::<Again>()).sum();
        assert!(room <= AGAIN_BYTES, "{room}");

        let [first, second] = TELL_AGAIN_MS.map(Duration::from_millis);
        assert!(queues.due(start.after(first - Duration::from_millis(1))).is_none());
        let told = |queues: &mut AgainQueues, at| core::iter::from_fn(|| queues.due(at)).count();
        assert_eq!(told(&mut queues, start.after(first)), AGAIN_MAX - 5);
        assert_eq!(told(&mut queues, start.after(first + Duration::from_secs(1))), 5);
        assert_eq!(queues.due(start.after(second)).expect("the next one").notice.origin, origin(5));
        assert_eq!(told(&mut queues, Time::NEVER), AGAIN_MAX - 1);
    }
}
