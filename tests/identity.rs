//! Who is let in: real tokens of all three algorithms, ours and foreign ones, and everything that is wrong with the others.
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, crypto};
use proptest::prelude::*;
use serde_json::{Value, json};
use signalring::fuzzing::identity::{EC_PUBLIC, FOREIGN, NOW, RSA_PUBLIC, SECRET, identity_token, settings};
use signalring::identity::{Identity, KeySource, Settings, TokenFault, User};
use signalring::limits::{TOKEN_BYTES_MAX, TOKEN_KEY_TRIES_MAX, TOKEN_KEYS_MAX};
use std::time::Duration;

const RSA: &[u8] = include_bytes!("keys/rsa.pem");
const RSA_OTHER: &[u8] = include_bytes!("keys/rsa-other.pem");
const RSA_OTHER_PUBLIC: &str = include_str!("keys/rsa-other.pub.pem");
const EC: &[u8] = include_bytes!("keys/ec.pem");

/// Signed as `algorithm` says, whatever the header says.
fn sign(header: &Value, claims: &Value, key: &EncodingKey, algorithm: Algorithm) -> String {
    let message = format!("{}.{}", base64(header.to_string()), base64(claims.to_string()));
    let signature = crypto::sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn hs256(claims: &Value) -> String {
    sign(&json!({"alg": "HS256"}), claims, &EncodingKey::from_secret(SECRET.as_bytes()), Algorithm::HS256)
}

fn rs256(header: &Value, claims: &Value) -> String {
    sign(header, claims, &EncodingKey::from_rsa_pem(RSA).unwrap(), Algorithm::RS256)
}

/// Claims that are accepted, and `more`.
fn claims(more: Value) -> Value {
    let mut claims = json!({"sub": "ada", "aud": "hub", "iss": "https://issuer.example", "exp": NOW + 60});
    claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    claims.as_object_mut().unwrap().retain(|_, value| *value != "absent");
    claims
}

fn identity() -> Identity {
    Identity::new(&settings()).unwrap()
}

fn verify(claims: &Value) -> Result<User, TokenFault> {
    identity().verify(&hs256(claims), NOW)
}

/// One key of a JWKS.
fn jwk(pem: &str, more: Value) -> Value {
    let key = DecodingKey::from_rsa_pem(pem.as_bytes()).or_else(|_| DecodingKey::from_ec_pem(pem.as_bytes())).unwrap();
    let mut jwk = serde_json::to_value(Jwk::from_decoding_key(&key, None).unwrap()).unwrap();
    jwk.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    jwk
}

fn jwks(keys: &[Value]) -> Settings {
    Settings { keys: vec![KeySource::Jwks(json!({ "keys": keys }).to_string())], ..settings() }
}

fn with_keys(keys: Vec<KeySource>) -> Identity {
    Identity::new(&Settings { keys, ..settings() }).unwrap()
}

#[test]
fn tokens_of_foreign_software_are_read() {
    for token in FOREIGN {
        let User { id, expires_unix_seconds, claims, all_claims } = identity().verify(token, NOW).unwrap();
        assert_eq!((id.as_deref(), expires_unix_seconds), (Some("ada"), Some(1_700_003_600 + 300)), "{token}");
        assert_eq!(claims, [("name".to_string(), "Ada Lovelace".to_string())]);
        assert_eq!((&all_claims["name"], &all_claims["exp"]), (&json!("Ada Lovelace"), &json!(1_700_003_600)));
    }
}

/// RFC 7515 appendices A.1 to A.3: payload `{"iss":"joe","exp":1300819380,"http://example.com/is_root":true}` with line ends in it.
#[test]
fn the_examples_of_rfc_7515() {
    let hmac = json!({"kty": "oct", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"});
    let rsa = json!({"kty": "RSA", "e": "AQAB", "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"});
    let ec = json!({"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"});
    let payload = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let tokens = [
        ("eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9", "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
        (
            "eyJhbGciOiJSUzI1NiJ9",
            "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
        ),
        (
            "eyJhbGciOiJFUzI1NiJ9",
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
    ];
    let settings = Settings {
        audiences: Vec::new(),
        issuers: vec!["joe".into()],
        clock_skew: Duration::ZERO,
        forward_claims: vec!["http://example.com/is_root".into(), "iss".into()],
        ..jwks(&[hmac, rsa, ec])
    };
    let identity = Identity::new(&settings).unwrap();
    assert_eq!(identity.skipped(), 0);
    for (header, signature) in tokens {
        let token = format!("{header}.{payload}.{signature}");
        let user = identity.verify(&token, 1_300_819_379).expect(header);
        assert_eq!(user.id, None);
        assert_eq!(user.expires_unix_seconds, Some(1_300_819_380));
        let expected = [("http://example.com/is_root", "true"), ("iss", "joe")];
        assert_eq!(user.claims, expected.map(|(name, value)| (name.to_string(), value.to_string())));
        assert_eq!(identity.verify(&token, 1_300_819_380), Err(TokenFault::Expired));
    }
}

#[test]
fn each_algorithm_with_the_right_key_and_a_wrong_one() {
    let secret = EncodingKey::from_secret(SECRET.as_bytes());
    let rsa = EncodingKey::from_rsa_pem(RSA).unwrap();
    let ec = EncodingKey::from_ec_pem(EC).unwrap();
    for (name, algorithm, key) in
        [("HS256", Algorithm::HS256, secret), ("RS256", Algorithm::RS256, rsa), ("ES256", Algorithm::ES256, ec)]
    {
        let user = identity().verify(&sign(&json!({"alg": name}), &claims(json!({})), &key, algorithm), NOW).unwrap();
        assert_eq!(user.id.as_deref(), Some("ada"), "{name}");
    }
    let others = EncodingKey::from_rsa_pem(RSA_OTHER).unwrap();
    let token = sign(&json!({"alg": "RS256"}), &claims(json!({})), &others, Algorithm::RS256);
    assert_eq!(identity().verify(&token, NOW), Err(TokenFault::Signature));
    let others = EncodingKey::from_secret(b"another secret of a good length");
    let token = sign(&json!({"alg": "HS256"}), &claims(json!({})), &others, Algorithm::HS256);
    assert_eq!(identity().verify(&token, NOW), Err(TokenFault::Signature));
    let other_point = with_keys(vec![KeySource::Jwks(
        json!({"keys": [{"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}).to_string(),
    )]);
    assert_eq!(other_point.verify(FOREIGN[2], NOW), Err(TokenFault::Signature));
}

#[test]
fn the_keys_kind_decides_the_algorithm() {
    let pem = || KeySource::Pem(RSA_PUBLIC.into());
    // The public key, which everybody has, used as the secret of an HMAC.
    let public = EncodingKey::from_secret(RSA_PUBLIC.as_bytes());
    let forged = sign(&json!({"alg": "HS256"}), &claims(json!({})), &public, Algorithm::HS256);
    assert_eq!(with_keys(vec![pem()]).verify(&forged, NOW), Err(TokenFault::Algorithm));
    assert_eq!(identity().verify(&forged, NOW), Err(TokenFault::Signature));
    let confused = sign(&json!({"alg": "RS256"}), &claims(json!({})), &public, Algorithm::HS256);
    assert_eq!(with_keys(vec![pem()]).verify(&confused, NOW), Err(TokenFault::Signature));
    // An honest token of another algorithm than its header says.
    let mislabelled = rs256(&json!({"alg": "HS256"}), &claims(json!({})));
    assert_eq!(identity().verify(&mislabelled, NOW), Err(TokenFault::Signature));
    // The algorithm that a JWKS names does not make its key one of another kind.
    let settings = jwks(&[jwk(RSA_PUBLIC, json!({"alg": "HS256"})), jwk(RSA_PUBLIC, json!({"alg": "RS256"}))]);
    let identity = Identity::new(&settings).unwrap();
    assert_eq!(identity.skipped(), 1);
    assert_eq!(identity.verify(&forged, NOW), Err(TokenFault::Algorithm));
}

#[test]
fn other_algorithms_are_refused() {
    let secret = EncodingKey::from_secret(SECRET.as_bytes());
    for (name, algorithm) in [("HS384", Algorithm::HS384), ("HS512", Algorithm::HS512)] {
        let token = sign(&json!({"alg": name}), &claims(json!({})), &secret, algorithm);
        assert_eq!(identity().verify(&token, NOW), Err(TokenFault::Algorithm), "{name}");
    }
    let rsa = EncodingKey::from_rsa_pem(RSA).unwrap();
    for (name, algorithm) in [("RS512", Algorithm::RS512), ("PS256", Algorithm::PS256)] {
        let token = sign(&json!({"alg": name}), &claims(json!({})), &rsa, algorithm);
        assert_eq!(identity().verify(&token, NOW), Err(TokenFault::Algorithm), "{name}");
    }
    for name in ["none", "None", "NONE", "", "hs256", "HS256 ", "ES384", "EdDSA", "RSA-OAEP"] {
        let message = format!("{}.{}", base64(json!({"alg": name}).to_string()), base64(claims(json!({})).to_string()));
        let signature = crypto::sign(message.as_bytes(), &secret, Algorithm::HS256).unwrap();
        for signature in ["", &signature] {
            let token = format!("{message}.{signature}");
            assert_eq!(identity().verify(&token, NOW), Err(TokenFault::Algorithm), "{name}");
        }
    }
    // No key for it.
    assert_eq!(with_keys(vec![KeySource::Pem(RSA_PUBLIC.into())]).verify(FOREIGN[2], NOW), Err(TokenFault::Algorithm));
}

#[test]
fn every_character_is_signed() {
    for (token, position_step) in FOREIGN.into_iter().zip([1, 37, 41]) {
        for position in (0..token.len()).step_by(position_step).chain([token.len() - 1]) {
            let mut changed = token.as_bytes().to_vec();
            changed[position] = if changed[position] == b'Q' { b'R' } else { b'Q' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(identity().verify(&changed, NOW).is_err(), "{position} of {token}");
        }
        for end in (0..token.len()).step_by(position_step * 3) {
            assert!(identity().verify(&token[..end], NOW).is_err());
        }
    }
}

#[test]
fn kid_picks_the_key() {
    let set = jwks(&[
        jwk(RSA_PUBLIC, json!({"kid": "a"})),
        jwk(RSA_OTHER_PUBLIC, json!({"kid": "b"})),
        jwk(EC_PUBLIC, json!({"kid": "c"})),
    ]);
    let identity = Identity::new(&set).unwrap();
    let token = |kid: Value| rs256(&json!({"alg": "RS256", "kid": kid}), &claims(json!({})));
    assert!(identity.verify(&token("a".into()), NOW).is_ok());
    assert_eq!(identity.verify(&token("b".into()), NOW), Err(TokenFault::Signature));
    assert_eq!(identity.verify(&token("d".into()), NOW), Err(TokenFault::UnknownKey));
    // The name of a key of another algorithm.
    assert_eq!(identity.verify(&token("c".into()), NOW), Err(TokenFault::UnknownKey));
    assert_eq!(identity.verify(&token(1.into()), NOW), Err(TokenFault::Malformed));
    // Nameless: any key of the algorithm.
    assert!(identity.verify(&token(Value::Null), NOW).is_ok());
    assert!(identity.verify(&rs256(&json!({"alg": "RS256"}), &claims(json!({}))), NOW).is_ok());

    // A PEM file cannot name its key: it is meant wherever no name fits, and nowhere else.
    let mixed = with_keys(vec![KeySource::Pem(RSA_PUBLIC.into()), set.keys[0].clone()]);
    assert!(mixed.verify(&token("d".into()), NOW).is_ok());
    assert_eq!(mixed.verify(&token("b".into()), NOW), Err(TokenFault::Signature));
}

#[test]
fn tries_are_bounded() {
    let mut keys: Vec<Value> =
        (0..TOKEN_KEY_TRIES_MAX).map(|index| jwk(RSA_OTHER_PUBLIC, json!({"kid": format!("other{index}")}))).collect();
    keys.push(jwk(RSA_PUBLIC, json!({"kid": "last"})));
    let identity = Identity::new(&jwks(&keys)).unwrap();
    assert_eq!(identity.verify(&rs256(&json!({"alg": "RS256"}), &claims(json!({}))), NOW), Err(TokenFault::Signature));
    assert!(identity.verify(&rs256(&json!({"alg": "RS256", "kid": "last"}), &claims(json!({}))), NOW).is_ok());
    let fewer = Identity::new(&jwks(&keys[1..])).unwrap();
    assert!(fewer.verify(&rs256(&json!({"alg": "RS256"}), &claims(json!({}))), NOW).is_ok());
}

#[test]
fn keys_for_other_uses_are_passed_over_and_counted() {
    let useless = [
        jwk(RSA_PUBLIC, json!({"use": "enc"})),
        jwk(RSA_PUBLIC, json!({"key_ops": ["encrypt"]})),
        jwk(RSA_PUBLIC, json!({"alg": "RS512"})),
        jwk(RSA_PUBLIC, json!({"alg": "RSA-OAEP"})),
        jwk(RSA_PUBLIC, json!({"n": "!"})),
        jwk(RSA_PUBLIC, json!({"n": base64([0xff; 255])})),
        jwk(RSA_PUBLIC, json!({"n": base64([0xff; 513])})),
        jwk(RSA_PUBLIC, json!({"n": base64([0xfe; 256])})),
        jwk(RSA_PUBLIC, json!({"e": "AQ"})),
        jwk(RSA_PUBLIC, json!({"e": "AQAA"})),
        jwk(RSA_PUBLIC, json!({"e": base64([0xff; 256])})),
        jwk(EC_PUBLIC, json!({"crv": "P-384"})),
        jwk(EC_PUBLIC, json!({"x": base64([1; 32])})),
        jwk(include_str!("keys/ec384.pub.pem"), json!({})),
        json!({"kty": "oct", "k": base64("fifteen bytes..")}),
        json!({"kty": "OKP", "crv": "Ed25519", "x": base64([1; 32])}),
        json!({"kty": "RSA"}),
        json!({"kty": "new"}),
        json!({}),
        json!(null),
    ];
    for key in &useless {
        let reason = Identity::new(&jwks(std::slice::from_ref(key))).unwrap_err();
        assert_eq!(reason, "key 1 (JWKS): none of its 1 keys is for RS256, ES256 or HS256", "{key}");
    }
    let good = [
        jwk(RSA_PUBLIC, json!({"use": "sig", "alg": "RS256", "key_ops": ["verify"], "x5t": "abc", "new": [1]})),
        json!({"kty": "oct", "k": base64(SECRET)}),
        jwk(EC_PUBLIC, json!({"alg": "ES256"})),
    ];
    let identity = Identity::new(&jwks(&[&useless[..], &good[..]].concat())).unwrap();
    assert_eq!(identity.skipped(), useless.len());
    for token in FOREIGN {
        assert!(identity.verify(token, NOW).is_ok());
    }
}

#[test]
fn unusable_keys_are_named_with_a_reason() {
    let reason = |keys: &[KeySource]| Identity::new(&Settings { keys: keys.to_vec(), ..settings() }).unwrap_err();
    let pem = |text: &str| reason(&[KeySource::Secret(SECRET.into()), KeySource::Pem(text.into())]);
    assert_eq!(reason(&[]), "no key to verify tokens with");
    assert_eq!(reason(&[KeySource::Secret(b"too short".into())]), "key 1 (secret): 9 bytes; a secret has at least 16");
    assert!(pem("").starts_with("key 2 (PEM): no PEM"));
    assert!(pem(std::str::from_utf8(RSA).unwrap()).starts_with("key 2 (PEM): a private key; give its public key"));
    assert!(pem(include_str!("keys/cert.pem")).starts_with("key 2 (PEM): a certificate; give its public key"));
    assert_eq!(pem(&format!("{RSA_PUBLIC}{EC_PUBLIC}")), "key 2 (PEM): 2 PEM blocks; one public key is wanted");
    assert_eq!(
        pem(include_str!("keys/rsa1024.pub.pem")),
        "key 2 (PEM): an RSA key of 1024 bits; 2048 to 4096 are taken"
    );
    assert_eq!(pem(include_str!("keys/ec384.pub.pem")), "key 2 (PEM): not a key on the curve P-256");
    assert_eq!(pem(include_str!("keys/ed.pub.pem")), "key 2 (PEM): not a public key of RSA or EC");
    assert_eq!(pem(&RSA_PUBLIC.replace("MII", "AII")), "key 2 (PEM): not a public key of RSA or EC");
    assert_eq!(
        reason(&[KeySource::Jwks("{\n\"keys\": 1}".into())]),
        "key 1 (JWKS): not a JSON Web Key Set (line 2, column 9)"
    );
    let many = vec![KeySource::Secret(SECRET.into()); TOKEN_KEYS_MAX + 1];
    assert_eq!(reason(&many), "65 keys; at most 64 are taken");
}

#[test]
fn both_forms_of_an_rsa_key_are_read() {
    let identity = with_keys(vec![KeySource::Pem(include_str!("keys/rsa.pkcs1.pem").into())]);
    assert!(identity.verify(FOREIGN[1], NOW).is_ok());
}

#[test]
fn times_with_skew_both_ways() {
    let at = |skew: u64, exp: Value, nbf: Value| {
        let settings = Settings { clock_skew: Duration::from_secs(skew), ..settings() };
        Identity::new(&settings).unwrap().verify(&hs256(&claims(json!({"exp": exp, "nbf": nbf}))), NOW)
    };
    let absent = || json!("absent");
    assert_eq!(at(0, json!(NOW + 1), absent()).unwrap().expires_unix_seconds, Some(NOW + 1));
    assert_eq!(at(0, json!(NOW), absent()), Err(TokenFault::Expired));
    assert_eq!(at(60, json!(NOW - 59), absent()).unwrap().expires_unix_seconds, Some(NOW + 1));
    assert_eq!(at(60, json!(NOW - 60), absent()), Err(TokenFault::Expired));
    assert!(at(0, json!(NOW + 1), json!(NOW)).is_ok());
    assert_eq!(at(0, json!(NOW + 2), json!(NOW + 1)), Err(TokenFault::NotYetValid));
    assert!(at(60, json!(NOW + 99), json!(NOW + 60)).is_ok());
    assert_eq!(at(60, json!(NOW + 99), json!(NOW + 61)), Err(TokenFault::NotYetValid));

    for missing in [absent(), json!(null)] {
        assert_eq!(at(60, missing, absent()), Err(TokenFault::NoExpiration));
    }
    for odd in [json!("1700009999"), json!(true), json!([NOW + 9]), json!({})] {
        assert_eq!(at(60, odd.clone(), absent()), Err(TokenFault::Malformed), "{odd}");
        assert_eq!(at(60, json!(NOW + 9), odd.clone()), Err(TokenFault::Malformed), "{odd}");
    }
    // Fractions, and what no clock will show.
    assert_eq!(at(0, json!(NOW as f64 + 1.5), absent()).unwrap().expires_unix_seconds, Some(NOW + 1));
    for end in [json!(u64::MAX), json!(1e300)] {
        assert_eq!(at(60, end, absent()).unwrap().expires_unix_seconds, Some(u64::MAX));
    }
    assert_eq!(at(60, json!(-1), absent()), Err(TokenFault::Expired));
    assert_eq!(at(60, json!(-1e300), absent()), Err(TokenFault::Expired));
    assert!(at(60, json!(NOW + 9), json!(-5)).is_ok());
    assert_eq!(at(60, json!(NOW + 9), json!(u64::MAX)), Err(TokenFault::NotYetValid));
    // The latest time there is, with a skew.
    let latest = claims(json!({"exp": u64::MAX, "nbf": u64::MAX}));
    assert_eq!(identity().verify(&hs256(&latest), u64::MAX), Err(TokenFault::Expired));
}

#[test]
fn audience_and_issuer() {
    for good in [json!("hub"), json!(["other", "hub"]), json!([1, "hub"])] {
        assert!(verify(&claims(json!({"aud": good}))).is_ok(), "{good}");
    }
    let bad =
        [json!("absent"), json!(null), json!("Hub"), json!("hub2"), json!(""), json!([]), json!([["hub"]]), json!(1)];
    for bad in &bad {
        assert_eq!(verify(&claims(json!({"aud": bad}))), Err(TokenFault::Audience), "{bad}");
    }
    let issuer = "https://issuer.example";
    for bad in bad.iter().chain([&json!([issuer]), &json!({"iss": issuer}), &json!("https://issuer.example/")]) {
        assert_eq!(verify(&claims(json!({"iss": bad}))), Err(TokenFault::Issuer), "{bad}");
    }
    let unchecked = Settings { audiences: Vec::new(), issuers: Vec::new(), ..settings() };
    let unchecked = Identity::new(&unchecked).unwrap();
    for any in bad {
        assert!(unchecked.verify(&hs256(&claims(json!({"aud": any, "iss": any}))), NOW).is_ok(), "{any}");
    }
}

#[test]
fn the_first_claim_with_a_name_is_the_user_id() {
    let long = "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/nameidentifier";
    let id = |more: Value| verify(&claims(more)).unwrap().id;
    assert_eq!(id(json!({})).as_deref(), Some("ada"));
    assert_eq!(id(json!({"nameid": "b", long: "c"})).as_deref(), Some("b"));
    assert_eq!(id(json!({"sub": "absent", long: "c"})).as_deref(), Some("c"));
    assert_eq!(id(json!({"nameid": 42})).as_deref(), Some("42"));
    for none in [json!(""), json!(null), json!({}), json!(["x"]), json!(true)] {
        assert_eq!(id(json!({"nameid": none})).as_deref(), Some("ada"), "{none}");
    }
    assert_eq!(id(json!({"sub": "absent"})), None);
}

#[test]
fn claims_are_forwarded_as_configured() {
    let forward_claims = ["role", "missing", "name", "n"].map(String::from).into();
    let identity = Identity::new(&Settings { forward_claims, ..settings() }).unwrap();
    let more = json!({"name": "Zoë \"\n", "role": ["a", {"b": null}], "n": 1.5, "secret": "x"});
    let user = identity.verify(&hs256(&claims(more)), NOW).unwrap();
    let expected = [("role", r#"["a",{"b":null}]"#), ("name", "Zoë \"\n"), ("n", "1.5")];
    assert_eq!(user.claims, expected.map(|(name, value)| (name.to_string(), value.to_string())));
}

#[test]
fn malformed_tokens() {
    let token = hs256(&claims(json!({})));
    let parts: Vec<&str> = token.split('.').collect();
    let [header, body, signature] = parts[..] else { panic!() };
    for bad in [
        String::new(),
        ".".into(),
        "..".into(),
        "a.b.c".into(),
        header.into(),
        format!("{header}.{body}"),
        format!("{token} "),
        format!(" {token}"),
        format!("{header}=.{body}.{signature}"),
        format!("{header}.{body}.{signature}="),
        format!("{header}.{body}.{signature}."),
        format!("é.{body}.{signature}"),
    ] {
        assert_eq!(identity().verify(&bad, NOW), Err(TokenFault::Malformed), "{bad}");
    }
    let secret = EncodingKey::from_secret(SECRET.as_bytes());
    for header in [
        json!({}),
        json!({"alg": null}),
        json!({"alg": ["HS256"]}),
        json!(["HS256", null, null]),
        json!("HS256"),
        json!({"alg": "HS256", "crit": ["b64"], "b64": true}),
        json!({"alg": "HS256", "crit": []}),
    ] {
        let token = sign(&header, &claims(json!({})), &secret, Algorithm::HS256);
        assert_eq!(identity().verify(&token, NOW), Err(TokenFault::Malformed), "{header}");
    }
    for claims in [json!(null), json!([]), json!("claims"), json!([NOW + 9])] {
        assert_eq!(verify(&claims), Err(TokenFault::Malformed), "{claims}");
    }
    // A header that says two things, and one that is not UTF-8 where nobody looks.
    for header in [&b"{\"alg\":\"HS256\",\"alg\":\"HS256\"}"[..], b"{\"alg\":\"HS256\",\"x\":\"\xff\"}"] {
        let message = format!("{}.{body}", base64(header));
        let signature = crypto::sign(message.as_bytes(), &secret, Algorithm::HS256).unwrap();
        assert_eq!(identity().verify(&format!("{message}.{signature}"), NOW), Err(TokenFault::Malformed));
    }
}

#[test]
fn long_tokens_are_not_looked_at() {
    let of_length = |padding: usize| hs256(&claims(json!({"x": "x".repeat(padding)})));
    let lengths: Vec<String> = (5900..6100).map(of_length).collect();
    let longest = lengths.iter().rfind(|token| token.len() <= TOKEN_BYTES_MAX).unwrap();
    assert!(longest.len() >= TOKEN_BYTES_MAX - 2 && identity().verify(longest, NOW).is_ok());
    let longer = lengths.iter().find(|token| token.len() > TOKEN_BYTES_MAX).unwrap();
    assert_eq!(identity().verify(longer, NOW), Err(TokenFault::TooLong));
}

#[test]
fn nothing_secret_is_shown() {
    let settings = settings();
    let identity = Identity::new(&settings).unwrap();
    let user = identity.verify(FOREIGN[0], NOW).unwrap();
    let shown = format!("{settings:?} {identity:?} {user:?} {:#?} {:#?} {:#?}", settings, identity, user);
    let bytes = format!("{:?}", &SECRET.as_bytes()[..6]);
    for secret in [SECRET, bytes.trim_matches(['[', ']']), "BEGIN", "Lovelace", "ada"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
    for fault in TokenFault::ALL {
        assert_eq!(fault.to_string(), fault.description());
    }
}

/// Claims with the right names and all kinds of values.
fn any_claims() -> impl Strategy<Value = String> {
    let text = prop_oneof![Just("hub"), Just("https://issuer.example"), Just("ada"), Just("")].prop_map(Value::from);
    let leaf = prop_oneof![
        4 => text,
        4 => (NOW - 400..NOW + 400).prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<u64>().prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
    ];
    let value = prop_oneof![4 => leaf.clone(), 1 => prop::collection::vec(leaf, 0..3).prop_map(Value::from)];
    let name = prop::sample::select(&["exp", "nbf", "aud", "iss", "sub", "nameid", "name"][..]);
    (prop::collection::vec((name, value), 0..6), any::<bool>()).prop_map(|(members, complete)| {
        let good = format!(r#""aud":"hub","iss":"https://issuer.example","exp":{}"#, NOW + 1);
        let mut all: Vec<String> = members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        if complete {
            all.insert(0, good);
        }
        format!("{{{}}}", all.join(","))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn what_was_signed_is_judged_by_its_claims(claims in any_claims()) {
        identity_token(claims.as_bytes());
    }

    #[test]
    fn nothing_is_accepted_that_nobody_signed(
        which in 0..FOREIGN.len(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), "[A-Za-z0-9_.=-]"), 1..4),
    ) {
        let mut token = FOREIGN[which].to_string();
        for (at, character) in edits {
            let at = at.index(token.len());
            token.replace_range(at..at + 1, &character);
        }
        identity_token(token.as_bytes());
    }

    #[test]
    fn any_text_does_no_harm(text in ".{0,80}", header in "\\{(\"(alg|kid|crit|typ)\":(\"HS256\"|\"none\"|1|null|\\[\\]),?){0,3}\\}") {
        identity_token(text.as_bytes());
        identity_token(header.as_bytes());
    }
}
