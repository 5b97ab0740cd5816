//! What a handler says of its work. What then becomes of the message is decided in `settle`.

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
