//! *Now*: what comes in, waits, is handled, changed and fails, and what is wrong.

mod facts;
mod measures;
mod problems;
mod process;

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::State,
    response::{IntoResponse, Response},
};
use contract::timestamp::Timestamp;
use futures::future::join;
use maud::{Markup, html};
use service::peers::{Asked, Question};

pub(super) use self::facts::Facts;
use self::{
    facts::{Latest, Sweep},
    measures::Measure,
    problems::Problem,
    process::Process,
};
use super::{
    delivery::issue_address,
    fields::segment,
    layout::{self, Part},
    security::Viewer,
    state::Shared,
    text,
};

/// How old what was read of the broker may be on a page that is asked for.
const FRESH: Duration = Duration::from_secs(2);

/// What is shown.
#[derive(Clone, Debug)]
struct Now {
    at: Timestamp,
    processes: Vec<Process>,
    measures: Vec<Measure>,
    facts: Arc<Facts>,
    problems: Vec<Problem>,
}

impl Now {
    /// Asks all processes and the broker. What was read of the broker may be as old as `fresh`.
    async fn look(shared: &Shared, fresh: Duration) -> Self {
        let asked = shared.peers.ask(Asked::All, &Question::Status);
        let (answers, facts) = join(asked, shared.live.facts(&shared.peers, fresh)).await;
        let (processes, series) = process::read(answers);
        let measures = measures::put_together(&series);
        let problems = problems::find(&processes, &measures, &facts, Timestamp::now());
        Self { at: Timestamp::now(), processes, measures, facts, problems }
    }
}

/// The page.
pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
) -> Response {
    let now = Now::look(&shared, FRESH).await;
    let main = html! {
        p.quiet {
            span #live-state role="status" { "not live" } " · " a href="/" { "refresh" }
        }
        div data-live="/live" data-state="live-state" { (region(&now)) }
    };
    layout::page(&viewer, Part::Now, "Now", main).into_response()
}

/// What changes by itself while the page is open.
pub(super) async fn live_region(shared: &Shared, fresh: Duration) -> String {
    region(&Now::look(shared, fresh).await).into_string()
}

fn region(now: &Now) -> Markup {
    html! {
        p.quiet { "As of " (text::time(now.at)) }
        (problems(&now.problems))
        h2 { "The last hour" }
        ul.tiles {
            @for measure in now.measures.iter().filter(|measure| measure.has_tile()) { li { (measure.tile()) } }
        }
        (latest(&now.facts))
        (streams(&now.facts))
        (processes(&now.processes))
    }
}

fn problems(problems: &[Problem]) -> Markup {
    html! {
        h2 { "What is wrong" }
        @if problems.is_empty() {
            div.note.good { p { "Nothing that can be seen from here." } }
        }
        @for problem in problems {
            div class=(if problem.is_grave { "note bad" } else { "note warn" }) {
                p {
                    strong { (problem.what) } " "
                    @if let Some((address, words)) = problem.look_at { a href=(address) { (words) } " · " }
                    a href={ "/runbook/" (problem.runbook) } { "what to do" }
                }
            }
        }
    }
}

fn latest(facts: &Facts) -> Markup {
    let rows = html! {
        @for Latest { at, change } in facts.latest.iter().flatten() {
            @let (owner, name) = (&change.repository.owner, &change.repository.name);
            tr {
                td { (text::time(*at)) }
                th scope="row" {
                    a href=(issue_address(owner, name, change.issue.number)) {
                        (text::line(&format!("{owner}/{name}#{}", change.issue.number), text::TITLE))
                    }
                }
                td.words { (text::line(&change.summary(), text::TITLE)) @if change.in_doubt { " " span.warn { "in doubt" } } }
                td {
                    a href={ "/deliveries/" (segment(&change.cause.delivery_id)) } {
                        "by " (text::line(&change.sender.login, text::NAME))
                    }
                }
            }
        }
    };
    html! {
        h2 { "What was told last" }
        @match &facts.latest {
            None => p.quiet { "Not known: the changes could not be read." },
            Some(latest) if latest.is_empty() => p { "No change yet." },
            Some(_) => (layout::table("Changes, the newest first", &["Told", "Issue", "Change", "Delivery"], rows)),
        }
    }
}

fn streams(facts: &Facts) -> Markup {
    let rows = html! {
        @for stream in &facts.streams {
            tr {
                th scope="row" { (stream.what) " " code { (stream.name) } }
                td.number { (text::number(stream.messages)) }
                td.number { (text::bytes(stream.bytes)) }
                td.number {
                    @match stream.full() {
                        Some(share) => { (format!("{:.0} %", share * 100.0)) " of " (text::bytes(stream.limit.unwrap_or(0))) }
                        None => "no limit",
                    }
                }
                td { @if stream.messages > 0 { (text::time(stream.last)) } @else { "–" } }
            }
        }
    };
    html! {
        h2 { "On the broker" }
        @if let Some(error) = &facts.failed { p.bad { (text::line(error, text::ERROR)) } }
        @if !facts.streams.is_empty() {
            (layout::table("Streams and buckets", &["Stream", "#Messages", "#Size", "#Full", "Last message"], rows))
        }
        dl {
            dt { "Events that wait" }
            dd {
                @match &facts.lag {
                    Some(lag) => {
                        (text::number(lag.waiting)) ", " (lag.in_hand) " in hand, in "
                        (lag.partitions) " partitions"
                        @if lag.without_worker > 0 { ", " (lag.without_worker) " of them without a worker that waits" }
                    }
                    None => "not known",
                }
            }
            dt { "Gitea's last sweep" }
            dd {
                @match facts.sweep {
                    Sweep::At(at) => { (text::time(at)) " (" (text::ago(at)) ")" }
                    Sweep::Never => "none: no token, or none yet",
                    Sweep::Unknown => "not known",
                }
            }
        }
    }
}

fn processes(processes: &[Process]) -> Markup {
    let rows = html! {
        @for process in processes {
            tr {
                th scope="row" { (text::line(&process.roles.join(", "), text::NAME)) }
                td {
                    (text::line(&process.host, text::NAME)) " " span.quiet { (process.pid) }
                }
                td { (text::line(&process.version, text::NAME)) }
                td { (text::time(process.started_at)) }
                td {
                    span class=(if process.is_well() { "good" } else { "warn" }) { (text::line(&process.status, text::NAME)) }
                    @if !process.ready { ", not ready" }
                }
                td.words { (process.details()) }
            }
        }
    };
    html! {
        h2 { "Processes that answered" }
        @if processes.is_empty() {
            p { "None." }
        } @else {
            (layout::table("Processes", &["Role", "Host", "Version", "Since", "Health", "Details"], rows))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_not_said_to_be_nothing() {
        let unknown = Facts::default();
        let both = |facts: &Facts| {
            format!("{}{}", latest(facts).into_string(), streams(facts).into_string())
        };
        let html = both(&unknown);
        assert!(html.contains("Not known: the changes could not be read."), "{html}");
        assert_eq!(html.matches("<dd>not known</dd>").count(), 2, "lag and sweep: {html}");
        let nothing = Facts { latest: Some(Vec::new()), sweep: Sweep::Never, ..Facts::default() };
        let html = both(&nothing);
        assert!(html.contains("No change yet.") && html.contains("none: no token"), "{html}");
    }
}
