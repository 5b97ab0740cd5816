//! One attempt at one event: decide, publish, settle.
//!
//! The decision is written to the issue's entry by compare-and-set before its changes are published,
//! and the message is acked after that. So whoever comes later, after a crash or a suspension, finds
//! what was decided and publishes that, under the same message ids. A change is published only if
//! the last change of its kind is still the one that the decision knew. This fences off a worker
//! that resumes after others went on.
//!
//! The attempt sees the broker through [`Ports`] alone, so that `model` can run every interleaving
//! of several workers.

use contract::{change::Change, event::IssueEvent};
use service::causes::Causes;
use tracing::{debug, warn};

use super::outcome::{Cause, Outcome, Verdict};
use crate::issue::{
    memory::{Entry, Memory},
    state::{Decision, IssueState, MessageId},
    step::{Step, step},
};

/// Conflicts with other workers within one attempt, after which it counts as failed.
const ROUNDS: usize = 8;

/// Why an attempt has no end.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The broker failed. It says nothing about the event, and the attempt can be repeated.
    Away(Cause),
    /// The issue's entry cannot be read. Somebody has edited it, or a newer program has written it.
    Unreadable(Cause),
}

/// How far an attempt goes. Each level is for messages of which more workers died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Effort {
    All,
    /// Nothing more is decided, but what was decided before is still published.
    Publish,
    /// What was decided and is not published is taken back.
    TakeBack,
}

impl Effort {
    /// The effort of attempt `number`.
    pub(crate) fn of(number: u64, max_attempts: u64) -> Self {
        match number {
            number if number <= max_attempts => Self::All,
            number if number <= max_attempts.saturating_mul(2) => Self::Publish,
            _ => Self::TakeBack,
        }
    }
}

/// Result of a write of the entry.
#[derive(Debug)]
pub(crate) enum Written {
    /// It has this revision now.
    At(u64),
    /// The entry has another revision than expected.
    Conflict,
    /// The broker will never take this entry.
    Refused(Cause),
}

/// Result of publishing a change.
#[derive(Debug)]
pub(crate) enum Sent {
    /// It is in the stream under this sequence, from now or from before.
    At(u64),
    /// Another message is the last one on its subject than expected.
    NotLast,
    /// The broker will never take this change.
    Refused(Cause),
}

/// The last change on a subject.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Last {
    pub(crate) sequence: u64,
    pub(crate) message_id: String,
}

/// What an attempt asks of the broker.
pub(crate) trait Ports {
    /// Reads the issue's entry from the bucket.
    fn read(&mut self) -> impl Future<Output = Result<Entry, Failure>> + Send;

    /// Replaces the entry at `revision`; 0 means that there is none.
    fn write(
        &mut self,
        state: &IssueState,
        revision: u64,
    ) -> impl Future<Output = Result<Written, Failure>> + Send;

    /// Publishes a change if the last message on its subject has the sequence `after`; 0 means that
    /// there is none.
    fn publish(
        &mut self,
        change: &Change,
        after: u64,
    ) -> impl Future<Output = Result<Sent, Failure>> + Send;

    /// Reads the last message on the subject of `change`.
    fn last(
        &mut self,
        change: &Change,
    ) -> impl Future<Output = Result<Option<Last>, Failure>> + Send;
}

/// How an attempt ended.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) outcome: Outcome,
    pub(crate) verdict: Verdict,
    /// Summary of this delivery's changes.
    pub(crate) changes: String,
    pub(crate) in_doubt: bool,
    /// Whether only Gitea's API knows what is right.
    pub(crate) asks: bool,
}

impl End {
    fn done(verdict: Verdict) -> Self {
        let (outcome, changes) = (Outcome::Done, String::new());
        Self { outcome, verdict, changes, in_doubt: false, asks: false }
    }

    pub(crate) fn undecodable(cause: Cause) -> Self {
        let outcome = Outcome::Undecodable(cause);
        Self { outcome, ..Self::done(Verdict::Undecodable) }
    }

    fn too_many_attempts() -> Self {
        let outcome = Outcome::TooManyAttempts;
        Self { outcome, ..Self::done(Verdict::TooManyAttempts) }
    }

    pub(crate) fn failed(cause: Cause) -> Self {
        let outcome = Outcome::Permanent(cause);
        Self { outcome, ..Self::done(Verdict::Failed) }
    }
}

/// Attempts `event`, which came as `message`. `key` is the one of its issue.
pub(crate) async fn attempt<P: Ports + Send>(
    ports: &mut P,
    memory: &mut Memory,
    key: &str,
    event: &IssueEvent,
    message: &MessageId,
    effort: Effort,
) -> Result<End, Failure> {
    let (mut entry, mut current) = match memory.take(key) {
        Some(remembered) => remembered,
        None => (ports.read().await?, true),
    };
    for _ in 0..ROUNDS {
        let decider = decider(&entry).map(str::to_owned);
        let own = decider.as_ref() == Some(&event.delivery.id);
        if entry.is_old && !own {
            forget_decision(&mut entry);
        }
        // None if others were first: the entry is read again.
        let end = match step(entry.state.as_ref(), event, message) {
            Step::Publish if effort == Effort::TakeBack => {
                give_up_decision(ports, &entry).await?;
                None
            }
            Step::Publish => {
                match publish_decision(ports, &mut entry, own.then_some(event)).await? {
                    Published::All { changes, in_doubt } if own => {
                        Some(End { changes, in_doubt, ..End::done(Verdict::Changed) })
                    }
                    Published::All { changes, .. } => {
                        debug!(decider, changes, "the last decision is published");
                        continue;
                    }
                    Published::Refused { cause, changes } if own => {
                        return Ok(End { changes, ..End::failed(cause) });
                    }
                    Published::Refused { cause, .. } => {
                        let error = Causes(cause.as_ref()).to_string();
                        warn!(
                            decider,
                            error, "a decision that the broker never takes is taken back"
                        );
                        None
                    }
                    Published::Fenced => None,
                }
            }
            Step::Stale { .. } | Step::NothingNew | Step::Outrun if !current => None,
            Step::Stale { asks } => Some(End { asks, ..End::done(Verdict::Stale) }),
            Step::Outrun => Some(End { asks: true, ..End::done(Verdict::Outrun) }),
            Step::NothingNew => Some(End::done(Verdict::NothingNew)),
            Step::Parked => Some(End::too_many_attempts()),
            // The entry is written all the same, so that a suspended worker's decision conflicts.
            Step::Decide(_) if effort != Effort::All => {
                let mut state = entry.state.take().unwrap_or_default();
                state.parked = Some(message.clone());
                match ports.write(&state, entry.revision).await? {
                    Written::At(revision) => {
                        entry = Entry { state: Some(state), revision, is_old: false };
                        Some(End::too_many_attempts())
                    }
                    Written::Conflict => None,
                    Written::Refused(cause) => return Ok(End::failed(cause)),
                }
            }
            Step::Decide(next) => match ports.write(&next, entry.revision).await? {
                Written::At(revision) => {
                    let (in_doubt, decided) = (next.in_doubt, next.decision.is_some());
                    entry = Entry { state: Some(*next), revision, is_old: false };
                    current = true;
                    if decided {
                        continue;
                    }
                    Some(End { in_doubt, ..End::done(Verdict::Unchanged) })
                }
                Written::Conflict => None,
                Written::Refused(cause) => return Ok(End::failed(cause)),
            },
        };
        let Some(end) = end else {
            (entry, current) = (ports.read().await?, true);
            continue;
        };
        // Also of an event that changes nothing: the worker before may have died before it asked.
        let in_doubt = entry.state.as_ref().is_some_and(|state| state.in_doubt);
        memory.remember(key, entry);
        return Ok(End { asks: end.asks || in_doubt, ..end });
    }
    Err(Failure::Away("others keep writing this issue's state".into()))
}

/// The delivery of the entry's decision.
fn decider(entry: &Entry) -> Option<&str> {
    let decision = entry.state.as_ref()?.decision.as_ref()?;
    Some(&decision.event.delivery.id)
}

/// Takes the decision of `entry` back, but for the changes that are in the stream.
async fn give_up_decision<P: Ports>(ports: &mut P, entry: &Entry) -> Result<(), Failure> {
    let Some(decision) = entry.state.as_ref().and_then(|state| state.decision.as_deref()) else {
        return Ok(());
    };
    let mut published = 0;
    for decided in &decision.changes {
        if !is_published(ports, &decided.change(&decision.event)).await? {
            break;
        }
        published += 1;
    }
    take_back(ports, decision, published).await
}

async fn is_published<P: Ports>(ports: &mut P, change: &Change) -> Result<bool, Failure> {
    let last = ports.last(change).await?;
    Ok(last.is_some_and(|last| last.message_id == change.message_id()))
}

fn forget_decision(entry: &mut Entry) {
    if let Some(state) = &mut entry.state {
        state.decision = None;
    }
}

/// Result of publishing a decision.
enum Published {
    All {
        changes: String,
        in_doubt: bool,
    },
    /// Somebody else has gone on, and so has published all of it, or has taken it back.
    Fenced,
    /// The broker will never take one of the changes. The decision is taken back, but for the
    /// `changes` before that one.
    Refused {
        cause: Cause,
        changes: String,
    },
}

/// Publishes the decision of `entry`, and removes it from there. `own` is the event of the decision,
/// if it is in hand.
async fn publish_decision<P: Ports>(
    ports: &mut P,
    entry: &mut Entry,
    own: Option<&IssueEvent>,
) -> Result<Published, Failure> {
    let Entry { state: Some(state), revision, .. } = entry else { return Ok(Published::Fenced) };
    let Some(decision) = state.decision.take() else { return Ok(Published::Fenced) };
    let mut summaries = Vec::with_capacity(decision.changes.len());
    for (published, decided) in decision.changes.iter().enumerate() {
        // The event in hand has its texts whole.
        let change = decided.change(own.unwrap_or(&decision.event));
        match publish_change(ports, (state, revision), &decision, &change).await? {
            Progress::Published => summaries.push(change.summary()),
            Progress::Fenced => return Ok(Published::Fenced),
            Progress::Refused(cause) => {
                take_back(ports, &decision, published).await?;
                return Ok(Published::Refused { cause, changes: summaries.join(", ") });
            }
        }
    }
    state.decision = None;
    Ok(Published::All { changes: summaries.join(", "), in_doubt: state.in_doubt })
}

/// Result of publishing one change.
enum Progress {
    Published,
    Fenced,
    Refused(Cause),
}

/// Publishes one change of `decision`, which led to `state`. That has `revision` in the bucket.
async fn publish_change<P: Ports>(
    ports: &mut P,
    (state, revision): (&mut IssueState, &mut u64),
    decision: &Decision,
    change: &Change,
) -> Result<Progress, Failure> {
    for _ in 0..ROUNDS {
        let after = state.last_changes.get(&change.kind).copied().unwrap_or(0);
        match ports.publish(change, after).await? {
            Sent::At(sequence) => {
                state.last_changes.insert(change.kind, sequence);
                return Ok(Progress::Published);
            }
            // A limit may have been lowered since an earlier attempt published it.
            Sent::Refused(_) if is_published(ports, change).await? => {
                return Ok(Progress::Published);
            }
            Sent::Refused(cause) => return Ok(Progress::Refused(cause)),
            Sent::NotLast => {}
        }
        let sequence = match ports.last(change).await? {
            // An earlier attempt published it.
            Some(last) if last.message_id == change.message_id() => {
                state.last_changes.insert(change.kind, last.sequence);
                return Ok(Progress::Published);
            }
            last => last.map_or(0, |last| last.sequence),
        };
        // Either others went on, or the known sequence is out of date: the stream lost or removed
        // messages, or the state is of the first form.
        let newest = ports.read().await?;
        let is_current = |found: &IssueState| {
            found.decision.as_ref().is_some_and(|found| is_same(found, decision))
        };
        let Some(found) = newest.state.filter(is_current) else {
            return Ok(Progress::Fenced);
        };
        let mut corrected = IssueState { last_changes: state.last_changes.clone(), ..found };
        corrected.last_changes.insert(change.kind, sequence);
        match ports.write(&corrected, newest.revision).await? {
            Written::At(written) => (*state, *revision) = (corrected, written),
            Written::Conflict => {}
            Written::Refused(cause) => return Ok(Progress::Refused(cause)),
        }
    }
    Err(Failure::Away("others keep publishing this issue's changes".into()))
}

/// A delivery that was parked and redriven is decided a second time, and then may change something
/// else.
fn is_same(one: &Decision, other: &Decision) -> bool {
    one.event.delivery.id == other.event.delivery.id && one.changes == other.changes
}

/// Takes a decision back, but for its first `published` changes. Somebody else who has gone on has
/// done so already.
async fn take_back<P: Ports>(
    ports: &mut P,
    decision: &Decision,
    published: usize,
) -> Result<(), Failure> {
    for _ in 0..ROUNDS {
        let Entry { state: Some(state), revision, .. } = ports.read().await? else {
            return Ok(());
        };
        if !state.decision.as_ref().is_some_and(|found| is_same(found, decision)) {
            return Ok(());
        }
        match ports.write(&state.taken_back(published), revision).await? {
            Written::At(_) => return Ok(()),
            Written::Conflict => {}
            Written::Refused(cause) => return Err(Failure::Away(cause)),
        }
    }
    Err(Failure::Away("others keep writing this issue's state".into()))
}
