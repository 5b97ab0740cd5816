//! The span store takes no more memory than its limit, as the system counts it. This is a process
//! of its own, since other tests take memory too.
#![cfg(target_os = "linux")]

use std::time::{Duration, SystemTime};

use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use service::telemetry::span_store::SpanStore;

const LIMIT: usize = 32 << 20;

/// A span with attributes that have `value_bytes` bytes together. `n` makes its ids.
fn span(trace: u128, n: u64, value_bytes: usize) -> SpanData {
    let attribute = |key: u64| {
        let value = "x".repeat(value_bytes / 10);
        KeyValue::new(format!("gitea.key.{key}"), value)
    };
    let (trace, id) = (TraceId::from(trace), SpanId::from(n + 1));
    let started = SystemTime::now();
    SpanData {
        span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::NONE),
        parent_span_id: SpanId::from(n + 2),
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: "a span".into(),
        start_time: started,
        end_time: started + Duration::from_millis(1),
        attributes: (0..10).map(attribute).collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::default(),
    }
}

/// Resident memory of this process.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("this process's status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    let kilobytes = line.trim().trim_end_matches(" kB").parse::<usize>();
    kilobytes.expect("a number") * 1024
}

#[test]
fn whatever_it_is_filled_with_it_takes_no_more_than_its_limit() {
    // What the program takes at first is not the store's.
    let warm = SpanStore::new(1 << 20, "test".into());
    for n in 0..10_000 {
        warm.keep(&span(u128::from(n), n, 300));
    }
    let before = resident();
    let store = SpanStore::new(LIMIT, "test".into());
    let mut sizes = (0_usize..).map(|n| [200, 10, 3_000, 100, 40_000][n / 7 % 5]);
    let mut n = 0;
    for (traces, spans) in [(60_000_u64, 1), (20_000, 4), (2, 3_000)] {
        for trace in 0..traces {
            for _ in 0..spans {
                n += 1;
                let size = sizes.next().unwrap_or_default();
                let mut span = span(u128::from(trace * 7 + spans), n, size);
                if n % 5 == 0 {
                    span.status = Status::error("failed");
                }
                store.keep(&span);
            }
        }
        assert!(store.bytes() <= LIMIT, "{}", store.bytes());
    }
    let taken = resident().saturating_sub(before);
    println!("accounted {} resident {taken} limit {LIMIT}", store.bytes());
    assert!(store.bytes() > LIMIT * 9 / 10, "it was filled: {}", store.bytes());
    assert!(taken <= LIMIT, "{taken} bytes were taken, of {LIMIT}");
}
