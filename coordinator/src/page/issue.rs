//! *Issue*: what subscribers were told and when, against what Gitea says, its deliveries, and doubt.

mod gitea;
mod known;
mod spelled;

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Bytes,
    extract::{RawQuery, State},
    http::HeaderMap,
    response::{IntoResponse, Redirect, Response},
};
use contract::{
    envelope,
    names::{CHANGES, CHANGES_PREFIX, EVENTS, EVENTS_PREFIX, QUESTIONS_PREFIX},
    subject,
};
use maud::{Markup, html};

use self::known::Known;
use super::{
    delivery::{event_of, issue_address},
    failure::{Answer, Failure},
    fields::{Fields, link},
    layout::{self, Part},
    of_path::OfPath,
    reads::{Found, Message, ReadError, Reads},
    security::{self, Viewer},
    state::Shared,
    text,
};

/// How long the broker is read for a page.
const PATIENCE: Duration = Duration::from_millis(400);
/// How long it is read for somebody who asks again.
const MORE_PATIENCE: Duration = Duration::from_secs(5);
/// Changes and events that are shown at once.
const PAGE: usize = 20;

/// Which issue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    owner: String,
    repository: String,
    number: u64,
}

impl Place {
    fn of((owner, repository, number): (String, String, String)) -> Result<Self, Failure> {
        match number.parse() {
            Ok(number) => Ok(Self { owner, repository, number }),
            Err(_) => {
                let shown = text::line(&number, 80);
                Err(Failure::BadRequest(format!("“{shown}” is no number of an issue.")))
            }
        }
    }

    fn name(&self) -> String {
        text::line(&format!("{}/{}#{}", self.owner, self.repository, self.number), text::TITLE)
    }

    fn address(&self) -> String {
        issue_address(&self.owner, &self.repository, self.number)
    }

    /// Tokens of subjects: owner, repository, number.
    fn tokens(&self) -> String {
        let (owner, repository) = (subject::escape(&self.owner), subject::escape(&self.repository));
        format!("{owner}.{repository}.{}", self.number)
    }
}

/// What the streams and the bucket say of an issue.
struct History {
    changes: Found<Message>,
    events: Found<Message>,
    known: Option<Known>,
    /// Whether Gitea is still to be asked about it.
    question_waits: bool,
    notes: Vec<String>,
}

impl History {
    fn is_empty(&self) -> bool {
        self.known.is_none() && self.changes.items.is_empty() && self.events.items.is_empty()
    }
}

type Tokens = (String, String, String);

/// The page.
pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    OfPath(tokens): OfPath<Tokens>,
    RawQuery(query): RawQuery,
) -> Answer {
    let place = Place::of(tokens)?;
    let query = Fields::parse(query.unwrap_or_default());
    let patience = if query.get("wait") == "1" { MORE_PATIENCE } else { PATIENCE };
    let before = (query.number("changes_before"), query.number("events_before"));
    let mut history = history(&shared, &place, patience, before).await;
    if history.is_empty() && history.notes.is_empty() && before == (None, None) {
        match spelled::elsewhere(&Reads::new(shared.peers.broker(), patience), &place).await {
            Ok(Some(place)) => return Ok(Redirect::to(&place.address()).into_response()),
            Ok(None) => {}
            Err(error) => history.notes.push(format!(
                "Whether it is there with other small and capital letters is not known: {error}."
            )),
        }
    }
    Ok(page(&shared, &viewer, &place, &history, html! {}))
}

/// The page, with what Gitea says now.
pub(super) async fn ask_gitea(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    OfPath(tokens): OfPath<Tokens>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let place = Place::of(tokens)?;
    security::form(&shared, &viewer, &headers, &body)?;
    let Some(client) = &shared.gitea else {
        return Err(Failure::Unavailable(
            "This process has no token of Gitea. Ask on a worker's page that has one.".into(),
        ));
    };
    let asked = client.issue(&place.owner, &place.repository, place.number).await;
    let history = history(&shared, &place, PATIENCE, (None, None)).await;
    let compared = gitea::compared(asked, history.known.as_ref().map(|known| &known.issue));
    Ok(page(&shared, &viewer, &place, &history, compared))
}

fn page(
    shared: &Shared,
    viewer: &Viewer,
    place: &Place,
    history: &History,
    gitea: Markup,
) -> Response {
    let address = place.address();
    let main = html! {
        p {
            a href={ (shared.gitea_url) "/" (super::fields::segment(&place.owner)) "/"
                (super::fields::segment(&place.repository)) "/issues/" (place.number) } rel="noreferrer" {
                "The issue in Gitea"
            }
        }
        (layout::notes(&history.notes, Some(&format!("{address}?wait=1"))))
        @if history.is_empty() && history.notes.is_empty() {
            p { "Neither streams nor the bucket know it: no event of it came, or all are too old." }
        }
        (state(history))
        h2 { "What Gitea says now" }
        (gitea)
        @if shared.gitea.is_some() {
            form method="post" action={ (address) "/gitea" } {
                (layout::form_token(viewer))
                button { "Ask Gitea" }
            }
        } @else {
            p.quiet { "This process has no token of Gitea. Ask on a worker's page that has one." }
        }
        h2 { "What subscribers were told" }
        (changes(&history.changes))
        (older(&address, "changes_before", &history.changes))
        h2 { "Deliveries" }
        (events(&history.events))
        (older(&address, "events_before", &history.events))
    };
    let title = format!("Issue {}", place.name());
    let sought = format!("{}/{}#{}", place.owner, place.repository, place.number);
    layout::found_page(viewer, Part::None, &title, &sought, main).into_response()
}

/// Reads what there is, before these sequences of changes and events.
async fn history(
    shared: &Shared,
    place: &Place,
    patience: Duration,
    (changes_before, events_before): (Option<u64>, Option<u64>),
) -> History {
    let reads = Reads::new(shared.peers.broker(), patience);
    let tokens = place.tokens();
    let changes_subject = format!("{CHANGES_PREFIX}.*.{tokens}");
    let events_subject = format!("{EVENTS_PREFIX}.*.{tokens}.*");
    let (changes, events) = futures::future::join(
        newest(&reads, CHANGES, &changes_subject, changes_before),
        newest(&reads, EVENTS, &events_subject, events_before),
    )
    .await;
    let mut notes = Vec::new();
    for (what, found) in [("changes", &changes), ("events", &events)] {
        if let Some(error) = &found.cut_short {
            notes.push(format!("Not all {what} were looked at: {error}."));
        }
    }
    let repository_id = repository_id(&reads, &events, &changes, &events_subject).await;
    let (mut known, mut question_waits) = (None, false);
    if let Some(repository_id) = repository_id {
        match reads.issue_entry(repository_id, place.number).await {
            Ok(entry) => {
                known = entry.and_then(|entry| Known::read(repository_id, &entry));
            }
            Err(error) => notes.push(format!("Its state could not be read: {error}.")),
        }
        let subject = format!("{QUESTIONS_PREFIX}.*.{repository_id}.{}", place.number);
        // A user that may not look at questions is told nothing of them.
        question_waits =
            reads.has_message(contract::names::QUESTIONS, &subject).await.unwrap_or(false);
    }
    History { changes, events, known, question_waits, notes }
}

/// Gitea's id of the repository, as the last event or change says it.
async fn repository_id(
    reads: &Reads,
    events: &Found<Message>,
    changes: &Found<Message>,
    subject: &str,
) -> Option<i64> {
    let of_event = |message: &Message| event_of(&message.payload).map(|event| event.repository.id);
    let of_change = |message: &Message| {
        envelope::read_change(&message.payload).ok().map(|change| change.repository.id)
    };
    let found = events.items.iter().find_map(of_event);
    if let Some(id) = found.or_else(|| changes.items.iter().find_map(of_change)) {
        return Some(id);
    }
    // Older pages may be empty.
    let stream = reads.stream(EVENTS).await.ok()?;
    reads.last(&stream, subject).await.ok()?.as_ref().and_then(of_event)
}

async fn newest(reads: &Reads, name: &str, subject: &str, before: Option<u64>) -> Found<Message> {
    let failed = |error: ReadError| Found { cut_short: Some(error), ..Found::nothing() };
    let info = match reads.info(name).await {
        Ok(Some(info)) => info,
        Ok(None) => return Found::nothing(),
        Err(error) => return failed(error),
    };
    match reads.stream(name).await {
        Ok(stream) => reads.newest(&stream, &info.state, subject, before, PAGE).await,
        Err(error) => failed(error),
    }
}

fn state(history: &History) -> Markup {
    html! {
        h2 { "What is known" }
        @match &history.known {
            None if !history.notes.is_empty() => p.quiet { "Not known: not all could be read." },
            None => p.quiet { "No entry in the bucket of issue states." },
            Some(known) => (known.markup()),
        }
        @if history.question_waits {
            p { span.warn { "Gitea is still to be asked about it." } " " a href="/runbook/coordinatordoubtstays" { "If it stays so" } }
        }
    }
}

fn changes(found: &Found<Message>) -> Markup {
    let rows = html! {
        @for message in &found.items {
            @let change = envelope::read_change(&message.payload).ok();
            tr {
                td { (text::time(message.time)) }
                td.number { (message.sequence) }
                @match &change {
                    Some(change) => {
                        td.words {
                            (text::line(&change.summary(), text::ERROR))
                            @if change.in_doubt { " " span.warn { "in doubt" } }
                            @if change.first_seen { " " span.quiet { "first seen" } }
                        }
                        td { (text::people(&change.assignees)) }
                        td {
                            a href={ "/deliveries/" (super::fields::segment(&change.cause.delivery_id)) } {
                                (text::line(change.cause.action.as_str(), text::NAME))
                            }
                            @if let Some(cause) = change.cause.synced { " (" (cause.as_str()) ")" }
                            @if !change.by.is_empty() {
                                @let by: Vec<String> = change.by.iter().flatten().map(|user| user.login.clone()).collect();
                                " by " (text::people(&by))
                            } @else { " by " (text::line(&change.sender.login, text::NAME)) }
                        }
                    }
                    None => { td { "cannot be read" } td {} td {} }
                }
            }
        }
    };
    html! {
        @if found.items.is_empty() { p { (none(found, "No changes.")) } }
        @else { (layout::table("Changes, the newest first", &["Told", "#Message", "Change", "Assigned then", "From"], rows)) }
    }
}

fn events(found: &Found<Message>) -> Markup {
    let rows = html! {
        @for message in &found.items {
            @let event = event_of(&message.payload);
            tr {
                td { (text::time(message.time)) }
                td.number { (message.sequence) }
                @match &event {
                    Some(event) => {
                        td { (text::line(event.action.as_str(), text::NAME)) @if message.id().contains('#') { " (again)" } }
                        td { @if let Some(at) = event.issue.updated_at { (text::time(at)) } @else { "unknown" } }
                        td { (text::line(&event.sender.login, text::NAME)) }
                        td { a href={ "/deliveries/" (super::fields::segment(&event.delivery.id)) } {
                            code { (text::line(&event.delivery.id, text::NAME)) }
                        } }
                    }
                    None => { td { "cannot be read" } td {} td {} td { (text::line(message.id(), text::NAME)) } }
                }
            }
        }
    };
    html! {
        @if found.items.is_empty() { p { (none(found, "No events.")) } }
        @else { (layout::table("Events, the newest first", &["Published", "#Message", "Action", "Updated at", "By", "Delivery"], rows)) }
    }
}

/// What stands for an empty list.
fn none(found: &Found<Message>, words: &'static str) -> &'static str {
    if found.cut_short.is_some() { "Not known: they could not be read." } else { words }
}

fn older(address: &str, name: &str, found: &Found<Message>) -> Markup {
    let last = found.items.last().filter(|_| found.items.len() == PAGE);
    let before = last.map(|message| message.sequence.to_string());
    html! {
        @if let Some(before) = before { p { a href=(link(address, &[(name, &before)])) { "Older" } } }
    }
}
