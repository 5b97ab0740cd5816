//! What an error of a publish means for the message. This is the only table of it.

use async_nats::jetstream::{
    self, ErrorCode,
    context::{PublishError, PublishErrorKind},
};

/// What to do about a publish that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The message is too large for the server or the stream, and always will be.
    TooLarge,
    /// The message will never be taken, whatever its size.
    Never,
    /// The stream is not there: look for it, create it, and publish again.
    PrepareAgain,
    /// Another message is the last one on the subject than the publisher expects.
    NotLast,
    /// The stream takes no message that is to be removed after a time of its own.
    NoTtl,
    /// The broker cannot take anything now. Unknown errors count as this one.
    Away,
}

impl Refusal {
    /// Whether this message, as it is, will never be taken.
    pub fn is_for_good(self) -> bool {
        matches!(self, Self::TooLarge | Self::Never)
    }

    /// Classifies an error. The codes are from nats-server's `server/errors.json`.
    pub fn of(error: &PublishError) -> Self {
        match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => Self::TooLarge,
            // No responders: also while the stream's leader is being elected.
            PublishErrorKind::StreamNotFound => Self::PrepareAgain,
            PublishErrorKind::WrongLastSequence => Self::NotLast,
            PublishErrorKind::Other => of_code(code(error)),
            _ => Self::Away,
        }
    }
}

fn code(error: &PublishError) -> Option<ErrorCode> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref::<jetstream::Error>().map(jetstream::Error::error_code)
}

fn of_code(code: Option<ErrorCode>) -> Refusal {
    match code.map(|code| code.0) {
        // "message size exceeds maximum allowed", by the stream's max_msg_size.
        Some(10054) => Refusal::TooLarge,
        // "header size exceeds maximum allowed of 64k".
        Some(10097) => Refusal::Never,
        // "wrong last sequence", where a publish on the subject is still under way.
        Some(10164) => Refusal::NotLast,
        // "per-message TTL is disabled".
        Some(10166) => Refusal::NoTtl,
        // "stream not found"; "expected stream does not match": another stream took the subject.
        Some(10059 | 10060) => Refusal::PrepareAgain,
        // This includes 10077: a limit of the stream or of the account is reached.
        _ => Refusal::Away,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_its_meaning_and_an_unknown_one_means_away() {
        for (code, refusal) in [
            (10054, Refusal::TooLarge),
            (10097, Refusal::Never),
            (10059, Refusal::PrepareAgain),
            (10060, Refusal::PrepareAgain),
            (10164, Refusal::NotLast),
            (10166, Refusal::NoTtl),
            (10077, Refusal::Away),
            (10023, Refusal::Away),
            (10047, Refusal::Away),
            (10109, Refusal::Away),
            (10999, Refusal::Away),
        ] {
            assert_eq!(of_code(Some(ErrorCode(code))), refusal, "{code}");
        }
        assert_eq!(of_code(None), Refusal::Away);
        for (kind, refusal) in [
            (PublishErrorKind::MaxPayloadExceeded, Refusal::TooLarge),
            (PublishErrorKind::StreamNotFound, Refusal::PrepareAgain),
            (PublishErrorKind::WrongLastSequence, Refusal::NotLast),
            (PublishErrorKind::TimedOut, Refusal::Away),
            (PublishErrorKind::BrokenPipe, Refusal::Away),
            (PublishErrorKind::Other, Refusal::Away),
        ] {
            assert_eq!(Refusal::of(&PublishError::new(kind)), refusal);
        }
    }
}
