//! Connections that change their shard: a request for a connection that another shard owns goes there, with its socket and
//! everything that was read of it.
use super::Shard;
use super::secure::Secure;
use super::socket::{Conn, HttpStage, Life, Ops, Stage};
use crate::bus::{Handover, ShardOrder};
use crate::ids::{ShardId, SlotKey, Time};
use crate::metrics::Counter;
use crate::proto::http::{Cors, HttpError};
use crate::sys::{Io, Op, Token};

impl<I: Io> Shard<I> {
    /// Calls the kernel's operations on the socket back; `leave` goes on when they are over.
    pub(super) fn begin_leaving(&mut self, now: Time, key: SlotKey, to: ShardId) {
        let Shard { conns, io, wheel, settings, .. } = self;
        let Some(Conn { socket, stage: Stage::Http(http) }) = conns.get_mut(key) else { return };
        http.leaving_to = Some(to);
        socket.life = Life::Leaving;
        if socket.ops.has(Ops::READABLE) {
            io.cancel(Token { op: Op::Readable, key });
        }
        // A peer that does not read what was said to it would stay for ever: nothing else watches it now.
        http.until = now.after(settings.request_head_timeout);
        wheel.set(key.slot, http.until);
        self.leave(now, key);
    }

    /// Hands the connection over, if the kernel has let go of it and everything said on it so far has left.
    pub(super) fn leave(&mut self, now: Time, key: SlotKey) {
        let Some(Conn { socket, stage: Stage::Http(_) }) = self.conns.get(key) else { return };
        if socket.life != Life::Leaving || !socket.ops.is_empty() || socket.has_unsent() {
            return;
        }
        // Its address counts it where it goes, and it may be there at once. If it stays, it stays to be refused.
        self.uncount_address(key);
        let Shard { conns, shards, wheel, io, .. } = self;
        let Some(Conn { socket, stage: Stage::Http(http) }) = conns.get_mut(key) else { return };
        let to = http.leaving_to.and_then(|to| shards.get(usize::from(to.0)));
        let HttpStage { peer, buffer, .. } = &mut **http;
        let handover = Handover {
            socket: io.disown(socket.fd),
            peer: *peer,
            buffer: core::mem::take(buffer),
            tls: socket.secure.take().map(|secure| secure.into_tls()),
        };
        let order = ShardOrder::Connection(Box::new(handover));
        let refused = match to {
            Some(to) => to.send(order).err(),
            None => Some(order),
        };
        match refused {
            None => {
                self.metrics.add(Counter::HandedOver, 1);
                wheel.clear(key.slot);
                // Not `free_place`: it still is one of the node's.
                conns.remove(key);
            }
            // Its queue is full, or it has ended: the connection stays, and is told to try later.
            Some(ShardOrder::Connection(handover)) => {
                let Handover { socket: descriptor, tls, .. } = *handover;
                socket.fd = io.adopt(descriptor);
                socket.secure = tls.map(|tls| Box::new(Secure::new(tls)));
                socket.life = Life::Open;
                self.refuse_request(now, key, HttpError::Overloaded, Cors::None);
            }
            Some(_) => unreachable!("an order comes back as it was sent"),
        }
    }

    /// A connection that another shard has read the beginning of.
    pub(super) fn on_handover(&mut self, now: Time, handover: Handover) {
        let Handover { socket, peer, buffer, tls } = handover;
        let mut http = HttpStage::new(peer, now.after(self.settings.request_head_timeout));
        http.buffer = buffer;
        let secure = tls.map(|tls| Box::new(Secure::new(tls)));
        let fd = self.io.adopt(socket);
        self.has_arrived();
        if let Some(key) = self.add_connection(now, fd, secure, http) {
            self.serve_requests(now, key);
        }
    }
}
