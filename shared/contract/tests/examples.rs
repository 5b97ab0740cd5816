//! The messages of version 1, frozen: `docs/examples/v1/` holds one of each kind, as it was published
//! when its kind was new. What is published today is read by whoever could read those.
//!
//! Files are never edited. An addition to a message needs no new file. A new kind of message does:
//! describe it in `examples/messages.rs`, then
//! `cargo test -p contract --test examples -- --ignored` writes the files that are missing.

#[path = "examples/compatible.rs"]
mod compatible;
#[path = "examples/messages.rs"]
mod messages;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use contract::{
    change::{Change, ChangeKind},
    envelope::{Envelope, HEADERS, read_change, read_event},
    event::{Action, IssueEvent, State, SyncCause},
    subject::EventSubject,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A message as its file shows it.
#[derive(Debug, Deserialize, Serialize)]
struct Example {
    subject: String,
    headers: BTreeMap<String, String>,
    /// The payload, if it is JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<Value>,
    /// The payload of a dead letter, if it is not JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_text: Option<String>,
}

impl From<&Envelope> for Example {
    fn from(envelope: &Envelope) -> Self {
        let headers = envelope.headers.0.iter();
        let json = serde_json::from_slice(&envelope.payload).ok();
        let text = String::from_utf8(envelope.payload.clone()).expect("UTF-8");
        Self {
            subject: envelope.subject.clone(),
            headers: headers.map(|(name, value)| (name.to_string(), value.clone())).collect(),
            payload_text: json.is_none().then_some(text),
            payload: json,
        }
    }
}

impl Example {
    fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self.payload.as_ref().expect("a JSON payload")).expect("JSON")
    }
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

fn directory() -> PathBuf {
    docs().join("examples/v1")
}

/// All frozen messages in one folder, by the names of their files.
fn frozen(folder: &str) -> Vec<(String, Example)> {
    let entries = fs::read_dir(directory().join(folder)).expect(folder);
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect(folder).path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no examples in {folder}");
    let read = |file: &PathBuf| {
        let name = file.display().to_string();
        let text = fs::read_to_string(file).expect(&name);
        (name.clone(), serde_json::from_str(&text).expect(&name))
    };
    files.iter().map(read).collect()
}

#[test]
#[ignore = "writes the files that are missing"]
fn freeze() {
    for (name, envelope) in messages::all() {
        let file = directory().join(format!("{name}.json"));
        if !file.exists() {
            fs::create_dir_all(file.parent().expect("a folder")).expect("create the folder");
            let text = serde_json::to_string_pretty(&Example::from(&envelope)).expect("JSON");
            fs::write(file, text + "\n").expect("write the example");
        }
    }
    for name in ["event", "change"] {
        let file = directory().join(format!("{name}.schema.json"));
        if !file.exists() {
            let today = docs().join(format!("schema/{name}.v1.json"));
            fs::copy(today, file).expect("write the schema");
        }
    }
}

#[test]
fn what_is_published_today_holds_all_that_is_frozen() {
    for (name, envelope) in messages::all() {
        let file = directory().join(format!("{name}.json"));
        let text = fs::read_to_string(&file).unwrap_or_else(|error| {
            panic!("{}: {error}; see the head of this file", file.display())
        });
        let frozen: Example = serde_json::from_str(&text).expect(&name);
        let today = Example::from(&envelope);
        assert_eq!(today.subject, frozen.subject, "{name}");
        let broken = compatible::message(
            &serde_json::to_value(&frozen).expect("JSON"),
            &serde_json::to_value(&today).expect("JSON"),
        );
        assert!(broken.is_empty(), "{name} breaks its readers: {broken:?}");
    }
}

#[test]
fn every_frozen_event_is_read_and_written_with_all_its_fields() {
    for (name, example) in frozen("events") {
        let event = read_event(&example.bytes()).expect(&name);
        let subject = EventSubject::parse(&example.subject).expect(&name);
        assert!(subject.is_of(&event), "{name}");
        assert_eq!(example.headers["Nats-Msg-Id"], event.delivery.id, "{name}");
        holds_all(&name, &example, &event);
    }
}

#[test]
fn every_frozen_change_is_read_and_written_with_all_its_fields() {
    for (name, example) in frozen("changes") {
        let change = read_change(&example.bytes()).expect(&name);
        assert_eq!(example.subject, contract::subject::of_change(&change), "{name}");
        assert_eq!(example.headers["Nats-Msg-Id"], change.message_id(), "{name}");
        holds_all(&name, &example, &change);
    }
}

#[test]
fn a_frozen_dead_letter_is_the_event_that_it_was() {
    for (name, example) in frozen("dead-letters") {
        assert!(example.subject.starts_with("gitea.dead.issues."), "{name}");
        if example.payload.is_some() {
            let event: IssueEvent = read_event(&example.bytes()).expect(&name);
            holds_all(&name, &example, &event);
        }
    }
}

fn holds_all(name: &str, example: &Example, read: &impl Serialize) {
    let again = serde_json::to_value(read).expect("JSON");
    let broken = compatible::message(example.payload.as_ref().expect("JSON"), &again);
    assert!(broken.is_empty(), "{name} is not written as it was read: {broken:?}");
}

/// A new action, kind, cause, state or header needs its example.
#[test]
fn there_is_an_example_of_everything() {
    let events: Vec<IssueEvent> = frozen("events")
        .iter()
        .map(|(name, example)| read_event(&example.bytes()).expect(name))
        .collect();
    let changes: Vec<Change> = frozen("changes")
        .iter()
        .map(|(name, example)| read_change(&example.bytes()).expect(name))
        .collect();
    let synced = || events.iter().filter_map(|event| event.synced.as_ref());
    for action in Action::KNOWN {
        assert!(events.iter().any(|event| event.action == action), "{action}");
    }
    for kind in ChangeKind::ALL {
        assert!(changes.iter().any(|change| change.kind == kind), "{kind}");
    }
    for cause in SyncCause::ALL {
        assert!(synced().any(|synced| synced.cause == cause), "{cause}");
    }
    for state in State::ALL {
        assert!(events.iter().any(|event| event.issue.state == state), "{state:?}");
    }
    for (name, example) in frozen("events").into_iter().chain(frozen("changes")) {
        assert!(example.headers.keys().all(|header| HEADERS.contains(&&**header)), "{name}");
    }
    // Every field that a schema names is in an example.
    for (schema, folder) in [("event", "events"), ("change", "changes")] {
        let mut seen = BTreeSet::new();
        for (_, example) in frozen(folder) {
            compatible::fields(example.payload.as_ref().expect("JSON"), &mut seen);
        }
        let mut named = BTreeSet::new();
        let file = docs().join(format!("schema/{schema}.v1.json"));
        compatible::schema_fields(&read(&file), &mut named);
        let missing: Vec<&String> = named.difference(&seen).collect();
        assert!(missing.is_empty(), "no example of {schema} has {missing:?}");
    }
}

fn read(file: &Path) -> Value {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn the_schemas_of_today_break_no_reader_of_the_frozen_ones() {
    for name in ["event", "change"] {
        let frozen = read(&directory().join(format!("{name}.schema.json")));
        let today = read(&docs().join(format!("schema/{name}.v1.json")));
        let broken = compatible::schema(&frozen, &today);
        assert!(broken.is_empty(), "{name}: {broken:?}");
    }
}
