//! What the demonstration's page asks for, and what it orders.
//!
//! ```text
//! GET  api/state                        {"nodes":[PART,...],"app_server":PART,"load":LOAD}
//! POST api/node/N/stop, api/node/N/start      N from 1 on
//! POST api/app/stop, api/app/start
//! POST api/load?clients=N&profile=P     begins or changes the load; without a profile it stays what it is
//! POST api/load/stop
//!
//! PART  {"state":"running","url":"http://127.0.0.1:5000","trouble":null}    starting, running, stopping, stopped; a node has its "admin" too
//! LOAD  {"profile":"echo","clients":200,"trouble":null,"nodes":[...]}       `loads::Shown`
//! ```
//!
//! An order is answered with the state after it, an order that changes nothing too; or with a sentence that says what is wrong.
//!
//! There is no password, and any page that the visitor has open elsewhere can have the browser send a POST to this machine. It cannot
//! choose the `Origin` that goes with it, which has to be the demo page's. Nor can it be the demo page's by having a name resolve to this
//! machine (DNS rebinding): only IP addresses and `localhost` are answered.
use super::loads::{self, Wanted};
use super::{Demonstration, part};
use crate::limits::DEMO_CLIENTS_MAX;
use crate::load::Profile;
use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

type Stage = State<Arc<Demonstration>>;
type Answer = Result<Json<StateShown>, (StatusCode, String)>;

#[derive(Serialize)]
struct StateShown {
    nodes: Vec<NodeShown>,
    app_server: part::Shown,
    load: loads::Shown,
}

#[derive(Serialize)]
struct NodeShown {
    #[serde(flatten)]
    part: part::Shown,
    admin: String,
}

#[derive(Deserialize)]
struct Load {
    clients: Option<String>,
    profile: Option<String>,
}

pub fn routes(demonstration: Arc<Demonstration>) -> Router {
    Router::new()
        .route("/api/state", get(async |State(demonstration): Stage| Json(state(&demonstration))))
        .route("/api/node/{node}/{order}", post(node))
        .route("/api/app/{order}", post(app))
        .route("/api/load", post(load))
        .route("/api/load/stop", post(stop_load))
        .layer(middleware::from_fn(guard))
        .with_state(demonstration)
}

fn state(demonstration: &Demonstration) -> StateShown {
    let nodes = demonstration.nodes.iter().zip(&demonstration.admins);
    StateShown {
        nodes: nodes.map(|(node, admin)| NodeShown { part: node.shown(), admin: format!("http://{admin}") }).collect(),
        app_server: demonstration.app.shown(),
        load: demonstration.loads.shown(),
    }
}

async fn node(State(demonstration): Stage, Path((node, order)): Path<(String, String)>) -> Answer {
    let count = demonstration.nodes.len();
    let node = node.parse::<usize>().ok().filter(|node| (1..=count).contains(node));
    let node = node.ok_or_else(|| wrong(format!("There are nodes 1 to {count}.")))? - 1;
    let (of, starts) = (demonstration.clone(), starts(&order, "A node")?);
    done(demonstration, async move {
        if starts {
            return of.start_node(node).await;
        }
        of.stop_node(node).await;
        Ok(())
    })
    .await
}

async fn app(State(demonstration): Stage, Path(order): Path<String>) -> Answer {
    let (of, starts) = (demonstration.clone(), starts(&order, "The app server")?);
    done(demonstration, async move {
        if starts {
            return of.start_app().await;
        }
        of.stop_app().await;
        Ok(())
    })
    .await
}

/// Or else it stops.
fn starts(order: &str, who: &str) -> Result<bool, (StatusCode, String)> {
    match order {
        "start" => Ok(true),
        "stop" => Ok(false),
        _ => Err(wrong(format!("{who} can start and stop."))),
    }
}

async fn load(State(demonstration): Stage, Query(Load { clients, profile }): Query<Load>) -> Answer {
    let clients = clients.and_then(|clients| clients.parse().ok()).filter(|clients| *clients <= DEMO_CLIENTS_MAX);
    let clients = clients.ok_or_else(|| wrong(format!("clients is a number from 0 to {DEMO_CLIENTS_MAX}.")))?;
    let profile = match profile {
        None => demonstration.loads.shown().profile,
        Some(name) => Profile::from_str(&name, true).map_err(|_| {
            let names = Profile::value_variants().iter().filter_map(|profile| profile.to_possible_value());
            let names: Vec<String> = names.map(|name| name.get_name().to_owned()).collect();
            wrong(format!("profile is one of {}.", names.join(", ")))
        })?,
    };
    demonstration.loads.want(Wanted { profile, clients });
    Ok(Json(state(&demonstration)))
}

async fn stop_load(State(demonstration): Stage) -> Answer {
    let profile = demonstration.loads.shown().profile;
    demonstration.loads.want(Wanted { profile, clients: 0 });
    Ok(Json(state(&demonstration)))
}

/// Makes a change to its end, even if whoever ordered it does not wait.
async fn done(
    demonstration: Arc<Demonstration>,
    change: impl Future<Output = std::io::Result<()>> + Send + 'static,
) -> Answer {
    let failed = |text: String| (StatusCode::INTERNAL_SERVER_ERROR, text);
    match tokio::spawn(change).await {
        Ok(Ok(())) => Ok(Json(state(&demonstration))),
        Ok(Err(error)) => Err(failed(format!("It does not start: {error}"))),
        Err(panic) => Err(failed(format!("It failed: {panic}"))),
    }
}

fn wrong(text: impl Into<String>) -> (StatusCode, String) {
    (StatusCode::BAD_REQUEST, text.into())
}

async fn guard(request: Request, next: Next) -> Response {
    match refusal(request.method(), request.headers()) {
        Some(refusal) => refusal.into_response(),
        None => {
            let mut response = next.run(request).await;
            response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
            response
        }
    }
}

fn refusal(method: &Method, headers: &HeaderMap) -> Option<(StatusCode, String)> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    if !is_own_name(host) {
        let words = "Ask for the demonstration by IP address or as localhost.\n";
        return Some((StatusCode::MISDIRECTED_REQUEST, words.into()));
    }
    let own = format!("http://{host}");
    if method != Method::GET && text(header::ORIGIN) != Some(&own) {
        let words = format!(
            "Only the demonstration's own page may order this. A program says so, too: it sends the header Origin: {own}\n"
        );
        return Some((StatusCode::FORBIDDEN, words));
    }
    None
}

/// A name that no stranger can have a page under.
fn is_own_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    host.parse::<SocketAddr>().is_ok() || name.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_page_itself_may_order() {
        let refused = |method: Method, host: &'static str, origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, header::HeaderValue::from_static(host));
            headers.extend(origin.map(|origin| (header::ORIGIN, header::HeaderValue::from_static(origin))));
            refusal(&method, &headers).map(|(status, _)| status.as_u16())
        };
        let own = "127.0.0.1:8080";
        for (host, origin) in [
            (own, "http://127.0.0.1:8080"),
            ("localhost:8080", "http://localhost:8080"),
            ("[::1]:8080", "http://[::1]:8080"),
            ("192.0.2.1", "http://192.0.2.1"),
        ] {
            assert_eq!(refused(Method::POST, host, Some(origin)), None, "{host}");
        }
        for origin in [
            None,
            Some("null"),
            Some(""),
            Some("http://evil.example"),
            Some("http://127.0.0.1:8081"),
            Some("https://127.0.0.1:8080"),
            Some("http://localhost:8080"),
        ] {
            assert_eq!(refused(Method::POST, own, origin), Some(403), "{origin:?}");
            assert_eq!(refused(Method::GET, own, origin), None, "{origin:?}: it only looks");
        }
        // A name that somebody made resolve to this machine.
        for host in ["evil.example:8080", "", "127.0.0.1.evil.example", "localhost.evil.example:80", "page"] {
            assert_eq!(refused(Method::POST, host, Some("http://evil.example:8080")), Some(421), "{host}");
            assert_eq!(refused(Method::GET, host, None), Some(421), "{host}");
        }
    }
}
