//! `/__double`: what tests may see and do that no real app server offers. There is no password; it is for loopback.
//!
//! ```text
//! GET  /__double            counters and how many there are          GET  /__double/bindings   every binding
//! GET  /__double/observer   what an Observer was told
//! POST /__double/slow       {"vm_id":"EchoVM","ms":200} or {"lane":"<id>","ms":200}: what matches holds up its lane; 0 ends it
//! POST /__double/refuse     {"refuse":true}: no new connections      POST /__double/close      {"lane":"<id>"}: cuts it; 404 if gone
//! ```
use super::Shared;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Json;
use axum::routing::{get, post};
use serde::Deserialize;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

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

impl Slow {
    pub fn concerns(&self, lane: &str, vm_id: Option<&str>) -> bool {
        self.vm_id.as_deref().is_none_or(|id| Some(id) == vm_id) && self.lane.as_deref().is_none_or(|id| id == lane)
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

#[derive(Deserialize)]
struct Close {
    lane: String,
}

pub fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/__double", get(async |State(shared): State<Arc<Shared>>| Json(shared.hub().snapshot())))
        .route(
            "/__double/bindings",
            get(async |State(shared): State<Arc<Shared>>| Json(shared.hub().binding_snapshots())),
        )
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
            "/__double/close",
            post(
                async |State(shared): State<Arc<Shared>>, Json(Close { lane }): Json<Close>| {
                    if shared.hub().cut(&lane) { StatusCode::OK } else { StatusCode::NOT_FOUND }
                },
            ),
        )
}
