//! The kernel: the ring of a shard, sockets, the clock, doorbells, what this machine can do. With `mem`, the only place where
//! `unsafe` may stand; every block says why it holds.
//!
//! `Io` is a shard's whole world. The real one is `ring::Ring`; a simulated one can take its place.
#![allow(unsafe_code)]

pub mod doorbell;
pub mod mapping;
pub mod probe;
pub mod ring;
pub mod socket;

use crate::ids::{SlotKey, Time};
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};

/// What an operation belongs to and which kind it is, carried through the kernel as `user_data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub op: Op,
    /// Generation included, so that a late completion is never taken for one of the slot's next owner.
    pub key: SlotKey,
}

/// Kinds of operation. A connection has at most one of each in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// One of several accepts on a listener.
    Accept = 1,
    /// Multishot poll of the shard's doorbell.
    Doorbell = 2,
    /// Multishot poll of a socket for reading; the only thing an idle connection costs in the ring.
    Readable = 3,
    /// One receive into a provided buffer of the clients' group. Never waits.
    Receive = 4,
    /// One-shot poll for writing, after a send found the socket full.
    Writable = 5,
    /// A send. Never waits: it is resolved when the batch has been submitted.
    Send = 6,
    /// A cancellation; its own completion says nothing.
    Cancel = 7,
    /// As `Receive`, from the lanes' group.
    ReceiveLane = 8,
}

impl Token {
    /// Bits: op 8, slot 24, generation 32.
    pub fn pack(self) -> u64 {
        debug_assert!(self.key.slot <= crate::ids::SLOT_MAX);
        (self.op as u64) << 56 | u64::from(self.key.slot) << 32 | u64::from(self.key.generation)
    }

    pub fn unpack(bits: u64) -> Option<Token> {
        let op = match bits >> 56 {
            1 => Op::Accept,
            2 => Op::Doorbell,
            3 => Op::Readable,
            4 => Op::Receive,
            5 => Op::Writable,
            6 => Op::Send,
            7 => Op::Cancel,
            8 => Op::ReceiveLane,
            _ => return None,
        };
        let slot = (bits >> 32) as u32 & crate::ids::SLOT_MAX;
        Some(Token { op, key: SlotKey { slot, generation: bits as u32 } })
    }
}

/// Which provided buffers a receive takes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferGroup {
    /// Many small ones for clients.
    Client = 0,
    /// Few large ones for lanes.
    Lane = 1,
}

/// A received piece, lent by the world until it is given back.
#[derive(Debug, PartialEq, Eq)]
pub struct Received {
    pub group: BufferGroup,
    pub id: u16,
    pub len: u32,
}

/// The end of an operation, or one more event of a multishot one.
#[derive(Debug)]
pub struct Completion {
    pub token: Token,
    /// As the kernel says it: a count, a descriptor, or a negative errno.
    pub result: i32,
    pub received: Option<Received>,
    /// Multishot: more will come without arming it again.
    pub more: bool,
    /// Receive: the socket held more than was taken.
    pub nonempty: bool,
}

/// A send of a batch that did not go out whole: how much did, or a negative errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortSend {
    pub key: SlotKey,
    pub result: i32,
}

/// A shard's world. Operations are queued and take effect at the next `wait` or `send_batch`.
pub trait Io {
    fn now(&self) -> Time;
    /// 100 ns units since 1970-01-01 UTC, for the contexts' time stamps.
    fn wall_ticks(&self) -> u64;

    /// One connection more. There may be several under way for one listener: `cancel` ends one of them.
    fn arm_accept(&mut self, listener: RawFd, token: Token);
    /// A connection that waits in the queue of a listener without a multishot accept, which is about to be closed; as that one would give it.
    fn accept_waiting(&mut self, listener: RawFd) -> Option<RawFd> {
        let _ = listener;
        None
    }
    fn arm_readable(&mut self, fd: RawFd, token: Token);
    fn arm_writable(&mut self, fd: RawFd, token: Token);
    /// `key`'s next bytes, from the buffers of `group`; completes as `Op::Receive` or `Op::ReceiveLane`.
    fn receive(&mut self, fd: RawFd, key: SlotKey, group: BufferGroup);
    /// Ends every armed operation with this token; each then completes with an error and without `more`.
    fn cancel(&mut self, token: Token);

    /// Sends for many sockets, at most one for each and at most `SEND_BATCH`, handed over at once. `fill` names them; `short`
    /// collects those that did not go out whole. All others did.
    fn send_batch<'b>(&mut self, fill: impl FnOnce(&mut SendBatch<'_, 'b>), short: &mut Vec<ShortSend>);

    /// Hands over what is queued and waits until something completes or `until` has come; appends what completed.
    fn wait(&mut self, until: Time, completions: &mut Vec<Completion>);

    /// The bytes of a received piece, to be decoded in place.
    fn buffer(&mut self, received: &Received) -> &mut [u8];
    fn give_back(&mut self, received: Received);

    /// Takes a socket over that somebody else made; it is closed with `close`.
    fn adopt(&mut self, socket: OwnedFd) -> RawFd;
    /// Gives a socket away. No operation on it is in flight.
    fn disown(&mut self, fd: RawFd) -> OwnedFd;
    /// Addresses of an accepted socket: (local, peer). None if it is already gone.
    fn addresses(&self, fd: RawFd) -> Option<(SocketAddr, SocketAddr)>;
    /// Socket options of a new client.
    fn prepare_client(&self, fd: RawFd, send_buffer_bytes: u32);
    /// No more bytes will be sent: the peer sees our end after everything sent before.
    fn shutdown_write(&mut self, fd: RawFd);
    /// Both directions end at once.
    fn shutdown(&mut self, fd: RawFd);
    /// Only when no operation on it is in flight.
    fn close(&mut self, fd: RawFd);
    /// Takes the count out of a doorbell so that it can ring again.
    fn quiet(&mut self, doorbell: RawFd);
}

/// The sends of one batch. `'b` is the life of the bytes: they outlive the batch, which is submitted when `fill` returns.
pub struct SendBatch<'s, 'b> {
    pub(crate) sink: &'s mut dyn SendSink,
    pub(crate) bytes: core::marker::PhantomData<&'b [u8]>,
}

impl<'b> SendBatch<'_, 'b> {
    /// Starts the send of one connection; its parts follow.
    pub fn begin(&mut self, key: SlotKey, fd: RawFd) {
        self.sink.begin(key, fd);
    }
    pub fn part(&mut self, bytes: &'b [u8]) {
        self.sink.part(bytes);
    }
}

/// What a world does with the sends it is told of.
pub(crate) trait SendSink {
    fn begin(&mut self, key: SlotKey, fd: RawFd);
    fn part(&mut self, bytes: &[u8]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_kernel() {
        for op in
            [Op::Accept, Op::Doorbell, Op::Readable, Op::Receive, Op::Writable, Op::Send, Op::Cancel, Op::ReceiveLane]
        {
            for (slot, generation) in [(0, 0), (crate::ids::SLOT_MAX, u32::MAX), (77, 3)] {
                let token = Token { op, key: SlotKey { slot, generation } };
                assert_eq!(Token::unpack(token.pack()), Some(token));
            }
        }
        assert_eq!(Token::unpack(0), None);
    }
}
