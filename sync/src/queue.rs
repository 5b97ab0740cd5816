//! Answers the questions: one after the other of an issue, several issues at once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::jetstream::{
    AckKind, Message,
    consumer::{Consumer, pull},
};
use contract::{
    names::{GAP_SUBJECT, Lane, QUESTIONS},
    timestamp::Timestamp,
    traceparent::{TRACEPARENT, Traceparent},
};
use futures::StreamExt;
use service::{
    backoff::Backoff,
    broker::{consumers::QUESTION_ACK_WAIT, refusal::Refusal},
    causes::Causes,
    question::{Question, QuestionError},
    telemetry::trace,
};
use thiserror::Error;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, field, info, info_span, warn};

use crate::{
    answer::{self, AnswerError, Answered, Mode},
    context::{Context, Stores, StoresError},
    presence::{Presence, PresenceError},
};

/// How long an issue must be quiet before Gitea is asked about it. A burst ends in one question.
const QUIET: Duration = Duration::from_secs(2);
/// Questions in hand at once. The budget of requests is the real limit.
pub(crate) const IN_HAND: usize = 8;
/// How long a request for messages waits at the broker.
const EXPIRES: Duration = Duration::from_secs(1);
/// Pauses while the broker fails.
const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
/// Pauses of a question while Gitea does not answer it.
const AGAIN: Backoff = Backoff::new(Duration::from_secs(4), Duration::from_secs(120));

/// What the answers need besides the context.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) context: Arc<Context>,
    pub(crate) lane: Lane,
    pub(crate) presence: Arc<Presence>,
    /// Time between the two looks at an issue that may be gone.
    pub(crate) gone_after: Duration,
    /// Told when ingest was not there for a while.
    pub(crate) gap: Arc<Notify>,
}

/// Why the queue cannot be read now.
#[derive(Debug, Error)]
enum QueueError {
    #[error(transparent)]
    Stores(#[from] StoresError),
    #[error("look up the consumer of questions")]
    Consumer(#[source] async_nats::Error),
    #[error("ask for questions")]
    Ask(#[source] pull::BatchError),
    #[error("read questions")]
    Read(#[source] async_nats::Error),
}

/// Why a question has no answer yet.
#[derive(Debug, Error)]
enum Unanswered {
    #[error(transparent)]
    Answer(#[from] AnswerError),
    #[error("an issue that Gitea does not show is not taken for gone")]
    Presence(#[from] PresenceError),
    #[error(transparent)]
    Question(#[from] QuestionError),
}

impl Queue {
    /// Answers questions until `stop`. Those in hand come again, here or elsewhere.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let (mut pause, mut in_hand) = (RETRY, JoinSet::new());
        let places = Arc::new(Semaphore::new(IN_HAND));
        while !stop.is_cancelled() {
            match self.pull(&places, &mut in_hand, &stop).await {
                Ok(()) => pause.reset(),
                Err(error) => {
                    let error = Causes(&error).to_string();
                    if let Some(line) = self.context.lines.line(&error) {
                        warn!(error, left_out = line.left_out, "cannot read questions");
                    }
                    tokio::select! {
                        () = pause.wait() => {}
                        () = stop.cancelled() => {}
                    }
                }
            }
            while in_hand.try_join_next().is_some() {}
        }
        while in_hand.join_next().await.is_some() {}
    }

    /// Takes questions as long as the connection stands.
    async fn pull(
        self: &Arc<Self>,
        places: &Arc<Semaphore>,
        in_hand: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> Result<(), QueueError> {
        let stores = self.context.stores().await?;
        let consumer: Consumer<pull::Config> = stores
            .questions
            .get_consumer(self.lane.consumer())
            .await
            .map_err(QueueError::Consumer)?;
        let waiting = &consumer.cached_info();
        let waiting = waiting.num_pending + waiting.num_ack_pending as u64;
        self.context.instruments.waiting(self.lane, waiting);
        let looked = Instant::now();
        while !stop.is_cancelled() && looked.elapsed() < Duration::from_secs(10) {
            let Some(place) = free_place(places, stop).await else { return Ok(()) };
            let free = places.available_permits() + 1;
            let batch = consumer.batch().max_messages(free).expires(EXPIRES);
            let mut batch = batch.messages().await.map_err(QueueError::Ask)?;
            drop(place);
            while let Some(message) = batch.next().await {
                let message = message.map_err(QueueError::Read)?;
                let Some(place) = free_place(places, stop).await else {
                    settle(&message, AckKind::Nak(Some(QUIET))).await;
                    continue;
                };
                let (queue, stores, stop) = (Arc::clone(self), stores.clone(), stop.clone());
                in_hand.spawn(async move {
                    queue.take(&stores, message, &stop).await;
                    drop(place);
                });
            }
            while in_hand.try_join_next().is_some() {}
        }
        Ok(())
    }

    /// Takes one message to its end, or gives it back at `stop`.
    async fn take(&self, stores: &Stores, message: Message, stop: &CancellationToken) {
        let Ok(info) = message.info() else { return };
        let (delivered, sequence) = (info.delivered.unsigned_abs(), info.stream_sequence);
        if message.subject.as_str() == GAP_SUBJECT {
            self.gap.notify_one();
            return settle(&message, AckKind::Ack).await;
        }
        let Ok(question) = serde_json::from_slice::<Question>(&message.payload) else {
            warn!(subject = %message.subject, "a question that cannot be read is dropped");
            return settle(&message, AckKind::Term).await;
        };
        let wait = wait(&question, delivered, Timestamp::now(), self.gone_after);
        if !wait.is_zero() {
            return settle(&message, AckKind::Nak(Some(wait))).await;
        }
        let span = span(&message, &question);
        let answered = async {
            tokio::select! {
                answered = self.answer(stores, &question, sequence) => Some(answered),
                // Never ends.
                () = keep(&message) => None,
                () = stop.cancelled() => None,
            }
        };
        let answered = answered.instrument(span.clone()).await;
        let outcome = match &answered {
            // Later than the end of the last request for messages, which nobody reads any more.
            None => return settle(&message, AckKind::Nak(Some(QUIET))).await,
            Some(Ok(outcome)) => {
                settle(&message, AckKind::Ack).await;
                *outcome
            }
            Some(Err(error)) => {
                span.record("otel.status_code", "ERROR");
                let pause =
                    AGAIN.ceiling(u32::try_from(delivered.saturating_sub(2)).unwrap_or(u32::MAX));
                settle(&message, AckKind::Nak(Some(pause))).await;
                self.failed(error);
                "failed"
            }
        };
        self.context.instruments.answered(outcome);
    }

    async fn answer(
        &self,
        stores: &Stores,
        question: &Question,
        sequence: u64,
    ) -> Result<&'static str, Unanswered> {
        let context = &self.context;
        if question.missing_since.is_some() {
            self.presence.before(context).await?;
        }
        let looked = Instant::now();
        let answered =
            match answer::answer(context, &stores.states, question, Mode::Publish).await? {
                Answered::Missing(missing) if !missing.matters() => Answered::Same,
                Answered::Missing(missing) if question.missing_since.is_some() => {
                    // Whatever answered 404 must show what is there after that too.
                    self.presence.since(context, looked).await?;
                    answer::tell_gone(context, &stores.states, question, *missing, Mode::Publish)
                        .await?
                }
                Answered::Missing(_) => {
                    self.look_again(stores, question, sequence).await?;
                    return Ok("missing");
                }
                answered => answered,
            };
        Ok(match answered {
            Answered::Differs(found) => {
                let event = &found.event;
                let cause = event.synced.as_deref().map(|synced| synced.cause.as_str());
                let (issue, delivery) = (event.issue_ref(), event.delivery.id.as_str());
                info!(
                    gitea.sync.cause = cause,
                    gitea.issue.ref = issue,
                    gitea.delivery.id = delivery,
                    "Gitea says otherwise; an event tells it"
                );
                "differs"
            }
            Answered::Unseen => {
                self.unseen(question);
                "unseen"
            }
            Answered::Same | Answered::Missing(_) => "same",
        })
    }

    /// Puts a second look in the place of the question, unless a newer question is there.
    async fn look_again(
        &self,
        stores: &Stores,
        question: &Question,
        sequence: u64,
    ) -> Result<(), Unanswered> {
        // A proxy may answer so for all issues that there are.
        let text = "Gitea does not show an issue; it is looked at again";
        if let Some(line) = self.context.lines.line(text) {
            let (again_in_secs, left_out) = (self.gone_after.as_secs(), line.left_out);
            info!(gitea.issue.ref = question.issue_ref(), again_in_secs, left_out, "{text}");
        }
        let again = Question { missing_since: Some(Timestamp::now()), ..question.clone() };
        let traceparent = trace::exported(&tracing::Span::current());
        let envelope = again.envelope(traceparent.as_ref())?;
        match stores.states.session.publish_after(envelope, QUESTIONS, sequence).await {
            Err(error) if Refusal::of(&error) != Refusal::NotLast => {
                Err(QuestionError::from(error).into())
            }
            _ => Ok(()),
        }
    }

    /// Says that the token sees too little.
    fn unseen(&self, question: &Question) {
        let text = "Gitea does not show an issue to this token, and never showed its repository; \
                    nothing can be known of it";
        if let Some(line) = self.context.lines.line(text) {
            let left_out = line.left_out;
            warn!(gitea.issue.ref = question.issue_ref(), left_out, "{text}");
        }
    }

    /// One line for each cause of failures.
    fn failed(&self, error: &Unanswered) {
        let error = Causes(error).to_string();
        self.context.trouble.failed(&error, "Gitea cannot be asked about an issue");
    }
}

/// How long a question waits yet. A broker that was restarted, or a worker that died with the
/// message, brings a second look sooner than it was put off to.
fn wait(question: &Question, delivered: u64, now: Timestamp, gone_after: Duration) -> Duration {
    match question.missing_since {
        None if delivered == 1 => QUIET,
        None => Duration::ZERO,
        // A clock was ahead. It has been put off by now, unless the message came sooner once.
        Some(since) if since > now && delivered > 2 => Duration::ZERO,
        Some(since) => {
            let over = now.unix_micros().saturating_sub(since.unix_micros());
            gone_after.saturating_sub(Duration::from_micros(u64::try_from(over).unwrap_or(0)))
        }
    }
}

/// A place for a question in hand. None at `stop`: all places may wait for a Gitea that hangs.
async fn free_place(
    places: &Arc<Semaphore>,
    stop: &CancellationToken,
) -> Option<OwnedSemaphorePermit> {
    tokio::select! {
        place = Arc::clone(places).acquire_owned() => place.ok(),
        () = stop.cancelled() => None,
    }
}

/// Says now and then that the question is still worked on.
async fn keep(message: &Message) {
    loop {
        tokio::time::sleep(QUESTION_ACK_WAIT / 3).await;
        settle(message, AckKind::Progress).await;
    }
}

/// An ack that is lost costs a second answer, which changes nothing.
async fn settle(message: &Message, kind: AckKind) {
    if let Err(error) = message.ack_with(kind).await {
        debug!(%error, "cannot settle a question; it comes again");
    }
}

fn span(message: &Message, question: &Question) -> tracing::Span {
    let span = info_span!(
        target: trace::TRACES_ONLY,
        parent: None,
        "ask",
        otel.name = "ask Gitea",
        otel.kind = "consumer",
        otel.status_code = field::Empty,
        gitea.issue.ref = question.issue_ref(),
        gitea.sync.cause = question.cause.as_str(),
    );
    let header = message.headers.as_ref().and_then(|headers| headers.get(TRACEPARENT));
    if let Some(parent) = header.and_then(|text| text.as_str().parse::<Traceparent>().ok()) {
        trace::make_child(&span, &parent);
    }
    if trace::is_sampled(&span) {
        let template = "gitea.questions.{lane}.{repository}.{number}";
        let destination = (template, message.subject.to_string());
        trace::describe_message(&span, ("process", "process"), destination, None);
    }
    span
}

#[cfg(test)]
mod tests {
    use contract::event::SyncCause;

    use super::*;

    #[test]
    fn a_burst_is_waited_for_and_a_second_look_comes_no_sooner_than_it_may() {
        let (gone_after, second) = (Duration::from_secs(300), 1_000_000);
        for (missing_since, delivered, now, expected) in [
            (None, 1, 0, QUIET),
            (None, 2, 0, Duration::ZERO),
            (Some(0), 1, 0, gone_after),
            (Some(0), 1, 1, Duration::from_secs(299)),
            // The worker that was to put it off has died.
            (Some(0), 2, 30, Duration::from_secs(270)),
            (Some(0), 2, 300, Duration::ZERO),
            // The clock was set back.
            (Some(1000), 2, 0, gone_after),
            (Some(1000), 3, 0, Duration::ZERO),
        ] {
            let question = Question {
                repository_id: 1,
                owner: "acme".into(),
                repository: "widgets".into(),
                number: 7,
                cause: SyncCause::Repair,
                raised_by: None,
                missing_since: missing_since.map(|s: i64| Timestamp::from_unix_micros(s * second)),
            };
            let now = Timestamp::from_unix_micros(now * second);
            let found = wait(&question, delivered, now, gone_after);
            assert_eq!(found, expected, "{missing_since:?} {delivered} {now:?}");
        }
    }
}
