//! One message of each kind, made of the types.

use contract::{
    change::{Change, ChangeKind},
    dead_letter::{self, History},
    envelope::{Envelope, Headers},
    event::{self, Act, ActKind, Action, IssueEvent, State, SyncCause, Synced, User},
    names::EVENTS,
    partitions::Partitions,
    timestamp::Timestamp,
};
use serde_json::json;

const SOURCE: &str = "http://localhost:3000";

/// All examples, by folder and name.
pub fn all() -> Vec<(String, Envelope)> {
    let events = events().into_iter().enumerate().map(|(n, (name, mut event))| {
        set_id(&mut event.delivery.id, n);
        (format!("events/{name}"), of(&event))
    });
    let changes = changes().into_iter().enumerate().map(|(n, (name, mut change))| {
        set_id(&mut change.cause.delivery_id, 0x100 + n);
        let parent = trace(&change.cause.delivery_id);
        let envelope = Envelope::of_change(&change, SOURCE, &parent).expect("an envelope");
        (format!("changes/{name}"), envelope)
    });
    let dead =
        dead_letters().into_iter().map(|(name, letter)| (format!("dead-letters/{name}"), letter));
    events.chain(changes).chain(dead).collect()
}

/// Gives each example a delivery of its own: the `n`th after the one of the types' example.
fn set_id(id: &mut String, n: usize) {
    let (rest, last) = id.rsplit_once('-').expect("a UUID");
    let last = usize::from_str_radix(last, 16).expect("hex") + n;
    *id = format!("{rest}-{last:012x}");
}

fn of(event: &IssueEvent) -> Envelope {
    let parent = trace(&event.delivery.id);
    Envelope::of_event(event, SOURCE, &parent, Partitions::DEFAULT).expect("an envelope")
}

fn trace(delivery_id: &str) -> contract::traceparent::Traceparent {
    format!("00-{}-00f067aa0ba902b7-01", delivery_id.replace('-', "")).parse().expect("a trace")
}

fn at(text: &str) -> Option<Timestamp> {
    Some(Timestamp::parse(text).expect("a time"))
}

fn user(id: i64, login: &str) -> User {
    User { id, login: login.into() }
}

fn event(action: Action) -> IssueEvent {
    IssueEvent { action, ..event::example() }
}

fn synced(cause: SyncCause) -> IssueEvent {
    let mut event = event(Action::Synced);
    event.delivery.hook = None;
    event.delivery.id = "0d5a7c1e-93c5-8d0e-9a53-3f1f0a3f6f10".into();
    event.delivery.received_at = at("2026-11-23T23:45:06.310Z").expect("a time");
    event.sender = user(0, "");
    event.synced = Some(Box::new(Synced {
        cause,
        known: "b60f8ed3-6a1a-4e58-b31e-0b00968f94cb".into(),
        answered_at: at("2026-11-23T23:45:06Z"),
        raised_by: None,
        history: false,
        acts: Vec::new(),
    }));
    event
}

fn events() -> Vec<(&'static str, IssueEvent)> {
    let with = |action, set: &dyn Fn(&mut IssueEvent)| {
        let mut event = event(action);
        set(&mut event);
        event
    };
    let synced_with = |cause, sender, set: &dyn Fn(&mut Synced)| {
        let mut event = IssueEvent { sender, ..synced(cause) };
        set(event.synced.as_deref_mut().expect("an answer"));
        event
    };
    vec![
        (
            "opened",
            with(Action::Opened, &|event| {
                // Gitea sends a zero value while it creates the issue.
                event.issue.updated_at = None;
                event.issue.assignees.clear();
                event.issue.labels.clear();
            }),
        ),
        (
            "edited",
            with(Action::Edited, &|event| {
                event.changes = Some(json!({ "title": { "from": "Login is broken" } }));
            }),
        ),
        (
            "closed",
            with(Action::Closed, &|event| {
                event.issue.state = State::Closed;
                event.issue.closed_at = at("2026-11-23T23:45:02Z");
                event.commit_id = Some("9f2c8f7c6a1f0c5b3e4d2a1908f7e6d5c4b3a291".into());
            }),
        ),
        ("reopened", event(Action::Reopened)),
        ("assigned", event(Action::Assigned)),
        ("unassigned", with(Action::Unassigned, &|event| event.issue.assignees.clear())),
        (
            "label_updated",
            with(Action::LabelUpdated, &|event| {
                event.changes = Some(json!({ "added_labels": [{ "id": 1, "name": "bug" }] }));
            }),
        ),
        ("label_cleared", with(Action::LabelCleared, &|event| event.issue.labels.clear())),
        (
            "milestoned",
            with(Action::Milestoned, &|event| {
                event.issue.milestone = Some("1.0".into());
                event.issue.due_date = at("2026-12-31T23:59:59Z");
            }),
        ),
        ("demilestoned", event(Action::Demilestoned)),
        ("deleted", event(Action::Deleted)),
        ("unknown-action", event(Action::Other("pinned".into()))),
        (
            "escaped-names",
            with(Action::Assigned, &|event| {
                event.repository.owner = "Zoë".into();
                event.repository.name = "docs.site".into();
            }),
        ),
        (
            "cut",
            with(Action::Edited, &|event| {
                event.issue.body = "A long text. ".repeat(1_000);
                assert!(event.cut_to(2_000), "it is cut");
            }),
        ),
        (
            "synced-doubt",
            synced_with(SyncCause::Doubt, user(1, "maria"), &|synced| {
                synced.raised_by = Some("4f7b6c1a-2d8e-4b0f-8c39-5a1e7d9b2c64".into());
                synced.acts = vec![Act {
                    kind: ActKind::Assigned,
                    whom: Some(user(4, "bot")),
                    by: user(1, "maria"),
                    at: at("2026-11-23T23:45:02Z"),
                }];
            }),
        ),
        (
            "synced-missed",
            synced_with(SyncCause::Missed, user(0, ""), &|synced| {
                synced.known = String::new();
                synced.history = true;
            }),
        ),
        ("synced-repair", synced(SyncCause::Repair)),
        ("synced-gone", synced(SyncCause::Gone)),
        ("synced-asked", synced(SyncCause::Asked)),
    ]
}

fn changes() -> Vec<(&'static str, Change)> {
    let change = |kind, event: &IssueEvent, set: &dyn Fn(&mut Change)| {
        let mut change = Change::from_event(kind, event);
        set(&mut change);
        change
    };
    let added = |change: &mut Change| {
        (change.added, change.added_ids) = (vec!["bot".into()], vec![4]);
    };
    let removed = |change: &mut Change| {
        (change.removed, change.removed_ids) = (vec!["tom".into()], vec![5]);
    };
    let mut closed = event(Action::Closed);
    closed.issue.state = State::Closed;
    closed.issue.closed_at = at("2026-11-23T23:45:02Z");
    let mut cut = event(Action::Assigned);
    cut.issue.body = "A long text. ".repeat(1_000);
    assert!(cut.cut_to(2_000), "it is cut");
    let mut milestoned = event(Action::Milestoned);
    milestoned.issue.milestone = Some("1.0".into());
    milestoned.issue.due_date = at("2026-12-31T23:59:59Z");
    let mut doubt = synced(SyncCause::Doubt);
    doubt.issue.assignees = vec![user(4, "bot"), user(5, "tom")];
    doubt.sender = user(1, "maria");
    doubt.synced.as_deref_mut().expect("an answer").raised_by =
        Some("4f7b6c1a-2d8e-4b0f-8c39-5a1e7d9b2c64".into());
    let (assigned, deleted) = (event(Action::Assigned), event(Action::Deleted));
    vec![
        ("assigned", change(ChangeKind::Assigned, &assigned, &added)),
        ("unassigned", change(ChangeKind::Unassigned, &event(Action::Unassigned), &removed)),
        ("closed", change(ChangeKind::Closed, &closed, &|_| {})),
        ("reopened", change(ChangeKind::Reopened, &event(Action::Reopened), &|_| {})),
        ("deleted", change(ChangeKind::Deleted, &deleted, &|_| {})),
        // Told before `deleted`, of the same event.
        (
            "unassigned-at-the-end",
            change(ChangeKind::Unassigned, &deleted, &|change| {
                (change.removed, change.removed_ids) = (vec!["bot".into()], vec![4]);
            }),
        ),
        (
            "assigned-first-seen",
            change(ChangeKind::Assigned, &milestoned, &|change| {
                added(change);
                change.first_seen = true;
            }),
        ),
        // Of an issue that was not known nobody knows who was taken off.
        (
            "unassigned-first-seen",
            change(ChangeKind::Unassigned, &event(Action::Unassigned), &|change| {
                change.first_seen = true
            }),
        ),
        (
            "unassigned-id-not-known",
            change(ChangeKind::Unassigned, &event(Action::Unassigned), &|change| {
                (change.removed, change.removed_ids) = (vec!["tom".into()], vec![0])
            }),
        ),
        (
            "assigned-in-doubt",
            change(ChangeKind::Assigned, &assigned, &|change| {
                added(change);
                change.in_doubt = true;
            }),
        ),
        (
            "assigned-by",
            change(ChangeKind::Assigned, &doubt, &|change| {
                (change.added, change.added_ids) = (vec!["bot".into(), "tom".into()], vec![4, 5]);
                change.by = vec![Some(user(1, "maria")), None];
            }),
        ),
        (
            "closed-by",
            change(
                ChangeKind::Closed,
                &IssueEvent { issue: closed.issue.clone(), ..synced(SyncCause::Missed) },
                &|change| {
                    change.sender = user(1, "maria");
                    change.by = vec![Some(user(1, "maria"))];
                },
            ),
        ),
        ("deleted-gone", change(ChangeKind::Deleted, &synced(SyncCause::Gone), &|_| {})),
        ("assigned-cut", change(ChangeKind::Assigned, &cut, &added)),
    ]
}

fn dead_letters() -> Vec<(&'static str, Envelope)> {
    let original = of(&event::example());
    let park = |error: &str, attempts, headers: &Headers, payload: Vec<u8>| {
        let history =
            History { error: error.into(), attempts, stream: EVENTS.into(), sequence: 1_234 };
        dead_letter::park(&original.subject, headers, payload, &history)
    };
    let whole = original.payload.clone();
    let nothing = Headers::default();
    vec![
        (
            "permanent",
            park("the broker takes no message of that size", 1, &original.headers, whole.clone()),
        ),
        (
            "too-many-attempts",
            park(
                "tried too often; whoever handled it may have died of it",
                10,
                &original.headers,
                whole,
            ),
        ),
        (
            "unreadable",
            park(
                "the payload is not of the expected shape (line 1, column 1)",
                1,
                &nothing,
                b"not an event".to_vec(),
            ),
        ),
        (
            "without-payload",
            park("the broker takes no message of that size", 1, &original.headers, Vec::new()),
        ),
        (
            "without-headers",
            park("the broker takes no message of that size", 1, &nothing, Vec::new()),
        ),
    ]
}
