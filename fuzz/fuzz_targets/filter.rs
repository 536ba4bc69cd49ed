//! The oracle is `signalring::fuzzing::filter::filter`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| signalring::fuzzing::filter::filter(data));
