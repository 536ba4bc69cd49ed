//! The keys that tokens are verified with. A key is for one algorithm, which its kind decides and never the token, so that no
//! token can have a public key taken for a shared secret (RFC 8725 section 3.1).
use crate::limits::{TOKEN_RSA_BITS_MAX, TOKEN_RSA_BITS_MIN, TOKEN_SECRET_BYTES_MIN};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, crypto};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Where keys come from; files have been read by the caller.
#[derive(Clone, PartialEq, Eq)]
pub enum KeySource {
    /// The shared secret of HS256, taken byte for byte: a line end at the end of a file is part of it.
    Secret(Vec<u8>),
    /// One public key in PEM (`PUBLIC KEY` or `RSA PUBLIC KEY`): RSA is for RS256, EC on the curve P-256 for ES256.
    Pem(Vec<u8>),
    /// A JSON Web Key Set (RFC 7517 section 5).
    Jwks(String),
}

/// The kind only: even a public key has no business in a log, and a secret least of all.
impl core::fmt::Debug for KeySource {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.kind())
    }
}

impl KeySource {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            KeySource::Secret(_) => "secret",
            KeySource::Pem(_) => "PEM",
            KeySource::Jwks(_) => "JWKS",
        }
    }
}

pub(super) struct Key {
    pub algorithm: Algorithm,
    /// Only keys of a JWKS have names.
    pub kid: Option<Box<str>>,
    decoding: DecodingKey,
}

/// `signature` is not base64url.
pub(super) struct NotBase64;

impl Key {
    /// Is `signature` (base64url) this key's over `message`?
    pub(super) fn signed(&self, message: &[u8], signature: &str) -> Result<bool, NotBase64> {
        // The key was tried when it was made (`Key::checked`), so nothing else than the text of the signature can be at fault.
        crypto::verify(signature, message, &self.decoding, self.algorithm).map_err(|_| NotBase64)
    }

    /// A key that verification will not stumble over.
    fn checked(algorithm: Algorithm, kid: Option<Box<str>>, decoding: DecodingKey) -> Result<Key, String> {
        match decoding.kind() {
            DecodingKeyKind::RsaModulusExponent { n, e } => check_rsa(n, e)?,
            DecodingKeyKind::SecretOrDer(secret) if algorithm == Algorithm::HS256 => check_secret(secret)?,
            DecodingKeyKind::SecretOrDer(_) => {}
        }
        // An EC point is checked by the first use.
        crypto::verify("", b"", &decoding, algorithm).map_err(|_| "not a key on the curve P-256".to_string())?;
        Ok(Key { algorithm, kid, decoding })
    }
}

/// Appends the keys of a source; returns how many of a JWKS were passed over.
pub(super) fn read(source: &KeySource, keys: &mut Vec<Key>) -> Result<usize, String> {
    match source {
        KeySource::Secret(secret) => {
            keys.push(Key::checked(Algorithm::HS256, None, DecodingKey::from_secret(secret))?);
            Ok(0)
        }
        KeySource::Pem(pem) => {
            keys.push(read_pem(pem)?);
            Ok(0)
        }
        KeySource::Jwks(text) => read_jwks(text, keys),
    }
}

fn read_pem(pem: &[u8]) -> Result<Key, String> {
    let text = core::str::from_utf8(pem).map_err(|_| "not text".to_string())?;
    match text.matches("-----BEGIN ").count() {
        0 => return Err("no PEM: there is no line -----BEGIN PUBLIC KEY-----".to_string()),
        1 => {}
        many => return Err(format!("{many} PEM blocks; one public key is wanted")),
    }
    // The parser below takes the first bit string of anything for the key.
    if text.contains("PRIVATE KEY-----") {
        return Err("a private key; give its public key (openssl pkey -pubout)".to_string());
    }
    if text.contains("CERTIFICATE-----") {
        return Err("a certificate; give its public key (openssl x509 -pubkey -noout)".to_string());
    }
    if let Ok(rsa) = DecodingKey::from_rsa_pem(pem) {
        let der = rsa.try_get_as_bytes().map_err(|error| error.to_string())?;
        let (n, e) = (crypto::rust_crypto::DEFAULT_PROVIDER.key_utils.rsa_pub_components_from_public_key)(der)
            .map_err(|error| format!("not a usable RSA key: {error}"))?;
        return Key::checked(Algorithm::RS256, None, DecodingKey::from_rsa_raw_components(&n, &e));
    }
    let ec = DecodingKey::from_ec_pem(pem).map_err(|_| "not a public key of RSA or EC".to_string())?;
    Key::checked(Algorithm::ES256, None, ec)
}

#[derive(Deserialize)]
struct KeySet<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

/// RFC 7517 section 5: keys of kinds not understood, with members missing or out of range, are to be passed over.
fn read_jwks(text: &str, keys: &mut Vec<Key>) -> Result<usize, String> {
    let set: KeySet<'_> = serde_json::from_str(text).map_err(|error| {
        // Where, not what: the message of serde_json may quote the text.
        format!("not a JSON Web Key Set (line {}, column {})", error.line(), error.column())
    })?;
    let before = keys.len();
    keys.extend(set.keys.iter().filter_map(|key| read_jwk(key.get())));
    match keys.len() - before {
        0 => Err(format!("none of its {} keys is for RS256, ES256 or HS256", set.keys.len())),
        read => Ok(set.keys.len() - read),
    }
}

fn read_jwk(text: &str) -> Option<Key> {
    let jwk: Jwk = serde_json::from_str(text).ok()?;
    let common = &jwk.common;
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(parameters) if parameters.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::OctetKey(_) => Algorithm::HS256,
        _ => return None,
    };
    let is_meant = common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature)
        && common.key_operations.as_ref().is_none_or(|operations| operations.contains(&KeyOperations::Verify))
        && common.key_algorithm.is_none_or(|named| named == KeyAlgorithm::from(algorithm));
    if !is_meant {
        return None;
    }
    let decoding = DecodingKey::from_jwk(&jwk).ok()?;
    Key::checked(algorithm, common.key_id.as_deref().map(Box::from), decoding).ok()
}

fn check_secret(secret: &[u8]) -> Result<(), String> {
    if secret.len() < TOKEN_SECRET_BYTES_MIN {
        return Err(format!("{} bytes; a secret has at least {TOKEN_SECRET_BYTES_MIN}", secret.len()));
    }
    Ok(())
}

fn check_rsa(n: &[u8], e: &[u8]) -> Result<(), String> {
    let n = &n[n.iter().take_while(|&&byte| byte == 0).count()..];
    let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
    if !(TOKEN_RSA_BITS_MIN..=TOKEN_RSA_BITS_MAX).contains(&bits) {
        return Err(format!("an RSA key of {bits} bits; {TOKEN_RSA_BITS_MIN} to {TOKEN_RSA_BITS_MAX} are taken"));
    }
    // RFC 8017 section 3.1: both are odd, and the exponent is at least 3. One of more than four bytes would only cost time.
    let exponent = e.iter().fold(0u64, |sum, &byte| sum.saturating_mul(256).saturating_add(byte.into()));
    let is_odd = n.last().is_some_and(|last| last & 1 == 1) && exponent & 1 == 1;
    if !is_odd || !(3..=u64::from(u32::MAX)).contains(&exponent) {
        return Err("not an RSA key: its modulus or exponent cannot be one".to_string());
    }
    Ok(())
}
