//! The oracle is `signalring::fuzzing::net::http_head`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| signalring::fuzzing::net::http_head(data));
