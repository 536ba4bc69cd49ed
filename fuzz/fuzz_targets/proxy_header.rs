//! The oracle is `signalring::fuzzing::net::proxy_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| signalring::fuzzing::net::proxy_header(data));
