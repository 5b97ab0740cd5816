//! Processes one message: decodes the event and attempts it until it has an end. `settle` decides
//! how the message itself is settled.

use std::time::{Duration, Instant};

use async_nats::{
    header::NATS_MESSAGE_ID,
    jetstream::{Message, kv},
};
use contract::{
    envelope,
    event::{IssueEvent, State},
    issue_state,
    names::consumer_name,
    subject::EventSubject,
    traceparent::{TRACEPARENT, Traceparent},
};
use opentelemetry::{
    KeyValue,
    trace::{SpanKind, TraceContextExt},
};
use service::{
    backoff::Backoff,
    broker::Session,
    causes::Causes,
    telemetry::trace::{self, FailedSpan},
};
use tokio_util::sync::CancellationToken;
use tracing::{Span, error, field, info_span, record_all, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

use super::{
    attempt::{Effort, End, Failure, attempt},
    doubt,
    outcome::{Cause, Outcome},
    ports::BrokerPorts,
};
use crate::{
    context::Context,
    issue::{memory::Memory, state::MessageId},
    partition::attempts,
};

/// Waits between attempts while the broker fails. The message stays in hand meanwhile.
pub(super) const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

/// Result of processing a message.
#[derive(Debug)]
pub(crate) struct Processed {
    pub(crate) end: End,
    /// The event, if the message could be decoded.
    pub(crate) event: Option<Box<IssueEvent>>,
    /// Number of this attempt, from 1.
    pub(crate) attempt: u64,
    pub(crate) started: Instant,
}

/// The message could not be finished, because the connection was lost or the worker is stopping.
/// This attempt does not count.
#[derive(Debug)]
pub(crate) struct Unfinished;

/// The span of a message: a child of the publish span, with a link to it.
pub(crate) fn span(message: &Message) -> Span {
    let parent = traceparent(message);
    let span = info_span!(
        parent: None,
        "process gitea.issues",
        otel.kind = "consumer",
        otel.status_code = field::Empty,
        error.r#type = field::Empty,
        gitea.delivery.id = field::Empty,
        trace_id = parent.map(|parent| format!("{:032x}", parent.trace_id)),
        gitea.event = "issues",
        gitea.action = field::Empty,
        gitea.repository = field::Empty,
        gitea.issue.ref = field::Empty,
    );
    if let Some(parent) = parent {
        trace::make_child(&span, &parent);
        span.add_link(trace::span_context(&parent));
    }
    // Set before decoding, so that an undecodable message has them too.
    if trace::is_sampled(&span) {
        set_attributes(&span, message);
    }
    span
}

/// Processes a message. Runs inside the message's span. `begun` gets the number of the attempt once
/// it counts.
///
/// While the broker fails, the attempt is repeated with the message in hand: a failing broker says
/// nothing about the event, so this uses up no attempts.
pub(crate) async fn process(
    context: &Context,
    session: &Session,
    store: &kv::Store,
    (partition, memory): (u8, &mut Memory),
    (message, begun): (&Message, &mut Option<u64>),
    stop: &CancellationToken,
) -> Result<Processed, Unfinished> {
    let started = Instant::now();
    let info = message.info().map_err(|error| {
        error!(error, "a message without its sequence");
        Unfinished
    })?;
    memory.received(info.consumer_sequence, context.bucket_made_at());
    let mut in_hand = InHand {
        message,
        id: message_id(message, info.stream_sequence),
        delivered: info.delivered.unsigned_abs(),
        number: None,
        begun,
        event: None,
        end: None,
        raised: 0,
    };
    let mut pause = RETRY;
    let mut anew = None;
    loop {
        let store = anew.as_ref().unwrap_or(store);
        let cause = match in_hand.attempt(context, session, store, (partition, memory)).await {
            Ok(()) => {
                let Some(end) = in_hand.end else { return Err(Unfinished) };
                if matches!(end.outcome, Outcome::Done) {
                    memory.handled();
                }
                let attempt = in_hand.number.unwrap_or(in_hand.delivered);
                return Ok(Processed { end, event: in_hand.event, attempt, started });
            }
            Err(cause) => cause,
        };
        // The broker may have been replaced, with other entries under the same revisions.
        memory.clear();
        session.suspect();
        context.instruments.retried();
        let error = context.broker.explain(started, Causes(cause.as_ref()).to_string());
        let line = context.failures.line(&error);
        if pause.is_fresh() || line.is_some() {
            let left_out = line.and_then(|line| line.left_out);
            warn!(error, left_out, "the broker fails, trying on with the delivery in hand");
        }
        wait(&mut pause, session, stop).await?;
        // What is missing on the broker may be made anew. If not, the next attempt fails again.
        anew = context.prepare(session, partition).await.ok().or(anew);
    }
}

/// Waits with a message in hand, for as long as the connection stands and the worker runs.
pub(super) async fn wait(
    pause: &mut Backoff,
    session: &Session,
    stop: &CancellationToken,
) -> Result<(), Unfinished> {
    tokio::select! {
        () = pause.wait() => Ok(()),
        () = session.ended() => Err(Unfinished),
        () = stop.cancelled() => Err(Unfinished),
    }
}

/// A message that is processed.
struct InHand<'a> {
    message: &'a Message,
    id: MessageId,
    delivered: u64,
    /// Number of the attempt, once it is known.
    number: Option<u64>,
    /// The same, once it counts.
    begun: &'a mut Option<u64>,
    /// The event, once it is decoded.
    event: Option<Box<IssueEvent>>,
    /// How the attempt ended, once it has.
    end: Option<End>,
    /// Attempts to raise its question.
    raised: u32,
}

impl InHand<'_> {
    /// Attempts the message, and raises the question that it leaves. The error is why the broker
    /// failed.
    async fn attempt(
        &mut self,
        context: &Context,
        session: &Session,
        store: &kv::Store,
        partition: (u8, &mut Memory),
    ) -> Result<(), Cause> {
        if self.end.is_none() {
            self.end = Some(self.handle(context, session, store, partition).await?);
        }
        match (&self.end, &self.event) {
            (Some(end), Some(event)) if end.asks => {
                self.raised += 1;
                doubt::raise(context, session, event, self.raised).await
            }
            _ => Ok(()),
        }
    }

    /// Handles the event to its end.
    async fn handle(
        &mut self,
        context: &Context,
        session: &Session,
        store: &kv::Store,
        (partition, memory): (u8, &mut Memory),
    ) -> Result<End, Cause> {
        // An attempt counts before anything is done with the message that could crash the worker.
        let number = self.begin(store, partition).await?;
        if self.event.is_none() {
            match decode(self.message) {
                Ok(event) => self.event = Some(event),
                Err(cause) => return Ok(End::undecodable(cause)),
            }
        }
        let Some(event) = &self.event else { return Err("no event".into()) };
        let key = issue_state::key(event.repository.id, event.issue.number);
        let mut ports = BrokerPorts { context, session, store, key: &key };
        let effort = Effort::of(number, context.max_attempts);
        match attempt(&mut ports, memory, &key, event, &self.id, effort).await {
            Ok(end) => Ok(end),
            Err(Failure::Unreadable(cause)) => Ok(End::failed(cause)),
            Err(Failure::Away(cause)) => Err(cause),
        }
    }

    /// Begins the attempt, once.
    async fn begin(&mut self, store: &kv::Store, partition: u8) -> Result<u64, Cause> {
        if let Some(number) = *self.begun {
            return Ok(number);
        }
        let number = match self.number {
            Some(number) => number,
            None => attempts::number(store, partition, &self.id, self.delivered).await?,
        };
        self.number = Some(number);
        attempts::record(store, partition, &self.id, number).await?;
        *self.begun = Some(number);
        Ok(number)
    }
}

fn decode(message: &Message) -> Result<Box<IssueEvent>, Cause> {
    let event = match envelope::read_event(&message.payload) {
        Ok(event) => Box::new(event),
        Err(error) => {
            if let Some(id) = message.headers.as_ref().and_then(|headers| headers.get("ce-id")) {
                Span::current().record("gitea.delivery.id", id.as_str());
            }
            return Err(Box::new(error));
        }
    };
    describe(&event);
    // What a newer ingest published is parked, to be redriven to a newer worker.
    if event.issue.state == State::Other {
        return Err("its issue has a state that this version does not know".into());
    }
    // Ingest publishes no other subject. The partition may be one of a former number of them.
    let subject = EventSubject::parse(&message.subject)?;
    if !subject.is_of(&event) {
        return Err("its subject is not the one of its event".into());
    }
    Ok(event)
}

pub(crate) fn message_id(message: &Message, sequence: u64) -> MessageId {
    let id = message.headers.as_ref().and_then(|headers| headers.get(NATS_MESSAGE_ID));
    MessageId { sequence, id: id.map(ToString::to_string).unwrap_or_default() }
}

fn traceparent(message: &Message) -> Option<Traceparent> {
    message.headers.as_ref()?.get(TRACEPARENT)?.as_str().parse().ok()
}

/// Records the event's fields on the span, and so on every log line within it.
fn describe(event: &IssueEvent) {
    let span = Span::current();
    record_all!(
        span,
        gitea.delivery.id = event.delivery.id.as_str(),
        gitea.action = event.action.as_str(),
        gitea.repository = event.repository.full_name(),
        gitea.issue.ref = event.issue_ref(),
    );
    trace::describe_repository(&span, &event.repository);
}

fn set_attributes(span: &Span, message: &Message) {
    // A field for the name would stand in each log line.
    span.context().span().update_name(name());
    for KeyValue { key, value, .. } in attributes(message) {
        span.set_attribute(key, value);
    }
}

/// Name of a message's span.
fn name() -> String {
    format!("process {}", trace::EVENTS_TEMPLATE)
}

/// What the headers and the subject of a message say of it.
fn attributes(message: &Message) -> Vec<KeyValue> {
    let id = message.headers.as_ref().and_then(|headers| headers.get(NATS_MESSAGE_ID));
    let destination = (trace::EVENTS_TEMPLATE, message.subject.to_string());
    let operation = ("process", "process");
    let mut attributes = trace::of_message(operation, destination, id.map(ToString::to_string));
    if let Ok(subject) = EventSubject::parse(&message.subject) {
        let group = consumer_name(subject.partition);
        attributes.push(KeyValue::new("messaging.consumer.group.name", group));
    }
    attributes
}

/// A dead letter has a span although its delivery has none.
pub(super) fn record_failure(message: &Message, processed: &Processed, error: &str) {
    let parent = traceparent(message);
    if trace::is_sampled(&Span::current()) {
        return;
    }
    let delivery = processed.event.as_ref().map(|event| event.delivery.id.as_str());
    let failure = FailedSpan {
        name: name().into(),
        kind: SpanKind::Consumer,
        parent,
        delivery_id: delivery.and_then(|id| Uuid::try_parse(id).ok()).unwrap_or_default(),
        started: processed.started,
        error,
    };
    trace::record_failure(failure, || {
        let mut attributes = attributes(message);
        let verdict: &'static str = processed.end.verdict.into();
        attributes.push(KeyValue::new("error.type", verdict));
        attributes.push(KeyValue::new("coordinator.verdict", verdict));
        if let Some(event) = &processed.event {
            attributes.extend([
                KeyValue::new("gitea.delivery.id", event.delivery.id.clone()),
                KeyValue::new("gitea.event", "issues"),
                KeyValue::new("gitea.action", event.action.as_str().to_owned()),
                KeyValue::new("gitea.issue.ref", event.issue_ref()),
            ]);
        }
        attributes
    });
}
