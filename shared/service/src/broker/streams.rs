//! Streams, bucket and consumers on the broker: their limits and their creation.
//! No other module defines these. Their names are in `contract::names`.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    consumer::{self, AckPolicy, DeliverPolicy, PriorityPolicy, pull},
    context::{CreateKeyValueErrorKind, GetStreamErrorKind},
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
    /// Opening the bucket.
    #[error("open bucket {0}")]
    Bucket(&'static str, #[source] jetstream::context::KeyValueError),
    /// Creating the bucket.
    #[error("create bucket {0}")]
    CreateBucket(&'static str, #[source] jetstream::context::CreateKeyValueError),
    /// Looking a consumer up.
    #[error("look up consumer {0}")]
    GetConsumer(String, #[source] jetstream::context::ConsumerInfoError),
    /// Creating or updating a consumer.
    #[error("create consumer {0}")]
    Consumer(String, #[source] jetstream::stream::ConsumerError),
}

/// The stream of events, created if it is not there.
///
/// `discard: new` and no size limit: an event that no worker has handled is
/// never dropped for a newer one. A full broker refuses the event. Then the relay
/// waits, and the journal keeps the delivery.
pub async fn events(
    js: &jetstream::Context,
    settings: &StreamsSettings,
) -> Result<stream::Stream, StreamsError> {
    ensure(js, stream_config(settings, EVENTS, EVENTS_PREFIX, DiscardPolicy::New)).await
}

/// The stream of changes, created if it is not there.
pub async fn changes(
    js: &jetstream::Context,
    settings: &StreamsSettings,
) -> Result<stream::Stream, StreamsError> {
    ensure(js, stream_config(settings, CHANGES, CHANGES_PREFIX, DiscardPolicy::Old)).await
}

/// The stream of dead letters, created if it is not there.
pub async fn dead_letters(
    js: &jetstream::Context,
    settings: &StreamsSettings,
) -> Result<stream::Stream, StreamsError> {
    ensure(js, stream_config(settings, DEAD_LETTERS, DEAD_PREFIX, DiscardPolicy::New)).await
}

fn stream_config(
    settings: &StreamsSettings,
    name: &'static str,
    prefix: &str,
    discard: DiscardPolicy,
) -> (&'static str, stream::Config) {
    let stream = stream::Config {
        name: name.into(),
        subjects: vec![format!("{prefix}.>")],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard,
        max_age: settings.stream_max_age_secs,
        duplicate_window: settings.dedup_window_secs,
        num_replicas: settings.stream_replicas,
        allow_direct: true,
        ..stream::Config::default()
    };
    (name, stream)
}

async fn ensure(
    js: &jetstream::Context,
    (name, wanted): (&'static str, stream::Config),
) -> Result<stream::Stream, StreamsError> {
    match js.get_stream(name).await {
        Ok(stream) => {
            warn_if_different(name, &wanted, &stream.cached_info().config);
            Ok(stream)
        }
        Err(error) if is_missing(&error) => {
            // Two processes that start together ask for the same stream, which the broker allows.
            let stream = js
                .get_or_create_stream(wanted)
                .await
                .map_err(|error| StreamsError::Create(name, error))?;
            // No parent span: the creation does not belong to the delivery that came first.
            info!(parent: None, stream = name, "stream created");
            Ok(stream)
        }
        Err(error) => Err(StreamsError::Get(name, error)),
    }
}

/// Whether the broker says that there is no such stream.
pub fn is_missing(error: &jetstream::context::GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(error)
        if error.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND)
}

/// An existing stream belongs to the operator. A difference is logged, and not changed.
fn warn_if_different(name: &str, wanted: &stream::Config, found: &stream::Config) {
    let wanted = (wanted.num_replicas, wanted.max_age, wanted.duplicate_window);
    let found = (found.num_replicas, found.max_age, found.duplicate_window);
    if wanted != found {
        warn!(
            parent: None,
            stream = name,
            ?wanted,
            ?found,
            "the stream exists with other replicas, max age or dedup window than set; it is left as it is"
        );
    }
}

/// The bucket of issue states, created if it is not there. No age limit: an
/// issue may have no events for years.
pub async fn issue_state(
    js: &jetstream::Context,
    settings: &StreamsSettings,
) -> Result<kv::Store, StreamsError> {
    // A look-up that fails for another reason (a leader being elected) must not end in a creation.
    match js.get_stream(format!("KV_{ISSUE_STATE}")).await {
        Ok(_) => return open(js).await,
        Err(error) if is_missing(&error) => {}
        Err(error) => return Err(StreamsError::Get(ISSUE_STATE, error)),
    }
    let created = js
        .create_key_value(kv::Config {
            bucket: ISSUE_STATE.into(),
            description: "What the handlers have been told of each issue".into(),
            history: 1,
            storage: StorageType::File,
            num_replicas: settings.stream_replicas,
            ..kv::Config::default()
        })
        .await;
    match created {
        Ok(store) => Ok(store),
        // Another process has created the bucket first.
        Err(error) if error.kind() == CreateKeyValueErrorKind::BucketCreate => {
            open(js).await.map_err(|_| StreamsError::CreateBucket(ISSUE_STATE, error))
        }
        Err(error) => Err(StreamsError::CreateBucket(ISSUE_STATE, error)),
    }
}

async fn open(js: &jetstream::Context) -> Result<kv::Store, StreamsError> {
    js.get_key_value(ISSUE_STATE).await.map_err(|error| StreamsError::Bucket(ISSUE_STATE, error))
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
        Err(_) if found == Some(needed(false)) => {
            Ok(PartitionConsumer { prioritized: false, refused: true })
        }
        Err(error) => Err(StreamsError::Consumer(name, error)),
    }
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
    let events = events(js, settings).await?;
    let changes = changes(js, settings).await?;
    dead_letters(js, settings).await?;
    issue_state(js, settings).await?;
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
    Ok(())
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
        };
        let (name, stream) = stream_config(&settings, EVENTS, EVENTS_PREFIX, DiscardPolicy::New);
        assert_eq!((name, stream.name.as_str()), (EVENTS, EVENTS));
        assert_eq!(stream.subjects, ["gitea.issues.>"]);
        assert_eq!((stream.num_replicas, stream.max_age), (3, settings.stream_max_age_secs));
        assert_eq!(stream.duplicate_window, settings.dedup_window_secs);
    }
}
