//! The control plane: starting and stopping a node, and one thread on tokio-uring that dials lanes, answers the admin endpoint (the live
//! picture among it), reads certificates and keys again when they change, and everything when it is told to, and gives way to a successor.
//!
//! It carries no client's bytes. What it does for shards it hands over the bus: a connected socket, with its TLS if it has any, new keys
//! and settings, an order to send clients away or to stop.

mod admin;
mod backoff;
mod credentials;
mod dial;
mod exchange;
pub mod health;
mod leave;
mod listen;
mod picture;
mod plane;
mod process;
mod recovery;
mod reload;
mod stream;
mod take_over;
mod upstreams;

pub use listen::Listening;

use crate::bus;
use crate::bus::settings::Renewal;
use crate::config::{self, Config, Faults};
use crate::ids::{LaneIndex, LaneKey, OriginKey, ShardId, base64url};
use crate::journal::{Journal, ShardJournal};
use crate::limits::{NODE_NAME_BYTES_MAX, STOP_GRACE_MS, STOP_MS, TAKE_OVER_LANES_MS};
use crate::metrics::Published;
use crate::metrics::process::ProcessStats;
use crate::proto::signalr::Protocol;
use crate::session::routing::UpstreamKind;
use crate::session::token::TokenKey;
use crate::shard::{Addresses, Occupancy, Settings, Shard, Upstream, Upstreams, Window};
use crate::sys::ring::Ring;
use crate::sys::{probe, socket};
use core::time::Duration;
use credentials::Credentials;
use listen::Files;
use plane::Command;
use reload::Reload;
use sd_notify::NotifyState;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;
use take_over::Estate;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc as tokio_mpsc;
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

/// A running node.
pub struct Node {
    listening: Vec<Listening>,
    admin: SocketAddr,
    commands: tokio_mpsc::UnboundedSender<Command>,
    threads: Vec<JoinHandle<()>>,
    /// Whoever is left in it when the node ends is for the next process.
    journal: Option<Journal>,
    files: Files,
    /// Disconnected when every thread has ended; carries nothing.
    ended: mpsc::Receiver<()>,
    /// Likewise, to be awaited.
    ending: tokio_mpsc::Receiver<()>,
    deadline: watch::Receiver<Option<Instant>>,
    has_taken_over: bool,
}

/// Every thread of a node has one.
#[derive(Clone)]
struct Alive {
    _ended: mpsc::Sender<()>,
    _ending: tokio_mpsc::Sender<()>,
}

impl Node {
    /// Starts every thread and opens every port, or takes them over from the node that runs (`take_over`); on an error nothing is left
    /// running, and the other node goes on.
    pub fn start(config: Config) -> io::Result<Node> {
        probe::io_uring()?;
        let (credentials, identity) = Credentials::load(&config)?;
        let prepared = upstreams::Prepared::new(&config)?;
        let mut inheritance = config.take_over.as_deref().map(take_over::ask).transpose()?.flatten();
        let opened = listen::open(&config, credentials.server_tls(), &mut inheritance)?;
        let listen::Opened { shards: listeners, places: listening, admin: admin_listener, successor, estate, files } =
            opened;
        for place in inheritance.iter().flat_map(take_over::Inheritance::left) {
            warn!(
                "the configuration has no {place} any more: who still comes there is refused when the old node leaves"
            );
        }
        let admin = admin_listener.local_addr()?;

        let started = Instant::now();
        let secrets = Secrets::new(&config, inheritance.as_ref())?;
        let estate = Estate {
            node_name: secrets.node.clone(),
            token_key: config.token_key.is_none().then(|| secrets.token_key.clone()),
            sockets: estate,
        };
        let recovery::Opened { journal, folder, dead, info } =
            recovery::open(&config, secrets.origin, u64::from_ne_bytes(random()?))?;
        let process = Arc::new(ProcessStats::default());
        let per_address_max = config.limits.connections_per_address;
        let addresses = (per_address_max > 0).then(|| Arc::new(Addresses::new(per_address_max)));
        let occupancy = Arc::new(Occupancy::new(config.limits.max_clients));
        let shared = Shared { process: process.clone(), addresses, occupancy };
        let (to_control, from_shards) = bus::channel()?;
        let (commands, commanded) = tokio_mpsc::unbounded_channel();
        let mut shards = Vec::new();
        let mut threads = Vec::new();
        let processors = probe::processors();
        let (ready, readied) = mpsc::channel();
        let ((_ended, ended), (_ending, ending)) = (mpsc::channel(), tokio_mpsc::channel(1));
        let alive = Alive { _ended, _ending };
        let channels = (0..listeners.len()).map(|_| bus::channel()).collect::<io::Result<Vec<_>>>()?;
        let ways: Vec<_> = channels.iter().map(|(orders, _)| orders.clone()).collect();
        let renewal = reload::renewal(&config, identity.as_ref(), credentials.server_tls());
        for (index, (listeners, (orders, ordered))) in listeners.into_iter().zip(channels).enumerate() {
            let published = Arc::new(Published::new());
            let shard = ShardId(index as u8);
            let settings = Settings {
                journal: journal.as_ref().map_or_else(ShardJournal::default, |journal| journal.of_shard(shard)),
                ..shard_settings(&config, shard, &secrets, renewal.clone(), &shared)?
            };
            let lane = |(index, place)| (LaneKey { shard, index: LaneIndex(index) }, place);
            let lanes = (0..).zip(config.lanes_of(shard)).map(lane).collect();
            shards.push(plane::ShardHandle { orders, published: published.clone(), lanes });
            let (to_control, ready, alive, ways) = (to_control.clone(), ready.clone(), alive.clone(), ways.clone());
            let thread = std::thread::Builder::new().name(format!("shard-{index}")).spawn(move || {
                let _alive = alive;
                socket::pin_to_processor(index % processors);
                match Ring::new(started) {
                    Ok(ring) => {
                        let shard = Shard::new(settings, ring, listeners, ways, ordered, to_control, published);
                        let _ = ready.send(Ok(()));
                        // The starter waits until every shard has said something and let go.
                        drop(ready);
                        shard.run();
                    }
                    Err(error) => {
                        let _ = ready.send(Err(in_words(error, "cannot set up io_uring for a shard")));
                    }
                }
            })?;
            threads.push(thread);
        }
        // Of the queues between shards only these hold both ends: an ended shard's is closed.
        drop(ways);
        let url = listening[0].to_string();
        let ground = picture::Ground::new(&config, &url, admin, secrets.origin, random()?);
        let (serves, served) = mpsc::channel();
        let (deadlines, deadline) = watch::channel(None);
        let plane = plane::Plane {
            config,
            shards,
            from_shards,
            commanded,
            admin_listener,
            has_taken_over: inheritance.is_some(),
            serves,
            successor: successor.map(|listener| (listener, estate)),
            files: files.clone(),
            deadline: deadlines,
            credentials,
            prepared,
            process,
            ground,
            journals: folder,
            dead,
            journal: info,
        };
        let control = std::thread::Builder::new().name("control".into()).spawn(move || {
            let _alive = alive;
            plane.run(|result| {
                let _ =
                    ready.send(result.map_err(|error| in_words(error, "cannot set up io_uring for the control plane")));
                drop(ready);
            });
        })?;
        threads.push(control);
        let has_taken_over = inheritance.is_some();
        let node =
            Node { listening, admin, commands, threads, files, journal, ended, ending, deadline, has_taken_over };
        // A shard that could not start ends the ones that could.
        let started = match (readied.iter().find_map(Result::err), inheritance) {
            (Some(error), _) => Err(error),
            (None, None) => Ok(()),
            (None, Some(inheritance)) => lanes_come_up(&served)
                .and_then(|()| inheritance.serves())
                .map_err(|error| in_words(error, "cannot take over, and leaves the clients to the node that runs")),
        };
        if let Err(error) = started {
            node.give_up();
            return Err(error);
        }
        if node.has_taken_over {
            let _ = node.commands.send(Command::Accept);
        }
        for place in &node.listening {
            info!(listen = %place, %admin, "node up");
        }
        Ok(node)
    }

    /// Where clients connect, in the order of the configuration.
    pub fn listening(&self) -> &[Listening] {
        &self.listening
    }

    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Takes over what can change of a configuration that was read again, with certificates and keys, and logs the rest. If it has a fault, all
    /// stays as it is. The answer: whether it holds; none from a node that ends.
    pub fn reload(&self, read: Result<Config, Faults>) -> oneshot::Receiver<bool> {
        let (done, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Reload(Reload { read: read.map(Box::new), done }));
        answer
    }

    /// Begins to send the clients away, as configured (`drain_delay`, `drain_window`); the node ends by itself. A second time, it ends at
    /// once, as with `stop`.
    pub fn drain(&self) {
        let _ = self.commands.send(Command::Drain);
    }

    /// Waits until a node has ended that was told to, or that has found a successor. May be dropped and called again.
    pub async fn ended(&mut self) {
        loop {
            let until = *self.deadline.borrow_and_update();
            // The control plane may hang in the system's resolver, and with it this would.
            let too_late = async {
                match until {
                    Some(until) => {
                        tokio::time::sleep_until((until + Duration::from_millis(STOP_GRACE_MS)).into()).await
                    }
                    None => core::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.ending.recv() => return,
                () = too_late => return,
                Ok(()) = self.deadline.changed() => {}
            }
        }
    }

    /// Tells every client at once to come back later, tells the app server who is gone, and ends; bounded by `limits::STOP_MS` and a
    /// little more.
    pub fn stop(self) {
        let _ = self.commands.send(Command::Stop);
        self.join();
    }

    /// Ends where another node has the same sockets, and stays.
    fn give_up(self) {
        if self.has_taken_over {
            // Here as well: perhaps there is no control plane that could.
            self.files.leave();
        }
        let _ = self.commands.send(if self.has_taken_over { Command::Yield } else { Command::Stop });
        self.join();
    }

    /// Waits for the end, for as long as a stop may take.
    fn join(self) {
        let patience = Duration::from_millis(STOP_MS + STOP_GRACE_MS);
        if self.ended.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
            // The runtime of the control plane waits for the system's resolver, which nobody can call back. The process need not.
            return warn!("a thread does not end; it is left behind");
        }
        for thread in self.threads {
            let _ = thread.join();
        }
        if let Some(left) = self.journal.as_ref().map(Journal::ids).filter(|left| *left > 0) {
            warn!("{left} clients could not be signed off at their app servers in time; the next start does it");
        }
        self.files.clean_up();
    }
}

/// Waits until every shard reaches an app server: who takes over and reaches none would take clients from a node that may.
fn lanes_come_up(served: &mpsc::Receiver<()>) -> io::Result<()> {
    served.recv_timeout(Duration::from_millis(TAKE_OVER_LANES_MS)).map_err(|_| {
        let words = format!("no lane to an app server came up within {} s", TAKE_OVER_LANES_MS / 1000);
        io::Error::new(io::ErrorKind::TimedOut, words)
    })
}

/// `signalring run`: a node until SIGINT or SIGTERM, which send its clients away, a second one at once; or until another process takes over.
/// SIGHUP makes it read its configuration again, with `read`. A service manager is kept informed (sd_notify(3)).
pub fn run_node(config: Config, read: impl Fn() -> Result<Config, Faults>) -> io::Result<()> {
    let mut node = Node::start(config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut hang_up = signal(SignalKind::hangup())?;
        // Whoever knows that it runs may send it any of them.
        for place in node.listening() {
            println!("listening on {place}");
        }
        println!("admin on http://{}", node.admin());
        // The manager may know this process as a child of the one it takes over from.
        notify(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready]);
        loop {
            tokio::select! {
                () = node.ended() => return Ok::<_, io::Error>(()),
                _ = terminate.recv() => stops(&node),
                _ = interrupt.recv() => stops(&node),
                _ = hang_up.recv() => {
                    // systemd 253 and later want to know when.
                    notify(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?]);
                    // A node that ends does not answer.
                    let _ = node.reload(read()).await;
                    notify(&[NotifyState::Ready]);
                }
            }
        }
    })?;
    info!("stopped");
    node.join();
    Ok(())
}

fn stops(node: &Node) {
    info!("stopping");
    notify(&[NotifyState::Stopping]);
    node.drain();
}

/// Tells systemd, if it is there.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!("cannot tell the service manager ($NOTIFY_SOCKET): {error}");
    }
}

/// Sleeps until the process is asked to end.
pub fn wait_for_signal() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted,
            _ = terminate.recv() => Ok(()),
        }
    })
}

fn in_words(error: io::Error, doing: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{doing}: {error}"))
}

/// What a process keeps to itself, or passes on to its successor.
struct Secrets {
    /// The node's name: no secret, but what tokens begin with.
    node: String,
    origin: OriginKey,
    token_key: Vec<u8>,
    tokens: TokenKey,
}

impl Secrets {
    /// With the name and key of the node it takes over from, unless the configuration says otherwise: tokens of the old process are good
    /// for the new one.
    fn new(config: &Config, inheritance: Option<&take_over::Inheritance>) -> io::Result<Secrets> {
        let node = match (&config.node_name, inheritance) {
            (Some(name), _) => name.clone(),
            (None, Some(inheritance)) => inheritance.node_name.clone(),
            (None, None) => {
                let name = base64url(&random()?);
                String::from_utf8_lossy(&name[..NODE_NAME_BYTES_MAX]).into_owned()
            }
        };
        let inherited = inheritance.and_then(|inheritance| inheritance.token_key.clone());
        let token_key = match (&config.token_key, inherited) {
            (Some(key), _) => key.bytes().to_vec(),
            (None, Some(key)) => key,
            (None, None) => {
                info!(
                    "no token_key is configured, a random one is used: behind a load balancer without stickiness clients of other nodes will be answered 404"
                );
                random::<32>()?.to_vec()
            }
        };
        let tokens = TokenKey::new(&token_key, &node);
        Ok(Secrets { node, origin: OriginKey(random()?), token_key, tokens })
    }
}

/// Bytes from the operating system.
fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}

/// What all shards share beside what they are told.
struct Shared {
    process: Arc<ProcessStats>,
    addresses: Option<Arc<Addresses>>,
    occupancy: Arc<Occupancy>,
}

fn shard_settings(
    config: &Config,
    shard: ShardId,
    secrets: &Secrets,
    renewal: Renewal,
    shared: &Shared,
) -> io::Result<Settings> {
    Ok(Settings {
        shard,
        http: renewal.http,
        trusted: renewal.trusted,
        proxy_protocol: renewal.proxy_protocol,
        authentication: renewal.authentication,
        resume_bytes_max: renewal.resume_bytes_max,
        poll_timeout: renewal.poll_timeout,
        disconnect_timeout: renewal.disconnect_timeout,
        upstreams: upstreams(config, &secrets.node),
        lanes: config.lanes_of(shard),
        process: shared.process.clone(),
        has_tls: config.upstreams.iter().flat_map(|upstream| &upstream.urls).any(|target| target.url.tls)
            || config.listen.iter().any(|listener| listener.tls),
        client: renewal.client,
        connections_max: config.connections_per_shard(),
        accept_rate: renewal.accept_rate,
        occupancy: shared.occupancy.clone(),
        addresses: shared.addresses.clone(),
        begins_unavailable: renewal.begins_unavailable,
        send_queue_bytes_max: renewal.send_queue_bytes_max,
        send_queue_time: renewal.send_queue_time,
        send_buffer_bytes: renewal.send_buffer_bytes,
        request_head_timeout: renewal.request_head_timeout,
        lane_queue_bytes_max: renewal.lane_queue_bytes_max,
        lane_queue_timeout: renewal.lane_queue_timeout,
        replay_bytes_max: renewal.replay_bytes_max,
        origin_key: secrets.origin,
        journal: ShardJournal::default(),
        tokens: secrets.tokens.clone(),
        seed: u64::from_ne_bytes(random()?),
    })
}

/// What shards know of the upstreams. An Observer labels a node with the `Host` of its clients, which behind a balancer is the
/// balancer's, so it is shown the node's name in its place (contract 7.2).
fn upstreams(config: &Config, node: &str) -> Upstreams {
    let of = |upstream: &config::Upstream| Upstream {
        name: upstream.name.clone(),
        route: upstream.route(),
        protocol: if upstream.use_message_pack { Protocol::MessagePack } else { Protocol::Json },
        message_bytes_max: upstream.maximum_receive_message_size,
        forward_headers: upstream.forward_headers.clone(),
        shown_host: (upstream.kind == UpstreamKind::Observer).then(|| node.to_string()),
        dispatch: upstream.dispatch,
        hub_scope: upstream.hub_id,
        window: upstream
            .acknowledge
            .then_some(Window { messages: upstream.in_flight_max, timeout: upstream.acknowledge_timeout }),
        weights: upstream.urls.iter().map(|target| target.weight).collect(),
    };
    Upstreams::new(config.upstreams.iter().map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node whose threads have ended, and the file of a socket of it.
    fn ended(has_taken_over: bool) -> (Node, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (commands, _) = tokio_mpsc::unbounded_channel();
        let node = Node {
            listening: Vec::new(),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            commands,
            threads: Vec::new(),
            journal: None,
            files: Files::new(vec![file.path().to_path_buf()]),
            ended: mpsc::channel().1,
            ending: tokio_mpsc::channel(1).1,
            deadline: watch::channel(None).1,
            has_taken_over,
        };
        (node, file)
    }

    #[test]
    fn a_start_that_fails_without_a_control_plane_leaves_the_running_nodes_socket_files() {
        let (node, file) = ended(true);
        node.give_up();
        assert!(file.path().exists());
        let (node, file) = ended(false);
        node.give_up();
        assert!(!file.path().exists(), "nobody else has them");
    }
}
