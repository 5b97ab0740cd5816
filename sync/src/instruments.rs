//! Metrics of the jobs that ask Gitea.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use contract::{
    event::{IssueEvent, SyncCause},
    names::Lane,
    timestamp::Timestamp,
};
use gitea::{Observer, Outcome};
use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Counter, Histogram, Meter},
};
use service::telemetry::metrics;

/// How long the outcome of a request says something about Gitea. Some are made rarely.
const RECENT: Duration = Duration::from_secs(900);
/// What a gauge shows while it is not known.
const UNKNOWN: u64 = u64::MAX;

/// The instruments of the jobs.
#[derive(Debug)]
pub struct Instruments {
    requests: Counter<u64>,
    request_duration: Histogram<f64>,
    told: Counter<u64>,
    remembered: Counter<u64>,
    answers: Counter<u64>,
    /// When the last sweep was complete, in seconds since 1970; 0 if that is not known.
    swept_at: Arc<AtomicI64>,
    /// Questions by lane.
    waiting: [Arc<AtomicU64>; 2],
    refused: Arc<AtomicU64>,
    /// Outcomes of the last requests by operation, and when they ended, for the health.
    last: Mutex<HashMap<&'static str, (Outcome, Instant)>>,
}

impl Instruments {
    /// The instruments on `meter`.
    pub fn new(meter: &Meter) -> Self {
        let counter = |name, description| metrics::counter(meter, name, description);
        let swept_at = Arc::new(AtomicI64::new(0));
        let observed = Arc::clone(&swept_at);
        meter
            .i64_observable_gauge("coordinator.sync.age")
            .with_unit("s")
            .with_description("Time since the last complete sweep; of the worker that asks Gitea")
            .with_callback(move |observer| {
                let at = observed.load(Ordering::Relaxed);
                if at > 0 {
                    observer.observe((now() - at).max(0), &[]);
                }
            })
            .build();
        let refused = Arc::new(AtomicU64::new(UNKNOWN));
        let observed = Arc::clone(&refused);
        meter
            .u64_observable_gauge("coordinator.sync.token.refused")
            .with_description("1 while Gitea refuses the token")
            .with_callback(move |observer| observe(observer, &observed, &[]))
            .build();
        let waiting = Lane::ALL.map(|_| Arc::new(AtomicU64::new(UNKNOWN)));
        let observed = waiting.clone();
        meter
            .u64_observable_gauge("coordinator.sync.questions")
            .with_description(
                "Issues that Gitea is still to be asked about, by lane; of the worker that asks",
            )
            .with_callback(move |observer| {
                for (lane, value) in Lane::ALL.iter().zip(&observed) {
                    observe(observer, value, &[KeyValue::new("lane", lane.consumer())]);
                }
            })
            .build();
        let instruments = Self {
            requests: counter("coordinator.sync.requests", "Requests to Gitea by outcome"),
            request_duration: metrics::seconds(
                meter,
                "coordinator.sync.request.duration",
                "One request to Gitea",
            ),
            told: counter("coordinator.sync.events", "Events of what Gitea was asked, by cause"),
            remembered: counter(
                "coordinator.sync.remembered",
                "Issues that were found with nobody assigned, and are only remembered",
            ),
            answers: counter("coordinator.sync.answers", "Questions to Gitea by outcome"),
            swept_at,
            waiting,
            refused,
            last: Mutex::default(),
        };
        // `increase()` misses the first increment of a series that does not begin at zero.
        for cause in SyncCause::ALL {
            instruments.told.add(0, &[KeyValue::new("cause", cause.as_str())]);
        }
        for outcome in ["same", "differs", "missing", "unseen", "failed"] {
            instruments.answers.add(0, &[KeyValue::new("outcome", outcome)]);
        }
        instruments
    }

    /// An event of what Gitea says is published.
    pub(crate) fn told(&self, event: &IssueEvent) {
        let cause = event.synced.as_deref().map_or("other", |synced| synced.cause.as_str());
        self.told.add(1, &[KeyValue::new("cause", cause)]);
    }

    pub(crate) fn remembered(&self) {
        self.remembered.add(1, &[]);
    }

    pub(crate) fn answered(&self, outcome: &'static str) {
        self.answers.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// A sweep was complete at this second of our clock.
    pub(crate) fn swept(&self, at: i64) {
        self.swept_at.store(at, Ordering::Relaxed);
    }

    pub(crate) fn waiting(&self, lane: Lane, questions: u64) {
        for (other, value) in Lane::ALL.iter().zip(&self.waiting) {
            if *other == lane {
                value.store(questions, Ordering::Relaxed);
            }
        }
    }

    /// Another worker asks now.
    pub(crate) fn idle(&self) {
        self.swept_at.store(0, Ordering::Relaxed);
        for value in &self.waiting {
            value.store(UNKNOWN, Ordering::Relaxed);
        }
        self.refused.store(UNKNOWN, Ordering::Relaxed);
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The last request that failed, as its operation and its outcome, of those that did not succeed
    /// since.
    pub(crate) fn failing(&self) -> Option<(&'static str, Outcome)> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = last.iter().filter(|(_, (_, at))| at.elapsed() < RECENT);
        recent.map(|(operation, (outcome, _))| (*operation, *outcome)).find(|one| {
            // A token that may read issues alone is enough.
            !matches!(one, (_, Outcome::Ok | Outcome::NotFound | Outcome::Moved))
                && !matches!(one, ("repository" | "user", Outcome::Forbidden))
        })
    }
}

fn observe(observer: &dyn AsyncInstrument<u64>, value: &AtomicU64, labels: &[KeyValue]) {
    let value = value.load(Ordering::Relaxed);
    if value != UNKNOWN {
        observer.observe(value, labels);
    }
}

/// Seconds since 1970 of our clock.
pub(crate) fn now() -> i64 {
    Timestamp::now().unix_micros() / 1_000_000
}

impl Observer for Instruments {
    fn asked(&self, operation: &'static str, outcome: Outcome, took: Duration) {
        let labels =
            [KeyValue::new("operation", operation), KeyValue::new("outcome", outcome.as_str())];
        self.requests.add(1, &labels);
        self.request_duration.record(took.as_secs_f64(), &[]);
        match outcome {
            Outcome::Unauthorized => self.refused.store(1, Ordering::Relaxed),
            Outcome::Ok => self.refused.store(0, Ordering::Relaxed),
            _ => {}
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.insert(operation, (outcome, Instant::now()));
    }
}
