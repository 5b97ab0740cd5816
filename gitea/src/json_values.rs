//! Takes the values out of an answer while it comes in: each element of a list, or the one value.
//!
//! Only one value is in memory, and of a long string only its beginning: bodies of issues can be
//! megabytes. This module finds where values end. Whoever decodes them finds what is wrong within.

use crate::error::{ApiError, Unreadable};

/// Receives the values.
pub(crate) type Each<'a> = dyn FnMut(&[u8]) -> Result<(), ApiError> + Send + 'a;

/// What an answer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// One value.
    One,
    /// A list, of which each element is a value. `null` is an empty one: Gitea answers that.
    List,
}

/// How much of an answer is read, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// The whole answer. A larger one is an error.
    pub(crate) answer: u64,
    /// A value, its strings cut. A larger one is an error.
    pub(crate) value: usize,
    /// A string, as it is written in JSON. The rest is dropped.
    pub(crate) string: usize,
}

/// Reads an answer piece by piece.
#[derive(Debug)]
pub(crate) struct Values {
    form: Form,
    bounds: Bounds,
    /// Bytes that were read.
    read: u64,
    at: At,
    /// The value so far.
    value: Vec<u8>,
    /// Open brackets of the value.
    depth: usize,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// The answer begins.
    Start,
    /// So many letters of a list's `null` were read.
    Null(usize),
    /// The list was opened.
    FirstElement,
    /// An element must follow, after a comma.
    NextElement,
    /// An element was read.
    AfterElement,
    /// More of a value in brackets.
    Brackets,
    /// More of a number, or of a word, that is a value of its own.
    Word,
    /// More of a string.
    String(Text),
    /// Nothing but space.
    End,
}

const NULL: &[u8] = b"null";

impl Values {
    pub(crate) fn new(form: Form, bounds: Bounds) -> Self {
        Self { form, bounds, read: 0, at: At::Start, value: Vec::new(), depth: 0 }
    }

    /// Reads the next piece, and gives each value that it completes to `each`.
    pub(crate) fn read(&mut self, mut piece: &[u8], each: &mut Each<'_>) -> Result<(), ApiError> {
        while !piece.is_empty() {
            let used = match self.at {
                At::String(text) => self.string(text, piece, each)?,
                _ => self.byte(piece[0], each)?,
            };
            piece = &piece[used..];
            self.read += used as u64;
            if self.read > self.bounds.answer {
                return Err(ApiError::TooLarge { limit: self.bounds.answer });
            }
            if self.value.len() > self.bounds.value {
                return Err(ApiError::TooLarge { limit: self.bounds.value as u64 });
            }
        }
        Ok(())
    }

    /// The answer has ended.
    pub(crate) fn finish(mut self, each: &mut Each<'_>) -> Result<(), ApiError> {
        if self.at == At::Word {
            self.complete(each)?;
        }
        match self.at {
            At::End => Ok(()),
            _ => Err(ApiError::Unreadable(Unreadable::Truncated)),
        }
    }

    /// Reads a byte outside of strings. Takes none if it ends a word that it is no part of.
    fn byte(&mut self, byte: u8, each: &mut Each<'_>) -> Result<usize, ApiError> {
        let is_space = matches!(byte, b' ' | b'\n' | b'\r' | b'\t');
        match self.at {
            At::Brackets => self.bracketed(byte, each)?,
            At::Word if is_space || matches!(byte, b',' | b']') => {
                self.complete(each)?;
                return Ok(0);
            }
            At::Word => self.value.push(byte),
            At::Null(read) if NULL.get(read) == Some(&byte) => {
                self.at = if read + 1 == NULL.len() { At::End } else { At::Null(read + 1) };
            }
            At::Null(_) => return Err(self.not_json()),
            _ if is_space => {}
            At::Start => match (self.form, byte) {
                (Form::One, _) => self.begin(byte)?,
                (Form::List, b'[') => self.at = At::FirstElement,
                (Form::List, b'n') => self.at = At::Null(1),
                (Form::List, _) => return Err(self.not_json()),
            },
            At::FirstElement if byte == b']' => self.at = At::End,
            At::FirstElement | At::NextElement => self.begin(byte)?,
            At::AfterElement if byte == b',' => self.at = At::NextElement,
            At::AfterElement if byte == b']' => self.at = At::End,
            At::AfterElement | At::End | At::String(_) => return Err(self.not_json()),
        }
        Ok(1)
    }

    fn begin(&mut self, byte: u8) -> Result<(), ApiError> {
        self.at = match byte {
            b'{' | b'[' => At::Brackets,
            b'"' => At::String(Text::default()),
            b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => At::Word,
            _ => return Err(self.not_json()),
        };
        self.depth = usize::from(self.at == At::Brackets);
        self.value.push(byte);
        Ok(())
    }

    fn bracketed(&mut self, byte: u8, each: &mut Each<'_>) -> Result<(), ApiError> {
        self.value.push(byte);
        match byte {
            b'"' => self.at = At::String(Text::default()),
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth -= 1;
                if self.depth == 0 {
                    return self.complete(each);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads of a string what stands before its end or its next escape, or a byte of these.
    fn string(
        &mut self,
        mut text: Text,
        piece: &[u8],
        each: &mut Each<'_>,
    ) -> Result<usize, ApiError> {
        let plain = text.plain(piece);
        if plain > 0 {
            let kept = text.keep_plain(&piece[..plain], self.bounds.string);
            self.value.extend_from_slice(&piece[..kept]);
            self.at = At::String(text);
            return Ok(plain);
        }
        let byte = piece[0];
        if byte == b'"' && text.escape == Escape::None {
            self.value.push(byte);
            self.at = At::Brackets;
            if self.depth == 0 {
                self.complete(each)?;
            }
        } else {
            if text.keep_escape(byte, self.bounds.string) {
                self.value.push(byte);
            }
            self.at = At::String(text);
        }
        Ok(1)
    }

    fn complete(&mut self, each: &mut Each<'_>) -> Result<(), ApiError> {
        self.at = if self.form == Form::List { At::AfterElement } else { At::End };
        each(&self.value)?;
        self.value.clear();
        Ok(())
    }

    fn not_json(&self) -> ApiError {
        ApiError::Unreadable(Unreadable::NotJson(self.read))
    }
}

/// A string that is being read. It is cut between characters, never within one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Text {
    /// Bytes that were kept.
    kept: usize,
    is_cut: bool,
    escape: Escape,
    /// The last character is the first half of two escapes that make one character.
    is_half: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    /// The backslash was read.
    Begun,
    /// So many of the four digits were read, and whether they say the first half of a character.
    Digits(usize, bool),
}

impl Text {
    /// How many bytes stand before the string's end, or its next escape.
    fn plain(&self, piece: &[u8]) -> usize {
        match self.escape {
            Escape::None => {
                piece.iter().position(|byte| matches!(byte, b'"' | b'\\')).unwrap_or(piece.len())
            }
            _ => 0,
        }
    }

    /// Reads plain bytes, and returns how many are kept.
    fn keep_plain(&mut self, plain: &[u8], limit: usize) -> usize {
        self.is_half = false;
        if self.is_cut {
            return 0;
        }
        let mut kept = limit.saturating_sub(self.kept).min(plain.len());
        while kept < plain.len() && is_continuation(plain[kept]) {
            kept += 1;
        }
        self.is_cut = kept < plain.len();
        self.kept += kept;
        kept
    }

    /// Reads a byte of an escape, and returns whether it is kept.
    fn keep_escape(&mut self, byte: u8, limit: usize) -> bool {
        self.escape = match self.escape {
            Escape::None => {
                self.is_cut |= self.kept >= limit && !self.is_half;
                self.is_half = false;
                Escape::Begun
            }
            Escape::Begun if byte == b'u' => Escape::Digits(0, false),
            Escape::Begun => Escape::None,
            Escape::Digits(0, _) => Escape::Digits(1, matches!(byte, b'd' | b'D')),
            Escape::Digits(1, is_surrogate) => {
                let is_first = matches!(byte, b'8' | b'9' | b'a' | b'b' | b'A' | b'B');
                Escape::Digits(2, is_surrogate && is_first)
            }
            Escape::Digits(2, is_half) => Escape::Digits(3, is_half),
            Escape::Digits(_, is_half) => {
                self.is_half = is_half;
                Escape::None
            }
        };
        self.kept += usize::from(!self.is_cut);
        !self.is_cut
    }
}

/// Whether a byte is within a character of UTF-8, and not its first.
fn is_continuation(byte: u8) -> bool {
    byte & 0b1100_0000 == 0b1000_0000
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const BOUNDS: Bounds = Bounds { answer: 1 << 20, value: 1 << 16, string: 8 };

    /// The values of `answer` when it comes in pieces of `size` bytes.
    fn values(form: Form, answer: &str, size: usize) -> Result<Vec<String>, ApiError> {
        let mut found = Vec::new();
        let mut each = |value: &[u8]| {
            found.push(String::from_utf8(value.to_vec()).expect("UTF-8"));
            Ok(())
        };
        let mut reading = Values::new(form, BOUNDS);
        for piece in answer.as_bytes().chunks(size) {
            reading.read(piece, &mut each)?;
        }
        reading.finish(&mut each)?;
        Ok(found)
    }

    #[test]
    fn values_are_found_however_the_answer_is_parted() {
        for (form, answer, expected) in [
            (Form::List, "[]", &[][..]),
            (Form::List, " [ ] \n", &[]),
            (Form::List, "null\n", &[]),
            (Form::List, "[1]", &["1"]),
            (Form::List, " [1 , -2e3,true,null,\"a\" ] ", &["1", "-2e3", "true", "null", "\"a\""]),
            (
                Form::List,
                r#"[{"a":[1,{}]},[],{"b":"]}"}]"#,
                &[r#"{"a":[1,{}]}"#, "[]", r#"{"b":"]}"}"#],
            ),
            (Form::List, r#"[{"a":"\"]"},"\\"]"#, &[r#"{"a":"\"]"}"#, r#""\\""#]),
            (Form::One, r#" {"version":"1"} "#, &[r#"{"version":"1"}"#]),
            (Form::One, "[1,2]", &["[1,2]"]),
            (Form::One, "null", &["null"]),
            (Form::One, "\"x\"", &["\"x\""]),
        ] {
            for size in 1..=answer.len() {
                assert_eq!(values(form, answer, size).unwrap(), expected, "{answer} by {size}");
            }
        }
    }

    #[test]
    fn what_is_no_list_or_ends_early_is_refused() {
        let truncated =
            ["", " ", "[", "[1", "[1,", "[{", r#"[{"a"#, r#"[{"a":"\"#, "nul", r#"["a"#, "[[]"];
        let garbage = [
            "<!DOCTYPE html>",
            "{}",
            "[,]",
            "[1,,2]",
            "[1 2]",
            "[{}{}]",
            "[]]",
            "[] x",
            "nulls",
            "[}",
            "[:]",
            "x",
            "[x]",
            "[]null",
            "\u{1f}\u{8b}",
        ];
        let cases = truncated.map(|answer| (answer, true));
        for (answer, is_cut) in cases.into_iter().chain(garbage.map(|answer| (answer, false))) {
            for size in 1..=answer.len().max(1) {
                let error = values(Form::List, answer, size).unwrap_err();
                let ApiError::Unreadable(error) = error else { panic!("{answer}: {error}") };
                assert_eq!(error == Unreadable::Truncated, is_cut, "{answer}: {error}");
            }
        }
        for answer in ["", "{", "{} {}", "1 2", "<html>"] {
            assert!(values(Form::One, answer, 1).is_err(), "{answer}");
        }
    }

    #[test]
    fn long_strings_are_cut_between_characters() {
        for (string, expected) in [
            ("12345678", "12345678"),
            ("123456789", "12345678"),
            ("123456é", "123456é"),
            ("1234567é", "1234567é"),
            ("1234567é8", "1234567é"),
            ("12345678é", "12345678"),
            ("1234567登录", "1234567登"),
            ("1234567\\n\\n", "1234567\n"),
            ("12345678\\n", "12345678"),
            ("123456\\u00e9x", "123456é"),
            ("12345678\\\"x\\\\", "12345678"),
            ("\\ud83d\\ude00x", "😀"),
            ("12\\ud83d\\ude00\\ud83d\\ude00", "12😀"),
            ("12345\\uD83D\\uDE00x", "12345😀"),
        ] {
            let answer = format!(r#"[{{"s":"{string}","n":1}}]"#);
            for size in 1..=answer.len() {
                let found = values(Form::List, &answer, size).unwrap();
                let value: Value = serde_json::from_str(&found[0])
                    .unwrap_or_else(|error| panic!("{string} by {size}: {error}: {}", found[0]));
                assert_eq!(value["s"], expected, "{string} by {size}");
                assert_eq!(value["n"], 1);
            }
        }
    }

    #[test]
    fn large_strings_take_no_memory() {
        let issue = format!(r#"{{"number":1,"body":"{}"}},"#, "\\n<b>".repeat(1 << 18));
        let bounds = Bounds { answer: u64::MAX, ..BOUNDS };
        let mut reading = Values::new(Form::List, bounds);
        let (mut received, mut most) = (0, 0);
        let mut each = |_: &[u8]| {
            received += 1;
            Ok(())
        };
        reading.read(b"[", &mut each).unwrap();
        for _ in 0..5 {
            for piece in issue.as_bytes().chunks(1 << 14) {
                reading.read(piece, &mut each).unwrap();
                most = most.max(reading.value.capacity());
            }
        }
        assert_eq!(received, 5);
        assert!(most < 256, "{most} bytes of {}", issue.len());
    }

    #[test]
    fn an_answer_and_a_value_have_limits() {
        let large = format!("[{}]", "1,".repeat(1 << 20));
        let error = values(Form::List, &large, 4096).unwrap_err();
        assert!(matches!(error, ApiError::TooLarge { limit } if limit == BOUNDS.answer), "{error}");
        let large = format!("[[{}]]", "1,".repeat(1 << 16));
        let error = values(Form::List, &large, 4096).unwrap_err();
        assert!(matches!(error, ApiError::TooLarge { limit } if limit == 1 << 16), "{error}");
    }
}
