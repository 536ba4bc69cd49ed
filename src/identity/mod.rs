//! Who a client is: JSON Web Tokens (RFC 7519), verified. Pure: token text and time in, user or fault out; no clock, no file, no log.
//!
//! The crate `jsonwebtoken` reads keys and checks signatures. Header and claims are read here, because what decides about them is not
//! the crate's: the time is an argument, the key's kind decides the algorithm, and every refusal has a name of its own.
//!
//! Rules beyond the signature are those of ASP.NET's JwtBearer with its defaults, so that a client that an app server knows is one that
//! the node knows: an expiration is required, `nbf` is honoured, clocks may differ by `clock_skew` either way.

mod fault;
mod keys;

pub use fault::TokenFault;
pub use keys::KeySource;

use crate::limits::{TOKEN_BYTES_MAX, TOKEN_KEY_TRIES_MAX, TOKEN_KEYS_MAX};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use keys::{Key, NotBase64};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// How users are known.
#[derive(Clone, Debug)]
pub struct Authentication {
    pub identity: Arc<Identity>,
    pub required: Required,
    /// A client whose token has expired is told to come back.
    pub closes_on_expiry: bool,
}

/// What needs a valid token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Required {
    Nothing,
    /// Every request over HTTP, preflights apart, or it gets 401.
    Connection,
    /// Every `Request_VM`, from the connection or its own headers, or it is answered with an `UnauthorizedAccessException`.
    Request,
}

/// Where a user id is looked for when nobody says. The long name is what .NET makes of `sub` and `nameid` when it maps claims, and
/// what its tokens carry when they are written without that mapping.
pub const USER_ID_CLAIMS_DEFAULT: [&str; 3] =
    ["nameid", "sub", "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/nameidentifier"];

/// ASP.NET's `ClockSkew`.
pub const CLOCK_SKEW_DEFAULT: Duration = Duration::from_secs(5 * 60);

/// Plain data; files have been read by the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub keys: Vec<KeySource>,
    /// The token is for one of these; empty: not checked.
    pub audiences: Vec<String>,
    /// The token comes from one of these; empty: not checked.
    pub issuers: Vec<String>,
    /// How far clocks may differ, in whole seconds.
    pub clock_skew: Duration,
    /// The first that a token has is the user id.
    pub user_id_claims: Vec<String>,
    /// Passed upstream.
    pub forward_claims: Vec<String>,
}

/// What tokens are verified against. It never changes: a reload makes another one.
pub struct Identity {
    keys: Vec<Key>,
    skipped: usize,
    audiences: Vec<String>,
    issuers: Vec<String>,
    skew_seconds: u64,
    user_id_claims: Vec<String>,
    forward_claims: Vec<String>,
}

const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Identity>()
};

impl Identity {
    /// Fails with a sentence that says which key is unusable and why. It holds nothing of the key.
    pub fn new(settings: &Settings) -> Result<Identity, String> {
        let mut keys = Vec::new();
        let mut skipped = 0;
        for (index, source) in settings.keys.iter().enumerate() {
            skipped += keys::read(source, &mut keys)
                .map_err(|reason| format!("key {} ({}): {reason}", index + 1, source.kind()))?;
        }
        match keys.len() {
            0 => return Err("no key to verify tokens with".to_string()),
            1..=TOKEN_KEYS_MAX => {}
            many => return Err(format!("{many} keys; at most {TOKEN_KEYS_MAX} are taken")),
        }
        Ok(Identity {
            keys,
            skipped,
            audiences: settings.audiences.clone(),
            issuers: settings.issuers.clone(),
            skew_seconds: settings.clock_skew.as_secs(),
            user_id_claims: settings.user_id_claims.clone(),
            forward_claims: settings.forward_claims.clone(),
        })
    }

    /// Keys of the JWKS that are of other kinds or for other uses, and were passed over.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// The user of a token: signed by one of the keys, and good at `now_unix_seconds` for one of the audiences.
    pub fn verify(&self, token: &str, now_unix_seconds: u64) -> Result<User, TokenFault> {
        let claims = self.signed_claims(token)?;
        let expires = self.check_times(&claims, now_unix_seconds)?;
        if !self.audiences.is_empty() && !names_one_of(claims.get("aud"), &self.audiences) {
            return Err(TokenFault::Audience);
        }
        // RFC 7519 section 4.1.1: unlike the audience, never a list.
        if !self.issuers.is_empty() && !is_one_of(claims.get("iss"), &self.issuers) {
            return Err(TokenFault::Issuer);
        }
        let forwarded = |name: &String| Some((name.clone(), text(claims.get(name)?)));
        Ok(User {
            id: self.user_id_claims.iter().find_map(|name| user_id(claims.get(name)?)),
            expires_unix_seconds: Some(expires),
            claims: self.forward_claims.iter().filter_map(forwarded).collect(),
            all_claims: claims,
        })
    }

    /// The claims, after the signature over them was found right.
    fn signed_claims(&self, token: &str) -> Result<Map<String, Value>, TokenFault> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenFault::TooLong);
        }
        let mut parts = token.split('.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenFault::Malformed);
        };
        let message = &token[..header.len() + 1 + claims.len()];
        self.check_signature(&decode(header)?, message, signature)?;
        serde_json::from_slice(&decode(claims)?).map_err(|_| TokenFault::Malformed)
    }

    fn check_signature(&self, header: &[u8], message: &str, signature: &str) -> Result<(), TokenFault> {
        // RFC 7515 section 5.2 wants UTF-8 and an object; serde would pass over the one in members it skips, and take an array.
        let text = core::str::from_utf8(header).map_err(|_| TokenFault::Malformed)?;
        if !text.trim_start().starts_with('{') {
            return Err(TokenFault::Malformed);
        }
        let header: Header<'_> = serde_json::from_str(text).map_err(|_| TokenFault::Malformed)?;
        if header.crit.is_some() {
            return Err(TokenFault::Malformed);
        }
        let algorithm = match &*header.alg {
            "HS256" => Algorithm::HS256,
            "RS256" => Algorithm::RS256,
            "ES256" => Algorithm::ES256,
            _ => return Err(TokenFault::Algorithm),
        };
        let keys = || self.keys.iter().filter(|key| key.algorithm == algorithm);
        if keys().next().is_none() {
            return Err(TokenFault::Algorithm);
        }
        // A name picks the key that has it. Where there is none, keys that have no name are still meant, as a secret or a PEM
        // file cannot have one.
        let kid = header.kid.as_deref();
        let picked = keys().any(|key| kid.is_some() && key.kid.as_deref() == kid);
        let fits = |key: &&Key| match kid {
            None => true,
            Some(_) if picked => key.kid.as_deref() == kid,
            Some(_) => key.kid.is_none(),
        };
        let mut fault = TokenFault::UnknownKey;
        for key in keys().filter(fits).take(TOKEN_KEY_TRIES_MAX) {
            match key.signed(message.as_bytes(), signature) {
                Ok(true) => return Ok(()),
                Ok(false) => fault = TokenFault::Signature,
                Err(NotBase64) => return Err(TokenFault::Malformed),
            }
        }
        Err(fault)
    }

    /// The first second at which the token is no longer taken.
    fn check_times(&self, claims: &Map<String, Value>, now: u64) -> Result<u64, TokenFault> {
        let expires = seconds(claims.get("exp"))?.ok_or(TokenFault::NoExpiration)?.saturating_add(self.skew_seconds);
        // RFC 7519 section 4.1.4: not accepted on or after this time.
        if now >= expires {
            return Err(TokenFault::Expired);
        }
        if seconds(claims.get("nbf"))?.is_some_and(|from| now.saturating_add(self.skew_seconds) < from) {
            return Err(TokenFault::NotYetValid);
        }
        Ok(expires)
    }
}

/// Counts only.
impl core::fmt::Debug for Identity {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Identity")
            .field("keys", &self.keys.len())
            .field("skipped", &self.skipped)
            .finish_non_exhaustive()
    }
}

/// Who a verified token says its bearer is.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// None: the token has none of the claims that would hold it.
    pub id: Option<Box<str>>,
    /// The first second at which the token is no longer taken: its `exp` and the clock skew. With `exp` alone a client would be
    /// ended with a token that lets it in again at once.
    pub expires_unix_seconds: Option<u64>,
    /// The forwarded claims that the token has, in the order of the settings: strings as they are (any characters), other values
    /// as JSON text.
    pub claims: Vec<(String, String)>,
    /// Everything the token says.
    pub all_claims: Map<String, Value>,
}

/// Names and times only: what claims say of a person does not belong in a log.
impl core::fmt::Debug for User {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let names: Vec<&str> = self.claims.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("User")
            .field("has_id", &self.id.is_some())
            .field("expires_unix_seconds", &self.expires_unix_seconds)
            .field("claims", &names)
            .finish()
    }
}

/// What of a JOSE header (RFC 7515 section 4.1) decides about a signature. Members that stand there twice are a fault.
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
    crit: Option<IgnoredAny>,
}

fn decode(part: &str) -> Result<Vec<u8>, TokenFault> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenFault::Malformed)
}

/// A NumericDate (RFC 7519 section 2). A fraction of a second is nothing beside the skew; what is out of range is at its end.
fn seconds(claim: Option<&Value>) -> Result<Option<u64>, TokenFault> {
    match claim {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => match (number.as_u64(), number.as_f64()) {
            (Some(seconds), _) => Ok(Some(seconds)),
            (None, Some(seconds)) => Ok(Some(seconds as u64)),
            (None, None) => Err(TokenFault::Malformed),
        },
        Some(_) => Err(TokenFault::Malformed),
    }
}

fn is_one_of(claim: Option<&Value>, accepted: &[String]) -> bool {
    claim.and_then(Value::as_str).is_some_and(|name| accepted.iter().any(|one| one == name))
}

/// RFC 7519 section 4.1.3: one name or a list of them.
fn names_one_of(claim: Option<&Value>, accepted: &[String]) -> bool {
    match claim {
        Some(Value::Array(names)) => names.iter().any(|name| is_one_of(Some(name), accepted)),
        name => is_one_of(name, accepted),
    }
}

/// A string or a number; an empty name is none, or all who have it would be one user.
fn user_id(claim: &Value) -> Option<Box<str>> {
    match claim {
        Value::String(name) if !name.is_empty() => Some(name.as_str().into()),
        Value::Number(number) => Some(number.to_string().into()),
        _ => None,
    }
}

fn text(claim: &Value) -> String {
    match claim {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
