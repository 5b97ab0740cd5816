//! Settles a message. This is the only place that acks and parks processed messages, and that
//! reports a delivery's outcome.

use async_nats::jetstream::{Message, message::AckKind};
use contract::{dead_letter::Reason, timestamp::Timestamp};
use service::{broker::Session, causes::Causes};
use tokio_util::sync::CancellationToken;
use tracing::{Span, error, info, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{
    attempt::End,
    dead_letter,
    outcome::Outcome,
    process::{self, Processed, Unfinished},
};
use crate::context::Context;

/// How a message is settled. Both end in an ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// The message is finished.
    Ack,
    /// The message is parked as a dead letter first.
    DeadLetter(Reason),
}

/// The settlement of each outcome.
pub(crate) fn settlement(outcome: &Outcome) -> Settlement {
    match outcome {
        Outcome::Done => Settlement::Ack,
        Outcome::Permanent(_) => Settlement::DeadLetter(Reason::Permanent),
        Outcome::Undecodable(_) => Settlement::DeadLetter(Reason::Undecodable),
        Outcome::TooManyAttempts => Settlement::DeadLetter(Reason::TooManyAttempts),
    }
}

/// Settles a message. Runs inside the message's span.
pub(crate) async fn settle(
    context: &Context,
    session: &Session,
    partition: u8,
    message: &Message,
    processed: &Processed,
    stop: &CancellationToken,
) -> Result<(), Unfinished> {
    let cause =
        cause(&processed.end.outcome).map(|cause| context.broker.explain(processed.started, cause));
    if let Some(cause) = &cause {
        Span::current().record("otel.status_code", "ERROR");
        Span::current().record("error.type", <&str>::from(processed.end.verdict));
        let (subject, sequence) = place(message);
        let attempt = processed.attempt;
        warn!(error = cause, attempt, subject, sequence, "cannot handle the delivery");
    }
    // No field of the span: the log line has it as a field of its own.
    Span::current().set_attribute("coordinator.verdict", <&str>::from(processed.end.verdict));
    let settlement = settlement(&processed.end.outcome);
    if let Settlement::DeadLetter(reason) = settlement {
        let mut pause = process::RETRY;
        let why = cause.unwrap_or_default();
        process::record_failure(message, processed, &why);
        // The message stays in hand until it can be parked, so that it is not lost.
        while let Err(error) = dead_letter::park(session, message, &why, processed.attempt).await {
            let (error, reason) = (Causes(&error).to_string(), reason.as_str());
            if let Some(line) = context.failures.line(&error) {
                error!(error, left_out = line.left_out, reason, "cannot park a dead letter");
            }
            process::wait(&mut pause, session, stop).await?;
            // The stream of dead letters may be missing, and is made anew. If not, this fails again.
            let _ = context.prepare(session, partition).await;
        }
    }
    let acked = message.ack_with(AckKind::Ack).await;
    report(context, settlement, message, processed);
    acked.map_err(|error| {
        warn!(%error, "cannot settle the message; it comes again");
        Unfinished
    })
}

fn cause(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Done => None,
        Outcome::Permanent(cause) | Outcome::Undecodable(cause) => {
            Some(Causes(cause.as_ref()).to_string())
        }
        Outcome::TooManyAttempts => {
            Some("tried too often; whoever handled it may have died of it".into())
        }
    }
}

/// Subject and sequence of a message in its stream. They lead to one that cannot be decoded.
fn place(message: &Message) -> (&str, Option<u64>) {
    (message.subject.as_str(), message.info().ok().map(|info| info.stream_sequence))
}

/// Logs the outcome of a delivery as one info line.
fn report(context: &Context, settlement: Settlement, message: &Message, processed: &Processed) {
    let Processed { end, attempt, started, event } = processed;
    let End { changes, in_doubt, .. } = end;
    let verdict: &str = end.verdict.into();
    let action = event.as_ref().map_or("unknown", |event| event.action.metric_label());
    context.instruments.processed(action, end.verdict, started.elapsed(), *attempt > 1);
    let received_at = event.as_ref().map(|event| event.delivery.received_at);
    match settlement {
        Settlement::Ack => {
            let age = received_at.map(|at| Timestamp::now().unix_micros() - at.unix_micros());
            context.instruments.settled(age.map(|micros| micros.max(0) as f64 / 1e6), *in_doubt);
            info!(verdict, changes, in_doubt, attempt, "delivery handled");
        }
        Settlement::DeadLetter(reason) => {
            context.instruments.parked(reason);
            let reason = reason.as_str();
            let (subject, sequence) = place(message);
            info!(
                verdict,
                changes, reason, attempt, subject, sequence, "delivery parked as a dead letter"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::outcome::Cause;

    #[test]
    fn each_outcome_has_its_settlement() {
        let cause = || Cause::from("x");
        for (outcome, expected) in [
            (Outcome::Done, Settlement::Ack),
            (Outcome::Permanent(cause()), Settlement::DeadLetter(Reason::Permanent)),
            (Outcome::Undecodable(cause()), Settlement::DeadLetter(Reason::Undecodable)),
            (Outcome::TooManyAttempts, Settlement::DeadLetter(Reason::TooManyAttempts)),
        ] {
            assert_eq!(settlement(&outcome), expected, "{outcome:?}");
        }
    }
}
