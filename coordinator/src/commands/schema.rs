//! `coordinator schema`: the JSON Schemas of events and changes, and the AsyncAPI document.

mod asyncapi;

use anyhow::Result;
use contract::{
    change::{CHANGE_SCHEMA, Change},
    event::{EVENT_SCHEMA, IssueEvent},
};
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::output;

/// What to print the schema of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Subject {
    /// Messages on gitea.issues.>
    Event,
    /// Messages on gitea.changes.>
    Change,
    /// All that subscribers get: streams, subjects, headers and messages, as an AsyncAPI document
    Asyncapi,
}

/// Prints the schema.
pub(crate) fn main(subject: Subject) -> Result<()> {
    output::lines(&text(subject)?)?;
    Ok(())
}

fn text(subject: Subject) -> Result<String> {
    let document = match subject {
        Subject::Event => of::<IssueEvent>(EVENT_SCHEMA)?,
        Subject::Change => of::<Change>(CHANGE_SCHEMA)?,
        Subject::Asyncapi => asyncapi::document()?,
    };
    Ok(serde_json::to_string_pretty(&document)?)
}

/// The schema of what is written, so a subscriber sees which fields are always there.
fn of<T: JsonSchema>(id: &str) -> serde_json::Result<Value> {
    let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    // A schema is in its usual order only as it is written.
    let root = serde_json::to_value(generator.into_root_schema_for::<T>())?;
    let mut schema = Map::new();
    for (key, value) in root.as_object().into_iter().flatten() {
        schema.insert(key.clone(), value.clone());
        if key == "$schema" {
            schema.insert("$id".into(), id.into());
        }
    }
    let mut schema = schema.into();
    leave_out_null(&mut schema);
    Ok(schema)
}

/// Takes null out of the types of fields that are not always there. The generator takes them for
/// `null`, as serde reads them; what has no value is left out where it is written.
fn leave_out_null(schema: &mut Value) {
    if let Value::Array(list) = schema {
        list.iter_mut().for_each(leave_out_null);
    }
    let Value::Object(map) = schema else { return };
    map.values_mut().for_each(leave_out_null);
    let required = map.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    let properties = map.get_mut("properties").and_then(Value::as_object_mut);
    for (name, property) in properties.into_iter().flatten() {
        if required.iter().all(|required| required != name) {
            never_null(property);
        }
    }
}

fn never_null(property: &mut Value) {
    let Value::Object(property) = property else { return };
    if let Some(Value::Array(types)) = property.get_mut("type") {
        types.retain(|one| one != "null");
        if let [one] = &types[..] {
            let one = one.clone();
            property.insert("type".into(), one);
        }
    }
    if let Some(Value::Array(any)) = property.get_mut("anyOf") {
        any.retain(|one| one != &json!({ "type": "null" }));
        // A reference in an `allOf` of its own: draft 07 passes over what stands beside one.
        if any.len() == 1
            && let Some(one) = property.remove("anyOf")
        {
            property.insert("allOf".into(), one);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_that_are_checked_in_are_those_of_the_types() {
        for (subject, name, file) in [
            (Subject::Event, "event", "docs/schema/event.v1.json"),
            (Subject::Change, "change", "docs/schema/change.v1.json"),
            (Subject::Asyncapi, "asyncapi", "docs/asyncapi.json"),
        ] {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
            let kept = std::fs::read_to_string(path).unwrap_or_default();
            assert!(
                kept.trim_end() == text(subject).expect("schema"),
                "{file} is stale; write it anew with: cargo run -- schema {name} > {file}"
            );
        }
    }
}
