#![no_main]
//! See `signalring::fuzzing::hub::signalr_record` for what it checks.
libfuzzer_sys::fuzz_target!(|data: &[u8]| signalring::fuzzing::hub::signalr_record(data));
