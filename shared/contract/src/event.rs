//! The typed event that subscribers read: one delivery of Gitea about an
//! issue, with the issue as it was at that moment.
//!
//! An event is a snapshot. It does not say what changed since the last event:
//! a [`Change`](crate::change::Change) does.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr};

use crate::timestamp::Timestamp;

/// Version of the event's shape. A field that is added keeps the version. A field
/// that is removed or changes its meaning needs a new version.
pub const EVENT_VERSION: u32 = 1;

/// The name of the event's JSON Schema: its `$id`, and `ce-dataschema` of each event. It changes with
/// the version only.
pub const EVENT_SCHEMA: &str = "urn:coordinator:schema:event:v1";

/// One issue event of Gitea, as published on `gitea.issues.>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct IssueEvent {
    /// Version of this shape, now 1.
    pub version: u32,
    /// The delivery that brought the event.
    pub delivery: Delivery,
    /// What Gitea says happened.
    pub action: Action,
    /// The issue at that moment.
    pub issue: Issue,
    /// The repository at that moment.
    pub repository: Repository,
    /// The user who acted. Gitea does not say which user was assigned.
    pub sender: User,
    /// The commit that closed the issue, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit_id: Option<String>,
    /// Gitea's own `changes` object, verbatim: former title or body, labels added or removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<serde_json::Value>,
    /// Long texts were cut because the broker takes no message of that size.
    /// Assignees and state are always whole.
    #[serde(default)]
    pub cut: bool,
    /// Only with the action `synced`: no webhook brought the event, Gitea's API was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synced: Option<Box<Synced>>,
}

/// Why Gitea's API was asked about an issue, and what it said beside the issue itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Synced {
    /// Why it was asked.
    pub cause: SyncCause,
    /// The delivery that had led to the known state of the issue when Gitea was asked. Empty if
    /// nothing was known. The answer is only as new as that: if another delivery has been handled
    /// meanwhile, Gitea is asked again.
    pub known: String,
    /// Gitea's clock when it answered, to the second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_at: Option<Timestamp>,
    /// The delivery whose event raised the doubt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raised_by: Option<String>,
    /// The first sweep found it. Of an issue that was never seen, and that nobody is assigned to, no
    /// change is told then: its history is no news.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub history: bool,
    /// The newest entries of the issue's timeline, one for each kind and person.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acts: Vec<Act>,
}

/// Why Gitea was asked. Causes are open: one that is not known here is a cause like any other.
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
#[schemars(with = "String", extend("examples" = SyncCause::ALL))]
#[strum(serialize_all = "lowercase")]
pub enum SyncCause {
    /// Events contradicted each other, or one looked old and had never been seen.
    Doubt,
    /// The issue was changed and no webhook told it.
    Missed,
    /// The issue was changed without a trace, as when a collaborator is removed.
    Repair,
    /// The issue, or its repository, is not there any more.
    Gone,
    /// Somebody ran `coordinator sync`.
    Asked,
    /// A cause that this program does not know.
    #[serde(other)]
    Other,
}

impl SyncCause {
    /// All causes that are published.
    pub const ALL: [Self; 5] = [Self::Doubt, Self::Missed, Self::Repair, Self::Gone, Self::Asked];

    /// The cause as a metric's label.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl fmt::Display for SyncCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who did what to an issue, as its timeline in Gitea says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Act {
    /// What was done.
    pub kind: ActKind,
    /// Who was assigned or unassigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whom: Option<User>,
    /// Who did it.
    pub by: User,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

/// What somebody did to an issue. Acts are open: skip one that you do not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(with = "String", extend("examples" = ActKind::ALL))]
pub enum ActKind {
    /// Took a person off the issue.
    Unassigned,
    /// Closed it.
    Closed,
    /// Opened it again.
    Reopened,
    /// Put a person on the issue.
    Assigned,
    /// An act that this program does not know.
    #[serde(other)]
    Other,
}

impl ActKind {
    /// All acts that are published.
    pub const ALL: [Self; 4] = [Self::Unassigned, Self::Closed, Self::Reopened, Self::Assigned];
}

/// One HTTP request of Gitea.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Delivery {
    /// `X-Gitea-Delivery`, the UUID that Gitea shows under "Recent deliveries".
    pub id: String,
    /// When ingest had received the delivery.
    pub received_at: Timestamp,
    /// SHA-256 of the signed JSON text, in hex. Deliveries of several hooks, or
    /// a redelivery by hand, carry the same text under different ids.
    pub body_sha256: String,
    /// What the hook belongs to: `repository`, `organization`, `user`, `system` or
    /// `default`. Newer Gitea only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
}

/// An issue, as a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Issue {
    /// Gitea's id, unique over all repositories.
    pub id: i64,
    /// The number within its repository.
    pub number: u64,
    /// Title.
    pub title: String,
    /// Text, in Markdown.
    pub body: String,
    /// The page of the issue.
    pub url: String,
    /// Open or closed.
    pub state: State,
    /// Who is assigned, in Gitea's order.
    pub assignees: Vec<User>,
    /// Names of its labels.
    pub labels: Vec<String>,
    /// Title of its milestone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub milestone: Option<String>,
    /// Who opened it.
    pub author: User,
    /// When it was opened. None where Gitea sends a zero value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// When it was last changed, to the second. None where Gitea sends a zero value,
    /// while an issue is being created. None means unknown, never oldest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Timestamp>,
    /// When it was closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<Timestamp>,
    /// When it is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_date: Option<Timestamp>,
}

impl Issue {
    /// Logins of the assignees, in Gitea's order.
    pub fn assignee_logins(&self) -> Vec<String> {
        self.assignees.iter().map(|u| u.login.clone()).collect()
    }
}

/// A repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Repository {
    /// Gitea's id. It stays when the repository is renamed or transferred.
    pub id: i64,
    /// Login of the user or organisation that owns it.
    pub owner: String,
    /// Name without the owner. May contain dots.
    pub name: String,
    /// The page of the repository.
    pub url: String,
    /// Where to clone it from over HTTP.
    pub clone_url: String,
    /// Branch that is checked out by default.
    pub default_branch: String,
}

impl Repository {
    /// `owner/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

/// A user: id and login.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct User {
    /// Gitea's id. Negative for Ghost (-1) and gitea-actions (-2).
    pub id: i64,
    /// Login name.
    pub login: String,
}

/// Whether an issue is open: `open` or `closed`. States are open to additions: one that you do not
/// know is not `open`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(with = "String", extend("examples" = State::ALL))]
pub enum State {
    /// Open.
    Open,
    /// Closed.
    Closed,
    /// A state that this program does not know. It is read, and never published.
    #[serde(other)]
    Other,
}

impl State {
    /// All states that are published.
    pub const ALL: [Self; 2] = [Self::Open, Self::Closed];
}

/// An issue action under Gitea's name. Actions are open: Gitea versions add actions, so
/// an unknown action is kept as it is.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, EnumString, IntoStaticStr,
)]
#[serde(from = "String", into = "String")]
#[schemars(with = "String", extend("examples" = Action::KNOWN))]
#[strum(serialize_all = "snake_case")]
pub enum Action {
    /// `opened`
    Opened,
    /// `edited`
    Edited,
    /// `closed`
    Closed,
    /// `reopened`
    Reopened,
    /// `assigned`
    Assigned,
    /// `unassigned`
    Unassigned,
    /// `label_updated`
    LabelUpdated,
    /// `label_cleared`
    LabelCleared,
    /// `milestoned`
    Milestoned,
    /// `demilestoned`
    Demilestoned,
    /// `deleted`
    Deleted,
    /// `synced`: not an action of Gitea. Its API was asked, see [`Synced`].
    Synced,
    /// Any other action, under Gitea's name.
    #[strum(default)]
    Other(String),
}

impl Action {
    /// All actions that have a name here.
    pub const KNOWN: [Self; 12] = [
        Self::Opened,
        Self::Edited,
        Self::Closed,
        Self::Reopened,
        Self::Assigned,
        Self::Unassigned,
        Self::LabelUpdated,
        Self::LabelCleared,
        Self::Milestoned,
        Self::Demilestoned,
        Self::Deleted,
        Self::Synced,
    ];

    /// Gitea's name for the action.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Other(name) => name,
            known => known.metric_label(),
        }
    }

    /// The name as a metric's label. An unknown action counts as `other`, so that
    /// a sender cannot create time series.
    pub fn metric_label(&self) -> &'static str {
        self.into()
    }
}

impl From<String> for Action {
    fn from(name: String) -> Self {
        Self::from_str(&name).unwrap_or(Self::Other(name))
    }
}

impl From<Action> for String {
    fn from(action: Action) -> Self {
        action.as_str().to_owned()
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl IssueEvent {
    /// The issue as people write it: `acme/widgets#7`.
    pub fn issue_ref(&self) -> String {
        format!("{}#{}", self.repository.full_name(), self.issue.number)
    }

    /// Whether the issue is no longer there: its deletion was delivered, or Gitea's API does not
    /// know it any more.
    pub fn is_deletion(&self) -> bool {
        let gone = |synced: &Synced| synced.cause == SyncCause::Gone;
        self.action == Action::Deleted || self.synced.as_deref().is_some_and(gone)
    }

    /// Cuts the texts of an event that is larger than `max_bytes` as JSON, and sets
    /// `cut`. What identifies the issue and what the worker compares stays whole.
    ///
    /// Returns false if the event is still too large after that.
    pub fn cut_to(&mut self, max_bytes: usize) -> bool {
        let size = |event: &Self| serde_json::to_vec(event).map_or(usize::MAX, |json| json.len());
        self.cut = true;
        self.changes = None;
        // JSON never shortens a text, so the body is cut to `max_bytes` before measuring.
        let body = &mut self.issue.body;
        let fits = (0..=max_bytes.min(body.len())).rev().find(|at| body.is_char_boundary(*at));
        body.truncate(fits.unwrap_or(0));
        body.shrink_to_fit();
        let over = size(self).saturating_sub(max_bytes);
        if over > 0 {
            cut_json_bytes(&mut self.issue.body, over);
        }
        let over = size(self).saturating_sub(max_bytes);
        if over > 0 {
            cut_json_bytes(&mut self.issue.title, over);
        }
        if size(self) > max_bytes {
            self.issue.labels.clear();
            self.issue.milestone = None;
        }
        size(self) <= max_bytes
    }
}

/// Removes at least `bytes` of JSON text from the end of `text`. A character counts
/// with the length of its JSON escape, and is never split.
fn cut_json_bytes(text: &mut String, bytes: usize) {
    let mut freed = 0;
    let mut keep = text.len();
    for (at, c) in text.char_indices().rev() {
        if freed >= bytes {
            break;
        }
        freed += match c {
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
            c if c < ' ' => 6,
            c => c.len_utf8(),
        };
        keep = at;
    }
    text.truncate(keep);
}

/// A small event for tests and examples.
#[doc(hidden)]
pub fn example() -> IssueEvent {
    let user = |id, login: &str| User { id, login: login.into() };
    let at = |text: &str| Timestamp::parse(text).ok();
    IssueEvent {
        version: EVENT_VERSION,
        delivery: Delivery {
            id: "b60f8ed3-6a1a-4e58-b31e-0b00968f94cb".into(),
            received_at: Timestamp::from_unix_micros(1_795_477_502_125_000),
            body_sha256: "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef".into(),
            hook: Some("repository".into()),
        },
        action: Action::Assigned,
        issue: Issue {
            id: 1,
            number: 1,
            title: "Login page returns 500".into(),
            body: "Steps: open `/login`, press *Sign in*.".into(),
            url: "http://localhost:3000/acme/widgets/issues/1".into(),
            state: State::Open,
            assignees: vec![user(4, "bot")],
            labels: vec!["bug".into()],
            milestone: None,
            author: user(1, "maria"),
            created_at: at("2026-11-23T23:45:00Z"),
            updated_at: at("2026-11-23T23:45:02Z"),
            closed_at: None,
            due_date: None,
        },
        repository: Repository {
            id: 1,
            owner: "acme".into(),
            name: "widgets".into(),
            url: "http://localhost:3000/acme/widgets".into(),
            clone_url: "http://localhost:3000/acme/widgets.git".into(),
            default_branch: "main".into(),
        },
        sender: user(1, "maria"),
        commit_id: None,
        changes: None,
        cut: false,
        synced: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_action_reads_back_as_itself() {
        for name in Action::KNOWN.map(|action| action.to_string()) {
            let name = name.as_str();
            let action = Action::from(name.to_owned());
            assert!(!matches!(action, Action::Other(_)), "{name}");
            assert_eq!((action.as_str(), action.metric_label()), (name, name));
        }
        let unknown = Action::from("pinned".to_owned());
        assert_eq!((unknown.as_str(), unknown.metric_label()), ("pinned", "other"));
    }

    #[test]
    fn a_large_event_is_cut_at_its_texts_and_keeps_who_and_state() {
        for filler in ["x", "\"", "é", "\u{1}", "漢"] {
            let mut event = example();
            event.issue.body = filler.repeat(50_000);
            assert!(event.cut_to(4_000), "{filler:?}");
            assert!(event.cut);
            let json = serde_json::to_vec(&event).expect("json");
            assert!(json.len() <= 4_000 && json.len() > 3_900, "{filler:?}: {}", json.len());
            assert_eq!(event.issue.assignees, example().issue.assignees);
            assert_eq!(event.issue.title, example().issue.title);
        }
    }

    #[test]
    fn an_event_that_cannot_fit_is_told() {
        let mut event = example();
        event.issue.assignees = vec![User { id: 1, login: "a".repeat(200) }; 100];
        assert!(!event.cut_to(4_000));
    }
}
