//! Streams and bucket on the broker: their limits and their creation.
//! No other module defines these. Their names are in `contract::names`.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    context::{CreateKeyValueErrorKind, CreateStreamErrorKind, GetStreamErrorKind},
    kv,
    stream::{self, DiscardPolicy, RetentionPolicy, StorageType},
};
use thiserror::Error;
use tracing::{info, warn};

use contract::{
    names::{
        CHANGES, CHANGES_PREFIX, DEAD_LETTERS, DEAD_PREFIX, EVENTS, EVENTS_PREFIX, ISSUE_STATE,
    },
    partitions::Partitions,
};

use super::{
    findings::{Finding, Findings},
    repartition::Stored,
};
use crate::settings::{Problems, number, secs};

/// Default limit of a stream, in bytes. An event and a change take 1.7 kB each, so this is one a
/// second for the default age of 14 days.
const DEFAULT_MAX_BYTES: i64 = 2 << 30;
/// Least limit that a stream gets by default where the broker has little room.
const LEAST_MAX_BYTES: i64 = 16 << 20;
/// Share of the free room that one stream takes at most by default: there are three, and the bucket
/// needs some as well. The broker reserves limits, and refuses all that is new once its room is
/// reserved, the bucket too.
const SHARES: i64 = 4;

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
    /// Setting a stream's limit.
    #[error("set the limit of stream {0}")]
    Limit(&'static str, #[source] jetstream::context::UpdateStreamError),
    /// Opening the bucket.
    #[error("open bucket {0}")]
    Bucket(&'static str, #[source] jetstream::context::KeyValueError),
    /// Creating the bucket.
    #[error("create bucket {0}")]
    CreateBucket(&'static str, #[source] jetstream::context::CreateKeyValueError),
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
        let subject = format!("{EVENTS_PREFIX}.*.*.*.*.*");
        self.ensure(EVENTS, EVENTS_PREFIX, &subject, DiscardPolicy::New).await
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
        let subject = format!("{CHANGES_PREFIX}.*.*.*.*");
        self.ensure(CHANGES, CHANGES_PREFIX, &subject, DiscardPolicy::Old).await
    }

    /// The stream of dead letters, created if it is not there.
    ///
    /// # Errors
    /// If it cannot be looked up or created.
    pub async fn dead_letters(self) -> Result<stream::Stream, StreamsError> {
        let subject = format!("{DEAD_PREFIX}.*.*.*.*.*.*");
        self.ensure(DEAD_LETTERS, DEAD_PREFIX, &subject, DiscardPolicy::New).await
    }

    async fn ensure(
        self,
        name: &'static str,
        prefix: &str,
        subject: &str,
        discard: DiscardPolicy,
    ) -> Result<stream::Stream, StreamsError> {
        let mut wanted = stream_config(self.settings, name, prefix, discard);
        if name == EVENTS {
            Stored::new(self.settings.partitions).write(&mut wanted);
        }
        let found = match self.js.get_stream(name).await {
            Ok(stream) => stream,
            Err(error) if is_missing(&error) => self.create(name, &wanted).await?,
            Err(error) => return Err(StreamsError::Get(name, error)),
        };
        let findings = compared(&wanted, &found.cached_info().config, subject);
        self.findings.set(&format!("stream {name}"), findings);
        Ok(found)
    }

    async fn create(
        self,
        name: &'static str,
        wanted: &stream::Config,
    ) -> Result<stream::Stream, StreamsError> {
        let stream = if self.settings.stream_max_bytes.is_none() {
            self.create_within_room(name, wanted).await?
        } else {
            // Two processes that start together ask for the same stream, which the broker allows.
            let created = self.js.get_or_create_stream(wanted).await;
            created.map_err(|error| create_error(name, wanted.max_bytes, error))?
        };
        let max_bytes = stream.cached_info().config.max_bytes;
        // No parent span: the creation does not belong to the delivery that came first.
        info!(parent: None, stream = name, max_bytes, "stream created");
        Ok(stream)
    }

    /// Creates a stream with the default limit, or with as much less as leaves room for the others.
    /// Only the broker knows its room, so it is asked to reserve the room of all of them, and then
    /// to give back what is not this stream's.
    async fn create_within_room(
        self,
        name: &'static str,
        wanted: &stream::Config,
    ) -> Result<stream::Stream, StreamsError> {
        let mut limit = DEFAULT_MAX_BYTES;
        loop {
            let with_others = stream::Config { max_bytes: SHARES * limit, ..wanted.clone() };
            match self.js.create_stream(&with_others).await {
                Ok(_) => break,
                // Another process has created it, and sets its limit.
                Err(error) if is_taken(&error) => return self.get(name).await,
                Err(error) if has_no_room(&error) && limit > LEAST_MAX_BYTES => limit /= 2,
                Err(error) => return Err(create_error(name, SHARES * limit, error)),
            }
        }
        let own = stream::Config { max_bytes: limit, ..wanted.clone() };
        self.js.update_stream(&own).await.map_err(|error| StreamsError::Limit(name, error))?;
        if limit < DEFAULT_MAX_BYTES {
            warn!(
                parent: None,
                stream = name,
                max_bytes = limit,
                "the broker has little room; this limit of a stream may be reached before its age"
            );
        }
        self.get(name).await
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
        // A look-up that fails for another reason (a leader being elected) must not end in a
        // creation.
        match self.js.get_stream(format!("KV_{ISSUE_STATE}")).await {
            Ok(_) => return self.open_issue_state().await,
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(StreamsError::Get(ISSUE_STATE, error)),
        }
        let mut max_bytes = -1;
        loop {
            let created = self.js.create_key_value(bucket_config(self.settings, max_bytes)).await;
            let error = match created {
                Ok(store) => {
                    info!(parent: None, bucket = ISSUE_STATE, max_bytes, "bucket created");
                    return Ok(store);
                }
                Err(error) => error,
            };
            let is_default = self.settings.stream_max_bytes.is_none();
            match error {
                error if requires_limit(&error) => match limit(self.settings) {
                    -1 => return Err(StreamsError::NoLimit(ISSUE_STATE)),
                    limit => max_bytes = limit,
                },
                error if has_no_room(&error) && is_default && max_bytes > LEAST_MAX_BYTES => {
                    max_bytes /= 2;
                }
                error if has_no_room(&error) => {
                    return Err(StreamsError::NoRoom(ISSUE_STATE, max_bytes.max(0)));
                }
                // Another process has created the bucket first.
                error if error.kind() == CreateKeyValueErrorKind::BucketCreate => {
                    let opened = self.open_issue_state().await;
                    return opened.map_err(|_| StreamsError::CreateBucket(ISSUE_STATE, error));
                }
                error => return Err(StreamsError::CreateBucket(ISSUE_STATE, error)),
            }
        }
    }

    async fn open_issue_state(self) -> Result<kv::Store, StreamsError> {
        let opened = self.js.get_key_value(ISSUE_STATE).await;
        let store = opened.map_err(|error| StreamsError::Bucket(ISSUE_STATE, error))?;
        let wanted = stream::Config {
            max_age: Duration::ZERO,
            duplicate_window: Duration::ZERO,
            max_messages_per_subject: 1,
            ..stream_config(self.settings, ISSUE_STATE, "", DiscardPolicy::New)
        };
        let subject = format!("$KV.{ISSUE_STATE}.*.*");
        let findings = compared(&wanted, &store.stream.cached_info().config, &subject);
        self.findings.set(&format!("bucket {ISSUE_STATE}"), findings);
        Ok(store)
    }
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

/// The limit in bytes of what is created, where -1 is none.
fn limit(settings: &StreamsSettings) -> i64 {
    match settings.stream_max_bytes {
        Some(0) => -1,
        limit => limit.unwrap_or(DEFAULT_MAX_BYTES),
    }
}

fn bucket_config(settings: &StreamsSettings, max_bytes: i64) -> kv::Config {
    kv::Config {
        bucket: ISSUE_STATE.into(),
        description: "What was decided of each issue".into(),
        history: 1,
        storage: StorageType::File,
        num_replicas: settings.stream_replicas,
        max_bytes,
        ..kv::Config::default()
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
        StreamsError::NoRoom(name, max_bytes.max(0))
    } else {
        StreamsError::Create(name, error)
    }
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
