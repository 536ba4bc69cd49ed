//! A connection's socket, which a test may break as networks and hosts do: reset it, or let it go silent without an end.
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use futures_util::task::AtomicWaker;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

const SOUND: u8 = 0;
/// Nothing is read, written or noticed: the peer's bytes stay in the kernel, and its end is not seen.
const FROZEN: u8 = 1;
/// Reads and writes fail, and closing it sends a reset.
const BROKEN: u8 = 2;

/// The state of one socket; clones are handles to the same.
#[derive(Clone, Default)]
pub struct Fault(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: AtomicU8,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Fault {
    /// From now on the socket is as if the network in between had gone. `reset` ends it.
    pub fn freeze(&self) {
        self.enter(FROZEN);
    }

    /// The connection fails at once, and its peer is told with a reset (RFC 9293, section 3.5.3); what was on its way is lost.
    pub fn reset(&self) {
        self.enter(BROKEN);
    }

    fn enter(&self, state: u8) {
        self.0.state.fetch_max(state, Ordering::AcqRel);
        self.0.reader.wake();
        self.0.writer.wake();
    }

    fn is_broken(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == BROKEN
    }

    /// Whether to go on with the operation. Registers first, so that no change between the two is missed.
    fn poll(&self, waker: &AtomicWaker, context: &Context<'_>) -> Poll<io::Result<()>> {
        waker.register(context.waker());
        match self.0.state.load(Ordering::Acquire) {
            SOUND => Poll::Ready(Ok(())),
            FROZEN => Poll::Pending,
            _ => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }

    fn poll_read(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        self.poll(&self.0.reader, context)
    }

    fn poll_write(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        self.poll(&self.0.writer, context)
    }
}

impl Connected<IncomingStream<'_, Wires>> for Fault {
    fn connect_info(stream: IncomingStream<'_, Wires>) -> Self {
        stream.io().fault.clone()
    }
}

pub struct Wire {
    stream: TcpStream,
    fault: Fault,
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.fault.is_broken()
            && let Err(error) = self.stream.set_zero_linger()
        {
            tracing::warn!(%error, "a connection cannot be reset and is closed instead");
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.fault.poll_read(cx))?;
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.fault.poll_write(cx))?;
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.fault.poll_write(cx))?;
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.fault.poll_write(cx))?;
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.fault.poll_write(cx))?;
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Accepts connections that can be broken.
pub struct Wires(pub TcpListener);

impl Listener for Wires {
    type Io = Wire;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Wire, SocketAddr) {
        // axum's own tells apart what concerns one connection from what concerns all, and waits where it must.
        let (stream, address) = Listener::accept(&mut self.0).await;
        // As Kestrel does: a record waits for nothing.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY cannot be set");
        }
        (Wire { stream, fault: Fault::default() }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
