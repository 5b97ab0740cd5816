//! Consumes all partitions at once, with at most one message of each in hand.
//!
//! The server keeps the order per issue (`max_ack_pending: 1`). The worker only has to start over
//! when the messages of a partition end.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{
    Subject,
    jetstream::{Message, kv, message::AckKind},
};
use contract::names::PARTITIONS;
use service::{
    backoff::Backoff,
    broker::{Session, streams::StreamsError},
    causes::Causes,
};
use thiserror::Error;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, warn};

use super::{
    attempts::{self, AttemptsError},
    pull::{Pull, PullError},
};
use crate::{
    context::Context,
    issue::{memory::Memory, state::MessageId},
    step::{
        process::{self, Unfinished},
        settle,
    },
};

/// Pause before a partition starts over. Without it, a server that elects a leader is flooded with
/// requests.
const PAUSE: Backoff = Backoff::new(Duration::from_millis(600), Duration::from_millis(600));

/// Consumes all partitions until `stop`. Dropping the future ends them all.
pub(crate) async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    let mut partitions = HashMap::new();
    let start = |tasks: &mut JoinSet<()>, partitions: &mut HashMap<_, _>, partition| {
        let task = partition_until(Arc::clone(&context), partition, stop.clone());
        partitions.insert(tasks.spawn(task).id(), partition);
    };
    for partition in 0..PARTITIONS {
        start(&mut tasks, &mut partitions, partition);
    }
    while let Some(ended) = tasks.join_next_with_id().await {
        let Err(error) = ended else { continue };
        // The message is redelivered. If the message causes the panic, it is parked in the end.
        let Some(partition) = partitions.remove(&error.id()) else { continue };
        error!(%error, partition, "a handler panicked, starting the partition over");
        start(&mut tasks, &mut partitions, partition);
    }
}

async fn partition_until(context: Arc<Context>, partition: u8, stop: CancellationToken) {
    let mut partition = Partition { number: partition, memory: Memory::default(), unsettled: None };
    let mut pause = PAUSE;
    while !stop.is_cancelled() {
        let started = Instant::now();
        let consumed = tokio::select! {
            session = context.broker.connected() => {
                consume(&context, &session, &mut partition, &stop).await
            }
            () = stop.cancelled() => return,
        };
        let Err(error) = consumed else { continue };
        let error = context.broker.explain(started, Causes(&error).to_string());
        if let Some(line) = context.failures.line(&error) {
            let (number, left_out) = (partition.number, line.left_out);
            warn!(error, partition = number, left_out, "cannot consume, starting over");
        }
        pause.wait().await;
    }
}

/// State of a partition that outlives a connection.
pub(crate) struct Partition {
    pub(crate) number: u8,
    pub(crate) memory: Memory,
    /// The message in hand.
    unsettled: Option<Unsettled>,
}

struct Unsettled {
    message: MessageId,
    /// Reply subject that settles it.
    reply: Subject,
}

#[derive(Debug, Error)]
enum ConsumeError {
    #[error("prepare streams and consumers")]
    Prepare(#[from] Arc<StreamsError>),
    #[error("take back an attempt that does not count")]
    Forgive(#[from] AttemptsError),
    #[error("hand back the last message")]
    HandBack(#[source] async_nats::PublishError),
    #[error("pull messages")]
    Pull(#[from] PullError),
    #[error("the message in hand could not be finished")]
    Unfinished,
}

/// Handles one message after the other. Ok once `stop` is cancelled.
async fn consume(
    context: &Context,
    session: &Session,
    partition: &mut Partition,
    stop: &CancellationToken,
) -> Result<(), ConsumeError> {
    let store = context.prepare(session, partition.number).await?;
    partition.memory.clear();
    hand_back(session, &store, partition).await?;
    let affinity = context.affinity(partition.number);
    let mut pull = Pull::start(session, partition.number, affinity, stop.clone()).await?;
    let _consuming = context.consuming();
    while let Some(message) = pull.next().await? {
        let sequence = message.info().map_or(0, |info| info.stream_sequence);
        partition.unsettled = message
            .reply
            .clone()
            .map(|reply| Unsettled { message: process::message_id(&message, sequence), reply });
        let span = process::span(&message);
        let in_hand = in_hand(context, session, &store, partition, &message, stop);
        let finished = in_hand.instrument(span).await;
        match finished {
            Ok(()) => partition.unsettled = None,
            Err(Unfinished) if stop.is_cancelled() => {
                hand_back(session, &store, partition).await?;
            }
            Err(Unfinished) => return Err(ConsumeError::Unfinished),
        }
    }
    Ok(())
}

/// Hands back the message that was in hand, so that it is redelivered at once. If it is settled
/// already, this has no effect. What ended the attempt was not the event.
async fn hand_back(
    session: &Session,
    store: &kv::Store,
    partition: &mut Partition,
) -> Result<(), ConsumeError> {
    let Some(Unsettled { message, reply }) = &partition.unsettled else { return Ok(()) };
    attempts::forgive(store, partition.number, message).await?;
    let back = session.client.publish(reply.clone(), AckKind::Nak(None).into()).await;
    back.map_err(ConsumeError::HandBack)?;
    partition.unsettled = None;
    Ok(())
}

/// Processes and settles a message. While that takes long, it reports progress to the server.
async fn in_hand(
    context: &Context,
    session: &Session,
    store: &kv::Store,
    partition: &mut Partition,
    message: &Message,
    stop: &CancellationToken,
) -> Result<(), Unfinished> {
    let work = async {
        let processed = process::process(context, session, store, partition, message, stop).await?;
        settle::settle(context, session, message, &processed, stop).await
    };
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            finished = &mut work => return finished,
            () = tokio::time::sleep(context.ack_wait / 3) => {
                if let Err(error) = message.ack_with(AckKind::Progress).await {
                    debug!(%error, "cannot report progress");
                }
            }
        }
    }
}
