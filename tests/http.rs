//! A running node against sockets that behave badly: HTTP heads, upgrades, origins, handshakes and frames as bytes.
//! Status codes and texts: `signalr-protocol.md` sections 1, 3, 5, 11.3, 13; RFC 9112; RFC 6455.

mod common;

use common::ws::{self, Socket, frame, record, text, unmasked, upgrade_head};
use common::{App, Node, PATIENCE, Reply, exchange, get, wait_for};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const UPGRADE_HEADERS: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";

fn start(flags: &[&str]) -> (App, Node) {
    let app = App::start();
    let node = Node::start(&app, &[&["--shards", "2"], flags].concat());
    (app, node)
}

/// Sends a request that must be refused, and be the last one on its connection.
fn refused(node: &Node, name: &str, request: &[u8], statuses: &[u16]) -> Reply {
    let reply = exchange(node.address, request, PATIENCE);
    assert!(statuses.contains(&reply.status), "{name}: wanted {statuses:?}, got {:?}", reply.text);
    assert!(reply.closed, "{name}: the connection must be closed after a refusal");
    assert_eq!(
        reply.header("connection").map(str::to_ascii_lowercase).as_deref(),
        Some("close"),
        "{name}: {}",
        reply.text
    );
    assert!(!reply.body.contains("\r\n"), "{name}: one request, one reply: {:?}", reply.text);
    reply
}

fn still_serves(node: &Node) {
    let mut socket = Socket::connect(node.address);
    socket.send(&record(r#"{"type":1,"target":"Request_VM","arguments":["HelloWorldVM",{}]}"#));
    socket.response("the state", |data| data.get("FullName").is_some());
}

#[test]
fn smuggling_shapes_and_malformed_heads_are_refused_and_closed() {
    let (_app, node) = start(&[]);
    let negotiate = "POST /dotnetify/negotiate?negotiateVersion=1 HTTP/1.1\r\nHost: x\r\n";
    let smuggled = "GET /dotnetify HTTP/1.1\r\nHost: x\r\n\r\n";
    let cases: &[(&str, String, &[u16])] = &[
        // RFC 9112 §6.3: length that two readers could see differently.
        (
            "both lengths",
            format!("{negotiate}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
            &[400, 501],
        ),
        ("chunked", format!("{negotiate}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"), &[400, 501]),
        ("disguised chunked", format!("{negotiate}Transfer-Encoding: xchunked\r\n\r\n"), &[400, 501]),
        ("two different lengths", format!("{negotiate}Content-Length: 0\r\nContent-Length: 5\r\n\r\nhello"), &[400]),
        ("list of lengths", format!("{negotiate}Content-Length: 0, 5\r\n\r\nhello"), &[400]),
        ("signed length", format!("{negotiate}Content-Length: +5\r\n\r\nhello"), &[400]),
        ("negative length", format!("{negotiate}Content-Length: -1\r\n\r\n"), &[400]),
        ("hexadecimal length", format!("{negotiate}Content-Length: 0x5\r\n\r\nhello"), &[400]),
        ("endless length", format!("{negotiate}Content-Length: 99999999999999999999999\r\n\r\n"), &[400, 413]),
        // RFC 9112 §5.1, §5.2: names end at the colon, lines are not folded.
        ("space before the colon", format!("{negotiate}Content-Length : 0\r\n\r\n"), &[400]),
        ("folded header", format!("{negotiate}X-A: b\r\n c\r\n\r\n"), &[400]),
        ("header without a name", format!("{negotiate}: b\r\n\r\n"), &[400]),
        ("header without a colon", format!("{negotiate}nonsense\r\n\r\n"), &[400]),
        ("NUL in a value", format!("{negotiate}X-A: b\0c\r\n\r\n"), &[400]),
        ("lone CR in a value", format!("{negotiate}X-A: b\rc\r\n\r\n"), &[400]),
        // RFC 9112 §3.2: exactly one Host.
        ("no host", "POST /dotnetify/negotiate HTTP/1.1\r\n\r\n".into(), &[400]),
        ("two hosts", format!("{negotiate}Host: y\r\n\r\n"), &[400]),
        // RFC 9112 §3.
        ("no version", "GET /dotnetify\r\nHost: x\r\n\r\n".into(), &[400]),
        ("version 2.0", "GET /dotnetify HTTP/2.0\r\nHost: x\r\n\r\n".into(), &[505, 400]),
        ("version 1.2", "GET /dotnetify HTTP/1.2\r\nHost: x\r\n\r\n".into(), &[505, 400]),
        ("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), &[505, 400]),
        ("TLS hello", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\r\n\r\n".into(), &[400]),
        ("control character in the target", "GET /dotnetify\u{1} HTTP/1.1\r\nHost: x\r\n\r\n".into(), &[400]),
        ("target without a slash", "GET dotnetify HTTP/1.1\r\nHost: x\r\n\r\n".into(), &[400, 404]),
    ];
    std::thread::scope(|scope| {
        for (name, request, statuses) in cases {
            let node = &node;
            scope.spawn(move || refused(node, name, request.as_bytes(), statuses));
        }
    });
    let counted = || node.metric("signalring_refusals");
    wait_for("every refusal to be counted", PATIENCE, || (counted() == cases.len() as f64).then_some(()));
    still_serves(&node);
}

#[test]
fn oversized_heads_and_bodies_are_refused_at_their_bound() {
    let (_app, node) = start(&[]);
    let host = format!("Host: {}\r\n", node.address);
    let post = format!("POST /dotnetify/negotiate HTTP/1.1\r\n{host}");

    let endless = format!("{post}X-Long: {}", "a".repeat(40 * 1024));
    refused(&node, "a head that does not end", endless.as_bytes(), &[431]);
    let long = format!("{endless}\r\n\r\n");
    refused(&node, "a head of 40 KiB", long.as_bytes(), &[431]);
    let many: String = (0..150).map(|i| format!("X-{i}: v\r\n")).collect();
    refused(&node, "150 headers", format!("{post}{many}\r\n").as_bytes(), &[431]);
    let target = format!("POST /dotnetify/negotiate?x={} HTTP/1.1\r\n{host}\r\n", "y".repeat(9 * 1024));
    refused(&node, "a target of 9 KiB", target.as_bytes(), &[414]);
    refused(&node, "a body of 1 MiB", format!("{post}Content-Length: 1048576\r\n\r\n").as_bytes(), &[413]);

    // Just inside the bounds.
    let cookie =
        format!("{post}Cookie: {}\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc", "c".repeat(20 * 1024));
    assert_eq!(exchange(node.address, cookie.as_bytes(), PATIENCE).status, 200);
    let query =
        format!("POST /dotnetify/negotiate?x={} HTTP/1.1\r\n{host}Connection: close\r\n\r\n", "y".repeat(7 * 1024));
    assert_eq!(exchange(node.address, query.as_bytes(), PATIENCE).status, 200);
}

#[test]
fn a_slow_head_is_cut_off_however_busily_it_drips() {
    // The default is 5 s and is tested as such by the second node; the first shows that no byte moves the deadline.
    let (_app, quick) = start(&["--request-head-timeout", "500ms"]);
    let (_app, usual) = start(&[]);
    let head = "GET /dotnetify HTTP/1.1\r\nHost: x\r\nX-Slow: ";

    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = TcpStream::connect(quick.address).unwrap();
            let mut drip = stream.try_clone().unwrap();
            let begun = Instant::now();
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    let _ = drip.write_all(head.as_bytes());
                    // Ends when the node closes, or after its deadline has passed several times over.
                    while begun.elapsed() < Duration::from_secs(5) && drip.write_all(b"a").is_ok() {
                        std::thread::sleep(Duration::from_millis(50));
                    }
                });
                let reply = common::read_reply(&mut stream, PATIENCE);
                assert!(
                    reply.closed && begun.elapsed() < Duration::from_secs(4),
                    "after {:?}: {reply:?}",
                    begun.elapsed()
                );
                assert!(begun.elapsed() >= Duration::from_millis(400), "too early: {:?}", begun.elapsed());
                assert!(matches!(reply.status, 408) || reply.reset, "{reply:?}");
                let _ = stream.shutdown(std::net::Shutdown::Both);
            });
        });
        scope.spawn(|| {
            // Nothing at all: closed, with or without words.
            let mut stream = TcpStream::connect(quick.address).unwrap();
            let reply = common::read_reply(&mut stream, PATIENCE);
            assert!(reply.closed && matches!(reply.status, 0 | 408), "{reply:?}");
        });
        scope.spawn(|| {
            let mut stream = TcpStream::connect(usual.address).unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            let begun = Instant::now();
            let reply = common::read_reply(&mut stream, PATIENCE);
            assert!(reply.closed && reply.status == 408, "{reply:?}");
            let taken = begun.elapsed();
            assert!(
                taken > Duration::from_secs(4) && taken < Duration::from_secs(9),
                "5 s is the default, it took {taken:?}"
            );
        });
    });
    usual.counts_refusals(&["head_timeout"], 1);
    still_serves(&quick);
}

#[test]
fn methods_and_paths() {
    let (_app, node) = start(&[]);
    let host = format!("Host: {}\r\nConnection: close\r\n\r\n", node.address);
    let ask = |line: &str| exchange(node.address, format!("{line} HTTP/1.1\r\n{host}").as_bytes(), PATIENCE);

    for method in ["GET", "PUT", "DELETE", "HEAD", "PATCH"] {
        let reply = ask(&format!("{method} /dotnetify/negotiate"));
        assert_eq!(reply.status, 405, "{method}: {}", reply.text);
        let allow =
            reply.header("allow").unwrap_or_else(|| panic!("{method}: RFC 9110 §15.5.6 wants Allow: {}", reply.text));
        assert!(allow.contains("POST"), "{allow}");
    }
    for method in ["PUT", "PATCH", "TRACE"] {
        assert_eq!(ask(&format!("{method} /dotnetify")).status, 405, "{method}");
    }
    for path in ["/", "/other", "/dotnetify/other", "/dotnetify2", "/dotnetify/negotiate/more", "/__double", "/metrics"]
    {
        assert_eq!(ask(&format!("GET {path}")).status, 404, "{path}");
    }
    // Paths are compared without case, and one trailing slash is tolerated.
    for path in ["/dotnetify/negotiate", "/DotNetify/Negotiate", "/dotnetify/negotiate?negotiateVersion=1"] {
        let reply = ask(&format!("POST {path}"));
        assert_eq!(reply.status, 200, "{path}: {}", reply.text);
        assert!(
            reply.header("content-type").is_some_and(|kind| kind.starts_with("application/json")),
            "{}",
            reply.text
        );
        assert!(reply.header("content-length").is_some());
    }
    assert!(Socket::upgrade(node.address, "/dotnetify/", "").is_ok());
    assert!(Socket::upgrade(node.address, "/DOTNETIFY", "").is_ok());
    assert!(Socket::upgrade(node.address, "/dotnetify?unknown=1&other", "").is_ok());
    node.counts_refusals(&["not_found"], 7);
    node.counts_refusals(&["method_not_allowed"], 8);
}

#[test]
fn negotiate_keeps_its_connection_and_takes_any_split() {
    let (_app, node) = start(&[]);
    let request = format!(
        "POST /dotnetify/negotiate?negotiateVersion=1 HTTP/1.1\r\nHost: {}\r\nContent-Length: 2\r\n\r\n{{}}",
        node.address
    );
    let last = request.replace("\r\nContent-Length", "\r\nConnection: close\r\nContent-Length");

    // Two in one segment, the second saying goodbye.
    let reply = exchange(node.address, format!("{request}{last}").as_bytes(), PATIENCE);
    assert_eq!(reply.text.matches("HTTP/1.1 200").count(), 2, "{}", reply.text);
    assert_eq!(reply.text.matches("connectionToken").count(), 2, "{}", reply.text);

    // Byte by byte.
    let mut stream = TcpStream::connect(node.address).unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in last.as_bytes() {
        stream.write_all(&[*byte]).unwrap();
    }
    assert_eq!(common::read_reply(&mut stream, PATIENCE).status, 200);

    // The upgrade may follow on the same connection.
    let mut stream = TcpStream::connect(node.address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    assert_eq!(common::read_reply(&mut stream, Duration::ZERO).status, 200);
    stream.write_all(format!("{}\r\n", upgrade_head(node.address, "/dotnetify")).as_bytes()).unwrap();
    assert_eq!(common::read_reply(&mut stream, Duration::ZERO).status, 101);

    // HTTP/1.0 closes unless told otherwise, and needs no Host.
    let reply = exchange(node.address, b"POST /dotnetify/negotiate HTTP/1.0\r\n\r\n", PATIENCE);
    assert!(reply.status == 200 && reply.closed, "{}", reply.text);
}

#[test]
fn upgrades_that_are_none() {
    let (_app, node) = start(&[]);
    let get = format!("GET /dotnetify HTTP/1.1\r\nHost: {}\r\n", node.address);
    let key = format!("Sec-WebSocket-Key: {}\r\n", ws::SAMPLE_KEY);
    let cases: &[(&str, String, u16)] = &[
        ("no Connection", format!("{get}Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n{key}"), 400),
        ("no Upgrade", format!("{get}Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n{key}"), 400),
        (
            "another Upgrade",
            format!("{get}Connection: Upgrade\r\nUpgrade: h2c\r\nSec-WebSocket-Version: 13\r\n{key}"),
            400,
        ),
        (
            "Connection: keep-alive",
            format!("{get}Connection: keep-alive\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n{key}"),
            400,
        ),
        ("no key", format!("{get}{UPGRADE_HEADERS}"), 400),
        ("a short key", format!("{get}{UPGRADE_HEADERS}Sec-WebSocket-Key: c2hvcnQ=\r\n"), 400),
        (
            "a key that is not base64",
            format!("{get}{UPGRADE_HEADERS}Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!==\r\n"),
            400,
        ),
        ("two keys", format!("{get}{UPGRADE_HEADERS}{key}{key}"), 400),
    ];
    for (name, head, status) in cases {
        refused(&node, name, format!("{head}\r\n").as_bytes(), &[*status]);
    }
    // RFC 6455 §4.4: the versions that are spoken here.
    for version in ["8", "14", ""] {
        let head =
            format!("{get}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: {version}\r\n{key}\r\n");
        let reply = refused(&node, "another version", head.as_bytes(), &[426]);
        assert_eq!(reply.header("sec-websocket-version"), Some("13"), "{}", reply.text);
    }
    let reply =
        Socket::upgrade(node.address, "/dotnetify?id=AAAAAAAAAAAAAAAAAAAAAA", "").err().expect("no such connection");
    assert_eq!((reply.status, reply.body.as_str()), (404, "No Connection with that ID"), "{}", reply.text);

    // What browsers and proxies really send.
    let browser = "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
    let reply = exchange(node.address, format!("{get}{browser}{key}\r\n").as_bytes(), Duration::ZERO);
    assert_eq!(reply.status, 101, "{}", reply.text);
    assert_eq!(reply.header("sec-websocket-extensions"), None, "no extension was agreed on");
    assert_eq!(reply.header("sec-websocket-protocol"), None);
    assert!(reply.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade")));
    assert!(reply.header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")));
    node.counts_refusals(&["upgrade_malformed"], cases.len());
    node.counts_refusals(&["websocket_version"], 3);
    node.counts_refusals(&["unknown_connection"], 1);
}

#[test]
fn a_refused_request_that_was_whole_keeps_its_connection() {
    let (_app, node) = start(&["--allow-origin", "https://app.example.com"]);
    let headers = format!("Host: {}\r\nOrigin: https://app.example.com\r\n", node.address);
    let mut stream = TcpStream::connect(node.address).unwrap();
    for (line, more, status) in [
        ("GET /dotnetify", "", 400),
        ("POST /dotnetify", "Content-Length: 5\r\n\r\nhello", 400),
        ("GET /dotnetify?id=x", "Accept: text/event-stream\r\n", 404),
        ("GET /dotnetify?id=x", "", 404),
        ("POST /dotnetify?id=x", "Content-Length: 5\r\n\r\nhello", 404),
        ("DELETE /dotnetify?id=x", "", 404),
        ("GET /elsewhere", "", 404),
        ("PUT /dotnetify", "", 405),
        ("POST /dotnetify/negotiate", "", 200),
    ] {
        let end = if more.contains("\r\n\r\n") { "" } else { "\r\n" };
        stream.write_all(format!("{line} HTTP/1.1\r\n{headers}{more}{end}").as_bytes()).unwrap();
        let reply = common::read_reply(&mut stream, Duration::ZERO);
        assert_eq!(reply.status, status, "{line}: {}", reply.text);
        assert_eq!(reply.header("connection"), Some("keep-alive"), "{line}: {}", reply.text);
        let origin = reply.header("access-control-allow-origin");
        assert_eq!(origin, Some("https://app.example.com"), "{line}: {}", reply.text);
    }
    node.counts_refusals(&["id_required"], 2);
    node.counts_refusals(&["unknown_connection"], 4);
}

#[test]
fn an_id_is_good_for_one_connection_with_its_own_node_key() {
    let (_app, node) = start(&[]);
    let token = token(node.address);
    assert!(Socket::upgrade(node.address, &format!("/dotnetify?id={token}"), "").is_ok());
    assert!(Socket::upgrade(node.address, &format!("/dotnetify?ID={}", self::token(node.address)), "").is_ok());
    // One changed character makes it somebody else's.
    let mut forged = self::token(node.address).into_bytes();
    let middle = forged.len() / 2;
    forged[middle] = if forged[middle] == b'A' { b'B' } else { b'A' };
    let target = format!("/dotnetify?id={}", String::from_utf8(forged).unwrap());
    assert_eq!(Socket::upgrade(node.address, &target, "").err().map(|reply| reply.status), Some(404));
}

fn token(address: SocketAddr) -> String {
    let request = format!(
        "POST /dotnetify/negotiate?negotiateVersion=1 HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    );
    let reply = exchange(address, request.as_bytes(), PATIENCE);
    let body: serde_json::Value = serde_json::from_str(&reply.body).expect("negotiate answers JSON");
    body["connectionToken"].as_str().expect("version 1 has a token").to_string()
}

#[test]
fn an_origin_of_the_other_scheme_is_another_where_a_trusted_proxy_says_the_scheme() {
    let said = |node: &Node, scheme: &str, headers: &str| {
        let origin = format!("Origin: {scheme}://{}\r\n{headers}", node.address);
        match Socket::upgrade(node.address, "/dotnetify", &origin) {
            Ok(_) => 101,
            Err(reply) => reply.status,
        }
    };
    let theirs = |proto: &str| {
        format!("X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: {proto}\r\nForwarded: for=192.0.2.2\r\n")
    };
    let rfc = |proto: &str| format!("Forwarded: for=192.0.2.2;proto={proto}\r\nX-Forwarded-For: 192.0.2.1\r\n");
    let trust = ["--trusted-proxy", "127.0.0.1"];
    let (_app, believed) = start(&trust);
    let (_app, believed_by_rfc) = start(&[&trust[..], &["--forwarded-header", "forwarded"]].concat());
    for (node, headers, other) in [
        (&believed, &theirs as &dyn Fn(&str) -> String, &rfc as &dyn Fn(&str) -> String),
        (&believed_by_rfc, &rfc, &theirs),
    ] {
        for (scheme, opposite) in [("https", "http"), ("http", "https")] {
            assert_eq!(said(node, scheme, &headers(scheme)), 101, "{scheme}");
            assert_eq!(said(node, opposite, &headers(scheme)), 403, "{opposite}, by {scheme}");
            // The header that is not read says nothing of the scheme.
            assert_eq!(said(node, opposite, &other(scheme)), 101, "{opposite}");
            assert_eq!(said(node, scheme, ""), 101, "nobody said");
        }
        node.counts_refusals(&["origin_forbidden"], 2);
    }
    // Who is not trusted cannot say it.
    let (_app, node) = start(&[]);
    assert_eq!(said(&node, "http", &theirs("https")), 101);
}

#[test]
fn origins_without_a_list() {
    let (_app, node) = start(&[]);
    let same = format!("Origin: http://{}\r\n", node.address);
    let negotiate = |origin: &str| {
        let request = format!(
            "POST /dotnetify/negotiate HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{origin}\r\n",
            node.address
        );
        exchange(node.address, request.as_bytes(), PATIENCE)
    };
    for origin in ["", &same] {
        assert!(Socket::upgrade(node.address, "/dotnetify", origin).is_ok(), "{origin:?}");
        assert_eq!(negotiate(origin).status, 200, "{origin:?}");
    }
    for origin in ["Origin: https://evil.example\r\n", "Origin: null\r\n", "Origin: http://127.0.0.1\r\n"] {
        let reply =
            Socket::upgrade(node.address, "/dotnetify", origin).err().unwrap_or_else(|| panic!("{origin} was let in"));
        assert_eq!(reply.status, 403, "{origin:?}: {}", reply.text);
        let reply = negotiate(origin);
        assert_eq!(reply.status, 403, "{origin:?}: {}", reply.text);
        assert_eq!(reply.header("access-control-allow-origin"), None, "{}", reply.text);
    }
    node.counts_refusals(&["origin_forbidden"], 6);
    wait_for("a log line that names the setting", PATIENCE, || {
        let log = node.process.output();
        (log.contains("allowed_origins") && log.contains("evil.example")).then_some(())
    });
}

#[test]
fn origins_on_the_list_get_cors() {
    let (_app, node) = start(&["--allow-origin", "https://app.example.com", "--allow-origin", "http://localhost:3000"]);
    let host = format!("Host: {}\r\nConnection: close\r\n", node.address);
    let ask = |line: &str, headers: &str| {
        exchange(node.address, format!("{line} HTTP/1.1\r\n{host}{headers}\r\n").as_bytes(), PATIENCE)
    };
    let vary = |reply: &Reply| reply.header("vary").is_some_and(|vary| vary.to_ascii_lowercase().contains("origin"));

    for origin in ["https://app.example.com", "http://localhost:3000", "HTTPS://App.Example.Com"] {
        let header = format!("Origin: {origin}\r\n");
        let reply = ask("POST /dotnetify/negotiate?negotiateVersion=1", &header);
        assert_eq!(reply.status, 200, "{origin}: {}", reply.text);
        assert_eq!(reply.header("access-control-allow-origin"), Some(origin));
        assert_eq!(reply.header("access-control-allow-credentials"), Some("true"));
        assert!(vary(&reply), "{}", reply.text);
        assert!(Socket::upgrade(node.address, "/dotnetify", &header).is_ok());
        // A refusal the page may read, else the browser hides the status.
        let reply = ask("GET /dotnetify/negotiate", &header);
        assert_eq!((reply.status, reply.header("access-control-allow-origin")), (405, Some(origin)), "{}", reply.text);
    }

    let wanted = "x-requested-with,x-signalr-user-agent,authorization";
    for path in ["/dotnetify/negotiate?negotiateVersion=1", "/dotnetify"] {
        let asks = format!(
            "Origin: https://app.example.com\r\nAccess-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: {wanted}\r\n"
        );
        let reply = ask(&format!("OPTIONS {path}"), &asks);
        assert_eq!(reply.status, 204, "{path}: {}", reply.text);
        assert_eq!(reply.header("access-control-allow-origin"), Some("https://app.example.com"));
        assert_eq!(reply.header("access-control-allow-credentials"), Some("true"));
        let methods = reply.header("access-control-allow-methods").unwrap_or_default();
        assert!(["GET", "POST", "DELETE"].iter().all(|method| methods.contains(method)), "{methods}");
        let headers = reply.header("access-control-allow-headers").unwrap_or_default().to_ascii_lowercase();
        assert!(wanted.split(',').all(|header| headers.contains(header)), "{headers}");
        assert!(vary(&reply), "{}", reply.text);
    }

    for origin in [
        "https://other.example.com",
        "http://app.example.com",
        "https://app.example.com:8443",
        "https://app.example.com.evil.example",
    ] {
        let header = format!("Origin: {origin}\r\n");
        for reply in [
            ask("POST /dotnetify/negotiate", &header),
            ask("OPTIONS /dotnetify/negotiate", &format!("{header}Access-Control-Request-Method: POST\r\n")),
            Socket::upgrade(node.address, "/dotnetify", &header).err().unwrap_or_else(|| panic!("{origin} was let in")),
        ] {
            assert_eq!(reply.status, 403, "{origin}: {}", reply.text);
            assert_eq!(reply.header("access-control-allow-origin"), None, "{origin}: {}", reply.text);
        }
    }
}

#[test]
fn handshakes_that_fail_say_why() {
    let (_app, node) = start(&["--handshake-timeout", "700ms"]);
    let cases = [
        ("unknown protocol", r#"{"protocol":"cobol","version":1}"#, "The protocol 'cobol' is not supported."),
        (
            "version",
            r#"{"protocol":"json","version":3}"#,
            "The server does not support version 3 of the 'json' protocol.",
        ),
        ("not JSON", "hello", "An unexpected error occurred during connection handshake."),
        ("no object", "[1]", "An unexpected error occurred during connection handshake."),
        ("no version", r#"{"protocol":"json"}"#, "An unexpected error occurred during connection handshake."),
        ("no protocol", r#"{"version":1}"#, "An unexpected error occurred during connection handshake."),
    ];
    for (name, request, error) in cases {
        let mut socket = Socket::open(node.address);
        socket.send(&record(request));
        handshake_error(&mut socket, name, error);
    }

    let mut silent = Socket::open(node.address);
    handshake_error(&mut silent, "silence", "Handshake was canceled.");
    let mut endless = Socket::open(node.address);
    endless.send(&text(&"x".repeat(33 * 1024)));
    handshake_error(&mut endless, "no end within the limit", "Handshake was canceled.");

    for request in [
        r#"{"version":2,"protocol":"json"}"#,
        r#"{ "protocol" : "JSON" , "version" : 1 }"#,
        r#"{"extra":{"a":[1]},"protocol":"json","version":1}"#,
    ] {
        let mut socket = Socket::open(node.address);
        socket.send(&record(request));
        assert_eq!(socket.frame("the handshake's answer").text(), "{}\u{1e}", "{request}");
        // ... and it is a connection: the handshake's deadline does not touch it.
        socket.send(&record(r#"{"type":1,"target":"Request_VM","arguments":["HelloWorldVM",{}]}"#));
        socket.response("the state", |data| data.get("FullName").is_some());
    }
    // .NET clients shake hands in a binary frame.
    let mut socket = Socket::open(node.address);
    socket.send(&frame(ws::FIN | ws::BINARY, b"{\"protocol\":\"json\",\"version\":1}\x1e"));
    assert_eq!(socket.frame("the handshake's answer").text(), "{}\u{1e}");
}

/// The error record, then the end: after a failed handshake no Close message follows (reference 11.3).
fn handshake_error(socket: &mut Socket, name: &str, error: &str) {
    let answer = socket.frame(name);
    let text = answer.text();
    let (json, rest) = text.split_once(ws::RECORD_END).unwrap_or_else(|| panic!("{name}: {text:?}"));
    assert_eq!(rest, "", "{name}: nothing may follow");
    let answer: serde_json::Value =
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{name}: {error}: {json:?}"));
    let said = answer["error"].as_str().unwrap_or_default();
    assert!(said.starts_with(error), "{name}: wanted {error:?}, got {said:?}");
    assert!(answer.get("type").is_none(), "{name}: a type makes clients misread it");
    let mut after = Vec::new();
    while let Some(frame) = socket.next("the end of the connection") {
        if frame.opcode() == ws::CLOSE {
            socket.send(&ws::frame(ws::FIN | ws::CLOSE, &frame.payload));
        } else {
            after.push(frame);
        }
    }
    assert_eq!(after, [], "{name}: no message follows");
}

#[test]
fn frames_in_every_legal_cut() {
    let (_app, node) = start(&[]);
    let call = "{\"type\":1,\"target\":\"Update_VM\",\"arguments\":[\"HelloWorldVM\",{\"FirstName\":\"Jé😀\",\"LastName\":\"Z\"}]}\u{1e}";
    let arrived = |socket: &mut Socket| socket.response("the name", |data| data["FullName"] == "Jé😀 Z");
    let ready = || {
        let mut socket = Socket::connect(node.address);
        socket.send(&record(r#"{"type":1,"target":"Request_VM","arguments":["HelloWorldVM",{}]}"#));
        socket.response("the state", |data| data.get("FullName").is_some());
        socket
    };

    // One fragment a byte, a ping between any two; characters are cut in the middle.
    let mut socket = ready();
    let bytes = call.as_bytes();
    let mut wire = Vec::new();
    for (i, byte) in bytes.iter().enumerate() {
        let fin = if i + 1 == bytes.len() { ws::FIN } else { 0 };
        wire.extend(frame(fin | if i == 0 { ws::TEXT } else { ws::CONTINUATION }, &[*byte]));
        if i % 16 == 0 {
            wire.extend(frame(ws::FIN | ws::PING, &(i as u32).to_be_bytes()));
        }
    }
    socket.send(&wire);
    let mut pongs = Vec::new();
    let mut data = Vec::new();
    while pongs.len() < bytes.len().div_ceil(16) || data.is_empty() {
        let frame = socket.frame("pongs and the name");
        match frame.opcode() {
            ws::PONG => pongs.push(u32::from_be_bytes(frame.payload.try_into().unwrap())),
            _ => data.extend(frame.text().contains("Jé😀 Z").then_some(())),
        }
    }
    // RFC 6455 §5.5.3 lets a server answer only the last ping of several; this node answers each.
    assert_eq!(pongs, (0..bytes.len() as u32).step_by(16).collect::<Vec<_>>());

    // A record over several WebSocket messages, and the rest of it together with the next one.
    let mut socket = ready();
    let (head, tail) = call.split_at(40);
    socket.send(&[text(head), text(&format!("{tail}{{\"type\":6}}\u{1e}"))].concat());
    arrived(&mut socket);

    // TCP cuts anywhere: byte by byte.
    let mut socket = ready();
    for byte in text(call) {
        socket.send(&[byte]);
    }
    arrived(&mut socket);

    // Opcodes of data do not matter to a server (reference 7.2); an empty message is none.
    let mut socket = ready();
    socket.send(&[frame(ws::FIN | ws::TEXT, b""), frame(ws::FIN | ws::BINARY, call.as_bytes())].concat());
    arrived(&mut socket);

    // An unsolicited pong is nothing.
    let mut socket = ready();
    socket.send(&[frame(ws::FIN | ws::PONG, b"x"), text(call)].concat());
    arrived(&mut socket);

    // One ping: its payload comes back.
    let mut socket = ready();
    socket.send(&frame(ws::FIN | ws::PING, &[7; 125]));
    loop {
        let frame = socket.frame("a pong");
        if frame.opcode() == ws::PONG {
            assert_eq!(frame.payload, [7; 125]);
            break;
        }
    }
}

#[test]
fn frames_that_break_the_protocol_end_the_connection_with_the_code() {
    let (app, node) = start(&[]);
    let ping = format!("{{\"type\":6}}{}", ws::RECORD_END).into_bytes();
    let cases: &[(&str, Vec<u8>, u16)] = &[
        ("unmasked", unmasked(ws::FIN | ws::TEXT, &ping), 1002),
        ("reserved bit 1", frame(ws::FIN | 0x40 | ws::TEXT, &ping), 1002),
        ("reserved bit 3", frame(ws::FIN | 0x10 | ws::TEXT, &ping), 1002),
        ("reserved opcode 3", frame(ws::FIN | 3, b""), 1002),
        ("reserved opcode 11", frame(ws::FIN | 11, b""), 1002),
        ("fragmented ping", frame(ws::PING, b"x"), 1002),
        ("ping of 126 bytes", frame(ws::FIN | ws::PING, &[0; 126]), 1002),
        ("continuation of nothing", frame(ws::FIN | ws::CONTINUATION, b"x"), 1002),
        ("text inside a message", [frame(ws::TEXT, b"{"), frame(ws::FIN | ws::TEXT, b"}")].concat(), 1002),
        ("close of one byte", frame(ws::FIN | ws::CLOSE, b"x"), 1002),
        ("close code 1005", frame(ws::FIN | ws::CLOSE, &ws::close_payload(1005, "")), 1002),
        ("close code 999", frame(ws::FIN | ws::CLOSE, &ws::close_payload(999, "")), 1002),
        ("invalid UTF-8", frame(ws::FIN | ws::TEXT, b"\xff\xfe\x1e"), 1007),
        ("UTF-8 cut off at the end", frame(ws::FIN | ws::TEXT, b"\xc3"), 1007),
        ("surrogate", frame(ws::FIN | ws::TEXT, b"\xed\xa0\x80\x1e"), 1007),
        ("overlong", frame(ws::FIN | ws::TEXT, b"\xc0\xaf\x1e"), 1007),
        ("close reason that is not UTF-8", frame(ws::FIN | ws::CLOSE, b"\x03\xe8\xff"), 1007),
    ];
    for (name, bytes, code) in cases {
        let mut socket = Socket::connect(node.address);
        socket.send(bytes);
        assert_eq!(socket.closed(name), Some(*code), "{name}");
    }
    // A length of 2^63 and more is invalid; one beyond the limit is refused before it is waited for.
    for length in [1 << 63, 1 << 40] {
        let mut socket = Socket::connect(node.address);
        socket.send(&[ws::header(ws::FIN | ws::TEXT, 0x80, length), vec![1, 2, 3, 4]].concat());
        socket.send(&vec![b'a'; 40 * 1024]);
        let code = socket.closed("an impossible length");
        assert!(matches!(code, Some(1002 | 1009 | 1000 | 1011)), "{length}: {code:?}");
    }
    still_serves(&node);
    wait_for("the app server to forget everyone", PATIENCE, || (app.figure("bindings") == 0).then_some(()));
}

#[test]
fn close_is_answered_with_the_same_code() {
    let (_app, node) = start(&[]);
    for (payload, answer) in [
        (ws::close_payload(1000, "bye"), Some(1000)),
        (ws::close_payload(1001, ""), Some(1001)),
        (ws::close_payload(3000, ""), Some(3000)),
        (ws::close_payload(4999, ""), Some(4999)),
    ] {
        let mut socket = Socket::connect(node.address);
        socket.send(&frame(ws::FIN | ws::CLOSE, &payload));
        assert_eq!(socket.closed("an echo of the Close"), answer);
    }
    // Without a code the echo has none, or 1000.
    let mut socket = Socket::connect(node.address);
    socket.send(&frame(ws::FIN | ws::CLOSE, b""));
    assert!(matches!(socket.closed("an echo of the Close"), None | Some(1000)));
    // Nothing after a Close counts.
    let mut socket = Socket::connect(node.address);
    let late = record(r#"{"type":1,"invocationId":"1","target":"Request_VM","arguments":["HelloWorldVM",{}]}"#);
    socket.send(&[frame(ws::FIN | ws::CLOSE, &ws::close_payload(1000, "")), late].concat());
    assert_eq!(socket.frame("the echo").opcode(), ws::CLOSE);
    assert_eq!(socket.next("the end"), None);
    // Before the handshake too.
    let mut socket = Socket::open(node.address);
    socket.send(&frame(ws::FIN | ws::CLOSE, &ws::close_payload(1000, "")));
    assert_eq!(socket.closed("an echo of the Close"), Some(1000));
}

#[test]
fn records_that_are_no_messages_end_the_connection_with_the_error_close() {
    let (_app, node) = start(&[]);
    for malformed in [
        "nonsense",
        "{}",
        "[]",
        "",
        r#"{"type":"1"}"#,
        r#"{"type":1}"#,
        r#"{"type":1,"target":"","arguments":[]}"#,
        r#"{"type":1,"target":null,"arguments":[]}"#,
        r#"{"type":1,"target":"X","arguments":{}}"#,
        r#"{"type":1,"target":"X","arguments":[],"invocationId":null}"#,
        r#"{"type":1,"target":"X","arguments":[1,]}"#,
        r#"{"type":6}{"type":6}"#,
        r#"{"type":3,"invocationId":"1","result":1,"error":"x"}"#,
    ] {
        let mut socket = Socket::connect(node.address);
        socket.send(&record(malformed));
        let close = socket.record(malformed);
        assert_eq!(close["type"], 7, "{malformed}: {close}");
        let error = close["error"].as_str().unwrap_or_default();
        assert!(error.starts_with("Connection closed with an error."), "{malformed}: {close}");
        assert_eq!(close["allowReconnect"], true, "{malformed}: {close}");
        socket.closed(malformed);
    }
    // Unknown types and messages nobody waits for are skipped; so are unknown members and any order of the known ones.
    let mut socket = Socket::connect(node.address);
    for harmless in [
        r#"{"type":99,"x":1}"#,
        r#"{"type":3,"invocationId":"none","result":null}"#,
        r#"{"type":2,"invocationId":"none","item":1}"#,
        r#"{"type":5,"invocationId":"none"}"#,
        r#"{"type":6,"unknown":{"type":7}}"#,
    ] {
        socket.send(&record(harmless));
    }
    socket.send(&record(
        r#"{"headers":{"a":"b"},"arguments":["HelloWorldVM",{}],"x":"\"type\":7","target":"Request_VM","type":1}"#,
    ));
    socket.response("the state", |data| data.get("FullName").is_some());
}

#[test]
fn a_client_that_pinged_once_is_timed_out_and_one_that_never_did_is_not() {
    let (_app, node) = start(&["--client-timeout-interval", "600ms", "--keep-alive-interval", "200ms"]);
    let mut never = Socket::connect(node.address);
    let mut once = Socket::connect(node.address);
    once.send(&record(r#"{"type":6}"#));
    let begun = Instant::now();
    let close = once.record("the timeout's Close");
    assert_eq!(close["type"], 7, "{close}");
    assert!(
        close["error"].as_str().is_some_and(|error| error.starts_with("Connection closed with an error.")),
        "{close}"
    );
    assert_eq!(close["allowReconnect"], true, "{close}");
    // Both timers run from the client's own messages, not from the deadline of its handshake.
    let taken = begun.elapsed();
    assert!(taken >= Duration::from_millis(500) && taken < Duration::from_secs(5), "600 ms are set, it took {taken:?}");
    once.closed("the end after a timeout");
    // Pings have been coming all the while; the silent one hears them and is served.
    assert!(never.frame("a ping").text().contains(r#"{"type":6}"#));
    never.send(&record(r#"{"type":1,"target":"Request_VM","arguments":["HelloWorldVM",{}]}"#));
    never.response("the state", |data| data.get("FullName").is_some());
}

#[test]
fn the_admin_endpoint() {
    let (_app, node) = start(&[]);
    for path in ["/health", "/ready"] {
        assert_eq!(get(node.admin, path).status, 200, "{path}");
    }
    let metrics = get(node.admin, "/metrics");
    assert_eq!(metrics.status, 200);
    assert!(
        metrics
            .header("content-type")
            .is_some_and(|kind| kind.starts_with("text/plain") || kind.contains("openmetrics"))
    );
    assert!(metrics.body.contains("# TYPE") && metrics.body.contains("# HELP"), "{}", metrics.body);
    assert_eq!(get(node.admin, "/nothing").status, 404);
    assert_eq!(get(node.admin, "/dotnetify").status, 404);

    let clients = || node.metric("signalring_clients");
    assert_eq!(clients(), 0.0);
    let sockets: Vec<Socket> = (0..3).map(|_| Socket::connect(node.address)).collect();
    wait_for("three clients to be counted", PATIENCE, || (clients() == 3.0).then_some(()));
    drop(sockets);
    wait_for("none to be counted", PATIENCE, || (clients() == 0.0).then_some(()));
}

#[test]
fn a_node_without_an_app_server_is_alive_but_not_ready() {
    let app = App::start();
    let node = Node::start(&app, &["--shards", "1"]);
    drop(app);
    wait_for("/ready to say no", PATIENCE, || (get(node.admin, "/ready").status == 503).then_some(()));
    assert_eq!(get(node.admin, "/health").status, 200);
}
