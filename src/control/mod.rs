//! The control plane: starting and stopping a node, and one thread on tokio-uring that dials lanes and answers the admin endpoint.
//!
//! It carries no client's bytes. What it does for shards it hands over the bus: a connected socket, an order to stop.

mod admin;
mod backoff;
mod dial;
mod exchange;
mod plane;
mod stream;

use crate::bus;
use crate::config::{Config, ListenAddress};
use crate::ids::{LaneIndex, LaneKey, OriginKey, ShardId};
use crate::limits::{HTTP_BODY_BYTES_MAX, STOP_GRACE_MS, STOP_MS};
use crate::metrics::Published;
use crate::proto::http::{HttpPolicy, OriginPolicy, Transports};
use crate::session::client::ClientSettings;
use crate::session::token::TokenKey;
use crate::shard::{Settings, Shard};
use crate::sys::ring::Ring;
use crate::sys::{probe, socket};
use core::time::Duration;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::mpsc as tokio_mpsc;
use tracing::{info, warn};

/// A running node.
pub struct Node {
    listen: SocketAddr,
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
        let listeners = listen_for_shards(&config)?;
        let listen = listeners[0].local_addr()?;
        let admin_listener = TcpListener::bind(config.admin)
            .map_err(|error| in_words(error, &format!("cannot listen on {} for the admin endpoint", config.admin)))?;
        let admin = admin_listener.local_addr()?;

        let started = Instant::now();
        let secrets = Secrets::new()?;
        let (to_control, from_shards) = bus::channel()?;
        let (commands, commanded) = tokio_mpsc::unbounded_channel();
        let mut shards = Vec::new();
        let mut threads = Vec::new();
        let processors = probe::processors();
        let (ready, readied) = mpsc::channel();
        let (alive, ended) = mpsc::channel::<()>();
        for (index, listener) in listeners.into_iter().enumerate() {
            let (orders, ordered) = bus::channel()?;
            let published = Arc::new(Published::new());
            let shard = ShardId(index as u8);
            let settings = shard_settings(&config, shard, &secrets)?;
            let lanes = (0..settings.lanes).map(|lane| LaneKey { shard, index: LaneIndex(lane) }).collect();
            shards.push(plane::ShardHandle { orders, published: published.clone(), lanes });
            let (to_control, ready, alive) = (to_control.clone(), ready.clone(), alive.clone());
            let thread = std::thread::Builder::new().name(format!("shard-{index}")).spawn(move || {
                let _alive = alive;
                socket::pin_to_processor(index % processors);
                match Ring::new(started) {
                    Ok(ring) => {
                        let listener = OwnedFd::from(listener);
                        let shard = Shard::new(settings, ring, listener, ordered, to_control, published);
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
        drop(ready);
        let plane = plane::Plane { config, shards, from_shards, commanded, admin_listener };
        let control = std::thread::Builder::new().name("control".into()).spawn(move || {
            let _alive = alive;
            plane.run();
        })?;
        threads.push(control);
        let node = Node { listen, admin, commands, threads, ended };
        // A shard that could not start ends the ones that could.
        if let Some(error) = readied.iter().find_map(Result::err) {
            node.stop();
            return Err(error);
        }
        info!(%listen, %admin, "node up");
        Ok(node)
    }

    /// Where clients connect.
    pub fn listen(&self) -> SocketAddr {
        self.listen
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
    }
}

/// `signalring run`: a node until SIGINT or SIGTERM.
pub fn run_node(config: Config) -> io::Result<()> {
    let node = Node::start(config)?;
    println!("listening on http://{}", node.listen());
    println!("admin on http://{}", node.admin());
    wait_for_signal()?;
    info!("stopping");
    node.stop();
    Ok(())
}

/// Sleeps until the process is asked to end.
pub fn wait_for_signal() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted,
            _ = terminate.recv() => Ok(()),
        }
    })
}

/// One listener a shard on the same address; the kernel spreads the connections.
fn listen_for_shards(config: &Config) -> io::Result<Vec<TcpListener>> {
    let listener = &config.listen[0];
    let words = |error| in_words(error, &format!("cannot listen on {listener}"));
    // What is not served must not be served in another way: no plain connection where TLS was asked for, no client without
    // the token it needs.
    let ListenAddress::Tcp(address) = listener.address else {
        return Err(words(io::ErrorKind::Unsupported.into()));
    };
    if config.listen.len() > 1 || listener.tls || config.proxy_protocol {
        return Err(words(io::ErrorKind::Unsupported.into()));
    }
    if config.identity.is_some() || config.upstream.url.tls || config.upstream.use_message_pack {
        return Err(io::ErrorKind::Unsupported.into());
    }
    socket::probe_free(address).map_err(words)?;
    let first = socket::listen(address).map_err(words)?;
    // Port 0 became a real one.
    let address = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..config.shards {
        listeners.push(socket::listen(address).map_err(words)?);
    }
    Ok(listeners)
}

fn in_words(error: io::Error, doing: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{doing}: {error}"))
}

/// What a process keeps to itself.
struct Secrets {
    origin: OriginKey,
    tokens: TokenKey,
}

impl Secrets {
    fn new() -> io::Result<Secrets> {
        Ok(Secrets { origin: OriginKey(random()?), tokens: TokenKey::new(&random::<32>()?) })
    }
}

/// Bytes from the operating system.
fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}

fn shard_settings(config: &Config, shard: ShardId, secrets: &Secrets) -> io::Result<Settings> {
    let (count, index) = (u32::from(config.shards), u32::from(shard.0));
    Ok(Settings {
        shard,
        http: HttpPolicy {
            hub_path: config.hub_path.clone(),
            origins: OriginPolicy { allowed: config.allowed_origins.clone() },
            transports: Transports { web_sockets: true, server_sent_events: false, long_polling: false },
            post_body_bytes_max: HTTP_BODY_BYTES_MAX,
        },
        forward_headers: config.upstream.forward_headers.clone(),
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
        upstream_message_bytes_max: config.upstream.maximum_receive_message_size,
        // The pool is dealt out: the first shards get one more where it does not divide.
        lanes: {
            let (pool, shards) = (config.lanes(), count);
            (pool / shards + u32::from(index < pool % shards)) as u16
        },
        origin_key: secrets.origin,
        tokens: secrets.tokens.clone(),
        seed: u64::from_ne_bytes(random()?),
    })
}
