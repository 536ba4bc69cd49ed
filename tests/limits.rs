//! Who is over a limit pays for it alone: each of them is met with sockets that do what no decent client does, beside a client that notices
//! nothing.

mod common;

use common::fake::Fake;
use common::web::{EVENTS, Events, Polling, REQUEST, Web, token_on};
use common::ws::{FIN, PING, PONG, Socket, frame, record};
use common::{App, Node, PATIENCE, connect_from, exchange, limit_descriptors, narrow, wait_for};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

fn start(flags: &[&str]) -> (App, Node) {
    let app = App::start();
    let node = Node::start(&app, flags);
    (app, node)
}

/// A client that everybody else is nothing to.
struct Bystander(Socket);

impl Bystander {
    fn of(node: &Node) -> Bystander {
        Bystander(Socket::connect(node.address))
    }

    /// How long an answer takes it.
    fn is_served(&mut self) -> Duration {
        let begun = Instant::now();
        self.0.send(&nobody("bystander"));
        assert_eq!(self.0.record("an answer")["invocationId"], "bystander");
        begun.elapsed()
    }
}

/// A message that is answered with a completion for `id`.
fn unframed(id: &str) -> String {
    format!("{{\"type\":1,\"target\":\"Nobody\",\"invocationId\":\"{id}\",\"arguments\":[]}}")
}

fn nobody(id: &str) -> Vec<u8> {
    record(&unframed(id))
}

fn ends(node: &Node, reason: &str, count: usize) {
    let label = format!("reason=\"{reason}\"");
    wait_for(&format!("{count} ended: {reason}"), PATIENCE, || {
        (node.metric_where("signalring_client_ends", &label) == count as f64).then_some(())
    });
}

fn pauses(node: &Node) -> f64 {
    node.metric_where("signalring_read_pauses", "reason=\"message_rate\"")
}

/// More than the kernel takes for a client, less than its queue may hold.
const PATIENT: [&str; 6] =
    ["--client-send-queue-time", "2s", "--client-send-queue-bytes", "16MiB", "--client-send-buffer-bytes", "4KiB"];

#[test]
fn what_is_queued_does_not_wait_for_ever_for_who_takes_nothing() {
    let (_app, node) = start(&PATIENT);
    let mut bystander = Bystander::of(&node);
    let mut stream = narrow(node.address);
    stream.write_all(format!("{}\r\n", common::ws::upgrade_head(node.address, "/dotnetify")).as_bytes()).unwrap();
    stream.write_all(&record(r#"{"protocol":"json","version":1}"#)).unwrap();
    let id = "i".repeat(20_000);
    for _ in 0..100 {
        stream.write_all(&nobody(&id)).unwrap();
    }
    let begun = Instant::now();
    // It says something all the time: it is not silent, it just does not listen.
    wait_for("it to be ended", PATIENCE, || {
        let _ = stream.write_all(&record(r#"{"type":6}"#));
        std::thread::sleep(Duration::from_millis(50));
        (node.metric_where("signalring_client_ends", "reason=\"stalled_client\"") == 1.0).then_some(())
    });
    assert!(begun.elapsed() >= Duration::from_millis(1500), "{:?}", begun.elapsed());
    bystander.is_served();
    assert!(node.process.output().contains("stalled_client"), "it is said in the log");
}

#[test]
fn who_reads_slowly_but_steadily_is_no_stalled_client() {
    let (_app, node) = start(&PATIENT);
    let mut stream = narrow(node.address);
    stream.write_all(format!("{}\r\n", common::ws::upgrade_head(node.address, "/dotnetify")).as_bytes()).unwrap();
    stream.write_all(&record(r#"{"protocol":"json","version":1}"#)).unwrap();
    let id = "i".repeat(20_000);
    let (count, mut seen) = (50, 0);
    for _ in 0..count {
        stream.write_all(&nobody(&id)).unwrap();
    }
    // A megabyte in several times the patience. What is queued does not leave as a whole in that time, but much of it does.
    let begun = Instant::now();
    let mut bytes = [0; 4096];
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    while seen < count * id.len() {
        let read = stream.read(&mut bytes).expect("it is still there");
        assert!(read > 0, "ended after {seen} bytes and {:?}", begun.elapsed());
        seen += read;
        std::thread::sleep(Duration::from_micros(read as u64 * 6));
    }
    assert!(begun.elapsed() > Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(node.metric_where("signalring_client_ends", "reason=\"stalled_client\""), 0.0);
}

#[test]
fn who_takes_a_few_bytes_now_and_then_does_not_keep_its_queue() {
    let (_app, node) = start(&PATIENT);
    let mut stream = narrow(node.address);
    stream.write_all(format!("{}\r\n", common::ws::upgrade_head(node.address, "/dotnetify")).as_bytes()).unwrap();
    stream.write_all(&record(r#"{"protocol":"json","version":1}"#)).unwrap();
    let id = "i".repeat(20_000);
    for _ in 0..50 {
        stream.write_all(&nobody(&id)).unwrap();
    }
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // Enough for the kernel to pass on a little more each time, and far too little.
    let mut bytes = [0; 4096];
    let mut taken = 0;
    wait_for("it to be ended", PATIENCE, || {
        taken += stream.read(&mut bytes).unwrap_or_default();
        std::thread::sleep(Duration::from_millis(400));
        (node.metric_where("signalring_client_ends", "reason=\"stalled_client\"") == 1.0).then_some(())
    });
    assert!(taken > 2 * bytes.len() && taken < 300_000, "{taken}");
}

#[test]
fn an_event_stream_and_answers_that_nobody_takes_are_ended_too() {
    let (_app, node) = start(&[&PATIENT[..], &["--request-head-timeout", "20s"]].concat());
    let mut posts = Web::connect(node.address);
    let target = format!("/dotnetify?id={}", token_on(&mut posts, ""));
    let mut stream = narrow(node.address);
    stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: x\r\n{EVENTS}\r\n").as_bytes()).unwrap();
    let mut events = Events { stream: Web::connect(node.address), posts, target };
    wait_for("the stream", PATIENCE, || (node.metric("signalring_clients") == 1.0).then_some(()));
    events.post(common::web::HANDSHAKE);
    let id = "i".repeat(20_000);
    for _ in 0..20 {
        events.post(format!("{}\u{1e}", unframed(&id)).as_bytes());
    }
    ends(&node, "stalled_client", 1);
    // And a connection that asks and asks and does not read.
    let mut asking = narrow(node.address);
    asking.write_all("GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000).as_bytes()).unwrap();
    wait_for("it to be ended", PATIENCE, || {
        (node.metric_where("signalring_http_ends", "reason=\"stalled\"") == 1.0).then_some(())
    });
}

#[test]
fn who_sends_too_much_is_read_later_and_loses_nothing() {
    let flags = ["--client-message-rate", "20", "--client-message-burst", "10", "--shards", "1"];
    let silence = ["--client-timeout-interval", "1s", "--keep-alive-interval", "500ms"];
    let (_app, node) = start(&[&flags[..], &silence[..]].concat());
    let mut client = Socket::connect(node.address);
    let mut other = Bystander::of(&node);
    // From the first ping on it may be silent for a second; but then it is the node that does not listen.
    let count = 100;
    let flood: Vec<u8> = (0..count).flat_map(|n| nobody(&n.to_string())).collect();
    client.send(&[record(r#"{"type":6}"#), flood].concat());
    let begun = Instant::now();
    for n in 0..count {
        assert_eq!(client.record("an answer")["invocationId"], n.to_string());
        if n == count / 2 {
            assert!(other.is_served() < Duration::from_secs(2));
        }
    }
    // 101 messages, less the burst and what came in one piece behind it.
    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(pauses(&node) >= 1.0);
    assert_eq!(node.metric_where("signalring_client_ends", "reason=\"client_timeout\""), 0.0);
    assert!(node.process.output().contains("client_message_rate"), "it is said in the log");
}

#[test]
fn a_flood_of_websocket_pings_is_read_as_slowly() {
    let (_app, node) = start(&["--client-message-rate", "100", "--client-message-burst", "100"]);
    let mut client = Socket::connect(node.address);
    let count = 2000;
    client.send(&frame(FIN | PING, b"").repeat(count));
    let begun = Instant::now();
    for _ in 0..count / 2 {
        assert_eq!(client.frame("a pong").opcode(), PONG);
    }
    // 682 come in one piece, for which it pays behind it.
    assert!(begun.elapsed() > Duration::from_secs(4), "{:?}", begun.elapsed());
    assert!(pauses(&node) >= 1.0);
}

#[test]
fn a_pause_follows_a_client_to_its_next_socket() {
    let (_app, node) = start(&["--client-message-rate", "20", "--client-message-burst", "10", "--shards", "1"]);
    let token = token_on(&mut Web::connect(node.address), "&useStatefulReconnect=true");
    let target = format!("/dotnetify?id={token}");
    let mut first = Socket::upgrade(node.address, &target, "").expect("an upgrade");
    first.send(&record(r#"{"protocol":"json","version":2}"#));
    assert_eq!(first.frame("the handshake's answer").text(), "{}\u{1e}");
    // One piece, so that all of it is taken and paid for afterwards: three seconds.
    first.send(&(0..40).flat_map(|n| nobody(&n.to_string())).collect::<Vec<_>>());
    let begun = Instant::now();
    wait_for("the pause", PATIENCE, || (pauses(&node) >= 1.0).then_some(()));
    let mut second = Web::connect(node.address);
    second.send(format!("{}\r\n", common::ws::upgrade_head(node.address, &target)).as_bytes());
    second.until(b"\r\n\r\n", "the upgrade");
    // What it had not acknowledged comes again, the answer to what it says now later.
    second.send(&[record(r#"{"type":9,"sequenceId":41}"#), nobody("again")].concat());
    while !second.frame("an answer").text().contains("\"invocationId\":\"again\"") {}
    let answered = begun.elapsed();
    assert!(answered > Duration::from_secs(1), "{answered:?}");
    assert_eq!(node.metric_where("signalring_resumes", "event=\"resumed\""), 1.0);
}

#[test]
fn a_client_that_is_gone_or_leaves_is_not_kept_by_its_pause() {
    let (_app, node) = start(&["--client-message-rate", "1", "--client-message-burst", "1", "--shards", "1"]);
    let flood = frame(FIN | PING, b"").repeat(500);
    // Reset: unread pongs are thrown away.
    let mut gone = Socket::connect(node.address);
    gone.send(&flood);
    wait_for("the pause", PATIENCE, || (pauses(&node) == 1.0).then_some(()));
    drop(gone);
    ends(&node, "socket_error", 1);
    // The node stops with a client that it does not read.
    let mut client = Socket::connect(node.address);
    client.send(&flood);
    wait_for("the pause", PATIENCE, || (pauses(&node) == 2.0).then_some(()));
    let mut process = node.process;
    assert!(Command::new("kill").arg(process.id().to_string()).status().unwrap().success());
    wait_for("the hub's Close", PATIENCE, || {
        let frame = client.frame("the hub's Close");
        (frame.opcode() != PONG && frame.text().contains("\"type\":7")).then_some(())
    });
    client.closed("the end");
    assert!(process.wait(PATIENCE).expect("it ends").success());
}

#[test]
fn posts_of_who_sends_too_much_are_answered_later_or_refused() {
    let (_app, node) = start(&["--client-message-rate", "50", "--client-message-burst", "10", "--shards", "1"]);
    let mut polling = Polling::connect(node.address);
    let body = |count: usize| (0..count).map(|n| format!("{}\u{1e}", unframed(&n.to_string()))).collect::<String>();
    polling.post(body(110).as_bytes());
    // A second one, and a poll, whose own connection is not concerned.
    let begun = Instant::now();
    assert_eq!(polling.poll().status, 200);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let begun = Instant::now();
    polling.post(body(1).as_bytes());
    let waited = begun.elapsed();
    assert!(waited > Duration::from_millis(500) && waited < Duration::from_secs(8), "{waited:?}");
    assert!(polling.poll().text().contains("\"invocationId\":\"0\""));
    // What would have to wait for too long is refused, and what follows on its connection is read no further.
    polling.post(body(1000).as_bytes());
    let answer = polling.posts.ask(&format!("POST {}", polling.target), "", body(1).as_bytes());
    assert_eq!((answer.status, answer.header("retry-after")), (429, Some("1")), "{answer:?}");
    node.counts_refusals(&["too_many_requests"], 1);
    // And who sends on its event stream is held as well.
    let mut events = Events::connect(node.address);
    let before = pauses(&node);
    let chunk = [b'x'; 4096];
    wait_for("the pause", PATIENCE, || {
        events.stream.send(&chunk);
        (pauses(&node) > before).then_some(())
    });
}

#[test]
fn one_address_has_so_many_connections_and_another_its_own() {
    let (_app, node) = start(&["--connections-per-address", "3", "--shards", "2"]);
    let mut held: Vec<Socket> = (0..3).map(|_| Socket::connect(node.address)).collect();
    let reply = exchange(node.address, b"GET /dotnetify HTTP/1.1\r\nHost: x\r\n\r\n", Duration::ZERO);
    assert_eq!((reply.status, reply.header("retry-after")), (429, Some("5")), "{}", reply.text);
    node.counts_refusals(&["address_limit"], 1);
    assert!(node.process.output().contains("connections_per_address"), "it is said in the log");
    let mut other = connect_from(Ipv4Addr::new(127, 0, 0, 2), node.address, None);
    other.write_all(b"GET /dotnetify HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(common::read_reply(&mut other, Duration::ZERO).status, 400, "it is served");
    held.pop();
    wait_for("the place to be free", PATIENCE, || {
        Socket::upgrade(node.address, "/dotnetify", "").ok().map(|socket| held.push(socket))
    });
    for socket in &mut held {
        socket.send(&nobody("1"));
    }
    drop(held);
    drop(other);
    // All of it is given back.
    for _ in 0..10 {
        wait_for("a place", PATIENCE, || Socket::upgrade(node.address, "/dotnetify", "").ok());
    }
}

#[test]
fn behind_a_proxy_it_is_the_clients_address_that_counts() {
    let origin = "https://app.example.com";
    let flags = ["--connections-per-address", "2", "--trusted-proxy", "127.0.0.1", "--allow-origin", origin];
    let (_app, node) = start(&[&flags[..], &["--shards", "2"]].concat());
    let client = |address: &str| {
        let header = format!("X-Forwarded-For: {address}\r\nOrigin: {origin}\r\n");
        Socket::upgrade(node.address, "/dotnetify", &header)
    };
    let _many: Vec<_> = (1..20).map(|n| client(&format!("192.0.2.{n}")).expect("each is somebody else")).collect();
    let _second = client("192.0.2.1").expect("its second");
    let Err(reply) = client("192.0.2.1") else { panic!("a third") };
    assert_eq!(reply.status, 429, "{}", reply.text);
    assert!(reply.header("access-control-allow-origin").is_some(), "its page may know why: {}", reply.text);
    // A site chooses its addresses of IPv6 itself.
    let _site: Vec<_> = (1..3).map(|n| client(&format!("2001:db8::{n}")).expect("two of it")).collect();
    assert!(client("2001:db8::3").is_err() && client("2001:db8:0:1::3").is_ok());
    // Clients that poll count, not the proxy's connections for them.
    let mut web = Web::connect(node.address);
    let mut polls = |address: &str| {
        let target = format!("/dotnetify?id={}", token_on(&mut web, ""));
        web.ask(&format!("GET {target}"), &format!("X-Forwarded-For: {address}\r\n"), b"").status
    };
    assert_eq!([(); 3].map(|()| polls("192.0.2.99")), [200, 200, 429]);
    node.counts_refusals(&["address_limit"], 3);
}

#[test]
fn a_storm_of_connections_waits_in_the_kernels_queue() {
    let (_app, node) = start(&["--accept-rate", "20", "--shards", "1"]);
    let mut bystander = Bystander::of(&node);
    let begun = Instant::now();
    let mut storm: Vec<TcpStream> =
        (0..80).map(|_| TcpStream::connect(node.address).expect("the kernel takes it")).collect();
    for stream in &mut storm {
        stream.write_all(b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    }
    assert!(bystander.is_served() < Duration::from_secs(2));
    for stream in &mut storm {
        assert_eq!(common::read_reply(stream, Duration::ZERO).status, 404, "each has its turn");
    }
    // A second's worth came at once, and a few had been waited for.
    let (took, least) = (begun.elapsed(), Duration::from_secs((80 - 20 - 16) / 20));
    assert!(took >= least, "{took:?}");
    assert!(node.metric("signalring_accept_pauses") >= 1.0);
    assert_eq!(node.metric("signalring_accept_errors"), 0.0);
    assert!(node.process.output().contains("accept_rate"), "it is said in the log");
}

#[test]
fn accepting_goes_on_when_there_are_descriptors_again() {
    let (_app, node) = start(&["--shards", "1"]);
    let mut bystander = Bystander::of(&node);
    let open = std::fs::read_dir(format!("/proc/{}/fd", node.process.id())).expect("it runs").count();
    limit_descriptors(&node.process, open + 5);
    let request = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut many: Vec<TcpStream> =
        (0..20).map(|_| TcpStream::connect(node.address).expect("the kernel takes it")).collect();
    many.iter_mut().for_each(|stream| stream.write_all(request).unwrap());
    // The admin endpoint, which takes a descriptor for each question, cannot say so now.
    wait_for("the warning", PATIENCE, || node.process.output().contains("accepting pauses").then_some(()));
    assert!(bystander.is_served() < Duration::from_secs(2));
    // The first ones let go, and are followed by the next ones; then there is room for all.
    many.drain(..3);
    std::thread::sleep(Duration::from_millis(300));
    limit_descriptors(&node.process, 10_000);
    for stream in &mut many {
        assert_eq!(common::read_reply(stream, Duration::ZERO).status, 404);
    }
    assert!(node.metric("signalring_accept_errors") >= 1.0);
    bystander.is_served();
}

#[test]
fn clients_are_sent_elsewhere_while_no_app_server_answers_if_that_is_wanted() {
    let negotiate = b"POST /dotnetify/negotiate?negotiateVersion=1 HTTP/1.1\r\nHost: x\r\n\r\n";
    for (wanted, status) in [("false", 503), ("true", 200)] {
        let app = App::start();
        // A mirror that is up answers nobody.
        let mirror = Fake::start();
        let node = Node::configured(&format!(
            "shards = 1\n[hub]\nnegotiate_when_unavailable = {wanted}\n\
            [[upstream]]\nname = \"mirror\"\nurl = \"{}\"\nhalt_pipeline = false\n[[upstream]]\nurl = \"{}\"\n",
            mirror.url(),
            app.url()
        ));
        wait_for("a lane to the app server", PATIENCE, || {
            (exchange(node.address, negotiate, Duration::ZERO).status == 200).then_some(())
        });
        let address = app.address;
        drop(app);
        wait_for("the lanes to be down", PATIENCE, || {
            (node.metric_where("signalring_lanes", "state=\"up\"") == 5.0).then_some(())
        });
        let reply = exchange(node.address, negotiate, Duration::ZERO);
        assert_eq!(reply.status, status, "{}", reply.text);
        let direct = Socket::upgrade(node.address, "/dotnetify", "");
        if status == 200 {
            assert!(direct.is_ok());
            continue;
        }
        assert_eq!(reply.header("retry-after"), Some("5"), "{}", reply.text);
        assert_eq!(direct.err().map(|reply| reply.status), Some(503));
        assert!(node.metric_where("signalring_refusals_total", "reason=\"unavailable\"") >= 2.0);
        let _app = App::start_at(address);
        wait_for("it to be welcome again", PATIENCE, || {
            (exchange(node.address, negotiate, Duration::ZERO).status == 200).then_some(())
        });
    }
}

#[test]
fn who_asks_whether_its_body_is_welcome_is_told() {
    let (_app, node) = start(&["--shards", "1"]);
    let mut polling = Polling::connect(node.address);
    polling.post(REQUEST);
    let body = format!("{}\u{1e}", unframed("asked"));
    let head = |path: &str, length: usize, more: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n{more}\r\n")
    };
    let mut web = Web::connect(node.address);
    web.send(head(&polling.target, body.len(), "").as_bytes());
    assert_eq!(web.answer("leave to go on").status, 100);
    web.send(body.as_bytes());
    assert_eq!(web.answer("the answer").status, 200);
    // Also where the body means nothing, so that nobody takes it for a request.
    web.send(head("/dotnetify/negotiate?negotiateVersion=1", 5, "").as_bytes());
    assert_eq!(web.answer("leave to go on").status, 100);
    assert_eq!(web.answer("the answer").status, 200);
    web.send(b"12345");
    assert_eq!(web.ask("POST /dotnetify/negotiate?negotiateVersion=1", "", b"").status, 200);
    // But not where it would only be thrown away: the answer comes at once.
    web.send(head(&polling.target, 100_000_000, "").as_bytes());
    assert_eq!(web.answer("the answer").status, 413);
}
