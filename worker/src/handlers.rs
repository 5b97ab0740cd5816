//! Handles a change: it is published, for agents and bots.
//!
//! A handler may run again for the same change, after a crash or a failed attempt. So a handler
//! must be idempotent.

use contract::{
    change::Change,
    envelope::{Envelope, MESSAGE_ID},
    names,
};
use service::{
    broker::{Session, refusal::Refusal},
    telemetry::trace::{self, TRACES_ONLY},
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
    let span = publish_span(change);
    let delivery_id = Uuid::try_parse(&change.cause.delivery_id).unwrap_or_default();
    // A subscriber continues the trace from the publish.
    let traceparent = span.in_scope(|| trace::of_delivery(&Span::current(), delivery_id));
    let envelope = match Envelope::of_change(change, &context.source, &traceparent) {
        Ok(envelope) => envelope,
        Err(error) => return Ok(Sent::Refused(Box::new(error))),
    };
    if trace::is_sampled(&span) {
        let destination = (trace::CHANGES_TEMPLATE, envelope.subject.clone());
        let id = envelope.headers.get(MESSAGE_ID).map(str::to_owned);
        trace::describe_message(&span, ("publish", "send"), destination, id);
    }
    let published = session.publish_after(envelope, names::CHANGES, after);
    let error = match published.instrument(span.clone()).await {
        Ok(ack) => {
            if !ack.duplicate {
                context.instruments.handled(change);
            }
            return Ok(Sent::At(ack.sequence));
        }
        Err(error) => error,
    };
    let refusal = Refusal::of(&error);
    if refusal == Refusal::NotLast {
        return Ok(Sent::NotLast);
    }
    span.record("otel.status_code", "ERROR");
    if refusal.is_for_good() {
        span.record("error.type", "refused");
        Ok(Sent::Refused(Box::new(error)))
    } else {
        span.record("error.type", "unavailable");
        Err(Failure::Away(Box::new(error)))
    }
}

/// The span of the publish of `change`. None where the delivery is not traced.
fn publish_span(change: &Change) -> Span {
    if !trace::is_sampled(&Span::current()) {
        return Span::none();
    }
    let span = info_span!(
        target: TRACES_ONLY,
        "publish gitea.changes.{kind}.{owner}.{repo}.{number}",
        otel.kind = "producer",
        otel.status_code = field::Empty,
        error.r#type = field::Empty,
    );
    let (cause, repository) = (&change.cause, &change.repository);
    let action = cause.action.as_str();
    trace::describe(&span, &cause.delivery_id, action, repository, change.issue.number);
    span
}
