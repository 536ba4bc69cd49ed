//! A client's invocation as a dotNetify request (contract 1.3).
use crate::proto::signalr::{Message, Span};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    RequestVm,
    UpdateVm,
    DisposeVm,
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
    pub fn write_text(self, _target: &[u8], _out: &mut impl bytes::BufMut) {
        todo!()
    }
}

/// Reads an Invocation or StreamInvocation. Method names compare case-insensitively; `Request_VM` takes 2 arguments,
/// `Update_VM` 2, `Dispose_VM` 1.
pub fn parse(_record: &[u8], _message: &Message) -> Result<Request, RequestError> {
    todo!()
}
