//! Metrics of ingest.

use std::sync::Arc;

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter},
};
use service::telemetry::metrics;
use strum::IntoStaticStr;

use crate::{
    gitea::signature::SecretUsed,
    http::WEBHOOK,
    journal::{Journal, Status},
};

/// Outcomes that alerts and dashboards query.
const WATCHED_OUTCOMES: [&str; 11] = [
    "accepted",
    "duplicate",
    "ignored",
    "signature_missing",
    "signature_empty",
    "signature_mismatch",
    "invalid_payload",
    "journal_full",
    "journal_unwritable",
    "overloaded",
    "hung_up",
];

/// Why a request to the webhook's listener is no delivery.
#[derive(Clone, Copy, Debug, IntoStaticStr, PartialEq, Eq)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Stray {
    UnknownPath,
    WrongMethod,
}

/// The instruments of one ingest.
#[derive(Debug)]
pub(crate) struct Instruments {
    deliveries: Counter<u64>,
    stray_requests: Counter<u64>,
    request_duration: Histogram<f64>,
    signatures: Counter<u64>,
    replayed_bodies: Counter<u64>,
    sent: Counter<u64>,
    publish_duration: Histogram<f64>,
    publish_failures: Counter<u64>,
}

impl Instruments {
    /// `journal_limit` is the size, in bytes, at which new deliveries are refused.
    pub(crate) fn new(meter: &Meter, journal: &Journal, journal_limit: u64) -> Self {
        observe_journal(meter, journal.status());
        meter
            .u64_observable_gauge("coordinator.journal.limit")
            .with_unit("By")
            .with_description("Size of the journal at which deliveries get 503")
            .with_callback(move |observer| observer.observe(journal_limit, &[]))
            .build();
        let seconds = |name, description| metrics::seconds(meter, name, description);
        let counter = |name, description| metrics::counter(meter, name, description);
        let instruments = Self {
            deliveries: counter("coordinator.deliveries", "Requests to the webhook by outcome"),
            stray_requests: counter(
                "coordinator.stray.requests",
                "Requests to the webhook's listener with an unknown path or a wrong method",
            ),
            request_duration: seconds(
                "http.server.request.duration",
                "From the head of a request to its answer",
            ),
            signatures: counter(
                "coordinator.signatures",
                "Good signatures by the secret that they were made with",
            ),
            replayed_bodies: counter(
                "coordinator.replayed.bodies",
                "Deliveries accepted under a new id with a body accepted long before",
            ),
            sent: counter(
                "messaging.client.sent.messages",
                "Events that the broker confirmed, first or again",
            ),
            publish_duration: seconds(
                "coordinator.publish.duration",
                "From receipt to the broker's confirmation",
            ),
            publish_failures: counter(
                "coordinator.publish.failures",
                "Attempts to publish that failed and were repeated",
            ),
        };
        // `increase()` misses the first increment of a series that does not begin at zero.
        for outcome in WATCHED_OUTCOMES {
            instruments.deliveries.add(0, &[KeyValue::new("outcome", outcome)]);
        }
        for stray in [Stray::UnknownPath, Stray::WrongMethod] {
            instruments.stray_requests.add(0, &[KeyValue::new("reason", <&str>::from(stray))]);
        }
        for secret in [SecretUsed::Current, SecretUsed::Previous] {
            instruments.signatures.add(0, &[KeyValue::new("secret", <&str>::from(secret))]);
        }
        instruments.replayed_bodies.add(0, &[]);
        instruments.publish_failures.add(0, &[]);
        instruments
    }

    pub(crate) fn answered(&self, outcome: &'static str, status: u16, seconds: f64) {
        self.deliveries.add(1, &[KeyValue::new("outcome", outcome)]);
        self.request_duration.record(
            seconds,
            &[
                KeyValue::new("http.request.method", "POST"),
                KeyValue::new("http.route", WEBHOOK),
                KeyValue::new("http.response.status_code", i64::from(status)),
            ],
        );
    }

    pub(crate) fn strayed(&self, stray: Stray) {
        self.stray_requests.add(1, &[KeyValue::new("reason", <&str>::from(stray))]);
    }

    pub(crate) fn signature_matched(&self, secret: SecretUsed) {
        self.signatures.add(1, &[KeyValue::new("secret", <&str>::from(secret))]);
    }

    pub(crate) fn replayed(&self) {
        self.replayed_bodies.add(1, &[]);
    }

    /// `known`: the broker had already stored the message.
    pub(crate) fn published(&self, known: bool, seconds: Option<f64>) {
        let attributes =
            [KeyValue::new("messaging.system", "nats"), KeyValue::new("duplicate", known)];
        self.sent.add(1, &attributes);
        if let Some(seconds) = seconds {
            self.publish_duration.record(seconds, &[]);
        }
    }

    pub(crate) fn publish_failed(&self) {
        self.publish_failures.add(1, &[]);
    }
}

fn observe_journal(meter: &Meter, status: &Arc<Status>) {
    let gauge = |name: &'static str,
                 unit: &'static str,
                 description: &'static str,
                 read: fn(&Status) -> f64| {
        let status = Arc::clone(status);
        meter
            .f64_observable_gauge(name)
            .with_unit(unit)
            .with_description(description)
            .with_callback(move |observer| observer.observe(read(&status), &[]))
            .build();
    };
    gauge(
        "coordinator.journal.depth",
        "{delivery}",
        "Deliveries that the broker has not confirmed",
        |s| s.depth() as f64,
    );
    gauge("coordinator.journal.oldest_unpublished_age", "s", "Age of the oldest of them", |s| {
        s.oldest_unpublished_age().as_secs_f64()
    });
    gauge("coordinator.journal.used", "By", "Bytes in use within the journal", |s| {
        s.used_bytes() as f64
    });
    gauge("coordinator.journal.writable", "", "1 while deliveries can be kept", |s| {
        f64::from(u8::from(s.can_keep()))
    });
    gauge("coordinator.journal.set_aside", "{delivery}", "Deliveries that no broker takes", |s| {
        s.set_aside() as f64
    });
}
