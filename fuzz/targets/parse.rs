//! A payload of Gitea: the event that it is, and how that is published.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ingest::fuzzing::parse(data));
