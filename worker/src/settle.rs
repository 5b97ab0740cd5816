//! What becomes of a message: the one place that acks, sends back and parks,
//! and that tells a delivery's fate.

use std::time::Duration;

use async_nats::jetstream::{Message, message::AckKind};
use shared::{broker::Session, causes::Causes, timestamp::Timestamp};
use tracing::{Span, error, info, warn};

use crate::{context::Context, dead_letter, outcome::Outcome, process::Processed};

/// First and longest wait before another attempt. A message that waits holds
/// up its partition, so not too long.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What is done with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// It is over.
    Ack,
    /// It comes again after this time.
    Retry(Duration),
    /// It is parked, then acked; the reason is for metrics.
    DeadLetter(&'static str),
}

/// The table. `attempt` counts from 1.
pub(crate) fn settlement(outcome: &Outcome, attempt: u64, max_attempts: u64) -> Settlement {
    match outcome {
        Outcome::Done => Settlement::Ack,
        Outcome::Transient(_) if attempt >= max_attempts => {
            Settlement::DeadLetter("too_many_attempts")
        }
        Outcome::Transient(_) => Settlement::Retry(retry_delay(attempt)),
        Outcome::Permanent(_) => Settlement::DeadLetter("permanent"),
        Outcome::Undecodable(_) => Settlement::DeadLetter("undecodable"),
        Outcome::TooManyAttempts => Settlement::DeadLetter("too_many_attempts"),
    }
}

fn retry_delay(attempt: u64) -> Duration {
    let (first, longest) = RETRY;
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    first.saturating_mul(1 << doublings).min(longest)
}

/// Settles a message, inside its span.
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
        Span::current().record("error.type", processed.verdict);
        warn!(error = cause, attempt = processed.attempt, "cannot handle the delivery");
    }
    let settlement = match settlement {
        Settlement::DeadLetter(reason) => {
            let error = cause.unwrap_or_default();
            match dead_letter::park(session, message, &error, processed.attempt).await {
                Ok(()) => settlement,
                Err(error) => {
                    // Nothing is dropped: it comes again until it can be parked.
                    error!(error = %Causes(&error), reason, "cannot park a dead letter");
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
    tell_fate(context, settlement, &processed);
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

/// One info line says what became of a delivery here. A retry is no fate yet.
fn tell_fate(context: &Context, settlement: Settlement, processed: &Processed) {
    let Processed { verdict, changes, in_doubt, attempt, started, event, .. } = processed;
    let action = event.as_ref().map_or("unknown", |event| event.action.metric_label());
    context.instruments.processed(action, verdict, started.elapsed(), *attempt > 1);
    let received_at = event.as_ref().map(|event| event.delivery.received_at);
    match settlement {
        Settlement::Ack => {
            let age = received_at.map(|at| Timestamp::now().unix_micros() - at.unix_micros());
            context.instruments.settled(age.map(|micros| micros.max(0) as f64 / 1e6), *in_doubt);
            info!(verdict, changes, in_doubt, attempt, "delivery handled");
        }
        Settlement::DeadLetter(reason) => {
            context.instruments.parked(reason);
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
    use crate::outcome::Cause;

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
            (Outcome::Transient(cause()), 10, Settlement::DeadLetter("too_many_attempts")),
            (Outcome::Permanent(cause()), 1, Settlement::DeadLetter("permanent")),
            (Outcome::Undecodable(cause()), 1, Settlement::DeadLetter("undecodable")),
            (Outcome::TooManyAttempts, 11, Settlement::DeadLetter("too_many_attempts")),
        ] {
            assert_eq!(settlement(&outcome, attempt, 10), expected, "{outcome:?} {attempt}");
        }
        assert_eq!(retry_delay(u64::MAX), RETRY.1);
    }
}
