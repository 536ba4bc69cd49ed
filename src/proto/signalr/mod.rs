//! SignalR hub messages: records, handshake, views of messages, JSON and MessagePack. Knows no WebSocket and no dotNetify.

pub mod encode;
pub mod handshake;
pub mod json;
pub mod msgpack;
pub mod negotiate;
pub mod record;
pub mod transcode;

pub use handshake::Protocol;

use crate::limits::ARGUMENTS_KEPT;

/// Reads one record of either protocol: JSON without its 0x1E, which must be UTF-8 (the caller checked), or a MessagePack body
/// without its length prefix, which may be any bytes.
pub fn parse(protocol: Protocol, record: &[u8]) -> Result<Message, MessageError> {
    match protocol {
        Protocol::Json => json::parse(record),
        Protocol::MessagePack => msgpack::parse(record),
    }
}

/// Appends the plain text of a message's `target`, `invocation_id` or `error`. Half a surrogate pair becomes U+FFFD.
pub fn plain_text(protocol: Protocol, contents: &[u8], out: &mut impl bytes::BufMut) {
    plain_chunks(protocol, contents, |chunk| out.put_slice(chunk));
}

/// `plain_text`, given out in pieces, none of which splits a character.
pub(crate) fn plain_chunks(protocol: Protocol, contents: &[u8], mut f: impl FnMut(&[u8])) {
    match protocol {
        Protocol::Json => json::unescape_chunks(contents, f),
        Protocol::MessagePack => f(contents),
    }
}

/// A byte range inside the record a view was made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    pub fn new(start: usize, end: usize) -> Self {
        Span { start: start as u32, end: end as u32 }
    }
    pub fn of(self, record: &[u8]) -> &[u8] {
        &record[self.start as usize..self.end as usize]
    }
}

/// Message types (reference section 12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Invocation,
    StreamItem,
    Completion,
    StreamInvocation,
    CancelInvocation,
    Ping,
    Close,
    Ack,
    Sequence,
    /// A type this version does not know: skipped, like ASP.NET does.
    Unknown,
}

impl Kind {
    /// Does a stateful reconnect count it (reference 14)?
    pub fn is_counted(self) -> bool {
        use Kind::*;
        matches!(self, Invocation | StreamItem | Completion | StreamInvocation | CancelInvocation)
    }
}

/// A view of one hub message: ranges into the record, nothing copied.
///
/// JSON: `target`, `invocation_id` and `error` are the *contents* of the JSON strings (between the quotes, escapes untouched);
/// `arguments` are whole JSON values (strings with their quotes), without surrounding white space.
/// MessagePack: the former are the str's bytes, the latter whole encoded values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: Kind,
    pub target: Option<Span>,
    pub invocation_id: Option<Span>,
    pub arguments: Arguments,
    /// Completion or Close.
    pub error: Option<Span>,
    /// Completion: the result value; StreamItem: the item.
    pub result: Option<Span>,
    pub allow_reconnect: bool,
    pub sequence_id: Option<u64>,
    /// The message names upload streams (`streamIds` not empty).
    pub has_streams: bool,
}

/// The top-level arguments. `count` is how many there were; only the first `ARGUMENTS_KEPT` have spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    pub count: u32,
    pub spans: [Span; ARGUMENTS_KEPT],
}

/// Why a record is not a hub message. All close the connection (reference section 12.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageError {
    /// Not valid JSON / MessagePack.
    Syntax,
    TooDeep,
    /// Not an object / array.
    NotAMessage,
    MissingType,
    MissingProperty,
    /// A property of the wrong type (e.g. a null invocationId).
    PropertyType,
    ResultAndError,
    ResultKind,
}
