//! Who a client behind proxies is: `X-Forwarded-For` with `X-Forwarded-Proto`, or `Forwarded` (RFC 7239).
//!
//! Only the one is read that the proxies write. Most proxies write one and pass the other on as it came, so that whoever reads both
//! lets clients choose their own address (RFC 7239 §8.1).
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
    /// What all of them write.
    pub header: ForwardedHeader,
}

/// The header in which proxies say who their peer is. The other one is not read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardedHeader {
    /// The scheme is in `X-Forwarded-Proto`.
    #[default]
    XForwardedFor,
    /// RFC 7239; the scheme is its `proto=`.
    Forwarded,
}

impl ForwardedHeader {
    pub fn name(self) -> &'static str {
        match self {
            ForwardedHeader::XForwardedFor => "X-Forwarded-For",
            ForwardedHeader::Forwarded => "Forwarded",
        }
    }
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
    if trusted.header == ForwardedHeader::Forwarded {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::http::parse_head;
    use std::format;
    use std::string::String;
    use std::vec;

    fn trusted() -> Trusted {
        let networks = ["10.0.0.0/8", "127.0.0.1/32", "2001:db8:1::/48"];
        let networks = networks.iter().map(|network| network.parse().unwrap()).collect();
        Trusted { networks, ..Trusted::default() }
    }

    /// Who the client is when a trusted proxy sends these header lines, in words.
    fn client(headers: &[&str]) -> String {
        client_at(headers, Some([10, 0, 0, 1].into()), &trusted())
    }

    /// The same where proxies write `Forwarded`.
    fn client_by_rfc(headers: &[&str]) -> String {
        let trusted = Trusted { header: ForwardedHeader::Forwarded, ..trusted() };
        client_at(headers, Some([10, 0, 0, 1].into()), &trusted)
    }

    fn client_at(headers: &[&str], peer: Option<IpAddr>, trusted: &Trusted) -> String {
        let mut text = b"GET /hub HTTP/1.1\r\nHost: a\r\n".to_vec();
        for line in headers {
            // Latin-1, so that a test can write bytes that are no UTF-8.
            text.extend(line.chars().map(|char| char as u8));
            text.extend(b"\r\n");
        }
        text.extend(b"\r\n");
        match client_of(&parse_head(&text).ok().unwrap(), peer, trusted) {
            None => "the peer".into(),
            Some(Forwarded { ip, port, https }) => {
                let proto = match https {
                    None => "",
                    Some(true) => " https",
                    Some(false) => " http",
                };
                format!("{ip} {port}{proto}")
            }
        }
    }

    #[test]
    fn only_trusted_peers_are_believed() {
        let headers = ["X-Forwarded-For: 192.0.2.1"];
        let by =
            |peer: Option<&str>, trusted: &Trusted| client_at(&headers, peer.map(|ip| ip.parse().unwrap()), trusted);
        for peer in ["10.1.2.3", "127.0.0.1", "2001:db8:1::5", "::ffff:10.1.2.3"] {
            assert_eq!(by(Some(peer), &trusted()), "192.0.2.1 0", "{peer}");
        }
        for peer in ["11.0.0.1", "127.0.0.2", "2001:db8:2::5", "::ffff:11.0.0.1", "::1", "::10.0.0.1"] {
            assert_eq!(by(Some(peer), &trusted()), "the peer", "{peer}");
        }
        assert_eq!(by(None, &trusted()), "the peer", "a Unix socket");
        assert_eq!(by(None, &Trusted { unix: true, ..Trusted::default() }), "192.0.2.1 0");
        assert_eq!(by(Some("10.0.0.1"), &Trusted { unix: true, ..Trusted::default() }), "the peer");
        assert_eq!(client(&[]), "the peer");
    }

    #[test]
    fn the_walk_stops_at_the_first_who_is_not_trusted() {
        for (list, expected) in [
            ("192.0.2.1", "192.0.2.1 0"),
            ("6.6.6.6, 192.0.2.1", "192.0.2.1 0"),
            ("6.6.6.6, 192.0.2.1, 10.0.0.2,10.0.0.3", "192.0.2.1 0"),
            ("192.0.2.1, 2001:db8:1::7", "192.0.2.1 0"),
            ("192.0.2.1, ::ffff:10.0.0.2", "192.0.2.1 0"),
            ("10.0.0.4, 10.0.0.2", "10.0.0.4 0"),
            (", 192.0.2.1 ,, ", "192.0.2.1 0"),
            ("", "the peer"),
            (",", "the peer"),
        ] {
            assert_eq!(client(&[&format!("X-Forwarded-For: {list}")]), expected, "{list}");
            let quoted: vec::Vec<String> = list.split(',').map(|ip| ip.trim()).map(element_for).collect();
            assert_eq!(client_by_rfc(&[&format!("Forwarded: {}", quoted.join(", "))]), expected, "{quoted:?}");
        }
        assert_eq!(
            client(&["X-Forwarded-For: 6.6.6.6", "x-forwarded-for: 192.0.2.1, 10.0.0.2", "X-FORWARDED-FOR: 10.0.0.3"]),
            "192.0.2.1 0",
            "several lines are one list"
        );
    }

    fn element_for(ip: &str) -> String {
        match ip {
            "" => String::new(),
            _ if ip.contains(':') => format!("for=\"[{ip}]\""),
            _ => format!("for={ip}"),
        }
    }

    #[test]
    fn what_is_no_address_ends_the_walk_at_the_last_good_one() {
        for garbage in [
            "unknown",
            "_hidden",
            "client.example",
            "1.2.3",
            "1.2.3.4.5",
            "01.2.3.4",
            "[::1",
            "::1]",
            "1.2.3.4:",
            "1.2.3.4:x",
            "1.2.3.4:65536",
            "[::1]:-1",
            "[::1]x",
            "[1.2.3.4]",
            "fe80::1%eth0",
            "1.2.3.4 5.6.7.8",
            "unix:/run/x",
            "\u{ff}",
        ] {
            let list = |before, behind| client(&[&format!("X-Forwarded-For: {before}{garbage}{behind}")]);
            assert_eq!(list("6.6.6.6, ", ""), "the peer", "{garbage}");
            assert_eq!(list("6.6.6.6, ", ", 10.0.0.2"), "10.0.0.2 0", "{garbage}");
            assert_eq!(list("", ", 192.0.2.1"), "192.0.2.1 0", "{garbage}");
            let element = |before, behind| client_by_rfc(&[&format!("Forwarded: {before}for=\"{garbage}\"{behind}")]);
            assert_eq!(element("for=6.6.6.6, ", ""), "the peer", "{garbage}");
            assert_eq!(element("for=6.6.6.6, ", ", for=10.0.0.2"), "10.0.0.2 0", "{garbage}");
        }
    }

    #[test]
    fn addresses_may_have_ports() {
        for (node, expected) in [
            ("192.0.2.1:4711", "192.0.2.1 4711"),
            ("192.0.2.1:0", "192.0.2.1 0"),
            ("192.0.2.1:_secret", "192.0.2.1 0"),
            ("[2001:db8:2::1]", "2001:db8:2::1 0"),
            ("[2001:db8:2::1]:65535", "2001:db8:2::1 65535"),
            ("[::ffff:192.0.2.1]:80", "192.0.2.1 80"),
        ] {
            assert_eq!(client(&[&format!("X-Forwarded-For: {node}")]), expected);
            assert_eq!(client_by_rfc(&[&format!("Forwarded: for=\"{node}\"")]), expected);
        }
        assert_eq!(
            client(&["X-Forwarded-For: 2001:db8:2::1"]),
            "2001:db8:2::1 0",
            "without brackets, as most write it"
        );
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        for (list, expected) in [
            // The examples of section 4.
            (r#"for="_gazonk""#, "the peer"),
            (r#"For="[2001:db8:cafe::17]:4711""#, "2001:db8:cafe::17 4711"),
            ("for=192.0.2.60;proto=http;by=203.0.113.43", "192.0.2.60 0 http"),
            ("for=192.0.2.43, for=198.51.100.17", "198.51.100.17 0"),
            // Other names, orders, cases and spaces.
            (r#"by="x;,y"; Proto="HTTPS" ;host=a ; FOR=192.0.2.1;"#, "192.0.2.1 0 https"),
            ("for=192.0.2.1;proto=wss, for=10.0.0.2;proto=http", "192.0.2.1 0 https"),
            ("for=192.0.2.1, for=10.0.0.2;proto=https", "192.0.2.1 0"),
            ("for=192.0.2.1;proto=gopher", "192.0.2.1 0"),
            ("for=192.0.2.1;secret=\"a,b\", for=10.0.0.2", "192.0.2.1 0"),
            // Elements that say nothing, or not clearly.
            ("proto=https", "the peer"),
            ("for", "the peer"),
            ("for=", "the peer"),
            ("for=192.0.2.1;for=192.0.2.2", "the peer"),
            ("for=192.0.2.1;proto=http;proto=https", "the peer"),
            ("for=\"192.0.2.1", "the peer"),
            (r#"for="192.0.2.\1""#, "the peer"),
            ("192.0.2.1", "the peer"),
            // A quote that anybody wrote swallows nothing of what a proxy wrote behind it.
            ("for=\"6.6.6.6, for=192.0.2.1", "192.0.2.1 0"),
            ("\u{ff}, for=192.0.2.1, for=10.0.0.2", "192.0.2.1 0"),
        ] {
            assert_eq!(client_by_rfc(&[&format!("Forwarded: {list}")]), expected, "{list}");
        }
    }

    #[test]
    fn only_the_header_that_proxies_write_is_read() {
        assert_eq!(Trusted::default().header, ForwardedHeader::XForwardedFor);
        let (theirs, rfc) =
            (["X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https"], "Forwarded: for=192.0.2.2;proto=http");
        let both = [theirs[0], rfc, theirs[1]];
        assert_eq!(client(&both), "192.0.2.1 0 https");
        assert_eq!(client_by_rfc(&both), "192.0.2.2 0 http");
        // No part of the other fills what the one leaves open.
        assert_eq!(client(&[theirs[0], rfc]), "192.0.2.1 0");
        assert_eq!(client_by_rfc(&["Forwarded: for=192.0.2.2", theirs[0], theirs[1]]), "192.0.2.2 0");
        assert_eq!(client(&[rfc, theirs[1], "X-Forwarded-For: unknown"]), "the peer");
        assert_eq!(client_by_rfc(&[theirs[0], theirs[1], "Forwarded: for=unknown;proto=https"]), "the peer");
        assert_eq!(client(&[rfc]), "the peer");
        assert_eq!(client_by_rfc(&theirs), "the peer");
    }

    #[test]
    fn the_scheme_stands_where_the_address_does() {
        for (addresses, protos, expected) in [
            ("192.0.2.1", "https", "192.0.2.1 0 https"),
            ("192.0.2.1", "http", "192.0.2.1 0 http"),
            ("192.0.2.1", "", "192.0.2.1 0"),
            ("192.0.2.1", "quic", "192.0.2.1 0"),
            ("192.0.2.1, 10.0.0.2", "https, http", "192.0.2.1 0 https"),
            // Proxies that overwrite it.
            ("192.0.2.1, 10.0.0.2", "https", "192.0.2.1 0 https"),
            ("192.0.2.1, 10.0.0.2, 10.0.0.3", "https, http", "192.0.2.1 0 https"),
            // What the client wrote itself stands further left.
            ("6.6.6.6, 192.0.2.1, 10.0.0.2", "http, https, http", "192.0.2.1 0 https"),
            ("192.0.2.1", "https, http", "192.0.2.1 0 http"),
        ] {
            let headers = [format!("X-Forwarded-For: {addresses}"), format!("X-Forwarded-Proto: {protos}")];
            assert_eq!(client(&[&headers[0], &headers[1]]), expected, "{headers:?}");
        }
        assert_eq!(client(&["X-Forwarded-Proto: https"]), "the peer", "a scheme without an address");
    }
}
