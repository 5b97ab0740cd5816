//! The page of a job, which shows how far it is.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::State,
    response::{IntoResponse, sse::Event},
};
use futures::stream;
use maud::{Markup, html};
use uuid::Uuid;

use super::{
    super::{
        chart,
        failure::{Answer, Failure},
        layout::{self, Part},
        live,
        of_path::OfPath,
        security::Viewer,
        state::Shared,
        text,
    },
    jobs::{Action, Job, Progress},
};

/// Least time between two renderings.
const EVERY: Duration = Duration::from_millis(300);

fn job(shared: &Shared, id: &str) -> Result<(Uuid, Job), Failure> {
    let unknown = || {
        Failure::NotFound(
            "This process does not know that job: it was started anew, or it was another one. What was not \
             redriven or dropped is still among the dead letters."
                .into(),
        )
    };
    let id = Uuid::try_parse(id).map_err(|_| unknown())?;
    Ok((id, shared.jobs.get(id).ok_or_else(unknown)?))
}

/// The page.
pub(in super::super) async fn show(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    OfPath(id): OfPath<String>,
) -> Answer {
    let (id, job) = job(&shared, &id)?;
    let address = format!("/dead-letters/jobs/{id}");
    let progress = job.progress.borrow().clone();
    let main = html! {
        @if !progress.has_ended {
            p.quiet { span #live-state role="status" { "not live" } " · " a href=(address) { "refresh" } }
        }
        div data-live=[(!progress.has_ended).then(|| format!("{address}/live"))] data-state="live-state" {
            (region(job.action, &progress))
        }
        p { a href="/dead-letters" { "Back to the dead letters" } }
    };
    let title = match job.action {
        Action::Redrive => "Redrive",
        Action::Drop => "Drop",
    };
    Ok(layout::page(&viewer, Part::DeadLetters, title, main).into_response())
}

/// How far it is, again and again until it has ended.
pub(in super::super) async fn live(
    State(shared): State<Arc<Shared>>,
    Extension(_): Extension<Viewer>,
    OfPath(id): OfPath<String>,
) -> Answer {
    let (_, job) = job(&shared, &id)?;
    let place = live::place(&shared)?;
    let mut progress = job.progress;
    progress.mark_changed();
    let action = job.action;
    let events = stream::unfold(Some((progress, place, false)), move |state| async move {
        let (mut progress, place, ended) = state?;
        if ended {
            // The browser is told, since it would connect again.
            return Some((Event::default().event("end").data("ended"), None));
        }
        progress.changed().await.ok()?;
        tokio::time::sleep(EVERY).await;
        let now = progress.borrow_and_update().clone();
        let event = live::region_event(&region(action, &now).into_string());
        Some((event, Some((progress, place, now.has_ended))))
    });
    Ok(live::answer(events))
}

fn region(action: Action, progress: &Progress) -> Markup {
    let Progress { all, done, gone, refused, .. } = *progress;
    let word = match action {
        Action::Redrive => "redriven",
        Action::Drop => "dropped",
    };
    html! {
        p { strong { (text::number(done)) " of " (text::number(all)) " " (word) } }
        (chart::progress(progress.worked_at(), all))
        @if gone > 0 { p { (text::number(gone)) " were not there any more: somebody else was faster." } }
        @if refused > 0 {
            p.bad { (text::number(refused)) " could not be " (word) ". They are still there." }
            ul { @for (sequence, why) in &progress.named {
                li { a href={ "/dead-letters/" (sequence) } { (sequence) } ": " (text::line(why, text::ERROR)) }
            } }
        }
        @match (&progress.stopped, progress.has_ended) {
            (Some(why), _) => div.note.bad role="alert" {
                p { "Stopped: " (text::line(why, text::ERROR)) }
                p { (text::number(all.saturating_sub(progress.worked_at()))) " are as they were." }
            },
            (None, true) => div.note.good role="status" { p { "Ended." } },
            (None, false) => p.quiet { "Under way. It goes on when this page is left." },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stopped_and_what_is_left_are_told() {
        let progress = Progress {
            all: 10,
            done: 3,
            gone: 1,
            refused: 1,
            named: vec![(7, "<b>".into())],
            stopped: Some("No ingest answers.".into()),
            has_ended: true,
        };
        let html = region(Action::Redrive, &progress).into_string();
        for part in [
            "3 of 10 redriven",
            "1 were not there",
            "&lt;b&gt;",
            "No ingest answers.",
            "5 are as they were",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
        assert!(
            region(Action::Drop, &Progress::default()).into_string().contains("0 of 0 dropped")
        );
    }
}
