//! The demonstration's pages: `/` shows the whole, `/live` is HelloWorldVM edited live and a chat room, over whichever node the visitor
//! chooses. The first has the second in it, once for each node.
//!
//! They are served from a port of their own, so that their origin differs from the nodes' as it would behind a load balancer. No
//! third-party code, no build step, nothing fetched from elsewhere: the scripts speak SignalR themselves (`page/client.js`).
use axum::Router;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use std::net::SocketAddr;

/// Scripts and styles are the page's own. The live pictures are framed that the nodes' admin endpoints serve; nobody frames this page,
/// or a visitor could be brought to press its buttons unseen.
const INDEX_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Only the nodes are called elsewhere.
const LIVE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src *; frame-ancestors 'self'; base-uri 'none'; form-action 'none'";

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// The pages and their files. `nodes` are the base URLs a visitor can choose from, e.g. `http://127.0.0.1:5000`, the first is the
/// default; `admins` serve the live picture.
pub fn routes(admins: &[SocketAddr], nodes: Vec<String>) -> Router {
    let frames: String = admins.iter().map(|admin| format!(" http://{admin}")).collect();
    let index_policy = format!("{INDEX_POLICY}; frame-src 'self'{frames}");
    let html = |policy: String, text: &'static str| {
        let headers =
            [(header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()), (header::CONTENT_SECURITY_POLICY, policy)];
        get(async move || (headers, text))
    };
    let file = |kind: &'static str, text: &'static str| {
        get(async move || ([(header::CONTENT_TYPE, kind)], text).into_response())
    };
    Router::new()
        .route("/", html(index_policy, include_str!("page/index.html")))
        .route("/common.css", file(STYLE, include_str!("page/common.css")))
        .route("/index.css", file(STYLE, include_str!("page/index.css")))
        .route("/index.js", file(SCRIPT, include_str!("page/index.js")))
        .route("/live", html(LIVE_POLICY.to_owned(), include_str!("page/live.html")))
        .route("/live.css", file(STYLE, include_str!("page/live.css")))
        .route("/live.js", file(SCRIPT, include_str!("page/live.js")))
        .route("/client.js", file(SCRIPT, include_str!("page/client.js")))
        .route("/nodes.json", get(async move || Json(nodes)))
        .layer(axum::middleware::map_response(async |mut response: Response| {
            let headers = response.headers_mut();
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            headers.insert(HeaderName::from_static("referrer-policy"), HeaderValue::from_static("no-referrer"));
            response
        }))
}
