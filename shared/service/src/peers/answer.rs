//! What a process answers.

use contract::{event::IssueEvent, timestamp::Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::telemetry::span_store::StoredSpan;

/// The answer of one process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The process that answers.
    pub instance: Instance,
    /// What it says.
    pub reply: Reply,
}

/// What was answered in time, and by whom nothing was.
#[derive(Clone, Debug, Default)]
pub struct Answered {
    /// The answers, one of each process.
    pub answers: Vec<Answer>,
    /// Processes that have answered within the last day, and not this time. Those that have never
    /// answered this process are not known.
    pub silent: Vec<Instance>,
}

/// A process of the deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Random, made at its start.
    pub id: String,
    /// Roles that it runs: `ingest`, `worker`, `reactor`.
    pub roles: Vec<String>,
    /// Name of its machine or container.
    pub host: String,
    /// Its process id there.
    pub pid: u32,
    /// Version of the program.
    pub version: String,
    /// When it started.
    pub started_at: Timestamp,
}

/// An answer, by its question.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply", content = "content")]
pub enum Reply {
    /// To [`Question::Status`](super::Question::Status).
    Status(Box<Status>),
    /// To [`Question::Spans`](super::Question::Spans), in no order. `truncated` says that not all fit into a message.
    Spans {
        /// The spans.
        spans: Vec<StoredSpan>,
        /// Whether there are more.
        truncated: bool,
    },
    /// To [`Question::Delivery`](super::Question::Delivery). None if the journal does not hold it.
    Delivery(Option<Box<Journaled>>),
    /// To [`Question::Redeliver`](super::Question::Redeliver) and [`Question::Redrive`](super::Question::Redrive): where it was published.
    Published {
        /// Subject of the message.
        subject: String,
        /// Its sequence in the stream of events.
        sequence: u64,
    },
    /// To [`Question::Runs`](super::Question::Runs).
    Runs(RunList),
    /// To [`Question::Run`](super::Question::Run). None if there is no such run.
    Run(Option<Box<RunDetail>>),
    /// To [`Question::StopRun`](super::Question::StopRun) and [`Question::RunAgain`](super::Question::RunAgain): it was written down.
    Ordered,
    /// The process cannot do that. The text is for operators, without secrets.
    Refused(String),
}

/// How a process is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// What `GET /health` answers.
    pub health: Value,
    /// What it did lately.
    pub series: Vec<Series>,
}

/// One measure of a process over the last hour.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Name of the measure: `accepted`, `published`, `handled`, …
    pub name: String,
    /// Seconds between two points.
    pub every_secs: u32,
    /// The points, the newest last. A counter is given as what came in each interval.
    pub points: Vec<f64>,
}

/// What the journal holds of a delivery.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Journaled {
    /// When it was received.
    pub received_at: Timestamp,
    /// Kind of the hook, as Gitea says it.
    pub hook: Option<String>,
    /// Whether the broker has confirmed it.
    pub published: bool,
    /// Why it was set aside: no broker takes it.
    pub set_aside: Option<String>,
    /// Its subject on the stream of events. None if its payload cannot be read any more.
    pub subject: Option<String>,
    /// Its event. None if its payload cannot be read any more.
    pub event: Option<Box<IssueEvent>>,
    /// Payload as Gitea sent it, where it was asked for. Cut to fit into a message.
    pub payload: Option<String>,
}

/// Runs, as a reactor knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunList {
    /// The runs: first what goes on, then what waits, then what is over.
    pub runs: Vec<RunSummary>,
    /// Whether there are more.
    pub truncated: bool,
    /// Up to which revision of their bucket it is known.
    pub revision: u64,
}

/// One run in short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSummary {
    /// Its key: `<repository id>.<number>.<rule>`.
    pub key: String,
    /// Which run of the issue and rule it is: larger than that of each former one.
    pub generation: u64,
    /// Name of the rule.
    pub rule: String,
    /// `owner/name#number`.
    pub issue: String,
    /// Login of who is assigned.
    pub login: Option<String>,
    /// How far it is: `waiting`, `starting`, `running`, `stopping`, `done`, `failed`, `stopped`,
    /// `again`.
    pub phase: String,
    /// Since when it is so far.
    pub since: Option<Timestamp>,
    /// Id of the runner that has it, as its line `runner started` says it. None if none has.
    pub host: Option<String>,
    /// How it ended, of the last attempt: `exit 1`, `time limit`.
    pub ended: Option<String>,
    /// Whether it has more to do, so that it can be stopped.
    pub can_stop: bool,
    /// Whether it is over, so that it can begin once more.
    pub can_run_again: bool,
}

/// One run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunDetail {
    /// In short.
    pub summary: RunSummary,
    /// Number of the attempt, from 1. 0 before the first.
    pub attempt: u32,
    /// When it was queued.
    pub queued_at: Option<Timestamp>,
    /// When the last attempt began.
    pub started_at: Option<Timestamp>,
    /// When the last attempt ended.
    pub ended_at: Option<Timestamp>,
    /// It is tried again at this time.
    pub not_before: Option<Timestamp>,
    /// Why it is, or was, to stop.
    pub stop_reason: Option<String>,
    /// Trace of the change that it follows from, 32 hexadecimal digits.
    pub trace_id: Option<String>,
    /// The delivery that it follows from.
    pub delivery_id: Option<String>,
    /// The end of its output. Cut at its beginning to fit into a message.
    pub output: String,
    /// Bytes of output in all, where that is known.
    pub written: Option<u64>,
    /// Whether the beginning of the output is not there.
    pub truncated: bool,
    /// The process that answers runs it, so that the output is what it is now.
    pub is_live: bool,
}
