//! The `signalring` command: arguments and exit codes only.
//!
//! Exit codes: 0 done; 1 it could not start or stopped on an error; 2 wrong arguments or configuration, and no port was opened.
use clap::{Parser, Subcommand};
use signalring::config::{Budget, LogFormat, Machine, Resolved, RunFlags};
use signalring::control::health;
use signalring::demo::app::AppOptions;
use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::time::Duration;

#[derive(Parser)]
#[command(name = "signalring", version, about = "A self-hosted SignalR scale-out proxy for dotNetify, on io_uring", after_help = EXAMPLES)]
#[command(arg_required_else_help = true, max_term_width = 120)]
struct Arguments {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Run a node: take clients' connections and forward their messages to app servers
    #[command(after_help = RUN_HELP)]
    Run(RunFlags),
    /// Run the embedded dotNetify app server, a double of the real one with example view models
    #[command(after_help = APP_HELP)]
    App {
        /// Address nodes and clients connect to
        #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:6100")]
        listen: SocketAddr,
        /// Take MessagePack lanes and clients, as a server that called AddMessagePackProtocol()
        #[arg(long)]
        message_pack: bool,
        /// Play a DotNetify-Observer: record what nodes report (GET /__double/observer) and never answer them
        #[arg(long)]
        observer: bool,
    },
    /// Run an app server, two nodes, load and a page that shows all of it; needs nothing installed
    #[command(after_help = DEMO_HELP)]
    Demo(signalring::demo::Options),
    /// Load a dotNetify server or proxy with many clients and check every message; needs no .NET
    #[command(after_help = signalring::load::HELP)]
    Load(signalring::load::Options),
    /// Validate a configuration; print it as resolved, with each value's source, and its memory budget
    #[command(after_help = CHECK_HELP)]
    Check(RunFlags),
    /// Ask an admin endpoint how its node is: exit code 0 if all is well, 1 with the reason if not
    #[command(after_help = HEALTH_HELP)]
    Health {
        /// What to ask: /ready whether clients should be sent to the node, /health whether it works at all
        #[arg(value_name = "URL", default_value = "http://127.0.0.1:9090/ready")]
        url: String,
        /// Seconds to wait for the answer
        #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = clap::value_parser!(u64).range(1..=60))]
        timeout: u64,
    },
    /// Echo WebSocket messages with the node's own codec, for conformance suites
    #[command(hide = true)]
    WsEcho {
        /// Address to listen on
        #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9001")]
        listen: SocketAddr,
    },
}

const EXAMPLES: &str = "\
Examples:
  signalring demo
      App server, two nodes, load and a page that shows it all, on this machine
  signalring run --listen 0.0.0.0:5000 --app-server http://127.0.0.1:6100
      One node in front of one app server
  signalring load --server http://127.0.0.1:5000 --profile chatroom --client 1000
      A thousand clients for it, and every message checked
  signalring check --config node.toml
      What is node.toml worth, and what will it cost?

Exit codes: 0 done; 1 it could not start or stopped on an error; 2 wrong arguments or configuration.";

const RUN_HELP: &str = "\
Every setting can stand in the file, in the environment or on the command line, in that order of increasing precedence.
All faults of a configuration are reported at once (exit code 2), before any port is opened.

SIGTERM and SIGINT send the clients away, each at a moment of its own (--drain-delay, --drain-window); a second one ends the node at
once. SIGHUP reads the configuration, certificates and keys again: what the help marks so changes without anybody noticing, and the log
names what needs a new process. A new process takes over from a running one without a gap where both have the same --take-over.

Examples:
  signalring run --app-server http://127.0.0.1:6100
  signalring run --app-server http://10.0.0.1:6100 --app-server http://10.0.0.2:6100
      Two app servers that are the same: clients are dealt over them
  signalring run --config node.toml --shards 2 --log debug
  SIGNALRING_APP_SERVER=http://app:6100 signalring run --listen 0.0.0.0:5000 --allow-origin https://app.example.com

As a file (signalring check prints a complete one):
  listen = \"0.0.0.0:5000\"
  allowed_origins = [\"https://app.example.com\"]
  [hub]
  keep_alive_interval = \"15s\"
  [[upstream]]
  url = \"http://127.0.0.1:6100\"
  connection_pool_size = 5

Several upstreams stand in the file only, in the order in which they are asked. A message goes to the first whose filter it passes,
and on to the next ones where halt_pipeline is false:
  [[upstream]]
  name = \"chat\"
  urls = [\"http://10.0.0.1:6100\", \"http://10.0.0.2:6100\"]
  filter = 'vm_id.startsWith(\"ChatRoom\")'
  [[upstream]]
  name = \"rest\"
  url = \"http://10.0.0.3:6100\"";

const APP_HELP: &str = "\
Example:
  signalring app --listen 127.0.0.1:6100
      and then: signalring run --app-server http://127.0.0.1:6100";

const DEMO_HELP: &str = "\
Prints the address of a page that shows it all: the live picture of both nodes, a page with view models on each node, and the load,
whose every message is checked. Nodes, app server and load can be stopped and started from the page; clients come back by themselves.
Everything is one process and listens on this machine only: nodes from port 5000 on, their admin endpoints from 9090 on, the app server
from 6100 on, each where a port is free. Ctrl+C ends it.

Examples:
  signalring demo
  signalring demo --listen 127.0.0.1:8888 --clients 1000 --profile chatroom
      A thousand clients who chat";

const CHECK_HELP: &str = "\
Takes the same file, environment and flags as run, opens no port, and prints TOML that reads back to the same configuration,
except for secrets (\"(secret)\"), which are not shown; those in files of their own are read from there again.

Examples:
  signalring check --config node.toml
  signalring check --config node.toml --max-clients 200000
      What would 200,000 clients cost?";

const HEALTH_HELP: &str = "\
For health checks of containers and of service managers, which need neither a shell nor curl.

Examples:
  signalring health
      Should clients be sent here?
  signalring health --timeout 1 http://127.0.0.1:9090/health
      Does the node work at all? A node without its app server does, and need not be restarted.";

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Cmd::Run(flags) => match Resolved::load(&flags) {
            Ok(resolved) => run(resolved, &flags),
            Err(faults) => return refuse(&faults),
        },
        Cmd::Check(flags) => match Resolved::load(&flags) {
            Ok(resolved) => check(&resolved),
            Err(faults) => return refuse(&faults),
        },
        Cmd::App { listen, message_pack, observer } => with_default_log("info", || {
            signalring::demo::app::run(listen, AppOptions { message_pack, observer, ..AppOptions::default() })
        }),
        Cmd::Demo(options) => with_default_log("warn", || signalring::demo::run(options)),
        Cmd::Load(options) => {
            signalring::logging::init("warn", LogFormat::Text);
            match signalring::load::run(options) {
                Ok(true) => Ok(()),
                // The report has said why.
                Ok(false) => return ExitCode::FAILURE,
                Err(error) => Err(error),
            }
        }
        Cmd::Health { url, timeout } => match health::ask(&url, Duration::from_secs(timeout)) {
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                say(&format!("signalring: {error}"));
                return ExitCode::from(WRONG);
            }
            answer => answer.and_then(|said| print(&format!("{said}\n"))),
        },
        Cmd::WsEcho { listen } => with_default_log("info", || {
            let listener = TcpListener::bind(listen)
                .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {listen}: {error}")))?;
            println!("listening on ws://{}", listener.local_addr()?);
            signalring::ws_echo::serve(listener)
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("signalring: {}", explain(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(resolved: Resolved, flags: &RunFlags) -> io::Result<()> {
    signalring::logging::init(&resolved.config.log, resolved.config.log_format);
    for warning in resolved.warnings(&Machine::probe()) {
        tracing::warn!("{warning}");
    }
    let budget = Budget::of(&resolved.config);
    tracing::info!("{}", budget.summary());
    for line in budget.to_string().lines() {
        tracing::debug!("{}", line.trim_start_matches("# "));
    }
    signalring::control::run_node(resolved.config, || Resolved::load(flags).map(|resolved| resolved.config))
}

fn check(resolved: &Resolved) -> io::Result<()> {
    let mut text =
        String::from("# signalring: the configuration as resolved; the source of each value stands behind it\n");
    let _ = writeln!(text, "{resolved}\n{}", Budget::of(&resolved.config));
    for warning in resolved.warnings(&Machine::probe()) {
        let _ = writeln!(text, "# warning: {warning}");
    }
    print(&text)
}

fn print(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        // `signalring check | head` is no failure.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// Commands that have no settings log what a user at a terminal wants to see.
fn with_default_log(level: &str, command: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    signalring::logging::init(level, LogFormat::Text);
    command()
}

/// Exit code of wrong arguments (clap's own) and of wrong configurations.
const WRONG: u8 = 2;

fn refuse(faults: &signalring::config::Faults) -> ExitCode {
    say(format!("signalring: {faults}").trim_end());
    ExitCode::from(WRONG)
}

/// To stderr, which may be closed.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// An error at start in one sentence, with what to do. `run_node` and the others put what they were doing into the error's text.
fn explain(error: &io::Error) -> String {
    let text = error.to_string();
    let about_ring = text.contains("io_uring");
    let remedy = match error.kind() {
        ErrorKind::AddrInUse => "another process listens there; stop it, or choose another address (--listen, --admin)",
        ErrorKind::AddrNotAvailable => "this machine has no such address; choose one of its own, or 0.0.0.0 for all",
        ErrorKind::PermissionDenied if about_ring => {
            "io_uring is forbidden here; in a container allow it in the seccomp profile (docker: --security-opt seccomp=unconfined), \
             on the host check sysctl kernel.io_uring_disabled"
        }
        ErrorKind::PermissionDenied => {
            "ports below 1024 need the capability CAP_NET_BIND_SERVICE; choose a higher port or grant it"
        }
        ErrorKind::OutOfMemory if about_ring => {
            "the limit of locked memory is too low; raise it (ulimit -l, LimitMEMLOCK=)"
        }
        _ => return text,
    };
    format!("{text}; {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn start_errors_say_what_to_do() {
        let explained = |kind, text: &str| explain(&io::Error::new(kind, text.to_string()));
        assert!(
            explained(ErrorKind::AddrInUse, "cannot listen on 127.0.0.1:80").contains("another process listens there")
        );
        assert!(explained(ErrorKind::PermissionDenied, "io_uring_setup: EPERM").contains("seccomp"));
        assert!(explained(ErrorKind::PermissionDenied, "cannot listen on 127.0.0.1:80").contains("below 1024"));
        assert_eq!(explained(ErrorKind::Other, "the lane fell silent"), "the lane fell silent");
    }
}
