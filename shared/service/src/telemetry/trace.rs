//! One trace per delivery: the delivery's UUID is the trace id, so Gitea's
//! "Recent deliveries" page leads straight to the trace.
//!
//! The context of a trace travels in the journal and in message headers as a
//! W3C `traceparent`, whether or not this process exports traces.

use contract::{event::Repository, traceparent::Traceparent};
use opentelemetry::{
    Context, KeyValue,
    trace::{
        Link, SpanContext, SpanId, SpanKind, TraceContextExt, TraceFlags, TraceId, TraceState,
    },
};
use opentelemetry_sdk::trace::{
    IdGenerator, RandomIdGenerator, SamplingDecision, SamplingResult, ShouldSample,
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

/// Target of spans whose fields no log line needs. The log ignores these spans, since
/// keeping a span for one line costs more than everything else about that line.
pub const TRACES_ONLY: &str = "traces_only";

/// The context of `span`. None where this process exports no traces.
pub fn exported(span: &Span) -> Option<Traceparent> {
    let context = span.context();
    let context = context.span().span_context().clone();
    context.is_valid().then(|| Traceparent {
        trace_id: u128::from_be_bytes(context.trace_id().to_bytes()),
        span_id: u64::from_be_bytes(context.span_id().to_bytes()),
        sampled: context.is_sampled(),
    })
}

/// The context of `span`. Where this process exports no traces, it is a new context
/// for the delivery. The new context is marked as sampled, so that a reader that
/// exports traces still records its spans.
pub fn of_delivery(span: &Span, delivery_id: Uuid) -> Traceparent {
    exported(span).unwrap_or_else(|| Traceparent {
        trace_id: delivery_id.as_u128(),
        span_id: fastrand::u64(1..),
        sampled: true,
    })
}

/// A trace context as the target of a link.
pub fn span_context(parent: &Traceparent) -> SpanContext {
    let flags = if parent.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let (trace, span) = (TraceId::from(parent.trace_id), SpanId::from(parent.span_id));
    SpanContext::new(trace, span, flags, true, TraceState::default())
}

/// Makes `span` the root of the delivery's trace, whose id is the delivery's. Call it before the
/// span is entered, on a span created with `parent: None`.
pub fn make_root(span: &Span, delivery_id: Uuid) {
    let forced = ForcedTraceId(TraceId::from(delivery_id.as_u128()));
    let _guard = Context::new().with_value(forced).attach();
    // Asking for the context builds the span, which takes its id from the generator now.
    let _ = span.context();
}

/// Makes `span` a child of `parent` in another process, or earlier in this one.
/// Call it before the span is entered, on a span created with `parent: None`.
pub fn make_child(span: &Span, parent: &Traceparent) {
    // Fails where no traces are exported, which is not an error.
    let _ = span.set_parent(Context::new().with_remote_span_context(span_context(parent)));
}

/// Sets the attributes that every span of a delivery has. For spans that do not
/// have them as fields already.
pub fn describe(
    span: &Span,
    delivery_id: &str,
    action: &str,
    repository: &Repository,
    number: u64,
) {
    if !is_sampled(span) {
        return;
    }
    for (name, value) in [
        ("gitea.delivery.id", delivery_id.to_owned()),
        ("gitea.event", "issues".to_owned()),
        ("gitea.action", action.to_owned()),
        ("gitea.issue.ref", format!("{}#{number}", repository.full_name())),
    ] {
        span.set_attribute(name, value);
    }
    describe_repository(span, repository);
}

/// Sets the attributes of the repository, under the names of the semantic conventions.
pub fn describe_repository(span: &Span, repository: &Repository) {
    if !is_sampled(span) {
        return;
    }
    for (name, value) in [
        ("vcs.provider.name", "gitea"),
        ("vcs.owner.name", &repository.owner),
        ("vcs.repository.name", &repository.name),
    ] {
        span.set_attribute(name, value.to_owned());
    }
}

/// Sets the attributes of a message of the events stream, and the operation's name and type. Call
/// it only if [`is_sampled`], since its arguments are costly.
pub fn describe_message(
    span: &Span,
    (name, kind): (&'static str, &'static str),
    subject: String,
    message_id: Option<String>,
) {
    for (name, value) in [
        ("messaging.system", "nats"),
        ("messaging.operation.name", name),
        ("messaging.operation.type", kind),
        (
            "messaging.destination.template",
            "gitea.issues.{action}.{owner}.{repo}.{number}.{partition}",
        ),
    ] {
        span.set_attribute(name, value);
    }
    span.set_attribute("messaging.destination.name", subject);
    if let Some(id) = message_id {
        span.set_attribute("messaging.message.id", id);
    }
}

/// Whether the span is exported. This check costs less than setting attributes.
pub fn is_sampled(span: &Span) -> bool {
    exported(span).is_some_and(|context| context.sampled)
}

struct ForcedTraceId(TraceId);

/// Uses the trace id that [`make_root`] sets, else a random one.
#[derive(Debug, Default)]
pub struct DeliveryIdGenerator(RandomIdGenerator);

impl IdGenerator for DeliveryIdGenerator {
    fn new_trace_id(&self) -> TraceId {
        Context::map_current(|context| context.get::<ForcedTraceId>().map(|forced| forced.0))
            .unwrap_or_else(|| self.0.new_trace_id())
    }

    fn new_span_id(&self) -> SpanId {
        self.0.new_span_id()
    }
}

/// Samples a share of the traces by the low 56 bits of the id, as W3C's random
/// flag defines it. The SDK's ratio sampler uses bits that are fixed in a UUID
/// v4, and so samples all or nothing.
#[derive(Clone, Debug)]
pub struct RatioSampler {
    below: u64,
}

impl RatioSampler {
    /// `ratio` from 0 (none) to 1 (all).
    pub fn new(ratio: f64) -> Self {
        const ALL: f64 = (1_u64 << 56) as f64;
        Self { below: (ratio.clamp(0.0, 1.0) * ALL) as u64 }
    }
}

impl ShouldSample for RatioSampler {
    fn should_sample(
        &self,
        _parent: Option<&Context>,
        trace_id: TraceId,
        _name: &str,
        _kind: &SpanKind,
        _attributes: &[KeyValue],
        _links: &[Link],
    ) -> SamplingResult {
        let low_56_bits = u128::from_be_bytes(trace_id.to_bytes()) as u64 & ((1 << 56) - 1);
        let decision = if low_56_bits < self.below {
            SamplingDecision::RecordAndSample
        } else {
            SamplingDecision::Drop
        };
        SamplingResult { decision, attributes: Vec::new(), trace_state: TraceState::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_exporter_the_context_is_still_the_deliverys() {
        let id = Uuid::new_v4();
        let parent = of_delivery(&Span::none(), id);
        assert_eq!((parent.trace_id, parent.sampled), (id.as_u128(), true));
        assert_ne!(parent.span_id, 0);
    }

    #[test]
    fn the_sampler_takes_its_share_of_uuids() {
        for (ratio, low, high) in
            [(0.0, 0, 0), (0.25, 400, 600), (0.5, 850, 1150), (1.0, 2000, 2000)]
        {
            let sampler = RatioSampler::new(ratio);
            let sampled = (0..2000)
                .filter(|_| {
                    let id = TraceId::from(Uuid::new_v4().as_u128());
                    let result = sampler.should_sample(None, id, "", &SpanKind::Server, &[], &[]);
                    result.decision == SamplingDecision::RecordAndSample
                })
                .count();
            assert!((low..=high).contains(&sampled), "{ratio}: {sampled}");
        }
    }
}
