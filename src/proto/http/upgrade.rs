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
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
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
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
    );
    out.extend_from_slice(accept);
    out.extend_from_slice(b"\r\n\r\n");
}

/// Does a GET mean to open a WebSocket, well or badly?
///
/// `Connection: Upgrade` alone says nothing: a common nginx configuration sends it with every request, and some clients ask for HTTP/2
/// that way, which is theirs to ask and ours to ignore (RFC 9110 §7.8). A key without `Upgrade: websocket` does: the header got lost.
pub(super) fn is_meant(head: &Head<'_>) -> bool {
    has_token(head.values("upgrade"), "websocket") || head.header("sec-websocket-key").is_some()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::http::{HttpError::*, parse_head};
    use std::format;

    /// The npm client's handshake, with header lines replaced or added.
    fn check_with(request_line: &str, change: impl Fn(&str) -> std::string::String) -> Result<[u8; 28], HttpError> {
        let headers = [
            "sec-websocket-version: 13",
            "sec-websocket-key: G8E0B4IrBvqm6cOxwP/i+g==",
            "connection: Upgrade",
            "upgrade: websocket",
            "sec-websocket-extensions: permessage-deflate; client_max_window_bits",
            "host: proxy:5000",
        ];
        let lines: std::string::String =
            headers.iter().map(|line| change(line)).filter(|line| !line.is_empty()).map(|line| line + "\r\n").collect();
        let text = format!("{request_line}\r\n{lines}\r\n");
        check(&parse_head(text.as_bytes()).ok().unwrap())
    }

    const GET: &str = "GET /dotnetify?id=tok1 HTTP/1.1";

    fn replaced(name: &str, line: &str) -> Result<[u8; 28], HttpError> {
        check_with(GET, |old| if old.starts_with(name) { line.into() } else { old.into() })
    }

    #[test]
    fn the_example_of_section_1_3() {
        assert_eq!(&accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn the_npm_clients_handshake_is_accepted() {
        assert_eq!(check_with(GET, |line| line.into()), Ok(accept_key(b"G8E0B4IrBvqm6cOxwP/i+g==")));
    }

    #[test]
    fn lists_and_case_are_tolerated() {
        assert!(replaced("connection", "Connection: keep-alive, Upgrade").is_ok());
        assert!(replaced("connection", "Connection: keep-alive\r\nCONNECTION:\tupgrade ,").is_ok());
        assert!(replaced("upgrade", "Upgrade: h2c, WebSocket").is_ok());
        assert!(replaced("sec-websocket-version", "Sec-WebSocket-Version:   13  ").is_ok());
    }

    #[test]
    fn each_requirement_of_section_4_2_1_is_checked() {
        assert_eq!(replaced("connection", ""), Err(UpgradeMalformed));
        assert_eq!(replaced("connection", "Connection: upgraded"), Err(UpgradeMalformed));
        assert_eq!(replaced("upgrade", ""), Err(UpgradeMalformed));
        assert_eq!(replaced("upgrade", "Upgrade: websockets"), Err(UpgradeMalformed));
        assert_eq!(replaced("upgrade", "Upgrade: websocket\r\nContent-Length: 1"), Err(UpgradeMalformed));
        assert_eq!(check_with("GET / HTTP/1.0", |line| line.into()), Err(UpgradeMalformed));
        for version in ["", "8", "12", "14", "013", "13, 8", "1 3"] {
            assert_eq!(
                replaced("sec-websocket-version", &format!("Sec-WebSocket-Version: {version}")),
                Err(WebSocketVersion)
            );
        }
        assert_eq!(replaced("sec-websocket-version", ""), Err(WebSocketVersion));
        assert_eq!(replaced("upgrade", "Upgrade: websocket\r\nSec-WebSocket-Version: 13"), Err(UpgradeMalformed));
        for key in [
            "",
            "short",
            "G8E0B4IrBvqm6cOxwP/i+g=",
            "G8E0B4IrBvqm6cOxwP/i+gAA",
            "G8E0B4IrBvqm6cOxwP/i+gA=",
            "G8E0B4IrBvqm6cOxwP_i-g==",
            "G8E0B4IrBvqm6cOxwP i+g==",
            "G8E0B4IrBvqm6cOxwP/i+gAAAAA=",
        ] {
            assert_eq!(
                replaced("sec-websocket-key", &format!("Sec-WebSocket-Key: {key}")),
                Err(UpgradeMalformed),
                "{key}"
            );
        }
        assert_eq!(replaced("sec-websocket-key", ""), Err(UpgradeMalformed));
        assert_eq!(
            replaced("upgrade", "Upgrade: websocket\r\nSec-WebSocket-Key: G8E0B4IrBvqm6cOxwP/i+g=="),
            Err(UpgradeMalformed)
        );
    }

    #[test]
    fn the_101_reply() {
        let mut out = std::vec![];
        upgrade_reply(b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", &mut out);
        assert_eq!(
            std::str::from_utf8(&out),
            Ok("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
        );
    }
}
