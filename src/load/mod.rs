//! The load tester, `signalring load`: what dotNetify's own measures (contract 7.1), against any dotNetify server or proxy.
//!
//! It looks at a node from outside and so shares nothing with it: WebSockets, HTTP, TLS, JSON and MessagePack are libraries'. Nothing is
//! sampled: every message of every client is checked.
//!
//! ```text
//! command      the command: report, exit code        progress   what is seen while it runs
//! report       figures for programs and for people    tally      counts and histograms, one set a thread and server
//! mod          a run: phases, threads, live figures   client     one client's life
//! profile      what a client does and what it is owed sequence   missed, late, repeated
//! connection   SignalR's side of a client             dial       sockets, TLS, negotiation, upgrade
//! ```
//!
//! A run goes through phases, so that what is counted as missed was really owed: clients load; then nobody sends any more; then what is
//! under way may arrive; then the books are closed and clients leave one after the other.
//!
//! In a program: [`start`] an [`Options`], look at [`Running::stats`] from any thread, [`Running::stop`] it early or not,
//! [`Running::finish`] for the [`Report`].
mod client;
mod command;
mod connection;
mod dial;
mod options;
mod profile;
mod progress;
mod report;
mod sequence;
mod tally;

pub use command::{HELP, run};
pub use options::{Options, Profile, Protocol, server};
pub use report::{ClientAverages, Figures, Latency, Rates, Report, Sent, ServerFigures};

use serde::Serialize;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::limits::{LOAD_CLIENTS_MAX, LOAD_DESCRIPTORS_SLACK, LOAD_DIALLING_MAX, LOAD_SETTLE_TIMEOUT_MS};
use client::{Client, Standing};
use dial::Dialler;
use profile::{Rooms, Shared, Ticks};
use tally::{Tally, Times};

const SETTLE_TIMEOUT: Duration = Duration::from_millis(LOAD_SETTLE_TIMEOUT_MS);
/// Between two looks at what clients have reported.
const LOOK: Duration = Duration::from_millis(20);

/// What clients go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Loading,
    /// Nobody sends any more.
    Stopping,
    /// What is under way may arrive.
    Settling,
    /// One after the other, over this time.
    Leaving {
        since: Instant,
        over: Duration,
    },
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    RampUp,
    Load,
    Settling,
    RampDown,
    Done,
}

/// How many clients have come how far.
#[derive(Default)]
struct Gate {
    live: Count,
    stopped: Count,
    settled: Count,
}

#[derive(Default)]
struct Count(AtomicU32);

impl Count {
    fn add(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    fn subtract(&self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }

    fn get(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
}

impl Gate {
    fn leave(&self, standing: &Standing) {
        self.live.subtract();
        if standing.stopped {
            self.stopped.subtract();
        }
        if standing.settled {
            self.settled.subtract();
        }
    }
}

/// One server under load.
struct Server {
    name: String,
    dialler: Dialler,
    shared: Arc<Shared>,
    /// By thread.
    tallies: Vec<Mutex<Tally>>,
}

impl Server {
    fn tally(&self, thread: usize) -> MutexGuard<'_, Tally> {
        lock(&self.tallies[thread])
    }

    fn add_to(&self, sum: &mut Tally) {
        for tally in &self.tallies {
            sum.add(&lock(tally));
        }
    }
}

struct Run {
    options: Options,
    started: Instant,
    servers: Vec<Server>,
    phase: watch::Sender<Phase>,
    stage: Mutex<Stage>,
    gate: Gate,
    stop: Mutex<bool>,
    stop_asked: Condvar,
}

/// Live figures.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    pub stage: Stage,
    /// Seconds since the start.
    pub elapsed: f64,
    pub servers: Vec<ServerFigures>,
    pub total: Figures,
}

/// Everything that was measured up to a moment of one run. The default is its beginning.
#[derive(Clone, Default)]
pub struct Mark {
    round_trip: Times,
    delivery: Times,
}

impl Stats {
    /// Over the time from `earlier`, of the same run, to here.
    pub fn rates_since(&self, earlier: &Stats) -> Rates {
        Rates::between(&earlier.total, &self.total, self.elapsed - earlier.elapsed)
    }
}

/// A run under way, on threads of its own. Dropping it ends it as `stop` does, without waiting.
pub struct Running {
    run: Arc<Run>,
    conductor: Option<JoinHandle<Report>>,
}

/// Starts clients. Server names are looked up here, so this may block; fails where no client could ever connect: unknown names,
/// unreadable authorities, too few file descriptors.
pub fn start(options: Options) -> io::Result<Running> {
    let clients = options.clients_total();
    if options.servers.is_empty() || clients == 0 || clients > u64::from(LOAD_CLIENTS_MAX) {
        let text = format!("a load takes a server and 1 to {LOAD_CLIENTS_MAX} clients, not {clients}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let needed = clients + LOAD_DESCRIPTORS_SLACK;
    let open_files = rlimit::increase_nofile_limit(needed)?;
    if open_files < needed {
        let text = format!(
            "{clients} clients need {needed} open files, the limit is {open_files}; raise it (ulimit -n {needed}) or use fewer clients"
        );
        return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
    }
    let threads = usize::from(options.threads.max(1));
    let fault = |text| io::Error::new(io::ErrorKind::InvalidInput, text);
    let tls = dial::tls(options.ca_file.as_deref(), options.insecure).map_err(fault)?;
    // Two load testers may share a chat room.
    let mut id = [0; 4];
    getrandom::fill(&mut id).map_err(io::Error::other)?;
    let id = u32::from_ne_bytes(id);
    let servers = options.servers.iter().enumerate().map(|(index, url)| {
        let dialler = Dialler::new(url, &options, tls.clone()).map_err(fault)?;
        let rooms = match options.profile {
            Profile::ChatRoom => Rooms::new(options.clients, options.groups),
            _ => Rooms::default(),
        };
        let shared = Shared {
            ticks: Ticks::default(),
            rooms,
            same_clock: dialler.is_loopback(),
            id_prefix: format!("{id:08x}.{index}."),
        };
        let tallies = (0..threads).map(|_| Mutex::default()).collect();
        Ok(Server { name: url.as_str().trim_end_matches('/').to_owned(), dialler, shared: Arc::new(shared), tallies })
    });
    let servers = servers.collect::<io::Result<Vec<Server>>>()?;
    let run = Arc::new(Run {
        options,
        started: Instant::now(),
        servers,
        phase: watch::channel(Phase::Loading).0,
        stage: Mutex::new(Stage::RampUp),
        gate: Gate::default(),
        stop: Mutex::new(false),
        stop_asked: Condvar::new(),
    });
    let workers = (0..threads).map(|thread| {
        let run = run.clone();
        // Made here, so that a failure is an error of `start`.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new()
            .name(format!("load-{thread}"))
            .spawn(move || runtime.block_on(clients_of(run, thread)))
    });
    let workers = workers.collect::<io::Result<Vec<_>>>()?;
    let conducted = run.clone();
    let conductor = std::thread::Builder::new().name("load".into()).spawn(move || conduct(&conducted, workers))?;
    Ok(Running { run, conductor: Some(conductor) })
}

impl Running {
    /// What there is to see now.
    pub fn stats(&self) -> Stats {
        let (servers, total) = self.run.figures();
        Stats { stage: *lock(&self.run.stage), elapsed: self.run.started.elapsed().as_secs_f64(), servers, total }
    }

    /// What `Figures::latency` shows, of the time since `mark` only, and a mark for the next time.
    pub fn latency_since(&self, mark: &Mark) -> (Option<Latency>, Mark) {
        let mut sum = Tally::default();
        self.run.servers.iter().for_each(|server| server.add_to(&mut sum));
        let now = Mark { round_trip: sum.round_trip, delivery: sum.delivery };
        let since = |now: &Times, then: &Times| report::latency(now.clone().since(then).histogram());
        let latency = since(&now.round_trip, &mark.round_trip).or_else(|| since(&now.delivery, &mark.delivery));
        (latency, now)
    }

    /// Ends the load now: what is under way is awaited for a moment, then all clients leave at once.
    pub fn stop(&self) {
        self.run.stop();
    }

    /// `finish` would not block.
    pub fn is_finished(&self) -> bool {
        self.conductor.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the end.
    pub fn finish(mut self) -> Report {
        let conductor = self.conductor.take().expect("only `finish` takes it");
        conductor.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.run.stop();
    }
}

impl Run {
    fn stop(&self) {
        *lock(&self.stop) = true;
        self.stop_asked.notify_all();
    }

    /// This client's moment within a period.
    fn part(&self, period: Duration, index: u32) -> Duration {
        period.mul_f64(f64::from(index) / f64::from(self.options.clients))
    }

    /// Waits until `done`, at most until `deadline`. Returns whether the run was asked to stop.
    fn wait(&self, deadline: Option<Instant>, done: impl Fn() -> bool) -> bool {
        let mut stop = lock(&self.stop);
        while !*stop && !done() && deadline.is_none_or(|deadline| Instant::now() < deadline) {
            let left = deadline.map_or(LOOK, |deadline| deadline.saturating_duration_since(Instant::now()).min(LOOK));
            stop = self.stop_asked.wait_timeout(stop, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *stop
    }

    /// Like `wait`, but ends at the deadline only: what comes after a stop is short anyway.
    fn await_all(&self, count: &Count, patience: Duration) {
        let deadline = Instant::now() + patience;
        while count.get() < self.gate.live.get() && Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
    }

    fn enter(&self, stage: Stage) {
        *lock(&self.stage) = stage;
    }

    fn has_tried_all(&self) -> bool {
        let mut sum = Tally::default();
        self.servers.iter().for_each(|server| server.add_to(&mut sum));
        sum.connected + sum.failed_connects >= self.options.clients_total()
    }

    fn figures(&self) -> (Vec<ServerFigures>, Figures) {
        let clients = u64::from(self.options.clients);
        let mut total = Tally::default();
        let figures = |server: &Server| {
            let mut sum = Tally::default();
            server.add_to(&mut sum);
            total.add(&sum);
            ServerFigures { server: server.name.clone(), figures: Figures::of(clients, &sum) }
        };
        let servers = self.servers.iter().map(figures).collect();
        (servers, Figures::of(self.options.clients_total(), &total))
    }
}

/// Leads the run through its phases.
fn conduct(run: &Run, workers: Vec<JoinHandle<()>>) -> Report {
    let options = &run.options;
    let mut interrupted = run.wait(Some(run.started + options.ramp_up), || false);
    // Those that start last, and all without a ramp-up, have yet to connect.
    interrupted |= run.wait(None, || run.has_tried_all());
    run.enter(Stage::Load);
    let (load_begins, before) = (Instant::now(), run.figures());
    interrupted |= run.wait(Some(load_begins + options.run), || run.gate.live.get() == 0);
    let (load_seconds, after) = (load_begins.elapsed().as_secs_f64(), run.figures());

    run.enter(Stage::Settling);
    run.phase.send_replace(Phase::Stopping);
    run.await_all(&run.gate.stopped, SETTLE_TIMEOUT);
    run.servers.iter().for_each(|server| server.shared.ticks.load_ends());
    run.phase.send_replace(Phase::Settling);
    run.await_all(&run.gate.settled, SETTLE_TIMEOUT);

    run.enter(Stage::RampDown);
    let over = if interrupted { Duration::ZERO } else { options.ramp_down };
    let since = Instant::now();
    run.phase.send_replace(Phase::Leaving { since, over });
    let cut_short = || run.phase.send_replace(Phase::Leaving { since, over: Duration::ZERO });
    if run.wait(None, || workers.iter().all(JoinHandle::is_finished)) && !interrupted {
        interrupted = true;
        cut_short();
    }
    for worker in workers {
        if let Err(panic) = worker.join() {
            std::panic::resume_unwind(panic);
        }
    }
    run.enter(Stage::Done);
    let (mut servers, mut total) = run.figures();
    for ((server, before), after) in servers.iter_mut().zip(&before.0).zip(&after.0) {
        server.figures.rates = Some(Rates::between(&before.figures, &after.figures, load_seconds));
    }
    total.rates = Some(Rates::between(&before.1, &after.1, load_seconds));
    Report::new(options, servers, total, run.started.elapsed().as_secs_f64(), load_seconds, interrupted)
}

/// One thread's share of all servers' clients.
async fn clients_of(run: Arc<Run>, thread: usize) {
    let dialling = Arc::new(Semaphore::new(LOAD_DIALLING_MAX));
    let mut clients = JoinSet::new();
    for index in (0..run.options.clients).filter(|index| *index as usize % run.servers[0].tallies.len() == thread) {
        for server in 0..run.servers.len() {
            let (run, dialling, phase) = (run.clone(), dialling.clone(), run.phase.subscribe());
            clients.spawn(Client { run, server, index, thread, dialling, phase }.live());
        }
    }
    while let Some(ended) = clients.join_next().await {
        if let Err(error) = ended {
            let mut tally = run.servers[0].tally(thread);
            tally.errors += 1;
            tally.fault(format!("a client's task failed: {error}"));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
