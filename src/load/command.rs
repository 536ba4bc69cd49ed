//! `signalring load`: runs a load, shows it, says what came of it.
use std::io::{self, Write};
use std::path::Path;
use tokio::signal::unix::{SignalKind, signal};

use super::options::Options;
use super::progress::{FRAME, Progress};
use super::report::Report;
use super::start;

/// Shown below the options.
pub const HELP: &str = "\
Takes the options of dotNetify's load tester and its profiles, and works against any dotNetify server with these view models, or a
proxy in front of one. Every message of every client is checked: numbers that are missing, repeated or out of order, and messages for
somebody else. Ctrl+C ends a load early, with its report.

Chat rooms exist where the server's chat middleware runs; a server without it has one room for all, which --group above 1 shows as
misdelivered. Broadcast and chatroom expect one app server behind each --server: several would each count for themselves.

Examples:
  signalring load -s 5000
      5 clients, 60 seconds of echo, against http://localhost:5000
  signalring load -s http://127.0.0.1:5000 http://127.0.0.1:5002 -p broadcast -c 2000 -r 30
      2,000 clients on each of two nodes
  signalring load -s 5001 --insecure -p chatroom -c 500 -g 10 -i 100 --protocol messagepack
      ten rooms of 50 over TLS, with the development certificate of .NET
  signalring load -s 6100 -p burst -c 50 -u 0 -d 0 -r 10 -i 20 --json -
      order and throughput of signalring app, as JSON

Exit codes: 0 all clients connected, and nothing was missed, repeated, reordered, misdelivered, answered with an error or disconnected;
1 anything else, or it could not start; 2 wrong arguments.";

/// Until the load has ended by itself, by SIGINT or by SIGTERM. Returns whether it passed.
pub fn run(options: Options) -> io::Result<bool> {
    let (quiet, clients, json) = (options.quiet, options.clients_total(), options.json.clone());
    let running = start(options)?;
    let mut progress = (!quiet).then(|| Progress::new(clients));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let watched = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut frames = tokio::time::interval(FRAME);
        while !running.is_finished() {
            tokio::select! {
                _ = interrupt.recv() => running.stop(),
                _ = terminate.recv() => running.stop(),
                _ = frames.tick() => if let Some(progress) = &mut progress {
                    progress.show(running.stats());
                },
            }
        }
        Ok::<(), io::Error>(())
    });
    if let Some(progress) = progress {
        progress.end();
    }
    watched?;
    let report = running.finish();
    show(&report, json.as_deref())?;
    Ok(report.passed)
}

fn show(report: &Report, json: Option<&Path>) -> io::Result<()> {
    let mut stdout = io::stdout();
    if json == Some(Path::new("-")) {
        return writeln!(stdout, "{}", report.json());
    }
    writeln!(stdout, "{report}")?;
    match json {
        Some(file) => std::fs::write(file, report.json() + "\n").map_err(|error| {
            io::Error::new(error.kind(), format!("cannot write the report to {}: {error}", file.display()))
        }),
        None => Ok(()),
    }
}
