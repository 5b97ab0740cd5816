//! What a handler gets.

use std::{iter, ops::Deref, sync::Arc};

use async_nats::HeaderMap;
use bytes::Bytes;
use contract::{
    change::{CHANGE_VERSION, Change, ChangeKind},
    event::{EVENT_VERSION, Issue, IssueEvent, Repository},
    names,
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::Unreadable;

/// A change or an event, and the message that it came in.
#[derive(Debug)]
pub struct Received<M> {
    content: Arc<M>,
    /// The message around it.
    pub message: Message,
}

/// The message around a change or an event.
#[derive(Clone, Debug)]
pub struct Message {
    /// The same for the same change, however often it comes.
    pub id: String,
    /// Its subject.
    pub subject: String,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// How often it was tried, from 1 on.
    pub attempt: u64,
    /// The W3C trace context of its publish.
    pub traceparent: Option<String>,
    /// All its headers.
    pub headers: HeaderMap,
    /// The whole payload, with fields that this version does not know.
    pub payload: Bytes,
}

impl<M> Clone for Received<M> {
    fn clone(&self) -> Self {
        Self { content: Arc::clone(&self.content), message: self.message.clone() }
    }
}

impl<M> Received<M> {
    pub(crate) fn new(content: M, message: Message) -> Self {
        Self { content: Arc::new(content), message }
    }
}

impl<M: Content> Received<M> {
    /// `acme/widgets#7`.
    pub fn issue_ref(&self) -> String {
        format!("{}#{}", self.repository().full_name(), self.issue().number)
    }
}

impl<M> Deref for Received<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.content
    }
}

/// What a stream holds: changes or events.
pub trait Content: DeserializeOwned + sealed::Sealed + Send + Sync + 'static {
    /// The stream.
    const STREAM: &'static str;
    /// First tokens of its subjects.
    const PREFIX: &'static str;
    /// Its subjects, for names of spans.
    const TEMPLATE: &'static str;
    /// Newest version of the payload that is read. Fields that are added keep the version.
    const VERSION: u32;

    /// Version of the payload.
    fn version(&self) -> u32;

    /// The issue.
    fn issue(&self) -> &Issue;

    /// Its repository.
    fn repository(&self) -> &Repository;

    /// Whether it is of a kind that this version knows.
    fn is_known(&self) -> bool;

    /// Ids and logins of those that it concerns: who was assigned or unassigned, of other messages
    /// whom the issue is assigned to. The id is 0 where it is not known.
    fn people(&self) -> Vec<(i64, &str)>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for contract::change::Change {}
    impl Sealed for contract::event::IssueEvent {}
}

impl Content for Change {
    const STREAM: &'static str = names::CHANGES;
    const PREFIX: &'static str = names::CHANGES_PREFIX;
    const TEMPLATE: &'static str = "gitea.changes.{kind}.{owner}.{repo}.{number}";
    const VERSION: u32 = CHANGE_VERSION;

    fn version(&self) -> u32 {
        self.version
    }

    fn issue(&self) -> &Issue {
        &self.issue
    }

    fn repository(&self) -> &Repository {
        &self.repository
    }

    fn is_known(&self) -> bool {
        self.kind != ChangeKind::Other
    }

    fn people(&self) -> Vec<(i64, &str)> {
        if !matches!(self.kind, ChangeKind::Assigned | ChangeKind::Unassigned) {
            return assignees(&self.issue);
        }
        let added = ids(&self.added_ids).zip(self.added.iter().map(String::as_str));
        let removed = ids(&self.removed_ids).zip(self.removed.iter().map(String::as_str));
        added.chain(removed).collect()
    }
}

impl Content for IssueEvent {
    const STREAM: &'static str = names::EVENTS;
    const PREFIX: &'static str = names::EVENTS_PREFIX;
    const TEMPLATE: &'static str = "gitea.issues.{action}.{owner}.{repo}.{number}.{partition}";
    const VERSION: u32 = EVENT_VERSION;

    fn version(&self) -> u32 {
        self.version
    }

    fn issue(&self) -> &Issue {
        &self.issue
    }

    fn repository(&self) -> &Repository {
        &self.repository
    }

    fn is_known(&self) -> bool {
        // Actions are Gitea's, and each is handed over.
        true
    }

    fn people(&self) -> Vec<(i64, &str)> {
        assignees(&self.issue)
    }
}

/// Former versions told no ids.
fn ids(ids: &[i64]) -> impl Iterator<Item = i64> {
    ids.iter().copied().chain(iter::repeat(0))
}

fn assignees(issue: &Issue) -> Vec<(i64, &str)> {
    issue.assignees.iter().map(|user| (user.id, user.login.as_str())).collect()
}

/// Why a payload is not read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    Unreadable(Unreadable),
    /// It is of this later version, in which the same fields may mean something else.
    Later(u64),
}

/// Reads a payload.
pub(crate) fn read<M: Content>(payload: &[u8]) -> Result<M, Unread> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u64,
    }

    match parse::<M>(payload) {
        Ok(content) if content.version() > M::VERSION => {
            Err(Unread::Later(content.version().into()))
        }
        Ok(content) => Ok(content),
        Err(unreadable) => match serde_json::from_slice(payload) {
            Ok(Versioned { version }) if version > M::VERSION.into() => Err(Unread::Later(version)),
            _ => Err(Unread::Unreadable(unreadable)),
        },
    }
}

fn parse<M: Content>(payload: &[u8]) -> Result<M, Unreadable> {
    let mut json = serde_json::Deserializer::from_slice(payload);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let inner = error.inner();
        if !inner.is_data() {
            return Unreadable("it is no JSON".into());
        }
        // Other texts of serde_json show the value.
        let text = inner.to_string();
        let missing = text.split('`').nth(1).filter(|_| text.starts_with("missing field"));
        match (error.path().to_string().as_str(), missing) {
            (".", None) => Unreadable("it is no object".into()),
            (".", Some(field)) => Unreadable(format!("{field} is missing")),
            (path, None) => Unreadable(format!("{path} is not as expected")),
            (path, Some(field)) => Unreadable(format!("{path}.{field} is missing")),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_names_the_field_and_shows_no_value() {
        for (payload, text) in [
            ("{", "it is no JSON"),
            ("\"secret\"", "it is no object"),
            (r#"{"version":"secret"}"#, "version is not as expected"),
            (r#"{"version":1}"#, "kind is missing"),
        ] {
            let Err(Unread::Unreadable(error)) = read::<Change>(payload.as_bytes()) else {
                panic!("{payload}")
            };
            assert!(!error.to_string().contains("secret"));
            assert_eq!(error.to_string(), text, "{payload}");
        }
    }

    #[test]
    fn a_later_version_is_told_from_what_cannot_be_read() {
        for payload in [r#"{"version":2}"#, r#"{"version":2,"kind":{"name":"closed"}}"#] {
            let read = read::<Change>(payload.as_bytes());
            assert_eq!(read.expect_err("a later one"), Unread::Later(2), "{payload}");
        }
    }
}
