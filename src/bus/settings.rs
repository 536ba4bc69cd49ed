//! What may change in a shard's settings while it runs: what a node takes over of a configuration that it read again.
use crate::filter::Filter;
use crate::identity::Authentication;
use crate::proto::http::{HttpPolicy, Trusted};
use crate::session::client::ClientSettings;
use core::time::Duration;
use rustls::ServerConfig;
use std::sync::Arc;

/// Holds for whatever happens from now on. Clients stay as they are: who they are, which app servers their view models go to, what was
/// negotiated with them.
#[derive(Clone, Debug)]
pub struct Renewal {
    pub http: HttpPolicy,
    pub client: ClientSettings,
    /// Whose word on the real client is taken.
    pub trusted: Trusted,
    /// Every connection of one of them begins with a PROXY header.
    pub proxy_protocol: bool,
    pub authentication: Option<Authentication>,
    /// Bytes kept for a client's stateful reconnect; None: not offered.
    pub resume_bytes_max: Option<u32>,
    /// How long a poll waits for something to say.
    pub poll_timeout: Duration,
    /// How long a client may be without a poll, or without its socket if it can resume.
    pub disconnect_timeout: Duration,
    pub send_queue_bytes_max: u32,
    /// How long what is queued for a client may wait while it takes nothing.
    pub send_queue_time: Duration,
    pub send_buffer_bytes: u32,
    /// Connections a second that are accepted.
    pub accept_rate: u32,
    /// Clients may begin while no app server that answers can be reached.
    pub begins_unavailable: bool,
    pub request_head_timeout: Duration,
    /// Client messages waiting in front of a lane: bytes, and for how long.
    pub lane_queue_bytes_max: u32,
    pub lane_queue_timeout: Duration,
    /// Bytes of what a client's view models were requested with that are kept.
    pub replay_bytes_max: u32,
    /// Of https listeners. None: there are none.
    pub tls: Option<Arc<ServerConfig>>,
    /// One each, in the order of the configuration.
    pub upstreams: Vec<UpstreamRenewal>,
}

/// Of one upstream.
#[derive(Clone, Debug)]
pub struct UpstreamRenewal {
    /// Looks at nothing of clients that the filters at the node's start did not look at.
    pub filter: Option<Filter>,
    /// Of each url, at least 1.
    pub weights: Vec<u16>,
    /// Largest record it takes.
    pub message_bytes_max: u32,
    /// How much its app servers may owe, where they acknowledge.
    pub in_flight_max: u32,
    pub acknowledge_timeout: Duration,
}
