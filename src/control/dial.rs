//! Dialling a lane: resolve, connect, TLS, negotiate, upgrade, handshake; then the socket is taken out of tokio-uring for its shard.
//!
//! Nothing here is ever dropped half-way: see `exchange`.
use super::exchange::within;
use super::random;
use super::stream::Stream;
use crate::config::UpstreamUrl;
use crate::limits::INTERIM_REPLIES_MAX;
use crate::proto::http;
use crate::proto::signalr::handshake::{self, Protocol};
use crate::proto::signalr::negotiate::{NegotiateAnswer, parse_negotiate_answer};
use crate::proto::signalr::record::find_separator;
use crate::proto::ws::frame::write_frame;
use crate::proto::ws::{Decoder, Event, Opcode, Role};
use crate::sys::socket;
use crate::tls::Tls;
use base64::Engine;
use bytes::{Buf, BytesMut};
use core::time::Duration;
use rustls::ClientConfig;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

/// Negotiate, and upgrade with handshake, each with TLS's own; ASP.NET's handshake timeout.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// A negotiate answer has about 300 bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A connected lane.
pub(super) struct Dialled {
    pub(super) socket: OwnedFd,
    /// TLS in the state the connection has come to; carries what arrived of a record that is not complete.
    pub(super) tls: Option<Box<Tls>>,
    /// What arrived behind the handshake's answer: WebSocket frames, without TLS around them.
    pub(super) early: Vec<u8>,
}

/// Dials an app server's hub, with TLS if there is a configuration for it. The error is a sentence for the log.
pub(super) async fn dial(
    url: &UpstreamUrl,
    hub_path: &str,
    protocol: Protocol,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<Dialled, String> {
    let host = url.authority();
    let path = format!("{}{hub_path}", url.base);
    let token = negotiate(url, tls, &host, &path).await?;
    // It comes from the network and goes into a request line.
    let token: String = url::form_urlencoded::byte_serialize(token.as_bytes()).collect();
    let mut stream = Stream::connect(url, tls).await?;
    let tcp = stream.tcp.clone();
    let (early, stream) = within(EXCHANGE_TIMEOUT, &tcp, "upgrading", async move {
        stream.secure().await?;
        let mut input = upgrade(&mut stream, &host, &format!("{path}?id={token}")).await?;
        let early = shake_hands(&mut stream, &mut input, protocol).await?;
        Ok((early, stream))
    })
    .await?;
    // The copy is the shard's; tokio-uring closes its own when the stream is dropped, which leaves the connection alone.
    let socket = socket::duplicate(tcp.as_raw_fd()).map_err(|error| format!("cannot hand the socket over: {error}"))?;
    Ok(Dialled { socket, tls: stream.tls, early })
}

/// Negotiates on a connection of its own and returns the connection token.
async fn negotiate(
    url: &UpstreamUrl,
    tls: Option<&Arc<ClientConfig>>,
    host: &str,
    path: &str,
) -> Result<String, String> {
    let mut stream = Stream::connect(url, tls).await?;
    let mut request = Vec::new();
    http::negotiate_request(host, &format!("{path}/negotiate?negotiateVersion=1"), &mut request);
    let tcp = stream.tcp.clone();
    let body = within(EXCHANGE_TIMEOUT, &tcp, "negotiating", async move {
        stream.secure().await?;
        stream.write(request).await?;
        let mut input = BytesMut::new();
        let head = read_response_head(&mut stream, &mut input).await?;
        if head.status != 200 {
            return Err(format!("negotiate was answered with status {}: {}", head.status, hint(head.status)));
        }
        let body = loop {
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
                Some(body) => break body,
                None => stream.read_more(&mut input).await?,
            }
        };
        stream.close().await;
        Ok(body)
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
async fn upgrade(stream: &mut Stream, host: &str, path: &str) -> Result<BytesMut, String> {
    let nonce: [u8; 16] = random().map_err(|error| error.to_string())?;
    let key = base64::engine::general_purpose::STANDARD.encode(nonce);
    let mut request = Vec::new();
    http::upgrade_request(host, path, &key, &mut request);
    stream.write(request).await?;
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
async fn shake_hands(stream: &mut Stream, input: &mut BytesMut, protocol: Protocol) -> Result<Vec<u8>, String> {
    let mask: [u8; 4] = random().map_err(|error| error.to_string())?;
    let mut request = Vec::new();
    write_frame(&mut request, opcode(protocol), Some(mask), |out| handshake::write_request(protocol, 1, out));
    stream.write(request).await?;
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
                        handshake::parse_answer(&payload[..at]).map_err(|error| refused(protocol, &error))?;
                        return Ok(early_frames(opcode(protocol), &payload[at + 1..], input));
                    }
                }
                Some(Event::Ping) => {
                    let mut pong = Vec::new();
                    let mask: [u8; 4] = random().map_err(|error| error.to_string())?;
                    let payload = decoder.control_payload().to_vec();
                    write_frame(&mut pong, Opcode::Pong, Some(mask), |out| out.extend_from_slice(&payload));
                    stream.write(pong).await?;
                }
                Some(Event::Close { code }) => {
                    return Err(format!("the app server closed during the handshake (code {code:?})"));
                }
            }
        }
        stream.read_more(input).await?;
    }
}

/// Frames of a lane are of its protocol's kind (reference section 11.1).
fn opcode(protocol: Protocol) -> Opcode {
    match protocol {
        Protocol::Json => Opcode::Text,
        Protocol::MessagePack => Opcode::Binary,
    }
}

fn refused(protocol: Protocol, error: &str) -> String {
    // ASP.NET has JSON built in and MessagePack in a package of its own: "The protocol 'messagepack' is not supported."
    if protocol == Protocol::MessagePack && error.contains("not supported") {
        return "the app server does not speak MessagePack: call AddMessagePackProtocol() there, or set use_message_pack = false"
            .into();
    }
    format!("the app server refused the handshake: {error}")
}

fn early_frames(opcode: Opcode, records: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut early = Vec::new();
    if !records.is_empty() {
        write_frame(&mut early, opcode, None, |out| out.extend_from_slice(records));
    }
    early.extend_from_slice(rest);
    early
}

/// The head of the answer; interim ones (100, 103) before it are skipped.
async fn read_response_head(stream: &mut Stream, input: &mut BytesMut) -> Result<http::ResponseHead, String> {
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
        stream.read_more(input).await?;
    }
}
