//! The consumers of the partitions: edited and deleted by hand, and how they must be in the end.
//!
//! What a consumer must be like stands here a second time, and not taken from the product.

use std::{
    fmt,
    time::{Duration, Instant},
};

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, Config},
    context::ConsumerInfoErrorKind,
};
use contract::partitions::Partitions;
use fastrand::Rng;
use futures::future::join_all;

use crate::servers::EVENTS;

/// A worker looks after its consumers every minute.
const PATIENCE: Duration = Duration::from_secs(90);

/// An edit that someone may do with the `nats` command.
///
/// None lets two messages of a partition out at once, or takes another filter: that breaks the order
/// before any worker can notice.
#[derive(Clone, Copy, Debug)]
pub enum Edit {
    /// After how many milliseconds a message is redelivered.
    AckWait(u64),
    /// After how many deliveries a message is given up.
    MaxDeliver(i64),
    /// The description, which workers have no opinion on.
    Description(u32),
    /// How many requests may wait, which workers have no opinion on.
    MaxWaiting(i64),
}

impl Edit {
    /// Draws one.
    pub fn draw(rng: &mut Rng) -> Self {
        match rng.u8(..6) {
            // Both shorter and longer than what workers expect.
            0..=2 => Self::AckWait(*rng.choice(&[300, 700, 1500, 5000, 15_000]).expect("some")),
            3 => Self::MaxDeliver(50),
            4 => Self::Description(rng.u32(..)),
            _ => Self::MaxWaiting(rng.i64(64..2048)),
        }
    }

    /// Does it to the consumer of a partition. False if there is none, or if a worker was
    /// faster.
    pub async fn apply(self, js: &jetstream::Context, partition: u8) -> Result<bool, String> {
        let stream = js.get_stream(EVENTS).await.map_err(|error| error.to_string())?;
        let mut config = match stream.consumer_info(name(partition)).await {
            Ok(info) => info.config,
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error.to_string()),
        };
        match self {
            Self::AckWait(millis) => config.ack_wait = Duration::from_millis(millis),
            Self::MaxDeliver(times) => config.max_deliver = times,
            Self::Description(number) => config.description = Some(format!("edited: {number}")),
            Self::MaxWaiting(requests) => {
                config.max_waiting = requests;
                // The server takes this for a new consumer only.
                delete(js, partition).await?;
            }
        }
        match stream.create_consumer(config).await {
            Ok(_) => Ok(true),
            // A worker has made the consumer again first.
            Err(error) if error.to_string().contains("can not be updated") => Ok(false),
            Err(error) => Err(format!("edit consumer {partition}: {error}")),
        }
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AckWait(millis) => write!(f, "ack_wait {millis} ms"),
            Self::MaxDeliver(times) => write!(f, "max_deliver {times}"),
            Self::Description(_) => write!(f, "description"),
            Self::MaxWaiting(requests) => write!(f, "max_waiting {requests}"),
        }
    }
}

/// Deletes the consumer of a partition. False if there is none.
pub async fn delete(js: &jetstream::Context, partition: u8) -> Result<bool, String> {
    let stream = js.get_stream(EVENTS).await.map_err(|error| error.to_string())?;
    match stream.consumer_info(name(partition)).await {
        Ok(_) => {}
        Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error.to_string()),
    }
    let deleted = stream.delete_consumer(&name(partition)).await;
    deleted.map(|_| true).map_err(|error| format!("delete consumer {partition}: {error}"))
}

/// How many messages are in hand, and how many of them were delivered before. None if the broker
/// does not say so of all partitions.
pub async fn in_hand(js: &jetstream::Context) -> Option<(usize, usize)> {
    let stream = js.get_stream(EVENTS).await.ok()?;
    let infos = (Partitions::DEFAULT.all()).map(|partition| stream.consumer_info(name(partition)));
    let mut sum = (0, 0);
    for info in join_all(infos).await {
        let info = info.ok()?;
        sum = (sum.0 + info.num_ack_pending, sum.1 + info.num_redelivered);
    }
    Some(sum)
}

/// Waits until all consumers are as workers need them. Err with those that are not.
pub async fn put_right(js: &jetstream::Context, ack_wait: Duration) -> Result<(), String> {
    let started = Instant::now();
    loop {
        let wrong = wrong(js, ack_wait).await;
        if wrong.is_empty() {
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            let count = wrong.len();
            return Err(format!("{count} consumers are not put right: {}", wrong.join("; ")));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn wrong(js: &jetstream::Context, ack_wait: Duration) -> Vec<String> {
    let stream = match js.get_stream(EVENTS).await {
        Ok(stream) => stream,
        Err(error) => return vec![error.to_string()],
    };
    let mut wrong = Vec::new();
    for partition in Partitions::DEFAULT.all() {
        match stream.consumer_info(name(partition)).await {
            Ok(info) => wrong.extend(difference(&info.config, partition, ack_wait)),
            Err(error) => wrong.push(format!("partition {partition}: {error}")),
        }
    }
    wrong
}

fn difference(config: &Config, partition: u8, ack_wait: Duration) -> Option<String> {
    let filter = format!("gitea.issues.*.*.*.*.{partition}");
    let is_right = config.max_deliver == -1
        && config.max_ack_pending == 1
        && config.ack_policy == AckPolicy::Explicit
        && config.ack_wait == ack_wait
        && config.filter_subject == filter
        && config.filter_subjects.is_empty();
    (!is_right).then(|| {
        format!(
            "partition {partition}: max_deliver {}, max_ack_pending {}, {:?} acks, ack_wait {:?}, filter {:?} {:?}",
            config.max_deliver,
            config.max_ack_pending,
            config.ack_policy,
            config.ack_wait,
            config.filter_subject,
            config.filter_subjects,
        )
    })
}

fn name(partition: u8) -> String {
    format!("worker-{partition:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_that_is_not_as_needed_is_found() {
        let ack_wait = Duration::from_secs(2);
        let right = Config {
            filter_subject: "gitea.issues.*.*.*.*.7".into(),
            ack_policy: AckPolicy::Explicit,
            max_deliver: -1,
            max_ack_pending: 1,
            ack_wait,
            ..Config::default()
        };
        let found = |edit: fn(&mut Config)| {
            let mut config = right.clone();
            edit(&mut config);
            difference(&config, 7, ack_wait).is_some()
        };
        assert!(!found(|_| {}));
        assert!(!found(|config| config.description = Some("edited".into())));
        assert!(!found(|config| config.max_waiting = 64));
        assert!(found(|config| config.max_deliver = 50));
        assert!(found(|config| config.max_ack_pending = 2));
        assert!(found(|config| config.ack_policy = AckPolicy::All));
        assert!(found(|config| config.ack_wait = Duration::from_secs(5)));
        assert!(found(|config| config.filter_subject = "gitea.issues.>".into()));
        assert!(found(|config| config.filter_subjects = vec!["gitea.issues.>".into()]));
    }
}
