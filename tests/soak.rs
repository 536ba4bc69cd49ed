//! An hour, sped up: clients come, ask, write, chat, dispose, idle and leave in every way there is, while lanes are cut now and then and
//! the app server is restarted. What is to stay flat stays flat, and in the end nothing is left and every number agrees with the others.
//!
//! `SOAK_SECONDS` says how long (60 unless told); a minute has the events of an ordinary hour (`ORDINARY_HOUR`), and
//! `SOAK_SECONDS=3600 cargo test --release --test soak -- --ignored --nocapture` is the real thing. `SOAK_SEED` repeats the visitors'
//! decisions.

#[path = "common/books.rs"]
mod books;
mod common;

use books::Books;
use common::ws::{CLOSE, FIN, frame, parse, record, upgrade_head};
use common::{App, Node, PATIENCE, Process, Random, get, wait_for};
use futures_util::{SinkExt, StreamExt};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::{Message, protocol::WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// What an ordinary hour of a node has: a thousand people on it who stay ten minutes each and write twice a minute.
struct Hour {
    comings: u64,
    updates: u64,
}
const ORDINARY_HOUR: Hour = Hour { comings: 6_000, updates: 120_000 };

/// Visitors at the same time: over WebSockets, and over event streams and polls.
const VISITORS: usize = 550;
const CARRIED_VISITORS: usize = 4;
/// How often a lane is cut, and the app server restarted.
const CUT_EVERY: Duration = Duration::from_secs(7);
const RESTART_EVERY: Duration = Duration::from_secs(23);
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Growth from the second third to the last that counts as flat: pages that the allocator has got and not given back. The test says which
/// leak, in bytes a client, this would not show.
const FLAT_BYTES: f64 = 2.0 * 1024.0 * 1024.0;
/// Descriptors that may be in use at a sample beyond what is connected: lanes being dialled, admin connections, sockets on their way out.
const DESCRIPTORS_SLACK: f64 = 40.0;

/// What the visitors did.
#[derive(Default)]
struct Tally {
    begun: AtomicU64,
    handshakes: AtomicU64,
    updates: AtomicU64,
    echoes: AtomicU64,
    chats: AtomicU64,
    heard_chats: AtomicU64,
    carried: AtomicU64,
    cut_off: AtomicU64,
    /// Lanes cut and app servers stopped so far: what was under way may be lost then, and only then.
    disturbances: AtomicU64,
    disturbed_until: Mutex<Option<Instant>>,
}

/// How long after a disturbance an answer may be missing: dialling again, replaying, and everything that waited.
const DISTURBED: Duration = Duration::from_secs(6);

impl Tally {
    fn disturb(&self) {
        self.disturbances.fetch_add(1, Relaxed);
        *self.disturbed_until.lock().expect("nobody panicked") = Some(Instant::now() + DISTURBED);
    }

    fn is_disturbed(&self) -> bool {
        self.disturbed_until.lock().expect("nobody panicked").is_some_and(|until| Instant::now() < until)
    }
}

#[derive(Clone, Copy)]
struct Sample {
    at: Duration,
    resident: f64,
    descriptors: f64,
    clients: f64,
    disturbances: u64,
}

fn soak(time: Duration) {
    let seed = std::env::var("SOAK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(11);
    println!("SOAK_SEED={seed}, {time:?}");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut app = App::start();
    let at = app.address;
    // Everything that takes its time is to happen often.
    let times = ["--keep-alive-interval", "1s", "--client-timeout-interval", "2s", "--disconnect-timeout", "1s"];
    let more = ["--handshake-timeout", "1s", "--request-head-timeout", "2s", "--shards", "2", "--max-clients", "2000"];
    let node = Node::start(&app, &[&times[..], &more[..]].concat());
    let pid = node.process.id();
    let at_rest = descriptors(&node.process);
    let start = Books::balanced(&node, true);

    let tally = Arc::new(Tally::default());
    let stop = Arc::new(AtomicBool::new(false));
    let visitors: Vec<_> = (0..VISITORS)
        .map(|number| {
            let visitor =
                visitor(node.address, number, Random(seed * 10_000 + number as u64), tally.clone(), stop.clone());
            runtime.spawn(visitor)
        })
        .collect();
    let carried: Vec<_> = (0..CARRIED_VISITORS)
        .map(|number| {
            let (address, tally, stop) = (node.address, tally.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut random = Random(seed * 10_000 + 5_000 + number as u64);
                while !stop.load(Relaxed) {
                    // A node that refuses while it has no lane, a disturbance: it comes again.
                    let _ = carried_visit(address, &mut random, &tally);
                }
            })
        })
        .collect();

    let began = Instant::now();
    let (mut samples, mut next_cut, mut next_restart) = (Vec::new(), began + CUT_EVERY, began + RESTART_EVERY);
    let mut sample_at = began + SAMPLE_EVERY;
    // What an app server that was stopped had counted.
    let mut losses = [0; LOSSES.len()];
    while began.elapsed() < time {
        std::thread::sleep(sample_at.saturating_duration_since(Instant::now()));
        sample_at += SAMPLE_EVERY;
        let books = Books::of(&node);
        samples.push(Sample {
            at: began.elapsed(),
            resident: resident_bytes(pid),
            descriptors: descriptors(&node.process) as f64,
            clients: books.get("clients", "") + books.get("http_connections", ""),
            disturbances: tally.disturbances.load(Relaxed),
        });
        if let Some(gone) = visitors.iter().position(tokio::task::JoinHandle::is_finished) {
            panic!("visitor {gone} has seen something wrong");
        }
        // The last disturbance is over before the end.
        if time.saturating_sub(began.elapsed()) < DISTURBED {
            continue;
        }
        if Instant::now() >= next_cut {
            next_cut += CUT_EVERY;
            tally.disturb();
            cut_a_lane(&app);
        }
        if Instant::now() >= next_restart {
            next_restart += RESTART_EVERY;
            losses.iter_mut().zip(LOSSES).for_each(|(sum, loss)| *sum += app.figure(loss));
            tally.disturb();
            drop(app);
            app = App::start_at(at);
        }
    }
    stop.store(true, Relaxed);
    for (number, visitor) in visitors.into_iter().enumerate() {
        runtime.block_on(visitor).unwrap_or_else(|error| panic!("visitor {number}: {error}"));
    }
    carried.into_iter().for_each(|visitor| visitor.join().expect("it only gives up"));

    // All are gone: nothing is left of them, on the node and behind it.
    let books = Books::balanced(&node, true);
    let forgotten = |figure: &str| wait_for(figure, PATIENCE, || (app.figure(figure) == 0).then_some(()));
    ["bindings", "controllers", "view_models", "shared_view_models"].into_iter().for_each(forgotten);
    wait_for("every descriptor to be given back", PATIENCE, || {
        (descriptors(&node.process) <= at_rest + 1).then_some(())
    });
    losses.iter_mut().zip(LOSSES).for_each(|(sum, loss)| *sum += app.figure(loss));

    print_samples(&samples);
    let count = |tally: &AtomicU64| tally.load(Relaxed);
    let (begun, updates) = (count(&tally.begun), count(&tally.updates));
    println!(
        "{begun} visitors, {} more without WebSockets, {updates} updates, {} echoes, {} chats heard {} times, {} disturbances, {} cut off by them",
        count(&tally.carried),
        count(&tally.echoes),
        count(&tally.chats),
        count(&tally.heard_chats),
        count(&tally.disturbances),
        count(&tally.cut_off),
    );
    println!("{}", books.since(&start));

    // The node's numbers and the visitors' own.
    assert_eq!(books.get("clients_opened", "web_sockets"), begun as f64, "visitors that were upgraded");
    let handshakes = books.get("handshakes", "");
    assert!(handshakes >= (count(&tally.handshakes) + count(&tally.carried)) as f64, "{handshakes} handshakes");
    assert!(books.get("client_messages", "update_vm") >= count(&tally.echoes) as f64);
    assert_eq!(books.get("drops", "disconnect_notice"), 0.0);
    for end in
        ["peer_close", "peer_close_frame", "socket_error", "websocket_error", "handshake_canceled", "client_timeout"]
    {
        assert!(books.get("client_ends", end) > 0.0 || time < Duration::from_secs(30), "nobody left by {end}");
    }
    for (loss, sum) in LOSSES.iter().zip(losses) {
        assert_eq!(sum, 0, "{loss} at the app server");
    }

    // Flat: the first third warms up, if there is time for it.
    if time >= Duration::from_secs(30) {
        let third = samples.len() / 3;
        let median = |samples: &[Sample], of: fn(&Sample) -> f64| {
            let mut values: Vec<f64> = samples.iter().map(of).collect();
            values.sort_unstable_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let (middle, last) = (&samples[third..2 * third], &samples[2 * third..]);
        let grown = median(last, |sample| sample.resident) - median(middle, |sample| sample.resident);
        let comings = begun as f64 / 3.0;
        println!(
            "resident memory grew by {:.0} KiB from the second third to the last; {:.0} bytes a visitor would have been seen",
            grown / 1024.0,
            FLAT_BYTES / comings
        );
        assert!(grown <= FLAT_BYTES, "{:.0} KiB more in the last third", grown / 1024.0);
        let surplus = |sample: &Sample| sample.descriptors - sample.clients;
        let grown = median(last, surplus) - median(middle, surplus);
        assert!(grown <= DESCRIPTORS_SLACK, "{grown} more descriptors than connections in the last third");
    }
    if time >= Duration::from_secs(60) {
        let hours = time.as_secs() / 60;
        assert!(begun >= hours * ORDINARY_HOUR.comings, "{begun} visitors are fewer than in an ordinary hour");
        assert!(updates >= hours * ORDINARY_HOUR.updates, "{updates} updates are fewer than in an ordinary hour");
    }
}

/// What the double counts that must never happen, whatever is cut.
const LOSSES: [&str; 5] = ["oversized", "protocol_errors", "slow_connections", "failed_invocations", "unknown_methods"];

fn print_samples(samples: &[Sample]) {
    println!("| s | MiB resident | descriptors | connections | disturbances |\n|---|---|---|---|---|");
    for sample in samples.iter().step_by(samples.len().div_ceil(60).max(1)) {
        println!(
            "| {:.0} | {:.2} | {} | {} | {} |",
            sample.at.as_secs_f64(),
            sample.resident / 1024.0 / 1024.0,
            sample.descriptors,
            sample.clients,
            sample.disturbances
        );
    }
}

/// One of the lanes that clients are bound to, cut as a lost network would.
fn cut_a_lane(app: &App) {
    let reply = get(app.address, "/__double/bindings");
    let bindings: serde_json::Value = serde_json::from_str(&reply.body).expect("/__double/bindings is JSON");
    let Some(lane) = bindings[0]["lane"].as_str() else { return };
    let body = format!("{{\"lane\":\"{lane}\"}}");
    let request = format!(
        "POST /__double/close HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    common::exchange(app.address, request.as_bytes(), PATIENCE);
}

fn descriptors(process: &Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", process.id())).expect("it is running").count()
}

fn resident_bytes(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the node is running");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon is there");
    line.trim().trim_end_matches("kB").trim().parse::<f64>().expect("a number of kB") * 1024.0
}

// ---- Visitors over WebSockets ---------------------------------------------------------------------------------------

type Ws = WebSocketStream<TcpStream>;

/// Comes and goes until it is to stop.
async fn visitor(address: SocketAddr, number: usize, mut random: Random, tally: Arc<Tally>, stop: Arc<AtomicBool>) {
    while !stop.load(Relaxed) {
        let Some(socket) = enter(address, number, &tally).await else {
            // Refused, while no lane is up.
            assert!(tally.is_disturbed(), "visitor {number} was refused for no reason");
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        stay(socket, number, &mut random, &tally, &stop).await;
        tokio::time::sleep(Duration::from_millis(random.below(400))).await;
    }
}

async fn enter(address: SocketAddr, number: usize, tally: &Tally) -> Option<Ws> {
    let socket = TcpSocket::new_v4().ok()?;
    // Who drops it resets it; who closes it in order does not get there.
    socket.set_zero_linger().ok()?;
    socket.bind((Ipv4Addr::new(127, 0, 2, (number % 200 + 1) as u8), 0).into()).ok()?;
    let stream = socket.connect(address).await.ok()?;
    stream.set_nodelay(true).ok()?;
    let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(0);
    let (socket, _) = client_async_with_config(format!("ws://{address}/dotnetify"), stream, Some(config)).await.ok()?;
    tally.begun.fetch_add(1, Relaxed);
    Some(socket)
}

fn call(target: &str, arguments: &str) -> Message {
    Message::text(format!("{{\"type\":1,\"target\":\"{target}\",\"arguments\":[{arguments}]}}\u{1e}"))
}

/// One visit: everything a client does, until it leaves in one of many ways, or is asked to.
async fn stay(mut socket: Ws, number: usize, random: &mut Random, tally: &Tally, stop: &AtomicBool) {
    let manner = random.below(16);
    if manner == 15 {
        // It never shakes hands, and hears why it has to go.
        while let Some(Ok(_)) = socket.next().await {}
        return;
    }
    if socket.send(Message::text("{\"protocol\":\"json\",\"version\":1}\u{1e}")).await.is_err() {
        return;
    }
    match next_text(&mut socket).await {
        Some(text) => assert_eq!(text, "{}\u{1e}", "visitor {number}: the handshake's answer"),
        None => return,
    }
    tally.handshakes.fetch_add(1, Relaxed);
    let room = format!("{{\"$vmArg\":{{\"ChatRoom\":\"room {}\"}}}}", random.below(40));
    let mut calls = vec![call("Request_VM", "\"BurstVM\",{}")];
    if random.below(3) == 0 {
        calls.push(call("Request_VM", &format!("\"ChatRoomVM\",{room}")));
    }
    let chats = calls.len() > 1;
    for message in calls {
        if socket.send(message).await.is_err() {
            return;
        }
    }
    // Numbers of echoes: sent and heard; and the disturbances there had been when each was sent.
    let (mut sent, mut heard) = (0u64, 0u64);
    let until = Instant::now() + Duration::from_millis(500 + random.below(4000));
    let mut pace = tokio::time::interval(Duration::from_millis(100 + random.below(150)));
    let disturbances = tally.disturbances.load(Relaxed);
    let mut oldest = Instant::now();
    while Instant::now() < until && !stop.load(Relaxed) {
        tokio::select! {
            _ = pace.tick() => {
                sent += 1;
                if heard + 1 == sent {
                    oldest = Instant::now();
                }
                let is_lost = oldest.elapsed() > Duration::from_secs(5) && heard + 1 < sent;
                assert!(!is_lost || tally.is_disturbed(), "visitor {number}: {heard} of {sent} echoes");
                let message = match random.below(12) {
                    0 if chats => {
                        tally.chats.fetch_add(1, Relaxed);
                        sent -= 1;
                        call("Update_VM", &format!("\"ChatRoomVM\",{{\"SendMessage\":{{\"MessageId\":\"{number}-{}\"}}}}", random.below(1 << 40)))
                    }
                    1 => {
                        sent -= 1;
                        call("Request_VM", "\"HelloWorldVM\",{\"$vmArg\":{\"TickInterval\":200}}")
                    }
                    2 => {
                        sent -= 1;
                        call("Dispose_VM", "\"HelloWorldVM\"")
                    }
                    _ => {
                        tally.updates.fetch_add(1, Relaxed);
                        call("Update_VM", &format!("\"BurstVM\",{{\"Send\":{sent}}}"))
                    }
                };
                if socket.send(message).await.is_err() {
                    break;
                }
            }
            text = next_text(&mut socket) => {
                let Some(text) = text else {
                    // Ended by the node: its lane was lost, or what it waited for.
                    assert!(tally.is_disturbed(), "visitor {number} was cut off for no reason");
                    tally.cut_off.fetch_add(1, Relaxed);
                    return;
                };
                for record in text.split_terminator('\u{1e}') {
                    if record.contains("Messages_add") {
                        tally.heard_chats.fetch_add(1, Relaxed);
                    }
                    let Some((_, echo)) = record.split_once("{\\\"Echo\\\":") else { continue };
                    let Ok(echo) = echo.split('}').next().unwrap_or_default().parse::<u64>() else { continue };
                    tally.echoes.fetch_add(1, Relaxed);
                    let undisturbed = disturbances == tally.disturbances.load(Relaxed) && !tally.is_disturbed();
                    assert!(echo > heard && echo <= sent, "visitor {number}: echo {echo} behind {heard} of {sent}");
                    assert!(echo == heard + 1 || !undisturbed, "visitor {number}: echo {echo} behind {heard}");
                    (heard, oldest) = (echo, Instant::now());
                }
            }
        }
    }
    leave(socket, manner).await;
}

/// The ways to go.
async fn leave(mut socket: Ws, manner: u64) {
    match manner {
        // In order, by WebSocket or by hub.
        0..=5 => {
            let _ = socket.close(None).await;
            while let Some(Ok(_)) = socket.next().await {}
        }
        6..=8 => {
            let _ = socket.send(Message::text("{\"type\":7}\u{1e}")).await;
            while let Some(Ok(_)) = socket.next().await {}
        }
        // Reset, as it was made to.
        9 | 10 => drop(socket),
        // The end of its stream, and no word.
        11 => {
            if let Ok(stream) = socket.into_inner().into_std() {
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.set_nonblocking(false);
                let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
                // The node's own end; it is not waited for long, as this holds up a thread.
                let _ = (&stream).read(&mut [0; 4096]);
            }
        }
        // What is no frame.
        12 | 13 => {
            let stream = socket.into_inner();
            let _ = stream.try_write(&[0xff; 50]);
            let mut heard = [0; 4096];
            while stream.readable().await.is_ok() && !matches!(stream.try_read(&mut heard), Ok(0)) {}
        }
        // Silence, once it has said that it would not be silent.
        _ => {
            let _ = socket.send(Message::text("{\"type\":6}\u{1e}")).await;
            while let Some(Ok(_)) = socket.next().await {}
        }
    }
}

async fn next_text(socket: &mut Ws) -> Option<String> {
    loop {
        match socket.next().await? {
            Ok(Message::Text(text)) if text.as_str().contains("\"type\":7") => return None,
            Ok(Message::Text(text)) => return Some(text.as_str().to_owned()),
            Ok(Message::Close(_)) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

// ---- Visitors without WebSockets ------------------------------------------------------------------------------------

/// A request on a connection of its own, or on one that is there, and its answer's body.
fn ask(stream: &mut std::net::TcpStream, method: &str, target: &str, body: &str) -> io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes())?;
    let reply = common::read_reply(stream, Duration::ZERO);
    if reply.status == 200 { Ok(reply.body) } else { Err(io::Error::other(reply.text)) }
}

/// One visit over polls or an event stream, with one view model.
fn carried_visit(address: SocketAddr, random: &mut Random, tally: &Tally) -> io::Result<()> {
    let mut posts = std::net::TcpStream::connect(address)?;
    let answer = ask(&mut posts, "POST", "/dotnetify/negotiate?negotiateVersion=1", "")?;
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("negotiate answers JSON");
    let target = format!("/dotnetify?id={}", answer["connectionToken"].as_str().expect("a token"));
    let hello = "{\"protocol\":\"json\",\"version\":1}\u{1e}";
    let request = "{\"type\":1,\"target\":\"Request_VM\",\"arguments\":[\"BurstVM\",{}]}\u{1e}";
    if random.below(2) == 0 {
        let mut polls = std::net::TcpStream::connect(address)?;
        ask(&mut polls, "GET", &target, "")?;
        ask(&mut posts, "POST", &target, hello)?;
        ask(&mut polls, "GET", &target, "")?;
        tally.carried.fetch_add(1, Relaxed);
        ask(&mut posts, "POST", &target, request)?;
        while !ask(&mut polls, "GET", &target, "")?.contains("Echo") {}
        if random.below(2) == 0 {
            // 202: not one of `ask`'s.
            let _ = ask(&mut posts, "DELETE", &target, "");
        }
    } else {
        let mut events = std::net::TcpStream::connect(address)?;
        events.set_read_timeout(Some(PATIENCE))?;
        events
            .write_all(format!("GET {target} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n").as_bytes())?;
        let mut until = |word: &str| -> io::Result<()> {
            let (mut heard, mut chunk) = (Vec::new(), [0; 4096]);
            while memchr::memmem::find(&heard, word.as_bytes()).is_none() {
                match events.read(&mut chunk)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    count => heard.extend_from_slice(&chunk[..count]),
                }
            }
            Ok(())
        };
        until(":\r\n")?;
        ask(&mut posts, "POST", &target, hello)?;
        until("{}")?;
        tally.carried.fetch_add(1, Relaxed);
        ask(&mut posts, "POST", &target, request)?;
        until("Echo")?;
    }
    std::thread::sleep(Duration::from_millis(random.below(100)));
    Ok(())
}

// ---- The tests ------------------------------------------------------------------------------------------------------

#[test]
#[ignore = "takes a minute, or SOAK_SECONDS; run: cargo test --release --test soak -- --ignored --nocapture"]
fn an_hour_of_comings_and_goings_leaves_nothing_behind() {
    let seconds = std::env::var("SOAK_SECONDS").ok().map(|seconds| seconds.parse().expect("SOAK_SECONDS is a number"));
    soak(Duration::from_secs(seconds.unwrap_or(60)));
}

#[test]
fn a_moment_of_comings_and_goings_leaves_nothing_behind() {
    soak(Duration::from_secs(15));
}

/// Of clients that come and go in order, the node counts every message and every byte, and so does the app server.
#[test]
fn the_books_are_exact_to_the_byte() {
    let app = App::start();
    let node = Node::start(&app, &["--shards", "2"]);
    let (clients, updates) = (20, 50);
    let (mut sent, mut received) = (0, 0);
    for number in 0..clients {
        let mut stream = std::net::TcpStream::connect(node.address).expect("the listener accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        let mut heard: Vec<u8> = Vec::new();
        // Sends, and waits for these words.
        let mut say = |stream: &mut std::net::TcpStream, bytes: &[u8], words: &str| {
            stream.write_all(bytes).expect("the node takes it");
            sent += bytes.len();
            while memchr::memmem::rfind(&heard, words.as_bytes()).is_none() {
                let mut chunk = [0; 4096];
                let count = stream.read(&mut chunk).expect("an answer");
                assert!(count > 0, "closed before {words}");
                heard.extend_from_slice(&chunk[..count]);
            }
        };
        say(&mut stream, format!("{}\r\n", upgrade_head(node.address, "/dotnetify")).as_bytes(), "\r\n\r\n");
        say(&mut stream, &record(r#"{"protocol":"json","version":1}"#), "{}\u{1e}");
        say(&mut stream, &record(r#"{"type":1,"target":"Request_VM","arguments":["BurstVM",{}]}"#), "null}");
        for n in 0..updates {
            let update =
                format!(r#"{{"type":1,"target":"Update_VM","arguments":["BurstVM",{{"Send":"{number}/{n}"}}]}}"#);
            say(&mut stream, &record(&update), &format!("{number}/{n}\\\""));
        }
        say(&mut stream, &record(r#"{"type":1,"target":"Dispose_VM","arguments":["BurstVM"]}"#), "");
        say(&mut stream, &frame(FIN | CLOSE, &1000u16.to_be_bytes()), "");
        stream.read_to_end(&mut heard).expect("the node closes in order");
        received += heard.len();
        // Its last word is a Close frame (RFC 6455 section 5.5.1).
        let close = heard.len() - 4;
        let (last, _) = parse(&heard[close..]).expect("a frame");
        assert_eq!((last.opcode(), last.code()), (CLOSE, Some(1000)));
    }
    let books = Books::balanced(&node, true);
    assert_eq!(books.get("bytes", "client_in"), sent as f64);
    assert_eq!(books.get("bytes", "client_out"), received as f64);
    for (kind, count) in [("request_vm", clients), ("update_vm", clients * updates), ("dispose_vm", clients)] {
        assert_eq!(books.get("client_messages", kind), f64::from(count), "{kind} received");
        assert_eq!(books.get("forwarded", kind), f64::from(count), "{kind} forwarded");
    }
    assert_eq!(books.get("forwarded", "disconnect"), f64::from(clients));
    // One state, and an echo for each update.
    assert_eq!(books.get("deliveries", "one"), f64::from(clients * (1 + updates)));
    assert_eq!(books.get("client_ends", "peer_close_frame"), f64::from(clients));
    wait_for("the app server to have heard all of it", PATIENCE, || {
        (app.figure("invokes") as f64 == books.get("forwarded", "")).then_some(())
    });
}
