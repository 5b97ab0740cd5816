//! Result of an attempt at an event. `settle` decides how the message is settled.

use strum::IntoStaticStr;

/// Result of an attempt at an event, for its log line and for metrics.
#[derive(Clone, Copy, Debug, IntoStaticStr, PartialEq, Eq)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Verdict {
    /// Older than the known state.
    Stale,
    /// This body was already seen.
    NothingNew,
    /// Gitea's API said it when less was known than now.
    Outrun,
    /// The state was saved, and nothing changed.
    Unchanged,
    /// Changes were published.
    Changed,
    Failed,
    Undecodable,
    TooManyAttempts,
}

/// An error, with its own causes.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Result of an attempt, for the message. A broker that fails has no outcome: the attempt is
/// repeated.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Done, or nothing had to be done.
    Done,
    /// Failed, and every retry would fail.
    Permanent(Cause),
    /// The message is not an event that this program can read.
    Undecodable(Cause),
    /// All attempts are used up.
    TooManyAttempts,
}
