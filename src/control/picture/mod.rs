//! The live picture: a page of the admin endpoint that shows this node and its peers, their app servers and clients, and what goes
//! between them.
//!
//! ```text
//! page  --GET api/picture, once a second-->  this node  --GET api/node-->  its peers
//!                                               |
//!                                               +--Look, over the bus-->  its shards
//! ```
//!
//! Nothing is measured while nobody looks, and one look serves everybody who asks within half a second. `shown` has the JSON's shape.
//!
//! The endpoint asks for no password and only shows. So that it shows nothing to other sites whose pages an operator's browser has
//! open, its answers carry no CORS headers, and a request under a name that anybody could have registered is refused: a page of
//! `evil.example` can have that name resolve to 127.0.0.1 (DNS rebinding), but not choose the `Host` its requests carry.
mod page;
mod peers;
mod shown;

use super::admin;
use super::plane::State;
use crate::bus::sight::{PinDetail, Sight};
use crate::bus::{Sender, ShardOrder};
use crate::config::Config;
use crate::ids::{ID_BYTES, LaneIndex, LaneKey, OriginId, OriginKey, ShardId, UpstreamIndex, base64url};
use crate::limits::{LOOK_KEPT_MS, LOOK_MS, PEER_REST_MS, PEERS_MAX, PICTURE_CLIENTS_MAX};
use crate::metrics::process::ProcessStats;
use crate::metrics::{Counter, Gauge, Published};
use crate::proto::http::Head;
use crate::session::routing::UpstreamKind;
use core::cell::RefCell;
use core::time::Duration;
use peers::Trouble;
use shown::{AppServerShown, ClientShown, DetailShown, LaneShown, NodeShown, PictureShown, PinShown, cut, interleave};
use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{Mutex, oneshot};
use tokio::time::timeout_at;

const KEPT: Duration = Duration::from_millis(LOOK_KEPT_MS);
const JSON: &str = "application/json";
/// No other site may take it for a part of its own pages.
const OWN: &str = "X-Content-Type-Options: nosniff\r\nCross-Origin-Resource-Policy: same-origin\r\n";

/// What does not change during a node's life.
pub(super) struct Ground {
    /// Of this process.
    id: String,
    name: String,
    url: String,
    admin: SocketAddr,
    app_servers: Vec<AppServerShown>,
    /// Where each shard's lanes lead: indices into `app_servers`.
    lanes: Vec<Vec<u16>>,
    peers: Vec<String>,
    origin_key: OriginKey,
    started: Instant,
}

impl Ground {
    /// `url`: where clients connect. `random`: names the process.
    pub(super) fn new(
        config: &Config,
        url: &str,
        admin: SocketAddr,
        origin_key: OriginKey,
        random: [u8; 16],
    ) -> Ground {
        let mut app_servers = Vec::new();
        let mut first = Vec::new();
        for upstream in &config.upstreams {
            first.push(app_servers.len() as u16);
            app_servers.extend(upstream.urls.iter().map(|weighted| AppServerShown {
                upstream: upstream.name.clone(),
                kind: match upstream.kind {
                    UpstreamKind::AppServer => "app_server".into(),
                    UpstreamKind::Observer => "observer".into(),
                },
                url: weighted.url.text.clone(),
            }));
        }
        let lanes = (0..config.shards)
            .map(|shard| {
                let places = config.lanes_of(ShardId(shard as u8));
                let index = |UpstreamIndex(upstream)| first[usize::from(upstream)];
                places.iter().map(|place| index(place.upstream) + u16::from(place.url)).collect()
            })
            .collect();
        Ground {
            id: String::from_utf8_lossy(&base64url(&random)).into_owned(),
            name: config.node_name.clone().unwrap_or_else(|| {
                let place = url.split_once("://").map_or(url, |(_, place)| place);
                place.to_string()
            }),
            url: url.to_string(),
            admin,
            app_servers,
            lanes,
            peers: config.peers.iter().take(PEERS_MAX).cloned().collect(),
            origin_key,
            started: Instant::now(),
        }
    }

    fn at_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

/// What is answered to one request.
struct Reply {
    status: u16,
    content_type: &'static str,
    text: Cow<'static, str>,
    /// Lines of the head.
    headers: &'static str,
}

impl Reply {
    fn text(status: u16, text: impl Into<Cow<'static, str>>) -> Reply {
        Reply { status, content_type: "text/plain; charset=utf-8", text: text.into(), headers: OWN }
    }
}

/// What was seen, and when.
type Kept<T> = Mutex<Option<(Instant, Rc<T>)>>;

pub(super) struct Picture {
    ground: Ground,
    shards: Vec<Sender<ShardOrder>>,
    process: Arc<ProcessStats>,
    state: Rc<State>,
    node: Kept<NodeShown>,
    peers: Kept<Vec<NodeShown>>,
    /// By address.
    known: RefCell<HashMap<String, Known>>,
}

/// A peer between two pictures.
#[derive(Clone, Default)]
struct Known {
    /// What it last said it is, so that one that is away keeps its place.
    brief: NodeShown,
    /// It did not answer in time, the last time.
    was_silent: bool,
    /// ... twice, and is not asked again before.
    rests_until: Option<Instant>,
}

impl Picture {
    pub(super) fn new(
        ground: Ground,
        shards: Vec<Sender<ShardOrder>>,
        process: Arc<ProcessStats>,
        state: Rc<State>,
    ) -> Picture {
        let (node, peers) = (Mutex::default(), Mutex::default());
        Picture { ground, shards, process, state, node, peers, known: RefCell::default() }
    }

    /// The whole answer to a request for one of the picture's paths; without its body to a HEAD.
    pub(super) async fn answer(self: &Rc<Self>, head: &Head<'_>) -> Option<String> {
        let Reply { status, content_type, text, headers } = self.reply(head).await?;
        Some(admin::reply(status, content_type, &text, headers, head.method == "GET"))
    }

    async fn reply(self: &Rc<Self>, head: &Head<'_>) -> Option<Reply> {
        if !matches!(head.path, "/" | "/picture")
            && !head.path.starts_with("/picture/")
            && !head.path.starts_with("/api/")
        {
            return None;
        }
        if !is_private(head.header("host").unwrap_or_default()) {
            let words = "The picture is not shown under this name: ask for it by IP address, as localhost, or by a private name (node-1, node-1.internal).\n";
            return Some(Reply::text(421, words));
        }
        Some(match head.path {
            "/api/picture" => match clients_max(head) {
                Ok(clients_max) => json(200, &self.picture(clients_max).await),
                Err(words) => Reply::text(400, words),
            },
            "/api/node" => match clients_max(head) {
                Ok(clients_max) => {
                    let mut node = NodeShown::clone(&*self.node().await);
                    node.sample.truncate(clients_max as usize);
                    json(200, &node)
                }
                Err(words) => Reply::text(400, words),
            },
            "/api/client" => self.client(head).await,
            path => page::answer(path)?,
        })
    }

    /// This node and its peers.
    async fn picture(self: &Rc<Self>, clients_max: u32) -> PictureShown {
        let (node, peers) = tokio::join!(self.node(), self.peers());
        let mut nodes = vec![NodeShown { is_self: true, ..NodeShown::clone(&node) }];
        // The nodes of one configuration may all have the same list, with themselves in it; and one may be there by two names.
        for peer in peers.iter() {
            if peer.id.is_empty() || nodes.iter().all(|node| node.id != peer.id) {
                nodes.push(peer.clone());
            }
        }
        cut(&mut nodes, clients_max);
        PictureShown { clients: nodes.iter().map(|node| u64::from(node.clients)).sum(), nodes }
    }

    /// This node, as of now or a moment ago.
    async fn node(&self) -> Rc<NodeShown> {
        let mut kept = self.node.lock().await;
        if let Some((seen, node)) = &*kept
            && seen.elapsed() < KEPT
        {
            return node.clone();
        }
        let node = Rc::new(self.look().await);
        *kept = Some((Instant::now(), node.clone()));
        node
    }

    async fn look(&self) -> NodeShown {
        let Picture { ground, state, .. } = self;
        let deadline = tokio::time::Instant::now() + Duration::from_millis(LOOK_MS);
        let counts: Vec<u64> = state.published.iter().map(|published| published.gauge(Gauge::Clients)).collect();
        let asked: Vec<oneshot::Receiver<Sight>> =
            self.shards.iter().zip(shares(&counts)).map(|(shard, share)| ask_shard(shard, share)).collect();
        let mut sights = Vec::new();
        for sight in asked {
            sights.push(timeout_at(deadline, sight).await.ok().and_then(Result::ok));
        }
        // One that is stuck or has ended is known by its numbers only; the rest is no worse for it.
        let sights = sights
            .into_iter()
            .zip(&counts)
            .map(|(sight, count)| sight.unwrap_or_else(|| Sight { clients: *count as u32, ..Sight::default() }));
        let sights: Vec<Sight> = sights.collect();
        let states: HashMap<(u16, u16), &'static str> =
            state.lane_infos().into_iter().map(|lane| ((lane.shard, lane.lane), lane.state.label())).collect();
        let mut lanes = Vec::new();
        for (shard, (places, sight)) in ground.lanes.iter().zip(&sights).enumerate() {
            for (index, app_server) in places.iter().enumerate() {
                let key = (shard as u16, index as u16);
                let lane = sight.lanes.get(index).copied().unwrap_or_default();
                lanes.push(LaneShown {
                    shard: key.0,
                    lane: key.1,
                    app_server: *app_server,
                    state: states.get(&key).copied().unwrap_or("waiting").into(),
                    clients: lane.clients,
                    waiting: lane.waiting,
                    in_flight: lane.in_flight,
                    owed_ms: lane.owed.as_millis() as u64,
                    replays: lane.replays,
                    sent: lane.sent,
                    received: lane.received,
                });
            }
        }
        let clients = sights.iter().map(|sight| sight.clients).sum();
        let mut sample = interleave(sights.into_iter().map(|sight| sight.shown).collect());
        sample.truncate(PICTURE_CLIENTS_MAX as usize);
        let usage = self.process.get();
        let hundredths = |value: Option<u64>| value.map(|value| value as f64 / 100.0);
        NodeShown {
            id: ground.id.clone(),
            name: ground.name.clone(),
            url: ground.url.clone(),
            admin: ground.admin.to_string(),
            is_self: false,
            trouble: None,
            at_ms: ground.at_ms(),
            clients,
            received: sum(&state.published, &RECEIVED),
            sent: sum(&state.published, &SENT),
            cpu: hundredths(usage.process_cpu),
            machine_cpu: hundredths(usage.total_cpu),
            memory: hundredths(usage.process_memory),
            machine_memory: hundredths(usage.total_memory),
            app_servers: ground.app_servers.clone(),
            lanes,
            sample: sample
                .into_iter()
                .map(|client| ClientShown(origin_text(&client.origin.0), client.received, client.sent))
                .collect(),
        }
    }

    /// The other nodes, all asked at once.
    async fn peers(self: &Rc<Self>) -> Rc<Vec<NodeShown>> {
        let mut kept = self.peers.lock().await;
        if let Some((seen, peers)) = &*kept
            && seen.elapsed() < KEPT
        {
            return peers.clone();
        }
        let asked: Vec<_> = self
            .ground
            .peers
            .iter()
            .map(|address| {
                let (picture, address) = (self.clone(), address.clone());
                tokio_uring::spawn(async move { picture.peer(&address).await })
            })
            .collect();
        let mut peers = Vec::new();
        for peer in asked {
            peers.extend(peer.await);
        }
        let peers = Rc::new(peers);
        *kept = Some((Instant::now(), peers.clone()));
        peers
    }

    async fn peer(&self, address: &str) -> NodeShown {
        let known = self.known.borrow().get(address).cloned();
        let mut known = known.unwrap_or_else(|| {
            let brief = NodeShown { name: address.into(), admin: address.into(), ..NodeShown::default() };
            Known { brief, was_silent: false, rests_until: None }
        });
        if known.rests_until.is_some_and(|until| Instant::now() < until) {
            return known.brief;
        }
        const FOREIGN: &str = "is this a node's admin endpoint, of this version?";
        let path = format!("/api/node?clients={PICTURE_CLIENTS_MAX}");
        let node = peers::ask(address, &path).await.and_then(|answer| match answer.status {
            200 => serde_json::from_slice::<NodeShown>(&answer.body)
                .map_err(|_| Trouble::Other(format!("it answers something else: {FOREIGN}"))),
            status => Err(Trouble::Other(format!("it answers with status {status}: {FOREIGN}"))),
        });
        // Once may be chance on a busy machine.
        let is_silent = matches!(node, Err(Trouble::Silent(_)));
        let rest = Instant::now() + Duration::from_millis(PEER_REST_MS);
        known.rests_until = (is_silent && known.was_silent).then_some(rest);
        known.was_silent = is_silent;
        let shown = match node {
            Ok(mut node) => {
                node.admin = address.to_string();
                (node.is_self, node.trouble) = (false, None);
                node.sample.truncate(PICTURE_CLIENTS_MAX as usize);
                let app_servers = node.app_servers.len();
                node.lanes.retain(|lane| usize::from(lane.app_server) < app_servers);
                known.brief = NodeShown {
                    id: node.id.clone(),
                    name: node.name.clone(),
                    url: node.url.clone(),
                    admin: node.admin.clone(),
                    ..NodeShown::default()
                };
                node
            }
            Err(trouble) => {
                known.brief.trouble = Some(trouble.words());
                known.brief.clone()
            }
        };
        self.known.borrow_mut().insert(address.to_string(), known);
        shown
    }

    /// One client, of this node or of a peer.
    async fn client(&self, head: &Head<'_>) -> Reply {
        let (Some(node), Some(id)) = (head.query_value("node"), head.query_value("id")) else {
            return Reply::text(400, "Say which: api/client?node=ID&id=CLIENT, as api/picture names them.\n");
        };
        if !is_id(node) || !is_id(id) {
            return Reply::text(400, "node and id are 22 characters of A-Z a-z 0-9 _ - each.\n");
        }
        if node == self.ground.id {
            return self.own_client(id).await;
        }
        let known =
            self.known.borrow().iter().find(|(_, peer)| peer.brief.id == node).map(|(address, _)| address.clone());
        let Some(address) = known else {
            return Reply::text(404, "No node of this id is in the picture.\n");
        };
        match peers::ask(&address, &format!("/api/client?node={node}&id={id}")).await {
            Ok(answer) if answer.status == 200 => match String::from_utf8(answer.body) {
                Ok(body) => Reply { content_type: JSON, ..Reply::text(200, body) },
                Err(_) => Reply::text(502, "The node's answer is not text.\n"),
            },
            Ok(answer) if answer.status == 404 => Reply::text(404, GONE),
            Ok(answer) => Reply::text(502, format!("The node {address} answers with status {}.\n", answer.status)),
            Err(trouble) => Reply::text(502, format!("The client's node does not answer: {}\n", trouble.words())),
        }
    }

    async fn own_client(&self, id: &str) -> Reply {
        // One of another process, or forged.
        let (client, address) = (id.as_bytes().try_into().map(OriginId), self.ground.origin_key.open(id.as_bytes()));
        let (Ok(client), Some(address)) = (client, address) else { return Reply::text(404, GONE) };
        let shard = usize::from(address.shard.0);
        let Some(orders) = self.shards.get(shard) else { return Reply::text(404, GONE) };
        let (answer, answered) = oneshot::channel();
        let deadline = tokio::time::Instant::now() + Duration::from_millis(LOOK_MS);
        let asked = orders.send(ShardOrder::LookAt { client, answer }).is_ok();
        match timeout_at(deadline, answered).await {
            Ok(Ok(Some(detail))) => {
                let pin = |pin: PinDetail| self.pin(shard, pin);
                json(200, &DetailShown::new(*detail, &self.ground.id, self.ground.at_ms(), pin))
            }
            Ok(Ok(None)) => Reply::text(404, GONE),
            _ if asked => Reply::text(503, "The client's shard does not answer.\n"),
            _ => Reply::text(503, "The client's shard has too much to do.\n"),
        }
    }

    fn pin(&self, shard: usize, pin: PinDetail) -> PinShown {
        let place = self.ground.lanes.get(shard).and_then(|lanes| lanes.get(usize::from(pin.lane.0)));
        let app_server = place.map(|place| &self.ground.app_servers[usize::from(*place)]);
        PinShown {
            lane: lane_key(shard, usize::from(pin.lane.0)).to_string(),
            upstream: app_server.map(|app_server| app_server.upstream.clone()).unwrap_or_default(),
            url: app_server.map(|app_server| app_server.url.clone()).unwrap_or_default(),
            groups: pin.groups,
            group_count: pin.group_count,
        }
    }
}

const GONE: &str = "There is no such client; it may be gone.\n";

/// Requests of clients, and messages for them.
const RECEIVED: [Counter; 3] = [Counter::ClientRequestVm, Counter::ClientUpdateVm, Counter::ClientDisposeVm];
const SENT: [Counter; 4] =
    [Counter::DeliveredOne, Counter::DeliveredMany, Counter::DeliveredGroup, Counter::DeliveredUsers];

fn sum(published: &[Arc<Published>], counters: &[Counter]) -> u64 {
    published.iter().flat_map(|published| counters.iter().map(|counter| published.counter(*counter))).sum()
}

/// How many clients each shard is asked for: all it has if the picture has room for all, else in proportion.
fn shares(counts: &[u64]) -> impl Iterator<Item = u32> {
    let (room, total) = (u64::from(PICTURE_CLIENTS_MAX), counts.iter().sum::<u64>());
    counts.iter().map(move |count| if total <= room { room as u32 } else { (room * count).div_ceil(total) as u32 })
}

fn ask_shard(orders: &Sender<ShardOrder>, clients_max: u32) -> oneshot::Receiver<Sight> {
    let (answer, answered) = oneshot::channel();
    // One whose queue is full shows nothing this time: the order and with it the answer's sender is dropped.
    let _ = orders.send(ShardOrder::Look { clients_max, answer });
    answered
}

fn lane_key(shard: usize, index: usize) -> LaneKey {
    LaneKey { shard: ShardId(shard as u8), index: LaneIndex(index as u16) }
}

fn origin_text(id: &[u8]) -> String {
    String::from_utf8_lossy(id).into_owned()
}

fn json(status: u16, value: &impl serde::Serialize) -> Reply {
    let text = serde_json::to_string(value).expect("maps with text for keys, and no number that JSON has not");
    Reply { content_type: JSON, ..Reply::text(status, text) }
}

/// The bound that a request sets on the clients shown; all that a picture can show when it sets none.
fn clients_max(head: &Head<'_>) -> Result<u32, String> {
    let Some(value) = head.query_value("clients") else { return Ok(PICTURE_CLIENTS_MAX) };
    value
        .parse()
        .ok()
        .filter(|clients| *clients <= PICTURE_CLIENTS_MAX)
        .ok_or_else(|| format!("clients is a number of clients, 0 to {PICTURE_CLIENTS_MAX}.\n"))
}

fn is_id(text: &str) -> bool {
    text.len() == ID_BYTES && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// Is this `Host` one that no stranger can have a page under? An IP address, `localhost`, a name without a dot, or one of the domains
/// that are set aside for private use (RFC 6761, RFC 6762, RFC 8375, and `.internal` by ICANN).
fn is_private(host: &[u8]) -> bool {
    const PRIVATE: [&str; 5] = [".localhost", ".local", ".internal", ".home.arpa", ".test"];
    let Ok(host) = core::str::from_utf8(host) else { return false };
    if host.parse::<SocketAddr>().is_ok() {
        return true;
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
    name.parse::<IpAddr>().is_ok()
        || !name.is_empty() && (!name.contains('.') || PRIVATE.iter().any(|ending| name.ends_with(ending)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_no_stranger_can_have_are_answered() {
        for good in [
            "127.0.0.1:9090",
            "10.0.0.5",
            "[::1]:9090",
            "[fd00::5]",
            "localhost:9090",
            "LOCALHOST",
            "node-1:9090",
            "node-1.internal:80",
            "a.b.cluster.local.",
            "x.localhost",
        ] {
            assert!(is_private(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            ":9090",
            "evil.example",
            "evil.example:9090",
            "127.0.0.1.evil.example",
            "local.evil.com",
            "a.b",
            "\u{e9}.x",
        ] {
            assert!(!is_private(bad.as_bytes()), "{bad}");
        }
        assert!(!is_private(b"\xff"));
    }

    #[test]
    fn each_shard_is_asked_for_its_part() {
        let asked = |counts: &[u64]| shares(counts).collect::<Vec<u32>>();
        assert_eq!(asked(&[5, 0, 1995]), [2000, 2000, 2000], "room for all, and for those who come meanwhile");
        assert_eq!(asked(&[3000, 1000, 0]), [1500, 500, 0]);
        assert_eq!(asked(&[1, 1_000_000]), [1, 2000]);
    }
}
