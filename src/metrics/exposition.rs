//! The text of /metrics, written by `prometheus-client` from a snapshot of every shard's numbers.
use super::process::ProcessInfo;
use super::table::{BUCKETS, COUNTERS, GAUGES, HISTOGRAMS, Series, UPSTREAM_COUNTERS, UPSTREAM_GAUGES};
use super::{GAUGES_AT, HISTOGRAM_CELLS, HISTOGRAMS_AT, Published, UPSTREAM_CELLS, UPSTREAMS_AT};
use core::fmt;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::sync::Arc;

/// OpenMetrics, which every Prometheus since 2.5 asks for.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// State of a lane, as metrics and the admin endpoint call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneState {
    /// Carries messages.
    Up,
    /// Being dialled or shaking hands.
    Connecting,
    /// Waits for its next attempt.
    Waiting,
}

impl LaneState {
    pub const ALL: [LaneState; 3] = [LaneState::Up, LaneState::Connecting, LaneState::Waiting];

    pub fn label(self) -> &'static str {
        match self {
            LaneState::Up => "up",
            LaneState::Connecting => "connecting",
            LaneState::Waiting => "waiting",
        }
    }
}

/// What the control plane knows of one lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneInfo {
    pub shard: u16,
    /// Number within its shard.
    pub lane: u16,
    /// Name of its upstream.
    pub upstream: Arc<str>,
    /// Which of the upstream's urls it leads to, as configured: there are no credentials in it.
    pub url: Arc<str>,
    pub state: LaneState,
}

/// What the control plane knows of journals: ids that the journals of killed processes name, and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalInfo {
    /// Their app servers are still to be told that they are gone.
    pub waiting: u64,
    /// They have been told.
    pub signed_off: u64,
    /// Their app server is none of this configuration's.
    pub strangers: u64,
    /// Nobody can say who they were.
    pub damaged: u64,
    /// Journals that could not be made, read or deleted.
    pub errors: u64,
}

/// What a page needs beside the shards' numbers.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// Names of the upstreams in the order of the configuration.
    pub upstreams: Vec<Arc<str>>,
    pub lanes: Vec<LaneInfo>,
    pub reloads: Reloads,
    pub process: ProcessInfo,
    pub journal: JournalInfo,
}

/// How often the configuration was read again.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reloads {
    /// It holds.
    pub applied: u64,
    /// It had a fault, and all stayed as it was.
    pub refused: u64,
    /// When it was last read and held, the node's start included, in Unix time.
    pub last_seconds: f64,
}

/// The whole page: `published[n]` are the numbers of shard n.
pub fn encode(published: &[&Published], node: &NodeInfo) -> String {
    let shards =
        published.iter().enumerate().map(|(shard, published)| (shard.to_string(), published.snapshot())).collect();
    let mut registry = Registry::with_prefix("signalring");
    registry.register_collector(Box::new(Snapshot { shards, node: node.clone() }));
    // By the names that every client library of Prometheus has for them, which dashboards know.
    let mut process = Registry::with_prefix("process");
    process.register_collector(Box::new(node.process));
    let mut text = String::with_capacity(16 * 1024);
    encode_registry(&mut text, &registry)
        .and_then(|()| encode_registry(&mut text, &process))
        .and_then(|()| encode_eof(&mut text))
        .expect("a String takes any text");
    text
}

/// Values read once, so that the families of one page belong together.
#[derive(Debug)]
struct Snapshot {
    /// Label of a shard, and its cells.
    shards: Vec<(String, Vec<u64>)>,
    node: NodeInfo,
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        encoder
            .encode_descriptor("build", "The running version", None, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        self.families(&mut encoder, COUNTERS, 0, MetricType::Counter)?;
        self.families(&mut encoder, GAUGES, GAUGES_AT, MetricType::Gauge)?;
        self.upstream_families(&mut encoder, UPSTREAM_COUNTERS, UPSTREAMS_AT, MetricType::Counter)?;
        let gauges_at = UPSTREAMS_AT + UPSTREAM_COUNTERS.len();
        self.upstream_families(&mut encoder, UPSTREAM_GAUGES, gauges_at, MetricType::Gauge)?;
        for (index, series) in HISTOGRAMS.iter().enumerate() {
            let at = HISTOGRAMS_AT + index * HISTOGRAM_CELLS;
            let mut family = encoder.encode_descriptor(series.family, series.help, None, MetricType::Histogram)?;
            for (shard, cells) in &self.shards {
                let counts = &cells[at..at + BUCKETS + 1];
                let sum = seconds(cells[at + BUCKETS + 1]);
                let bounds = series.bounds_us.iter().map(|&us| seconds(us)).chain([f64::INFINITY]);
                let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
                let labels = [("shard", shard.as_str())];
                family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                    sum,
                    counts.iter().sum(),
                    &buckets,
                    None,
                )?;
            }
        }
        let Reloads { applied, refused, last_seconds } = self.node.reloads;
        let mut family = encoder.encode_descriptor("reloads", RELOADS_HELP, None, MetricType::Counter)?;
        for (result, count) in [("applied", applied), ("refused", refused)] {
            family.encode_family(&[("result", result)])?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        encoder
            .encode_descriptor("last_reload_timestamp_seconds", LAST_RELOAD_HELP, None, MetricType::Gauge)?
            .encode_gauge(&last_seconds)?;
        let mut family = encoder.encode_descriptor("upstream_up", UPSTREAM_UP_HELP, None, MetricType::Gauge)?;
        for ((upstream, url), up) in self.urls() {
            let labels = [("upstream", upstream), ("url", url)];
            family.encode_family(&labels)?.encode_gauge(&i64::from(up))?;
        }
        // One series a state, as OpenMetrics writes an enumeration: sums and alerts need no knowledge of the other states. What a lane
        // leads to are labels of its own series, and add none.
        let mut family = encoder.encode_descriptor("lane_state", LANE_STATE_HELP, None, MetricType::Gauge)?;
        for lane in &self.node.lanes {
            for state in LaneState::ALL {
                let (shard, number) = (lane.shard.to_string(), lane.lane.to_string());
                let labels = [
                    ("shard", shard.as_str()),
                    ("lane", number.as_str()),
                    ("upstream", &lane.upstream),
                    ("url", &lane.url),
                    ("state", state.label()),
                ];
                family.encode_family(&labels)?.encode_gauge(&i64::from(lane.state == state))?;
            }
        }
        self.journal(&mut encoder)
    }
}

impl Snapshot {
    fn journal(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let JournalInfo { waiting, signed_off, strangers, damaged, errors } = self.node.journal;
        encoder
            .encode_descriptor("recovering_ids", RECOVERING_HELP, None, MetricType::Gauge)?
            .encode_gauge(&waiting)?;
        let mut family = encoder.encode_descriptor("recovered_ids", RECOVERED_HELP, None, MetricType::Counter)?;
        for (result, count) in [("signed_off", signed_off), ("unknown_url", strangers), ("damaged", damaged)] {
            let labels = [("result", result)];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        encoder
            .encode_descriptor("journal_errors", JOURNAL_ERRORS_HELP, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&errors, None)
    }

    /// Every family of a table, whose first cell is `at`: one line a series and shard.
    fn families(&self, encoder: &mut DescriptorEncoder, table: &[Series], at: usize, kind: MetricType) -> fmt::Result {
        let mut at = at;
        for series in table.chunk_by(|a, b| a.family == b.family) {
            let mut family = encoder.encode_descriptor(series[0].family, series[0].help, None, kind)?;
            for (offset, one) in series.iter().enumerate() {
                for (shard, cells) in &self.shards {
                    let labels = [one.label, ("shard", shard.as_str())];
                    let labels = if one.label.0.is_empty() { &labels[1..] } else { &labels[..] };
                    write_value(family.encode_family(&labels)?, kind, cells[at + offset])?;
                }
            }
            at += series.len();
        }
        Ok(())
    }

    /// Likewise for a table with cells for each upstream, the first one's at `at`. Summed over the shards: who asks about an upstream
    /// asks about the node, and a shard's label would multiply the series.
    fn upstream_families(
        &self,
        encoder: &mut DescriptorEncoder,
        table: &[Series],
        at: usize,
        kind: MetricType,
    ) -> fmt::Result {
        let mut at = at;
        for series in table.chunk_by(|a, b| a.family == b.family) {
            let mut family = encoder.encode_descriptor(series[0].family, series[0].help, None, kind)?;
            for (offset, one) in series.iter().enumerate() {
                for (index, name) in self.node.upstreams.iter().enumerate() {
                    let cell = at + offset + index * UPSTREAM_CELLS;
                    let sum = self.shards.iter().fold(0u64, |sum, (_, cells)| sum.wrapping_add(cells[cell]));
                    let labels = [one.label, ("upstream", &**name)];
                    let labels = if one.label.0.is_empty() { &labels[1..] } else { &labels[..] };
                    write_value(family.encode_family(&labels)?, kind, sum)?;
                }
            }
            at += series.len();
        }
        Ok(())
    }

    /// Every url of every upstream, and whether any lane to it is up.
    fn urls(&self) -> BTreeMap<(&str, &str), bool> {
        let mut urls = BTreeMap::new();
        for lane in &self.node.lanes {
            *urls.entry((&*lane.upstream, &*lane.url)).or_default() |= lane.state == LaneState::Up;
        }
        urls
    }
}

fn write_value(mut metric: MetricEncoder<'_>, kind: MetricType, value: u64) -> fmt::Result {
    match kind {
        MetricType::Counter => metric.encode_counter::<NoLabelSet, _, u64>(&value, None),
        _ => metric.encode_gauge(&value),
    }
}

impl Collector for ProcessInfo {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        if let Some(seconds) = self.cpu_seconds {
            encoder
                .encode_descriptor("cpu_seconds", "Processor time used, user and system", None, MetricType::Counter)?
                .encode_counter::<NoLabelSet, _, u64>(&seconds, None)?;
        }
        for (name, help, value) in [
            ("resident_memory_bytes", "Resident memory", self.resident_bytes),
            ("open_fds", "Open file descriptors", self.open_fds),
            ("max_fds", "Most file descriptors that may be open", self.max_fds),
        ] {
            if let Some(value) = value {
                encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
            }
        }
        if let Some(seconds) = self.start_seconds {
            encoder
                .encode_descriptor("start_time_seconds", "Start of the process, in Unix time", None, MetricType::Gauge)?
                .encode_gauge(&seconds)?;
        }
        Ok(())
    }
}

const RECOVERING_HELP: &str =
    "Ids of clients of killed processes whose app servers are still to be told that they are gone";
const RECOVERED_HELP: &str = "Ids found in the journals of killed processes, by what became of them";
const JOURNAL_ERRORS_HELP: &str = "Journals that could not be made, read or deleted";
const RELOADS_HELP: &str = "Times the configuration was read again, by what came of it";
const LAST_RELOAD_HELP: &str = "When the configuration was last read without a fault, in Unix time";
const UPSTREAM_UP_HELP: &str = "Whether at least one lane to this url of an upstream is up";
const LANE_STATE_HELP: &str =
    "The state of each lane as the control plane knows it: 1 for the one it is in, 0 for the others";

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::super::{Counter, Gauge, Histogram, ShardMetrics, UpstreamCounter, UpstreamGauge};
    use super::*;
    use crate::ids::UpstreamIndex;
    use std::collections::BTreeSet;

    fn page() -> String {
        let published: Vec<Published> = (0..2)
            .map(|shard| {
                let mut metrics = ShardMetrics::new();
                metrics.add(Counter::RefusedNotFound, 7 + shard);
                metrics.add(Counter::Turns, u64::MAX);
                metrics.set(Gauge::Clients, 3);
                metrics.observe_us(Histogram::QueueWait, 1_500);
                metrics.observe_us(Histogram::QueueWait, 60_000_000);
                metrics.add_upstream(UpstreamIndex(1), UpstreamCounter::Forwarded, 40 + shard);
                metrics.set_upstream(UpstreamIndex(0), UpstreamGauge::Clients, 5);
                // Not configured.
                metrics.add_upstream(UpstreamIndex(2), UpstreamCounter::Deliveries, 99_999);
                let published = Published::new();
                metrics.publish(&published);
                published
            })
            .collect();
        let lane = |shard, lane, upstream: &str, url: &str, state| LaneInfo {
            shard,
            lane,
            upstream: upstream.into(),
            url: url.into(),
            state,
        };
        let node = NodeInfo {
            upstreams: vec!["chat".into(), "rest".into()],
            lanes: vec![
                lane(0, 0, "chat", "http://a:1", LaneState::Up),
                lane(0, 1, "rest", "http://b:2", LaneState::Connecting),
                lane(1, 0, "chat", "http://a:1", LaneState::Waiting),
            ],
            reloads: Reloads { applied: 2, refused: 1, last_seconds: 1_700_000_100.25 },
            process: ProcessInfo {
                cpu_seconds: Some(1.25),
                resident_bytes: Some(4096),
                open_fds: Some(12),
                max_fds: None,
                start_seconds: Some(1_700_000_000.5),
            },
            journal: JournalInfo { waiting: 5, signed_off: 4, strangers: 3, damaged: 2, errors: 1 },
        };
        encode(&published.iter().collect::<Vec<_>>(), &node)
    }

    #[test]
    fn the_page_has_every_series_of_every_shard() {
        let page = page();
        for shard in ["0", "1"] {
            let selector = |series: &Series| match series.label {
                ("", _) => format!("{{shard=\"{shard}\"}} "),
                (label, value) => format!("{{{label}=\"{value}\",shard=\"{shard}\"}} "),
            };
            for series in COUNTERS {
                let line = format!("\nsignalring_{}_total{}", series.family, selector(series));
                assert_eq!(page.matches(&line).count(), 1, "{line}");
            }
            for series in GAUGES {
                let line = format!("\nsignalring_{}{}", series.family, selector(series));
                assert_eq!(page.matches(&line).count(), 1, "{line}");
            }
            for histogram in HISTOGRAMS {
                assert!(
                    page.contains(&format!("\nsignalring_{}_count{{shard=\"{shard}\"}} ", histogram.family)),
                    "{}",
                    histogram.family
                );
            }
        }
        for upstream in ["chat", "rest"] {
            for (suffix, table) in [("_total", UPSTREAM_COUNTERS), ("", UPSTREAM_GAUGES)] {
                for series in table {
                    let label = match series.label {
                        ("", _) => String::new(),
                        (label, value) => format!("{label}=\"{value}\","),
                    };
                    let line = format!("\nsignalring_{}{suffix}{{{label}upstream=\"{upstream}\"}} ", series.family);
                    assert_eq!(page.matches(&line).count(), 1, "{line}");
                }
            }
        }
        assert!(!page.contains("99999"), "an upstream that is not configured is exported");
        for line in [
            "signalring_refusals_total{reason=\"not_found\",shard=\"1\"} 8",
            "signalring_clients{shard=\"0\"} 3",
            "signalring_lane_state{shard=\"0\",lane=\"0\",upstream=\"chat\",url=\"http://a:1\",state=\"up\"} 1",
            "signalring_lane_state{shard=\"0\",lane=\"0\",upstream=\"chat\",url=\"http://a:1\",state=\"waiting\"} 0",
            "signalring_lane_state{shard=\"1\",lane=\"0\",upstream=\"chat\",url=\"http://a:1\",state=\"up\"} 0",
            "signalring_lane_state{shard=\"1\",lane=\"0\",upstream=\"chat\",url=\"http://a:1\",state=\"waiting\"} 1",
            "signalring_upstream_messages_total{result=\"forwarded\",upstream=\"rest\"} 81",
            "signalring_upstream_clients{upstream=\"chat\"} 10",
            "signalring_upstream_up{upstream=\"chat\",url=\"http://a:1\"} 1",
            "signalring_upstream_up{upstream=\"rest\",url=\"http://b:2\"} 0",
            "signalring_recovering_ids 5",
            "signalring_recovered_ids_total{result=\"signed_off\"} 4",
            "signalring_recovered_ids_total{result=\"unknown_url\"} 3",
            "signalring_recovered_ids_total{result=\"damaged\"} 2",
            "signalring_journal_errors_total 1",
            "signalring_reloads_total{result=\"applied\"} 2",
            "signalring_reloads_total{result=\"refused\"} 1",
            "signalring_last_reload_timestamp_seconds 1700000100.25",
            "process_cpu_seconds_total 1.25",
            "process_resident_memory_bytes 4096",
            "process_open_fds 12",
            "process_start_time_seconds 1700000000.5",
            "signalring_queue_wait_seconds_count{shard=\"0\"} 2",
            "signalring_queue_wait_seconds_sum{shard=\"0\"} 60.0015",
            "signalring_queue_wait_seconds_bucket{le=\"0.001\",shard=\"0\"} 0",
            "signalring_queue_wait_seconds_bucket{le=\"0.002\",shard=\"0\"} 1",
            "signalring_queue_wait_seconds_bucket{le=\"+Inf\",shard=\"0\"} 2",
            &format!("signalring_turns_total{{shard=\"0\"}} {}", u64::MAX),
            &format!("signalring_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")),
        ] {
            assert!(page.contains(&format!("\n{line}\n")), "{line}\n{page}");
        }
    }

    #[test]
    fn the_page_parses() {
        let page = page();
        assert!(page.ends_with("# EOF\n"));
        let mut types = BTreeMap::new();
        let mut samples = BTreeSet::new();
        for line in page.lines().filter(|line| *line != "# EOF") {
            if let Some(descriptor) = line.strip_prefix("# ") {
                let mut words = descriptor.splitn(3, ' ');
                let (what, name, rest) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
                match what {
                    "TYPE" => {
                        assert_eq!(types.insert(name.to_string(), rest.to_string()), None, "{name} has two types")
                    }
                    "HELP" => assert!(!rest.is_empty()),
                    _ => panic!("{line}"),
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').expect(line);
            value.parse::<f64>().expect(line);
            assert!(samples.insert(series.to_string()), "{series} is there twice");
            let name = series.split('{').next().unwrap();
            let known = ["", "_total", "_info", "_bucket", "_sum", "_count"]
                .iter()
                .any(|suffix| name.strip_suffix(suffix).is_some_and(|family| types.contains_key(family)));
            let ours = ["signalring_", "process_"].iter().any(|prefix| name.starts_with(prefix));
            assert!(known && ours, "{line}");
        }
        assert!(samples.len() > 200);
    }

    #[test]
    fn the_readme_has_every_family_and_no_other() {
        let readme = include_str!("../../README.md");
        let named: BTreeSet<&str> = readme
            .split("`signalring_")
            .skip(1)
            .map(|rest| rest.split(|letter: char| letter != '_' && !letter.is_ascii_alphanumeric()).next().unwrap())
            // The prefix itself.
            .filter(|name| !name.is_empty())
            .collect();
        let page = page();
        let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE signalring_")?.split_once(' '));
        let families: BTreeSet<String> = types
            .map(|(family, kind)| match kind {
                "counter" => format!("{family}_total"),
                "info" => format!("{family}_info"),
                _ => family.to_string(),
            })
            .collect();
        assert_eq!(named, families.iter().map(String::as_str).collect());
    }

    #[test]
    fn every_lane_is_in_exactly_one_state() {
        let page = page();
        for (shard, state) in [(0, LaneState::Up), (1, LaneState::Waiting)] {
            let lane = format!("signalring_lane_state{{shard=\"{shard}\",lane=\"0\",");
            let lines: Vec<&str> = page.lines().filter(|line| line.starts_with(&lane)).collect();
            assert_eq!(lines.len(), LaneState::ALL.len());
            let present: Vec<&&str> = lines.iter().filter(|line| line.ends_with(" 1")).collect();
            assert!(present.len() == 1 && present[0].contains(state.label()), "{lines:?}");
        }
    }
}
