//! The life of a lane after the control plane connected it: what the app server sends, pings both ways, the end.
use super::assembler::{Assembler, Framing};
use super::fault::LaneEnd;
use crate::ids::Time;
use crate::limits::{LANE_KEEP_ALIVE_MS, LANE_RECORD_BYTES_MAX, LANE_SILENCE_MS};
use crate::mem::pool::BytePool;
use crate::proto::dotnetify::response::{self, Delivery, ResponseError};
use crate::proto::signalr::{self, Kind, Protocol, encode};
use crate::proto::ws::frame::write_frame;
use crate::proto::ws::{Decoder, Event, Opcode, Role};
use core::time::Duration;

/// What a lane's session says to the app server by itself: pings, pongs, its goodbye.
pub trait LaneOut {
    /// Appends bytes to what is sent to the app server.
    fn out<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R;
    /// A fresh mask for a frame of ours (RFC 6455 §5.3).
    fn mask(&mut self) -> [u8; 4];
}

/// Everything that the app server's bytes bring about.
pub trait LaneEnv: LaneOut {
    /// The app server addresses clients. Ranges are into `record`, which is of the lane's protocol.
    fn deliver(&mut self, delivery: &Delivery, record: &[u8]);
    /// The app server has worked on one of our invocations, and failed if it says so.
    fn completed(&mut self, number: u64, error: Option<&str>);
    fn note(&mut self, note: LaneNote);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneNote {
    Ping,
    /// An invocation that is no delivery of the contract: ignored.
    NotADelivery(ResponseError),
    Ignored,
}

pub struct LaneSession {
    ws: Decoder,
    assembler: Assembler,
    protocol: Protocol,
    /// Some of the JSON record in progress came in a binary frame, whose bytes nobody has checked for UTF-8.
    unchecked: bool,
    heard: Time,
    ping_due: Time,
}

impl LaneSession {
    pub fn new(now: Time, protocol: Protocol) -> LaneSession {
        LaneSession {
            ws: Decoder::new(Role::Client),
            assembler: Assembler::default(),
            protocol,
            unchecked: false,
            heard: now,
            ping_due: now.after(Duration::from_millis(LANE_KEEP_ALIVE_MS)),
        }
    }

    pub fn on_bytes(
        &mut self,
        now: Time,
        mut input: &mut [u8],
        pool: &mut BytePool,
        env: &mut impl LaneEnv,
    ) -> Result<(), LaneEnd> {
        self.heard = now;
        while !input.is_empty() {
            let (used, event) = self.ws.next(input).map_err(LaneEnd::WebSocket)?;
            let (piece, rest) = core::mem::take(&mut input).split_at_mut(used);
            input = rest;
            match event {
                None | Some(Event::Pong) => {}
                Some(Event::Data { binary, range, .. }) => self.on_data(&piece[range], binary, pool, env)?,
                Some(Event::Ping) => {
                    let (payload, mask) = (self.ws.control_payload(), env.mask());
                    env.out(|out| write_frame(out, Opcode::Pong, Some(mask), |out| out.extend_from_slice(payload)));
                }
                Some(Event::Close { code }) => return Err(LaneEnd::CloseFrame(code)),
            }
        }
        Ok(())
    }

    fn on_data(
        &mut self,
        data: &[u8],
        binary: bool,
        pool: &mut BytePool,
        env: &mut impl LaneEnv,
    ) -> Result<(), LaneEnd> {
        let LaneSession { assembler, unchecked, protocol, .. } = self;
        *unchecked |= binary;
        let framing = Framing { protocol: *protocol, bytes_max: LANE_RECORD_BYTES_MAX };
        assembler.push(
            data,
            pool,
            || framing,
            || LaneEnd::RecordTooLarge,
            |record, _| {
                if *protocol == Protocol::Json && *unchecked && core::str::from_utf8(record).is_err() {
                    return Err(LaneEnd::NotUtf8);
                }
                *unchecked = binary;
                on_record(*protocol, record, env)
            },
        )
    }

    /// Sends the ping that is due and notices a dead app server. Returns when to call again.
    pub fn on_time(&mut self, now: Time, env: &mut impl LaneOut) -> Result<Time, LaneEnd> {
        let silent_at = self.heard.after(Duration::from_millis(LANE_SILENCE_MS));
        if now >= silent_at {
            return Err(LaneEnd::Silence);
        }
        if now >= self.ping_due {
            let mask = env.mask();
            let protocol = self.protocol;
            env.out(|out| {
                write_frame(out, opcode(protocol), Some(mask), |out| out.extend_from_slice(encode::ping(protocol)));
            });
            self.ping_due = now.after(Duration::from_millis(LANE_KEEP_ALIVE_MS));
        }
        Ok(self.ping_due.min(silent_at))
    }

    /// Tells the app server that we go: a normal close.
    pub fn close(&mut self, pool: &mut BytePool, env: &mut impl LaneOut) {
        self.assembler.release(pool);
        let mask = env.mask();
        env.out(|out| {
            write_frame(out, Opcode::Close, Some(mask), |out| out.extend_from_slice(&1000u16.to_be_bytes()));
        });
    }
}

/// What records of a protocol travel in.
pub fn opcode(protocol: Protocol) -> Opcode {
    match protocol {
        Protocol::Json => Opcode::Text,
        Protocol::MessagePack => Opcode::Binary,
    }
}

fn on_record(protocol: Protocol, record: &[u8], env: &mut impl LaneEnv) -> Result<(), LaneEnd> {
    let message = signalr::parse(protocol, record).map_err(LaneEnd::Message)?;
    match message.kind {
        Kind::Invocation => match response::parse(protocol, record, &message) {
            Ok(delivery) => env.deliver(&delivery, record),
            Err(error) => env.note(LaneNote::NotADelivery(error)),
        },
        Kind::Ping => env.note(LaneNote::Ping),
        Kind::Close => {
            let error = error_text(protocol, &message, record);
            return Err(LaneEnd::ServerClose { error, allow_reconnect: message.allow_reconnect });
        }
        // Our numbers have no characters that would be written with escapes.
        Kind::Completion => {
            match message.invocation_id.and_then(|id| core::str::from_utf8(id.of(record)).ok()?.parse().ok()) {
                Some(number) => env.completed(number, error_text(protocol, &message, record).as_deref()),
                None => env.note(LaneNote::Ignored),
            }
        }
        Kind::StreamItem
        | Kind::StreamInvocation
        | Kind::CancelInvocation
        | Kind::Ack
        | Kind::Sequence
        | Kind::Unknown => env.note(LaneNote::Ignored),
    }
    Ok(())
}

fn error_text(protocol: Protocol, message: &signalr::Message, record: &[u8]) -> Option<String> {
    let error = message.error?.of(record);
    let mut text = Vec::new();
    signalr::plain_text(protocol, error, &mut text);
    Some(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::signalr::MessageError;
    use crate::proto::ws::{WsError, header};

    #[derive(Default)]
    struct World {
        out: Vec<u8>,
        delivered: Vec<String>,
        notes: Vec<LaneNote>,
    }

    impl LaneOut for World {
        fn out<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
            write(&mut self.out)
        }
        fn mask(&mut self) -> [u8; 4] {
            [1, 2, 3, 4]
        }
    }

    impl LaneEnv for World {
        fn deliver(&mut self, delivery: &Delivery, record: &[u8]) {
            let Delivery::Send { vm, data, .. } = delivery else { panic!("{delivery:?}") };
            self.delivered.push(format!(
                "{} {}",
                String::from_utf8_lossy(vm.of(record)),
                String::from_utf8_lossy(data.of(record))
            ));
        }
        fn completed(&mut self, number: u64, error: Option<&str>) {
            self.delivered.push(format!("{number} {error:?}"));
        }
        fn note(&mut self, note: LaneNote) {
            self.notes.push(note);
        }
    }

    fn text(payload: &str) -> Vec<u8> {
        let payload = payload.replace('␞', "\u{1e}");
        let mut bytes = header(Opcode::Text, true, payload.len() as u64, None).as_ref().to_vec();
        bytes.extend_from_slice(payload.as_bytes());
        bytes
    }

    const SEND: &str = "{\"type\":1,\"target\":\"Response_VM\",\"arguments\":[[\"SendAsync\",[\"V\",\"{}\"],{\"$fwdConnId\":\"abc\"}]]}␞";

    #[test]
    fn deliveries_arrive_whole_however_they_are_cut() {
        let whole = text(&format!("{SEND}{{\"type\":6}}␞{SEND}"));
        for cut in 0..whole.len() {
            let (mut session, mut pool, mut world) =
                (LaneSession::new(Time(0), Protocol::Json), BytePool::new(), World::default());
            let (a, b) = whole.split_at(cut);
            for part in [a, b] {
                session.on_bytes(Time(1), &mut part.to_vec(), &mut pool, &mut world).unwrap();
            }
            assert_eq!(world.delivered, ["\"V\" \"{}\"", "\"V\" \"{}\""]);
        }
    }

    #[test]
    fn completions_name_our_invocations_and_say_what_failed() {
        let (mut session, mut pool, mut world) =
            (LaneSession::new(Time(0), Protocol::Json), BytePool::new(), World::default());
        let records = "{\"type\":3,\"invocationId\":\"7\",\"result\":null}␞{\"type\":3,\"invocationId\":\"8\",\"error\":\"a \\\"b\\\"\"}␞\
                       {\"type\":3,\"invocationId\":\"x\"}␞{\"type\":3,\"invocationId\":\"99999999999999999999\"}␞";
        session.on_bytes(Time(1), &mut text(records), &mut pool, &mut world).unwrap();
        assert_eq!(world.delivered, ["7 None", "8 Some(\"a \\\"b\\\"\")"]);
        assert_eq!(world.notes, [LaneNote::Ignored; 2]);
    }

    #[test]
    fn silence_ends_a_lane_and_pings_keep_it() {
        let (mut session, mut pool, mut world) =
            (LaneSession::new(Time(0), Protocol::Json), BytePool::new(), World::default());
        assert_eq!(session.on_time(Time::from_millis(14_000), &mut world), Ok(Time::from_millis(15_000)));
        assert!(world.out.is_empty());
        session.on_time(Time::from_millis(15_000), &mut world).unwrap();
        let mut decoder = Decoder::new(Role::Server);
        let (_, event) = decoder.next(&mut world.out).unwrap();
        assert!(matches!(event, Some(Event::Data { binary: false, end: true, .. })));
        session.on_bytes(Time::from_millis(20_000), &mut text("{\"type\":6}␞"), &mut pool, &mut world).unwrap();
        assert!(session.on_time(Time::from_millis(49_999), &mut world).is_ok());
        assert_eq!(session.on_time(Time::from_millis(50_000), &mut world), Err(LaneEnd::Silence));
    }

    #[test]
    fn a_close_says_why_and_what_is_no_delivery_is_counted() {
        let (mut session, mut pool, mut world) =
            (LaneSession::new(Time(0), Protocol::Json), BytePool::new(), World::default());
        let odd = text("{\"type\":1,\"target\":\"Hello\",\"arguments\":[]}␞");
        session.on_bytes(Time(1), &mut odd.clone(), &mut pool, &mut world).unwrap();
        assert!(matches!(world.notes.last(), Some(LaneNote::NotADelivery(_))));
        let close = text("{\"type\":7,\"error\":\"by\\u0065\",\"allowReconnect\":true}␞");
        let end = session.on_bytes(Time(1), &mut close.clone(), &mut pool, &mut world);
        assert_eq!(end, Err(LaneEnd::ServerClose { error: Some("bye".into()), allow_reconnect: true }));
    }

    // ---- MessagePack --------------------------------------------------------------------------------------------

    fn frame(opcode: Opcode, fin: bool, payload: &[u8]) -> Vec<u8> {
        [header(opcode, fin, payload.len() as u64, None).as_ref(), payload].concat()
    }

    fn binary(payload: &[u8]) -> Vec<u8> {
        frame(Opcode::Binary, true, payload)
    }

    /// `[1, {}, nil, "Response_VM", [["SendAsync", ["V", "{}"], {"$fwdConnId": "abc"}]], []]`, as .NET writes it.
    const SEND_PACKED: &[u8] =
        b"\x33\x96\x01\x80\xc0\xabResponse_VM\x91\x93\xa9SendAsync\x92\xa1V\xa2{}\x81\xaa$fwdConnId\xa3abc\x90";

    fn hear(session: &mut LaneSession, world: &mut World, bytes: &[u8]) -> Result<(), LaneEnd> {
        session.on_bytes(Time(1), &mut bytes.to_vec(), &mut BytePool::new(), world)
    }

    fn packed() -> (LaneSession, World) {
        (LaneSession::new(Time(0), Protocol::MessagePack), World::default())
    }

    #[test]
    fn messagepack_deliveries_arrive_whole_however_they_are_cut() {
        let records = [SEND_PACKED, b"\x02\x91\x06", SEND_PACKED].concat();
        let whole = binary(&records);
        for cut in 0..whole.len() {
            let (mut session, mut pool, mut world) =
                (LaneSession::new(Time(0), Protocol::MessagePack), BytePool::new(), World::default());
            for part in [&whole[..cut], &whole[cut..]] {
                session.on_bytes(Time(1), &mut part.to_vec(), &mut pool, &mut world).unwrap();
            }
            assert_eq!(
                (world.delivered.as_slice(), world.notes.as_slice()),
                (&["V {}"; 2].map(String::from)[..], &[LaneNote::Ping][..])
            );
        }
        // Cut between messages and between fragments, too.
        for cut in 0..=records.len() {
            let (mut session, mut world) = packed();
            hear(&mut session, &mut world, &binary(&records[..cut])).unwrap();
            hear(&mut session, &mut world, &frame(Opcode::Binary, false, &records[cut..])).unwrap();
            hear(&mut session, &mut world, &frame(Opcode::Continuation, true, b"")).unwrap();
            assert_eq!(world.delivered.len(), 2);
        }
    }

    #[test]
    fn a_messagepack_lane_pings_in_binary_frames() {
        let (mut session, mut world) = packed();
        session.on_time(Time::from_millis(15_000), &mut world).unwrap();
        let mut decoder = Decoder::new(Role::Server);
        let (used, event) = decoder.next(&mut world.out).unwrap();
        let Some(Event::Data { binary: true, start: true, end: true, range }) = event else { panic!("{event:?}") };
        assert_eq!((&world.out[range], used), (&b"\x02\x91\x06"[..], world.out.len()));
    }

    #[test]
    fn messagepack_lanes_end_and_what_they_do_not_know_is_counted() {
        let (mut session, mut world) = packed();
        // [3, {}, "1", 3, nil], an unknown type, [1, {}, nil, "Hello", []].
        hear(
            &mut session,
            &mut world,
            &binary(b"\x07\x95\x03\x80\xa11\x03\xc0\x02\x91\x2a\x0b\x95\x01\x80\xc0\xa5Hello\x90"),
        )
        .unwrap();
        assert_eq!(world.notes, [LaneNote::Ignored, LaneNote::NotADelivery(ResponseError::NotAResponse)]);
        assert_eq!(world.delivered, ["1 None"]);
        let close = |error: Option<&str>, allow_reconnect| LaneEnd::ServerClose {
            error: error.map(String::from),
            allow_reconnect,
        };
        let cases: [(&[u8], LaneEnd); 6] = [
            (b"\x07\x93\x07\xa3bye\xc3", close(Some("bye"), true)),
            (b"\x04\x93\x07\xc0\xc2", close(None, false)),
            (b"\x03\x92\x07\xc0", close(None, false)),
            (b"\x00", LaneEnd::Message(MessageError::Syntax)),
            (b"\x01\x06", LaneEnd::Message(MessageError::NotAMessage)),
            // 16 MiB and a byte are announced.
            (b"\xfd\xff\xff\x07\x96", LaneEnd::RecordTooLarge),
        ];
        for (bytes, end) in cases {
            let (mut session, mut world) = packed();
            assert_eq!(hear(&mut session, &mut world, &binary(bytes)), Err(end));
        }
        let (mut session, mut world) = packed();
        assert_eq!(hear(&mut session, &mut world, &binary(b"\xfc\xff\xff\x07\x96")), Ok(()), "just 16 MiB");
    }

    #[test]
    fn bytes_of_a_json_lane_are_checked_in_whatever_frame_they_come() {
        for (bytes, end) in [
            (binary(b"{\"type\":6,\"x\":\"\xff\"}\x1e"), Err(LaneEnd::NotUtf8)),
            (frame(Opcode::Text, true, b"{\"x\":\"\xff"), Err(LaneEnd::WebSocket(WsError::InvalidUtf8))),
            (binary("{\"type\":6,\"x\":\"é\"}\x1e".as_bytes()), Ok(())),
        ] {
            let (mut session, mut world) = (LaneSession::new(Time(0), Protocol::Json), World::default());
            assert_eq!(hear(&mut session, &mut world, &bytes), end);
        }
        // Half in a binary frame, half in a text frame.
        let (mut session, mut world) = (LaneSession::new(Time(0), Protocol::Json), World::default());
        hear(&mut session, &mut world, &binary(b"{\"type\":6,\"x\":\"\xff")).unwrap();
        assert_eq!(hear(&mut session, &mut world, &text("\"}␞")), Err(LaneEnd::NotUtf8));
    }
}
