//! Values of the rules' file with their places, and what is wrong with them.

use std::{fmt, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// One mistake in the file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// Its line, from 1.
    pub line: usize,
    /// What is wrong, and how to put it right.
    pub text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.text)
    }
}

/// Collects the mistakes of a file.
#[derive(Debug)]
pub(super) struct Mistakes<'a> {
    text: &'a str,
    found: Vec<Mistake>,
}

impl<'a> Mistakes<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, found: Vec::new() }
    }

    pub(super) fn add(&mut self, at: &Range<usize>, text: impl Into<String>) {
        let before = &self.text.as_bytes()[..at.start.min(self.text.len())];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        self.found.push(Mistake { line, text: text.into() });
    }

    pub(super) fn into_found(mut self) -> Vec<Mistake> {
        self.found.sort();
        self.found
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }
}

/// A table of the file, whose keys are taken one after the other.
pub(super) struct Table<'t, 'i> {
    /// Path of the table for messages: `rule "fix": run`.
    pub(super) path: String,
    pub(super) at: Range<usize>,
    table: &'t DeTable<'i>,
    known: Vec<&'static str>,
}

/// What a key is often called elsewhere.
const OTHER_NAMES: [(&str, &str); 21] = [
    ("rules", "rule"),
    ("command", "argv"),
    ("cmd", "argv"),
    ("args", "argv"),
    ("exec", "run"),
    ("shell", "argv"),
    ("env", "environment"),
    ("dir", "directory"),
    ("cwd", "directory"),
    ("workdir", "directory"),
    ("timeout", "time_limit_secs"),
    ("time_limit", "time_limit_secs"),
    ("memory_limit", "memory_limit_bytes"),
    ("output_limit", "output_limit_bytes"),
    ("grace", "grace_secs"),
    ("repo", "repository"),
    ("labels", "label"),
    ("user", "login"),
    ("assignee", "who"),
    ("webhook", "call"),
    ("secret", "secret_file"),
];

impl<'t, 'i> Table<'t, 'i> {
    pub(super) fn new(path: String, at: Range<usize>, table: &'t DeTable<'i>) -> Self {
        Self { path, at, table, known: Vec::new() }
    }

    /// A message with the path of the key.
    pub(super) fn named(&self, key: &str, text: &str) -> String {
        if self.path.is_empty() {
            format!("{key} {text}")
        } else {
            format!("{}.{key} {text}", self.path)
        }
    }

    pub(super) fn get(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'i>>> {
        self.known.push(key);
        self.table.get(key)
    }

    /// Like [`Table::get`], where the key has to be there.
    pub(super) fn required(
        &mut self,
        key: &'static str,
        remedy: &str,
        mistakes: &mut Mistakes<'_>,
    ) -> Option<&'t Spanned<DeValue<'i>>> {
        let value = self.get(key);
        if value.is_none() {
            mistakes.add(&self.at, self.named(key, &format!("is missing; {remedy}")));
        }
        value
    }

    pub(super) fn text(
        &mut self,
        key: &'static str,
        mistakes: &mut Mistakes<'_>,
    ) -> Option<(String, Range<usize>)> {
        let value = self.get(key)?;
        self.as_text(key, value, mistakes)
    }

    pub(super) fn as_text(
        &self,
        key: &str,
        value: &Spanned<DeValue<'i>>,
        mistakes: &mut Mistakes<'_>,
    ) -> Option<(String, Range<usize>)> {
        let wrong = match value.get_ref().as_str() {
            None => {
                let kind = value.get_ref().type_str();
                format!("is {kind}; write a text in quotes")
            }
            Some(text) if text.trim().is_empty() => "is empty; leave it out or set it".into(),
            Some(text) if text.contains('\0') => "holds a NUL, which no text here may".into(),
            Some(text) => return Some((text.to_owned(), value.span())),
        };
        mistakes.add(&value.span(), self.named(key, &wrong));
        None
    }

    /// A number from `low` to `high`.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        (low, high): (i64, i64),
        mistakes: &mut Mistakes<'_>,
    ) -> Option<i64> {
        let value = self.get(key)?;
        let wrong = match value.get_ref().as_integer() {
            None => {
                let kind = value.get_ref().type_str();
                format!("is {kind}; write a whole number without quotes, from {low} to {high}")
            }
            Some(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) if (low..=high).contains(&number) => return Some(number),
                _ => format!("is {number}; write a number from {low} to {high}"),
            },
        };
        mistakes.add(&value.span(), self.named(key, &wrong));
        None
    }

    /// A table within this one.
    pub(super) fn table(
        &mut self,
        key: &'static str,
        mistakes: &mut Mistakes<'_>,
    ) -> Option<Table<'t, 'i>> {
        let value = self.get(key)?;
        match value.get_ref().as_table() {
            Some(table) => {
                let path =
                    if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) };
                Some(Table::new(path, value.span(), table))
            }
            None => {
                let kind = value.get_ref().type_str();
                let text = format!("is {kind}; write a table: {key} = {{ … }}");
                mistakes.add(&value.span(), self.named(key, &text));
                None
            }
        }
    }

    /// Adds a mistake for each key that nobody asked for.
    pub(super) fn finish(self, mistakes: &mut Mistakes<'_>) {
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if self.known.contains(&name) {
                continue;
            }
            let other = OTHER_NAMES.iter().find(|(other, _)| *other == name).map(|(_, own)| *own);
            let meant = other.filter(|own| self.known.contains(own)).or_else(|| self.near(name));
            let remedy = match meant {
                Some(own) => format!("write {own}"),
                None => format!("known are {}", self.known.join(", ")),
            };
            mistakes.add(&key.span(), self.named(name, &format!("is not known; {remedy}")));
        }
    }

    /// A known key with the same letters, whatever stands between them, or nearly the same.
    fn near(&self, name: &str) -> Option<&'static str> {
        let letters = |text: &str| {
            text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase()
        };
        let is_near = |known: &&&str| {
            let (known, name) = (letters(known), letters(name));
            let same = known.chars().zip(name.chars()).take_while(|(a, b)| a == b).count();
            known == name || (same >= 3 && 2 * same >= known.len().max(name.len()))
        };
        self.known.iter().find(is_near).copied()
    }
}
