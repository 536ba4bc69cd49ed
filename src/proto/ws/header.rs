//! Frame headers (RFC 6455 §5.2).
//!
//! ```text
//!   byte 0             byte 1          then, by length           if masked
//!  ┌───┬────┬───────┐ ┌────┬────────┐ ┌─────────────────────┐   ┌──────────────┐
//!  │FIN│RSV3│ opcode│ │MASK│ length │ │ 126: u16, 127: u64  │   │ 4 bytes of key│
//!  └───┴────┴───────┘ └────┴────────┘ └─────────────────────┘   └──────────────┘
//! ```
use super::Opcode;
use crate::limits::{WS_CONTROL_BYTES_MAX, WS_HEADER_BYTES_MAX};

pub(super) const FIN: u8 = 0x80;
pub(super) const RESERVED: u8 = 0x70;
pub(super) const OPCODE: u8 = 0x0f;
pub(super) const MASK: u8 = 0x80;
pub(super) const LENGTH: u8 = 0x7f;
/// Length fields that announce an extended length.
pub(super) const LENGTH_U16: u8 = 126;
pub(super) const LENGTH_U64: u8 = 127;

/// A frame header as bytes (`as_ref()`), at most 14.
#[derive(Clone, Copy)]
pub struct Header {
    bytes: [u8; WS_HEADER_BYTES_MAX],
    len: u8,
}

impl AsRef<[u8]> for Header {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

/// Builds a frame header (RSV 0, minimal length form, mask key if given).
pub fn header(opcode: Opcode, fin: bool, payload_bytes: u64, mask: Option<[u8; 4]>) -> Header {
    // Both are our own doing, never a peer's (RFC 6455 §5.5 and §5.2).
    debug_assert!(!opcode.is_control() || (fin && payload_bytes <= WS_CONTROL_BYTES_MAX as u64));
    debug_assert!(payload_bytes >> 63 == 0);

    let mut bytes = [0; WS_HEADER_BYTES_MAX];
    bytes[0] = opcode as u8 | if fin { FIN } else { 0 };
    let mut len = 2;
    bytes[1] = if payload_bytes < LENGTH_U16 as u64 {
        payload_bytes as u8
    } else if let Ok(short) = u16::try_from(payload_bytes) {
        bytes[2..4].copy_from_slice(&short.to_be_bytes());
        len = 4;
        LENGTH_U16
    } else {
        bytes[2..10].copy_from_slice(&payload_bytes.to_be_bytes());
        len = 10;
        LENGTH_U64
    };
    if let Some(key) = mask {
        bytes[1] |= MASK;
        bytes[len..len + 4].copy_from_slice(&key);
        len += 4;
    }
    Header { bytes, len: len as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_section_5_7() {
        assert_eq!(header(Opcode::Text, true, 5, None).as_ref(), [0x81, 0x05]);
        assert_eq!(
            header(Opcode::Text, true, 5, Some([0x37, 0xfa, 0x21, 0x3d])).as_ref(),
            [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d]
        );
        assert_eq!(header(Opcode::Text, false, 3, None).as_ref(), [0x01, 0x03]);
        assert_eq!(header(Opcode::Continuation, true, 2, None).as_ref(), [0x80, 0x02]);
        assert_eq!(header(Opcode::Ping, true, 5, None).as_ref(), [0x89, 0x05]);
        assert_eq!(header(Opcode::Binary, true, 256, None).as_ref(), [0x82, 0x7e, 0x01, 0x00]);
        assert_eq!(header(Opcode::Binary, true, 65536, None).as_ref(), [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn lengths_are_minimal_at_each_edge() {
        let bytes = |payload| header(Opcode::Binary, true, payload, None).as_ref().len();
        assert_eq!([0, 125, 126, 65535, 65536, i64::MAX as u64].map(bytes), [2, 2, 4, 4, 10, 10]);
        assert_eq!(header(Opcode::Close, true, 0, Some([0; 4])).as_ref().len(), 6);
        assert_eq!(header(Opcode::Text, true, i64::MAX as u64, Some([9; 4])).as_ref().len(), WS_HEADER_BYTES_MAX);
    }
}
