//! How a node ends and changes while clients are connected: a drain, a second signal, its configuration read again, another process that
//! takes over. On real sockets, in front of the app server's double.

#[path = "common/certificates.rs"]
mod certificates;
mod common;
#[path = "common/configured.rs"]
mod configured;

use certificates::{Authority, Folder};
use common::web::{Events, Polling, REQUEST, Web};
use common::ws::{RECORD_END, Socket, record};
use common::{App, Node, PATIENCE, Process, exchange, get, wait_for};
use configured::Configured;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A client with a live view model.
fn client(address: SocketAddr) -> Socket {
    let mut socket = Socket::connect(address);
    socket.send(&record(std::str::from_utf8(REQUEST).unwrap().trim_end_matches(RECORD_END)));
    socket.response("the state", |data| data.get("FullName").is_some());
    socket
}

/// Uses the client until the node sends it away; when that was. Everything is answered up to then.
fn serves_until_sent_away(mut socket: Socket, number: usize) -> Instant {
    for round in 0.. {
        let name = format!("c{number}r{round}");
        let update = common::web::update(&name);
        socket.send(&record(std::str::from_utf8(&update).unwrap().trim_end_matches(RECORD_END)));
        loop {
            let record = socket.record("an answer, or the Close");
            if record["type"] == 7 {
                assert_eq!(record["allowReconnect"], true, "{record}");
                let at = Instant::now();
                assert_eq!(socket.closed("its goodbye"), Some(1000));
                return at;
            }
            if record.to_string().contains(&name) {
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    unreachable!("the node ends before the rounds do")
}

fn busy(address: SocketAddr, count: usize) -> Vec<JoinHandle<Instant>> {
    let clients: Vec<Socket> = (0..count).map(|_| client(address)).collect();
    let serve = |(number, socket)| std::thread::spawn(move || serves_until_sent_away(socket, number));
    clients.into_iter().enumerate().map(serve).collect()
}

fn nobody_upstream(app: &App) {
    wait_for("nobody upstream", PATIENCE, || {
        (app.figure("bindings") == 0 && app.figure("view_models") == 0 && app.figure("controllers") == 0).then_some(())
    });
    assert_eq!((app.figure("leaks"), app.figure("dropped_updates")), (0, 0), "{}", app.double());
}

fn ends_well(node: &mut Node, within: Duration) {
    let status = node.process.wait(within).unwrap_or_else(|| panic!("the node ends within {within:?}"));
    assert!(status.success(), "{status}");
}

#[test]
fn a_drain_sends_clients_away_one_by_one_and_serves_them_until_then() {
    const CLIENTS: usize = 60;
    let app = App::start();
    let mut node = Node::start(&app, &["--shards", "2", "--drain-delay", "2s", "--drain-window", "3s"]);
    let clients = busy(node.address, CLIENTS);
    let mut idle = Web::connect(node.address);
    assert_eq!(idle.ask("POST /dotnetify/negotiate", "", b"").status, 200);
    let mut events = Events::connect(node.address);
    let mut polling = Polling::connect(node.address);

    let told = Instant::now();
    node.process.signal("TERM");
    wait_for("/ready to say so", PATIENCE, || {
        let reply = get(node.admin, "/ready");
        (reply.status == 503 && reply.body == "stopping\n").then_some(())
    });
    assert!(told.elapsed() < Duration::from_secs(2), "at once, and not after the delay");
    assert_eq!(exchange(node.address, NEGOTIATE, Duration::ZERO).status, 200, "in the delay all is as before");

    // Who is new is told to come back, also on a connection that was there.
    assert_eq!(get(node.admin, "/health").status, 200);
    let refused = wait_for("the end of the delay", PATIENCE, || {
        let reply = exchange(node.address, NEGOTIATE, Duration::ZERO);
        (reply.status == 503).then_some(reply)
    });
    assert!(told.elapsed() >= Duration::from_secs(2));
    assert_eq!((refused.header("retry-after"), refused.header("connection")), (Some("1"), Some("close")));
    assert_eq!(Socket::upgrade(node.address, "/dotnetify", "").err().expect("no upgrade").status, 503);
    assert!(node.metric_where("signalring_refusals", "reason=\"stopping\"") >= 1.0);

    // Who comes with every request a connection of its own is served still, until its moment.
    let close = "{\"type\":7,\"allowReconnect\":true}\u{1e}";
    let mut rounds = 0;
    let answer = loop {
        let answer = Web::connect(node.address).ask(&format!("POST {}", polling.target), "", REQUEST);
        if answer.status == 404 {
            break polling.polls.ask(&format!("GET {}", polling.target), "", b"");
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer = polling.poll();
        assert_eq!(answer.status, 200, "{answer:?}");
        if answer.text().ends_with(close) {
            break answer;
        }
        rounds += 1;
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(answer.status == 204 || answer.text().ends_with(close), "{answer:?} after {rounds} rounds");
    while events.stream.event("the Close") != close {}

    let moments: Vec<Duration> = clients.into_iter().map(|client| client.join().unwrap() - told).collect();
    idle.ended("the idle connection");
    drop((events, polling, idle));
    ends_well(&mut node, Duration::from_secs(8));
    let (first, last) = (moments.iter().min().unwrap(), moments.iter().max().unwrap());
    assert!(*first >= Duration::from_secs(2), "{first:?}");
    assert!(*last < Duration::from_secs(7), "{last:?}");
    // Of 60 uniform moments in 3 s: all within 1.5 s of each other, once in 10^16.
    assert!(*last - *first > Duration::from_millis(1500), "{moments:?}");
    nobody_upstream(&app);
}

const NEGOTIATE: &[u8] =
    b"POST /dotnetify/negotiate?negotiateVersion=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";

#[test]
fn a_node_without_clients_ends_at_once_and_a_second_signal_ends_one_with_clients() {
    let app = App::start();
    let mut node = Node::start(&app, &["--drain-window", "60s"]);
    node.process.signal("INT");
    ends_well(&mut node, Duration::from_secs(3));

    let mut node = Node::start(&app, &["--drain-window", "60s"]);
    let clients = busy(node.address, 20);
    node.process.signal("TERM");
    wait_for("the drain", PATIENCE, || (get(node.admin, "/ready").status == 503).then_some(()));
    let again = Instant::now();
    node.process.signal("INT");
    for client in clients {
        assert!(client.join().unwrap() < again + Duration::from_secs(3));
    }
    ends_well(&mut node, Duration::from_secs(7));
    nobody_upstream(&app);

    // Also in the delay.
    let mut node = Node::start(&app, &["--drain-delay", "60s"]);
    let clients = busy(node.address, 2);
    node.process.signal("TERM");
    wait_for("the delay", PATIENCE, || (get(node.admin, "/ready").status == 503).then_some(()));
    node.process.signal("TERM");
    for client in clients {
        client.join().unwrap();
    }
    ends_well(&mut node, Duration::from_secs(7));
}

/// How a page of that origin is answered.
fn negotiates_from(node: &Node, origin: &str) -> u16 {
    let header = format!("Origin: {origin}\r\n");
    Web::connect(node.address).ask("POST /dotnetify/negotiate", &header, b"").status
}

#[test]
fn a_configuration_that_is_read_again_holds_without_dropping_anybody_and_says_what_cannot_change() {
    let app = App::start();
    let configured = Configured::start(&app, "token_key = \"0123456789abcdef\"\nlog = \"info\"\n");
    let mut stays = client(configured.node.address);
    assert_eq!(negotiates_from(&configured.node, "https://a.example"), 403);

    let started = configured.node.metric("signalring_last_reload_timestamp_seconds");
    configured.read_again(
        "token_key = \"another-key-of-tokens\"\nlog = \"debug\"\nshards = 7\nallowed_origins = [\"https://a.example\"]\n\
         [hub]\nmaximum_receive_message_size = 1024\n[identity]\nsigning_key = \"0123456789abcdef0123456789abcdef\"\n",
    );
    assert_eq!(configured.reloads(), (1.0, 0.0));
    assert!(configured.node.metric("signalring_last_reload_timestamp_seconds") > started);
    assert_eq!(negotiates_from(&configured.node, "https://a.example"), 200);
    let output = configured.node.process.output();
    for line in [
        "changed: allowed_origins: [] -> [\"https://a.example\"]",
        "changed: hub.maximum_receive_message_size: \"32KiB\" -> \"1KiB\"",
        "not changed, this needs a new process (a restart, or one that takes over): token_key: \"(secret)\" -> another (secret)",
        "): shards: ",
    ] {
        assert!(output.contains(line), "{line}\n{output}");
    }
    assert!(!output.contains("another-key") && !output.contains("0123456789abcdef"), "{output}");
    wait_for("the new level of the log", PATIENCE, || {
        negotiates_from(&configured.node, "https://a.example");
        drop(Socket::connect(configured.node.address));
        configured.node.process.output().contains("DEBUG").then_some(())
    });
    // The client is there still, and held to the new bound.
    stays.send(&record(&format!(
        "{{\"type\":1,\"target\":\"Update_VM\",\"arguments\":[\"{}\",null]}}",
        "x".repeat(2000)
    )));
    let close = stays.record("the Close of one that says too much");
    assert_eq!(close["type"], 7, "{close}");

    // A fault anywhere changes nothing, also of what is right.
    let mut stays = client(configured.node.address);
    configured
        .read_again("allowed_origins = [\"https://b.example\"]\nshards = 0\n[hub]\nkeep_alive_interval = \"x\"\n");
    assert_eq!(configured.reloads(), (1.0, 1.0));
    let output = configured.node.process.output();
    assert!(output.contains("shards: 0 is out of range") && output.contains("not a duration"), "{output}");
    assert_eq!(negotiates_from(&configured.node, "https://b.example"), 403);
    assert_eq!(negotiates_from(&configured.node, "https://a.example"), 200);

    // Nor does a key that is none, which only reading it shows.
    let garbage = configured.folder.file("garbage.pem", "no key");
    configured
        .read_again(&format!("allowed_origins = [\"https://b.example\"]\n[identity]\npublic_key_file = {garbage:?}\n"));
    assert_eq!((configured.reloads(), negotiates_from(&configured.node, "https://b.example")), ((1.0, 2.0), 403));
    stays.send(&record(
        "{\"type\":1,\"target\":\"Update_VM\",\"arguments\":[\"HelloWorldVM\",{\"FirstName\":\"still\"}]}",
    ));
    stays.response("an answer", |data| data.to_string().contains("still"));
}

#[test]
fn filters_are_read_again_and_live_view_models_stay_where_they_are() {
    let (app, other) = (App::start(), App::start());
    let lines = |filter: &str| {
        format!(
            "drain_window = \"0s\"\n[[upstream]]\nname = \"first\"\nurl = \"{}\"\nfilter = \"{filter}\"\n[[upstream]]\nname = \"rest\"\nurl = \"{}\"\n",
            app.url(),
            other.url()
        )
    };
    let folder = Folder::new();
    let file = folder.file("node.toml", &lines("vm_id == 'HelloWorldVM'"));
    let mut process = Process::signalring(
        "node",
        &["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--config", file.to_str().unwrap()],
    );
    let address = common::address(&process.printed("listening on "));
    let admin = common::address(&process.printed("admin on "));
    let node = Node { process, address, admin };
    wait_for("the node", PATIENCE, || (get(admin, "/ready").body == "ready\n").then_some(()));
    let mut before = client(address);
    assert_eq!((app.figure("view_models"), other.figure("view_models")), (1, 0));
    folder.file("node.toml", &lines("vm_id == 'Nobody'"));
    node.process.signal("HUP");
    wait_for("the reload", PATIENCE, || (node.metric("signalring_reloads") == 1.0).then_some(()));
    let _after = client(address);
    assert_eq!((app.figure("view_models"), other.figure("view_models")), (1, 1));
    before.send(&record(
        "{\"type\":1,\"target\":\"Update_VM\",\"arguments\":[\"HelloWorldVM\",{\"FirstName\":\"old\"}]}",
    ));
    before.response("an answer of the first", |data| data.to_string().contains("old"));
}

/// Connects without a pause; every failure counts.
struct Connecting {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Connecting {
    fn start(count: usize, connect: impl Fn() + Clone + Send + 'static) -> Connecting {
        let (stop, served) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let threads = (0..count).map(|_| {
            let (stop, served, connect) = (stop.clone(), served.clone(), connect.clone());
            std::thread::spawn(move || {
                while !stop.load(SeqCst) {
                    connect();
                    served.fetch_add(1, SeqCst);
                }
            })
        });
        let threads = threads.collect();
        Connecting { stop, served, threads }
    }

    /// Waits until so many more have been served.
    fn serves(&self, more: usize) {
        let until = self.served.load(SeqCst) + more;
        wait_for("clients that connect", PATIENCE, || {
            assert!(self.threads.iter().all(|thread| !thread.is_finished()), "a client failed");
            (self.served.load(SeqCst) >= until).then_some(())
        });
    }

    fn end(self) -> usize {
        self.stop.store(true, SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().expect("no client failed"));
        self.served.load(SeqCst)
    }
}

/// Negotiates, connects with the token, and gets the state of a view model.
fn in_two_steps(address: SocketAddr) {
    let token = common::web::token(address);
    let mut socket = Socket::upgrade(address, &format!("/dotnetify?id={token}"), "")
        .unwrap_or_else(|reply| panic!("no upgrade: {}", reply.text));
    socket.send(&record(r#"{"protocol":"json","version":1}"#));
    assert_eq!(socket.frame("the handshake's answer").text(), "{}\u{1e}");
    socket.send(&record(std::str::from_utf8(REQUEST).unwrap().trim_end_matches(RECORD_END)));
    // Whoever reached the old process may be sent away before the answer: with a word, and to come back.
    let record = socket.record("the state, or a Close");
    assert!(record["type"] == 1 || record["allowReconnect"] == true, "{record}");
}

#[test]
fn a_new_process_takes_over_while_clients_connect_and_nobody_is_refused() {
    let app = App::start();
    let folder = Folder::new();
    let path = folder.path().join("take-over.sock");
    let unix = folder.path().join("node.sock");
    let listen = format!("unix:{}", unix.display());
    let flags = |shards: &'static str| {
        [
            "--take-over",
            path.to_str().unwrap(),
            "--shards",
            shards,
            "--drain-window",
            "2s",
            "--listen",
            &listen,
            "--pool-size",
            "4",
        ]
        .map(String::from)
    };
    let start = |shards| {
        let flags = flags(shards);
        Node::start(&app, &flags.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let mut old = start("2");
    let (address, admin) = (old.address, old.admin);
    let unix_path = unix.clone();
    let over_unix = move || {
        let stream = UnixStream::connect(&unix_path).expect("the socket's file is there and somebody listens");
        assert_eq!(Web::over(Box::new(stream), "x").ask("POST /dotnetify/negotiate", "", b"").status, 200);
    };
    let connecting = Connecting::start(3, move || in_two_steps(address));
    let on_unix = Connecting::start(1, over_unix);
    connecting.serves(20);

    // More shards, fewer, and as many.
    for shards in ["3", "1", "2"] {
        let clients = busy(address, 10);
        let mut events = Events::connect(address);
        let mut polling = Polling::connect(address);
        polling.begin_poll();
        let began = Instant::now();
        let new = start(shards);
        assert_eq!((new.address, new.admin), (address, admin), "both ports are the same");
        let close = "{\"type\":7,\"allowReconnect\":true}\u{1e}";
        assert_eq!(events.stream.event("the Close"), close);
        assert_eq!(polling.polls.answer("the poll with the Close").text(), close);
        drop((events, polling));
        let moments: Vec<Instant> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        assert!(
            moments.iter().max().unwrap().duration_since(*moments.iter().min().unwrap()) > Duration::from_millis(200)
        );
        ends_well(&mut old, Duration::from_secs(12));
        assert!(began.elapsed() < Duration::from_secs(20));
        connecting.serves(20);
        on_unix.serves(5);
        old = new;
    }
    let (served, over_unix) = (connecting.end(), on_unix.end());
    assert!(served > 80 && over_unix > 20, "{served} and {over_unix}");

    // The last one is a node like any other: its socket's files go with it.
    assert!(path.exists() && unix.exists());
    old.process.signal("TERM");
    ends_well(&mut old, Duration::from_secs(8));
    assert!(!path.exists() && !unix.exists());
    assert!(TcpStream::connect(address).is_err());
    nobody_upstream(&app);
}

#[test]
fn a_new_process_that_fails_changes_nothing() {
    let app = App::start();
    let folder = Folder::new();
    let path = folder.path().join("take-over.sock");
    let take_over = path.to_str().unwrap();
    let mut node = Node::start(&app, &["--take-over", take_over, "--shards", "2"]);
    let address = node.address;
    let mut stays = client(address);
    let connecting = Connecting::start(2, move || in_two_steps(address));
    connecting.serves(5);

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().map(|address| (taken, address.to_string())).unwrap();
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (url, nowhere) = (app.url(), format!("http://{nowhere}"));
    // An Observer that it does reach is none.
    let observer = App::start_with(&["--observer"]);
    let upstreams = format!(
        "[[upstream]]\nkind = \"observer\"\nurl = \"{}\"\n[[upstream]]\nname = \"app\"\nurl = \"{nowhere}\"\n",
        observer.url()
    );
    let unreachable = folder.file("unreachable.toml", &upstreams);
    let unreachable = unreachable.to_str().unwrap();
    let run = ["run", "--listen", "127.0.0.1:0", "--take-over", take_over];
    for (flags, words) in [
        // A port that is not the old one's and not free; an app server that only the new one cannot reach; a wrong setting.
        (vec!["--app-server", &url, "--admin", &taken.1], "for the admin endpoint"),
        (vec!["--config", unreachable, "--admin", "127.0.0.1:0"], "leaves the clients to the node that runs"),
        (vec!["--app-server", &url, "--shards", "0"], "shards: 0 is out of range"),
    ] {
        let mut new = Process::signalring("new node", &[&run[..], &flags].concat());
        let status = new.wait(PATIENCE).expect("it ends");
        assert!(!status.success() && new.output().contains(words), "{status}: {}", new.output());
        connecting.serves(10);
    }
    let mut killed =
        Process::signalring("killed node", &[&run[..], &["--app-server", &nowhere, "--admin", "127.0.0.1:0"]].concat());
    wait_for("the sockets to be handed over", PATIENCE, || {
        let output = node.process.output();
        (output.matches("has the listening sockets").count() == 3).then_some(())
    });
    connecting.serves(2);
    // What it accepted goes with it; clients who come later do not notice.
    let served = connecting.end();
    killed.signal("KILL");
    assert!(killed.wait(PATIENCE).is_some());
    wait_for("the node to go on", PATIENCE, || {
        (node.process.output().matches("this node goes on").count() == 3).then_some(())
    });
    (0..10).for_each(|_| in_two_steps(address));
    assert!(served > 30, "{served}");
    stays.send(&record(
        "{\"type\":1,\"target\":\"Update_VM\",\"arguments\":[\"HelloWorldVM\",{\"FirstName\":\"still\"}]}",
    ));
    stays.response("an answer", |data| data.to_string().contains("still"));
    drop(stays);
    node.process.signal("TERM");
    ends_well(&mut node, Duration::from_secs(7));
}

#[test]
fn a_node_that_is_told_to_stop_while_another_takes_over_leaves_to_it() {
    let app = App::start();
    let folder = Folder::new();
    let (path, unix) = (folder.path().join("take-over.sock"), folder.path().join("node.sock"));
    let listen = format!("unix:{}", unix.display());
    let flags = ["--take-over", path.to_str().unwrap(), "--listen", &listen, "--shards", "2", "--drain-window", "5s"];
    let url = app.url();
    // One that has the sockets and cannot serve before it may reach the app server.
    let begins = |running: &Node| {
        app.refuse(true);
        let run = ["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--app-server", &url];
        let new = Process::signalring("new node", &[&run[..], &flags].concat());
        wait_for("the sockets to be handed over", PATIENCE, || {
            running.process.output().contains("has the listening sockets").then_some(())
        });
        new
    };
    let over_unix = || {
        let stream = UnixStream::connect(&unix).expect("the socket's file is there and somebody listens");
        assert_eq!(Web::over(Box::new(stream), "x").ask("POST /dotnetify/negotiate", "", b"").status, 200);
    };
    let mut old = Node::start(&app, &flags);
    let (address, admin) = (old.address, old.admin);
    let clients = busy(address, 10);
    let mut process = begins(&old);
    old.process.signal("TERM");
    wait_for("the drain", PATIENCE, || old.process.output().contains("sending clients away").then_some(()));
    app.refuse(false);
    assert_eq!(common::address(&process.printed("listening on ")), address);
    // Those who come are refused by neither, though the old one still serves its own.
    (0..10).for_each(|_| in_two_steps(address));
    assert!(clients.iter().any(|client| !client.is_finished()), "ten clients are not all gone so soon");
    clients.into_iter().for_each(|client| assert!(client.join().is_ok()));
    ends_well(&mut old, Duration::from_secs(12));
    over_unix();

    // Without clients it has gone before the other one serves.
    let mut old = Node { process, address, admin };
    let process = begins(&old);
    old.process.signal("TERM");
    ends_well(&mut old, Duration::from_secs(3));
    app.refuse(false);
    let mut new = Node { process, address, admin };
    assert_eq!(common::address(&new.process.printed("listening on ")), address);
    over_unix();
    in_two_steps(address);
    new.process.signal("TERM");
    ends_well(&mut new, Duration::from_secs(8));
    assert!(!path.exists() && !unix.exists());
    nobody_upstream(&app);
}

#[test]
fn tls_listeners_are_taken_over_with_the_certificate_of_the_new_process() {
    let app = App::start();
    let folder = Folder::new();
    let authority = Authority::new("the test's authority");
    let path = folder.path().join("take-over.sock");
    let pair = |name: &str| folder.pair(name, &authority.issue(&["localhost", &format!("{name}.example")]));
    let ((old_certificate, old_key), (new_certificate, new_key)) = (pair("old"), pair("new"));
    let start = |certificate: &Path, key: &Path| {
        let flags = [
            "--listen",
            "https://127.0.0.1:0",
            "--tls-certificate-file",
            certificate.to_str().unwrap(),
            "--tls-key-file",
            key.to_str().unwrap(),
            "--take-over",
            path.to_str().unwrap(),
        ];
        let mut node = Node::start(&app, &flags);
        let https = node.process.printed("listening on https://").parse::<SocketAddr>().expect("an address");
        (node, https)
    };
    let roots = {
        let mut roots = rustls::RootCertStore::empty();
        let pem = rustls::pki_types::pem::PemObject::from_pem_slice(authority.pem().as_bytes()).unwrap();
        roots.add(pem).unwrap();
        Arc::new(roots)
    };
    let ask = move |https: SocketAddr, name: &str| -> Result<(), String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots.clone()).with_no_client_auth();
        let name = rustls::pki_types::ServerName::try_from(name.to_string()).unwrap();
        let tls = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = rustls::StreamOwned::new(tls, TcpStream::connect(https).expect("somebody listens"));
        use std::io::{Read, Write};
        stream
            .write_all(
                b"POST /dotnetify/negotiate HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            )
            .map_err(|error| error.to_string())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
        if answer.starts_with("HTTP/1.1 200 ") { Ok(()) } else { Err(answer) }
    };
    let (mut old, https) = start(&old_certificate, &old_key);
    let asks = ask.clone();
    let connecting = Connecting::start(2, move || asks(https, "localhost").expect("an answer over TLS"));
    connecting.serves(5);
    ask(https, "old.example").unwrap();
    let (_new, same) = start(&new_certificate, &new_key);
    assert_eq!(same, https);
    ends_well(&mut old, Duration::from_secs(8));
    connecting.serves(5);
    ask(https, "new.example").unwrap();
    assert!(ask(https, "old.example").is_err());
    connecting.end();
}

#[test]
fn a_service_manager_is_told() {
    let app = App::start();
    let folder = Folder::new();
    let path = folder.path().join("notify.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let heard = || {
        let mut buffer = [0; 1024];
        let count = manager.recv(&mut buffer).expect("a word");
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    };
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_signalring"));
    let url = app.url();
    command.args(["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--app-server", &url]);
    command.env("NOTIFY_SOCKET", &path);
    let mut process = Process::spawn("node", &mut command).unwrap();
    assert_eq!(heard(), format!("MAINPID={}\nREADY=1\n", process.id()));
    process.signal("HUP");
    let reloading = heard();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(heard(), "READY=1\n");
    process.signal("TERM");
    assert_eq!(heard(), "STOPPING=1\n");
    assert!(process.wait(PATIENCE).expect("it ends").success());
}
