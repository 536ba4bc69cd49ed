//! New connections, and their requests until the upgrade.
use super::Shard;
use super::socket::{Conn, HttpStage, Life, Socket, Stage, linger_until};
use super::turn::own_token;
use crate::ids::{SlotKey, Time, base64url};
use crate::limits::*;
use crate::metrics::Counter;
use crate::proto::http::{self, Action, Cors, HttpError, Negotiated};
use crate::session::fault::End;
use crate::sys::{Completion, Io, Op, Received};
use core::time::Duration;
use std::os::fd::AsRawFd;
use tracing::warn;

impl<I: Io> Shard<I> {
    pub(super) fn arm_accept(&mut self) {
        if let Some(listener) = &self.listener {
            self.io.arm_accept(listener.as_raw_fd(), own_token(Op::Accept));
        }
    }

    pub(super) fn on_accepted(&mut self, now: Time, completion: Completion) {
        if completion.result < 0 {
            self.on_accept_error(now, -completion.result);
        } else {
            self.on_new_connection(now, completion.result);
        }
        if !completion.more && self.accept_again.is_none() {
            self.arm_accept();
        }
    }

    /// Mostly out of descriptors or memory: the kernel ended the multishot accept. Rest a moment instead of spinning; connections wait
    /// in the backlog meanwhile.
    fn on_accept_error(&mut self, now: Time, errno: i32) {
        if self.listener.is_none() {
            return;
        }
        self.metrics.add(Counter::AcceptErrors, 1);
        // A connection that was gone before it was accepted says nothing about the next one.
        if matches!(errno, libc::ECONNABORTED | libc::EINTR | libc::EAGAIN) {
            return;
        }
        self.accept_again = Some(now.after(Duration::from_millis(ACCEPT_REST_MS)));
        let Some(suppressed) = self.quiet.accept.admit(now) else { return };
        let error = std::io::Error::from_raw_os_error(errno);
        match errno {
            libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS => warn!(
                "accepting pauses: {error}; raise the descriptor limit (LimitNOFILE, ulimit -n) or lower max_clients{suppressed}"
            ),
            _ => warn!("accepting pauses: {error}{suppressed}"),
        }
    }

    fn on_new_connection(&mut self, now: Time, fd: i32) {
        self.metrics.add(Counter::ConnectionsAccepted, 1);
        let addresses = self.io.addresses(fd);
        let (Some((local, peer)), None) = (addresses, self.stopping) else {
            self.metrics.add(Counter::ConnectionsClosed, 1);
            return self.io.close(fd);
        };
        self.io.prepare_client(fd, self.settings.send_buffer_bytes);
        let until = now.after(self.settings.request_head_timeout);
        let stage = HttpStage { local, peer, buffer: Vec::new(), scanned: 0, body_left: 0, until };
        let conn = |key| Conn { socket: Socket::new(key, fd), stage: Stage::Http(Box::new(stage)) };
        let Some(key) = self.conns.insert_with(conn) else {
            // Even the spare places are taken.
            self.metrics.add(Counter::refusal(HttpError::Overloaded.label()), 1);
            self.metrics.add(Counter::ConnectionsClosed, 1);
            return self.io.close(fd);
        };
        self.wheel.set(key.slot, until);
        if self.conns.len() > self.settings.connections_max {
            return self.refuse_request(now, key, HttpError::Overloaded, Cors::None);
        }
        if let Some(conn) = self.conns.get_mut(key) {
            conn.socket.arm_readable(&mut self.io);
        }
    }

    pub(super) fn on_http_bytes(&mut self, now: Time, key: SlotKey, received: &Received) {
        let Shard { io, conns, pool, wheel, settings, .. } = self;
        let Some(Conn { stage: Stage::Http(http), .. }) = conns.get_mut(key) else { return };
        if http.buffer.capacity() == 0 {
            http.buffer = pool.take();
        }
        // A body has the rest of its request's time: not a new deadline with every byte that drips.
        if http.buffer.is_empty() && http.body_left == 0 {
            http.until = now.after(settings.request_head_timeout);
            wheel.set(key.slot, http.until);
        }
        http.buffer.extend_from_slice(io.buffer(received));
        self.serve_requests(now, key);
    }

    /// Answers every whole request in the buffer.
    fn serve_requests(&mut self, now: Time, key: SlotKey) {
        let mut served = false;
        loop {
            let Some(Conn { socket, stage: Stage::Http(http) }) = self.conns.get_mut(key) else { return };
            if socket.life != Life::Open {
                return;
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
                Ok(None) => {
                    if served {
                        // The beginning of the next request came with the last one: its time runs from now, not idly.
                        http.until = now.after(self.settings.request_head_timeout);
                        self.wheel.set(key.slot, http.until);
                    }
                    return;
                }
                Err(error) => return self.refuse_request(now, key, error, Cors::None),
            };
            http.scanned = 0;
            let buffer = core::mem::take(&mut http.buffer);
            let more = self.serve_request(now, key, &buffer, head_bytes);
            if let Some(Conn { stage: Stage::Http(http), .. }) = self.conns.get_mut(key) {
                // What follows the head: the body, the next request.
                http.buffer = buffer;
                http.buffer.drain(..head_bytes);
            } else {
                self.pool.give(buffer);
            }
            if !more {
                return;
            }
            served = true;
        }
    }

    /// Answers one request. True if the connection may carry another.
    fn serve_request(&mut self, now: Time, key: SlotKey, buffer: &[u8], head_bytes: usize) -> bool {
        let head = match http::parse_head(&buffer[..head_bytes]) {
            Ok(head) => head,
            Err(error) => {
                self.refuse_request(now, key, error, Cors::None);
                return false;
            }
        };
        self.metrics.add(Counter::HttpRequests, 1);
        let mut reply = self.pool.take();
        let keep_alive = match http::route(&head, &self.settings.http, &mut reply) {
            Action::Replied { keep_alive, refused } => {
                if let Some(error) = refused {
                    self.metrics.add(Counter::refusal(error.label()), 1);
                    if error == HttpError::OriginForbidden {
                        self.warn_origin(now, &head);
                    }
                }
                keep_alive
            }
            Action::Negotiate { version, stateful_reconnect: _, cors, keep_alive } => {
                let (id, token) = self.new_token();
                let token = core::str::from_utf8(&token).expect("base64url is ASCII");
                let id = core::str::from_utf8(&id).expect("base64url is ASCII");
                // Version 0 knows one string for both (reference 2).
                let id = if version == 0 { token } else { id };
                let negotiated = Negotiated {
                    version,
                    connection_id: id,
                    token,
                    transports: self.settings.http.transports,
                    stateful_reconnect: false,
                };
                http::negotiate_reply(&negotiated, cors, keep_alive, &mut reply);
                self.metrics.add(Counter::Negotiations, 1);
                keep_alive
            }
            Action::Upgrade { accept, id, cors } => {
                self.pool.give(reply);
                if id.is_some_and(|id| !self.settings.tokens.verify(id, self.unix_seconds())) {
                    self.refuse_request(now, key, HttpError::UnknownConnection, cors);
                    return false;
                }
                self.upgrade(now, key, &head, &accept, &buffer[head_bytes..]);
                return false;
            }
            // The control plane offers neither of the transports these belong to, so there is no such connection.
            Action::EventStream { cors, .. }
            | Action::Poll { cors, .. }
            | Action::Post { cors, .. }
            | Action::Delete { cors, .. } => {
                self.pool.give(reply);
                self.refuse_request(now, key, HttpError::UnknownConnection, cors);
                return false;
            }
        };
        let Shard { conns, frames, dirty, wheel, io, settings, .. } = self;
        if let Some(Conn { socket, stage: Stage::Http(http) }) = conns.get_mut(key) {
            socket.out(frames, dirty, |out| out.extend_from_slice(&reply));
            http.body_left = head.content_length;
            if keep_alive {
                // A body that is announced has to come at once; a next request need not.
                http.until = if http.body_left > 0 {
                    now.after(settings.request_head_timeout)
                } else {
                    now.after(Duration::from_millis(HTTP_IDLE_MS))
                };
                wheel.set(key.slot, http.until);
            } else {
                socket.drain(io);
                wheel.set(key.slot, linger_until(now));
            }
        }
        self.pool.give(reply);
        keep_alive
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
            socket.drain(io);
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
        let Some(conn) = self.conns.get_mut(key) else { return };
        match (conn.socket.life, &conn.stage) {
            (Life::Open, Stage::Http(http)) if now < http.until => self.wheel.set(key.slot, http.until),
            (Life::Open, Stage::Http(http)) if !http.buffer.is_empty() => {
                self.refuse_request(now, key, HttpError::HeadTimeout, Cors::None);
            }
            (Life::Open, Stage::Client(_)) => self.on_client_time(now, key),
            // An idle HTTP connection; or a peer that does not close its side in time.
            _ => {
                conn.socket.end(&mut self.io, &mut self.frames, &mut self.metrics);
                self.join(now, key);
            }
        }
    }

    /// A connection is at its end, of whatever kind it is.
    pub(super) fn connection_ends(&mut self, now: Time, key: SlotKey, end: End) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if matches!(conn.stage, Stage::Client(_)) {
            return self.client_ends(now, key, end);
        }
        if let Stage::Http(http) = &mut conn.stage {
            self.pool.give(core::mem::take(&mut http.buffer));
        }
        conn.socket.end(&mut self.io, &mut self.frames, &mut self.metrics);
        self.join(now, key);
    }

    /// A connection id and its token, both as text.
    fn new_token(&mut self) -> ([u8; crate::ids::ID_BYTES], [u8; crate::session::token::TOKEN_CHARS]) {
        let mut id = [0u8; 16];
        id[..8].copy_from_slice(&self.random.next().to_ne_bytes());
        id[8..].copy_from_slice(&self.random.next().to_ne_bytes());
        (base64url(&id), self.settings.tokens.issue(&id, self.unix_seconds()))
    }

    fn unix_seconds(&self) -> u64 {
        self.clock.last / 10_000_000
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
