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
    jetstream::{Message, message::AckKind},
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

use super::pull::{Pull, PullError};
use crate::{
    context::Context,
    issue::state::IssueStates,
    step::{
        process::{self, Processed},
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
    let mut partition = Partition { number: partition, states: IssueStates::default(), last: None };
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
        // A failure can meet all partitions at once, so only partition 0 logs it as a warning.
        if partition.number == 0 {
            warn!(error, "cannot consume, starting over");
        } else {
            debug!(error, partition = partition.number, "cannot consume, starting over");
        }
        pause.wait().await;
    }
}

/// State of a partition that outlives a connection.
struct Partition {
    number: u8,
    states: IssueStates,
    /// Reply subject that settles the last message received.
    last: Option<Subject>,
}

#[derive(Debug, Error)]
enum ConsumeError {
    #[error("prepare streams and consumers")]
    Prepare(#[from] Arc<StreamsError>),
    #[error("hand back the last message")]
    HandBack(#[source] async_nats::PublishError),
    #[error("pull messages")]
    Pull(#[from] PullError),
}

/// Handles one message after the other. Ok once `stop` is cancelled.
async fn consume(
    context: &Context,
    session: &Session,
    partition: &mut Partition,
    stop: &CancellationToken,
) -> Result<(), ConsumeError> {
    let store = context.prepare(session, partition.number).await?;
    partition.states.start_over(store);
    if let Some(last) = partition.last.take() {
        // The message that was in hand when the connection was lost may be unsettled. A nak
        // redelivers it at once. If it is already settled, the nak has no effect.
        let back = session.client.publish(last, AckKind::Nak(None).into()).await;
        back.map_err(ConsumeError::HandBack)?;
    }
    let mut pull = Pull::start(session, partition.number, stop.clone()).await?;
    let _consuming = context.consuming();
    while let Some(message) = pull.next().await? {
        partition.last.clone_from(&message.reply);
        let span = process::span(&message);
        async {
            let processed = in_hand(context, session, &mut partition.states, &message).await;
            settle::settle(context, session, &message, processed).await;
        }
        .instrument(span)
        .await;
    }
    Ok(())
}

/// Processes a message. While that takes long, it reports progress to the server.
async fn in_hand(
    context: &Context,
    session: &Session,
    states: &mut IssueStates,
    message: &Message,
) -> Processed {
    let work = process::process(context, session, states, message);
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            processed = &mut work => return processed,
            () = tokio::time::sleep(context.ack_wait / 3) => {
                if let Err(error) = message.ack_with(AckKind::Progress).await {
                    debug!(%error, "cannot report progress");
                }
            }
        }
    }
}
