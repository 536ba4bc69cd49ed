//! Negotiate (reference section 3): the version asked for and the answer.
use alloc::vec::Vec;

use super::{Cors, Head, reply};

/// The newest version of negotiate there is.
const VERSION_MAX: i32 = 1;

/// Appends the 200 reply of negotiate, members in ASP.NET's order. Only the WebSockets transport is offered for now.
///
/// In version 0 id and token are one string, so the caller passes the token as both and only `connectionId` is written.
pub fn negotiate_reply(version: u8, connection_id: &str, token: &str, cors: Cors<'_>, keep_alive: bool, out: &mut Vec<u8>) {
    // Both are ours, and base64url (reference section 2), so nothing needs escaping.
    debug_assert!(connection_id.bytes().chain(token.bytes()).all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\'));
    debug_assert!(version > 0 || connection_id == token);

    let mut content = Vec::with_capacity(192 + connection_id.len() + token.len());
    content.extend_from_slice(br#"{"negotiateVersion":"#);
    reply::decimal(version as u32, &mut content);
    content.extend_from_slice(br#","connectionId":""#);
    content.extend_from_slice(connection_id.as_bytes());
    if version > 0 {
        content.extend_from_slice(br#"","connectionToken":""#);
        content.extend_from_slice(token.as_bytes());
    }
    // "Binary" joins the formats when MessagePack is spoken to clients.
    content.extend_from_slice(br#"","availableTransports":[{"transport":"WebSockets","transferFormats":["Text"]}]}"#);
    write(&content, cors, keep_alive, out);
}

/// Appends the error form (reference section 3.4): status 200, `error` the only member.
pub(super) fn error_reply(error: VersionError, cors: Cors<'_>, keep_alive: bool, out: &mut Vec<u8>) {
    let mut content = Vec::with_capacity(128);
    content.extend_from_slice(br#"{"error":""#);
    match error {
        VersionError::NotAnInteger => content.extend_from_slice(b"The client requested a non-integer protocol version."),
        VersionError::TooOld(version) => {
            content.extend_from_slice(b"The client requested version '-");
            reply::decimal(version.unsigned_abs(), &mut content);
            content.extend_from_slice(b"', but the server does not support this version.");
        }
    }
    content.extend_from_slice(br#""}"#);
    write(&content, cors, keep_alive, out);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VersionError {
    NotAnInteger,
    /// Below 0, the smallest version there is.
    TooOld(i32),
}

/// Reads `negotiateVersion` as ASP.NET does (reference section 3.1): missing is 0, more than 1 is 1.
pub(super) fn version(head: &Head<'_>) -> Result<u8, VersionError> {
    let Some(value) = head.query_value("negotiateVersion") else { return Ok(0) };
    match value.parse::<i32>() {
        Err(_) => Err(VersionError::NotAnInteger),
        Ok(version) if version < 0 => Err(VersionError::TooOld(version)),
        Ok(version) => Ok(version.min(VERSION_MAX) as u8),
    }
}

fn write(content: &[u8], cors: Cors<'_>, keep_alive: bool, out: &mut Vec<u8>) {
    reply::status_line(200, out);
    cors.write(out);
    reply::connection(keep_alive, out);
    reply::body("application/json", content, content.len(), out);
}
