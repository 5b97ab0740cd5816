//! One subscription at work: connects, as often as it takes, and keeps what is in hand meanwhile.

use std::{
    collections::{HashMap, VecDeque},
    future::{Future, pending},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use contract::{envelope::MESSAGE_ID, traceparent::TRACEPARENT};
use futures::{StreamExt, future::BoxFuture};
use tokio::{
    task::{Id, JoinError, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tracing::{debug, error, info, warn};

use crate::{
    Content, Error, Failure, Handled, Message, Received, Settings,
    ack::{ACK, IN_PROGRESS, NAK, Place, of_lost, term},
    connection::Trouble,
    consumer::{self, Found, NotNow, Wanted},
    filter::covers,
    hand::{Hand, Held, Settled, Standing, Ticket},
    handling,
    message::{Unread, read},
    session::{Came, Session, TICK},
    sharing::Sharing,
    subscription::Subscription,
};

/// Time between two attempts to connect, at most. A broker that is back is found within that.
const LONGEST_DELAY: Duration = Duration::from_secs(1);
/// Time between two log lines about the same trouble.
const REPEAT_LOG: Duration = Duration::from_secs(30);
/// Most sequences that are asked for again by name.
const MOST_ASKED_AGAIN: u64 = 10_000;
/// How long the broker may take to say how the consumer stands.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time between two looks for another program.
const WATCH: Duration = Duration::from_secs(1);
/// Most texts of troubles that are remembered.
const MOST_TROUBLES: usize = 100;

/// Logs what is tried again, and the same not again for a while.
pub(crate) struct Troubles {
    name: String,
    logged: Mutex<HashMap<String, Instant>>,
}

impl Troubles {
    pub(crate) fn tell(&self, text: &str) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.get(text).is_some_and(|at| at.elapsed() < REPEAT_LOG) {
            return;
        }
        if logged.len() >= MOST_TROUBLES {
            logged.clear();
        }
        logged.insert(text.to_owned(), Instant::now());
        warn!(consumer = self.name, "{text}; tried again");
    }

    fn forget(&self) {
        self.logged.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// What happens next.
enum Next {
    Stop,
    Opened(Box<Result<Session, Trouble>>),
    Came(Option<async_nats::Message>),
    Looked(Result<Option<Standing>, NotNow>),
    Ended(Result<(Id, Handled), JoinError>),
    Due(Ticket),
    KeepAlive,
    Tick,
}

/// Runs one subscription.
pub(crate) struct Subscriber<M> {
    subscription: Arc<Subscription<M>>,
    settings: Arc<Settings>,
    wanted: Arc<Wanted>,
    troubles: Arc<Troubles>,
    hand: Hand<Received<M>>,
    /// Messages that wait for a handler.
    queue: VecDeque<Ticket>,
    handlers: JoinSet<Handled>,
    tickets: HashMap<Id, Ticket>,
    /// Messages whose handler is called again later.
    delays: JoinSet<Ticket>,
    session: Option<Session>,
    opening: Option<BoxFuture<'static, Result<Session, Trouble>>>,
    looking: Option<BoxFuture<'static, Result<Option<Standing>, NotNow>>>,
    look_at: Instant,
    watch_at: Instant,
    /// Requests of ours when the broker was asked how the consumer stands.
    requests: (u64, bool),
    sharing: Sharing,
    found: Option<Found>,
    /// Once all that was given out was here, what is missing later is lost on the way to us.
    ours: bool,
    /// Where to go on if the consumer has to be made anew.
    resume_at: u64,
    attempts: usize,
    failures: u32,
    /// The broker has answered before, so a file that cannot be read was there once.
    answered: bool,
    stopping: bool,
    /// Nothing more comes over the session.
    drained: bool,
}

impl<M: Content> Subscriber<M> {
    pub(crate) fn new(subscription: Subscription<M>, settings: Settings, wanted: Wanted) -> Self {
        let name = format!("{}/{}", wanted.stream, wanted.durable);
        Self {
            settings: Arc::new(settings),
            wanted: Arc::new(wanted),
            troubles: Arc::new(Troubles { name, logged: Mutex::default() }),
            hand: Hand::new(),
            queue: VecDeque::new(),
            handlers: JoinSet::new(),
            tickets: HashMap::new(),
            delays: JoinSet::new(),
            session: None,
            opening: None,
            looking: None,
            look_at: Instant::now(),
            watch_at: Instant::now(),
            requests: (0, false),
            sharing: Sharing::new(),
            found: None,
            ours: subscription.take_over,
            resume_at: 0,
            attempts: 0,
            failures: 0,
            answered: false,
            stopping: false,
            drained: false,
            subscription: Arc::new(subscription),
        }
    }

    /// Until `stop` is done.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()> + Send) -> Result<(), Error> {
        let mut stop = std::pin::pin!(stop);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut keep_alive = Instant::now() + self.half_ack_wait();
        self.open();
        let result = loop {
            let next = tokio::select! {
                () = &mut stop => Next::Stop,
                next = self.next() => next,
                () = sleep_until(keep_alive) => Next::KeepAlive,
                _ = tick.tick() => Next::Tick,
            };
            let ticked = matches!(next, Next::Tick);
            if matches!(next, Next::Stop) {
                break Ok(());
            }
            if matches!(next, Next::KeepAlive) {
                keep_alive = Instant::now() + self.half_ack_wait();
            }
            if let Err(error) = self.take(next) {
                break Err(error);
            }
            self.begin();
            self.drive(ticked);
        };
        self.finish().await;
        result
    }

    /// What comes from the broker and from handlers.
    async fn next(&mut self) -> Next {
        let Self { session, opening, looking, handlers, delays, drained, .. } = self;
        tokio::select! {
            opened = or_never(opening) => Next::Opened(Box::new(opened)),
            looked = or_never(looking) => Next::Looked(looked),
            message = message(session, *drained) => Next::Came(message),
            Some(ended) = handlers.join_next_with_id() => Next::Ended(ended),
            Some(Ok(ticket)) = delays.join_next() => Next::Due(ticket),
            else => pending().await,
        }
    }

    fn take(&mut self, next: Next) -> Result<(), Error> {
        match next {
            Next::Opened(opened) => {
                self.opening = None;
                self.opened(*opened)?;
            }
            Next::Looked(looked) => {
                self.looking = None;
                self.look_at = Instant::now() + TICK;
                self.looked(looked);
            }
            Next::Came(message) => {
                let Some(session) = &mut self.session else { return Ok(()) };
                if self.stopping && message.is_none() {
                    return Ok(());
                }
                match session.came(message) {
                    Came::Message(message) => self.receive(message)?,
                    Came::Status => {}
                    Came::End(why) => self.end(&why),
                }
            }
            Next::Ended(ended) => self.ended(ended),
            Next::Due(ticket) => {
                if let Some(held) = self.hand.at(ticket) {
                    held.waiting = false;
                    let lane = held.lane;
                    self.schedule_lane(lane);
                }
            }
            Next::KeepAlive => {
                for held in self.hand.iter() {
                    self.tell(&held.reply, IN_PROGRESS);
                }
            }
            Next::Tick => {
                if let Some(why) = self.session.as_mut().and_then(Session::tick) {
                    self.end(why);
                }
            }
            Next::Stop => {}
        }
        Ok(())
    }

    /// Asks the broker for what is needed.
    fn drive(&mut self, ticked: bool) {
        let Some(session) = &mut self.session else { return };
        session.ask(self.hand.len(), self.hand.is_open(), ticked);
        let look_at = if self.hand.is_open() { self.watch_at } else { self.look_at };
        if self.looking.is_none() && Instant::now() >= look_at {
            self.requests = session.requests();
            let (client, wanted) = (session.client.clone(), Arc::clone(&self.wanted));
            self.looking =
                Some(Box::pin(async move { consumer::look(&client, &wanted, PATIENCE).await }));
        }
    }

    /// Begins to connect, after a while that grows with each failure.
    fn open(&mut self) {
        // A hand that is closed knows less.
        let known = if self.hand.is_open() { 0 } else { self.resume_at };
        self.resume_at = self.hand.resume_at().max(known);
        let delay = match (self.attempts, self.failures) {
            (0, _) => Duration::ZERO,
            (_, failures) => {
                let longest = Duration::from_millis(50) * 2u32.pow(failures.min(6));
                longest.min(LONGEST_DELAY).mul_f64(0.5 + fastrand::f64() / 2.0)
            }
        };
        let (settings, wanted) = (Arc::clone(&self.settings), Arc::clone(&self.wanted));
        let (former, resume_at) = (self.found.clone(), self.resume_at);
        let (attempt, troubles) = (self.attempts, Arc::clone(&self.troubles));
        self.attempts += 1;
        self.opening = Some(Box::pin(async move {
            sleep(delay).await;
            let former = former.as_ref();
            Session::open(&settings, &wanted, former, resume_at, attempt, &troubles).await
        }));
    }

    fn opened(&mut self, opened: Result<Session, Trouble>) -> Result<(), Error> {
        let session = match opened {
            Ok(session) => session,
            Err(trouble) => {
                let text = match trouble {
                    Trouble::Fatal(error) => return Err(error),
                    // A file that was there once comes back.
                    Trouble::File(error) if !self.answered => return Err(error),
                    Trouble::File(error) => error.to_string(),
                    Trouble::NotNow(error) => error.text,
                };
                self.troubles.tell(&format!("cannot consume: {text}"));
                self.failures = self.failures.saturating_add(1);
                self.open();
                return Ok(());
            }
        };
        self.answered = true;
        if session.found.new_stream {
            warn!(stream = M::STREAM, "it is another stream than before");
            self.hand.forget();
            self.resume_at = 0;
        } else {
            self.hand.close();
        }
        let found = session.found.clone();
        self.found = Some(found.clone());
        self.session = Some(session);
        self.look_at = Instant::now();
        // The broker may take a former connection of ours for alive at first.
        self.watch_at = Instant::now() + WATCH;
        info!(consumer = self.troubles.name, "consuming");
        self.hand.look(&found.standing);
        self.on_look();
        self.tell_again(&found.standing);
        self.troubles.forget();
        self.drive(true);
        if let Some(call) = &self.subscription.on_consuming {
            call();
        }
        Ok(())
    }

    /// The session is over.
    fn end(&mut self, why: &str) {
        self.session = None;
        self.looking = None;
        if self.stopping {
            return;
        }
        self.troubles.tell(&format!("the session has ended: {why}"));
        self.failures = 1;
        self.open();
    }

    fn looked(&mut self, looked: Result<Option<Standing>, NotNow>) {
        match looked {
            Ok(Some(standing)) => {
                if Instant::now() >= self.watch_at {
                    self.watch(&standing);
                }
                self.hand.look(&standing);
                self.on_look();
            }
            Ok(None) => self.end("the consumer was deleted"),
            Err(error) if self.hand.is_open() => {
                debug!(error = error.text, "it was not looked for another program");
                self.watch_at = Instant::now() + WATCH;
            }
            Err(error) => self.end(&error.text),
        }
    }

    /// Looks for another program.
    fn watch(&mut self, standing: &Standing) {
        let Some(session) = &self.session else { return };
        self.watch_at = Instant::now() + WATCH;
        // A request that has begun or ended meanwhile may be counted.
        let (before, now) = (self.requests, session.requests());
        let mine = before.1 || now.1 || before.0 != now.0;
        if self.sharing.look(standing, mine.into(), self.hand.here(standing)) {
            info!(consumer = self.troubles.name, "another program uses the consumer");
        }
    }

    /// What the broker says may let more be handled, also while the hand is closed: another program
    /// may have come to the end of what was before.
    fn on_look(&mut self) {
        self.ours |= self.hand.is_open();
        for ticket in self.hand.ready() {
            self.schedule(ticket);
        }
    }

    /// What the broker may not have heard, since the connection or it broke.
    fn tell_again(&mut self, standing: &Standing) {
        for settled in self.hand.untold() {
            self.tell(&settled.reply, settled.told.clone());
        }
        for held in self.hand.iter() {
            self.tell(&held.reply, IN_PROGRESS);
        }
        if self.hand.is_open() || !self.ours {
            return;
        }
        // A request that waits now is another program's. What is missing may be in its hands.
        if !self.sharing.is_alone() || standing.waiting > 0 {
            return;
        }
        let missing = self.hand.unknown(standing, MOST_ASKED_AGAIN);
        for sequence in &missing {
            let (stream, durable) = (self.wanted.stream, &self.wanted.durable);
            self.tell(&of_lost(stream, durable, *sequence, standing.delivered), NAK);
        }
        if !missing.is_empty() {
            debug!(sequences = missing.len(), "asked again for what was lost on the way");
        }
    }

    fn receive(&mut self, raw: async_nats::Message) -> Result<(), Error> {
        let reply = raw.reply.as_ref().map(ToString::to_string).unwrap_or_default();
        let Some(Place { delivered, sequence, count }) = Place::parse(&reply) else {
            warn!("a message without a place in a stream is ignored");
            return Ok(());
        };
        let headers = raw.headers.unwrap_or_default();
        let header = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
        let id = header(MESSAGE_ID).unwrap_or_else(|| format!("{}:{sequence}", M::STREAM));
        if self.hand.count(sequence, count) {
            info!(before = count, "deliveries are missing; they are waited for");
            self.look_at = Instant::now();
        }
        if let Some(settled) = self.hand.settled(sequence, &id) {
            let told = settled.told.clone();
            self.tell(&reply, told);
            return Ok(());
        }
        if let Some(held) = self.hand.get(sequence, &id) {
            (held.reply, held.delivered) = (reply, delivered);
            return Ok(());
        }
        let message = Message {
            id: id.clone(),
            subject: raw.subject.to_string(),
            sequence,
            attempt: delivered,
            traceparent: header(TRACEPARENT),
            headers,
            payload: raw.payload,
        };
        match self.read(&message)? {
            Read::Settled(told) => {
                let settled = Settled { id, reply: reply.clone(), told: told.clone() };
                self.hand.mark(sequence, settled);
                self.tell(&reply, told);
            }
            Read::Content(content) => {
                let lane = (content.repository().id, content.issue().number);
                let received = Received::new(*content, message);
                self.hand.take(Held::new(sequence, id, reply, lane, received, delivered));
                self.schedule_lane(lane);
            }
        }
        Ok(())
    }

    fn read(&self, message: &Message) -> Result<Read<M>, Error> {
        // A consumer of somebody else may deliver more than is wanted.
        if !self.wanted.subjects.iter().any(|wanted| covers(wanted, &message.subject)) {
            return Ok(Read::Settled(ACK));
        }
        match read::<M>(&message.payload) {
            Ok(content) if self.subscription.skips(&content) => Ok(Read::Settled(ACK)),
            Ok(content) => Ok(Read::Content(Box::new(content))),
            // The broker keeps it for who can read it.
            Err(Unread::Later(found)) => {
                let (id, known) = (message.id.clone(), M::VERSION);
                Err(Error::Version { id, found, known })
            }
            Err(Unread::Unreadable(unreadable)) => {
                error!(id = message.id, "cannot be read: {unreadable}");
                if let Some(call) = &self.subscription.on_unreadable {
                    call(&unreadable, message).map_err(Error::Unreadable)?;
                }
                Ok(Read::Settled(term(&format!("cannot be read: {unreadable}"))))
            }
        }
    }

    fn schedule_lane(&mut self, lane: crate::hand::Lane) {
        if let Some(ticket) = self.hand.head(lane) {
            self.schedule(ticket);
        }
    }

    fn schedule(&mut self, ticket: Ticket) {
        if self.stopping {
            return;
        }
        if let Some(held) = self.hand.at(ticket) {
            held.running = true;
            self.queue.push_back(ticket);
        }
    }

    /// Gives messages that wait for it to handlers.
    fn begin(&mut self) {
        while self.handlers.len() < self.subscription.concurrency {
            let Some(ticket) = self.queue.pop_front() else { return };
            // Another message may have its place by now.
            let Some(held) = self.hand.at(ticket) else { continue };
            let mut received = held.content.clone();
            received.message.attempt = held.delivered + u64::from(held.attempts);
            let call = handling::attempt(Arc::clone(&self.subscription), received);
            let task = self.handlers.spawn(call);
            self.tickets.insert(task.id(), ticket);
        }
    }

    /// A handler has ended.
    fn ended(&mut self, ended: Result<(Id, Handled), JoinError>) {
        let (id, handled) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                let what = if error.is_panic() { "it panicked" } else { "it was cancelled" };
                (error.id(), Err(Failure::Error(what.into())))
            }
        };
        let Some(ticket) = self.tickets.remove(&id) else { return };
        let Some(held) = self.hand.at(ticket) else { return };
        let (lane, id) = (held.lane, held.id.clone());
        match handled {
            Ok(()) => self.settle(ticket, ACK),
            Err(Failure::Never(reason)) => {
                warn!(id, reason, "it can never be handled");
                self.settle(ticket, term(&reason));
            }
            Err(Failure::Again(delay)) => {
                self.again(ticket, Some(delay));
            }
            Err(Failure::Error(error)) => {
                let again_in_secs = self.again(ticket, None).map(|delay| delay.as_secs_f64());
                error!(id, error = &*error, again_in_secs, "the handler failed");
            }
        }
        self.schedule_lane(lane);
    }

    fn settle(&mut self, ticket: Ticket, told: Bytes) {
        if let Some(reply) = self.hand.settle(ticket, told.clone()) {
            self.tell(&reply, told);
        }
    }

    /// Has the handler called again later. Returns in how long.
    fn again(&mut self, ticket: Ticket, delay: Option<Duration>) -> Option<Duration> {
        let held = self.hand.at(ticket)?;
        let doubled = 2u32.pow(held.attempts.min(30));
        let grown = self.subscription.first_delay.saturating_mul(doubled);
        let delay = delay.unwrap_or(grown.min(self.subscription.longest_delay));
        held.attempts = held.attempts.saturating_add(1);
        (held.running, held.waiting) = (false, true);
        self.delays.spawn(async move {
            sleep(delay).await;
            ticket
        });
        Some(delay)
    }

    fn tell(&self, reply: &str, told: Bytes) {
        if let Some(session) = &self.session {
            session.tell(reply, told);
        }
    }

    fn half_ack_wait(&self) -> Duration {
        let ack_wait = self.found.as_ref().map_or(Duration::from_secs(1), |found| found.ack_wait);
        (ack_wait / 2).max(Duration::from_millis(200))
    }

    /// Lets handlers that run finish. What was not begun goes back to the broker, in order.
    async fn finish(mut self) {
        self.stopping = true;
        (self.opening, self.looking) = (None, None);
        for ticket in std::mem::take(&mut self.queue) {
            if let Some(held) = self.hand.at(ticket) {
                held.running = false;
            }
        }
        let begun = Instant::now();
        if let Some(session) = &mut self.session {
            session.leave().await;
        }
        // What is on its way is taken in hand first, so that all goes back in order.
        self.wait(begun + PATIENCE, |this| this.drained || this.session.is_none()).await;
        self.give_back();
        let drain_timeout = self.subscription.drain_timeout;
        self.wait(begun + drain_timeout, |this| this.handlers.is_empty()).await;
        if !self.handlers.is_empty() {
            let handlers = self.handlers.len();
            warn!(handlers, "they did not finish within {drain_timeout:?}, and are cancelled");
            self.handlers.abort_all();
            while let Some(ended) = self.handlers.join_next_with_id().await {
                self.ended(ended);
            }
        }
        self.give_back();
        self.last_words().await;
    }

    /// Goes on with what runs until `done`, or until the deadline.
    async fn wait(&mut self, deadline: Instant, done: impl Fn(&Self) -> bool) {
        let mut keep_alive = Instant::now() + self.half_ack_wait();
        while !done(self) {
            let next = tokio::select! {
                next = self.next() => next,
                () = sleep_until(deadline) => return,
                () = sleep_until(keep_alive) => Next::KeepAlive,
            };
            match next {
                Next::Came(None) => self.drained = true,
                Next::KeepAlive => keep_alive = Instant::now() + self.half_ack_wait(),
                _ => {}
            }
            if let Err(error) = self.take(next) {
                warn!(error = &error as &dyn std::error::Error, "while it is stopped");
            }
        }
    }

    fn give_back(&mut self) {
        for reply in self.hand.give_back() {
            self.tell(&reply, NAK);
        }
    }

    /// Waits until the broker has read all. Where there is no connection, makes one to tell what is
    /// settled, if there is anything to tell.
    async fn last_words(&mut self) {
        if self.session.is_none() && self.hand.untold().next().is_some() {
            let (former, attempt) = (self.found.as_ref(), self.attempts);
            let (wanted, troubles) = (&self.wanted, &self.troubles);
            let open =
                Session::open(&self.settings, wanted, former, self.resume_at, attempt, troubles);
            match timeout(PATIENCE, open).await {
                Ok(Ok(session)) => {
                    for settled in self.hand.untold() {
                        session.tell(&settled.reply, settled.told.clone());
                    }
                    self.session = Some(session);
                }
                _ => warn!("cannot tell the broker what was handled last"),
            }
        }
        if let Some(session) = self.session.take() {
            session.close(&self.wanted, PATIENCE).await;
        }
    }
}

/// What becomes of a message that came.
enum Read<M> {
    /// No handler is to see it.
    Settled(Bytes),
    Content(Box<M>),
}

async fn or_never<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

async fn message(session: &mut Option<Session>, drained: bool) -> Option<async_nats::Message> {
    match session {
        Some(session) if !drained => session.inbox.next().await,
        _ => pending().await,
    }
}
