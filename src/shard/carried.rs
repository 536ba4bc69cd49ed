//! Clients whose socket comes and goes: Server-Sent Events with their POSTs, long polling, WebSockets with stateful reconnect.
//!
//! Such a client has a place in the table of its own, without a socket. What is queued for it is moved at the end of the turn to the
//! connection that carries it at present: its WebSocket, its event stream, the poll that waits.
//!
//! ```text
//!   POST --body--> client --queue--> [carrier] WebSocket | event stream | waiting poll
//!                    ^  |                         |
//!                    |  +--no carrier: until------+ gone
//!                    +------------- the next poll, the resumed WebSocket
//! ```
use super::Shard;
use super::client::with_client;
use super::connections::Found;
use super::socket::{Carried, Client, Conn, Input, Life, NO_SOCKET, Parked, Socket, Stage, User, linger_until};
use crate::ids::{SlotKey, Time};
use crate::metrics::Counter;
use crate::proto::http::{self, Cors, Head, HttpError, PollReply};
use crate::session::client::ClientSession;
use crate::session::fault::End;
use crate::session::form::Transport;
use crate::session::resume::Outbound;
use crate::session::token::{ConnectionId, Opened};
use crate::sys::Io;
use tracing::{debug, info};

/// A request that begins or carries on a client.
pub(super) struct Begun<'a, 'h> {
    /// The connection it came on.
    pub(super) key: SlotKey,
    pub(super) head: &'a Head<'h>,
    /// Where it came from, if a proxy is trusted to say so.
    pub(super) client: Option<http::Forwarded>,
    pub(super) authenticated: Option<Box<User>>,
    pub(super) cors: Cors<'h>,
}

/// A client found by its connection id.
struct Owner {
    key: SlotKey,
    transport: Transport,
    carrier: Option<SlotKey>,
}

impl<I: Io> Shard<I> {
    fn owner(&mut self, id: &ConnectionId) -> Option<Owner> {
        let Found::Held(key) = self.connections.find(id) else { return None };
        match self.conns.get(key) {
            Some(Conn { stage: Stage::Client(Client { session, carried: Some(carried), .. }), .. }) => {
                Some(Owner { key, transport: session.form().transport, carrier: carried.carrier })
            }
            _ => None,
        }
    }

    /// May this token begin a connection over `transport`? Otherwise it is told why not.
    fn check_unused(&self, token: &Opened, transport: Transport) -> Result<(), HttpError> {
        self.check_offered(transport)?;
        if self.refuses(transport == Transport::WebSockets) {
            return Err(HttpError::Stopping);
        }
        match self.connections.find(&token.token.connection) {
            // Several requests: the next ones go where the token says. Begun here, because its own node is down and the balancer passes
            // it on, the client would find nobody with its second request.
            Found::Unknown if !token.is_own && transport != Transport::WebSockets => Err(HttpError::UnknownConnection),
            Found::Unknown if token.is_fresh => Ok(()),
            Found::Unknown => Err(HttpError::UnknownConnection),
            // What is left of a polling client is fetched by polls.
            Found::Held(_) => Err(HttpError::UnknownConnection),
            // Of those that are not held, all are WebSockets.
            Found::Used(key) if self.is_client(key) => Err(match transport {
                Transport::WebSockets => HttpError::AlreadyActive,
                Transport::ServerSentEvents | Transport::LongPolling => HttpError::TransportChanged,
            }),
            Found::Used(_) => Err(HttpError::UnknownConnection),
        }
    }

    /// Asked where a connection begins: who is there keeps its transport when the configuration withdraws it.
    fn check_offered(&self, transport: Transport) -> Result<(), HttpError> {
        let offered = self.settings.http.transports;
        match transport {
            Transport::WebSockets if !offered.web_sockets => Err(HttpError::WebSocketsNotSupported),
            Transport::ServerSentEvents if !offered.server_sent_events => Err(HttpError::ServerSentEventsNotSupported),
            Transport::LongPolling if !offered.long_polling => Err(HttpError::LongPollingNotSupported),
            _ => Ok(()),
        }
    }

    fn is_client(&self, key: SlotKey) -> bool {
        matches!(self.conns.get(key), Some(Conn { stage: Stage::Client(_), .. }))
    }

    /// Is this the connection that carries the client at present?
    fn is_carried_by(&self, client: SlotKey, key: SlotKey) -> bool {
        matches!(self.conns.get(client), Some(Conn { stage: Stage::Client(Client { carried: Some(carried), .. }), .. })
            if carried.carrier == Some(key))
    }

    /// A valid upgrade: a client of its own socket, or one that may change it.
    pub(super) fn on_upgrade(
        &mut self,
        now: Time,
        mut begun: Begun<'_, '_>,
        accept: &[u8; 28],
        token: Option<Opened>,
        early: &[u8],
    ) -> Result<(), HttpError> {
        let key = begun.key;
        let Some(token) = token else {
            if self.refuses(true) {
                return Err(HttpError::Stopping);
            }
            self.upgrade(now, begun, accept)?;
            self.early_bytes(now, key, early);
            return Ok(());
        };
        let connection = token.token.connection;
        if let Some(owner) = self.owner(&connection) {
            if owner.transport != Transport::WebSockets {
                return Err(HttpError::TransportChanged);
            }
            self.resume(now, owner.key, begun, accept)?;
            self.early_bytes(now, key, early);
            return Ok(());
        }
        self.check_unused(&token, Transport::WebSockets)?;
        match (token.token.resumable, self.settings.resume_bytes_max) {
            (true, Some(_)) => {
                let client = self.begin(now, &mut begun, Transport::WebSockets, connection)?;
                self.carry(key, client, |out| http::upgrade_reply(accept, out));
            }
            _ => {
                self.upgrade(now, begun, accept)?;
                self.connections.used(now, connection, key);
            }
        }
        self.early_bytes(now, key, early);
        Ok(())
    }

    /// Frames that came right behind the upgrade.
    fn early_bytes(&mut self, now: Time, key: SlotKey, early: &[u8]) {
        if early.is_empty() {
            return;
        }
        let mut early = early.to_vec();
        match self.conns.get(key).map(|conn| &conn.stage) {
            Some(Stage::Client(_)) => self.on_client_bytes(now, key, Input::Bytes(&mut early)),
            Some(&Stage::Carrier(client)) => self.on_carrier_bytes(now, client, Input::Bytes(&mut early)),
            _ => {}
        }
    }

    pub(super) fn on_event_stream(
        &mut self,
        now: Time,
        mut begun: Begun<'_, '_>,
        token: Opened,
    ) -> Result<(), HttpError> {
        let connection = token.token.connection;
        if let Some(owner) = self.owner(&connection) {
            return Err(match owner.transport {
                Transport::ServerSentEvents => HttpError::AlreadyActive,
                _ => HttpError::TransportChanged,
            });
        }
        self.check_unused(&token, Transport::ServerSentEvents)?;
        let client = self.begin(now, &mut begun, Transport::ServerSentEvents, connection)?;
        self.carry(begun.key, client, |out| http::event_stream_reply(begun.cors, out));
        self.early_body(now, client, &connection);
        Ok(())
    }

    /// What the client POSTed before it had a transport.
    fn early_body(&mut self, now: Time, client: SlotKey, connection: &ConnectionId) {
        if let Some(body) = self.connections.take_early(connection) {
            self.on_client_body(now, client, &body);
        }
    }

    /// A poll: answered at once, or (None) when there is something to say.
    pub(super) fn on_poll(
        &mut self,
        now: Time,
        mut begun: Begun<'_, '_>,
        token: Opened,
        keep_alive: bool,
    ) -> Result<Option<PollReply>, HttpError> {
        let connection = token.token.connection;
        if let Found::Held(left) = self.connections.find(&connection)
            && let Some(Conn { socket, stage: Stage::LastPolls(..) }) = self.conns.get_mut(left)
        {
            if socket.queue.is_empty() {
                self.remove_carried(left, connection);
                return Ok(Some(PollReply::Ended));
            }
            let parked = parked(left, &begun, keep_alive);
            self.answer_poll(now, begun.key, &parked);
            return Ok(None);
        }
        let Some(owner) = self.owner(&connection) else {
            self.check_unused(&token, Transport::LongPolling)?;
            let client = self.begin(now, &mut begun, Transport::LongPolling, connection)?;
            self.no_carrier(now, client);
            self.early_body(now, client, &connection);
            return Ok(Some(PollReply::First));
        };
        if owner.transport != Transport::LongPolling {
            return Err(HttpError::TransportChanged);
        }
        if let Some(older) = owner.carrier {
            self.end_poll(now, older, PollReply::Ended);
        }
        let parked = parked(owner.key, &begun, keep_alive);
        if let Some(user) = begun.authenticated {
            // The server takes over the user of each poll (reference 1.2).
            self.set_user(owner.key, user);
        }
        if let Some(Conn { stage: Stage::Http(http), .. }) = self.conns.get_mut(begun.key) {
            http.parked = Some(parked);
            http.until = Time::NEVER;
            self.wheel.clear(begun.key.slot);
        }
        self.wait_until(now, owner.key, Some(begun.key), now.after(self.settings.poll_timeout));
        self.pumped.push(owner.key);
        self.pump();
        Ok(None)
    }

    /// May a POST for this connection be taken now, as far as its client goes?
    pub(super) fn takes_posts(&mut self, token: &Opened) -> bool {
        !self.owner(&token.token.connection).is_some_and(|owner| self.is_paused(owner.key))
    }

    pub(super) fn on_post(
        &mut self,
        now: Time,
        token: Opened,
        authenticated: Option<Box<User>>,
        body: &[u8],
    ) -> Result<(), HttpError> {
        let connection = token.token.connection;
        let Some(owner) = self.owner(&connection) else {
            return match self.connections.find(&connection) {
                // Of another node's nobody will ever fetch it here: its transport does not begin on this node (`check_unused`).
                Found::Unknown if !token.is_own || !token.is_fresh => Err(HttpError::UnknownConnection),
                Found::Unknown if self.refuses(false) => Err(HttpError::Stopping),
                Found::Unknown => {
                    let until = now.after(self.settings.disconnect_timeout);
                    let bytes_max = self.settings.http.post_body_bytes_max as usize;
                    let kept = self.connections.keep_early(until, connection, body, bytes_max);
                    if kept { Ok(()) } else { Err(HttpError::Overloaded) }
                }
                Found::Used(key) if self.is_client(key) => Err(HttpError::PostToWebSocket),
                _ => Err(HttpError::UnknownConnection),
            };
        };
        if owner.transport == Transport::WebSockets {
            return Err(HttpError::PostToWebSocket);
        }
        debug_assert!(!self.is_paused(owner.key), "`takes_posts` is asked first");
        if let Some(user) = authenticated {
            self.set_user(owner.key, user);
        }
        self.on_client_body(now, owner.key, body);
        Ok(())
    }

    pub(super) fn on_delete(&mut self, now: Time, token: Opened) -> Result<(), HttpError> {
        let connection = token.token.connection;
        match (self.owner(&connection), self.connections.find(&connection)) {
            (Some(Owner { key, transport: Transport::LongPolling, .. }), _) => {
                self.client_ends(now, key, End::Deleted);
                Ok(())
            }
            (None, Found::Held(left)) => {
                self.remove_carried(left, connection);
                Ok(())
            }
            (None, Found::Unknown) => Err(HttpError::UnknownConnection),
            (None, Found::Used(key)) if !self.is_client(key) => Err(HttpError::UnknownConnection),
            _ => Err(HttpError::DeleteNotLongPolling),
        }
    }

    /// Makes a client with a place of its own.
    fn begin(
        &mut self,
        now: Time,
        begun: &mut Begun<'_, '_>,
        transport: Transport,
        id: ConnectionId,
    ) -> Result<SlotKey, HttpError> {
        if self.is_full() {
            return Err(HttpError::Overloaded);
        }
        let over = |key| Conn { socket: Socket::new(key, NO_SOCKET), stage: Stage::Over };
        let key = self.take_place(over).ok_or(HttpError::Overloaded)?;
        if let Err(error) = self.count_client(now, key, begun) {
            self.free_place(key);
            return Err(error);
        }
        let is_resumable = transport == Transport::WebSockets;
        let session = ClientSession::new(now, transport, is_resumable, &self.settings.client);
        let outbound = is_resumable.then(Outbound::default);
        let carried = Carried { id, carrier: None, until: Time::NEVER, outbound };
        self.make_client(now, key, begun, session, Some(Box::new(carried)));
        self.connections.used(now, id, key);
        self.connections.hold(id, key);
        Ok(key)
    }

    /// The connection is the client's socket from now on; `reply` begins what is sent on it.
    fn carry(&mut self, key: SlotKey, client: SlotKey, reply: impl FnOnce(&mut Vec<u8>)) {
        let Shard { conns, frames, dirty, wheel, pool, .. } = self;
        let paused = conns.get(client).map(|conn| conn.socket.paused).unwrap_or_default();
        if let Some(Conn { socket, stage }) = conns.get_mut(key) {
            socket.paused = paused;
            socket.out(frames, dirty, reply);
            if let Stage::Http(http) = core::mem::replace(stage, Stage::Carrier(client)) {
                pool.give(http.buffer);
            }
            wheel.clear(key.slot);
        }
        if let Some(Conn { stage: Stage::Client(Client { carried: Some(carried), .. }), .. }) = conns.get_mut(client) {
            carried.carrier = Some(key);
            carried.until = Time::NEVER;
        }
    }

    /// A WebSocket of a client that is there: it goes on over this one (reference 14), which replaces the one it has.
    fn resume(&mut self, now: Time, client: SlotKey, begun: Begun<'_, '_>, accept: &[u8; 28]) -> Result<(), HttpError> {
        let Some(Conn { socket, stage: Stage::Client(Client { session, carried: Some(carried), .. }) }) =
            self.conns.get_mut(client)
        else {
            return Err(HttpError::UnknownConnection);
        };
        let older = carried.carrier.take();
        let sequence = match &carried.outbound {
            Some(outbound) if session.is_resumable() && outbound.is_whole() => outbound.sequence(),
            // It has its socket, and no stateful reconnect.
            _ if older.is_some() => {
                carried.carrier = older;
                return Err(HttpError::AlreadyActive);
            }
            _ => {
                self.client_ends(now, client, End::Inactive);
                return Err(HttpError::UnknownConnection);
            }
        };
        // What was queued and has not left is among what is sent again.
        self.frames.clear(&mut socket.queue);
        if let Some(older) = older {
            self.drop_carrier(now, older);
        }
        self.carry(begun.key, client, |out| http::upgrade_reply(accept, out));
        with_client!(self, now, client, |session, side, _io, pool| {
            session.resume(now, sequence, &side.gate.settings.client, pool, &mut side);
        });
        let Shard { conns, frames, dirty, .. } = self;
        if let Some(Conn { socket, stage: Stage::Client(Client { carried: Some(carried), .. }) }) =
            conns.get_mut(client)
            && let Some(outbound) = &carried.outbound
        {
            outbound.replay(frames, &mut socket.queue);
            socket.mark(dirty);
        }
        if let Some(user) = begun.authenticated {
            self.set_user(client, user);
        }
        self.metrics.add(Counter::Resumed, 1);
        debug!(?client, "client resumed");
        self.on_client_time(now, client);
        Ok(())
    }

    pub(super) fn on_carrier_bytes(&mut self, now: Time, client: SlotKey, input: Input<'_>) {
        let is_socket = match self.conns.get(client) {
            Some(Conn { stage: Stage::Client(client), .. }) => client.session.form().transport == Transport::WebSockets,
            _ => false,
        };
        // Nothing is awaited on an event stream's connection; what comes anyway is thrown away.
        if is_socket {
            self.on_client_bytes(now, client, input);
        } else {
            self.on_useless_bytes(now, client);
        }
    }

    /// A connection that carries a client is at its end.
    pub(super) fn carrier_ends(&mut self, now: Time, key: SlotKey, client: SlotKey, end: End) {
        if !self.is_carried_by(client, key) {
            return self.drop_carrier(now, key);
        }
        // Whatever ends a socket but a word of its client (reference 14); TLS that breaks is no word.
        let survives = matches!(end, End::PeerGone | End::SocketError(_) | End::StalledClient | End::Tls(_))
            && matches!(self.conns.get(client), Some(Conn { stage: Stage::Client(Client { session, carried: Some(carried), .. }), .. })
                if session.is_resumable() && carried.outbound.as_ref().is_some_and(Outbound::is_whole));
        if survives {
            self.drop_carrier(now, key);
            self.no_carrier(now, client);
            self.metrics.add(Counter::Detached, 1);
            // A word of its own: a socket that ends is its network's doing, one that takes nothing is ended here.
            if end == End::StalledClient
                && let Some(suppressed) = self.quiet.detached.admit(now)
                && let Some(Conn { stage: Stage::Client(Client { origin, .. }), .. }) = self.conns.get(client)
            {
                info!(client = ?origin, "a client's socket ended: it took nothing for too long; the client may resume{suppressed}");
            }
        } else {
            self.client_ends(now, client, end);
        }
    }

    /// Ends a connection that carried a client, without a word.
    fn drop_carrier(&mut self, now: Time, key: SlotKey) {
        let Shard { conns, io, frames, metrics, .. } = self;
        if let Some(Conn { socket, stage }) = conns.get_mut(key) {
            *stage = Stage::Over;
            socket.end(io, frames, metrics);
            self.join(now, key);
        }
    }

    /// A client without a carrier has `disconnect_timeout` to get another one.
    pub(super) fn no_carrier(&mut self, now: Time, client: SlotKey) {
        self.wait_until(now, client, None, now.after(self.settings.disconnect_timeout));
    }

    /// A client waits, with a poll or without a carrier, until then at most.
    fn wait_until(&mut self, now: Time, key: SlotKey, carrier: Option<SlotKey>, until: Time) {
        let Some(Conn { stage: Stage::Client(client), .. }) = self.conns.get(key) else { return };
        // It still has its handshake to do, and a token that may expire.
        let mut next = until.min(client.session.handshake_until()).min(self.token_expires(now, client));
        if self.is_paused(key) {
            // Its next deadline may be the end of the pause.
            next = next.min(now);
        }
        self.wheel.set(key.slot, next);
        if let Some(Conn { stage: Stage::Client(Client { carried: Some(carried), .. }), .. }) = self.conns.get_mut(key)
        {
            carried.carrier = carrier;
            carried.until = until;
        }
    }

    /// The connection of a waiting poll is gone.
    pub(super) fn poll_gone(&mut self, now: Time, key: SlotKey, client: SlotKey) {
        if self.is_carried_by(client, key) {
            self.no_carrier(now, client);
        }
    }

    /// The deadline of a carried client. None: it is over.
    pub(super) fn on_carried_time(&mut self, now: Time, client: SlotKey) -> Option<Time> {
        let Some(Conn { stage: Stage::Client(Client { carried: Some(carried), .. }), .. }) = self.conns.get(client)
        else {
            return Some(Time::NEVER);
        };
        let (until, carrier) = (carried.until, carried.carrier);
        if now < until {
            return Some(until);
        }
        match carrier {
            // Nothing to say for the whole time of a poll.
            Some(poll) => {
                self.end_poll(now, poll, PollReply::TimedOut);
                self.no_carrier(now, client);
                Some(now.after(self.settings.disconnect_timeout))
            }
            None => {
                self.client_ends(now, client, End::Inactive);
                None
            }
        }
    }

    /// Answers a waiting poll without content.
    pub(super) fn end_poll(&mut self, now: Time, key: SlotKey, answer: PollReply) {
        let Some(Parked { cors, keep_alive, body_bytes, .. }) = self.unpark(key) else { return };
        let mut reply = self.pool.take();
        http::poll_reply(answer, cors.as_cors(), keep_alive, &mut reply);
        self.send_reply(now, key, &reply, keep_alive, body_bytes);
        self.pool.give(reply);
        self.serve_later(key);
    }

    /// A poll waits no more: it is answered now.
    fn unpark(&mut self, key: SlotKey) -> Option<Parked> {
        match self.conns.get_mut(key) {
            Some(Conn { stage: Stage::Http(http), .. }) => http.parked.take(),
            _ => None,
        }
    }

    /// Requests may have come behind the poll.
    fn serve_later(&mut self, key: SlotKey) {
        if matches!(self.conns.get(key), Some(Conn { stage: Stage::Http(http), .. }) if !http.buffer.is_empty()) {
            self.unserved.push(key);
        }
    }

    /// Answers a poll, which is parked no more, with everything that is queued for its client.
    fn answer_poll(&mut self, now: Time, key: SlotKey, parked: &Parked) {
        let &Parked { client, ref cors, keep_alive, body_bytes } = parked;
        let Some(bytes) = self.conns.get(client).map(|conn| conn.socket.queue.bytes()) else { return };
        let mut reply = self.pool.take();
        http::poll_reply(PollReply::Data { bytes: bytes as usize }, cors.as_cors(), keep_alive, &mut reply);
        let mut queue = match self.conns.get_mut(client) {
            Some(conn) => core::mem::take(&mut conn.socket.queue),
            None => return,
        };
        let Shard { conns, frames, .. } = self;
        if let Some(Conn { socket, .. }) = conns.get_mut(key)
            && socket.life == Life::Open
        {
            frames.append(&mut socket.queue, |out| out.extend_from_slice(&reply));
            frames.splice(&mut queue, &mut socket.queue);
        }
        frames.clear(&mut queue);
        self.pool.give(reply);
        // Nothing more, but its state and deadline.
        self.send_reply(now, key, b"", keep_alive, body_bytes);
        self.serve_later(key);
    }

    /// Moves what is queued for carried clients to the connections that carry them.
    pub(super) fn pump(&mut self) {
        let now = self.io.now();
        while let Some(client) = self.pumped.pop() {
            self.pump_one(now, client);
        }
    }

    fn pump_one(&mut self, now: Time, client: SlotKey) {
        let Some(Conn { socket, stage: Stage::Client(state) }) = self.conns.get_mut(client) else { return };
        let (transport, Some(carried)) = (state.session.form().transport, &state.carried) else { return };
        let Some(carrier) = carried.carrier else {
            match transport {
                // It waits for the next poll, up to the bound that every client has; one message that is larger is no fault.
                Transport::LongPolling => {
                    if self.frames.cost_behind_head(&socket.queue) > self.settings.send_queue_bytes_max {
                        self.ending.push((client, End::SlowClient));
                    }
                }
                // What counts is kept to be sent again.
                _ => drop(self.frames.clear(&mut socket.queue)),
            }
            return;
        };
        if socket.queue.is_empty() {
            return;
        }
        if transport == Transport::LongPolling {
            let Some(parked) = self.unpark(carrier) else { return };
            self.answer_poll(now, carrier, &parked);
            return self.no_carrier(now, client);
        }
        let mut queue = core::mem::take(&mut socket.queue);
        let Shard { conns, frames, dirty, .. } = self;
        if let Some(Conn { socket, .. }) = conns.get_mut(carrier)
            && socket.life == Life::Open
        {
            frames.splice(&mut queue, &mut socket.queue);
            socket.mark(dirty);
        }
        frames.clear(&mut queue);
    }

    /// A carried client has ended and its last words are queued: they leave, and its place is freed.
    pub(super) fn carried_ends(
        &mut self,
        now: Time,
        client: SlotKey,
        carried: Carried,
        transport: Transport,
        end: &End,
    ) {
        let Carried { id, carrier, outbound, .. } = carried;
        if let Some(mut outbound) = outbound {
            outbound.release(&mut self.frames);
        }
        let told = end.told().close_code.is_some();
        match (transport, carrier) {
            (Transport::LongPolling, carrier) => {
                let Some(Conn { socket, .. }) = self.conns.get(client) else { return };
                let has_words = !socket.queue.is_empty();
                if let Some(poll) = carrier {
                    if !has_words || !told {
                        self.end_poll(now, poll, PollReply::Ended);
                        return self.remove_carried(client, id);
                    }
                    if let Some(parked) = self.unpark(poll) {
                        self.answer_poll(now, poll, &parked);
                    }
                }
                if !told || self.stopping.is_some() {
                    return self.remove_carried(client, id);
                }
                // The next poll fetches the last words, or learns by a 204 that there are no more.
                if let Some(conn) = self.conns.get_mut(client) {
                    let until = now.after(self.settings.disconnect_timeout);
                    conn.stage = Stage::LastPolls(id, until);
                    self.wheel.set(client.slot, until);
                }
            }
            (_, Some(carrier)) => {
                let Shard { conns, frames, dirty, io, metrics, wheel, .. } = self;
                let mut queue = match conns.get_mut(client) {
                    Some(conn) => core::mem::take(&mut conn.socket.queue),
                    None => return,
                };
                if let Some(Conn { socket, stage }) = conns.get_mut(carrier) {
                    *stage = Stage::Over;
                    if told && socket.life == Life::Open {
                        frames.splice(&mut queue, &mut socket.queue);
                        socket.drain(io, dirty);
                        wheel.set(carrier.slot, linger_until(now));
                    } else {
                        socket.end(io, frames, metrics);
                    }
                }
                frames.clear(&mut queue);
                self.join(now, carrier);
                self.remove_carried(client, id);
            }
            (_, None) => self.remove_carried(client, id),
        }
    }

    /// Frees a carried client's place. What it has not fetched is dropped.
    pub(super) fn remove_carried(&mut self, key: SlotKey, id: ConnectionId) {
        self.connections.release(&id);
        if let Some(mut conn) = self.free_place(key) {
            debug_assert!(!conn.socket.has_fd());
            self.wheel.clear(key.slot);
            self.metrics.add(Counter::DroppedUnsent, u64::from(self.frames.clear(&mut conn.socket.queue)));
        }
    }

    /// Requests that came behind a poll that has been answered now.
    pub(super) fn serve_unserved(&mut self, now: Time) {
        for key in core::mem::take(&mut self.unserved) {
            let Shard { conns, wheel, settings, .. } = self;
            if let Some(Conn { stage: Stage::Http(http), .. }) = conns.get_mut(key) {
                // If only a part is there, the rest has a request's time from now on.
                http.until = now.after(settings.request_head_timeout);
                wheel.set(key.slot, http.until);
            }
            self.serve_requests(now, key);
        }
    }
}

fn parked(client: SlotKey, begun: &Begun<'_, '_>, keep_alive: bool) -> Parked {
    Parked { client, cors: begun.cors.to_owned_cors(), keep_alive, body_bytes: begun.head.content_length }
}
