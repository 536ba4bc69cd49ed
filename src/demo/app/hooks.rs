//! `/__double`: what tests may see and do that no real app server offers. There is no password; it is for loopback.
//!
//! ```text
//! GET  /__double            counters and how many there are
//! GET  /__double/bindings   every binding
//! GET  /__double/lanes      every lane, with the clients that are bound to it
//! GET  /__double/observer   what an Observer was told
//! POST /__double/refuse     {"refuse":true}: no new connections
//! POST /__double/slow       {"vm_id":"EchoVM","ms":200} or {"lane":"<id>","ms":200}: what matches holds up its lane; 0 ends it
//! POST /__double/hold       {"lane":"<id>","hold":true}: it is stuck in a hub method and keeps pinging; false lets it go on
//! POST /__double/fail       {"vm_id":"EchoVM","lane":"<id>","times":1}: what matches fails, with an error completion
//! POST /__double/close      {"lane":"<id>","how":"cut"}: ends it; also "reset" and "goodbye"
//! POST /__double/freeze     {"lane":"<id>","notice_ms":30000}: half-open; this side notices so much later
//! ```
//!
//! Where `lane` is left out all lanes are meant. `hold`, `close` and `freeze` answer with how many lanes they found, 404 if none.
use super::Shared;
use super::bindings::ConnectionId;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Json;
use axum::routing::{get, post};
use serde::Deserialize;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// When an app server notices a connection that died in silence: `ClientTimeoutInterval` (contract 4.4).
const NOTICE_MS_DEFAULT: u64 = 30_000;

/// What is made slow: commands for view models of this id, everything on this lane, or what is both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slow {
    #[serde(default)]
    pub vm_id: Option<String>,
    /// The lane's connection id here.
    #[serde(default)]
    pub lane: Option<String>,
    /// 0 takes it back.
    pub ms: u64,
}

/// Which invocations fail, and how many of them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fail {
    #[serde(default)]
    pub vm_id: Option<String>,
    #[serde(default)]
    pub lane: Option<String>,
    pub times: u64,
}

impl Fail {
    pub fn concerns(&self, lane: &str, vm_id: Option<&str>) -> bool {
        is_about(self.vm_id.as_deref(), vm_id) && is_about(self.lane.as_deref(), Some(lane))
    }
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// A WebSocket Close, without one of SignalR's.
    #[default]
    Cut,
    /// A TCP reset, which loses what is on its way.
    Reset,
    /// SignalR's Close with `allowReconnect`, as when the app server stops (contract 4.5).
    Goodbye,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Close {
    #[serde(default)]
    pub lane: Option<String>,
    #[serde(default)]
    pub how: How,
}

/// The connection is half-open from now on: nothing is read, written or noticed here, until so much later the app server finds out,
/// and disconnects whom the lane served last (contract 4.4).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Freeze {
    #[serde(default)]
    pub lane: Option<String>,
    #[serde(default = "notice_ms_default")]
    pub notice_ms: u64,
}

fn notice_ms_default() -> u64 {
    NOTICE_MS_DEFAULT
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    #[serde(default)]
    pub lane: Option<String>,
    pub hold: bool,
}

/// Nothing said means everything.
fn is_about(asked: Option<&str>, found: Option<&str>) -> bool {
    asked.is_none_or(|asked| Some(asked) == found)
}

impl Slow {
    pub fn concerns(&self, lane: &str, vm_id: Option<&str>) -> bool {
        is_about(self.vm_id.as_deref(), vm_id) && is_about(self.lane.as_deref(), Some(lane))
    }

    pub fn delay(&self) -> Duration {
        Duration::from_millis(self.ms).min(super::vm::WORK_MAX)
    }

    pub fn is_about_the_same_as(&self, other: &Slow) -> bool {
        (&self.vm_id, &self.lane) == (&other.vm_id, &other.lane)
    }
}

#[derive(Deserialize)]
struct Refuse {
    refuse: bool,
}

impl Shared {
    pub fn close(&self, close: &Close) -> usize {
        self.hub().close(close.lane.as_deref(), close.how)
    }

    /// Must be called within the server's runtime: who notices late is a task.
    pub fn freeze(&self, freeze: &Freeze) -> usize {
        let faults = self.hub().faults(freeze.lane.as_deref());
        let notice = Duration::from_millis(freeze.notice_ms);
        for fault in &faults {
            let fault = fault.clone();
            fault.freeze();
            tokio::spawn(async move {
                tokio::time::sleep(notice).await;
                fault.reset();
            });
        }
        faults.len()
    }

    pub fn hold(&self, hold: &Hold) -> usize {
        // Who is held may be gone from the hub meanwhile: what it was sent is still processed when it is let go.
        let ids: Vec<ConnectionId> = match &hold.lane {
            Some(lane) if !hold.hold => vec![lane.as_str().into()],
            None if !hold.hold => self.held.borrow().iter().cloned().collect(),
            lane => self.hub().ids(lane.as_deref()),
        };
        let mut found = 0;
        self.held.send_modify(|held| {
            for id in ids {
                found += usize::from(if hold.hold { held.insert(id) } else { held.remove(&id) });
            }
        });
        found
    }
}

/// How many were found, 404 if none.
fn found(count: usize) -> (StatusCode, Json<usize>) {
    (if count > 0 { StatusCode::OK } else { StatusCode::NOT_FOUND }, Json(count))
}

pub fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/__double", get(async |State(shared): State<Arc<Shared>>| Json(shared.hub().snapshot())))
        .route(
            "/__double/bindings",
            get(async |State(shared): State<Arc<Shared>>| Json(shared.hub().binding_snapshots())),
        )
        .route("/__double/lanes", get(async |State(shared): State<Arc<Shared>>| Json(shared.hub().lane_snapshots())))
        .route(
            "/__double/observer",
            get(async |State(shared): State<Arc<Shared>>| {
                let observed = shared.hub().observed();
                observed.map(Json).ok_or((StatusCode::NOT_FOUND, "this is no Observer: start it with --observer\n"))
            }),
        )
        .route(
            "/__double/slow",
            post(async |State(shared): State<Arc<Shared>>, Json(slow): Json<Slow>| shared.hub().slow_down(slow)),
        )
        .route(
            "/__double/refuse",
            post(async |State(shared): State<Arc<Shared>>, Json(asked): Json<Refuse>| {
                shared.refusing.store(asked.refuse, Relaxed);
            }),
        )
        .route(
            "/__double/fail",
            post(async |State(shared): State<Arc<Shared>>, Json(fail): Json<Fail>| shared.hub().fail(fail)),
        )
        .route(
            "/__double/hold",
            post(async |State(shared): State<Arc<Shared>>, Json(hold): Json<Hold>| found(shared.hold(&hold))),
        )
        .route(
            "/__double/freeze",
            post(async |State(shared): State<Arc<Shared>>, Json(freeze): Json<Freeze>| found(shared.freeze(&freeze))),
        )
        .route(
            "/__double/close",
            post(async |State(shared): State<Arc<Shared>>, Json(close): Json<Close>| found(shared.close(&close))),
        )
}
