//! What stands at the beginning of a journal: which process it is of, as JSON that is checked by a hash, in whole pages.
use super::layout::{Layout, PAGE_BYTES};
use crate::ids::{OriginKey, SLOT_MAX};
use crate::limits::{JOURNAL_HEADER_BYTES_MAX, UPSTREAM_URLS_MAX, UPSTREAMS_MAX};
use core::hash::Hasher;
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;

/// Changes with the meaning of anything behind it.
const MAGIC: &[u8; 8] = b"srjourn1";
const FAMILY: &[u8] = b"srjourn";
/// Magic, hash and length of the text.
const PREFIX_BYTES: usize = 24;

/// What a process says of itself in its journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) pid: u32,
    pub(super) origin_key: [u8; 16],
    pub(super) shards: u16,
    pub(super) slots: u32,
    pub(super) cells: u32,
    pub(super) upstreams: Vec<Upstream>,
}

/// An upstream of a configuration, as ids of its clients are found again under another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    pub name: String,
    /// As configured.
    pub urls: Vec<String>,
}

/// Why a file is no journal that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// Its process ended before it had written anything.
    Empty,
    OtherVersion,
    Damaged,
}

impl Header {
    pub(super) fn key(&self) -> OriginKey {
        OriginKey(self.origin_key)
    }

    /// Of a file whose header takes so many bytes.
    pub(super) fn layout(&self, header_bytes: usize) -> Layout {
        let upstreams = self.upstreams.len() as u8;
        Layout { header_bytes, shards: self.shards, upstreams, slots: self.slots, cells: self.cells }
    }

    /// As it stands in the file, whole pages.
    pub(super) fn write(&self) -> Vec<u8> {
        let text = serde_json::to_vec(self).expect("a header is plain data");
        let mut bytes = MAGIC.to_vec();
        bytes.extend(hash(&text).to_be_bytes());
        bytes.extend((text.len() as u64).to_be_bytes());
        bytes.extend(text);
        bytes.resize(bytes.len().next_multiple_of(PAGE_BYTES), 0);
        bytes
    }

    /// The header of a file that begins with these bytes, and how many of them it takes.
    pub(super) fn read(bytes: &[u8]) -> Result<(Header, usize), Unreadable> {
        if bytes.iter().take(MAGIC.len()).all(|byte| *byte == 0) {
            return Err(Unreadable::Empty);
        }
        if !bytes.starts_with(MAGIC) {
            return Err(if bytes.starts_with(FAMILY) { Unreadable::OtherVersion } else { Unreadable::Damaged });
        }
        Self::checked(bytes).ok_or(Unreadable::Damaged)
    }

    fn checked(bytes: &[u8]) -> Option<(Header, usize)> {
        let number = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let (expected, length) = (number(8)?, usize::try_from(number(16)?).ok()?);
        let end = PREFIX_BYTES.checked_add(length).filter(|end| *end <= JOURNAL_HEADER_BYTES_MAX)?;
        let text = bytes.get(PREFIX_BYTES..end)?;
        let header: Header = (hash(text) == expected).then(|| serde_json::from_slice(text).ok()).flatten()?;
        let is_possible = header.upstreams.len() <= UPSTREAMS_MAX
            && header.upstreams.iter().all(|upstream| upstream.urls.len() <= UPSTREAM_URLS_MAX)
            && header.shards <= 256
            && header.slots <= SLOT_MAX
            && header.cells <= SLOT_MAX;
        is_possible.then_some((header, end.next_multiple_of(PAGE_BYTES)))
    }
}

/// Against accidents, not against anybody: who can write the file may write what he likes.
fn hash(text: &[u8]) -> u64 {
    let mut hasher = SipHasher24::new();
    hasher.write(text);
    hasher.finish()
}
