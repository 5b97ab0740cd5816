//! Makes text harmless for the terminal that it reaches, whoever wrote it.
//!
//! Names, titles and payloads are strangers' texts. A control character in them can move the cursor
//! or change colors (ECMA-48), and a bidirectional one shows a text in another order than it has
//! (UAX #9). All that Unicode does not count as printable is escaped.

use std::{borrow::Cow, fmt::Write};

/// A text that is part of a line: line breaks are escaped as well.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_harmless, in_words)
}

/// A text of several lines.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\n' || is_harmless(c), in_words)
}

/// A JSON text. It stays the same value, since what is escaped can only stand in its strings.
pub fn json(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\n' || is_harmless(c), in_json)
}

/// A line of the log. Its formatter has escaped what is ASCII, and may have added colors.
pub(crate) fn log_line(bytes: &[u8], is_json: bool) -> Cow<'_, [u8]> {
    if bytes.is_ascii() {
        return Cow::Borrowed(bytes);
    }
    let keep = |c: char| c.is_ascii() || is_harmless(c);
    match String::from_utf8_lossy(bytes) {
        Cow::Borrowed(text) => {
            match escaped(text, keep, if is_json { in_json } else { in_words }) {
                Cow::Borrowed(_) => Cow::Borrowed(bytes),
                Cow::Owned(text) => Cow::Owned(text.into_bytes()),
            }
        }
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

fn escaped(text: &str, keep: impl Fn(char) -> bool, escape: fn(char, &mut String)) -> Cow<'_, str> {
    let Some(first) = text.find(|c| !keep(c)) else { return Cow::Borrowed(text) };
    let (kept, rest) = text.split_at(first);
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str(kept);
    for c in rest.chars() {
        if keep(c) { out.push(c) } else { escape(c, &mut out) }
    }
    Cow::Owned(out)
}

fn is_harmless(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    // What stands after another character is escaped only if it is not printable. Combining
    // characters are, though not at the start.
    let mut after_another = String::with_capacity(8);
    after_another.push('x');
    after_another.push(c);
    after_another.escape_debug().nth(2).is_none()
}

/// As Rust writes it: `\n`, `\u{9b}`.
fn in_words(c: char, out: &mut String) {
    out.extend(c.escape_debug());
}

/// As JSON writes it (RFC 8259, section 7): `\u009b`, above U+FFFF as two surrogates.
fn in_json(c: char, out: &mut String) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        // Writing to a string never fails.
        let _ = write!(out, "\\u{unit:04x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_escaped_and_what_people_write_is_not() {
        for (text, expected) in [
            ("acme/widgets#1", "acme/widgets#1"),
            ("déjà vu, 漢字, क्षि, e\u{301}, 🦀 \"'\\", "déjà vu, 漢字, क्षि, e\u{301}, 🦀 \"'\\"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("\u{9b}31m\u{7f}\u{8}", "\\u{9b}31m\\u{7f}\\u{8}"),
            ("a\u{202e}b\u{2066}c\u{200f}", "a\\u{202e}b\\u{2066}c\\u{200f}"),
            ("x\u{2028}y\u{feff}\u{e0041}", "x\\u{2028}y\\u{feff}\\u{e0041}"),
            ("two\r\nlines\t.", "two\\r\\nlines\\t."),
        ] {
            assert_eq!(line(text), expected);
            assert_eq!(lines(text), expected.replace("\\n", "\n"));
        }
    }

    #[test]
    fn json_stays_the_same_value() {
        let text = "\u{9b}\u{202e}\u{7f}é\u{e0041}\n\u{1b}\\";
        let value = serde_json::json!({ text: [text] });
        for written in [value.to_string(), format!("{value:#}")] {
            let printed = json(&written);
            assert!(printed.chars().all(|c| c == '\n' || is_harmless(c)), "{printed}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&printed).expect("JSON"), value);
        }
        assert!(json(&value.to_string()).contains("\\u009b\\u202e\\u007fé\\udb40\\udc41\\n"));
    }

    #[test]
    fn a_log_line_keeps_its_colors_and_loses_what_came_from_outside() {
        for (bytes, is_json, expected) in [
            (&b"\x1b[32mINFO\x1b[0m x\n"[..], false, &b"\x1b[32mINFO\x1b[0m x\n"[..]),
            ("\u{1b}[32m é \u{202e}\n".as_bytes(), false, "\u{1b}[32m é \\u{202e}\n".as_bytes()),
            ("{\"a\":\"\u{202e}\"}\n".as_bytes(), true, b"{\"a\":\"\\u202e\"}\n"),
            (b"\xff\n", false, "\u{fffd}\n".as_bytes()),
        ] {
            assert_eq!(log_line(bytes, is_json), expected);
        }
    }
}
