//! The printed memory budget is kept: a small node is filled with what clients can make it hold, kind by kind up to the bound, and its
//! resident memory grows by no more than the budget says of it; and by a good part of that, or the filling would show nothing.

#[path = "common/certificates.rs"]
mod certificates;
mod common;

use certificates::{Authority, Folder};
use common::fake::Fake;
use common::web::{HANDSHAKE, Polling, Web, token_on};
use common::ws::{FIN, Socket, TEXT, frame, header, record, unmasked};
use common::{App, Node, PATIENCE, Process, narrow, wait_for};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use signalring::config::{Budget, Config, Key, Machine, RunFlags};
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

const CLIENTS: usize = 100;
/// What holds no client's data: pages of code touched for the first time, the allocator's own.
const SLACK_BYTES: u64 = 3 * 1024 * 1024;

/// A node with these settings beside those that all of these have, and its budget.
struct Filled {
    node: Node,
    budget: Budget,
    before: u64,
}

impl Filled {
    fn start(app_server: &str, settings: &[(Key, &str)]) -> Filled {
        let clients = (2 * CLIENTS + 20).to_string();
        let common = [
            (Key::Url, app_server),
            (Key::Listen, "127.0.0.1:0"),
            (Key::Admin, "127.0.0.1:0"),
            (Key::Shards, "1"),
            (Key::ConnectionPoolSize, "1"),
            (Key::MaxClients, &clients),
            (Key::RequestHeadTimeout, "2m"),
            (Key::ClientSendQueueTime, "2m"),
        ];
        let is_other = |(key, _): &&(Key, &str)| settings.iter().all(|(other, _)| other != key);
        let settings = || common.iter().filter(is_other).chain(settings);
        let flags = settings().fold(RunFlags::default(), |flags, (key, value)| flags.with(*key, *value));
        let machine = Machine { cores: 4, nofile: 10_000 };
        let config = Config::resolve(None, std::iter::empty(), &flags, &machine).expect("a sound configuration");
        let mut arguments = vec!["run".to_string()];
        for (key, value) in settings() {
            arguments.extend([format!("--{}", key.setting().flag), value.to_string()]);
        }
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let mut process = Process::signalring("node", &arguments);
        let address = common::address(&process.printed("listening on ").replace("https://", "http://"));
        let admin = common::address(&process.printed("admin on "));
        let node = Node { process, address, admin };
        let lanes = f64::from(config.lanes());
        wait_for("the lanes", PATIENCE, || {
            (node.metric_where("signalring_lanes", "state=\"up\"") == lanes).then_some(())
        });
        // What the first of all clients makes it touch is not paid by the others.
        if settings().all(|(key, _)| *key != Key::TlsKeyFile) {
            drop(Socket::connect(node.address));
        }
        wait_for("it to be gone", PATIENCE, || (node.metric("signalring_clients") == 0.0).then_some(()));
        Filled { before: resident(&node), budget: Budget::of(&config), node }
    }

    fn bytes(&self, term: &str) -> u64 {
        self.budget.terms.iter().find(|known| known.name == term).map(|term| term.bytes()).expect(term)
    }

    /// `terms` are those that were filled, the first one nearly.
    #[track_caller]
    fn is_within(&self, terms: &[&str], least_share: f64) {
        let grown = resident(&self.node).saturating_sub(self.before);
        // Every client has its place, and what it holds was in a receive buffer before.
        let always = ["receive buffers", "lane receive buffers", "client slots", "client contexts"];
        let most: u64 = terms.iter().chain(&always).map(|term| self.bytes(term)).sum();
        let first = self.bytes(terms[0]);
        println!("{}: {grown} bytes more, {first} for it in the budget, {most} with what goes with it", terms[0]);
        assert!(grown <= most + SLACK_BYTES, "{terms:?}: {grown} bytes more, {most} in the budget");
        assert!(grown as f64 >= least_share * first as f64, "{terms:?}: only {grown} of {first} bytes were used");
        assert!(most <= self.budget.resident_max());
        assert_eq!(self.node.metric_where("signalring_client_ends", "reason=\"slow_client\""), 0.0);
    }

    fn sockets(&self, count: usize) -> Vec<Socket> {
        (0..count).map(|_| Socket::connect(self.node.address)).collect()
    }
}

fn resident(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.process.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS is there").trim();
    line.trim_end_matches(" kB").parse::<u64>().expect(line) * 1024
}

/// Waits until the node has taken everything: so long as its figures change, something is under way.
fn settled(node: &Node) {
    let mut last = -1.0;
    wait_for("the node to have taken everything", PATIENCE, || {
        std::thread::sleep(Duration::from_millis(300));
        let bytes = node.metric("signalring_bytes");
        let is_settled = bytes == last;
        last = bytes;
        is_settled.then_some(())
    });
}

/// A message whose answer has the same length.
fn echo(bytes: usize) -> String {
    format!("{{\"type\":1,\"target\":\"Nobody\",\"invocationId\":\"{}\",\"arguments\":[]}}", "i".repeat(bytes))
}

#[test]
fn halves_of_messages() {
    let app = App::start();
    let size = [(Key::MaximumReceiveMessageSize, "256KiB"), (Key::UpstreamMaximumReceiveMessageSize, "256KiB")];
    let filled = Filled::start(&app.url(), &size);
    let mut sockets = filled.sockets(2 * CLIENTS);
    let half = [header(FIN | TEXT, 0x80, 300_000), vec![0; 4], vec![b' '; 255 * 1024]].concat();
    sockets.iter_mut().for_each(|socket| socket.send(&half));
    settled(&filled.node);
    filled.is_within(&["messages in pieces"], 0.5);
}

#[test]
fn halves_of_heads() {
    let app = App::start();
    let filled = Filled::start(&app.url(), &[]);
    let half = format!("GET /dotnetify HTTP/1.1\r\nHost: x\r\nX: {}", "x".repeat(32_000));
    let mut streams: Vec<_> = (0..2 * CLIENTS).map(|_| TcpStream::connect(filled.node.address).unwrap()).collect();
    streams.iter_mut().for_each(|stream| stream.write_all(half.as_bytes()).unwrap());
    settled(&filled.node);
    filled.is_within(&["messages in pieces"], 0.5);
}

#[test]
fn halves_of_posts() {
    let app = App::start();
    let filled = Filled::start(&app.url(), &[(Key::AllowStatefulReconnects, "false"), (Key::DisconnectTimeout, "2m")]);
    let body = vec![b' '; 250 * 1024];
    let mut held = Vec::new();
    for _ in 0..CLIENTS {
        let mut web = Web::connect(filled.node.address);
        let target = format!("/dotnetify?id={}", token_on(&mut web, ""));
        assert_eq!(web.ask(&format!("GET {target}"), "", b"").status, 200);
        let head = format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 256 * 1024);
        web.send(head.as_bytes());
        web.send(&body);
        held.push(web);
    }
    settled(&filled.node);
    filled.is_within(&["POST bodies", "clients without a socket of their own"], 0.3);
}

#[test]
fn queues_of_who_does_not_read() {
    let app = App::start();
    let filled = Filled::start(&app.url(), &[(Key::ClientSendBufferBytes, "4KiB")]);
    let mut held = Vec::new();
    for _ in 0..2 * CLIENTS {
        let mut stream = narrow(filled.node.address);
        let head = common::ws::upgrade_head(filled.node.address, "/dotnetify");
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        stream.write_all(&frame(FIN | TEXT, HANDSHAKE)).unwrap();
        for _ in 0..12 {
            stream.write_all(&record(&echo(20_000))).unwrap();
        }
        held.push(stream);
    }
    settled(&filled.node);
    filled.is_within(&["client send queues", "room in frames"], 0.5);
}

#[test]
fn what_waits_for_polls() {
    let app = App::start();
    let filled = Filled::start(&app.url(), &[(Key::DisconnectTimeout, "2m")]);
    let mut held = Vec::new();
    for _ in 0..CLIENTS {
        let mut polling = Polling::connect(filled.node.address);
        for _ in 0..12 {
            polling.post(format!("{}\u{1e}", echo(20_000)).as_bytes());
        }
        held.push(polling.posts);
    }
    filled.is_within(&["client send queues", "room in frames", "clients without a socket of their own"], 0.3);
}

#[test]
fn what_a_reconnect_would_send_again() {
    let app = App::start();
    let filled = Filled::start(&app.url(), &[(Key::StatefulReconnectBufferSize, "256KiB")]);
    let mut held = Vec::new();
    for _ in 0..CLIENTS {
        let token = token_on(&mut Web::connect(filled.node.address), "&useStatefulReconnect=true");
        let target = format!("/dotnetify?id={token}");
        let mut socket = Socket::upgrade(filled.node.address, &target, "").expect("an upgrade");
        socket.send(&record(r#"{"protocol":"json","version":2}"#));
        assert_eq!(socket.frame("the handshake's answer").text(), "{}\u{1e}");
        // It reads everything, and acknowledges nothing.
        for _ in 0..20 {
            socket.send(&record(&echo(20_000)));
            // Between the answers the node acknowledges what it has.
            while socket.record("an answer")["type"] != 3 {}
        }
        held.push(socket);
    }
    assert!(filled.node.metric_where("signalring_drops", "reason=\"resume_buffer\"") > 0.0, "each is full");
    filled.is_within(&["stateful reconnect buffers", "clients without a socket of their own"], 0.3);
}

#[test]
fn what_waits_for_an_app_server() {
    let app = App::start();
    let queue = [(Key::UpstreamQueueBytes, "16MiB"), (Key::UpstreamQueueTimeout, "2m")];
    let filled = Filled::start(&app.url(), &queue);
    drop(app);
    wait_for("the lane to be down", PATIENCE, || {
        (filled.node.metric_where("signalring_lanes", "state=\"up\"") == 0.0).then_some(())
    });
    let mut sockets = filled.sockets(CLIENTS);
    let name = "n".repeat(30_000);
    let update = record(&format!(r#"{{"type":1,"target":"Update_VM","arguments":["V",{{"N":"{name}"}}]}}"#));
    sockets.iter_mut().for_each(|socket| socket.send(&update.repeat(5)));
    settled(&filled.node);
    filled.is_within(&["messages waiting for lanes"], 0.5);
}

#[test]
fn view_models_with_long_names() {
    let app = Fake::start();
    let filled = Filled::start(&app.url(), &[]);
    let mut sockets = filled.sockets(CLIENTS);
    for (client, socket) in sockets.iter_mut().enumerate() {
        // As many bytes of names as one may have, none of them another's.
        let requests = (0..500).flat_map(|n| {
            let name = format!("{client}.{n}.{}", "v".repeat(120));
            record(&format!(r#"{{"type":1,"target":"Request_VM","arguments":["{name}",null]}}"#))
        });
        socket.send(&requests.collect::<Vec<_>>());
    }
    settled(&filled.node);
    filled.is_within(&["many view models", "lane send queues", "kept frames", "messages waiting for lanes"], 0.15);
}

#[test]
fn messages_that_an_app_server_does_not_acknowledge() {
    let app = Fake::start();
    app.acknowledges(false);
    let window = [(Key::InFlight, "8192"), (Key::AcknowledgeTimeout, "5m")];
    let filled = Filled::start(&app.url(), &window);
    let mut sockets = filled.sockets(CLIENTS);
    for (client, socket) in sockets.iter_mut().enumerate() {
        // The name is what an error would have to be told to.
        let updates = (0..80).flat_map(|n| {
            let name = format!("{client}.{n}.{}", "v".repeat(1000));
            record(&format!(r#"{{"type":1,"target":"Update_VM","arguments":["{name}",{{}}]}}"#))
        });
        socket.send(&updates.collect::<Vec<_>>());
    }
    wait_for("all of them", PATIENCE, || {
        (filled.node.metric("signalring_in_flight") == 80.0 * CLIENTS as f64).then_some(())
    });
    settled(&filled.node);
    // On their way there they waited, and what they waited in is kept for the next ones.
    filled.is_within(&["messages in flight", "lane send queues", "kept frames", "messages waiting for lanes"], 0.4);
}

#[test]
fn what_view_models_were_requested_with() {
    let app = Fake::start();
    let filled = Filled::start(&app.url(), &[(Key::ClientReplayBytes, "256KiB")]);
    let mut sockets = filled.sockets(CLIENTS);
    for (client, socket) in sockets.iter_mut().enumerate() {
        let requests = (0..12).flat_map(|n| {
            let argument = format!("{client}.{n}.{}", "a".repeat(20_000));
            record(&format!(r#"{{"type":1,"target":"Request_VM","arguments":["V{n}",{{"A":"{argument}"}}]}}"#))
        });
        socket.send(&requests.collect::<Vec<_>>());
    }
    app.hears_so_many(12 * CLIENTS);
    settled(&filled.node);
    filled.is_within(&["kept arguments", "lane send queues", "kept frames", "messages waiting for lanes"], 0.35);
}

#[test]
fn clients_in_many_groups() {
    const GROUPS: usize = 1000;
    let app = Fake::start();
    let filled = Filled::start(&app.url(), &[]);
    let mut sockets = filled.sockets(CLIENTS);
    let request = record(r#"{"type":1,"target":"Request_VM","arguments":["V",null]}"#);
    sockets.iter_mut().for_each(|socket| socket.send(&request));
    for heard in app.hears_so_many(CLIENTS) {
        let joins = (0..GROUPS).map(|group| {
            let call = json!([["AddToGroupAsync", [format!("group {group}")], { "$fwdConnId": heard.origin() }]]);
            format!("{}\u{1e}", json!({ "type": 1, "target": "Response_VM", "arguments": call }))
        });
        app.send_bytes(heard.lane, &unmasked(FIN | TEXT, joins.collect::<String>().as_bytes())).unwrap();
    }
    wait_for("all to be members", PATIENCE, || {
        (filled.node.metric("signalring_groups") == GROUPS as f64).then_some(())
    });
    settled(&filled.node);
    filled.is_within(&["many groups", "lane messages in pieces"], 0.3);
}

#[test]
fn halves_of_tls_records() {
    let (authority, folder) = (Authority::new("the tests' authority"), Folder::new());
    let (certificate, key) = folder.pair("node", &authority.issue(&["localhost"]));
    let app = App::start();
    let settings = [
        (Key::Listen, "https://127.0.0.1:0"),
        (Key::TlsCertificateFile, certificate.to_str().unwrap()),
        (Key::TlsKeyFile, key.to_str().unwrap()),
    ];
    let filled = Filled::start(&app.url(), &settings);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);
    let mut held = Vec::new();
    for _ in 0..2 * CLIENTS {
        let mut stream = TcpStream::connect(filled.node.address).unwrap();
        let mut tls = rustls::ClientConnection::new(config.clone(), "localhost".try_into().unwrap()).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut stream).unwrap();
        }
        // A record of the largest size, but for its last byte.
        tls.writer().write_all(&[b'x'; 16 * 1024]).unwrap();
        let mut sealed = Vec::new();
        tls.write_tls(&mut sealed).unwrap();
        stream.write_all(&sealed[..sealed.len() - 1]).unwrap();
        held.push(stream);
    }
    settled(&filled.node);
    filled.is_within(&["clients' TLS in pieces", "clients' TLS", "messages in pieces"], 0.35);
}

#[test]
fn halves_of_messages_on_several_shards() {
    let app = App::start();
    let filled = Filled::start(&app.url(), &[(Key::Shards, "2"), (Key::ConnectionPoolSize, "2")]);
    let half = [header(FIN | TEXT, 0x80, 30_000), vec![0; 4], vec![b' '; 29_000]].concat();
    let mut sockets = filled.sockets(2 * CLIENTS);
    sockets.iter_mut().for_each(|socket| socket.send(&half));
    settled(&filled.node);
    // Places on each shard are more than half of all, because the kernel deals unevenly.
    filled.is_within(&["messages in pieces"], 0.25);
}
