//! The `Invoke` a lane carries to an app server (contract 2.1, 2.4).
//!
//! ```text
//! {"type":1,"target":"Invoke","arguments":["Update_VM",["HelloWorldVM","{\"Age\":5}"],{"$fwdConnContext":"{..}"}]}␞
//!                                           call        vm_id (raw)    argument (escaped)                context
//! ```
use super::context::{self, Context, Items};
use super::request::Call;
use crate::proto::signalr::msgpack::{self, write};
use crate::proto::signalr::record::RECORD_SEPARATOR;
use crate::proto::signalr::{Protocol, json, transcode};
use alloc::vec::Vec;

#[derive(Clone, Copy)]
pub enum Forward<'a> {
    /// vm_id: raw JSON string with quotes; argument: raw JSON text (None or `null` for Request_VM -> null).
    /// For Update_VM `null` goes as the text "null", as the original does.
    Vm { call: Call, vm_id: &'a [u8], argument: Option<&'a [u8]> },
    /// `OnDisconnectedAsync`, `[null]`.
    Disconnected,
}

/// Appends one whole record with the framing of the lane's protocol, everything written once: literals, the client's raw bytes,
/// the context, and the metadata's further members (`Context::items`). Must not allocate beyond `out`'s growth. `invocation_id`
/// is for acknowledged lanes.
///
/// The input is JSON on either lane. JSON: the vmId is copied, the argument's text escaped into a string. MessagePack: the vmId's
/// text is a str, the argument's text is one.
pub fn write(
    protocol: Protocol,
    forward: &Forward<'_>,
    context: &Context<'_>,
    invocation_id: Option<u64>,
    out: &mut Vec<u8>,
) {
    match protocol {
        Protocol::Json => write_json(forward, context, invocation_id, out),
        Protocol::MessagePack => {
            let length = context::written_len(protocol, context);
            let write_context = |out: &mut Vec<u8>| context::write(protocol, context, out);
            write_message_pack(forward, length, write_context, context.items, invocation_id, out);
        }
    }
}

fn write_json(forward: &Forward<'_>, context: &Context<'_>, invocation_id: Option<u64>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"type\":1,");
    if let Some(id) = invocation_id {
        out.extend_from_slice(b"\"invocationId\":\"");
        json::integer(id, out);
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
    context::write(Protocol::Json, context, out);
    out.push(b'"');
    out.extend_from_slice(context.items.bytes);
    out.extend_from_slice(b"}]}");
    out.push(RECORD_SEPARATOR);
}

/// With any context text, whose length is known first. The reference's vectors have one without a time stamp.
fn write_message_pack(
    forward: &Forward<'_>,
    context_len: usize,
    write_context: impl FnOnce(&mut Vec<u8>),
    items: Items<'_>,
    invocation_id: Option<u64>,
    out: &mut Vec<u8>,
) {
    msgpack::write_record(out, |out| {
        // [1, {}, id or nil, "Invoke", [name, [args..], {"$fwdConnContext": text, ..}], []]
        write::array_len(6, out);
        write::uint(1, out);
        write::map_len(0, out);
        match invocation_id {
            Some(id) => write::text_with(out, |out| json::integer(id, out)),
            None => write::nil(out),
        }
        write::text(b"Invoke", out);
        write::array_len(3, out);
        match *forward {
            Forward::Vm { call, vm_id, argument } => {
                write::text(call.name().as_bytes(), out);
                let argument = argument_text(call, argument);
                write::array_len(if matches!(argument, Argument::Absent) { 1 } else { 2 }, out);
                transcode::to_text(vm_id, out);
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
        write::map_len(1 + items.count, out);
        write::text(b"$fwdConnContext", out);
        write::text_len(context_len, out);
        let start = out.len();
        write_context(out);
        debug_assert_eq!(out.len() - start, context_len);
        out.extend_from_slice(items.bytes);
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

#[cfg(test)]
mod tests {
    use super::*;

    const TOY: &[u8] = b"{\"HubId\":\"h\",\"ConnectionId\":\"c\"}";

    fn hex(bytes: &[u8]) -> alloc::string::String {
        bytes.iter().map(|byte| alloc::format!("{byte:02x}")).collect()
    }

    fn with_toy_context(forward: &Forward<'_>) -> alloc::string::String {
        let mut out = alloc::vec![0xaa];
        write_message_pack(forward, TOY.len(), |out| out.extend_from_slice(TOY), Items::default(), None, &mut out);
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
}
