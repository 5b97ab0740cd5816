//! One call of the handler.

use std::sync::Arc;

use tracing::{Instrument, Span, debug, info_span};

use crate::{Content, Failure, Handled, Message, Received, subscription::Subscription};

/// Calls the handler, unless the message was handled before.
pub(crate) async fn attempt<M: Content>(
    subscription: Arc<Subscription<M>>,
    received: Received<M>,
) -> Handled {
    let id = received.message.id.clone();
    if subscription.memory.seen(&id).await.map_err(Failure::Error)? {
        debug!(id, "it was handled before");
        return Ok(());
    }
    let span = span(&subscription.durable, &received);
    (subscription.handler)(received).instrument(span).await?;
    subscription.memory.keep(&id).await.map_err(Failure::Error)
}

/// The span of one attempt.
fn span<M: Content>(durable: &str, received: &Received<M>) -> Span {
    let Message { id, subject, traceparent, .. } = &received.message;
    let span = info_span!(
        "process",
        "otel.name" = format!("process {}", M::TEMPLATE),
        "otel.kind" = "consumer",
        "messaging.system" = "nats",
        "messaging.operation.name" = "process",
        "messaging.operation.type" = "process",
        "messaging.destination.name" = subject,
        "messaging.destination.template" = M::TEMPLATE,
        "messaging.message.id" = id,
        "messaging.consumer.group.name" = durable,
        "gitea.issue.ref" = received.issue_ref(),
        traceparent,
    );
    #[cfg(feature = "otel")]
    if let Some(parent) = traceparent.as_deref().and_then(|text| text.parse().ok()) {
        set_parent(&span, parent);
    }
    span
}

#[cfg(feature = "otel")]
fn set_parent(span: &Span, parent: contract::traceparent::Traceparent) {
    use opentelemetry::{
        Context,
        trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
    };
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    let origin = SpanContext::new(
        TraceId::from_bytes(parent.trace_id.to_be_bytes()),
        SpanId::from_bytes(parent.span_id.to_be_bytes()),
        if parent.sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED },
        true,
        TraceState::NONE,
    );
    // Without a layer for OpenTelemetry there is nothing to set.
    let _ = span.set_parent(Context::new().with_remote_span_context(origin));
}
