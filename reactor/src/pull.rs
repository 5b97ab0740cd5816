//! Pulls changes from the consumer that all runners share, and loses none that the server sends.
//!
//! Each request is short and is always completed, by as many messages as it asked for or by the
//! server's status. A message that the client library drops at the end of a subscription would be
//! redelivered only after the consumer's wait for an ack, and a stop would wait for that.

use std::time::{Duration, Instant};

use async_nats::{
    StatusCode, Subscriber,
    jetstream::{self, Message},
};
use contract::names::{CHANGES, REACTOR_CONSUMER};
use futures::StreamExt;
use service::broker::Session;
use thiserror::Error;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Messages per request.
const MESSAGES: usize = 64;
/// How long the server serves a request. A stop takes up to this time.
const EXPIRES: Duration = Duration::from_secs(1);
/// How much later than `EXPIRES` the server's status may arrive before the request counts as lost.
const GRACE: Duration = Duration::from_secs(4);

/// Why there are no more messages. The caller starts over with a new [`Pull`].
#[derive(Debug, Error)]
pub(crate) enum PullError {
    #[error("subscribe to a reply subject")]
    Subscribe(#[source] async_nats::SubscribeError),
    #[error("ask for changes")]
    Ask(#[source] async_nats::PublishError),
    #[error("the server does not answer a request for changes")]
    Silent,
    #[error("the server ended a request for changes: {0}")]
    Refused(String),
    #[error("the connection is gone")]
    Closed,
}

/// Changes, one after the other.
pub(crate) struct Pull {
    session: Session,
    inbox: String,
    replies: Subscriber,
    /// Messages that the server may still send for the request that is out, and when it was sent.
    request: Option<(usize, Instant)>,
    stop: CancellationToken,
}

impl Pull {
    /// Subscribes to a reply subject. Once `stop` is cancelled, no further request is sent.
    pub(crate) async fn start(
        session: &Session,
        stop: CancellationToken,
    ) -> Result<Self, PullError> {
        let inbox = session.client.new_inbox();
        let replies =
            session.client.subscribe(inbox.clone()).await.map_err(PullError::Subscribe)?;
        Ok(Self { session: session.clone(), inbox, replies, request: None, stop })
    }

    /// The next message. None once `stop` is cancelled and no request is out.
    pub(crate) async fn next(&mut self) -> Result<Option<Message>, PullError> {
        loop {
            let (left, sent) = match self.request {
                Some(request) => request,
                None if self.stop.is_cancelled() => return Ok(None),
                None => self.ask().await?,
            };
            let wait = (sent + EXPIRES + GRACE).saturating_duration_since(Instant::now());
            let reply = timeout(wait, self.replies.next()).await.map_err(|_| PullError::Silent)?;
            let reply = reply.ok_or(PullError::Closed)?;
            match reply.status {
                None => {
                    self.request = (left > 1).then_some((left - 1, sent));
                    let context: jetstream::Context = self.session.jetstream.clone();
                    return Ok(Some(Message { message: reply, context }));
                }
                // The request has expired.
                Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND) => self.request = None,
                Some(status) => {
                    let reason = reply.description.unwrap_or_else(|| status.to_string());
                    return Err(PullError::Refused(reason));
                }
            }
        }
    }

    /// The request is nats-server's `JSApiConsumerGetNextRequest`.
    async fn ask(&mut self) -> Result<(usize, Instant), PullError> {
        let request = format!("{{\"batch\":{MESSAGES},\"expires\":{}}}", EXPIRES.as_nanos());
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{CHANGES}.{REACTOR_CONSUMER}");
        let sent = (MESSAGES, Instant::now());
        self.request = Some(sent);
        let client = &self.session.client;
        let asked = client.publish_with_reply(subject, self.inbox.clone(), request.into()).await;
        asked.map_err(PullError::Ask)?;
        Ok(sent)
    }
}
