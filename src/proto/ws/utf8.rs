//! UTF-8 over pieces (RFC 6455 §8.1): a character may be cut anywhere, also between fragments of a message, and bytes
//! that can no longer become valid fail at once rather than at the end of the message.
use core::str;

/// The incomplete character at the end of what has been seen: at most three bytes, each valid so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Utf8 {
    pending: [u8; 3],
    len: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Invalid;

impl Utf8 {
    /// Takes the next piece. `core::str::from_utf8` decides everything, on the piece as a whole, so plain text costs one
    /// pass at its speed; only the bytes of a cut character are looked at one by one.
    pub(super) fn feed(&mut self, mut piece: &[u8]) -> Result<(), Invalid> {
        while self.len > 0 {
            let [byte, rest @ ..] = piece else { return Ok(()) };
            let held = self.len as usize;
            let mut character = [0; 4];
            character[..held].copy_from_slice(&self.pending[..held]);
            character[held] = *byte;
            match str::from_utf8(&character[..held + 1]) {
                Ok(_) => self.len = 0,
                Err(error) if error.error_len().is_some() => return Err(Invalid),
                Err(_) => self.hold(&character[..held + 1]),
            }
            piece = rest;
        }
        match str::from_utf8(piece) {
            Ok(_) => Ok(()),
            // `error_len` is None exactly when the input ended inside a character that may yet become valid.
            Err(error) if error.error_len().is_some() => Err(Invalid),
            Err(error) => {
                self.hold(&piece[error.valid_up_to()..]);
                Ok(())
            }
        }
    }

    /// The message ended: no character may be open. Ready for the next message afterwards.
    pub(super) fn finish(&mut self) -> Result<(), Invalid> {
        match core::mem::take(&mut self.len) {
            0 => Ok(()),
            _ => Err(Invalid),
        }
    }

    fn hold(&mut self, open: &[u8]) {
        self.pending[..open.len()].copy_from_slice(open);
        self.len = open.len() as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// Feeds byte by byte and returns how many bytes were accepted.
    fn accepted(bytes: &[u8]) -> usize {
        let mut utf8 = Utf8::default();
        bytes.iter().position(|byte| utf8.feed(&[*byte]).is_err()).unwrap_or(bytes.len())
    }

    #[test]
    fn fails_at_the_first_byte_that_cannot_be_valid() {
        // Autobahn 6.3/6.4: κόσμε, then a surrogate or a code point above U+10FFFF; the fault shows at its second byte.
        assert_eq!(accepted(b"\xce\xba\xed\xa0\x80"), 3);
        assert_eq!(accepted(b"\xce\xba\xf4\x90\x80\x80"), 3);
        assert_eq!(accepted(b"\xf5"), 0);
        assert_eq!(accepted(b"\xc0\xaf"), 0, "overlong");
        assert_eq!(accepted(b"\xe0\x80\xaf"), 1, "overlong");
        assert_eq!(accepted(b"\xf0\x8f\xbf\xbf"), 1, "overlong");
        assert_eq!(accepted(b"\x80"), 0);
        assert_eq!(accepted(b"\xe2\x82A"), 2);
        assert_eq!(accepted("aé€\u{10ffff}".as_bytes()), 10);
    }

    #[test]
    fn an_open_character_may_not_end_a_message() {
        let mut utf8 = Utf8::default();
        assert_eq!(utf8.feed(b"abc\xe2\x82"), Ok(()));
        assert_eq!(utf8.finish(), Err(Invalid));
        assert_eq!(utf8.feed(b"abc"), Ok(()));
        assert_eq!(utf8.finish(), Ok(()));
    }

    /// Bytes that are nearly UTF-8: characters of each length with single bytes thrown in.
    fn nearly_utf8() -> impl Strategy<Value = Vec<u8>> {
        let unit = prop_oneof![
            4 => any::<char>().prop_map(|c| c.to_string().into_bytes()),
            2 => "[a-z]{1,20}".prop_map(String::into_bytes),
            1 => proptest::collection::vec(any::<u8>(), 1..3),
        ];
        proptest::collection::vec(unit, 0..12).prop_map(|units| units.concat())
    }

    proptest! {
        #[test]
        fn pieces_equal_the_whole(bytes in nearly_utf8(), cuts in proptest::collection::vec(0usize..64, 0..6)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut utf8 = Utf8::default();
            let fed = cuts.windows(2).try_for_each(|cut| utf8.feed(&bytes[cut[0]..cut[1]]));
            prop_assert_eq!(fed.and_then(|()| utf8.finish()).is_ok(), str::from_utf8(&bytes).is_ok());
        }

        #[test]
        fn fails_as_soon_as_the_bytes_cannot_be_a_prefix(bytes in nearly_utf8()) {
            let expected = match str::from_utf8(&bytes) {
                Ok(_) => bytes.len(),
                // The shortest prefix whose fault is certain, by asking about each prefix.
                Err(_) => (1..=bytes.len())
                    .find(|&end| str::from_utf8(&bytes[..end]).is_err_and(|error| error.error_len().is_some()))
                    .map_or(bytes.len(), |end| end - 1),
            };
            prop_assert_eq!(accepted(&bytes), expected);
        }
    }
}
