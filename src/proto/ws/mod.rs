//! WebSocket framing (RFC 6455), both roles, no extensions. Knows nothing of SignalR.
//!
//! ```text
//!  bytes of the peer ──► Decoder::next ──► Event::Data (a range of the input, unmasked in place)
//!                            │        ──► Event::Ping / Pong / Close (+ control_payload)
//!                            └──────────► WsError ──► close_code ──► what the peer is told
//!
//!  our message ──► header(..) ++ payload (a client masks it with apply_mask) ──► bytes to the peer
//! ```
//!
//! One machine serves both directions; [`Role`] says which side of the masking rule we are on.

mod close;
mod decoder;
mod header;
mod mask;
mod utf8;

pub use close::close_code_is_valid;
pub use decoder::Decoder;
pub use header::{Header, header};
pub use mask::apply_mask;

use core::ops::Range;

pub mod frame;

/// Which end of the connection this codec is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We are the server: every frame received must be masked, none sent is.
    Server,
    /// We are the client: no frame received may be masked, every one sent is.
    Client,
}

/// RFC 6455 §5.2: the opcodes that mean something. Every other value fails the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

impl Opcode {
    /// RFC 6455 §5.5: the most significant bit of the opcode marks a control frame.
    pub fn is_control(self) -> bool {
        self as u8 & 0b1000 != 0
    }

    fn from_bits(bits: u8) -> Option<Opcode> {
        Some(match bits {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            _ => return None,
        })
    }
}

/// What the decoder found next. Ranges are relative to the input of that call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A piece of a data message, already unmasked in place. `binary` is the message's kind; `start`/`end` mark the first
    /// and last piece of the message (both may be set; an empty message is one piece with an empty range).
    Data {
        binary: bool,
        start: bool,
        end: bool,
        range: Range<usize>,
    },
    /// A whole control frame; its payload is `Decoder::control_payload`, valid until the next call of `next`.
    Ping,
    Pong,
    /// The payload has been checked (RFC 6455 §5.5.1, §7.4); `code` is None when the frame had no payload. The reason is
    /// `control_payload()[2..]`. Nothing after a Close is decoded.
    Close {
        code: Option<u16>,
    },
}

/// Protocol violations. All are fatal for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WsError {
    /// §5.2: no extension was negotiated that would give RSV1-3 a meaning.
    ReservedBits,
    /// §5.2: opcodes 3-7 and 11-15.
    ReservedOpcode,
    /// §5.1: a client must mask every frame.
    Unmasked,
    /// §5.1: a server must not mask any frame.
    Masked,
    /// §5.5: control frames must not be fragmented.
    ControlFragmented,
    /// §5.5: control frames carry at most 125 bytes.
    ControlTooLong,
    /// §5.4: a continuation frame without a message to continue.
    ContinuationWithoutStart,
    /// §5.4: a new data frame before the message in progress ended.
    DataInsideMessage,
    /// §5.2: the length must be written in the shortest form.
    LengthNotMinimal,
    /// §5.2: the most significant bit of a 64-bit length must be 0.
    LengthTooLarge,
    /// §5.5.1: a close payload starts with a two-byte code, so one byte is too short.
    ClosePayload,
    /// §7.4: a close code that must not be sent.
    CloseCode,
    /// §8.1: text, or a close reason, that is not UTF-8.
    InvalidUtf8,
}

impl WsError {
    /// The close code the peer is told: 1002, or 1007 for text that is not UTF-8 (RFC 6455 §7.4.1).
    pub fn close_code(self) -> u16 {
        match self {
            WsError::InvalidUtf8 => 1007,
            WsError::ReservedBits
            | WsError::ReservedOpcode
            | WsError::Unmasked
            | WsError::Masked
            | WsError::ControlFragmented
            | WsError::ControlTooLong
            | WsError::ContinuationWithoutStart
            | WsError::DataInsideMessage
            | WsError::LengthNotMinimal
            | WsError::LengthTooLarge
            | WsError::ClosePayload
            | WsError::CloseCode => 1002,
        }
    }
}
