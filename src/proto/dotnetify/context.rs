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
use crate::proto::signalr::json::{self, HEX};
use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;
use core::net::IpAddr;

/// How the context is embedded: twice escaped inside a JSON lane's string, once (plain JSON text) on a MessagePack lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Embedding {
    Json,
    MessagePack,
}

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

/// The constant tail of a context, escaped for its embedding, in two pieces: many clients of one page send the same headers, so
/// whoever keeps contexts can keep the second piece once.
pub struct Prepared {
    /// `"HttpConnection":{..}`.
    pub connection: Box<[u8]>,
    /// `,"HttpRequestHeaders":{..},"Items":{}}`, to the closing brace.
    pub headers: Box<[u8]>,
}

impl Prepared {
    pub fn pieces(&self) -> [&[u8]; 2] {
        [&self.connection, &self.headers]
    }
}

/// Prepares what does not change during a client's life.
pub fn prepare(peer: &Peer<'_>, embedding: Embedding) -> Prepared {
    let mut connection = String::new();
    connection.push_str("\"HttpConnection\":{\"ConnectionId\":");
    push_string(peer.connection_id, &mut connection);
    let (local, remote) = (peer.local, peer.remote);
    let written = write!(
        connection,
        ",\"LocalIpAddressString\":\"{}\",\"RemoteIpAddressString\":\"{}\",\"LocalPort\":{},\"RemotePort\":{}}}",
        local.0, remote.0, local.1, remote.1
    );
    debug_assert!(written.is_ok(), "writing to a String does not fail");
    let mut headers = String::new();
    headers.push_str(",\"HttpRequestHeaders\":{\"AllHeaders\":{");
    push_headers(peer.headers, &mut headers);
    headers.push_str("},\"UserAgent\":");
    push_user_agent(peer.headers, &mut headers);
    headers.push_str("},\"Items\":{}}");
    Prepared { connection: embed(connection, embedding), headers: embed(headers, embedding) }
}

fn embed(text: String, embedding: Embedding) -> Box<[u8]> {
    match embedding {
        Embedding::MessagePack => text.into_bytes().into_boxed_slice(),
        Embedding::Json => {
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
    /// From `prepare`, or `MINIMAL_TAIL_*` and nothing where the client is gone.
    pub tail: [&'a [u8]; 2],
}

/// Appends the whole context text for its embedding.
///
/// Both ids are ours and base64url, so nothing in them needs escaping.
pub fn write(context: &Context<'_>, embedding: Embedding, out: &mut impl bytes::BufMut) {
    debug_assert!(is_plain(context.hub_id) && is_plain(context.connection_id));
    let [hub_id, time_stamp, connection_id, tail] = literals(embedding);
    out.put_slice(hub_id);
    out.put_slice(context.hub_id);
    out.put_slice(time_stamp);
    write_timestamp(context.ticks, out);
    out.put_slice(connection_id);
    out.put_slice(context.connection_id);
    out.put_slice(tail);
    out.put_slice(context.tail[0]);
    out.put_slice(context.tail[1]);
}

/// How many bytes `write` appends. MessagePack says a string's length before the string.
pub fn written_len(context: &Context<'_>, embedding: Embedding) -> usize {
    let literals: usize = literals(embedding).iter().map(|literal| literal.len()).sum();
    literals
        + context.hub_id.len()
        + TIMESTAMP_BYTES
        + context.connection_id.len()
        + context.tail[0].len()
        + context.tail[1].len()
}

/// Tail of a context of which only the id is known (disconnects of a lost lane, contract 6.4): `"Items":{}}`, escaped.
pub const MINIMAL_TAIL_JSON: &[u8] = b"\\\"Items\\\":{}}";

/// The same for a MessagePack lane.
pub const MINIMAL_TAIL_MSGPACK: &[u8] = b"\"Items\":{}}";

/// Length of what `write_timestamp` appends.
pub const TIMESTAMP_BYTES: usize = 33;

/// Appends `2024-05-06T07:08:09.1234567+00:00` (always seven fraction digits).
pub fn write_timestamp(ticks: u64, out: &mut impl bytes::BufMut) {
    const TICKS_PER_SECOND: u64 = 10_000_000;
    const SECONDS_PER_DAY: u64 = 86_400;
    let seconds = ticks / TICKS_PER_SECOND;
    let second_of_day = seconds % SECONDS_PER_DAY;
    let (year, month, day) = civil_date(seconds / SECONDS_PER_DAY);
    let mut text = *b"0000-00-00T00:00:00.0000000+00:00";
    const { assert!(TIMESTAMP_BYTES == b"0000-00-00T00:00:00.0000000+00:00".len()) };
    put_digits(year, &mut text[0..4]);
    put_digits(month, &mut text[5..7]);
    put_digits(day, &mut text[8..10]);
    put_digits(second_of_day / 3600, &mut text[11..13]);
    put_digits(second_of_day / 60 % 60, &mut text[14..16]);
    put_digits(second_of_day % 60, &mut text[17..19]);
    put_digits(ticks % TICKS_PER_SECOND, &mut text[20..27]);
    out.put_slice(&text);
}

/// What stands before the hub id, the time stamp, the connection id and the tail.
fn literals(embedding: Embedding) -> [&'static [u8]; 4] {
    match embedding {
        Embedding::Json => {
            [b"{\\\"HubId\\\":\\\"", b"\\\",\\\"TimeStamp\\\":\\\"", b"\\\",\\\"ConnectionId\\\":\\\"", b"\\\","]
        }
        Embedding::MessagePack => [b"{\"HubId\":\"", b"\",\"TimeStamp\":\"", b"\",\"ConnectionId\":\"", b"\","],
    }
}

fn is_plain(id: &[u8]) -> bool {
    id.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar.
///
/// Years are counted from 1 March, which puts the leap day at the year's end: then month lengths follow one formula (153 days
/// in five months), and 400 years are always 146 097 days.
fn civil_date(days_since_1970: u64) -> (u64, u64, u64) {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    // From 0000-03-01 to 1970-01-01.
    let days = days_since_1970 + 719_468;
    let day_of_era = days % DAYS_OF_400_YEARS;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = days / DAYS_OF_400_YEARS * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

/// The last digits of `number`, as many as there is room for.
fn put_digits(mut number: u64, room: &mut [u8]) {
    for digit in room.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
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
