//! Compares the stream of events on the broker with what ingest needs, twice a minute.

use std::{sync::Arc, time::Duration};

use service::{
    broker::{Broker, streams::StreamsError},
    jobs::Job,
};
use thiserror::Error;

use crate::relay::Publisher;

/// At the start the relay looks at the stream. The interval bounds how long ingest publishes after
/// `create-streams` has begun to change the number of partitions.
pub(crate) const STANDING: Job = Job {
    name: "standing",
    interval: Duration::from_secs(30),
    retry: Duration::from_secs(5),
    jitter: 0.2,
    waits_at_first: true,
};

/// Why the stream could not be compared.
#[derive(Debug, Error)]
pub(crate) enum CheckError {
    #[error("there is no connection")]
    NoConnection,
    #[error(transparent)]
    Streams(#[from] StreamsError),
}

pub(crate) async fn check(broker: Broker, publisher: Arc<Publisher>) -> Result<(), CheckError> {
    let session = broker.session().ok_or(CheckError::NoConnection)?;
    Ok(publisher.check(&session).await?)
}
