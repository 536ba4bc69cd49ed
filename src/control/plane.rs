//! The control thread: a task for each lane that keeps it dialled, one that reads the shards' reports, one for the admin endpoint.
use super::admin;
use super::backoff::Backoff;
use super::credentials::Credentials;
use super::dial::{Dialled, dial};
use super::leave::{Drained, Ending, Farewell, accept_anew, await_successor};
use super::listen::Files;
use super::picture::{Ground, Picture};
use super::process::Meter;
use super::reload::{Reload, Reloader};
use super::take_over::Estate;
use super::upstreams::{Prepared, Upstreams, Way};
use super::{random, recovery};
use crate::bus::{ControlOrder, Heir, Receiver, Sender, ShardOrder, Unsent};
use crate::config::{Config, Running};
use crate::ids::{LaneKey, LanePlace, UpstreamIndex};
use crate::journal::{Dead, Folder};
use crate::limits::USAGE_LOOK_MS;
use crate::metrics::process::{ProcessStats, Usage};
use crate::metrics::{JournalInfo, LaneInfo, LaneState, NodeInfo, Published, Reloads};
use crate::session::routing::UpstreamKind;
use core::cell::{Cell, RefCell};
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info, warn};

/// What the owner of a node tells its control plane.
pub(super) enum Command {
    /// The configuration was read again.
    Reload(Reload),
    /// Another process had the listening sockets, too, and leaves or has gone.
    Accept,
    /// Send everybody away, and end.
    Drain,
    /// Another process has the same listening sockets, and stays: end without touching them.
    Yield,
    /// End.
    Stop,
}

/// A shard as the control plane sees it.
#[derive(Clone)]
pub(super) struct ShardHandle {
    pub(super) orders: Sender<ShardOrder>,
    pub(super) published: Arc<Published>,
    pub(super) lanes: Vec<(LaneKey, LanePlace)>,
}

pub(super) struct Plane {
    pub(super) config: Config,
    pub(super) shards: Vec<ShardHandle>,
    pub(super) from_shards: Receiver<ControlOrder>,
    pub(super) commanded: mpsc::UnboundedReceiver<Command>,
    pub(super) admin_listener: TcpListener,
    /// Another process has the listening sockets, too.
    pub(super) has_taken_over: bool,
    /// Then this hears when every shard reaches an app server.
    pub(super) serves: std::sync::mpsc::Sender<()>,
    /// Where a successor comes, and what it gets.
    pub(super) successor: Option<(UnixListener, Estate)>,
    pub(super) files: Files,
    /// When the node will have ended; known from the moment on in which it begins to.
    pub(super) deadline: watch::Sender<Option<Instant>>,
    pub(super) credentials: Credentials,
    /// For dialling lanes.
    pub(super) prepared: Prepared,
    /// Written here once a second.
    pub(super) process: Arc<ProcessStats>,
    pub(super) ground: Ground,
    /// Where journals are, of whom some are there, and what is known of them at the start.
    pub(super) journals: Option<Folder>,
    pub(super) dead: Vec<Dead>,
    pub(super) journal: JournalInfo,
}

/// What the tasks of the control thread share.
pub(super) struct State {
    pub(super) published: Vec<Arc<Published>>,
    lanes: RefCell<BTreeMap<LaneKey, Lane>>,
    pub(super) upstreams: Upstreams,
    pub(super) meter: Meter,
    pub(super) stopping: Cell<bool>,
    journal: Cell<JournalInfo>,
    /// Lanes that are lost are not dialled again.
    ending: Cell<bool>,
    reloads: Cell<Reloads>,
}

#[derive(Clone, Copy)]
struct Lane {
    place: LanePlace,
    state: LaneState,
}

/// A url of an upstream, for those who ask whether the node is ready.
pub(super) struct UrlInfo<'a> {
    pub(super) upstream: &'a str,
    pub(super) url: &'a str,
    /// At least one lane to it is.
    pub(super) is_up: bool,
    /// What dialling it failed of the last time, until it succeeds.
    pub(super) trouble: Option<String>,
}

impl State {
    /// In the order of shards and lanes.
    pub(super) fn lane_infos(&self) -> Vec<LaneInfo> {
        let lanes = self.lanes.borrow();
        let info = |(key, lane): (&LaneKey, &Lane)| {
            let (upstream, target) = self.upstreams.of(lane.place);
            LaneInfo {
                shard: u16::from(key.shard.0),
                lane: key.index.0,
                upstream: upstream.name.clone(),
                url: target.text.clone(),
                state: lane.state,
            }
        };
        lanes.iter().map(info).collect()
    }

    /// In the order of the configuration.
    pub(super) fn url_infos(&self) -> Vec<UrlInfo<'_>> {
        let lanes = self.lanes.borrow();
        let mut infos = Vec::new();
        for (index, upstream) in self.upstreams.0.iter().enumerate() {
            for (url, target) in upstream.urls.iter().enumerate() {
                let place = LanePlace { upstream: UpstreamIndex(index as u8), url: url as u8 };
                infos.push(UrlInfo {
                    upstream: &upstream.name,
                    url: &target.text,
                    is_up: lanes.values().any(|lane| lane.place == place && lane.state == LaneState::Up),
                    trouble: target.trouble(),
                });
            }
        }
        infos
    }

    /// Shards from which no lane to an app server is up. An Observer never counts: it answers nobody.
    pub(super) fn unserved(&self) -> Vec<u16> {
        let lanes = self.lanes.borrow();
        let serves = |lane: &Lane| {
            lane.state == LaneState::Up && self.upstreams.of(lane.place).0.kind == UpstreamKind::AppServer
        };
        let served: BTreeSet<u16> =
            lanes.iter().filter(|(_, lane)| serves(lane)).map(|(key, _)| u16::from(key.shard.0)).collect();
        (0..self.published.len() as u16).filter(|shard| !served.contains(shard)).collect()
    }

    pub(super) fn node_info(&self) -> NodeInfo {
        NodeInfo {
            upstreams: self.upstreams.0.iter().map(|upstream| upstream.name.clone()).collect(),
            lanes: self.lane_infos(),
            reloads: self.reloads.get(),
            process: self.meter.info(),
            journal: self.journal.get(),
        }
    }

    pub(super) fn journal(&self, change: impl FnOnce(&mut JournalInfo)) {
        let mut info = self.journal.get();
        change(&mut info);
        self.journal.set(info);
    }

    /// Counts what came of reading the configuration again.
    pub(super) fn reloaded(&self, holds: bool) {
        let before = self.reloads.get();
        self.reloads.set(match holds {
            true => Reloads { applied: before.applied + 1, last_seconds: unix_seconds(), ..before },
            false => Reloads { refused: before.refused + 1, ..before },
        });
    }

    fn set(&self, lane: LaneKey, place: LanePlace, state: LaneState) {
        self.lanes.borrow_mut().insert(lane, Lane { place, state });
    }
}

impl Plane {
    /// Runs until it is told to stop, and says first whether it can run.
    pub(super) fn run(self, ready: impl FnOnce(io::Result<()>)) {
        match tokio_uring::Runtime::new(&tokio_uring::builder()) {
            Ok(runtime) => {
                ready(Ok(()));
                runtime.block_on(self.live());
            }
            Err(error) => {
                // Nobody else could end them.
                let order = || match self.has_taken_over {
                    true => ShardOrder::Drain { window: Duration::ZERO, heir: Heir::Process },
                    false => ShardOrder::Stop,
                };
                for shard in &self.shards {
                    let _ = shard.orders.send(order());
                }
                ready(Err(error));
            }
        }
    }

    async fn live(self) {
        let Plane {
            config,
            shards,
            from_shards,
            mut commanded,
            admin_listener,
            has_taken_over,
            serves,
            successor,
            files,
            deadline,
            credentials,
            prepared,
            process,
            ground,
            journals,
            dead,
            journal,
        } = self;
        let state = Rc::new(State {
            published: shards.iter().map(|shard| shard.published.clone()).collect(),
            lanes: RefCell::default(),
            upstreams: Upstreams::new(&config, prepared),
            meter: Meter::new(),
            stopping: Cell::new(false),
            journal: Cell::new(journal),
            ending: Cell::new(false),
            reloads: Cell::new(Reloads { last_seconds: unix_seconds(), ..Reloads::default() }),
        });
        let hub_path: Rc<str> = config.hub_path.as_str().into();
        let mut losses = HashMap::new();
        for shard in &shards {
            for (lane, place) in &shard.lanes {
                let (lost, losing) = mpsc::channel(4);
                losses.insert(*lane, lost);
                let keeper = Keeper { lane: *lane, place: *place, orders: shard.orders.clone(), state: state.clone() };
                tokio_uring::spawn(keeper.keep(hub_path.clone(), losing));
            }
        }
        if has_taken_over {
            tokio_uring::spawn(await_lanes(state.clone(), serves));
        }
        if let Some(folder) = journals {
            tokio_uring::spawn(recovery::keep_looking(folder, dead, shards.clone(), state.clone()));
        }
        let orders = shards.iter().map(|shard| shard.orders.clone()).collect();
        let picture = Rc::new(Picture::new(ground, orders, process.clone(), state.clone()));
        tokio_uring::spawn(measure(process, state.clone()));
        let admin = tokio_uring::spawn(admin::serve(admin_listener, state.clone(), picture));
        let (ended, ending) = mpsc::channel(shards.len().max(1));
        let (release, released) = mpsc::channel(shards.len().max(1));
        tokio_uring::spawn(read_reports(from_shards, losses, release, ended));

        let running = Rc::new(RefCell::new(Running::new(config)));
        let (ask, asked) = mpsc::unbounded_channel();
        let reloader = Reloader { running: running.clone(), credentials, shards: shards.clone(), state: state.clone() };
        tokio_uring::spawn(reloader.run(asked));

        // A node without a successor keeps the sender, so that nobody comes.
        let (inherit, mut inherited) = mpsc::channel(1);
        let waits = successor.map(|(listener, estate)| {
            tokio_uring::spawn(await_successor(
                listener,
                Arc::new(estate),
                inherit.clone(),
                files.clone(),
                shards.clone(),
            ))
        });
        let mut heir_waits = None;
        let farewell = loop {
            let window =
                |heir| Farewell { delay: Duration::ZERO, window: running.borrow().config().drain_window, heir };
            tokio::select! {
                command = commanded.recv() => match command {
                    Some(Command::Reload(reload)) => drop(ask.send(reload)),
                    Some(Command::Accept) => drop(tokio_uring::spawn(accept_anew(shards.clone()))),
                    Some(Command::Drain) => {
                        let delay = running.borrow().config().drain_delay;
                        break Some(Farewell { delay, ..window(Heir::None) });
                    }
                    Some(Command::Yield) => break Some(Farewell { window: Duration::ZERO, ..window(Heir::Process) }),
                    // The sender is the node's handle: without it nobody can ask for anything any more.
                    Some(Command::Stop) | None => break None,
                },
                Some(left) = inherited.recv() => {
                    heir_waits = Some(left);
                    break Some(window(Heir::Process));
                }
            }
        };
        state.stopping.set(true);
        // With it go its copies of the listening sockets, which would keep their queues open when the shards close theirs.
        if let Some(waits) = waits {
            waits.abort();
            let _ = waits.await;
        }
        let mut shards = Ending::new(shards, released, ending, deadline);
        let (mut farewell, mut admin) = (farewell, Some(admin));
        let all_ended = loop {
            let Some(words) = farewell else { break false };
            if words.heir == Heir::Process {
                // Who asks how the node is, asks the other one from now on.
                if let Some(admin) = admin.take() {
                    admin.abort();
                    let _ = admin.await;
                }
                files.leave();
            }
            match shards.drain(words, &mut commanded, &mut inherited, heir_waits.take()).await {
                Drained::All => break true,
                Drained::No => break false,
                Drained::Inherited { waits, window } => {
                    heir_waits = Some(waits);
                    farewell = Some(Farewell { delay: Duration::ZERO, window, heir: Heir::Process });
                }
            }
        };
        state.ending.set(true);
        if !all_ended {
            shards.stop().await;
        }
    }
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Keeps one lane dialled.
struct Keeper {
    lane: LaneKey,
    place: LanePlace,
    orders: Sender<ShardOrder>,
    state: Rc<State>,
}

impl Keeper {
    /// Dials the lane, hands it to its shard, waits for its loss; for ever.
    async fn keep(self, hub_path: Rc<str>, mut losing: mpsc::Receiver<()>) {
        let (upstream, target) = self.state.upstreams.of(self.place);
        let mut backoff = Backoff::default();
        loop {
            self.is(LaneState::Waiting);
            target.admitted().await;
            self.is(LaneState::Connecting);
            let Way { url, protocol, tls } = upstream.way(target);
            match dial(url, &hub_path, protocol, tls.as_ref()).await {
                Ok(dialled) => {
                    upstream.succeeded(target);
                    let Ok(hub_id) = upstream.hub_id() else {
                        error!("the operating system gives no random numbers");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        continue;
                    };
                    let Dialled { socket, tls, early } = dialled;
                    let order = ShardOrder::LaneUp { index: self.lane.index, socket, hub_id, early, tls };
                    match send_order(&self.orders, order, ORDER_TRIES).await {
                        Ok(()) => {}
                        Err(Unsent::Closed(_)) => return,
                        Err(Unsent::Full(order)) => {
                            // The socket closes with it.
                            drop(order);
                            self.is(LaneState::Waiting);
                            let (shard, lane) = (self.lane.shard.0, self.lane.index.0);
                            warn!(shard, lane, "a shard takes no orders; its lane is closed and will be dialled again");
                            tokio::time::sleep(backoff.failed(jitter())).await;
                            continue;
                        }
                    }
                    self.is(LaneState::Up);
                    let since = Instant::now();
                    let Some(()) = losing.recv().await else { return };
                    self.is(LaneState::Waiting);
                    tokio::time::sleep(backoff.lost(since.elapsed(), jitter())).await;
                }
                Err(error) => {
                    self.is(LaneState::Waiting);
                    upstream.failed(target, error, jitter());
                    tokio::time::sleep(backoff.failed(jitter())).await;
                }
            }
            if self.state.ending.get() {
                return;
            }
        }
    }

    fn is(&self, state: LaneState) {
        self.state.set(self.lane, self.place, state);
    }
}

/// Waits until every shard reaches an app server.
async fn await_lanes(state: Rc<State>, serves: std::sync::mpsc::Sender<()>) {
    while !state.unserved().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Who does not listen any more has waited for too long.
    let _ = serves.send(());
}

/// Measures what the process uses, for ever.
async fn measure(stats: Arc<ProcessStats>, state: Rc<State>) {
    // Processors are measured over an interval, and that since the start is too short to mean anything.
    stats.set(Usage { process_cpu: None, total_cpu: None, ..state.meter.measure() });
    loop {
        tokio::time::sleep(Duration::from_millis(USAGE_LOOK_MS)).await;
        stats.set(state.meter.measure());
    }
}

fn jitter() -> u64 {
    random().map(u64::from_ne_bytes).unwrap_or_default()
}

/// How often a shard's queue is looked at before an order is given up: for ten seconds. A shard that does nothing for so long is stuck.
pub(super) const ORDER_TRIES: u32 = 1000;
const ORDER_TRY_MS: u64 = 10;

/// Puts an order into a shard's queue, waiting while it is full. Gives it back when it still is after so many tries, or when the shard
/// has ended.
pub(super) async fn send_order(
    orders: &Sender<ShardOrder>,
    mut order: ShardOrder,
    tries: u32,
) -> Result<(), Unsent<ShardOrder>> {
    for _ in 1..tries {
        match orders.offer(order) {
            Err(Unsent::Full(back)) => order = back,
            done => return done,
        }
        tokio::time::sleep(Duration::from_millis(ORDER_TRY_MS)).await;
    }
    orders.offer(order)
}

/// Passes the shards' reports on to whom they concern.
async fn read_reports(
    reports: Receiver<ControlOrder>,
    losses: HashMap<LaneKey, mpsc::Sender<()>>,
    released: mpsc::Sender<()>,
    ended: mpsc::Sender<()>,
) {
    let bell = match reports.bell().clone().into_async() {
        Ok(bell) => bell,
        Err(error) => return error!("the control plane cannot hear its shards: {error}"),
    };
    loop {
        let Ok(mut ringing) = bell.readable().await else { return };
        ringing.clear_ready();
        bell.get_ref().quiet();
        while let Some(report) = reports.try_next() {
            match report {
                ControlOrder::LaneLost { lane } => {
                    if let Some(lost) = losses.get(&lane) {
                        let _ = lost.send(()).await;
                    }
                }
                ControlOrder::Released { shard } => {
                    debug!(shard = shard.0, "shard listens no more");
                    let _ = released.send(()).await;
                }
                ControlOrder::Stopped { shard } => {
                    info!(shard = shard.0, "shard stopped");
                    let _ = ended.send(()).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus;
    use crate::limits::BUS_ORDERS;

    #[test]
    fn an_order_waits_for_room_and_comes_back_if_there_is_none_or_the_shard_has_ended() {
        let (orders, shard) = bus::channel().expect("a doorbell");
        while orders.send(ShardOrder::Stop).is_ok() {}
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            assert!(matches!(send_order(&orders, ShardOrder::Stop, 3).await, Err(Unsent::Full(ShardOrder::Stop))));
            let takes = async {
                tokio::time::sleep(Duration::from_millis(3 * ORDER_TRY_MS)).await;
                shard.try_next()
            };
            let (sent, taken) = tokio::join!(send_order(&orders, ShardOrder::Stop, ORDER_TRIES), takes);
            assert!(sent.is_ok() && taken.is_some());
            assert_eq!(core::iter::from_fn(|| shard.try_next()).count(), BUS_ORDERS);
            drop(shard);
            assert!(matches!(send_order(&orders, ShardOrder::Stop, 3).await, Err(Unsent::Closed(ShardOrder::Stop))));
        });
    }
}
