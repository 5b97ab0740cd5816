//! A message that was given up: the original payload and headers, with the
//! reason in headers of its own.

use async_nats::{HeaderMap, header::NATS_MESSAGE_ID};

use crate::{envelope::Envelope, subject};

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

/// Where a message came from and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Why it was given up.
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
pub fn park(
    original_subject: &str,
    original: &HeaderMap,
    payload: Vec<u8>,
    reason: &Reason,
) -> Envelope {
    let mut headers = without(original, &OWN_HEADERS);
    let id = original.get(NATS_MESSAGE_ID).map_or("", |id| id.as_str());
    headers.insert(
        NATS_MESSAGE_ID,
        format!("dlq:{}:{}:{id}", reason.stream, reason.sequence).as_str(),
    );
    headers.insert(ERROR, reason.error.replace(['\r', '\n'], " ").as_str());
    headers.insert(ATTEMPTS, reason.attempts.to_string().as_str());
    headers.insert(STREAM, reason.stream.as_str());
    headers.insert(SEQUENCE, reason.sequence.to_string().as_str());
    headers.insert(ORIGINAL_SUBJECT, original_subject);
    headers.insert(ORIGINAL_MESSAGE_ID, id);
    Envelope { subject: subject::of_dead_letter(original_subject), headers, payload }
}

/// Unwraps a dead letter to be published again where it came from. `sequence`
/// is the dead letter's own, which makes the new message id: redriving the
/// same dead letter twice stores one message. None if it is no dead letter.
pub fn redrive(dead: &HeaderMap, payload: Vec<u8>, sequence: u64) -> Option<Envelope> {
    let subject = dead.get(ORIGINAL_SUBJECT)?.to_string();
    let id = dead.get(ORIGINAL_MESSAGE_ID)?.to_string();
    let mut headers = without(dead, &OWN_HEADERS);
    headers.insert(NATS_MESSAGE_ID, format!("{id}#r{sequence}").as_str());
    Some(Envelope { subject, headers, payload })
}

/// A copy without `names` and without what only made sense to the server at the time.
fn without(headers: &HeaderMap, names: &[&str]) -> HeaderMap {
    let mut copy = HeaderMap::new();
    for (name, values) in headers.iter() {
        let name = name.to_string();
        if names.contains(&name.as_str()) || name.starts_with("Nats-Expected-") {
            continue;
        }
        for value in values {
            copy.append(name.as_str(), value.as_str());
        }
    }
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_keeps_the_original_and_is_redriven_as_it_was() {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, "d-1");
        headers.insert("Nats-Expected-Stream", "GITEA_ISSUES");
        headers.insert("traceparent", "00-a-b-01");
        let reason = Reason {
            error: "decode:\nnot JSON".into(),
            attempts: 3,
            stream: "GITEA_ISSUES".into(),
            sequence: 42,
        };
        let dead = park("gitea.issues.closed.acme.w.1.9", &headers, b"x".to_vec(), &reason);
        let header = |name: &str| dead.headers.get(name).map(ToString::to_string);
        assert_eq!(dead.subject, "gitea.dead.issues.closed.acme.w.1.9");
        assert_eq!(header("Nats-Msg-Id").as_deref(), Some("dlq:GITEA_ISSUES:42:d-1"));
        assert_eq!(header(ERROR).as_deref(), Some("decode: not JSON"));
        assert_eq!(header("Nats-Expected-Stream"), None);

        let again = redrive(&dead.headers, dead.payload.clone(), 7).expect("a dead letter");
        assert_eq!(again.subject, "gitea.issues.closed.acme.w.1.9");
        assert_eq!(again.headers.get(NATS_MESSAGE_ID).map(|id| id.as_str()), Some("d-1#r7"));
        assert_eq!(again.headers.get("traceparent").map(|v| v.as_str()), Some("00-a-b-01"));
        assert!(again.headers.get(ERROR).is_none());
        assert_eq!(again.payload, b"x");
        assert_eq!(redrive(&headers, Vec::new(), 7).map(|envelope| envelope.subject), None);
    }
}
