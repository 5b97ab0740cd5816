//! The bucket of issue states: reads and compare-and-set writes of one entry.

use std::time::Duration;

use async_nats::jetstream::{context::PublishError, kv, stream::LastRawMessageError};
use contract::timestamp::Timestamp;
use service::broker::{Session, bucket};
use thiserror::Error;

use super::{memory::Entry, state::IssueState};

/// Why an entry could not be read or written.
#[derive(Debug, Error)]
pub(crate) enum BucketError {
    #[error("read the issue state")]
    Read(#[source] LastRawMessageError),
    /// The position alone: the text of the error would show values of the issue.
    #[error("the issue state cannot be read (line {}, column {})", .0.line(), .0.column())]
    Decode(serde_json::Error),
    #[error("encode the issue state")]
    Encode(#[source] serde_json::Error),
    #[error("write the issue state")]
    Write(#[source] PublishError),
}

/// Reads an issue's entry. `old_after` is the age from which it counts as old.
pub(crate) async fn read(
    store: &kv::Store,
    key: &str,
    old_after: Duration,
) -> Result<Entry, BucketError> {
    let Some(found) = bucket::read(store, key).await.map_err(BucketError::Read)? else {
        return Ok(Entry::default());
    };
    let state = if bucket::is_deletion(&found) {
        None
    } else {
        Some(serde_json::from_slice(&found.payload).map_err(BucketError::Decode)?)
    };
    let age = Timestamp::now().unix_micros() / 1_000_000 - found.time.unix_timestamp();
    let is_old = u64::try_from(age).is_ok_and(|age| age > old_after.as_secs());
    Ok(Entry { state, revision: found.sequence, is_old })
}

/// Replaces the entry at `revision`, where 0 means that there is none. Returns the new revision.
pub(crate) async fn write(
    session: &Session,
    store: &kv::Store,
    key: &str,
    state: &IssueState,
    revision: u64,
) -> Result<u64, BucketError> {
    let payload = serde_json::to_vec(state).map_err(BucketError::Encode)?;
    bucket::replace(session, store, key, payload, revision).await.map_err(BucketError::Write)
}
