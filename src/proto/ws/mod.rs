//! WebSocket framing (RFC 6455), both roles, no extensions. Knows nothing of SignalR.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// What the decoder found next. Ranges are relative to the input of that call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A piece of a data message, already unmasked in place. `binary` is the message's kind; `start`/`end` mark the first
    /// and last piece of the message (both may be set; an empty message is one piece with an empty range).
    Data { binary: bool, start: bool, end: bool, range: Range<usize> },
    /// A whole control frame; its payload is `Decoder::control_payload`, valid until the next call of `next`.
    Ping,
    Pong,
    /// The payload has been checked (RFC 6455 §5.5.1, §7.4); `code` is None when the frame had no payload. The reason is
    /// `control_payload()[2..]`. Nothing after a Close is decoded.
    Close { code: Option<u16> },
}

/// Protocol violations. All are fatal for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WsError {
    ReservedBits,
    ReservedOpcode,
    Unmasked,
    Masked,
    ControlFragmented,
    ControlTooLong,
    ContinuationWithoutStart,
    DataInsideMessage,
    LengthNotMinimal,
    LengthTooLarge,
    ClosePayload,
    CloseCode,
    InvalidUtf8,
}

impl WsError {
    /// The close code the peer is told: 1002, or 1007 for text that is not UTF-8.
    pub fn close_code(self) -> u16 {
        todo!()
    }
}

/// Streaming decoder. Holds no payload: a piece of a frame is handed out as it arrives; only control payloads (<= 125 bytes)
/// are gathered, in a box that exists while a control frame is in progress. `size_of::<Decoder>() <= 56` (asserted).
pub struct Decoder {
    _private: (),
}

impl Decoder {
    pub fn new(_role: Role) -> Self {
        todo!()
    }

    /// Decodes the next event from the front of `input`, unmasking in place. Returns how many bytes were consumed and the
    /// event; `None` means all of `input` was consumed and more is needed. Cost is linear however the input is split.
    /// UTF-8 of text messages is checked incrementally, per message (a character may be split between fragments).
    /// After an error or a Close, further calls consume everything and return `None`.
    pub fn next(&mut self, _input: &mut [u8]) -> Result<(usize, Option<Event>), WsError> {
        todo!()
    }

    /// Payload of the control frame last returned.
    pub fn control_payload(&self) -> &[u8] {
        todo!()
    }
}

/// A frame header as bytes (`as_ref()`), at most 14.
#[derive(Clone, Copy)]
pub struct Header {
    _private: (),
}

impl AsRef<[u8]> for Header {
    fn as_ref(&self) -> &[u8] {
        todo!()
    }
}

/// Builds a frame header (RSV 0, minimal length form, mask key if given).
pub fn header(_opcode: Opcode, _fin: bool, _payload_bytes: u64, _mask: Option<[u8; 4]>) -> Header {
    todo!()
}

/// XORs `data` with the mask; `offset` is the position of `data[0]` in the frame's payload. Fast (word-wise/auto-vectorised).
pub fn apply_mask(_data: &mut [u8], _key: [u8; 4], _offset: usize) {
    todo!()
}

/// May this code stand in a Close frame (RFC 6455 §7.4)?
pub fn close_code_is_valid(_code: u16) -> bool {
    todo!()
}
