//! The listening sockets of a node: one for every shard and address; its own, or those of the node it takes over from.
use super::in_words;
use super::take_over::{self, Inheritance, Place};
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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// What a node listens on.
pub(super) struct Opened {
    /// Of each shard.
    pub(super) shards: Vec<Vec<Listener>>,
    pub(super) places: Vec<Listening>,
    pub(super) admin: TcpListener,
    /// For a successor.
    pub(super) successor: Option<UnixListener>,
    /// What a successor gets: every socket once more. Empty where none is awaited.
    pub(super) estate: Vec<(Place, OwnedFd)>,
    pub(super) files: Files,
}

/// Opens everything that is configured, or takes it over.
pub(super) fn open(
    config: &Config,
    tls: Option<&Arc<ServerConfig>>,
    inheritance: &mut Option<Inheritance>,
) -> io::Result<Opened> {
    let mut take = |place: &Place| inheritance.as_mut().map_or(Vec::new(), |inheritance| inheritance.take(place));
    let mut shards: Vec<Vec<Listener>> = (0..config.shards).map(|_| Vec::new()).collect();
    let (mut places, mut estate, mut files) = (Vec::new(), Vec::new(), Vec::new());
    for (index, listener) in config.listen.iter().enumerate() {
        let words = |error| in_words(error, &format!("cannot listen on {listener}"));
        let tls = listener.tls.then(|| tls.expect("an https listener has a certificate").clone());
        let same = config.listen[..index].iter().filter(|other| other.address == listener.address).count();
        let place = Place::of(&listener.address, same);
        let inherited = take(&place);
        match &listener.address {
            ListenAddress::Tcp(address) => {
                let (sockets, address) =
                    tcp(*address, shards.len(), config.limits.client_tcp_timeout, inherited).map_err(words)?;
                for (index, socket) in sockets.into_iter().enumerate() {
                    estate.push((place.clone(), socket.try_clone().map_err(words)?));
                    // A predecessor may have had more shards: each of its sockets has a queue of its own, which somebody has to serve.
                    let shard = index % shards.len();
                    shards[shard].push(Listener { socket, tls: tls.clone(), is_unix: false });
                }
                places.push(if tls.is_some() { Listening::Https(address) } else { Listening::Http(address) });
            }
            ListenAddress::Unix(path) => {
                let socket = match inherited.into_iter().next() {
                    Some(socket) => socket,
                    None => at_free_path(path, || UnixListener::bind(path).map(OwnedFd::from)).map_err(words)?,
                };
                for shard in &mut shards {
                    // One socket for all: whichever shard is first takes the connection.
                    shard.push(Listener { socket: socket.try_clone().map_err(words)?, tls: None, is_unix: true });
                }
                estate.push((place, socket));
                files.push(path.clone());
                places.push(Listening::Unix(path.clone()));
            }
        }
    }

    let words = |error| in_words(error, &format!("cannot listen on {} for the admin endpoint", config.admin));
    let place = Place::Admin(config.admin.to_string());
    let admin = match take(&place).into_iter().next() {
        Some(socket) => TcpListener::from(socket),
        None => TcpListener::bind(config.admin).map_err(words)?,
    };
    estate.push((place, admin.try_clone().map_err(words)?.into()));

    let successor = match &config.take_over {
        None => {
            estate.clear();
            None
        }
        Some(path) => {
            let place = Place::TakeOver(path.clone());
            let listener = match take(&place).into_iter().next() {
                Some(socket) => UnixListener::from(socket),
                None => take_over::listen(path)?,
            };
            let copy = listener.try_clone().map_err(|error| in_words(error, "cannot listen for a successor"))?;
            estate.push((place, copy.into()));
            files.push(path.clone());
            Some(listener)
        }
    };
    Ok(Opened { shards, places, admin, successor, estate, files: Files::new(files) })
}

/// One socket a shard on the same address, at least; the kernel spreads the connections, which inherit the options. Those that are there already are among them.
fn tcp(
    address: SocketAddr,
    shards: usize,
    timeout: Duration,
    inherited: Vec<OwnedFd>,
) -> io::Result<(Vec<OwnedFd>, SocketAddr)> {
    let mut listeners: Vec<TcpListener> = inherited.into_iter().map(TcpListener::from).collect();
    if listeners.is_empty() {
        patiently(|| socket::probe_free(address))?;
        listeners.push(socket::listen(address)?);
    }
    // Port 0 became a real one.
    let address = listeners[0].local_addr()?;
    while listeners.len() < shards {
        listeners.push(socket::listen(address)?);
    }
    for listener in &listeners {
        socket::find_gone_peers(listener, timeout)?;
    }
    Ok((listeners.into_iter().map(OwnedFd::from).collect(), address))
}

/// Binds a Unix socket. A node that was killed leaves its socket's file behind. If nobody answers there, it is taken away.
pub(super) fn at_free_path(path: &Path, bind: impl Fn() -> io::Result<OwnedFd>) -> io::Result<OwnedFd> {
    match bind() {
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
    bind()
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

/// The files of a node's Unix sockets, which are taken away when nobody listens any more.
#[derive(Clone)]
pub(super) struct Files(Arc<Mutex<Paths>>);

struct Paths {
    own: Vec<PathBuf>,
    /// Another process has the sockets, too.
    are_lent: bool,
}

impl Files {
    pub(super) fn new(own: Vec<PathBuf>) -> Files {
        Files(Arc::new(Mutex::new(Paths { own, are_lent: false })))
    }

    /// Another process has the sockets and is yet to say what becomes of it: should this one end first, they are the other one's.
    pub(super) fn lend(&self) {
        self.paths().are_lent = true;
    }

    /// It has gone.
    pub(super) fn take_back(&self) {
        self.paths().are_lent = false;
    }

    /// They are another process's from now on.
    pub(super) fn leave(&self) {
        self.paths().own.clear();
    }

    pub(super) fn clean_up(&self) {
        let mut paths = self.paths();
        if paths.are_lent {
            return;
        }
        for path in paths.own.drain(..) {
            // Gone already, or not ours to remove: nothing depends on it.
            let _ = std::fs::remove_file(path);
        }
    }

    fn paths(&self) -> MutexGuard<'_, Paths> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
