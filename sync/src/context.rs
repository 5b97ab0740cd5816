//! What all jobs share: the broker, Gitea, and what stands on the broker.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::jetstream::stream::{InfoError, Stream};
use contract::{
    names::{ISSUE_STATE, Lane, SYNC},
    partitions::Partitions,
};
use gitea::{Client, ClientError};
use service::{
    broker::{
        Broker, Session, consumers,
        findings::Findings,
        streams::{Streams, StreamsError, StreamsSettings},
    },
    log_limit::LogLimit,
};
use thiserror::Error;
use tokio::sync::Mutex;

use crate::{
    entries::EntryError,
    instruments::Instruments,
    queue::IN_HAND,
    settings::AccessSettings,
    shown::{Shown, ShownError},
    states::States,
    trouble::Trouble,
};

/// How long a look at the stream of events holds. While the number of partitions is being changed,
/// nobody publishes for longer than this.
const LOOK: Duration = Duration::from_secs(30);

/// How long a look at what the jobs use holds.
const TRUST: Duration = Duration::from_secs(15);

/// Requests that one answer may take, one after the other.
const REQUESTS: usize = 4;
/// What an answer may take beside the time of its requests.
const LATE: Duration = Duration::from_secs(30);

/// What all jobs share.
#[derive(Debug)]
pub struct Context {
    pub(crate) broker: Broker,
    pub(crate) client: Client,
    /// How long the requests for one answer may take.
    longest: Duration,
    /// `GITEA_URL`: the source of every event.
    pub(crate) source: String,
    pub(crate) instruments: Arc<Instruments>,
    /// Limits the lines about what goes wrong.
    pub(crate) trouble: Trouble,
    /// Which repositories Gitea has shown to the token.
    pub(crate) shown: Shown,
    /// Limits lines that may be many.
    pub(crate) lines: LogLimit,
    streams: StreamsSettings,
    findings: Findings,
    /// When the stream of events was last found fit to be published to, on which session.
    looked: Mutex<Option<(u64, Instant)>>,
    /// What the jobs use, with the session's number and when it was looked up.
    stores: Mutex<Option<(u64, Instant, Stores)>>,
}

/// What the jobs use on the broker.
#[derive(Clone, Debug)]
pub struct Stores {
    pub(crate) states: States,
    pub(crate) questions: Stream,
}

impl Stores {
    /// How many questions wait.
    pub(crate) async fn questions_waiting(&self) -> Result<u64, StoresError> {
        let info = self.questions.get_info().await.map_err(StoresError::Questions)?;
        Ok(info.state.messages)
    }
}

/// Why nothing can be done on the broker now.
#[derive(Debug, Error)]
pub enum StoresError {
    /// There is no connection.
    #[error("there is no connection to the broker")]
    NoConnection,
    /// The stream of questions.
    #[error("look up how many questions wait")]
    Questions(#[source] InfoError),
    /// Something cannot be looked up or created.
    #[error(transparent)]
    Streams(#[from] StreamsError),
}

/// How long the requests for one answer may take while each waits for its place among all that ask: the
/// answers of both lanes, and the two sweeps.
fn longest(timeout: Duration, at_once: usize) -> Duration {
    let asking = Lane::ALL.len() * IN_HAND + 2;
    let rounds = REQUESTS * asking.div_ceil(at_once.max(1));
    timeout * u32::try_from(rounds).unwrap_or(u32::MAX) + LATE
}

impl Context {
    /// A context on `broker`, with a client of its own.
    ///
    /// # Errors
    /// If the address or the token cannot be used.
    pub fn new(
        broker: Broker,
        access: &AccessSettings,
        streams: &StreamsSettings,
        instruments: Arc<Instruments>,
    ) -> Result<Self, ClientError> {
        let client = access.client(Arc::clone(&instruments) as Arc<_>)?;
        Ok(Self {
            broker,
            client,
            longest: longest(access.timeout, access.at_once),
            source: access.url.clone(),
            instruments,
            trouble: Trouble::default(),
            shown: Shown::new(&access.token_id),
            lines: LogLimit::new(),
            streams: streams.clone(),
            findings: Findings::default(),
            looked: Mutex::new(None),
            stores: Mutex::new(None),
        })
    }

    /// Whether what was asked then is too old to be told. A worker that was suspended has lost the claim,
    /// and another one has asked since.
    pub(crate) fn is_late(&self, asked_at: Instant) -> bool {
        asked_at.elapsed() >= self.longest
    }

    /// Names the token, and tells nothing of it.
    pub(crate) fn token_id(&self) -> &str {
        self.shown.token_id()
    }

    /// What the jobs use. It is looked up, and created where it is missing, now and then.
    ///
    /// # Errors
    /// If there is no connection, or if something cannot be looked up or created.
    pub async fn stores(&self) -> Result<Stores, StoresError> {
        let session = self.broker.session().ok_or(StoresError::NoConnection)?;
        let mut kept = self.stores.lock().await;
        if let Some((number, at, stores)) = kept.as_ref()
            && *number == session.number()
            && at.elapsed() < TRUST
        {
            return Ok(stores.clone());
        }
        *kept = None;
        let stores = self.look_up(session.clone()).await?;
        *kept = Some((session.number(), Instant::now(), stores.clone()));
        Ok(stores)
    }

    async fn look_up(&self, session: Session) -> Result<Stores, StoresError> {
        let streams =
            Streams { js: &session.jetstream, settings: &self.streams, findings: &self.findings };
        let states = streams.issue_state().await?;
        let sync = streams.sync().await?;
        let questions = streams.questions().await?;
        for lane in Lane::ALL {
            consumers::questions_consumer(&questions, &self.streams, lane).await?;
        }
        Ok(Stores { states: States::new(session, states, sync), questions })
    }

    /// The bucket of issue states as it stands, for who shall create nothing.
    ///
    /// # Errors
    /// If there is no connection, or if something cannot be looked up.
    pub async fn existing_states(&self) -> Result<States, StoresError> {
        let session = self.broker.session().ok_or(StoresError::NoConnection)?;
        let store = session.jetstream.get_key_value(ISSUE_STATE).await;
        let store = store.map_err(|error| StreamsError::Bucket(ISSUE_STATE, error))?;
        let sync = session.jetstream.get_key_value(SYNC).await;
        let sync = sync.map_err(|error| StreamsError::Bucket(SYNC, error))?;
        Ok(States::new(session, store, sync))
    }

    /// The number of partitions, if events may be published now.
    ///
    /// # Errors
    /// If the stream of events cannot be looked up, or if its number of partitions is being changed.
    pub(crate) async fn partitions(&self, session: &Session) -> Result<Partitions, StreamsError> {
        let mut looked = self.looked.lock().await;
        let is_fresh =
            |(number, at): &(u64, Instant)| *number == session.number() && at.elapsed() < LOOK;
        if !looked.as_ref().is_some_and(is_fresh) {
            *looked = None;
            let streams = Streams {
                js: &session.jetstream,
                settings: &self.streams,
                findings: &self.findings,
            };
            streams.events_to_publish().await?;
            *looked = Some((session.number(), Instant::now()));
        }
        Ok(self.streams.partitions)
    }

    /// Notes that Gitea has shown a repository to the token.
    pub(crate) async fn note_shown(
        &self,
        states: &States,
        repository_id: i64,
    ) -> Result<(), EntryError> {
        self.shown.note(states, repository_id).await
    }

    /// Whether Gitea has shown a repository to the token.
    pub(crate) async fn was_shown(
        &self,
        states: &States,
        repository_id: i64,
    ) -> Result<bool, ShownError> {
        self.shown.was_shown(&self.client, states, repository_id).await
    }

    /// What on the broker is not as needed.
    pub(crate) fn unfit(&self) -> Vec<String> {
        self.findings.unfit()
    }

    /// Forgets that the stream of events was fit.
    pub(crate) async fn look_again(&self) {
        *self.looked.lock().await = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_may_take_as_long_as_all_who_ask_at_once() {
        for (at_once, timeout, expected) in [(100, 30, 150), (4, 30, 630), (1, 1, 102)] {
            let timeout = Duration::from_secs(timeout);
            assert_eq!(longest(timeout, at_once), Duration::from_secs(expected), "{at_once}");
        }
    }
}
