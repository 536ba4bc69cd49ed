//! The demo page: HelloWorldVM edited live and a chat room, over whichever node the visitor chooses.
//!
//! It is served from its own port, so that its origin differs from the nodes' as it would behind a load balancer. No third-party code,
//! no build step, nothing fetched from elsewhere: the page's scripts speak SignalR themselves (`page/client.js`).
use axum::Router;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use std::future::IntoFuture;
use std::io;
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const INDEX: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/style.css");
const CLIENT: &str = include_str!("page/client.js");
const PAGE: &str = include_str!("page/page.js");

/// Scripts and styles are the page's own; only the nodes are called elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src *; base-uri 'none'; form-action 'none'";

/// The page and its files. `nodes` are the base URLs a visitor can choose from, e.g. `http://127.0.0.1:5000`; the first is the default.
pub fn router(nodes: Vec<String>) -> Router {
    let file = |kind: &'static str, text: &'static str| {
        get(async move || ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text).into_response())
    };
    Router::new()
        .route("/", file("text/html; charset=utf-8", INDEX))
        .route("/style.css", file("text/css; charset=utf-8", STYLE))
        .route("/client.js", file("text/javascript; charset=utf-8", CLIENT))
        .route("/page.js", file("text/javascript; charset=utf-8", PAGE))
        .route("/nodes.json", get(async move || Json(nodes)))
        .layer(axum::middleware::map_response(async |mut response: axum::response::Response| {
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            headers.insert(HeaderName::from_static("referrer-policy"), HeaderValue::from_static("no-referrer"));
            response
        }))
}

/// A served page. Dropping it stops it.
pub struct PageServer {
    pub local_addr: SocketAddr,
    task: JoinHandle<()>,
}

/// Serves on the current tokio runtime.
pub async fn serve(listener: TcpListener, nodes: Vec<String>) -> io::Result<PageServer> {
    let local_addr = listener.local_addr()?;
    let serve = axum::serve(listener, router(nodes)).into_future();
    let task = tokio::spawn(async move {
        if let Err(error) = serve.await {
            tracing::error!(%error, "the demo page is served no longer");
        }
    });
    tracing::info!(%local_addr, "demo page listens");
    Ok(PageServer { local_addr, task })
}

impl PageServer {
    /// The origin that the nodes have to allow.
    pub fn origin(&self) -> String {
        format!("http://{}", self.local_addr)
    }
}

impl Drop for PageServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
