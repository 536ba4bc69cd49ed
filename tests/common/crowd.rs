//! A crowd of real clients that keep books: each numbers its updates, which the app server's BurstVM echoes one by one, and listens to
//! the numbered ticks of BroadcastVM, which come through a group. What a fault costs whom can so be told to the single message.
//!
//! A **life** of a client is a view model of its at the app server: it begins with the whole state, which names the connection id that
//! the app server knows the client by. After a lane is lost there is another life under another id (contract 6.3), and what was under
//! way between the lives may be lost; within a life nothing may. A client whose connection ends comes back by itself, as dotNetify's
//! npm client does (contract 1.4).
#![allow(dead_code)] // Each test binary uses its part.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_tungstenite::tungstenite::{Message, protocol::WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// A source address has some 28,000 ports; several also look more like a crowd.
const SOURCES: u8 = 5;
/// Dialled at once: a listener's backlog is bounded.
const DIALLING: usize = 256;
/// Waits before a new connection, the last one for ever: those of dotNetify's npm client (contract 1.4).
const RECONNECT: [Duration; 3] = [Duration::from_secs(2), Duration::from_secs(5), Duration::from_secs(10)];
const HANDSHAKE: &str = "{\"protocol\":\"json\",\"version\":1}\u{1e}";

pub type Socket = WebSocketStream<TcpStream>;

/// An upgraded connection to the hub, from a source address that goes by the client's number.
pub async fn dial(address: SocketAddr, number: usize) -> Result<Socket, String> {
    let source = Ipv4Addr::new(127, 0, 0, 2 + (number % usize::from(SOURCES)) as u8);
    let socket = TcpSocket::new_v4().map_err(|error| error.to_string())?;
    socket.bind((source, 0).into()).map_err(|error| error.to_string())?;
    let stream = socket.connect(address).await.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    // Small buffers: there are thousands of them here, too.
    let config = WebSocketConfig::default().read_buffer_size(1024).write_buffer_size(0);
    let url = format!("ws://{address}/dotnetify");
    let (socket, _) = client_async_with_config(url, stream, Some(config)).await.map_err(|error| error.to_string())?;
    Ok(socket)
}

#[derive(Clone, Copy)]
pub struct Load {
    pub clients: usize,
    /// Between two updates of a client. Nobody waits for an echo before the next one.
    pub interval: Duration,
    /// Updates that are written together with the requests, before anything is answered.
    pub eager: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Sending,
    Quiet,
    Leaving,
}

/// One client's books.
#[derive(Default)]
pub struct Ledger {
    sent: u64,
    /// Neither echoed nor passed over.
    outstanding: VecDeque<(u64, Instant)>,
    pub lives: Vec<Life>,
    pub lost: Vec<Lost>,
    /// Echoes of what had been echoed.
    pub duplicates: u64,
    /// Echoes of what had been passed over.
    pub reordered: u64,
    pub exchanges: Vec<Exchange>,
    /// Its connection ended, and why.
    pub ends: Vec<(Instant, String)>,
    /// Responses that were exceptions, and refused calls.
    pub exceptions: Vec<(Instant, String)>,
    /// The last tick, or the one in the state.
    tick: u64,
    pub ticks: u64,
    pub ticks_lost: u64,
    pub ticks_repeated: u64,
}

pub struct Life {
    pub begun: Instant,
    /// As the app server knows the client.
    pub origin: String,
    /// The client is served again.
    pub first_echo: Option<Instant>,
}

pub struct Lost {
    pub number: u64,
    pub sent: Instant,
    /// It was passed over by the first echo of a new life, or was under way when the connection ended.
    pub between_lives: bool,
}

pub struct Exchange {
    pub sent: Instant,
    pub took: Duration,
}

impl Ledger {
    fn life_begins(&mut self, origin: &str) {
        self.lives.push(Life { begun: Instant::now(), origin: origin.to_owned(), first_echo: None });
    }

    fn echoed(&mut self, number: u64) {
        let now = Instant::now();
        let Some(place) = self.outstanding.iter().position(|(outstanding, _)| *outstanding == number) else {
            if self.lost.iter().any(|lost| lost.number == number) {
                self.reordered += 1;
            } else {
                self.duplicates += 1;
            }
            return;
        };
        let is_first = self.lives.last_mut().is_some_and(|life| life.first_echo.is_none());
        let between_lives = is_first && self.lives.len() > 1;
        let passed = self.outstanding.drain(..place);
        self.lost.extend(passed.map(|(number, sent)| Lost { number, sent, between_lives }));
        let (_, sent) = self.outstanding.pop_front().expect("found above");
        self.exchanges.push(Exchange { sent, took: now - sent });
        if let Some(life) = self.lives.last_mut() {
            life.first_echo.get_or_insert(now);
        }
    }

    fn ticked(&mut self, sequence: u64) {
        self.ticks += 1;
        if sequence <= self.tick {
            self.ticks_repeated += 1;
        } else {
            self.ticks_lost += sequence - self.tick - 1;
        }
        self.tick = sequence;
    }

    fn ended(&mut self, why: String) {
        self.ends.push((Instant::now(), why));
        let outstanding = self.outstanding.drain(..);
        self.lost.extend(outstanding.map(|(number, sent)| Lost { number, sent, between_lives: true }));
    }

    pub fn shown(&self) -> String {
        let seconds = |at: Instant| format!("{:.1} s ago", at.elapsed().as_secs_f64());
        let lives: Vec<String> = self
            .lives
            .iter()
            .map(|life| format!("{} {}, echo {:?}", life.origin, seconds(life.begun), life.first_echo.map(seconds)))
            .collect();
        let outstanding: Vec<String> =
            self.outstanding.iter().map(|(number, sent)| format!("{number} {}", seconds(*sent))).collect();
        format!(
            "lives {lives:?}, sent {}, outstanding {outstanding:?}, ends {:?}, exceptions {:?}",
            self.sent, self.ends, self.exceptions
        )
    }

    /// What must not be, whatever happened to its lane.
    fn faults(&self) -> Option<String> {
        let unexplained: Vec<u64> =
            self.lost.iter().filter(|lost| !lost.between_lives).map(|lost| lost.number).collect();
        let mut faults = String::new();
        for (count, what) in [
            (unexplained.len() as u64, "updates lost within a life"),
            (self.outstanding.len() as u64, "updates never answered"),
            (self.duplicates, "echoes repeated"),
            (self.reordered, "echoes out of order"),
            (self.ticks_lost, "ticks lost within a life"),
            (self.ticks_repeated, "ticks repeated within a life"),
        ] {
            if count > 0 {
                let _ = write!(faults, "{count} {what}; ");
            }
        }
        (!faults.is_empty()).then_some(faults)
    }
}

pub struct Crowd {
    pub load: Load,
    runtime: Runtime,
    ledgers: Vec<Arc<Mutex<Ledger>>>,
    tasks: Vec<JoinHandle<()>>,
    phase: watch::Sender<Phase>,
}

/// How far everybody was at a moment.
pub struct Mark {
    pub at: Instant,
    lives: Vec<usize>,
}

impl Crowd {
    /// Clients connect, ask for their view models, and send from then on.
    pub fn start(addresses: &[SocketAddr], load: Load) -> Crowd {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime starts");
        let ledgers: Vec<Arc<Mutex<Ledger>>> = (0..load.clients).map(|_| Arc::default()).collect();
        let dialling = Arc::new(Semaphore::new(DIALLING));
        let phase = watch::channel(Phase::Sending).0;
        let clients = ledgers.iter().enumerate().map(|(number, ledger)| Client {
            number,
            address: addresses[number % addresses.len()],
            load,
            ledger: ledger.clone(),
            dialling: dialling.clone(),
            phase: phase.subscribe(),
        });
        let tasks = clients.map(|client| runtime.spawn(client.live())).collect();
        Crowd { load, runtime, ledgers, tasks, phase }
    }

    pub fn ledger(&self, client: usize) -> MutexGuard<'_, Ledger> {
        self.ledgers[client].lock().expect("no client panicked")
    }

    pub fn all(&self) -> impl Iterator<Item = MutexGuard<'_, Ledger>> {
        (0..self.ledgers.len()).map(|client| self.ledger(client))
    }

    /// Waits until everybody has been served, and for a little of the load.
    pub fn is_served(&self, patience: Duration) {
        self.has_lives(|_| true, |_| 1, patience);
    }

    pub fn mark(&self) -> Mark {
        Mark { at: Instant::now(), lives: self.all().map(|ledger| ledger.lives.len()).collect() }
    }

    /// Waits until each of these clients has begun another life since `mark` and had an echo in its last one.
    pub fn is_served_again(&self, mark: &Mark, is_meant: impl Fn(usize) -> bool, patience: Duration) {
        self.has_lives(is_meant, |client| mark.lives[client] + 1, patience);
    }

    fn has_lives(&self, is_meant: impl Fn(usize) -> bool, lives: impl Fn(usize) -> usize, patience: Duration) {
        let is_served = |client: usize| {
            let ledger = self.ledger(client);
            ledger.lives.len() >= lives(client) && ledger.lives.last().is_some_and(|life| life.first_echo.is_some())
        };
        let unserved = || (0..self.ledgers.len()).filter(|client| is_meant(*client) && !is_served(*client));
        let deadline = Instant::now() + patience;
        while unserved().next().is_some() {
            if Instant::now() > deadline {
                let all: Vec<usize> = unserved().collect();
                let first = self.ledger(all[0]).shown();
                panic!("{} clients wait to be served after {patience:?}; client {}: {first}", all.len(), all[0]);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Clients by the id that the app server knows each by at present.
    pub fn by_origin(&self) -> HashMap<String, usize> {
        let last =
            |(client, ledger): (usize, MutexGuard<'_, Ledger>)| Some((ledger.lives.last()?.origin.clone(), client));
        self.all().enumerate().filter_map(last).collect()
    }

    /// How long each of these was without service: from the mark to the first echo in a life that began after it. The shortest first.
    pub fn recoveries(&self, mark: &Mark, is_meant: impl Fn(usize) -> bool) -> Vec<Duration> {
        let meant = self.all().enumerate().filter(|(client, _)| is_meant(*client));
        let first_echo = |(client, ledger): (usize, MutexGuard<'_, Ledger>)| {
            ledger.lives.get(mark.lives[client]..)?.iter().find_map(|life| Some(life.first_echo? - mark.at))
        };
        let mut all: Vec<Duration> = meant.filter_map(first_echo).collect();
        all.sort_unstable();
        all
    }

    /// How long the exchanges took that these began since the mark. The shortest first.
    pub fn exchanges(&self, mark: &Mark, is_meant: impl Fn(usize) -> bool) -> Vec<Duration> {
        let mut all = Vec::new();
        for (_, ledger) in self.all().enumerate().filter(|(client, _)| is_meant(*client)) {
            all.extend(
                ledger.exchanges.iter().filter(|exchange| exchange.sent >= mark.at).map(|exchange| exchange.took),
            );
        }
        all.sort_unstable();
        all
    }

    /// Goes on after a silence.
    pub fn speaks(&self) {
        self.phase.send_replace(Phase::Sending);
    }

    /// Nobody sends any more; waits until everything is answered that will be.
    pub fn falls_silent(&self, patience: Duration) {
        self.phase.send_replace(Phase::Quiet);
        let deadline = Instant::now() + patience;
        while self.all().any(|ledger| !ledger.outstanding.is_empty()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whose lane was lost has had exactly `lives` new lives since the mark, the others none, and their books say that nothing happened;
    /// nobody's say what may never be. The app server has known everybody by an id of its own in each life.
    pub fn assert_books(&self, mark: &Mark, has_moved: impl Fn(usize) -> bool, lives: usize) {
        let mut origins = HashSet::new();
        self.assert_each(|client, ledger| {
            let (name, allowed) = if has_moved(client) { ("moved", lives) } else { ("healthy", 0) };
            let begun = ledger.lives.len() - mark.lives[client];
            let lost = ledger.lost.iter().filter(|lost| lost.sent >= mark.at).count();
            let exceptions: Vec<&String> =
                ledger.exceptions.iter().filter(|(at, _)| *at >= mark.at).map(|(_, text)| text).collect();
            let mut faults = ledger.faults().unwrap_or_default();
            if begun != allowed {
                let _ = write!(faults, "{begun} new lives, not {allowed}; ");
            }
            if !has_moved(client) && (lost > 0 || !exceptions.is_empty()) {
                let _ = write!(faults, "{lost} updates lost, exceptions {exceptions:?}; ");
            }
            for life in &ledger.lives {
                if !origins.insert(life.origin.clone()) {
                    let _ = write!(faults, "id {} had been in use; ", life.origin);
                }
            }
            (!faults.is_empty()).then(|| format!("{name}: {faults}"))
        });
    }

    pub fn assert_nobody_was_disconnected(&self) {
        self.assert_each(|_, ledger| {
            let ends: Vec<&str> = ledger.ends.iter().map(|(_, why)| why.as_str()).collect();
            (!ends.is_empty()).then(|| format!("its connection ended: {ends:?}"))
        });
    }

    fn assert_each(&self, mut fault: impl FnMut(usize, &Ledger) -> Option<String>) {
        let mut wrong = Vec::new();
        for (client, ledger) in self.all().enumerate() {
            if let Some(fault) = fault(client, &ledger) {
                let whole = if wrong.is_empty() { ledger.shown() } else { String::new() };
                wrong.push(format!("client {client}: {fault} {whole}"));
            }
        }
        let shown: Vec<&str> = wrong.iter().take(20).map(String::as_str).collect();
        assert!(wrong.is_empty(), "{} of {} clients:\n{}", wrong.len(), self.load.clients, shown.join("\n"));
    }

    /// Everybody's connection ends, and so does the crowd.
    pub fn leaves(self) {
        self.phase.send_replace(Phase::Leaving);
        self.runtime.block_on(async {
            for task in self.tasks {
                task.await.expect("a client came to its end");
            }
        });
    }
}

struct Client {
    number: usize,
    address: SocketAddr,
    load: Load,
    ledger: Arc<Mutex<Ledger>>,
    dialling: Arc<Semaphore>,
    phase: watch::Receiver<Phase>,
}

impl Client {
    async fn live(mut self) {
        let mut failures = 0;
        loop {
            match self.connect().await {
                Ok(socket) => {
                    failures = 0;
                    match self.talk(socket).await {
                        Ok(()) => return,
                        Err(why) => self.ledger().ended(why),
                    }
                }
                Err(why) => {
                    failures += 1;
                    if failures == 1 {
                        self.ledger().ended(why);
                    }
                }
            }
            let delay = RECONNECT[failures.min(RECONNECT.len() - 1)];
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                _ = self.phase.wait_for(|phase| *phase == Phase::Leaving) => return,
            }
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("no client panicked")
    }

    /// To the handshake's answer.
    async fn connect(&self) -> Result<Socket, String> {
        let _permit = self.dialling.acquire().await.expect("nobody closes the semaphore");
        let mut socket = dial(self.address, self.number).await?;
        socket.send(Message::text(HANDSHAKE)).await.map_err(|error| error.to_string())?;
        match socket.next().await {
            Some(Ok(Message::Text(text))) if text.as_str() == "{}\u{1e}" => Ok(socket),
            other => Err(format!("the handshake's answer is {other:?}")),
        }
    }

    /// `Ok` when it leaves by itself.
    async fn talk(&mut self, mut socket: Socket) -> Result<(), String> {
        let mut first = request("BurstVM") + &request("BroadcastVM");
        for _ in 0..self.load.eager {
            first += &self.update().unwrap_or_default();
        }
        socket.send(Message::text(first)).await.map_err(|error| error.to_string())?;
        // Spread evenly, whenever they connected.
        let offset = self.load.interval.mul_f64(self.number as f64 / self.load.clients as f64);
        let mut pace = tokio::time::interval_at(tokio::time::Instant::now() + offset, self.load.interval);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut phase = *self.phase.borrow_and_update();
        let mut is_served = false;
        loop {
            let is_sending = is_served && phase == Phase::Sending;
            tokio::select! {
                message = socket.next() => {
                    let text = match message {
                        Some(Ok(Message::Text(text))) => text,
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                        Some(Ok(other)) => return Err(format!("{other:?}")),
                        Some(Err(error)) => return Err(error.to_string()),
                        None => return Err("the connection ended".into()),
                    };
                    if self.read(&text)? {
                        is_served = true;
                        // Whoever sees a fresh state goes on at once.
                        if phase == Phase::Sending {
                            pace.reset_after(offset);
                            self.send_update(&mut socket).await?;
                        }
                    }
                }
                _ = pace.tick(), if is_sending => self.send_update(&mut socket).await?,
                _ = self.phase.changed() => {
                    phase = *self.phase.borrow_and_update();
                    if phase == Phase::Leaving {
                        let _ = socket.close(None).await;
                        while let Some(Ok(_)) = socket.next().await {}
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn send_update(&self, socket: &mut Socket) -> Result<(), String> {
        let Some(update) = self.update() else { return Ok(()) };
        socket.send(Message::text(update)).await.map_err(|error| error.to_string())
    }

    /// The next one, entered in the books. None once nobody sends any more, asked with the books open: who then looks into them and finds
    /// nothing outstanding has seen the last of it.
    fn update(&self) -> Option<String> {
        let mut ledger = self.ledger();
        if *self.phase.borrow() != Phase::Sending {
            return None;
        }
        ledger.sent += 1;
        let number = ledger.sent;
        ledger.outstanding.push_back((number, Instant::now()));
        Some(format!("{{\"type\":1,\"target\":\"Update_VM\",\"arguments\":[\"BurstVM\",{{\"Send\":{number}}}]}}\u{1e}"))
    }

    /// Enters what came in the books; whether a life began.
    fn read(&self, text: &str) -> Result<bool, String> {
        let records = text.strip_suffix('\u{1e}').ok_or("a message that is not whole")?;
        let mut ledger = self.ledger();
        let mut has_begun = false;
        for record in records.split('\u{1e}') {
            let record: Value = serde_json::from_str(record).map_err(|error| format!("{error}: {record}"))?;
            match record["type"].as_u64() {
                Some(1) => {}
                Some(6) => continue,
                Some(7) => return Err(record.to_string()),
                _ => {
                    ledger.exceptions.push((Instant::now(), record.to_string()));
                    continue;
                }
            }
            let response = &record["arguments"][0];
            let data = response[1].as_str().ok_or("a response without data")?;
            let data: Value = serde_json::from_str(data).map_err(|error| format!("{error}: {data}"))?;
            if data.get("ExceptionType").is_some() {
                ledger.exceptions.push((Instant::now(), data.to_string()));
            } else if let Some(origin) = data["ConnectionId"].as_str() {
                ledger.life_begins(origin);
                has_begun = true;
            } else if let Some(number) = data["Echo"].as_u64() {
                ledger.echoed(number);
            } else if data.get("TickInterval").is_some() {
                // The state, which holds the last tick; the client is in the group before the next one.
                ledger.tick = data["Tick"]["Sequence"].as_u64().unwrap_or(0);
            } else if let Some(sequence) = data["Tick"]["Sequence"].as_u64() {
                ledger.ticked(sequence);
            } else {
                return Err(format!("a response to nobody's request: {record}"));
            }
        }
        Ok(has_begun)
    }
}

fn request(vm_id: &str) -> String {
    let message = json!({ "type": 1, "target": "Request_VM", "arguments": [vm_id, { "$vmArg": {} }] });
    format!("{message}\u{1e}")
}
