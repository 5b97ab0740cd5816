//! Somebody was assigned: an agent may start.

use shared::change::Change;
use tracing::debug;

use super::HandlerContext;
use crate::outcome::Outcome;

pub(crate) async fn handle(context: &HandlerContext<'_>, change: &Change) -> Outcome {
    debug!(added = ?change.added, assignees = ?change.assignees, "assigned");
    context.publish(change).await
}
