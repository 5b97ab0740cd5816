//! What of a process's spans is kept without an endpoint. This is a process of its own, since it
//! installs the telemetry of one.

use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

use contract::traceparent::trace_id_text;
use opentelemetry::{KeyValue, trace::SpanKind};
use service::{
    settings::Problems,
    telemetry::{
        LastMinute, Telemetry, TelemetryArgs,
        span_store::{SpanStore, StoredSpan},
        trace::{self, FailedSpan, TRACES_ONLY},
    },
};
use tracing::{Span, info_span};
use uuid::Uuid;

/// Traces a delivery as ingest does.
fn deliver(span: impl FnOnce() -> Span) -> Uuid {
    let id = Uuid::new_v4();
    let root = span();
    trace::make_root(&root, id);
    let _entered = root.entered();
    tracing::warn!(error = "no room", "it failed");
    let _child = info_span!(target: TRACES_ONLY, "journal", gitea.event = "issues").entered();
    id
}

fn kept(spans: &SpanStore, id: Uuid) -> Vec<StoredSpan> {
    spans.trace(&trace_id_text(id))
}

#[tokio::test]
async fn a_number_of_deliveries_a_second_is_traced_and_failures_of_the_others() {
    let args = TelemetryArgs { log_format: Some("json".into()), ..TelemetryArgs::default() };
    let mut problems = Problems::default();
    let settings = args.check(&mut problems);
    problems.finish(()).expect("good settings");
    let telemetry = Telemetry::init(&settings, "test", &["spans_kept"]).expect("telemetry");
    let spans = telemetry.spans().clone();

    assert!(trace::takes_delivery());
    let good = deliver(|| info_span!(target: TRACES_ONLY, parent: None, "good"));
    let [child, root] = &kept(&spans, good)[..] else { panic!("{:?}", kept(&spans, good)) };
    assert_eq!((child.name.as_str(), root.name.as_str()), ("journal", "good"));
    assert_eq!((child.parent_id.as_ref(), root.parent_id.as_ref()), (Some(&root.span_id), None));
    assert_eq!((child.service.as_str(), child.kind.as_str()), ("coordinator-test", "internal"));
    assert_eq!(child.attributes, [("gitea.event".to_owned(), "issues".to_owned())]);
    assert!(root.started_at <= child.started_at && child.ended_at <= root.ended_at);
    assert_eq!(root.error, None, "a warning is no failure");
    let bad = deliver(
        || info_span!(target: TRACES_ONLY, parent: None, "bad", otel.status_code = "ERROR"),
    );
    let bad = kept(&spans, bad);
    assert_eq!(bad.last().and_then(|root| root.error.as_deref()), Some("no room"), "{bad:?}");

    let forged: Vec<_> = std::iter::repeat_with(Uuid::new_v4).take(100).collect();
    for id in &forged {
        let status = 401_i64;
        let span = info_span!(
            target: TRACES_ONLY, parent: None, "forged", otel.kind = "server", http.response.status_code = status
        );
        trace::make_root(&span, *id);
    }
    let roots = forged.iter().filter(|id| kept(&spans, **id).len() == 1).count();
    assert!((1..50).contains(&roots), "a flood takes no memory: {roots}");

    let began = Instant::now();
    let mut left_out = 0;
    while left_out == 0 && began.elapsed() < Duration::from_secs(30) {
        left_out = (0..2_000).filter(|_| !trace::takes_delivery()).count();
    }
    let LastMinute { traced, all } = spans.last_minute().expect("a budget");
    assert_eq!(all - traced, left_out as u64);
    assert!(left_out > 0 && traced >= 500, "{traced} of {all}");
    let id = Uuid::new_v4();
    let parent = trace::of_delivery(&Span::none(), id);
    assert_eq!((parent.trace_id, parent.sampled), (id.as_u128(), false));

    for parent in [None, Some(parent)] {
        trace::record_failure(
            FailedSpan {
                name: Cow::Borrowed("late"),
                kind: SpanKind::Server,
                parent,
                delivery_id: id,
                started: Instant::now() - Duration::from_secs(3),
                error: "journal_full",
            },
            || vec![KeyValue::new("error.type", "journal_full")],
        );
    }
    let late = kept(&spans, id);
    let parents: Vec<_> = late.iter().map(|span| span.parent_id.clone()).collect();
    assert_eq!(parents, [None, Some(format!("{:016x}", parent.span_id))]);
    for span in &late {
        assert_eq!((span.name.as_str(), span.error.as_deref()), ("late", Some("journal_full")));
        assert!(span.ended_at - span.started_at >= 3_000_000_000, "{span:?}");
    }
    telemetry.shutdown().await;
}
