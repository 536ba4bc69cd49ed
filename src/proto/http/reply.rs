//! Replies: of the transports without WebSocket, the refusals, and the pieces every reply is made of.
//!
//! What ASP.NET sends stands in the reference, sections 8 and 9. Unlike there, each says what becomes of its connection.
use alloc::vec::Vec;

use super::{Cors, Head, HttpError};

/// What a poll is answered with (reference 9.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollReply {
    /// The first poll only starts the transport. TS clients insist on a 200 without content.
    First,
    /// So many bytes of whole messages, which the caller appends behind the head.
    Data { bytes: usize },
    /// Nothing to say for the poll's whole time: the client polls again.
    TimedOut,
    /// The connection is at its end, or another poll took this one's place: the client stops.
    Ended,
}

/// Appends the head of an event stream and the comment it begins with, without which some browsers do not say that it is open.
///
/// The body has neither length nor chunks: it ends with the connection (RFC 9112 §6.3, the last rule), which saves every event its chunk's
/// frame. An EventSource cannot tell one end from the other anyway.
pub fn event_stream_reply(cors: Cors<'_>, out: &mut Vec<u8>) {
    status_line(200, out);
    cors.write(out);
    // `identity` keeps compression in front from holding events back.
    out.extend_from_slice(b"Cache-Control: no-cache,no-store\r\nPragma: no-cache\r\nContent-Encoding: identity\r\n");
    connection(false, out);
    out.extend_from_slice(b"Content-Type: text/event-stream\r\n\r\n:\r\n");
}

/// Appends the reply to a poll; of `PollReply::Data` the head.
pub fn poll_reply(reply: PollReply, cors: Cors<'_>, keep_alive: bool, out: &mut Vec<u8>) {
    let (status, content_type, content_length) = match reply {
        PollReply::First => (200, "application/octet-stream", Some(0)),
        PollReply::Data { bytes } => (200, "application/octet-stream", Some(bytes)),
        PollReply::TimedOut => (200, "text/plain", Some(0)),
        // RFC 9110 §8.6: no Content-Length in a 204.
        PollReply::Ended => (204, "text/plain", None),
    };
    status_line(status, out);
    cors.write(out);
    // A poll answered from a cache is a message told twice.
    out.extend_from_slice(
        b"Cache-Control: no-cache, no-store\r\nPragma: no-cache\r\nExpires: Thu, 01 Jan 1970 00:00:00 GMT\r\n",
    );
    connection(keep_alive, out);
    content_headers(content_type, content_length, out);
}

/// The answer to `Expect: 100-continue` (RFC 9110 section 10.1.1), ahead of the one to the request.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Does the client want to hear that its body is welcome before it sends it? HTTP/1.0 has no interim answers.
pub fn asks_to_continue(head: &Head<'_>) -> bool {
    head.minor > 0
        && head.header("expect").is_some_and(|value| value.trim_ascii().eq_ignore_ascii_case(b"100-continue"))
}

/// Appends the reply to a POST whose messages were taken.
pub fn post_reply(cors: Cors<'_>, keep_alive: bool, out: &mut Vec<u8>) {
    empty_text(200, cors, keep_alive, out);
}

/// Appends the reply to a DELETE that ended its connection.
pub fn delete_reply(cors: Cors<'_>, keep_alive: bool, out: &mut Vec<u8>) {
    empty_text(202, cors, keep_alive, out);
}

/// Appends a refusal: status line, CORS headers if the origin is allowed, and a sentence as `text/plain`.
///
/// `keep_alive` is for requests that were whole: who keeps the connection skips what is left of the request's body first.
pub fn refuse(error: HttpError, cors: Cors<'_>, keep_alive: bool, out: &mut Vec<u8>) {
    refusal(error, ALLOW_HUB, true, cors, keep_alive, out);
}

/// What a 405 lists on the two paths of a hub.
pub(super) const ALLOW_HUB: &str = "GET, POST, DELETE, OPTIONS";
pub(super) const ALLOW_NEGOTIATE: &str = "POST, OPTIONS";

/// `allow` is what a 405 lists. `with_body` is false for HEAD, whose reply must not have one (RFC 9110 §9.3.2).
pub(super) fn refusal(
    error: HttpError,
    allow: &str,
    with_body: bool,
    cors: Cors<'_>,
    keep_alive: bool,
    out: &mut Vec<u8>,
) {
    status_line(error.status(), out);
    let headers: [&str; 3] = match error {
        // RFC 9110 §15.5.6: a 405 must list what is allowed.
        HttpError::MethodNotAllowed => ["Allow: ", allow, "\r\n"],
        HttpError::PostToWebSocket => ["Allow: ", "GET, OPTIONS", "\r\n"],
        // RFC 6455 §4.4: name the version that is understood. A 426 must also send Upgrade (RFC 9110 §15.5.22).
        HttpError::WebSocketVersion => ["Sec-WebSocket-Version: 13\r\n", "Upgrade: websocket\r\n", ""],
        // RFC 6750 §3: no error code for a request that brought no token.
        HttpError::Unauthorized => ["WWW-Authenticate: Bearer", "", "\r\n"],
        HttpError::InvalidToken => ["WWW-Authenticate: Bearer", r#" error="invalid_token""#, "\r\n"],
        HttpError::Stopping | HttpError::Overloaded | HttpError::TooManyRequests => ["Retry-After: ", "1", "\r\n"],
        // A lane is dialled again within seconds, and an address has to let go of a connection first.
        HttpError::Unavailable | HttpError::AddressLimit => ["Retry-After: ", "5", "\r\n"],
        _ => [""; 3],
    };
    headers.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
    // A browser hides even the status of a reply without CORS headers from the client (reference section 5).
    cors.write(out);
    // 404 and 405 may be cached by default (RFC 9110 §15.1); a hub that starts a moment later must be found.
    out.extend_from_slice(b"Cache-Control: no-store\r\n");
    connection(keep_alive, out);
    let text = error.text();
    content_headers("text/plain", Some(text.len()), out);
    if with_body {
        out.extend_from_slice(text.as_bytes());
    }
}

fn empty_text(status: u16, cors: Cors<'_>, keep_alive: bool, out: &mut Vec<u8>) {
    status_line(status, out);
    cors.write(out);
    connection(keep_alive, out);
    content_headers("text/plain", Some(0), out);
}

/// Appends `Connection`. It is always said, so that HTTP/1.0 needs no case of its own.
pub(super) fn connection(keep_alive: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(if keep_alive { b"Connection: keep-alive\r\n".as_slice() } else { b"Connection: close\r\n" });
}

/// Appends the last headers and the blank line.
pub(super) fn content_headers(content_type: &str, content_length: Option<usize>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"Content-Type: ");
    out.extend_from_slice(content_type.as_bytes());
    if let Some(length) = content_length {
        out.extend_from_slice(b"\r\nContent-Length: ");
        decimal(length as u64, out);
    }
    out.extend_from_slice(b"\r\n\r\n");
}
pub(super) fn status_line(status: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    decimal(status.into(), out);
    out.push(b' ');
    out.extend_from_slice(reason(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

pub(super) fn decimal(mut value: u64, out: &mut Vec<u8>) {
    let mut digits = [b'0'; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// The phrases of RFC 9110 §15, RFC 6585 and RFC 9112; a phrase nobody needs may be empty.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        414 => "URI Too Long",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::String;

    const APP: Cors<'static> = Cors::Allow("https://app.example.com");
    const APP_HEADERS: &str = "Vary: Origin\r\nAccess-Control-Allow-Origin: https://app.example.com\r\nAccess-Control-Allow-Credentials: true\r\n";
    const NO_CACHE: &str =
        "Cache-Control: no-cache, no-store\r\nPragma: no-cache\r\nExpires: Thu, 01 Jan 1970 00:00:00 GMT\r\n";

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = b"before".to_vec();
        write(&mut out);
        String::from_utf8(out).unwrap().strip_prefix("before").expect("appended").into()
    }

    fn refused(error: HttpError, cors: Cors<'_>, keep_alive: bool) -> String {
        written(|out| refuse(error, cors, keep_alive, out))
    }

    #[test]
    fn an_event_stream_begins_at_once_and_ends_with_its_connection() {
        assert_eq!(
            written(|out| event_stream_reply(APP, out)),
            format!(
                "HTTP/1.1 200 OK\r\n{APP_HEADERS}Cache-Control: no-cache,no-store\r\nPragma: no-cache\r\n\
                Content-Encoding: identity\r\nConnection: close\r\nContent-Type: text/event-stream\r\n\r\n:\r\n"
            )
        );
    }

    #[test]
    fn polls_are_answered_as_by_aspnet() {
        for (reply, status, content) in [
            (PollReply::First, "200 OK", "application/octet-stream\r\nContent-Length: 0"),
            (PollReply::Data { bytes: 70_000 }, "200 OK", "application/octet-stream\r\nContent-Length: 70000"),
            (PollReply::TimedOut, "200 OK", "text/plain\r\nContent-Length: 0"),
            (PollReply::Ended, "204 No Content", "text/plain"),
        ] {
            assert_eq!(
                written(|out| poll_reply(reply, APP, true, out)),
                format!(
                    "HTTP/1.1 {status}\r\n{APP_HEADERS}{NO_CACHE}Connection: keep-alive\r\nContent-Type: {content}\r\n\r\n"
                )
            );
        }
        let last = written(|out| poll_reply(PollReply::First, Cors::None, false, out));
        assert!(last.contains("\r\nConnection: close\r\n") && !last.contains("Access-Control"), "{last}");
    }

    #[test]
    fn what_is_taken_and_what_is_ended() {
        assert_eq!(
            written(|out| post_reply(APP, true, out)),
            format!(
                "HTTP/1.1 200 OK\r\n{APP_HEADERS}Connection: keep-alive\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n"
            )
        );
        assert_eq!(
            written(|out| delete_reply(Cors::None, false, out)),
            "HTTP/1.1 202 Accepted\r\nVary: Origin\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n"
        );
    }

    #[test]
    fn a_refusal_in_full() {
        assert_eq!(
            refused(HttpError::UnknownConnection, APP, false),
            format!(
                "HTTP/1.1 404 Not Found\r\n{APP_HEADERS}Cache-Control: no-store\r\nConnection: close\r\n\
                Content-Type: text/plain\r\nContent-Length: 26\r\n\r\nNo Connection with that ID"
            )
        );
        assert_eq!(
            refused(HttpError::AlreadyActive, Cors::None, true),
            "HTTP/1.1 409 Conflict\r\nVary: Origin\r\nCache-Control: no-store\r\nConnection: keep-alive\r\n\
            Content-Type: text/plain\r\nContent-Length: 0\r\n\r\n"
        );
    }

    #[test]
    fn every_refusal_is_a_whole_reply() {
        for error in HttpError::ALL {
            let reply = refused(*error, Cors::Forbidden, false);
            let (head, body) = reply.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {} ", error.status())), "{head}");
            assert!(!head.contains(" \r\n"), "{error:?} has a phrase");
            assert!(head.contains("\r\nConnection: close\r\n"));
            assert!(head.ends_with(&format!("\r\nContent-Length: {}", body.len())));
            assert_eq!(body.is_empty(), *error == HttpError::AlreadyActive);
            assert!(!head.contains("Access-Control"));
        }
    }

    #[test]
    fn some_refusals_say_what_would_do() {
        for (error, header) in [
            (HttpError::MethodNotAllowed, "Allow: GET, POST, DELETE, OPTIONS"),
            (HttpError::PostToWebSocket, "Allow: GET, OPTIONS"),
            (HttpError::WebSocketVersion, "Sec-WebSocket-Version: 13\r\nUpgrade: websocket"),
            (HttpError::Unauthorized, "WWW-Authenticate: Bearer"),
            (HttpError::InvalidToken, r#"WWW-Authenticate: Bearer error="invalid_token""#),
            (HttpError::Overloaded, "Retry-After: 1"),
            (HttpError::TooManyRequests, "Retry-After: 1"),
            (HttpError::AddressLimit, "Retry-After: 5"),
            (HttpError::Unavailable, "Retry-After: 5"),
            (HttpError::Stopping, "Retry-After: 1"),
        ] {
            let reply = refused(error, Cors::None, true);
            assert!(reply.contains(&format!("\r\n{header}\r\nVary: Origin\r\n")), "{reply}");
        }
        assert!(refused(HttpError::OriginForbidden, Cors::Forbidden, true).contains("`allowed_origins`"));
    }

    #[test]
    fn decimals() {
        let text = |value| {
            let mut out = Vec::new();
            decimal(value, &mut out);
            String::from_utf8(out).unwrap()
        };
        for value in [0, 9, 10, 65535, u64::MAX] {
            assert_eq!(text(value), format!("{value}"));
        }
    }
}
