//! The entry of an issue: what subscribers know of it, and the last decision.

use contract::{
    issue_state::{KnownIssue, Lifecycle},
    timestamp::Timestamp,
};
use maud::{Markup, html};
use serde::Deserialize;

use super::super::{fields::segment, reads::Message, text};

/// What is known of an issue.
pub(super) struct Known {
    pub(super) issue: KnownIssue,
    key: String,
    written_at: Timestamp,
    revision: u64,
    decision: Option<Decision>,
}

/// The last decision, as much of it as people look at. Only the worker knows all of it.
#[derive(Deserialize)]
struct Decision {
    changes: Vec<Decided>,
    event: Event,
}

#[derive(Deserialize)]
struct Decided {
    kind: String,
}

#[derive(Deserialize)]
struct Event {
    delivery: Delivery,
}

#[derive(Deserialize)]
struct Delivery {
    id: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    decision: Option<serde_json::Value>,
}

impl Known {
    /// Reads an entry. None if this version cannot.
    pub(super) fn read(repository_id: i64, entry: &Message) -> Option<Self> {
        let issue: KnownIssue = serde_json::from_slice(&entry.payload).ok()?;
        let decision = serde_json::from_slice::<Entry>(&entry.payload).ok()?.decision;
        let number = entry.subject.rsplit('.').next().unwrap_or_default();
        Some(Self {
            issue,
            key: format!("{repository_id}.{number}"),
            written_at: entry.time,
            revision: entry.sequence,
            decision: decision.and_then(|decision| serde_json::from_value(decision).ok()),
        })
    }

    pub(super) fn markup(&self) -> Markup {
        let Self { issue, key, written_at, revision, decision } = self;
        html! {
            dl {
                dt { "Title" } dd { (text::line(&issue.title, text::TITLE)) }
                dt { "State" }
                dd {
                    (state(issue.state))
                    @if issue.gone { " (Gitea's API did not show it any more)" }
                }
                dt { "Assigned" } dd { (text::people(issue.assignees.iter().map(|person| &person.login))) }
                dt { "Updated at" }
                dd { @if let Some(at) = issue.updated_at { (text::time(at)) } @else { "not known" } }
                dt { "Doubt" }
                dd {
                    @if issue.in_doubt {
                        span.warn { "in doubt" } ": two events of one second contradict each other. "
                        a href="/runbook/coordinatordoubtstays" { "If it stays so" }
                    } @else { "none" }
                }
                dt { "Follows from" }
                dd { (delivery(&issue.delivery_id)) }
                @if let Some(decision) = decision {
                    dt { "Last decision" }
                    dd {
                        @let kinds: Vec<String> = decision.changes.iter().map(|one| one.kind.clone()).collect();
                        (text::people(&kinds)) " for " (delivery(&decision.event.delivery.id))
                    }
                }
                dt { "Entry" }
                dd { code { (text::line(key, text::NAME)) } ", revision " (revision) ", " (text::time(*written_at)) }
            }
        }
    }
}

/// A state in a word.
pub(super) fn state(state: Lifecycle) -> &'static str {
    match state {
        Lifecycle::Open => "open",
        Lifecycle::Closed => "closed",
        Lifecycle::Deleted => "deleted",
        Lifecycle::Other => "not known to this version",
    }
}

fn delivery(id: &str) -> Markup {
    html! {
        @if id.is_empty() { "no delivery" }
        @else { a href={ "/deliveries/" (segment(id)) } { code { (text::line(id, text::NAME)) } } }
    }
}
