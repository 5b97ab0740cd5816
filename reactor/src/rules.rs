//! Rules: who has to be assigned, and what then runs.

mod file;
mod parse;
#[cfg(test)]
mod tests;
mod values;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use contract::issue_state::{KnownIssue, Lifecycle, Person};
use serde::{Deserialize, Serialize};

pub use self::file::{RulesError, read};
pub(crate) use self::parse::is_name;
#[cfg(test)]
pub(crate) use self::tests::example;
use crate::{call::Call, process::Limits};

/// All rules of one file.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Runs at once on this machine, over all rules.
    pub concurrency: usize,
    by_name: BTreeMap<String, Arc<Rule>>,
}

impl Rules {
    /// The rules, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.by_name.values()
    }

    /// The rule of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<Rule>> {
        self.by_name.get(name)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.by_name.len()
    }
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its name, which is a token of keys and subjects.
    pub name: String,
    /// For whom it is.
    pub who: Who,
    /// What runs.
    pub work: Work,
    /// Runs of the rule at once on this machine.
    pub concurrency: usize,
    /// What becomes of a run whose runner has died.
    pub on_restart: OnRestart,
    /// Runs of one issue that may begin within an hour. It breaks a loop of a run that causes its
    /// own assignment.
    pub max_runs_per_hour: usize,
}

/// Who has to be assigned to which issues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// The person.
    pub person: Wanted,
    /// Owner of the repository, whatever its case.
    pub owner: Option<String>,
    /// Name of the repository, whatever its case.
    pub repository: Option<String>,
    /// A label that the issue has to have when the run is to begin. A run goes on without it, since
    /// no change tells of labels.
    pub label: Option<String>,
}

/// A person as rules name them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// By login, whatever its case. It passes to another person if Gitea gives it to another.
    Login(String),
    /// By Gitea's id.
    Id(i64),
}

/// What a rule does.
#[derive(Clone, Debug)]
pub enum Work {
    /// It runs a command while the issue is open and assigned.
    Command(CommandRule),
    /// It calls an address when the issue is assigned, and once it is not any more.
    Call(Call),
}

/// A command, before it is known for which issue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandRule {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Working directory.
    pub directory: Option<PathBuf>,
    /// User that it runs as.
    pub user: Option<String>,
    /// Variables of the role's own environment that it gets.
    pub environment: Vec<String>,
    /// What it may take.
    pub limits: Limits,
}

/// What becomes of a run whose runner has died or was stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRestart {
    /// It has failed.
    #[default]
    Stop,
    /// It begins once more, on whatever runner.
    Rerun,
}

/// Why an issue wants no run: it is closed.
pub const CLOSED: &str = "closed";
/// Why an issue wants no run: it is deleted.
pub const DELETED: &str = "deleted";
/// Why an issue wants no run: nobody of the rule is assigned.
pub const UNASSIGNED: &str = "unassigned";
/// Why an issue wants no run: there is no such rule any more.
pub const RULE_GONE: &str = "rule gone";

/// Whether an issue wants a run of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// Open, and assigned to this person.
    Yes(Person),
    /// It does not, for this reason.
    No(&'static str),
    /// That is not known: nothing begins, and nothing ends.
    Unknown,
}

impl Rule {
    /// Whether the issue wants a run by what is known of it. `labels` are those of the issue, where
    /// they are known; they matter only where no run has begun.
    pub fn wants(&self, issue: &KnownIssue, labels: Option<&[String]>, has_begun: bool) -> Want {
        match issue.state {
            Lifecycle::Closed => return Want::No(CLOSED),
            Lifecycle::Deleted => return Want::No(DELETED),
            // A later version knows what that means.
            Lifecycle::Other => return Want::Unknown,
            Lifecycle::Open => {}
        }
        let Some(person) = issue.assignees.iter().find(|person| self.who.person.is(person)) else {
            return Want::No(UNASSIGNED);
        };
        // A repository that was renamed or transferred is another one for the rules.
        match (self.who.is_at(issue), has_begun) {
            (Some(true), _) => {}
            (Some(false), _) => return Want::No("elsewhere"),
            (None, _) => return Want::Unknown,
        }
        match (&self.who.label, labels, has_begun) {
            (None, ..) | (.., true) => Want::Yes(person.clone()),
            (Some(_), None, false) => Want::Unknown,
            (Some(label), Some(labels), false) => {
                let has = labels.iter().any(|own| own.eq_ignore_ascii_case(label));
                if has { Want::Yes(person.clone()) } else { Want::No("without the label") }
            }
        }
    }

    /// Time from TERM to KILL, in seconds, rounded up.
    pub fn grace_secs(&self) -> u64 {
        match &self.work {
            Work::Command(command) => command.limits.grace.as_secs_f64().ceil() as u64,
            // A call is over before its lease is.
            Work::Call(_) => 0,
        }
    }

    /// Whether it calls an address.
    pub fn is_call(&self) -> bool {
        matches!(self.work, Work::Call(_))
    }
}

impl Who {
    /// Whether the issue is in the repository that is meant. None if it is not known where it is.
    fn is_at(&self, issue: &KnownIssue) -> Option<bool> {
        if self.owner.is_none() && self.repository.is_none() {
            return Some(true);
        }
        let (owner, repository, _) = issue.place()?;
        let is = |wanted: &Option<String>, found: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(found))
        };
        Some(is(&self.owner, owner) && is(&self.repository, repository))
    }
}

impl Wanted {
    /// Whether it is this person.
    pub fn is(&self, person: &Person) -> bool {
        match self {
            Self::Login(login) => login.eq_ignore_ascii_case(&person.login),
            Self::Id(id) => *id == person.id,
        }
    }
}
