//! The story of an issue, by the laws that the property tests use.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| worker::fuzzing::diff(data));
