//! The issue was opened again: whoever is assigned may go on.

use shared::change::Change;
use tracing::debug;

use super::HandlerContext;
use crate::outcome::Outcome;

pub(crate) async fn handle(context: &HandlerContext<'_>, change: &Change) -> Outcome {
    debug!(assignees = ?change.assignees, sender = change.sender.login, "reopened");
    context.publish(change).await
}
