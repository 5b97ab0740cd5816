//! Answers what other processes ask an ingest: what its journal holds of a delivery. It also
//! publishes an event once more where an operator asks for it.

use std::sync::{Arc, Mutex, PoisonError};

use contract::timestamp::Timestamp;
use futures::future::BoxFuture;
use service::{
    broker::dead_letters,
    causes::Causes,
    peers::{Journaled, Question, Reply, Responder},
};
use tracing::{error, info};
use uuid::Uuid;

use crate::{
    journal::{Content, Entry, Journal, JournalError, JournalReader, blocking},
    relay::{NO_CONNECTION, Publisher, event},
};

/// A minute of the clock in microseconds. A delivery is published once more only once in each, since
/// whoever asks twice means it once.
const MINUTE: i64 = 60_000_000;

/// What the journal and the broker know.
pub(crate) struct Answers {
    journal: Journal,
    publisher: Arc<Publisher>,
    /// Opened by the first question. One question at a time reads.
    reader: Arc<Mutex<Option<JournalReader>>>,
}

/// An entry, and why it was set aside, if it was.
type Found = (Entry, Option<String>);

impl Answers {
    pub(crate) fn new(journal: Journal, publisher: Arc<Publisher>) -> Self {
        Self { journal, publisher, reader: Arc::default() }
    }

    /// Looks for a delivery, and does `then` with it on a thread that may block.
    async fn find<T: Send + 'static>(
        &self,
        id: Uuid,
        then: impl FnOnce(Found) -> T + Send + 'static,
    ) -> Result<Option<T>, JournalError> {
        let (journal, reader) = (self.journal.clone(), Arc::clone(&self.reader));
        blocking(move || {
            let sequences = journal.sequences(id);
            if sequences.is_empty() {
                return Ok(None);
            }
            let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
            let reader = match &mut *reader {
                Some(reader) => reader,
                none => none.insert(journal.open_reader()?),
            };
            Ok(reader.find(&sequences, id)?.map(then))
        })
        .await
    }

    async fn delivery(&self, id: Uuid, payload: bool) -> Result<Reply, JournalError> {
        let (publisher, window) = (Arc::clone(&self.publisher), Arc::clone(self.journal.window()));
        let journaled = self.find(id, move |(mut entry, set_aside)| {
            let text = match &entry.content {
                Content::Text(text) if payload => Some(String::from_utf8_lossy(text).into_owned()),
                _ => None,
            };
            let event = event(&mut entry).ok();
            Box::new(Journaled {
                received_at: entry.delivery.received_at,
                hook: entry.delivery.hook,
                published: set_aside.is_none() && window.is_settled(entry.seq),
                set_aside,
                subject: event.as_ref().map(|event| publisher.subject_of(event)),
                event: event.map(Box::new),
                payload: text,
            })
        });
        Ok(Reply::Delivery(journaled.await?))
    }

    /// Publishes the event of a delivery once more. One that waits to be published is not: what
    /// waits before it comes first.
    async fn redeliver(&self, id: Uuid) -> Result<Reply, JournalError> {
        let Some((entry, set_aside)) = self.find(id, |found| found).await? else {
            return Ok(refused("the journal does not hold this delivery"));
        };
        if set_aside.is_none() && !self.journal.window().is_settled(entry.seq) {
            return Ok(refused("it is not published yet, and will be"));
        }
        let message_id = again(id, Timestamp::now());
        Ok(match self.publisher.publish_again(entry, message_id).await {
            Ok((subject, sequence)) => {
                info!(gitea.delivery.id = %id, subject, sequence, "published once more, as asked for");
                Reply::Published { subject, sequence }
            }
            Err(reason) => Reply::Refused(reason),
        })
    }

    async fn redrive(&self, sequence: u64) -> Reply {
        let Some(session) = self.publisher.session() else { return refused(NO_CONNECTION) };
        match dead_letters::redrive(&session, sequence).await {
            Ok(redriven) => {
                let (subject, stored_as) = (&redriven.subject, redriven.sequence);
                info!(sequence, subject, stored_as, "dead letter published again, as asked for");
                Reply::Published { subject: redriven.subject, sequence: redriven.sequence }
            }
            Err(error) => Reply::Refused(Causes(&error).to_string()),
        }
    }
}

/// The message id under which a delivery is published once more.
fn again(id: Uuid, now: Timestamp) -> String {
    format!("{id}#again-{}", now.unix_micros() / MINUTE)
}

fn refused(reason: &str) -> Reply {
    Reply::Refused(reason.into())
}

impl Responder for Answers {
    fn answer(&self, question: Question) -> BoxFuture<'_, Option<Reply>> {
        Box::pin(async move {
            let reply = match question {
                Question::Delivery { id, payload } => self.delivery(id, payload).await,
                Question::Redeliver { id } => self.redeliver(id).await,
                Question::Redrive { sequence } => Ok(self.redrive(sequence).await),
                _ => return None,
            };
            Some(reply.unwrap_or_else(|error| {
                error!(error = %Causes(&error), "cannot look a delivery up in the journal");
                refused("the journal cannot be read")
            }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_twice_in_one_minute_of_the_clock_is_asking_once() {
        let id = Uuid::from_u128(1);
        let at = |secs: i64| again(id, Timestamp::from_unix_micros(secs * 1_000_000));
        assert_eq!(at(60), at(119));
        assert_ne!(at(119), at(120));
        assert!(at(0).starts_with(&id.to_string()));
    }
}
