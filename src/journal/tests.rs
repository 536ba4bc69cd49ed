use super::*;
use crate::ids::{Address, OriginId, UpstreamIndex};
use core::time::Duration;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const SLOTS: u32 = 700;

fn process(name: u64) -> Process {
    let upstream = |name: &str, urls: &[&str]| Upstream {
        name: name.into(),
        urls: urls.iter().map(|url| url.to_string()).collect(),
    };
    Process {
        origin_key: OriginKey([name as u8; 16]),
        shards: 2,
        slots: SLOTS,
        upstreams: vec![upstream("a", &["http://a1", "http://a2"]), upstream("b", &["http://b"])],
        name,
    }
}

/// Where there is room for its journal.
fn open(folder: &Path, process: &Process) -> std::io::Result<(Journal, Folder, Found)> {
    super::open(folder, process).and_then(|(journal, folder, found)| Ok((journal?, folder, found)))
}

fn place(upstream: u8, url: u8) -> LanePlace {
    LanePlace { upstream: UpstreamIndex(upstream), url }
}

/// An id as it stands in a set of a test: where it is known, and what it is.
type Known = BTreeSet<(u8, u8, [u8; 22])>;

fn known(name: u64, shard: u8, at: LanePlace, slot: u32, serial: u64) -> (u8, u8, [u8; 22]) {
    let address = Address { shard: ShardId(shard), slot, serial: Serial(serial) };
    (at.upstream.0, at.url, process(name).origin_key.seal(address).0)
}

fn ids_of(dead: &Dead) -> Known {
    let mut all = Known::new();
    for at in [place(0, 0), place(0, 1), place(1, 0)] {
        for id in dead.ids(at).flat_map(Result::unwrap) {
            assert!(all.insert((at.upstream.0, at.url, id.0)), "{id:?} is there twice");
        }
    }
    all
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Ends a process as SIGKILL would: the kernel takes its locks, and nobody tidies up.
fn kill(journal: Journal) {
    let path = journal.path.clone();
    let aside = path.with_extension("aside");
    fs::copy(&path, &aside).unwrap();
    drop(journal);
    fs::rename(aside, path).unwrap();
}

/// A journal with some of everything, and what is in it.
fn busy(folder: &Path, name: u64) -> (Journal, Known) {
    let (journal, ..) = open(folder, &process(name)).unwrap();
    let mut expected = Known::new();
    for shard in 0..2 {
        let part = journal.of_shard(ShardId(shard));
        for slot in [0, 1, 511, 512, SLOTS - 1] {
            part.live(place(0, 1), slot, Serial(u64::from(slot)));
            part.live(place(1, 0), slot, Serial(7));
            expected.insert(known(name, shard, place(1, 0), slot, 7));
        }
        // Another id, and another url; then one who leaves, and one whose leaving is not known yet.
        for slot in [0, 1, 511, 512, SLOTS - 1] {
            part.live(place(0, 0), slot, Serial(u64::from(slot) + 10_000));
            expected.insert(known(name, shard, place(0, 0), slot, u64::from(slot) + 10_000));
        }
        part.gone(UpstreamIndex(0), 1);
        expected.remove(&known(name, shard, place(0, 0), 1, 10_001));
        assert!(part.bury(place(0, 1), 1, Serial(10_001)).is_some());
        expected.insert(known(name, shard, place(0, 1), 1, 10_001));
        let cell = part.bury(place(1, 0), 9, Serial::MAX).unwrap();
        part.buried(cell);
        assert_eq!((part.live_ids(), part.pending_ids()), (9, 1));
    }
    (journal, expected)
}

#[test]
fn a_journal_of_none_takes_everything_and_knows_nothing() {
    let none = ShardJournal::default();
    none.live(place(0, 0), 5, Serial(1));
    none.gone(UpstreamIndex(0), 5);
    assert_eq!(none.bury(place(0, 0), 5, Serial(1)), None);
    assert_eq!((none.live_ids(), none.pending_ids(), none.take_overflowed()), (0, 0, 0));
}

#[test]
fn what_a_killed_process_wrote_is_found_by_the_next_and_by_one_only() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, expected) = busy(folder.path(), 1);
    // It runs: nobody takes it over.
    let (second, mut watched, found) = open(folder.path(), &process(2)).unwrap();
    assert_eq!((found.dead.len(), found.locked, found.unreadable), (0, 1, 0));
    kill(journal);
    let (third, _, mut found) = open(folder.path(), &process(3)).unwrap();
    assert_eq!((found.dead.len(), found.locked), (1, 1), "the second runs");
    let dead = found.dead.remove(0);
    assert_eq!(ids_of(&dead), expected);
    let (clients, damaged) = dead.clients().unwrap();
    let counts: Vec<_> = clients.iter().map(|of| (of.upstream.as_str(), of.url.as_str(), of.count)).collect();
    assert_eq!((counts, damaged), (vec![("a", "http://a1", 8), ("a", "http://a2", 2), ("b", "http://b", 10)], 0));
    // Whoever has it keeps it until it is done.
    let (fourth, _, found) = open(folder.path(), &process(4)).unwrap();
    assert_eq!((found.dead.len(), found.locked), (0, 3));
    dead.forget(place(0, 0)).unwrap();
    dead.forget(place(1, 0)).unwrap();
    assert_eq!(ids_of(&dead).len(), 2);
    // Given up, it is found by one that looks again, once.
    drop(dead);
    let found = watched.look().unwrap();
    assert_eq!((found.dead.len(), found.locked), (1, 2));
    assert_eq!(ids_of(&found.dead[0]).len(), 2);
    drop(found);
    assert_eq!(watched.look().unwrap().dead.len(), 0, "it has been looked at");
    let (fifth, _, found) = open(folder.path(), &process(5)).unwrap();
    found.dead[0].delete().unwrap();
    // Nothing is left of those who leave in order with nobody left behind.
    drop((second, third, fourth, fifth));
    assert_eq!(files(folder.path()), Vec::<PathBuf>::new());
}

#[test]
fn only_its_owner_can_read_it_and_it_stays_as_long_as_somebody_is_in_it() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let (journal, ..) = open(folder.path(), &process(1)).unwrap();
    let path = journal.path.clone();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let part = journal.of_shard(ShardId(1));
    part.live(place(1, 0), 3, Serial(5));
    assert!(part.bury(place(1, 0), 3, Serial(5)).is_some());
    part.gone(UpstreamIndex(1), 3);
    assert_eq!(journal.ids(), 1);
    drop(journal);
    assert!(path.exists(), "one was not told");
    let (journal, _, found) = open(folder.path(), &process(2)).unwrap();
    assert_eq!((found.dead.len(), found.locked), (0, 1), "a shard still writes it");
    drop((journal, part));
    let (journal, _, found) = open(folder.path(), &process(3)).unwrap();
    let dead = found.dead;
    assert_eq!(ids_of(&dead[0]), Known::from([known(1, 1, place(1, 0), 3, 5)]));
    dead[0].delete().unwrap();
    let part = journal.of_shard(ShardId(1));
    let cell = part.bury(place(1, 0), 3, Serial(5)).unwrap();
    part.buried(cell);
    drop((part, journal));
    assert!(files(folder.path()).is_empty());
}

#[test]
fn a_journals_age_is_that_of_its_process_death_however_long_that_lived() {
    const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);
    let folder = tempfile::tempdir().unwrap();
    let (journal, mut own, _) = open(folder.path(), &process(1)).unwrap();
    let part = journal.of_shard(ShardId(0));
    part.live(place(0, 0), 3, Serial(5));
    // As on tmpfs: what is stored in the mapping is not noted for more than a week.
    File::open(&journal.path).unwrap().set_modified(SystemTime::now() - 2 * WEEK).unwrap();
    own.look().unwrap();
    drop((journal, own, part));
    let died = |name: u64| {
        let (_, _, found) = open(folder.path(), &process(name)).unwrap();
        (found.dead[0].age(), found.dead[0].path().to_path_buf())
    };
    let (age, path) = died(2);
    assert!(age < WEEK / 1000, "{age:?}");
    File::open(path).unwrap().set_modified(SystemTime::now() - 2 * WEEK).unwrap();
    assert!(died(3).0 > WEEK);
}

#[test]
fn cells_are_used_again_and_their_end_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, ..) = open(folder.path(), &process(1)).unwrap();
    let part = journal.of_shard(ShardId(0));
    let bury = |serial: u64| part.bury(place(0, 0), 1, Serial(serial));
    let cells: Vec<Cell> = (0..).map_while(bury).collect();
    assert_eq!((cells.len() as u32, part.take_overflowed(), part.take_overflowed()), (2 * SLOTS, 1, 0));
    for cell in &cells[..100] {
        part.buried(*cell);
    }
    assert_eq!(part.pending_ids(), u64::from(2 * SLOTS) - 100);
    let again: BTreeSet<u32> = (0..).map_while(bury).map(|cell| cell.0.get()).collect();
    assert_eq!(again, cells[..100].iter().map(|cell| cell.0.get()).collect());
    assert_eq!(part_bytes(SLOTS, 2), (SLOTS * 2 * 8 + 2 * SLOTS * 16) as usize);
}

#[test]
fn whatever_else_lies_in_the_folder_stops_no_start() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let (journal, expected) = busy(folder.path(), 1);
    kill(journal);
    let at = |name: &str| folder.path().join(name);
    let mut other_version = fs::read(&files(folder.path())[0]).unwrap();
    other_version[7] = b'9';
    fs::write(at("other.journal"), other_version).unwrap();
    fs::write(at("foreign.journal"), "[journal]\nthis = \"is somebody else's\"").unwrap();
    fs::write(at("empty.journal"), "").unwrap();
    fs::write(at("zeros.journal"), [0; 9000]).unwrap();
    fs::write(at("notes.txt"), "mine").unwrap();
    fs::create_dir(at("folder.journal")).unwrap();
    symlink("/etc/passwd", at("link.journal")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(at("pipe.journal")).status().unwrap().success());

    let (journal, mut watched, found) = open(folder.path(), &process(2)).unwrap();
    assert_eq!((found.dead.len(), found.locked, found.unreadable), (1, 0, 5));
    assert_eq!(ids_of(&found.dead[0]), expected);
    assert_eq!(watched.look().unwrap().unreadable, 0, "each is told once");
    drop((journal, found));
    let left: Vec<String> =
        files(folder.path()).iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_string()).collect();
    assert_eq!(left.iter().filter(|name| name.starts_with("node-")).count(), 1, "{left:?}");
    let named: Vec<&str> = left.iter().map(String::as_str).filter(|name| !name.starts_with("node-")).collect();
    assert_eq!(
        named,
        ["folder.journal", "foreign.unreadable", "link.journal", "notes.txt", "other.journal", "pipe.journal"]
    );
}

#[test]
fn a_folder_that_cannot_be_used_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    assert_eq!(open(&missing, &process(1)).err().unwrap().kind(), std::io::ErrorKind::NotFound);
    // A folder in which nothing can be made, whoever tries.
    assert!(open(Path::new("/proc/self"), &process(1)).is_err());
}

/// A file with every part of a journal, and what it says.
fn written() -> &'static (Vec<u8>, Known) {
    static WRITTEN: std::sync::OnceLock<(Vec<u8>, Known)> = std::sync::OnceLock::new();
    WRITTEN.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let (journal, expected) = busy(folder.path(), 1);
        (fs::read(&journal.path).unwrap(), expected)
    })
}

/// What the next process finds in a folder with this one file.
fn found_in(bytes: &[u8]) -> Option<Known> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("node-1.journal"), bytes).unwrap();
    let (_journal, _, found) = open(folder.path(), &process(2)).unwrap();
    found.dead.first().map(|dead| {
        let (clients, _) = dead.clients().unwrap();
        let ids = ids_of(dead);
        assert_eq!(clients.iter().map(|clients| clients.count).sum::<u64>(), ids.len() as u64);
        ids
    })
}

#[test]
fn a_journal_is_found_whole() {
    let (bytes, expected) = written();
    assert_eq!(found_in(bytes).as_ref(), Some(expected));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_journal_that_was_cut_short_names_nobody_else(length in 0..written().0.len()) {
        let (bytes, expected) = written();
        if let Some(found) = found_in(&bytes[..length]) {
            prop_assert!(found.is_subset(expected));
        }
    }

    #[test]
    fn a_damaged_header_names_nobody(at in 0..64usize, bit in 0..8u32) {
        let mut damaged = written().0.clone();
        damaged[at] ^= 1 << bit;
        prop_assert_eq!(found_in(&damaged), None);
    }

    /// A bit that fell over in a word says nothing of the others. (By chance one in 32,768 damaged words is an id, which nobody
    /// has; so it is looked for by single bits, none of which does it.)
    #[test]
    fn a_damaged_word_names_nobody_and_hides_nobody_else(which in any::<prop::sample::Index>(), bit in 0..8u32) {
        let (bytes, expected) = written();
        let used: Vec<usize> = (4096..bytes.len()).filter(|at| bytes[at / 8 * 8..at / 8 * 8 + 8] != [0; 8]).collect();
        let mut damaged = bytes.clone();
        damaged[used[which.index(used.len())]] ^= 1 << bit;
        let found = found_in(&damaged).unwrap();
        prop_assert!(found.is_subset(expected));
        prop_assert!(found.len() + 1 >= expected.len());
    }

    #[test]
    fn noise_never_makes_the_reader_stumble(noise in prop::collection::vec(any::<u8>(), 0..2000), at in 0..12_000usize) {
        let (bytes, expected) = written();
        let mut damaged = bytes.clone();
        for (offset, byte) in noise.iter().enumerate() {
            if let Some(place) = damaged.get_mut(at + offset) {
                *place = *byte;
            }
        }
        if let Some(found) = found_in(&damaged) {
            // What the noise has not touched is still there.
            let lost = expected.difference(&found).count();
            prop_assert!(lost <= noise.len());
        }
    }
}

#[test]
fn an_id_is_what_the_dead_process_gave_out() {
    let (_, expected) = written();
    let key = process(1).origin_key;
    for (.., id) in expected {
        assert!(key.open(&OriginId(*id).0).is_some());
    }
}
