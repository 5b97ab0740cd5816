//! A trace by its id, for what is no delivery, and where else it can be seen.

use std::sync::Arc;

use axum::{Extension, extract::State, response::IntoResponse};
use maud::{Markup, html};
use service::peers::{Asked, Question, Reply};

use super::{
    failure::{Answer, Failure},
    layout::{self, Part},
    of_path::OfPath,
    security::Viewer,
    state::Shared,
    text,
    waterfall::waterfall,
};

/// Whether a text is a trace id.
pub(super) fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The page.
pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    OfPath(trace_id): OfPath<String>,
) -> Answer {
    if !is_id(&trace_id) {
        let shown = text::line(&trace_id, 80);
        let why = format!("“{shown}” is no trace id, which has 32 hexadecimal digits.");
        return Err(Failure::BadRequest(why));
    }
    let trace_id = trace_id.to_ascii_lowercase();
    let question = Question::Spans { trace_id: trace_id.clone() };
    let answers = shared.peers.ask(Asked::All, &question).await;
    let mut spans = Vec::new();
    for answer in answers {
        if let Reply::Spans { spans: found, .. } = answer.reply {
            spans.extend(found);
        }
    }
    let main = html! {
        (waterfall(&spans, None))
        p { (links(&shared, &trace_id)) }
        p { a href={ "/deliveries/" (trace_id) } { "The delivery with this id" } ", if it is that of one" }
    };
    Ok(layout::page(&viewer, Part::None, &format!("Trace {trace_id}"), main).into_response())
}

/// Where else the trace can be seen.
pub(super) fn links(shared: &Shared, trace_id: &str) -> Markup {
    html! {
        @match &shared.trace_url {
            Some(template) => {
                a href=(template.replace("{trace_id}", trace_id)) rel="noreferrer" { "The trace where traces are sent to" }
            }
            None => span.quiet { "Trace id " code { (trace_id) } },
        }
    }
}
