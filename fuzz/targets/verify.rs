//! Signature headers and form decoding, and what comes after a good signature.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ingest::fuzzing::verify(data));
