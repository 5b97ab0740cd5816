//! Processes one message: decodes the event and attempts it until it has an end. `settle` decides
//! how the message itself is settled.

use std::time::{Duration, Instant};

use async_nats::{
    header::NATS_MESSAGE_ID,
    jetstream::{Message, kv},
};
use contract::{
    envelope,
    event::IssueEvent,
    names::{PARTITIONS, consumer_name},
    subject::EventSubject,
    traceparent::{TRACEPARENT, Traceparent},
};
use service::{backoff::Backoff, broker::Session, causes::Causes, telemetry::trace};
use tokio_util::sync::CancellationToken;
use tracing::{Span, debug, error, field, info_span, record_all, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{
    attempt::{Away, End, attempt},
    outcome::Outcome,
    ports::BrokerPorts,
};
use crate::{
    context::Context,
    issue::state::{self, MessageId},
    partition::{attempts, consume::Partition},
};

/// Waits between attempts while the broker fails. The message stays in hand meanwhile.
const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

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

/// Processes a message. Runs inside the message's span.
///
/// While the broker fails, the attempt is repeated with the message in hand: a failing broker says
/// nothing about the event, so this uses up no attempts.
pub(crate) async fn process(
    context: &Context,
    session: &Session,
    store: &kv::Store,
    partition: &mut Partition,
    message: &Message,
    stop: &CancellationToken,
) -> Result<Processed, Unfinished> {
    let started = Instant::now();
    let info = message.info().map_err(|error| {
        error!(error, "a message without its sequence");
        Unfinished
    })?;
    partition.memory.received(info.consumer_sequence);
    let delivered = info.delivered.unsigned_abs();
    let id = message_id(message, info.stream_sequence);
    let event = match envelope::read_event(&message.payload) {
        Ok(event) => Box::new(event),
        Err(error) => {
            if let Some(id) = message.headers.as_ref().and_then(|headers| headers.get("ce-id")) {
                Span::current().record("gitea.delivery.id", id.as_str());
            }
            let end = End::undecodable(Box::new(error));
            return Ok(Processed { end, event: None, attempt: delivered, started });
        }
    };
    describe(&event);
    let mut pause = RETRY;
    let mut begun = None;
    let mut anew = None;
    loop {
        let store = anew.as_ref().unwrap_or(store);
        let ended = async {
            let number = match begun {
                Some(number) => number,
                None => *begun.insert(begin(store, partition, &id, delivered).await?),
            };
            let key = state::key(event.repository.id, event.issue.number);
            let mut ports = BrokerPorts { context, session, store, key: &key };
            // Checked before handling, because an earlier attempt may have crashed its worker.
            let used_up = number > context.max_attempts;
            attempt(&mut ports, &mut partition.memory, &event, &id, used_up).await
        };
        match ended.await {
            Ok(end) => {
                if matches!(end.outcome, Outcome::Done) {
                    partition.memory.handled();
                }
                let attempt = begun.unwrap_or(delivered);
                return Ok(Processed { end, event: Some(event), attempt, started });
            }
            Err(Away(cause)) => {
                let cause = context.broker.explain(started, Causes(cause.as_ref()).to_string());
                context.instruments.retried();
                if pause.is_fresh() {
                    warn!(error = cause, "the broker fails, trying on with the delivery in hand");
                } else {
                    debug!(error = cause, "the broker still fails");
                }
            }
        }
        tokio::select! {
            () = pause.wait() => {}
            () = session.ended() => return Err(Unfinished),
            () = stop.cancelled() => return Err(Unfinished),
        }
        // What is missing on the broker may be made anew. If not, the next attempt fails again.
        anew = context.prepare(session, partition.number).await.ok().or(anew);
    }
}

async fn begin(
    store: &kv::Store,
    partition: &Partition,
    id: &MessageId,
    delivered: u64,
) -> Result<u64, Away> {
    let begun = attempts::begin(store, partition.number, id, delivered).await;
    begun.map_err(|error| Away(Box::new(error)))
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
    let partition = EventSubject::parse(&message.subject).map_or(PARTITIONS, |s| s.partition);
    let id = message.headers.as_ref().and_then(|headers| headers.get(NATS_MESSAGE_ID));
    let (subject, id) = (message.subject.to_string(), id.map(ToString::to_string));
    trace::describe_message(span, ("process", "process"), subject, id);
    span.set_attribute("messaging.consumer.group.name", consumer_name(partition));
}
