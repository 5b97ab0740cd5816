//! What must hold after any failure: nothing lost, nothing doubled, order per issue kept.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use async_nats::jetstream;
use contract::{
    change::{Change, ChangeKind},
    event::{Action, IssueEvent, State},
};
use serde_json::Value;

use crate::{bus, gitea::Delivery};

/// An issue: its repository's id and its number.
pub type Key = (i64, u64);

/// Checks the streams of a broker against the deliveries that were answered 200.
///
/// # Panics
/// With a list of all violations.
pub async fn kept(js: &jetstream::Context, accepted: &[Delivery]) {
    let (events, changes) = (bus::events(js).await, bus::changes(js).await);
    let mut violations = violations(accepted, &events, &changes);
    violations.extend(events_out_of_order(&events));
    assert!(violations.is_empty(), "{}", report(&violations));
}

/// Like [`kept`], but the events of one issue came by several ways and so in any order.
///
/// # Panics
/// With a list of all violations.
pub async fn kept_in_any_order(js: &jetstream::Context, accepted: &[Delivery]) {
    let violations = violations(accepted, &bus::events(js).await, &bus::changes(js).await);
    assert!(violations.is_empty(), "{}", report(&violations));
}

/// What subscribers must believe of an issue at last: logins and whether it is open, or None if it
/// has ended.
pub type Believed = BTreeMap<Key, Option<(Vec<String>, bool)>>;

/// What is wrong with changes after which subscribers should believe this: a change that is there
/// twice, one that is impossible, and another end.
pub fn wrongly_told(changes: &[Change], expected: &Believed) -> Vec<String> {
    let mut wrong = repeated_changes(changes);
    let (mut folded, mut ended) = (BTreeMap::<Key, Folded>::new(), BTreeSet::new());
    for change in changes {
        let key = (change.repository.id, change.issue.number);
        let impossible = folded.entry(key).or_default().apply(change);
        let name = change.message_id();
        wrong.extend(impossible.into_iter().map(|what| format!("change {name} {what}")));
        if change.kind != ChangeKind::Deleted {
            ended.remove(&key);
        } else if !ended.insert(key) {
            wrong.push(format!("change {name} ends what had ended"));
        }
    }
    for (key, expected) in expected {
        let end = folded.remove(key).unwrap_or_default();
        let is_over = ended.contains(key);
        let end = (!is_over).then(|| (end.assignees.into_iter().collect(), !end.closed));
        let expected = expected.clone().map(|(mut logins, is_open)| {
            logins.sort();
            (logins, is_open)
        });
        if end != expected {
            wrong.push(format!("issue {key:?} ends as {end:?} instead of {expected:?}"));
        }
    }
    wrong
}

fn report(violations: &[String]) -> String {
    let shown = violations.iter().take(20).cloned().collect::<Vec<_>>().join("\n  ");
    format!("{} violations:\n  {shown}", violations.len())
}

/// All that is wrong with the events and changes that followed from these deliveries.
pub fn violations(accepted: &[Delivery], events: &[IssueEvent], changes: &[Change]) -> Vec<String> {
    let mut violations = wrong_events(accepted, events);
    violations.extend(repeated_changes(changes));
    violations.extend(wrong_changes(events, changes));
    violations
}

/// Every 200 must have one event with its id and its content, and no event may be there twice.
fn wrong_events(accepted: &[Delivery], events: &[IssueEvent]) -> Vec<String> {
    let mut by_id: HashMap<&str, Vec<&IssueEvent>> = HashMap::new();
    for event in events {
        by_id.entry(&event.delivery.id).or_default().push(event);
    }
    let mut wrong: Vec<String> = by_id
        .iter()
        .filter(|(_, events)| events.len() > 1)
        .map(|(id, events)| format!("{} events of delivery {id}", events.len()))
        .collect();
    for delivery in accepted {
        match by_id.get(delivery.id()) {
            None => wrong.push(format!("no event of delivery {}", delivery.id())),
            Some(events) if !tells(events[0], delivery) => {
                wrong.push(format!("the event of delivery {} says something else", delivery.id()));
            }
            Some(_) => {}
        }
    }
    wrong
}

fn tells(event: &IssueEvent, delivery: &Delivery) -> bool {
    let payload: Value = serde_json::from_slice(&delivery.body).expect("a JSON delivery");
    let issue = &payload["issue"];
    let empty = Vec::new();
    let assignees = issue["assignees"].as_array().unwrap_or(&empty);
    let assignees: Vec<_> = assignees.iter().filter_map(|user| user["login"].as_str()).collect();
    payload["action"] == event.action.as_str()
        && payload["repository"]["id"] == event.repository.id
        && issue["number"] == event.issue.number
        && issue["state"] == state(event)
        && assignees == event.issue.assignee_logins()
}

fn state(event: &IssueEvent) -> &'static str {
    match event.issue.state {
        State::Open => "open",
        State::Closed => "closed",
        State::Other => "other",
    }
}

fn repeated_changes(changes: &[Change]) -> Vec<String> {
    let mut seen = HashSet::new();
    changes
        .iter()
        .filter(|change| !seen.insert((&change.cause.delivery_id, change.kind)))
        .map(|change| format!("change {} twice", change.message_id()))
        .collect()
}

/// What the changes of one issue add up to.
#[derive(Default, PartialEq, Debug)]
struct Folded {
    assignees: BTreeSet<String>,
    closed: bool,
}

impl Folded {
    fn of(event: &IssueEvent) -> Self {
        Self {
            assignees: event.issue.assignee_logins().into_iter().collect(),
            closed: event.issue.state == State::Closed,
        }
        .ended_if(event.action == Action::Deleted)
    }

    /// Nobody works on an issue that is deleted.
    fn ended_if(self, deleted: bool) -> Self {
        if deleted { Self::default() } else { self }
    }

    /// Applies a change. Returns what in it is impossible.
    fn apply(&mut self, change: &Change) -> Vec<String> {
        let mut wrong = Vec::new();
        for login in &change.added {
            if !self.assignees.insert(login.clone()) {
                wrong.push(format!("adds {login}, who is there"));
            }
        }
        for login in &change.removed {
            if !self.assignees.remove(login) {
                wrong.push(format!("removes {login}, who is not there"));
            }
        }
        let closed = match change.kind {
            ChangeKind::Closed => true,
            ChangeKind::Reopened => false,
            ChangeKind::Assigned | ChangeKind::Unassigned => return wrong,
            ChangeKind::Deleted => {
                if !self.assignees.is_empty() {
                    wrong.push(format!("ends with {:?} assigned", self.assignees));
                }
                *self = Self::default();
                return wrong;
            }
            ChangeKind::Other => {
                wrong.push("is of no known kind".into());
                return wrong;
            }
        };
        // For an issue not seen before, `reopened` is allowed, although the issue counts as open.
        if self.closed == closed && !change.first_seen {
            wrong.push(format!("is {} and was so before", change.kind));
        }
        self.closed = closed;
        wrong
    }
}

fn wrong_changes(events: &[IssueEvent], changes: &[Change]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut folded: BTreeMap<Key, Folded> = BTreeMap::new();
    let mut last_received = HashMap::new();
    for change in changes {
        let key = (change.repository.id, change.issue.number);
        let (name, issue) = (change.message_id(), folded.entry(key).or_default());
        wrong.extend(issue.apply(change).into_iter().map(|what| format!("change {name} {what}")));
        let received_at = change.cause.received_at.unix_micros();
        let last = last_received.insert(key, received_at).unwrap_or(i64::MIN);
        if received_at < last {
            wrong.push(format!("change {name} goes back in time"));
        }
    }
    let mut newest: BTreeMap<Key, &IssueEvent> = BTreeMap::new();
    for event in events {
        let newest = newest.entry((event.repository.id, event.issue.number)).or_insert(event);
        if age(event) >= age(newest) {
            *newest = event;
        }
    }
    for (key, event) in newest {
        let (ends, expected) = (folded.remove(&key).unwrap_or_default(), Folded::of(event));
        if ends != expected {
            wrong.push(format!("issue {key:?} ends as {ends:?} instead of {expected:?}"));
        }
    }
    wrong.extend(folded.keys().map(|key| format!("changes of issue {key:?} without an event")));
    wrong
}

fn age(event: &IssueEvent) -> (Option<i64>, i64) {
    let updated_at = event.issue.updated_at.map(|at| at.unix_micros());
    (updated_at, event.delivery.received_at.unix_micros())
}

/// Events of an issue that come after a newer one in the stream.
pub fn events_out_of_order(events: &[IssueEvent]) -> Vec<String> {
    let mut last = HashMap::new();
    let mut wrong = Vec::new();
    for event in events {
        let key = (event.repository.id, event.issue.number);
        if let Some(before) = last.insert(key, age(event))
            && age(event) < before
        {
            wrong.push(format!("event {} stands behind a newer one", event.delivery.id));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::story;
    use contract::timestamp::Timestamp;

    /// One issue's story, and the events and changes that must follow from it.
    fn sound() -> (Vec<Delivery>, Vec<IssueEvent>, Vec<Change>) {
        let deliveries = story(1, 1, 12);
        let mut events = Vec::new();
        let mut changes = Vec::new();
        let mut before = Folded::default();
        for (n, delivery) in deliveries.iter().enumerate() {
            let payload: Value = serde_json::from_slice(&delivery.body).expect("json");
            let mut event = contract::event::example();
            let received_at = Timestamp::from_unix_micros(n as i64);
            event.delivery.id = delivery.id().to_owned();
            event.delivery.received_at = received_at;
            event.action = payload["action"].as_str().expect("action").to_owned().into();
            event.repository.id = 1;
            event.issue.number = 1;
            event.issue.updated_at = Some(received_at);
            let logins = payload["issue"]["assignees"].as_array().cloned().unwrap_or_default();
            let login = |user: &Value| user["login"].as_str().expect("login").to_owned();
            event.issue.assignees = logins
                .iter()
                .map(|user| contract::event::User { id: 1, login: login(user) })
                .collect();
            event.issue.state = match payload["issue"]["state"].as_str() {
                Some("closed") => State::Closed,
                _ => State::Open,
            };
            let now = Folded::of(&event);
            let kind = match (before.closed, now.closed) {
                (false, true) => ChangeKind::Closed,
                (true, false) => ChangeKind::Reopened,
                _ if now.assignees.len() > before.assignees.len() => ChangeKind::Assigned,
                _ => ChangeKind::Unassigned,
            };
            let mut change = Change::from_event(kind, &event);
            change.added = now.assignees.difference(&before.assignees).cloned().collect();
            change.removed = before.assignees.difference(&now.assignees).cloned().collect();
            if n > 0 {
                changes.push(change);
            }
            events.push(event);
            before = now;
        }
        (deliveries, events, changes)
    }

    #[test]
    fn nothing_is_wrong_with_what_is_sound() {
        let (deliveries, events, changes) = sound();
        assert_eq!(violations(&deliveries, &events, &changes), Vec::<String>::new());
        assert_eq!(events_out_of_order(&events), Vec::<String>::new());
    }

    #[test]
    fn a_lost_event_is_found() {
        let (deliveries, mut events, changes) = sound();
        let lost = events.remove(3).delivery.id;
        let expected = [format!("no event of delivery {lost}")];
        assert_eq!(violations(&deliveries, &events, &changes), expected);
    }

    #[test]
    fn a_doubled_event_is_found() {
        let (deliveries, mut events, changes) = sound();
        events.insert(4, events[3].clone());
        let expected = [format!("2 events of delivery {}", events[3].delivery.id)];
        assert_eq!(violations(&deliveries, &events, &changes), expected);
    }

    #[test]
    fn an_event_that_says_something_else_is_found() {
        let (deliveries, mut events, changes) = sound();
        events[3].issue.assignees.clear();
        let id = &events[3].delivery.id;
        let expected = [format!("the event of delivery {id} says something else")];
        assert_eq!(violations(&deliveries, &events, &changes), expected);
    }

    #[test]
    fn events_out_of_order_are_found() {
        let (deliveries, mut events, changes) = sound();
        events.swap(3, 4);
        let expected = [format!("event {} stands behind a newer one", events[4].delivery.id)];
        assert_eq!(events_out_of_order(&events), expected);
        assert_eq!(violations(&deliveries, &events, &changes), Vec::<String>::new());
    }

    #[test]
    fn a_doubled_change_is_found() {
        let (deliveries, events, mut changes) = sound();
        changes.insert(1, changes[0].clone());
        let id = changes[0].message_id();
        let expected =
            [format!("change {id} twice"), format!("change {id} adds bot, who is there")];
        assert_eq!(violations(&deliveries, &events, &changes), expected);
    }

    #[test]
    fn a_lost_change_is_found() {
        let (deliveries, events, mut changes) = sound();
        changes.remove(0);
        let found = violations(&deliveries, &events, &changes);
        assert!(found[0].ends_with("removes bot, who is not there"), "{found:?}");
    }

    #[test]
    fn changes_out_of_order_are_found() {
        let (deliveries, events, mut changes) = sound();
        changes.swap(0, 1);
        let expected = [format!("change {} goes back in time", changes[1].message_id())];
        assert_eq!(violations(&deliveries, &events, &changes), expected);
    }

    #[test]
    fn an_issue_closed_twice_is_found() {
        let (deliveries, events, mut changes) = sound();
        let reopened = changes.iter().position(|c| c.kind == ChangeKind::Reopened).expect("one");
        changes.remove(reopened);
        let again = changes.iter().rfind(|c| c.kind == ChangeKind::Closed).expect("two");
        let expected = [format!("change {} is closed and was so before", again.message_id())];
        assert_eq!(violations(&deliveries, &events, &changes), expected);
    }

    #[test]
    fn what_is_told_wrongly_is_found() {
        let (_, _, changes) = sound();
        let mut last = Folded::default();
        for change in &changes {
            assert_eq!(last.apply(change), [""; 0]);
        }
        let end = (last.assignees.iter().cloned().collect::<Vec<_>>(), !last.closed);
        let expect = |end| Believed::from([((1, 1), end)]);
        assert_eq!(wrongly_told(&changes, &expect(Some(end.clone()))), [""; 0]);
        let other = (vec!["nobody".to_owned()], end.1);
        assert_eq!(wrongly_told(&changes, &expect(Some(other))).len(), 1);
        assert_eq!(wrongly_told(&changes, &expect(None)).len(), 1);
        let deleted = |n: usize| {
            let mut event = contract::event::example();
            (event.repository.id, event.issue.number) = (1, 1);
            event.delivery.id = format!("deleted {n}");
            Change::from_event(ChangeKind::Deleted, &event)
        };
        let ended = vec![deleted(1)];
        assert_eq!(wrongly_told(&ended, &expect(None)), [""; 0]);
        let twice = wrongly_told(&[deleted(1), deleted(2)], &expect(None));
        assert!(twice[0].ends_with("ends what had ended"), "{twice:?}");
    }

    #[test]
    fn a_wrong_end_is_found() {
        let (deliveries, events, mut changes) = sound();
        changes.pop();
        let found = violations(&deliveries, &events, &changes);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("issue (1, 1) ends as "), "{found:?}");
    }

    #[test]
    fn changes_of_an_issue_that_no_event_is_about_are_found() {
        let (_, _, mut changes) = sound();
        changes.truncate(1);
        let expected = ["changes of issue (1, 1) without an event"];
        assert_eq!(violations(&[], &[], &changes), expected);
    }
}
