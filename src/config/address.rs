//! Where a node listens, and whose word about addresses it takes.
use super::value::{Refused, refused};
use crate::limits::UNIX_PATH_BYTES_MAX;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// One place clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub address: ListenAddress,
    /// https; never on a Unix socket.
    pub tls: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    Tcp(SocketAddr),
    /// Absolute, at most `UNIX_PATH_BYTES_MAX` bytes.
    Unix(PathBuf),
}

/// A peer that is believed what it says of its clients' addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustedProxy {
    Network(ipnet::IpNet),
    /// Whoever connects over a Unix socket.
    Unix,
}

/// As it is configured: `127.0.0.1:5000`, `https://[::]:443`, `unix:/run/signalring.sock`.
impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            ListenAddress::Tcp(address) if self.tls => write!(f, "https://{address}"),
            ListenAddress::Tcp(address) => address.fmt(f),
            ListenAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// As it is configured: `10.0.0.0/8`, `10.0.0.1`, `unix`.
impl fmt::Display for TrustedProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrustedProxy::Network(network) if network.prefix_len() == network.max_prefix_len() => network.addr().fmt(f),
            TrustedProxy::Network(network) => network.fmt(f),
            TrustedProxy::Unix => f.write_str("unix"),
        }
    }
}

impl Listener {
    /// Reads `IP:PORT`, `http://IP:PORT`, `https://IP:PORT` or `unix:/PATH`.
    pub(super) fn parse(text: &str) -> Result<Listener, Refused> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Listener { address: ListenAddress::Unix(unix_path(path)?), tls: false });
        }
        let (scheme, address) = match text.split_once("://") {
            None => ("", text),
            Some((scheme, rest)) => (&text[..scheme.len() + 3], rest),
        };
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "" | "http://" => false,
            "https://" => true,
            _ => {
                return Err(refused(
                    format!("{scheme} is not what clients connect with"),
                    "write http://IP:PORT, https://IP:PORT or unix:/PATH; WebSockets come over http and https",
                ));
            }
        };
        let address = address.strip_suffix('/').filter(|_| !scheme.is_empty()).unwrap_or(address);
        Ok(Listener { address: ListenAddress::Tcp(tcp(scheme, address)?), tls })
    }

    /// Could opening the second fail because of the first?
    pub(super) fn overlaps(&self, other: &Listener) -> bool {
        match (&self.address, &other.address) {
            (ListenAddress::Tcp(a), ListenAddress::Tcp(b)) => overlap(*a, *b),
            (a, b) => a == b,
        }
    }

    pub(super) fn tcp(&self) -> Option<SocketAddr> {
        match self.address {
            ListenAddress::Tcp(address) => Some(address),
            ListenAddress::Unix(_) => None,
        }
    }
}

impl TrustedProxy {
    /// Reads an address, a network, or `unix`.
    pub(super) fn parse(text: &str) -> Result<TrustedProxy, Refused> {
        if text.eq_ignore_ascii_case("unix") {
            return Ok(TrustedProxy::Unix);
        }
        let network = match text.parse::<IpAddr>() {
            Ok(address) => ipnet::IpNet::from(address),
            Err(_) => text.parse().map_err(|_| {
                refused(
                    format!("{text:?} is not an address or network"),
                    "write an IP such as 10.0.0.7, a network such as 10.0.0.0/8, or unix; names are not looked up here",
                )
            })?,
        };
        if network != network.trunc() {
            return Err(refused(
                format!("{text} is an address in a network, not the network"),
                format!("write {} for the network, or {} for the one address", network.trunc(), network.addr()),
            ));
        }
        // RFC 4291 2.5.5.2. Peers are compared as what they are, so that it would never match.
        if let ipnet::IpNet::V6(v6) = network
            && let (Some(v4), Some(bits)) = (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96))
        {
            return Err(refused(
                format!("{text} is an IPv4 network in the form of IPv6"),
                format!("write {v4}/{bits}"),
            ));
        }
        Ok(TrustedProxy::Network(network))
    }
}

/// Reads `IP:PORT`; `scheme` is what stands before it, for the remedy.
pub(super) fn tcp(scheme: &str, text: &str) -> Result<SocketAddr, Refused> {
    text.parse().map_err(|_| {
        let usual = match scheme {
            "" => 5000,
            _ if scheme.eq_ignore_ascii_case("https://") => 443,
            _ => 80,
        };
        let bare = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let remedy = match (bare, text.rsplit_once(':')) {
            (Ok(ip), _) => format!("write {scheme}{}", SocketAddr::new(ip, usual)),
            (_, Some(("" | "*" | "+", port))) => {
                format!(
                    "write {scheme}0.0.0.0:{port} for every interface or {scheme}127.0.0.1:{port} for this machine only"
                )
            }
            (_, Some(("localhost", port))) => format!("write {scheme}127.0.0.1:{port}"),
            (_, None) if text.parse::<u16>().is_ok() => {
                format!("write {scheme}127.0.0.1:{text} or {scheme}0.0.0.0:{text}")
            }
            _ => format!(
                "write {scheme}IP:PORT, e.g. {scheme}127.0.0.1:5000 or {scheme}[::1]:5000; names are not looked up here"
            ),
        };
        refused(format!("{:?} is not an address", format!("{scheme}{text}")), remedy)
    })
}

fn unix_path(text: &str) -> Result<PathBuf, Refused> {
    let example = "write unix: and an absolute path, e.g. unix:/run/signalring/node.sock";
    let path = match text.strip_prefix("//") {
        Some(path) if path.starts_with('/') => {
            return Err(refused(format!("unix://{path} has two slashes too many"), format!("write unix:{path}")));
        }
        _ => text,
    };
    if !path.starts_with('/') {
        return Err(refused(format!("{path:?} is not an absolute path"), example));
    }
    if path.ends_with('/') || path.chars().any(char::is_control) {
        return Err(refused(format!("{path:?} is not the path of a socket"), example));
    }
    if path.len() > UNIX_PATH_BYTES_MAX {
        return Err(refused(
            format!("{path} has {} bytes, and the kernel takes {UNIX_PATH_BYTES_MAX}", path.len()),
            "choose a shorter path",
        ));
    }
    Ok(PathBuf::from(path))
}

/// The absolute path of a Unix socket that this node may make.
pub(super) fn socket(text: &str, folder: &Path) -> Result<PathBuf, Refused> {
    if text.ends_with('/') || text.chars().any(char::is_control) {
        return Err(refused(
            format!("{text:?} is not the path of a socket"),
            "write a path such as /run/signalring/take-over.sock",
        ));
    }
    let path = std::path::absolute(folder.join(text)).map_err(|error| {
        refused(format!("{text:?} has no absolute path: {error}"), "write the path from the root on, beginning with /")
    })?;
    let bytes = path.as_os_str().len();
    if bytes > UNIX_PATH_BYTES_MAX {
        return Err(refused(
            format!("{} has {bytes} bytes, and the kernel takes {UNIX_PATH_BYTES_MAX}", path.display()),
            "choose a shorter path",
        ));
    }
    Ok(path)
}

/// Could the second bind fail because of the first? Port 0 picks a free one; `[::]` takes IPv4 as well.
pub(super) fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let covers = |a: SocketAddr, b: SocketAddr| a.ip().is_unspecified() && (a.is_ipv6() || b.is_ipv4());
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || covers(a, b) || covers(b, a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_shown_as_they_are_read() {
        for (text, shown) in [
            ("127.0.0.1:5000", "127.0.0.1:5000"),
            ("http://0.0.0.0:80/", "0.0.0.0:80"),
            ("HTTPS://[::]:443", "https://[::]:443"),
            ("unix:/run/a b.sock", "unix:/run/a b.sock"),
        ] {
            let listener = Listener::parse(text).unwrap_or_else(|refused| panic!("{text}: {refused:?}"));
            assert_eq!(listener.to_string(), shown);
            assert_eq!(Listener::parse(shown).unwrap(), listener);
            assert_eq!(listener.tls, shown.starts_with("https"));
        }
    }

    #[test]
    fn what_cannot_be_listened_on_says_what_to_write() {
        for (text, part) in [
            ("localhost:5000", "write 127.0.0.1:5000"),
            ("http://localhost:5000", "write http://127.0.0.1:5000"),
            ("5000", "write 127.0.0.1:5000 or 0.0.0.0:5000"),
            (":5000", "write 0.0.0.0:5000 for every"),
            ("http://*:80", "write http://0.0.0.0:80 for every"),
            ("https://0.0.0.0", "write https://0.0.0.0:443"),
            ("10.0.0.1", "write 10.0.0.1:5000"),
            ("[::1]", "write [::1]:5000"),
            ("::1", "write [::1]:5000"),
            ("node.example:80", "names are not looked up"),
            ("https://0.0.0.0:443/path", "write https://IP:PORT"),
            ("127.0.0.1:5000/", "IP:PORT"),
            ("ws://0.0.0.0:80", "http://IP:PORT"),
            ("unix:run/a.sock", "absolute"),
            ("unix:///run/a.sock", "write unix:/run/a.sock"),
            ("unix:/run/", "not the path of a socket"),
            ("unix:/a\0b", "not the path of a socket"),
            ("unix:", "absolute"),
            ("", "IP:PORT"),
        ] {
            let refused = Listener::parse(text).expect_err(text);
            let said = format!("{}; {}", refused.reason, refused.remedy);
            assert!(said.contains(part), "{text}: {said}");
        }
        let of_length = |bytes: usize| Listener::parse(&format!("unix:/{}", "x".repeat(bytes - 1)));
        assert!(of_length(107).is_ok());
        assert!(of_length(108).unwrap_err().reason.contains("108 bytes, and the kernel takes 107"));
    }

    #[test]
    fn listeners_are_in_each_others_way_where_a_bind_would_fail() {
        let overlap = |a: &str, b: &str| {
            let [a, b] = [a, b].map(|text| Listener::parse(text).unwrap());
            assert_eq!(a.overlaps(&b), b.overlaps(&a));
            a.overlaps(&b)
        };
        assert!(overlap("127.0.0.1:80", "https://127.0.0.1:80"));
        assert!(overlap("127.0.0.1:80", "0.0.0.0:80"));
        assert!(overlap("[::]:80", "0.0.0.0:80"));
        assert!(overlap("[::]:80", "10.0.0.1:80"));
        assert!(!overlap("[::1]:80", "0.0.0.0:80"));
        assert!(!overlap("127.0.0.1:80", "127.0.0.1:81"));
        assert!(!overlap("127.0.0.1:0", "127.0.0.1:0"));
        assert!(overlap("unix:/a", "unix:/a"));
        assert!(!overlap("unix:/a", "unix:/b") && !overlap("unix:/a", "127.0.0.1:80"));
    }

    #[test]
    fn trusted_proxies_are_addresses_networks_and_unix() {
        for (text, shown) in [
            ("10.0.0.7", "10.0.0.7"),
            ("10.0.0.7/32", "10.0.0.7"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:DB8::/32", "2001:db8::/32"),
            ("::1", "::1"),
            ("UNIX", "unix"),
        ] {
            let proxy = TrustedProxy::parse(text).unwrap_or_else(|refused| panic!("{text}: {refused:?}"));
            assert_eq!(proxy.to_string(), shown);
            assert_eq!(TrustedProxy::parse(shown).unwrap(), proxy);
        }
        for (text, part) in [
            ("10.0.0.7/8", "write 10.0.0.0/8 for the network, or 10.0.0.7"),
            ("::ffff:10.0.0.7", "write 10.0.0.7/32"),
            ("::ffff:10.0.0.0/104", "write 10.0.0.0/8"),
            ("proxy.internal", "names are not looked up"),
            ("10.0.0.0/33", "not an address or network"),
            ("10.0.0.7:80", "not an address or network"),
            ("*", "not an address or network"),
        ] {
            let refused = TrustedProxy::parse(text).expect_err(text);
            let said = format!("{}; {}", refused.reason, refused.remedy);
            assert!(said.contains(part), "{text}: {said}");
        }
    }
}
