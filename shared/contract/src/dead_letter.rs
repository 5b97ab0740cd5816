//! A message that was given up: the original payload and headers, with the
//! reason in headers of its own.

use strum::{IntoStaticStr, VariantArray};

use crate::{
    envelope::{Envelope, Headers, MESSAGE_ID},
    subject,
};

/// Why it was given up, in words.
pub const ERROR: &str = "Coordinator-Error";
/// How often it was tried.
pub const ATTEMPTS: &str = "Coordinator-Attempts";
/// The stream it was on.
pub const STREAM: &str = "Coordinator-Stream";
/// Its sequence there.
pub const SEQUENCE: &str = "Coordinator-Sequence";
/// Its subject there.
pub const ORIGINAL_SUBJECT: &str = "Coordinator-Original-Subject";
/// Its message id there.
pub const ORIGINAL_MESSAGE_ID: &str = "Coordinator-Original-Msg-Id";

const OWN_HEADERS: [&str; 6] =
    [ERROR, ATTEMPTS, STREAM, SEQUENCE, ORIGINAL_SUBJECT, ORIGINAL_MESSAGE_ID];

/// Why a message was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Reason {
    /// It is no event that the worker can read.
    Undecodable,
    /// A handler failed, and will fail again.
    Permanent,
    /// It was tried too often, whatever stopped it.
    TooManyAttempts,
}

impl Reason {
    /// All of them.
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// The label in metrics and log lines.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Where a message came from and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Why it was given up, in words.
    pub error: String,
    /// How often it was tried.
    pub attempts: u64,
    /// The stream it was on.
    pub stream: String,
    /// Its sequence there.
    pub sequence: u64,
}

/// Wraps a message as a dead letter. Its message id is made of stream, sequence
/// and the original id, so that parking the same message twice stores it once.
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

/// Unwraps a dead letter to be published again where it came from. `sequence`
/// is the dead letter's own, which makes the new message id: redriving the
/// same dead letter twice stores one message. None if it is no dead letter.
pub fn redrive(dead: &Headers, payload: Vec<u8>, sequence: u64) -> Option<Envelope> {
    let subject = dead.get(ORIGINAL_SUBJECT)?.to_owned();
    let id = dead.get(ORIGINAL_MESSAGE_ID)?;
    let mut headers = without(dead, &OWN_HEADERS);
    headers.push(MESSAGE_ID, format!("{id}#r{sequence}"));
    Some(Envelope { subject, headers, payload })
}

/// A copy without the message id, without `names`, and without what the server was asked to expect.
fn without(headers: &Headers, names: &[&str]) -> Headers {
    let kept = headers.0.iter().filter(|(name, _)| {
        name != MESSAGE_ID && !names.contains(&&**name) && !name.starts_with("Nats-Expected-")
    });
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
