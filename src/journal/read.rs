//! The journal of a process that has ended: whom it served, a page after the other.
use super::header::{Header, Upstream};
use super::layout::{self, CELL_WORDS, Layout, Owner, PAGE_BYTES, WORD_BYTES};
use crate::ids::{Address, LanePlace, OriginId, OriginKey, ShardId, UpstreamIndex};
use crate::limits::JOURNAL_PAGE_IDS;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Words that are read at once.
const PAGE_WORDS: usize = PAGE_BYTES / WORD_BYTES;
const _: () = assert!(PAGE_WORDS == JOURNAL_PAGE_IDS);

/// The journal of a dead process, locked: nobody else takes it over.
pub struct Dead {
    path: PathBuf,
    file: File,
    header: Header,
    layout: Layout,
}

/// Whom a journal names at one url of an upstream. The place is that of the dead process's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clients {
    pub place: LanePlace,
    pub upstream: String,
    pub url: String,
    pub count: u64,
}

impl Dead {
    pub(super) fn new(path: PathBuf, file: File, header: Header, header_bytes: usize) -> Dead {
        Dead { layout: header.layout(header_bytes), path, file, header }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn pid(&self) -> u32 {
        self.header.pid
    }

    /// Since its process died, to within `JOURNAL_LOOK_MS`; or since somebody worked on it.
    pub fn age(&self) -> Duration {
        self.file
            .metadata()
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|at| at.elapsed().ok())
            .unwrap_or_default()
    }

    /// Whom it names, url by url, those with nobody left out; and how many of its words are damaged.
    pub fn clients(&self) -> io::Result<(Vec<Clients>, u64)> {
        let of = |(upstream, Upstream { name, urls }): (usize, &Upstream)| {
            let upstream_index = UpstreamIndex(upstream as u8);
            let clients = |(url, text): (usize, &String)| Clients {
                place: LanePlace { upstream: upstream_index, url: url as u8 },
                upstream: name.clone(),
                url: text.clone(),
                count: 0,
            };
            urls.iter().enumerate().map(clients).collect::<Vec<_>>()
        };
        let mut all: Vec<Clients> = self.header.upstreams.iter().enumerate().flat_map(of).collect();
        let mut damaged = 0;
        for page in Pages::new(self, None) {
            for word in page?.found() {
                match word.map(|(place, _)| all.iter_mut().find(|clients| clients.place == place)) {
                    Some(Some(clients)) => clients.count += 1,
                    Some(None) | None => damaged += 1,
                }
            }
        }
        all.retain(|clients| clients.count > 0);
        Ok((all, damaged))
    }

    /// The ids of clients at a place, page by page: each item has 1 to `JOURNAL_PAGE_IDS` of them.
    pub fn ids(&self, place: LanePlace) -> impl Iterator<Item = io::Result<Vec<OriginId>>> {
        let ids = move |page: Page<'_>| -> Vec<OriginId> {
            page.found().flatten().filter(|(at, _)| *at == place).map(|(_, id)| id).collect()
        };
        Pages::new(self, Some(place.upstream))
            .map(move |page| page.map(ids))
            .filter(|ids| !ids.as_ref().is_ok_and(|ids| ids.is_empty()))
    }

    /// Takes the ids of a place out of the file: they need no more.
    pub fn forget(&self, place: LanePlace) -> io::Result<()> {
        for page in Pages::new(self, Some(place.upstream)) {
            page?.forget(place)?;
        }
        Ok(())
    }

    /// Nobody that it names is known anywhere any more.
    pub fn delete(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

/// A walk over a journal's tables, or those of one upstream, and over its cells.
struct Pages<'a> {
    dead: &'a Dead,
    upstream: Option<UpstreamIndex>,
    shard: u16,
    /// Of an upstream, or behind the last one the cells.
    table: u8,
    /// The next word.
    at: usize,
}

/// Some words of one table.
struct Page<'a> {
    dead: &'a Dead,
    shard: ShardId,
    table: u8,
    /// In the table.
    first: usize,
    /// In the file.
    offset: u64,
    words: Vec<u64>,
}

impl<'a> Pages<'a> {
    fn new(dead: &'a Dead, upstream: Option<UpstreamIndex>) -> Pages<'a> {
        Pages { dead, upstream, shard: 0, table: upstream.map_or(0, |upstream| upstream.0), at: 0 }
    }

    fn is_cells(&self) -> bool {
        self.table >= self.dead.layout.upstreams
    }
}

impl<'a> Iterator for Pages<'a> {
    type Item = io::Result<Page<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let layout = &self.dead.layout;
        loop {
            if self.shard >= layout.shards {
                return None;
            }
            let shard = ShardId(self.shard as u8);
            let length = if self.is_cells() { layout.cells as usize * CELL_WORDS } else { layout.slots as usize };
            let count = PAGE_WORDS.min(length - self.at);
            if count == 0 {
                // One upstream's table, then the cells; or every table, then the cells; then the next shard.
                (self.shard, self.table) = match (self.is_cells(), self.upstream) {
                    (true, upstream) => (self.shard + 1, upstream.map_or(0, |upstream| upstream.0)),
                    (false, Some(_)) => (self.shard, layout.upstreams),
                    (false, None) => (self.shard, self.table + 1),
                };
                self.at = 0;
                continue;
            }
            let first = self.at;
            self.at += count;
            let offset = ((layout.table(shard, UpstreamIndex(self.table)) + first) * WORD_BYTES) as u64;
            return match read_words(&self.dead.file, offset, count) {
                Ok(words) => Some(Ok(Page { dead: self.dead, shard, table: self.table, first, offset, words })),
                Err(error) => {
                    self.shard = layout.shards;
                    Some(Err(error))
                }
            };
        }
    }
}

/// What a file that was cut short lacks is 0: nothing was there.
fn read_words(file: &File, offset: u64, count: usize) -> io::Result<Vec<u64>> {
    let mut bytes = [0; PAGE_BYTES];
    let mut filled = 0;
    while filled < count * WORD_BYTES {
        match file.read_at(&mut bytes[filled..count * WORD_BYTES], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let whole = bytes[..filled / WORD_BYTES * WORD_BYTES].chunks_exact(WORD_BYTES);
    let mut words: Vec<u64> = whole.map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes"))).collect();
    words.resize(count, 0);
    Ok(words)
}

impl Page<'_> {
    /// Every id, with the place where it is known; None for one that is damaged.
    fn found(&self) -> impl Iterator<Item = Option<(LanePlace, OriginId)>> {
        self.entries().map(|(_, entry)| entry)
    }

    /// The same, with the index of its word.
    fn entries(&self) -> impl Iterator<Item = (usize, Option<(LanePlace, OriginId)>)> {
        let is_cells = self.table >= self.dead.layout.upstreams;
        let step = if is_cells { CELL_WORDS } else { 1 };
        let used = (0..self.words.len()).step_by(step).filter(|at| self.words[*at] != 0);
        used.map(move |at| {
            let owner = if is_cells {
                Owner::unpack(self.shard, self.words.get(at + 1).copied().unwrap_or_default())
            } else {
                let slot = (self.first + at) as u32;
                Owner { shard: self.shard, upstream: UpstreamIndex(self.table), slot }
            };
            (at, self.id(owner, self.words[at]))
        })
    }

    fn id(&self, owner: Owner, word: u64) -> Option<(LanePlace, OriginId)> {
        let key: OriginKey = self.dead.header.key();
        let (place, serial) = layout::unpack(&key, owner, word)?;
        Some((place, key.seal(Address { shard: owner.shard, slot: owner.slot, serial })))
    }

    fn forget(mut self, place: LanePlace) -> io::Result<()> {
        let known: Vec<usize> =
            self.entries().filter(|(_, entry)| entry.is_some_and(|(at, _)| at == place)).map(|(at, _)| at).collect();
        for at in known {
            self.words[at] = 0;
            self.dead.file.write_all_at(&0u64.to_ne_bytes(), self.offset + (at * WORD_BYTES) as u64)?;
        }
        Ok(())
    }
}
