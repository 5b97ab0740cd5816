//! Derives the changes that follow from an event and the published state. It is one pure function
//! for docs/ARCHITECTURE.md, "From events to changes".

use contract::{
    change::{Change, ChangeKind},
    event::{Action, IssueEvent, State},
};

use super::state::IssueState;

/// Hex digits of a body's digest that are kept: 64 bits, within one second of one issue.
const SEEN_DIGITS: usize = 16;
/// Bodies of one second whose digests are kept. A recorded burst had eleven.
const SEEN_MAX: usize = 256;

/// Result of comparing an event with the known state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Judgement {
    /// Older than the known state.
    Stale,
    /// This body was already seen, from another webhook or a manual redelivery.
    NothingNew,
    /// The changes to publish, and the state to save after that.
    New { changes: Vec<Change>, next: IssueState },
}

/// Age of an event relative to the known state, by the second of `updated_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Older,
    Same,
    Newer,
}

/// Compares `event` with `known`. None means that nothing was ever published about this issue.
pub(crate) fn judge(known: Option<&IssueState>, event: &IssueEvent) -> Judgement {
    let digest: String = event.delivery.body_sha256.chars().take(SEEN_DIGITS).collect();
    let age = known.map_or(Age::Newer, |state| age(state, event));
    // Also true after an attempt that published only a part of its changes.
    let first_seen = known.is_none_or(|state| !state.has_event());
    let unseen = unseen();
    let before = known.unwrap_or(&unseen);
    let seen_before =
        age == Age::Same && (before.seen.contains(&digest) || before.undated.contains(&digest));
    if age == Age::Older {
        return Judgement::Stale;
    }
    if seen_before {
        return Judgement::NothingNew;
    }

    let mut changes = differences(before, event);
    // The believed change is published first. So if a part of the changes was published, this one
    // was too.
    if known.is_none() {
        believe_action(&mut changes, event);
    }
    // Within one second the payload does not show which of two different snapshots is the later
    // one.
    let contradicts = age == Age::Same && !first_seen && !changes.is_empty();
    let in_doubt = contradicts || (age == Age::Same && before.in_doubt);
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
        assignees: event.issue.assignee_logins(),
        state: event.issue.state,
        // An unknown time never replaces a known one.
        updated_at: event.issue.updated_at.or(before.updated_at),
        in_doubt,
        seen,
        undated,
        issue: event.issue_ref(),
        delivery_id: event.delivery.id.clone(),
    };
    Judgement::New { changes, next }
}

/// `before` with only these changes applied, for a handler that failed after other changes were
/// published. The published changes must not be published again. The rest must be handled as if
/// nothing had failed.
pub(crate) fn told_so_far(before: Option<&IssueState>, told: &[Change]) -> IssueState {
    let mut state = before.cloned().unwrap_or_else(unseen);
    for change in told {
        match change.kind {
            ChangeKind::Unassigned => {
                state.assignees.retain(|login| !change.removed.contains(login))
            }
            ChangeKind::Assigned => state.assignees.extend(change.added.iter().cloned()),
            ChangeKind::Closed => state.state = State::Closed,
            ChangeKind::Reopened => state.state = State::Open,
        }
    }
    state
}

/// The state of an issue about which nothing is known.
fn unseen() -> IssueState {
    IssueState {
        assignees: Vec::new(),
        state: State::Open,
        updated_at: None,
        in_doubt: false,
        seen: Vec::new(),
        undated: Vec::new(),
        issue: String::new(),
        delivery_id: String::new(),
    }
}

/// Gitea leaves out the time while an issue is being created. Such an event is never the oldest, so
/// it counts as the same second as the known state.
fn age(known: &IssueState, event: &IssueEvent) -> Age {
    match (known.updated_at, event.issue.updated_at) {
        (Some(known), Some(event)) if event < known => Age::Older,
        (Some(known), Some(event)) if event > known => Age::Newer,
        (None, Some(_)) => Age::Newer,
        _ => Age::Same,
    }
}

/// The changes from the published state to the snapshot, in publishing order.
fn differences(before: &IssueState, event: &IssueEvent) -> Vec<Change> {
    let now = event.issue.assignee_logins();
    let missing = |from: &[String], within: &[String]| {
        let mut missing: Vec<String> = Vec::new();
        for login in from {
            if !within.contains(login) && !missing.contains(login) {
                missing.push(login.clone());
            }
        }
        missing
    };
    let removed = missing(&before.assignees, &now);
    let added = missing(&now, &before.assignees);
    let mut changes = Vec::new();
    for kind in ChangeKind::ALL.iter().copied() {
        let applies = match kind {
            ChangeKind::Unassigned => !removed.is_empty(),
            ChangeKind::Closed => (before.state, event.issue.state) == (State::Open, State::Closed),
            ChangeKind::Reopened => {
                (before.state, event.issue.state) == (State::Closed, State::Open)
            }
            ChangeKind::Assigned => !added.is_empty(),
        };
        if applies {
            let mut change = Change::from_event(kind, event);
            match kind {
                ChangeKind::Unassigned => change.removed.clone_from(&removed),
                ChangeKind::Assigned => change.added.clone_from(&added),
                ChangeKind::Closed | ChangeKind::Reopened => {}
            }
            changes.push(change);
        }
    }
    changes
}

/// For an issue that was never seen before, the event's action shows what the snapshot cannot: that
/// a user was unassigned, or that the issue had been closed.
fn believe_action(changes: &mut Vec<Change>, event: &IssueEvent) {
    let kind = match (&event.action, event.issue.state) {
        (Action::Unassigned, _) => ChangeKind::Unassigned,
        (Action::Reopened, State::Open) => ChangeKind::Reopened,
        _ => return,
    };
    if !changes.iter().any(|change| change.kind == kind) {
        changes.push(Change::from_event(kind, event));
        changes.sort_by_key(|change| change.kind);
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod laws;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
