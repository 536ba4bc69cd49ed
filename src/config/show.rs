//! The resolved configuration as a TOML file that reads back to the same one, each value with its source.
use super::secret::SHOWN;
use super::settings::{Key, Place, Table};
use super::value::{duration_text, size_text};
use super::{Config, Origin, Resolved, Secret, WeightedUrl};
use crate::proto::dotnetify::context::HeaderPolicy;
use crate::session::routing::{Dispatch, UpstreamKind};
use core::fmt;
use std::path::Path;

impl fmt::Display for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for table in Table::ALL {
            let sections = if table == Table::Upstream { self.config.upstreams.len() } else { 1 };
            for section in 0..sections {
                if table != Table::Top {
                    writeln!(f, "\n{}", table.header())?;
                }
                for setting in table.settings() {
                    let place = Place { upstream: section, key: setting.key };
                    let origin = self.origin(place);
                    // A file's path may hold anything, a comment no control characters.
                    let source = origin.to_string().replace(char::is_control, "?");
                    match self.config.line(place) {
                        Some(line) => writeln!(f, "{line:<44} # {source}{}", self.derivation(place, origin))?,
                        None => writeln!(f, "# {} is not set", setting.name)?,
                    }
                }
            }
        }
        Ok(())
    }
}

impl Resolved {
    fn derivation(&self, place: Place, origin: &Origin) -> &'static str {
        let upstream = &self.config.upstreams[place.upstream];
        let is_observer = upstream.kind == UpstreamKind::Observer;
        match (origin, place.key) {
            (Origin::Default, Key::Shards) => ": one a core",
            (Origin::Default, Key::MaxClients) => ": from the limit of open files",
            (Origin::Default, Key::UpstreamName) => ": by its place",
            (Origin::Default, Key::HaltPipeline | Key::ForwardHeaders) if is_observer => " of an observer",
            (Origin::Default, Key::HubId) if upstream.dispatch == Dispatch::Message => " of dispatch = message",
            _ => "",
        }
    }
}

impl Config {
    /// A setting as it stands in a file; None where it has no value.
    fn line(&self, place: Place) -> Option<String> {
        let (setting, text) = (place.key.setting(), self.text(place)?);
        // Several urls are a list, under the name of lists.
        let name = setting.plural().filter(|_| text.starts_with('[')).unwrap_or(setting.name);
        Some(format!("{name} = {text}"))
    }

    /// A setting's value in TOML; None where it has none.
    pub(super) fn text(&self, place: Place) -> Option<String> {
        let tls = self.tls.as_ref();
        let identity = self.identity.as_ref();
        let upstream = &self.upstreams[place.upstream];
        let client_certificate = upstream.client_certificate.as_ref();
        Some(match place.key {
            Key::Listen => match self.listen.as_slice() {
                [only] => quoted(&only.to_string()),
                several => list(several),
            },
            Key::Admin => quoted(&self.admin.to_string()),
            Key::Peers => list(&self.peers),
            Key::Shards => self.shards.to_string(),
            Key::NodeName => quoted(self.node_name.as_deref().unwrap_or("random")),
            Key::TokenKey => secret(self.token_key.as_ref())?,
            Key::TokenKeyFile => secret_file(self.token_key.as_ref())?,
            Key::TrustedProxies => list(&self.trusted_proxies),
            Key::ForwardedHeader => quoted(self.forwarded_header.name()),
            Key::ProxyProtocol => self.proxy_protocol.to_string(),
            Key::HubPath => quoted(&self.hub_path),
            Key::AllowedOrigins => list(&self.allowed_origins),
            Key::Journal => path(self.journal.as_ref()?),
            Key::Log => quoted(&self.log),
            Key::LogFormat => quoted(self.log_format.name()),
            Key::DrainDelay => quoted(&duration_text(self.drain_delay)),
            Key::DrainWindow => quoted(&duration_text(self.drain_window)),
            Key::TakeOver => path(self.take_over.as_ref()?),
            Key::MaximumReceiveMessageSize => size(self.hub.maximum_receive_message_size),
            Key::HandshakeTimeout => quoted(&duration_text(self.hub.handshake_timeout)),
            Key::ClientTimeoutInterval => quoted(&duration_text(self.hub.client_timeout_interval)),
            Key::KeepAliveInterval => quoted(&duration_text(self.hub.keep_alive_interval)),
            Key::Transports => list(&self.hub.transports.names()),
            Key::AllowStatefulReconnects => self.hub.allow_stateful_reconnects.to_string(),
            Key::StatefulReconnectBufferSize => size(self.hub.stateful_reconnect_buffer_size),
            Key::PollTimeout => quoted(&duration_text(self.hub.poll_timeout)),
            Key::DisconnectTimeout => quoted(&duration_text(self.hub.disconnect_timeout)),
            Key::CloseOnAuthenticationExpiration => self.hub.close_on_authentication_expiration.to_string(),
            Key::NegotiateWhenUnavailable => self.hub.negotiate_when_unavailable.to_string(),
            Key::MaxClients => self.limits.max_clients.to_string(),
            Key::ClientSendQueueBytes => size(self.limits.client_send_queue_bytes),
            Key::ClientSendBufferBytes => size(self.limits.client_send_buffer_bytes),
            Key::RequestHeadTimeout => quoted(&duration_text(self.limits.request_head_timeout)),
            Key::ClientSendQueueTime => quoted(&duration_text(self.limits.client_send_queue_time)),
            Key::ClientMessageRate => self.limits.client_message_rate.to_string(),
            Key::ClientMessageBurst => self.limits.client_message_burst.to_string(),
            Key::ClientTcpTimeout => quoted(&duration_text(self.limits.client_tcp_timeout)),
            Key::ConnectionsPerAddress => self.limits.connections_per_address.to_string(),
            Key::AcceptRate => self.limits.accept_rate.to_string(),
            Key::UpstreamQueueBytes => size(self.limits.upstream_queue_bytes),
            Key::UpstreamQueueTimeout => quoted(&duration_text(self.limits.upstream_queue_timeout)),
            Key::ClientReplayBytes => size(self.limits.client_replay_bytes),
            Key::TlsCertificateFile => path(&tls?.certificate_file),
            Key::TlsKeyFile => path(&tls?.key_file),
            Key::TlsMinimumVersion => quoted(tls?.minimum_version.name()),
            Key::SigningKey => secret(identity?.signing_key.as_ref())?,
            Key::SigningKeyFile => secret_file(identity?.signing_key.as_ref())?,
            Key::PublicKeyFile => {
                let files: Vec<_> = identity?.public_key_files.iter().map(|path| path.display()).collect();
                some(&files)?
            }
            Key::JwksFile => path(identity?.jwks_file.as_ref()?),
            Key::Audience => some(&identity?.audience)?,
            Key::Issuer => some(&identity?.issuer)?,
            Key::ClockSkew => quoted(&duration_text(identity?.clock_skew)),
            Key::UserIdClaim => list(&identity?.user_id_claims),
            Key::ForwardClaims => list(&identity?.forward_claims),
            Key::Required => quoted(identity?.required.name()),
            Key::UpstreamName => quoted(&upstream.name),
            Key::UpstreamKind => quoted(upstream.kind.name()),
            Key::Url => urls(&upstream.urls),
            Key::ConnectionPoolSize => upstream.connection_pool_size.to_string(),
            Key::UseMessagePack => upstream.use_message_pack.to_string(),
            Key::UpstreamMaximumReceiveMessageSize => size(upstream.maximum_receive_message_size),
            Key::CaFile => path(upstream.ca_file.as_ref()?),
            Key::ClientCertificateFile => path(&client_certificate?.certificate_file),
            Key::ClientKeyFile => path(&client_certificate?.key_file),
            Key::Filter => quoted(upstream.filter.as_ref()?.text()),
            Key::HaltPipeline => upstream.halt_pipeline.to_string(),
            Key::Dispatch => quoted(upstream.dispatch.name()),
            Key::HubId => quoted(upstream.hub_id.name()),
            Key::ForwardHeaders => match &upstream.forward_headers {
                HeaderPolicy::All => quoted("all"),
                HeaderPolicy::Only(names) => list(names),
            },
            Key::Acknowledge => upstream.acknowledge.to_string(),
            Key::AcknowledgeTimeout => quoted(&duration_text(upstream.acknowledge_timeout)),
            Key::InFlight => upstream.in_flight_max.to_string(),
        })
    }
}

/// One is a text, several are a list; with weights where not all are 1.
fn urls(urls: &[WeightedUrl]) -> String {
    if let [WeightedUrl { url, weight: 1 }] = urls {
        return quoted(&url.text);
    }
    let is_plain = urls.iter().all(|target| target.weight == 1);
    let entries: Vec<String> = urls
        .iter()
        .map(|WeightedUrl { url, weight }| match is_plain {
            true => quoted(&url.text),
            false => format!("{{ url = {}, weight = {weight} }}", quoted(&url.text)),
        })
        .collect();
    format!("[{}]", entries.join(", "))
}

fn list(items: &[impl fmt::Display]) -> String {
    format!("[{}]", items.iter().map(|item| quoted(&item.to_string())).collect::<Vec<_>>().join(", "))
}

/// A list that is not set when it is empty.
fn some(items: &[impl fmt::Display]) -> Option<String> {
    (!items.is_empty()).then(|| list(items))
}

fn path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// What stands in place of a secret is refused where it is read back, so that nobody runs a node with another key by mistake.
fn secret(secret: Option<&Secret>) -> Option<String> {
    secret.filter(|secret| secret.file().is_none()).map(|_| quoted(SHOWN))
}

fn secret_file(secret: Option<&Secret>) -> Option<String> {
    secret.and_then(Secret::file).map(path)
}

fn size(bytes: u32) -> String {
    match size_text(bytes) {
        text if text.ends_with("iB") => quoted(&text),
        text => text,
    }
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::{Machine, RunFlags};
    use super::*;
    use proptest::prelude::*;

    const MACHINE: Machine = Machine { cores: 2, nofile: 1 << 20 };

    fn reads_back(flags: &RunFlags) {
        reads_back_with("", flags);
    }

    /// Returns what is shown.
    fn reads_back_with(file: &str, flags: &RunFlags) -> String {
        let resolve =
            |file, flags: &RunFlags| Resolved::of(Some(("n.toml", file)), std::iter::empty(), flags, &MACHINE);
        let resolved = resolve(file, flags).unwrap_or_else(|faults| panic!("{faults}\n{file}"));
        let text = resolved.to_string();
        let again = resolve(&text, &RunFlags::default()).unwrap_or_else(|faults| panic!("{faults}\n{text}"));
        assert_eq!(again.config, resolved.config, "{text}");
        text
    }

    #[test]
    fn what_is_shown_reads_back() {
        let app = || RunFlags::default().with(Key::Url, "ws://[::1]:6100/base/");
        reads_back(&app());
        reads_back(&app().with(Key::ForwardHeaders, "").with(Key::LogFormat, "json").with(Key::Listen, "[::]:80"));
        reads_back(
            &app()
                .with(Key::ForwardHeaders, "Cookie,X-'quote")
                .with(Key::AllowedOrigins, "https://a")
                .with(Key::AllowedOrigins, "http://b:1"),
        );
        reads_back(&app().with(Key::Url, "http://b,https://c/base").with(Key::Dispatch, "message"));
        reads_back(&app().with(Key::Filter, "vm_id == 'a \"b\"' ||\n\tvm_id == \"\\u0041'\""));
        reads_back(&app().with(Key::Peers, "node-2:9090,http://[::1]:9090").with(Key::HubId, "node"));
        reads_back(&app().with(Key::Log, "info,signalring[span{field=\"x\"}]=debug"));
        let pem = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        reads_back(
            &RunFlags::default()
                .with(Key::Url, "wss://app/base")
                .with(Key::Listen, "unix:/run/a 'b'.sock")
                .with(Key::Listen, "https://[::]:443")
                .with(Key::NodeName, "node-1")
                .with(Key::TakeOver, "/run/signalring/take over.sock")
                .with(Key::DrainDelay, "3s")
                .with(Key::TrustedProxies, "10.0.0.0/8,::1,unix")
                .with(Key::ProxyProtocol, "true")
                .with(Key::Transports, "longpolling,WebSockets")
                .with(Key::AllowStatefulReconnects, "false")
                .with(Key::CloseOnAuthenticationExpiration, "true")
                .with(Key::TlsCertificateFile, pem)
                .with(Key::TlsKeyFile, pem)
                .with(Key::TlsMinimumVersion, "1.3")
                .with(Key::PublicKeyFile, pem)
                .with(Key::JwksFile, pem)
                .with(Key::Audience, "a \"b\",c")
                .with(Key::Issuer, "https://issuer.example/")
                .with(Key::ClockSkew, "0")
                .with(Key::UserIdClaim, "oid")
                .with(Key::ForwardClaims, "role,email")
                .with(Key::Required, "request")
                .with(Key::UseMessagePack, "true")
                .with(Key::CaFile, pem)
                .with(Key::ClientCertificateFile, pem)
                .with(Key::ClientKeyFile, pem),
        );
    }

    #[test]
    fn every_upstream_is_shown_with_its_sources_and_reads_back() {
        let pem = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let file = format!(
            r#"peers = ["node-2:9090"]
            [[upstream]]
            name = "observer.1"
            kind = "observer"
            url = "http://observer"
            [[upstream]]
            name = "chat"
            urls = ["https://a", {{ url = "http://b:6100/x", weight = 3 }}]
            ca_file = "{pem}"
            filter = '''
vm_id.startsWith('Chat') ||
vm_id == "it's \"quoted\""'''
            dispatch = "message"
            [[upstream]]
            urls = [{{ url = "http://c", weight = 1000 }}]
            filter = 'vm_id == "A"'
            halt_pipeline = false
            use_message_pack = true
            forward_headers = []
            [[upstream]]
            urls = ["http://d", "http://e"]
            hub_id = "node"
            connection_pool_size = 7
            "#
        );
        let shown = reads_back_with(&file, &RunFlags::default());
        assert_eq!(shown.matches("\n[[upstream]]\n").count(), 4, "{shown}");
        for (line, source) in [
            ("name = \"observer.1\"", "n.toml:3"),
            ("kind = \"observer\"", "n.toml:4"),
            ("halt_pipeline = false", "default of an observer"),
            ("forward_headers = [\"Host\", \"User-Agent\"]", "default of an observer"),
            ("urls = [{ url = \"https://a\", weight = 1 }, { url = \"http://b:6100/x\", weight = 3 }]", "n.toml:8"),
            ("hub_id = \"node\"", "default of dispatch = message"),
            ("name = \"upstream-3\"", "default: by its place"),
            ("urls = [{ url = \"http://c\", weight = 1000 }]", "n.toml:15"),
            ("urls = [\"http://d\", \"http://e\"]", "n.toml:21"),
            ("hub_id = \"node\"", "n.toml:22"),
            ("connection_pool_size = 7", "n.toml:23"),
        ] {
            let line = format!("{line:<44} # {source}");
            assert!(shown.lines().any(|shown| shown == line), "{line}\n{shown}");
        }
    }

    #[test]
    fn secrets_are_not_shown_and_what_stands_for_them_is_refused() {
        let flags = RunFlags::default()
            .with(Key::Url, "http://app")
            .with(Key::TokenKey, "swordfish-swordfish")
            .with(Key::SigningKey, "swordfish-swordfish-swordfish-swordfish");
        let resolved = Resolved::of(None, std::iter::empty(), &flags, &MACHINE).unwrap();
        let text = resolved.to_string();
        for shown in [&text, &format!("{resolved:?}"), &format!("{:?}", resolved.config), &format!("{flags:?}")] {
            assert!(shown.contains("(secret)") && !shown.contains("swordfish"), "{shown}");
        }
        let again = Resolved::of(Some(("shown.toml", &text)), std::iter::empty(), &RunFlags::default(), &MACHINE);
        let faults = again.unwrap_err();
        assert_eq!(faults.0.len(), 2, "{faults}");
        assert!(faults.0.iter().all(|fault| fault.reason.contains("that was not shown")), "{faults}");
    }

    proptest! {
        #[test]
        fn numbers_read_back(bytes in 1024u32..=1 << 20, queue in (2u32 << 20)..=1 << 30, ms in 100u64..=60_000, pool in 1u32..=1024) {
            reads_back(&RunFlags::default()
                .with(Key::Url, "http://app")
                .with(Key::MaximumReceiveMessageSize, bytes.to_string())
                .with(Key::UpstreamMaximumReceiveMessageSize, bytes.max(32768).to_string())
                .with(Key::StatefulReconnectBufferSize, bytes.min(256 << 10).to_string())
                .with(Key::UpstreamQueueBytes, queue.to_string())
                .with(Key::HandshakeTimeout, format!("{ms}ms"))
                .with(Key::ConnectionPoolSize, pool.to_string()));
        }
    }
}
