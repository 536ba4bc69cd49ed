//! The WebSocket opening handshake (RFC 6455 §4), the server's half.
use alloc::vec::Vec;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sha1::{Digest, Sha1};

use super::{Head, HttpError, has_token};

/// RFC 6455 §1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// RFC 6455 §4.1: the key is 16 bytes in base64.
const KEY_BYTES: usize = 16;

/// The key is a nonce that is never used decoded, so bits behind its last byte are nobody's business.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true).with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// RFC 6455 §4.2.2: base64(sha1(key + GUID)).
pub fn accept_key(key: &[u8]) -> [u8; 28] {
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    let mut accept = [0; 28];
    let written = BASE64.encode_slice(digest, &mut accept);
    debug_assert_eq!(written, Ok(28), "20 bytes are 28 characters");
    accept
}

/// Appends the `101 Switching Protocols` reply. No sub-protocol and no extension is selected (reference section 7.1).
pub fn upgrade_reply(accept: &[u8; 28], out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ");
    out.extend_from_slice(accept);
    out.extend_from_slice(b"\r\n\r\n");
}

/// Does a GET mean to upgrade, well or badly? If not it is a long poll or an event stream (reference section 1.1).
pub(super) fn is_meant(head: &Head<'_>) -> bool {
    has_token(head.values("upgrade"), "websocket")
        || has_token(head.values("connection"), "upgrade")
        || head.header("sec-websocket-key").is_some()
}

/// Checks the client's handshake (RFC 6455 §4.2.1) and returns the accept key.
pub(super) fn check(head: &Head<'_>) -> Result<[u8; 28], HttpError> {
    debug_assert_eq!(head.method, "GET");
    let upgrades = has_token(head.values("upgrade"), "websocket") && has_token(head.values("connection"), "upgrade");
    // A body would stand where the first frame is expected; a handshake has none.
    if head.minor == 0 || !upgrades || head.content_length > 0 {
        return Err(HttpError::UpgradeMalformed);
    }
    // Before the key: clients of other versions may have other keys (§4.4).
    match head.single("sec-websocket-version") {
        Ok(Some(b"13")) => {}
        Ok(_) => return Err(HttpError::WebSocketVersion),
        Err(_) => return Err(HttpError::UpgradeMalformed),
    }
    match head.single("sec-websocket-key") {
        Ok(Some(key)) if key_is_valid(key) => Ok(accept_key(key)),
        _ => Err(HttpError::UpgradeMalformed),
    }
}

fn key_is_valid(key: &[u8]) -> bool {
    // Room for what 24 characters decode to at most.
    let mut nonce = [0; KEY_BYTES + 2];
    key.len() == 24 && BASE64.decode_slice(key, &mut nonce) == Ok(KEY_BYTES)
}
