//! State that all partitions of one worker share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::jetstream::kv;
use contract::names::PARTITIONS;
use service::{
    broker::{
        Broker, Session,
        streams::{self, StreamsError, StreamsSettings},
    },
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
    /// How long the broker remembers message ids.
    pub(crate) dedup_window: Duration,
    pub(crate) instruments: Instruments,
    /// Limits the lines about partitions that cannot be consumed.
    pub(crate) failures: LogLimit,
    streams: StreamsSettings,
    /// Result of the last look-up, with its session number and its time.
    found: Mutex<Option<(u64, Instant, LookUp)>>,
    consuming: AtomicUsize,
    identity: Identity,
    /// Whether the consumer of each partition serves requests by their priority.
    prioritized: [AtomicBool; PARTITIONS as usize],
    /// The broker refused to make consumers so. It is not asked again.
    refused_priorities: AtomicBool,
}

/// All partitions that look up at the same time share one result.
type LookUp = Result<Found, Arc<StreamsError>>;

#[derive(Clone, Debug)]
struct Found {
    events: async_nats::jetstream::stream::Stream,
    states: kv::Store,
}

impl Context {
    pub(crate) fn new(settings: &WorkerSettings, broker: Broker, instruments: Instruments) -> Self {
        Self {
            broker,
            source: settings.common.gitea_url.clone(),
            ack_wait: settings.ack_wait,
            max_attempts: settings.max_attempts,
            dedup_window: settings.common.streams.dedup_window_secs,
            instruments,
            failures: LogLimit::new(),
            streams: settings.common.streams.clone(),
            found: Mutex::new(None),
            consuming: AtomicUsize::new(0),
            identity: Identity::default(),
            prioritized: [const { AtomicBool::new(false) }; PARTITIONS as usize],
            refused_priorities: AtomicBool::new(false),
        }
    }

    /// Creates the streams, the bucket of states and the consumer of a partition if they are
    /// missing. Returns the bucket. 64 partitions start at once, so one look-up of the streams
    /// serves all of them.
    pub(crate) async fn prepare(
        &self,
        session: &Session,
        partition: u8,
    ) -> Result<kv::Store, Arc<StreamsError>> {
        let found = self.found(session).await?;
        let prioritize =
            session.knows_priorities() && !self.refused_priorities.load(Ordering::Relaxed);
        let (streams, ack_wait) = (&self.streams, self.ack_wait);
        let consumer =
            streams::partition_consumer(&found.events, streams, ack_wait, partition, prioritize)
                .await?;
        if consumer.refused && !self.refused_priorities.swap(true, Ordering::Relaxed) {
            streams::warn_without_priorities();
        }
        self.prioritized[usize::from(partition)].store(consumer.prioritized, Ordering::Relaxed);
        Ok(found.states)
    }

    /// Our claim to a partition that is prepared. None if its consumer knows no priorities.
    pub(crate) fn affinity(&self, partition: u8) -> Option<Affinity> {
        let prioritized = self.prioritized[usize::from(partition)].load(Ordering::Relaxed);
        prioritized.then(|| Affinity::new(&self.identity, partition))
    }

    /// A failure is shared too, because 64 timeouts one after the other would take minutes.
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
        streams::changes(js, &self.streams).await?;
        streams::dead_letters(js, &self.streams).await?;
        Ok(Found {
            events: streams::events(js, &self.streams).await?,
            states: streams::issue_state(js, &self.streams).await?,
        })
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

struct ConsumingGuard<'a>(&'a AtomicUsize);

impl Drop for ConsumingGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
