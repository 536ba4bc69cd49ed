//! Whom lanes trust, and as whom they come.
use super::{ALPN, pem};
use crate::limits::TLS_SESSIONS_KEPT;
use rustls::client::Resumption;
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::sync::Arc;

/// TLS towards app servers.
pub struct ClientTls;

impl ClientTls {
    /// Trusts the authorities in `ca_file` and no others, or without it those of the operating system. With `certificate_and_key` a
    /// server that asks for a client certificate gets one. All files are PEM; the error is a sentence that names the one at fault.
    pub fn load(
        ca_file: Option<&Path>,
        certificate_and_key: Option<(&Path, &Path)>,
    ) -> Result<Arc<ClientConfig>, String> {
        let builder = ClientConfig::builder_with_provider(pem::provider())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| format!("TLS cannot be set up: {error}"))?
            .with_root_certificates(roots(ca_file)?);
        let mut config = match certificate_and_key {
            Some((certificate_file, key_file)) => {
                let certified = pem::certified_key(certificate_file, key_file)?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::in_memory_sessions(TLS_SESSIONS_KEPT);
        Ok(Arc::new(config))
    }
}

pub(super) fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let (certificates, none) = match ca_file {
        Some(file) => {
            let none = format!("no certificate in {} can be read", file.display());
            (pem::certificates(file)?, none)
        }
        None => {
            let system = rustls_native_certs::load_native_certs();
            let why = system.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
            let none = format!(
                "the operating system has no list of trusted authorities{why}: install ca-certificates, or set ca_file"
            );
            (system.certs, none)
        }
    };
    // A list of authorities may hold some that are too old or too new to be read; the others serve.
    let (added, _) = roots.add_parsable_certificates(certificates);
    if added == 0 { Err(none) } else { Ok(roots) }
}
