//! Consumes the changes: each says which issue to look at.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::jetstream::{Message, message::AckKind};
use contract::change::{Change, ChangeKind};
use service::{backoff::Backoff, broker::message, causes::Causes};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::{
    context::Context,
    look::{self, Cause},
    pull::Pull,
    store::StoreError,
};

/// Issues that are looked at at once.
const AT_ONCE: usize = 32;
/// Pauses before it starts over.
const PAUSE: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
/// How long a change waits after its issue could not be looked at.
const AGAIN: Duration = Duration::from_secs(1);

/// Consumes until the runner is to stop.
pub(crate) async fn run(context: Arc<Context>) {
    let mut pause = PAUSE;
    while !context.stop.is_cancelled() {
        let started = Instant::now();
        if let Err(error) = consume(&context, &mut pause).await {
            let error = context.broker.explain(started, error);
            context.warn_limited(&error, "changes cannot be consumed");
            context.look_up_again();
            tokio::select! {
                () = pause.wait() => {}
                () = context.stop.cancelled() => {}
            }
        }
    }
}

async fn consume(context: &Arc<Context>, pause: &mut Backoff) -> Result<(), String> {
    let session = tokio::select! {
        session = context.broker.connected() => session,
        () = context.stop.cancelled() => return Ok(()),
    };
    // The view is complete before an end is looked for in it.
    context.refresh().await.map_err(|error| Causes(&error).to_string())?;
    context.consumer().await.map_err(|error| Causes(&error).to_string())?;
    let mut pull = Pull::start(&session, context.stop.clone())
        .await
        .map_err(|error| Causes(&error).to_string())?;
    let (places, tasks) = (Arc::new(Semaphore::new(AT_ONCE)), TaskTracker::new());
    let consumed = loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { break Ok(()) };
        match pull.next().await {
            Ok(Some(message)) => {
                pause.reset();
                let context = Arc::clone(context);
                tasks.spawn(async move {
                    in_hand(&context, &message).await;
                    drop(place);
                });
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(Causes(&error).to_string()),
        }
    };
    tasks.close();
    tasks.wait().await;
    consumed
}

/// Looks at the issue of a change, and settles the message.
async fn in_hand(context: &Arc<Context>, message: &Message) {
    let sequence = message.info().map_or(0, |info| info.stream_sequence);
    let Ok(change) = serde_json::from_slice::<Change>(&message.payload) else {
        warn!(sequence, "a change cannot be read and is passed over");
        return settle(message, AckKind::Ack).await;
    };
    if change.kind == ChangeKind::Other {
        return settle(message, AckKind::Ack).await;
    }
    let traceparent = message::headers(message.headers.as_ref()).traceparent();
    let issue = (change.repository.id, change.issue.number);
    let cause = Cause {
        change: Arc::new(change),
        sequence,
        traceparent: traceparent.map(|context| context.to_string()),
        is_news: true,
    };
    let began = Instant::now();
    let kind = match look::at_issue(context, issue, Some(&cause)).await {
        Ok(()) => AckKind::Ack,
        Err(error) => {
            if !matches!(error, StoreError::NoConnection) {
                context.failed(began, &error, "an issue cannot be looked at");
            }
            AckKind::Nak(Some(AGAIN))
        }
    };
    settle(message, kind).await;
}

async fn settle(message: &Message, kind: AckKind) {
    // Without a connection it comes again.
    if let Err(error) = message.ack_with(kind).await {
        debug!(%error, "a change cannot be settled");
    }
}
