//! Reads the bucket of issue states: one entry, or one after the other. The worker alone writes it.

use async_nats::jetstream::{
    kv,
    message::StreamMessage,
    stream::{InfoError, LastRawMessageError},
};
use contract::{
    event::{IssueEvent, SyncCause},
    issue_state::{self, KnownIssue},
};
use serde::Deserialize;
use service::{
    broker::{Session, bucket},
    question::Question,
};
use thiserror::Error;

/// Why an entry cannot be read.
#[derive(Debug, Error)]
pub enum StateError {
    /// The broker fails.
    #[error("read an issue's state")]
    Read(#[source] LastRawMessageError),
    /// The broker fails.
    #[error("read the next issue's state")]
    Next(#[source] LastRawMessageError),
    /// The broker fails.
    #[error("look up the bucket of issue states")]
    Extent(#[source] InfoError),
    /// The position alone: the text of the error would show values of the issue.
    #[error("an issue's state cannot be read (line {}, column {})", .0.line(), .0.column())]
    Decode(serde_json::Error),
}

/// An entry, as far as the jobs read it.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Entry {
    #[serde(flatten)]
    pub(crate) known: KnownIssue,
    #[serde(default)]
    decision: Option<Decision>,
}

#[derive(Clone, Debug, Deserialize)]
struct Decision {
    event: IssueEvent,
}

impl Entry {
    /// The event of the last decision, if the entry still holds it.
    pub(crate) fn last_event(&self) -> Option<&IssueEvent> {
        self.decision.as_ref().map(|decision| &decision.event)
    }
}

/// An entry with its place in the bucket.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    /// Revision of the entry.
    pub(crate) revision: u64,
    pub(crate) repository_id: i64,
    pub(crate) number: u64,
    pub(crate) entry: Entry,
}

impl Placed {
    /// The question about the issue, where it was last seen. None if that is not known.
    pub(crate) fn question(&self, cause: SyncCause) -> Option<Question> {
        let (owner, repository, _) = self.entry.known.place()?;
        let place = (self.repository_id, owner, repository);
        Some(Question::new(place, self.number, cause))
    }
}

/// The bucket of issue states, beside that of the jobs, on one connection.
#[derive(Clone, Debug)]
pub struct States {
    pub(crate) session: Session,
    store: kv::Store,
    /// What the jobs keep.
    pub(crate) sync: kv::Store,
}

impl States {
    pub(crate) fn new(session: Session, store: kv::Store, sync: kv::Store) -> Self {
        Self { session, store, sync }
    }

    /// Reads an issue's entry. None if nothing was ever decided about it.
    pub(crate) async fn get(
        &self,
        repository_id: i64,
        number: u64,
    ) -> Result<Option<Entry>, StateError> {
        let key = issue_state::key(repository_id, number);
        let found = bucket::read(&self.store, &key).await.map_err(StateError::Read)?;
        found.map_or(Ok(None), |found| decode(&found))
    }

    /// The first entry whose revision is at least `revision`. None at the end of the bucket. Entries
    /// that are no issue's state, or cannot be read, are passed over.
    pub(crate) async fn next(&self, mut revision: u64) -> Result<Option<Placed>, StateError> {
        let prefix = self.store.prefix.as_str();
        loop {
            let found = bucket::next(&self.store, revision).await.map_err(StateError::Next)?;
            let Some(found) = found else { return Ok(None) };
            let key = found.subject.strip_prefix(prefix).and_then(issue_state::parse_key);
            if let (Some((repository_id, number)), Ok(Some(entry))) = (key, decode(&found)) {
                return Ok(Some(Placed { revision: found.sequence, repository_id, number, entry }));
            }
            revision = found.sequence + 1;
        }
    }

    /// How many messages the bucket has, and the last revision.
    pub(crate) async fn extent(&self) -> Result<(u64, u64), StateError> {
        let info = self.store.stream.get_info().await.map_err(StateError::Extent)?;
        Ok((info.state.messages, info.state.last_sequence))
    }
}

/// None for the marker of a deletion.
fn decode(found: &StreamMessage) -> Result<Option<Entry>, StateError> {
    if bucket::is_deletion(found) {
        return Ok(None);
    }
    serde_json::from_slice(&found.payload).map(Some).map_err(StateError::Decode)
}
