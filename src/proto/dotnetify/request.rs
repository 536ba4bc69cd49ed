//! A client's invocation as a dotNetify request (contract 1.3).
use crate::limits::METHOD_NAME_BYTES_MAX;
use crate::proto::signalr::json::{self, ValueKind};
use crate::proto::signalr::transcode::to_json;
use crate::proto::signalr::{self, Kind, Message, Protocol, Span, msgpack};
use alloc::vec::Vec;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    RequestVm,
    UpdateVm,
    DisposeVm,
}

impl Call {
    pub const ALL: [Call; 3] = [Call::RequestVm, Call::UpdateVm, Call::DisposeVm];

    /// The hub method, as an app server's `Invoke` wants it.
    pub fn name(self) -> &'static str {
        match self {
            Call::RequestVm => "Request_VM",
            Call::UpdateVm => "Update_VM",
            Call::DisposeVm => "Dispose_VM",
        }
    }

    fn argument_count(self) -> u32 {
        match self {
            Call::RequestVm | Call::UpdateVm => 2,
            Call::DisposeVm => 1,
        }
    }
}

/// `vm_id` and `argument` are whole raw JSON values. Spans are into a JSON client's record, or into the JSON text that `transcode`
/// made of a MessagePack client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub call: Call,
    /// A JSON string, quotes included.
    pub vm_id: Span,
    /// vmArg or vmData as the client wrote it, or would have in JSON; None for Dispose_VM.
    pub argument: Option<Span>,
}

/// Answered (if there is an invocation id) with a completion error; the texts are those of the reference section 13.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// Unknown method, `Invoke` included: `Unknown hub method 'X'`.
    UnknownMethod,
    /// Wrong number of arguments: `Failed to invoke 'X' due to an error on the server.`
    ArgumentCount,
    /// vmId is not a string, vmData neither object nor null, or a MessagePack argument has no JSON text: the same text.
    ArgumentType,
    /// StreamInvocation on one of ours: `The client attempted to invoke the non-streaming 'X' method with a streaming invocation.`
    Streaming,
}

impl RequestError {
    /// Appends the error text as plain text; `target` is as `Message::target` gives it (made plain and cut to
    /// METHOD_NAME_BYTES_MAX here, on a character boundary).
    pub fn write_text(self, protocol: Protocol, target: &[u8], out: &mut impl bytes::BufMut) {
        let (before, after) = match self {
            RequestError::UnknownMethod => ("Unknown hub method '", "'"),
            RequestError::ArgumentCount | RequestError::ArgumentType => {
                ("Failed to invoke '", "' due to an error on the server.")
            }
            RequestError::Streaming => {
                ("The client attempted to invoke the non-streaming '", "' method with a streaming invocation.")
            }
        };
        out.put_slice(before.as_bytes());
        let mut room = METHOD_NAME_BYTES_MAX;
        signalr::plain_chunks(protocol, target, |chunk| {
            let kept = &chunk[..character_boundary(chunk, room)];
            out.put_slice(kept);
            // Nothing more after the first cut, or a short character could follow a gap.
            room = if kept.len() == chunk.len() { room - kept.len() } else { 0 };
        });
        out.put_slice(after.as_bytes());
    }
}

/// Reads a JSON client's Invocation or StreamInvocation. Method names compare case-insensitively; `Request_VM` takes 2 arguments,
/// `Update_VM` 2, `Dispose_VM` 1.
///
/// Faults come in ASP.NET's order: the method, its arguments, then the manner of the call.
pub fn parse(record: &[u8], message: &Message) -> Result<Request, RequestError> {
    let (call, vm_id, argument) = call(message, |span, name| json::eq_ignore_case(span.of(record), name))?;
    check_vm_id(vm_id.of(record))?;
    if let (Call::UpdateVm, Some(data)) = (call, argument)
        && !matches!(json::kind(data.of(record)), Some(ValueKind::Object | ValueKind::Null))
    {
        return Err(RequestError::ArgumentType);
    }
    check_manner(message)?;
    Ok(Request { call, vm_id, argument })
}

/// Reads a MessagePack client's Invocation or StreamInvocation by the same rules, and appends to `out`, which is empty, the JSON
/// text of its vmId and of its argument (contract 2.2). The request's spans are into `out`: from here on it is as if a JSON
/// client had sent it.
///
/// After an error `out` holds nothing of use.
pub fn transcode(body: &[u8], message: &Message, out: &mut Vec<u8>) -> Result<Request, RequestError> {
    debug_assert!(out.is_empty());
    let (call, vm_id, argument) = call(message, |span, name| span.of(body).eq_ignore_ascii_case(name.as_bytes()))?;
    let (vm_id, argument) = (vm_id.of(body), argument.map(|argument| argument.of(body)));
    if msgpack::text(vm_id).is_none() {
        return Err(RequestError::ArgumentType);
    }
    if let (Call::UpdateVm, Some(data)) = (call, argument)
        && !msgpack::is_nil(data)
        && !msgpack::is_map(data)
    {
        return Err(RequestError::ArgumentType);
    }
    let vm_id = append(vm_id, out)?;
    let argument = argument.map(|argument| append(argument, out)).transpose()?;
    check_manner(message)?;
    Ok(Request { call, vm_id, argument })
}

/// Which call it is, its vmId, and its argument unless it is Dispose_VM's. `is_named` compares the target with a method's name.
fn call(message: &Message, is_named: impl Fn(Span, &str) -> bool) -> Result<(Call, Span, Option<Span>), RequestError> {
    debug_assert!(matches!(message.kind, Kind::Invocation | Kind::StreamInvocation));
    let target = message.target.ok_or(RequestError::UnknownMethod)?;
    let call = Call::ALL.into_iter().find(|call| is_named(target, call.name())).ok_or(RequestError::UnknownMethod)?;
    // None of the methods takes an upload stream.
    if message.arguments.count != call.argument_count() || message.has_streams {
        return Err(RequestError::ArgumentCount);
    }
    let [vm_id, argument, ..] = message.arguments.spans;
    Ok((call, vm_id, (call != Call::DisposeVm).then_some(argument)))
}

fn check_manner(message: &Message) -> Result<(), RequestError> {
    if message.kind == Kind::StreamInvocation { Err(RequestError::Streaming) } else { Ok(()) }
}

/// Appends a MessagePack value as JSON text and says where it stands.
fn append(value: &[u8], out: &mut Vec<u8>) -> Result<Span, RequestError> {
    let start = out.len();
    to_json(value, out).map_err(|_| RequestError::ArgumentType)?;
    Ok(Span::new(start, out.len()))
}

/// A string that .NET can read: it goes to the app server verbatim, so half a surrogate pair must not.
fn check_vm_id(vm_id: &[u8]) -> Result<(), RequestError> {
    match vm_id {
        [b'"', contents @ .., b'"'] if json::is_well_formed(contents) => Ok(()),
        _ => Err(RequestError::ArgumentType),
    }
}

/// The largest length up to `room` that splits no UTF-8 character of `text`.
fn character_boundary(text: &[u8], room: usize) -> usize {
    if text.len() <= room {
        return text.len();
    }
    let mut length = room;
    while length > 0 && text[length] & 0xc0 == 0x80 {
        length -= 1;
    }
    length
}
