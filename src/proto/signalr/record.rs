//! Record boundaries: 0x1E after each JSON record, a VarInt length before each MessagePack one (reference section 10).

/// End of every JSON record and of both handshake messages.
pub const RECORD_SEPARATOR: u8 = 0x1e;

/// Position of the first record separator. JSON must escape control characters and 0x1E is ASCII, so a plain byte search never
/// finds one inside a record (reference section 10).
pub fn find_separator(bytes: &[u8]) -> Option<usize> {
    memchr::memchr(RECORD_SEPARATOR, bytes)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixError {
    /// "Messages bigger than 2GB are not supported": the fifth byte is over 7.
    TooLarge,
}

/// Reads a MessagePack record's length prefix: (bytes of the prefix, bytes of the body). None = need more.
///
/// A prefix longer than necessary (`80 00`) is accepted, as ASP.NET does; only the fifth byte is bounded.
pub fn length_prefix(bytes: &[u8]) -> Result<Option<(usize, u32)>, PrefixError> {
    let mut length = 0u32;
    for (index, &byte) in bytes.iter().take(PREFIX_BYTES_MAX).enumerate() {
        // The fifth byte holds bits 28 to 30, so it is at most 7 and announces no sixth.
        if index == PREFIX_BYTES_MAX - 1 && byte > 7 {
            return Err(PrefixError::TooLarge);
        }
        length |= u32::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((index + 1, length)));
        }
    }
    Ok(None)
}

/// Appends a length prefix in its shortest form.
pub fn write_length_prefix(length: u32, out: &mut impl bytes::BufMut) {
    let (prefix, used) = shortest_prefix(length);
    out.put_slice(&prefix[..used]);
}

/// Longest length prefix: 31 bits in groups of seven.
pub const PREFIX_BYTES_MAX: usize = 5;

/// The shortest prefix for `length`, and how many of its bytes count.
pub(crate) fn shortest_prefix(length: u32) -> ([u8; PREFIX_BYTES_MAX], usize) {
    debug_assert!(length <= i32::MAX as u32);
    let mut prefix = [0; PREFIX_BYTES_MAX];
    let mut rest = length;
    let mut used = 0;
    loop {
        prefix[used] = (rest & 0x7f) as u8;
        rest >>= 7;
        if rest == 0 {
            return (prefix, used + 1);
        }
        prefix[used] |= 0x80;
        used += 1;
    }
}
