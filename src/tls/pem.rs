//! Certificates and keys from PEM files (RFC 7468). Every error is a sentence that names the file.
use crate::limits::PEM_FILE_BYTES_MAX;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

/// The only source of cryptography: named in each configuration, so that no other part of a process can change it.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The certificates of a file, in its order; at least one.
pub(super) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(file)?;
    let certificates: Result<Vec<_>, PemError> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(format!(
            "{} has no certificate in it: PEM is expected, with -----BEGIN CERTIFICATE-----",
            file.display()
        )),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("{} is not sound PEM: {error}", file.display())),
    }
}

/// The private key of a file: PKCS#8, PKCS#1 or SEC1.
fn key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let text = read(file)?;
    match PrivateKeyDer::from_pem_slice(&text) {
        Ok(key) => Ok(key),
        Err(PemError::NoItemsFound) if memchr::memmem::find(&text, b"BEGIN ENCRYPTED PRIVATE KEY").is_some() => {
            Err(format!(
                "the key in {} is encrypted; store it without a passphrase (openssl pkey -in ... -out ...)",
                file.display()
            ))
        }
        Err(PemError::NoItemsFound) => Err(format!(
            "{} has no private key in it: PEM is expected, with -----BEGIN PRIVATE KEY-----",
            file.display()
        )),
        Err(error) => Err(format!("{} is not sound PEM: {error}", file.display())),
    }
}

/// A certificate chain (own certificate first) with the key that belongs to it.
pub(super) fn certified_key(certificate_file: &Path, key_file: &Path) -> Result<Arc<CertifiedKey>, String> {
    let chain = certificates(certificate_file)?;
    let (certificate_file, key_file) = (certificate_file.display(), key_file);
    let key = key(key_file)?;
    let key_file = key_file.display();
    match CertifiedKey::from_der(chain, key, &provider()) {
        Ok(certified) => Ok(Arc::new(certified)),
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(format!(
            "the key in {key_file} does not belong to the first certificate in {certificate_file}; the server's own certificate comes first"
        )),
        Err(Error::InvalidCertificate(error)) => {
            Err(format!("the first certificate in {certificate_file} cannot be read: {error}"))
        }
        Err(error) => Err(format!("the key in {key_file} cannot be used: {error}")),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    let opened = File::open(file).and_then(|open| open.take(PEM_FILE_BYTES_MAX + 1).read_to_end(&mut text));
    match opened {
        Ok(count) if count as u64 > PEM_FILE_BYTES_MAX => {
            Err(format!("{} is larger than {PEM_FILE_BYTES_MAX} bytes; is it the right file?", file.display()))
        }
        Ok(_) => Ok(text),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(format!("there is no file {}", file.display())),
        Err(error) => Err(format!("cannot read {}: {error}", file.display())),
    }
}
