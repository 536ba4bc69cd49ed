//! An embedded dotNetify app server: what the upstream contract (`reference/dotnetify-forwarding.md`, section 8) calls a faithful fake.
//!
//! It serves direct SignalR clients and lanes of proxies alike, keeps the original's defects where proxies have to live with them
//! (bindings that outlive their lane, the wrong client disconnected with a lane, group sends through the oldest binding of a hub id),
//! and counts what a real one would lose in silence: `hooks` says how to look and how to disturb. With `AppOptions::observer` it plays a
//! DotNetify-Observer instead. Nothing here belongs to the process: several may run in one.
//!
//! It stands on axum, so that foreign code checks our framing, and shares no codec with the proxy.
//!
//! Not in it: server-sent events and long polling (lanes and the clients of the demo use WebSockets), `$headers`
//! authentication. Stricter than ASP.NET in one point: a text message that ends inside a UTF-8 character ends the connection, as the
//! WebSocket library demands it (reference 16.4); binary ones may.
use axum::Router;
use axum::extract::ws::{WebSocketUpgrade, rejection::WebSocketUpgradeRejection};
use axum::extract::{ConnectInfo, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

mod bindings;
mod clock;
mod connection;
mod context;
mod hooks;
mod hub;
mod invoke;
mod messagepack;
mod observer;
mod outbox;
mod protocol;
mod vm;
mod wire;

pub use hooks::{Close, Fail, Freeze, Hold, How, Slow};
pub use hub::{BindingSnapshot, LaneSnapshot, Snapshot};
pub use observer::{ClientReport, HubReport, ObserverSnapshot};

use bindings::ConnectionId;
use hub::Hub;
use wire::{Fault, Wires};

/// A negotiated connection that never connects is forgotten (reference 2).
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Negotiated and not yet connected; the oldest are forgotten beyond it.
const PENDING_MAX: usize = 100_000;
/// Timers are fired together when they are due within this.
const TIMER_GRAIN: Duration = Duration::from_millis(5);
/// Timers fired before others get at the hub.
const TIMERS_PER_TURN: usize = 64;
/// A peer's WebSocket message may hold many records; the limit on a record is another one.
const WEBSOCKET_BYTES_MAX: usize = 16 * 1024 * 1024;
/// axum's default of 128 KiB for each connection would be 1.3 GB for 10,000.
const WEBSOCKET_READ_BUFFER_BYTES: usize = 4 * 1024;
/// How long `shutdown` waits for connections to end (reference 13.4).
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Defaults are those of ASP.NET Core SignalR.
#[derive(Clone, Debug)]
pub struct AppOptions {
    /// Where the hub is mapped.
    pub hub_path: String,
    /// `MaximumReceiveMessageSize`, framing included.
    pub message_bytes_max: usize,
    /// `KeepAliveInterval`.
    pub keep_alive: Duration,
    /// `ClientTimeoutInterval`, armed by a connection's first ping.
    pub client_timeout: Duration,
    pub handshake_timeout: Duration,
    /// `AddMessagePackProtocol()` was called. Without it a MessagePack handshake is refused, as by a stock server (contract 2.1).
    pub message_pack: bool,
    /// Record what nodes report, as a DotNetify-Observer, and never answer them (contract 7.2). Clients of its own are served.
    pub observer: bool,
    /// Queued for one connection before it is given up.
    pub outbox_bytes_max: usize,
}

impl Default for AppOptions {
    fn default() -> Self {
        AppOptions {
            hub_path: "/dotnetify".into(),
            message_bytes_max: 32 * 1024,
            keep_alive: Duration::from_secs(15),
            client_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(15),
            message_pack: false,
            observer: false,
            outbox_bytes_max: 64 * 1024 * 1024,
        }
    }
}

/// A running app server. Dropping it cuts all connections, as a crash would; `shutdown` is the graceful way.
pub struct AppServer {
    pub local_addr: SocketAddr,
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    options: AppOptions,
    own_hub_id: Arc<str>,
    hub: Mutex<Hub>,
    pending: Mutex<HashMap<String, Pending>>,
    /// New connections are answered 503.
    refusing: AtomicBool,
    /// The ticker looks for the next timer anew.
    timers_changed: Notify,
    /// Tells every connection to say goodbye; its receivers are the connections.
    stopping: watch::Sender<bool>,
    /// Connections that are stuck in a hub method until they are taken out of here.
    held: watch::Sender<HashSet<ConnectionId>>,
    connections: Mutex<tokio::task::JoinSet<()>>,
}

/// What negotiate promised to a token.
struct Pending {
    id: ConnectionId,
    since: Instant,
    taken: bool,
}

impl Shared {
    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Listens and serves on the current tokio runtime.
pub async fn bind(addr: SocketAddr, options: AppOptions) -> io::Result<AppServer> {
    let listener = TcpListener::bind(addr).await?;
    let local_addr = listener.local_addr()?;
    let own_hub_id: Arc<str> = random_id()?.into();
    let shared = Arc::new(Shared {
        hub: Mutex::new(Hub::new(own_hub_id.clone(), options.observer)),
        own_hub_id,
        pending: Mutex::default(),
        refusing: AtomicBool::default(),
        timers_changed: Notify::new(),
        stopping: watch::channel(false).0,
        held: watch::channel(HashSet::new()).0,
        connections: Mutex::default(),
        options,
    });
    let path = &shared.options.hub_path;
    let router = Router::new()
        .route(&format!("{path}/negotiate"), post(negotiate))
        .route(path, get(connect))
        .merge(hooks::routes())
        .layer(axum::middleware::from_fn(cross_origin))
        .with_state(shared.clone());
    let service = router.into_make_service_with_connect_info::<Fault>();
    let mut stopping = shared.stopping.subscribe();
    let serve = axum::serve(Wires(listener), service).with_graceful_shutdown(async move {
        let _ = stopping.wait_for(|stopping| *stopping).await;
    });
    let tasks = vec![
        tokio::spawn(async move {
            if let Err(error) = serve.await {
                tracing::error!(%error, "the app server stopped serving");
            }
        }),
        tokio::spawn(tick(shared.clone())),
    ];
    tracing::info!(%local_addr, "app server listens");
    Ok(AppServer { local_addr, shared, tasks })
}

/// Runs an app server with its own runtime until SIGINT or SIGTERM.
pub fn run(addr: SocketAddr, options: AppOptions) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let server = bind(addr, options)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {addr}: {error}")))?;
        println!("listening on {}", server.url());
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            result = tokio::signal::ctrl_c() => result?,
            _ = terminate.recv() => {}
        }
        server.shutdown().await;
        Ok(())
    })
}

impl AppServer {
    pub fn state(&self) -> Snapshot {
        self.shared.hub().snapshot()
    }

    pub fn bindings(&self) -> Vec<BindingSnapshot> {
        self.shared.hub().binding_snapshots()
    }

    /// Where a proxy's upstream or a client's hub server points to.
    pub fn url(&self) -> String {
        format!("http://{}", self.local_addr)
    }

    /// Graceful stop: each connection receives `{"type":7,"allowReconnect":true}` (contract 4.5).
    /// When it returns, the address is free again.
    pub async fn shutdown(self) {
        self.shared.stopping.send_replace(true);
        let mut connections = std::mem::take(&mut *lock(&self.shared.connections));
        let ended = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, ended).await.is_err() {
            tracing::warn!("connections are cut that did not end in time");
        }
        drop(connections);
        self.kill().await;
        tracing::info!("app server stopped");
    }

    /// Stops at once, as a crash would: no goodbye, every connection cut. When it returns, the address is free again.
    pub async fn kill(mut self) {
        let mut connections = std::mem::take(&mut *lock(&self.shared.connections));
        connections.shutdown().await;
        for task in std::mem::take(&mut self.tasks) {
            task.abort();
            let _ = task.await;
        }
    }

    /// Cuts one connection without a goodbye of SignalR's: half of a test that loses a lane. Returns whether there was one.
    pub fn cut(&self, connection_id: &str) -> bool {
        self.close(&Close { lane: Some(connection_id.to_owned()), how: How::Cut }) > 0
    }

    /// Ends one connection or all lanes. Returns how many.
    pub fn close(&self, close: &Close) -> usize {
        self.shared.close(close)
    }

    /// Lets lanes go silent, as if the network were gone. Returns how many.
    pub fn freeze(&self, freeze: &Freeze) -> usize {
        self.shared.freeze(freeze)
    }

    /// Lets lanes be stuck in a hub method, or go on. Returns how many.
    pub fn hold(&self, hold: &Hold) -> usize {
        self.shared.hold(hold)
    }

    /// Makes invocations fail.
    pub fn fail(&self, fail: Fail) {
        self.shared.hub().fail(fail);
    }

    /// Lanes, and what is bound to those that are gone.
    pub fn lanes(&self) -> Vec<LaneSnapshot> {
        self.shared.hub().lane_snapshots()
    }

    /// What an Observer was told; None unless it is one.
    pub fn observed(&self) -> Option<ObserverSnapshot> {
        self.shared.hub().observed()
    }

    /// Makes a part of the work slow, until told otherwise.
    pub fn slow_down(&self, slow: Slow) {
        self.shared.hub().slow_down(slow);
    }

    /// Whether new connections are refused, with status 503. Those that are there stay.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refusing.store(refuse, Relaxed);
    }
}

impl Drop for AppServer {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        lock(&self.shared.connections).abort_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// 16 random bytes, as SignalR's ids (reference 2).
fn random_id() -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// One task for the timers of all view models.
async fn tick(shared: Arc<Shared>) {
    loop {
        let next = shared.hub().next_timer();
        match next {
            Some(due) => tokio::select! {
                () = tokio::time::sleep_until(due.into()) => {}
                // Something earlier may have come.
                () = shared.timers_changed.notified() => {}
            },
            None => shared.timers_changed.notified().await,
        }
        let now = Instant::now();
        while shared.hub().run_timers(now, TIMERS_PER_TURN) {
            tokio::task::yield_now().await;
        }
        // What falls due meanwhile is fired together.
        tokio::time::sleep(TIMER_GRAIN).await;
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response {
    (status, text).into_response()
}

/// Query keys are compared case-insensitively (reference 1).
fn query_value<'a>(query: &'a [(String, String)], name: &str) -> Option<&'a str> {
    query.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// Reference 3: versions 0 and 1, errors with status 200.
async fn negotiate(State(shared): State<Arc<Shared>>, Query(query): Query<Vec<(String, String)>>) -> Response {
    let version = match query_value(&query, "negotiateVersion").map(str::parse::<i64>) {
        None => 0,
        Some(Err(_)) => {
            return Json(json!({ "error": "The client requested a non-integer protocol version." })).into_response();
        }
        Some(Ok(version)) if version < 0 => {
            let text =
                format!("The client requested version '{version}', but the server does not support this version.");
            return Json(json!({ "error": text })).into_response();
        }
        Some(Ok(version)) => version.min(1),
    };
    if shared.refusing.load(Relaxed) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let (Ok(id), Ok(token)) = (random_id(), random_id()) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let token = if version == 0 { id.clone() } else { token };
    let mut pending = lock(&shared.pending);
    if pending.len() >= PENDING_MAX {
        pending.retain(|_, pending| pending.since.elapsed() < DISCONNECT_TIMEOUT);
    }
    if pending.len() >= PENDING_MAX {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    pending.insert(token.clone(), Pending { id: id.as_str().into(), since: Instant::now(), taken: false });
    drop(pending);
    let transports = json!([{ "transport": "WebSockets", "transferFormats": ["Text", "Binary"] }]);
    let mut answer = json!({ "negotiateVersion": version, "connectionId": id, "availableTransports": transports });
    if version > 0 {
        answer["connectionToken"] = Value::String(token);
    }
    Json(answer).into_response()
}

/// Starts the WebSocket transport (reference 1.1, 1.2).
async fn connect(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(fault): ConnectInfo<Fault>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    if shared.refusing.load(Relaxed) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let Ok(upgrade) = upgrade else {
        let is_events = headers.get(header::ACCEPT).is_some_and(|accept| accept.as_bytes() == b"text/event-stream");
        return plain(
            StatusCode::NOT_FOUND,
            if is_events {
                "ServerSentEvents transport not supported by this end point type"
            } else {
                "LongPolling transport not supported by this end point type"
            },
        );
    };
    let token = query_value(&query, "id").filter(|token| !token.is_empty()).map(str::to_owned);
    let id = match &token {
        // `skipNegotiation`: a fresh connection.
        None => match random_id() {
            Ok(id) => id.as_str().into(),
            Err(_) => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        },
        Some(token) => match lock(&shared.pending).get_mut(token) {
            Some(pending) if pending.taken => return plain(StatusCode::CONFLICT, ""),
            Some(pending) if pending.since.elapsed() < DISCONNECT_TIMEOUT => {
                pending.taken = true;
                pending.id.clone()
            }
            _ => return plain(StatusCode::NOT_FOUND, "No Connection with that ID"),
        },
    };
    let user = user_of(&query, &headers);
    upgrade
        .max_message_size(WEBSOCKET_BYTES_MAX)
        .max_frame_size(WEBSOCKET_BYTES_MAX)
        .read_buffer_size(WEBSOCKET_READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .on_upgrade(async move |socket| {
            let mut connections = lock(&shared.connections);
            // Ended ones are taken out here, where new ones come in.
            while connections.try_join_next().is_some() {}
            let task = connection::run(shared.clone(), id, user, fault, socket);
            let shared = shared.clone();
            connections.spawn(async move {
                task.await;
                if let Some(token) = token {
                    lock(&shared.pending).remove(&token);
                }
            });
        })
}

/// The user of a direct client, for SendToUsers: the `sub` or `nameid` claim of its bearer token. The signature is not checked: this
/// server is for tests and protects nothing.
fn user_of(query: &[(String, String)], headers: &HeaderMap) -> Option<String> {
    let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let token = header.or_else(|| query_value(query, "access_token"))?;
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?).ok()?;
    ["sub", "nameid"].into_iter().find_map(|claim| claims[claim].as_str().map(str::to_owned))
}

/// Any origin may call, with credentials, as the C# demo allows (contract 1.2).
async fn cross_origin(request: Request, next: Next) -> Response {
    let Some(origin) = request.headers().get(header::ORIGIN).cloned() else { return next.run(request).await };
    let preflight = request.method() == Method::OPTIONS;
    let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let mut response = if preflight { StatusCode::NO_CONTENT.into_response() } else { next.run(request).await };
    let mut set = |name: HeaderName, value: HeaderValue| {
        response.headers_mut().insert(name, value);
    };
    set(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    set(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    set(header::VARY, HeaderValue::from_static("Origin"));
    if preflight {
        set(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE"));
        if let Some(asked) = asked {
            set(header::ACCESS_CONTROL_ALLOW_HEADERS, asked);
        }
    }
    response
}
