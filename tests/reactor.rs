//! A running node against clients and app servers that end badly: at the limit, without reading, half closed, reset at any point,
//! restarted, or never answering. What is left behind is counted.

mod common;

use common::ws::{self, FIN, PING, Socket, frame, record, upgrade_head};
use common::{App, Node, PATIENCE, Process, get, read_reply, wait_for};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

const HANDSHAKE: &str = r#"{"protocol":"json","version":1}"#;
const REQUEST: &str = r#"{"type":1,"target":"Request_VM","arguments":["HelloWorldVM",{}]}"#;
/// `limits::STOP_MS` and a second.
const STOPPING: Duration = Duration::from_secs(6);

fn start(flags: &[&str]) -> (App, Node) {
    let app = App::start();
    let node = Node::start(&app, &[&["--shards", "1"], flags].concat());
    (app, node)
}

fn still_serves(node: &Node) {
    let mut socket = Socket::connect(node.address);
    socket.send(&record(REQUEST));
    socket.response("the state", |data| data.get("FullName").is_some());
    socket.send(&frame(FIN | ws::CLOSE, &ws::close_payload(1000, "")));
    assert_eq!(socket.closed("goodbye"), Some(1000));
}

/// Nobody is left, and nothing of anybody.
fn is_clean(node: &Node) {
    for gauge in ["clients", "http_connections", "frames", "groups", "queued_messages", "queued_disconnects"] {
        wait_for(gauge, PATIENCE, || (node.metric(&format!("signalring_{gauge}")) == 0.0).then_some(()));
    }
    assert_eq!(node.metric("signalring_connections_accepted"), node.metric("signalring_connections_closed"));
}

fn terminate(process: &Process) -> Instant {
    assert!(Command::new("kill").args(["-TERM", &process.id().to_string()]).status().unwrap().success());
    Instant::now()
}

fn descriptors(process: &Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", process.id())).expect("the node is running").count()
}

#[test]
fn one_too_many_is_told_so_and_served_when_there_is_room() {
    for shards in ["1", "4"] {
        has_ten_places(shards);
    }
}

/// The bound is the node's, wherever the kernel puts its clients.
fn has_ten_places(shards: &str) {
    let app = App::start();
    let node = Node::start(&app, &["--max-clients", "10", "--shards", shards]);
    let mut clients: Vec<Socket> = (0..10).map(|_| Socket::connect(node.address)).collect();
    // It need not even ask.
    let mut stream = TcpStream::connect(node.address).unwrap();
    let reply = read_reply(&mut stream, PATIENCE);
    assert!(reply.status == 503 && reply.closed && !reply.reset, "{}", reply.text);
    node.counts_refusals(&["overloaded"], 1);
    drop((clients.pop(), stream));
    wait_for("a place", PATIENCE, || (node.metric("signalring_clients") == 9.0).then_some(()));
    wait_for("the refused one to be gone", PATIENCE, || {
        (node.metric("signalring_http_connections") == 0.0).then_some(())
    });
    still_serves(&node);
    drop(clients);
    is_clean(&node);
}

#[test]
fn who_never_reads_is_dropped_whatever_it_makes_the_node_say() {
    let (_app, node) = start(&["--log", "debug"]);
    let ping = frame(FIN | PING, &[b'p'; 125]);
    let unknown = record(r#"{"type":1,"target":"Nobody","invocationId":"1","arguments":[]}"#);
    let negotiate = "POST /dotnetify/negotiate?negotiateVersion=1 HTTP/1.1\r\nHost: x\r\n\r\n";
    for (reason, upgraded, once) in
        [("pongs", true, ping), ("completions", true, unknown), ("replies", false, negotiate.as_bytes().to_vec())]
    {
        let before = node.metric("signalring_connections_closed");
        let mut stream =
            if upgraded { Socket::connect(node.address).stream } else { TcpStream::connect(node.address).unwrap() };
        let flood = once.repeat(64 * 1024 / once.len());
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut sent = 0;
        // The node stops reading from it only by ending it.
        while sent < 256 * 1024 * 1024 && stream.write_all(&flood).is_ok() {
            sent += flood.len();
        }
        assert!(sent < 256 * 1024 * 1024, "{reason}: {sent} bytes were taken");
        wait_for(reason, PATIENCE, || (node.metric("signalring_connections_closed") == before + 1.0).then_some(()));
    }
    assert_eq!(node.metric_where("signalring_client_ends", "reason=\"slow_client\""), 2.0);
    still_serves(&node);
    is_clean(&node);
}

#[test]
fn stopping_tells_everybody_to_come_back_and_ends_in_time() {
    let (app, mut node) = start(&[]);
    let mut clients: Vec<Socket> = (0..200).map(|_| Socket::connect(node.address)).collect();
    for client in clients.iter_mut().step_by(10) {
        client.send(&record(REQUEST));
        client.response("the state", |data| data.get("FullName").is_some());
    }
    // One is in the middle of a request, one never says anything.
    let mut half = TcpStream::connect(node.address).unwrap();
    half.write_all(b"POST /dotnetify/nego").unwrap();
    let _silent = TcpStream::connect(node.address).unwrap();
    let begun = terminate(&node.process);
    for client in &mut clients {
        let close = client.record("the hub's Close");
        assert_eq!((&close["type"], &close["allowReconnect"]), (&7.into(), &true.into()), "{close}");
        assert_eq!(client.closed("the end of the node"), Some(1000));
    }
    drop(clients);
    let status = node.process.wait(STOPPING.saturating_sub(begun.elapsed())).expect("the node ends in time");
    assert!(status.success(), "{status}");
    wait_for("the app server to forget everybody", PATIENCE, || (app.figure("bindings") == 0).then_some(()));
}

#[test]
fn stopping_does_not_wait_for_who_does_not_answer() {
    let (_app, mut node) = start(&[]);
    // They keep their side open.
    let clients: Vec<Socket> = (0..20).map(|_| Socket::connect(node.address)).collect();
    let begun = terminate(&node.process);
    let status = node.process.wait(STOPPING).expect("the node ends in time");
    assert!(status.success(), "{status} after {:?}", begun.elapsed());
    drop(clients);
}

#[test]
fn a_node_whose_app_server_never_answers_stops_at_once() {
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", deaf.local_addr().unwrap());
    let mut node = Process::signalring(
        "node",
        &["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--app-server", &url],
    );
    node.printed("admin on ");
    // Its lanes are in the middle of negotiating.
    let (_connection, _) = deaf.accept().unwrap();
    terminate(&node);
    let status = node.wait(Duration::from_secs(4)).expect("nobody is to be told");
    assert!(status.success(), "{status}");
}

#[test]
fn requests_in_one_packet_are_all_answered_though_the_peer_has_shut_its_side() {
    let (_app, node) = start(&[]);
    let negotiate = "POST /dotnetify/negotiate?negotiateVersion=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody";
    let last = negotiate.replace("Host", "Connection: close\r\nHost");
    let mut stream = TcpStream::connect(node.address).unwrap();
    stream.write_all(format!("{}{last}GET / HTTP/1.1\r\n", negotiate.repeat(20)).as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let reply = read_reply(&mut stream, PATIENCE);
    assert_eq!(reply.text.matches("HTTP/1.1 200").count(), 21, "{}", reply.text);
    assert!(reply.closed && !reply.reset);

    // The upgrade, the handshake and the first request in one packet; then the client shuts its side.
    let mut stream = TcpStream::connect(node.address).unwrap();
    let mut bytes = format!("{}\r\n", upgrade_head(node.address, "/dotnetify")).into_bytes();
    bytes.extend(record(HANDSHAKE));
    bytes.extend(record(REQUEST));
    stream.write_all(&bytes).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut heard, mut chunk) = (String::new(), [0; 4096]);
    while !heard.contains("FullName") {
        let count = stream.read(&mut chunk).unwrap();
        assert!(count > 0, "{heard}");
        heard.push_str(&String::from_utf8_lossy(&chunk[..count]));
    }
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut chunk).unwrap(), 0);
    is_clean(&node);
}

#[test]
fn the_start_of_a_pipelined_request_has_the_time_of_a_request_only() {
    let (_app, node) = start(&["--request-head-timeout", "300ms"]);
    let whole = "POST /dotnetify/negotiate?negotiateVersion=1 HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut stream = TcpStream::connect(node.address).unwrap();
    let begun = Instant::now();
    stream.write_all(format!("{whole}POST /dotnet").as_bytes()).unwrap();
    let reply = read_reply(&mut stream, PATIENCE);
    assert!(reply.text.contains("HTTP/1.1 200") && reply.text.contains("HTTP/1.1 408"), "{}", reply.text);
    assert!(reply.closed && begun.elapsed() < Duration::from_secs(5), "after {:?}", begun.elapsed());
}

#[test]
fn two_thousand_resets_leave_nothing_behind() {
    let (app, node) = start(&[]);
    let before = descriptors(&node.process);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let upgrade = format!("{}\r\n", upgrade_head(node.address, "/dotnetify")).into_bytes();
    let whole =
        [upgrade, record(HANDSHAKE), record(REQUEST), record(r#"{"type":6}"#), frame(FIN | PING, b"?")].concat();
    runtime.block_on(async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        for n in 0..2000usize {
            let mut stream = tokio::net::TcpStream::connect(node.address).await.unwrap();
            stream.set_zero_linger().unwrap();
            // Cut anywhere; some hear a part of the answers first.
            stream.write_all(&whole[..n * 7919 % (whole.len() + 1)]).await.unwrap();
            if n % 3 == 0 && n * 7919 % (whole.len() + 1) > 300 {
                let mut some = [0; 64];
                let _ = stream.read(&mut some).await.unwrap();
            }
            drop(stream);
        }
    });
    wait_for("every connection to be accepted", PATIENCE, || {
        (node.metric("signalring_connections_accepted") >= 2000.0).then_some(())
    });
    is_clean(&node);
    wait_for("the app server to forget everybody", PATIENCE, || (app.figure("bindings") == 0).then_some(()));
    still_serves(&node);
    is_clean(&node);
    wait_for("every descriptor to be closed", PATIENCE, || (descriptors(&node.process) <= before).then_some(()));
}

#[test]
fn an_app_server_that_is_restarted_costs_no_descriptor() {
    let app = App::start();
    let node = Node::start(&app, &["--shards", "1"]);
    let address = app.address.to_string();
    let lanes = node.metric("signalring_lanes");
    let settled = || {
        wait_for("all lanes to be up", PATIENCE, || {
            (node.metric_where("signalring_lanes", "state=\"up\"") == lanes).then_some(())
        });
        // The metrics connection itself, and dials that are just over, come and go.
        let mut seen = Vec::new();
        wait_for("the descriptors to settle", PATIENCE, || {
            seen.push(descriptors(&node.process));
            (seen.len() > 5 && seen[seen.len() - 5..].iter().all(|count| Some(count) == seen.last())).then_some(())
        });
        *seen.last().unwrap()
    };
    let before = settled();
    drop(app);
    for _ in 0..3 {
        wait_for("the lanes to be lost", PATIENCE, || (get(node.admin, "/ready").status == 503).then_some(()));
        let mut again = Process::signalring("app server", &["app", "--listen", &address]);
        again.printed("listening on ");
        let now = settled();
        assert!(now <= before, "{now} descriptors, {before} before the restart");
        still_serves(&node);
    }
}

/// A client is dealt to a url while none is up. Another url that comes up takes what waits, though the first never does, and though
/// the client goes on sending.
#[test]
fn who_waits_for_a_url_that_is_down_goes_to_the_one_that_comes_up() {
    let [dead, late] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let [dead, url] = [dead, late].map(|address| format!("http://{address}"));
    let mut flags = vec!["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--shards", "1"];
    flags.extend(["--pool-size", "1"]);
    flags.extend(["--app-server", &dead, "--app-server", &url]);
    let mut node = Process::signalring("node", &flags);
    let address: SocketAddr = node.printed("listening on ").trim_start_matches("http://").parse().unwrap();
    // Both are dealt a client.
    let mut sockets = [(); 2].map(|()| Socket::connect(address));
    for socket in &mut sockets {
        socket.send(&record(REQUEST));
        socket.send(&record(r#"{"type":1,"target":"Update_VM","arguments":["HelloWorldVM",{"FirstName":"Late"}]}"#));
    }
    let mut app = Process::signalring("app server", &["app", "--listen", &late.to_string()]);
    app.printed("listening on ");
    for socket in &mut sockets {
        socket.response("the state", |data| data.get("FullName").is_some());
        socket.response("the update, which comes behind", |data| {
            data.get("FullName").is_some_and(|name| name.as_str().is_some_and(|name| name.starts_with("Late")))
        });
    }
}

#[test]
fn interim_answers_of_whoever_stands_before_the_app_server_are_skipped() {
    let app = App::start();
    let front = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = front.local_addr().unwrap();
    let behind = app.address;
    std::thread::spawn(move || {
        for stream in front.incoming() {
            relay(stream.unwrap(), behind);
        }
    });
    let url = format!("http://{address}");
    let mut node = Process::signalring(
        "node",
        &["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--app-server", &url, "--shards", "1"],
    );
    let admin: SocketAddr = node.printed("admin on ").trim_start_matches("http://").parse().unwrap();
    wait_for("the node to be ready", PATIENCE, || (get(admin, "/ready").status == 200).then_some(()));
}

/// Passes bytes on, behind two interim answers.
fn relay(mut from: TcpStream, to: SocketAddr) {
    from.write_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n").unwrap();
    let to = TcpStream::connect(to).unwrap();
    for (mut from, mut to) in [(from.try_clone().unwrap(), to.try_clone().unwrap()), (to, from)] {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
}
