//! Where everything stands in a journal, and how an id is written.
//!
//! ```text
//! header     text, padded to a page                                                 (`header`)
//! per shard  a word for each upstream and slot: the id its client is known by there, 0 for none
//!            cells of two words: ids of clients that are gone while their upstream has not taken note
//! ```
//! A word is 41 bits of serial + 1, 8 bits of url, and a check of 15 bits over both and the place, keyed with the process's secret: what
//! damage leaves behind is not taken for an id.
use crate::ids::{LanePlace, OriginKey, SLOT_MAX, Serial, ShardId, UpstreamIndex};
use core::hash::Hasher;
use siphasher::sip::SipHasher24;

pub(super) const WORD_BYTES: usize = size_of::<u64>();
/// What the tables begin behind: whole pages.
pub(super) const PAGE_BYTES: usize = 4096;
/// A cell: the id, and whose it was.
pub(super) const CELL_WORDS: usize = 2;

const SERIAL_BITS: u32 = 41;
const URL_BITS: u32 = 8;
const ID_MASK: u64 = (1 << (SERIAL_BITS + URL_BITS)) - 1;

/// The dimensions of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Bytes of the header, whole pages.
    pub(super) header_bytes: usize,
    pub(super) shards: u16,
    pub(super) upstreams: u8,
    /// Of each shard.
    pub(super) slots: u32,
    pub(super) cells: u32,
}

impl Layout {
    fn shard_words(&self) -> usize {
        let tables = usize::from(self.upstreams) * self.slots as usize;
        (tables + self.cells as usize * CELL_WORDS).next_multiple_of(PAGE_BYTES / WORD_BYTES)
    }

    /// Of the whole file.
    pub(super) fn words(&self) -> usize {
        self.header_bytes / WORD_BYTES + usize::from(self.shards) * self.shard_words()
    }

    /// Where a shard's table of an upstream begins, in words.
    pub(super) fn table(&self, shard: ShardId, upstream: UpstreamIndex) -> usize {
        self.header_bytes / WORD_BYTES
            + usize::from(shard.0) * self.shard_words()
            + usize::from(upstream.0) * self.slots as usize
    }

    /// Where a shard's cells begin.
    pub(super) fn cells(&self, shard: ShardId) -> usize {
        self.table(shard, UpstreamIndex(self.upstreams))
    }
}

/// Whose id a word is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) shard: ShardId,
    pub(super) upstream: UpstreamIndex,
    pub(super) slot: u32,
}

impl Owner {
    /// For the second word of a cell.
    pub(super) fn pack(self) -> u64 {
        u64::from(self.upstream.0) << 24 | u64::from(self.slot)
    }

    pub(super) fn unpack(shard: ShardId, word: u64) -> Owner {
        Owner { shard, upstream: UpstreamIndex((word >> 24) as u8), slot: word as u32 & SLOT_MAX }
    }
}

/// Is this word that id, whatever its check says?
pub(super) fn is_same(word: u64, url: u8, serial: Serial) -> bool {
    word & ID_MASK == id_bits(url, serial)
}

fn id_bits(url: u8, serial: Serial) -> u64 {
    u64::from(url) << SERIAL_BITS | (serial.0 + 1)
}

pub(super) fn pack(key: &OriginKey, owner: Owner, url: u8, serial: Serial) -> u64 {
    let bits = id_bits(url, serial);
    bits | check(key, owner, bits)
}

/// Url and serial of a word that is not 0. None: it is damaged.
pub(super) fn unpack(key: &OriginKey, owner: Owner, word: u64) -> Option<(LanePlace, Serial)> {
    let bits = word & ID_MASK;
    let serial = (bits & ((1 << SERIAL_BITS) - 1)).checked_sub(1)?;
    let place = LanePlace { upstream: owner.upstream, url: (bits >> SERIAL_BITS) as u8 };
    (word == bits | check(key, owner, bits) && serial <= Serial::MAX.0).then_some((place, Serial(serial)))
}

fn check(key: &OriginKey, owner: Owner, bits: u64) -> u64 {
    let mut hasher = SipHasher24::new_with_key(&key.0);
    hasher.write_u64(u64::from(owner.shard.0) << 32 | owner.pack());
    hasher.write_u64(bits);
    hasher.finish() & !ID_MASK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_was_written_and_no_changed_bit_makes_another() {
        let key = OriginKey([7; 16]);
        let owner = Owner { shard: ShardId(3), upstream: UpstreamIndex(15), slot: SLOT_MAX };
        assert_eq!(Owner::unpack(ShardId(3), owner.pack()), owner);
        for (url, serial) in [(0, 0), (9, 77), (255, Serial::MAX.0)] {
            let word = pack(&key, owner, url, Serial(serial));
            assert!(word != 0 && is_same(word, url, Serial(serial)) && !is_same(word, url, Serial(serial ^ 1)));
            let place = LanePlace { upstream: owner.upstream, url };
            assert_eq!(unpack(&key, owner, word), Some((place, Serial(serial))));
            for bit in 0..64 {
                assert_eq!(unpack(&key, owner, word ^ 1 << bit), None, "bit {bit} of {url} {serial}");
            }
            assert_eq!(unpack(&key, Owner { slot: 0, ..owner }, word), None, "of another client");
            assert_eq!(unpack(&OriginKey([8; 16]), owner, word), None, "of another process");
        }
    }
}
