//! The configuration: TOML file < environment < flags, into a `Config` that is valid by construction.
//!
//! ```text
//! settings   the table: one row a setting (key, flag, variable, values, default)
//! file, env, flags   what was written, with its place        value, url   what it means
//! resolve    the last word of each setting, contradictions -> Config, or every Fault at once
//! show       the resolved configuration as TOML               budget       what it may cost in memory
//! ```
//!
//! Nothing here opens a port; nothing else reads a setting.
pub mod budget;
pub mod env;
pub mod fault;
mod file;
pub mod flags;
mod resolve;
pub mod settings;
mod show;
mod url;
mod value;

pub use budget::Budget;
pub use fault::{Fault, Faults, Origin};
pub use flags::RunFlags;
pub use resolve::{Machine, Resolved};
pub use settings::Key;

use crate::limits::CONNECTIONS_SPARE;
use crate::proto::dotnetify::context::HeaderPolicy;
use core::time::Duration;
use std::net::SocketAddr;

/// A node's complete, valid configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub listen: SocketAddr,
    /// Admin endpoint; loopback by default.
    pub admin: SocketAddr,
    /// Threads with a ring each; at least 1.
    pub shards: u16,
    pub hub_path: String,
    /// Origins allowed beside the page's own.
    pub allowed_origins: Vec<String>,
    /// Level or tracing filter directive.
    pub log: String,
    pub log_format: LogFormat,
    pub hub: Hub,
    pub limits: Limits,
    /// Exactly one for now.
    pub upstream: Upstream,
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
    /// Client messages waiting for a lane that is not up, per lane: bytes. Default 4 MiB.
    pub upstream_queue_bytes: u32,
    /// ... and how long one may wait before it is answered with an error. Default 10 s.
    pub upstream_queue_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    pub url: UpstreamUrl,
    /// Lanes of the whole node; at least one per shard is used.
    pub connection_pool_size: u16,
    pub forward_headers: HeaderPolicy,
}

/// `http://host[:port][/base]` or `ws://...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    /// Name or address; IPv6 without brackets.
    pub host: String,
    pub port: u16,
    /// Is the app server reached by TLS (https, wss)?
    pub tls: bool,
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
    /// quarter more than its part, so that the whole node may hold more than `max_clients`.
    pub fn connections_per_shard(&self) -> u32 {
        let (all, shards) = (self.limits.max_clients, u32::from(self.shards));
        if shards == 1 { all } else { (all / shards + all / shards / 4 + CONNECTIONS_SPARE).min(all) }
    }

    /// Lanes in use: the pool, with at least one a shard.
    pub fn lanes(&self) -> u32 {
        u32::from(self.upstream.connection_pool_size.max(self.shards))
    }
}
