//! What follows from an event, given what the handlers were told before.
//! Pure: docs/ARCHITECTURE.md, "From events to changes", as one function.

use contract::{
    change::{Change, ChangeKind},
    event::{Action, IssueEvent, State},
};

use super::state::IssueState;

/// Hex digits of a body's digest that are remembered: 64 bits, within one second of one issue.
const SEEN_DIGITS: usize = 16;
/// Bodies of one second that are remembered. Eleven were seen in a recorded burst.
const SEEN_MAX: usize = 256;

/// What follows from an event.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Judgement {
    /// Older than what is known.
    Stale,
    /// This very body was seen already: another hook, a redelivery by hand.
    NothingNew,
    /// Tell these changes, then remember this.
    New { changes: Vec<Change>, next: IssueState },
}

/// How an event stands to what is known, by the second of `updated_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Older,
    Same,
    Newer,
}

/// Compares `event` with `known`; None means that nothing was ever told of this issue.
pub(crate) fn judge(known: Option<&IssueState>, event: &IssueEvent) -> Judgement {
    let digest: String = event.delivery.body_sha256.chars().take(SEEN_DIGITS).collect();
    let age = known.map_or(Age::Newer, |state| age(state, event));
    // Still so after an attempt that told a part of its changes.
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
    // What is believed goes out before anything else, so with a part told it was told.
    if known.is_none() {
        believe_action(&mut changes, event);
    }
    // Within one second the payload cannot say which of two that differ is the last.
    let contradicts = age == Age::Same && !first_seen && !changes.is_empty();
    let in_doubt = contradicts || (age == Age::Same && before.in_doubt);
    for change in &mut changes {
        change.in_doubt = contradicts;
        change.first_seen = first_seen;
    }
    let mut seen = if age == Age::Same { before.seen.clone() } else { Vec::new() };
    // What has no second cannot be told from new by a later second either.
    let mut undated = before.undated.clone();
    let remembered = if event.issue.updated_at.is_some() { &mut seen } else { &mut undated };
    remembered.push(digest);
    if remembered.len() > SEEN_MAX {
        remembered.remove(0);
    }
    let next = IssueState {
        assignees: event.issue.assignee_logins(),
        state: event.issue.state,
        // Unknown never replaces known.
        updated_at: event.issue.updated_at.or(before.updated_at),
        in_doubt,
        seen,
        undated,
        issue: event.issue_ref(),
        delivery_id: event.delivery.id.clone(),
    };
    Judgement::New { changes, next }
}

/// `before` with only these changes told. For when a handler has failed after others had
/// been told: what was told must not be told again, and the rest as if nothing had failed.
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

/// An issue that nothing is known of.
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

/// A time that Gitea leaves out (while an issue is being created) is unknown
/// and never oldest, so it counts as the same second as whatever is known.
fn age(known: &IssueState, event: &IssueEvent) -> Age {
    match (known.updated_at, event.issue.updated_at) {
        (Some(known), Some(event)) if event < known => Age::Older,
        (Some(known), Some(event)) if event > known => Age::Newer,
        (None, Some(_)) => Age::Newer,
        _ => Age::Same,
    }
}

/// The difference between what was told and the snapshot, in the order in which it goes out.
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

/// Of an issue never seen before, the event's own action says what the
/// snapshot cannot show: somebody was unassigned, or it had been closed.
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
