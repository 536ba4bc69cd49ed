//! What is seen of a run while it goes on: one line that changes on a terminal, or else a line every few seconds.
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use super::{Rates, Stage, Stats};

/// On a terminal; also how often figures are gathered.
pub const FRAME: Duration = Duration::from_millis(250);
/// Between two lines where there is no terminal.
const LINE: Duration = Duration::from_secs(5);
/// Rates are taken over about this time, or they would flicker.
const RATE: Duration = Duration::from_secs(1);

pub struct Progress {
    bar: Option<ProgressBar>,
    line_due: Instant,
    /// What rates are reckoned from, and since when.
    base: Option<(Instant, Stats)>,
    rates: Rates,
}

impl Progress {
    pub fn new(clients: u64) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{elapsed_precise} {bar:20} {msg}");
            let bar = ProgressBar::with_draw_target(Some(clients), ProgressDrawTarget::stderr());
            bar.with_style(style.expect("the template is well-formed"))
        });
        Progress { bar, line_due: Instant::now() + LINE, base: None, rates: Rates::default() }
    }

    pub fn show(&mut self, stats: Stats) {
        let now = Instant::now();
        match &self.base {
            Some((since, base)) if now - *since >= RATE => {
                self.rates = stats.rates_since(base);
                self.base = Some((now, stats.clone()));
            }
            Some(_) => {}
            None => self.base = Some((now, stats.clone())),
        }
        let line = line(&stats, &self.rates);
        match &self.bar {
            Some(bar) => {
                bar.set_position(stats.total.active);
                bar.set_message(line);
            }
            None if now >= self.line_due => {
                self.line_due = now + LINE;
                // A closed stderr stops no load.
                let _ = writeln!(std::io::stderr(), "{:>6.1} s  {line}", stats.elapsed);
            }
            None => {}
        }
    }

    pub fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

fn line(stats: &Stats, rates: &Rates) -> String {
    let total = &stats.total;
    let stage = match stats.stage {
        Stage::RampUp => "ramp-up",
        Stage::Load => "load",
        Stage::Settling => "settling",
        Stage::RampDown => "ramp-down",
        Stage::Done => "done",
    };
    let p99 = total.latency().map_or_else(|| "-".to_owned(), |latency| format!("{:.1} ms", latency.p99));
    let mut line = format!(
        "{stage}  clients {}/{}  out {:.0}/s  in {:.0}/s  p99 {p99}  missed {}",
        total.active, total.clients, rates.sent, rates.received, total.missed
    );
    let others = [
        ("failed", total.failed_connects),
        ("lost", total.disconnects),
        ("twice", total.duplicated),
        ("reordered", total.reordered),
        ("misdelivered", total.misdelivered),
        ("errors", total.errors),
    ];
    for (name, count) in others.into_iter().filter(|(_, count)| *count > 0) {
        line.push_str(&format!("  {name} {count}"));
    }
    line
}
