//! The oracle is `signalring::fuzzing::session::client_session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| signalring::fuzzing::session::client_session(data));
