//! Publishes one entry to the broker. It retries under the same message id until the broker
//! confirms.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::jetstream::{context::PublishError, publish::PublishAck};
use contract::{
    envelope::{Envelope, MESSAGE_ID},
    event::IssueEvent,
    names,
    subject::EventSubject,
    timestamp::Timestamp,
    traceparent::trace_id_text,
};
use service::{
    backoff::Backoff,
    broker::{
        Broker, Session,
        findings::Findings,
        refusal::Refusal,
        streams::{Streams, StreamsError, StreamsSettings},
    },
    causes::Causes,
    log_limit::LogLimit,
    telemetry::trace::{self, TRACES_ONLY},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, debug, field, info, info_span, warn};

use super::lanes::Offer;
use crate::{
    gitea::payload::{self, Parsed},
    instruments::Instruments,
    journal::{Content, Entry, window::Window},
    settings::IngestSettings,
};

/// Pauses between attempts.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
/// Least number of bytes that stay free in a message, for headers and for what the worker adds.
const LEAST_HEADROOM: usize = 2048;
/// Bytes for the header `Nats-Expected-Stream`, which the client adds.
const CLIENT_HEADERS: usize = 64;
/// How long a look at the stream holds. Each check renews it. Where checks fail, or this process was
/// suspended, nothing is published before another look, since the number of partitions may be changing.
/// `create-streams` waits longer than this.
const MAX_AGE: Duration = Duration::from_secs(45);
/// How often the broker may refuse a message as too large before the entry is set aside. The limits
/// that were read last may be outdated.
const MAX_OVERSIZED: u32 = 3;

/// Why nothing can be published at all.
pub(crate) const NO_CONNECTION: &str = "there is no connection to the broker";

/// Result of publishing an entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Published {
    /// The broker has confirmed it.
    Confirmed,
    /// No attempt can succeed, for this reason.
    Refused(String),
    /// The session ended first. The entry is offered again.
    Interrupted,
    /// It was settled so long ago that the broker may have forgotten its message id.
    Expired,
}

pub(crate) struct Publisher {
    broker: Broker,
    source: String,
    streams: StreamsSettings,
    /// What of the stream is not as needed.
    findings: Arc<Findings>,
    window: Arc<Window>,
    stream: tokio::sync::Mutex<Known>,
    /// Highest sequence of the stream that a confirmation has named since the offering began.
    highest: AtomicU64,
    /// Whether a failure has been logged, and no confirmation since.
    failing: AtomicBool,
    lines: LogLimit,
    /// Publish spans of interrupted entries, by sequence. A span continues when its entry is
    /// offered again.
    unfinished: Mutex<HashMap<i64, Ending>>,
    instruments: Arc<Instruments>,
}

/// What is known of the stream of events.
#[derive(Default)]
struct Known {
    /// Cached properties. Cleared when an error shows that they may be outdated.
    stream: Option<Stream>,
    /// When the stream was created, in nanoseconds of Unix time.
    created: Option<i128>,
    /// Cancelled once the stream turns out to have been made anew, or to have lost its tail.
    anew: CancellationToken,
}

/// The stream of events as a look-up finds it.
struct Found {
    stream: Stream,
    created: i128,
    /// It ends before a sequence that it has confirmed.
    lost_its_tail: bool,
}

/// What is the same for all entries while they are offered.
#[derive(Clone, Debug)]
pub(super) struct Offering {
    pub(super) session: Session,
    pub(super) dedup_window: Duration,
    anew: CancellationToken,
}

impl Offering {
    /// Whether all entries have to be offered again, as far as is known.
    pub(super) fn is_over(&self) -> bool {
        self.session.is_over() || self.is_of_another_stream()
    }

    /// Whether the stream is another one by now.
    pub(super) fn is_of_another_stream(&self) -> bool {
        self.anew.is_cancelled()
    }

    /// Waits until all entries have to be offered again: the connection is lost, or the stream is
    /// another one.
    pub(super) async fn ended(&self) {
        tokio::select! {
            () = self.session.ended() => {}
            () = self.anew.cancelled() => {}
        }
    }
}

/// The stream of events as it is configured on the broker, which may differ from the requested
/// configuration.
#[derive(Clone, Copy)]
struct Stream {
    /// Number of the session that read it, because the next session may be with another server.
    session: u64,
    looked_at: Instant,
    dedup_window: Duration,
    /// Largest message, including headers, if the stream has such a limit.
    max_message: Option<usize>,
}

impl Publisher {
    pub(super) fn new(
        settings: &IngestSettings,
        broker: Broker,
        window: Arc<Window>,
        instruments: Arc<Instruments>,
        findings: Arc<Findings>,
    ) -> Self {
        Self {
            broker,
            source: settings.common.gitea_url.clone(),
            streams: settings.common.streams.clone(),
            findings,
            window,
            stream: tokio::sync::Mutex::default(),
            highest: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            lines: LogLimit::new(),
            unfinished: Mutex::default(),
            instruments,
        }
    }

    /// Ensures that the stream exists, and retries until it does. Returns what the entries are
    /// offered with.
    pub(super) async fn prepare(&self, session: &Session) -> Offering {
        let mut backoff = BACKOFF;
        loop {
            let started = Instant::now();
            let mut known = self.stream.lock().await;
            if known.anew.is_cancelled() {
                *known = Known { created: known.created, ..Known::default() };
            }
            match self.look_up(&mut known, session).await {
                Ok(stream) => {
                    self.highest.store(0, Ordering::Relaxed);
                    // The look-up may just have found that the stream is another one.
                    if known.anew.is_cancelled() {
                        known.anew = CancellationToken::new();
                    }
                    return Offering {
                        session: session.clone(),
                        dedup_window: stream.dedup_window,
                        anew: known.anew.clone(),
                    };
                }
                Err(error) => self.failed(None, started, Causes(&error).to_string()),
            }
            drop(known);
            backoff.wait().await;
        }
    }

    /// Compares the stream on the broker with what is needed. It is created if it is missing, and
    /// all entries are offered again if it is another one.
    pub(crate) async fn check(&self, session: &Session) -> Result<(), StreamsError> {
        // Without the lock, which every publish needs: a broker that does not answer this may still
        // take events.
        let found = self.find(session).await;
        let mut known = self.stream.lock().await;
        match found {
            Ok(found) => {
                self.note(&mut known, found);
                Ok(())
            }
            Err(error) => {
                if matches!(error, StreamsError::Partitions(..) | StreamsError::Switching(_)) {
                    // Nothing more is published until a look-up succeeds.
                    known.stream = None;
                    known.anew.cancel();
                }
                Err(error)
            }
        }
    }

    /// Returns once the entry needs no further attempt, or once the session has ended.
    pub(super) async fn publish(&self, offer: &mut Offer, offering: &Offering) -> Published {
        let event = match event(&mut offer.entry) {
            Ok(event) => event,
            Err(reason) => return Published::Refused(reason),
        };
        let seq = offer.entry.seq;
        let mut ending = self.unfinished().remove(&seq).unwrap_or_else(|| {
            // Offering a settled entry again is upkeep. It is not part of the delivery's trace.
            let span = if offer.first {
                self.publish_span(&offer.entry, &event, None)
            } else {
                Span::none()
            };
            Ending { span, error: Some("cut_short") }
        });
        let span = ending.span.clone();
        let published = tokio::select! {
            biased;
            published = self.until_confirmed(offer, event, offering).instrument(span) => published,
            () = offering.ended() => Published::Interrupted,
        };
        match published {
            Published::Confirmed | Published::Expired => ending.error = None,
            Published::Refused(_) => ending.error = Some("refused"),
            Published::Interrupted => {
                if offer.first {
                    self.unfinished().insert(seq, ending);
                }
            }
        }
        published
    }

    /// Publishes the event of an entry once more, under another message id: the stream would drop it
    /// under that of the delivery. One attempt. Returns the subject and the sequence in the stream.
    ///
    /// The worker judges it as any repetition of its delivery, so that it does no harm behind newer
    /// events of its issue.
    ///
    /// # Errors
    /// Why it was not published, in words.
    pub(crate) async fn publish_again(
        &self,
        mut entry: Entry,
        message_id: String,
    ) -> Result<(String, u64), String> {
        let session = self.broker.session().ok_or(NO_CONNECTION)?;
        let mut event = event(&mut entry)?;
        let span = self.publish_span(&entry, &event, Some(&message_id));
        let mut ending = Ending { span: span.clone(), error: Some("refused") };
        let published = async {
            let started = Instant::now();
            let explained = |error: &(dyn std::error::Error + 'static)| {
                self.broker.explain(started, Causes(error).to_string())
            };
            let stream = self.stream(&session).await.map_err(|error| explained(&error))?;
            let limits = (session.max_payload(), stream.max_message);
            let mut envelope = self.envelope(&entry, &mut event, limits)?;
            envelope.headers.0.retain(|(name, _)| name != MESSAGE_ID);
            envelope.headers.push(MESSAGE_ID, message_id);
            let subject = envelope.subject.clone();
            let ack = session.publish(envelope, names::EVENTS).await;
            Ok((subject, ack.map_err(|error| explained(&error))?.sequence))
        };
        let published = published.instrument(span).await;
        if published.is_ok() {
            ending.error = None;
        }
        published
    }

    /// Subject of an event.
    pub(crate) fn subject_of(&self, event: &IssueEvent) -> String {
        EventSubject::of(event, self.streams.partitions).to_string()
    }

    /// The current connection to the broker.
    pub(crate) fn session(&self) -> Option<Session> {
        self.broker.session()
    }

    fn unfinished(&self) -> MutexGuard<'_, HashMap<i64, Ending>> {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn until_confirmed(
        &self,
        offer: &Offer,
        mut event: IssueEvent,
        offering: &Offering,
    ) -> Published {
        let session = &offering.session;
        let mut backoff = BACKOFF;
        let mut oversized = 0;
        loop {
            if offer.has_expired(Timestamp::now()) {
                return Published::Expired;
            }
            let started = Instant::now();
            let stream = match self.stream(session).await {
                Ok(stream) => stream,
                Err(error) => {
                    self.failed(Some(&offer.entry), started, Causes(&error).to_string());
                    backoff.wait().await;
                    continue;
                }
            };
            if offering.is_of_another_stream() {
                // The entries before this one come first.
                return Published::Interrupted;
            }
            let limits = (session.max_payload(), stream.max_message);
            let envelope = match self.envelope(&offer.entry, &mut event, limits) {
                Ok(envelope) => envelope,
                Err(reason) => return Published::Refused(reason),
            };
            let sent_at = Timestamp::now();
            let highest = self.highest.load(Ordering::Relaxed);
            let error = match session.publish(envelope, names::EVENTS).await {
                Ok(ack) => {
                    if !ack.duplicate && ack.sequence <= highest {
                        // A stream only counts up: this is another one, or it has lost its tail.
                        offering.anew.cancel();
                    }
                    self.highest.fetch_max(ack.sequence, Ordering::Relaxed);
                    self.confirmed(offer, &ack, sent_at);
                    return Published::Confirmed;
                }
                Err(error) => error,
            };
            match Refusal::of(&error) {
                Refusal::Never => return Published::Refused(Causes(&error).to_string()),
                Refusal::TooLarge => {
                    oversized += 1;
                    if oversized >= MAX_OVERSIZED {
                        return Published::Refused(too_large(limits));
                    }
                    self.stream.lock().await.stream = None;
                }
                Refusal::PrepareAgain => {
                    self.stream.lock().await.stream = None;
                    self.attempt_failed(offer, started, &error);
                }
                // An event expects nothing of the message before it, and stays as long as all.
                Refusal::NotLast | Refusal::NoTtl | Refusal::Away => {
                    self.attempt_failed(offer, started, &error)
                }
            }
            backoff.wait().await;
        }
    }

    /// The message. The event's texts are cut if the message would be too large for the server or
    /// the stream.
    fn envelope(
        &self,
        entry: &Entry,
        event: &mut IssueEvent,
        limits: (usize, Option<usize>),
    ) -> Result<Envelope, String> {
        let wrap = |event: &IssueEvent| {
            let traceparent = trace::exported(&Span::current())
                .or(entry.traceparent)
                .unwrap_or_else(|| trace::of_delivery(&Span::none(), entry.delivery.id));
            Envelope::of_event(event, &self.source, &traceparent, self.streams.partitions)
                .map_err(|error| Causes(&error).to_string())
        };
        let (max_payload, max_message) = limits;
        let mut limit = max_payload.saturating_sub((max_payload / 8).max(LEAST_HEADROOM));
        // JSON encoding never shortens a text. So a body over the limit shows that the whole event
        // is too large.
        if event.issue.body.len() <= limit {
            let whole = wrap(event)?;
            if let Some(max_message) = max_message {
                let headers = whole.headers.wire_bytes() + CLIENT_HEADERS;
                limit = limit.min(max_message.saturating_sub(headers));
            }
            if whole.payload.len() <= limit {
                return Ok(whole);
            }
        }
        if !event.cut_to(limit) {
            return Err(too_large(limits));
        }
        wrap(event)
    }

    /// The stream, created if it is missing. One attempt looks it up while the others wait.
    async fn stream(&self, session: &Session) -> Result<Stream, StreamsError> {
        self.look_up(&mut *self.stream.lock().await, session).await
    }

    async fn look_up(&self, known: &mut Known, session: &Session) -> Result<Stream, StreamsError> {
        let is_current = |stream: &Stream| {
            stream.session == session.number() && stream.looked_at.elapsed() < MAX_AGE
        };
        if let Some(stream) = known.stream.filter(is_current) {
            return Ok(stream);
        }
        let found = self.find(session).await?;
        Ok(self.note(known, found))
    }

    async fn find(&self, session: &Session) -> Result<Found, StreamsError> {
        let confirmed = self.highest.load(Ordering::Relaxed);
        let (js, settings, findings) = (&session.jetstream, &self.streams, &self.findings);
        let found = Streams { js, settings, findings }.events_to_publish().await?;
        let info = found.cached_info();
        let config = &info.config;
        let stream = Stream {
            session: session.number(),
            looked_at: Instant::now(),
            dedup_window: config.duplicate_window,
            max_message: usize::try_from(config.max_message_size).ok().filter(|n| *n > 0),
        };
        Ok(Found {
            stream,
            created: info.created.unix_timestamp_nanos(),
            lost_its_tail: info.state.last_sequence < confirmed,
        })
    }

    fn note(&self, known: &mut Known, found: Found) -> Stream {
        let is_another = known.created.replace(found.created).is_some_and(|c| c != found.created);
        if is_another || found.lost_its_tail {
            known.anew.cancel();
        }
        *known.stream.insert(found.stream)
    }

    fn confirmed(&self, offer: &Offer, ack: &PublishAck, sent_at: Timestamp) {
        let received_at = offer.entry.delivery.received_at;
        // A duplicate may have been stored at any time since the delivery was received.
        let stored_at = if ack.duplicate { received_at } else { sent_at };
        self.window.confirm(offer.entry.seq, stored_at);
        let age = Timestamp::now().unix_micros() - received_at.unix_micros();
        let seconds = offer.first.then_some(age.max(0) as f64 / 1e6);
        self.instruments.published(ack.duplicate, seconds);
        let (id, seq, duplicate) = (offer.entry.delivery.id, offer.entry.seq, ack.duplicate);
        debug!(gitea.delivery.id = %id, trace_id = trace_id_text(id), seq, duplicate, "published");
        if self.failing.swap(false, Ordering::Relaxed) {
            info!(parent: None, "publishing again");
        }
    }

    /// The span of a publish. `message_id` is None where it is the delivery's.
    fn publish_span(&self, entry: &Entry, event: &IssueEvent, message_id: Option<&str>) -> Span {
        if entry.traceparent.is_some_and(|parent| !parent.sampled) {
            return Span::none();
        }
        let id = entry.delivery.id;
        let span = info_span!(
            target: TRACES_ONLY,
            parent: None,
            "publish gitea.issues.{action}.{owner}.{repo}.{number}.{partition}",
            otel.kind = "producer",
            otel.status_code = field::Empty,
            error.r#type = field::Empty,
            gitea.delivery.id = %id,
            gitea.event = "issues",
            gitea.action = event.action.as_str(),
            gitea.issue.ref = event.issue_ref(),
        );
        if let Some(parent) = &entry.traceparent {
            trace::make_child(&span, parent);
        }
        if trace::is_sampled(&span) {
            trace::describe_repository(&span, &event.repository);
            let subject = EventSubject::of(event, self.streams.partitions).to_string();
            let destination = (trace::EVENTS_TEMPLATE, subject);
            let operation = ("publish", "send");
            let id = message_id.map_or_else(|| id.to_string(), str::to_owned);
            trace::describe_message(&span, operation, destination, Some(id));
        }
        span
    }

    fn attempt_failed(&self, offer: &Offer, started: Instant, error: &PublishError) {
        self.failed(Some(&offer.entry), started, Causes(error).to_string());
    }

    /// An outage is logged once at its start and once at its end, however many deliveries wait.
    fn failed(&self, entry: Option<&Entry>, started: Instant, error: String) {
        self.instruments.publish_failed();
        let id = entry.map(|entry| field::display(entry.delivery.id));
        let trace_id = entry.map(|entry| trace_id_text(entry.delivery.id));
        let error = self.broker.explain(started, error);
        // Where some issues fail and others do not, an outage begins with each of them.
        let line =
            if self.failing.load(Ordering::Relaxed) { None } else { self.lines.line(&error) };
        let Some(line) = line else {
            return debug!(gitea.delivery.id = id, trace_id, error, "cannot publish yet");
        };
        self.failing.store(true, Ordering::Relaxed);
        warn!(
            gitea.delivery.id = id,
            trace_id,
            error,
            left_out = line.left_out,
            "cannot publish, trying on; deliveries are kept meanwhile"
        );
    }
}

/// Marks a publish span as failed if it ends without a confirmation. This includes a span that a
/// stop cuts short, because the next start publishes under another span.
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

fn too_large((max_payload, max_message): (usize, Option<usize>)) -> String {
    let limit = max_message.map_or(max_payload, |max| max.min(max_payload));
    format!("larger than the {limit} bytes that the broker takes, even with its texts cut")
}

/// The typed event of a journal entry, from memory or parsed from its text.
pub(crate) fn event(entry: &mut Entry) -> Result<IssueEvent, String> {
    let text = match std::mem::replace(&mut entry.content, Content::Text(Vec::new())) {
        Content::Event(event) => return Ok(*event),
        Content::Text(text) => text,
        Content::Unreadable(reason) => return Err(reason),
    };
    match payload::read(&text, &entry.delivery) {
        Ok(Parsed::Event(event)) => Ok(*event),
        Ok(Parsed::Ignored(reason)) => Err(format!("no longer an issue event: {reason:?}")),
        Err(error) => Err(error.to_string()),
    }
}
