//! Writes lines to standard output, each without delay.

use std::io::{self, Write};

use contract::timestamp::Timestamp;
use serde_json::Value;
use service::printable;

/// Prints a line, harmless for a terminal. Unlike `println!`, which panics, this returns a closed
/// pipe as an error.
pub(crate) fn line(text: &str) -> io::Result<()> {
    write(&printable::line(text))
}

/// Prints several lines, harmless for a terminal.
pub(crate) fn lines(text: &str) -> io::Result<()> {
    write(&printable::lines(text))
}

/// Prints a line of JSON, harmless for a terminal.
pub(crate) fn json_line(value: &Value) -> io::Result<()> {
    write(&printable::json(&value.to_string()))
}

/// Prints a line about an error, harmless for a terminal.
pub(crate) fn error_line(text: &str) {
    eprintln!("coordinator: {}", printable::line(text));
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

/// Whether the error is a closed pipe: nobody reads any more, which is a normal end.
pub(crate) fn reader_is_gone(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// A payload as JSON. A payload that is not JSON becomes a string.
pub(crate) fn json(payload: &[u8]) -> Value {
    serde_json::from_slice(payload)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(payload).into_owned()))
}

/// An instant for people, cut to milliseconds.
pub(crate) fn time(time: Timestamp) -> String {
    Timestamp::from_unix_micros(time.unix_micros() / 1_000 * 1_000).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_one_line_of_json_whatever_it_is() {
        for (payload, expected) in [
            (&b"{\n \"b\": 1,\n \"a\": 2 }"[..], r#"{"b":1,"a":2}"#),
            (b"a\nb\xff", "\"a\\nb\u{fffd}\""),
        ] {
            assert_eq!(json(payload).to_string(), expected);
        }
    }

    #[test]
    fn only_a_closed_pipe_is_an_end_like_any_other() {
        let error =
            |kind: io::ErrorKind| anyhow::Error::new(io::Error::from(kind)).context("print");
        assert!(reader_is_gone(&error(io::ErrorKind::BrokenPipe)));
        assert!(!reader_is_gone(&error(io::ErrorKind::StorageFull)));
    }
}
