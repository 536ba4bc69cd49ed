#![no_main]
//! See `signalring::fuzzing::hub::signalr_msgpack` for what it checks.
libfuzzer_sys::fuzz_target!(|data: &[u8]| signalring::fuzzing::hub::signalr_msgpack(data));
