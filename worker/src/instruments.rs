//! Metrics of the worker.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use contract::{
    change::Change,
    dead_letter::Reason,
    names::{CHANGES, DEAD_LETTERS, EVENTS, ISSUE_STATE},
};
use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter},
};
use service::telemetry::metrics;

use crate::step::outcome::Verdict;

/// Streams and the bucket, by their names in metrics.
pub(crate) const STREAMS: [&str; 4] = [EVENTS, CHANGES, DEAD_LETTERS, ISSUE_STATE];

/// The instruments of one worker.
#[derive(Debug)]
pub(crate) struct Instruments {
    events: Counter<u64>,
    changes: Counter<u64>,
    redeliveries: Counter<u64>,
    retries: Counter<u64>,
    dead_letters: Counter<u64>,
    in_doubt: Counter<u64>,
    questions: Counter<u64>,
    process_duration: Histogram<f64>,
    delivery_duration: Histogram<f64>,
    lag: Arc<AtomicU64>,
    storage: Arc<[Storage; STREAMS.len()]>,
}

/// What a stream uses of its limit, in bytes. 0 stands for what is unknown, and for no limit.
#[derive(Debug, Default)]
struct Storage {
    used: AtomicU64,
    limit: AtomicU64,
}

impl Instruments {
    pub(crate) fn new(meter: &Meter) -> Self {
        let lag = Arc::new(AtomicU64::new(0));
        let observed = Arc::clone(&lag);
        meter
            .u64_observable_gauge("coordinator.lag")
            .with_description("Events that no worker has settled yet, over all partitions")
            .with_callback(move |observer| observer.observe(observed.load(Ordering::Relaxed), &[]))
            .build();
        let storage = Arc::<[Storage; STREAMS.len()]>::default();
        observe_storage(
            meter,
            "coordinator.stream.used",
            "Bytes in a stream or in the bucket",
            &storage,
            |one| &one.used,
        );
        observe_storage(
            meter,
            "coordinator.stream.limit",
            "Limit of bytes of a stream or of the bucket, if it has one",
            &storage,
            |one| &one.limit,
        );
        let counter = |name, description| metrics::counter(meter, name, description);
        let seconds = |name, description| metrics::seconds(meter, name, description);
        let instruments = Self {
            events: counter("coordinator.events", "Attempts at events by action and verdict"),
            changes: counter("coordinator.changes", "Changes published by kind"),
            redeliveries: counter("coordinator.redeliveries", "Attempts after the first"),
            retries: counter("coordinator.retries", "Failures of the broker with an event in hand"),
            dead_letters: counter("coordinator.dead_letters", "Events parked by reason"),
            in_doubt: counter("coordinator.in_doubt", "Events that left their issue in doubt"),
            questions: counter("coordinator.questions", "Doubts that Gitea is to be asked about"),
            process_duration: seconds("messaging.process.duration", "One attempt at one event"),
            delivery_duration: seconds(
                "coordinator.delivery.duration",
                "From a delivery's receipt to its event being settled",
            ),
            lag,
            storage,
        };
        // `increase()` misses the first increment of a series that does not begin at zero.
        instruments.redeliveries.add(0, &[]);
        instruments.retries.add(0, &[]);
        for reason in Reason::ALL {
            instruments.dead_letters.add(0, &[KeyValue::new("reason", reason.as_str())]);
        }
        instruments.in_doubt.add(0, &[]);
        for outcome in ["raised", "lost"] {
            instruments.questions.add(0, &[KeyValue::new("outcome", outcome)]);
        }
        instruments
    }

    pub(crate) fn processed(
        &self,
        action: &'static str,
        verdict: Verdict,
        took: Duration,
        again: bool,
    ) {
        let attributes =
            [KeyValue::new("action", action), KeyValue::new("verdict", <&str>::from(verdict))];
        self.events.add(1, &attributes);
        self.process_duration.record(took.as_secs_f64(), &[]);
        if again {
            self.redeliveries.add(1, &[]);
        }
    }

    pub(crate) fn retried(&self) {
        self.retries.add(1, &[]);
    }

    pub(crate) fn settled(&self, seconds: Option<f64>, in_doubt: bool) {
        if let Some(seconds) = seconds {
            self.delivery_duration.record(seconds, &[]);
        }
        if in_doubt {
            self.in_doubt.add(1, &[]);
        }
    }

    pub(crate) fn question_raised(&self) {
        self.questions.add(1, &[KeyValue::new("outcome", "raised")]);
    }

    /// The broker took no question.
    pub(crate) fn question_lost(&self) {
        self.questions.add(1, &[KeyValue::new("outcome", "lost")]);
    }

    pub(crate) fn handled(&self, change: &Change) {
        self.changes.add(1, &[KeyValue::new("kind", change.kind.as_str())]);
    }

    pub(crate) fn parked(&self, reason: Reason) {
        self.dead_letters.add(1, &[KeyValue::new("reason", reason.as_str())]);
    }

    pub(crate) fn lag(&self, events: u64) {
        self.lag.store(events, Ordering::Relaxed);
    }

    /// What the stream with this index in [`STREAMS`] uses of its limit.
    pub(crate) fn storage(&self, stream: usize, used: u64, limit: Option<u64>) {
        let one = &self.storage[stream];
        one.used.store(used, Ordering::Relaxed);
        one.limit.store(limit.unwrap_or(0), Ordering::Relaxed);
    }
}

fn observe_storage(
    meter: &Meter,
    name: &'static str,
    description: &'static str,
    storage: &Arc<[Storage; STREAMS.len()]>,
    read: fn(&Storage) -> &AtomicU64,
) {
    let storage = Arc::clone(storage);
    meter
        .u64_observable_gauge(name)
        .with_unit("By")
        .with_description(description)
        .with_callback(move |observer| {
            for (stream, one) in STREAMS.iter().zip(&*storage) {
                let bytes = read(one).load(Ordering::Relaxed);
                if bytes > 0 {
                    observer.observe(bytes, &[KeyValue::new("stream", *stream)]);
                }
            }
        })
        .build();
}
