//! Close frames: which codes may be sent, and the check of a received payload.
use super::WsError;

/// May this code stand in a Close frame (RFC 6455 §7.4)?
///
/// 1004 is reserved, 1005, 1006 and 1015 only ever describe a close that was not received (§7.4.1). 1012-1014 were
/// registered with IANA after the RFC. 1016-2999 are for future revisions and extensions, 3000-3999 for libraries,
/// 4000-4999 for applications (§7.4.2).
pub fn close_code_is_valid(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// RFC 6455 §5.5.1: a close payload is empty, or a code followed by a reason in UTF-8. Returns the code.
pub(super) fn check(payload: &[u8]) -> Result<Option<u16>, WsError> {
    let (code, reason) = match payload {
        [] => return Ok(None),
        [_] => return Err(WsError::ClosePayload),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
    };
    if !close_code_is_valid(code) {
        return Err(WsError::CloseCode);
    }
    match core::str::from_utf8(reason) {
        Ok(_) => Ok(Some(code)),
        Err(_) => Err(WsError::InvalidUtf8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_follow_section_7_4() {
        let valid: std::vec::Vec<u16> = (0..=u16::MAX).filter(|&code| close_code_is_valid(code)).collect();
        let expected: std::vec::Vec<u16> = (1000..=1003).chain(1007..=1014).chain(3000..=4999).collect();
        assert_eq!(valid, expected);
    }

    #[test]
    fn a_payload_is_empty_or_a_code_and_a_reason() {
        assert_eq!(check(b""), Ok(None));
        assert_eq!(check(b"\x03"), Err(WsError::ClosePayload));
        assert_eq!(check(b"\x03\xe8"), Ok(Some(1000)));
        assert_eq!(check("\x03\u{0}".as_bytes()), Err(WsError::CloseCode));
        assert_eq!(check(b"\x0f\xa0bye \xc3\xa9"), Ok(Some(4000)));
        assert_eq!(check(b"\x03\xe8\xff"), Err(WsError::InvalidUtf8));
        assert_eq!(check(b"\x03\xed"), Err(WsError::CloseCode), "1005 says that there was no code");
        // The code comes first in the payload, so its fault is the one reported.
        assert_eq!(check(b"\x00\x00\xff"), Err(WsError::CloseCode));
    }
}
