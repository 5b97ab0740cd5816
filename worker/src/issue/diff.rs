//! Derives the changes that follow from an event and the known state. It is one pure function
//! for docs/ARCHITECTURE.md, "From events to changes".

use contract::{
    change::ChangeKind,
    event::{Action, IssueEvent, State, SyncCause, Synced},
    issue_state::{Lifecycle, Person},
};

use super::state::{Decided, IssueState, TITLE_CHARS};

/// Hex digits of a body's digest that are kept: 64 bits, within one second of one issue.
const SEEN_DIGITS: usize = 16;
/// Bodies of one second whose digests are kept. A recorded burst had eleven.
const SEEN_MAX: usize = 256;
/// Bodies of seconds before whose digests are kept.
const EARLIER_MAX: usize = 16;

/// Result of comparing an event with the known state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Judgement {
    /// Older than the known state, or the issue is deleted. `asks` says whether it may be newer all
    /// the same, because it was never seen: only Gitea's API knows.
    Stale { asks: bool },
    /// This body was already seen, from another webhook or a manual redelivery.
    NothingNew,
    /// What Gitea's API said when less was known than now. It has to be asked again.
    Outrun,
    /// What changes, and the state after that.
    New { changes: Vec<Decided>, next: Box<IssueState> },
}

/// Age of an event relative to the known state, by the second of `updated_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Older,
    Same,
    Newer,
}

/// Compares `event` with `known`. None means that nothing is known about this issue.
pub(crate) fn judge(known: Option<&IssueState>, event: &IssueEvent) -> Judgement {
    let known = known.filter(|state| !state.is_unseen());
    match event.synced.as_deref() {
        Some(synced) => judge_answer(known, event, synced),
        None => judge_delivery(known, event),
    }
}

/// Compares what a webhook brought.
fn judge_delivery(known: Option<&IssueState>, event: &IssueEvent) -> Judgement {
    let digest: String = event.delivery.body_sha256.chars().take(SEEN_DIGITS).collect();
    let age = known.map_or(Age::Newer, |state| age(state, event));
    // Also true if only a part of the first event's changes could be published.
    let first_seen = known.is_none_or(|state| !state.has_event());
    let unseen = IssueState::default();
    let before = known.unwrap_or(&unseen);
    let seen_now = before.seen.contains(&digest) || before.undated.contains(&digest);
    match (before.state, age) {
        (Lifecycle::Deleted, _) | (_, Age::Same) if seen_now => return Judgement::NothingNew,
        (_, Age::Older) if before.earlier.contains(&digest) => return Judgement::NothingNew,
        (Lifecycle::Deleted, _) => return Judgement::Stale { asks: before.gone },
        (_, Age::Older) => return Judgement::Stale { asks: true },
        _ => {}
    }

    let deleted = event.is_deletion();
    let mut changes = if deleted { end(known, event) } else { differences(before, event) };
    // The believed change comes first. So if a part of the changes was published, this one was too.
    if known.is_none() {
        believe_action(&mut changes, event);
    }
    // Within one second the payload does not show which of two different snapshots is the later
    // one. But nothing follows a deletion.
    let contradicts = age == Age::Same && !first_seen && !deleted && !changes.is_empty();
    if contradicts && is_answered(before, event) {
        return Judgement::Stale { asks: true };
    }
    let in_doubt = !deleted && (contradicts || (age == Age::Same && before.in_doubt));
    for change in &mut changes {
        change.in_doubt = contradicts;
        change.first_seen = first_seen;
    }
    let mut next = IssueState { in_doubt, ..after(before, event, age == Age::Same) };
    let dated = event.issue.updated_at.is_some();
    // A later second does not show that an event without a time is old.
    let remembered = if dated { &mut next.seen } else { &mut next.undated };
    remembered.push(digest);
    if remembered.len() > SEEN_MAX {
        remembered.remove(0);
    }
    Judgement::New { changes, next: Box::new(next) }
}

/// Compares what Gitea's API said.
///
/// No clock tells whether the answer or the known state is newer. What is known is: Gitea was asked
/// after the delivery `synced.known` had led to the state. If it still is the last one, the answer
/// holds all that led to the state.
fn judge_answer(known: Option<&IssueState>, event: &IssueEvent, synced: &Synced) -> Judgement {
    let unseen = IssueState::default();
    let before = known.unwrap_or(&unseen);
    if before.has_event() && before.delivery_id == event.delivery.id {
        return Judgement::NothingNew;
    }
    if before.delivery_id != synced.known {
        return Judgement::Outrun;
    }
    let gone = synced.cause == SyncCause::Gone;
    match (before.state, before.gone) {
        (Lifecycle::Deleted, false) => return Judgement::Stale { asks: false },
        (Lifecycle::Deleted, true) if gone => return Judgement::NothingNew,
        _ if gone && known.is_none() => return Judgement::NothingNew,
        _ => {}
    }
    // Of an issue that is back nobody is assigned, as subscribers know it.
    let is_back = before.state == Lifecycle::Deleted;
    let compared = if is_back { &unseen } else { before };
    let first_seen = is_back || !before.has_event();
    let mut changes = if gone { end(known, event) } else { differences(compared, event) };
    if synced.history && known.is_none() && event.issue.assignees.is_empty() {
        changes.clear();
    }
    for change in &mut changes {
        change.first_seen = first_seen;
    }
    let is_same_second = before.updated_at.is_some() && event.issue.updated_at <= before.updated_at;
    let next = IssueState {
        in_doubt: false,
        gone,
        answered_at: synced.answered_at.max(before.answered_at),
        ..after(before, event, is_same_second)
    };
    Judgement::New { changes, next: Box::new(next) }
}

/// Whether Gitea's API was asked after the second of the event, and so had said what it holds. An event
/// without a time is of the issue's creation.
fn is_answered(before: &IssueState, event: &IssueEvent) -> bool {
    match (before.answered_at, event.issue.updated_at) {
        (Some(answer), Some(time)) => answer > time,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

/// The state after `event`, with the digests that are remembered from before.
fn after(before: &IssueState, event: &IssueEvent, is_same_second: bool) -> IssueState {
    let deleted = event.is_deletion();
    let mut earlier = before.earlier.clone();
    let seen = if is_same_second {
        before.seen.clone()
    } else {
        earlier.extend(before.seen.iter().cloned());
        earlier.drain(..earlier.len().saturating_sub(EARLIER_MAX));
        Vec::new()
    };
    IssueState {
        assignees: if deleted { Vec::new() } else { people(event) },
        state: if deleted { Lifecycle::Deleted } else { event.issue.state.into() },
        // An unknown time never replaces a known one.
        updated_at: event.issue.updated_at.max(before.updated_at),
        seen,
        earlier,
        undated: before.undated.clone(),
        answered_at: before.answered_at,
        issue: event.issue_ref(),
        // What is gone has no id any more.
        issue_id: if event.issue.id > 0 { event.issue.id } else { before.issue_id },
        title: event.issue.title.chars().take(TITLE_CHARS).collect(),
        delivery_id: event.delivery.id.clone(),
        ..IssueState::default()
    }
}

/// Gitea leaves out the time while an issue is being created. Such an event is never the oldest, so
/// it counts as the same second as the known state. A deletion does not touch `updated_at`, and is
/// the last event of an issue whatever its time.
fn age(known: &IssueState, event: &IssueEvent) -> Age {
    match (known.updated_at, event.issue.updated_at) {
        _ if event.action == Action::Deleted => Age::Newer,
        (Some(known), Some(event)) if event < known => Age::Older,
        (Some(known), Some(event)) if event > known => Age::Newer,
        (None, Some(_)) => Age::Newer,
        _ => Age::Same,
    }
}

/// The assignees of a snapshot. Nobody is in it twice.
fn people(event: &IssueEvent) -> Vec<Person> {
    missing(&event.issue.assignees.iter().map(Person::from).collect::<Vec<_>>(), &[])
}

/// Those of `from` who are not `within`, each once.
fn missing(from: &[Person], within: &[Person]) -> Vec<Person> {
    let mut missing: Vec<Person> = Vec::new();
    for person in from {
        if !within.iter().chain(&missing).any(|other| other.is(person)) {
            missing.push(person.clone());
        }
    }
    missing
}

/// The changes from the known state to the snapshot, in publishing order.
fn differences(before: &IssueState, event: &IssueEvent) -> Vec<Decided> {
    let now = people(event);
    let removed = missing(&before.assignees, &now);
    let added = missing(&now, &before.assignees);
    let mut changes = Vec::new();
    if !removed.is_empty() {
        changes.push(Decided { removed, ..Decided::new(ChangeKind::Unassigned) });
    }
    match (before.state, event.issue.state) {
        (Lifecycle::Open, State::Closed) => changes.push(Decided::new(ChangeKind::Closed)),
        (Lifecycle::Closed, State::Open) => changes.push(Decided::new(ChangeKind::Reopened)),
        _ => {}
    }
    if !added.is_empty() {
        changes.push(Decided { added, ..Decided::new(ChangeKind::Assigned) });
    }
    changes
}

/// The changes that end an issue's work. Of an issue that was never seen, the snapshot says who was
/// assigned.
fn end(known: Option<&IssueState>, event: &IssueEvent) -> Vec<Decided> {
    let removed = known.map_or_else(|| people(event), |state| missing(&state.assignees, &[]));
    let unassigned = Decided { removed, ..Decided::new(ChangeKind::Unassigned) };
    let unassigned = (!unassigned.removed.is_empty()).then_some(unassigned);
    unassigned.into_iter().chain([Decided::new(ChangeKind::Deleted)]).collect()
}

/// For an issue that was never seen before, the event's action shows what the snapshot cannot: that
/// a user was unassigned, or that the issue had been closed.
fn believe_action(changes: &mut Vec<Decided>, event: &IssueEvent) {
    let kind = match (&event.action, event.issue.state) {
        (Action::Unassigned, _) => ChangeKind::Unassigned,
        (Action::Reopened, State::Open) => ChangeKind::Reopened,
        _ => return,
    };
    if !changes.iter().any(|change| change.kind == kind) {
        changes.push(Decided::new(kind));
        changes.sort_by_key(|change| change.kind);
    }
}

#[cfg(test)]
mod answers;
#[cfg(any(test, fuzzing))]
pub(crate) mod laws;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
