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
    /// A GET on the hub path without upgrade: Server-Sent Events and long polling are not offered.
    UpgradeRequired,
    /// Connection, Upgrade or Sec-WebSocket-Key is missing or wrong.
    UpgradeMalformed,
    WebSocketVersion,
    OriginForbidden,
    UnknownConnection,
    HeadTimeout,
    Overloaded,
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
        HttpError::UpgradeRequired,
        HttpError::UpgradeMalformed,
        HttpError::WebSocketVersion,
        HttpError::OriginForbidden,
        HttpError::UnknownConnection,
        HttpError::HeadTimeout,
        HttpError::Overloaded,
    ];

    pub fn status(self) -> u16 {
        match self {
            HttpError::Malformed
            | HttpError::MissingHost
            | HttpError::AmbiguousLength
            | HttpError::UpgradeRequired
            | HttpError::UpgradeMalformed => 400,
            HttpError::OriginForbidden => 403,
            HttpError::NotFound | HttpError::UnknownConnection => 404,
            HttpError::MethodNotAllowed => 405,
            HttpError::HeadTimeout => 408,
            HttpError::BodyTooLarge => 413,
            HttpError::TargetTooLong => 414,
            // RFC 6455 §4.2.2: the answer to a version we do not speak, with the one we do.
            HttpError::WebSocketVersion => 426,
            HttpError::HeadTooLarge | HttpError::TooManyHeaders => 431,
            // RFC 9112 §6.1: "a server that receives a transfer coding it does not understand SHOULD respond with 501".
            HttpError::TransferEncoding => 501,
            HttpError::Overloaded => 503,
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
            HttpError::UpgradeRequired => "upgrade_required",
            HttpError::UpgradeMalformed => "upgrade_malformed",
            HttpError::WebSocketVersion => "websocket_version",
            HttpError::OriginForbidden => "origin_forbidden",
            HttpError::UnknownConnection => "unknown_connection",
            HttpError::HeadTimeout => "head_timeout",
            HttpError::Overloaded => "overloaded",
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
            HttpError::UpgradeRequired => {
                "Only the WebSockets transport is offered here: this request has no WebSocket upgrade."
            }
            HttpError::UpgradeMalformed => "The WebSocket upgrade is malformed.",
            HttpError::WebSocketVersion => "Only WebSocket version 13 is spoken here.",
            HttpError::OriginForbidden => "This origin is not among the proxy's `allowed_origins`.",
            HttpError::UnknownConnection => "No Connection with that ID",
            HttpError::HeadTimeout => "The request head took too long.",
            HttpError::Overloaded => "The proxy is overloaded, try again later.",
        }
    }
}

const _: () = assert!(HttpError::ALL.len() == HttpError::Overloaded as usize + 1, "ALL lists every variant");

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
