//! Oracles for the byte-level codecs: PROXY headers, HTTP heads and WebSocket frames.
use crate::limits::{HTTP_BODY_BYTES_MAX, HTTP_HEADERS_MAX, PROXY_HEADER_BYTES_MAX, PROXY_LINE_BYTES_MAX};
use crate::proto::http::{self, ForwardedHeader, HttpPolicy, OriginPolicy, PollReply, Transports};
use crate::proto::proxy::{self, Addresses};
use crate::proto::ws::{Decoder, Event, Opcode, Role, WsError, apply_mask, header};
use core::net::IpAddr;

/// Any bytes as a request (and as a response): the end is found however slowly the bytes come; an accepted head keeps the
/// rules as a naive reader sees them, and says the same when written anew; whatever is replied is one whole response; and no client
/// behind proxies is made up.
pub fn http_head(data: &[u8]) {
    let mut scanned = 0;
    let whole = http::head_end(data, &mut 0);
    let slow = (0..=data.len()).map(|len| http::head_end(&data[..len], &mut scanned)).find(|found| *found != Ok(None));
    assert_eq!(slow.unwrap_or(Ok(None)), whole, "any split finds the same end");

    if let Ok(Some(end)) = whole
        && let Ok(head) = http::parse_head(&data[..end])
    {
        assert_head_rules(&data[..end], &head);
        assert_same_when_rewritten(&head);
        assert_reply_is_whole(&head, true);
        assert_reply_is_whole(&head, false);
    }

    if let Ok(Some(response)) = http::parse_response(data) {
        let cut = &data[..response.bytes - 1];
        assert!(matches!(http::parse_response(cut), Ok(None)), "a head cut short wants more");
    }
    if let Ok(Some(body)) = http::decode_chunked(data, 1024) {
        assert!(body.len() <= 1024 && body.len() <= data.len());
    }
}

/// A naive second reading: lines by CRLF, names and values by the first colon.
fn assert_head_rules(bytes: &[u8], head: &http::Head<'_>) {
    let text = bytes.strip_prefix(b"\r\n").unwrap_or(bytes).strip_suffix(b"\r\n\r\n").expect("ends with a blank line");
    let text: String = text.iter().map(|byte| char::from(*byte)).collect();
    assert!(!text.contains('\0'));
    let mut lines = text.split("\r\n");
    let request_line: Vec<&str> = lines.next().expect("a request line").split(' ').collect();
    assert_eq!((request_line.len(), request_line[0]), (3, head.method));
    assert_eq!(request_line[2], format!("HTTP/1.{}", head.minor));
    assert!(request_line[1].contains(head.path) || head.path == "/");

    let fields: Vec<(&str, &str)> = lines.map(|line| line.split_once(':').expect("a colon in each line")).collect();
    assert!(fields.len() <= HTTP_HEADERS_MAX && fields.len() == head.headers().count());
    let values = |name: &str| -> Vec<&str> {
        fields
            .iter()
            .filter(|field| field.0.eq_ignore_ascii_case(name))
            .map(|field| field.1.trim_matches([' ', '\t']))
            .collect()
    };
    assert!(fields.iter().all(|(name, value)| !name.contains([' ', '\t']) && !value.contains(['\r', '\n'])));
    assert_eq!(values("transfer-encoding").len(), 0);
    assert!(values("host").len() == 1 || (values("host").is_empty() && head.minor == 0));
    match values("content-length")[..] {
        [] => assert_eq!(head.content_length, 0),
        [one] => assert!(one.bytes().all(|byte| byte.is_ascii_digit()) && one.parse() == Ok(head.content_length)),
        _ => panic!("several Content-Length were accepted"),
    }
}

fn assert_same_when_rewritten(head: &http::Head<'_>) {
    let mark = if head.query.is_empty() { "" } else { "?" };
    let mut bytes = format!("{} {}{mark}{} HTTP/1.{}\r\n", head.method, head.path, head.query, head.minor).into_bytes();
    for (name, value) in head.headers() {
        bytes.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    bytes.extend_from_slice(b"\r\n");
    let again = http::parse_head(&bytes).unwrap_or_else(|error| panic!("{error:?}: {}", bytes.escape_ascii()));
    assert_eq!((again.method, again.path, again.query, again.minor), (head.method, head.path, head.query, head.minor));
    assert_eq!((again.keep_alive, again.content_length), (head.keep_alive, head.content_length));
    assert!(again.headers().eq(head.headers()));
}

fn assert_reply_is_whole(head: &http::Head<'_>, offered: bool) {
    // The hub is wherever this request goes, so that all of `route` is reached.
    let hub_path = head.path.strip_suffix("/negotiate").unwrap_or(head.path).to_owned();
    let transports = Transports { web_sockets: offered, server_sent_events: offered, long_polling: offered };
    let policy = HttpPolicy {
        hub_path,
        origins: OriginPolicy { allowed: vec!["https://app.example.com".into()] },
        transports,
        post_body_bytes_max: 2 * HTTP_BODY_BYTES_MAX,
    };
    let mut out = Vec::new();
    let action = http::route(head, &policy, None, &mut out);
    assert_eq!(matches!(action, http::Action::Replied { .. }), !out.is_empty());
    let kept = match action {
        http::Action::Replied { keep_alive, .. }
        | http::Action::Negotiate { keep_alive, .. }
        | http::Action::Poll { keep_alive, .. }
        | http::Action::Delete { keep_alive, .. } => {
            assert!(!keep_alive || head.content_length <= HTTP_BODY_BYTES_MAX, "a body that is skipped");
            keep_alive
        }
        http::Action::Post { keep_alive, .. } => keep_alive,
        http::Action::Upgrade { .. } | http::Action::EventStream { .. } => false,
    };
    assert!(head.keep_alive || !kept);
    let status = match action {
        http::Action::Replied { refused, .. } => refused.map(http::HttpError::status),
        http::Action::Negotiate { version, stateful_reconnect, cors, keep_alive } => {
            let (connection_id, token) = ("token", "token");
            let negotiated = http::Negotiated { version, connection_id, token, transports, stateful_reconnect };
            http::negotiate_reply(&negotiated, owned(cors).as_cors(), keep_alive, &mut out);
            Some(200)
        }
        http::Action::Upgrade { accept, id, cors } => {
            assert!((offered || id.is_some()) && head.content_length == 0 && head.method == "GET" && head.minor == 1);
            assert!(cors != http::Cors::Forbidden && id != Some(""));
            http::upgrade_reply(&accept, &mut out);
            Some(101)
        }
        http::Action::EventStream { id, cors } => {
            assert!(head.method == "GET" && !id.is_empty());
            http::event_stream_reply(owned(cors).as_cors(), &mut out);
            Some(200)
        }
        http::Action::Poll { id, cors, keep_alive } => {
            assert!(head.method == "GET" && !id.is_empty());
            http::poll_reply(PollReply::Ended, owned(cors).as_cors(), keep_alive, &mut out);
            Some(204)
        }
        http::Action::Post { id, cors, keep_alive, body_bytes } => {
            assert!(body_bytes == head.content_length && body_bytes <= policy.post_body_bytes_max && !id.is_empty());
            http::post_reply(owned(cors).as_cors(), keep_alive, &mut out);
            Some(200)
        }
        http::Action::Delete { id, cors, keep_alive } => {
            assert!(head.method == "DELETE" && !id.is_empty());
            http::delete_reply(owned(cors).as_cors(), keep_alive, &mut out);
            Some(202)
        }
    };
    let reply = http::parse_response(&out).ok().flatten().expect("a reply that parses");
    assert!(status.is_none_or(|status| status == reply.status));
    let body = &out[reply.bytes..];
    match reply.content_length {
        Some(length) => assert_eq!(if head.method == "HEAD" { 0 } else { length }, body.len() as u64),
        // An event stream has begun, and ends with its connection.
        None => assert!(matches!(reply.status, 101 | 204) && body.is_empty() || body == b":\r\n"),
    }
    assert_schemes_are_kept_apart(head, &policy);
    assert_forwarded_is_sane(head);
}

/// To know the scheme of a request changes nothing for an origin of that scheme, and no other is the node's own.
fn assert_schemes_are_kept_apart(head: &http::Head<'_>, policy: &HttpPolicy) {
    let origin = head.header("origin").map(|origin| origin.to_ascii_lowercase());
    let mut over_any = Vec::new();
    let any = format!("{:?}", http::route(head, policy, None, &mut over_any));
    for (https, scheme) in [(true, &b"https://"[..]), (false, b"http://")] {
        let mut out = Vec::new();
        let action = http::route(head, policy, Some(https), &mut out);
        if origin.as_ref().is_none_or(|origin| origin.starts_with(scheme)) {
            assert_eq!((format!("{action:?}"), out), (any.clone(), over_any.clone()));
            continue;
        }
        match action {
            http::Action::Replied { .. } => {}
            http::Action::Negotiate { cors, .. }
            | http::Action::Upgrade { cors, .. }
            | http::Action::EventStream { cors, .. }
            | http::Action::Poll { cors, .. }
            | http::Action::Post { cors, .. }
            | http::Action::Delete { cors, .. } => assert!(matches!(cors, http::Cors::Allow(_))),
        }
    }
}

/// No action is for an origin that is not allowed, and what is kept of the others says the same.
fn owned(cors: http::Cors<'_>) -> http::OwnedCors {
    let owned = cors.to_owned_cors();
    assert_eq!(owned.as_cors(), cors);
    owned
}

/// Nobody is believed who is not trusted, and who trusts everybody takes what stands furthest left.
fn assert_forwarded_is_sane(head: &http::Head<'_>) {
    let peer = IpAddr::from([127, 0, 0, 1]);
    let everybody: Vec<ipnet::IpNet> = vec!["0.0.0.0/0".parse().expect("a net"), "::/0".parse().expect("a net")];
    for header in [ForwardedHeader::XForwardedFor, ForwardedHeader::Forwarded] {
        let trusted = |networks, unix| http::Trusted { networks, unix, header };
        assert_eq!(http::client_of(head, Some(peer), &trusted(vec![], true)), None);
        assert_eq!(http::client_of(head, None, &trusted(everybody.clone(), false)), None);
        let last = http::client_of(head, Some(peer), &trusted(vec![peer.into()], false));
        let first = http::client_of(head, Some(peer), &trusted(everybody.clone(), false));
        assert_eq!(last.is_some(), first.is_some());
        assert!(first.is_none_or(|first| first.ip == first.ip.to_canonical()));
        assert!(first.is_none() || head.header(header.name()).is_some(), "the other header is not read");
    }
}

/// Any bytes as the beginning of a connection behind a load balancer: no prefix is understood differently from the whole, what is
/// accepted is what a naive reader sees, and written anew it says the same.
pub fn proxy_header(data: &[u8]) {
    let whole = proxy::parse(data);
    for len in 0..data.len() {
        match proxy::parse(&data[..len]) {
            Ok(None) => {}
            decided => {
                assert_eq!(decided, whole, "the first {len} bytes");
                break;
            }
        }
    }
    let Ok(Some((used, addresses))) = whole else { return };
    assert!(used <= data.len() && used <= PROXY_HEADER_BYTES_MAX);
    assert_eq!(proxy::parse(&data[..used - 1]), Ok(None), "the last byte belongs to the header");
    if let Some(line) = data[..used].strip_prefix(b"PROXY ") {
        assert!(used <= PROXY_LINE_BYTES_MAX);
        let said: Option<String> = addresses.map(|Addresses { source, destination }| {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("{family} {} {} {} {}\r\n", source.ip(), destination.ip(), source.port(), destination.port())
        });
        match said {
            // IPv6 has several spellings.
            Some(said) if said.starts_with("TCP6") => {
                let again = format!("PROXY {said}");
                assert_eq!(proxy::parse(again.as_bytes()), Ok(Some((again.len(), addresses))));
            }
            Some(said) => assert_eq!(said.as_bytes(), line),
            None => assert!(line.starts_with(b"UNKNOWN")),
        }
    } else {
        assert_eq!(used, 16 + usize::from(u16::from_be_bytes([data[14], data[15]])));
        if let Some(Addresses { source, destination }) = addresses {
            let octets = |ip| match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
            assert!(data[16..].starts_with(&[octets(source.ip()), octets(destination.ip()), ports].concat()));
        }
    }
}

/// Any bytes as frames: however the input is split, the decoder sees what a naive reader of the whole input sees, and what
/// it saw, encoded by us and decoded again, is the same.
///
/// The first byte chooses the role, the second seeds the split; the rest are the frames.
pub fn ws_decode(data: &[u8]) {
    let [role, seed, frames @ ..] = data else { return };
    let role = if role % 2 == 0 { Role::Server } else { Role::Client };
    let expected = ws_read_naively(role, frames);
    assert_eq!(ws_decode_split(role, frames, None), expected, "whole");
    assert_eq!(ws_decode_split(role, frames, Some(*seed)), expected, "split");
    assert_eq!(ws_decode_split(role, frames, Some(0)), expected, "byte by byte");
    let encoded = ws_encode(role, &expected.0, *seed);
    assert_eq!(ws_decode_split(role, &encoded, Some(*seed)), (expected.0, None), "round trip");
}

/// What a peer said, without how it was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Message { binary: bool, payload: Vec<u8> },
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close { code: Option<u16>, payload: Vec<u8> },
}

/// All that was said, and the violation that ended it.
type Heard = (Vec<Said>, Option<WsError>);

fn ws_decode_split(role: Role, bytes: &[u8], seed: Option<u8>) -> Heard {
    let (mut decoder, mut input, mut from, mut said) = (Decoder::new(role), bytes.to_vec(), 0, Vec::new());
    let mut open: Option<(bool, Vec<u8>)> = None;
    let mut random = seed.map(u64::from);
    while from < input.len() {
        let size = match &mut random {
            None => input.len(),
            Some(0) => 1,
            Some(state) => {
                *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                1 + (*state >> 59) as usize
            }
        };
        let mut piece = &mut input[from..(from + size).min(bytes.len())];
        from += piece.len();
        loop {
            let (consumed, event) = match decoder.next(piece) {
                Ok(found) => found,
                Err(error) => return (said, Some(error)),
            };
            match event {
                None => {
                    assert_eq!(consumed, piece.len());
                    break;
                }
                Some(Event::Data { binary, start, end, range }) => {
                    assert!(range.end == consumed && range.start <= range.end);
                    assert_eq!(start, open.is_none());
                    let message = open.get_or_insert((binary, Vec::new()));
                    assert_eq!(message.0, binary);
                    message.1.extend_from_slice(&piece[range]);
                    if end {
                        said.extend(open.take().map(|(binary, payload)| Said::Message { binary, payload }));
                    }
                }
                Some(Event::Ping) => said.push(Said::Ping(decoder.control_payload().to_vec())),
                Some(Event::Pong) => said.push(Said::Pong(decoder.control_payload().to_vec())),
                Some(Event::Close { code }) => {
                    said.push(Said::Close { code, payload: decoder.control_payload().to_vec() })
                }
            }
            piece = &mut piece[consumed..];
        }
    }
    (said, None)
}

/// RFC 6455 read in the most direct way, with the whole input at hand and no regard for cost.
fn ws_read_naively(role: Role, mut bytes: &[u8]) -> Heard {
    let mut said = Vec::new();
    let mut open: Option<(bool, Vec<u8>)> = None;
    loop {
        let [first, rest @ ..] = bytes else { return (said, None) };
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
        let fault = match opcode {
            _ if first & 0x70 != 0 => Some(WsError::ReservedBits),
            3..=7 | 11..=15 => Some(WsError::ReservedOpcode),
            8.. if !fin => Some(WsError::ControlFragmented),
            0 if open.is_none() => Some(WsError::ContinuationWithoutStart),
            1 | 2 if open.is_some() => Some(WsError::DataInsideMessage),
            _ => None,
        };
        if fault.is_some() {
            return (said, fault);
        }
        let [second, rest @ ..] = rest else { return (said, None) };
        let masked = second & 0x80 != 0;
        let fault = match role {
            Role::Server if !masked => Some(WsError::Unmasked),
            Role::Client if masked => Some(WsError::Masked),
            _ if opcode >= 8 && second & 0x7f > 125 => Some(WsError::ControlTooLong),
            _ => None,
        };
        if fault.is_some() {
            return (said, fault);
        }
        let (length_bytes, least) = match second & 0x7f {
            126 => (2, 126),
            127 => (8, 65536),
            _ => (0, 0),
        };
        let key_bytes = if masked { 4 } else { 0 };
        if rest.len() < length_bytes + key_bytes {
            return (said, None);
        }
        let extended = rest[..length_bytes].iter().fold(0u64, |length, byte| length << 8 | *byte as u64);
        let length = if length_bytes == 0 { (second & 0x7f) as u64 } else { extended };
        if length > i64::MAX as u64 {
            return (said, Some(WsError::LengthTooLarge));
        }
        if length < least {
            return (said, Some(WsError::LengthNotMinimal));
        }
        let key = &rest[length_bytes..length_bytes + key_bytes];
        let rest = &rest[length_bytes + key_bytes..];
        let here = length.min(rest.len() as u64) as usize;
        let complete = here as u64 == length;
        let mut payload = rest[..here].to_vec();
        if masked {
            payload.iter_mut().enumerate().for_each(|(i, byte)| *byte ^= key[i % 4]);
        }
        bytes = &rest[here..];

        if opcode >= 8 {
            if !complete {
                return (said, None);
            }
            match opcode {
                9 => said.push(Said::Ping(payload)),
                10 => said.push(Said::Pong(payload)),
                _ => {
                    let code = (payload.len() >= 2).then(|| u16::from_be_bytes([payload[0], payload[1]]));
                    let fault = match code {
                        None if payload.is_empty() => None,
                        None => Some(WsError::ClosePayload),
                        Some(1000..=1003 | 1007..=1014 | 3000..=4999) => {
                            std::str::from_utf8(&payload[2..]).is_err().then_some(WsError::InvalidUtf8)
                        }
                        Some(_) => Some(WsError::CloseCode),
                    };
                    if fault.is_none() {
                        said.push(Said::Close { code, payload });
                    }
                    return (said, fault);
                }
            }
            continue;
        }
        let (binary, message) = open.get_or_insert((opcode == 2, Vec::new()));
        message.extend_from_slice(&payload);
        let ended = fin && complete;
        if !*binary
            && let Err(error) = std::str::from_utf8(message)
            && (ended || error.error_len().is_some())
        {
            return (said, Some(WsError::InvalidUtf8));
        }
        if ended {
            said.extend(open.take().map(|(binary, payload)| Said::Message { binary, payload }));
        }
    }
}

/// Writes what was said as the peer of `role` would, each message in up to two frames.
fn ws_encode(role: Role, said: &[Said], seed: u8) -> Vec<u8> {
    let key = (role == Role::Server).then_some([seed, 0x5a, !seed, 1]);
    let mut bytes = Vec::new();
    let mut frame = |opcode, fin, payload: &[u8]| {
        bytes.extend_from_slice(header(opcode, fin, payload.len() as u64, key).as_ref());
        let start = bytes.len();
        bytes.extend_from_slice(payload);
        apply_mask(&mut bytes[start..], key.unwrap_or_default(), 0);
    };
    for said in said {
        match said {
            Said::Message { binary, payload } => {
                let opcode = if *binary { Opcode::Binary } else { Opcode::Text };
                let (first, second) = payload.split_at(payload.len() * seed as usize / 256);
                frame(opcode, false, first);
                frame(Opcode::Continuation, true, second);
            }
            Said::Ping(payload) => frame(Opcode::Ping, true, payload),
            Said::Pong(payload) => frame(Opcode::Pong, true, payload),
            Said::Close { payload, .. } => frame(Opcode::Close, true, payload),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A frame with a chance of each fault.
    fn frame(masked: bool) -> impl Strategy<Value = Vec<u8>> {
        let first = prop_oneof![
            6 => prop_oneof![Just(0x81), Just(0x01), Just(0x80), Just(0x00), Just(0x82), Just(0x02), Just(0x89), Just(0x8a)].boxed(),
            1 => Just(0x88).boxed(),
            1 => any::<u8>().boxed(),
        ];
        let payload = prop_oneof![
            6 => any::<String>().prop_map(String::into_bytes),
            1 => proptest::collection::vec(any::<u8>(), 0..140),
            2 => (999u16..5001, ".{0,5}").prop_map(|(code, reason)| [&code.to_be_bytes(), reason.as_bytes()].concat()),
        ];
        (first, payload, any::<[u8; 4]>(), 0u8..40).prop_map(move |(first, mut payload, key, odd)| {
            if odd == 0 {
                payload.truncate(1);
            }
            let mut bytes = header(Opcode::Binary, true, payload.len() as u64, masked.then_some(key)).as_ref().to_vec();
            bytes[0] = first;
            match odd {
                1 => bytes[1] ^= 0x80,
                2 => bytes[1] |= 0x7f,
                3 => bytes[1] = bytes[1] & 0x80 | 0x7e,
                _ => {}
            }
            if masked {
                apply_mask(&mut payload, key, 0);
            }
            bytes.extend(payload);
            bytes
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

        #[test]
        fn the_decoder_agrees_with_a_naive_reader_as_server(frames in proptest::collection::vec(frame(true), 0..8), seed: u8, cut in 0usize..400) {
            let bytes = frames.concat();
            let bytes = &bytes[..bytes.len().min(cut.max(20) * 4)];
            ws_decode(&[&[0, seed], bytes].concat());
        }

        #[test]
        fn the_decoder_agrees_with_a_naive_reader_as_client(frames in proptest::collection::vec(frame(false), 0..8), seed: u8) {
            ws_decode(&[&[1, seed], &frames.concat()[..]].concat());
        }

        #[test]
        fn origins_and_what_proxies_say_are_judged(
            request in prop_oneof!["GET /hub\\?id=1", "POST /hub/negotiate", "OPTIONS /hub", "DELETE /hub\\?id=1"],
            host in "(a|app\\.example\\.com)(:80|:443)?",
            origin in "(Origin: (https?://(a|app\\.example\\.com)(:80|:443)?|null)\r\n)?",
            said in "((X-Forwarded-For|Forwarded): (for=)?1\\.2\\.3\\.4\r\n){0,2}",
        ) {
            http_head(format!("{request} HTTP/1.1\r\nHost: {host}\r\n{origin}{said}\r\n").as_bytes());
        }

        #[test]
        fn any_bytes_are_heads(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            http_head(&bytes);
        }
    }
}
