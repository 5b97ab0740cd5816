//! *Redeliver*: publishes the event of a delivery once more, after a page that says what will happen.

use std::sync::Arc;

use axum::{
    Extension,
    body::Bytes,
    extract::{RawQuery, State},
    http::HeaderMap,
    response::{IntoResponse, Redirect},
};
use maud::html;
use service::peers::{Answered, Asked, Question, Reply};

use super::{
    super::{
        failure::{Answer, Failure},
        fields::Fields,
        layout::{self, Part},
        of_path::OfPath,
        security::{self, Viewer},
        state::Shared,
        text,
    },
    SHORT,
    fate::Fate,
    headline, id, patience,
};

/// The page that says what will happen.
pub(in super::super) async fn confirm(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    OfPath(text): OfPath<String>,
    RawQuery(query): RawQuery,
) -> Answer {
    let id = id(&text)?;
    let patience = patience(&Fields::parse(query.unwrap_or_default()));
    let fate = Fate::find(&shared, id, patience).await;
    let in_journal = fate.journaled.is_some();
    let is_last = fate.issue.as_ref().is_some_and(|issue| issue.delivery_id == fate.id);
    let main = html! {
        (headline(&fate))
        @if !in_journal {
            div.note.warn {
                p { (fate.journals.absence()) " Where no journal holds it, ingest will refuse." }
                p { "In Gitea, under the hook's recent deliveries, it can be redelivered too." }
                p { a href={ "/deliveries/" (id) "/redeliver?wait=1" } { "Look again, with more patience" } }
            }
        }
        ul {
            li { "Ingest publishes its event once more, under another message id. Gitea is not asked to send anything." }
            li { "A worker compares it with what subscribers know, as any other event." }
            @if is_last {
                li { "The issue is as this delivery left it, so nobody will be told anything." }
            } @else {
                li { "If newer events of the issue were handled since, it changes nothing. If not, the changes that follow from it are told." }
            }
        }
        form method="post" action={ "/deliveries/" (id) "/redeliver" } {
            (layout::form_token(&viewer))
            div.row {
                button { "Redeliver" }
                a href={ "/deliveries/" (id) } { "Back" }
            }
        }
    };
    Ok(layout::page(&viewer, Part::None, &format!("Redeliver {id}?"), main).into_response())
}

/// Has ingest publish it.
pub(in super::super) async fn redeliver(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    OfPath(text): OfPath<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    security::form(&shared, &viewer, &headers, &body)?;
    let id = id(&text)?;
    let question = Question::Redeliver { id };
    let answered = shared.peers.ask_within(Asked::Ingest, &question, SHORT).await;
    let sequence = outcome(answered)?;
    tracing::info!(gitea.delivery.id = %id, sequence, "redelivered from the page");
    Ok(Redirect::to(&format!("/deliveries/{id}?redelivered={sequence}")).into_response())
}

/// The message that it was published as. One that did not answer may still be at it.
fn outcome(answered: Answered) -> Result<u64, Failure> {
    let mut refused = Vec::new();
    for answer in &answered.answers {
        match &answer.reply {
            Reply::Published { sequence, .. } => return Ok(*sequence),
            Reply::Refused(why) => {
                let who = text::process(&answer.instance);
                refused.push(format!("{who}: {}", text::line(why, text::ERROR)));
            }
            _ => {}
        }
    }
    let refused = refused.join("; ");
    let silent: Vec<_> = answered.silent.iter().map(text::process).collect();
    let who = match &silent[..] {
        [] if !refused.is_empty() => {
            let why = format!("No ingest that answered has published it again: {refused}");
            return Err(Failure::NotFound(why));
        }
        [] => "No ingest answered".to_owned(),
        silent => format!("{} did not answer", text::people(silent)),
    };
    Err(Failure::Unavailable(format!(
        "{who} in time, so it may have been published again or not. Look at its page. {refused}"
    )))
}

#[cfg(test)]
mod tests {
    use service::peers::Answer;

    use super::{super::journals::tests::instance, *};

    #[test]
    fn it_was_not_published_again_only_if_nobody_may_be_at_it() {
        let answer = |host: &str, reply| Answer { instance: instance(host), reply };
        let refused = || answer("a", Reply::Refused("it is not there".into()));
        let done = || answer("b", Reply::Published { subject: "s".into(), sequence: 9 });
        let of = |answers, silent| outcome(Answered { answers, silent });
        assert!(matches!(of(vec![refused(), done()], vec![instance("c")]), Ok(9)));
        let alone = of(vec![refused()], Vec::new());
        assert!(
            matches!(&alone, Err(Failure::NotFound(why)) if why.ends_with("a (7): it is not there"))
        );
        let away = of(vec![refused()], vec![instance("b")]);
        assert!(
            matches!(&away, Err(Failure::Unavailable(why)) if why.contains("b (7) did not answer")
                && why.contains("or not")),
            "{away:?}"
        );
        let nobody = of(Vec::new(), Vec::new());
        assert!(
            matches!(&nobody, Err(Failure::Unavailable(why)) if why.starts_with("No ingest answered"))
        );
    }
}
