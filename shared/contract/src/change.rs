//! The typed change that agents and bots read: what happened to an issue.
//!
//! A change is derived by comparing an event with the stored state of the issue.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

use crate::{
    event::{Action, Issue, IssueEvent, Repository, User},
    timestamp::Timestamp,
};

/// Version of the change's shape, under the same rule as
/// [`EVENT_VERSION`](crate::event::EVENT_VERSION).
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
    /// Logins that are no longer assigned. Only with `unassigned`. Empty if the
    /// issue was not known before (`first_seen`).
    pub removed: Vec<String>,
    /// Logins assigned now, after all changes of this event.
    pub assignees: Vec<String>,
    /// Another event of the same second contradicts this change, and Gitea's
    /// payload does not say which of them was the last.
    pub in_doubt: bool,
    /// The issue was not known before. The change is what its first event implies.
    pub first_seen: bool,
    /// The issue as it is now.
    pub issue: Issue,
    /// The repository of the issue.
    pub repository: Repository,
    /// The user whose action led to this change.
    pub sender: User,
    /// The delivery that the change follows from.
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
    /// The event's action. It can differ from the change's kind: an `edited`
    /// event can be the first one that shows an assignment.
    pub action: Action,
    /// When ingest had received the delivery.
    pub received_at: Timestamp,
}

/// What changed. The changes of one event are published in the order of the kinds,
/// so `unassigned` comes before `assigned`: one agent stops before another starts.
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
    /// All kinds, in the order of their publication.
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// The kind as a token of subjects and message ids.
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
    /// A change of `kind` that follows from `event`. The caller sets `added`, `removed`,
    /// `in_doubt` and `first_seen`.
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

    /// The message id. A change that is published again after a crash or a redrive
    /// has the same id, so the stream drops it.
    pub fn message_id(&self) -> String {
        format!("{}:{}", self.cause.delivery_id, self.kind)
    }

    /// A short form for log lines: `assigned +bot`, `unassigned -tom`, `closed`.
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
