//! The job of the journal: writes the low-water mark, and clears what is old.

use std::time::Duration;

use service::jobs::Job;

use crate::journal::{AppendError, Journal};

/// How often, also while the journal cannot be written: this is what finds out that it can again.
pub(crate) const UPKEEP: Job = Job {
    name: "journal_upkeep",
    interval: Duration::from_secs(1),
    retry: Duration::from_secs(1),
    jitter: 0.0,
    waits_at_first: true,
};

pub(crate) async fn run(journal: Journal) -> Result<(), AppendError> {
    journal.upkeep().await
}
