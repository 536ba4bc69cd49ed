//! What is to be sent to one connection: records gathered in one buffer and written together, as SignalR's transport pipe does.
use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;

/// Records written in one WebSocket message, unless a single one is larger.
const BATCH_BYTES: usize = 64 * 1024;

pub struct Outbox {
    queue: Mutex<Queue>,
    /// Wakes the writer.
    ready: Notify,
    /// Wakes the reader, once the connection cannot go on.
    broken: Notify,
    bytes_max: usize,
}

#[derive(Default)]
struct Queue {
    records: Vec<u8>,
    closed: bool,
    overflowed: bool,
}

/// What the writer is to do next.
pub enum Next {
    Write(Vec<u8>),
    Wait,
    /// Everything is written and nothing will follow.
    Finish,
}

/// The peer does not read and its bound is reached, or the connection ended.
#[derive(Debug)]
pub struct Refused;

impl Outbox {
    pub fn new(bytes_max: usize) -> Self {
        Outbox { queue: Mutex::default(), ready: Notify::new(), broken: Notify::new(), bytes_max }
    }

    /// Queues one record with its separator. At the bound the connection is given up: a real app server would hold the send back
    /// and end the connection after its `TransportSendTimeout`.
    pub fn push(&self, record: &[u8]) -> Result<(), Refused> {
        debug_assert_eq!(record.last(), Some(&0x1E), "a record has its separator");
        let mut queue = self.lock();
        if queue.closed {
            return Err(Refused);
        }
        if queue.records.len() + record.len() > self.bytes_max {
            queue.overflowed = true;
            drop(queue);
            self.abandon();
            return Err(Refused);
        }
        let was_empty = queue.records.is_empty();
        queue.records.extend_from_slice(record);
        drop(queue);
        if was_empty {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Nothing more is taken; what is queued is still written.
    pub fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_one();
    }

    /// Throws away what is queued and ends the connection.
    pub fn abandon(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        queue.records = Vec::new();
        drop(queue);
        self.ready.notify_one();
        self.broken.notify_one();
    }

    /// The writer failed: the reader need not wait for the socket to tell it.
    pub fn give_up(&self) {
        self.close();
        self.broken.notify_one();
    }

    /// Whole records, several together where they fit into one batch.
    pub fn next(&self) -> Next {
        let mut queue = self.lock();
        if queue.records.is_empty() {
            return if queue.closed { Next::Finish } else { Next::Wait };
        }
        if queue.records.len() <= BATCH_BYTES {
            return Next::Write(std::mem::take(&mut queue.records));
        }
        let within = memchr::memrchr(0x1E, &queue.records[..BATCH_BYTES]);
        let end = within.or_else(|| memchr::memchr(0x1E, &queue.records)).expect("records end in a separator") + 1;
        let rest = queue.records.split_off(end);
        Next::Write(std::mem::replace(&mut queue.records, rest))
    }

    /// The peer did not read and the bound was reached.
    pub fn overflowed(&self) -> bool {
        self.lock().overflowed
    }

    pub async fn ready(&self) {
        self.ready.notified().await;
    }

    pub async fn broken(&self) {
        self.broken.notified().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_end_with_a_record() {
        let outbox = Outbox::new(1 << 20);
        let mut record = vec![b'x'; 40_000];
        record.push(0x1E);
        let mut large = vec![b'y'; 100_000];
        large.push(0x1E);
        for record in [&record, &record, &large, &record] {
            outbox.push(record).unwrap();
        }
        outbox.close();
        let mut sizes = Vec::new();
        while let Next::Write(batch) = outbox.next() {
            assert_eq!(batch.last(), Some(&0x1E));
            sizes.push(batch.len());
        }
        assert_eq!(sizes, [40_001, 40_001, 100_001, 40_001]);
        assert!(matches!(outbox.next(), Next::Finish));
        assert!(outbox.push(&record).is_err());
    }

    #[test]
    fn a_peer_that_does_not_read_is_given_up() {
        let outbox = Outbox::new(10);
        outbox.push(b"1234567\x1e").unwrap();
        assert!(outbox.push(b"89\x1e").is_err());
        assert!(matches!(outbox.next(), Next::Finish));
    }
}
