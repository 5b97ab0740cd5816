//! What a client is answered: JSON with stable codes, and never a cause.

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use opentelemetry::trace::TraceId;
use serde::Serialize;
use uuid::Uuid;

/// Header of every answer to a delivery; Gitea stores it beside the delivery.
const X_TRACE_ID: HeaderName = HeaderName::from_static("x-trace-id");

/// After how many seconds a sender may try again what was not kept.
const RETRY_AFTER_SECS: u16 = 5;

/// What became of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Kept. `duplicate` when it had been kept before under the same id.
    Accepted { duplicate: bool },
    /// Signed, but nothing for us.
    Ignored { reason: IgnoreReason },
    /// Refused, with the reason.
    Refused(Refusal),
}

/// Why a signed delivery is not for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IgnoreReason {
    /// Another event than `issues`: a push (the test button sends one), a comment.
    NotAnIssueEvent,
    /// An issue event about a pull request.
    PullRequest,
}

impl IgnoreReason {
    fn as_str(self) -> &'static str {
        match self {
            Self::NotAnIssueEvent => "not_an_issue_event",
            Self::PullRequest => "pull_request",
        }
    }
}

/// Why a request was refused. The code is stable; the text is for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) field: Option<String>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), field: None }
    }

    pub(crate) fn unauthorized(code: &'static str, message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, code, message)
    }

    pub(crate) fn invalid(field: &str, problem: &str) -> Self {
        Self {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            code: "invalid_payload",
            message: format!("{field} {problem}"),
            field: Some(field.to_owned()),
        }
    }

    pub(crate) fn not_kept(code: &'static str, message: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
    }
}

impl Fate {
    /// For metrics: `accepted`, `duplicate`, `ignored`, or the refusal's code.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Accepted { duplicate: false } => "accepted",
            Self::Accepted { duplicate: true } => "duplicate",
            Self::Ignored { .. } => "ignored",
            Self::Refused(refusal) => refusal.code,
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Refused(refusal) => refusal.status,
            _ => StatusCode::OK,
        }
    }

    /// The answer to a delivery: the receipt that Gitea shows under "Recent deliveries".
    pub(crate) fn into_reply(self, delivery_id: Uuid, trace_id: TraceId) -> Response {
        let (status, duplicate, reason) = match self {
            Self::Accepted { duplicate } => ("accepted", duplicate, None),
            Self::Ignored { reason } => ("ignored", false, Some(reason.as_str())),
            Self::Refused(refusal) => {
                let mut response = refusal.into_response();
                response.headers_mut().insert(X_TRACE_ID, trace_header(trace_id));
                return response;
            }
        };
        let receipt = Receipt {
            status,
            delivery_id: delivery_id.to_string(),
            trace_id: trace_id.to_string(),
            duplicate,
            reason,
        };
        ([(X_TRACE_ID, trace_header(trace_id))], Json(receipt)).into_response()
    }
}

fn trace_header(trace_id: TraceId) -> HeaderValue {
    HeaderValue::from_str(&trace_id.to_string()).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[derive(Serialize)]
struct Receipt {
    status: &'static str,
    delivery_id: String,
    trace_id: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            error: &'static str,
            message: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            field: Option<String>,
        }
        let body = Json(Body { error: self.code, message: self.message, field: self.field });
        let mut response = (self.status, body).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_SECS.into());
        }
        if matches!(self.status, StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE) {
            // The rest of the body is unread, so the connection is of no further use.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// The answer to a path that is none of ours.
pub(crate) async fn not_found() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "not_found", "post to /webhook/gitea")
}

/// The answer to a method that a path does not take; `Allow` names those that it takes.
pub(crate) async fn method_not_allowed() -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path takes another method; deliveries are posted to /webhook/gitea",
    )
}
