//! The last finished spans of this process, so that a trace can be seen with nothing else installed.

mod blocks;
mod packed;
mod processor;
mod traces;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use opentelemetry::{
    Value,
    trace::{SpanId, SpanKind, Status, TraceId},
};
use opentelemetry_sdk::trace::SpanData;
use serde::{Deserialize, Serialize};

pub(super) use self::processor::StoringProcessor;
use self::traces::{New, Traces};
use super::budget::{Budget, LastMinute};

const STATUS_CODE: &str = "http.response.status_code";
/// Known once a signature was right and the payload was read.
const ACTION: &str = "gitea.action";

/// Refused requests a second whose span is kept. Anybody can send them, and they would drive all
/// deliveries out.
const REFUSED_PER_SECOND: u32 = 2;

/// A span that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredSpan {
    /// Trace id, 32 hexadecimal digits.
    pub trace_id: String,
    /// Span id, 16 hexadecimal digits.
    pub span_id: String,
    /// Span id of its parent. None for a root.
    pub parent_id: Option<String>,
    /// Name by the semantic conventions.
    pub name: String,
    /// `server`, `client`, `producer`, `consumer` or `internal`.
    pub kind: String,
    /// Nanoseconds since 1970.
    pub started_at: u64,
    /// Nanoseconds since 1970.
    pub ended_at: u64,
    /// Description of the error, if the span has failed.
    pub error: Option<String>,
    /// Name of the process in traces.
    pub service: String,
    /// Attributes, as text. Long ones are cut.
    pub attributes: Vec<(String, String)>,
    /// Trace id and span id of what it links to.
    pub links: Vec<(String, String)>,
}

/// The spans that this process keeps. Clones share them. The default keeps none.
#[derive(Clone, Default)]
pub struct SpanStore {
    shared: Option<Arc<Shared>>,
}

struct Shared {
    service: String,
    budget: Option<Arc<Budget>>,
    refused: Budget,
    traces: Mutex<Traces>,
}

impl SpanStore {
    /// A store of at most `limit` bytes of memory, for the spans of `service`. One with 0 bytes
    /// keeps none.
    pub fn new(limit: usize, service: String) -> Self {
        Self::with_budget(limit, service, None)
    }

    /// The same, with what says which deliveries are traced if not all are.
    pub(super) fn with_budget(limit: usize, service: String, budget: Option<Arc<Budget>>) -> Self {
        if limit == 0 {
            return Self::default();
        }
        let (refused, traces) = (Budget::new(REFUSED_PER_SECOND), Mutex::new(Traces::new(limit)));
        Self { shared: Some(Arc::new(Shared { service, budget, refused, traces })) }
    }

    /// Whether spans are kept at all.
    pub fn is_on(&self) -> bool {
        self.shared.is_some()
    }

    /// The spans of a trace, given as 32 hexadecimal digits, in no order.
    pub fn trace(&self, trace_id: &str) -> Vec<StoredSpan> {
        let (Some(shared), Ok(trace_id)) = (&self.shared, TraceId::from_hex(trace_id)) else {
            return Vec::new();
        };
        let packed = shared.traces().read(number(trace_id));
        // Without the lock, which every span that ends needs.
        packed::unpack(&packed, trace_id, &shared.service)
    }

    /// Bytes of memory that the spans take, at most.
    pub fn bytes(&self) -> usize {
        self.shared.as_ref().map_or(0, |shared| shared.traces().bytes())
    }

    /// How many deliveries of the last minute were traced. None where their number is not limited.
    pub fn last_minute(&self) -> Option<LastMinute> {
        Some(self.shared.as_ref()?.budget.as_ref()?.last_minute())
    }

    /// Keeps a span that has ended.
    pub fn keep(&self, span: &SpanData) {
        let Some(shared) = &self.shared else { return };
        let has_failed = matches!(span.status, Status::Error { .. });
        let is_root = span.parent_span_id == SpanId::INVALID;
        if is_root && is_refusal(span) && !shared.refused.take() {
            return;
        }
        let Some(packed) = packed::pack(span) else { return };
        shared.traces().add(&New {
            trace_id: number(span.span_context.trace_id()),
            packed: &packed,
            has_failed,
            is_entry: matches!(span.span_kind, SpanKind::Server | SpanKind::Consumer),
            // A job that did nothing to tell of runs every few seconds.
            needs_others: is_root && span.span_kind == SpanKind::Internal && !has_failed,
        });
    }
}

impl fmt::Debug for SpanStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpanStore").field("is_on", &self.is_on()).finish_non_exhaustive()
    }
}

impl Shared {
    fn traces(&self) -> MutexGuard<'_, Traces> {
        self.traces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the span is of a request that was refused before anybody knew that it is a delivery: with a
/// client's error, or for want of room before its signature was looked at. Anybody can send those.
fn is_refusal(span: &SpanData) -> bool {
    let find = |key| span.attributes.iter().find(|one| one.key.as_str() == key);
    match find(STATUS_CODE).map(|one| &one.value) {
        Some(Value::I64(400..500)) => true,
        Some(Value::I64(500..)) => find(ACTION).is_none(),
        _ => false,
    }
}

fn number(trace_id: TraceId) -> u128 {
    u128::from_be_bytes(trace_id.to_bytes())
}

#[cfg(test)]
mod tests {
    use opentelemetry::{
        KeyValue,
        trace::{Span as _, SpanKind, Tracer as _, TracerProvider as _},
    };
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    #[test]
    fn what_anybody_can_have_refused_leaves_room_for_the_rest() {
        let store = SpanStore::new(1024 * 1024, "ingest".into());
        let provider = SdkTracerProvider::builder()
            .with_span_processor(StoringProcessor { store: store.clone() })
            .build();
        let tracer = provider.tracer("test");
        let kept = |status: i64, action: Option<&str>| {
            let ids = (0..50).map(|_| {
                let mut attributes = vec![KeyValue::new(STATUS_CODE, status)];
                attributes.extend(action.map(|action| KeyValue::new(ACTION, action.to_owned())));
                let builder = tracer.span_builder("POST").with_kind(SpanKind::Server);
                let mut span = builder.with_attributes(attributes).start(&tracer);
                span.set_status(Status::error("refused"));
                span.end();
                span.span_context().trace_id().to_string()
            });
            ids.filter(|id| !store.trace(id).is_empty()).count()
        };
        assert_eq!(kept(503, Some("closed")), 50, "a delivery that we failed at");
        assert_eq!(kept(200, None), 50);
        // A second may begin meanwhile.
        let refused = kept(503, None) + kept(401, None);
        assert!(refused <= 2 * REFUSED_PER_SECOND as usize, "{refused}");
    }
}
