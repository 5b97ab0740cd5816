//! A run as it stands in its bucket: one entry an issue and rule.
//!
//! Architecture invariant: the id of a run is of no other run, also after its entry was removed. The
//! generation of a first entry is larger than each revision that the bucket had before, and each
//! generation takes a write, so none is larger than the revision of its entry. A bucket that is made
//! anew counts on from the time of its creation.

use std::fmt;

use contract::{change::Change, issue_state::Person, timestamp::Timestamp};
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use crate::{
    process::Ended,
    rules::{OnRestart, is_name},
};

/// Bytes of the end of the output that an entry keeps. The runner of a live run keeps more.
pub const KEPT_OUTPUT: usize = 4 * 1024;

/// Which bucket of runs there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// When it was created, by the broker's clock. Another one of the same name is known by it.
    pub created_at: Timestamp,
    /// Its last revision.
    pub last: u64,
}

/// One run of a rule for an issue: what is wanted of it, and how far it is.
///
/// It is replaced by compare-and-set alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Number of the run among those of this issue and rule. It grows, also over the removal of the
    /// entry, and is never larger than the entry's revision.
    pub generation: u64,
    /// What is wanted of it.
    pub desired: Desired,
    /// How far it is.
    pub phase: Phase,
    /// The runner that has it. Empty if none has.
    #[serde(default)]
    pub host: String,
    /// Raised at each renewal, so that each is a new revision.
    #[serde(default)]
    pub lease: u64,
    /// Number of the attempt, from 1: more if it asked to be tried again, or was rerun. 0 before the
    /// first.
    #[serde(default)]
    pub attempt: u32,
    /// How many of the last attempts in a row have lost their runner, each soon after it had begun.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub losses: u32,
    /// `owner/name#number` as it was last seen.
    pub issue: String,
    /// Who is assigned, for whom it runs.
    pub person: Option<Person>,
    /// Sequence of the change that it follows from, in the stream of changes. 0 if it follows from
    /// the issue's state alone.
    #[serde(default)]
    pub change: u64,
    /// The delivery that had led to the issue's state when it was wanted.
    #[serde(default)]
    pub delivery_id: String,
    /// Trace of the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// When what it follows from was received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told_at: Option<Timestamp>,
    /// When what ends it was received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_told_at: Option<Timestamp>,
    /// Why it is to stop.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stop_reason: String,
    /// An operator has stopped it: it begins no more until somebody is assigned anew.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// Not before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// When the bucket was created to which the first entry was written. Another bucket of the name has none
    /// of these runs, and may have one that goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket_created_at: Option<Timestamp>,
    /// When it was queued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_at: Option<Timestamp>,
    /// When the last attempt began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// The attempt tells the end of the run, and not its beginning. Of calls alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tells_end: bool,
    /// How it ended, of the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ending>,
    /// The end of its output.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// Whether the output is not whole.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub output_truncated: bool,
    /// When runs of this issue and rule were queued within the last hour, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recent: Vec<i64>,
    /// Time from TERM to KILL, by the rule with which it was queued.
    #[serde(default)]
    pub grace_secs: u64,
    /// What becomes of it if its runner dies, by the rule with which it was queued.
    #[serde(default)]
    pub on_restart: OnRestart,
    /// It calls an address, so that its end is told as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_call: bool,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What is wanted of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Desired {
    /// The issue is open and assigned.
    #[default]
    Run,
    /// It is not any more.
    Stop,
}

/// How far a run is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, IntoStaticStr,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Phase {
    /// For a runner with room. A call whose end is to be told waits too, with `desired: stop`.
    #[default]
    Waiting,
    /// A runner has it, and nothing runs yet.
    Starting,
    /// It was started. This is written before the process begins.
    Running,
    /// TERM was sent.
    Stopping,
    /// It ended by itself, with success.
    Done,
    /// It ended in another way.
    Failed,
    /// It ended because it was to stop.
    Stopped,
    /// It asked to be tried again, or its runner was lost more than once, and waits for its time.
    Again,
}

impl Phase {
    /// All phases.
    pub const ALL: [Self; 8] = [
        Self::Waiting,
        Self::Starting,
        Self::Running,
        Self::Stopping,
        Self::Done,
        Self::Failed,
        Self::Stopped,
        Self::Again,
    ];

    /// Whether a runner has it.
    pub fn is_held(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Stopping)
    }

    /// Whether it is for a runner with room, now or later.
    pub fn is_queued(self) -> bool {
        matches!(self, Self::Waiting | Self::Again)
    }

    /// Whether nothing more comes of it.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Stopped)
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Its process ended.
    Process(Ended),
    /// It could not be started, for this reason.
    NotStarted(String),
    /// The address took the call.
    Accepted,
    /// The address did not take the call, and never will, for this reason.
    Refused(String),
    /// The address could not take the call now, or the attempt ended before anything began, for this
    /// reason.
    Unavailable(String),
    /// Its runner died or was cut off.
    RunnerLost,
    /// Its runner was stopped.
    RunnerStopped,
    /// Its runner was lost or stopped so often in a row that it may be what ends runners.
    LostTooOften,
    /// As many runs of the issue had begun within an hour as may.
    TooMany,
}

impl Ending {
    /// Whether the attempt was cut short by its runner.
    pub fn is_loss(&self) -> bool {
        matches!(self, Self::RunnerLost | Self::RunnerStopped | Self::Process(Ended::LeaseOver))
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(Ended::Exited(code)) => write!(f, "exit {code}"),
            Self::Process(Ended::Signaled(signal)) => write!(f, "signal {signal}"),
            Self::Process(Ended::TimeLimit) => f.write_str("time limit"),
            Self::Process(Ended::MemoryLimit) => f.write_str("memory limit"),
            Self::Process(Ended::Stopped { killed: true }) => {
                f.write_str("killed after the grace period")
            }
            Self::Process(Ended::Stopped { killed: false }) => f.write_str("stopped"),
            Self::Process(Ended::LeaseOver) => f.write_str("lease over"),
            Self::Process(Ended::Lost) => f.write_str("supervisor lost"),
            Self::NotStarted(why) => write!(f, "not started: {why}"),
            Self::Accepted => f.write_str("accepted"),
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::Unavailable(why) => write!(f, "unavailable: {why}"),
            Self::RunnerLost => f.write_str("runner lost"),
            Self::RunnerStopped => f.write_str("runner stopped"),
            Self::LostTooOften => f.write_str("runner lost too often in a row"),
            Self::TooMany => f.write_str("too many runs within an hour"),
        }
    }
}

impl Run {
    /// Whether nothing more comes of it, whatever is looked at. Then its entry may be removed.
    pub fn is_settled(&self) -> bool {
        // One that is held keeps the next one from beginning.
        self.phase.is_over() && self.desired == Desired::Stop && !self.held
    }

    /// Its id: the same for all attempts, and of no other run.
    pub fn id(&self, key: &RunKey) -> String {
        format!("{key}.{}", self.generation)
    }
}

/// Key of a run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunKey {
    /// Gitea's id of the repository.
    pub repository_id: i64,
    /// Number of the issue.
    pub number: u64,
    /// Name of the rule.
    pub rule: String,
}

impl fmt::Display for RunKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.repository_id, self.number, self.rule)
    }
}

impl RunKey {
    /// Whether a change is of the run's issue.
    pub(crate) fn is_of(&self, change: &Change) -> bool {
        (change.repository.id, change.issue.number) == (self.repository_id, self.number)
    }

    /// Reads a key. It is a part of subjects, where a wildcard would stand for other runs, so that all
    /// but the one way of writing it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let mut tokens = text.splitn(3, '.');
        let (repository_id, number) = (tokens.next()?.parse().ok()?, tokens.next()?.parse().ok()?);
        let rule = tokens.next().filter(|rule| is_name(rule))?.to_owned();
        let key = Self { repository_id, number, rule };
        (key.to_string() == text).then_some(key)
    }
}

#[cfg(test)]
mod tests {
    use contract::{change::ChangeKind, event};

    use super::*;

    #[test]
    fn a_key_is_written_in_one_way_alone() {
        for text in ["1.7.fix", "-3.7.a-b_9", "9223372036854775807.18446744073709551615.x"] {
            let key = RunKey::parse(text);
            assert_eq!(key.map(|key| key.to_string()).as_deref(), Some(text));
        }
        let long = format!("1.7.{}", "a".repeat(41));
        for text in [
            "",
            "1.7",
            "1.7.",
            "1.7.*",
            "1.7.>",
            "*.7.fix",
            "1.7.a.b",
            "1.7.a b",
            "1.7.fix\r\n",
            "1.7.Fix",
            "1.7.\u{e9}",
            "01.7.fix",
            "+1.7.fix",
            "1.+7.fix",
            "1.-7.fix",
            " 1.7.fix",
            &long,
        ] {
            assert_eq!(RunKey::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_change_is_of_one_issue() {
        let change = Change::from_event(ChangeKind::Assigned, &event::example());
        let (repository_id, number) = (change.repository.id, change.issue.number);
        let key = RunKey { repository_id, number, rule: "fix".into() };
        assert!(key.is_of(&change));
        assert!(!RunKey { number: number + 1, ..key.clone() }.is_of(&change));
        assert!(!RunKey { repository_id: repository_id + 1, ..key }.is_of(&change));
    }
}
