//! Exhaustive model checking of the protocol in `attempt`: every interleaving of several workers
//! that are suspended, crash and get redeliveries, within small bounds.
//!
//! The model runs the product's own [`attempt`]. A worker in the model is the list of answers that
//! its attempt got so far: the attempt is run again on these answers, up to what it asks next. The
//! broker forgets all message ids at once, so that only the protocol prevents a second publishing.

use std::{
    collections::BTreeSet,
    pin::pin,
    task::{Context, Poll, Waker},
};

use contract::{
    change::{Change, ChangeKind},
    event::{self, Action, IssueEvent, State, User},
    issue_state::Lifecycle,
    timestamp::Timestamp,
};
use stateright::{Checker, HasDiscoveries, Model, Property};

use super::{
    attempt::{Effort, End, Failure, Last, Ports, Sent, Written, attempt},
    outcome::Outcome,
};
use crate::issue::{
    memory::{Entry, Memory},
    state::{IssueState, MessageId},
};

/// Key of the one issue.
const KEY: &str = "1.1";

const POSSIBLE: &str = "each change is possible after those before it";
const ONCE: &str = "no change comes twice";
const SETTLED: &str = "in the end all is settled";
const PUBLISHED: &str = "in the end what was published is the state";
const NEWEST: &str = "in the end the state is the newest snapshot";

/// What is planted, so that the model shows that it would find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Changes are published before the decision is written.
    PublishBeforeDecide,
    /// The entry is replaced whatever its revision is.
    BlindWrite,
    /// The message is acked before its changes are published.
    AckBeforePublish,
    /// A parked delivery's decision stays.
    ParkWithoutTakingBack,
    /// A change is published whatever the last one on its subject is.
    NoFence,
    /// A message whose attempts are used up is parked without a mark in the entry.
    ParkWithoutMark,
}

/// Bounds of the model, and what happens in it.
#[derive(Clone, Debug)]
struct Bounds {
    workers: usize,
    events: Vec<IssueEvent>,
    crashes: u8,
    /// Messages that are delivered again while their worker still has them in hand.
    redeliveries: u8,
    /// Answers of the broker that get lost, although what was asked for is done.
    lost_answers: u8,
    /// Times that the stream of events loses its last message, which the relay offers again.
    lost_tails: u8,
    redrives: u8,
    /// Deliveries of a message after which its attempts are used up.
    max_attempts: u8,
    /// A change that the broker never takes: the number of its event, and its kind.
    refused: Option<(usize, ChangeKind)>,
    fault: Option<Fault>,
}

/// What an attempt asks of the broker.
#[derive(Clone, Debug)]
enum Request {
    Read,
    Write(Box<IssueState>, u64),
    Publish(Box<Change>, u64),
    Last(Box<Change>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Answer {
    Entry(Box<Entry>),
    Written(u64),
    Sent(u64),
    /// The write conflicts, or the change is not after the last one.
    No,
    Refused,
    Last(Option<Last>),
}

/// Answers from a list. What is asked after its end is kept.
struct Script<'a> {
    answers: std::slice::Iter<'a, Answer>,
    asks: Option<Request>,
}

impl Script<'_> {
    async fn ask(&mut self, request: impl FnOnce() -> Request) -> Answer {
        match self.answers.next() {
            Some(answer) => answer.clone(),
            None => {
                self.asks = Some(request());
                std::future::pending().await
            }
        }
    }
}

impl Ports for Script<'_> {
    async fn read(&mut self) -> Result<Entry, Failure> {
        match self.ask(|| Request::Read).await {
            Answer::Entry(entry) => Ok(*entry),
            other => panic!("{other:?}"),
        }
    }

    async fn write(&mut self, state: &IssueState, revision: u64) -> Result<Written, Failure> {
        match self.ask(|| Request::Write(Box::new(state.clone()), revision)).await {
            Answer::Written(revision) => Ok(Written::At(revision)),
            Answer::No => Ok(Written::Conflict),
            other => panic!("{other:?}"),
        }
    }

    async fn publish(&mut self, change: &Change, after: u64) -> Result<Sent, Failure> {
        match self.ask(|| Request::Publish(Box::new(change.clone()), after)).await {
            Answer::Sent(sequence) => Ok(Sent::At(sequence)),
            Answer::No => Ok(Sent::NotLast),
            Answer::Refused => Ok(Sent::Refused("refused".into())),
            other => panic!("{other:?}"),
        }
    }

    async fn last(&mut self, change: &Change) -> Result<Option<Last>, Failure> {
        match self.ask(|| Request::Last(Box::new(change.clone()))).await {
            Answer::Last(last) => Ok(last),
            other => panic!("{other:?}"),
        }
    }
}

/// A message that a worker has in hand, perhaps no longer alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Work {
    sequence: usize,
    event: usize,
    effort: Effort,
    /// What the worker remembered when the attempt began.
    memory: Memory,
    answers: Vec<Answer>,
    /// The message is parked, and still to be acked.
    parked: bool,
    /// The changes of a decision are published, which is not written yet: a planted fault.
    published_early: bool,
}

/// What a worker does next.
enum Next {
    Ask(Request),
    Park,
    Ack(Memory),
}

impl Work {
    fn next(&self, events: &[IssueEvent]) -> Next {
        let mut memory = self.memory.clone();
        let mut script = Script { answers: self.answers.iter(), asks: None };
        let ended = {
            let message = MessageId { sequence: self.sequence as u64, id: String::new() };
            let event = &events[self.event];
            let attempt =
                pin!(attempt(&mut script, &mut memory, KEY, event, &message, self.effort));
            attempt.poll(&mut Context::from_waker(Waker::noop()))
        };
        match ended {
            Poll::Pending => Next::Ask(script.asks.expect("it waits for an answer only")),
            Poll::Ready(Ok(End { outcome: Outcome::Done, .. })) => {
                memory.handled();
                Next::Ack(memory)
            }
            Poll::Ready(Ok(_)) if self.parked => Next::Ack(memory),
            Poll::Ready(Ok(_)) => Next::Park,
            Poll::Ready(Err(failure)) => panic!("within these bounds: {failure:?}"),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Worker {
    memory: Memory,
    work: Option<Work>,
}

/// The message that the consumer has delivered and that is not acked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pending {
    deliveries: u8,
    /// It may be delivered again.
    expired: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    /// Numbers of events.
    stream: Vec<usize>,
    /// Messages that are acked.
    acked: usize,
    pending: Option<Pending>,
    /// Messages delivered by the consumer so far, by which workers notice gaps.
    delivered: u64,
    workers: Vec<Worker>,
    entry: Entry,
    changes: Vec<Change>,
    dead: Vec<usize>,
    crashes: u8,
    redeliveries: u8,
    lost_answers: u8,
    lost_tails: u8,
    redrives: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Deliver(usize),
    Work(usize),
    /// The broker does what is asked, and the answer gets lost.
    LoseAnswer(usize),
    Crash(usize),
    Expire,
    LoseTail,
    Redrive,
}

impl Bounds {
    /// Three events of one issue, a second apart.
    fn new(workers: usize, events: usize) -> Self {
        let story = [
            ("assigned", &[(7, "bot")][..], State::Open),
            ("edited", &[], State::Closed),
            ("edited", &[(8, "tom")], State::Open),
        ];
        let events = story.into_iter().take(events).enumerate().map(|(n, (action, who, state))| {
            let mut event = event::example();
            event.action = Action::from(action.to_owned());
            event.issue.assignees =
                who.iter().map(|(id, login)| User { id: *id, login: (*login).into() }).collect();
            event.issue.state = state;
            event.issue.updated_at = Some(Timestamp::from_unix_micros(1_000_000 * (1 + n as i64)));
            event.delivery.id = format!("d{n}");
            event.delivery.body_sha256 = format!("{n}");
            // Every text of the event is hashed with each state of the model.
            (event.issue.title, event.issue.body) = (String::new(), String::new());
            (event.repository.url, event.repository.clone_url) = (String::new(), String::new());
            event
        });
        Self {
            workers,
            events: events.collect(),
            crashes: 0,
            redeliveries: 0,
            lost_answers: 0,
            lost_tails: 0,
            redrives: 0,
            max_attempts: u8::MAX,
            refused: None,
            fault: None,
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn is_refused(&self, change: &Change) -> bool {
        self.refused.is_some_and(|(event, kind)| {
            kind == change.kind && self.events[event].delivery.id == change.cause.delivery_id
        })
    }

    /// The broker does what `work` asks.
    fn answer(&self, world: &mut World, work: &Work, request: &Request) -> Answer {
        match request {
            Request::Read => Answer::Entry(Box::new(world.entry.clone())),
            Request::Write(state, revision) => {
                let refused = self.refused.is_some_and(|(event, _)| event == work.event);
                let takes_back = refused && work.answers.contains(&Answer::Refused);
                if takes_back && self.has(Fault::ParkWithoutTakingBack) {
                    world.entry.state.as_mut().expect("decided before").decision = None;
                    return Answer::Written(world.entry.revision);
                }
                let marks = work.effort != Effort::All && state.parked.is_some();
                if marks && self.has(Fault::ParkWithoutMark) {
                    return Answer::Written(world.entry.revision);
                }
                if world.entry.revision != *revision && !self.has(Fault::BlindWrite) {
                    return Answer::No;
                }
                world.entry.state = Some((**state).clone());
                world.entry.revision += 1;
                Answer::Written(world.entry.revision)
            }
            Request::Publish(change, _) if self.is_refused(change) => Answer::Refused,
            Request::Publish(change, after) => {
                let last = world.last(change).map_or(0, |last| last.sequence);
                if last != *after && !self.has(Fault::NoFence) {
                    return Answer::No;
                }
                world.changes.push((**change).clone());
                Answer::Sent(world.changes.len() as u64)
            }
            Request::Last(change) => Answer::Last(world.last(change)),
        }
    }

    /// Lets a worker do its next thing. False if the answer is to get lost and there is none.
    fn work(&self, world: &mut World, number: usize, lose_answer: bool) -> bool {
        let Some(mut work) = world.workers[number].work.take() else { return false };
        match work.next(&self.events) {
            Next::Ask(request) => {
                let early = match &request {
                    Request::Write(state, _) if self.has(Fault::PublishBeforeDecide) => {
                        state.decision.clone().filter(|_| !work.published_early)
                    }
                    _ => None,
                };
                if let Some(decision) = early {
                    let event = &self.events[work.event];
                    for decided in &decision.changes {
                        let change = decided.change(event);
                        if world.changes.iter().all(|c| c.message_id() != change.message_id()) {
                            world.changes.push(change);
                        }
                    }
                    work.published_early = true;
                } else {
                    if matches!(request, Request::Publish(..)) && self.has(Fault::AckBeforePublish)
                    {
                        world.ack(work.sequence);
                    }
                    let answer = self.answer(world, &work, &request);
                    work.answers.push(answer);
                }
                if lose_answer {
                    // The attempt begins anew, and what it asked about is uncertain.
                    work.answers.clear();
                    work.memory.clear();
                }
                world.workers[number].work = Some(work);
            }
            Next::Park if !lose_answer => {
                if !world.dead.contains(&work.event) {
                    world.dead.push(work.event);
                }
                work.parked = true;
                world.workers[number].work = Some(work);
            }
            Next::Ack(memory) if !lose_answer => {
                world.ack(work.sequence);
                world.workers[number].memory = memory;
            }
            Next::Park | Next::Ack(_) => return false,
        }
        true
    }
}

impl World {
    fn ack(&mut self, sequence: usize) {
        if self.acked == sequence && self.pending.is_some() {
            self.acked += 1;
            self.pending = None;
        }
    }

    fn last(&self, change: &Change) -> Option<Last> {
        let at = self.changes.iter().rposition(|other| other.kind == change.kind)?;
        let message_id = self.changes[at].message_id();
        Some(Last { sequence: at as u64 + 1, message_id })
    }

    /// Whether a worker has the pending message in hand.
    fn is_in_hand(&self) -> bool {
        let has = |worker: &Worker| worker.work.as_ref().is_some_and(|w| w.sequence == self.acked);
        self.workers.iter().any(has)
    }

    /// What the changes add up to. None if one of them is impossible, as a second one is.
    fn told(&self) -> Option<(BTreeSet<i64>, Lifecycle)> {
        let (mut assignees, mut lifecycle) = (BTreeSet::new(), Lifecycle::Open);
        for change in &self.changes {
            let possible = match change.kind {
                ChangeKind::Assigned => change.added_ids.iter().all(|id| assignees.insert(*id)),
                ChangeKind::Unassigned => change.removed_ids.iter().all(|id| assignees.remove(id)),
                ChangeKind::Closed => {
                    std::mem::replace(&mut lifecycle, Lifecycle::Closed) == Lifecycle::Open
                }
                ChangeKind::Reopened => {
                    std::mem::replace(&mut lifecycle, Lifecycle::Open) == Lifecycle::Closed
                }
                ChangeKind::Deleted | ChangeKind::Other => false,
            };
            if !possible {
                return None;
            }
        }
        Some((assignees, lifecycle))
    }

    fn decided(&self) -> (BTreeSet<i64>, Lifecycle) {
        let state = self.entry.state.clone().unwrap_or_default();
        (state.assignees.iter().map(|person| person.id).collect(), state.state)
    }
}

impl Model for Bounds {
    type State = World;
    type Action = Event;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            stream: (0..self.events.len()).collect(),
            acked: 0,
            pending: None,
            delivered: 0,
            workers: vec![Worker::default(); self.workers],
            entry: Entry::default(),
            changes: Vec::new(),
            dead: Vec::new(),
            crashes: self.crashes,
            redeliveries: self.redeliveries,
            lost_answers: self.lost_answers,
            lost_tails: self.lost_tails,
            redrives: self.redrives,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Event>) {
        let deliverable = match &world.pending {
            None => world.acked < world.stream.len(),
            Some(pending) => pending.expired,
        };
        for (number, worker) in world.workers.iter().enumerate() {
            match &worker.work {
                None if deliverable => actions.push(Event::Deliver(number)),
                None => {}
                Some(_) => {
                    actions.push(Event::Work(number));
                    if world.lost_answers > 0 {
                        actions.push(Event::LoseAnswer(number));
                    }
                    if world.crashes > 0 {
                        actions.push(Event::Crash(number));
                    }
                }
            }
        }
        if world.pending.as_ref().is_some_and(|pending| !pending.expired)
            && (world.redeliveries > 0 || !world.is_in_hand())
        {
            actions.push(Event::Expire);
        }
        if world.lost_tails > 0 {
            actions.push(Event::LoseTail);
        }
        if world.redrives > 0 && !world.dead.is_empty() {
            actions.push(Event::Redrive);
        }
    }

    fn next_state(&self, world: &World, action: Event) -> Option<World> {
        let mut world = world.clone();
        match action {
            Event::Deliver(number) => {
                let before = world.pending.as_ref().map_or(0, |pending| pending.deliveries);
                world.pending = Some(Pending { deliveries: before + 1, expired: false });
                world.delivered += 1;
                let (delivered, sequence) = (world.delivered, world.acked);
                let worker = &mut world.workers[number];
                worker.memory.received(delivered, 0);
                worker.work = Some(Work {
                    sequence,
                    event: world.stream[sequence],
                    effort: Effort::of(before.into(), self.max_attempts.into()),
                    memory: worker.memory.clone(),
                    answers: Vec::new(),
                    parked: false,
                    published_early: false,
                });
            }
            Event::Work(number) => {
                self.work(&mut world, number, false);
            }
            Event::LoseAnswer(number) => {
                world.lost_answers -= 1;
                if !self.work(&mut world, number, true) {
                    return None;
                }
            }
            Event::Crash(number) => {
                world.crashes -= 1;
                world.workers[number] = Worker::default();
            }
            Event::Expire => {
                if world.is_in_hand() {
                    world.redeliveries -= 1;
                }
                world.pending.as_mut()?.expired = true;
            }
            Event::LoseTail => {
                world.lost_tails -= 1;
                // A server that is started again: all connections end, and with them all attempts.
                // The relay offers the lost event again, so it is in the stream as before.
                world.workers.fill(Worker::default());
                world.pending = None;
                world.acked = world.acked.min(world.stream.len() - 1);
            }
            Event::Redrive => {
                world.redrives -= 1;
                let event = world.dead.remove(0);
                world.stream.push(event);
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn is_over(bounds: &Bounds, world: &World) -> bool {
            let mut actions = Vec::new();
            bounds.actions(world, &mut actions);
            actions.iter().all(|action| matches!(action, Event::LoseTail | Event::Redrive))
        }
        let mut properties = vec![
            Property::always(POSSIBLE, |_, world: &World| world.told().is_some()),
            Property::always(ONCE, |_, world: &World| {
                let ids: BTreeSet<_> = world.changes.iter().map(Change::message_id).collect();
                ids.len() == world.changes.len()
            }),
            Property::always(SETTLED, |bounds, world| {
                !is_over(bounds, world) || world.acked == world.stream.len()
            }),
            Property::always(PUBLISHED, |bounds, world| {
                !is_over(bounds, world) || world.told() == Some(world.decided())
            }),
            Property::always(NEWEST, |bounds, world| {
                let newest = bounds.events.len() - 1;
                if !is_over(bounds, world) || world.dead.contains(&newest) {
                    return true;
                }
                let issue = &bounds.events[newest].issue;
                let ids = issue.assignees.iter().map(|user| user.id).collect();
                world.decided() == (ids, issue.state.into())
            }),
        ];
        // What these bounds are meant to reach.
        if self.redeliveries > 0 {
            properties.push(Property::sometimes("a worker is fenced off", |_, world: &World| {
                let work = world.workers.iter().filter_map(|worker| worker.work.as_ref());
                let mut answers = work.map(|work| &work.answers);
                answers.any(|answers| answers.iter().any(|a| matches!(a, Answer::Last(Some(_)))))
            }));
        }
        if self.refused.is_some() || self.max_attempts < u8::MAX {
            properties.push(Property::sometimes("a message is parked", |_, world: &World| {
                !world.dead.is_empty()
            }));
        }
        if self.redrives > 0 {
            properties.push(Property::sometimes(
                "a message is redriven",
                |bounds: &Self, world: &World| {
                    world.acked == world.stream.len() && world.stream.len() > bounds.events.len()
                },
            ));
        }
        if self.lost_tails > 0 {
            properties.push(Property::sometimes(
                "an event comes again",
                |bounds: &Self, world: &World| {
                    world.lost_tails < bounds.lost_tails
                        && world.delivered > world.stream.len() as u64
                },
            ));
        }
        properties
    }
}

/// Checks all states within the bounds.
fn check(bounds: Bounds) {
    bounds.checker().threads(2).spawn_bfs().join().assert_properties();
}

/// Checks that a planted fault is found, and by one of these properties.
fn finds(bounds: Bounds, properties: &[&'static str]) {
    let fault = bounds.fault;
    let any = HasDiscoveries::AnyOf(properties.iter().copied().collect());
    let checker = bounds.checker().threads(2).finish_when(any).spawn_bfs().join();
    let found: Vec<_> = checker.discoveries().into_keys().collect();
    assert!(properties.iter().any(|name| found.contains(name)), "{fault:?}: only {found:?}");
}

#[test]
fn two_workers_that_are_suspended_and_crash() {
    check(Bounds { crashes: 1, redeliveries: 2, ..Bounds::new(2, 3) });
}

#[test]
fn three_workers_that_are_suspended() {
    check(Bounds { redeliveries: 2, ..Bounds::new(3, 2) });
}

#[test]
fn answers_that_get_lost() {
    check(Bounds { lost_answers: 2, redeliveries: 1, ..Bounds::new(2, 2) });
}

#[test]
fn a_lost_tail_of_the_stream_that_is_offered_again() {
    check(Bounds { lost_tails: 1, redeliveries: 1, crashes: 1, ..Bounds::new(2, 3) });
}

#[test]
fn what_is_refused_is_parked_and_redriven() {
    let refused = Some((1, ChangeKind::Closed));
    check(Bounds { refused, redrives: 1, redeliveries: 1, crashes: 1, ..Bounds::new(2, 3) });
}

#[test]
fn what_has_used_up_its_attempts_is_parked_and_redriven() {
    let bounds = Bounds { max_attempts: 1, redrives: 1, redeliveries: 2, ..Bounds::new(2, 2) };
    check(Bounds { crashes: 1, ..bounds });
}

#[test]
fn what_many_workers_died_of_is_taken_back() {
    // The third delivery takes back what the first ones decided. Nobody is suspended meanwhile: see
    // docs/ARCHITECTURE.md, "What remains".
    check(Bounds { max_attempts: 1, redrives: 1, crashes: 3, ..Bounds::new(1, 2) });
}

#[test]
fn planted_faults_are_found() {
    let bounds = || Bounds { crashes: 1, redeliveries: 1, ..Bounds::new(2, 3) };
    for (fault, found_by) in [
        (Fault::PublishBeforeDecide, &[POSSIBLE, ONCE][..]),
        (Fault::BlindWrite, &[POSSIBLE, ONCE, PUBLISHED, NEWEST]),
        (Fault::AckBeforePublish, &[PUBLISHED]),
        (Fault::NoFence, &[ONCE]),
    ] {
        finds(Bounds { fault: Some(fault), ..bounds() }, found_by);
    }
    let refused = Some((1, ChangeKind::Closed));
    let fault = Some(Fault::ParkWithoutTakingBack);
    finds(Bounds { fault, refused, ..bounds() }, &[POSSIBLE, PUBLISHED]);
    let fault = Some(Fault::ParkWithoutMark);
    let used_up = Bounds { max_attempts: 1, redeliveries: 2, crashes: 1, ..Bounds::new(2, 2) };
    finds(Bounds { fault, ..used_up }, &[PUBLISHED]);
}
