//! Derives the changes that follow from an event and the known state. It is one pure function
//! for docs/ARCHITECTURE.md, "From events to changes".

use contract::{
    change::ChangeKind,
    event::{Action, IssueEvent, State},
};

use super::state::{Decided, IssueState, Lifecycle, Person};

/// Hex digits of a body's digest that are kept: 64 bits, within one second of one issue.
const SEEN_DIGITS: usize = 16;
/// Bodies of one second whose digests are kept. A recorded burst had eleven.
const SEEN_MAX: usize = 256;

/// Result of comparing an event with the known state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Judgement {
    /// Older than the known state, or the issue is deleted.
    Stale,
    /// This body was already seen, from another webhook or a manual redelivery.
    NothingNew,
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
    let digest: String = event.delivery.body_sha256.chars().take(SEEN_DIGITS).collect();
    let age = known.map_or(Age::Newer, |state| age(state, event));
    // Also true if only a part of the first event's changes could be published.
    let first_seen = known.is_none_or(|state| !state.has_event());
    let unseen = IssueState::default();
    let before = known.unwrap_or(&unseen);
    let seen_before = before.seen.contains(&digest) || before.undated.contains(&digest);
    match (before.state, age) {
        (Lifecycle::Deleted, _) | (_, Age::Same) if seen_before => return Judgement::NothingNew,
        (Lifecycle::Deleted, _) | (_, Age::Older) => return Judgement::Stale,
        _ => {}
    }

    let deleted = event.action == Action::Deleted;
    let mut changes = if deleted { end(known, event) } else { differences(before, event) };
    // The believed change comes first. So if a part of the changes was published, this one was too.
    if known.is_none() {
        believe_action(&mut changes, event);
    }
    // Within one second the payload does not show which of two different snapshots is the later
    // one. But nothing follows a deletion.
    let contradicts = age == Age::Same && !first_seen && !deleted && !changes.is_empty();
    let in_doubt = !deleted && (contradicts || (age == Age::Same && before.in_doubt));
    for change in &mut changes {
        change.in_doubt = contradicts;
        change.first_seen = first_seen;
    }
    let mut seen = if age == Age::Same { before.seen.clone() } else { Vec::new() };
    // A later second does not show that an event without a time is old.
    let mut undated = before.undated.clone();
    let remembered = if event.issue.updated_at.is_some() { &mut seen } else { &mut undated };
    remembered.push(digest);
    if remembered.len() > SEEN_MAX {
        remembered.remove(0);
    }
    let next = IssueState {
        assignees: if deleted { Vec::new() } else { people(event) },
        state: if deleted { Lifecycle::Deleted } else { event.issue.state.into() },
        // An unknown time never replaces a known one.
        updated_at: event.issue.updated_at.max(before.updated_at),
        in_doubt,
        seen,
        undated,
        issue: event.issue_ref(),
        delivery_id: event.delivery.id.clone(),
        ..IssueState::default()
    };
    Judgement::New { changes, next: Box::new(next) }
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

#[cfg(any(test, fuzzing))]
pub(crate) mod laws;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
