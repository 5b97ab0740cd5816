//! *Delivery*: its whole fate on one page.

mod fate;
mod journals;
mod redeliver;
mod steps;

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{RawQuery, State},
    response::{IntoResponse, Redirect},
};
use contract::{envelope, event::IssueEvent};
use maud::{Markup, html};
use service::peers::{Asked, Question};
use uuid::Uuid;

pub(super) use self::redeliver::{confirm, redeliver};
use self::{
    fate::{Fate, Patience},
    journals::Journals,
    steps::{How, Step},
};
use super::{
    failure::{Answer, Failure},
    fields::{Fields, segment},
    layout::{self, Part},
    of_path::OfPath,
    security::Viewer,
    state::Shared,
    text, trace,
    waterfall::waterfall,
};

/// How long is waited for a page. What was not answered by then is named.
const SHORT: Duration = Duration::from_millis(200);
const PATIENCE: Patience = Patience { peers: SHORT, broker: SHORT };
/// How long is waited for somebody who asks again.
const LONG: Duration = Duration::from_secs(4);
const MORE_PATIENCE: Patience = Patience { peers: LONG, broker: LONG };
/// Longest payload that is shown, in bytes.
const PAYLOAD_BYTES: usize = 256 * 1024;

/// Reads a delivery's id, with or without its dashes.
///
/// # Errors
/// If the text is none.
pub(super) fn id(text: &str) -> Result<Uuid, Failure> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    let id = Uuid::try_parse(text).ok().filter(|_| is_plain);
    id.ok_or_else(|| {
        let shown = text::line(text, 80);
        Failure::BadRequest(format!(
            "“{shown}” is no delivery's id, which has 32 hexadecimal digits."
        ))
    })
}

/// The page.
pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    OfPath(text): OfPath<String>,
    RawQuery(query): RawQuery,
) -> Answer {
    let id = id(&text)?;
    let address = format!("/deliveries/{id}");
    if text != id.to_string() {
        return Ok(Redirect::to(&address).into_response());
    }
    let query = Fields::parse(query.unwrap_or_default());
    let patience = patience(&query);
    if query.get("payload") == "1" {
        // Who wants it wants all of it.
        return payload(&shared, &viewer, id, Patience { broker: LONG, ..patience }).await;
    }
    let fate = Fate::find(&shared, id, patience).await;
    let all_spans = (query.get("spans") != "all").then(|| format!("{address}?spans=all"));
    let title = format!("Delivery {id}");
    let main = html! {
        @if let Some(sequence) = query.number("redelivered") {
            div.note.good role="status" {
                p { "Published again as message " (sequence) " of the events. What follows from it is below as soon as it is handled." }
            }
        }
        (headline(&fate))
        (layout::notes(&fate.notes, Some(&format!("{address}?wait=1"))))
        h2 { "Its fate" }
        ol.steps { @for step in steps::of(&fate) { (item(&step)) } }
        h2 { "Waterfall" }
        (waterfall(&fate.spans, all_spans.as_deref()))
        p { (trace::links(&shared, &id.simple().to_string())) }
        h2 { "More" }
        ul {
            li { a href={ (address) "?payload=1" } { "Payload and headers" } }
            li { a href={ (address) "/redeliver" } { "Redeliver…" } " publishes its event once more" }
            @if let Some((owner, repository, number)) = fate.issue() {
                li { a href=(issue_address(&owner, &repository, number)) {
                    "The issue " (text::line(&format!("{owner}/{repository}#{number}"), text::TITLE))
                } ": all changes that were told, and its other deliveries" }
            }
        }
    };
    let page = layout::found_page(&viewer, Part::None, &title, &id.to_string(), main);
    Ok(page.into_response())
}

/// How long is waited for whoever asks so.
fn patience(query: &Fields) -> Patience {
    if query.get("wait") == "1" { MORE_PATIENCE } else { PATIENCE }
}

/// Address of an issue's page.
pub(super) fn issue_address(owner: &str, repository: &str, number: u64) -> String {
    format!("/issues/{}/{}/{number}", segment(owner), segment(repository))
}

fn headline(fate: &Fate) -> Markup {
    html! {
        @if let Some(event) = fate.event() {
            p {
                strong { (text::line(event.action.as_str(), text::NAME)) } " of "
                a href=(issue_address(&event.repository.owner, &event.repository.name, event.issue.number)) {
                    (text::line(&event.issue_ref(), text::TITLE))
                }
                " “" (text::line(&event.issue.title, text::TITLE)) "” by "
                (text::line(&event.sender.login, text::NAME))
            }
        }
    }
}

fn item(step: &Step) -> Markup {
    let class = match step.how {
        How::Done => "done",
        How::Waits => "waits",
        How::Failed => "failed",
        How::Unknown => "unknown",
    };
    html! {
        li class=(class) {
            h3 { (step.name) }
            div {
                p {
                    span class=(match step.how { How::Done => "good", How::Waits => "warn", How::Failed => "bad", How::Unknown => "quiet" }) {
                        (step.word)
                    }
                    @if let Some(at) = step.at { " " (text::time(at)) }
                }
                @for line in &step.lines {
                    p {
                        (text::line(&line.words, text::ERROR))
                        @if let Some((address, words)) = &line.link { " " a href=(address) { (words) } }
                    }
                }
            }
        }
    }
}

/// Payload and headers. Signatures are never kept, so there are none.
async fn payload(shared: &Shared, viewer: &Viewer, id: Uuid, patience: Patience) -> Answer {
    let question = Question::Delivery { id, payload: true };
    let asked = shared.peers.ask_within(Asked::Ingest, &question, patience.peers);
    let (answered, mut fate) = futures::future::join(asked, Fate::find(shared, id, patience)).await;
    let (journals, journaled) = Journals::of(answered);
    let is_held = journaled.is_some();
    let original = journaled.and_then(|journaled| journaled.payload);
    if original.is_none() && fate.events.is_empty() && fate.notes.is_empty() {
        let why = if is_held {
            "Neither the journal nor the stream of events holds its payload any more.".into()
        } else {
            format!("The stream of events does not hold its payload. {}", journals.absence())
        };
        return Err(Failure::NotFound(why));
    }
    if !is_held && journals.are_missing() && !fate.notes.contains(&journals.absence()) {
        fate.notes.push(journals.absence());
    }
    let main = html! {
        p { a href={ "/deliveries/" (id) } { "Back to its fate" } }
        (layout::notes(&fate.notes, Some(&format!("/deliveries/{id}?payload=1&wait=1"))))
        @if let Some(original) = original {
            h2 { "As Gitea sent it" }
            pre tabindex="0" { (text::lines(&pretty(original.as_bytes()), PAYLOAD_BYTES)) }
        } @else if is_held {
            p.quiet { "The journal does not hold what Gitea sent any more." }
        } @else {
            p.quiet {
                "What Gitea sent is not here. "
                @if !journals.are_missing() { (journals.absence()) }
            }
        }
        @for message in fate.events.iter().take(4) {
            h2 { "Message " (message.sequence) " of the events" }
            (headers(&message.headers))
            pre tabindex="0" { (text::lines(&pretty(&message.payload), PAYLOAD_BYTES)) }
        }
    };
    let title = format!("Payload of {id}");
    Ok(layout::page(viewer, Part::None, &title, main).into_response())
}

/// Headers of a message, each in a line.
pub(super) fn headers(headers: &envelope::Headers) -> Markup {
    html! {
        dl {
            @for (name, value) in headers.0.iter().take(64) {
                dt { (text::line(name, text::NAME)) }
                dd { (text::line(value, text::ERROR)) }
            }
        }
    }
}

/// JSON with a line for each field; what is none stays as it is.
pub(super) fn pretty(payload: &[u8]) -> String {
    match serde_json::from_slice::<serde_json::Value>(payload) {
        Ok(json) => service::printable::json(&format!("{json:#}")).into_owned(),
        Err(_) => String::from_utf8_lossy(payload).into_owned(),
    }
}

/// Reads the event of a message.
pub(super) fn event_of(payload: &[u8]) -> Option<IssueEvent> {
    envelope::read_event(payload).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_gitea_and_as_a_trace_shows_it_and_nothing_else_is() {
        let expected = "b60f8ed3-6a1a-4e58-b31e-0b00968f94cb";
        for text in
            [expected, "b60f8ed36a1a4e58b31e0b00968f94cb", "B60F8ED36A1A4E58B31E0B00968F94CB"]
        {
            assert_eq!(id(text).expect("an id").to_string(), expected);
        }
        for text in [
            "",
            "1",
            "urn:uuid:b60f8ed3-6a1a-4e58-b31e-0b00968f94cb",
            "{b60f8ed36a1a4e58b31e0b00968f94cb}",
            "../x",
            "b60f8ed36a1a4e58b31e0b00968f94cg",
        ] {
            assert!(matches!(id(text), Err(Failure::BadRequest(_))), "{text}");
        }
    }
}
