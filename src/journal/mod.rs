//! Which clients app servers know of, kept where it outlives the process (contract 6.4): a node that is killed tells nobody, and an
//! app server keeps what it has of a client for good unless it hears of its end (contract 4.5).
//!
//! A shard writes the ids of its clients with plain stores into a mapped file ([`ShardJournal`]): no system call, no allocation, and the
//! kernel has them whatever becomes of the process. It need not have written them to a disk: what is lost with the machine
//! is lost here, too.
//!
//! ```text
//! directory  the folder: one file a process, locked as long as it runs         header   which process a file is of
//! layout     where everything stands in a file, and how an id is written       read     the files of processes that have ended
//! ```
mod directory;
mod header;
mod layout;
mod read;

pub use directory::{Folder, Found, Journal, Process, open, part_bytes};
pub use header::Upstream;
pub use read::{Clients, Dead};

use crate::ids::{LanePlace, OriginKey, Serial, ShardId, UpstreamIndex};
use crate::sys::mapping::Mapping;
use core::num::NonZeroU32;
use core::sync::atomic::Ordering::{Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};
use layout::{CELL_WORDS, Layout, Owner};
use std::sync::Arc;

/// A shard's part of the journal. One shard writes it; clones are the same part. The default is none: every call does nothing.
#[derive(Clone, Default)]
pub struct ShardJournal(Option<Arc<Part>>);

/// Where a notice is kept until its app server has taken note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell(NonZeroU32);

struct Part {
    words: Arc<Mapping>,
    layout: Layout,
    shard: ShardId,
    key: OriginKey,
    /// Ids of clients that live.
    live: AtomicU64,
    /// Cells in use.
    pending: AtomicU64,
    /// Notices that found no cell, since they were last asked for.
    overflowed: AtomicU64,
    /// Cells from this one on have never been used.
    fresh: AtomicU32,
    /// The last cell that was freed, plus 1; it names the one before. 0: none.
    free: AtomicU32,
}

impl ShardJournal {
    /// From now on an app server may know a client of this slot by the id with this serial: before the first message that says so
    /// is sent. A plain store; repeating it costs a comparison.
    pub fn live(&self, place: LanePlace, slot: u32, serial: Serial) {
        let Some((part, word)) = self.word(place.upstream, slot) else { return };
        let before = word.load(Relaxed);
        if layout::is_same(before, place.url, serial) {
            return;
        }
        word.store(layout::pack(&part.key, part.owner(place.upstream, slot), place.url, serial), Relaxed);
        if before == 0 {
            add(&part.live, 1);
        }
    }

    /// The client of a slot is gone there, or never was; behind `bury` if the upstream is yet to take note.
    pub fn gone(&self, upstream: UpstreamIndex, slot: u32) {
        let Some((part, word)) = self.word(upstream, slot) else { return };
        if word.load(Relaxed) != 0 {
            word.store(0, Release);
            subtract(&part.live, 1);
        }
    }

    /// An id that no client has any more, until `buried`: its app server is yet to take note. None: there is no journal, or no room in
    /// it, which is counted (`take_overflowed`).
    pub fn bury(&self, place: LanePlace, slot: u32, serial: Serial) -> Option<Cell> {
        let part = self.0.as_deref()?;
        let Some(index) = part.take_cell() else {
            add(&part.overflowed, 1);
            return None;
        };
        let owner = part.owner(place.upstream, slot);
        let [id, whose] = part.cell(index)?;
        // Whoever reads a killed process's journal sees both words, or a cell that is free.
        whose.store(owner.pack(), Relaxed);
        id.store(layout::pack(&part.key, owner, place.url, serial), Release);
        add(&part.pending, 1);
        NonZeroU32::new(index + 1).map(Cell)
    }

    /// The app server has taken note, or never will.
    pub fn buried(&self, cell: Cell) {
        let Some(part) = self.0.as_deref() else { return };
        let index = cell.0.get() - 1;
        let Some([id, next]) = part.cell(index) else { return };
        if id.load(Relaxed) == 0 {
            return debug_assert!(false, "a cell is freed once");
        }
        id.store(0, Release);
        next.store(u64::from(part.free.load(Relaxed)), Relaxed);
        part.free.store(index + 1, Relaxed);
        subtract(&part.pending, 1);
    }

    /// Ids of clients that live, one for each upstream that knows them.
    pub fn live_ids(&self) -> u64 {
        self.0.as_ref().map_or(0, |part| part.live.load(Relaxed))
    }

    /// Ids of clients that are gone while their upstream has not taken note.
    pub fn pending_ids(&self) -> u64 {
        self.0.as_ref().map_or(0, |part| part.pending.load(Relaxed))
    }

    /// Ids for which there was no room, since this was asked last: after a crash nobody would tell their app servers.
    pub fn take_overflowed(&self) -> u64 {
        let Some(part) = &self.0 else { return 0 };
        let overflowed = part.overflowed.load(Relaxed);
        part.overflowed.store(0, Relaxed);
        overflowed
    }

    fn word(&self, upstream: UpstreamIndex, slot: u32) -> Option<(&Part, &AtomicU64)> {
        let part = self.0.as_deref()?;
        let is_inside = upstream.0 < part.layout.upstreams && slot < part.layout.slots;
        debug_assert!(is_inside, "the journal has a word for every slot");
        let at = part.layout.table(part.shard, upstream) + slot as usize;
        Some((part, part.words.word(at).filter(|_| is_inside)?))
    }
}

impl Part {
    fn new(words: Arc<Mapping>, layout: Layout, shard: ShardId, key: OriginKey) -> Part {
        let [live, pending, overflowed] = core::array::from_fn(|_| AtomicU64::new(0));
        Part { words, layout, shard, key, live, pending, overflowed, fresh: AtomicU32::new(0), free: AtomicU32::new(0) }
    }

    fn owner(&self, upstream: UpstreamIndex, slot: u32) -> Owner {
        Owner { shard: self.shard, upstream, slot }
    }

    fn cell(&self, index: u32) -> Option<[&AtomicU64; CELL_WORDS]> {
        let at = self.layout.cells(self.shard) + index as usize * CELL_WORDS;
        Some([self.words.word(at)?, self.words.word(at + 1)?])
    }

    fn take_cell(&self) -> Option<u32> {
        if let Some(index) = self.free.load(Relaxed).checked_sub(1) {
            let [_, next] = self.cell(index)?;
            self.free.store(next.load(Relaxed) as u32, Relaxed);
            return Some(index);
        }
        let index = self.fresh.load(Relaxed);
        (index < self.layout.cells).then(|| {
            self.fresh.store(index + 1, Relaxed);
            index
        })
    }
}

/// One thread writes: no locked instruction is needed.
fn add(count: &AtomicU64, n: u64) {
    count.store(count.load(Relaxed) + n, Relaxed);
}

fn subtract(count: &AtomicU64, n: u64) {
    count.store(count.load(Relaxed) - n, Relaxed);
}

#[cfg(test)]
mod tests;
