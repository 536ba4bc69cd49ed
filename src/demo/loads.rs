//! The demonstration's load: one load of the load tester for each node, so that a node that is lost ends its own and no other.
//!
//! The load tester's clients do not reconnect: a lost connection is one of its findings. So where clients were lost, because somebody
//! stopped their node, their load ends and a new one begins as soon as the node is ready again. What ended loads have
//! counted is added up; times are those of the last seconds.
use crate::limits::DEMO_LOAD_AGAIN_MS;
use crate::load::{self, Figures, Mark, Options, Profile, Rates, Running, Stage, Stats};
use serde::Serialize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use url::Url;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);
/// Rates are taken over about this time, or they would flicker.
const RATE: Duration = Duration::from_secs(1);
/// Times are shown of at least so long, and at most twice as long: of 100 clients that is some 500 messages.
const TIMES: Duration = Duration::from_secs(5);
/// Clients come one after the other, to be seen.
const RAMP_UP: Duration = Duration::from_secs(2);
/// Long enough that nobody sees the end; a load that has ended begins again.
const RUN: Duration = Duration::from_secs(24 * 60 * 60);
/// A node that loses clients by itself is not stormed.
const AGAIN: Duration = Duration::from_millis(DEMO_LOAD_AGAIN_MS);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub profile: Profile,
    /// Of all nodes together; 0: no load.
    pub clients: u32,
}

impl Wanted {
    /// The part of one of `nodes` nodes.
    fn share(self, node: usize, nodes: usize) -> Wanted {
        let (nodes, node) = (nodes as u32, node as u32);
        Wanted { clients: self.clients / nodes + u32::from(node < self.clients % nodes), ..self }
    }
}

/// What is seen.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    pub profile: Profile,
    /// Asked for, of all nodes together.
    pub clients: u32,
    pub nodes: Vec<NodeLoad>,
    /// Why there is no load although one was asked for, a sentence.
    pub trouble: Option<String>,
}

/// One node's part. Counts are sums since the demonstration began.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NodeLoad {
    /// Asked for.
    pub clients: u32,
    /// Connected at this moment.
    pub active: u64,
    /// Messages a second.
    pub sent_rate: f64,
    pub received_rate: f64,
    /// Milliseconds, of the last 5 to 10 seconds; null where nothing was measured.
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    pub sent: u64,
    pub received: u64,
    pub missed: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub misdelivered: u64,
    pub errors: u64,
    /// Connections that ended before the load did, as those of a node that is stopped.
    pub lost: u64,
    pub failed_connects: u64,
}

impl NodeLoad {
    fn add(&mut self, figures: &Figures) {
        self.sent += figures.sent.all();
        self.received += figures.responses;
        self.missed += figures.missed;
        self.duplicated += figures.duplicated;
        self.reordered += figures.reordered;
        self.misdelivered += figures.misdelivered;
        self.errors += figures.errors;
        self.lost += figures.disconnects;
        self.failed_connects += figures.failed_connects;
    }
}

/// Keeps the load that is asked for, on a thread of its own.
pub struct Loads {
    shared: Arc<Shared>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    orders: Mutex<Orders>,
    ordered: Condvar,
    shown: Mutex<Shown>,
}

struct Orders {
    wanted: Wanted,
    end: bool,
}

impl Loads {
    /// `is_ready` says whether this one of `nodes` would serve clients; it is asked for nodes that have no load at present.
    pub fn start(
        nodes: Vec<Url>,
        wanted: Wanted,
        is_ready: impl Fn(usize) -> bool + Send + 'static,
    ) -> std::io::Result<Loads> {
        let places = nodes.into_iter().map(Place::new).collect::<Vec<Place>>();
        let shown = Shown { profile: wanted.profile, clients: wanted.clients, nodes: shown_of(&places), trouble: None };
        let orders = Mutex::new(Orders { wanted, end: false });
        let shared = Arc::new(Shared { orders, ordered: Condvar::new(), shown: Mutex::new(shown) });
        let kept = shared.clone();
        let keeper = std::thread::Builder::new().name("demo-load".into()).spawn(move || kept.keep(places, is_ready))?;
        Ok(Loads { shared, keeper: Mutex::new(Some(keeper)) })
    }

    /// Replaces what was asked for before.
    pub fn want(&self, wanted: Wanted) {
        lock(&self.shared.orders).wanted = wanted;
        let mut shown = lock(&self.shared.shown);
        (shown.profile, shown.clients, shown.trouble) = (wanted.profile, wanted.clients, None);
        self.shared.ordered.notify_all();
    }

    pub fn shown(&self) -> Shown {
        lock(&self.shared.shown).clone()
    }

    /// Ends every load and waits for it: some seconds at most, and only where messages are under way.
    pub fn end(&self) {
        lock(&self.shared.orders).end = true;
        self.shared.ordered.notify_all();
        if let Some(keeper) = lock(&self.keeper).take() {
            let _ = keeper.join();
        }
    }
}

impl Shared {
    fn keep(&self, mut places: Vec<Place>, is_ready: impl Fn(usize) -> bool) {
        loop {
            let (wanted, end) = {
                let orders = lock(&self.orders);
                (orders.wanted, orders.end)
            };
            let count = places.len();
            for (index, place) in places.iter_mut().enumerate() {
                let share = wanted.share(index, count);
                let share = if end { Wanted { clients: 0, ..share } } else { share };
                if let Err(error) = place.look(share, || is_ready(index)) {
                    self.give_up(wanted, &error.to_string());
                }
            }
            if end && places.iter().all(|place| place.running.is_none()) {
                return;
            }
            lock(&self.shown).nodes = shown_of(&places);
            let orders = lock(&self.orders);
            // What is ordered meanwhile is seen at once; what was ordered before this line, after one look's time.
            drop(self.ordered.wait_timeout(orders, LOOK).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// A load that cannot be made is not tried again by itself, and says why.
    fn give_up(&self, wanted: Wanted, why: &str) {
        let mut orders = lock(&self.orders);
        if orders.wanted == wanted {
            orders.wanted.clients = 0;
            let mut shown = lock(&self.shown);
            shown.clients = 0;
            shown.trouble = Some(format!("No load of {} clients: {why}", wanted.clients));
        }
    }
}

/// A node's place for a load.
struct Place {
    node: Url,
    running: Option<Load>,
    /// Of loads that have ended.
    past: NodeLoad,
    shown: NodeLoad,
    began: Option<Instant>,
}

struct Load {
    of: Wanted,
    running: Running,
    /// It was told to end.
    stopped: bool,
    base: Stats,
    rates: Rates,
    /// Times are shown since the first of these; when the second is as old as `TIMES` it takes the place of the first.
    marks: [(Instant, Mark); 2],
}

impl Place {
    fn new(node: Url) -> Place {
        Place { node, running: None, past: NodeLoad::default(), shown: NodeLoad::default(), began: None }
    }

    /// Ends what is not wanted, begins what is.
    fn look(&mut self, wanted: Wanted, is_ready: impl Fn() -> bool) -> std::io::Result<()> {
        if let Some(load) = self.running.take_if(|load| load.running.is_finished()) {
            self.past.add(&load.running.finish().total);
        }
        if let Some(load) = &mut self.running {
            let stats = load.running.stats();
            let lost_some = stats.stage == Stage::Load && stats.total.active < stats.total.clients;
            if !load.stopped && (load.of != wanted || lost_some) {
                load.running.stop();
                load.stopped = true;
            }
            self.shown = load.show(&self.past, stats);
            return Ok(());
        }
        self.shown = NodeLoad { clients: wanted.clients, ..self.past.clone() };
        let is_early = self.began.is_some_and(|began| began.elapsed() < AGAIN);
        let was_lost = self.past.lost + self.past.failed_connects > 0;
        if wanted.clients == 0 || is_early && was_lost || !is_ready() {
            return Ok(());
        }
        let running = load::start(Options {
            clients: wanted.clients,
            ramp_up: RAMP_UP,
            ramp_down: Duration::ZERO,
            run: RUN,
            ..Options::new(self.node.clone(), wanted.profile)
        })?;
        self.began = Some(Instant::now());
        let base = running.stats();
        let marks = [0, 1].map(|_| (Instant::now(), Mark::default()));
        self.running = Some(Load { of: wanted, running, stopped: false, base, rates: Rates::default(), marks });
        Ok(())
    }
}

impl Load {
    fn show(&mut self, past: &NodeLoad, stats: Stats) -> NodeLoad {
        let mut shown = NodeLoad { clients: self.of.clients, active: stats.total.active, ..past.clone() };
        shown.add(&stats.total);
        let (latency, mark) = self.running.latency_since(&self.marks[0].1);
        shown.p50 = latency.map(|latency| latency.p50);
        shown.p99 = latency.map(|latency| latency.p99);
        if self.marks[1].0.elapsed() >= TIMES {
            self.marks.swap(0, 1);
            self.marks[1] = (Instant::now(), mark);
        }
        if stats.elapsed - self.base.elapsed >= RATE.as_secs_f64() {
            self.rates = stats.rates_since(&self.base);
            self.base = stats;
        }
        (shown.sent_rate, shown.received_rate) = (self.rates.sent, self.rates.received);
        shown
    }
}

fn shown_of(places: &[Place]) -> Vec<NodeLoad> {
    places.iter().map(|place| place.shown.clone()).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_shared_out_and_none_is_left_over() {
        let shares = |clients| {
            let wanted = Wanted { profile: Profile::Echo, clients };
            [0, 1].map(|node| wanted.share(node, 2).clients)
        };
        assert_eq!((shares(200), shares(5), shares(1), shares(0)), ([100, 100], [3, 2], [1, 0], [0, 0]));
    }
}
