//! Outgoing bytes: reference-counted frames, and the queue of frames that each connection waits to have sent.
//!
//! A frame that goes to many clients is encoded once and counted; what goes to one client alone is gathered in a frame of its
//! own at the end of its queue, so that everything queued in a turn leaves in one send. An idle connection's queue is 16 bytes.

use crate::limits::{FRAME_GATHER_BYTES, FRAME_KEPT_BYTES_MAX, FRAME_POOL_KEPT_BYTES_MAX};

const NONE: u32 = u32::MAX;

/// A frame in the pool. Not `Clone`: whoever holds one owns one reference.
#[derive(Debug, PartialEq, Eq)]
pub struct FrameRef(u32);

struct Frame {
    bytes: Vec<u8>,
    references: u32,
}

#[derive(Clone, Copy)]
struct Node {
    frame: u32,
    next: u32,
    /// One more than that of the node before it in its queue; wraps. So a queue of 16 bytes has a length.
    number: u32,
}

/// What a frame takes in memory beside its bytes: its entry, its place in a queue, and its allocation. Against
/// bounds it counts as well, or messages of a few bytes each would take several times what is granted.
pub const FRAME_BYTES: usize = size_of::<Frame>() + size_of::<Node>() + size_of::<u32>() + 16;

/// The frames waiting on one connection, oldest first.
#[derive(Debug)]
pub struct SendQueue {
    head: u32,
    tail: u32,
    /// Bytes of the head frame that have already been sent.
    sent: u32,
    /// Bytes still to send.
    bytes: u32,
}

impl Default for SendQueue {
    fn default() -> Self {
        SendQueue { head: NONE, tail: NONE, sent: 0, bytes: 0 }
    }
}

impl SendQueue {
    pub fn is_empty(&self) -> bool {
        self.head == NONE
    }
    pub fn bytes(&self) -> u32 {
        self.bytes
    }
}

/// A shard's frames.
#[derive(Default)]
pub struct FramePool {
    frames: Vec<Frame>,
    free_frames: Vec<u32>,
    nodes: Vec<Node>,
    free_nodes: Vec<u32>,
    /// Memory of the free frames.
    kept_bytes: usize,
}

impl FramePool {
    pub fn new() -> FramePool {
        FramePool::default()
    }

    /// Frames in use.
    pub fn live(&self) -> usize {
        self.frames.len() - self.free_frames.len()
    }

    /// An empty frame with one reference.
    pub fn create(&mut self) -> FrameRef {
        if let Some(index) = self.free_frames.pop() {
            let frame = &mut self.frames[index as usize];
            debug_assert!(frame.references == 0 && frame.bytes.is_empty());
            self.kept_bytes -= frame.bytes.capacity();
            frame.references = 1;
            return FrameRef(index);
        }
        self.frames.push(Frame { bytes: Vec::new(), references: 1 });
        FrameRef(self.frames.len() as u32 - 1)
    }

    /// The frame's bytes, to write them. Only before it is shared.
    pub fn bytes_mut(&mut self, frame: &FrameRef) -> &mut Vec<u8> {
        let frame = &mut self.frames[frame.0 as usize];
        assert!(frame.references == 1, "a shared frame is not written to");
        &mut frame.bytes
    }

    /// What keeping a frame costs in bytes of memory.
    pub fn cost_of(&self, frame: &FrameRef) -> usize {
        self.frames[frame.0 as usize].bytes.len() + FRAME_BYTES
    }

    /// What waits behind the frame that is being sent, in bytes of memory: a message of a few bytes in a frame of its own counts for more.
    pub fn cost_behind_head(&self, queue: &SendQueue) -> u32 {
        if queue.is_empty() {
            return 0;
        }
        let (head, tail) = (&self.nodes[queue.head as usize], &self.nodes[queue.tail as usize]);
        let bytes = queue.bytes - (self.frames[head.frame as usize].bytes.len() as u32 - queue.sent);
        let frames = tail.number.wrapping_sub(head.number);
        bytes.saturating_add(frames.saturating_mul(FRAME_BYTES as u32))
    }

    /// Queues a frame on a connection, taking one more reference.
    pub fn share(&mut self, frame: &FrameRef, queue: &mut SendQueue) {
        self.frames[frame.0 as usize].references += 1;
        self.link(frame.0, queue);
    }

    /// Another reference to the same frame, to be released on its own.
    pub fn another(&mut self, frame: &FrameRef) -> FrameRef {
        self.frames[frame.0 as usize].references += 1;
        FrameRef(frame.0)
    }

    /// Lets go of memory that the frame does not need. For one that is kept: it may have come from the pool with the room of a frame
    /// a thousand times its size.
    pub fn tighten(&mut self, frame: &FrameRef) {
        let bytes = &mut self.frames[frame.0 as usize].bytes;
        if bytes.capacity() > 2 * bytes.len() {
            bytes.shrink_to_fit();
        }
    }

    /// Gives a reference back.
    pub fn release(&mut self, frame: FrameRef) {
        self.unreference(frame.0);
    }

    /// The frame at the end of the queue that belongs to this connection alone, to append to; a new one where there is none, or
    /// where it already has enough for one send. `queue` counts what `write` appended.
    pub fn append<R>(&mut self, queue: &mut SendQueue, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        let tail = if queue.tail == NONE { NONE } else { self.nodes[queue.tail as usize].frame };
        let index = if tail != NONE
            && self.frames[tail as usize].references == 1
            && self.frames[tail as usize].bytes.len() < FRAME_GATHER_BYTES
        {
            tail
        } else {
            let frame = self.create();
            self.link(frame.0, queue);
            frame.0
        };
        let bytes = &mut self.frames[index as usize].bytes;
        let before = bytes.len();
        let result = write(bytes);
        debug_assert!(bytes.len() >= before);
        queue.bytes += (bytes.len() - before) as u32;
        result
    }

    /// Calls `f` with the unsent bytes of the first frames, oldest first, until it returns false.
    pub fn unsent<'a>(&'a self, queue: &SendQueue, mut f: impl FnMut(&'a [u8]) -> bool) {
        let mut node = queue.head;
        let mut skip = queue.sent as usize;
        while node != NONE {
            let Node { frame, next, .. } = self.nodes[node as usize];
            let part = &self.frames[frame as usize].bytes[skip..];
            if !part.is_empty() && !f(part) {
                return;
            }
            skip = 0;
            node = next;
        }
    }

    /// The unsent bytes, oldest first, of at most `bytes_max` bytes.
    pub fn parts(&self, queue: &SendQueue, bytes_max: usize) -> impl Iterator<Item = &[u8]> {
        let (mut node, mut skip, mut left) = (queue.head, queue.sent as usize, bytes_max);
        core::iter::from_fn(move || {
            if node == NONE || left == 0 {
                return None;
            }
            let Node { frame, next, .. } = self.nodes[node as usize];
            let part = &self.frames[frame as usize].bytes[skip..];
            let part = &part[..part.len().min(left)];
            (node, skip, left) = (next, 0, left - part.len());
            Some(part)
        })
    }

    /// Queues a frame of its own that `write` makes, perhaps of what other frames hold. Nothing written, nothing queued.
    pub fn derive<R>(&mut self, queue: &mut SendQueue, write: impl FnOnce(&FramePool, &mut Vec<u8>) -> R) -> R {
        let frame = self.create();
        let mut bytes = core::mem::take(&mut self.frames[frame.0 as usize].bytes);
        let result = write(self, &mut bytes);
        let is_empty = bytes.is_empty();
        self.frames[frame.0 as usize].bytes = bytes;
        if is_empty {
            self.release(frame);
        } else {
            self.link(frame.0, queue);
        }
        result
    }

    /// Forgets the first `count` unsent bytes: they have left.
    pub fn advance(&mut self, queue: &mut SendQueue, count: u32) {
        assert!(count <= queue.bytes, "more was sent than was queued");
        queue.bytes -= count;
        let mut left = count;
        while queue.head != NONE {
            let Node { frame, .. } = self.nodes[queue.head as usize];
            let rest = self.frames[frame as usize].bytes.len() as u32 - queue.sent;
            if left < rest {
                queue.sent += left;
                return;
            }
            left -= rest;
            self.unlink_head(queue);
        }
        debug_assert!(left == 0 && queue.bytes == 0);
    }

    /// Moves everything of one queue behind the other: what was written for a client leaves on the connection it has at present.
    pub fn splice(&mut self, from: &mut SendQueue, to: &mut SendQueue) {
        if from.head == NONE {
            return;
        }
        debug_assert!(from.sent == 0, "nothing is sent from a queue that is moved");
        if to.tail == NONE {
            *to = core::mem::take(from);
        } else {
            let tail = &mut self.nodes[to.tail as usize];
            tail.next = from.head;
            let (mut at, mut number) = (from.head, tail.number);
            while at != NONE {
                let node = &mut self.nodes[at as usize];
                number = number.wrapping_add(1);
                (node.number, at) = (number, node.next);
            }
            to.tail = from.tail;
            to.bytes += from.bytes;
            *from = SendQueue::default();
        }
    }

    /// Drops everything queued: the connection is going away. Returns the bytes that will not be sent.
    pub fn clear(&mut self, queue: &mut SendQueue) -> u32 {
        while queue.head != NONE {
            self.unlink_head(queue);
        }
        core::mem::take(&mut queue.bytes)
    }

    fn link(&mut self, frame: u32, queue: &mut SendQueue) {
        let before = self.nodes.get(queue.tail as usize).map_or(0, |tail| tail.number);
        let node = Node { frame, next: NONE, number: before.wrapping_add(1) };
        let index = match self.free_nodes.pop() {
            Some(index) => {
                self.nodes[index as usize] = node;
                index
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        if queue.tail == NONE {
            queue.head = index;
        } else {
            self.nodes[queue.tail as usize].next = index;
        }
        queue.tail = index;
        queue.bytes += self.frames[frame as usize].bytes.len() as u32;
    }

    fn unlink_head(&mut self, queue: &mut SendQueue) {
        let index = queue.head;
        let Node { frame, next, .. } = self.nodes[index as usize];
        self.free_nodes.push(index);
        queue.head = next;
        queue.sent = 0;
        if next == NONE {
            queue.tail = NONE;
        }
        self.unreference(frame);
    }

    fn unreference(&mut self, index: u32) {
        let frame = &mut self.frames[index as usize];
        assert!(frame.references > 0, "a frame was released twice");
        frame.references -= 1;
        if frame.references == 0 {
            // Neither one giant message nor one great crowd may keep its memory for ever.
            let room = frame.bytes.capacity();
            if room > FRAME_KEPT_BYTES_MAX || self.kept_bytes + room > FRAME_POOL_KEPT_BYTES_MAX {
                frame.bytes = Vec::new();
            } else {
                frame.bytes.clear();
                self.kept_bytes += room;
            }
            self.free_frames.push(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gathered(pool: &FramePool, queue: &SendQueue) -> Vec<u8> {
        let mut all = Vec::new();
        pool.unsent(queue, |part| {
            all.extend_from_slice(part);
            true
        });
        all
    }

    #[test]
    fn a_shared_frame_lives_until_its_last_reader_has_sent_it() {
        let mut pool = FramePool::new();
        let (mut a, mut b) = (SendQueue::default(), SendQueue::default());
        let frame = pool.create();
        pool.bytes_mut(&frame).extend_from_slice(b"tick");
        pool.share(&frame, &mut a);
        pool.share(&frame, &mut b);
        pool.release(frame);
        pool.append(&mut a, |out| out.extend_from_slice(b"own"));
        assert_eq!(gathered(&pool, &a), b"tickown");
        assert_eq!(gathered(&pool, &b), b"tick");
        pool.advance(&mut a, 2);
        pool.advance(&mut a, 5);
        assert_eq!(pool.live(), 1);
        assert_eq!(pool.clear(&mut b), 4);
        assert_eq!(pool.live(), 0);
        assert!(a.is_empty() && b.is_empty() && a.bytes() == 0);
    }

    #[test]
    fn a_spliced_queue_goes_on_behind_the_other() {
        let mut pool = FramePool::new();
        let (mut a, mut b) = (SendQueue::default(), SendQueue::default());
        pool.splice(&mut a, &mut b);
        assert!(b.is_empty());
        pool.append(&mut a, |out| out.extend_from_slice(b"one"));
        pool.splice(&mut a, &mut b);
        pool.append(&mut a, |out| out.extend_from_slice(b"two"));
        pool.advance(&mut b, 1);
        pool.splice(&mut a, &mut b);
        assert_eq!((gathered(&pool, &b).as_slice(), b.bytes(), a.bytes()), (&b"netwo"[..], 5, 0));
        pool.append(&mut b, |out| out.extend_from_slice(b"!"));
        assert_eq!(gathered(&pool, &b), b"netwo!");
        pool.clear(&mut b);
        assert_eq!(pool.live(), 0);
    }

    #[test]
    fn a_derived_frame_is_made_of_others() {
        let mut pool = FramePool::new();
        let (mut plain, mut sealed) = (SendQueue::default(), SendQueue::default());
        for text in ["one", "two"] {
            let frame = pool.create();
            pool.bytes_mut(&frame).extend_from_slice(text.as_bytes());
            pool.share(&frame, &mut plain);
            pool.release(frame);
        }
        pool.advance(&mut plain, 1);
        pool.derive(&mut sealed, |pool, out| pool.parts(&plain, 4).for_each(|part| out.extend(part.iter().rev())));
        assert_eq!((gathered(&pool, &sealed).as_slice(), sealed.bytes()), (&b"enwt"[..], 4));
        pool.derive(&mut sealed, |_, _| {});
        pool.clear(&mut plain);
        assert_eq!(pool.live(), 1);
        pool.clear(&mut sealed);
        assert_eq!(pool.live(), 0);
    }

    #[test]
    fn what_a_crowd_used_is_given_back() {
        let mut pool = FramePool::new();
        let frames: Vec<FrameRef> = (0..2 * FRAME_POOL_KEPT_BYTES_MAX / FRAME_KEPT_BYTES_MAX)
            .map(|_| {
                let frame = pool.create();
                pool.bytes_mut(&frame).reserve_exact(FRAME_KEPT_BYTES_MAX);
                frame
            })
            .collect();
        frames.into_iter().for_each(|frame| pool.release(frame));
        assert_eq!(pool.kept_bytes, FRAME_POOL_KEPT_BYTES_MAX);
        let kept: usize = pool.frames.iter().map(|frame| frame.bytes.capacity()).sum();
        assert_eq!(kept, pool.kept_bytes);
        assert!(pool.create() == FrameRef(pool.frames.len() as u32 - 1) && pool.kept_bytes <= kept);
    }

    #[test]
    fn what_is_kept_takes_no_more_than_it_needs() {
        let mut pool = FramePool::new();
        let large = pool.create();
        pool.bytes_mut(&large).resize(FRAME_KEPT_BYTES_MAX, 0);
        pool.release(large);
        let small = pool.create();
        pool.bytes_mut(&small).extend_from_slice(b"small");
        assert_eq!(pool.frames[0].bytes.capacity(), FRAME_KEPT_BYTES_MAX);
        pool.tighten(&small);
        assert!(pool.frames[0].bytes.capacity() < 64 && pool.bytes_mut(&small).as_slice() == b"small");
        pool.release(small);
        assert!(pool.kept_bytes < 64 && pool.live() == 0);
    }

    #[test]
    fn messages_of_a_few_bytes_cost_what_they_take_in_memory() {
        let (mut pool, mut queue) = (FramePool::new(), SendQueue::default());
        for _ in 0..1000 {
            let frame = pool.create();
            pool.bytes_mut(&frame).extend_from_slice(b"a dozen byte");
            pool.share(&frame, &mut queue);
            pool.tighten(&frame);
            pool.release(frame);
        }
        let frames = pool.frames.iter().map(|frame| size_of::<Frame>() + 16 + frame.bytes.capacity());
        let taken = frames.sum::<usize>() + size_of_val(pool.nodes.as_slice());
        let cost = pool.cost_behind_head(&queue) as usize;
        assert!((taken * 3 / 4..taken * 5 / 4).contains(&cost), "{cost}, and {taken} bytes are taken");
        assert_eq!(queue.bytes(), 12_000);
        pool.clear(&mut queue);
    }

    /// What a queue must hold, and whether a part of it has been sent.
    #[derive(Clone, Default)]
    struct Model {
        bytes: Vec<u8>,
        is_begun: bool,
    }

    proptest! {
        /// Everything that may be done with queues and frames, against plain vectors.
        #[test]
        fn queues_deliver_every_byte_once_in_order(ops in proptest::collection::vec((0usize..3, 0usize..9, 1usize..50), 1..200)) {
            let mut pool = FramePool::new();
            let mut queues: Vec<SendQueue> = (0..3).map(|_| SendQueue::default()).collect();
            let mut model = vec![Model::default(); 3];
            // References of our own, and what their frames hold.
            let mut held: Vec<(FrameRef, Vec<u8>)> = Vec::new();
            for (n, (queue, kind, size)) in ops.into_iter().enumerate() {
                let bytes = vec![n as u8; size];
                let other = (queue + 1) % 3;
                match kind {
                    0 => {
                        pool.append(&mut queues[queue], |out| out.extend_from_slice(&bytes));
                        model[queue].bytes.extend_from_slice(&bytes);
                    }
                    1 => {
                        let frame = pool.create();
                        pool.bytes_mut(&frame).extend_from_slice(&bytes);
                        for (q, m) in queues.iter_mut().zip(&mut model) {
                            pool.share(&frame, q);
                            m.bytes.extend_from_slice(&bytes);
                        }
                        pool.release(frame);
                    }
                    2 => {
                        let count = size.min(model[queue].bytes.len());
                        pool.advance(&mut queues[queue], count as u32);
                        model[queue].bytes.drain(..count);
                        model[queue].is_begun = true;
                    }
                    3 => {
                        let dropped = pool.clear(&mut queues[queue]);
                        prop_assert_eq!(dropped as usize, model[queue].bytes.len());
                        model[queue] = Model::default();
                    }
                    4 if !model[queue].is_begun => {
                        let mut from = core::mem::take(&mut queues[queue]);
                        pool.splice(&mut from, &mut queues[other]);
                        prop_assert!(from.is_empty() && from.bytes() == 0);
                        queues[queue] = from;
                        let moved = core::mem::take(&mut model[queue]);
                        model[other].bytes.extend(moved.bytes);
                    }
                    5 => {
                        // As TLS does: something made of the first bytes of one queue, for another.
                        let from = core::mem::take(&mut queues[other]);
                        let count = pool.derive(&mut queues[queue], |pool, out| {
                            pool.parts(&from, size).for_each(|part| out.extend(part.iter().map(|byte| !byte)));
                            out.len()
                        });
                        queues[other] = from;
                        prop_assert_eq!(count, size.min(model[other].bytes.len()));
                        let derived: Vec<u8> = model[other].bytes[..count].iter().map(|byte| !byte).collect();
                        model[queue].bytes.extend(derived);
                    }
                    6 => {
                        // As a stateful reconnect does: sent, and kept to be sent again.
                        let frame = pool.create();
                        pool.bytes_mut(&frame).extend_from_slice(&bytes);
                        pool.tighten(&frame);
                        pool.share(&frame, &mut queues[queue]);
                        held.push((pool.another(&frame), bytes.clone()));
                        pool.release(frame);
                        model[queue].bytes.extend(bytes);
                    }
                    7 if !held.is_empty() => {
                        let (frame, bytes) = &held[size % held.len()];
                        pool.share(frame, &mut queues[queue]);
                        model[queue].bytes.extend(bytes);
                    }
                    8 if !held.is_empty() => {
                        let (frame, _) = held.swap_remove(size % held.len());
                        pool.release(frame);
                    }
                    _ => {}
                }
                for (q, m) in queues.iter().zip(&mut model) {
                    m.is_begun &= !m.bytes.is_empty();
                    prop_assert_eq!(q.is_empty(), m.bytes.is_empty());
                    prop_assert_eq!(&gathered(&pool, q), &m.bytes);
                    prop_assert_eq!(q.bytes() as usize, m.bytes.len());
                    let parts: Vec<u8> = pool.parts(q, size).flatten().copied().collect();
                    prop_assert_eq!(&parts, &m.bytes[..size.min(m.bytes.len())]);
                    let mut head = 0;
                    pool.unsent(q, |part| { head = part.len() as u32; false });
                    let after = |at: u32| Some(at).filter(|at| *at != NONE);
                    let nodes = core::iter::successors(after(q.head), |at| after(pool.nodes[*at as usize].next));
                    let frames = nodes.count() as u32;
                    let behind = q.bytes() - head + frames.saturating_sub(1) * FRAME_BYTES as u32;
                    prop_assert_eq!(pool.cost_behind_head(q), behind);
                }
                for (frame, bytes) in &held {
                    prop_assert_eq!(&pool.frames[frame.0 as usize].bytes, bytes, "nobody writes to a frame that is kept");
                    prop_assert_eq!(pool.cost_of(frame), bytes.len() + FRAME_BYTES);
                }
            }
            for q in &mut queues {
                pool.clear(q);
            }
            prop_assert_eq!(pool.live(), held.len(), "what is kept, and nothing else");
            held.into_iter().for_each(|(frame, _)| pool.release(frame));
            prop_assert_eq!(pool.live(), 0);
        }
    }
}
