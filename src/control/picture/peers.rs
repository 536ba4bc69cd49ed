//! Asking other nodes over HTTP/1.1: one request a connection, within a deadline, an answer of bounded size.
//!
//! On tokio's own sockets, not tokio-uring's: what is asked here can be given up half-way without leaving anything behind, where a
//! connect of tokio-uring would hold its descriptor until the kernel gives up, two minutes later.
use crate::limits::{LOOK_MS, PEER_ANSWER_BYTES_MAX};
use crate::proto::http;
use core::time::Duration;
use std::io::ErrorKind;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What a peer answered.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// Why there is no answer: a sentence for the picture.
pub(super) enum Trouble {
    /// Nothing came in time.
    Silent(String),
    Other(String),
}

impl Trouble {
    pub(super) fn words(self) -> String {
        let (Trouble::Silent(words) | Trouble::Other(words)) = self;
        words
    }
}

/// Asks the admin endpoint at `address` (`host:port`) for a path.
pub(super) async fn ask(address: &str, path: &str) -> Result<Answer, Trouble> {
    let limit = Duration::from_millis(LOOK_MS);
    match timeout(limit, exchange(address, path)).await {
        Ok(answer) => answer.map_err(Trouble::Other),
        Err(_) => Err(Trouble::Silent(format!("{address} did not answer within {} s", limit.as_secs()))),
    }
}

async fn exchange(address: &str, path: &str) -> Result<Answer, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("cannot connect to {address}: {error}"))?;
    // By its address and not by its name: a name may be one that the picture is not shown under (`is_private`).
    let host = stream.peer_addr().map_err(|error| format!("cannot connect to {address}: {error}"))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let mut unsent = request.as_bytes();
    while !unsent.is_empty() {
        match stream.writable().await.and_then(|()| stream.try_write(unsent)) {
            Ok(count) => unsent = &unsent[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(format!("cannot send to {address}: {error}")),
        }
    }
    let mut input = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    loop {
        match stream.readable().await.and_then(|()| stream.try_read(&mut piece)) {
            Ok(0) => return Err(format!("{address} closed the connection")),
            Ok(count) => input.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(format!("cannot receive from {address}: {error}")),
        }
        let head = http::parse_response(&input)
            .map_err(|error| format!("what {address} answers is no HTTP ({})", error.label()))?;
        let Some(head) = head else { continue };
        let length = head
            .content_length
            .ok_or_else(|| format!("the answer of {address} has no length: is it a node's admin endpoint?"))?;
        if length > PEER_ANSWER_BYTES_MAX as u64 {
            return Err(format!("the answer of {address} is too long"));
        }
        if (input.len() - head.bytes) as u64 >= length {
            let body = input[head.bytes..head.bytes + length as usize].to_vec();
            return Ok(Answer { status: head.status, body });
        }
    }
}
