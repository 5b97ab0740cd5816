//! What can go wrong for good. What may heal by itself is logged and tried again instead.

use std::path::PathBuf;

use thiserror::Error;

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a subscription has ended, or cannot begin.
#[derive(Debug, Error)]
pub enum Error {
    /// An argument or a setting is missing or wrong.
    #[error("{0}")]
    Settings(String),
    /// A file of the settings cannot be read.
    #[error("read {}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The durable consumer cannot be used as it is, or may not be created.
    #[error("{0}")]
    Consumer(String),
    /// A message is of a later version than this crate reads. It was not settled.
    #[error("{id} has version {found}, and this client reads up to {known}; upgrade it")]
    Version {
        /// Id of the message.
        id: String,
        /// Its version.
        found: u64,
        /// Newest version that is read.
        known: u32,
    },
    /// What [`on_unreadable`](crate::Subscription::on_unreadable) returned.
    #[error("handle a message that cannot be read")]
    Unreadable(#[source] BoxError),
    /// The process cannot wait for signals.
    #[error("wait for a signal to stop")]
    Signal(#[source] std::io::Error),
}

/// A message is not of the expected shape. The text names the field and shows no value.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Unreadable(pub(crate) String);
