//! Pulls the messages of one partition one at a time, and loses no message that the server sends.
//!
//! The client library's own stream of messages cannot be ended cleanly. A message that the server
//! sends between the last poll and the end of the subscription is lost until `ack_wait` is over,
//! and its partition waits for it. Here at most one request is out. It is short, and it is always
//! completed: by as many messages as it asked for, or by the server's status that there are no
//! more.

use std::time::Duration;

use async_nats::{
    Client, StatusCode, Subscriber,
    jetstream::{self, Message},
};
use futures::StreamExt;
use thiserror::Error;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use contract::names::{EVENTS, consumer_name};
use service::broker::Session;

/// Messages per request. Only one message is in flight in any case. One request per message would
/// cost the server a quarter more.
const MESSAGES: usize = 64;
/// How long the server serves a request. A stop takes up to this time. An idle worker sends one
/// request per partition in this time.
const EXPIRES: Duration = Duration::from_secs(1);
/// How much later than `EXPIRES` the server's status may arrive before the request counts as lost.
const GRACE: Duration = Duration::from_secs(4);

/// Why there are no more messages. The caller starts over with a new [`Pull`].
#[derive(Debug, Error)]
pub(crate) enum PullError {
    #[error("subscribe to a reply subject")]
    Subscribe(#[source] async_nats::SubscribeError),
    #[error("ask for a message")]
    Ask(#[source] async_nats::PublishError),
    #[error("the server does not answer a request for a message")]
    Silent,
    #[error("the server ended a request for a message: {0}")]
    Refused(String),
    #[error("the connection is gone")]
    Closed,
}

/// Messages of one partition.
pub(crate) struct Pull {
    client: Client,
    jetstream: jetstream::Context,
    replies: Subscriber,
    inbox: String,
    request_subject: String,
    /// Messages that the server may still send for the current request.
    left: usize,
    stop: CancellationToken,
}

impl Pull {
    /// Subscribes to the reply subject. Once `stop` is cancelled, no further request is sent.
    pub(crate) async fn start(
        session: &Session,
        partition: u8,
        stop: CancellationToken,
    ) -> Result<Self, PullError> {
        let client = session.client.clone();
        let inbox = client.new_inbox();
        let replies = client.subscribe(inbox.clone()).await.map_err(PullError::Subscribe)?;
        let consumer = consumer_name(partition);
        Ok(Self {
            client,
            jetstream: session.jetstream.clone(),
            replies,
            inbox,
            request_subject: format!("$JS.API.CONSUMER.MSG.NEXT.{}.{consumer}", EVENTS),
            left: 0,
            stop,
        })
    }

    /// The next message. None once `stop` is cancelled and no request is out.
    pub(crate) async fn next(&mut self) -> Result<Option<Message>, PullError> {
        loop {
            if self.left == 0 {
                if self.stop.is_cancelled() {
                    return Ok(None);
                }
                self.ask().await?;
            }
            let reply = timeout(EXPIRES + GRACE, self.replies.next()).await;
            let reply = reply.map_err(|_| PullError::Silent)?.ok_or(PullError::Closed)?;
            match reply.status {
                None => {
                    self.left -= 1;
                    let context = self.jetstream.clone();
                    return Ok(Some(Message { message: reply, context }));
                }
                // The request has expired.
                Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND) => self.left = 0,
                Some(status) => {
                    let reason = reply.description.unwrap_or_else(|| status.to_string());
                    return Err(PullError::Refused(reason));
                }
            }
        }
    }

    /// The request is nats-server's `JSApiConsumerGetNextRequest`.
    async fn ask(&mut self) -> Result<(), PullError> {
        let (subject, inbox) = (self.request_subject.clone(), self.inbox.clone());
        let request = format!("{{\"batch\":{MESSAGES},\"expires\":{}}}", EXPIRES.as_nanos());
        let asked = self.client.publish_with_reply(subject, inbox, request.into()).await;
        asked.map_err(PullError::Ask)?;
        self.left = MESSAGES;
        Ok(())
    }
}
