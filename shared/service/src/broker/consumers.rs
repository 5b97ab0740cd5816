//! The durable consumers of the partitions: their configuration and their creation.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    consumer::{self, AckPolicy, DeliverPolicy, PriorityPolicy, ReplayPolicy},
    stream,
};
use contract::{
    names::{Lane, REACTOR_CONSUMER, WORKERS_GROUP, consumer_name},
    subject::partition_filter,
};
use serde_json::{Map, Value};
use tracing::warn;

use super::{
    findings::Finding,
    streams::{StreamsError, StreamsSettings},
};

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

/// What makes the consumer of a partition unfit, or endangers a promise, by its configuration
/// `found`. Workers and `create-streams` put right what can be. Changes nothing.
pub fn compared_partition(
    found: &consumer::Config,
    ack_wait: Duration,
    partition: u8,
    prioritize: bool,
) -> Vec<Finding> {
    let needed = |prioritize| as_needed(found.clone(), ack_wait, partition, prioritize);
    let wanted = needed(prioritize);
    let differs = || differences(found, &wanted);
    let text = "a consumer as the workers make it";
    if *found == wanted {
        Vec::new()
    } else if keeps_order(found, &needed(false)) {
        vec![Finding::danger(differs(), text)]
    } else {
        vec![Finding::unfit(differs(), text)]
    }
}

/// How long a question may take before another worker gets it. Who answers one says now and then that
/// it is still at work.
pub const QUESTION_ACK_WAIT: Duration = Duration::from_secs(30);
/// Questions that wait for their time, which count as being in flight.
const QUESTIONS_MAX_ACK_PENDING: i64 = 100_000;

/// Makes sure that the durable consumer of a lane of questions exists. One that is there is used as it
/// is, if it may be pulled from, waits for acks and has the subjects of the lane.
///
/// # Errors
/// If it cannot be looked up or created, or is of another kind.
pub async fn questions_consumer(
    questions: &stream::Stream,
    settings: &StreamsSettings,
    lane: Lane,
) -> Result<(), StreamsError> {
    let name = lane.consumer().to_owned();
    let wanted = consumer::Config {
        durable_name: Some(name.clone()),
        description: Some("Issues that Gitea is asked about, shared by all workers".into()),
        filter_subjects: lane.subjects(),
        ack_policy: AckPolicy::Explicit,
        ack_wait: QUESTION_ACK_WAIT,
        max_deliver: -1,
        max_ack_pending: QUESTIONS_MAX_ACK_PENDING,
        num_replicas: settings.stream_replicas,
        ..consumer::Config::default()
    };
    let found = match questions.consumer_info(&name).await {
        Ok(info) => info.config,
        Err(error) if is_consumer_missing(&error) => {
            let created = questions.create_consumer(wanted).await;
            return created.map(drop).map_err(|error| StreamsError::Consumer(name, error));
        }
        Err(error) => return Err(StreamsError::GetConsumer(name, error)),
    };
    if answers_questions(&found, lane) {
        return Ok(());
    }
    let differences = differences(&found, &wanted);
    Err(StreamsError::Unfit(format!("consumer {name} is not as needed ({differences}); delete it")))
}

/// Whether the consumer of a lane of questions may be pulled from, waits for acks, and has the subjects
/// of the lane.
pub fn answers_questions(found: &consumer::Config, lane: Lane) -> bool {
    // A server writes a single subject into the other field.
    let mut subjects = found.filter_subjects.clone();
    subjects.extend(Some(found.filter_subject.clone()).filter(|subject| !subject.is_empty()));
    subjects.sort();
    let mut wanted = lane.subjects();
    wanted.sort();
    let is_pulled = found.ack_policy == AckPolicy::Explicit && found.deliver_subject.is_none();
    is_pulled && subjects == wanted
}

/// How long a runner may take to look at a change before another one gets it. To look twice does no
/// harm.
pub const CHANGE_ACK_WAIT: Duration = Duration::from_secs(10);
/// Changes in the hands of all runners at once. An issue is looked at in a millisecond.
const CHANGES_MAX_ACK_PENDING: i64 = 10_000;

/// Makes sure that the durable consumer of the changes exists which all runners share. One that is
/// there is used as it is, if it may be pulled from, waits for acks and has all changes.
///
/// # Errors
/// If it cannot be looked up or created, or is of another kind.
pub async fn reactor_consumer(
    changes: &stream::Stream,
    settings: &StreamsSettings,
) -> Result<(), StreamsError> {
    let name = REACTOR_CONSUMER.to_owned();
    let wanted = consumer::Config {
        durable_name: Some(name.clone()),
        description: Some("Which issues to look at, shared by all runners".into()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: CHANGE_ACK_WAIT,
        max_deliver: -1,
        max_ack_pending: CHANGES_MAX_ACK_PENDING,
        num_replicas: settings.stream_replicas,
        ..consumer::Config::default()
    };
    let found = match changes.consumer_info(&name).await {
        Ok(info) => info.config,
        Err(error) if is_consumer_missing(&error) => {
            let created = changes.create_consumer(wanted).await;
            return created.map(drop).map_err(|error| StreamsError::Consumer(name, error));
        }
        Err(error) => return Err(StreamsError::GetConsumer(name, error)),
    };
    if feeds_runners(&found) {
        return Ok(());
    }
    let differences = differences(&found, &wanted);
    Err(StreamsError::Unfit(format!("consumer {name} is not as needed ({differences}); delete it")))
}

/// Whether the runners' consumer may be pulled from, waits for acks, and has all changes.
pub fn feeds_runners(found: &consumer::Config) -> bool {
    found.ack_policy == AckPolicy::Explicit
        && found.deliver_subject.is_none()
        && found.filter_subject.is_empty()
        && found.filter_subjects.is_empty()
        && found.max_deliver <= 0
        && !found.headers_only
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
        "workers have no priorities, so a partition may change its worker with each message; \
         `coordinator create-streams` sets them"
    );
}

/// Whether the broker says that there is no such consumer.
pub fn is_consumer_missing(error: &jetstream::context::ConsumerInfoError) -> bool {
    matches!(error.kind(), jetstream::context::ConsumerInfoErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_of_another_kind_feeds_no_runner() {
        let good = consumer::Config {
            ack_policy: AckPolicy::Explicit,
            max_deliver: -1,
            ..consumer::Config::default()
        };
        type Change = fn(&mut consumer::Config);
        let cases: [(Change, bool); 6] = [
            (|_| {}, true),
            (|found| found.ack_wait = Duration::from_secs(7), true),
            (|found| found.ack_policy = AckPolicy::None, false),
            (|found| found.max_deliver = 3, false),
            (|found| found.filter_subject = "gitea.changes.assigned.>".into(), false),
            (|found| found.deliver_subject = Some("elsewhere".into()), false),
        ];
        for (change, expected) in cases {
            let mut found = good.clone();
            change(&mut found);
            assert_eq!(feeds_runners(&found), expected, "{found:?}");
        }
    }

    #[test]
    fn a_consumer_that_is_only_looked_at_is_judged_as_one_that_is_put_right() {
        let ack_wait = Duration::from_secs(30);
        let good = as_needed(consumer::Config::default(), ack_wait, 7, true);
        type Change = fn(&mut consumer::Config);
        let cases: [(Change, Option<bool>); 6] = [
            (|_| {}, None),
            // An operator's own.
            (|found| found.description = Some("ours".into()), None),
            (|found| found.replay_policy = ReplayPolicy::Original, Some(false)),
            (|found| found.priority_policy = PriorityPolicy::None, Some(false)),
            (|found| found.max_ack_pending = 2, Some(true)),
            (|found| found.filter_subject = partition_filter(8), Some(true)),
        ];
        for (change, expected) in cases {
            let mut found = good.clone();
            change(&mut found);
            if found.priority_policy == PriorityPolicy::None {
                found.priority_groups.clear();
            }
            let findings = compared_partition(&found, ack_wait, 7, true);
            assert_eq!(findings.first().map(|one| one.unfit), expected, "{findings:?}");
        }
    }
}
