//! The oracle is `signalring::fuzzing::shard::shard_ops`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| signalring::fuzzing::shard::shard_ops(data));
