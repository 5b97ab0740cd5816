//! Somebody is no longer assigned: an agent stops.

use shared::change::Change;
use tracing::debug;

use super::HandlerContext;
use crate::outcome::Outcome;

pub(crate) async fn handle(context: &HandlerContext<'_>, change: &Change) -> Outcome {
    debug!(removed = ?change.removed, assignees = ?change.assignees, "unassigned");
    context.publish(change).await
}
