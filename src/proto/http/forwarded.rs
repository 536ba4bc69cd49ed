//! Who a client behind proxies is: `Forwarded` (RFC 7239), or `X-Forwarded-For` with `X-Forwarded-Proto`.
//!
//! Every proxy writes the address of its own peer behind what it received. So a list is read from the right: the last entry is the
//! word of our peer, the one before it the word of whoever the last entry names, and so on for as long as the speaker is trusted. What
//! stands further left anybody can have written.
use alloc::vec::Vec;
use core::net::IpAddr;

use super::Head;
use super::head::decimal;
use ipnet::IpNet;

/// Whose word is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trusted {
    /// Addresses of proxies. IPv4 proxies belong here as IPv4 networks, also where a socket shows them as mapped IPv6 addresses.
    pub networks: Vec<IpNet>,
    /// Peers on a Unix socket.
    pub unix: bool,
}

/// Where a request came from before it came to the first trusted proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// Never a mapped IPv6 address.
    pub ip: IpAddr,
    /// 0 where nobody said.
    pub port: u16,
    /// Did it come over TLS? `None` where nobody said.
    pub https: Option<bool>,
}

/// The client of a request, as trusted proxies tell it. `None`: the peer is the client as far as anybody knows. `peer` is `None` on a
/// Unix socket.
///
/// `Forwarded` wins over `X-Forwarded-*`: where it is present, the other is not read. A proxy that speaks only `X-Forwarded-For` has to
/// remove a `Forwarded` that it receives, or clients choose their own address (RFC 7239 §8.1).
///
/// The walk from the right passes trusted addresses and stops at the first that is not, which is the client. What is no address
/// (`unknown`, `_hidden`, garbage) ends it as well; then the last good address is taken.
///
/// Of `X-Forwarded-Proto` that entry is taken that stands as far from the right as the address does in its list; where there are fewer,
/// the leftmost: some proxies add to the one list and overwrite the other.
pub fn client_of(head: &Head<'_>, peer: Option<IpAddr>, trusted: &Trusted) -> Option<Forwarded> {
    if !trusted.admits(peer) {
        return None;
    }
    let list = |name| from_right(head.values(name));
    if head.header("forwarded").is_some() {
        return trusted.walk(list("forwarded").map(element)).map(|(_, client)| client);
    }
    let hops = list("x-forwarded-for").map(|node| {
        let (ip, port) = address(node)?;
        Some(Forwarded { ip, port, https: None })
    });
    let (distance, client) = trusted.walk(hops)?;
    let https = list("x-forwarded-proto").take(distance + 1).last().and_then(is_https);
    Some(Forwarded { https, ..client })
}

impl Trusted {
    /// Is this peer one of them? `None` is a peer on a Unix socket.
    pub fn admits(&self, peer: Option<IpAddr>) -> bool {
        peer.map_or(self.unix, |peer| self.names(peer))
    }

    fn names(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.networks.iter().any(|network| network.contains(&ip))
    }

    /// The client, and how far from the right it stands.
    fn walk(&self, hops: impl Iterator<Item = Option<Forwarded>>) -> Option<(usize, Forwarded)> {
        let mut client = None;
        for (distance, hop) in hops.enumerate() {
            let Some(hop) = hop else { break };
            client = Some((distance, hop));
            if !self.names(hop.ip) {
                break;
            }
        }
        client
    }
}

/// The items of a list header from the right to the left. Several lines are one list, and empty items are none (RFC 9110 §5.6.1).
fn from_right<'b>(lines: impl DoubleEndedIterator<Item = &'b [u8]>) -> impl Iterator<Item = &'b [u8]> {
    lines.rev().flat_map(|line| split_from_right(line, b',')).filter(|item| !item.is_empty())
}

/// Splits at separators outside of quoted strings. Quotes are counted from the right, so that one too many on the left, where anybody
/// may have written, does not swallow what trusted proxies wrote behind it. An escaped quote, which no address has, counts as well.
fn split_from_right(list: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(list);
    core::iter::from_fn(move || {
        let list = rest?;
        let mut quoted = false;
        let at = list.iter().rposition(|byte| {
            quoted ^= *byte == b'"';
            *byte == separator && !quoted
        });
        rest = at.map(|at| &list[..at]);
        Some(list[at.map_or(0, |at| at + 1)..].trim_ascii())
    })
}

/// One `forwarded-element` (RFC 7239 §4), if it names an address.
fn element(text: &[u8]) -> Option<Forwarded> {
    let (mut node, mut proto) = (None, None);
    for pair in split_from_right(text, b';').filter(|pair| !pair.is_empty()) {
        let equals = memchr::memchr(b'=', pair)?;
        let (name, value) = (&pair[..equals], unquoted(&pair[equals + 1..])?);
        let known = match name {
            _ if name.eq_ignore_ascii_case(b"for") => &mut node,
            _ if name.eq_ignore_ascii_case(b"proto") => &mut proto,
            _ => continue,
        };
        // §4: each parameter at most once.
        if known.replace(value).is_some() {
            return None;
        }
    }
    let (ip, port) = address(node?)?;
    Some(Forwarded { ip, port, https: proto.and_then(is_https) })
}

/// A token as it is, a quoted string without its quotes. Escapes are not read: nothing that is looked for here needs one.
fn unquoted(value: &[u8]) -> Option<&[u8]> {
    let inner = match value {
        [b'"', inner @ .., b'"'] => inner,
        token => token,
    };
    memchr::memchr2(b'"', b'\\', inner).is_none().then_some(inner)
}

/// `node` of RFC 7239 §6, and what `X-Forwarded-For` has in practice: IPv4, IPv4:port, [IPv6], [IPv6]:port, IPv6.
fn address(node: &[u8]) -> Option<(IpAddr, u16)> {
    let node = core::str::from_utf8(node).ok()?;
    let (ip, port) = if let Some(bracketed) = node.strip_prefix('[') {
        let (ip, rest) = bracketed.split_once(']')?;
        let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) };
        (IpAddr::V6(ip.parse().ok()?), port)
    } else if let Ok(ip) = node.parse() {
        (ip, None)
    } else {
        let (ip, port) = node.split_once(':')?;
        (IpAddr::V4(ip.parse().ok()?), Some(port))
    };
    let port = match port {
        // §6.3: a port may be obfuscated.
        None => 0,
        Some(port) if port.starts_with('_') => 0,
        Some(port) => u16::try_from(decimal(port.as_bytes())?).ok()?,
    };
    Some((ip.to_canonical(), port))
}

fn is_https(proto: &[u8]) -> Option<bool> {
    let is = |name: &[u8]| proto.eq_ignore_ascii_case(name);
    match () {
        _ if is(b"https") || is(b"wss") => Some(true),
        _ if is(b"http") || is(b"ws") => Some(false),
        _ => None,
    }
}
