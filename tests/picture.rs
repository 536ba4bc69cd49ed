//! The live picture: what the admin endpoint shows of two nodes with real clients, and the page in Chromium (`tests/clients/picture.mjs`).

mod common;

use common::ws::{Socket, record};
use common::{App, PATIENCE, Reply, exchange, get, wait_for};
use serde_json::Value;
use signalring::config::{Config, Key, Machine, RunFlags, WeightedUrl};
use signalring::control::Node;
use signalring::limits::{LOOK_KEPT_MS, LOOK_MS};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const LANES: u64 = 5;
const AGENT: &str = "Mozilla/5.0 (\"quoted\" & é)";

/// A node in this process, ready; it stops when it is dropped.
struct Running {
    node: Option<Node>,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Running {
    fn start(app: &App, admin: SocketAddr, peers: &[SocketAddr]) -> Running {
        Running::configured(app, admin, |config| config.peers = peers.iter().map(ToString::to_string).collect())
    }

    fn configured(app: &App, admin: SocketAddr, change: impl FnOnce(&mut Config)) -> Running {
        let flags = RunFlags::default()
            .with(Key::Listen, "127.0.0.1:0")
            .with(Key::Admin, admin.to_string())
            .with(Key::Shards, "2")
            .with(Key::ConnectionPoolSize, LANES.to_string())
            .with(Key::Url, app.url());
        let mut config = Config::resolve(None, std::iter::empty(), &flags, &Machine::probe()).expect("it is valid");
        change(&mut config);
        let node = Node::start(config).expect("it starts");
        let (address, admin) = (common::address(&node.listening()[0].to_string()), node.admin());
        wait_for("the node to be ready", PATIENCE, || (get(admin, "/ready").status == 200).then_some(()));
        Running { node: Some(node), address, admin }
    }

    fn picture(&self, query: &str) -> Value {
        json(&get(self.admin, &format!("/api/picture{query}")))
    }

    /// A client with a view model, and its id, which is the one that was not in the picture before.
    fn client(&self, headers: &str, argument: &str) -> Socket {
        let mut socket =
            Socket::upgrade(self.address, "/dotnetify", headers).unwrap_or_else(|reply| panic!("{}", reply.text));
        socket.send(&record(r#"{"protocol":"json","version":1}"#));
        socket.frame("the handshake's answer");
        socket.send(&record(&format!(r#"{{"type":1,"target":"Request_VM","arguments":{argument}}}"#)));
        socket.response("the state", |_| true);
        socket
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.node.take().expect("it is dropped once").stop();
    }
}

fn json(reply: &Reply) -> Value {
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")), "{}", reply.text);
    serde_json::from_str(&reply.body).unwrap_or_else(|error| panic!("{error}: {}", reply.text))
}

/// A picture is kept for a moment: what happened before is in the next one.
fn next_picture() {
    std::thread::sleep(Duration::from_millis(LOOK_KEPT_MS + 50));
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("there is a free port")
}

fn ids(node: &Value) -> Vec<&str> {
    node["sample"].as_array().expect("a list").iter().map(|row| row[0].as_str().expect("an id")).collect()
}

fn any_port() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

#[test]
fn two_nodes_are_one_picture_and_a_silent_third_delays_it_no_longer_than_its_deadline() {
    let app = App::start();
    // Takes connections and never says anything.
    let silent = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let silent_address = silent.local_addr().expect("it is bound");
    let far_admin = free_address();
    let near = Running::start(&app, any_port(), &[far_admin, silent_address]);
    // A list that all nodes share names each of them to itself as well.
    let far = Running::start(&app, far_admin, &[near.admin, far_admin]);
    let hello = r#"["HelloWorldVM",{}]"#;
    let near_clients: Vec<Socket> = (0..3).map(|_| near.client("", hello)).collect();
    let mut far_clients: Vec<Socket> = (0..4).map(|_| far.client("", hello)).collect();
    let chatting = far.client(
        &format!("User-Agent: {AGENT}\r\nX-Forwarded-For: 198.51.100.1\r\n"),
        r#"["ChatRoomVM",{"$vmArg":{"ChatRoom":"red"}}]"#,
    );
    far_clients[0].send(&record(r#"{"type":1,"target":"Update_VM","arguments":["HelloWorldVM",{"FirstName":"Ada"}]}"#));
    far_clients[0].response("the greeting", |data| data["FullName"] == "Ada World");
    next_picture();

    let begun = Instant::now();
    let picture = near.picture("");
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_millis(LOOK_MS + 700), "it took {elapsed:?}");
    let [own, other, third] = picture["nodes"].as_array().expect("a list").as_slice() else { panic!("{picture}") };
    assert_eq!(picture["clients"], 8);
    assert_eq!((&own["clients"], ids(own).len(), &own["is_self"]), (&3.into(), 3, &true.into()));
    assert_eq!((&other["clients"], ids(other).len(), &other["is_self"]), (&5.into(), 5, &false.into()));
    assert_eq!(other["admin"], far.admin.to_string());
    assert_eq!(other["url"], format!("http://{}", far.address));
    assert_eq!((&third["clients"], third["admin"].as_str()), (&0.into(), Some(&*silent_address.to_string())));
    assert!(third["trouble"].as_str().is_some_and(|words| words.contains("within 1 s")), "{third}");
    // Asked twice in vain, it is not waited for again at once.
    next_picture();
    assert_eq!(near.picture("")["nodes"][2]["trouble"], third["trouble"]);
    next_picture();
    let begun = Instant::now();
    assert_eq!(near.picture("")["nodes"][2]["trouble"], third["trouble"]);
    assert!(begun.elapsed() < Duration::from_millis(LOOK_MS / 2), "it took {:?}", begun.elapsed());

    for node in [own, other] {
        assert_eq!(node["trouble"], Value::Null);
        assert!(node["memory"].as_f64().is_some_and(|megabytes| megabytes > 1.0), "{}", node["memory"]);
        let app_servers = node["app_servers"].as_array().expect("a list");
        assert_eq!((app_servers.len(), &app_servers[0]["url"]), (1, &app.url().into()));
        let lanes = node["lanes"].as_array().expect("a list");
        assert_eq!(lanes.len() as u64, LANES);
        assert!(lanes.iter().all(|lane| lane["state"] == "up" && lane["app_server"] == 0), "{lanes:?}");
        let of_lanes = |name: &str| lanes.iter().map(|lane| lane[name].as_u64().expect("a number")).sum::<u64>();
        assert_eq!(Some(of_lanes("clients")), node["clients"].as_u64());
        assert_eq!(Some(of_lanes("sent")), node["received"].as_u64(), "every request went onto a lane");
        // HelloWorldVM has a clock: messages go on.
        assert!(of_lanes("received") >= node["clients"].as_u64().expect("a number"));
    }
    assert_eq!((&own["received"], &other["received"]), (&3.into(), &6.into()));
    let received: Vec<u64> =
        other["sample"].as_array().expect("a list").iter().map(|row| row[1].as_u64().expect("a number")).collect();
    assert_eq!(
        (received.iter().sum::<u64>(), received.iter().max()),
        (6, Some(&2)),
        "one client has sent two messages"
    );

    // One sees what the other sees.
    next_picture();
    let seen = far.picture("");
    let [far_own, far_other] = seen["nodes"].as_array().expect("a list").as_slice() else { panic!("{seen}") };
    assert_eq!((&far_own["id"], &far_other["id"]), (&other["id"], &own["id"]));
    assert_eq!((ids(far_own), ids(far_other)), (ids(other), ids(own)), "in the same order, so the same sample");

    // A client of the other node, shown by this one.
    let place = chatting.stream.local_addr().expect("it is connected").to_string();
    let detail_of = |node: &Value, id: &str| {
        get(near.admin, &format!("/api/client?node={}&id={id}", node["id"].as_str().expect("an id")))
    };
    let details: Vec<Value> = ids(other).into_iter().map(|id| json(&detail_of(other, id))).collect();
    let [chat] = details.iter().filter(|detail| detail["address"] == place).collect::<Vec<_>>()[..] else {
        panic!("{place} is not one of {details:?}")
    };
    assert_eq!(
        (&chat["user_agent"], &chat["user"], &chat["state"]),
        (&AGENT.into(), &Value::Null, &"connected".into())
    );
    assert_eq!((&chat["transport"], &chat["protocol"]), (&"WebSockets".into(), &"json".into()));
    assert_eq!((&chat["received"], &chat["listener"]), (&1.into(), &far.address.to_string().into()));
    assert_eq!((&chat["view_models"], &chat["view_model_count"]), (&serde_json::json!(["ChatRoomVM"]), &1.into()));
    let [lane] = chat["lanes"].as_array().expect("a list").as_slice() else { panic!("{chat}") };
    assert_eq!((&lane["url"], &lane["group_count"]), (&app.url().into(), &1.into()), "{lane}");
    assert!(lane["groups"][0].as_str().is_some_and(|group| group.contains("red")), "{lane}");
    assert!(details.iter().all(|detail| detail["address"] == place || detail["user_agent"] == Value::Null));

    // It leaves.
    let id = chat["id"].as_str().expect("an id").to_string();
    drop(chatting);
    wait_for("the client to be gone", PATIENCE, || (detail_of(other, &id).status == 404).then_some(()));
    // Nobody else has this id, whatever is asked for.
    assert_eq!(detail_of(own, &id).status, 404);
    drop((near_clients, far_clients));
}

#[test]
fn a_picture_of_some_clients_says_how_many_there_are_and_shows_the_same_again() {
    let app = App::start();
    let node = Running::start(&app, any_port(), &[]);
    let mut clients: Vec<Socket> = (0..60).map(|_| Socket::connect(node.address)).collect();
    next_picture();
    let all = node.picture("");
    assert_eq!((&all["clients"], ids(&all["nodes"][0]).len()), (&60.into(), 60));
    let few = node.picture("?clients=10");
    assert_eq!((&few["clients"], &few["nodes"][0]["clients"]), (&60.into(), &60.into()));
    assert_eq!(ids(&few["nodes"][0]), ids(&all["nodes"][0])[..10]);
    assert_eq!(ids(&json(&get(node.admin, "/api/node?clients=7"))).len(), 7);
    assert_eq!(ids(&node.picture("?clients=0")["nodes"][0]).len(), 0);

    // Others come and go; who is shown stays shown, as long as it is there.
    next_picture();
    clients.push(Socket::connect(node.address));
    next_picture();
    let again = node.picture("?clients=10");
    assert_eq!(again["clients"], 61);
    let kept = ids(&again["nodes"][0]).iter().filter(|id| ids(&few["nodes"][0]).contains(id)).count();
    assert!(kept >= 9, "{kept} of 10 are shown again");

    // A look serves all who ask at the same time.
    let at = |picture: &Value| picture["nodes"][0]["at_ms"].as_u64().expect("a number");
    next_picture();
    let (first, second) = (at(&node.picture("")), at(&node.picture("?clients=1")));
    assert!(first == second, "looked at {first} and again at {second} ms");
}

#[test]
fn each_lane_is_shown_with_the_app_server_it_leads_to() {
    let (app, second, third) = (App::start(), App::start(), App::start());
    let node = Running::configured(&app, any_port(), |config| {
        let mut chat = config.upstreams[0].clone();
        chat.name = "chat".into();
        let url = &mut config.upstreams[0].urls;
        let at = |url: &WeightedUrl, app: &App| {
            let mut url = url.clone();
            (url.url.port, url.url.text) = (app.address.port(), app.url());
            url
        };
        url.push(at(&url[0], &second));
        chat.urls = vec![at(&chat.urls[0], &third)];
        config.upstreams.push(chat);
    });
    let clients: Vec<Socket> = (0..6).map(|_| node.client("", r#"["HelloWorldVM",{}]"#)).collect();
    drop(third);
    let shown = wait_for("the third app server's lanes to be down", PATIENCE, || {
        let shown = json(&get(node.admin, "/api/node"));
        let is_down = |lane: &Value| lane["app_server"] != 2 || lane["state"] != "up";
        shown["lanes"].as_array().expect("a list").iter().all(is_down).then_some(shown)
    });
    let text = |value: &Value| value.as_str().expect("text").to_string();
    let app_servers: Vec<_> = shown["app_servers"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|app| (text(&app["upstream"]), text(&app["url"])))
        .collect();
    let first = app_servers[0].0.clone();
    assert_eq!(app_servers[..2], [(first.clone(), app.url()), (first, second.url())]);
    assert_eq!(app_servers[2].0, "chat");
    let lanes = shown["lanes"].as_array().expect("a list");
    let mut clients_of = Vec::new();
    for (index, state) in [(0, "up"), (1, "up"), (2, "down")] {
        let own: Vec<&Value> = lanes.iter().filter(|lane| lane["app_server"] == index).collect();
        assert_eq!(own.len() as u64, LANES, "lanes to app server {index}");
        assert!(own.iter().all(|lane| (lane["state"] == "up") == (state == "up")), "{own:?}");
        clients_of.push(own.iter().map(|lane| lane["clients"].as_u64().expect("a number")).sum::<u64>());
    }
    // Each shard deals its own clients over the urls of the upstream that takes their messages.
    assert_eq!((clients_of[0] + clients_of[1], clients_of[2]), (6, 0));
    assert!(clients_of[0] >= 2 && clients_of[1] >= 2, "{clients_of:?}");
    drop(clients);
}

#[test]
fn the_page_is_its_own_and_nobody_elses() {
    let app = App::start();
    let node = Running::start(&app, any_port(), &[]);
    let moved = get(node.admin, "/");
    assert_eq!((moved.status, moved.header("location")), (302, Some("picture")));
    for (path, kind) in [
        ("/picture", "text/html"),
        ("/picture/style.css", "text/css"),
        ("/picture/picture.js", "text/javascript"),
        ("/picture/graph.js", "text/javascript"),
        ("/picture/traffic.js", "text/javascript"),
    ] {
        let reply = get(node.admin, path);
        assert_eq!(reply.status, 200, "{path}");
        assert!(reply.header("content-type").is_some_and(|found| found.starts_with(kind)), "{path}");
        let policy = reply.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'") && !policy.contains("unsafe"), "{policy}");
    }
    for path in ["/picture/", "/picture/nothing.js", "/api/", "/api/nothing"] {
        assert_eq!(get(node.admin, path).status, 404, "{path}");
    }
    let own = json(&get(node.admin, "/api/node"))["id"].as_str().expect("an id").to_string();
    let stranger = "A".repeat(22);
    for (path, status) in [
        ("/api/picture?clients=2001".to_string(), 400),
        ("/api/picture?clients=-1".to_string(), 400),
        ("/api/node?clients=many".to_string(), 400),
        ("/api/client".to_string(), 400),
        (format!("/api/client?node={own}"), 400),
        (format!("/api/client?node={own}&id=short"), 400),
        (format!("/api/client?node={own}&id=AAAAAAAAAAAAAAAAAAAA%20A"), 400),
        (format!("/api/client?node=../../x&id={stranger}"), 400),
        (format!("/api/client?node={own}&id={stranger}"), 404),
        (format!("/api/client?node={stranger}&id={stranger}"), 404),
    ] {
        let reply = get(node.admin, &path);
        assert_eq!(reply.status, status, "{path}: {}", reply.text);
        assert_eq!(reply.header("access-control-allow-origin"), None);
    }

    // RFC 9110 §9.3.2: as GET, without the body.
    let head = exchange(node.admin, b"HEAD /picture HTTP/1.1\r\nHost: localhost\r\n\r\n", PATIENCE);
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    // A name that somebody made resolve to this machine.
    for path in ["/api/picture", "/picture", "/api/node"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: evil.example:9090\r\n\r\n");
        let reply = exchange(node.admin, request.as_bytes(), PATIENCE);
        assert_eq!(reply.status, 421, "{path}: {}", reply.text);
    }
    let scraped = exchange(node.admin, b"GET /metrics HTTP/1.1\r\nHost: node.example.com\r\n\r\n", PATIENCE);
    assert_eq!(scraped.status, 200, "who reads metrics knows the node by any name");
}

#[test]
#[ignore = "needs Chromium (Debian package chromium); run: cargo test --test picture -- --ignored"]
fn the_page_with_2000_clients_on_two_nodes() {
    const CLIENTS: usize = 2000;
    let app = App::start();
    let far_admin = free_address();
    let gone = free_address();
    let start = |name: &str, admin, peers: &[SocketAddr]| {
        Running::configured(&app, admin, |config| {
            config.node_name = Some(name.into());
            config.peers = peers.iter().map(ToString::to_string).collect();
        })
    };
    let near = start("node-1", any_port(), &[far_admin, gone]);
    let far = start("node-2", far_admin, &[near.admin]);
    let nodes = [&near, &far];
    let room = r#"["ChatRoomVM",{"$vmArg":{"ChatRoom":"red"}}]"#;
    // Unlike halves, as a balancer by hash would deal them; some have a clock, and some of them talk.
    let mut clients: Vec<Socket> = (0..CLIENTS)
        .map(|n| {
            let node = nodes[usize::from(n % 20 >= 11)];
            node.client(&format!("User-Agent: {AGENT}\r\n"), if n % 3 == 0 { r#"["HelloWorldVM",{}]"# } else { room })
        })
        .collect();
    let over = AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        scope.spawn(|| {
            let update = record(r#"{"type":1,"target":"Update_VM","arguments":["HelloWorldVM",{"FirstName":"Ada"}]}"#);
            let mut turn = 0usize;
            while !over.load(Ordering::Relaxed) {
                turn += 1;
                // About 300 messages a second, from clients in turn.
                clients[turn * 3 * 37 % 1998 / 3 * 3].send(&update);
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        let admin = format!("http://{}", near.admin);
        let result = std::panic::catch_unwind(|| {
            common::drive_browser("picture.mjs", &[("ADMIN", &admin), ("CLIENTS", &CLIENTS.to_string())])
        });
        over.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let (output, screenshots) = output;
    for name in ["picture-light", "picture-dark", "picture-phone", "picture-client"] {
        assert!(screenshots.join(format!("{name}.png")).exists(), "{name} is missing:\n{output}");
    }
}
