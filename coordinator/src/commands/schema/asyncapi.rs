//! The AsyncAPI 3.0 document: what a subscriber can receive, from where, and in which form.
//! <https://www.asyncapi.com/docs/reference/specification/v3.0.0>

use contract::{
    change::{CHANGE_SCHEMA, CHANGE_VERSION, Change, ChangeKind},
    dead_letter,
    envelope::{CONTENT_TYPE, Envelope, HEADERS, MESSAGE_ID},
    event::{self, Action, EVENT_SCHEMA, IssueEvent},
    names::{CHANGES, CHANGES_PREFIX, DEAD_LETTERS, DEAD_PREFIX, EVENTS, EVENTS_PREFIX},
    partitions::Partitions,
    traceparent::TRACEPARENT,
};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// The document.
pub(super) fn document() -> serde_json::Result<Value> {
    // AsyncAPI's own dialect is a superset of draft 07.
    let mut generator = SchemaSettings::draft07()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .for_serialize()
        .into_generator();
    let event = generator.subschema_for::<IssueEvent>();
    let change = generator.subschema_for::<Change>();
    let mut schemas = Map::new();
    for (name, schema) in generator.take_definitions(true) {
        let schema = schemars::Schema::try_from(schema)?;
        schemas.insert(name, serde_json::to_value(schema)?);
    }
    schemas.insert("Headers".into(), headers());
    schemas.insert("DeadLetterHeaders".into(), dead_letter_headers());
    let mut schemas = Value::Object(schemas);
    super::leave_out_null(&mut schemas);
    Ok(json!({
        "asyncapi": "3.0.0",
        "id": "urn:coordinator",
        "info": {
            "title": "Coordinator",
            "version": format!("{CHANGE_VERSION}.0.0"),
            "description": DESCRIPTION,
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "defaultContentType": CONTENT_TYPE,
        "servers": {
            "nats": {
                "host": "127.0.0.1:4222",
                "protocol": "nats",
                "description": "NATS 2.10 or newer with JetStream. `cargo run` starts one at this \
                    address, which takes the user `local` with the password in \
                    `data/nats-password`. A deployment has its own, with TLS where it crosses a \
                    network (`tls://`).",
                "security": [{ "$ref": "#/components/securitySchemes/user" }],
            },
        },
        "channels": {
            "events": {
                "address": format!(
                    "{EVENTS_PREFIX}.{{action}}.{{owner}}.{{repository}}.{{number}}.{{partition}}"
                ),
                "title": "Events",
                "description": "What Gitea said: one message a delivery, in the order of their \
                    receipt for each issue.",
                "messages": { "event": { "$ref": "#/components/messages/event" } },
                "parameters": event_parameters(),
                "x-jetstream-stream": stream(EVENTS, format!("{EVENTS_PREFIX}.>"), "new"),
            },
            "changes": {
                "address": format!("{CHANGES_PREFIX}.{{kind}}.{{owner}}.{{repository}}.{{number}}"),
                "title": "Changes",
                "description": "What follows from the events: one message a change, in order for \
                    each issue. Of one event, `unassigned` comes before `assigned`.",
                "messages": { "change": { "$ref": "#/components/messages/change" } },
                "parameters": {
                    "kind": parameter(
                        "What changed. Kinds are open: more may come.",
                        &ChangeKind::ALL.map(ChangeKind::as_str),
                    ),
                    "owner": name("Owner of the repository"),
                    "repository": name("Name of the repository"),
                    "number": number(),
                },
                "x-jetstream-stream": stream(CHANGES, format!("{CHANGES_PREFIX}.>"), "old"),
            },
            "deadLetters": {
                "address": format!(
                    "{DEAD_PREFIX}.issues.{{action}}.{{owner}}.{{repository}}.{{number}}.{{partition}}"
                ),
                "title": "Dead letters",
                "description": "Events that were given up, for operators: the subject of the event \
                    with `gitea.dead` in place of `gitea`.",
                "messages": { "deadLetter": { "$ref": "#/components/messages/deadLetter" } },
                "parameters": event_parameters(),
                "x-jetstream-stream": stream(DEAD_LETTERS, format!("{DEAD_PREFIX}.>"), "new"),
            },
        },
        "operations": {
            "receiveChanges": operation(
                "changes",
                "Act on what changed: the usual subscription, of agents and bots.",
            ),
            "receiveEvents": operation("events", "Follow all that Gitea says."),
            "receiveDeadLetters": operation("deadLetters", "Watch what was given up."),
        },
        "components": {
            "securitySchemes": {
                "user": {
                    "type": "userPassword",
                    "description": "A user of the NATS server. It needs to read the streams and to \
                        have durable consumers of its own; it needs no right to publish on `gitea.>`.",
                },
            },
            "messages": {
                "event": message("IssueEvent", "An event", event, "Headers", EVENT_SCHEMA),
                "change": message("Change", "A change", change, "Headers", CHANGE_SCHEMA),
                "deadLetter": dead_letter_message(),
            },
            "schemas": schemas,
        },
    }))
}

const DESCRIPTION: &str = "\
What subscribers get from Coordinator, over NATS JetStream. The operations are those of a subscriber.\n\n\
**Compatibility.** Within a version fields are added, and never removed, renamed or given another type \
or meaning; a field that is always there stays so. Values of enumerations are added: skip a kind or \
an action that you do not know. A program that follows this needs no change until `version` in the \
payload is another one.\n\n\
**Delivery.** At least once: a message may come again under the same `Nats-Msg-Id`, after a reader did \
not ack it in time, or after a crash. Messages of one issue are in order.\n\n\
**CloudEvents.** Headers are those of CloudEvents 1.0 in the binary mode of its NATS binding. Their \
values are percent-encoded as it says.\n\n\
**Names in subjects.** All but letters, digits, `-` and `_` is written as `%XX` of its UTF-8 bytes, so \
that no name holds a dot or a wildcard: `docs.site` becomes `docs%2Esite`. An empty name is `%`.";

/// How the stream is created. What an operator may set is named by its setting.
fn stream(name: &str, subjects: String, discard: &str) -> Value {
    json!({
        "name": name,
        "subjects": [subjects],
        "retention": "limits",
        "storage": "file",
        "discard": discard,
        "max_age": "STREAM_MAX_AGE_SECS, 14 days where it is not set",
        "max_bytes": "STREAM_MAX_BYTES, 2 GiB where it is not set",
        "duplicate_window": "DEDUP_WINDOW_SECS, 25 hours where it is not set",
        "num_replicas": "STREAM_REPLICAS, 1 where it is not set",
    })
}

/// Receiving over a durable consumer of the subscriber's own. The NATS binding knows only queue
/// groups, which are for subscriptions without JetStream.
fn operation(channel: &str, summary: &str) -> Value {
    json!({
        "action": "receive",
        "channel": { "$ref": format!("#/channels/{channel}") },
        "summary": summary,
        "bindings": {
            "nats": {
                "bindingVersion": "0.1.0",
                "x-jetstream-consumer": {
                    "durable_name": "one name a subscriber, shared by its processes",
                    "mode": "pull",
                    "deliver_policy": "all, or new for what comes from now on",
                    "ack_policy": "explicit",
                    "filter_subjects": "the address with `*` for each parameter that is not wanted",
                    "max_ack_pending": "1 for strict order; more lets issues go on side by side",
                },
            },
        },
    })
}

fn event_parameters() -> Value {
    json!({
        "action": parameter(
            "What Gitea says happened. Actions are open: Gitea versions add some.",
            &Action::KNOWN.each_ref().map(Action::as_str),
        ),
        "owner": name("Owner of the repository"),
        "repository": name("Name of the repository"),
        "number": number(),
        "partition": parameter(
            "The share of all issues that the issue belongs to, from 0. Filter with `*`.",
            &["0", "63"],
        ),
    })
}

fn parameter(description: &str, examples: &[&str]) -> Value {
    json!({ "description": description, "examples": examples })
}

fn name(what: &str) -> Value {
    parameter(
        &format!("{what}, escaped as the head of this document says."),
        &["acme", "docs%2Esite"],
    )
}

fn number() -> Value {
    parameter("The issue's number in its repository.", &["7"])
}

fn message(
    name: &str,
    title: &str,
    payload: schemars::Schema,
    headers: &str,
    schema: &str,
) -> Value {
    json!({
        "name": name,
        "title": title,
        "summary": format!("Its schema on its own is `{schema}`."),
        "contentType": CONTENT_TYPE,
        "headers": { "$ref": format!("#/components/schemas/{headers}") },
        "payload": payload,
        "correlationId": {
            "description": "The trace. Its id is the delivery's id without dashes.",
            "location": format!("$message.header#/{TRACEPARENT}"),
        },
        "bindings": { "nats": {} },
        "examples": [example(name)],
    })
}

fn dead_letter_message() -> Value {
    json!({
        "name": "DeadLetter",
        "title": "An event that was given up",
        "summary": "Payload and headers of the event as they were, and why it was given up.",
        "contentType": CONTENT_TYPE,
        "headers": { "$ref": "#/components/schemas/DeadLetterHeaders" },
        "payload": {
            "description": "The event. What could not be read is there as it was, which may be any \
                bytes; what was too large is left out, and the payload is empty.",
            "anyOf": [{ "$ref": "#/components/schemas/IssueEvent" }, {}],
        },
    })
}

/// A message as it is published.
fn example(name: &str) -> Value {
    let source = "http://localhost:3000";
    let event = event::example();
    let trace = event.delivery.id.replace('-', "");
    let envelope = format!("00-{trace}-00f067aa0ba902b7-01").parse().ok().and_then(|parent| {
        if name == "Change" {
            let mut change = Change::from_event(ChangeKind::Assigned, &event);
            (change.added, change.added_ids) = (vec!["bot".into()], vec![4]);
            Envelope::of_change(&change, source, &parent).ok()
        } else {
            Envelope::of_event(&event, source, &parent, Partitions::DEFAULT).ok()
        }
    });
    let headers: Map<String, Value> = envelope
        .iter()
        .flat_map(|envelope| &envelope.headers.0)
        .map(|(name, value)| (name.to_string(), value.as_str().into()))
        .collect();
    let payload = envelope.and_then(|one| serde_json::from_slice::<Value>(&one.payload).ok());
    json!({ "name": "assigned", "headers": headers, "payload": payload })
}

/// What each header of an event or a change holds.
fn meaning(header: &str) -> (&'static str, &'static str) {
    match header {
        MESSAGE_ID => (
            "The same for a message that is published again: the delivery's id, of a change followed \
             by `:` and its kind.",
            "string",
        ),
        "ce-specversion" => ("Version of CloudEvents, `1.0`.", "string"),
        "ce-id" => ("The message id.", "string"),
        "ce-source" => ("Gitea's URL.", "uri-reference"),
        "ce-type" => {
            ("`io.gitea.issue.<action>`, of a change `io.gitea.issue.change.<kind>`.", "string")
        }
        "ce-subject" => ("The issue, `acme/widgets#7`.", "string"),
        "ce-time" => ("When the delivery was received, or Gitea's API had answered.", "date-time"),
        "ce-datacontenttype" => ("Media type of the payload, `application/json`.", "string"),
        "ce-dataschema" => ("Name of the payload's schema, which is its `$id`.", "uri"),
        "content-type" => ("Media type of the payload, as `ce-datacontenttype`.", "string"),
        TRACEPARENT => ("W3C trace context. The reader's span is a child of it.", "string"),
        dead_letter::ERROR => ("Why the message was given up, in words.", "string"),
        dead_letter::ATTEMPTS => ("Number of attempts to handle the message.", "string"),
        dead_letter::STREAM => ("The stream that holds the message.", "string"),
        dead_letter::SEQUENCE => ("Sequence of the message in that stream.", "string"),
        dead_letter::ORIGINAL_SUBJECT => ("Subject of the message in that stream.", "string"),
        dead_letter::ORIGINAL_MESSAGE_ID => ("Message id of the message in that stream.", "string"),
        _ => ("", "string"),
    }
}

fn header_schema(title: &str, names: &[&str], required: &[&str]) -> Value {
    let properties: Map<String, Value> = names
        .iter()
        .map(|name| {
            let (description, format) = meaning(name);
            let mut schema = json!({ "type": "string", "description": description });
            if format != "string" {
                schema["format"] = format.into();
            }
            (name.to_string(), schema)
        })
        .collect();
    json!({ "title": title, "type": "object", "properties": properties, "required": required })
}

fn headers() -> Value {
    header_schema("Headers of an event or a change", &HEADERS, &HEADERS)
}

fn dead_letter_headers() -> Value {
    let own = [MESSAGE_ID].into_iter().chain(dead_letter::HEADERS);
    let own: Vec<&str> = own.collect();
    let event = HEADERS.into_iter().filter(|name| *name != MESSAGE_ID);
    let all: Vec<&str> = own.iter().copied().chain(event).collect();
    header_schema("Headers of a dead letter: its own, and those of the event", &all, &own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_header_is_explained_and_every_reference_leads_somewhere() {
        for name in HEADERS.into_iter().chain(dead_letter::HEADERS) {
            assert!(!meaning(name).0.is_empty(), "{name}");
        }
        let document = document().expect("JSON");
        let text = document.to_string();
        let references: Vec<&str> = text.split("\"$ref\":\"#").skip(1).collect();
        assert!(references.len() > 10, "{text}");
        for reference in references {
            let pointer = reference.split('"').next().unwrap_or_default();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }

    /// The address of a channel, with what is written between its braces, is a subject of ours.
    #[test]
    fn addresses_are_those_of_the_subjects() {
        let document = document().expect("JSON");
        let event = event::example();
        let change = Change::from_event(ChangeKind::Closed, &event);
        let of_event = contract::subject::EventSubject::of(&event, Partitions::DEFAULT).to_string();
        for (channel, subject) in [
            ("events", of_event.clone()),
            ("changes", contract::subject::of_change(&change)),
            ("deadLetters", contract::subject::of_dead_letter(&of_event)),
        ] {
            let channel = &document["channels"][channel];
            let address: Vec<&str> =
                channel["address"].as_str().expect("text").split('.').collect();
            let tokens: Vec<&str> = subject.split('.').collect();
            assert_eq!(address.len(), tokens.len(), "{subject}");
            for (part, token) in address.iter().zip(tokens) {
                match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
                    Some(name) => assert!(channel["parameters"][name].is_object(), "{name}"),
                    None => assert_eq!(*part, token),
                }
            }
        }
    }

    #[test]
    fn the_examples_are_what_is_published() {
        let document = document().expect("JSON");
        for name in ["event", "change"] {
            let example = &document["components"]["messages"][name]["examples"][0];
            assert!(example["payload"]["version"].is_u64(), "{example}");
            assert_eq!(example["headers"].as_object().expect("headers").len(), HEADERS.len());
        }
    }
}
