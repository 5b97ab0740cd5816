//! Lines that fit a terminal: how wide a text is, where it is cut, and colors.

use std::borrow::Cow;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Width of a line for people, in columns.
pub const WIDTH: usize = 120;

const ELLIPSIS: &str = "…";

/// The widest name of an issue in a line, in columns.
const MAX_REF: usize = 48;

/// How many columns a terminal needs for `text`. Wide characters take two.
pub fn width(text: &str) -> usize {
    text.width()
}

/// The beginning of `text` that fits into `columns`. Where something is left out it ends with an
/// ellipsis.
pub fn cut(text: &str, columns: usize) -> Cow<'_, str> {
    if width(text) <= columns {
        return Cow::Borrowed(text);
    }
    let Some(left) = columns.checked_sub(1) else { return Cow::Borrowed("") };
    let kept: String = first(text.chars(), left).collect();
    Cow::Owned(kept.trim_end().to_owned() + ELLIPSIS)
}

/// The name of an issue, `acme/widgets#7`. A long one loses its beginning, and keeps its number.
pub fn issue_ref(text: &str) -> Cow<'_, str> {
    if width(text) <= MAX_REF {
        return Cow::Borrowed(text);
    }
    let mut kept: Vec<char> = first(text.chars().rev(), MAX_REF - 1).collect();
    kept.reverse();
    Cow::Owned(ELLIPSIS.chars().chain(kept).collect())
}

/// The first characters that fit into `columns`.
fn first(chars: impl Iterator<Item = char>, columns: usize) -> impl Iterator<Item = char> {
    let mut left = Some(columns);
    chars.take_while(move |c| {
        left = left.and_then(|left| left.checked_sub(c.width().unwrap_or(0)));
        left.is_some()
    })
}

/// The first eight digits of a delivery's id: enough to find it by.
pub fn short_id(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

/// A color of a text, as ECMA-48 numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Color {
    Red,
    Green,
    Yellow,
    Blue,
    Cyan,
    /// What is only looked at when it is looked for.
    Dim,
}

/// Whether and how texts are colored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colors(bool);

impl Colors {
    /// No colors.
    pub const NONE: Self = Self(false);

    /// Colors on a terminal, unless `NO_COLOR` holds something (<https://no-color.org>).
    pub fn new(is_terminal: bool, no_color: Option<&str>) -> Self {
        Self(is_terminal && no_color.is_none_or(str::is_empty))
    }

    /// `text` in a color. It must be harmless already.
    pub fn paint<'a>(self, color: Color, text: &'a str) -> Cow<'a, str> {
        if !self.0 || text.is_empty() {
            return Cow::Borrowed(text);
        }
        let code = match color {
            Color::Red => 31,
            Color::Green => 32,
            Color::Yellow => 33,
            Color::Blue => 34,
            Color::Cyan => 36,
            Color::Dim => 2,
        };
        Cow::Owned(format!("\x1b[{code}m{text}\x1b[0m"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_to_the_columns_that_it_has() {
        for (text, columns, expected) in [
            ("connected", 9, "connected"),
            ("connected", 8, "connect…"),
            ("lost the connection", 9, "lost the…"),
            ("漢字漢字", 8, "漢字漢字"),
            ("漢字漢字", 7, "漢字漢…"),
            ("漢字漢字", 6, "漢字…"),
            ("e\u{301}e\u{301}e\u{301}", 2, "e\u{301}…"),
            ("x", 0, ""),
            ("", 0, ""),
        ] {
            let cut = cut(text, columns);
            assert_eq!(cut, expected);
            assert!(width(&cut) <= columns);
        }
    }

    #[test]
    fn a_long_name_of_an_issue_keeps_its_number() {
        assert_eq!(issue_ref("acme/widgets#7"), "acme/widgets#7");
        let long = format!("{}/{}#71", "o".repeat(40), "r".repeat(100));
        let short = issue_ref(&long);
        assert!(short.starts_with("…r") && short.ends_with("r#71"), "{short}");
        assert_eq!(width(&short), MAX_REF);
    }

    #[test]
    fn colors_need_a_terminal_and_no_no_color() {
        for (is_terminal, no_color, colored) in [
            (true, None, true),
            (true, Some(""), true),
            (true, Some("0"), false),
            (true, Some("1"), false),
            (false, None, false),
        ] {
            let painted = Colors::new(is_terminal, no_color).paint(Color::Red, "ERROR");
            assert_eq!(painted == "\x1b[31mERROR\x1b[0m", colored, "{painted:?}");
        }
    }
}
