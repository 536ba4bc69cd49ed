//! The `Invoke` a lane carries to an app server (contract 2.1, 2.4).
//!
//! ```text
//! {"type":1,"target":"Invoke","arguments":["Update_VM",["HelloWorldVM","{\"Age\":5}"],{"$fwdConnContext":"{..}"}]}␞
//!                                           call        vm_id (raw)    argument (escaped)                context
//! ```
use super::context::{self, Context, Embedding};
use super::request::Call;
use crate::proto::signalr::json;
use crate::proto::signalr::msgpack::{self, write};
use crate::proto::signalr::record::RECORD_SEPARATOR;
use alloc::vec::Vec;

#[derive(Clone, Copy)]
pub enum Forward<'a> {
    /// vm_id: raw JSON string with quotes; argument: raw JSON text (None or `null` for Request_VM -> null).
    /// For Update_VM `null` goes as the text "null", as the original does.
    Vm { call: Call, vm_id: &'a [u8], argument: Option<&'a [u8]> },
    /// `OnDisconnectedAsync`, `[null]`.
    Disconnected,
}

/// Appends one whole JSON record with its 0x1E, everything written once: literals, the client's raw bytes (escaped into a
/// string), the context. Must not allocate beyond `out`'s growth. `invocation_id` adds `"invocationId":"n"` after "type"
/// (acknowledged lanes).
pub fn write_json(forward: &Forward<'_>, context: &Context<'_>, invocation_id: Option<u64>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"type\":1,");
    if let Some(id) = invocation_id {
        out.extend_from_slice(b"\"invocationId\":\"");
        out.extend_from_slice(decimal(id, &mut [0; DECIMAL_BYTES]));
        out.extend_from_slice(b"\",");
    }
    out.extend_from_slice(b"\"target\":\"Invoke\",\"arguments\":[\"");
    match *forward {
        Forward::Vm { call, vm_id, argument } => {
            out.extend_from_slice(call.name().as_bytes());
            out.extend_from_slice(b"\",[");
            out.extend_from_slice(vm_id);
            match argument_text(call, argument) {
                Argument::Absent => {}
                Argument::Null => out.extend_from_slice(b",null"),
                Argument::Text(text) => {
                    out.extend_from_slice(b",\"");
                    json::escape(text, out);
                    out.push(b'"');
                }
            }
        }
        Forward::Disconnected => out.extend_from_slice(b"OnDisconnectedAsync\",[null"),
    }
    out.extend_from_slice(b"],{\"$fwdConnContext\":\"");
    context::write(context, Embedding::Json, out);
    out.extend_from_slice(b"\"}]}");
    out.push(RECORD_SEPARATOR);
}

/// The same as one MessagePack record with its length prefix, for lanes with `use_message_pack`. Input is still a JSON
/// client's raw JSON text: vm_id is unescaped to a str, the argument is the JSON text as a str.
pub fn write_msgpack(forward: &Forward<'_>, context: &Context<'_>, invocation_id: Option<u64>, out: &mut Vec<u8>) {
    let length = context::written_len(context, Embedding::MessagePack);
    write_msgpack_with(forward, length, |out| context::write(context, Embedding::MessagePack, out), invocation_id, out);
}

/// `write_msgpack` with any context text, whose length is known first. The reference's vectors have one without a time stamp.
fn write_msgpack_with(
    forward: &Forward<'_>,
    context_len: usize,
    write_context: impl FnOnce(&mut Vec<u8>),
    invocation_id: Option<u64>,
    out: &mut Vec<u8>,
) {
    msgpack::write_record(out, |out| {
        // [1, {}, id or nil, "Invoke", [name, [args..], {"$fwdConnContext": text}], []]
        write::array_len(6, out);
        write::uint(1, out);
        write::map_len(0, out);
        match invocation_id {
            Some(id) => write::text(decimal(id, &mut [0; DECIMAL_BYTES]), out),
            None => write::nil(out),
        }
        write::text(b"Invoke", out);
        write::array_len(3, out);
        match *forward {
            Forward::Vm { call, vm_id, argument } => {
                write::text(call.name().as_bytes(), out);
                let argument = argument_text(call, argument);
                write::array_len(if matches!(argument, Argument::Absent) { 1 } else { 2 }, out);
                write_unescaped(vm_id, out);
                match argument {
                    Argument::Absent => {}
                    Argument::Null => write::nil(out),
                    Argument::Text(text) => write::text(text, out),
                }
            }
            Forward::Disconnected => {
                write::text(b"OnDisconnectedAsync", out);
                write::array_len(1, out);
                write::nil(out);
            }
        }
        write::map_len(1, out);
        write::text(b"$fwdConnContext", out);
        write::text_len(context_len, out);
        let start = out.len();
        write_context(out);
        debug_assert_eq!(out.len() - start, context_len);
        write::array_len(0, out);
    });
}

/// The second of the method's arguments.
enum Argument<'a> {
    /// The method has only one.
    Absent,
    Null,
    Text(&'a [u8]),
}

fn argument_text(call: Call, argument: Option<&[u8]>) -> Argument<'_> {
    match (call, argument) {
        (Call::DisposeVm, _) => Argument::Absent,
        (Call::RequestVm, None | Some(b"null")) => Argument::Null,
        (Call::UpdateVm, None) => Argument::Text(b"null"),
        (_, Some(text)) => Argument::Text(text),
    }
}

/// Appends a raw JSON string as a str. Its length is counted first, which costs a second walk only where it has escapes.
fn write_unescaped(string: &[u8], out: &mut Vec<u8>) {
    debug_assert!(string.len() >= 2 && string[0] == b'"' && string[string.len() - 1] == b'"');
    let contents = &string[1..string.len() - 1];
    let mut length = 0;
    json::unescape_chunks(contents, |chunk| length += chunk.len());
    write::text_len(length, out);
    json::unescape(contents, out);
}

/// Digits of `u64::MAX`.
const DECIMAL_BYTES: usize = 20;

/// `number` in decimal, at the end of `room`.
fn decimal(mut number: u64, room: &mut [u8; DECIMAL_BYTES]) -> &[u8] {
    let mut start = DECIMAL_BYTES;
    loop {
        start -= 1;
        room[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &room[start..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOY: &[u8] = b"{\"HubId\":\"h\",\"ConnectionId\":\"c\"}";

    fn hex(bytes: &[u8]) -> alloc::string::String {
        bytes.iter().map(|byte| alloc::format!("{byte:02x}")).collect()
    }

    fn with_toy_context(forward: &Forward<'_>) -> alloc::string::String {
        let mut out = alloc::vec![0xaa];
        write_msgpack_with(forward, TOY.len(), |out| out.extend_from_slice(TOY), None, &mut out);
        assert_eq!(out[0], 0xaa, "it appends");
        hex(&out[1..])
    }

    /// Contract 2.4, `vectors/upstream-msgpack.txt`: REQ and OFF.
    #[test]
    fn msgpack_vectors_come_out_byte_for_byte() {
        let request = Forward::Vm {
            call: Call::RequestVm,
            vm_id: b"\"HelloWorldVM\"",
            argument: Some(b"{\"$vmArg\":{\"Name\":\"x\"}}"),
        };
        assert_eq!(
            with_toy_context(&request),
            "71960180c0a6496e766f6b6593aa526571756573745f564d92ac48656c6c6f576f726c64564db77b2224766d417267223a7b224e616d65223a2278\
             227d7d81af24667764436f6e6e436f6e74657874d9207b224875624964223a2268222c22436f6e6e656374696f6e4964223a2263227d90"
        );
        assert_eq!(
            with_toy_context(&Forward::Disconnected),
            "56960180c0a6496e766f6b6593b34f6e446973636f6e6e65637465644173796e6391c081af24667764436f6e6e436f6e74657874d9207b22487562\
             4964223a2268222c22436f6e6e656374696f6e4964223a2263227d90"
        );
    }

    #[test]
    fn decimals_have_every_digit() {
        for number in [0, 7, 10, 12345, u64::MAX] {
            assert_eq!(decimal(number, &mut [0; DECIMAL_BYTES]), alloc::format!("{number}").as_bytes());
        }
    }
}
