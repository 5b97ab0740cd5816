//! Compares what stands on the broker with what the worker needs: every minute, and when something
//! failed that may be missing there.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use service::{backoff::Backoff, jobs::Job};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::context::Context;

/// Each run costs the server some milliseconds for all consumers. While something is unfit, it runs
/// again soon, so that a repair shows.
pub(crate) const STANDING: Job = Job {
    name: "standing",
    interval: Duration::from_secs(60),
    retry: Duration::from_secs(2),
    jitter: 0.2,
    waits_at_first: false,
};

/// Pauses between looks after failures. A failure may have another cause, and last.
const PAUSE: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// Time without a failure after which the next one is looked into at once.
const QUIET: Duration = Duration::from_secs(5);

/// Why not all is as needed.
#[derive(Debug, Error)]
pub(crate) enum CheckError {
    #[error("there is no connection")]
    NoConnection,
    #[error("{0}")]
    Unfit(String),
}

pub(crate) async fn check(context: Arc<Context>) -> Result<(), CheckError> {
    let session = context.broker.session().ok_or(CheckError::NoConnection)?;
    context.check(&session).await;
    let unfit = context.findings.unfit();
    if unfit.is_empty() { Ok(()) } else { Err(CheckError::Unfit(unfit.join("; "))) }
}

/// Checks when a session suspects that something is missing, until `stop`.
pub(crate) async fn check_on_suspicion(context: Arc<Context>, stop: CancellationToken) {
    let mut pause = PAUSE;
    loop {
        let calm_since = Instant::now();
        tokio::select! {
            () = context.broker.suspected() => {}
            () = stop.cancelled() => return,
        }
        if calm_since.elapsed() > QUIET {
            pause.reset();
        }
        if let Some(session) = context.broker.session() {
            context.check(&session).await;
        }
        tokio::select! {
            () = pause.wait() => {}
            () = stop.cancelled() => return,
        }
    }
}
