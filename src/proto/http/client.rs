//! The client side of HTTP, for dialling lanes: response heads, chunked bodies, the two requests a lane sends, and the
//! app server's answer to negotiate.
use alloc::string::String;
use alloc::vec::Vec;

use super::head::decimal;
use super::{HttpError, has_token};
use crate::limits::{HTTP_HEAD_BYTES_MAX, HTTP_HEADERS_MAX};
use crate::proto::signalr::{MessageError, Span, json};

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

/// The app server's answer to negotiate, as a lane needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NegotiateAnswer {
    Connect { token: String },
    Redirect { url: String, access_token: Option<String> },
    Error(String),
}

/// Reads the JSON body of a negotiate answer (reference section 3.5: unknown members skipped, any order; WebSockets must be
/// among the transports). Err carries a sentence for the log.
pub fn parse_negotiate_answer(body: &[u8]) -> Result<NegotiateAnswer, String> {
    // The tools below read valid JSON only. The hub message scanner validates the whole text before it misses a `type`,
    // which no negotiate answer has.
    let valid =
        core::str::from_utf8(body).is_ok() && matches!(json::parse(body), Ok(_) | Err(MessageError::MissingType));
    if !valid {
        return Err("The answer to negotiate is not a JSON object.".into());
    }
    let mut answer = Members::default();
    json::members(body, |name, value| answer.take(unescaped(name.of(body)).as_str(), value.of(body)));

    if let Some(error) = answer.error {
        return Ok(NegotiateAnswer::Error(error));
    }
    if answer.is_classic {
        return Err("The server speaks classic ASP.NET SignalR, not ASP.NET Core SignalR.".into());
    }
    if let Some(url) = answer.url {
        return Ok(NegotiateAnswer::Redirect { url, access_token: answer.access_token });
    }
    if !answer.has_web_sockets {
        return Err("The answer to negotiate does not offer the WebSockets transport.".into());
    }
    // Section 3.5: version 0 knows one id only, and a missing version is 0.
    let (token, name) = if answer.version > 0 {
        (answer.connection_token, "connectionToken")
    } else {
        (answer.connection_id, "connectionId")
    };
    match token {
        Some(token) if !token.is_empty() => Ok(NegotiateAnswer::Connect { token }),
        _ => Err(alloc::format!("The answer to negotiate has no {name}.")),
    }
}

/// The members of a negotiate answer that count. Of duplicates the last wins, as in the parsers of the clients.
#[derive(Default)]
struct Members {
    version: u64,
    connection_id: Option<String>,
    connection_token: Option<String>,
    url: Option<String>,
    access_token: Option<String>,
    error: Option<String>,
    is_classic: bool,
    has_web_sockets: bool,
}

impl Members {
    fn take(&mut self, name: &str, value: &[u8]) {
        match name {
            "negotiateVersion" => self.version = decimal(value).unwrap_or(0),
            "connectionId" => self.connection_id = string(value),
            "connectionToken" => self.connection_token = string(value),
            "url" => self.url = string(value),
            "accessToken" => self.access_token = string(value),
            "error" => self.error = string(value),
            "ProtocolVersion" => self.is_classic = true,
            "availableTransports" => self.has_web_sockets = has_web_sockets(value),
            _ => {}
        }
    }
}

fn has_web_sockets(transports: &[u8]) -> bool {
    let mut found = false;
    json::elements(transports, |element: Span| {
        let entry = element.of(transports);
        json::members(entry, |name, value| {
            found |=
                unescaped(name.of(entry)) == "transport" && string(value.of(entry)).as_deref() == Some("WebSockets");
        });
    });
    found
}

/// The text of a JSON string; None for any other value, null among them.
fn string(value: &[u8]) -> Option<String> {
    match value {
        [b'"', contents @ .., b'"'] => Some(unescaped(contents)),
        _ => None,
    }
}

fn unescaped(contents: &[u8]) -> String {
    let mut text = Vec::with_capacity(contents.len());
    json::unescape(contents, &mut text);
    String::from_utf8_lossy(&text).into_owned()
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
            refuse(*error, crate::proto::http::Cors::None, &mut bytes);
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

    #[test]
    fn answers_to_negotiate() {
        let connect = |token: &str| Ok(NegotiateAnswer::Connect { token: token.into() });
        let transports = r#""availableTransports":[{"transport":"LongPolling","transferFormats":[]},{"transferFormats":["Text"],"transport":"WebSockets"}]"#;
        let parse = |members: &str| parse_negotiate_answer(format!("{{{members}}}").as_bytes());
        assert_eq!(
            parse(&format!(r#""negotiateVersion":1,"connectionId":"i","connectionToken":"t",{transports}"#)),
            connect("t")
        );
        assert_eq!(
            parse(&format!(
                r#"{transports},"x":{{"y":[1]}},"connectionToken":"t\u002D","connectionId":"i","negotiateVersion":1"#
            )),
            connect("t-")
        );
        assert_eq!(
            parse(&format!(r#""connectionId":"i","connectionToken":"t",{transports}"#)),
            connect("i"),
            "no version is version 0"
        );
        assert_eq!(
            parse(r#""url":"https:\/\/other/hub","accessToken":"a","availableTransports":[]"#),
            Ok(NegotiateAnswer::Redirect { url: "https://other/hub".into(), access_token: Some("a".into()) })
        );
        assert_eq!(parse(r#""error":"no \"way\"""#), Ok(NegotiateAnswer::Error("no \"way\"".into())));
        for (members, sentence) in [
            (
                r#""negotiateVersion":1,"connectionId":"i","connectionToken":"t","availableTransports":[{"transport":"LongPolling"}]"#,
                "WebSockets",
            ),
            (&format!(r#""negotiateVersion":1,"connectionId":"i",{transports}"#), "no connectionToken"),
            (transports, "no connectionId"),
            (r#""ProtocolVersion":"1.5""#, "classic"),
            ("", "WebSockets"),
            (r#""connectionId":"i",,"#, "not a JSON object"),
        ] {
            let error = parse(members).expect_err(members);
            assert!(error.contains(sentence), "{error}");
        }
        for body in [&b""[..], b"[]", b"null", b"<html>", b"{\"a\":\"\xff\"}"] {
            assert!(parse_negotiate_answer(body).is_err());
        }
    }
}
