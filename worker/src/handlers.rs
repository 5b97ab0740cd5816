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

use crate::{
    context::Context,
    step::attempt::{Failure, Sent},
};

/// Handles `change`, in a span of its own. `after` is the sequence of the last message on the
/// change's subject.
pub(crate) async fn handle(
    context: &Context,
    session: &Session,
    change: &Change,
    after: u64,
) -> Result<Sent, Failure> {
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
    let handled = publish(context, session, change, after).instrument(span.clone()).await;
    if matches!(handled, Err(_) | Ok(Sent::Refused(_))) {
        span.record("otel.status_code", "ERROR");
        span.record("error.type", "failed");
    }
    handled
}

/// The handler of every kind of change: publishes it and waits for the broker's confirmation. A
/// repeated change has the same message id, so the broker stores it once.
async fn publish(
    context: &Context,
    session: &Session,
    change: &Change,
    after: u64,
) -> Result<Sent, Failure> {
    debug!(kind = %change.kind, added = ?change.added, removed = ?change.removed, "handling");
    let delivery_id = Uuid::try_parse(&change.cause.delivery_id).unwrap_or_default();
    let traceparent = trace::of_delivery(&Span::current(), delivery_id);
    let envelope = match Envelope::of_change(change, &context.source, &traceparent) {
        Ok(envelope) => envelope,
        Err(error) => return Ok(Sent::Refused(Box::new(error))),
    };
    match session.publish_after(envelope, names::CHANGES, after).await {
        Ok(ack) => {
            if !ack.duplicate {
                context.instruments.handled(change);
            }
            Ok(Sent::At(ack.sequence))
        }
        Err(error) => match Refusal::of(&error) {
            Refusal::NotLast => Ok(Sent::NotLast),
            refusal if refusal.is_for_good() => Ok(Sent::Refused(Box::new(error))),
            _ => Err(Failure::Away(Box::new(error))),
        },
    }
}
