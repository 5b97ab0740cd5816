//! Counts the attempts at the message that a partition has in hand.
//!
//! The server counts deliveries. But a message is also delivered again because a connection was
//! lost or a worker was stopped, which says nothing about the event. So what counts is kept in the
//! bucket of issue states, under a key per partition: one message is in hand at a time. An attempt
//! counts from its begin, because a crash cannot be recorded. It is forgiven where it ended for
//! another reason.

use async_nats::jetstream::{kv, stream::LastRawMessageError};
use serde::{Deserialize, Serialize};
use service::broker::bucket;
use thiserror::Error;

use crate::issue::state::MessageId;

/// Start of the keys in the bucket of issue states.
const PREFIX: &str = "attempts";

/// Why the attempts could not be read or recorded.
#[derive(Debug, Error)]
pub(crate) enum AttemptsError {
    #[error("read the attempts")]
    Read(#[source] LastRawMessageError),
    #[error("record the attempts")]
    Write(#[source] kv::PutError),
    #[error("encode the attempts")]
    Encode(#[source] serde_json::Error),
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    message: MessageId,
    /// Attempts that count.
    attempts: u64,
}

/// The number of the attempt that begins now, from 1. `delivered` is the server's count. It counts
/// once it is recorded.
pub(crate) async fn number(
    store: &kv::Store,
    partition: u8,
    message: &MessageId,
    delivered: u64,
) -> Result<u64, AttemptsError> {
    if delivered <= 1 {
        return Ok(1);
    }
    // The first attempt leaves no record, because most messages have no second one.
    let before = read(store, partition).await?.filter(|record| record.message == *message);
    Ok(before.map_or(1, |record| record.attempts) + 1)
}

/// Records the number of an attempt. Recording it a second time has no effect.
pub(crate) async fn record(
    store: &kv::Store,
    partition: u8,
    message: &MessageId,
    number: u64,
) -> Result<(), AttemptsError> {
    if number <= 1 { Ok(()) } else { write(store, partition, message, number).await }
}

/// Takes back that attempt `number` at `message` counts. If others went on to another message, this
/// does nothing.
pub(crate) async fn forgive(
    store: &kv::Store,
    partition: u8,
    message: &MessageId,
    number: u64,
) -> Result<(), AttemptsError> {
    let counted = match read(store, partition).await? {
        Some(record) if record.message == *message => record.attempts,
        Some(record) if record.message.sequence > message.sequence => return Ok(()),
        _ => number,
    };
    write(store, partition, message, counted.saturating_sub(1)).await
}

async fn read(store: &kv::Store, partition: u8) -> Result<Option<Record>, AttemptsError> {
    let found = bucket::read(store, &key(partition)).await.map_err(AttemptsError::Read)?;
    // A record that cannot be read counts as none: it must not stop the partition.
    Ok(found.and_then(|found| serde_json::from_slice(&found.payload).ok()))
}

async fn write(
    store: &kv::Store,
    partition: u8,
    message: &MessageId,
    attempts: u64,
) -> Result<(), AttemptsError> {
    let record = Record { message: message.clone(), attempts };
    let json = serde_json::to_vec(&record).map_err(AttemptsError::Encode)?;
    store.put(key(partition), json.into()).await.map_err(AttemptsError::Write)?;
    Ok(())
}

fn key(partition: u8) -> String {
    format!("{PREFIX}.{partition:02}")
}
