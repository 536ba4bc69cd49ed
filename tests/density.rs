//! Ten thousand clients through one node: everyone is served, what one costs is measured, and when all leave at once nothing is
//! left behind. Three processes (this one, the node, the app server), each within 20,000 file descriptors.

mod common;

use common::crowd::{Socket, dial};
use common::{App, Node, wait_for};
use futures_util::{SinkExt, StreamExt};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;
use tokio_tungstenite::tungstenite::Message;

const CLIENTS: usize = 10_000;
/// Dialled at once: a listener's backlog is bounded.
const DIALLING: usize = 256;
const MESSAGES_PER_SECOND: usize = 3_000;
/// Senders in turn; each waits for its answer, so this is also the most that is in flight.
const SENDERS: usize = 100;
const SENDING: Duration = Duration::from_secs(10);
/// The app server must have forgotten everyone by then.
const FORGETTING: Duration = Duration::from_secs(30);
/// A guard against a buffer or a task per idle client, not a target: those are in DESIGN.md.
const RESIDENT_BYTES_PER_CLIENT_MAX: f64 = 4096.0;
/// One answer may not take longer, not even the first of 10,000.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
#[ignore = "opens 10,000 connections; run: cargo test --release --test density -- --ignored"]
fn ten_thousand_clients_are_served_and_leave_nothing_behind() {
    assert!(
        open_files_max() >= CLIENTS + 500,
        "10,000 connections need 10,500 open files in each of three processes, the limit is {}; run: ulimit -n 20000",
        open_files_max()
    );
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime starts");
    let app = App::start();
    let node = Node::start(&app, &["--shards", "2"]);
    let pid = node.process.id();

    // A first client pays for what everybody shares.
    let first = runtime.block_on(Client::connect(node.address, CLIENTS));
    drop(first);
    wait_for("the first client's end", FORGETTING, || (app.figure("bindings") == 0).then_some(()));
    let before = resident_bytes(pid);

    let begun = Instant::now();
    let clients = runtime.block_on(connect_all(node.address));
    let connecting = begun.elapsed();
    assert_eq!(clients.len(), CLIENTS);
    assert_eq!(app.figure("bindings"), CLIENTS as u64);
    assert_eq!(app.figure("view_models"), CLIENTS as u64);
    let connected = resident_bytes(pid);

    // All of them idle, then some of them talking.
    let idle_from = cpu(pid);
    std::thread::sleep(SENDING / 2);
    let idle = cpu(pid) - idle_from;
    let busy_from = cpu(pid);
    let begun = Instant::now();
    let (clients, mut latencies) = runtime.block_on(converse(clients, Some(MESSAGES_PER_SECOND)));
    let conversing = begun.elapsed();
    let busy = cpu(pid) - busy_from;
    // Then as fast as answers come: the turns of the node's loop have more to do each.
    let full_from = cpu(pid);
    let begun = Instant::now();
    let (clients, all_out) = runtime.block_on(converse(clients, None));
    let rushing = begun.elapsed();
    let full = cpu(pid) - full_from;
    latencies.sort_unstable();
    let messages = latencies.len() as f64;

    let begun = Instant::now();
    drop(clients);
    wait_for("the app server to forget everyone", FORGETTING, || {
        (app.figure("bindings") == 0 && app.figure("view_models") == 0 && app.figure("controllers") == 0).then_some(())
    });
    let forgetting = begun.elapsed();
    let left = resident_bytes(pid);
    for loss in ["leaks", "lost_sends", "dropped_updates", "failed_invocations"] {
        assert_eq!(app.figure(loss), 0, "{loss}: {}", app.double());
    }
    wait_for("the node to count nobody", FORGETTING, || (node.metric("signalring_clients") == 0.0).then_some(()));

    let per_client = (connected - before) / CLIENTS as f64;
    let percentile = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    let user_share = busy.user.as_secs_f64() / (busy.user + busy.kernel).as_secs_f64().max(f64::MIN_POSITIVE);
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    println!(
        "\n{CLIENTS} clients through one node with 2 shards, {build} build, app server and clients on the same machine"
    );
    println!("| what | figure |");
    println!("|---|---|");
    println!(
        "| connect all, each served its state | {:.1} s ({:.0} clients/s) |",
        connecting.as_secs_f64(),
        CLIENTS as f64 / connecting.as_secs_f64()
    );
    println!(
        "| resident memory of the node before / with all / after | {:.1} / {:.1} / {:.1} MB |",
        before / 1e6,
        connected / 1e6,
        left / 1e6
    );
    println!("| resident memory per client (one view model) | {per_client:.0} B |");
    println!(
        "| CPU while all are idle | {:.2} % of a core |",
        idle.total.as_secs_f64() / (SENDING / 2).as_secs_f64() * 100.0
    );
    println!("| messages with their answers | {messages:.0}, {:.0}/s |", messages / conversing.as_secs_f64());
    println!(
        "| CPU of the node per message and its answer | {:.1} us ({:.0} % in user mode) |",
        busy.total.as_secs_f64() * 1e6 / messages,
        user_share * 100.0
    );
    println!(
        "| the same, {SENDERS} senders as fast as answers come: {:.0}/s | {:.1} us |",
        all_out.len() as f64 / rushing.as_secs_f64(),
        full.total.as_secs_f64() * 1e6 / all_out.len() as f64
    );
    println!(
        "| latency client -> app server -> client p50 / p99 / max | {:.0} / {:.0} / {:.0} us |",
        percentile(0.5),
        percentile(0.99),
        percentile(1.0)
    );
    println!("| all dropped at once, forgotten by the app server after | {:.1} s |", forgetting.as_secs_f64());
    assert!(
        per_client <= RESIDENT_BYTES_PER_CLIENT_MAX || cfg!(debug_assertions),
        "{per_client:.0} B of resident memory per client: something is kept for each that was not before"
    );
}

async fn connect_all(address: SocketAddr) -> Vec<Client> {
    let dialling = Arc::new(Semaphore::new(DIALLING));
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let dialling = dialling.clone();
            tokio::spawn(async move {
                let _permit = dialling.acquire().await.expect("nobody closes the semaphore");
                Client::connect(address, number).await
            })
        })
        .collect();
    let mut clients = Vec::with_capacity(CLIENTS);
    for task in tasks {
        clients.push(task.await.expect("every client is served"));
    }
    clients
}

/// Updates round all clients, at a steady pace or each sender's next one when its last is answered; returns the clients and how
/// long each answer took.
async fn converse(mut clients: Vec<Client>, per_second: Option<usize>) -> (Vec<Client>, Vec<Duration>) {
    let mut senders = Vec::new();
    let share = clients.len().div_ceil(SENDERS);
    while !clients.is_empty() {
        let mine = clients.split_off(clients.len().saturating_sub(share));
        senders.push(tokio::spawn(async move {
            let mut mine = mine;
            let mut latencies = Vec::new();
            let mut pace = per_second.map(|messages| {
                let mut pace = tokio::time::interval(Duration::from_secs(1) * SENDERS as u32 / messages as u32);
                pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
                pace
            });
            let deadline = Instant::now() + SENDING;
            for turn in 0.. {
                if let Some(pace) = &mut pace {
                    pace.tick().await;
                }
                if Instant::now() >= deadline {
                    break;
                }
                let index = turn % mine.len();
                latencies.push(mine[index].update(turn).await);
            }
            (mine, latencies)
        }));
    }
    let mut latencies = Vec::new();
    for sender in senders {
        let (mine, taken) = sender.await.expect("every message is answered");
        clients.extend(mine);
        latencies.extend(taken);
    }
    (clients, latencies)
}

struct Client {
    number: usize,
    socket: Socket,
}

impl Client {
    /// Connects, shakes hands, and asks for a view model with a name of its own and no clock: then it is idle.
    async fn connect(address: SocketAddr, number: usize) -> Client {
        let socket = dial(address, number).await.unwrap_or_else(|error| panic!("client {number}: {error}"));
        let mut client = Client { number, socket };
        client.send("{\"protocol\":\"json\",\"version\":1}\u{1e}".into()).await;
        assert_eq!(client.text().await, "{}\u{1e}", "client {number}: the handshake's answer");
        let argument = format!("{{\"$vmArg\":{{\"FirstName\":\"c{number}\",\"TickInterval\":\"0\"}}}}");
        client
            .send(format!("{{\"type\":1,\"target\":\"Request_VM\",\"arguments\":[\"HelloWorldVM\",{argument}]}}\u{1e}"))
            .await;
        client.full_name(&format!("c{number} World")).await;
        client
    }

    async fn update(&mut self, turn: usize) -> Duration {
        let name = format!("c{}-{turn}", self.number);
        let begun = Instant::now();
        self.send(format!("{{\"type\":1,\"target\":\"Update_VM\",\"arguments\":[\"HelloWorldVM\",{{\"FirstName\":\"{name}\"}}]}}\u{1e}"))
            .await;
        self.full_name(&format!("{name} World")).await;
        begun.elapsed()
    }

    async fn send(&mut self, text: String) {
        self.socket.send(Message::text(text)).await.unwrap_or_else(|error| panic!("client {}: {error}", self.number));
    }

    async fn text(&mut self) -> String {
        let message = tokio::time::timeout(PATIENCE, self.socket.next()).await;
        match message {
            Ok(Some(Ok(Message::Text(text)))) => text.as_str().to_owned(),
            other => panic!("client {} waited for a message and got {other:?}", self.number),
        }
    }

    /// Reads on to the response that carries this name and no other client's.
    async fn full_name(&mut self, expected: &str) {
        let (found, own) =
            (format!("\\\"FullName\\\":\\\"{expected}\\\""), format!("\\\"FullName\\\":\\\"c{}", self.number));
        loop {
            let text = self.text().await;
            for record in text.split_terminator('\u{1e}') {
                if record.contains(&found) {
                    return;
                }
                assert!(
                    !record.contains("ExceptionType") && !record.contains("\"type\":7"),
                    "client {}: {record}",
                    self.number
                );
                assert!(
                    !record.contains("FullName") || record.contains(&own),
                    "client {} got another's: {record}",
                    self.number
                );
            }
        }
    }
}

/// Processor time of all threads of a process.
#[derive(Clone, Copy)]
struct Cpu {
    /// To the nanosecond.
    total: Duration,
    /// In ticks, of which Linux shows 100 a second: good for proportions.
    user: Duration,
    kernel: Duration,
}

impl std::ops::Sub for Cpu {
    type Output = Cpu;
    fn sub(self, earlier: Cpu) -> Cpu {
        Cpu { total: self.total - earlier.total, user: self.user - earlier.user, kernel: self.kernel - earlier.kernel }
    }
}

fn cpu(pid: u32) -> Cpu {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the node is running");
    // The second field is a name in parentheses and may hold anything; `utime` and `stime` are fields 14 and 15.
    let (_, rest) = stat.rsplit_once(')').expect("a name in parentheses");
    let field = |number: usize| rest.split_whitespace().nth(number - 3).and_then(|ticks| ticks.parse::<u64>().ok());
    let ticks = |number| Duration::from_millis(field(number).expect("a number") * 10);
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the node is running");
    let nanos = threads.flatten().filter_map(|thread| {
        let schedstat = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        schedstat.split_whitespace().next()?.parse::<u64>().ok()
    });
    Cpu { total: Duration::from_nanos(nanos.sum()), user: ticks(14), kernel: ticks(15) }
}

fn resident_bytes(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the node is running");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS is there");
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse().expect("a number of kB");
    kilobytes * 1024.0
}

fn open_files_max() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").expect("/proc is mounted");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a limit for open files");
    match line.split_whitespace().next() {
        Some("unlimited") => usize::MAX,
        Some(soft) => soft.parse().expect("a number"),
        None => 0,
    }
}
