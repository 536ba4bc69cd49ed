//! The listening sockets of a node: one for every shard and address.
use super::in_words;
use crate::config::{Config, ListenAddress};
use crate::limits::LISTEN_PATIENCE_MS;
use crate::shard::Listener;
use crate::sys::socket;
use rustls::ServerConfig;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An address that is listened on, with its real port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listening {
    Http(SocketAddr),
    Https(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listening::Http(address) => write!(f, "http://{address}"),
            Listening::Https(address) => write!(f, "https://{address}"),
            Listening::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Opens everything that is configured: what each shard listens on, and where that is.
pub(super) fn open(
    config: &Config,
    tls: Option<&Arc<ServerConfig>>,
) -> io::Result<(Vec<Vec<Listener>>, Vec<Listening>)> {
    let mut shards: Vec<Vec<Listener>> = (0..config.shards).map(|_| Vec::new()).collect();
    let mut places = Vec::new();
    for listener in &config.listen {
        let words = |error| in_words(error, &format!("cannot listen on {listener}"));
        let tls = listener.tls.then(|| tls.expect("an https listener has a certificate").clone());
        match &listener.address {
            ListenAddress::Tcp(address) => {
                let timeout = config.limits.client_tcp_timeout;
                let (sockets, address) = tcp(*address, shards.len(), timeout).map_err(words)?;
                for (shard, socket) in shards.iter_mut().zip(sockets) {
                    shard.push(Listener { socket: OwnedFd::from(socket), tls: tls.clone(), is_unix: false });
                }
                places.push(if tls.is_some() { Listening::Https(address) } else { Listening::Http(address) });
            }
            ListenAddress::Unix(path) => {
                let socket = unix(path).map_err(words)?;
                for shard in &mut shards {
                    // One socket for all: whichever shard is first takes the connection.
                    let socket = OwnedFd::from(socket.try_clone().map_err(words)?);
                    shard.push(Listener { socket, tls: None, is_unix: true });
                }
                places.push(Listening::Unix(path.clone()));
            }
        }
    }
    Ok((shards, places))
}

/// One socket a shard on the same address; the kernel spreads the connections, which inherit the options.
fn tcp(address: SocketAddr, shards: usize, timeout: Duration) -> io::Result<(Vec<TcpListener>, SocketAddr)> {
    patiently(|| socket::probe_free(address))?;
    let first = socket::listen(address)?;
    // Port 0 became a real one.
    let address = first.local_addr()?;
    let mut listeners = vec![first];
    while listeners.len() < shards {
        listeners.push(socket::listen(address)?);
    }
    for listener in &listeners {
        socket::find_gone_peers(listener, timeout)?;
    }
    Ok((listeners, address))
}

/// A node that was killed leaves its socket's file behind. If nobody answers there, it is taken away.
fn unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
        result => return result,
    }
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file of that name that is no socket"));
    }
    patiently(|| match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
    })?;
    std::fs::remove_file(path)?;
    UnixListener::bind(path)
}

/// Asks for a free address until it is: the kernel lets go of a killed node's ring, and of what it listens on, a moment after the
/// process is gone.
fn patiently(mut is_free: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let until = Instant::now() + Duration::from_millis(LISTEN_PATIENCE_MS);
    loop {
        match is_free() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// Takes the files of Unix sockets away, when nobody listens any more.
pub(super) fn clean_up(places: &[Listening]) {
    for place in places {
        if let Listening::Unix(path) = place {
            // Gone already, or not ours to remove: nothing depends on it.
            let _ = std::fs::remove_file(path);
        }
    }
}
