//! What tests with fake app servers say to a node, and how they start one in front of several upstreams.
#![allow(dead_code)] // Each test binary uses its part.

use super::fake::{Fake, Heard};
use super::ws::{self, CLOSE, FIN, Socket, frame, record};
use super::{Node, PATIENCE, wait_for};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// An `[[upstream]]` of the configuration.
pub fn upstream(name: &str, url: &str, more: &str) -> String {
    format!("[[upstream]]\nname = \"{name}\"\nurl = \"{url}\"\n{more}\n")
}

/// One shard, unless the lines say otherwise; waits for all lanes of these app servers.
pub fn start(before: &str, upstreams: &[String], lanes: usize) -> Node {
    let shards = if before.contains("shards") { "" } else { "shards = 1\n" };
    let node = Node::configured(&format!("{shards}{before}\n{}", upstreams.concat()));
    let up = || node.metric_where("signalring_lanes", "state=\"up\"");
    wait_for("lanes", PATIENCE, || (up() >= lanes as f64).then_some(()));
    node
}

/// A call of a hub method with these arguments, as JSON.
pub fn call(method: &str, arguments: &str) -> Vec<u8> {
    record(&format!(r#"{{"type":1,"target":"{method}","arguments":[{arguments}]}}"#))
}

pub fn request(vm: &str) -> Vec<u8> {
    call("Request_VM", &format!("{},null", json!(vm)))
}

pub fn update(vm: &str, data: &str) -> Vec<u8> {
    call("Update_VM", &format!("{},{data}", json!(vm)))
}

pub fn dispose(vm: &str) -> Vec<u8> {
    call("Dispose_VM", &json!(vm).to_string())
}

/// Says goodbye and waits for the node's.
pub fn leave(mut client: Socket) {
    client.send(&frame(FIN | CLOSE, &ws::close_payload(1000, "")));
    client.closed("goodbye");
}

/// The next `Response_VM`: view model and data.
pub fn response(client: &mut Socket) -> (String, String) {
    let record = client.record("a response");
    assert_eq!(record["target"], "Response_VM", "{record}");
    let part = |index: usize| record["arguments"][0][index].as_str().expect("text").to_string();
    (part(0), part(1))
}

/// Whom these messages are of.
pub fn origins_of(heard: &[Heard]) -> BTreeSet<String> {
    heard.iter().map(Heard::origin).collect()
}

/// Nothing but pings for a while.
pub fn is_quiet(client: &mut Socket, time: Duration) {
    client.send(&frame(FIN | ws::PING, b"quiet?"));
    std::thread::sleep(time);
    client.send(&frame(FIN | ws::PING, b"quiet."));
    loop {
        let frame = client.frame("a pong");
        if frame.opcode() == ws::PONG && frame.payload == b"quiet." {
            return;
        }
        let is_ping = frame.payload == b"{\"type\":6}\x1e";
        assert!(frame.opcode() == ws::PONG || is_ping, "{:?}", String::from_utf8_lossy(&frame.payload));
    }
}

pub fn counts(node: &Node, family: &str, labels: &str, count: usize) {
    let family = format!("signalring_{family}");
    let mut last = 0.0;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        last = node.metric_where(&family, labels);
        if last == count as f64 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{family}{{{labels}}} is {last} and should be {count}");
}

pub fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A client that has requested these view models; its origin id.
pub fn requested(node: &Node, headers: &str, vms: &[(&str, &Fake)]) -> (Socket, String) {
    let mut client =
        Socket::upgrade(node.address, "/dotnetify", headers).unwrap_or_else(|reply| panic!("{}", reply.text));
    client.send(&record(r#"{"protocol":"json","version":1}"#));
    client.frame("the handshake's answer");
    let mut origin = String::new();
    for (vm, fake) in vms {
        client.send(&request(vm));
        origin = fake.hears(&[&format!("Request_VM {vm}")])[0].origin();
    }
    (client, origin)
}
