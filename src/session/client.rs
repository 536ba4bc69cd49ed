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
use super::pace::{Pace, Rate};
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
    /// Messages it may send, WebSocket's control frames among them.
    pub rate: Rate,
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
    /// Of everything that is worth an answer or a look, pings and control frames among it.
    pace: Pace,
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
        /// Last message, once the first ping has armed the client timeout (reference 13.4); never before that.
        heard: Time,
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
            state: State { phase, form, unchecked: false, hurried: false, pace: Pace::default(), inbound },
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

    /// The client's silence was ours: nothing was read from it.
    pub fn excuse(&mut self, now: Time) {
        if let Phase::Open { heard, .. } = &mut self.state.phase
            && *heard != Time::NEVER
        {
            *heard = now;
        }
    }

    /// Something came that is thrown away unseen.
    pub fn count(&mut self) {
        self.state.pace.count();
    }

    /// If it has sent more than it may: when it may be read again.
    pub fn too_fast_until(&mut self, now: Time, settings: &ClientSettings) -> Option<Time> {
        self.state.pace.full_until(now, settings.rate)
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
        debug_assert!(self.is_resumable());
        self.ws = Decoder::new(Role::Server);
        // Half a record that was cut off with the old socket comes again, whole.
        self.assembler.release(pool);
        let State { phase, form, unchecked, hurried, inbound, .. } = &mut self.state;
        *unchecked = false;
        *hurried = true;
        if let Some(inbound) = inbound {
            inbound.resumed();
        }
        if let Phase::Open { ping_due, .. } = phase {
            *ping_due = now.after(settings.keep_alive);
        }
        let form = *form;
        self.excuse(now);
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
                    if range.is_empty() {
                        self.state.pace.count();
                    }
                    self.on_data(now, &piece[range], binary, settings, pool, env)?;
                }
                Some(Event::Ping) => {
                    self.state.pace.count();
                    let payload = self.ws.control_payload();
                    env.out(|out| write_frame(out, Opcode::Pong, None, |out| out.extend_from_slice(payload)));
                }
                Some(Event::Pong) => self.state.pace.count(),
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
                // A handshake has its own answer to that.
                let is_json = current.get().protocol == Protocol::Json && !handshaking.get();
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
                let silent_at = heard.after(settings.client_timeout);
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
        self.phase = Phase::Open { ping_due: now.after(settings.keep_alive), heard: Time::NEVER };
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
        self.pace.count();
        let protocol = self.form.protocol;
        let message = signalr::parse(protocol, record).map_err(End::Message)?;
        if let Phase::Open { heard, .. } = &mut self.phase
            && (*heard != Time::NEVER || message.kind == Kind::Ping)
        {
            *heard = now;
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
                    let due = inbound.ack_due();
                    let number = message.sequence_id.unwrap_or_default();
                    inbound.on_sequence(now, number).map_err(|_| End::SequenceGap)?;
                    self.hurried |= inbound.ack_due() < due;
                    Ok(())
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
    match refusal {
        Refusal::Unrouted => response::write_unknown_vm(form.protocol, vm_id, refusal.message(), out),
        _ => response::write_exception(form.protocol, vm_id, refusal.exception_type(), refusal.message(), out),
    }
}

/// The same, where an app server has said what went wrong.
pub fn write_failure(form: Form, vm_id: &[u8], refusal: Refusal, error: &str, out: &mut Vec<u8>) {
    response::write_exception(form.protocol, vm_id, refusal.exception_type(), error, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::signalr::MessageError;
    use crate::proto::ws::{WsError, header};

    const SETTINGS: ClientSettings = ClientSettings {
        handshake_timeout: Duration::from_secs(15),
        client_timeout: Duration::from_secs(30),
        keep_alive: Duration::from_secs(15),
        message_bytes_max: 1024,
        rate: Rate { per_second: 10, burst: 20 },
    };

    #[derive(Default)]
    struct World {
        out: Vec<u8>,
        /// How many messages of `out` are counted.
        counted: u64,
        acknowledged: Vec<u64>,
        forwarded: Vec<String>,
        notes: Vec<Note>,
        refuse: Option<Refusal>,
    }

    impl ClientEnv for World {
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
        /// What has been written so far over a WebSocket: records of text frames as text, those of binary frames in hexadecimal.
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
                    Some(Event::Data { range, start: true, end: true, binary: true }) => said.push(hex(&piece[range])),
                    Some(Event::Close { code }) => said.push(format!("close {code:?}")),
                    Some(Event::Pong) => {
                        said.push(format!("pong {}", String::from_utf8_lossy(decoder.control_payload())));
                    }
                    other => panic!("{other:?}"),
                }
            }
            said
        }

        /// What has been written so far without WebSocket frames.
        fn raw(&mut self) -> String {
            String::from_utf8(core::mem::take(&mut self.out)).unwrap().replace('\u{1e}', "␞")
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
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

    fn binary(payload: &[u8]) -> Vec<u8> {
        frame(Opcode::Binary, true, payload)
    }

    const JSON: &str = "{\"protocol\":\"json\",\"version\":1}␞";
    const MESSAGE_PACK: &str = "{\"protocol\":\"messagepack\",\"version\":1}␞";

    struct Fixture {
        session: ClientSession,
        pool: BytePool,
        world: World,
        now: Time,
    }

    impl Fixture {
        fn new() -> Fixture {
            Fixture::on(Transport::WebSockets, false)
        }
        fn on(transport: Transport, resumable: bool) -> Fixture {
            let now = Time::from_millis(5000);
            Fixture {
                session: ClientSession::new(now, transport, resumable, &SETTINGS),
                pool: BytePool::new(),
                world: World::default(),
                now,
            }
        }
        fn open() -> Fixture {
            let mut fixture = Fixture::new();
            fixture.hear(&text(JSON)).unwrap();
            assert_eq!(fixture.world.said(), ["{}␞"]);
            fixture
        }
        /// As the JavaScript client begins: its handshake is a string.
        fn open_message_pack() -> Fixture {
            let mut fixture = Fixture::new();
            fixture.hear(&text(MESSAGE_PACK)).unwrap();
            assert_eq!(fixture.world.said(), ["7b 7d 1e"]);
            fixture
        }
        /// A client that asked for a stateful reconnect.
        fn open_resumable() -> Fixture {
            let mut fixture = Fixture::on(Transport::WebSockets, true);
            assert!(!fixture.session.is_resumable());
            fixture.hear(&text("{\"protocol\":\"json\",\"version\":2}␞")).unwrap();
            assert_eq!(fixture.world.said(), ["{}␞"]);
            assert!(fixture.session.is_resumable() && fixture.session.take_hurry() && !fixture.session.take_hurry());
            fixture
        }
        fn open_without_socket(transport: Transport) -> Fixture {
            let mut fixture = Fixture::on(transport, false);
            fixture.hear_body(JSON).unwrap();
            let answer = if transport == Transport::LongPolling { "{}␞" } else { "data: {}␞\r\n\r\n" };
            assert_eq!(fixture.world.raw(), answer);
            fixture
        }
        fn hear(&mut self, bytes: &[u8]) -> Result<(), End> {
            let mut bytes = bytes.to_vec();
            let result = self.session.on_bytes(self.now, &mut bytes, &SETTINGS, &mut self.pool, &mut self.world);
            self.closed(result)
        }
        fn hear_body(&mut self, body: &str) -> Result<(), End> {
            self.hear_bytes(body.replace('␞', "\u{1e}").as_bytes())
        }
        fn hear_bytes(&mut self, body: &[u8]) -> Result<(), End> {
            let result = self.session.on_body(self.now, body, &SETTINGS, &mut self.pool, &mut self.world);
            self.closed(result)
        }
        fn closed(&mut self, result: Result<(), End>) -> Result<(), End> {
            if let Err(end) = &result {
                self.session.close(end, &mut self.pool, &mut self.world);
            }
            result
        }
        fn pass(&mut self, seconds: u64) -> Result<Time, End> {
            self.now = self.now.after(Duration::from_secs(seconds));
            self.session.on_time(self.now, &SETTINGS, &mut self.world)
        }
        /// A new socket, on which we go on with message `sequence`.
        fn resume(&mut self, sequence: u64) {
            self.session.resume(self.now, sequence, &SETTINGS, &mut self.pool, &mut self.world);
        }
    }

    /// A MessagePack record: its length, at most 127, and its body.
    fn record(body: &[u8]) -> Vec<u8> {
        assert!(body.len() < 128);
        [&[body.len() as u8], body].concat()
    }

    /// `[1, {}, <id>, <target>, <arguments>]`, with the list of streams that .NET adds where `streams` is given; `id`, `arguments`
    /// and `streams` are encoded.
    fn invocation(id: &[u8], target: &str, arguments: &[u8], streams: Option<&[u8]>) -> Vec<u8> {
        let mut body = vec![if streams.is_some() { 0x96 } else { 0x95 }, 0x01, 0x80];
        body.extend(id);
        body.push(0xa0 | target.len() as u8);
        body.extend(target.bytes());
        body.extend(arguments);
        body.extend(streams.unwrap_or_default());
        record(&body)
    }

    const NIL: &[u8] = b"\xc0";
    /// The id "7", encoded.
    const SEVEN: &[u8] = b"\xa17";
    /// `["V", {"a": 1}]`.
    const V_AND_MAP: &[u8] = b"\x92\xa1V\x81\xa1a\x01";
    /// Reference 12.2: `[3, {}, "7", 3, nil]`.
    const SEVEN_IS_NULL: &str = "07 95 03 80 a1 37 03 c0";
    /// `[7, "Connection closed with an error.", true]`.
    const FAILED: &str = "25 93 07 d9 20 43 6f 6e 6e 65 63 74 69 6f 6e 20 63 6c 6f 73 65 64 20 77 69 74 68 20 61 6e 20 65 72 72 6f 72 2e c3";

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

    #[test]
    fn a_handshake_that_is_not_utf8_is_answered() {
        let mut f = Fixture::new();
        assert_eq!(f.hear(&binary(b"{\"protocol\":\"\xff\"}\x1e")), Err(End::Handshake(HandshakeError::Malformed)));
        let refusal = "{\"error\":\"An unexpected error occurred during connection handshake.\"}␞";
        assert_eq!(f.world.said(), [refusal, "close Some(1000)"]);
    }

    // ---- MessagePack --------------------------------------------------------------------------------------------

    #[test]
    fn invocations_of_five_and_six_items_are_forwarded_as_json() {
        let mut f = Fixture::open_message_pack();
        let five = invocation(SEVEN, "Request_VM", V_AND_MAP, None);
        let six = invocation(NIL, "update_vm", V_AND_MAP, Some(b"\x90"));
        let dispose = invocation(NIL, "Dispose_VM", b"\x91\xa1V", None);
        f.hear(&binary(&[five, six, dispose].concat())).unwrap();
        let forwarded = [
            "RequestVm \"V\" Some(\"{\\\"a\\\":1}\")",
            "UpdateVm \"V\" Some(\"{\\\"a\\\":1}\")",
            "DisposeVm \"V\" None",
        ];
        assert_eq!(f.world.forwarded, forwarded);
        assert_eq!(f.world.said(), [SEVEN_IS_NULL]);
        assert_eq!(f.world.notes[0], Note::HandshakeDone(Protocol::MessagePack));
    }

    #[test]
    fn handshake_and_messages_may_share_a_frame_that_is_cut_anywhere() {
        // As .NET's client writes: everything in binary frames.
        let request = invocation(SEVEN, "Request_VM", V_AND_MAP, Some(b"\x90"));
        let handshake = MESSAGE_PACK.replace('␞', "\u{1e}");
        let all = [handshake.as_bytes(), &record(b"\x91\x06"), &request].concat();
        let expected = ["7b 7d 1e", SEVEN_IS_NULL];
        for cut in 0..=all.len() {
            let mut f = Fixture::new();
            f.hear(&binary(&all[..cut])).unwrap();
            f.hear(&binary(&all[cut..])).unwrap();
            assert_eq!(f.world.said(), expected, "two messages, cut at {cut}");
            let mut f = Fixture::new();
            f.hear(&frame(Opcode::Binary, false, &all[..cut])).unwrap();
            f.hear(&frame(Opcode::Continuation, true, &all[cut..])).unwrap();
            assert_eq!(f.world.said(), expected, "two fragments, cut at {cut}");
            assert_eq!(f.world.notes[1], Note::Ping);
        }
        // ... and what is behind the handshake is bounded as a message, not as a handshake.
        let mut f = Fixture::new();
        let long = [0xff, 0x07].into_iter().chain(core::iter::repeat_n(0, 1023));
        let all = handshake.bytes().chain(long).collect::<Vec<_>>();
        assert_eq!(f.hear(&binary(&all)), Err(End::MessageTooLarge));
        assert_eq!(f.world.said(), ["7b 7d 1e", FAILED, "close Some(1000)"]);
    }

    #[test]
    fn opcodes_mean_nothing_but_that_text_is_utf8() {
        // Reference 7.2: the server ignores opcodes. RFC 6455 section 8.1: text that is not UTF-8 fails the connection, in .NET, too.
        let mut f = Fixture::open();
        f.hear(&binary(b"{\"type\":6}\x1e")).unwrap();
        assert_eq!(f.world.notes.last(), Some(&Note::Ping));
        let mut f = Fixture::open_message_pack();
        let request = invocation(SEVEN, "Request_VM", V_AND_MAP, None);
        let name = request.iter().position(|byte| *byte == b'R').unwrap();
        f.hear(&binary(&request[..name])).unwrap();
        f.hear(&text("Request_VM")).unwrap();
        f.hear(&binary(&request[name + 10..])).unwrap();
        assert_eq!((f.world.forwarded.len(), f.world.said()), (1, vec![SEVEN_IS_NULL.to_string()]));
        assert_eq!(f.hear(&frame(Opcode::Text, true, b"\x02\x91\x06")), Err(End::WebSocket(WsError::InvalidUtf8)));
        assert_eq!(f.world.said(), ["close Some(1007)"]);
    }

    #[test]
    fn refused_handshakes_of_messagepack_clients_are_text() {
        for (request, error) in [
            ("{\"protocol\":\"blazorpack\",\"version\":1}\x1e", "The protocol 'blazorpack' is not supported."),
            (
                "{\"protocol\":\"messagepack\",\"version\":3}\x1e",
                "The server does not support version 3 of the 'messagepack' protocol.",
            ),
            ("\x02\u{11}\x06\x1e", "An unexpected error occurred during connection handshake."),
        ] {
            let mut f = Fixture::new();
            assert!(matches!(f.hear(&binary(request.as_bytes())), Err(End::Handshake(_))));
            assert_eq!(f.world.said(), [format!("{{\"error\":\"{error}\"}}␞"), "close Some(1000)".into()]);
        }
    }

    #[test]
    fn wrong_invocations_are_answered_in_messagepack() {
        let failed = |target: &str| format!("Failed to invoke '{target}' due to an error on the server.");
        let cases: [(Vec<u8>, RequestError, String); 6] = [
            (
                invocation(SEVEN, "Invoke", V_AND_MAP, None),
                RequestError::UnknownMethod,
                "Unknown hub method 'Invoke'".into(),
            ),
            (invocation(SEVEN, "Request_VM", b"\x91\xa1V", None), RequestError::ArgumentCount, failed("Request_VM")),
            (invocation(SEVEN, "Update_VM", b"\x92\xa1V\x01", None), RequestError::ArgumentType, failed("Update_VM")),
            (invocation(SEVEN, "Request_VM", b"\x92\x01\xc0", None), RequestError::ArgumentType, failed("Request_VM")),
            // An upload stream.
            (
                invocation(SEVEN, "Update_VM", V_AND_MAP, Some(b"\x91\xa19")),
                RequestError::ArgumentCount,
                failed("Update_VM"),
            ),
            (
                {
                    let mut stream = invocation(SEVEN, "Dispose_VM", b"\x91\xa1V", Some(b"\x90"));
                    stream[2] = 4;
                    stream
                },
                RequestError::Streaming,
                "The client attempted to invoke the non-streaming 'Dispose_VM' method with a streaming invocation."
                    .into(),
            ),
        ];
        for (bytes, error, told) in cases {
            let mut f = Fixture::open_message_pack();
            f.hear(&binary(&bytes)).unwrap();
            assert_eq!(f.world.notes.last(), Some(&Note::RequestError(error)));
            let mut body = b"\x95\x03\x80\xa17\x01".to_vec();
            if told.len() < 32 {
                body.push(0xa0 | told.len() as u8);
            } else {
                body.extend([0xd9, told.len() as u8]);
            }
            body.extend(told.bytes());
            assert_eq!(f.world.said(), [hex(&record(&body))]);
            assert!(f.world.forwarded.is_empty());
        }
    }

    #[test]
    fn a_refused_request_of_a_messagepack_client_is_two_strings() {
        let mut f = Fixture::open_message_pack();
        f.world.refuse = Some(Refusal::QueueFull);
        f.hear(&binary(&invocation(SEVEN, "Request_VM", V_AND_MAP, None))).unwrap();
        let said = f.world.said();
        assert_eq!(said[0], SEVEN_IS_NULL);
        // [1, {}, nil, "Response_VM", [["V", str8 ... and no streams.
        let head = [b"\x96\x01\x80\xc0\xabResponse_VM\x91\x92\xa1V\xd9".as_slice()].concat();
        assert!(said[1].contains(&hex(&head)) && said[1].ends_with(" 90"), "{said:?}");
        assert!(said[1].contains(&hex(b"{\"ExceptionType\":\"ForwardingException\",")), "{said:?}");
        assert_eq!(f.world.notes.last(), Some(&Note::Refused(Refusal::QueueFull)));
    }

    #[test]
    fn messagepack_pings_both_ways() {
        let mut f = Fixture::open_message_pack();
        f.pass(15).unwrap();
        assert_eq!(f.world.said(), ["02 91 06"]);
        f.hear(&binary(b"\x02\x91\x06")).unwrap();
        f.pass(29).unwrap();
        assert_eq!(f.pass(1), Err(End::ClientTimeout));
    }

    #[test]
    fn messagepack_ends_are_told_as_the_map_says() {
        let closed: &[&str] = &["close Some(1000)"];
        let failed: &[&str] = &[FAILED, "close Some(1000)"];
        let over = [&[0x80, 0x08][..], &[0; 1024]].concat();
        let cases: [(&[u8], End, &[&str]); 12] = [
            // The forms of Close (reference 12.2).
            (b"\x03\x92\x07\xc0", End::PeerClose, closed),
            (b"\x04\x93\x07\xc0\xc2", End::PeerClose, closed),
            (b"\x07\x93\x07\xa3bye\xc3", End::PeerClose, closed),
            // Too large: certain when the prefix is there.
            (&over[..2], End::MessageTooLarge, failed),
            (b"\xff\xff\xff\xff\x08", End::MessageTooLarge, failed),
            // Garbage.
            (b"\x00", End::Message(MessageError::Syntax), failed),
            (b"\x01\x90", End::Message(MessageError::MissingType), failed),
            (b"\x02{}", End::Message(MessageError::NotAMessage), failed),
            (b"\x02\x92\x06", End::Message(MessageError::Syntax), failed),
            (b"\x02\x91\xc1", End::Message(MessageError::PropertyType), failed),
            (b"\x07\x95\x03\x80\xa17\x05\xc0", End::Message(MessageError::ResultKind), failed),
            // A nil where a completion's id must be.
            (b"\x05\x94\x03\x80\xc0\x02", End::Message(MessageError::MissingProperty), failed),
        ];
        for (bytes, end, said) in cases {
            let mut f = Fixture::open_message_pack();
            assert_eq!(f.hear(&binary(bytes)), Err(end), "{bytes:02x?}");
            assert_eq!(f.world.said(), said);
        }
        // The largest that is taken: 1024 bytes, two of them its length.
        let mut f = Fixture::open_message_pack();
        let mut largest = vec![0xfe, 0x07, 0x92, 0x06, 0xc5, 0x03, 0xf9];
        largest.resize(1024, 0);
        f.hear(&binary(&largest)).unwrap();
        assert_eq!(f.world.notes.last(), Some(&Note::Ping));
    }

    // ---- Server-Sent Events and long polling --------------------------------------------------------------------

    const REQUEST: &str = "{\"type\":1,\"invocationId\":\"7\",\"target\":\"Request_VM\",\"arguments\":[\"V\",null]}␞";
    const COMPLETION: &str = "{\"type\":3,\"invocationId\":\"7\",\"result\":null}␞";
    const CLOSE: &str = "{\"type\":7,\"error\":\"Connection closed with an error.\",\"allowReconnect\":true}␞";

    #[test]
    fn what_an_event_stream_is_told_are_events() {
        let mut f = Fixture::open_without_socket(Transport::ServerSentEvents);
        // A record over two bodies, and a character, too.
        let body = REQUEST.replace("null", "{\"é\":1}").replace('␞', "\u{1e}");
        let cut = body.find('é').unwrap() + 1;
        f.hear_bytes(&body.as_bytes()[..cut]).unwrap();
        f.hear_bytes(&body.as_bytes()[cut..]).unwrap();
        assert_eq!(f.world.forwarded, ["RequestVm \"V\" Some(\"{\\\"é\\\":1}\")"]);
        assert_eq!(f.world.raw(), format!("data: {COMPLETION}\r\n\r\n"));
        f.pass(15).unwrap();
        assert_eq!(f.world.raw(), "data: {\"type\":6}␞\r\n\r\n");
        // Its pings come in POSTs, and arm the timeout.
        f.hear_body("{\"type\":6}␞").unwrap();
        f.pass(29).unwrap();
        f.world.raw();
        assert_eq!(f.pass(1), Err(End::ClientTimeout));
        f.session.close(&End::ClientTimeout, &mut f.pool, &mut f.world);
        assert_eq!(f.world.raw(), format!("data: {CLOSE}\r\n\r\n"), "and no frame of a WebSocket");
    }

    #[test]
    fn messagepack_over_an_event_stream_is_refused() {
        let mut f = Fixture::on(Transport::ServerSentEvents, false);
        let error = HandshakeError::Transport(Protocol::MessagePack);
        assert_eq!(f.hear_body(MESSAGE_PACK), Err(End::Handshake(error)));
        let told = "Cannot use the 'messagepack' protocol on the current transport. The transport does not support 'Binary' transfer format.";
        assert_eq!(f.world.raw(), format!("data: {{\"error\":\"{told}\"}}␞\r\n\r\n"));
        assert!(!f.session.is_open() && f.world.notes.is_empty());
    }

    #[test]
    fn polls_get_records_and_neither_pings_nor_a_timeout() {
        let mut f = Fixture::open_without_socket(Transport::LongPolling);
        f.hear_body(&format!("{{\"type\":6}}␞{REQUEST}")).unwrap();
        assert_eq!(f.world.raw(), COMPLETION);
        for _ in 0..10 {
            assert_eq!(f.pass(100), Ok(Time::NEVER));
        }
        assert_eq!(f.world.raw(), "");
        assert_eq!(f.hear_bytes(b"{\"type\":6,\"x\":\"\xff\"}\x1e"), Err(End::NotUtf8));
        assert_eq!(f.world.raw(), CLOSE);
    }

    #[test]
    fn polls_have_the_handshakes_deadline() {
        let mut f = Fixture::on(Transport::LongPolling, false);
        assert_eq!(f.pass(14), Ok(Time::from_millis(20_000)));
        assert_eq!(f.pass(1), Err(End::Handshake(HandshakeError::Canceled)));
        f.session.close(&End::Handshake(HandshakeError::Canceled), &mut f.pool, &mut f.world);
        assert_eq!(f.world.raw(), "{\"error\":\"Handshake was canceled.\"}␞");
    }

    #[test]
    fn messagepack_over_polls_is_raw_bytes() {
        let mut f = Fixture::on(Transport::LongPolling, false);
        // The JavaScript client's first POST is the handshake alone.
        f.hear_body(MESSAGE_PACK).unwrap();
        let request = invocation(SEVEN, "Request_VM", V_AND_MAP, None);
        let body = [&request[..], b"\x02\x91\x06", &request].concat();
        for byte in body {
            f.hear_bytes(&[byte]).unwrap();
        }
        assert_eq!(f.world.forwarded.len(), 2);
        let out = core::mem::take(&mut f.world.out);
        assert_eq!(hex(&out), format!("7b 7d 1e {SEVEN_IS_NULL} {SEVEN_IS_NULL}"));
        assert_eq!(f.hear_bytes(b"\x03\x92\x07\xc0"), Err(End::PeerClose));
        assert!(f.world.out.is_empty());
    }

    // ---- stateful reconnect (reference 14) ----------------------------------------------------------------------

    const UPDATE: &str = "{\"type\":1,\"target\":\"Update_VM\",\"arguments\":[\"V\",{}]}␞";

    fn sequence(number: u64) -> Vec<u8> {
        text(&format!("{{\"type\":9,\"sequenceId\":{number}}}␞"))
    }

    #[test]
    fn what_is_counted_is_acknowledged_after_a_second() {
        let mut f = Fixture::open_resumable();
        // Not counted: nothing to acknowledge.
        f.hear(&text("{\"type\":6}␞{\"type\":8,\"sequenceId\":5}␞{\"type\":42}␞")).unwrap();
        assert!(!f.session.take_hurry());
        assert_eq!(f.world.acknowledged, [5]);
        // Counted, whatever comes of it.
        for message in [
            UPDATE,
            "{\"type\":1,\"target\":\"Nope\",\"arguments\":[]}␞",
            "{\"type\":2,\"invocationId\":\"9\",\"item\":1}␞",
            "{\"type\":3,\"invocationId\":\"s1\",\"result\":1}␞",
            "{\"type\":4,\"invocationId\":\"9\",\"target\":\"Nope\",\"arguments\":[]}␞",
            "{\"type\":5,\"invocationId\":\"9\"}␞",
        ] {
            f.hear(&text(message)).unwrap();
        }
        assert!(f.session.take_hurry(), "an Ack is due before anything else");
        f.world.said();
        let due = f.now.after(Duration::from_secs(1));
        assert_eq!(f.pass(0), Ok(due));
        assert!(f.world.said().is_empty());
        f.pass(1).unwrap();
        assert_eq!(f.world.said(), ["{\"type\":8,\"sequenceId\":6}␞"]);
        f.pass(1).unwrap();
        assert!(f.world.said().is_empty(), "there is nothing new to acknowledge");
    }

    #[test]
    fn an_ack_does_not_wait_where_the_peer_may() {
        let mut f = Fixture::open_resumable();
        let update = UPDATE.replace("{}", &format!("{{\"a\":\"{}\"}}", "x".repeat(900)));
        f.hear(&text(&update)).unwrap();
        assert!(f.session.take_hurry());
        f.pass(0).unwrap();
        let mut count = 1;
        while !f.session.take_hurry() {
            f.hear(&text(&update)).unwrap();
            count += 1;
        }
        assert!((40..60).contains(&count), "{count} messages of 950 bytes");
        f.pass(0).unwrap();
        assert_eq!(f.world.said(), [format!("{{\"type\":8,\"sequenceId\":{count}}}␞")]);
    }

    #[test]
    fn completions_are_counted_and_what_is_about_the_connection_is_not() {
        let mut f = Fixture::open_resumable();
        f.world.refuse = Some(Refusal::QueueFull);
        f.hear(&text(REQUEST)).unwrap();
        f.hear(&text(&REQUEST.replace("Request_VM", "Nope"))).unwrap();
        assert_eq!((f.world.counted, f.world.said().len()), (3, 3), "two completions and a refusal");
        f.pass(15).unwrap();
        f.resume(1);
        f.hear(&frame(Opcode::Ping, true, b"?")).unwrap();
        f.session.close(&End::Stopping, &mut f.pool, &mut f.world);
        let said = f.world.said();
        let expected = [
            "{\"type\":6}␞",
            "{\"type\":8,\"sequenceId\":2}␞",
            "{\"type\":9,\"sequenceId\":1}␞",
            "pong ?",
            "{\"type\":7,\"allowReconnect\":true}␞",
            "close Some(1000)",
        ];
        assert_eq!((f.world.counted, said), (3, expected.map(String::from).to_vec()));
    }

    #[test]
    fn a_resumed_client_goes_on_where_its_sequence_says() {
        let mut f = Fixture::open_resumable();
        f.hear(&text(&UPDATE.repeat(3))).unwrap();
        f.hear(&text(&format!("{UPDATE}{}", &UPDATE[..20]))).unwrap();
        f.hear(&frame(Opcode::Text, false, b"half a message")).unwrap();
        assert_eq!(f.world.forwarded.len(), 4);
        f.session.take_hurry();
        f.resume(17);
        assert!(f.session.take_hurry());
        assert_eq!(f.world.said(), ["{\"type\":9,\"sequenceId\":17}␞"]);
        // Before its Sequence nothing is acted on. Half a record and half a message went down with the old socket.
        f.hear(&text(&UPDATE.repeat(2))).unwrap();
        assert_eq!((f.world.forwarded.len(), f.world.notes.last()), (4, Some(&Note::Repeated)));
        f.hear(&text("{\"type\":8,\"sequenceId\":16}␞")).unwrap();
        assert_eq!(f.world.acknowledged, [16]);
        // 3 and 4 come again, 5 is new.
        f.hear(&sequence(3)).unwrap();
        f.hear(&text(&UPDATE.repeat(2))).unwrap();
        assert_eq!(f.world.forwarded.len(), 4);
        f.hear(&text(UPDATE)).unwrap();
        assert_eq!(f.world.forwarded.len(), 5);
        f.pass(1).unwrap();
        assert_eq!(f.world.said(), ["{\"type\":8,\"sequenceId\":5}␞"]);
    }

    #[test]
    fn an_ack_that_was_lost_is_said_again() {
        let mut f = Fixture::open_resumable();
        f.hear(&text(&UPDATE.repeat(2))).unwrap();
        f.pass(1).unwrap();
        assert_eq!(f.world.said(), ["{\"type\":8,\"sequenceId\":2}␞"]);
        f.resume(1);
        f.pass(0).unwrap();
        assert_eq!(f.world.said(), ["{\"type\":9,\"sequenceId\":1}␞"]);
        f.hear(&sequence(1)).unwrap();
        assert!(f.session.take_hurry());
        f.pass(0).unwrap();
        assert_eq!(f.world.said(), ["{\"type\":8,\"sequenceId\":2}␞"]);
    }

    #[test]
    fn a_sequence_that_leaves_out_messages_is_the_end() {
        let mut f = Fixture::open_resumable();
        f.hear(&text(&UPDATE.repeat(2))).unwrap();
        f.resume(1);
        f.world.said();
        assert_eq!(f.hear(&sequence(4)), Err(End::SequenceGap));
        assert_eq!(f.world.said(), [CLOSE, "close Some(1000)"]);
    }

    #[test]
    fn nobody_is_timed_out_for_the_time_without_a_socket() {
        let mut f = Fixture::open_resumable();
        f.hear(&text("{\"type\":6}␞")).unwrap();
        f.now = f.now.after(Duration::from_secs(100));
        f.resume(1);
        assert_eq!(f.pass(14), Ok(f.now.after(Duration::from_secs(1))));
        assert_eq!(f.world.said().len(), 1, "the Sequence");
        f.pass(1).unwrap();
        assert_eq!(f.world.said(), ["{\"type\":6}␞"]);
        assert_eq!(f.pass(15), Err(End::ClientTimeout));
    }

    #[test]
    fn a_handshake_of_version_1_switches_it_off() {
        let mut f = Fixture::on(Transport::WebSockets, true);
        f.hear(&text(JSON)).unwrap();
        assert!(f.session.is_open() && !f.session.is_resumable());
        f.world.said();
        f.hear(&text(UPDATE)).unwrap();
        f.hear(&sequence(100)).unwrap();
        f.hear(&text("{\"type\":8,\"sequenceId\":1}␞")).unwrap();
        assert_eq!(f.world.notes[2..], [Note::Ignored, Note::Ignored]);
        assert!(f.world.acknowledged.is_empty());
        f.pass(14).unwrap();
        assert!(f.world.said().is_empty(), "no Ack");
        // Nor does version 2 switch on what was not negotiated.
        let mut f = Fixture::new();
        f.hear(&text("{\"protocol\":\"json\",\"version\":2}␞")).unwrap();
        assert!(!f.session.is_resumable());
    }

    #[test]
    fn a_messagepack_client_resumes() {
        let mut f = Fixture::on(Transport::WebSockets, true);
        f.hear(&text("{\"protocol\":\"messagepack\",\"version\":2}␞")).unwrap();
        let request = invocation(SEVEN, "Request_VM", V_AND_MAP, None);
        f.hear(&binary(&request.repeat(2))).unwrap();
        f.hear(&binary(&request[..9])).unwrap();
        f.world.said();
        f.resume(300);
        // Reference 12.2: Sequence 300, in binary at once.
        assert_eq!(f.world.said(), ["05 92 09 cd 01 2c"]);
        f.hear(&binary(&[b"\x05\x92\x08\xcd\x01\x2c\x03\x92\x09\x02", &request.repeat(2)[..]].concat())).unwrap();
        assert_eq!((f.world.acknowledged.as_slice(), f.world.forwarded.len()), (&[300][..], 3));
        f.world.said();
        f.pass(1).unwrap();
        assert_eq!(f.world.said(), ["03 92 08 03"]);
    }
}
