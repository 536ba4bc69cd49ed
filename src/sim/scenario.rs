//! What one seed decides before anything happens: the node's settings, its app servers, its clients, and what befalls them.
use super::app_server::MESSAGE_BYTES_MAX;
use super::chance::Chance;
use super::faults::Fault;
use super::network::Weather;
use super::wire::Encoding;
use crate::filter::Filter;
use crate::ids::{LanePlace, OriginKey, ShardId, UpstreamIndex};
use crate::journal::ShardJournal;
use crate::metrics::process::ProcessStats;
use crate::proto::dotnetify::context::HeaderPolicy;
use crate::proto::http::{HttpPolicy, OriginPolicy, Transports, Trusted};
use crate::proto::signalr::Protocol;
use crate::session::client::ClientSettings;
use crate::session::pace::Rate;
use crate::session::routing::{Dispatch, HubScope, Route, UpstreamKind};
use crate::session::token::TokenKey;
use crate::shard::{Occupancy, Settings, Upstream, Upstreams, Window};
use core::time::Duration;
use std::sync::Arc;

/// An upstream of the node.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) urls: u8,
    /// Lanes of each shard to each url.
    pub(super) lanes: usize,
    pub(super) encoding: Encoding,
    pub(super) scope: HubScope,
    /// Invocations under way at the most, and how long they may take; None: they are not acknowledged.
    pub(super) window: Option<Window>,
}

#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) shards: usize,
    pub(super) upstreams: Vec<Plan>,
    pub(super) users: usize,
    /// How long things go wrong.
    pub(super) rough: Duration,
    /// What is done by chance during that time, and how far it lies apart (milliseconds, at most).
    pub(super) faults: Vec<Fault>,
    pub(super) fault_every_ms: u64,
    /// Clients do something so often (milliseconds, at most).
    pub(super) act_every_ms: u64,
    pub(super) weather: Weather,
    pub(super) client_timeout: Duration,
    /// The shards are stopped while clients are there.
    pub(super) is_stopped_early: bool,
    /// Connections of a shard, at most.
    connections_max: u32,
    lane_queue_timeout: Duration,
    rate: Rate,
    accept_rate: u32,
    begins_unavailable: bool,
    replay_bytes_max: u32,
    headers: HeaderPolicy,
    secret: [u8; 16],
    seed: u64,
}

/// View models of this upstream begin with it.
pub(super) fn letter(upstream: usize) -> char {
    char::from(b'A' + upstream as u8)
}

impl Scenario {
    pub(super) fn new(chance: &mut Chance) -> Scenario {
        let is_fair = chance.happens(100);
        let several = chance.happens(300);
        let plan = |chance: &mut Chance| Plan {
            urls: if chance.happens(200) { 2 } else { 1 },
            lanes: 1 + chance.below(3),
            encoding: if chance.happens(300) { Encoding::MessagePack } else { Encoding::Json },
            scope: if chance.happens(250) { HubScope::Node } else { HubScope::Lane },
            window: chance.happens(800).then(|| Window {
                messages: chance.one_of(&[1, 3, 16, 256]),
                timeout: Duration::from_secs(chance.one_of(&[3, 10, 30])),
            }),
        };
        let upstreams = (0..if several { 2 } else { 1 }).map(|_| plan(chance)).collect();
        let odds = |chance: &mut Chance, most: usize| if is_fair { 0 } else { chance.below(most) as u32 };
        let weather = Weather {
            latency_us: chance.one_of(&[(20, 100), (100, 3_000), (5_000, 80_000)]),
            cut: chance.below(400) as u32,
            part: odds(chance, 300),
            short: odds(chance, 200),
            interrupted: odds(chance, 50),
            starved: odds(chance, 100),
            spurious: odds(chance, 100),
            poll_ends: odds(chance, 100),
            buffers: if is_fair { [64, 16] } else { [1 + chance.below(8) as u16, 1 + chance.below(4) as u16] },
            window: chance.one_of(&[4_000, 16_000, 64_000]),
        };
        // Each seed has a few kinds of its own, so that nothing is always masked by something else.
        let faults =
            if is_fair { Vec::new() } else { Fault::BY_CHANCE.into_iter().filter(|_| chance.happens(400)).collect() };
        let most_users = if chance.happens(100) { 30 } else { 10 };
        Scenario {
            shards: if chance.happens(250) { 2 } else { 1 },
            upstreams,
            users: 2 + chance.below(most_users),
            rough: chance.millis(3_000, 20_000),
            faults,
            fault_every_ms: chance.one_of(&[1_000, 3_000, 8_000]),
            act_every_ms: chance.one_of(&[500, 2_000, 4_000]),
            weather,
            is_stopped_early: chance.happens(400),
            connections_max: if chance.happens(100) { 4 } else { 200 },
            client_timeout: Duration::from_secs(chance.one_of(&[8, 20])),
            lane_queue_timeout: Duration::from_secs(chance.one_of(&[1, 5, 15])),
            rate: if chance.happens(200) { Rate { per_second: 5, burst: 10 } } else { Rate::ANY },
            accept_rate: if chance.happens(200) { 5 } else { 0 },
            begins_unavailable: chance.happens(700),
            replay_bytes_max: if chance.happens(150) { 150 } else { 16 * 1024 },
            headers: if chance.happens(500) {
                HeaderPolicy::All
            } else {
                HeaderPolicy::Only(vec!["user-agent".into()])
            },
            secret: chance.bytes(),
            seed: chance.next(),
        }
    }

    /// There may be more users than a node takes.
    pub(super) fn has_few_places(&self) -> bool {
        self.connections_max < 200
    }

    /// A client may have more view models than can be requested again, and is asked to come back where that would be needed.
    pub(super) fn ends_with_lanes(&self) -> bool {
        self.replay_bytes_max < 1024
    }

    /// Where the lanes of a shard lead.
    pub(super) fn lanes(&self) -> Vec<LanePlace> {
        let mut lanes = Vec::new();
        for (upstream, plan) in self.upstreams.iter().enumerate() {
            for url in 0..plan.urls {
                let place = LanePlace { upstream: UpstreamIndex(upstream as u8), url };
                lanes.extend(core::iter::repeat_n(place, plan.lanes));
            }
        }
        lanes
    }

    /// Every app server: one a url.
    pub(super) fn places(&self) -> Vec<LanePlace> {
        let mut places = self.lanes();
        places.dedup();
        places
    }

    pub(super) fn plan(&self, place: LanePlace) -> &Plan {
        &self.upstreams[usize::from(place.upstream.0)]
    }

    fn upstream(&self, index: usize, plan: &Plan) -> Upstream {
        let is_last = index + 1 == self.upstreams.len();
        let filter = || Filter::compile(&format!("vm_id.startsWith('{}')", letter(index))).expect("a filter");
        Upstream {
            name: format!("upstream-{index}"),
            route: Route { kind: UpstreamKind::AppServer, filter: (!is_last).then(filter), halts: true },
            protocol: match plan.encoding {
                Encoding::Json => Protocol::Json,
                Encoding::MessagePack => Protocol::MessagePack,
            },
            message_bytes_max: MESSAGE_BYTES_MAX as u32,
            forward_headers: self.headers.clone(),
            shown_host: None,
            dispatch: Dispatch::Client,
            hub_scope: plan.scope,
            window: plan.window,
            weights: vec![1; usize::from(plan.urls)],
        }
    }

    /// How many connections all shards together may have.
    pub(super) fn occupancy(&self) -> Arc<Occupancy> {
        Arc::new(Occupancy::new(self.connections_max))
    }

    pub(super) fn settings(&self, shard: usize, occupancy: Arc<Occupancy>) -> Settings {
        let upstreams = self.upstreams.iter().enumerate().map(|(index, plan)| self.upstream(index, plan)).collect();
        Settings {
            shard: ShardId(shard as u8),
            http: HttpPolicy {
                hub_path: "/dotnetify".into(),
                origins: OriginPolicy { allowed: Vec::new() },
                transports: Transports::ALL,
                post_body_bytes_max: 64 * 1024,
            },
            client: ClientSettings {
                handshake_timeout: Duration::from_secs(15),
                client_timeout: self.client_timeout,
                keep_alive: self.client_timeout / 2,
                message_bytes_max: 32 * 1024,
                rate: self.rate,
            },
            trusted: Trusted::default(),
            proxy_protocol: false,
            authentication: None,
            resume_bytes_max: None,
            poll_timeout: Duration::from_secs(90),
            disconnect_timeout: Duration::from_secs(15),
            upstreams: Upstreams::new(upstreams),
            lanes: self.lanes(),
            process: Arc::new(ProcessStats::default()),
            has_tls: false,
            connections_max: self.connections_max,
            occupancy,
            accept_rate: self.accept_rate,
            addresses: None,
            begins_unavailable: self.begins_unavailable,
            send_queue_bytes_max: 16 * 1024,
            send_queue_time: Duration::from_secs(30),
            send_buffer_bytes: 16 * 1024,
            request_head_timeout: Duration::from_secs(15),
            lane_queue_bytes_max: 256 * 1024,
            lane_queue_timeout: self.lane_queue_timeout,
            replay_bytes_max: self.replay_bytes_max,
            origin_key: OriginKey(self.secret),
            journal: ShardJournal::default(),
            tokens: TokenKey::new(&self.secret, "sim"),
            seed: self.seed,
        }
    }
}
