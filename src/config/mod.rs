//! The configuration: TOML file < environment < flags, into a `Config` that is valid by construction.
use crate::proto::dotnetify::context::HeaderPolicy;
use core::time::Duration;
use std::net::SocketAddr;

/// A node's complete, valid configuration.
#[derive(Clone, Debug)]
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
    pub hub: Hub,
    pub limits: Limits,
    /// Exactly one for now.
    pub upstream: Upstream,
}

/// The names ASP.NET users know from HubOptions.
#[derive(Clone, Debug)]
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

#[derive(Clone, Debug)]
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

#[derive(Clone, Debug)]
pub struct Upstream {
    pub url: UpstreamUrl,
    /// Lanes of the whole node; at least one per shard is used.
    pub connection_pool_size: u16,
    pub forward_headers: HeaderPolicy,
}

/// `http://host[:port][/base]` or `ws://...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    pub host: String,
    pub port: u16,
    /// Path in front of the hub path, without trailing slash; usually empty.
    pub base: String,
    /// As configured, for logs.
    pub text: String,
}
