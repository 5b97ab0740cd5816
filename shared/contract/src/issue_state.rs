//! The state of an issue as subscribers know it: what everybody may read of an entry of the bucket
//! of issue states. The worker alone writes entries, and keeps more in them.

use serde::{Deserialize, Serialize};

use crate::{
    event::{State, User},
    timestamp::Timestamp,
};

/// What is known of an issue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct KnownIssue {
    /// Who is assigned.
    pub assignees: Vec<Person>,
    /// Whether it is open, closed or gone.
    pub state: Lifecycle,
    /// `updated_at` of the newest event. None if no event had one yet.
    #[serde(default)]
    pub updated_at: Option<Timestamp>,
    /// Two events contradict each other.
    #[serde(default)]
    pub in_doubt: bool,
    /// The tombstone is there because Gitea's API did not know the issue any more.
    #[serde(default)]
    pub gone: bool,
    /// `owner/name#number` as it was last seen.
    #[serde(default)]
    pub issue: String,
    /// Gitea's id of the issue. 0 in older entries.
    #[serde(default)]
    pub issue_id: i64,
    /// Its title as it was last seen, cut.
    #[serde(default)]
    pub title: String,
    /// The delivery that led to this state. Empty if no event was decided.
    #[serde(default)]
    pub delivery_id: String,
}

impl KnownIssue {
    /// Whether the issue is known to be open and somebody is assigned: an agent may be at work.
    pub fn is_worked_on(&self) -> bool {
        self.state == Lifecycle::Open && !self.assignees.is_empty()
    }

    /// Owner, repository and number, as they were last seen.
    pub fn place(&self) -> Option<(&str, &str, u64)> {
        let (name, number) = self.issue.rsplit_once('#')?;
        let (owner, repository) = name.split_once('/')?;
        Some((owner, repository, number.parse().ok()?))
    }
}

/// A person who is assigned.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "PersonForm")]
pub struct Person {
    /// Gitea's id. 0 if it is not known.
    pub id: i64,
    /// Login as it was last seen.
    pub login: String,
}

/// States of the first form hold logins alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum PersonForm {
    Login(String),
    Person { id: i64, login: String },
}

impl From<PersonForm> for Person {
    fn from(form: PersonForm) -> Self {
        match form {
            PersonForm::Login(login) => Self { id: 0, login },
            PersonForm::Person { id, login } => Self { id, login },
        }
    }
}

impl From<&User> for Person {
    fn from(user: &User) -> Self {
        Self { id: user.id, login: user.login.clone() }
    }
}

impl Person {
    /// A person can be renamed, and a login can pass to another person. So people are compared by
    /// id, and by login only where an id is not known.
    pub fn is(&self, other: &Self) -> bool {
        if self.id != 0 && other.id != 0 { self.id == other.id } else { self.login == other.login }
    }
}

/// Whether an issue is open, closed or gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lifecycle {
    /// Open.
    #[default]
    Open,
    /// Closed.
    Closed,
    /// The tombstone of an issue: whatever comes later is stale.
    Deleted,
    /// A state that this program does not know. It is read, and never written.
    #[serde(other)]
    Other,
}

impl From<State> for Lifecycle {
    fn from(state: State) -> Self {
        match state {
            State::Open => Self::Open,
            State::Closed => Self::Closed,
            State::Other => Self::Other,
        }
    }
}

/// The key of an issue. It contains the repository's id and not its name, because a repository can
/// be renamed.
pub fn key(repository_id: i64, number: u64) -> String {
    format!("{repository_id}.{number}")
}

/// Reads a key.
pub fn parse_key(key: &str) -> Option<(i64, u64)> {
    let (repository_id, number) = key.split_once('.')?;
    Some((repository_id.parse().ok()?, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(id: i64, login: &str) -> Person {
        Person { id, login: login.into() }
    }

    #[test]
    fn people_are_compared_by_id_and_by_login_where_an_id_is_not_known() {
        for (one, other, same) in [
            ((7, "bot"), (7, "bot"), true),
            ((7, "bot"), (7, "robot"), true),
            ((7, "bot"), (8, "bot"), false),
            ((0, "bot"), (8, "bot"), true),
            ((7, "bot"), (0, "bot"), true),
            ((0, "bot"), (8, "robot"), false),
        ] {
            let (one, other) = (person(one.0, one.1), person(other.0, other.1));
            assert_eq!(one.is(&other), same, "{one:?} {other:?}");
        }
    }

    #[test]
    fn an_entry_of_the_first_form_is_read_and_says_where_its_issue_is() {
        let least: KnownIssue =
            serde_json::from_str(r#"{"assignees":["bot"],"state":"open"}"#).expect("least");
        assert_eq!(least.assignees, [person(0, "bot")]);
        assert!(least.is_worked_on() && least.place().is_none());
        for (issue, place) in [
            ("acme/docs.site#7", Some(("acme", "docs.site", 7))),
            ("acme#7", None),
            ("acme/widgets#", None),
            ("", None),
        ] {
            let known = KnownIssue { issue: issue.into(), ..KnownIssue::default() };
            assert_eq!(known.place(), place, "{issue}");
        }
        assert_eq!(parse_key(&key(-3, 7)), Some((-3, 7)));
        assert_eq!(parse_key("7"), None);
    }
}
