//! A node under attack, and good clients that talk all the while: what they felt before, during and after, what the node and its app
//! server say of it, and what it took.
//!
//! Each good client sends an update at a steady pace, whether the last one has been answered or not, and expects each answered once and
//! in order. What is measured runs from the moment an update was due to be sent, so a stall counts for all that fell into it, and what
//! this process is late itself counts too.
#![allow(dead_code)] // Each test binary uses its part.

use super::books::Books;
use super::common::ws::Socket;
use super::common::{App, Node, PATIENCE, Process, wait_for};
use futures_util::{SinkExt, StreamExt};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::{Message, protocol::WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// How large an attack is, and who watches.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub good_clients: usize,
    /// What an attack does in full, divided by this.
    pub divisor: usize,
    /// How often each good client sends an update.
    pub period: Duration,
    /// How long before and after are measured, and an attack at least.
    pub watch: Duration,
    /// The 99th percentile of good clients' round trips during an attack may be five times what it was before, or this.
    pub p99_max: Duration,
}

impl Scale {
    /// Any machine, any build, beside other tests.
    pub const QUICK: Scale = Scale {
        good_clients: 100,
        divisor: 20,
        period: Duration::from_millis(500),
        watch: Duration::from_millis(700),
        p99_max: Duration::from_secs(2),
    };
    /// Two cores for node, app server, good clients and attackers together: what is beyond a quarter of a second is no scheduling any more.
    pub const FULL: Scale = Scale {
        good_clients: 1000,
        divisor: 1,
        period: Duration::from_secs(1),
        watch: Duration::from_millis(1500),
        p99_max: Duration::from_millis(250),
    };

    /// So many in full.
    pub fn of(self, count: usize) -> usize {
        count.div_ceil(self.divisor)
    }
}

/// Good clients come from these addresses, in turn: what is allowed one address is not theirs to share with attackers.
pub const GOOD_SOURCES: usize = 50;
/// Attackers come from addresses behind this one.
pub const BAD_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 66, 0, 1);

pub struct Arena {
    pub name: &'static str,
    pub scale: Scale,
    /// Before the node, so that a test that fails does not have each of them complain about the node's end.
    crowd: Crowd,
    pub node: Node,
    pub app: App,
    runtime: Runtime,
    budget: Budget,
    start: Books,
    _alone: MutexGuard<'static, ()>,
}

/// What the good clients felt, and the node took, of an attack that was withstood.
pub struct Felt {
    pub before: Percentiles,
    pub during: Percentiles,
    pub after: Percentiles,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Percentiles {
    pub count: usize,
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
}

impl Percentiles {
    fn of(mut times: Vec<Duration>) -> Percentiles {
        times.sort_unstable();
        let at = |share: f64| times.get((times.len().saturating_sub(1) as f64 * share) as usize).copied();
        Percentiles {
            count: times.len(),
            p50: at(0.5).unwrap_or_default(),
            p99: at(0.99).unwrap_or_default(),
            max: at(1.0).unwrap_or_default(),
        }
    }
}

/// Attacks stand in line: what the good clients feel is to be the attack's doing, and not another test's.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an arena is to be like.
pub struct Setup {
    name: &'static str,
    scale: Scale,
    places: Option<usize>,
    flags: Vec<String>,
    upstreams: String,
}

impl Setup {
    pub fn new(name: &'static str, scale: Scale) -> Setup {
        Setup { name, scale, places: None, flags: Vec::new(), upstreams: String::new() }
    }

    /// Room for so many clients beside the good ones; what the node's memory is to stay within depends on it.
    pub fn places(self, count: usize) -> Setup {
        Setup { places: Some(count), ..self }
    }

    pub fn flags(mut self, flags: &[&str]) -> Setup {
        self.flags.extend(flags.iter().map(|flag| flag.to_string()));
        self
    }

    /// Lines of the configuration for upstreams in front of the good clients' app server.
    pub fn upstreams(mut self, lines: &str) -> Setup {
        self.upstreams.push_str(lines);
        self
    }

    /// The node is up and the good clients are on it.
    pub fn open(self) -> Arena {
        let Setup { name, scale, places, mut flags, upstreams } = self;
        let alone = alone();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime starts");
        let app = App::start();
        flags.extend(["--shards".into(), "2".into()]);
        if let Some(places) = places {
            // They are shared out over the shards, and the kernel does not deal connections evenly.
            flags.extend(["--max-clients".into(), ((scale.good_clients + places) * 5 / 4 + 100).to_string()]);
        }
        let lines = format!("{upstreams}\n[[upstream]]\nname = \"good\"\nurl = \"{}\"\n", app.url());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("arena-{}.toml", std::process::id()));
        std::fs::write(&path, lines).expect("the folder for tests' files is there");
        flags.extend(["--config".into(), path.to_str().expect("it is UTF-8").into()]);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let budget = Budget::printed(&flags);
        let node = Node::run(&flags);
        let _ = std::fs::remove_file(&path);
        let crowd = Crowd::gather(&runtime, node.address, scale);
        let start = Books::balanced(&node, false);
        Arena { name, scale, app, node, crowd, runtime, budget, start, _alone: alone }
    }
}

impl Arena {
    pub fn address(&self) -> SocketAddr {
        self.node.address
    }

    pub fn good_clients(&self) -> usize {
        self.scale.good_clients
    }

    /// A connection from the attackers' `number`th address.
    pub fn dial(&self, number: usize) -> std::net::TcpStream {
        self.dial_with(number, |_| Ok(()))
    }

    /// ... whose kernel holds little of what it does not read.
    pub fn dial_narrow(&self, number: usize) -> std::net::TcpStream {
        self.dial_with(number, |socket| socket.set_recv_buffer_size(4096))
    }

    /// ... that is reset when it is dropped.
    pub fn dial_to_reset(&self, number: usize) -> std::net::TcpStream {
        self.dial_with(number, TcpSocket::set_zero_linger)
    }

    fn dial_with(&self, number: usize, set: impl FnOnce(&TcpSocket) -> io::Result<()>) -> std::net::TcpStream {
        let [a, b, ..] = BAD_SOURCE.octets();
        let source = Ipv4Addr::new(a, b, (number / 200) as u8, (number % 200 + 1) as u8);
        let dialled: io::Result<std::net::TcpStream> = self.runtime.block_on(async {
            let socket = TcpSocket::new_v4()?;
            set(&socket)?;
            socket.bind((source, 0).into())?;
            socket.connect(self.node.address).await?.into_std()
        });
        let stream = dialled.unwrap_or_else(|error| panic!("attacker {number} cannot connect: {error}"));
        stream.set_nonblocking(false).expect("it can wait");
        stream.set_nodelay(true).expect("TCP_NODELAY can be set");
        stream
    }

    /// How far a series of the node has risen since the good clients were there; of all its labels with none.
    pub fn rise(&self, family: &str, label: &str) -> f64 {
        Books::of(&self.node).get(family, label) - self.start.get(family, label)
    }

    /// Waits until it has risen so far, and checks that it is no further.
    pub fn rises(&self, family: &str, label: &str, by: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.rise(family, label) < by as f64 {
            let changed = || Books::of(&self.node).since(&self.start);
            assert!(Instant::now() < deadline, "{}: {family} {label} has not risen by {by}:\n{}", self.name, changed());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.rise(family, label), by as f64, "{}: {family} {label}", self.name);
    }

    /// Everyone who is on the node now, good clients included.
    pub fn clients(&self) -> usize {
        Books::of(&self.node).get("clients", "") as usize
    }

    /// Watches the good clients, attacks, waits until the attackers are gone, watches again, and checks what holds after every attack.
    /// `holders` are the terms of the printed memory budget that the attack may fill, beside what is held for every client.
    pub fn withstands(self, holders: &[&str], attack: impl FnOnce(&Arena)) -> Felt {
        let pid = self.node.process.id();
        std::thread::sleep(self.scale.watch);
        let resident_before = resident_bytes(pid, "RssAnon");
        // The peak from now on (proc(5), clear_refs).
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("the node is ours");

        let began = Instant::now();
        attack(&self);
        std::thread::sleep((began + self.scale.watch).saturating_duration_since(Instant::now()));
        let ended = Instant::now();
        wait_for("the attackers to be gone", PATIENCE, || {
            let books = Books::of(&self.node);
            let is_over = books.get("clients", "") == self.good_clients() as f64;
            (is_over && books.get("http_connections", "") == 0.0).then_some(())
        });
        let recovered = ended.elapsed();
        // The command's own text is the file's.
        let peak = resident_bytes(pid, "VmHWM") - resident_bytes(pid, "RssFile");

        self.is_served_at_once();
        let (name, watch) = (self.name, self.scale.watch);
        let before = self.crowd.felt(began - watch, began);
        let bound = (before.p99 * 5).max(self.scale.p99_max);
        // A machine that was busy with something else for a moment is calm in the next one; a node that is ill stays ill.
        let mut after = Percentiles::default();
        for _ in 0..CALM_TRIES {
            let calm = Instant::now();
            std::thread::sleep(watch);
            after = self.crowd.felt(calm, calm + watch);
            if after.p99 <= bound {
                break;
            }
        }
        let resident_after = resident_bytes(pid, "RssAnon");
        let books = Books::balanced(&self.node, false);
        let connections = books.get("connections_accepted", "") - books.get("connections_closed", "");
        assert_eq!(connections, self.good_clients() as f64, "{}: only the good clients are connected", self.name);

        let Arena { app, node, mut crowd, runtime, budget, .. } = self;
        crowd.leave(&runtime, name);
        // Now those are among them whose answers were still under way.
        let felt = Felt { before, during: crowd.felt(began, ended), after };
        let allowed = budget.at_start + budget.idle + holders.iter().map(|holder| budget.worst(holder)).sum::<f64>();
        println!(
            "| {name} | {:.1} | {:.1} | {:.1} | {:.1} | {:.2} | {:.1} / {:.1} / {:.1} | {:.1} |",
            milliseconds(felt.before.p99),
            milliseconds(felt.during.p99),
            milliseconds(felt.during.max),
            milliseconds(felt.after.p99),
            recovered.as_secs_f64(),
            resident_before / MIB,
            peak / MIB,
            resident_after / MIB,
            allowed / MIB,
        );
        for (when, measured) in [("during", felt.during), ("after", felt.after)] {
            assert!(measured.count > 0, "{name}: nobody was watched {when} it");
            assert!(measured.p99 <= bound, "{name}: good clients' p99 {when} it is {measured:?}, at most {bound:?}");
        }
        assert!(peak <= allowed, "{name}: {:.1} MiB resident, the budget has {:.1}", peak / MIB, allowed / MIB);
        // What is kept for the next messages is in the budget by name; the allocator keeps some pages of its own.
        let kept = budget.worst("kept byte buffers") + budget.worst("kept frames") + ALLOCATOR_KEEPS;
        assert!(
            resident_after <= resident_before + kept,
            "{name}: {:.1} MiB resident afterwards, {:.1} before",
            resident_after / MIB,
            resident_before / MIB
        );

        // All have left: nothing is left behind, here and at the app server.
        Books::balanced(&node, true);
        wait_for("the app server to forget everybody", PATIENCE, || {
            (app.figure("bindings") == 0 && app.figure("controllers") == 0).then_some(())
        });
        for loss in ["leaks", "lost_sends", "dropped_updates", "oversized", "protocol_errors", "slow_connections"] {
            assert_eq!(app.figure(loss), 0, "{name}: {loss}: {}", app.double());
        }
        felt
    }

    /// Somebody new connects, asks for a view model and has it, within a second.
    pub fn is_served_at_once(&self) {
        let began = Instant::now();
        let mut socket = Socket::connect(self.node.address);
        socket.send(&super::common::ws::record(
            r#"{"type":1,"target":"Request_VM","arguments":["HelloWorldVM",{"$vmArg":{"TickInterval":0}}]}"#,
        ));
        socket.response("a state", |data| data.get("FullName").is_some());
        let took = began.elapsed();
        assert!(took <= Duration::from_secs(1), "{}: a new client waited {took:?} for its state", self.name);
        drop(socket);
        wait_for("it to be gone", PATIENCE, || (self.clients() == self.good_clients()).then_some(()));
    }
}

/// How often the time after an attack is watched until it is calm.
const CALM_TRIES: u32 = 3;

const MIB: f64 = 1024.0 * 1024.0;
/// Free pages that glibc's arenas keep at their tops, of two shards and the control plane.
const ALLOCATOR_KEEPS: f64 = 8.0 * MIB;

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A line of /proc/PID/status that counts kB.
pub fn resident_bytes(pid: u32, line: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the node is running");
    let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    let kilobytes: f64 = found.expect(line).trim().trim_end_matches("kB").trim().parse().expect("a number of kB");
    kilobytes * 1024.0
}

pub fn descriptors(process: &Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", process.id())).expect("it is running").count()
}

/// The memory budget that `signalring check` prints, in bytes.
pub struct Budget {
    pub at_start: f64,
    pub idle: f64,
    worst: BTreeMap<String, f64>,
}

impl Budget {
    pub fn printed(flags: &[&str]) -> Budget {
        let mut check = Process::signalring("check", &[&["check"], flags].concat());
        let status = check.wait(PATIENCE).expect("check ends");
        // Its last words may still be on their way through the pipe.
        let text =
            wait_for("the budget", PATIENCE, || Some(check.output()).filter(|text| text.contains("queues full")));
        assert!(status.success(), "{text}");
        let mut budget = Budget { at_start: 0.0, idle: 0.0, worst: BTreeMap::new() };
        for line in text.lines().filter_map(|line| line.strip_prefix("#   ")) {
            // A holder's name, a blank of two at least, its figures; the bytes stand behind the last `=`.
            let (name, figures) = line.split_once("  ").unwrap_or((line, ""));
            let bytes = figures.rsplit_once("= ").map_or(figures, |(_, bytes)| bytes).trim();
            let mut words = bytes.split_whitespace();
            let number: f64 = words.next().and_then(|number| number.parse().ok()).expect(line);
            let unit = match words.next() {
                Some("B") => 1.0,
                Some("KiB") => 1024.0,
                Some("MiB") => MIB,
                Some("GiB") => 1024.0 * MIB,
                _ => panic!("no unit: {line}"),
            };
            match name {
                "at start" => budget.at_start = number * unit,
                "all clients idle" => budget.idle = number * unit,
                _ => drop(budget.worst.insert(name.into(), number * unit)),
            }
        }
        assert!(budget.at_start > 0.0 && budget.idle > 0.0, "{text}");
        budget
    }

    /// A term of the worst case.
    pub fn worst(&self, holder: &str) -> f64 {
        *self.worst.get(holder).unwrap_or_else(|| panic!("the budget has no {holder:?}: {:?}", self.worst.keys()))
    }
}

// ---- The good clients -----------------------------------------------------------------------------------------------

/// When an update was due, and how long it took until its answer was here.
type Answered = (Instant, Duration);

struct Crowd {
    clients: Vec<JoinHandle<()>>,
    answered: Arc<Mutex<Vec<Answered>>>,
    stop: Arc<AtomicBool>,
}

/// Good clients that dial at the same time.
const DIALLING: usize = 128;
/// How long the last answers may take when all is over.
const LAST_WORDS: Duration = Duration::from_secs(20);

impl Crowd {
    fn gather(runtime: &Runtime, address: SocketAddr, scale: Scale) -> Crowd {
        let dialling = Arc::new(tokio::sync::Semaphore::new(DIALLING));
        let stop = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicU64::new(0));
        let answered = Arc::new(Mutex::new(Vec::new()));
        let clients: Vec<_> = (0..scale.good_clients)
            .map(|number| {
                let (dialling, stop, served) = (dialling.clone(), stop.clone(), served.clone());
                let answered = answered.clone();
                runtime.spawn(async move {
                    let permit = dialling.acquire_owned().await.expect("nobody closes it");
                    let client = Good::connect(address, number).await;
                    drop(permit);
                    served.fetch_add(1, Relaxed);
                    client.talk(scale, &stop, &answered).await;
                })
            })
            .collect();
        wait_for("the good clients to be served", PATIENCE * 2, || {
            if let Some(gone) = clients.iter().position(JoinHandle::is_finished) {
                panic!("good client {gone} was lost at once");
            }
            (served.load(Relaxed) == scale.good_clients as u64).then_some(())
        });
        Crowd { clients, answered, stop }
    }

    /// Of what was due in this time and has been answered.
    fn felt(&self, from: Instant, to: Instant) -> Percentiles {
        let answered = self.answered.lock().expect("nobody panics with it");
        let inside = answered.iter().filter(|(due, _)| (from..to).contains(due));
        Percentiles::of(inside.map(|(_, time)| *time).collect())
    }

    /// Everybody gets the answers that are still due, and leaves.
    fn leave(&mut self, runtime: &Runtime, name: &str) {
        self.stop.store(true, Relaxed);
        for (number, client) in self.clients.iter_mut().enumerate() {
            if let Err(error) = runtime.block_on(client) {
                panic!("{name}: good client {number} was lost: {error}");
            }
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.clients.iter().for_each(JoinHandle::abort);
    }
}

struct Good {
    number: usize,
    socket: WebSocketStream<TcpStream>,
}

impl Good {
    /// Connects, shakes hands, and has the state of its view model.
    async fn connect(address: SocketAddr, number: usize) -> Good {
        let source = Ipv4Addr::new(127, 0, 1, (number % GOOD_SOURCES + 1) as u8);
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((source, 0).into()).expect("a loopback address is free");
        let stream = socket.connect(address).await.unwrap_or_else(|error| panic!("good client {number}: {error}"));
        stream.set_nodelay(true).expect("TCP_NODELAY can be set");
        let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(0);
        let (socket, _) = client_async_with_config(format!("ws://{address}/dotnetify"), stream, Some(config))
            .await
            .unwrap_or_else(|error| panic!("good client {number}: {error}"));
        let mut client = Good { number, socket };
        client.send("{\"protocol\":\"json\",\"version\":1}\u{1e}").await;
        assert_eq!(client.text().await, "{}\u{1e}", "good client {number}: the handshake's answer");
        client.send("{\"type\":1,\"target\":\"Request_VM\",\"arguments\":[\"BurstVM\",{}]}\u{1e}").await;
        let state = client.text().await;
        assert!(state.contains("Echo"), "good client {number}: {state}");
        client
    }

    /// Sends its updates at its pace until it is to stop, and hears each answered in order.
    async fn talk(mut self, scale: Scale, stop: &AtomicBool, answered: &Mutex<Vec<Answered>>) {
        // Not all at the same moment.
        let first = scale.period.mul_f64((self.number as f64 * 0.618).fract());
        let mut pace = tokio::time::interval_at((Instant::now() + first).into(), scale.period);
        let mut waiting: VecDeque<Instant> = VecDeque::new();
        let (mut sent, mut heard) = (0u64, 0u64);
        let mut last_words = None;
        loop {
            let is_over = last_words.is_some();
            if is_over && waiting.is_empty() {
                break;
            }
            tokio::select! {
                due = pace.tick(), if !is_over => {
                    if stop.load(Relaxed) {
                        last_words = Some(Instant::now() + LAST_WORDS);
                        continue;
                    }
                    sent += 1;
                    let update = format!(
                        "{{\"type\":1,\"target\":\"Update_VM\",\"arguments\":[\"BurstVM\",{{\"Send\":\"{}-{sent}\"}}]}}\u{1e}",
                        self.number
                    );
                    waiting.push_back(due.into_std());
                    self.send(&update).await;
                }
                text = Self::read(&mut self.socket, self.number) => {
                    for record in text.split_terminator('\u{1e}') {
                        let Some((_, echo)) = record.split_once("Echo\\\":\\\"") else {
                            assert_eq!(record, "{\"type\":6}", "good client {}: nothing but answers and pings", self.number);
                            continue;
                        };
                        let (echo, _) = echo.split_once('\\').expect(record);
                        heard += 1;
                        // Nothing is lost, doubled, reordered, or somebody else's.
                        assert_eq!(echo, format!("{}-{heard}", self.number), "good client {}: {record}", self.number);
                        let due = waiting.pop_front().unwrap_or_else(|| panic!("{record}: nobody asked"));
                        answered.lock().expect("nobody panics with it").push((due, due.elapsed()));
                    }
                }
                () = tokio::time::sleep_until(last_words.unwrap_or_else(Instant::now).into()), if is_over => {
                    panic!("good client {}: {} of {sent} updates were never answered", self.number, waiting.len());
                }
            }
        }
        self.socket.close(None).await.unwrap_or_else(|error| panic!("good client {}: {error}", self.number));
        while let Some(Ok(_)) = self.socket.next().await {}
    }

    async fn send(&mut self, text: &str) {
        let sent = self.socket.send(Message::text(text)).await;
        sent.unwrap_or_else(|error| panic!("good client {} cannot send: {error}", self.number));
    }

    async fn text(&mut self) -> String {
        tokio::time::timeout(PATIENCE, Self::read(&mut self.socket, self.number))
            .await
            .unwrap_or_else(|_| panic!("good client {} heard nothing for {PATIENCE:?}", self.number))
    }

    /// The next text; the loss of the connection is a failure whenever it happens.
    async fn read(socket: &mut WebSocketStream<TcpStream>, number: usize) -> String {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => text.as_str().to_owned(),
            other => panic!("good client {number} was cut off: {other:?}"),
        }
    }
}
