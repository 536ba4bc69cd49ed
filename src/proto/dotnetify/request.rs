//! A client's invocation as a dotNetify request (contract 1.3).
use crate::limits::METHOD_NAME_BYTES_MAX;
use crate::proto::signalr::json::{self, ValueKind};
use crate::proto::signalr::{Kind, Message, Span};

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

/// Spans are into the record the message was made from; `vm_id` and `argument` are whole raw JSON values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub call: Call,
    /// A JSON string, quotes included.
    pub vm_id: Span,
    /// vmArg or vmData as the client wrote it; None for Dispose_VM.
    pub argument: Option<Span>,
}

/// Answered (if there is an invocation id) with a completion error; the texts are those of the reference section 13.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// Unknown method, `Invoke` included: `Unknown hub method 'X'`.
    UnknownMethod,
    /// Wrong number of arguments: `Failed to invoke 'X' due to an error on the server.`
    ArgumentCount,
    /// vmId is not a string, or vmData neither object nor null: the same text.
    ArgumentType,
    /// StreamInvocation on one of ours: `The client attempted to invoke the non-streaming 'X' method with a streaming invocation.`
    Streaming,
}

impl RequestError {
    /// Appends the error text as plain text; `target` is the raw contents of the JSON string (unescaped and cut to
    /// METHOD_NAME_BYTES_MAX here, on a character boundary).
    pub fn write_text(self, target: &[u8], out: &mut impl bytes::BufMut) {
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
        json::unescape_chunks(target, |chunk| {
            let kept = &chunk[..character_boundary(chunk, room)];
            out.put_slice(kept);
            // Nothing more after the first cut, or a short character could follow a gap.
            room = if kept.len() == chunk.len() { room - kept.len() } else { 0 };
        });
        out.put_slice(after.as_bytes());
    }
}

/// Reads an Invocation or StreamInvocation. Method names compare case-insensitively; `Request_VM` takes 2 arguments,
/// `Update_VM` 2, `Dispose_VM` 1.
///
/// Faults come in ASP.NET's order: the method, its arguments, then the manner of the call.
pub fn parse(record: &[u8], message: &Message) -> Result<Request, RequestError> {
    debug_assert!(matches!(message.kind, Kind::Invocation | Kind::StreamInvocation));
    let target = message.target.map_or(&[][..], |target| target.of(record));
    let call = Call::ALL
        .into_iter()
        .find(|call| json::eq_ignore_case(target, call.name()))
        .ok_or(RequestError::UnknownMethod)?;
    // None of the methods takes an upload stream.
    if message.arguments.count != call.argument_count() || message.has_streams {
        return Err(RequestError::ArgumentCount);
    }
    let [vm_id, argument, ..] = message.arguments.spans;
    check_vm_id(vm_id.of(record))?;
    let argument = (call != Call::DisposeVm).then_some(argument);
    if let (Call::UpdateVm, Some(data)) = (call, argument)
        && !matches!(json::kind(data.of(record)), Some(ValueKind::Object | ValueKind::Null))
    {
        return Err(RequestError::ArgumentType);
    }
    if message.kind == Kind::StreamInvocation {
        return Err(RequestError::Streaming);
    }
    Ok(Request { call, vm_id, argument })
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
