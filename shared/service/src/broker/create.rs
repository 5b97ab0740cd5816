//! Creates all that stands on the broker, for an operator who lets no role create anything.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, pull},
    stream::Stream,
};
use contract::{names::Lane, partitions::Partitions};
use thiserror::Error;

use super::{
    consumers::{
        partition_consumer, questions_consumer, reactor_consumer, warn_without_priorities,
    },
    findings::Findings,
    repartition::{RepartitionError, Stored, repartition},
    streams::{Streams, StreamsError, StreamsSettings},
};

/// Why not all was created.
#[derive(Debug, Error)]
pub enum CreateError {
    /// A stream, the bucket or a consumer.
    #[error(transparent)]
    Streams(#[from] StreamsError),
    /// The number of partitions could not be changed.
    #[error(transparent)]
    Repartition(#[from] RepartitionError),
}

/// What is created, beside the streams.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Limits of the streams, and the number of partitions of a stream that is not there yet.
    pub settings: &'a StreamsSettings,
    /// The number of partitions. Without one it stays as it is.
    pub partitions: Option<Partitions>,
    /// The consumers' wait for an ack.
    pub ack_wait: Duration,
    /// Whether the server can serve the workers' requests by priority.
    pub prioritize: bool,
    /// Durable consumers of the changes, one for each subscriber. They are created here, since a
    /// user that may create consumers can make the server write to any subject.
    pub readers: &'a [String],
    /// How long ingest gets to see that the number of partitions is being changed.
    pub repartition_pause: Duration,
}

/// Creates streams, bucket and consumers, and changes the number of partitions if another one is
/// wanted than there is.
///
/// # Errors
/// If something cannot be looked up, created or put right.
pub async fn create_all(js: &jetstream::Context, wanted: Wanted<'_>) -> Result<(), CreateError> {
    let (findings, settings) = (Findings::default(), wanted.settings);
    let streams = Streams { js, settings, findings: &findings };
    let events = streams.events().await?;
    let changes = streams.changes().await?;
    streams.dead_letters().await?;
    streams.issue_state().await?;
    let questions = streams.questions().await?;
    for lane in Lane::ALL {
        questions_consumer(&questions, settings, lane).await?;
    }
    streams.sync().await?;
    streams.runs_with_ttls().await?;
    reactor_consumer(&changes, settings).await?;
    let stored = Stored::of(&events.cached_info().config);
    // Those of all partitions exist before it is asked what they have not handled.
    let partitions = wanted.partitions.unwrap_or(stored.partitions);
    create_consumers(&events, wanted, stored.partitions.max(partitions)).await?;
    for name in wanted.readers {
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
    repartition(js, partitions, wanted.repartition_pause).await?;
    let unfit = findings.unfit();
    if unfit.is_empty() { Ok(()) } else { Err(StreamsError::Unfit(unfit.join("; ")).into()) }
}

async fn create_consumers(
    events: &Stream,
    wanted: Wanted<'_>,
    partitions: Partitions,
) -> Result<(), StreamsError> {
    let Wanted { settings, ack_wait, prioritize, .. } = wanted;
    let mut refused = false;
    for partition in partitions.all() {
        let made = partition_consumer(events, settings, ack_wait, partition, prioritize).await?;
        refused |= made.refused;
    }
    if refused {
        warn_without_priorities();
    }
    Ok(())
}
