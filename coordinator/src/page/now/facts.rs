//! What the broker says of streams, consumers and sweeps.

use std::time::Duration;

use async_nats::jetstream::stream::Info;
use contract::{change::Change, envelope, names, timestamp::Timestamp};
use futures::future::join_all;
use serde::Deserialize;
use service::{broker::repartition::Stored, peers::Peers};

use super::super::reads::{Found, Message, ReadError, Reads};

/// How long all looks may take together.
const PATIENCE: Duration = Duration::from_millis(1_000);

/// The streams that are shown, with what they hold.
const STREAMS: [(&str, &str); 5] = [
    (names::EVENTS, "Events"),
    (names::CHANGES, "Changes"),
    (names::DEAD_LETTERS, "Dead letters"),
    (names::QUESTIONS, "Questions"),
    ("KV_GITEA_ISSUE_STATE", "Issue states"),
];

/// Changes that are shown.
const LATEST: u64 = 8;

/// What the broker says.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Facts {
    pub(in super::super) connected: bool,
    /// Why not all could be read.
    pub(super) failed: Option<String>,
    pub(super) streams: Vec<StreamUse>,
    pub(super) lag: Option<Lag>,
    pub(super) sweep: Sweep,
    /// The changes that were told last, the newest first. None if that is not known.
    pub(super) latest: Option<Vec<Latest>>,
}

/// The last sweep of Gitea.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sweep {
    /// It could not be read.
    #[default]
    Unknown,
    /// There was none.
    Never,
    /// It was complete then.
    At(Timestamp),
}

impl Sweep {
    fn of(entry: Result<Option<Message>, ReadError>) -> Self {
        let Ok(entry) = entry else { return Self::Unknown };
        let Some(entry) = entry else { return Self::Never };
        match serde_json::from_slice::<Swept>(&entry.payload) {
            Ok(Swept { swept_at: Some(secs) }) => {
                Self::At(Timestamp::from_unix_micros(secs.saturating_mul(1_000_000)))
            }
            Ok(Swept { swept_at: None }) => Self::Never,
            Err(_) => Self::Unknown,
        }
    }
}

/// A change that was told.
#[derive(Clone, Debug)]
pub(super) struct Latest {
    pub(super) at: Timestamp,
    pub(super) change: Change,
}

impl Latest {
    fn of(message: Message) -> Option<Self> {
        let change = envelope::read_change(&message.payload).ok()?;
        Some(Self { at: message.time, change })
    }
}

/// What a stream holds.
#[derive(Clone, Debug)]
pub(super) struct StreamUse {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) limit: Option<u64>,
    pub(super) last: Timestamp,
}

impl StreamUse {
    fn of(name: &'static str, what: &'static str, info: &Info) -> Self {
        let last = info.state.last_timestamp.unix_timestamp_nanos() / 1_000;
        Self {
            name,
            what,
            messages: info.state.messages,
            bytes: info.state.bytes,
            limit: u64::try_from(info.config.max_bytes).ok().filter(|limit| *limit > 0),
            last: Timestamp::from_unix_micros(i64::try_from(last).unwrap_or(0)),
        }
    }

    /// How full it is, from 0 to 1. None without a limit.
    pub(super) fn full(&self) -> Option<f64> {
        self.limit.map(|limit| self.bytes as f64 / limit as f64)
    }
}

/// How far the workers are behind.
#[derive(Clone, Debug, Default)]
pub(super) struct Lag {
    pub(super) partitions: u8,
    pub(super) waiting: u64,
    pub(super) in_hand: u64,
    /// Partitions where something waits and no worker asks for it.
    pub(super) without_worker: u64,
}

/// What the sweeps keep, as far as it is shown.
#[derive(Deserialize)]
struct Swept {
    swept_at: Option<i64>,
}

impl Facts {
    /// Reads all of it. What cannot be read is left out, and `failed` says why.
    pub(in super::super) async fn read(peers: &Peers) -> Self {
        let reads = Reads::new(peers.broker(), PATIENCE);
        let mut facts = Self { connected: peers.broker().is_connected(), ..Self::default() };
        let infos = join_all(STREAMS.iter().map(|(name, _)| reads.info(name))).await;
        let (mut partitions, mut changes) = (None, Ok(None));
        for ((name, what), info) in STREAMS.iter().zip(infos) {
            match info {
                Ok(Some(info)) => {
                    if *name == names::EVENTS {
                        partitions = Some(Stored::of(&info.config).partitions);
                    }
                    if *name == names::CHANGES {
                        changes = Ok(Some(info.state.last_sequence));
                    }
                    facts.streams.push(StreamUse::of(name, what, &info));
                }
                Ok(None) => {}
                Err(error) => {
                    facts.failed = Some(error.to_string());
                    if *name == names::CHANGES {
                        changes = Err(error);
                    }
                }
            }
        }
        if let Some(partitions) = partitions {
            let consumers = join_all(partitions.all().map(|partition| reads.consumer(partition)));
            match consumers.await.into_iter().collect::<Result<Vec<_>, ReadError>>() {
                Ok(consumers) => {
                    let mut lag = Lag { partitions: partitions.count(), ..Lag::default() };
                    for info in consumers.into_iter().flatten() {
                        lag.waiting += info.num_pending;
                        lag.in_hand += info.num_ack_pending as u64;
                        let idle = info.num_waiting == 0 && info.num_ack_pending == 0;
                        lag.without_worker += u64::from(idle && info.num_pending > 0);
                    }
                    facts.lag = Some(lag);
                }
                Err(error) => facts.failed = Some(error.to_string()),
            }
        }
        // What fails otherwise was noted when the stream was asked for.
        if let Ok(found) = read_latest(&reads, changes).await {
            let is_known = found.cut_short.is_none() || !found.items.is_empty();
            facts.latest = is_known.then_some(found.items);
            facts.failed = found.cut_short.map(|error| error.to_string()).or(facts.failed);
        }
        // A user that may not read it has no part in sweeps, so that this is no failure.
        facts.sweep = Sweep::of(reads.entry(names::SYNC, "missed").await);
        facts
    }
}

/// The last changes, the newest first. `last` is the sequence of the last one, if there is a stream.
async fn read_latest(
    reads: &Reads,
    last: Result<Option<u64>, ReadError>,
) -> Result<Found<Latest>, ReadError> {
    let Some(last) = last? else { return Ok(Found::nothing()) };
    let stream = reads.stream(names::CHANGES).await?;
    let (low, high) = ((last + 1).saturating_sub(LATEST).max(1), last + 1);
    let mut found = reads.range(&stream, low, high, Latest::of).await;
    found.items.reverse();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_there_was_no_sweep_is_told_from_that_it_cannot_be_read() {
        let entry = |payload: &str| {
            Ok(Some(Message {
                sequence: 1,
                time: Timestamp::from_unix_micros(0),
                subject: String::new(),
                headers: Default::default(),
                payload: payload.to_owned().into(),
            }))
        };
        for (read, expected) in [
            (Err(ReadError::TooLate), Sweep::Unknown),
            (entry("{"), Sweep::Unknown),
            (Ok(None), Sweep::Never),
            (entry("{}"), Sweep::Never),
            (entry(r#"{"swept_at": 7}"#), Sweep::At(Timestamp::from_unix_micros(7_000_000))),
        ] {
            assert_eq!(Sweep::of(read), expected);
        }
    }
}
