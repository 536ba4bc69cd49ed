//! Request heads: where one ends, and what it says.
//!
//! httparse reads the grammar. What is added here is what a proxy must not be lenient about: RFC 9112 lets a recipient
//! accept several odd shapes, and each of them is one that the load balancer in front may read differently (request
//! smuggling, §11.2). A hub's clients send none of them, so all are refused.
use super::{HttpError, has_token};
use crate::limits::{HTTP_BODY_BYTES_MAX, HTTP_HEAD_BYTES_MAX, HTTP_HEADERS_MAX, HTTP_TARGET_BYTES_MAX};

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
    /// Bytes of body that follow the head: whoever answers and keeps the connection skips them first.
    pub content_length: u64,
    headers: [httparse::Header<'b>; HTTP_HEADERS_MAX],
    header_count: usize,
}

impl<'b> Head<'b> {
    pub fn headers(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> + '_ {
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

    /// Every value of a header.
    pub(super) fn values<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'b [u8]> + 's {
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
    let mut head = Head { method, path: "", query: "", minor, keep_alive: false, content_length: 0, headers, header_count };
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
            Some(bytes) if bytes > HTTP_BODY_BYTES_MAX => Err(HttpError::BodyTooLarge),
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
