//! What a handler or a step before it has come to. What then becomes of the message is decided
//! in `settle`.

use strum::IntoStaticStr;

/// What an attempt at an event came to, for its log line and for metrics.
#[derive(Clone, Copy, Debug, IntoStaticStr, PartialEq, Eq)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Verdict {
    /// Older than what is known.
    Stale,
    /// This very body was seen already.
    NothingNew,
    /// Remembered, without a change.
    Unchanged,
    /// Changes were published.
    Changed,
    Failed,
    Undecodable,
    TooManyAttempts,
}

/// A cause, with its own causes.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What a handler or a step before it has come to.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Done, or nothing to do.
    Done,
    /// Failed, and may pass.
    Transient(Cause),
    /// Failed, and will fail again.
    Permanent(Cause),
    /// The message is no event that this program can read.
    Undecodable(Cause),
    /// It was tried too often, whatever stopped it.
    TooManyAttempts,
}
