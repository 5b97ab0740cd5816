//! Processes one message: decodes the event, compares it with the state, publishes the changes, and
//! saves the new state. `settle` decides how the message itself is settled.
//!
//! Order of writes: change, then state, then ack. A crash in between repeats the same change under
//! the same message id.

use std::time::Instant;

use async_nats::{header::NATS_MESSAGE_ID, jetstream::Message};
use contract::{
    change::Change,
    envelope,
    event::IssueEvent,
    names::{PARTITIONS, consumer_name},
    subject::EventSubject,
    traceparent::{TRACEPARENT, Traceparent},
};
use service::{broker::Session, telemetry::trace};
use tracing::{Span, field, info_span, record_all};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::outcome::{Outcome, Verdict};
use crate::{
    context::Context,
    handlers::{self, HandlerContext},
    issue::{
        diff::{self, Judgement},
        state::{self, IssueStates, Saved},
    },
};

/// Comparisons of an event within one attempt. After a conflicting write of the state, the event is
/// compared again.
const JUDGEMENTS: usize = 5;

/// Result of processing a message.
#[derive(Debug)]
pub(crate) struct Processed {
    pub(crate) outcome: Outcome,
    pub(crate) verdict: Verdict,
    /// Summary of the published changes.
    pub(crate) changes: String,
    pub(crate) in_doubt: bool,
    /// The event, if the message could be decoded.
    pub(crate) event: Option<Box<IssueEvent>>,
    /// Number of this attempt, from 1.
    pub(crate) attempt: u64,
    pub(crate) started: Instant,
}

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

/// Runs inside the message's span.
pub(crate) async fn process(
    context: &Context,
    session: &Session,
    states: &mut IssueStates,
    message: &Message,
) -> Processed {
    let started = Instant::now();
    let mut processed = Processed {
        outcome: Outcome::Done,
        verdict: Verdict::Undecodable,
        changes: String::new(),
        in_doubt: false,
        event: None,
        attempt: 1,
        started,
    };
    match message.info() {
        Ok(info) => {
            processed.attempt = info.delivered.unsigned_abs();
            states.received(info.consumer_sequence);
        }
        Err(error) => {
            processed.outcome = Outcome::Transient(error);
            return processed;
        }
    }
    let event = match envelope::read_event(&message.payload) {
        Ok(event) => processed.event.insert(Box::new(event)),
        Err(error) => {
            if let Some(id) = message.headers.as_ref().and_then(|headers| headers.get("ce-id")) {
                Span::current().record("gitea.delivery.id", id.as_str());
            }
            processed.outcome = Outcome::Undecodable(Box::new(error));
            return processed;
        }
    };
    describe(event);
    if processed.attempt > context.max_attempts {
        // Checked before handling, because an earlier attempt may have crashed its worker.
        processed.verdict = Verdict::TooManyAttempts;
        processed.outcome = Outcome::TooManyAttempts;
        return processed;
    }
    let judged = judge_and_tell(context, session, states, event).await;
    (processed.verdict, processed.changes, processed.in_doubt, processed.outcome) = judged;
    if matches!(processed.outcome, Outcome::Done) {
        states.handled();
    }
    processed
}

async fn judge_and_tell(
    context: &Context,
    session: &Session,
    states: &mut IssueStates,
    event: &IssueEvent,
) -> (Verdict, String, bool, Outcome) {
    let key = state::key(event.repository.id, event.issue.number);
    let delivery_id = uuid::Uuid::try_parse(&event.delivery.id).unwrap_or_default();
    let handlers = HandlerContext { worker: context, session, delivery_id };
    for _ in 0..JUDGEMENTS {
        let known = match states.get(&key).await {
            Ok(known) => known,
            Err(error) => {
                return (
                    Verdict::Failed,
                    String::new(),
                    false,
                    Outcome::Transient(Box::new(error)),
                );
            }
        };
        let (before, revision) =
            (known.as_ref().map(|(state, _)| state), known.as_ref().map(|k| k.1));
        let (changes, next) = match diff::judge(before, event) {
            Judgement::Stale => return (Verdict::Stale, String::new(), false, Outcome::Done),
            Judgement::NothingNew => {
                return (Verdict::NothingNew, String::new(), false, Outcome::Done);
            }
            Judgement::New { changes, next } => (changes, next),
        };
        let (told, outcome) = handlers::handle_all(&handlers, &changes).await;
        let (summary, in_doubt) = (summary(&changes[..told]), next.in_doubt);
        if !matches!(outcome, Outcome::Done) {
            let failed = remember_told(states, &key, before, revision, &changes[..told]).await;
            return (Verdict::Failed, summary, in_doubt, failed.unwrap_or(outcome));
        }
        let verdict = if changes.is_empty() { Verdict::Unchanged } else { Verdict::Changed };
        match states.save(&key, next, revision).await {
            Ok(Saved::Done) => return (verdict, summary, in_doubt, Outcome::Done),
            Ok(Saved::Conflict) => {}
            Err(error) => {
                return (Verdict::Failed, summary, in_doubt, Outcome::Transient(Box::new(error)));
            }
        }
    }
    let error = "others keep writing this issue's state".into();
    (Verdict::Failed, String::new(), false, Outcome::Transient(error))
}

/// After a failure, saves the changes that were published before it, so that a later event does not
/// publish them again. Returns an outcome if the state could not be saved.
async fn remember_told(
    states: &mut IssueStates,
    key: &str,
    before: Option<&state::IssueState>,
    revision: Option<u64>,
    told: &[Change],
) -> Option<Outcome> {
    if told.is_empty() {
        return None;
    }
    match states.save(key, diff::told_so_far(before, told), revision).await {
        Ok(Saved::Done) => None,
        Ok(Saved::Conflict) => Some(Outcome::Transient("another wrote this issue's state".into())),
        Err(error) => Some(Outcome::Transient(Box::new(error))),
    }
}

fn summary(changes: &[Change]) -> String {
    changes.iter().map(Change::summary).collect::<Vec<_>>().join(", ")
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
