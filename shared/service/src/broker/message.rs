//! The contract's envelopes and headers, as types of the NATS client.

use std::borrow::Cow;

use async_nats::{
    HeaderMap, HeaderName,
    jetstream::{context::PublishError, message::PublishMessage, publish::PublishAck},
};
use contract::envelope::{Envelope, Headers};

use super::{Session, refusal::Refusal};

impl Session {
    /// Publishes on `stream` and no other, and returns once the broker has confirmed the message.
    ///
    /// # Errors
    /// [`Refusal`] classifies them.
    pub async fn publish(
        &self,
        envelope: Envelope,
        stream: &str,
    ) -> Result<PublishAck, PublishError> {
        let (subject, message) = message(envelope, stream);
        self.send(subject, message).await
    }

    /// Like [`Session::publish`], but only if `last` is the sequence of the last message on the
    /// subject, or 0 and there is none. Otherwise the error is
    /// [`Refusal::NotLast`](super::refusal::Refusal::NotLast), unless the broker still remembers the
    /// message's id.
    ///
    /// # Errors
    /// [`Refusal`](super::refusal::Refusal) classifies them.
    pub async fn publish_after(
        &self,
        envelope: Envelope,
        stream: &str,
        last: u64,
    ) -> Result<PublishAck, PublishError> {
        let (subject, message) = message(envelope, stream);
        self.send(subject, message.expected_last_subject_sequence(last)).await
    }

    async fn send(
        &self,
        subject: String,
        message: PublishMessage,
    ) -> Result<PublishAck, PublishError> {
        let published = async { self.jetstream.send_publish(subject, message).await?.await };
        published.await.inspect_err(|error| {
            if Refusal::of(error) == Refusal::PrepareAgain {
                self.suspect();
            }
        })
    }
}

fn message(envelope: Envelope, stream: &str) -> (String, PublishMessage) {
    let message = PublishMessage::build()
        .payload(envelope.payload.into())
        .headers(header_map(envelope.headers))
        .expected_stream(stream);
    (envelope.subject, message)
}

fn header_map(headers: Headers) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers.0 {
        match name {
            Cow::Borrowed(name) => map.append(HeaderName::from_static(name), value),
            Cow::Owned(name) => map.append(name, value),
        }
    }
    map
}

/// Headers of a message that was read.
pub fn headers(map: Option<&HeaderMap>) -> Headers {
    let pairs = map.into_iter().flat_map(HeaderMap::iter);
    Headers(
        pairs
            .flat_map(|(name, values)| {
                values.iter().map(|value| (name.to_string().into(), value.to_string()))
            })
            .collect(),
    )
}
