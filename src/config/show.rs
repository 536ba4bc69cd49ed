//! The resolved configuration as a TOML file that reads back to the same one, each value with its source.
use super::secret::SHOWN;
use super::settings::{Key, Kind, Table};
use super::value::{duration_text, size_text};
use super::{Config, Origin, Resolved, Secret};
use crate::proto::dotnetify::context::HeaderPolicy;
use core::fmt;
use std::path::Path;

impl fmt::Display for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for table in Table::ALL {
            if table != Table::Top {
                writeln!(f, "\n{}", table.header())?;
            }
            for setting in table.settings() {
                let origin = self.origin(setting.key);
                // A file's path may hold anything, a comment no control characters.
                let source = origin.to_string().replace(char::is_control, "?");
                match self.config.text(setting.key) {
                    Some(text) => writeln!(
                        f,
                        "{:<44} # {source}{}",
                        format!("{} = {text}", setting.name),
                        self.derivation(setting.key, origin)
                    )?,
                    None => writeln!(f, "# {} is not set", setting.name)?,
                }
            }
        }
        Ok(())
    }
}

impl Resolved {
    fn derivation(&self, key: Key, origin: &Origin) -> &'static str {
        match (origin, key) {
            (Origin::Default, Key::Shards) => ": one a core",
            (Origin::Default, Key::MaxClients) => ": from the limit of open files",
            _ => "",
        }
    }
}

impl Config {
    /// A setting's value in TOML; None where it has none.
    fn text(&self, key: Key) -> Option<String> {
        let tls = self.tls.as_ref();
        let identity = self.identity.as_ref();
        let client_certificate = self.upstreams[0].client_certificate.as_ref();
        Some(match key {
            Key::Listen => match self.listen.as_slice() {
                [only] => quoted(&only.to_string()),
                several => list(several),
            },
            Key::Admin => quoted(&self.admin.to_string()),
            Key::Shards => self.shards.to_string(),
            Key::NodeName => quoted(self.node_name.as_deref().unwrap_or("random")),
            Key::TokenKey => secret(self.token_key.as_ref())?,
            Key::TokenKeyFile => secret_file(self.token_key.as_ref())?,
            Key::TrustedProxies => list(&self.trusted_proxies),
            Key::ForwardedHeader => quoted(self.forwarded_header.name()),
            Key::ProxyProtocol => self.proxy_protocol.to_string(),
            Key::HubPath => quoted(&self.hub_path),
            Key::AllowedOrigins => list(&self.allowed_origins),
            Key::Log => quoted(&self.log),
            Key::LogFormat => quoted(self.log_format.name()),
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
            Key::MaxClients => self.limits.max_clients.to_string(),
            Key::ClientSendQueueBytes => size(self.limits.client_send_queue_bytes),
            Key::ClientSendBufferBytes => size(self.limits.client_send_buffer_bytes),
            Key::RequestHeadTimeout => quoted(&duration_text(self.limits.request_head_timeout)),
            Key::UpstreamQueueBytes => size(self.limits.upstream_queue_bytes),
            Key::UpstreamQueueTimeout => quoted(&duration_text(self.limits.upstream_queue_timeout)),
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
            Key::Url => quoted(&self.upstreams[0].urls[0].url.text),
            Key::ConnectionPoolSize => self.upstreams[0].connection_pool_size.to_string(),
            Key::UseMessagePack => self.upstreams[0].use_message_pack.to_string(),
            Key::UpstreamMaximumReceiveMessageSize => size(self.upstreams[0].maximum_receive_message_size),
            Key::CaFile => path(self.upstreams[0].ca_file.as_ref()?),
            Key::ClientCertificateFile => path(&client_certificate?.certificate_file),
            Key::ClientKeyFile => path(&client_certificate?.key_file),
            Key::HaltPipeline | Key::Filter => match key.setting().kind {
                Kind::NotYet { accepted: Some(accepted) } => accepted.to_string(),
                _ => return None,
            },
            Key::ForwardHeaders => match &self.upstreams[0].forward_headers {
                HeaderPolicy::All => quoted("all"),
                HeaderPolicy::Only(names) => list(names),
            },
        })
    }
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
        let resolved = Resolved::of(None, std::iter::empty(), flags, &MACHINE).unwrap();
        let text = resolved.to_string();
        let again = Resolved::of(Some(("shown.toml", &text)), std::iter::empty(), &RunFlags::default(), &MACHINE);
        assert_eq!(again.unwrap_or_else(|faults| panic!("{faults}\n{text}")).config, resolved.config, "{text}");
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
        reads_back(&app().with(Key::Log, "info,signalring[span{field=\"x\"}]=debug"));
        let pem = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        reads_back(
            &RunFlags::default()
                .with(Key::Url, "wss://app/base")
                .with(Key::Listen, "unix:/run/a 'b'.sock")
                .with(Key::Listen, "https://[::]:443")
                .with(Key::NodeName, "node-1")
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
