//! What a node's `/metrics` says at one moment, summed over its shards, and the equations that hold between its numbers.
#![allow(dead_code)] // Each test binary uses its part.

use super::common::{Node, PATIENCE, get};
use std::collections::BTreeMap;
use std::time::Instant;

/// By family, without `signalring_` and `_total`, and the value of its own label, where it has one.
#[derive(Clone, Debug, Default)]
pub struct Books(BTreeMap<(String, String), f64>);

/// A family's series with this label value; with none, all of them together.
type Term = (&'static str, &'static str);

pub struct Equation {
    pub says: &'static str,
    left: &'static [Term],
    right: &'static [Term],
    when: When,
}

/// When an equation holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    /// When nobody is connected and nothing is under way.
    AtRest,
    /// As long as no lane was lost: what is under way on one that is lost may be done or not.
    Undisturbed,
}

/// Of a node with one upstream that answers.
pub const EQUATIONS: &[Equation] = &[
    Equation {
        says: "every client that began has ended for one reason, or is there",
        left: &[("clients_opened", "")],
        right: &[("client_ends", ""), ("clients", "")],
        when: When::Always,
    },
    Equation {
        says: "every connection that was accepted has been closed",
        left: &[("connections_accepted", "")],
        right: &[("connections_closed", "")],
        when: When::AtRest,
    },
    Equation {
        says: "every call of a client, and every one said again for it, was written to a lane, refused, dropped with its client, or waits",
        left: &[
            ("client_messages", "request_vm"),
            ("client_messages", "update_vm"),
            ("client_messages", "dispose_vm"),
            ("replayed_requests", ""),
        ],
        right: &[
            ("forwarded", "request_vm"),
            ("forwarded", "update_vm"),
            ("forwarded", "dispose_vm"),
            ("refusals", "queue_timeout"),
            ("refusals", "queue_full"),
            ("refusals", "too_large_upstream"),
            ("refusals", "too_many_views"),
            ("drops", "gone_client"),
            ("queued_messages", ""),
        ],
        when: When::Always,
    },
    Equation {
        says: "every bad invocation was refused for one reason",
        left: &[("client_messages", "bad_request")],
        right: &[
            ("refusals", "unknown_method"),
            ("refusals", "argument_count"),
            ("refusals", "argument_type"),
            ("refusals", "streaming"),
        ],
        when: When::Always,
    },
    Equation {
        says: "every lane that connected was lost, or is up",
        left: &[("lane_events", "connected")],
        right: &[("lane_events", "lost"), ("lanes", "up")],
        when: When::Always,
    },
    Equation {
        says: "every invocation on a lane was acknowledged, or is under way",
        left: &[("forwarded", "")],
        right: &[("answer_seconds_count", ""), ("in_flight", "")],
        when: When::Undisturbed,
    },
    Equation {
        says: "whatever an app server says of clients came from the upstream",
        left: &[
            ("app_messages", "send"),
            ("app_messages", "send_many"),
            ("app_messages", "send_users"),
            ("app_messages", "group_send"),
            ("app_messages", "group_add"),
            ("app_messages", "group_remove"),
        ],
        right: &[("upstream_deliveries", "")],
        when: When::Always,
    },
    Equation {
        says: "nobody is pinned to an upstream any more",
        left: &[("upstream_clients", "")],
        right: &[],
        when: When::AtRest,
    },
    Equation {
        says: "nobody and nothing is left",
        left: &[
            ("clients", ""),
            ("http_connections", ""),
            ("frames", ""),
            ("groups", ""),
            ("queued_messages", ""),
            ("queued_bytes", ""),
            ("queued_disconnects", ""),
            ("in_flight", ""),
            ("waiting_replays", ""),
            ("upstream_queued_messages", ""),
        ],
        right: &[],
        when: When::AtRest,
    },
    Equation {
        says: "nothing was counted without a reason of its own",
        left: &[("refusals", "other"), ("client_ends", "other")],
        right: &[],
        when: When::Always,
    },
];

impl Books {
    pub fn of(node: &Node) -> Books {
        let reply = get(node.admin, "/metrics");
        assert_eq!(reply.status, 200);
        let mut sums = BTreeMap::new();
        for line in reply.body.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let Some(name) = series.split('{').next().and_then(|name| name.strip_prefix("signalring_")) else {
                continue;
            };
            let labels = series.split_once('{').map_or("", |(_, labels)| labels.trim_end_matches('}'));
            let own = labels.split(',').find_map(|label| {
                let (name, value) = label.split_once('=')?;
                (!["shard", "lane", "upstream", "url"].contains(&name)).then(|| value.trim_matches('"').to_string())
            });
            let family = name.strip_suffix("_total").unwrap_or(name).to_string();
            *sums.entry((family, own.unwrap_or_default())).or_insert(0.0) += value.parse::<f64>().expect("a number");
        }
        Books(sums)
    }

    /// A series, or with an empty label a whole family. Panics for one that is not there, which is a typing error.
    pub fn get(&self, family: &str, label: &str) -> f64 {
        let series = self.0.iter().filter(|((name, own), _)| name == family && (label.is_empty() || own == label));
        let mut values = series.map(|(_, value)| *value).peekable();
        assert!(values.peek().is_some(), "/metrics has no {family} {label}");
        values.sum()
    }

    /// The equations that do not hold, in words.
    pub fn faults(&self, at_rest: bool) -> Vec<String> {
        let sum = |terms: &[Term]| terms.iter().map(|(family, label)| self.get(family, label)).sum::<f64>();
        let asked = EQUATIONS.iter().filter(|equation| match equation.when {
            When::Always => true,
            When::AtRest => at_rest,
            When::Undisturbed => self.get("lane_events", "lost") == 0.0,
        });
        let wrong = asked.filter(|equation| sum(equation.left) != sum(equation.right));
        let shown = |terms: &[Term]| {
            let terms = terms.iter().map(|(family, label)| format!("{family} {label} {}", self.get(family, label)));
            terms.collect::<Vec<_>>().join(" + ")
        };
        wrong.map(|wrong| format!("{}: {} = {}", wrong.says, shown(wrong.left), shown(wrong.right))).collect()
    }

    /// Waits until the books of a node balance: a shard publishes its numbers once a turn, and not all shards at the same time.
    pub fn balanced(node: &Node, at_rest: bool) -> Books {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let books = Books::of(node);
            let faults = books.faults(at_rest);
            if faults.is_empty() {
                return books;
            }
            assert!(Instant::now() < deadline, "the node's books do not balance:\n{}", faults.join("\n"));
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// All series that differ, for failure messages.
    pub fn since(&self, earlier: &Books) -> String {
        let differing = self.0.iter().filter_map(|(key, value)| {
            let before = earlier.0.get(key).copied().unwrap_or(0.0);
            let is_noise = ["turns", "bytes"].contains(&key.0.as_str()) || key.0.contains("seconds");
            (before != *value && !is_noise).then(|| format!("{} {} {:+}", key.0, key.1, value - before))
        });
        differing.collect::<Vec<_>>().join("\n")
    }
}
