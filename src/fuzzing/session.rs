//! Oracles for the lives of connections: any sequence of operations, whole and byte by byte, must do the same and keep the rules.
use crate::ids::Time;
use crate::mem::pool::BytePool;
use crate::proto::dotnetify::request::Request;
use crate::proto::dotnetify::response::Delivery;
use crate::proto::signalr::Protocol;
use crate::proto::ws::frame::write_frame;
use crate::proto::ws::{Decoder, Event, Opcode, Role, WsError};
use crate::session::client::{ClientEnv, ClientSession, ClientSettings, Note};
use crate::session::fault::{End, LaneEnd, Refusal};
use crate::session::form::{Form, Transport};
use crate::session::lane::{LaneEnv, LaneNote, LaneOut, LaneSession};
use core::time::Duration;

const SETTINGS: ClientSettings = ClientSettings {
    handshake_timeout: Duration::from_secs(15),
    client_timeout: Duration::from_secs(30),
    keep_alive: Duration::from_secs(15),
    message_bytes_max: 512,
};

/// What happens next to a connection.
enum Step {
    Bytes(Vec<u8>),
    Pass(Duration),
    /// The app server cannot be reached from now on, or can again.
    Refuse(Option<Refusal>),
}

/// Reads any bytes as a sequence of steps: mostly well-formed traffic, so that the fuzzer gets deep, with raw bytes between.
struct Script<'a> {
    rest: &'a [u8],
}

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *first
    }

    fn take(&mut self) -> Vec<u8> {
        let len = (self.byte() as usize).min(self.rest.len());
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        taken.to_vec()
    }

    fn frame(&mut self, opcode: Opcode, mask: bool, payload: &[u8]) -> Step {
        let mask = mask.then(|| [self.byte(), 2, 3, 4]);
        let mut bytes = Vec::new();
        write_frame(&mut bytes, opcode, mask, |out| out.extend_from_slice(payload));
        Step::Bytes(bytes)
    }

    fn client_step(&mut self) -> Step {
        let text = |this: &mut Self, json: String| this.frame(Opcode::Text, true, format!("{json}\u{1e}").as_bytes());
        match self.byte() % 16 {
            0 | 1 => text(self, r#"{"protocol":"json","version":1}"#.into()),
            2 => {
                let id = self.byte();
                text(
                    self,
                    format!(r#"{{"arguments":["Vm{id}",{{}}],"invocationId":"{id}","target":"Request_VM","type":1}}"#),
                )
            }
            3 => text(self, r#"{"type":1,"target":"update_vm","arguments":["V",{"a":"\u00e9"}]}"#.into()),
            4 => text(self, r#"{"type":1,"invocationId":"d","target":"Dispose_VM","arguments":["V"]}"#.into()),
            5 => text(self, r#"{"type":1,"invocationId":"x","target":"Invoke","arguments":["a",[],{}]}"#.into()),
            6 => text(self, r#"{"type":6}"#.into()),
            7 => text(self, r#"{"type":7}"#.into()),
            8 => Step::Pass(Duration::from_millis(250 * u64::from(self.byte()))),
            9 => Step::Refuse([None, Some(Refusal::QueueFull)][self.byte() as usize % 2]),
            10 => {
                let payload = self.take();
                self.frame(Opcode::Text, true, &payload)
            }
            11 => {
                let payload = self.take();
                self.frame(Opcode::Binary, true, &payload)
            }
            12 => {
                let payload = self.take();
                self.frame(Opcode::Ping, true, &payload[..payload.len().min(125)])
            }
            13 => {
                let payload = self.take();
                self.frame(Opcode::Close, true, &payload[..payload.len().min(125)])
            }
            14 => {
                // One record over two frames of one message, cut anywhere.
                let record = b"{\"type\":1,\"target\":\"Update_VM\",\"arguments\":[\"V\",{\"b\":\"\xc3\xa9\"}]}\x1e";
                let cut = self.byte() as usize % record.len();
                let Step::Bytes(mut bytes) = self.frame(Opcode::Text, true, &record[..cut]) else { unreachable!() };
                bytes[0] &= 0x7f;
                let Step::Bytes(last) = self.frame(Opcode::Continuation, true, &record[cut..]) else { unreachable!() };
                bytes.extend(last);
                Step::Bytes(bytes)
            }
            _ => Step::Bytes(self.take()),
        }
    }

    fn lane_step(&mut self) -> Step {
        const RECORDS: [&str; 9] = [
            r#"{"type":1,"target":"Response_VM","arguments":[["SendAsync",["V","{}"],{"$fwdConnId":"abc"}]]}"#,
            r#"{"type":1,"target":"Response_VM","arguments":[["SendToManyAsync",["V","{}"],{"$fwdConnId":"[\"a\",null]"}]]}"#,
            r#"{"type":1,"target":"Response_VM","arguments":[["AddToGroupAsync",["g"],{"$fwdConnId":"abc"}]]}"#,
            r#"{"type":1,"target":"Response_VM","arguments":[["SendToGroupExceptAsync",["g","V","{}"],{"$fwdConnId":"[null]"}]]}"#,
            r#"{"type":1,"target":"Response_VM","arguments":[["V","{}"]]}"#,
            r#"{"type":3,"invocationId":"1","result":null}"#,
            r#"{"type":6}"#,
            r#"{"type":42}"#,
            r#"{"type":7,"error":"bye","allowReconnect":true}"#,
        ];
        match self.byte() % 14 {
            n @ 0..=8 => {
                let record = format!("{}\u{1e}", RECORDS[n as usize]);
                self.frame(Opcode::Text, false, record.as_bytes())
            }
            9 => Step::Pass(Duration::from_millis(250 * u64::from(self.byte()))),
            10 => {
                let payload = self.take();
                self.frame(Opcode::Text, false, &payload)
            }
            11 => {
                let payload = self.take();
                self.frame(Opcode::Ping, false, &payload[..payload.len().min(125)])
            }
            12 => {
                let payload = self.take();
                self.frame(Opcode::Binary, false, &payload)
            }
            _ => Step::Bytes(self.take()),
        }
    }
}

/// A connection's bytes, whole or one at a time.
fn pieces(bytes: &[u8], whole: bool) -> impl Iterator<Item = &[u8]> {
    bytes.chunks(if whole { bytes.len().max(1) } else { 1 })
}

#[derive(Default, PartialEq, Debug)]
struct ClientWorld {
    out: Vec<u8>,
    forwarded: Vec<(String, Vec<u8>)>,
    notes: Vec<Note>,
    refuse: Option<Refusal>,
}

impl ClientEnv for ClientWorld {
    fn out<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        write(&mut self.out)
    }
    fn message(&mut self, form: Form, write: impl FnOnce(&mut Vec<u8>)) {
        form.write(&mut self.out, write);
    }
    fn acknowledged(&mut self, _: u64) {}
    fn forward(&mut self, request: &Request, record: &[u8]) -> Result<(), Refusal> {
        self.refuse.map_or(Ok(()), Err)?;
        self.forwarded.push((format!("{request:?}"), record.to_vec()));
        Ok(())
    }
    fn note(&mut self, note: Note) {
        self.notes.push(note);
    }
}

/// Any bytes as the life of a client.
pub fn client_session(data: &[u8]) {
    let (whole, end) = live_client(data, true);
    let (split, split_end) = live_client(data, false);
    let not_utf8 = Some(End::WebSocket(WsError::InvalidUtf8));
    if end == not_utf8 {
        // A piece is checked before its records are looked at: what stood before the bad byte may have been acted on, or not.
        assert!(split.forwarded.starts_with(&whole.forwarded) && split.notes.starts_with(&whole.notes));
    } else {
        assert_eq!((&split, &split_end), (&whole, &end), "any split does what the whole does");
    }
    let handshakes = whole.notes.iter().filter(|note| matches!(note, Note::HandshakeDone(_))).count();
    assert!(handshakes <= 1);
    assert!(handshakes == 1 || whole.forwarded.is_empty(), "nothing is forwarded before the handshake");
    assert!(handshakes == 0 || matches!(whole.notes[0], Note::HandshakeDone(_)));
    assert_frames(&whole.out, Role::Client, |record, index| {
        let value: serde_json::Value = serde_json::from_slice(record).expect("what a node says is JSON");
        assert!(value.is_object());
        if handshakes == 1 && index == 0 {
            assert_eq!(record, b"{}", "the handshake's answer comes first");
        }
    });
    let requests = whole.notes.iter().filter(|note| matches!(note, Note::Request(_))).count();
    let refused = whole.notes.iter().filter(|note| matches!(note, Note::Refused(_))).count();
    assert_eq!(requests, whole.forwarded.len() + refused, "a request goes on or is refused");
    if let Some(end) = end {
        let code = end.told().close_code;
        assert_eq!(code.is_some(), closes_with(&whole.out), "the last word is a Close frame: {end:?}");
    }
}

fn live_client(data: &[u8], whole: bool) -> (ClientWorld, Option<End>) {
    let mut now = Time::from_millis(1);
    let mut session = ClientSession::new(now, Transport::WebSockets, false, &SETTINGS);
    let (mut pool, mut world, mut script) = (BytePool::new(), ClientWorld::default(), Script { rest: data });
    while !script.rest.is_empty() {
        let result = match script.client_step() {
            Step::Bytes(bytes) => pieces(&bytes, whole)
                .try_for_each(|piece| session.on_bytes(now, &mut piece.to_vec(), &SETTINGS, &mut pool, &mut world)),
            Step::Pass(time) => {
                now = now.after(time);
                session.on_time(now, &SETTINGS, &mut world).map(|next| {
                    assert!(next > now, "a session never asks for a time that has come");
                })
            }
            Step::Refuse(refusal) => {
                world.refuse = refusal;
                Ok(())
            }
        };
        if let Err(end) = result {
            session.close(&end, &mut pool, &mut world);
            return (world, Some(end));
        }
    }
    (world, None)
}

#[derive(Default, PartialEq, Debug)]
struct LaneWorld {
    out: Vec<u8>,
    delivered: Vec<(Delivery, Vec<u8>)>,
    notes: Vec<LaneNote>,
}

impl LaneOut for LaneWorld {
    fn out<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        write(&mut self.out)
    }
    fn mask(&mut self) -> [u8; 4] {
        [7, 7, 7, 7]
    }
}

impl LaneEnv for LaneWorld {
    fn deliver(&mut self, delivery: &Delivery, record: &[u8]) {
        self.delivered.push((*delivery, record.to_vec()));
    }
    fn note(&mut self, note: LaneNote) {
        self.notes.push(note);
    }
}

/// Any bytes as the life of a lane.
pub fn lane_session(data: &[u8]) {
    let (whole, end) = live_lane(data, true);
    let (split, split_end) = live_lane(data, false);
    if end == Some(LaneEnd::WebSocket(WsError::InvalidUtf8)) {
        assert!(split.delivered.starts_with(&whole.delivered));
    } else {
        assert_eq!((&split, &split_end), (&whole, &end), "any split does what the whole does");
    }
    assert_frames(&whole.out, Role::Server, |record, _| assert_eq!(record, b"{\"type\":6}", "a lane says pings only"));
}

fn live_lane(data: &[u8], whole: bool) -> (LaneWorld, Option<LaneEnd>) {
    let mut now = Time::from_millis(1);
    let mut session = LaneSession::new(now, Protocol::Json);
    let (mut pool, mut world, mut script) = (BytePool::new(), LaneWorld::default(), Script { rest: data });
    while !script.rest.is_empty() {
        let result = match script.lane_step() {
            Step::Bytes(bytes) => pieces(&bytes, whole)
                .try_for_each(|piece| session.on_bytes(now, &mut piece.to_vec(), &mut pool, &mut world)),
            Step::Pass(time) => {
                now = now.after(time);
                session.on_time(now, &mut world).map(|next| assert!(next > now))
            }
            Step::Refuse(_) => Ok(()),
        };
        if let Err(end) = result {
            session.close(&mut pool, &mut world);
            assert!(closes_with(&world.out));
            return (world, Some(end));
        }
    }
    (world, None)
}

/// What we wrote is whole frames of whole records, nothing behind a Close; calls `f` with each record and its number.
fn assert_frames(out: &[u8], our_peer: Role, mut f: impl FnMut(&[u8], usize)) {
    let mut bytes = out.to_vec();
    let mut decoder = Decoder::new(our_peer);
    let (mut input, mut index) = (&mut bytes[..], 0);
    while !input.is_empty() {
        let (used, event) = decoder.next(input).expect("what a node writes is valid");
        let (piece, rest) = core::mem::take(&mut input).split_at_mut(used);
        input = rest;
        match event.expect("a node writes whole frames") {
            Event::Data { binary, start, end, range } => {
                assert!(!binary && start && end);
                let records = piece[range].strip_suffix(b"\x1e").expect("a frame ends with a record");
                for record in records.split(|b| *b == 0x1e) {
                    f(record, index);
                    index += 1;
                }
            }
            Event::Close { .. } => assert!(input.is_empty(), "nothing comes behind a Close"),
            Event::Ping | Event::Pong => {}
        }
    }
}

fn closes_with(out: &[u8]) -> bool {
    // Our Close frames have at most a code: 2 bytes of header, 4 of mask, 2 of code.
    let is_close = |len: usize| out.len() >= len && out[out.len() - len] == 0x88;
    is_close(4) || is_close(2) || is_close(8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lives_of_clients(data in proptest::collection::vec(any::<u8>(), 0..400)) {
            super::client_session(&data);
        }

        /// Starting with a handshake, so that most of it is not refused.
        #[test]
        fn lives_of_clients_after_the_handshake(data in proptest::collection::vec(0u8..15, 0..400)) {
            super::client_session(&[&[0, 0][..], &data].concat());
        }

        #[test]
        fn lives_of_lanes(data in proptest::collection::vec(any::<u8>(), 0..400)) {
            super::lane_session(&data);
        }
    }
}
