//! Asking other nodes over HTTP/1.1: one request a connection, within a deadline, an answer of bounded size.
//!
//! Nothing here is ever dropped half-way: see `exchange`.
use crate::control::exchange::within;
use crate::control::stream;
use crate::limits::{LOOK_MS, PEER_ANSWER_BYTES_MAX};
use crate::proto::http;
use crate::sys::socket;
use core::time::Duration;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Instant;
use tokio::time::timeout;
use tokio_uring::net::TcpStream;

/// What a peer answered.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// Asks the admin endpoint at `address` (`host:port`) for a path. The error is a sentence for the picture.
pub(super) async fn ask(address: &str, path: &str) -> Result<Answer, String> {
    let until = Instant::now() + Duration::from_millis(LOOK_MS);
    let (host, port) = address.rsplit_once(':').ok_or_else(|| format!("{address} is not HOST:PORT"))?;
    let port = port.parse().map_err(|_| format!("{address} has no port"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let limit = Duration::from_millis(LOOK_MS);
    let tcp = timeout(limit, stream::connect(host, port, limit))
        .await
        .unwrap_or_else(|_| Err(format!("cannot connect to {address}: no answer within {} s", limit.as_secs())))?;
    // By its address and not by its name: a name may be one that the picture is not shown under (`is_private`).
    let (_, remote) = socket::addresses(tcp.as_raw_fd()).ok_or("the connection is lost")?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {remote}\r\nConnection: close\r\n\r\n");
    let left = until.saturating_duration_since(Instant::now());
    within(left, &tcp, "asking", exchange(tcp.clone(), request)).await
}

async fn exchange(tcp: Rc<TcpStream>, request: String) -> Result<Answer, String> {
    tcp.write_all(request.into_bytes()).await.0.map_err(|error| format!("cannot send: {error}"))?;
    let mut input = Vec::new();
    loop {
        let (result, buffer) = tcp.read(Vec::with_capacity(64 * 1024)).await;
        match result {
            Ok(count @ 1..) => input.extend_from_slice(&buffer[..count]),
            Ok(_) => return Err("it closed the connection".into()),
            Err(error) => return Err(format!("cannot receive: {error}")),
        }
        let head =
            http::parse_response(&input).map_err(|error| format!("its answer is no HTTP ({})", error.label()))?;
        let Some(head) = head else { continue };
        let length = head.content_length.ok_or("its answer has no length: is this a node's admin endpoint?")?;
        if length > PEER_ANSWER_BYTES_MAX as u64 {
            return Err("its answer is too long".into());
        }
        if (input.len() - head.bytes) as u64 >= length {
            let body = input[head.bytes..head.bytes + length as usize].to_vec();
            return Ok(Answer { status: head.status, body });
        }
    }
}
