//! The folder where journals live: one file a process, locked as long as it runs. Several nodes of a machine may share it.
use super::header::{Header, Unreadable, Upstream};
use super::layout::{CELL_WORDS, WORD_BYTES};
use super::read::Dead;
use super::{Part, ShardJournal};
use crate::ids::{OriginKey, ShardId};
use crate::limits::{JOURNAL_HEADER_BYTES_MAX, JOURNAL_PATIENCE_MS, JOURNALS_MAX, LANE_NOTICES_MAX};
use crate::sys::mapping::Mapping;
use core::time::Duration;
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use tracing::{info, warn};

const EXTENSION: &str = "journal";
/// What cannot be read is kept under another name: somebody may want to see it, and nobody meets it twice.
const UNREADABLE_EXTENSION: &str = "unreadable";

/// What a process is, as far as its journal has to know.
#[derive(Clone)]
pub struct Process {
    pub origin_key: OriginKey,
    /// 1 to 256.
    pub shards: u16,
    /// Of each shard.
    pub slots: u32,
    /// In the order of the configuration; at most `UPSTREAMS_MAX`.
    pub upstreams: Vec<Upstream>,
    /// Random: makes the file's name its own.
    pub name: u64,
}

/// Cells of a shard: all clients may be gone while no upstream takes note, up to what a lane keeps.
fn cells(slots: u32, upstreams: usize) -> u32 {
    slots.min(LANE_NOTICES_MAX as u32) * upstreams as u32
}

/// Bytes of a shard's part of the journal.
pub fn part_bytes(slots: u32, upstreams: usize) -> usize {
    (slots as usize * upstreams + cells(slots, upstreams) as usize * CELL_WORDS) * WORD_BYTES
}

/// The journal of this process. When it is dropped with nothing left in it, its file goes, too.
pub struct Journal {
    pub(super) path: PathBuf,
    /// Holds the lock, as the mapping of each part does.
    file: File,
    parts: Vec<Arc<Part>>,
}

/// The folder, as one process looks at it.
pub struct Folder {
    path: PathBuf,
    /// The journal of the process that looks, if there was room for one.
    own: Option<File>,
    /// What was found in it and needs no second look: journals taken over, and what is none. The own one, too.
    seen: HashSet<PathBuf>,
}

/// What was found in the folder.
#[derive(Default)]
pub struct Found {
    /// Of processes that have ended: they are the finder's now.
    pub dead: Vec<Dead>,
    /// Journals whose processes run.
    pub locked: u64,
    /// Files that could not be read, by any reason.
    pub unreadable: u64,
}

/// Makes this process's journal, and takes over those of processes that have ended. Only the own journal can fail: whatever else is
/// wrong in the folder is logged and counted. The error inside: there is no room for it, which keeps nobody from taking over the others'.
pub fn open(path: &Path, process: &Process) -> io::Result<(io::Result<Journal>, Folder, Found)> {
    let mut folder = Folder { path: path.to_path_buf(), own: None, seen: HashSet::new() };
    // Nobody else makes a file or looks at one meanwhile, so that a file which is not locked is a dead process's.
    let _lock = lock(path)?;
    let journal = match Journal::create(path, process) {
        Err(error) if !matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => return Err(error),
        made => made,
    };
    if let Ok(journal) = &journal {
        folder.own = Some(journal.file.try_clone()?);
        folder.seen.insert(journal.path.clone());
    }
    let found = folder.scan()?;
    Ok((journal, folder, found))
}

impl Folder {
    /// Takes over the journals of processes that have ended since the last look, and notes in its own that its process lives: of a
    /// mapped file a file system may note the first store only (tmpfs does), and a journal's age is to be that of the death.
    pub fn look(&mut self) -> io::Result<Found> {
        let _lock = lock(&self.path)?;
        if let Some(own) = &self.own {
            own.set_modified(SystemTime::now())?;
        }
        self.scan()
    }

    fn scan(&mut self) -> io::Result<Found> {
        let mut found = Found::default();
        let is_journal = |path: &PathBuf| path.extension().is_some_and(|extension| extension == EXTENSION);
        let mut paths: Vec<PathBuf> =
            fs::read_dir(&self.path)?.filter_map(|entry| Some(entry.ok()?.path())).filter(is_journal).collect();
        self.seen.retain(|seen| paths.contains(seen));
        paths.retain(|path| !self.seen.contains(path));
        paths.sort();
        // Those behind are there at the next look.
        paths.truncate(JOURNALS_MAX);
        for path in paths {
            match look(path.clone()) {
                Ok(Look::Alive) => {
                    found.locked += 1;
                    continue;
                }
                Ok(Look::Dead(dead)) => found.dead.push(*dead),
                Ok(Look::Nothing) => info!(journal = %path.display(), "the journal of a start that failed is deleted"),
                Ok(Look::Unreadable(why)) => {
                    found.unreadable += 1;
                    warn!(journal = %path.display(), "{why}: clients that it names cannot be signed off at their app servers");
                }
                Err(error) => {
                    found.unreadable += 1;
                    warn!(journal = %path.display(), "a journal cannot be read and is left alone: {error}");
                }
            }
            self.seen.insert(path);
        }
        Ok(found)
    }
}

fn lock(folder: &Path) -> io::Result<File> {
    let file = File::open(folder)?;
    let patience = Instant::now() + Duration::from_millis(JOURNAL_PATIENCE_MS);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() >= patience => {
                let text = "another process has locked it for too long; end that process, or give this node a folder of its own";
                return Err(io::Error::new(ErrorKind::WouldBlock, text));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

impl Journal {
    fn create(folder: &Path, process: &Process) -> io::Result<Journal> {
        let pid = std::process::id();
        let path = folder.join(format!("node-{pid}-{:016x}.{EXTENSION}", process.name));
        // It holds the key that origin ids are made with: whoever reads it can speak in the name of any client.
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        let filled = Journal::fill(&file, process, pid);
        match filled {
            Ok(parts) => Ok(Journal { path, file, parts }),
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }

    fn fill(file: &File, process: &Process, pid: u32) -> io::Result<Vec<Arc<Part>>> {
        file.try_lock()?;
        let header = Header {
            pid,
            origin_key: process.origin_key.0,
            shards: process.shards,
            slots: process.slots,
            cells: cells(process.slots, process.upstreams.len()),
            upstreams: process.upstreams.clone(),
        };
        let written = header.write();
        let layout = header.layout(written.len());
        let words = Arc::new(Mapping::create(file, layout.words())?);
        // Last: a file without it says nothing.
        file.write_all_at(&written, 0)?;
        let part = |shard| Arc::new(Part::new(words.clone(), layout, ShardId(shard as u8), process.origin_key));
        Ok((0..process.shards).map(part).collect())
    }

    /// The part of a shard, which only its thread may write.
    pub fn of_shard(&self, shard: ShardId) -> ShardJournal {
        ShardJournal(self.parts.get(usize::from(shard.0)).cloned())
    }

    /// Ids that some upstream may still know.
    pub fn ids(&self) -> u64 {
        let shards = 0..self.parts.len();
        shards.map(|shard| self.of_shard(ShardId(shard as u8))).map(|part| part.live_ids() + part.pending_ids()).sum()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if self.ids() == 0
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!(journal = %self.path.display(), "the journal of this process cannot be deleted: {error}");
        }
    }
}

enum Look {
    Dead(Box<Dead>),
    /// Its process runs.
    Alive,
    /// It was empty, and is deleted.
    Nothing,
    Unreadable(&'static str),
}

fn look(path: PathBuf) -> io::Result<Look> {
    // Not a link to somewhere else, and nothing that opening could wait for.
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(Look::Alive),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let mut start = Vec::new();
    (&file).take(JOURNAL_HEADER_BYTES_MAX as u64).read_to_end(&mut start)?;
    match Header::read(&start) {
        Ok((header, header_bytes)) => Ok(Look::Dead(Box::new(Dead::new(path, file, header, header_bytes)))),
        Err(Unreadable::Empty) => fs::remove_file(&path).map(|()| Look::Nothing),
        // The version that wrote it may come back.
        Err(Unreadable::OtherVersion) => Ok(Look::Unreadable("it is a journal of another version, and is left alone")),
        Err(Unreadable::Damaged) => {
            fs::rename(&path, path.with_extension(UNREADABLE_EXTENSION))?;
            Ok(Look::Unreadable("it is no journal, or a damaged one, and is renamed to end in .unreadable"))
        }
    }
}
