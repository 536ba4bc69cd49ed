//! What the load tester is asked to do: the options of dotNetify's own (contract 7.1), and ours on top.
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;
use url::Url;

use crate::limits::{
    LOAD_CLIENTS_MAX, LOAD_CONNECTIONS_PER_ADDRESS_DEFAULT, LOAD_GROUPS_MAX, LOAD_INTERVAL_MS_MAX, LOAD_SECONDS_MAX,
    LOAD_THREADS_MAX,
};

/// What every client does. The first four are those of dotNetify's load tester.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum Profile {
    /// EchoVM: the server pings, the client answers; only then the next ping is due
    Echo,
    /// SharedEchoVM: the same with one view model for all clients
    SharedEcho,
    /// BroadcastVM: the server ticks for all, clients listen
    Broadcast,
    /// ChatRoomVM: 10 % chatty (every 11 intervals), 20 % casual (59), the others listen; fewer than 10 clients are all chatty
    ChatRoom,
    /// SharedEchoVM is requested, then silence
    Idle,
    /// BurstVM, which only `signalring app` has: 20 updates back to back every interval, each one echoed
    Burst,
}

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum Protocol {
    Json,
    MessagePack,
}

/// Options of `signalring load`. `Options::new` has the same defaults.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Servers or proxies to load, each with the full number of clients at the same time. A bare number N is the port of
    /// http://localhost:N if even, of https://localhost:N if odd
    #[arg(short, long = "server", value_name = "URL", required = true, num_args = 1.., value_parser = server)]
    pub servers: Vec<Url>,
    /// What clients do
    #[arg(short, long, value_enum, default_value_t = Profile::Echo, ignore_case = true)]
    pub profile: Profile,
    /// Clients per server
    #[arg(short, long = "client", value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=i64::from(LOAD_CLIENTS_MAX)))]
    pub clients: u32,
    /// Seconds of load after the ramp-up
    #[arg(short, long = "run", value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub run: Duration,
    /// Seconds over which clients start; 0: as fast as they connect
    #[arg(short = 'u', long = "rampup", value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub ramp_up: Duration,
    /// Seconds over which clients leave
    #[arg(short = 'd', long = "rampdown", value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub ramp_down: Duration,
    /// Milliseconds between messages: ping, tick or burst interval, unit of the chat's intervals
    #[arg(short, long, value_name = "MS", default_value = "1000", value_parser = milliseconds)]
    pub interval: Duration,
    /// Chat rooms, dealt by client index
    #[arg(short, long = "group", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(LOAD_GROUPS_MAX)))]
    pub groups: u32,
    /// How messages are written
    #[arg(long, value_enum, default_value_t = Protocol::Json, ignore_case = true)]
    pub protocol: Protocol,
    /// Where the hub is mapped
    #[arg(long, value_name = "PATH", default_value = "/dotnetify")]
    pub hub_path: String,
    /// Open WebSockets without negotiating first
    #[arg(long)]
    pub skip_negotiation: bool,
    /// On loopback, clients from this one on come from 127.0.0.2, then 127.0.0.3 and so on: one address has some 28,000 ports
    #[arg(long, value_name = "N", default_value_t = LOAD_CONNECTIONS_PER_ADDRESS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..))]
    pub connections_per_address: u32,
    /// Certificates (PEM) of the authorities that https servers are checked against, instead of the operating system's
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    pub ca_file: Option<PathBuf>,
    /// Take any certificate of https servers, as for the development certificate of .NET
    #[arg(long)]
    pub insecure: bool,
    /// Threads the clients are spread over
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(LOAD_THREADS_MAX)))]
    pub threads: u16,
    /// Also write the report as JSON; - is stdout, which then shows nothing else
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// No progress, only the report
    #[arg(short, long)]
    pub quiet: bool,
}

impl Options {
    /// For use inside a program; the other options are those of the command line.
    pub fn new(server: Url, profile: Profile) -> Options {
        Options {
            servers: vec![server],
            profile,
            clients: 5,
            run: Duration::from_secs(60),
            ramp_up: Duration::from_secs(10),
            ramp_down: Duration::from_secs(10),
            interval: Duration::from_secs(1),
            groups: 1,
            protocol: Protocol::Json,
            hub_path: "/dotnetify".into(),
            skip_negotiation: false,
            connections_per_address: LOAD_CONNECTIONS_PER_ADDRESS_DEFAULT,
            ca_file: None,
            insecure: false,
            threads: 1,
            json: None,
            quiet: true,
        }
    }

    /// Clients of all servers together.
    pub fn clients_total(&self) -> u64 {
        u64::from(self.clients) * self.servers.len() as u64
    }
}

/// A URL, or a bare port as the original takes it.
pub fn server(text: &str) -> Result<Url, String> {
    let text = match text.parse::<u16>() {
        Ok(port) => format!("{}://localhost:{port}", if port % 2 == 0 { "http" } else { "https" }),
        Err(_) => text.to_owned(),
    };
    let url = Url::parse(&text).map_err(|error| format!("{error}; give a URL as http://host:port, or a port"))?;
    match (url.scheme(), url.host()) {
        ("http" | "https", Some(_)) => Ok(url),
        _ => Err("only http:// and https:// servers can be loaded".into()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(value @ 0.0..=LOAD_SECONDS_MAX) => Ok(Duration::from_secs_f64(value)),
        _ => Err(format!("a number of seconds from 0 to {LOAD_SECONDS_MAX}")),
    }
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(value @ 1..=LOAD_INTERVAL_MS_MAX) => Ok(Duration::from_millis(value)),
        _ => Err(format!("a number of milliseconds from 1 to {LOAD_INTERVAL_MS_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    fn read(arguments: &[&str]) -> Options {
        Command::try_parse_from([&["load"], arguments].concat()).unwrap_or_else(|error| panic!("{error}")).options
    }

    #[test]
    fn the_command_line_is_that_of_the_original() {
        let options = read(&["-s", "5000", "5001", "http://node:80", "-p", "ChatRoom", "-c", "7"]);
        let servers: Vec<&str> = options.servers.iter().map(Url::as_str).collect();
        assert_eq!(servers, ["http://localhost:5000/", "https://localhost:5001/", "http://node/"]);
        assert_eq!((options.profile, options.clients, options.clients_total()), (Profile::ChatRoom, 7, 21));
        let options = read(&["-s", "5000", "-r", "1", "-u", "2", "-d", "0.5", "-i", "20", "-g", "3"]);
        assert_eq!((options.run.as_secs(), options.ramp_up.as_secs(), options.ramp_down.as_millis()), (1, 2, 500));
        assert_eq!((options.interval.as_millis(), options.groups), (20, 3));
        for refused in ["ftp://node", "99999", "node:80", ""] {
            assert!(server(refused).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn the_defaults_inside_a_program_are_those_of_the_command_line() {
        let from_command_line = Options { quiet: true, ..read(&["-s", "http://localhost:1234"]) };
        let inside = Options::new(server("1234").unwrap(), Profile::Echo);
        assert_eq!(format!("{from_command_line:?}"), format!("{inside:?}"));
    }
}
