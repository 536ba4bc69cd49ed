//! The demonstration from outside: its pages as they are served, what may be ordered and by whom, and what real clients see of parts
//! that stop and start. How it behaves in a browser is seen by `tests/browser.rs`.

mod common;

use common::ws::{Socket, record};
use common::{PATIENCE, Process, Reply, exchange, get, wait_for};
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One demonstration at a time: another that starts might take the port of a node that is stopped.
static ONE: Mutex<()> = Mutex::new(());

/// `signalring demo`, and where its parts are.
struct Demo {
    process: Process,
    page: SocketAddr,
    nodes: [SocketAddr; 2],
    admins: [SocketAddr; 2],
    app: SocketAddr,
    _one: MutexGuard<'static, ()>,
}

impl Demo {
    fn start(clients: u32) -> Demo {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let arguments = ["demo", "--listen", "127.0.0.1:0", "--clients", &clients.to_string()];
        let mut process = Process::signalring("demo", &arguments);
        let page = common::address(&process.printed("Open "));
        process.printed("Ctrl+C ends ");
        let state = state(page);
        let at = |part: &Value, key: &str| common::address(part[key].as_str().expect("a URL"));
        let of = |key| [0, 1].map(|node| at(&state["nodes"][node], key));
        let demo = Demo {
            process,
            page,
            nodes: of("url"),
            admins: of("admin"),
            app: at(&state["app_server"], "url"),
            _one: one,
        };
        let output = demo.process.output();
        for address in demo.nodes.iter().chain(&demo.admins).chain([&demo.app]) {
            assert!(output.contains(&format!("http://{address}")), "{address} is not said:\n{output}");
        }
        for admin in demo.admins {
            wait_for("a node to be ready", PATIENCE, || (get(admin, "/ready").status == 200).then_some(()));
        }
        demo
    }

    fn state(&self) -> Value {
        state(self.page)
    }

    fn post(&self, path: &str, headers: &str) -> Reply {
        let request = format!("POST {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n");
        exchange(self.page, request.as_bytes(), PATIENCE)
    }

    /// As the page orders; the state that it was answered with.
    fn order(&self, path: &str) -> Value {
        let reply = self.ordered(path);
        assert_eq!(reply.status, 200, "{path}: {}", reply.text);
        serde_json::from_str(&reply.body).expect("the state is JSON")
    }

    fn ordered(&self, path: &str) -> Reply {
        self.post(path, &format!("Host: {0}\r\nOrigin: http://{0}\r\n", self.page))
    }

    /// Waits for the load to have as many clients on the two nodes.
    fn has_load(&self, active: [u64; 2]) -> Value {
        wait_for(&format!("{active:?} clients"), PATIENCE, || {
            let state = self.state();
            let load = &state["load"]["nodes"];
            ([&load[0]["active"], &load[1]["active"]] == active.map(|active| json!(active)).each_ref())
                .then(|| load.clone())
        })
    }

    /// Waits for the load of both nodes to have received more, by a message for each client.
    fn goes_on_from(&self, before: &Value) -> Value {
        let received = |load: &Value, node: usize| load[node]["received"].as_u64().expect("a number");
        wait_for("the load to go on", PATIENCE, || {
            let load = self.state()["load"]["nodes"].clone();
            (0..2).all(|node| received(&load, node) > received(before, node) + 11).then_some(load)
        })
    }
}

fn state(page: SocketAddr) -> Value {
    let reply = get(page, "/api/state");
    assert_eq!((reply.status, reply.header("cache-control")), (200, Some("no-store")), "{}", reply.text);
    serde_json::from_str(&reply.body).expect("the state is JSON")
}

/// A client with a HelloWorldVM.
fn client(node: SocketAddr) -> Socket {
    let mut socket = Socket::connect(node);
    socket.send(&record(r#"{"type":1,"target":"Request_VM","arguments":["HelloWorldVM",{}]}"#));
    socket.response("the state", |data| data["FullName"] == "Hello World");
    socket
}

fn greets(socket: &mut Socket, name: &str) {
    let update = json!({ "type": 1, "target": "Update_VM", "arguments": ["HelloWorldVM", { "FirstName": name }] });
    socket.send(&record(&update.to_string()));
    socket.response("the greeting", |data| data["FullName"] == format!("{name} World"));
}

/// It is told to come back, and then let go.
fn is_asked_to_reconnect(mut socket: Socket) {
    let close = loop {
        let record = socket.record("the goodbye");
        if record["type"] == 7 {
            break record;
        }
    };
    assert_eq!(close["allowReconnect"], true, "{close}");
    socket.closed("the goodbye");
}

#[test]
fn the_pages_and_their_parts() {
    let demo = Demo::start(0);
    let index = get(demo.page, "/");
    let policy = index.header("content-security-policy").expect("a policy");
    let frames = demo.admins.map(|admin| format!(" http://{admin}")).concat();
    assert!(policy.starts_with("default-src 'none'; script-src 'self'") && !policy.contains("unsafe"), "{policy}");
    assert!(policy.contains("frame-ancestors 'none'") && policy.ends_with(&format!("frame-src 'self'{frames}")));
    for admin in demo.admins {
        let picture = get(admin, "/picture?embed=1");
        let policy = picture.header("content-security-policy").expect("a policy");
        assert!(policy.contains("frame-ancestors 'self' http://127.0.0.1:*"), "it may be framed: {policy}");
    }
    let live = get(demo.page, &format!("/live?node=http://{}", demo.nodes[1]));
    assert!(live.header("content-security-policy").is_some_and(|policy| policy.contains("frame-ancestors 'self'")));
    for id in
        ["first", "last", "full", "greetings", "time", "chat-input", "chat-send", "chat-log", "users", "status", "node"]
    {
        assert_eq!(live.body.matches(&format!("id=\"{id}\"")).count(), 1, "tests find the element #{id}");
    }
    for (page, fields) in [(&index, &["clients", "profile"][..]), (&live, &["first", "last", "name", "node"])] {
        assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
        for field in fields {
            assert!(page.body.contains(&format!("<label for=\"{field}\">")), "{field} has no label");
        }
    }
    for (path, kind, page) in [
        ("/common.css", "text/css", &index),
        ("/common.css", "text/css", &live),
        ("/index.css", "text/css", &index),
        ("/index.js", "text/javascript", &index),
        ("/live.css", "text/css", &live),
        ("/live.js", "text/javascript", &live),
        ("/client.js", "text/javascript", &get(demo.page, "/live.js")),
    ] {
        let file = get(demo.page, path);
        assert_eq!((file.status, file.header("x-content-type-options")), (200, Some("nosniff")), "{path}");
        assert!(file.header("content-type").is_some_and(|found| found.starts_with(kind)), "{path}");
        assert!(page.body.contains(&format!("{}\"", &path[1..])), "{path} is used by none");
    }
    let listed = get(demo.page, "/nodes.json").body;
    assert_eq!(listed, format!(r#"["http://{}","http://{}"]"#, demo.nodes[0], demo.nodes[1]));
    assert_eq!(get(demo.page, "/nothing").status, 404);
}

#[test]
fn nothing_is_fetched_from_elsewhere() {
    for text in [
        include_str!("../src/demo/page/index.html"),
        include_str!("../src/demo/page/common.css"),
        include_str!("../src/demo/page/index.css"),
        include_str!("../src/demo/page/index.js"),
        include_str!("../src/demo/page/live.html"),
        include_str!("../src/demo/page/live.css"),
        include_str!("../src/demo/page/live.js"),
        include_str!("../src/demo/page/client.js"),
    ] {
        assert!(
            !text.contains("<style") && !text.contains(" style=") && !text.contains("<script>"),
            "the policy forbids"
        );
        for (at, _) in text.match_indices("//") {
            let before = &text[..at];
            let is_url = before.ends_with("http:") || before.ends_with("https:");
            let rest = &text[at..];
            let harmless = ["//127.0.0.1", "//www.w3.org"].iter().any(|start| rest.starts_with(start));
            assert!(!is_url || harmless, "{}", rest.lines().next().unwrap_or_default());
        }
    }
}

#[test]
fn only_the_page_may_order_and_what_makes_no_sense_is_refused_in_words() {
    let demo = Demo::start(0);
    let own = format!("Host: {}\r\n", demo.page);
    let orders = ["/api/node/1/stop", "/api/app/stop", "/api/load?clients=5", "/api/load/stop"];
    for origin in ["", "Origin: null\r\n", "Origin: http://evil.example\r\n", "Origin: http://127.0.0.1:1\r\n"] {
        for order in orders {
            let reply = demo.post(order, &format!("{own}{origin}"));
            assert_eq!(reply.status, 403, "{order} by {origin:?}: {}", reply.text);
            assert!(
                reply.body.contains(&format!("Origin: http://{}", demo.page)),
                "it says what to do: {}",
                reply.body
            );
            assert_eq!(reply.header("access-control-allow-origin"), None);
        }
    }
    // A name that somebody made resolve to this machine is an origin of its own, too.
    let evil = format!("evil.example:{}", demo.page.port());
    let reply = demo.post("/api/node/1/stop", &format!("Host: {evil}\r\nOrigin: http://{evil}\r\n"));
    assert_eq!(reply.status, 421, "{}", reply.text);
    let request = format!("GET /api/state HTTP/1.1\r\nHost: {evil}\r\nConnection: close\r\n\r\n");
    assert_eq!(exchange(demo.page, request.as_bytes(), PATIENCE).status, 421);
    for order in orders {
        assert_eq!(get(demo.page, order).status, 405, "{order}: looking changes nothing");
    }
    for (order, words) in [
        ("/api/node/0/stop", "nodes 1 to 2"),
        ("/api/node/3/stop", "nodes 1 to 2"),
        ("/api/node/x/start", "nodes 1 to 2"),
        ("/api/node/1/explode", "start and stop"),
        ("/api/app/restart", "start and stop"),
        ("/api/load", "clients is a number from 0 to 5000"),
        ("/api/load?clients=-1", "clients is a number from 0 to 5000"),
        ("/api/load?clients=5001", "clients is a number from 0 to 5000"),
        ("/api/load?clients=5&profile=storm", "profile is one of echo, "),
    ] {
        let reply = demo.ordered(order);
        assert_eq!(reply.status, 400, "{order}: {}", reply.text);
        assert!(reply.body.contains(words), "{order}: {}", reply.body);
    }
    let state = demo.state();
    let states = [&state["nodes"][0], &state["nodes"][1], &state["app_server"]].map(|part| &part["state"]);
    assert_eq!((states, &state["load"]["clients"]), ([&json!("running"); 3], &json!(0)), "nothing has changed");
}

#[test]
fn nodes_and_app_server_stop_and_start_under_clients_that_come_back() {
    let mut demo = Demo::start(21);
    demo.has_load([11, 10]);
    let (near, mut far) = (client(demo.nodes[0]), client(demo.nodes[1]));
    // Once again changes nothing.
    assert_eq!(demo.order("/api/node/1/start")["nodes"][0]["state"], "running");

    let state = demo.order("/api/node/1/stop");
    assert_eq!([&state["nodes"][0]["state"], &state["nodes"][1]["state"]], ["stopped", "running"]);
    is_asked_to_reconnect(near);
    for gone in [demo.nodes[0], demo.admins[0]] {
        assert!(TcpStream::connect(gone).is_err(), "{gone} still listens");
    }
    greets(&mut far, "Ada");
    let load = demo.has_load([0, 10]);
    assert_eq!([&load[0]["lost"], &load[1]["lost"]], [&json!(11), &json!(0)], "the other node's clients lost nothing");
    assert_eq!(demo.order("/api/node/1/stop")["nodes"][0]["state"], "stopped");

    // It knows the other, though nobody has ever looked at its picture.
    let picture: Value = serde_json::from_str(&get(demo.admins[1], "/api/picture").body).expect("the picture is JSON");
    assert_eq!((&picture["nodes"][1]["name"], picture["nodes"][1]["trouble"].is_string()), (&json!("node-1"), true));

    assert_eq!(demo.order("/api/node/1/start")["nodes"][0]["state"], "running");
    let mut near = client(demo.nodes[0]);
    greets(&mut far, "Grace");
    let load = demo.has_load([11, 10]);
    assert_eq!(load[1]["lost"], 0);

    assert_eq!(demo.order("/api/app/stop")["app_server"]["state"], "stopped");
    assert!(TcpStream::connect(demo.app).is_err(), "the app server still listens");
    // A node takes clients all the same, and answers them when it can.
    let mut new = Socket::connect(demo.nodes[0]);
    new.send(&record(r#"{"type":1,"target":"Request_VM","arguments":["HelloWorldVM",{}]}"#));
    let before = demo.has_load([11, 10]);
    assert_eq!(demo.order("/api/app/start")["app_server"]["state"], "running");
    for socket in [&mut new, &mut near, &mut far] {
        // Who was there before did not ask again.
        socket.response("the state", |data| data["FullName"] == "Hello World");
        greets(socket, "Joan");
    }
    let load = demo.goes_on_from(&before);
    for (node, lost) in [(0, 11), (1, 0)] {
        assert_eq!(load[node]["lost"], lost, "{load}");
        for wrong in ["missed", "duplicated", "reordered", "misdelivered", "errors", "failed_connects"] {
            assert_eq!(load[node][wrong], 0, "{wrong}: {load}");
        }
        let received = load[node]["received"].as_u64().expect("a number");
        assert!(received >= 20, "loads that have ended count as well: {received}");
    }

    // Another load, and none.
    let state = demo.order("/api/load?clients=4&profile=ChatRoom");
    assert_eq!((&state["load"]["clients"], &state["load"]["profile"]), (&json!(4), &json!("chatroom")));
    demo.has_load([2, 2]);
    let state = demo.order("/api/load/stop");
    assert_eq!((&state["load"]["clients"], &state["load"]["profile"]), (&json!(0), &json!("chatroom")));
    demo.has_load([0, 0]);

    // Ctrl+C, with a load and a client.
    demo.order("/api/load?clients=10&profile=echo");
    demo.has_load([5, 5]);
    let asked = std::process::Command::new("kill").args(["-INT", &demo.process.id().to_string()]).status();
    assert!(asked.is_ok_and(|status| status.success()));
    is_asked_to_reconnect(near);
    let status = demo.process.wait(PATIENCE).expect("it ends");
    assert!(status.success(), "{status}:\n{}", demo.process.output());
}
