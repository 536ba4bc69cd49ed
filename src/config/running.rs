//! A configuration that a node runs with, and what it takes over of another one that was read since.
use super::secret::SHOWN;
use super::settings::{Key, Place, Table};
use super::{Config, Upstream};
use crate::filter::Filter;
use crate::session::routing::{Route, Routes};
use std::fmt;

/// What a node runs with.
#[derive(Clone)]
pub struct Running {
    config: Config,
    /// Of the node's start: clients are known by what its filters looked at.
    routes: Routes,
}

/// A setting that was read with another value than the node runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    place: Option<Place>,
    /// `hub.keep_alive_interval`, or `filter of upstream chat`.
    name: String,
    from: String,
    to: String,
    /// It holds from now on. Otherwise it takes a new process.
    pub holds: bool,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Change { name, from, to, .. } = self;
        write!(f, "{name}: {from} -> {to}")
    }
}

impl Running {
    pub fn new(config: Config) -> Running {
        let routes = routes(&config.upstreams);
        Running { config, routes }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What this becomes when another configuration was read: it takes over what can change without dropping anybody. The changes
    /// stand in the order of the settings.
    pub fn renewed(&self, fresh: &Config) -> (Running, Vec<Change>) {
        let mut changes = self.changes(fresh);
        let mut renewed = self.clone();
        for change in &mut changes {
            if let Some(place) = change.place.filter(|_| change.holds) {
                renewed.config.take_over(place, fresh);
            }
        }
        (renewed, changes)
    }

    fn changes(&self, fresh: &Config) -> Vec<Change> {
        let config = &self.config;
        let keys = |upstream| Key::all().filter(move |key| (key.setting().table == Table::Upstream) == upstream);
        let mut places: Vec<Place> = keys(false).map(Place::from).collect();
        let mut changes = Vec::new();
        // An upstream is known by its name and place.
        let names = |config: &Config| config.upstreams.iter().map(|upstream| upstream.name.clone()).collect::<Vec<_>>();
        if names(config) == names(fresh) {
            places.extend(
                (0..config.upstreams.len()).flat_map(|upstream| keys(true).map(move |key| Place { upstream, key })),
            );
        } else {
            let (name, [from, to]) = ("upstreams".into(), [names(config), names(fresh)].map(|names| names.join(", ")));
            changes.push(Change { place: None, name, from, to, holds: false });
        }
        let filters_fit = self.routes.know(&routes(&fresh.upstreams));
        for place in places {
            if !config.differs(place, fresh) {
                continue;
            }
            let setting = place.key.setting();
            let [from, to] = [config, fresh].map(|config| config.text(place));
            let holds = match place.key {
                // https listeners go on, and need one.
                Key::TlsCertificateFile | Key::TlsKeyFile | Key::TlsMinimumVersion => fresh.tls.is_some(),
                Key::Filter => filters_fit,
                Key::Url => config.upstreams[place.upstream].has_urls_of(&fresh.upstreams[place.upstream]),
                _ => setting.reloads,
            };
            let to = if from == to && to.is_some() { format!("another {SHOWN}") } else { shown(to) };
            let name = match setting.table {
                Table::Upstream => format!("{} of upstream {}", setting.name, config.upstreams[place.upstream].name),
                _ => setting.path(),
            };
            changes.push(Change { place: Some(place), name, from: shown(from), to, holds });
        }
        changes
    }
}

fn shown(value: Option<String>) -> String {
    value.unwrap_or_else(|| "not set".into())
}

fn routes(upstreams: &[Upstream]) -> Routes {
    Routes::new(upstreams.iter().map(Upstream::route).collect())
}

impl Upstream {
    pub fn route(&self) -> Route {
        Route { kind: self.kind, filter: self.filter.clone(), halts: self.halt_pipeline }
    }

    /// Weights apart.
    fn has_urls_of(&self, other: &Upstream) -> bool {
        self.urls.iter().map(|target| &target.url).eq(other.urls.iter().map(|target| &target.url))
    }
}

impl Config {
    fn differs(&self, place: Place, other: &Config) -> bool {
        let identity = |config: &Config| config.identity.as_ref().and_then(|identity| identity.signing_key.clone());
        let secrets = match place.key {
            Key::TokenKey | Key::TokenKeyFile => [self.token_key.clone(), other.token_key.clone()],
            Key::SigningKey | Key::SigningKeyFile => [self, other].map(identity),
            _ => return self.text(place) != other.text(place),
        };
        // The same secret from elsewhere is no change, and another one in the same place is.
        let [was_here, is_here] = [self, other].map(|config| config.text(place).is_some());
        let [was, is] = secrets.map(|secret| secret.map(|secret| secret.bytes().to_vec()));
        was != is && (was_here || is_here)
    }

    /// Takes one of those settings over that a running node can change.
    fn take_over(&mut self, place: Place, fresh: &Config) {
        let upstream = place.upstream;
        match place.key {
            Key::TrustedProxies => self.trusted_proxies.clone_from(&fresh.trusted_proxies),
            Key::ForwardedHeader => self.forwarded_header = fresh.forwarded_header,
            Key::ProxyProtocol => self.proxy_protocol = fresh.proxy_protocol,
            Key::AllowedOrigins => self.allowed_origins.clone_from(&fresh.allowed_origins),
            Key::Log => self.log.clone_from(&fresh.log),
            Key::DrainDelay => self.drain_delay = fresh.drain_delay,
            Key::DrainWindow => self.drain_window = fresh.drain_window,
            Key::MaximumReceiveMessageSize
            | Key::HandshakeTimeout
            | Key::ClientTimeoutInterval
            | Key::KeepAliveInterval
            | Key::Transports
            | Key::AllowStatefulReconnects
            | Key::StatefulReconnectBufferSize
            | Key::PollTimeout
            | Key::DisconnectTimeout
            | Key::CloseOnAuthenticationExpiration
            | Key::NegotiateWhenUnavailable => self.hub = fresh.hub.clone(),
            Key::ClientSendQueueTime => self.limits.client_send_queue_time = fresh.limits.client_send_queue_time,
            Key::ClientMessageRate => self.limits.client_message_rate = fresh.limits.client_message_rate,
            Key::ClientMessageBurst => self.limits.client_message_burst = fresh.limits.client_message_burst,
            Key::AcceptRate => self.limits.accept_rate = fresh.limits.accept_rate,
            Key::ClientReplayBytes => self.limits.client_replay_bytes = fresh.limits.client_replay_bytes,
            Key::AcknowledgeTimeout => {
                self.upstreams[upstream].acknowledge_timeout = fresh.upstreams[upstream].acknowledge_timeout;
            }
            Key::InFlight => self.upstreams[upstream].in_flight_max = fresh.upstreams[upstream].in_flight_max,
            Key::ClientSendQueueBytes => self.limits.client_send_queue_bytes = fresh.limits.client_send_queue_bytes,
            Key::ClientSendBufferBytes => self.limits.client_send_buffer_bytes = fresh.limits.client_send_buffer_bytes,
            Key::RequestHeadTimeout => self.limits.request_head_timeout = fresh.limits.request_head_timeout,
            Key::UpstreamQueueBytes => self.limits.upstream_queue_bytes = fresh.limits.upstream_queue_bytes,
            Key::UpstreamQueueTimeout => self.limits.upstream_queue_timeout = fresh.limits.upstream_queue_timeout,
            Key::TlsCertificateFile | Key::TlsKeyFile | Key::TlsMinimumVersion => self.tls.clone_from(&fresh.tls),
            Key::SigningKey
            | Key::SigningKeyFile
            | Key::PublicKeyFile
            | Key::JwksFile
            | Key::Audience
            | Key::Issuer
            | Key::ClockSkew
            | Key::UserIdClaim
            | Key::ForwardClaims
            | Key::Required => self.identity.clone_from(&fresh.identity),
            Key::Url => self.upstreams[upstream].urls.clone_from(&fresh.upstreams[upstream].urls),
            Key::UpstreamMaximumReceiveMessageSize => {
                self.upstreams[upstream].maximum_receive_message_size =
                    fresh.upstreams[upstream].maximum_receive_message_size;
            }
            Key::CaFile => self.upstreams[upstream].ca_file.clone_from(&fresh.upstreams[upstream].ca_file),
            Key::ClientCertificateFile | Key::ClientKeyFile => {
                let certificate = &fresh.upstreams[upstream].client_certificate;
                self.upstreams[upstream].client_certificate.clone_from(certificate);
            }
            Key::Filter => {
                let filter: &Option<Filter> = &fresh.upstreams[upstream].filter;
                self.upstreams[upstream].filter.clone_from(filter);
            }
            _ => debug_assert!(false, "{} needs a new process", place.key.setting().name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Machine, RunFlags};
    use super::*;

    const MACHINE: Machine = Machine { cores: 2, nofile: 1 << 20 };
    const PEM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    const OTHER_PEM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");

    fn config(text: &str) -> Config {
        Config::resolve(Some(("n.toml", text)), std::iter::empty(), &RunFlags::default(), &MACHINE)
            .unwrap_or_else(|faults| panic!("{faults}\n{text}"))
    }

    /// Everything said, and everything said otherwise.
    fn two() -> [Config; 2] {
        let text = |one: bool| {
            let of = |a: &str, b: &str| if one { a.to_string() } else { b.to_string() };
            let mut top = String::new();
            let (mut tables, mut upstream) = (std::collections::BTreeMap::<&str, String>::new(), String::new());
            for setting in Key::all().map(Key::setting) {
                let value = match setting.key {
                    Key::Listen => of("\"https://127.0.0.1:5000\"", "\"https://127.0.0.1:5001\""),
                    Key::Admin => of("\"127.0.0.1:1\"", "\"127.0.0.1:2\""),
                    Key::Peers => of("[\"a:1\"]", "[\"b:1\"]"),
                    Key::Shards | Key::ConnectionPoolSize | Key::MaxClients => of("100", "200"),
                    Key::NodeName | Key::Audience | Key::Issuer | Key::UserIdClaim => of("\"a\"", "\"b\""),
                    Key::ForwardClaims | Key::ForwardHeaders => of("[\"a\"]", "[\"b\"]"),
                    Key::TokenKey | Key::SigningKey => format!("\"{}\"", of("a", "b").repeat(32)),
                    Key::TokenKeyFile | Key::SigningKeyFile => continue,
                    Key::TrustedProxies => of("[\"10.0.0.1\"]", "[\"10.0.0.2\", \"unix\"]"),
                    Key::ForwardedHeader => of("\"Forwarded\"", "\"X-Forwarded-For\""),
                    Key::HubPath | Key::TakeOver => of("\"/a\"", "\"/b\""),
                    Key::AllowedOrigins => of("[\"http://a\"]", "[\"http://b\"]"),
                    Key::Log => of("\"info\"", "\"debug\""),
                    Key::LogFormat => of("\"text\"", "\"json\""),
                    Key::ClientTimeoutInterval => of("\"50s\"", "\"60s\""),
                    Key::MaximumReceiveMessageSize | Key::StatefulReconnectBufferSize => of("5000", "6000"),
                    Key::UpstreamMaximumReceiveMessageSize => of("50000", "60000"),
                    Key::ClientSendQueueBytes | Key::ClientSendBufferBytes => of("50000", "60000"),
                    Key::UpstreamQueueBytes => of("5000000", "6000000"),
                    Key::ClientMessageRate | Key::ClientMessageBurst | Key::AcceptRate => of("500", "600"),
                    Key::ClientReplayBytes | Key::InFlight => of("500", "600"),
                    Key::Transports => of("[\"WebSockets\"]", "[\"LongPolling\"]"),
                    Key::TlsMinimumVersion => of("\"1.2\"", "\"1.3\""),
                    Key::Required => of("\"none\"", "\"request\""),
                    Key::UpstreamName => "\"chat\"".into(),
                    Key::UpstreamKind => "\"app-server\"".into(),
                    Key::Url => of("[{ url = \"https://a\", weight = 1 }]", "[{ url = \"https://b\", weight = 1 }]"),
                    Key::Filter => of("\"vm_id == 'A'\"", "\"vm_id == 'B'\""),
                    Key::Dispatch => of("\"client\"", "\"message\""),
                    Key::HubId => of("\"lane\"", "\"node\""),
                    _ => match setting.kind {
                        super::super::settings::Kind::Boolean => of("true", "false"),
                        super::super::settings::Kind::Duration { .. } => of("\"10s\"", "\"20s\""),
                        super::super::settings::Kind::File | super::super::settings::Kind::Files => {
                            format!("{:?}", of(PEM, OTHER_PEM))
                        }
                        // Somebody added a setting: what it is like matters to this test only if it reloads.
                        _ if !setting.reloads => continue,
                        _ => panic!("say two values of {}", setting.name),
                    },
                };
                let line = format!("{} = {value}\n", if setting.key == Key::Url { "urls" } else { setting.name });
                match setting.table {
                    Table::Top => top += &line,
                    Table::Upstream => upstream += &line,
                    table => *tables.entry(table.name()).or_default() += &line,
                }
            }
            let tables: String = tables.iter().map(|(name, lines)| format!("[{name}]\n{lines}")).collect();
            let rest = "[[upstream]]\nname = \"rest\"\nurl = \"http://rest\"\nmaximum_receive_message_size = 60000\n";
            format!("{top}{tables}[[upstream]]\n{upstream}{rest}")
        };
        [config(&text(true)), config(&text(false))]
    }

    #[test]
    fn what_the_table_says_of_reloading_is_what_happens() {
        let [old, new] = two();
        let (renewed, changes) = Running::new(old.clone()).renewed(&new);
        for setting in Key::all().map(Key::setting) {
            let [is, holds] = [&new, &renewed.config].map(|config| config.text(setting.key.into()));
            assert_eq!(holds, if setting.reloads { is } else { old.text(setting.key.into()) }, "{}", setting.name);
        }
        assert_eq!(renewed.config.identity, new.identity);
        assert_eq!((&renewed.config.token_key, &renewed.config.listen), (&old.token_key, &old.listen));
        for change in &changes {
            let place = change.place.expect("the upstreams have the same names");
            assert_eq!(change.holds, place.key.setting().reloads, "{change}");
            assert!(!change.to_string().contains("aaaa") && !change.to_string().contains("bbbb"), "{change}");
        }
        assert!(changes.iter().filter(|change| change.holds).count() > 30, "{changes:?}");
        let told = |name: &str| changes.iter().find(|change| change.name == name).map(ToString::to_string);
        assert_eq!(told("token_key").as_deref(), Some("token_key: \"(secret)\" -> another (secret)"));
        assert_eq!(told("hub.poll_timeout").as_deref(), Some("hub.poll_timeout: \"10s\" -> \"20s\""));
        assert_eq!(
            told("filter of upstream chat").as_deref(),
            Some("filter of upstream chat: \"vm_id == 'A'\" -> \"vm_id == 'B'\"")
        );
        // Read once more, only what needs a new process differs still.
        assert!(renewed.renewed(&new).1.iter().all(|change| !change.holds));
        assert_eq!(renewed.renewed(&renewed.config).1, []);
    }

    #[test]
    fn filters_change_as_long_as_they_ask_nothing_new_of_clients() {
        let with = |filter: &str| {
            config(&format!(
                "[[upstream]]\nurl = \"http://a\"\nfilter = \"{filter}\"\n[[upstream]]\nurl = \"http://b\"\n"
            ))
        };
        let holds =
            |running: &Running, filter: &str| running.renewed(&with(filter)).1.iter().all(|change| change.holds);
        let running = Running::new(with("has(headers.beta) && headers.beta == '1'"));
        assert!(holds(&running, "has(headers.beta)") && holds(&running, "vm_id == 'A'"));
        assert!(!holds(&running, "has(headers.gamma)") && !holds(&running, "path == '/'"));
        // What clients were known by at the start they are known by still.
        let (narrow, _) = running.renewed(&with("vm_id == 'A'"));
        assert!(holds(&narrow, "has(headers.beta)"));

        // Where everything went one way, nobody knows which view models there are.
        let plain = |filter: &str| config(&format!("[[upstream]]\nurl = \"http://a\"\n{filter}"));
        let running = Running::new(plain(""));
        assert!(running.renewed(&plain("filter = \"vm_id == 'A'\"\n")).1.iter().all(|change| !change.holds));
    }

    #[test]
    fn weights_change_and_urls_do_not_nor_do_upstreams_come_and_go() {
        let with = |urls: &str| config(&format!("[[upstream]]\nurls = [{urls}]\n"));
        let running = Running::new(with("\"http://a\", \"http://b\""));
        let (renewed, changes) = running.renewed(&with("\"http://a\", { url = \"http://b\", weight = 3 }"));
        assert!(changes.len() == 1 && changes[0].holds, "{changes:?}");
        assert_eq!(renewed.config.upstreams[0].urls[1].weight, 3);
        let (renewed, changes) = running.renewed(&with("\"http://a\", \"http://c\""));
        assert!(changes.len() == 1 && !changes[0].holds, "{changes:?}");
        assert_eq!(renewed.config, running.config);

        let text = "[[upstream]]\nurls = [\"http://a\", \"http://b\"]\nfilter = \"vm_id == 'A'\"\n[[upstream]]\nname = \"more\"\nurl = \"http://c\"\n";
        let (renewed, changes) = running.renewed(&config(text));
        let told: Vec<String> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["upstreams: upstream-1 -> upstream-1, more"]);
        assert_eq!(renewed.config, running.config);
    }

    #[test]
    fn a_certificate_stays_while_listeners_need_it() {
        let tls = format!("[tls]\ncertificate_file = {PEM:?}\nkey_file = {PEM:?}\n");
        let app = "[[upstream]]\nurl = \"http://a\"\n";
        let running = Running::new(config(&format!("listen = \"https://127.0.0.1:1\"\n{tls}{app}")));
        let (renewed, changes) = running.renewed(&config(&format!("listen = \"127.0.0.1:1\"\n{app}")));
        assert!(changes.iter().all(|change| !change.holds), "{changes:?}");
        assert_eq!(renewed.config, running.config);
    }
}
