//! The handshake of both ends (reference section 11). Handshake records are JSON in every protocol; a record is given and
//! written here *without* the checks of framing, and written *with* its 0x1E.
use alloc::string::String;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Json,
    MessagePack,
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
    /// "An unexpected error occurred during connection handshake."
    Malformed,
}

/// Reads a client's handshake request (record without 0x1E). Members in any order, unknown ones skipped, protocol name
/// case-insensitive, versions <= 2 (and >= 1... see reference 11.3) accepted.
pub fn parse_request(_record: &[u8]) -> Result<Handshake, HandshakeError> {
    todo!()
}

/// Appends `{}` + 0x1E.
pub fn write_accept(_out: &mut impl bytes::BufMut) {
    todo!()
}
/// Appends `{"error":"..."}` + 0x1E.
pub fn write_refusal(_error: &HandshakeError, _out: &mut impl bytes::BufMut) {
    todo!()
}
/// Appends a lane's request: `{"protocol":"json","version":1}` + 0x1E.
pub fn write_request(_protocol: Protocol, _version: u32, _out: &mut impl bytes::BufMut) {
    todo!()
}
/// Reads the app server's answer (record without 0x1E): Ok(()) or the error's text.
pub fn parse_answer(_record: &[u8]) -> Result<(), String> {
    todo!()
}
