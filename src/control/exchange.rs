//! Deadlines on tokio-uring, which cannot cancel: a pending operation that is dropped keeps its socket, and a read swallows the next
//! bytes besides. So an exchange runs as a task of its own, and its deadline shuts the socket down, which ends the task.
use core::time::Duration;
use std::net::Shutdown;
use std::rc::Rc;
use tokio::time::timeout;
use tokio_uring::net::TcpStream;

/// Runs an exchange to its end, or to its deadline by shutting its socket down.
pub(super) async fn within<T: 'static>(
    limit: Duration,
    stream: &Rc<TcpStream>,
    doing: &str,
    exchange: impl Future<Output = Result<T, String>> + 'static,
) -> Result<T, String> {
    let mut task = tokio_uring::spawn(exchange);
    let result = match timeout(limit, &mut task).await {
        Ok(done) => done,
        Err(_) => {
            let _ = stream.shutdown(Shutdown::Both);
            let _ = task.await;
            return Err(format!("{doing} took over {:.0} s", limit.as_secs_f32()));
        }
    };
    result.unwrap_or_else(|_| Err(format!("{doing} failed")))
}
