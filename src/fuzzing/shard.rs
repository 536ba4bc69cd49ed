//! Oracle for a shard: whatever happens to it in whatever order, the rules of its world hold (`crate::sim`).
use crate::sim::{self, Options};

/// Eight bytes of seed, then three for each thing that happens.
pub fn shard_ops(input: &[u8]) {
    let Some((seed, script)) = input.split_first_chunk() else { return };
    let options = Options { script: Some(script), ..Options::default() };
    if let Err(failure) = sim::run_with(u64::from_le_bytes(*seed), options) {
        panic!("{failure}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn whatever_happens_the_rules_hold(input in proptest::collection::vec(any::<u8>(), 8..200)) {
            shard_ops(&input);
        }
    }
}
