//! One entry to the broker, again and again under the same message id until
//! it is confirmed.

use std::{
    collections::HashMap,
    sync::{
        Arc, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::jetstream::{
    context::{PublishError, PublishErrorKind},
    message::PublishMessage,
    publish::PublishAck,
};
use shared::{
    broker::{Broker, Session},
    causes::Causes,
    envelope::Envelope,
    event::{self, IssueEvent},
    streams::{self, StreamsConfig},
    subject::EventSubject,
    timestamp::Timestamp,
    trace::{self, Traceparent},
};
use tokio::sync::Mutex;
use tracing::{Instrument, Span, debug, field, info, info_span, warn};

use super::lanes::Offer;
use crate::{
    config::IngestConfig,
    instruments::Instruments,
    journal::{Content, Entry},
    parse::{self, Parsed},
};

/// First and longest wait before another attempt.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Room that is left in a message for headers, and for what the worker adds to it.
const LEAST_HEADROOM: usize = 2048;
/// Times that a broker may call a message too large before it is set aside.
const MAX_OVERSIZED: u32 = 3;

/// What became of an entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Published {
    /// The broker has it.
    Confirmed,
    /// No attempt will ever succeed, for this reason.
    Refused(String),
    /// Not yet; it is offered again.
    Interrupted,
}

/// Publishes entries.
pub(super) struct Publisher {
    broker: Broker,
    source: String,
    streams: StreamsConfig,
    /// Number of the session that last saw the stream: the next one may be with another server.
    stream_found_by: Mutex<Option<u64>>,
    forget_stream: AtomicBool,
    failing: AtomicBool,
    /// Of entries that were interrupted, by sequence: to be gone on with when they come again.
    unfinished: std::sync::Mutex<HashMap<i64, Ending>>,
    instruments: Arc<Instruments>,
}

impl Publisher {
    pub(super) fn new(
        config: &IngestConfig,
        broker: Broker,
        instruments: Arc<Instruments>,
    ) -> Self {
        Self {
            broker,
            source: config.common.gitea_url.clone(),
            streams: config.common.streams.clone(),
            stream_found_by: Mutex::new(None),
            forget_stream: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            unfinished: std::sync::Mutex::default(),
            instruments,
        }
    }

    /// Returns once the broker has the entry, or never will, or when the session is over.
    pub(super) async fn publish(&self, offer: &mut Offer, session: &Session) -> Published {
        let event = match event(&mut offer.entry) {
            Ok(event) => event,
            Err(reason) => return Published::Refused(reason),
        };
        let seq = offer.entry.seq;
        let mut ending = self.unfinished().remove(&seq).unwrap_or_else(|| {
            // Offering again what is known to be there is upkeep and no part of the delivery's story.
            let span = if offer.first { publish_span(&offer.entry, &event) } else { Span::none() };
            Ending { span, error: Some("cut_short") }
        });
        let span = ending.span.clone();
        let published = tokio::select! {
            biased;
            published = self.until_confirmed(offer, event, session).instrument(span) => published,
            () = session.ended() => Published::Interrupted,
        };
        match published {
            Published::Confirmed => ending.error = None,
            Published::Refused(_) => ending.error = Some("refused"),
            Published::Interrupted => {
                self.unfinished().insert(seq, ending);
            }
        }
        published
    }

    fn unfinished(&self) -> MutexGuard<'_, HashMap<i64, Ending>> {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn until_confirmed(
        &self,
        offer: &Offer,
        mut event: IssueEvent,
        session: &Session,
    ) -> Published {
        let mut backoff = Backoff::default();
        let mut oversized = 0;
        loop {
            let max_payload = session.max_payload();
            let envelope = match self.envelope(&offer.entry, &mut event, max_payload) {
                Ok(envelope) => envelope,
                Err(reason) => return Published::Refused(reason),
            };
            let started = Instant::now();
            match self.attempt(envelope, session).await {
                Ok(ack) => {
                    self.confirmed(offer, ack.duplicate);
                    return Published::Confirmed;
                }
                Err(Failure::Publish(error))
                    if error.kind() == PublishErrorKind::MaxPayloadExceeded =>
                {
                    oversized += 1;
                    if oversized >= MAX_OVERSIZED {
                        return Published::Refused(too_large(max_payload));
                    }
                }
                Err(failure) => self.failed(offer, started, &failure),
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// The message, with the event's texts cut where it would be too large.
    fn envelope(
        &self,
        entry: &Entry,
        event: &mut IssueEvent,
        max_payload: usize,
    ) -> Result<Envelope, String> {
        let wrap = |event: &IssueEvent| {
            Envelope::of_event(event, &self.source, &self.traceparent(entry))
                .map_err(|error| Causes(&error).to_string())
        };
        let limit = max_payload.saturating_sub((max_payload / 8).max(LEAST_HEADROOM));
        // JSON makes no text shorter: with one beyond the limit the whole need not be made.
        if event.issue.body.len() <= limit {
            let whole = wrap(event)?;
            if whole.payload.len() <= limit {
                return Ok(whole);
            }
        }
        if !event.cut_to(limit) {
            return Err(too_large(max_payload));
        }
        wrap(event)
    }

    fn traceparent(&self, entry: &Entry) -> Traceparent {
        Traceparent::exported(&Span::current())
            .or(entry.traceparent)
            .unwrap_or_else(|| Traceparent::of_span(&Span::none(), entry.trace_id()))
    }

    async fn attempt(&self, envelope: Envelope, session: &Session) -> Result<PublishAck, Failure> {
        self.ensure_stream(session).await?;
        // The message id stands in the envelope's headers.
        let message = PublishMessage::build()
            .payload(envelope.payload.into())
            .headers(envelope.headers)
            .expected_stream(streams::EVENTS);
        let sent = session.jetstream.send_publish(envelope.subject, message).await;
        let ack = match sent {
            Ok(ack) => ack.await,
            Err(error) => Err(error),
        };
        ack.map_err(|error| {
            if error.kind() == PublishErrorKind::StreamNotFound {
                self.forget_stream.store(true, Ordering::Relaxed);
            }
            Failure::Publish(error)
        })
    }

    /// Creates the stream if it is not there. One attempt does it while the others wait.
    async fn ensure_stream(&self, session: &Session) -> Result<(), Failure> {
        let mut found_by = self.stream_found_by.lock().await;
        if self.forget_stream.swap(false, Ordering::Relaxed) {
            *found_by = None;
        }
        if *found_by != Some(session.number()) {
            streams::events(&session.jetstream, &self.streams).await.map_err(Failure::Stream)?;
            *found_by = Some(session.number());
        }
        Ok(())
    }

    fn confirmed(&self, offer: &Offer, known_before: bool) {
        let age = Timestamp::now().unix_micros() - offer.entry.received_at.unix_micros();
        let seconds = offer.first.then_some(age.max(0) as f64 / 1e6);
        self.instruments.published(known_before, seconds);
        let (id, trace_id) = (offer.entry.delivery_id, offer.entry.trace_id());
        let (seq, duplicate) = (offer.entry.seq, known_before);
        debug!(gitea.delivery.id = %id, %trace_id, seq, duplicate, "published");
        if self.failing.swap(false, Ordering::Relaxed) {
            info!(parent: None, "publishing again");
        }
    }

    /// An outage is one line at its start and one at its end, however many deliveries wait.
    fn failed(&self, offer: &Offer, started: Instant, failure: &Failure) {
        self.instruments.publish_failed();
        let (id, trace_id) = (offer.entry.delivery_id, offer.entry.trace_id());
        let error = self.broker.explain(started, failure.to_string());
        if self.failing.swap(true, Ordering::Relaxed) {
            debug!(gitea.delivery.id = %id, %trace_id, error, "cannot publish yet");
        } else {
            warn!(
                gitea.delivery.id = %id,
                %trace_id,
                error,
                "cannot publish, trying on; deliveries are kept meanwhile"
            );
        }
    }
}

/// Marks a publish span as failed when it ends without a confirmation, also
/// where a stop cuts it short: the next start publishes under another span.
struct Ending {
    span: Span,
    error: Option<&'static str>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(error) = self.error {
            self.span.record("otel.status_code", "ERROR");
            self.span.record("error.type", error);
        }
    }
}

/// Why an attempt failed.
enum Failure {
    Publish(PublishError),
    Stream(streams::StreamsError),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Publish(error) => Causes(error).fmt(f),
            Self::Stream(error) => Causes(error).fmt(f),
        }
    }
}

fn too_large(max_payload: usize) -> String {
    format!("larger than the broker's max_payload of {max_payload} bytes, even with its texts cut")
}

/// The typed event of a journal entry: taken, or read from its text.
fn event(entry: &mut Entry) -> Result<IssueEvent, String> {
    let text = match std::mem::replace(&mut entry.content, Content::Text(Vec::new())) {
        Content::Event(event) => return Ok(*event),
        Content::Text(text) => text,
    };
    let delivery = event::Delivery {
        id: entry.delivery_id.to_string(),
        received_at: entry.received_at,
        body_sha256: hex::encode(entry.body_sha256),
        hook: entry.hook.clone(),
    };
    match parse::issue_event(&text, delivery) {
        Ok(Parsed::Event(event)) => Ok(*event),
        Ok(Parsed::Ignored(reason)) => Err(format!("no longer an issue event: {reason:?}")),
        Err(refusal) => Err(refusal.message),
    }
}

fn publish_span(entry: &Entry, event: &IssueEvent) -> Span {
    let span = info_span!(
        parent: None,
        "publish gitea.issues",
        otel.kind = "producer",
        otel.status_code = field::Empty,
        error.r#type = field::Empty,
        gitea.delivery.id = %entry.delivery_id,
        trace_id = %entry.trace_id(),
        gitea.event = "issues",
        gitea.action = event.action.as_str(),
        gitea.repository = event.repository.full_name(),
        gitea.issue.ref = event.issue_ref(),
    );
    if let Some(parent) = &entry.traceparent {
        trace::make_child(&span, parent);
    }
    if trace::is_sampled(&span) {
        trace::describe_repository(&span, &event.repository);
        let (subject, id) = (EventSubject::of(event).to_string(), entry.delivery_id.to_string());
        trace::describe_message(&span, ("publish", "send"), subject, Some(id));
    }
    span
}

/// Exponential, with jitter so that many waiting entries do not come back at once.
#[derive(Default)]
struct Backoff {
    attempts: u32,
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let (first, longest) = BACKOFF;
        let ceiling = first.saturating_mul(1 << self.attempts.min(10)).min(longest);
        self.attempts += 1;
        ceiling.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_two_seconds_and_no_further() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..40).map(|_| backoff.next()).collect();
        assert!(waits[0] >= BACKOFF.0 / 2 && waits[0] <= BACKOFF.0);
        assert!(waits.iter().all(|wait| *wait <= BACKOFF.1));
        assert!(waits[39] >= BACKOFF.1 / 2);
    }
}
