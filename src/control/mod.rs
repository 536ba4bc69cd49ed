//! The control plane: starting and stopping a node, and one thread on tokio-uring that dials lanes, answers the admin endpoint (the live
//! picture among it), and reads certificates and keys again when they change.
//!
//! It carries no client's bytes. What it does for shards it hands over the bus: a connected socket, with its TLS if it has any, new keys,
//! an order to stop.

mod admin;
mod backoff;
mod credentials;
mod dial;
mod exchange;
pub mod health;
mod listen;
mod picture;
mod plane;
mod process;
mod stream;
mod upstreams;

pub use listen::Listening;

use crate::bus;
use crate::config::{self, Config, TrustedProxy};
use crate::identity::{Authentication, Identity};
use crate::ids::{LaneIndex, LaneKey, OriginKey, ShardId, base64url};
use crate::limits::{NODE_NAME_BYTES_MAX, POST_BODY_MESSAGES_MAX, STOP_GRACE_MS, STOP_MS};
use crate::metrics::Published;
use crate::metrics::process::ProcessStats;
use crate::proto::http::{HttpPolicy, OriginPolicy, Trusted};
use crate::proto::signalr::Protocol;
use crate::session::client::ClientSettings;
use crate::session::routing::{Route, UpstreamKind};
use crate::session::token::TokenKey;
use crate::shard::{Settings, Shard, Upstream, Upstreams};
use crate::sys::ring::Ring;
use crate::sys::{probe, socket};
use core::time::Duration;
use credentials::Credentials;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::mpsc as tokio_mpsc;
use tracing::{info, warn};

/// A running node.
pub struct Node {
    listening: Vec<Listening>,
    admin: SocketAddr,
    commands: tokio_mpsc::UnboundedSender<plane::Command>,
    threads: Vec<JoinHandle<()>>,
    /// Disconnected when every thread has ended; carries nothing.
    ended: mpsc::Receiver<()>,
}

impl Node {
    /// Starts every thread and opens every port; on an error nothing is left running.
    pub fn start(config: Config) -> io::Result<Node> {
        probe::io_uring()?;
        let (credentials, identity) = Credentials::load(&config)?;
        let prepared = upstreams::Prepared::new(&config)?;
        let (listeners, listening) = listen::open(&config, credentials.server_tls())?;
        let admin_listener = TcpListener::bind(config.admin)
            .map_err(|error| in_words(error, &format!("cannot listen on {} for the admin endpoint", config.admin)))?;
        let admin = admin_listener.local_addr()?;

        let started = Instant::now();
        let secrets = Secrets::new(&config)?;
        let process = Arc::new(ProcessStats::default());
        let (to_control, from_shards) = bus::channel()?;
        let (commands, commanded) = tokio_mpsc::unbounded_channel();
        let mut shards = Vec::new();
        let mut threads = Vec::new();
        let processors = probe::processors();
        let (ready, readied) = mpsc::channel();
        let (alive, ended) = mpsc::channel::<()>();
        let channels = (0..listeners.len()).map(|_| bus::channel()).collect::<io::Result<Vec<_>>>()?;
        let ways: Vec<_> = channels.iter().map(|(orders, _)| orders.clone()).collect();
        for (index, (listeners, (orders, ordered))) in listeners.into_iter().zip(channels).enumerate() {
            let published = Arc::new(Published::new());
            let shard = ShardId(index as u8);
            let settings = shard_settings(&config, shard, &secrets, identity.as_ref(), &process)?;
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
        let plane = plane::Plane {
            config,
            shards,
            from_shards,
            commanded,
            admin_listener,
            credentials,
            prepared,
            process,
            ground,
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
        let node = Node { listening, admin, commands, threads, ended };
        // A shard that could not start ends the ones that could.
        if let Some(error) = readied.iter().find_map(Result::err) {
            node.stop();
            return Err(error);
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

    /// Reads certificates and keys again.
    pub fn reload(&self) {
        let _ = self.commands.send(plane::Command::Reload);
    }

    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Tells every client to come back later, tells the app server who is gone, and ends; bounded by `limits::STOP_MS` and a
    /// little more.
    pub fn stop(self) {
        let _ = self.commands.send(plane::Command::Stop);
        let patience = Duration::from_millis(STOP_MS + STOP_GRACE_MS);
        if self.ended.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
            // The runtime of the control plane waits for the system's resolver, which nobody can call back. The process need not.
            return warn!("a thread does not end; it is left behind");
        }
        for thread in self.threads {
            let _ = thread.join();
        }
        listen::clean_up(&self.listening);
    }
}

/// `signalring run`: a node until SIGINT or SIGTERM. SIGHUP makes it read certificates and keys again.
pub fn run_node(config: Config) -> io::Result<()> {
    let node = Node::start(config)?;
    for place in node.listening() {
        println!("listening on {place}");
    }
    println!("admin on http://{}", node.admin());
    wait_for_signal(|| node.reload())?;
    info!("stopping");
    node.stop();
    Ok(())
}

/// Sleeps until the process is asked to end, and calls `hang_up` at each SIGHUP.
pub fn wait_for_signal(hang_up: impl Fn()) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut terminate, mut hung_up) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
        loop {
            tokio::select! {
                interrupted = tokio::signal::ctrl_c() => return interrupted,
                _ = terminate.recv() => return Ok(()),
                _ = hung_up.recv() => hang_up(),
            }
        }
    })
}

fn in_words(error: io::Error, doing: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{doing}: {error}"))
}

/// What a process keeps to itself.
struct Secrets {
    /// The node's name: no secret, but what tokens begin with.
    node: String,
    origin: OriginKey,
    tokens: TokenKey,
}

impl Secrets {
    fn new(config: &Config) -> io::Result<Secrets> {
        let node = match &config.node_name {
            Some(name) => name.clone(),
            None => {
                let name = base64url(&random()?);
                String::from_utf8_lossy(&name[..NODE_NAME_BYTES_MAX]).into_owned()
            }
        };
        let tokens = match &config.token_key {
            Some(key) => TokenKey::new(key.bytes(), &node),
            None => {
                info!(
                    "no token_key is configured, a random one is used: behind a load balancer without stickiness clients of other nodes will be answered 404"
                );
                TokenKey::new(&random::<32>()?, &node)
            }
        };
        Ok(Secrets { node, origin: OriginKey(random()?), tokens })
    }
}

/// Bytes from the operating system.
fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}

fn shard_settings(
    config: &Config,
    shard: ShardId,
    secrets: &Secrets,
    identity: Option<&Arc<Identity>>,
    process: &Arc<ProcessStats>,
) -> io::Result<Settings> {
    Ok(Settings {
        shard,
        http: HttpPolicy {
            hub_path: config.hub_path.clone(),
            origins: OriginPolicy { allowed: config.allowed_origins.clone() },
            transports: config.hub.transports,
            post_body_bytes_max: POST_BODY_MESSAGES_MAX as u64 * u64::from(config.hub.maximum_receive_message_size),
        },
        trusted: trusted(config),
        proxy_protocol: config.proxy_protocol,
        authentication: config.identity.as_ref().zip(identity).map(|(settings, identity)| Authentication {
            identity: identity.clone(),
            required: settings.required,
            closes_on_expiry: config.hub.close_on_authentication_expiration,
        }),
        resume_bytes_max: config.hub.allow_stateful_reconnects.then_some(config.hub.stateful_reconnect_buffer_size),
        poll_timeout: config.hub.poll_timeout,
        disconnect_timeout: config.hub.disconnect_timeout,
        upstreams: upstreams(config, &secrets.node),
        lanes: config.lanes_of(shard),
        process: process.clone(),
        has_tls: config.upstreams.iter().flat_map(|upstream| &upstream.urls).any(|target| target.url.tls)
            || config.listen.iter().any(|listener| listener.tls),
        client: ClientSettings {
            handshake_timeout: config.hub.handshake_timeout,
            client_timeout: config.hub.client_timeout_interval,
            keep_alive: config.hub.keep_alive_interval,
            message_bytes_max: config.hub.maximum_receive_message_size,
        },
        connections_max: config.connections_per_shard(),
        send_queue_bytes_max: config.limits.client_send_queue_bytes,
        send_buffer_bytes: config.limits.client_send_buffer_bytes,
        request_head_timeout: config.limits.request_head_timeout,
        lane_queue_bytes_max: config.limits.upstream_queue_bytes,
        lane_queue_timeout: config.limits.upstream_queue_timeout,
        origin_key: secrets.origin,
        tokens: secrets.tokens.clone(),
        seed: u64::from_ne_bytes(random()?),
    })
}

/// What shards know of the upstreams. An Observer labels a node with the `Host` of its clients, which behind a balancer is the
/// balancer's, so it is shown the node's name in its place (contract 7.2).
fn upstreams(config: &Config, node: &str) -> Upstreams {
    let of = |upstream: &config::Upstream| Upstream {
        name: upstream.name.clone(),
        route: Route { kind: upstream.kind, filter: upstream.filter.clone(), halts: upstream.halt_pipeline },
        protocol: if upstream.use_message_pack { Protocol::MessagePack } else { Protocol::Json },
        message_bytes_max: upstream.maximum_receive_message_size,
        forward_headers: upstream.forward_headers.clone(),
        shown_host: (upstream.kind == UpstreamKind::Observer).then(|| node.to_string()),
        dispatch: upstream.dispatch,
        hub_scope: upstream.hub_id,
        weights: upstream.urls.iter().map(|target| target.weight).collect(),
    };
    Upstreams::new(config.upstreams.iter().map(of).collect())
}

fn trusted(config: &Config) -> Trusted {
    let proxies = &config.trusted_proxies;
    let networks = proxies.iter().filter_map(|proxy| match proxy {
        TrustedProxy::Network(network) => Some(*network),
        TrustedProxy::Unix => None,
    });
    Trusted {
        networks: networks.collect(),
        unix: proxies.contains(&TrustedProxy::Unix),
        header: config.forwarded_header,
    }
}
