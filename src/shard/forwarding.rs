//! Which upstreams a client's request goes to, and on which of their lanes (contract 5).
//!
//! ```text
//! request -> live view models or filters -> upstreams -> for each: the client's lane -> onto the lane, or into the queue in front of it
//! ```
//! The upstream that halts answers, so its refusal is the client's; what a mirror or an Observer cannot take is counted and forgotten.
use super::client::ClientSide;
use super::lane::{From, Gate, Lane, Message, Notice, Shown};
use super::socket::{Pin, Tie, User, items_of, origin_at};
use super::upstreams::Hub;
use super::{Settings, Shard};
use crate::filter::Facts;
use crate::ids::{HubId, LaneIndex, OriginId, SlotKey, UpstreamIndex};
use crate::limits::CLIENT_WAITING_MAX;
use crate::metrics::{Counter, UpstreamCounter};
use crate::proto::dotnetify::context::Tail;
use crate::proto::dotnetify::headers;
use crate::proto::dotnetify::request::{Call, Request};
use crate::proto::dotnetify::telemetry::Telemetry;
use crate::proto::signalr::json;
use crate::session::fault::Refusal;
use crate::session::routing::{Candidate, Dispatch, HubScope, least_loaded};
use crate::session::views::{Opened, Opening, Upstreams};
use crate::sys::Io;
use std::borrow::Cow;
use tracing::warn;

impl<'a> ClientSide<'a> {
    /// What an upstream is shown of the client's connection.
    fn context(&self, upstream: usize) -> Tail<'a> {
        let headers = self.gate.settings.upstreams.headers(upstream, self.headers);
        Tail::Client { connection: self.connection, headers }
    }

    /// Sends a request on its way to everyone whom it concerns.
    pub(super) fn route(&mut self, request: &Request, record: &[u8]) -> Result<(), Refusal> {
        let message = Message {
            call: request.call,
            vm_id: request.vm_id.of(record),
            argument: request.argument.map(|argument| argument.of(record)),
        };
        let name = plain(message.vm_id);
        let routes = &self.gate.settings.upstreams.routes;
        let live = match (message.call, routes.plain()) {
            // It goes where everything goes.
            (Call::UpdateVm, Some(all)) => Some(all),
            (Call::RequestVm | Call::UpdateVm, _) => self.views.upstreams(*self.list, &name),
            (Call::DisposeVm, _) => Some(self.views.close(*self.list, &name)).filter(|live| !live.is_empty()),
        };
        let chosen = match (live, routes.plain()) {
            (Some(live), _) => live,
            (None, Some(all)) => all,
            (None, None) => self.choose(message),
        };
        let is_answered = routes.answering(chosen).is_some();
        let is_new = message.call == Call::RequestVm && live.is_none() && is_answered;
        let bytes_max = self.gate.settings.replay_bytes_max as usize;
        // What a request begins with, and what a disposal ends with.
        let mut opens = (message.call == Call::DisposeVm && live.is_some()).then(|| self.views.last_opening());
        if is_new {
            match self.views.open(self.list, &name, chosen) {
                Opened::New(opening) => opens = Some(opening),
                Opened::Already => {}
                Opened::TooMany => return Err(Refusal::TooManyViews),
            }
        }
        match message.call {
            Call::RequestVm if is_answered => self.views.keep(*self.list, &name, message.argument, bytes_max),
            Call::UpdateVm => self.keep_headers(&name, message, bytes_max),
            Call::RequestVm | Call::DisposeVm => {}
        }
        let sent = self.send(chosen, message, opens);
        match (message.call, opens, &sent) {
            (Call::RequestVm, Some(opening), Err(_)) => self.views.cancel(self.list, opening),
            (Call::DisposeVm, Some(last), Err(_)) => {
                for upstream in chosen.each() {
                    self.views.left(self.list, upstream, &name, last);
                }
            }
            // Nobody misses it.
            (Call::DisposeVm, None, Err(_)) => {
                self.gate.metrics.add(Counter::DroppedDisposal, 1);
                return Ok(());
            }
            _ => {}
        }
        if is_answered {
            return sent;
        }
        // dotNetify answers requests only; updates of what it does not know are logged (contract 5.1).
        match message.call {
            Call::RequestVm => {
                self.gate.metrics.add(Counter::UnroutedRequestVm, 1);
                return Err(Refusal::Unrouted);
            }
            Call::UpdateVm => self.gate.metrics.add(Counter::UnroutedUpdateVm, 1),
            Call::DisposeVm => self.gate.metrics.add(Counter::UnroutedDisposeVm, 1),
        }
        Ok(())
    }

    /// What an update says of headers holds for the view model's next request, too (contract 6.3).
    fn keep_headers(&mut self, name: &[u8], message: Message<'_>, bytes_max: usize) {
        // Most say nothing of them, and nothing is looked up for those.
        let Some(update) = message.argument.filter(|update| headers::may_have_headers(update)) else { return };
        let Some(requested) = self.views.argument(*self.list, name) else { return };
        if let Some(renewed) = headers::renewed(requested, update) {
            self.views.keep(*self.list, name, Some(&renewed), bytes_max);
        }
    }

    fn choose(&mut self, message: Message<'_>) -> Upstreams {
        let user = self.user.as_deref();
        let facts = Facts {
            call: message.call,
            vm_id: message.vm_id,
            connection_id: core::str::from_utf8(&self.origin.0).unwrap_or_default(),
            user: user.and_then(|user| user.id.as_deref()),
            path: self.seen.map_or("", |seen| &seen.path),
            headers: self.seen.map_or(&[], |seen| &seen.headers),
            claims: user.and_then(|user| user.claims.as_ref()),
            data: message.argument,
        };
        let upstreams = &self.gate.settings.upstreams;
        let (metrics, quiet, now) = (&mut *self.gate.metrics, &mut *self.quiet, self.now);
        upstreams.routes.choose(&facts, |index, error| {
            metrics.add(Counter::FilterErrors, 1);
            if let Some(suppressed) = quiet.admit(now) {
                warn!(
                    upstream = upstreams.get(index).name,
                    "its filter cannot be evaluated for a message, which does not go there: {}{suppressed}", error.0
                );
            }
        })
    }

    /// Onto the lanes of all of them. The result is that of the upstream that answers; several do where parts of what is disposed of
    /// went to different ones.
    fn send(&mut self, chosen: Upstreams, message: Message<'_>, opens: Option<Opening>) -> Result<(), Refusal> {
        let upstreams = &self.gate.settings.upstreams;
        let answering = upstreams.routes.answering(chosen);
        let mut result = Ok(());
        for index in chosen.each().filter(|index| !upstreams.routes.is_observer(*index)) {
            let sent = self.send_to(index, message, opens);
            let counter = match (upstreams.routes.is_answering(index), sent) {
                (true, Ok(true)) => UpstreamCounter::Forwarded,
                // It is counted when it goes on.
                (true, Ok(false)) => continue,
                (false, Ok(_)) => UpstreamCounter::Mirrored,
                (true, Err(refusal)) => {
                    result = Err(refusal);
                    continue;
                }
                (false, Err(Refusal::TooLargeUpstream)) => UpstreamCounter::DroppedTooLarge,
                (false, Err(_)) => self.why_dropped(index),
            };
            self.gate.metrics.add_upstream(UpstreamIndex(index as u8), counter, 1);
        }
        // Last, because they are to know the client by the hub id that the app server knows (contract 7.2).
        for index in chosen.each().filter(|index| upstreams.routes.is_observer(*index)) {
            self.show_to(index, answering, message);
        }
        result
    }

    /// True if it is on its way, false if it waits.
    fn send_to(&mut self, upstream: usize, message: Message<'_>, opens: Option<Opening>) -> Result<bool, Refusal> {
        let pinned = self.pinned(upstream);
        let lane = match self.gate.settings.upstreams.get(upstream).dispatch {
            Dispatch::Client => pinned,
            Dispatch::Message => self.next_lane(pinned),
        };
        let shown = Shown {
            context: self.context(upstream),
            items: items_of(self.user.as_deref(), self.gate.settings.upstreams.get(upstream).protocol),
        };
        let origin = self.origin_at(upstream);
        let from = From { client: self.socket.key, origin: &origin, shown, opens };
        let (pin, lane) = (&mut self.pins[upstream], &mut self.lanes[lane]);
        if pin.tie == Tie::Owed && lane.is_free(self.gate.settings) {
            lane.replay(self.now, from, self.views.requested_from(*self.list, upstream), &mut self.gate);
            self.gate.know(lane.place, self.socket.key, pin);
        }
        if lane.request(self.now, from, message, &mut self.gate)? {
            self.gate.know(lane.place, self.socket.key, pin);
            if self.gate.settings.upstreams.routes.is_answering(upstream) {
                match (message.call, opens) {
                    (Call::RequestVm, Some(opening)) => self.views.requested(*self.list, opening),
                    (Call::DisposeVm, Some(last)) => self.views.left(self.list, upstream, &plain(message.vm_id), last),
                    _ => {}
                }
            }
            return Ok(true);
        }
        pin.waiting = pin.waiting.saturating_add(1);
        // Who fills the queue is read no further, instead of having what it says refused.
        *self.holds |= pin.waiting >= CLIENT_WAITING_MAX;
        Ok(false)
    }

    fn origin_at(&self, upstream: usize) -> OriginId {
        origin_at(self.gate.settings, self.socket.key.slot, &self.pins[upstream], &self.origin)
    }

    fn show_to(&mut self, observer: usize, answering: Option<usize>, message: Message<'_>) {
        let hub_id = answering.and_then(|index| self.hub_id_at(index)).or_else(|| self.hub_id());
        let lane = self.pinned(observer);
        let shown = Shown { context: self.context(observer), items: Default::default() };
        let origin = self.origin_at(observer);
        let from = From { client: self.socket.key, origin: &origin, shown, opens: None };
        let seen = self.lanes[lane].observe(from, message, hub_id.as_ref(), &mut self.gate);
        if seen {
            self.gate.know(self.lanes[lane].place, self.socket.key, &mut self.pins[observer]);
        }
        let counter = if seen { UpstreamCounter::Mirrored } else { self.why_dropped(observer) };
        self.gate.metrics.add_upstream(UpstreamIndex(observer as u8), counter, 1);
    }

    /// Why somebody whom nobody waits for did not get a message.
    fn why_dropped(&self, upstream: usize) -> UpstreamCounter {
        let is_up = self.pins[upstream].lane.is_some_and(|lane| self.lanes[usize::from(lane.0)].is_up());
        if is_up { UpstreamCounter::DroppedFull } else { UpstreamCounter::DroppedDown }
    }

    /// What an app server knows the client's lane by, or knew it by before it was lost.
    fn hub_id_at(&self, upstream: usize) -> Option<HubId> {
        self.lanes[usize::from(self.pins[upstream].lane?.0)].hub_id().copied()
    }

    /// The same at the first app server that knows the client.
    fn hub_id(&self) -> Option<HubId> {
        let routes = &self.gate.settings.upstreams.routes;
        (0..self.pins.len()).filter(|index| !routes.is_observer(*index)).find_map(|index| self.hub_id_at(index))
    }

    /// The client's lane to an upstream: chosen with its first message, and kept.
    fn pinned(&mut self, upstream: usize) -> usize {
        let pin = &self.pins[upstream];
        if let Some(lane) = pin.lane {
            let index = usize::from(lane.0);
            let lane = &self.lanes[index];
            let routes = &self.gate.settings.upstreams.routes;
            // What waits in front of it may be this client's, and overtaking it would break its order. Who never reached the app server
            // need not wait for a lane that is down while another is up. An Observer takes order from time stamps.
            let is_observer = routes.is_observer(upstream);
            let stays = lane.is_up() || !is_observer && (pin.tie == Tie::Known || pin.waiting > 0);
            let is_another_up = || self.lanes.iter().any(|lane| lane.is_up() && lane.upstream() == upstream);
            if stays || !is_another_up() {
                return index;
            }
            let chosen = choose_lane(self.lanes, self.gate.settings, upstream);
            if is_observer && pin.tie == Tie::Known && self.lanes[chosen].place != self.lanes[index].place {
                self.leave_observer(upstream, index);
            }
            return self.pin_to(upstream, chosen);
        }
        self.pin_to(upstream, choose_lane(self.lanes, self.gate.settings, upstream))
    }

    /// Each url of an Observer is one of its own: that which saw the client hears of its end, when it can.
    fn leave_observer(&mut self, observer: usize, lane: usize) {
        let hub_id = self.hub_id();
        let gone = self.gate.bury(self.lanes[lane].place, self.socket.key, &self.pins[observer], &self.origin);
        self.lanes[lane].notice(Notice { hub_id, ..gone }, &mut self.gate);
        self.pins[observer].tie = Tie::Unknown;
    }

    fn pin_to(&mut self, upstream: usize, lane: usize) -> usize {
        let pin = &mut self.pins[upstream];
        pin.repin(self.socket.key, Some(lane), self.user.as_deref(), self.lanes, self.hubs);
        if pin.tie == Tie::Owed {
            self.lanes[lane].replays.push_back(self.socket.key);
        }
        lane
    }

    /// One lane after the other of those that lead where the client's own does (contract 4.1).
    fn next_lane(&mut self, pinned: usize) -> usize {
        if !self.pins_reached(pinned) {
            // The first message says where the client belongs.
            return pinned;
        }
        let siblings = self.lanes[pinned].siblings.clone();
        for _ in 0..siblings.len() {
            *self.next_lane = self.next_lane.wrapping_add(1);
            let lane = siblings.start + *self.next_lane % siblings.len();
            if self.lanes[lane].is_free(self.gate.settings) {
                return lane;
            }
        }
        pinned
    }

    fn pins_reached(&self, lane: usize) -> bool {
        self.pins[usize::from(self.lanes[lane].place.upstream.0)].tie == Tie::Known
    }

    /// Tells every upstream that has seen the client that it is gone; on its lane, behind its messages, or on another that leads to the
    /// same app server if its own is lost.
    pub(super) fn leave_upstreams(&mut self) {
        for upstream in 0..self.pins.len() {
            let Some(lane) = self.pins[upstream].lane else { continue };
            let mut index = usize::from(lane.0);
            self.say_last_words(upstream, index);
            if self.pins[upstream].tie != Tie::Known {
                continue;
            }
            if !self.lanes[index].is_up() {
                index = self.lanes[index].siblings.clone().find(|index| self.lanes[*index].is_up()).unwrap_or(index);
            }
            let upstreams = &self.gate.settings.upstreams;
            let is_observer = upstreams.routes.is_observer(upstream);
            let user = self.user.as_deref().filter(|_| !is_observer);
            let items = items_of(user, upstreams.get(upstream).protocol);
            let shown = Shown { context: self.context(upstream), items };
            let hub_id = if is_observer { self.hub_id() } else { None };
            let gone = self.gate.bury(self.lanes[index].place, self.socket.key, &self.pins[upstream], &self.origin);
            self.lanes[index].disconnected(self.now, Notice { hub_id, ..gone }, shown, &mut self.gate);
        }
    }

    /// What the client has said and what still waits in front of its lane is not lost because it leaves.
    fn say_last_words(&mut self, upstream: usize, lane: usize) {
        let count = core::mem::take(&mut self.pins[upstream].waiting);
        if count == 0 || !self.lanes[lane].has_room_for_last_words(self.gate.settings) {
            // Without room it is nobody's when its turn comes, and counted then: looking for it would cost everybody who leaves the whole
            // queue.
            return;
        }
        let origin = self.origin_at(upstream);
        let shown = Shown {
            context: self.context(upstream),
            items: items_of(self.user.as_deref(), self.gate.settings.upstreams.get(upstream).protocol),
        };
        let from = From { client: self.socket.key, origin: &origin, shown, opens: None };
        let (pin, lane) = (&mut self.pins[upstream], &mut self.lanes[lane]);
        for waiting in lane.take_waiting_of(self.socket.key, count) {
            // Updates of what the app server does not know by this id are nothing to it.
            if pin.tie == Tie::Owed {
                self.gate.metrics.add(Counter::DroppedGoneClient, 1);
            } else if lane.last_words(self.now, &waiting, from, &mut self.gate) {
                self.gate.know(lane.place, self.socket.key, pin);
            }
        }
    }
}

impl Pin {
    /// To another lane, or none: the client leaves the old one's hub, and is a user of the new one's.
    pub(super) fn repin(
        &mut self,
        client: SlotKey,
        lane: Option<usize>,
        user: Option<&User>,
        lanes: &mut [Lane],
        hubs: &mut [Hub],
    ) {
        if let Some(old) = self.lane {
            let old = &mut lanes[usize::from(old.0)];
            old.clients -= 1;
            hubs[old.hub].groups.leave_all(&mut self.memberships);
            hubs[old.hub].users.leave_all(&mut self.as_user);
        }
        self.lane = lane.map(|lane| LaneIndex(lane as u16));
        let Some(lane) = lane else { return };
        lanes[lane].clients += 1;
        self.name(client, user, &lanes[lane], hubs);
    }

    /// The client's user, from now on: its id leads to it in a `SendToUsersAsync`.
    pub(super) fn name(&mut self, client: SlotKey, user: Option<&User>, lane: &Lane, hubs: &mut [Hub]) {
        let users = &mut hubs[lane.hub].users;
        users.leave_all(&mut self.as_user);
        if let Some(id) = user.and_then(|user| user.id.as_ref()) {
            users.join(client, &mut self.as_user, id.as_bytes());
        }
    }
}

/// The lane for a client that is new to an upstream.
pub(super) fn choose_lane(lanes: &[Lane], settings: &Settings, upstream: usize) -> usize {
    let weights = &settings.upstreams.get(upstream).weights;
    let seen = |lane: &Lane| Candidate { place: lane.place, is_up: lane.is_up(), clients: lane.clients };
    least_loaded(lanes, UpstreamIndex(upstream as u8), weights, seen).expect("each shard has a lane to each url")
}

/// A JSON string's text.
pub(super) fn plain(raw: &[u8]) -> Cow<'_, [u8]> {
    let contents = raw.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(raw);
    if memchr::memchr(b'\\', contents).is_none() {
        return Cow::Borrowed(contents);
    }
    let mut text = Vec::with_capacity(contents.len());
    json::unescape(contents, &mut text);
    Cow::Owned(text)
}

impl<I: Io> Shard<I> {
    /// Once a second, on the second, Observers are told how the process does, under each hub id that they see clients behind (contract
    /// 7.2).
    pub(super) fn tell_observers(&mut self) {
        let second = self.clock.unix_seconds();
        if !self.settings.upstreams.routes.has_observers() || second == self.told_second {
            return;
        }
        self.told_second = second;
        let Shard { lanes, frames, dirty, random, clock, metrics, settings, relieved, .. } = self;
        let settings = &*settings;
        let usage = settings.process.get();
        let telemetry = Telemetry {
            process_cpu: usage.process_cpu,
            total_cpu: usage.total_cpu,
            process_memory: usage.process_memory,
            total_memory: usage.total_memory,
        };
        let mut gate = Gate { settings, frames, dirty, random, clock, metrics, relieved };
        let mut told = None;
        for observer in 0..lanes.len() {
            let lane = &lanes[observer];
            // Each url is an Observer of its own, and its lanes stand together.
            if !settings.upstreams.routes.is_observer(lane.upstream()) || told == Some(lane.place) || !lane.is_up() {
                continue;
            }
            told = Some(lane.place);
            for index in 0..lanes.len() {
                if let Some(hub_id) = hub_to_tell(&lanes[..=index], settings) {
                    lanes[observer].report(&hub_id, &telemetry, &mut gate);
                }
            }
        }
    }
}

/// The hub id of the last of these lanes, unless one of the others or another shard tells of it.
fn hub_to_tell(lanes: &[Lane], settings: &Settings) -> Option<HubId> {
    let (lane, before) = lanes.split_last()?;
    let hub_id = lane.hub_id().filter(|_| lane.is_up() && !settings.upstreams.routes.is_observer(lane.upstream()))?;
    let is_shared = settings.upstreams.of(lane.place).hub_scope == HubScope::Node;
    // What all shards share the first one tells, once.
    let is_told = || before.iter().any(|other| other.is_up() && other.hub_id() == Some(hub_id));
    (!is_shared || settings.shard.0 == 0 && !is_told()).then_some(*hub_id)
}
