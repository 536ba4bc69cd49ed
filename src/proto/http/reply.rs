//! Replies: the refusals, and the pieces every reply is made of.
use alloc::vec::Vec;

use super::{Cors, HttpError};

/// Appends a refusal: status line, `text/plain` body, `Connection: close`, CORS headers if the origin is allowed.
pub fn refuse(error: HttpError, cors: Cors<'_>, out: &mut Vec<u8>) {
    refusal(error, "GET, POST, OPTIONS", true, cors, out);
}

/// `allow` is what a 405 lists. `with_body` is false for HEAD, whose reply must not have one (RFC 9110 §9.3.2).
pub(super) fn refusal(error: HttpError, allow: &str, with_body: bool, cors: Cors<'_>, out: &mut Vec<u8>) {
    status_line(error.status(), out);
    match error {
        // RFC 9110 §15.5.6: a 405 must list what is allowed.
        HttpError::MethodNotAllowed => {
            out.extend_from_slice(b"Allow: ");
            out.extend_from_slice(allow.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        // RFC 6455 §4.4: name the version that is understood. A 426 must also send Upgrade (RFC 9110 §15.5.22).
        HttpError::WebSocketVersion => out.extend_from_slice(b"Sec-WebSocket-Version: 13\r\nUpgrade: websocket\r\n"),
        HttpError::Overloaded => out.extend_from_slice(b"Retry-After: 1\r\n"),
        _ => {}
    }
    // A browser hides even the status of a reply without CORS headers from the client (reference section 5).
    cors.write(out);
    // 404 and 405 may be cached by default (RFC 9110 §15.1); a hub that starts a moment later must be found.
    out.extend_from_slice(b"Cache-Control: no-store\r\n");
    connection(false, out);
    let text = error.text().as_bytes();
    body("text/plain", if with_body { text } else { b"" }, text.len(), out);
}

/// Appends `Connection`. It is always said, so that HTTP/1.0 needs no case of its own.
pub(super) fn connection(keep_alive: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(if keep_alive { b"Connection: keep-alive\r\n".as_slice() } else { b"Connection: close\r\n" });
}

/// Appends the last headers, the blank line and the body.
pub(super) fn body(content_type: &str, content: &[u8], content_length: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(b"Content-Type: ");
    out.extend_from_slice(content_type.as_bytes());
    out.extend_from_slice(b"\r\nContent-Length: ");
    decimal(content_length as u32, out);
    out.extend_from_slice(b"\r\n\r\n");
    out.extend_from_slice(content);
}

pub(super) fn status_line(status: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    decimal(status as u32, out);
    out.push(b' ');
    out.extend_from_slice(reason(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

pub(super) fn decimal(mut value: u32, out: &mut Vec<u8>) {
    let mut digits = [b'0'; 10];
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
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        426 => "Upgrade Required",
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
    use std::string::String;

    fn refused(error: HttpError, cors: Cors<'_>) -> String {
        let mut out = Vec::new();
        refuse(error, cors, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_refusal_in_full() {
        assert_eq!(
            refused(HttpError::UnknownConnection, Cors::Allow("https://app.example.com")),
            "HTTP/1.1 404 Not Found\r\nVary: Origin\r\nAccess-Control-Allow-Origin: https://app.example.com\r\n\
            Access-Control-Allow-Credentials: true\r\nCache-Control: no-store\r\nConnection: close\r\n\
            Content-Type: text/plain\r\nContent-Length: 26\r\n\r\nNo Connection with that ID"
        );
    }

    #[test]
    fn every_refusal_is_a_whole_reply_that_closes() {
        for error in HttpError::ALL {
            let reply = refused(*error, Cors::Forbidden);
            let (head, body) = reply.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&std::format!("HTTP/1.1 {} ", error.status())), "{head}");
            assert!(!head.contains(" \r\n"), "{error:?} has a phrase");
            assert!(head.contains("\r\nConnection: close\r\n"));
            assert!(head.ends_with(&std::format!("\r\nContent-Length: {}", body.len())) && !body.is_empty());
            assert!(!head.contains("Access-Control"));
        }
        assert!(refused(HttpError::MethodNotAllowed, Cors::None).contains("\r\nAllow: GET, POST, OPTIONS\r\n"));
        assert!(refused(HttpError::WebSocketVersion, Cors::None).contains("\r\nSec-WebSocket-Version: 13\r\n"));
        assert!(refused(HttpError::OriginForbidden, Cors::Forbidden).contains("`allowed_origins`"));
    }

    #[test]
    fn decimals() {
        let text = |value| {
            let mut out = Vec::new();
            decimal(value, &mut out);
            String::from_utf8(out).unwrap()
        };
        for value in [0, 9, 10, 65535, u32::MAX] {
            assert_eq!(text(value), std::format!("{value}"));
        }
    }
}
