//! After a crash (contract 6.4): whom the journals of dead processes name, their app servers are told of over this node's lanes.
//!
//! A dead process's file stays until everybody in it has been told of, so that what this process does not finish the next one does. To
//! tell of somebody twice is harmless (contract 2.5).
use super::plane::{ORDER_TRIES, ShardHandle, State, send_order};
use super::upstreams::Upstreams;
use crate::bus::ShardOrder;
use crate::config::Config;
use crate::ids::{LanePlace, OriginId, OriginKey, UpstreamIndex};
use crate::journal::{self, Clients, Dead, Folder, Found, Journal};
use crate::limits::{BURIALS_REST_MS, JOURNAL_KEPT_SECONDS, JOURNAL_LOOK_MS};
use crate::metrics::JournalInfo;
use crate::shard;
use core::cell::Cell;
use core::time::Duration;
use futures_util::future::join_all;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::rc::Rc;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

/// What a start finds in the folder of journals.
#[derive(Default)]
pub(super) struct Opened {
    /// None: none is configured, or there is no room for one.
    pub(super) journal: Option<Journal>,
    /// Where it is, and what else is there.
    pub(super) folder: Option<Folder>,
    pub(super) dead: Vec<Dead>,
    pub(super) info: JournalInfo,
}

/// Opens what is configured. A folder that is wrong ends the start, as any wrong setting does; a disk that is full does not: clients that
/// are served and perhaps leak later are better than none.
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
        Ok((journal, opened, Found { dead, locked, unreadable })) => {
            info!(folder = %folder.display(), others = locked, "journal open");
            let info = JournalInfo { errors: unreadable, ..JournalInfo::default() };
            Ok(Opened { journal: Some(journal), folder: Some(opened), dead, info })
        }
        Err(fault) if matches!(fault.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            error!(folder = %folder.display(), "no room for the journal ({fault}); the node runs without one: if it is killed, app servers keep what they have of its clients");
            Ok(Opened { info: JournalInfo { errors: 1, ..JournalInfo::default() }, ..Opened::default() })
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
    recover(dead, &shards, &state);
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
                recover(dead, &shards, &state);
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

/// For each of them a task.
fn recover(dead: Vec<Dead>, shards: &[ShardHandle], state: &Rc<State>) {
    for dead in dead {
        let recovery =
            Recovery { dead: Rc::new(dead), shards: shards.to_vec().into(), state: state.clone(), next: Cell::new(0) };
        tokio_uring::spawn(recovery.run());
    }
}

struct Recovery {
    dead: Rc<Dead>,
    shards: Rc<[ShardHandle]>,
    state: Rc<State>,
    /// The shard whose turn it is.
    next: Cell<usize>,
}

/// Why a recovery does not go on.
enum Cut {
    /// The node stops: the next process goes on.
    Stopping,
    /// The file cannot be read or written any more.
    File(io::Error),
}

impl Recovery {
    async fn run(self) {
        if let Err(Cut::File(fault)) = self.all().await {
            self.state.journal(|info| info.errors += 1);
            let journal = self.dead.path().display();
            error!(%journal, "the journal of a process that was killed cannot be worked off, the next start tries again: {fault}");
        }
    }

    async fn all(&self) -> Result<(), Cut> {
        let (all, damaged) = self.dead.clients().map_err(Cut::File)?;
        let journal = self.dead.path().display();
        if damaged > 0 {
            self.state.journal(|info| info.damaged += damaged);
            warn!(%journal, "{damaged} of its entries are damaged: their clients cannot be signed off");
        }
        let (mut known, mut strangers) = (Vec::new(), 0);
        for clients in all {
            match place_of(&self.state.upstreams, &clients) {
                Some(place) => known.push((clients, place)),
                None => strangers += self.no_upstream(&clients),
            }
        }
        for (Clients { url, count, .. }, _) in &known {
            self.state.journal(|info| info.waiting += count);
            let pid = self.dead.pid();
            warn!(
                pid,
                "the previous process ended without saying goodbye: {count} clients are being signed off at {url}"
            );
        }
        if !known.is_empty() {
            tokio::time::sleep(Duration::from_millis(BURIALS_REST_MS)).await;
            // Of one place after the other nobody would hear while the first of them is down.
            for done in join_all(known.iter().map(|(clients, place)| self.sign_off(clients, *place))).await {
                done?;
            }
        }
        if strangers > 0 && self.dead.age() < Duration::from_secs(JOURNAL_KEPT_SECONDS) {
            return known.iter().try_for_each(|(clients, _)| self.dead.forget(clients.place)).map_err(Cut::File);
        }
        self.dead.delete().map_err(Cut::File)
    }

    /// Counts clients of an app server that is not configured.
    fn no_upstream(&self, Clients { url, count, .. }: &Clients) -> u64 {
        self.state.journal(|info| info.strangers += count);
        let journal = self.dead.path().display();
        let days = JOURNAL_KEPT_SECONDS / (24 * 60 * 60);
        warn!(%journal, "{count} clients of a process that was killed leak at {url}: no upstream has this url; the journal is kept for {days} days, in case it is another node's, and may be deleted");
        *count
    }

    /// Has one place told of all its clients.
    async fn sign_off(&self, clients: &Clients, to: LanePlace) -> Result<(), Cut> {
        let mut told = 0;
        let mut pages = self.dead.ids(clients.place);
        loop {
            // One page for each shard that can take it, and the next when all are done.
            let mut under_way = Vec::new();
            for page in pages.by_ref().take(self.shards.len()) {
                let ids = page.map_err(Cut::File)?;
                let count = ids.len() as u64;
                under_way.push((self.order(to, ids).await?, count));
            }
            if under_way.is_empty() {
                info!(url = clients.url, "{told} clients of a process that was killed are signed off");
                return Ok(());
            }
            for (answer, count) in under_way {
                // A shard that ends answers nothing, or what it could not see to the end.
                if answer.await.is_err() || self.state.stopping.get() {
                    return Err(Cut::Stopping);
                }
                told += count;
                self.state.journal(|info| {
                    info.waiting -= count;
                    info.signed_off += count;
                });
            }
        }
    }

    async fn order(&self, place: LanePlace, ids: Vec<OriginId>) -> Result<oneshot::Receiver<()>, Cut> {
        let shard = &self.shards[self.next.get() % self.shards.len()];
        self.next.set(self.next.get() + 1);
        let (answer, answered) = oneshot::channel();
        match send_order(&shard.orders, ShardOrder::Bury { place, ids, answer }, ORDER_TRIES).await {
            Ok(()) => Ok(answered),
            Err(_) => Err(Cut::Stopping),
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
