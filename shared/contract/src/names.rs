//! Names of streams, bucket, consumers and subjects on the broker.

/// Stream of events.
pub const EVENTS: &str = "GITEA_ISSUES";
/// Stream of changes.
pub const CHANGES: &str = "GITEA_CHANGES";
/// Stream of dead letters.
pub const DEAD_LETTERS: &str = "GITEA_ISSUES_DEAD";
/// Bucket of issue states.
pub const ISSUE_STATE: &str = "GITEA_ISSUE_STATE";
/// Stream of questions: issues that Gitea's API is to be asked about.
pub const QUESTIONS: &str = "GITEA_QUESTIONS";
/// Bucket of what the jobs that ask Gitea keep: who runs them, and how far they are.
pub const SYNC: &str = "GITEA_SYNC";
/// Bucket of runs: what runs, or waits to, because an issue is assigned.
pub const RUNS: &str = "GITEA_RUNS";

/// Durable consumer of the changes, which all runners share.
pub const REACTOR_CONSUMER: &str = "reactor";

/// Priority group of the workers at the consumer of a partition.
pub const WORKERS_GROUP: &str = "workers";

/// First tokens of an event's subject.
pub const EVENTS_PREFIX: &str = "gitea.issues";
/// First tokens of a change's subject.
pub const CHANGES_PREFIX: &str = "gitea.changes";
/// First tokens of a dead letter's subject.
pub const DEAD_PREFIX: &str = "gitea.dead";
/// First tokens of a question's subject.
pub const QUESTIONS_PREFIX: &str = "gitea.questions";

/// Subject on which ingest tells that it was not there for a while.
pub const GAP_SUBJECT: &str = "gitea.questions.gap";

/// A lane of questions, with a consumer of its own. A first sweep raises thousands of questions, and
/// no doubt waits behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// What events left open, and the message of ingest.
    Doubts,
    /// What sweeps found.
    Sweeps,
}

impl Lane {
    /// All lanes.
    pub const ALL: [Self; 2] = [Self::Doubts, Self::Sweeps];

    /// Name of the durable consumer.
    pub fn consumer(self) -> &'static str {
        match self {
            Self::Doubts => "doubts",
            Self::Sweeps => "sweeps",
        }
    }

    /// Subjects of the lane.
    pub fn subjects(self) -> Vec<String> {
        let own = format!("{QUESTIONS_PREFIX}.{}.>", self.consumer());
        match self {
            Self::Doubts => vec![own, GAP_SUBJECT.into()],
            Self::Sweeps => vec![own],
        }
    }
}

/// Name of the durable consumer of a partition.
pub fn consumer_name(partition: u8) -> String {
    format!("worker-{partition:02}")
}
