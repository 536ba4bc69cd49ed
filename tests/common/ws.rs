//! A WebSocket client that sends exactly the frames it is told to, right or wrong. Independent of the node's own codec.
#![allow(dead_code)] // Each test binary uses its part.

use super::{PATIENCE, Reply, read_reply};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// RFC 6455 §1.3: the sample key, whose answer is `SAMPLE_ACCEPT`.
pub const SAMPLE_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const SAMPLE_ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

pub const FIN: u8 = 0x80;
pub const RECORD_END: char = '\u{1e}';

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A masked frame; `first` is the whole first byte (FIN, reserved bits, opcode).
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(first, 0x80, payload.len() as u64);
    bytes.extend_from_slice(&MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// A frame without mask, which no client may send.
pub fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(first, 0, payload.len() as u64);
    bytes.extend_from_slice(payload);
    bytes
}

/// A frame header alone: for announced lengths that never come.
pub fn header(first: u8, mask_bit: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        0..=125 => bytes.push(mask_bit | length as u8),
        126..=0xffff => {
            bytes.push(mask_bit | 126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(mask_bit | 127);
            bytes.extend_from_slice(&length.to_be_bytes());
        }
    }
    bytes
}

pub fn text(payload: &str) -> Vec<u8> {
    frame(FIN | TEXT, payload.as_bytes())
}

/// One SignalR record in one text frame.
pub fn record(json: &str) -> Vec<u8> {
    text(&format!("{json}{RECORD_END}"))
}

pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes()[..], reason.as_bytes()].concat()
}

/// A frame from the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub first: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn opcode(&self) -> u8 {
        self.first & 0x0f
    }
    pub fn text(&self) -> String {
        String::from_utf8(self.payload.clone()).expect("text frames are UTF-8")
    }
    /// Close code, if the frame is a Close that has one.
    pub fn code(&self) -> Option<u16> {
        (self.opcode() == CLOSE && self.payload.len() >= 2)
            .then(|| u16::from_be_bytes([self.payload[0], self.payload[1]]))
    }
}

pub struct Socket {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

/// The request head of an upgrade, without its closing blank line.
pub fn upgrade_head(address: SocketAddr, target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {SAMPLE_KEY}\r\n"
    )
}

impl Socket {
    /// Upgrades, or says how the node refused.
    pub fn upgrade(address: SocketAddr, target: &str, headers: &str) -> Result<Socket, Reply> {
        Socket::upgrade_on(TcpStream::connect(address).expect("the listener accepts"), target, headers)
    }

    /// ... on a connection that is there.
    pub fn upgrade_on(mut stream: TcpStream, target: &str, headers: &str) -> Result<Socket, Reply> {
        let address = stream.peer_addr().expect("it is connected");
        stream.set_nodelay(true).expect("TCP_NODELAY can be set");
        let request = format!("{}{headers}\r\n", upgrade_head(address, target));
        stream.write_all(request.as_bytes()).expect("the head can be sent");
        // The node has nothing to say before the handshake: the reply ends with its head.
        let reply = read_reply(&mut stream, Duration::ZERO);
        if reply.status != 101 {
            return Err(reply);
        }
        assert_eq!(reply.header("sec-websocket-accept"), Some(SAMPLE_ACCEPT), "{}", reply.text);
        Ok(Socket { stream, buffer: reply.body.into_bytes() })
    }

    /// An upgraded connection to the hub, before its handshake.
    pub fn open(address: SocketAddr) -> Socket {
        Socket::upgrade(address, "/dotnetify", "").unwrap_or_else(|reply| panic!("no upgrade: {}", reply.text))
    }

    /// The same after a JSON handshake.
    pub fn connect(address: SocketAddr) -> Socket {
        Socket::open(address).shaken()
    }

    /// Shakes hands.
    pub fn shaken(mut self) -> Socket {
        self.send(&record(r#"{"protocol":"json","version":1}"#));
        let answer = self.frame("the handshake's answer");
        assert_eq!((answer.first, answer.text().as_str()), (FIN | TEXT, "{}\u{1e}"));
        self
    }

    pub fn send(&mut self, bytes: &[u8]) {
        // A node that has refused may have closed; what it said is read afterwards.
        let _ = self.stream.write_all(bytes);
    }

    /// The next frame, whatever it is; `None` when the node has closed.
    pub fn next(&mut self, what: &str) -> Option<Frame> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((frame, length)) = parse(&self.buffer) {
                self.buffer.drain(..length);
                return Some(frame);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited {PATIENCE:?} for {what}");
            self.stream.set_read_timeout(Some(left)).expect("a timeout can be set");
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                }
                Err(_) => return None,
            }
        }
    }

    pub fn frame(&mut self, what: &str) -> Frame {
        self.next(what).unwrap_or_else(|| panic!("the node closed before {what}"))
    }

    /// The next SignalR record that is not a ping. One frame may hold several; the rest is kept for later.
    pub fn record(&mut self, what: &str) -> serde_json::Value {
        // Pings come for ever.
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
            let frame = self.frame(what);
            assert_eq!(frame.opcode(), TEXT, "waiting for {what}: {frame:?}");
            let text = frame.text();
            assert!(text.ends_with(RECORD_END), "a frame must hold whole records: {text:?}");
            let mut records = text.split_terminator(RECORD_END);
            let first = records.next().expect("a record ends in the frame");
            let rest: String = records.map(|record| format!("{record}{RECORD_END}")).collect();
            if !rest.is_empty() {
                let mut front = header(FIN | TEXT, 0, rest.len() as u64);
                front.extend_from_slice(rest.as_bytes());
                self.buffer.splice(..0, front);
            }
            let record: serde_json::Value =
                serde_json::from_str(first).unwrap_or_else(|error| panic!("{error}: {first:?}"));
            if record["type"] != 6 {
                return record;
            }
        }
    }

    /// The data of the next `Response_VM` for which `test` says yes.
    pub fn response(&mut self, what: &str, test: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        loop {
            let record = self.record(what);
            if record["type"] == 1 {
                assert_eq!(record["target"], "Response_VM");
                let text = record["arguments"][0][1].as_str().expect("the data is JSON text in a string");
                let data: serde_json::Value = serde_json::from_str(text).expect("the data is JSON");
                if test(&data) {
                    return data;
                }
            }
        }
    }

    /// Skips data up to the node's Close frame, answers it, and checks that the node then closes the connection.
    pub fn closed(&mut self, what: &str) -> Option<u16> {
        let code = loop {
            let frame = self.next(what)?;
            if frame.opcode() == CLOSE {
                break frame.code();
            }
        };
        self.send(&frame(FIN | CLOSE, &close_payload(code.unwrap_or(1000), "")));
        let after = self.next("the end of the connection");
        assert_eq!(after, None, "{what}: nothing may follow a Close frame");
        code
    }
}

/// The first frame, if it is whole, and its length.
pub fn parse(buffer: &[u8]) -> Option<(Frame, usize)> {
    let (&first, &second) = (buffer.first()?, buffer.get(1)?);
    assert_eq!(second & 0x80, 0, "RFC 6455 §5.1: a server must not mask");
    let (length, start) = match second & 0x7f {
        126 => (u16::from_be_bytes(buffer.get(2..4)?.try_into().ok()?) as usize, 4),
        127 => (u64::from_be_bytes(buffer.get(2..10)?.try_into().ok()?) as usize, 10),
        short => (short as usize, 2),
    };
    let payload = buffer.get(start..start + length)?.to_vec();
    Some((Frame { first, payload }, start + length))
}
