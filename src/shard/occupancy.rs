//! How many connections the node holds, all shards together: `max_clients` is a bound of the node, and the kernel spreads connections over
//! shards by hash, not evenly.
//!
//! What is counted is a place in a shard's table, as with addresses. A connection that changes its shard stays counted on the way.
use super::Shard;
use super::socket::Conn;
use crate::ids::SlotKey;
use crate::limits::CONNECTIONS_SPARE;
use crate::sys::Io;
use std::sync::atomic::{AtomicU32, Ordering};

/// The count of a node. Shards change it when a connection begins and when it ends.
#[derive(Debug)]
pub struct Occupancy {
    max: u32,
    count: AtomicU32,
}

impl Occupancy {
    pub fn new(max: u32) -> Occupancy {
        Occupancy { max, count: AtomicU32::new(0) }
    }

    fn is_full(&self) -> bool {
        self.count.load(Ordering::Relaxed) >= self.max
    }

    /// One more; false if even the places are taken that are for saying so.
    fn enter(&self) -> bool {
        let entered = |count| (count < self.max.saturating_add(CONNECTIONS_SPARE)).then_some(count + 1);
        self.count.try_update(Ordering::Relaxed, Ordering::Relaxed, entered).is_ok()
    }

    fn leave(&self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<I: Io> Shard<I> {
    /// Has the shard, or the node, as many connections as it may?
    pub(super) fn is_full(&self) -> bool {
        self.conns.len() >= self.settings.connections_max || self.settings.occupancy.is_full()
    }

    /// A place in the table, and what is there; None if none is left, not even of those for saying so.
    pub(super) fn take_place(&mut self, conn: impl FnOnce(SlotKey) -> Conn) -> Option<SlotKey> {
        if !self.settings.occupancy.enter() {
            return None;
        }
        let key = self.conns.insert_with(conn);
        if key.is_none() {
            self.settings.occupancy.leave();
        }
        key
    }

    /// A connection comes from another shard, where it was counted.
    pub(super) fn has_arrived(&mut self) {
        self.settings.occupancy.leave();
    }

    /// The place is free again.
    pub(super) fn free_place(&mut self, key: SlotKey) -> Option<Conn> {
        let conn = self.conns.remove(key)?;
        self.uncount_address(key);
        self.settings.occupancy.leave();
        Some(conn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_places_are_for_saying_that_there_are_no_more() {
        let occupancy = Occupancy::new(3);
        for n in 0..3 + CONNECTIONS_SPARE {
            assert_eq!(occupancy.is_full(), n >= 3);
            assert!(occupancy.enter());
        }
        assert!(!occupancy.enter());
        occupancy.leave();
        assert!(occupancy.is_full() && occupancy.enter() && !occupancy.enter());
        for _ in 0..1 + CONNECTIONS_SPARE {
            occupancy.leave();
        }
        assert!(!occupancy.is_full());
    }
}
