//! What can be tried without a dotNetify installation: an app server (`app`), faithful to the upstream contract, and a page (`page`)
//! that shows two tabs on different nodes talking to each other. `run` starts all of it in one process.
//!
//! `app` is also the double that the integration tests run against.

pub mod app;
pub mod page;

use crate::config::{Config, Key, Machine, RunFlags};
use crate::control::{self, Node};
use std::io;
use std::net::SocketAddr;

/// Nodes of the demonstration: enough to show that clients of different nodes share view models.
const NODES: usize = 2;

/// `signalring demo`: an app server, two nodes and the page, until SIGINT or SIGTERM. Only the page has a fixed address.
pub fn run(page: SocketAddr) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let any_port: SocketAddr = ([127, 0, 0, 1], 0).into();
    let app = runtime.block_on(app::bind(any_port, app::AppOptions::default()))?;
    // The page's address is needed for the nodes, the nodes' for the page: its port is opened first, served last.
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind(page))
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {page} for the demo page: {error}")))?;
    let page = listener.local_addr()?;
    let nodes = (0..NODES).map(|_| start_node(&app.url(), page)).collect::<io::Result<Vec<Node>>>()?;
    let urls: Vec<String> = nodes.iter().map(|node| node.listening()[0].to_string()).collect();
    let server = runtime.block_on(page::serve(listener, urls.clone()))?;

    println!("app server   {}", app.url());
    for (index, (node, url)) in nodes.iter().zip(&urls).enumerate() {
        println!("node {}       {url}   metrics http://{}/metrics", index + 1, node.admin());
    }
    println!("\nOpen these two pages side by side: one on each node, sharing one chat room.");
    for url in &urls {
        println!("  {}/?node={url}", server.origin());
    }
    println!("\nCtrl+C ends it.");

    control::wait_for_signal(|| {})?;
    drop(server);
    nodes.into_iter().for_each(Node::stop);
    runtime.block_on(app.shutdown());
    Ok(())
}

fn start_node(app_server: &str, page: SocketAddr) -> io::Result<Node> {
    let mut flags = RunFlags::default()
        .with(Key::Listen, "127.0.0.1:0")
        .with(Key::Admin, "127.0.0.1:0")
        .with(Key::Shards, "1")
        .with(Key::Url, app_server)
        .with(Key::AllowedOrigins, format!("http://{page}"));
    if page.ip().is_loopback() {
        // The same page by its other name.
        flags = flags.with(Key::AllowedOrigins, format!("http://localhost:{}", page.port()));
    }
    let config = Config::resolve(None, std::iter::empty(), &flags, &Machine::probe())
        .map_err(|faults| io::Error::new(io::ErrorKind::InvalidInput, faults.to_string()))?;
    Node::start(config)
}
