//! The issue was closed: whoever works on it stops.

use shared::change::Change;
use tracing::debug;

use super::HandlerContext;
use crate::outcome::Outcome;

pub(crate) async fn handle(context: &HandlerContext<'_>, change: &Change) -> Outcome {
    debug!(assignees = ?change.assignees, sender = change.sender.login, "closed");
    context.publish(change).await
}
