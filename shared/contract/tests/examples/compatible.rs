//! What a new message or schema may differ in from a frozen one: it may have more.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Where `today` lacks something that `frozen` has, or has it with another value.
pub fn message(frozen: &Value, today: &Value) -> Vec<String> {
    let mut broken = Vec::new();
    compare_values(frozen, today, "", &mut broken);
    broken
}

fn compare_values(frozen: &Value, today: &Value, path: &str, broken: &mut Vec<String>) {
    match (frozen, today) {
        (Value::Object(frozen), Value::Object(today)) => {
            for (key, value) in frozen {
                let path = format!("{path}/{key}");
                match today.get(key) {
                    Some(found) => compare_values(value, found, &path, broken),
                    None => broken.push(format!("{path} is gone")),
                }
            }
        }
        (Value::Array(frozen), Value::Array(today)) if frozen.len() == today.len() => {
            for (n, (frozen, today)) in frozen.iter().zip(today).enumerate() {
                compare_values(frozen, today, &format!("{path}/{n}"), broken);
            }
        }
        _ if frozen == today => {}
        _ => broken.push(format!("{path} was {frozen} and is {today}")),
    }
}

/// Where a message of the schema `today` may be one that `frozen` did not allow.
pub fn schema(frozen: &Value, today: &Value) -> Vec<String> {
    let mut broken = Vec::new();
    Schemas { frozen, today }.compare(frozen, today, "", &mut broken);
    broken
}

struct Schemas<'a> {
    frozen: &'a Value,
    today: &'a Value,
}

impl Schemas<'_> {
    fn compare(&self, frozen: &Value, today: &Value, path: &str, broken: &mut Vec<String>) {
        let (frozen, today) = (resolved(frozen, self.frozen), resolved(today, self.today));
        let (was, is) = (types(frozen, self.frozen), types(today, self.today));
        if !is.is_subset(&was) {
            broken.push(format!("{path} was of type {was:?} and is of type {is:?}"));
            return;
        }
        for keyword in ["$id", "format", "minimum"] {
            if frozen.get(keyword).is_some_and(|kept| Some(kept) != today.get(keyword)) {
                broken.push(format!("{path}: its {keyword} is another one"));
            }
        }
        let required = |schema: &Value| -> BTreeSet<String> {
            let names = schema.get("required").and_then(Value::as_array);
            names.into_iter().flatten().filter_map(|name| Some(name.as_str()?.to_owned())).collect()
        };
        for name in required(frozen).difference(&required(today)) {
            broken.push(format!("{path}/{name} may be missing"));
        }
        for (name, kept) in properties(frozen) {
            let path = format!("{path}/{name}");
            match properties(today).find(|(found, _)| *found == name) {
                Some((_, found)) => self.compare(kept, found, &path, broken),
                None => broken.push(format!("{path} is gone")),
            }
        }
        if let (Some(frozen), Some(today)) = (frozen.get("items"), today.get("items")) {
            self.compare(frozen, today, &format!("{path}[]"), broken);
        }
        if let (Some(frozen), Some(today)) = (present(frozen), present(today)) {
            self.compare(frozen, today, path, broken);
        }
    }
}

/// The schema itself where it is a reference.
fn resolved<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    match schema.get("$ref").and_then(Value::as_str) {
        Some(reference) => root.pointer(reference.trim_start_matches('#')).expect(reference),
        None => schema,
    }
}

/// Of `anyOf` a schema and null: the schema.
fn present(schema: &Value) -> Option<&Value> {
    let any = schema.get("anyOf")?.as_array()?;
    any.iter().find(|one| one.get("type").and_then(Value::as_str) != Some("null"))
}

/// All JSON types that a schema allows; none named allows all.
fn types(schema: &Value, root: &Value) -> BTreeSet<String> {
    let all = ["null", "boolean", "integer", "number", "string", "array", "object"];
    let schema = resolved(schema, root);
    match (schema.get("type"), schema.get("anyOf").and_then(Value::as_array)) {
        (Some(Value::String(one)), _) => BTreeSet::from([one.clone()]),
        (Some(Value::Array(several)), _) => {
            several.iter().filter_map(|one| Some(one.as_str()?.to_owned())).collect()
        }
        (_, Some(any)) => any.iter().flat_map(|one| types(one, root)).collect(),
        _ => all.map(str::to_owned).into(),
    }
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

/// The names of all fields in a message.
pub fn fields(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                found.insert(name.clone());
                fields(value, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| fields(value, found)),
        _ => {}
    }
}

/// The names of all fields in a schema.
pub fn schema_fields(schema: &Value, found: &mut BTreeSet<String>) {
    found.extend(properties(schema).map(|(name, _)| name.clone()));
    let nested = schema.get("$defs").and_then(Value::as_object);
    for (_, definition) in nested.into_iter().flatten() {
        schema_fields(definition, found);
    }
}

mod planted {
    use serde_json::{Value, json};

    fn removed(mut value: Value, parent: &str, key: &str) -> Value {
        let parent = value.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object");
        parent.remove(key).expect("a key");
        value
    }

    fn set(mut value: Value, pointer: &str, to: Value) -> Value {
        *value.pointer_mut(pointer).expect("a place") = to;
        value
    }

    #[test]
    fn additions_to_a_message_pass_and_all_else_is_found() {
        let frozen = json!({ "a": 1, "b": { "c": ["x"], "d": null } });
        let mut more = frozen.clone();
        more["new"] = json!(true);
        more["b"]["new"] = json!(true);
        assert_eq!(super::message(&frozen, &more), [""; 0]);
        for broken in [
            removed(frozen.clone(), "", "a"),
            removed(frozen.clone(), "/b", "d"),
            set(frozen.clone(), "/a", json!("1")),
            set(frozen.clone(), "/a", json!(2)),
            set(frozen.clone(), "/b/c", json!([])),
            set(frozen.clone(), "/b/c", json!(["x", "y"])),
            set(frozen.clone(), "/b", json!(null)),
        ] {
            assert_eq!(super::message(&frozen, &broken).len(), 1, "{broken}");
        }
    }

    #[test]
    fn additions_to_a_schema_pass_and_all_else_is_found() {
        let frozen = json!({
            "$id": "urn:x:v1",
            "type": "object",
            "properties": {
                "id": { "type": "integer", "format": "int64" },
                "who": { "anyOf": [{ "$ref": "#/$defs/User" }, { "type": "null" }] },
                "all": { "type": "array", "items": { "$ref": "#/$defs/User" } },
                "title": { "type": ["string", "null"] },
                "any": {},
            },
            "required": ["id", "all"],
            "$defs": {
                "User": {
                    "type": "object",
                    "properties": { "login": { "type": "string" } },
                    "required": ["login"],
                },
            },
        });
        let mut more = frozen.clone();
        more["properties"]["new"] = json!({ "type": "string" });
        more["$defs"]["User"]["properties"]["new"] = json!({ "type": "string" });
        more["required"] = json!(["id", "all", "new", "title"]);
        more["properties"]["title"]["type"] = json!("string");
        more["properties"]["any"] = json!({ "type": "object" });
        assert_eq!(super::schema(&frozen, &more), [""; 0]);
        for (broken, places) in [
            (removed(frozen.clone(), "/properties", "title"), 1),
            (set(frozen.clone(), "/required", json!(["id"])), 1),
            (set(frozen.clone(), "/properties/id/type", json!("string")), 1),
            (set(frozen.clone(), "/properties/id/type", json!(["integer", "null"])), 1),
            (set(frozen.clone(), "/properties/id/format", json!("date")), 1),
            (set(frozen.clone(), "/properties/all", json!({ "type": "object" })), 1),
            (set(frozen.clone(), "/$id", json!("urn:x:v2")), 1),
            // Seen in both places that hold a user.
            (set(frozen.clone(), "/$defs/User/required", json!([])), 2),
            (removed(frozen.clone(), "/$defs/User/properties", "login"), 2),
        ] {
            let found = super::schema(&frozen, &broken);
            assert_eq!(found.len(), places, "{broken}: {found:?}");
        }
    }
}
