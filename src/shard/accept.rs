//! New connections, and their requests until one of them makes a client.
use super::Shard;
use super::carried::Begun;
use super::secure::Secure;
use super::socket::{Conn, HttpStage, Input, Life, Socket, Stage, linger_until};
use super::turn::own_token;
use crate::bus::Peer;
use crate::ids::{ShardId, SlotKey, Time, base64url};
use crate::limits::*;
use crate::metrics::Counter;
use crate::proto::http::{self, Action, Cors, Head, HttpError, Negotiated, OwnedCors};
use crate::proto::proxy;
use crate::session::fault::End;
use crate::session::token::{Opened, Token};
use crate::sys::{Completion, Io, Op, Token as Operation};
use crate::tls::Tls;
use core::time::Duration;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use tracing::{error, warn};

/// Where a shard's connections come from.
pub struct Listener {
    pub socket: OwnedFd,
    /// Present where clients speak TLS.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    pub is_unix: bool,
}

/// What became of the request at the start of a connection's buffer.
enum Served {
    /// Answered, with an answer that is the caller's to send.
    Answered,
    /// The connection is something else now: a client, a poll that waits or has been answered, on its way out.
    Done,
    /// It is for another shard, as it stands.
    Elsewhere(ShardId),
    /// So many bytes of body are still to come.
    Incomplete { body_bytes: u64 },
}

/// A request as it is served.
struct Asked<'a, 'h> {
    head: &'a Head<'h>,
    /// What followed the head.
    rest: &'a [u8],
    /// Where it came from, if a proxy is trusted to say so.
    client: Option<http::Forwarded>,
}

/// An answer to be sent.
struct Reply {
    bytes: Vec<u8>,
    keep_alive: bool,
}

impl<I: Io> Shard<I> {
    pub(super) fn arm_accept(&mut self) {
        for index in 0..self.listeners.len() {
            self.arm_listener(index);
        }
    }

    fn arm_listener(&mut self, index: usize) {
        if let Some(Some(listener)) = self.listeners.get(index) {
            self.io.arm_accept(listener.socket.as_raw_fd(), accept_token(index));
        }
    }

    pub(super) fn on_accepted(&mut self, now: Time, completion: Completion) {
        // The shard's own operations have no connection: their generation says which listener it is.
        let index = completion.token.key.generation as usize;
        if completion.result < 0 {
            self.on_accept_error(now, index, -completion.result);
        } else {
            self.on_accepted_socket(now, index, completion.result);
        }
        if completion.more || self.resting.contains(&index) {
            return;
        }
        if self.listens() {
            self.arm_listener(index);
        } else {
            self.listener_released(index);
        }
    }

    /// Mostly out of descriptors or memory: the kernel ended the multishot accept. Rest a moment instead of spinning; connections wait
    /// in the backlog meanwhile.
    fn on_accept_error(&mut self, now: Time, index: usize, errno: i32) {
        // Called back.
        if errno == libc::ECANCELED || !self.listens() {
            return;
        }
        self.metrics.add(Counter::AcceptErrors, 1);
        // A connection that was gone before it was accepted says nothing about the next one.
        if matches!(errno, libc::ECONNABORTED | libc::EINTR | libc::EAGAIN) {
            return;
        }
        self.accept_again = Some(now.after(Duration::from_millis(ACCEPT_REST_MS)));
        if !self.resting.contains(&index) {
            self.resting.push(index);
        }
        let Some(suppressed) = self.quiet.accept.admit(now) else { return };
        let error = std::io::Error::from_raw_os_error(errno);
        match errno {
            libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS => warn!(
                "accepting pauses: {error}; raise the descriptor limit (LimitNOFILE, ulimit -n) or lower max_clients{suppressed}"
            ),
            _ => warn!("accepting pauses: {error}{suppressed}"),
        }
    }

    /// Calls every accept back, so that it begins anew: with what waits.
    pub(super) fn accept_anew(&mut self) {
        for index in 0..self.listeners.len() {
            if self.listens() && !self.resting.contains(&index) {
                self.io.cancel(accept_token(index));
            }
        }
    }

    /// The rest is over.
    pub(super) fn accept_on(&mut self) {
        self.accept_again = None;
        for index in core::mem::take(&mut self.resting) {
            self.arm_listener(index);
        }
    }

    pub(super) fn on_accepted_socket(&mut self, now: Time, index: usize, fd: i32) {
        self.metrics.add(Counter::ConnectionsAccepted, 1);
        let listener = self.listeners.get(index).and_then(Option::as_ref);
        let is_unix = listener.is_some_and(|listener| listener.is_unix);
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let addresses = if is_unix { Some((nowhere, nowhere)) } else { self.io.addresses(fd) };
        let (Some((local, remote)), Some(listener)) = (addresses, listener) else {
            self.metrics.add(Counter::ConnectionsClosed, 1);
            return self.io.close(fd);
        };
        let secure = match listener.tls.as_ref().map(Tls::accept) {
            None => None,
            Some(Ok(tls)) => Some(Box::new(Secure::new(Box::new(tls)))),
            Some(Err(fault)) => {
                error!("cannot begin TLS: {fault}");
                self.metrics.add(Counter::ConnectionsClosed, 1);
                return self.io.close(fd);
            }
        };
        self.io.prepare_client(fd, self.settings.send_buffer_bytes);
        let patience = match self.stopping {
            None => self.settings.request_head_timeout,
            Some(_) => Duration::from_millis(STOP_REQUEST_MS),
        };
        let mut http = HttpStage::new(Peer { local, remote, is_unix }, now.after(patience));
        // Whoever is no proxy of ours comes directly, and would be a client that makes up an address.
        http.proxied = self.settings.proxy_protocol && self.settings.trusted.admits((!is_unix).then_some(remote.ip()));
        self.add_connection(now, fd, secure, http);
    }

    /// A connection becomes this shard's.
    pub(super) fn add_connection(
        &mut self,
        now: Time,
        fd: i32,
        secure: Option<Box<Secure>>,
        mut http: HttpStage,
    ) -> Option<SlotKey> {
        let (until, is_secure) = (http.until, secure.is_some());
        let is_surplus = self.conns.len() >= self.settings.connections_max || self.stopping.is_some();
        http.is_surplus = is_surplus;
        let conn = |key| {
            let mut socket = Socket::new(key, fd);
            socket.secure = secure;
            Conn { socket, stage: Stage::Http(Box::new(http)) }
        };
        let Some(key) = self.conns.insert_with(conn) else {
            // Even the spare places are taken.
            self.metrics.add(Counter::refusal(HttpError::Overloaded.label()), 1);
            self.metrics.add(Counter::ConnectionsClosed, 1);
            self.io.close(fd);
            return None;
        };
        self.wheel.set(key.slot, until);
        // Over TLS nothing can be said before the handshake: then its first request is answered so.
        if is_surplus && !is_secure {
            self.refuse_request(now, key, self.surplus(), Cors::None);
            return None;
        }
        self.conns.get_mut(key)?.socket.arm_readable(&mut self.io);
        Some(key)
    }

    /// What a connection is told that is one too many.
    fn surplus(&self) -> HttpError {
        if self.stopping.is_some() { HttpError::Stopping } else { HttpError::Overloaded }
    }

    pub(super) fn wants_proxy_header(&self, key: SlotKey) -> bool {
        matches!(self.conns.get(key), Some(Conn { stage: Stage::Http(http), .. }) if http.proxied)
    }

    /// The beginning of a connection from a load balancer that says whose it is (PROXY protocol). What follows its header is the
    /// client's.
    pub(super) fn on_proxy_header(&mut self, now: Time, key: SlotKey, mut input: Input<'_>) {
        let Shard { io, conns, pool, .. } = self;
        let Some(Conn { stage: Stage::Http(http), .. }) = conns.get_mut(key) else { return };
        if http.buffer.capacity() == 0 {
            http.buffer = pool.take();
        }
        http.buffer.extend_from_slice(input.bytes(io));
        let peer = http.peer;
        match proxy::parse(&http.buffer) {
            Ok(None) => {}
            Ok(Some((used, addresses))) => {
                http.proxied = false;
                if let Some(addresses) = addresses {
                    http.peer = Peer { local: addresses.destination, remote: addresses.source, is_unix: false };
                }
                let mut rest = core::mem::take(&mut http.buffer);
                if used < rest.len() {
                    self.on_raw_bytes(now, key, Input::Bytes(&mut rest[used..]));
                }
                self.pool.give(rest);
            }
            Err(fault) => {
                self.metrics.add(Counter::refusal(HttpError::ProxyProtocol.label()), 1);
                if let Some(suppressed) = self.quiet.proxy.admit(now) {
                    let peer = peer.remote.ip();
                    warn!(%peer, "a connection of a trusted proxy is dropped, it does not begin with a PROXY header ({fault:?}){suppressed}");
                }
                self.connection_ends(now, key, End::PeerGone);
            }
        }
    }

    pub(super) fn on_http_bytes(&mut self, now: Time, key: SlotKey, mut input: Input<'_>) {
        let Shard { io, conns, pool, wheel, settings, .. } = self;
        let Some(Conn { stage: Stage::Http(http), .. }) = conns.get_mut(key) else { return };
        let bytes = input.bytes(io);
        if http.parked.is_some() && http.buffer.len() + bytes.len() > HTTP_HEAD_BYTES_MAX {
            // Requests behind one that waits: more than any client has a reason for.
            return self.connection_ends(now, key, End::PeerGone);
        }
        if http.buffer.capacity() == 0 {
            http.buffer = pool.take();
        }
        // A body has the rest of its request's time: not a new deadline with every byte that drips.
        if http.buffer.is_empty() && http.body_left == 0 && http.parked.is_none() {
            http.until = now.after(settings.request_head_timeout);
            wheel.set(key.slot, http.until);
        }
        http.buffer.extend_from_slice(bytes);
        self.serve_requests(now, key);
    }

    /// Answers every whole request in the buffer, as long as none makes the connection something else.
    pub(super) fn serve_requests(&mut self, now: Time, key: SlotKey) {
        loop {
            let Some(Conn { socket, stage: Stage::Http(http) }) = self.conns.get_mut(key) else { return };
            if socket.life != Life::Open || http.parked.is_some() || http.buffer.len() < http.wanted {
                return;
            }
            if http.is_surplus {
                return self.refuse_request(now, key, self.surplus(), Cors::None);
            }
            let skipped = http.body_left.min(http.buffer.len() as u64);
            http.buffer.drain(..skipped as usize);
            http.body_left -= skipped;
            if skipped > 0 && http.body_left == 0 && http.buffer.is_empty() {
                http.until = now.after(Duration::from_millis(HTTP_IDLE_MS));
                self.wheel.set(key.slot, http.until);
            }
            if http.buffer.is_empty() {
                // Nothing held while it is idle.
                self.pool.give(core::mem::take(&mut http.buffer));
                return;
            }
            let head_bytes = match http::head_end(&http.buffer, &mut http.scanned) {
                Ok(Some(end)) => end,
                Ok(None) => return self.request_begins(now, key),
                Err(error) => return self.refuse_request(now, key, error, Cors::None),
            };
            http.scanned = 0;
            http.wanted = 0;
            let buffer = core::mem::take(&mut http.buffer);
            let outcome = self.serve_request(now, key, &buffer, head_bytes);
            if let Some(Conn { stage: Stage::Http(http), .. }) = self.conns.get_mut(key) {
                http.buffer = buffer;
                match outcome {
                    // What follows the head: the body, the next request.
                    Served::Answered | Served::Done => drop(http.buffer.drain(..head_bytes)),
                    Served::Incomplete { body_bytes } => {
                        http.wanted = head_bytes + body_bytes as usize;
                        return self.request_begins(now, key);
                    }
                    Served::Elsewhere(shard) => return self.begin_leaving(now, key, shard),
                }
            } else {
                self.pool.give(buffer);
            }
        }
    }

    /// A part of a request is there. If it came behind another one, its time runs from now, and not as long as a connection may idle.
    fn request_begins(&mut self, now: Time, key: SlotKey) {
        let until = now.after(self.settings.request_head_timeout);
        if let Some(Conn { stage: Stage::Http(http), .. }) = self.conns.get_mut(key)
            && until < http.until
        {
            http.until = until;
            self.wheel.set(key.slot, until);
        }
    }

    /// Answers one request.
    fn serve_request(&mut self, now: Time, key: SlotKey, buffer: &[u8], head_bytes: usize) -> Served {
        let head = match http::parse_head(&buffer[..head_bytes]) {
            Ok(head) => head,
            Err(error) => {
                self.refuse_request(now, key, error, Cors::None);
                return Served::Done;
            }
        };
        let mut reply = Reply { bytes: self.pool.take(), keep_alive: false };
        let (client, https) = self.came_from(key, &head);
        let action = http::route(&head, &self.settings.http, https, &mut reply.bytes);
        let asked = Asked { head: &head, rest: &buffer[head_bytes..], client };
        let outcome = self.act(now, key, asked, action, &mut reply);
        if !matches!(outcome, Ok(Served::Incomplete { .. } | Served::Elsewhere(_))) {
            self.metrics.add(Counter::HttpRequests, 1);
        }
        let served = match outcome {
            Ok(served) => served,
            Err(Refused { error, cors, keep_alive }) => {
                self.metrics.add(Counter::refusal(error.label()), 1);
                http::refuse(error, cors, keep_alive, &mut reply.bytes);
                reply.keep_alive = keep_alive;
                Served::Answered
            }
        };
        let Reply { bytes, keep_alive } = reply;
        if matches!(served, Served::Answered) {
            self.send_reply(now, key, &bytes, keep_alive, head.content_length);
        }
        self.pool.give(bytes);
        served
    }

    /// Who a request's client is behind trusted proxies, and whether it came over TLS, where that is known.
    fn came_from(&self, key: SlotKey, head: &Head<'_>) -> (Option<http::Forwarded>, Option<bool>) {
        let Some(Conn { socket, stage: Stage::Http(http) }) = self.conns.get(key) else { return (None, None) };
        let peer = (!http.peer.is_unix).then_some(http.peer.remote.ip());
        let client = http::client_of(head, peer, &self.settings.trusted);
        let https = if socket.secure.is_some() { Some(true) } else { client.and_then(|client| client.https) };
        (client, https)
    }

    fn act<'h>(
        &mut self,
        now: Time,
        key: SlotKey,
        asked: Asked<'_, 'h>,
        action: Action<'h>,
        reply: &mut Reply,
    ) -> Result<Served, Refused<'h>> {
        let Asked { head, rest, client } = asked;
        let out = &mut reply.bytes;
        let (id, cors, keep_alive) = match &action {
            Action::Replied { keep_alive, refused, cors } => {
                if let Some(error) = refused {
                    if error.is_of_hub() && head.method != "OPTIONS" {
                        let refused = |error| Refused { error, cors: *cors, keep_alive: *keep_alive };
                        self.authenticate(head).map_err(refused).inspect_err(|_| out.clear())?;
                    }
                    self.metrics.add(Counter::refusal(error.label()), 1);
                    if *error == HttpError::OriginForbidden {
                        self.warn_origin(now, head);
                    }
                }
                reply.keep_alive = *keep_alive;
                return Ok(Served::Answered);
            }
            // The next request is to reach who stays.
            Action::Negotiate { cors, keep_alive, .. } => (None, *cors, *keep_alive && !self.is_leaving()),
            // What follows an upgrade that is refused may be frames.
            Action::Upgrade { id, cors, .. } => (*id, *cors, false),
            Action::EventStream { id, cors } => (Some(*id), *cors, head.keep_alive),
            Action::Poll { id, cors, keep_alive } | Action::Delete { id, cors, keep_alive } => {
                (Some(*id), *cors, *keep_alive)
            }
            Action::Post { id, cors, keep_alive, .. } => (Some(*id), *cors, *keep_alive),
        };
        let refused = |error| Refused { error, cors, keep_alive };
        let token = id.and_then(|id| self.settings.tokens.open(id, self.unix_seconds()));
        if let Some(opened) = &token {
            let owner = self.owner_of(opened);
            if owner != self.settings.shard {
                return Ok(Served::Elsewhere(owner));
            }
        }
        if let Action::Post { body_bytes, .. } = action
            && token.is_some()
            && (rest.len() as u64) < body_bytes
        {
            return Ok(Served::Incomplete { body_bytes });
        }
        // First of all: who may not ask does not learn what there is.
        let authenticated = self.authenticate(head).map_err(refused)?;
        if id.is_some() && token.is_none() {
            return Err(refused(HttpError::UnknownConnection));
        }
        match action {
            Action::Replied { .. } => unreachable!("answered above"),
            Action::Negotiate { .. } if self.refuses(true) => return Err(refused(HttpError::Stopping)),
            Action::Negotiate { version, stateful_reconnect, .. } => {
                let stateful_reconnect = stateful_reconnect && self.settings.resume_bytes_max.is_some();
                let (id, token) = self.new_token(stateful_reconnect);
                let id = core::str::from_utf8(&id).expect("base64url is ASCII");
                let negotiated = Negotiated {
                    version,
                    // Version 0 knows one string for both (reference 2).
                    connection_id: if version == 0 { &token } else { id },
                    token: &token,
                    transports: self.settings.http.transports,
                    stateful_reconnect,
                };
                http::negotiate_reply(&negotiated, cors, keep_alive, out);
                self.metrics.add(Counter::Negotiations, 1);
            }
            Action::Upgrade { accept, .. } => {
                let who = Begun { key, head, client, authenticated, cors };
                self.on_upgrade(now, who, &accept, token, rest).map_err(refused)?;
                return Ok(Served::Done);
            }
            Action::EventStream { .. } => {
                let who = Begun { key, head, client, authenticated, cors };
                self.on_event_stream(now, who, token.expect("it has an id")).map_err(refused)?;
                return Ok(Served::Done);
            }
            Action::Poll { .. } => {
                let who = Begun { key, head, client, authenticated, cors };
                match self.on_poll(now, who, token.expect("it has an id"), keep_alive).map_err(refused)? {
                    Some(answer) => http::poll_reply(answer, cors, keep_alive, out),
                    None => return Ok(Served::Done),
                }
            }
            Action::Post { body_bytes, .. } => {
                let body = &rest[..body_bytes as usize];
                self.on_post(now, token.expect("it has an id"), authenticated, body).map_err(refused)?;
                http::post_reply(cors, keep_alive, out);
            }
            Action::Delete { .. } => {
                self.on_delete(now, token.expect("it has an id")).map_err(refused)?;
                http::delete_reply(cors, keep_alive, out);
            }
        }
        reply.keep_alive = keep_alive;
        Ok(Served::Answered)
    }

    /// Sends the reply to a request. With `keep_alive` the connection waits for the next one, behind the body of this one.
    pub(super) fn send_reply(&mut self, now: Time, key: SlotKey, bytes: &[u8], keep_alive: bool, body_bytes: u64) {
        let Shard { conns, frames, dirty, wheel, io, settings, .. } = self;
        let Some(Conn { socket, stage: Stage::Http(http) }) = conns.get_mut(key) else { return };
        if socket.life != Life::Open {
            return;
        }
        socket.out(frames, dirty, |out| out.extend_from_slice(bytes));
        http.body_left = body_bytes;
        http.is_served = true;
        if keep_alive {
            // A body that is announced has to come at once; a next request need not.
            http.until = if body_bytes > 0 {
                now.after(settings.request_head_timeout)
            } else {
                now.after(Duration::from_millis(HTTP_IDLE_MS))
            };
            wheel.set(key.slot, http.until);
        } else {
            socket.drain(io, dirty);
            wheel.set(key.slot, linger_until(now));
        }
    }

    /// Answers with an error status and closes.
    pub(super) fn refuse_request(&mut self, now: Time, key: SlotKey, error: HttpError, cors: Cors<'_>) {
        self.metrics.add(Counter::refusal(error.label()), 1);
        let mut reply = self.pool.take();
        http::refuse(error, cors, false, &mut reply);
        let Shard { conns, frames, dirty, io, wheel, .. } = self;
        if let Some(Conn { socket, .. }) = conns.get_mut(key)
            && socket.life == Life::Open
        {
            socket.out(frames, dirty, |out| out.extend_from_slice(&reply));
            socket.drain(io, dirty);
            wheel.set(key.slot, linger_until(now));
            // What the peer still sends is read and thrown away, or closing would reset the connection under our reply.
            if !socket.ops.has(super::socket::Ops::READABLE) {
                socket.arm_readable(io);
            }
        }
        self.pool.give(reply);
    }

    /// A deadline of a connection has come.
    pub(super) fn on_connection_time(&mut self, now: Time, key: SlotKey) {
        let Some(conn) = self.conns.get(key) else { return };
        match (conn.socket.life, &conn.stage) {
            (Life::Open | Life::Leaving, Stage::Http(http)) if now < http.until => {
                self.wheel.set(key.slot, http.until);
            }
            (Life::Open, Stage::Http(http)) if !http.buffer.is_empty() && !http.proxied => {
                let cors = self.cors_of(key, &http.buffer);
                self.refuse_request(now, key, HttpError::HeadTimeout, cors.as_cors());
            }
            (Life::Open, Stage::Client(_)) => self.on_client_time(now, key),
            (Life::Open, Stage::Carrier(_)) => {}
            (Life::Open, &Stage::LastPolls(_, until)) if now < until => self.wheel.set(key.slot, until),
            (Life::Open, &Stage::LastPolls(id, _)) => self.remove_carried(key, id),
            // An idle HTTP connection; or a peer that does not close its side in time.
            _ => {
                let Shard { conns, io, frames, metrics, .. } = self;
                if let Some(Conn { socket, .. }) = conns.get_mut(key) {
                    socket.end(io, frames, metrics);
                }
                self.join(now, key);
            }
        }
    }

    /// A connection is at its end, of whatever kind it is.
    pub(super) fn connection_ends(&mut self, now: Time, key: SlotKey, end: End) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        match &mut conn.stage {
            Stage::Client(_) => return self.client_ends(now, key, end),
            &mut Stage::Carrier(client) => return self.carrier_ends(now, key, client, end),
            &mut Stage::LastPolls(id, _) => return self.remove_carried(key, id),
            Stage::Http(http) => {
                self.pool.give(core::mem::take(&mut http.buffer));
                if let Some(parked) = http.parked.take() {
                    self.poll_gone(now, key, parked.client);
                }
            }
            Stage::Over => {}
        }
        let Shard { conns, io, frames, dirty, wheel, metrics, .. } = self;
        let Some(Conn { socket, stage }) = conns.get_mut(key) else { return };
        if matches!((stage, &end), (Stage::Http(_), End::Stopping | End::PeerGone)) && socket.life == Life::Open {
            // The answer to its last request may have to leave still: also where the peer has shut only its side.
            socket.drain(io, dirty);
            if socket.life == Life::Draining {
                return wheel.set(key.slot, linger_until(now));
            }
        }
        socket.end(io, frames, metrics);
        self.join(now, key);
    }

    /// What a page is shown of the answer to a request whose body does not come.
    fn cors_of(&self, key: SlotKey, buffer: &[u8]) -> OwnedCors {
        let Ok(Some(end)) = http::head_end(buffer, &mut 0) else { return OwnedCors::default() };
        let Ok(head) = http::parse_head(&buffer[..end]) else { return OwnedCors::default() };
        Cors::of(&head, &self.settings.http, self.came_from(key, &head).1).to_owned_cors()
    }

    /// A connection id and its token, both as text.
    fn new_token(&mut self, resumable: bool) -> ([u8; crate::ids::ID_BYTES], String) {
        let mut connection = [0u8; 16];
        connection[..8].copy_from_slice(&self.random.next().to_ne_bytes());
        connection[8..].copy_from_slice(&self.random.next().to_ne_bytes());
        // The shards in turn: the kernel spreads connections by hash, negotiate spreads clients evenly.
        self.next_shard = (self.next_shard + 1) % self.shards();
        let token = Token { connection, shard: ShardId(self.next_shard as u8), resumable };
        (base64url(&connection), self.settings.tokens.issue(&token, self.unix_seconds()))
    }

    /// The shard of this node that holds the connection of a token.
    fn owner_of(&self, opened: &Opened) -> ShardId {
        let shards = self.shards();
        let shard = opened.token.shard;
        if opened.is_own && usize::from(shard.0) < shards {
            return shard;
        }
        // A neighbour's: any shard would do, as long as it is always the same.
        ShardId((usize::from(opened.token.connection[0]) % shards) as u8)
    }

    /// Shards of this node.
    fn shards(&self) -> usize {
        self.shards.len().max(1)
    }

    pub(super) fn unix_seconds(&self) -> u64 {
        self.clock.unix_seconds()
    }

    fn warn_origin(&mut self, now: Time, head: &http::Head<'_>) {
        let Some(suppressed) = self.quiet.origin.admit(now) else { return };
        let origin = head.header("origin").map(String::from_utf8_lossy).unwrap_or_default();
        // Whole heads have been put into a header before.
        let origin: String = origin.chars().take(256).collect();
        warn!(
            "refused a request from origin {origin}: add it to `allowed_origins` if that page may use this node{suppressed}"
        );
    }
}

/// Why a request is not served; the answer carries CORS headers, or a browser would hide it from its page.
struct Refused<'h> {
    error: HttpError,
    cors: Cors<'h>,
    keep_alive: bool,
}

pub(super) fn accept_token(listener: usize) -> Operation {
    let mut token = own_token(Op::Accept);
    token.key.generation = listener as u32;
    token
}
