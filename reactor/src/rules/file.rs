//! The file of the rules.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{Rules, parse, values::Mistake};

/// Largest file, in bytes.
const MAX_BYTES: usize = 1024 * 1024;

/// Why there are no rules.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RulesError {
    /// The file cannot be read.
    #[error("{0}")]
    File(String),
    /// It was read, and this is wrong with it.
    #[error("{}: {}", path.display(), mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Mistakes {
        /// The file.
        path: PathBuf,
        /// What is wrong, in the order of the lines.
        mistakes: Vec<Mistake>,
    },
}

/// Reads the rules from a file, which is checked as a whole.
///
/// # Errors
/// If it cannot be read, or if anything is wrong with it.
pub fn read(path: &Path) -> Result<Rules, RulesError> {
    let file = |problem: String| RulesError::File(format!("REACTOR_RULES {problem}"));
    let bytes = service::settings::read_file(path).map_err(file)?;
    if bytes.len() > MAX_BYTES {
        return Err(file(format!("is {}, which is larger than {MAX_BYTES} bytes", path.display())));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        let text = "this is not UTF-8; save the file as UTF-8".to_owned();
        RulesError::Mistakes { path: path.to_owned(), mistakes: vec![Mistake { line, text }] }
    })?;
    parse::parse(&text).map_err(|mistakes| RulesError::Mistakes { path: path.to_owned(), mistakes })
}
