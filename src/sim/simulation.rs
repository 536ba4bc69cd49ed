//! A run: time that goes from one event to the next, shards that have their turns when something is there for them, and what befalls
//! everybody.
use super::app_server::AppServers;
use super::chance::Chance;
use super::client::{Client, Ways};
use super::ledger::{Fate, Ledger};
use super::network::{self, Network, Peer};
use super::scenario::Scenario;
use super::wire;
use super::world::World;
use super::{Event, Failure, Fault, Options, Report};
use crate::bus::{self, ControlOrder, Receiver, Sender, ShardOrder};
use crate::ids::{HubId, LaneIndex, LaneKey, ShardId, Time};
use crate::metrics::{Counter, Published};
use crate::session::routing::HubScope;
use crate::shard::{Listener, Residue, Shard};
use core::time::Duration;
use std::cell::RefCell;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;

/// Steps of a script that are followed, so that a run has an end.
const STEPS_MAX: usize = 200;

/// How long a shard is let alone after each stall, at least.
const BETWEEN_STALLS: Duration = Duration::from_secs(3);

/// A shard on its part of the world.
struct Runner {
    shard: Option<Shard<World>>,
    published: Arc<Published>,
    orders: Sender<ShardOrder>,
    /// It sleeps until then, unless something completes.
    wakes: Time,
    /// It works until then, or is not given the processor.
    busy_until: Time,
    /// It is not stalled again before.
    spared_until: Time,
    /// Clients that it had at once.
    clients_most: usize,
}

pub(super) struct Simulation {
    scenario: Scenario,
    network: Rc<RefCell<Network>>,
    runners: Vec<Runner>,
    from_shards: Receiver<ControlOrder>,
    to_control: Sender<ControlOrder>,
    control_listens: bool,
    servers: AppServers,
    clients: Vec<Client>,
    /// The present client of each user.
    users: Vec<Option<usize>>,
    ways: Ways,
    ledger: Ledger,
    /// Of upstreams whose lanes share one.
    node_hub: HubId,
    turns: u64,
    is_leaving: bool,
}

impl Simulation {
    pub(super) fn new(seed: u64, options: Options<'_>) -> Simulation {
        let mut chance = Chance::new(seed);
        let scenario = Scenario::new(&mut chance);
        let mut network = Network::new(chance, scenario.weather.clone(), scenario.shards);
        network.trace.is_told = options.is_told;
        network.sabotage = options.sabotage;
        let places = scenario.places();
        let encodings: Vec<_> = places.iter().map(|place| scenario.plan(*place).encoding).collect();
        let work_us = network.chance.one_of(&[100, 2_000, 50_000]);
        let node_hub = HubId::from_random(network.chance.bytes());
        if options.is_told {
            println!("{scenario:?}");
        }
        let network = Rc::new(RefCell::new(network));
        let (to_control, from_shards) = bus::channel().expect("a doorbell");
        let channels: Vec<_> = (0..scenario.shards).map(|_| bus::channel().expect("a doorbell")).collect();
        let ways: Vec<Sender<ShardOrder>> = channels.iter().map(|(orders, _)| orders.clone()).collect();
        let occupancy = scenario.occupancy();
        let runner = |(index, (orders, ordered))| {
            let socket = network::name();
            network.borrow_mut().listen(index, socket.as_raw_fd());
            let listener = Listener { socket, tls: None, is_unix: false };
            let world = World::new(network.clone(), index);
            let published = Arc::new(Published::new());
            let settings = scenario.settings(index, occupancy.clone());
            let (ways, to_control) = (ways.clone(), to_control.clone());
            let shard = Shard::new(settings, world, vec![listener], ways, ordered, to_control, published.clone());
            Runner {
                shard: Some(shard),
                published,
                orders,
                wakes: Time(0),
                busy_until: Time(0),
                spared_until: Time(0),
                clients_most: 0,
            }
        };
        let runners = channels.into_iter().enumerate().map(runner).collect();
        Simulation {
            runners,
            from_shards,
            to_control,
            control_listens: true,
            servers: AppServers::new(&places, &encodings, work_us),
            clients: Vec::new(),
            users: vec![None; scenario.users],
            ways: Ways {
                shards: scenario.shards,
                upstreams: scenario.upstreams.len(),
                act_every_ms: scenario.act_every_ms,
                client_timeout: scenario.client_timeout,
                is_quiet: false,
                is_scripted: options.script.is_some(),
            },
            ledger: Ledger::new(scenario.upstreams.iter().map(|plan| plan.scope).collect()),
            node_hub,
            turns: 0,
            is_leaving: false,
            scenario,
            network,
        }
    }

    pub(super) fn report(&self) -> Report {
        let network = self.network.borrow();
        let Ledger { members, sent, delivered, refused, excused, .. } = &self.ledger;
        Report {
            checksum: network.trace.checksum(),
            steps: network.trace.steps,
            turns: self.turns,
            clients: members.len() as u64,
            sent: *sent,
            delivered: *delivered,
            refused: *refused,
            excused: *excused,
            lanes: self.servers.lanes.len() as u64,
            faults: network.faults.clone(),
        }
    }

    pub(super) fn failure(&self, seed: u64, rule: String) -> Failure {
        let network = self.network.borrow();
        Failure { seed, rule, step: network.trace.steps, last: network.trace.last() }
    }

    fn now(&self) -> Time {
        self.network.borrow().now
    }

    // ---- the parts of a run -------------------------------------------------------------------------------------

    pub(super) fn live(&mut self, script: Option<&[u8]>) -> Result<(), String> {
        self.begin();
        match script {
            None => self.run_for(self.scenario.rough)?,
            Some(script) => self.follow(script)?,
        }
        self.calm();
        // Longer than anybody waits for anybody: a lane cut in silence is missed after 30 s, at either end.
        self.run_for(Duration::from_secs(75))?;
        self.judge()?;
        for client in &mut self.clients {
            client.probes(&mut self.ledger, &mut self.network.borrow_mut());
        }
        self.run_for(Duration::from_secs(10))?;
        self.judge()?;
        let there = self.open_clients();
        if !self.scenario.is_stopped_early {
            self.leave();
            self.run_for(Duration::from_secs(75))?;
            self.judge_rest()?;
            return self.stop();
        }
        self.is_leaving = true;
        self.stop()?;
        if let Some(client) = there.iter().find(|client| !self.clients[**client].is_asked_back()) {
            return Err(format!("client {client} is not asked to come back when its node stops"));
        }
        match self.servers.is_empty() {
            true => Ok(()),
            false => Err("an app server is not told who leaves with its node".into()),
        }
    }

    fn begin(&mut self) {
        let mut network = self.network.borrow_mut();
        let now = network.now;
        for shard in 0..self.runners.len() {
            for index in 0..self.scenario.lanes().len() {
                let lane = LaneKey { shard: ShardId(shard as u8), index: LaneIndex(index as u16) };
                let when = network.chance.soon(now, 0, 300);
                network.at(when, Event::Dial { lane });
            }
        }
        for user in 0..self.scenario.users {
            let when = network.chance.soon(now, 0, 3_000);
            network.at(when, Event::UserReturns { user });
        }
        if !self.ways.is_scripted {
            let when = network.chance.soon(now, 0, self.scenario.fault_every_ms);
            network.at(when, Event::Fault);
        }
    }

    /// What a script says: three bytes a step, for what happens, to whom, and how long after the last one.
    fn follow(&mut self, script: &[u8]) -> Result<(), String> {
        // Everybody is there.
        self.run_for(Duration::from_secs(4))?;
        for step in script.chunks_exact(3).take(STEPS_MAX) {
            let [what, whom, pause] = [step[0], step[1], step[2]].map(usize::from);
            // From nothing at all to 16 s.
            self.run_for(Duration::from_micros((pause * pause * 256) as u64))?;
            let network = self.network.clone();
            let network = &mut *network.borrow_mut();
            match Fault::BY_CHANCE.get(what) {
                Some(fault) => self.befalls(*fault, whom, network),
                None => {
                    let open = self.open_clients();
                    if !open.is_empty() {
                        let client = open[whom % open.len()];
                        self.clients[client].does(what % 100, &self.ways, &mut self.ledger, network);
                    }
                }
            }
        }
        Ok(())
    }

    fn open_clients(&self) -> Vec<usize> {
        (0..self.clients.len()).filter(|client| self.clients[*client].is_open()).collect()
    }

    /// Nothing goes wrong any more, and nobody begins anything.
    fn calm(&mut self) {
        let mut network = self.network.borrow_mut();
        network.note("calm", [0; 3]);
        network.is_rough = false;
        self.ways.is_quiet = true;
    }

    fn judge(&mut self) -> Result<(), String> {
        let network = self.network.borrow();
        self.ledger.judge_messages(&network)?;
        for client in &self.clients {
            let is_whole = network.socket(client.socket()).broken.is_none();
            // Where there is room for few only, some go on trying.
            if is_whole && !client.is_open() && !self.scenario.has_few_places() {
                return Err(format!("client {} does not get in", client.number()));
            }
        }
        self.servers.judge(&self.ledger.live(&network))
    }

    fn leave(&mut self) {
        self.is_leaving = true;
        let mut network = self.network.borrow_mut();
        network.note("everybody leaves", [0; 3]);
        for client in &mut self.clients {
            client.leave(&mut self.ledger, &mut network);
        }
        for socket in network.severed() {
            if matches!(network.socket(socket).peer, Peer::Client(_)) {
                network.times_out(socket);
            }
        }
    }

    /// Everybody has left: nothing of anybody is there.
    fn judge_rest(&self) -> Result<(), String> {
        if !self.servers.is_empty() {
            return Err("an app server remembers somebody when all have left".into());
        }
        let sum = |counter| self.runners.iter().map(|runner| runner.published.counter(counter)).sum::<u64>();
        let series = |family: &str| -> u64 {
            Counter::ALL.iter().filter(|counter| counter.series().family == family).map(|counter| sum(*counter)).sum()
        };
        let (opened, ended) = (series("clients_opened"), series("client_ends"));
        if opened != ended {
            return Err(format!("{opened} clients began and {ended} ended"));
        }
        let (accepted, closed) = (sum(Counter::ConnectionsAccepted), sum(Counter::ConnectionsClosed));
        if accepted != closed {
            return Err(format!("{accepted} connections were accepted and {closed} closed"));
        }
        for (index, runner) in self.runners.iter().enumerate() {
            let shard = runner.shard.as_ref().ok_or("a shard has stopped by itself")?;
            let residue = shard.residue();
            if !residue.is_empty() {
                return Err(format!("shard {index} keeps {residue:?} when all have left"));
            }
            let lent = self.network.borrow().buffers_lent(index);
            if lent > 0 {
                return Err(format!("shard {index} keeps {lent} receive buffers"));
            }
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), String> {
        for (shard, runner) in self.runners.iter().enumerate() {
            let _ = runner.orders.send(ShardOrder::Stop);
            self.network.borrow_mut().ring_doorbell(shard);
        }
        self.run_for(Duration::from_secs(10))?;
        if self.runners.iter().any(|runner| runner.shard.is_some()) {
            return Err("a shard does not stop".into());
        }
        match self.network.borrow().open_sockets() {
            0 => Ok(()),
            open => Err(format!("{open} sockets are open when all shards have stopped")),
        }
    }

    // ---- time ---------------------------------------------------------------------------------------------------

    fn run_for(&mut self, duration: Duration) -> Result<(), String> {
        let until = self.now().after(duration);
        loop {
            let next_turn = (0..self.runners.len()).map(|shard| self.turn_at(shard)).min().unwrap_or(Time::NEVER);
            let next = self.network.borrow().next_event().min(next_turn);
            if next > until {
                self.network.borrow_mut().now = until;
                return Ok(());
            }
            let now = self.now().max(next);
            self.network.borrow_mut().now = now;
            loop {
                let Some(event) = self.network.borrow_mut().take_event() else { break };
                self.happens(event)?;
            }
            for shard in 0..self.runners.len() {
                if self.turn_at(shard) <= now {
                    self.turn(shard)?;
                }
            }
        }
    }

    /// When a shard has its next turn: never without a reason, or a wake that it forgot to ask for would not be missed.
    fn turn_at(&self, shard: usize) -> Time {
        let Runner { shard: Some(_), wakes, busy_until, .. } = &self.runners[shard] else { return Time::NEVER };
        let network = self.network.borrow();
        let wants = if network.has_completions(shard) { network.now } else { *wakes };
        wants.max(*busy_until).max(network.now)
    }

    fn turn(&mut self, shard: usize) -> Result<(), String> {
        self.turns += 1;
        let Some(this) = &mut self.runners[shard].shard else { return Ok(()) };
        let goes_on = this.turn();
        // Asked once, as the loop asks before it sleeps.
        let (wakes, Residue { clients, replays, .. }) = (this.next_wake(), this.residue());
        self.runners[shard].wakes = wakes;
        // A client may stand in front of a lane that it has left since, but only once in front of each.
        let most = self.runners[shard].clients_most.max(clients);
        self.runners[shard].clients_most = most;
        if replays > most * self.scenario.lanes().len() {
            return Err(format!("{replays} replays wait, and there were never more than {most} clients"));
        }
        {
            let mut network = self.network.borrow_mut();
            network.submit(shard);
            let work = Duration::from_micros(network.chance.between(1, 300));
            self.runners[shard].busy_until = network.now.after(work);
            // What shards order each other rings, too.
            for (other, runner) in self.runners.iter().enumerate() {
                if !runner.orders.is_empty() {
                    network.ring_doorbell(other);
                }
            }
        }
        if !goes_on && let Some(this) = self.runners[shard].shard.take() {
            self.network.borrow_mut().end_kernel(shard);
            this.end();
        }
        self.control();
        let broken = self.network.borrow_mut().broken.take();
        match broken {
            Some(rule) => Err(rule),
            None if self.is_leaving => Ok(()),
            None => self.ledger.judge_ends(&self.network.borrow(), self.scenario.ends_with_lanes()),
        }
    }

    fn happens(&mut self, event: Event) -> Result<(), String> {
        let network = self.network.clone();
        let network = &mut *network.borrow_mut();
        match event {
            Event::Arrives { socket, to } => {
                if network.arrives(socket, to) {
                    match network.socket(socket).peer {
                        Peer::Client(client) => {
                            self.clients[client].on_bytes(socket, &self.ways, &mut self.ledger, network)?;
                        }
                        Peer::Lane(lane) => self.servers.on_bytes(lane, network)?,
                    }
                }
            }
            Event::ClientActs { client } => self.clients[client].acts(&self.ways, &mut self.ledger, network),
            Event::ClientPing { client } => self.clients[client].ping(network),
            Event::ClientReads { client, socket } => {
                network.read_on(socket);
                self.clients[client].on_bytes(socket, &self.ways, &mut self.ledger, network)?;
            }
            Event::UserReturns { user } => self.user_returns(user, network),
            Event::LaneWorks { lane } => self.servers.works(lane, &mut self.ledger, network)?,
            Event::LanePing { lane } => self.servers.ping(lane, network),
            Event::Dial { lane } => self.dial(lane, network),
            Event::ServerStarts { server } => self.servers.servers[server].is_up = true,
            Event::ControlListens => self.control_listens = true,
            Event::Fault => self.something_befalls(network),
        }
        Ok(())
    }

    // ---- users, and the control plane ---------------------------------------------------------------------------

    fn user_returns(&mut self, user: usize, network: &mut Network) {
        let is_there = self.users[user].is_some_and(|client| !self.clients[client].is_gone());
        if self.is_leaving || is_there {
            return;
        }
        let number = self.clients.len();
        self.clients.push(Client::connect(user, number, &self.ways, network));
        self.users[user] = Some(number);
    }

    /// What shards report is heard, and done something about later.
    fn control(&mut self) {
        if !self.control_listens {
            return;
        }
        let mut network = self.network.borrow_mut();
        while let Some(order) = self.from_shards.try_next() {
            if let ControlOrder::LaneLost { lane } = order {
                network.note("lane lost", [lane.shard.0.into(), lane.index.0.into(), 0]);
                let now = network.now;
                let when = network.chance.soon(now, 50, 1_500);
                network.at(when, Event::Dial { lane });
            }
        }
    }

    fn dial(&mut self, key: LaneKey, network: &mut Network) {
        let (shard, place) = (usize::from(key.shard.0), self.scenario.lanes()[usize::from(key.index.0)]);
        let server = self.servers.servers.iter().position(|server| server.place == place).expect("each place has one");
        if !self.servers.servers[server].is_up {
            let when = network.chance.soon(network.now, 200, 2_000);
            return network.at(when, Event::Dial { lane: key });
        }
        let lane = self.servers.lanes.len();
        let (socket, descriptor) = network.dial(lane, shard);
        network.note("lane", [lane as u64, shard as u64, socket as u64]);
        self.servers.connected(server, socket, network);
        self.ledger.lanes.push(Fate { shard, upstream: usize::from(place.upstream.0), socket });
        let hub_id = match self.scenario.plan(place).scope {
            HubScope::Lane => HubId::from_random(network.chance.bytes()),
            HubScope::Node => self.node_hub,
        };
        // Some of what the app server says at first is read with the end of the handshake.
        let hello = wire::frame(wire::PING, true, None, b"hello");
        let (early, rest) = hello.split_at(network.chance.below(hello.len() + 1));
        network.peer_sends(socket, rest);
        let order =
            ShardOrder::LaneUp { index: key.index, socket: descriptor, hub_id, early: early.to_vec(), tls: None };
        // A shard that has ended needs no lane.
        let _ = self.runners[shard].orders.send(order);
        network.ring_doorbell(shard);
    }

    // ---- what befalls everybody ---------------------------------------------------------------------------------

    fn something_befalls(&mut self, network: &mut Network) {
        if !network.is_rough || self.scenario.faults.is_empty() {
            return;
        }
        let when = network.chance.soon(network.now, 10, self.scenario.fault_every_ms);
        network.at(when, Event::Fault);
        let fault = network.chance.one_of(&self.scenario.faults);
        let whom = network.chance.below(1 << 16);
        self.befalls(fault, whom, network);
    }

    /// `whom`: a number that is taken for one of those whom it can befall.
    fn befalls(&mut self, fault: Fault, whom: usize, network: &mut Network) {
        let (shard, now) = (whom % self.runners.len(), network.now);
        match fault {
            Fault::AcceptFails => {
                let errno = network.chance.one_of(&[libc::EMFILE, libc::ENOMEM, libc::ECONNABORTED]);
                network.fail_accept(shard, errno);
            }
            // Not one after the other: a shard that gets nowhere for as long as its clients' timeout may take them for gone.
            Fault::Stall if now >= self.runners[shard].spared_until => {
                network.fault(fault);
                let until = network.chance.soon(now, 50, 2_500);
                self.runners[shard].busy_until = until;
                self.runners[shard].spared_until = until.after(BETWEEN_STALLS);
            }
            Fault::Stall => {}
            Fault::ClockJump => {
                network.fault(fault);
                let ticks = network.chance.between(0, 3600 * 10_000_000);
                network.wall = if network.chance.happens(500) { network.wall + ticks } else { network.wall - ticks };
            }
            Fault::ControlFull => {
                network.fault(fault);
                // Of no shard that is there.
                while self.to_control.send(ControlOrder::Stopped { shard: ShardId(u8::MAX) }).is_ok() {}
                self.control_listens = false;
                let when = network.chance.soon(now, 100, 5_000);
                network.at(when, Event::ControlListens);
            }
            Fault::ClientReset | Fault::ClientSilent | Fault::ClientSlow => {
                let open = self.open_clients();
                if !open.is_empty() {
                    let client = open[whom % open.len()];
                    network.note(fault.words(), [client as u64, 0, 0]);
                    self.clients[client].suffers(fault, &mut self.ledger, network);
                }
            }
            Fault::ServerRestart => {
                let server = whom % self.servers.servers.len();
                if !self.servers.servers[server].is_up {
                    return;
                }
                network.fault(fault);
                network.note(fault.words(), [server as u64, 0, 0]);
                self.servers.crash(server, network);
                let when = network.chance.soon(now, 100, 8_000);
                network.at(when, Event::ServerStarts { server });
            }
            _ => {
                let lanes = &self.servers.lanes;
                // What froze and is cut in silence goes on by itself one day, and nobody can tell it what happened meanwhile.
                let may_suffer = |lane: &usize| match fault {
                    Fault::LaneFrozen => !network.socket(lanes[*lane].socket).is_severed,
                    Fault::LaneSilent => lanes[*lane].frozen_until <= now,
                    _ => true,
                };
                let open = (0..lanes.len()).filter(|lane| lanes[*lane].is_open && may_suffer(lane));
                let open: Vec<usize> = open.collect();
                if open.is_empty() {
                    return;
                }
                let lane = open[whom % open.len()];
                network.fault(fault);
                network.note(fault.words(), [lane as u64, 0, 0]);
                if fault == Fault::LaneFrozen {
                    let until = network.chance.soon(now, 500, 20_000);
                    self.servers.freeze(lane, until);
                } else {
                    self.servers.end_lane(lane, fault, network);
                }
            }
        }
    }
}
