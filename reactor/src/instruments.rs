//! Metrics of the runner.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use contract::timestamp::Timestamp;
use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter},
};
use service::telemetry::metrics;

use crate::run::{Ending, Phase, Run};

/// What is observed of all runs, by rule and phase.
type Counts = Arc<Mutex<HashMap<(String, Phase), u64>>>;

/// The instruments of one runner.
#[derive(Debug)]
pub(crate) struct Instruments {
    runs: Counter<u64>,
    broken_loops: Counter<u64>,
    taken_over: Counter<u64>,
    start_duration: Histogram<f64>,
    stop_duration: Histogram<f64>,
    run_duration: Histogram<f64>,
    counts: Counts,
    longest_wait: Arc<Mutex<Duration>>,
}

impl Instruments {
    pub(crate) fn new(meter: &Meter) -> Self {
        let counts = Counts::default();
        let observed = Arc::clone(&counts);
        meter
            .u64_observable_gauge("coordinator.runs.now")
            .with_description("Runs over all runners by rule and phase")
            .with_callback(move |observer| {
                for ((rule, phase), count) in &*lock(&observed) {
                    let labels = [
                        KeyValue::new("rule", rule.clone()),
                        KeyValue::new("phase", phase.as_str()),
                    ];
                    observer.observe(*count, &labels);
                }
            })
            .build();
        let longest_wait = Arc::<Mutex<Duration>>::default();
        let observed = Arc::clone(&longest_wait);
        meter
            .f64_observable_gauge("coordinator.runs.longest_wait")
            .with_unit("s")
            .with_description("How long the run that waits longest has waited")
            .with_callback(move |observer| observer.observe(lock(&observed).as_secs_f64(), &[]))
            .build();
        let counter = |name, description| metrics::counter(meter, name, description);
        let seconds = |name, description| metrics::seconds(meter, name, description);
        let instruments = Self {
            runs: counter("coordinator.runs", "Attempts at runs by rule and outcome"),
            broken_loops: counter(
                "coordinator.runs.refused",
                "Runs that did not begin since too many had begun within an hour, by rule",
            ),
            taken_over: counter(
                "coordinator.runs.taken_over",
                "Runs whose runner died or was cut off",
            ),
            start_duration: seconds(
                "coordinator.run.start.duration",
                "From the receipt of the delivery to the start of the run",
            ),
            stop_duration: seconds(
                "coordinator.run.stop.duration",
                "From the receipt of the delivery that ends a run to TERM",
            ),
            run_duration: seconds("coordinator.run.duration", "One attempt at a run"),
            counts,
            longest_wait,
        };
        // `increase()` misses the first increment of a series that does not begin at zero.
        instruments.taken_over.add(0, &[]);
        instruments
    }

    /// Begins the series of a rule.
    pub(crate) fn has_rule(&self, rule: &str) {
        for outcome in ["done", "failed", "stopped", "again"] {
            self.runs.add(0, &labels(rule, outcome));
        }
        self.broken_loops.add(0, &[KeyValue::new("rule", rule.to_owned())]);
    }

    /// A run has begun.
    pub(crate) fn started(&self, rule: &str, told_at: Option<Timestamp>) {
        if let Some(took) = told_at.and_then(since) {
            self.start_duration.record(took, &[KeyValue::new("rule", rule.to_owned())]);
        }
    }

    /// TERM was sent to a run.
    pub(crate) fn stopping(&self, rule: &str, told_at: Option<Timestamp>) {
        if let Some(took) = told_at.and_then(since) {
            self.stop_duration.record(took, &[KeyValue::new("rule", rule.to_owned())]);
        }
    }

    /// An attempt has ended, with this entry.
    pub(crate) fn ended(&self, rule: &str, run: &Run, took: Option<Duration>) {
        let outcome = match run.phase {
            Phase::Waiting => "lost",
            Phase::Again if run.ended.as_ref().is_some_and(Ending::is_loss) => "lost",
            phase => phase.as_str(),
        };
        self.runs.add(1, &labels(rule, outcome));
        if let Some(took) = took {
            let rule = KeyValue::new("rule", rule.to_owned());
            self.run_duration.record(took.as_secs_f64(), &[rule]);
        }
    }

    /// A loop was broken.
    pub(crate) fn refused(&self, rule: &str) {
        self.broken_loops.add(1, &[KeyValue::new("rule", rule.to_owned())]);
    }

    pub(crate) fn taken_over(&self) {
        self.taken_over.add(1, &[]);
    }

    /// What all runs are now.
    pub(crate) fn now(&self, counts: HashMap<(String, Phase), u64>, longest_wait: Duration) {
        let mut known = lock(&self.counts);
        // A series that is gone would keep its last value.
        known.values_mut().for_each(|count| *count = 0);
        known.extend(counts);
        *lock(&self.longest_wait) = longest_wait;
    }
}

fn labels(rule: &str, outcome: &'static str) -> [KeyValue; 2] {
    [KeyValue::new("rule", rule.to_owned()), KeyValue::new("outcome", outcome)]
}

/// Seconds since a time of another clock.
fn since(at: Timestamp) -> Option<f64> {
    let micros = Timestamp::now().unix_micros() - at.unix_micros();
    (micros >= 0).then_some(micros as f64 / 1e6)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
