//! Request heads: where one ends, and what it says.
//!
//! httparse reads the grammar. What is added here is what a proxy must not be lenient about: RFC 9112 lets a recipient
//! accept several odd shapes, and each of them is one that the load balancer in front may read differently (request
//! smuggling, §11.2). A hub's clients send none of them, so all are refused.
use super::{HttpError, has_token};
use crate::limits::{HTTP_HEAD_BYTES_MAX, HTTP_HEADERS_MAX, HTTP_TARGET_BYTES_MAX};
use alloc::borrow::Cow;

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
    /// Bytes of body that follow the head: whoever answers and keeps the connection skips them first. How many there may be is the
    /// route's to say.
    pub content_length: u64,
    headers: [httparse::Header<'b>; HTTP_HEADERS_MAX],
    header_count: usize,
}

impl<'b> Head<'b> {
    pub fn headers(&self) -> impl DoubleEndedIterator<Item = (&'b str, &'b [u8])> + '_ {
        self.headers[..self.header_count].iter().map(|h| (h.name, h.value))
    }

    /// First value of a header, by case-insensitive name.
    pub fn header(&self, name: &str) -> Option<&'b [u8]> {
        self.values(name).next()
    }

    /// Value of a query key (case-insensitive key, not decoded).
    ///
    /// Reference section 1: ASP.NET compares query keys without regard to case. Section 2: clients put the token into
    /// `id=` without percent-encoding.
    pub fn query_value(&self, key: &str) -> Option<&'b str> {
        self.query.split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            name.eq_ignore_ascii_case(key).then_some(value)
        })
    }

    /// Value of a query key (case-insensitive key), with `+` and percent-encoding decoded; a sequence that is none stays as it is.
    pub fn query_decoded(&self, key: &str) -> Option<Cow<'b, str>> {
        form_urlencoded::parse(self.query.as_bytes())
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, value)| value)
    }

    /// The bearer token of the request: of `Authorization: Bearer x` (RFC 6750 §2.1), else of the query's `access_token`, where browsers
    /// put it for event streams and WebSockets (reference section 4). Not checked in any way. It must not reach a log.
    pub fn bearer(&self) -> Option<Cow<'b, str>> {
        let header = match self.single("authorization") {
            Ok(header) => header,
            // Two credentials: whoever is in front may have judged by the other one.
            Err(MoreThanOne) => return None,
        };
        header
            .and_then(|value| without_prefix(core::str::from_utf8(value).ok()?, "Bearer "))
            .map(|token| Cow::Borrowed(token.trim_ascii()))
            .or_else(|| self.query_decoded("access_token"))
            .filter(|token| !token.is_empty())
    }

    /// Every value of a header.
    pub(super) fn values<'s>(&'s self, name: &'s str) -> impl DoubleEndedIterator<Item = &'b [u8]> + 's {
        self.headers().filter(move |(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The value of a header that may stand once; a second one is a fault.
    pub(super) fn single(&self, name: &str) -> Result<Option<&'b [u8]>, MoreThanOne> {
        let mut values = self.values(name);
        match (values.next(), values.next()) {
            (first, None) => Ok(first),
            (_, Some(_)) => Err(MoreThanOne),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MoreThanOne;

/// Finds the end of the head (the byte after the blank line). `scanned` remembers where the last search stopped so that a
/// slow sender costs linear time. Errors only by size: `HeadTooLarge` once `HTTP_HEAD_BYTES_MAX` passed without an end.
///
/// A blank line ended by a bare LF ends the head as well: `parse_head` refuses it at once, where waiting for a CRLF that
/// never comes would hold the connection until its timeout.
pub fn head_end(buffer: &[u8], scanned: &mut usize) -> Result<Option<usize>, HttpError> {
    debug_assert!(*scanned <= buffer.len());
    let mut at = *scanned;
    let found = loop {
        let Some(distance) = memchr::memchr(b'\n', &buffer[at..]) else {
            *scanned = buffer.len();
            break None;
        };
        let line_feed = at + distance;
        match &buffer[line_feed + 1..] {
            [b'\n', ..] => break Some(line_feed + 2),
            [b'\r', b'\n', ..] => break Some(line_feed + 3),
            // The blank line may be cut here: look at this line feed again.
            [] | [b'\r'] => {
                *scanned = line_feed;
                break None;
            }
            _ => at = line_feed + 1,
        }
    };
    match found {
        Some(end) if end <= HTTP_HEAD_BYTES_MAX => {
            *scanned = end;
            Ok(Some(end))
        }
        None if buffer.len() < HTTP_HEAD_BYTES_MAX => Ok(None),
        _ => Err(HttpError::HeadTooLarge),
    }
}

/// Parses a complete head (`buffer[..head_end]`). All smuggling shapes are errors here.
pub fn parse_head(head: &[u8]) -> Result<Head<'_>, HttpError> {
    // RFC 9112 §2.2 lets a recipient take a bare LF as a line end, and makes a bare CR invalid. Neither is let through.
    if !line_ends_are_crlf(head) {
        return Err(HttpError::Malformed);
    }
    let mut headers = [httparse::EMPTY_HEADER; HTTP_HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(bytes)) if bytes == head.len() => {}
        Ok(_) => return Err(HttpError::Malformed),
        Err(httparse::Error::TooManyHeaders) => return Err(HttpError::TooManyHeaders),
        Err(httparse::Error::Version) if names_an_http_version(head) => return Err(HttpError::Version),
        Err(_) => return Err(HttpError::Malformed),
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(HttpError::Malformed);
    };
    let header_count = request.headers.len();
    if target.len() > HTTP_TARGET_BYTES_MAX {
        return Err(HttpError::TargetTooLong);
    }
    let mut head =
        Head { method, path: "", query: "", minor, keep_alive: false, content_length: 0, headers, header_count };
    head.content_length = body_bytes(&head)?;
    let host = host(&head)?;
    (head.path, head.query) = path_and_query(method, target, host)?;
    head.keep_alive = match minor {
        0 => has_token(head.values("connection"), "keep-alive"),
        _ => !has_token(head.values("connection"), "close"),
    };
    Ok(head)
}

/// RFC 9112 §6.3, without its leniencies: no Transfer-Encoding at all, at most one Content-Length, digits only.
fn body_bytes(head: &Head<'_>) -> Result<u64, HttpError> {
    let length = head.single("content-length");
    if head.header("transfer-encoding").is_some() {
        // §6.1: a request with both "ought to be handled as an error": the classic CL.TE and TE.CL shapes.
        let alone = length == Ok(None);
        return Err(if alone { HttpError::TransferEncoding } else { HttpError::AmbiguousLength });
    }
    match length {
        Err(MoreThanOne) => Err(HttpError::AmbiguousLength),
        Ok(None) => Ok(0),
        Ok(Some(digits)) => match decimal(digits) {
            None => Err(HttpError::AmbiguousLength),
            Some(bytes) => Ok(bytes),
        },
    }
}

/// `1*DIGIT` (RFC 9110 §8.6) that fits: no sign, no list, no white space inside.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(digits).ok()?.parse().ok()
}

/// RFC 9112 §3.2: 400 for an HTTP/1.1 request without Host, and for any request with several or an invalid one. Ours is
/// a little narrower than the grammar: no comma and not empty, since neither names a host.
fn host<'b>(head: &Head<'b>) -> Result<Option<&'b str>, HttpError> {
    let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%:[]!$&'()*+;=".contains(byte);
    match head.single("host") {
        Ok(Some(host)) if !host.is_empty() && host.iter().all(valid) => {
            core::str::from_utf8(host).map(Some).map_err(|_| HttpError::MissingHost)
        }
        Ok(None) if head.minor == 0 => Ok(None),
        _ => Err(HttpError::MissingHost),
    }
}

/// Splits a request target (RFC 9112 §3.2). Origin form is what clients send. Absolute form must be accepted (§3.2.2), and
/// is when it names the same authority as Host: a request that names two hosts is refused rather than one of them chosen.
/// Asterisk form is for OPTIONS only; authority form (CONNECT) has nothing to do here.
fn path_and_query<'b>(method: &str, target: &'b str, host: Option<&str>) -> Result<(&'b str, &'b str), HttpError> {
    // Visible ASCII only, and no fragment, which no client sends (§3.2.1).
    if !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err(HttpError::Malformed);
    }
    let local = match without_prefix(target, "http://").or_else(|| without_prefix(target, "https://")) {
        Some(rest) => {
            let (authority, local) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            if authority.is_empty() || host.is_some_and(|host| !host.eq_ignore_ascii_case(authority)) {
                return Err(HttpError::Malformed);
            }
            local
        }
        None if target.starts_with('/') || (target == "*" && method == "OPTIONS") => target,
        None => return Err(HttpError::Malformed),
    };
    let (path, query) = local.split_once('?').unwrap_or((local, ""));
    Ok((if path.is_empty() { "/" } else { path }, query))
}

pub(super) fn without_prefix<'t>(text: &'t str, prefix: &str) -> Option<&'t str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn line_ends_are_crlf(head: &[u8]) -> bool {
    memchr::memchr2_iter(b'\r', b'\n', head).all(|at| match head[at] {
        b'\r' => head.get(at + 1) == Some(&b'\n'),
        _ => at > 0 && head[at - 1] == b'\r',
    })
}

/// Tells `GET / HTTP/2.0` and the HTTP/2 preface (RFC 9113 §3.4), answered 505, from noise and HTTP/0.9, answered 400.
fn names_an_http_version(head: &[u8]) -> bool {
    let line = head.split(|byte| *byte == b'\r').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
    let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    fn end(bytes: &[u8]) -> Result<Option<usize>, HttpError> {
        head_end(bytes, &mut 0)
    }

    /// The error of a head, whole and ended.
    #[track_caller]
    fn refused(head: &str) -> HttpError {
        assert_eq!(end(head.as_bytes()), Ok(Some(head.len())), "the end of the head is found");
        parse_head(head.as_bytes()).err().expect("refused")
    }

    fn with(header: &str) -> String {
        format!("POST /hub/negotiate HTTP/1.1\r\nHost: a\r\n{header}\r\n\r\n")
    }

    #[test]
    fn the_npm_clients_negotiate() {
        let bytes = b"POST /dotnetify/negotiate?negotiateVersion=1 HTTP/1.1\r\nhost: proxy:5000\r\nconnection: keep-alive\r\n\
            content-type: text/plain;charset=UTF-8\r\nx-requested-with: XMLHttpRequest\r\n\
            x-signalr-user-agent: Microsoft SignalR/5.0 (5.0.17; Unknown OS; Browser; Unknown Runtime Version)\r\naccept: */*\r\n\
            accept-language: *\r\nsec-fetch-mode: cors\r\nuser-agent: node\r\ncache-control: max-age=0\r\n\
            accept-encoding: gzip, deflate\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(end(bytes), Ok(Some(bytes.len())));
        let head = parse_head(bytes).ok().unwrap();
        assert_eq!((head.method, head.path, head.query), ("POST", "/dotnetify/negotiate", "negotiateVersion=1"));
        assert_eq!((head.minor, head.keep_alive, head.content_length), (1, true, 0));
        assert_eq!(head.headers().count(), 12);
        assert_eq!(head.header("Content-Type"), Some(&b"text/plain;charset=UTF-8"[..]));
        assert_eq!(head.query_value("NEGOTIATEVERSION"), Some("1"));
        assert_eq!(head.query_value("id"), None);
    }

    #[test]
    fn query_values_are_found_by_key_and_left_as_they_are() {
        let head = parse_head(b"GET /hub?x&ID=tok-_%41&id=second&=y&last= HTTP/1.1\r\nHost: a\r\n\r\n").ok().unwrap();
        assert_eq!(head.query_value("id"), Some("tok-_%41"), "the first one, not decoded");
        assert_eq!(head.query_value("x"), Some(""));
        assert_eq!(head.query_value("last"), Some(""));
        assert_eq!(head.query_value("i"), None);
    }

    #[test]
    fn query_values_are_decoded_where_asked_for() {
        let decoded = |query: &str| {
            let text = format!("GET /hub?{query} HTTP/1.1\r\nHost: a\r\n\r\n");
            parse_head(text.as_bytes()).ok().unwrap().query_decoded("access_token").map(Cow::into_owned)
        };
        assert_eq!(decoded("id=x&ACCESS_TOKEN=a%2Bb+c%3D%3d&access_token=second").as_deref(), Some("a+b c=="));
        assert_eq!(decoded("access_token=plain").as_deref(), Some("plain"));
        assert_eq!(decoded("access_token").as_deref(), Some(""));
        assert_eq!(decoded("access_tokens=x"), None);
        // What is no encoding stays; what is no UTF-8 can be no token and becomes none.
        assert_eq!(decoded("access_token=%4&x").as_deref(), Some("%4"));
        assert_eq!(decoded("access_token=%zz%").as_deref(), Some("%zz%"));
        assert_eq!(decoded("access_token=%ff").as_deref(), Some("\u{fffd}"));
    }

    #[test]
    fn the_bearer_token_is_the_headers_before_the_querys() {
        let bearer = |query: &str, headers: &str| {
            let text = format!("GET /hub?{query} HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
            parse_head(text.as_bytes()).ok().unwrap().bearer().map(Cow::into_owned)
        };
        let query = "access_token=q%2e";
        assert_eq!(bearer("", ""), None);
        assert_eq!(bearer(query, "").as_deref(), Some("q."));
        assert_eq!(bearer(query, "Authorization: Bearer h\r\n").as_deref(), Some("h"));
        assert_eq!(bearer("", "authorization: bEARER   h.h-h_h~+/== \r\n").as_deref(), Some("h.h-h_h~+/=="));
        assert_eq!(bearer(query, "Authorization: Basic abc\r\n").as_deref(), Some("q."), "somebody else's credentials");
        for none in [
            "Authorization: Bearer\r\n",
            "Authorization: Bearer \r\n",
            "Authorization: Bearerh\r\n",
            "Authorization: \u{ff}\r\n",
        ] {
            assert_eq!(bearer("access_token=", none), None, "{none:?}");
        }
        assert_eq!(bearer(query, "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n"), None, "two");
    }

    #[test]
    fn request_smuggling_shapes_are_refused() {
        use HttpError::*;
        // Two framings of one body (RFC 9112 §11.2).
        assert_eq!(refused(&with("Content-Length: 4\r\nTransfer-Encoding: chunked")), AmbiguousLength);
        assert_eq!(refused(&with("Transfer-Encoding: chunked\r\nContent-Length: 4")), AmbiguousLength);
        assert_eq!(refused(&with("Transfer-Encoding: chunked")), TransferEncoding);
        assert_eq!(refused(&with("Transfer-Encoding: identity")), TransferEncoding);
        assert_eq!(refused(&with("transfer-encoding:\txchunked")), TransferEncoding);
        assert_eq!(refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), TransferEncoding);
        for length in ["+5", "-5", "5, 5", "5 5", "0x5", "", "5;", "99999999999999999999", "\u{0664}"] {
            assert_eq!(refused(&with(&format!("Content-Length: {length}"))), AmbiguousLength, "{length:?}");
        }
        assert_eq!(refused(&with("Content-Length: 5\r\ncontent-length: 5")), AmbiguousLength, "equal ones as well");
        // How long a body may be is the route's to say.
        let length = |digits: &str| {
            parse_head(with(&format!("Content-Length: {digits}")).as_bytes()).ok().unwrap().content_length
        };
        assert_eq!((length("0004096"), length("18446744073709551615")), (4096, u64::MAX));

        // Header lines that recipients read differently.
        assert_eq!(refused(&with("Content-Length : 5")), Malformed, "a space before the colon");
        assert_eq!(refused(&with("Transfer-Encoding\t: chunked")), Malformed);
        assert_eq!(refused(&with("X: a\r\n folded")), Malformed, "obs-fold");
        assert_eq!(refused(&with("X: a\r\n\tContent-Length: 5")), Malformed);
        assert_eq!(refused(&with(" X: a")), Malformed, "a space before the first name");
        assert_eq!(refused(&with("no colon")), Malformed);
        assert_eq!(refused(&with(": no name")), Malformed);
        assert_eq!(refused(&with("X\u{e9}: a")), Malformed);
        assert_eq!(refused(&with("X: a\0b")), Malformed);
        assert_eq!(refused(&with("X: a\x0bb")), Malformed);
        assert_eq!(refused(&with("X: a\x7fb")), Malformed);
        assert_eq!(refused(&with("X\0: a")), Malformed);
    }

    #[test]
    fn line_ends_are_crlf_only() {
        use HttpError::Malformed;
        assert_eq!(refused("GET / HTTP/1.1\nHost: a\n\n"), Malformed);
        assert_eq!(refused("GET / HTTP/1.1\nHost: a\r\n\r\n"), Malformed);
        assert_eq!(refused("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"), Malformed);
        assert_eq!(refused("GET / HTTP/1.1\r\nHost: a\r\n\n"), Malformed);
        assert_eq!(refused("GET / HTTP/1.1\r\nHost: a\n\r\n"), Malformed);
        assert_eq!(refused("GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n"), Malformed, "a bare CR");
        assert_eq!(refused("GET / HTTP/1.1\r\nHost: a\r\r\n\r\n"), Malformed);
        // RFC 9112 §2.2: an empty line before the request is skipped. Nothing but empty lines is no request.
        assert!(parse_head(b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").is_ok());
        assert_eq!(refused("\r\n\r\n"), Malformed);
        // What stands behind the end is not the head's.
        assert_eq!(parse_head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nX").err(), Some(Malformed));
        assert_eq!(parse_head(b"GET / HTTP/1.1\r\nHost: a\r\n").err(), Some(Malformed));
        assert_eq!(parse_head(b"").err(), Some(Malformed));
    }

    #[test]
    fn the_request_line_has_three_parts_and_a_version_we_speak() {
        use HttpError::*;
        assert_eq!(refused("PRI * HTTP/2.0\r\n\r\n"), Version, "the HTTP/2 preface");
        assert_eq!(refused("GET / HTTP/1.2\r\nHost: a\r\n\r\n"), Version);
        assert_eq!(refused("GET / HTTP/0.9\r\n\r\n"), Version);
        assert_eq!(refused("GET /\r\n\r\n"), Malformed, "HTTP/0.9 as it was written");
        assert_eq!(refused("GET / http/1.1\r\nHost: a\r\n\r\n"), Malformed);
        assert_eq!(refused("GET / HTTP/1.10\r\nHost: a\r\n\r\n"), Malformed);
        assert_eq!(refused("GET  / HTTP/1.1\r\nHost: a\r\n\r\n"), Malformed);
        assert_eq!(refused("GET / HTTP/1.1 \r\nHost: a\r\n\r\n"), Malformed);
        assert_eq!(refused(" GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Malformed);
        assert_eq!(refused("G\u{e9}T / HTTP/1.1\r\nHost: a\r\n\r\n"), Malformed);
        assert_eq!(refused("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n"), Malformed);
        assert_eq!(refused("GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n"), Malformed);
        assert_eq!(refused("\x16\x03\x01\x02\r\n\r\n"), Malformed, "TLS on a plain port");
    }

    #[test]
    fn targets_are_origin_form_or_absolute_form_of_the_same_host() {
        use HttpError::Malformed;
        let split = |line: &str| {
            let text = format!("{line} HTTP/1.1\r\nHost: Proxy:5000\r\n\r\n");
            parse_head(text.as_bytes()).map(|head| (String::from(head.path), String::from(head.query)))
        };
        let ok = |path: &str, query: &str| Ok((path.into(), query.into()));
        assert_eq!(split("GET /hub?a=b?c"), ok("/hub", "a=b?c"));
        assert_eq!(split("GET http://proxy:5000/hub?a"), ok("/hub", "a"));
        assert_eq!(split("GET HTTPS://proxy:5000?a"), ok("/", "a"));
        assert_eq!(split("GET http://proxy:5000"), ok("/", ""));
        assert_eq!(split("OPTIONS *"), ok("*", ""));
        for target in [
            "http://other/hub",
            "http:///hub",
            "http://user@proxy:5000/",
            "ftp://proxy:5000/",
            "hub",
            "proxy:5000",
            "*",
            "/a#b",
        ] {
            assert_eq!(split(&format!("GET {target}")), Err(Malformed), "{target}");
        }
        assert_eq!(split("CONNECT proxy:5000"), Err(Malformed));
    }

    #[test]
    fn host_stands_exactly_once() {
        use HttpError::MissingHost;
        assert_eq!(refused("GET / HTTP/1.1\r\n\r\n"), MissingHost);
        assert_eq!(refused("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n"), MissingHost);
        assert_eq!(refused("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"), MissingHost);
        for host in ["", "a, b", "a b", "a/b", "user@a", "a\\b", "\u{e9}"] {
            assert_eq!(refused(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")), MissingHost, "{host:?}");
        }
        assert!(parse_head(b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n").is_ok());
        assert!(parse_head(b"GET / HTTP/1.0\r\n\r\n").is_ok());
    }

    #[test]
    fn connections_are_kept_as_the_version_says() {
        let kept = |minor: u8, connection: &str| {
            let text = format!("GET / HTTP/1.{minor}\r\nHost: a\r\nConnection: {connection}\r\n\r\n");
            parse_head(text.as_bytes()).ok().unwrap().keep_alive
        };
        assert!(kept(1, "") && kept(1, "upgrade") && kept(0, "foo, Keep-Alive"));
        assert!(!kept(1, "upgrade , Close") && !kept(0, "") && !kept(1, "x\r\nConnection: close"));
    }

    #[test]
    fn each_size_has_its_limit() {
        let target = |bytes: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(bytes - 1));
        assert!(parse_head(target(HTTP_TARGET_BYTES_MAX).as_bytes()).is_ok());
        assert_eq!(refused(&target(HTTP_TARGET_BYTES_MAX + 1)), HttpError::TargetTooLong);

        let headers = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count - 1));
        assert!(parse_head(headers(HTTP_HEADERS_MAX).as_bytes()).is_ok());
        assert_eq!(refused(&headers(HTTP_HEADERS_MAX + 1)), HttpError::TooManyHeaders);

        let head = |bytes: usize| {
            let start = "GET / HTTP/1.1\r\nHost: a\r\nX: ";
            format!("{start}{}\r\n\r\n", "y".repeat(bytes - start.len() - 4))
        };
        assert_eq!(end(head(HTTP_HEAD_BYTES_MAX).as_bytes()), Ok(Some(HTTP_HEAD_BYTES_MAX)));
        assert_eq!(end(head(HTTP_HEAD_BYTES_MAX + 1).as_bytes()), Err(HttpError::HeadTooLarge));
        let endless = "x".repeat(HTTP_HEAD_BYTES_MAX);
        assert_eq!(end(&endless.as_bytes()[1..]), Ok(None));
        assert_eq!(end(endless.as_bytes()), Err(HttpError::HeadTooLarge));
    }

    #[test]
    fn a_slow_head_is_scanned_once() {
        let head = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(50));
        let mut scanned = 0;
        for len in 0..head.len() {
            assert_eq!(head_end(&head.as_bytes()[..len], &mut scanned), Ok(None));
            // Never more than a line feed and a CR is looked at again.
            assert!(scanned + 2 >= len, "{scanned} of {len}");
        }
        assert_eq!(head_end(head.as_bytes(), &mut scanned), Ok(Some(head.len())));
        assert_eq!(scanned, head.len());
    }

    /// Bytes in which line ends are frequent.
    fn liney() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'\n'), any::<u8>()], 0..60)
    }

    proptest! {
        #[test]
        fn any_split_finds_the_same_end(bytes in liney()) {
            let whole = end(&bytes);
            let mut scanned = 0;
            let found = (0..=bytes.len()).find_map(|len| head_end(&bytes[..len], &mut scanned).unwrap());
            prop_assert_eq!(Ok(found), whole);
        }

        #[test]
        fn mutated_heads_never_panic_and_keep_the_rules(
            at in 0usize..200, replaced in 0usize..4, inserted in proptest::collection::vec(prop_oneof![
                any::<u8>(), prop_oneof![Just(b'\r'), Just(b'\n'), Just(b' '), Just(b':'), Just(b','), Just(0u8)],
            ], 0..4),
        ) {
            let mut bytes = b"GET http://proxy:5000/dotnetify?id=tok1 HTTP/1.1\r\nhost: proxy:5000\r\nConnection: Upgrade\r\n\
                content-length: 12\r\nx: y\r\nupgrade: websocket\r\n\r\n".to_vec();
            let at = at.min(bytes.len());
            bytes.splice(at..(at + replaced).min(bytes.len()), inserted);
            crate::fuzzing::net::http_head(&bytes);
        }
    }
}
