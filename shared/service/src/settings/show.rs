//! How `--check` prints a setting.

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use tracing::Level;

use crate::secret::Secret;

/// A setting as it is understood: `NAME=value`. A secret is hidden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    name: &'static str,
    value: String,
}

impl Shown {
    /// The setting `name` with its value.
    pub fn new(name: &'static str, value: &impl Show) -> Self {
        Self { name, value: value.show() }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One setting is one line, whatever is in it.
        write!(f, "{}={}", self.name, self.value.replace(['\r', '\n'], " "))
    }
}

/// A value that can be printed. The type decides what is shown, so that a setting which is a secret
/// is hidden by having the type [`Secret`].
pub trait Show {
    /// The value in the form in which it is set. Empty if it is unset.
    fn show(&self) -> String;
}

macro_rules! show_as_displayed {
    ($($type:ty),*) => {
        $( impl Show for $type {
            fn show(&self) -> String {
                self.to_string()
            }
        } )*
    };
}

show_as_displayed!(
    contract::partitions::Partitions,
    bool,
    f64,
    i64,
    IpAddr,
    String,
    u16,
    u64,
    usize
);

impl Show for Duration {
    fn show(&self) -> String {
        self.as_secs().to_string()
    }
}

impl Show for Level {
    fn show(&self) -> String {
        match *self {
            Level::WARN => "warning".into(),
            level => level.as_str().to_ascii_lowercase(),
        }
    }
}

impl Show for PathBuf {
    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Show for Secret {
    fn show(&self) -> String {
        "(hidden)".into()
    }
}

impl<T: Show> Show for Option<T> {
    fn show(&self) -> String {
        self.as_ref().map(Show::show).unwrap_or_default()
    }
}
