//! Asks for messages over one connection, until that ends.
//!
//! A request for messages is answered by messages, by a heartbeat each second, or by a status that
//! ends it. Where nothing at all comes for longer, the connection is given up, whatever it looks
//! like.

use std::time::Duration;

use async_nats::{Client, Message, StatusCode, Subscriber, connection::State};
use bytes::Bytes;
use serde_json::json;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tracing::warn;

use crate::{
    Settings,
    connection::{self, Trouble},
    consumer::{self, Found, NotNow, Wanted, nanos},
    subscriber::Troubles,
};

/// How often it is looked for something to do.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// Time between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Ticks without any sign before the connection is given up.
const MOST_SILENT_TICKS: u32 = 25;
/// Unanswered questions after which a connection is given up.
const MOST_SILENT_QUESTIONS: u32 = 3;
/// Time after which a request ends by itself.
const EXPIRES: Duration = Duration::from_secs(30);
const MOST_BATCH: usize = 256;
/// Requests that are sent while the hand is closed have room for these, whatever is in hand.
const LEAST_WHILE_CLOSED: usize = 16;
/// A status that is not among the client's constants.
const CONFLICT: u16 = 409;

/// One connection at work.
pub(crate) struct Session {
    pub(crate) client: Client,
    /// Messages and statuses.
    pub(crate) inbox: Subscriber,
    pub(crate) found: Found,
    next_subject: String,
    reply_prefix: String,
    out: UnboundedSender<Out>,
    writer: JoinHandle<()>,
    request: u64,
    /// Messages that the request at the broker may still bring.
    asked: usize,
    silent_ticks: u32,
    not_before: Instant,
}

struct Out {
    subject: String,
    reply: Option<String>,
    payload: Bytes,
}

/// What came for a request.
pub(crate) enum Came {
    /// A message.
    Message(Message),
    /// A sign of life, or the end of a request.
    Status,
    /// The session is over.
    End(String),
}

impl Session {
    /// Connects, and finds or creates the consumer.
    pub(crate) async fn open(
        settings: &Settings,
        wanted: &Wanted,
        former: Option<&Found>,
        resume_at: u64,
        attempt: usize,
        troubles: &Troubles,
    ) -> Result<Self, Trouble> {
        let client = connection::connect(settings, attempt).await?;
        let found = ensure(&client, wanted, former, resume_at, troubles).await?;
        let reply_prefix = client.new_inbox();
        let inbox = client
            .subscribe(format!("{reply_prefix}.*"))
            .await
            .map_err(|error| NotNow::new(format!("subscribe to a reply subject: {error}")))?;
        let (out, outgoing) = unbounded_channel();
        let writer = tokio::spawn(write(client.clone(), outgoing));
        let (stream, durable) = (wanted.stream, &wanted.durable);
        Ok(Self {
            client,
            inbox,
            found,
            next_subject: format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"),
            reply_prefix,
            out,
            writer,
            request: 0,
            asked: 0,
            silent_ticks: 0,
            not_before: Instant::now(),
        })
    }

    /// Says something of a message. What the broker does not hear is told on the next connection.
    pub(crate) fn tell(&self, reply: &str, told: Bytes) {
        let _ = self.out.send(Out { subject: reply.to_owned(), reply: None, payload: told });
    }

    /// Why the session is over, if a tick shows it.
    pub(crate) fn tick(&mut self) -> Option<&'static str> {
        if self.client.connection_state() != State::Connected {
            return Some("the connection is lost");
        }
        // A program that was busy or suspended meanwhile counts one tick: what has come since waits
        // to be read.
        self.silent_ticks = if self.asked > 0 { self.silent_ticks + 1 } else { 0 };
        (self.silent_ticks > MOST_SILENT_TICKS).then_some("no heartbeat comes")
    }

    /// Asks for messages, unless it has asked, or too few fit into the hand.
    pub(crate) fn ask(&mut self, in_hand: usize, hand_is_open: bool, ticked: bool) {
        if self.asked > 0 || Instant::now() < self.not_before {
            return;
        }
        let mut free = self.found.most_unacked.saturating_sub(in_hand);
        if !hand_is_open {
            free = free.max(LEAST_WHILE_CLOSED);
        }
        // Some places at once: not a request for each message.
        let enough = (self.found.most_unacked / 4).clamp(1, 16);
        if free < if ticked { 1 } else { enough } {
            return;
        }
        let most_batch =
            if self.found.most_batch == 0 { MOST_BATCH } else { self.found.most_batch };
        let most_expires = self.found.most_expires;
        let expires = if most_expires.is_zero() { EXPIRES } else { most_expires.min(EXPIRES) };
        let batch = free.min(most_batch).min(MOST_BATCH);
        let mut question = json!({"batch": batch, "expires": nanos(expires)});
        if expires > 2 * HEARTBEAT {
            question["idle_heartbeat"] = nanos(HEARTBEAT).into();
        }
        self.request += 1;
        (self.asked, self.silent_ticks) = (batch, 0);
        let _ = self.out.send(Out {
            subject: self.next_subject.clone(),
            reply: Some(format!("{}.{}", self.reply_prefix, self.request)),
            payload: question.to_string().into(),
        });
    }

    /// The number of the last request, and whether it may wait at the broker.
    pub(crate) fn requests(&self) -> (u64, bool) {
        (self.request, self.asked > 0)
    }

    /// Takes in what came to the inbox.
    pub(crate) fn came(&mut self, message: Option<Message>) -> Came {
        let Some(message) = message else { return Came::End("the connection is lost".into()) };
        self.silent_ticks = 0;
        match message.status {
            None | Some(StatusCode::OK) => {
                self.asked = self.asked.saturating_sub(1);
                Came::Message(message)
            }
            Some(status) => self.status(status, &message),
        }
    }

    fn status(&mut self, status: StatusCode, message: &Message) -> Came {
        let of_request = message.subject.strip_prefix(&*self.reply_prefix);
        let number = of_request.and_then(|rest| rest.strip_prefix('.'));
        let ours = number.and_then(|number| number.parse().ok()) == Some(self.request);
        if status == StatusCode::IDLE_HEARTBEAT || !ours {
            return Came::Status;
        }
        // Whatever it is, the request is over.
        self.asked = 0;
        let why = message.description.as_deref().unwrap_or_default();
        let text = why.to_lowercase();
        if matches!(status, StatusCode::NOT_FOUND | StatusCode::TIMEOUT)
            || text.contains("completed")
            || text.contains("maxbytes")
        {
            return Came::Status;
        }
        if status == StatusCode::NO_RESPONDERS {
            return Came::End("nobody answers the request".into());
        }
        if status.as_u16() == CONFLICT && !text.contains("exceeded") {
            // The consumer was deleted, another server leads, the server shuts down: begin anew.
            return Came::End(text);
        }
        warn!(%status, why, "the broker refuses a request for messages");
        self.not_before = Instant::now() + HEARTBEAT;
        Came::Status
    }

    /// Ends the request. What is on its way still comes, and then the end of the inbox.
    pub(crate) async fn leave(&mut self) {
        let _ = timeout(HEARTBEAT, self.inbox.drain()).await;
    }

    /// Waits until the broker has read all that was said, for at most two times `patience`.
    pub(crate) async fn close(self, wanted: &Wanted, patience: Duration) {
        let Self { client, inbox, out, writer, .. } = self;
        drop((out, inbox));
        let written = timeout(patience, writer).await.is_ok();
        // The broker reads in order: once it has answered, it has read what was said before.
        if !written || consumer::look(&client, wanted, patience).await.is_err() {
            warn!("the broker may not know what was handled last");
        }
    }
}

/// Writes what is said in order, apart from the reading: a connection that takes nothing must not
/// keep from noticing it.
async fn write(client: Client, mut outgoing: UnboundedReceiver<Out>) {
    while let Some(Out { subject, reply, payload }) = outgoing.recv().await {
        let sent = match reply {
            Some(reply) => client.publish_with_reply(subject, reply, payload).await,
            None => client.publish(subject, payload).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

/// The consumer, as soon as the broker can tell.
async fn ensure(
    client: &Client,
    wanted: &Wanted,
    former: Option<&Found>,
    resume_at: u64,
    troubles: &Troubles,
) -> Result<Found, Trouble> {
    let mut silent = 0;
    loop {
        let error = match consumer::ensure(client, wanted, former, resume_at).await {
            Err(Trouble::NotNow(error)) => error,
            other => return other,
        };
        silent = if error.silent { silent + 1 } else { 0 };
        let lost = client.connection_state() != State::Connected;
        if lost || silent >= MOST_SILENT_QUESTIONS {
            return Err(error.into());
        }
        troubles.tell(&format!("cannot consume: {}", error.text));
        sleep(Duration::from_millis(fastrand::u64(200..400))).await;
    }
}
