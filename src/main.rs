//! The `signalring` command. For now `signalring app --listen ADDR` alone.
use std::net::SocketAddr;
use std::process::ExitCode;

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).with_writer(std::io::stderr).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let addr = match arguments.as_slice() {
        ["app"] => Some(SocketAddr::from(([127, 0, 0, 1], 6100))),
        ["app", "--listen", addr] => addr.parse().ok(),
        _ => None,
    };
    let Some(addr) = addr else {
        eprintln!("usage: signalring app [--listen ADDR]");
        return ExitCode::from(64);
    };
    match signalring::demo::app::run(addr, signalring::demo::app::AppOptions::default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("signalring app: {error}");
            ExitCode::FAILURE
        }
    }
}
