//! What this machine can do, asked once at start, so that what is missing is said in a sentence and not met in the middle.
use io_uring::{IoUring, Probe, opcode};
use std::io;

/// Tries a ring with everything a shard uses. The error says what is missing and what to do.
pub fn io_uring() -> io::Result<()> {
    let ring: IoUring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(8).map_err(|error| {
        let why = match error.raw_os_error() {
            Some(libc::ENOSYS) => {
                "this kernel has no io_uring (Linux 6.1 or later is needed), or a container's seccomp profile hides it (Podman's \
                 default does; allow io_uring_setup, io_uring_enter and io_uring_register)"
            }
            Some(libc::EPERM) => {
                "io_uring is forbidden here: check `sysctl kernel.io_uring_disabled` (0 allows it) and, in a container, \
                 its seccomp profile (Docker's default blocks io_uring; allow io_uring_setup, io_uring_enter and \
                 io_uring_register)"
            }
            Some(libc::EINVAL) => "this kernel's io_uring is too old (no DEFER_TASKRUN); Linux 6.1 or later is needed",
            Some(libc::ENOMEM) => "not enough locked memory for a ring: raise `ulimit -l`",
            _ => "io_uring cannot be set up",
        };
        io::Error::new(error.kind(), format!("{why} ({error})"))
    })?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    for (code, name) in [
        (opcode::Accept::CODE, "ACCEPT"),
        (opcode::PollAdd::CODE, "POLL_ADD"),
        (opcode::Recv::CODE, "RECV"),
        (opcode::Send::CODE, "SEND"),
        (opcode::SendMsg::CODE, "SENDMSG"),
        (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
    ] {
        if !probe.is_supported(code) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("this kernel's io_uring lacks {name}; Linux 6.1 or later is needed"),
            ));
        }
    }
    Ok(())
}

/// Processors this process may use.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}
