//! Streams, bucket and consumers on the broker: their limits and their creation.
//! No other module defines these. Their names are in `contract::names`.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    consumer::{self, AckPolicy, DeliverPolicy, PriorityPolicy, ReplayPolicy, pull},
    context::{CreateKeyValueErrorKind, CreateStreamErrorKind, GetStreamErrorKind},
    kv,
    stream::{self, DiscardPolicy, RetentionPolicy, StorageType},
};
use thiserror::Error;
use tracing::{info, warn};

use contract::{
    names::{
        CHANGES, CHANGES_PREFIX, DEAD_LETTERS, DEAD_PREFIX, EVENTS, EVENTS_PREFIX, ISSUE_STATE,
        PARTITIONS, WORKERS_GROUP, consumer_name,
    },
    subject::partition_filter,
};

use super::findings::{Finding, Findings};
use crate::settings::{Problems, number, secs};

crate::settings! {
    /// Limits of what is created on the broker.
    pub struct StreamsArgs => StreamsSettings {
        stream_replicas: usize = "STREAM_REPLICAS" or "1" = 1, number(1, 5),
            "Copies that the broker keeps of streams and state: 1, 3 or 5";
        stream_max_age_secs: Duration = "STREAM_MAX_AGE_SECS" or "1209600, 14 days" = Duration::from_secs(1_209_600), secs(60, u32::MAX.into()),
            "How long the broker keeps events, changes and dead letters";
        dedup_window_secs: Duration = "DEDUP_WINDOW_SECS" or "90000, 25 hours" = Duration::from_secs(90_000), secs(10, u32::MAX.into()),
            "How long the broker remembers message ids; longer than the journal's retention";
        stream_max_bytes: i64 = "STREAM_MAX_BYTES" or "0, no limit" = 0, number(0, i64::MAX),
            "Limit of each stream and of the bucket when they are created, for accounts that require one";
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
    /// Something that stands there and that the product cannot work with.
    #[error("{0}")]
    Unfit(String),
}

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
    /// `discard: new` and no size limit: an event that no worker has handled is
    /// never dropped for a newer one. A full broker refuses the event. Then the relay
    /// waits, and the journal keeps the delivery.
    ///
    /// # Errors
    /// If it cannot be looked up or created.
    pub async fn events(self) -> Result<stream::Stream, StreamsError> {
        let subject = format!("{EVENTS_PREFIX}.*.*.*.*.*");
        self.ensure(EVENTS, EVENTS_PREFIX, &subject, DiscardPolicy::New).await
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
        let wanted = stream_config(self.settings, name, prefix, discard);
        let found = match self.js.get_stream(name).await {
            Ok(stream) => stream,
            Err(error) if is_missing(&error) => {
                // Two processes that start together ask for the same stream, which the broker
                // allows.
                let created = self.js.get_or_create_stream(&wanted).await;
                let stream = created.map_err(|error| create_error(name, error))?;
                // No parent span: the creation does not belong to the delivery that came first.
                info!(parent: None, stream = name, "stream created");
                stream
            }
            Err(error) => return Err(StreamsError::Get(name, error)),
        };
        let findings = compared(&wanted, &found.cached_info().config, subject);
        self.findings.set(&format!("stream {name}"), findings);
        Ok(found)
    }

    /// The bucket of issue states, created if it is not there. No age limit: an
    /// issue may have no events for years.
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
        let created = self
            .js
            .create_key_value(kv::Config {
                bucket: ISSUE_STATE.into(),
                description: "What was decided of each issue".into(),
                history: 1,
                storage: StorageType::File,
                num_replicas: self.settings.stream_replicas,
                max_bytes: limit(self.settings),
                ..kv::Config::default()
            })
            .await;
        match created {
            Ok(store) => {
                info!(parent: None, bucket = ISSUE_STATE, "bucket created");
                Ok(store)
            }
            Err(error) if requires_limit(&error) => Err(StreamsError::NoLimit(ISSUE_STATE)),
            // Another process has created the bucket first.
            Err(error) if error.kind() == CreateKeyValueErrorKind::BucketCreate => {
                let opened = self.open_issue_state().await;
                opened.map_err(|_| StreamsError::CreateBucket(ISSUE_STATE, error))
            }
            Err(error) => Err(StreamsError::CreateBucket(ISSUE_STATE, error)),
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
    if settings.stream_max_bytes == 0 { -1 } else { settings.stream_max_bytes }
}

fn create_error(name: &'static str, error: jetstream::context::CreateStreamError) -> StreamsError {
    if requires_limit(&error) {
        StreamsError::NoLimit(name)
    } else {
        StreamsError::Create(name, error)
    }
}

/// Whether the account refuses what has no `max_bytes`.
fn requires_limit(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let kind = error
            .downcast_ref::<jetstream::context::CreateStreamError>()
            .map(jetstream::context::CreateStreamError::kind);
        if let Some(CreateStreamErrorKind::JetStream(error)) = kind {
            // "account requires a stream config to have max bytes set".
            return error.error_code().0 == 10113;
        }
        cause = error.source();
    }
    false
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

/// The consumer of a partition as it stands on the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionConsumer {
    /// Whether it serves requests by their priority. They name [`WORKERS_GROUP`] then.
    pub prioritized: bool,
    /// Whether the broker refused to make it so.
    pub refused: bool,
}

/// Makes sure that the durable consumer of a partition exists.
///
/// One message in flight (`max_ack_pending: 1`) keeps the order per issue,
/// whatever workers come, go or die. An existing consumer that is as needed is
/// only looked up, so a worker's user needs no permission to create consumers.
///
/// `prioritize` asks for a consumer that serves requests by their priority. The server must know
/// that (2.12). It is a preference: a consumer that cannot be made so is used without.
pub async fn partition_consumer(
    events: &stream::Stream,
    settings: &StreamsSettings,
    ack_wait: Duration,
    partition: u8,
    prioritize: bool,
) -> Result<PartitionConsumer, StreamsError> {
    let name = consumer_name(partition);
    let found = match events.consumer_info(&name).await {
        Ok(info) => Some(info.config),
        Err(error) if is_consumer_missing(&error) => None,
        Err(error) => return Err(StreamsError::GetConsumer(name, error)),
    };
    let needed = |prioritize| {
        let config = found.clone().unwrap_or_else(|| consumer::Config {
            durable_name: Some(name.clone()),
            description: Some(format!(
                "Partition {partition} of {PARTITIONS}, shared by all workers"
            )),
            num_replicas: settings.stream_replicas,
            ..consumer::Config::default()
        });
        as_needed(config, ack_wait, partition, prioritize)
    };
    let wanted = needed(prioritize);
    let prioritized = is_prioritized(&wanted);
    if found.as_ref() == Some(&wanted) {
        return Ok(PartitionConsumer { prioritized, refused: false });
    }
    // Creates the consumer, or updates the existing one.
    match events.create_consumer(wanted).await {
        Ok(_) => Ok(PartitionConsumer { prioritized, refused: false }),
        Err(_) if found.as_ref() == Some(&needed(false)) => {
            Ok(PartitionConsumer { prioritized: false, refused: true })
        }
        Err(error) => Err(match &found {
            // What cannot be put right may still keep every promise.
            Some(found) if keeps_order(found, &needed(false)) => {
                let prioritized = is_prioritized(found);
                return Ok(PartitionConsumer { prioritized, refused: !prioritized });
            }
            Some(found) => {
                let differences = differences(found, &needed(false));
                StreamsError::ConsumerUnfit(name.clone(), differences, error)
            }
            None => StreamsError::Consumer(name.clone(), error),
        }),
    }
}

/// Whether a consumer keeps the order per issue, gives no message up, and can be pulled from.
fn keeps_order(found: &consumer::Config, needed: &consumer::Config) -> bool {
    found.ack_policy == needed.ack_policy
        && found.ack_wait == needed.ack_wait
        && found.max_deliver == needed.max_deliver
        && found.max_ack_pending == needed.max_ack_pending
        && found.filter_subject == needed.filter_subject
        && found.filter_subjects.is_empty()
        && found.deliver_subject.is_none()
        && found.backoff.is_empty()
        && !found.headers_only
        && (found.priority_policy == PriorityPolicy::None || is_prioritized(found))
}

/// What of a consumer is not as needed, and how it is needed.
fn differences(found: &consumer::Config, needed: &consumer::Config) -> String {
    let fields = |config: &consumer::Config| {
        [
            ("deliver_subject", format!("{:?}", config.deliver_subject)),
            ("deliver_policy", format!("{:?}", config.deliver_policy)),
            ("ack_policy", format!("{:?}", config.ack_policy)),
            ("ack_wait", format!("{:?}", config.ack_wait)),
            ("max_deliver", config.max_deliver.to_string()),
            ("max_ack_pending", config.max_ack_pending.to_string()),
            ("filter", format!("{:?} {:?}", config.filter_subject, config.filter_subjects)),
            ("replay_policy", format!("{:?}", config.replay_policy)),
            ("headers_only", config.headers_only.to_string()),
            ("backoff", format!("{:?}", config.backoff)),
            ("priority_policy", format!("{:?}", config.priority_policy)),
        ]
    };
    let pairs = fields(found).into_iter().zip(fields(needed));
    let different = pairs.filter(|(found, needed)| found != needed);
    let different = different
        .map(|((field, found), (_, needed))| format!("{field}: found {found}, needed {needed}"));
    different.collect::<Vec<_>>().join("; ")
}

/// The configuration with which a consumer keeps the order per issue and gives no message up. What
/// else an operator has set is kept.
fn as_needed(
    mut config: consumer::Config,
    ack_wait: Duration,
    partition: u8,
    prioritize: bool,
) -> consumer::Config {
    config.filter_subject = partition_filter(partition);
    config.filter_subjects.clear();
    config.deliver_policy = DeliverPolicy::All;
    config.ack_policy = AckPolicy::Explicit;
    config.ack_wait = ack_wait;
    config.max_deliver = -1;
    config.max_ack_pending = 1;
    config.deliver_subject = None;
    config.replay_policy = ReplayPolicy::Instant;
    config.headers_only = false;
    config.rate_limit = 0;
    // It would take the place of `ack_wait`.
    config.backoff.clear();
    // Limits of a request for messages.
    (config.max_batch, config.max_bytes, config.max_expires) = (0, 0, Duration::ZERO);
    if prioritize {
        config.priority_policy = PriorityPolicy::Prioritized;
        config.priority_groups = vec![WORKERS_GROUP.into()];
    } else if !is_prioritized(&config) {
        // Another policy asks for what our requests do not hold.
        config.priority_policy = PriorityPolicy::None;
        config.priority_groups.clear();
    }
    config
}

fn is_prioritized(config: &consumer::Config) -> bool {
    config.priority_policy == PriorityPolicy::Prioritized
        && config.priority_groups.iter().any(|group| group == WORKERS_GROUP)
}

/// Says that partitions do not stay with their workers, because the broker refused it.
pub fn warn_without_priorities() {
    warn!(
        parent: None,
        "the broker refused to serve the workers' requests by priority; the consumers are used \
         without, so a partition may change its worker with each message. \
         `coordinator create-streams` sets it"
    );
}

fn is_consumer_missing(error: &jetstream::context::ConsumerInfoError) -> bool {
    matches!(error.kind(), jetstream::context::ConsumerInfoErrorKind::NotFound)
}

/// Creates everything: streams, bucket and consumers. For an operator who lets no
/// service create anything.
///
/// `readers` are names of durable consumers of the changes, one for each subscriber.
/// They are created here, since a user that may create consumers can make the server
/// write to any subject.
pub async fn create_all(
    js: &jetstream::Context,
    settings: &StreamsSettings,
    ack_wait: Duration,
    prioritize: bool,
    readers: &[String],
) -> Result<(), StreamsError> {
    let mut refused = false;
    let findings = Findings::default();
    let streams = Streams { js, settings, findings: &findings };
    let events = streams.events().await?;
    let changes = streams.changes().await?;
    streams.dead_letters().await?;
    streams.issue_state().await?;
    for partition in 0..PARTITIONS {
        let made = partition_consumer(&events, settings, ack_wait, partition, prioritize).await?;
        refused |= made.refused;
    }
    if refused {
        warn_without_priorities();
    }
    for name in readers {
        let reader = pull::Config {
            durable_name: Some(name.clone()),
            ack_policy: AckPolicy::Explicit,
            num_replicas: settings.stream_replicas,
            ..pull::Config::default()
        };
        // An existing consumer may have another configuration, and is left as it is.
        let there = changes.get_or_create_consumer(name, reader).await;
        there.map_err(|error| StreamsError::Consumer(name.clone(), error))?;
    }
    let unfit = findings.unfit();
    if unfit.is_empty() { Ok(()) } else { Err(StreamsError::Unfit(unfit.join("; "))) }
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
            stream_max_bytes: 0,
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
            stream_max_bytes: 0,
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
