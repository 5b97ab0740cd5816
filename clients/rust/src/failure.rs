//! What a handler returns when its message is not done.

use std::time::Duration;

use crate::BoxError;

/// Why a message is not done, and what becomes of it.
#[derive(Debug)]
pub enum Failure {
    /// The handler is called again after this time. What follows of the same issue waits.
    Again(Duration),
    /// The message can never be handled. It is ended at the broker, which tells the reason.
    Never(String),
    /// The handler is called again, after a delay that grows with each attempt. Logged each time.
    Error(BoxError),
}

/// What a handler returns. `?` makes a [`Failure::Error`] of any error.
pub type Handled = Result<(), Failure>;

impl Failure {
    /// The message can never be handled.
    pub fn never(reason: impl Into<String>) -> Self {
        Self::Never(reason.into())
    }
}

impl<E: Into<BoxError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}
