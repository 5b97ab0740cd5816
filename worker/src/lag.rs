//! How far the workers are behind, asked of the broker now and then.
//!
//! Pending and in hand, summed over the partitions; the ack floor of a
//! consumer is no measure of it.

use std::{sync::Arc, time::Duration};

use shared::{streams, subject::PARTITIONS};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::context::Context;

/// How often it is asked. Each costs the server some milliseconds for 64 consumers.
const INTERVAL: Duration = Duration::from_secs(10);

/// The same while it fails: at the start the consumers are not there yet.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps the gauge up to date until `stop`.
pub(crate) async fn watch(context: Arc<Context>, stop: CancellationToken) {
    loop {
        let measured = measure(&context).await;
        let wait = match &measured {
            Ok(events) => {
                context.instruments.lag(*events);
                INTERVAL
            }
            Err(error) => {
                debug!(error, "cannot measure the lag");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn measure(context: &Context) -> Result<u64, String> {
    let session = context.broker.session().ok_or("there is no connection")?;
    let stream = session.jetstream.get_stream_no_info(streams::EVENTS).await;
    let stream = stream.map_err(|error| error.to_string())?;
    let mut events = 0;
    for partition in 0..PARTITIONS {
        let info = stream.consumer_info(streams::consumer_name(partition)).await;
        let info = info.map_err(|error| error.to_string())?;
        events += info.num_pending + info.num_ack_pending as u64;
    }
    Ok(events)
}
