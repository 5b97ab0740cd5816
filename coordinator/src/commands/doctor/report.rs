//! What a check found, and how all of it is printed.

use std::io;

use serde_json::{Value, json};

use super::super::output;

/// How a check ended, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    /// It could not be checked here. This is no fault.
    Skipped,
    /// All is well.
    Ok,
    /// It works, and something should be seen to.
    Warning,
    /// It does not work.
    Wrong,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Skipped => "skipped",
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Wrong => "wrong",
        }
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) name: String,
    pub(super) outcome: Outcome,
    /// What was found, or why it was not checked.
    pub(super) found: String,
    /// What to do about it.
    pub(super) remedy: Option<String>,
}

impl Check {
    pub(super) fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(name, Outcome::Ok, found, None)
    }

    pub(super) fn warning(
        name: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(name, Outcome::Warning, found, Some(remedy.into()))
    }

    pub(super) fn wrong(
        name: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(name, Outcome::Wrong, found, Some(remedy.into()))
    }

    /// `why` it could not be checked.
    pub(super) fn skipped(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(name, Outcome::Skipped, why, None)
    }

    /// Skipped, since `other` is not well.
    pub(super) fn needs(name: impl Into<String>, other: &str) -> Self {
        Self::skipped(name, format!("needs {other}"))
    }

    fn new(
        name: impl Into<String>,
        outcome: Outcome,
        found: impl Into<String>,
        remedy: Option<String>,
    ) -> Self {
        Self { name: name.into(), outcome, found: found.into(), remedy }
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "result": self.outcome.as_str(),
            "found": self.found,
            "remedy": self.remedy,
        })
    }
}

/// The worst of all. One that was skipped is none.
fn worst(checks: &[Check]) -> Outcome {
    checks.iter().map(|check| check.outcome).max().unwrap_or(Outcome::Ok).max(Outcome::Ok)
}

fn as_json(checks: &[Check]) -> Value {
    let all: Vec<Value> = checks.iter().map(Check::json).collect();
    json!({ "result": worst(checks).as_str(), "checks": all })
}

fn as_lines(checks: &[Check]) -> Vec<String> {
    let mut lines = Vec::new();
    for Check { name, outcome, found, remedy } in checks {
        lines.push(format!("{:<8} {name}: {found}", outcome.as_str()));
        lines.extend(remedy.iter().map(|remedy| format!("         -> {remedy}")));
    }
    lines
}

/// Prints all checks: a line each and one for the remedy, or one JSON object.
///
/// # Errors
/// If nobody reads.
pub(super) fn print(checks: &[Check], json: bool) -> io::Result<()> {
    if json {
        return output::json_line(&as_json(checks));
    }
    as_lines(checks).iter().try_for_each(|line| output::line(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_check_counts_and_a_skipped_one_is_none() {
        let (ok, warning) = (Check::ok("a", "x"), Check::warning("b", "x", "y"));
        let (wrong, skipped) = (Check::wrong("c", "x", "y"), Check::needs("d", "c"));
        for (checks, expected) in [
            (&[][..], "ok"),
            (&[Check::needs("d", "c")], "ok"),
            (&[ok.clone(), skipped.clone()], "ok"),
            (&[warning.clone(), ok.clone()], "warning"),
            (&[warning, wrong, skipped, ok], "wrong"),
        ] {
            assert_eq!(worst(checks).as_str(), expected);
        }
    }

    #[test]
    fn a_check_is_a_line_and_its_remedy_the_next() {
        let checks = [Check::ok("a", "fine"), Check::wrong("b", "bad", "mend it")];
        let expected = ["ok       a: fine", "wrong    b: bad", "         -> mend it"];
        assert_eq!(as_lines(&checks), expected);
        let expected = json!({ "result": "wrong", "checks": [
            { "name": "a", "result": "ok", "found": "fine", "remedy": null },
            { "name": "b", "result": "wrong", "found": "bad", "remedy": "mend it" },
        ]});
        assert_eq!(as_json(&checks), expected);
    }
}
