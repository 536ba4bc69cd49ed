//! Every bound of a node, each with its reason. What happens at a bound is a named policy, counted in a metric.
//!
//! Defaults that a configuration may change end in `_DEFAULT`; everything else is fixed.

// ---- What the configuration takes -----------------------------------------------------------------------------------
//
// Ranges rather than free choice: a value outside is more often a wrong unit than a wish.

/// Threads with a ring each. 256 is beyond the cores of any machine a node was meant for, and fits the shard field of an origin id.
pub const SHARDS_MAX: u16 = 256;
/// Lanes of a node. An app server serves a lane's messages one after another, so a pool wants tens of lanes; a thousand is the roof.
pub const POOL_SIZE_DEFAULT: u16 = 5;
pub const POOL_SIZE_MAX: u16 = 1024;
/// Connections of a node when nobody says: what the file descriptors allow, but never a promise the memory cannot keep
/// (100,000 idle clients are about 0.5 GB, kernel included).
pub const CLIENTS_DEFAULT: u32 = 100_000;
pub const CLIENTS_MAX: u32 = 4_000_000;
/// Descriptors beside clients and lanes: log, admin connections, resolver, and whatever a library opens.
pub const DESCRIPTORS_SLACK: u32 = 64;
/// Descriptors of one shard: ring, listener, doorbell, timer, and room for a handed-over socket.
pub const DESCRIPTORS_PER_SHARD: u32 = 8;
/// Descriptors of one lane: its socket, and the one that is being dialled to replace it.
pub const DESCRIPTORS_PER_LANE: u32 = 2;
/// Bytes queued for one client before it counts as too slow.
pub const CLIENT_SEND_QUEUE_BYTES_DEFAULT: u32 = 256 * 1024;
/// Below this, one large group message would disconnect healthy clients.
pub const CLIENT_SEND_QUEUE_BYTES_MIN: u32 = 16 * 1024;
pub const CLIENT_SEND_QUEUE_BYTES_MAX: u32 = 64 * 1024 * 1024;
/// SO_SNDBUF of a client socket. Linux clamps to about 4 KiB below and `net.core.wmem_max` above.
pub const CLIENT_SEND_BUFFER_BYTES_DEFAULT: u32 = 32 * 1024;
pub const CLIENT_SEND_BUFFER_BYTES_MIN: u32 = 4 * 1024;
pub const CLIENT_SEND_BUFFER_BYTES_MAX: u32 = 4 * 1024 * 1024;
/// Client messages that wait for a lane that is not up.
pub const UPSTREAM_QUEUE_BYTES_DEFAULT: u32 = 4 * 1024 * 1024;
pub const UPSTREAM_QUEUE_BYTES_MIN: u32 = 64 * 1024;
pub const UPSTREAM_QUEUE_BYTES_MAX: u32 = 1024 * 1024 * 1024;
/// A queue must hold at least one message, and embedding a client's JSON in a JSON lane's string can double it.
pub const UPSTREAM_QUEUE_MESSAGES_MIN: u32 = 2;
/// Shortest wait that can be configured: below it, timeouts would fire on a healthy network. (Milliseconds.)
pub const TIMEOUT_MS_MIN: u64 = 100;
/// Longest time a connection may take to become a client: what waits here holds a slot without giving anything.
pub const SETUP_TIMEOUT_MS_MAX: u64 = 5 * 60 * 1000;
/// Longest client timeout and keep-alive interval.
pub const CLIENT_TIMEOUT_MS_MAX: u64 = 60 * 60 * 1000;
/// ASP.NET's advice: a timeout of at least twice the interval, so that one lost ping disconnects nobody.
pub const CLIENT_TIMEOUT_KEEP_ALIVES_MIN: u32 = 2;
/// Largest configuration file.
pub const CONFIG_FILE_BYTES_MAX: u64 = 1024 * 1024;

const _: () = assert!(UPSTREAM_QUEUE_BYTES_DEFAULT >= UPSTREAM_QUEUE_MESSAGES_MIN * MESSAGE_BYTES_MAX);
const _: () = assert!(CLIENTS_DEFAULT <= CLIENTS_MAX);

// ---- SignalR messages -------------------------------------------------------------------------------------------

/// Largest SignalR message a client may send, framing included. ASP.NET Core's `MaximumReceiveMessageSize` default.
pub const MESSAGE_BYTES_DEFAULT: u32 = 32 * 1024;
/// Smallest and largest value the configuration takes for it.
pub const MESSAGE_BYTES_MIN: u32 = 1024;
/// An app server has to be told to take more than 32 KiB; 1 MiB is already generous for a view model.
pub const MESSAGE_BYTES_MAX: u32 = 1024 * 1024;
/// Deepest JSON nesting: System.Text.Json's default in the app server's parser (contract 2.2).
pub const JSON_DEPTH_MAX: u32 = 64;
/// Arguments of an invocation that are remembered by position; more are counted only. No hub method takes more than three.
pub const ARGUMENTS_KEPT: usize = 4;
/// Longest hub method name that is compared or echoed in an error.
pub const METHOD_NAME_BYTES_MAX: usize = 128;
/// Longest handshake record: `{"protocol":"messagepack","version":2}` with room for unknown members.
pub const HANDSHAKE_BYTES_MAX: usize = 4096;
/// Longest origin id taken from an app server's recipient list; ours have 22 bytes.
pub const ORIGIN_ID_BYTES_MAX: usize = 64;

// ---- WebSocket --------------------------------------------------------------------------------------------------

/// RFC 6455 §5.5: control frames carry at most 125 bytes.
pub const WS_CONTROL_BYTES_MAX: usize = 125;
/// RFC 6455 §5.2: 2 bytes, 8 of extended length, 4 of mask.
pub const WS_HEADER_BYTES_MAX: usize = 14;

// ---- HTTP -------------------------------------------------------------------------------------------------------

/// Largest request head. Kestrel's `MaxRequestHeadersTotalSize` is 32 KiB.
pub const HTTP_HEAD_BYTES_MAX: usize = 32 * 1024;
/// Most header fields in a request. Kestrel's `MaxRequestHeaderCount`.
pub const HTTP_HEADERS_MAX: usize = 100;
/// Longest request target (path and query). Kestrel's `MaxRequestLineSize` is 8 KiB.
pub const HTTP_TARGET_BYTES_MAX: usize = 8 * 1024;
/// Largest request body that is read and thrown away (negotiate has none).
pub const HTTP_BODY_BYTES_MAX: u64 = 4 * 1024;
