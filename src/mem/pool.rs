//! Byte buffers that are used again: for what must be kept between two reads (a request head, half a record).
//!
//! An idle connection holds none. The pool keeps a bounded number of bounded buffers; what is over goes back to the allocator.
use crate::limits::{POOLED_BUFFER_BYTES_MAX, POOLED_BUFFERS_MAX};

#[derive(Default)]
pub struct BytePool {
    free: Vec<Vec<u8>>,
}

impl BytePool {
    pub fn new() -> BytePool {
        BytePool { free: Vec::with_capacity(POOLED_BUFFERS_MAX) }
    }

    /// An empty buffer, with whatever room its last user gave it.
    pub fn take(&mut self) -> Vec<u8> {
        self.free.pop().unwrap_or_default()
    }

    pub fn give(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() > 0 && buffer.capacity() <= POOLED_BUFFER_BYTES_MAX && self.free.len() < POOLED_BUFFERS_MAX
        {
            buffer.clear();
            self.free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_empty_and_large_ones_are_let_go() {
        let mut pool = BytePool::new();
        let mut buffer = pool.take();
        buffer.extend_from_slice(b"secret of one client");
        let room = buffer.capacity();
        pool.give(buffer);
        let again = pool.take();
        assert!(again.is_empty() && again.capacity() == room);
        pool.give(Vec::with_capacity(POOLED_BUFFER_BYTES_MAX + 1));
        assert_eq!(pool.take().capacity(), 0);
        for _ in 0..2 * POOLED_BUFFERS_MAX {
            pool.give(Vec::with_capacity(16));
        }
        assert_eq!(pool.free.len(), POOLED_BUFFERS_MAX);
    }
}
