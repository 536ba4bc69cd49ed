//! The table of names. A series is added here and nowhere else; a family's series stand together and share its help.

/// One exported series: a family's name, and one label if the family has several series.
pub struct Series {
    pub family: &'static str,
    pub help: &'static str,
    /// Label name and value; both empty for a family of one.
    pub label: (&'static str, &'static str),
}

macro_rules! table {
    ($(#[$doc:meta])* $kind:ident, $all:ident: $($family:literal, $help:literal, $label:literal { $($name:ident = $value:literal),* $(,)? })*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum $kind { $($($name),*),* }

        pub const $all: &[Series] = &[$($(Series { family: $family, help: $help, label: ($label, $value) }),*),*];

        impl $kind {
            pub const ALL: &'static [$kind] = &[$($($kind::$name),*),*];

            pub fn series(self) -> &'static Series {
                &$all[self as usize]
            }

            /// The series of a family with this label value; for cold paths that have a label at hand.
            pub fn labelled(family: &str, value: &str) -> Option<$kind> {
                let at = $all.iter().position(|series| series.family == family && series.label.1 == value)?;
                Some($kind::ALL[at])
            }
        }
    };
}

table! {
    /// Only rises. Exported with `_total` behind its name.
    Counter, COUNTERS:

    "connections_accepted", "Connections accepted on the listening socket", "" { ConnectionsAccepted = "" }
    "connections_closed", "Connections closed, whichever side began", "" { ConnectionsClosed = "" }
    "accept_errors", "Accepts that failed, mostly for want of file descriptors", "" { AcceptErrors = "" }
    "accept_pauses", "Pauses in which no connection is accepted, because more than accept_rate came", "" { AcceptPauses = "" }
    "http_requests", "HTTP requests read whole, refused ones included", "" { HttpRequests = "" }
    "negotiations", "Negotiate requests answered with a token", "" { Negotiations = "" }
    "clients_opened", "Clients that began, by transport", "transport" {
        OpenedWebSockets = "web_sockets",
        OpenedServerSentEvents = "server_sent_events",
        OpenedLongPolling = "long_polling",
    }
    "handshakes", "SignalR handshakes accepted, by protocol", "protocol" {
        HandshakesJson = "json",
        HandshakesMessagePack = "messagepack",
    }
    "resumes", "Stateful clients that lost their socket, and came back with another", "event" {
        Detached = "lost",
        Resumed = "resumed",
    }
    "handed_over", "Connections handed to the shard that owns what they ask for", "" { HandedOver = "" }
    "tls_errors", "Connections of clients that ended because of their TLS", "" { TlsErrors = "" }
    "client_messages", "Hub messages received from clients, by kind", "kind" {
        ClientRequestVm = "request_vm",
        ClientUpdateVm = "update_vm",
        ClientDisposeVm = "dispose_vm",
        ClientPing = "ping",
        ClientBadRequest = "bad_request",
        ClientRepeated = "repeated",
        ClientOther = "other",
    }
    "forwarded", "Invocations written to lanes, by kind", "kind" {
        ForwardedRequestVm = "request_vm",
        ForwardedUpdateVm = "update_vm",
        ForwardedDisposeVm = "dispose_vm",
        ForwardedDisconnect = "disconnect",
    }
    "deliveries", "Messages queued for clients, by how they were addressed", "address" {
        DeliveredOne = "one",
        DeliveredMany = "many",
        DeliveredGroup = "group",
        DeliveredUsers = "users",
    }
    "app_messages", "Messages received from app servers, by kind", "kind" {
        AppSend = "send",
        AppSendMany = "send_many",
        AppSendUsers = "send_users",
        AppGroupSend = "group_send",
        AppGroupAdd = "group_add",
        AppGroupRemove = "group_remove",
        AppPing = "ping",
        AppOther = "other",
    }
    "bytes", "Bytes received and sent on sockets, by peer and direction", "flow" {
        BytesFromClients = "client_in",
        BytesToClients = "client_out",
        BytesFromApps = "app_in",
        BytesToApps = "app_out",
    }
    "lane_events", "What happened to lanes", "event" {
        LaneConnected = "connected",
        LaneLost = "lost",
        // Lost because the app server did nothing on it for too long: an alarm.
        LaneStuck = "stuck",
    }
    "moved_clients", "Clients that lost their lane, by what became of them", "result" {
        // Their view models are requested again under a new id.
        MovedReplay = "replay",
        // They had none.
        MovedIdle = "idle",
        // They have more than is kept, and were asked to come back.
        MovedClosed = "closed",
    }
    "replayed_requests", "View models requested again for clients that lost their lane", "" { Replayed = "" }
    "unknown_fates", "Messages on lanes that were lost before the app server acknowledged them; they are not repeated", "" { UnknownFates = "" }
    "messages_queued", "Client messages that had to wait for a lane", "" { MessagesQueued = "" }
    "unrouted", "Client messages that no upstream took, by call", "call" {
        UnroutedRequestVm = "request_vm",
        UnroutedUpdateVm = "update_vm",
        UnroutedDisposeVm = "dispose_vm",
    }
    "filter_errors", "Filters that could not be evaluated for a message, and so did not take it", "" { FilterErrors = "" }
    "relayed", "Records from app servers handed to other shards, for upstreams with hub_id = node", "" { Relayed = "" }
    "refusals", "Requests and messages refused, by reason", "reason" {
        // proto::http::HttpError, by label.
        RefusedMalformed = "malformed",
        RefusedHeadTooLarge = "head_too_large",
        RefusedTargetTooLong = "target_too_long",
        RefusedTooManyHeaders = "too_many_headers",
        RefusedVersion = "version",
        RefusedMissingHost = "missing_host",
        RefusedAmbiguousLength = "ambiguous_length",
        RefusedTransferEncoding = "transfer_encoding",
        RefusedBodyTooLarge = "body_too_large",
        RefusedNotFound = "not_found",
        RefusedMethodNotAllowed = "method_not_allowed",
        RefusedIdRequired = "id_required",
        RefusedWebSocketsNotSupported = "websockets_not_supported",
        RefusedServerSentEventsNotSupported = "server_sent_events_not_supported",
        RefusedLongPollingNotSupported = "long_polling_not_supported",
        RefusedUpgradeMalformed = "upgrade_malformed",
        RefusedWebSocketVersion = "websocket_version",
        RefusedOriginForbidden = "origin_forbidden",
        RefusedUnauthorized = "unauthorized",
        RefusedInvalidToken = "invalid_token",
        RefusedUnknownConnection = "unknown_connection",
        RefusedTransportChanged = "transport_changed",
        RefusedAlreadyActive = "already_active",
        RefusedPostToWebSocket = "post_to_websocket",
        RefusedDeleteNotLongPolling = "delete_not_long_polling",
        RefusedHeadTimeout = "head_timeout",
        RefusedProxyProtocol = "proxy_protocol",
        RefusedStopping = "stopping",
        RefusedOverloaded = "overloaded",
        RefusedTooManyRequests = "too_many_requests",
        RefusedAddressLimit = "address_limit",
        RefusedUnavailable = "unavailable",
        // proto::dotnetify::request::RequestError.
        RefusedUnknownMethod = "unknown_method",
        RefusedArgumentCount = "argument_count",
        RefusedArgumentType = "argument_type",
        RefusedStreaming = "streaming",
        // session::fault::Refusal.
        RefusedQueueTimeout = "queue_timeout",
        RefusedQueueFull = "queue_full",
        RefusedTooLargeUpstream = "too_large_upstream",
        RefusedUnrouted = "unrouted",
        RefusedTooManyViews = "too_many_views",
        RefusedStuck = "stuck",
        RefusedEndsLanes = "ends_lanes",
        RefusedFailed = "app_server_error",
        RefusedOther = "other",
    }
    "tokens", "Bearer tokens verified, by result", "result" {
        TokenAccepted = "accepted",
        // identity::TokenFault, by label.
        TokenTooLong = "too_long",
        TokenMalformed = "malformed",
        TokenAlgorithm = "algorithm",
        TokenUnknownKey = "unknown_key",
        TokenSignature = "signature",
        TokenNoExpiration = "no_expiration",
        TokenExpired = "expired",
        TokenNotYetValid = "not_yet_valid",
        TokenAudience = "audience",
        TokenIssuer = "issuer",
        TokenOther = "other",
    }
    "client_ends", "Clients that are gone, by reason", "reason" {
        // session::fault::End, by label.
        EndedPeerClose = "peer_close",
        EndedPeerCloseFrame = "peer_close_frame",
        EndedPeerGone = "peer_gone",
        EndedSocketError = "socket_error",
        EndedWebsocketError = "websocket_error",
        EndedNotUtf8 = "not_utf8",
        EndedHandshakeCanceled = "handshake_canceled",
        EndedHandshakeRefused = "handshake_refused",
        EndedMessageError = "message_error",
        EndedMessageTooLarge = "message_too_large",
        EndedClientTimeout = "client_timeout",
        EndedTls = "tls",
        EndedSequenceGap = "sequence_gap",
        EndedInactive = "inactive",
        EndedDeleted = "deleted",
        EndedSlowClient = "slow_client",
        EndedStalledClient = "stalled_client",
        EndedLaneLost = "lane_lost",
        EndedTokenExpired = "token_expired",
        EndedStopping = "stopping",
        EndedOther = "other",
    }
    "drops", "What was thrown away, by reason", "reason" {
        DroppedUnknownClient = "unknown_client",
        DroppedGoneClient = "gone_client",
        DroppedDisposal = "needless_disposal",
        DroppedUnsent = "unsent_bytes",
        DroppedEarlyPost = "early_post",
        DroppedHeaders = "context_headers",
        DroppedNotice = "disconnect_notice",
        DroppedReplay = "replay_too_large",
        DroppedJournal = "journal_full",
        DroppedAppMessage = "odd_app_message",
        DroppedResume = "resume_buffer",
        DroppedGroupJoin = "too_many_groups",
        DroppedRelay = "relay_queue_full",
        DroppedObserverMessage = "observer_message",
    }
    "http_ends", "HTTP connections that the node ended without an answer, by reason", "reason" {
        HttpEndedIdle = "idle",
        HttpEndedSlow = "slow",
        HttpEndedStalled = "stalled",
        HttpEndedPipelined = "too_much_behind_a_poll",
    }
    "read_pauses", "Pauses in which nothing was read from a client, by reason", "reason" {
        PausedRate = "message_rate",
        PausedLane = "lane_full",
    }
    "receive_buffers_exhausted", "Receives that found no free buffer and were repeated", "" { ReceiveBuffersExhausted = "" }
    "buried", "Ends of clients of killed processes that were told to app servers, each of them twice", "" { Buried = "" }
    "turns", "Turns of the shard's loop", "" { Turns = "" }
}

table! {
    /// Rises and falls; set from what it measures.
    Gauge, GAUGES:

    "clients", "Clients, from the start of their transport to their end", "" { Clients = "" }
    "http_connections", "Other connections: before a client begins on them, carrying one, or after its end", "" { HttpConnections = "" }
    "lanes", "Lanes by state; a lane that is down is being dialled", "state" { LanesUp = "up", LanesDown = "down" }
    "queued_messages", "Client messages waiting for a lane", "" { QueuedMessages = "" }
    "queued_bytes", "Bytes of client messages waiting for a lane", "" { QueuedBytes = "" }
    "in_flight", "Invocations on lanes that app servers have not acknowledged", "" { InFlight = "" }
    "waiting_replays", "Clients whose view models wait to be requested again", "" { WaitingReplays = "" }
    "queued_disconnects", "Disconnect notices waiting for a lane", "" { QueuedNotices = "" }
    "journal_ids", "Ids in the journal by state: of clients that live, and of those whose app server has not taken note of their end", "state" {
        JournalLive = "live",
        JournalPending = "pending",
    }
    "groups", "Groups with at least one client", "" { Groups = "" }
    "frames", "Frames of outgoing bytes in use", "" { Frames = "" }
}

table! {
    /// Only rises, one for each upstream. Exported with `_total` behind its name.
    UpstreamCounter, UPSTREAM_COUNTERS:

    "upstream_messages", "Client messages by upstream and what became of them there", "result" {
        // It took them.
        Forwarded = "forwarded",
        // It was shown them and they went on.
        Mirrored = "mirrored",
        // A mirror keeps nobody waiting: what it cannot take at once it does not get.
        DroppedDown = "dropped_lane_down",
        DroppedFull = "dropped_queue_full",
        DroppedTooLarge = "dropped_too_large",
    }
    "upstream_deliveries", "Messages and group changes for clients received from the app servers of an upstream", "" { Deliveries = "" }
}

table! {
    /// Rises and falls, one for each upstream; set from what it measures.
    UpstreamGauge, UPSTREAM_GAUGES:

    "upstream_clients", "Clients pinned to a lane of an upstream", "" { Clients = "" }
    "upstream_queued_messages", "Client messages waiting for a lane of an upstream", "" { Queued = "" }
}

impl Counter {
    /// The refusal with this label; `RefusedOther` for one the table does not know, which a test looks for.
    pub fn refusal(label: &str) -> Counter {
        Counter::labelled("refusals", label).unwrap_or(Counter::RefusedOther)
    }

    /// The end with this label, likewise.
    pub fn client_end(label: &str) -> Counter {
        Counter::labelled("client_ends", label).unwrap_or(Counter::EndedOther)
    }

    /// The token fault with this label, likewise.
    pub fn token(label: &str) -> Counter {
        Counter::labelled("tokens", label).unwrap_or(Counter::TokenOther)
    }
}

/// Bounds of every histogram, so that they all have the same shape.
pub const BUCKETS: usize = 12;

/// Distributions of times. Observed in microseconds, exported in seconds as Prometheus wants them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Histogram {
    QueueWait,
    Answer,
    Turn,
}

pub struct HistogramSeries {
    pub family: &'static str,
    pub help: &'static str,
    /// Upper bounds, inclusive, rising.
    pub bounds_us: [u64; BUCKETS],
}

impl Histogram {
    pub const ALL: &'static [Histogram] = &[Histogram::QueueWait, Histogram::Answer, Histogram::Turn];
}

const MS: u64 = 1000;

pub const HISTOGRAMS: &[HistogramSeries] = &[
    HistogramSeries {
        family: "queue_wait_seconds",
        help: "How long client messages waited for a lane",
        bounds_us: [
            MS,
            2 * MS,
            5 * MS,
            10 * MS,
            25 * MS,
            50 * MS,
            100 * MS,
            250 * MS,
            500 * MS,
            1000 * MS,
            2500 * MS,
            10_000 * MS,
        ],
    },
    HistogramSeries {
        family: "answer_seconds",
        help: "How long app servers took to acknowledge invocations",
        bounds_us: [
            250,
            500,
            MS,
            2 * MS,
            5 * MS,
            10 * MS,
            25 * MS,
            100 * MS,
            500 * MS,
            1000 * MS,
            5000 * MS,
            30_000 * MS,
        ],
    },
    HistogramSeries {
        family: "turn_seconds",
        help: "How long a turn of the shard's loop worked, waiting excluded",
        bounds_us: [10, 25, 50, 100, 250, 500, MS, 2 * MS, 5 * MS, 10 * MS, 50 * MS, 100 * MS],
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    /// Prometheus data model: what a metric or label name may be (we use no colons).
    fn is_name(name: &str) -> bool {
        let word = |b: u8| b.is_ascii_lowercase() || b == b'_';
        !name.is_empty()
            && word(name.as_bytes()[0])
            && name.bytes().all(|b| word(b) || b.is_ascii_digit())
            && !name.starts_with("__")
    }

    #[test]
    fn names_are_unique_and_valid() {
        let mut seen = BTreeSet::new();
        for series in COUNTERS.iter().chain(GAUGES).chain(UPSTREAM_COUNTERS).chain(UPSTREAM_GAUGES) {
            let (label, value) = series.label;
            assert!(seen.insert((series.family, value)), "{} {value} is there twice", series.family);
            assert!(is_name(series.family), "{}", series.family);
            assert_eq!(label.is_empty(), value.is_empty(), "{}", series.family);
            assert!(
                label.is_empty() || (is_name(label) && !["shard", "upstream"].contains(&label) && is_name(value)),
                "{} {label} {value}",
                series.family
            );
            assert!(!series.family.ends_with("_total"), "{}: the exposition appends _total", series.family);
            assert!(!series.help.is_empty() && !series.help.ends_with('.'), "{}", series.family);
        }
        for histogram in HISTOGRAMS {
            assert!(is_name(histogram.family) && histogram.family.ends_with("_seconds"), "{}", histogram.family);
            assert!(seen.insert((histogram.family, "")), "{} is there twice", histogram.family);
            assert!(histogram.bounds_us.is_sorted() && histogram.bounds_us[0] > 0, "{}", histogram.family);
        }
    }

    #[test]
    fn a_family_stands_together_and_is_of_one_kind() {
        let mut kinds = BTreeMap::new();
        let tables =
            [("counter", COUNTERS), ("gauge", GAUGES), ("counter", UPSTREAM_COUNTERS), ("gauge", UPSTREAM_GAUGES)];
        for (kind, table) in tables {
            for family in table.chunk_by(|a, b| a.family == b.family) {
                assert_eq!(kinds.insert(family[0].family, kind), None, "{} stands in two places", family[0].family);
                assert!(family.iter().all(|series| series.label.0 == family[0].label.0), "{}", family[0].family);
                assert!(family.len() == 1 || !family[0].label.0.is_empty(), "{}", family[0].family);
            }
        }
    }

    #[test]
    fn the_enums_index_their_tables() {
        assert_eq!(Counter::ALL.len(), COUNTERS.len());
        assert_eq!(Gauge::ALL.len(), GAUGES.len());
        assert_eq!(Histogram::ALL.len(), HISTOGRAMS.len());
        assert!(Counter::ALL.iter().enumerate().all(|(index, counter)| *counter as usize == index));
        assert!(Gauge::ALL.iter().enumerate().all(|(index, gauge)| *gauge as usize == index));
        assert!(UpstreamCounter::ALL.iter().enumerate().all(|(index, counter)| *counter as usize == index));
        assert!(UpstreamGauge::ALL.iter().enumerate().all(|(index, gauge)| *gauge as usize == index));
        assert!(Histogram::ALL.iter().enumerate().all(|(index, histogram)| *histogram as usize == index));
        assert_eq!(Counter::refusal("not_found"), Counter::RefusedNotFound);
        assert_eq!(Counter::refusal("no such reason"), Counter::RefusedOther);
        assert_eq!(Counter::client_end("slow_client"), Counter::EndedSlowClient);
        assert_eq!(Counter::token("accepted"), Counter::TokenAccepted);
    }
}
