//! Hub messages that a node writes itself. JSON: each appends one whole record with its 0x1E.
use super::json;
use super::record::RECORD_SEPARATOR;
use bytes::BufMut;

pub const PING_JSON: &[u8] = b"{\"type\":6}\x1e";

/// `{"type":3,"invocationId":"<id>","result":null}`; `id` is the raw contents of the client's JSON string.
///
/// The result is there, and null, because that is how ASP.NET answers a method without one (reference section 13.1).
pub fn completion_null(id: &[u8], out: &mut impl BufMut) {
    out.put_slice(b"{\"type\":3,\"invocationId\":\"");
    out.put_slice(id);
    out.put_slice(b"\",\"result\":null}");
    out.put_u8(RECORD_SEPARATOR);
}

/// `{"type":3,"invocationId":"<id>","error":"<text>"}`; `text` is plain text.
pub fn completion_error(id: &[u8], text: &str, out: &mut impl BufMut) {
    out.put_slice(b"{\"type\":3,\"invocationId\":\"");
    out.put_slice(id);
    out.put_slice(b"\",\"error\":\"");
    json::escape(text.as_bytes(), out);
    out.put_slice(b"\"}");
    out.put_u8(RECORD_SEPARATOR);
}

/// `{"type":7,"error":"...","allowReconnect":true}` (members only when set / true).
pub fn close(error: Option<&str>, allow_reconnect: bool, out: &mut impl BufMut) {
    out.put_slice(b"{\"type\":7");
    if let Some(error) = error {
        out.put_slice(b",\"error\":\"");
        json::escape(error.as_bytes(), out);
        out.put_u8(b'"');
    }
    if allow_reconnect {
        out.put_slice(b",\"allowReconnect\":true");
    }
    out.put_u8(b'}');
    out.put_u8(RECORD_SEPARATOR);
}
