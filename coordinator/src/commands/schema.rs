//! `coordinator schema`: the JSON Schemas of events and changes.

use anyhow::Result;
use contract::{change::Change, event::IssueEvent};
use schemars::{JsonSchema, generate::SchemaSettings};

use super::output;

/// What to print the schema of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Subject {
    /// Messages on gitea.issues.>
    Event,
    /// Messages on gitea.changes.>
    Change,
}

/// Prints the schema.
pub(crate) fn main(subject: Subject) -> Result<()> {
    output::lines(&text(subject)?)?;
    Ok(())
}

fn text(subject: Subject) -> Result<String> {
    Ok(match subject {
        Subject::Event => of::<IssueEvent>()?,
        Subject::Change => of::<Change>()?,
    })
}

/// The schema of what is written, so a subscriber sees which fields are always there.
fn of<T: JsonSchema>() -> serde_json::Result<String> {
    let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    serde_json::to_string_pretty(&generator.into_root_schema_for::<T>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schemas_that_are_checked_in_are_those_of_the_types() {
        for (subject, name) in [(Subject::Event, "event"), (Subject::Change, "change")] {
            let file = format!("docs/schema/{name}.v1.json");
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(&file);
            let kept = std::fs::read_to_string(path).unwrap_or_default();
            assert!(
                kept.trim_end() == text(subject).expect("schema"),
                "{file} is stale; write it anew with: cargo run -- schema {name} > {file}"
            );
        }
    }
}
