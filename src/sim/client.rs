//! Clients of the world: browsers and programs that ask a node for view models. They keep to the protocol; what they are is how they
//! write, read and leave.
use super::Event;
use super::faults::Fault;
use super::ledger::Ledger;
use super::network::{Network, SocketId};
use super::scenario::letter;
use super::wire::{self, Encoding, Frame, Reader, Record, Records};
use crate::ids::Time;
use core::time::Duration;
use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Asking for a token, on a connection of its own.
    Negotiating,
    Upgrading,
    Handshaking,
    Open,
    /// Has said goodbye and waits for the node's.
    Leaving,
    Gone,
}

/// One connection of a user.
pub(super) struct Client {
    user: usize,
    number: usize,
    shard: usize,
    socket: SocketId,
    state: State,
    encoding: Encoding,
    /// Calls have an invocation id, as those of the JavaScript client.
    has_ids: bool,
    next_id: u64,
    open_ids: Vec<String>,
    head: Vec<u8>,
    reader: Reader,
    records: Records,
    /// Names of its live view models.
    views: Vec<String>,
    ping_every: Duration,
    /// May it come back? Was it told so?
    comes_back: bool,
    is_asked_back: bool,
}

/// What clients are told of the world they are in.
pub(super) struct Ways {
    pub(super) shards: usize,
    pub(super) upstreams: usize,
    pub(super) act_every_ms: u64,
    pub(super) client_timeout: Duration,
    /// Everything is to come to rest: nobody begins anything.
    pub(super) is_quiet: bool,
    /// Somebody else says who does what.
    pub(super) is_scripted: bool,
}

impl Client {
    pub(super) fn connect(user: usize, number: usize, ways: &Ways, network: &mut Network) -> Client {
        let shard = network.chance.below(ways.shards);
        let negotiates = network.chance.happens(500);
        let socket = network.connect(number, shard);
        let mut client = Client {
            user,
            number,
            shard,
            socket,
            state: State::Negotiating,
            encoding: if network.chance.happens(250) { Encoding::MessagePack } else { Encoding::Json },
            has_ids: network.chance.happens(500),
            next_id: 0,
            open_ids: Vec::new(),
            head: Vec::new(),
            reader: Reader::default(),
            records: Records::default(),
            views: Vec::new(),
            ping_every: ways.client_timeout / 3,
            comes_back: true,
            is_asked_back: false,
        };
        if negotiates {
            let head = client.request_head("POST", "/dotnetify/negotiate?negotiateVersion=1", "Content-Length: 0\r\n");
            network.peer_sends(socket, head.as_bytes());
        } else {
            client.upgrade(None, network);
        }
        client
    }

    fn request_head(&self, method: &str, target: &str, more: &str) -> String {
        format!("{method} {target} HTTP/1.1\r\nHost: node\r\nUser-Agent: sim/{}\r\n{more}\r\n", self.number)
    }

    fn upgrade(&mut self, token: Option<&str>, network: &mut Network) {
        self.state = State::Upgrading;
        let target = token.map_or("/dotnetify".into(), |token| format!("/dotnetify?id={token}"));
        let more = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let head = self.request_head("GET", &target, more);
        network.peer_sends(self.socket, head.as_bytes());
    }

    pub(super) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    pub(super) fn is_gone(&self) -> bool {
        self.state == State::Gone
    }

    /// The node ended it and asked it to come again.
    pub(super) fn is_asked_back(&self) -> bool {
        self.is_asked_back
    }

    pub(super) fn number(&self) -> usize {
        self.number
    }

    pub(super) fn socket(&self) -> SocketId {
        self.socket
    }

    // ---- what arrives -------------------------------------------------------------------------------------------

    pub(super) fn on_bytes(
        &mut self,
        socket: SocketId,
        ways: &Ways,
        ledger: &mut Ledger,
        network: &mut Network,
    ) -> Result<(), String> {
        let (bytes, ended) = network.peer_takes(socket);
        if socket != self.socket || self.state == State::Gone {
            // The connection it negotiated on.
            return Ok(());
        }
        let was_negotiating = self.state == State::Negotiating;
        match self.state {
            State::Negotiating | State::Upgrading => {
                self.head.extend_from_slice(&bytes);
                self.on_reply(ways, network)?;
            }
            _ => self.reader.push(&bytes),
        }
        if matches!(self.state, State::Handshaking | State::Open | State::Leaving) {
            self.on_frames(ways, ledger, network)?;
        }
        if ended && self.state != State::Gone && !(was_negotiating && self.state != State::Negotiating) {
            self.ends(network);
        }
        Ok(())
    }

    fn ends(&mut self, network: &mut Network) {
        self.state = State::Gone;
        network.peer_ends(self.socket);
        network.note("client gone", [self.number as u64, 0, 0]);
        self.returns_later(network);
    }

    /// Whoever is behind it comes again, as another client.
    fn returns_later(&self, network: &mut Network) {
        if self.comes_back {
            let when = network.chance.soon(network.now, 50, 3_000);
            network.at(when, Event::UserReturns { user: self.user });
        }
    }

    fn on_reply(&mut self, ways: &Ways, network: &mut Network) -> Result<(), String> {
        let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(()) };
        let head = String::from_utf8_lossy(&self.head[..end]).to_ascii_lowercase();
        let status: u32 = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        if self.state == State::Upgrading && status == 101 {
            let rest = self.head.split_off(end + 4);
            self.head.clear();
            self.reader.push(&rest);
            self.state = State::Handshaking;
            let name = if self.encoding == Encoding::Json { "json" } else { "messagepack" };
            let handshake = format!("{{\"protocol\":\"{name}\",\"version\":1}}\u{1e}");
            self.sends_message(wire::TEXT, handshake.as_bytes(), network);
            return Ok(());
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
        let body_end = end + 4 + length.unwrap_or_default();
        if self.head.len() < body_end {
            return Ok(());
        }
        let body: Vec<u8> = self.head.drain(..body_end).skip(end + 4).collect();
        if self.state == State::Negotiating && status == 200 {
            let reply: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
            let token = reply["connectionToken"].as_str().ok_or("a negotiation without a token")?.to_string();
            if network.chance.happens(500) {
                // As browsers do where their connection is still open; others take a new one, perhaps at another shard.
                let older = self.socket;
                self.shard = network.chance.below(ways.shards);
                self.socket = network.connect(self.number, self.shard);
                network.peer_ends(older);
                self.head.clear();
            }
            self.upgrade(Some(&token), network);
            return Ok(());
        }
        // Refused: later, perhaps.
        network.note("refused", [self.number as u64, status.into(), 0]);
        self.ends(network);
        Ok(())
    }

    fn on_frames(&mut self, ways: &Ways, ledger: &mut Ledger, network: &mut Network) -> Result<(), String> {
        while let Some(frame) = self.reader.next()? {
            match frame {
                Frame::Data { payload, .. } => {
                    self.records.push(&payload);
                    self.on_records(ways, ledger, network)?;
                }
                Frame::Ping(payload) => self.sends_frame(wire::PONG, true, &payload, network),
                Frame::Pong => {}
                Frame::Close(_) => {
                    if self.state != State::Leaving {
                        self.sends_frame(wire::CLOSE, true, &1000u16.to_be_bytes(), network);
                    }
                    return {
                        self.ends(network);
                        Ok(())
                    };
                }
            }
        }
        Ok(())
    }

    fn on_records(&mut self, ways: &Ways, ledger: &mut Ledger, network: &mut Network) -> Result<(), String> {
        if self.state == State::Handshaking {
            let Some(answer) = self.records.handshake() else { return Ok(()) };
            if answer != b"{}" {
                return Err(format!("a handshake is answered with {}", String::from_utf8_lossy(&answer)));
            }
            self.state = State::Open;
            network.note("client open", [self.number as u64, self.socket as u64, self.shard as u64]);
            ledger.opened(self.number, self.socket);
            // The first one arms the node's timeout.
            self.ping(network);
            self.begin(ways, ledger, network);
        }
        while let Some(record) = self.records.next(self.encoding)? {
            match record {
                Record::Invocation { id: None, target, arguments } if target == "Response_VM" => {
                    let view = arguments[0][0].as_str().unwrap_or_default().to_string();
                    let data = arguments[0][1].as_str().unwrap_or_default();
                    network.tell(|| format!("  client {} is told {view} {data}", self.number));
                    let data = serde_json::from_str(data).map_err(|error| format!("a response is no JSON: {error}"))?;
                    ledger.on_response(self.number, &view, &data, network.now)?;
                    if data["ExceptionType"].is_string() {
                        self.on_refusal(&view, ledger, network);
                    }
                }
                Record::Completion { id, error } => {
                    if let Some(error) = error {
                        return Err(format!("a call of client {} failed: {error}", self.number));
                    }
                    // In the order of the calls.
                    if self.open_ids.first() != Some(&id) {
                        return Err(format!("client {} has a completion of {id}", self.number));
                    }
                    self.open_ids.remove(0);
                }
                Record::Ping => {}
                Record::Close { allow_reconnect, .. } => {
                    self.comes_back &= allow_reconnect;
                    self.is_asked_back = allow_reconnect;
                }
                other => return Err(format!("a client is sent {other:?}")),
            }
        }
        Ok(())
    }

    /// What was refused is let go, and asked for under another name if at all: of a view model of which a part was lost nobody can say
    /// what it is.
    fn on_refusal(&mut self, view: &str, ledger: &mut Ledger, network: &mut Network) {
        if self.views.iter().any(|name| name == view) {
            self.dispose(view.to_string(), ledger, network);
        }
    }

    // ---- what it does -------------------------------------------------------------------------------------------

    fn sends_frame(&mut self, opcode: u8, fin: bool, payload: &[u8], network: &mut Network) {
        let mask = network.chance.bytes();
        let bytes = wire::frame(opcode, fin, Some(mask), payload);
        network.peer_sends(self.socket, &bytes);
    }

    /// A message in one frame or several.
    fn sends_message(&mut self, opcode: u8, payload: &[u8], network: &mut Network) {
        let (mut opcode, mut rest) = (opcode, payload);
        while network.chance.happens(150) && rest.len() > 1 {
            let (piece, later) = rest.split_at(network.chance.below(rest.len()));
            self.sends_frame(opcode, false, piece, network);
            (opcode, rest) = (0, later);
        }
        self.sends_frame(opcode, true, rest, network);
    }

    fn sends(&mut self, records: &[Record], network: &mut Network) {
        network.tell(|| {
            let short: String = format!("{records:?}").chars().take(300).collect();
            format!("  client {} sends {short}", self.number)
        });
        let bytes: Vec<Vec<u8>> = records.iter().map(|record| record.write(self.encoding)).collect();
        if network.chance.happens(500) {
            self.sends_message(self.encoding.opcode(), &bytes.concat(), network);
        } else {
            bytes.iter().for_each(|bytes| self.sends_message(self.encoding.opcode(), bytes, network));
        }
    }

    fn call(&mut self, target: &str, arguments: Vec<Value>) -> Record {
        let id = self.has_ids.then(|| self.next_id.to_string());
        self.next_id += 1;
        self.open_ids.extend(id.clone());
        Record::Invocation { id, target: target.into(), arguments }
    }

    pub(super) fn ping(&mut self, network: &mut Network) {
        if self.state == State::Open {
            self.sends(&[Record::Ping], network);
            network.at(network.now.after(self.ping_every), Event::ClientPing { client: self.number });
        }
    }

    /// First things: view models, and updates right behind them.
    fn begin(&mut self, ways: &Ways, ledger: &mut Ledger, network: &mut Network) {
        let mut records = Vec::new();
        for _ in 0..1 + network.chance.below(3) {
            self.request_new(ways, ledger, network, &mut records);
        }
        self.sends(&records, network);
        self.acts_later(ways, network);
    }

    fn acts_later(&self, ways: &Ways, network: &mut Network) {
        if ways.is_scripted || self.state != State::Open {
            return;
        }
        let when = network.chance.soon(network.now, 1, ways.act_every_ms);
        network.at(when, Event::ClientActs { client: self.number });
    }

    fn request_new(&mut self, ways: &Ways, ledger: &mut Ledger, network: &mut Network, records: &mut Vec<Record>) {
        let chance = &mut network.chance;
        let upstream = chance.below(ways.upstreams);
        let letter = letter(upstream);
        let ordinal = ledger.next_ordinal(self.number);
        let parent = self.views.iter().find(|name| name.starts_with(letter) && name[1..].starts_with("Echo"));
        let name = match chance.below(10) {
            0..4 => format!("{letter}Echo{ordinal}"),
            4..6 => match parent {
                Some(parent) => format!("{parent}.Sub{ordinal}"),
                None => format!("{letter}Echo{ordinal}"),
            },
            6..8 => format!("{letter}Room{}", chance.below(2)),
            _ => format!("{letter}Many{}", chance.below(2)),
        };
        // A view model that was refused is not asked for again by the same connection.
        if self.is_spoiled(&name, ledger) {
            return;
        }
        self.request(upstream, name.clone(), ordinal, ledger, network.now, records);
        for _ in 0..network.chance.below(3) {
            self.update(&name, ledger, network, records);
        }
    }

    fn is_spoiled(&self, name: &str, ledger: &Ledger) -> bool {
        ledger.members[&self.number].views.get(name).is_some_and(|view| view.is_refused)
    }

    fn request(
        &mut self,
        upstream: usize,
        name: String,
        ordinal: u64,
        ledger: &mut Ledger,
        now: Time,
        records: &mut Vec<Record>,
    ) {
        let (number, ordinal) = ledger.requested(self.number, upstream, &name, ordinal, now);
        let argument = json!({"$vmArg": {"c": self.number, "r": number, "o": ordinal}});
        records.push(self.call("Request_VM", vec![json!(name), argument]));
        if !self.views.contains(&name) {
            self.views.push(name);
        }
    }

    fn update(&mut self, name: &str, ledger: &mut Ledger, network: &mut Network, records: &mut Vec<Record>) {
        let number = ledger.updated(self.number, name, network.now);
        let mut data = json!({"c": self.number, "n": number});
        if network.chance.happens(50) {
            // Now and then more than an app server takes: with every quote escaped twice it is four times as long.
            let most = network.chance.one_of(&[100, 1_000, 8_000]);
            data["more"] = json!("\u{e9}\"".repeat(network.chance.below(most)));
        }
        records.push(self.call("Update_VM", vec![json!(name), data]));
    }

    fn dispose(&mut self, name: String, ledger: &mut Ledger, network: &mut Network) {
        ledger.disposed(self.number, &name, network.now);
        let children = format!("{name}.");
        self.views.retain(|live| *live != name && !live.starts_with(&children));
        let record = self.call("Dispose_VM", vec![json!(name)]);
        self.sends(&[record], network);
    }

    /// Does something, and something else later.
    pub(super) fn acts(&mut self, ways: &Ways, ledger: &mut Ledger, network: &mut Network) {
        if self.state == State::Open && !ways.is_quiet {
            let what = network.chance.below(100);
            self.does(what, ways, ledger, network);
            self.acts_later(ways, network);
        }
    }

    /// `what`: so many in a hundred of one kind and of another.
    pub(super) fn does(&mut self, what: usize, ways: &Ways, ledger: &mut Ledger, network: &mut Network) {
        let name = match self.views.len() {
            0 => None,
            count => Some(self.views[network.chance.below(count)].clone()),
        };
        let mut records = Vec::new();
        match (what, name) {
            (0..70, Some(name)) => {
                for _ in 0..1 + network.chance.below(3) {
                    self.update(&name, ledger, network, &mut records);
                }
            }
            (70..75, Some(name)) => {
                let view = &ledger.members[&self.number].views[&name];
                let (upstream, ordinal) = (view.upstream, view.ordinal);
                self.request(upstream, name, ordinal, ledger, network.now, &mut records);
            }
            (75..85, Some(name)) => self.dispose(name, ledger, network),
            (85..88, _) => return self.leave(ledger, network),
            _ => self.request_new(ways, ledger, network, &mut records),
        }
        if !records.is_empty() {
            self.sends(&records, network);
        }
    }

    /// One more update of each view model, to see that all are answered.
    pub(super) fn probes(&mut self, ledger: &mut Ledger, network: &mut Network) {
        if self.state != State::Open {
            return;
        }
        let mut records = Vec::new();
        for name in self.views.clone() {
            self.update(&name, ledger, network, &mut records);
        }
        self.sends(&records, network);
    }

    /// Leaves, in one of the ways there are.
    pub(super) fn leave(&mut self, ledger: &mut Ledger, network: &mut Network) {
        if self.state == State::Gone {
            return;
        }
        ledger.odd(self.number);
        match network.chance.below(4) {
            0 if self.state == State::Open => {
                self.sends(&[Record::Close { error: None, allow_reconnect: false }], network);
                self.sends_frame(wire::CLOSE, true, &1000u16.to_be_bytes(), network);
                self.state = State::Leaving;
            }
            1 if self.state == State::Open => {
                self.sends_frame(wire::CLOSE, true, &1000u16.to_be_bytes(), network);
                self.state = State::Leaving;
            }
            2 => self.resets(network),
            _ => self.ends(network),
        }
    }

    pub(super) fn resets(&mut self, network: &mut Network) {
        self.state = State::Gone;
        network.peer_resets(self.socket);
        self.returns_later(network);
    }

    /// Something goes wrong with it.
    pub(super) fn suffers(&mut self, fault: Fault, ledger: &mut Ledger, network: &mut Network) {
        ledger.odd(self.number);
        network.fault(fault);
        match fault {
            Fault::ClientReset => self.resets(network),
            Fault::ClientSilent => {
                network.sever(self.socket);
                self.state = State::Gone;
                self.returns_later(network);
            }
            _ => {
                network.stop_reading(self.socket);
                let when = network.chance.soon(network.now, 10, 4_000);
                network.at(when, Event::ClientReads { client: self.number, socket: self.socket });
            }
        }
    }
}
