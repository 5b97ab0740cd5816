//! A body in the journal, as a damaged disk may give it back.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ingest::fuzzing::journal(data));
