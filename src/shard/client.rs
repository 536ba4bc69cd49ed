//! Clients of this shard: from the start of their transport to the end.
use super::carried::Begun;
use super::lane::{Gate, Lane};
use super::pause::Pause;
use super::quiet::Quiet;
use super::socket::{Carried, Client, Conn, Input, Life, Ops, Pin, Socket, Stage, User, linger_until};
use super::upstreams::{Hub, Seen};
use super::{Settings, Shard};
use crate::ids::{Address, SlotKey, Time};
use crate::mem::frames::{FramePool, FrameRef};
use crate::metrics::{Counter, ShardMetrics};
use crate::proto::dotnetify::context::Peer;
use crate::proto::dotnetify::request::{Call, Request};
use crate::proto::http::{self, HttpError};
use crate::proto::signalr::Protocol;
use crate::session::client::{ClientEnv, ClientSession, Note};
use crate::session::fault::{self, End, Refusal};
use crate::session::form::{Form, Transport};
use crate::session::resume::Outbound;
use crate::session::views::{ViewList, Views};
use crate::sys::Io;
use core::time::Duration;
use smallvec::smallvec;
use tracing::{debug, info, warn};

/// What a client's session acts on: its own queue and its lane.
pub(super) struct ClientSide<'a> {
    pub(super) now: Time,
    pub(super) socket: &'a mut Socket,
    pub(super) lanes: &'a mut [Lane],
    pub(super) hubs: &'a mut [Hub],
    pub(super) views: &'a mut Views,
    pub(super) origin: crate::ids::OriginId,
    pub(super) pins: &'a mut [Pin],
    /// Of its live view models.
    pub(super) list: &'a mut ViewList,
    pub(super) received: &'a mut u32,
    pub(super) sent: &'a mut u32,
    pub(super) connection: &'a [u8],
    pub(super) headers: &'a [u8],
    pub(super) seen: Option<&'a Seen>,
    pub(super) user: &'a mut Option<Box<User>>,
    pub(super) carried: Option<&'a mut Carried>,
    /// So much of it waits in front of a lane that it is to be read no further.
    pub(super) holds: &'a mut bool,
    /// For dealing messages over lanes.
    pub(super) next_lane: &'a mut usize,
    /// Of filters that cannot be evaluated.
    pub(super) quiet: &'a mut Quiet,
    pub(super) gate: Gate<'a>,
}

impl ClientEnv for ClientSide<'_> {
    fn out<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        self.socket.out(self.gate.frames, self.gate.dirty, write)
    }

    fn message(&mut self, form: Form, write: impl FnOnce(&mut Vec<u8>)) {
        *self.sent = self.sent.wrapping_add(1);
        write_message(self.socket, self.carried.as_deref_mut(), form, &mut self.gate, write);
    }

    fn acknowledged(&mut self, number: u64) {
        if let Some(outbound) = self.carried.as_mut().and_then(|carried| carried.outbound.as_mut()) {
            outbound.on_ack(number, self.gate.frames);
        }
    }

    fn forward(&mut self, request: &Request, record: &[u8]) -> Result<(), Refusal> {
        *self.received = self.received.wrapping_add(1);
        self.identify(request, record)?;
        self.route(request, record)
    }

    fn note(&mut self, note: Note) {
        let metrics = &mut *self.gate.metrics;
        match note {
            Note::HandshakeDone(Protocol::Json) => metrics.add(Counter::HandshakesJson, 1),
            Note::HandshakeDone(Protocol::MessagePack) => metrics.add(Counter::HandshakesMessagePack, 1),
            Note::Ping => metrics.add(Counter::ClientPing, 1),
            Note::Request(Call::RequestVm) => metrics.add(Counter::ClientRequestVm, 1),
            Note::Request(Call::UpdateVm) => metrics.add(Counter::ClientUpdateVm, 1),
            Note::Request(Call::DisposeVm) => metrics.add(Counter::ClientDisposeVm, 1),
            Note::RequestError(error) => {
                metrics.add(Counter::ClientBadRequest, 1);
                metrics.add(Counter::refusal(fault::request_label(error)), 1);
            }
            Note::Refused(refusal) => metrics.add(Counter::refusal(refusal.label()), 1),
            Note::Repeated => metrics.add(Counter::ClientRepeated, 1),
            Note::Ignored => metrics.add(Counter::ClientOther, 1),
        }
    }
}

impl ClientSide<'_> {
    /// A request's `$headers` may name its client's user, unless the connection has done so.
    fn identify(&mut self, request: &Request, record: &[u8]) -> Result<(), Refusal> {
        let Some(authentication) = &self.gate.settings.authentication else { return Ok(()) };
        let is_connections = self.user.as_ref().is_some_and(|user| user.is_connections);
        if let Some(argument) = request.argument
            && !is_connections
        {
            let (now, upstreams) = (self.gate.unix_seconds(), &self.gate.settings.upstreams);
            let found = authentication.of_message(argument.of(record), now, upstreams, self.gate.metrics);
            if let Some(user) = found {
                enter_user(self.socket.key, self.user, user, self.pins, self.lanes, self.hubs);
            }
        }
        if request.call == Call::RequestVm { authentication.admits(self.user.as_deref()) } else { Ok(()) }
    }
}

/// The client's user from now on: its id leads to it in a `SendToUsersAsync`.
fn enter_user(
    client: SlotKey,
    present: &mut Option<Box<User>>,
    user: Box<User>,
    pins: &mut [Pin],
    lanes: &[Lane],
    hubs: &mut [Hub],
) {
    let id = |user: &Option<Box<User>>| user.as_ref().and_then(|user| user.id.clone());
    let before = id(present);
    *present = Some(user);
    if before == id(present) {
        return;
    }
    for pin in pins {
        if let Some(lane) = pin.lane {
            pin.name(client, present.as_deref(), &lanes[usize::from(lane.0)], hubs);
        }
    }
}

/// One message that a stateful reconnect counts: in a frame of its own where it may have to be sent again.
pub(super) fn write_message(
    socket: &mut Socket,
    carried: Option<&mut Carried>,
    form: Form,
    gate: &mut Gate<'_>,
    write: impl FnOnce(&mut Vec<u8>),
) {
    let Some(outbound) = carried.and_then(|carried| carried.outbound.as_mut()) else {
        return socket.out(gate.frames, gate.dirty, |out| form.write(out, write));
    };
    let frame = gate.frames.create();
    form.write(gate.frames.bytes_mut(&frame), write);
    gate.frames.share(&frame, &mut socket.queue);
    socket.mark(gate.dirty);
    keep(outbound, &frame, gate.frames, gate.settings, gate.metrics);
    gate.frames.release(frame);
}

/// Keeps a message for a stateful reconnect.
pub(super) fn keep(
    outbound: &mut Outbound,
    frame: &FrameRef,
    frames: &mut FramePool,
    settings: &Settings,
    metrics: &mut ShardMetrics,
) {
    let bytes_max = settings.resume_bytes_max.unwrap_or_default() as usize;
    metrics.add(Counter::DroppedResume, u64::from(outbound.keep(frame, frames, bytes_max)));
}

/// Calls into a client's session with everything it may act on.
macro_rules! with_client {
    ($shard:expr, $now:expr, $key:expr, |$session:ident, $side:ident, $io:ident, $pool:ident| $body:expr) => {{
        let Shard {
            io: $io,
            conns,
            lanes,
            hubs,
            views,
            frames,
            pool: $pool,
            dirty,
            random,
            clock,
            metrics,
            settings,
            next_lane,
            quiet,
            relieved,
            holds,
            ..
        } = $shard;
        match conns.get_mut($key) {
            Some(Conn { socket, stage: Stage::Client(client) }) if socket.life == Life::Open => {
                let Client {
                    session: $session,
                    origin,
                    pins,
                    views: list,
                    received,
                    sent,
                    connection,
                    headers,
                    seen,
                    user,
                    carried,
                } = client;
                let settings = &*settings;
                let mut $side = $crate::shard::client::ClientSide {
                    now: $now,
                    socket,
                    lanes,
                    hubs,
                    views,
                    origin: *origin,
                    pins,
                    list,
                    received,
                    sent,
                    connection,
                    headers,
                    seen: seen.as_deref(),
                    user,
                    carried: carried.as_deref_mut(),
                    next_lane,
                    holds,
                    quiet: &mut quiet.filter,
                    gate: $crate::shard::lane::Gate { settings, frames, dirty, random, clock, metrics, relieved },
                };
                Some($body)
            }
            _ => None,
        }
    }};
}
pub(super) use with_client;

/// What came of received bytes, beside what they said.
struct Heard {
    /// A deadline has come nearer.
    hurries: bool,
    too_fast_until: Option<Time>,
}

impl Heard {
    fn of(session: &mut ClientSession, now: Time, settings: &Settings) -> Heard {
        Heard { hurries: session.take_hurry(), too_fast_until: session.too_fast_until(now, &settings.client) }
    }
}

impl<I: Io> Shard<I> {
    /// A valid upgrade of a client that lives and ends with this socket.
    pub(super) fn upgrade(&mut self, now: Time, mut begun: Begun<'_, '_>, accept: &[u8; 28]) -> Result<(), HttpError> {
        let key = begun.key;
        self.count_client(now, key, &begun)?;
        let Shard { conns, frames, dirty, settings, .. } = self;
        let Some(Conn { socket, .. }) = conns.get_mut(key) else { return Ok(()) };
        socket.out(frames, dirty, |out| http::upgrade_reply(accept, out));
        let session = ClientSession::new(now, Transport::WebSockets, false, &settings.client);
        self.make_client(now, key, &mut begun, session, None);
        Ok(())
    }

    /// The place in the table is a client's from now on. Its context is that of the request that began it.
    pub(super) fn make_client(
        &mut self,
        now: Time,
        key: SlotKey,
        begun: &mut Begun<'_, '_>,
        session: ClientSession,
        carried: Option<Box<Carried>>,
    ) {
        let name = self.random.next();
        let Shard { conns, settings, metrics, quiet, headers, seen, serials, .. } = self;
        let Some(Conn { stage: Stage::Http(http), .. }) = conns.get(begun.key) else { return };
        let peer = http.peer;
        let (local, mut remote) = ((peer.local.ip(), peer.local.port()), (peer.remote.ip(), peer.remote.port()));
        if let Some(client) = begun.client {
            remote = (client.ip, client.port);
        }
        let shown: Vec<(&str, &[u8])> = begun.head.headers().collect();
        // The HTTP connection's own name; Kestrel's look like this, too.
        let connection_id = format!("{name:016X}");
        let (connection, prepared, shortened) =
            settings.upstreams.show(&Peer { connection_id: &connection_id, local, remote, headers: &shown });
        if shortened {
            metrics.add(Counter::DroppedHeaders, 1);
            if let Some(suppressed) = quiet.headers.admit(now) {
                warn!(peer = %remote.0, "an app server is shown few of this client's headers, they are too long; name those it needs in `forward_headers`{suppressed}");
            }
        }
        let serial = serials.take();
        let origin = settings.origin_key.seal(Address { shard: settings.shard, slot: key.slot, serial });
        let transport = session.form().transport;
        let client = Client {
            session,
            origin,
            pins: smallvec![Pin::new(serial); settings.upstreams.len()],
            views: ViewList::default(),
            received: 0,
            sent: 0,
            connection,
            headers: headers.intern(&prepared[..]),
            seen: settings.upstreams.seen(begun.head.path, &shown).map(|new| seen.intern(new)),
            // Nobody upstream knows the client yet.
            user: begun.authenticated.take(),
            carried,
        };
        self.clients += 1;
        let Some(conn) = self.conns.get_mut(key) else { return };
        if let Stage::Http(http) = core::mem::replace(&mut conn.stage, Stage::Client(client)) {
            self.pool.give(http.buffer);
        }
        self.metrics.add(
            match transport {
                Transport::WebSockets => Counter::OpenedWebSockets,
                Transport::ServerSentEvents => Counter::OpenedServerSentEvents,
                Transport::LongPolling => Counter::OpenedLongPolling,
            },
            1,
        );
        self.wheel.set(key.slot, now.after(self.settings.client.handshake_timeout));
        self.set_moment(now, key);
        debug!(client = ?origin, peer = %remote.0, ?transport, "client connected");
    }

    /// A later request of the same client names its user anew.
    pub(super) fn set_user(&mut self, key: SlotKey, new: Box<User>) {
        let Shard { conns, lanes, hubs, .. } = self;
        if let Some(Conn { stage: Stage::Client(client), .. }) = conns.get_mut(key) {
            enter_user(key, &mut client.user, new, &mut client.pins, lanes, hubs);
        }
    }

    pub(super) fn on_client_bytes(&mut self, now: Time, key: SlotKey, mut input: Input<'_>) {
        let result = with_client!(self, now, key, |session, side, io, pool| {
            let result = session.on_bytes(now, input.bytes(io), &side.gate.settings.client, pool, &mut side);
            result.map(|()| Heard::of(session, now, side.gate.settings))
        });
        self.after_bytes(now, key, result);
    }

    /// The body of a POST.
    pub(super) fn on_client_body(&mut self, now: Time, key: SlotKey, body: &[u8]) {
        let result = with_client!(self, now, key, |session, side, _io, pool| {
            let result = session.on_body(now, body, &side.gate.settings.client, pool, &mut side);
            result.map(|()| Heard::of(session, now, side.gate.settings))
        });
        self.after_bytes(now, key, result);
    }

    /// Something came that is not looked at, but not for nothing.
    pub(super) fn on_useless_bytes(&mut self, now: Time, key: SlotKey) {
        let Shard { conns, settings, .. } = self;
        let Some(Conn { stage: Stage::Client(client), .. }) = conns.get_mut(key) else { return };
        client.session.count();
        let heard = Heard::of(&mut client.session, now, settings);
        self.after_bytes(now, key, Some(Ok(heard)));
    }

    fn after_bytes(&mut self, now: Time, key: SlotKey, result: Option<Result<Heard, End>>) {
        if core::mem::take(&mut self.holds) {
            self.pause(key, Pause::Lane);
        }
        let heard = match result {
            Some(Ok(heard)) => heard,
            Some(Err(end)) => return self.client_ends(now, key, end),
            None => return,
        };
        if let Some(until) = heard.too_fast_until {
            self.too_fast(now, key, until);
        }
        if heard.hurries {
            self.keep_no_more(key);
            self.on_client_time(now, key);
        }
    }

    /// A client has sent more than it may: the rest is read then.
    fn too_fast(&mut self, now: Time, key: SlotKey, until: Time) {
        self.pause(key, Pause::Rate);
        self.wheel.set_no_later(key.slot, until);
        if let Some(Conn { stage: Stage::Client(client), .. }) = self.conns.get(key)
            && let Some(suppressed) = self.quiet.rate.admit(now)
        {
            let rate = self.settings.client.rate.per_second;
            info!(client = ?client.origin, "a client sends more than {rate} messages a second (client_message_rate): it is read more slowly{suppressed}");
        }
    }

    /// A client whose handshake has shown that it cannot resume needs nothing kept.
    fn keep_no_more(&mut self, key: SlotKey) {
        let Shard { conns, frames, .. } = self;
        if let Some(Conn { stage: Stage::Client(Client { session, carried: Some(carried), .. }), .. }) =
            conns.get_mut(key)
            && session.is_open()
            && !session.is_resumable()
            && let Some(mut outbound) = carried.outbound.take()
        {
            outbound.release(frames);
        }
    }

    /// Does what is due for a client, and sets its next deadline.
    pub(super) fn on_client_time(&mut self, now: Time, key: SlotKey) {
        let Some(Conn { socket, stage: Stage::Client(client) }) = self.conns.get_mut(key) else { return };
        let mut next = socket.stalled_at(now, self.settings.send_queue_time);
        // What it has said meanwhile lies in the kernel, or is on its way out of it: a shard that was held up sees timers first.
        if !socket.paused.is_empty() || socket.ops.has(Ops::RECEIVE) {
            client.session.excuse(now);
        }
        if socket.paused.has(Pause::Rate) {
            match client.session.too_fast_until(now, &self.settings.client) {
                Some(until) => next = next.min(until),
                None => self.read_on(now, key, Pause::Rate),
            }
        }
        let Some(Conn { stage: Stage::Client(client), .. }) = self.conns.get(key) else { return };
        next = next.min(self.token_expires(now, client));
        if next <= now {
            return self.client_ends(now, key, End::TokenExpired);
        }
        let is_lost = client.carried.as_ref().is_some_and(|carried| carried.carrier.is_none());
        let is_polling = client.session.form().transport == Transport::LongPolling;
        if client.carried.is_some() {
            let Some(until) = self.on_carried_time(now, key) else { return };
            next = next.min(until);
        }
        // Nobody is there to be pinged or timed out; who polls has the handshake's deadline only.
        if !is_lost || is_polling {
            let result = with_client!(self, now, key, |session, side, _io, _pool| {
                session.on_time(now, &side.gate.settings.client, &mut side)
            });
            match result {
                Some(Ok(time)) => next = next.min(time),
                Some(Err(end)) => return self.client_ends(now, key, end),
                None => return,
            }
        }
        self.wheel.set(key.slot, next);
    }

    /// When a client's token is good no longer, if that is to be its end; never otherwise.
    pub(super) fn token_expires(&self, now: Time, client: &Client) -> Time {
        let ends = self.settings.authentication.as_ref().is_some_and(|authentication| authentication.closes_on_expiry);
        match client.user.as_ref().and_then(|user| user.expires) {
            Some(expires) if ends => now.after(Duration::from_secs(expires.saturating_sub(self.unix_seconds()))),
            _ => Time::NEVER,
        }
    }

    /// A client is at its end: the peer is told, and so is the app server if it knows the client.
    pub(super) fn client_ends(&mut self, now: Time, key: SlotKey, end: End) {
        let told = end.told();
        with_client!(self, now, key, |session, side, _io, pool| {
            session.close(&end, pool, &mut side);
            side.leave_upstreams();
        });
        let Shard { conns, lanes, hubs, views, io, frames, dirty, wheel, metrics, headers, seen, .. } = self;
        let Some(Conn { socket, stage }) = conns.get_mut(key) else { return };
        let Stage::Client(mut client) = core::mem::replace(stage, Stage::Over) else {
            unreachable!("only `connection_ends` and the handlers of clients call this, with a client");
        };
        headers.release(client.headers);
        if let Some(of_client) = client.seen {
            seen.release(of_client);
        }
        self.clients -= 1;
        views.close_all(&mut client.views);
        client.pins.iter_mut().for_each(|pin| pin.repin(key, None, None, lanes, hubs));
        if let Some(carried) = client.carried {
            let transport = client.session.form().transport;
            self.carried_ends(now, key, *carried, transport, &end);
        } else if told.close_code.is_some() {
            socket.drain(io, dirty);
            wheel.set(key.slot, linger_until(now));
        } else {
            socket.end(io, frames, metrics);
        }
        self.metrics.add(Counter::client_end(end.label()), 1);
        if !end.is_ordinary()
            && let Some(suppressed) = self.quiet.client_ended.admit(now)
        {
            info!(client = ?client.origin, "client ended: {} ({end:?}){suppressed}", end.label());
        } else {
            debug!(client = ?client.origin, "client gone: {} ({end:?})", end.label());
        }
        self.join(now, key);
    }

    /// Ends the clients that were found to be at their end while other bytes were handled.
    pub(super) fn end_clients(&mut self, now: Time) {
        while let Some((key, end)) = self.ending.pop() {
            // Found twice, or ended by itself meanwhile: its goodbye may be on its way and must not be cut.
            if self.conns.get(key).is_some_and(|conn| conn.socket.life == Life::Open) {
                self.connection_ends(now, key, end);
            }
        }
    }
}
