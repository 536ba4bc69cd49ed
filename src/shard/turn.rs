//! The loop of a shard: what completed, what is due, what was ordered, what is to be sent.
use super::lane::{LANE_SLOTS, Lane, lane_of};
use super::socket::{Conn, Input, Life, Ops, Socket, Stage};
use super::{Settings, Shard};
use crate::bus::ShardOrder;
use crate::ids::{SLOT_MAX, SlotKey, Time};
use crate::limits::*;
use crate::mem::frames::FramePool;
use crate::mem::slab::Slab;
use crate::metrics::{Counter, Gauge, Histogram, UpstreamGauge};
use crate::session::fault::{End, LaneEnd};
use crate::sys::{BufferGroup, Completion, Io, Op, Token};
use core::time::Duration;

/// One send of a batch, and how many bytes it offers.
#[derive(Clone, Copy)]
pub(super) struct Attempt {
    key: SlotKey,
    bytes: u32,
}

/// Tokens of the shard's own operations have the last slot, which no connection gets.
pub(super) fn own_token(op: Op) -> Token {
    Token { op, key: SlotKey { slot: SLOT_MAX, generation: 0 } }
}

const _: () = assert!(LANE_SLOTS.end == SLOT_MAX);

impl<I: Io> Shard<I> {
    /// One round. False when the shard has stopped.
    pub fn turn(&mut self) -> bool {
        let until = self.next_wake();
        let mut completions = core::mem::take(&mut self.completions);
        self.io.wait(until, &mut completions);
        let now = self.io.now();
        self.clock.set(self.io.wall_ticks());
        self.retry_starved();
        self.serve_unserved(now);
        for completion in completions.drain(..) {
            self.on_completion(now, completion);
        }
        self.completions = completions;
        self.on_timers(now);
        self.on_orders(now);
        self.look(now);
        self.on_lanes(now);
        self.relieve(now);
        self.tell_again(now);
        self.bury(now);
        self.tell_observers();
        self.end_clients(now);
        self.flush();
        self.end_clients(now);
        self.on_stopping(now);
        self.metrics.observe_us(Histogram::Turn, self.io.now().since(now).as_micros() as u64);
        self.publish();
        !self.stopped
    }

    /// When it wants its next turn, if nothing completes before.
    pub fn next_wake(&self) -> Time {
        let is_busy = !self.starved.is_empty() || !self.ending.is_empty() || !self.unserved.is_empty();
        let is_busy = is_busy || !self.looks.is_empty() || !self.relieved.is_empty();
        if is_busy || !self.dirty.is_empty() {
            return Time(0);
        }
        let lanes = self.lanes.iter().map(|lane| lane.next_wake(&self.settings)).min().unwrap_or(Time::NEVER);
        // Rings on a machine that sleeps can miss nothing, but a bound keeps the published metrics fresh.
        let second = Duration::from_secs(1);
        let fresh = if self.settings.upstreams.routes.has_observers() { self.clock.until_second() } else { second };
        let fresh = self.io.now().after(fresh);
        self.wheel
            .next()
            .min(lanes)
            .min(self.accept_again.unwrap_or(Time::NEVER))
            .min(self.next_farewell())
            .min(fresh)
            .min(self.burials.next_wake())
    }

    fn on_completion(&mut self, now: Time, completion: Completion) {
        let key = completion.token.key;
        match completion.token.op {
            Op::Accept => self.on_accepted(now, completion),
            Op::Doorbell => {
                let bell = self.orders.bell().fd();
                self.io.quiet(bell);
                if !completion.more {
                    self.io.arm_readable(bell, own_token(Op::Doorbell));
                }
            }
            Op::Readable => {
                let group = group_of(key);
                let Some((socket, io)) = self.socket_and_io(key) else { return };
                if !completion.more {
                    socket.ops.done(Ops::READABLE);
                    if socket.life == Life::Leaving {
                        // Called back: it will be watched where it goes.
                        return self.join(now, key);
                    }
                    if socket.life != Life::Ending && completion.result < 0 {
                        // Nobody called it back: the kernel cannot watch this socket, and unwatched it would stay for ever.
                        self.on_socket_error(now, key, -completion.result);
                        return self.join(now, key);
                    }
                    if socket.life != Life::Ending {
                        socket.arm_readable(io);
                    }
                }
                // Nothing is read that would tell it, but a connection that has failed is not kept for that.
                let failed = i32::from(libc::POLLERR | libc::POLLHUP);
                if !socket.paused.is_empty() && completion.result & failed != 0 {
                    self.on_socket_error(now, key, libc::ECONNRESET);
                } else if !matches!(socket.life, Life::Ending | Life::Leaving) {
                    socket.receive(io, group);
                    // TCP first hands out what came before a reset, and neither says that the reset is behind it nor rings again.
                    socket.again |= completion.result & failed != 0;
                }
                self.join(now, key);
            }
            Op::Receive | Op::ReceiveLane => self.on_received(now, completion),
            Op::Writable => {
                let mut dirty = core::mem::take(&mut self.dirty);
                if let Some((socket, _)) = self.socket_and_io(key) {
                    socket.ops.done(Ops::WRITABLE);
                    socket.blocked = false;
                    socket.mark(&mut dirty);
                }
                self.dirty = dirty;
                self.join(now, key);
            }
            // Sends are resolved inside `flush`; a cancellation says nothing of its own.
            Op::Send | Op::Cancel => {}
        }
    }

    fn on_received(&mut self, now: Time, completion: Completion) {
        let Completion { token, result, received, nonempty, .. } = completion;
        let key = token.key;
        let full = received.as_ref().is_some_and(|piece| is_full(piece.len, key));
        let Some((socket, _)) = self.socket_and_io(key) else {
            if let Some(received) = received {
                self.io.give_back(received);
            }
            return;
        };
        socket.ops.done(Ops::RECEIVE);
        let again = core::mem::take(&mut socket.again) || nonempty || full;
        let life = socket.life;
        // A buffer that comes back with nothing in it is still ours to return.
        let received = match received {
            Some(empty) if result <= 0 => {
                self.io.give_back(empty);
                None
            }
            received => received,
        };
        match result {
            1.. => {
                let Some(received) = received else { return };
                self.metrics.add(
                    if lane_of(key).is_some() { Counter::BytesFromApps } else { Counter::BytesFromClients },
                    u64::from(received.len),
                );
                if matches!(life, Life::Open | Life::Leaving) {
                    self.on_raw_bytes(now, key, Input::Received(&received));
                }
                self.io.give_back(received);
                if again {
                    self.receive(key);
                }
            }
            0 => self.on_end_of_stream(now, key),
            _ if result == -libc::ENOBUFS => {
                self.metrics.add(Counter::ReceiveBuffersExhausted, 1);
                self.starved.push(key);
            }
            _ if result == -libc::EAGAIN || result == -libc::EINTR => {
                if again || result == -libc::EINTR {
                    self.receive(key);
                }
            }
            _ => self.on_socket_error(now, key, -result),
        }
        self.join(now, key);
    }

    fn receive(&mut self, key: SlotKey) {
        // What comes for a connection that leaves stays in the kernel, where it is bounded.
        if let Some((socket, io)) = self.socket_and_io(key)
            && !matches!(socket.life, Life::Ending | Life::Leaving)
        {
            socket.receive(io, group_of(key));
        }
    }

    /// The receives that found no buffer, now that the buffers of the last turn are back.
    fn retry_starved(&mut self) {
        let mut starved = core::mem::take(&mut self.starved);
        for key in starved.drain(..) {
            self.receive(key);
        }
        self.starved = starved;
    }

    /// What was received, as it came over the wire.
    pub(super) fn on_raw_bytes(&mut self, now: Time, key: SlotKey, mut input: Input<'_>) {
        if self.wants_proxy_header(key) {
            return self.on_proxy_header(now, key, input);
        }
        let Shard { conns, lanes, io, frames, pool, dirty, plain, .. } = self;
        let Some(socket) = socket_of(conns, lanes, key) else { return };
        let Some(secure) = &mut socket.secure else { return self.on_bytes(now, key, input) };
        let mut plain = core::mem::take(plain);
        let opened = secure.open(input.bytes(io), frames, pool, &mut plain);
        socket.mark(dirty);
        if !plain.is_empty() {
            self.on_bytes(now, key, Input::Bytes(&mut plain));
        }
        plain.clear();
        self.plain = plain;
        match opened {
            Err(error) => self.on_tls_error(now, key, error),
            Ok(opened) if opened.peer_closed => self.on_end_of_stream(now, key),
            Ok(_) => {}
        }
    }

    fn on_bytes(&mut self, now: Time, key: SlotKey, input: Input<'_>) {
        if let Some(lane) = lane_of(key) {
            return self.on_lane_bytes(now, lane, input);
        }
        match self.conns.get(key).map(|conn| &conn.stage) {
            Some(Stage::Http(_)) => self.on_http_bytes(now, key, input),
            Some(Stage::Client(_)) => self.on_client_bytes(now, key, input),
            Some(&Stage::Carrier(client)) => self.on_carrier_bytes(now, client, input),
            Some(Stage::LastPolls(..) | Stage::Over) | None => {}
        }
    }

    fn on_end_of_stream(&mut self, now: Time, key: SlotKey) {
        match lane_of(key) {
            Some(lane) => self.lane_ends(now, lane, LaneEnd::Gone),
            // A peer that shut only its side still gets what we have said, or will say on another shard; its end is met again.
            None if self
                .conns
                .get(key)
                .is_some_and(|conn| matches!(conn.socket.life, Life::Draining | Life::Leaving)) => {}
            None => self.connection_ends(now, key, End::PeerGone),
        }
    }

    pub(super) fn on_socket_error(&mut self, now: Time, key: SlotKey, errno: i32) {
        match lane_of(key) {
            Some(lane) => self.lane_ends(now, lane, LaneEnd::SocketError(errno)),
            None => self.connection_ends(now, key, End::SocketError(errno)),
        }
    }

    fn on_timers(&mut self, now: Time) {
        while let Some(slot) = self.wheel.expired(now) {
            let Some(key) = self.conns.key_at(slot) else { continue };
            self.on_connection_time(now, key);
        }
        if self.accept_again.is_some_and(|at| now >= at) {
            self.accept_on(now);
        }
        self.metrics.add(Counter::DroppedEarlyPost, self.connections.forget_early(now));
    }

    fn on_orders(&mut self, now: Time) {
        while let Some(order) = self.orders.try_next() {
            match order {
                ShardOrder::LaneUp { index, socket, hub_id, early, tls } => {
                    self.on_lane_up(now, index, socket, hub_id, early, tls);
                }
                ShardOrder::Connection(handover) => self.on_handover(now, *handover),
                ShardOrder::Relay(relayed) => self.on_relayed(relayed.place, &relayed.record),
                ShardOrder::Identity(identity) => self.on_new_keys(identity),
                ShardOrder::Look { clients_max, answer } => self.on_look(clients_max, answer),
                ShardOrder::LookAt { client, answer } => self.on_look_at(client, answer),
                ShardOrder::Bury { place, ids, answer } => self.on_bury(place, ids, answer),
                ShardOrder::Settings(renewal) => self.on_renewal(*renewal),
                ShardOrder::Accept => self.accept_anew(),
                ShardOrder::Drain { window, heir } => self.drain(now, window, heir),
                ShardOrder::Stop => self.stop(now),
            }
        }
    }

    /// Sends everything queued in this turn, in batches.
    fn flush(&mut self) {
        let now = self.io.now();
        while !self.dirty.is_empty() {
            while self.settings.has_tls && self.seal_dirty() {}
            self.sending.clear();
            self.short.clear();
            let Shard { io, conns, lanes, frames, dirty, sending, short, ending, pumped, wheel, settings, .. } = self;
            let frames = &*frames;
            io.send_batch(
                |batch| {
                    for key in dirty.drain(dirty.len().saturating_sub(SEND_BATCH)..).rev() {
                        let Some(socket) = socket_of(conns, lanes, key) else { continue };
                        socket.dirty = false;
                        if !socket.has_fd() {
                            pumped.push(key);
                            continue;
                        }
                        if is_too_slow(socket, frames, settings) {
                            ending.push((key, End::SlowClient));
                            continue;
                        }
                        if socket.blocked && lane_of(key).is_none() {
                            // Another deadline may have been set since.
                            wheel.set_no_later(key.slot, socket.stalled_at(now, settings.send_queue_time));
                        }
                        let outgoing = socket.outgoing();
                        if socket.blocked || outgoing.is_empty() || socket.life == Life::Ending {
                            continue;
                        }
                        batch.begin(key, socket.fd);
                        let (mut parts, mut bytes) = (0, 0);
                        frames.unsent(outgoing, |part| {
                            batch.part(part);
                            bytes += part.len() as u32;
                            parts += 1;
                            parts < SEND_PARTS
                        });
                        sending.push(Attempt { key, bytes });
                    }
                },
                short,
            );
            self.settle_batch();
            self.pump();
        }
    }

    /// Takes what left out of the queues; what did not waits for its socket to be writable.
    fn settle_batch(&mut self) {
        let now = self.io.now();
        let sending = core::mem::take(&mut self.sending);
        let short = core::mem::take(&mut self.short);
        // Short sends are reported in the order of the batch.
        let mut reported = short.iter().peekable();
        for Attempt { key, bytes } in &sending {
            let result = match reported.peek() {
                Some(report) if report.key == *key => {
                    let result = report.result;
                    reported.next();
                    result
                }
                _ => *bytes as i32,
            };
            let counter = if lane_of(*key).is_some() { Counter::BytesToApps } else { Counter::BytesToClients };
            if result < 0 && result != -libc::EAGAIN && result != -libc::EINTR {
                self.on_socket_error(now, *key, -result);
                self.join(now, *key);
                continue;
            }
            let sent = result.max(0) as u32;
            self.metrics.add(counter, u64::from(sent));
            let Shard { io, conns, lanes, frames, dirty, ending, wheel, settings, .. } = self;
            let Some(socket) = socket_of(conns, lanes, *key) else { continue };
            socket.sent(sent, frames);
            if sent < *bytes {
                socket.arm_writable(io);
                if socket.fell_behind(now) && lane_of(*key).is_none() {
                    wheel.set_no_later(key.slot, now.after(settings.send_queue_time));
                }
                if is_too_slow(socket, frames, settings) {
                    ending.push((*key, End::SlowClient));
                }
            } else {
                // More parts than one send takes: again in the next batch.
                socket.mark(dirty);
                if !socket.dirty {
                    socket.caught_up();
                }
                if socket.drained(io) {
                    // The peer's end may have been there before ours: it does not become readable twice.
                    socket.receive(io, group_of(*key));
                }
                if socket.life == Life::Leaving {
                    self.leave(now, *key);
                }
            }
        }
        debug_assert!(reported.peek().is_none(), "every short send belongs to an attempt of the batch");
        self.sending = sending;
        self.short = short;
    }

    /// A connection's or lane's socket, with the world to act on it.
    pub(super) fn socket_and_io(&mut self, key: SlotKey) -> Option<(&mut Socket, &mut I)> {
        let Shard { conns, lanes, io, .. } = self;
        socket_of(conns, lanes, key).map(|socket| (socket, io))
    }

    /// Closes and frees a socket that is at its end, if the kernel has let go of it.
    pub(super) fn join(&mut self, now: Time, key: SlotKey) {
        let Shard { conns, lanes, io, frames, pool, .. } = self;
        let Some(socket) = socket_of(conns, lanes, key) else { return };
        if socket.life == Life::Leaving {
            return self.leave(now, key);
        }
        if !socket.is_over() {
            return;
        }
        if let Some(secure) = &mut socket.secure {
            secure.release(frames, pool);
        }
        if socket.has_fd() {
            io.close(socket.fd);
        }
        match lane_of(key) {
            Some(lane) => self.lane_closed(now, lane),
            None => {
                self.wheel.clear(key.slot);
                let closed = self.free_place(key);
                if closed.is_some_and(|conn| conn.socket.has_fd()) {
                    self.metrics.add(Counter::ConnectionsClosed, 1);
                }
            }
        }
    }

    pub(super) fn publish(&mut self) {
        let (mut waiting, mut bytes, mut notices, mut up) = (0, 0, 0, 0);
        let (mut in_flight, mut replays) = (0, 0);
        // Those of one upstream stand together.
        for lanes in self.lanes.chunk_by(|lane, next| lane.place.upstream == next.place.upstream) {
            let (mut pinned, mut queued) = (0, 0);
            for lane in lanes {
                pinned += u64::from(lane.clients);
                queued += lane.waiting() as u64;
                bytes += lane.waiting_bytes();
                notices += lane.notices() as u64;
                up += u64::from(lane.is_up());
                in_flight += lane.flight.len() as u64;
                replays += lane.replays.len() as u64;
            }
            waiting += queued;
            self.metrics.set_upstream(lanes[0].place.upstream, UpstreamGauge::Clients, pinned);
            self.metrics.set_upstream(lanes[0].place.upstream, UpstreamGauge::Queued, queued);
        }
        let groups = self.hubs.iter().map(|hub| hub.groups.len() as u64).sum();
        let clients = u64::from(self.clients);
        let metrics = &mut self.metrics;
        metrics.add(Counter::Turns, 1);
        metrics.set(Gauge::Clients, clients);
        metrics.set(Gauge::HttpConnections, u64::from(self.conns.len()) - clients);
        metrics.set(Gauge::LanesUp, up);
        metrics.set(Gauge::LanesDown, self.lanes.len() as u64 - up);
        metrics.set(Gauge::QueuedMessages, waiting);
        metrics.set(Gauge::QueuedBytes, bytes);
        metrics.set(Gauge::InFlight, in_flight);
        metrics.set(Gauge::WaitingReplays, replays);
        metrics.set(Gauge::QueuedNotices, notices);
        metrics.set(Gauge::JournalLive, self.settings.journal.live_ids());
        metrics.set(Gauge::JournalPending, self.settings.journal.pending_ids());
        metrics.add(Counter::DroppedJournal, self.settings.journal.take_overflowed());
        metrics.set(Gauge::Groups, groups);
        metrics.set(Gauge::Frames, self.frames.live() as u64);
        self.metrics.publish(&self.published);
    }
}

/// The bound of a connection's send queue, in the one place that everything written to it passes: deliveries, answers, pongs,
/// refusals, HTTP replies. Only what the kernel's full buffer has left behind counts, so a burst that
/// still fits there is no fault; nor is one message that is larger than the bound by itself.
/// A lane is not bounded here but at `Lane::is_free`.
fn is_too_slow(socket: &Socket, frames: &FramePool, settings: &Settings) -> bool {
    socket.blocked
        && socket.life == Life::Open
        && lane_of(socket.key).is_none()
        && frames.cost_behind_head(&socket.queue) > settings.send_queue_bytes_max
}

/// The socket a key stands for, of a lane or of a connection; for where the rest of the shard is borrowed.
pub(super) fn socket_of<'a>(conns: &'a mut Slab<Conn>, lanes: &'a mut [Lane], key: SlotKey) -> Option<&'a mut Socket> {
    match lane_of(key) {
        Some(lane) => lanes.get_mut(lane.0 as usize)?.socket(key),
        None => conns.get_mut(key).map(|conn| &mut conn.socket),
    }
}

fn group_of(key: SlotKey) -> BufferGroup {
    if lane_of(key).is_some() { BufferGroup::Lane } else { BufferGroup::Client }
}

/// Did the piece fill its buffer? Then there may be more, whatever the kernel's hint says.
fn is_full(len: u32, key: SlotKey) -> bool {
    len == if lane_of(key).is_some() { LANE_RECV_BUFFER_BYTES } else { RECV_BUFFER_BYTES }
}
