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
