//! The certificate with which clients' sockets are served, and its reload.
use super::{ALPN, pem};
use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

/// The oldest version of TLS a server accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MinimumVersion {
    #[default]
    Tls12,
    Tls13,
}

/// A server's certificate and key, from files that may be replaced while it runs.
#[derive(Debug)]
pub struct ServerCertificates {
    certificate_file: PathBuf,
    key_file: PathBuf,
    /// The files as they were when last read, well or not.
    read: Mutex<[Option<Stamp>; 2]>,
    current: Arc<Current>,
    config: Arc<ServerConfig>,
}

impl ServerCertificates {
    /// Reads a chain (own certificate first) and its key, both PEM. The error is a sentence that names the file at fault.
    pub fn load(
        certificate_file: &Path,
        key_file: &Path,
        minimum: MinimumVersion,
    ) -> Result<ServerCertificates, String> {
        let read = Mutex::new([stamp(certificate_file), stamp(key_file)]);
        let current = Arc::new(Current(RwLock::new(pem::certified_key(certificate_file, key_file)?)));
        let versions = match minimum {
            MinimumVersion::Tls12 => &[&TLS13, &TLS12][..],
            MinimumVersion::Tls13 => &[&TLS13],
        };
        let mut config = ServerConfig::builder_with_provider(pem::provider())
            .with_protocol_versions(versions)
            .map_err(|error| format!("TLS cannot be set up: {error}"))?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Sessions are resumed from what the client brings (RFC 5077, RFC 8446 §2.2): nothing is kept for one that has gone.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = rustls::crypto::ring::Ticketer::new()
            .map_err(|error| format!("the operating system gives no random numbers for session tickets: {error}"))?;
        Ok(ServerCertificates {
            certificate_file: certificate_file.to_path_buf(),
            key_file: key_file.to_path_buf(),
            read,
            current,
            config: Arc::new(config),
        })
    }

    /// For `Tls::accept`. Stays the same over reloads.
    pub fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }

    /// Has one of the files another time of change or another length than when it was last read? Says so once for each change, if
    /// `reload` is called on it.
    pub fn changed(&self) -> bool {
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) != self.stamps()
    }

    /// Reads the files again; handshakes that begin from now on see the new certificate. On an error the old one stays.
    pub fn reload(&self) -> Result<(), String> {
        // Before reading: a change in between is seen as one later.
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = self.stamps();
        let certified = pem::certified_key(&self.certificate_file, &self.key_file)?;
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = certified;
        Ok(())
    }

    fn stamps(&self) -> [Option<Stamp>; 2] {
        [stamp(&self.certificate_file), stamp(&self.key_file)]
    }
}

/// Time of change and length of a file: what a new version of it differs in.
pub type Stamp = (SystemTime, u64);

pub fn stamp(file: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// One certificate for everybody, whatever name a client asks for.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}
