//! Runs the product's own commands for a test: on ports the kernel chose, with everything they print kept for the failure
//! message, and gone when the test is.
#![allow(dead_code)] // Each test binary uses its part.

pub mod crowd;
pub mod fake;
pub mod talk;
pub mod web;
pub mod ws;

use signalring::demo::app::LaneSnapshot;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// How long anything may take before it counts as lost. Generous: CI has two busy cores.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Calls `probe` until it has something to say; panics with `what` after `patience`.
pub fn wait_for<T>(what: &str, patience: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A generator with a seed (SplitMix64), so that what it found can be found again.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A process of its own group, killed with all its children when dropped.
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Mutex<String>>,
    readers: Vec<std::thread::JoinHandle<()>>,
}

impl Process {
    pub fn spawn(name: &str, command: &mut Command) -> std::io::Result<Process> {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn()?;
        let output = Arc::new(Mutex::new(String::new()));
        let readers = [
            gather(child.stdout.take().expect("stdout is piped"), &output),
            gather(child.stderr.take().expect("stderr is piped"), &output),
        ];
        Ok(Process { name: name.into(), child, output, readers: readers.into() })
    }

    /// The `signalring` command of this build.
    pub fn signalring(name: &str, arguments: &[&str]) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_signalring"));
        command.args(arguments);
        // The settings of whoever runs the tests are not the tests'.
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("SIGNALRING_")) {
            command.env_remove(key);
        }
        Process::spawn(name, &mut command).expect("the binary of this build starts")
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn output(&self) -> String {
        self.output.lock().expect("no reader panicked").clone()
    }

    /// Waits for `prefix` in the output and returns what follows it, up to white space.
    pub fn printed(&mut self, prefix: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.output();
            if let Some((_, rest)) = output.split_once(prefix)
                && let Some(end) = rest.find(char::is_whitespace)
            {
                return rest[..end].to_string();
            }
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                panic!("{} ended with {status} before it printed {prefix:?}:\n{output}", self.name);
            }
            assert!(Instant::now() < deadline, "{} did not print {prefix:?} in {PATIENCE:?}:\n{output}", self.name);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for the end; kills it and returns `None` when it takes longer than `patience`.
    pub fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    /// SIGKILL, as the kernel's or an impatient administrator's; returns when it is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a child can be waited for");
    }

    /// Sends it a signal by name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "{} cannot be sent {name}", self.name);
    }

    fn signal_group(&self, signal: &str) {
        // The group may be gone already; that is fine.
        let _ =
            Command::new("kill").args([signal, "--", &format!("-{}", self.child.id())]).stderr(Stdio::null()).status();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal_group("-TERM");
            if self.wait(Duration::from_secs(5)).is_none() {
                self.signal_group("-KILL");
            }
        }
        // Whoever outlived the leader of the group.
        self.signal_group("-KILL");
        let _ = self.child.wait();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        if std::thread::panicking() {
            eprintln!("---- {} printed:\n{}", self.name, self.output());
        }
    }
}

fn gather(stream: impl Read + Send + 'static, output: &Arc<Mutex<String>>) -> std::thread::JoinHandle<()> {
    let output = output.clone();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
            output.lock().expect("no other reader panicked").push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    })
}

/// The embedded app server.
pub struct App {
    pub process: Process,
    pub address: SocketAddr,
}

impl App {
    pub fn start() -> App {
        App::start_with(&[])
    }

    /// Where one was before.
    pub fn start_at(address: SocketAddr) -> App {
        App::listening(&address.to_string(), &[])
    }

    pub fn start_with(flags: &[&str]) -> App {
        App::listening("127.0.0.1:0", flags)
    }

    fn listening(address: &str, flags: &[&str]) -> App {
        let mut process = Process::signalring("app server", &[&["app", "--listen", address], flags].concat());
        let address = self::address(&process.printed("listening on "));
        App { process, address }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The context of the latest message of the one client that the double knows.
    pub fn only_context(&self) -> serde_json::Value {
        let reply = get(self.address, "/__double/bindings");
        let bindings: serde_json::Value = serde_json::from_str(&reply.body).expect("/__double/bindings is JSON");
        let [binding] = bindings.as_array().expect("a list").as_slice() else { panic!("not one client: {bindings}") };
        serde_json::from_str(binding["last_context"].as_str().expect("text")).expect("a context is JSON")
    }

    /// Every lane at the double, and the ids that are bound to it.
    pub fn lanes(&self) -> Vec<LaneSnapshot> {
        let reply = get(self.address, "/__double/lanes");
        serde_json::from_str(&reply.body).expect("/__double/lanes is a list of lanes")
    }

    /// Has the double do something; how many lanes it did it to.
    pub fn disturb(&self, hook: &str, what: serde_json::Value) -> u64 {
        let reply = self.told(hook, &what);
        reply.body.parse().unwrap_or_else(|_| panic!("{hook} {what}: {}", reply.text))
    }

    /// Has it refuse new lanes, or take them again.
    pub fn refuse(&self, refuse: bool) {
        self.told("refuse", &serde_json::json!({ "refuse": refuse }));
    }

    fn told(&self, hook: &str, what: &serde_json::Value) -> Reply {
        let body = what.to_string();
        let head = format!("POST /__double/{hook} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        let request = format!("{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let reply = exchange(self.address, request.as_bytes(), PATIENCE);
        assert_eq!(reply.status, 200, "{hook} {what}: {}", reply.text);
        reply
    }

    /// What the double says about itself.
    pub fn double(&self) -> serde_json::Value {
        let reply = get(self.address, "/__double");
        assert_eq!(reply.status, 200, "/__double: {}", reply.text);
        serde_json::from_str(&reply.body).expect("/__double is JSON")
    }

    /// A figure of `/__double`; a list or map counts its entries.
    pub fn figure(&self, name: &str) -> u64 {
        let double = self.double();
        match &double[name] {
            serde_json::Value::Array(list) => list.len() as u64,
            serde_json::Value::Object(map) => map.len() as u64,
            value => value.as_u64().unwrap_or_else(|| panic!("/__double has no figure {name}: {double}")),
        }
    }
}

/// What a node is run with.
fn arguments<'a>(listen: &'a str, flags: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["run", "--listen", listen, "--admin", "127.0.0.1:0"];
    // Tests that are about something else do not wait while clients are sent away.
    if !flags.contains(&"--drain-window") {
        all.extend(["--drain-window", "0s"]);
    }
    all.extend(flags);
    all
}

/// A node in front of an app server.
pub struct Node {
    pub process: Process,
    pub address: SocketAddr,
    pub admin: SocketAddr,
}

impl Node {
    pub fn start(app: &App, flags: &[&str]) -> Node {
        let url = app.url();
        Node::run_at("127.0.0.1:0", &[&["--app-server", &url], flags].concat())
    }

    /// With these lines as its configuration.
    pub fn configured(lines: &str) -> Node {
        Node::configured_at("127.0.0.1:0", lines)
    }

    /// The same where clients look for it.
    pub fn configured_at(listen: &str, lines: &str) -> Node {
        static NODES: AtomicU32 = AtomicU32::new(0);
        let name = format!("node-{}-{}.toml", std::process::id(), NODES.fetch_add(1, Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&path, lines).expect("the folder for tests' files is there");
        let node = Node::run_at(listen, &["--config", path.to_str().expect("it is UTF-8")]);
        let _ = std::fs::remove_file(&path);
        node
    }

    pub fn run(flags: &[&str]) -> Node {
        Node::run_at("127.0.0.1:0", flags)
    }

    fn run_at(listen: &str, flags: &[&str]) -> Node {
        let mut process = Process::signalring("node", &arguments(listen, flags));
        let listen = address(&process.printed("listening on "));
        let admin = address(&process.printed("admin on "));
        let node = Node { process, address: listen, admin };
        wait_for("the node to be ready", PATIENCE, || (get(node.admin, "/ready").status == 200).then_some(()));
        node
    }

    /// Sum over all labels of a counter or gauge in `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        self.metric_where(name, "")
    }

    /// Waits until `count` requests have been counted as refused for these reasons (labels of `HttpError`): a shard
    /// publishes its numbers once a turn, so a reply may be here before its count.
    pub fn counts_refusals(&self, reasons: &[&str], count: usize) {
        let counted = |reason| self.metric_where("signalring_refusals", &format!("reason=\"{reason}\""));
        wait_for(&format!("{count} refusals for {reasons:?}"), PATIENCE, || {
            (reasons.iter().map(counted).sum::<f64>() >= count as f64).then_some(())
        });
    }

    /// Like `metric`, over the lines that contain `label` (e.g. `reason="head_timeout"`).
    pub fn metric_where(&self, name: &str, label: &str) -> f64 {
        let reply = get(self.admin, "/metrics");
        assert_eq!(reply.status, 200);
        let lines = reply.body.lines().filter(|line| !line.starts_with('#') && line.contains(label));
        lines
            .filter_map(|line| {
                let (key, value) = line.rsplit_once(' ')?;
                let key = key.split('{').next()?;
                (key == name || key.strip_suffix("_total") == Some(name))
                    .then(|| value.parse::<f64>().expect("a number"))
            })
            .sum()
    }
}

pub fn address(url: &str) -> SocketAddr {
    let text = url.strip_prefix("http://").unwrap_or_else(|| panic!("{url:?} is no http URL"));
    text.trim_end_matches('/').parse().unwrap_or_else(|_| panic!("{url:?} has no address"))
}

/// A connection from a certain address of this machine, whose kernel may be told to hold little that is not read.
pub fn connect_from(source: Ipv4Addr, address: SocketAddr, receive_buffer: Option<u32>) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes).expect("a buffer's size can be set");
        }
        socket.bind((source, 0).into()).expect("a loopback address is free");
        socket.connect(address).await.expect("the listener accepts").into_std().expect("it is out of the runtime")
    });
    stream.set_nonblocking(false).expect("it can be made to wait");
    stream
}

/// A connection whose kernel holds little that is not read.
pub fn narrow(address: SocketAddr) -> TcpStream {
    connect_from(Ipv4Addr::LOCALHOST, address, Some(4096))
}

/// An HTTP reply as bytes on the wire, and its parts.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub text: String,
    pub status: u16,
    pub head: String,
    pub body: String,
    /// The server closed the connection after it.
    pub closed: bool,
    /// ... and the close was a reset: unread bytes were thrown away.
    pub reset: bool,
}

impl Reply {
    /// A header of the reply, by case-insensitive name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// Sends `request` and reads until the server closes, or until one whole reply is there and `linger` has passed without more.
pub fn exchange(address: SocketAddr, request: &[u8], linger: Duration) -> Reply {
    let mut stream = TcpStream::connect(address).expect("the listener accepts");
    // A server may refuse in the middle of a long request; what it said still counts.
    let _ = stream.write_all(request);
    read_reply(&mut stream, linger)
}

/// Reads one reply (see `exchange`).
pub fn read_reply(stream: &mut TcpStream, linger: Duration) -> Reply {
    let deadline = Instant::now() + PATIENCE;
    let mut bytes = Vec::new();
    let mut reply = Reply::default();
    let mut chunk = [0; 16 * 1024];
    loop {
        let whole = parse_reply(&bytes, &mut reply);
        let patience = if whole { linger } else { deadline.saturating_duration_since(Instant::now()) };
        if patience.is_zero() {
            break;
        }
        stream.set_read_timeout(Some(patience)).expect("a timeout can be set");
        match stream.read(&mut chunk) {
            Ok(0) => {
                reply.closed = true;
                break;
            }
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                break;
            }
            // The kernel interrupts the thread that started a node once more: the ring it probed with is taken down late.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => {
                reply.closed = true;
                reply.reset = true;
                break;
            }
        }
    }
    parse_reply(&bytes, &mut reply);
    reply
}

/// Fills in the parts; true when head and body are whole.
fn parse_reply(bytes: &[u8], reply: &mut Reply) -> bool {
    reply.text = String::from_utf8_lossy(bytes).into_owned();
    let Some((head, body)) = reply.text.split_once("\r\n\r\n") else { return false };
    reply.status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (reply.head, reply.body) = (head.to_string(), body.to_string());
    match reply.header("content-length").and_then(|length| length.parse::<usize>().ok()) {
        Some(length) => reply.body.len() >= length,
        None => matches!(reply.status, 101 | 204 | 304),
    }
}

pub fn get(address: SocketAddr, path: &str) -> Reply {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    exchange(address, request.as_bytes(), PATIENCE)
}

/// Panics with the Debian package that is missing, if a tool of a test is not there.
pub fn needs(tool: &str) {
    let (version, package) = match tool {
        "openssl" => ("version", tool),
        "envsubst" => ("--version", "gettext-base"),
        "jq" | "shellcheck" | "systemd-analyze" => ("--version", tool.trim_end_matches("-analyze")),
        _ => ("-v", tool),
    };
    let found = Command::new(tool).arg(version).output().is_ok_and(|output| output.status.success());
    assert!(found, "this test needs {tool} (Debian: apt-get install {package})");
}

/// The npm packages of `tests/clients`, installed as the lock file says. Panics with what is missing.
pub fn npm_clients() -> &'static Path {
    // Tests run side by side; the packages are installed once.
    static CLIENTS: OnceLock<PathBuf> = OnceLock::new();
    CLIENTS.get_or_init(install_npm_clients)
}

fn install_npm_clients() -> PathBuf {
    let folder = repository().join("tests/clients");
    let lock = folder.join("package-lock.json");
    let version = |tool: &str| {
        let printed = Command::new(tool).arg("--version").output().ok().filter(|output| output.status.success())?;
        let text = String::from_utf8_lossy(&printed.stdout).trim().trim_start_matches('v').to_string();
        text.split('.').next()?.parse::<u32>().ok()
    };
    let found = (version("node"), version("npm"));
    assert!(matches!(found, (Some(20..), Some(_))), "the client tests need Node 20 or later with npm on the PATH");

    // `npm ci` writes this file last; it is older than the lock exactly when the lock has changed since.
    let installed = folder.join("node_modules/.package-lock.json");
    let modified = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    if modified(&installed).is_none_or(|time| Some(time) < modified(&lock)) {
        let mut npm =
            Process::spawn("npm ci", Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(&folder))
                .expect("npm was there a moment ago");
        let status = npm.wait(Duration::from_secs(300));
        assert!(
            status.is_some_and(|status| status.success()),
            "npm ci in {} failed ({status:?}):\n{}",
            folder.display(),
            npm.output()
        );
    }
    folder
}

/// From now on a process may have so many files open, however many it has.
pub fn limit_descriptors(process: &Process, count: usize) {
    let done =
        Command::new("prlimit").args(["--pid", &process.id().to_string(), &format!("--nofile={count}:")]).status();
    assert!(done.expect("prlimit is part of util-linux").success());
}

const CHROMIUM: &str = "/usr/bin/chromium";

/// Runs a script of `tests/clients` that drives Chromium; what it printed, and where its screenshots are.
pub fn drive_browser(script: &str, environment: &[(&str, &str)]) -> (String, PathBuf) {
    assert!(
        Path::new(CHROMIUM).exists(),
        "the browser test needs Chromium at {CHROMIUM} (Debian: apt-get install chromium)"
    );
    let screenshots = repository().join("target/screenshots");
    std::fs::create_dir_all(&screenshots).expect("target/ can be written");
    let mut command = Command::new("node");
    command.args(["--test", "--test-reporter=spec", script]).env_remove("NODE_OPTIONS").current_dir(npm_clients());
    command.env("BINARY", env!("CARGO_BIN_EXE_signalring")).env("CHROMIUM", CHROMIUM).env("SCREENSHOTS", &screenshots);
    command.envs(environment.iter().copied());
    let mut process = Process::spawn(script, &mut command).expect("node was there a moment ago");
    // Longer than any of the scripts gives itself: what failed is said by them.
    let status = process.wait(Duration::from_secs(180));
    let output = process.output();
    assert!(status.is_some_and(|status| status.success()), "the browser test failed ({status:?}):\n{output}");
    println!("{output}");
    (output, screenshots)
}
