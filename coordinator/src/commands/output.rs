//! Writes lines to standard output, each without delay.

use std::io::{self, Write};

use contract::timestamp::Timestamp;
use serde_json::Value;
use service::{
    printable,
    terminal::{Color, Colors, WIDTH, cut, width},
};

/// Prints a line, harmless for a terminal. Unlike `println!`, which panics, this returns a closed
/// pipe as an error.
pub(crate) fn line(text: &str) -> io::Result<()> {
    write(&printable::line(text))
}

/// Prints the parts of a line with a space between, harmless for a terminal and no wider than one.
/// `last` always stays; of the others what is too much is cut.
pub(crate) fn fitted_line(parts: &[Part<'_>], last: Part<'_>, colors: Colors) -> io::Result<()> {
    write(&fitted(parts, last, colors))
}

/// A part of a line, and its color.
pub(crate) type Part<'a> = (Option<Color>, &'a str);

fn fitted(parts: &[Part<'_>], last: Part<'_>, colors: Colors) -> String {
    let (last_color, last) = (last.0, printable::line(last.1));
    let mut room = WIDTH.saturating_sub(width(&last));
    let mut line = String::new();
    let painted = |color: Option<Color>, text: &str| match color {
        Some(color) => colors.paint(color, text).into_owned(),
        None => text.to_owned(),
    };
    for (color, text) in parts.iter().filter(|(_, text)| !text.is_empty()) {
        let text = printable::line(text);
        let kept = cut(&text, room.saturating_sub(1));
        if kept.is_empty() {
            break;
        }
        room -= width(&kept) + 1;
        line.push_str(&painted(*color, &kept));
        line.push(' ');
    }
    line + &painted(last_color, &last)
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

/// An instant for people, to the second.
pub(crate) fn short_time(time: Timestamp) -> String {
    Timestamp::from_unix_micros(time.unix_micros().div_euclid(1_000_000) * 1_000_000).to_string()
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
    fn a_line_is_as_wide_as_a_terminal_and_only_we_color_it() {
        let long = "漢".repeat(100);
        let parts = [(None, "closed"), (Some(Color::Red), ""), (None, &long), (None, "more")];
        let line = fitted(&parts, (None, "b60f8ed3"), Colors::NONE);
        assert!((WIDTH - 1..=WIDTH).contains(&width(&line)), "{line}");
        assert!(line.starts_with("closed 漢") && line.ends_with("漢… b60f8ed3"), "{line}");
        let parts = [(Some(Color::Red), "a\u{1b}[2J\n")];
        let line = fitted(&parts, (Some(Color::Dim), "b\u{202e}"), Colors::new(true, None));
        let expected = "\u{1b}[31ma\\u{1b}[2J\\n\u{1b}[0m \u{1b}[2mb\\u{202e}\u{1b}[0m";
        assert_eq!(line, expected);
    }

    #[test]
    fn only_a_closed_pipe_is_an_end_like_any_other() {
        let error =
            |kind: io::ErrorKind| anyhow::Error::new(io::Error::from(kind)).context("print");
        assert!(reader_is_gone(&error(io::ErrorKind::BrokenPipe)));
        assert!(!reader_is_gone(&error(io::ErrorKind::StorageFull)));
    }
}
