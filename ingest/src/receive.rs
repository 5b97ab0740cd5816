//! One request to the webhook, from its head to its answer.

mod about;

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    response::Response,
    routing::post,
};
use sha2::{Digest, Sha256};
use shared::{
    event::{self, IssueEvent},
    timestamp::Timestamp,
    trace::{self, Traceparent},
};
use tokio::sync::OwnedSemaphorePermit;
use tracing::{Instrument, Span, field, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

use self::about::About;
use crate::{
    body::{BodyLimits, HeldBody},
    config::IngestConfig,
    instruments::Instruments,
    journal::{AppendError, Journal, Kept, NewEntry, Packed},
    large_bodies::{LARGE_BODY_BYTES, LargeBodies},
    parse::{self, Parsed},
    reply::{Fate, Refusal},
    verify::{Claim, Verifier},
};

/// Where Gitea posts to.
const WEBHOOK: &str = "/webhook/gitea";

/// What a request needs.
#[derive(Clone, Debug)]
pub(crate) struct Receiver {
    body_limits: BodyLimits,
    verifier: Arc<Verifier>,
    large_bodies: LargeBodies,
    journal: Journal,
    instruments: Arc<Instruments>,
}

impl Receiver {
    pub(crate) fn new(
        config: &IngestConfig,
        large_bodies: LargeBodies,
        journal: Journal,
        instruments: Arc<Instruments>,
    ) -> Self {
        let limits = &config.limits;
        Self {
            body_limits: BodyLimits::new(
                limits.max_body_bytes,
                limits.body_timeout,
                limits.max_in_flight_bytes,
            ),
            verifier: Arc::new(Verifier::new(&config.secret, config.previous_secret.as_ref())),
            large_bodies,
            journal,
            instruments,
        }
    }
}

/// The webhook's route.
pub(crate) fn router(receiver: Receiver) -> Router {
    Router::new().route(WEBHOOK, post(webhook)).with_state(receiver)
}

async fn webhook(State(receiver): State<Receiver>, request: Request) -> Response {
    let started = Instant::now();
    let (head, body) = request.into_parts();
    let mut about = About::of(&head.headers);
    let span = request_span(&about);
    async {
        let fate = match receiver.receive(&mut about, &head.headers, body).await {
            Ok(fate) => fate,
            Err(refusal) => Fate::Refused(refusal),
        };
        let (outcome, status) = (fate.outcome(), fate.status());
        note_status(status, outcome);
        let seconds = started.elapsed().as_secs_f64();
        receiver.instruments.answered(WEBHOOK, outcome, status.as_u16(), seconds);
        about.log(&fate);
        fate.into_reply(about.delivery_id, about.trace_id)
    }
    .instrument(span)
    .await
}

impl Receiver {
    async fn receive(
        &self,
        about: &mut About,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Fate, Refusal> {
        let claim = match Claim::of(headers) {
            Ok(claim) => claim,
            Err(refusal) => {
                self.body_limits.discard(headers, body);
                return Err(refusal);
            }
        };
        let body = self.body_limits.read(headers, body).await?;
        let received_at = Timestamp::now();
        let (parsed, packed, body_sha256, memory) =
            self.verify_and_parse(about.delivery_id, received_at, headers, claim, body).await?;
        let event = match parsed {
            Parsed::Ignored(reason) => return Ok(Fate::Ignored { reason }),
            Parsed::Event(event) => event,
        };
        about.learn(&event);
        let waiting = journal_span(&event);
        let entry = NewEntry {
            delivery_id: about.delivery_id,
            event_type: text(headers, "x-gitea-event-type"),
            traceparent: Traceparent::of_span(&Span::current(), about.trace_id),
            body_sha256,
            packed,
            event,
            _memory: memory,
        };
        match self.journal.append(entry).instrument(waiting).await {
            Ok(kept) => Ok(Fate::Accepted { duplicate: kept == Kept::Before }),
            Err(error) => Err(not_kept(error)),
        }
    }

    /// Verification comes before parsing, and both go to another thread when the body is large.
    async fn verify_and_parse(
        &self,
        delivery_id: Uuid,
        received_at: Timestamp,
        headers: &HeaderMap,
        claim: Claim,
        body: HeldBody,
    ) -> Result<(Parsed, Packed, [u8; 32], Option<OwnedSemaphorePermit>), Refusal> {
        let HeldBody { bytes, memory } = body;
        let large = bytes.len() >= LARGE_BODY_BYTES;
        let verifier = Arc::clone(&self.verifier);
        let instruments = Arc::clone(&self.instruments);
        let for_parse = if large { headers.clone() } else { HeaderMap::new() };
        let work = move |headers: &HeaderMap| {
            let verified = verifier.verify(claim, bytes)?;
            instruments.signature_matched(verified.secret_used().as_str());
            let body_sha256: [u8; 32] = Sha256::digest(verified.text()).into();
            let delivery = event::Delivery {
                id: delivery_id.to_string(),
                received_at,
                body_sha256: hex::encode(body_sha256),
                hook: text(headers, "x-gitea-hook-installation-target-type"),
            };
            let parsed = parse::parse(headers, &verified, delivery)?;
            Ok((parsed, Packed::new(verified.text()), body_sha256, memory))
        };
        if !large {
            return work(headers);
        }
        let done = self.large_bodies.run(move || work(&for_parse)).await;
        done.unwrap_or_else(|| {
            Err(Refusal::not_kept("unavailable", "the body could not be worked on"))
        })
    }
}

/// The span of the request, root of the delivery's trace. An inbound
/// `traceparent` is let be: anybody can send one here.
fn request_span(about: &About) -> Span {
    let span = info_span!(
        parent: None,
        "POST /webhook/gitea",
        otel.kind = "server",
        otel.status_code = field::Empty,
        error.r#type = field::Empty,
        gitea.delivery.id = %about.delivery_id,
        trace_id = %about.trace_id,
        gitea.event = about.event,
        gitea.action = field::Empty,
        gitea.repository = field::Empty,
        gitea.issue.ref = field::Empty,
    );
    if span.is_disabled() {
        return span;
    }
    trace::make_root(&span, about.trace_id);
    span.set_attribute("http.request.method", "POST");
    span.set_attribute("http.route", WEBHOOK);
    span.set_attribute("url.path", WEBHOOK);
    span
}

/// The span of the wait for the journal. No log line stands in it, so it is there for traces alone.
fn journal_span(event: &IssueEvent) -> Span {
    if !trace::is_sampled(&Span::current()) {
        return Span::none();
    }
    let span = info_span!("journal", otel.kind = "internal");
    let (action, repository) = (event.action.as_str(), &event.repository);
    trace::describe(&span, &event.delivery.id, action, repository, event.issue.number);
    span
}

fn note_status(status: StatusCode, outcome: &'static str) {
    let span = Span::current();
    span.set_attribute("http.response.status_code", i64::from(status.as_u16()));
    // A 4xx is the client's error, not the span's.
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
        span.record("error.type", outcome);
    }
}

fn not_kept(error: AppendError) -> Refusal {
    match error {
        AppendError::Full => {
            Refusal::not_kept("journal_full", "the journal has reached its size limit")
        }
        AppendError::Unwritable => {
            Refusal::not_kept("journal_unwritable", "the journal cannot be written")
        }
        AppendError::Busy => Refusal::not_kept("overloaded", "too much is being received at once"),
        AppendError::IdReused => {
            Refusal::invalid("X-Gitea-Delivery", "came before with another payload")
        }
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}
