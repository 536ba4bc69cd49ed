//! What an app server sends over a lane (contract 3): `Response_VM [method, args, metadata]` as a closed enum, and the frame a
//! client gets for it.
use crate::proto::signalr::{Message, Span};

/// Who is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipients {
    /// One origin id: the contents of the JSON string.
    One(Span),
    /// Contents of a JSON string that itself holds a JSON array (escaped once more), e.g. `[\"a\",\"b\",null]`.
    /// Also where metadata holds a real JSON array instead of a string (be lenient).
    Many(Span),
}

/// Spans: `vm` and `data` are whole raw JSON values (strings with quotes), to be copied verbatim; `group` is the contents of a
/// JSON string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    Send { to: Recipients, vm: Span, data: Span },
    SendToMany { to: Recipients, vm: Span, data: Span },
    SendToGroup { group: Span, vm: Span, data: Span },
    SendToGroupExcept { group: Span, except: Option<Recipients>, vm: Span, data: Span },
    /// `users`: the raw JSON array of user ids, if it was an argument; else None and `listed` has metadata's.
    SendToUsers { users: Option<Span>, listed: Option<Recipients>, vm: Span, data: Span },
    AddToGroup { group: Span, who: Recipients },
    RemoveFromGroup { group: Span, who: Recipients },
    /// A two-element array: a response to the lane itself. Ignored and counted.
    ToLane,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseError {
    /// Not `Response_VM` with one array argument.
    NotAResponse,
    UnknownMethod,
    /// Arguments or metadata not of the method's form.
    Shape,
}

/// Reads an Invocation that came over a JSON lane.
pub fn parse_json(_record: &[u8], _message: &Message) -> Result<Delivery, ResponseError> {
    todo!()
}

/// Reads an Invocation that came over a MessagePack lane (spans into `record`, the body without prefix): strings are str bytes;
/// `vm`, `data` are str *contents* here.
pub fn parse_msgpack(_record: &[u8], _message: &Message) -> Result<Delivery, ResponseError> {
    todo!()
}

/// Calls `f` with each listed origin id (None for a JSON null). Ids longer than ORIGIN_ID_BYTES_MAX, or not strings, are passed over.
/// No allocation. Tolerates every legal escaping (`\"`, `\u0022`, `\\u002B`...).
pub fn each_recipient(_record: &[u8], _recipients: Recipients, _f: impl FnMut(Option<&[u8]>)) {
    todo!()
}

/// Appends the client's record: `{"type":1,"target":"Response_VM","arguments":[[<vm>,<data>]]}` + 0x1E, both copied verbatim.
pub fn write_client_json(_vm: &[u8], _data: &[u8], _out: &mut impl bytes::BufMut) {
    todo!()
}

/// Appends an error `Response_VM`: data = `{"ExceptionType":"<type>","Message":"<message>"}` as JSON text in a string (contract 1.4).
/// `vm` is the raw JSON string of the client's request.
pub fn write_exception_json(_vm: &[u8], _exception_type: &str, _message: &str, _out: &mut impl bytes::BufMut) {
    todo!()
}
