//! A dead letter: payload and headers of a message that was given up, with the
//! reason in additional headers.

use strum::{IntoStaticStr, VariantArray};

use crate::{
    envelope::{Envelope, Headers, MESSAGE_ID},
    subject,
};

/// Header: why the message was given up, in words.
pub const ERROR: &str = "Coordinator-Error";
/// Header: number of attempts to handle the message.
pub const ATTEMPTS: &str = "Coordinator-Attempts";
/// Header: the stream that holds the message.
pub const STREAM: &str = "Coordinator-Stream";
/// Header: sequence of the message in that stream.
pub const SEQUENCE: &str = "Coordinator-Sequence";
/// Header: subject of the message in that stream.
pub const ORIGINAL_SUBJECT: &str = "Coordinator-Original-Subject";
/// Header: message id of the message in that stream.
pub const ORIGINAL_MESSAGE_ID: &str = "Coordinator-Original-Msg-Id";

const OWN_HEADERS: [&str; 6] =
    [ERROR, ATTEMPTS, STREAM, SEQUENCE, ORIGINAL_SUBJECT, ORIGINAL_MESSAGE_ID];

/// Why a message was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Reason {
    /// The payload is not an event that the worker can read.
    Undecodable,
    /// A handler failed in a way that a retry does not change.
    Permanent,
    /// Too many workers died with the message in hand.
    TooManyAttempts,
}

impl Reason {
    /// All reasons.
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// The label in metrics and log lines.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Where a dead letter came from, and why it was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Why the message was given up, in words.
    pub error: String,
    /// Number of attempts to handle the message.
    pub attempts: u64,
    /// The stream that holds the message.
    pub stream: String,
    /// Sequence of the message in that stream.
    pub sequence: u64,
}

/// Wraps a message as a dead letter. The dead letter's message id is made of stream,
/// sequence and the original id, so that parking a message twice stores it once.
pub fn park(subject: &str, original: &Headers, payload: Vec<u8>, history: &History) -> Envelope {
    let mut headers = without(original, &OWN_HEADERS);
    let id = original.get(MESSAGE_ID).unwrap_or_default();
    let History { error, attempts, stream, sequence } = history;
    headers.push(MESSAGE_ID, format!("dlq:{stream}:{sequence}:{id}"));
    headers.push(ERROR, error.replace(['\r', '\n'], " "));
    headers.push(ATTEMPTS, attempts.to_string());
    headers.push(STREAM, stream);
    headers.push(SEQUENCE, sequence.to_string());
    headers.push(ORIGINAL_SUBJECT, subject);
    headers.push(ORIGINAL_MESSAGE_ID, id);
    Envelope { subject: subject::of_dead_letter(subject), headers, payload }
}

/// Unwraps a dead letter, to be published on its original subject. `sequence` is the
/// dead letter's own sequence. It is part of the new message id, so redriving the same
/// dead letter twice stores one message. None if the message is not a dead letter.
pub fn redrive(dead: &Headers, payload: Vec<u8>, sequence: u64) -> Option<Envelope> {
    let subject = dead.get(ORIGINAL_SUBJECT)?.to_owned();
    let id = dead.get(ORIGINAL_MESSAGE_ID)?;
    let mut headers = without(dead, &OWN_HEADERS);
    headers.push(MESSAGE_ID, format!("{id}#r{sequence}"));
    Some(Envelope { subject, headers, payload })
}

/// A copy without `names` and without the headers that mean something to the broker, such as the
/// message id.
fn without(headers: &Headers, names: &[&str]) -> Headers {
    let kept = headers
        .0
        .iter()
        .filter(|(name, _)| !names.contains(&&**name) && !name.starts_with("Nats-"));
    Headers(kept.cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_keeps_the_original_and_is_redriven_as_it_was() {
        let mut headers = Headers::default();
        headers.push(MESSAGE_ID, "d-1");
        headers.push("Nats-Expected-Stream", "GITEA_ISSUES");
        headers.push("traceparent", "00-a-b-01");
        let history = History {
            error: "decode:\nnot JSON".into(),
            attempts: 3,
            stream: "GITEA_ISSUES".into(),
            sequence: 42,
        };
        let dead = park("gitea.issues.closed.acme.w.1.9", &headers, b"x".to_vec(), &history);
        let header = |name: &str| dead.headers.get(name);
        assert_eq!(dead.subject, "gitea.dead.issues.closed.acme.w.1.9");
        assert_eq!(header("Nats-Msg-Id"), Some("dlq:GITEA_ISSUES:42:d-1"));
        assert_eq!(header(ERROR), Some("decode: not JSON"));
        assert_eq!(header("Nats-Expected-Stream"), None);

        let again = redrive(&dead.headers, dead.payload.clone(), 7).expect("a dead letter");
        assert_eq!(again.subject, "gitea.issues.closed.acme.w.1.9");
        assert_eq!(again.headers.get(MESSAGE_ID), Some("d-1#r7"));
        assert_eq!(again.headers.get("traceparent"), Some("00-a-b-01"));
        assert!(again.headers.get(ERROR).is_none());
        assert_eq!(again.payload, b"x");
        assert_eq!(redrive(&headers, Vec::new(), 7).map(|envelope| envelope.subject), None);
    }
}
