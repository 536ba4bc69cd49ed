//! Masking (RFC 6455 §5.3): byte `i` of the payload is XORed with byte `i mod 4` of the key.

/// XORs `data` with the mask; `offset` is the position of `data[0]` in the frame's payload.
///
/// The body is a plain loop over 64-bit words, which the compiler turns into vector instructions; there is no alignment
/// to prepare for because the words are copied out and in.
pub fn apply_mask(data: &mut [u8], key: [u8; 4], offset: usize) {
    let key = rotate(key, offset);
    let [a, b, c, d] = key;
    let pattern = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = data.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ pattern).to_ne_bytes();
    }
    // Eight is a multiple of four, so the rest starts at the first byte of the key again.
    for (byte, key) in rest.iter_mut().zip(pattern.to_ne_bytes()) {
        *byte ^= key;
    }
}

/// The key as it applies `offset` bytes further into the payload.
pub(super) fn rotate(mut key: [u8; 4], offset: usize) -> [u8; 4] {
    key.rotate_left(offset % 4);
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[test]
    fn the_example_of_section_5_7() {
        let mut data = [0x7f, 0x9f, 0x4d, 0x51, 0x58];
        apply_mask(&mut data, [0x37, 0xfa, 0x21, 0x3d], 0);
        assert_eq!(&data, b"Hello");
    }

    proptest! {
        #[test]
        fn equals_the_definition_at_any_offset_and_alignment(
            data in proptest::collection::vec(any::<u8>(), 0..200), key: [u8; 4], offset in 0usize..70, skip in 0usize..17,
        ) {
            let skip = skip.min(data.len());
            let expected: Vec<u8> = data[skip..].iter().enumerate().map(|(i, byte)| byte ^ key[(offset + i) % 4]).collect();
            let mut masked = data.clone();
            apply_mask(&mut masked[skip..], key, offset);
            prop_assert_eq!(&masked[skip..], &expected[..]);
            prop_assert_eq!(&masked[..skip], &data[..skip]);
        }
    }
}
