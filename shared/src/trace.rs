//! One trace a delivery: the delivery's UUID is the trace id, so Gitea's
//! "Recent deliveries" page leads straight to the trace.
//!
//! The context of a trace travels in the journal and in message headers as a
//! W3C `traceparent`, whether or not this process exports traces.

use std::{fmt, str::FromStr};

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

use crate::event::Repository;

/// A W3C trace context: trace, parent span, and whether it is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traceparent {
    /// The trace.
    pub trace_id: TraceId,
    /// The span that whoever reads this is a child of.
    pub span_id: SpanId,
    /// Whether spans of it are exported.
    pub sampled: bool,
}

impl Traceparent {
    /// The context of `span`. None where this process exports no traces.
    pub fn exported(span: &Span) -> Option<Self> {
        let context = span.context();
        let context = context.span().span_context().clone();
        context.is_valid().then(|| Self {
            trace_id: context.trace_id(),
            span_id: context.span_id(),
            sampled: context.is_sampled(),
        })
    }

    /// The context of `span`, or one made up for `trace_id` where this process
    /// exports no traces. That one says sampled: a reader that does export
    /// must not be silenced by a writer that does not.
    pub fn of_span(span: &Span, trace_id: TraceId) -> Self {
        Self::exported(span).unwrap_or_else(|| Self {
            trace_id,
            span_id: SpanId::from(fastrand::u64(1..)),
            sampled: true,
        })
    }

    /// As the parent of a span in this process.
    pub fn as_parent(&self) -> Context {
        Context::new().with_remote_span_context(self.span_context())
    }

    /// As the target of a link.
    pub fn span_context(&self) -> SpanContext {
        let flags = if self.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
        SpanContext::new(self.trace_id, self.span_id, flags, true, TraceState::default())
    }
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-0{}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

impl FromStr for Traceparent {
    type Err = ();

    /// Reads version 00 and, as the recommendation asks, later ones by their first four fields.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut fields = text.split('-');
        let mut field = |length| {
            fields
                .next()
                .filter(|f| f.len() == length && f.bytes().all(|b| b.is_ascii_hexdigit()))
                .ok_or(())
        };
        let version = field(2)?;
        let trace_id = TraceId::from_hex(field(32)?).map_err(|_| ())?;
        let span_id = SpanId::from_hex(field(16)?).map_err(|_| ())?;
        let flags = u8::from_str_radix(field(2)?, 16).map_err(|_| ())?;
        let more = fields.next().is_some();
        if version == "ff"
            || (version == "00" && more)
            || trace_id == TraceId::INVALID
            || span_id == SpanId::INVALID
        {
            return Err(());
        }
        Ok(Self { trace_id, span_id, sampled: flags & 1 == 1 })
    }
}

/// The trace id of a delivery: its UUID without the dashes.
pub fn trace_id(delivery_id: Uuid) -> TraceId {
    TraceId::from(delivery_id.as_u128())
}

/// Makes `span` the root of the trace `trace_id`. Call it before the span is
/// entered, on a span created with `parent: None`.
pub fn make_root(span: &Span, trace_id: TraceId) {
    let _guard = Context::new().with_value(ForcedTraceId(trace_id)).attach();
    // Asking for the context builds the span, which takes its id from the generator now.
    let _ = span.context();
}

/// Makes `span` a child of `parent` in another process, or earlier in this one.
/// Call it before the span is entered, on a span created with `parent: None`.
pub fn make_child(span: &Span, parent: &Traceparent) {
    // Fails where no traces are exported, which is no fault.
    let _ = span.set_parent(parent.as_parent());
}

/// Puts on `span` what every span of a delivery tells. For spans that do not
/// carry it as fields already.
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

/// Puts on `span` where it happened, by the names of the semantic conventions.
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

/// Puts on `span` which message of the stream of events it is about, and what it does with it: the
/// operation's name and type. To be asked for where [`is_sampled`], as what it takes has its cost.
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

/// Whether anybody will see the span. Attributes cost more than this question.
pub fn is_sampled(span: &Span) -> bool {
    Traceparent::exported(span).is_some_and(|context| context.sampled)
}

struct ForcedTraceId(TraceId);

/// Takes the trace id that [`make_root`] asks for, else a random one.
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

/// Samples a share of the traces by the low 56 bits of the id, as W3C's
/// random flag means it: the SDK's own ratio sampler looks at the bits that a
/// UUID v4 has fixed, and samples all or nothing.
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
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_traceparent_reads_back(trace: [u8; 16], span: [u8; 8], sampled: bool) {
            let parent = Traceparent {
                trace_id: TraceId::from_bytes(trace),
                span_id: SpanId::from_bytes(span),
                sampled,
            };
            let valid = parent.trace_id != TraceId::INVALID && parent.span_id != SpanId::INVALID;
            prop_assert_eq!(parent.to_string().parse(), if valid { Ok(parent) } else { Err(()) });
        }

        #[test]
        fn what_reads_as_a_traceparent_is_written_as_one_that_reads_the_same(
            text in "[0-9a-fA-F]{2}-[0-9a-fA-F]{32}-[0-9a-fA-F]{16}-[0-9a-fA-F]{2}(-.*)?",
        ) {
            if let Ok(parent) = text.parse::<Traceparent>() {
                prop_assert_eq!(parent.to_string().parse(), Ok(parent));
            }
        }
    }

    #[test]
    fn traceparent_reads_back_and_bad_ones_are_refused() {
        let text = "00-b60f8ed36a1a4e58b31e0b00968f94cb-00f067aa0ba902b7-01";
        let parent: Traceparent = text.parse().expect(text);
        assert_eq!(parent.to_string(), text);
        let uuid = Uuid::parse_str("b60f8ed3-6a1a-4e58-b31e-0b00968f94cb").expect("uuid");
        assert_eq!(parent.trace_id, trace_id(uuid));
        for (text, good) in [
            ("00-b60f8ed36a1a4e58b31e0b00968f94cb-00f067aa0ba902b7-00", true),
            ("01-b60f8ed36a1a4e58b31e0b00968f94cb-00f067aa0ba902b7-01-more", true),
            ("00-b60f8ed36a1a4e58b31e0b00968f94cb-00f067aa0ba902b7-01-more", false),
            ("ff-b60f8ed36a1a4e58b31e0b00968f94cb-00f067aa0ba902b7-01", false),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false),
            ("00-b60f8ed36a1a4e58b31e0b00968f94cb-0000000000000000-01", false),
            ("00-b60f8ed36a1a4e58b31e0b00968f94-00f067aa0ba902b7-01", false),
            ("00-+60f8ed36a1a4e58b31e0b00968f94cb-00f067aa0ba902b7-01", false),
            ("", false),
        ] {
            assert_eq!(text.parse::<Traceparent>().is_ok(), good, "{text}");
        }
    }

    #[test]
    fn without_an_exporter_the_context_is_still_the_deliverys() {
        let id = trace_id(Uuid::new_v4());
        let parent = Traceparent::of_span(&Span::none(), id);
        assert_eq!((parent.trace_id, parent.sampled), (id, true));
        assert_ne!(parent.span_id, SpanId::INVALID);
    }

    #[test]
    fn the_sampler_takes_its_share_of_uuids() {
        for (ratio, low, high) in
            [(0.0, 0, 0), (0.25, 400, 600), (0.5, 850, 1150), (1.0, 2000, 2000)]
        {
            let sampler = RatioSampler::new(ratio);
            let sampled = (0..2000)
                .filter(|_| {
                    let id = trace_id(Uuid::new_v4());
                    let result = sampler.should_sample(None, id, "", &SpanKind::Server, &[], &[]);
                    result.decision == SamplingDecision::RecordAndSample
                })
                .count();
            assert!((low..=high).contains(&sampled), "{ratio}: {sampled}");
        }
    }
}
