//! New connections, and their requests until one of them makes a client.
//!
//! What a peer may hold, and for how long, in every stage of its connection's life. Each end has a counter with a reason.
//!
//! ```text
//! stage                           bytes held at most                until
//! in the kernel's queue           its backlog                       accepted, at `accept_rate`
//! PROXY header                    PROXY_HEADER_BYTES_MAX            request_head_timeout from accepting
//! TLS handshake                   TLS_CARRY_BYTES_MAX               the same
//! request head                    HTTP_HEAD_BYTES_MAX               request_head_timeout from its first byte
//! body of a POST                  post_body_bytes_max               the same time, not a new one
//! body that means nothing         none, thrown away                 request_head_timeout from the answer
//! between two requests            none                              HTTP_IDLE_MS
//! poll that waits                 HTTP_HEAD_BYTES_MAX behind it     poll_timeout
//! POST that waits for a pause     its body                          POST_PATIENCE_MS, then 429
//! on the way to another shard     HTTP_HEAD_BYTES_MAX               request_head_timeout
//! client before its handshake     HANDSHAKE_BYTES_MAX               handshake_timeout
//! client                          one message                       client_timeout, from its first ping on; of one that never
//!                                                                   pings, as long as its machine acknowledges ours (client_tcp_timeout)
//! client without poll or socket   send_queue_bytes_max, resumable   disconnect_timeout
//!                                 ones resume_bytes_max
//! what is queued for a peer       send_queue_bytes_max              send_queue_time for each CLIENT_PROGRESS_BYTES
//! POST before its transport       EARLY_BODIES_BYTES_MAX together   disconnect_timeout
//! after our last byte             none, thrown away                 LINGER_MS
//! ```
use super::Shard;
use super::carried::Begun;
use super::lane::Lane;
use super::pause::Pause;
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
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use tracing::{error, info, warn};

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
    /// It is there, with so many bytes of body, but nothing is taken from its client at present.
    Later { body_bytes: u64 },
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
    pub(super) fn arm_accept(&mut self, now: Time) {
        for index in 0..self.listeners.len() {
            self.arm_listener(now, index);
        }
    }

    /// Has as many accepts under way as one turn may bring connections, if so many may come now. Not a multishot accept: in a storm that
    /// brings everything the kernel has in one turn, and who is served waits for all of it.
    fn arm_listener(&mut self, now: Time, index: usize) {
        while self.accepts.get(index).is_some_and(|under_way| *under_way < ACCEPTS_AT_ONCE) {
            let Some(Some(listener)) = self.listeners.get(index) else { return };
            if let Err(again) = may_accept(&mut self.accepted_until, now, self.settings.accept_rate) {
                // Not for each of them by itself: what is due by then comes at once.
                return self.rest(index, again.max(now.after(Duration::from_millis(ACCEPT_PAUSE_MS))));
            }
            self.accepts[index] += 1;
            self.io.arm_accept(listener.socket.as_raw_fd(), accept_token(index));
        }
    }

    /// No accept is begun for this listener until then, or a little earlier.
    fn rest(&mut self, index: usize, until: Time) {
        self.accept_again = Some(self.accept_again.map_or(until, |again| again.min(until)));
        if !self.resting.contains(&index) {
            self.resting.push(index);
        }
    }

    pub(super) fn on_accepted(&mut self, now: Time, completion: Completion) {
        // The shard's own operations have no connection: their generation says which listener it is.
        let index = completion.token.key.generation as usize;
        if let Some(under_way) = self.accepts.get_mut(index)
            && !completion.more
        {
            *under_way -= 1;
        }
        if completion.result < 0 {
            self.on_accept_error(now, index, -completion.result);
        } else {
            self.on_accepted_socket(now, index, completion.result);
        }
        if !self.listens() {
            if self.accepts.get(index) == Some(&0) {
                self.listener_released(index);
            }
            return;
        }
        if !self.resting.contains(&index) {
            self.arm_listener(now, index);
        }
        if completion.result >= 0 && self.accepts.get(index) == Some(&0) {
            self.metrics.add(Counter::AcceptPauses, 1);
            if let Some(suppressed) = self.quiet.accept_rate.admit(now) {
                let rate = self.settings.accept_rate;
                info!(
                    "accepting pauses: more than {rate} connections a second (accept_rate) come to this shard, the others wait in the kernel's queue{suppressed}"
                );
            }
        }
    }

    /// Mostly out of descriptors or memory. Rest a moment instead of spinning; connections wait in the backlog meanwhile.
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
        self.rest(index, now.after(Duration::from_millis(ACCEPT_REST_MS)));
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
            if self.listens() && self.accepts[index] > 0 {
                self.io.cancel(accept_token(index));
            }
        }
    }

    /// The rest is over.
    pub(super) fn accept_on(&mut self, now: Time) {
        self.accept_again = None;
        for index in core::mem::take(&mut self.resting) {
            self.arm_listener(now, index);
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
        let (until, is_secure, peer) = (http.until, secure.is_some(), http.peer);
        http.surplus = self.surplus();
        let surplus = http.surplus;
        let is_proxied = http.proxied;
        let conn = |key| {
            let mut socket = Socket::new(key, fd);
            socket.secure = secure;
            Conn { socket, stage: Stage::Http(Box::new(http)) }
        };
        let Some(key) = self.take_place(conn) else {
            // Even the spare places are taken.
            self.note_surplus(now, HttpError::Overloaded, peer.remote.ip());
            self.metrics.add(Counter::refusal(HttpError::Overloaded.label()), 1);
            self.metrics.add(Counter::ConnectionsClosed, 1);
            self.io.close(fd);
            return None;
        };
        self.wheel.set(key.slot, until);
        let surplus = surplus.or_else(|| if is_proxied { None } else { self.count_peer(key, &peer) });
        if let Some(error) = surplus {
            self.note_surplus(now, error, peer.remote.ip());
            // Over TLS nothing can be said before the handshake: then its first request is answered so.
            if !is_secure {
                self.refuse_request(now, key, error, Cors::None);
                return None;
            }
        }
        self.conns.get_mut(key)?.socket.arm_readable(&mut self.io);
        Some(key)
    }

    /// Counts a connection for the address it comes from, unless that is a proxy's: then its clients count.
    fn count_peer(&mut self, key: SlotKey, peer: &Peer) -> Option<HttpError> {
        let address = peer.remote.ip();
        if peer.is_unix || self.settings.trusted.admits(Some(address)) || self.count_address(key, address) {
            return None;
        }
        if let Some(Conn { stage: Stage::Http(http), .. }) = self.conns.get_mut(key) {
            http.surplus = Some(HttpError::AddressLimit);
        }
        Some(HttpError::AddressLimit)
    }

    /// A client begins at the place `key`, in a request that came on `begun.key`. It counts for who sent it, if that is known.
    pub(super) fn count_client(&mut self, now: Time, key: SlotKey, begun: &Begun<'_, '_>) -> Result<(), HttpError> {
        if self.settings.addresses.is_none() {
            return Ok(());
        }
        let address = match (begun.client, self.conns.get(begun.key)) {
            (Some(client), _) => client.ip,
            (None, Some(Conn { stage: Stage::Http(http), .. })) => {
                let address = http.peer.remote.ip();
                if http.peer.is_unix || self.settings.trusted.admits(Some(address)) {
                    return Ok(());
                }
                address
            }
            (None, _) => return Ok(()),
        };
        if self.count_address(key, address) {
            return Ok(());
        }
        self.note_surplus(now, HttpError::AddressLimit, address);
        Err(HttpError::AddressLimit)
    }

    fn note_surplus(&mut self, now: Time, error: HttpError, address: IpAddr) {
        let quiet = if error == HttpError::AddressLimit { &mut self.quiet.address } else { &mut self.quiet.surplus };
        let Some(suppressed) = quiet.admit(now) else { return };
        match error {
            HttpError::AddressLimit => {
                info!(%address, "refused: it has as many connections as one address may (connections_per_address){suppressed}")
            }
            _ => warn!(%address, "refused: there are as many connections as there may be (max_clients){suppressed}"),
        }
    }

    /// What a connection is told that is one too many.
    fn surplus(&self) -> Option<HttpError> {
        if self.stopping.is_some() {
            return Some(HttpError::Stopping);
        }
        self.is_full().then_some(HttpError::Overloaded)
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
                let peer = http.peer;
                let mut rest = core::mem::take(&mut http.buffer);
                if let Some(error) = self.count_peer(key, &peer) {
                    self.note_surplus(now, error, peer.remote.ip());
                }
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
            self.metrics.add(Counter::HttpEndedPipelined, 1);
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
            if let Some(error) = http.surplus {
                return self.refuse_request(now, key, error, Cors::None);
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
            if let Some(Conn { socket, stage: Stage::Http(http) }) = self.conns.get_mut(key) {
                http.buffer = buffer;
                if core::mem::take(&mut http.waits) && !matches!(outcome, Served::Later { .. }) {
                    socket.read_on(&mut self.io, Pause::Request);
                }
                match outcome {
                    // What follows the head: the body, the next request.
                    Served::Answered | Served::Done => drop(http.buffer.drain(..head_bytes)),
                    Served::Incomplete { body_bytes } => {
                        http.wanted = head_bytes + body_bytes as usize;
                        return self.request_begins(now, key);
                    }
                    Served::Later { body_bytes } => {
                        return self.request_waits(now, key, head_bytes + body_bytes as usize);
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

    /// A whole request of so many bytes is there and waits for its client to be read again. Nothing behind it is read meanwhile.
    fn request_waits(&mut self, now: Time, key: SlotKey, bytes: usize) {
        let Some(Conn { socket, stage: Stage::Http(http) }) = self.conns.get_mut(key) else { return };
        http.waits = true;
        if !socket.paused.has(Pause::Request) {
            http.until = now.after(Duration::from_millis(POST_PATIENCE_MS));
            socket.paused.add(Pause::Request);
        }
        http.wanted = bytes;
        self.wheel.set(key.slot, now.after(Duration::from_millis(POST_AGAIN_MS)).min(http.until));
    }

    /// Tries a request again that waited, or refuses it if that has taken too long.
    fn request_again(&mut self, now: Time, key: SlotKey) {
        let Some(Conn { stage: Stage::Http(http), .. }) = self.conns.get(key) else { return };
        if now < http.until {
            self.serve_requests(now, key);
        } else {
            let cors = self.cors_of(key, &http.buffer);
            self.refuse_request(now, key, HttpError::TooManyRequests, cors.as_cors());
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
        if !matches!(outcome, Ok(Served::Incomplete { .. } | Served::Later { .. } | Served::Elsewhere(_))) {
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
        // RFC 9110 section 10.1.1: a client that asks first sends its body when it is told to, or keeps it and what follows is no body.
        let is_kept =
            matches!(served, Served::Incomplete { .. }) || matches!(served, Served::Answered) && reply.keep_alive;
        if is_kept && head.content_length > (buffer.len() - head_bytes) as u64 && http::asks_to_continue(&head) {
            self.say_continue(key);
        }
        let Reply { bytes, keep_alive } = reply;
        if matches!(served, Served::Answered) {
            self.send_reply(now, key, &bytes, keep_alive, head.content_length);
        }
        self.pool.give(bytes);
        served
    }

    /// Answers `Expect: 100-continue`.
    fn say_continue(&mut self, key: SlotKey) {
        let Shard { conns, frames, dirty, .. } = self;
        if let Some(Conn { socket, .. }) = conns.get_mut(key)
            && socket.life == Life::Open
        {
            socket.out(frames, dirty, |out| out.extend_from_slice(http::CONTINUE));
        }
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
            && let Some(token) = &token
        {
            if (rest.len() as u64) < body_bytes {
                return Ok(Served::Incomplete { body_bytes });
            }
            if !self.takes_posts(token) {
                return Ok(Served::Later { body_bytes });
            }
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
                self.check_available(now).map_err(refused)?;
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
            Action::Upgrade { accept, id, .. } => {
                if id.is_none() {
                    self.check_available(now).map_err(refused)?;
                }
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

    /// Clients may be told to come back when somebody is there to answer them.
    fn check_available(&mut self, now: Time) -> Result<(), HttpError> {
        if self.settings.begins_unavailable {
            return Ok(());
        }
        let routes = &self.settings.upstreams.routes;
        let answers = |lane: &Lane| lane.is_up() && routes.is_answering(usize::from(lane.place.upstream.0));
        if self.lanes.iter().any(answers) {
            return Ok(());
        }
        if let Some(suppressed) = self.quiet.unavailable.admit(now) {
            warn!(
                "a client is told to come back: no app server that answers can be reached (negotiate_when_unavailable = false){suppressed}"
            );
        }
        Err(HttpError::Unavailable)
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
        let patience = self.settings.send_queue_time;
        let Some(conn) = self.conns.get(key) else { return };
        if conn.socket.life == Life::Open && conn.socket.stalled_at(now, patience) <= now {
            return self.connection_ends(now, key, End::StalledClient);
        }
        self.on_deadline(now, key);
        // Of what carries a client nothing else has a deadline.
        let Some(conn) = self.conns.get(key) else { return };
        let stalled_at = conn.socket.stalled_at(now, patience);
        if conn.socket.life == Life::Open && stalled_at < Time::NEVER {
            self.wheel.set_no_later(key.slot, stalled_at);
        }
    }

    fn on_deadline(&mut self, now: Time, key: SlotKey) {
        let Some(conn) = self.conns.get(key) else { return };
        match (conn.socket.life, &conn.stage) {
            (Life::Open, Stage::Http(http)) if http.waits => self.request_again(now, key),
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
                let Shard { conns, io, frames, metrics, quiet, .. } = self;
                if let Some(Conn { socket, stage }) = conns.get_mut(key) {
                    if matches!((socket.life, stage), (Life::Open, Stage::Http(_))) {
                        metrics.add(Counter::HttpEndedIdle, 1);
                        if let Some(suppressed) = quiet.http_idle.admit(now) {
                            info!("an HTTP connection ended: idle, no request came on it{suppressed}");
                        }
                    }
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
                self.note_http_end(now, &end);
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

    /// A connection that is no client's ends because its peer does not read the answers to its requests.
    fn note_http_end(&mut self, now: Time, end: &End) {
        let counter = match end {
            End::SlowClient => Counter::HttpEndedSlow,
            End::StalledClient => Counter::HttpEndedStalled,
            _ => return,
        };
        self.metrics.add(counter, 1);
        if let Some(suppressed) = self.quiet.http_ended.admit(now) {
            info!("an HTTP connection ended: {}, its peer does not read the answers{suppressed}", end.label());
        }
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

/// May one more connection be accepted now, or from when on? At most a second's worth comes at once.
fn may_accept(until: &mut Time, now: Time, per_second: u32) -> Result<(), Time> {
    const SECOND: Duration = Duration::from_secs(1);
    if per_second == 0 {
        return Ok(());
    }
    let next = (*until).max(now).after(SECOND / per_second);
    if next > now.after(SECOND) {
        return Err(Time(next.0 - SECOND.as_nanos() as u64));
    }
    *until = next;
    Ok(())
}

pub(super) fn accept_token(listener: usize) -> Operation {
    let mut token = own_token(Op::Accept);
    token.key.generation = listener as u32;
    token
}
