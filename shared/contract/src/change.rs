//! The typed change that agents and bots read: what happened to an issue.
//!
//! A change is derived by comparing an event with the stored state of the issue.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use crate::{
    event::{Action, Issue, IssueEvent, Repository, SyncCause, User},
    timestamp::Timestamp,
};

/// Version of the change's shape, under the same rule as
/// [`EVENT_VERSION`](crate::event::EVENT_VERSION).
pub const CHANGE_VERSION: u32 = 1;

/// The name of the change's JSON Schema, as [`EVENT_SCHEMA`](crate::event::EVENT_SCHEMA).
pub const CHANGE_SCHEMA: &str = "urn:coordinator:schema:change:v1";

/// One change of an issue, as published on `gitea.changes.>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// Version of this shape, now 1.
    pub version: u32,
    /// What changed: `unassigned`, `closed`, `reopened`, `assigned` or `deleted`. Kinds
    /// are open: skip a change of a kind that you do not know.
    pub kind: ChangeKind,
    /// Logins that were assigned by this change. Only with `assigned`.
    pub added: Vec<String>,
    /// Gitea's ids of `added`, in the same order.
    #[serde(default)]
    pub added_ids: Vec<i64>,
    /// Logins that are no longer assigned, as they were last seen. Only with
    /// `unassigned`. Empty if the issue was not known before (`first_seen`).
    pub removed: Vec<String>,
    /// Gitea's ids of `removed`, in the same order. 0 where the id is not known.
    #[serde(default)]
    pub removed_ids: Vec<i64>,
    /// Who did it, where Gitea's timeline says so: for each of `added` or `removed` in their order,
    /// or for the one who closed or reopened the issue. Empty where nobody asked Gitea.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by: Vec<Option<User>>,
    /// Logins assigned now, after all changes of this event. Nobody is assigned to a
    /// deleted issue.
    pub assignees: Vec<String>,
    /// Gitea's ids of `assignees`, in the same order.
    #[serde(default)]
    pub assignee_ids: Vec<i64>,
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Cause {
    /// `X-Gitea-Delivery`. Without its dashes it is the trace id.
    pub delivery_id: String,
    /// The event's action. It can differ from the change's kind: an `edited`
    /// event can be the first one that shows an assignment.
    pub action: Action,
    /// When ingest had received the delivery, or Gitea's API had answered.
    pub received_at: Timestamp,
    /// Why Gitea's API was asked, if the change follows from its answer. No delivery of Gitea has
    /// the id `delivery_id` then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synced: Option<SyncCause>,
    /// The delivery whose event raised the doubt that this change settles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raised_by: Option<String>,
}

/// What changed. The changes of one event are published in the order of the kinds,
/// so `unassigned` comes before `assigned`: one agent stops before another starts. Kinds are
/// open: skip a change of a kind that you do not know.
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
)]
#[serde(rename_all = "lowercase")]
#[schemars(with = "String", extend("examples" = ChangeKind::ALL))]
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
    /// The issue was deleted. No change of the issue comes after this one, unless Gitea's API was
    /// asked (`synced` is `gone`) and later shows the issue again.
    Deleted,
    /// A kind that this program does not know. It is read, and never published.
    #[serde(other)]
    Other,
}

impl ChangeKind {
    /// All kinds that are published, in the order of their publication.
    pub const ALL: [Self; 5] =
        [Self::Unassigned, Self::Closed, Self::Reopened, Self::Assigned, Self::Deleted];

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
    /// A change of `kind` that follows from `event`. The caller sets who was added or
    /// removed, `in_doubt` and `first_seen`.
    pub fn from_event(kind: ChangeKind, event: &IssueEvent) -> Self {
        let synced = event.synced.as_deref();
        let assignees = if event.is_deletion() { &[][..] } else { &event.issue.assignees };
        Self {
            version: CHANGE_VERSION,
            kind,
            added: Vec::new(),
            added_ids: Vec::new(),
            removed: Vec::new(),
            removed_ids: Vec::new(),
            by: Vec::new(),
            assignees: assignees.iter().map(|user| user.login.clone()).collect(),
            assignee_ids: assignees.iter().map(|user| user.id).collect(),
            in_doubt: false,
            first_seen: false,
            issue: event.issue.clone(),
            repository: event.repository.clone(),
            sender: event.sender.clone(),
            cause: Cause {
                delivery_id: event.delivery.id.clone(),
                action: event.action.clone(),
                received_at: event.delivery.received_at,
                synced: synced.map(|synced| synced.cause),
                raised_by: synced.and_then(|synced| synced.raised_by.clone()),
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

    #[test]
    fn a_kind_that_is_not_known_is_read_so_that_it_can_be_skipped() {
        let change = Change::from_event(ChangeKind::Closed, &event::example());
        let mut json = serde_json::to_value(change).expect("json");
        json["kind"] = "transferred".into();
        let change: Change = serde_json::from_value(json).expect("a change");
        assert_eq!(change.kind, ChangeKind::Other);
    }

    #[test]
    fn nobody_is_assigned_to_a_deleted_issue() {
        let mut event = event::example();
        event.action = Action::Deleted;
        let change = Change::from_event(ChangeKind::Deleted, &event);
        assert_eq!((change.assignees, change.assignee_ids), (vec![], vec![]));
        assert_eq!(change.issue.assignees, event.issue.assignees, "the snapshot is Gitea's");
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
        (change.added, change.added_ids) = (vec!["bot".into()], vec![4]);
        assert_eq!(
            examples,
            [
                serde_json::to_value(&event).expect("json"),
                serde_json::to_value(&change).expect("json"),
            ]
        );
    }
}
