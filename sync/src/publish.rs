//! Publishes an answer of Gitea as an event, on the stream and the partition of the webhooks' events.

use async_nats::jetstream::context::PublishError;
use contract::{
    envelope::{Envelope, EnvelopeError, MESSAGE_ID},
    event::IssueEvent,
    names::EVENTS,
};
use service::{
    broker::{Session, refusal::Refusal, streams::StreamsError},
    telemetry::trace,
};
use thiserror::Error;
use tracing::{Instrument, Span, field, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

use crate::context::Context;

/// Bytes that stay free in a message, for headers and for what the worker adds.
const HEADROOM: usize = 8 * 1024;

/// Why an event could not be published.
#[derive(Debug, Error)]
pub enum EventError {
    /// The stream of events cannot be published to now.
    #[error(transparent)]
    Streams(#[from] StreamsError),
    /// It cannot be written.
    #[error("encode an event")]
    Encode(#[from] EnvelopeError),
    /// The broker did not take it.
    #[error("publish an event")]
    Publish(#[from] PublishError),
}

/// Publishes `event` and waits for the broker's confirmation. The event of a doubt stays in the trace
/// of the delivery that raised it; any other has a trace of its own, whose id is the event's. Returns
/// whether the stream did not have it before.
pub(crate) async fn publish(
    context: &Context,
    session: &Session,
    mut event: IssueEvent,
    in_trace: bool,
) -> Result<bool, EventError> {
    let id = Uuid::try_parse(&event.delivery.id).unwrap_or_default();
    let span = span(&event, in_trace.then(Span::current));
    if !in_trace {
        trace::make_root(&span, id);
        if let Some(asker) = trace::exported(&Span::current()) {
            span.add_link(trace::span_context(&asker));
        }
    }
    let sent = async {
        let partitions = context.partitions(session).await?;
        let traceparent = trace::of_delivery(&Span::current(), id);
        let largest = session.max_payload().saturating_sub(HEADROOM);
        let envelope = |event: &IssueEvent| {
            Envelope::of_event(event, &context.source, &traceparent, partitions)
        };
        let mut message = envelope(&event)?;
        if message.payload.len() > largest {
            event.cut_to(largest);
            message = envelope(&event)?;
        }
        let span = Span::current();
        if trace::is_sampled(&span) {
            let destination = (trace::EVENTS_TEMPLATE, message.subject.clone());
            let id = message.headers.get(MESSAGE_ID).map(str::to_owned);
            trace::describe_message(&span, ("publish", "send"), destination, id);
        }
        Ok(!session.publish(message, EVENTS).await?.duplicate)
    };
    let sent: Result<bool, EventError> = sent.instrument(span.clone()).await;
    if let Err(error) = &sent {
        span.record("otel.status_code", "ERROR");
        if let EventError::Publish(error) = error
            && Refusal::of(error) == Refusal::PrepareAgain
        {
            context.look_again().await;
        }
    }
    sent
}

fn span(event: &IssueEvent, parent: Option<Span>) -> Span {
    let parent = parent.and_then(|parent| parent.id());
    let span = info_span!(
        target: trace::TRACES_ONLY,
        parent: parent,
        "publish",
        otel.name = format!("publish {}", trace::EVENTS_TEMPLATE),
        otel.kind = "producer",
        otel.status_code = field::Empty,
    );
    let (delivery, number) = (&event.delivery.id, event.issue.number);
    trace::describe(&span, delivery, event.action.as_str(), &event.repository, number);
    span
}
