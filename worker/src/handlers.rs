//! What is done about a change: one small file with one function each.
//!
//! A handler may run again for the same change, after a crash or a failed
//! attempt, so what it does must bear repetition.

pub(crate) mod assigned;
pub(crate) mod closed;
pub(crate) mod reopened;
pub(crate) mod unassigned;

use async_nats::jetstream::{
    context::{PublishError, PublishErrorKind},
    message::PublishMessage,
};
use opentelemetry::trace::TraceId;
use shared::{broker::Session, change::Change, envelope::Envelope, streams, trace::Traceparent};
use tracing::Span;

use crate::{context::Context, outcome::Outcome};

/// What a handler can use.
pub(crate) struct HandlerContext<'a> {
    pub(crate) worker: &'a Context,
    pub(crate) session: &'a Session,
    pub(crate) trace_id: TraceId,
}

impl HandlerContext<'_> {
    /// Publishes a change and waits until the broker has it. The same change
    /// again has the same message id, and is stored once.
    pub(crate) async fn publish(&self, change: &Change) -> Outcome {
        let traceparent = Traceparent::of_span(&Span::current(), self.trace_id);
        let envelope = match Envelope::of_change(change, &self.worker.source, &traceparent) {
            Ok(envelope) => envelope,
            Err(error) => return Outcome::Permanent(Box::new(error)),
        };
        let message = PublishMessage::build()
            .payload(envelope.payload.into())
            .headers(envelope.headers)
            .expected_stream(streams::CHANGES);
        let sent = self.session.jetstream.send_publish(envelope.subject, message).await;
        let confirmed = match sent {
            Ok(ack) => ack.await,
            Err(error) => Err(error),
        };
        match confirmed {
            Ok(_) => Outcome::Done,
            Err(error) => failure(error),
        }
    }
}

/// A message that is too large stays too large; anything else may pass.
fn failure(error: PublishError) -> Outcome {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => Outcome::Permanent(Box::new(error)),
        _ => Outcome::Transient(Box::new(error)),
    }
}
