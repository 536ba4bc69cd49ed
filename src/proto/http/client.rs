//! The client side of HTTP, for dialling lanes: response heads, chunked bodies, and the two requests a lane sends. What
//! the body of a negotiate answer says is `signalr::negotiate`'s to read.
use alloc::string::String;
use alloc::vec::Vec;

use super::head::decimal;
use super::{HttpError, has_token};
use crate::limits::{HTTP_HEAD_BYTES_MAX, HTTP_HEADERS_MAX};

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
///
/// An interim reply (1xx other than 101) is returned like any other: skip its `bytes` and parse again.
pub fn parse_response(buffer: &[u8]) -> Result<Option<ResponseHead>, HttpError> {
    let mut headers = [httparse::EMPTY_HEADER; HTTP_HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let within_limit = &buffer[..buffer.len().min(HTTP_HEAD_BYTES_MAX)];
    let bytes = match response.parse(within_limit) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) if buffer.len() < HTTP_HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) => return Err(HttpError::HeadTooLarge),
        Err(httparse::Error::TooManyHeaders) => return Err(HttpError::TooManyHeaders),
        Err(httparse::Error::Version) => return Err(HttpError::Version),
        Err(_) => return Err(HttpError::Malformed),
    };
    let status = response.code.ok_or(HttpError::Malformed)?;
    let headers = &*response.headers;
    let values =
        |name: &'static str| headers.iter().filter(move |h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value);

    // RFC 9112 §6.3, as strict as for requests: an app server has no reason to leave its body's length open to debate.
    let mut content_length = None;
    for value in values("content-length") {
        let length = decimal(value).ok_or(HttpError::AmbiguousLength)?;
        if content_length.replace(length).is_some() {
            return Err(HttpError::AmbiguousLength);
        }
    }
    let mut chunked = false;
    for value in values("transfer-encoding") {
        if content_length.is_some() {
            return Err(HttpError::AmbiguousLength);
        }
        if chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(HttpError::TransferEncoding);
        }
        chunked = true;
    }
    Ok(Some(ResponseHead {
        status,
        content_length,
        chunked,
        accept: values("sec-websocket-accept").next().and_then(|value| value.try_into().ok()),
        upgraded: has_token(values("upgrade"), "websocket") && has_token(values("connection"), "upgrade"),
        location: values("location").next().and_then(|value| core::str::from_utf8(value).ok()).map(String::from),
        bytes,
    }))
}

/// Decodes a complete chunked body (RFC 9112 §7.1); `Ok(None)` = need more. Extensions and trailers are skipped.
/// `limit` bounds the decoded body; the framing around it may cost as much again and a head more.
pub fn decode_chunked(body: &[u8], limit: usize) -> Result<Option<Vec<u8>>, HttpError> {
    let mut decoded = Vec::new();
    let mut rest = body;
    let incomplete = || {
        if body.len() > limit.saturating_mul(2).saturating_add(HTTP_HEAD_BYTES_MAX) {
            Err(HttpError::BodyTooLarge)
        } else {
            Ok(None)
        }
    };
    loop {
        let Some((line, after)) = split_line(rest)? else { return incomplete() };
        let size = chunk_size(line)?;
        if size > limit - decoded.len() {
            return Err(HttpError::BodyTooLarge);
        }
        rest = after;
        if size == 0 {
            break;
        }
        let Some((chunk, after)) = rest.split_at_checked(size) else { return incomplete() };
        decoded.extend_from_slice(chunk);
        rest = match after {
            [b'\r', b'\n', rest @ ..] => rest,
            [] | [b'\r'] => return incomplete(),
            _ => return Err(HttpError::Malformed),
        };
    }
    // The trailer section ends, as a head does, with a blank line.
    loop {
        match split_line(rest)? {
            None => return incomplete(),
            Some(([], _)) => return Ok(Some(decoded)),
            Some((_, after)) => rest = after,
        }
    }
}

/// `chunk-size [ chunk-ext ]`: hexadecimal digits, then nothing or an extension that is not ours.
fn chunk_size(line: &[u8]) -> Result<usize, HttpError> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let extension = line[digits..].trim_ascii_start();
    if digits == 0 || !(extension.is_empty() || extension[0] == b';') {
        return Err(HttpError::Malformed);
    }
    let digits = core::str::from_utf8(&line[..digits]).map_err(|_| HttpError::Malformed)?;
    usize::from_str_radix(digits, 16).map_err(|_| HttpError::BodyTooLarge)
}

/// A line without its end, and what follows.
type Cut<'b> = (&'b [u8], &'b [u8]);

/// Cuts one line ended by CRLF; a bare LF or CR is a fault.
fn split_line(bytes: &[u8]) -> Result<Option<Cut<'_>>, HttpError> {
    let Some(end) = memchr::memchr2(b'\r', b'\n', bytes) else { return Ok(None) };
    match &bytes[end..] {
        [b'\r', b'\n', rest @ ..] => Ok(Some((&bytes[..end], rest))),
        [b'\r'] => Ok(None),
        _ => Err(HttpError::Malformed),
    }
}

/// Builds the negotiate request and the upgrade request of a lane. `path_and_query` is absolute; `host` is the Host header.
pub fn negotiate_request(host: &str, path_and_query: &str, out: &mut Vec<u8>) {
    request_line("POST", host, path_and_query, out);
    out.extend_from_slice(b"X-Requested-With: XMLHttpRequest\r\nAccept: */*\r\nContent-Length: 0\r\n\r\n");
}

/// RFC 6455 §4.1: `key` is 16 random bytes in base64.
pub fn upgrade_request(host: &str, path_and_query: &str, key: &str, out: &mut Vec<u8>) {
    debug_assert_eq!(key.len(), 24);
    request_line("GET", host, path_and_query, out);
    out.extend_from_slice(
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ",
    );
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\r\n\r\n");
}

fn request_line(method: &str, host: &str, path_and_query: &str, out: &mut Vec<u8>) {
    // Both come from the configuration or a redirect's parsed url, which cannot hold a line break.
    debug_assert!(path_and_query.starts_with('/'));
    debug_assert!(host.bytes().chain(path_and_query.bytes()).all(|byte| byte.is_ascii_graphic()));
    for part in [
        method,
        " ",
        path_and_query,
        " HTTP/1.1\r\nHost: ",
        host,
        "\r\nUser-Agent: SignalRing/",
        env!("CARGO_PKG_VERSION"),
        "\r\n",
    ] {
        out.extend_from_slice(part.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::http::{accept_key, parse_head, refuse, upgrade_reply};
    use std::format;
    use std::vec;

    #[test]
    fn the_reply_of_our_own_upgrade() {
        let mut bytes = vec![];
        upgrade_reply(&accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), &mut bytes);
        for len in 0..bytes.len() {
            assert!(parse_response(&bytes[..len]).ok().unwrap().is_none());
        }
        let head_bytes = bytes.len();
        bytes.extend_from_slice(b"\x81\x00");
        let head = parse_response(&bytes).ok().unwrap().unwrap();
        assert_eq!((head.status, head.upgraded, head.bytes), (101, true, head_bytes));
        assert_eq!(head.accept, Some(*b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!((head.content_length, head.chunked, head.location), (None, false, None));
    }

    #[test]
    fn responses_are_read_as_strictly_as_requests() {
        let parse = |headers: &str| parse_response(format!("HTTP/1.1 200 OK\r\n{headers}\r\n").as_bytes());
        assert_eq!(parse("Content-Length: 5\r\n").ok().unwrap().unwrap().content_length, Some(5));
        assert!(parse("Transfer-Encoding: Chunked\r\n").ok().unwrap().unwrap().chunked);
        assert_eq!(
            parse("Location: http://other/hub\r\n").ok().unwrap().unwrap().location.as_deref(),
            Some("http://other/hub")
        );
        assert!(!parse("Upgrade: websocket\r\n").ok().unwrap().unwrap().upgraded, "Connection is missing");
        assert_eq!(parse("Sec-WebSocket-Accept: short\r\n").ok().unwrap().unwrap().accept, None);
        for (headers, error) in [
            ("Content-Length: 5\r\nContent-Length: 5\r\n", HttpError::AmbiguousLength),
            ("Content-Length: +5\r\n", HttpError::AmbiguousLength),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", HttpError::AmbiguousLength),
            ("Transfer-Encoding: gzip, chunked\r\n", HttpError::TransferEncoding),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", HttpError::TransferEncoding),
            ("no colon\r\n", HttpError::Malformed),
            (&"X: y\r\n".repeat(HTTP_HEADERS_MAX + 1), HttpError::TooManyHeaders),
            (&format!("X: {}\r\n", "y".repeat(HTTP_HEAD_BYTES_MAX)), HttpError::HeadTooLarge),
        ] {
            assert_eq!(parse(headers).err(), Some(error), "{}", &headers[..headers.len().min(60)]);
        }
        assert_eq!(parse_response(b"HTTP/2 200 OK\r\n\r\n").err(), Some(HttpError::Version));
        assert_eq!(parse_response(b"SSH-2.0-OpenSSH\r\n").err(), Some(HttpError::Version));
    }

    #[test]
    fn every_refusal_of_ours_parses() {
        for error in HttpError::ALL {
            let mut bytes = vec![];
            refuse(*error, crate::proto::http::Cors::None, true, &mut bytes);
            let head = parse_response(&bytes).ok().unwrap().unwrap();
            assert_eq!(head.status, error.status());
            assert_eq!(head.content_length, Some((bytes.len() - head.bytes) as u64));
        }
    }

    #[test]
    fn chunked_bodies() {
        let body = b"4\r\nWiki\r\n00A;name=\"v\"\r\npedia in\r\n\r\n2 \r\n..\r\n0\r\nTrailer: x\r\n\r\n";
        assert_eq!(decode_chunked(body, 16), Ok(Some(b"Wikipedia in\r\n..".to_vec())));
        assert_eq!(decode_chunked(body, 15), Err(HttpError::BodyTooLarge));
        for len in 0..body.len() {
            assert_eq!(decode_chunked(&body[..len], 16), Ok(None), "{len}");
        }
        for malformed in [
            &b"\r\n"[..],
            b"x\r\n",
            b"-1\r\n",
            b"4x\r\n",
            b"4\nWiki",
            b"4\rWiki",
            b"4\r\nWikiX",
            b"4\r\nWiki\r0",
            b"0\r\nX\n",
        ] {
            assert_eq!(decode_chunked(malformed, 16), Err(HttpError::Malformed), "{malformed:?}");
        }
        assert_eq!(decode_chunked(b"FFFFFFFFFFFFFFFFFF\r\n", usize::MAX), Err(HttpError::BodyTooLarge));
        let endless = [b"1;", &vec![b'x'; HTTP_HEAD_BYTES_MAX + 64][..]].concat();
        assert_eq!(decode_chunked(&endless, 16), Err(HttpError::BodyTooLarge));
    }

    #[test]
    fn the_requests_are_ones_we_would_accept() {
        let mut bytes = vec![];
        negotiate_request("app:80", "/hub/negotiate?negotiateVersion=1", &mut bytes);
        let head = parse_head(&bytes).ok().unwrap();
        assert_eq!(
            (head.method, head.path, head.query, head.content_length),
            ("POST", "/hub/negotiate", "negotiateVersion=1", 0)
        );
        bytes.clear();
        upgrade_request("app:80", "/hub?id=t", "dGhlIHNhbXBsZSBub25jZQ==", &mut bytes);
        let head = parse_head(&bytes).ok().unwrap();
        assert_eq!(crate::proto::http::upgrade::check(&head), Ok(accept_key(b"dGhlIHNhbXBsZSBub25jZQ==")));
    }
}
