//! HTTP/1.1 as far as a SignalR endpoint needs it: request heads (httparse), routing of the hub's paths, the WebSocket
//! upgrade, negotiate, CORS, replies; and response heads for the control plane's dialling. Pure.
use alloc::string::String;
use alloc::vec::Vec;

/// Why a request is refused. Each has a status and a stable label for the metric `refusals{reason}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpError {
    Malformed,          // 400
    HeadTooLarge,       // 431
    TargetTooLong,      // 414
    TooManyHeaders,     // 431
    Version,            // 505
    MissingHost,        // 400 (HTTP/1.1 needs exactly one Host)
    AmbiguousLength,    // 400: both Content-Length and Transfer-Encoding, several or invalid Content-Length, ...
    TransferEncoding,   // 501/400: any Transfer-Encoding on a request (smuggling shapes); we read no chunked bodies
    BodyTooLarge,       // 413
    NotFound,           // 404
    MethodNotAllowed,   // 405, with Allow
    UpgradeRequired,    // a plain GET on the hub path without upgrade (long polling is a later issue): 400 with text
    UpgradeMalformed,   // 400: Connection/Upgrade/Key missing or wrong
    WebSocketVersion,   // 426 with Sec-WebSocket-Version: 13
    OriginForbidden,    // 403
    UnknownConnection,  // 404 "No Connection with that ID"
    HeadTimeout,        // 408
    Overloaded,         // 503
}

impl HttpError {
    pub const ALL: &'static [HttpError] = &[];
    pub fn status(self) -> u16 {
        todo!()
    }
    /// snake_case label for metrics and logs.
    pub fn label(self) -> &'static str {
        todo!()
    }
}

/// Which origins may open a WebSocket and read negotiate's answer across origins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OriginPolicy {
    /// Exact origins, e.g. `https://app.example.com` (scheme, host, port; compared case-insensitively). Empty: same-origin
    /// and no-origin requests only. A request without Origin is always let through; so is one whose Origin's host:port equals Host.
    pub allowed: Vec<String>,
}

/// What the routing needs to know of the configuration.
#[derive(Clone, Debug)]
pub struct HttpPolicy {
    /// e.g. `/dotnetify`; compared case-insensitively; a trailing slash in a request is tolerated.
    pub hub_path: String,
    pub origins: OriginPolicy,
}

/// A parsed request head. Borrows the receive buffer.
pub struct Head<'b> {
    pub method: &'b str,
    /// Path without the query.
    pub path: &'b str,
    /// Query without `?`, empty if none.
    pub query: &'b str,
    /// HTTP/1.x minor version: 0 or 1.
    pub minor: u8,
    pub keep_alive: bool,
    pub content_length: u64,
    headers: [httparse::Header<'b>; crate::limits::HTTP_HEADERS_MAX],
    header_count: usize,
}

impl<'b> Head<'b> {
    pub fn headers(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> + '_ {
        self.headers[..self.header_count].iter().map(|h| (h.name, h.value))
    }
    /// First value of a header, by case-insensitive name.
    pub fn header(&self, _name: &str) -> Option<&'b [u8]> {
        todo!()
    }
    /// Value of a query key (case-insensitive key, not decoded).
    pub fn query_value(&self, _key: &str) -> Option<&'b str> {
        todo!()
    }
}

/// Finds the end of the head (the byte after the blank line). `scanned` remembers where the last search stopped so that a
/// slow sender costs linear time. Errors only by size: `HeadTooLarge` once `HTTP_HEAD_BYTES_MAX` passed without an end.
pub fn head_end(_buffer: &[u8], _scanned: &mut usize) -> Result<Option<usize>, HttpError> {
    todo!()
}

/// Parses a complete head (`buffer[..head_end]`). All smuggling shapes are errors here.
pub fn parse_head(_head: &[u8]) -> Result<Head<'_>, HttpError> {
    todo!()
}

/// What to do with a request.
#[derive(Debug)]
pub enum Action<'h> {
    /// The whole reply has been appended to `out`; then keep the connection or close it.
    Replied { keep_alive: bool, refused: Option<HttpError> },
    /// Negotiate: the caller makes ids and calls `negotiate_reply`.
    Negotiate { version: u8, cors: Cors<'h>, keep_alive: bool },
    /// A valid WebSocket upgrade: the caller verifies `id` (if any), then calls `upgrade_reply` or `refuse`.
    Upgrade { accept: [u8; 28], id: Option<&'h str> },
}

/// CORS decision for a request: what headers the reply carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cors<'h> {
    /// No Origin, or same origin: no CORS headers (but `Vary: Origin` when an allow-list is configured).
    None,
    /// Exact origin echoed, credentials allowed, `Vary: Origin`.
    Allow(&'h str),
    /// An Origin that is not allowed: no CORS headers; WebSocket upgrades are refused with 403, negotiate too.
    Forbidden,
}

/// Routes one request of the hub's endpoint (reference: signalr-protocol sections 1, 3, 5, 7.1):
/// OPTIONS preflight on hub path and negotiate -> 204 with the CORS headers; POST negotiate; other methods 405;
/// GET hub path + upgrade -> Upgrade; other paths 404.
/// Negotiate version errors are HTTP 200 with `{"error":...}` and count as `Replied`.
pub fn route<'h>(_head: &Head<'h>, _policy: &HttpPolicy, _out: &mut Vec<u8>) -> Action<'h> {
    todo!()
}

/// Appends a refusal: status line, `text/plain` body, `Connection: close`, CORS headers if the origin is allowed.
pub fn refuse(_error: HttpError, _cors: Cors<'_>, _out: &mut Vec<u8>) {
    todo!()
}

/// Appends the 200 reply of negotiate, members in ASP.NET's order. Only the WebSockets transport is offered for now.
pub fn negotiate_reply(_version: u8, _connection_id: &str, _token: &str, _cors: Cors<'_>, _keep_alive: bool, _out: &mut Vec<u8>) {
    todo!()
}

/// Appends the `101 Switching Protocols` reply.
pub fn upgrade_reply(_accept: &[u8; 28], _out: &mut Vec<u8>) {
    todo!()
}

/// RFC 6455 §4.2.2: base64(sha1(key + GUID)).
pub fn accept_key(_key: &[u8]) -> [u8; 28] {
    todo!()
}

// ---- the client side of HTTP, for dialling lanes ---------------------------------------------------------------------

/// A parsed response head.
pub struct ResponseHead {
    pub status: u16,
    pub content_length: Option<u64>,
    pub chunked: bool,
    /// Sec-WebSocket-Accept, if any.
    pub accept: Option<[u8; 28]>,
    /// Upgrade: websocket and Connection: upgrade both present.
    pub upgraded: bool,
    pub location: Option<String>,
    /// Bytes of the head.
    pub bytes: usize,
}

/// Parses a response head; `Ok(None)` = need more.
pub fn parse_response(_buffer: &[u8]) -> Result<Option<ResponseHead>, HttpError> {
    todo!()
}

/// Decodes a complete chunked body; `Ok(None)` = need more.
pub fn decode_chunked(_body: &[u8], _limit: usize) -> Result<Option<Vec<u8>>, HttpError> {
    todo!()
}

/// Builds the negotiate request and the upgrade request of a lane. `path_and_query` is absolute; `host` is the Host header.
pub fn negotiate_request(_host: &str, _path_and_query: &str, _out: &mut Vec<u8>) {
    todo!()
}
pub fn upgrade_request(_host: &str, _path_and_query: &str, _key: &str, _out: &mut Vec<u8>) {
    todo!()
}

/// The app server's answer to negotiate, as a lane needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NegotiateAnswer {
    Connect { token: String },
    Redirect { url: String, access_token: Option<String> },
    Error(String),
}

/// Reads the JSON body of a negotiate answer (reference section 3.5: unknown members skipped, any order; WebSockets must be
/// among the transports). Err carries a sentence for the log.
pub fn parse_negotiate_answer(_body: &[u8]) -> Result<NegotiateAnswer, String> {
    todo!()
}
