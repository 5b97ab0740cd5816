//! Events and changes as NATS messages: JSON payload, CloudEvents attributes as
//! `ce-*` headers (the NATS binding's binary mode), trace context, message id.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::{
    change::{CHANGE_SCHEMA, CHANGE_VERSION, Change},
    event::{EVENT_SCHEMA, EVENT_VERSION, IssueEvent},
    partitions::Partitions,
    subject::{self, EventSubject},
    traceparent::{TRACEPARENT, Traceparent},
};

/// Header of the message id, by which a stream drops duplicates.
pub const MESSAGE_ID: &str = "Nats-Msg-Id";

/// Media type of each payload.
pub const CONTENT_TYPE: &str = "application/json";

/// Names of all headers of an event or a change, in their order.
///
/// The attribute `datacontenttype` stands there twice: `ce-datacontenttype` is its name in the NATS
/// binding, `content-type` its name in the HTTP binding, which many readers of NATS messages expect.
pub const HEADERS: [&str; 11] = [
    MESSAGE_ID,
    "ce-specversion",
    "ce-id",
    "ce-source",
    "ce-type",
    "ce-subject",
    "ce-time",
    "ce-datacontenttype",
    "ce-dataschema",
    "content-type",
    TRACEPARENT,
];

/// Characters that CloudEvents requires to be escaped in a header, beside all that is not ASCII:
/// <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/nats-protocol-binding.md>,
/// section 3.1.3.2.
const HEADER_VALUE: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// Headers of a message, in order. Names are case-sensitive, as in NATS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(Cow<'static, str>, String)>);

impl Headers {
    /// The first value under `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Adds a value.
    pub fn push(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    /// The trace context, if there is a valid one.
    pub fn traceparent(&self) -> Option<Traceparent> {
        self.get(TRACEPARENT)?.parse().ok()
    }

    /// Size of the headers in a NATS message, in bytes: version line, `name: value` lines,
    /// empty line.
    pub fn wire_bytes(&self) -> usize {
        let lines = self.0.iter().map(|(name, value)| name.len() + value.len() + 4);
        "NATS/1.0\r\n\r\n".len() + lines.sum::<usize>()
    }
}

/// A message that is ready to be published.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// Subject to publish on.
    pub subject: String,
    /// Message id, trace context and CloudEvents attributes.
    pub headers: Headers,
    /// Payload, in JSON.
    pub payload: Vec<u8>,
}

/// Why a payload cannot be read, or a message cannot be built.
#[derive(Debug, Error)]
pub enum EnvelopeError {
    /// The payload is not JSON of the expected shape.
    ///
    /// The error reports the position only. serde's own text is not a cause of it, since that
    /// text would show values of the payload.
    #[error("the payload is not of the expected shape (line {}, column {})", .0.line(), .0.column())]
    Json(serde_json::Error),
    /// A newer program wrote the payload.
    #[error("the payload has version {found}, this program reads up to {known}")]
    Version {
        /// Version in the payload.
        found: u32,
        /// Newest version that this program reads.
        known: u32,
    },
    /// The delivery's id contains a line break.
    #[error("the delivery's id cannot stand in a header")]
    Id,
}

impl From<serde_json::Error> for EnvelopeError {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(error)
    }
}

impl Envelope {
    /// Wraps an event. `source` is Gitea's URL; `partitions` is what there is where it goes.
    pub fn of_event(
        event: &IssueEvent,
        source: &str,
        traceparent: &Traceparent,
        partitions: Partitions,
    ) -> Result<Self, EnvelopeError> {
        let attributes = CloudEvent {
            id: &event.delivery.id,
            source,
            kind: format!("io.gitea.issue.{}", event.action),
            subject: event.issue_ref(),
            time: event.delivery.received_at.to_string(),
            schema: EVENT_SCHEMA,
        };
        attributes.envelope(EventSubject::of(event, partitions).to_string(), event, traceparent)
    }

    /// Wraps a change. `source` is Gitea's URL.
    pub fn of_change(
        change: &Change,
        source: &str,
        traceparent: &Traceparent,
    ) -> Result<Self, EnvelopeError> {
        let attributes = CloudEvent {
            id: &change.message_id(),
            source,
            kind: format!("io.gitea.issue.change.{}", change.kind),
            subject: format!("{}#{}", change.repository.full_name(), change.issue.number),
            time: change.cause.received_at.to_string(),
            schema: CHANGE_SCHEMA,
        };
        attributes.envelope(subject::of_change(change), change, traceparent)
    }
}

/// Attributes of a CloudEvent, <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md>.
struct CloudEvent<'a> {
    id: &'a str,
    source: &'a str,
    kind: String,
    subject: String,
    time: String,
    schema: &'static str,
}

impl CloudEvent<'_> {
    fn envelope(
        self,
        subject: String,
        payload: &impl Serialize,
        traceparent: &Traceparent,
    ) -> Result<Envelope, EnvelopeError> {
        // Any client that may publish chooses the id. A line break in it would end the header.
        if self.id.contains(['\r', '\n']) {
            return Err(EnvelopeError::Id);
        }
        let escaped = |value| utf8_percent_encode(value, HEADER_VALUE).to_string();
        let values = [
            self.id.to_owned(),
            "1.0".into(),
            escaped(self.id),
            escaped(self.source),
            escaped(&self.kind),
            escaped(&self.subject),
            self.time,
            CONTENT_TYPE.into(),
            escaped(self.schema),
            CONTENT_TYPE.into(),
            traceparent.to_string(),
        ];
        let headers = Headers(HEADERS.map(Cow::Borrowed).into_iter().zip(values).collect());
        Ok(Envelope { subject, headers, payload: serde_json::to_vec(payload)? })
    }
}

/// Reads an event's payload.
pub fn read_event(payload: &[u8]) -> Result<IssueEvent, EnvelopeError> {
    read(payload, EVENT_VERSION, |event: &IssueEvent| event.version)
}

/// Reads a change's payload.
pub fn read_change(payload: &[u8]) -> Result<Change, EnvelopeError> {
    read(payload, CHANGE_VERSION, |change: &Change| change.version)
}

fn read<T: DeserializeOwned>(
    payload: &[u8],
    known: u32,
    version: impl Fn(&T) -> u32,
) -> Result<T, EnvelopeError> {
    let value: T = serde_json::from_slice(payload)?;
    match version(&value) {
        found if found > known => Err(EnvelopeError::Version { found, known }),
        _ => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{change::ChangeKind, event};

    const PARENT: &str = "00-b60f8ed36a1a4e58b31e0b00968f94cb-00f067aa0ba902b7-01";

    #[test]
    fn an_event_reads_back_and_its_headers_are_cloud_events() {
        let mut event = event::example();
        event.repository.owner = "a b\r\n漢".into();
        let parent = PARENT.parse().expect("traceparent");
        let envelope =
            Envelope::of_event(&event, "http://localhost:3000", &parent, Partitions::DEFAULT)
                .expect("envelope");
        let header = |name: &str| envelope.headers.get(name).expect(name).to_string();
        assert_eq!(header("Nats-Msg-Id"), event.delivery.id);
        assert_eq!(header("ce-id"), event.delivery.id);
        assert_eq!(header("ce-type"), "io.gitea.issue.assigned");
        assert_eq!(header("ce-source"), "http://localhost:3000");
        assert_eq!(header("ce-subject"), "a%20b%0D%0A%E6%BC%A2/widgets#1");
        assert_eq!(envelope.headers.traceparent(), Some(parent));
        assert_eq!(read_event(&envelope.payload).expect("own payload"), event);
    }

    /// Decodes a header as the NATS binding says.
    fn decoded(value: &str) -> String {
        percent_encoding::percent_decode_str(value).decode_utf8().expect("UTF-8").into_owned()
    }

    /// Section 3.1.3.2 of the NATS binding, with its example.
    #[test]
    fn header_values_are_escaped_as_cloud_events_says() {
        let parent = PARENT.parse().expect("traceparent");
        for (owner, escaped) in [
            ("Euro € 😀", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
            ("a b", "a%20b"),
            ("\"", "%22"),
            ("100%", "100%25"),
            ("%20", "%2520"),
            ("\u{0}\r\n\t\u{1f}\u{7f}", "%00%0D%0A%09%1F%7F"),
            ("\u{80}\u{9f}\u{a0}", "%C2%80%C2%9F%C2%A0"),
            ("!#$&'()*+,-.:;<=>?@[\\]^_`{|}~", "!#$&'()*+,-.:;<=>?@[\\]^_`{|}~"),
        ] {
            let mut event = event::example();
            event.repository.owner = owner.into();
            let source = format!("http://localhost/{owner}");
            let envelope = Envelope::of_event(&event, &source, &parent, Partitions::DEFAULT);
            let headers = envelope.expect("envelope").headers;
            assert_eq!(headers.get("ce-subject"), Some(&*format!("{escaped}/widgets#1")));
            assert_eq!(headers.get("ce-source"), Some(&*format!("http://localhost/{escaped}")));
            assert_eq!(decoded(headers.get("ce-source").expect("source")), source);
            for (name, value) in &headers.0 {
                assert!(value.bytes().all(|b| b.is_ascii_graphic()), "{name}: {value:?}");
            }
        }
    }

    /// CloudEvents 1.0.2, "Context attributes", and section 3.1.3.1 of the NATS binding.
    #[test]
    fn attributes_are_what_cloud_events_requires() {
        let parent = PARENT.parse().expect("traceparent");
        let event = event::example();
        let change = Change::from_event(ChangeKind::Closed, &event);
        let source = "http://localhost:3000";
        let of_event = Envelope::of_event(&event, source, &parent, Partitions::DEFAULT);
        for (envelope, schema, kind) in [
            (of_event, EVENT_SCHEMA, "io.gitea.issue.assigned"),
            (
                Envelope::of_change(&change, source, &parent),
                CHANGE_SCHEMA,
                "io.gitea.issue.change.closed",
            ),
        ] {
            let headers = envelope.expect("envelope").headers;
            assert_eq!(headers.0.len(), HEADERS.len());
            for (name, value) in [
                ("ce-specversion", "1.0"),
                ("ce-id", headers.get(MESSAGE_ID).expect("id")),
                ("ce-source", source),
                ("ce-type", kind),
                ("ce-subject", "acme/widgets#1"),
                ("ce-time", "2026-11-23T23:45:02.125Z"),
                ("ce-datacontenttype", CONTENT_TYPE),
                ("ce-dataschema", schema),
                ("content-type", CONTENT_TYPE),
                ("traceparent", PARENT),
            ] {
                assert_eq!(headers.get(name), Some(value), "{name}");
            }
            // An attribute's name has lower-case letters and digits alone.
            let attributes = HEADERS.iter().filter_map(|name| name.strip_prefix("ce-"));
            for name in attributes {
                assert!(
                    name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn a_change_reads_back() {
        let change = Change::from_event(ChangeKind::Closed, &event::example());
        let parent = PARENT.parse().expect("traceparent");
        let envelope =
            Envelope::of_change(&change, "http://localhost:3000", &parent).expect("envelope");
        assert_eq!(envelope.headers.get("Nats-Msg-Id"), Some(&*change.message_id()));
        assert_eq!(read_change(&envelope.payload).expect("own payload"), change);
    }

    #[test]
    fn a_newer_version_and_nonsense_are_refused() {
        let mut event = event::example();
        event.version = EVENT_VERSION + 1;
        let json = serde_json::to_vec(&event).expect("json");
        assert!(matches!(read_event(&json), Err(EnvelopeError::Version { found: 2, known: 1 })));
        assert!(matches!(read_event(b"{}"), Err(EnvelopeError::Json(_))));
        assert!(Headers::default().traceparent().is_none());
    }

    #[test]
    fn an_id_with_a_line_break_is_refused() {
        let parent = PARENT.parse().expect("traceparent");
        for id in ["\r", "a\nNats-Expected-Stream: x"] {
            let mut event = event::example();
            event.delivery.id = id.into();
            let change = Change::from_event(ChangeKind::Closed, &event);
            let refused = [
                Envelope::of_event(&event, "http://localhost:3000", &parent, Partitions::DEFAULT),
                Envelope::of_change(&change, "http://localhost:3000", &parent),
            ];
            assert!(refused.iter().all(|r| matches!(r, Err(EnvelopeError::Id))), "{id:?}");
        }
    }
}
