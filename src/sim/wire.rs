//! How foreign programs speak: WebSocket frames and SignalR records, written once more and apart from `proto`, or both sides of a
//! simulated wire would share one mistake.
use serde_json::{Value, json};

pub(super) const TEXT: u8 = 1;
pub(super) const BINARY: u8 = 2;
const CONTINUATION: u8 = 0;
pub(super) const CLOSE: u8 = 8;
pub(super) const PING: u8 = 9;
pub(super) const PONG: u8 = 10;

/// A frame of RFC 6455 section 5.2.
pub(super) fn frame(opcode: u8, fin: bool, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![opcode | u8::from(fin) << 7];
    let masked = u8::from(mask.is_some()) << 7;
    match payload.len() {
        short @ 0..=125 => bytes.push(masked | short as u8),
        medium @ 126..=0xffff => {
            bytes.push(masked | 126);
            bytes.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            bytes.push(masked | 127);
            bytes.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    match mask {
        Some(mask) => {
            bytes.extend_from_slice(&mask);
            bytes.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
        }
        None => bytes.extend_from_slice(payload),
    }
    bytes
}

/// Puts what arrives together again.
#[derive(Default)]
pub(super) struct Reader {
    bytes: Vec<u8>,
    message: Vec<u8>,
    is_text: bool,
    /// Must frames be masked? Those of clients are.
    masked: bool,
}

#[derive(Debug, PartialEq)]
pub(super) enum Frame {
    /// A whole message; its records may be cut.
    Data {
        is_text: bool,
        payload: Vec<u8>,
    },
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
}

impl Reader {
    pub(super) fn of_clients() -> Reader {
        Reader { masked: true, ..Reader::default() }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame that is there whole, or what is wrong with it.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, String> {
        loop {
            let [first, second, ..] = self.bytes[..] else { return Ok(None) };
            if (second & 0x80 != 0) != self.masked {
                return Err("a frame is masked that should not be, or the other way round".into());
            }
            let (mut at, length) = match second & 0x7f {
                126 => (4, self.bytes.get(2..4).map(|bytes| usize::from(bytes[0]) << 8 | usize::from(bytes[1]))),
                127 => (
                    10,
                    self.bytes.get(2..10).map(|bytes| bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte))),
                ),
                short => (2, Some(usize::from(short))),
            };
            let Some(length) = length else { return Ok(None) };
            let mask: [u8; 4] = match (self.masked, self.bytes.get(at..at + 4)) {
                (true, Some(mask)) => {
                    at += 4;
                    mask.try_into().expect("four bytes")
                }
                (true, None) => return Ok(None),
                (false, _) => [0; 4],
            };
            if self.bytes.len() < at + length {
                return Ok(None);
            }
            let mut payload = self.bytes[at..at + length].to_vec();
            if self.masked {
                payload.iter_mut().enumerate().for_each(|(at, byte)| *byte ^= mask[at % 4]);
            }
            self.bytes.drain(..at + length);
            let fin = first & 0x80 != 0;
            match first & 0x0f {
                opcode @ (TEXT | BINARY) => {
                    self.is_text = opcode == TEXT;
                    self.message = payload;
                }
                CONTINUATION => self.message.extend_from_slice(&payload),
                CLOSE => {
                    let code = payload.get(..2).map(|code| u16::from_be_bytes([code[0], code[1]]));
                    return Ok(Some(Frame::Close(code)));
                }
                PING => return Ok(Some(Frame::Ping(payload))),
                PONG => return Ok(Some(Frame::Pong)),
                other => return Err(format!("a frame has the opcode {other}")),
            }
            if fin {
                let payload = core::mem::take(&mut self.message);
                return Ok(Some(Frame::Data { is_text: self.is_text, payload }));
            }
        }
    }
}

/// How records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Json,
    MessagePack,
}

impl Encoding {
    pub(super) fn opcode(self) -> u8 {
        match self {
            Encoding::Json => TEXT,
            Encoding::MessagePack => BINARY,
        }
    }
}

/// A message of the hub protocol, as far as these models speak it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Record {
    Invocation { id: Option<String>, target: String, arguments: Vec<Value> },
    Completion { id: String, error: Option<String> },
    Ping,
    Close { error: Option<String>, allow_reconnect: bool },
}

impl Record {
    pub(super) fn write(&self, encoding: Encoding) -> Vec<u8> {
        match encoding {
            Encoding::Json => {
                let value = match self {
                    Record::Invocation { id: Some(id), target, arguments } => {
                        json!({"type": 1, "invocationId": id, "target": target, "arguments": arguments})
                    }
                    Record::Invocation { id: None, target, arguments } => {
                        json!({"type": 1, "target": target, "arguments": arguments})
                    }
                    Record::Completion { id, error: Some(error) } => {
                        json!({"type": 3, "invocationId": id, "error": error})
                    }
                    Record::Completion { id, error: None } => json!({"type": 3, "invocationId": id, "result": null}),
                    Record::Ping => json!({"type": 6}),
                    Record::Close { error, allow_reconnect } => {
                        json!({"type": 7, "error": error, "allowReconnect": allow_reconnect})
                    }
                };
                let mut bytes = value.to_string().into_bytes();
                bytes.push(0x1e);
                bytes
            }
            Encoding::MessagePack => {
                let value = match self {
                    Record::Invocation { id, target, arguments } => json!([1, {}, id, target, arguments, []]),
                    Record::Completion { id, error: Some(error) } => json!([3, {}, id, 1, error]),
                    Record::Completion { id, error: None } => json!([3, {}, id, 3, null]),
                    Record::Ping => json!([6]),
                    Record::Close { error, allow_reconnect } => json!([7, error, allow_reconnect]),
                };
                let value = rmpv::ext::to_value(value).expect("every JSON value is one of MessagePack's");
                let mut body = Vec::new();
                rmpv::encode::write_value(&mut body, &value).expect("a list takes everything");
                let (mut bytes, mut length) = (Vec::new(), body.len());
                while length > 0x7f {
                    bytes.push(length as u8 | 0x80);
                    length >>= 7;
                }
                bytes.push(length as u8);
                bytes.extend(body);
                bytes
            }
        }
    }

    fn read(encoding: Encoding, body: &[u8]) -> Result<Record, String> {
        let value: Value = match encoding {
            Encoding::Json => serde_json::from_slice(body).map_err(|error| error.to_string())?,
            Encoding::MessagePack => {
                let value = rmpv::decode::read_value(&mut &body[..]).map_err(|error| error.to_string())?;
                serde_json::to_value(value).map_err(|error| error.to_string())?
            }
        };
        let text = |value: &Value| value.as_str().map(str::to_string);
        let record = match (encoding, &value) {
            (Encoding::Json, object) => match object["type"].as_u64() {
                Some(1) => Record::Invocation {
                    id: text(&object["invocationId"]),
                    target: text(&object["target"]).unwrap_or_default(),
                    arguments: object["arguments"].as_array().cloned().unwrap_or_default(),
                },
                Some(3) => Record::Completion {
                    id: text(&object["invocationId"]).unwrap_or_default(),
                    error: text(&object["error"]),
                },
                Some(6) => Record::Ping,
                Some(7) => Record::Close {
                    error: text(&object["error"]),
                    allow_reconnect: object["allowReconnect"].as_bool().unwrap_or_default(),
                },
                _ => return Err(format!("a record of no known type: {value}")),
            },
            (Encoding::MessagePack, array) => match array[0].as_u64() {
                Some(1) => Record::Invocation {
                    id: text(&array[2]),
                    target: text(&array[3]).unwrap_or_default(),
                    arguments: array[4].as_array().cloned().unwrap_or_default(),
                },
                Some(3) => Record::Completion {
                    id: text(&array[2]).unwrap_or_default(),
                    error: text(&array[4]).filter(|_| array[3] == 1),
                },
                Some(6) => Record::Ping,
                Some(7) => {
                    Record::Close { error: text(&array[1]), allow_reconnect: array[2].as_bool().unwrap_or_default() }
                }
                _ => return Err(format!("a record of no known type: {value}")),
            },
        };
        Ok(record)
    }
}

/// The records in a stream of messages.
#[derive(Default)]
pub(super) struct Records {
    bytes: Vec<u8>,
}

impl Records {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn next(&mut self, encoding: Encoding) -> Result<Option<Record>, String> {
        Ok(self.next_sized(encoding)?.map(|(record, _)| record))
    }

    /// With its bytes, framing included.
    pub(super) fn next_sized(&mut self, encoding: Encoding) -> Result<Option<(Record, usize)>, String> {
        let Some((from, to, end)) = self.bounds(encoding) else { return Ok(None) };
        let record = Record::read(encoding, &self.bytes[from..to]);
        self.bytes.drain(..end);
        record.map(|record| Some((record, end)))
    }

    /// The answer to a handshake, which is JSON always.
    pub(super) fn handshake(&mut self) -> Option<Vec<u8>> {
        let (from, to, end) = self.bounds(Encoding::Json)?;
        let record = self.bytes[from..to].to_vec();
        self.bytes.drain(..end);
        Some(record)
    }

    fn bounds(&self, encoding: Encoding) -> Option<(usize, usize, usize)> {
        match encoding {
            Encoding::Json => {
                let end = self.bytes.iter().position(|byte| *byte == 0x1e)?;
                Some((0, end, end + 1))
            }
            Encoding::MessagePack => {
                let last = self.bytes.iter().position(|byte| byte & 0x80 == 0)?;
                let length =
                    self.bytes[..=last].iter().rev().fold(0usize, |sum, byte| sum << 7 | usize::from(byte & 0x7f));
                (self.bytes.len() > last + length).then_some((last + 1, last + 1 + length, last + 1 + length))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_frames_come_back_however_they_are_cut() {
        let records = [
            Record::Invocation {
                id: Some("7".into()),
                target: "Invoke".into(),
                arguments: vec![json!(["a", {"b": 1}])],
            },
            Record::Invocation { id: None, target: "x".repeat(300), arguments: vec![json!(null)] },
            Record::Completion { id: "1".into(), error: Some("no".into()) },
            Record::Completion { id: "2".into(), error: None },
            Record::Ping,
            Record::Close { error: None, allow_reconnect: true },
        ];
        for encoding in [Encoding::Json, Encoding::MessagePack] {
            for (masked, cut) in [(true, 1), (false, 3), (true, 1000)] {
                let mut reader = if masked { Reader::of_clients() } else { Reader::default() };
                let (mut lists, mut read) = (Records::default(), Vec::new());
                let mask = masked.then_some([1, 2, 3, 4]);
                let bytes: Vec<u8> = records
                    .iter()
                    .flat_map(|record| frame(encoding.opcode(), true, mask, &record.write(encoding)))
                    .collect();
                for piece in bytes.chunks(cut) {
                    reader.push(piece);
                    while let Some(Frame::Data { payload, is_text }) = reader.next().unwrap() {
                        assert_eq!(is_text, encoding == Encoding::Json);
                        lists.push(&payload);
                        read.extend(core::iter::from_fn(|| lists.next(encoding).unwrap()));
                    }
                }
                assert_eq!(read, records);
            }
        }
    }
}
