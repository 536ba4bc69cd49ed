//! What lanes are dialled with, and what became of it at each url: the lanes to one url share its trouble, so that it is told once.
use super::{credentials, random};
use crate::config::{self, Config, UpstreamUrl};
use crate::ids::{HubId, LanePlace, UpstreamIndex};
use crate::limits::{OBSERVER_RETRY_MS, URL_TROUBLES_MAX};
use crate::proto::signalr::handshake::Protocol;
use crate::session::routing::{HubScope, UpstreamKind};
use core::cell::{Cell, RefCell};
use core::time::Duration;
use rustls::ClientConfig;
use std::io;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

/// What is prepared before a node starts, so that what cannot be prepared ends the start.
pub(super) struct Prepared {
    /// One each, in the order of the configuration. None where no url is https.
    tls: Vec<Option<Arc<ClientConfig>>>,
    /// One for the process: an Observer draws what reaches it and what reaches an app server as one node only if both see the same
    /// hub id (contract 7.2).
    node: HubId,
}

impl Prepared {
    pub(super) fn new(config: &Config) -> io::Result<Prepared> {
        let tls = config.upstreams.iter().map(credentials::lane_tls).collect::<io::Result<_>>()?;
        Ok(Prepared { tls, node: HubId::from_random(random()?) })
    }
}

/// One configured upstream, as the control thread sees it.
pub(super) struct Upstream {
    pub(super) name: Arc<str>,
    pub(super) kind: UpstreamKind,
    protocol: Protocol,
    tls: RefCell<Option<Arc<ClientConfig>>>,
    /// Of every lane. None: each incarnation has its own.
    hub_id: Option<HubId>,
    pub(super) urls: Vec<Target>,
}

/// One of its urls.
pub(super) struct Target {
    url: UpstreamUrl,
    pub(super) text: Arc<str>,
    health: RefCell<Health>,
    /// There for an Observer.
    gate: Option<Gate>,
}

/// How dialling a url went lately, over all its lanes.
#[derive(Default)]
struct Health {
    /// What the last attempt failed of, until one succeeds.
    trouble: Option<String>,
    /// What was logged since one succeeded: a reason is told once, however many lanes meet it and however often.
    told: Vec<String>,
}

/// Everything a lane needs to be dialled.
pub(super) struct Way<'a> {
    pub(super) url: &'a UpstreamUrl,
    pub(super) protocol: Protocol,
    pub(super) tls: Option<Arc<ClientConfig>>,
}

pub(super) struct Upstreams(pub(super) Vec<Upstream>);

impl Upstreams {
    pub(super) fn new(config: &Config, prepared: Prepared) -> Upstreams {
        let Prepared { tls, node } = prepared;
        Upstreams(config.upstreams.iter().zip(tls).map(|(upstream, tls)| Upstream::new(upstream, tls, node)).collect())
    }

    pub(super) fn of(&self, place: LanePlace) -> (&Upstream, &Target) {
        let upstream = self.upstream(place.upstream);
        (upstream, &upstream.urls[usize::from(place.url)])
    }

    pub(super) fn upstream(&self, index: UpstreamIndex) -> &Upstream {
        &self.0[usize::from(index.0)]
    }
}

impl Upstream {
    fn new(config: &config::Upstream, tls: Option<Arc<ClientConfig>>, node: HubId) -> Upstream {
        let is_observer = config.kind == UpstreamKind::Observer;
        let target = |url: &UpstreamUrl| Target {
            text: url.text.as_str().into(),
            url: url.clone(),
            health: RefCell::default(),
            gate: is_observer.then(Gate::default),
        };
        Upstream {
            name: config.name.as_str().into(),
            kind: config.kind,
            protocol: if config.use_message_pack { Protocol::MessagePack } else { Protocol::Json },
            tls: RefCell::new(tls),
            hub_id: match config.hub_id {
                HubScope::Lane => None,
                HubScope::Node => Some(node),
            },
            urls: config.urls.iter().map(|weighted| target(&weighted.url)).collect(),
        }
    }

    /// Lanes that are dialled from now on show this certificate and trust these authorities.
    pub(super) fn renew(&self, tls: Option<Arc<ClientConfig>>) {
        self.tls.replace(tls);
    }

    pub(super) fn way<'a>(&'a self, target: &'a Target) -> Way<'a> {
        // An upstream may have urls of both kinds.
        let tls = self.tls.borrow().clone().filter(|_| target.url.tls);
        Way { url: &target.url, protocol: self.protocol, tls }
    }

    /// The hub id of a lane that has just come up.
    pub(super) fn hub_id(&self) -> io::Result<HubId> {
        match self.hub_id {
            Some(hub_id) => Ok(hub_id),
            None => random().map(HubId::from_random),
        }
    }

    pub(super) fn succeeded(&self, target: &Target) {
        let Health { trouble, told } = std::mem::take(&mut *target.health.borrow_mut());
        if trouble.is_some() || !told.is_empty() {
            info!(upstream = %self.name, url = %target.text, "reachable again");
        }
        if let Some(gate) = &target.gate {
            gate.open();
        }
    }

    /// `random` is any number.
    pub(super) fn failed(&self, target: &Target, error: String, random: u64) {
        let again = match &target.gate {
            Some(gate) => {
                gate.close(random);
                "at most once a minute"
            }
            None => "at most every 10 s",
        };
        let mut health = target.health.borrow_mut();
        if health.learn(&error) {
            warn!(upstream = %self.name, url = %target.text, "cannot dial: {error}; trying again, {again}");
        }
        health.trouble = Some(error);
    }
}

impl Health {
    /// Whether this is news.
    fn learn(&mut self, error: &str) -> bool {
        // A reason may have a part that changes every time; such a url falls silent too.
        let is_new = self.told.len() < URL_TROUBLES_MAX && !self.told.iter().any(|told| told == error);
        if is_new {
            self.told.push(error.to_owned());
        }
        is_new
    }
}

impl Target {
    /// What the last attempt failed of, until one succeeds.
    pub(super) fn trouble(&self) -> Option<String> {
        self.health.borrow().trouble.clone()
    }

    /// Waits while an attempt would come too early.
    pub(super) async fn admitted(&self) {
        if let Some(gate) = &self.gate {
            gate.pass().await;
        }
    }
}

/// Lets one attempt through a minute, whichever lane makes it (contract 7.2: "retries an unreachable Observer at most once a minute").
#[derive(Default)]
struct Gate {
    closed_until: Cell<Option<Instant>>,
    opened: Notify,
}

impl Gate {
    async fn pass(&self) {
        while let Some(until) = self.closed_until.get() {
            if Instant::now() >= until {
                // The others wait for what comes of this one.
                return self.close(0);
            }
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                () = self.opened.notified() => {}
            }
        }
    }

    fn close(&self, random: u64) {
        // Never earlier than said; spread, so that many nodes do not knock together.
        let wait = Duration::from_millis(OBSERVER_RETRY_MS + random % (OBSERVER_RETRY_MS / 4));
        self.closed_until.set(Some(Instant::now() + wait));
    }

    fn open(&self) {
        self.closed_until.set(None);
        self.opened.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Machine, RunFlags};
    use crate::tls::ClientTls;
    use crate::tls::certificates::{Authority, Folder};
    use std::rc::Rc;

    fn config(text: &str) -> Config {
        Config::resolve(Some(("node.toml", text)), std::iter::empty(), &RunFlags::default(), &Machine::probe()).unwrap()
    }

    #[test]
    fn each_upstream_is_dialled_in_its_own_way() {
        let folder = Folder::new();
        let ca = folder.file("ca.pem", Authority::new("the test's authority").pem());
        let config = config(&format!(
            "[[upstream]]\nname = \"both\"\nurls = [\"http://a:1\", \"https://b:2\"]\nca_file = {ca:?}\nhub_id = \"node\"\n\
             [[upstream]]\nname = \"plain\"\nurl = \"http://c:3\"\nuse_message_pack = true\nhub_id = \"lane\"\n\
             [[upstream]]\nname = \"more\"\nurl = \"http://d:4\"\nhub_id = \"node\"\n"
        ));
        let tls = ClientTls::load(Some(&ca), None).unwrap();
        let prepared = Prepared { tls: vec![Some(tls), None, None], node: HubId::from_random([7; 16]) };
        let upstreams = Upstreams::new(&config, prepared);
        let dialled = |upstream, url| {
            let (upstream, target) = upstreams.of(LanePlace { upstream: UpstreamIndex(upstream), url });
            let way = upstream.way(target);
            (way.url.text.clone(), way.protocol, way.tls.is_some())
        };
        assert_eq!(dialled(0, 0), ("http://a:1".into(), Protocol::Json, false));
        assert_eq!(dialled(0, 1), ("https://b:2".into(), Protocol::Json, true));
        assert_eq!(dialled(1, 0), ("http://c:3".into(), Protocol::MessagePack, false));

        let hub_id = |upstream| upstreams.upstream(UpstreamIndex(upstream)).hub_id().unwrap();
        assert_eq!((hub_id(0), hub_id(2)), (hub_id(0), hub_id(0)), "the node has one");
        assert_ne!(hub_id(1), hub_id(1), "each incarnation of a lane has its own");
        assert_ne!(hub_id(1), hub_id(0));
    }

    #[test]
    fn a_reason_is_told_once_until_it_is_over() {
        let mut health = Health::default();
        assert!(health.learn("refused") && health.learn("no answer"));
        for _ in 0..10 {
            assert!(!health.learn("refused") && !health.learn("no answer"));
        }
        let told = (0..1000).filter(|number| health.learn(&format!("odd answer {number}"))).count();
        assert_eq!(told, URL_TROUBLES_MAX - 2, "an answer that changes every time does not fill the log");
        let mut health = Health::default();
        assert!(health.learn("refused"));
    }

    /// Five lanes of an Observer that is not there for ten minutes, then there.
    #[tokio::test(start_paused = true)]
    async fn an_observer_is_knocked_at_once_a_minute_and_all_lanes_follow_the_first() {
        let gate = Rc::new(Gate::default());
        let attempts = Rc::new(RefCell::new(Vec::new()));
        let is_there = Rc::new(Cell::new(false));
        let start = Instant::now();
        let local = tokio::task::LocalSet::new();
        for lane in 0..5u64 {
            let (gate, attempts, is_there) = (gate.clone(), attempts.clone(), is_there.clone());
            local.spawn_local(async move {
                loop {
                    gate.pass().await;
                    attempts.borrow_mut().push(start.elapsed());
                    if is_there.get() {
                        return gate.open();
                    }
                    gate.close(lane * 1000);
                    tokio::time::sleep(Duration::from_millis(700)).await;
                }
            });
        }
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        local.run_until(tokio::time::sleep(minutes(10))).await;
        let retries = attempts.borrow().iter().filter(|at| **at > minutes(0)).copied().collect::<Vec<_>>();
        assert!((7..=10).contains(&retries.len()), "{retries:?}");
        assert!(retries.windows(2).all(|pair| pair[1] - pair[0] >= minutes(1)), "{retries:?}");

        is_there.set(true);
        let before = attempts.borrow().len();
        local.run_until(tokio::time::sleep(minutes(2))).await;
        let came = attempts.borrow()[before..].to_vec();
        assert_eq!(came.len(), 5, "{came:?}");
        assert!(came.iter().all(|at| *at - came[0] < Duration::from_secs(1)), "{came:?}");
    }
}
