//! What the picture says, as JSON: this is where its shape is documented.
//!
//! ```text
//! GET api/picture?clients=N        {"clients":48120,"nodes":[NODE,...]}       this node and its peers, at most N clients by name
//! GET api/node?clients=N           NODE                                       this node alone: what a peer asks for
//! GET api/client?node=ID&id=CLIENT DETAIL                                     one client of this node or a peer; 404 once it is gone
//!
//! NODE    {"id":"v8...","name":"node-a","url":"http://10.0.0.5:5000","admin":"10.0.0.5:9090","is_self":true,"trouble":null,
//!          "at_ms":81020,"clients":24060,"received":51230,"sent":912044,"cpu":12.5,"machine_cpu":30.1,"memory":41.25,
//!          "machine_memory":52.0,
//!          "app_servers":[{"upstream":"upstream-1","kind":"app_server","url":"http://10.0.0.9:5001"}],
//!          "lanes":[{"shard":0,"lane":0,"app_server":0,"state":"up","clients":4812,"waiting":0,"in_flight":2,
//!                    "owed_ms":1,"replays":0,"sent":12033,"received":90121}],
//!          "sample":[["AAAAAAAAAAB...",17,342],...]}
//! ```
//!
//! Counters (`received`, `sent`) only rise while a process lives: whoever wants rates divides their difference by that of `at_ms`, the
//! milliseconds since that process began. A `sample` row is a client's origin id, hub messages from it and for it; both of these wrap at
//! 2^32. The rows are all clients if there are as many as `clients` says, else an even sample, largely the same from one picture to the
//! next. `cpu` is in percent of the whole machine, `memory` in MB resident; null where the system does not say. A lane's `state` is
//! `up`, `connecting` or `waiting`, its `app_server` an index into `app_servers`, whose `kind` is `app_server` or `observer`.
//! `waiting` messages stand in front of a lane, `in_flight` ones are not acknowledged, and for `owed_ms` the app server has acknowledged none
//! although it should: a lane on which that rises is about to be replaced. `replays` are clients whose view models are to be requested
//! again.
//!
//! A peer that does not answer has `trouble`, a sentence, and what was last known of its `id`, `name` and `url`; the rest is empty.
use crate::bus::sight::{ClientDetail, PinDetail};
use crate::session::form::Transport;
use serde::{Deserialize, Serialize};

/// Several nodes.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PictureShown {
    /// Of all nodes that answered.
    pub(super) clients: u64,
    pub(super) nodes: Vec<NodeShown>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct NodeShown {
    /// Of the process: a restarted node has another one.
    pub(super) id: String,
    pub(super) name: String,
    /// Where clients connect.
    pub(super) url: String,
    /// Its admin endpoint, as it was asked.
    pub(super) admin: String,
    pub(super) is_self: bool,
    pub(super) trouble: Option<String>,
    pub(super) at_ms: u64,
    pub(super) clients: u32,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) cpu: Option<f64>,
    pub(super) machine_cpu: Option<f64>,
    pub(super) memory: Option<f64>,
    pub(super) machine_memory: Option<f64>,
    pub(super) app_servers: Vec<AppServerShown>,
    pub(super) lanes: Vec<LaneShown>,
    pub(super) sample: Vec<ClientShown>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AppServerShown {
    pub(super) upstream: String,
    pub(super) kind: String,
    pub(super) url: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct LaneShown {
    pub(super) shard: u16,
    pub(super) lane: u16,
    pub(super) app_server: u16,
    pub(super) state: String,
    pub(super) clients: u32,
    pub(super) waiting: u32,
    // Nodes that are older do not say.
    #[serde(default)]
    pub(super) in_flight: u32,
    #[serde(default)]
    pub(super) owed_ms: u64,
    #[serde(default)]
    pub(super) replays: u32,
    pub(super) sent: u64,
    pub(super) received: u64,
}

/// Origin id, messages received, messages sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ClientShown(pub(super) String, pub(super) u32, pub(super) u32);

/// One client. `transport` as negotiate calls it; `user_agent` and `user` are null where nobody has said; `away` is a client that nothing
/// carries at present. Of view models and groups at most `limits::DETAIL_NAMES_MAX` are named.
#[derive(Clone, Debug, Serialize)]
pub(super) struct DetailShown {
    pub(super) id: String,
    /// Of its node.
    pub(super) node: String,
    pub(super) at_ms: u64,
    pub(super) address: String,
    pub(super) listener: String,
    pub(super) transport: &'static str,
    pub(super) protocol: &'static str,
    pub(super) user_agent: Option<String>,
    pub(super) user: Option<String>,
    pub(super) state: &'static str,
    pub(super) received: u32,
    pub(super) sent: u32,
    pub(super) queued_bytes: u32,
    pub(super) view_models: Vec<String>,
    pub(super) view_model_count: u32,
    pub(super) lanes: Vec<PinShown>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct PinShown {
    /// `shard.lane`, as logs and metrics call it.
    pub(super) lane: String,
    pub(super) upstream: String,
    pub(super) url: String,
    pub(super) groups: Vec<String>,
    pub(super) group_count: u32,
}

impl DetailShown {
    /// `pin` names a lane and where it leads.
    pub(super) fn new(
        detail: ClientDetail,
        node: &str,
        at_ms: u64,
        pin: impl Fn(PinDetail) -> PinShown,
    ) -> DetailShown {
        DetailShown {
            id: String::from_utf8_lossy(&detail.origin.0).into_owned(),
            node: node.to_string(),
            at_ms,
            address: detail.remote.to_string(),
            listener: detail.local.to_string(),
            transport: match detail.form.transport {
                Transport::WebSockets => "WebSockets",
                Transport::ServerSentEvents => "ServerSentEvents",
                Transport::LongPolling => "LongPolling",
            },
            protocol: detail.form.protocol.name(),
            user_agent: detail.user_agent,
            user: detail.user,
            state: match (detail.is_open, detail.is_away) {
                (false, _) => "handshaking",
                (true, true) => "away",
                (true, false) => "connected",
            },
            received: detail.received,
            sent: detail.sent,
            queued_bytes: detail.queued_bytes,
            view_models: detail.views,
            view_model_count: detail.view_count,
            lanes: detail.pins.into_iter().map(pin).collect(),
        }
    }
}

/// Lists into one whose beginnings take from each as much as it has of the whole: of even samples it makes an even sample.
pub(super) fn interleave<T>(lists: Vec<Vec<T>>) -> Vec<T> {
    let mut placed: Vec<(f64, T)> = Vec::new();
    for list in lists {
        let count = list.len() as f64;
        placed.extend(list.into_iter().enumerate().map(|(at, item)| ((at as f64 + 0.5) / count, item)));
    }
    placed.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    placed.into_iter().map(|(_, item)| item).collect()
}

/// Cuts the nodes' samples so that together they have at most `clients_max`, each in proportion to the clients it stands for.
pub(super) fn cut(nodes: &mut [NodeShown], clients_max: u32) {
    let shown: usize = nodes.iter().map(|node| node.sample.len()).sum();
    if shown <= clients_max as usize {
        return;
    }
    let clients: u64 = nodes.iter().map(|node| u64::from(node.clients)).sum();
    for node in nodes {
        let share = u64::from(clients_max) * u64::from(node.clients) / clients.max(1);
        node.sample.truncate(share as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(clients: u32, shown: u32) -> NodeShown {
        let sample = (0..shown).map(|n| ClientShown(n.to_string(), n, 0)).collect();
        NodeShown { clients, sample, ..NodeShown::default() }
    }

    #[test]
    fn each_beginning_of_interleaved_lists_has_its_part_of_every_list() {
        let lists: Vec<Vec<(usize, usize)>> = [100, 50, 0, 10]
            .iter()
            .enumerate()
            .map(|(list, count)| (0..*count).map(|at| (list, at)).collect())
            .collect();
        let one = interleave(lists);
        assert_eq!(one.len(), 160);
        for (list, share) in [(0, 50), (1, 25), (2, 0), (3, 5)] {
            let places: Vec<usize> = one[..80].iter().filter(|item| item.0 == list).map(|item| item.1).collect();
            assert_eq!(places, (0..share).collect::<Vec<usize>>(), "the first of each, in its order");
        }
    }

    #[test]
    fn a_picture_is_cut_in_proportion_and_only_when_it_is_too_large() {
        let mut nodes = [node(30_000, 2000), node(10_000, 2000), node(0, 0)];
        cut(&mut nodes, 4000);
        assert_eq!(nodes.each_ref().map(|node| node.sample.len()), [2000, 2000, 0]);
        cut(&mut nodes, 2000);
        assert_eq!(nodes.each_ref().map(|node| node.sample.len()), [1500, 500, 0]);
        assert_eq!(nodes[1].sample[499].0, "499", "the beginning stays");
    }

    #[test]
    fn a_node_reads_what_another_one_writes() {
        let mut shown = node(7, 2);
        shown.lanes.push(LaneShown {
            shard: 1,
            lane: 2,
            app_server: 0,
            state: "up".into(),
            clients: 7,
            waiting: 0,
            in_flight: 2,
            owed_ms: 1,
            replays: 3,
            sent: 3,
            received: u64::MAX,
        });
        let text = serde_json::to_string(&shown).unwrap();
        assert!(text.contains(r#""sample":[["0",0,0],["1",1,0]]"#) && text.contains(r#""trouble":null"#), "{text}");
        let read: NodeShown = serde_json::from_str(&text).unwrap();
        assert_eq!((&read.sample, read.lanes[0].received), (&shown.sample, u64::MAX));
    }
}
