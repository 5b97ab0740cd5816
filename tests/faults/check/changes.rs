//! Changes against events: each change follows from an event, none is lost, none
//! is published twice, and an issue's changes come in the order of its events.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{
    Key, key,
    model::{Expected, Issue},
    name,
};
use crate::records::{Change, Event, Records};

pub(super) fn violations(records: &Records, events: &HashMap<&str, &Event>) -> Vec<String> {
    let mut found = Vec::new();
    let mut ids = HashSet::new();
    let mut told: BTreeMap<Key, Vec<&Change>> = BTreeMap::new();
    for change in &records.changes {
        if !ids.insert(&change.message_id) {
            found.push(format!("change {} is told twice", change.message_id));
        }
        found.extend(without_cause(change, events));
        told.entry((change.repository, change.number)).or_default().push(change);
    }
    let known: HashSet<Key> = records.events.iter().map(|event| key(&event.snapshot)).collect();
    for (issue, changes) in &told {
        found.extend(impossible(changes));
        found.extend(out_of_order(changes, events));
        if !known.contains(issue) {
            found.push(format!("{} has changes and no event", name(*issue)));
        }
    }
    found.extend(unexpected(records, &told));
    found
}

fn without_cause(change: &Change, events: &HashMap<&str, &Event>) -> Vec<String> {
    let id = &change.message_id;
    let Some(event) = events.get(change.delivery.as_str()) else {
        return vec![format!("change {id} follows from no event")];
    };
    let mut found = Vec::new();
    if *id != format!("{}:{}", change.delivery, change.kind) {
        found.push(format!("change {id} has the wrong message id"));
    }
    // Nobody is assigned to an issue that is gone, whatever its last snapshot says.
    let assignees: &[String] =
        if event.snapshot.action == "deleted" { &[] } else { &event.snapshot.assignees };
    let told = (change.repository, change.number, change.assignees.as_slice());
    if told != (event.snapshot.repository, event.snapshot.number, assignees) {
        found.push(format!("change {id} says something else than its event"));
    }
    found
}

/// Changes that are impossible whatever the events were: a login that is already there is added,
/// a login that is not there is removed, or something follows the end of an issue.
fn impossible(changes: &[&Change]) -> Vec<String> {
    let mut found = Vec::new();
    let (mut assignees, mut closed, mut deleted) = (BTreeSet::new(), false, false);
    for change in changes {
        let id = &change.message_id;
        if deleted {
            found.push(format!("change {id} follows the deletion of its issue"));
        }
        for login in &change.added {
            if !assignees.insert(login) {
                found.push(format!("change {id} adds {login}, who is there"));
            }
        }
        for login in &change.removed {
            // For an issue not seen before, the last snapshot says who was there.
            let is_known = assignees.remove(login) || change.first_seen;
            if !is_known {
                found.push(format!("change {id} removes {login}, who is not there"));
            }
        }
        let now = match change.kind.as_str() {
            "closed" => true,
            "reopened" => false,
            "deleted" => {
                if !assignees.is_empty() {
                    found.push(format!("change {id} ends an issue with {assignees:?} assigned"));
                }
                deleted = true;
                continue;
            }
            _ => continue,
        };
        if now == closed && !change.first_seen {
            found.push(format!("change {id} says {} of what was so before", change.kind));
        }
        closed = now;
    }
    found
}

fn out_of_order(changes: &[&Change], events: &HashMap<&str, &Event>) -> Vec<String> {
    let place = |change: &Change| {
        let kinds = ["unassigned", "closed", "reopened", "assigned", "deleted"];
        let kind = kinds.iter().position(|kind| *kind == change.kind);
        events.get(change.delivery.as_str()).map(|event| (event.seq, kind))
    };
    let pairs = changes.windows(2).filter(|pair| place(pair[0]) > place(pair[1]));
    pairs
        .map(|pair| format!("change {} comes after {}", pair[1].message_id, pair[0].message_id))
        .collect()
}

/// The changes that the events must lead to, against the changes that were published.
fn unexpected(records: &Records, told: &BTreeMap<Key, Vec<&Change>>) -> Vec<String> {
    let mut issues: BTreeMap<Key, Issue> = BTreeMap::new();
    let mut expected: BTreeMap<Key, Vec<(&str, Expected)>> = BTreeMap::new();
    for event in &records.events {
        let issue = key(&event.snapshot);
        let follows = issues.entry(issue).or_default().next(&event.snapshot);
        let follows = follows.into_iter().map(|change| (event.delivery.as_str(), change));
        expected.entry(issue).or_default().extend(follows);
    }
    let mut found = Vec::new();
    for (issue, expected) in &expected {
        let none = Vec::new();
        let told = told.get(issue).unwrap_or(&none);
        let same = |told: &&Change, (delivery, expected): &(&str, Expected)| {
            told.delivery == *delivery
                && (told.kind.as_str(), told.in_doubt, told.first_seen)
                    == (expected.kind, expected.in_doubt, expected.first_seen)
                && (&told.added, &told.removed) == (&expected.added, &expected.removed)
        };
        let differs =
            (0..expected.len().max(told.len())).find(|n| match (told.get(*n), expected.get(*n)) {
                (Some(told), Some(expected)) => !same(told, expected),
                _ => true,
            });
        // What follows the first difference is its consequence.
        if let Some(n) = differs {
            found.push(format!(
                "{}: change {n} must be {} and is {}",
                name(*issue),
                expected.get(n).map_or("none".into(), |(delivery, change)| described(
                    delivery,
                    change.kind,
                    (&change.added, &change.removed),
                    (change.in_doubt, change.first_seen)
                )),
                told.get(n).map_or("none".into(), |change| described(
                    &change.delivery,
                    &change.kind,
                    (&change.added, &change.removed),
                    (change.in_doubt, change.first_seen)
                )),
            ));
        }
    }
    found
}

fn described(
    delivery: &str,
    kind: &str,
    (added, removed): (&[String], &[String]),
    (in_doubt, first_seen): (bool, bool),
) -> String {
    let mut text = format!("{kind} +{added:?} -{removed:?}");
    for (flag, name) in [(in_doubt, " in doubt"), (first_seen, " first seen")] {
        text.push_str(if flag { name } else { "" });
    }
    format!("{text} of delivery {delivery}")
}
