//! A new process takes the listening sockets of the running one, which then sends its clients away. Nobody who connects meanwhile is
//! refused or reset: both have the same sockets with the same queues, and one of them always accepts.
//!
//! ```text
//! new  --take_over, version-->  running        over the Unix socket `take_over`, whose file only their user may open
//! new  <--offers, sockets----   running        and goes on serving
//! new starts, its lanes come up, it serves
//! new  --serves------------->  running        until here the running one goes on as if nothing had happened, whatever becomes of the new one
//! new  <--leaves-------------  running        listens no more, and drains
//! ```
//!
//! A message is its length in 4 bytes, big-endian, and so many bytes of JSON. Sockets come with the message that counts them (SCM_RIGHTS,
//! unix(7)).
use super::in_words;
use crate::config::ListenAddress;
use crate::limits::{TAKE_OVER_MESSAGE_BYTES_MAX, TAKE_OVER_MS, TAKE_OVER_SOCKETS_MAX};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use core::time::Duration;
use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use tracing::warn;

/// Changes with the meaning of a message. Processes that do not speak the same one do not take over from each other.
const VERSION: u32 = 1;

/// What a listening socket is for, as configured: a port that the kernel chose is not in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "for", content = "at", rename_all = "snake_case")]
pub(super) enum Place {
    /// Clients; with or without TLS is the new process's affair.
    Clients(String),
    Admin(String),
    TakeOver(PathBuf),
}

impl Place {
    /// `same`: listeners of the same address before it, which there are where the kernel chooses the ports.
    pub(super) fn of(address: &ListenAddress, same: usize) -> Place {
        Place::Clients(match address {
            ListenAddress::Tcp(address) if same > 0 => format!("{address} {}", same + 1),
            ListenAddress::Tcp(address) => address.to_string(),
            ListenAddress::Unix(path) => format!("unix:{}", path.display()),
        })
    }
}

/// For the log.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Clients(address) => write!(f, "listen = {address:?}"),
            Place::Admin(address) => write!(f, "admin = {address:?}"),
            Place::TakeOver(path) => write!(f, "take_over = {path:?}"),
        }
    }
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
enum Message {
    TakeOver { version: u32 },
    Offers { version: u32, node_name: String, token_key: Option<String>, sockets: u32 },
    Sockets { places: Vec<Place> },
    Refuses { why: String },
    Serves,
    Leaves,
}

/// What a running node gives.
pub(super) struct Estate {
    pub(super) node_name: String,
    /// None: it is configured, and the new process has its own.
    pub(super) token_key: Option<Vec<u8>>,
    pub(super) sockets: Vec<(Place, OwnedFd)>,
}

/// What a new node takes over, and the way to tell the running one.
pub(super) struct Inheritance {
    pub(super) node_name: String,
    pub(super) token_key: Option<Vec<u8>>,
    sockets: Vec<(Place, OwnedFd)>,
    running: UnixStream,
}

impl Inheritance {
    /// The sockets of a place.
    pub(super) fn take(&mut self, place: &Place) -> Vec<OwnedFd> {
        let taken = self.sockets.extract_if(.., |(other, _)| other == place);
        taken.map(|(_, socket)| socket).collect()
    }

    /// Places that nobody took: the new configuration does not have them.
    pub(super) fn left(&self) -> Vec<&Place> {
        let mut left: Vec<&Place> = self.sockets.iter().map(|(place, _)| place).collect();
        left.dedup();
        left
    }

    /// This process serves: the other one leaves. It is an error if it does not want to.
    pub(super) fn serves(mut self) -> io::Result<()> {
        // Once it may have heard this, there is no way back: who says nothing more has gone, or will.
        let heard = send(&self.running, &Message::Serves, &[]).and_then(|()| receive(&mut self.running));
        match heard {
            Ok((Message::Leaves, _)) => {}
            Ok((refuses @ Message::Refuses { .. }, _)) => return Err(unexpected(&refuses)),
            Ok((other, _)) => warn!("the node that ran here answers oddly: {}", unexpected(&other)),
            Err(error) => warn!("the node that ran here does not say that it leaves: {error}"),
        }
        Ok(())
    }
}

/// Asks the node that runs, if one does.
pub(super) fn ask(path: &Path) -> io::Result<Option<Inheritance>> {
    let words = |error| in_words(error, &format!("cannot take over from the node at {}", path.display()));
    let mut running = match UnixStream::connect(path) {
        Ok(stream) => stream,
        // The file of one that was killed, or none at all.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(words(error)),
    };
    inherit(&mut running)
        .map_err(words)
        .map(|(node_name, token_key, sockets)| Some(Inheritance { node_name, token_key, sockets, running }))
}

type Inherited = (String, Option<Vec<u8>>, Vec<(Place, OwnedFd)>);

fn inherit(running: &mut UnixStream) -> io::Result<Inherited> {
    patience(running)?;
    send(running, &Message::TakeOver { version: VERSION }, &[])?;
    let (node_name, token_key, count) = match receive(running)?.0 {
        Message::Offers { version: VERSION, node_name, token_key, sockets } => (node_name, token_key, sockets),
        other => return Err(unexpected(&other)),
    };
    if !crate::session::token::is_node_name(&node_name) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its name is none of a node"));
    }
    let token_key = token_key.map(|key| STANDARD.decode(key)).transpose().map_err(|error| garbage(&error))?;
    let mut sockets = Vec::new();
    while sockets.len() < count as usize {
        match receive(running)? {
            (Message::Sockets { places }, descriptors) if places.len() == descriptors.len() && !places.is_empty() => {
                sockets.extend(places.into_iter().zip(descriptors));
            }
            (other, _) => return Err(unexpected(&other)),
        }
    }
    Ok((node_name, token_key, sockets))
}

/// Says what this node has to one that asks; the rest is said by `Successor`. An error is the other one's fault and changes nothing here.
pub(super) fn offer(stream: UnixStream, estate: &Estate) -> io::Result<Successor> {
    let mut successor = Successor { stream };
    patience(&successor.stream)?;
    // The file's mode says so already, unless somebody changed it.
    let peer = rustix::net::sockopt::socket_peercred(&successor.stream)?;
    if peer.uid != rustix::process::geteuid() && !peer.uid.is_root() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it runs as another user"));
    }
    match receive(&mut successor.stream)?.0 {
        Message::TakeOver { version: VERSION } => {}
        Message::TakeOver { version } => {
            let why = format!("it speaks version {version} of taking over, and this node version {VERSION}");
            successor.refuse(&why);
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        other => return Err(unexpected(&other)),
    }
    let offers = Message::Offers {
        version: VERSION,
        node_name: estate.node_name.clone(),
        token_key: estate.token_key.as_ref().map(|key| STANDARD.encode(key)),
        sockets: estate.sockets.len() as u32,
    };
    send(&successor.stream, &offers, &[])?;
    for some in estate.sockets.chunks(TAKE_OVER_SOCKETS_MAX) {
        let places = some.iter().map(|(place, _)| place.clone()).collect();
        let descriptors: Vec<BorrowedFd<'_>> = some.iter().map(|(_, socket)| socket.as_fd()).collect();
        send(&successor.stream, &Message::Sockets { places }, &descriptors)?;
    }
    Ok(successor)
}

/// A node that has the sockets of this one and does not serve yet.
pub(super) struct Successor {
    stream: UnixStream,
}

impl Successor {
    /// Waits until it serves.
    pub(super) fn serves(&mut self) -> io::Result<()> {
        match receive(&mut self.stream)? {
            (Message::Serves, _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// This node has stopped listening.
    pub(super) fn leave(&mut self) -> io::Result<()> {
        send(&self.stream, &Message::Leaves, &[])
    }

    pub(super) fn refuse(&mut self, why: &str) {
        // Whoever does not hear it sees the end of the connection.
        let _ = send(&self.stream, &Message::Refuses { why: why.into() }, &[]);
    }
}

/// Listens for a successor. The file is this user's alone from its first moment on.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    let words = |error| in_words(error, &format!("cannot listen on {} for a successor", path.display()));
    let address = SocketAddrUnix::new(path).map_err(|error| words(error.into()))?;
    let bound = || -> io::Result<OwnedFd> {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // A socket's file takes its mode from the socket, less the umask.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &address)?;
        // Who asks whether anybody listens leaves a connection behind; a full queue would let the next one wait for ever.
        rustix::net::listen(&socket, 128)?;
        Ok(socket)
    };
    let socket = super::listen::at_free_path(path, bound).map_err(words)?;
    Ok(UnixListener::from(socket))
}

fn patience(stream: &UnixStream) -> io::Result<()> {
    let patience = Some(Duration::from_millis(TAKE_OVER_MS));
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)
}

fn unexpected(message: &Message) -> io::Error {
    match message {
        Message::Refuses { why } => io::Error::other(format!("it refuses: {why}")),
        Message::Offers { version, .. } => {
            let words = format!(
                "it speaks version {version} of taking over, and this process version {VERSION}; stop it instead"
            );
            io::Error::new(io::ErrorKind::Unsupported, words)
        }
        other => garbage(&format!("{other:?} was not expected")),
    }
}

fn garbage(what: &dyn core::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("what it says makes no sense: {what}"))
}

fn send(stream: &UnixStream, message: &Message, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let json = serde_json::to_vec(message).map_err(io::Error::other)?;
    let mut bytes = (json.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(&json);
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(TAKE_OVER_SOCKETS_MAX))];
    let mut sent = 0;
    while sent < bytes.len() {
        let mut control = SendAncillaryBuffer::new(&mut space);
        // With the first byte; what is left of a message has none.
        if sent == 0 && !sockets.is_empty() && !control.push(SendAncillaryMessage::ScmRights(sockets)) {
            return Err(io::Error::other("too many sockets for one message"));
        }
        let rest = [IoSlice::new(&bytes[sent..])];
        match rustix::net::sendmsg(stream, &rest, &mut control, SendFlags::NOSIGNAL) {
            Ok(count) => sent += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn receive(stream: &mut UnixStream) -> io::Result<(Message, Vec<OwnedFd>)> {
    let mut sockets = Vec::new();
    let mut length = [0; 4];
    fill(stream, &mut length, &mut sockets)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > TAKE_OVER_MESSAGE_BYTES_MAX {
        return Err(garbage(&format!("a message of {length} bytes")));
    }
    let mut json = vec![0; length];
    fill(stream, &mut json, &mut sockets)?;
    let message = serde_json::from_slice(&json).map_err(|error| garbage(&error))?;
    Ok((message, sockets))
}

fn fill(stream: &UnixStream, mut buffer: &mut [u8], sockets: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(TAKE_OVER_SOCKETS_MAX))];
    while !buffer.is_empty() {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(buffer)];
        let received = match rustix::net::recvmsg(stream, into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => received,
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::AGAIN) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("it says nothing for {} s", TAKE_OVER_MS / 1000),
                ));
            }
            Err(error) => return Err(error.into()),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                sockets.extend(descriptors);
            }
        }
        if received.bytes == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has gone"));
        }
        buffer = &mut buffer[received.bytes..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::PermissionsExt;

    fn estate(sockets: usize) -> (Estate, Vec<std::net::SocketAddr>) {
        let listeners: Vec<TcpListener> = (0..sockets).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let place = |index: usize| {
            if index.is_multiple_of(2) { Place::Clients("a:0".into()) } else { Place::Admin("b:0".into()) }
        };
        let sockets = listeners.into_iter().enumerate().map(|(index, listener)| (place(index), listener.into()));
        let sockets = sockets.collect();
        (Estate { node_name: "node".into(), token_key: Some(vec![7; 32]), sockets }, addresses)
    }

    struct File(PathBuf);

    impl File {
        fn new(name: &str) -> File {
            File(std::env::temp_dir().join(format!("signalring-{name}-{}", std::process::id())))
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn sockets_pass_with_what_they_are_for_and_the_running_one_hears_that_the_new_one_serves() {
        let file = File::new("passes");
        assert!(ask(&file.0).unwrap().is_none(), "nobody runs");
        let listener = listen(&file.0).unwrap();
        assert_eq!(std::fs::metadata(&file.0).unwrap().permissions().mode() & 0o777, 0o600);
        // More than one message takes.
        let (estate, addresses) = estate(2 * TAKE_OVER_SOCKETS_MAX + 3);
        std::thread::scope(|scope| {
            let running = scope.spawn(|| {
                let mut successor = offer(listener.accept().unwrap().0, &estate).unwrap();
                successor.serves().unwrap();
                successor.leave().unwrap();
            });
            let mut inheritance = ask(&file.0).unwrap().expect("one runs");
            assert_eq!((inheritance.node_name.as_str(), &inheritance.token_key), ("node", &Some(vec![7; 32])));
            let taken = inheritance.take(&Place::Clients("a:0".into()));
            assert!(inheritance.take(&Place::Clients("b:0".into())).is_empty());
            assert_eq!(inheritance.left(), [&Place::Admin("b:0".into())]);
            let even: Vec<_> = addresses.iter().step_by(2).copied().collect();
            let taken: Vec<TcpListener> = taken.into_iter().map(TcpListener::from).collect();
            assert_eq!(taken.iter().map(|socket| socket.local_addr().unwrap()).collect::<Vec<_>>(), even);
            let client = TcpStream::connect(even[3]).unwrap();
            assert_eq!(taken[3].accept().unwrap().1, client.local_addr().unwrap(), "it is the same queue");
            inheritance.serves().unwrap();
            running.join().unwrap();
        });
        drop(listener);
        assert!(ask(&file.0).unwrap().is_none(), "its file is still there");
        listen(&file.0).unwrap();
    }

    #[test]
    fn a_new_one_that_dies_or_speaks_another_version_changes_nothing() {
        let file = File::new("refuses");
        let path = &file.0;
        let listener = listen(path).unwrap();
        let (estate, addresses) = estate(2);
        std::thread::scope(|scope| {
            let asks = scope.spawn(|| drop(ask(path).unwrap().expect("one runs")));
            let mut successor = offer(listener.accept().unwrap().0, &estate).unwrap();
            assert_eq!(successor.serves().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            asks.join().unwrap();

            let asks = scope.spawn(|| {
                let mut stream = UnixStream::connect(path).unwrap();
                send(&stream, &Message::TakeOver { version: 99 }, &[]).unwrap();
                receive(&mut stream).unwrap().0
            });
            let refused = offer(listener.accept().unwrap().0, &estate).err().expect("it is refused");
            assert!(refused.to_string().contains("version 99"), "{refused}");
            assert!(matches!(asks.join().unwrap(), Message::Refuses { why } if why.contains("version 99")));

            for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\0\0\0\x02{}", b"\0\0\0\x03abc", b"\0\0"] {
                let asks = scope.spawn(move || {
                    use std::io::Write;
                    UnixStream::connect(path).unwrap().write_all(garbage).unwrap();
                });
                assert!(offer(listener.accept().unwrap().0, &estate).is_err());
                asks.join().unwrap();
            }
        });
        assert!(TcpStream::connect(addresses[0]).is_ok());
    }

    #[test]
    fn a_running_one_that_refuses_is_told_of_in_its_words() {
        let file = File::new("words");
        let listener = listen(&file.0).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut stream = listener.accept().unwrap().0;
                receive(&mut stream).unwrap();
                Successor { stream }.refuse("it is about to stop");
            });
            let error = ask(&file.0).err().expect("it is refused").to_string();
            assert!(error.contains("it refuses: it is about to stop") && error.contains("take over"), "{error}");
        });
        assert_eq!(Place::of(&ListenAddress::Unix("/a".into()), 0), Place::Clients("unix:/a".into()));
        assert_eq!(listen(&file.0).unwrap_err().kind(), io::ErrorKind::AddrInUse, "another process listens there");
    }
}
