//! After a crash (contract 6.4): whom the journals of dead processes name, their app servers are told of over this node's lanes.
//!
//! Each is told of twice, a minute apart. A dead process's file stays until that is done, so that what this process does not finish the next
//! one does. To tell of somebody once more is harmless (contract 2.5).
use super::plane::{ORDER_TRIES, ShardHandle, State, send_order};
use super::upstreams::Upstreams;
use crate::bus::{ShardOrder, Unsent};
use crate::config::Config;
use crate::ids::{LanePlace, OriginId, OriginKey, UpstreamIndex};
use crate::journal::{self, Clients, Dead, Folder, Found, Journal};
use crate::limits::{BURIALS_AGAIN_MS, BURIALS_REST_MS, JOURNAL_KEPT_SECONDS, JOURNAL_LOOK_MS};
use crate::metrics::JournalInfo;
use crate::shard;
use core::cell::{Cell, RefCell};
use core::time::Duration;
use futures_util::future::join_all;
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::rc::Rc;
use tokio::sync::{Semaphore, oneshot};
use tracing::{error, info, warn};

/// What a start finds in the folder of journals.
#[derive(Default)]
pub(super) struct Opened {
    /// None: none is configured, or there is no room for one.
    pub(super) journal: Option<Journal>,
    /// Where it is, or would be, and what else is there.
    pub(super) folder: Option<Folder>,
    pub(super) dead: Vec<Dead>,
    pub(super) info: JournalInfo,
}

/// Opens what is configured. A folder that is wrong ends the start, as any wrong setting does; a disk that is full does not: clients that
/// are served and perhaps leak later are better than none, and those that dead processes left are signed off all the same.
pub(super) fn open(config: &Config, origin_key: OriginKey, name: u64) -> io::Result<Opened> {
    let Some(folder) = &config.journal else { return Ok(Opened::default()) };
    let upstream = |upstream: &crate::config::Upstream| journal::Upstream {
        name: upstream.name.clone(),
        urls: upstream.urls.iter().map(|target| target.url.text.clone()).collect(),
    };
    let process = journal::Process {
        origin_key,
        shards: config.shards,
        slots: shard::places(config.connections_per_shard()),
        upstreams: config.upstreams.iter().map(upstream).collect(),
        name,
    };
    match journal::open(folder, &process) {
        Ok((made, opened, Found { dead, locked, unreadable })) => {
            let mut info = JournalInfo { errors: unreadable, ..JournalInfo::default() };
            match &made {
                Ok(_) => info!(folder = %folder.display(), others = locked, "journal open"),
                Err(fault) => {
                    info.errors += 1;
                    error!(folder = %folder.display(), "no room for the journal ({fault}); the node runs without one until its next start: if it is killed, app servers keep what they have of its clients");
                }
            }
            Ok(Opened { journal: made.ok(), folder: Some(opened), dead, info })
        }
        Err(fault) => Err(in_words(folder, &fault)),
    }
}

/// Not with the kind of the error: what to do is another thing than where a port cannot be opened.
fn in_words(folder: &Path, fault: &io::Error) -> io::Error {
    io::Error::other(format!(
        "no journal can be made in {}: {fault}; give the user of the node write access to the folder, or leave `journal` out",
        folder.display()
    ))
}

/// Signs off whom the dead name, and those who die while this process lives.
pub(super) async fn keep_looking(mut folder: Folder, dead: Vec<Dead>, shards: Vec<ShardHandle>, state: Rc<State>) {
    let common = Rc::new(Common { shards, state: state.clone(), next: Cell::new(0), places: RefCell::default() });
    common.recover(dead);
    let mut is_told = false;
    loop {
        tokio::time::sleep(Duration::from_millis(JOURNAL_LOOK_MS)).await;
        if state.stopping.get() {
            return;
        }
        match folder.look() {
            Ok(Found { dead, unreadable, .. }) => {
                is_told = false;
                state.journal(|info| info.errors += unreadable);
                common.recover(dead);
            }
            Err(fault) => {
                state.journal(|info| info.errors += 1);
                if !core::mem::replace(&mut is_told, true) {
                    warn!("the folder of journals cannot be looked at, until further notice: {fault}");
                }
            }
        }
    }
}

/// What all recoveries share.
struct Common {
    shards: Vec<ShardHandle>,
    state: Rc<State>,
    /// The shard whose turn it is.
    next: Cell<usize>,
    /// An app server hears of one dead process after the other.
    places: RefCell<HashMap<LanePlace, Rc<Semaphore>>>,
}

impl Common {
    /// For each of them a task.
    fn recover(self: &Rc<Common>, dead: Vec<Dead>) {
        for dead in dead {
            tokio_uring::spawn(Recovery { dead, common: self.clone() }.run());
        }
    }

    fn turn(&self, place: LanePlace) -> Rc<Semaphore> {
        self.places.borrow_mut().entry(place).or_insert_with(|| Rc::new(Semaphore::new(1))).clone()
    }
}

struct Recovery {
    dead: Dead,
    common: Rc<Common>,
}

/// Why a recovery does not go on.
enum Cut {
    /// The node stops: the next process goes on.
    Stopping,
    /// The file cannot be read or written any more, or a shard is stuck.
    Fault(io::Error),
}

impl Recovery {
    async fn run(self) {
        if let Err(Cut::Fault(fault)) = self.all().await {
            self.common.state.journal(|info| info.errors += 1);
            let journal = self.dead.path().display();
            error!(%journal, "the journal of a process that was killed cannot be worked off, the next start tries again: {fault}");
        }
    }

    async fn all(&self) -> Result<(), Cut> {
        let (all, damaged) = self.dead.clients().map_err(Cut::Fault)?;
        let journal = self.dead.path().display();
        if damaged > 0 {
            self.common.state.journal(|info| info.damaged += damaged);
            warn!(%journal, "{damaged} of its entries are damaged: their clients cannot be signed off");
        }
        let (mut known, mut strangers) = (Vec::new(), 0);
        for clients in all {
            match place_of(&self.common.state.upstreams, &clients) {
                Some(place) => known.push((clients, place)),
                None => strangers += self.no_upstream(&clients),
            }
        }
        for (Clients { url, count, .. }, _) in &known {
            self.common.state.journal(|info| info.waiting += count);
            let pid = self.dead.pid();
            warn!(pid, "a process ended without saying goodbye: {count} clients are being signed off at {url}");
        }
        if !known.is_empty() {
            tokio::time::sleep(Duration::from_millis(BURIALS_REST_MS)).await;
            self.sign_all_off(&known, true).await?;
            // Until then the file stays: it is what remembers them.
            tokio::time::sleep(Duration::from_millis(BURIALS_AGAIN_MS)).await;
            self.sign_all_off(&known, false).await?;
        }
        if strangers > 0 && self.dead.age() < Duration::from_secs(JOURNAL_KEPT_SECONDS) {
            return known.iter().try_for_each(|(clients, _)| self.dead.forget(clients.place)).map_err(Cut::Fault);
        }
        self.dead.delete().map_err(Cut::Fault)
    }

    /// Has every place told of all its clients, side by side: one that is down keeps nobody else waiting.
    async fn sign_all_off(&self, known: &[(Clients, LanePlace)], is_first: bool) -> Result<(), Cut> {
        let all = known.iter().map(|(clients, place)| self.sign_off(clients, *place, is_first));
        join_all(all).await.into_iter().collect()
    }

    /// Counts clients of an app server that is not configured.
    fn no_upstream(&self, Clients { url, count, .. }: &Clients) -> u64 {
        self.common.state.journal(|info| info.strangers += count);
        let journal = self.dead.path().display();
        let days = JOURNAL_KEPT_SECONDS / (24 * 60 * 60);
        warn!(%journal, "{count} clients of a process that was killed leak at {url}: no upstream has this url; the journal is kept for {days} days, in case it is another node's, and may be deleted");
        *count
    }

    /// Has one place told of all its clients.
    async fn sign_off(&self, clients: &Clients, to: LanePlace, is_first: bool) -> Result<(), Cut> {
        let turn = self.common.turn(to);
        let _turn = turn.acquire().await;
        let mut told = 0;
        let mut pages = self.dead.ids(clients.place);
        loop {
            // One page for each shard that can take it, and the next when all are done.
            let mut under_way = Vec::new();
            for page in pages.by_ref().take(self.common.shards.len()) {
                let ids = page.map_err(Cut::Fault)?;
                let count = ids.len() as u64;
                under_way.push((self.order(to, ids).await?, count));
            }
            if under_way.is_empty() {
                if is_first {
                    info!(url = clients.url, "{told} clients of a process that was killed are signed off");
                }
                return Ok(());
            }
            for (answer, count) in under_way {
                // A shard that ends answers nothing, or what it could not see to the end.
                if answer.await.is_err() || self.common.state.stopping.get() {
                    return Err(Cut::Stopping);
                }
                told += count;
                if is_first {
                    self.common.state.journal(|info| {
                        info.waiting -= count;
                        info.signed_off += count;
                    });
                }
            }
        }
    }

    async fn order(&self, place: LanePlace, ids: Vec<OriginId>) -> Result<oneshot::Receiver<()>, Cut> {
        let Common { shards, next, .. } = &*self.common;
        let shard = &shards[next.get() % shards.len()];
        next.set(next.get().wrapping_add(1));
        let (answer, answered) = oneshot::channel();
        match send_order(&shard.orders, ShardOrder::Bury { place, ids, answer }, ORDER_TRIES).await {
            Ok(()) => Ok(answered),
            Err(Unsent::Full(_)) => Err(Cut::Fault(io::Error::other("a shard takes no orders"))),
            Err(Unsent::Closed(_)) => Err(Cut::Stopping),
        }
    }
}

/// Where this node reaches those clients' app server: the upstream of the same name if it still has the url, or any other that has.
fn place_of(upstreams: &Upstreams, clients: &Clients) -> Option<LanePlace> {
    let urls = |index: usize| upstreams.0[index].urls.iter().position(|target| *target.text == *clients.url);
    let mut order: Vec<usize> = (0..upstreams.0.len()).collect();
    order.sort_by_key(|index| *upstreams.0[*index].name != *clients.upstream);
    order
        .into_iter()
        .find_map(|index| Some(LanePlace { upstream: UpstreamIndex(index as u8), url: urls(index)? as u8 }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Machine, RunFlags};
    use crate::ids::{Serial, ShardId};

    #[test]
    fn a_volume_that_is_full_costs_the_own_journal_only() {
        // In memory a file that is larger than the whole volume is refused at once, without being filled.
        let folder = tempfile::tempdir_in("/dev/shm").expect("every Linux has it");
        let volume = rustix::fs::statvfs(folder.path()).unwrap();
        let upstreams: String = (0..16)
            .map(|port| format!("[[upstream]]\nurl = \"http://a:{}\"\nfilter = \"vm_id == 'A'\"\n", port + 1))
            .collect();
        let text = format!("shards = 2\njournal = {:?}\n{upstreams}", folder.path());
        let mut config =
            Config::resolve(Some(("node.toml", &text)), std::iter::empty(), &RunFlags::default(), &Machine::probe())
                .unwrap();
        let key = |byte| OriginKey([byte; 16]);

        config.limits.max_clients = 1000;
        let killed = open(&config, key(1), 1).unwrap();
        let part = killed.journal.as_ref().unwrap().of_shard(ShardId(0));
        part.live(LanePlace { upstream: UpstreamIndex(3), url: 0 }, 7, Serial(1));
        drop((killed, part));

        config.limits.max_clients = u32::MAX;
        let bytes = 2 * journal::part_bytes(shard::places(config.connections_per_shard()), 16) as u64;
        assert!(bytes > 2 * volume.f_blocks * volume.f_frsize);
        let opened = open(&config, key(2), 2).unwrap();
        assert!(opened.journal.is_none());
        assert_eq!(opened.info.errors, 1);
        let (clients, damaged) = opened.dead[0].clients().unwrap();
        assert_eq!((opened.dead.len(), clients[0].count, clients[0].url.as_str(), damaged), (1, 1, "http://a:4", 0));
        let mut folder = opened.folder.expect("it is looked at later, too");
        assert!(folder.look().unwrap().dead.is_empty());
    }
}
