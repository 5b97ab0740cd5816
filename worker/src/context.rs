//! State that all partitions of one worker share.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::jetstream::{kv, stream::Stream};
use contract::{names::consumer_name, partitions::Partitions};
use futures::future::join_all;
use service::{
    broker::{
        Broker, Session, consumers,
        findings::{Finding, Findings},
        streams::{Streams, StreamsError, StreamsSettings},
    },
    causes::Causes,
    log_limit::LogLimit,
};
use tokio::sync::Mutex;

use crate::{
    instruments::Instruments,
    partition::affinity::{Affinity, Identity},
    settings::WorkerSettings,
};

/// How long the result of a look-up on the broker is reused while partitions start over. A failure
/// is reused too.
const TRUST: Duration = Duration::from_secs(1);

/// The worker's connection, settings and instruments.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) broker: Broker,
    pub(crate) source: String,
    pub(crate) ack_wait: Duration,
    pub(crate) max_attempts: u64,
    /// Whether doubts are raised as questions to Gitea's API.
    pub(crate) raises_questions: bool,
    /// When the broker took no question.
    questions_refused: std::sync::Mutex<Option<Instant>>,
    /// How long the broker remembers message ids.
    pub(crate) dedup_window: Duration,
    pub(crate) instruments: Instruments,
    /// Limits the lines about failures of the broker.
    pub(crate) failures: LogLimit,
    streams: StreamsSettings,
    /// Result of the last look-up, with its session number and its time.
    found: Mutex<Option<(u64, Instant, LookUp)>>,
    /// When the bucket of issue states was made, in seconds since 1970.
    bucket_made_at: AtomicI64,
    consuming: AtomicUsize,
    /// What on the broker is not as needed.
    pub(crate) findings: Findings,
    identity: Identity,
    /// Whether the consumer of each partition serves requests by their priority.
    prioritized: Vec<AtomicBool>,
    /// The broker refused to make consumers so. It is not asked again.
    refused_priorities: AtomicBool,
}

/// All partitions that look up at the same time share one result.
type LookUp = Result<Found, Arc<StreamsError>>;

#[derive(Clone, Debug)]
struct Found {
    events: Stream,
    states: kv::Store,
}

impl Context {
    pub(crate) fn new(settings: &WorkerSettings, broker: Broker, instruments: Instruments) -> Self {
        let partitions = settings.common.streams.partitions;
        Self {
            broker,
            source: settings.common.gitea_url.clone(),
            ack_wait: settings.ack_wait,
            max_attempts: settings.max_attempts,
            raises_questions: settings.raises_questions,
            questions_refused: std::sync::Mutex::default(),
            dedup_window: settings.common.streams.dedup_window_secs,
            instruments,
            failures: LogLimit::new(),
            streams: settings.common.streams.clone(),
            found: Mutex::new(None),
            bucket_made_at: AtomicI64::new(0),
            consuming: AtomicUsize::new(0),
            findings: Findings::default(),
            identity: Identity::default(),
            prioritized: partitions.all().map(|_| AtomicBool::new(false)).collect(),
            refused_priorities: AtomicBool::new(false),
        }
    }

    /// Creates the streams, the bucket of states and the consumer of a partition if they are
    /// missing. Returns the bucket. All partitions start at once, so one look-up of the streams
    /// serves all of them.
    pub(crate) async fn prepare(
        &self,
        session: &Session,
        partition: u8,
    ) -> Result<kv::Store, Arc<StreamsError>> {
        let prepared = async {
            let found = self.found(session).await?;
            self.prepare_consumer(session, &found.events, partition).await?;
            Ok(found.states)
        };
        // All partitions are checked at once then, and what fails is told with their number.
        prepared.await.inspect_err(|_| session.suspect())
    }

    async fn prepare_consumer(
        &self,
        session: &Session,
        events: &Stream,
        partition: u8,
    ) -> Result<(), StreamsError> {
        let prioritize =
            session.knows_priorities() && !self.refused_priorities.load(Ordering::Relaxed);
        let (streams, ack_wait) = (&self.streams, self.ack_wait);
        let consumer =
            consumers::partition_consumer(events, streams, ack_wait, partition, prioritize).await?;
        if consumer.refused && !self.refused_priorities.swap(true, Ordering::Relaxed) {
            consumers::warn_without_priorities();
        }
        self.prioritized[usize::from(partition)].store(consumer.prioritized, Ordering::Relaxed);
        Ok(())
    }

    /// Looks at all that stands on the broker. What is missing is made again, and what is not as
    /// needed is put right or becomes a finding.
    pub(crate) async fn check(&self, session: &Session) {
        let started = Instant::now();
        let found = self.find(session).await.map_err(Arc::new);
        *self.found.lock().await = Some((session.number(), Instant::now(), found.clone()));
        let mut failed: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut streams = Vec::new();
        match found {
            Ok(found) => {
                let consumers = self.partitions().all().map(async |partition| {
                    let prepared = self.prepare_consumer(session, &found.events, partition).await;
                    prepared.err().map(|error| (partition, error))
                });
                for (partition, error) in join_all(consumers).await.into_iter().flatten() {
                    let reason = reason(&error);
                    failed.entry(reason).or_default().push(consumer_name(partition));
                }
            }
            Err(error) => {
                let needed = "streams and a bucket that can be used";
                let finding = Finding::unfit(Causes(&*error).to_string(), needed);
                streams.push(finding.with_denial(self.broker.denial_since(started)));
            }
        }
        // What failed because the connection is gone says nothing about the broker.
        if session.is_over() {
            return;
        }
        let consumers = failed.into_iter().map(|(reason, names)| {
            let (count, first) = (names.len(), names[..names.len().min(3)].join(", "));
            let and_more = if count > 3 { ", …" } else { "" };
            let found = format!("{count} of {} ({first}{and_more}): {reason}", self.partitions());
            let finding = Finding::unfit(found, "a consumer for each partition");
            finding.with_denial(self.broker.denial_since(started))
        });
        let consumers = consumers.collect();
        self.findings.set("streams", streams);
        self.findings.set("consumers", consumers);
    }

    /// Our claim to a partition that is prepared. None if its consumer knows no priorities.
    pub(crate) fn affinity(&self, partition: u8) -> Option<Affinity> {
        let prioritized = self.prioritized[usize::from(partition)].load(Ordering::Relaxed);
        prioritized.then(|| Affinity::new(&self.identity, partition))
    }

    /// A failure is shared too, because dozens of timeouts one after the other would take minutes.
    async fn found(&self, session: &Session) -> LookUp {
        let mut kept = self.found.lock().await;
        if let Some((number, since, found)) = kept.as_ref()
            && *number == session.number()
            && since.elapsed() < TRUST
        {
            return found.clone();
        }
        let found = self.find(session).await.map_err(Arc::new);
        *kept = Some((session.number(), Instant::now(), found.clone()));
        found
    }

    async fn find(&self, session: &Session) -> Result<Found, StreamsError> {
        let js = &session.jetstream;
        let streams = Streams { js, settings: &self.streams, findings: &self.findings };
        streams.changes().await?;
        streams.dead_letters().await?;
        if self.raises_questions {
            // Events are handled without it too. Their doubts wait for the repair then.
            let findings = Findings::default();
            let streams = Streams { findings: &findings, ..streams };
            let error = streams.questions().await.err().map(|error| Causes(&error).to_string());
            let found = error.into_iter().chain(findings.unfit());
            let found = found.map(|found| Finding::danger(found, "a queue of questions"));
            self.findings.set("questions", found.collect());
        }
        let (events, states) = (streams.events_to_consume().await?, streams.issue_state().await?);
        let made_at = states.stream.cached_info().created.unix_timestamp();
        self.bucket_made_at.store(made_at, Ordering::Relaxed);
        Ok(Found { events, states })
    }

    /// Notes that the broker took no question.
    pub(crate) fn questions_refused(&self) {
        *self.questions_refused.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Instant::now());
    }

    /// Whether the broker took no question within the last time.
    pub(crate) fn questions_refused_within(&self, time: Duration) -> bool {
        let at = *self.questions_refused.lock().unwrap_or_else(PoisonError::into_inner);
        at.is_some_and(|at| at.elapsed() < time)
    }

    pub(crate) fn partitions(&self) -> Partitions {
        self.streams.partitions
    }

    /// When the bucket of issue states was made, as far as it is known.
    pub(crate) fn bucket_made_at(&self) -> i64 {
        self.bucket_made_at.load(Ordering::Relaxed)
    }

    /// Counts a partition as being consumed until the guard is dropped.
    pub(crate) fn consuming(&self) -> impl Drop + '_ {
        self.consuming.fetch_add(1, Ordering::Relaxed);
        ConsumingGuard(&self.consuming)
    }

    /// Number of partitions that are being consumed.
    pub(crate) fn partitions_consumed(&self) -> usize {
        self.consuming.load(Ordering::Relaxed)
    }
}

/// Why a consumer is not as needed, in the same words for all partitions.
fn reason(error: &StreamsError) -> String {
    match error {
        StreamsError::GetConsumer(_, cause) => Causes(cause).to_string(),
        StreamsError::Consumer(_, cause) => Causes(cause).to_string(),
        StreamsError::ConsumerUnfit(_, differences, cause) => {
            format!(
                "{differences}; it cannot be changed ({}); delete it, and it is made again",
                Causes(cause)
            )
        }
        other => Causes(other).to_string(),
    }
}

struct ConsumingGuard<'a>(&'a AtomicUsize);

impl Drop for ConsumingGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
