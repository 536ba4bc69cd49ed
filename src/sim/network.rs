//! The kernel and the network of a simulated world: time, what happens when, sockets with bytes under way, and what a ring holds.
//!
//! A socket has two ends, the shard's and its peer's (a client, or an app server). Each direction keeps its order; between sockets
//! nothing has one. Bytes are under way for a while, arrive, and wait until they are read:
//!
//! ```text
//! peer --under way--> ready --receive--> shard        shard --send--> under way, ready (both count against the room) --> peer
//! ```
use super::chance::Chance;
use super::faults::{Fault, Faults};
use super::trace::Trace;
use super::{Event, Sabotage};
use crate::ids::{SlotKey, Time};
use crate::limits::{LANE_RECV_BUFFER_BYTES, RECV_BUFFER_BYTES};
use crate::sys::{BufferGroup, Completion, Op, Received, Token};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

pub(super) type SocketId = usize;

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Client(usize),
    Lane(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Shard,
    Peer,
}

enum Item {
    Bytes(Vec<u8>),
    /// Its sender says no more.
    End,
    Reset,
}

/// One direction of a socket.
#[derive(Default)]
struct Pipe {
    under_way: VecDeque<Item>,
    /// When the last of it arrives: nothing overtakes.
    last: Time,
    /// Arrived and not read.
    ready: Vec<u8>,
    ended: bool,
    reset: bool,
    /// Bytes under way and ready.
    bytes: usize,
}

impl Pipe {
    fn is_readable(&self) -> bool {
        !self.ready.is_empty() || self.ended || self.reset
    }
}

pub(super) struct Socket {
    pub(super) peer: Peer,
    /// The shard whose it is, or was at last.
    pub(super) shard: usize,
    to_shard: Pipe,
    to_peer: Pipe,
    /// Bytes that the direction to the peer takes.
    room: usize,
    readable: Option<Token>,
    writable: Option<Token>,
    /// The shard's end is shut: for writing, for both.
    shut_write: bool,
    shut: bool,
    /// When the shard closed it.
    pub(super) closed: Option<Time>,
    /// The peer takes nothing at present: its window is closed.
    pub(super) is_stopped: bool,
    /// Cut in silence: nothing arrives any more, at either end.
    pub(super) is_severed: bool,
    /// When it stopped being whole, whoever began.
    pub(super) broken: Option<Time>,
    /// Was that the shard?
    pub(super) broken_by_shard: bool,
}

enum Operation {
    Accept(RawFd, Token),
    Readable(RawFd, Token),
    Writable(RawFd, Token),
    Receive(RawFd, SlotKey, BufferGroup),
    Cancel(Token),
}

/// What the kernel holds for one ring.
struct Kernel {
    submitted: Vec<Operation>,
    completions: Vec<(Completion, Vec<u8>)>,
    free: [Vec<u16>; 2],
    /// The listener, and the accepts under way for it.
    listener: Option<(RawFd, Vec<Token>)>,
    backlog: VecDeque<SocketId>,
    doorbell: Option<Token>,
    /// Goes with its shard, and what it holds goes with it.
    is_ending: bool,
}

/// How the network and the kernel are.
#[derive(Clone, Debug)]
pub(super) struct Weather {
    /// Latency, in microseconds.
    pub(super) latency_us: (u64, u64),
    /// Each in a thousand: a piece on the wire is cut; a receive takes a part; a send takes a part; a receive is interrupted, finds no
    /// buffer; a socket is said to be readable and is not; a multishot poll ends by itself.
    pub(super) cut: u32,
    pub(super) part: u32,
    pub(super) short: u32,
    pub(super) interrupted: u32,
    pub(super) starved: u32,
    pub(super) spurious: u32,
    pub(super) poll_ends: u32,
    /// Buffers of each group.
    pub(super) buffers: [u16; 2],
    /// What a peer's window takes.
    pub(super) window: usize,
}

pub(super) struct Network {
    pub(super) now: Time,
    /// What the wall clock is ahead of the other one, in ticks of 100 ns.
    pub(super) wall: u64,
    pub(super) chance: Chance,
    pub(super) weather: Weather,
    /// Faults happen.
    pub(super) is_rough: bool,
    pub(super) trace: Trace,
    pub(super) faults: Faults,
    pub(super) sabotage: Option<Sabotage>,
    /// The first rule that was broken.
    pub(super) broken: Option<String>,
    events: BTreeMap<(Time, u64), Event>,
    order: u64,
    sockets: Vec<Socket>,
    /// Descriptors are names only: what cannot be forged, and is closed when it is dropped.
    by_descriptor: HashMap<RawFd, SocketId>,
    owned: HashMap<RawFd, OwnedFd>,
    kernels: Vec<Kernel>,
}

impl Network {
    pub(super) fn new(chance: Chance, weather: Weather, shards: usize) -> Network {
        let kernel = |_| Kernel {
            submitted: Vec::new(),
            completions: Vec::new(),
            free: weather.buffers.map(|count| (0..count).rev().collect()),
            listener: None,
            backlog: VecDeque::new(),
            doorbell: None,
            is_ending: false,
        };
        Network {
            now: Time::from_millis(1),
            // 2026-01-01.
            wall: 1_767_225_600 * 10_000_000,
            chance,
            kernels: (0..shards).map(kernel).collect(),
            weather,
            is_rough: true,
            trace: Trace::default(),
            faults: Faults::default(),
            sabotage: None,
            broken: None,
            events: BTreeMap::new(),
            order: 0,
            sockets: Vec::new(),
            by_descriptor: HashMap::new(),
            owned: HashMap::new(),
        }
    }

    // ---- time ---------------------------------------------------------------------------------------------------

    pub(super) fn at(&mut self, when: Time, event: Event) {
        self.order += 1;
        self.events.insert((when.max(self.now), self.order), event);
    }

    pub(super) fn next_event(&self) -> Time {
        self.events.first_key_value().map_or(Time::NEVER, |((at, _), _)| *at)
    }

    /// The next event that is due.
    pub(super) fn take_event(&mut self) -> Option<Event> {
        let entry = self.events.first_entry()?;
        (entry.key().0 <= self.now).then(|| entry.remove())
    }

    pub(super) fn note(&mut self, what: &'static str, numbers: [u64; 3]) {
        self.trace.add(self.now, what, numbers);
    }

    /// In words, for who looks on.
    pub(super) fn tell(&self, words: impl FnOnce() -> String) {
        if self.trace.is_told {
            println!("{:>13.6} s  {}", self.now.0 as f64 / 1e9, words());
        }
    }

    /// A rule does not hold. The first one counts.
    pub(super) fn violated(&mut self, rule: String) {
        self.broken.get_or_insert(rule);
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        self.faults.count(fault);
    }

    /// In rough weather only.
    fn befalls(&mut self, per_mille: u32, fault: Fault) -> bool {
        let befalls = self.is_rough && self.chance.happens(per_mille);
        if befalls {
            self.faults.count(fault);
        }
        befalls
    }

    // ---- sockets, as their peers see them -----------------------------------------------------------------------

    pub(super) fn socket(&self, id: SocketId) -> &Socket {
        &self.sockets[id]
    }

    fn add_socket(&mut self, peer: Peer, shard: usize) -> SocketId {
        self.sockets.push(Socket {
            peer,
            shard,
            to_shard: Pipe::default(),
            to_peer: Pipe::default(),
            room: self.weather.window,
            readable: None,
            writable: None,
            shut_write: false,
            shut: false,
            closed: None,
            is_stopped: false,
            is_severed: false,
            broken: None,
            broken_by_shard: false,
        });
        self.sockets.len() - 1
    }

    /// A client connects to a shard's listener.
    pub(super) fn connect(&mut self, client: usize, shard: usize) -> SocketId {
        let id = self.add_socket(Peer::Client(client), shard);
        self.note("connect", [id as u64, client as u64, shard as u64]);
        self.kernels[shard].backlog.push_back(id);
        self.offer(shard);
        id
    }

    /// A lane's socket, and its descriptor to be handed over.
    pub(super) fn dial(&mut self, lane: usize, shard: usize) -> (SocketId, OwnedFd) {
        let id = self.add_socket(Peer::Lane(lane), shard);
        // An app server's side takes what it gets.
        self.sockets[id].room = 256 * 1024;
        let descriptor = name();
        self.by_descriptor.insert(descriptor.as_raw_fd(), id);
        (id, descriptor)
    }

    /// Connections that wait are accepted, if that is asked for.
    pub(super) fn offer(&mut self, shard: usize) {
        while let Kernel { listener: Some((_, accepts)), backlog, .. } = &mut self.kernels[shard]
            && !accepts.is_empty()
            && let Some(id) = backlog.pop_front()
        {
            let token = accepts.remove(0);
            let descriptor = name();
            let fd = descriptor.as_raw_fd();
            self.by_descriptor.insert(fd, id);
            self.owned.insert(fd, descriptor);
            self.note("accept", [id as u64, shard as u64, 0]);
            self.complete(shard, token, fd, false);
        }
    }

    /// An accept fails.
    pub(super) fn fail_accept(&mut self, shard: usize, errno: i32) {
        if let Some((_, accepts)) = &mut self.kernels[shard].listener
            && let Some(token) = accepts.pop()
        {
            self.fault(Fault::AcceptFails);
            self.complete(shard, token, -errno, false);
        }
    }

    fn arrival(&mut self, id: SocketId, to: Side, item: Item) {
        let (least, most) = self.weather.latency_us;
        let latency = core::time::Duration::from_micros(self.chance.between(least, most));
        let now = self.now;
        let socket = &mut self.sockets[id];
        let pipe = if to == Side::Shard { &mut socket.to_shard } else { &mut socket.to_peer };
        let when = now.after(latency).max(pipe.last);
        pipe.last = when;
        if let Item::Bytes(bytes) = &item {
            pipe.bytes += bytes.len();
        }
        pipe.under_way.push_back(item);
        self.at(when, Event::Arrives { socket: id, to });
    }

    /// Bytes of the peer leave it, in one piece or several.
    pub(super) fn peer_sends(&mut self, id: SocketId, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let cut = self.chance.happens(self.weather.cut);
            let count = if cut { 1 + self.chance.below(rest.len()) } else { rest.len() };
            let (piece, later) = rest.split_at(count);
            self.arrival(id, Side::Shard, Item::Bytes(piece.to_vec()));
            rest = later;
        }
    }

    /// The peer sends no more.
    pub(super) fn peer_ends(&mut self, id: SocketId) {
        self.breaks(id, false);
        self.arrival(id, Side::Shard, Item::End);
    }

    /// Both directions end at once, and what is under way is lost.
    pub(super) fn peer_resets(&mut self, id: SocketId) {
        self.breaks(id, false);
        self.note("reset", [id as u64, 0, 0]);
        self.arrival(id, Side::Shard, Item::Reset);
        let pipe = &mut self.sockets[id].to_peer;
        pipe.ready.clear();
        pipe.reset = true;
    }

    /// Nothing arrives any more, and nobody is told.
    pub(super) fn sever(&mut self, id: SocketId) {
        self.breaks(id, false);
        self.note("sever", [id as u64, 0, 0]);
        self.sockets[id].is_severed = true;
    }

    /// The peer's window closes ...
    pub(super) fn stop_reading(&mut self, id: SocketId) {
        self.sockets[id].is_stopped = true;
    }

    /// ... and opens again.
    pub(super) fn read_on(&mut self, id: SocketId) {
        self.sockets[id].is_stopped = false;
    }

    /// Sockets that were cut in silence and that the shards still have.
    pub(super) fn severed(&self) -> Vec<SocketId> {
        let is_it = |id: &SocketId| self.sockets[*id].is_severed && self.sockets[*id].closed.is_none();
        (0..self.sockets.len()).filter(is_it).collect()
    }

    /// The kernel gives up on a peer that acknowledges nothing.
    pub(super) fn times_out(&mut self, id: SocketId) {
        let socket = &mut self.sockets[id];
        socket.to_shard.reset = true;
        self.now_readable(id);
    }

    fn breaks(&mut self, id: SocketId, by_shard: bool) {
        let now = self.now;
        let socket = &mut self.sockets[id];
        if socket.broken.is_none() {
            socket.broken = Some(now);
            socket.broken_by_shard = by_shard;
        }
    }

    /// What has arrived at the peer: bytes, and whether that is the end.
    pub(super) fn peer_takes(&mut self, id: SocketId) -> (Vec<u8>, bool) {
        let pipe = &mut self.sockets[id].to_peer;
        let bytes = core::mem::take(&mut pipe.ready);
        pipe.bytes -= bytes.len();
        let ended = pipe.ended || pipe.reset;
        self.now_writable(id);
        (bytes, ended)
    }

    /// Something arrives. True where its peer has to look.
    pub(super) fn arrives(&mut self, id: SocketId, to: Side) -> bool {
        let socket = &mut self.sockets[id];
        let pipe = if to == Side::Shard { &mut socket.to_shard } else { &mut socket.to_peer };
        let Some(item) = pipe.under_way.pop_front() else { return false };
        if socket.is_severed {
            // What the shard sends stays unacknowledged and fills its buffer.
            return false;
        }
        match item {
            Item::Bytes(bytes) if !pipe.reset && !pipe.ended => {
                if to == Side::Shard && socket.closed.is_some() {
                    // Nobody is there: the peer is told.
                    socket.to_peer.reset = true;
                    return true;
                }
                pipe.ready.extend_from_slice(&bytes);
            }
            Item::Bytes(_) => return false,
            Item::End => pipe.ended = true,
            Item::Reset => {
                pipe.reset = true;
                pipe.ready.clear();
            }
        }
        match to {
            Side::Shard => {
                self.now_readable(id);
                false
            }
            Side::Peer => !self.sockets[id].is_stopped,
        }
    }

    fn now_readable(&mut self, id: SocketId) {
        let Socket { shard, readable, to_shard, .. } = &mut self.sockets[id];
        let (shard, is_readable) = (*shard, to_shard.is_readable());
        let Some(token) = *readable else { return };
        if !is_readable {
            return;
        }
        if self.sabotage == Some(Sabotage::MissWake) && self.is_rough && self.chance.happens(20) {
            return;
        }
        let ends = self.befalls(self.weather.poll_ends, Fault::PollEnds);
        if ends {
            self.sockets[id].readable = None;
        }
        self.complete(shard, token, libc::POLLIN.into(), !ends);
    }

    fn now_writable(&mut self, id: SocketId) {
        let socket = &mut self.sockets[id];
        // As the kernel has it: a third of the buffer is free.
        let is_writable = (socket.room.saturating_sub(socket.to_peer.bytes)) * 3 >= socket.room
            || socket.to_shard.reset
            || socket.shut;
        if is_writable && let Some(token) = socket.writable.take() {
            let shard = socket.shard;
            self.complete(shard, token, libc::POLLOUT.into(), false);
        }
    }

    // ---- the kernel, as the shard sees it -----------------------------------------------------------------------

    fn complete(&mut self, shard: usize, token: Token, result: i32, more: bool) {
        let completion = Completion { token, result, received: None, more, nonempty: false };
        self.kernels[shard].completions.push((completion, Vec::new()));
    }

    pub(super) fn has_completions(&self, shard: usize) -> bool {
        !self.kernels[shard].completions.is_empty()
    }

    /// Orders wait for a shard.
    pub(super) fn ring_doorbell(&mut self, shard: usize) {
        if let Some(token) = self.kernels[shard].doorbell {
            let completions = &mut self.kernels[shard].completions;
            if !completions.iter().any(|(completion, _)| completion.token.op == Op::Doorbell) {
                self.complete(shard, token, libc::POLLIN.into(), true);
            }
        }
    }

    pub(super) fn listen(&mut self, shard: usize, listener: RawFd) {
        self.kernels[shard].listener = Some((listener, Vec::new()));
    }

    pub(super) fn end_kernel(&mut self, shard: usize) {
        self.kernels[shard].is_ending = true;
    }

    /// A listener is shut: whoever waits is refused.
    fn stop_listening(&mut self, shard: usize) {
        if let Some((_, accepts)) = self.kernels[shard].listener.take() {
            accepts.into_iter().for_each(|token| self.complete(shard, token, -libc::EINVAL, false));
        }
        for id in core::mem::take(&mut self.kernels[shard].backlog) {
            self.breaks(id, true);
            self.arrival(id, Side::Peer, Item::Reset);
        }
    }

    /// What was submitted takes effect.
    pub(super) fn submit(&mut self, shard: usize) {
        for operation in core::mem::take(&mut self.kernels[shard].submitted) {
            match operation {
                Operation::Accept(fd, token) => {
                    match &mut self.kernels[shard].listener {
                        Some((listener, accepts)) if *listener == fd => accepts.push(token),
                        // It was shut meanwhile.
                        _ => self.complete(shard, token, -libc::EINVAL, false),
                    }
                    self.offer(shard);
                }
                Operation::Readable(_, token) if token.op == Op::Doorbell => {
                    self.kernels[shard].doorbell = Some(token);
                }
                Operation::Readable(fd, token) => {
                    let Some(id) = self.open(fd, "polls") else { continue };
                    if self.sockets[id].readable.replace(token).is_some() {
                        self.violated("a socket is polled twice for reading".into());
                    }
                    self.now_readable(id);
                }
                Operation::Writable(fd, token) => {
                    let Some(id) = self.open(fd, "polls") else { continue };
                    if self.sockets[id].writable.replace(token).is_some() {
                        self.violated("a socket is polled twice for writing".into());
                    }
                    self.now_writable(id);
                }
                Operation::Receive(fd, key, group) => self.receive(shard, fd, key, group),
                Operation::Cancel(token) => self.cancel(shard, token),
            }
        }
    }

    fn cancel(&mut self, shard: usize, token: Token) {
        if token.op == Op::Accept {
            let mut called_back = 0;
            if let Some((_, accepts)) = &mut self.kernels[shard].listener {
                let before = accepts.len();
                accepts.retain(|armed| *armed != token);
                called_back = before - accepts.len();
            }
            for _ in 0..called_back {
                self.complete(shard, token, -libc::ECANCELED, false);
            }
            return;
        }
        for socket in &mut self.sockets {
            let armed = match token.op {
                Op::Readable => &mut socket.readable,
                Op::Writable => &mut socket.writable,
                _ => continue,
            };
            if socket.shard == shard && *armed == Some(token) {
                *armed = None;
                return self.complete(shard, token, -libc::ECANCELED, false);
            }
        }
        // It has completed meanwhile.
    }

    fn open(&mut self, fd: RawFd, doing: &str) -> Option<SocketId> {
        let id = self.by_descriptor.get(&fd).copied();
        if id.is_none() {
            self.violated(format!("the shard {doing} a descriptor that is not open"));
        }
        id
    }

    fn receive(&mut self, shard: usize, fd: RawFd, key: SlotKey, group: BufferGroup) {
        let op = if group == BufferGroup::Lane { Op::ReceiveLane } else { Op::Receive };
        let token = Token { op, key };
        let Some(id) = self.open(fd, "receives from") else { return };
        let socket = &mut self.sockets[id];
        let pipe = &mut socket.to_shard;
        let result = if pipe.reset && !socket.shut {
            Some(-libc::ECONNRESET)
        } else if pipe.ready.is_empty() {
            Some(if pipe.ended || socket.shut { 0 } else { -libc::EAGAIN })
        } else {
            None
        };
        if let Some(result) = result {
            return self.complete(shard, token, result, false);
        }
        if self.befalls(self.weather.interrupted, Fault::Interrupted) {
            return self.complete(shard, token, -libc::EINTR, false);
        }
        if self.befalls(self.weather.starved, Fault::NoBuffers) {
            return self.complete(shard, token, -libc::ENOBUFS, false);
        }
        let Some(buffer) = self.kernels[shard].free[group as usize].pop() else {
            self.fault(Fault::NoBuffers);
            return self.complete(shard, token, -libc::ENOBUFS, false);
        };
        let size = if group == BufferGroup::Lane { LANE_RECV_BUFFER_BYTES } else { RECV_BUFFER_BYTES } as usize;
        let there = self.sockets[id].to_shard.ready.len().min(size);
        let is_part = self.befalls(self.weather.part, Fault::PartialReceive);
        let count = if is_part { 1 + self.chance.below(there) } else { there };
        let pipe = &mut self.sockets[id].to_shard;
        let bytes: Vec<u8> = pipe.ready.drain(..count).collect();
        pipe.bytes -= count;
        let nonempty = !pipe.ready.is_empty();
        self.trace.bytes(&bytes);
        let completion = Completion {
            token,
            result: count as i32,
            received: Some(Received { group, id: buffer, len: count as u32 }),
            more: false,
            nonempty,
        };
        self.kernels[shard].completions.push((completion, bytes));
        if self.befalls(self.weather.spurious, Fault::SpuriousWake)
            && let Some(token) = self.sockets[id].readable
        {
            self.complete(shard, token, libc::POLLIN.into(), true);
        }
    }

    /// What completed, in an order of its own between connections.
    pub(super) fn take_completions(&mut self, shard: usize) -> Vec<(Completion, Vec<u8>)> {
        let mut completions = core::mem::take(&mut self.kernels[shard].completions);
        for at in 1..completions.len() {
            let of_one = completions[at - 1].0.token.key == completions[at].0.token.key;
            if !of_one && self.chance.happens(200) {
                completions.swap(at - 1, at);
                self.fault(Fault::Reordered);
            }
        }
        completions
    }

    pub(super) fn give_back(&mut self, shard: usize, group: BufferGroup, id: u16) {
        if self.sabotage == Some(Sabotage::KeepBuffer) && self.chance.happens(5) {
            return;
        }
        let free = &mut self.kernels[shard].free[group as usize];
        if free.contains(&id) {
            self.violated(format!("buffer {id} is given back twice"));
        } else {
            free.push(id);
        }
    }

    /// Buffers that the shard has not given back.
    pub(super) fn buffers_lent(&self, shard: usize) -> usize {
        let free = &self.kernels[shard].free;
        self.weather.buffers.iter().zip(free).map(|(all, free)| usize::from(*all) - free.len()).sum()
    }

    pub(super) fn queue_accept(&mut self, shard: usize, fd: RawFd, token: Token) {
        self.kernels[shard].submitted.push(Operation::Accept(fd, token));
    }
    pub(super) fn queue_readable(&mut self, shard: usize, fd: RawFd, token: Token) {
        self.kernels[shard].submitted.push(Operation::Readable(fd, token));
    }
    pub(super) fn queue_writable(&mut self, shard: usize, fd: RawFd, token: Token) {
        self.kernels[shard].submitted.push(Operation::Writable(fd, token));
    }
    pub(super) fn queue_receive(&mut self, shard: usize, fd: RawFd, key: SlotKey, group: BufferGroup) {
        self.kernels[shard].submitted.push(Operation::Receive(fd, key, group));
    }
    pub(super) fn queue_cancel(&mut self, shard: usize, token: Token) {
        self.kernels[shard].submitted.push(Operation::Cancel(token));
    }

    /// A send that never waits: how much the kernel took, or a negative errno.
    pub(super) fn send(&mut self, fd: RawFd, bytes: &[u8]) -> i32 {
        let Some(id) = self.open(fd, "sends on") else { return -libc::EBADF };
        let socket = &self.sockets[id];
        if socket.shut || socket.shut_write {
            return -libc::EPIPE;
        }
        if socket.to_shard.reset {
            return -libc::ECONNRESET;
        }
        let room = socket.room.saturating_sub(socket.to_peer.bytes);
        let mut count = room.min(bytes.len());
        if count < bytes.len() {
            self.fault(Fault::FullSocket);
        } else if self.befalls(self.weather.short, Fault::ShortSend) {
            count = self.chance.below(count + 1);
        }
        self.note("send", [id as u64, count as u64, bytes.len() as u64]);
        self.trace.bytes(&bytes[..count]);
        if count == 0 {
            return -libc::EAGAIN;
        }
        self.arrival(id, Side::Peer, Item::Bytes(bytes[..count].to_vec()));
        count as i32
    }

    pub(super) fn adopt(&mut self, shard: usize, descriptor: OwnedFd) -> RawFd {
        let fd = descriptor.as_raw_fd();
        match self.by_descriptor.get(&fd) {
            Some(id) => self.sockets[*id].shard = shard,
            None => self.violated("the shard takes over what nobody made".into()),
        }
        self.owned.insert(fd, descriptor);
        fd
    }

    pub(super) fn disown(&mut self, fd: RawFd) -> OwnedFd {
        if let Some(id) = self.open(fd, "gives away") {
            self.is_idle(id, "given away");
        }
        self.owned.remove(&fd).unwrap_or_else(name)
    }

    pub(super) fn is_gone(&self, fd: RawFd) -> bool {
        self.by_descriptor.get(&fd).is_none_or(|id| self.sockets[*id].to_shard.reset)
    }

    pub(super) fn socket_of(&self, fd: RawFd) -> Option<SocketId> {
        self.by_descriptor.get(&fd).copied()
    }

    fn is_idle(&mut self, id: SocketId, what: &str) {
        let socket = &self.sockets[id];
        if socket.readable.is_some() || socket.writable.is_some() {
            self.violated(format!("socket {id} is {what} while the kernel holds operations on it"));
        }
    }

    pub(super) fn shutdown_write(&mut self, fd: RawFd) {
        let Some(id) = self.open(fd, "shuts") else { return };
        self.breaks(id, true);
        if !core::mem::replace(&mut self.sockets[id].shut_write, true) {
            self.arrival(id, Side::Peer, Item::End);
        }
    }

    pub(super) fn shutdown(&mut self, fd: RawFd) {
        let listening =
            self.kernels.iter().position(|kernel| kernel.listener.as_ref().is_some_and(|(own, _)| *own == fd));
        if let Some(shard) = listening {
            return self.stop_listening(shard);
        }
        let Some(id) = self.open(fd, "shuts") else { return };
        self.breaks(id, true);
        let socket = &mut self.sockets[id];
        let was_shut = core::mem::replace(&mut socket.shut, true);
        if !was_shut && !socket.shut_write {
            self.arrival(id, Side::Peer, Item::End);
        }
        // Both polls see it, as those of the kernel do.
        self.sockets[id].to_shard.ended = true;
        self.now_readable(id);
        self.now_writable(id);
    }

    pub(super) fn close(&mut self, fd: RawFd) {
        let Some(id) = self.open(fd, "closes") else { return };
        if !self.kernels[self.sockets[id].shard].is_ending {
            self.is_idle(id, "closed");
        }
        self.note("close", [id as u64, 0, 0]);
        self.breaks(id, true);
        let now = self.now;
        let socket = &mut self.sockets[id];
        socket.closed = Some(now);
        // What was not read is answered with a reset (RFC 1122 section 4.2.2.13).
        let item = if socket.to_shard.ready.is_empty() { Item::End } else { Item::Reset };
        if !socket.shut && !socket.shut_write {
            self.arrival(id, Side::Peer, item);
        }
        self.by_descriptor.remove(&fd);
        self.owned.remove(&fd);
    }

    /// Sockets that the shards have not closed.
    pub(super) fn open_sockets(&self) -> usize {
        self.owned.len()
    }
}

/// A descriptor that stands for something.
pub(super) fn name() -> OwnedFd {
    File::open("/dev/null").expect("there is nothing to open it for").into()
}
