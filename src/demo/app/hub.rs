//! What the app server knows and does: connections, bindings, controllers and their view models (contract 2.5, 3, 4.4, 4.7).
//!
//! One lock around it all: a hub method runs to its end before anybody else's, which no real app server guarantees, and none of its
//! clients can tell apart from one that is lucky. What takes time (`SlowVM`) waits outside the lock and holds up its connection only.
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bindings::{Bindings, ConnectionId, HubId};
use super::context::{self, Origin};
use super::hooks::{Fail, How, Slow};
use super::observer::{Observer, ObserverSnapshot};
use super::outbox::Outbox;
use super::protocol::{Argument, Forwarded, Outbound, Protocol};
use super::vm::{self, Effect, Exception, Object, Sharing, Turn, ViewModel};
use super::wire::Fault;

/// Ids whose return would be a leak are remembered, the oldest forgotten first.
const DEPARTED_MAX: usize = 500_000;
/// View models in view models. A real server would recurse until its stack ends.
const NESTING_MAX: usize = 16;

/// A snapshot of the double, as `GET /__double` shows it. Counters only grow; the others are how many there are now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Origin ids bound to a lane, dead or alive.
    pub bindings: usize,
    /// Controllers, one per origin id or direct client; `OnDisconnectedAsync` removes them.
    pub controllers: usize,
    /// View models in all controllers; a shared one counts once for each of its members.
    pub view_models: usize,
    /// Multicast instances.
    pub shared_view_models: usize,
    /// Connections that requested view models themselves; an idle lane is none.
    pub direct_clients: usize,
    /// Connections that called `Invoke`.
    pub lanes: usize,
    /// Those among them that speak MessagePack.
    pub message_pack_lanes: usize,
    /// Counter: messages that brought an origin id back after its disconnect (contract 4.2, 4.7).
    pub leaks: u64,
    /// Counter: sends to a connection that does not exist (contract 3.3).
    pub lost_sends: u64,
    /// Counter: updates of view models that the controller does not have (contract 4.2).
    pub dropped_updates: u64,
    /// Counter: requests for view models that the controller has already: allowed, and answered with their state (contract 1.3).
    pub repeated_requests: u64,
    /// Counter: invocations that failed: unknown method, arguments, conversion, context.
    pub failed_invocations: u64,
    /// Counter: `Invoke`s received.
    pub invokes: u64,
    /// Distinct hub ids among the bindings, in the order of their oldest binding.
    pub hub_ids: Vec<Option<String>>,
    /// Counter: connections closed for a message over the limit (contract 4.6).
    pub oversized: u64,
    /// Counter: `Invoke`s of names that are no method: the middleware pipeline only.
    pub unknown_methods: u64,
    /// Counter: connections closed for a malformed message.
    pub protocol_errors: u64,
    /// Counter: connections closed because they went silent.
    pub timeouts: u64,
    /// Counter: connections given up because they did not read.
    pub slow_connections: u64,
}

/// One line of `GET /__double/lanes`: a connection that called `Invoke`, or that bindings still name although it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneSnapshot {
    /// The lane's connection id here.
    pub lane: String,
    pub alive: bool,
    /// Origin ids bound to it, in the order in which they came.
    pub clients: Vec<String>,
    /// Distinct hub ids of these, in the same order.
    pub hub_ids: Vec<Option<String>>,
}

/// One line of `GET /__double/bindings`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindingSnapshot {
    pub connection_id: String,
    pub hub_id: Option<String>,
    /// The lane's connection id here.
    pub lane: String,
    pub lane_alive: bool,
    /// JSON text of the context the binding keeps: the first message's.
    pub first_context: String,
    /// JSON text of the context in the latest message.
    pub last_context: String,
    /// What else was in the metadata of the latest message, and so in the lane's `Items` (contract 2.3).
    pub last_items: BTreeMap<String, String>,
}

/// A hub method threw or could not be called: the completion's error.
#[derive(Debug, PartialEq, Eq)]
pub struct Failed;

/// A converted call, ready to run for a client.
#[derive(Debug)]
pub enum Command {
    Request {
        vm_id: String,
        argument: Object,
    },
    /// `None`: null, which the server ignores.
    Update {
        vm_id: String,
        data: Option<Object>,
    },
    Dispose {
        vm_id: String,
    },
    Disconnected,
}

impl Command {
    /// The view model it is for.
    pub fn vm_id(&self) -> Option<&str> {
        match self {
            Command::Request { vm_id, .. } | Command::Update { vm_id, .. } | Command::Dispose { vm_id } => Some(vm_id),
            Command::Disconnected => None,
        }
    }
}

#[derive(Default)]
pub struct Counters {
    pub leaks: u64,
    pub lost_sends: u64,
    pub dropped_updates: u64,
    pub repeated_requests: u64,
    pub failed_invocations: u64,
    pub invokes: u64,
    pub oversized: u64,
    pub unknown_methods: u64,
    pub protocol_errors: u64,
    pub timeouts: u64,
    pub slow_connections: u64,
}

pub struct Hub {
    own_hub_id: Arc<str>,
    connections: HashMap<ConnectionId, Connection>,
    bindings: Bindings,
    /// Of the latest message per bound origin id, for introspection only.
    last_metadata: HashMap<ConnectionId, LastMetadata>,
    controllers: HashMap<ConnectionId, Controller>,
    shared: HashMap<SharedKey, Shared>,
    /// SignalR groups of the app server's own clients.
    groups: HashMap<String, HashSet<ConnectionId>>,
    departed: Departed,
    timers: BTreeMap<(Instant, u64), Timer>,
    next_id: u64,
    /// What a test has made slow.
    slow: Vec<Slow>,
    /// What a test wants to fail.
    failing: Vec<Fail>,
    /// There if it is one.
    pub observer: Option<Observer>,
    pub counters: Counters,
}

struct Connection {
    outbox: Arc<Outbox>,
    fault: Fault,
    protocol: Protocol,
    user: Option<String>,
    /// It called `Invoke` at least once.
    is_lane: bool,
    /// `Context.Items`: the metadata of the last `Invoke`.
    items: Vec<(String, Argument)>,
}

#[derive(Default)]
struct LastMetadata {
    context: String,
    items: BTreeMap<String, String>,
}

#[derive(Default)]
struct Controller {
    view_models: BTreeMap<String, Instance>,
}

enum Instance {
    Own { view_model: Box<dyn ViewModel>, generation: u64 },
    Shared { key: SharedKey, order: u64 },
}

impl Connection {
    /// The `Items` but for the context, as text.
    fn other_items(&self) -> BTreeMap<String, String> {
        let others = self.items.iter().filter(|(name, _)| name != context::KEY);
        others.map(|(name, value)| (name.clone(), value.text().to_owned())).collect()
    }
}

/// Multicast instances are found by type and group; the instance id does not take part.
type SharedKey = (&'static str, Option<String>);

struct Shared {
    view_model: Box<dyn ViewModel>,
    generation: u64,
    /// In order of joining; the first one's vm id is used for pushes.
    members: BTreeMap<u64, (ConnectionId, String)>,
}

/// The instance a turn belongs to.
#[derive(Clone)]
enum Source {
    Own { connection_id: ConnectionId, vm_id: String, generation: u64 },
    Shared { key: SharedKey, generation: u64 },
}

struct Timer {
    source: Source,
    tag: String,
}

#[derive(Default)]
struct Departed {
    ids: HashSet<ConnectionId>,
    order: VecDeque<ConnectionId>,
}

impl Departed {
    fn insert(&mut self, id: &ConnectionId) {
        if self.ids.insert(id.clone()) {
            self.order.push_back(id.clone());
            if self.order.len() > DEPARTED_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.ids.remove(&oldest);
            }
        }
    }
}

impl Hub {
    pub fn new(own_hub_id: Arc<str>, is_observer: bool) -> Self {
        Hub {
            own_hub_id,
            connections: HashMap::new(),
            bindings: Bindings::default(),
            last_metadata: HashMap::new(),
            controllers: HashMap::new(),
            shared: HashMap::new(),
            groups: HashMap::new(),
            departed: Departed::default(),
            timers: BTreeMap::new(),
            next_id: 0,
            slow: Vec::new(),
            failing: Vec::new(),
            observer: is_observer.then(Observer::default),
            counters: Counters::default(),
        }
    }

    // ---- connections --------------------------------------------------------------------------------------------

    pub fn connected(
        &mut self,
        id: &ConnectionId,
        protocol: Protocol,
        user: Option<String>,
        outbox: Arc<Outbox>,
        fault: Fault,
    ) {
        let connection = Connection { outbox, fault, protocol, user, is_lane: false, items: Vec::new() };
        let replaced = self.connections.insert(id.clone(), connection);
        assert!(replaced.is_none(), "connection ids are random and used once");
    }

    /// A real disconnect. dotNetify's handler looks into the connection's `Items` and so disconnects the client whose message the
    /// lane carried last, innocent or not; the lane's other bindings stay (contract 4.4).
    pub fn disconnected(&mut self, id: &ConnectionId) {
        let Some(connection) = self.connections.remove(id) else { return };
        self.groups.retain(|_, members| {
            members.remove(id);
            !members.is_empty()
        });
        match context::origin(&connection.items, &self.own_hub_id) {
            Ok(Some(origin)) => match &mut self.observer {
                Some(observer) => observer.lane_lost(&origin.connection_id),
                None => self.depart(&origin.connection_id),
            },
            Ok(None) => self.depart(id),
            Err(_) => tracing::warn!(connection = %id, "the last context of a closed connection cannot be read"),
        }
    }

    /// Ends a connection, or else all lanes; their readers do the rest. Returns how many.
    pub fn close(&self, lane: Option<&str>, how: How) -> usize {
        let mut closed = 0;
        for connection in self.meant(lane).map(|(_, connection)| connection) {
            closed += 1;
            match how {
                How::Cut => connection.outbox.abandon(),
                How::Reset => connection.fault.reset(),
                How::Goodbye => {
                    let goodbye = Outbound::Close { error: None, allow_reconnect: true };
                    let _ = connection.outbox.push(&connection.protocol.encode(&goodbye));
                    connection.outbox.give_up();
                }
            }
        }
        closed
    }

    /// The socket of a connection, or those of all lanes.
    pub fn faults(&self, lane: Option<&str>) -> Vec<Fault> {
        self.meant(lane).map(|(_, connection)| connection.fault.clone()).collect()
    }

    /// A connection, or all lanes.
    pub fn ids(&self, lane: Option<&str>) -> Vec<ConnectionId> {
        self.meant(lane).map(|(id, _)| id.clone()).collect()
    }

    fn meant(&self, lane: Option<&str>) -> impl Iterator<Item = (&ConnectionId, &Connection)> {
        let is_meant = move |(id, connection): &(&ConnectionId, &Connection)| match lane {
            Some(lane) => ***id == *lane,
            None => connection.is_lane,
        };
        self.connections.iter().filter(is_meant)
    }

    pub fn fail(&mut self, fail: Fail) {
        if fail.times > 0 {
            self.failing.push(fail);
        }
    }

    /// Whether a test wants this invocation to fail, as one whose arguments cannot be converted: before anything is bound (contract 2.5).
    pub fn is_to_fail(&mut self, connection_id: &str, command: Option<&Command>) -> bool {
        let Some(fail) =
            self.failing.iter_mut().find(|fail| fail.concerns(connection_id, command.and_then(Command::vm_id)))
        else {
            return false;
        };
        fail.times -= 1;
        self.failing.retain(|fail| fail.times > 0);
        true
    }

    /// Replaces the lane's `Items` by an `Invoke`'s metadata (contract 2.5, step 1).
    pub fn invoked(&mut self, lane: &ConnectionId, metadata: Vec<(String, Argument)>) {
        self.counters.invokes += 1;
        if let Some(connection) = self.connections.get_mut(lane) {
            connection.is_lane = true;
            connection.items = metadata;
        }
    }

    /// The client of a message: the origin of its context, which is bound to this lane if it is not bound yet (contract 2.5, step 4),
    /// or the connection itself.
    pub fn touch(&mut self, connection_id: &ConnectionId, origin: Option<Origin>) -> ConnectionId {
        let Some(origin) = origin else { return connection_id.clone() };
        self.bindings.bind(&origin.connection_id, connection_id, &origin.hub_id, &origin.text);
        let items = self.connections.get(connection_id).map_or_else(BTreeMap::new, Connection::other_items);
        let last = LastMetadata { context: origin.text, items };
        self.last_metadata.insert(origin.connection_id.clone(), last);
        origin.connection_id
    }

    // ---- hub methods --------------------------------------------------------------------------------------------

    /// How long the command will hold up its connection.
    pub fn delay(&self, connection_id: &ConnectionId, client: &ConnectionId, command: &Command) -> Duration {
        let has = |vm_id: &str| self.controllers.get(client).is_some_and(|held| held.view_models.contains_key(vm_id));
        let (vm_id, own) = match command {
            Command::Request { vm_id, argument } if !has(vm_id) => {
                (Some(vm_id), vm::creation_delay(vm::type_name(vm_id), argument))
            }
            Command::Update { vm_id, data: Some(data) } if has(vm_id) => {
                (Some(vm_id), vm::update_delay(vm::type_name(vm_id), data))
            }
            Command::Request { vm_id, .. } | Command::Update { vm_id, .. } | Command::Dispose { vm_id } => {
                (Some(vm_id), Duration::ZERO)
            }
            Command::Disconnected => (None, Duration::ZERO),
        };
        own + self.slowness(connection_id, vm_id.map(String::as_str))
    }

    /// How long a test wants this held up.
    pub fn slowness(&self, connection_id: &str, vm_id: Option<&str>) -> Duration {
        self.slow.iter().filter(|slow| slow.concerns(connection_id, vm_id)).map(Slow::delay).sum()
    }

    pub fn slow_down(&mut self, slow: Slow) {
        self.slow.retain(|known| !known.is_about_the_same_as(&slow));
        if slow.ms > 0 {
            self.slow.push(slow);
        }
    }

    pub fn run(&mut self, client: &ConnectionId, command: Command) {
        match command {
            Command::Request { vm_id, argument } => {
                self.enter(client);
                if let Err(exception) = self.request(client, &vm_id, &argument) {
                    self.send(client, &vm_id, &exception.data());
                }
            }
            Command::Update { vm_id, data } => {
                self.enter(client);
                if let Err(exception) = data.map_or(Ok(()), |data| self.update(client, &vm_id, data)) {
                    self.send(client, &vm_id, &exception.data());
                }
            }
            Command::Dispose { vm_id } => {
                self.enter(client);
                self.dispose(client, &vm_id);
            }
            // For an unknown id the controller is created and removed: nothing remains.
            Command::Disconnected => self.depart(client),
        }
    }

    /// Takes the controller, creating it if need be. For an id that is gone this is for good: nobody will disconnect it again.
    fn enter(&mut self, client: &ConnectionId) {
        if !self.controllers.contains_key(client) {
            if self.departed.ids.remove(client) {
                self.counters.leaks += 1;
                tracing::warn!(client = %client, "a message after the client's disconnect recreates its controller");
            }
            self.controllers.insert(client.clone(), Controller::default());
        }
    }

    /// Idempotent: the state is sent again; vmArg then has no effect.
    fn request(&mut self, client: &ConnectionId, vm_id: &str, argument: &Object) -> Result<(), Exception> {
        let mut after_state = Vec::new();
        if self.holds(client, vm_id) {
            self.counters.repeated_requests += 1;
        } else {
            self.create(client, vm_id, argument, &mut after_state)?;
        }
        let (data, group) = match &self.controllers[client].view_models[vm_id] {
            Instance::Own { view_model, .. } => (view_model.state().json(), None),
            Instance::Shared { key, .. } => (self.shared[key].view_model.state().json(), key.1.clone()),
        };
        // First the state, then the group (contract 3.2). What the newcomer's vmArg caused goes to those who were there.
        self.send(client, vm_id, &data);
        for (source, turn) in after_state {
            self.carry_out(&source, turn);
        }
        if let Some(group) = group {
            self.add_to_group(client, &group);
        }
        Ok(())
    }

    fn holds(&self, client: &ConnectionId, vm_id: &str) -> bool {
        self.controllers.get(client).is_some_and(|controller| controller.view_models.contains_key(vm_id))
    }

    fn create(
        &mut self,
        client: &ConnectionId,
        vm_id: &str,
        argument: &Object,
        turns: &mut Vec<(Source, Turn)>,
    ) -> Result<(), Exception> {
        if let Some((master, _)) = vm_id.rsplit_once('.')
            && !self.holds(client, master)
        {
            if master.split('.').count() > NESTING_MAX {
                return Err(unknown_view_model(vm_id));
            }
            self.create(client, master, &Object::default(), turns)?;
        }
        let Some(kind) = vm::kind(vm::type_name(vm_id), argument) else { return Err(unknown_view_model(vm_id)) };
        let mut turn = Turn::new(client);
        let generation = self.fresh_id();
        let (instance, source) = match kind.sharing {
            Sharing::Own => {
                let mut view_model = (kind.create)();
                start(view_model.as_mut(), argument, true, &mut turn)?;
                let source = Source::Own { connection_id: client.clone(), vm_id: vm_id.to_owned(), generation };
                (Instance::Own { view_model, generation }, source)
            }
            Sharing::Shared { group } => {
                let key = (kind.name, group);
                let is_new = !self.shared.contains_key(&key);
                let shared = self.shared.entry(key.clone()).or_insert_with(|| Shared {
                    view_model: (kind.create)(),
                    generation,
                    members: BTreeMap::new(),
                });
                if let Err(exception) = start(shared.view_model.as_mut(), argument, is_new, &mut turn) {
                    if is_new {
                        self.shared.remove(&key);
                    }
                    return Err(exception);
                }
                let source = Source::Shared { key: key.clone(), generation: shared.generation };
                (Instance::Shared { key, order: generation }, source)
            }
        };
        // Changes that vmArg made are part of the state that follows.
        turn.changed = Object::default();
        if let Instance::Shared { key, order } = &instance {
            let shared = self.shared.get_mut(key).expect("found or made above");
            shared.members.insert(*order, (client.clone(), vm_id.to_owned()));
        }
        let controller = self.controllers.get_mut(client).expect("entered before");
        controller.view_models.insert(vm_id.to_owned(), instance);
        turns.push((source, turn));
        Ok(())
    }

    fn update(&mut self, client: &ConnectionId, vm_id: &str, mut data: Object) -> Result<(), Exception> {
        // Headers replace the cached ones; with nothing else the pipeline ends here (contract 1.3).
        let had_headers = data.of("$headers").is_some();
        data.0.retain(|(name, _)| name != "$headers");
        if had_headers && data.0.is_empty() {
            return Ok(());
        }
        let mut turn = Turn::new(client);
        let controller = self.controllers.get_mut(client).expect("entered before");
        let (view_model, source) = match controller.view_models.get_mut(vm_id) {
            None => {
                self.counters.dropped_updates += 1;
                tracing::info!(client = %client, vm_id, "update received before connect request: dropped");
                return Ok(());
            }
            Some(Instance::Own { view_model, generation }) => {
                let source =
                    Source::Own { connection_id: client.clone(), vm_id: vm_id.to_owned(), generation: *generation };
                (view_model, source)
            }
            Some(Instance::Shared { key, .. }) => {
                let shared = self.shared.get_mut(key).expect("it has a member");
                (&mut shared.view_model, Source::Shared { key: key.clone(), generation: shared.generation })
            }
        };
        let mut result = Ok(());
        for (property, value) in &data.0 {
            result = view_model.set(property, value, &mut turn);
            if result.is_err() {
                break;
            }
        }
        let changed = std::mem::take(&mut turn.changed);
        self.carry_out(&source, turn);
        result?;
        if changed.0.is_empty() {
            return Ok(());
        }
        // The client is told what changed but for what it set itself; other members are told all.
        let mut news = changed.clone();
        news.0.retain(|(name, is)| !data.of(name).is_some_and(|sent| vm::same(sent, is)));
        if !news.0.is_empty() {
            self.send(client, vm_id, &news.json());
        }
        if let Source::Shared { key, .. } = &source {
            self.push_to_members(key, &changed.json(), Some(client));
        }
        Ok(())
    }

    /// Drops a view model and all below it, the deepest first.
    fn dispose(&mut self, client: &ConnectionId, vm_id: &str) {
        let controller = self.controllers.get_mut(client).expect("entered before");
        let below = format!("{vm_id}.");
        let mut ids: Vec<String> =
            controller.view_models.keys().filter(|id| *id == vm_id || id.starts_with(&below)).cloned().collect();
        ids.sort_unstable_by_key(|id| std::cmp::Reverse(id.len()));
        for id in ids {
            let instance = self.controllers.get_mut(client).and_then(|controller| controller.view_models.remove(&id));
            self.drop_instance(client, instance.expect("listed above"));
        }
    }

    /// A client is gone: its binding first, then its view models, so that what these still send finds no lane (contract 2.5, 3.2).
    fn depart(&mut self, client: &ConnectionId) {
        self.bindings.remove(client);
        self.last_metadata.remove(client);
        self.departed.insert(client);
        if let Some(controller) = self.controllers.remove(client) {
            for instance in controller.view_models.into_values() {
                self.drop_instance(client, instance);
            }
        }
    }

    fn drop_instance(&mut self, client: &ConnectionId, instance: Instance) {
        let Instance::Shared { key, order } = instance else { return };
        if let Some(group) = &key.1 {
            self.remove_from_group(client, group);
        }
        let shared = self.shared.get_mut(&key).expect("it has a member");
        shared.members.remove(&order).expect("each membership is removed once");
        if shared.members.is_empty() {
            self.shared.remove(&key);
            return;
        }
        let mut turn = Turn::new(client);
        shared.view_model.left(client, &mut turn);
        let source = Source::Shared { generation: shared.generation, key };
        self.carry_out(&source, turn);
    }

    fn carry_out(&mut self, source: &Source, turn: Turn) {
        for effect in turn.effects {
            match (effect, source) {
                (Effect::Push(data), Source::Own { connection_id, vm_id, .. }) => {
                    self.send(connection_id, vm_id, &data.json());
                }
                (Effect::Push(data), Source::Shared { key, .. }) => self.push_to_members(key, &data.json(), None),
                (Effect::SendTo(ids, data), source) => {
                    let vm_id = self.vm_id(source);
                    self.send_to_many(&ids, &vm_id, &data.json());
                }
                (Effect::SendToUsers(users, data), source) => {
                    let vm_id = self.vm_id(source);
                    self.send_to_users(&users, &vm_id, &data.json());
                }
                (Effect::After(delay, tag, detail), source) => {
                    let tag = if detail.is_empty() { tag.to_owned() } else { detail };
                    let id = self.fresh_id();
                    self.timers.insert((Instant::now() + delay, id), Timer { source: source.clone(), tag });
                }
            }
        }
    }

    /// The vm id a multicast push carries: its first member's.
    fn vm_id(&self, source: &Source) -> String {
        match source {
            Source::Own { vm_id, .. } => vm_id.clone(),
            Source::Shared { key, .. } => {
                let first = self.shared.get(key).and_then(|shared| shared.members.first_key_value());
                first.map_or_else(|| key.0.to_owned(), |(_, (_, vm_id))| vm_id.clone())
            }
        }
    }

    fn push_to_members(&mut self, key: &SharedKey, data: &str, except: Option<&ConnectionId>) {
        let Some(shared) = self.shared.get(key) else { return };
        let vm_id = self.vm_id(&Source::Shared { key: key.clone(), generation: shared.generation });
        match &key.1 {
            // A plain push excludes nobody, written as a list of one null (contract 3.2).
            Some(group) => self.send_to_group_except(group, &[except.map(|id| id.to_string())], &vm_id, data),
            None => {
                let others = shared.members.values().filter(|(id, _)| Some(id) != except);
                let ids: Vec<String> = others.map(|(id, _)| id.to_string()).collect();
                if !ids.is_empty() {
                    self.send_to_many(&ids, &vm_id, data);
                }
            }
        }
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    // ---- timers -------------------------------------------------------------------------------------------------

    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.first_key_value().map(|((due, _), _)| *due)
    }

    /// Runs up to `most` timers that are due. Returns whether some may be left.
    pub fn run_timers(&mut self, now: Instant, most: usize) -> bool {
        for _ in 0..most {
            match self.timers.first_entry() {
                Some(entry) if entry.key().0 <= now => {
                    let timer = entry.remove();
                    self.fire(timer);
                }
                _ => return false,
            }
        }
        true
    }

    fn fire(&mut self, timer: Timer) {
        // The generation tells an instance from its successor under the same id.
        let view_model = match &timer.source {
            Source::Own { connection_id, vm_id, generation } => {
                let controller = self.controllers.get_mut(connection_id);
                match controller.and_then(|controller| controller.view_models.get_mut(vm_id)) {
                    Some(Instance::Own { view_model, generation: is }) if is == generation => view_model,
                    _ => return,
                }
            }
            Source::Shared { key, generation } => match self.shared.get_mut(key) {
                Some(shared) if shared.generation == *generation => &mut shared.view_model,
                _ => return,
            },
        };
        let mut turn = Turn::new("");
        view_model.timer(&timer.tag, &mut turn);
        self.carry_out(&timer.source, turn);
    }

    // ---- responses (contract 3.2, 3.3) --------------------------------------------------------------------------

    fn send(&mut self, client: &ConnectionId, vm_id: &str, data: &str) {
        match self.bindings.of(client).map(|binding| binding.lane.clone()) {
            Some(lane) => {
                let arguments = [Forwarded::Text(vm_id), Forwarded::Text(data)];
                self.forward(&lane, "SendAsync", &arguments, Some(client));
            }
            None => self.deliver(client, &Outbound::Response { vm_id, data }),
        }
    }

    /// Ids are grouped by the hub id of their bindings; ids without one are taken for the app server's own clients.
    fn send_to_many(&mut self, ids: &[String], vm_id: &str, data: &str) {
        let mut hubs: Vec<(HubId, Vec<&str>)> = Vec::new();
        for id in ids {
            let hub_id = self.bindings.of(id).and_then(|binding| binding.hub_id.clone());
            match hubs.iter_mut().find(|(listed, _)| *listed == hub_id) {
                Some((_, listed)) => listed.push(id),
                None => hubs.push((hub_id, vec![id])),
            }
        }
        for (hub_id, ids) in hubs {
            if hub_id.is_none() {
                for id in ids {
                    self.deliver(&id.into(), &Outbound::Response { vm_id, data });
                }
            } else if let Some(lane) = self.bindings.first_lane(&hub_id).cloned() {
                let list = serde_json::to_string(&ids).expect("strings serialize");
                self.forward(&lane, "SendToManyAsync", &[Forwarded::Text(vm_id), Forwarded::Text(data)], Some(&list));
            }
        }
    }

    fn send_to_group_except(&mut self, group: &str, except: &[Option<String>], vm_id: &str, data: &str) {
        let list = serde_json::to_string(except).expect("strings serialize");
        let arguments = [Forwarded::Text(group), Forwarded::Text(vm_id), Forwarded::Text(data)];
        for lane in self.bindings.hub_lanes() {
            self.forward(&lane, "SendToGroupExceptAsync", &arguments, Some(&list));
        }
        let members = self.groups.get(group).map_or_else(Vec::new, |members| members.iter().cloned().collect());
        for member in members {
            if !except.iter().flatten().any(|id| **id == *member) {
                self.deliver(&member, &Outbound::Response { vm_id, data });
            }
        }
    }

    /// The users are sent twice: as the first argument and in the metadata.
    fn send_to_users(&mut self, users: &[String], vm_id: &str, data: &str) {
        let list = serde_json::to_string(users).expect("strings serialize");
        let arguments = [Forwarded::List(users), Forwarded::Text(vm_id), Forwarded::Text(data)];
        for lane in self.bindings.hub_lanes() {
            self.forward(&lane, "SendToUsersAsync", &arguments, Some(&list));
        }
        let is_listed = |connection: &Connection| connection.user.as_ref().is_some_and(|user| users.contains(user));
        let listed: Vec<ConnectionId> =
            self.connections.iter().filter(|(_, connection)| is_listed(connection)).map(|(id, _)| id.clone()).collect();
        for id in listed {
            self.deliver(&id, &Outbound::Response { vm_id, data });
        }
    }

    fn add_to_group(&mut self, client: &ConnectionId, group: &str) {
        match self.bindings.of(client).map(|binding| binding.lane.clone()) {
            Some(lane) => self.forward(&lane, "AddToGroupAsync", &[Forwarded::Text(group)], Some(client)),
            None => {
                self.groups.entry(group.to_owned()).or_default().insert(client.clone());
            }
        }
    }

    fn remove_from_group(&mut self, client: &ConnectionId, group: &str) {
        if let Some(lane) = self.bindings.of(client).map(|binding| binding.lane.clone()) {
            self.forward(&lane, "RemoveFromGroupAsync", &[Forwarded::Text(group)], Some(client));
        } else if let Some(members) = self.groups.get_mut(group) {
            members.remove(client);
            if members.is_empty() {
                self.groups.remove(group);
            }
        }
    }

    fn forward(
        &mut self,
        lane: &ConnectionId,
        method: &'static str,
        arguments: &[Forwarded<'_>],
        recipient: Option<&str>,
    ) {
        self.deliver(lane, &Outbound::Forwarded { method, arguments, recipient });
    }

    /// Nobody checks whether the connection still exists: a send to a dead one is silent (contract 3.3). Counted here.
    fn deliver(&mut self, connection_id: &ConnectionId, message: &Outbound<'_>) {
        let sent = self
            .connections
            .get(connection_id)
            .is_some_and(|connection| connection.outbox.push(&connection.protocol.encode(message)).is_ok());
        if !sent {
            self.counters.lost_sends += 1;
        }
    }

    // ---- introspection ------------------------------------------------------------------------------------------

    pub fn observed(&self) -> Option<ObserverSnapshot> {
        self.observer.as_ref().map(Observer::snapshot)
    }

    pub fn snapshot(&self) -> Snapshot {
        let lanes = || self.connections.values().filter(|connection| connection.is_lane);
        let counters = &self.counters;
        Snapshot {
            bindings: self.bindings.len(),
            controllers: self.controllers.len(),
            view_models: self.controllers.values().map(|controller| controller.view_models.len()).sum(),
            shared_view_models: self.shared.len(),
            direct_clients: self.connections.keys().filter(|id| self.controllers.contains_key(*id)).count(),
            lanes: lanes().count(),
            message_pack_lanes: lanes().filter(|lane| lane.protocol.is_binary()).count(),
            leaks: counters.leaks,
            lost_sends: counters.lost_sends,
            dropped_updates: counters.dropped_updates,
            repeated_requests: counters.repeated_requests,
            failed_invocations: counters.failed_invocations,
            invokes: counters.invokes,
            hub_ids: self.bindings.hub_ids().into_iter().map(|id| id.map(|id| id.to_string())).collect(),
            oversized: counters.oversized,
            unknown_methods: counters.unknown_methods,
            protocol_errors: counters.protocol_errors,
            timeouts: counters.timeouts,
            slow_connections: counters.slow_connections,
        }
    }

    pub fn lane_snapshots(&self) -> Vec<LaneSnapshot> {
        let line = |id: &ConnectionId| LaneSnapshot {
            lane: id.to_string(),
            alive: self.connections.contains_key(id),
            clients: Vec::new(),
            hub_ids: Vec::new(),
        };
        let mut lines: Vec<LaneSnapshot> = self.ids(None).iter().map(line).collect();
        let mut index: HashMap<ConnectionId, usize> =
            lines.iter().enumerate().map(|(index, found)| (found.lane.as_str().into(), index)).collect();
        for (origin, binding) in self.bindings.in_order() {
            let index = *index.entry(binding.lane.clone()).or_insert_with(|| {
                lines.push(line(&binding.lane));
                lines.len() - 1
            });
            let found = &mut lines[index];
            found.clients.push(origin.to_string());
            let hub_id = binding.hub_id.as_ref().map(|id| id.to_string());
            if !found.hub_ids.contains(&hub_id) {
                found.hub_ids.push(hub_id);
            }
        }
        lines
    }

    pub fn binding_snapshots(&self) -> Vec<BindingSnapshot> {
        let line = |(id, binding): (&ConnectionId, &super::bindings::Binding)| BindingSnapshot {
            connection_id: id.to_string(),
            hub_id: binding.hub_id.as_ref().map(|id| id.to_string()),
            lane: binding.lane.to_string(),
            lane_alive: self.connections.contains_key(&binding.lane),
            first_context: binding.context.to_string(),
            last_context: self.last_metadata.get(id).map_or_else(String::new, |last| last.context.clone()),
            last_items: self.last_metadata.get(id).map_or_else(BTreeMap::new, |last| last.items.clone()),
        };
        self.bindings.in_order().into_iter().map(line).collect()
    }
}

/// Sets vmArg's members as properties, then tells a new instance that it is complete.
fn start(view_model: &mut dyn ViewModel, argument: &Object, is_new: bool, turn: &mut Turn) -> Result<(), Exception> {
    for (property, value) in &argument.0 {
        view_model.set(property, value, turn)?;
    }
    if is_new { view_model.created(turn) } else { Ok(()) }
}

/// The text of contract 5.1; it names the last part of the id.
fn unknown_view_model(vm_id: &str) -> Exception {
    let name = vm_id.rsplit_once('.').map_or(vm_id, |(_, name)| name);
    let message = format!(
        "[dotNetify] ERROR: '{name}' is not a known view model! Its assembly must be registered through VMController.RegisterAssembly."
    );
    Exception::new("Exception", message)
}
