//! What a configuration may cost in memory: one term per holder, so that "how much does it need" has an answer before it needs it.
//!
//! Sizes of our own things are those the compiler gives them, bounds are those of `limits`. Five figures are measured or
//! customary instead, because nothing here decides them; they stand at the end of the constants, each with where it is from.
use super::Config;
use crate::bus::{self, ControlOrder, ShardOrder};
use crate::filter::Needs;
use crate::ids::OriginId;
use crate::limits::*;
use crate::session::flight::FLIGHT_BYTES;
use crate::session::groups::MEMBERSHIP_BYTES;
use crate::session::routing::{HubScope, UpstreamKind};
use crate::session::views::{NAME_BYTES, VIEW_BYTES};
use crate::sys::ring::{BUFFER_ENTRY_BYTES, RING_BYTES, SENDS_BYTES};
use crate::{journal, metrics, shard};
use core::fmt;

/// Lists, queues and numbers of one shard, buffers apart.
const SHARD_BYTES: usize = shard::TURN_BYTES + SENDS_BYTES + metrics::METRICS_BYTES + bus::queue_bytes::<ShardOrder>();
const RECV_BYTES: usize = RECV_BUFFER_BYTES as usize + BUFFER_ENTRY_BYTES;
const LANE_RECV_BYTES: usize = LANE_RECV_BUFFER_BYTES as usize + BUFFER_ENTRY_BYTES;
/// A context with the headers of a browser (contract 3.3).
const CONTEXT_BYTES_USUAL: usize = 1300;
/// A head of bytes that are no UTF-8, each of which becomes a character of three.
const SEEN_BYTES_MAX: usize = 3 * HTTP_HEAD_BYTES_MAX;
/// Of a token three quarters are text behind base64, and a list of digits takes the most: two bytes a value.
const CLAIMS_BYTES_MAX: usize = TOKEN_BYTES_MAX * 3 / 4 / 2 * size_of::<serde_json::Value>();
/// Kernel memory of an idle TCP socket and its file, and of the poll armed on it, as counted in /proc/slabinfo on Linux 6.18
/// (`reference/io-architecture.md`, sections 0 and 2).
const SOCKET_KERNEL_BYTES: usize = 3850 + 288;
/// State of an idle TLS connection, as `tests/tls_memory.rs` measures it for both versions: keys and tickets; buffers are let go.
const TLS_BYTES_USUAL: usize = 3400;
/// What the kernel keeps of a client that is not read for a while: `net.ipv4.tcp_rmem`'s default. It lets it grow only where the
/// receiver is fast.
const RECEIVE_KERNEL_BYTES: usize = 128 * 1024;
/// A name may be written with escapes of six bytes for one.
const ESCAPED_MAX: usize = 6;
/// Stack of a thread that Rust starts. Pages that are never touched cost nothing.
const STACK_BYTES: usize = 2 * 1024 * 1024;

/// When a term is paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paid {
    /// At start, whoever comes.
    Start,
    /// By each idle client.
    Client,
    /// Only while peers are slow or lanes are down; the bound of the worst case.
    Worst,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    pub name: &'static str,
    pub paid: Paid,
    pub count: u64,
    pub bytes_each: u64,
    pub reason: &'static str,
}

impl Term {
    pub fn bytes(&self) -> u64 {
        self.count.saturating_mul(self.bytes_each)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    pub terms: Vec<Term>,
}

impl Budget {
    pub fn of(config: &Config) -> Budget {
        let (shards, lanes) = (u64::from(config.shards), u64::from(config.lanes()));
        let https_lanes = config.upstreams.iter().map(|upstream| {
            let urls = upstream.urls.iter().filter(|target| target.url.tls).count();
            u64::from(upstream.lanes_each(config.shards)) * urls as u64
        });
        let acknowledged = || config.upstreams.iter().filter(|upstream| upstream.acknowledge);
        // What is in flight on a lane may be over by the view models of one client, which are requested again together.
        let in_flight = acknowledged().map(|upstream| {
            let lanes = u64::from(upstream.lanes_each(config.shards)) * upstream.urls.len() as u64;
            lanes * u64::from(upstream.in_flight_max + VIEWS_PER_CLIENT_MAX)
        });
        let app_servers = config.upstreams.iter().filter(|upstream| upstream.kind == UpstreamKind::AppServer).count();
        let connections = shards * u64::from(config.connections_per_shard());
        let contexts = connections * config.context_kinds() as u64;
        let message_bytes = config.hub.maximum_receive_message_size as usize;
        let incomplete_bytes = message_bytes.max(HTTP_HEAD_BYTES_MAX + shard::HTTP_STAGE_BYTES);
        let [send_queue, send_buffer, lane_queue] = [
            config.limits.client_send_queue_bytes,
            config.limits.client_send_buffer_bytes,
            config.limits.upstream_queue_bytes,
        ]
        .map(|bytes| bytes as usize);
        let urls: usize = config.upstreams.iter().map(|upstream| upstream.urls.len()).sum();
        let transports = config.hub.transports;
        let filters = config.upstreams.iter().filter_map(|upstream| upstream.filter.as_ref());
        let needs = filters.fold(Needs::default(), |needs, filter| needs.with(filter.needs()));
        let shares_hub = config.upstreams.iter().any(|upstream| upstream.hub_id == HubScope::Node);
        let stateful = config.hub.allow_stateful_reconnects && transports.web_sockets;
        let carries = stateful || transports.server_sent_events || transports.long_polling;
        let https = config.listen.iter().any(|listener| listener.tls);
        // A term whose count is 0 is left out below.
        let each = |asked: bool, count: u64| if asked { count } else { 0 };
        let term = |name, paid, count: u64, bytes_each: usize, reason| {
            let bytes_each = bytes_each as u64;
            Term { name, paid, count, bytes_each, reason }
        };
        use Paid::{Client, Start, Worst};
        let mut terms = vec![
            term("thread stacks", Start, shards + 1, STACK_BYTES, "address space; shards and control plane"),
            term("rings", Start, shards, RING_BYTES, "submissions and completions, one ring a shard"),
            term(
                "receive buffers",
                Start,
                shards * u64::from(RECV_BUFFERS),
                RECV_BYTES,
                "provided buffers, shared by a shard's clients",
            ),
            term(
                "lane receive buffers",
                Start,
                shards * u64::from(LANE_RECV_BUFFERS),
                LANE_RECV_BYTES,
                "provided buffers, shared by a shard's lanes",
            ),
            term("shards", Start, shards, SHARD_BYTES, "lists of a turn, timers, metrics, orders"),
            term("orders to control", Start, 1, bus::queue_bytes::<ControlOrder>(), "one queue for all shards"),
            term("lanes", Start, lanes, shard::LANE_BYTES, "state of a lane, queues apart"),
            term("lanes' TLS", Start, https_lanes.sum(), TLS_BYTES_USUAL, "keys and buffers of those to https urls"),
            term("client slots", Client, connections, shard::CONNECTION_BYTES, "socket, session, deadline"),
            term(
                "client contexts",
                Client,
                contexts,
                CONTEXT_BYTES_USUAL,
                "what each message says of its client; usual headers",
            ),
            term("view models", Client, connections, VIEW_BYTES, "one each, names apart"),
            term("client groups", Client, connections, MEMBERSHIP_BYTES, "one group each, its name apart"),
            term(
                "clients' TLS",
                Client,
                each(https, connections),
                TLS_BYTES_USUAL,
                "keys and buffers, if all come by https",
            ),
            term(
                "addresses",
                Client,
                each(config.limits.connections_per_address > 0, connections),
                shard::ADDRESS_BYTES,
                "for connections_per_address, if each client has one of its own",
            ),
            term(
                "journal",
                Client,
                each(config.journal.is_some(), shards),
                journal::part_bytes(shard::places(config.connections_per_shard()), config.upstreams.len()),
                "a mapped file, a part for each shard; kept for who is gone, too",
            ),
            term(
                "client sockets (kernel)",
                Client,
                connections,
                SOCKET_KERNEL_BYTES,
                "socket, file and poll; measured, not in the process",
            ),
            term(
                "messages in pieces",
                Worst,
                connections,
                incomplete_bytes,
                "an incomplete message or request head each",
            ),
            term(
                "POST bodies",
                Worst,
                each(transports.server_sent_events || transports.long_polling, connections),
                message_bytes * POST_BODY_MESSAGES_MAX as usize,
                "incomplete ones of clients without WebSockets",
            ),
            term(
                "early POST bodies",
                Worst,
                each(transports.server_sent_events || transports.long_polling, shards),
                EARLY_BODIES_BYTES_MAX,
                "those that came before their transport began",
            ),
            term(
                "clients without a socket of their own",
                Worst,
                each(carries, connections),
                shard::HELD_CLIENT_BYTES,
                "found by their connection ids",
            ),
            term(
                "used connection tokens",
                Worst,
                shards * USED_TOKENS_MAX as u64,
                shard::USED_TOKEN_BYTES,
                "as long as they could be used again",
            ),
            term(
                "users",
                Worst,
                each(config.identity.is_some(), connections),
                shard::USER_BYTES + 2 * TOKEN_BYTES_MAX,
                "names and claims that app servers are shown, in two protocols",
            ),
            term(
                "clients' TLS in pieces",
                Worst,
                each(https, connections),
                TLS_CARRY_BYTES_MAX,
                "an incomplete record each",
            ),
            term(
                "clients' TLS queues",
                Worst,
                each(https, connections),
                TLS_SEALED_BYTES_MAX + (TLS_SEALED_BYTES_MAX / TLS_PLAIN_BYTES_MAX + 1) * TLS_EXPANSION_BYTES_MAX,
                "what is sealed at once, beside what waits in plain",
            ),
            term(
                "connections between shards",
                Worst,
                each(shards > 1, shards * BUS_ORDERS as u64),
                HTTP_HEAD_BYTES_MAX + RECV_BUFFER_BYTES as usize,
                "what was read of those that are handed over",
            ),
            term("lists of a turn", Worst, connections, shard::LISTED_BYTES, "a turn that concerns every connection"),
            term(
                "poll answers",
                Worst,
                each(transports.long_polling, connections),
                send_queue,
                "on their way, beside what waits for the next",
            ),
            term(
                "stateful reconnect buffers",
                Worst,
                each(stateful, connections),
                config.hub.stateful_reconnect_buffer_size as usize,
                "stateful_reconnect_buffer_size; not acknowledged",
            ),
            term(
                "large contexts",
                Worst,
                contexts,
                CONTEXT_BYTES_MAX - CONTEXT_BYTES_USUAL,
                "of larger ones the headers are left out",
            ),
            term(
                "what filters see of requests",
                Worst,
                each(needs.headers || needs.path, connections),
                SEEN_BYTES_MAX,
                "path and headers that filters ask for; equal ones once",
            ),
            term(
                "what filters see of users",
                Worst,
                each(needs.claims, connections),
                CLAIMS_BYTES_MAX,
                "claims of their tokens, all of them",
            ),
            term(
                "many groups",
                Worst,
                connections,
                (GROUPS_PER_CLIENT_MAX as usize - 1) * MEMBERSHIP_BYTES,
                "further joins are dropped; names apart",
            ),
            term(
                "many view models",
                Worst,
                connections,
                (VIEWS_PER_CLIENT_MAX as usize - 1) * (VIEW_BYTES + 2 * NAME_BYTES) + VIEW_NAMES_BYTES_MAX,
                "further requests are refused",
            ),
            term(
                "kept arguments",
                Worst,
                each(config.limits.client_replay_bytes > 0, connections),
                config.limits.client_replay_bytes as usize,
                "client_replay_bytes, if no two are equal",
            ),
            term(
                "clients between lanes",
                Worst,
                connections * app_servers as u64,
                shard::OWED_BYTES,
                "those whose view models are to be requested again",
            ),
            term(
                "client send queues",
                Worst,
                connections,
                send_queue,
                "client_send_queue_bytes; then a client is cut off",
            ),
            term(
                "room in frames",
                Worst,
                connections,
                send_queue + if stateful { config.hub.stateful_reconnect_buffer_size as usize } else { 0 },
                "what queues and buffers left free; they grow by doubling",
            ),
            term(
                "client receive buffers (kernel)",
                Worst,
                connections,
                RECEIVE_KERNEL_BYTES,
                "of clients that are not read; tcp_rmem",
            ),
            term(
                "client send buffers (kernel)",
                Worst,
                connections,
                send_buffer,
                "client_send_buffer_bytes; the kernel may double it",
            ),
            term(
                "kept byte buffers",
                Worst,
                shards * POOLED_BUFFERS_MAX as u64,
                POOLED_BUFFER_BYTES_MAX,
                "for the next message in pieces",
            ),
            term(
                "messages waiting for lanes",
                Worst,
                lanes,
                lane_queue,
                "upstream_queue_bytes; then clients get an error",
            ),
            term(
                "disposals waiting for lanes",
                Worst,
                connections,
                2 * VIEWS_PER_CLIENT_MAX as usize * shard::WAITING_BYTES + ESCAPED_MAX * VIEW_NAMES_BYTES_MAX,
                "of view models that are live; places grow by doubling",
            ),
            term(
                "lane send queues",
                Worst,
                lanes,
                LANE_SEND_BYTES_HIGH as usize,
                "then messages wait in front of the lane",
            ),
            term(
                "messages in flight",
                Worst,
                in_flight.sum(),
                2 * (FLIGHT_BYTES + FLIGHT_NAME_BYTES_MAX),
                "in_flight_max, and a client's replay; they grow by doubling",
            ),
            term(
                "ends said on stuck lanes",
                Worst,
                each(acknowledged().next().is_some(), connections + lanes * LANE_NOTICES_MAX as u64),
                shard::SAID_END_BYTES,
                "before the lane is given up; gone with its socket",
            ),
            term("lane messages in pieces", Worst, lanes, LANE_RECORD_BYTES_MAX, "a larger one ends the lane"),
            term(
                "records between shards",
                Worst,
                each(shares_hub, each(shards > 1, shards)),
                RELAY_BYTES_MAX,
                "for many, with hub_id = node; then they are dropped",
            ),
            term(
                "kept frames",
                Worst,
                shards,
                FRAME_POOL_KEPT_BYTES_MAX,
                "memory of sent messages that is kept for the next ones",
            ),
            term(
                "disconnect notices",
                Worst,
                lanes * LANE_NOTICES_MAX as u64,
                shard::NOTICE_BYTES,
                "for each lane, waiting or told lately; then the oldest is dropped",
            ),
            term(
                "notices told again",
                Worst,
                shards,
                shard::AGAIN_BYTES,
                "of lanes that were lost; then the oldest is told at once",
            ),
            term(
                "ids of killed processes",
                Worst,
                each(config.journal.is_some(), shards * urls as u64),
                JOURNAL_PAGE_IDS * size_of::<OriginId>(),
                "a page of a journal each, on their way to app servers",
            ),
            term(
                "admin requests",
                Worst,
                ADMIN_CONNECTIONS_MAX as u64,
                HTTP_HEAD_BYTES_MAX,
                "further connections are closed",
            ),
        ];
        terms.retain(|term| term.count > 0);
        Budget { terms }
    }

    /// In one line, for the log.
    pub fn summary(&self) -> String {
        let [start, idle, worst] = [Paid::Start, Paid::Client, Paid::Worst].map(|paid| self.total(paid));
        format!(
            "memory budget: {} at start, {} more with every place taken and idle, {} more at most if every queue is full at once; `signalring check` itemizes it",
            short(start),
            short(idle),
            short(worst)
        )
    }

    /// Bytes of the process's own memory at most, beside its code: what the kernel keeps for it and stacks that are not used are not
    /// among it.
    pub fn resident_max(&self) -> u64 {
        let own = |term: &&Term| !term.name.ends_with("(kernel)") && term.name != "thread stacks";
        self.terms.iter().filter(own).map(Term::bytes).fold(0, u64::saturating_add)
    }

    /// Bytes of the terms paid so.
    pub fn total(&self, paid: Paid) -> u64 {
        self.terms.iter().filter(|term| term.paid == paid).map(Term::bytes).fold(0, u64::saturating_add)
    }
}

/// As TOML comments, so that it can follow the configuration in one file.
impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Memory budget")?;
        writeln!(f, "# {:<30} {:>10} x {:>10} = {:>10}", "holder", "count", "each", "bytes")?;
        for (paid, heading, sum) in [
            (Paid::Start, "held from start", "at start"),
            (Paid::Client, "with every place taken and idle", "all clients idle"),
            (Paid::Worst, "at most, if every queue is full at once", "all queues full"),
        ] {
            writeln!(f, "# {heading}:")?;
            for term in self.terms.iter().filter(|term| term.paid == paid) {
                let (each, bytes) = (short(term.bytes_each), short(term.bytes()));
                writeln!(f, "#   {:<28} {:>10} x {each:>10} = {bytes:>10}  {}", term.name, term.count, term.reason)?;
            }
            writeln!(f, "#   {:<54} {:>10}", sum, short(self.total(paid)))?;
        }
        Ok(())
    }
}

/// Three or four digits and a unit.
fn short(bytes: u64) -> String {
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 10_000.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

#[cfg(test)]
mod tests {
    use super::super::{Key, Machine, RunFlags};
    use super::*;

    fn budget(flags: RunFlags) -> Budget {
        let machine = Machine { cores: 2, nofile: 1 << 22 };
        let config = Config::resolve(None, std::iter::empty(), &flags.with(Key::Url, "http://app"), &machine).unwrap();
        Budget::of(&config)
    }

    fn one_shard(clients: &str) -> Budget {
        budget(RunFlags::default().with(Key::Shards, "1").with(Key::MaxClients, clients))
    }

    #[test]
    fn what_is_paid_follows_the_settings() {
        let (small, large) = (one_shard("1000"), one_shard("2000"));
        assert_eq!(small.total(Paid::Start), large.total(Paid::Start));
        assert_eq!(small.total(Paid::Client) * 2, large.total(Paid::Client));
        let more_shards = budget(RunFlags::default().with(Key::MaxClients, "1000").with(Key::Shards, "4"));
        assert!(more_shards.total(Paid::Start) > small.total(Paid::Start));
        let longer_queues = budget(
            RunFlags::default()
                .with(Key::Shards, "1")
                .with(Key::MaxClients, "1000")
                .with(Key::ClientSendQueueBytes, "1MiB"),
        );
        let more_each = u64::from((1 << 20) - CLIENT_SEND_QUEUE_BYTES_DEFAULT);
        // What waits, the answer to a poll, and the room in their frames.
        assert_eq!(longer_queues.total(Paid::Worst), small.total(Paid::Worst) + 3 * 1000 * more_each);
    }

    #[test]
    fn a_transport_that_is_off_costs_nothing() {
        let with = |transports: &str, stateful: &str| {
            let flags = RunFlags::default().with(Key::Shards, "1").with(Key::MaxClients, "1000");
            budget(flags.with(Key::Transports, transports).with(Key::AllowStatefulReconnects, stateful))
        };
        let bytes = |budget: &Budget, name: &str| budget.terms.iter().find(|term| term.name == name).map(Term::bytes);
        let all = with("WebSockets,ServerSentEvents,LongPolling", "true");
        assert_eq!(bytes(&all, "stateful reconnect buffers"), Some(1000 * u64::from(STATEFUL_BUFFER_BYTES_DEFAULT)));
        assert_eq!(
            bytes(&all, "POST bodies"),
            Some(1000 * u64::from(MESSAGE_BYTES_DEFAULT) * u64::from(POST_BODY_MESSAGES_MAX))
        );
        assert_eq!(bytes(&all, "poll answers"), Some(1000 * u64::from(CLIENT_SEND_QUEUE_BYTES_DEFAULT)));
        let sockets = with("WebSockets", "false");
        for name in ["stateful reconnect buffers", "POST bodies", "poll answers"] {
            assert_eq!(bytes(&sockets, name), None, "{name}");
        }
        assert_eq!(bytes(&with("LongPolling", "true"), "stateful reconnect buffers"), None);
        assert_eq!(bytes(&with("ServerSentEvents", "true"), "poll answers"), None);
    }

    #[test]
    fn tls_costs_where_it_is_spoken() {
        let pem = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let tls = || {
            let flags = RunFlags::default().with(Key::TlsCertificateFile, pem).with(Key::TlsKeyFile, pem);
            flags.with(Key::Shards, "1").with(Key::MaxClients, "1000")
        };
        let plain = budget(tls());
        let https = budget(tls().with(Key::Listen, "127.0.0.1:80,https://127.0.0.1:443"));
        assert_eq!(https.total(Paid::Client), plain.total(Paid::Client) + 1000 * TLS_BYTES_USUAL as u64);
        let records = (TLS_CARRY_BYTES_MAX + TLS_SEALED_BYTES_MAX) as u64;
        assert!(https.total(Paid::Worst) > plain.total(Paid::Worst) + 1000 * records);
    }

    #[test]
    fn every_upstream_pays_for_its_lanes_and_for_contexts_of_its_own() {
        let of = |upstreams: &str| {
            let file = format!("shards = 2\n[limits]\nmax_clients = 1000\n{upstreams}");
            let machine = Machine { cores: 2, nofile: 1 << 22 };
            let config =
                Config::resolve(Some(("f", &file)), std::iter::empty(), &RunFlags::default(), &machine).unwrap();
            Budget::of(&config)
        };
        let count = |budget: &Budget, name: &str| {
            budget.terms.iter().find(|term| term.name == name).map_or(0, |term| term.count)
        };
        let one = of("[[upstream]]\nurl = \"https://a\"\n");
        let several = of(
            "[[upstream]]\nurls = [\"https://a\", \"http://b\"]\n[[upstream]]\nurl = \"http://c\"\nconnection_pool_size = 1\nhub_id = \"node\"\n\
             [[upstream]]\nkind = \"observer\"\nurl = \"http://o\"\nconnection_pool_size = 2\n",
        );
        let connections = count(&one, "client slots");
        for (name, of_one, of_several) in [
            ("lanes", 5, 5 + 5 + 2 + 2),
            ("lanes' TLS", 5, 5),
            ("messages waiting for lanes", 5, 14),
            ("client contexts", connections, 2 * connections),
            ("large contexts", connections, 2 * connections),
            ("view models", connections, connections),
            ("records between shards", 0, 2),
        ] {
            assert_eq!((count(&one, name), count(&several, name)), (of_one, of_several), "{name}");
        }
    }

    #[test]
    fn filters_pay_for_what_they_look_at() {
        let kept = |filter: &str| {
            let file = format!(
                "[identity]\nsigning_key = \"a secret of thirty-two bytes....\"\n[[upstream]]\nurl = \"http://a\"\nfilter = '{filter}'\n"
            );
            let machine = Machine { cores: 1, nofile: 1 << 22 };
            let config =
                Config::resolve(Some(("f", &file)), std::iter::empty(), &RunFlags::default(), &machine).unwrap();
            let terms = Budget::of(&config).terms;
            let kept = terms.iter().filter(|term| term.name.starts_with("what filters see of "));
            kept.map(|term| term.name.rsplit(' ').next().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(kept("vm_id == \"A\" && user == \"b\""), "");
        assert_eq!(kept("headers.x == \"A\""), "requests");
        assert_eq!(kept("path == \"/\" && \"role\" in claims"), "requests users");
    }

    #[test]
    fn the_sums_are_those_of_the_constants() {
        let budget = one_shard("1000");
        let each = |paid, count| {
            let terms = budget.terms.iter().filter(|term| term.paid == paid && term.count == count);
            terms.map(|term| term.bytes_each).sum::<u64>()
        };
        // Each client pays every term of an idle one, once.
        let idle = shard::CONNECTION_BYTES + CONTEXT_BYTES_USUAL + VIEW_BYTES + MEMBERSHIP_BYTES + SOCKET_KERNEL_BYTES;
        assert_eq!(each(Paid::Client, 1000), idle as u64);
        assert_eq!(budget.total(Paid::Client), 1000 * idle as u64);
        // What the kernel fills belongs to a shard, however many lanes and clients it has.
        let provided = u64::from(RECV_BUFFERS) * u64::from(RECV_BUFFER_BYTES)
            + u64::from(LANE_RECV_BUFFERS) * u64::from(LANE_RECV_BUFFER_BYTES);
        let buffers = budget.terms.iter().filter(|term| term.name.ends_with("receive buffers"));
        let entries = (usize::from(RECV_BUFFERS) + usize::from(LANE_RECV_BUFFERS)) * BUFFER_ENTRY_BYTES;
        assert_eq!(buffers.map(Term::bytes).sum::<u64>(), provided + entries as u64);
        // Entries of 64, 4 and 16 bytes are the kernel's interface.
        assert!(RING_BYTES > RING_SUBMISSIONS as usize * (64 + 4) + RING_COMPLETIONS as usize * 16);
        for paid in [Paid::Start, Paid::Client, Paid::Worst] {
            let sum: u64 =
                budget.terms.iter().filter(|term| term.paid == paid).map(|term| term.count * term.bytes_each).sum();
            assert_eq!(budget.total(paid), sum);
        }
        assert!(budget.terms.iter().all(|term| term.bytes() > 0 && !term.reason.is_empty()));
    }

    #[test]
    fn the_largest_configuration_does_not_overflow_and_prints_comments_only() {
        let largest = budget(
            RunFlags::default()
                .with(Key::MaxClients, "4000000")
                .with(Key::Shards, "256")
                .with(Key::ClientSendQueueBytes, "64MiB")
                .with(Key::UpstreamQueueBytes, "1GiB")
                .with(Key::ConnectionPoolSize, "1024"),
        );
        assert!(largest.total(Paid::Worst) > 4_000_000 * (64 << 20));
        for line in largest.to_string().lines() {
            assert!(line.starts_with('#') && line.len() < 160, "{line}");
        }
    }
}
