//! Where a node listens, and whose word about addresses it takes.
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

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

/// A peer whose X-Forwarded-For, X-Forwarded-Proto, Forwarded and PROXY headers are believed.
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
