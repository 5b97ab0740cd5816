//! What a run gets to know: JSON on standard input or as the body of a call, and a few variables.
//!
//! Titles and bodies of issues are in the JSON alone, never among arguments or variables: whoever
//! writes an issue chooses them.

use contract::{
    change::Change,
    event::{Issue, Repository},
    issue_state::Person,
};
use serde::Serialize;

use crate::{
    rules::CommandRule,
    run::{Run, RunKey},
    store::Known,
};

/// Version of the JSON. Fields are added under the same one.
const VERSION: u32 = 1;
/// Where programs are looked for, unless the rule passes on another PATH.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The JSON that a run gets.
#[derive(Debug, Serialize)]
struct Input<'a> {
    version: u32,
    /// `started`, or `ended` in the call that tells of the end.
    kind: &'static str,
    run: RunInput<'a>,
    /// `owner/name#number`.
    issue_ref: &'a str,
    /// Who is assigned now.
    assignees: &'a [Person],
    /// The issue as the newest change or event shows it. None if only its state is known.
    issue: Option<&'a Issue>,
    repository: Option<&'a Repository>,
    /// The change that the run follows from. None if it follows from the issue's state, or if the
    /// stream does not hold the change any more.
    change: Option<&'a Change>,
}

#[derive(Debug, Serialize)]
struct RunInput<'a> {
    /// The same for all attempts.
    id: String,
    rule: &'a str,
    attempt: u32,
    /// For whom.
    person: Option<&'a Person>,
    /// Why it ended.
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
}

/// The JSON for an attempt.
pub(crate) fn json(
    key: &RunKey,
    run: &Run,
    known: Option<&Known>,
    change: Option<&Change>,
) -> serde_json::Result<Vec<u8>> {
    let event = known.and_then(Known::last_event);
    // The state is at least as new as the change that led to the run.
    let issue = event.map(|event| &event.issue).or(change.map(|change| &change.issue));
    let whole = change.filter(|change| {
        let body = |issue: &Issue| issue.body.len();
        // A state keeps long texts cut.
        event.is_some_and(|event| event.cut && body(&event.issue) < body(&change.issue))
    });
    let issue = whole.map(|change| &change.issue).or(issue);
    let repository = event.map(|event| &event.repository);
    serde_json::to_vec(&Input {
        version: VERSION,
        kind: if run.tells_end { "ended" } else { "started" },
        run: RunInput {
            id: run.id(key),
            rule: &key.rule,
            attempt: run.attempt,
            person: run.person.as_ref(),
            reason: if run.tells_end { &run.stop_reason } else { "" },
        },
        issue_ref: &run.issue,
        assignees: known.map_or(&[][..], |known| &known.issue.assignees),
        issue,
        repository: repository.or(change.map(|change| &change.repository)),
        change,
    })
}

/// The whole environment of a command.
pub(crate) fn environment(
    command: &CommandRule,
    own: &std::collections::HashMap<String, String>,
    key: &RunKey,
    run: &Run,
    traceparent: Option<String>,
) -> Vec<(String, String)> {
    let passed_on = command.environment.iter();
    let mut all: Vec<(String, String)> =
        passed_on.filter_map(|name| Some((name.clone(), own.get(name)?.clone()))).collect();
    if !command.environment.iter().any(|name| name == "PATH") {
        all.push(("PATH".into(), PATH.into()));
    }
    let mut add = |name: &str, value: String| all.push((name.into(), value));
    add("COORDINATOR_ISSUE", run.issue.clone());
    add("COORDINATOR_RULE", key.rule.clone());
    add("COORDINATOR_RUN", run.id(key));
    add("COORDINATOR_ATTEMPT", run.attempt.to_string());
    add("COORDINATOR_REPOSITORY_ID", key.repository_id.to_string());
    add("COORDINATOR_ISSUE_NUMBER", key.number.to_string());
    if !run.delivery_id.is_empty() {
        add("COORDINATOR_DELIVERY", run.delivery_id.clone());
    }
    if run.change > 0 {
        add("COORDINATOR_CHANGE", run.change.to_string());
    }
    if let Some(traceparent) = traceparent {
        add("TRACEPARENT", traceparent);
    }
    all
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

    use contract::{change::ChangeKind, event};

    use super::*;
    use crate::process::Limits;

    fn key() -> RunKey {
        RunKey { repository_id: 12, number: 7, rule: "fix".into() }
    }

    #[test]
    fn titles_and_bodies_are_in_the_json_alone() {
        let mut event = event::example();
        (event.issue.title, event.issue.body) = ("$(reboot)".into(), "`rm -rf`".into());
        let change = Change::from_event(ChangeKind::Assigned, &event);
        let run = Run {
            issue: "acme/widgets#7".into(),
            generation: 3,
            attempt: 1,
            change: 9,
            ..Run::default()
        };
        let json = json(&key(), &run, None, Some(&change)).expect("JSON");
        let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
        assert_eq!(json["issue"]["title"], "$(reboot)");
        assert_eq!(json["change"]["kind"], "assigned");
        assert_eq!((&json["kind"], &json["run"]["id"]), (&"started".into(), &"12.7.fix.3".into()));
        let command = CommandRule {
            argv: vec!["/bin/true".into()],
            directory: None,
            user: None,
            environment: vec!["HOME".into(), "NOT_SET".into()],
            limits: Limits {
                time: None,
                memory_bytes: None,
                output_bytes: 1,
                grace: Duration::ZERO,
            },
        };
        let own = [("HOME", "/h"), ("SECRET", "s")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        let all = environment(&command, &HashMap::from(own), &key(), &run, None);
        let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "HOME",
                "PATH",
                "COORDINATOR_ISSUE",
                "COORDINATOR_RULE",
                "COORDINATOR_RUN",
                "COORDINATOR_ATTEMPT",
                "COORDINATOR_REPOSITORY_ID",
                "COORDINATOR_ISSUE_NUMBER",
                "COORDINATOR_CHANGE"
            ]
        );
        assert!(!all.iter().any(|(_, value)| value.contains("reboot") || value == "s"));
    }
}
