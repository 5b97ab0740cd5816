//! *Stop* and *run again*, each after a page that says what will happen.

use std::sync::Arc;

use axum::{
    Extension,
    body::Bytes,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Redirect},
};
use maud::{Markup, html};
use service::peers::{Answer as PeerAnswer, Asked, Question, Reply};

use super::{
    super::{
        failure::{Answer, Failure},
        layout::{self, Part},
        of_path::OfPath,
        security::{self, Viewer},
        state::Shared,
        text,
    },
    Shown, address,
};

/// What an operator can have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Stop,
    Again,
}

impl Order {
    /// Its name in addresses.
    fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Again => "again",
        }
    }

    fn question(self, key: String, generation: u64) -> Question {
        match self {
            Self::Stop => Question::StopRun { key, generation },
            Self::Again => Question::RunAgain { key, generation },
        }
    }

    fn can_be_done(self, shown: &Shown) -> bool {
        match self {
            Self::Stop => shown.run.summary.can_stop,
            Self::Again => shown.run.summary.can_run_again,
        }
    }

    fn outlook(self) -> &'static [&'static str] {
        match self {
            Self::Stop => &[
                "All its processes get TERM, and what is left after the grace period of its rule gets KILL. Whoever took a call is told of its end.",
                "It begins no more until somebody is assigned anew, or it is run again from here.",
                "The issue stays as it is.",
            ],
            Self::Again => &[
                "It is queued, and begins as soon as a process has room for it, if the issue is still open and assigned.",
                "The command gets the issue as it is then.",
            ],
        }
    }

    fn button(self) -> Markup {
        match self {
            Self::Stop => html! { button.danger { "Stop" } },
            Self::Again => html! { button { "Run again" } },
        }
    }
}

/// The page before a stop.
pub(in super::super) async fn confirm_stop(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    OfPath(key): OfPath<String>,
) -> Answer {
    confirm(&shared, &viewer, &key, Order::Stop).await
}

/// The page before a run begins again.
pub(in super::super) async fn confirm_again(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    OfPath(key): OfPath<String>,
) -> Answer {
    confirm(&shared, &viewer, &key, Order::Again).await
}

async fn confirm(shared: &Shared, viewer: &Viewer, key: &str, order: Order) -> Answer {
    let shown = Shown::find(shared, key).await?;
    let can = order.can_be_done(&shown);
    let main = html! {
        @if !can {
            div.note.warn role="note" { p { "As it is now, there is nothing to do: it is "
                (text::line(&shown.run.summary.phase, text::NAME)) "." } }
        }
        ul { @for line in order.outlook() { li { (line) } } }
        form method="post" action={ (address(key)) "/" (order.name()) } {
            (layout::form_token(viewer))
            // What was seen: another run of the issue is not meant.
            input type="hidden" name="generation" value=(shown.run.summary.generation);
            div.row {
                @if can { (order.button()) }
                a href=(address(key)) { "Back" }
            }
        }
    };
    let title = match order {
        Order::Stop => format!("Stop {}?", shown.title()),
        Order::Again => format!("Run {} again?", shown.title()),
    };
    Ok(layout::page(viewer, Part::Runs, &title, main).into_response())
}

/// Has a run stopped.
pub(in super::super) async fn stop(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    OfPath(key): OfPath<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    give(&shared, &viewer, key, &headers, &body, Order::Stop).await
}

/// Has a run begin again.
pub(in super::super) async fn run_again(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    OfPath(key): OfPath<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    give(&shared, &viewer, key, &headers, &body, Order::Again).await
}

async fn give(
    shared: &Shared,
    viewer: &Viewer,
    key: String,
    headers: &HeaderMap,
    body: &Bytes,
    order: Order,
) -> Answer {
    let fields = security::form(shared, viewer, headers, body)?;
    let shown = Shown::find(shared, &key).await?;
    let generation = shown.run.summary.generation;
    if fields.number("generation") != Some(generation) || !order.can_be_done(&shown) {
        let why = "It is another run by now, or it has gone on. Look at its page again.";
        return Err(Failure::BadRequest(why.into()));
    }
    let address = address(&key);
    // It may be another one by the time at which a runner is asked.
    let question = order.question(key.clone(), generation);
    let answers = shared.peers.ask(Asked::Reactor, &question).await;
    outcome(answers)?;
    tracing::info!(run = key, action = order.name(), "ordered from the page");
    Ok(Redirect::to(&format!("{address}?done={}", order.name())).into_response())
}

fn outcome(answers: Vec<PeerAnswer>) -> Result<(), Failure> {
    let mut refused = None;
    for answer in answers {
        match answer.reply {
            Reply::Ordered => return Ok(()),
            Reply::Refused(why) => refused = Some(text::line(&why, text::ERROR)),
            _ => {}
        }
    }
    Err(match refused {
        Some(why) => Failure::Unavailable(format!("It was not done: {why}")),
        None => Failure::Unavailable(
            "No process that runs commands answered in time, so it may have been done or not. Look at its page."
                .into(),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::{super::tests::answer, *};

    #[test]
    fn it_is_done_if_one_process_has_done_it() {
        let refused = || answer("a", Reply::Refused("no".into()));
        assert!(outcome(vec![refused(), answer("b", Reply::Ordered)]).is_ok());
        let why = outcome(vec![refused()]);
        assert!(matches!(why, Err(Failure::Unavailable(why)) if why.ends_with("no")));
        let why = outcome(Vec::new());
        assert!(matches!(why, Err(Failure::Unavailable(why)) if why.contains("or not")));
    }
}
