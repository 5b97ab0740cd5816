//! Each change to its handler, in order, until one fails.

use shared::{
    change::{Change, ChangeKind},
    trace,
};
use tracing::{Instrument, field, info_span};

use crate::{
    handlers::{self, HandlerContext},
    outcome::Outcome,
};

macro_rules! handle_span {
    ($name:literal) => {
        info_span!(
            $name,
            otel.kind = "internal",
            otel.status_code = field::Empty,
            error.r#type = field::Empty
        )
    };
}

/// Runs the handlers of `changes`. Returns how many were told and, unless it
/// was all of them, how the first failure is to be settled.
pub(crate) async fn dispatch(context: &HandlerContext<'_>, changes: &[Change]) -> (usize, Outcome) {
    for (told, change) in changes.iter().enumerate() {
        let span = match change.kind {
            ChangeKind::Unassigned => handle_span!("handle unassigned"),
            ChangeKind::Closed => handle_span!("handle closed"),
            ChangeKind::Reopened => handle_span!("handle reopened"),
            ChangeKind::Assigned => handle_span!("handle assigned"),
        };
        let (cause, repository) = (&change.cause, &change.repository);
        let action = cause.action.as_str();
        trace::describe(&span, &cause.delivery_id, action, repository, change.issue.number);
        let outcome = async {
            match change.kind {
                ChangeKind::Unassigned => handlers::unassigned::handle(context, change).await,
                ChangeKind::Closed => handlers::closed::handle(context, change).await,
                ChangeKind::Reopened => handlers::reopened::handle(context, change).await,
                ChangeKind::Assigned => handlers::assigned::handle(context, change).await,
            }
        };
        match outcome.instrument(span.clone()).await {
            Outcome::Done => context.worker.instruments.told(change),
            failure => {
                span.record("otel.status_code", "ERROR");
                span.record("error.type", "failed");
                return (told, failure);
            }
        }
    }
    (changes.len(), Outcome::Done)
}
