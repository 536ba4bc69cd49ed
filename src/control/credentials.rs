//! What a node proves itself and others with: certificates and keys, read at start and again when their files change.
use super::plane::ShardHandle;
use super::plane::{ORDER_TRIES, send_order};
use crate::bus::{ShardOrder, Unsent};
use crate::config::{Config, Identity as IdentityConfig, Tls, Upstream, read_bytes};
use crate::identity::{Identity, KeySource, Settings};
use crate::tls::{ClientTls, ServerCertificates, Stamp, stamp};
use rustls::{ClientConfig, ServerConfig};
use std::io;
use std::path::Path;
use std::sync::Arc;
use tracing::{info, warn};

pub(super) struct Credentials {
    certificates: Option<ServerCertificates>,
    /// Where they are from.
    tls: Option<Tls>,
    identity: Option<IdentityConfig>,
    /// Of its key files, when they were read.
    identity_stamps: Vec<Option<Stamp>>,
}

impl Credentials {
    pub(super) fn load(config: &Config) -> io::Result<(Credentials, Option<Arc<Identity>>)> {
        let mut credentials =
            Credentials { certificates: None, tls: None, identity: None, identity_stamps: Vec::new() };
        let identity = credentials.renew(config).map_err(io::Error::other)?;
        Ok((credentials, identity))
    }

    pub(super) fn server_tls(&self) -> Option<&Arc<ServerConfig>> {
        self.certificates.as_ref().map(ServerCertificates::config)
    }

    /// Reads everything that a configuration names, also where it is another than before. On an error all of it stays as it was.
    pub(super) fn renew(&mut self, config: &Config) -> Result<Option<Arc<Identity>>, String> {
        let stamps = config.identity.as_ref().map_or(Vec::new(), stamps);
        let identity = config.identity.as_ref().map(read_identity).transpose()?.map(Arc::new);
        match (&self.certificates, &config.tls) {
            // In place: sessions of TLS are resumed as before.
            (Some(certificates), Some(_)) if config.tls == self.tls => {
                certificates.reload().map_err(|error| format!("tls: {error}"))?;
            }
            (_, tls) => self.certificates = tls.as_ref().map(read_certificates).transpose()?,
        }
        (self.tls, self.identity, self.identity_stamps) = (config.tls.clone(), config.identity.clone(), stamps);
        Ok(identity)
    }

    /// Reads the files that have changed.
    pub(super) async fn look(&mut self, shards: &[ShardHandle]) {
        if let Some(certificates) = &self.certificates
            && certificates.changed()
        {
            match certificates.reload() {
                Ok(()) => info!("the certificate was read again; new connections see it"),
                Err(error) => warn!("the certificate stays as it was: {error}"),
            }
        }
        let Some(settings) = &self.identity else { return };
        let now = stamps(settings);
        if now == self.identity_stamps {
            return;
        }
        self.identity_stamps = now;
        match read_identity(settings) {
            Ok(identity) => {
                let identity = Arc::new(identity);
                for shard in shards {
                    let order = ShardOrder::Identity(identity.clone());
                    if let Err(Unsent::Full(_)) = send_order(&shard.orders, order, ORDER_TRIES).await {
                        // As if they had changed again: the next look tells everybody once more.
                        self.identity_stamps.clear();
                        warn!("a shard takes no orders, and knows the old keys for tokens only; it will be told again");
                    }
                }
                info!("the keys for tokens were read again");
            }
            Err(error) => warn!("the keys for tokens stay as they were: {error}"),
        }
    }
}

fn read_certificates(tls: &Tls) -> Result<ServerCertificates, String> {
    ServerCertificates::load(&tls.certificate_file, &tls.key_file, tls.minimum_version)
        .map_err(|error| format!("tls: {error}"))
}

fn stamps(identity: &IdentityConfig) -> Vec<Option<Stamp>> {
    identity.public_key_files.iter().chain(&identity.jwks_file).map(|path| stamp(path)).collect()
}

fn read_identity(config: &IdentityConfig) -> Result<Identity, String> {
    let read = |path: &Path| read_bytes(path).map_err(|error| format!("identity: {} {error}", path.display()));
    let mut keys = Vec::new();
    if let Some(secret) = &config.signing_key {
        keys.push(KeySource::Secret(secret.bytes().to_vec()));
    }
    for path in &config.public_key_files {
        keys.push(KeySource::Pem(read(path)?));
    }
    if let Some(path) = &config.jwks_file {
        let text = String::from_utf8(read(path)?)
            .map_err(|_| format!("identity: {} is not UTF-8, so no JWKS", path.display()))?;
        keys.push(KeySource::Jwks(text));
    }
    let settings = Settings {
        keys,
        audiences: config.audience.clone(),
        issuers: config.issuer.clone(),
        clock_skew: config.clock_skew,
        user_id_claims: config.user_id_claims.clone(),
        forward_claims: config.forward_claims.clone(),
    };
    let identity = Identity::new(&settings).map_err(|error| format!("identity: {error}"))?;
    if identity.skipped() > 0 {
        warn!(
            "{} keys of the JWKS are not for verifying RS256, ES256 or HS256 and are passed over",
            identity.skipped()
        );
    }
    Ok(identity)
}

/// What lanes to an upstream's https urls need.
pub(super) fn lane_tls(upstream: &Upstream) -> io::Result<Option<Arc<ClientConfig>>> {
    if !upstream.urls.iter().any(|target| target.url.tls) {
        return Ok(None);
    }
    let own = upstream.client_certificate.as_ref();
    let own = own.map(|own| (own.certificate_file.as_path(), own.key_file.as_path()));
    ClientTls::load(upstream.ca_file.as_deref(), own)
        .map(Some)
        .map_err(|error| io::Error::other(format!("upstream {}: {error}", upstream.name)))
}
