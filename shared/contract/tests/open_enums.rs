//! Enums are open: what a newer program publishes is read by an older one.

use contract::{
    change::{Change, ChangeKind},
    event::{self, Act, ActKind, Action, IssueEvent, State, SyncCause, Synced, User},
    issue_state::{KnownIssue, Lifecycle},
};
use serde_json::{Value, json};

/// An event that has every enum in it.
fn full() -> IssueEvent {
    let mut event = event::example();
    let by = User { id: 1, login: "maria".into() };
    event.synced = Some(Box::new(Synced {
        cause: SyncCause::Doubt,
        known: String::new(),
        answered_at: None,
        raised_by: None,
        history: false,
        acts: vec![Act { kind: ActKind::Closed, whom: None, by, at: None }],
    }));
    event
}

/// `value` with another text at `pointer`.
fn with(mut value: Value, pointer: &str, text: &str) -> Value {
    *value.pointer_mut(pointer).expect(pointer) = text.into();
    value
}

#[test]
fn an_event_with_an_unknown_value_of_any_enum_is_read() {
    let json = serde_json::to_value(full()).expect("JSON");
    for pointer in
        ["/action", "/issue/state", "/synced/cause", "/synced/acts/0/kind", "/delivery/hook"]
    {
        let event: IssueEvent =
            serde_json::from_value(with(json.clone(), pointer, "news")).expect(pointer);
        let synced = event.synced.as_ref().expect("synced");
        let unknown = [
            event.action == Action::Other("news".into()),
            event.issue.state == State::Other,
            synced.cause == SyncCause::Other,
            synced.acts[0].kind == ActKind::Other,
            event.delivery.hook.as_deref() == Some("news"),
        ];
        assert_eq!(unknown.iter().filter(|unknown| **unknown).count(), 1, "{pointer}");
    }
}

#[test]
fn a_change_with_an_unknown_value_of_any_enum_is_read() {
    let json = serde_json::to_value(Change::from_event(ChangeKind::Closed, &full())).expect("JSON");
    for pointer in ["/kind", "/issue/state", "/cause/action", "/cause/synced"] {
        let change: Change =
            serde_json::from_value(with(json.clone(), pointer, "news")).expect(pointer);
        let unknown = [
            change.kind == ChangeKind::Other,
            change.issue.state == State::Other,
            change.cause.action == Action::Other("news".into()),
            change.cause.synced == Some(SyncCause::Other),
        ];
        assert_eq!(unknown.iter().filter(|unknown| **unknown).count(), 1, "{pointer}");
    }
}

#[test]
fn an_issues_entry_with_an_unknown_state_is_read_and_nobody_works_on_it() {
    let entry = json!({ "assignees": [{ "id": 4, "login": "bot" }], "state": "frozen" });
    let known: KnownIssue = serde_json::from_value(entry).expect("an entry");
    assert!(known.state == Lifecycle::Other && !known.is_worked_on());
}

/// A validating reader refuses what a schema closes: `enum`, `const`, objects without more fields.
#[test]
fn the_schemas_close_nothing() {
    for name in ["event", "change"] {
        let file = format!("{}/../../docs/schema/{name}.v1.json", env!("CARGO_MANIFEST_DIR"));
        let schema = std::fs::read_to_string(&file).expect(&file);
        let schema: Value = serde_json::from_str(&schema).expect(&file);
        let mut closed = Vec::new();
        find_closed(&schema, name, &mut closed);
        assert!(closed.is_empty(), "{closed:?}");
    }
}

fn find_closed(schema: &Value, path: &str, closed: &mut Vec<String>) {
    let entries: Vec<(String, &Value)> = match schema {
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(list) => {
            list.iter().enumerate().map(|(n, value)| (n.to_string(), value)).collect()
        }
        _ => return,
    };
    for (key, value) in entries {
        let path = format!("{path}/{key}");
        let closing = ["enum", "const", "additionalProperties", "unevaluatedProperties", "pattern"];
        if closing.contains(&key.as_str()) {
            closed.push(path.clone());
        }
        find_closed(value, &path, closed);
    }
}
