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
            let error = message.error.map(|error| {
                let mut text = Vec::new();
                signalr::plain_text(protocol, error.of(record), &mut text);
                String::from_utf8_lossy(&text).into_owned()
            });
            return Err(LaneEnd::ServerClose { error, allow_reconnect: message.allow_reconnect });
        }
        Kind::StreamItem
        | Kind::Completion
        | Kind::StreamInvocation
        | Kind::CancelInvocation
        | Kind::Ack
        | Kind::Sequence
        | Kind::Unknown => env.note(LaneNote::Ignored),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ws::header;

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
}
