//! Hub messages that a node writes itself, JSON and MessagePack: each function appends one whole record, framing included.
use super::json;
use super::msgpack::{self, write};
use super::record::RECORD_SEPARATOR;
use alloc::vec::Vec;
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

/// `[6]` with its length prefix.
pub const PING_MSGPACK: &[u8] = &[0x02, 0x91, 0x06];

/// `[3, {}, id, 3, nil]`; `id` is plain text.
pub fn completion_null_msgpack(id: &[u8], out: &mut Vec<u8>) {
    msgpack::write_record(out, |out| {
        completion_head(5, id, out);
        write::uint(3, out);
        write::nil(out);
    });
}

/// `[3, {}, id, 1, text]`.
pub fn completion_error_msgpack(id: &[u8], text: &str, out: &mut Vec<u8>) {
    msgpack::write_record(out, |out| {
        completion_head(5, id, out);
        write::uint(1, out);
        write::text(text.as_bytes(), out);
    });
}

/// `[7, error or nil, allowReconnect]`.
pub fn close_msgpack(error: Option<&str>, allow_reconnect: bool, out: &mut Vec<u8>) {
    msgpack::write_record(out, |out| {
        write::array_len(3, out);
        write::uint(7, out);
        match error {
            Some(error) => write::text(error.as_bytes(), out),
            None => write::nil(out),
        }
        write::boolean(allow_reconnect, out);
    });
}

fn completion_head(items: u32, id: &[u8], out: &mut Vec<u8>) {
    write::array_len(items, out);
    write::uint(3, out);
    write::map_len(0, out);
    write::text(id, out);
}
