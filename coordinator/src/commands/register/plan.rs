//! From the hooks that are there to what is to be done. It asks nothing and changes nothing.

use std::{collections::BTreeSet, fmt};

use gitea::{ContentType, Hook, HookEdit};

use super::target::{Likeness, Target};
use crate::commands::gitea_access::HOOK_KINDS;

/// Events of which ingest publishes something, as one asks for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum Event {
    /// Opened, edited, closed, reopened, deleted. `issues` would ask for all about issues.
    IssuesOnly,
    /// Assigned and unassigned.
    IssueAssign,
    /// Labels.
    IssueLabel,
    /// Milestones.
    IssueMilestone,
}

/// Without these there are no changes.
pub(super) const NEEDED: [Event; 2] = [Event::IssuesOnly, Event::IssueAssign];

/// What the hook is to be.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) target: Target,
    pub(super) events: Events,
    /// Make the hook anew, and remove all that were there.
    pub(super) replace: bool,
}

/// Which events the hook is to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Events {
    /// What is needed, and what a hook sends besides and ingest publishes: somebody may read it.
    Needed,
    /// These and no others.
    Exactly(BTreeSet<Event>),
}

/// What is to be done, and what was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) step: Step,
    /// Ids of more hooks with this address.
    pub(super) surplus: Vec<i64>,
    /// Ids and types of hooks with this address that send a form for chats.
    pub(super) of_other_types: Vec<(i64, String)>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The hook with this id is as wanted.
    Keep(i64),
    Edit(Box<Edit>),
    Create,
    /// Make a hook, then remove these.
    Replace(Vec<Hook>),
}

/// A hook that is there and has to be changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Edit {
    pub(super) hook: Hook,
    pub(super) edit: HookEdit,
    pub(super) differences: Vec<Difference>,
}

/// Something in which a hook is not as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    Events { lacks: BTreeSet<Event>, unused: Vec<String> },
    ContentType,
    Inactive,
    Address,
}

impl Event {
    /// As one asks for it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::IssuesOnly => "issues_only",
            Self::IssueAssign => "issue_assign",
            Self::IssueLabel => "issue_label",
            Self::IssueMilestone => "issue_milestone",
        }
    }

    /// The event with this name in an answer, where `issues_only` is called `issues`.
    fn answered(name: &str) -> Option<Self> {
        let name = if name == "issues" { "issues_only" } else { name };
        let all = [Self::IssuesOnly, Self::IssueAssign, Self::IssueLabel, Self::IssueMilestone];
        all.into_iter().find(|event| event.as_str() == name)
    }
}

impl Events {
    /// What a new hook has to send.
    pub(super) fn of_new(&self) -> BTreeSet<Event> {
        self.beside(&BTreeSet::new())
    }

    /// What a hook has to send that sends `now`.
    fn beside(&self, now: &BTreeSet<Event>) -> BTreeSet<Event> {
        match self {
            Self::Needed => NEEDED.into_iter().chain(now.iter().copied()).collect(),
            Self::Exactly(events) => events.clone(),
        }
    }
}

/// The events as they are asked for.
pub(super) fn names(events: &BTreeSet<Event>) -> Vec<String> {
    events.iter().map(|event| event.as_str().to_owned()).collect()
}

/// Decides what to do, from all hooks that are there.
pub(super) fn plan(hooks: &[Hook], wanted: &Wanted) -> Plan {
    let at_target = |hook: &&Hook| wanted.target.likeness(&hook.url) != Likeness::Other;
    let (mut ours, others): (Vec<&Hook>, Vec<&Hook>) =
        hooks.iter().filter(at_target).partition(|hook| is_of_our_type(hook));
    let of_other_types = others.iter().map(|hook| (hook.id, hook.kind.clone())).collect();
    // The one with the least to change, and of equals the oldest.
    ours.sort_by_key(|hook| (differences(hook, wanted).len(), hook.id));
    let (step, surplus) = match ours.split_first() {
        None => (Step::Create, Vec::new()),
        Some(_) if wanted.replace => {
            (Step::Replace(ours.into_iter().cloned().collect()), Vec::new())
        }
        Some((best, rest)) => (put_right(best, wanted), rest.iter().map(|hook| hook.id).collect()),
    };
    Plan { step, surplus, of_other_types }
}

/// Ids of the hooks that [`plan`] takes for ours.
pub(super) fn ours(hooks: &[Hook], target: &Target) -> BTreeSet<i64> {
    let is_ours =
        |hook: &&Hook| is_of_our_type(hook) && target.likeness(&hook.url) != Likeness::Other;
    hooks.iter().filter(is_ours).map(|hook| hook.id).collect()
}

fn is_of_our_type(hook: &Hook) -> bool {
    HOOK_KINDS.contains(&hook.kind.as_str())
}

fn put_right(hook: &Hook, wanted: &Wanted) -> Step {
    let differences = differences(hook, wanted);
    if differences.is_empty() {
        return Step::Keep(hook.id);
    }
    let moved = differences.contains(&Difference::Address);
    let edit = HookEdit {
        url: moved.then(|| wanted.target.with_user_of(&hook.url)),
        content_type: ContentType::Json,
        events: names(&wanted.events.beside(&sent(hook).0)),
        active: true,
    };
    Step::Edit(Box::new(Edit { hook: hook.clone(), edit, differences }))
}

/// In what a hook is not as wanted.
pub(super) fn differences(hook: &Hook, wanted: &Wanted) -> Vec<Difference> {
    let (now, mut unused) = sent(hook);
    let wanted_events = wanted.events.beside(&now);
    let lacks: BTreeSet<Event> = wanted_events.difference(&now).copied().collect();
    unused.extend(names(&now.difference(&wanted_events).copied().collect()));
    let mut differences = Vec::new();
    if !lacks.is_empty() || !unused.is_empty() {
        differences.push(Difference::Events { lacks, unused });
    }
    if hook.content_type != Some(ContentType::Json) {
        differences.push(Difference::ContentType);
    }
    if !hook.active {
        differences.push(Difference::Inactive);
    }
    if wanted.target.likeness(&hook.url) == Likeness::SameInAnotherForm {
        differences.push(Difference::Address);
    }
    differences
}

/// Of what a hook sends: the events of which ingest publishes something, and all others.
fn sent(hook: &Hook) -> (BTreeSet<Event>, Vec<String>) {
    let (mut events, mut unused) = (BTreeSet::new(), Vec::new());
    for name in &hook.events {
        match Event::answered(name) {
            Some(event) => drop(events.insert(event)),
            None => unused.push(name.clone()),
        }
    }
    (events, unused)
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Events { lacks, unused } => {
                let mut parts = Vec::new();
                if !lacks.is_empty() {
                    parts.push(format!("without {}", names(lacks).join(", ")));
                }
                if !unused.is_empty() {
                    parts.push(format!("with {}", unused.join(", ")));
                }
                write!(f, "its events were {}", parts.join(", "))
            }
            Self::ContentType => f.write_str("its content type was not application/json"),
            Self::Inactive => f.write_str("it was inactive"),
            Self::Address => f.write_str("its address had another form"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const URL: &str = "http://hooks.example.com:8000/webhook/gitea";
    const GOOD: &[&str] = &["issue_assign", "issues"];

    fn hook(id: i64, url: &str, events: &[&str], content_type: &str, active: bool) -> Hook {
        of_type("gitea", id, url, events, content_type, active)
    }

    fn of_type(
        kind: &str,
        id: i64,
        url: &str,
        events: &[&str],
        content_type: &str,
        active: bool,
    ) -> Hook {
        let config = json!({ "url": url, "content_type": content_type });
        let json = json!({
            "id": id, "type": kind, "config": config, "events": events, "active": active,
        });
        serde_json::from_value(json).expect("a hook")
    }

    fn good(id: i64) -> Hook {
        hook(id, URL, GOOD, "json", true)
    }

    fn wanted(events: Events, replace: bool) -> Wanted {
        Wanted { target: Target::parse(URL).expect("a URL"), events, replace }
    }

    /// What is to be done, in short.
    fn told(plan: &Plan) -> String {
        let mut told = match &plan.step {
            Step::Keep(id) => format!("keep {id}"),
            Step::Create => "create".into(),
            Step::Replace(hooks) => {
                format!("replace {:?}", hooks.iter().map(|hook| hook.id).collect::<Vec<_>>())
            }
            Step::Edit(it) => {
                let Edit { hook, edit, differences } = &**it;
                let why: Vec<_> = differences.iter().map(ToString::to_string).collect();
                let url = edit.url.as_ref().map(|url| format!(" at {url}")).unwrap_or_default();
                assert!(edit.active && edit.content_type == ContentType::Json);
                format!("edit {} to {}{url}: {}", hook.id, edit.events.join(" "), why.join("; "))
            }
        };
        if !plan.surplus.is_empty() {
            told.push_str(&format!(", surplus {:?}", plan.surplus));
        }
        if !plan.of_other_types.is_empty() {
            told.push_str(&format!(", others {:?}", plan.of_other_types));
        }
        told
    }

    #[test]
    fn the_hooks_that_are_there_say_what_is_to_be_done() {
        let slashed = format!("{URL}/");
        let upper = URL.replace("hooks.example.com", "HOOKS.example.com");
        let elsewhere = "http://other.example.com/webhook/gitea";
        let all = ["create", "issue_assign", "issue_comment", "issue_label", "issues", "push"];
        for (hooks, expected) in [
            (vec![], "create"),
            (vec![hook(1, elsewhere, GOOD, "json", true)], "create"),
            (vec![good(1)], "keep 1"),
            (vec![hook(1, &upper, GOOD, "json", true)], "keep 1"),
            (vec![of_type("gogs", 1, URL, GOOD, "json", true)], "keep 1"),
            (vec![of_type("forgejo", 1, URL, GOOD, "json", true)], "keep 1"),
            (vec![of_type("slack", 1, URL, GOOD, "json", true)], "create, others [(1, \"slack\")]"),
            (
                vec![hook(1, URL, &["push"], "json", true)],
                "edit 1 to issues_only issue_assign: its events were without issues_only, \
                 issue_assign, with push",
            ),
            (
                vec![hook(1, URL, &["issues"], "json", true)],
                "edit 1 to issues_only issue_assign: its events were without issue_assign",
            ),
            (
                vec![hook(1, URL, &[], "json", true)],
                "edit 1 to issues_only issue_assign: its events were without issues_only, \
                 issue_assign",
            ),
            (
                vec![hook(1, URL, &all, "json", true)],
                "edit 1 to issues_only issue_assign issue_label: its events were with create, \
                 issue_comment, push",
            ),
            (
                vec![hook(1, URL, &["issue_label", "issue_assign", "issues"], "json", true)],
                "keep 1",
            ),
            (
                vec![hook(1, URL, GOOD, "form", true)],
                "edit 1 to issues_only issue_assign: its content type was not application/json",
            ),
            (
                vec![hook(1, URL, GOOD, "json", false)],
                "edit 1 to issues_only issue_assign: it was inactive",
            ),
            (
                vec![hook(1, &slashed, GOOD, "json", true)],
                "edit 1 to issues_only issue_assign at \
                 http://hooks.example.com:8000/webhook/gitea: its address had another form",
            ),
            (vec![hook(1, URL, GOOD, "json", false), good(2), good(3)], "keep 2, surplus [3, 1]"),
            (
                vec![hook(3, URL, GOOD, "form", true), hook(2, URL, GOOD, "json", false)],
                "edit 2 to issues_only issue_assign: it was inactive, surplus [3]",
            ),
        ] {
            assert_eq!(told(&plan(&hooks, &wanted(Events::Needed, false))), expected);
        }
    }

    #[test]
    fn only_what_is_ours_is_replaced() {
        let hooks = [
            good(4),
            hook(2, "http://other.example.com/webhook/gitea", GOOD, "json", true),
            of_type("slack", 3, URL, GOOD, "json", true),
            hook(1, &format!("{URL}/"), &["push"], "form", false),
        ];
        let wanted = wanted(Events::Needed, true);
        let expected = "replace [4, 1], others [(3, \"slack\")]";
        assert_eq!(told(&plan(&hooks, &wanted)), expected);
        assert_eq!(told(&plan(&[], &wanted)), "create");
        assert_eq!(ours(&hooks, &wanted.target), BTreeSet::from([1, 4]));
    }

    #[test]
    fn events_that_are_named_are_all_there_are() {
        let events = Events::Exactly([Event::IssuesOnly, Event::IssueLabel].into());
        assert_eq!(names(&events.of_new()), ["issues_only", "issue_label"]);
        let wanted = wanted(events, false);
        let all = ["issue_assign", "issue_label", "issues"];
        for (now, expected) in [
            (&["issue_label", "issues"][..], "keep 1"),
            (&all, "edit 1 to issues_only issue_label: its events were with issue_assign"),
            (
                GOOD,
                "edit 1 to issues_only issue_label: its events were without issue_label, with \
                 issue_assign",
            ),
        ] {
            let plan = plan(&[hook(1, URL, now, "json", true)], &wanted);
            assert_eq!(told(&plan), expected);
        }
        assert_eq!(names(&Events::Needed.of_new()), ["issues_only", "issue_assign"]);
    }

    #[test]
    fn a_plan_shows_no_user_of_an_address() {
        let plan = plan(
            &[hook(1, "http://u:hidden@hooks.example.com:8000/webhook/gitea/", GOOD, "json", true)],
            &wanted(Events::Needed, false),
        );
        let Step::Edit(edit) = &plan.step else { panic!("{plan:?}") };
        let lines: Vec<_> = edit.differences.iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["its address had another form"]);
    }
}
