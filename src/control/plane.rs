//! The control thread: a task for each lane that keeps it dialled, one that reads the shards' reports, one for the admin endpoint.
use super::admin;
use super::backoff::Backoff;
use super::credentials::Credentials;
use super::dial::{Dialled, dial};
use super::picture::{Ground, Picture};
use super::{lane_protocol, random};
use crate::bus::{ControlOrder, Receiver, Sender, ShardOrder, Unsent};
use crate::config::Config;
use crate::ids::{HubId, LaneKey};
use crate::limits::STOP_MS;
use crate::metrics::process::ProcessStats;
use crate::metrics::{LaneInfo, LaneState, Published};
use crate::proto::signalr::handshake::Protocol;
use core::cell::{Cell, RefCell};
use core::time::Duration;
use rustls::ClientConfig;
use std::collections::HashMap;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

/// What the owner of a node tells its control plane.
pub(super) enum Command {
    /// Read certificates and keys again.
    Reload,
    Stop,
}

/// A shard as the control plane sees it.
#[derive(Clone)]
pub(super) struct ShardHandle {
    pub(super) orders: Sender<ShardOrder>,
    pub(super) published: Arc<Published>,
    pub(super) lanes: Vec<LaneKey>,
}

pub(super) struct Plane {
    pub(super) config: Config,
    pub(super) shards: Vec<ShardHandle>,
    pub(super) from_shards: Receiver<ControlOrder>,
    pub(super) commanded: mpsc::UnboundedReceiver<Command>,
    pub(super) admin_listener: TcpListener,
    pub(super) credentials: Credentials,
    /// For dialling an https app server.
    pub(super) lane_tls: Option<Arc<ClientConfig>>,
    pub(super) ground: Ground,
}

/// What the tasks of the control thread share.
pub(super) struct State {
    pub(super) published: Vec<Arc<Published>>,
    pub(super) lanes: RefCell<HashMap<LaneKey, LaneState>>,
    /// Why a lane could not be dialled the last time one could not; empty once one could.
    pub(super) trouble: RefCell<String>,
    pub(super) stopping: Cell<bool>,
    pub(super) process: Arc<ProcessStats>,
}

impl State {
    pub(super) fn lane_infos(&self) -> Vec<LaneInfo> {
        let mut infos: Vec<LaneInfo> = self
            .lanes
            .borrow()
            .iter()
            .map(|(lane, state)| LaneInfo { shard: u16::from(lane.shard.0), lane: lane.index.0, state: *state })
            .collect();
        infos.sort_by_key(|info| (info.shard, info.lane));
        infos
    }

    fn set(&self, lane: LaneKey, state: LaneState) {
        self.lanes.borrow_mut().insert(lane, state);
    }
}

impl Plane {
    pub(super) fn run(self) {
        tokio_uring::start(self.live());
    }

    async fn live(self) {
        let Plane { config, shards, from_shards, mut commanded, admin_listener, credentials, lane_tls, ground } = self;
        let state = Rc::new(State {
            published: shards.iter().map(|shard| shard.published.clone()).collect(),
            lanes: RefCell::default(),
            trouble: RefCell::default(),
            stopping: Cell::new(false),
            process: Arc::default(),
        });
        let upstream = Rc::new(Upstream { protocol: lane_protocol(&config), tls: lane_tls, config });
        let mut losses = HashMap::new();
        for shard in &shards {
            for lane in &shard.lanes {
                let (lost, losing) = mpsc::channel(4);
                losses.insert(*lane, lost);
                tokio_uring::spawn(keep_lane(*lane, upstream.clone(), shard.orders.clone(), losing, state.clone()));
            }
        }
        let orders = shards.iter().map(|shard| shard.orders.clone()).collect();
        let picture = Rc::new(Picture::new(ground, orders, state.clone()));
        tokio_uring::spawn(admin::serve(admin_listener, state.clone(), picture));
        let (ended, mut ending) = mpsc::channel(shards.len().max(1));
        tokio_uring::spawn(read_reports(from_shards, losses, ended));

        let (ask, asked) = mpsc::channel(1);
        tokio_uring::spawn(credentials.watch(shards.clone(), asked));

        // The sender is the node's handle: without it nobody can ask for anything any more.
        while let Some(Command::Reload) = commanded.recv().await {
            // Asked twice is asked once.
            let _ = ask.try_send(());
        }
        state.stopping.set(true);
        let mut told = 0;
        for shard in &shards {
            // One that never started, or is gone, says no goodbye.
            told += usize::from(send_order(&shard.orders, ShardOrder::Stop).await);
        }
        let all_ended = async {
            for _ in 0..told {
                if ending.recv().await.is_none() {
                    break;
                }
            }
        };
        if tokio::time::timeout(Duration::from_millis(STOP_MS + 1000), all_ended).await.is_err() {
            warn!("not every shard ended in time");
        }
    }
}

/// What every lane is dialled with.
struct Upstream {
    config: Config,
    protocol: Protocol,
    tls: Option<Arc<ClientConfig>>,
}

/// Dials a lane, hands it to its shard, waits for its loss; for ever.
async fn keep_lane(
    lane: LaneKey,
    upstream: Rc<Upstream>,
    orders: Sender<ShardOrder>,
    mut losing: mpsc::Receiver<()>,
    state: Rc<State>,
) {
    let Upstream { config, protocol, tls } = &*upstream;
    let url = &config.upstreams[0].urls[0].url;
    let mut backoff = Backoff::default();
    let mut last_error = String::new();
    loop {
        state.set(lane, LaneState::Connecting);
        match dial(url, &config.hub_path, *protocol, tls.as_ref()).await {
            Ok(dialled) => {
                backoff.succeeded();
                last_error.clear();
                state.trouble.borrow_mut().clear();
                let Ok(name) = random() else {
                    error!("the operating system gives no random numbers");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                };
                let hub_id = HubId::from_random(name);
                let Dialled { socket, tls, early } = dialled;
                let order = ShardOrder::LaneUp { index: lane.index, socket, hub_id, early, tls };
                if !send_order(&orders, order).await {
                    return;
                }
                state.set(lane, LaneState::Up);
                let Some(()) = losing.recv().await else { return };
                state.set(lane, LaneState::Waiting);
                tokio::time::sleep(Backoff::lost(jitter())).await;
            }
            Err(error) => {
                state.set(lane, LaneState::Waiting);
                let wait = backoff.failed(jitter());
                state.trouble.borrow_mut().clone_from(&error);
                // Once per reason, not once per attempt.
                if error != last_error {
                    warn!(%lane, upstream = %url.text, "cannot dial: {error}; trying again, at most every 10 s");
                    last_error = error;
                }
                tokio::time::sleep(wait).await;
            }
        }
        if state.stopping.get() {
            return;
        }
    }
}

fn jitter() -> u64 {
    random().map(u64::from_ne_bytes).unwrap_or_default()
}

/// Puts an order into a shard's queue, waiting while it is full. False if the shard has ended.
pub(super) async fn send_order(orders: &Sender<ShardOrder>, mut order: ShardOrder) -> bool {
    for _ in 0..1000 {
        match orders.offer(order) {
            Ok(()) => return true,
            Err(Unsent::Closed(_)) => return false,
            Err(Unsent::Full(back)) => order = back,
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

/// Passes the shards' reports on to whom they concern.
async fn read_reports(
    reports: Receiver<ControlOrder>,
    losses: HashMap<LaneKey, mpsc::Sender<()>>,
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
                ControlOrder::Stopped { shard } => {
                    info!(shard = shard.0, "shard stopped");
                    let _ = ended.send(()).await;
                }
            }
        }
    }
}
