//! Settings that are right alone and wrong together.
use super::draft::Draft;
use super::fault::Faults;
use super::settings::{Key, Place, Table};
use super::value::{duration_text, size_text};
use super::{Config, Listener, Machine, address, upstreams};
use crate::limits::*;
use core::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Without one of these there is no identity.
pub const KEY_SOURCES: [Key; 4] = [Key::SigningKey, Key::SigningKeyFile, Key::PublicKeyFile, Key::JwksFile];

pub struct Check<'a> {
    pub draft: &'a Draft,
    pub config: &'a Config,
    pub machine: &'a Machine,
    pub faults: &'a mut Faults,
}

impl Check<'_> {
    /// `file_is_sound`: a file with faults may well say what seems to be missing, in a place that could not be read.
    pub fn all(&mut self, file_is_sound: bool) {
        self.addresses();
        self.secrets_and_certificates();
        self.sizes_and_times();
        upstreams::check(self, file_is_sound);
        self.resources();
    }

    pub fn sound<P: Into<Place> + Copy>(&self, places: &[P]) -> bool {
        places.iter().all(|place| self.draft.is_sound(*place))
    }

    /// Reported where the one of the settings was said that is easiest to change: the last source that spoke.
    pub fn contradiction<P: Into<Place> + Copy>(&mut self, places: &[P], reason: String, remedy: String) {
        let places = places.iter().map(|place| (*place).into());
        let last = places.max_by_key(|place: &Place| (self.draft.origin(*place).rank(), Reverse(*place)));
        let place = last.expect("a contradiction has settings");
        self.faults.about(self.draft.origin(place), place.key.setting(), reason, remedy);
    }

    /// Two settings of which each needs the other.
    pub fn pair<P: Into<Place>>(&mut self, pair: [P; 2]) {
        let [a, b] = pair.map(Into::into);
        for (given, missing) in [(a, b), (b, a)] {
            if self.sound(&[a, b]) && self.draft.is_given(given) && !self.draft.is_given(missing) {
                let missing = missing.key.setting();
                let remedy = format!("give {} as well", missing.path());
                self.contradiction(&[given], format!("it is given without {}", missing.name), remedy);
            }
        }
    }

    fn addresses(&mut self) {
        let config = self.config;
        let keys = [Key::Listen, Key::Admin];
        let in_the_way =
            |listener: &&Listener| listener.tcp().is_some_and(|address| address::overlap(address, config.admin));
        if self.sound(&keys)
            && let Some(listener) = config.listen.iter().find(in_the_way)
        {
            self.contradiction(
                &keys,
                format!("listen ({listener}) and admin ({}) are the same address", config.admin),
                "give them different ports".into(),
            );
        }

        let keys = [Key::ProxyProtocol, Key::TrustedProxies];
        if self.sound(&keys) && config.proxy_protocol && config.trusted_proxies.is_empty() {
            self.contradiction(
                &[Key::ProxyProtocol],
                "proxy_protocol is on and no proxy is trusted".into(),
                "list the proxies in trusted_proxies".into(),
            );
        }

        let keys = [Key::Peers, Key::Admin];
        if self.sound(&keys)
            && let Some(peer) = config.peers.iter().find(|peer| is_itself(peer, config.admin))
        {
            self.contradiction(
                &[Key::Peers],
                format!("{peer} is this node's own admin address ({})", config.admin),
                "list other nodes only; this one is in its own picture anyway".into(),
            );
        }
    }

    fn secrets_and_certificates(&mut self) {
        let config = self.config;
        // Two settings for one thing.
        for keys in [[Key::TokenKey, Key::TokenKeyFile], [Key::SigningKey, Key::SigningKeyFile]] {
            if keys.iter().all(|key| self.draft.is_given(*key)) {
                let [text, file] = keys.map(|key| key.setting().name);
                self.contradiction(&keys, format!("both {text} and {file} are given"), "give one of them only".into());
            }
        }

        self.pair([Key::TlsCertificateFile, Key::TlsKeyFile]);
        let pair = [Key::TlsCertificateFile, Key::TlsKeyFile];
        if self.sound(&pair) && !pair.into_iter().any(|key| self.draft.is_given(key)) {
            let remedy = "give tls.certificate_file and tls.key_file";
            let https = config.listen.iter().find(|listener| listener.tls);
            if let Some(listener) = https
                && self.sound(&[Key::Listen])
            {
                self.contradiction(&[Key::Listen], format!("{listener} has no certificate"), remedy.into());
            }
            if self.draft.is_given(Key::TlsMinimumVersion) {
                self.contradiction(
                    &[Key::TlsMinimumVersion],
                    "it is given without a certificate".into(),
                    remedy.into(),
                );
            }
        }

        if self.sound(&KEY_SOURCES) && config.identity.is_none() {
            let in_vain = Key::all().filter(|key| key.setting().table == Table::Identity && self.draft.is_given(*key));
            let in_vain: Vec<Key> = in_vain
                .chain(config.hub.close_on_authentication_expiration.then_some(Key::CloseOnAuthenticationExpiration))
                .collect();
            if !in_vain.is_empty() {
                let names: Vec<&str> = in_vain.iter().map(|key| key.setting().name).collect();
                self.contradiction(
                    &in_vain,
                    format!("{} needs a key that users' tokens are verified with", names.join(", ")),
                    "give identity.signing_key, signing_key_file, public_key_file or jwks_file".into(),
                );
            }
        }
    }

    fn sizes_and_times(&mut self) {
        let config = self.config;
        let keys = [Key::StatefulReconnectBufferSize, Key::ClientSendQueueBytes];
        let (kept, queue) = (config.hub.stateful_reconnect_buffer_size, config.limits.client_send_queue_bytes);
        if config.hub.allow_stateful_reconnects && kept > queue && self.sound(&keys) {
            self.contradiction(
                &keys,
                format!(
                    "stateful_reconnect_buffer_size ({}) is larger than client_send_queue_bytes ({}): a client that comes back would be too slow for what it is sent again",
                    size_text(kept),
                    size_text(queue)
                ),
                "make it smaller, or client_send_queue_bytes larger".into(),
            );
        }

        let keys = [Key::ClientTimeoutInterval, Key::KeepAliveInterval];
        let least = config.hub.keep_alive_interval * CLIENT_TIMEOUT_KEEP_ALIVES_MIN;
        if self.sound(&keys) && config.hub.client_timeout_interval < least {
            self.contradiction(
                &keys,
                format!(
                    "client_timeout_interval ({}) is less than twice keep_alive_interval ({}), so one lost ping would disconnect a client",
                    duration_text(config.hub.client_timeout_interval),
                    duration_text(config.hub.keep_alive_interval)
                ),
                format!(
                    "raise client_timeout_interval to {} or more, or lower keep_alive_interval",
                    duration_text(least)
                ),
            );
        }

        let keys = [Key::UpstreamQueueBytes, Key::MaximumReceiveMessageSize];
        let least = config.hub.maximum_receive_message_size.saturating_mul(UPSTREAM_QUEUE_MESSAGES_MIN);
        if self.sound(&keys) && config.limits.upstream_queue_bytes < least {
            self.contradiction(
                &keys,
                format!(
                    "upstream_queue_bytes ({}) cannot hold one message of maximum_receive_message_size ({})",
                    size_text(config.limits.upstream_queue_bytes),
                    size_text(config.hub.maximum_receive_message_size)
                ),
                format!("raise upstream_queue_bytes to {} or more", size_text(least)),
            );
        }
    }

    fn resources(&mut self) {
        let config = self.config;
        let of_upstreams = (0..config.upstreams.len())
            .flat_map(|upstream| [Key::Url, Key::ConnectionPoolSize].map(|key| Place { upstream, key }));
        let places: Vec<Place> =
            [Key::MaxClients, Key::Shards].into_iter().map(Place::from).chain(of_upstreams).collect();
        if !self.sound(&places) {
            return;
        }
        let beside_clients =
            descriptors_beside_clients(config.shards, config.lanes(), config.listeners_each(), config.peers.len());
        let needed = u64::from(config.limits.max_clients) + beside_clients;
        let nofile = self.machine.nofile;
        if needed > nofile {
            self.contradiction(
                &places,
                format!(
                    "max_clients = {} needs {needed} open files ({beside_clients} beside the clients), and the limit is {nofile}",
                    config.limits.max_clients
                ),
                match nofile.checked_sub(beside_clients) {
                    Some(possible @ 1..) => {
                        format!("lower max_clients to {possible}, or raise the limit (ulimit -n, LimitNOFILE=)")
                    }
                    _ => "raise the limit (ulimit -n, LimitNOFILE=)".into(),
                },
            );
        }
        if config.limits.max_clients < u32::from(config.shards) {
            self.contradiction(
                &[Key::MaxClients, Key::Shards],
                format!(
                    "max_clients = {} leaves some of the {} shards without a client",
                    config.limits.max_clients, config.shards
                ),
                "raise max_clients or lower shards".into(),
            );
        }
    }
}

/// Open files a node needs when it holds no client.
pub fn descriptors_beside_clients(shards: u16, lanes: u32, listeners: usize, peers: usize) -> u64 {
    // The first listener is one of a shard's own.
    let per_shard = DESCRIPTORS_PER_SHARD + listeners as u32 - 1;
    let slack = DESCRIPTORS_SLACK + CONNECTIONS_SPARE;
    u64::from(slack + u32::from(shards) * per_shard + lanes * DESCRIPTORS_PER_LANE + peers as u32)
}

/// Whether `host:port` is where this node listens, as far as can be said without asking a name server.
pub fn is_itself(host_and_port: &str, listen: SocketAddr) -> bool {
    let Some((host, port)) = host_and_port.rsplit_once(':') else { return false };
    let host = match host {
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        host => host.trim_start_matches('[').trim_end_matches(']').parse().ok(),
    };
    host.is_some_and(|ip: IpAddr| {
        port.parse() == Ok(listen.port())
            && (ip == listen.ip() || (listen.ip().is_unspecified() && (ip.is_loopback() || ip.is_unspecified())))
    })
}
