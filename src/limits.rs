//! Every bound of a node, each with its reason. What happens at a bound is a named policy, counted in a metric.
//!
//! Defaults that a configuration may change end in `_DEFAULT`; everything else is fixed.

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
