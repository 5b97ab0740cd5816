//! Streams and bucket on the broker: their limits and their creation.
//! No other module defines these. Their names are in `contract::names`.

use std::{fmt, time::Duration};

use async_nats::jetstream::{
    self,
    context::{CreateStreamErrorKind, GetStreamErrorKind},
    kv,
    stream::{self, DiscardPolicy, RetentionPolicy, StorageType},
};
use thiserror::Error;
use tracing::{debug, info, warn};

use contract::{
    names::{
        CHANGES, CHANGES_PREFIX, DEAD_LETTERS, DEAD_PREFIX, EVENTS, EVENTS_PREFIX, ISSUE_STATE,
        QUESTIONS, QUESTIONS_PREFIX, RUNS, SYNC,
    },
    partitions::Partitions,
    timestamp::Timestamp,
};

use super::{
    findings::{Finding, Findings},
    repartition::Stored,
};
use crate::{
    causes::Causes,
    settings::{Problems, number, secs},
};

/// Default limit of a stream, in bytes. An event and a change take 1.7 kB each, so this is one a
/// second for the default age of 14 days.
const DEFAULT_MAX_BYTES: i64 = 2 << 30;
/// Least limit that a stream gets by default where the broker has little room.
const LEAST_MAX_BYTES: i64 = 16 << 20;
/// The stream of events takes one of so many shares of the free room at most by default. There are
/// two other streams, the questions and the buckets. The broker reserves limits, and refuses all that
/// is new once its room is reserved, a bucket without a limit too.
const SHARES: i64 = 5;
/// Key, in the metadata of the stream of events, of the limit that it gets once the room of all is
/// reserved. A process that ends in between leaves it to the next one.
const LIMIT: &str = "coordinator-max-bytes";
/// Limit of the stream of questions, in bytes. A question takes 0.3 kB, and the oldest goes first.
const QUESTIONS_MAX_BYTES: i64 = 64 << 20;
/// How long the broker may take to change a bucket before all goes on with it as it is.
const CHANGE_PATIENCE: Duration = Duration::from_secs(2);
/// How long a question waits for Gitea at most. A sweep finds what it was about later on.
const QUESTIONS_MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

crate::settings! {
    /// Limits of what is created on the broker.
    pub struct StreamsArgs => StreamsSettings {
        stream_replicas: usize = "STREAM_REPLICAS" or "1" = 1, number(1, 5),
            "Copies that the broker keeps of streams and state: 1, 3 or 5";
        stream_max_age_secs: Duration = "STREAM_MAX_AGE_SECS" or "1209600, 14 days" = Duration::from_secs(1_209_600), secs(60, u32::MAX.into()),
            "How long the broker keeps events, changes and dead letters";
        dedup_window_secs: Duration = "DEDUP_WINDOW_SECS" or "90000, 25 hours" = Duration::from_secs(90_000), secs(10, u32::MAX.into()),
            "How long the broker remembers message ids; longer than the journal's retention";
        stream_max_bytes: Option<i64> = "STREAM_MAX_BYTES", number(0, i64::MAX),
            "Limit of each stream when it is created, and of the bucket where the account requires one; 0 for none [default: 2147483648, less where the broker has less room]";
        partitions: Partitions = "PARTITIONS" or "64" = Partitions::DEFAULT, number(Partitions::MIN, Partitions::MAX),
            "Shares of all issues, the same for all roles; create-streams changes it";
    }
}

impl StreamsArgs {
    /// Checks the settings and notes in `problems` what is wrong.
    pub fn settings(&self, problems: &mut Problems) -> StreamsSettings {
        let settings = self.check(problems);
        if settings.dedup_window_secs > settings.stream_max_age_secs {
            problems.add("DEDUP_WINDOW_SECS is larger than STREAM_MAX_AGE_SECS");
        }
        if settings.stream_replicas.is_multiple_of(2) {
            problems.add("STREAM_REPLICAS is not 1, 3 or 5");
        }
        settings
    }
}

/// A stream of the product, or a bucket, which is a stream too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// The stream of events.
    Events,
    /// The stream of changes.
    Changes,
    /// The stream of dead letters.
    DeadLetters,
    /// The bucket of issue states.
    IssueState,
    /// The stream of questions.
    Questions,
    /// The bucket of the jobs that ask Gitea.
    Sync,
    /// The bucket of runs.
    Runs,
}

impl Object {
    /// All that stands on the broker.
    pub const ALL: [Self; 7] = [
        Self::Events,
        Self::Changes,
        Self::DeadLetters,
        Self::IssueState,
        Self::Questions,
        Self::Sync,
        Self::Runs,
    ];

    /// Name of the stream, or of the bucket.
    pub fn name(self) -> &'static str {
        match self {
            Self::Events => EVENTS,
            Self::Changes => CHANGES,
            Self::DeadLetters => DEAD_LETTERS,
            Self::IssueState => ISSUE_STATE,
            Self::Questions => QUESTIONS,
            Self::Sync => SYNC,
            Self::Runs => RUNS,
        }
    }

    /// Name of the stream, also where it is a bucket's.
    pub fn stream(self) -> String {
        self.bucket().map_or_else(|| self.name().into(), |bucket| format!("KV_{}", bucket.name))
    }

    fn bucket(self) -> Option<&'static Bucket> {
        match self {
            Self::IssueState => Some(&ISSUE_STATES),
            Self::Sync => Some(&SYNC_BUCKET),
            Self::Runs => Some(&RUNS_BUCKET),
            _ => None,
        }
    }

    /// The configuration with which a stream is created. Of a bucket it is what is compared.
    fn wanted(self, settings: &StreamsSettings) -> stream::Config {
        let stream = |prefix, discard| stream_config(settings, self.name(), prefix, discard);
        match self {
            Self::Events => {
                let mut wanted = stream(EVENTS_PREFIX, DiscardPolicy::New);
                Stored::new(settings.partitions).write(&mut wanted);
                wanted
            }
            Self::Changes => stream(CHANGES_PREFIX, DiscardPolicy::Old),
            Self::DeadLetters => stream(DEAD_PREFIX, DiscardPolicy::New),
            Self::Questions => questions_config(settings),
            Self::IssueState => ISSUE_STATES.wanted(settings),
            Self::Sync => SYNC_BUCKET.wanted(settings),
            Self::Runs => RUNS_BUCKET.wanted(settings),
        }
    }

    /// What makes the stream that is there unfit, or endangers a promise.
    pub fn compared(self, settings: &StreamsSettings, found: &stream::Config) -> Vec<Finding> {
        let wanted = self.wanted(settings);
        let subject = match self {
            Self::Events => format!("{EVENTS_PREFIX}.*.*.*.*.*"),
            Self::Changes => format!("{CHANGES_PREFIX}.*.*.*.*"),
            Self::DeadLetters => format!("{DEAD_PREFIX}.*.*.*.*.*.*"),
            Self::Questions => return compared_questions(&wanted, found),
            Self::IssueState => ISSUE_STATES.subject(),
            Self::Sync => SYNC_BUCKET.subject(),
            Self::Runs => RUNS_BUCKET.subject(),
        };
        compared(&wanted, found, &subject)
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.bucket().is_some() { "bucket" } else { "stream" };
        write!(f, "{kind} {}", self.name())
    }
}

/// Which operation on the broker failed.
#[derive(Debug, Error)]
pub enum StreamsError {
    /// Looking a stream up.
    #[error("look up stream {0}")]
    Get(&'static str, #[source] jetstream::context::GetStreamError),
    /// Creating a stream.
    #[error("create stream {0}")]
    Create(&'static str, #[source] jetstream::context::CreateStreamError),
    /// Creating a stream or the bucket, in an account that requires a limit.
    #[error("create {0}: the account requires a limit of bytes; set STREAM_MAX_BYTES")]
    NoLimit(&'static str),
    /// Creating a stream or the bucket with a limit that the broker has no room for.
    #[error("create {0}: the broker cannot reserve {1} bytes; set a smaller STREAM_MAX_BYTES")]
    NoRoom(&'static str, i64),
    /// Creating what needs no limit, on a broker whose whole room is reserved.
    #[error(
        "create {0}: the broker has reserved all its room; give it more, or lower the limit of a stream"
    )]
    Full(&'static str),
    /// Setting a stream's limit.
    #[error("set the limit of stream {0}")]
    Limit(&'static str, #[source] jetstream::context::UpdateStreamError),
    /// Opening the bucket.
    #[error("open bucket {0}")]
    Bucket(&'static str, #[source] jetstream::context::KeyValueError),
    /// Creating the bucket.
    #[error("create bucket {0}")]
    CreateBucket(&'static str, #[source] jetstream::context::CreateStreamError),
    /// Looking a consumer up.
    #[error("look up consumer {0}")]
    GetConsumer(String, #[source] jetstream::context::ConsumerInfoError),
    /// Creating a consumer.
    #[error("create consumer {0}")]
    Consumer(String, #[source] jetstream::stream::ConsumerError),
    /// Putting right a consumer that is not as needed.
    #[error(
        "consumer {0} is not as needed ({1}), and cannot be changed; delete it, and it is made again"
    )]
    ConsumerUnfit(String, String, #[source] jetstream::stream::ConsumerError),
    /// The stream of events holds another number of partitions.
    #[error("the stream of events has {0}, and PARTITIONS is {1}; {HOW_TO_SWITCH}")]
    Partitions(Stored, Partitions),
    /// The number of partitions is being changed.
    #[error("the stream of events has {0}: nothing is published until `create-streams` is through")]
    Switching(Stored),
    /// Something that stands there and that the product cannot work with.
    #[error("{0}")]
    Unfit(String),
}

const HOW_TO_SWITCH: &str = "start all roles with the number that is there, then run \
                             `coordinator create-streams` with the new PARTITIONS while they run";

/// What is the same for all streams of the product.
#[derive(Clone, Copy, Debug)]
pub struct Streams<'a> {
    /// JetStream on the connection.
    pub js: &'a jetstream::Context,
    /// Limits of what is created.
    pub settings: &'a StreamsSettings,
    /// Gets what is not as needed.
    pub findings: &'a Findings,
}

impl Streams<'_> {
    /// The stream of events, created if it is not there.
    ///
    /// `discard: new`: an event that no worker has handled is never dropped for a newer
    /// one. A full stream refuses the event. Then the relay waits, and the journal keeps
    /// the delivery.
    ///
    /// # Errors
    /// If it cannot be looked up or created.
    pub async fn events(self) -> Result<stream::Stream, StreamsError> {
        let events = self.made_events().await?;
        self.compare(Object::Events, &events.cached_info().config);
        Ok(events)
    }

    async fn made_events(self) -> Result<stream::Stream, StreamsError> {
        let events = match self.js.get_stream(EVENTS).await {
            Ok(events) => events,
            Err(error) if is_missing(&error) => {
                let wanted = Object::Events.wanted(self.settings);
                if self.settings.stream_max_bytes.is_some() {
                    return self.create_as_set(EVENTS, &wanted).await;
                }
                self.reserve(&wanted).await?
            }
            Err(error) => return Err(StreamsError::Get(EVENTS, error)),
        };
        self.give_back(events).await
    }

    /// The stream of events, for who handles its events.
    ///
    /// # Errors
    /// If it cannot be looked up or created, or has another number of partitions.
    pub async fn events_to_consume(self) -> Result<stream::Stream, StreamsError> {
        let events = self.events().await?;
        let stored = Stored::of(&events.cached_info().config);
        if stored.partitions == self.settings.partitions {
            Ok(events)
        } else {
            Err(StreamsError::Partitions(stored, self.settings.partitions))
        }
    }

    /// The stream of events, for who publishes events. What forbids it is a finding.
    ///
    /// # Errors
    /// As [`Streams::events_to_consume`], or if the number of partitions is being changed.
    pub async fn events_to_publish(self) -> Result<stream::Stream, StreamsError> {
        let (mut findings, mut events) = (Vec::new(), self.events_to_consume().await);
        if let Ok(found) = &events {
            let stored = Stored::of(&found.cached_info().config);
            if stored.next.is_some() {
                events = Err(StreamsError::Switching(stored));
            }
        }
        if let Err(StreamsError::Partitions(stored, _) | StreamsError::Switching(stored)) = &events
        {
            let needed = format!("PARTITIONS={}; deliveries are kept", self.settings.partitions);
            findings.push(Finding::unfit(stored.to_string(), needed));
        }
        self.findings.set("partitions", findings);
        events
    }

    /// The stream of changes, created if it is not there.
    ///
    /// # Errors
    /// If it cannot be looked up or created.
    pub async fn changes(self) -> Result<stream::Stream, StreamsError> {
        self.ensure(Object::Changes).await
    }

    /// The stream of dead letters, created if it is not there.
    ///
    /// # Errors
    /// If it cannot be looked up or created.
    pub async fn dead_letters(self) -> Result<stream::Stream, StreamsError> {
        self.ensure(Object::DeadLetters).await
    }

    /// A stream other than that of events, created if it is not there.
    async fn ensure(self, object: Object) -> Result<stream::Stream, StreamsError> {
        let (name, wanted) = (object.name(), object.wanted(self.settings));
        let found = match self.js.get_stream(name).await {
            Ok(stream) => stream,
            Err(error) if is_missing(&error) => {
                if self.settings.stream_max_bytes.is_some() {
                    self.create_as_set(name, &wanted).await?
                } else {
                    self.create_with_share(name, &wanted).await?
                }
            }
            Err(error) => return Err(StreamsError::Get(name, error)),
        };
        self.compare(object, &found.cached_info().config);
        Ok(found)
    }

    /// Notes what makes the object unfit.
    fn compare(self, object: Object, found: &stream::Config) {
        self.findings.set(&object.to_string(), object.compared(self.settings, found));
    }

    /// Creates a stream with the limit of the settings.
    async fn create_as_set(
        self,
        name: &'static str,
        wanted: &stream::Config,
    ) -> Result<stream::Stream, StreamsError> {
        // Two processes that start together ask for the same stream, which the broker allows.
        let created = self.js.get_or_create_stream(wanted).await;
        let stream = created.map_err(|error| create_error(name, wanted.max_bytes, error))?;
        created_line(name, stream.cached_info().config.max_bytes);
        Ok(stream)
    }

    /// Creates the stream of events with the room of all streams. Only the broker knows its room, so
    /// it is asked to reserve it. [`Streams::give_back`] has to follow.
    ///
    /// Only this stream is created so, and before all others: a broker that is asked for two streams
    /// at the same time may reserve more than it has, and then refuses every change of a limit, a
    /// smaller one too.
    async fn reserve(self, wanted: &stream::Config) -> Result<stream::Stream, StreamsError> {
        let mut limit = DEFAULT_MAX_BYTES;
        loop {
            let mut of_all = stream::Config { max_bytes: SHARES * limit, ..wanted.clone() };
            of_all.metadata.insert(LIMIT.into(), limit.to_string());
            match self.js.create_stream(&of_all).await {
                Ok(_) => break,
                // Another process has created it.
                Err(error) if is_taken(&error) => return self.get(EVENTS).await,
                Err(error) if has_no_room(&error) && limit > LEAST_MAX_BYTES => limit /= 2,
                Err(error) => return Err(create_error(EVENTS, SHARES * limit, error)),
            }
        }
        created_line(EVENTS, limit);
        if limit < DEFAULT_MAX_BYTES {
            warn_of_little_room(EVENTS, limit);
        }
        self.get(EVENTS).await
    }

    /// Gives back the room that the stream of events has reserved for the others, if it has.
    async fn give_back(self, events: stream::Stream) -> Result<stream::Stream, StreamsError> {
        let Some(own) = own_limit(&events.cached_info().config) else { return Ok(events) };
        // Another process that does it as well asks for the same.
        self.js.update_stream(&own).await.map_err(|error| StreamsError::Limit(EVENTS, error))?;
        self.get(EVENTS).await
    }

    /// Creates a stream with its share of the room, or with less where the broker has less.
    async fn create_with_share(
        self,
        name: &'static str,
        wanted: &stream::Config,
    ) -> Result<stream::Stream, StreamsError> {
        let mut max_bytes = self.share().await?.min(wanted.max_bytes);
        loop {
            let with_share = stream::Config { max_bytes, ..wanted.clone() };
            match self.js.create_stream(&with_share).await {
                Ok(_) => break,
                // Another process has created it.
                Err(error) if is_taken(&error) => return self.get(name).await,
                Err(error) if has_no_room(&error) && max_bytes > LEAST_MAX_BYTES => max_bytes /= 2,
                Err(error) => return Err(create_error(name, max_bytes, error)),
            }
        }
        created_line(name, max_bytes);
        if max_bytes < wanted.max_bytes {
            warn_of_little_room(name, max_bytes);
        }
        self.get(name).await
    }

    /// The limit by default: that of the stream of events, so that all have found room. That stream
    /// is created first.
    async fn share(self) -> Result<i64, StreamsError> {
        let events = self.made_events().await?;
        let limit = events.cached_info().config.max_bytes;
        Ok(if limit > 0 { limit.min(DEFAULT_MAX_BYTES) } else { DEFAULT_MAX_BYTES })
    }

    async fn get(self, name: &'static str) -> Result<stream::Stream, StreamsError> {
        self.js.get_stream(name).await.map_err(|error| StreamsError::Get(name, error))
    }

    /// The bucket of issue states, created if it is not there. No age limit: an
    /// issue may have no events for years. No size limit where the account requires none: a bucket
    /// that is full takes no decision, so that all stands still.
    ///
    /// # Errors
    /// If it cannot be looked up or created.
    pub async fn issue_state(self) -> Result<kv::Store, StreamsError> {
        self.bucket(&ISSUE_STATES).await
    }

    /// The bucket of the jobs that ask Gitea, created if it is not there.
    ///
    /// # Errors
    /// If it cannot be looked up or created.
    pub async fn sync(self) -> Result<kv::Store, StreamsError> {
        self.bucket(&SYNC_BUCKET).await
    }

    /// The bucket of runs, created if it is not there.
    ///
    /// # Errors
    /// If it cannot be looked up or created.
    pub async fn runs(self) -> Result<kv::Store, StreamsError> {
        self.bucket(&RUNS_BUCKET).await
    }

    /// The bucket of runs, whose entries can have a time after which the broker removes them, as far as
    /// the server knows that (2.11) and our user may have it so. Otherwise it stays as it is, which
    /// [`Streams::runs`] has made a finding.
    ///
    /// # Errors
    /// If it cannot be looked up or created.
    pub async fn runs_with_ttls(self) -> Result<kv::Store, StreamsError> {
        let store = self.runs().await?;
        if super::bucket::has_ttls(&store) {
            return Ok(store);
        }
        self.allow_ttls(&store.stream).await;
        self.open(&RUNS_BUCKET).await
    }

    /// Asks for a bucket whose entries can have a time after which the broker removes them. It cannot
    /// be taken back, and changes nothing for entries without one.
    async fn allow_ttls(self, stream: &stream::Stream) {
        let found = &stream.cached_info().config;
        let wanted = stream::Config { allow_message_ttl: true, ..found.clone() };
        let asked = tokio::time::timeout(CHANGE_PATIENCE, self.js.update_stream(&wanted)).await;
        match asked {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                debug!(parent: None, stream = found.name, error = %Causes(&error), "no TTLs");
            }
            // A server does not answer a user who may not.
            Err(_) => debug!(parent: None, stream = found.name, "no TTLs: no answer"),
        }
    }

    /// The stream of questions, created if it is not there. It is a queue: what is acked is removed.
    /// It holds one message a subject, the last one.
    ///
    /// # Errors
    /// If it cannot be looked up or created.
    pub async fn questions(self) -> Result<stream::Stream, StreamsError> {
        self.ensure(Object::Questions).await
    }

    async fn bucket(self, bucket: &'static Bucket) -> Result<kv::Store, StreamsError> {
        // A look-up that fails for another reason (a leader being elected) must not end in a
        // creation.
        match self.js.get_stream(format!("KV_{}", bucket.name)).await {
            Ok(_) => return self.open(bucket).await,
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(StreamsError::Get(bucket.name, error)),
        }
        let mut max_bytes = -1;
        loop {
            let mut wanted = bucket.config(self.settings, max_bytes);
            // An older server empties a stream with a first sequence at its restart (nats-server's PR 6753).
            if bucket.counts_on && self.js.client().is_server_compatible(2, 12, 0) {
                let now = Timestamp::now().unix_micros() / 1000;
                wanted.first_sequence = u64::try_from(now).ok();
            }
            let created = self.js.create_stream(wanted).await;
            let error = match created {
                Ok(stream) => {
                    info!(parent: None, bucket = bucket.name, max_bytes, "bucket created");
                    if bucket.has_ttls {
                        self.allow_ttls(&stream).await;
                    }
                    return self.open(bucket).await;
                }
                Err(error) => error,
            };
            let is_default = self.settings.stream_max_bytes.is_none();
            match error {
                error if requires_limit(&error) => {
                    max_bytes = match self.settings.stream_max_bytes {
                        Some(0) => return Err(StreamsError::NoLimit(bucket.name)),
                        Some(limit) => limit,
                        None => self.share().await?,
                    }
                }
                error if has_no_room(&error) && is_default && max_bytes > LEAST_MAX_BYTES => {
                    max_bytes /= 2;
                }
                error if has_no_room(&error) => {
                    return Err(no_room(bucket.name, max_bytes));
                }
                // Another process has created the bucket first.
                error if is_taken(&error) => return self.open(bucket).await,
                error => return Err(StreamsError::CreateBucket(bucket.name, error)),
            }
        }
    }

    async fn open(self, bucket: &'static Bucket) -> Result<kv::Store, StreamsError> {
        let opened = self.js.get_key_value(bucket.name).await;
        let store = opened.map_err(|error| StreamsError::Bucket(bucket.name, error))?;
        self.compare(bucket.object, &store.stream.cached_info().config);
        Ok(store)
    }
}

/// A bucket as it is created.
#[derive(Debug)]
struct Bucket {
    object: Object,
    name: &'static str,
    description: &'static str,
    /// Pattern of its keys.
    keys: &'static str,
    /// Whether entries have a time after which the broker removes them.
    has_ttls: bool,
    /// Whether its revisions begin with the time of its creation, in milliseconds since 1970. No entry has
    /// the revision of one of a former bucket of this name then, so that nobody who has read there replaces
    /// what is here. It holds while less than one write a millisecond comes in the long run.
    counts_on: bool,
}

const ISSUE_STATES: Bucket = Bucket {
    object: Object::IssueState,
    name: ISSUE_STATE,
    description: "What was decided of each issue",
    keys: "*.*",
    has_ttls: false,
    counts_on: false,
};
const SYNC_BUCKET: Bucket = Bucket {
    object: Object::Sync,
    name: SYNC,
    description: "Who asks Gitea, and how far",
    keys: "*",
    has_ttls: false,
    counts_on: false,
};
const RUNS_BUCKET: Bucket = Bucket {
    object: Object::Runs,
    name: RUNS,
    description: "What runs, or waits to, because an issue is assigned",
    keys: "*.*.*",
    has_ttls: true,
    counts_on: true,
};

impl Bucket {
    /// What the stream of the bucket has to be, as far as it is compared.
    fn wanted(&self, settings: &StreamsSettings) -> stream::Config {
        stream::Config {
            max_age: Duration::ZERO,
            duplicate_window: Duration::ZERO,
            max_messages_per_subject: 1,
            allow_message_ttl: self.has_ttls,
            ..stream_config(settings, self.name, "", DiscardPolicy::New)
        }
    }

    /// Pattern of the subjects of all entries.
    fn subject(&self) -> String {
        format!("$KV.{}.{}", self.name, self.keys)
    }

    /// The stream of a bucket as all clients of NATS make it (its ADR-8).
    fn config(&self, settings: &StreamsSettings, max_bytes: i64) -> stream::Config {
        stream::Config {
            name: format!("KV_{}", self.name),
            description: Some(self.description.into()),
            subjects: vec![format!("$KV.{}.>", self.name)],
            max_messages_per_subject: 1,
            max_bytes,
            storage: StorageType::File,
            num_replicas: settings.stream_replicas,
            discard: DiscardPolicy::New,
            allow_rollup: true,
            deny_delete: true,
            allow_direct: true,
            ..stream::Config::default()
        }
    }
}

fn questions_config(settings: &StreamsSettings) -> stream::Config {
    let max_age = QUESTIONS_MAX_AGE.min(settings.stream_max_age_secs);
    let max_bytes = match settings.stream_max_bytes {
        Some(limit) if limit > 0 => limit.min(QUESTIONS_MAX_BYTES),
        _ => QUESTIONS_MAX_BYTES,
    };
    stream::Config {
        retention: RetentionPolicy::WorkQueue,
        max_messages_per_subject: 1,
        max_age,
        max_bytes,
        duplicate_window: max_age.min(Duration::from_secs(120)),
        ..stream_config(settings, QUESTIONS, QUESTIONS_PREFIX, DiscardPolicy::Old)
    }
}

/// What makes an existing stream of questions unfit.
fn compared_questions(wanted: &stream::Config, found: &stream::Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut unfit = |found: String, needed: &str| findings.push(Finding::unfit(found, needed));
    let pattern = &wanted.subjects[0];
    if !found.subjects.contains(pattern) {
        unfit(format!("subjects {:?}", found.subjects), pattern);
    }
    if found.retention != RetentionPolicy::WorkQueue {
        unfit(format!("retention {:?}", found.retention), "retention WorkQueue");
    }
    if found.max_messages_per_subject != 1 || found.discard != DiscardPolicy::Old {
        let per_subject = found.max_messages_per_subject;
        let found = format!("max_msgs_per_subject {per_subject}, discard {:?}", found.discard);
        unfit(found, "max_msgs_per_subject 1, discard Old");
    }
    findings
}

fn stream_config(
    settings: &StreamsSettings,
    name: &'static str,
    prefix: &str,
    discard: DiscardPolicy,
) -> stream::Config {
    stream::Config {
        name: name.into(),
        subjects: vec![format!("{prefix}.>")],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard,
        max_age: settings.stream_max_age_secs,
        max_bytes: limit(settings),
        duplicate_window: settings.dedup_window_secs,
        num_replicas: settings.stream_replicas,
        allow_direct: true,
        ..stream::Config::default()
    }
}

/// The stream of events with its own limit, if it is reserving the room of all.
fn own_limit(events: &stream::Config) -> Option<stream::Config> {
    let mut own = events.clone();
    own.max_bytes = own.metadata.remove(LIMIT)?.parse().ok()?;
    Some(own)
}

fn created_line(name: &str, max_bytes: i64) {
    // No parent span: the creation does not belong to the delivery that came first.
    info!(parent: None, stream = name, max_bytes, "stream created");
}

/// The limit may be reached before the age, and then events wait, or the oldest changes go.
fn warn_of_little_room(name: &str, max_bytes: i64) {
    warn!(parent: None, stream = name, max_bytes, "the broker has little room for a stream");
}

/// The limit in bytes of what is created, where -1 is none.
fn limit(settings: &StreamsSettings) -> i64 {
    match settings.stream_max_bytes {
        Some(0) => -1,
        limit => limit.unwrap_or(DEFAULT_MAX_BYTES),
    }
}

fn create_error(
    name: &'static str,
    max_bytes: i64,
    error: jetstream::context::CreateStreamError,
) -> StreamsError {
    if requires_limit(&error) {
        StreamsError::NoLimit(name)
    } else if has_no_room(&error) {
        no_room(name, max_bytes)
    } else {
        StreamsError::Create(name, error)
    }
}

/// Why there is no room for something with this limit, where -1 is none.
fn no_room(name: &'static str, max_bytes: i64) -> StreamsError {
    if max_bytes > 0 { StreamsError::NoRoom(name, max_bytes) } else { StreamsError::Full(name) }
}

/// Whether the account refuses what has no `max_bytes`: "account requires a stream config to have
/// max bytes set".
fn requires_limit(error: &(dyn std::error::Error + 'static)) -> bool {
    refused_with(error).is_some_and(|error| error.error_code().0 == 10113)
}

/// Whether the broker cannot reserve that many bytes.
fn has_no_room(error: &(dyn std::error::Error + 'static)) -> bool {
    refused_with(error).is_some_and(|error| match error.error_code() {
        jetstream::ErrorCode::STORAGE_RESOURCES_EXCEEDED => true,
        // The account's limit of one stream.
        jetstream::ErrorCode::STREAM_MAX_STREAM_BYTES_EXCEEDED => true,
        // Of a cluster: "no suitable peers for placement, insufficient storage".
        jetstream::ErrorCode::CLUSTER_NO_PEERS => error.to_string().contains("storage"),
        _ => false,
    })
}

/// Whether there is a stream of that name with another configuration.
fn is_taken(error: &(dyn std::error::Error + 'static)) -> bool {
    refused_with(error)
        .is_some_and(|error| error.error_code() == jetstream::ErrorCode::STREAM_NAME_EXIST)
}

/// The broker's refusal to create something.
fn refused_with(error: &(dyn std::error::Error + 'static)) -> Option<jetstream::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let kind = error
            .downcast_ref::<jetstream::context::CreateStreamError>()
            .map(jetstream::context::CreateStreamError::kind);
        if let Some(CreateStreamErrorKind::JetStream(error)) = kind {
            return Some(error);
        }
        cause = error.source();
    }
    None
}

/// Whether the broker says that there is no such stream.
pub fn is_missing(error: &jetstream::context::GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(error)
        if error.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND)
}

/// What makes an existing stream unfit, or endangers a promise. `subject` stands for all subjects
/// that the product publishes to. The stream belongs to the operator, so it is not changed: wider
/// limits than set are theirs.
fn compared(wanted: &stream::Config, found: &stream::Config, subject: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut unfit = |found: String, needed: &str| findings.push(Finding::unfit(found, needed));
    if !found.subjects.iter().any(|pattern| covers(pattern, subject)) {
        unfit(format!("subjects {:?}", found.subjects), subject);
    }
    if found.retention != RetentionPolicy::Limits {
        unfit(format!("retention {:?}", found.retention), "retention Limits");
    }
    // Without a limit there is nothing to discard.
    let has_limit = found.max_bytes > 0 || found.max_messages > 0;
    if has_limit && found.discard != DiscardPolicy::New && wanted.discard == DiscardPolicy::New {
        unfit(format!("a limit with discard {:?}", found.discard), "discard New");
    }
    let per_subject = found.max_messages_per_subject;
    if per_subject > 0 && wanted.max_messages_per_subject == 0 {
        let refuses = found.discard == DiscardPolicy::New && found.discard_new_per_subject;
        if !refuses && wanted.discard == DiscardPolicy::New {
            unfit(format!("max_msgs_per_subject {per_subject}"), "none");
        }
    }
    if found.sealed {
        unfit("sealed".into(), "a stream that takes messages");
    }
    if found.no_ack {
        unfit("no_ack".into(), "a stream that confirms messages");
    }
    if found.mirror.is_some() || found.subject_transform.is_some() {
        unfit("a mirror or a subject transform".into(), "messages under their own subjects");
    }
    let mut danger = |found: String, needed: String| findings.push(Finding::danger(found, needed));
    if found.duplicate_window < wanted.duplicate_window {
        let [found, needed] =
            [found, wanted].map(|c| format!("dedup window {:?}", c.duplicate_window));
        danger(found, needed);
    }
    let ages = [found, wanted].map(|c| if c.max_age.is_zero() { Duration::MAX } else { c.max_age });
    if ages[0] < ages[1] {
        danger(format!("max age {:?}", found.max_age), format!("max age {:?}", wanted.max_age));
    }
    if found.num_replicas < wanted.num_replicas {
        let [found, needed] = [found, wanted].map(|c| format!("{} replicas", c.num_replicas));
        danger(found, needed);
    }
    if wanted.allow_message_ttl && !found.allow_message_ttl {
        let needed = "allow_msg_ttl, so that the entries of runs that are over are removed: \
                      `coordinator create-streams` sets it, with nats-server 2.11 or newer";
        danger("no TTLs of single messages".into(), needed.into());
    }
    if found.deny_delete && wanted.name == DEAD_LETTERS {
        danger("deny_delete".into(), "dead letters that are deleted once they are redriven".into());
    }
    findings
}

/// Whether a pattern of subjects covers another one.
fn covers(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(one), Some(other)) if one == other => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_streams_of_a_cluster_are_asked_for_with_its_replicas_and_windows() {
        let settings = StreamsSettings {
            stream_replicas: 3,
            stream_max_age_secs: Duration::from_secs(1000),
            dedup_window_secs: Duration::from_secs(100),
            stream_max_bytes: Some(0),
            partitions: Partitions::DEFAULT,
        };
        let stream = stream_config(&settings, EVENTS, EVENTS_PREFIX, DiscardPolicy::New);
        assert_eq!((stream.name.as_str(), stream.max_bytes), (EVENTS, -1));
        assert_eq!(stream.subjects, ["gitea.issues.>"]);
        assert_eq!((stream.num_replicas, stream.max_age), (3, settings.stream_max_age_secs));
        assert_eq!(stream.duplicate_window, settings.dedup_window_secs);
    }

    fn settings() -> StreamsSettings {
        StreamsSettings {
            stream_replicas: 1,
            stream_max_age_secs: Duration::from_secs(1000),
            dedup_window_secs: Duration::from_secs(100),
            stream_max_bytes: Some(0),
            partitions: Partitions::DEFAULT,
        }
    }

    #[test]
    fn what_makes_a_stream_unfit_is_named_and_an_operators_own_limits_are_not() {
        let wanted = stream_config(&settings(), EVENTS, EVENTS_PREFIX, DiscardPolicy::New);
        type Change = fn(&mut stream::Config);
        let with = |change: Change| {
            let mut found = wanted.clone();
            change(&mut found);
            let findings = compared(&wanted, &found, "gitea.issues.*.*.*.*.*");
            findings.into_iter().map(|one| (one.found, one.unfit)).collect::<Vec<_>>()
        };
        let theirs: [Change; 5] = [
            |_| {},
            |found| {
                (found.max_bytes, found.num_replicas) = (1, 3);
                found.duplicate_window *= 2;
                found.max_age = Duration::ZERO;
            },
            |found| found.subjects = vec!["other".into(), "gitea.>".into()],
            // Nothing is ever discarded.
            |found| found.discard = DiscardPolicy::Old,
            |found| found.deny_delete = true,
        ];
        for change in theirs {
            assert_eq!(with(change), []);
        }
        let unfit: [(Change, &str); 7] = [
            (|found| found.subjects = vec!["gitea.issues.opened.>".into()], "subjects"),
            (|found| found.retention = RetentionPolicy::WorkQueue, "retention"),
            (|found| found.retention = RetentionPolicy::Interest, "retention"),
            (|found| (found.max_messages, found.discard) = (9, DiscardPolicy::Old), "a limit with"),
            (|found| found.max_messages_per_subject = 1, "max_msgs_per_subject"),
            (|found| found.sealed = true, "sealed"),
            (|found| found.no_ack = true, "no_ack"),
        ];
        for (change, text) in unfit {
            let findings = with(change);
            assert!(findings.len() == 1 && findings[0].1, "{text}: {findings:?}");
            assert!(findings[0].0.starts_with(text), "{text}: {findings:?}");
        }
        let findings = with(|found| {
            found.duplicate_window /= 2;
            found.max_age /= 2;
        });
        assert_eq!(findings.len(), 2);
        assert!(findings.iter().all(|(_, unfit)| !unfit), "{findings:?}");
    }

    #[test]
    fn a_bucket_of_runs_without_ttls_is_named_and_can_be_used() {
        let wanted = Object::Runs.wanted(&settings());
        let subjects = vec!["$KV.GITEA_RUNS.>".to_owned()];
        let found = stream::Config { subjects, ..wanted };
        assert_eq!(Object::Runs.compared(&settings(), &found), []);
        let found = stream::Config { allow_message_ttl: false, ..found };
        let findings = Object::Runs.compared(&settings(), &found);
        assert!(findings.len() == 1 && !findings[0].unfit, "{findings:?}");
        assert!(findings[0].needed.contains("allow_msg_ttl"), "{findings:?}");
    }

    #[test]
    fn a_stream_of_questions_that_is_no_queue_is_unfit() {
        let wanted = questions_config(&settings());
        assert_eq!((wanted.max_bytes, wanted.max_age), (64 << 20, Duration::from_secs(1000)));
        assert_eq!(compared_questions(&wanted, &wanted).len(), 0);
        let found = stream::Config {
            subjects: vec!["gitea.questions.doubts.>".into()],
            retention: RetentionPolicy::Limits,
            max_messages_per_subject: -1,
            ..wanted.clone()
        };
        assert_eq!(compared_questions(&wanted, &found).len(), 3);
    }

    #[test]
    fn a_pattern_covers_what_is_narrower() {
        for (pattern, subject, covered) in [
            ("a.>", "a.*.*", true),
            ("a.*.*", "a.*.*", true),
            (">", "a.*", true),
            ("a.*", "a.*.*", false),
            ("a.*.b", "a.*.*", false),
            ("a.*.*.>", "a.*.*", false),
            ("b.>", "a.*", false),
        ] {
            assert_eq!(covers(pattern, subject), covered, "{pattern} {subject}");
        }
    }
}
