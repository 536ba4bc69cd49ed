//! The MessagePack hub protocol, read and written with `rmp` (reference section 12.2). Bodies are given without their length
//! prefix. Views are zero-copy; nesting is bounded by JSON_DEPTH_MAX; extra trailing items are tolerated.
use super::{Message, MessageError};

/// Reads one message body into a view (5- and 6-element invocations, 2-element Close, nil ids...).
pub fn parse(_body: &[u8]) -> Result<Message, MessageError> {
    todo!()
}
