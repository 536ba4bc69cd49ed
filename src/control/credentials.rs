//! What a node proves itself and others with: certificates and keys, read at start and again when their files change.
use super::plane::ShardHandle;
use super::plane::{ORDER_TRIES, send_order};
use crate::bus::{ShardOrder, Unsent};
use crate::config::{Config, Identity as IdentityConfig, Upstream, read_bytes};
use crate::identity::{Identity, KeySource, Settings};
use crate::limits::CREDENTIALS_LOOK_MS;
use crate::tls::{ClientTls, ServerCertificates, Stamp, stamp};
use rustls::{ClientConfig, ServerConfig};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

pub(super) struct Credentials {
    certificates: Option<ServerCertificates>,
    identity: Option<IdentityConfig>,
    /// Of its key files, when they were read.
    identity_stamps: Vec<Option<Stamp>>,
}

impl Credentials {
    pub(super) fn load(config: &Config) -> io::Result<(Credentials, Option<Arc<Identity>>)> {
        let certificates = match &config.tls {
            None => None,
            Some(tls) => {
                let loaded = ServerCertificates::load(&tls.certificate_file, &tls.key_file, tls.minimum_version);
                Some(loaded.map_err(|error| io::Error::other(format!("tls: {error}")))?)
            }
        };
        let stamps = config.identity.as_ref().map_or(Vec::new(), stamps);
        let identity = match &config.identity {
            None => None,
            Some(identity) => Some(read_identity(identity).map_err(io::Error::other)?),
        };
        let credentials = Credentials { certificates, identity: config.identity.clone(), identity_stamps: stamps };
        Ok((credentials, identity.map(Arc::new)))
    }

    pub(super) fn server_tls(&self) -> Option<&Arc<ServerConfig>> {
        self.certificates.as_ref().map(ServerCertificates::config)
    }

    /// Looks at the files now and then, and at once when asked; for ever.
    pub(super) async fn watch(mut self, shards: Vec<ShardHandle>, mut asked: tokio::sync::mpsc::Receiver<()>) {
        if self.certificates.is_none() && self.identity.is_none() {
            return;
        }
        let mut must = false;
        loop {
            self.look(&shards, must).await;
            must = match tokio::time::timeout(Duration::from_millis(CREDENTIALS_LOOK_MS), asked.recv()).await {
                Ok(None) => return,
                Ok(Some(())) => true,
                Err(_) => false,
            };
        }
    }

    async fn look(&mut self, shards: &[ShardHandle], must: bool) {
        if let Some(certificates) = &self.certificates
            && (must || certificates.changed())
        {
            match certificates.reload() {
                Ok(()) => info!("the certificate was read again; new connections see it"),
                Err(error) => warn!("the certificate stays as it was: {error}"),
            }
        }
        let Some(identity) = &self.identity else { return };
        let now = stamps(identity);
        if !must && now == self.identity_stamps {
            return;
        }
        self.identity_stamps = now;
        match read_identity(identity) {
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
