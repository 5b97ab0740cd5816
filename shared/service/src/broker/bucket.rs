//! One entry of a bucket: read from the leader, and replaced by compare-and-set.

use std::time::Duration;

use async_nats::jetstream::{
    context::PublishError,
    kv,
    message::StreamMessage,
    stream::{LastRawMessageError, LastRawMessageErrorKind},
};
use contract::envelope::{Envelope, Headers};

use super::Session;

/// Reads an entry, which may be the marker of a deletion. None if there never was one.
///
/// Only the leader is asked. Any node of a cluster may answer a direct get, even one that has not
/// received the newest write yet.
///
/// # Errors
/// If the broker fails.
pub async fn read(
    store: &kv::Store,
    key: &str,
) -> Result<Option<StreamMessage>, LastRawMessageError> {
    let subject = format!("{}{key}", store.prefix);
    match store.stream.get_last_raw_message_by_subject(&subject).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The first entry of any key whose revision is at least `first`, which may be the marker of a
/// deletion. None at the end, as the leader knows it.
///
/// # Errors
/// If the broker fails.
pub async fn next(
    store: &kv::Store,
    first: u64,
) -> Result<Option<StreamMessage>, LastRawMessageError> {
    // The stream has no other subjects than the bucket's, and a narrower pattern is compared with all
    // of them by the server.
    let request = store.stream.raw_message_builder().sequence(first).next_by_subject(">");
    match request.send().await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces the entry at `revision`, where 0 means that there is none. Returns the new revision.
///
/// # Errors
/// [`Refusal`](super::refusal::Refusal) classifies them; `NotLast` if the entry has another revision.
pub async fn replace(
    session: &Session,
    store: &kv::Store,
    key: &str,
    payload: Vec<u8>,
    revision: u64,
) -> Result<u64, PublishError> {
    put(session, store, key, payload, revision, Headers::default()).await
}

/// Like [`replace`], and the broker removes the entry after `ttl`, unless it is replaced before.
///
/// # Errors
/// As [`replace`]; `NoTtl` if the bucket's entries cannot have one.
pub async fn replace_for(
    session: &Session,
    store: &kv::Store,
    key: &str,
    payload: Vec<u8>,
    revision: u64,
    ttl: Duration,
) -> Result<u64, PublishError> {
    let headers = Headers(vec![(TTL.into(), ttl.as_secs().to_string())]);
    put(session, store, key, payload, revision, headers).await
}

async fn put(
    session: &Session,
    store: &kv::Store,
    key: &str,
    payload: Vec<u8>,
    revision: u64,
    headers: Headers,
) -> Result<u64, PublishError> {
    let subject = format!("{}{key}", store.put_prefix.as_deref().unwrap_or(&store.prefix));
    let envelope = Envelope { subject, headers, payload };
    Ok(session.publish_after(envelope, &store.stream_name, revision).await?.sequence)
}

/// Whether the bucket's entries can have a time after which the broker removes them.
pub fn has_ttls(store: &kv::Store) -> bool {
    store.stream.cached_info().config.allow_message_ttl
}

/// Whether the broker removes the entry some day.
pub fn expires(entry: &StreamMessage) -> bool {
    entry.headers.get(TTL).is_some()
}

/// Whether an entry is the marker of a deletion, or of its removal by age. It has a revision, and no
/// value.
pub fn is_deletion(entry: &StreamMessage) -> bool {
    ["KV-Operation", "Nats-Marker-Reason"].iter().any(|name| entry.headers.get(*name).is_some())
}

/// Header of the seconds after which the broker removes a message.
const TTL: &str = "Nats-TTL";
