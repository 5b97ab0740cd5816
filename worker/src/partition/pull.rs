//! Pulls the messages of one partition one at a time, and loses no message that the server sends.
//!
//! The client library's own stream of messages cannot be ended cleanly. A message that the server
//! sends between the last poll and the end of the subscription is lost until `ack_wait` is over,
//! and its partition waits for it. Here each request is short, and it is always completed: by as
//! many messages as it asked for, or by the server's status that there are no more.
//!
//! Where the server serves requests by priority ([`Affinity`]), the worker that holds the partition
//! asks again before its request is used up or expires. Otherwise the next worker in line takes
//! over in the gap. So two requests may be out, each with a reply subject of its own: only that
//! tells whose messages and statuses they are.

use std::{
    future::poll_fn,
    task::Poll,
    time::{Duration, Instant},
};

use async_nats::{
    Client, StatusCode, Subscriber,
    jetstream::{self, Message},
};
use futures::StreamExt;
use thiserror::Error;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use contract::names::{EVENTS, WORKERS_GROUP, consumer_name};
use service::broker::Session;

use super::affinity::Affinity;

/// Messages per request. Only one message is in flight in any case. One request per message would
/// cost the server a quarter more.
const MESSAGES: usize = 64;
/// How long the server serves a request. A stop takes up to this time. An idle worker sends one
/// request per partition in this time.
const EXPIRES: Duration = Duration::from_secs(1);
/// Age of a request at which the holder of a partition asks again. An idle worker sends a quarter
/// more requests for the partitions that it holds.
const RENEWAL: Duration = Duration::from_millis(800);
/// How much later than `EXPIRES` the server's status may arrive before the request counts as lost.
const GRACE: Duration = Duration::from_secs(4);
/// The same, once the server has ended the other request.
const GRACE_AT_END: Duration = Duration::from_millis(500);

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
    request_subject: String,
    affinity: Option<Affinity>,
    slots: Vec<Slot>,
    /// Why no further request is sent.
    ending: Option<PullError>,
    stop: CancellationToken,
}

/// A reply subject, and the request whose replies it gets.
struct Slot {
    inbox: String,
    replies: Subscriber,
    request: Option<Request>,
}

/// A request that is not completed.
struct Request {
    /// Messages that the server may still send for it.
    left: usize,
    sent: Instant,
}

impl Pull {
    /// Subscribes to the reply subjects. Once `stop` is cancelled, no further request is sent.
    pub(crate) async fn start(
        session: &Session,
        partition: u8,
        affinity: Option<Affinity>,
        stop: CancellationToken,
    ) -> Result<Self, PullError> {
        let client = session.client.clone();
        let mut slots = Vec::new();
        for _ in 0..if affinity.is_some() { 2 } else { 1 } {
            let inbox = client.new_inbox();
            let replies = client.subscribe(inbox.clone()).await.map_err(PullError::Subscribe)?;
            slots.push(Slot { inbox, replies, request: None });
        }
        let consumer = consumer_name(partition);
        Ok(Self {
            client,
            jetstream: session.jetstream.clone(),
            request_subject: format!("$JS.API.CONSUMER.MSG.NEXT.{EVENTS}.{consumer}"),
            affinity,
            slots,
            ending: None,
            stop,
        })
    }

    /// The next message. None once `stop` is cancelled and no request is out.
    pub(crate) async fn next(&mut self) -> Result<Option<Message>, PullError> {
        loop {
            self.ask_if_due().await?;
            let Some(lost_at) = self.lost_at() else {
                return self.ending.take().map_or(Ok(None), Err);
            };
            let until = self.due_at().map_or(lost_at, |due| due.min(lost_at));
            let wait = until.saturating_duration_since(Instant::now());
            let Ok((number, reply)) = timeout(wait, self.reply()).await else {
                if Instant::now() < lost_at {
                    continue;
                }
                return Err(self.ending.take().unwrap_or(PullError::Silent));
            };
            let (reply, slot) = (reply.ok_or(PullError::Closed)?, &mut self.slots[number]);
            match reply.status {
                None => {
                    slot.request.take_if(|request| {
                        request.left -= 1;
                        request.left == 0
                    });
                    let message = Message { message: reply, context: self.jetstream.clone() };
                    if let (Some(affinity), Ok(info)) = (&mut self.affinity, message.info()) {
                        affinity.received(info.consumer_sequence);
                    }
                    // The server gives out the next message as soon as this one is settled.
                    self.ask_if_due().await?;
                    return Ok(Some(message));
                }
                // The request has expired.
                Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND) => slot.request = None,
                Some(status) => {
                    slot.request = None;
                    let reason = reply.description.unwrap_or_else(|| status.to_string());
                    // The other request may still get a message.
                    self.ending = Some(PullError::Refused(reason));
                }
            }
        }
    }

    /// The next reply, and the number of its slot.
    async fn reply(&mut self) -> (usize, Option<async_nats::Message>) {
        poll_fn(|cx| {
            for (number, slot) in self.slots.iter_mut().enumerate() {
                if let Poll::Ready(reply) = slot.replies.poll_next_unpin(cx) {
                    return Poll::Ready((number, reply));
                }
            }
            Poll::Pending
        })
        .await
    }

    fn requests(&self) -> impl Iterator<Item = &Request> {
        self.slots.iter().filter_map(|slot| slot.request.as_ref())
    }

    /// When a request counts as lost. None if none is out.
    fn lost_at(&self) -> Option<Instant> {
        let grace = if self.ending.is_some() { GRACE_AT_END } else { GRACE };
        self.requests().map(|request| request.sent + EXPIRES + grace).min()
    }

    /// When to ask again, although a request is out. None if that is not known yet.
    fn due_at(&self) -> Option<Instant> {
        let asks = self.ending.is_none() && !self.stop.is_cancelled();
        let holds = self.affinity.as_ref().is_some_and(Affinity::holds);
        let has_room = self.slots.iter().any(|slot| slot.request.is_none());
        if !(asks && holds && has_room) {
            return None;
        }
        let one = self.requests().next()?;
        // With one message left the request is used up by the next one.
        Some(if one.left <= 1 { one.sent } else { one.sent + RENEWAL })
    }

    /// Asks for messages if no request is out, or if the one that is out ends soon.
    async fn ask_if_due(&mut self) -> Result<(), PullError> {
        let asks = self.ending.is_none() && !self.stop.is_cancelled();
        let none_is_out = self.requests().next().is_none();
        let is_due = none_is_out || self.due_at().is_some_and(|due| due <= Instant::now());
        if asks && is_due { self.ask().await } else { Ok(()) }
    }

    /// The request is nats-server's `JSApiConsumerGetNextRequest`.
    async fn ask(&mut self) -> Result<(), PullError> {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.request.is_none()) else {
            return Ok(());
        };
        let (messages, claim) = match &self.affinity {
            Some(affinity) => {
                // Who does not hold the partition asks for one message, and then again with the
                // priority of the one who does.
                let messages = if affinity.holds() { MESSAGES } else { 1 };
                let priority = affinity.priority();
                (messages, format!(",\"group\":\"{WORKERS_GROUP}\",\"priority\":{priority}"))
            }
            None => (MESSAGES, String::new()),
        };
        let request = format!("{{\"batch\":{messages},\"expires\":{}{claim}}}", EXPIRES.as_nanos());
        let (subject, inbox) = (self.request_subject.clone(), slot.inbox.clone());
        slot.request = Some(Request { left: messages, sent: Instant::now() });
        let asked = self.client.publish_with_reply(subject, inbox, request.into()).await;
        asked.map_err(PullError::Ask)
    }
}
