//! What came of it: figures for programs (JSON), a table and the closing line of the original for people.
use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

use super::options::{Options, Profile, Protocol};
use super::tally::{Averages, Tally};

/// The outcome of a run. Its JSON is stable: members may be added, none changes its name or meaning. Times are milliseconds,
/// periods are seconds; a time that was not measured is null.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub profile: Profile,
    pub protocol: Protocol,
    /// Interval between messages.
    pub interval: f64,
    /// From the first client's start to the last one's end.
    pub seconds: f64,
    /// From the end of the ramp-up to the end of the load.
    pub load_seconds: f64,
    /// It was ended before its time.
    pub interrupted: bool,
    /// Every client was served, and each got what it was owed, once, in order, and nothing else.
    pub passed: bool,
    /// In the order of the command line.
    pub servers: Vec<ServerFigures>,
    pub total: Figures,
}

#[derive(Clone, Debug, Serialize)]
pub struct ServerFigures {
    pub server: String,
    #[serde(flatten)]
    pub figures: Figures,
}

/// Counts and times of one server's clients, at one moment or at the end.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Asked for.
    pub clients: u64,
    /// Were given the view model's state.
    pub connected: u64,
    /// Connected at this moment; 0 in a report.
    pub active: u64,
    /// Could not connect, or were not given a state in time.
    pub failed_connects: u64,
    /// Lost their connection before they were to leave. What they missed afterwards is not counted as missed.
    pub disconnects: u64,
    /// View models that the server began anew by itself: a proxy's way to the old ones was lost. What was under way is not counted as missed.
    pub renewed: u64,
    pub sent: Sent,
    /// `Response_VM` messages of any kind.
    pub responses: u64,
    /// Numbered messages: each counts once, however often it came. Without the first states of view models.
    pub received: u64,
    /// Numbered messages that were sent, or must have been, and did not come.
    pub missed: u64,
    /// Numbered messages that came again.
    pub duplicated: u64,
    /// Numbered messages that came after a later one of their stream.
    pub reordered: u64,
    /// Messages meant for another client, another chat room or a view model that was not asked for.
    pub misdelivered: u64,
    /// Exceptions of view models, completions with an error, messages that cannot be read.
    pub errors: u64,
    /// From dialling to the view model's state.
    pub connect: Option<Latency>,
    /// echo, sharedecho: app server, client and back by the app server's own clock (`PrevLatency`). burst: client, app server and back
    /// by the client's clock.
    pub round_trip: Option<Latency>,
    /// From the message's `Time` until the client has it: chat messages from their sender; pings and ticks from the app server, only
    /// on loopback, where both clocks are the same.
    pub delivery: Option<Latency>,
    /// broadcast: between two ticks at a client.
    pub interval: Option<Latency>,
    /// Over the load alone, without ramps; null before its end.
    pub rates: Option<Rates>,
    /// What the closing line shows: each client's own average; its least, greatest and mean.
    pub of_clients: Option<ClientAverages>,
    /// What went wrong, in words, and how often. Bounded; `faults_more` counts the rest.
    pub faults: BTreeMap<String, u64>,
    pub faults_more: u64,
}

/// Hub messages of clients. Pings are not among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sent {
    pub request_vm: u64,
    pub update_vm: u64,
    pub dispose_vm: u64,
}

impl Sent {
    pub fn all(&self) -> u64 {
        self.request_vm + self.update_vm + self.dispose_vm
    }
}

/// Messages per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Hub messages of clients.
    pub sent: f64,
    /// `Response_VM`s.
    pub received: f64,
}

impl Rates {
    /// Of what was counted between the two, which are `seconds` apart.
    pub(super) fn between(earlier: &Figures, later: &Figures, seconds: f64) -> Rates {
        if seconds <= 0.0 {
            return Rates::default();
        }
        let rate = |then: u64, now: u64| round(now.saturating_sub(then) as f64 / seconds, 1);
        Rates { sent: rate(earlier.sent.all(), later.sent.all()), received: rate(earlier.responses, later.responses) }
    }
}

/// A distribution, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    pub count: u64,
    pub min: f64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ClientAverages {
    pub clients: u32,
    pub min: f64,
    pub mean: f64,
    pub max: f64,
}

/// Of a histogram of microseconds.
pub(super) fn latency(histogram: &Histogram<u64>) -> Option<Latency> {
    let milliseconds = |micros: f64| round(micros / 1000.0, 3);
    let quantile = |share: f64| milliseconds(histogram.value_at_quantile(share) as f64);
    (!histogram.is_empty()).then(|| Latency {
        count: histogram.len(),
        min: milliseconds(histogram.min() as f64),
        mean: milliseconds(histogram.mean()),
        p50: quantile(0.5),
        p90: quantile(0.9),
        p99: quantile(0.99),
        p99_9: quantile(0.999),
        max: milliseconds(histogram.max() as f64),
    })
}

fn averages(averages: &Averages) -> Option<ClientAverages> {
    (averages.clients > 0).then(|| ClientAverages {
        clients: averages.clients,
        min: round(averages.min, 2),
        mean: round(averages.mean(), 2),
        max: round(averages.max, 2),
    })
}

fn round(value: f64, digits: i32) -> f64 {
    let factor = 10f64.powi(digits);
    (value * factor).round() / factor
}

impl Figures {
    pub(super) fn of(clients: u64, tally: &Tally) -> Figures {
        Figures {
            clients,
            connected: tally.connected,
            active: tally.active,
            failed_connects: tally.failed_connects,
            disconnects: tally.disconnects,
            renewed: tally.renewed,
            sent: Sent { request_vm: tally.requests, update_vm: tally.updates, dispose_vm: tally.disposes },
            responses: tally.responses,
            received: tally.received,
            missed: tally.missed,
            duplicated: tally.duplicated,
            reordered: tally.reordered,
            misdelivered: tally.misdelivered,
            errors: tally.errors,
            connect: latency(tally.connect.histogram()),
            round_trip: latency(tally.round_trip.histogram()),
            delivery: latency(tally.delivery.histogram()),
            interval: latency(tally.interval.histogram()),
            rates: None,
            of_clients: averages(&tally.averages),
            faults: tally.faults.clone(),
            faults_more: tally.faults_more,
        }
    }

    /// Nothing went wrong so far.
    pub fn is_clean(&self) -> bool {
        let wrongs = [
            self.failed_connects,
            self.disconnects,
            self.renewed,
            self.missed,
            self.duplicated,
            self.reordered,
            self.misdelivered,
            self.errors,
        ];
        wrongs.iter().all(|count| *count == 0)
    }

    /// The distribution a profile is about: a round trip where there is one, or else the way to the client.
    pub fn latency(&self) -> Option<&Latency> {
        self.round_trip.as_ref().or(self.delivery.as_ref())
    }

    /// Missed in percent of what was received, as the original reckons.
    fn missed_percent(&self) -> f64 {
        match (self.missed, self.received) {
            (0, _) => 0.0,
            (_, 0) => 100.0,
            (missed, received) => round(missed as f64 / received as f64 * 100.0, 2),
        }
    }
}

impl Report {
    pub(super) fn new(
        options: &Options,
        servers: Vec<ServerFigures>,
        total: Figures,
        seconds: f64,
        load_seconds: f64,
        interrupted: bool,
    ) -> Report {
        // Who interrupts a ramp-up does not want the rest of the clients.
        let complete = interrupted || total.connected == total.clients;
        Report {
            profile: options.profile,
            protocol: options.protocol,
            interval: round(options.interval.as_secs_f64(), 3),
            seconds: round(seconds, 3),
            load_seconds: round(load_seconds, 3),
            interrupted,
            passed: complete && total.is_clean(),
            servers,
            total,
        }
    }

    /// The report as one JSON object, indented.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("names are strings and numbers finite")
    }

    /// The line that dotNetify's load tester ends with (contract 7.1).
    pub fn closing_line(&self, figures: &Figures) -> String {
        let clients = figures.connected;
        let (min, max, mean) =
            figures.of_clients.map_or((0.0, 0.0, 0.0), |of_clients| (of_clients.min, of_clients.max, of_clients.mean));
        let counts = format!("Received={}, Missed={}%", figures.received, figures.missed_percent());
        match self.profile {
            Profile::Broadcast => {
                format!("Clients={clients}, {counts}, Min interval={min}, Max interval={max}, Avg interval: {mean}")
            }
            Profile::ChatRoom => {
                format!("Clients={clients}, Min latency={min}, Max latency={max}, Avg Latency={mean}, {counts}")
            }
            _ => format!("Clients={clients}, {counts}, Min latency={min}, Max latency={max}, Avg latency: {mean}"),
        }
    }

    fn rows(&self) -> Vec<(&str, &Figures)> {
        let mut rows: Vec<(&str, &Figures)> =
            self.servers.iter().map(|server| (server.server.as_str(), &server.figures)).collect();
        if rows.len() > 1 {
            rows.push(("total", &self.total));
        }
        rows
    }

    fn counts(&self) -> Table {
        let mut table = table(&[
            "server",
            "connected",
            "failed",
            "lost",
            "renewed",
            "sent",
            "received",
            "missed",
            "twice",
            "reordered",
            "misdelivered",
            "errors",
            "sent/s",
            "received/s",
        ]);
        for (name, figures) in self.rows() {
            let rates = figures.rates.unwrap_or_default();
            table.add_row(vec![
                name.to_owned(),
                format!("{}/{}", figures.connected, figures.clients),
                figures.failed_connects.to_string(),
                figures.disconnects.to_string(),
                figures.renewed.to_string(),
                figures.sent.all().to_string(),
                figures.received.to_string(),
                figures.missed.to_string(),
                figures.duplicated.to_string(),
                figures.reordered.to_string(),
                figures.misdelivered.to_string(),
                figures.errors.to_string(),
                format!("{:.0}", rates.sent),
                format!("{:.0}", rates.received),
            ]);
        }
        table
    }

    fn times(&self) -> Table {
        let mut table = table(&["server", "ms", "count", "min", "mean", "p50", "p90", "p99", "p99.9", "max"]);
        for (name, figures) in self.rows() {
            let kinds = [
                ("connect", &figures.connect),
                ("round trip", &figures.round_trip),
                ("delivery", &figures.delivery),
                ("interval", &figures.interval),
            ];
            for (kind, latency) in kinds.into_iter().filter_map(|(kind, latency)| Some((kind, latency.as_ref()?))) {
                let times =
                    [latency.min, latency.mean, latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max];
                let mut row = vec![name.to_owned(), kind.to_owned(), latency.count.to_string()];
                row.extend(times.iter().map(|time| format!("{time:.2}")));
                table.add_row(row);
            }
        }
        table
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}", self.counts())?;
        let times = self.times();
        if !times.is_empty() {
            writeln!(formatter, "{times}")?;
        }
        for (name, figures) in self.rows() {
            for (text, times) in &figures.faults {
                // The total repeats its servers'.
                if name != "total" {
                    writeln!(
                        formatter,
                        "{name}: {text}{}",
                        if *times > 1 { format!(" ({times} times)") } else { String::new() }
                    )?;
                }
            }
            if figures.faults_more > 0 && name != "total" {
                writeln!(formatter, "{name}: {} more faults", figures.faults_more)?;
            }
        }
        for (name, figures) in self.rows() {
            writeln!(formatter, "{name}: {}", self.closing_line(figures))?;
            if figures.misdelivered > 0 {
                writeln!(formatter, "{name}: Misdelivered={}", figures.misdelivered)?;
            }
        }
        write!(formatter, "{}", if self.passed { "passed" } else { "FAILED" })?;
        if self.interrupted { write!(formatter, " (ended early)") } else { Ok(()) }
    }
}
