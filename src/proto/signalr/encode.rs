//! Hub messages that a node writes itself, JSON: each appends one whole record with its 0x1E.
use bytes::BufMut;

pub const PING_JSON: &[u8] = b"{\"type\":6}\x1e";

/// `{"type":3,"invocationId":"<id>","result":null}`; `id` is the raw contents of the client's JSON string.
pub fn completion_null(_id: &[u8], _out: &mut impl BufMut) {
    todo!()
}
/// `{"type":3,"invocationId":"<id>","error":"<text>"}`; `text` is plain text.
pub fn completion_error(_id: &[u8], _text: &str, _out: &mut impl BufMut) {
    todo!()
}
/// `{"type":7,"error":"...","allowReconnect":true}` (members only when set / true).
pub fn close(_error: Option<&str>, _allow_reconnect: bool, _out: &mut impl BufMut) {
    todo!()
}
