//! Oracle for bearer tokens: nothing is accepted but what was signed, and of that what its claims allow.
use crate::identity::{CLOCK_SKEW_DEFAULT, Identity, KeySource, Settings, TokenFault, USER_ID_CLAIMS_DEFAULT};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// When the tokens below are good.
pub const NOW: u64 = 1_700_000_100;
pub const SECRET: &str = "dotnetifydemo_secretkey_123!";
pub const RSA_PUBLIC: &str = include_str!("../../tests/keys/rsa.pub.pem");
pub const EC_PUBLIC: &str = include_str!("../../tests/keys/ec.pub.pem");

/// Tokens that the openssl command signed (`openssl dgst -sha256`), for HS256, RS256 and ES256. Their claims:
/// `{"sub": "ada", "name": "Ada Lovelace", "aud": "hub", "iss": "https://issuer.example", "nbf": 1700000000, "exp": 1700003600}`
pub const FOREIGN: [&str; 3] = [
    "eyJhbGciOiAiSFMyNTYiLCAidHlwIjogIkpXVCJ9.eyJzdWIiOiAiYWRhIiwgIm5hbWUiOiAiQWRhIExvdmVsYWNlIiwgImF1ZCI6ICJodWI\
     iLCAiaXNzIjogImh0dHBzOi8vaXNzdWVyLmV4YW1wbGUiLCAibmJmIjogMTcwMDAwMDAwMCwgImV4cCI6IDE3MDAwMDM2MDB9.3gcuNMS3cW\
     f40O4YVttxr6twhGma0H0HoQbhQ9nbGvk",
    "eyJhbGciOiAiUlMyNTYiLCAidHlwIjogIkpXVCJ9.eyJzdWIiOiAiYWRhIiwgIm5hbWUiOiAiQWRhIExvdmVsYWNlIiwgImF1ZCI6ICJodWI\
     iLCAiaXNzIjogImh0dHBzOi8vaXNzdWVyLmV4YW1wbGUiLCAibmJmIjogMTcwMDAwMDAwMCwgImV4cCI6IDE3MDAwMDM2MDB9.frJ-G5LszR\
     B4Y-avOtqEt_jidUxuhsRA8zcV7EO1XWAnpA-ZnUmR1ANdUntPZ3Sx7f8mN80KXtgx0NivcbLgE9HsY7dxzNekmwB8Sox1S4VfbobNZw7x0a\
     g2AiJxoEcUJ1SvFJofE36xu8h_rgjH7IY9mM0Cd2fJuXBFsaknRFIY8ASR6A3WEUV9oFRPOcRjr5_-v72Dhj-M9p5NZHRqcrKMfcJykSXXj6\
     MYRVwl3Io53TEmHNjkHQMrV1iDR_B4m2tsU3IvQ77Ijr6XGsiUAilhLFbfpkTa2VOT5fsMWQr1S7H8DMbHOfaomURi3q4uQVz82vZxvfHhhH\
     9h13aetA",
    "eyJhbGciOiAiRVMyNTYiLCAidHlwIjogIkpXVCJ9.eyJzdWIiOiAiYWRhIiwgIm5hbWUiOiAiQWRhIExvdmVsYWNlIiwgImF1ZCI6ICJodWI\
     iLCAiaXNzIjogImh0dHBzOi8vaXNzdWVyLmV4YW1wbGUiLCAibmJmIjogMTcwMDAwMDAwMCwgImV4cCI6IDE3MDAwMDM2MDB9.XZEYoiYtwb\
     lokf1r9-A_YXeBeGDoND796NkcZxtmjUUYad0MgalrbZKxy9Q-doCdrasnFljrlmiKcG3q4PyuLw",
];

pub fn settings() -> Settings {
    Settings {
        keys: vec![
            KeySource::Secret(SECRET.into()),
            KeySource::Pem(RSA_PUBLIC.into()),
            KeySource::Pem(EC_PUBLIC.into()),
        ],
        audiences: vec!["hub".into()],
        issuers: vec!["https://issuer.example".into()],
        clock_skew: CLOCK_SKEW_DEFAULT,
        user_id_claims: USER_ID_CLAIMS_DEFAULT.map(String::from).into(),
        forward_claims: vec!["name".into()],
    }
}

/// The bytes are taken for a token, for claims that the issuer signed, and for a header before claims that it signed.
pub fn identity_token(data: &[u8]) {
    static IDENTITY: LazyLock<Identity> = LazyLock::new(|| Identity::new(&settings()).expect("the keys are good"));
    if let Ok(token) = core::str::from_utf8(data)
        && IDENTITY.verify(token, NOW).is_ok()
    {
        // An ECDSA signature has a twin, so what counts is what was signed.
        let signed = |token: &'static str| token.rsplit_once('.').map(|(message, _)| message);
        let message = token.rsplit_once('.').map(|(message, _)| message);
        assert!(FOREIGN.iter().any(|ours| signed(ours) == message), "nobody signed it");
    }

    let claims = serde_json::from_slice::<Value>(data).ok();
    match IDENTITY.verify(&signed(br#"{"alg":"HS256"}"#, data), NOW) {
        Ok(user) => {
            let claims = claims.expect("JSON");
            let (now, skew) = (NOW as f64, CLOCK_SKEW_DEFAULT.as_secs_f64());
            let number = |name: &str| claims[name].as_f64();
            assert!(number("exp").is_some_and(|until| now < until + skew));
            assert!(number("nbf").is_none_or(|from| from < now + skew + 1.0));
            let is_ours = |name: &Value| name == "hub";
            assert!(is_ours(&claims["aud"]) || claims["aud"].as_array().is_some_and(|names| names.iter().any(is_ours)));
            assert_eq!(claims["iss"], "https://issuer.example");
            if let Some(id) = claims["nameid"].as_str().filter(|id| !id.is_empty()) {
                assert_eq!(user.id.as_deref(), Some(id));
            }
            assert_eq!(user.claims.len(), usize::from(claims.get("name").is_some()));
        }
        Err(TokenFault::TooLong) => assert!(data.len() > 6000),
        Err(TokenFault::Algorithm | TokenFault::UnknownKey | TokenFault::Signature) => panic!("it was signed"),
        Err(TokenFault::Malformed) => {
            let is_time = |time: &Value| time.is_number() || time.is_null();
            assert!(
                !claims.is_some_and(|claims| claims.is_object() && is_time(&claims["exp"]) && is_time(&claims["nbf"]))
            );
        }
        Err(TokenFault::NoExpiration) => assert!(claims.is_some_and(|claims| claims["exp"].is_null())),
        Err(TokenFault::Expired | TokenFault::NotYetValid | TokenFault::Audience | TokenFault::Issuer) => {}
    }

    let good = br#"{"exp":1700003600,"aud":"hub","iss":"https://issuer.example"}"#;
    if IDENTITY.verify(&signed(data, good), NOW).is_ok() {
        // Members of no interest may hold what .NET would not read, such as lone surrogates.
        let header: BTreeMap<String, &RawValue> = serde_json::from_slice(data).expect("a JSON object");
        let algorithm: String = serde_json::from_str(header["alg"].get()).expect("a string");
        assert_eq!(algorithm, "HS256");
        assert!(header.get("crit").is_none_or(|crit| crit.get() == "null"));
    }
}

/// A token of these bytes with the secret's signature, whatever the header says.
fn signed(header: &[u8], claims: &[u8]) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).expect("HMAC takes any message");
    format!("{message}.{signature}")
}
