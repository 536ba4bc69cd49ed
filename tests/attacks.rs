//! Attacks, each on a running node that serves good clients meanwhile: none of these is lost, nothing of theirs is lost or reordered,
//! they hardly notice; the attackers are dealt with as documented and counted, and the node's memory stays within what it has printed.
//!
//! A hundred good clients and small attacks run with all other tests; a thousand and the whole attacks with
//! `cargo test --release --test attacks -- --ignored --nocapture`, which prints a table: milliseconds of good clients' round trips
//! (99th percentile before, during, longest during, 99th percentile after), seconds until the attackers were gone, MiB resident (before,
//! peak, after), MiB of the budget for what was attacked.

#[path = "common/arena.rs"]
mod arena;
#[path = "common/books.rs"]
mod books;
mod common;

use arena::{Arena, Scale, Setup, descriptors};
use common::fake::Fake;
use common::ws::{BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, Socket, TEXT, frame, header, record, unmasked};
use common::{PATIENCE, limit_descriptors, read_reply, wait_for};
use serde_json::json;
use signalring::limits::ACCEPTS_AT_ONCE;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The attackers' `number`th client, behind its handshake.
fn client(arena: &Arena, number: usize) -> Socket {
    upgraded(arena.dial(number)).shaken()
}

fn upgraded(stream: TcpStream) -> Socket {
    Socket::upgrade_on(stream, "/dotnetify", "").unwrap_or_else(|reply| panic!("no upgrade: {}", reply.text))
}

/// Reads all that comes, without looking, and counts the bytes.
fn drain(stream: &TcpStream) -> JoinHandle<usize> {
    let mut stream = stream.try_clone().expect("a descriptor is free");
    stream.set_read_timeout(None).expect("a timeout can be set");
    thread::spawn(move || {
        let (mut bytes, mut chunk) = (0, [0; 64 * 1024]);
        while let Ok(count @ 1..) = stream.read(&mut chunk) {
            bytes += count;
        }
        bytes
    })
}

/// The node says these words, if any, and a WebSocket Close with this code, and closes.
fn is_told(socket: &mut Socket, words: Option<&str>, code: u16) {
    let mut said = String::new();
    loop {
        let frame = socket.next("a Close frame").unwrap_or_else(|| panic!("closed without a word but {said:?}"));
        if frame.opcode() == CLOSE {
            assert_eq!(frame.code(), Some(code), "behind {said:?}");
            break;
        }
        said.push_str(&frame.text());
    }
    match words {
        Some(words) => assert!(said.contains(words), "{said:?}"),
        None => assert_eq!(said, ""),
    }
}

/// What a client is told whose connection failed (reference 7.3 and 13.3).
const FAILED: Option<&str> = Some("\"type\":7,\"error\":\"Connection closed with an error.\",\"allowReconnect\":true");

fn request(vm_id: &str, argument: &str) -> Vec<u8> {
    record(&format!(r#"{{"type":1,"target":"Request_VM","arguments":["{vm_id}",{{"$vmArg":{argument}}}]}}"#))
}

fn update(vm_id: &str, data: &str) -> Vec<u8> {
    record(&format!(r#"{{"type":1,"target":"Update_VM","arguments":["{vm_id}",{data}]}}"#))
}

/// A method that no hub has; a completion with an error answers it.
fn nobody(id: usize) -> Vec<u8> {
    record(&format!(r#"{{"type":1,"target":"Nobody","invocationId":"{id}","arguments":[]}}"#))
}

// ---- Connections that ask for nothing -------------------------------------------------------------------------------

/// Heads that drip: a byte now and then, and never the end.
fn slow_heads(scale: Scale) {
    let count = scale.of(1000);
    let arena = Setup::new("slow heads", scale).places(count).flags(&["--request-head-timeout", "2s"]).open();
    arena.withstands(&["messages in pieces"], |arena| {
        let mut streams: Vec<_> = (0..count).map(|number| arena.dial(number)).collect();
        for byte in b"GET /dotnetify HTTP/1.1\r\nHost: x\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" {
            streams.iter_mut().for_each(|stream| drop(stream.write_all(&[*byte])));
            thread::sleep(Duration::from_millis(20));
        }
        for stream in &mut streams {
            let reply = read_reply(stream, PATIENCE);
            assert!(reply.status == 408 && reply.closed, "{}", reply.text);
        }
        arena.rises("refusals", "head_timeout", count);
    });
}

/// Connections that say nothing, and WebSockets that never shake hands.
fn silent_connections(scale: Scale) {
    let (mute, idle) = (scale.of(2500), scale.of(2500));
    let timeouts = ["--request-head-timeout", "2s", "--handshake-timeout", "2s"];
    let arena = Setup::new("5,000 connections without handshake", scale).places(mute + idle).flags(&timeouts).open();
    arena.withstands(&[], |arena| {
        let mut mutes: Vec<_> = (0..mute).map(|number| arena.dial(number)).collect();
        let mut idles: Vec<_> = (0..idle).map(|number| upgraded(arena.dial(mute + number))).collect();
        for stream in &mut mutes {
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
            assert_eq!(stream.read(&mut [0; 100]).expect("an end in order"), 0, "nobody was asked");
        }
        for socket in &mut idles {
            is_told(socket, Some("Handshake was canceled."), 1000);
        }
        arena.rises("client_ends", "handshake_canceled", idle);
        arena.rises("connections_accepted", "", mute + idle);
        arena.rises("http_ends", "", mute);
    });
}

/// Clients that come and go as fast as they can: before a word, in the middle of a head, behind the handshake, with a view model; all by
/// a reset.
fn churn(scale: Scale) {
    let rounds = scale.of(2000);
    let arena = Setup::new("churn", scale).places(scale.of(2000)).open();
    arena.withstands(&[], |arena| {
        let hello = request("HelloWorldVM", r#"{"TickInterval":0}"#);
        thread::scope(|scope| {
            for churner in 0..4 {
                let hello = &hello;
                scope.spawn(move || {
                    for round in 0..rounds {
                        let number = churner * rounds + round;
                        let mut stream = arena.dial_to_reset(number % 5000);
                        match churner {
                            0 => {}
                            1 => stream
                                .write_all(b"POST /dotnetify/negotiate HTTP/1.1\r\nHo")
                                .expect("the head can be sent"),
                            2 => drop(upgraded(stream).shaken()),
                            _ => {
                                let mut socket = upgraded(stream).shaken();
                                socket.send(hello);
                                socket.response("a state", |data| data.get("FullName").is_some());
                            }
                        }
                    }
                });
            }
        });
        arena.rises("clients_opened", "web_sockets", 2 * rounds);
        arena.rises("connections_accepted", "", 4 * rounds);
        // A reset behind half a request is seen at once, and not when the request's time is over.
        arena.rises("connections_closed", "", 4 * rounds);
        arena.rises("refusals", "head_timeout", 0);
    });
}

/// Many clients of one address, which may have a hundred: the others are told so, and those of other addresses have their places.
fn one_address(scale: Scale) {
    let (allowed, count) = (100, scale.of(2000) + 100);
    let limit = ["--connections-per-address", "100"];
    let arena = Setup::new("many clients of one address", scale).places(allowed + 200).flags(&limit).open();
    arena.withstands(&[], |arena| {
        let upgrade = |_| Socket::upgrade_on(arena.dial(0), "/dotnetify", "");
        let (served, refused): (Vec<_>, Vec<_>) = (0..count).map(upgrade).partition(Result::is_ok);
        assert_eq!((served.len(), refused.len()), (allowed, count - allowed));
        for reply in refused.into_iter().filter_map(Result::err) {
            assert_eq!(reply.status, 429, "{}", reply.text);
        }
        arena.rises("refusals", "address_limit", count - allowed);
        let mut served: Vec<_> = served.into_iter().flatten().map(Socket::shaken).collect();
        // Who leaves makes room for another one.
        drop(served.pop());
        wait_for("a place", PATIENCE, || Socket::upgrade_on(arena.dial(0), "/dotnetify", "").ok());
    });
}

/// Negotiations, as fast as they are answered.
fn negotiate_flood(scale: Scale) {
    let (connections, rounds, once) = (20, scale.of(50), 100);
    let arena = Setup::new("a flood of negotiations", scale).places(connections).open();
    arena.withstands(&[], |arena| {
        let many = b"POST /dotnetify/negotiate?negotiateVersion=1 HTTP/1.1\r\nHost: x\r\n\r\n".repeat(once);
        thread::scope(|scope| {
            for number in 0..connections {
                let many = &many;
                scope.spawn(move || {
                    let mut stream = arena.dial(number);
                    for _ in 0..rounds {
                        stream.write_all(many).expect("they can be sent");
                        let mut answers = 0;
                        let mut heard = Vec::new();
                        while answers < once {
                            let mut chunk = [0; 64 * 1024];
                            let count = stream.read(&mut chunk).expect("answers");
                            assert!(count > 0, "closed behind {answers} answers");
                            heard.extend_from_slice(&chunk[..count]);
                            answers = memchr::memmem::find_iter(&heard, b"HTTP/1.1 200 OK").count();
                            if answers == once && !heard.ends_with(b"}") {
                                answers -= 1;
                            }
                        }
                    }
                });
            }
        });
        arena.rises("negotiations", "", connections * rounds * once);
    });
}

/// More connections than the process may have files, because somebody has taken files away from it: accepting pauses, and goes on when
/// there are some again. The admin endpoint has none left either, so what was counted is read afterwards.
fn descriptors_exhausted(scale: Scale) {
    let arena = Setup::new("no file descriptors left", scale).places(600).open();
    arena.withstands(&[], |arena| {
        let used = || descriptors(&arena.node.process);
        let limit = used() + 300;
        limit_descriptors(&arena.node.process, limit);
        let streams: Vec<_> = (0..600).map(|number| arena.dial(number)).collect();
        wait_for("the last descriptor to be in use", PATIENCE, || (used() == limit).then_some(()));
        thread::sleep(Duration::from_secs(1));
        assert_eq!(used(), limit, "who waits in the backlog takes the place of who is gone");
        drop(streams);
        let tried = arena.rise("accept_errors", "");
        // On each of two shards it rests 100 ms each time, and then tries all that it has under way.
        let most = 2.0 * 10.0 * f64::from(ACCEPTS_AT_ONCE);
        assert!(tried >= 1.0 && tried <= 3.0 * most, "{tried} tries in a second or two");
    });
}

// ---- What is too large or wrong -------------------------------------------------------------------------------------

/// WebSocket messages in fragments without end: of one byte, of many, and of lengths that never come.
fn giant_fragments(scale: Scale) {
    let each = scale.of(100);
    let any_rate = ["--client-message-rate", "0"];
    let arena = Setup::new("giant fragments", scale).places(3 * each).flags(&any_rate).open();
    arena.withstands(&["messages in pieces"], |arena| {
        // 40,000 bytes in frames of one byte; in frames of 1,000 bytes; in a frame that is to have 2^62.
        let drops = [&frame(TEXT, b"x")[..], &frame(CONTINUATION, b"x").repeat(40_000)].concat();
        let lumps = [&frame(TEXT, &[b'x'; 1000])[..], &frame(CONTINUATION, &[b'x'; 1000]).repeat(39)].concat();
        let giant = [&header(FIN | TEXT, 0x80, 1 << 62)[..], &[0; 4], &[b'x'; 40_000]].concat();
        for (kind, bytes) in [drops, lumps, giant].iter().enumerate() {
            let mut sockets: Vec<_> = (0..each).map(|number| client(arena, kind * each + number)).collect();
            for socket in &mut sockets {
                socket.send(bytes);
            }
            for socket in &mut sockets {
                is_told(socket, FAILED, 1000);
            }
        }
        arena.rises("client_ends", "message_too_large", 3 * each);
        // Who sends nothing but empty fragments never gets there; it costs its own time only.
        let endless = frame(CONTINUATION, b"").repeat(10_000);
        let mut sockets: Vec<_> = (0..scale.of(20)).map(|number| client(arena, number)).collect();
        for socket in &mut sockets {
            socket.send(&frame(TEXT, b""));
            (0..scale.of(20)).for_each(|_| socket.send(&endless));
            // The message ends after all: it was a ping.
            socket.send(&frame(FIN | CONTINUATION, b"{\"type\":6}\x1e"));
        }
        arena.rises("client_messages", "ping", sockets.len());
    });
}

/// JSON that nests deeper than any view model, in every place of a message that is looked at.
fn deep_json(scale: Scale) {
    let each = scale.of(100);
    let depth = 15_000;
    let nested = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let messages = [
        format!(r#"{{"type":1,"target":"Request_VM","arguments":["DeepVM",{{"$vmArg":{nested}}}]}}"#),
        format!(r#"{{"type":1,"target":"Update_VM","arguments":{nested}}}"#),
        format!(r#"{{"headers":{nested},"type":6}}"#),
        format!(r#"{{"type":1,"target":"Request_VM","arguments":["DeepVM",{}"#, "{\"a\":".repeat(5000)),
    ];
    let arena = Setup::new("deep JSON", scale).places(messages.len() * each).open();
    arena.withstands(&["messages in pieces"], |arena| {
        for (kind, message) in messages.iter().enumerate() {
            let mut sockets: Vec<_> = (0..each).map(|number| client(arena, kind * each + number)).collect();
            sockets.iter_mut().for_each(|socket| socket.send(&record(message)));
            sockets.iter_mut().for_each(|socket| is_told(socket, FAILED, 1000));
        }
        arena.rises("client_ends", "message_error", messages.len() * each);
        // As deep as an app server takes it.
        let mut socket = client(arena, 0);
        socket.send(&request(
            "HelloWorldVM",
            &format!("{{\"TickInterval\":0,\"x\":{}1{}}}", "[".repeat(50), "]".repeat(50)),
        ));
        socket.response("a state", |data| data.get("FullName").is_some());
    });
}

/// Cookies that alone are half of what an app server takes as a message: their owners are served all the same.
fn large_cookies(scale: Scale) {
    let count = scale.of(300);
    let arena = Setup::new("20 KB cookies", scale).places(2 * count).open();
    arena.withstands(&["messages in pieces", "large contexts"], |arena| {
        let cookie = |bytes: usize| format!("Cookie: c={}\r\n", "c".repeat(bytes));
        let mut sockets: Vec<_> = (0..count)
            .map(|number| {
                let upgraded = Socket::upgrade_on(arena.dial(number), "/dotnetify", &cookie(20_000));
                upgraded.unwrap_or_else(|reply| panic!("no upgrade: {}", reply.text)).shaken()
            })
            .collect();
        for socket in &mut sockets {
            socket.send(&request("HelloWorldVM", r#"{"TickInterval":0}"#));
            socket.response("a state", |data| data.get("FullName").is_some());
        }
        arena.rises("drops", "context_headers", count);
        // More than a head may have.
        for number in 0..count {
            let Err(reply) = Socket::upgrade_on(arena.dial(number), "/dotnetify", &cookie(33_000)) else {
                panic!("a head of 33 KB was taken");
            };
            assert_eq!(reply.status, 431, "{}", reply.text);
        }
        arena.rises("refusals", "head_too_large", count);
    });
}

/// Frames that break RFC 6455 in every way, and noise.
fn garbage_frames(scale: Scale) {
    let each = scale.of(60);
    let wrong = [
        ("a reserved opcode", frame(FIN | 3, b"x"), 1002),
        ("a reserved bit", frame(FIN | 0x40 | TEXT, b"x"), 1002),
        ("no mask", unmasked(FIN | TEXT, b"{\"type\":6}\x1e"), 1002),
        ("a continuation of nothing", frame(FIN | CONTINUATION, b"x"), 1002),
        ("a second beginning", [frame(TEXT, b"x"), frame(FIN | TEXT, b"x")].concat(), 1002),
        ("a ping in pieces", frame(PING, b"x"), 1002),
        ("a long pong", frame(FIN | PONG, &[b'x'; 126]), 1002),
        ("a close code that nobody may use", frame(FIN | CLOSE, &1005u16.to_be_bytes()), 1002),
        ("text that is no UTF-8", frame(FIN | TEXT, b"\xff\xfe\x1e"), 1007),
        ("noise", (0..2000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 | 0x70).collect(), 1002),
    ];
    let arena = Setup::new("garbage frames", scale).places(wrong.len() * each).open();
    arena.withstands(&[], |arena| {
        for (kind, (what, bytes, code)) in wrong.iter().enumerate() {
            for number in 0..each {
                let mut socket = client(arena, kind * each + number);
                socket.send(bytes);
                assert_eq!(socket.closed(what), Some(*code), "{what}");
            }
        }
        arena.rises("client_ends", "websocket_error", wrong.len() * each);
        // In a binary frame SignalR's reader finds it, whose failures are told first.
        for number in 0..each {
            let mut socket = client(arena, number);
            socket.send(&frame(FIN | BINARY, b"{\"type\":6,\"x\":\"\xff\"}\x1e"));
            is_told(&mut socket, FAILED, 1007);
        }
        arena.rises("client_ends", "not_utf8", each);
    });
}

/// Contract 8, check 6: whatever a client says to an app server, its lane survives and the client gets an answer.
fn odd_calls(scale: Scale) {
    let count = scale.of(200);
    let arena = Setup::new("odd calls", scale).places(count).open();
    arena.withstands(&["messages in pieces"], |arena| {
        let large = update("HelloWorldVM", &format!("{{\"FirstName\":\"{}\"}}", "x".repeat(32_500)));
        let call = |target: &str, arguments: &str| {
            record(&format!(r#"{{"type":1,"target":"{target}","invocationId":"odd","arguments":{arguments}}}"#))
        };
        let forged =
            r#"["Update_VM",["HelloWorldVM","{}"],{"$fwdConnContext":"{\"ConnectionId\":\"somebody else\"}"}]"#;
        // What is called, and the words of the answer's error.
        let refused = [
            call("Request_VM", r#"[5,{}]"#),
            call("Update_VM", r#"[{"vm":1},{}]"#),
            call("Dispose_VM", r#"[null]"#),
            call("Update_VM", r#"["HelloWorldVM","text"]"#),
            call("Request_VM", r#"["HelloWorldVM"]"#),
            call("Request_VM", "[]"),
            call("Invoke", forged),
            call("OnDisconnectedAsync", "[null]"),
        ];
        let mut sockets: Vec<_> = (0..count).map(|number| client(arena, number)).collect();
        for socket in &mut sockets {
            socket.send(&request("HelloWorldVM", r#"{"TickInterval":0}"#));
            socket.response("a state", |data| data.get("FullName").is_some());
            socket.send(&large);
            let refusal = socket.response("a refusal", |data| data.get("ExceptionType").is_some());
            assert_eq!(refusal["ExceptionType"], "ForwardingException");
            for bytes in &refused {
                socket.send(bytes);
                let answer = socket.record("a completion");
                assert_eq!((&answer["type"], &answer["invocationId"]), (&json!(3), &json!("odd")), "{answer}");
                assert!(answer["error"].is_string(), "{answer}");
            }
            // What follows is served.
            socket.send(&update("HelloWorldVM", r#"{"FirstName":"Still"}"#));
            socket.response("an answer", |data| data["FullName"] == "Still World");
        }
        arena.rises("refusals", "too_large_upstream", count);
        arena.rises("refusals", "argument_type", 4 * count);
        arena.rises("refusals", "argument_count", 2 * count);
        arena.rises("refusals", "unknown_method", 2 * count);
        arena.rises("lane_events", "lost", 0);
    });
}

// ---- Floods ---------------------------------------------------------------------------------------------------------

/// SignalR pings, and WebSocket pings that are all answered.
fn ping_flood(scale: Scale) {
    let (each, many) = (10, scale.of(50_000));
    let any_rate = ["--client-message-rate", "0"];
    let arena = Setup::new("a flood of pings", scale).places(2 * each).flags(&any_rate).open();
    arena.withstands(&[], |arena| {
        let (hub, ws) = (record(r#"{"type":6}"#), frame(FIN | PING, b"0123456789"));
        thread::scope(|scope| {
            for number in 0..2 * each {
                let ping = if number < each { &hub } else { &ws };
                scope.spawn(move || {
                    let mut socket = client(arena, number);
                    let drained = drain(&socket.stream);
                    let chunk = ping.repeat(1000);
                    for _ in 0..many / 1000 {
                        socket.stream.write_all(&chunk).expect("pings are taken");
                    }
                    socket.send(&frame(FIN | CLOSE, &1000u16.to_be_bytes()));
                    let pongs = drained.join().expect("it reads") / (2 + 10);
                    // Behind them comes the answer to Close; the node's own pings may be among them.
                    let expected = if number < each { 0 } else { many / 1000 * 1000 };
                    assert!((expected..=expected + 10).contains(&pongs), "{pongs} pongs for {expected} pings");
                });
            }
        });
        arena.rises("client_messages", "ping", each * (many / 1000 * 1000));
    });
}

/// Calls of an unknown method, each answered with an error.
fn nonsense_flood(scale: Scale) {
    let (clients, rounds, once) = (20, scale.of(100), 100);
    let any_rate = ["--client-message-rate", "0"];
    let arena = Setup::new("a flood of calls of nobody", scale).places(clients).flags(&any_rate).open();
    arena.withstands(&[], |arena| {
        thread::scope(|scope| {
            for number in 0..clients {
                scope.spawn(move || {
                    let mut socket = client(arena, number);
                    let chunk: Vec<u8> = (0..once).flat_map(nobody).collect();
                    for _ in 0..rounds {
                        socket.send(&chunk);
                        for id in 0..once {
                            let answer = socket.record("an answer");
                            assert_eq!(answer["invocationId"], id.to_string(), "{answer}");
                        }
                    }
                });
            }
        });
        arena.rises("refusals", "unknown_method", clients * rounds * once);
    });
}

/// Updates of view models, from few clients, as fast as the node takes them.
fn message_flood(scale: Scale) {
    let (clients, many) = (10, scale.of(4000));
    let arena = Setup::new("a flood of messages", scale).places(clients).open();
    arena.withstands(&["messages waiting for lanes", "lane send queues"], |arena| {
        thread::scope(|scope| {
            for number in 0..clients {
                scope.spawn(move || {
                    let mut socket = client(arena, number);
                    socket.send(&request("BurstVM", "{}"));
                    socket.response("a state", |data| data.get("Echo").is_some());
                    let mut writer = socket.stream.try_clone().expect("a descriptor is free");
                    let flood = thread::spawn(move || {
                        for n in 0..many {
                            writer.write_all(&update("BurstVM", &format!("{{\"Send\":{n}}}"))).expect("it is taken");
                        }
                    });
                    // Even of a flood nothing is lost or reordered.
                    for n in 0..many {
                        let echo = socket.response("an echo", |data| data.get("Echo").is_some());
                        assert_eq!(echo["Echo"], n);
                    }
                    flood.join().expect("it writes");
                });
            }
        });
    });
}

/// The same floods against a node that reads nobody faster than it is told to: those who flood wait, and nobody is cut off for it.
fn paced_floods(scale: Scale) {
    let (clients, rate, burst) = (20, 200, 400);
    let limits = ["--client-message-rate", "200", "--client-message-burst", "400"];
    let arena = Setup::new("floods that are paced", scale).places(clients).flags(&limits).open();
    arena.withstands(&["messages in pieces"], |arena| {
        let ping = record(r#"{"type":6}"#).repeat(1000);
        let floods: Vec<_> = (0..clients).map(|number| upgraded(arena.dial_to_reset(number)).shaken()).collect();
        let began = Instant::now();
        for socket in &floods {
            let mut writer = socket.stream.try_clone().expect("a descriptor is free");
            writer.set_write_timeout(Some(scale.watch)).expect("a timeout can be set");
            let ping = ping.clone();
            // Until the kernel's buffers are full, and then at the node's pace.
            thread::spawn(move || while writer.write_all(&ping).is_ok() {});
        }
        thread::sleep(scale.watch * 2);
        let read = arena.rise("client_messages", "ping");
        let most = clients as f64 * (burst as f64 + rate as f64 * began.elapsed().as_secs_f64());
        // What one receive brings beyond the burst is read too; its length is a receive buffer's.
        let surplus = (clients * 4096 / 18) as f64;
        assert!(read <= most + surplus, "{read} messages of {clients} clients in {:?}", began.elapsed());
        assert!(read >= clients as f64 * burst as f64, "{read} messages are fewer than the burst");
        assert!(arena.rise("read_pauses", "message_rate") >= clients as f64);
        assert_eq!(arena.rise("client_ends", ""), 0.0, "a flood alone ends nobody");
        // They are gone by a reset; of who closes in order, what it has said before is still read, at the same pace.
        drop(floods);
    });
}

// ---- Clients that do not read ---------------------------------------------------------------------------------------

/// Members of a chat room that never read; who does read in the same room hears everything in order.
fn never_reads_a_broadcast(scale: Scale) {
    let (silent, listeners, messages) = (scale.of(200), 10, 200);
    let bounds = ["--client-send-queue-bytes", "32KiB", "--client-send-buffer-bytes", "4KiB"];
    let arena =
        Setup::new("a broadcast that is never read", scale).places(silent + listeners + 1).flags(&bounds).open();
    arena.withstands(&["client send queues"], |arena| {
        let join = request("ChatRoomVM", r#"{"ChatRoom":"Square"}"#);
        let enter = |mut socket: Socket| {
            socket.send(&join);
            socket.response("the room", |data| data.get("Messages").is_some());
            socket
        };
        let mut speaker = enter(client(arena, 0));
        drain(&speaker.stream);
        let listening: Vec<_> = (0..listeners)
            .map(|number| {
                let mut socket = enter(client(arena, 1 + number));
                thread::spawn(move || {
                    for n in 0..messages {
                        let data = socket.response("a message", |data| data.get("Messages_add").is_some());
                        assert_eq!(data["Messages_add"]["MessageId"], n, "nothing is lost or reordered");
                    }
                })
            })
            .collect();
        let _silent: Vec<_> =
            (0..silent).map(|number| enter(upgraded(arena.dial_narrow(20 + number)).shaken())).collect();
        for n in 0..messages {
            let text = "x".repeat(4000);
            speaker
                .send(&update("ChatRoomVM", &format!("{{\"SendMessage\":{{\"MessageId\":{n},\"Text\":\"{text}\"}}}}")));
            thread::sleep(Duration::from_millis(10));
        }
        listening.into_iter().for_each(|listener| listener.join().expect("it heard everything"));
        arena.rises("client_ends", "slow_client", silent);
        let _ = speaker.stream.shutdown(std::net::Shutdown::Both);
    });
}

/// Clients that ask and ask and never read an answer.
fn asks_and_never_reads(scale: Scale) {
    let count = scale.of(100);
    let bounds = ["--client-send-queue-bytes", "64KiB"];
    let arena = Setup::new("asks and never reads", scale).places(count).flags(&bounds).open();
    arena.withstands(&["client send queues", "messages in pieces"], |arena| {
        let questions: Vec<u8> = (0..1000).flat_map(nobody).collect();
        thread::scope(|scope| {
            for part in 0..4 {
                let questions = &questions;
                scope.spawn(move || {
                    for number in (part..count).step_by(4) {
                        let mut socket = upgraded(arena.dial_narrow(number)).shaken();
                        socket.stream.set_write_timeout(Some(PATIENCE)).expect("a timeout can be set");
                        let began = Instant::now();
                        while socket.stream.write_all(questions).is_ok() {
                            assert!(began.elapsed() < PATIENCE, "it may ask for ever");
                        }
                    }
                });
            }
        });
        arena.rises("client_ends", "slow_client", count);
    });
}

/// Clients that take nothing and are told too little to fill a queue: their time is bounded as well.
fn takes_nothing(scale: Scale) {
    let count = scale.of(200);
    let bounds = ["--client-send-queue-time", "1s", "--client-send-buffer-bytes", "4KiB"];
    let arena = Setup::new("takes nothing", scale).places(count).flags(&bounds).open();
    arena.withstands(&["client send queues"], |arena| {
        // More than the kernels of both sides hold, less than a queue.
        let questions: Vec<u8> = (0..1200).flat_map(nobody).collect();
        let mut sockets: Vec<_> = (0..count).map(|number| upgraded(arena.dial_narrow(number)).shaken()).collect();
        sockets.iter_mut().for_each(|socket| socket.send(&questions));
        arena.rises("client_ends", "stalled_client", count);
    });
}

// ---- App servers gone mad -------------------------------------------------------------------------------------------

/// An upstream of its own, for whoever asks for `EvilVM`.
fn mad_upstream(fake: &Fake) -> String {
    format!("[[upstream]]\nname = \"mad\"\nurl = \"{}\"\nfilter = \"vm_id == 'EvilVM'\"\n", fake.url())
}

const MAD_LANES: usize = 5;
/// An origin id that no node gives out.
const NOBODY: &str = "AAAAAAAAAAAAAAAAAAAAAA";

/// An app server that answers with garbage of every kind: that lane ends and is dialled again, or the message is passed over.
fn garbage_lane(scale: Scale) {
    let fake = Fake::start();
    let arena = Setup::new("a lane that answers garbage", scale).places(10).upstreams(&mad_upstream(&fake)).open();
    arena.withstands(&["lane messages in pieces"], |arena| {
        let text = |text: String| unmasked(FIN | TEXT, text.as_bytes());
        let fatal = [
            b"HTTP/1.1 500 Internal Server Error\r\n\r\n".to_vec(),
            frame(FIN | TEXT, b"{\"type\":6}\x1e"),
            unmasked(FIN | 3, b"x"),
            unmasked(FIN | TEXT, b"\xff\x1e"),
            text("{\u{1e}".into()),
            text("\u{1e}\u{1e}\u{1e}".into()),
            text(format!("{{\"type\":1,\"target\":\"Response_VM\",\"arguments\":{}\u{1e}", "[".repeat(100_000))),
            [&header(FIN | TEXT, 0, 1 << 62)[..], &[b'x'; 100_000]].concat(),
        ];
        for (rounds, garbage) in fatal.iter().cycle().take(fatal.len().max(scale.of(24))).enumerate() {
            let lanes = wait_for("all lanes", PATIENCE, || Some(fake.lanes()).filter(|lanes| lanes.len() == MAD_LANES));
            fake.send_bytes(lanes[0], garbage).expect("the lane is up");
            wait_for("that lane's end", PATIENCE, || (!fake.lanes().contains(&lanes[0])).then_some(()));
            arena.rises("lane_events", "lost", rounds + 1);
        }
        let lost = arena.rise("lane_events", "lost");
        // Sixteen megabytes without the end of a record.
        let lane = fake.has_lanes(MAD_LANES)[0];
        let piece = unmasked(CONTINUATION, &[b'x'; 64 * 1024]);
        let endless = std::iter::once(unmasked(TEXT, b"x")).chain(std::iter::repeat(piece));
        let _ = endless.take(300).try_for_each(|piece| fake.send_bytes(lane, &piece));
        wait_for("that lane's end", PATIENCE, || (!fake.lanes().contains(&lane)).then_some(()));
        fake.has_lanes(MAD_LANES);
        // Messages that mean nothing end no lane.
        let lane = fake.lanes()[0];
        let odd = [
            json!({ "type": 1, "target": "Response_VM", "arguments": [["Nonsense", [], null]] }),
            json!({ "type": 1, "target": "Response_VM", "arguments": [5] }),
            json!({ "type": 1, "target": "Response_VM", "arguments": [] }),
            json!({ "type": 1, "target": "Request_VM", "arguments": ["EvilVM", {}] }),
            json!({ "type": 1, "target": "Response_VM", "arguments": [["SendAsync", 5, { "$fwdConnId": "x" }]] }),
            json!({ "type": 1, "target": "Response_VM", "arguments": [["SendAsync", ["a", "{}"], { "$fwdConnId": 5 }]] }),
            json!({ "type": 77 }),
        ];
        odd.iter().for_each(|record| fake.send_record(lane, record));
        // ... nor do those for clients that nobody knows.
        fake.send(lane, "SendAsync", json!(["EvilVM", "{}"]), json!(NOBODY));
        wait_for("them to be counted", PATIENCE, || (arena.rise("drops", "unknown_client") > 0.0).then_some(()));
        assert_eq!(arena.rise("lane_events", "lost"), lost + 1.0);
    });
}

/// An app server that talks without end, on all its lanes: to a client that reads, to nobody, to groups; and puts that client in every group.
fn flooding_lane(scale: Scale) {
    let fake = Fake::start();
    let arena = Setup::new("a lane that floods", scale).places(10).upstreams(&mad_upstream(&fake)).open();
    arena.withstands(&["lane messages in pieces", "client send queues", "many groups"], |arena| {
        fake.has_lanes(MAD_LANES);
        let mut victim = client(arena, 0);
        victim.send(&request("EvilVM", "{}"));
        let heard = fake.hears(&["Request_VM EvilVM"]).remove(0);
        let (origin, own_lane) = (heard.origin(), heard.lane);
        let drained = drain(&victim.stream);
        for group in 0..1500 {
            fake.send(own_lane, "AddToGroupAsync", json!([format!("group {group}")]), json!(origin));
        }
        let floods = [
            json!([["SendAsync", ["EvilVM", "{\"x\":1}"], { "$fwdConnId": origin }]]),
            json!([["SendAsync", ["EvilVM", "{\"x\":1}"], { "$fwdConnId": NOBODY }]]),
            json!([["SendToGroupAsync", ["group 7", "EvilVM", "{\"x\":1}"], null]]),
            json!([["SendToGroupAsync", ["no group", "EvilVM", "{\"x\":1}"], null]]),
        ];
        let until = Instant::now() + scale.watch * 2;
        thread::scope(|scope| {
            for lane in fake.lanes() {
                let (fake, kinds) = (&fake, if lane == own_lane { &floods[..] } else { &floods[1..] });
                let records = kinds.iter().map(|arguments| {
                    json!({ "type": 1, "target": "Response_VM", "arguments": arguments }).to_string() + "\u{1e}"
                });
                let chunk = unmasked(FIN | TEXT, records.collect::<String>().as_bytes()).repeat(200);
                scope.spawn(move || while Instant::now() < until && fake.send_bytes(lane, &chunk).is_ok() {});
            }
        });
        let _ = victim.stream.shutdown(std::net::Shutdown::Both);
        assert!(drained.join().expect("it reads") > 0);
        wait_for("joins over the bound to be dropped", PATIENCE, || {
            (arena.rise("drops", "too_many_groups") >= 1500.0 - 1024.0).then_some(())
        });
        assert_eq!(arena.rise("lane_events", "lost"), 0.0, "a talkative app server is one all the same");
    });
}

// ---- Both sizes -----------------------------------------------------------------------------------------------------

macro_rules! attacks {
    ($($name:ident)*) => {
        $(
            #[test]
            #[ignore = "a thousand good clients; run: cargo test --release --test attacks -- --ignored --nocapture"]
            fn $name() {
                super::$name(super::Scale::FULL);
            }
        )*
    };
}

mod a_thousand_good_clients {
    attacks! {
        slow_heads silent_connections churn negotiate_flood descriptors_exhausted giant_fragments deep_json large_cookies garbage_frames
        odd_calls ping_flood nonsense_flood message_flood paced_floods takes_nothing one_address never_reads_a_broadcast asks_and_never_reads garbage_lane flooding_lane
    }
}

macro_rules! small_attacks {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                super::$name(super::Scale::QUICK);
            }
        )*
    };
}

/// Some of each kind, to be run with all other tests; each takes some seconds.
mod a_hundred_good_clients {
    small_attacks! {
        silent_connections descriptors_exhausted garbage_frames never_reads_a_broadcast
    }
}
