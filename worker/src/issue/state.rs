//! The published state of each issue, in the bucket of issue states. The newest states of this
//! partition are cached in memory.

use std::collections::HashMap;

use async_nats::jetstream::{
    kv,
    stream::{LastRawMessageError, LastRawMessageErrorKind},
};
use bytes::Bytes;
use contract::{event::State, timestamp::Timestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// States cached per partition. Above this number the whole cache is cleared.
const REMEMBERED: usize = 512;

/// The state of one issue according to the changes that were published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IssueState {
    /// Logins of the assignees.
    pub(crate) assignees: Vec<String>,
    pub(crate) state: State,
    /// `updated_at` of the newest event. None if no event had one yet.
    #[serde(default)]
    pub(crate) updated_at: Option<Timestamp>,
    /// Whether two events of that second contradict each other.
    #[serde(default)]
    pub(crate) in_doubt: bool,
    /// Prefixes of the digests of the bodies seen in that second.
    #[serde(default)]
    pub(crate) seen: Vec<String>,
    /// Prefixes of the digests of the bodies seen without a time. They are kept, because such a
    /// body would look new if it were delivered again after newer ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) undated: Vec<String>,
    /// `owner/name#number`, for people who inspect the bucket.
    #[serde(default)]
    pub(crate) issue: String,
    /// The delivery that led to this state. Empty while only a part of the first delivery's changes
    /// is published.
    #[serde(default)]
    pub(crate) delivery_id: String,
}

impl IssueState {
    /// Whether all changes of at least one event are published.
    pub(crate) fn has_event(&self) -> bool {
        !self.delivery_id.is_empty()
    }
}

/// Why a state could not be read or written.
#[derive(Debug, Error)]
pub(crate) enum StateError {
    #[error("read the issue state")]
    Read(#[source] LastRawMessageError),
    #[error("decode the issue state")]
    Decode(#[source] serde_json::Error),
    #[error("encode the issue state")]
    Encode(#[source] serde_json::Error),
    #[error("write the issue state")]
    Create(#[source] kv::CreateError),
    #[error("write the issue state")]
    Update(#[source] kv::UpdateError),
    #[error("the bucket of issue states is not open")]
    NotOpen,
}

/// Result of a write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Saved {
    Done,
    /// Another writer was first. The caller reads the state again and compares anew.
    Conflict,
}

/// The states of one partition.
///
/// Reading from the bucket is the largest cost of a message, so states are cached. A cached state
/// is valid while no other worker can have written. The consumer numbers the messages of a
/// partition. If the number of a message follows the number of the last message handled here, no
/// other worker had a message in between. A message that was received here but not handled proves
/// nothing: a suspended worker may still have it in hand from an earlier attempt, and handle it
/// when it resumes.
#[derive(Debug, Default)]
pub(crate) struct IssueStates {
    store: Option<kv::Store>,
    remembered: HashMap<String, (IssueState, u64)>,
    last_number: u64,
    /// Whether the last message was handled.
    handled: bool,
}

impl IssueStates {
    /// Clears the cache, because other workers may have written before this new stream of messages.
    pub(crate) fn start_over(&mut self, store: kv::Store) {
        self.store = Some(store);
        self.remembered.clear();
        self.handled = false;
    }

    /// Records that the partition's message with this number (the consumer's sequence) is in hand.
    pub(crate) fn received(&mut self, number: u64) {
        let follows = self.handled && number == self.last_number + 1;
        if !follows || self.remembered.len() > REMEMBERED {
            self.remembered.clear();
        }
        self.last_number = number;
        self.handled = false;
    }

    /// Records that the message in hand is handled: its state is written, or needs no write.
    pub(crate) fn handled(&mut self) {
        self.handled = true;
    }

    /// The state of an issue and its revision. None if nothing was ever published about it.
    pub(crate) async fn get(&mut self, key: &str) -> Result<Option<(IssueState, u64)>, StateError> {
        if let Some(known) = self.remembered.get(key) {
            return Ok(Some(known.clone()));
        }
        let store = self.store.as_ref().ok_or(StateError::NotOpen)?;
        // Only the leader is asked. Any node of a cluster may answer `entry`, even one that has not
        // received the newest write yet.
        let subject = format!("{}{key}", store.prefix);
        let entry = match store.stream.get_last_raw_message_by_subject(&subject).await {
            Ok(entry) => entry,
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                return Ok(None);
            }
            Err(error) => return Err(StateError::Read(error)),
        };
        if entry.headers.get("KV-Operation").is_some() {
            return Ok(None);
        }
        let state: IssueState =
            serde_json::from_slice(&entry.payload).map_err(StateError::Decode)?;
        self.remembered.insert(key.to_owned(), (state.clone(), entry.sequence));
        Ok(Some((state, entry.sequence)))
    }

    /// Replaces the state at `revision`, or creates the state if there was none.
    pub(crate) async fn save(
        &mut self,
        key: &str,
        state: IssueState,
        revision: Option<u64>,
    ) -> Result<Saved, StateError> {
        // The cached state is uncertain until the write is confirmed.
        self.remembered.remove(key);
        let store = self.store.as_ref().ok_or(StateError::NotOpen)?;
        let value = Bytes::from(serde_json::to_vec(&state).map_err(StateError::Encode)?);
        let written = match revision {
            Some(revision) => match store.update(key, value, revision).await {
                Ok(revision) => revision,
                Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => {
                    return Ok(Saved::Conflict);
                }
                Err(error) => return Err(StateError::Update(error)),
            },
            None => match store.create(key, value).await {
                Ok(revision) => revision,
                Err(error) if error.kind() == kv::CreateErrorKind::AlreadyExists => {
                    return Ok(Saved::Conflict);
                }
                Err(error) => return Err(StateError::Create(error)),
            },
        };
        self.remembered.insert(key.to_owned(), (state, written));
        Ok(Saved::Done)
    }
}

/// The key of an issue. It contains the repository's id and not its name, because a repository can
/// be renamed.
pub(crate) fn key(repository_id: i64, number: u64) -> String {
    format!("{repository_id}.{number}")
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    prop_compose! {
        fn any_state()(
            assignees in vec("(?s).*", 0..5),
            closed: bool,
            micros in option::of(any::<i64>()),
            in_doubt: bool,
            [seen, undated] in [(); 2].map(|()| vec("[0-9a-f]{16}", 0..5)),
            [issue, delivery_id] in [(); 2].map(|()| "(?s).*"),
        ) -> IssueState {
            let state = if closed { State::Closed } else { State::Open };
            let updated_at = micros.map(Timestamp::from_unix_micros);
            IssueState {
                assignees,
                state,
                updated_at,
                in_doubt,
                seen,
                undated,
                issue,
                delivery_id,
            }
        }
    }

    proptest! {
        #[test]
        fn any_state_reads_back(state in any_state()) {
            let json = serde_json::to_vec(&state).expect("json");
            prop_assert_eq!(serde_json::from_slice::<IssueState>(&json).expect("own json"), state);
        }
    }

    fn state() -> IssueState {
        IssueState {
            assignees: vec!["bot".into()],
            state: State::Open,
            updated_at: Timestamp::parse("2026-11-23T23:45:02Z").ok(),
            in_doubt: false,
            seen: vec!["5f70bf18a0860070".into()],
            undated: Vec::new(),
            issue: "acme/widgets#1".into(),
            delivery_id: "d".into(),
        }
    }

    #[test]
    fn a_state_reads_back_and_one_with_the_least_fields_does_too() {
        let json = serde_json::to_string(&state()).expect("json");
        assert_eq!(serde_json::from_str::<IssueState>(&json).expect("own json"), state());
        let least = r#"{"assignees":[],"state":"closed"}"#;
        let least: IssueState = serde_json::from_str(least).expect("least");
        assert_eq!((least.state, least.updated_at, least.in_doubt), (State::Closed, None, false));
    }

    #[test]
    fn what_is_remembered_is_forgotten_when_another_worker_may_have_had_a_message() {
        let mut states = IssueStates::default();
        for (number, handled, kept) in [
            (7, true, false),
            (8, true, true),
            (9, true, true),
            (11, true, false),
            (12, false, true),
            (13, true, false),
            (14, true, true),
        ] {
            states.received(number);
            assert_eq!(states.remembered.contains_key("1.1"), kept, "{number}");
            states.remembered.insert("1.1".into(), (state(), 3));
            if handled {
                states.handled();
            }
        }
        for n in 0..=REMEMBERED {
            states.remembered.insert(key(1, n as u64), (state(), 3));
        }
        states.received(15);
        assert!(states.remembered.is_empty(), "beyond the limit all are forgotten");
    }
}
