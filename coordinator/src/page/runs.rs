//! *Runs*: what runs because an issue is assigned, with its output, and what an operator can do.

mod list;
mod order;
mod output;

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{RawQuery, State},
    response::IntoResponse,
};
use contract::timestamp::Timestamp;
use futures::stream;
use maud::{Markup, html};
use reactor::run::RunKey;
use service::peers::{Answer as PeerAnswer, Asked, Question, Reply, RunDetail, RunSummary};

use super::{
    failure::{Answer, Failure},
    fields::{Fields, segment},
    layout::{self, Part},
    live,
    of_path::OfPath,
    security::Viewer,
    state::Shared,
    text, trace,
};

pub(super) use self::{
    list::show,
    order::{confirm_again, confirm_stop, run_again, stop},
};

/// Time between two looks at a run that is watched.
const EVERY: Duration = Duration::from_secs(1);

fn phase(run: &RunSummary) -> Markup {
    let class = match &*run.phase {
        "failed" => "bad",
        "done" => "good",
        "again" | "stopping" => "warn",
        _ => "",
    };
    html! { span class=[(!class.is_empty()).then_some(class)] { (text::line(&run.phase, text::NAME)) } }
}

fn since_when(since: Timestamp) -> Markup {
    html! { (text::time(since)) " " span.quiet { "(" (text::ago(since)) ")" } }
}

/// Where the page of a run is.
pub(super) fn address(key: &str) -> String {
    format!("/runs/{}", segment(key))
}

/// A run as the process tells it that runs it, or else another one.
struct Shown {
    run: RunDetail,
    /// The process that runs it now, for people.
    host: Option<String>,
}

impl Shown {
    async fn find(shared: &Shared, key: &str) -> Result<Self, Failure> {
        if RunKey::parse(key).is_none() {
            let shown = text::line(key, text::NAME);
            let why = format!(
                "“{shown}” is no key of a run: a repository's id, an issue's number and a rule, as in 1.7.fix."
            );
            return Err(Failure::BadRequest(why));
        }
        let question = Question::Run { key: key.to_owned() };
        Self::of(shared.peers.ask(Asked::Reactor, &question).await)
    }

    fn of(answers: Vec<PeerAnswer>) -> Result<Self, Failure> {
        let (mut best, mut refused, has_answers) = (None, None, !answers.is_empty());
        for answer in answers {
            match answer.reply {
                Reply::Run(Some(run)) if run.is_live || best.is_none() => {
                    let host = run.is_live.then(|| text::process(&answer.instance));
                    best = Some((*run, host));
                }
                Reply::Refused(why) => refused = Some(why),
                _ => {}
            }
        }
        match (best, refused) {
            (Some((run, host)), _) => Ok(Self { run, host }),
            (None, Some(why)) => Err(Failure::Unavailable(why)),
            (None, None) if has_answers => Err(Failure::NotFound("There is no such run.".into())),
            (None, None) => {
                let why = "No process that runs commands has answered.";
                Err(Failure::Unavailable(why.into()))
            }
        }
    }

    /// Whether a process runs it that has not answered.
    fn is_elsewhere(&self) -> bool {
        output::is_elsewhere(&self.run)
    }

    fn is_over(&self) -> bool {
        matches!(&*self.run.summary.phase, "done" | "failed" | "stopped")
    }

    fn title(&self) -> String {
        let run = &self.run.summary;
        let (rule, issue) =
            (text::line(&run.rule, text::NAME), text::line(&run.issue, text::TITLE));
        format!("{rule} for {issue}")
    }

    /// What changes while it runs.
    fn region(&self) -> Markup {
        let run = &self.run;
        let summary = &run.summary;
        html! {
            dl {
                dt { "Phase" } dd { (phase(summary)) @if let Some(since) = summary.since { " since " (since_when(since)) } }
                @if let Some(ended) = &summary.ended { dt { "Ended" } dd { (text::line(ended, text::ERROR)) } }
                @if let Some(why) = &run.stop_reason { dt { "Stopped because" } dd { (text::line(why, text::ERROR)) } }
                @if let Some(time) = run.not_before { dt { "Not before" } dd { (text::time(time)) } }
                @if run.attempt > 0 { dt { "Attempt" } dd { (run.attempt) } }
                @for (name, time) in [("Queued", run.queued_at), ("Began", run.started_at), ("Over", run.ended_at)] {
                    @if let Some(time) = time { dt { (name) } dd { (text::time(time)) } }
                }
                @if let (Some(from), Some(to)) = (run.started_at, run.ended_at) {
                    dt { "Took" } dd { (text::span((to.unix_micros() - from.unix_micros()) as f64 / 1e6)) }
                }
                @if let Some(host) = &self.host { dt { "Process" } dd { (host) } }
            }
            h2 { "Output" }
            (output::shown(run))
        }
    }
}

/// The page of a run.
pub(super) async fn show_one(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    OfPath(key): OfPath<String>,
    RawQuery(query): RawQuery,
) -> Answer {
    let shown = Shown::find(&shared, &key).await?;
    let fields = Fields::parse(query.unwrap_or_default());
    let address = address(&key);
    let run = &shown.run;
    let is_over = shown.is_over();
    let done = match fields.get("done") {
        "stop" => Some("It was told to stop."),
        "again" => Some("It was queued again."),
        _ => None,
    };
    let main = html! {
        @if let Some(done) = done { div.note.good role="status" { p { (done) } } }
        p.row {
            @if let Some(issue) = issue_page(&run.summary.issue) { a href=(issue) { "The issue" } }
            @if let Some(id) = run.delivery_id.as_deref().filter(|id| uuid::Uuid::try_parse(id).is_ok()) {
                a href={ "/deliveries/" (id) } { "The delivery" }
            }
            @if let Some(id) = run.trace_id.as_deref().filter(|id| trace::is_id(id)) {
                a href={ "/traces/" (id) } { "The trace" }
            }
            @if run.summary.can_stop { a href={ (address) "/stop" } { "Stop…" } }
            @if run.summary.can_run_again { a href={ (address) "/again" } { "Run again…" } }
        }
        @if !is_over {
            p.quiet { span #live-state role="status" { "not live" } " · " a href=(address) { "refresh" } }
        }
        div data-live=[(!is_over).then(|| format!("{address}/live"))] data-state="live-state" {
            (shown.region())
        }
        p { a href="/runs" { "All runs" } }
    };
    Ok(layout::page(&viewer, Part::Runs, &shown.title(), main).into_response())
}

/// A run, again and again until it is over.
pub(super) async fn live_one(
    State(shared): State<Arc<Shared>>,
    Extension(_): Extension<Viewer>,
    OfPath(key): OfPath<String>,
) -> Answer {
    let place = live::place(&shared)?;
    Shown::find(&shared, &key).await?;
    let state = Some((shared, key, place, String::new(), false));
    let events = stream::unfold(state, async |state| {
        let (shared, key, place, mut before, ended) = state?;
        if ended {
            // The browser is told, since it would connect again.
            return Some((live::end_event(), None));
        }
        let mut has_missed = false;
        loop {
            tokio::time::sleep(EVERY).await;
            // One look in vain says nothing: it may be handed over.
            let Ok(shown) = Shown::find(&shared, &key).await else { continue };
            if shown.is_elsewhere() && !std::mem::replace(&mut has_missed, true) {
                continue;
            }
            let (region, is_over) = (shown.region().into_string(), shown.is_over());
            if region != before || is_over {
                before.clone_from(&region);
                let event = live::region_event(&region);
                return Some((event, Some((shared, key, place, before, is_over))));
            }
        }
    });
    Ok(live::answer(events))
}

/// The page of an issue that is written as `owner/name#number`.
fn issue_page(issue: &str) -> Option<String> {
    let (repository, number) = issue.rsplit_once('#')?;
    let (owner, name) = repository.split_once('/')?;
    Some(super::delivery::issue_address(owner, name, number.parse().ok()?))
}

#[cfg(test)]
pub(super) mod tests {
    use service::peers::Instance;

    use super::*;

    pub(super) fn answer(id: &str, reply: Reply) -> PeerAnswer {
        let instance = Instance {
            id: id.into(),
            roles: vec!["reactor".into()],
            host: format!("host-{id}<"),
            pid: 7,
            version: "1".into(),
            started_at: Timestamp::now(),
        };
        PeerAnswer { instance, reply }
    }

    pub(super) fn run(key: &str, phase: &str) -> RunSummary {
        RunSummary {
            key: key.into(),
            rule: "fix<b>".into(),
            issue: "acme/\u{202e}widgets#7".into(),
            login: Some("bot".into()),
            phase: phase.into(),
            since: Some(Timestamp::now()),
            host: Some("b".into()),
            ..RunSummary::default()
        }
    }

    #[test]
    fn the_process_that_runs_it_is_believed() {
        let detail = |output: &str, is_live| {
            let summary = run("1.7.x", "running");
            let output = output.to_owned();
            Reply::Run(Some(Box::new(RunDetail {
                summary,
                output,
                is_live,
                ..RunDetail::default()
            })))
        };
        let answers = vec![
            answer("a", detail("old", false)),
            answer("b", detail("<i>\u{1b}[31mnew", true)),
            answer("c", detail("older", false)),
            answer("d", Reply::Refused("busy".into())),
        ];
        let Ok(shown) = Shown::of(answers) else { panic!("a run") };
        let html = shown.region().into_string();
        assert!(html.contains("&lt;i&gt;\\u{1b}[31mnew") && !html.contains("old"), "{html}");
        assert!(html.contains("host-b&lt; (7)"), "{html}");
        assert_eq!(shown.title(), "fix<b> for acme/\\u{202e}widgets#7");
        let none = Shown::of(vec![answer("a", Reply::Run(None))]);
        assert!(matches!(none, Err(Failure::NotFound(_))));
        assert!(matches!(Shown::of(Vec::new()), Err(Failure::Unavailable(_))));
        let refused = Shown::of(vec![answer("a", Reply::Refused("no broker".into()))]);
        assert!(matches!(refused, Err(Failure::Unavailable(why)) if why == "no broker"));
    }

    #[test]
    fn an_issue_leads_to_its_page() {
        for (issue, page) in [
            ("acme/widgets#7", Some("/issues/acme/widgets/7")),
            ("acme/a#b#7", Some("/issues/acme/a%23b/7")),
            ("acme#7", None),
            ("acme/widgets#x", None),
            ("", None),
        ] {
            assert_eq!(issue_page(issue).as_deref(), page, "{issue}");
        }
    }
}
