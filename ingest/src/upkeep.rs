//! The journal's upkeep job: writes the low-water mark and clears old entries.

use std::time::Duration;

use service::jobs::Job;

use crate::journal::{AppendError, Journal};

/// Also runs while the journal cannot be written, because its write shows when the journal is
/// writable again.
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
