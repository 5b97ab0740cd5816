//! The contract's envelopes and headers, as types of the NATS client.

use std::borrow::Cow;

use async_nats::{
    HeaderMap, HeaderName,
    jetstream::{context::PublishError, message::PublishMessage, publish::PublishAck},
};
use contract::envelope::{Envelope, Headers};

use super::Session;

impl Session {
    /// Publishes on `stream` and no other, and returns once the broker has confirmed the message.
    ///
    /// # Errors
    /// [`Refusal`](super::refusal::Refusal) classifies them.
    pub async fn publish(
        &self,
        envelope: Envelope,
        stream: &str,
    ) -> Result<PublishAck, PublishError> {
        let message = PublishMessage::build()
            .payload(envelope.payload.into())
            .headers(header_map(envelope.headers))
            .expected_stream(stream);
        self.jetstream.send_publish(envelope.subject, message).await?.await
    }
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
