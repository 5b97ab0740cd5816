//! A span as bytes.

use std::borrow::Cow;

use opentelemetry::{
    KeyValue,
    trace::{SpanId, SpanKind, Status, TraceId},
};
use opentelemetry_sdk::trace::SpanData;
use serde::{Deserialize, Serialize};

use super::StoredSpan;

/// Longest attribute value and longest error that are kept, in bytes.
const MAX_VALUE: usize = 1024;
/// Longest name, and longest key of an attribute.
const MAX_NAME: usize = 128;
/// Attributes that are kept of a span.
const MAX_ATTRIBUTES: usize = 32;
/// Links that are kept of a span.
const MAX_LINKS: usize = 8;

/// Texts that many spans have. Each takes a byte in place of its length. A text that is not here is
/// kept as it is.
const FREQUENT: [&str; 46] = [
    "POST /webhook/gitea",
    "journal",
    "publish gitea.issues.{action}.{owner}.{repo}.{number}.{partition}",
    "process gitea.issues.{action}.{owner}.{repo}.{number}.{partition}",
    "publish gitea.changes.{kind}.{owner}.{repo}.{number}",
    "gitea.issues.{action}.{owner}.{repo}.{number}.{partition}",
    "gitea.changes.{kind}.{owner}.{repo}.{number}",
    "handle assigned",
    "handle unassigned",
    "handle closed",
    "handle reopened",
    "handle deleted",
    "ask Gitea",
    "http.request.method",
    "http.response.status_code",
    "http.route",
    "url.path",
    "/webhook/gitea",
    "POST",
    "GET",
    "200",
    "gitea.delivery.id",
    "gitea.event",
    "gitea.action",
    "gitea.issue.ref",
    "gitea.repository",
    "trace_id",
    "issues",
    "assigned",
    "unassigned",
    "edited",
    "vcs.provider.name",
    "vcs.owner.name",
    "vcs.repository.name",
    "gitea",
    "messaging.system",
    "messaging.operation.name",
    "messaging.operation.type",
    "messaging.destination.name",
    "messaging.destination.template",
    "messaging.message.id",
    "messaging.consumer.group.name",
    "nats",
    "publish",
    "process",
    "send",
];

#[derive(Serialize, Deserialize)]
enum Text<'a> {
    Frequent(u8),
    #[serde(borrow)]
    Other(Cow<'a, str>),
}

impl<'a> Text<'a> {
    fn new(text: Cow<'a, str>, max: usize) -> Self {
        match FREQUENT.iter().position(|frequent| *frequent == text) {
            Some(at) => Self::Frequent(at as u8),
            None => Self::Other(cut(text, max)),
        }
    }
}

impl From<Text<'_>> for String {
    fn from(text: Text<'_>) -> Self {
        match text {
            Text::Frequent(at) => {
                FREQUENT.get(usize::from(at)).copied().unwrap_or_default().to_owned()
            }
            Text::Other(text) => text.into_owned(),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Packed<'a> {
    span_id: [u8; 8],
    /// Zeros at a root.
    parent_id: [u8; 8],
    kind: u8,
    #[serde(borrow)]
    name: Text<'a>,
    started_at: u64,
    /// Nanoseconds, less than 0 where the clock was set back.
    took: i64,
    error: Option<Cow<'a, str>>,
    attributes: Vec<(Text<'a>, Text<'a>)>,
    links: Vec<([u8; 16], [u8; 8])>,
}

/// The span as bytes. None for one that cannot be written, which does not happen.
pub(super) fn pack(span: &SpanData) -> Option<Vec<u8>> {
    let (started_at, ended_at) = (nanos(span.start_time), nanos(span.end_time));
    let attributes = span.attributes.iter().take(MAX_ATTRIBUTES).map(|attribute| {
        let key = Text::new(Cow::Borrowed(attribute.key.as_str()), MAX_NAME);
        (key, Text::new(attribute.value.as_str(), MAX_VALUE))
    });
    let packed = Packed {
        span_id: span.span_context.span_id().to_bytes(),
        parent_id: span.parent_span_id.to_bytes(),
        kind: match span.span_kind {
            SpanKind::Internal => 0,
            SpanKind::Server => 1,
            SpanKind::Client => 2,
            SpanKind::Producer => 3,
            SpanKind::Consumer => 4,
        },
        name: Text::new(Cow::Borrowed(&span.name), MAX_NAME),
        started_at,
        took: ended_at.wrapping_sub(started_at) as i64,
        error: error(span).map(|error| cut(error, MAX_VALUE)),
        attributes: attributes.collect(),
        links: span
            .links
            .iter()
            .take(MAX_LINKS)
            .map(|link| &link.span_context)
            .map(|context| (context.trace_id().to_bytes(), context.span_id().to_bytes()))
            .collect(),
    };
    postcard::to_allocvec(&packed).ok()
}

/// The spans in `bytes`, which hold one after the other.
pub(super) fn unpack(mut bytes: &[u8], trace_id: TraceId, service: &str) -> Vec<StoredSpan> {
    let mut spans = Vec::new();
    while let Ok((packed, rest)) = postcard::take_from_bytes::<Packed<'_>>(bytes) {
        bytes = rest;
        let parent_id = SpanId::from_bytes(packed.parent_id);
        spans.push(StoredSpan {
            trace_id: trace_id.to_string(),
            span_id: SpanId::from_bytes(packed.span_id).to_string(),
            parent_id: (parent_id != SpanId::INVALID).then(|| parent_id.to_string()),
            name: packed.name.into(),
            kind: match packed.kind {
                1 => "server",
                2 => "client",
                3 => "producer",
                4 => "consumer",
                _ => "internal",
            }
            .into(),
            started_at: packed.started_at,
            ended_at: packed.started_at.wrapping_add(packed.took as u64),
            error: packed.error.map(Cow::into_owned),
            service: service.to_owned(),
            attributes: packed
                .attributes
                .into_iter()
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
            links: packed
                .links
                .into_iter()
                .map(|(trace, span)| {
                    (TraceId::from_bytes(trace).to_string(), SpanId::from_bytes(span).to_string())
                })
                .collect(),
        });
    }
    spans
}

/// Why the span failed: the description of its status, else the last error that was logged within
/// it, else its `error.type`.
fn error(span: &SpanData) -> Option<Cow<'_, str>> {
    let Status::Error { description } = &span.status else { return None };
    if !description.is_empty() {
        return Some(Cow::Borrowed(description));
    }
    let of = |attributes: &[KeyValue], key| {
        attributes
            .iter()
            .find(|attribute| attribute.key.as_str() == key)
            .map(|attribute| Cow::Owned(attribute.value.as_str().into_owned()))
    };
    let logged = span.events.iter().rev().find_map(|event| of(&event.attributes, "error"));
    logged.or_else(|| of(&span.attributes, "error.type")).or(Some(Cow::Borrowed("")))
}

fn nanos(time: std::time::SystemTime) -> u64 {
    let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// At most `max` bytes of `text`, and a sign where it is cut.
fn cut(text: Cow<'_, str>, max: usize) -> Cow<'_, str> {
    const SIGN: &str = "…";
    if text.len() <= max {
        return text;
    }
    let end = (0..=max - SIGN.len()).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    Cow::Owned(format!("{}{SIGN}", &text[..end]))
}
