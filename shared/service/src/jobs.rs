//! Jobs: periodic work. A job is a file in its role, and a line where the
//! role spawns it.

use std::{error::Error, time::Duration};

use opentelemetry::{KeyValue, metrics::Meter};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span};

use crate::{
    causes::Causes,
    telemetry::{metrics, trace},
};

/// When a job runs.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// Its name in spans, metrics and log lines.
    pub name: &'static str,
    /// Time from the end of one run to the beginning of the next.
    pub interval: Duration,
    /// Time from the end of a failed run to the beginning of the next.
    pub retry: Duration,
    /// Share of the wait that is random, from 0 to 1, so that many workers do not run at once.
    pub jitter: f64,
    /// Whether the first run waits for an interval too.
    pub waits_at_first: bool,
}

impl Job {
    /// Runs `work` periodically until `stop`. A run that has begun is finished.
    /// Each run is a span and counts in `coordinator.job.runs` and `coordinator.job.duration`.
    pub async fn run<F, E>(self, meter: Meter, stop: CancellationToken, mut work: impl FnMut() -> F)
    where
        F: Future<Output = Result<(), E>>,
        E: Error + 'static,
    {
        let runs = metrics::counter(&meter, "coordinator.job.runs", "Runs of a job by outcome");
        let duration = metrics::seconds(&meter, "coordinator.job.duration", "One run of a job");
        let mut wait = if self.waits_at_first { self.interval } else { Duration::ZERO };
        let named = |outcome| [KeyValue::new("job", self.name), KeyValue::new("outcome", outcome)];
        // `increase()` misses the first increment of a series that does not begin at 0.
        for outcome in ["done", "failed"] {
            runs.add(0, &named(outcome));
        }
        loop {
            let wait_drawn = wait.mul_f64(1.0 - self.jitter * fastrand::f64());
            tokio::select! {
                () = tokio::time::sleep(wait_drawn) => {}
                () = stop.cancelled() => return,
            }
            let started = std::time::Instant::now();
            let span =
                info_span!(target: trace::TRACES_ONLY, parent: None, "job", otel.name = self.name);
            let done = work().instrument(span).await;
            duration.record(started.elapsed().as_secs_f64(), &[KeyValue::new("job", self.name)]);
            let outcome;
            (outcome, wait) = match &done {
                Ok(()) => ("done", self.interval),
                Err(error) => {
                    debug!(job = self.name, error = %Causes(error), "a job failed");
                    ("failed", self.retry)
                }
            };
            runs.add(1, &named(outcome));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::atomic::{AtomicU32, Ordering},
    };

    use super::*;
    use crate::telemetry::metrics::Metrics;

    #[tokio::test(start_paused = true)]
    async fn it_runs_at_its_interval_retries_sooner_and_ends_when_told() {
        let job = Job {
            name: "test",
            interval: Duration::from_secs(60),
            retry: Duration::from_secs(1),
            jitter: 0.0,
            waits_at_first: false,
        };
        let metrics = Metrics::new("test", None).expect("meters");
        let (stop, runs) = (CancellationToken::new(), AtomicU32::new(0));
        let started = tokio::time::Instant::now();
        let work = || async {
            match runs.fetch_add(1, Ordering::Relaxed) {
                0 => Err(io::Error::other("meant to")),
                2 => {
                    stop.cancel();
                    Ok(())
                }
                _ => Ok(()),
            }
        };
        job.run(metrics.meter(), stop.clone(), work).await;
        assert_eq!((runs.load(Ordering::Relaxed), started.elapsed().as_secs()), (3, 61));
        let text = metrics.text().expect("text");
        for line in [
            "coordinator_job_runs_total{job=\"test\",outcome=\"done\"} 2",
            "coordinator_job_runs_total{job=\"test\",outcome=\"failed\"} 1",
        ] {
            assert!(text.contains(line), "{line} is missing in: {text}");
        }
    }
}
