//! Handles a change: it is published, for agents and bots.
//!
//! A handler may run again for the same change, after a crash or a failed attempt. So a handler
//! must be idempotent.

use contract::{change::Change, envelope::Envelope, names};
use service::{
    broker::{Session, refusal::Refusal},
    telemetry::trace,
};
use tracing::{Instrument, Span, debug, field, info_span};
use uuid::Uuid;

use crate::{context::Context, step::outcome::Outcome};

/// Resources of a handler.
pub(crate) struct HandlerContext<'a> {
    pub(crate) worker: &'a Context,
    pub(crate) session: &'a Session,
    pub(crate) delivery_id: Uuid,
}

/// Handles `changes` in order. Returns how many were handled, and the outcome of the first failure
/// if there was one.
pub(crate) async fn handle_all(
    context: &HandlerContext<'_>,
    changes: &[Change],
) -> (usize, Outcome) {
    for (handled, change) in changes.iter().enumerate() {
        let span = info_span!(
            "handle",
            otel.name = format!("handle {}", change.kind),
            otel.kind = "internal",
            otel.status_code = field::Empty,
            error.r#type = field::Empty
        );
        let (cause, repository) = (&change.cause, &change.repository);
        let action = cause.action.as_str();
        trace::describe(&span, &cause.delivery_id, action, repository, change.issue.number);
        match handle(context, change).instrument(span.clone()).await {
            Outcome::Done => context.worker.instruments.handled(change),
            failure => {
                span.record("otel.status_code", "ERROR");
                span.record("error.type", "failed");
                return (handled, failure);
            }
        }
    }
    (changes.len(), Outcome::Done)
}

/// The handler of every kind of change. A kind that needs more gets a match arm here.
async fn handle(context: &HandlerContext<'_>, change: &Change) -> Outcome {
    debug!(kind = %change.kind, added = ?change.added, removed = ?change.removed, "handling");
    publish(context, change).await
}

/// Publishes a change and waits for the broker's confirmation. A repeated change has the same
/// message id, so the broker stores it once.
async fn publish(context: &HandlerContext<'_>, change: &Change) -> Outcome {
    let traceparent = trace::of_delivery(&Span::current(), context.delivery_id);
    let envelope = match Envelope::of_change(change, &context.worker.source, &traceparent) {
        Ok(envelope) => envelope,
        Err(error) => return Outcome::Permanent(Box::new(error)),
    };
    match context.session.publish(envelope, names::CHANGES).await {
        Ok(_) => Outcome::Done,
        Err(error) if Refusal::of(&error).is_for_good() => Outcome::Permanent(Box::new(error)),
        Err(error) => Outcome::Transient(Box::new(error)),
    }
}
