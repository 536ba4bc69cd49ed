//! App servers as the contract has them (sections 2.5, 3, 4 and 8): each lane one message at a time; a client bound to the lane that
//! brought its first message, for good; sends to dead lanes lost without a word; whoever spoke last on a lane that ends is taken to be
//! gone with it.
//!
//! Three kinds of view models, by what their names have behind the upstream's letter: `Echo` answers each update, `Room` tells a group,
//! `Many` tells a list of clients.
use super::faults::Fault;
use super::ledger::Ledger;
use super::network::{Network, SocketId};
use super::wire::{self, Encoding, Frame, Reader, Record, Records};
use super::{Event, Sabotage};
use crate::ids::{LanePlace, Time};
use core::time::Duration;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

/// As SignalR's servers: pings, and silence that ends a connection.
const PING: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_secs(30);

/// `MaximumReceiveMessageSize`, framing included.
pub(super) const MESSAGE_BYTES_MAX: usize = 32 * 1024;

type Origin = String;
/// What is said, and over which lane.
type Answer = (usize, Record);

pub(super) struct AppServer {
    pub(super) place: LanePlace,
    pub(super) encoding: Encoding,
    pub(super) is_up: bool,
    /// Counts starts.
    epoch: u64,
    /// In the order they were made.
    bindings: Vec<Binding>,
    controllers: BTreeMap<Origin, Controller>,
    rooms: BTreeMap<String, Room>,
    /// Whose end was announced.
    departed: HashSet<Origin>,
}

struct Binding {
    origin: Origin,
    client: usize,
    hub_id: String,
    lane: usize,
}

/// What a client has here.
struct Controller {
    client: usize,
    views: BTreeSet<String>,
    newest: u64,
}

/// A view model that clients share.
#[derive(Default)]
struct Room {
    members: BTreeSet<Origin>,
    said: u64,
}

/// A lane in one of its lives, from the app server's end.
pub(super) struct Lane {
    server: usize,
    pub(super) socket: SocketId,
    reader: Reader,
    records: Records,
    inbox: VecDeque<Invoke>,
    is_busy: bool,
    pub(super) frozen_until: Time,
    /// Whose message it carried last.
    items: Option<Origin>,
    heard: Time,
    /// Open, as far as this end knows.
    pub(super) is_open: bool,
    /// The other end is gone; nothing is taken from it any more, and what is being worked on delays the end.
    is_closing: bool,
}

struct Invoke {
    id: Option<String>,
    method: String,
    arguments: Vec<Value>,
    context: Value,
}

impl Invoke {
    fn read(record: Record) -> Result<Option<Invoke>, String> {
        let Record::Invocation { id, target, arguments } = record else { return Ok(None) };
        let [Value::String(method), Value::Array(inner), metadata] = &arguments[..] else {
            return Err(format!("an app server is told {arguments:?}"));
        };
        if target != "Invoke" {
            return Err(format!("an app server is asked for {target}"));
        }
        let context = metadata["$fwdConnContext"].as_str().ok_or("a message has no context")?;
        let context = serde_json::from_str(context).map_err(|error| format!("a context is no JSON: {error}"))?;
        Ok(Some(Invoke { id, method: method.clone(), arguments: inner.clone(), context }))
    }

    fn origin(&self, sabotage: Option<Sabotage>) -> Origin {
        let id = self.context["ConnectionId"].as_str().unwrap_or_default();
        match sabotage {
            // Shard and slot only: what an id without a serial number would say.
            Some(Sabotage::ReuseOriginIds) => id[..5].into(),
            _ => id.into(),
        }
    }

    fn hub_id(&self) -> String {
        self.context["HubId"].as_str().unwrap_or_default().into()
    }

    /// Whose it is, as the client's own request said. None where the context is without headers: of somebody who is gone, or with a
    /// message that would be too large with them.
    fn client(&self) -> Option<usize> {
        self.context["HttpRequestHeaders"]["UserAgent"].as_str()?.strip_prefix("sim/")?.parse().ok()
    }

    /// Whose it says it is.
    fn says(&self) -> Option<usize> {
        let argument: Value = serde_json::from_str(self.arguments.get(1)?.as_str()?).ok()?;
        let says = if self.method == "Request_VM" { &argument["$vmArg"]["c"] } else { &argument["c"] };
        Some(says.as_u64()? as usize)
    }
}

pub(super) struct AppServers {
    pub(super) servers: Vec<AppServer>,
    pub(super) lanes: Vec<Lane>,
    /// How long a message takes at most, in microseconds.
    pub(super) work_us: u64,
    /// The full id that a shortened one stands for.
    full: BTreeMap<Origin, String>,
}

impl AppServers {
    pub(super) fn new(places: &[LanePlace], encodings: &[Encoding], work_us: u64) -> AppServers {
        let server = |(place, encoding): (&LanePlace, &Encoding)| AppServer {
            place: *place,
            encoding: *encoding,
            is_up: true,
            epoch: 0,
            bindings: Vec::new(),
            controllers: BTreeMap::new(),
            rooms: BTreeMap::new(),
            departed: HashSet::new(),
        };
        let servers = places.iter().zip(encodings).map(server).collect();
        AppServers { servers, lanes: Vec::new(), work_us, full: BTreeMap::new() }
    }

    pub(super) fn connected(&mut self, server: usize, socket: SocketId, network: &mut Network) {
        let lane = self.lanes.len();
        self.lanes.push(Lane {
            server,
            socket,
            reader: Reader::of_clients(),
            records: Records::default(),
            inbox: VecDeque::new(),
            is_busy: false,
            frozen_until: Time(0),
            items: None,
            heard: network.now,
            is_open: true,
            is_closing: false,
        });
        network.at(network.now.after(PING), Event::LanePing { lane });
    }

    fn upstream(&self, server: usize) -> usize {
        usize::from(self.servers[server].place.upstream.0)
    }

    // ---- lanes --------------------------------------------------------------------------------------------------

    fn send(&mut self, lane: usize, records: &[Record], network: &mut Network) {
        let Lane { server, socket, is_open: true, .. } = self.lanes[lane] else { return };
        let encoding = self.servers[server].encoding;
        let bytes: Vec<u8> = records.iter().flat_map(|record| record.write(encoding)).collect();
        if network.chance.happens(100) {
            let (first, rest) = bytes.split_at(network.chance.below(bytes.len() + 1));
            network.peer_sends(socket, &wire::frame(encoding.opcode(), false, None, first));
            network.peer_sends(socket, &wire::frame(0, true, None, rest));
        } else {
            network.peer_sends(socket, &wire::frame(encoding.opcode(), true, None, &bytes));
        }
    }

    /// Something arrived on a lane's socket.
    pub(super) fn on_bytes(&mut self, lane: usize, network: &mut Network) -> Result<(), String> {
        let (bytes, ended) = network.peer_takes(self.lanes[lane].socket);
        let encoding = self.servers[self.lanes[lane].server].encoding;
        let this = &mut self.lanes[lane];
        if !this.is_open || this.is_closing && bytes.is_empty() {
            return Ok(());
        }
        this.heard = network.now;
        this.reader.push(&bytes);
        let mut says_goodbye = false;
        while let Some(frame) = self.lanes[lane].reader.next()? {
            let this = &mut self.lanes[lane];
            match frame {
                Frame::Data { payload, is_text } => {
                    if is_text != (encoding == Encoding::Json) {
                        return Err("a lane's records come in the wrong kind of frame".into());
                    }
                    this.records.push(&payload);
                    while let Some((record, bytes)) = this.records.next_sized(encoding)? {
                        if bytes > MESSAGE_BYTES_MAX {
                            // A real one closes the lane with everybody on it (contract 4.6).
                            return Err(format!("an app server is sent a message of {bytes} bytes"));
                        }
                        if let Some(invoke) = Invoke::read(record)? {
                            this.inbox.push_back(invoke);
                        }
                    }
                }
                Frame::Ping(payload) => {
                    network.peer_sends(this.socket, &wire::frame(wire::PONG, true, None, &payload));
                }
                Frame::Pong => {}
                Frame::Close(_) => says_goodbye = true,
            }
        }
        self.tamper(lane, network);
        if ended && !says_goodbye {
            // What an aborted connection brought and nobody has looked at is thrown away.
            self.lanes[lane].inbox.clear();
        }
        self.lanes[lane].is_closing |= ended || says_goodbye;
        self.go_on(lane, network);
        Ok(())
    }

    /// Rules broken on purpose, to see that they are missed.
    fn tamper(&mut self, lane: usize, network: &mut Network) {
        let inbox = &mut self.lanes[lane].inbox;
        let Some(sabotage) = network.sabotage.filter(|_| network.is_rough) else { return };
        let is_update = |invoke: &Invoke| invoke.method == "Update_VM";
        match sabotage {
            Sabotage::Reorder if network.chance.happens(200) => {
                let pair = (1..inbox.len()).find(|at| {
                    is_update(&inbox[at - 1]) && is_update(&inbox[*at]) && inbox[at - 1].client() == inbox[*at].client()
                });
                if let Some(at) = pair {
                    inbox.swap(at - 1, at);
                }
            }
            Sabotage::LoseMessage if network.chance.happens(50) && inbox.back().is_some_and(is_update) => {
                inbox.pop_back();
            }
            Sabotage::RepeatMessage if network.chance.happens(50) && inbox.back().is_some_and(is_update) => {
                let Invoke { id, method, arguments, context } = inbox.back().expect("looked at");
                let again = Invoke {
                    id: id.clone(),
                    method: method.clone(),
                    arguments: arguments.clone(),
                    context: context.clone(),
                };
                inbox.push_back(again);
            }
            Sabotage::SkipDisconnect
                if network.chance.happens(300)
                    && inbox.back().is_some_and(|invoke| invoke.method == "OnDisconnectedAsync") =>
            {
                inbox.pop_back();
            }
            _ => {}
        }
    }

    fn go_on(&mut self, lane: usize, network: &mut Network) {
        let this = &mut self.lanes[lane];
        if this.is_busy || this.inbox.is_empty() && !this.is_closing || !this.is_open {
            return;
        }
        this.is_busy = true;
        let work = Duration::from_micros(network.chance.between(10, self.work_us));
        let when = network.now.after(work).max(this.frozen_until);
        network.at(when, Event::LaneWorks { lane });
    }

    /// The next message of a lane is worked on.
    pub(super) fn works(&mut self, lane: usize, ledger: &mut Ledger, network: &mut Network) -> Result<(), String> {
        let this = &mut self.lanes[lane];
        this.is_busy = false;
        if !this.is_open {
            return Ok(());
        }
        match this.inbox.pop_front() {
            Some(invoke) => self.invoke(lane, invoke, ledger, network)?,
            None if this.is_closing => {
                network.peer_ends(self.lanes[lane].socket);
                self.lost(lane, network);
            }
            None => {}
        }
        self.go_on(lane, network);
        Ok(())
    }

    pub(super) fn ping(&mut self, lane: usize, network: &mut Network) {
        if !self.lanes[lane].is_open {
            return;
        }
        if network.now >= self.lanes[lane].heard.after(SILENCE) {
            return self.lost(lane, network);
        }
        self.send(lane, &[Record::Ping], network);
        network.at(network.now.after(PING), Event::LanePing { lane });
    }

    /// A lane is gone, as its app server notices: it takes whoever spoke last for gone (contract 4.4).
    fn lost(&mut self, lane: usize, network: &mut Network) {
        let this = &mut self.lanes[lane];
        if !core::mem::replace(&mut this.is_open, false) {
            return;
        }
        this.inbox.clear();
        network.note("lane gone at app server", [lane as u64, 0, 0]);
        if let Some(origin) = this.items.take() {
            let server = this.server;
            self.forget(server, &origin);
        }
    }

    pub(super) fn freeze(&mut self, lane: usize, until: Time) {
        self.lanes[lane].frozen_until = until;
    }

    /// One end of the lane's life, as its app server brings it about.
    pub(super) fn end_lane(&mut self, lane: usize, how: Fault, network: &mut Network) {
        let socket = self.lanes[lane].socket;
        match how {
            Fault::LaneClosed => {
                self.send(lane, &[Record::Close { error: None, allow_reconnect: true }], network);
                network.peer_sends(socket, &wire::frame(wire::CLOSE, true, None, &1000u16.to_be_bytes()));
                network.peer_ends(socket);
                self.lost(lane, network);
            }
            Fault::LaneSilent => {
                network.sever(socket);
            }
            _ => {
                network.peer_resets(socket);
                self.lost(lane, network);
            }
        }
    }

    /// The process is gone, with everything it knew.
    pub(super) fn crash(&mut self, server: usize, network: &mut Network) {
        for lane in self.lanes.iter_mut().filter(|lane| lane.server == server && lane.is_open) {
            lane.is_open = false;
            network.peer_resets(lane.socket);
        }
        let this = &mut self.servers[server];
        this.is_up = false;
        this.epoch += 1;
        this.bindings.clear();
        this.controllers.clear();
        this.rooms.clear();
        this.departed.clear();
    }

    // ---- hub methods --------------------------------------------------------------------------------------------

    fn invoke(
        &mut self,
        lane: usize,
        invoke: Invoke,
        ledger: &mut Ledger,
        network: &mut Network,
    ) -> Result<(), String> {
        let server = self.lanes[lane].server;
        let origin = invoke.origin(network.sabotage);
        self.lanes[lane].items = Some(origin.clone());
        let full = invoke.context["ConnectionId"].as_str().unwrap_or_default();
        self.full.insert(origin.clone(), full.into());
        let client = invoke.client();
        network
            .note("invoke", [lane as u64, client.map_or(u64::MAX, |client| client as u64), invoke.method.len() as u64]);
        network.tell(|| {
            let Invoke { method, arguments, .. } = &invoke;
            let short: String = format!("{arguments:?}").chars().take(160).collect();
            format!("  app server {server}, lane {lane}, client {client:?} as {origin}: {method} {short}")
        });
        if invoke.method == "OnDisconnectedAsync" {
            if invoke.arguments != [Value::Null] {
                return Err(format!("OnDisconnectedAsync is called with {:?}", invoke.arguments));
            }
            self.forget(server, &origin);
            self.servers[server].departed.insert(origin);
            self.complete(lane, &invoke, None, network);
            return Ok(());
        }
        let client = client.or_else(|| {
            let known = self.servers[server].controllers.get(&origin);
            known.map(|controller| controller.client).or_else(|| invoke.says())
        });
        let client = client.ok_or_else(|| format!("nobody can say whose {} it is", invoke.method))?;
        // Of a lane that is gone it may work on what it has, whatever has become of the client meanwhile (contract 4.4).
        let is_late = network.socket(self.lanes[lane].socket).broken.is_some();
        if self.servers[server].departed.contains(&origin) && !is_late {
            return Err(format!("{} of client {client} comes behind its end", invoke.method));
        }
        let upstream = self.upstream(server);
        if !is_late {
            ledger.seen(client, upstream, lane);
        }
        let this = &mut self.servers[server];
        if !this.bindings.iter().any(|binding| binding.origin == origin) {
            this.bindings.push(Binding { origin: origin.clone(), client, hub_id: invoke.hub_id(), lane });
        }
        // Its answers take the lane it is bound to, dead or alive (contract 3.3).
        let bound = this.bindings.iter().find(|binding| binding.origin == origin).expect("it is bound by now").lane;
        let controller =
            this.controllers.entry(origin.clone()).or_insert(Controller { client, views: BTreeSet::new(), newest: 0 });
        if controller.client != client {
            return Err(format!("client {client} goes by the id of client {}", controller.client));
        }
        let view = invoke.arguments.first().and_then(Value::as_str).unwrap_or_default().to_string();
        let argument = match invoke.arguments.get(1) {
            None | Some(Value::Null) => Value::Null,
            Some(Value::String(text)) => match serde_json::from_str(text) {
                Ok(value) => value,
                Err(error) => {
                    self.complete(lane, &invoke, Some(error.to_string()), network);
                    return Err(format!("an argument is no JSON text: {text}"));
                }
            },
            Some(other) => return Err(format!("an argument is no text: {other}")),
        };
        let answers = match invoke.method.as_str() {
            "Request_VM" => {
                let (answers, is_in_turn) = self.request(bound, &origin, client, &view, &argument["$vmArg"], ledger)?;
                // What comes of a lane that is gone has no turn any more.
                if !is_in_turn && !is_late {
                    ledger.out_of_turn(client, &view);
                }
                answers
            }
            "Update_VM" => self.update(lane, bound, &origin, client, &view, &argument, ledger, network)?,
            "Dispose_VM" => self.dispose(bound, &origin, &view),
            other => return Err(format!("an app server is asked for {other}")),
        };
        for (lane, record) in answers {
            self.send(lane, &[record], network);
        }
        self.complete(lane, &invoke, None, network);
        Ok(())
    }

    fn complete(&mut self, lane: usize, invoke: &Invoke, error: Option<String>, network: &mut Network) {
        if let Some(id) = &invoke.id {
            self.send(lane, &[Record::Completion { id: id.clone(), error }], network);
        }
    }

    fn forget(&mut self, server: usize, origin: &Origin) {
        let this = &mut self.servers[server];
        this.bindings.retain(|binding| binding.origin != *origin);
        this.controllers.remove(origin);
        for room in this.rooms.values_mut() {
            room.members.remove(origin);
        }
    }

    fn response(&self, method: &str, arguments: Value, to: Option<String>) -> Record {
        let metadata = to.map_or(Value::Null, |to| json!({ "$fwdConnId": to }));
        Record::Invocation {
            id: None,
            target: "Response_VM".into(),
            arguments: vec![json!([method, arguments, metadata])],
        }
    }

    fn full(&self, origin: &Origin) -> String {
        self.full[origin].clone()
    }

    fn request(
        &mut self,
        bound: usize,
        origin: &Origin,
        client: usize,
        view: &str,
        argument: &Value,
        ledger: &mut Ledger,
    ) -> Result<(Vec<Answer>, bool), String> {
        let server = self.lanes[bound].server;
        let upstream = self.upstream(server);
        ledger.on_request(upstream, client, view, argument)?;
        let this = &mut self.servers[server];
        let epoch = this.epoch;
        let controller = this.controllers.get_mut(origin).expect("it was made above");
        // A client's view models are asked for in its order, also when they are asked for again.
        let ordinal = argument["o"].as_u64().unwrap_or_default();
        let is_in_turn = !controller.views.insert(view.into()) || ordinal >= controller.newest;
        controller.newest = ordinal.max(controller.newest);
        let state = json!({"c": client, "r": argument["r"], "u": server, "up": upstream, "e": epoch}).to_string();
        let mut answers = vec![(bound, self.response("SendAsync", json!([view, state]), Some(self.full(origin))))];
        let kind = &view[1..];
        if kind.starts_with("Room") || kind.starts_with("Many") {
            self.servers[server].rooms.entry(view.into()).or_default().members.insert(origin.clone());
        }
        if kind.starts_with("Room") {
            answers.push((bound, self.response("AddToGroupAsync", json!([view]), Some(self.full(origin)))));
        }
        Ok((answers, is_in_turn))
    }

    #[allow(clippy::too_many_arguments)] // A hub method's own, and the world around it.
    fn update(
        &mut self,
        on: usize,
        bound: usize,
        origin: &Origin,
        client: usize,
        view: &str,
        data: &Value,
        ledger: &mut Ledger,
        network: &mut Network,
    ) -> Result<Vec<Answer>, String> {
        let server = self.lanes[bound].server;
        let upstream = self.upstream(server);
        let is_known = self.servers[server].controllers[origin].views.contains(view);
        // The lane that it came on is gone: it counts for nothing any more, and its answer reaches nobody.
        if network.socket(self.lanes[on].socket).broken.is_none() {
            ledger.on_update(upstream, client, view, data, is_known)?;
        }
        if !is_known {
            return Ok(Vec::new());
        }
        let epoch = self.servers[server].epoch;
        let number = &data["n"];
        if !self.servers[server].rooms.contains_key(view) {
            let answer = json!({"c": client, "n": number, "u": server, "up": upstream, "e": epoch}).to_string();
            let mut to = self.full(origin);
            if network.sabotage == Some(Sabotage::Misdeliver) && network.chance.happens(50) {
                let other = self.servers[server].controllers.keys().find(|other| *other != origin);
                to = other.map_or(to, |other| self.full(other));
            }
            return Ok(vec![(bound, self.response("SendAsync", json!([view, answer]), Some(to)))]);
        }
        let room = self.servers[server].rooms.get_mut(view).expect("looked at");
        room.said += 1;
        let said = room.said;
        let members: Vec<Origin> = room.members.iter().cloned().collect();
        let what = json!({"c": client, "n": number, "s": said, "u": server, "up": upstream, "e": epoch}).to_string();
        let is_group = view[1..].starts_with("Room");
        // Now and then somebody is left out, never who speaks.
        let left_out =
            members.iter().find(|member| *member != origin).filter(|_| is_group && network.chance.happens(200));
        let left_out = left_out.cloned();
        let this = &self.servers[server];
        // One copy a hub id, over the first binding that has it (contract 3.3).
        let mut hubs: Vec<(&str, usize)> = Vec::new();
        for binding in &this.bindings {
            let is_asked = is_group || members.contains(&binding.origin);
            if is_asked && !hubs.iter().any(|(hub_id, _)| *hub_id == binding.hub_id) {
                let first =
                    this.bindings.iter().find(|first| first.hub_id == binding.hub_id).expect("it is one itself");
                hubs.push((&binding.hub_id, first.lane));
            }
        }
        let mut answers = Vec::new();
        for (hub_id, over) in hubs {
            let of_hub = |member: &&Origin| {
                this.bindings.iter().any(|binding| binding.origin == **member && binding.hub_id == hub_id)
            };
            let there: Vec<&Origin> = members.iter().filter(of_hub).collect();
            for member in &there {
                let binding = this.bindings.iter().find(|binding| binding.origin == **member).expect("it has one");
                // Where lanes share a hub id, what comes over another lane may overtake the join.
                if binding.lane == over && self.lanes[over].is_open {
                    let is_left_out = left_out.as_ref() == Some(*member);
                    ledger.expects(binding.client, view, (server, epoch, said), over, is_left_out, network);
                }
            }
            let record = match (&left_out, is_group) {
                (Some(other), true) => self.response(
                    "SendToGroupExceptAsync",
                    json!([view, view, what]),
                    Some(json!([self.full(other)]).to_string()),
                ),
                (None, true) if said.is_multiple_of(2) => {
                    self.response("SendToGroupExceptAsync", json!([view, view, what]), Some("[null]".into()))
                }
                (None, true) => self.response("SendToGroupAsync", json!([view, view, what]), None),
                (_, false) => {
                    let ids: Vec<String> = there.iter().map(|member| self.full(member)).collect();
                    self.response("SendToManyAsync", json!([view, what]), Some(json!(ids).to_string()))
                }
            };
            answers.push((over, record));
        }
        Ok(answers)
    }

    fn dispose(&mut self, bound: usize, origin: &Origin, view: &str) -> Vec<Answer> {
        let server = self.lanes[bound].server;
        let children = format!("{view}.");
        let this = &mut self.servers[server];
        let controller = this.controllers.get_mut(origin).expect("it was made above");
        controller.views.retain(|name| name != view && !name.starts_with(&children));
        let was_in = this.rooms.get_mut(view).is_some_and(|room| room.members.remove(origin));
        if was_in && view[1..].starts_with("Room") {
            return vec![(bound, self.response("RemoveFromGroupAsync", json!([view]), Some(self.full(origin))))];
        }
        Vec::new()
    }

    // ---- judgement ----------------------------------------------------------------------------------------------

    /// What an app server knows when all is calm: exactly the clients that are there, with their view models.
    pub(super) fn judge(&self, live: &BTreeMap<usize, BTreeMap<usize, BTreeSet<String>>>) -> Result<(), String> {
        let mut known: BTreeMap<(usize, usize), BTreeSet<String>> = BTreeMap::new();
        for (index, server) in self.servers.iter().enumerate() {
            let (upstream, mut clients) = (usize::from(server.place.upstream.0), BTreeSet::new());
            for Binding { origin, client, lane, .. } in &server.bindings {
                let is_there = live.contains_key(client);
                if !is_there {
                    return Err(format!("app server {index} keeps a binding of client {client}, which is gone"));
                }
                if !clients.insert(*client) {
                    return Err(format!("app server {index} knows client {client} by two ids"));
                }
                if !self.lanes[*lane].is_open {
                    return Err(format!("app server {index} has client {client} ({origin}) bound to a dead lane"));
                }
            }
            for Controller { client, views, .. } in server.controllers.values() {
                if !clients.contains(client) {
                    return Err(format!(
                        "app server {index} keeps view models of client {client}, which has no binding"
                    ));
                }
                let of_client = known.entry((*client, upstream)).or_default();
                for view in views {
                    if !of_client.insert(view.clone()) {
                        return Err(format!("client {client} has {view} at two app servers"));
                    }
                }
            }
        }
        known.retain(|_, views| !views.is_empty());
        let expected: BTreeMap<(usize, usize), BTreeSet<String>> = live
            .iter()
            .flat_map(|(client, views)| views.iter().map(|(upstream, views)| ((*client, *upstream), views.clone())))
            .collect();
        let none = BTreeSet::new();
        for key in known.keys().chain(expected.keys()) {
            let (here, there) = (known.get(key).unwrap_or(&none), expected.get(key).unwrap_or(&none));
            if here != there {
                let (client, upstream) = key;
                return Err(format!("client {client} has {there:?}, and upstream {upstream} has {here:?} of it"));
            }
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.servers.iter().all(|server| server.bindings.is_empty() && server.controllers.is_empty())
    }
}
