//! `$fwdConnContext`: the client's identity as the app server reads it (contract 2.3).
//!
//! What does not change during a client's life is prepared once (`prepare`); the three members that do (HubId, TimeStamp,
//! ConnectionId) are written in front of it for each message (`write`). Byte-identical to .NET's serializer, whose default
//! encoder escapes `" & ' + < > \`` and everything outside ASCII as `\uXXXX` (upper-case hex).
//!
//! ```text
//! {"HubId":"..","TimeStamp":"..","ConnectionId":"..","HttpConnection":{..},"HttpRequestHeaders":{..},"Items":{}}
//! |<------------------ write ------------------->|<------------------------ tail ------------------------------>|
//! ```
//!
//! The lane's protocol says how the text is embedded: a JSON lane carries it in a string, so it is escaped once more; a MessagePack
//! lane carries it as it is.
use crate::proto::calendar;
use crate::proto::signalr::Protocol;
use crate::proto::signalr::json::{self, HEX};
use crate::proto::signalr::msgpack::write as msgpack;
use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

/// What is known of a client when it connects.
pub struct Peer<'a> {
    /// The HTTP connection's own id, shown as HttpConnection.ConnectionId.
    pub connection_id: &'a str,
    pub local: (IpAddr, u16),
    pub remote: (IpAddr, u16),
    /// Headers to forward, already filtered: (name as received, value). Names are canonicalised here (`user-agent` ->
    /// `User-Agent`, as Kestrel presents known names); several of one name become several array elements.
    /// Values that are not UTF-8 are read as Latin-1.
    pub headers: &'a [(&'a str, &'a [u8])],
}

/// The header policy (contract 6.6): which client headers an app server is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderPolicy {
    All,
    /// Only these names (case-insensitive).
    Only(Vec<alloc::string::String>),
}

impl HeaderPolicy {
    /// Hop-by-hop headers (RFC 9110 §7.6.1) and Sec-WebSocket-* never pass. The original forwards them all; they say nothing of
    /// the client, and a random Sec-WebSocket-Key only makes each context longer.
    pub fn admits(&self, name: &str) -> bool {
        const SEC_WEBSOCKET: &str = "sec-websocket-";
        let is_hop_by_hop = HOP_BY_HOP.iter().any(|known| name.eq_ignore_ascii_case(known));
        let is_websocket =
            name.get(..SEC_WEBSOCKET.len()).is_some_and(|start| start.eq_ignore_ascii_case(SEC_WEBSOCKET));
        if is_hop_by_hop || is_websocket {
            return false;
        }
        match self {
            HeaderPolicy::All => true,
            HeaderPolicy::Only(names) => names.iter().any(|admitted| name.eq_ignore_ascii_case(admitted)),
        }
    }
}

/// The constant tail of a context in two pieces. Many clients of one page send the same headers, so whoever keeps contexts can keep
/// the second piece once; of the first only the values are kept, because each client has its own.
pub struct Prepared {
    /// What `HttpConnection` says: connection id, local and remote address, local and remote port, with spaces between.
    pub connection: Box<[u8]>,
    /// `,"HttpRequestHeaders":{..},"Items":{}}`, to the closing brace, escaped for the lane's protocol.
    pub headers: Box<[u8]>,
}

impl Prepared {
    pub fn tail(&self) -> Tail<'_> {
        Tail::Client { connection: &self.connection, headers: &self.headers }
    }
}

/// What follows the connection id.
#[derive(Clone, Copy, Debug)]
pub enum Tail<'a> {
    /// As `Prepared` has it.
    Client { connection: &'a [u8], headers: &'a [u8] },
    /// Nothing but the id is known, or needed (disconnects of a lost lane, contract 6.4).
    Unknown,
}

const VALUES: usize = 5;

/// Prepares what does not change during a client's life. The connection id must be plain: no space, nothing to escape.
pub fn prepare(protocol: Protocol, peer: &Peer<'_>) -> Prepared {
    debug_assert!(peer.connection_id.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\'&+<>`".contains(&byte)));
    let (local, remote) = (peer.local, peer.remote);
    let connection = alloc::format!("{} {} {} {} {}", peer.connection_id, local.0, remote.0, local.1, remote.1);
    let mut headers = String::new();
    headers.push_str(",\"HttpRequestHeaders\":{\"AllHeaders\":{");
    push_headers(peer.headers, &mut headers);
    headers.push_str("},\"UserAgent\":");
    push_user_agent(peer.headers, &mut headers);
    headers.push_str("},\"Items\":{}}");
    Prepared { connection: connection.into_bytes().into_boxed_slice(), headers: embed(protocol, headers) }
}

/// What `prepare` was told of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub local: (IpAddr, u16),
    pub remote: (IpAddr, u16),
    /// None: no such header, or none that is forwarded.
    pub user_agent: Option<String>,
}

/// Reads back what was prepared, so that whoever wants to know it rarely need not keep it twice.
pub fn read_back(protocol: Protocol, connection: &[u8], headers: &[u8]) -> Option<Told> {
    let mut values = core::str::from_utf8(connection).ok()?.split(' ').skip(1);
    let mut value = || values.next();
    let (local, remote) = (value()?.parse().ok()?, value()?.parse().ok()?);
    let (local_port, remote_port) = (value()?.parse().ok()?, value()?.parse().ok()?);
    let text: Cow<'_, [u8]> = match protocol {
        Protocol::MessagePack => headers.into(),
        Protocol::Json => {
            let mut text = Vec::with_capacity(headers.len());
            json::unescape(headers, &mut text);
            text.into()
        }
    };
    // The last member of this name is ours: a quote in a client's own values is always escaped, and they come before.
    const MEMBER: &[u8] = b"\"UserAgent\":";
    let at = memchr::memmem::rfind(&text, MEMBER)? + MEMBER.len();
    let user_agent = text[at..].strip_prefix(b"\"").and_then(|value| {
        let mut plain = Vec::new();
        json::unescape(&value[..memchr::memchr(b'"', value)?], &mut plain);
        String::from_utf8(plain).ok()
    });
    Some(Told { local: (local, local_port), remote: (remote, remote_port), user_agent })
}

/// Members of the metadata beside the context, as the lane's protocol writes them; none by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Items<'a> {
    pub count: u32,
    pub bytes: &'a [u8],
}

/// Prepares members of the metadata: what `Items` holds. The app server finds them in its `Context.Items` (contract 2.3).
///
/// JSON: `,"key":"value"` for each, which follow the context. MessagePack: each as two str. Keys that begin with `$` are the
/// contract's own and are passed over: no claim of a client's token may stand in for its context.
pub fn prepare_items(protocol: Protocol, pairs: &[(&str, &str)]) -> (u32, Box<[u8]>) {
    let mut count = 0;
    let mut bytes = Vec::new();
    for (key, value) in pairs.iter().filter(|(key, _)| !key.starts_with('$')) {
        count += 1;
        match protocol {
            Protocol::Json => {
                bytes.extend_from_slice(b",\"");
                json::escape(key.as_bytes(), &mut bytes);
                bytes.extend_from_slice(b"\":\"");
                json::escape(value.as_bytes(), &mut bytes);
                bytes.push(b'"');
            }
            Protocol::MessagePack => {
                msgpack::text(key.as_bytes(), &mut bytes);
                msgpack::text(value.as_bytes(), &mut bytes);
            }
        }
    }
    (count, bytes.into_boxed_slice())
}

fn embed(protocol: Protocol, text: String) -> Box<[u8]> {
    match protocol {
        Protocol::MessagePack => text.into_bytes().into_boxed_slice(),
        Protocol::Json => {
            let mut escaped = Vec::with_capacity(text.len() + text.len() / 8);
            json::escape(text.as_bytes(), &mut escaped);
            escaped.into_boxed_slice()
        }
    }
}

/// The changing members. `ticks` are 100 ns since 1970-01-01 UTC.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub hub_id: &'a [u8],
    pub ticks: u64,
    /// Origin id.
    pub connection_id: &'a [u8],
    pub tail: Tail<'a>,
    /// Stand beside the context, not in it.
    pub items: Items<'a>,
}

/// Appends the whole context text for a lane's protocol.
///
/// Both ids are ours and base64url, so nothing in them needs escaping.
pub fn write(protocol: Protocol, context: &Context<'_>, out: &mut impl bytes::BufMut) {
    debug_assert!(is_plain(context.hub_id) && is_plain(context.connection_id));
    let [hub_id, time_stamp, connection_id, tail] = literals(protocol);
    out.put_slice(hub_id);
    out.put_slice(context.hub_id);
    out.put_slice(time_stamp);
    write_timestamp(context.ticks, out);
    out.put_slice(connection_id);
    out.put_slice(context.connection_id);
    out.put_slice(tail);
    let (of_client, unknown) = tail_literals(protocol);
    match context.tail {
        Tail::Unknown => out.put_slice(unknown),
        Tail::Client { connection, headers } => {
            for (literal, value) in of_client.iter().zip(connection.split(|byte| *byte == b' ')) {
                out.put_slice(literal);
                out.put_slice(value);
            }
            out.put_u8(b'}');
            out.put_slice(headers);
        }
    }
}

/// How many bytes `write` appends. MessagePack says a string's length before the string.
pub fn written_len(protocol: Protocol, context: &Context<'_>) -> usize {
    let literals: usize = literals(protocol).iter().map(|literal| literal.len()).sum();
    let (of_client, unknown) = tail_literals(protocol);
    let tail = match context.tail {
        Tail::Unknown => unknown.len(),
        Tail::Client { connection, headers } => {
            let literals: usize = of_client.iter().map(|literal| literal.len()).sum();
            // The spaces between the values are not written, the brace behind them is.
            literals + connection.len() - (VALUES - 1) + 1 + headers.len()
        }
    };
    literals + context.hub_id.len() + TIMESTAMP_BYTES + context.connection_id.len() + tail
}

/// Length of what `write_timestamp` appends.
pub const TIMESTAMP_BYTES: usize = 33;

/// Appends `2024-05-06T07:08:09.1234567+00:00` (always seven fraction digits).
pub fn write_timestamp(ticks: u64, out: &mut impl bytes::BufMut) {
    const TICKS_PER_SECOND: u64 = 10_000_000;
    let mut fraction_and_zone = *b".0000000+00:00";
    const { assert!(TIMESTAMP_BYTES == calendar::DATE_TIME_BYTES + b".0000000+00:00".len()) };
    calendar::put_digits(ticks % TICKS_PER_SECOND, &mut fraction_and_zone[1..8]);
    out.put_slice(&calendar::date_time((ticks / TICKS_PER_SECOND) as i64));
    out.put_slice(&fraction_and_zone);
}

/// What stands before the hub id, the time stamp, the connection id and the tail.
fn literals(protocol: Protocol) -> [&'static [u8]; 4] {
    match protocol {
        Protocol::Json => {
            [b"{\\\"HubId\\\":\\\"", b"\\\",\\\"TimeStamp\\\":\\\"", b"\\\",\\\"ConnectionId\\\":\\\"", b"\\\","]
        }
        Protocol::MessagePack => [b"{\"HubId\":\"", b"\",\"TimeStamp\":\"", b"\",\"ConnectionId\":\"", b"\","],
    }
}

/// What stands before each value of `HttpConnection`, and the whole of an unknown tail.
fn tail_literals(protocol: Protocol) -> ([&'static [u8]; VALUES], &'static [u8]) {
    match protocol {
        Protocol::Json => (
            [
                b"\\\"HttpConnection\\\":{\\\"ConnectionId\\\":\\\"",
                b"\\\",\\\"LocalIpAddressString\\\":\\\"",
                b"\\\",\\\"RemoteIpAddressString\\\":\\\"",
                b"\\\",\\\"LocalPort\\\":",
                b",\\\"RemotePort\\\":",
            ],
            b"\\\"Items\\\":{}}",
        ),
        Protocol::MessagePack => (
            [
                b"\"HttpConnection\":{\"ConnectionId\":\"",
                b"\",\"LocalIpAddressString\":\"",
                b"\",\"RemoteIpAddressString\":\"",
                b"\",\"LocalPort\":",
                b",\"RemotePort\":",
            ],
            b"\"Items\":{}}",
        ),
    }
}

fn is_plain(id: &[u8]) -> bool {
    id.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// `"Name":["value",...],...`: each name once, in the order of first appearance.
fn push_headers(headers: &[(&str, &[u8])], text: &mut String) {
    for (index, (name, _)) in headers.iter().enumerate() {
        let same = |other: &&(&str, &[u8])| other.0.eq_ignore_ascii_case(name);
        if headers[..index].iter().any(|other| same(&other)) {
            continue;
        }
        if index > 0 {
            text.push(',');
        }
        push_string(canonical_name(name), text);
        text.push_str(":[");
        for (nth, (_, value)) in headers[index..].iter().filter(same).enumerate() {
            if nth > 0 {
                text.push(',');
            }
            push_string(&decode_value(value), text);
        }
        text.push(']');
    }
}

/// The `User-Agent` as one string, or null. .NET joins several values with a comma.
fn push_user_agent(headers: &[(&str, &[u8])], text: &mut String) {
    let values = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("User-Agent"));
    let joined =
        values.map(|(_, value)| decode_value(value)).reduce(|joined, value| alloc::format!("{joined},{value}").into());
    match joined {
        Some(value) => push_string(&value, text),
        None => text.push_str("null"),
    }
}

fn decode_value(value: &[u8]) -> Cow<'_, str> {
    match core::str::from_utf8(value) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => value.iter().map(|&byte| byte as char).collect::<String>().into(),
    }
}

/// Appends a JSON string as .NET's default encoder writes it.
fn push_string(value: &str, text: &mut String) {
    text.push('"');
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '"' | '&' | '\'' | '+' | '<' | '>' | '`' => push_unicode_escape(character, text),
            ' '..='~' => text.push(character),
            _ => push_unicode_escape(character, text),
        }
    }
    text.push('"');
}

/// `\uXXXX`, twice for a character outside the Basic Multilingual Plane.
fn push_unicode_escape(character: char, text: &mut String) {
    for unit in character.encode_utf16(&mut [0; 2]) {
        text.push_str("\\u");
        for shift in [12, 8, 4, 0] {
            text.push(HEX[usize::from(*unit >> shift & 15)] as char);
        }
    }
}

fn canonical_name(name: &str) -> &str {
    KNOWN_NAMES.iter().find(|known| name.eq_ignore_ascii_case(known)).copied().unwrap_or(name)
}

/// RFC 9110 §7.6.1 and what older peers send. Headers that `Connection` names are for the HTTP codec, which sees both.
const HOP_BY_HOP: [&str; 9] = [
    "Connection",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
];

/// Request header names that Kestrel presents in this spelling, whatever the client wrote.
const KNOWN_NAMES: [&str; 48] = [
    "Accept",
    "Accept-Charset",
    "Accept-Encoding",
    "Accept-Language",
    "Access-Control-Request-Headers",
    "Access-Control-Request-Method",
    "Allow",
    "Authorization",
    "baggage",
    "Cache-Control",
    "Content-Encoding",
    "Content-Language",
    "Content-Length",
    "Content-Location",
    "Content-MD5",
    "Content-Range",
    "Content-Type",
    "Cookie",
    "Correlation-Context",
    "Date",
    "DNT",
    "Expect",
    "Expires",
    "From",
    "Grpc-Accept-Encoding",
    "Grpc-Encoding",
    "Grpc-Timeout",
    "Host",
    "If-Match",
    "If-Modified-Since",
    "If-None-Match",
    "If-Range",
    "If-Unmodified-Since",
    "Last-Modified",
    "Max-Forwards",
    "Origin",
    "Pragma",
    "Range",
    "Referer",
    "Request-Id",
    "traceparent",
    "tracestate",
    "Translate",
    "Upgrade-Insecure-Requests",
    "User-Agent",
    "Via",
    "Warning",
    "X-Requested-With",
];

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn what_was_prepared_can_be_read_back() {
        let agent = r#"Odd "agent" \ + <é> 😀 "UserAgent":"x""#;
        let headers: [(&str, &[u8]); 3] =
            [("UserAgent", b"not this"), ("user-agent", agent.as_bytes()), ("X-Last", br#","UserAgent":"nor this"#)];
        for protocol in [Protocol::Json, Protocol::MessagePack] {
            for (shown, expected) in [(&headers[..], Some(agent.to_string())), (&headers[..1], None), (&[], None)] {
                let local = ("::1".parse().unwrap(), 5000);
                let remote = ("198.51.100.7".parse().unwrap(), 65535);
                let prepared = prepare(protocol, &Peer { connection_id: "0AF", local, remote, headers: shown });
                let told = Told { local, remote, user_agent: expected };
                assert_eq!(read_back(protocol, &prepared.connection, &prepared.headers), Some(told));
            }
        }
        assert_eq!(read_back(Protocol::Json, b"id 127.0.0.1", b""), None);
    }
}
