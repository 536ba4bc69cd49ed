//! Connection tokens: what negotiate hands out and every later request brings back as `id`. Signed, not remembered: whoever has the
//! key can check one, so a WebSocket client's two requests need not reach the same shard or node.
//!
//! `name.body`: the name of the node that issued it, in the clear so that a load balancer can route by it what has to come back here
//! (Server-Sent Events, long polling), and base64url of
//!
//! ```text
//! connection id 16 | shard 1 | flags 1 | expiry in unix seconds 8 | HMAC-SHA256 of name and everything before, cut to 16
//! ```
use crate::ids::ShardId;
use crate::limits::NODE_NAME_BYTES_MAX;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// How long a token may be used to connect. A client connects right after negotiating; ASP.NET keeps an unused connection for 15 s.
/// Longer here, because the clocks of two nodes may differ and nothing is held for it.
pub const TOKEN_SECONDS: u64 = 60;

const SIGNED: usize = 26;
const BYTES: usize = SIGNED + 16;
const BODY_CHARS: usize = BYTES.div_ceil(3) * 4;
/// 42 bytes are 56 characters without any padding.
const _: () = assert!(BYTES.is_multiple_of(3));
const FLAG_RESUMABLE: u8 = 1;

/// What negotiate and the requests of a connection agree on; 16 random bytes.
pub type ConnectionId = [u8; 16];

/// What a token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub connection: ConnectionId,
    /// The shard of the issuing node that holds the connection.
    pub shard: ShardId,
    /// Stateful reconnect was negotiated.
    pub resumable: bool,
}

/// A token that was signed with our key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    pub token: Token,
    /// Issued by this node.
    pub is_own: bool,
    /// May still begin a connection.
    pub is_fresh: bool,
}

#[derive(Clone)]
pub struct TokenKey {
    mac: Hmac<Sha256>,
    node: Box<str>,
}

impl TokenKey {
    /// `node`: 1 to `NODE_NAME_BYTES_MAX` characters of `[A-Za-z0-9_-]`.
    pub fn new(secret: &[u8], node: &str) -> TokenKey {
        debug_assert!(is_node_name(node));
        TokenKey { mac: Hmac::new_from_slice(secret).expect("HMAC takes keys of any length"), node: node.into() }
    }

    pub fn issue(&self, token: &Token, now_unix_seconds: u64) -> String {
        let mut bytes = [0u8; BYTES];
        bytes[..16].copy_from_slice(&token.connection);
        bytes[16] = token.shard.0;
        bytes[17] = if token.resumable { FLAG_RESUMABLE } else { 0 };
        bytes[18..SIGNED].copy_from_slice(&(now_unix_seconds + TOKEN_SECONDS).to_be_bytes());
        let tag = self.sign(&self.node, &bytes[..SIGNED]).finalize().into_bytes();
        bytes[SIGNED..].copy_from_slice(&tag[..BYTES - SIGNED]);
        let mut text = String::with_capacity(self.node.len() + 1 + BODY_CHARS);
        text.push_str(&self.node);
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(bytes, &mut text);
        text
    }

    /// Reads a token. None: not signed with our key.
    pub fn open(&self, text: &str, now_unix_seconds: u64) -> Option<Opened> {
        let (node, body) = text.split_once('.')?;
        let mut bytes = [0u8; BYTES];
        if !is_node_name(node)
            || body.len() != BODY_CHARS
            || URL_SAFE_NO_PAD.decode_slice(body, &mut bytes) != Ok(BYTES)
        {
            return None;
        }
        // Constant time: a token cannot be guessed byte by byte.
        self.sign(node, &bytes[..SIGNED]).verify_truncated_left(&bytes[SIGNED..]).ok()?;
        let (connection, expiry) = (bytes[..16].try_into().ok()?, bytes[18..SIGNED].try_into().ok()?);
        Some(Opened {
            token: Token { connection, shard: ShardId(bytes[16]), resumable: bytes[17] & FLAG_RESUMABLE != 0 },
            is_own: node == &*self.node,
            is_fresh: u64::from_be_bytes(expiry) >= now_unix_seconds,
        })
    }

    fn sign(&self, node: &str, bytes: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.mac.clone();
        mac.update(node.as_bytes());
        // A name has no dot, so no other pair of name and bytes gives the same input.
        mac.update(b".");
        mac.update(bytes);
        mac
    }
}

pub fn is_node_name(name: &str) -> bool {
    (1..=NODE_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: Token = Token { connection: [5; 16], shard: ShardId(3), resumable: true };

    #[test]
    fn a_token_is_good_for_its_key_and_its_time() {
        let key = TokenKey::new(b"secret", "node-a");
        let text = key.issue(&TOKEN, 1000);
        assert!(text.starts_with("node-a.") && text.len() == 7 + BODY_CHARS, "{text}");
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)), "URL-safe: {text}");
        let opened = Opened { token: TOKEN, is_own: true, is_fresh: true };
        assert_eq!(key.open(&text, 1000), Some(opened));
        assert_eq!(key.open(&text, 1000 + TOKEN_SECONDS), Some(opened));
        assert_eq!(key.open(&text, 1001 + TOKEN_SECONDS), Some(Opened { is_fresh: false, ..opened }));
        let neighbour = TokenKey::new(b"secret", "b");
        assert_eq!(neighbour.open(&text, 1000), Some(Opened { is_own: false, ..opened }));
        assert_eq!(TokenKey::new(b"other", "node-a").open(&text, 1000), None);
    }

    #[test]
    fn no_changed_token_is_taken() {
        let key = TokenKey::new(b"secret", "a");
        let text = key.issue(&Token { resumable: false, ..TOKEN }, 1000);
        for at in 0..text.len() {
            for by in ["A", "B", "", ".", "é"] {
                let changed = format!("{}{by}{}", &text[..at], &text[at + 1..]);
                assert!(changed == text || key.open(&changed, 1000).is_none(), "{changed}");
            }
        }
        for bad in ["", ".", "a.", "x", &text[1..], &format!("{text}A"), &format!("a{text}")] {
            assert!(key.open(bad, 1000).is_none(), "{bad}");
        }
    }
}
