//! State of a delivery while it is received. Its outcome is reported as one log line and one count.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use contract::{event::Action, timestamp::Timestamp, traceparent::trace_id_text};
use opentelemetry::{KeyValue, trace::SpanKind};
use service::{
    log_limit::LogLimit,
    telemetry::trace::{self, FailedSpan, TRACES_ONLY},
};
use tracing::{Instrument, Span, field, info, info_span, record_all, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

use super::{
    WEBHOOK,
    replays::KnownBodies,
    reply::{Fate, Refusal},
};
use crate::{
    delivery::Delivery,
    instruments::Instruments,
    journal::{Appending, NewEntry},
};

/// Where fates are reported.
#[derive(Debug)]
pub(super) struct Reports {
    pub(super) instruments: Arc<Instruments>,
    bodies: KnownBodies,
    replays: LogLimit,
}

impl Reports {
    pub(super) fn new(instruments: Arc<Instruments>, replayed_after: Duration) -> Self {
        Self { instruments, bodies: KnownBodies::new(replayed_after), replays: LogLimit::new() }
    }

    /// Names an accepted delivery whose body is an old one.
    fn note_body(&self, id: Uuid, about: &About) {
        let Some(age) = self.bodies.accepted(&about.body_sha256, about.received_at) else { return };
        self.instruments.replayed();
        let Some(line) = self.replays.line("") else { return };
        warn!(
            gitea.delivery.id = %id,
            gitea.repository = about.repository,
            gitea.issue.ref = about.issue_ref,
            age_secs = age.as_secs(),
            left_out = line.left_out,
            "an old body came again under a new delivery id: redelivered by hand, or replayed"
        );
    }
}

/// A delivery that is being received.
///
/// Architecture invariant: the outcome of a delivery is always reported, exactly once, even if the
/// sender hangs up. A sender that hangs up drops this value. If the delivery already waits for the
/// journal, a task waits in its place and then reports.
pub(super) struct Receiving {
    delivery_id: Uuid,
    /// Event name from the headers.
    event: Option<String>,
    /// Set once the payload is parsed as an issue event.
    about: Option<About>,
    waits: Option<Appending>,
    reports: Arc<Reports>,
    started: Instant,
    reported: bool,
}

struct About {
    body_sha256: [u8; 32],
    received_at: Timestamp,
    action: Action,
    repository: String,
    issue_ref: String,
}

impl Receiving {
    pub(super) fn new(delivery_id: Uuid, event: Option<String>, reports: Arc<Reports>) -> Self {
        let started = Instant::now();
        Self { delivery_id, event, about: None, waits: None, reports, started, reported: false }
    }

    /// The span of the request, and the root of the delivery's trace. An inbound `traceparent` is
    /// ignored, because any client can send one.
    pub(super) fn span(&self) -> Span {
        if !trace::takes_delivery() {
            return Span::none();
        }
        let span = info_span!(
            target: TRACES_ONLY,
            parent: None,
            "POST /webhook/gitea",
            otel.kind = "server",
            otel.status_code = field::Empty,
            error.r#type = field::Empty,
            gitea.delivery.id = %self.delivery_id,
            gitea.event = self.event,
            gitea.action = field::Empty,
            gitea.issue.ref = field::Empty,
        );
        if span.is_disabled() {
            return span;
        }
        trace::make_root(&span, self.delivery_id);
        span.set_attribute("http.request.method", "POST");
        span.set_attribute("http.route", WEBHOOK);
        span.set_attribute("url.path", WEBHOOK);
        span
    }

    /// Keeps the event's fields for the report and records them on the span.
    pub(super) fn learn(&mut self, entry: &NewEntry) {
        let Delivery { body_sha256, received_at, .. } = entry.delivery;
        let event = &entry.event;
        let (action, repository) = (event.action.clone(), event.repository.full_name());
        let issue_ref = event.issue_ref();
        let span = Span::current();
        if !span.is_disabled() {
            record_all!(
                span,
                gitea.action = action.as_str(),
                gitea.issue.ref = issue_ref,
            );
            trace::describe_repository(&span, &event.repository);
        }
        self.about = Some(About { body_sha256, received_at, action, repository, issue_ref });
    }

    /// Waits until the delivery is on disk.
    pub(super) async fn kept(&mut self, appending: Appending) -> Fate {
        let fate = fate(self.waits.insert(appending).await);
        self.waits = None;
        fate
    }

    /// Reports the outcome as one log line and one count. The log line carries all fields itself,
    /// because the span exists only where traces are exported.
    pub(super) fn report(&mut self, fate: &Fate) {
        self.report_to(fate, true);
    }

    fn report_to(&mut self, fate: &Fate, somebody: bool) {
        self.reported = true;
        let (outcome, status) = (fate.outcome(), fate.status());
        let span = Span::current();
        if !span.is_disabled() {
            span.set_attribute("http.response.status_code", i64::from(status.as_u16()));
            // A 4xx is the client's error, so the server's span is not marked as failed.
            if status.is_server_error() {
                span.record("otel.status_code", "ERROR");
                span.record("error.type", outcome);
            }
            // Anybody can have a request refused whose signature was not looked at.
            if status.is_client_error() || (status.is_server_error() && self.about.is_none()) {
                trace::was_no_delivery(self.started);
            }
        } else if status.is_server_error() {
            self.record_failure(outcome, status);
        }
        let seconds = self.started.elapsed().as_secs_f64();
        self.reports.instruments.answered(outcome, status.as_u16(), seconds);
        let about = self.about.as_ref();
        if let (Fate::Accepted, Some(about)) = (fate, about) {
            self.reports.note_body(self.delivery_id, about);
        }
        let field = match fate {
            Fate::Refused(refusal) => refusal.field(),
            _ => None,
        };
        macro_rules! line {
            ($message:literal) => {
                info!(
                    gitea.delivery.id = %self.delivery_id,
                    trace_id = trace_id_text(self.delivery_id),
                    gitea.event = self.event,
                    gitea.action = about.map(|about| about.action.as_str()),
                    gitea.repository = about.map(|about| &about.repository),
                    gitea.issue.ref = about.map(|about| &about.issue_ref),
                    outcome,
                    http.response.status_code = status.as_u16(),
                    hung_up = (!somebody).then_some(true),
                    field,
                    $message
                )
            };
        }
        match fate {
            Fate::Accepted | Fate::Duplicate => line!("delivery accepted"),
            Fate::Ignored(_) => line!("delivery ignored"),
            Fate::Refused(_) => line!("delivery refused"),
        }
    }

    /// A failure has a span although its delivery has none.
    fn record_failure(&self, outcome: &'static str, status: StatusCode) {
        let failure = FailedSpan {
            name: "POST /webhook/gitea".into(),
            kind: SpanKind::Server,
            parent: None,
            delivery_id: self.delivery_id,
            started: self.started,
            error: outcome,
        };
        trace::record_failure(failure, || {
            let mut attributes = vec![
                KeyValue::new("http.request.method", "POST"),
                KeyValue::new("http.route", WEBHOOK),
                KeyValue::new("url.path", WEBHOOK),
                KeyValue::new("http.response.status_code", i64::from(status.as_u16())),
                KeyValue::new("error.type", outcome),
                KeyValue::new("gitea.delivery.id", self.delivery_id.to_string()),
            ];
            attributes.extend(self.event.clone().map(|event| KeyValue::new("gitea.event", event)));
            if let Some(about) = &self.about {
                let action = about.action.as_str().to_owned();
                attributes.push(KeyValue::new("gitea.action", action));
                attributes.push(KeyValue::new("gitea.issue.ref", about.issue_ref.clone()));
            }
            attributes
        });
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if self.reported {
            return;
        }
        self.reported = true;
        let mut orphan = Self {
            delivery_id: self.delivery_id,
            event: self.event.take(),
            about: self.about.take(),
            waits: None,
            reports: Arc::clone(&self.reports),
            started: self.started,
            reported: false,
        };
        match self.waits.take() {
            None if std::thread::panicking() => {
                orphan.report_to(&Fate::Refused(Refusal::Interrupted), true);
            }
            None => orphan.report_to(&Fate::Refused(Refusal::HungUp), false),
            Some(appending) => {
                let waiting = async move { orphan.report_to(&fate(appending.await), false) };
                tokio::spawn(waiting.instrument(Span::current()));
            }
        }
    }
}

fn fate(appended: Result<crate::journal::Kept, crate::journal::AppendError>) -> Fate {
    match appended {
        Ok(crate::journal::Kept::New) => Fate::Accepted,
        Ok(crate::journal::Kept::Before) => Fate::Duplicate,
        Err(error) => Fate::Refused(Refusal::Journal(error)),
    }
}
