//! The durable consumers of the partitions: their configuration and their creation.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    consumer::{self, AckPolicy, DeliverPolicy, PriorityPolicy, ReplayPolicy},
    stream,
};
use contract::{
    names::{WORKERS_GROUP, consumer_name},
    subject::partition_filter,
};
use serde_json::{Map, Value};
use tracing::warn;

use super::streams::{StreamsError, StreamsSettings};

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
            description: Some(format!("Partition {partition}, shared by all workers")),
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

/// Fields that may be otherwise while a consumer keeps the order per issue, gives no message up, and
/// can be pulled from.
const HARMLESS: [&str; 5] =
    ["replay_policy", "rate_limit_bps", "max_batch", "max_bytes", "max_expires"];

/// Whether a consumer keeps every promise although it is not as needed.
fn keeps_order(found: &consumer::Config, needed: &consumer::Config) -> bool {
    let mut needed = needed.clone();
    if is_prioritized(found) {
        needed.priority_policy = found.priority_policy.clone();
        needed.priority_groups.clone_from(&found.priority_groups);
    }
    differing(found, &needed).iter().all(|(field, ..)| HARMLESS.contains(&field.as_str()))
}

/// What of a consumer is not as needed, and how it is needed.
fn differences(found: &consumer::Config, needed: &consumer::Config) -> String {
    let different = differing(found, needed).into_iter().map(|(field, found, needed)| {
        let [found, needed] = [found, needed].map(|value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        });
        format!("{field}: found {found}, needed {needed}")
    });
    different.collect::<Vec<_>>().join("; ")
}

/// The fields that differ, by the server's names, with the values found and needed.
fn differing(found: &consumer::Config, needed: &consumer::Config) -> Vec<(String, Value, Value)> {
    let fields = |config| match serde_json::to_value(config) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let (mut found, mut needed) = (fields(found), fields(needed));
    let mut names: Vec<String> = found.keys().chain(needed.keys()).cloned().collect();
    names.sort();
    names.dedup();
    let values = names.into_iter().map(|name| {
        let value = |fields: &mut Map<String, Value>| fields.remove(&name).unwrap_or_default();
        let (found, needed) = (value(&mut found), value(&mut needed));
        (name, found, needed)
    });
    values.filter(|(_, found, needed)| found != needed).collect()
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
