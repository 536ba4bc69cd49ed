//! An eventfd that wakes a thread which sleeps in its ring or in epoll.
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use tokio::io::unix::AsyncFd;

/// Rings from any thread. Cheap when it is already ringing.
#[derive(Clone, Debug)]
pub struct Doorbell {
    fd: Arc<OwnedFd>,
}

impl Doorbell {
    pub fn new() -> io::Result<Doorbell> {
        // SAFETY: no memory is involved; the result is checked and owned by nobody else.
        unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Doorbell { fd: Arc::new(OwnedFd::from_raw_fd(fd)) })
        }
    }

    pub fn ring(&self) {
        let one = 1u64;
        // SAFETY: eight bytes are read from `one`. It can only fail with EAGAIN, when the count is at its top: it rings.
        unsafe { libc::write(self.fd.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub fn quiet(&self) {
        quiet(self.fd());
    }

    /// To be awaited in a tokio runtime; call inside one.
    pub fn into_async(self) -> io::Result<AsyncFd<Doorbell>> {
        // SAFETY: the descriptor stays open and the same as long as the registration lives, because the value registered owns
        // (a share of) it and gives out nothing that could close it.
        Ok(unsafe { AsyncFd::register(self) }?)
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.fd()
    }
}

/// Takes the count out, so that the next ring is seen.
pub fn quiet(fd: RawFd) {
    let mut count = 0u64;
    // SAFETY: eight bytes are written into `count`. EAGAIN means that it did not ring.
    unsafe { libc::read(fd, (&raw mut count).cast(), 8) };
}
