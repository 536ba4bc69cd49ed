//! Record boundaries: 0x1E after each JSON record, a VarInt length before each MessagePack one (reference section 10).

/// End of every JSON record and of both handshake messages.
pub const RECORD_SEPARATOR: u8 = 0x1e;

/// Position of the first record separator.
pub fn find_separator(_bytes: &[u8]) -> Option<usize> {
    todo!()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixError {
    /// "Messages bigger than 2GB are not supported": the fifth byte is over 7.
    TooLarge,
}

/// Reads a MessagePack record's length prefix: (bytes of the prefix, bytes of the body). None = need more.
pub fn length_prefix(_bytes: &[u8]) -> Result<Option<(usize, u32)>, PrefixError> {
    todo!()
}

/// Appends a length prefix in its shortest form.
pub fn write_length_prefix(_length: u32, _out: &mut impl bytes::BufMut) {
    todo!()
}
