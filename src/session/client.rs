//! The life of a client from the start of its transport: handshake, messages, pings, the end.
//!
//! ```text
//!            handshake ok            Close, fault, timeout
//! Handshaking ----------> Open -----------------------------> (ended)
//!      |                                                         ^
//!      +-- refused, 15 s, framing broken ------------------------+
//! ```
use super::assembler::{Assembler, Framing};
use super::fault::{End, Refusal};
use super::form::{Form, Transport};
use super::resume::Inbound;
use crate::ids::Time;
use crate::limits::HANDSHAKE_BYTES_MAX;
use crate::mem::pool::BytePool;
use crate::proto::dotnetify::request::{self, Call, Request, RequestError};
use crate::proto::dotnetify::response;
use crate::proto::signalr::handshake::{self, HandshakeError, Protocol};
use crate::proto::signalr::{self, Kind, encode};
use crate::proto::ws::frame::write_frame;
use crate::proto::ws::{Decoder, Event, Opcode, Role};
use core::time::Duration;

/// What all clients of a node have in common.
#[derive(Clone, Copy, Debug)]
pub struct ClientSettings {
    pub handshake_timeout: Duration,
    pub client_timeout: Duration,
    pub keep_alive: Duration,
    /// Largest message, framing included.
    pub message_bytes_max: u32,
}

/// Effects of a client's session.
pub trait ClientEnv {
    /// Appends bytes to what is sent to this client.
    fn out<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R;
    /// Appends one message that a stateful reconnect counts (reference 14), framed by `form`.
    fn message(&mut self, form: Form, write: impl FnOnce(&mut Vec<u8>));
    /// The client has every message up to this number.
    fn acknowledged(&mut self, number: u64);
    /// Sends a request on its way to the app server, or into the queue in front of its lane.
    fn forward(&mut self, request: &Request, record: &[u8]) -> Result<(), Refusal>;
    /// Something happened that is counted.
    fn note(&mut self, note: Note);
}

/// Events of a session that a metric counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    HandshakeDone(Protocol),
    /// A request, whether it can be forwarded or not.
    Request(Call),
    Ping,
    /// An invocation that was answered with an error (or would have been, had it asked for an answer).
    RequestError(RequestError),
    Refused(Refusal),
    /// A message that came twice over a stateful reconnect.
    Repeated,
    /// A message that has no meaning here: completions, stream items, acks, unknown types.
    Ignored,
}

pub struct ClientSession {
    ws: Decoder,
    assembler: Assembler,
    state: State,
}

struct State {
    phase: Phase,
    form: Form,
    /// Some of the record in progress came in a binary frame or a body, whose bytes nobody has checked for UTF-8.
    unchecked: bool,
    /// A deadline is nearer than the last one that was given out.
    hurried: bool,
    /// Stateful reconnect: what has arrived. None: the client did not ask for it.
    inbound: Option<Box<Inbound>>,
}

enum Phase {
    Handshaking {
        until: Time,
    },
    Open {
        /// Our next ping.
        ping_due: Time,
        /// Last message, once the first ping has armed the client timeout (reference 13.4).
        heard: Option<Time>,
    },
}

impl ClientSession {
    /// `resumable`: the client negotiated a stateful reconnect.
    pub fn new(now: Time, transport: Transport, resumable: bool, settings: &ClientSettings) -> ClientSession {
        let phase = Phase::Handshaking { until: now.after(settings.handshake_timeout) };
        // Until the handshake names another, everything is JSON (reference 7.2).
        let form = Form { transport, protocol: Protocol::Json };
        let inbound = resumable.then(Box::default);
        ClientSession {
            ws: Decoder::new(Role::Server),
            assembler: Assembler::default(),
            state: State { phase, form, unchecked: false, hurried: false, inbound },
        }
    }

    pub fn is_open(&self) -> bool {
        matches!(self.state.phase, Phase::Open { .. })
    }

    /// How records are sent to this client.
    pub fn form(&self) -> Form {
        self.state.form
    }

    /// May it lose its socket and come back with another?
    pub fn is_resumable(&self) -> bool {
        self.is_open() && self.state.inbound.is_some()
    }

    /// The end of the handshake's time; never once it is done.
    pub fn handshake_until(&self) -> Time {
        match self.state.phase {
            Phase::Handshaking { until } => until,
            Phase::Open { .. } => Time::NEVER,
        }
    }

    /// Has a deadline come nearer since the last call? Then `on_time` wants to be called, which says when next.
    pub fn take_hurry(&mut self) -> bool {
        core::mem::take(&mut self.state.hurried)
    }

    /// The client goes on over a new socket; `sequence` is the number of the first message it is sent.
    pub fn resume(
        &mut self,
        now: Time,
        sequence: u64,
        settings: &ClientSettings,
        pool: &mut BytePool,
        env: &mut impl ClientEnv,
    ) {
        self.ws = Decoder::new(Role::Server);
        // Half a record that was cut off with the old socket comes again, whole.
        self.assembler.release(pool);
        let State { phase, form, unchecked, hurried, inbound } = &mut self.state;
        *unchecked = false;
        *hurried = true;
        if let Some(inbound) = inbound {
            inbound.resumed();
        }
        if let Phase::Open { ping_due, heard } = phase {
            *ping_due = now.after(settings.keep_alive);
            *heard = heard.map(|_| now);
        }
        let form = *form;
        env.out(|out| form.write(out, |out| encode::sequence(form.protocol, sequence, out)));
    }

    /// What was received on a WebSocket.
    pub fn on_bytes(
        &mut self,
        now: Time,
        mut input: &mut [u8],
        settings: &ClientSettings,
        pool: &mut BytePool,
        env: &mut impl ClientEnv,
    ) -> Result<(), End> {
        debug_assert!(self.state.form.transport == Transport::WebSockets);
        while !input.is_empty() {
            let (used, event) = self.ws.next(input).map_err(End::WebSocket)?;
            let (piece, rest) = core::mem::take(&mut input).split_at_mut(used);
            input = rest;
            match event {
                None => {}
                Some(Event::Data { binary, range, .. }) => {
                    self.on_data(now, &piece[range], binary, settings, pool, env)?;
                }
                Some(Event::Ping) => {
                    let payload = self.ws.control_payload();
                    env.out(|out| write_frame(out, Opcode::Pong, None, |out| out.extend_from_slice(payload)));
                }
                Some(Event::Pong) => {}
                Some(Event::Close { code }) => return Err(End::PeerCloseFrame(code)),
            }
        }
        Ok(())
    }

    /// The body of a POST (reference 8 and 9.2): records, cut anywhere.
    pub fn on_body(
        &mut self,
        now: Time,
        body: &[u8],
        settings: &ClientSettings,
        pool: &mut BytePool,
        env: &mut impl ClientEnv,
    ) -> Result<(), End> {
        self.on_data(now, body, true, settings, pool, env)
    }

    fn on_data(
        &mut self,
        now: Time,
        data: &[u8],
        binary: bool,
        settings: &ClientSettings,
        pool: &mut BytePool,
        env: &mut impl ClientEnv,
    ) -> Result<(), End> {
        let ClientSession { assembler, state, .. } = self;
        state.unchecked |= binary;
        let limit = settings.message_bytes_max as usize;
        // The handshake may not be larger than a handshake, and is JSON; what follows it in the same frame need not be.
        let framing = |state: &State| match state.phase {
            Phase::Handshaking { .. } => {
                Framing { protocol: Protocol::Json, bytes_max: HANDSHAKE_BYTES_MAX.min(limit) }
            }
            Phase::Open { .. } => Framing { protocol: state.form.protocol, bytes_max: limit },
        };
        let current = core::cell::Cell::new(framing(state));
        let handshaking = core::cell::Cell::new(matches!(state.phase, Phase::Handshaking { .. }));
        let too_large = || {
            if handshaking.get() { End::Handshake(HandshakeError::Canceled) } else { End::MessageTooLarge }
        };
        let result = assembler.push(
            data,
            pool,
            || current.get(),
            too_large,
            |record, pool| {
                let is_json = current.get().protocol == Protocol::Json;
                if is_json && state.unchecked && core::str::from_utf8(record).is_err() {
                    return Err(End::NotUtf8);
                }
                state.unchecked = binary;
                if handshaking.replace(false) {
                    state.on_handshake(now, record, settings, env)?;
                    current.set(framing(state));
                    Ok(())
                } else {
                    state.on_record(now, record, pool, env)
                }
            },
        );
        if let Err(End::Handshake(error)) = &result {
            let form = self.state.form;
            env.out(|out| form.write(out, |out| handshake::write_refusal(error, out)));
        }
        result
    }

    /// Sends the ping and the Ack that are due and notices silence. Returns when to call again.
    pub fn on_time(&mut self, now: Time, settings: &ClientSettings, env: &mut impl ClientEnv) -> Result<Time, End> {
        let State { phase, form, inbound, hurried, .. } = &mut self.state;
        let form = *form;
        *hurried = false;
        match phase {
            Phase::Handshaking { until } if now < *until => Ok(*until),
            Phase::Handshaking { .. } => {
                let error = HandshakeError::Canceled;
                env.out(|out| form.write(out, |out| handshake::write_refusal(&error, out)));
                Err(End::Handshake(error))
            }
            // Polls keep themselves alive: neither side pings, nobody times anybody out (reference 9.3).
            Phase::Open { .. } if form.transport == Transport::LongPolling => Ok(Time::NEVER),
            Phase::Open { ping_due, heard } => {
                let silent_at = heard.map_or(Time::NEVER, |heard| heard.after(settings.client_timeout));
                if now >= silent_at {
                    return Err(End::ClientTimeout);
                }
                if now >= *ping_due {
                    // About every interval, whatever else is sent: JS clients arm their own ping on what they receive.
                    env.out(|out| form.write(out, |out| out.extend_from_slice(encode::ping(form.protocol))));
                    *ping_due = now.after(settings.keep_alive);
                }
                let mut next = (*ping_due).min(silent_at);
                if let Some(inbound) = inbound {
                    if now >= inbound.ack_due() {
                        let number = inbound.acknowledge();
                        env.out(|out| form.write(out, |out| encode::ack(form.protocol, number, out)));
                    }
                    next = next.min(inbound.ack_due());
                }
                Ok(next)
            }
        }
    }

    /// Writes what the peer is told of the end. Nothing may be written after it.
    pub fn close(&mut self, end: &End, pool: &mut BytePool, env: &mut impl ClientEnv) {
        self.assembler.release(pool);
        let (told, form) = (end.told(), self.state.form);
        if let (Some((error, allow_reconnect)), true) = (told.hub_close, self.is_open()) {
            env.out(|out| form.write(out, |out| encode::close(form.protocol, error, allow_reconnect, out)));
        }
        if let (Some(code), Transport::WebSockets) = (told.close_code, form.transport) {
            // RFC 6455 §5.5.1: the answer to a Close without a code has none either.
            let silent = matches!(end, End::PeerCloseFrame(None));
            let payload = code.to_be_bytes();
            let payload: &[u8] = if silent { &[] } else { &payload };
            env.out(|out| write_frame(out, Opcode::Close, None, |out| out.extend_from_slice(payload)));
        }
    }
}

impl State {
    fn on_handshake(
        &mut self,
        now: Time,
        record: &[u8],
        settings: &ClientSettings,
        env: &mut impl ClientEnv,
    ) -> Result<(), End> {
        let request = handshake::parse_request(record).map_err(End::Handshake)?;
        if request.protocol == Protocol::MessagePack && self.form.transport == Transport::ServerSentEvents {
            return Err(End::Handshake(HandshakeError::Transport(request.protocol)));
        }
        // The format is switched before the answer is written (reference 7.2).
        self.form.protocol = request.protocol;
        let form = self.form;
        env.out(|out| form.write(out, handshake::write_accept));
        env.note(Note::HandshakeDone(request.protocol));
        self.phase = Phase::Open { ping_due: now.after(settings.keep_alive), heard: None };
        self.hurried = true;
        if request.version < handshake::STATEFUL_RECONNECT_VERSION {
            // Negotiated, but the protocol has no word for it (reference 11.3).
            self.inbound = None;
        }
        Ok(())
    }

    fn on_record(
        &mut self,
        now: Time,
        record: &[u8],
        pool: &mut BytePool,
        env: &mut impl ClientEnv,
    ) -> Result<(), End> {
        let protocol = self.form.protocol;
        let message = signalr::parse(protocol, record).map_err(End::Message)?;
        if let Phase::Open { heard, .. } = &mut self.phase
            && (heard.is_some() || message.kind == Kind::Ping)
        {
            *heard = Some(now);
        }
        if let Some(inbound) = &mut self.inbound
            && message.kind.is_counted()
        {
            let due = inbound.ack_due();
            if !inbound.counts(now, record.len()) {
                env.note(Note::Repeated);
                return Ok(());
            }
            self.hurried |= inbound.ack_due() < due;
        }
        match message.kind {
            Kind::Invocation | Kind::StreamInvocation => {
                let answer_to = message.invocation_id.map(|id| id.of(record));
                match protocol {
                    Protocol::Json => match request::parse(record, &message) {
                        Ok(request) => self.on_request(&request, record, answer_to, env),
                        Err(error) => self.on_request_error(error, &message, record, answer_to, env),
                    },
                    Protocol::MessagePack => {
                        // From here on it is what a JSON client would have written (contract 2.2).
                        let mut json = pool.take();
                        match request::transcode(record, &message, &mut json) {
                            Ok(request) => self.on_request(&request, &json, answer_to, env),
                            Err(error) => self.on_request_error(error, &message, record, answer_to, env),
                        }
                        pool.give(json);
                    }
                }
                Ok(())
            }
            Kind::Ping => {
                env.note(Note::Ping);
                Ok(())
            }
            Kind::Close => Err(End::PeerClose),
            Kind::Ack if self.inbound.is_some() => {
                env.acknowledged(message.sequence_id.unwrap_or_default());
                Ok(())
            }
            Kind::Sequence => match &mut self.inbound {
                Some(inbound) => {
                    inbound.on_sequence(message.sequence_id.unwrap_or_default()).map_err(|_| End::SequenceGap)
                }
                None => {
                    env.note(Note::Ignored);
                    Ok(())
                }
            },
            Kind::StreamItem | Kind::Completion | Kind::CancelInvocation | Kind::Ack | Kind::Unknown => {
                env.note(Note::Ignored);
                Ok(())
            }
        }
    }

    fn on_request(&mut self, request: &Request, record: &[u8], answer_to: Option<&[u8]>, env: &mut impl ClientEnv) {
        let form = self.form;
        env.note(Note::Request(request.call));
        let forwarded = env.forward(request, record);
        if let Some(id) = answer_to {
            // At once, as the original does: what comes of it arrives as a Response_VM (contract 1.4).
            env.message(form, |out| encode::completion_null(form.protocol, id, out));
        }
        if let Err(refusal) = forwarded {
            env.note(Note::Refused(refusal));
            env.message(form, |out| write_refusal(form, request.vm_id.of(record), refusal, out));
        }
    }

    fn on_request_error(
        &mut self,
        error: RequestError,
        message: &signalr::Message,
        record: &[u8],
        answer_to: Option<&[u8]>,
        env: &mut impl ClientEnv,
    ) {
        env.note(Note::RequestError(error));
        let target = message.target.map_or(&b""[..], |target| target.of(record));
        if let Some(id) = answer_to {
            let mut text = Vec::new();
            error.write_text(self.form.protocol, target, &mut text);
            let text = String::from_utf8_lossy(&text);
            let form = self.form;
            env.message(form, |out| encode::completion_error(form.protocol, id, &text, out));
        }
    }
}

/// The record of an error response to one view model of the client; `vm_id` is a raw JSON string.
pub fn write_refusal(form: Form, vm_id: &[u8], refusal: Refusal, out: &mut Vec<u8>) {
    response::write_exception(form.protocol, vm_id, refusal.exception_type(), refusal.message(), out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ws::header;

    const SETTINGS: ClientSettings = ClientSettings {
        handshake_timeout: Duration::from_secs(15),
        client_timeout: Duration::from_secs(30),
        keep_alive: Duration::from_secs(15),
        message_bytes_max: 1024,
    };

    #[derive(Default)]
    struct World {
        out: Vec<u8>,
        forwarded: Vec<String>,
        notes: Vec<Note>,
        refuse: Option<Refusal>,
    }

    impl ClientEnv for World {
        fn out<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
            write(&mut self.out)
        }
        fn message(&mut self, form: Form, write: impl FnOnce(&mut Vec<u8>)) {
            form.write(&mut self.out, write);
        }
        fn acknowledged(&mut self, _: u64) {}
        fn forward(&mut self, request: &Request, record: &[u8]) -> Result<(), Refusal> {
            self.refuse.map_or(Ok(()), Err)?;
            let vm = String::from_utf8_lossy(request.vm_id.of(record)).into_owned();
            let argument = request.argument.map(|a| String::from_utf8_lossy(a.of(record)).into_owned());
            self.forwarded.push(format!("{:?} {vm} {argument:?}", request.call));
            Ok(())
        }
        fn note(&mut self, note: Note) {
            self.notes.push(note);
        }
    }

    impl World {
        /// Everything written so far as text and close codes.
        fn said(&mut self) -> Vec<String> {
            let mut bytes = core::mem::take(&mut self.out);
            let mut decoder = Decoder::new(Role::Client);
            let (mut input, mut said) = (&mut bytes[..], Vec::new());
            while !input.is_empty() {
                let (used, event) = decoder.next(input).unwrap();
                let (piece, rest) = input.split_at_mut(used);
                input = rest;
                match event {
                    Some(Event::Data { range, start: true, end: true, binary: false }) => {
                        said.push(String::from_utf8(piece[range].to_vec()).unwrap().replace('\u{1e}', "␞"));
                    }
                    Some(Event::Close { code }) => said.push(format!("close {code:?}")),
                    Some(Event::Pong) => {
                        said.push(format!("pong {}", String::from_utf8_lossy(decoder.control_payload())));
                    }
                    other => panic!("{other:?}"),
                }
            }
            said
        }
    }

    fn frame(opcode: Opcode, fin: bool, payload: &[u8]) -> Vec<u8> {
        let key = [9, 8, 7, 6];
        let mut bytes = header(opcode, fin, payload.len() as u64, Some(key)).as_ref().to_vec();
        bytes.extend(payload.iter().enumerate().map(|(i, b)| b ^ key[i % 4]));
        bytes
    }

    fn text(payload: &str) -> Vec<u8> {
        frame(Opcode::Text, true, payload.replace('␞', "\u{1e}").as_bytes())
    }

    struct Fixture {
        session: ClientSession,
        pool: BytePool,
        world: World,
        now: Time,
    }

    impl Fixture {
        fn new() -> Fixture {
            let now = Time::from_millis(5000);
            Fixture {
                session: ClientSession::new(now, Transport::WebSockets, false, &SETTINGS),
                pool: BytePool::new(),
                world: World::default(),
                now,
            }
        }
        fn open() -> Fixture {
            let mut fixture = Fixture::new();
            fixture.hear(&text("{\"protocol\":\"json\",\"version\":1}␞")).unwrap();
            assert_eq!(fixture.world.said(), ["{}␞"]);
            fixture
        }
        fn hear(&mut self, bytes: &[u8]) -> Result<(), End> {
            let mut bytes = bytes.to_vec();
            let result = self.session.on_bytes(self.now, &mut bytes, &SETTINGS, &mut self.pool, &mut self.world);
            if let Err(end) = &result {
                self.session.close(end, &mut self.pool, &mut self.world);
            }
            result
        }
        fn pass(&mut self, seconds: u64) -> Result<Time, End> {
            self.now = self.now.after(Duration::from_secs(seconds));
            self.session.on_time(self.now, &SETTINGS, &mut self.world)
        }
    }

    #[test]
    fn requests_go_on_and_are_completed_at_once() {
        let mut f = Fixture::open();
        f.hear(&text(
            "{\"arguments\":[\"HelloWorldVM\",{}],\"invocationId\":\"0\",\"target\":\"Request_VM\",\"type\":1}␞{\"type\":1,\"target\":\"dispose_vm\",\"arguments\":[\"X\"]}␞",
        ))
        .unwrap();
        assert_eq!(f.world.forwarded, ["RequestVm \"HelloWorldVM\" Some(\"{}\")", "DisposeVm \"X\" None"]);
        assert_eq!(f.world.said(), ["{\"type\":3,\"invocationId\":\"0\",\"result\":null}␞"]);
    }

    #[test]
    fn a_record_over_fragments_with_a_ping_between_and_a_character_cut_in_two() {
        let mut f = Fixture::open();
        let record = "{\"type\":1,\"target\":\"Update_VM\",\"arguments\":[\"V\",{\"a\":\"é\"}]}\u{1e}".as_bytes();
        let cut = record.iter().position(|b| *b == 0xc3).unwrap() + 1;
        f.hear(&frame(Opcode::Text, false, &record[..cut])).unwrap();
        f.hear(&frame(Opcode::Ping, true, b"?")).unwrap();
        f.hear(&frame(Opcode::Continuation, true, &record[cut..])).unwrap();
        assert_eq!(f.world.forwarded, ["UpdateVm \"V\" Some(\"{\\\"a\\\":\\\"é\\\"}\")"]);
        assert_eq!(f.world.said(), ["pong ?"]);
    }

    #[test]
    fn a_client_cannot_speak_for_others_and_hears_why() {
        let mut f = Fixture::open();
        f.hear(&text(
            "{\"type\":1,\"invocationId\":\"7\",\"target\":\"Invoke\",\"arguments\":[\"Request_VM\",[],{}]}␞",
        ))
        .unwrap();
        assert!(f.world.forwarded.is_empty());
        let said = f.world.said().join("");
        assert!(
            said.contains("\"invocationId\":\"7\"") && said.contains("\"error\":") && said.contains("Invoke"),
            "{said}"
        );
        assert_eq!(f.world.notes.last(), Some(&Note::RequestError(RequestError::UnknownMethod)));
        // Without an id nothing is answered, not even an error.
        f.hear(&text("{\"type\":1,\"target\":\"Nope\",\"arguments\":[]}␞")).unwrap();
        assert!(f.world.said().is_empty());
    }

    #[test]
    fn a_refused_request_is_an_error_response_to_its_view_model() {
        let mut f = Fixture::open();
        f.world.refuse = Some(Refusal::QueueFull);
        f.hear(&text("{\"type\":1,\"invocationId\":\"1\",\"target\":\"Request_VM\",\"arguments\":[\"V\",null]}␞"))
            .unwrap();
        let said = f.world.said();
        assert_eq!(said[0], "{\"type\":3,\"invocationId\":\"1\",\"result\":null}␞");
        assert!(said[1].contains("Response_VM") && said[1].contains("ForwardingException"), "{said:?}");
    }

    #[test]
    fn handshakes_that_fail_are_answered_and_closed_without_a_hub_close() {
        for (request, error) in [
            ("{\"protocol\":\"xml\",\"version\":1}␞", "The protocol 'xml' is not supported."),
            ("{\"protocol\":\"json\",\"version\":3}␞", "The server does not support version 3 of the 'json' protocol."),
        ] {
            let mut f = Fixture::new();
            assert!(matches!(f.hear(&text(request)), Err(End::Handshake(_))));
            assert_eq!(f.world.said(), [format!("{{\"error\":\"{error}\"}}␞"), "close Some(1000)".into()]);
        }
        let mut f = Fixture::new();
        assert_eq!(f.pass(14), Ok(Time::from_millis(20_000)));
        assert_eq!(f.pass(1), Err(End::Handshake(HandshakeError::Canceled)));
        assert_eq!(f.world.said(), ["{\"error\":\"Handshake was canceled.\"}␞"]);
        let mut f = Fixture::new();
        assert!(f.hear(&text(&"x".repeat(2000))).is_err());
    }

    #[test]
    fn pings_go_out_on_time_and_only_a_client_that_pinged_is_timed_out() {
        let mut f = Fixture::open();
        for _ in 0..10 {
            f.pass(15).unwrap();
            assert_eq!(f.world.said(), ["{\"type\":6}␞"]);
        }
        f.hear(&text("{\"type\":6}␞")).unwrap();
        f.pass(29).unwrap();
        f.hear(&text("{\"type\":1,\"target\":\"Dispose_VM\",\"arguments\":[\"X\"]}␞")).unwrap();
        f.pass(29).unwrap();
        assert_eq!(f.pass(1), Err(End::ClientTimeout));
    }

    #[test]
    fn ends_are_told_as_the_map_says() {
        let failed = "{\"type\":7,\"error\":\"Connection closed with an error.\",\"allowReconnect\":true}␞";
        let cases: [(Vec<u8>, &[&str]); 7] = [
            (text("{\"type\":7}␞"), &["close Some(1000)"]),
            (frame(Opcode::Close, true, &[]), &["close None"]),
            (frame(Opcode::Close, true, &4000u16.to_be_bytes()), &["close Some(4000)"]),
            (text("{\"type\":1}␞"), &[failed, "close Some(1000)"]),
            (text(&"x".repeat(1024)), &[failed, "close Some(1000)"]),
            (frame(Opcode::Text, true, b"\xff"), &["close Some(1007)"]),
            (frame(Opcode::Binary, true, b"{\"type\":6,\"x\":\"\xff\"}\x1e"), &[failed, "close Some(1007)"]),
        ];
        for (bytes, said) in cases {
            let mut f = Fixture::open();
            assert!(f.hear(&bytes).is_err());
            assert_eq!(f.world.said(), said);
        }
    }
}
