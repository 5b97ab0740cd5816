//! One trace per delivery: the delivery's UUID is the trace id, so Gitea's
//! "Recent deliveries" page leads straight to the trace.
//!
//! The context of a trace travels in the journal and in message headers as a
//! W3C `traceparent`, whether or not this process records spans.

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock},
    time::{Instant, SystemTime},
};

use contract::{event::Repository, traceparent::Traceparent};
use opentelemetry::{
    Context, KeyValue, global,
    trace::{
        Link, Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags,
        TraceId, TraceState, Tracer,
    },
};
use opentelemetry_sdk::trace::{
    IdGenerator, RandomIdGenerator, SamplingDecision, SamplingResult, ShouldSample,
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

use super::budget::Budget;

/// Name of the tracer, and so of the instrumentation scope.
pub(super) const SCOPE: &str = "coordinator";

/// What of the work is traced where only the span store wants spans. Unset where spans are exported,
/// since the ratio decides there, and where no spans are recorded at all. A process has one, as it
/// has one subscriber.
static STORE_ONLY: OnceLock<StoreOnly> = OnceLock::new();

/// What is traced where only the span store wants spans.
#[derive(Debug)]
pub(super) struct StoreOnly {
    /// Deliveries that are traced from their beginning.
    pub(super) deliveries: Arc<Budget>,
    /// Failed spans of others.
    pub(super) failures: Budget,
}

/// Sets what is traced. A process does so once.
pub(super) fn limit_to(store_only: StoreOnly) {
    let _ = STORE_ONLY.set(store_only);
}

/// Subjects of events as the semantic conventions name them.
pub const EVENTS_TEMPLATE: &str = "gitea.issues.{action}.{owner}.{repo}.{number}.{partition}";
/// Subjects of changes as the semantic conventions name them.
pub const CHANGES_TEMPLATE: &str = "gitea.changes.{kind}.{owner}.{repo}.{number}";

/// Target of spans whose fields no log line needs. The log ignores these spans, since
/// keeping a span for one line costs more than everything else about that line.
pub const TRACES_ONLY: &str = "traces_only";

/// Whether to trace a delivery that came in just now. A span costs more than most of a delivery's
/// way, so where only the span store wants spans a number of deliveries a second is traced. The
/// others get no span, here or in the processes after this one.
pub fn takes_delivery() -> bool {
    STORE_ONLY.get().is_none_or(|limits| limits.deliveries.take())
}

/// Takes back that a delivery was [taken](takes_delivery) at `then`, since the request was none. So a
/// flood of requests without a good signature leaves real deliveries their traces.
pub fn was_no_delivery(then: Instant) {
    if let Some(limits) = STORE_ONLY.get() {
        limits.deliveries.give_back(then);
    }
}

/// The context of `span`. None where this process records no spans.
pub fn exported(span: &Span) -> Option<Traceparent> {
    let context = span.context();
    let context = context.span().span_context().clone();
    context.is_valid().then(|| Traceparent {
        trace_id: u128::from_be_bytes(context.trace_id().to_bytes()),
        span_id: u64::from_be_bytes(context.span_id().to_bytes()),
        sampled: context.is_sampled(),
    })
}

/// The context of `span`. Where this process records no spans, it is a new context
/// for the delivery. The new context is marked as sampled, so that a reader that
/// exports traces still records its spans. It is not where this process records spans
/// and [left this delivery out](takes_delivery): its trace would be one without a beginning.
pub fn of_delivery(span: &Span, delivery_id: Uuid) -> Traceparent {
    exported(span).unwrap_or_else(|| Traceparent {
        trace_id: delivery_id.as_u128(),
        span_id: fastrand::u64(1..),
        sampled: STORE_ONLY.get().is_none(),
    })
}

/// A span that failed in a trace that was left out.
#[derive(Debug)]
pub struct FailedSpan<'a> {
    /// Name by the semantic conventions.
    pub name: Cow<'static, str>,
    /// Its kind.
    pub kind: SpanKind,
    /// Trace and parent. None for the root of the delivery's trace.
    pub parent: Option<Traceparent>,
    /// The delivery, if it is known.
    pub delivery_id: Uuid,
    /// When it began.
    pub started: Instant,
    /// Why it failed.
    pub error: &'a str,
}

/// Records the span of a failure after the fact, so that it is found although its delivery was
/// [left out](takes_delivery). `attributes` is called only if the span is recorded.
pub fn record_failure(failure: FailedSpan<'_>, attributes: impl FnOnce() -> Vec<KeyValue>) {
    if !STORE_ONLY.get().is_some_and(|limits| limits.failures.take()) {
        return;
    }
    let tracer = global::tracer(SCOPE);
    let context = match failure.parent {
        Some(parent) => Context::new()
            .with_remote_span_context(span_context(&Traceparent { sampled: true, ..parent })),
        None => {
            Context::new().with_value(ForcedTraceId(TraceId::from(failure.delivery_id.as_u128())))
        }
    };
    let now = SystemTime::now();
    let started = now.checked_sub(failure.started.elapsed()).unwrap_or(now);
    // The generator of ids looks at the current context.
    let _guard = context.clone().attach();
    let mut span = tracer
        .span_builder(failure.name)
        .with_kind(failure.kind)
        .with_start_time(started)
        .with_attributes(attributes())
        .start_with_context(&tracer, &context);
    span.set_status(Status::error(failure.error.to_owned()));
    span.end();
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
    // Fails where no spans are recorded, which is not an error.
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

/// Sets the attributes of [`of_message`] on `span`. Call it only if [`is_sampled`], since its
/// arguments are costly.
pub fn describe_message(
    span: &Span,
    operation: (&'static str, &'static str),
    destination: (&'static str, String),
    message_id: Option<String>,
) {
    for KeyValue { key, value, .. } in of_message(operation, destination, message_id) {
        span.set_attribute(key, value);
    }
}

/// The attributes of a message: name and type of the operation, template of the subject and the
/// subject, and the message's id.
pub fn of_message(
    (name, kind): (&'static str, &'static str),
    (template, subject): (&'static str, String),
    message_id: Option<String>,
) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("messaging.system", "nats"),
        KeyValue::new("messaging.operation.name", name),
        KeyValue::new("messaging.operation.type", kind),
        KeyValue::new("messaging.destination.template", template),
        KeyValue::new("messaging.destination.name", subject),
    ];
    attributes.extend(message_id.map(|id| KeyValue::new("messaging.message.id", id)));
    attributes
}

/// Whether the span is recorded. This check costs less than setting attributes.
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
