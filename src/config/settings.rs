//! The table of settings: one row per thing that can be configured. The TOML reader, the environment, the command line, the
//! help, the documentation and `check` are all driven by it, so a setting cannot exist in one of them only.
use crate::limits::*;
use std::fmt::Write as _;

/// One setting. The order is the one of the file, the help and the documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Listen,
    Admin,
    Shards,
    HubPath,
    AllowedOrigins,
    Log,
    LogFormat,
    MaximumReceiveMessageSize,
    HandshakeTimeout,
    ClientTimeoutInterval,
    KeepAliveInterval,
    MaxClients,
    ClientSendQueueBytes,
    ClientSendBufferBytes,
    RequestHeadTimeout,
    UpstreamQueueBytes,
    UpstreamQueueTimeout,
    Url,
    ConnectionPoolSize,
    UseMessagePack,
    HaltPipeline,
    Filter,
    ForwardHeaders,
}

/// Where a setting stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Top,
    Hub,
    Limits,
    Upstream,
}

/// What values a setting takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
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
    HubPath,
    Origins,
    LogFilter,
    Choice(&'static [&'static str]),
    Url,
    /// Settings of later releases: only this value is taken.
    NotYet {
        accepted: Option<bool>,
    },
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
}

const SETUP_TIMEOUT: Kind = Kind::Duration { min_ms: TIMEOUT_MS_MIN, max_ms: SETUP_TIMEOUT_MS_MAX };
const CLIENT_TIMEOUT: Kind = Kind::Duration { min_ms: TIMEOUT_MS_MIN, max_ms: CLIENT_TIMEOUT_MS_MAX };

macro_rules! settings {
    ($($key:ident, $table:ident, $name:literal, $env:literal, $flag:literal, $kind:expr, $default:literal, $about:literal;)*) => {
        pub const SETTINGS: &[Setting] = &[$(Setting {
            key: Key::$key, table: Table::$table, name: $name, env: concat!("SIGNALRING_", $env), flag: $flag, kind: $kind,
            default: $default, about: $about,
        }),*];
    };
}

settings! {
    Listen, Top, "listen", "LISTEN", "listen", Kind::Address, "127.0.0.1:5000",
        "Address clients connect to; 0.0.0.0:PORT for every interface";
    Admin, Top, "admin", "ADMIN", "admin", Kind::Address, "127.0.0.1:9090",
        "Address of the admin endpoint (/health, /ready, /metrics); it asks for no password, keep it on loopback or a private network";
    Shards, Top, "shards", "SHARDS", "shards", Kind::Count { min: 1, max: SHARDS_MAX as u32 }, "one a core",
        "Threads that serve clients, each with its own io_uring";
    HubPath, Top, "hub_path", "HUB_PATH", "hub-path", Kind::HubPath, "/dotnetify",
        "Path of the hub, here and at the app server";
    AllowedOrigins, Top, "allowed_origins", "ALLOWED_ORIGINS", "allow-origin", Kind::Origins, "none beside the page's own",
        "Origins of other sites whose pages may connect, exactly as browsers send them, e.g. https://app.example.com";
    Log, Top, "log", "LOG", "log", Kind::LogFilter, "info",
        "Log level (off, error, warn, info, debug, trace) or a filter such as info,signalring::control=debug";
    LogFormat, Top, "log_format", "LOG_FORMAT", "log-format", Kind::Choice(&["text", "json"]), "text",
        "How log lines are written to stderr: text or json";
    MaximumReceiveMessageSize, Hub, "maximum_receive_message_size", "MAXIMUM_RECEIVE_MESSAGE_SIZE", "maximum-receive-message-size",
        Kind::Size { min: MESSAGE_BYTES_MIN, max: MESSAGE_BYTES_MAX }, "32KiB",
        "Largest message a client may send, framing included; the app server's own limit has to be larger";
    HandshakeTimeout, Hub, "handshake_timeout", "HANDSHAKE_TIMEOUT", "handshake-timeout", SETUP_TIMEOUT, "15s",
        "How long a client may take to send its SignalR handshake";
    ClientTimeoutInterval, Hub, "client_timeout_interval", "CLIENT_TIMEOUT_INTERVAL", "client-timeout-interval", CLIENT_TIMEOUT, "30s",
        "How long a client may be silent, from its first ping on; at least twice keep_alive_interval";
    KeepAliveInterval, Hub, "keep_alive_interval", "KEEP_ALIVE_INTERVAL", "keep-alive-interval", CLIENT_TIMEOUT, "15s",
        "How long the node may be silent towards a client before it sends a ping";
    MaxClients, Limits, "max_clients", "MAX_CLIENTS", "max-clients", Kind::Count { min: 1, max: CLIENTS_MAX },
        "what the open-files limit allows, at most 100000",
        "Connections held at once, shared out over the shards; more are refused with 503";
    ClientSendQueueBytes, Limits, "client_send_queue_bytes", "CLIENT_SEND_QUEUE_BYTES", "client-send-queue-bytes",
        Kind::Size { min: CLIENT_SEND_QUEUE_BYTES_MIN, max: CLIENT_SEND_QUEUE_BYTES_MAX }, "256KiB",
        "Bytes queued for one client before it is disconnected as too slow";
    ClientSendBufferBytes, Limits, "client_send_buffer_bytes", "CLIENT_SEND_BUFFER_BYTES", "client-send-buffer-bytes",
        Kind::Size { min: CLIENT_SEND_BUFFER_BYTES_MIN, max: CLIENT_SEND_BUFFER_BYTES_MAX }, "32KiB",
        "Kernel send buffer of a client socket (SO_SNDBUF)";
    RequestHeadTimeout, Limits, "request_head_timeout", "REQUEST_HEAD_TIMEOUT", "request-head-timeout", SETUP_TIMEOUT, "5s",
        "How long a request head may take to arrive";
    UpstreamQueueBytes, Limits, "upstream_queue_bytes", "UPSTREAM_QUEUE_BYTES", "upstream-queue-bytes",
        Kind::Size { min: UPSTREAM_QUEUE_BYTES_MIN, max: UPSTREAM_QUEUE_BYTES_MAX }, "4MiB",
        "Bytes of client messages that may wait for a lane that is not up, per lane";
    UpstreamQueueTimeout, Limits, "upstream_queue_timeout", "UPSTREAM_QUEUE_TIMEOUT", "upstream-queue-timeout", SETUP_TIMEOUT, "10s",
        "How long a message may wait for a lane before its client gets an error";
    Url, Upstream, "url", "APP_SERVER", "app-server", Kind::Url, "required",
        "The app server, http:// or ws://, without trailing slash and without the hub path, e.g. http://127.0.0.1:6100";
    ConnectionPoolSize, Upstream, "connection_pool_size", "POOL_SIZE", "pool-size", Kind::Count { min: 1, max: POOL_SIZE_MAX as u32 }, "5",
        "Lanes (persistent connections) of the whole node to the app server; at least one a shard is used";
    UseMessagePack, Upstream, "use_message_pack", "USE_MESSAGE_PACK", "use-message-pack", Kind::NotYet { accepted: Some(false) }, "false",
        "MessagePack on the lanes; not yet supported, only false is taken";
    HaltPipeline, Upstream, "halt_pipeline", "HALT_PIPELINE", "halt-pipeline", Kind::NotYet { accepted: Some(true) }, "true",
        "Whether a forwarded message stops here; not yet supported, only true is taken";
    Filter, Upstream, "filter", "FILTER", "filter", Kind::NotYet { accepted: None }, "none",
        "Which messages go to this app server; not yet supported";
    ForwardHeaders, Upstream, "forward_headers", "FORWARD_HEADERS", "forward-headers", Kind::Headers, "all",
        "Request headers of clients the app server is shown: all, or a list of names; hop-by-hop and Sec-WebSocket-* never are";
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
    pub const ALL: [Table; 4] = [Table::Top, Table::Hub, Table::Limits, Table::Upstream];

    /// Name of the TOML table; empty at the top level.
    pub fn name(self) -> &'static str {
        match self {
            Table::Top => "",
            Table::Hub => "hub",
            Table::Limits => "limits",
            Table::Upstream => "upstream",
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

    /// The values it takes, with unit: what a fault says and the documentation shows.
    pub fn takes(&self) -> String {
        match self.kind {
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
            Kind::HubPath => "a path such as /dotnetify".into(),
            Kind::Origins => "list of scheme://host[:port]".into(),
            Kind::LogFilter => "level or filter".into(),
            Kind::Choice(choices) => choices.join(" or "),
            Kind::Url => "http:// or ws:// URL".into(),
            Kind::NotYet { accepted: Some(accepted) } => accepted.to_string(),
            Kind::NotYet { accepted: None } => "nothing yet".into(),
            Kind::Headers => "\"all\" or list of names".into(),
        }
    }

    /// Several values make a list (given by repeating the flag, or with commas).
    pub fn is_list(&self) -> bool {
        matches!(self.kind, Kind::Origins | Kind::Headers | Kind::Url)
    }
}

/// The configuration table of the README.
pub fn markdown() -> String {
    let mut text = String::from("| TOML key | flag | environment | default | values | |\n|---|---|---|---|---|---|\n");
    for setting in SETTINGS {
        let key = match setting.table {
            Table::Upstream => format!("[[upstream]] {}", setting.name),
            _ => setting.path(),
        };
        let (flag, env, takes) = (setting.flag, setting.env, setting.takes());
        let _ =
            writeln!(text, "| `{key}` | `--{flag}` | `{env}` | {} | {takes} | {} |", setting.default, setting.about);
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
