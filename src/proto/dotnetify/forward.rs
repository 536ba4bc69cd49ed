//! The `Invoke` a lane carries to an app server (contract 2.1, 2.4).
use super::context::Context;
use super::request::Call;

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
pub fn write_json(_forward: &Forward<'_>, _context: &Context<'_>, _invocation_id: Option<u64>, _out: &mut alloc::vec::Vec<u8>) {
    todo!()
}

/// The same as one MessagePack record with its length prefix, for lanes with `use_message_pack`. Input is still a JSON
/// client's raw JSON text: vm_id is unescaped to a str, the argument is the JSON text as a str.
pub fn write_msgpack(_forward: &Forward<'_>, _context: &Context<'_>, _invocation_id: Option<u64>, _out: &mut alloc::vec::Vec<u8>) {
    todo!()
}
