//! An app server that does nothing by itself but acknowledge: it takes lanes, keeps every record with the number of the lane that carried
//! it, and sends what a test tells it to. Independent of the node's own codecs.
#![allow(dead_code)] // Each test binary uses its part.

use super::ws::{BINARY, CLOSE, FIN, PING, PONG, TEXT, unmasked};
use super::{PATIENCE, wait_for};
use base64::Engine;
use serde_json::{Map, Value, json};
use sha1::{Digest, Sha1};
use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// RFC 6455 section 1.3.
const ACCEPT_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

pub struct Fake {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    lanes: Mutex<Vec<Lane>>,
    heard: Mutex<Vec<Heard>>,
    /// Ids whose end it has heard, and of each how often since: after the loss of a lane a node tells of ends twice more, some day.
    ended: Mutex<HashMap<String, u32>>,
    /// False: lanes are left unread, and the kernel's buffers fill up.
    reads: AtomicBool,
    /// False: invocations are heard and not acknowledged.
    acknowledges: AtomicBool,
    /// Lanes on which nothing is acknowledged whatever holds for others.
    stuck: Mutex<HashSet<usize>>,
    /// View models whose request ends the lane that it comes on.
    deadly: Mutex<HashSet<String>>,
    /// False: connections are taken, and wait.
    open: AtomicBool,
    /// Milliseconds that lane 0 takes for each record.
    slowness: AtomicU64,
}

struct Lane {
    stream: TcpStream,
    is_alive: bool,
}

/// One `Invoke`.
#[derive(Clone, Debug)]
pub struct Heard {
    pub lane: usize,
    /// Without framing.
    pub bytes: Vec<u8>,
    pub message: Value,
    pub at: SystemTime,
}

impl Heard {
    pub fn method(&self) -> &str {
        self.message["arguments"][0].as_str().expect("a method")
    }
    /// Of a call of a view model.
    pub fn vm(&self) -> &str {
        self.message["arguments"][1][0].as_str().unwrap_or_default()
    }
    /// Its argument, as text.
    pub fn argument(&self) -> &Value {
        &self.message["arguments"][1][1]
    }
    pub fn metadata(&self) -> &Value {
        &self.message["arguments"][2]
    }
    pub fn context(&self) -> Value {
        let text = self.metadata()["$fwdConnContext"].as_str().unwrap_or_else(|| panic!("no context: {self:?}"));
        serde_json::from_str(text).expect("a context is JSON")
    }
    pub fn origin(&self) -> String {
        self.context()["ConnectionId"].as_str().expect("an id").into()
    }
    pub fn hub_id(&self) -> String {
        self.context()["HubId"].as_str().expect("an id").into()
    }
    /// `Request_VM HelloWorldVM`
    pub fn line(&self) -> String {
        format!("{} {}", self.method(), self.vm()).trim().into()
    }
    pub fn is_telemetry(&self) -> bool {
        self.method() == "ReceiveTelemetry"
    }
}

impl Fake {
    pub fn start() -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            lanes: Mutex::default(),
            heard: Mutex::default(),
            ended: Mutex::default(),
            reads: AtomicBool::new(true),
            acknowledges: AtomicBool::new(true),
            stuck: Mutex::default(),
            deadly: Mutex::default(),
            open: AtomicBool::new(true),
            slowness: AtomicU64::new(0),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = accepting.clone();
                let Ok(stream) = stream else { return };
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Fake { address, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every record so far but pings, in the order of arrival; without telemetry.
    pub fn heard(&self) -> Vec<Heard> {
        let heard = self.shared.heard.lock().expect("no lane panicked");
        heard.iter().filter(|heard| !heard.is_telemetry()).cloned().collect()
    }

    /// Ids whose end it has heard more than once. The first time only is among what it has `heard`.
    pub fn told_again(&self) -> Vec<String> {
        let ended = self.shared.ended.lock().expect("no lane panicked");
        ended.iter().filter(|(_, again)| **again > 0).map(|(origin, _)| origin.clone()).collect()
    }

    pub fn telemetry(&self) -> Vec<Heard> {
        let heard = self.shared.heard.lock().expect("no lane panicked");
        heard.iter().filter(|heard| heard.is_telemetry()).cloned().collect()
    }

    pub fn lines(&self) -> Vec<String> {
        self.heard().iter().map(Heard::line).collect()
    }

    /// Waits until this was heard, all of it and nothing else; then forgets it.
    pub fn hears(&self, lines: &[&str]) -> Vec<Heard> {
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.heard().len() < lines.len() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.lines(), lines, "at {}", self.address);
        let heard = self.heard();
        self.forget();
        heard
    }

    /// Waits for so many records.
    pub fn hears_so_many(&self, count: usize) -> Vec<Heard> {
        wait_for(&format!("{count} records, there are {}", self.heard().len()), PATIENCE, || {
            (self.heard().len() >= count).then(|| self.heard())
        })
    }

    pub fn forget(&self) {
        self.shared.heard.lock().expect("no lane panicked").clear();
    }

    /// Numbers of the lanes that are up.
    pub fn lanes(&self) -> Vec<usize> {
        let lanes = self.shared.lanes.lock().expect("no lane panicked");
        (0..lanes.len()).filter(|index| lanes[*index].is_alive).collect()
    }

    /// Waits for so many lanes.
    pub fn has_lanes(&self, count: usize) -> Vec<usize> {
        wait_for(&format!("{count} lanes"), PATIENCE, || (self.lanes().len() == count).then(|| self.lanes()))
    }

    /// Sends `Response_VM [method, arguments, metadata]` on a JSON lane.
    pub fn send(&self, lane: usize, method: &str, arguments: Value, to: Value) {
        let metadata = if to.is_null() { Value::Null } else { json!({ "$fwdConnId": to }) };
        let record = json!({ "type": 1, "target": "Response_VM", "arguments": [[method, arguments, metadata]] });
        self.send_record(lane, &record);
    }

    pub fn send_record(&self, lane: usize, record: &Value) {
        let mut lanes = self.shared.lanes.lock().expect("no lane panicked");
        let bytes = unmasked(FIN | TEXT, format!("{record}\u{1e}").as_bytes());
        lanes[lane].stream.write_all(&bytes).expect("the lane is up");
    }

    /// Bytes of any kind on a lane. Nothing of its own comes between them.
    pub fn send_bytes(&self, lane: usize, bytes: &[u8]) -> std::io::Result<()> {
        self.shared.lanes.lock().expect("no lane panicked")[lane].stream.write_all(bytes)
    }

    /// Cuts a lane as a lost network would.
    pub fn cut(&self, lane: usize) {
        let _ = self.shared.lanes.lock().expect("no lane panicked")[lane].stream.shutdown(Shutdown::Both);
    }

    pub fn cut_all(&self) {
        self.lanes().into_iter().for_each(|lane| self.cut(lane));
    }

    /// Answers who connects, or lets them wait until it does.
    pub fn opens(&self, open: bool) {
        self.shared.open.store(open, SeqCst);
    }

    /// Reads from its lanes, or does not.
    pub fn reads(&self, reads: bool) {
        self.shared.reads.store(reads, SeqCst);
    }

    /// Acknowledges invocations from now on, or does not.
    pub fn acknowledges(&self, acknowledges: bool) {
        self.shared.acknowledges.store(acknowledges, SeqCst);
    }

    /// Hears what comes on this lane from now on, and acknowledges nothing of it.
    pub fn sticks(&self, lane: usize) {
        self.shared.stuck.lock().expect("no lane panicked").insert(lane);
    }

    /// Drops from now on whatever lane this view model is requested on.
    pub fn dies_of(&self, vm: &str) {
        self.shared.deadly.lock().expect("no lane panicked").insert(vm.into());
    }

    /// Acknowledges again what comes on this lane from now on.
    pub fn frees(&self, lane: usize) {
        self.shared.stuck.lock().expect("no lane panicked").remove(&lane);
    }

    /// Acknowledges one invocation on a JSON lane, or says what it failed with.
    pub fn completes(&self, heard: &Heard, error: Option<&str>) {
        let mut record = json!({ "type": 3, "invocationId": heard.message["invocationId"] });
        record[if error.is_some() { "error" } else { "result" }] = json!(error);
        self.send_record(heard.lane, &record);
    }

    /// Lane 0 takes so long for each record, as an app server does whose view model is slow.
    pub fn is_slow(&self, time: Duration) {
        self.shared.slowness.store(time.as_millis() as u64, SeqCst);
    }
}

impl Shared {
    fn acknowledges(&self, lane: usize) -> bool {
        self.acknowledges.load(SeqCst) && !self.stuck.lock().expect("no other lane panicked").contains(&lane)
    }

    fn is_deadly(&self, vm: &str) -> bool {
        self.deadly.lock().expect("no other lane panicked").contains(vm)
    }

    fn is_repeated_end(&self, heard: &Heard) -> bool {
        if heard.method() != "OnDisconnectedAsync" {
            return false;
        }
        let mut ended = self.ended.lock().expect("no other lane panicked");
        let mut is_repeated = false;
        ended.entry(heard.origin()).and_modify(|again| (*again, is_repeated) = (*again + 1, true)).or_default();
        is_repeated
    }
}

fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// Answers a negotiate, or becomes a lane.
fn serve(mut stream: TcpStream, shared: &Shared) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    while !shared.open.load(SeqCst) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let head = head(&mut stream)?;
    if head.starts_with("POST") {
        let body = r#"{"negotiateVersion":1,"connectionId":"i","connectionToken":"t","availableTransports":[{"transport":"WebSockets","transferFormats":["Text","Binary"]}]}"#;
        return write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).ok();
    }
    let (_, key) = head.split_once("Sec-WebSocket-Key: ")?;
    let digest = Sha1::digest(format!("{}{ACCEPT_SUFFIX}", key.lines().next()?));
    let accept = base64::engine::general_purpose::STANDARD.encode(digest);
    write!(
        stream,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )
    .ok()?;
    let (mut buffer, mut chunk, mut number, mut is_binary) = (Vec::new(), vec![0; 64 * 1024], None, false);
    let mut gathered = Vec::new();
    loop {
        while let Some((first, payload, length)) = frame(&buffer) {
            buffer.drain(..length);
            match first & 0x0f {
                CLOSE => {
                    let _ = stream.write_all(&unmasked(FIN | CLOSE, &payload));
                    let _ = stream.shutdown(Shutdown::Both);
                }
                PING => stream.write_all(&unmasked(FIN | PONG, &payload)).ok()?,
                _ => gathered.extend_from_slice(&payload),
            }
            while let Some(record) = cut_record(&mut gathered, is_binary && number.is_some()) {
                let Some(lane) = number else {
                    // The handshake, which is JSON whatever comes after it.
                    is_binary = String::from_utf8_lossy(&record).contains("messagepack");
                    let mut lanes = shared.lanes.lock().expect("no other lane panicked");
                    stream.write_all(&unmasked(FIN | if is_binary { BINARY } else { TEXT }, b"{}\x1e")).ok()?;
                    number = Some(lanes.len());
                    lanes.push(Lane { stream: stream.try_clone().ok()?, is_alive: true });
                    continue;
                };
                let message = if is_binary { invocation(&record) } else { serde_json::from_slice(&record).ok()? };
                if message["type"] == 6 {
                    let ping = if is_binary {
                        unmasked(FIN | BINARY, b"\x02\x91\x06")
                    } else {
                        unmasked(FIN | TEXT, b"{\"type\":6}\x1e")
                    };
                    stream.write_all(&ping).ok()?;
                } else if message["type"] == 1 {
                    if lane == 0 {
                        std::thread::sleep(Duration::from_millis(shared.slowness.load(SeqCst)));
                    }
                    let id = message["invocationId"].as_str().map(str::to_string);
                    let heard = Heard { lane, bytes: record, message, at: SystemTime::now() };
                    if heard.method() == "Request_VM" && shared.is_deadly(heard.vm()) {
                        shared.lanes.lock().expect("no other lane panicked")[lane].is_alive = false;
                        return stream.shutdown(Shutdown::Both).ok();
                    }
                    if !shared.is_repeated_end(&heard) {
                        shared.heard.lock().expect("no other lane panicked").push(heard);
                    }
                    if let Some(id) = id.filter(|_| shared.acknowledges(lane)) {
                        let mut lanes = shared.lanes.lock().expect("no other lane panicked");
                        lanes[lane].stream.write_all(&completion(&id, is_binary)).ok()?;
                    }
                }
            }
        }
        while !shared.reads.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        match stream.read(&mut chunk) {
            Ok(count @ 1..) => buffer.extend_from_slice(&chunk[..count]),
            _ => break,
        }
    }
    if let Some(lane) = number {
        shared.lanes.lock().expect("no other lane panicked")[lane].is_alive = false;
    }
    Some(())
}

fn completion(id: &str, is_binary: bool) -> Vec<u8> {
    if !is_binary {
        let record = json!({ "type": 3, "invocationId": id, "result": null });
        return unmasked(FIN | TEXT, format!("{record}\u{1e}").as_bytes());
    }
    // [3, {}, id, 3, nil]
    let mut body = vec![0x95, 3, 0x80, 0xa0 + id.len() as u8];
    body.extend_from_slice(id.as_bytes());
    body.extend_from_slice(&[3, 0xc0]);
    body.insert(0, body.len() as u8);
    unmasked(FIN | BINARY, &body)
}

/// A masked frame, whole: its first byte, its payload, its length.
fn frame(buffer: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    let (&first, &second) = (buffer.first()?, buffer.get(1)?);
    assert_ne!(second & 0x80, 0, "RFC 6455 section 5.1: a client must mask");
    let (length, start) = match second & 0x7f {
        126 => (u16::from_be_bytes(buffer.get(2..4)?.try_into().ok()?) as usize, 4),
        127 => (u64::from_be_bytes(buffer.get(2..10)?.try_into().ok()?) as usize, 10),
        short => (short as usize, 2),
    };
    let mask = buffer.get(start..start + 4)?;
    let payload = buffer.get(start + 4..start + 4 + length)?;
    let payload = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    Some((first, payload, start + 4 + length))
}

/// The first whole record, without its framing.
fn cut_record(gathered: &mut Vec<u8>, is_binary: bool) -> Option<Vec<u8>> {
    if !is_binary {
        let end = gathered.iter().position(|byte| *byte == 0x1e)?;
        let mut record: Vec<u8> = gathered.drain(..=end).collect();
        record.pop();
        return Some(record);
    }
    let (mut length, mut prefix) = (0, 0);
    loop {
        let byte = *gathered.get(prefix)?;
        length |= usize::from(byte & 0x7f) << (7 * prefix);
        prefix += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    (gathered.len() >= prefix + length).then(|| gathered.drain(..prefix + length).skip(prefix).collect())
}

/// A MessagePack message by the names of JSON.
fn invocation(record: &[u8]) -> Value {
    let message = unpack(&mut &record[..]);
    json!({ "type": message[0], "invocationId": message[2], "target": message[3], "arguments": message[4] })
}

/// A MessagePack value as JSON.
pub fn unpack(bytes: &mut &[u8]) -> Value {
    let first = take(bytes, 1)[0];
    match first {
        0x00..=0x7f => json!(first),
        0x80..=0x8f => map(bytes, usize::from(first & 0x0f)),
        0x90..=0x9f => array(bytes, usize::from(first & 0x0f)),
        0xa0..=0xbf => text(bytes, usize::from(first & 0x1f)),
        0xc0 => Value::Null,
        0xc2 | 0xc3 => json!(first == 0xc3),
        0xcb => json!(f64::from_be_bytes(take(bytes, 8).try_into().expect("8 bytes"))),
        0xcc..=0xcf => json!(number(bytes, 1 << (first - 0xcc))),
        0xd9..=0xdb => {
            let length = number(bytes, 1 << (first - 0xd9));
            text(bytes, length as usize)
        }
        0xdc | 0xdd => {
            let length = number(bytes, 2 << (first - 0xdc));
            array(bytes, length as usize)
        }
        other => panic!("{other:#x} is not expected here"),
    }
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken
}

fn number(bytes: &mut &[u8], size: usize) -> u64 {
    take(bytes, size).iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn text(bytes: &mut &[u8], length: usize) -> Value {
    Value::String(String::from_utf8(take(bytes, length).to_vec()).expect("UTF-8"))
}

fn array(bytes: &mut &[u8], length: usize) -> Value {
    (0..length).map(|_| unpack(bytes)).collect()
}

fn map(bytes: &mut &[u8], length: usize) -> Value {
    let members = (0..length).map(|_| (unpack(bytes).as_str().expect("a name").to_string(), unpack(bytes)));
    Value::Object(members.collect::<Map<String, Value>>())
}
