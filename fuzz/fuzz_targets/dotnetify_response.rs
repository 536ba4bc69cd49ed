#![no_main]
//! See `signalring::fuzzing::hub::dotnetify_response` for what it checks.
libfuzzer_sys::fuzz_target!(|data: &[u8]| signalring::fuzzing::hub::dotnetify_response(data));
