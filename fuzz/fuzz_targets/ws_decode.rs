//! The oracle is `signalring::fuzzing::net::ws_decode`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| signalring::fuzzing::net::ws_decode(data));
