//! The table of settings: one row per thing that can be configured. The TOML reader, the environment, the command line, the
//! help, the documentation and `check` are all driven by it, so a setting cannot exist in one of them only.
use crate::limits::*;
use std::fmt::Write as _;

/// One setting. The order is the one of the file, the help and the documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Listen,
    Admin,
    Peers,
    Shards,
    NodeName,
    TokenKey,
    TokenKeyFile,
    TrustedProxies,
    ForwardedHeader,
    ProxyProtocol,
    HubPath,
    AllowedOrigins,
    Journal,
    Log,
    LogFormat,
    DrainDelay,
    DrainWindow,
    TakeOver,
    MaximumReceiveMessageSize,
    HandshakeTimeout,
    ClientTimeoutInterval,
    KeepAliveInterval,
    Transports,
    AllowStatefulReconnects,
    StatefulReconnectBufferSize,
    PollTimeout,
    DisconnectTimeout,
    CloseOnAuthenticationExpiration,
    NegotiateWhenUnavailable,
    MaxClients,
    ClientSendQueueBytes,
    ClientSendBufferBytes,
    RequestHeadTimeout,
    ClientSendQueueTime,
    ClientMessageRate,
    ClientMessageBurst,
    ClientTcpTimeout,
    ConnectionsPerAddress,
    AcceptRate,
    UpstreamQueueBytes,
    UpstreamQueueTimeout,
    ClientReplayBytes,
    TlsCertificateFile,
    TlsKeyFile,
    TlsMinimumVersion,
    SigningKey,
    SigningKeyFile,
    PublicKeyFile,
    JwksFile,
    Audience,
    Issuer,
    ClockSkew,
    UserIdClaim,
    ForwardClaims,
    Required,
    UpstreamName,
    UpstreamKind,
    Url,
    ConnectionPoolSize,
    UseMessagePack,
    UpstreamMaximumReceiveMessageSize,
    CaFile,
    ClientCertificateFile,
    ClientKeyFile,
    Filter,
    HaltPipeline,
    Dispatch,
    HubId,
    ForwardHeaders,
    Acknowledge,
    AcknowledgeTimeout,
    InFlight,
}

/// Where a setting stands in the file. There may be several `[[upstream]]`, and each has a value of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Top,
    Hub,
    Limits,
    Tls,
    Identity,
    Upstream,
}

/// A setting, and of which upstream where it is one of theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// From 0, in the order of the file; 0 for a setting that stands elsewhere.
    pub upstream: usize,
    pub key: Key,
}

impl From<Key> for Place {
    fn from(key: Key) -> Place {
        Place { upstream: 0, key }
    }
}

/// What values a setting takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Listeners,
    Address,
    Count {
        min: u32,
        max: u32,
    },
    /// Bytes: an integer or text with a unit.
    Size {
        min: u32,
        max: u32,
    },
    /// Milliseconds inside; an integer is seconds.
    Duration {
        min_ms: u64,
        max_ms: u64,
    },
    Boolean,
    NodeName,
    /// Text that is never shown, of at least so many bytes.
    Secret {
        min: usize,
    },
    /// The path of a file with nothing but such a text.
    SecretFile {
        min: usize,
    },
    /// The path of a file that can be read.
    File,
    /// The path of a Unix socket, there or not.
    Socket,
    Files,
    /// The path of a folder in which files can be made.
    Folder,
    Proxies,
    HubPath,
    Origins,
    Transports,
    /// Any texts; whether a list of none says something.
    Names {
        none: bool,
    },
    LogFilter,
    Choice(&'static [&'static str]),
    UpstreamName,
    /// App servers' urls, each with a weight.
    Urls,
    /// A CEL expression.
    Filter,
    Peers,
    Headers,
}

pub struct Setting {
    pub key: Key,
    pub table: Table,
    pub name: &'static str,
    /// Environment variable.
    pub env: &'static str,
    /// Command-line flag, without the dashes.
    pub flag: &'static str,
    pub kind: Kind,
    /// What holds when nobody says, as written in the documentation.
    pub default: &'static str,
    pub about: &'static str,
    /// A running node takes a new value over when it is told to reload; of the others it says that they need a restart.
    pub reloads: bool,
}

const SETUP_TIMEOUT: Kind = Kind::Duration { min_ms: TIMEOUT_MS_MIN, max_ms: SETUP_TIMEOUT_MS_MAX };
const CLIENT_TIMEOUT: Kind = Kind::Duration { min_ms: TIMEOUT_MS_MIN, max_ms: CLIENT_TIMEOUT_MS_MAX };

macro_rules! settings {
    ($($key:ident, $table:ident, $name:literal, $env:literal, $flag:literal, $kind:expr, $default:literal, $about:literal $($reloads:ident)?;)*) => {
        pub const SETTINGS: &[Setting] = &[$(Setting {
            key: Key::$key, table: Table::$table, name: $name, env: concat!("SIGNALRING_", $env), flag: $flag, kind: $kind,
            default: $default, about: $about, reloads: settings!(@ $($reloads)?),
        }),*];
    };
    (@ reloads) => { true };
    (@) => { false };
}

settings! {
    Listen, Top, "listen", "LISTEN", "listen", Kind::Listeners, "127.0.0.1:5000",
        "Addresses clients connect to, one or a list; 0.0.0.0:PORT for every interface, https://IP:PORT with TLS, unix:/PATH for a proxy on this machine";
    Admin, Top, "admin", "ADMIN", "admin", Kind::Address, "127.0.0.1:9090",
        "Address of the admin endpoint (/health, /ready, /metrics, /picture); it asks for no password, keep it on loopback or a private network";
    Peers, Top, "peers", "PEERS", "peer", Kind::Peers, "none",
        "Admin addresses of other nodes that the live picture shows together with this one";
    Shards, Top, "shards", "SHARDS", "shards", Kind::Count { min: 1, max: SHARDS_MAX as u32 }, "one a core",
        "Threads that serve clients, each with its own io_uring";
    NodeName, Top, "node_name", "NODE_NAME", "node-name", Kind::NodeName, "random",
        "First part of every connection token (name.…), for a load balancer that routes Server-Sent Events and long polling by it; must differ between nodes";
    TokenKey, Top, "token_key", "TOKEN_KEY", "token-key", Kind::Secret { min: TOKEN_KEY_BYTES_MIN }, "random at start",
        "Key that signs connection tokens, the same on all nodes so that each takes the others' tokens; other users of the machine can read a command line, so prefer the environment variable or token_key_file";
    TokenKeyFile, Top, "token_key_file", "TOKEN_KEY_FILE", "token-key-file", Kind::SecretFile { min: TOKEN_KEY_BYTES_MIN }, "none",
        "File with the token_key, in place of it";
    TrustedProxies, Top, "trusted_proxies", "TRUSTED_PROXIES", "trusted-proxy", Kind::Proxies, "none",
        "Who is believed what it says of its clients' addresses, in the forwarded_header or a PROXY header; unix for those who connect over a Unix socket" reloads;
    ForwardedHeader, Top, "forwarded_header", "FORWARDED_HEADER", "forwarded-header",
        Kind::Choice(&["X-Forwarded-For", "Forwarded"]), "X-Forwarded-For",
        "What trusted proxies write: X-Forwarded-For (with X-Forwarded-Proto) or Forwarded (RFC 7239); the other is not read, since a proxy that does not write it may pass on a client's own" reloads;
    ProxyProtocol, Top, "proxy_protocol", "PROXY_PROTOCOL", "proxy-protocol", Kind::Boolean, "false",
        "Whether every connection from a trusted proxy must begin with a PROXY header (version 1 or 2); needs trusted_proxies" reloads;
    HubPath, Top, "hub_path", "HUB_PATH", "hub-path", Kind::HubPath, "/dotnetify",
        "Path of the hub, here and at the app server";
    AllowedOrigins, Top, "allowed_origins", "ALLOWED_ORIGINS", "allow-origin", Kind::Origins, "none beside the page's own",
        "Origins of other sites whose pages may connect, exactly as browsers send them, e.g. https://app.example.com" reloads;
    Journal, Top, "journal", "JOURNAL", "journal", Kind::Folder, "none",
        "Folder in which a node notes the clients that app servers know of, so that the next one can sign them off if it is killed; it has to outlive the process, is best in memory (/run), and nodes of a machine may share it";
    Log, Top, "log", "LOG", "log", Kind::LogFilter, "info",
        "Log level (off, error, warn, info, debug, trace) or a filter such as info,signalring::control=debug" reloads;
    LogFormat, Top, "log_format", "LOG_FORMAT", "log-format", Kind::Choice(&["text", "json"]), "text",
        "How log lines are written to stderr: text or json";
    DrainDelay, Top, "drain_delay", "DRAIN_DELAY", "drain-delay", Kind::Duration { min_ms: 0, max_ms: DRAIN_DELAY_MS_MAX }, "0s",
        "How long a node that is told to stop still serves as before, while /ready says so: as long as the balancer takes to notice" reloads;
    DrainWindow, Top, "drain_window", "DRAIN_WINDOW", "drain-window", Kind::Duration { min_ms: 0, max_ms: DRAIN_WINDOW_MS_MAX }, "10s",
        "Time over which a node that stops sends its clients away, each at a random moment, so that they do not come back all at once" reloads;
    TakeOver, Top, "take_over", "TAKE_OVER", "take-over", Kind::Socket, "none",
        "Unix socket over which a node that starts takes the listening sockets of the one that runs, which then sends its clients away; mode 0600";
    MaximumReceiveMessageSize, Hub, "maximum_receive_message_size", "MAXIMUM_RECEIVE_MESSAGE_SIZE", "maximum-receive-message-size",
        Kind::Size { min: MESSAGE_BYTES_MIN, max: MESSAGE_BYTES_MAX }, "32KiB",
        "Largest message a client may send, framing included; at most upstream.maximum_receive_message_size of every app server" reloads;
    HandshakeTimeout, Hub, "handshake_timeout", "HANDSHAKE_TIMEOUT", "handshake-timeout", SETUP_TIMEOUT, "15s",
        "How long a client may take to send its SignalR handshake" reloads;
    ClientTimeoutInterval, Hub, "client_timeout_interval", "CLIENT_TIMEOUT_INTERVAL", "client-timeout-interval", CLIENT_TIMEOUT, "30s",
        "How long a client may be silent, from its first ping on; at least twice keep_alive_interval" reloads;
    KeepAliveInterval, Hub, "keep_alive_interval", "KEEP_ALIVE_INTERVAL", "keep-alive-interval", CLIENT_TIMEOUT, "15s",
        "How long the node may be silent towards a client before it sends a ping" reloads;
    Transports, Hub, "transports", "TRANSPORTS", "transport", Kind::Transports, "WebSockets, ServerSentEvents, LongPolling",
        "Transports that clients are offered and may use" reloads;
    AllowStatefulReconnects, Hub, "allow_stateful_reconnects", "ALLOW_STATEFUL_RECONNECTS", "allow-stateful-reconnects", Kind::Boolean, "true",
        "Whether a client that asks for it may lose its WebSocket and go on with a new one without losing messages" reloads;
    StatefulReconnectBufferSize, Hub, "stateful_reconnect_buffer_size", "STATEFUL_RECONNECT_BUFFER_SIZE", "stateful-reconnect-buffer-size",
        Kind::Size { min: STATEFUL_BUFFER_BYTES_MIN, max: STATEFUL_BUFFER_BYTES_MAX }, "100000",
        "Bytes of messages kept for such a client until it has acknowledged them, 64 more for each message; at most client_send_queue_bytes" reloads;
    PollTimeout, Hub, "poll_timeout", "POLL_TIMEOUT", "poll-timeout",
        Kind::Duration { min_ms: POLL_TIMEOUT_MS_MIN, max_ms: POLL_TIMEOUT_MS_MAX }, "90s",
        "How long a long poll may wait for a message; less than the time after which a proxy in front gives up" reloads;
    DisconnectTimeout, Hub, "disconnect_timeout", "DISCONNECT_TIMEOUT", "disconnect-timeout",
        Kind::Duration { min_ms: DISCONNECT_TIMEOUT_MS_MIN, max_ms: DISCONNECT_TIMEOUT_MS_MAX }, "15s",
        "How long a long-polling client may be without a poll, and one that may reconnect statefully without a connection" reloads;
    CloseOnAuthenticationExpiration, Hub, "close_on_authentication_expiration", "CLOSE_ON_AUTHENTICATION_EXPIRATION",
        "close-on-authentication-expiration", Kind::Boolean, "false",
        "Whether a client is disconnected when the token expires that it connected with; needs a key in [identity]" reloads;
    NegotiateWhenUnavailable, Hub, "negotiate_when_unavailable", "NEGOTIATE_WHEN_UNAVAILABLE", "negotiate-when-unavailable", Kind::Boolean, "true",
        "Whether clients may begin while no app server that answers can be reached, and wait for one; otherwise they get 503 with Retry-After" reloads;
    MaxClients, Limits, "max_clients", "MAX_CLIENTS", "max-clients", Kind::Count { min: 1, max: CLIENTS_MAX },
        "what the open-files limit allows, at most 100000",
        "Connections held at once, shared out over the shards; more are refused with 503";
    ClientSendQueueBytes, Limits, "client_send_queue_bytes", "CLIENT_SEND_QUEUE_BYTES", "client-send-queue-bytes",
        Kind::Size { min: CLIENT_SEND_QUEUE_BYTES_MIN, max: CLIENT_SEND_QUEUE_BYTES_MAX }, "256KiB",
        "Bytes queued for one client before it is disconnected as too slow, 64 more for each of their frames" reloads;
    ClientSendBufferBytes, Limits, "client_send_buffer_bytes", "CLIENT_SEND_BUFFER_BYTES", "client-send-buffer-bytes",
        Kind::Size { min: CLIENT_SEND_BUFFER_BYTES_MIN, max: CLIENT_SEND_BUFFER_BYTES_MAX }, "32KiB",
        "Kernel send buffer of a client socket (SO_SNDBUF)" reloads;
    RequestHeadTimeout, Limits, "request_head_timeout", "REQUEST_HEAD_TIMEOUT", "request-head-timeout", SETUP_TIMEOUT, "5s",
        "How long a request head may take to arrive" reloads;
    ClientSendQueueTime, Limits, "client_send_queue_time", "CLIENT_SEND_QUEUE_TIME", "client-send-queue-time", SETUP_TIMEOUT, "30s",
        "How long a client may take to read 60000 bytes of what is queued for it, or all of it if that is less, before it is disconnected" reloads;
    ClientMessageRate, Limits, "client_message_rate", "CLIENT_MESSAGE_RATE", "client-message-rate", Kind::Count { min: 0, max: MESSAGE_RATE_MAX }, "1000",
        "Messages a second that one client may send in the long run, pings among them; more are read later; 0 for any number" reloads;
    ClientMessageBurst, Limits, "client_message_burst", "CLIENT_MESSAGE_BURST", "client-message-burst",
        Kind::Count { min: 1, max: MESSAGE_BURST_MAX }, "2000",
        "Messages that one client may send at once" reloads;
    ClientTcpTimeout, Limits, "client_tcp_timeout", "CLIENT_TCP_TIMEOUT", "client-tcp-timeout",
        Kind::Duration { min_ms: TCP_TIMEOUT_MS_MIN, max_ms: TCP_TIMEOUT_MS_MAX }, "60s",
        "How long a client's machine may leave what it is sent unacknowledged, probes of a quiet connection among it, before the client counts as gone";
    ConnectionsPerAddress, Limits, "connections_per_address", "CONNECTIONS_PER_ADDRESS", "connections-per-address",
        Kind::Count { min: 0, max: CLIENTS_MAX }, "0",
        "Connections at once from one client address (of IPv6, from one /64), more are refused with 429; 0 for any number. Needs trusted_proxies where there is a proxy in front, or all are the proxy's";
    AcceptRate, Limits, "accept_rate", "ACCEPT_RATE", "accept-rate", Kind::Count { min: 0, max: ACCEPT_RATE_MAX }, "2000",
        "Connections a second that each shard accepts in the long run; more wait in the kernel's queue; 0 for any number" reloads;
    UpstreamQueueBytes, Limits, "upstream_queue_bytes", "UPSTREAM_QUEUE_BYTES", "upstream-queue-bytes",
        Kind::Size { min: UPSTREAM_QUEUE_BYTES_MIN, max: UPSTREAM_QUEUE_BYTES_MAX }, "4MiB",
        "Bytes of client messages that may wait for a lane that is not up, per lane" reloads;
    UpstreamQueueTimeout, Limits, "upstream_queue_timeout", "UPSTREAM_QUEUE_TIMEOUT", "upstream-queue-timeout", SETUP_TIMEOUT, "10s",
        "How long a message may wait for a lane before its client gets an error" reloads;
    ClientReplayBytes, Limits, "client_replay_bytes", "CLIENT_REPLAY_BYTES", "client-replay-bytes", Kind::Size { min: 0, max: REPLAY_BYTES_MAX }, "16KiB",
        "Kept of what one client's view models were requested with, to request them again when its lane is lost; a client with more is asked to reconnect then" reloads;
    TlsCertificateFile, Tls, "certificate_file", "TLS_CERTIFICATE_FILE", "tls-certificate-file", Kind::File, "none",
        "PEM file with the certificate of https listeners, the node's own first, then the intermediate ones" reloads;
    TlsKeyFile, Tls, "key_file", "TLS_KEY_FILE", "tls-key-file", Kind::File, "none",
        "PEM file with the certificate's private key" reloads;
    TlsMinimumVersion, Tls, "minimum_version", "TLS_MINIMUM_VERSION", "tls-minimum-version", Kind::Choice(&["1.2", "1.3"]), "1.2",
        "Oldest version of TLS that https listeners take" reloads;
    SigningKey, Identity, "signing_key", "IDENTITY_SIGNING_KEY", "identity-signing-key", Kind::Secret { min: TOKEN_SECRET_BYTES_MIN }, "none",
        "Key of users' tokens (JWT) signed with HS256; other users of the machine can read a command line, so prefer the environment variable or signing_key_file" reloads;
    SigningKeyFile, Identity, "signing_key_file", "IDENTITY_SIGNING_KEY_FILE", "identity-signing-key-file",
        Kind::SecretFile { min: TOKEN_SECRET_BYTES_MIN }, "none",
        "File with the signing_key, in place of it" reloads;
    PublicKeyFile, Identity, "public_key_file", "IDENTITY_PUBLIC_KEY_FILE", "identity-public-key-file", Kind::Files, "none",
        "PEM file with the public key of users' tokens, or a list of such files" reloads;
    JwksFile, Identity, "jwks_file", "IDENTITY_JWKS_FILE", "identity-jwks-file", Kind::File, "none",
        "File with a JSON Web Key Set, as published by the issuer of users' tokens" reloads;
    Audience, Identity, "audience", "IDENTITY_AUDIENCE", "identity-audience", Kind::Names { none: false }, "not checked",
        "Audiences one of which a token must be meant for" reloads;
    Issuer, Identity, "issuer", "IDENTITY_ISSUER", "identity-issuer", Kind::Names { none: false }, "not checked",
        "Issuers one of which a token must be from" reloads;
    ClockSkew, Identity, "clock_skew", "IDENTITY_CLOCK_SKEW", "identity-clock-skew", Kind::Duration { min_ms: 0, max_ms: CLOCK_SKEW_MS_MAX }, "5m",
        "How far the clock of a token's issuer may be from this machine's" reloads;
    UserIdClaim, Identity, "user_id_claim", "IDENTITY_USER_ID_CLAIM", "identity-user-id-claim", Kind::Names { none: false },
        "nameid, sub, http://schemas.xmlsoap.org/ws/2005/05/identity/claims/nameidentifier",
        "Claims one of which names the user, the first that a token has" reloads;
    ForwardClaims, Identity, "forward_claims", "IDENTITY_FORWARD_CLAIMS", "identity-forward-claims", Kind::Names { none: true }, "none",
        "Claims the app server is shown with every message, as metadata claim:NAME" reloads;
    Required, Identity, "required", "IDENTITY_REQUIRED", "identity-required", Kind::Choice(&["none", "connection", "request"]), "none",
        "What needs a valid token: connection, every request of a client (or it gets 401); request, every Request_VM, from the connection or its own $headers (or it is answered with UnauthorizedAccessException)" reloads;
    UpstreamName, Upstream, "name", "UPSTREAM_NAME", "upstream-name", Kind::UpstreamName, "upstream-N by its place",
        "What the upstream is called in logs, metrics and pictures; all different";
    UpstreamKind, Upstream, "kind", "UPSTREAM_KIND", "upstream-kind", Kind::Choice(&["app-server", "observer"]), "app-server",
        "app-server, or observer: a DotNetify-Observer, which sees the traffic of clients without payloads and answers nothing";
    Url, Upstream, "url", "APP_SERVER", "app-server", Kind::Urls, "required",
        "The app server, http://, https://, ws:// or wss://, without trailing slash and without the hub path, e.g. http://127.0.0.1:6100; several stand for one and share its clients, in the file as urls = [\"http://a\", { url = \"http://b\", weight = 3 }]";
    ConnectionPoolSize, Upstream, "connection_pool_size", "POOL_SIZE", "pool-size", Kind::Count { min: 1, max: POOL_SIZE_MAX as u32 }, "5",
        "Lanes (persistent connections) of the whole node to each url; at least one a shard is used";
    UseMessagePack, Upstream, "use_message_pack", "USE_MESSAGE_PACK", "use-message-pack", Kind::Boolean, "false",
        "Whether lanes speak MessagePack instead of JSON; the app server needs AddMessagePackProtocol()";
    UpstreamMaximumReceiveMessageSize, Upstream, "maximum_receive_message_size", "UPSTREAM_MAXIMUM_RECEIVE_MESSAGE_SIZE",
        "upstream-maximum-receive-message-size", Kind::Size { min: UPSTREAM_MESSAGE_BYTES_DEFAULT, max: UPSTREAM_MESSAGE_BYTES_MAX }, "32KiB",
        "The app server's own limit (HubOptions.MaximumReceiveMessageSize): a client's message with all that is said of the client has to fit" reloads;
    CaFile, Upstream, "ca_file", "UPSTREAM_CA_FILE", "upstream-ca-file", Kind::File, "the usual authorities",
        "PEM file with the authorities that may have signed the app server's certificate; only with https" reloads;
    ClientCertificateFile, Upstream, "client_certificate_file", "UPSTREAM_CLIENT_CERTIFICATE_FILE", "upstream-client-certificate-file",
        Kind::File, "none",
        "PEM file with the certificate the node shows the app server; only with https" reloads;
    ClientKeyFile, Upstream, "client_key_file", "UPSTREAM_CLIENT_KEY_FILE", "upstream-client-key-file", Kind::File, "none",
        "PEM file with that certificate's private key" reloads;
    Filter, Upstream, "filter", "FILTER", "filter", Kind::Filter, "none",
        "Which messages go here, e.g. vm_id.startsWith('Chat'); without one all that come this far" reloads;
    HaltPipeline, Upstream, "halt_pipeline", "HALT_PIPELINE", "halt-pipeline", Kind::Boolean, "true",
        "Whether a message that goes here goes to no upstream behind it; always false for an observer";
    Dispatch, Upstream, "dispatch", "DISPATCH", "dispatch", Kind::Choice(&["client", "message"]), "client",
        "What is dealt over the lanes: client, so that each one's messages stay in order on one lane, or message, so that they may overtake each other";
    HubId, Upstream, "hub_id", "HUB_ID", "hub-id", Kind::Choice(&["lane", "node"]), "lane",
        "What the app server sees as one hub: each lane, or the whole node, which is the default with dispatch = message";
    ForwardHeaders, Upstream, "forward_headers", "FORWARD_HEADERS", "forward-headers", Kind::Headers, "all",
        "Request headers of clients the app server is shown: all, or a list of names (an observer unless told: Host, User-Agent); hop-by-hop and Sec-WebSocket-* never are";
    Acknowledge, Upstream, "acknowledge", "ACKNOWLEDGE", "acknowledge", Kind::Boolean, "true",
        "Whether the app server is asked to say when it has worked on a message: what bounds the messages on a lane, tells clients of its errors and finds lanes that are stuck; never with an observer";
    AcknowledgeTimeout, Upstream, "acknowledge_timeout", "ACKNOWLEDGE_TIMEOUT", "acknowledge-timeout",
        Kind::Duration { min_ms: TIMEOUT_MS_MIN, max_ms: ACKNOWLEDGE_TIMEOUT_MS_MAX }, "30s",
        "How long the app server may take over one message; then the lane is replaced, its clients go on over others, and that one message is answered with an error" reloads;
    InFlight, Upstream, "in_flight_max", "IN_FLIGHT_MAX", "in-flight-max", Kind::Count { min: 1, max: IN_FLIGHT_MAX }, "256",
        "Messages on a lane that the app server has not worked on; more wait in the node, and whoever sends them is read more slowly" reloads;
}

pub const SETTINGS_COUNT: usize = SETTINGS.len();

impl Key {
    pub fn setting(self) -> &'static Setting {
        &SETTINGS[self as usize]
    }

    pub fn all() -> impl Iterator<Item = Key> {
        SETTINGS.iter().map(|setting| setting.key)
    }
}

impl Table {
    pub const ALL: [Table; 6] = [Table::Top, Table::Hub, Table::Limits, Table::Tls, Table::Identity, Table::Upstream];

    /// Name of the TOML table; empty at the top level.
    pub fn name(self) -> &'static str {
        match self {
            Table::Top => "",
            Table::Hub => "hub",
            Table::Limits => "limits",
            Table::Tls => "tls",
            Table::Identity => "identity",
            Table::Upstream => "upstream",
        }
    }

    /// How the table begins in the file; empty at the top level.
    pub fn header(self) -> String {
        match self {
            Table::Top => String::new(),
            Table::Upstream => "[[upstream]]".into(),
            table => format!("[{}]", table.name()),
        }
    }

    pub fn settings(self) -> impl Iterator<Item = &'static Setting> + Clone {
        SETTINGS.iter().filter(move |setting| setting.table == self)
    }
}

impl Setting {
    /// `hub.keep_alive_interval`, as faults and documentation call it.
    pub fn path(&self) -> String {
        match self.table {
            Table::Top => self.name.to_string(),
            table => format!("{}.{}", table.name(), self.name),
        }
    }

    /// Its key in the file when it has several values, where that is another one.
    pub fn plural(&self) -> Option<&'static str> {
        (self.kind == Kind::Urls).then_some("urls")
    }

    pub(super) fn is_called(&self, name: &str) -> bool {
        self.name == name || self.plural() == Some(name)
    }

    /// The values it takes, with unit: what a fault says and the documentation shows.
    pub fn takes(&self) -> String {
        match self.kind {
            Kind::Listeners => "list of IP:PORT, http://IP:PORT, https://IP:PORT, unix:/PATH".into(),
            Kind::Address => "IP:PORT".into(),
            Kind::Count { min, max } => format!("{min} to {max}"),
            Kind::Size { min, max } => format!(
                "{} to {} (bytes, or with KiB, MiB)",
                super::value::size_text(min),
                super::value::size_text(max)
            ),
            Kind::Duration { min_ms, max_ms } => {
                let text = |ms| super::value::duration_text(std::time::Duration::from_millis(ms));
                format!("{} to {} (ms, s, m; a bare number is seconds)", text(min_ms), text(max_ms))
            }
            Kind::Boolean => "true or false".into(),
            Kind::NodeName => format!("1 to {NODE_NAME_BYTES_MAX} of A-Z a-z 0-9 _ -"),
            Kind::Secret { min } => format!("text of at least {min} bytes, never shown"),
            Kind::SecretFile { min } => format!("path of a file with one line of at least {min} bytes"),
            Kind::File => "path of a file".into(),
            Kind::Socket => "path of a Unix socket".into(),
            Kind::Files => "list of paths of files".into(),
            Kind::Folder => "path of a folder".into(),
            Kind::Proxies => "list of IP, IP/BITS or unix".into(),
            Kind::Transports => "list of WebSockets, ServerSentEvents, LongPolling".into(),
            Kind::Names { .. } => "list of texts".into(),
            Kind::HubPath => "a path such as /dotnetify".into(),
            Kind::Origins => "list of scheme://host[:port]".into(),
            Kind::LogFilter => "level or filter".into(),
            Kind::Choice(choices) => match choices {
                [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
                _ => choices.concat(),
            },
            Kind::UpstreamName => format!("1 to {UPSTREAM_NAME_BYTES_MAX} of A-Z a-z 0-9 _ . -"),
            Kind::Urls => format!("http://, https://, ws:// or wss:// URL, or a list of up to {UPSTREAM_URLS_MAX}"),
            Kind::Filter => "a CEL expression".into(),
            Kind::Peers => "list of HOST:PORT".into(),
            Kind::Headers => "\"all\" or list of names".into(),
        }
    }

    /// Several values make a list (given by repeating the flag, or with commas).
    pub fn is_list(&self) -> bool {
        matches!(
            self.kind,
            Kind::Listeners
                | Kind::Files
                | Kind::Proxies
                | Kind::Origins
                | Kind::Transports
                | Kind::Names { .. }
                | Kind::Headers
                | Kind::Peers
                | Kind::Urls
        )
    }
}

/// The configuration table of the README.
pub fn markdown() -> String {
    let mut text = String::from(
        "| TOML key | flag | environment | default | values | SIGHUP | |\n|---|---|---|---|---|---|---|\n",
    );
    for setting in SETTINGS {
        let key = match (setting.table, setting.plural()) {
            (Table::Upstream, Some(plural)) => format!("[[upstream]] {}`, `{plural}", setting.name),
            (Table::Upstream, None) => format!("[[upstream]] {}", setting.name),
            _ => setting.path(),
        };
        let (flag, env, takes) = (setting.flag, setting.env, setting.takes());
        let reloads = if setting.reloads { "yes" } else { "" };
        let _ = writeln!(
            text,
            "| `{key}` | `--{flag}` | `{env}` | {} | {takes} | {reloads} | {} |",
            setting.default, setting.about
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_keys_and_names_are_unique() {
        for (index, setting) in SETTINGS.iter().enumerate() {
            assert_eq!(setting.key as usize, index, "{} stands in the wrong place", setting.name);
            for other in &SETTINGS[..index] {
                assert_ne!(setting.env, other.env);
                assert_ne!(setting.flag, other.flag);
                assert_ne!(setting.path(), other.path());
            }
        }
    }
}
