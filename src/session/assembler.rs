//! From pieces of data to whole records, JSON or MessagePack. A record inside one piece is used where it lies; only one that is cut
//! between two pieces is gathered, in a pooled buffer that exists as long as the cut.
use crate::mem::pool::BytePool;
use crate::proto::signalr::handshake::Protocol;
use crate::proto::signalr::record::{find_separator, length_prefix};

#[derive(Default)]
pub struct Assembler {
    /// The beginning of a record whose end has not come yet.
    carry: Vec<u8>,
}

/// How the next record is delimited, and how large it may be.
#[derive(Clone, Copy)]
pub struct Framing {
    /// JSON: a separator behind each record, as behind both handshake messages in every protocol. MessagePack: a length before it.
    pub protocol: Protocol,
    /// Largest record, separator or length included.
    pub bytes_max: usize,
}

/// Where the next record is.
enum Found {
    /// Ends with the piece's first `bytes` bytes.
    Whole {
        record: core::ops::Range<usize>,
        bytes: usize,
    },
    Cut,
    TooLarge,
}

impl Assembler {
    /// Calls `f` with each record that ends in `piece`, without separator or length. `too_large` makes the error for one that is
    /// larger than its framing allows, as soon as that is certain.
    pub fn push<E>(
        &mut self,
        piece: &[u8],
        pool: &mut BytePool,
        framing: impl Fn() -> Framing,
        too_large: impl Fn() -> E,
        mut f: impl FnMut(&[u8], &mut BytePool) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = piece;
        while !rest.is_empty() {
            // Asked for each record, because a record can change it (the handshake does).
            let framing = framing();
            if self.carry.is_empty() {
                match find(framing, rest, 0) {
                    Found::Whole { record, bytes } => {
                        let (whole, tail) = rest.split_at(bytes);
                        rest = tail;
                        f(&whole[record], pool)?;
                    }
                    Found::TooLarge => return Err(too_large()),
                    Found::Cut => {
                        self.carry = pool.take();
                        self.carry.extend_from_slice(rest);
                        return Ok(());
                    }
                }
                continue;
            }
            let Some(wanted) = missing(framing, &self.carry, rest) else { return Err(too_large()) };
            let (taken, tail) = rest.split_at(wanted);
            let seen = self.carry.len();
            self.carry.extend_from_slice(taken);
            rest = tail;
            match find(framing, &self.carry, seen) {
                Found::Whole { record, bytes } => {
                    debug_assert_eq!(bytes, self.carry.len());
                    let carry = core::mem::take(&mut self.carry);
                    let result = f(&carry[record], pool);
                    pool.give(carry);
                    result?;
                }
                Found::TooLarge => return Err(too_large()),
                Found::Cut => {}
            }
        }
        Ok(())
    }

    /// Gives the buffer back when the connection ends.
    pub fn release(&mut self, pool: &mut BytePool) {
        pool.give(core::mem::take(&mut self.carry));
    }
}

/// The record at the start of `bytes`. In the first `seen` of them no separator was found before, and none is sought again: a record
/// that comes byte by byte must not cost its length for each of them.
fn find(framing: Framing, bytes: &[u8], seen: usize) -> Found {
    let (record, whole) = match framing.protocol {
        Protocol::Json => match find_separator(&bytes[seen..]).map(|end| seen + end) {
            Some(end) => (0..end, end + 1),
            // At least the separator is still to come.
            None if bytes.len() + 1 > framing.bytes_max => return Found::TooLarge,
            None => return Found::Cut,
        },
        Protocol::MessagePack => match length_prefix(bytes) {
            Ok(Some((prefix, length))) => (prefix..prefix + length as usize, prefix + length as usize),
            Ok(None) => return Found::Cut,
            Err(_) => return Found::TooLarge,
        },
    };
    if whole > framing.bytes_max {
        Found::TooLarge
    } else if whole > bytes.len() {
        Found::Cut
    } else {
        Found::Whole { record, bytes: whole }
    }
}

/// How many bytes of `rest` belong to the record that begins with `carry`, or to what says how long it is. None: too many.
fn missing(framing: Framing, carry: &[u8], rest: &[u8]) -> Option<usize> {
    match framing.protocol {
        Protocol::Json => Some(find_separator(rest).map_or(rest.len(), |end| end + 1)),
        Protocol::MessagePack => match length_prefix(carry) {
            Ok(Some((prefix, length))) => Some((prefix + length as usize - carry.len()).min(rest.len())),
            Ok(None) => Some(1),
            Err(_) => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn collect(protocol: Protocol, pieces: &[&[u8]], bytes_max: usize) -> Result<Vec<Vec<u8>>, &'static str> {
        let (mut assembler, mut pool, mut records) = (Assembler::default(), BytePool::new(), Vec::new());
        for piece in pieces {
            assembler.push(
                piece,
                &mut pool,
                || Framing { protocol, bytes_max },
                || "too large",
                |record, _| {
                    records.push(record.to_vec());
                    Ok(())
                },
            )?;
        }
        Ok(records)
    }

    #[test]
    fn the_limit_counts_the_framing_and_bites_before_the_end_comes() {
        let json = |pieces: &[&[u8]]| collect(Protocol::Json, pieces, 5);
        assert_eq!(json(&[b"1234\x1e"]).unwrap(), [b"1234"]);
        assert!(json(&[b"12345\x1e"]).is_err());
        assert!(json(&[b"123", b"45"]).is_err());
        assert_eq!(json(&[b"123", b"4", b"\x1e"]).unwrap(), [b"1234"]);
        let pack = |pieces: &[&[u8]]| collect(Protocol::MessagePack, pieces, 5);
        assert_eq!(pack(&[b"\x041234"]).unwrap(), [b"1234"]);
        assert_eq!(pack(&[b"\x04", b"12", b"34"]).unwrap(), [b"1234"]);
        assert_eq!(pack(&[b"\x00\x00"]).unwrap(), [b"", b""]);
        assert!(pack(&[b"\x05"]).is_err());
        assert!(pack(&[b"\x80", b"\x01"]).is_err());
        assert!(pack(&[b"\xff\xff\xff\xff", b"\x08"]).is_err(), "over 2 GB");
    }

    #[test]
    fn a_record_that_comes_byte_by_byte_costs_its_length_once() {
        let mut record = vec![b'x'; 256 * 1024];
        record.push(0x1e);
        let pieces: Vec<&[u8]> = record.chunks(1).collect();
        let start = std::time::Instant::now();
        assert_eq!(collect(Protocol::Json, &pieces, record.len()).unwrap().len(), 1);
        // A fraction of a second; minutes if each byte makes all before it be looked at again.
        assert!(start.elapsed() < std::time::Duration::from_secs(20), "{:?}", start.elapsed());
    }

    proptest! {
        #[test]
        fn any_split_is_the_whole(records in proptest::collection::vec("[a-z]{0,300}", 0..9), cuts in proptest::collection::vec(0usize..999, 0..9)) {
            for protocol in [Protocol::Json, Protocol::MessagePack] {
                let mut whole = Vec::new();
                for record in &records {
                    if protocol == Protocol::MessagePack {
                        crate::proto::signalr::record::write_length_prefix(record.len() as u32, &mut whole);
                    }
                    whole.extend_from_slice(record.as_bytes());
                    if protocol == Protocol::Json {
                        whole.push(0x1e);
                    }
                }
                let mut cuts: Vec<usize> = cuts.iter().map(|c| (*c).min(whole.len())).collect();
                cuts.extend([0, whole.len()]);
                cuts.sort();
                let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &whole[w[0]..w[1]]).collect();
                let got = collect(protocol, &pieces, 400).unwrap();
                prop_assert_eq!(got, records.iter().map(|r| r.as_bytes().to_vec()).collect::<Vec<_>>());
            }
        }
    }
}
