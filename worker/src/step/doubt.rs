//! Raises the question that an event leaves, where somebody asks Gitea's API.

use std::time::Duration;

use async_nats::jetstream::context::PublishError;
use contract::event::IssueEvent;
use service::{
    broker::{Session, refusal::Refusal},
    causes::Causes,
    question::{Question, QuestionError},
    telemetry::trace,
};
use tracing::{Span, warn};

use super::outcome::Cause;
use crate::context::Context;

/// Attempts at one question. A leader may just be elected.
const MAX_ATTEMPTS: u32 = 3;
/// How long no question is tried after one that the broker did not take.
const PAUSE: Duration = Duration::from_secs(30);

/// Raises the doubt that `event` leaves, in the event's trace. The error is why the broker failed.
///
/// A broker that never takes a question keeps no event waiting: the doubt stays in the issue's entry,
/// where the repair finds it.
pub(crate) async fn raise(
    context: &Context,
    session: &Session,
    event: &IssueEvent,
    attempt: u32,
) -> Result<(), Cause> {
    if !context.raises_questions {
        return Ok(());
    }
    if context.questions_refused_within(PAUSE) {
        context.instruments.question_lost();
        return Ok(());
    }
    let traceparent = trace::exported(&Span::current());
    match Question::doubt(event).raise(session, traceparent.as_ref()).await {
        Err(QuestionError::Publish(error)) if is_passing(&error, attempt) => Err(Box::new(error)),
        Err(error) => {
            context.questions_refused();
            context.instruments.question_lost();
            let error = Causes(&error).to_string();
            if let Some(line) = context.failures.line(&error) {
                let left_out = line.left_out;
                warn!(
                    error,
                    left_out, "the broker takes no question; the doubt waits for the repair"
                );
            }
            Ok(())
        }
        Ok(()) => {
            context.instruments.question_raised();
            Ok(())
        }
    }
}

/// Whether the broker may take the question soon.
fn is_passing(error: &PublishError, attempt: u32) -> bool {
    attempt < MAX_ATTEMPTS && !Refusal::of(error).is_for_good()
}
