//! A WebSocket echo server for conformance suites: blocking sockets, a thread a connection, and the node's own codecs, so
//! that a suite judges exactly the code that the clients of a node meet. Not part of a node.
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::proto::http::{self, Action, Cors, HttpError, HttpPolicy, OriginPolicy, Transports};
use crate::proto::ws::{Decoder, Event, Opcode, Role, header};

/// Largest message that is echoed; the suites go up to 16 MiB.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// One read. Large, because a suite's largest messages are what takes time.
const READ_BYTES: usize = 256 << 10;
/// What is gathered before it is written in the middle of a read.
const WRITE_BYTES: usize = 256 << 10;
/// How long a peer may take to hang up once told that we are done.
const DRAIN: Duration = Duration::from_secs(5);
/// RFC 6455 §7.4.1.
const MESSAGE_TOO_BIG: u16 = 1009;

/// Accepts connections until the listener fails. Every path is an upgrade.
pub fn serve(listener: TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        // A peer that goes away in the middle is nothing to tell anyone about.
        thread::spawn(move || drop(connection(stream)));
    }
}

fn connection(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(READ_BYTES);
    let upgraded = upgrade(&mut stream, &mut buffer)?;
    if upgraded {
        echo(&mut stream, buffer)?;
    }
    hang_up(stream)
}

/// Reads the request and answers it. True: upgraded, and `buffer` holds what came behind the head.
fn upgrade(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<bool> {
    let (mut scanned, mut out) = (0, Vec::new());
    let end = loop {
        match http::head_end(buffer, &mut scanned) {
            Ok(Some(end)) => break Ok(end),
            Ok(None) => {}
            Err(error) => break Err(error),
        }
        let mut piece = [0; 4096];
        match stream.read(&mut piece)? {
            0 => return Ok(false),
            read => buffer.extend_from_slice(&piece[..read]),
        }
    };
    let answered = end.and_then(|end| Ok((end, answer(&buffer[..end], &mut out)?)));
    match &answered {
        Ok((end, _)) => drop(buffer.drain(..end)),
        Err(error) => http::refuse(*error, Cors::None, false, &mut out),
    }
    stream.write_all(&out)?;
    Ok(matches!(answered, Ok((_, true))))
}

fn answer(head: &[u8], out: &mut Vec<u8>) -> Result<bool, HttpError> {
    let head = http::parse_head(head)?;
    // The hub is wherever the request goes, and every origin may come: suites have their own ideas of both.
    let origin = head.header("origin").map(|origin| String::from_utf8_lossy(origin).into_owned());
    let policy = HttpPolicy {
        hub_path: head.path.to_owned(),
        origins: OriginPolicy { allowed: origin.into_iter().collect() },
        transports: Transports { web_sockets: true, server_sent_events: false, long_polling: false },
        post_body_bytes_max: 0,
    };
    match http::route(&head, &policy, None, out) {
        Action::Upgrade { accept, .. } => {
            http::upgrade_reply(&accept, out);
            Ok(true)
        }
        Action::Replied { .. } => Ok(false),
        _ => Err(HttpError::NotFound),
    }
}

/// Echoes until the peer closes or breaks a rule; either way our Close frame is written when this returns.
fn echo(stream: &mut TcpStream, mut input: Vec<u8>) -> io::Result<()> {
    let mut decoder = Decoder::new(Role::Server);
    let (mut message, mut out) = (Vec::new(), Vec::new());
    let mut read = input.len();
    input.resize(READ_BYTES.max(read), 0);
    loop {
        let mut at = 0;
        loop {
            let (consumed, event) = match decoder.next(&mut input[at..read]) {
                Ok((_, None)) => break,
                Ok((consumed, Some(event))) => (consumed, event),
                // RFC 6455 §7.1.7: a violation fails the connection, and the Close frame says why.
                Err(error) => {
                    frame(Opcode::Close, &error.close_code().to_be_bytes(), &mut out);
                    return stream.write_all(&out);
                }
            };
            match event {
                Event::Data { binary, end, range, .. } => {
                    if message.len() + range.len() > MESSAGE_BYTES_MAX {
                        frame(Opcode::Close, &MESSAGE_TOO_BIG.to_be_bytes(), &mut out);
                        return stream.write_all(&out);
                    }
                    message.extend_from_slice(&input[at..][range]);
                    if end {
                        frame(if binary { Opcode::Binary } else { Opcode::Text }, &message, &mut out);
                        message.clear();
                    }
                }
                // RFC 6455 §5.5.3: a pong carries the ping's payload.
                Event::Ping => frame(Opcode::Pong, decoder.control_payload(), &mut out),
                Event::Pong => {}
                Event::Close { code } => {
                    // §5.5.1: the answer typically echoes the status code.
                    let code = code.map(u16::to_be_bytes);
                    frame(Opcode::Close, code.as_ref().map_or(&[], |code| code), &mut out);
                    return stream.write_all(&out);
                }
            }
            at += consumed;
            if out.len() >= WRITE_BYTES {
                stream.write_all(&out)?;
                out.clear();
            }
        }
        stream.write_all(&out)?;
        out.clear();
        read = stream.read(&mut input)?;
        if read == 0 {
            return Ok(());
        }
    }
}

fn frame(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(header(opcode, true, payload.len() as u64, None).as_ref());
    out.extend_from_slice(payload);
}

/// RFC 6455 §7.1.1: the server closes TCP first. Only the sending half at once: closing while bytes of the peer are unread
/// sends a reset, which may overtake our Close frame and take it from the peer.
fn hang_up(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    let until = Instant::now() + DRAIN;
    let mut unread = vec![0; READ_BYTES];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        stream.set_read_timeout(Some(left))?;
        if stream.read(&mut unread)? == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `bytes` behind the handshake and returns what comes back until the server hangs up.
    fn talk(request: &[u8], frames: &[u8]) -> Vec<u8> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || serve(listener));
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&[request, frames].concat()).unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).unwrap();
        reply
    }

    const UPGRADE: &[u8] =
        b"GET /any HTTP/1.1\r\nHost: a\r\nOrigin: http://b\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    fn said(frames: &[u8]) -> Vec<u8> {
        let reply = talk(UPGRADE, frames);
        assert!(reply.starts_with(b"HTTP/1.1 101 "));
        let head = http::parse_response(&reply).ok().flatten().unwrap();
        reply[head.bytes..].to_vec()
    }

    #[test]
    fn echoes_pongs_and_closes() {
        // With a zero key the payload is plain.
        let frames = b"\x01\x82\0\0\0\0he\x89\x81\0\0\0\0p\x80\x81\0\0\0\0y\x88\x82\0\0\0\0\x03\xe9";
        assert_eq!(said(frames), b"\x8a\x01p\x81\x03hey\x88\x02\x03\xe9");
        assert_eq!(said(b"\x88\x80\0\0\0\0"), b"\x88\x00");
    }

    #[test]
    fn a_violation_is_told_before_the_end() {
        let late = [0x81u8; 300_000];
        assert_eq!(said(&[&b"\x81\x01"[..], &late].concat()), b"\x88\x02\x03\xea");
        assert_eq!(said(&[&b"\x81\x81\0\0\0\0\xff"[..], &late].concat()), b"\x88\x02\x03\xef");
    }

    #[test]
    fn anything_but_an_upgrade_is_refused() {
        assert!(talk(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"").starts_with(b"HTTP/1.1 400 "));
        assert!(talk(b"PUT /negotiate HTTP/1.1\r\nHost: a\r\n\r\n", b"").starts_with(b"HTTP/1.1 405 "));
        assert!(talk(b"nonsense\r\n\r\n", b"").starts_with(b"HTTP/1.1 400 "));
    }
}
