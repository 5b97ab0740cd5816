//! A message of a stream, as it is read.

use async_nats::jetstream::message::StreamMessage;
use axum::body::Bytes;
use contract::{
    envelope::{Headers, MESSAGE_ID},
    timestamp::Timestamp,
};
use service::broker::message::headers;

/// A message of a stream.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) sequence: u64,
    /// When the stream took it, by the broker's clock.
    pub(crate) time: Timestamp,
    pub(crate) subject: String,
    pub(crate) headers: Headers,
    pub(crate) payload: Bytes,
}

impl Message {
    pub(super) fn of(message: StreamMessage) -> Self {
        let micros = message.time.unix_timestamp_nanos() / 1_000;
        Self {
            sequence: message.sequence,
            time: Timestamp::from_unix_micros(i64::try_from(micros).unwrap_or(0)),
            subject: message.subject.to_string(),
            headers: headers(Some(&message.headers)),
            payload: message.payload,
        }
    }

    /// The message id. Empty without one.
    pub(crate) fn id(&self) -> &str {
        self.headers.get(MESSAGE_ID).unwrap_or_default()
    }

    /// Whether it is the event of this delivery, as it came or published again.
    pub(crate) fn is_event_of(&self, delivery_id: &str) -> bool {
        let id = self.id();
        id.strip_prefix(delivery_id).is_some_and(|rest| rest.is_empty() || rest.starts_with('#'))
    }
}
