//! What can be tried without a dotNetify installation: an app server (`app`), faithful to the upstream contract, and a demonstration of
//! the whole: two nodes, the app server, load, and a page that shows all of it and lets a visitor stop and start its parts.
//!
//! ```text
//! page    files of the page, each with its policy        part    what can be stopped and started again
//! api     what the page asks for and orders              loads   one load of the load tester for each node
//! ```
//!
//! All of it is one process, so a part that is stopped is a part that ends in order, as on SIGTERM. Parts keep their addresses.
//!
//! `app` is also the double that the integration tests run against.

mod api;
pub mod app;
mod loads;
mod page;
mod part;

use crate::config::{Config, Key, Machine, RunFlags};
use crate::control::{self, Node, health};
use crate::limits::{DEMO_CLIENTS_MAX, DEMO_PORTS, DEMO_START_TRIES};
use crate::load::Profile;
use app::{AppOptions, AppServer};
use clap::Args;
use loads::{Loads, Wanted};
use part::Part;
use std::future::IntoFuture;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use url::Url;

/// Nodes of the demonstration: enough to show that clients of different nodes share view models.
const NODES: usize = 2;
/// How long a node may take to say whether it is ready.
const READY_PATIENCE: Duration = Duration::from_secs(1);
/// Where free ports are looked for. They are below those that the kernel gives to outgoing connections: a node that is stopped finds
/// its own free when it is started again.
const NODE_PORTS: u16 = 5000;
const APP_PORTS: u16 = 6100;
const ADMIN_PORTS: u16 = 9090;

/// Options of `signalring demo`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Address of the demo page
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Clients of the load at the start, half of them on each node; 0: none. The page can change it
    #[arg(short, long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=i64::from(DEMO_CLIENTS_MAX)))]
    pub clients: u32,
    /// What the load's clients do, as in signalring load
    #[arg(short, long, value_enum, default_value_t = Profile::Echo, ignore_case = true)]
    pub profile: Profile,
}

/// `signalring demo`: until SIGINT or SIGTERM.
pub fn run(options: Options) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let listener = TcpListener::bind(options.listen)
        .map_err(|error| in_words(error, &format!("cannot listen on {} for the demo page", options.listen)))?;
    listener.set_nonblocking(true)?;
    let page = listener.local_addr()?;
    let demonstration = Arc::new(runtime.block_on(Demonstration::start(page, &options))?);
    let _entered = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let node_urls = demonstration.nodes.iter().map(Part::url).collect();
    let router = api::routes(demonstration.clone()).merge(page::routes(&demonstration.admins, node_urls));
    let server = runtime.spawn(axum::serve(listener, router).into_future());

    println!("Open http://{page}/ for the demonstration: the live picture, a page on each node, and the load.\n");
    println!("app server   {}", demonstration.app.url());
    for (index, (node, admin)) in demonstration.nodes.iter().zip(&demonstration.admins).enumerate() {
        println!(
            "node {}       {}   picture http://{admin}/picture   metrics http://{admin}/metrics",
            index + 1,
            node.url()
        );
    }
    println!("\nThe pages alone, one on each node, sharing one chat room:");
    for node in &demonstration.nodes {
        println!("  http://{page}/live?node={}", node.url());
    }
    println!("\nCtrl+C ends it.");

    control::wait_for_signal()?;
    // From outside to inside: nobody orders anything any more, the load ends, then who served it.
    server.abort();
    runtime.block_on(demonstration.end());
    Ok(())
}

/// Everything that runs, and can be stopped and started again.
struct Demonstration {
    page: SocketAddr,
    nodes: Vec<Part<Node>>,
    /// The nodes' admin endpoints.
    admins: Vec<SocketAddr>,
    app: Part<AppServer>,
    loads: Loads,
    /// One change at a time.
    changing: Mutex<()>,
}

impl Demonstration {
    /// `page`: where the demo page is served. On an error everything ends that had begun.
    async fn start(page: SocketAddr, options: &Options) -> io::Result<Demonstration> {
        let mut tries = DEMO_START_TRIES;
        loop {
            tries -= 1;
            match Demonstration::try_start(page, options).await {
                // Somebody took a port between its choice and its use, most likely another demonstration.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
                started => return started,
            }
        }
    }

    async fn try_start(page: SocketAddr, options: &Options) -> io::Result<Demonstration> {
        let free = |from| (0..NODES).map(|_| free_port(from)).collect::<io::Result<Vec<TcpListener>>>();
        // Held until all are chosen, or one would be chosen twice.
        let (nodes, admins, app) = (free(NODE_PORTS)?, free(ADMIN_PORTS)?, free_port(APP_PORTS)?);
        let addresses = |listeners: &[TcpListener]| {
            listeners.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<SocketAddr>>>()
        };
        let (node_addresses, admin_addresses, app_address) =
            (addresses(&nodes)?, addresses(&admins)?, app.local_addr()?);
        drop((nodes, admins, app));
        let urls = node_addresses.iter().map(|address| parsed(&format!("http://{address}")));
        let urls = urls.collect::<io::Result<Vec<Url>>>()?;
        let asked = admin_addresses.clone();
        let is_ready = move |node: usize| health::ask(&format!("http://{}/ready", asked[node]), READY_PATIENCE).is_ok();
        let wanted = Wanted { profile: options.profile, clients: options.clients };
        let demonstration = Demonstration {
            page,
            nodes: node_addresses.into_iter().map(Part::new).collect(),
            admins: admin_addresses,
            app: Part::new(app_address),
            loads: Loads::start(urls, wanted, is_ready)?,
            changing: Mutex::default(),
        };
        let started = demonstration.start_all().await;
        if let Err(error) = started {
            demonstration.end().await;
            return Err(error);
        }
        Ok(demonstration)
    }

    async fn start_all(&self) -> io::Result<()> {
        self.start_app().await?;
        for node in 0..NODES {
            self.start_node(node).await?;
        }
        Ok(())
    }

    async fn start_app(&self) -> io::Result<()> {
        let _one = self.changing.lock().await;
        let address = self.app.address;
        let bound = async move {
            let bound = app::bind(address, AppOptions::default()).await;
            bound.map_err(|error| in_words(error, &format!("cannot listen on {address} for the app server")))
        };
        self.app.start(bound).await
    }

    async fn stop_app(&self) {
        let _one = self.changing.lock().await;
        self.app.stop(AppServer::shutdown).await;
    }

    /// The node with this index.
    async fn start_node(&self, index: usize) -> io::Result<()> {
        let _one = self.changing.lock().await;
        let config = self.config(index)?;
        let started = async {
            let started = tokio::task::spawn_blocking(move || Node::start(config)).await;
            started.unwrap_or_else(|panic| Err(io::Error::other(panic)))
        };
        self.nodes[index].start(started).await?;
        self.introduce().await;
        Ok(())
    }

    /// Has every node look at the others once, so that its picture knows the name of one that is stopped before anybody looked.
    async fn introduce(&self) {
        for admin in &self.admins {
            let picture = format!("http://{admin}/api/picture?clients=0");
            // What is stopped does not answer.
            let _ = tokio::task::spawn_blocking(move || health::ask(&picture, READY_PATIENCE)).await;
        }
    }

    async fn stop_node(&self, index: usize) {
        let _one = self.changing.lock().await;
        self.nodes[index]
            .stop(async |node| {
                // A panic of the node's has been printed; the node is gone either way.
                let _ = tokio::task::spawn_blocking(move || node.stop()).await;
            })
            .await;
    }

    async fn end(&self) {
        self.loads.end();
        for node in 0..NODES {
            self.stop_node(node).await;
        }
        self.stop_app().await;
    }

    fn config(&self, index: usize) -> io::Result<Config> {
        let mut flags = RunFlags::default()
            .with(Key::Listen, self.nodes[index].address.to_string())
            .with(Key::Admin, self.admins[index].to_string())
            .with(Key::NodeName, format!("node-{}", index + 1))
            .with(Key::Shards, "1")
            .with(Key::Url, self.app.url())
            .with(Key::AllowedOrigins, format!("http://{}", self.page));
        if self.page.ip().is_loopback() {
            // The same page by its other name.
            flags = flags.with(Key::AllowedOrigins, format!("http://localhost:{}", self.page.port()));
        }
        for (_, peer) in self.admins.iter().enumerate().filter(|(other, _)| *other != index) {
            flags = flags.with(Key::Peers, peer.to_string());
        }
        let mut config = Config::resolve(None, std::iter::empty(), &flags, &Machine::probe())
            .map_err(|faults| io::Error::new(io::ErrorKind::InvalidInput, faults.to_string()))?;
        // What the picture calls it.
        config.upstreams[0].name = "app-server".into();
        Ok(config)
    }
}

/// The first port from `from` on that nobody has.
fn free_port(from: u16) -> io::Result<TcpListener> {
    let mut ports = from..from + DEMO_PORTS;
    loop {
        let Some(port) = ports.next() else {
            let text = format!("no port of 127.0.0.1 from {from} to {} is free", from + DEMO_PORTS - 1);
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        };
        match TcpListener::bind(("127.0.0.1", port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
}

fn parsed(url: &str) -> io::Result<Url> {
    Url::parse(url).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, format!("{url}: {error}")))
}

fn in_words(error: io::Error, doing: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{doing}: {error}"))
}
