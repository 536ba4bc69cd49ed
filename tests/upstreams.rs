//! A node with several upstreams, from outside: what an Observer is sent, byte for byte (contract 7.2), what an upstream that is down
//! costs, and what the admin endpoint says of all of them.

mod common;

use common::ws::{self, FIN, Socket, frame, record};
use common::{App, Node, PATIENCE, Process, address, get, wait_for};
use serde_json::Value;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio_tungstenite::tungstenite::{self, Message};

/// A node by a file: `upstreams` is its `[[upstream]]` tables.
fn start(upstreams: &str) -> Node {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let name = format!("upstreams-{}-{}.toml", std::process::id(), NUMBER.fetch_add(1, Relaxed));
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let head = "listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nshards = 1\nnode_name = \"node-a\"\n";
    std::fs::write(&path, format!("{head}{upstreams}")).expect("the target folder can be written");
    let mut process = Process::signalring("node", &["run", "--config", path.to_str().expect("a name")]);
    let listen = address(&process.printed("listening on "));
    let admin = address(&process.printed("admin on "));
    let _ = std::fs::remove_file(path);
    Node { process, address: listen, admin }
}

fn is_ready(node: &Node) {
    wait_for("the node to be ready", PATIENCE, || (get(node.admin, "/ready").status == 200).then_some(()));
}

/// Ready, and nothing is down.
fn is_whole(node: &Node) {
    wait_for("every lane", PATIENCE, || (get(node.admin, "/ready").body == "ready\n").then_some(()));
}

/// Somebody who takes connections and never says a word: the kernel does, while the listener lives.
fn silent() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

/// A hub that writes down every record of every lane, and says nothing.
struct Recorder {
    address: SocketAddr,
    records: Arc<Mutex<Vec<(SystemTime, String)>>>,
}

impl Recorder {
    fn start() -> Recorder {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let records = Arc::new(Mutex::new(Vec::new()));
        let writer = records.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let records = writer.clone();
                std::thread::spawn(move || serve(stream, &records));
            }
        });
        Recorder { address, records }
    }

    fn all(&self) -> Vec<(SystemTime, String)> {
        self.records.lock().expect("nobody panicked").clone()
    }

    /// Records of clients, without telemetry.
    fn traffic(&self) -> Vec<String> {
        let is_traffic = |record: &String| !record.contains("ReceiveTelemetry");
        self.all().into_iter().map(|(_, record)| record).filter(is_traffic).collect()
    }
}

fn serve(mut stream: TcpStream, records: &Mutex<Vec<(SystemTime, String)>>) {
    let mut start = [0; 4];
    if !matches!(stream.peek(&mut start), Ok(4)) {
        return;
    }
    if &start == b"POST" {
        let body = r#"{"negotiateVersion":1,"connectionId":"c","connectionToken":"t","availableTransports":[{"transport":"WebSockets","transferFormats":["Text"]}]}"#;
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        // The request is read before the connection is closed, or the close would be a reset.
        let _ = std::io::Read::read(&mut stream, &mut [0; 4096]);
        return;
    }
    let Ok(mut socket) = tungstenite::accept(stream) else { return };
    let Ok(Message::Text(handshake)) = socket.read() else { return };
    assert_eq!(handshake.as_str(), "{\"protocol\":\"json\",\"version\":1}\u{1e}");
    socket.send(Message::text("{}\u{1e}")).expect("the handshake's answer");
    while let Ok(message) = socket.read() {
        if let Message::Text(text) = message {
            let whole = text.as_str().split_inclusive('\u{1e}').filter(|record| !record.contains("\"type\":6"));
            let now = SystemTime::now();
            records.lock().expect("nobody panicked").extend(whole.map(|record| (now, record.to_string())));
        }
    }
}

/// A client that asks for one view model, changes it, disposes it and leaves. `payload` is in everything it says.
fn visit(node: &Node, payload: &str) {
    let mut socket = Socket::upgrade(node.address, "/dotnetify", "Cookie: secret=1\r\nUser-Agent: UA/1.0\r\n")
        .unwrap_or_else(|reply| panic!("no upgrade: {}", reply.text));
    socket.send(&record(r#"{"protocol":"json","version":1}"#));
    assert_eq!(socket.frame("the handshake's answer").text(), "{}\u{1e}");
    for call in [
        format!(
            r#"{{"type":1,"target":"Request_VM","arguments":["HelloWorldVM",{{"$vmArg":{{"FirstName":"{payload}"}}}}]}}"#
        ),
        format!(r#"{{"type":1,"target":"Update_VM","arguments":["HelloWorldVM",{{"LastName":"{payload}"}}]}}"#),
    ] {
        socket.send(&record(&call));
        socket.response("an answer", |data| data.get("FullName").is_some());
    }
    socket.send(&record(r#"{"type":1,"target":"Dispose_VM","arguments":["HelloWorldVM"]}"#));
    socket.send(&frame(FIN | ws::CLOSE, &ws::close_payload(1000, "")));
    assert_eq!(socket.closed("goodbye"), Some(1000));
}

#[test]
fn an_observer_is_sent_the_contracts_bytes() {
    let (app, observer) = (App::start(), Recorder::start());
    let node = start(&format!(
        "[[upstream]]\nname = \"eye\"\nkind = \"observer\"\nurl = \"http://{}\"\nconnection_pool_size = 1\n\
         [[upstream]]\nname = \"app\"\nurl = \"{}\"\nconnection_pool_size = 1\nhub_id = \"node\"\n",
        observer.address,
        app.url()
    ));
    is_whole(&node);
    // What the app server sees of a client that stays; the visitor's hub id is the same.
    let mut stays = Socket::connect(node.address);
    stays.send(&record(r#"{"type":1,"target":"Request_VM","arguments":["HelloWorldVM",null]}"#));
    stays.response("the state", |data| data.get("FullName").is_some());
    let hub_id = app.only_context()["HubId"].as_str().expect("a hub id").to_string();
    wait_for("the first client", PATIENCE, || (observer.traffic().len() == 1).then_some(()));
    visit(&node, "between-us");
    let traffic = wait_for("four records of the visitor", PATIENCE, || {
        Some(observer.traffic()).filter(|traffic| traffic.len() == 5)
    });

    let origin_id = member(&traffic[1], "ConnectionId");
    for (text, (method, arguments)) in traffic[1..].iter().zip([
        ("Request_VM", r#""HelloWorldVM",null"#),
        ("Update_VM", r#""HelloWorldVM","{}""#),
        ("Dispose_VM", r#""HelloWorldVM""#),
        ("OnDisconnectedAsync", "null"),
    ]) {
        // What changes from message to message and from run to run is taken from the record itself; everything else is the contract's.
        let context = format!(
            r#"{{"HubId":"{hub_id}","TimeStamp":"{}","ConnectionId":"{origin_id}","HttpConnection":{{"ConnectionId":"{}","LocalIpAddressString":"127.0.0.1","RemoteIpAddressString":"127.0.0.1","LocalPort":{},"RemotePort":{}}},"HttpRequestHeaders":{{"AllHeaders":{{"Host":["node-a"],"User-Agent":["UA/1.0"]}},"UserAgent":"UA/1.0"}},"Items":{{}}}}"#,
            member(text, "TimeStamp"),
            connection(text)["ConnectionId"].as_str().expect("a text"),
            node.address.port(),
            connection(text)["RemotePort"],
        );
        let escaped = context.replace('"', "\\\"");
        let expected = format!(
            "{{\"type\":1,\"target\":\"Invoke\",\"arguments\":[\"{method}\",[{arguments}],{{\"$fwdConnContext\":\"{escaped}\"}}]}}\u{1e}"
        );
        assert_eq!(text, &expected);
        assert!(!text.contains("between-us") && !text.contains("secret"), "{text}");
    }
    assert!(traffic[1..].windows(2).all(|pair| member(&pair[0], "TimeStamp") < member(&pair[1], "TimeStamp")));

    let reports = wait_for("four reports", PATIENCE, || {
        let reports: Vec<_> =
            observer.all().into_iter().filter(|(_, record)| record.contains("ReceiveTelemetry")).collect();
        (reports.len() >= 4).then_some(reports)
    });
    for (_, text) in &reports {
        let report: Value = serde_json::from_str(text.trim_end_matches('\u{1e}')).expect("JSON");
        let usage = &report["arguments"][1][0];
        let number = |name: &str| usage[name].as_f64().map_or("null".to_string(), |value| value.to_string());
        // Numbers are written as JavaScript and .NET write them, which is also Rust's shortest form.
        let expected = format!(
            "{{\"type\":1,\"target\":\"Invoke\",\"arguments\":[\"ReceiveTelemetry\",[{{\"proc_cpu\":{},\"total_cpu\":{},\"proc_mem\":{},\"total_mem\":{}}}],{{\"HubId\":\"{hub_id}\"}}]}}\u{1e}",
            number("proc_cpu"),
            number("total_cpu"),
            number("proc_mem"),
            number("total_mem"),
        );
        assert_eq!(text, &expected);
        let hundredths = usage["proc_mem"].as_f64().expect("this process uses memory") * 100.0;
        assert!((hundredths - hundredths.round()).abs() < 1e-6 && hundredths > 100.0, "{text}");
    }
    // One each second, on the second: the middle of what was seen is not far behind one, however busy the machine.
    let late = |time: &SystemTime| time.duration_since(UNIX_EPOCH).expect("after 1970").subsec_millis();
    let mut lateness: Vec<u32> = reports.iter().map(|(time, _)| late(time)).collect();
    lateness.sort_unstable();
    println!("reports come {lateness:?} ms after the second");
    let apart = reports.last().expect("four").0.duration_since(reports[0].0).expect("in order");
    assert!(apart >= Duration::from_millis(1000 * (reports.len() as u64 - 1) - 900), "{apart:?} for {}", reports.len());
}

#[test]
fn an_observer_with_messagepack_lanes_understands_all_of_it() {
    let (app, observer) = (App::start(), App::start_with(&["--observer", "--message-pack"]));
    let node = start(&format!(
        "[[upstream]]\nname = \"eye\"\nkind = \"observer\"\nuse_message_pack = true\nurl = \"{}\"\n\
         [[upstream]]\nname = \"app\"\nurl = \"{}\"\n",
        observer.url(),
        app.url()
    ));
    is_whole(&node);
    visit(&node, "between-us");
    let observed =
        || -> Value { serde_json::from_str(&get(observer.address, "/__double/observer").body).expect("JSON") };
    let seen = wait_for("a client that came and went, and two reports of its hub", PATIENCE, || {
        let seen = observed();
        let client = seen["clients"].as_object()?.values().next()?.clone();
        let reports = seen["hubs"][client["hub_id"].as_str()?]["reports"].as_u64()?;
        (client["gone"] == true && reports >= 2).then_some(seen)
    });
    let (faults, stale, ignored) = (&seen["faults"], &seen["stale"], &seen["ignored"]);
    assert_eq!((faults, stale, ignored), (&0.into(), &0.into(), &0.into()), "{seen}");
    let client = seen["clients"].as_object().expect("clients").values().next().expect("one");
    assert_eq!(client["calls"], serde_json::json!({ "Request_VM": 1, "Update_VM": 1, "Dispose_VM": 1 }));
    let hub = &seen["hubs"][client["hub_id"].as_str().expect("a hub id")];
    assert_eq!(hub["label"], "node-a");
    let usage: Value = serde_json::from_str(hub["telemetry"].as_str().expect("text")).expect("JSON");
    assert!(usage["proc_mem"].as_f64().is_some_and(|memory| memory > 1.0), "{usage}");
    assert_eq!(app.figure("leaks") + app.figure("bindings"), 0);
}

/// A member of a record's context.
fn member(text: &str, name: &str) -> String {
    context(text)[name].as_str().unwrap_or_else(|| panic!("no {name} in {text}")).to_string()
}

fn connection(text: &str) -> Value {
    context(text)["HttpConnection"].clone()
}

fn context(text: &str) -> Value {
    let record: Value = serde_json::from_str(text.trim_end_matches('\u{1e}')).expect("a record is JSON");
    let context = record["arguments"][2]["$fwdConnContext"].as_str().expect("a context is text");
    serde_json::from_str(context).expect("a context is JSON")
}

#[test]
fn a_dead_upstream_and_a_dead_observer_are_named_and_the_node_stays_ready() {
    let app = App::start();
    let (_listener, mute) = silent();
    // Nobody listens there any more.
    let gone = silent().1;
    let node = start(&format!(
        "[[upstream]]\nname = \"chat\"\nurl = \"http://{gone}\"\nfilter = 'vm_id.startsWith(\"ChatRoom\")'\n\
         [[upstream]]\nname = \"eye\"\nkind = \"observer\"\nurl = \"http://{mute}\"\n\
         [[upstream]]\nname = \"rest\"\nurl = \"{}\"\n",
        app.url()
    ));
    is_ready(&node);
    let ready = get(node.admin, "/ready").body;
    assert!(ready.starts_with("ready; down: chat http://"), "{ready}");
    assert!(ready.contains(&format!("chat http://{gone}: cannot connect")), "{ready}");
    assert!(ready.contains(&format!("; eye http://{mute}: ")) && !ready.contains("rest"), "{ready}");
    for _ in 0..3 {
        visit(&node, "x");
    }
    for (upstream, up) in [("chat", 0.0), ("eye", 0.0), ("rest", 1.0)] {
        assert_eq!(node.metric_where("signalring_upstream_up", &format!("upstream=\"{upstream}\"")), up, "{upstream}");
    }
    wait_for("nine messages to the fall-through", PATIENCE, || {
        let sum = node.metric_where("signalring_upstream_messages", "result=\"forwarded\",upstream=\"rest\"");
        (sum == 9.0).then_some(())
    });
    assert!(node.metric("process_resident_memory_bytes") > 1e6 && node.metric("process_cpu_seconds") > 0.0);
    // Five lanes meet the same trouble; it is told once.
    let log = node.process.output();
    let told = log.lines().filter(|line| line.contains("cannot dial") && line.contains(&gone.to_string())).count();
    assert_eq!(told, 1, "{log}");
}

#[test]
fn a_url_that_comes_back_is_taken_back_and_that_is_told_once() {
    let (first, second) = (App::start(), App::start());
    let lost = second.address;
    let node = start(&format!("[[upstream]]\nname = \"app\"\nurls = [\"{}\", \"http://{lost}\"]\n", first.url()));
    is_whole(&node);
    drop(second);
    wait_for("the loss to be seen", PATIENCE, || {
        let ready = get(node.admin, "/ready");
        (ready.status == 200 && ready.body.contains(&format!("ready; down: app http://{lost}: cannot connect")))
            .then_some(())
    });
    visit(&node, "x");
    let begin = Instant::now();
    let _back = App::start_at(lost);
    is_whole(&node);
    println!("taken back after {:?}", begin.elapsed());
    let log = node.process.output();
    assert_eq!(log.lines().filter(|line| line.contains("reachable again")).count(), 1, "{log}");
    drop(first);
    wait_for("the other to be alone", PATIENCE, || get(node.admin, "/ready").body.contains("down: app").then_some(()));
    visit(&node, "x");
}
