//! A state from the bucket, and events that meet it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| worker::fuzzing::issue_state(data));
