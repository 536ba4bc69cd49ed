//! Clients of this shard: from the upgrade to the end.
use super::Shard;
use super::lane::{From, Gate, Lane};
use super::socket::{Client, Conn, Life, Socket, Stage, linger_until};
use crate::ids::{Address, SlotKey, Time};
use crate::limits::CONTEXT_BYTES_MAX;
use crate::metrics::Counter;
use crate::proto::dotnetify::context::{self, Peer, Prepared};
use crate::proto::dotnetify::request::{Call, Request};
use crate::proto::http::{self, Head};
use crate::proto::signalr::Protocol;
use crate::session::client::{ClientEnv, ClientSession, Note};
use crate::session::fault::{self, End, Refusal};
use crate::session::groups::Memberships;
use crate::sys::{Io, Received};
use tracing::{debug, info, warn};

/// What a client's session acts on: its own socket and its lane.
struct ClientSide<'a> {
    now: Time,
    socket: &'a mut Socket,
    lane: &'a mut Lane,
    forwarded: &'a mut bool,
    origin: crate::ids::OriginId,
    context: [&'a [u8]; 2],
    gate: Gate<'a>,
}

impl ClientEnv for ClientSide<'_> {
    fn out<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        self.socket.out(self.gate.frames, self.gate.dirty, write)
    }

    fn forward(&mut self, request: &Request, record: &[u8]) -> Result<(), Refusal> {
        let from = From { client: self.socket.key, origin: &self.origin, context: self.context };
        let on_lane = self.lane.request(self.now, from, request, record, &mut self.gate)?;
        *self.forwarded |= on_lane;
        Ok(())
    }

    fn note(&mut self, note: Note) {
        let metrics = &mut *self.gate.metrics;
        match note {
            Note::HandshakeDone => metrics.add(Counter::Handshakes, 1),
            Note::Ping => metrics.add(Counter::ClientPing, 1),
            Note::Request(Call::RequestVm) => metrics.add(Counter::ClientRequestVm, 1),
            Note::Request(Call::UpdateVm) => metrics.add(Counter::ClientUpdateVm, 1),
            Note::Request(Call::DisposeVm) => metrics.add(Counter::ClientDisposeVm, 1),
            Note::RequestError(error) => {
                metrics.add(Counter::ClientBadRequest, 1);
                metrics.add(Counter::refusal(fault::request_label(error)), 1);
            }
            Note::Refused(refusal) => metrics.add(Counter::refusal(refusal.label()), 1),
            Note::Ignored => metrics.add(Counter::ClientOther, 1),
        }
    }
}

/// Calls into a client's session with everything it may act on.
macro_rules! with_client {
    ($shard:expr, $now:expr, $key:expr, |$session:ident, $side:ident, $io:ident, $pool:ident| $body:expr) => {{
        let Shard { io: $io, conns, lanes, frames, pool: $pool, dirty, random, clock, metrics, settings, .. } = $shard;
        match conns.get_mut($key) {
            Some(Conn { socket, stage: Stage::Client(client) }) if socket.life == Life::Open => {
                let Client { session: $session, lane, forwarded, origin, connection, headers, .. } = client;
                let settings = &*settings;
                let mut $side = ClientSide {
                    now: $now,
                    socket,
                    lane: &mut lanes[lane.0 as usize],
                    forwarded,
                    origin: *origin,
                    context: [connection, headers],
                    gate: Gate { settings, frames, dirty, random, clock, metrics },
                };
                Some($body)
            }
            _ => None,
        }
    }};
}

impl<I: Io> Shard<I> {
    /// A valid upgrade: the connection is a client from now on.
    pub(super) fn upgrade(&mut self, now: Time, key: SlotKey, head: &Head<'_>, accept: &[u8; 28], early: &[u8]) {
        let lane = self.choose_lane();
        let name = self.random.next();
        let Shard { conns, frames, dirty, settings, metrics, quiet, headers, .. } = self;
        let Some(Conn { socket, stage }) = conns.get_mut(key) else { return };
        let Stage::Http(http) = stage else { return };
        let (local, peer) = (http.local, http.peer);
        // The HTTP connection's own name; Kestrel's look like this, too.
        let connection_id = format!("{name:016X}");
        let context = |admits: &dyn Fn(&str) -> bool| {
            let shown: Vec<(&str, &[u8])> = head.headers().filter(|(name, _)| admits(name)).collect();
            let (local, remote) = ((local.ip(), local.port()), (peer.ip(), peer.port()));
            context::prepare(Protocol::Json, &Peer { connection_id: &connection_id, local, remote, headers: &shown })
        };
        let bytes = |prepared: &Prepared| prepared.connection.len() + prepared.headers.len();
        let policy = &settings.forward_headers;
        let mut prepared = context(&|name| policy.admits(name));
        if bytes(&prepared) > CONTEXT_BYTES_MAX {
            // It goes with every message and is kept as long as the client lives. First what identifies the client is kept
            // (contract 6.6), then nothing.
            let few = ["host", "user-agent"];
            prepared = context(&|name| policy.admits(name) && few.iter().any(|few| few.eq_ignore_ascii_case(name)));
            if bytes(&prepared) > CONTEXT_BYTES_MAX {
                prepared = context(&|_| false);
            }
            metrics.add(Counter::DroppedHeaders, 1);
            if let Some(suppressed) = quiet.headers.admit(now) {
                warn!(%peer, "the app server is shown few of this client's headers, they are too long; name those it needs in `forward_headers`{suppressed}");
            }
        }
        socket.out(frames, dirty, |out| http::upgrade_reply(accept, out));
        let session = ClientSession::new(now, &settings.client);
        let origin = settings.origin_key.seal(Address { shard: settings.shard, key });
        *stage = Stage::Client(Client {
            session,
            lane,
            forwarded: false,
            origin,
            memberships: Memberships::default(),
            connection: prepared.connection,
            headers: headers.intern(&prepared.headers),
        });
        self.lanes[lane.0 as usize].clients += 1;
        self.metrics.add(Counter::ClientsOpened, 1);
        self.wheel.set(key.slot, now.after(self.settings.client.handshake_timeout));
        debug!(client = ?origin, %peer, "client connected");
        if !early.is_empty() {
            let mut early = early.to_vec();
            let result = with_client!(self, now, key, |session, side, _io, pool| {
                let result = session.on_bytes(now, &mut early, &side.gate.settings.client, pool, &mut side);
                result.map(|()| session.is_open())
            });
            self.after_bytes(now, key, result);
        }
    }

    /// A client that nobody upstream knows yet need not wait for its lane while another is up.
    fn leave_dead_lane(&mut self, key: SlotKey) {
        let Some(Conn { stage: Stage::Client(client), .. }) = self.conns.get(key) else { return };
        let lane = &self.lanes[client.lane.0 as usize];
        // What waits in front of the lane may be this client's: overtaking it would break its order.
        if client.forwarded || lane.is_up() || lane.waiting() > 0 {
            return;
        }
        let better = self.choose_lane();
        if let Some(Conn { stage: Stage::Client(client), .. }) = self.conns.get_mut(key)
            && self.lanes[better.0 as usize].is_up()
        {
            self.lanes[client.lane.0 as usize].clients -= 1;
            self.lanes[better.0 as usize].clients += 1;
            client.lane = better;
        }
    }

    pub(super) fn on_client_bytes(&mut self, now: Time, key: SlotKey, received: &Received) {
        self.leave_dead_lane(key);
        let result = with_client!(self, now, key, |session, side, io, pool| {
            let was_open = session.is_open();
            let result = session.on_bytes(now, io.buffer(received), &side.gate.settings.client, pool, &mut side);
            result.map(|()| session.is_open() && !was_open)
        });
        self.after_bytes(now, key, result);
    }

    /// `result`: has the handshake just been done? Then its deadline gives way to the pings'.
    fn after_bytes(&mut self, now: Time, key: SlotKey, result: Option<Result<bool, End>>) {
        match result {
            Some(Ok(true)) => self.wheel.set(key.slot, now.after(self.settings.client.keep_alive)),
            Some(Ok(false)) | None => {}
            Some(Err(end)) => self.client_ends(now, key, end),
        }
    }

    pub(super) fn on_client_time(&mut self, now: Time, key: SlotKey) {
        let result = with_client!(self, now, key, |session, side, _io, _pool| {
            session.on_time(now, &side.gate.settings.client, &mut side)
        });
        match result {
            Some(Ok(next)) => self.wheel.set(key.slot, next),
            Some(Err(end)) => self.client_ends(now, key, end),
            None => {}
        }
    }

    /// A client is at its end: the peer is told, and so is the app server if it knows the client.
    pub(super) fn client_ends(&mut self, now: Time, key: SlotKey, end: End) {
        let told = end.told();
        with_client!(self, now, key, |session, side, _io, pool| {
            session.close(&end, pool, &mut side);
            if *side.forwarded {
                side.lane.disconnected(&side.origin, side.context, &mut side.gate);
            }
        });
        let Shard { conns, lanes, io, frames, wheel, metrics, headers, .. } = self;
        let Some(Conn { socket, stage }) = conns.get_mut(key) else { return };
        let Stage::Client(mut client) = core::mem::replace(stage, Stage::Over) else {
            unreachable!("only `connection_ends` and the handlers of clients call this, with a client");
        };
        headers.release(client.headers);
        let lane = &mut lanes[client.lane.0 as usize];
        lane.clients -= 1;
        lane.groups.leave_all(&mut client.memberships);
        if told.close_code.is_some() {
            socket.drain(io);
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

    /// Stops: no new connections; everybody is told to come back (to another node, or later).
    pub(super) fn stop(&mut self, now: Time) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(now.after(core::time::Duration::from_millis(crate::limits::STOP_MS)));
        // Closing the listener while the multishot accept holds it would keep the port: call the accept back.
        self.io.cancel(super::turn::own_token(crate::sys::Op::Accept));
        if let Some(listener) = &self.listener {
            self.io.shutdown(std::os::fd::AsRawFd::as_raw_fd(listener));
        }
        self.listener = None;
        for slot in 0..self.conns.slots() {
            let Some(key) = self.conns.key_at(slot) else { continue };
            self.connection_ends(now, key, End::Stopping);
        }
    }

    pub(super) fn on_stopping(&mut self, now: Time) {
        let Some(until) = self.stopping else { return };
        let clients_told = self.conns.is_empty() || now.after(core::time::Duration::from_secs(1)) >= until;
        let lanes_closed = clients_told && self.close_lanes(now);
        if (self.conns.is_empty() && lanes_closed) || now >= until {
            self.stopped = true;
            let stopped = crate::bus::ControlOrder::Stopped { shard: self.settings.shard };
            // A control plane that does not listen any more needs not be told.
            let _ = self.control.send(stopped);
        }
    }
}
