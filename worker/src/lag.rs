//! The lag job: asks the broker how far the workers are behind.
//!
//! The lag is the number of messages pending and in hand, summed over the partitions. The ack floor
//! of a consumer does not measure it.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::context::{ConsumerInfoError, GetStreamError};
use contract::names::{EVENTS, consumer_name};
use service::jobs::Job;
use thiserror::Error;

use crate::context::Context;

/// Each run costs the server some milliseconds for all consumers. At the start the consumers do not
/// exist yet.
pub(crate) const LAG: Job = Job {
    name: "lag",
    interval: Duration::from_secs(10),
    retry: Duration::from_secs(1),
    jitter: 0.2,
    waits_at_first: false,
};

/// Why the lag is unknown.
#[derive(Debug, Error)]
pub(crate) enum LagError {
    #[error("there is no connection")]
    NoConnection,
    #[error("look up the stream of events")]
    Stream(#[from] GetStreamError),
    #[error("look up a consumer")]
    Consumer(#[from] ConsumerInfoError),
}

pub(crate) async fn measure(context: Arc<Context>) -> Result<(), LagError> {
    let session = context.broker.session().ok_or(LagError::NoConnection)?;
    let stream = session.jetstream.get_stream_no_info(EVENTS).await?;
    let mut events = 0;
    for partition in context.partitions().all() {
        let info = stream.consumer_info(consumer_name(partition)).await?;
        events += info.num_pending + info.num_ack_pending as u64;
    }
    context.instruments.lag(events);
    Ok(())
}
