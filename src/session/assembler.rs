//! From pieces of data to whole JSON records. A record inside one piece is used where it lies; only one that is cut between two
//! pieces is gathered, in a pooled buffer that exists as long as the cut.
use crate::mem::pool::BytePool;
use crate::proto::signalr::record::find_separator;

#[derive(Default)]
pub struct Assembler {
    /// The beginning of a record whose end has not come yet.
    carry: Vec<u8>,
}

impl Assembler {
    /// Calls `f` with each record that ends in `piece`, without its separator. `limit` is the largest record, separator
    /// included; `too_large` makes the error for a larger one, as soon as that is certain.
    pub fn push<E>(
        &mut self,
        piece: &[u8],
        pool: &mut BytePool,
        limit: impl Fn() -> usize,
        too_large: impl Fn() -> E,
        mut f: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = piece;
        while let Some(end) = find_separator(rest) {
            let (record, tail) = (&rest[..end], &rest[end + 1..]);
            rest = tail;
            // The limit is asked for each record, because a record can change it (the handshake does).
            if self.carry.len() + record.len() + 1 > limit() {
                return Err(too_large());
            }
            if self.carry.is_empty() {
                f(record)?;
            } else {
                let mut carry = core::mem::take(&mut self.carry);
                carry.extend_from_slice(record);
                let result = f(&carry);
                pool.give(carry);
                result?;
            }
        }
        if !rest.is_empty() {
            // At least the separator is still to come.
            if self.carry.len() + rest.len() + 1 > limit() {
                return Err(too_large());
            }
            if self.carry.capacity() == 0 {
                self.carry = pool.take();
            }
            self.carry.extend_from_slice(rest);
        }
        Ok(())
    }

    /// Gives the buffer back when the connection ends.
    pub fn release(&mut self, pool: &mut BytePool) {
        pool.give(core::mem::take(&mut self.carry));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn collect(pieces: &[&[u8]], limit: usize) -> Result<Vec<Vec<u8>>, &'static str> {
        let (mut assembler, mut pool, mut records) = (Assembler::default(), BytePool::new(), Vec::new());
        for piece in pieces {
            assembler.push(
                piece,
                &mut pool,
                || limit,
                || "too large",
                |record| {
                    records.push(record.to_vec());
                    Ok(())
                },
            )?;
        }
        Ok(records)
    }

    #[test]
    fn the_limit_counts_the_separator_and_bites_before_it_comes() {
        assert_eq!(collect(&[b"1234\x1e"], 5).unwrap(), [b"1234"]);
        assert!(collect(&[b"12345\x1e"], 5).is_err());
        assert!(collect(&[b"123", b"45"], 5).is_err());
        assert_eq!(collect(&[b"123", b"4", b"\x1e"], 5).unwrap(), [b"1234"]);
    }

    proptest! {
        #[test]
        fn any_split_is_the_whole(records in proptest::collection::vec("[a-z]{0,9}", 0..9), cuts in proptest::collection::vec(0usize..99, 0..9)) {
            let whole: Vec<u8> = records.iter().flat_map(|r| r.bytes().chain([0x1e])).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(whole.len())).collect();
            cuts.extend([0, whole.len()]);
            cuts.sort();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &whole[w[0]..w[1]]).collect();
            let got = collect(&pieces, 100).unwrap();
            prop_assert_eq!(got, records.iter().map(|r| r.as_bytes().to_vec()).collect::<Vec<_>>());
        }
    }
}
