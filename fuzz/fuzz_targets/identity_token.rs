//! The oracle is `signalring::fuzzing::identity::identity_token`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| signalring::fuzzing::identity::identity_token(data));
