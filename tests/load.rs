//! The load tester against the double, against nodes in front of it, and against a server that cheats.
//!
//! What it says about a node is worth as much as its power to say otherwise: `Liar` loses, repeats, swaps and misdirects on purpose.

#[path = "common/certificates.rs"]
mod certificates;
mod common;

use certificates::{Authority, Folder};
use common::{App, Node, PATIENCE, Process, wait_for};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use signalring::load::{self, Figures, Options, Profile, Protocol, Report, Stage};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_tungstenite::tungstenite::Message;

const PROFILES: [Profile; 6] =
    [Profile::Echo, Profile::SharedEcho, Profile::Broadcast, Profile::ChatRoom, Profile::Idle, Profile::Burst];

fn options(server: &str, profile: Profile) -> Options {
    // Some thousand messages a second at most: debug builds on a busy machine have to keep up with it.
    let interval = match profile {
        Profile::ChatRoom => 20,
        Profile::Burst => 1000,
        _ => 100,
    };
    Options {
        clients: 200,
        run: Duration::from_secs(2),
        ramp_up: Duration::from_millis(500),
        ramp_down: Duration::from_millis(200),
        interval: Duration::from_millis(interval),
        groups: 7,
        ..Options::new(load::server(server).expect("a URL"), profile)
    }
}

fn run(options: Options) -> Report {
    load::start(options).expect("the load starts").finish()
}

#[track_caller]
fn assert_passed(report: &Report) {
    let total = &report.total;
    assert!(report.passed && total.is_clean(), "{report}\n{}", report.json());
    assert_eq!((total.connected, total.active, total.sent.dispose_vm), (total.clients, 0, total.clients), "{report}");
    if report.profile != Profile::Idle {
        assert!(total.received > total.clients, "something was to be checked: {report}");
        assert_eq!(
            total.of_clients.map(|of_clients| of_clients.clients as u64 > total.clients / 2),
            Some(true),
            "{report}"
        );
    }
}

#[test]
fn every_profile_passes_directly_against_the_double() {
    let app = App::start_with(&["--message-pack"]);
    for (index, profile) in PROFILES.into_iter().enumerate() {
        let protocol = if index % 2 == 0 { Protocol::Json } else { Protocol::MessagePack };
        let report = run(Options { protocol, ..options(&app.url(), profile) });
        assert_passed(&report);
        let latency = match profile {
            Profile::Echo | Profile::SharedEcho | Profile::Burst => &report.total.round_trip,
            Profile::Broadcast => &report.total.interval,
            Profile::ChatRoom => &report.total.delivery,
            Profile::Idle => &report.total.connect,
        };
        let latency = latency.expect("it was measured");
        assert!(latency.min <= latency.p50 && latency.p50 <= latency.p99 && latency.p99 <= latency.max, "{latency:?}");
        if profile == Profile::Broadcast {
            assert!((90.0..150.0).contains(&latency.mean), "ticks come every 100 ms: {latency:?}");
            let rates = report.total.rates.expect("the load is over");
            assert!((800.0..2500.0).contains(&rates.received), "200 clients, ten ticks a second: {rates:?}");
            assert_eq!(rates.sent, 0.0, "who listens is silent");
        }
    }
    wait_for("everybody to be gone", PATIENCE, || (app.figure("controllers") == 0).then_some(()));
    for wrong in ["failed_invocations", "dropped_updates", "lost_sends", "protocol_errors", "leaks"] {
        assert_eq!(app.figure(wrong), 0, "{wrong}");
    }
}

#[test]
fn every_profile_passes_through_a_node_in_json_and_counts_what_the_node_counts() {
    every_profile_passes_through_a_node(Protocol::Json);
}

#[test]
fn every_profile_passes_through_a_node_in_message_pack_and_counts_what_the_node_counts() {
    every_profile_passes_through_a_node(Protocol::MessagePack);
}

fn every_profile_passes_through_a_node(protocol: Protocol) {
    let app = App::start_with(&["--message-pack"]);
    let node = Node::start(&app, &["--shards", "2"]);
    let url = format!("http://{}", node.address);
    let counts = || {
        let messages = |kind: &str| node.metric_where("signalring_client_messages", &format!("kind=\"{kind}\"")) as u64;
        let deliveries = node.metric("signalring_deliveries") as u64;
        [messages("request_vm"), messages("update_vm"), messages("dispose_vm"), deliveries]
    };
    for profile in PROFILES {
        let before = counts();
        let report = run(Options { protocol, ..options(&url, profile) });
        assert_passed(&report);
        wait_for("the node to count nobody", PATIENCE, || (node.metric("signalring_clients") == 0.0).then_some(()));
        let after = counts();
        let counted: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        let sent = report.total.sent;
        let own = [sent.request_vm, sent.update_vm, sent.dispose_vm, report.total.responses];
        assert_eq!(counted, own, "{profile:?} {protocol:?}: what the node counted, and what the clients did: {report}");
    }
}

/// The clients of a url that is stopped go on with another one, where their view models begin anew; the others, and whoever comes
/// meanwhile, notice nothing, and when it is back it gets clients again.
#[test]
fn of_three_urls_one_is_stopped_and_started_under_load() {
    let mut apps: Vec<App> = (0..3).map(|_| App::start()).collect();
    let stopped = apps[1].address;
    let urls: Vec<String> = apps.iter().map(App::url).collect();
    let node = Node::configured(&format!(
        "shards = 1\n[[upstream]]\nname = \"three\"\nurls = {urls:?}\nconnection_pool_size = 2\n"
    ));
    let up = |url: &str| node.metric_where("signalring_upstream_up", &format!("url=\"{url}\""));
    let all_up = || wait_for("every url", PATIENCE, || urls.iter().all(|url| up(url) == 1.0).then_some(()));
    all_up();
    let clients = |app: &App| app.figure("controllers");
    let load = |run| {
        let url = format!("http://{}", node.address);
        let few = Options { clients: 60, run, ramp_up: Duration::ZERO, ..options(&url, Profile::Echo) };
        load::start(few).expect("the load starts")
    };

    let first = load(Duration::from_secs(600));
    wait_for("clients on all three", PATIENCE, || apps.iter().all(|app| clients(app) == 20).then_some(()));
    drop(apps.remove(1));
    wait_for("its clients to begin anew", PATIENCE, || (first.stats().total.renewed == 20).then_some(()));
    wait_for("the url to be left out", PATIENCE, || (up(&urls[1]) == 0.0).then_some(()));
    // Who comes now is dealt over the other two, and misses nothing.
    assert_passed(&load(Duration::from_secs(3)).finish());
    wait_for("them to be gone", PATIENCE, || apps.iter().all(|app| clients(app) == 30).then_some(()));

    apps.insert(1, App::start_at(stopped));
    all_up();
    let later = load(Duration::from_secs(600));
    // 120 clients in all: the one that came back has none yet.
    wait_for("the fewest to get most", PATIENCE, || {
        let there: Vec<u64> = apps.iter().map(clients).collect();
        (there.iter().sum::<u64>() == 120 && there.iter().all(|count| (35..=45).contains(count))).then_some(())
    });
    later.stop();
    let report = later.finish();
    assert!(report.passed && report.total.is_clean(), "{report}");
    first.stop();
    let report = first.finish();
    let Figures { renewed, disconnects, missed, duplicated, reordered, misdelivered, errors, .. } = report.total;
    let counted = (renewed, disconnects, missed, duplicated, reordered, misdelivered, errors);
    assert_eq!(counted, (20, 0, 0, 0, 0, 0, 0), "{report}");
}

#[test]
fn two_servers_are_loaded_at_the_same_time_and_share_one_app_server() {
    let app = App::start();
    let nodes = [Node::start(&app, &["--shards", "1"]), Node::start(&app, &["--shards", "1"])];
    let urls = nodes.iter().map(|node| load::server(&format!("http://{}", node.address)).unwrap()).collect();
    for profile in [Profile::Broadcast, Profile::ChatRoom] {
        let servers: Vec<url::Url> = Vec::clone(&urls);
        // Sources of their own for every 50 clients; no negotiation; on two threads.
        let options = Options {
            servers,
            connections_per_address: 50,
            skip_negotiation: true,
            threads: 2,
            groups: 3,
            ..options(&app.url(), profile)
        };
        let report = run(options);
        assert_passed(&report);
        assert_eq!((report.servers.len(), report.total.clients), (2, 400));
        assert!(report.servers.iter().all(|server| server.figures.connected == 200), "{report}");
        let received: u64 = report.servers.iter().map(|server| server.figures.received).sum();
        assert_eq!(received, report.total.received);
    }
}

#[test]
fn https_servers_are_checked_against_an_authority_or_taken_as_they_are() {
    let (authority, folder) = (Authority::new("the tests' authority"), Folder::new());
    let (certificate, key) = folder.pair("node", &authority.issue(&["localhost", "127.0.0.1"]));
    let ca_file = folder.file("ca.pem", authority.pem());
    let app = App::start();
    let files = [certificate.to_str().unwrap(), key.to_str().unwrap()];
    let app_url = app.url();
    let flags = ["--app-server", &app_url, "--tls-certificate-file", files[0], "--tls-key-file", files[1]];
    let listen = ["run", "--listen", "https://127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let mut node = Process::signalring("node", &[&listen[..], &flags].concat());
    let url = node.printed("listening on ");
    let few = Options { clients: 20, interval: Duration::from_millis(20), ..options(&url, Profile::Burst) };
    assert_passed(&run(Options { ca_file: Some(ca_file), ..few.clone() }));
    assert_passed(&run(Options { insecure: true, ..few.clone() }));
    let report = run(few);
    assert!(!report.passed);
    assert_eq!(report.total.failed_connects, 20, "the operating system does not know the authority: {report}");
    assert!(report.total.faults.keys().any(|fault| fault.contains("certificate")), "{report}");
}

#[test]
fn a_negotiation_may_point_elsewhere() {
    let app = App::start();
    let elsewhere =
        json!({ "url": format!("{}/dotnetify?tenant=a", app.url()), "accessToken": "e30.eyJzdWIiOiJ1MSJ9.x" });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let service = axum::Router::new()
        .route("/base/hub/negotiate", axum::routing::post(async move || axum::Json(elsewhere.clone())));
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}/base/", listener.local_addr().unwrap());
    runtime.spawn(async move { axum::serve(listener, service).await });
    let few = Options { clients: 20, hub_path: "/hub".into(), ..options(&url, Profile::Burst) };
    assert_passed(&run(few.clone()));
    let report = run(Options { hub_path: "/nothing".into(), ..few });
    assert_eq!((report.passed, report.total.failed_connects), (false, 20), "{report}");
    assert!(report.total.faults.keys().any(|fault| fault.contains("404")), "{report}");
}

#[test]
fn a_run_can_be_watched_and_stopped() {
    let app = App::start();
    let options = Options {
        run: Duration::from_secs(600),
        ramp_down: Duration::from_secs(600),
        ..options(&app.url(), Profile::Burst)
    };
    let running = load::start(options).expect("the load starts");
    let first = wait_for("load", PATIENCE, || {
        let stats = running.stats();
        (stats.stage == Stage::Load && stats.total.received > 6000).then_some(stats)
    });
    assert_eq!((first.total.active, first.total.clients), (200, 200));
    let later = wait_for("more", PATIENCE, || {
        let stats = running.stats();
        (stats.total.received > first.total.received).then_some(stats)
    });
    assert!(later.rates_since(&first).received > 0.0);
    assert!(!running.is_finished());
    running.stop();
    let report = running.finish();
    assert_passed(&report);
    assert!(report.interrupted);
}

#[test]
fn the_command_says_how_it_went_with_its_exit_code() {
    let app = App::start();
    let port = app.address.port().to_string();
    let url = app.url();
    let arguments = ["load", "-s", &url, "-p", "burst", "-c", "20", "-u", "0", "-d", "0", "-r", "600", "-i", "20"];
    let mut endless = Process::signalring("load", &[&arguments[..], &["--quiet", "--json", "-"]].concat());
    wait_for("its clients", PATIENCE, || (app.figure("controllers") == 20).then_some(()));
    std::thread::sleep(Duration::from_millis(500));
    let interrupted = std::process::Command::new("kill").args(["-INT", &endless.id().to_string()]).status();
    assert!(interrupted.expect("kill is there").success());
    let status = endless.wait(PATIENCE).expect("Ctrl+C ends it");
    assert_eq!(status.code(), Some(0), "{}", endless.output());
    // The process may have ended before all it printed has been read.
    let report: Value =
        wait_for("a report that is JSON and nothing else", PATIENCE, || serde_json::from_str(&endless.output()).ok());
    assert_eq!(
        (&report["interrupted"], &report["passed"], &report["profile"]),
        (&json!(true), &json!(true), &json!("burst"))
    );
    assert_eq!(report["servers"][0]["server"], url);
    assert!(report["total"]["received"].as_u64() > Some(100), "{report}");
    for member in ["count", "min", "mean", "p50", "p90", "p99", "p99_9", "max"] {
        assert!(report["total"]["round_trip"][member].is_number(), "{member}: {report}");
    }

    // Nobody listens there any more.
    drop(app);
    let unreachable = format!("http://127.0.0.1:{port}");
    let mut fails =
        Process::signalring("load", &["load", "-s", &unreachable, "-c", "3", "-u", "0", "-d", "0", "-r", "0"]);
    assert_eq!(fails.wait(PATIENCE).and_then(|status| status.code()), Some(1));
    wait_for("the verdict", PATIENCE, || fails.output().contains("FAILED").then_some(()));
    let output = fails.output();
    assert!(output.contains("Connection refused"), "{output}");
    assert!(output.contains("Clients=0, Received=0, Missed=0%"), "the original's closing line: {output}");
    let mut refused = Process::signalring("load", &["load", "-s", "ftp://node"]);
    assert_eq!(refused.wait(PATIENCE).and_then(|status| status.code()), Some(2));
}

// ---- a server that cheats ----------------------------------------------------------------------------------------------

/// What it does to the message with number `NUMBER` on its way to the client that came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    Nothing,
    /// Does not send it.
    Loses,
    /// Sends none any more.
    FallsSilent,
    Repeats,
    /// Sends it after the next one.
    Swaps,
    /// Sends it as if for somebody else: another connection id, room or client.
    Misdirects,
    /// Sends it under the id of another view model.
    Mislabels,
    Throws,
    /// Sends the state, and goes on from there.
    Renews,
    HangsUp,
}

const NUMBER: u32 = 5;

/// Speaks just enough SignalR for the profiles, without negotiation.
#[derive(Clone)]
struct Liar {
    lie: Lie,
    address: SocketAddr,
    members: Arc<Mutex<Vec<Member>>>,
    /// Of the latest tick, changed with `members` locked: who joins gets it as its state, and the next one as a message.
    tick: Arc<AtomicU32>,
}

#[derive(Clone)]
struct Member {
    outbox: UnboundedSender<Value>,
    /// Numbered messages so far, and one that was held back.
    history: Arc<Mutex<(u32, Option<Value>)>>,
    is_victim: bool,
    room: String,
}

impl Liar {
    async fn start(lie: Lie) -> Liar {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let liar = Liar { lie, address: listener.local_addr().unwrap(), members: Arc::default(), tick: Arc::default() };
        let accepting = liar.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(accepting.clone().serve(stream));
            }
        });
        // All members of a room are ticked together.
        let ticking = liar.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let members = ticking.members.lock().unwrap();
                let sequence = ticking.tick.fetch_add(1, Ordering::Relaxed) + 1;
                for member in members.iter().filter(|member| member.room == "BroadcastVM") {
                    ticking.send(member, "BroadcastVM", json!({ "Tick": tick(sequence) }));
                }
            }
        });
        liar
    }

    async fn serve(self, stream: tokio::net::TcpStream) {
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        let (outbox, mut queue) = unbounded_channel();
        let is_victim = self.members.lock().unwrap().is_empty();
        let mut me = Member { outbox, history: Arc::default(), is_victim, room: String::new() };
        loop {
            let text = tokio::select! {
                Some(record) = queue.recv() => {
                    if record == HANG_UP {
                        return;
                    }
                    let _ = socket.send(Message::text(format!("{record}\u{1e}"))).await;
                    continue;
                }
                message = socket.next() => match message {
                    Some(Ok(Message::Text(text))) => text,
                    Some(Ok(_)) => continue,
                    _ => return,
                },
            };
            for record in text.split_terminator('\u{1e}') {
                let record: Value = serde_json::from_str(record).unwrap();
                if record.get("protocol").is_some() {
                    let _ = me.outbox.send(json!({}));
                }
                let arguments = &record["arguments"];
                let view_model = arguments[0].as_str().unwrap_or_default();
                match record["target"].as_str() {
                    Some("Request_VM") => {
                        let room = arguments[1]["$vmArg"]["ChatRoom"].as_str();
                        me.room = room.unwrap_or(view_model).to_owned();
                        let mut members = self.members.lock().unwrap();
                        response(&me, view_model, self.state());
                        members.push(me.clone());
                        drop(members);
                        if view_model == "EchoVM" {
                            self.send(&me, view_model, ping("me", 1));
                        }
                    }
                    Some("Update_VM") => self.update(&me, view_model, &arguments[1]).await,
                    _ => {}
                }
            }
        }
    }

    async fn update(&self, me: &Member, view_model: &str, data: &Value) {
        match view_model {
            "EchoVM" => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let (id, last) = (&data["Pong"]["ConnectionId"], &data["Pong"]["Sequence"]);
                self.send(me, view_model, ping(id.as_str().unwrap(), last.as_u64().unwrap() + 1));
            }
            "ChatRoomVM" => {
                let members = self.members.lock().unwrap().clone();
                for member in members.iter().filter(|member| member.room == me.room) {
                    self.send(member, view_model, json!({ "Messages_add": data["SendMessage"] }));
                }
            }
            "BurstVM" => self.send(me, view_model, json!({ "Echo": data["Send"] })),
            _ => {}
        }
    }

    /// A view model's whole state.
    fn state(&self) -> Value {
        json!({ "Tick": tick(self.tick.load(Ordering::Relaxed)), "TickInterval": 20 })
    }

    /// Sends a numbered message, or lies.
    fn send(&self, member: &Member, view_model: &str, data: Value) {
        let mut history = member.history.lock().unwrap();
        history.0 += 1;
        let is_it = member.is_victim && history.0 == NUMBER;
        let falls_silent = member.is_victim && history.0 >= NUMBER && self.lie == Lie::FallsSilent;
        match self.lie {
            Lie::Loses if is_it => {}
            Lie::FallsSilent if falls_silent => {}
            Lie::Repeats if is_it => {
                response(member, view_model, data.clone());
                response(member, view_model, data);
            }
            Lie::Swaps if is_it => history.1 = Some(data),
            Lie::Misdirects if is_it => response(member, view_model, misdirected(data)),
            Lie::Mislabels if is_it => response(member, "HelloWorldVM", data),
            Lie::Throws if is_it => {
                response(member, view_model, json!({ "ExceptionType": "InvalidOperationException", "Message": "no" }));
                response(member, view_model, data);
            }
            // Not even a lie: what a proxy does that lost a lane.
            Lie::Renews if is_it => {
                response(member, view_model, self.state());
                let is_ping = data.get("Ping").is_some();
                response(member, view_model, if is_ping { ping("me again", 1) } else { data });
            }
            Lie::HangsUp if is_it => {
                let _ = member.outbox.send(HANG_UP.into());
            }
            _ => {
                response(member, view_model, data);
                if let Some(held) = history.1.take() {
                    response(member, view_model, held);
                }
            }
        }
    }
}

const HANG_UP: &str = "hang up";
const NOW: &str = "2026-01-01T00:00:00.1234567Z";

fn response(member: &Member, view_model: &str, data: Value) {
    let record = json!({ "type": 1, "target": "Response_VM", "arguments": [[view_model, data.to_string()]] });
    let _ = member.outbox.send(record);
}

fn ping(id: &str, sequence: u64) -> Value {
    json!({ "Ping": { "ConnectionId": id, "Time": NOW, "Sequence": sequence, "PrevLatency": 1.5, "AvgLatency": 1.5 } })
}

fn tick(sequence: u32) -> Value {
    json!({ "Time": NOW, "Sequence": sequence })
}

fn misdirected(mut data: Value) -> Value {
    for (message, member, other) in [("Ping", "ConnectionId", "somebody else"), ("Echo", "ClientId", "somebody else")] {
        if data.get(message).is_some() {
            data[message][member] = json!(other);
        }
    }
    // The sender's neighbour, by index, is in the other room.
    if let Some(id) = data["Messages_add"]["SenderId"].as_str() {
        let (run, index) = id.rsplit_once('.').unwrap();
        data["Messages_add"]["SenderId"] = json!(format!("{run}.{}", index.parse::<u32>().unwrap() ^ 1));
    }
    data
}

/// missed, duplicated, reordered, misdelivered, errors, disconnects.
type Counts = [u64; 6];

fn counts(figures: &Figures) -> Counts {
    [figures.missed, figures.duplicated, figures.reordered, figures.misdelivered, figures.errors, figures.disconnects]
}

fn against(lie: Lie, profile: Profile) -> Report {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let liar = runtime.block_on(Liar::start(lie));
    run(Options {
        clients: 4,
        skip_negotiation: true,
        groups: 2,
        // One after the other, so that the victim is known: it joined first.
        ramp_up: Duration::from_millis(200),
        ramp_down: Duration::ZERO,
        run: Duration::from_millis(1500),
        interval: Duration::from_millis(if profile == Profile::ChatRoom { 4 } else { 20 }),
        ..options(&format!("http://{}", liar.address), profile)
    })
}

#[track_caller]
fn assert_caught(lie: Lie, profile: Profile, expected: Counts) {
    let report = against(lie, profile);
    assert_eq!(counts(&report.total), expected, "{lie:?} in {profile:?}: {report}");
    assert_eq!(report.passed, expected == [0; 6], "{lie:?} in {profile:?}: {report}");
    assert_eq!(report.total.connected, 4, "{report}");
}

/// Most of a run is waiting: several are made at the same time.
fn at_once<const N: usize>(profiles: [Profile; N], check: impl Fn(Profile) + Sync) {
    std::thread::scope(|scope| {
        for profile in profiles {
            let check = &check;
            scope.spawn(move || check(profile));
        }
    });
}

#[test]
fn an_honest_server_passes_where_a_cheat_will_not() {
    at_once([Profile::Echo, Profile::Broadcast, Profile::ChatRoom, Profile::Burst], |profile| {
        assert_caught(Lie::Nothing, profile, [0; 6]);
    });
}

#[test]
fn what_is_lost_in_the_middle_is_missed() {
    // In an echo the client cannot answer what it did not get, so no further ping comes: one is owed at the end.
    at_once([Profile::Echo, Profile::Broadcast, Profile::ChatRoom, Profile::Burst], |profile| {
        assert_caught(Lie::Loses, profile, [1, 0, 0, 0, 0, 0]);
    });
}

#[test]
fn what_never_comes_any_more_is_missed_too() {
    at_once([Profile::Echo, Profile::Broadcast, Profile::ChatRoom, Profile::Burst], |profile| {
        if profile == Profile::Echo {
            return assert_caught(Lie::FallsSilent, profile, [1, 0, 0, 0, 0, 0]);
        }
        let report = against(Lie::FallsSilent, profile);
        let [missed, others @ ..] = counts(&report.total);
        assert!(missed > 1 && others == [0; 5] && !report.passed, "{profile:?}: {report}");
        let faults = report.total.faults.keys().filter(|fault| fault.contains("Missed=[")).count();
        assert_eq!(faults, 1, "one client missed them, and it is named: {report}");
        if profile == Profile::Burst {
            let sent = report.total.sent.update_vm;
            assert_eq!(report.total.received + missed, sent, "each is accounted for: {report}");
        }
    });
}

#[test]
fn repetitions_and_swaps_are_told_apart() {
    at_once([Profile::Echo, Profile::Broadcast, Profile::ChatRoom, Profile::Burst], |profile| {
        assert_caught(Lie::Repeats, profile, [0, 1, 0, 0, 0, 0]);
    });
    at_once([Profile::Broadcast, Profile::Burst], |profile| {
        assert_caught(Lie::Swaps, profile, [0, 0, 1, 0, 0, 0]);
    });
}

#[test]
fn messages_for_somebody_else_are_noticed_and_do_not_count_as_received() {
    // What came to the wrong client did not come to the right one; where there are numbers, that shows as well.
    at_once([Profile::Echo, Profile::Broadcast, Profile::ChatRoom, Profile::Burst], |profile| {
        let lie = if profile == Profile::Broadcast { Lie::Mislabels } else { Lie::Misdirects };
        assert_caught(lie, profile, [1, 0, 0, 1, 0, 0]);
    });
}

#[test]
fn exceptions_and_lost_connections_are_counted() {
    at_once([Profile::Echo, Profile::Broadcast, Profile::ChatRoom, Profile::Burst], |profile| match profile {
        Profile::Burst => assert_caught(Lie::Throws, profile, [0, 0, 0, 0, 1, 0]),
        _ => assert_caught(Lie::HangsUp, profile, [0, 0, 0, 0, 0, 1]),
    });
}

/// A fresh state that nobody asked for ends what was owed, and begins anew; the run does not pass as if nothing had happened.
#[test]
fn renewed_view_models_are_counted_and_followed() {
    at_once([Profile::Echo, Profile::Broadcast, Profile::ChatRoom, Profile::Burst], |profile| {
        let report = against(Lie::Renews, profile);
        assert_eq!((counts(&report.total), report.total.renewed), ([0; 6], 1), "{profile:?}: {report}");
        assert!(!report.passed && report.total.received > u64::from(NUMBER), "{profile:?}: {report}");
    });
}

// ---- many --------------------------------------------------------------------------------------------------------------

#[test]
#[ignore = "opens 5,000 connections twice; run: cargo test --release --test load -- --ignored --nocapture"]
fn five_thousand_clients_miss_nothing_directly_and_through_a_node() {
    let app = App::start_with(&["--message-pack"]);
    let node = Node::start(&app, &["--shards", "1"]);
    let node_url = format!("http://{}", node.address);
    for (what, url) in [("directly against the app server", &app.url()), ("through a node with one shard", &node_url)] {
        for profile in [Profile::Echo, Profile::SharedEcho, Profile::Broadcast, Profile::ChatRoom] {
            let report = run(Options {
                clients: 5000,
                // A room of 50 has 5 chatty and 10 casual senders: some 3,000 deliveries a second in all.
                groups: 100,
                interval: Duration::from_secs(1),
                ramp_up: Duration::from_secs(4),
                run: Duration::from_secs(6),
                ramp_down: Duration::from_secs(1),
                ..options(url, profile)
            });
            println!("\n5,000 clients, {profile:?}, {what}\n{report}");
            assert_passed(&report);
        }
    }
}
