//! An HTTP/1.1 client that sends exactly the bytes it is told to, over any kind of stream, and reads one answer, event or frame at a
//! time. Independent of the node's own codec.
#![allow(dead_code)] // Each test binary uses its part.

use super::PATIENCE;
use super::ws::{self, Frame, RECORD_END};
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Where bytes come from and go to.
pub trait Stream: Read + Write + Send {
    fn set_patience(&self, patience: Duration);
    /// Shuts our side.
    fn finish(&self);
}

impl Stream for TcpStream {
    fn set_patience(&self, patience: Duration) {
        self.set_read_timeout(Some(patience)).expect("a timeout can be set");
    }
    fn finish(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }
}

impl Stream for UnixStream {
    fn set_patience(&self, patience: Duration) {
        self.set_read_timeout(Some(patience)).expect("a timeout can be set");
    }
    fn finish(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }
}

impl<T: Stream> Stream for rustls::StreamOwned<rustls::ClientConnection, T> {
    fn set_patience(&self, patience: Duration) {
        self.sock.set_patience(patience);
    }
    fn finish(&self) {
        self.sock.finish();
    }
}

/// One answer, whole.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub status: u16,
    /// Status line and headers, without the blank line.
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// A header, by case-insensitive name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    /// The JSON records of the body, which must be whole.
    pub fn records(&self) -> Vec<Value> {
        records(self.text())
    }
}

/// The JSON messages of a text of whole records.
pub fn records(text: &str) -> Vec<Value> {
    assert!(text.is_empty() || text.ends_with(RECORD_END), "whole records: {text:?}");
    text.split_terminator(RECORD_END).map(|record| serde_json::from_str(record).expect("JSON")).collect()
}

/// The data of a `Response_VM`, None for other messages.
pub fn response_data(record: &Value) -> Option<Value> {
    (record["type"] == 1).then(|| {
        assert_eq!(record["target"], "Response_VM", "{record}");
        let text = record["arguments"][0][1].as_str().expect("the data is JSON text in a string");
        serde_json::from_str(text).expect("the data is JSON")
    })
}

/// One connection.
pub struct Web {
    pub stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    host: String,
}

impl Web {
    pub fn connect(address: SocketAddr) -> Web {
        let stream = TcpStream::connect(address).expect("the listener accepts");
        stream.set_nodelay(true).expect("TCP_NODELAY can be set");
        Web::over(Box::new(stream), &address.to_string())
    }

    pub fn over(stream: Box<dyn Stream>, host: &str) -> Web {
        Web { stream, buffer: Vec::new(), host: host.into() }
    }

    /// `line` without the version; `headers` each with its end.
    pub fn request(&self, line: &str, headers: &str, body: &[u8]) -> Vec<u8> {
        let length = match (line.starts_with("POST"), body.len()) {
            (false, 0) => String::new(),
            (_, length) => format!("Content-Length: {length}\r\n"),
        };
        let mut bytes = format!("{line} HTTP/1.1\r\nHost: {}\r\n{headers}{length}\r\n", self.host).into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }

    pub fn send(&mut self, bytes: &[u8]) {
        // A node that has refused may have closed; what it said is read afterwards.
        let _ = self.stream.write_all(bytes);
        let _ = self.stream.flush();
    }

    pub fn ask(&mut self, line: &str, headers: &str, body: &[u8]) -> Answer {
        self.send(&self.request(line, headers, body));
        self.answer(line)
    }

    pub fn answer(&mut self, what: &str) -> Answer {
        let head = self.until(b"\r\n\r\n", what);
        let head = String::from_utf8(head).expect("heads are text").trim_end_matches("\r\n").to_string();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
        let mut answer = Answer { status, head, body: Vec::new() };
        if let Some(length) = answer.header("content-length") {
            let length: usize = length.parse().expect("a length");
            answer.body = self.bytes(length, what);
        }
        answer
    }

    /// The payload of the next event (reference 8), which has one line.
    pub fn event(&mut self, what: &str) -> String {
        let event = String::from_utf8(self.until(b"\r\n\r\n", what)).expect("events are text");
        let payload = event.strip_prefix("data: ").and_then(|rest| rest.strip_suffix("\r\n\r\n"));
        payload.unwrap_or_else(|| panic!("{what}: no event of one line: {event:?}")).to_string()
    }

    /// The data of the next `Response_VM` in the events for which `test` says yes.
    pub fn event_response(&mut self, what: &str, test: impl Fn(&Value) -> bool) -> Value {
        loop {
            let data = records(&self.event(what)).iter().filter_map(response_data).find(&test);
            if let Some(data) = data {
                return data;
            }
        }
    }

    /// The next WebSocket frame.
    pub fn frame(&mut self, what: &str) -> Frame {
        self.try_frame(what).unwrap_or_else(|| panic!("the node closed before {what}"))
    }

    /// The next WebSocket frame; `None` when the node has closed.
    pub fn try_frame(&mut self, what: &str) -> Option<Frame> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((frame, length)) = ws::parse(&self.buffer) {
                self.buffer.drain(..length);
                return Some(frame);
            }
            if !self.fill(deadline, what)? {
                return None;
            }
        }
    }

    /// Everything up to `end` and with it.
    pub fn until(&mut self, end: &[u8], what: &str) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return self.buffer.drain(..at + end.len()).collect();
            }
            self.more(deadline, what);
        }
    }

    pub fn bytes(&mut self, count: usize, what: &str) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        while self.buffer.len() < count {
            self.more(deadline, what);
        }
        self.buffer.drain(..count).collect()
    }

    fn more(&mut self, deadline: Instant, what: &str) {
        let more = self.fill(deadline, what);
        assert_eq!(more, Some(true), "{what}: the node closed behind {:?}", self.buffer.escape_ascii().to_string());
    }

    /// Reads more. False at the end of the stream, None where it was reset.
    fn fill(&mut self, deadline: Instant, what: &str) -> Option<bool> {
        let mut chunk = [0; 16 * 1024];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited for {what}, got {:?}", self.buffer.escape_ascii().to_string());
            self.stream.set_patience(left);
            match self.stream.read(&mut chunk) {
                Ok(0) => return Some(false),
                Ok(count) => {
                    self.buffer.extend_from_slice(&chunk[..count]);
                    return Some(true);
                }
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return None,
            }
        }
    }

    /// Nothing comes for so long, and the connection stays open.
    pub fn is_quiet_for(&mut self, time: Duration, what: &str) {
        assert_eq!(self.buffer.escape_ascii().to_string(), "", "{what}");
        self.stream.set_patience(time);
        let mut chunk = [0; 1024];
        match self.stream.read(&mut chunk) {
            Ok(count) => panic!("{what}: {:?}", chunk[..count].escape_ascii().to_string()),
            Err(error) => assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}"),
        }
    }

    /// The stream ends here, in order.
    pub fn ended(&mut self, what: &str) {
        let end = self.fill(Instant::now() + PATIENCE, what);
        assert_eq!((end, self.buffer.escape_ascii().to_string().as_str()), (Some(false), ""), "{what}");
    }

    /// The connection is gone, in whatever way.
    pub fn gone(&mut self, what: &str) {
        while self.fill(Instant::now() + PATIENCE, what) == Some(true) {}
    }
}

/// A fresh connection's token, asked for over a connection of its own.
pub fn token(address: SocketAddr) -> String {
    token_on(&mut Web::connect(address), "")
}

/// ... over this one; `query` is what follows the version.
pub fn token_on(web: &mut Web, query: &str) -> String {
    let answer = web.ask(&format!("POST /dotnetify/negotiate?negotiateVersion=1{query}"), "", b"");
    assert_eq!(answer.status, 200, "{answer:?}");
    let body: Value = serde_json::from_str(answer.text()).expect("negotiate answers JSON");
    body["connectionToken"].as_str().expect("version 1 has a token").to_string()
}

pub const HANDSHAKE: &[u8] = b"{\"protocol\":\"json\",\"version\":1}\x1e";
pub const REQUEST: &[u8] =
    b"{\"type\":1,\"target\":\"Request_VM\",\"arguments\":[\"HelloWorldVM\",{\"$vmArg\":{\"TickInterval\":0}}]}\x1e";
/// The argument of REQUEST, in MessagePack.
pub const NO_CLOCK: &[u8] = b"\x81\xa6$vmArg\x81\xacTickInterval\x00";
pub const EVENTS: &str = "Accept: text/event-stream\r\n";

/// An update of HelloWorldVM, which answers with `FullName` and `Greetings`.
pub fn update(name: &str) -> Vec<u8> {
    format!("{{\"type\":1,\"target\":\"Update_VM\",\"arguments\":[\"HelloWorldVM\",{{\"FirstName\":\"{name}\"}}]}}\x1e")
        .into_bytes()
}

/// A framed MessagePack invocation `target("HelloWorldVM", argument)` (reference 12.2).
pub fn message_pack_call(target: &str, argument: &[u8], id: Option<&str>) -> Vec<u8> {
    let text = |text: &str| [&[0xa0 | text.len() as u8][..], text.as_bytes()].concat();
    let id = id.map_or(vec![0xc0], text);
    let body = [&b"\x95\x01\x80"[..], &id, &text(target), b"\x92", &text("HelloWorldVM"), argument].concat();
    assert!(body.len() < 128);
    [&[body.len() as u8][..], &body].concat()
}

/// A client over Server-Sent Events: its stream, and a connection for its POSTs.
pub struct Events {
    pub stream: Web,
    pub posts: Web,
    pub target: String,
}

impl Events {
    /// Connected and behind the handshake.
    pub fn connect(address: SocketAddr) -> Events {
        let mut events = Events::open(Web::connect(address), Web::connect(address));
        events.post(HANDSHAKE);
        assert_eq!(events.stream.event("the handshake's answer"), "{}\u{1e}");
        events
    }

    /// Connected, before the handshake.
    pub fn open(mut stream: Web, mut posts: Web) -> Events {
        let target = format!("/dotnetify?id={}", token_on(&mut posts, ""));
        let head = stream.ask(&format!("GET {target}"), EVENTS, b"");
        assert_eq!(head.status, 200, "{head:?}");
        assert_eq!(stream.bytes(3, "the prelude"), b":\r\n");
        Events { stream, posts, target }
    }

    pub fn post(&mut self, body: &[u8]) {
        let answer = self.posts.ask(&format!("POST {}", self.target), "", body);
        assert_eq!((answer.status, answer.text()), (200, ""), "{answer:?}");
    }
}

/// A client over long polling: a connection for its polls, and one for its POSTs.
pub struct Polling {
    pub polls: Web,
    pub posts: Web,
    pub target: String,
}

impl Polling {
    /// Connected and behind the handshake.
    pub fn connect(address: SocketAddr) -> Polling {
        let mut polling = Polling::open(Web::connect(address), Web::connect(address));
        polling.post(HANDSHAKE);
        let answer = polling.poll();
        assert_eq!((answer.status, answer.text()), (200, "{}\u{1e}"));
        polling
    }

    /// The first poll is done, the handshake is not.
    pub fn open(mut polls: Web, posts: Web) -> Polling {
        let target = format!("/dotnetify?id={}", token_on(&mut polls, ""));
        let first = polls.ask(&format!("GET {target}"), "", b"");
        assert_eq!((first.status, first.text()), (200, ""), "{first:?}");
        Polling { polls, posts, target }
    }

    pub fn post(&mut self, body: &[u8]) {
        let answer = self.posts.ask(&format!("POST {}", self.target), "", body);
        assert_eq!((answer.status, answer.text()), (200, ""), "{answer:?}");
    }

    /// Begins a poll, whose answer is to be read later.
    pub fn begin_poll(&mut self) {
        let request = self.polls.request(&format!("GET {}", self.target), "", b"");
        self.polls.send(&request);
    }

    pub fn poll(&mut self) -> Answer {
        self.begin_poll();
        self.polls.answer("a poll's answer")
    }

    /// Polls until a `Response_VM` for which `test` says yes is among the records.
    pub fn response(&mut self, what: &str, test: impl Fn(&Value) -> bool) -> Value {
        loop {
            let answer = self.poll();
            assert_eq!(answer.status, 200, "{what}: {answer:?}");
            let data = answer.records().iter().filter_map(response_data).find(&test);
            if let Some(data) = data {
                return data;
            }
        }
    }
}
