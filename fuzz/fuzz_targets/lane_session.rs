//! The oracle is `signalring::fuzzing::session::lane_session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| signalring::fuzzing::session::lane_session(data));
