//! The storage job: asks the broker how much of their limits the streams and the bucket use.
//!
//! A stream of events that is full refuses events, and a bucket that is full takes no decision.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::context::GetStreamError;
use contract::names::ISSUE_STATE;
use service::jobs::Job;
use thiserror::Error;

use crate::{context::Context, instruments::STREAMS};

/// A flood fills a stream within minutes. At the start the streams do not exist yet.
pub(crate) const STORAGE: Job = Job {
    name: "storage",
    interval: Duration::from_secs(10),
    retry: Duration::from_secs(1),
    jitter: 0.2,
    waits_at_first: false,
};

/// Why it is unknown.
#[derive(Debug, Error)]
pub(crate) enum StorageError {
    #[error("there is no connection")]
    NoConnection,
    #[error("look up stream {0}")]
    Stream(String, #[source] GetStreamError),
}

pub(crate) async fn measure(context: Arc<Context>) -> Result<(), StorageError> {
    let session = context.broker.session().ok_or(StorageError::NoConnection)?;
    for (n, name) in STREAMS.iter().enumerate() {
        let stream = if *name == ISSUE_STATE { format!("KV_{name}") } else { (*name).to_owned() };
        let found = session.jetstream.get_stream(&stream).await;
        let found = found.map_err(|error| StorageError::Stream(stream, error))?;
        let info = found.cached_info();
        let limit = u64::try_from(info.config.max_bytes).ok().filter(|limit| *limit > 0);
        context.instruments.storage(n, info.state.bytes, limit);
    }
    Ok(())
}
