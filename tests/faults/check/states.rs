//! The final state of each issue. It must equal the newest snapshot, or be in
//! doubt between several snapshots of one second. Of an issue that is deleted a
//! tombstone remains. The state must equal the sum of all changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Key, key, name};
use crate::records::{Change, Records, Snapshot, State};

/// Who is assigned, and whether the issue is open, closed or deleted.
type Content = (BTreeSet<String>, String);

pub(super) fn violations(records: &Records) -> Vec<String> {
    let mut snapshots: BTreeMap<Key, Vec<&Snapshot>> = BTreeMap::new();
    for event in &records.events {
        snapshots.entry(key(&event.snapshot)).or_default().push(&event.snapshot);
    }
    let mut changes: HashMap<Key, Vec<&Change>> = HashMap::new();
    for change in &records.changes {
        changes.entry((change.repository, change.number)).or_default().push(change);
    }
    let mut states: HashMap<&str, &State> =
        records.states.iter().map(|state| (state.key.as_str(), state)).collect();
    let mut found = Vec::new();
    for ((repository, number), snapshots) in snapshots {
        let issue = name((repository, number));
        let Some(state) = states.remove(format!("{repository}.{number}").as_str()) else {
            found.push(format!("{issue} has events and no state"));
            continue;
        };
        found.extend(wrong_end(&issue, &snapshots, state));
        let told = changes.get(&(repository, number)).map_or(&[][..], Vec::as_slice);
        let sum = added_up(told);
        if sum != content(&state.assignees, &state.state) {
            found
                .push(format!("{issue}: its changes add up to {sum:?} and its state is {state:?}"));
        }
    }
    found.extend(states.keys().map(|key| format!("state {key} has no event")));
    found
}

fn wrong_end(issue: &str, snapshots: &[&Snapshot], state: &State) -> Option<String> {
    if let Some(end) = snapshots.iter().position(|snapshot| snapshot.action == "deleted") {
        return wrong_tombstone(issue, &snapshots[..=end], state);
    }
    let newest = snapshots.iter().filter_map(|snapshot| snapshot.updated_at).max();
    // Snapshots of the last second, and later ones without a time, which may be of it, too.
    let first = snapshots.iter().position(|snapshot| snapshot.updated_at == newest).unwrap_or(0);
    let earlier: BTreeSet<&str> =
        snapshots[..first].iter().map(|snapshot| snapshot.digest.as_str()).collect();
    let last: BTreeSet<Content> = snapshots[first..]
        .iter()
        .filter(|snapshot| snapshot.updated_at == newest || snapshot.updated_at.is_none())
        .filter(|snapshot| !earlier.contains(snapshot.digest.as_str()))
        .map(|snapshot| content(&snapshot.assignees, &snapshot.state))
        .collect();
    let ends = content(&state.assignees, &state.state);
    let in_doubt = last.len() > 1;
    let right = last.contains(&ends) && state.in_doubt == in_doubt && state.updated_at == newest;
    (!right).then(|| {
        format!("{issue} ends as {state:?}; its newest, {newest:?}: {last:?}, in doubt: {in_doubt}")
    })
}

/// What comes after the deletion changes nothing. Before it the newest time counts, wherever it is.
fn wrong_tombstone(issue: &str, until_end: &[&Snapshot], state: &State) -> Option<String> {
    let newest = until_end.iter().filter_map(|snapshot| snapshot.updated_at).max();
    let right = state.state == "deleted"
        && state.assignees.is_empty()
        && !state.in_doubt
        && state.updated_at == newest;
    (!right).then(|| format!("{issue} is deleted, newest {newest:?}, and ends as {state:?}"))
}

fn content(assignees: &[String], state: &str) -> Content {
    (assignees.iter().cloned().collect(), state.to_owned())
}

fn added_up(changes: &[&Change]) -> Content {
    let (mut assignees, mut state) = (BTreeSet::new(), "open");
    for change in changes {
        assignees.extend(change.added.iter().cloned());
        assignees.retain(|login| !change.removed.contains(login));
        state = match change.kind.as_str() {
            "closed" => "closed",
            "reopened" => "open",
            "deleted" => "deleted",
            _ => state,
        };
    }
    (assignees, state.to_owned())
}
