//! TLS between a socket and everything else: what is received is opened before it is looked at, what is queued is sealed before it
//! is sent. A socket without TLS pays one comparison.
use super::Shard;
use super::lane::lane_of;
use super::socket::{Conn, Life, Socket, Stage, linger_until};
use super::turn::socket_of;
use crate::ids::{SlotKey, Time};
use crate::limits::{SEND_BATCH, TLS_SEALED_BYTES_MAX};
use crate::mem::frames::{FramePool, SendQueue};
use crate::mem::pool::BytePool;
use crate::metrics::Counter;
use crate::session::fault::{End, LaneEnd};
use crate::sys::Io;
use crate::tls::{Opened, Tls, TlsError};
use tracing::info;

/// The TLS of one socket.
pub(super) struct Secure {
    tls: Box<Tls>,
    /// Records that have not left yet.
    pub(super) sealed: SendQueue,
    said_goodbye: bool,
}

impl Secure {
    pub(super) fn new(tls: Box<Tls>) -> Secure {
        Secure { tls, sealed: SendQueue::default(), said_goodbye: false }
    }

    pub(super) fn open(
        &mut self,
        input: &mut [u8],
        frames: &mut FramePool,
        pool: &mut BytePool,
        plain: &mut Vec<u8>,
    ) -> Result<Opened, TlsError> {
        let Secure { tls, sealed, said_goodbye } = self;
        let opened = frames.derive(sealed, |_, out| tls.open(input, pool, plain, out));
        // An alert says it all.
        *said_goodbye |= opened.is_err();
        opened
    }

    /// Before the end of what we send there has still to be close_notify.
    pub(super) fn owes_goodbye(&self) -> bool {
        !self.said_goodbye && !self.tls.is_handshaking()
    }

    /// Seals what is queued, as far as it may wait here. With nothing more to come, the goodbye follows (RFC 8446 section 6.1).
    fn seal(&mut self, queue: &mut SendQueue, life: Life, frames: &mut FramePool) -> Result<(), TlsError> {
        let Secure { tls, sealed, said_goodbye } = self;
        // What the kernel has not taken yet stays in the queue, where it is bounded.
        if !sealed.is_empty() || tls.is_handshaking() {
            return Ok(());
        }
        let is_last = life == Life::Draining && !*said_goodbye;
        if queue.is_empty() && !is_last {
            return Ok(());
        }
        let bytes = (queue.bytes() as usize).min(TLS_SEALED_BYTES_MAX);
        let result = frames.derive(sealed, |frames, out| tls.seal(frames.parts(queue, bytes), out));
        // Nothing can be sealed any more, a goodbye no more than the rest.
        *said_goodbye |= result.is_err();
        result?;
        frames.advance(queue, bytes as u32);
        if is_last && queue.is_empty() {
            *said_goodbye = true;
            frames.derive(sealed, |_, out| tls.close_notify(out));
        }
        Ok(())
    }

    /// For the shard it is handed to; nothing may be unsent.
    pub(super) fn into_tls(self) -> Box<Tls> {
        debug_assert!(self.sealed.is_empty());
        self.tls
    }

    /// The connection is over.
    pub(super) fn release(&mut self, frames: &mut FramePool, pool: &mut BytePool) {
        self.tls.release(pool);
        frames.clear(&mut self.sealed);
    }
}

impl<I: Io> Shard<I> {
    /// Seals what is queued on the sockets that the next batch takes from the list, and no others: a fan-out has many batches, and
    /// neither its time nor its memory should be that of all sockets in each of them.
    ///
    /// True if it has to be called again: the end of a connection whose TLS failed may have put others on the list.
    pub(super) fn seal_dirty(&mut self) -> bool {
        let mut failed = Vec::new();
        let Shard { conns, lanes, frames, dirty, .. } = self;
        for key in dirty.iter().rev().take(SEND_BATCH) {
            let Some(Socket { secure: Some(secure), queue, life, .. }) = socket_of(conns, lanes, *key) else {
                continue;
            };
            if *life != Life::Ending
                && let Err(error) = secure.seal(queue, *life, frames)
            {
                failed.push((*key, error));
            }
        }
        let now = self.io.now();
        let is_changed = !failed.is_empty();
        for (key, error) in failed {
            self.on_tls_error(now, key, error);
        }
        is_changed
    }

    pub(super) fn on_tls_error(&mut self, now: Time, key: SlotKey, error: TlsError) {
        if let Some(lane) = lane_of(key) {
            self.lane_ends(now, lane, LaneEnd::Tls(error.to_string()));
            return self.join(now, key);
        }
        self.metrics.add(Counter::TlsErrors, 1);
        if let Some(suppressed) = self.quiet.tls.admit(now) {
            info!("a client's TLS failed: {error}{suppressed}");
        }
        if let Some(Conn { stage: Stage::Http(http), .. }) = self.conns.get_mut(key)
            && let Some(parked) = http.parked.take()
        {
            // What there is to say from now on waits for the next poll.
            self.poll_gone(now, key, parked.client);
        }
        let Shard { conns, io, frames, dirty, wheel, .. } = self;
        match conns.get_mut(key) {
            // The alert that says what is wrong has still to leave; nothing else can.
            Some(Conn { socket, stage: Stage::Http(_) }) => {
                frames.clear(&mut socket.queue);
                socket.mark(dirty);
                socket.drain(io);
                wheel.set(key.slot, linger_until(now));
            }
            _ => self.connection_ends(now, key, End::Tls(error.label())),
        }
        self.join(now, key);
    }
}
