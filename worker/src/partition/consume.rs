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

/// Pauses before a partition starts over. Without them, a server that elects a leader is flooded with
/// requests. They grow while nothing can be prepared.
const PAUSE: Backoff = Backoff::new(Duration::from_millis(600), Duration::from_secs(5));

/// Consumes all partitions until `stop`. Dropping the future ends them all.
pub(crate) async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    let mut partitions = HashMap::new();
    let start = |tasks: &mut JoinSet<()>, partitions: &mut HashMap<_, _>, partition| {
        let task = partition_until(Arc::clone(&context), partition, stop.clone());
        partitions.insert(tasks.spawn(task).id(), partition);
    };
    for partition in context.partitions().all() {
        start(&mut tasks, &mut partitions, partition);
    }
    while let Some(ended) = tasks.join_next_with_id().await {
        let Err(error) = ended else { continue };
        // The message is redelivered. If the message causes the panic, it is parked in the end.
        let Some(partition) = partitions.remove(&error.id()) else { continue };
        // The text of a panic may hold a payload.
        let panicked = error.is_panic();
        error!(panicked, partition, "a partition ended, starting it over");
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
        if !matches!(error, ConsumeError::Prepare(_)) {
            pause.reset();
        }
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
    /// Number of the attempt at it, if that counts.
    begun: Option<u64>,
    /// When it was in hand for sure. Later it may have been given to another worker.
    held: Instant,
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
    hand_back(context, session, &store, partition).await?;
    let affinity = context.affinity(partition.number);
    let mut pull = Pull::start(session, partition.number, affinity, stop.clone()).await?;
    let _consuming = context.consuming();
    while let Some(message) = pull.next().await? {
        let mut begun = None;
        let span = process::span(&message);
        let in_hand = in_hand(context, session, &store, partition, (&message, &mut begun), stop);
        if let Err(Unfinished) = in_hand.instrument(span).await {
            let sequence = message.info().map_or(0, |info| info.stream_sequence);
            let id = process::message_id(&message, sequence);
            let (reply, held) = (message.reply.clone(), Instant::now());
            partition.unsettled = reply.map(|reply| Unsettled { message: id, begun, held, reply });
            if !stop.is_cancelled() {
                return Err(ConsumeError::Unfinished);
            }
            hand_back(context, session, &store, partition).await?;
        }
    }
    Ok(())
}

/// Hands back the message that was in hand, so that it is redelivered at once. What ended the attempt
/// was not the event, so it does not count.
async fn hand_back(
    context: &Context,
    session: &Session,
    store: &kv::Store,
    partition: &mut Partition,
) -> Result<(), ConsumeError> {
    let Some(Unsettled { message, begun, held, reply }) = &partition.unsettled else {
        return Ok(());
    };
    if let Some(number) = begun {
        attempts::forgive(store, partition.number, message, *number).await?;
    }
    // After the ack wait another worker may have it in hand, and would get it a second time.
    if held.elapsed() < context.ack_wait {
        let back = session.client.publish(reply.clone(), AckKind::Nak(None).into()).await;
        back.map_err(ConsumeError::HandBack)?;
    }
    partition.unsettled = None;
    Ok(())
}

/// Processes and settles a message. While that takes long, it reports progress to the server.
async fn in_hand(
    context: &Context,
    session: &Session,
    store: &kv::Store,
    partition: &mut Partition,
    (message, begun): (&Message, &mut Option<u64>),
    stop: &CancellationToken,
) -> Result<(), Unfinished> {
    let number = partition.number;
    let work = async {
        let (place, taken) = ((number, &mut partition.memory), (message, begun));
        let processed = process::process(context, session, store, place, taken, stop).await?;
        settle::settle(context, session, number, message, &processed, stop).await
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
