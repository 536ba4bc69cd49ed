//! The configuration: TOML file < environment < flags, into a `Config` that is valid by construction.
//!
//! ```text
//! settings   the table: one row a setting (key, flag, variable, values, default)
//! file, env, flags   what was written, with its place        value, url, address, secret   what it means
//! draft      the last word of each setting                     check        contradictions
//! resolve    all of it in turn -> Config, or every Fault at once         upstreams    what one is, and several together
//! running    what a node takes over of another one, read later
//! show       the resolved configuration as TOML               budget       what it may cost in memory
//! ```
//!
//! Nothing here opens a port; nothing else reads a setting.
mod address;
pub mod budget;
mod check;
mod draft;
pub mod env;
pub mod fault;
mod file;
pub mod flags;
mod resolve;
mod running;
mod secret;
pub mod settings;
mod show;
mod upstreams;
mod url;
mod value;

pub use address::{ListenAddress, Listener, TrustedProxy};
pub use budget::Budget;
pub use fault::{Excerpt, Fault, Faults, Origin};
pub use flags::RunFlags;
pub use resolve::{Machine, Resolved};
pub use running::{Change, Running};
pub use secret::Secret;
pub use settings::{Key, Place};
pub use value::read_bytes;

use crate::filter::Filter;
use crate::identity::Required;
use crate::ids::{LanePlace, ShardId, UpstreamIndex};
use crate::limits::CONNECTIONS_SPARE;
use crate::proto::dotnetify::context::HeaderPolicy;
use crate::proto::http::{ForwardedHeader, Transports};
use crate::session::routing::{Dispatch, HubScope, UpstreamKind};
use crate::tls::MinimumVersion;
use core::time::Duration;
use std::net::SocketAddr;
use std::path::PathBuf;

/// A node's complete, valid configuration. Files it names were there and could be read when it was made; their paths are absolute.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where clients connect: 1 to `LISTENERS_MAX`, in the order given, none in another's way.
    pub listen: Vec<Listener>,
    /// Admin endpoint; loopback by default.
    pub admin: SocketAddr,
    /// Threads with a ring each; at least 1.
    pub shards: u16,
    /// First part of every connection token, 1 to 16 of `[A-Za-z0-9_-]`. None: random at every start.
    pub node_name: Option<String>,
    /// What connection tokens are signed with, at least 16 bytes, the same on all nodes. None: random at every start.
    pub token_key: Option<Secret>,
    /// Whose word about a client's address is believed.
    pub trusted_proxies: Vec<TrustedProxy>,
    /// Where they say it, unless by PROXY protocol. Default `X-Forwarded-For`.
    pub forwarded_header: ForwardedHeader,
    /// Every connection from a trusted proxy begins with a PROXY header. Only with trusted proxies.
    pub proxy_protocol: bool,
    pub hub_path: String,
    /// Origins allowed beside the page's own.
    pub allowed_origins: Vec<String>,
    /// Folder of the journal. None: there is none.
    pub journal: Option<PathBuf>,
    /// Level or tracing filter directive.
    pub log: String,
    pub log_format: LogFormat,
    /// How long a node that is told to stop serves as before. Default 0.
    pub drain_delay: Duration,
    /// Time over which it then sends its clients away. Default 10 s.
    pub drain_window: Duration,
    /// Where a successor finds this node, and this node its predecessor. Absolute; it need not be there.
    pub take_over: Option<PathBuf>,
    pub hub: Hub,
    pub limits: Limits,
    /// There if a listener has `tls`, and perhaps without.
    pub tls: Option<Tls>,
    /// There if tokens of users can be verified.
    pub identity: Option<Identity>,
    /// In the order of routing; 1 to `UPSTREAMS_MAX`, at least one of them an app server, names all different.
    pub upstreams: Vec<Upstream>,
    /// Admin addresses (`host:port`) of other nodes that the live picture shows with this one; at most `PEERS_MAX`.
    pub peers: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// The names ASP.NET users know from HubOptions.
#[derive(Clone, Debug, PartialEq)]
pub struct Hub {
    /// Bytes, framing included. Default 32768.
    pub maximum_receive_message_size: u32,
    /// Default 15 s.
    pub handshake_timeout: Duration,
    /// Default 30 s; armed by a client's first ping.
    pub client_timeout_interval: Duration,
    /// Default 15 s.
    pub keep_alive_interval: Duration,
    /// At least one. Default all.
    pub transports: Transports,
    /// Default true.
    pub allow_stateful_reconnects: bool,
    /// Bytes kept for a client that may come back. ASP.NET's `StatefulReconnectBufferSize`; default 100,000.
    pub stateful_reconnect_buffer_size: u32,
    /// How long a poll waits for something to say. Default 90 s.
    pub poll_timeout: Duration,
    /// How long a long-polling client may be without a poll, or a stateful one without a connection. Default 15 s.
    pub disconnect_timeout: Duration,
    /// Only with an identity. Default false.
    pub close_on_authentication_expiration: bool,
    /// May clients begin while no app server that answers can be reached? Default true.
    pub negotiate_when_unavailable: bool,
}

/// The certificate of https listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// PEM, the node's own certificate first.
    pub certificate_file: PathBuf,
    /// PEM.
    pub key_file: PathBuf,
    pub minimum_version: MinimumVersion,
}

/// How the tokens of users (JWT) are verified and what is taken from them. At least one source of keys is there.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// HS256, at least 32 bytes.
    pub signing_key: Option<Secret>,
    /// PEM.
    pub public_key_files: Vec<PathBuf>,
    pub jwks_file: Option<PathBuf>,
    /// Any of these is accepted; empty: not checked.
    pub audience: Vec<String>,
    /// Any of these is accepted; empty: not checked.
    pub issuer: Vec<String>,
    /// Default 5 min.
    pub clock_skew: Duration,
    /// The first of these that a token has names its user; at least one.
    pub user_id_claims: Vec<String>,
    /// Claims the app server is shown, as metadata `claim:<name>`.
    pub forward_claims: Vec<String>,
    pub required: Required,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Connections a node holds at once (HTTP and clients), shared out over the shards.
    pub max_clients: u32,
    /// Bytes queued for one client before it is disconnected as too slow. Default 256 KiB.
    pub client_send_queue_bytes: u32,
    /// SO_SNDBUF of client sockets. Default 32 KiB.
    pub client_send_buffer_bytes: u32,
    /// How long a request head may take. Default 5 s.
    pub request_head_timeout: Duration,
    /// How long what is queued for a client may wait while it takes nothing. Default 30 s.
    pub client_send_queue_time: Duration,
    /// Messages a second of one client; 0: any number. Default 1000.
    pub client_message_rate: u32,
    /// ... and at once. Default 2000.
    pub client_message_burst: u32,
    /// How long a client's machine may acknowledge nothing. Default 60 s.
    pub client_tcp_timeout: Duration,
    /// Connections at once from one address; 0: any number, the default.
    pub connections_per_address: u32,
    /// Connections a second that each shard accepts; 0: any number. Default 2000.
    pub accept_rate: u32,
    /// Client messages waiting for a lane that is not up, per lane: bytes. Default 4 MiB.
    pub upstream_queue_bytes: u32,
    /// ... and how long one may wait before it is answered with an error. Default 10 s.
    pub upstream_queue_timeout: Duration,
    /// Bytes of what one client's view models were requested with that are kept. Default 16 KiB.
    pub client_replay_bytes: u32,
}

/// An app server that messages are forwarded to, or several that stand for one.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// In logs, metrics and pictures. Default: `upstream-1` and so on, by place.
    pub name: String,
    pub kind: UpstreamKind,
    /// Clients are dealt over them. 1 to `UPSTREAM_URLS_MAX`.
    pub urls: Vec<WeightedUrl>,
    /// Lanes of the whole node to each url; at least one per shard is used.
    pub connection_pool_size: u16,
    /// Whether lanes speak MessagePack instead of JSON.
    pub use_message_pack: bool,
    /// Bytes of the largest message the app server takes on a lane. Its `HubOptions.MaximumReceiveMessageSize`; default 32768.
    pub maximum_receive_message_size: u32,
    /// PEM with the authorities to trust in place of the usual ones. Like the next, only with an https URL.
    pub ca_file: Option<PathBuf>,
    pub client_certificate: Option<ClientCertificate>,
    /// Default all; of an Observer only `Host` and `User-Agent`.
    pub forward_headers: HeaderPolicy,
    /// None takes every message.
    pub filter: Option<Filter>,
    /// A message that is taken stops here. Never for an Observer.
    pub halt_pipeline: bool,
    pub dispatch: Dispatch,
    pub hub_id: HubScope,
    /// Invocations are acknowledged (contract 6.2). Never by an Observer.
    pub acknowledge: bool,
    /// How long one may take before its lane counts as stuck. Default 30 s.
    pub acknowledge_timeout: Duration,
    /// Invocations on a lane that are not acknowledged. Default 256.
    pub in_flight_max: u32,
}

/// One of an upstream's urls, and its share of the clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedUrl {
    pub url: UpstreamUrl,
    /// 1 to `UPSTREAM_WEIGHT_MAX`.
    pub weight: u16,
}

/// What the node shows the app server; both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
}

/// `http://host[:port][/base]`, or with `https`, `ws` or `wss`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    /// https or wss.
    pub tls: bool,
    /// Name or address; IPv6 without brackets.
    pub host: String,
    pub port: u16,
    /// Path in front of the hub path, without trailing slash; usually empty.
    pub base: String,
    /// As configured, for logs.
    pub text: String,
}

impl Config {
    /// The configuration that file, environment and flags make together, or everything that is wrong with it.
    pub fn resolve(
        file: Option<(&str, &str)>,
        env: impl Iterator<Item = (String, String)>,
        flags: &RunFlags,
        machine: &Machine,
    ) -> Result<Config, Faults> {
        Resolved::of(file, env, flags, machine).map(|resolved| resolved.config)
    }

    /// Connections one shard holds. The kernel spreads connections by hash, not evenly: each of several shards may take a
    /// quarter more than its part, as long as the node has not more than `max_clients`.
    pub fn connections_per_shard(&self) -> u32 {
        let (all, shards) = (self.limits.max_clients, u32::from(self.shards));
        if shards == 1 { all } else { (all / shards + all / shards / 4 + CONNECTIONS_SPARE).min(all) }
    }

    /// Descriptors of listening sockets that a shard takes.
    fn listeners_each(&self) -> usize {
        listeners_each(self.listen.len(), self.take_over.is_some())
    }

    /// Lanes in use, of all shards, to all urls.
    pub fn lanes(&self) -> u32 {
        lanes(&self.upstreams, self.shards)
    }

    /// How many contexts each client has: upstreams that are told the same of it in the same form share one.
    pub fn context_kinds(&self) -> usize {
        let form = |upstream: &Upstream| (upstream.use_message_pack, upstream.kind, upstream.forward_headers.clone());
        let mut forms: Vec<_> = Vec::new();
        for form in self.upstreams.iter().map(form) {
            if !forms.contains(&form) {
                forms.push(form);
            }
        }
        forms.len()
    }

    /// Where a shard's lanes lead, in the order of their indices. Each url's pool is dealt out over the shards; the first shards get
    /// one more where it does not divide.
    pub fn lanes_of(&self, shard: ShardId) -> Vec<LanePlace> {
        let (shards, index) = (self.shards, u16::from(shard.0));
        let mut places = Vec::new();
        for (upstream, settings) in self.upstreams.iter().enumerate() {
            let pool = settings.lanes_each(shards) as u16;
            let count = pool / shards + u16::from(index < pool % shards);
            for url in 0..settings.urls.len() {
                let place = LanePlace { upstream: UpstreamIndex(upstream as u8), url: url as u8 };
                places.extend((0..count).map(|_| place));
            }
        }
        places
    }
}

impl Upstream {
    /// Lanes to each of its urls, of all shards.
    fn lanes_each(&self, shards: u16) -> u32 {
        u32::from(self.connection_pool_size.max(shards))
    }
}

/// For a successor there is a second one of each.
fn listeners_each(listeners: usize, awaits_successor: bool) -> usize {
    if awaits_successor { 2 * listeners } else { listeners }
}

fn lanes(upstreams: &[Upstream], shards: u16) -> u32 {
    upstreams.iter().map(|upstream| upstream.lanes_each(shards) * upstream.urls.len() as u32).sum()
}
