//! The typed change that agents and bots read: what happened to an issue,
//! worked out by comparing an event with what was known of the issue.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

use crate::{
    event::{Action, Issue, IssueEvent, Repository, User},
    timestamp::Timestamp,
};

/// The version of the change's shape, under the same rule as the event's.
pub const CHANGE_VERSION: u32 = 1;

/// One change of an issue, as published on `gitea.changes.>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// Version of this shape, now 1.
    pub version: u32,
    /// What changed.
    pub kind: ChangeKind,
    /// Logins that were assigned by this change. Only with `assigned`.
    pub added: Vec<String>,
    /// Logins that are no longer assigned. Only with `unassigned`, and empty
    /// there when nobody can know who it was (`first_seen`).
    pub removed: Vec<String>,
    /// Logins assigned now, after all changes of this event.
    pub assignees: Vec<String>,
    /// Gitea's payload cannot say whether this was the last change of its
    /// second: another one of the same second contradicts it.
    pub in_doubt: bool,
    /// The issue was not known before, so this is what its first event implies.
    pub first_seen: bool,
    /// The issue as it is now.
    pub issue: Issue,
    /// Its repository.
    pub repository: Repository,
    /// Who did what led to this change.
    pub sender: User,
    /// The delivery it follows from.
    pub cause: Cause,
    /// The issue's long texts were cut, as in the event.
    #[serde(default)]
    pub cut: bool,
}

/// The delivery that a change follows from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cause {
    /// `X-Gitea-Delivery`. Without its dashes it is the trace id.
    pub delivery_id: String,
    /// The event's action. Not always the change's kind: an `edited` can be the
    /// first to tell of an assignment.
    pub action: Action,
    /// When ingest had received it.
    pub received_at: Timestamp,
}

/// What changed. The order of the kinds is the order in which one event's changes
/// are published: who is told to start finds that the others were told to stop.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    IntoStaticStr,
    VariantArray,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum ChangeKind {
    /// Somebody is no longer assigned.
    Unassigned,
    /// The issue was closed.
    Closed,
    /// The issue was opened again.
    Reopened,
    /// Somebody was assigned.
    Assigned,
}

impl ChangeKind {
    /// All kinds, in their order.
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// The token in subjects and message ids.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl fmt::Display for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Change {
    /// A change of `kind` that follows from `event`. Who was added or removed
    /// and the two flags are the caller's to set.
    pub fn from_event(kind: ChangeKind, event: &IssueEvent) -> Self {
        Self {
            version: CHANGE_VERSION,
            kind,
            added: Vec::new(),
            removed: Vec::new(),
            assignees: event.issue.assignee_logins(),
            in_doubt: false,
            first_seen: false,
            issue: event.issue.clone(),
            repository: event.repository.clone(),
            sender: event.sender.clone(),
            cause: Cause {
                delivery_id: event.delivery.id.clone(),
                action: event.action.clone(),
                received_at: event.delivery.received_at,
            },
            cut: event.cut,
        }
    }

    /// The message id: the same change told again, after a crash or a
    /// redrive, is dropped by the stream.
    pub fn message_id(&self) -> String {
        format!("{}:{}", self.cause.delivery_id, self.kind)
    }

    /// In short, for a log line: `assigned +bot`, `unassigned -tom`, `closed`.
    pub fn summary(&self) -> String {
        let mut text = self.kind.to_string();
        for (sign, logins) in [('+', &self.added), ('-', &self.removed)] {
            for login in logins {
                text.push(' ');
                text.push(sign);
                text.push_str(login);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event;

    #[test]
    fn a_change_names_its_delivery_and_says_in_short_what_it_is() {
        let mut change = Change::from_event(ChangeKind::Assigned, &event::example());
        change.added = vec!["bot".into(), "tom".into()];
        assert_eq!(change.message_id(), "b60f8ed3-6a1a-4e58-b31e-0b00968f94cb:assigned");
        assert_eq!(change.summary(), "assigned +bot +tom");
        let json = serde_json::to_string(&change).expect("json");
        assert_eq!(serde_json::from_str::<Change>(&json).expect("own json"), change);
    }

    /// The two examples in the README, in the order event, change.
    #[test]
    fn the_examples_in_the_readme_are_what_is_published() {
        let readme =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md"))
                .expect("README.md");
        let examples: Vec<serde_json::Value> = readme
            .split("```json\n")
            .skip(1)
            .map(|rest| rest.split("```").next().unwrap_or_default())
            .map(|json| serde_json::from_str(json).expect("JSON"))
            .collect();
        let event = event::example();
        let mut change = Change::from_event(ChangeKind::Assigned, &event);
        change.added = vec!["bot".into()];
        assert_eq!(
            examples,
            [
                serde_json::to_value(&event).expect("json"),
                serde_json::to_value(&change).expect("json"),
            ]
        );
    }
}
