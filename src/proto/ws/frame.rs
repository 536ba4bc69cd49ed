//! Writing whole frames: the payload is written once, behind room for its header, and masked where it stands.
use super::{Opcode, apply_mask, header};
use alloc::vec::Vec;

/// Appends one final frame whose payload `write` appends. With a mask for a client's frames (RFC 6455 §5.3).
pub fn write_frame<R>(
    out: &mut Vec<u8>,
    opcode: Opcode,
    mask: Option<[u8; 4]>,
    write: impl FnOnce(&mut Vec<u8>) -> R,
) -> R {
    let start = out.len();
    // Room for the header that payloads of 126 to 65,535 bytes have; the few others are moved by some bytes below.
    let room = if mask.is_some() { 8 } else { 4 };
    out.extend_from_slice(&[0; 8][..room]);
    let result = write(out);
    let payload = out.len() - start - room;
    let header = header(opcode, true, payload as u64, mask);
    let bytes = header.as_ref();
    if bytes.len() < room {
        out.copy_within(start + room.., start + bytes.len());
        out.truncate(start + bytes.len() + payload);
    } else if bytes.len() > room {
        let more = bytes.len() - room;
        out.extend_from_slice(&[0; 8][..more]);
        out.copy_within(start + room..start + room + payload, start + bytes.len());
    }
    out[start..start + bytes.len()].copy_from_slice(bytes);
    if let Some(key) = mask {
        apply_mask(&mut out[start + bytes.len()..], key, 0);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ws::{Decoder, Event, Role};

    #[test]
    fn frames_of_every_header_length_decode_to_their_payload() {
        for mask in [None, Some([1, 2, 3, 250])] {
            for size in [0usize, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
                let payload: Vec<u8> = (0..size).map(|i| i as u8).collect();
                let mut out = b"before".to_vec();
                write_frame(&mut out, Opcode::Binary, mask, |out| out.extend_from_slice(&payload));
                let role = if mask.is_some() { Role::Server } else { Role::Client };
                let mut decoder = Decoder::new(role);
                let (used, event) = decoder.next(&mut out[6..]).unwrap();
                let Some(Event::Data { range, start: true, end: true, binary: true }) = event else {
                    panic!("{event:?}")
                };
                assert_eq!(&out[6..][range], payload);
                assert_eq!(6 + used, out.len());
            }
        }
    }
}
