//! What the runner reads and writes on the broker: runs, issues' states, changes.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::{
    PublishError as CorePublishError, SubscribeError,
    jetstream::{
        context::PublishError,
        kv,
        message::StreamMessage,
        stream::{
            InfoError, LastRawMessageError, LastRawMessageErrorKind, RawMessageError,
            RawMessageErrorKind, Stream,
        },
    },
};
use contract::{
    change::Change,
    event::IssueEvent,
    issue_state::{self, KnownIssue},
    names::CHANGES_PREFIX,
    subject::escape,
    timestamp::Timestamp,
};
use serde::Deserialize;
use service::{
    backoff::Backoff,
    broker::{
        Session,
        batch::{self, BatchError},
        bucket, consumers,
        findings::{Finding, Findings},
        message,
        refusal::Refusal,
        streams::{Streams, StreamsError, StreamsSettings},
    },
    causes::Causes,
};
use thiserror::Error;

use crate::{
    look::Cause,
    run::{Extent, Run, RunKey},
};

/// Subject of the message that has runners look at an entry at once. Its payload is the key.
pub(crate) const NUDGE: &str = "coordinator.runs.nudge";

/// Why something on the broker cannot be read or written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// There is no connection.
    #[error("there is no connection to the broker")]
    NoConnection,
    /// Something cannot be looked up or created.
    #[error(transparent)]
    Streams(#[from] StreamsError),
    /// The broker fails.
    #[error("read a run")]
    Run(#[source] LastRawMessageError),
    /// The broker fails.
    #[error("look up the bucket of runs")]
    Extent(#[source] InfoError),
    /// The broker fails.
    #[error("read an issue's state")]
    Issue(#[source] LastRawMessageError),
    /// The broker fails.
    #[error("read a change")]
    Change(#[source] RawMessageError),
    /// It cannot be written as JSON.
    #[error("encode a run")]
    Encode(#[source] serde_json::Error),
    /// The position alone: the text of the error would show values.
    #[error("an entry cannot be read (line {}, column {})", .0.line(), .0.column())]
    Decode(serde_json::Error),
    /// The broker did not take it, or the entry has another revision.
    #[error("write a run")]
    Write(#[source] PublishError),
    /// The broker did not take it.
    #[error("tell other runners")]
    Nudge(#[source] CorePublishError),
    /// There is no subject for answers.
    #[error("listen to other runners")]
    Listen(#[source] SubscribeError),
}

impl StoreError {
    /// Whether somebody else has written the entry.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Write(error) if Refusal::of(error) == Refusal::NotLast)
    }
}

/// How long entries are read one by one after a request for many of them has failed: the first time,
/// and at most. It holds up everything for as long as the answer may take.
const ONE_BY_ONE: Backoff = Backoff::new(Duration::from_secs(60), Duration::from_secs(3600));
/// What the findings about such requests are about.
const BATCHES: &str = "requests for several runs";

/// An entry of the bucket of runs, as it is read on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: RunKey,
    /// None where it was deleted or cannot be read.
    pub(crate) run: Option<Run>,
    pub(crate) revision: u64,
    /// The broker removes it some day.
    pub(crate) expires: bool,
}

/// Entries that were read on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entries {
    pub(crate) found: Vec<Entry>,
    /// The last revision that was looked at. None at the end of the bucket.
    pub(crate) last: Option<u64>,
}

/// An issue as it is known, and the labels of its last decision where there is one.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Known {
    #[serde(flatten)]
    pub(crate) issue: KnownIssue,
    #[serde(default)]
    decision: Option<Decision>,
}

#[derive(Clone, Debug, Deserialize)]
struct Decision {
    event: IssueEvent,
}

impl Known {
    /// The event of the last decision.
    pub(crate) fn last_event(&self) -> Option<&IssueEvent> {
        self.decision.as_ref().map(|decision| &decision.event)
    }

    /// Its labels, as far as they are known.
    pub(crate) fn labels(&self) -> Option<&[String]> {
        self.last_event().map(|event| event.issue.labels.as_slice())
    }
}

/// Whether entries are read one by one, since a request for many of them has failed.
#[derive(Debug)]
struct OneByOne {
    until: Option<Instant>,
    next: Backoff,
}

impl Default for OneByOne {
    fn default() -> Self {
        Self { until: None, next: ONE_BY_ONE }
    }
}

/// What stands on the broker, on one connection.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) session: Session,
    pub(crate) changes: Stream,
    states: kv::Store,
    runs: kv::Store,
    /// How long the broker keeps the entry of a run that is settled.
    kept: Duration,
    /// Whether it can.
    has_ttls: Arc<AtomicBool>,
    findings: Arc<Findings>,
    one_by_one: Arc<Mutex<OneByOne>>,
}

/// How a store is opened.
#[derive(Clone, Debug)]
pub(crate) struct Opening<'a> {
    pub(crate) settings: &'a StreamsSettings,
    pub(crate) findings: &'a Arc<Findings>,
    /// How long the broker keeps the entry of a run that is settled.
    pub(crate) kept: Duration,
    /// Whether a bucket without TTLs is to be changed. That may take a while in vain.
    pub(crate) allows_ttls: bool,
}

impl Store {
    /// Looks everything up, and creates what is missing.
    pub(crate) async fn open(session: Session, opening: Opening<'_>) -> Result<Self, StoreError> {
        let Opening { settings, findings, kept, allows_ttls } = opening;
        let streams = Streams { js: &session.jetstream, settings, findings };
        let changes = streams.changes().await?;
        let states = streams.issue_state().await?;
        let runs =
            if allows_ttls { streams.runs_with_ttls().await? } else { streams.runs().await? };
        let has_ttls = Arc::new(AtomicBool::new(bucket::has_ttls(&runs)));
        let (findings, one_by_one) = (Arc::clone(findings), Arc::default());
        Ok(Self { session, changes, states, runs, kept, has_ttls, findings, one_by_one })
    }

    /// Looks up the consumer of changes, and creates it if it is missing. Apart from the rest, since what
    /// runs goes on without it.
    pub(crate) async fn consumer(&self, settings: &StreamsSettings) -> Result<(), StoreError> {
        consumers::reactor_consumer(&self.changes, settings).await?;
        Ok(())
    }

    /// Reads a run and its revision, which is 0 if there never was one.
    pub(crate) async fn run(&self, key: &RunKey) -> Result<(Option<Run>, u64), StoreError> {
        let found = bucket::read(&self.runs, &key.to_string()).await.map_err(StoreError::Run)?;
        let Some(found) = found else { return Ok((None, 0)) };
        if bucket::is_deletion(&found) {
            return Ok((None, found.sequence));
        }
        let run = serde_json::from_slice(&found.payload).map_err(StoreError::Decode)?;
        Ok((Some(run), found.sequence))
    }

    /// Replaces a run at `revision`. Returns the new revision. The broker removes the entry of one that
    /// is settled after a while.
    pub(crate) async fn write(
        &self,
        key: &RunKey,
        run: &Run,
        revision: u64,
    ) -> Result<u64, StoreError> {
        let payload = serde_json::to_vec(run).map_err(StoreError::Encode)?;
        let (session, runs, key) = (&self.session, &self.runs, key.to_string());
        if run.is_settled() && self.has_ttls() {
            let written =
                bucket::replace_for(session, runs, &key, payload.clone(), revision, self.kept);
            match written.await {
                // The bucket was made anew meanwhile.
                Err(error) if Refusal::of(&error) == Refusal::NoTtl => {
                    self.has_ttls.store(false, Ordering::Relaxed);
                }
                written => return written.map_err(StoreError::Write),
            }
        }
        let written = bucket::replace(session, runs, &key, payload, revision).await;
        written.map_err(StoreError::Write)
    }

    /// Whether the broker can remove entries after a while.
    pub(crate) fn has_ttls(&self) -> bool {
        self.has_ttls.load(Ordering::Relaxed)
    }

    /// The next entries whose revision is at least `first`, as many as one request brings. At the end
    /// there is none of those that were written before the call.
    pub(crate) async fn read_on(&self, first: u64) -> Result<Entries, StoreError> {
        if self.one_by_one().until.is_none_or(|until| Instant::now() >= until) {
            match batch::read(&self.session, &self.runs, first).await {
                Ok(found) => {
                    *self.one_by_one() = OneByOne::default();
                    self.findings.set(BATCHES, Vec::new());
                    if !found.is_empty() {
                        return Ok(self.entries(&found));
                    }
                }
                Err(error) => self.ask_one_by_one(&error),
            }
        }
        // Another node than the leader may not have what was written last.
        let found = bucket::next(&self.runs, first).await.map_err(StoreError::Run)?;
        Ok(self.entries(found.as_slice()))
    }

    fn entries(&self, found: &[StreamMessage]) -> Entries {
        let last = found.last().map(|last| last.sequence);
        let entry = |found: &StreamMessage| {
            let key = found.subject.strip_prefix(&self.runs.prefix).and_then(RunKey::parse)?;
            let run = serde_json::from_slice(&found.payload).ok();
            Some(Entry {
                key,
                run: run.filter(|_| !bucket::is_deletion(found)),
                revision: found.sequence,
                expires: bucket::expires(found),
            })
        };
        Entries { found: found.iter().filter_map(entry).collect(), last }
    }

    fn one_by_one(&self) -> MutexGuard<'_, OneByOne> {
        self.one_by_one.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a request for many entries has failed.
    fn ask_one_by_one(&self, error: &BatchError) {
        {
            let mut one_by_one = self.one_by_one();
            let pause = one_by_one.next.next_wait();
            one_by_one.until = Some(Instant::now() + pause);
        }
        if matches!(error, BatchError::Closed) {
            return;
        }
        let stream = &self.runs.stream_name;
        let needed = format!(
            "nats-server 2.11 or newer, and leave to ask $JS.API.DIRECT.GET.{stream}; \
             until then entries are read one by one"
        );
        let found = Causes(error).to_string();
        self.findings.set(BATCHES, vec![Finding::danger(found, needed)]);
    }

    /// Which bucket of runs it is, and how far it goes.
    pub(crate) async fn extent(&self) -> Result<Extent, StoreError> {
        let info = self.runs.stream.get_info().await.map_err(StoreError::Extent)?;
        let micros = i64::try_from(info.created.unix_timestamp_nanos() / 1_000).unwrap_or(i64::MAX);
        let created_at = Timestamp::from_unix_micros(micros);
        Ok(Extent { created_at, last: info.state.last_sequence })
    }

    /// What is known of an issue. None if nothing was ever decided about it.
    pub(crate) async fn issue(
        &self,
        repository_id: i64,
        number: u64,
    ) -> Result<Option<Known>, StoreError> {
        let key = issue_state::key(repository_id, number);
        let found = bucket::read(&self.states, &key).await.map_err(StoreError::Issue)?;
        match found {
            Some(found) if !bucket::is_deletion(&found) => {
                serde_json::from_slice(&found.payload).map(Some).map_err(StoreError::Decode)
            }
            _ => Ok(None),
        }
    }

    /// The first issue whose state has at least this revision, with its repository's id, its number and
    /// its revision. Its state is None where it cannot be read. None at the end.
    pub(crate) async fn next_issue(
        &self,
        mut revision: u64,
    ) -> Result<Option<((i64, u64), Option<Known>, u64)>, StoreError> {
        let prefix = self.states.prefix.as_str();
        loop {
            let found = bucket::next(&self.states, revision).await.map_err(StoreError::Issue)?;
            let Some(found) = found else { return Ok(None) };
            if let Some(key) = found.subject.strip_prefix(prefix).and_then(issue_state::parse_key) {
                let known = serde_json::from_slice(&found.payload).ok();
                let known = known.filter(|_| !bucket::is_deletion(&found));
                return Ok(Some((key, known, found.sequence)));
            }
            revision = found.sequence + 1;
        }
    }

    /// The last change that assigned somebody to an issue, under its name as it was last seen.
    pub(crate) async fn last_assignment(
        &self,
        issue: &KnownIssue,
    ) -> Result<Option<Cause>, StoreError> {
        let Some((owner, repository, number)) = issue.place() else { return Ok(None) };
        let [owner, repository] = [owner, repository].map(escape);
        let subject = format!("{CHANGES_PREFIX}.assigned.{owner}.{repository}.{number}");
        let found = match self.changes.get_last_raw_message_by_subject(&subject).await {
            Ok(found) => found,
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                return Ok(None);
            }
            Err(error) => return Err(StoreError::Change(error)),
        };
        let Ok(change) = serde_json::from_slice(&found.payload) else { return Ok(None) };
        let traceparent = message::headers(Some(&found.headers)).traceparent();
        Ok(Some(Cause {
            change: Arc::new(change),
            sequence: found.sequence,
            traceparent: traceparent.map(|context| context.to_string()),
            is_news: false,
        }))
    }

    /// The change with this sequence. None if the stream does not hold it any more.
    pub(crate) async fn change(&self, sequence: u64) -> Result<Option<Change>, StoreError> {
        if sequence == 0 {
            return Ok(None);
        }
        match self.changes.get_raw_message(sequence).await {
            Ok(found) => Ok(serde_json::from_slice(&found.payload).ok()),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(StoreError::Change(error)),
        }
    }

    /// Has all runners look at an entry at once.
    pub(crate) async fn nudge(&self, key: &RunKey) -> Result<(), StoreError> {
        let nudged = self.session.client.publish(NUDGE, key.to_string().into()).await;
        nudged.map_err(StoreError::Nudge)
    }
}
