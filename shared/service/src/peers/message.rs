//! Questions and answers as messages: subjects, and answers that fit.

use serde_json::Value;

use super::{Answer, Instance, Question, Reply, Series};
use crate::telemetry::span_store::StoredSpan;

/// Bytes of an answer that stay free, for what the server adds.
const HEADROOM: usize = 1024;
/// Texts of an event and of a payload are not cut below this.
const LEAST_TEXT: usize = 64;

/// Bytes of a name in an answer that is read.
const MAX_NAME: usize = 256;
/// Roles of a process.
const MAX_ROLES: usize = 8;
/// Values in the health of a process.
const MAX_VALUES: usize = 4096;
/// Measures of a process, and points of each.
const MAX_SERIES: usize = 64;
const MAX_POINTS: usize = 1024;
/// Spans of a process in a trace, and what each may have.
const MAX_SPANS: usize = 1024;
const MAX_ATTRIBUTES: usize = 64;
/// Runs in a list.
const MAX_RUNS: usize = 1024;

/// The questions that whoever runs the role can be asked.
pub(super) fn questions(role: &str) -> &'static [&'static str] {
    match role {
        "ingest" => &["status", "spans", "delivery", REDELIVER, REDRIVE],
        "reactor" => &["status", "spans", "runs", "run", STOP_RUN, RUN_AGAIN],
        _ => &["status", "spans"],
    }
}

const REDELIVER: &str = "redeliver";
const REDRIVE: &str = "redrive";
const STOP_RUN: &str = "stop_run";
const RUN_AGAIN: &str = "run_again";

/// Whether one process alone does what is asked, whoever gets it.
pub(super) fn is_for_one(question: &str) -> bool {
    matches!(question, REDRIVE | STOP_RUN | RUN_AGAIN)
}

/// Where whoever runs `role` is asked `question`.
pub(super) fn subject(role: &str, question: &str) -> String {
    format!("coordinator.ask.{role}.{question}")
}

/// Whether the question of this name asks for something to be done, by one process.
pub(super) fn is_deed(name: &str) -> bool {
    [REDELIVER, REDRIVE, STOP_RUN, RUN_AGAIN].contains(&name)
}

impl Question {
    /// Its name in subjects.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Spans { .. } => "spans",
            Self::Delivery { .. } => "delivery",
            Self::Redeliver { .. } => REDELIVER,
            Self::Redrive { .. } => REDRIVE,
            Self::Runs => "runs",
            Self::Run { .. } => "run",
            Self::StopRun { .. } => STOP_RUN,
            Self::RunAgain { .. } => RUN_AGAIN,
        }
    }

    /// Whether it asks for something to be done, by one process.
    pub(super) fn is_deed(&self) -> bool {
        is_deed(self.name())
    }

    /// Whether one process alone does it, whoever gets it.
    pub(super) fn is_for_one(&self) -> bool {
        is_for_one(self.name())
    }

    fn publishes(&self) -> bool {
        matches!(self, Self::Redeliver { .. } | Self::Redrive { .. })
    }

    fn orders(&self) -> bool {
        matches!(self, Self::StopRun { .. } | Self::RunAgain { .. })
    }

    /// Whether this is a reply to it.
    pub(super) fn is_answered_by(&self, reply: &Reply) -> bool {
        match reply {
            Reply::Status(_) => matches!(self, Self::Status),
            Reply::Spans { .. } => matches!(self, Self::Spans { .. }),
            Reply::Delivery(_) => matches!(self, Self::Delivery { .. }),
            Reply::Published { .. } => self.publishes(),
            Reply::Runs(_) => matches!(self, Self::Runs),
            Reply::Run(_) => matches!(self, Self::Run { .. }),
            Reply::Ordered => self.orders(),
            Reply::Refused(_) => true,
        }
    }
}

/// Reads an answer. None if it is none, or larger than one of ours: small JSON can take much memory,
/// and whoever sends it may not be what it says.
pub(super) fn read(json: &[u8]) -> Option<Answer> {
    let answer: Answer = serde_json::from_slice(json).ok()?;
    (answer.instance.is_small() && answer.reply.is_small()).then_some(answer)
}

impl Instance {
    fn is_small(&self) -> bool {
        let mut names = [&self.id, &self.host, &self.version].into_iter().chain(&self.roles);
        self.roles.len() <= MAX_ROLES && names.all(|name| name.len() <= MAX_NAME)
    }
}

impl Reply {
    /// Whether what was asked for is done.
    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Published { .. } | Self::Ordered)
    }

    fn is_small(&self) -> bool {
        match self {
            Self::Status(status) => {
                let is_small = |series: &Series| {
                    series.name.len() <= MAX_NAME && series.points.len() <= MAX_POINTS
                };
                status.series.len() <= MAX_SERIES
                    && status.series.iter().all(is_small)
                    && values(&status.health) <= MAX_VALUES
            }
            Self::Spans { spans, .. } => {
                let is_small = |span: &StoredSpan| {
                    span.attributes.len() <= MAX_ATTRIBUTES && span.links.len() <= MAX_ATTRIBUTES
                };
                spans.len() <= MAX_SPANS && spans.iter().all(is_small)
            }
            Self::Runs(list) => list.runs.len() <= MAX_RUNS,
            Self::Delivery(_)
            | Self::Published { .. }
            | Self::Run(_)
            | Self::Ordered
            | Self::Refused(_) => true,
        }
    }
}

/// How many values a value consists of.
fn values(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(values).sum::<usize>(),
        Value::Object(fields) => fields.values().map(values).sum(),
        _ => 0,
    }
}

/// The answer in JSON, with no more bytes than the server takes. What does not fit is left out.
pub(super) fn encode(mut answer: Answer, max_payload: usize) -> serde_json::Result<Vec<u8>> {
    let limit = max_payload.saturating_sub(HEADROOM);
    let mut json = serde_json::to_vec(&answer)?;
    while json.len() > limit {
        if !shorten(&mut answer.reply, json.len(), limit) {
            answer.reply = Reply::Refused("the answer does not fit into a message".into());
            return serde_json::to_vec(&answer);
        }
        json = serde_json::to_vec(&answer)?;
    }
    Ok(json)
}

/// Takes something out of a reply of `len` bytes. Returns false if there is nothing left.
fn shorten(reply: &mut Reply, len: usize, limit: usize) -> bool {
    match reply {
        Reply::Spans { spans, truncated } if !spans.is_empty() => {
            *truncated = true;
            let keep = spans.len() * limit / len;
            spans.truncate(keep.min(spans.len() - 1));
            true
        }
        Reply::Delivery(Some(journaled)) => {
            let excess = len - limit;
            if let Some(payload) = journaled.payload.as_mut().filter(|text| text.len() > LEAST_TEXT)
            {
                // JSON escapes lengthen a text, so that cutting what is too much may cut more.
                cut(payload, payload.len().saturating_sub(excess).max(payload.len() / 2));
                return true;
            }
            let event = journaled.event.as_mut();
            event.is_some_and(|event| {
                let before = event.issue.body.len();
                event.cut_to(limit / 2) && event.issue.body.len() < before
            }) || journaled.event.take().is_some()
        }
        Reply::Runs(list) if !list.runs.is_empty() => {
            list.truncated = true;
            let keep = list.runs.len() * limit / len;
            list.runs.truncate(keep.min(list.runs.len() - 1));
            true
        }
        Reply::Run(Some(run)) if !run.output.is_empty() => {
            run.truncated = true;
            let excess = (len - limit).min(run.output.len() / 2 + 1);
            let start = (excess..).find(|at| run.output.is_char_boundary(*at));
            run.output.drain(..start.unwrap_or(0));
            true
        }
        Reply::Status(status) if !status.series.is_empty() => {
            status.series.clear();
            true
        }
        Reply::Status(status) if !status.health.is_null() => {
            status.health = Value::Null;
            true
        }
        _ => false,
    }
}

/// Cuts a text to at most `len` bytes.
fn cut(text: &mut String, len: usize) {
    let end = (0..=len.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use contract::{event, timestamp::Timestamp};

    use super::*;
    use crate::peers::{Journaled, RunDetail, RunList, RunSummary, Status};

    fn span(n: u64) -> StoredSpan {
        StoredSpan {
            trace_id: "0".repeat(32),
            span_id: format!("{n:016x}"),
            parent_id: None,
            name: "publish".into(),
            kind: "producer".into(),
            started_at: n,
            ended_at: n,
            error: None,
            service: "ingest".into(),
            attributes: vec![("a".into(), "x".repeat(100))],
            links: Vec::new(),
        }
    }

    fn encoded(reply: Reply, max_payload: usize) -> Reply {
        let instance = Instance::this(vec!["ingest".into()]);
        let json = encode(Answer { instance, reply }, max_payload).expect("JSON");
        assert!(json.len() <= max_payload - HEADROOM, "{}", json.len());
        read(&json).expect("an answer").reply
    }

    #[test]
    fn what_fits_is_whole() {
        let spans: Vec<_> = (0..3).map(span).collect();
        let reply = encoded(Reply::Spans { spans: spans.clone(), truncated: false }, 1 << 20);
        assert!(matches!(reply, Reply::Spans { spans: s, truncated: false } if s == spans));
    }

    #[test]
    fn spans_beyond_the_limit_are_left_out_and_it_says_so() {
        let spans = (0..1000).map(span).collect();
        match encoded(Reply::Spans { spans, truncated: false }, 64 * 1024) {
            Reply::Spans { spans, truncated: true } => assert!(spans.len() > 100),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_payload_is_cut_before_an_event_is() {
        let mut event = event::example();
        event.issue.body = "b".repeat(20_000);
        let journaled = |payload: &str| Journaled {
            received_at: Timestamp::now(),
            hook: None,
            published: true,
            set_aside: None,
            subject: None,
            event: Some(Box::new(event.clone())),
            payload: Some(payload.into()),
        };
        for payload in ["x".repeat(100_000), "漢\n\"".repeat(20_000)] {
            let reply = Reply::Delivery(Some(Box::new(journaled(&payload))));
            let Reply::Delivery(Some(journaled)) = encoded(reply, 64 * 1024) else { panic!() };
            let cut = journaled.payload.expect("a payload");
            assert!(payload.starts_with(&cut) && cut.len() > 5_000, "{}", cut.len());
            assert_eq!(journaled.event.expect("an event").issue.body.len(), 20_000);
        }
        let reply = Reply::Delivery(Some(Box::new(journaled("x"))));
        let Reply::Delivery(Some(journaled)) = encoded(reply, 16 * 1024) else { panic!() };
        assert!(journaled.event.expect("an event").issue.body.len() < 20_000);
    }

    #[test]
    fn of_runs_the_last_ones_are_left_out_and_of_an_output_the_beginning() {
        let summary = |n: u64| RunSummary { key: format!("1.{n}.rule"), ..RunSummary::default() };
        let runs = (0..1_000).map(summary).collect();
        let list = RunList { runs, truncated: false, revision: 7 };
        let Reply::Runs(list) = encoded(Reply::Runs(list), 32 * 1024) else { panic!() };
        assert!(list.truncated && list.runs.len() > 50 && list.runs[0].key == "1.0.rule");
        for output in ["x".repeat(100_000), "漢\n\"".repeat(20_000)] {
            let run = RunDetail { output: output.clone(), ..RunDetail::default() };
            let reply = encoded(Reply::Run(Some(Box::new(run))), 32 * 1024);
            let Reply::Run(Some(run)) = reply else { panic!() };
            assert!(run.truncated && output.ends_with(&run.output) && run.output.len() > 5_000);
        }
    }

    #[test]
    fn a_status_fits_without_its_series() {
        let series = Series { name: "n".into(), every_secs: 10, points: vec![0.5; 1_000] };
        let status = Status { health: "ok".into(), series: vec![series] };
        let reply = encoded(Reply::Status(Box::new(status)), 4096);
        assert!(matches!(reply, Reply::Status(s) if s.series.is_empty() && s.health == "ok"));
        let health = Value::String("x".repeat(10_000));
        let status = Status { health, series: Vec::new() };
        let reply = encoded(Reply::Status(Box::new(status)), 4096);
        assert!(matches!(reply, Reply::Status(s) if s.health.is_null()));
    }

    #[test]
    fn an_answer_that_takes_more_memory_than_ours_is_none() {
        let status = |health: Value, points: usize| {
            let series = Series { name: "n".into(), every_secs: 10, points: vec![1.0; points] };
            Reply::Status(Box::new(Status { health, series: vec![series] }))
        };
        let nested = Value::Array(vec![Value::Array(vec![1.into(); 100]); 100]);
        let mut crowded = span(1);
        crowded.attributes = vec![(String::new(), String::new()); 10_000];
        let spans = |spans| Reply::Spans { spans, truncated: false };
        for (reply, is_read) in [
            (status(Value::Null, 360), true),
            (status(Value::Null, 100_000), false),
            (status(Value::Array(vec![1.into(); 100_000]), 1), false),
            (status(nested, 1), false),
            (spans(vec![span(1); 512]), true),
            (spans(vec![span(1); 10_000]), false),
            (spans(vec![crowded]), false),
        ] {
            let instance = Instance::this(vec!["ingest".into()]);
            let json = serde_json::to_vec(&Answer { instance, reply }).expect("JSON");
            assert_eq!(read(&json).is_some(), is_read, "{}", json.len());
        }
        let refused = || Reply::Refused("busy".into());
        let instance = || Instance::this(vec!["ingest".into()]);
        for instance in [
            Instance { id: "x".repeat(100_000), ..instance() },
            Instance { host: "x".repeat(100_000), ..instance() },
            Instance { roles: vec!["ingest".into(); 10_000], ..instance() },
        ] {
            let json = serde_json::to_vec(&Answer { instance, reply: refused() }).expect("JSON");
            assert!(read(&json).is_none(), "what is remembered of a process is small");
        }
    }
}
