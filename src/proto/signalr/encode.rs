//! Hub messages that a node writes itself: each function appends one whole record, framing included.
//!
//! An `id` is as `Message::invocation_id` gives it for the same protocol: the raw contents of a JSON string, or plain text.
use super::Protocol;
use super::json;
use super::msgpack::{self, write};
use super::record::RECORD_SEPARATOR;
use alloc::vec::Vec;

/// `{"type":6}` or `[6]`.
pub fn ping(protocol: Protocol) -> &'static [u8] {
    match protocol {
        Protocol::Json => b"{\"type\":6}\x1e",
        Protocol::MessagePack => &[0x02, 0x91, 0x06],
    }
}

/// `{"type":3,"invocationId":"<id>","result":null}` or `[3, {}, id, 3, nil]`.
///
/// The result is there, and null, because that is how ASP.NET answers a method without one (reference section 13.1).
pub fn completion_null(protocol: Protocol, id: &[u8], out: &mut Vec<u8>) {
    match protocol {
        Protocol::Json => {
            out.extend_from_slice(b"{\"type\":3,\"invocationId\":\"");
            out.extend_from_slice(id);
            out.extend_from_slice(b"\",\"result\":null}");
            out.push(RECORD_SEPARATOR);
        }
        Protocol::MessagePack => msgpack::write_record(out, |out| {
            completion_head(id, out);
            write::uint(RESULT_VALUE, out);
            write::nil(out);
        }),
    }
}

/// `{"type":3,"invocationId":"<id>","error":"<text>"}` or `[3, {}, id, 1, text]`.
pub fn completion_error(protocol: Protocol, id: &[u8], text: &str, out: &mut Vec<u8>) {
    match protocol {
        Protocol::Json => {
            out.extend_from_slice(b"{\"type\":3,\"invocationId\":\"");
            out.extend_from_slice(id);
            out.extend_from_slice(b"\",\"error\":\"");
            json::escape(text.as_bytes(), out);
            out.extend_from_slice(b"\"}");
            out.push(RECORD_SEPARATOR);
        }
        Protocol::MessagePack => msgpack::write_record(out, |out| {
            completion_head(id, out);
            write::uint(RESULT_ERROR, out);
            write::text(text.as_bytes(), out);
        }),
    }
}

/// `{"type":7,"error":"...","allowReconnect":true}` (members only when set / true) or `[7, error or nil, allowReconnect]`.
pub fn close(protocol: Protocol, error: Option<&str>, allow_reconnect: bool, out: &mut Vec<u8>) {
    match protocol {
        Protocol::Json => {
            out.extend_from_slice(b"{\"type\":7");
            if let Some(error) = error {
                out.extend_from_slice(b",\"error\":\"");
                json::escape(error.as_bytes(), out);
                out.push(b'"');
            }
            if allow_reconnect {
                out.extend_from_slice(b",\"allowReconnect\":true");
            }
            out.push(b'}');
            out.push(RECORD_SEPARATOR);
        }
        Protocol::MessagePack => msgpack::write_record(out, |out| {
            write::array_len(3, out);
            write::uint(7, out);
            match error {
                Some(error) => write::text(error.as_bytes(), out),
                None => write::nil(out),
            }
            write::boolean(allow_reconnect, out);
        }),
    }
}

/// `{"type":8,"sequenceId":n}` or `[8, n]`: the highest counted message received (reference section 14). `sequence_id` is below
/// 2^63, the peers' integers are signed.
pub fn ack(protocol: Protocol, sequence_id: u64, out: &mut Vec<u8>) {
    numbered(protocol, 8, sequence_id, out);
}

/// `{"type":9,"sequenceId":n}` or `[9, n]`: the first counted message that will be sent now (reference section 14). `sequence_id`
/// is below 2^63.
pub fn sequence(protocol: Protocol, sequence_id: u64, out: &mut Vec<u8>) {
    numbered(protocol, 9, sequence_id, out);
}

/// Result kinds of a MessagePack completion (reference section 12.2).
const RESULT_ERROR: u64 = 1;
const RESULT_VALUE: u64 = 3;

/// The first three of a completion's five items.
fn completion_head(id: &[u8], out: &mut Vec<u8>) {
    write::array_len(5, out);
    write::uint(3, out);
    write::map_len(0, out);
    write::text(id, out);
}

fn numbered(protocol: Protocol, kind: u64, sequence_id: u64, out: &mut Vec<u8>) {
    debug_assert!(i64::try_from(sequence_id).is_ok());
    match protocol {
        Protocol::Json => {
            out.extend_from_slice(b"{\"type\":");
            json::integer(kind, out);
            out.extend_from_slice(b",\"sequenceId\":");
            json::integer(sequence_id, out);
            out.push(b'}');
            out.push(RECORD_SEPARATOR);
        }
        Protocol::MessagePack => msgpack::write_record(out, |out| {
            write::array_len(2, out);
            write::uint(kind, out);
            write::uint(sequence_id, out);
        }),
    }
}
