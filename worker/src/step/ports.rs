//! The ports of an attempt on the real broker.

use std::time::Duration;

use async_nats::jetstream::{kv, stream::LastRawMessageErrorKind};
use contract::{change::Change, envelope::MESSAGE_ID, names::CHANGES, subject};
use service::broker::{Session, refusal::Refusal};

use super::attempt::{Failure, Last, Ports, Sent, Written};
use crate::{
    context::Context,
    handlers,
    issue::{
        bucket::{self, BucketError},
        memory::Entry,
        state::IssueState,
    },
};

/// What an attempt needs of the broker, for one issue.
pub(crate) struct BrokerPorts<'a> {
    pub(crate) context: &'a Context,
    pub(crate) session: &'a Session,
    pub(crate) store: &'a kv::Store,
    pub(crate) key: &'a str,
}

impl BrokerPorts<'_> {
    /// Half of the dedup window: a decision that is younger is published again without harm.
    fn old_after(&self) -> Duration {
        self.context.dedup_window / 2
    }
}

fn away(error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::Away(Box::new(error))
}

impl Ports for BrokerPorts<'_> {
    async fn read(&mut self) -> Result<Entry, Failure> {
        match bucket::read(self.store, self.key, self.old_after()).await {
            Err(error @ BucketError::Decode(_)) => Err(Failure::Unreadable(Box::new(error))),
            read => read.map_err(away),
        }
    }

    async fn write(&mut self, state: &IssueState, revision: u64) -> Result<Written, Failure> {
        match bucket::write(self.session, self.store, self.key, state, revision).await {
            Ok(revision) => Ok(Written::At(revision)),
            Err(BucketError::Write(error)) => match Refusal::of(&error) {
                Refusal::NotLast => Ok(Written::Conflict),
                refusal if refusal.is_for_good() => {
                    Ok(Written::Refused(Box::new(BucketError::Write(error))))
                }
                _ => Err(away(BucketError::Write(error))),
            },
            Err(error) => Err(away(error)),
        }
    }

    async fn publish(&mut self, change: &Change, after: u64) -> Result<Sent, Failure> {
        handlers::handle(self.context, self.session, change, after).await
    }

    async fn last(&mut self, change: &Change) -> Result<Option<Last>, Failure> {
        let stream = self.session.jetstream.get_stream_no_info(CHANGES).await.map_err(away)?;
        let found = stream.get_last_raw_message_by_subject(&subject::of_change(change)).await;
        match found {
            Ok(found) => {
                let id = found.headers.get(MESSAGE_ID).map(ToString::to_string);
                Ok(Some(Last { sequence: found.sequence, message_id: id.unwrap_or_default() }))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(away(error)),
        }
    }
}
