//! Publishes dead letters again.

use async_nats::jetstream::{
    context::{GetStreamError, PublishError},
    message::StreamMessage,
    stream::{RawMessageError, RawMessageErrorKind},
};
use contract::{
    dead_letter::{self, RedriveError},
    names,
};
use thiserror::Error;

use super::{Session, message::headers, repartition::Stored};

/// A dead letter that was published again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redriven {
    /// Subject of its event.
    pub subject: String,
    /// Its new sequence in the stream of events.
    pub sequence: u64,
}

/// Why a dead letter is not read or not published again.
#[derive(Debug, Error)]
pub enum DeadLetterError {
    /// There is none with this sequence.
    #[error("there is no dead letter {0}")]
    NotThere(u64),
    /// It cannot be read.
    #[error("read dead letter {0}")]
    Read(u64, #[source] RawMessageError),
    /// The stream of events cannot be looked up.
    #[error("look up the stream of events")]
    Events(#[source] GetStreamError),
    /// The number of partitions is changing.
    #[error("the stream of events has {0}; redrive once that is done")]
    Changing(String),
    /// It is no event, and is left where it is.
    #[error("dead letter {0} is not published again")]
    Refused(u64, #[source] RedriveError),
    /// The broker does not take it.
    #[error("publish dead letter {0} on {1}")]
    Publish(u64, String, #[source] PublishError),
}

/// Reads a dead letter.
///
/// # Errors
/// If there is none with this sequence, or if it cannot be read.
pub async fn message(session: &Session, sequence: u64) -> Result<StreamMessage, DeadLetterError> {
    let read = async {
        let stream = session.jetstream.get_stream_no_info(names::DEAD_LETTERS).await;
        // The name is a good one, which is all that can be wrong.
        let stream = stream.map_err(|_| RawMessageErrorKind::Other)?;
        stream.get_raw_message(sequence).await
    };
    read.await.map_err(|error: RawMessageError| match error.kind() {
        RawMessageErrorKind::NoMessageFound => DeadLetterError::NotThere(sequence),
        _ => DeadLetterError::Read(sequence, error),
    })
}

/// Publishes a dead letter on its original subject, and leaves it in its stream. Doing so again
/// stores nothing new while the stream remembers the message id, which is the same.
///
/// # Errors
/// The step that failed.
pub async fn redrive(session: &Session, sequence: u64) -> Result<Redriven, DeadLetterError> {
    let dead = message(session, sequence).await?;
    let events = session.jetstream.get_stream(names::EVENTS).await;
    let stored = Stored::of(&events.map_err(DeadLetterError::Events)?.cached_info().config);
    if stored.next.is_some() {
        return Err(DeadLetterError::Changing(stored.to_string()));
    }
    let (headers, payload) = (headers(Some(&dead.headers)), dead.payload.to_vec());
    let envelope = dead_letter::redrive(&headers, payload, sequence, stored.partitions)
        .map_err(|error| DeadLetterError::Refused(sequence, error))?;
    let subject = envelope.subject.clone();
    let ack = session.publish(envelope, names::EVENTS).await;
    let ack = ack.map_err(|e| DeadLetterError::Publish(sequence, subject.clone(), e))?;
    Ok(Redriven { subject, sequence: ack.sequence })
}
