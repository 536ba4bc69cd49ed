//! Dialling a lane: resolve, connect, negotiate, upgrade, handshake; then the socket is taken out of tokio-uring for its shard.
//!
//! Nothing here is ever dropped half-way: see `exchange`.
use super::exchange::within;
use super::random;
use crate::config::UpstreamUrl;
use crate::limits::INTERIM_REPLIES_MAX;
use crate::proto::http;
use crate::proto::signalr::handshake::{self, Protocol};
use crate::proto::signalr::negotiate::{NegotiateAnswer, parse_negotiate_answer};
use crate::proto::signalr::record::find_separator;
use crate::proto::ws::frame::write_frame;
use crate::proto::ws::{Decoder, Event, Opcode, Role};
use crate::sys::socket;
use base64::Engine;
use bytes::{Buf, BytesMut};
use core::time::Duration;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use tokio::time::timeout;
use tokio_uring::net::TcpStream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Negotiate, and upgrade with handshake; ASP.NET's handshake timeout.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// A negotiate answer has about 300 bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
const READ_BYTES: usize = 4096;

/// A connected lane: its socket, and what arrived behind the handshake's answer, as WebSocket frames.
pub(super) struct Dialled {
    pub(super) socket: OwnedFd,
    pub(super) early: Vec<u8>,
}

/// Dials an app server's hub. The error is a sentence for the log.
pub(super) async fn dial(url: &UpstreamUrl, hub_path: &str) -> Result<Dialled, String> {
    let host = host_header(url);
    let path = format!("{}{hub_path}", url.base);
    let token = negotiate(url, &host, &path).await?;
    // It comes from the network and goes into a request line.
    let token: String = url::form_urlencoded::byte_serialize(token.as_bytes()).collect();
    let stream = connect(url).await?;
    let (early, stream) = within(EXCHANGE_TIMEOUT, &stream, "upgrading", {
        let stream = stream.clone();
        async move {
            let mut input = upgrade(&stream, &host, &format!("{path}?id={token}")).await?;
            let early = shake_hands(&stream, &mut input).await?;
            Ok((early, stream))
        }
    })
    .await?;
    // The copy is the shard's; tokio-uring closes its own when the stream is dropped, which leaves the connection alone.
    let socket =
        socket::duplicate(stream.as_raw_fd()).map_err(|error| format!("cannot hand the socket over: {error}"))?;
    Ok(Dialled { socket, early })
}

fn host_header(url: &UpstreamUrl) -> String {
    let host = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.clone() };
    if url.port == 80 { host } else { format!("{host}:{}", url.port) }
}

/// Connects to the first address that answers.
async fn connect(url: &UpstreamUrl) -> Result<Rc<TcpStream>, String> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((url.host.as_str(), url.port))
        .await
        .map_err(|error| format!("cannot resolve {}: {error}", url.host))?
        .collect();
    let mut last = format!("{} has no address", url.host);
    for address in addresses {
        // In a task of its own, because a connect cannot be called back: an abandoned one ends by itself and is closed then.
        let connecting = tokio_uring::spawn(TcpStream::connect(address));
        match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(Ok(stream))) => {
                let _ = stream.set_nodelay(true);
                return Ok(Rc::new(stream));
            }
            Ok(Ok(Err(error))) => last = format!("cannot connect to {address}: {error}"),
            Ok(Err(_)) => last = format!("cannot connect to {address}"),
            Err(_) => last = format!("cannot connect to {address}: no answer within {} s", CONNECT_TIMEOUT.as_secs()),
        }
    }
    Err(last)
}

/// Negotiates on a connection of its own and returns the connection token.
async fn negotiate(url: &UpstreamUrl, host: &str, path: &str) -> Result<String, String> {
    let stream = connect(url).await?;
    let mut request = Vec::new();
    http::negotiate_request(host, &format!("{path}/negotiate?negotiateVersion=1"), &mut request);
    let body = within(EXCHANGE_TIMEOUT, &stream, "negotiating", {
        let stream = stream.clone();
        async move {
            write(&stream, request).await?;
            let mut input = BytesMut::new();
            let head = read_response_head(&stream, &mut input).await?;
            if head.status != 200 {
                return Err(format!("negotiate was answered with status {}: {}", head.status, hint(head.status)));
            }
            loop {
                let body = match head.content_length {
                    Some(length) if length > ANSWER_BYTES_MAX as u64 => {
                        return Err("negotiate's answer is too long".into());
                    }
                    Some(length) if input.len() as u64 >= length => Some(input[..length as usize].to_vec()),
                    Some(_) => None,
                    None if head.chunked => http::decode_chunked(&input, ANSWER_BYTES_MAX)
                        .map_err(|error| format!("negotiate's answer is malformed ({})", error.label()))?,
                    None => return Err("negotiate's answer has no length".into()),
                };
                match body {
                    Some(body) => return Ok(body),
                    None => read_more(&stream, &mut input).await?,
                }
            }
        }
    })
    .await?;
    match parse_negotiate_answer(&body)? {
        NegotiateAnswer::Connect { token } => Ok(token),
        NegotiateAnswer::Redirect { url, .. } => {
            Err(format!("the app server redirects to {url}; lanes go to the app server itself"))
        }
        NegotiateAnswer::Error(error) => Err(format!("the app server refused to negotiate: {error}")),
    }
}

fn hint(status: u16) -> &'static str {
    match status {
        404 => "is this a dotNetify server, with its hub at this path?",
        401 | 403 => "its hub must be reachable by this node without authentication",
        _ => "is this a dotNetify server?",
    }
}

/// Upgrades the connection; returns the bytes that followed the answer's head.
async fn upgrade(stream: &TcpStream, host: &str, path: &str) -> Result<BytesMut, String> {
    let nonce: [u8; 16] = random().map_err(|error| error.to_string())?;
    let key = base64::engine::general_purpose::STANDARD.encode(nonce);
    let mut request = Vec::new();
    http::upgrade_request(host, path, &key, &mut request);
    write(stream, request).await?;
    let mut input = BytesMut::new();
    let head = read_response_head(stream, &mut input).await?;
    if head.status != 101 || !head.upgraded {
        return Err(format!("the WebSocket upgrade was answered with status {}: {}", head.status, hint(head.status)));
    }
    // RFC 6455 §4.1: anything else means that the peer did not understand the upgrade.
    if head.accept != Some(http::accept_key(key.as_bytes())) {
        return Err("the WebSocket upgrade was answered with a wrong Sec-WebSocket-Accept".into());
    }
    Ok(input)
}

/// Does the SignalR handshake. Returns what came behind its answer, framed for a decoder that starts afresh.
async fn shake_hands(stream: &TcpStream, input: &mut BytesMut) -> Result<Vec<u8>, String> {
    let mask: [u8; 4] = random().map_err(|error| error.to_string())?;
    let mut request = Vec::new();
    write_frame(&mut request, Opcode::Text, Some(mask), |out| handshake::write_request(Protocol::Json, 1, out));
    write(stream, request).await?;
    let mut decoder = Decoder::new(Role::Client);
    let mut payload = Vec::new();
    loop {
        while !input.is_empty() {
            let (used, event) = decoder
                .next(input)
                .map_err(|error| format!("the app server broke the WebSocket protocol ({error:?})"))?;
            let piece = input.split_to(used);
            match event {
                None | Some(Event::Pong) => {}
                Some(Event::Data { range, end, .. }) => {
                    payload.extend_from_slice(&piece[range]);
                    if payload.len() > ANSWER_BYTES_MAX {
                        return Err("the app server's handshake answer is too long".into());
                    }
                    // Whole messages only: the lane's decoder begins at a frame.
                    if end && let Some(at) = find_separator(&payload) {
                        handshake::parse_answer(&payload[..at])
                            .map_err(|error| format!("the app server refused the handshake: {error}"))?;
                        return Ok(early_frames(&payload[at + 1..], input));
                    }
                }
                Some(Event::Ping) => {
                    let mut pong = Vec::new();
                    let mask: [u8; 4] = random().map_err(|error| error.to_string())?;
                    let payload = decoder.control_payload().to_vec();
                    write_frame(&mut pong, Opcode::Pong, Some(mask), |out| out.extend_from_slice(&payload));
                    write(stream, pong).await?;
                }
                Some(Event::Close { code }) => {
                    return Err(format!("the app server closed during the handshake (code {code:?})"));
                }
            }
        }
        read_more(stream, input).await?;
    }
}

fn early_frames(records: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut early = Vec::new();
    if !records.is_empty() {
        write_frame(&mut early, Opcode::Text, None, |out| out.extend_from_slice(records));
    }
    early.extend_from_slice(rest);
    early
}

async fn write(stream: &TcpStream, bytes: Vec<u8>) -> Result<(), String> {
    let (result, _) = stream.write_all(bytes).await;
    result.map_err(|error| format!("cannot send to the app server: {error}"))
}

async fn read_more(stream: &TcpStream, input: &mut BytesMut) -> Result<(), String> {
    let (result, buffer) = stream.read(Vec::with_capacity(READ_BYTES)).await;
    match result {
        Ok(0) => Err("the app server closed the connection".into()),
        Ok(count) => {
            input.extend_from_slice(&buffer[..count]);
            Ok(())
        }
        Err(error) => Err(format!("cannot receive from the app server: {error}")),
    }
}

/// The head of the answer; interim ones (100, 103) before it are skipped.
async fn read_response_head(stream: &TcpStream, input: &mut BytesMut) -> Result<http::ResponseHead, String> {
    let mut interim = 0;
    loop {
        let head = http::parse_response(input)
            .map_err(|error| format!("the app server's HTTP answer is malformed ({})", error.label()))?;
        if let Some(head) = head {
            input.advance(head.bytes);
            if !(100..200).contains(&head.status) || head.status == 101 {
                return Ok(head);
            }
            interim += 1;
            if interim > INTERIM_REPLIES_MAX {
                return Err("the app server sends interim answers without end".into());
            }
            continue;
        }
        if input.len() > ANSWER_BYTES_MAX {
            return Err("the app server's HTTP answer is too long".into());
        }
        read_more(stream, input).await?;
    }
}
