//! What to subscribe to, and what to do with it.

use std::{future::Future, sync::Arc, time::Duration};

use contract::{change::Change, event::IssueEvent, timestamp::Timestamp};
use futures::future::{BoxFuture, FutureExt};

use crate::{
    BoxError, Content, Error, Handled, InMemory, Memory, Message, Received, Settings, Unreadable,
    consumer::Wanted, filter::Filter, subscriber::Subscriber,
};

/// Longest name of a consumer.
const MOST_DURABLE: usize = 200;

type Handler<M> = dyn Fn(Received<M>) -> BoxFuture<'static, Handled> + Send + Sync;
type OnUnreadable = dyn Fn(&Unreadable, &Message) -> Result<(), BoxError> + Send + Sync;
type OnConsuming = dyn Fn() + Send + Sync;

/// Where a new consumer begins.
#[derive(Clone, Debug)]
pub enum Start {
    /// With all that the stream holds.
    All,
    /// With what comes from now on.
    New,
    /// At a time.
    Time(Timestamp),
    /// At a sequence of the stream.
    Sequence(u64),
}

/// A subscription, made by [`changes`] or [`events`].
pub struct Subscription<M> {
    pub(crate) durable: String,
    pub(crate) handler: Box<Handler<M>>,
    pub(crate) filter: Filter,
    pub(crate) memory: Arc<dyn Memory>,
    pub(crate) unknown_kinds: bool,
    pub(crate) concurrency: usize,
    pub(crate) first_delay: Duration,
    pub(crate) longest_delay: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) take_over: bool,
    pub(crate) on_unreadable: Option<Box<OnUnreadable>>,
    pub(crate) on_consuming: Option<Box<OnConsuming>>,
    start: Start,
    ahead: usize,
    ack_wait: Duration,
}

/// A subscription to changes: who was assigned or unassigned, what was closed or reopened.
///
/// `durable` is the name of the consumer, which keeps the place while this program is away. It is
/// created if there is none. One program a name.
///
/// The handler returns when the change is done. It runs on the runtime, and must not block it. An
/// error calls it again, see [`Failure`](crate::Failure).
pub fn changes<F, Fut>(durable: impl Into<String>, handler: F) -> Subscription<Change>
where
    F: Fn(Received<Change>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Handled> + Send + 'static,
{
    Subscription::new(durable.into(), handler)
}

/// A subscription to events: what Gitea said, each a snapshot of an issue. Otherwise as [`changes`].
pub fn events<F, Fut>(durable: impl Into<String>, handler: F) -> Subscription<IssueEvent>
where
    F: Fn(Received<IssueEvent>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Handled> + Send + 'static,
{
    Subscription::new(durable.into(), handler)
}

impl Subscription<Change> {
    /// Only changes of these kinds.
    pub fn kinds<K: ToString>(mut self, kinds: impl IntoIterator<Item = K>) -> Self {
        self.filter.kinds.extend(kinds.into_iter().map(|kind| kind.to_string()));
        self
    }

    /// Also hands over kinds that this version does not know; else they are skipped.
    pub fn unknown_kinds(mut self) -> Self {
        self.unknown_kinds = true;
        self
    }
}

impl Subscription<IssueEvent> {
    /// Only events of these actions of Gitea.
    pub fn actions<A: ToString>(mut self, actions: impl IntoIterator<Item = A>) -> Self {
        self.filter.kinds.extend(actions.into_iter().map(|action| action.to_string()));
        self
    }
}

impl<M: Content> Subscription<M> {
    fn new<F, Fut>(durable: String, handler: F) -> Self
    where
        F: Fn(Received<M>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Handled> + Send + 'static,
    {
        Self {
            durable,
            handler: Box::new(move |received| handler(received).boxed()),
            filter: Filter::default(),
            memory: Arc::new(InMemory::default()),
            unknown_kinds: false,
            concurrency: 16,
            first_delay: Duration::from_secs(1),
            longest_delay: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(20),
            take_over: false,
            on_unreadable: None,
            on_consuming: None,
            start: Start::All,
            ahead: 1000,
            ack_wait: Duration::from_secs(30),
        }
    }

    /// Only repositories of this owner, or of another one that is named so. As Gitea shows the name,
    /// letter by letter: for Gitea `ACME` is `acme`, but this gets nothing of `acme` for `ACME`.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.filter.owners.insert(owner.into());
        self
    }

    /// Only this repository, `widgets` or `acme/widgets`, or another one that is named so. Letter by
    /// letter, as the owner.
    pub fn repository(mut self, repository: impl Into<String>) -> Self {
        self.filter.repositories.insert(repository.into());
        self
    }

    /// Only what concerns this person, see [`Content::people`]. In any case of letters.
    pub fn login(mut self, login: impl Into<String>) -> Self {
        self.filter.login = Some(login.into());
        self
    }

    /// Only what concerns the person with this id of Gitea, which stays over a new login.
    pub fn user_id(mut self, id: i64) -> Self {
        self.filter.user_id = Some(id);
        self
    }

    /// Where a consumer begins that is created here. Default: with all that the stream holds.
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Keeps ids, so that nothing is done twice. Default: [`InMemory`].
    pub fn memory(mut self, memory: impl Memory) -> Self {
        self.memory = Arc::new(memory);
        self
    }

    /// Most handlers at once; always one an issue. Default: 16.
    pub fn concurrency(mut self, most: usize) -> Self {
        self.concurrency = most;
        self
    }

    /// Most messages in hand, of a consumer that is created here. Default: 1000.
    pub fn ahead(mut self, most: usize) -> Self {
        self.ahead = most;
        self
    }

    /// Time after which the broker gives a message out again when nothing was heard of it, of a
    /// consumer that is created here. While a handler works or waits, the broker is told so.
    /// Default: 30 s.
    pub fn ack_wait(mut self, ack_wait: Duration) -> Self {
        self.ack_wait = ack_wait;
        self
    }

    /// How long a failed handler waits before it is called again: at first, doubled each time, and
    /// at most. Default: from a second to a minute.
    pub fn delays(mut self, first: Duration, longest: Duration) -> Self {
        (self.first_delay, self.longest_delay) = (first, longest);
        self
    }

    /// How long handlers have to finish when it is stopped. Default: 20 s.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// At the start, asks at once for what an earlier life of this program had in hand, instead of
    /// waiting for its ack wait. Only where no other one can be running.
    pub fn take_over(mut self) -> Self {
        self.take_over = true;
        self
    }

    /// Called with what is not of the expected shape, before it is ended at the broker. An error
    /// ends the subscription instead.
    pub fn on_unreadable(
        mut self,
        call: impl Fn(&Unreadable, &Message) -> Result<(), BoxError> + Send + Sync + 'static,
    ) -> Self {
        self.on_unreadable = Some(Box::new(call));
        self
    }

    /// Called each time when it begins to ask for messages: at the start, and after each break.
    pub fn on_consuming(mut self, call: impl Fn() + Send + Sync + 'static) -> Self {
        self.on_consuming = Some(Box::new(call));
        self
    }

    /// Runs until SIGINT or SIGTERM, then finishes what is in hand.
    pub async fn run(self, settings: Settings) -> Result<(), Error> {
        let stop = until_signal()?;
        self.serve(settings, stop).await
    }

    /// Runs until `stop` is done, then finishes what is in hand and gives the rest back. Connects
    /// for as long as it takes; fails only where it can never work.
    pub async fn serve(
        self,
        settings: Settings,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), Error> {
        settings.servers()?;
        let wanted = self.wanted()?;
        Subscriber::new(self, settings, wanted).run(stop).await
    }

    fn wanted(&self) -> Result<Wanted, Error> {
        let wrong = |text: &str| Err(Error::Settings(text.into()));
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let length = self.durable.len();
        if length == 0 || length > MOST_DURABLE || !self.durable.bytes().all(plain) {
            return wrong("a durable name is of letters, digits, `-` and `_`");
        }
        if self.concurrency == 0 || self.ahead == 0 {
            return wrong("concurrency and ahead are at least 1");
        }
        if self.ack_wait < Duration::from_secs(1) {
            return wrong("ack_wait is at least a second");
        }
        if self.longest_delay < self.first_delay {
            return wrong("the first delay is longer than the longest");
        }
        Ok(Wanted {
            stream: M::STREAM,
            durable: self.durable.clone(),
            subjects: self.filter.subjects(M::PREFIX)?,
            start: self.start.clone(),
            ack_wait: self.ack_wait,
            ahead: self.ahead,
        })
    }

    /// Whether the handler is not to see this.
    pub(crate) fn skips(&self, content: &M) -> bool {
        !(content.is_known() || self.unknown_kinds) || !self.filter.wants_people(content)
    }
}

#[cfg(unix)]
fn until_signal() -> Result<impl Future<Output = ()> + Send, Error> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signal)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signal)?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn until_signal() -> Result<impl Future<Output = ()> + Send, Error> {
    Ok(async {
        let _ = tokio::signal::ctrl_c().await;
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription(durable: &str) -> Subscription<Change> {
        changes(durable, |_| async { Ok(()) })
    }

    #[test]
    fn what_can_never_work_is_refused() {
        for wrong in [
            subscription(""),
            subscription("a.b"),
            subscription("a").concurrency(0),
            subscription("a").ahead(0),
            subscription("a").ack_wait(Duration::from_millis(900)),
            subscription("a").delays(Duration::from_secs(2), Duration::from_secs(1)),
            subscription("a").owner("acme").repository("acme/widgets"),
        ] {
            assert!(matches!(wrong.wanted(), Err(Error::Settings(_))));
        }
        let right = subscription("a").kinds(["closed"]).owner("acme").wanted().expect("right");
        assert_eq!(right.subjects, ["gitea.changes.closed.acme.>"]);
    }
}
