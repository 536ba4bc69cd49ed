//! How records travel to a client: its protocol inside its transport.
use super::lane::opcode;
use crate::proto::http;
use crate::proto::signalr::handshake::Protocol;
use crate::proto::ws::frame::write_frame;

/// Reference 7 to 9.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    WebSockets,
    ServerSentEvents,
    LongPolling,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    pub transport: Transport,
    pub protocol: Protocol,
}

impl Form {
    /// Forms are numbered so that one frame of each can be kept in a small array. MessagePack over Server-Sent Events has a number
    /// but no client: the handshake refuses it.
    pub const COUNT: usize = 6;

    pub fn index(self) -> usize {
        self.transport as usize * 2 + usize::from(self.protocol == Protocol::MessagePack)
    }

    /// Appends the records that `write` appends, framed for the transport.
    pub fn write<R>(self, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        match self.transport {
            Transport::WebSockets => write_frame(out, opcode(self.protocol), None, write),
            Transport::ServerSentEvents => http::write_event(out, write),
            // A poll's body is nothing but records (reference 9.1).
            Transport::LongPolling => write(out),
        }
    }
}
