//! Entries of the bucket `GITEA_SYNC`: what the jobs keep, each replaced by compare-and-set.

use async_nats::jetstream::{context::PublishError, stream::LastRawMessageError};
use serde::{Serialize, de::DeserializeOwned};
use service::broker::{bucket, refusal::Refusal};
use thiserror::Error;

use crate::states::States;

/// Why an entry cannot be read or written.
#[derive(Debug, Error)]
pub enum EntryError {
    /// The broker fails.
    #[error("read what the jobs keep")]
    Read(#[source] LastRawMessageError),
    /// It cannot be written as JSON.
    #[error("encode what the jobs keep")]
    Encode(#[source] serde_json::Error),
    /// The broker did not take it, or the entry has another revision.
    #[error("write what the jobs keep")]
    Write(#[source] PublishError),
}

impl EntryError {
    /// Whether somebody else has written the entry.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Write(error) if Refusal::of(error) == Refusal::NotLast)
    }
}

/// Reads an entry and its revision. One that cannot be read, as of a newer program, counts as the
/// default, and is replaced.
pub(crate) async fn get<T: DeserializeOwned + Default>(
    states: &States,
    key: &str,
) -> Result<Option<(T, u64)>, EntryError> {
    let found = bucket::read(&states.sync, key).await.map_err(EntryError::Read)?;
    Ok(found.map(|found| {
        let value = serde_json::from_slice(&found.payload).unwrap_or_default();
        (value, found.sequence)
    }))
}

/// Replaces the entry at `revision`, where 0 means that there is none. Returns the new revision.
pub(crate) async fn replace<T: Serialize>(
    states: &States,
    key: &str,
    value: &T,
    revision: u64,
) -> Result<u64, EntryError> {
    let payload = serde_json::to_vec(value).map_err(EntryError::Encode)?;
    let replaced = bucket::replace(&states.session, &states.sync, key, payload, revision).await;
    replaced.map_err(EntryError::Write)
}
