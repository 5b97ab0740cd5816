//! What must follow from one issue's events, in the order of the stream
//! (docs/ARCHITECTURE.md, "From events to changes").

use std::collections::HashSet;

use crate::records::Snapshot;

/// What was published of an issue so far.
#[derive(Debug, Default)]
pub(super) struct Issue {
    seen_before: bool,
    assignees: Vec<String>,
    closed: bool,
    second: Option<i64>,
    in_doubt: bool,
    /// Nothing follows a deletion.
    deleted: bool,
    /// Digests of the bodies of `second`.
    bodies: HashSet<String>,
    /// Digests of bodies without a time. Such a body is never new again.
    undated: HashSet<String>,
}

/// A change that must be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) kind: &'static str,
    pub(super) added: Vec<String>,
    pub(super) removed: Vec<String>,
    pub(super) in_doubt: bool,
    pub(super) first_seen: bool,
}

impl Issue {
    /// Takes the next event and returns the changes that must be published for it.
    pub(super) fn next(&mut self, event: &Snapshot) -> Vec<Expected> {
        let first_seen = !self.seen_before;
        if self.deleted {
            return Vec::new();
        }
        if event.action == "deleted" {
            return self.end(event, first_seen);
        }
        // An unknown second counts as equal to the known one.
        let same_second = self.seen_before
            && match (self.second, event.updated_at) {
                (Some(known), Some(event)) if event < known => return Vec::new(),
                (Some(known), Some(event)) => event == known,
                (None, Some(_)) => false,
                (_, None) => true,
            };
        if !same_second {
            self.bodies.clear();
        }
        let seen = if event.updated_at.is_some() { &mut self.bodies } else { &mut self.undated };
        if !seen.insert(event.digest.clone()) {
            return Vec::new();
        }
        let told = self.differences(event, first_seen);
        let contradicts = same_second && !told.is_empty();
        self.in_doubt = contradicts || (same_second && self.in_doubt);
        self.seen_before = true;
        self.assignees.clone_from(&event.assignees);
        self.closed = event.state == "closed";
        self.second = event.updated_at.or(self.second);
        let flagged = |mut change: Expected| {
            (change.in_doubt, change.first_seen) = (contradicts, first_seen);
            change
        };
        told.into_iter().map(flagged).collect()
    }

    /// The last event of an issue, whatever its time. Everybody is unassigned, as far as known.
    fn end(&mut self, event: &Snapshot, first_seen: bool) -> Vec<Expected> {
        let people = if first_seen { &event.assignees } else { &self.assignees };
        let told = |kind, removed: &[String]| Expected {
            kind,
            added: Vec::new(),
            removed: removed.to_vec(),
            in_doubt: false,
            first_seen,
        };
        let mut changes = Vec::new();
        if !people.is_empty() {
            changes.push(told("unassigned", people));
        }
        changes.push(told("deleted", &[]));
        *self = Self { seen_before: true, deleted: true, ..Self::default() };
        changes
    }

    fn differences(&self, event: &Snapshot, first_seen: bool) -> Vec<Expected> {
        let without = |these: &[String], those: &[String]| -> Vec<String> {
            these.iter().filter(|login| !those.contains(login)).cloned().collect()
        };
        let removed = without(&self.assignees, &event.assignees);
        let added = without(&event.assignees, &self.assignees);
        let closed = event.state == "closed";
        let believed = |action: &str| first_seen && event.action == action;
        let told = |kind, added, removed| Expected {
            kind,
            added,
            removed,
            in_doubt: false,
            first_seen: false,
        };
        let mut changes = Vec::new();
        if !removed.is_empty() || believed("unassigned") {
            changes.push(told("unassigned", Vec::new(), removed));
        }
        if closed && !self.closed {
            changes.push(told("closed", Vec::new(), Vec::new()));
        }
        if !closed && (self.closed || believed("reopened")) {
            changes.push(told("reopened", Vec::new(), Vec::new()));
        }
        if !added.is_empty() {
            changes.push(told("assigned", added, Vec::new()));
        }
        changes
    }
}
