//! The handshake of both ends (reference section 11). Handshake records are JSON in every protocol; a record is given and
//! written here *without* the checks of framing, and written *with* its 0x1E.
use super::json::{self, Scanner};
use super::record::RECORD_SEPARATOR;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Json,
    MessagePack,
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Json => "json",
            Protocol::MessagePack => "messagepack",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    pub protocol: Protocol,
    /// 1 or 2.
    pub version: u32,
}

/// Why a handshake is refused; `Display` gives the `error` text of the reference (section 11.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeError {
    /// "Handshake was canceled." (timeout, or no separator within the size limit)
    Canceled,
    /// "The protocol 'X' is not supported."
    Protocol(String),
    /// "The server does not support version N of the 'X' protocol."
    Version { protocol: String, version: i64 },
    /// "Cannot use the 'X' protocol on the current transport. ..." (a binary protocol over Server-Sent Events)
    Transport(Protocol),
    /// "An unexpected error occurred during connection handshake."
    Malformed,
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandshakeError::Canceled => f.write_str("Handshake was canceled."),
            HandshakeError::Protocol(name) => write!(f, "The protocol '{name}' is not supported."),
            HandshakeError::Version { protocol, version } => {
                write!(f, "The server does not support version {version} of the '{protocol}' protocol.")
            }
            HandshakeError::Transport(protocol) => write!(
                f,
                "Cannot use the '{}' protocol on the current transport. The transport does not support 'Binary' transfer format.",
                protocol.name()
            ),
            HandshakeError::Malformed => f.write_str("An unexpected error occurred during connection handshake."),
        }
    }
}

/// The version from which on messages are counted for a stateful reconnect (reference 14).
pub const STATEFUL_RECONNECT_VERSION: u32 = 2;
/// Highest version of either protocol (reference section 11.3).
const VERSION_MAX: i32 = 2;

/// Reads a client's handshake request (record without 0x1E). Members in any order, unknown ones skipped, protocol name
/// case-insensitive. Like ASP.NET it accepts every version up to 2, zero and less included; those are taken for 1.
pub fn parse_request(record: &[u8]) -> Result<Handshake, HandshakeError> {
    let mut name = None;
    let mut version = None;
    let mut wrong = false;
    read_members(record, |scanner, member| {
        if json::eq(member, "protocol") {
            name = text(scanner)?;
            wrong |= name.is_none();
        } else if json::eq(member, "version") {
            version = scanner.integer::<i32>()?;
            wrong |= version.is_none();
        } else {
            scanner.value(1)?;
        }
        Ok(())
    })
    .ok_or(HandshakeError::Malformed)?;
    let (Some(name), Some(version), false) = (name, version, wrong) else {
        return Err(HandshakeError::Malformed);
    };
    let protocol =
        [Protocol::Json, Protocol::MessagePack].into_iter().find(|known| known.name().eq_ignore_ascii_case(&name));
    let Some(protocol) = protocol else {
        return Err(HandshakeError::Protocol(name));
    };
    if version > VERSION_MAX {
        return Err(HandshakeError::Version { protocol: name, version: i64::from(version) });
    }
    Ok(Handshake { protocol, version: version.max(1) as u32 })
}

/// Appends `{}` + 0x1E.
pub fn write_accept(out: &mut impl bytes::BufMut) {
    out.put_slice(b"{}");
    out.put_u8(RECORD_SEPARATOR);
}

/// Appends `{"error":"..."}` + 0x1E.
pub fn write_refusal(error: &HandshakeError, out: &mut impl bytes::BufMut) {
    out.put_slice(b"{\"error\":\"");
    json::escape(alloc::format!("{error}").as_bytes(), out);
    out.put_slice(b"\"}");
    out.put_u8(RECORD_SEPARATOR);
}

/// Appends a lane's request: `{"protocol":"json","version":1}` + 0x1E.
pub fn write_request(protocol: Protocol, version: u32, out: &mut impl bytes::BufMut) {
    debug_assert!((1..=VERSION_MAX as u32).contains(&version));
    out.put_slice(b"{\"protocol\":\"");
    out.put_slice(protocol.name().as_bytes());
    out.put_slice(b"\",\"version\":");
    out.put_u8(b'0' + version as u8);
    out.put_u8(b'}');
    out.put_u8(RECORD_SEPARATOR);
}

/// Reads the app server's answer (record without 0x1E): Ok(()) or the error's text.
pub fn parse_answer(record: &[u8]) -> Result<(), String> {
    let mut error = None;
    let mut is_message = false;
    let read = read_members(record, |scanner, member| {
        if json::eq(member, "error") {
            error = text(scanner)?;
        } else {
            // Reference section 11.2: with a `type` this is a hub message that should have come later.
            is_message |= json::eq(member, "type");
            scanner.value(1)?;
        }
        Ok(())
    });
    match (read, error) {
        (Some(()), Some(error)) => Err(error),
        (Some(()), None) if !is_message => Ok(()),
        _ => Err(String::from("Expected a handshake response from the server.")),
    }
}

/// Walks over the members of a record that must be one JSON object, in UTF-8 (nobody has checked that yet).
fn read_members<'a>(
    record: &'a [u8],
    mut f: impl FnMut(&mut Scanner<'a>, &'a [u8]) -> Result<(), super::MessageError>,
) -> Option<()> {
    core::str::from_utf8(record).ok()?;
    let mut scanner = Scanner::new(record);
    scanner.white();
    scanner.object(|scanner, name| f(scanner, name.span.of(record))).ok()?;
    scanner.end().ok()
}

/// A string's text; None for another value.
fn text(scanner: &mut Scanner<'_>) -> Result<Option<String>, super::MessageError> {
    if scanner.peek() != Some(b'"') {
        scanner.value(1)?;
        return Ok(None);
    }
    let contents = scanner.string()?.span.of(scanner.bytes);
    let mut text = Vec::with_capacity(contents.len());
    json::unescape(contents, &mut text);
    Ok(String::from_utf8(text).ok())
}
