//! What the process did in the last hour, measured by its own metrics.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus::proto::{Metric, MetricFamily, MetricType};
use tokio::time::{MissedTickBehavior, interval};

use super::Series;
use crate::telemetry::metrics::Metrics;

/// Time between two points.
const EVERY: Duration = Duration::from_secs(10);
/// Points of an hour.
const POINTS: usize = 360;

/// A measure, and the metric that it is read from.
struct Measure {
    name: &'static str,
    metric: &'static str,
    /// A label, and its values that count or do not count. None counts all.
    label: Option<(&'static str, Counts)>,
}

enum Counts {
    Only(&'static [&'static str]),
    AllBut(&'static [&'static str]),
}

const fn all(name: &'static str, metric: &'static str) -> Measure {
    Measure { name, metric, label: None }
}

const fn of(
    name: &'static str,
    metric: &'static str,
    label: &'static str,
    counts: Counts,
) -> Measure {
    Measure { name, metric, label: Some((label, counts)) }
}

const DELIVERIES: &str = "coordinator_deliveries_total";

/// All measures. A process has those whose metric it has.
const MEASURES: [Measure; 16] = [
    of("accepted", DELIVERIES, "outcome", Counts::Only(&["accepted"])),
    of("ignored", DELIVERIES, "outcome", Counts::Only(&["ignored", "duplicate"])),
    of(
        "refused",
        DELIVERIES,
        "outcome",
        Counts::AllBut(&["accepted", "duplicate", "ignored", "hung_up"]),
    ),
    of("published", "messaging_client_sent_messages_total", "duplicate", Counts::Only(&["false"])),
    all("publish_failures", "coordinator_publish_failures_total"),
    all("journal_depth", "coordinator_journal_depth"),
    all("journal_used_bytes", "coordinator_journal_used_bytes"),
    all("handled", "coordinator_events_total"),
    all("changed", "coordinator_changes_total"),
    all("redelivered", "coordinator_redeliveries_total"),
    all("dead_lettered", "coordinator_dead_letters_total"),
    all("retries", "coordinator_retries_total"),
    all("in_doubt", "coordinator_in_doubt_total"),
    all("lag", "coordinator_lag"),
    all("questions", "coordinator_sync_questions"),
    all("sync_age_seconds", "coordinator_sync_age_seconds"),
];

impl Measure {
    /// Its value now, and whether it counts up. None if the process does not have it.
    fn value(&self, families: &[MetricFamily]) -> Option<(f64, bool)> {
        let family = families.iter().find(|family| family.name() == self.metric)?;
        let counts_up = family.get_field_type() == MetricType::COUNTER;
        let counted = family.get_metric().iter().filter(|metric| self.counts(metric));
        let values = counted.map(|metric| {
            if counts_up {
                metric.get_counter().get_value()
            } else {
                metric.get_gauge().get_value()
            }
        });
        Some((values.sum(), counts_up))
    }

    fn counts(&self, metric: &Metric) -> bool {
        let Some((name, counts)) = &self.label else { return true };
        let label = metric.get_label().iter().find(|label| label.name() == *name);
        let value = label.map(|label| label.value()).unwrap_or_default();
        match counts {
            Counts::Only(values) => values.contains(&value),
            Counts::AllBut(values) => !values.contains(&value),
        }
    }
}

/// The points of all measures.
#[derive(Debug, Default)]
pub(crate) struct Measured(Mutex<Rings>);

type Rings = [Ring; MEASURES.len()];

/// The points of one measure.
#[derive(Debug, Default)]
struct Ring {
    points: VecDeque<f64>,
    /// Value of a counter at the last point.
    last: f64,
}

impl Ring {
    fn add(&mut self, value: Option<(f64, bool)>) {
        let Some((value, counts_up)) = value else {
            // A gauge that is gone: what it showed before says nothing about now.
            self.points.clear();
            return;
        };
        if self.points.len() >= POINTS {
            self.points.pop_front();
        }
        self.points.push_back(if counts_up { value - self.last } else { value });
        self.last = value;
    }
}

impl Measured {
    /// Adds a point to each measure every ten seconds, for ever.
    pub(crate) async fn measure(self: Arc<Self>, metrics: Metrics) {
        let mut every = interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is at once, and nothing has happened yet.
        every.tick().await;
        loop {
            every.tick().await;
            self.add(&metrics.gather());
        }
    }

    fn add(&self, families: &[MetricFamily]) {
        let mut rings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (ring, measure) in rings.iter_mut().zip(&MEASURES) {
            ring.add(measure.value(families));
        }
    }

    /// The points of each measure that the process has.
    pub(super) fn series(&self) -> Vec<Series> {
        let rings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let measured = rings.iter().zip(&MEASURES).filter(|(ring, _)| !ring.points.is_empty());
        let series = measured.map(|(ring, measure)| Series {
            name: measure.name.into(),
            every_secs: EVERY.as_secs() as u32,
            points: ring.points.iter().copied().collect(),
        });
        series.collect()
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::KeyValue;

    use super::*;

    fn points(measured: &Measured, name: &str) -> Option<Vec<f64>> {
        let series = measured.series().into_iter().find(|series| series.name == name);
        series.map(|series| series.points)
    }

    #[test]
    fn counters_are_given_by_interval_and_gauges_as_they_are() {
        let metrics = Metrics::new("test", None).expect("meters");
        let (meter, measured) = (metrics.meter(), Measured::default());
        let deliveries = meter.u64_counter("coordinator.deliveries").build();
        let lag = meter.u64_gauge("coordinator.lag").build();
        let count =
            |outcome: &'static str, n| deliveries.add(n, &[KeyValue::new("outcome", outcome)]);
        for (accepted, refused, waiting) in [(3, 1, 7), (0, 2, 9), (4, 0, 0)] {
            count("accepted", accepted);
            count("signature_mismatch", refused);
            count("ignored", 1);
            lag.record(waiting, &[]);
            measured.add(&metrics.gather());
        }
        assert_eq!(points(&measured, "accepted"), Some(vec![3.0, 0.0, 4.0]));
        assert_eq!(points(&measured, "refused"), Some(vec![1.0, 2.0, 0.0]));
        assert_eq!(points(&measured, "ignored"), Some(vec![1.0, 1.0, 1.0]));
        assert_eq!(points(&measured, "lag"), Some(vec![7.0, 9.0, 0.0]));
        assert_eq!(points(&measured, "journal_depth"), None, "not this process");
        for _ in 0..2 * POINTS {
            measured.add(&metrics.gather());
        }
        assert_eq!(points(&measured, "lag").map(|points| points.len()), Some(POINTS));
        measured.add(&[]);
        assert_eq!(points(&measured, "lag"), None, "it is gone");
    }
}
