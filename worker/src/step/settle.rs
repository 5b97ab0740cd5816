//! Settles a message. This is the only place that acks, naks and parks processed messages, and that
//! reports a delivery's outcome.

use std::time::Duration;

use async_nats::jetstream::{Message, message::AckKind};
use contract::{dead_letter::Reason, timestamp::Timestamp};
use service::{backoff::Backoff, broker::Session, causes::Causes};
use tracing::{Span, error, info, warn};

use super::{dead_letter, outcome::Outcome, process::Processed};
use crate::context::Context;

/// Delays before another attempt. A message that waits blocks its partition, so the delays are
/// short.
const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

/// How a message is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// The message is finished.
    Ack,
    /// The message is redelivered after this delay.
    Retry(Duration),
    /// The message is parked as a dead letter, then acked.
    DeadLetter(Reason),
}

/// The settlement of each outcome. `attempt` counts from 1.
pub(crate) fn settlement(outcome: &Outcome, attempt: u64, max_attempts: u64) -> Settlement {
    match outcome {
        Outcome::Done => Settlement::Ack,
        Outcome::Transient(_) if attempt >= max_attempts => {
            Settlement::DeadLetter(Reason::TooManyAttempts)
        }
        Outcome::Transient(_) => Settlement::Retry(retry_delay(attempt)),
        Outcome::Permanent(_) => Settlement::DeadLetter(Reason::Permanent),
        Outcome::Undecodable(_) => Settlement::DeadLetter(Reason::Undecodable),
        Outcome::TooManyAttempts => Settlement::DeadLetter(Reason::TooManyAttempts),
    }
}

fn retry_delay(attempt: u64) -> Duration {
    RETRY.ceiling(u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX))
}

/// Runs inside the message's span.
pub(crate) async fn settle(
    context: &Context,
    session: &Session,
    message: &Message,
    processed: Processed,
) {
    let settlement = settlement(&processed.outcome, processed.attempt, context.max_attempts);
    let cause =
        cause(&processed.outcome).map(|cause| context.broker.explain(processed.started, cause));
    if let Some(cause) = &cause {
        Span::current().record("otel.status_code", "ERROR");
        Span::current().record("error.type", <&str>::from(processed.verdict));
        warn!(error = cause, attempt = processed.attempt, "cannot handle the delivery");
    }
    let settlement = match settlement {
        Settlement::DeadLetter(reason) => {
            let error = cause.unwrap_or_default();
            match dead_letter::park(session, message, &error, processed.attempt).await {
                Ok(()) => settlement,
                Err(error) => {
                    // The message is redelivered until it can be parked, so that it is not lost.
                    error!(error = %Causes(&error), reason = reason.as_str(), "cannot park a dead letter");
                    Settlement::Retry(retry_delay(processed.attempt))
                }
            }
        }
        other => other,
    };
    let kind = match settlement {
        Settlement::Ack | Settlement::DeadLetter(_) => AckKind::Ack,
        Settlement::Retry(delay) => AckKind::Nak(Some(delay)),
    };
    if let Err(error) = message.ack_with(kind).await {
        warn!(%error, "cannot settle the message; it comes again");
    }
    report(context, settlement, &processed);
}

fn cause(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Done => None,
        Outcome::Transient(cause) | Outcome::Permanent(cause) | Outcome::Undecodable(cause) => {
            Some(Causes(cause.as_ref()).to_string())
        }
        Outcome::TooManyAttempts => {
            Some("tried too often; whoever handled it may have died of it".into())
        }
    }
}

/// Logs the outcome of a delivery as one info line. A retry is not an outcome yet.
fn report(context: &Context, settlement: Settlement, processed: &Processed) {
    let Processed { changes, in_doubt, attempt, started, event, .. } = processed;
    let verdict: &str = processed.verdict.into();
    let action = event.as_ref().map_or("unknown", |event| event.action.metric_label());
    context.instruments.processed(action, processed.verdict, started.elapsed(), *attempt > 1);
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
            info!(verdict, changes, reason, attempt, "delivery parked as a dead letter");
        }
        Settlement::Retry(delay) => {
            warn!(?delay, attempt, "the delivery is tried again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::outcome::Cause;

    #[test]
    fn each_outcome_has_its_settlement() {
        let ms = Duration::from_millis;
        let cause = || Cause::from("x");
        for (outcome, attempt, expected) in [
            (Outcome::Done, 1, Settlement::Ack),
            (Outcome::Done, 99, Settlement::Ack),
            (Outcome::Transient(cause()), 1, Settlement::Retry(ms(500))),
            (Outcome::Transient(cause()), 2, Settlement::Retry(ms(1000))),
            (Outcome::Transient(cause()), 7, Settlement::Retry(ms(30_000))),
            (Outcome::Transient(cause()), 9, Settlement::Retry(ms(30_000))),
            (Outcome::Transient(cause()), 10, Settlement::DeadLetter(Reason::TooManyAttempts)),
            (Outcome::Permanent(cause()), 1, Settlement::DeadLetter(Reason::Permanent)),
            (Outcome::Undecodable(cause()), 1, Settlement::DeadLetter(Reason::Undecodable)),
            (Outcome::TooManyAttempts, 11, Settlement::DeadLetter(Reason::TooManyAttempts)),
        ] {
            assert_eq!(settlement(&outcome, attempt, 10), expected, "{outcome:?} {attempt}");
        }
        assert_eq!(retry_delay(u64::MAX), ms(30_000));
    }
}
