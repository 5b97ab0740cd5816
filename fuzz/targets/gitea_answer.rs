//! An answer of Gitea's API, in parts. Input: a byte that parts it, and the answer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gitea::fuzzing::answer(data));
