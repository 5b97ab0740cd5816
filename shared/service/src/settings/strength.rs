//! Whether a secret protects anything.

use super::Problems;
use crate::secret::Secret;

/// Least length of a secret, in bytes. A shorter one can be found by trying.
const LEAST_BYTES: usize = 16;

/// The command that the remedy names.
const MAKE: &str = "openssl rand -hex 32";

/// Words that stand where somebody has to put a secret in an example.
const PLACEHOLDERS: [&str; 8] = [
    "changeme",
    "changethis",
    "replaceme",
    "replacethis",
    "yoursecret",
    "yourwebhooksecret",
    "secrethere",
    "placeholder",
];

/// Why a secret protects nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weakness {
    /// It is the text of an example, or one character over and over.
    Placeholder,
    /// It has this many bytes, which are too few.
    Short(usize),
}

impl Problems {
    /// Notes a secret that protects nothing. A short one is let through if `short_allowed`; returns
    /// whether there is such a one.
    pub fn check_strength(
        &mut self,
        name: &str,
        secret: Option<&Secret>,
        short_allowed: bool,
    ) -> bool {
        match secret.and_then(|secret| weakness(secret.expose())) {
            None => {}
            Some(Weakness::Placeholder) => {
                self.add(format!("{name} is a placeholder; make one with `{MAKE}`"));
            }
            Some(Weakness::Short(_)) if short_allowed => return true,
            Some(Weakness::Short(bytes)) => self.add(format!(
                "{name} has {bytes} bytes, fewer than {LEAST_BYTES}; make one with `{MAKE}` and set \
                 it in Gitea too, or set ALLOW_SHORT_SECRET=true"
            )),
        }
        false
    }

    /// Notes a password of our own that protects nothing.
    pub fn check_password(&mut self, name: &str, secret: Option<&Secret>) {
        match secret.and_then(|secret| weakness(secret.expose())) {
            None => {}
            Some(Weakness::Placeholder) => {
                self.add(format!("{name} is a placeholder; make one with `{MAKE}`"));
            }
            Some(Weakness::Short(bytes)) => self.add(format!(
                "{name} has {bytes} bytes, fewer than {LEAST_BYTES}; make one with `{MAKE}`"
            )),
        }
    }

    /// Notes a password that is the text of an example. `remedy` says where a right one comes from.
    pub fn check_placeholder(&mut self, name: &str, secret: Option<&Secret>, remedy: &str) {
        if secret.is_some_and(|secret| is_placeholder(secret.expose())) {
            self.add(format!("{name} is a placeholder; {remedy}"));
        }
    }
}

/// What is wrong with a secret.
fn weakness(secret: &[u8]) -> Option<Weakness> {
    if is_placeholder(secret) {
        Some(Weakness::Placeholder)
    } else {
        (secret.len() < LEAST_BYTES).then_some(Weakness::Short(secret.len()))
    }
}

/// Whether a text is one that stands where a secret has to be put.
fn is_placeholder(secret: &[u8]) -> bool {
    let is_bracketed = secret.starts_with(b"<") && secret.ends_with(b">");
    let is_one_character = secret.len() > 1 && secret.iter().all(|byte| *byte == secret[0]);
    let letters = secret.iter().filter(|byte| byte.is_ascii_alphanumeric());
    let letters: String = letters.map(|byte| byte.to_ascii_lowercase() as char).collect();
    is_bracketed || is_one_character || PLACEHOLDERS.iter().any(|word| letters.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_long_and_no_example() {
        for (secret, expected) in [
            ("0123456789abcdef", None),
            ("0123456789abcde", Some(Weakness::Short(15))),
            ("", Some(Weakness::Short(0))),
            ("CHANGE-ME", Some(Weakness::Placeholder)),
            ("please-change_me-before-use", Some(Weakness::Placeholder)),
            ("<the webhook's secret>", Some(Weakness::Placeholder)),
            ("xxxxxxxxxxxxxxxxxxxx", Some(Weakness::Placeholder)),
            ("your-webhook-secret-1", Some(Weakness::Placeholder)),
            ("correct horse battery staple", None),
        ] {
            assert_eq!(weakness(secret.as_bytes()), expected, "{secret}");
        }
    }
}
