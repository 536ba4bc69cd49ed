//! The PROXY protocol, versions 1 and 2: what a load balancer that forwards bytes says of the connection before its first byte. The
//! rules are those of HAProxy's `proxy-protocol.txt` for receivers.
//!
//! ```text
//!  version 1   PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n
//!  version 2   0D 0A 0D 0A 00 0D 0A 51 55 49 54 0A │ version, command │ family, protocol │ length (2) │ addresses, ports │ extensions
//! ```
//!
//! A listener either begins every connection with such a header or none: guessing would let anybody choose an address (section 2).
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::str::FromStr;

use crate::limits::{PROXY_HEADER_BYTES_MAX, PROXY_LINE_BYTES_MAX};

/// The ends of the connection as the load balancer saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// Why a connection is dropped: section 2 allows no other answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyError {
    /// The first bytes are no PROXY header's.
    Missing,
    Malformed,
    /// Over `PROXY_LINE_BYTES_MAX` or `PROXY_HEADER_BYTES_MAX`.
    TooLong,
}

/// Reads the header at the beginning of a connection: its size in bytes, and the addresses if it has any. `Ok(None)` = need more.
///
/// Without addresses (version 1 `UNKNOWN`, version 2 `LOCAL`, Unix sockets, other protocols than TCP) the socket's own count.
pub fn parse(buffer: &[u8]) -> Result<Option<(usize, Option<Addresses>)>, ProxyError> {
    if may_begin(buffer, SIGNATURE) {
        version_2(buffer)
    } else if may_begin(buffer, LINE_START) {
        version_1(buffer)
    } else {
        Err(ProxyError::Missing)
    }
}

/// Section 2.2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Section 2.1.
const LINE_START: &[u8] = b"PROXY ";

fn may_begin(buffer: &[u8], with: &[u8]) -> bool {
    let bytes = buffer.len().min(with.len());
    buffer[..bytes] == with[..bytes]
}

/// Section 2.1. The line is decoded when its end is there, and not before.
fn version_1(buffer: &[u8]) -> Result<Option<(usize, Option<Addresses>)>, ProxyError> {
    let buffer = &buffer[..buffer.len().min(PROXY_LINE_BYTES_MAX)];
    let incomplete = if buffer.len() < PROXY_LINE_BYTES_MAX { Ok(None) } else { Err(ProxyError::TooLong) };
    let Some(end) = memchr::memchr2(b'\r', b'\n', buffer) else { return incomplete };
    match buffer[end..] {
        [b'\r', b'\n', ..] => {}
        [b'\r'] => return incomplete,
        // "Must not tolerate a single CR or LF character to end the line."
        _ => return Err(ProxyError::Malformed),
    }
    let mut words = buffer[LINE_START.len()..end].split(|byte| *byte == b' ');
    let addresses = match words.next() {
        // What stands behind it must be ignored.
        Some(b"UNKNOWN") => None,
        Some(b"TCP4") => Some(line_addresses::<Ipv4Addr>(words).ok_or(ProxyError::Malformed)?),
        Some(b"TCP6") => Some(line_addresses::<Ipv6Addr>(words).ok_or(ProxyError::Malformed)?),
        _ => return Err(ProxyError::Malformed),
    };
    Ok(Some((end + 2, addresses)))
}

/// Exactly four words.
fn line_addresses<'b, Ip: FromStr + Into<IpAddr>>(words: impl Iterator<Item = &'b [u8]>) -> Option<Addresses> {
    let mut words = words.map(|word| core::str::from_utf8(word).ok());
    let mut next = || words.next().flatten();
    let source: Ip = next()?.parse().ok()?;
    let destination: Ip = next()?.parse().ok()?;
    let (source_port, destination_port) = (port(next()?)?, port(next()?)?);
    let ended = words.next().is_none();
    ended.then(|| Addresses {
        source: SocketAddr::new(source.into(), source_port),
        destination: SocketAddr::new(destination.into(), destination_port),
    })
}

/// "Heading zeroes are not permitted", and neither is the sign that Rust would take.
fn port(word: &str) -> Option<u16> {
    let plain = word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    word.parse().ok().filter(|_| plain)
}

/// Section 2.2.
fn version_2(buffer: &[u8]) -> Result<Option<(usize, Option<Addresses>)>, ProxyError> {
    let is_local = match buffer.get(12) {
        None => return Ok(None),
        Some(0x20) => true,
        Some(0x21) => false,
        // "Receivers must drop connections presenting unexpected values here."
        Some(_) => return Err(ProxyError::Malformed),
    };
    let Some(family) = buffer.get(13) else { return Ok(None) };
    // AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX; unspecified, stream, datagram. LOCAL has none of it.
    if !is_local && (family >> 4 > 3 || family & 0xf > 2) {
        return Err(ProxyError::Malformed);
    }
    let Some([high, low]) = buffer.get(14..16) else { return Ok(None) };
    let end = 16 + usize::from(u16::from_be_bytes([*high, *low]));
    if end > PROXY_HEADER_BYTES_MAX {
        return Err(ProxyError::TooLong);
    }
    // What follows the addresses are extensions, which are skipped.
    let Some(block) = buffer.get(16..end) else { return Ok(None) };
    let addresses = match family {
        _ if is_local => None,
        0x11 => Some(block_addresses::<4>(block).ok_or(ProxyError::Malformed)?),
        0x21 => Some(block_addresses::<16>(block).ok_or(ProxyError::Malformed)?),
        _ => None,
    };
    Ok(Some((end, addresses)))
}

fn block_addresses<const IP_BYTES: usize>(block: &[u8]) -> Option<Addresses>
where
    IpAddr: From<[u8; IP_BYTES]>,
{
    let (source, rest) = block.split_first_chunk::<IP_BYTES>()?;
    let (destination, rest) = rest.split_first_chunk::<IP_BYTES>()?;
    let (source_port, rest) = rest.split_first_chunk()?;
    let (destination_port, _) = rest.split_first_chunk()?;
    Some(Addresses {
        source: SocketAddr::new(IpAddr::from(*source), u16::from_be_bytes(*source_port)),
        destination: SocketAddr::new(IpAddr::from(*destination), u16::from_be_bytes(*destination_port)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::net::proxy_header;
    use proptest::prelude::*;
    use std::format;
    use std::string::String;
    use std::vec;
    use std::vec::Vec;

    type Parsed = Result<Option<(usize, Option<Addresses>)>, ProxyError>;

    /// Parses a header and a request behind it; the header's size is checked, the addresses are returned.
    #[track_caller]
    fn accepted(header: &[u8]) -> Option<Addresses> {
        proxy_header(&[header, b"GET / HTTP/1.1\r\n"].concat());
        match parse(&[header, b"GET / HTTP/1.1\r\n"].concat()) {
            Ok(Some((used, addresses))) => {
                assert_eq!(used, header.len());
                addresses
            }
            other => panic!("{other:?}: {}", header.escape_ascii()),
        }
    }

    fn addresses(source: &str, destination: &str) -> Option<Addresses> {
        Some(Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() })
    }

    /// A header of version 2 with a block of its announced size.
    fn header(version_command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = (block.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[version_command, family], &length, block].concat()
    }

    const IP4: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 7, 0xdc, 0x04, 0x01, 0xbb];

    fn ip6() -> Vec<u8> {
        let ip = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        [&ip("2001:db8::1")[..], &ip("2001:db8::7"), &[0xdc, 0x04, 0x01, 0xbb]].concat()
    }

    #[test]
    fn lines_of_version_1() {
        assert_eq!(
            accepted(b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"),
            addresses("192.168.0.1:56324", "192.168.0.11:443")
        );
        assert_eq!(
            accepted(b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 0\r\n"),
            addresses("255.255.255.255:65535", "255.255.255.255:0")
        );
        assert_eq!(
            accepted(b"PROXY TCP6 2001:DB8::1 ::ffff:192.0.2.1 1 2\r\n"),
            addresses("[2001:db8::1]:1", "[::ffff:192.0.2.1]:2")
        );
        let longest = [&["ffff"; 8].join(":")[..]; 2].join(" ");
        assert!(accepted(format!("PROXY TCP6 {longest} 65535 65535\r\n").as_bytes()).is_some());
        // What stands behind UNKNOWN says nothing, and the whole line may be 107 bytes.
        let unknown = format!("PROXY UNKNOWN {longest} 65535 65535\r\n");
        assert_eq!(unknown.len(), PROXY_LINE_BYTES_MAX);
        for line in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN  \u{e9} x\r\n", &unknown] {
            assert_eq!(accepted(line.as_bytes()), None);
        }
    }

    #[test]
    fn lines_that_are_not_quite_it() {
        for line in [
            "PROXY \r\n",
            "PROXY TCP4\r\n",
            "PROXY UNKNOWNX\r\n",
            "PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY tcp4 1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY  TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY TCP4 1.2.3.4  5.6.7.8 1 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
            "PROXY TCP4 01.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY TCP4 1.2.3 5.6.7.8 1 2\r\n",
            "PROXY TCP4 ::1 5.6.7.8 1 2\r\n",
            "PROXY TCP6 1.2.3.4 ::1 1 2\r\n",
            "PROXY TCP6 [::1] ::1 1 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 65536 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 -1 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\rX",
        ] {
            assert_eq!(parse(line.as_bytes()), Err(ProxyError::Malformed), "{line:?}");
            proxy_header(line.as_bytes());
        }
        for first in [
            "GET / HTTP/1.1\r\n",
            "\x16\x03\x01",
            "proxy TCP4",
            "PROXY\r\n",
            "PROXY\tTCP4",
            "\r\nGET",
            "\r\n\r\n\0\r\nQUIT\r",
        ] {
            assert_eq!(parse(first.as_bytes()), Err(ProxyError::Missing), "{first:?}");
        }
    }

    #[test]
    fn a_line_is_bounded() {
        let line = |bytes: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(bytes - 16)).into_bytes();
        let most = PROXY_LINE_BYTES_MAX;
        assert_eq!(parse(&line(most)), Ok(Some((most, None))));
        assert_eq!(parse(&line(most + 1)), Err(ProxyError::TooLong));
        let endless = [b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat();
        assert_eq!(parse(&endless[..most - 1]), Ok(None));
        assert_eq!(parse(&endless[..most]), Err(ProxyError::TooLong));
    }

    #[test]
    fn headers_of_version_2() {
        let ip4 = addresses("192.0.2.1:56324", "198.51.100.7:443");
        assert_eq!(accepted(&header(0x21, 0x11, IP4)), ip4);
        assert_eq!(accepted(&header(0x21, 0x21, &ip6())), addresses("[2001:db8::1]:56324", "[2001:db8::7]:443"));
        // Extensions are skipped, whatever they are.
        let with_extension = [IP4, &[0x04, 0, 3, 1, 2, 3], &[0xff; 40]].concat();
        assert_eq!(accepted(&header(0x21, 0x11, &with_extension)), ip4);
        // Without addresses: unspecified, datagrams, Unix sockets.
        for (family, block) in [
            (0x00, vec![]),
            (0x00, vec![7; 30]),
            (0x01, vec![]),
            (0x10, IP4.to_vec()),
            (0x12, IP4.to_vec()),
            (0x22, ip6()),
            (0x31, vec![b'/'; 216]),
            (0x32, vec![0; 216]),
        ] {
            assert_eq!(accepted(&header(0x21, family, &block)), None, "{family:#x}");
        }
        // LOCAL is what a health check says; its family is ignored.
        for (family, block) in [(0x00, &[][..]), (0x11, IP4), (0xff, &[1, 2, 3])] {
            assert_eq!(accepted(&header(0x20, family, block)), None);
        }
    }

    #[test]
    fn headers_that_are_not_quite_it() {
        for version_command in [0x00, 0x01, 0x11, 0x22, 0x2f, 0x31, 0xff] {
            assert_eq!(parse(&header(version_command, 0x11, IP4)), Err(ProxyError::Malformed), "{version_command:#x}");
        }
        for family in [0x13, 0x1f, 0x03, 0x41, 0xf0] {
            assert_eq!(parse(&header(0x21, family, IP4)), Err(ProxyError::Malformed), "{family:#x}");
        }
        assert_eq!(parse(&header(0x21, 0x11, &IP4[..11])), Err(ProxyError::Malformed), "too short for its family");
        assert_eq!(parse(&header(0x21, 0x21, IP4)), Err(ProxyError::Malformed));
        assert_eq!(parse(&header(0x21, 0x11, &[])), Err(ProxyError::Malformed));
        let block = |bytes: usize| [IP4, &vec![0; bytes - 16 - IP4.len()]].concat();
        assert!(accepted(&header(0x21, 0x11, &block(PROXY_HEADER_BYTES_MAX))).is_some());
        let too_long: Parsed = Err(ProxyError::TooLong);
        assert_eq!(parse(&header(0x21, 0x11, &block(PROXY_HEADER_BYTES_MAX + 1))), too_long);
        assert_eq!(parse(&header(0x20, 0x00, &block(PROXY_HEADER_BYTES_MAX + 1))[..16]), too_long, "at once");
    }

    fn any_header() -> impl Strategy<Value = Vec<u8>> {
        let line = "PROXY (TCP4|TCP6|UNKNOWN|TCP) ([0-9.]{7,9}|192\\.0\\.2\\.1|::[0-9a-f]{0,4}) (10\\.0\\.0\\.1|::1) [0-9]{1,5} [0-9]{1,5}(\r\n|\n|)";
        let block = proptest::collection::vec(any::<u8>(), 0..60);
        let version_2 = (
            prop_oneof![4 => 0x20u8..0x22, 1 => any::<u8>()],
            prop_oneof![4 => Just(0x11u8), 4 => Just(0x21u8), 1 => any::<u8>()],
            block,
        )
            .prop_map(|(version_command, family, block)| header(version_command, family, &block));
        prop_oneof![line.prop_map(String::into_bytes), version_2]
    }

    proptest! {
        #[test]
        fn no_split_gives_another_answer(header in any_header(), rest in proptest::collection::vec(any::<u8>(), 0..20), at in 0usize..40, byte: u8, change: bool) {
            let mut bytes = [header, rest].concat();
            if change {
                let at = at.min(bytes.len() - 1);
                bytes[at] = byte;
            }
            proxy_header(&bytes);
        }
    }
}
