//! Names of streams, bucket, consumers and subjects on the broker.

/// Stream of events.
pub const EVENTS: &str = "GITEA_ISSUES";
/// Stream of changes.
pub const CHANGES: &str = "GITEA_CHANGES";
/// Stream of dead letters.
pub const DEAD_LETTERS: &str = "GITEA_ISSUES_DEAD";
/// Bucket of issue states.
pub const ISSUE_STATE: &str = "GITEA_ISSUE_STATE";

/// Priority group of the workers at the consumer of a partition.
pub const WORKERS_GROUP: &str = "workers";

/// First tokens of an event's subject.
pub const EVENTS_PREFIX: &str = "gitea.issues";
/// First tokens of a change's subject.
pub const CHANGES_PREFIX: &str = "gitea.changes";
/// First tokens of a dead letter's subject.
pub const DEAD_PREFIX: &str = "gitea.dead";

/// Name of the durable consumer of a partition.
pub fn consumer_name(partition: u8) -> String {
    format!("worker-{partition:02}")
}
