//! What a delivery is about: its id, its trace, and the line that tells its fate.

use axum::http::HeaderMap;
use opentelemetry::trace::TraceId;
use shared::{
    event::{Action, IssueEvent},
    trace,
};
use tracing::{Span, info, record_all};
use uuid::Uuid;

use super::text;
use crate::reply::Fate;

/// What is known of a delivery, for its span and for the line that tells its fate.
pub(super) struct About {
    pub(super) delivery_id: Uuid,
    pub(super) trace_id: TraceId,
    /// Gitea's name of the event.
    pub(super) event: Option<String>,
    /// From here on known once the delivery is parsed, and is an issue's.
    action: Option<Action>,
    repository: Option<String>,
    issue_ref: Option<String>,
}

impl About {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let (delivery_id, trace_id) = identify(headers);
        let event = text(headers, "x-gitea-event");
        Self { delivery_id, trace_id, event, action: None, repository: None, issue_ref: None }
    }

    /// Takes what the event says, and puts it on the span.
    pub(super) fn learn(&mut self, event: &IssueEvent) {
        let (action, repository) = (event.action.clone(), event.repository.full_name());
        let issue_ref = event.issue_ref();
        let span = Span::current();
        if !span.is_disabled() {
            record_all!(
                span,
                gitea.action = action.as_str(),
                gitea.repository = repository,
                gitea.issue.ref = issue_ref,
            );
            trace::describe_repository(&span, &event.repository);
        }
        self.action = Some(action);
        self.repository = Some(repository);
        self.issue_ref = Some(issue_ref);
    }

    /// The one line that says what became of a delivery here. It is whole without
    /// the span, which is there only where traces are exported.
    pub(super) fn log(&self, fate: &Fate) {
        macro_rules! line {
            ($message:literal $(, $name:ident = $value:expr)?) => {
                info!(
                    gitea.delivery.id = %self.delivery_id,
                    trace_id = %self.trace_id,
                    gitea.event = self.event,
                    gitea.action = self.action.as_ref().map(Action::as_str),
                    gitea.repository = self.repository,
                    gitea.issue.ref = self.issue_ref,
                    outcome = fate.outcome(),
                    status = fate.status().as_u16(),
                    $($name = $value,)?
                    $message
                )
            };
        }
        match fate {
            Fate::Accepted { .. } => line!("delivery accepted"),
            Fate::Ignored { .. } => line!("delivery ignored"),
            Fate::Refused(refusal) => line!("delivery refused", field = refusal.field),
        }
    }
}

/// The delivery's id and its trace. An id that is no UUID is replaced, so that
/// every delivery has one that can be found.
fn identify(headers: &HeaderMap) -> (Uuid, TraceId) {
    let id = ["x-gitea-delivery", "x-forgejo-delivery", "x-gogs-delivery"]
        .iter()
        .find_map(|name| headers.get(*name))
        .and_then(|value| value.to_str().ok())
        .filter(|text| text.len() == uuid::fmt::Hyphenated::LENGTH)
        .and_then(|text| Uuid::try_parse(text).ok())
        .filter(|id| !id.is_nil())
        .unwrap_or_else(Uuid::new_v4);
    (id, trace::trace_id(id))
}
