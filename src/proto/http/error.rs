//! Why a request is refused, and what the client is told about it.

/// Why a request is refused. Each has a status and a stable label for the metric `refusals{reason}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpError {
    /// Not an HTTP/1.x request as RFC 9112 writes it: also bare LF, folded headers, a space before a colon.
    Malformed,
    HeadTooLarge,
    TargetTooLong,
    TooManyHeaders,
    /// Anything but HTTP/1.0 and HTTP/1.1, the HTTP/2 preface among it.
    Version,
    /// RFC 9112 §3.2: HTTP/1.1 needs exactly one Host, and a valid one.
    MissingHost,
    /// Both Content-Length and Transfer-Encoding, several Content-Length, or one that is not a plain number.
    AmbiguousLength,
    /// Any Transfer-Encoding on a request: no request of a hub's client has one, and refusing it ends a family of smuggling.
    TransferEncoding,
    BodyTooLarge,
    NotFound,
    MethodNotAllowed,
    /// Reference 1.2: without `id` an event stream, a poll, a POST or a DELETE speaks of no connection.
    IdRequired,
    /// Transports that this endpoint does not offer, one reason each: an operator sees which of them clients miss.
    WebSocketsNotSupported,
    ServerSentEventsNotSupported,
    LongPollingNotSupported,
    /// Connection, Upgrade or Sec-WebSocket-Key is missing or wrong.
    UpgradeMalformed,
    WebSocketVersion,
    OriginForbidden,
    /// No bearer token where one is required.
    Unauthorized,
    /// A bearer token that is not valid, or no longer.
    InvalidToken,
    UnknownConnection,
    /// The connection began with another transport (reference section 2: the first use fixes it).
    TransportChanged,
    /// The connection has a transport already and does not change to this request's.
    AlreadyActive,
    PostToWebSocket,
    DeleteNotLongPolling,
    HeadTimeout,
    /// A bad PROXY header, or none where every connection begins with one. The connection is just closed, this is for the metric.
    ProxyProtocol,
    /// The node stops, and somebody else may take the request, or it itself a moment later.
    Stopping,
    Overloaded,
    /// A POST of a client that has sent too much already, and that it was not worth to wait for.
    TooManyRequests,
    /// The client's address has as many connections as one may.
    AddressLimit,
    /// No app server that answers can be reached, and clients are to come back rather than wait.
    Unavailable,
}

impl HttpError {
    /// In the order of declaration.
    pub const ALL: &'static [HttpError] = &[
        HttpError::Malformed,
        HttpError::HeadTooLarge,
        HttpError::TargetTooLong,
        HttpError::TooManyHeaders,
        HttpError::Version,
        HttpError::MissingHost,
        HttpError::AmbiguousLength,
        HttpError::TransferEncoding,
        HttpError::BodyTooLarge,
        HttpError::NotFound,
        HttpError::MethodNotAllowed,
        HttpError::IdRequired,
        HttpError::WebSocketsNotSupported,
        HttpError::ServerSentEventsNotSupported,
        HttpError::LongPollingNotSupported,
        HttpError::UpgradeMalformed,
        HttpError::WebSocketVersion,
        HttpError::OriginForbidden,
        HttpError::Unauthorized,
        HttpError::InvalidToken,
        HttpError::UnknownConnection,
        HttpError::TransportChanged,
        HttpError::AlreadyActive,
        HttpError::PostToWebSocket,
        HttpError::DeleteNotLongPolling,
        HttpError::HeadTimeout,
        HttpError::ProxyProtocol,
        HttpError::Stopping,
        HttpError::Overloaded,
        HttpError::TooManyRequests,
        HttpError::AddressLimit,
        HttpError::Unavailable,
    ];

    /// Does it say something of the hub, which only those learn who may use it? In ASP.NET authentication stands before the hub, and
    /// behind routing and CORS.
    pub fn is_of_hub(self) -> bool {
        matches!(
            self,
            HttpError::MethodNotAllowed
                | HttpError::IdRequired
                | HttpError::WebSocketsNotSupported
                | HttpError::ServerSentEventsNotSupported
                | HttpError::LongPollingNotSupported
                | HttpError::UpgradeMalformed
                | HttpError::WebSocketVersion
        )
    }

    pub fn status(self) -> u16 {
        match self {
            HttpError::Malformed
            | HttpError::MissingHost
            | HttpError::AmbiguousLength
            | HttpError::IdRequired
            | HttpError::UpgradeMalformed
            | HttpError::TransportChanged
            | HttpError::DeleteNotLongPolling
            | HttpError::ProxyProtocol => 400,
            HttpError::Unauthorized | HttpError::InvalidToken => 401,
            HttpError::OriginForbidden => 403,
            HttpError::NotFound
            | HttpError::WebSocketsNotSupported
            | HttpError::ServerSentEventsNotSupported
            | HttpError::LongPollingNotSupported
            | HttpError::UnknownConnection => 404,
            HttpError::MethodNotAllowed | HttpError::PostToWebSocket => 405,
            HttpError::HeadTimeout => 408,
            HttpError::AlreadyActive => 409,
            HttpError::BodyTooLarge => 413,
            HttpError::TargetTooLong => 414,
            // RFC 6455 §4.2.2: the answer to a version we do not speak, with the one we do.
            HttpError::WebSocketVersion => 426,
            // RFC 6585 §4.
            HttpError::TooManyRequests | HttpError::AddressLimit => 429,
            HttpError::HeadTooLarge | HttpError::TooManyHeaders => 431,
            // RFC 9112 §6.1: "a server that receives a transfer coding it does not understand SHOULD respond with 501".
            HttpError::TransferEncoding => 501,
            HttpError::Stopping | HttpError::Overloaded | HttpError::Unavailable => 503,
            HttpError::Version => 505,
        }
    }

    /// snake_case label for metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            HttpError::Malformed => "malformed",
            HttpError::HeadTooLarge => "head_too_large",
            HttpError::TargetTooLong => "target_too_long",
            HttpError::TooManyHeaders => "too_many_headers",
            HttpError::Version => "version",
            HttpError::MissingHost => "missing_host",
            HttpError::AmbiguousLength => "ambiguous_length",
            HttpError::TransferEncoding => "transfer_encoding",
            HttpError::BodyTooLarge => "body_too_large",
            HttpError::NotFound => "not_found",
            HttpError::MethodNotAllowed => "method_not_allowed",
            HttpError::IdRequired => "id_required",
            HttpError::WebSocketsNotSupported => "websockets_not_supported",
            HttpError::ServerSentEventsNotSupported => "server_sent_events_not_supported",
            HttpError::LongPollingNotSupported => "long_polling_not_supported",
            HttpError::UpgradeMalformed => "upgrade_malformed",
            HttpError::WebSocketVersion => "websocket_version",
            HttpError::OriginForbidden => "origin_forbidden",
            HttpError::Unauthorized => "unauthorized",
            HttpError::InvalidToken => "invalid_token",
            HttpError::UnknownConnection => "unknown_connection",
            HttpError::TransportChanged => "transport_changed",
            HttpError::AlreadyActive => "already_active",
            HttpError::PostToWebSocket => "post_to_websocket",
            HttpError::DeleteNotLongPolling => "delete_not_long_polling",
            HttpError::HeadTimeout => "head_timeout",
            HttpError::ProxyProtocol => "proxy_protocol",
            HttpError::Stopping => "stopping",
            HttpError::Overloaded => "overloaded",
            HttpError::TooManyRequests => "too_many_requests",
            HttpError::AddressLimit => "address_limit",
            HttpError::Unavailable => "unavailable",
        }
    }

    /// The body of the refusal: a sentence for whoever reads it in a browser's console or a capture. Where the reference
    /// (section 1.2) gives ASP.NET's text, it is that text, because clients show it.
    pub(super) fn text(self) -> &'static str {
        match self {
            HttpError::Malformed => "The request is not valid HTTP/1.1.",
            HttpError::HeadTooLarge => "The request head is too large.",
            HttpError::TargetTooLong => "The request target is too long.",
            HttpError::TooManyHeaders => "The request has too many header fields.",
            HttpError::Version => "Only HTTP/1.1 and HTTP/1.0 are spoken here.",
            HttpError::MissingHost => "The request needs exactly one valid Host header.",
            HttpError::AmbiguousLength => "The length of the request body is ambiguous.",
            HttpError::TransferEncoding => "Request bodies with a Transfer-Encoding are not read here.",
            HttpError::BodyTooLarge => "The request body is too large.",
            HttpError::NotFound => "There is no hub at this path.",
            HttpError::MethodNotAllowed => "This method is not allowed here.",
            HttpError::IdRequired => "Connection ID required",
            HttpError::WebSocketsNotSupported => "WebSockets transport not supported by this end point type",
            HttpError::ServerSentEventsNotSupported => {
                "ServerSentEvents transport not supported by this end point type"
            }
            HttpError::LongPollingNotSupported => "LongPolling transport not supported by this end point type",
            HttpError::UpgradeMalformed => "The WebSocket upgrade is malformed.",
            HttpError::WebSocketVersion => "Only WebSocket version 13 is spoken here.",
            HttpError::OriginForbidden => "This origin is not among the proxy's `allowed_origins`.",
            HttpError::Unauthorized => "A bearer token is required.",
            HttpError::InvalidToken => "The bearer token is not valid.",
            HttpError::UnknownConnection => "No Connection with that ID",
            HttpError::TransportChanged => "Cannot change transports mid-connection",
            // Empty in ASP.NET, too.
            HttpError::AlreadyActive => "",
            HttpError::PostToWebSocket => "POST requests are not allowed for WebSocket connections.",
            HttpError::DeleteNotLongPolling => "Cannot terminate this connection using the DELETE endpoint.",
            HttpError::HeadTimeout => "The request head took too long.",
            HttpError::ProxyProtocol => "The connection does not begin with a valid PROXY header.",
            HttpError::Stopping => "The proxy is about to stop, try again.",
            HttpError::Overloaded => "The proxy is overloaded, try again later.",
            HttpError::AddressLimit => "There are too many connections from this address, try again later.",
            HttpError::Unavailable => "The app server cannot be reached, try again later.",
            HttpError::TooManyRequests => "Too much of this connection waits already, try again later.",
        }
    }
}

const _: () = assert!(HttpError::ALL.len() == HttpError::Unavailable as usize + 1, "ALL lists every variant");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_in_order_and_complete() {
        for (index, error) in HttpError::ALL.iter().enumerate() {
            assert_eq!(*error as usize, index, "{error:?}");
        }
    }

    #[test]
    fn labels_are_distinct_snake_case() {
        let labels: std::collections::BTreeSet<_> = HttpError::ALL.iter().map(|error| error.label()).collect();
        assert_eq!(labels.len(), HttpError::ALL.len());
        assert!(labels.iter().all(|label| label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')));
    }
}
