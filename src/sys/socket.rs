//! Sockets as plain descriptors: listening, options, addresses, the ends.
use crate::limits::TCP_PROBES;
use core::time::Duration;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Connections the kernel completes before they are accepted. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// A listener for one of several shards: the kernel spreads connections over all sockets bound to the address this way.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bound_socket(address, true)?;
    // SAFETY: no memory is involved.
    if unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(TcpListener::from(socket))
}

/// Is somebody else listening there? With SO_REUSEPORT a second node would not fail but share the port and take half of
/// the connections; binding once without the option finds out.
pub fn probe_free(address: SocketAddr) -> io::Result<()> {
    if address.port() == 0 {
        return Ok(());
    }
    bound_socket(address, false).map(drop)
}

fn bound_socket(address: SocketAddr, share_port: bool) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no memory is involved; the result is checked.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just made and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // Connections of a node that was just restarted linger in TIME_WAIT; they must not look like somebody listening.
    set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    if share_port {
        set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    let (storage, len) = to_storage(address);
    // SAFETY: `storage` is a valid socket address of `len` bytes for the duration of the call.
    if unsafe { libc::bind(fd, (&raw const storage).cast(), len) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// The next connection in a listener's queue, if there is one. The listener does not wait any more from now on, whoever accepts from it.
pub fn accept_waiting(listener: RawFd) -> Option<RawFd> {
    // SAFETY: no memory is involved: the peer's address is not asked for.
    unsafe {
        let flags = libc::fcntl(listener, libc::F_GETFL);
        if flags < 0 || libc::fcntl(listener, libc::F_SETFL, flags | libc::O_NONBLOCK) < 0 {
            return None;
        }
        loop {
            let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            let fd = libc::accept4(listener, core::ptr::null_mut(), core::ptr::null_mut(), flags);
            match io::Error::last_os_error().raw_os_error() {
                _ if fd >= 0 => return Some(fd),
                // Of a connection that is gone already; accept(2) asks to go on.
                Some(libc::EINTR | libc::ECONNABORTED) => {}
                _ => return None,
            }
        }
    }
}

/// Options of a new client: small messages leave at once, and a client that does not read costs bounded kernel memory.
pub fn prepare_client(fd: RawFd, send_buffer_bytes: u32) {
    // Both can only fail on a socket that is already dead; the next receive says so.
    let _ = set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, send_buffer_bytes as i32);
}

/// Has the kernel find out, within about `timeout`, that a peer is gone without a word: a machine that lost its power or its network leaves
/// a connection that is open for ever on our side. What is not acknowledged for so long ends it with ETIMEDOUT (tcp(7), TCP_USER_TIMEOUT),
/// and one that is quiet is probed. Of a listener its connections inherit it.
pub fn find_gone_peers(socket: &impl AsFd, timeout: Duration) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let seconds = timeout.as_secs().max(1) as i32;
    let probes = TCP_PROBES as i32;
    // Half of the time quiet, the other half for probes.
    let interval = (seconds / 2 / probes).max(1);
    let options = [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, (seconds - interval * probes).max(1)),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, interval),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, probes),
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, timeout.as_millis() as i32),
    ];
    options.into_iter().try_for_each(|(level, name, value)| set_option(fd, level, name, value))
}

/// (local, peer) of a connected socket.
pub fn addresses(fd: RawFd) -> Option<(SocketAddr, SocketAddr)> {
    Some((name(fd, libc::getsockname)?, name(fd, libc::getpeername)?))
}

pub fn shutdown(fd: RawFd, how: i32) {
    // SAFETY: no memory is involved. It fails on a socket that is no longer connected, which is what is wanted.
    unsafe { libc::shutdown(fd, how) };
}

pub fn close(fd: RawFd) {
    // SAFETY: the caller owns `fd` and forgets it now.
    unsafe { libc::close(fd) };
}

/// Makes a descriptor somebody's own, for handing it over.
pub fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller owns `fd` and gives it away.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A second descriptor of the same socket, to be owned apart from the first.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved; the result is checked and owned by nobody else.
    unsafe {
        let copy = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0);
        if copy < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(copy)) }
    }
}

/// Binds the calling thread to one processor. Not being allowed to is no fault.
pub fn pin_to_processor(index: usize) -> bool {
    // SAFETY: a cpu_set_t is plain data; CPU_SET writes inside it (index is bounded), the call reads it.
    unsafe {
        let mut set: libc::cpu_set_t = core::mem::zeroed();
        libc::CPU_SET(index % (8 * size_of::<libc::cpu_set_t>()), &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) == 0
    }
}

fn set_option(fd: RawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: `value` lives through the call and its size is given.
    let done =
        unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), size_of::<i32>() as libc::socklen_t) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

type NameCall = unsafe extern "C" fn(i32, *mut libc::sockaddr, *mut libc::socklen_t) -> i32;

fn name(fd: RawFd, call: NameCall) -> Option<SocketAddr> {
    // SAFETY: `storage` is large enough for every address family and zeroed; `len` says so; the kernel writes at most that.
    unsafe {
        let mut storage: libc::sockaddr_storage = core::mem::zeroed();
        let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        if call(fd, (&raw mut storage).cast(), &mut len) != 0 {
            return None;
        }
        from_storage(&storage)
    }
}

fn to_storage(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: sockaddr_storage is plain data, valid as zeros, and larger than and aligned for both address types.
    unsafe {
        let mut storage: libc::sockaddr_storage = core::mem::zeroed();
        let len = match address {
            SocketAddr::V4(v4) => {
                let out = &mut *(&raw mut storage).cast::<libc::sockaddr_in>();
                out.sin_family = libc::AF_INET as libc::sa_family_t;
                out.sin_port = v4.port().to_be();
                out.sin_addr.s_addr = u32::from(*v4.ip()).to_be();
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(v6) => {
                let out = &mut *(&raw mut storage).cast::<libc::sockaddr_in6>();
                out.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                out.sin6_port = v6.port().to_be();
                out.sin6_addr.s6_addr = v6.ip().octets();
                out.sin6_scope_id = v6.scope_id();
                size_of::<libc::sockaddr_in6>()
            }
        };
        (storage, len as libc::socklen_t)
    }
}

fn from_storage(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    // SAFETY: the kernel filled in an address of the family it names; sockaddr_storage is aligned for each of them.
    unsafe {
        match storage.ss_family as i32 {
            libc::AF_INET => {
                let v4 = &*(&raw const *storage).cast::<libc::sockaddr_in>();
                let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
                Some(SocketAddr::new(IpAddr::V4(ip), u16::from_be(v4.sin_port)))
            }
            libc::AF_INET6 => {
                let v6 = &*(&raw const *storage).cast::<libc::sockaddr_in6>();
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                Some(SocketAddr::new(IpAddr::V6(ip), u16::from_be(v6.sin6_port)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn two_listeners_share_a_port_and_a_stranger_notices() {
        let first = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.local_addr().unwrap();
        let second = listen(address).unwrap();
        assert_eq!(second.local_addr().unwrap(), address);
        assert!(probe_free(address).is_err());
        drop((first, second));
        assert!(probe_free(address).is_ok());
    }

    fn option(fd: RawFd, level: i32, name: i32) -> i32 {
        let (mut value, mut len) = (0i32, size_of::<i32>() as libc::socklen_t);
        // SAFETY: `value` and `len` live through the call, and `len` is the size of `value`.
        let done = unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &mut len) };
        assert_eq!(done, 0);
        value
    }

    #[test]
    fn connections_inherit_that_gone_peers_are_found() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        find_gone_peers(&listener, Duration::from_secs(60)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let all = |fd| {
            let tcp = |name| option(fd, libc::IPPROTO_TCP, name);
            let timeout = tcp(libc::TCP_USER_TIMEOUT);
            let keep = option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE);
            (keep, tcp(libc::TCP_KEEPIDLE), tcp(libc::TCP_KEEPINTVL), tcp(libc::TCP_KEEPCNT), timeout)
        };
        assert_eq!(all(accepted.as_raw_fd()), (1, 30, 10, 3, 60_000));
        assert_eq!(option(client.as_raw_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE), 0);
        for seconds in [1, 6, 7, 3600] {
            find_gone_peers(&client, Duration::from_secs(seconds)).unwrap();
        }
    }

    #[test]
    fn what_waits_in_the_queue_of_a_listener_is_taken_and_nothing_is_waited_for() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let clients = [(); 3].map(|()| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        for client in &clients {
            let accepted = own(accept_waiting(listener.as_raw_fd()).unwrap());
            assert_eq!(addresses(accepted.as_raw_fd()).unwrap().1, client.local_addr().unwrap());
        }
        assert_eq!(accept_waiting(listener.as_raw_fd()), None);
    }

    #[test]
    fn addresses_of_both_families() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = listen(any.parse().unwrap()) else { continue };
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (local, peer) = addresses(stream.as_raw_fd()).unwrap();
            assert_eq!((local, peer), (stream.local_addr().unwrap(), stream.peer_addr().unwrap()));
        }
    }
}
