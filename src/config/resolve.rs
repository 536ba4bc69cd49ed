//! From three sources to one configuration: the last word of each setting, then what the settings mean together.
use super::check::{Check, KEY_SOURCES, descriptors_beside_clients};
use super::draft::Draft;
use super::fault::{Faults, Origin};
use super::flags::RunFlags;
use super::settings::{Key, Place};
use super::value::{Value, read_text};
use super::{
    Config, Hub, Identity, Limits, ListenAddress, Listener, LogFormat, Tls, TrustedProxy, env, file, lanes,
    listeners_each, upstreams,
};
use crate::identity::Required;
use crate::limits::*;
use crate::proto::http::{ForwardedHeader, Transports};
use crate::tls::MinimumVersion;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// What defaults and checks need to know of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    pub cores: u32,
    /// RLIMIT_NOFILE.
    pub nofile: u64,
}

impl Machine {
    /// Looks at this machine. Raises the soft limit of open files to the hard one on the way: the low soft limit exists for
    /// programs that use `select`, and we do not.
    pub fn probe() -> Machine {
        let cores = crate::sys::probe::processors() as u32;
        let nofile = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024);
        Machine { cores, nofile }
    }
}

/// A configuration and where each of its settings came from.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub config: Config,
    /// Of those that somebody set.
    origins: BTreeMap<Place, Origin>,
}

impl Resolved {
    /// Reads the file the flags name, this process's environment and the machine.
    pub fn load(flags: &RunFlags) -> Result<Resolved, Faults> {
        let machine = Machine::probe();
        let Some(path) = &flags.config else {
            return Self::of(None, env::of_process(), flags, &machine);
        };
        let shown = path.display().to_string();
        match read_text(path) {
            Ok(text) => Self::of(Some((&shown, &text)), env::of_process(), flags, &machine),
            Err(reason) => {
                // What the file says is unknown, so contradictions and gaps cannot be judged; the other sources' own faults can.
                let mut faults = Faults::default();
                faults.add(
                    &Origin::File { path: shown, line: 0 },
                    "",
                    reason,
                    "name a readable TOML file with --config",
                );
                let mut draft = Draft::new(Vec::new());
                draft.take(env::read(env::of_process(), &mut faults), &mut faults);
                draft.take(flags.read(), &mut faults);
                Err(faults.sorted())
            }
        }
    }

    /// The same with every source given; `file` is its path and text. The files that settings name are looked at, and those with
    /// secrets read.
    pub fn of(
        file: Option<(&str, &str)>,
        env: impl Iterator<Item = (String, String)>,
        flags: &RunFlags,
        machine: &Machine,
    ) -> Result<Resolved, Faults> {
        let mut faults = Faults::default();
        let written = file.map(|(path, text)| file::read(path, text, &mut faults)).unwrap_or_default();
        let mut draft = Draft::new(written.upstreams);
        draft.take(written.given, &mut faults);
        let file_is_sound = faults.0.is_empty();
        draft.take(env::read(env, &mut faults), &mut faults);
        draft.take(flags.read(), &mut faults);

        let config = draft.config(machine);
        Check { draft: &draft, config: &config, machine, faults: &mut faults }.all(file_is_sound);
        if faults.0.is_empty() { Ok(Resolved { config, origins: draft.origins() }) } else { Err(faults.sorted()) }
    }

    /// Of an upstream's setting, the first one's.
    pub fn origin(&self, place: impl Into<Place>) -> &Origin {
        self.origins.get(&place.into()).unwrap_or(&Origin::Default)
    }

    /// What is allowed but probably not meant; logged at start.
    pub fn warnings(&self, machine: &Machine) -> Vec<String> {
        let config = &self.config;
        let mut warnings = Vec::new();
        if !config.admin.ip().is_loopback() {
            warnings
                .push(format!("admin = {} can be reached from other machines and asks for no password", config.admin));
        }
        if u32::from(config.shards) > machine.cores {
            warnings.push(format!(
                "shards = {} on {} cores: some share a core and get in each other's way",
                config.shards, machine.cores
            ));
        }
        let https = config.listen.iter().any(|listener| listener.tls);
        if config.tls.is_some() && !https {
            warnings
                .push("tls.certificate_file is given and no listener is https://, so that nothing is encrypted".into());
        }
        let everybody =
            |proxy: &&TrustedProxy| matches!(proxy, TrustedProxy::Network(network) if network.prefix_len() == 0);
        if let Some(proxy) = config.trusted_proxies.iter().find(everybody) {
            warnings.push(format!("trusted_proxies has {proxy}: whoever connects can claim any address"));
        }
        let unix = config.listen.iter().find(|listener| matches!(listener.address, ListenAddress::Unix(_)));
        if let Some(listener) = unix
            && !config.trusted_proxies.contains(&TrustedProxy::Unix)
        {
            warnings.push(format!(
                "trusted_proxies lacks \"unix\": what a proxy says on {listener} about its clients' addresses is not believed"
            ));
        }
        upstreams::warn(config, &mut warnings);
        warnings
    }
}

impl Draft {
    fn tls(&self) -> Option<Tls> {
        Some(Tls {
            certificate_file: self.path(Key::TlsCertificateFile)?,
            key_file: self.path(Key::TlsKeyFile)?,
            minimum_version: match self.text(Key::TlsMinimumVersion) {
                Some("1.3") => MinimumVersion::Tls13,
                _ => MinimumVersion::Tls12,
            },
        })
    }

    fn identity(&self) -> Option<Identity> {
        if !KEY_SOURCES.into_iter().any(|key| self.is_given(key)) {
            return None;
        }
        Some(Identity {
            signing_key: self.secret([Key::SigningKey, Key::SigningKeyFile]),
            public_key_files: match self.value(Key::PublicKeyFile) {
                Some(Value::Files(paths)) => paths.clone(),
                _ => Vec::new(),
            },
            jwks_file: self.path(Key::JwksFile),
            audience: self.texts(Key::Audience).unwrap_or_default(),
            issuer: self.texts(Key::Issuer).unwrap_or_default(),
            clock_skew: self.duration(Key::ClockSkew, 5 * 60),
            user_id_claims: self
                .texts(Key::UserIdClaim)
                .unwrap_or_else(|| USER_ID_CLAIMS.into_iter().map(str::to_string).collect()),
            forward_claims: self.texts(Key::ForwardClaims).unwrap_or_default(),
            required: match self.text(Key::Required) {
                Some("connection") => Required::Connection,
                Some("request") => Required::Request,
                _ => Required::Nothing,
            },
        })
    }

    fn config(&self, machine: &Machine) -> Config {
        let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let count = |key: Key, default| self.count(key, default);
        let duration = |key, default_seconds| self.duration(key, default_seconds);
        let text = |key, default: &str| self.text(key).unwrap_or(default).to_string();
        let listen = match self.value(Key::Listen) {
            Some(Value::Listeners(listeners)) => listeners.clone(),
            _ => vec![Listener { address: ListenAddress::Tcp(loopback(5000)), tls: false }],
        };

        // The range ends far below u16's.
        let shards = count(Key::Shards, machine.cores.clamp(1, u32::from(SHARDS_MAX))) as u16;
        let upstreams = upstreams::of(self);
        let peers = self.texts(Key::Peers).unwrap_or_default();
        let take_over = self.path(Key::TakeOver);
        let listeners = listeners_each(listen.len(), take_over.is_some());
        let beside_clients = descriptors_beside_clients(shards, lanes(&upstreams, shards), listeners, peers.len());
        let max_clients_default =
            machine.nofile.saturating_sub(beside_clients).clamp(1, u64::from(CLIENTS_DEFAULT)) as u32;
        Config {
            listen,
            admin: match self.value(Key::Admin) {
                Some(Value::Address(address)) => *address,
                _ => loopback(9090),
            },
            shards,
            // A node called "random" would be one of several.
            node_name: self.text(Key::NodeName).filter(|name| *name != "random").map(str::to_string),
            token_key: self.secret([Key::TokenKey, Key::TokenKeyFile]),
            trusted_proxies: match self.value(Key::TrustedProxies) {
                Some(Value::Proxies(proxies)) => proxies.clone(),
                _ => Vec::new(),
            },
            forwarded_header: match self.text(Key::ForwardedHeader) {
                Some("Forwarded") => ForwardedHeader::Forwarded,
                _ => ForwardedHeader::XForwardedFor,
            },
            proxy_protocol: self.boolean(Key::ProxyProtocol, false),
            hub_path: text(Key::HubPath, "/dotnetify"),
            allowed_origins: self.texts(Key::AllowedOrigins).unwrap_or_default(),
            journal: self.path(Key::Journal),
            log: text(Key::Log, "info"),
            log_format: match text(Key::LogFormat, "text").as_str() {
                "json" => LogFormat::Json,
                _ => LogFormat::Text,
            },
            drain_delay: duration(Key::DrainDelay, 0),
            drain_window: duration(Key::DrainWindow, 10),
            take_over,
            hub: Hub {
                maximum_receive_message_size: count(Key::MaximumReceiveMessageSize, MESSAGE_BYTES_DEFAULT),
                handshake_timeout: duration(Key::HandshakeTimeout, 15),
                client_timeout_interval: duration(Key::ClientTimeoutInterval, 30),
                keep_alive_interval: duration(Key::KeepAliveInterval, 15),
                transports: match self.value(Key::Transports) {
                    Some(Value::Transports(transports)) => *transports,
                    _ => Transports::ALL,
                },
                allow_stateful_reconnects: self.boolean(Key::AllowStatefulReconnects, true),
                // What is sent again has to fit into the queue: nobody who makes the queue small has to say so twice.
                stateful_reconnect_buffer_size: count(
                    Key::StatefulReconnectBufferSize,
                    STATEFUL_BUFFER_BYTES_DEFAULT
                        .min(count(Key::ClientSendQueueBytes, CLIENT_SEND_QUEUE_BYTES_DEFAULT)),
                ),
                poll_timeout: duration(Key::PollTimeout, 90),
                disconnect_timeout: duration(Key::DisconnectTimeout, 15),
                close_on_authentication_expiration: self.boolean(Key::CloseOnAuthenticationExpiration, false),
                negotiate_when_unavailable: self.boolean(Key::NegotiateWhenUnavailable, true),
            },
            limits: Limits {
                max_clients: count(Key::MaxClients, max_clients_default),
                client_send_queue_bytes: count(Key::ClientSendQueueBytes, CLIENT_SEND_QUEUE_BYTES_DEFAULT),
                client_send_buffer_bytes: count(Key::ClientSendBufferBytes, CLIENT_SEND_BUFFER_BYTES_DEFAULT),
                request_head_timeout: duration(Key::RequestHeadTimeout, 5),
                client_send_queue_time: duration(Key::ClientSendQueueTime, CLIENT_SEND_QUEUE_SECONDS_DEFAULT),
                client_message_rate: count(Key::ClientMessageRate, MESSAGE_RATE_DEFAULT),
                client_message_burst: count(Key::ClientMessageBurst, MESSAGE_BURST_DEFAULT),
                client_tcp_timeout: duration(Key::ClientTcpTimeout, TCP_TIMEOUT_SECONDS_DEFAULT),
                connections_per_address: count(Key::ConnectionsPerAddress, 0),
                accept_rate: count(Key::AcceptRate, ACCEPT_RATE_DEFAULT),
                upstream_queue_bytes: count(Key::UpstreamQueueBytes, UPSTREAM_QUEUE_BYTES_DEFAULT),
                upstream_queue_timeout: duration(Key::UpstreamQueueTimeout, 10),
                client_replay_bytes: count(Key::ClientReplayBytes, REPLAY_BYTES_DEFAULT),
            },
            tls: self.tls(),
            identity: self.identity(),
            peers,
            upstreams,
        }
    }
}

/// What ASP.NET reads as `ClaimTypes.NameIdentifier`, `Context.UserIdentifier` by default: the short names of a JWT, and the long one.
const USER_ID_CLAIMS: [&str; 3] =
    ["nameid", "sub", "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/nameidentifier"];

#[cfg(test)]
mod tests {
    use super::super::ClientCertificate;
    use super::*;
    use crate::proto::dotnetify::context::HeaderPolicy;
    use core::time::Duration;

    const MACHINE: Machine = Machine { cores: 4, nofile: 20_000 };

    fn resolve(file: &str, env: &[(&str, &str)], flags: RunFlags) -> Result<Resolved, Vec<String>> {
        let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let file = (!file.is_empty()).then_some(("n.toml", file));
        Resolved::of(file, env, &flags, &MACHINE).map_err(|faults| faults.0.iter().map(ToString::to_string).collect())
    }

    fn app() -> RunFlags {
        RunFlags::default().with(Key::Url, "http://127.0.0.1:6100")
    }

    #[test]
    fn defaults_are_the_ones_the_table_promises() {
        // Settings of a section hold once it is in use.
        let base = || {
            let pem = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
            let flags = app().with(Key::SigningKey, "0123456789abcdef0123456789abcdef");
            flags.with(Key::TlsCertificateFile, pem).with(Key::TlsKeyFile, pem)
        };
        let resolved = resolve("", &[], base()).unwrap();
        let mut promised = 0;
        for setting in Key::all().map(Key::setting) {
            // A description, no value.
            if matches!(
                setting.default,
                "none"
                    | "required"
                    | "not checked"
                    | "random at start"
                    | "the usual authorities"
                    | "upstream-N by its place"
            ) && setting.key != Key::Required
                || setting.default.contains(" a core")
                || setting.default.contains("the open-files limit")
                || setting.key == Key::AllowedOrigins
            {
                continue;
            }
            // Saying the default aloud changes nothing.
            let said = resolve("", &[(setting.env, setting.default)], base()).unwrap();
            assert_eq!(said.config, resolved.config, "{}", setting.name);
            promised += 1;
        }
        assert!(promised > 25);
        assert_eq!(resolved.config.shards, 4);
        // 20,000 files, less 64 of slack, 64 to say no on, 4 shards of 8 and 5 lanes of 2.
        assert_eq!(resolved.config.limits.max_clients, 20_000 - 2 * 64 - 32 - 10);
        assert_eq!(resolved.config.upstreams[0].forward_headers, HeaderPolicy::All);
    }

    #[test]
    fn the_environment_goes_before_the_file_and_a_flag_before_both() {
        let file = "shards = 1\nhub_path = \"/file\"\nlog = \"error\"\n[[upstream]]\nurl = \"http://file\"\n";
        let resolved = resolve(
            file,
            &[("SIGNALRING_SHARDS", "2"), ("SIGNALRING_HUB_PATH", "/env")],
            RunFlags::default().with(Key::Shards, "3"),
        )
        .unwrap();
        assert_eq!(
            (resolved.config.shards, resolved.config.hub_path.as_str(), resolved.config.log.as_str()),
            (3, "/env", "error")
        );
        assert_eq!(resolved.origin(Key::Shards), &Origin::Flag("--shards".into()));
        assert_eq!(resolved.origin(Key::HubPath), &Origin::Env("SIGNALRING_HUB_PATH".into()));
        assert_eq!(resolved.origin(Key::Log), &Origin::File { path: "n.toml".into(), line: 3 });
        assert_eq!(resolved.origin(Key::Admin), &Origin::Default);
        assert_eq!(resolved.config.upstreams[0].urls[0].url.text, "http://file");
    }

    #[test]
    fn one_header_of_proxies_is_read_and_its_case_does_not_matter() {
        let header = |said: &[(&str, &str)]| resolve("", said, app()).map(|resolved| resolved.config.forwarded_header);
        assert_eq!(header(&[]), Ok(ForwardedHeader::XForwardedFor));
        for (said, expected) in [
            ("forwarded", ForwardedHeader::Forwarded),
            ("Forwarded", ForwardedHeader::Forwarded),
            ("x-forwarded-for", ForwardedHeader::XForwardedFor),
            ("X-FORWARDED-FOR", ForwardedHeader::XForwardedFor),
        ] {
            assert_eq!(header(&[("SIGNALRING_FORWARDED_HEADER", said)]), Ok(expected), "{said}");
        }
        // Not a list: who reads both lets clients choose.
        for wrong in ["X-Forwarded-For, Forwarded", "X-Real-IP", ""] {
            let faults = header(&[("SIGNALRING_FORWARDED_HEADER", wrong)]).unwrap_err();
            assert!(faults[0].contains("forwarded_header") || faults[0].contains("FORWARDED_HEADER"), "{faults:?}");
        }
    }

    #[test]
    fn an_overridden_fault_is_still_a_fault() {
        let found = resolve("shards = 0\n", &[], app().with(Key::Shards, "2")).unwrap_err();
        assert_eq!(found, ["n.toml:1: shards: 0 is out of range; it takes 1 to 256"]);
    }

    #[test]
    fn contradictions_name_both_sides_and_the_last_source() {
        let one = |file: &str, env: &[(&str, &str)], flags| {
            let found = resolve(file, env, flags).unwrap_err();
            assert_eq!(found.len(), 1, "{found:?}");
            found[0].clone()
        };
        let fault = one("[hub]\nkeep_alive_interval = \"20s\"\n", &[], app());
        assert!(
            fault.starts_with("n.toml:2: hub.keep_alive_interval: client_timeout_interval (30s)")
                && fault.contains("40s"),
            "{fault}"
        );
        let fault = one("listen = \"127.0.0.1:9090\"\n", &[], app());
        assert!(fault.starts_with("n.toml:1: listen: listen (127.0.0.1:9090) and admin"), "{fault}");
        let fault = one("admin = \"127.0.0.1:7000\"\n", &[("SIGNALRING_LISTEN", "0.0.0.0:7000")], app());
        assert!(fault.starts_with("SIGNALRING_LISTEN: listen:"), "{fault}");
        let fault = one(
            "[limits]\nupstream_queue_bytes = \"64KiB\"\n[[upstream]]\nmaximum_receive_message_size = \"1MiB\"\n",
            &[],
            app().with(Key::MaximumReceiveMessageSize, "1MiB"),
        );
        assert!(fault.starts_with("--maximum-receive-message-size: ") && fault.contains("2MiB"), "{fault}");
        let fault = one("[hub]\nstateful_reconnect_buffer_size = \"1MiB\"\n", &[], app());
        assert!(
            fault.starts_with("n.toml:2: hub.stateful_reconnect_buffer_size: ") && fault.contains("256KiB"),
            "{fault}"
        );
        assert!(
            resolve(
                "[hub]\nstateful_reconnect_buffer_size = \"1MiB\"\nallow_stateful_reconnects = false\n",
                &[],
                app()
            )
            .is_ok()
        );
        let fault = one("", &[], app().with(Key::MaxClients, "20000"));
        assert!(
            fault.starts_with("--max-clients: limits.max_clients: max_clients = 20000 needs 20170 open files"),
            "{fault}"
        );
        assert!(fault.contains("lower max_clients to 19830"), "{fault}");
        let fault = one("", &[], app().with(Key::MaxClients, "3"));
        assert!(fault.contains("4 shards"), "{fault}");
        let fault = one("", &[], RunFlags::default().with(Key::Url, "http://app:6100/Dotnetify/"));
        assert!(fault.ends_with("write http://app:6100"), "{fault}");
        let fault = one("hub_path = \"/chat\"", &[], RunFlags::default().with(Key::Url, "http://app:6100/base/chat"));
        assert!(fault.ends_with("write http://app:6100/base"), "{fault}");
        let fault = one("", &[], RunFlags::default().with(Key::Url, "http://localhost:5000"));
        assert!(fault.contains("own address"), "{fault}");
    }

    const PEM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    const SIGNING_KEY: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn what_a_setting_needs_is_asked_for() {
        for (file, place, parts) in [
            (
                "listen = \"https://0.0.0.0:443\"\n",
                "n.toml:1: listen: ",
                &["https://0.0.0.0:443 has no certificate", "give tls.certificate_file"][..],
            ),
            ("[tls]\nminimum_version = \"1.3\"\n", "n.toml:2: tls.minimum_version: ", &["give tls.certificate_file"]),
            (
                "[tls]\nkey_file = \"PEM\"\n",
                "n.toml:2: tls.key_file: ",
                &["without certificate_file", "give tls.certificate_file as well"],
            ),
            (
                "listen = \"https://[::]:443\"\n[tls]\ncertificate_file = \"PEM\"\n",
                "n.toml:3: tls.certificate_file: ",
                &["without key_file"],
            ),
            ("proxy_protocol = true\n", "n.toml:1: proxy_protocol: ", &["no proxy is trusted", "trusted_proxies"]),
            ("proxy_protocol = true\ntrusted_proxies = []\n", "n.toml:1: proxy_protocol: ", &["no proxy is trusted"]),
            (
                "[identity]\nrequired = \"connection\"\naudience = \"a\"\n",
                "n.toml:3: identity.audience: ",
                &["audience, required needs a key", "identity.signing_key"],
            ),
            (
                "[hub]\nclose_on_authentication_expiration = true\n",
                "n.toml:2: hub.close_on_authentication_expiration: ",
                &["needs a key"],
            ),
            (
                "[hub]\nmaximum_receive_message_size = \"64KiB\"\n",
                "n.toml:2: hub.maximum_receive_message_size: ",
                &["(64KiB)", "(32KiB)", "HubOptions.MaximumReceiveMessageSize"],
            ),
            (
                "[[upstream]]\nca_file = \"PEM\"\n",
                "n.toml:2: upstream.ca_file: ",
                &["http://127.0.0.1:6100 is not encrypted", "https://"],
            ),
            (
                "token_key = \"0123456789abcdef\"\ntoken_key_file = \"PEM.key\"\n",
                "n.toml:2: token_key_file: ",
                &["cannot be read"],
            ),
            (
                "listen = \"unix:/run/a\"\nadmin = \"127.0.0.1:5000\"\n[hub]\ntransports = []\n",
                "n.toml:4: hub.transports: ",
                &["is empty"],
            ),
            ("listen = []\n", "n.toml:1: listen: ", &["is empty"]),
            (
                "[identity]\nsigning_key = \"0123456789abcde\"\nrequired = \"request\"\n",
                "n.toml:2: identity.signing_key: ",
                &["15 bytes", "16 bytes or more"],
            ),
        ] {
            let found = resolve(&file.replace("PEM", PEM), &[], app()).unwrap_err();
            assert_eq!(found.len(), 1, "{file}: {found:?}");
            assert!(found[0].starts_with(place), "{file}: {found:?}");
            assert!(parts.iter().all(|part| found[0].contains(part)), "{file}: {found:?}");
        }
    }

    #[test]
    fn client_certificates_are_whole_and_for_tls() {
        let https = || RunFlags::default().with(Key::Url, "https://app");
        let found = resolve("", &[], https().with(Key::ClientKeyFile, PEM)).unwrap_err();
        assert!(found.len() == 1 && found[0].starts_with("--upstream-client-key-file: "), "{found:?}");
        let both = https().with(Key::ClientKeyFile, PEM).with(Key::ClientCertificateFile, PEM);
        let upstream = resolve("", &[], both).unwrap().config.upstreams.remove(0);
        assert_eq!((upstream.urls[0].url.tls, upstream.urls[0].url.port), (true, 443));
        assert_eq!(
            upstream.client_certificate,
            Some(ClientCertificate { certificate_file: PEM.into(), key_file: PEM.into() })
        );
        let plain = app().with(Key::ClientKeyFile, PEM).with(Key::ClientCertificateFile, PEM);
        assert_eq!(resolve("", &[], plain).unwrap_err().len(), 2);
    }

    #[test]
    fn an_identity_is_there_with_any_of_its_keys() {
        let of = |key, value: &str| resolve("", &[], app().with(key, value)).unwrap().config.identity;
        assert_eq!(resolve("", &[], app()).unwrap().config.identity, None);
        let identity = of(Key::SigningKey, SIGNING_KEY).unwrap();
        assert_eq!(identity.signing_key.as_ref().unwrap().bytes(), SIGNING_KEY.as_bytes());
        assert_eq!(identity.clock_skew, Duration::from_secs(300));
        assert_eq!(identity.user_id_claims[..2], ["nameid", "sub"]);
        assert!(identity.audience.is_empty() && identity.issuer.is_empty() && identity.forward_claims.is_empty());
        assert_eq!(identity.required, Required::Nothing);
        assert_eq!(of(Key::JwksFile, PEM).unwrap().jwks_file, Some(PEM.into()));
        let keys = of(Key::PublicKeyFile, &format!("{PEM},{PEM}")).unwrap();
        assert_eq!((keys.public_key_files.len(), keys.signing_key), (2, None));
    }

    #[test]
    fn several_listeners_from_every_source() {
        let listen = |file: &str, env: &[(&str, &str)], flags| {
            let config = resolve(file, env, flags).map(|resolved| resolved.config.listen);
            config.map(|listen| listen.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let both = ["127.0.0.1:80", "unix:/run/n.sock"];
        assert_eq!(listen("listen = [\"http://127.0.0.1:80\", \"unix:/run/n.sock\"]\n", &[], app()).unwrap(), both);
        assert_eq!(listen("", &[("SIGNALRING_LISTEN", "127.0.0.1:80, unix:/run/n.sock")], app()).unwrap(), both);
        let flags = app().with(Key::Listen, "127.0.0.1:80").with(Key::Listen, "unix:/run/n.sock");
        assert_eq!(listen("listen = \"127.0.0.1:81\"\n", &[], flags).unwrap(), both);
        let found = listen("listen = [\"[::]:80\", \"10.0.0.1:80\", \"[::]:80\", \"x\"]\n", &[], app()).unwrap_err();
        assert!(found.len() == 1 && found[0].contains("\"x\" is not an address"), "{found:?}");
        let found = listen("listen = [\"[::]:80\", \"10.0.0.1:80\", \"[::]:80\"]\n", &[], app()).unwrap_err();
        assert!(found.len() == 2 && found[0].contains("[::]:80 and 10.0.0.1:80") && found[1].contains("give it once"));
        let nine: Vec<String> = (1..=9).map(|port| format!("127.0.0.1:{port}")).collect();
        let found = listen("", &[], app().with(Key::Listen, nine.join(","))).unwrap_err();
        assert!(found[0].contains("9 addresses are too many; give 8 at most"), "{found:?}");
        assert_eq!(listen("", &[], app().with(Key::Listen, nine[..8].join(","))).unwrap().len(), 8);
    }

    #[test]
    fn every_listener_is_compared_with_admin_and_app_server_and_has_descriptors() {
        let found = resolve("listen = [\"unix:/n\", \"0.0.0.0:9090\"]\n", &[], app()).unwrap_err();
        assert!(found.len() == 1 && found[0].contains("listen (0.0.0.0:9090) and admin"), "{found:?}");
        let found = resolve("listen = [\"unix:/n\", \"127.0.0.1:6100\"]\n", &[], app()).unwrap_err();
        assert!(found.len() == 1 && found[0].contains("own address"), "{found:?}");
        let max_clients =
            |listen: &str| resolve("", &[], app().with(Key::Listen, listen)).unwrap().config.limits.max_clients;
        assert_eq!(max_clients("127.0.0.1:1,127.0.0.1:2,127.0.0.1:3"), max_clients("127.0.0.1:1") - 2 * 4);
    }

    #[test]
    fn a_node_called_random_has_no_name() {
        let name = |name: &str| resolve("", &[], app().with(Key::NodeName, name)).map(|found| found.config.node_name);
        assert_eq!(name("random").unwrap(), None);
        assert_eq!(name("Node_1-b").unwrap().as_deref(), Some("Node_1-b"));
        assert_eq!(name("0123456789abcdef").unwrap().unwrap().len(), 16);
        for refused in ["0123456789abcdef0", "a.b", "a b", "\u{e4}"] {
            assert!(name(refused).unwrap_err()[0].contains("cannot be part of a token"), "{refused}");
        }
    }

    #[test]
    fn transports_are_named_as_in_asp_net() {
        let transports = |text: &str| resolve("", &[], app().with(Key::Transports, text));
        let some = transports("longpolling,WEBSOCKETS").unwrap().config.hub.transports;
        assert_eq!(some, Transports { web_sockets: true, server_sent_events: false, long_polling: true });
        assert!(transports("WebSocket").unwrap_err()[0].contains("did you mean WebSockets?"));
        assert!(transports("").unwrap_err()[0].contains("is empty"));
    }

    #[test]
    fn texts_may_be_written_as_one_or_as_a_list() {
        let audience = |text: &str| {
            let file = format!("[identity]\nsigning_key = \"{SIGNING_KEY}\"\naudience = {text}\n");
            resolve(&file, &[], app()).map(|resolved| resolved.config.identity.unwrap().audience)
        };
        assert_eq!(audience("\"a,b\"").unwrap(), ["a,b"]);
        assert_eq!(audience("[\"a\", \"b\"]").unwrap(), ["a", "b"]);
        // "Not checked" must not come about by an empty variable.
        for empty in ["[]", "\"\"", "[\"\"]"] {
            assert!(audience(empty).unwrap_err()[0].contains("is empty"), "{empty}");
        }
        assert!(audience("3").unwrap_err()[0].contains("expected a list of texts, found an integer"));
    }

    #[test]
    fn too_few_open_files_for_anything_is_a_fault_without_any_setting() {
        let machine = Machine { cores: 4, nofile: 64 };
        let faults = Resolved::of(None, std::iter::empty(), &app(), &machine).unwrap_err();
        assert!(faults.to_string().contains("raise the limit"), "{faults}");
    }

    #[test]
    fn a_faulty_side_makes_no_contradiction() {
        let found = resolve("[hub]\nkeep_alive_interval = \"20 s?\"\nclient_timeout_interval = \"16s\"\n", &[], app())
            .unwrap_err();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("not a duration"));
    }

    #[test]
    fn nothing_at_all_asks_for_an_app_server() {
        let found = resolve("", &[], RunFlags::default()).unwrap_err();
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("--app-server URL, SIGNALRING_APP_SERVER, or [[upstream]] url"), "{found:?}");
    }

    #[test]
    fn unknown_variables_are_faults() {
        let found =
            resolve("", &[("SIGNALRING_SHARD", "2"), ("SIGNALRING_CONFIG", "x"), ("OTHER", "y")], app()).unwrap_err();
        assert_eq!(found, ["SIGNALRING_SHARD: unknown variable; did you mean SIGNALRING_SHARDS?"]);
    }

    #[test]
    fn warnings_are_no_faults() {
        let flags = app().with(Key::Admin, "0.0.0.0:9090").with(Key::Shards, "8").with(Key::ConnectionPoolSize, "2");
        let resolved = resolve("", &[], flags).unwrap();
        assert_eq!(resolved.config.lanes(), 8);
        assert_eq!(resolved.warnings(&MACHINE).len(), 3);
        let flags = app().with(Key::TlsCertificateFile, PEM).with(Key::TlsKeyFile, PEM).with(Key::Listen, "unix:/n");
        let resolved = resolve("", &[], flags.with(Key::TrustedProxies, "::/0")).unwrap();
        let warnings = resolved.warnings(&MACHINE);
        for part in ["nothing is encrypted", "::/0: whoever connects", "unix:/n"] {
            assert!(warnings.iter().any(|warning| warning.contains(part)), "{part}: {warnings:?}");
        }
        assert_eq!(warnings.len(), 3);
    }
}
