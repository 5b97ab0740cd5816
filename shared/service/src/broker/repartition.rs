//! The number of partitions that is stored with the stream of events, and its change.
//!
//! An issue that changes its partition keeps its order only if all its events in the former one are
//! handled first. So a change has three steps: the stream's metadata names the next number, and
//! ingest, which looks twice a minute, publishes no more; the workers handle what is there; the
//! metadata name the new number alone. Deliveries wait in ingest's journal meanwhile.

use std::{
    fmt,
    time::{Duration, Instant},
};

use async_nats::jetstream::{
    Context, consumer,
    context::{ConsumerInfoError, GetStreamError, UpdateStreamError},
    stream::{self, Stream},
};
use contract::{
    names::{EVENTS, consumer_name},
    partitions::Partitions,
};
use thiserror::Error;
use tracing::info;

/// Key of the number of partitions in the stream's metadata. A stream without it has
/// [`Partitions::DEFAULT`].
const PARTITIONS: &str = "coordinator-partitions";
/// Key of the number that is being changed to.
const NEXT: &str = "coordinator-partitions-next";

/// Pause between looks at what is unhandled.
const POLL: Duration = Duration::from_secs(1);
/// Pause between lines about it.
const REPORT: Duration = Duration::from_secs(10);
/// Looks that may fail in a row. An election takes some seconds.
const MAX_FAILURES: u32 = 30;

/// What the stream of events says of its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Partitions of the events that it holds.
    pub partitions: Partitions,
    /// The number that is being changed to.
    pub next: Option<Partitions>,
}

impl Stored {
    pub(super) fn new(partitions: Partitions) -> Self {
        Self { partitions, next: None }
    }

    /// Reads a stream's metadata.
    pub fn of(config: &stream::Config) -> Self {
        let number = |key| config.metadata.get(key).and_then(|text: &String| text.parse().ok());
        Self { partitions: number(PARTITIONS).unwrap_or(Partitions::DEFAULT), next: number(NEXT) }
    }

    pub(super) fn write(self, config: &mut stream::Config) {
        let metadata = &mut config.metadata;
        metadata.insert(PARTITIONS.into(), self.partitions.to_string());
        match self.next {
            Some(next) => metadata.insert(NEXT.into(), next.to_string()),
            None => metadata.remove(NEXT),
        };
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partitions, next } = self;
        write!(f, "{partitions} partitions")?;
        next.map_or(Ok(()), |next| write!(f, ", being changed to {next}"))
    }
}

/// Why the number of partitions was not changed.
#[derive(Debug, Error)]
pub enum RepartitionError {
    /// Looking the stream up.
    #[error("look up stream {EVENTS}")]
    Look(#[source] Box<GetStreamError>),
    /// Changing the stream's metadata.
    #[error("write the number of partitions to stream {EVENTS}")]
    Write(#[source] UpdateStreamError),
    /// Looking at a partition's consumer.
    #[error("look up consumer {0}")]
    Consumer(String, #[source] ConsumerInfoError),
    /// Somebody else changes it too.
    #[error("another run changes the number of partitions: the stream has {0}")]
    Contended(Stored),
    /// The change has begun, and is not through.
    #[error(
        "the change of the number of partitions is not through, and nothing is published until create-streams has run again"
    )]
    Unfinished(#[source] Box<Self>),
}

/// Makes `wanted` the number of partitions. Waits without a limit until all events are handled.
///
/// `pause` is how long all ingests get to see that they may not publish. Ending the process leaves
/// the change under way: another run goes on with it, or takes it back if it wants the former number.
pub(super) async fn repartition(
    js: &Context,
    wanted: Partitions,
    pause: Duration,
) -> Result<(), RepartitionError> {
    let events = look(js).await?;
    let stored = Stored::of(&events.cached_info().config);
    if stored == Stored::new(wanted) {
        return Ok(());
    }
    if stored.partitions == wanted {
        // Nothing was published under the other number.
        info!(partitions = %wanted, "the change of the number of partitions is taken back");
        return replace(js, stored, Stored::new(wanted)).await;
    }
    let under_way = Stored { partitions: stored.partitions, next: Some(wanted) };
    if stored.next.is_some_and(|next| next != wanted) {
        return Err(RepartitionError::Contended(stored));
    }
    replace(js, stored, under_way).await?;
    let again_in_secs = pause.as_secs();
    info!(found = %stored, partitions = %wanted, again_in_secs, "waiting for ingest to stop publishing");
    let changed = async {
        until_handled(js, under_way, pause).await?;
        replace(js, under_way, Stored::new(wanted)).await
    };
    changed.await.map_err(|error| RepartitionError::Unfinished(Box::new(error)))?;
    info!(partitions = %wanted, "the number of partitions is changed; restart all roles with it");
    Ok(())
}

/// Waits until nothing has been published for `pause`, and all that is there is handled.
async fn until_handled(
    js: &Context,
    under_way: Stored,
    pause: Duration,
) -> Result<(), RepartitionError> {
    let mut reported: Option<Instant> = None;
    let mut quiet: Option<(u64, Instant)> = None;
    let mut failures = 0;
    loop {
        let looked = async {
            let events = look(js).await?;
            Ok((unhandled(&events, under_way.partitions).await?, events))
        };
        match looked.await {
            Ok((unhandled, events)) => {
                failures = 0;
                let info = events.cached_info();
                let stored = Stored::of(&info.config);
                if stored != under_way {
                    return Err(RepartitionError::Contended(stored));
                }
                let last = info.state.last_sequence;
                let since = match quiet {
                    Some((sequence, since)) if sequence == last => since,
                    _ => quiet.insert((last, Instant::now())).1,
                };
                if unhandled == 0 && since.elapsed() >= pause {
                    return Ok(());
                }
                if reported.is_none_or(|at| at.elapsed() > REPORT) {
                    info!(unhandled, "waiting for workers to handle what is there");
                    reported = Some(Instant::now());
                }
            }
            // A leader is being elected, or the broker is slow.
            Err(error) => {
                failures += 1;
                if failures >= MAX_FAILURES {
                    return Err(error);
                }
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Events of all partitions that are pending or in hand.
async fn unhandled(events: &Stream, partitions: Partitions) -> Result<u64, RepartitionError> {
    let mut unhandled = 0;
    for name in partitions.all().map(consumer_name) {
        let info: Result<consumer::Info, _> = events.consumer_info(&name).await;
        let info = info.map_err(|error| RepartitionError::Consumer(name, error))?;
        unhandled += info.num_pending + info.num_ack_pending as u64;
    }
    Ok(unhandled)
}

async fn look(js: &Context) -> Result<Stream, RepartitionError> {
    js.get_stream(EVENTS).await.map_err(|error| RepartitionError::Look(Box::new(error)))
}

/// Changes nothing of the stream but the number, if that is `found` still. The broker knows no
/// compare-and-set for a stream's configuration, so this looks right before.
async fn replace(js: &Context, found: Stored, stored: Stored) -> Result<(), RepartitionError> {
    let mut config = look(js).await?.cached_info().config.clone();
    let there = Stored::of(&config);
    if there != found {
        return Err(RepartitionError::Contended(there));
    }
    stored.write(&mut config);
    js.update_stream(&config).await.map_err(RepartitionError::Write)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_reads_back_and_no_metadata_are_the_default() {
        let mut config = stream::Config::default();
        assert_eq!(Stored::of(&config), Stored::new(Partitions::DEFAULT));
        config.metadata.insert("theirs".into(), "kept".into());
        let number = |text: &str| text.parse().expect("a number");
        let under_way = Stored { partitions: number("8"), next: Some(number("16")) };
        for stored in [under_way, Stored::new(number("16"))] {
            stored.write(&mut config);
            assert_eq!(Stored::of(&config), stored);
        }
        assert_eq!(config.metadata.len(), 2);
        assert_eq!(under_way.to_string(), "8 partitions, being changed to 16");
    }
}
