//! A forwarded Update_VM and its response allocate nothing on the shard's thread, once everything has been used once: of clients of
//! both protocols over lanes of both, and over an event stream; with one upstream, and with several that filters choose from.
//!
//! The node runs in this process, so that its allocator can be this test's: it counts by thread.
#![allow(unsafe_code)] // The trait of an allocator is unsafe to implement; nothing else here is.

mod common;

use common::fake::Fake;
use common::web::{Events, NO_CLOCK, REQUEST, message_pack_call, update};
use common::ws::{BINARY, FIN, Socket, TEXT, frame, record};
use common::{App, wait_for};
use signalring::config::{Config, Key, Machine, RunFlags};
use signalring::control::Node;
use std::alloc::{GlobalAlloc, Layout, System};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

struct Counting;

/// The thread that is watched, by its kernel id; 0 for none.
static WATCHED: AtomicI32 = AtomicI32::new(0);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

impl Counting {
    fn count(&self) {
        // SAFETY: takes and returns plain integers.
        if WATCHED.load(Relaxed) != 0 && unsafe { libc::gettid() } == WATCHED.load(Relaxed) {
            ALLOCATIONS.fetch_add(1, Relaxed);
        }
    }
}

// SAFETY: everything is handed to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count();
        // SAFETY: the caller's promises are the system allocator's requirements.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; `pointer` came from `alloc` or `realloc`, which are the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Kernel id of the thread with this name.
fn thread_named(name: &str) -> i32 {
    std::fs::read_dir("/proc/self/task")
        .expect("this is Linux")
        .filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok())
        .find(|id: &i32| {
            std::fs::read_to_string(format!("/proc/self/task/{id}/comm")).is_ok_and(|comm| comm.trim() == name)
        })
        .unwrap_or_else(|| panic!("no thread is called {name}"))
}

/// Allocations on the shard's thread meanwhile.
fn counted(run: impl FnOnce()) -> u64 {
    ALLOCATIONS.store(0, Relaxed);
    WATCHED.store(thread_named("shard-0"), Relaxed);
    run();
    WATCHED.store(0, Relaxed);
    ALLOCATIONS.load(Relaxed)
}

/// Runs rounds until everything has been used once, then counts what a thousand more allocate.
fn allocates_nothing(what: &str, mut round: impl FnMut(u32)) {
    (0..200).for_each(&mut round);
    let allocations = counted(|| (200..1200).for_each(&mut round));
    // What happens once a second may have met a message for the first time only now, and made a buffer longer. Once.
    let again =
        if (1..10).contains(&allocations) { counted(|| (1200..2200).for_each(&mut round)) } else { allocations };
    assert_eq!(again, 0, "allocations on the shard's thread for 1000 times {what}, {allocations} before");
}

/// One after the other: a thread is found by its name.
#[test]
fn updates_and_deliveries_allocate_nothing() {
    for lanes in ["JSON", "MessagePack"] {
        let is_binary = lanes == "MessagePack";
        let app = if is_binary { App::start_with(&["--message-pack"]) } else { App::start() };
        let flags = RunFlags::default()
            .with(Key::Listen, "127.0.0.1:0")
            .with(Key::Admin, "127.0.0.1:0")
            .with(Key::Shards, "1")
            // Who is too fast is worth a log line, which takes memory.
            .with(Key::ClientMessageRate, "0")
            .with(Key::UseMessagePack, is_binary.to_string())
            .with(Key::Journal, env!("CARGO_TARGET_TMPDIR"))
            .with(Key::Url, app.url());
        let config =
            Config::resolve(None, std::iter::empty(), &flags, &Machine::probe()).expect("a valid configuration");
        let node = Node::start(config).expect("a node");
        wait_for("the node to be ready", common::PATIENCE, || {
            (common::get(node.admin(), "/ready").status == 200).then_some(())
        });
        let address = common::address(&node.listening()[0].to_string());
        json_client(lanes, address);
        message_pack_client(lanes, address);
        event_stream(lanes, address);
        assert_eq!(app.figure("message_pack_lanes") > 0, is_binary);

        // The counter does count: a new connection needs memory.
        let allocations = counted(|| round_trip_of_a_ping(&mut Socket::connect(address)));
        assert!(allocations > 0, "a new client allocates, and this test would see it");
        node.stop();
        wait_for("the app server to forget the clients", Duration::from_secs(10), || {
            (app.figure("bindings") == 0).then_some(())
        });
    }
    several_upstreams();
}

/// Filters on names and calls, a mirror and an Observer: updates of a view model that is live, and of one that nobody asked for, so that
/// the filters decide on each.
fn several_upstreams() {
    let (app, other, mirror, observer) = (App::start(), Fake::start(), Fake::start(), Fake::start());
    let file = format!(
        r#"
        listen = "127.0.0.1:0"
        admin = "127.0.0.1:0"
        shards = 1
        limits.client_message_rate = 0
        [[upstream]]
        name = "observer"
        kind = "observer"
        url = "{}"
        connection_pool_size = 1
        [[upstream]]
        name = "mirror"
        url = "{}"
        filter = 'call_type == "Update_VM" || vm_id.startsWith("Hello")'
        halt_pipeline = false
        connection_pool_size = 1
        [[upstream]]
        name = "other"
        url = "{}"
        filter = 'vm_id.startsWith("Chat") && call_type != "Dispose_VM"'
        connection_pool_size = 1
        [[upstream]]
        name = "app"
        url = "{}"
        filter = 'vm_id == "HelloWorldVM" || vm_id in ["A", "B"]'
        "#,
        observer.url(),
        mirror.url(),
        other.url(),
        app.url()
    );
    let config =
        Config::resolve(Some(("node.toml", &file)), std::iter::empty(), &RunFlags::default(), &Machine::probe());
    let node = Node::start(config.expect("a valid configuration")).expect("a node");
    for fake in [&other, &mirror, &observer] {
        fake.has_lanes(1);
    }
    wait_for("the node to be ready", common::PATIENCE, || {
        (common::get(node.admin(), "/ready").status == 200).then_some(())
    });
    let address = common::address(&node.listening()[0].to_string());
    json_client("JSON, of one of several upstreams,", address);
    message_pack_client("JSON, of one of several upstreams,", address);
    // Not live: its filter takes it by its name, every time.
    let mut client = Socket::connect(address);
    client.send(&frame(FIN | TEXT, REQUEST));
    client.response("the state", |data| data.get("FullName").is_some());
    allocates_nothing("an update that filters decide on", |n| {
        client.send(&record(r#"{"type":1,"target":"Update_VM","arguments":["ChatRoomVM",{}]}"#));
        client.send(&record(r#"{"type":1,"target":"Update_VM","arguments":["Nobody",{}]}"#));
        // Nobody answers it: what follows it is answered when it has been handled.
        let name = format!("N{n:05}");
        client.send(&record(&format!(
            r#"{{"type":1,"target":"Update_VM","arguments":["HelloWorldVM",{{"FirstName":"{name}"}}]}}"#
        )));
        let full = format!("{name} World");
        client.response("the new name", |data| data["FullName"] == full.as_str());
    });
    assert_eq!(other.hears_so_many(1200)[0].line(), "Update_VM ChatRoomVM");
    assert!(mirror.heard().len() > 3600 && observer.heard().len() > 3600);
    node.stop();
}

fn json_client(lanes: &str, address: SocketAddr) {
    let mut client = Socket::connect(address);
    client.send(&frame(FIN | TEXT, REQUEST));
    client.response("the state", |data| data.get("FullName").is_some());
    allocates_nothing(&format!("an update of a JSON client over {lanes} lanes"), |n| {
        let name = format!("N{n:05}");
        client.send(&record(&format!(
            r#"{{"arguments":["HelloWorldVM",{{"FirstName":"{name}"}}],"invocationId":"{n}","target":"Update_VM","type":1}}"#
        )));
        let full = format!("{name} World");
        client.response("the new name", |data| data["FullName"] == full.as_str());
    });
}

fn message_pack_client(lanes: &str, address: SocketAddr) {
    let mut client = Socket::open(address);
    client.send(&record(r#"{"protocol":"messagepack","version":1}"#));
    assert_eq!(client.frame("the handshake's answer").payload, b"{}\x1e");
    client.send(&frame(FIN | BINARY, &message_pack_call("Request_VM", NO_CLOCK, None)));
    hears(&mut client, "FullName");
    allocates_nothing(&format!("an update of a MessagePack client over {lanes} lanes"), |n| {
        let name = format!("N{n:05}");
        let change = [b"\x81\xa9FirstName\xa6", name.as_bytes()].concat();
        client.send(&frame(FIN | BINARY, &message_pack_call("Update_VM", &change, Some(&n.to_string()))));
        hears(&mut client, &format!("{name} World"));
    });
}

/// The next binary frame that contains these words.
fn hears(client: &mut Socket, words: &str) {
    loop {
        let frame = client.frame(words);
        assert_eq!(frame.opcode(), BINARY, "{frame:?}");
        if String::from_utf8_lossy(&frame.payload).contains(words) {
            return;
        }
    }
}

fn event_stream(lanes: &str, address: SocketAddr) {
    let mut client = Events::connect(address);
    client.post(REQUEST);
    client.stream.event_response("the state", |data| data.get("FullName").is_some());
    // Its updates come by POST, its answers as events.
    allocates_nothing(&format!("an update of a client over Server-Sent Events and {lanes} lanes"), |n| {
        let name = format!("N{n:05}");
        client.post(&update(&name));
        let full = format!("{name} World");
        client.stream.event_response("the new name", |data| data["FullName"] == full.as_str());
    });
}

fn round_trip_of_a_ping(client: &mut Socket) {
    client.send(&common::ws::frame(common::ws::FIN | common::ws::PING, b"?"));
    let frame = client.frame("a pong");
    assert_eq!(frame.opcode(), common::ws::PONG);
}
