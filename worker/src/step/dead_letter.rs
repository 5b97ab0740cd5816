//! Parking a message that cannot be handled, so that what is behind it goes on.

use async_nats::jetstream::{Message, context::PublishError};
use contract::{
    dead_letter::{self, History},
    names,
};
use service::broker::{Session, message::headers, refusal::Refusal};
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
    let history = History {
        error: error.to_owned(),
        attempts,
        stream: info.stream.to_owned(),
        sequence: info.stream_sequence,
    };
    let headers = headers(message.headers.as_ref());
    let letter = |payload| dead_letter::park(&message.subject, &headers, payload, &history);
    let parked = session.publish(letter(message.payload.to_vec()), names::DEAD_LETTERS).await;
    match parked {
        // The payload stays where it is for as long as its own stream keeps it. Without this the
        // partition would wait for a letter that never fits.
        Err(error) if Refusal::of(&error) == Refusal::TooLarge => {
            session.publish(letter(Vec::new()), names::DEAD_LETTERS).await?;
        }
        parked => drop(parked?),
    }
    Ok(())
}
