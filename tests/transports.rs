//! A running node as its clients see it, byte by byte: event streams, long polling, connection ids, several shards, CORS, PROXY headers,
//! identity, TLS, stateful reconnect, every kind of listener. Status codes and texts: `signalr-protocol.md` sections 1, 2, 8, 9, 11, 13, 14.

#[path = "common/certificates.rs"]
mod certificates;
mod common;
#[path = "common/configured.rs"]
mod configured;

use certificates::{Authority, Folder};
use common::web::{
    Answer, EVENTS, Events, HANDSHAKE, NO_CLOCK, Polling, REQUEST, Stream, Web, message_pack_call, records,
    response_data, token, token_on, update,
};
use common::ws::{self, FIN, Socket, frame, record, text, upgrade_head};
use common::{App, Node, PATIENCE, Process, wait_for};
use configured::Configured;
use serde_json::Value;
use signalring::ids::ShardId;
use signalring::session::token::{Token, TokenKey};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

const NO_CACHE: &str =
    "Cache-Control: no-cache, no-store\r\nPragma: no-cache\r\nExpires: Thu, 01 Jan 1970 00:00:00 GMT\r\n";
const CHANGED: &str = "Cannot change transports mid-connection";
const UNKNOWN: &str = "No Connection with that ID";

fn start(flags: &[&str]) -> (App, Node) {
    let app = App::start();
    let shards: &[&str] = if flags.contains(&"--shards") { &[] } else { &["--shards", "2"] };
    let node = Node::start(&app, &[shards, flags].concat());
    (app, node)
}

/// Nobody is left, and nothing of anybody.
fn is_clean(app: &App, node: &Node) {
    for gauge in ["clients", "http_connections", "frames", "groups", "queued_messages", "queued_disconnects"] {
        wait_for(gauge, PATIENCE, || (node.metric(&format!("signalring_{gauge}")) == 0.0).then_some(()));
    }
    let [accepted, closed] = ["accepted", "closed"].map(|what| format!("signalring_connections_{what}"));
    wait_for("every connection to be closed", PATIENCE, || {
        (node.metric(&accepted) == node.metric(&closed)).then_some(())
    });
    nobody_upstream(app);
}

fn nobody_upstream(app: &App) {
    wait_for("the app server to forget everybody", PATIENCE, || (app.figure("bindings") == 0).then_some(()));
}

/// `{reason="..."}` of `signalring_client_ends` has come to `count`.
fn ends(node: &Node, reason: &str, count: usize) {
    wait_for(reason, PATIENCE, || {
        let label = format!("reason=\"{reason}\"");
        (node.metric_where("signalring_client_ends", &label) == count as f64).then_some(())
    });
}

fn says(answer: &Answer, status: u16, text: &str) {
    assert_eq!((answer.status, answer.text()), (status, text), "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("text/plain"), "{answer:?}");
}

/// Sends an upgrade and reads the answer.
fn upgrade(web: &mut Web, target: &str) -> Answer {
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    web.send(format!("{}\r\n", upgrade_head(nowhere, target)).as_bytes());
    web.answer("an upgrade")
}

fn full_name(name: &str) -> impl Fn(&Value) -> bool {
    let full = format!("{name} World");
    move |data| data["FullName"] == full.as_str()
}

// ---- Server-Sent Events -----------------------------------------------------------------------------------------------

#[test]
fn an_event_stream_in_bytes() {
    let (app, node) = start(&["--keep-alive-interval", "400ms", "--allow-origin", "https://app.example.com"]);
    let (mut stream, mut posts) = (Web::connect(node.address), Web::connect(node.address));
    let target = format!("/dotnetify?id={}", token_on(&mut posts, ""));
    let begin = stream.request(&format!("GET {target}"), EVENTS, b"");
    stream.send(&begin);
    let head = String::from_utf8(stream.until(b"\r\n\r\n", "the head")).unwrap();
    assert_eq!(
        head,
        "HTTP/1.1 200 OK\r\nVary: Origin\r\nCache-Control: no-cache,no-store\r\nPragma: no-cache\r\nContent-Encoding: identity\r\n\
         Connection: close\r\nContent-Type: text/event-stream\r\n\r\n"
    );
    assert_eq!(stream.bytes(3, "the prelude"), b":\r\n");
    stream.is_quiet_for(Duration::from_millis(50), "nothing before the handshake");

    let mut post = |body: &[u8]| {
        let answer = posts.ask(&format!("POST {target}"), "Content-Type: text/plain;charset=UTF-8\r\n", body);
        assert_eq!(
            answer.head,
            "HTTP/1.1 200 OK\r\nVary: Origin\r\nConnection: keep-alive\r\nContent-Type: text/plain\r\nContent-Length: 0"
        );
    };
    post(HANDSHAKE);
    assert_eq!(stream.until(b"\r\n\r\n", "the handshake's answer"), b"data: {}\x1e\r\n\r\n");
    post(REQUEST);
    stream.event_response("the state", |data| data.get("FullName").is_some());
    // Several messages in one body, a message over several bodies, an empty body.
    post(&[update("A1"), update("A2")].concat());
    stream.event_response("the second name", full_name("A2"));
    let (head, tail) = (update("A3"), update("A4"));
    post(&head[..20]);
    post(b"");
    post(&[&head[20..], &tail[..9]].concat());
    stream.event_response("the cut name", full_name("A3"));
    post(&tail[9..]);
    stream.event_response("the name after it", full_name("A4"));
    assert_eq!(stream.until(b"\r\n\r\n", "a ping"), b"data: {\"type\":6}\x1e\r\n\r\n");

    // The id is taken, for this transport and every other.
    let mut other = Web::connect(node.address);
    let answer = other.ask(&format!("GET {target}"), EVENTS, b"");
    says(&answer, 409, "");
    says(&other.ask(&format!("GET {target}"), "", b""), 400, CHANGED);
    let answer = other.ask(&format!("DELETE {target}"), "", b"");
    says(&answer, 400, "Cannot terminate this connection using the DELETE endpoint.");
    says(&upgrade(&mut other, &target), 400, CHANGED);
    // What a client says on the stream itself is nothing.
    stream.send(b"GET / HTTP/1.1\r\n\r\n");
    post(&update("A5"));
    stream.event_response("a name", full_name("A5"));

    drop(stream);
    ends(&node, "peer_gone", 1);
    nobody_upstream(&app);
    for line in ["GET", "POST", "DELETE"] {
        says(&posts.ask(&format!("{line} {target}"), "", b""), 404, UNKNOWN);
    }
    says(&posts.ask(&format!("GET {target}"), EVENTS, b""), 404, UNKNOWN);
    drop((posts, other));
    is_clean(&app, &node);
}

#[test]
fn message_pack_over_an_event_stream_is_refused_with_its_text() {
    let (app, node) = start(&[]);
    let mut events = Events::open(Web::connect(node.address), Web::connect(node.address));
    events.post(b"{\"protocol\":\"messagepack\",\"version\":1}\x1e");
    let text = "Cannot use the 'messagepack' protocol on the current transport. The transport does not support 'Binary' transfer format.";
    assert_eq!(events.stream.event("the refusal"), format!("{{\"error\":\"{text}\"}}\u{1e}"));
    events.stream.ended("the stream");
    drop(events);
    is_clean(&app, &node);
}

#[test]
fn a_hub_close_ends_an_event_stream_and_an_error_is_said_first() {
    let (app, node) = start(&["--handshake-timeout", "500ms"]);
    let mut events = Events::connect(node.address);
    events.post(b"{\"type\":7}\x1e");
    events.stream.ended("after the client's own Close");
    events = Events::connect(node.address);
    events.post(b"nonsense\x1e");
    let close = records(&events.stream.event("the Close"));
    assert_eq!(close[0]["type"], 7, "{close:?}");
    assert_eq!(close[0]["allowReconnect"], true);
    events.stream.ended("after an error");
    events = Events::open(Web::connect(node.address), Web::connect(node.address));
    assert_eq!(events.stream.event("the timeout"), "{\"error\":\"Handshake was canceled.\"}\u{1e}");
    events.stream.ended("after the handshake's timeout");
    drop(events);
    is_clean(&app, &node);
}

#[test]
fn an_event_stream_that_is_not_read_is_ended() {
    let (app, node) = start(&["--client-send-queue-bytes", "16KiB", "--client-send-buffer-bytes", "4KiB"]);
    let mut events = Events::connect(node.address);
    events.post(REQUEST);
    let name = "n".repeat(8000);
    for n in 0..5000 {
        let post = format!("POST {}", events.target);
        let answer = events.posts.ask(&post, "", &update(&format!("{n}{name}")));
        if answer.status == 404 {
            ends(&node, "slow_client", 1);
            drop(events);
            return is_clean(&app, &node);
        }
    }
    panic!("it was written to without bound");
}

#[test]
fn stopping_tells_every_transport() {
    let (app, mut node) = start(&[]);
    let mut events = Events::connect(node.address);
    events.post(REQUEST);
    events.stream.event_response("the state", |data| data.get("FullName").is_some());
    let mut polling = Polling::connect(node.address);
    polling.post(REQUEST);
    polling.response("the state", |data| data.get("FullName").is_some());
    polling.begin_poll();
    let mut stateful = Stateful::connect(node.address);
    stateful.request();
    // The poll is on its way.
    wait_for("a poll that waits", PATIENCE, || (node.metric("signalring_http_requests") >= 9.0).then_some(()));
    assert!(Command::new("kill").args(["-TERM", &node.process.id().to_string()]).status().unwrap().success());
    let close = "{\"type\":7,\"allowReconnect\":true}\u{1e}";
    assert_eq!(events.stream.event("the Close"), close);
    events.stream.ended("the event stream");
    let answer = polling.polls.answer("the poll with the Close");
    assert_eq!((answer.status, answer.text()), (200, close));
    polling.polls.ended("the poll's connection");
    assert_eq!(stateful.web.frame("the Close").text(), close);
    assert_eq!(stateful.web.frame("the Close frame").code(), Some(1000));
    drop((events, polling, stateful));
    let status = node.process.wait(Duration::from_secs(6)).expect("the node ends in time");
    assert!(status.success(), "{status}");
    nobody_upstream(&app);
}

#[test]
fn whoever_cannot_be_given_back_what_it_had_is_asked_to_come_back_when_its_app_server_is_lost() {
    let (app, node) = start(&["--disconnect-timeout", "1s", "--client-replay-bytes", "1"]);
    let mut events = Events::connect(node.address);
    let mut waiting = Polling::connect(node.address);
    let mut between = Polling::connect(node.address);
    let mut stateful = Stateful::connect(node.address);
    let mut away = Stateful::connect(node.address);
    events.post(REQUEST);
    events.stream.event_response("the state", |data| data.get("FullName").is_some());
    for polling in [&mut waiting, &mut between] {
        polling.post(REQUEST);
        polling.response("the state", |data| data.get("FullName").is_some());
    }
    stateful.request();
    away.request();
    away.cut(&node);
    waiting.begin_poll();
    waiting.polls.is_quiet_for(Duration::from_millis(50), "a poll that waits");
    let address = app.address;
    drop(app);
    let close = "{\"type\":7,\"allowReconnect\":true}\u{1e}";
    assert_eq!(events.stream.event("the Close"), close);
    events.stream.ended("the event stream");
    assert_eq!(waiting.polls.answer("the poll").text(), close);
    assert_eq!(between.poll().text(), close);
    assert_eq!((waiting.poll().status, between.poll().status), (204, 204));
    assert_eq!(stateful.web.frame("the Close").text(), close);
    assert_eq!(stateful.web.frame("the Close frame").code(), Some(1000));
    for client in [&stateful, &away] {
        says(&upgrade(&mut Web::connect(node.address), &client.target), 404, UNKNOWN);
    }
    ends(&node, "lane_lost", 5);
    drop((events, waiting, between, stateful, away));
    let mut process = Process::signalring("app server", &["app", "--listen", &address.to_string()]);
    process.printed("listening on ");
    is_clean(&App { process, address }, &node);
}

#[test]
fn a_group_message_reaches_every_form_of_client() {
    let (app, node) = start(&["--shards", "1"]);
    let join = "{\"type\":1,\"target\":\"Request_VM\",\"arguments\":[\"BroadcastVM\",{\"$vmArg\":{\"TickInterval\":30}}]}\u{1e}";
    let mut events = Events::connect(node.address);
    events.post(join.as_bytes());
    let mut polling = Polling::connect(node.address);
    polling.post(join.as_bytes());
    let mut plain = Socket::connect(node.address);
    plain.send(&text(join));
    let mut stateful = Stateful::connect(node.address);
    stateful.send(join.as_bytes());
    let mut binary = Socket::open(node.address);
    binary.send(&record("{\"protocol\":\"messagepack\",\"version\":1}"));
    let call = b"\x95\x01\x80\xc0\xaaRequest_VM\x92\xabBroadcastVM\x80";
    binary.send(&frame(FIN | ws::BINARY, &[&[call.len() as u8][..], call].concat()));
    // The same ticks to each, every one in its form.
    let tick = |data: &Value| data["Tick"]["Sequence"].as_u64();
    let start = tick(&plain.response("a tick", |data| tick(data).is_some())).unwrap() + 5;
    for sequence in start..start + 5 {
        let is_it = |data: &Value| tick(data) == Some(sequence);
        plain.response("a tick", is_it);
        events.stream.event_response("a tick", is_it);
        loop {
            let frame = stateful.web.frame("a tick");
            if records(&frame.text()).iter().filter_map(response_data).any(|data| is_it(&data)) {
                break;
            }
        }
        let words = format!("\"Sequence\":{sequence},");
        loop {
            let frame = binary.frame("a tick");
            assert_eq!(frame.opcode(), ws::BINARY);
            if String::from_utf8_lossy(&frame.payload).contains(&words) {
                break;
            }
        }
    }
    polling.response("a tick", |data| tick(data) >= Some(start));
    assert!(node.metric_where("signalring_deliveries", "address=\"group\"") > 0.0);
    polling.posts.ask(&format!("DELETE {}", polling.target), "", b"");
    stateful.send(b"{\"type\":7}\x1e");
    while stateful.web.try_frame("the end").is_some() {}
    drop((events, polling, plain, stateful, binary));
    is_clean(&app, &node);
}

// ---- long polling -----------------------------------------------------------------------------------------------------

#[test]
fn long_polling_in_bytes() {
    let (app, node) = start(&["--poll-timeout", "1s"]);
    let (mut polls, mut posts) = (Web::connect(node.address), Web::connect(node.address));
    let target = format!("/dotnetify?id={}", token_on(&mut posts, ""));
    let head = |kind: &str, length: usize| {
        format!(
            "HTTP/1.1 200 OK\r\nVary: Origin\r\n{NO_CACHE}Connection: keep-alive\r\nContent-Type: {kind}\r\nContent-Length: {length}"
        )
    };
    let ended = format!(
        "HTTP/1.1 204 No Content\r\nVary: Origin\r\n{NO_CACHE}Connection: keep-alive\r\nContent-Type: text/plain"
    );
    let poll = format!("GET {target}&_=1700000000000");
    assert_eq!(polls.ask(&poll, "", b"").head, head("application/octet-stream", 0), "the first poll");
    assert_eq!(posts.ask(&format!("POST {target}"), "", HANDSHAKE).status, 200);
    let answer = polls.ask(&poll, "", b"");
    assert_eq!((answer.head, answer.body.as_slice()), (head("application/octet-stream", 3), &b"{}\x1e"[..]));

    // Nothing to say for the poll's time.
    let begun = Instant::now();
    assert_eq!(polls.ask(&poll, "", b"").head, head("text/plain", 0));
    let taken = begun.elapsed();
    assert!(taken >= Duration::from_millis(950) && taken < Duration::from_secs(5), "1 s is set, it took {taken:?}");

    // Everything that has gathered, whole messages, in one body.
    let completed = |id: u32| {
        format!(
            "{{\"type\":1,\"target\":\"Update_VM\",\"invocationId\":\"{id}\",\"arguments\":[\"HelloWorldVM\",{{\"LastName\":\"L{id}\"}}]}}\u{1e}"
        )
    };
    posts.ask(&format!("POST {target}"), "", &[REQUEST, completed(1).as_bytes(), completed(2).as_bytes()].concat());
    let mut heard = Vec::new();
    while heard.iter().filter_map(response_data).count() < 3 {
        let answer = polls.ask(&poll, "", b"");
        assert_eq!(answer.head, head("application/octet-stream", answer.body.len()));
        heard.extend(answer.records());
        // The app server's answers gather meanwhile.
        std::thread::sleep(Duration::from_millis(20));
    }
    let completions: Vec<&Value> = heard.iter().filter(|record| record["type"] == 3).collect();
    assert_eq!(completions.len(), 2, "{heard:?}");
    let last = heard.iter().filter_map(response_data).next_back().unwrap();
    assert_eq!(last["FullName"], "Hello L2");
    assert_eq!(heard.len(), 5, "and no pings: {heard:?}");

    // A newer poll ends the older one and takes its place.
    let mut newer = Web::connect(node.address);
    polls.send(&polls.request(&poll, "", b""));
    polls.is_quiet_for(Duration::from_millis(100), "a poll that waits");
    newer.send(&newer.request(&poll, "", b""));
    assert_eq!(polls.answer("the older poll").head, ended);
    newer.is_quiet_for(Duration::from_millis(100), "the newer poll");
    posts.ask(&format!("POST {target}"), "", &update("Newer"));
    assert!(newer.answer("the newer poll").text().contains("Newer L2"));

    // A poll that is the last request of its connection.
    let mut last = Web::connect(node.address);
    posts.ask(&format!("POST {target}"), "", &update("Last"));
    let answer = last.ask(&poll, "Connection: close\r\n", b"");
    assert!(answer.text().contains("Last L2") && answer.header("connection") == Some("close"), "{answer:?}");
    last.ended("the poll's connection");

    // Other transports have no business here.
    says(&posts.ask(&format!("GET {target}"), EVENTS, b""), 400, CHANGED);
    says(&upgrade(&mut Web::connect(node.address), &target), 400, CHANGED);

    // DELETE: 202, the open poll hears 204, then there is no such connection.
    newer.send(&newer.request(&poll, "", b""));
    newer.is_quiet_for(Duration::from_millis(50), "a poll that waits");
    assert_eq!(
        posts.ask(&format!("DELETE {target}"), "", b"").head,
        "HTTP/1.1 202 Accepted\r\nVary: Origin\r\nConnection: keep-alive\r\nContent-Type: text/plain\r\nContent-Length: 0"
    );
    assert_eq!(newer.answer("the poll after DELETE").head, ended);
    for line in ["GET", "POST", "DELETE"] {
        says(&posts.ask(&format!("{line} {target}"), "", b""), 404, UNKNOWN);
    }
    says(&posts.ask(&format!("GET {target}"), EVENTS, b""), 404, UNKNOWN);
    says(&upgrade(&mut Web::connect(node.address), &target), 404, UNKNOWN);
    ends(&node, "deleted", 1);
    drop((polls, posts, newer));
    is_clean(&app, &node);
}

#[test]
fn a_client_without_a_poll_is_given_up_and_one_with_a_poll_is_not() {
    let (app, node) = start(&["--disconnect-timeout", "1s", "--poll-timeout", "3s"]);
    let mut never = Polling::open(Web::connect(node.address), Web::connect(node.address));
    let mut between = Polling::connect(node.address);
    between.post(REQUEST);
    between.response("the state", |data| data.get("FullName").is_some());
    let begun = Instant::now();
    let mut waiting = Polling::connect(node.address);
    waiting.post(REQUEST);
    waiting.response("the state", |data| data.get("FullName").is_some());
    waiting.begin_poll();
    ends(&node, "inactive", 2);
    let taken = begun.elapsed();
    assert!(taken < Duration::from_secs(3), "1 s is set, it took {taken:?}");
    for client in [&mut never, &mut between] {
        says(&client.poll(), 404, UNKNOWN);
        says(&client.posts.ask(&format!("POST {}", client.target), "", b""), 404, UNKNOWN);
    }
    // POSTs are no polls: they keep nobody alive, and a poll that waits for longer than the limit does.
    std::thread::sleep(Duration::from_millis(1200));
    waiting.post(&update("Awake"));
    assert!(waiting.polls.answer("the poll").text().contains("Awake World"));
    for n in 0..20 {
        let answer = waiting.posts.ask(&format!("POST {}", waiting.target), "", &update(&format!("N{n}")));
        if answer.status == 404 {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    ends(&node, "inactive", 3);
    drop((never, between, waiting));
    is_clean(&app, &node);
}

#[test]
fn a_polling_client_has_the_handshakes_time_however_it_polls() {
    let (app, node) = start(&["--handshake-timeout", "600ms", "--disconnect-timeout", "60s"]);
    let canceled = "{\"error\":\"Handshake was canceled.\"}\u{1e}";
    let mut waiting = Polling::open(Web::connect(node.address), Web::connect(node.address));
    let mut between = Polling::open(Web::connect(node.address), Web::connect(node.address));
    let begun = Instant::now();
    let answer = waiting.poll();
    assert_eq!((answer.status, answer.text()), (200, canceled));
    assert!(begun.elapsed() < Duration::from_secs(4), "600 ms are set, it took {:?}", begun.elapsed());
    // Who polls later hears the same, and then that this was all.
    ends(&node, "handshake_canceled", 2);
    assert_eq!(between.poll().text(), canceled);
    for client in [&mut waiting, &mut between] {
        assert_eq!(client.poll().status, 204);
        says(&client.poll(), 404, UNKNOWN);
    }
    // A refusal in words, likewise; and nothing can be said to it any more.
    let mut refused = Polling::open(Web::connect(node.address), Web::connect(node.address));
    refused.post(b"{\"protocol\":\"cobol\",\"version\":1}\x1e");
    says(&refused.posts.ask(&format!("POST {}", refused.target), "", HANDSHAKE), 404, UNKNOWN);
    assert_eq!(refused.poll().text(), "{\"error\":\"The protocol 'cobol' is not supported.\"}\u{1e}");
    assert_eq!(refused.poll().status, 204);
    drop((waiting, between, refused));
    is_clean(&app, &node);
}

#[test]
fn bodies_of_posts_in_every_size_and_cut() {
    let (app, node) = start(&[
        "--allow-origin",
        "https://app.example.com",
        "--request-head-timeout",
        "700ms",
        "--maximum-receive-message-size",
        "4KiB",
    ]);
    let mut polling = Polling::connect(node.address);
    polling.post(REQUEST);
    polling.response("the state", |data| data.get("FullName").is_some());
    let line = format!("POST {}", polling.target);

    // A byte at a time, and two requests in one packet with the third's beginning.
    let mut posts = Web::connect(node.address);
    for byte in posts.request(&line, "", &update("Bytes")) {
        posts.send(&[byte]);
    }
    assert_eq!(posts.answer("a body of bytes").status, 200);
    polling.response("the name", full_name("Bytes"));
    let three = [
        posts.request(&line, "", &update("One")),
        posts.request(&line, "", &update("Two")),
        posts.request(&line, "", &update("Three")),
    ]
    .concat();
    let (first, rest) = three.split_at(three.len() - 30);
    posts.send(first);
    assert_eq!((posts.answer("one").status, posts.answer("two").status), (200, 200));
    posts.is_quiet_for(Duration::from_millis(50), "half a body");
    posts.send(rest);
    assert_eq!(posts.answer("three").status, 200);
    polling.response("the name", full_name("Three"));

    // As many messages as a body may hold, cut into packets of many sizes.
    let most = 8 * 4096;
    let mut body = update("Last");
    while body.len() < most {
        let missing = most - body.len();
        let filler = if missing > 4000 { 2000 } else { missing };
        let ping = format!("{{\"type\":6{}}}\x1e", " ".repeat(filler - 11));
        body.splice(0..0, ping.into_bytes());
    }
    assert_eq!(body.len(), most);
    let request = posts.request(&line, "", &body);
    for piece in request.chunks(1500) {
        posts.send(piece);
    }
    assert_eq!(posts.answer("the largest body").status, 200);
    polling.response("the name", full_name("Last"));

    // One byte more, and a message over its own bound.
    let mut large = Web::connect(node.address);
    body.push(b' ');
    let answer = large.ask(&line, "Origin: https://app.example.com\r\n", &body);
    assert_eq!(answer.status, 413, "{answer:?}");
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example.com"));
    assert_eq!(answer.header("connection"), Some("close"));
    large.gone("after 413");
    // A body that does not come in time.
    let mut slow = Web::connect(node.address);
    let request = slow.request(&line, "", &update("Slow"));
    slow.send(&request[..request.len() - 1]);
    assert_eq!(slow.answer("a body that does not end").status, 408);
    slow.gone("after 408");
    // The client has noticed nothing of all this.
    polling.post(&update("Still"));
    polling.response("the name", full_name("Still"));
    polling.post(&update(&"x".repeat(5000)));
    let close = polling.poll().records();
    assert_eq!((&close[0]["type"], &close[0]["allowReconnect"]), (&7.into(), &true.into()), "{close:?}");
    assert_eq!(polling.poll().status, 204);
    ends(&node, "message_too_large", 1);
    drop((polling, posts, large, slow));
    is_clean(&app, &node);
}

#[test]
fn requests_behind_a_poll_on_its_connection_wait_for_it() {
    let (app, node) = start(&["--poll-timeout", "1s"]);
    let mut polling = Polling::open(Web::connect(node.address), Web::connect(node.address));
    polling.post(HANDSHAKE);
    let get = format!("GET {}", polling.target);
    let post = format!("POST {}", polling.target);

    // Behind a poll that is answered at once (there is the handshake's answer), in one packet.
    let bytes = [polling.polls.request(&get, "", b""), polling.polls.request(&post, "", REQUEST)].concat();
    polling.polls.send(&bytes);
    assert_eq!(polling.polls.answer("the poll").text(), "{}\u{1e}");
    assert_eq!(polling.polls.answer("the POST behind it").status, 200);
    polling.response("the state", |data| data.get("FullName").is_some());

    // Behind one that waits: the POST is for after its answer, which another connection's POST brings about.
    let bytes = [
        polling.polls.request(&get, "", b""),
        polling.polls.request(&post, "", &update("Behind")),
        polling.polls.request(&get, "", b""),
    ]
    .concat();
    polling.polls.send(&bytes);
    polling.polls.is_quiet_for(Duration::from_millis(100), "a poll that waits");
    polling.post(&update("Before"));
    assert!(polling.polls.answer("the poll").text().contains("Before World"));
    assert_eq!(polling.polls.answer("the POST behind it").status, 200);
    assert!(polling.polls.answer("the poll behind that").text().contains("Behind World"));

    // Behind one that ends by its timeout; the poll has a body, which is no request.
    let bytes = [polling.polls.request(&get, "", b"POST / HTTP/1.1\r\n\r\n"), polling.polls.request(&post, "", b"")];
    polling.polls.send(&bytes.concat());
    let answer = polling.polls.answer("the poll's timeout");
    assert_eq!((answer.status, answer.text()), (200, ""), "{answer:?}");
    assert_eq!(polling.polls.answer("the POST behind it").status, 200);

    // The last words are fetched by a poll, with a request behind it.
    polling.post(b"nonsense\x1e");
    let bytes = [polling.polls.request(&get, "", b""), polling.polls.request(&get, "", b"")].concat();
    polling.polls.send(&bytes);
    assert!(polling.polls.answer("the last words").text().contains("\"type\":7"));
    assert_eq!(polling.polls.answer("the end").status, 204);

    // More than any client has a reason for.
    let mut flood = Polling::connect(node.address);
    flood.begin_poll();
    flood.polls.send(&vec![b'x'; 64 * 1024]);
    flood.polls.gone("a flood behind a poll");
    drop((polling, flood));
    ends(&node, "deleted", 0);
    wait_for("the flooding client's end", PATIENCE, || (node.metric("signalring_clients") <= 1.0).then_some(()));
    let _ = app;
}

#[test]
fn a_poll_whose_connection_is_cut_loses_nothing() {
    let (app, node) = start(&["--disconnect-timeout", "5s"]);
    let mut polling = Polling::connect(node.address);
    polling.post(REQUEST);
    polling.response("the state", |data| data.get("FullName").is_some());
    for n in 0..6 {
        polling.begin_poll();
        polling.polls.is_quiet_for(Duration::from_millis(30), "a poll that waits");
        let cut = std::mem::replace(&mut polling.polls, Web::connect(node.address));
        if n % 2 == 0 {
            cut.stream.finish();
        }
        drop(cut);
        wait_for("the poll's end to be noticed", PATIENCE, || {
            (node.metric("signalring_http_connections") <= 2.0).then_some(())
        });
        let name = format!("Cut{n}");
        polling.post(&update(&name));
        polling.response("what was said meanwhile", full_name(&name));
    }
    // Nobody polls again.
    polling.begin_poll();
    let cut = std::mem::replace(&mut polling.polls, Web::connect(node.address));
    cut.stream.finish();
    drop(cut);
    ends(&node, "inactive", 1);
    drop(polling);
    is_clean(&app, &node);
}

#[test]
fn message_pack_over_polls() {
    let (app, node) = start(&[]);
    let mut polling = Polling::open(Web::connect(node.address), Web::connect(node.address));
    polling.post(b"{\"protocol\":\"messagepack\",\"version\":1}\x1e");
    assert_eq!(polling.poll().body, b"{}\x1e");
    // Two requests, cut inside the second one's length; a ping between them.
    let request = message_pack_call("Request_VM", NO_CLOCK, Some("7"));
    let change = message_pack_call("Update_VM", b"\x81\xa9FirstName\xa3Ada", None);
    let bytes = [&request[..], b"\x02\x91\x06", &change[..]].concat();
    let cut = request.len() + 3 + 1;
    polling.post(&bytes[..cut]);
    polling.post(&bytes[cut..]);
    let mut heard = Vec::new();
    let contains = |heard: &[u8], text: &str| heard.windows(text.len()).any(|window| window == text.as_bytes());
    while !contains(&heard, "Ada World") {
        let answer = polling.poll();
        assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
        // Whole messages only.
        let mut rest = answer.body.as_slice();
        while !rest.is_empty() {
            let (length, prefix) = match *rest {
                [low @ ..0x80, ..] => (usize::from(low), 1),
                [low, high @ ..0x80, ..] => (usize::from(low & 0x7f) | usize::from(high) << 7, 2),
                _ => panic!("{rest:x?}"),
            };
            assert!(rest.len() >= prefix + length, "cut: {rest:x?}");
            rest = &rest[prefix + length..];
        }
        heard.extend_from_slice(&answer.body);
    }
    // Reference 12.2: completion "7" = nil; [1, {}, nil, "Response_VM", [["HelloWorldVM", text]], ...].
    assert!(heard.windows(8).any(|window| window == b"\x07\x95\x03\x80\xa17\x03\xc0"), "{}", heard.escape_ascii());
    assert!(contains(&heard, "Response_VM") && contains(&heard, "FullName"), "{}", heard.escape_ascii());
    polling.posts.ask(&format!("DELETE {}", polling.target), "", b"");
    drop(polling);
    is_clean(&app, &node);
}

#[test]
fn what_waits_for_a_client_that_does_not_poll_is_bounded() {
    let (app, node) = start(&["--client-send-queue-bytes", "16KiB"]);
    let mut polling = Polling::connect(node.address);
    polling.post(REQUEST);
    polling.response("the state", |data| data.get("FullName").is_some());
    // Within the bound, whatever else is said meanwhile: the view model tells the time, too.
    let large = "a".repeat(6_000);
    polling.post(&update(&large));
    wait_for("the answer to wait", PATIENCE, || (node.metric("signalring_deliveries") >= 2.0).then_some(()));
    polling.response("the long name", full_name(&large));
    let mut sent = 0;
    wait_for("the end of a client that does not fetch what it asks for", PATIENCE, || {
        sent += 1;
        let name = format!("{sent}{}", "b".repeat(2000));
        let answer = polling.posts.ask(&format!("POST {}", polling.target), "", &update(&name));
        (answer.status == 404).then_some(())
    });
    ends(&node, "slow_client", 1);
    says(&polling.poll(), 404, UNKNOWN);
    drop(polling);
    is_clean(&app, &node);
}

// ---- connection ids ---------------------------------------------------------------------------------------------------

const TOKEN_KEY: &str = "a key that all nodes have";

/// Reference 1.2: what is POSTed before the transport starts is accepted and waits for it. Python's signalrcore does that.
#[test]
fn a_post_before_the_transport_waits_for_it() {
    let (app, node) = start(&["--disconnect-timeout", "2s", "--poll-timeout", "2s"]);
    for is_stream in [false, true] {
        let mut web = Web::connect(node.address);
        let id = format!("/dotnetify?id={}", token(node.address));
        let halves = HANDSHAKE.split_at(10);
        for half in [halves.0, halves.1] {
            let posted = web.ask(&format!("POST {id}"), "", half);
            assert_eq!((posted.status, posted.text()), (200, ""), "{posted:?}");
        }
        if is_stream {
            let mut stream = Web::connect(node.address);
            let request = stream.request(&format!("GET {id}"), EVENTS, b"");
            stream.send(&request);
            let heard = stream.until(b"data: {}\x1e\r\n\r\n", "the handshake's answer");
            assert!(heard.ends_with(b"\r\n\r\n:\r\ndata: {}\x1e\r\n\r\n"), "{}", heard.escape_ascii());
        } else {
            let first = web.ask(&format!("GET {id}"), "", b"");
            assert_eq!((first.status, first.text()), (200, ""), "the first poll is empty");
            assert_eq!(web.ask(&format!("GET {id}"), "", b"").text(), "{}\u{1e}");
            assert_eq!(web.ask(&format!("DELETE {id}"), "", b"").status, 202);
        }
    }
    // More than a POST may hold is no more taken in parts.
    let mut web = Web::connect(node.address);
    let id = format!("/dotnetify?id={}", token(node.address));
    let much = vec![b' '; 200 * 1024];
    assert_eq!(web.ask(&format!("POST {id}"), "", &much).status, 200);
    assert_eq!(web.ask(&format!("POST {id}"), "", &much).status, 503);
    // What nobody comes for is dropped, and counted.
    let dropped = || node.metric_where("signalring_drops", "reason=\"early_post\"");
    assert_eq!(dropped(), 0.0);
    wait_for("it to be dropped", PATIENCE, || (dropped() == 1.0).then_some(()));
    drop(web);
    is_clean(&app, &node);
}

#[test]
fn ids_are_good_for_what_they_began() {
    let (app, node) = start(&["--token-key", TOKEN_KEY, "--node-name", "n1"]);
    let mut web = Web::connect(node.address);
    // Reference 1.2: everything but a WebSocket needs one.
    for (line, headers) in
        [("GET /dotnetify", ""), ("GET /dotnetify?id=", EVENTS), ("POST /dotnetify?id", ""), ("DELETE /dotnetify", "")]
    {
        says(&web.ask(line, headers, b""), 400, "Connection ID required");
    }
    let signed = |key: &str, node: &str, at: i64| {
        let connection = [node.len() as u8; 16];
        let issued = Token { connection, shard: ShardId(1), resumable: false };
        TokenKey::new(key.as_bytes(), node).issue(&issued, at as u64)
    };
    let now = unix_seconds();
    let good = signed(TOKEN_KEY, "n1", now);
    let nameless = good.strip_prefix("n1.").unwrap().to_string();
    let wrong = [
        "AAAAAAAAAAAAAAAAAAAAAA".to_string(),
        signed("another key, as long as it may be", "n1", now),
        format!(".{nameless}"),
        format!("n2.{nameless}"),
        nameless,
        format!("{good}A"),
        good[..good.len() - 1].to_string(),
        // Expired.
        signed(TOKEN_KEY, "n1", now - 62),
    ];
    for id in wrong.iter().map(|id| format!("/dotnetify?id={id}")) {
        for (line, headers) in [("GET", ""), ("GET", EVENTS), ("POST", ""), ("DELETE", "")] {
            says(&web.ask(&format!("{line} {id}"), headers, b""), 404, UNKNOWN);
        }
        let mut web = Web::connect(node.address);
        says(&upgrade(&mut web, &id), 404, UNKNOWN);
        web.ended("frames may follow a refused upgrade");
    }
    // Negotiated, but not begun: there is nothing to end yet.
    says(&web.ask(&format!("DELETE /dotnetify?id={good}"), "", b""), 404, UNKNOWN);
    // The key's name is compared without case.
    let target = format!("/dotnetify?ID={good}");
    let mut first = Web::connect(node.address);
    assert_eq!(upgrade(&mut first, &target).status, 101);
    for (line, headers, status, text) in [
        ("GET", "", 400, CHANGED),
        ("GET", EVENTS, 400, CHANGED),
        ("POST", "", 405, "POST requests are not allowed for WebSocket connections."),
        ("DELETE", "", 400, "Cannot terminate this connection using the DELETE endpoint."),
    ] {
        says(&web.ask(&format!("{line} {target}"), headers, b""), status, text);
    }
    says(&upgrade(&mut Web::connect(node.address), &target), 409, "");
    drop(first);
    ends(&node, "peer_gone", 1);
    for (line, headers) in [("GET", ""), ("GET", EVENTS), ("POST", ""), ("DELETE", "")] {
        says(&web.ask(&format!("{line} {target}"), headers, b""), 404, UNKNOWN);
    }
    says(&upgrade(&mut Web::connect(node.address), &target), 404, UNKNOWN);
    // A neighbour's id is as good as ours, and is used up by its use here.
    let target = format!("/dotnetify?x=1&Id={}", signed(TOKEN_KEY, "neighbour", now));
    // But not where more than one request is to come: the balancer sends the next one to the neighbour.
    for (line, headers, body) in [("GET", "", &b""[..]), ("GET", EVENTS, b""), ("POST", "", HANDSHAKE)] {
        says(&web.ask(&format!("{line} {target}"), headers, body), 404, UNKNOWN);
    }
    assert_eq!(upgrade(&mut Web::connect(node.address), &target).status, 101);
    ends(&node, "peer_gone", 2);
    says(&upgrade(&mut Web::connect(node.address), &target), 404, UNKNOWN);
    // Without an id: as many as one likes.
    let sockets: Vec<Socket> = (0..3).map(|_| Socket::connect(node.address)).collect();
    drop((web, sockets));
    is_clean(&app, &node);
}

// ---- a configuration that is read again ---------------------------------------------------------------------------------

#[test]
fn who_is_there_keeps_a_transport_that_is_withdrawn_and_nobody_begins_with_it() {
    let app = App::start();
    let lines = |transports: &str| format!("shards = 2\n[hub]\ntransports = [{transports}]\npoll_timeout = \"1s\"\n");
    let configured = Configured::start(&app, &lines("\"WebSockets\", \"ServerSentEvents\", \"LongPolling\""));
    let node = &configured.node;
    let mut polling = Polling::connect(node.address);
    polling.post(REQUEST);
    polling.response("the state", |data| data.get("FullName").is_some());
    let mut stateful = Stateful::connect(node.address);
    stateful.request();
    let mut events = Events::connect(node.address);
    let unused = [(); 3].map(|()| format!("/dotnetify?id={}", token(node.address)));

    // The poll that is answered last comes before it, the next one behind it.
    configured.read_again(&lines("\"ServerSentEvents\""));
    polling.post(&update("Polls"));
    polling.response("an answer", full_name("Polls"));
    stateful.cut(node);
    stateful.resume(node, 1);
    assert!(stateful.web.frame("the state again").text().contains("FullName"));
    let mut web = Web::connect(node.address);
    says(
        &web.ask(&format!("GET {}", unused[0]), "", b""),
        404,
        "LongPolling transport not supported by this end point type",
    );
    for target in ["/dotnetify", &unused[1]] {
        let answer = upgrade(&mut Web::connect(node.address), target);
        says(&answer, 404, "WebSockets transport not supported by this end point type");
    }
    configured.read_again(&lines("\"WebSockets\""));
    events.post(REQUEST);
    events.stream.event_response("the state", |data| data.get("FullName").is_some());
    let refused = web.ask(&format!("GET {}", unused[2]), EVENTS, b"");
    says(&refused, 404, "ServerSentEvents transport not supported by this end point type");
    drop((polling, stateful, events));
    assert_eq!(configured.reloads(), (2.0, 0.0));
}

#[test]
fn a_proxy_header_under_way_is_read_as_one_when_they_are_switched_off() {
    let app = App::start();
    let lines = |is_on: bool| format!("proxy_protocol = {is_on}\ntrusted_proxies = [\"127.0.0.1\"]\n");
    let configured = Configured::start(&app, &lines(true));
    let mut web = Web::connect(configured.node.address);
    web.send(b"PROXY TCP4 192.0.2.1 ");
    wait_for("it to be accepted", PATIENCE, || {
        (configured.node.metric("signalring_http_connections") == 1.0).then_some(())
    });
    configured.read_again(&lines(false));
    web.send(b"198.51.100.7 56324 443\r\n");
    web.send(format!("{}\r\n", upgrade_head(configured.node.address, "/dotnetify")).as_bytes());
    assert_eq!(remote(&seen_over(&app, web)), ("192.0.2.1", 56324));
    // Of who comes now none is expected.
    assert_eq!(remote(&seen(&app, &configured.node, b"", "")).0, "127.0.0.1");
}

// ---- several shards ---------------------------------------------------------------------------------------------------

#[test]
fn every_transport_works_whichever_shard_the_kernel_picks() {
    let (app, node) = start(&["--shards", "4", "--disconnect-timeout", "1s"]);
    let state = |data: &Value| data.get("FullName").is_some();
    for n in 0..24 {
        let name = format!("N{n}");
        // One connection for everything a polling client does.
        let mut web = Web::connect(node.address);
        let target = format!("/dotnetify?id={}", token_on(&mut web, ""));
        let (get, post) = (format!("GET {target}"), format!("POST {target}"));
        assert_eq!(web.ask(&get, "", b"").status, 200);
        assert_eq!(web.ask(&post, "", &[HANDSHAKE, REQUEST, &update(&name)].concat()).status, 200);
        let mut heard = String::new();
        while !heard.contains(&format!("{name} World")) {
            heard.push_str(web.ask(&get, "", b"").text());
        }
        // A body that is cut where its connection changes shards: each POST has a fresh connection.
        let mut posts = Web::connect(node.address);
        let request = posts.request(&post, "", &update("Cut"));
        let (head, tail) = request.split_at(request.len() - 25);
        posts.send(head);
        std::thread::sleep(Duration::from_millis(3));
        posts.send(tail);
        assert_eq!(posts.answer("a cut POST").status, 200);
        assert!(web.ask(&get, "", b"").text().contains("Cut World"));
        assert_eq!(posts.ask(&format!("DELETE {target}"), "", b"").status, 202);

        let mut events = Events::connect(node.address);
        events.post(REQUEST);
        events.stream.event_response("the state", state);

        // Handshake and request right behind the upgrade, whoever owns the id.
        let mut web = Web::connect(node.address);
        let target = format!("/dotnetify?id={}", token(node.address));
        let bytes = [
            format!("{}\r\n", upgrade_head(node.address, &target)).into_bytes(),
            frame(FIN | ws::TEXT, HANDSHAKE),
            frame(FIN | ws::TEXT, REQUEST),
        ];
        web.send(&bytes.concat());
        assert_eq!(web.answer("the upgrade").status, 101);
        assert_eq!(web.frame("the handshake's answer").text(), "{}\u{1e}");
        assert!(web.frame("the state").text().contains("FullName"));

        let mut stateful = Stateful::connect(node.address);
        stateful.request();
        let (stream, _) = stateful.cut(&node);
        drop(stream);
        stateful.resume(&node, 1);
        assert!(stateful.web.frame("the state again").text().contains("FullName"));
    }
    assert!(node.metric("signalring_handed_over") > 24.0, "{}", node.metric("signalring_handed_over"));
    is_clean(&app, &node);
}

#[test]
fn one_connection_may_ask_for_the_clients_of_every_shard() {
    let (app, node) = start(&["--shards", "4", "--disconnect-timeout", "2s"]);
    let mut web = Web::connect(node.address);
    let targets: Vec<String> = (0..16).map(|_| format!("GET /dotnetify?id={}", token_on(&mut web, ""))).collect();
    // In one packet: each is answered by its own shard, in order.
    let bytes: Vec<u8> = targets.iter().flat_map(|line| web.request(line, "", b"")).collect();
    web.send(&bytes);
    for line in &targets {
        let answer = web.answer(line);
        assert_eq!((answer.status, answer.text()), (200, ""), "{line}: {answer:?}");
    }
    // Behind answers that wait for somebody to read them.
    let slow = Web::connect(node.address);
    let negotiate = slow.request("POST /dotnetify/negotiate?negotiateVersion=1", "", b"");
    let mut bytes = negotiate.repeat(550);
    for line in &targets[..4] {
        bytes.extend(slow.request(&line.replace("GET", "DELETE"), "", b""));
    }
    let mut sender = slow_sender(&node, &bytes);
    std::thread::sleep(Duration::from_millis(300));
    for n in 0..550 {
        assert_eq!(sender.answer("a token").status, 200, "{n}");
    }
    for _ in 0..4 {
        assert_eq!(sender.answer("a deleted client").status, 202);
    }
    assert!(node.metric("signalring_handed_over") > 4.0);
    drop((web, slow, sender));
    // Who changes shards and never reads is not waited for.
    is_clean(&app, &node);
    let closed = node.metric("signalring_connections_closed");
    let flood = |line: &String| [negotiate.repeat(550), format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n").into()].concat();
    let _stuck: Vec<Web> = targets[..8].iter().map(|line| slow_sender(&node, &flood(line))).collect();
    wait_for("the first to be closed", PATIENCE, || {
        (node.metric("signalring_connections_closed") > closed).then_some(())
    });
}

/// A connection that has sent everything and has not read yet.
fn slow_sender(node: &Node, bytes: &[u8]) -> Web {
    let stream = TcpStream::connect(node.address).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let bytes = bytes.to_vec();
    std::thread::spawn(move || writer.write_all(&bytes));
    Web::over(Box::new(stream), "slow")
}

#[test]
fn a_peer_that_floods_while_it_changes_shards_costs_no_memory() {
    let (app, node) = start(&["--disconnect-timeout", "1s"]);
    let peak = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", node.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().to_string();
        line.trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before = peak();
    // Every second connection changes its shard, more or less.
    for _ in 0..8 {
        let mut web = Web::connect(node.address);
        let target = format!("GET /dotnetify?id={}", token(node.address));
        let mut flood = web.request(&target, "", b"");
        flood.extend(vec![b'x'; 32 << 20]);
        web.send(&flood);
        web.gone("a flood of no requests");
    }
    assert!(peak() < before + 8 * 1024, "{} kB, {before} before", peak());
    is_clean(&app, &node);
}

// ---- CORS -------------------------------------------------------------------------------------------------------------

#[test]
fn every_answer_of_every_stage_is_readable_to_the_page() {
    const ORIGIN: &str = "Origin: https://app.example.com\r\n";
    let secret = "0123456789abcdef0123456789abcdef";
    let (app, node) = start(&[
        "--allow-origin",
        "https://app.example.com",
        "--poll-timeout",
        "1s",
        "--disconnect-timeout",
        "2s",
        "--request-head-timeout",
        "1s",
        "--identity-signing-key",
        secret,
        "--identity-required",
        "connection",
    ]);
    let bearer = format!("{ORIGIN}Authorization: Bearer {}\r\n", jwt(secret, "ada", 60));
    let readable = |answer: &Answer, status: u16| {
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example.com"), "{answer:?}");
        assert_eq!(answer.header("access-control-allow-credentials"), Some("true"), "{answer:?}");
        assert_eq!(answer.header("vary"), Some("Origin"), "{answer:?}");
    };
    let mut web = Web::connect(node.address);
    let preflight = format!("{ORIGIN}Access-Control-Request-Method: DELETE\r\n");
    readable(&web.ask("OPTIONS /dotnetify?id=x", &preflight, b""), 204);
    readable(&web.ask("POST /dotnetify/negotiate?negotiateVersion=1", ORIGIN, b""), 401);
    let negotiate = |web: &mut Web| {
        let answer = web.ask("POST /dotnetify/negotiate?negotiateVersion=1", &bearer, b"");
        readable(&answer, 200);
        let body: Value = serde_json::from_str(answer.text()).unwrap();
        format!("/dotnetify?id={}", body["connectionToken"].as_str().unwrap())
    };

    let target = negotiate(&mut web);
    let (get, post, delete) = (format!("GET {target}"), format!("POST {target}"), format!("DELETE {target}"));
    let events = format!("{bearer}{EVENTS}");
    readable(&web.ask(&get, ORIGIN, b""), 401);
    readable(&web.ask(&get, &bearer, b""), 200);
    readable(&web.ask(&post, &bearer, HANDSHAKE), 200);
    readable(&web.ask(&get, &bearer, b""), 200);
    readable(&web.ask(&get, &bearer, b""), 200);
    readable(&web.ask(&get, &events, b""), 400);
    let mut older = Web::connect(node.address);
    older.send(&older.request(&get, &bearer, b""));
    older.is_quiet_for(Duration::from_millis(50), "a poll that waits");
    web.send(&web.request(&get, &bearer, b""));
    readable(&older.answer("the older poll"), 204);
    readable(&older.ask(&delete, &bearer, b""), 202);
    readable(&web.answer("the newer poll"), 204);
    for line in [&get, &post, &delete] {
        readable(&web.ask(line, &bearer, b""), 404);
    }
    readable(&web.ask("PUT /dotnetify", &bearer, b""), 405);
    readable(&web.ask("GET /dotnetify", &bearer, b""), 400);

    let target = negotiate(&mut web);
    let mut stream = Web::connect(node.address);
    readable(&stream.ask(&format!("GET {target}"), &events, b""), 200);
    readable(&web.ask(&format!("GET {target}"), &events, b""), 409);
    readable(&web.ask(&format!("DELETE {target}"), &bearer, b""), 400);
    let long = format!("{bearer}Content-Length: 10000000\r\n");
    web.send(format!("POST {target} HTTP/1.1\r\nHost: x\r\n{long}\r\n").as_bytes());
    readable(&web.answer("a body too large"), 413);
    let mut web = Web::connect(node.address);
    let target = negotiate(&mut web);
    assert_eq!(web.ask(&format!("GET {target}"), &bearer, b"").status, 200);
    web.send(format!("POST {target} HTTP/1.1\r\nHost: x\r\n{bearer}Content-Length: 9\r\n\r\nhalf").as_bytes());
    readable(&web.answer("a body that does not come"), 408);
    drop((web, older, stream));
    is_clean(&app, &node);
}

// ---- who it is --------------------------------------------------------------------------------------------------------

/// Connects a client over a connection that begins with `header`, and says how the app server sees it.
fn seen(app: &App, node: &Node, begin: &[u8], headers: &str) -> Value {
    let mut web = Web::connect(node.address);
    for byte in begin {
        web.send(&[*byte]);
    }
    web.send(format!("{}{headers}\r\n", upgrade_head(node.address, "/dotnetify")).as_bytes());
    seen_over(app, web)
}

/// ... whose upgrade has been sent.
fn seen_over(app: &App, mut web: Web) -> Value {
    assert_eq!(web.answer("the upgrade").status, 101);
    web.send(&[frame(FIN | ws::TEXT, HANDSHAKE), frame(FIN | ws::TEXT, REQUEST)].concat());
    assert_eq!(web.frame("the handshake's answer").text(), "{}\u{1e}");
    assert!(web.frame("the state").text().contains("FullName"));
    let context = app.only_context();
    drop(web);
    nobody_upstream(app);
    context["HttpConnection"].clone()
}

fn remote(connection: &Value) -> (&str, u64) {
    (connection["RemoteIpAddressString"].as_str().unwrap(), connection["RemotePort"].as_u64().unwrap())
}

/// HAProxy's proxy-protocol.txt section 2.2: PROXY, TCP over IPv4 or IPv6.
fn proxy_v2(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    let (family, addresses) = match (source, destination) {
        (SocketAddr::V4(source), SocketAddr::V4(destination)) => {
            (0x11, [source.ip().octets(), destination.ip().octets()].concat())
        }
        (SocketAddr::V6(source), SocketAddr::V6(destination)) => {
            (0x21, [source.ip().octets(), destination.ip().octets()].concat())
        }
        _ => panic!("one family"),
    };
    // An extension that nobody knows, behind the addresses.
    let rest =
        [&addresses[..], &source.port().to_be_bytes(), &destination.port().to_be_bytes(), b"\xe0\x00\x02hi"].concat();
    header.push(family);
    header.extend((rest.len() as u16).to_be_bytes());
    header.extend(rest);
    header
}

#[test]
fn proxy_headers_say_whose_connection_it_is() {
    let app = App::start();
    let flags = ["--shards", "2", "--proxy-protocol", "true", "--request-head-timeout", "600ms"];
    let node = Node::start(&app, &[&flags[..], &["--trusted-proxy", "127.0.0.1"]].concat());
    let line = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n";
    let context = seen(&app, &node, line, "");
    assert_eq!(remote(&context), ("192.0.2.1", 56324), "{context}");
    assert_eq!((&context["LocalIpAddressString"], &context["LocalPort"]), (&"198.51.100.7".into(), &443.into()));
    let context = seen(&app, &node, b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n", "");
    assert_eq!(remote(&context), ("2001:db8::1", 1), "{context}");
    let addresses = ["203.0.113.9:4000", "198.51.100.7:443"].map(|text| text.parse().unwrap());
    let context = seen(&app, &node, &proxy_v2(addresses[0], addresses[1]), "");
    assert_eq!(remote(&context), ("203.0.113.9", 4000), "{context}");
    let addresses = ["[2001:db8::9]:4000", "[2001:db8::7]:443"].map(|text| text.parse().unwrap());
    let context = seen(&app, &node, &proxy_v2(addresses[0], addresses[1]), "");
    assert_eq!(remote(&context), ("2001:db8::9", 4000), "{context}");
    // What a client behind the proxy writes into a header is its own word.
    let context = seen(&app, &node, line, "X-Forwarded-For: 8.8.8.8\r\n");
    assert_eq!(remote(&context).0, "192.0.2.1", "{context}");
    // Nobody's: health checks of the proxy itself.
    for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"] {
        assert_eq!(remote(&seen(&app, &node, header, "")).0, "127.0.0.1");
    }
    // Every transport, and over a connection that changes shards.
    let proxied = |line: &[u8]| {
        let mut web = Web::connect(node.address);
        web.send(line);
        web
    };
    for n in 0..6 {
        let mut events = Events::open(proxied(line), proxied(line));
        events.post(HANDSHAKE);
        events.post(REQUEST);
        events.stream.event_response("the state", |data| data.get("FullName").is_some());
        assert_eq!(remote(&app.only_context()["HttpConnection"]).0, "192.0.2.1", "{n}");
        drop(events);
        nobody_upstream(&app);
    }
    // No header, a wrong one, half of one: no answer at all.
    let wrong: [&[u8]; 5] = [
        b"GET /dotnetify HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PROXY TCP4 nonsense\r\n",
        b"PROXY TCP4 192.0.2.1",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\x00\x0c",
        b"",
    ];
    for bytes in wrong {
        let mut web = Web::connect(node.address);
        web.send(bytes);
        let begun = Instant::now();
        let silent = web.try_frame("the end").is_none();
        assert!(silent && begun.elapsed() < Duration::from_secs(5), "{}", bytes.escape_ascii());
    }
    node.counts_refusals(&["proxy_protocol"], 3);
    is_clean(&app, &node);

    // The word of others is not taken.
    let strict = Node::start(&app, &[&flags[..], &["--trusted-proxy", "10.0.0.0/8"]].concat());
    let mut web = Web::connect(strict.address);
    web.send(line);
    web.gone("an untrusted peer");
    is_clean(&app, &strict);
}

#[test]
fn forwarded_headers_count_where_they_come_from_a_trusted_proxy() {
    let app = App::start();
    let trusting = Node::start(&app, &["--shards", "2", "--trusted-proxy", "127.0.0.0/8"]);
    let cases = [
        ("", "127.0.0.1", None),
        ("X-Forwarded-For: 203.0.113.7\r\n", "203.0.113.7", Some(0)),
        // Read from the right, as far as the speakers are trusted.
        ("X-Forwarded-For: 8.8.8.8, 203.0.113.7:1234, 127.0.0.9\r\n", "203.0.113.7", Some(1234)),
        ("X-Forwarded-For: 8.8.8.8\r\nX-Forwarded-For: 203.0.113.7\r\n", "203.0.113.7", Some(0)),
        ("X-Forwarded-For: nonsense\r\n", "127.0.0.1", None),
        // The other header is a client's own word.
        ("Forwarded: for=203.0.113.8\r\nX-Forwarded-For: 8.8.8.8\r\n", "8.8.8.8", Some(0)),
    ];
    let other = Node::start(&app, &["--trusted-proxy", "127.0.0.0/8", "--forwarded-header", "Forwarded"]);
    for (headers, ip, port) in [
        ("Forwarded: for=\"[2001:db8::1]:4711\";proto=https\r\n", "2001:db8::1", Some(4711)),
        ("Forwarded: for=203.0.113.8\r\nX-Forwarded-For: 8.8.8.8\r\n", "203.0.113.8", Some(0)),
        ("X-Forwarded-For: 8.8.8.8\r\n", "127.0.0.1", None),
    ] {
        let context = seen(&app, &other, b"", headers);
        assert_eq!(remote(&context).0, ip, "{headers}");
        assert!(port.is_none_or(|port| remote(&context).1 == port), "{headers}: {context}");
    }
    for (headers, ip, port) in cases {
        let context = seen(&app, &trusting, b"", headers);
        assert_eq!(remote(&context).0, ip, "{headers}");
        assert!(port.is_none_or(|port| remote(&context).1 == port), "{headers}: {context}");
    }
    let mut polling = Polling::open(Web::connect(trusting.address), Web::connect(trusting.address));
    drop(std::mem::replace(&mut polling.polls, Web::connect(trusting.address)));
    drop(polling);
    let doubtful = Node::start(&app, &["--shards", "2", "--trusted-proxy", "10.0.0.0/8"]);
    for (headers, ..) in cases {
        assert_eq!(remote(&seen(&app, &doubtful, b"", headers)).0, "127.0.0.1", "{headers}");
    }
}

// ---- identity ---------------------------------------------------------------------------------------------------------

const SECRET: &str = "a secret of thirty-two bytes....";

fn unix_seconds() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64
}

/// A token of `user` that expires in so many seconds.
fn jwt(secret: &str, user: &str, seconds: i64) -> String {
    let claims = serde_json::json!({"sub": user, "exp": unix_seconds() + seconds});
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
}

#[test]
fn who_shows_no_good_token_is_refused_and_disturbs_nobody() {
    let (app, node) = start(&["--identity-signing-key", SECRET, "--identity-required", "connection"]);
    let good = jwt(SECRET, "ada", 60);
    let bearer = format!("Authorization: Bearer {good}\r\n");
    let mut web = Web::connect(node.address);
    let mut negotiate = |query: &str| {
        let answer = web.ask(&format!("POST /dotnetify/negotiate?negotiateVersion=1{query}"), &bearer, b"");
        let body: Value = serde_json::from_str(answer.text()).unwrap();
        format!("/dotnetify?id={}", body["connectionToken"].as_str().unwrap())
    };
    // A poll that waits, an event stream, a WebSocket that could be resumed.
    let polling = negotiate("");
    let mut polls = Web::connect(node.address);
    assert_eq!(polls.ask(&format!("GET {polling}"), &bearer, b"").status, 200);
    assert_eq!(polls.ask(&format!("POST {polling}"), &bearer, &[HANDSHAKE, REQUEST].concat()).status, 200);
    while !polls.ask(&format!("GET {polling}"), &bearer, b"").text().contains("FullName") {}
    polls.send(&polls.request(&format!("GET {polling}"), &bearer, b""));
    let events = negotiate("");
    let mut stream = Web::connect(node.address);
    let answer = stream.ask(&format!("GET {events}&access_token={good}"), EVENTS, b"");
    assert_eq!(answer.status, 200);
    assert_eq!(stream.bytes(3, "the prelude"), b":\r\n");
    let sockets = negotiate("&useStatefulReconnect=true");
    let mut socket = Web::connect(node.address);
    assert_eq!(upgrade(&mut socket, &format!("{sockets}&access_token={good}")).status, 101);
    socket.send(&text("{\"protocol\":\"json\",\"version\":2}\u{1e}"));
    assert_eq!(socket.frame("the handshake's answer").text(), "{}\u{1e}");

    let expired = jwt(SECRET, "ada", -3600);
    let foreign = jwt("somebody else's secret, as long.", "ada", 60);
    let mut other = Web::connect(node.address);
    for (headers, challenge) in [
        (String::new(), "Bearer"),
        (format!("Authorization: Bearer {expired}\r\n"), "Bearer error=\"invalid_token\""),
        (format!("Authorization: Bearer {foreign}\r\n"), "Bearer error=\"invalid_token\""),
    ] {
        let mut refused = |line: &str, more: &str| {
            let answer = other.ask(line, &format!("{headers}{more}"), b"");
            assert_eq!(answer.status, 401, "{line}: {answer:?}");
            assert_eq!(answer.header("www-authenticate"), Some(challenge), "{line}: {answer:?}");
        };
        refused("POST /dotnetify/negotiate?negotiateVersion=1", "");
        for target in [&polling, &events, &sockets] {
            refused(&format!("GET {target}"), "");
            refused(&format!("GET {target}"), EVENTS);
            refused(&format!("POST {target}"), "");
            refused(&format!("DELETE {target}"), "");
        }
        // Who may not ask at all does not learn what there is.
        refused("GET /dotnetify?id=nobody", "");
        for target in [sockets.as_str(), "/dotnetify"] {
            let mut web = Web::connect(node.address);
            web.send(format!("{}{headers}\r\n", upgrade_head(node.address, target)).as_bytes());
            assert_eq!(web.answer("an upgrade").status, 401);
        }
    }
    // All three are as they were.
    polls.is_quiet_for(Duration::from_millis(20), "the poll still waits");
    stream.is_quiet_for(Duration::from_millis(20), "the event stream is still there");
    other.ask(&format!("POST {polling}"), &bearer, &update("Ada"));
    assert!(polls.answer("the poll").text().contains("Ada World"));
    other.ask(&format!("POST {events}"), &bearer, HANDSHAKE);
    assert_eq!(stream.event("the handshake's answer"), "{}\u{1e}");
    socket.send(&frame(FIN | ws::TEXT, REQUEST));
    assert!(socket.frame("the state").text().contains("FullName"));
    assert_eq!(other.ask(&format!("DELETE {polling}"), &bearer, b"").status, 202);
    socket.send(&frame(FIN | ws::CLOSE, b""));
    drop((web, polls, stream, socket, other));
    is_clean(&app, &node);
}

#[test]
fn an_expired_token_ends_its_client_over_every_transport() {
    let (app, node) = start(&[
        "--identity-signing-key",
        SECRET,
        "--identity-clock-skew",
        "0s",
        "--disconnect-timeout",
        "1s",
        "--close-on-authentication-expiration",
        "true",
    ]);
    let begun = Instant::now();
    let bearer = format!("Authorization: Bearer {}\r\n", jwt(SECRET, "ada", 2));
    let mut web = Web::connect(node.address);
    let mut polls = Web::connect(node.address);
    let target = format!("/dotnetify?id={}", token_on(&mut web, ""));
    polls.ask(&format!("GET {target}"), &bearer, b"");
    polls.ask(&format!("POST {target}"), &bearer, HANDSHAKE);
    assert_eq!(polls.ask(&format!("GET {target}"), &bearer, b"").text(), "{}\u{1e}");
    polls.send(&polls.request(&format!("GET {target}"), &bearer, b""));
    let mut stream = Web::connect(node.address);
    let target = format!("/dotnetify?id={}", token_on(&mut web, ""));
    assert_eq!(stream.ask(&format!("GET {target}"), &format!("{bearer}{EVENTS}"), b"").status, 200);
    web.ask(&format!("POST {target}"), &bearer, HANDSHAKE);
    stream.until(b"{}\x1e\r\n\r\n", "the handshake's answer");
    let close = "{\"type\":7,\"allowReconnect\":true}\u{1e}";
    assert_eq!(polls.answer("the poll").text(), close);
    assert_eq!(stream.event("the Close"), close);
    stream.ended("the stream");
    let taken = begun.elapsed();
    assert!(taken > Duration::from_secs(1) && taken < Duration::from_secs(6), "2 s is set, it took {taken:?}");
    ends(&node, "token_expired", 2);
    drop((web, polls, stream));
    is_clean(&app, &node);
}

// ---- TLS --------------------------------------------------------------------------------------------------------------

/// A node with an https listener beside the plain one, and whom to trust.
struct Secured {
    app: App,
    node: Node,
    address: SocketAddr,
    roots: rustls::RootCertStore,
    _folder: Folder,
}

impl Secured {
    fn start(flags: &[&str]) -> Secured {
        let (authority, folder) = (Authority::new("the tests' authority"), Folder::new());
        let (certificate, key) = folder.pair("node", &authority.issue(&["localhost", "127.0.0.1"]));
        let mut roots = rustls::RootCertStore::empty();
        let pem = rustls::pki_types::pem::PemObject::from_pem_slice(authority.pem().as_bytes()).unwrap();
        roots.add(pem).unwrap();
        let files = [certificate.to_str().unwrap(), key.to_str().unwrap()];
        let tls = ["--listen", "https://127.0.0.1:0", "--tls-certificate-file", files[0], "--tls-key-file", files[1]];
        let (app, mut node) = start(&[&tls[..], flags].concat());
        let address = node.process.printed("listening on https://").parse().unwrap();
        Secured { app, node, address, roots, _folder: folder }
    }

    fn connection(&self, version: &'static rustls::SupportedProtocolVersion) -> rustls::ClientConnection {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        rustls::ClientConnection::new(Arc::new(config), name).unwrap()
    }

    fn connect(&self, version: &'static rustls::SupportedProtocolVersion) -> Web {
        self.connect_in(version, usize::MAX)
    }

    /// What is sent goes out in pieces of so many bytes.
    fn connect_in(&self, version: &'static rustls::SupportedProtocolVersion, piece: usize) -> Web {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        let stream = rustls::StreamOwned::new(self.connection(version), Pieces(stream, piece));
        Web::over(Box::new(stream), &self.address.to_string())
    }
}

/// A socket that is written to in pieces.
struct Pieces(TcpStream, usize);

impl Read for Pieces {
    fn read(&mut self, room: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(room)
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(&bytes[..bytes.len().min(self.1)])
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

impl Stream for Pieces {
    fn set_patience(&self, patience: Duration) {
        self.0.set_patience(patience);
    }
    fn finish(&self) {
        self.0.finish();
    }
}

const VERSIONS: [&rustls::SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

#[test]
fn every_transport_over_tls_of_both_versions() {
    let secured = Secured::start(&[]);
    let node = &secured.node;
    let state = |data: &Value| data.get("FullName").is_some();
    for (round, version) in VERSIONS.into_iter().cycle().take(6).enumerate() {
        let connect = || secured.connect(version);
        let mut events = Events::open(connect(), connect());
        events.post(HANDSHAKE);
        assert_eq!(events.stream.event("the handshake's answer"), "{}\u{1e}");
        events.post(REQUEST);
        events.stream.event_response("the state", state);
        let mut polling = Polling::open(connect(), connect());
        polling.post(HANDSHAKE);
        polling.post(REQUEST);
        assert_eq!(polling.poll().text().split('\u{1e}').next(), Some("{}"));
        polling.post(&update("Polled"));
        polling.response("the name", full_name("Polled"));
        says(&polling.posts.ask("GET /dotnetify?id=x", "", b""), 404, UNKNOWN);
        assert_eq!(polling.posts.ask(&format!("DELETE {}", polling.target), "", b"").status, 202);

        // A WebSocket whose records are cut into single bytes, or a few.
        let mut web = secured.connect_in(version, [1, 5, 17][round % 3]);
        let target = format!("/dotnetify?id={}", token(node.address));
        assert_eq!(upgrade(&mut web, &target).status, 101);
        web.send(&[frame(FIN | ws::TEXT, HANDSHAKE), frame(FIN | ws::TEXT, REQUEST)].concat());
        assert_eq!(web.frame("the handshake's answer").text(), "{}\u{1e}");
        assert!(web.frame("the state").text().contains("FullName"));
        // Messages of more than one record down, several in a row, and a close that is answered in order.
        for n in 0..4 {
            let name = format!("{n}{}", "l".repeat(12_000));
            web.send(&frame(FIN | ws::TEXT, &update(&name)));
            let heard = web.frame("the long name");
            assert!(heard.payload.len() > 24_000 && heard.text().contains(&format!("{name} World")));
        }
        web.send(&frame(FIN | ws::CLOSE, &ws::close_payload(1000, "")));
        assert_eq!(web.frame("the Close's answer").code(), Some(1000));
        web.ended("close_notify, then the end");
    }
    assert!(node.metric("signalring_handed_over") > 0.0);
    assert_eq!(node.metric("signalring_tls_errors"), 0.0);
    is_clean(&secured.app, node);
}

#[test]
fn much_at_once_over_tls() {
    let secured = Secured::start(&[]);
    for version in VERSIONS {
        let mut web = secured.connect(version);
        assert_eq!(upgrade(&mut web, "/dotnetify").status, 101);
        web.send(&[frame(FIN | ws::TEXT, HANDSHAKE), frame(FIN | ws::TEXT, REQUEST)].concat());
        let name = |n: usize| format!("{n}:{}", "m".repeat(2000));
        // Less than a client's queue holds: it reads only when it has sent everything.
        let all: Vec<u8> = (0..40).flat_map(|n| frame(FIN | ws::TEXT, &update(&name(n)))).collect();
        web.send(&all);
        let mut heard = 0;
        while heard < 40 {
            let text = web.frame("a name").text();
            for data in records(&text).iter().filter_map(response_data) {
                if data["FullName"] == format!("{} World", name(heard)) {
                    heard += 1;
                }
            }
        }
        drop(web);
    }
    is_clean(&secured.app, &secured.node);
}

#[test]
fn a_peer_that_shuts_its_side_of_tls_still_gets_its_answer() {
    let secured = Secured::start(&[]);
    for version in VERSIONS {
        // With close_notify, then without.
        for says_goodbye in [true, false] {
            let mut stream = TcpStream::connect(secured.address).unwrap();
            let mut tls = secured.connection(version);
            while tls.is_handshaking() {
                tls.complete_io(&mut stream).unwrap();
            }
            let head = "POST /dotnetify/negotiate?negotiateVersion=1 HTTP/1.1\r\nHost: x\r\n\r\n";
            tls.writer().write_all(head.as_bytes()).unwrap();
            if says_goodbye {
                tls.send_close_notify();
            }
            while tls.wants_write() {
                tls.write_tls(&mut stream).unwrap();
            }
            stream.shutdown(Shutdown::Write).unwrap();
            let mut web = Web::over(Box::new(rustls::StreamOwned::new(tls, stream)), "x");
            assert_eq!(web.answer("negotiate").status, 200, "{version:?} {says_goodbye}");
            web.ended("close_notify, then the end");
        }
    }
    is_clean(&secured.app, &secured.node);
}

#[test]
fn what_is_no_tls_is_told_so_and_closed() {
    let secured = Secured::start(&["--request-head-timeout", "700ms"]);
    let address = secured.address;
    let hello = {
        let mut bytes = Vec::new();
        secured.connection(&rustls::version::TLS13).write_tls(&mut bytes).unwrap();
        bytes
    };
    let mut broken = hello.clone();
    broken[5] ^= 0xff;
    for (name, bytes) in [
        ("plain HTTP", b"GET /dotnetify HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("a long request", [&b"POST / HTTP/1.1\r\n"[..], &[b'x'; 30_000]].concat()),
        ("zeros", vec![0; 500]),
        ("a broken hello", broken),
        ("another record behind the hello", [&hello[..], b"\x17\x03\x03\x00\x20", &[7; 32]].concat()),
    ] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(&bytes);
        let mut heard = Vec::new();
        let begun = Instant::now();
        let _ = stream.read_to_end(&mut heard);
        assert!(begun.elapsed() < Duration::from_secs(5), "{name}");
        // RFC 8446 section 6: an alert is a record of type 21, level fatal; behind the server's hello it is encrypted, which makes 19
        // bytes of its 2.
        let is_alert = |at: &[u8]| at[0] == 21 && at[3..6] == [0, 2, 2];
        let is_last = |bytes: &[u8]| bytes.len() >= 24 && bytes[bytes.len() - 24..][..5] == *b"\x17\x03\x03\0\x13";
        assert!(heard.windows(7).any(is_alert) || is_last(&heard), "{name}: {}", heard.escape_ascii());
    }
    wait_for("five errors", PATIENCE, || (secured.node.metric("signalring_tls_errors") == 5.0).then_some(()));
    // Handshakes that stop.
    for bytes in [&b""[..], &hello[..40], &hello[..]] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let begun = Instant::now();
        stream.write_all(bytes).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
        let taken = begun.elapsed();
        assert!(taken > Duration::from_millis(500) && taken < Duration::from_secs(5), "700 ms are set: {taken:?}");
    }
    // A handshake, and then half a request.
    let mut web = secured.connect(&rustls::version::TLS13);
    web.send(b"GET /dot");
    assert_eq!(web.answer("half a request").status, 408);
    web.ended("after 408");
    // One that is cut in the middle, and one whose client goes behind an answer.
    for bytes in [&hello[..100], &hello[..]] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(bytes).unwrap();
    }
    drop(web);
    is_clean(&secured.app, &secured.node);
}

#[test]
fn one_too_many_over_tls_is_told_so() {
    let secured = Secured::start(&["--shards", "1", "--max-clients", "2"]);
    let mut held: Vec<Web> = (0..2).map(|_| secured.connect(&rustls::version::TLS13)).collect();
    for web in &mut held {
        assert_eq!(upgrade(web, "/dotnetify").status, 101);
    }
    for version in VERSIONS {
        let mut web = secured.connect(version);
        let answer = web.ask("POST /dotnetify/negotiate", "", b"");
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{answer:?}");
        web.ended("after 503");
    }
    secured.node.counts_refusals(&["overloaded"], 2);
    held.pop();
    wait_for("a place", PATIENCE, || {
        (secured.node.metric("signalring_clients") + secured.node.metric("signalring_http_connections") == 1.0)
            .then_some(())
    });
    held.push(secured.connect(&rustls::version::TLS13));
    assert_eq!(upgrade(&mut held[1], "/dotnetify").status, 101);
    drop(held);
    is_clean(&secured.app, &secured.node);
}

#[test]
fn a_proxy_header_stands_before_tls() {
    let secured = Secured::start(&["--proxy-protocol", "true", "--trusted-proxy", "127.0.0.1"]);
    for (n, version) in VERSIONS.into_iter().cycle().take(4).enumerate() {
        let mut stream = TcpStream::connect(secured.address).unwrap();
        stream.set_nodelay(true).unwrap();
        let header = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n";
        if n < 2 {
            header.iter().for_each(|byte| stream.write_all(&[*byte]).unwrap());
        } else {
            // The header and the hello in one packet.
            let mut tls = secured.connection(version);
            let mut bytes = header.to_vec();
            tls.write_tls(&mut bytes).unwrap();
            stream.write_all(&bytes).unwrap();
            let mut web = Web::over(Box::new(rustls::StreamOwned::new(tls, stream)), "x");
            web.send(format!("{}\r\n", upgrade_head(secured.address, "/dotnetify")).as_bytes());
            assert_eq!(remote(&seen_over(&secured.app, web)), ("192.0.2.1", 56324));
            continue;
        }
        let mut web = Web::over(Box::new(rustls::StreamOwned::new(secured.connection(version), stream)), "x");
        web.send(format!("{}\r\n", upgrade_head(secured.address, "/dotnetify")).as_bytes());
        assert_eq!(remote(&seen_over(&secured.app, web)), ("192.0.2.1", 56324));
    }
    // The header inside TLS is no header.
    let mut web = secured.connect(&rustls::version::TLS13);
    web.send(b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n");
    web.gone("no header");
    is_clean(&secured.app, &secured.node);
}

// ---- stateful reconnect -----------------------------------------------------------------------------------------------

/// A client that negotiated a stateful reconnect.
struct Stateful {
    web: Web,
    target: String,
}

impl Stateful {
    fn connect(address: SocketAddr) -> Stateful {
        let mut stateful = Stateful::open(address);
        stateful.web.send(&record("{\"protocol\":\"json\",\"version\":2}"));
        assert_eq!(stateful.web.frame("the handshake's answer").text(), "{}\u{1e}");
        stateful
    }

    /// Before the handshake.
    fn open(address: SocketAddr) -> Stateful {
        let mut web = Web::connect(address);
        let line = "POST /dotnetify/negotiate?negotiateVersion=1&useStatefulReconnect=true";
        let answer = web.ask(line, "", b"");
        let body: Value = serde_json::from_str(answer.text()).unwrap();
        assert_eq!(body["useStatefulReconnect"], true, "{body}");
        let target = format!("/dotnetify?id={}", body["connectionToken"].as_str().unwrap());
        assert_eq!(upgrade(&mut web, &target).status, 101);
        Stateful { web, target }
    }

    fn send(&mut self, messages: &[u8]) {
        self.web.send(&frame(FIN | ws::TEXT, messages));
    }

    fn request(&mut self) {
        self.send(REQUEST);
        assert!(self.web.frame("the state").text().contains("FullName"));
    }

    /// The next `Response_VM` says this name; pings and Acks are skipped.
    fn hears(&mut self, name: &str) {
        loop {
            let text = self.web.frame(name).text();
            let all = records(&text);
            let data: Vec<Value> = all.iter().filter_map(response_data).collect();
            match data.as_slice() {
                [] => {}
                [data] => return assert_eq!(data["FullName"], format!("{name} World")),
                _ => panic!("each counted message has its own frame: {text}"),
            }
        }
    }

    /// Loses the connection, and waits until the node has noticed. Returns a new one, and how many were lost before.
    fn cut(&mut self, node: &Node) -> (Web, f64) {
        let lost = || node.metric_where("signalring_resumes", "event=\"lost\"");
        let before = lost();
        let cut = std::mem::replace(&mut self.web, Web::connect(node.address));
        cut.stream.finish();
        drop(cut);
        wait_for("the loss to be noticed", PATIENCE, || (lost() == before + 1.0).then_some(()));
        (Web::connect(node.address), before)
    }

    /// Comes back; the node's first word is where it goes on.
    fn resume(&mut self, node: &Node, sequence: u64) {
        self.web = Web::connect(node.address);
        assert_eq!(upgrade(&mut self.web, &self.target).status, 101);
        let text = self.web.frame("the node's Sequence").text();
        assert_eq!(text, format!("{{\"type\":9,\"sequenceId\":{sequence}}}\u{1e}"));
    }
}

#[test]
fn a_lost_socket_costs_no_message_in_either_direction() {
    let (app, node) = start(&["--keep-alive-interval", "30s", "--client-timeout-interval", "60s"]);
    let mut client = Stateful::connect(node.address);
    // Ours: 1. The node's: 1, acknowledged within about a second.
    client.request();
    let begun = Instant::now();
    assert_eq!(client.web.frame("an Ack").text(), "{\"type\":8,\"sequenceId\":1}\u{1e}");
    let taken = begun.elapsed();
    assert!(taken > Duration::from_millis(700) && taken < Duration::from_millis(2500), "{taken:?}");
    client.send(b"{\"type\":8,\"sequenceId\":1}\x1e");
    // Pings count for nothing.
    client.send(&[b"{\"type\":6}\x1e", &update("Two")[..], &update("Three")].concat());
    client.hears("Two");
    client.hears("Three");
    client.cut(&node);
    assert_eq!(app.figure("bindings"), 1, "the app server notices nothing");

    client.resume(&node, 2);
    client.hears("Two");
    client.hears("Three");
    // Nothing that comes before our Sequence counts, and nothing twice.
    client.send(&update("Dropped"));
    client
        .send(&[b"{\"type\":9,\"sequenceId\":2}\x1e", &update("Two")[..], &update("Three"), &update("Four")].concat());
    client.hears("Four");
    let repeated = || node.metric_where("signalring_client_messages", "kind=\"repeated\"");
    wait_for("three to be dropped", PATIENCE, || (repeated() == 3.0).then_some(()));

    // A second socket replaces the first without a word on it.
    let mut first = std::mem::replace(&mut client.web, Web::connect(node.address));
    client.resume(&node, 2);
    for name in ["Two", "Three", "Four"] {
        client.hears(name);
    }
    assert_eq!(first.try_frame("the end of the first socket").map(|frame| frame.opcode()), None);
    client.send(b"{\"type\":9,\"sequenceId\":5}\x1e{\"type\":8,\"sequenceId\":4}\x1e");
    client.send(&update("Five"));
    client.hears("Five");
    client.cut(&node);
    // Messages that arrive meanwhile: none does, but half a frame was under way.
    client.resume(&node, 5);
    client.hears("Five");
    let half = frame(FIN | ws::TEXT, &[b"{\"type\":9,\"sequenceId\":6}\x1e", &update("Six")[..]].concat());
    client.web.send(&half[..half.len() - 10]);
    client.cut(&node);
    client.resume(&node, 5);
    client.hears("Five");
    client.send(&[b"{\"type\":9,\"sequenceId\":6}\x1e", &update("Six")[..]].concat());
    client.hears("Six");

    // A Close frame ends it for good.
    client.web.send(&frame(FIN | ws::CLOSE, &ws::close_payload(1000, "")));
    assert_eq!(client.web.frame("the Close's answer").code(), Some(1000));
    client.web.ended("after the Close");
    says(&upgrade(&mut Web::connect(node.address), &client.target), 404, UNKNOWN);
    assert_eq!(node.metric_where("signalring_resumes", "event=\"resumed\""), 4.0);
    drop((client, first));
    is_clean(&app, &node);
}

#[test]
fn what_is_said_while_the_socket_is_lost_is_sent_afterwards() {
    let (app, node) = start(&[]);
    let mut client = Stateful::connect(node.address);
    client.send(b"{\"type\":1,\"target\":\"Request_VM\",\"arguments\":[\"HelloWorldVM\",{\"$vmArg\":{\"TickInterval\":50}}]}\x1e");
    assert!(client.web.frame("the state").text().contains("FullName"));
    client.cut(&node);
    let delivered = node.metric("signalring_deliveries");
    wait_for("deliveries to nobody", PATIENCE, || {
        (node.metric("signalring_deliveries") > delivered + 5.0).then_some(())
    });
    client.resume(&node, 1);
    let mut heard = 0;
    while heard < 8 {
        let text = client.web.frame("what was missed").text();
        heard += records(&text).iter().filter_map(response_data).count();
    }
    // Acknowledged, it is not sent again.
    client.send(format!("{{\"type\":9,\"sequenceId\":2}}\u{1e}{{\"type\":8,\"sequenceId\":{heard}}}\u{1e}").as_bytes());
    wait_for("the Ack to be read", PATIENCE, || {
        (node.metric_where("signalring_client_messages", "kind") >= 1.0).then_some(())
    });
    std::thread::sleep(Duration::from_millis(50));
    client.cut(&node);
    client.resume(&node, heard as u64 + 1);
    client.send(b"{\"type\":7}\x1e");
    while client.web.frame("the end").opcode() != ws::CLOSE {}
    drop(client);
    is_clean(&app, &node);
}

#[test]
fn who_cannot_be_made_whole_cannot_resume() {
    let flags = ["--disconnect-timeout", "1s", "--stateful-reconnect-buffer-size", "1KiB"];
    let (app, node) = start(&flags);
    let refused = |client: &Stateful, status: u16, text: &str| {
        says(&upgrade(&mut Web::connect(node.address), &client.target), status, text);
    };
    // Too late.
    let mut late = Stateful::connect(node.address);
    late.cut(&node);
    ends(&node, "inactive", 1);
    refused(&late, 404, UNKNOWN);

    // Over the bound it is served on, and cannot resume until it has acknowledged what was forgotten.
    let mut over = Stateful::connect(node.address);
    over.request();
    for n in 0..6 {
        let name = format!("{n}{}", "o".repeat(300));
        over.send(&update(&name));
        over.hears(&name);
    }
    refused(&over, 409, "");
    over.send(b"{\"type\":8,\"sequenceId\":7}\x1e");
    over.send(&update("Whole"));
    over.hears("Whole");
    over.cut(&node);
    over.resume(&node, 8);
    over.hears("Whole");
    over.send(b"{\"type\":9,\"sequenceId\":9}\x1e");
    over.send(&update(&"o".repeat(1200)));
    over.hears(&"o".repeat(1200));
    drop(std::mem::replace(&mut over.web, Web::connect(node.address)));
    ends(&node, "peer_gone", 1);
    refused(&over, 404, UNKNOWN);

    // Version 1 has no words for it; nor has who did not finish its handshake.
    let mut old = Stateful::open(node.address);
    old.web.send(&record("{\"protocol\":\"json\",\"version\":1}"));
    assert_eq!(old.web.frame("the handshake's answer").text(), "{}\u{1e}");
    for n in 0..8 {
        old.send(if n == 0 {
            REQUEST
        } else {
            b"{\"type\":1,\"target\":\"Update_VM\",\"arguments\":[\"HelloWorldVM\",{\"FirstName\":\"Old\"}]}\x1e"
        });
    }
    while !old.web.frame("the name").text().contains("Old World") {}
    refused(&old, 409, "");
    let frames = node.metric("signalring_frames");
    assert_eq!(frames, 0.0, "nothing is kept for a client that cannot resume");
    drop(std::mem::replace(&mut old.web, Web::connect(node.address)));
    ends(&node, "peer_gone", 2);
    refused(&old, 404, UNKNOWN);
    let mut half = Stateful::open(node.address);
    refused(&half, 409, "");
    drop(std::mem::replace(&mut half.web, Web::connect(node.address)));
    ends(&node, "peer_gone", 3);
    refused(&half, 404, UNKNOWN);

    // A Sequence that leaves messages out.
    let mut gap = Stateful::connect(node.address);
    gap.request();
    gap.cut(&node);
    gap.resume(&node, 1);
    gap.send(b"{\"type\":9,\"sequenceId\":5}\x1e");
    gap.web.frame("the state again");
    let close = gap.web.frame("the Close").text();
    assert!(close.contains("\"type\":7") && close.contains("Connection closed with an error."), "{close}");
    assert_eq!(gap.web.frame("the Close frame").code(), Some(1000));
    refused(&gap, 404, UNKNOWN);
    ends(&node, "sequence_gap", 1);

    // Nobody may take another transport to it.
    let mut web = Web::connect(node.address);
    let mut other = Stateful::connect(node.address);
    says(&web.ask(&format!("GET {}", other.target), "", b""), 400, CHANGED);
    says(&web.ask(&format!("GET {}", other.target), EVENTS, b""), 400, CHANGED);
    says(
        &web.ask(&format!("POST {}", other.target), "", b""),
        405,
        "POST requests are not allowed for WebSocket connections.",
    );
    assert_eq!(web.ask(&format!("DELETE {}", other.target), "", b"").status, 400);
    other.cut(&node);
    says(&web.ask(&format!("GET {}", other.target), "", b""), 400, CHANGED);
    drop((late, over, old, half, gap, other, web));
    is_clean(&app, &node);

    // Switched off it is not offered.
    let plain = Node::start(&app, &["--allow-stateful-reconnects", "false"]);
    let answer = Web::connect(plain.address).ask(
        "POST /dotnetify/negotiate?negotiateVersion=1&useStatefulReconnect=true",
        "",
        b"",
    );
    assert!(!answer.text().contains("useStatefulReconnect"), "{answer:?}");
}

#[test]
fn a_stateful_reconnect_in_message_pack() {
    let (app, node) = start(&[]);
    let mut client = Stateful::open(node.address);
    client.web.send(&record("{\"protocol\":\"messagepack\",\"version\":2}"));
    let answer = client.web.frame("the handshake's answer");
    assert_eq!((answer.opcode(), answer.payload.as_slice()), (ws::BINARY, &b"{}\x1e"[..]));
    let request = message_pack_call("Request_VM", NO_CLOCK, None);
    client.web.send(&frame(FIN | ws::BINARY, &request));
    let state = client.web.frame("the state");
    assert_eq!(client.web.frame("an Ack").payload, b"\x03\x92\x08\x01");
    client.cut(&node);
    client.web = Web::connect(node.address);
    assert_eq!(upgrade(&mut client.web, &client.target).status, 101);
    assert_eq!(client.web.frame("the node's Sequence").payload, b"\x03\x92\x09\x01");
    assert_eq!(client.web.frame("the state again"), state);
    client.web.send(&frame(FIN | ws::BINARY, b"\x03\x92\x09\x02\x03\x92\x08\x01"));
    client.web.send(&frame(FIN | ws::BINARY, b"\x04\x93\x07\xc0\xc2"));
    assert_eq!(client.web.frame("the end").code(), Some(1000));
    drop(client);
    is_clean(&app, &node);
}

// ---- listeners --------------------------------------------------------------------------------------------------------

#[test]
fn several_addresses_of_every_kind() {
    let folder = Folder::new();
    let path = folder.path().join("node.sock");
    let place = format!("unix:{}", path.display());
    // A node that was killed has left its file behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let app = App::start();
    let url = app.url();
    let flags = ["--listen", &place, "--listen", "[::1]:0", "--trusted-proxy", "unix", "--shards", "2"];
    let mut node = Node::start(&app, &flags);
    let six: SocketAddr = node
        .process
        .printed("listening on http://[")
        .split_once("]:")
        .map(|(_, port)| format!("[::1]:{port}").parse().unwrap())
        .unwrap();
    assert!(node.process.output().contains(&format!("listening on {place}")), "{}", node.process.output());

    let unix = || Web::over(Box::new(UnixStream::connect(&path).unwrap()), "localhost");
    for _ in 0..6 {
        let mut events = Events::open(unix(), unix());
        events.post(HANDSHAKE);
        events.post(REQUEST);
        events.stream.event_response("the state", |data| data.get("FullName").is_some());
        drop(events);
        nobody_upstream(&app);
        let mut web = unix();
        let headers = "X-Forwarded-For: 203.0.113.7\r\n";
        web.send(format!("{}{headers}\r\n", upgrade_head(six, "/dotnetify")).as_bytes());
        assert_eq!(remote(&seen_over(&app, web)).0, "203.0.113.7");
        let mut web = Web::connect(six);
        web.send(format!("{}{headers}\r\n", upgrade_head(six, "/dotnetify")).as_bytes());
        assert_eq!(remote(&seen_over(&app, web)).0, "::1");
        assert_eq!(remote(&seen(&app, &node, b"", headers)).0, "127.0.0.1");
    }
    is_clean(&app, &node);

    // Another node does not take the socket from one that lives, nor a file that is none.
    let other = folder.file("other.sock", "precious");
    for (path, words) in [(&path, "another process listens there"), (&other, "no socket")] {
        let place = format!("unix:{}", path.display());
        let mut second = Process::signalring(
            "second node",
            &["run", "--listen", &place, "--admin", "127.0.0.1:0", "--app-server", &url],
        );
        let status = second.wait(PATIENCE).expect("it ends");
        assert!(!status.success() && second.output().contains(words), "{}", second.output());
    }
    assert_eq!(std::fs::read_to_string(&other).unwrap(), "precious");
    assert_eq!(unix().ask("POST /dotnetify/negotiate", "", b"").status, 200);

    assert!(Command::new("kill").args(["-TERM", &node.process.id().to_string()]).status().unwrap().success());
    assert!(node.process.wait(PATIENCE).expect("the node ends").success());
    assert!(!path.exists(), "the socket's file is gone with the node");
    assert!(!node.process.output().contains("WARN"), "{}", node.process.output());
}
