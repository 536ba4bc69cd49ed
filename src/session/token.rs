//! Connection tokens: what negotiate hands out and a WebSocket's `id` brings back. Signed, not remembered: whoever has the key can
//! check one, so a client's requests need not reach the same shard or node twice.
//!
//! Layout before base64url: connection id 16 bytes, expiry in unix seconds 8 bytes, HMAC-SHA256 cut to 16 bytes.
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// How long a token may be used for. A client connects right after negotiating; ASP.NET keeps an unused connection for 15 s.
/// Longer here, because the clocks of two nodes may differ and nothing is held for it.
pub const TOKEN_SECONDS: u64 = 60;
/// Characters of a token.
pub const TOKEN_CHARS: usize = 54;
const BYTES: usize = 40;

#[derive(Clone)]
pub struct TokenKey(Hmac<Sha256>);

impl TokenKey {
    pub fn new(secret: &[u8]) -> TokenKey {
        TokenKey(Hmac::new_from_slice(secret).expect("HMAC takes keys of any length"))
    }

    /// A token for a connection id made of 16 random bytes.
    pub fn issue(&self, connection_id: &[u8; 16], now_unix_seconds: u64) -> [u8; TOKEN_CHARS] {
        let mut bytes = [0u8; BYTES];
        bytes[..16].copy_from_slice(connection_id);
        bytes[16..24].copy_from_slice(&(now_unix_seconds + TOKEN_SECONDS).to_be_bytes());
        let mut mac = self.0.clone();
        mac.update(&bytes[..24]);
        bytes[24..].copy_from_slice(&mac.finalize().into_bytes()[..16]);
        let mut text = [0u8; TOKEN_CHARS];
        let written = URL_SAFE_NO_PAD.encode_slice(bytes, &mut text);
        debug_assert_eq!(written, Ok(TOKEN_CHARS));
        text
    }

    /// Is this one of ours, and still good?
    pub fn verify(&self, token: &str, now_unix_seconds: u64) -> bool {
        let mut bytes = [0u8; BYTES + 2];
        if token.len() != TOKEN_CHARS || URL_SAFE_NO_PAD.decode_slice(token, &mut bytes) != Ok(BYTES) {
            return false;
        }
        let mut mac = self.0.clone();
        mac.update(&bytes[..24]);
        // Constant time: a token cannot be guessed byte by byte.
        mac.verify_truncated_left(&bytes[24..BYTES]).is_ok()
            && u64::from_be_bytes(bytes[16..24].try_into().unwrap_or_default()) >= now_unix_seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_key_and_its_time_only() {
        let key = TokenKey::new(b"secret");
        let token = key.issue(&[5; 16], 1000);
        let text = core::str::from_utf8(&token).unwrap();
        assert!(key.verify(text, 1000) && key.verify(text, 1000 + TOKEN_SECONDS));
        assert!(!key.verify(text, 1001 + TOKEN_SECONDS));
        assert!(!TokenKey::new(b"other").verify(text, 1000));
        for bad in ["", "x", &text[1..], &format!("{text}A"), &text.replace(&text[..1], "!")] {
            assert!(!key.verify(bad, 1000), "{bad}");
        }
        let mut forged = token;
        forged[25] = if forged[25] == b'A' { b'B' } else { b'A' };
        assert!(!key.verify(core::str::from_utf8(&forged).unwrap(), 1000));
    }
}
