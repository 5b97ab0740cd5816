//! A dead letter: payload and headers of a message that was given up, with the
//! reason in additional headers.

use strum::{IntoStaticStr, VariantArray};
use thiserror::Error;

use crate::{
    envelope::{self, Envelope, Headers, MESSAGE_ID},
    names::EVENTS,
    partitions::Partitions,
    subject::{self, EventSubject},
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

/// Names of the headers that a dead letter has beside those of its message.
pub const HEADERS: [&str; 6] =
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
    let mut headers = without(original, &HEADERS);
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

/// Why a dead letter is not published again.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RedriveError {
    /// A header that each dead letter has is missing.
    #[error("it does not say where it came from: the header {0} is missing")]
    Unmarked(&'static str),
    /// It came from another stream than that of the events.
    #[error("it came from the stream {0:?}, which is not that of the events")]
    Stream(String),
    /// Its original subject is not that of an event.
    #[error("its original subject {0:?} is not that of an event")]
    Subject(String),
    /// Its original subject is that of another event than its payload.
    #[error("its original subject {0:?} is not the one of its event")]
    OtherEvent(String),
    /// Nobody consumes its original subject.
    #[error("its original subject is of the partition {0}, and there are {1}")]
    Partition(u8, Partitions),
    /// A header that no event has.
    #[error("it has the header {0:?}, which no event has")]
    Header(String),
    /// It was parked without its payload, which was too large.
    #[error(
        "it has no payload, which was too large for the stream of dead letters; message {0} of {EVENTS} holds it"
    )]
    NoPayload(String),
}

/// Unwraps a dead letter, to be published on its original subject. `sequence` is the
/// dead letter's own sequence. It is part of the new message id, so redriving the same
/// dead letter twice stores one message.
///
/// Whoever publishes it has more rights than who may write dead letters. So it is an event's
/// message in all that the broker looks at, or it is refused. `partitions` is what there is now,
/// which may be another number than when the event was published.
pub fn redrive(
    dead: &Headers,
    payload: Vec<u8>,
    sequence: u64,
    partitions: Partitions,
) -> Result<Envelope, RedriveError> {
    let header = |name| dead.get(name).ok_or(RedriveError::Unmarked(name));
    let (text, id) = (header(ORIGINAL_SUBJECT)?, header(ORIGINAL_MESSAGE_ID)?);
    if dead.get(STREAM) != Some(EVENTS) {
        return Err(RedriveError::Stream(dead.get(STREAM).unwrap_or_default().to_owned()));
    }
    let mut headers = without(dead, &HEADERS);
    let is_ours = |name: &str| envelope::HEADERS.contains(&name);
    if let Some((name, _)) = headers.0.iter().find(|(name, _)| !is_ours(name)) {
        return Err(RedriveError::Header(name.to_string()));
    }
    let mut subject = match EventSubject::parse(text) {
        Ok(subject) if subject.to_string() == text => subject,
        _ => return Err(RedriveError::Subject(text.to_owned())),
    };
    if payload.is_empty() {
        return Err(RedriveError::NoPayload(dead.get(SEQUENCE).unwrap_or("?").to_owned()));
    }
    match envelope::read_event(&payload) {
        Ok(event) if subject.is_of(&event) => {
            subject.partition = partitions.of(event.repository.id, event.issue.number);
        }
        Ok(_) => return Err(RedriveError::OtherEvent(text.to_owned())),
        // A worker that could not read it may have been an older one.
        Err(_) if partitions.all().contains(&subject.partition) => {}
        Err(_) => return Err(RedriveError::Partition(subject.partition, partitions)),
    }
    headers.push(MESSAGE_ID, format!("{id}#r{sequence}"));
    Ok(Envelope { subject: subject.to_string(), headers, payload })
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

        let again = redrive(&dead.headers, dead.payload.clone(), 7, Partitions::DEFAULT);
        let again = again.expect("a dead letter");
        assert_eq!(again.subject, "gitea.issues.closed.acme.w.1.9");
        assert_eq!(again.headers.get(MESSAGE_ID), Some("d-1#r7"));
        assert_eq!(again.headers.get("traceparent"), Some("00-a-b-01"));
        assert!(again.headers.get(ERROR).is_none());
        assert_eq!(again.payload, b"x");
    }

    /// A dead letter of `subject` with a payload, and one more header if there is one.
    fn redriven(
        subject: &str,
        payload: &[u8],
        header: Option<(&'static str, &str)>,
        partitions: &str,
    ) -> Result<String, RedriveError> {
        let history =
            History { error: "e".into(), attempts: 1, stream: EVENTS.into(), sequence: 42 };
        let mut dead = park(subject, &Headers::default(), payload.to_vec(), &history);
        if let Some((name, value)) = header {
            dead.headers.0.retain(|(other, _)| other != name);
            dead.headers.push(name, value);
        }
        let partitions = partitions.parse().expect("a number");
        redrive(&dead.headers, dead.payload, 7, partitions).map(|envelope| envelope.subject)
    }

    #[test]
    fn only_an_events_message_is_redriven() {
        let event = crate::event::example();
        let json = serde_json::to_vec(&event).expect("JSON");
        let subject = EventSubject::of(&event, Partitions::DEFAULT).to_string();
        let garbage = b"no event";
        assert_eq!(redriven(&subject, &json, None, "64"), Ok(subject.clone()));
        assert_eq!(redriven(&subject, garbage, None, "64"), Ok(subject.clone()));
        // In another number of partitions it goes where its issue is now.
        let prefix = subject.rsplit_once('.').expect("tokens").0;
        assert_eq!(redriven(&subject, &json, None, "1"), Ok(format!("{prefix}.0")));

        type Wrong = fn(String) -> RedriveError;
        let wrong_subjects: [(&str, Wrong); 7] = [
            ("$JS.API.STREAM.DELETE.GITEA_ISSUES", RedriveError::Subject),
            ("gitea.changes.assigned.acme.widgets.1", RedriveError::Subject),
            ("gitea.issues.>", RedriveError::Subject),
            ("gitea.issues.a.b.*.1.2", RedriveError::Subject),
            ("gitea.issues.a.b.c.+1.2", RedriveError::Subject),
            ("", RedriveError::Subject),
            ("gitea.issues.closed.other.widgets.1.2", RedriveError::OtherEvent),
        ];
        for (subject, error) in wrong_subjects {
            assert_eq!(redriven(subject, &json, None, "64"), Err(error(subject.into())));
        }
        assert_eq!(
            redriven("gitea.issues.a.b.c.1.63", garbage, None, "8"),
            Err(RedriveError::Partition(63, "8".parse().expect("a number")))
        );
        for (header, value, error) in [
            (STREAM, "OTHER", RedriveError::Stream("OTHER".into())),
            ("Other", "x", RedriveError::Header("Other".into())),
            ("nats-msg-id", "x", RedriveError::Header("nats-msg-id".into())),
        ] {
            assert_eq!(redriven(&subject, &json, Some((header, value)), "64"), Err(error));
        }
        assert_eq!(redriven(&subject, b"", None, "64"), Err(RedriveError::NoPayload("42".into())));
        let unmarked = redrive(&Headers::default(), json, 7, Partitions::DEFAULT);
        assert_eq!(unmarked.map(|_| ()), Err(RedriveError::Unmarked(ORIGINAL_SUBJECT)));
    }
}
