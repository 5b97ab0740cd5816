//! Parks a message that cannot be handled, so that the messages behind it continue.

use async_nats::jetstream::{Message, context::PublishError};
use contract::{
    dead_letter::{self, History},
    envelope::Headers,
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

/// Publishes a message to the stream of dead letters. Returns once the broker has confirmed it.
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
    let letter = |headers: &Headers, payload| {
        dead_letter::park(&message.subject, headers, payload, &history)
    };
    // A dead letter that the broker never accepts would block its partition. So it is tried again
    // without the payload, and then without the headers. The payload stays in its own stream for as
    // long as that stream keeps it.
    let mut letters = [
        letter(&headers, message.payload.to_vec()),
        letter(&headers, Vec::new()),
        letter(&Headers::default(), Vec::new()),
    ]
    .into_iter()
    .peekable();
    while let Some(letter) = letters.next() {
        match session.publish(letter, names::DEAD_LETTERS).await {
            Err(error) if Refusal::of(&error).is_for_good() && letters.peek().is_some() => {}
            parked => return Ok(parked.map(drop)?),
        }
    }
    Ok(())
}
