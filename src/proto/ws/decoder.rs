//! The streaming decoder: frames of the peer to events, for either role.
use alloc::boxed::Box;

use super::header::{FIN, LENGTH, LENGTH_U16, LENGTH_U64, MASK, OPCODE, RESERVED};
use super::utf8::Utf8;
use super::{Event, Opcode, Role, WsError, apply_mask, close, mask};
use crate::limits::{WS_CONTROL_BYTES_MAX, WS_HEADER_BYTES_MAX};

/// Streaming decoder. Holds no payload: a piece of a frame is handed out as it arrives; only control payloads (<= 125 bytes)
/// are gathered, in a box that exists while a control frame is in progress. `size_of::<Decoder>() <= 56` (asserted).
///
/// The caller gives the front of its receive buffer to [`Decoder::next`] until that answers `None`; what was consumed is
/// never looked at again. An announced length reserves nothing: whoever gathers messages bounds them itself.
///
/// ```text
///              ┌──────────── data piece, frame not done ───┐
///              ▼                                           │
///   ─► Header ─┬─► Payload ────────────────────────────────┘
///        ▲     ├─► Control ──► Ping, Pong ──► Header
///        └─────┘        └────► Close ───────► Done ◄── any WsError
/// ```
pub struct Decoder {
    state: State,
    /// The control payload being gathered, or the one last returned. An empty one needs no box.
    control: Option<Box<Control>>,
    utf8: Utf8,
    message: Message,
    role: Role,
}

/// A node holds one per client, idle ones too.
const _: () = assert!(size_of::<Decoder>() <= 56);

enum State {
    /// Gathering a header: `bytes[..len]` have come and are valid so far.
    Header { bytes: [u8; WS_HEADER_BYTES_MAX], len: u8 },
    /// Inside a data frame. `key` is rotated so that it applies from the next byte on.
    Payload { remaining: u64, key: [u8; 4], fin: bool },
    /// Inside a control frame with a payload.
    Control { opcode: Opcode, remaining: u8, key: [u8; 4] },
    /// A Close or a violation: nothing that follows means anything (RFC 6455 §5.5.1, §7.1.7).
    Done,
}

const BETWEEN_FRAMES: State = State::Header { bytes: [0; WS_HEADER_BYTES_MAX], len: 0 };

/// The data message in progress, if any. Control frames come between its fragments without touching it (RFC 6455 §5.4).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    None,
    /// `begun`: a piece of it has been handed out.
    Open {
        binary: bool,
        begun: bool,
    },
}

struct Control {
    bytes: [u8; WS_CONTROL_BYTES_MAX],
    len: u8,
}

impl Decoder {
    pub fn new(role: Role) -> Self {
        Decoder { state: BETWEEN_FRAMES, control: None, utf8: Utf8::default(), message: Message::None, role }
    }

    /// Decodes the next event from the front of `input`, unmasking in place. Returns how many bytes were consumed and the
    /// event; `None` means all of `input` was consumed and more is needed. Cost is linear however the input is split.
    /// UTF-8 of text messages is checked incrementally, per message (a character may be split between fragments).
    /// After an error or a Close, further calls consume everything and return `None`.
    pub fn next(&mut self, input: &mut [u8]) -> Result<(usize, Option<Event>), WsError> {
        let result = self.decode(input);
        match &result {
            Ok((consumed, None)) => debug_assert_eq!(*consumed, input.len()),
            Ok((consumed, Some(_))) => debug_assert!(*consumed <= input.len()),
            Err(_) => self.state = State::Done,
        }
        result
    }

    /// Payload of the control frame last returned.
    pub fn control_payload(&self) -> &[u8] {
        self.control.as_ref().map_or(&[], |control| &control.bytes[..control.len as usize])
    }

    fn decode(&mut self, input: &mut [u8]) -> Result<(usize, Option<Event>), WsError> {
        let mut at = 0;
        loop {
            match &mut self.state {
                State::Header { bytes, len } => {
                    if *len == 0 {
                        // The payload of the control frame before was ours to keep only until now.
                        self.control = None;
                    }
                    while (*len as usize) < header_bytes(&bytes[..*len as usize]) {
                        let Some(byte) = input.get(at) else { return Ok((at, None)) };
                        bytes[*len as usize] = *byte;
                        *len += 1;
                        at += 1;
                        // Each rule speaks as soon as its byte is there, so that cutting the input changes nothing.
                        match *len {
                            1 => check_first(*byte, self.message)?,
                            2 => check_second(bytes[0], *byte, self.role)?,
                            _ => {}
                        }
                    }
                    let (opcode, fin) = (opcode(bytes[0])?, bytes[0] & FIN != 0);
                    let (remaining, key) = length_and_key(bytes)?;
                    if opcode.is_control() {
                        self.state = State::Control { opcode, remaining: remaining as u8, key };
                    } else {
                        match opcode {
                            Opcode::Text => self.message = Message::Open { binary: false, begun: false },
                            Opcode::Binary => self.message = Message::Open { binary: true, begun: false },
                            _ => debug_assert!(self.message != Message::None),
                        }
                        self.state = State::Payload { remaining, key, fin };
                        if remaining == 0 {
                            return self.data(at, at, input);
                        }
                    }
                }
                State::Payload { remaining, .. } => {
                    let piece = (*remaining).min((input.len() - at) as u64) as usize;
                    if piece == 0 {
                        return Ok((at, None));
                    }
                    return self.data(at, at + piece, input);
                }
                State::Control { opcode, remaining, key } => {
                    let piece = (*remaining as usize).min(input.len() - at);
                    if piece > 0 {
                        let control = self.control.get_or_insert_with(|| Box::new(Control { bytes: [0; _], len: 0 }));
                        let gathered = &mut control.bytes[control.len as usize..][..piece];
                        gathered.copy_from_slice(&input[at..at + piece]);
                        apply_mask(gathered, *key, 0);
                        *key = mask::rotate(*key, piece);
                        control.len += piece as u8;
                        *remaining -= piece as u8;
                        at += piece;
                    }
                    if *remaining > 0 {
                        return Ok((at, None));
                    }
                    let opcode = *opcode;
                    return self.control(opcode).map(|event| (at, Some(event)));
                }
                State::Done => {
                    self.control = None;
                    return Ok((input.len(), None));
                }
            }
        }
    }

    /// Hands out `input[from..to]` of the data frame in progress; empty only for an empty frame.
    fn data(&mut self, from: usize, to: usize, input: &mut [u8]) -> Result<(usize, Option<Event>), WsError> {
        let (State::Payload { remaining, key, fin }, Message::Open { binary, begun }) =
            (&mut self.state, &mut self.message)
        else {
            unreachable!("a data frame is only entered with its message open");
        };
        let piece = &mut input[from..to];
        if self.role == Role::Server {
            apply_mask(piece, *key, 0);
            *key = mask::rotate(*key, piece.len());
        }
        *remaining -= piece.len() as u64;
        let frame_done = *remaining == 0;
        let (binary, start, end) = (*binary, !*begun, frame_done && *fin);
        *begun = true;
        if !binary {
            self.utf8.feed(piece).map_err(|_| WsError::InvalidUtf8)?;
        }
        if end {
            self.utf8.finish().map_err(|_| WsError::InvalidUtf8)?;
            self.message = Message::None;
        }
        if frame_done {
            self.state = BETWEEN_FRAMES;
        }
        Ok((to, Some(Event::Data { binary, start, end, range: from..to })))
    }

    /// The whole of a control frame has come.
    fn control(&mut self, opcode: Opcode) -> Result<Event, WsError> {
        self.state = BETWEEN_FRAMES;
        Ok(match opcode {
            Opcode::Ping => Event::Ping,
            Opcode::Pong => Event::Pong,
            _ => {
                let code = close::check(self.control_payload())?;
                self.state = State::Done;
                Event::Close { code }
            }
        })
    }
}

/// How long the header is that starts with `have`, as far as that is known.
fn header_bytes(have: &[u8]) -> usize {
    let [_, second, ..] = have else { return 2 };
    let extended = match second & LENGTH {
        LENGTH_U16 => 2,
        LENGTH_U64 => 8,
        _ => 0,
    };
    2 + extended + if second & MASK != 0 { 4 } else { 0 }
}

fn opcode(first: u8) -> Result<Opcode, WsError> {
    Opcode::from_bits(first & OPCODE).ok_or(WsError::ReservedOpcode)
}

fn check_first(first: u8, message: Message) -> Result<(), WsError> {
    // RFC 6455 §5.2: RSV bits must be 0 unless an extension defines them, and we negotiate none.
    if first & RESERVED != 0 {
        return Err(WsError::ReservedBits);
    }
    match opcode(first)? {
        // §5.5: all control frames must not be fragmented.
        opcode if opcode.is_control() && first & FIN == 0 => Err(WsError::ControlFragmented),
        // §5.4: fragments of one message follow each other; only control frames may come between.
        Opcode::Continuation if message == Message::None => Err(WsError::ContinuationWithoutStart),
        Opcode::Text | Opcode::Binary if message != Message::None => Err(WsError::DataInsideMessage),
        _ => Ok(()),
    }
}

fn check_second(first: u8, second: u8, role: Role) -> Result<(), WsError> {
    // §5.1: a server must close when a frame is not masked, a client when one is.
    match (role, second & MASK != 0) {
        (Role::Server, false) => return Err(WsError::Unmasked),
        (Role::Client, true) => return Err(WsError::Masked),
        _ => {}
    }
    // §5.5: control frames have a payload of 125 bytes or less, which leaves no extended form.
    if opcode(first)?.is_control() && (second & LENGTH) as usize > WS_CONTROL_BYTES_MAX {
        return Err(WsError::ControlTooLong);
    }
    Ok(())
}

/// Reads length and key of a whole header. §5.2: "the minimal number of bytes MUST be used to encode the length".
fn length_and_key(bytes: &[u8; WS_HEADER_BYTES_MAX]) -> Result<(u64, [u8; 4]), WsError> {
    let (length, end) = match bytes[1] & LENGTH {
        LENGTH_U16 => {
            let length = u16::from_be_bytes([bytes[2], bytes[3]]);
            if length < LENGTH_U16 as u16 {
                return Err(WsError::LengthNotMinimal);
            }
            (length as u64, 4)
        }
        LENGTH_U64 => {
            let [_, _, length @ .., _, _, _, _] = *bytes;
            let length = u64::from_be_bytes(length);
            if length >> 63 != 0 {
                return Err(WsError::LengthTooLarge);
            }
            if length <= u16::MAX as u64 {
                return Err(WsError::LengthNotMinimal);
            }
            (length, 10)
        }
        short => (short as u64, 2),
    };
    // Without a mask these bytes are still zero, and a zero key changes nothing.
    let mut key = [0; 4];
    key.copy_from_slice(&bytes[end..end + 4]);
    Ok((length, key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ws::header;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    /// A frame as a client sends it.
    fn masked(opcode: Opcode, fin: bool, payload: &[u8]) -> Vec<u8> {
        let mut frame = header(opcode, fin, payload.len() as u64, Some(KEY)).as_ref().to_vec();
        frame.extend_from_slice(payload);
        let start = frame.len() - payload.len();
        apply_mask(&mut frame[start..], KEY, 0);
        frame
    }

    fn plain(opcode: Opcode, fin: bool, payload: &[u8]) -> Vec<u8> {
        [header(opcode, fin, payload.len() as u64, None).as_ref(), payload].concat()
    }

    /// Everything a decoder says about `bytes` given whole, data copied out.
    fn decode(role: Role, bytes: &[u8]) -> (Vec<(Event, Vec<u8>)>, Option<WsError>) {
        let (mut decoder, mut input, mut at, mut events) = (Decoder::new(role), bytes.to_vec(), 0, vec![]);
        loop {
            match decoder.next(&mut input[at..]) {
                Ok((consumed, Some(event))) => {
                    let payload = match &event {
                        Event::Data { range, .. } => input[at..][range.clone()].to_vec(),
                        _ => decoder.control_payload().to_vec(),
                    };
                    events.push((event, payload));
                    at += consumed;
                }
                Ok((consumed, None)) => {
                    assert_eq!(at + consumed, input.len());
                    return (events, None);
                }
                Err(error) => {
                    let mut rest = vec![0x81; 9];
                    assert_eq!(decoder.next(&mut rest), Ok((9, None)), "nothing is decoded behind an error");
                    return (events, Some(error));
                }
            }
        }
    }

    fn error(role: Role, bytes: &[u8]) -> Option<WsError> {
        decode(role, bytes).1
    }

    #[test]
    fn the_examples_of_section_5_7() {
        let data = |start, end, range: core::ops::Range<usize>| Event::Data { binary: false, start, end, range };
        let (events, fault) = decode(Role::Server, &[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
        assert_eq!((events, fault), (vec![(data(true, true, 6..11), b"Hello".to_vec())], None));

        let fragmented = [
            plain(Opcode::Text, false, b"Hel"),
            plain(Opcode::Ping, true, b"Hello"),
            plain(Opcode::Continuation, true, b"lo"),
        ];
        let (events, fault) = decode(Role::Client, &fragmented.concat());
        assert_eq!(fault, None);
        assert_eq!(
            events,
            [
                (data(true, false, 2..5), b"Hel".to_vec()),
                (Event::Ping, b"Hello".to_vec()),
                (data(false, true, 2..4), b"lo".to_vec()),
            ]
        );
    }

    #[test]
    fn an_empty_message_is_one_empty_piece() {
        let (events, _) = decode(Role::Server, &masked(Opcode::Binary, true, b""));
        assert_eq!(events, [(Event::Data { binary: true, start: true, end: true, range: 6..6 }, vec![])]);
        // Empty fragments still say where the message starts and ends.
        let bytes = [masked(Opcode::Text, false, b""), masked(Opcode::Continuation, true, b"")].concat();
        let (events, _) = decode(Role::Server, &bytes);
        assert_eq!(events[0].0, Event::Data { binary: false, start: true, end: false, range: 6..6 });
        assert_eq!(events[1].0, Event::Data { binary: false, start: false, end: true, range: 6..6 });
    }

    #[test]
    fn each_rule_has_its_error() {
        use WsError::*;
        let server = |bytes: &[u8]| error(Role::Server, bytes);
        assert_eq!(server(&[0xc1]), Some(ReservedBits), "the first byte is enough");
        assert_eq!(server(&[0xa1]), Some(ReservedBits));
        assert_eq!(server(&[0x91]), Some(ReservedBits));
        for opcode in (3..8).chain(11..16) {
            assert_eq!(server(&[0x80 | opcode]), Some(ReservedOpcode));
        }
        assert_eq!(server(&[0x81, 0x05]), Some(Unmasked));
        assert_eq!(server(&[0x88, 0x00]), Some(Unmasked), "control frames too");
        assert_eq!(error(Role::Client, &[0x81, 0x85]), Some(Masked));
        assert_eq!(server(&[0x09]), Some(ControlFragmented));
        for opcode in [0x88, 0x89, 0x8a] {
            assert_eq!(server(&[opcode, 0xfe]), Some(ControlTooLong));
            assert_eq!(server(&[opcode, 0xff]), Some(ControlTooLong));
        }
        assert_eq!(server(&[0x80]), Some(ContinuationWithoutStart));
        assert_eq!(server(&[masked(Opcode::Text, true, b"x"), vec![0x00]].concat()), Some(ContinuationWithoutStart));
        assert_eq!(server(&[masked(Opcode::Text, false, b"x"), vec![0x82]].concat()), Some(DataInsideMessage));
        assert_eq!(error(Role::Client, &[0x82, 126, 0, 125]), Some(LengthNotMinimal));
        assert_eq!(error(Role::Client, &[0x82, 126, 0, 126]), None);
        assert_eq!(error(Role::Client, &[0x82, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff]), Some(LengthNotMinimal));
        assert_eq!(error(Role::Client, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]), None);
        assert_eq!(error(Role::Client, &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0]), Some(LengthTooLarge));
        assert_eq!(error(Role::Client, &[0x82, 127, 0x7f, 255, 255, 255, 255, 255, 255, 255]), None);
        assert_eq!(server(&masked(Opcode::Close, true, b"\x03")), Some(ClosePayload));
        assert_eq!(server(&masked(Opcode::Close, true, b"\x03\xee")), Some(CloseCode));
        assert_eq!(server(&masked(Opcode::Close, true, b"\x03\xe8\xc3")), Some(InvalidUtf8));
        assert_eq!(server(&masked(Opcode::Text, true, b"\xc3")), Some(InvalidUtf8), "ends inside a character");
        assert_eq!(server(&masked(Opcode::Text, false, b"ab\xff")), Some(InvalidUtf8));
        assert_eq!(server(&masked(Opcode::Binary, true, b"ab\xff")), None);
    }

    #[test]
    fn invalid_text_fails_before_its_frame_is_complete() {
        let frame = masked(Opcode::Text, true, b"ok\xed\xa0rest that never comes");
        assert_eq!(error(Role::Server, &frame[..6 + 3]), None);
        assert_eq!(error(Role::Server, &frame[..6 + 4]), Some(WsError::InvalidUtf8));
    }

    #[test]
    fn a_character_may_be_cut_by_fragments_with_a_ping_between() {
        let bytes = [
            masked(Opcode::Text, false, b"\xf0\x9f"),
            masked(Opcode::Ping, true, b"\xff"),
            masked(Opcode::Continuation, false, b""),
            masked(Opcode::Continuation, true, b"\x98\x80"),
            masked(Opcode::Text, true, b"next"),
        ];
        let (events, fault) = decode(Role::Server, &bytes.concat());
        assert_eq!((events.len(), fault), (5, None));
        assert_eq!(events[1], (Event::Ping, vec![0xff]));
    }

    #[test]
    fn nothing_is_decoded_behind_a_close() {
        let bytes = [masked(Opcode::Close, true, b"\x03\xe9bye"), masked(Opcode::Text, true, b"late")].concat();
        let (events, fault) = decode(Role::Server, &bytes);
        assert_eq!((events, fault), (vec![(Event::Close { code: Some(1001) }, b"\x03\xe9bye".to_vec())], None));
        let (events, _) = decode(Role::Client, &plain(Opcode::Close, true, b""));
        assert_eq!(events, [(Event::Close { code: None }, vec![])]);
    }

    #[test]
    fn a_control_payload_lives_until_the_next_call() {
        let mut decoder = Decoder::new(Role::Server);
        let mut ping = masked(Opcode::Ping, true, &[7; 125]);
        assert_eq!(decoder.next(&mut ping), Ok((6 + 125, Some(Event::Ping))));
        assert_eq!(decoder.control_payload(), [7; 125]);
        assert_eq!(decoder.next(&mut []), Ok((0, None)));
        assert_eq!(decoder.control_payload(), b"");
        assert!(decoder.control.is_none(), "an idle client keeps no box");
    }

    #[test]
    fn an_announced_length_is_only_a_number() {
        let mut decoder = Decoder::new(Role::Client);
        let mut bytes = vec![0x82, 127, 0x7f, 255, 255, 255, 255, 255, 255, 255, 1, 2, 3];
        let piece = Event::Data { binary: true, start: true, end: false, range: 10..13 };
        assert_eq!(decoder.next(&mut bytes), Ok((13, Some(piece))));
        assert_eq!(
            decoder.next(&mut [4]),
            Ok((1, Some(Event::Data { binary: true, start: false, end: false, range: 0..1 })))
        );
    }

    proptest! {
        #[test]
        fn what_we_encode_we_decode(
            role in prop_oneof![Just(Role::Server), Just(Role::Client)],
            payload in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..300),
                proptest::collection::vec(any::<u8>(), 65530..65540),
            ],
            fragments in 1usize..5,
        ) {
            let size = payload.len() / fragments + 1;
            let pieces: Vec<&[u8]> = if payload.is_empty() { vec![&[]] } else { payload.chunks(size).collect() };
            let frames: Vec<Vec<u8>> = pieces.iter().enumerate().map(|(i, piece)| {
                let opcode = if i == 0 { Opcode::Binary } else { Opcode::Continuation };
                let fin = i + 1 == pieces.len();
                if role == Role::Server { masked(opcode, fin, piece) } else { plain(opcode, fin, piece) }
            }).collect();
            let (events, fault) = decode(role, &frames.concat());
            prop_assert_eq!(fault, None);
            prop_assert_eq!(events.len(), pieces.len());
            for (i, (event, piece)) in events.iter().enumerate() {
                let Event::Data { binary: true, start, end, .. } = event else { panic!("{event:?}") };
                prop_assert_eq!((*start, *end), (i == 0, i + 1 == pieces.len()));
                prop_assert_eq!(&piece[..], pieces[i]);
            }
        }
    }
}
