//! Requests that no client sends, in orders that no client has: what is hidden in the body of a poll, what comes behind one, who moves
//! between shards while it floods or does not read, who polls only to put its end off. Most of them once found the node wrong.

#[path = "common/certificates.rs"]
mod certificates;
mod common;

use certificates::{Authority, Folder};
use common::ws::{CLOSE, FIN, TEXT, frame};
use common::{App, Node, PATIENCE, Random, Reply, narrow, wait_for};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

const HANDSHAKE: &str = "{\"protocol\":\"json\",\"version\":1}\u{1e}";
/// Long enough for an answer to what is not to be answered.
const A_MOMENT: Duration = Duration::from_millis(300);

fn start(flags: &[&str]) -> (App, Node) {
    let app = App::start();
    let node = Node::start(&app, flags);
    (app, node)
}

/// One HTTP connection, whose answers are read one by one.
struct Http<S = TcpStream> {
    stream: S,
    heard: Vec<u8>,
}

impl Http {
    fn open(address: SocketAddr) -> Http {
        let stream = TcpStream::connect(address).expect("the listener accepts");
        stream.set_nodelay(true).expect("TCP_NODELAY can be set");
        Http::over(stream)
    }

    fn over(stream: TcpStream) -> Http {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        Http { stream, heard: Vec::new() }
    }

    /// Is nothing said for a moment, neither an answer nor the end?
    fn is_quiet(&mut self) -> bool {
        self.stream.set_read_timeout(Some(A_MOMENT)).expect("a timeout can be set");
        let mut bytes = [0; 4096];
        let result = self.stream.read(&mut bytes);
        self.stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        if let Ok(count) = result {
            self.heard.extend_from_slice(&bytes[..count]);
        }
        self.heard.is_empty() && matches!(result, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }
}

impl<S: Read + Write> Http<S> {
    fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).expect("the node takes it");
    }

    fn ask(&mut self, text: &str) -> Reply {
        self.send(text);
        self.reply(text)
    }

    /// The next answer; one without a length ends with its head.
    fn reply(&mut self, what: &str) -> Reply {
        loop {
            let text = String::from_utf8_lossy(&self.heard).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let mut reply = Reply { head: head.into(), text: text.clone(), ..Reply::default() };
                reply.status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect(head);
                let length = reply.header("content-length").map_or(0, |length| length.parse().expect(length));
                if body.len() >= length {
                    reply.body = body[..length].into();
                    self.heard.drain(..head.len() + 4 + length);
                    return reply;
                }
            }
            let mut bytes = [0; 16 * 1024];
            match self.stream.read(&mut bytes) {
                Ok(count @ 1..) => self.heard.extend_from_slice(&bytes[..count]),
                end => panic!("{end:?} instead of an answer to {what:?} behind {text:?}"),
            }
        }
    }

    fn negotiate(&mut self) -> String {
        let reply = self.ask("POST /dotnetify/negotiate?negotiateVersion=1 HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer: serde_json::Value = serde_json::from_str(&reply.body).expect("negotiate answers JSON");
        answer["connectionToken"].as_str().expect("a token").into()
    }

    /// A long-polling client: negotiated, polled once, hands shaken; its answer is the next thing to poll.
    fn long_polling(&mut self) -> String {
        let token = self.negotiate();
        let first = self.ask(&poll(&token));
        assert_eq!((first.status, first.body.as_str()), (200, ""), "{}", first.text);
        assert_eq!(self.ask(&post(&token, HANDSHAKE)).status, 200);
        token
    }
}

fn request(method: &str, token: &str, body: &str) -> String {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    format!("{method} /dotnetify?id={token} HTTP/1.1\r\nHost: x\r\n{length}\r\n{body}")
}

fn poll(token: &str) -> String {
    request("GET", token, "")
}

fn post(token: &str, body: &str) -> String {
    request("POST", token, body)
}

/// A message that is answered with a completion for `id`.
fn nobody(id: &str) -> String {
    format!("{{\"type\":1,\"target\":\"Nobody\",\"invocationId\":\"{id}\",\"arguments\":[]}}\u{1e}")
}

/// Which shard a token is for.
fn shard(token: &str) -> u8 {
    use base64::Engine;
    let (_, body) = token.split_once('.').expect("name.body");
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(body).expect("base64url")[16]
}

/// A token for each of two shards.
fn two_tokens(http: &mut Http) -> [String; 2] {
    let mut tokens = [http.negotiate(), http.negotiate()];
    tokens.sort_by_key(|token| shard(token));
    assert_eq!(tokens.each_ref().map(|token| shard(token)), [0, 1]);
    tokens
}

/// What stands in the body of a poll is no request. A load balancer that sends the requests of many clients over one connection would
/// hand the answer to somebody else (RFC 9112 §11.2).
#[test]
fn the_body_of_a_poll_is_no_request() {
    let (_app, node) = start(&["--shards", "1"]);
    let mut http = Http::open(node.address);
    let token = http.long_polling();
    let mut other = Http::open(node.address);
    let hidden = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    // Answered at once, as the handshake's answer waits.
    let reply = http.ask(&request("GET", &token, hidden));
    assert_eq!((reply.status, reply.body.as_str()), (200, "{}\u{1e}"));
    assert!(http.is_quiet(), "{}", String::from_utf8_lossy(&http.heard));
    // Answered when there is something to say; half of the body comes behind the answer.
    let whole = request("GET", &token, hidden);
    let (now, later) = whole.split_at(whole.len() - 10);
    http.send(now);
    assert!(http.is_quiet());
    assert_eq!(other.ask(&post(&token, &nobody("1"))).status, 200);
    assert!(http.reply("a poll").body.contains("\"invocationId\":\"1\""));
    http.send(later);
    assert!(http.is_quiet(), "{}", String::from_utf8_lossy(&http.heard));
    // Answered because another one comes; and what was left for a client that has ended.
    http.send(&whole);
    assert!(http.is_quiet());
    other.send(&whole);
    assert_eq!(http.reply("the older poll").status, 204);
    assert!(http.is_quiet() && other.is_quiet());
    assert_eq!(http.ask(&post(&token, "{\"type\":1}\u{1e}")).status, 200);
    assert!(other.reply("the last words").body.contains("\"type\":7"));
    assert_eq!(other.ask(&whole).status, 204);
    assert!(other.is_quiet(), "{}", String::from_utf8_lossy(&other.heard));
    let token = http.negotiate();
    assert_eq!(other.ask(&poll(&token)).status, 200, "it goes on behind the body");
}

#[test]
fn a_request_behind_a_poll_that_is_answered_at_once_is_answered_too() {
    let (_app, node) = start(&["--shards", "1"]);
    let mut http = Http::open(node.address);
    let token = http.long_polling();
    http.send(&[poll(&token), post(&token, &nobody("1")), poll(&token)].concat());
    assert_eq!(http.reply("the first poll").body, "{}\u{1e}");
    assert_eq!(http.reply("the POST").status, 200);
    assert!(http.reply("the second poll").body.contains("\"invocationId\":\"1\""));
}

#[test]
fn half_a_body_behind_another_request_has_the_time_of_a_request_only() {
    let (_app, node) = start(&["--shards", "1", "--request-head-timeout", "300ms"]);
    let mut http = Http::open(node.address);
    let token = http.long_polling();
    let begun = Instant::now();
    let whole = post(&token, &nobody("1"));
    http.send(&format!("{}{}", poll(&token), &whole[..whole.len() - 1]));
    assert_eq!(http.reply("the poll").status, 200);
    assert_eq!(http.reply("half a POST").status, 408);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn a_flood_behind_a_request_for_another_shard_is_not_gathered() {
    let (_app, node) = start(&["--shards", "2"]);
    let peak = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", node.process.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak").trim();
        line.trim_end_matches(" kB").parse::<u64>().expect(line)
    };
    let before = peak();
    let mut http = Http::open(node.address);
    // One of them is for the other shard.
    let polls = two_tokens(&mut http).map(|token| poll(&token)).concat();
    http.send(&polls);
    http.stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let flood = vec![b'x'; 64 * 1024];
    // The node refuses it, throws away what follows for a while, and closes.
    for _ in 0..1024 {
        if http.stream.write_all(&flood).is_err() {
            break;
        }
    }
    assert!(node.metric("signalring_handed_over") >= 1.0);
    let grown = peak() - before;
    assert!(grown < 16 * 1024, "{grown} KiB more for one connection");
}

const NOWHERE: &str = "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn who_reads_late_is_moved_to_its_shard_all_the_same() {
    let (_app, node) = start(&["--shards", "2", "--request-head-timeout", "20s"]);
    let mut http = Http::over(narrow(node.address));
    let polls = two_tokens(&mut http).map(|token| poll(&token)).concat();
    // More answers than the kernel takes, fewer than make a client too slow.
    let count = 1000;
    http.send(&format!("{}{polls}", NOWHERE.repeat(count)));
    std::thread::sleep(A_MOMENT);
    for n in 0..count {
        assert_eq!(http.reply("nowhere").status, 404, "{n}");
    }
    for _ in 0..2 {
        assert_eq!(http.reply("a poll").status, 200);
    }
    assert!(node.metric("signalring_handed_over") >= 1.0);
}

#[test]
fn who_never_reads_is_not_kept_on_its_way_to_another_shard() {
    let (_app, node) = start(&["--shards", "2", "--request-head-timeout", "1s"]);
    let mut http = Http::over(narrow(node.address));
    let polls = two_tokens(&mut http).map(|token| poll(&token));
    // Behind the one that is served where it comes in stands the other one.
    let nowhere = NOWHERE.repeat(500);
    http.send(&[&nowhere, &polls[0], &nowhere, &polls[1]].map(String::as_str).concat());
    wait_for("it to be closed", PATIENCE, || (node.metric("signalring_connections_closed") == 1.0).then_some(()));
}

#[test]
fn polls_do_not_put_off_what_is_due() {
    let (_app, node) = start(&["--shards", "1", "--handshake-timeout", "1s"]);
    let token = Http::open(node.address).negotiate();
    let begun = Instant::now();
    // Each poll is cut off by the next one; the handshake never comes.
    let canceled = wait_for("the handshake's time to be over", PATIENCE, || {
        let mut http = Http::open(node.address);
        http.send(&poll(&token));
        std::thread::sleep(Duration::from_millis(100));
        let count = node.metric_where("signalring_client_ends", "reason=\"handshake_canceled\"");
        (count > 0.0).then(|| begun.elapsed())
    });
    assert!(canceled < Duration::from_secs(5), "{canceled:?}");
}

#[test]
fn one_large_message_between_two_polls_is_no_slowness() {
    let (_app, node) = start(&["--shards", "1", "--client-send-queue-bytes", "16KiB"]);
    let mut http = Http::open(node.address);
    let token = http.long_polling();
    assert_eq!(http.ask(&poll(&token)).body, "{}\u{1e}");
    let id = "i".repeat(20_000);
    assert_eq!(http.ask(&post(&token, &nobody(&id))).status, 200);
    std::thread::sleep(A_MOMENT);
    let reply = http.ask(&poll(&token));
    assert!(reply.status == 200 && reply.body.contains(&id), "{}", reply.text);
    // But without bound nothing waits.
    for _ in 0..10 {
        let reply = http.ask(&post(&token, &nobody(&id)));
        if reply.status == 404 {
            return assert_eq!(node.metric_where("signalring_client_ends", "reason=\"slow_client\""), 1.0);
        }
    }
    panic!("nobody fetches 200 KB");
}

/// A node with an https listener, and what trusts it.
fn start_tls(folder: &Folder, flags: &[&str]) -> (App, Node, Arc<ClientConfig>) {
    let authority = Authority::new("a test's");
    let (certificate, key) = folder.pair("node", &authority.issue(&["127.0.0.1"]));
    let ca = folder.file("ca.pem", authority.pem());
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    // The first listener is the tests' usual one.
    let tls = ["--listen", "https://127.0.0.1:0", "--tls-certificate-file", certificate, "--tls-key-file", key];
    let (app, node) = start(&[&tls[..], flags].concat());
    let client = signalring::tls::ClientTls::load(Some(&ca), None).unwrap();
    (app, node, client)
}

fn https(node: &Node, client: &Arc<ClientConfig>) -> Http<StreamOwned<ClientConnection, TcpStream>> {
    let tcp = TcpStream::connect(https_address(node)).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    Http { stream: StreamOwned::new(tls(client), tcp), heard: Vec::new() }
}

fn https_address(node: &Node) -> SocketAddr {
    let output = node.process.output();
    let (_, rest) = output.split_once("listening on https://").expect("an https listener");
    rest.split_whitespace().next().unwrap().parse().expect("an address")
}

fn tls(client: &Arc<ClientConfig>) -> ClientConnection {
    ClientConnection::new(client.clone(), ServerName::try_from("127.0.0.1").unwrap()).unwrap()
}

#[test]
fn what_is_for_a_poll_whose_tls_broke_waits_for_the_next_one() {
    let folder = Folder::new();
    let (_app, node, client) = start_tls(&folder, &["--shards", "1"]);
    let mut waiting = https(&node, &client);
    let token = waiting.long_polling();
    assert_eq!(waiting.ask(&poll(&token)).body, "{}\u{1e}");
    waiting.send(&poll(&token));
    std::thread::sleep(A_MOMENT);
    // No record: the connection is at its end, though its alert has still to be read.
    waiting.stream.sock.write_all(&[0xff; 100]).unwrap();
    wait_for("the node to notice", PATIENCE, || (node.metric("signalring_tls_errors") == 1.0).then_some(()));
    let mut other = https(&node, &client);
    assert_eq!(other.ask(&post(&token, &nobody("1"))).status, 200);
    assert!(other.ask(&poll(&token)).body.contains("\"invocationId\":\"1\""));
}

/// RFC 8446 §6.1: without close_notify the end of an event stream could be anybody's doing.
#[test]
fn who_sends_too_much_over_tls_is_read_later_and_loses_nothing() {
    let folder = Folder::new();
    let rate = ["--client-message-rate", "20", "--client-message-burst", "10", "--shards", "1"];
    let (_app, node, client) = start_tls(&folder, &rate);
    let mut http = https(&node, &client);
    let upgraded = http.ask(&format!("{}\r\n", common::ws::upgrade_head(https_address(&node), "/dotnetify")));
    assert_eq!(upgraded.status, 101);
    let count = 100;
    let begun = Instant::now();
    http.stream.write_all(&frame(FIN | TEXT, HANDSHAKE.as_bytes())).unwrap();
    // A record is opened as a whole, and paid for afterwards: two seconds each.
    for n in 0..count {
        http.stream.write_all(&frame(FIN | TEXT, nobody(&n.to_string()).as_bytes())).unwrap();
        if n % 50 == 49 {
            std::thread::sleep(A_MOMENT);
        }
    }
    let (mut expected, mut bytes) = (0, [0; 4096]);
    while expected < count {
        let read = http.stream.read(&mut bytes).expect("an answer");
        assert!(read > 0, "it ended after {expected} answers");
        http.heard.extend_from_slice(&bytes[..read]);
        while let Some((frame, length)) = common::ws::parse(&http.heard) {
            http.heard.drain(..length);
            for record in frame.text().split_terminator('\u{1e}').filter(|record| record.contains("invocationId")) {
                assert!(record.contains(&format!("\"invocationId\":\"{expected}\"")), "{record}");
                expected += 1;
            }
        }
    }
    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(node.metric_where("signalring_read_pauses", "reason=\"message_rate\"") >= 1.0);
}

#[test]
fn an_event_stream_over_tls_ends_with_a_goodbye() {
    let folder = Folder::new();
    let (_app, node, client) = start_tls(&folder, &["--shards", "1"]);
    let mut events = https(&node, &client);
    let token = events.negotiate();
    let head =
        events.ask(&format!("GET /dotnetify?id={token} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"));
    assert_eq!(head.status, 200);
    let mut other = https(&node, &client);
    assert_eq!(other.ask(&post(&token, &format!("{HANDSHAKE}{{\"type\":6}}\u{1e}"))).status, 200);
    hear(&mut events, "data: {}");
    // The client closes: nothing more is said, so the stream ends with an empty queue.
    assert_eq!(other.ask(&post(&token, "{\"type\":7}\u{1e}")).status, 200);
    // An end without goodbye would be an `UnexpectedEof`.
    assert_eq!(events.stream.read(&mut [0; 100]).expect("close_notify"), 0);
}

/// Reads until `words` have come.
fn hear<S: Read>(http: &mut Http<S>, words: &str) {
    let mut bytes = [0; 4096];
    while !String::from_utf8_lossy(&http.heard).contains(words) {
        match http.stream.read(&mut bytes) {
            Ok(count @ 1..) => http.heard.extend_from_slice(&bytes[..count]),
            end => panic!("{end:?} before {words:?} behind {:?}", String::from_utf8_lossy(&http.heard)),
        }
    }
}

#[test]
fn whoever_is_carried_hears_why_it_ends() {
    let folder = Folder::new();
    let close = "{\"type\":7,\"allowReconnect\":true}\u{1e}";
    for by_the_app_server in [false, true] {
        // Who cannot be given back what it has when the app server is lost has to come again.
        let (mut app, mut node, client) = start_tls(&folder, &["--shards", "2", "--client-replay-bytes", "1"]);
        // Without a clock, whose ticks would answer polls.
        let argument = "{\"$vmArg\":{\"TickInterval\":0}}";
        let request_vm =
            format!("{{\"type\":1,\"target\":\"Request_VM\",\"arguments\":[\"HelloWorldVM\",{argument}]}}\u{1e}");
        let mut streams: Vec<_> = (0..4).map(|_| https(&node, &client)).collect();
        let mut polls: Vec<_> = (0..4).map(|_| https(&node, &client)).collect();
        let mut gone = Http::open(node.address);
        for http in &mut streams {
            let token = http.negotiate();
            let accept = "Accept: text/event-stream\r\n";
            http.send(&format!("GET /dotnetify?id={token} HTTP/1.1\r\nHost: x\r\n{accept}\r\n"));
            hear(http, "\r\n\r\n:\r\n");
            let reply = Http::open(node.address).ask(&post(&token, &format!("{HANDSHAKE}{request_vm}")));
            assert_eq!(reply.status, 200);
            hear(http, "FullName");
        }
        for http in &mut polls {
            let token = http.long_polling();
            assert_eq!(http.ask(&poll(&token)).body, "{}\u{1e}");
            assert_eq!(http.ask(&post(&token, &request_vm)).status, 200);
            assert!(http.ask(&poll(&token)).body.contains("FullName"));
            http.send(&poll(&token));
        }
        // Its poll comes when it has ended.
        let token = gone.long_polling();
        assert_eq!(gone.ask(&post(&token, &request_vm)).status, 200);
        while !gone.ask(&poll(&token)).body.contains("FullName") {}
        std::thread::sleep(A_MOMENT);
        let ended = if by_the_app_server { &app.process } else { &node.process };
        assert!(
            std::process::Command::new("kill").args(["-TERM", &ended.id().to_string()]).status().unwrap().success()
        );
        for http in streams.iter_mut().chain(&mut polls) {
            hear(http, close);
        }
        if by_the_app_server {
            assert!(gone.ask(&poll(&token)).body.contains(close));
            assert_eq!(gone.ask(&poll(&token)).status, 204);
            assert_eq!(gone.ask(&poll(&token)).status, 404);
        } else {
            for http in &mut streams {
                assert_eq!(http.stream.read(&mut [0; 100]).expect("close_notify"), 0);
            }
            drop((streams, polls, gone));
            let status = node.process.wait(Duration::from_secs(6)).expect("the node ends in time");
            assert!(status.success(), "{status}");
        }
        let _ = app.process.wait(Duration::ZERO);
    }
}

/// A connection that never waits.
enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Wire {
    fn connect(http: SocketAddr, https: SocketAddr, client: &Arc<ClientConfig>, random: &mut Random) -> Wire {
        if random.below(3) > 0 {
            let stream = TcpStream::connect(http).unwrap();
            stream.set_nonblocking(true).unwrap();
            return Wire::Plain(stream);
        }
        let mut stream = StreamOwned::new(tls(client), TcpStream::connect(https).unwrap());
        stream.sock.set_read_timeout(Some(PATIENCE)).unwrap();
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).expect("hands are shaken");
        }
        stream.sock.set_nonblocking(true).unwrap();
        Wire::Tls(Box::new(stream))
    }

    fn io(&mut self) -> &mut dyn ReadWrite {
        match self {
            Wire::Plain(stream) => stream,
            Wire::Tls(stream) => stream,
        }
    }

    /// No TLS, where there is some.
    fn break_off(&mut self) {
        if let Wire::Tls(stream) = self {
            let _ = stream.sock.write_all(&[0xff; 9]);
        }
    }

    /// Nothing follows: the end of this side, TLS's goodbye, or its break.
    fn end(&mut self, random: &mut Random) {
        let _ = match self {
            Wire::Plain(stream) => stream.shutdown(std::net::Shutdown::Write),
            Wire::Tls(stream) if random.below(2) == 0 => {
                stream.conn.send_close_notify();
                stream.flush()
            }
            Wire::Tls(_) => return self.break_off(),
        };
    }
}

trait ReadWrite: Read + Write {}
impl<S: Read + Write> ReadWrite for S {}

/// Everything a client may do, and much that none does, in any order, on few connections with few tokens so that they meet.
fn riot(address: SocketAddr, https: SocketAddr, client: &Arc<ClientConfig>, random: &mut Random, steps: u32) {
    let websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let handshake = "{\"protocol\":\"json\",\"version\":2}\u{1e}";
    let request_vm = "{\"type\":1,\"target\":\"Request_VM\",\"arguments\":[\"HelloWorldVM\",{}]}\u{1e}";
    // Tokens with what they are mostly used for; connections, and whether they speak WebSocket.
    let mut tokens: Vec<(String, u64)> = Vec::new();
    let mut open: Vec<(Wire, bool)> = Vec::new();
    for _ in 0..steps {
        if tokens.len() < 3 || random.below(15) == 0 {
            let stateful = if random.below(2) == 0 { "&useStatefulReconnect=true" } else { "" };
            let reply = Http::open(address).ask(&format!(
                "POST /dotnetify/negotiate?negotiateVersion=1{stateful} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            ));
            let answer: serde_json::Value = serde_json::from_str(&reply.body).expect("negotiate answers JSON");
            let token = answer["connectionToken"].as_str().expect("a token");
            tokens.push((token.into(), random.below(3)));
            if tokens.len() > 6 {
                tokens.remove(0);
            }
        }
        if open.len() < 5 {
            open.push((Wire::connect(address, https, client, random), false));
        }
        let at = random.below(open.len() as u64) as usize;
        let mut bytes = Vec::new();
        for _ in 0..1 + random.below(3) {
            let message = match random.below(12) {
                0..=3 => handshake.to_string(),
                4 | 5 => nobody(&"x".repeat(random.below(3000) as usize + 1)),
                6..=8 => request_vm.into(),
                9 => "{\"type\":8,\"sequenceId\":2}\u{1e}{\"type\":9,\"sequenceId\":1}\u{1e}".into(),
                10 => "{\"type\":6}\u{1e}".into(),
                _ => ["{\"type\":7}\u{1e}", "{", "{\"type\":1}\u{1e}"][random.below(3) as usize].into(),
            };
            let (token, kind) = &tokens[random.below(tokens.len() as u64) as usize];
            let get = |headers| format!("GET /dotnetify?id={token} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").into_bytes();
            let kind = if random.below(12) == 0 { random.below(3) } else { *kind };
            if open[at].1 && random.below(20) > 0 {
                bytes.extend(match random.below(12) {
                    0 => frame(FIN | CLOSE, &[]),
                    _ => frame(FIN | TEXT, message.as_bytes()),
                });
                continue;
            }
            match (kind, random.below(10)) {
                (0, 0..=3) => bytes.extend(get("")),
                (0, 4) => bytes.extend(request("GET", token, &message).into_bytes()),
                (0, 5) => bytes.extend(request("DELETE", token, "").into_bytes()),
                (1, 0..=2) => bytes.extend(get("Accept: text/event-stream\r\n")),
                (2, 0..=7) => {
                    bytes.extend(get(websocket));
                    bytes.extend(frame(FIN | TEXT, format!("{handshake}{request_vm}").as_bytes()));
                    open[at].1 = true;
                }
                _ => bytes.extend(post(token, &message).into_bytes()),
            }
        }
        if random.below(20) == 0 {
            bytes.truncate(random.below(bytes.len() as u64) as usize);
        }
        // A node that has closed, or a full socket: all the same here.
        let written = open[at].0.io().write(&bytes);
        let is_gone = matches!(written, Err(error) if error.kind() != ErrorKind::WouldBlock);
        let mut heard = [0; 64 * 1024];
        let ended = random.below(3) > 0 && matches!(open[at].0.io().read(&mut heard), Ok(0));
        match random.below(16) {
            _ if is_gone || ended => drop(open.swap_remove(at)),
            0 => drop(open.swap_remove(at)),
            1 => open[at].0.end(random),
            2 | 3 => std::thread::sleep(Duration::from_millis(random.below(30))),
            _ => {}
        }
    }
}

#[test]
fn a_riot_leaves_nothing_behind() {
    let seed = std::env::var("HOSTILE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    let steps = std::env::var("HOSTILE_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(1000);
    println!("HOSTILE_SEED={seed}");
    let flags = ["--shards", "2", "--poll-timeout", "1s", "--disconnect-timeout", "1s", "--request-head-timeout", "1s"];
    let folder = Folder::new();
    let (app, node, client) = start_tls(&folder, &[&flags[..], &["--handshake-timeout", "1s"]].concat());
    let (http, https) = (node.address, https_address(&node));
    let rioters: Vec<_> = (0..8u64)
        .map(|n| {
            let client = client.clone();
            std::thread::spawn(move || riot(http, https, &client, &mut Random(seed * 1000 + n), steps))
        })
        .collect();
    for rioter in rioters {
        rioter.join().expect("every token is given and every connection taken");
    }
    for gauge in ["clients", "http_connections", "frames", "groups", "queued_messages", "queued_disconnects"] {
        wait_for(gauge, PATIENCE, || (node.metric(&format!("signalring_{gauge}")) == 0.0).then_some(()));
    }
    wait_for("every connection to be closed", PATIENCE, || {
        let [accepted, closed] =
            ["accepted", "closed"].map(|end| node.metric(&format!("signalring_connections_{end}")));
        (accepted == closed).then_some(())
    });
    wait_for("the app server to forget everybody", PATIENCE, || (app.figure("bindings") == 0).then_some(()));
    let opened = node.metric("signalring_clients_opened");
    assert_eq!(opened, node.metric("signalring_client_ends"));
    for (name, label) in [
        ("clients_opened", "web_sockets"),
        ("clients_opened", "server_sent_events"),
        ("clients_opened", "long_polling"),
        ("resumes", "resumed"),
        ("handed_over", ""),
    ] {
        assert!(node.metric_where(&format!("signalring_{name}"), label) > 0.0, "no {name} {label}");
    }
    Http::open(node.address).long_polling();
}

/// A client with stateful reconnect as reference 14 has it, whose connection is cut again and again: each of its messages is answered
/// once, and every answer arrives once and in order, whatever was lost on the way.
#[test]
fn nothing_is_lost_or_doubled_however_often_the_socket_is_cut() {
    let folder = Folder::new();
    let (_app, node, client) = start_tls(&folder, &["--shards", "2"]);
    let (http, https) = (node.address, https_address(&node));
    let mut random = Random(5);
    let reply = Http::open(http).ask(
        "POST /dotnetify/negotiate?negotiateVersion=1&useStatefulReconnect=true HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    );
    let answer: serde_json::Value = serde_json::from_str(&reply.body).expect("negotiate answers JSON");
    assert_eq!(answer["useStatefulReconnect"], true);
    let token = answer["connectionToken"].as_str().expect("a token");
    let upgrade = format!(
        "GET /dotnetify?id={token} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    const MESSAGES: u64 = 400;
    // Numbers of messages: said, acknowledged by the node, heard, and how far the node's next one is.
    let (mut said, mut acknowledged, mut heard, mut next) = (0u64, 0u64, 0u64, 1u64);
    let message = |number: u64| frame(FIN | TEXT, nobody(&number.to_string()).as_bytes());
    let mut is_first = true;
    while heard < MESSAGES {
        let mut wire = Wire::connect(http, https, &client, &mut random);
        let mut out = upgrade.clone().into_bytes();
        let mut is_waiting = !is_first;
        if is_first {
            out.extend(frame(FIN | TEXT, b"{\"protocol\":\"json\",\"version\":2}\x1e"));
        } else {
            let sequence = format!("{{\"type\":9,\"sequenceId\":{}}}\u{1e}", acknowledged + 1);
            out.extend(frame(FIN | TEXT, sequence.as_bytes()));
            (acknowledged + 1..=said).for_each(|number| out.extend(message(number)));
        }
        let mut input: Vec<u8> = Vec::new();
        let mut is_upgraded = false;
        let rounds = 20 + random.below(60);
        // The first one lives until it has heard something: what comes before the handshake cannot be resumed.
        for round in 0.. {
            if round >= rounds && heard > 0 {
                break;
            }
            if said < MESSAGES && said - acknowledged < 50 {
                said += 1;
                out.extend(message(said));
            }
            // In pieces, so that a cut cuts messages as well.
            let piece = out.len().min(random.below(400) as usize);
            if let Ok(count) = wire.io().write(&out[..piece]) {
                out.drain(..count);
            }
            let mut bytes = [0; 1000];
            let room = 1 + random.below(1000) as usize;
            if let Ok(count) = wire.io().read(&mut bytes[..room]) {
                input.extend_from_slice(&bytes[..count]);
            }
            if !is_upgraded && let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") {
                assert!(input.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&input));
                input.drain(..end + 4);
                is_upgraded = true;
            }
            while is_upgraded && let Some((payload, length)) = unframed(&input) {
                for record in payload.split_terminator('\u{1e}') {
                    let record: serde_json::Value = serde_json::from_str(record).expect(record);
                    match record["type"].as_u64() {
                        // The handshake's answer, a ping.
                        None | Some(6) => {}
                        Some(8) => acknowledged = acknowledged.max(record["sequenceId"].as_u64().unwrap()),
                        Some(9) => {
                            next = record["sequenceId"].as_u64().unwrap();
                            assert!(next <= heard + 1, "{next} after {heard}");
                            is_waiting = false;
                        }
                        Some(3) if is_waiting => panic!("{record} before the Sequence"),
                        Some(3) => {
                            assert_eq!(record["invocationId"], next.to_string());
                            heard = heard.max(next);
                            next += 1;
                        }
                        _ => panic!("{record}"),
                    }
                }
                input.drain(..length);
            }
            if random.below(8) == 0 {
                let ack = format!("{{\"type\":8,\"sequenceId\":{heard}}}\u{1e}");
                out.extend(frame(FIN | TEXT, ack.as_bytes()));
            }
            std::thread::sleep(Duration::from_millis(random.below(4)));
        }
        if random.below(2) == 0 {
            wire.break_off();
        }
        is_first = false;
    }
    assert!(node.metric_where("signalring_resumes", "resumed") > 3.0);
    assert_eq!(node.metric_where("signalring_client_messages", "bad_request"), MESSAGES as f64);
}

/// The payload of a whole frame at the start, as text, and the frame's length.
fn unframed(bytes: &[u8]) -> Option<(String, usize)> {
    let (length, start) = match *bytes.get(1)? {
        126 => (u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?) as usize, 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize, 10),
        short => (usize::from(short), 2),
    };
    let payload = bytes.get(start..start + length)?.to_vec();
    Some((String::from_utf8(payload).expect("text"), start + length))
}
