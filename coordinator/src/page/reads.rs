//! What is read from streams and buckets, message by message: this needs no permission to create a
//! consumer. Every look has a time by which it ends.

mod message;
mod search;

use std::time::Duration;

use async_nats::jetstream::{
    ErrorCode,
    stream::{Info, LastRawMessageErrorKind, RawMessageErrorKind},
};
use contract::{issue_state, names};
use futures::StreamExt;
use service::{
    broker::{Broker, Session, streams::is_missing},
    causes::Causes,
};
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

/// A stream that is taken to be there.
pub(super) type Stream = async_nats::jetstream::stream::Stream<()>;

pub(super) use self::{message::Message, search::Found};

/// Why something could not be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(super) enum ReadError {
    #[error("there is no connection to NATS")]
    NoConnection,
    #[error("NATS did not answer in time")]
    TooLate,
    #[error("NATS: {0}")]
    Broker(String),
}

/// Reads until a deadline.
#[derive(Clone, Debug)]
pub(super) struct Reads {
    session: Option<Session>,
    until: Instant,
}

impl Reads {
    pub(super) fn new(broker: &Broker, patience: Duration) -> Self {
        Self { session: broker.session(), until: Instant::now() + patience }
    }

    fn session(&self) -> Result<&Session, ReadError> {
        self.session.as_ref().filter(|session| !session.is_over()).ok_or(ReadError::NoConnection)
    }

    async fn within<T>(&self, read: impl Future<Output = T>) -> Result<T, ReadError> {
        timeout_at(self.until, read).await.map_err(|_| ReadError::TooLate)
    }

    /// A stream that is taken to be there.
    pub(super) async fn stream(&self, name: &str) -> Result<Stream, ReadError> {
        let found = self.session()?.jetstream.get_stream_no_info(name).await;
        found.map_err(|error| ReadError::Broker(Causes(&error).to_string()))
    }

    /// Settings and state of a stream. None if it does not exist.
    pub(super) async fn info(&self, name: &str) -> Result<Option<Info>, ReadError> {
        match self.within(self.session()?.jetstream.get_stream(name)).await? {
            Ok(stream) => Ok(Some(stream.cached_info().clone())),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(ReadError::Broker(Causes(&error).to_string())),
        }
    }

    /// The message with this sequence.
    pub(super) async fn message(
        &self,
        stream: &Stream,
        sequence: u64,
    ) -> Result<Option<Message>, ReadError> {
        match self.within(stream.get_raw_message(sequence)).await? {
            Ok(message) => Ok(Some(Message::of(message))),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(ReadError::Broker(Causes(&error).to_string())),
        }
    }

    /// The first message on `subject`, which may have wildcards, from `sequence` on.
    pub(super) async fn next(
        &self,
        stream: &Stream,
        subject: &str,
        sequence: u64,
    ) -> Result<Option<Message>, ReadError> {
        let found = stream.get_first_raw_message_by_subject(subject, sequence.max(1));
        match self.within(found).await? {
            Ok(message) => Ok(Some(Message::of(message))),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(ReadError::Broker(Causes(&error).to_string())),
        }
    }

    /// The last message on `subject`. None also if there is no such stream.
    pub(super) async fn last(
        &self,
        stream: &Stream,
        subject: &str,
    ) -> Result<Option<Message>, ReadError> {
        match self.within(stream.get_last_raw_message_by_subject(subject)).await? {
            Ok(message) => Ok(Some(Message::of(message))),
            Err(error) if is_nothing_there(&error.kind()) => Ok(None),
            Err(error) => Err(ReadError::Broker(Causes(&error).to_string())),
        }
    }

    /// The first of a stream's subjects that match `filter` of which `find` makes something. It asks
    /// for the stream's info alone.
    pub(super) async fn find_subject<T>(
        &self,
        name: &str,
        filter: &str,
        find: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ReadError> {
        let stream = self.stream(name).await?;
        let look = async {
            let mut subjects = stream.info_with_subjects(filter).await?;
            while let Some(subject) = subjects.next().await {
                if let Some(found) = find(&subject?.0) {
                    return Ok(Some(found));
                }
            }
            Ok::<_, async_nats::jetstream::stream::InfoError>(None)
        };
        let found = self.within(look).await?;
        found.map_err(|error| ReadError::Broker(Causes(&error).to_string()))
    }

    /// Whether a stream has a message on `subject`. It asks for the stream's info alone.
    pub(super) async fn has_message(&self, name: &str, subject: &str) -> Result<bool, ReadError> {
        Ok(self.find_subject(name, subject, |_| Some(())).await?.is_some())
    }

    /// An entry of a bucket. None if it was deleted, or if there is no such bucket.
    pub(super) async fn entry(
        &self,
        bucket: &str,
        key: &str,
    ) -> Result<Option<Message>, ReadError> {
        let stream = self.stream(&format!("KV_{bucket}")).await?;
        let entry = self.last(&stream, &format!("$KV.{bucket}.{key}")).await?;
        Ok(entry.filter(|entry| entry.headers.get("KV-Operation").is_none()))
    }

    /// The entry of an issue.
    pub(super) async fn issue_entry(
        &self,
        repository_id: i64,
        number: u64,
    ) -> Result<Option<Message>, ReadError> {
        self.entry(names::ISSUE_STATE, &issue_state::key(repository_id, number)).await
    }

    /// How far the consumer of a partition is. None if there is none.
    pub(super) async fn consumer(
        &self,
        partition: u8,
    ) -> Result<Option<async_nats::jetstream::consumer::Info>, ReadError> {
        use async_nats::jetstream::context::ConsumerInfoErrorKind;

        let stream = self.stream(names::EVENTS).await?;
        match self.within(stream.consumer_info(names::consumer_name(partition))).await? {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(None),
            Err(error) => Err(ReadError::Broker(Causes(&error).to_string())),
        }
    }

    /// Removes a message. One that is not there counts as removed.
    pub(super) async fn delete(&self, stream: &str, sequence: u64) -> Result<(), ReadError> {
        use async_nats::jetstream::stream::DeleteMessageErrorKind;

        let stream = self.stream(stream).await?;
        let Err(error) = self.within(stream.delete_message(sequence)).await? else {
            return Ok(());
        };
        match error.kind() {
            DeleteMessageErrorKind::TimedOut => Err(ReadError::TooLate),
            // It says the same where the message is not there.
            _ if self.message(&stream, sequence).await?.is_none() => Ok(()),
            _ => Err(ReadError::Broker(Causes(&error).to_string())),
        }
    }

    /// Whether this user may remove messages: no stream has a message 0, and a user that may not is
    /// not answered.
    pub(super) async fn may_delete(&self, stream: &str) -> bool {
        let Ok(stream) = self.stream(stream).await else { return false };
        match self.within(stream.delete_message(0)).await {
            Ok(Err(error)) => {
                error.kind() != async_nats::jetstream::stream::DeleteMessageErrorKind::TimedOut
            }
            Ok(Ok(_)) => true,
            Err(_) => false,
        }
    }
}

/// Whether there is no such message, or not even the stream.
fn is_nothing_there(kind: &LastRawMessageErrorKind) -> bool {
    match kind {
        LastRawMessageErrorKind::NoMessageFound => true,
        LastRawMessageErrorKind::JetStream(error) => {
            error.error_code() == ErrorCode::STREAM_NOT_FOUND
        }
        _ => false,
    }
}
