//! *Dead letters*: the events that were given up, looked at, redriven or dropped.

mod confirm;
pub(super) mod jobs;
mod letter;
mod list;
mod progress;

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{RawQuery, State},
    response::IntoResponse,
};
use contract::names::DEAD_LETTERS;
use maud::{Markup, html};

pub(super) use self::{
    confirm::{confirm, start},
    progress::{live as live_job, show as show_job},
};
use self::{
    letter::{Filter, Letter},
    list::Listed,
};
use super::{
    delivery,
    failure::{Answer, Failure},
    fields::{Fields, link},
    layout::{self, Part},
    of_path::OfPath,
    reads::Reads,
    security::Viewer,
    state::Shared,
    text,
};

/// How long the list is read.
const PATIENCE: Duration = Duration::from_millis(700);
/// Letters on a page.
const PAGE: usize = 30;
/// Longest payload that is shown, in bytes.
const PAYLOAD_BYTES: usize = 256 * 1024;

/// The list.
pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    RawQuery(query): RawQuery,
) -> Answer {
    let query = Fields::parse(query.unwrap_or_default());
    let filter = Filter::of(&query);
    let reads = Reads::new(shared.peers.broker(), PATIENCE);
    let listed = list::newest(&reads, &filter, query.number("before"), PAGE).await;
    let main = html! {
        (note(&listed))
        form action="/dead-letters" {
            div.row {
                label { "Text" input type="search" name="q" value=(filter.text) maxlength="200" placeholder="repository, login, id, error"; }
                label { "Reason" input name="reason" value=(filter.reason) maxlength="200" list="reasons"; }
                datalist id="reasons" { @for reason in listed.reasons() { option value=(reason) {} } }
                button.plain { "Filter" }
                @if !filter.is_empty() { a href="/dead-letters" { "All" } }
            }
        }
        @if listed.letters.is_empty() {
            @if listed.cut_short.is_none() {
                p { @if filter.is_empty() { "No dead letters." } @else { "None that match." } }
            }
        } @else {
            (table(&listed, &filter))
        }
    };
    Ok(layout::page(&viewer, Part::DeadLetters, "Dead letters", main).into_response())
}

/// How much was looked at.
fn note(listed: &Listed) -> Markup {
    html! {
        p.quiet {
            @match listed.in_stream {
                Some(all) => { (text::count(all, "dead letter", "dead letters")) " in the stream. " },
                None => "How many there are is not known. ",
            }
            a href="/runbook/coordinatordeadletters" { "What to do" }
        }
        @if let Some(error) = &listed.cut_short {
            (layout::notes(&[format!("Not all were looked at: {error}.")], None))
        }
    }
}

fn table(listed: &Listed, filter: &Filter) -> Markup {
    let rows = html! {
        @for letter in &listed.letters { (row(letter)) }
    };
    let before = listed.older.map(|before| before.to_string());
    html! {
        form action="/dead-letters/confirm" {
            input type="hidden" name="q" value=(filter.text);
            input type="hidden" name="reason" value=(filter.reason);
            (layout::table("Dead letters, the newest first", &["Choose", "Letter", "Given up", "Event", "Error"], rows))
            div.row {
                button name="what" value="redrive" { "Redrive the chosen…" }
                button.danger name="what" value="drop" { "Drop the chosen…" }
                button.plain name="what" value="redrive-all" { "Redrive all that match…" }
                button.plain name="what" value="drop-all" { "Drop all that match…" }
            }
        }
        @if let Some(before) = before {
            p { a href=(link("/dead-letters", &[("q", &filter.text), ("reason", &filter.reason), ("before", &before)])) { "Older" } }
        }
    }
}

fn row(letter: &Letter) -> Markup {
    let sequence = letter.sequence;
    html! {
        tr {
            td { input type="checkbox" name="sequence" value=(sequence) aria-label={ "Choose dead letter " (sequence) }; }
            th scope="row" { a href={ "/dead-letters/" (sequence) } { (sequence) } }
            td { (text::time(letter.at)) }
            td {
                @match &letter.event {
                    Some(event) => {
                        (text::line(&event.action, text::NAME)) " of " (text::line(&event.issue, text::TITLE)) " by "
                        (text::line(&event.sender, text::NAME))
                    }
                    None => (text::line(&letter.subject, text::TITLE)),
                }
            }
            td.words { (text::line(&letter.error, 160)) " " span.quiet { "after " (text::attempts(&letter.attempts)) } }
        }
    }
}

/// One letter.
pub(super) async fn look(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    OfPath(sequence): OfPath<String>,
) -> Answer {
    let Ok(sequence) = sequence.parse::<u64>() else {
        let shown = text::line(&sequence, 80);
        return Err(Failure::BadRequest(format!("“{shown}” is no number of a dead letter.")));
    };
    let reads = Reads::new(shared.peers.broker(), PATIENCE);
    let found = match reads.info(DEAD_LETTERS).await {
        Ok(Some(_)) => match reads.stream(DEAD_LETTERS).await {
            Ok(stream) => reads.message(&stream, sequence).await,
            Err(error) => Err(error),
        },
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    };
    let message = match found {
        Ok(Some(message)) => message,
        Ok(None) => {
            let why = format!(
                "There is no dead letter {sequence}: never, or it was redriven or dropped."
            );
            return Err(Failure::NotFound(why));
        }
        Err(error) => return Err(Failure::Unavailable(format!("It cannot be read: {error}."))),
    };
    let letter = Letter::of(&message);
    let confirm = |what: &str| {
        link("/dead-letters/confirm", &[("what", what), ("sequence", &sequence.to_string())])
    };
    let main = html! {
        dl {
            dt { "Given up" } dd { (text::time(letter.at)) " after " (text::attempts(&letter.attempts)) }
            dt { "Error" } dd { (text::line(&letter.error, text::ERROR)) }
            dt { "It was" } dd { (text::line(&letter.subject, text::ERROR)) ", message " (text::line(&letter.original, 20)) }
            @if let Ok(id) = delivery::id(letter.delivery()) {
                dt { "Delivery" } dd { a href={ "/deliveries/" (id) } { code { (id) } } }
            }
            @if let Some((owner, repository, number)) = letter.place() {
                dt { "Issue" }
                dd { a href=(delivery::issue_address(&owner, &repository, number)) {
                    (text::line(&format!("{owner}/{repository}#{number}"), text::TITLE))
                } }
            }
        }
        div.row {
            a.button href=(confirm("redrive")) { "Redrive…" }
            a href=(confirm("drop")) { "Drop…" }
            a href="/dead-letters" { "All dead letters" }
        }
        h2 { "Headers" }
        (delivery::headers(&message.headers))
        h2 { "Payload" }
        @if message.payload.is_empty() { p { "None: it was too large for the stream of dead letters." } }
        @else { pre tabindex="0" { (text::lines(&delivery::pretty(&message.payload), PAYLOAD_BYTES)) } }
    };
    let title = format!("Dead letter {sequence}");
    Ok(layout::page(&viewer, Part::DeadLetters, &title, main).into_response())
}
