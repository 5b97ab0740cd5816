//! Parking a message that cannot be handled, so that what is behind it goes on.

use async_nats::jetstream::{Message, context::PublishError, message::PublishMessage};
use shared::{
    broker::Session,
    dead_letter::{self, Reason},
    streams,
};
use thiserror::Error;

/// Why a message could not be parked.
#[derive(Debug, Error)]
pub(crate) enum ParkError {
    #[error("read where the message came from")]
    Origin(#[source] async_nats::Error),
    #[error("publish the dead letter")]
    Publish(#[from] PublishError),
}

/// Writes a message to the stream of dead letters. Returns once the broker has it.
pub(crate) async fn park(
    session: &Session,
    message: &Message,
    error: &str,
    attempts: u64,
) -> Result<(), ParkError> {
    let info = message.info().map_err(ParkError::Origin)?;
    let reason = Reason {
        error: error.to_owned(),
        attempts,
        stream: info.stream.to_owned(),
        sequence: info.stream_sequence,
    };
    let headers = message.headers.clone().unwrap_or_default();
    let letter = dead_letter::park(&message.subject, &headers, message.payload.to_vec(), &reason);
    let publish = PublishMessage::build()
        .payload(letter.payload.into())
        .headers(letter.headers)
        .expected_stream(streams::DEAD_LETTERS);
    session.jetstream.send_publish(letter.subject, publish).await?.await?;
    Ok(())
}
