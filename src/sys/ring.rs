//! A shard's io_uring: single issuer, deferred task work, provided-buffer rings, multishot polls, and sends that are
//! resolved at submit.
//!
//! A send carries `MSG_DONTWAIT | MSG_WAITALL` and skips its completion on success. So the kernel either took all of it while the
//! submission ran, and nothing is posted, or a completion with the partial count or the error stands in the queue when the
//! submission returns. Buffers are therefore free as soon as `send_batch` returns, and no send is ever in flight across turns.
use super::{BufferGroup, Completion, Io, Received, SendBatch, SendSink, ShortSend, Token, socket};
use crate::ids::{SlotKey, Time};
use crate::limits::*;
use crate::sys::Op;
use io_uring::types::{BufRingEntry, CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

const SEND_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
/// `IORING_ENTER_GETEVENTS`: deferred task work runs only in an enter that carries it.
const ENTER_GETEVENTS: u32 = 1;

/// Queues of a shard's ring: entries of 64 and 16 bytes and an index of four a submission, shared with the kernel; and the
/// completions taken early, on our side.
pub const RING_BYTES: usize = RING_SUBMISSIONS as usize * (size_of::<squeue::Entry>() + size_of::<u32>())
    + RING_COMPLETIONS as usize * size_of::<cqueue::Entry>()
    + EARLY_KEPT * size_of::<Completion>();
/// What a batch of sends is gathered in.
pub const SENDS_BYTES: usize = SEND_BATCH
    * (size_of::<OneSend>()
        + SEND_PARTS * size_of::<libc::iovec>()
        + size_of::<libc::msghdr>()
        + size_of::<ShortSend>());
/// A provided buffer's entry in the ring it is handed over by.
pub const BUFFER_ENTRY_BYTES: usize = size_of::<BufRingEntry>();
/// Room for completions that arrive while a batch of sends is submitted; it grows where more come.
const EARLY_KEPT: usize = RING_COMPLETIONS as usize / 4;

pub struct Ring {
    ring: IoUring,
    client_buffers: BufferRing,
    lane_buffers: BufferRing,
    sends: Sends,
    /// Completions that arrived while a batch of sends was submitted; reported by the next `wait`.
    early: Vec<Completion>,
    /// Sends of the batch being submitted that did not go out whole, in the batch's order.
    short: Vec<ShortSend>,
    started: Instant,
}

impl Ring {
    /// Sets a ring up on the calling thread, which alone may use it from now on. `started` is the process's zero of time.
    pub fn new(started: Instant) -> io::Result<Ring> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(RING_COMPLETIONS)
            .build(RING_SUBMISSIONS)?;
        let client_buffers = BufferRing::register(&ring, BufferGroup::Client, RECV_BUFFERS, RECV_BUFFER_BYTES)?;
        let lane_buffers = BufferRing::register(&ring, BufferGroup::Lane, LANE_RECV_BUFFERS, LANE_RECV_BUFFER_BYTES)?;
        Ok(Ring {
            ring,
            client_buffers,
            lane_buffers,
            sends: Sends::new(),
            early: Vec::with_capacity(EARLY_KEPT),
            short: Vec::with_capacity(SEND_BATCH),
            started,
        })
    }

    fn push(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: every entry pushed here owns nothing but descriptors and buffer group numbers; sends, which point to
            // memory, are pushed by `submit_sends` only.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.submit_all();
        }
    }

    /// Empties the submission queue into the kernel, without waiting.
    fn submit_all(&mut self) {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // The completion queue is full or memory is short: take completions out and try again.
                    Some(libc::EBUSY | libc::EAGAIN | libc::ENOMEM) => self.reap_early(),
                    _ => panic!("io_uring_enter failed: {error}"),
                },
            }
        }
    }

    /// Takes every completion out of the queue: short sends for the batch, all others for the next `wait`. Those that found the
    /// queue full stand in a list of the kernel's, which an enter empties into the queue: a short send must not stay in it, or
    /// it would count as sent.
    fn reap_early(&mut self) {
        loop {
            let Ring { ring, early, short, .. } = self;
            for entry in ring.completion() {
                if let Some(completion) = completion(&entry) {
                    if completion.token.op == Op::Send {
                        short.push(ShortSend { key: completion.token.key, result: completion.result });
                    } else {
                        early.push(completion);
                    }
                }
            }
            if !ring.submission().cq_overflow() {
                return;
            }
            self.enter(0);
        }
    }

    /// Hands `queued` entries over, runs deferred work, and does not wait.
    fn enter(&mut self, queued: u32) {
        // SAFETY: no argument is passed; `queued` entries have been pushed and are valid.
        let entered = unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, ENTER_GETEVENTS, None) };
        if let Err(error) = entered {
            match error.raw_os_error() {
                Some(libc::EINTR | libc::EBUSY | libc::EAGAIN | libc::ENOMEM) => {}
                _ => panic!("io_uring_enter failed: {error}"),
            }
        }
    }

    fn group(&mut self, group: BufferGroup) -> &mut BufferRing {
        match group {
            BufferGroup::Client => &mut self.client_buffers,
            BufferGroup::Lane => &mut self.lane_buffers,
        }
    }

    /// Submits the sends gathered in `self.sends` and collects the short ones.
    fn submit_sends(&mut self, short: &mut Vec<ShortSend>) {
        // What else is queued goes first, so that all sends of the batch fit into the submission queue.
        self.submit_all();
        // And what that completed is taken out, so that the completion queue has room for every send that falls short.
        self.reap_early();
        self.sends.point();
        for send in &self.sends.list {
            let parts = &self.sends.parts[send.first..send.first + send.count];
            let fd = Fd(send.fd);
            let entry = match parts {
                [] => continue,
                [one] => opcode::Send::new(fd, one.iov_base as *const u8, one.iov_len as u32).flags(SEND_FLAGS).build(),
                _ => opcode::SendMsg::new(fd, &self.sends.headers[send.header]).flags(SEND_FLAGS as u32).build(),
            };
            let entry =
                entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(Token { op: Op::Send, key: send.key }.pack());
            // SAFETY: the entry points into `self.sends` (untouched until `clear` below) and to the bytes of the batch, which
            // outlive `send_batch`. The kernel is done with both when `submit_all` returns: the sends never wait
            // (MSG_DONTWAIT), so each has run to its end inside the submission.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            assert!(pushed.is_ok(), "a batch of sends fits into an empty submission queue");
        }
        self.submit_all();
        self.sends.clear();
        self.reap_early();
        short.append(&mut self.short);
    }
}

impl Io for Ring {
    fn now(&self) -> Time {
        Time(self.started.elapsed().as_nanos() as u64)
    }

    fn wall_ticks(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (since.as_nanos() / 100) as u64
    }

    fn arm_accept(&mut self, listener: RawFd, token: Token) {
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let entry = opcode::Accept::new(Fd(listener), core::ptr::null_mut(), core::ptr::null_mut());
        self.push(entry.flags(flags).build().user_data(token.pack()));
    }

    fn accept_waiting(&mut self, listener: RawFd) -> Option<RawFd> {
        socket::accept_waiting(listener)
    }

    fn arm_readable(&mut self, fd: RawFd, token: Token) {
        let poll = opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32).multi(true);
        self.push(poll.build().user_data(token.pack()));
    }

    fn arm_writable(&mut self, fd: RawFd, token: Token) {
        self.push(opcode::PollAdd::new(Fd(fd), libc::POLLOUT as u32).build().user_data(token.pack()));
    }

    fn receive(&mut self, fd: RawFd, key: SlotKey, group: BufferGroup) {
        let op = match group {
            BufferGroup::Client => Op::Receive,
            BufferGroup::Lane => Op::ReceiveLane,
        };
        let len = self.group(group).buffer_bytes;
        let entry = opcode::Recv::new(Fd(fd), core::ptr::null_mut(), len)
            .buf_group(group as u16)
            // Never waits: an empty socket answers EAGAIN at once, and the poll tells when to come back.
            .flags(libc::MSG_DONTWAIT)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        self.push(entry.user_data(Token { op, key }.pack()));
    }

    fn cancel(&mut self, token: Token) {
        let own = Token { op: Op::Cancel, key: token.key };
        // All that have this token: a second cancellation of the same submission would find the first operation again, which is in the
        // table until its completion has been posted.
        let all = CancelBuilder::user_data(token.pack()).all();
        self.push(opcode::AsyncCancel2::new(all).build().user_data(own.pack()));
    }

    fn send_batch<'b>(&mut self, fill: impl FnOnce(&mut SendBatch<'_, 'b>), short: &mut Vec<ShortSend>) {
        debug_assert!(self.sends.list.is_empty());
        fill(&mut SendBatch { sink: &mut self.sends, bytes: core::marker::PhantomData });
        if !self.sends.list.is_empty() {
            self.submit_sends(short);
        }
    }

    fn wait(&mut self, until: Time, completions: &mut Vec<Completion>) {
        let now = self.now();
        if self.early.is_empty() && until > now && self.ring.completion().is_empty() {
            let nanos = until.since(now).as_nanos().min(u64::MAX as u128) as u64;
            let timeout = Timespec::new().sec(nanos / 1_000_000_000).nsec((nanos % 1_000_000_000) as u32);
            let args = SubmitArgs::new().timespec(&timeout);
            match self.ring.submitter().submit_with_args(1, &args) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    // Nothing completed in time; a signal; or completions have to be taken first.
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN | libc::ENOMEM) => {}
                    _ => panic!("io_uring_enter failed: {error}"),
                },
            }
        } else {
            let queued = self.ring.submission().len() as u32;
            self.enter(queued);
        }
        completions.append(&mut self.early);
        for entry in self.ring.completion() {
            completions.extend(completion(&entry));
        }
    }

    fn buffer(&mut self, received: &Received) -> &mut [u8] {
        self.group(received.group).bytes_mut(received.id, received.len)
    }

    fn give_back(&mut self, received: Received) {
        self.group(received.group).give(received.id);
    }

    fn adopt(&mut self, socket: OwnedFd) -> RawFd {
        socket.into_raw_fd()
    }

    fn disown(&mut self, fd: RawFd) -> OwnedFd {
        socket::own(fd)
    }

    fn addresses(&self, fd: RawFd) -> Option<(SocketAddr, SocketAddr)> {
        socket::addresses(fd)
    }

    fn prepare_client(&self, fd: RawFd, send_buffer_bytes: u32) {
        socket::prepare_client(fd, send_buffer_bytes);
    }

    fn shutdown_write(&mut self, fd: RawFd) {
        socket::shutdown(fd, libc::SHUT_WR);
    }

    fn shutdown(&mut self, fd: RawFd) {
        socket::shutdown(fd, libc::SHUT_RDWR);
    }

    fn close(&mut self, fd: RawFd) {
        socket::close(fd);
    }

    fn quiet(&mut self, doorbell: RawFd) {
        super::doorbell::quiet(doorbell);
    }
}

fn completion(entry: &cqueue::Entry) -> Option<Completion> {
    let token = Token::unpack(entry.user_data())?;
    let flags = entry.flags();
    let received = cqueue::buffer_select(flags).map(|id| Received {
        group: if token.op == Op::ReceiveLane { BufferGroup::Lane } else { BufferGroup::Client },
        id,
        len: entry.result().max(0) as u32,
    });
    Some(Completion {
        token,
        result: entry.result(),
        received,
        more: cqueue::more(flags),
        nonempty: cqueue::sock_nonempty(flags),
    })
}

/// A group of buffers that the kernel picks from: a ring of descriptors shared with it, and the buffers behind it.
struct BufferRing {
    entries: *mut BufRingEntry,
    entries_bytes: usize,
    count: u16,
    tail: u16,
    buffers: Vec<u8>,
    buffer_bytes: u32,
}

impl BufferRing {
    fn register(ring: &IoUring, group: BufferGroup, count: u16, buffer_bytes: u32) -> io::Result<BufferRing> {
        let entries_bytes = count as usize * size_of::<BufRingEntry>();
        // SAFETY: a fresh anonymous mapping, page-aligned as the kernel wants a buffer ring to be.
        let entries = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                entries_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if entries == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut buffers = BufferRing {
            entries: entries.cast(),
            entries_bytes,
            count,
            tail: 0,
            buffers: vec![0; count as usize * buffer_bytes as usize],
            buffer_bytes,
        };
        // SAFETY: the mapping holds `count` entries and lives until this value is dropped, which is after the IoUring:
        // `Ring` declares `ring` first, and closing a ring unregisters its buffer rings.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries as u64, count, group as u16, 0)? };
        // Taken at start and not when the thousandth client comes: the kernel hands the buffers out in turn, so all are used.
        buffers.buffers.chunks_mut(4096).for_each(|page| page[0] = 0);
        for id in 0..count {
            buffers.give(id);
        }
        Ok(buffers)
    }

    fn bytes_mut(&mut self, id: u16, len: u32) -> &mut [u8] {
        assert!(id < self.count && len <= self.buffer_bytes);
        let start = id as usize * self.buffer_bytes as usize;
        &mut self.buffers[start..start + len as usize]
    }

    /// Hands a buffer to the kernel.
    fn give(&mut self, id: u16) {
        assert!(id < self.count);
        let index = (self.tail & (self.count - 1)) as usize;
        let start = id as usize * self.buffer_bytes as usize;
        let address = self.buffers[start..].as_mut_ptr() as u64;
        // SAFETY: `index` is inside the mapping. The entry is ours until the tail passes it: the kernel reads entries between
        // its own head and the published tail only. `bytes_mut` never lends a buffer that was given and not received again,
        // because a `Received` names it once and is consumed by `give_back`. The tail is an aligned u16 in the mapping that
        // the kernel reads; Release orders the entry's contents before it.
        unsafe {
            let entry = &mut *self.entries.add(index);
            entry.set_addr(address);
            entry.set_len(self.buffer_bytes);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.entries).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        // SAFETY: the mapping of `register`, unmapped once; the ring that used it is closed (see there).
        unsafe { libc::munmap(self.entries.cast(), self.entries_bytes) };
    }
}

/// The sends of a batch while it is filled. Kept, so that a batch allocates nothing.
struct Sends {
    list: Vec<OneSend>,
    parts: Vec<libc::iovec>,
    headers: Vec<libc::msghdr>,
}

struct OneSend {
    key: SlotKey,
    fd: RawFd,
    first: usize,
    count: usize,
    header: usize,
}

impl Sends {
    fn new() -> Sends {
        Sends {
            list: Vec::with_capacity(SEND_BATCH),
            parts: Vec::with_capacity(SEND_BATCH * SEND_PARTS),
            headers: Vec::with_capacity(SEND_BATCH),
        }
    }

    /// Makes the message headers of sends with several parts, now that neither list grows any more.
    fn point(&mut self) {
        for send in &mut self.list {
            if send.count < 2 {
                continue;
            }
            send.header = self.headers.len();
            // SAFETY: a msghdr is plain data for which all zeros is valid (no name, no control data).
            let mut header: libc::msghdr = unsafe { core::mem::zeroed() };
            header.msg_iov = &mut self.parts[send.first];
            header.msg_iovlen = send.count as _;
            self.headers.push(header);
        }
    }

    fn clear(&mut self) {
        self.list.clear();
        self.parts.clear();
        self.headers.clear();
    }
}

impl SendSink for Sends {
    fn begin(&mut self, key: SlotKey, fd: RawFd) {
        assert!(self.list.len() < SEND_BATCH, "a batch has at most SEND_BATCH sends");
        self.list.push(OneSend { key, fd, first: self.parts.len(), count: 0, header: 0 });
    }

    fn part(&mut self, bytes: &[u8]) {
        let send = self.list.last_mut().expect("a part belongs to a send");
        assert!(send.count < SEND_PARTS, "a send has at most SEND_PARTS parts");
        send.count += 1;
        self.parts.push(libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::doorbell::Doorbell;
    use core::time::Duration;
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    fn ring() -> Ring {
        Ring::new(Instant::now()).expect("this machine has io_uring")
    }

    fn key(slot: u32) -> SlotKey {
        SlotKey { slot, generation: 1 }
    }

    /// More completions than the queue holds, and then sends that fall short: none of either may be lost.
    #[test]
    fn a_short_send_is_told_however_full_the_completion_queue_is() {
        let mut ring = ring();
        let bell = Doorbell::new().unwrap();
        let polls = RING_COMPLETIONS + 2 * RING_SUBMISSIONS;
        // An eventfd is always writable: each poll completes while it is submitted.
        for slot in 0..polls {
            ring.arm_writable(bell.fd(), Token { op: Op::Writable, key: key(slot) });
        }
        let pairs: Vec<_> = (0..8).map(|_| UnixStream::pair().unwrap()).collect();
        let large = vec![7u8; 8 * 1024 * 1024];
        let mut short = Vec::new();
        ring.send_batch(
            |batch| {
                for (slot, (from, _)) in pairs.iter().enumerate() {
                    batch.begin(key(slot as u32), from.as_raw_fd());
                    // Every other one fits.
                    batch.part(if slot % 2 == 0 { &large } else { b"whole" });
                }
            },
            &mut short,
        );
        assert_eq!(short.iter().map(|send| send.key.slot).collect::<Vec<_>>(), [0, 2, 4, 6]);
        for send in &short {
            assert!(send.result > 0 && (send.result as usize) < large.len(), "{send:?}");
            // What is said to have left has left, and no more.
            let mut to = &pairs[send.key.slot as usize].1;
            to.set_nonblocking(true).unwrap();
            let mut arrived = Vec::new();
            assert!(to.read_to_end(&mut arrived).is_err());
            assert_eq!(arrived.len(), send.result as usize);
        }
        let mut completions = Vec::new();
        while (completions.len() as u32) < polls {
            let before = completions.len();
            ring.wait(ring.now().after(Duration::from_secs(5)), &mut completions);
            assert!(completions.len() > before, "only {before} of {polls} completions came");
        }
        let mut slots: Vec<u32> = completions.iter().map(|completion| completion.token.key.slot).collect();
        slots.sort();
        assert!(slots.iter().copied().eq(0..polls));
    }

    /// A receive answers at once whatever the socket holds, and its buffer can be used again without end.
    #[test]
    fn receives_never_wait_and_buffers_go_round() {
        use std::io::Write;
        let mut ring = ring();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut completions = Vec::new();
        let mut next = |ring: &mut Ring| {
            ring.receive(theirs.as_raw_fd(), key(0), BufferGroup::Client);
            while completions.is_empty() {
                ring.wait(ring.now().after(Duration::from_secs(5)), &mut completions);
            }
            assert_eq!(completions.len(), 1);
            completions.pop().unwrap()
        };
        assert_eq!(next(&mut ring).result, -libc::EAGAIN);
        for round in 0..3 * u32::from(RECV_BUFFERS) {
            ours.write_all(&round.to_be_bytes()).unwrap();
            let completion = next(&mut ring);
            let received = completion.received.expect("a buffer was chosen");
            assert_eq!(ring.buffer(&received), round.to_be_bytes());
            ring.give_back(received);
        }
        drop(ours);
        let completion = next(&mut ring);
        assert_eq!((completion.result, completion.received), (0, None));
    }
}
