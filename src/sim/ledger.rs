//! The model: what was sent, and what has to come of it. Everything here is said by the clients and app servers of the world, never by
//! the shard that is judged.
//!
//! # Rules
//!
//! Always, whatever happens:
//!
//! - an app server sees the updates of one view model of one client in the order they were sent, and each once at most; likewise a client
//!   the answers to them;
//! - what a client sent reaches an app server of the upstream that its view model belongs to, in the client's own context;
//! - nothing comes from a client behind its end (contract 2.5: it would begin a new life there, for good);
//! - a client is told nothing that is not its own: no answer to another one's update, nothing of a view model it never asked for,
//!   nothing of a group it was left out of, nothing twice;
//! - a client that keeps to the protocol and whose connection was whole is not disconnected.
//!
//! Of a **healthy** client's messages none is lost: each reaches the app server and is answered. Healthy is a message whose client's
//! connection is whole from first to last, and whose lane is: the one its client was known to be pinned to when it was sent. Where
//! none was known yet it is any lane of the client's shard to that upstream. A lane is whole from its connect until either side, or
//! what lies between, cuts it; one that was cut counts as what a message may have been lost on until the shard has closed it. A
//! message that the client was told of as refused (an exception of its view model) is not lost. What an app server sends to a group
//! or to many reaches every member whose lane and connection stay whole; where all lanes share a hub id (contract 6.1), only while none
//! of them is lost.
//!
//! When all is calm again an app server's bindings and view models are those of the clients that are there, and each of them is
//! answered. When all have left there are none.
use super::network::{Network, SocketId};
use super::scenario::letter;
use crate::ids::Time;
use crate::session::routing::HubScope;
use core::time::Duration;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// How long an app server may be without knowing that a lane is dead.
const STALE: Duration = Duration::from_secs(45);

/// How long a client may be shown a state and not be in the group yet, where they come over lanes of their own.
const JOINING: Duration = Duration::from_secs(5);

/// One message of a client and what became of it.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    at: Time,
    /// Where its client was pinned.
    lane: Option<usize>,
    /// An app server has worked on it.
    applied: bool,
    answered: bool,
}

/// A view model as its client sees it.
#[derive(Debug)]
pub(super) struct View {
    pub(super) upstream: usize,
    /// Among all that the client ever asked for.
    pub(super) ordinal: u64,
    requests: Vec<Sent>,
    updates: Vec<Sent>,
    /// The newest update that an app server has seen, and that was answered.
    last_applied: u64,
    last_answered: u64,
    /// An update that reached an app server without the view model: its request was refused, as the client may not know yet.
    missed: Option<u64>,
    is_out_of_turn: bool,
    pub(super) is_disposed: bool,
    /// The last time it was.
    disposed: Option<Time>,
    pub(super) is_refused: bool,
    /// Since when it has shown a state.
    shown: Option<Time>,
    /// What a group said: (app server, epoch) and numbers, those that came and those that are not meant for it.
    heard: HashSet<(usize, u64, u64)>,
    newest: HashMap<(usize, u64), u64>,
    left_out: HashSet<(usize, u64, u64)>,
}

impl View {
    pub(super) fn is_live(&self) -> bool {
        !self.is_disposed && !self.is_refused
    }
}

/// A connection of a client that became one.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) socket: SocketId,
    pub(super) views: BTreeMap<String, View>,
    next_ordinal: u64,
    /// Lanes it is pinned to, as app servers have seen: by upstream.
    pinned: BTreeMap<usize, usize>,
    /// It did something that may end it: not read, gone away in silence, said goodbye.
    pub(super) is_odd: bool,
    is_judged: bool,
}

/// A lane in one of its lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fate {
    pub(super) shard: usize,
    pub(super) upstream: usize,
    pub(super) socket: SocketId,
}

/// What a member of a group is to hear.
struct Expected {
    client: usize,
    view: String,
    number: (usize, u64, u64),
    lane: usize,
}

#[derive(Default)]
pub(super) struct Ledger {
    pub(super) members: BTreeMap<usize, Member>,
    pub(super) lanes: Vec<Fate>,
    scopes: Vec<HubScope>,
    expected: Vec<Expected>,
    /// Messages of clients, and for them.
    pub(super) sent: u64,
    pub(super) delivered: u64,
    pub(super) refused: u64,
    /// Messages that may have been lost, with a lane.
    pub(super) excused: u64,
}

impl Ledger {
    pub(super) fn new(scopes: Vec<HubScope>) -> Ledger {
        Ledger { scopes, ..Ledger::default() }
    }

    pub(super) fn opened(&mut self, client: usize, socket: SocketId) {
        let member = Member {
            socket,
            views: BTreeMap::new(),
            next_ordinal: 0,
            pinned: BTreeMap::new(),
            is_odd: false,
            is_judged: false,
        };
        self.members.insert(client, member);
    }

    pub(super) fn odd(&mut self, client: usize) {
        if let Some(member) = self.members.get_mut(&client) {
            member.is_odd = true;
        }
    }

    // ---- what clients send --------------------------------------------------------------------------------------

    /// Numbers a view model of a client, to be asked for the first time.
    pub(super) fn next_ordinal(&mut self, client: usize) -> u64 {
        let member = self.members.get_mut(&client).expect("it is open");
        member.next_ordinal += 1;
        member.next_ordinal
    }

    /// A request; the number of its turn and the view model's ordinal.
    pub(super) fn requested(
        &mut self,
        client: usize,
        upstream: usize,
        view: &str,
        ordinal: u64,
        now: Time,
    ) -> (u64, u64) {
        self.sent += 1;
        let member = self.members.get_mut(&client).expect("it is open");
        let lane = member.pinned.get(&upstream).copied();
        let entry = member.views.entry(view.into()).or_insert_with(|| View {
            upstream,
            ordinal,
            requests: Vec::new(),
            updates: Vec::new(),
            last_applied: 0,
            last_answered: 0,
            missed: None,
            is_out_of_turn: false,
            is_disposed: false,
            disposed: None,
            is_refused: false,
            shown: None,
            heard: HashSet::new(),
            newest: HashMap::new(),
            left_out: HashSet::new(),
        });
        if entry.is_disposed {
            // The same name, another view model.
            entry.is_disposed = false;
            entry.shown = None;
            entry.ordinal = ordinal;
        }
        entry.requests.push(Sent { at: now, lane, applied: false, answered: false });
        (entry.requests.len() as u64, entry.ordinal)
    }

    /// An update's number.
    pub(super) fn updated(&mut self, client: usize, view: &str, now: Time) -> u64 {
        self.sent += 1;
        let member = self.members.get_mut(&client).expect("it is open");
        let entry = member.views.get_mut(view).expect("it was requested");
        let lane = member.pinned.get(&entry.upstream).copied();
        entry.updates.push(Sent { at: now, lane, applied: false, answered: false });
        entry.updates.len() as u64
    }

    pub(super) fn disposed(&mut self, client: usize, view: &str, now: Time) {
        self.sent += 1;
        let member = self.members.get_mut(&client).expect("it is open");
        let children = format!("{view}.");
        for (name, entry) in &mut member.views {
            if name == view || name.starts_with(&children) {
                entry.is_disposed = true;
                entry.disposed = Some(now);
            }
        }
    }

    // ---- what app servers see -----------------------------------------------------------------------------------

    /// A message of a client has reached an app server: it is pinned to this lane.
    pub(super) fn seen(&mut self, client: usize, upstream: usize, lane: usize) {
        if let Some(member) = self.members.get_mut(&client) {
            member.pinned.insert(upstream, lane);
        }
    }

    pub(super) fn on_request(
        &mut self,
        upstream: usize,
        client: usize,
        view: &str,
        argument: &Value,
    ) -> Result<(), String> {
        self.is_its_own(client, argument, view)?;
        let entry = self.view(upstream, client, view)?;
        let number = argument["r"].as_u64().unwrap_or_default();
        let sent = entry.requests.get_mut(number.wrapping_sub(1) as usize);
        let sent = sent.ok_or_else(|| format!("client {client} never sent request {number} of {view}"))?;
        sent.applied = true;
        Ok(())
    }

    /// A view model was made behind one that its client had asked for later: the first request of it was refused, as the client may not
    /// know yet, and another one was not.
    pub(super) fn out_of_turn(&mut self, client: usize, view: &str) {
        if let Some(entry) = self.members.get_mut(&client).and_then(|member| member.views.get_mut(view)) {
            // Nothing of it matters where it has been disposed of since.
            entry.is_out_of_turn |= !entry.is_disposed;
        }
    }

    /// Whoever sees it says whether it has the view model.
    pub(super) fn on_update(
        &mut self,
        upstream: usize,
        client: usize,
        view: &str,
        data: &Value,
        is_known: bool,
    ) -> Result<(), String> {
        self.is_its_own(client, data, view)?;
        let entry = self.view(upstream, client, view)?;
        let number = data["n"].as_u64().unwrap_or_default();
        if number <= entry.last_applied {
            let newest = entry.last_applied;
            return Err(format!("update {number} of {view} of client {client} comes behind {newest}, or again"));
        }
        entry.last_applied = number;
        let sent = entry.updates.get_mut(number as usize - 1);
        let sent = sent.ok_or_else(|| format!("client {client} never sent update {number} of {view}"))?;
        sent.applied = true;
        // What was disposed of behind it need not be there, if it has to wait for a lane.
        let is_wanted = entry.disposed.is_none_or(|disposed| disposed < sent.at);
        if !is_known && is_wanted {
            entry.missed.get_or_insert(number);
        }
        Ok(())
    }

    fn view(&mut self, upstream: usize, client: usize, view: &str) -> Result<&mut View, String> {
        if !view.starts_with(letter(upstream)) {
            return Err(format!("{view} of client {client} reached upstream {upstream}"));
        }
        let member = self.members.get_mut(&client).ok_or_else(|| format!("client {client} never opened"))?;
        member.views.get_mut(view).ok_or_else(|| format!("client {client} never asked for {view}"))
    }

    fn is_its_own(&self, client: usize, said: &Value, view: &str) -> Result<(), String> {
        if said["c"].as_u64() == Some(client as u64) {
            return Ok(());
        }
        Err(format!("a message of {view} came in the context of client {client} and says {said}"))
    }

    /// An app server says something to a member of a group over a lane.
    pub(super) fn expects(
        &mut self,
        client: usize,
        view: &str,
        number: (usize, u64, u64),
        lane: usize,
        is_left_out: bool,
        network: &Network,
    ) {
        let Some(member) = self.members.get_mut(&client) else { return };
        let upstream_lane = member.pinned.values().any(|pinned| *pinned == lane);
        let Some(entry) = member.views.get_mut(view) else { return };
        if is_left_out {
            // By an id that it has no more it cannot be left out: it may be a member by the new one already (contract 6.3).
            if upstream_lane {
                entry.left_out.insert(number);
            }
        } else if upstream_lane && network.socket(self.lanes[lane].socket).broken.is_none() {
            self.expected.push(Expected { client, view: view.into(), number, lane });
        }
    }

    // ---- what clients are told ----------------------------------------------------------------------------------

    pub(super) fn on_response(&mut self, client: usize, view: &str, data: &Value, now: Time) -> Result<(), String> {
        self.delivered += 1;
        let server = data["u"].as_u64().unwrap_or(u64::MAX) as usize;
        let upstream = data["up"].as_u64().unwrap_or(u64::MAX) as usize;
        let scope = self.scopes.get(upstream).copied();
        let member = self.members.get_mut(&client).ok_or("a response before the handshake's answer")?;
        let entry = member.views.get_mut(view);
        let entry = entry.ok_or_else(|| format!("client {client} is told of {view}, which it never asked for"))?;
        if data["ExceptionType"].is_string() {
            entry.is_refused = true;
            self.refused += 1;
            return Ok(());
        }
        if upstream != entry.upstream {
            return Err(format!("client {client} is told of {view} by upstream {upstream}: {data}"));
        }
        let is_own = data["c"].as_u64() == Some(client as u64);
        if let Some(number) = data["r"].as_u64() {
            let sent = entry.requests.get_mut(number.wrapping_sub(1) as usize).filter(|_| is_own);
            let sent = sent.ok_or_else(|| format!("client {client} is shown a state that is not its own: {data}"))?;
            sent.answered = true;
            entry.shown.get_or_insert(now);
            return Ok(());
        }
        if let Some(number) = data["s"].as_u64() {
            let epoch = data["e"].as_u64().unwrap_or_default();
            let heard = (server, epoch, number);
            if entry.left_out.contains(&heard) {
                return Err(format!("client {client} was left out of {data} in {view}"));
            }
            if !entry.heard.insert(heard) {
                return Err(format!("client {client} hears {data} in {view} twice"));
            }
            let newest = entry.newest.entry((server, epoch)).or_default();
            if number < *newest && scope == Some(HubScope::Lane) {
                return Err(format!("client {client} hears {data} in {view} behind {newest}"));
            }
            *newest = number.max(*newest);
            if is_own {
                let sent = data["n"].as_u64().and_then(|number| entry.updates.get_mut(number as usize - 1));
                sent.ok_or_else(|| format!("client {client} never said {data}"))?.answered = true;
            }
            return Ok(());
        }
        if !is_own {
            return Err(format!("client {client} is told what is another one's: {data}"));
        }
        let number = data["n"].as_u64().unwrap_or_default();
        if number <= entry.last_answered {
            let newest = entry.last_answered;
            return Err(format!("client {client} has answer {number} of {view} behind {newest}, or again"));
        }
        entry.last_answered = number;
        let sent = entry.updates.get_mut(number as usize - 1);
        sent.ok_or_else(|| format!("client {client} never sent {data}"))?.answered = true;
        Ok(())
    }

    // ---- judgement ----------------------------------------------------------------------------------------------

    /// Has a lane been lost that a message sent then may have been on?
    fn may_be_lost(&self, network: &Network, sent: &Sent, shard: usize, name: &str, view: &View) -> bool {
        let upstream = view.upstream;
        let is_shared = !name[1..].starts_with("Echo");
        if is_shared && self.scopes[upstream] == HubScope::Node {
            // The app server tells all members over one lane, which may be a dead one until it hears of every end there (contract 3.3).
            let lately = |fate: &Fate| {
                let broken = network.socket(fate.socket).broken;
                fate.upstream == upstream && broken.is_some_and(|broken| broken.after(STALE) >= sent.at)
            };
            // Which also may overtake the client's join (contract 3.3).
            let has_joined = view.shown.is_some_and(|shown| shown.after(JOINING) < sent.at);
            return !has_joined || self.lanes.iter().any(lately);
        }
        let was_cut = |fate: &Fate| {
            let socket = network.socket(fate.socket);
            socket.broken.is_some() && socket.closed.is_none_or(|closed| closed >= sent.at)
        };
        match sent.lane.map(|lane| &self.lanes[lane]) {
            // Whole when it was sent, as far as anybody knew.
            Some(fate) if was_cut(fate) => true,
            Some(fate) if network.socket(fate.socket).broken.is_none() => false,
            _ => self.lanes.iter().any(|fate| fate.shard == shard && fate.upstream == upstream && was_cut(fate)),
        }
    }

    /// Judges the clients whose connections are whole: nothing of what they sent may be lost.
    pub(super) fn judge_messages(&mut self, network: &Network) -> Result<(), String> {
        let mut excused = 0;
        for (client, member) in &self.members {
            let socket = network.socket(member.socket);
            if socket.broken.is_some() {
                continue;
            }
            for (name, view) in &member.views {
                if view.is_refused {
                    continue;
                }
                if view.is_out_of_turn {
                    return Err(format!("{name} of client {client} was requested behind what was requested later"));
                }
                if let Some(number) = view.missed {
                    return Err(format!(
                        "update {number} of {name} of client {client} reached an app server without it"
                    ));
                }
                for (what, list) in [("request", &view.requests), ("update", &view.updates)] {
                    for (number, sent) in list.iter().enumerate().filter(|(_, sent)| !sent.answered) {
                        if self.may_be_lost(network, sent, socket.shard, name, view) {
                            excused += 1;
                            continue;
                        }
                        let fate = if sent.applied { "was not answered" } else { "was lost" };
                        let (number, at) = (number + 1, sent.at.0 as f64 / 1e9);
                        return Err(format!("{what} {number} of {name} of client {client}, sent at {at} s, {fate}"));
                    }
                }
            }
        }
        self.excused = excused;
        for Expected { client, view, number, lane } in &self.expected {
            let member = &self.members[client];
            let is_whole = network.socket(member.socket).broken.is_none();
            let is_lane_whole = network.socket(self.lanes[*lane].socket).broken.is_none();
            let entry = &member.views[view];
            if is_whole && is_lane_whole && !entry.is_refused && !entry.heard.contains(number) {
                return Err(format!("client {client} did not hear {number:?} in {view}"));
            }
        }
        Ok(())
    }

    /// Judges who was disconnected: nobody that gave no reason.
    pub(super) fn judge_ends(&mut self, network: &Network, closes_with_lanes: bool) -> Result<(), String> {
        let Ledger { members, lanes, .. } = self;
        for (client, member) in members {
            let socket = network.socket(member.socket);
            if member.is_judged || socket.broken.is_none() {
                continue;
            }
            member.is_judged = true;
            if !socket.broken_by_shard || member.is_odd {
                continue;
            }
            let is_lane_lost =
                || lanes.iter().any(|fate| fate.shard == socket.shard && network.socket(fate.socket).broken.is_some());
            if !(closes_with_lanes && is_lane_lost()) {
                return Err(format!("client {client} was disconnected and gave no reason"));
            }
        }
        Ok(())
    }

    /// Clients that are there, each with its live view models by upstream.
    pub(super) fn live(&self, network: &Network) -> BTreeMap<usize, BTreeMap<usize, BTreeSet<String>>> {
        let whole = self.members.iter().filter(|(_, member)| network.socket(member.socket).broken.is_none());
        let live = |member: &Member| {
            let mut by_upstream = BTreeMap::<usize, BTreeSet<String>>::new();
            for (name, view) in member.views.iter().filter(|(_, view)| view.is_live()) {
                by_upstream.entry(view.upstream).or_default().insert(name.clone());
            }
            by_upstream
        };
        whole.map(|(client, member)| (*client, live(member))).collect()
    }
}
