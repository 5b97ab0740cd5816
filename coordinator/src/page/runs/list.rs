//! The list of runs.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{RawQuery, State},
    response::IntoResponse,
};
use maud::{Markup, html};
use service::peers::{Answer as PeerAnswer, Asked, Question, Reply, RunList, RunSummary};

use super::{
    super::{
        failure::Answer,
        fields::{Fields, link},
        layout::{self, Part},
        security::Viewer,
        state::Shared,
        text,
    },
    address, phase, since_when,
};

/// Runs on a page.
const PAGE: usize = 30;
/// Characters of a runner's random id that are shown.
const HOST: usize = 12;

/// What reactors say of all runs.
#[derive(Default)]
struct Found {
    list: RunList,
    /// Whether a reactor answered with a list.
    has_reactor: bool,
    /// Why one did not, where it says so.
    refused: Option<String>,
}

impl Found {
    /// All reactors read the same bucket, so the one that has read on furthest knows the most.
    fn of(answers: Vec<PeerAnswer>) -> Self {
        let mut found = Self::default();
        for answer in answers {
            match answer.reply {
                Reply::Runs(list) => {
                    if !found.has_reactor || list.revision > found.list.revision {
                        found.list = list;
                    }
                    found.has_reactor = true;
                }
                Reply::Refused(why) => found.refused = Some(why),
                _ => {}
            }
        }
        found
    }
}

/// The list.
pub(in super::super) async fn show(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    RawQuery(query): RawQuery,
) -> Answer {
    let fields = Fields::parse(query.unwrap_or_default());
    let found = Found::of(shared.peers.ask(Asked::Reactor, &Question::Runs).await);
    let main = listed(&found, &Wanted::of(&fields));
    Ok(layout::page(&viewer, Part::Runs, "Runs", main).into_response())
}

/// What of the list is wanted.
struct Wanted<'a> {
    /// Empty for all.
    phase: &'a str,
    /// A part of an issue, rule or login, whatever its case.
    sought: &'a str,
    /// How many that match stand on the pages before.
    after: usize,
}

impl<'a> Wanted<'a> {
    fn of(fields: &'a Fields) -> Self {
        let after = fields.number("after").and_then(|after| after.try_into().ok());
        Self {
            phase: fields.get("phase"),
            sought: fields.get("q"),
            after: after.unwrap_or_default(),
        }
    }

    fn is(&self, run: &RunSummary) -> bool {
        let login = run.login.as_deref().unwrap_or_default();
        let sought = self.sought.to_lowercase();
        let mut texts = [&*run.issue, &*run.rule, login].into_iter();
        (self.phase.is_empty() || run.phase == self.phase)
            && texts.any(|text| text.to_lowercase().contains(&sought))
    }
}

/// Phases in the order in which a run goes through them.
const PHASES: [&str; 8] =
    ["waiting", "starting", "running", "stopping", "again", "done", "failed", "stopped"];

fn listed(found: &Found, wanted: &Wanted<'_>) -> Markup {
    if !found.has_reactor {
        return match &found.refused {
            Some(why) => html! { p { "They cannot be read: " (text::line(why, text::ERROR)) "." } },
            None => html! {
                p { "No process that runs commands has answered. "
                    code { "coordinator react" } " is one; " code { "REACTOR_RULES" } " names its rules." }
            },
        };
    }
    let Wanted { phase, sought, after } = *wanted;
    let runs: Vec<_> = found.list.runs.iter().filter(|run| wanted.is(run)).collect();
    let shown = runs.iter().skip(after).take(PAGE);
    let next = after.saturating_add(PAGE);
    let count = |phase: &str| found.list.runs.iter().filter(|run| run.phase == phase).count();
    html! {
        p.row {
            a href="/runs" aria-current=[phase.is_empty().then_some("true")] { "All " (found.list.runs.len()) }
            @for name in PHASES.iter().filter(|name| count(name) > 0) {
                a href=(link("/runs", &[("phase", name)])) aria-current=[(phase == *name).then_some("true")] {
                    (name) " " (count(name))
                }
            }
        }
        form action="/runs" {
            input type="hidden" name="phase" value=(phase);
            input type="search" name="q" value=(sought) maxlength="100"
                aria-label="Part of an issue, rule or login" placeholder="issue, rule or login";
            button { "Show" }
        }
        @if found.list.truncated { p.quiet { "There are more than these." } }
        @if shown.len() == 0 { p { "No such run." } } @else {
            (layout::table("Runs", &["Issue", "Rule", "For", "Phase", "Since", "Runner", "Ended"],
                html! { @for run in shown { (row(run)) } }))
        }
        @if next < runs.len() {
            p { a href=(link("/runs", &[("phase", phase), ("q", sought), ("after", &next.to_string())])) { "More" } }
        }
    }
}

fn row(run: &RunSummary) -> Markup {
    html! {
        tr {
            td { a href=(address(&run.key)) { (text::line(&run.issue, text::TITLE)) } }
            td { (text::line(&run.rule, text::NAME)) }
            td { (login(run)) }
            td { (phase(run)) }
            td { @if let Some(since) = run.since { (since_when(since)) } }
            td { (text::line(run.host.as_deref().unwrap_or_default(), HOST)) }
            td { (text::line(run.ended.as_deref().unwrap_or_default(), text::NAME)) }
        }
    }
}

fn login(run: &RunSummary) -> String {
    text::line(run.login.as_deref().unwrap_or_default(), text::NAME)
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{answer, run},
        *,
    };

    fn list(revision: u64, runs: Vec<RunSummary>) -> Reply {
        Reply::Runs(RunList { runs, truncated: false, revision })
    }

    #[test]
    fn the_list_is_that_of_the_reactor_that_knows_most() {
        let found = Found::of(vec![
            answer("a", list(3, vec![run("1.1.x", "running")])),
            answer("b", list(5, vec![run("1.2.x", "failed"), run("1.3.x", "waiting")])),
            answer("c", Reply::Refused("busy".into())),
        ]);
        assert_eq!(found.list.revision, 5);
        let wanted = |phase, sought| Wanted { phase, sought, after: 0 };
        let html = listed(&found, &wanted("", "")).into_string();
        for part in [
            "/runs/1%2E2%2Ex",
            "fix&lt;b&gt;",
            "acme/\\u{202e}widgets#7",
            "<td>b</td>",
            "class=\"bad\"",
            "All 2",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
        let html = listed(&found, &wanted("waiting", "ACME")).into_string();
        assert!(!html.contains("/runs/1%2E2%2Ex") && html.contains("/runs/1%2E3%2Ex"), "{html}");
        assert!(listed(&found, &wanted("", "nobody")).into_string().contains("No such run."));
        let html = listed(&Found::default(), &wanted("", "")).into_string();
        assert!(html.contains("coordinator react"), "{html}");
        let refused = Found::of(vec![answer("a", Reply::Refused("no <broker>".into()))]);
        let html = listed(&refused, &wanted("", "")).into_string();
        assert!(html.contains("no &lt;broker&gt;") && !html.contains("react"), "{html}");
    }

    #[test]
    fn a_long_list_has_pages_of_a_few_kilobytes() {
        let long = |number: u64| RunSummary {
            issue: format!("{}/widgets#{number}", "o".repeat(200)),
            login: Some("l".repeat(100)),
            ended: Some("e".repeat(400)),
            ..run(&format!("123456.{number}.{}", "r".repeat(40)), "failed")
        };
        let found = Found::of(vec![answer("a", list(1, (0..200).map(long).collect()))]);
        let mut fields = Fields::default();
        let mut seen = 0;
        loop {
            let html = listed(&found, &Wanted::of(&fields)).into_string();
            assert!(html.len() < 28_000, "{} bytes", html.len());
            seen += html.matches("<td><a href").count();
            let Some(more) = html.split("<a href=\"/runs?").find(|link| link.contains(">More<"))
            else {
                break;
            };
            fields = Fields::parse(more.split('"').next().expect("a query").replace("&amp;", "&"));
        }
        assert_eq!(seen, 200);
        let far = Fields::parse("after=99999999999999999999");
        assert!(listed(&found, &Wanted::of(&far)).into_string().contains("More"));
        let far = Fields::parse("after=18446744073709551615");
        assert!(listed(&found, &Wanted::of(&far)).into_string().contains("No such run."));
    }
}
