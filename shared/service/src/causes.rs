//! An error with its causes on one line, for the place that logs it.

use std::{error::Error, fmt};

/// Displays an error followed by its chain of sources, with `: ` between, and
/// never a line break.
#[derive(Debug)]
pub struct Causes<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = self.0.to_string();
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some libraries repeat their source in their own text.
            if !line.ends_with(&text) {
                line.push_str(": ");
                line.push_str(&text);
            }
            cause = error.source();
        }
        f.write_str(&line.replace(['\r', '\n'], " "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("open the file")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn the_chain_is_one_line() {
        let error = Outer(std::io::Error::other("disk\non fire"));
        assert_eq!(Causes(&error).to_string(), "open the file: disk on fire");
    }
}
