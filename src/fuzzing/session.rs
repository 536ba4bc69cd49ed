//! Oracles for the lives of connections: any sequence of operations, whole and byte by byte, must do the same and keep the rules.
use crate::ids::Time;
use crate::mem::pool::BytePool;
use crate::proto::dotnetify::request::Request;
use crate::proto::dotnetify::response::Delivery;
use crate::proto::signalr::msgpack::{self, write};
use crate::proto::signalr::{Protocol, record, transcode};
use crate::proto::ws::frame::write_frame;
use crate::proto::ws::{Decoder, Event, Opcode, Role, WsError};
use crate::session::client::{ClientEnv, ClientSession, ClientSettings, Note};
use crate::session::fault::{End, LaneEnd, Refusal};
use crate::session::form::{Form, Transport};
use crate::session::lane::{LaneEnv, LaneNote, LaneOut, LaneSession, opcode};
use crate::session::pace::Rate;
use core::time::Duration;
use serde_json::Value;

const SETTINGS: ClientSettings = ClientSettings {
    handshake_timeout: Duration::from_secs(15),
    client_timeout: Duration::from_secs(30),
    keep_alive: Duration::from_secs(15),
    message_bytes_max: 512,
    rate: Rate { per_second: 10, burst: 20 },
};

/// How a client comes: the first byte of an input.
#[derive(Clone, Copy)]
struct Mode {
    /// Its transport, and the protocol its handshakes ask for.
    form: Form,
    resumable: bool,
    /// It keeps to the rules of a stateful reconnect, so that what it is owed is known.
    honest: bool,
}

impl Mode {
    fn new(byte: u8) -> Mode {
        let transport = match byte & 3 {
            1 => Transport::ServerSentEvents,
            2 => Transport::LongPolling,
            _ => Transport::WebSockets,
        };
        let resumable = byte & 8 != 0 && transport == Transport::WebSockets;
        let form = Form { transport, protocol: protocol(byte) };
        Mode { form, resumable, honest: resumable && byte & 16 != 0 }
    }
}

fn protocol(byte: u8) -> Protocol {
    if byte & 4 != 0 { Protocol::MessagePack } else { Protocol::Json }
}

/// What happens next to a connection.
enum Step {
    Bytes(Vec<u8>),
    Pass(Duration),
    /// The app server cannot be reached from now on, or can again.
    Refuse(Option<Refusal>),
    /// A new socket for a client that may have one. Our next message has this number.
    Resume(u64),
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

    fn frame(&mut self, opcode: Opcode, mask: bool, payload: &[u8]) -> Vec<u8> {
        let mask = mask.then(|| [self.byte(), 2, 3, 4]);
        let mut bytes = Vec::new();
        write_frame(&mut bytes, opcode, mask, |out| out.extend_from_slice(payload));
        bytes
    }

    /// Bytes as this client sends them: a frame, or a body.
    fn sent(&mut self, form: Form, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        match form.transport {
            Transport::WebSockets => self.frame(opcode, true, payload),
            Transport::ServerSentEvents | Transport::LongPolling => payload.to_vec(),
        }
    }

    fn client_step(&mut self, mode: Mode) -> Step {
        let form = mode.form;
        let said = |this: &mut Self, message: &Said| {
            let record = message.record(form.protocol);
            Step::Bytes(this.sent(form, opcode(form.protocol), &record))
        };
        match self.byte() % 24 {
            // In a text frame, as the JavaScript client does, whatever the protocol.
            version @ 0..=1 => {
                let handshake = handshake(form.protocol, if mode.resumable { u32::from(2 - version) } else { 1 });
                Step::Bytes(self.sent(form, Opcode::Text, &handshake))
            }
            2 => {
                let id = self.byte();
                said(self, &Said::Request { id: id.to_string(), vm: format!("Vm{id}") })
            }
            3 => said(self, &Said::Update(7)),
            4 => said(self, &Said::Dispose),
            5 => said(self, &Said::Wrong("x".into())),
            6 => said(self, &Said::Ping),
            7 => said(self, &Said::Close),
            8 => Step::Pass(Duration::from_millis(250 * u64::from(self.byte()))),
            9 => Step::Refuse([None, Some(Refusal::QueueFull)][self.byte() as usize % 2]),
            10 => {
                let payload = self.take();
                Step::Bytes(self.sent(form, Opcode::Text, &payload))
            }
            11 => {
                let payload = self.take();
                Step::Bytes(self.sent(form, Opcode::Binary, &payload))
            }
            12 => {
                let payload = self.take();
                Step::Bytes(self.sent(form, Opcode::Ping, &payload[..payload.len().min(125)]))
            }
            13 => {
                let payload = self.take();
                Step::Bytes(self.sent(form, Opcode::Close, &payload[..payload.len().min(125)]))
            }
            14 => {
                // One record over two frames of one message, or over two bodies, cut anywhere: also inside its length.
                let record = Said::Long.record(form.protocol);
                let cut = self.byte() as usize % record.len();
                let mut bytes = self.sent(form, opcode(form.protocol), &record[..cut]);
                if form.transport == Transport::WebSockets {
                    bytes[0] &= 0x7f;
                }
                bytes.extend(self.sent(form, Opcode::Continuation, &record[cut..]));
                Step::Bytes(bytes)
            }
            15 => Step::Bytes(self.take()),
            16 => {
                let ack = Said::Ack(self.byte().into());
                said(self, &ack)
            }
            17 => {
                let sequence = Said::Sequence(self.byte().into());
                said(self, &sequence)
            }
            18 => Step::Resume(self.byte().into()),
            19 => said(self, &Said::Item),
            20 => {
                // The first part of a record: the rest is what comes next, or is lost with the socket.
                let record = Said::Long.record(form.protocol);
                let cut = self.byte() as usize % record.len();
                Step::Bytes(self.sent(form, opcode(form.protocol), &record[..cut]))
            }
            21 => {
                // Handshake and messages in one.
                let mut bytes = handshake(form.protocol, 1 + u32::from(mode.resumable));
                bytes.extend(Said::Ping.record(form.protocol));
                bytes.extend(Said::Long.record(form.protocol));
                Step::Bytes(self.sent(form, Opcode::Binary, &bytes))
            }
            22 => {
                // Records in one frame, of the other protocol perhaps.
                let protocol = protocol(self.byte());
                let bytes = [Said::Update(1), Said::Ping, Said::Dispose].map(|said| said.record(protocol)).concat();
                Step::Bytes(self.sent(form, Opcode::Binary, &bytes))
            }
            _ => {
                // Lengths of any form and size, with something behind.
                let bytes = [&vec![0x80 | self.byte(); self.byte() as usize % 6][..], &self.take()].concat();
                Step::Bytes(self.sent(form, Opcode::Binary, &bytes))
            }
        }
    }

    fn lane_step(&mut self, protocol: Protocol) -> Step {
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
        match self.byte() % 16 {
            n @ 0..=8 => Step::Bytes(self.frame(opcode(protocol), false, &in_protocol(protocol, RECORDS[n as usize]))),
            9 => Step::Pass(Duration::from_millis(250 * u64::from(self.byte()))),
            10 => {
                let payload = self.take();
                Step::Bytes(self.frame(Opcode::Text, false, &payload))
            }
            11 => {
                let payload = self.take();
                Step::Bytes(self.frame(Opcode::Ping, false, &payload[..payload.len().min(125)]))
            }
            12 => {
                let payload = self.take();
                Step::Bytes(self.frame(Opcode::Binary, false, &payload))
            }
            14 => {
                // Two records over two messages, cut anywhere.
                let records = [RECORDS[0], RECORDS[1]].map(|text| in_protocol(protocol, text)).concat();
                let cut = self.byte() as usize % records.len();
                let first = self.frame(opcode(protocol), false, &records[..cut]);
                Step::Bytes([first, self.frame(opcode(protocol), false, &records[cut..])].concat())
            }
            15 => {
                let bytes = [&vec![0x80 | self.byte(); self.byte() as usize % 6][..], &self.take()].concat();
                Step::Bytes(self.frame(Opcode::Binary, false, &bytes))
            }
            _ => Step::Bytes(self.take()),
        }
    }
}

/// What a client says, in either protocol.
enum Said {
    Request {
        id: String,
        vm: String,
    },
    /// An Update_VM whose data has this number.
    Update(u64),
    /// An Update_VM with a character of two bytes, and long enough for a length of two.
    Long,
    Dispose,
    /// A call of `Invoke`, which is not for clients.
    Wrong(String),
    Item,
    Ping,
    Close,
    Ack(u64),
    Sequence(u64),
}

impl Said {
    fn record(&self, protocol: Protocol) -> Vec<u8> {
        in_protocol(protocol, &self.json())
    }

    fn json(&self) -> String {
        let long = "é".repeat(100);
        match self {
            Said::Request { id, vm } => {
                format!(r#"{{"arguments":["{vm}",{{}}],"invocationId":"{id}","target":"Request_VM","type":1}}"#)
            }
            Said::Update(number) => format!(r#"{{"type":1,"target":"update_vm","arguments":["V",{{"a":{number}}}]}}"#),
            Said::Long => format!(r#"{{"type":1,"target":"Update_VM","arguments":["V",{{"b":"{long}"}}]}}"#),
            Said::Dispose => r#"{"type":1,"invocationId":"d","target":"Dispose_VM","arguments":["V"]}"#.into(),
            Said::Wrong(id) => {
                format!(r#"{{"type":1,"invocationId":"{id}","target":"Invoke","arguments":["a",[],{{}}]}}"#)
            }
            Said::Item => r#"{"type":2,"invocationId":"s","item":1}"#.into(),
            Said::Ping => r#"{"type":6}"#.into(),
            Said::Close => r#"{"type":7}"#.into(),
            Said::Ack(number) => format!(r#"{{"type":8,"sequenceId":{number}}}"#),
            Said::Sequence(number) => format!(r#"{{"type":9,"sequenceId":{number}}}"#),
        }
    }
}

fn handshake(protocol: Protocol, version: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    crate::proto::signalr::handshake::write_request(protocol, version, &mut bytes);
    bytes
}

/// A record of either protocol: of MessagePack the layout that the JSON text means (reference 12.2).
fn in_protocol(protocol: Protocol, json: &str) -> Vec<u8> {
    if protocol == Protocol::Json {
        return format!("{json}\u{1e}").into_bytes();
    }
    let json: Value = serde_json::from_str(json).expect("one of ours");
    let (kind, headers) = (json["type"].clone(), serde_json::json!({}));
    let id = json["invocationId"].clone();
    let items = match kind.as_u64() {
        // With an id as .NET writes it, without one as the JavaScript client does: no list of streams.
        Some(1) if id.is_null() => vec![kind, headers, id, json["target"].clone(), json["arguments"].clone()],
        Some(1) => vec![kind, headers, id, json["target"].clone(), json["arguments"].clone(), serde_json::json!([])],
        Some(2) => vec![kind, headers, id, json["item"].clone()],
        Some(3) => vec![kind, headers, id, 3.into(), json["result"].clone()],
        Some(7) if json["error"].is_null() => vec![kind, Value::Null],
        Some(7) => vec![kind, json["error"].clone(), json["allowReconnect"].clone()],
        Some(8 | 9) => vec![kind, json["sequenceId"].clone()],
        _ => vec![kind],
    };
    let mut record = Vec::new();
    msgpack::write_record(&mut record, |out| encode(&items.into(), out));
    record
}

fn encode(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => write::nil(out),
        Value::Bool(value) => write::boolean(*value, out),
        Value::Number(number) => write::uint(number.as_u64().expect("ours are not negative"), out),
        Value::String(text) => write::text(text.as_bytes(), out),
        Value::Array(items) => {
            write::array_len(items.len() as u32, out);
            items.iter().for_each(|item| encode(item, out));
        }
        Value::Object(members) => {
            write::map_len(members.len() as u32, out);
            for (name, value) in members {
                write::text(name.as_bytes(), out);
                encode(value, out);
            }
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
    /// Messages of `out` that a stateful reconnect counts.
    counted: usize,
    acknowledged: Vec<u64>,
    forwarded: Vec<(String, Vec<u8>)>,
    notes: Vec<Note>,
    refuse: Option<Refusal>,
}

impl ClientEnv for ClientWorld {
    fn out<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        write(&mut self.out)
    }
    fn message(&mut self, form: Form, write: impl FnOnce(&mut Vec<u8>)) {
        self.counted += 1;
        form.write(&mut self.out, write);
    }
    fn acknowledged(&mut self, number: u64) {
        self.acknowledged.push(number);
    }
    fn forward(&mut self, request: &Request, record: &[u8]) -> Result<(), Refusal> {
        self.refuse.map_or(Ok(()), Err)?;
        self.forwarded.push((format!("{request:?}"), record.to_vec()));
        Ok(())
    }
    fn note(&mut self, note: Note) {
        self.notes.push(note);
    }
}

/// A client's session with the care that a shard takes of it.
struct Live {
    session: ClientSession,
    world: ClientWorld,
    pool: BytePool,
    now: Time,
    /// When it wants to be called: before that nothing is due.
    due: Time,
    whole: bool,
}

impl Live {
    fn new(mode: Mode, whole: bool) -> Live {
        let now = Time::from_millis(1);
        let session = ClientSession::new(now, mode.form.transport, mode.resumable, &SETTINGS);
        let due = now.after(SETTINGS.handshake_timeout);
        Live { session, world: ClientWorld::default(), pool: BytePool::new(), now, due, whole }
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), End> {
        let Live { session, world, pool, now, whole, .. } = self;
        let form = session.form();
        pieces(bytes, *whole).try_for_each(|piece| match form.transport {
            Transport::WebSockets => session.on_bytes(*now, &mut piece.to_vec(), &SETTINGS, pool, world),
            _ => session.on_body(*now, piece, &SETTINGS, pool, world),
        })?;
        self.look()
    }

    fn resume(&mut self, sequence: u64) -> Result<(), End> {
        let Live { session, world, pool, now, .. } = self;
        session.resume(*now, sequence, &SETTINGS, pool, world);
        self.look()
    }

    fn look(&mut self) -> Result<(), End> {
        if self.session.take_hurry() { self.on_time() } else { Ok(()) }
    }

    fn pass(&mut self, time: Duration) -> Result<(), End> {
        self.now = self.now.after(time);
        let said = self.world.out.len();
        let early = self.now < self.due;
        self.on_time()?;
        assert!(!early || self.world.out.len() == said, "nothing is due before the time it asked for");
        Ok(())
    }

    fn on_time(&mut self) -> Result<(), End> {
        let early = self.now < self.due;
        let result = self.session.on_time(self.now, &SETTINGS, &mut self.world);
        assert!(result.is_ok() || !early, "nobody is timed out before the time it asked for");
        self.due = result?;
        assert!(self.due > self.now, "a session never asks for a time that has come");
        Ok(())
    }

    fn end(mut self, result: Result<(), End>) -> (ClientWorld, Option<End>) {
        if let Err(end) = &result {
            self.session.close(end, &mut self.pool, &mut self.world);
        }
        (self.world, result.err())
    }
}

/// Any bytes as the life of a client.
pub fn client_session(data: &[u8]) {
    let Some((&mode, script)) = data.split_first() else { return };
    let mode = Mode::new(mode);
    let live = if mode.honest { live_honest_client } else { live_client };
    let (whole, end) = live(mode, script, true);
    let (split, split_end) = live(mode, script, false);
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
    let protocol = match whole.notes.first() {
        Some(Note::HandshakeDone(protocol)) => *protocol,
        other => {
            assert_eq!((other, handshakes), (None, 0), "the handshake comes first");
            Protocol::Json
        }
    };
    let said = said(Form { protocol, ..mode.form }, &whole.out, handshakes == 1);
    let requests = whole.notes.iter().filter(|note| matches!(note, Note::Request(_))).count();
    let refused = whole.notes.iter().filter(|note| matches!(note, Note::Refused(_))).count();
    assert_eq!(requests, whole.forwarded.len() + refused, "a request goes on or is refused");
    let kinds = |wanted: &[u64]| said.iter().filter(|(kind, _)| wanted.contains(kind)).count();
    assert_eq!(kinds(&[1, 2, 3, 4, 5]), whole.counted, "what is counted is what goes out as counted");
    if mode.form.transport == Transport::LongPolling {
        assert_eq!(kinds(&[6]), 0, "polls are not pinged");
    }
    let acks: Vec<u64> = said.iter().filter(|(kind, _)| *kind == 8).map(|(_, number)| *number).collect();
    assert!(mode.resumable || (acks.is_empty() && kinds(&[9]) == 0 && whole.acknowledged.is_empty()));
    assert!(acks.is_sorted(), "an Ack takes nothing back");
    assert!(acks.last().is_none_or(|last| *last <= whole.notes.len() as u64), "an Ack is for what has come");
    if let Some(end) = end
        && mode.form.transport == Transport::WebSockets
    {
        let code = end.told().close_code;
        assert_eq!(code.is_some(), closes_with(&whole.out), "the last word is a Close frame: {end:?}");
    }
}

fn live_client(mode: Mode, script: &[u8], whole: bool) -> (ClientWorld, Option<End>) {
    let (mut live, mut script) = (Live::new(mode, whole), Script { rest: script });
    let mut result = Ok(());
    while !script.rest.is_empty() && result.is_ok() {
        result = match script.client_step(mode) {
            Step::Bytes(bytes) => live.hear(&bytes),
            Step::Pass(time) => live.pass(time),
            Step::Resume(sequence) if live.session.is_resumable() => live.resume(sequence),
            Step::Resume(_) => Ok(()),
            Step::Refuse(refusal) => {
                live.world.refuse = refusal;
                Ok(())
            }
        };
    }
    live.end(result)
}

/// The other end of a stateful reconnect: a client that keeps the rules, over sockets that lose what is on its way.
struct Peer {
    protocol: Protocol,
    /// Every counted message it has sent.
    sent: Vec<Said>,
    /// How many of them are acknowledged, as far as it has read.
    acked: u64,
    /// What the present socket has still to bring us.
    flight: Vec<u8>,
    /// How much of what we said it has read, or will never read.
    read: usize,
}

impl Peer {
    /// A client's buffer, in messages: full, it sends nothing new.
    const KEPT_MAX: u64 = 4;

    fn put(&mut self, script: &mut Script, record: &[u8]) {
        let frame = script.frame(opcode(self.protocol), true, record);
        self.flight.extend(frame);
    }

    fn send(&mut self, script: &mut Script) {
        if self.sent.len() as u64 >= self.acked + Peer::KEPT_MAX {
            return;
        }
        let number = self.sent.len() as u64 + 1;
        let message = match script.byte() % 4 {
            0 => Said::Request { id: number.to_string(), vm: number.to_string() },
            1 => Said::Update(number),
            2 => Said::Wrong(number.to_string()),
            _ => Said::Item,
        };
        self.put(script, &message.record(self.protocol));
        self.sent.push(message);
    }

    /// Reads everything we have said.
    fn read(&mut self, live: &Live) {
        let form = Form { transport: Transport::WebSockets, protocol: self.protocol };
        for (kind, number) in said(form, &live.world.out[self.read..], self.read == 0) {
            if kind == 8 {
                assert!(number <= self.sent.len() as u64, "an Ack is for what was sent");
                self.acked = self.acked.max(number);
            }
        }
        self.read = live.world.out.len();
    }

    /// The next socket: Sequence, and what is not acknowledged.
    fn resume(&mut self, script: &mut Script, live: &mut Live) -> Result<(), End> {
        self.flight.clear();
        self.read = live.world.out.len();
        live.resume(1)?;
        self.put(script, &Said::Sequence(self.acked + 1).record(self.protocol));
        for index in self.acked as usize..self.sent.len() {
            let record = self.sent[index].record(self.protocol);
            self.put(script, &record);
        }
        Ok(())
    }

    fn bring(&mut self, bytes: usize, live: &mut Live) -> Result<(), End> {
        let bytes: Vec<u8> = self.flight.drain(..bytes.min(self.flight.len())).collect();
        live.hear(&bytes)
    }
}

fn live_honest_client(mode: Mode, script: &[u8], whole: bool) -> (ClientWorld, Option<End>) {
    let (mut live, mut script) = (Live::new(mode, whole), Script { rest: script });
    let protocol = mode.form.protocol;
    let mut peer = Peer { protocol, sent: Vec::new(), acked: 0, flight: Vec::new(), read: 0 };
    let result = honest_life(&mut peer, &mut live, &mut script);
    let acted = live.world.notes.iter().filter_map(|note| match note {
        Note::Request(_) => Some(0),
        Note::RequestError(_) => Some(1),
        Note::Ignored => Some(2),
        _ => None,
    });
    let sent = peer.sent.iter().map(|message| match message {
        Said::Request { .. } | Said::Update(_) => 0,
        Said::Wrong(_) => 1,
        _ => 2,
    });
    let numbers: Vec<usize> =
        (1..).zip(sent.clone()).filter(|(_, kind)| *kind == 0).map(|(number, _)| number).collect();
    let (acted, sent): (Vec<_>, Vec<_>) = (acted.collect(), sent.collect());
    assert!(sent.starts_with(&acted), "each message is acted on once, in order");
    for ((_, record), number) in live.world.forwarded.iter().zip(&numbers) {
        let text = core::str::from_utf8(record).expect("forwarded is JSON");
        assert!(text.contains(&number.to_string()), "message {number} is forwarded in its turn");
    }
    match &result {
        // The socket is as good as the last one: all that was sent is there, and is known to be.
        Ok(()) => assert_eq!((acted.len() as u64, peer.acked), (sent.len() as u64, sent.len() as u64)),
        Err(end) => assert_eq!(*end, End::ClientTimeout, "a client that keeps the rules is not ended"),
    }
    live.end(result)
}

fn honest_life(peer: &mut Peer, live: &mut Live, script: &mut Script) -> Result<(), End> {
    let handshake = script.frame(Opcode::Binary, true, &handshake(peer.protocol, 2));
    live.hear(&handshake)?;
    while !script.rest.is_empty() {
        match script.byte() % 10 {
            0..=2 => peer.send(script),
            3 => peer.put(script, &Said::Ping.record(peer.protocol)),
            4 => {
                let ack = Said::Ack(script.byte().into());
                peer.put(script, &ack.record(peer.protocol));
            }
            5 => {
                let bytes = script.byte() as usize;
                peer.bring(bytes, live)?;
            }
            6 => peer.bring(usize::MAX, live)?,
            7 => live.pass(Duration::from_millis(100 * u64::from(script.byte())))?,
            8 => peer.read(live),
            _ => peer.resume(script, live)?,
        }
    }
    peer.bring(usize::MAX, live)?;
    live.pass(Duration::from_secs(1))?;
    peer.read(live);
    Ok(())
}

#[derive(Default, PartialEq, Debug)]
struct LaneWorld {
    out: Vec<u8>,
    delivered: Vec<(Delivery, Vec<u8>)>,
    completed: Vec<(u64, Option<String>)>,
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
    fn completed(&mut self, number: u64, error: Option<&str>) {
        self.completed.push((number, error.map(str::to_string)));
    }
    fn note(&mut self, note: LaneNote) {
        self.notes.push(note);
    }
}

/// Any bytes as the life of a lane; the first one says of which protocol.
pub fn lane_session(data: &[u8]) {
    let Some((&mode, script)) = data.split_first() else { return };
    let protocol = protocol(mode);
    let (whole, end) = live_lane(protocol, script, true);
    let (split, split_end) = live_lane(protocol, script, false);
    if end == Some(LaneEnd::WebSocket(WsError::InvalidUtf8)) {
        assert!(split.delivered.starts_with(&whole.delivered));
    } else {
        assert_eq!((&split, &split_end), (&whole, &end), "any split does what the whole does");
    }
    each_frame(&whole.out, Role::Server, |binary, payload| {
        assert_eq!(binary, protocol == Protocol::MessagePack);
        let ping: &[u8] = if binary { b"\x02\x91\x06" } else { b"{\"type\":6}\x1e" };
        assert_eq!(payload, ping, "a lane says pings only");
    });
}

fn live_lane(protocol: Protocol, script: &[u8], whole: bool) -> (LaneWorld, Option<LaneEnd>) {
    let mut now = Time::from_millis(1);
    let mut session = LaneSession::new(now, protocol);
    let (mut pool, mut world, mut script) = (BytePool::new(), LaneWorld::default(), Script { rest: script });
    while !script.rest.is_empty() {
        let result = match script.lane_step(protocol) {
            Step::Bytes(bytes) => pieces(&bytes, whole)
                .try_for_each(|piece| session.on_bytes(now, &mut piece.to_vec(), &mut pool, &mut world)),
            Step::Pass(time) => {
                now = now.after(time);
                session.on_time(now, &mut world).map(|next| assert!(next > now))
            }
            Step::Refuse(_) | Step::Resume(_) => Ok(()),
        };
        if let Err(end) = result {
            session.close(&mut pool, &mut world);
            assert!(closes_with(&world.out));
            return (world, Some(end));
        }
    }
    (world, None)
}

/// Everything that was said to a client after the handshake's answer, if it got one: each message's type, and its sequence number or 0.
/// What is sent at once is whole records in the form's framing.
fn said(form: Form, out: &[u8], accepted: bool) -> Vec<(u64, u64)> {
    let mut said = Vec::new();
    let mut answered = !accepted;
    let mut part = |bytes: &[u8]| {
        let mut bytes = bytes;
        if !answered {
            bytes = bytes.strip_prefix(b"{}\x1e").expect("the handshake's answer comes first");
            answered = true;
        }
        each_record(form.protocol, bytes, |value| said.push(kind_and_number(form.protocol, &value)));
    };
    match form.transport {
        Transport::WebSockets => each_frame(out, Role::Client, |binary, payload| {
            assert_eq!(binary, form.protocol == Protocol::MessagePack, "the frames are of the protocol's kind");
            part(payload);
        }),
        Transport::ServerSentEvents => events(out).iter().for_each(|event| part(event.as_bytes())),
        Transport::LongPolling => part(out),
    }
    said
}

fn kind_and_number(protocol: Protocol, value: &Value) -> (u64, u64) {
    let (kind, number) = match protocol {
        Protocol::Json => (&value["type"], &value["sequenceId"]),
        Protocol::MessagePack => (&value[0], &value[1]),
    };
    // The refusal of a handshake has no type.
    let kind = kind.as_u64().unwrap_or_default();
    (kind, if kind >= 8 { number.as_u64().expect("a sequence number") } else { 0 })
}

/// Calls `f` with each record; the last byte is the last record's.
fn each_record(protocol: Protocol, bytes: &[u8], mut f: impl FnMut(Value)) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let record;
        match protocol {
            Protocol::Json => {
                let end = rest.iter().position(|byte| *byte == 0x1e).expect("a record is whole");
                (record, rest) = (rest[..end].to_vec(), &rest[end + 1..]);
            }
            Protocol::MessagePack => {
                let prefix = record::length_prefix(rest).expect("a length").expect("a whole length");
                let (whole, tail) = rest.split_at_checked(prefix.0 + prefix.1 as usize).expect("a record is whole");
                let (body, mut json, mut end) = (&whole[prefix.0..], Vec::new(), 0);
                transcode::to_json(body, &mut json).expect("what a node says is MessagePack");
                msgpack::elements(body, |item| end = item.end as usize);
                assert_eq!(end, body.len(), "nothing stands behind the array");
                (record, rest) = (json, tail);
            }
        }
        let value: Value = serde_json::from_slice(&record).expect("what a node says is JSON");
        assert!(if protocol == Protocol::Json { value.is_object() } else { value.is_array() });
        f(value);
    }
}

/// Calls `f` with each data frame we wrote, and whether it is binary: whole frames, nothing behind a Close.
fn each_frame(out: &[u8], our_peer: Role, mut f: impl FnMut(bool, &[u8])) {
    let mut bytes = out.to_vec();
    let mut decoder = Decoder::new(our_peer);
    let mut input = &mut bytes[..];
    while !input.is_empty() {
        let (used, event) = decoder.next(input).expect("what a node writes is valid");
        let (piece, rest) = core::mem::take(&mut input).split_at_mut(used);
        input = rest;
        match event.expect("a node writes whole frames") {
            Event::Data { binary, start, end, range } => {
                assert!(start && end);
                f(binary, &piece[range]);
            }
            Event::Close { .. } => assert!(input.is_empty(), "nothing comes behind a Close"),
            Event::Ping | Event::Pong => {}
        }
    }
}

/// What a client's EventSource dispatches (WHATWG HTML 9.2.6). Nothing may be left undispatched at the end.
pub fn events(stream: &[u8]) -> Vec<String> {
    let stream = core::str::from_utf8(stream).expect("an event stream is UTF-8");
    let stream = stream.replace("\r\n", "\n").replace('\r', "\n");
    let (mut events, mut data) = (Vec::new(), None::<String>);
    for line in stream.strip_suffix('\n').unwrap_or(&stream).split('\n') {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match (line, field) {
            ("", _) => events.extend(data.take()),
            (_, "data") => data = Some(data.map_or(String::new(), |data| data + "\n") + value),
            // A comment.
            (_, "") => {}
            (_, other) => panic!("a node writes data only, not `{other}`"),
        }
    }
    assert_eq!(data, None, "an event is dispatched at its end");
    events
}

/// Payloads in a client's form, and one after the other, are what the client reads. `payloads` are records of the form's protocol.
pub fn form(form: Form, payloads: &[Vec<u8>]) {
    let mut out = Vec::new();
    for payload in payloads {
        form.write(&mut out, |out| out.extend_from_slice(payload));
    }
    match form.transport {
        Transport::LongPolling => assert_eq!(out, payloads.concat(), "a poll's body is records and nothing else"),
        Transport::WebSockets => {
            let mut found = Vec::new();
            each_frame(&out, Role::Client, |binary, payload| found.push((binary, payload.to_vec())));
            let is_binary = form.protocol == Protocol::MessagePack;
            assert!(found.iter().all(|(binary, _)| *binary == is_binary));
            assert!(found.iter().map(|(_, payload)| payload).eq(payloads));
        }
        Transport::ServerSentEvents => {
            // Line ends outside of JSON's strings are white space, and become LF.
            let text = |payload: &Vec<u8>| String::from_utf8(payload.clone()).expect("JSON is UTF-8");
            let expected = payloads.iter().map(|payload| text(payload).replace("\r\n", "\n").replace('\r', "\n"));
            assert!(events(&out).into_iter().eq(expected));
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
        fn lives_of_clients_after_the_handshake(mode in 0u8..16, data in proptest::collection::vec(0u8..24, 0..400)) {
            super::client_session(&[&[mode, 0, 0][..], &data].concat());
        }

        #[test]
        fn lives_with_a_stateful_reconnect(message_pack in any::<bool>(), data in proptest::collection::vec(0u8..60, 0..400)) {
            super::client_session(&[&[24 + 4 * u8::from(message_pack)][..], &data].concat());
        }

        #[test]
        fn lives_of_lanes(data in proptest::collection::vec(any::<u8>(), 0..400)) {
            super::lane_session(&data);
        }
    }
}
