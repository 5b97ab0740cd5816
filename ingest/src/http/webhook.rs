//! `POST /webhook/gitea`: head, body, signature, payload, journal, answer.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
    routing::{get, post},
};
use contract::timestamp::Timestamp;
use service::{
    operator::{self, HealthCheck},
    telemetry::trace::{self, TRACES_ONLY},
};
use sha2::{Digest, Sha256};
use tracing::{Instrument, Span, info_span};

use super::{
    WEBHOOK,
    body::{Bodies, HeldBody},
    receiving::{Receiving, Reports},
    reply::{Fate, Refusal},
    stray::StrayRequests,
};
use crate::{
    delivery::Delivery,
    gitea::{
        content_type::ContentType,
        headers::Headers,
        old_secret::without_secret,
        payload::{self, Parsed},
        signature::Verifier,
    },
    instruments::Instruments,
    journal::{Journal, NewEntry, Packed},
    large::{LARGE_BODY_BYTES, LargeBodies},
    settings::IngestSettings,
};

/// State that all requests share.
#[derive(Clone, Debug)]
pub(crate) struct Webhook {
    bodies: Bodies,
    verifier: Arc<Verifier>,
    large_bodies: LargeBodies,
    journal: Journal,
    reports: Arc<Reports>,
}

impl Webhook {
    pub(crate) fn new(
        settings: &IngestSettings,
        large_bodies: LargeBodies,
        journal: Journal,
        instruments: Arc<Instruments>,
    ) -> Self {
        Self {
            bodies: Bodies::new(&settings.bodies),
            verifier: Arc::new(Verifier::new(&settings.secret, settings.previous_secret.as_ref())),
            large_bodies,
            journal,
            reports: Arc::new(Reports::new(instruments, settings.replayed_after)),
        }
    }

    /// All routes of the webhook's port. `GET /health` is also here, for clients that cannot reach
    /// the operator's listener, as in the first version of this service.
    pub(crate) fn router(self, health: HealthCheck) -> Router {
        let health = get(async move || operator::answer(std::slice::from_ref(&health)));
        let stray = Arc::new(StrayRequests::new(Arc::clone(&self.reports.instruments)));
        let unknown = Arc::clone(&stray);
        Router::new()
            .route(WEBHOOK, post(webhook))
            .with_state(self)
            .route("/health", health)
            .fallback(async move |request: Request| unknown.unknown_path(&request))
            .method_not_allowed_fallback(async move |request: Request| stray.wrong_method(&request))
    }
}

async fn webhook(State(webhook): State<Webhook>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let headers = Headers::of(&head.headers);
    let (delivery_id, event) = (headers.delivery_id, headers.event.clone());
    let mut receiving = Receiving::new(delivery_id, event, Arc::clone(&webhook.reports));
    let span = receiving.span();
    async move {
        let received = webhook.receive(&mut receiving, headers, body).await;
        let fate = received.unwrap_or_else(Fate::Refused);
        receiving.report(&fate);
        fate.into_response(delivery_id)
    }
    .instrument(span)
    .await
}

impl Webhook {
    async fn receive(
        &self,
        receiving: &mut Receiving,
        headers: Headers,
        body: Body,
    ) -> Result<Fate, Refusal> {
        // A delivery without a supported content type and a well-formed signature is refused before
        // its body is read.
        let claim = match claim(&headers) {
            Ok(claim) => claim,
            Err(refusal) => {
                self.bodies.discard(&headers, body);
                return Err(refusal);
            }
        };
        let body = self.bodies.read(&headers, body).await.map_err(Refusal::Body)?;
        let received_at = Timestamp::now();
        let entry = match self.verify_and_parse(headers, claim, body, received_at).await? {
            Ok(entry) => entry,
            Err(ignored) => return Ok(ignored),
        };
        receiving.learn(&entry);
        let waiting = journal_span(&entry);
        let appending = self.journal.append(entry).map_err(Refusal::Journal)?;
        Ok(receiving.kept(appending).instrument(waiting).await)
    }

    /// Only a verified body is parsed. Large bodies are processed on a separate thread.
    async fn verify_and_parse(
        &self,
        headers: Headers,
        (content_type, signature): Claim,
        body: HeldBody,
        received_at: Timestamp,
    ) -> Result<Result<NewEntry, Fate>, Refusal> {
        let traceparent = trace::of_delivery(&Span::current(), headers.delivery_id);
        let large = body.bytes.len() >= LARGE_BODY_BYTES;
        let (verifier, reports) = (Arc::clone(&self.verifier), Arc::clone(&self.reports));
        let work = move || {
            let verified = verifier
                .verify(content_type, &signature, body.bytes.freeze())
                .map_err(Refusal::Signature)?;
            reports.instruments.signature_matched(verified.secret_used());
            let family = payload::family(headers.event.as_deref()).map_err(Refusal::Payload)?;
            let family = match family {
                Ok(family) => family,
                Err(reason) => return Ok(Err(Fate::Ignored(reason))),
            };
            let body_sha256 = Sha256::digest(verified.text()).into();
            let Headers { delivery_id: id, hook, .. } = headers;
            let delivery = Delivery { id, family, received_at, hook, body_sha256 };
            Ok(match payload::parse(&verified, &delivery).map_err(Refusal::Payload)? {
                Parsed::Ignored(reason) => Err(Fate::Ignored(reason)),
                Parsed::Event(event) => {
                    let packed = match without_secret(verified.text()) {
                        Some(text) => Packed::new(&text),
                        None => Packed::new(verified.text()),
                    };
                    Ok(NewEntry { delivery, traceparent, packed, event, _memory: body.memory })
                }
            })
        };
        if large {
            self.large_bodies.run(work).await.unwrap_or(Err(Refusal::Interrupted))
        } else {
            work()
        }
    }
}

/// Content type and signature from the headers. Both are unverified.
type Claim = (ContentType, [u8; 32]);

fn claim(headers: &Headers) -> Result<Claim, Refusal> {
    let content_type = headers.content_type.ok_or(Refusal::ContentType)?;
    Ok((content_type, headers.signature.map_err(Refusal::Signature)?))
}

/// The span of the wait for the journal. It exists for traces only, because no log line is written
/// within it.
fn journal_span(entry: &NewEntry) -> Span {
    if !trace::is_sampled(&Span::current()) {
        return Span::none();
    }
    let span = info_span!(target: TRACES_ONLY, "journal", otel.kind = "internal");
    let event = &entry.event;
    let (action, repository) = (event.action.as_str(), &event.repository);
    trace::describe(&span, &event.delivery.id, action, repository, event.issue.number);
    span
}
