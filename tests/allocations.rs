//! A forwarded Update_VM and its response allocate nothing on the shard's thread, once everything has been used once.
//!
//! The node runs in this process, so that its allocator can be this test's: it counts by thread.
#![allow(unsafe_code)] // The trait of an allocator is unsafe to implement; nothing else here is.

mod common;

use common::ws::{Socket, record};
use common::{App, wait_for};
use signalring::config::{Config, Key, Machine, RunFlags};
use signalring::control::Node;
use std::alloc::{GlobalAlloc, Layout, System};
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

#[test]
fn a_forwarded_update_and_its_response_allocate_nothing() {
    let app = App::start();
    let flags = RunFlags::default()
        .with(Key::Listen, "127.0.0.1:0")
        .with(Key::Admin, "127.0.0.1:0")
        .with(Key::Shards, "1")
        .with(Key::Url, app.url());
    let config = Config::resolve(None, std::iter::empty(), &flags, &Machine::probe()).expect("a valid configuration");
    let node = Node::start(config).expect("a node");
    wait_for("the node to be ready", common::PATIENCE, || {
        (common::get(node.admin(), "/ready").status == 200).then_some(())
    });

    let mut client = Socket::connect(common::address(&node.listening()[0].to_string()));
    client.send(&record(
        r#"{"type":1,"target":"Request_VM","arguments":["HelloWorldVM",{"$vmArg":{"TickInterval":0}}]}"#,
    ));
    client.response("the state", |data| data.get("FullName").is_some());
    let round = |client: &mut Socket, n: u32| {
        let name = format!("N{n:05}");
        client.send(&record(&format!(
            r#"{{"arguments":["HelloWorldVM",{{"FirstName":"{name}"}}],"invocationId":"{n}","target":"Update_VM","type":1}}"#
        )));
        let full = format!("{name} World");
        client.response("the new name", |data| data["FullName"] == full.as_str());
    };
    for n in 0..200 {
        round(&mut client, n);
    }

    WATCHED.store(thread_named("shard-0"), Relaxed);
    for n in 200..1200 {
        round(&mut client, n);
    }
    WATCHED.store(0, Relaxed);
    assert_eq!(ALLOCATIONS.swap(0, Relaxed), 0, "allocations on the shard's thread for 1000 updates and responses");

    // The counter does count: a new connection needs memory.
    WATCHED.store(thread_named("shard-0"), Relaxed);
    let mut second = Socket::connect(common::address(&node.listening()[0].to_string()));
    round_trip_of_a_ping(&mut second);
    WATCHED.store(0, Relaxed);
    assert!(ALLOCATIONS.load(Relaxed) > 0, "a new client allocates, and this test would see it");
    drop((client, second));
    node.stop();
    wait_for("the app server to forget the client", Duration::from_secs(10), || {
        (app.figure("bindings") == 0).then_some(())
    });
}

fn round_trip_of_a_ping(client: &mut Socket) {
    client.send(&common::ws::frame(common::ws::FIN | common::ws::PING, b"?"));
    let frame = client.frame("a pong");
    assert_eq!(frame.opcode(), common::ws::PONG);
}
