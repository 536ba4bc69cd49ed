//! The admin endpoint: `/health`, `/ready`, `/metrics`, and the live picture. Plain HTTP for operators and their tools; loopback by default.
use super::exchange::within;
use super::picture::Picture;
use super::plane::{State, UrlInfo};
use crate::limits::ADMIN_CONNECTIONS_MAX;
use crate::metrics::{self, Counter};
use crate::proto::http;
use core::time::Duration;
use std::net::{Shutdown, TcpListener};
use std::rc::Rc;
use std::time::Instant;
use tokio_uring::net::TcpStream;
use tracing::{error, warn};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A shard turns at least once a second, whatever happens; one that does not for this long is stuck.
const STUCK: Duration = Duration::from_secs(5);

/// Until it is called off, which loses nobody: a connection that was not taken waits for whoever else has the listener.
pub(super) async fn serve(listener: TcpListener, state: Rc<State>, picture: Rc<Picture>) {
    // By readiness: an accept in the ring cannot be called back without a connection.
    let listener = listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => return error!("the admin endpoint cannot listen: {error}"),
    };
    let watch = Rc::new(Watch::new(&state));
    tokio_uring::spawn(watch.clone().look(state.clone()));
    let open = Rc::new(());
    loop {
        let accepted = listener.accept().await.and_then(|(stream, _)| stream.into_std());
        match accepted.and_then(|stream| stream.set_nonblocking(false).map(|()| stream)) {
            Ok(stream) if Rc::strong_count(&open) <= ADMIN_CONNECTIONS_MAX => {
                let (state, watch, picture, open) = (state.clone(), watch.clone(), picture.clone(), open.clone());
                let stream = TcpStream::from_std(stream);
                tokio_uring::spawn(async move {
                    answer(stream, &state, &watch, &picture).await;
                    drop(open);
                });
            }
            Ok(_) => {}
            Err(error) => {
                warn!("the admin endpoint cannot accept: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// One request, one answer.
async fn answer(stream: TcpStream, state: &State, watch: &Watch, picture: &Rc<Picture>) {
    let stream = Rc::new(stream);
    let head = within(REQUEST_TIMEOUT, &stream, "reading", read_head(stream.clone())).await;
    let Ok(head) = head else { return };
    let reply = match http::parse_head(&head) {
        Ok(head) if head.method != "GET" && head.method != "HEAD" => {
            reply(405, "text/plain", "Only GET is answered here.\n", "Allow: GET, HEAD\r\n", true)
        }
        Ok(head) => match picture.answer(&head).await {
            Some(reply) => reply,
            None => route(head.path, state, watch, head.method == "GET"),
        },
        Err(error) => reply(error.status(), "text/plain", error.label(), "", true),
    };
    // One that does not read loses its place at the deadline, or a few such would silence the endpoint.
    let _ = within(REQUEST_TIMEOUT, &stream, "writing", {
        let stream = stream.clone();
        async move { stream.write_all(reply.into_bytes()).await.0.map_err(|error| error.to_string()) }
    })
    .await;
    let _ = stream.shutdown(Shutdown::Write);
}

fn route(path: &str, state: &State, watch: &Watch, body: bool) -> String {
    match path {
        "/health" => match watch.stuck() {
            None => reply(200, "text/plain", "ok\n", "", body),
            Some(shard) => reply(503, "text/plain", &format!("shard {shard} is stuck\n"), "", body),
        },
        "/ready" => match readiness(state) {
            Ok(text) => reply(200, "text/plain", &text, "", body),
            Err(why) => reply(503, "text/plain", &why, "", body),
        },
        "/metrics" => {
            let published: Vec<&metrics::Published> = state.published.iter().map(|p| &**p).collect();
            reply(200, metrics::CONTENT_TYPE, &metrics::exposition::encode(&published, &state.node_info()), "", body)
        }
        _ => reply(404, "text/plain", "There are /health, /ready, /metrics and /picture.\n", "", body),
    }
}

/// Whether a balancer should send clients here: every shard must reach an app server. An upstream that is down takes no clients away
/// from the others, so the node stays in balance and the answer names it; an Observer never counts.
fn readiness(state: &State) -> Result<String, String> {
    if state.stopping.get() {
        return Err("stopping\n".into());
    }
    let urls = state.url_infos();
    let down: Vec<String> = urls.iter().filter(|url| !url.is_up).map(in_words).collect();
    let down = if down.is_empty() { String::new() } else { format!("; down: {}", down.join("; ")) };
    match &state.unserved()[..] {
        [] => Ok(format!("ready{down}\n")),
        shards => Err(format!("no lane to an app server is up on shards {shards:?}{down}\n")),
    }
}

/// `chat http://10.0.0.5:6100: cannot connect to 10.0.0.5:6100: Connection refused (os error 111)`
fn in_words(url: &UrlInfo<'_>) -> String {
    let trouble = url.trouble.as_deref().unwrap_or("being dialled");
    format!("{} {}: {trouble}", url.upstream, url.url)
}

pub(super) fn reply(status: u16, content_type: &str, text: &str, headers: &str, body: bool) -> String {
    let reason = match status {
        200 => "OK",
        302 => "Found",
        404 => "Not Found",
        405 => "Method Not Allowed",
        421 => "Misdirected Request",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        _ => "Bad Request",
    };
    let length = text.len();
    let text = if body { text } else { "" };
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nCache-Control: no-store\r\n{headers}Connection: close\r\n\r\n{text}"
    )
}

async fn read_head(stream: Rc<TcpStream>) -> Result<Vec<u8>, String> {
    let (mut head, mut scanned) = (Vec::new(), 0);
    loop {
        let (result, buffer) = stream.read(Vec::with_capacity(2048)).await;
        match result {
            Ok(count @ 1..) => head.extend_from_slice(&buffer[..count]),
            Ok(_) => return Err("closed".into()),
            Err(error) => return Err(error.to_string()),
        }
        match http::head_end(&head, &mut scanned) {
            Ok(Some(end)) => {
                head.truncate(end);
                return Ok(head);
            }
            Ok(None) => {}
            Err(error) => return Err(error.label().into()),
        }
    }
}

/// Looks whether the shards still turn.
struct Watch {
    seen: core::cell::RefCell<Vec<(u64, Instant)>>,
}

impl Watch {
    fn new(state: &State) -> Watch {
        let now = Instant::now();
        Watch { seen: core::cell::RefCell::new(state.published.iter().map(|_| (0, now)).collect()) }
    }

    async fn look(self: Rc<Self>, state: Rc<State>) {
        loop {
            let now = Instant::now();
            for (published, seen) in state.published.iter().zip(self.seen.borrow_mut().iter_mut()) {
                let turns = published.counter(Counter::Turns);
                if turns != seen.0 {
                    *seen = (turns, now);
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn stuck(&self) -> Option<usize> {
        self.seen.borrow().iter().position(|(_, since)| since.elapsed() > STUCK)
    }
}
