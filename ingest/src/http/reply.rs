//! Answers to clients: one table of outcomes, status codes and texts. Answers are JSON with stable
//! codes, and never expose an internal cause.

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use contract::traceparent::trace_id_text;
use serde::Serialize;
use service::server::MayRest;
use uuid::Uuid;

use super::body::BodyError;
use crate::{
    gitea::{
        payload::{IgnoreReason, PayloadError},
        signature::SignatureError,
    },
    journal::AppendError,
};

/// Sent with every answer to a delivery. Gitea stores it with the delivery.
const X_TRACE_ID: HeaderName = HeaderName::from_static("x-trace-id");

/// Value of `Retry-After` in an answer with status 503, in seconds.
const RETRY_AFTER_SECS: u16 = 5;

/// The outcome of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Committed to the journal.
    Accepted,
    /// The journal already held it, under the same id.
    Duplicate,
    /// The signature is correct, but ingest does not publish this event.
    Ignored(IgnoreReason),
    Refused(Refusal),
}

/// Why a delivery was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    ContentType,
    Signature(SignatureError),
    Body(BodyError),
    Payload(PayloadError),
    Journal(AppendError),
    /// The processing of the delivery panicked.
    Interrupted,
    /// The sender hung up before its delivery was kept.
    HungUp,
}

impl Refusal {
    /// Status, stable code, and a text for people.
    fn table(&self) -> (StatusCode, &'static str, String) {
        let (status, code, message) = match self {
            Self::ContentType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_content_type",
                "send application/json or application/x-www-form-urlencoded".into(),
            ),
            Self::Signature(error) => (StatusCode::UNAUTHORIZED, error.into(), error.to_string()),
            Self::Body(error) => {
                let status = match error {
                    BodyError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
                    BodyError::TooSlow => StatusCode::REQUEST_TIMEOUT,
                    BodyError::Broken => StatusCode::BAD_REQUEST,
                    BodyError::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
                };
                (status, error.into(), error.to_string())
            }
            Self::Payload(error) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "invalid_payload", error.to_string())
            }
            Self::Journal(AppendError::IdReused) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid_payload",
                "X-Gitea-Delivery came before with another payload".into(),
            ),
            Self::Journal(error) => {
                (StatusCode::SERVICE_UNAVAILABLE, error.into(), error.to_string())
            }
            Self::Interrupted => (
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "the body could not be worked on".into(),
            ),
            // 499 is nginx's code for a closed connection. The client does not receive this answer.
            Self::HungUp => (
                StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
                "hung_up",
                "the sender hung up".into(),
            ),
        };
        (status, code, message)
    }

    /// The field or header at fault.
    pub(crate) fn field(&self) -> Option<&str> {
        match self {
            Self::Payload(error) => Some(&error.field),
            Self::Journal(AppendError::IdReused) => Some("X-Gitea-Delivery"),
            _ => None,
        }
    }

    /// Whether the sender proved, before this refusal, that it knows the secret.
    fn was_signed(&self) -> bool {
        matches!(self, Self::Payload(_) | Self::Journal(_))
    }
}

impl Fate {
    /// For metrics: `accepted`, `duplicate`, `ignored`, or the refusal's code.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Ignored(_) => "ignored",
            Self::Refused(refusal) => refusal.table().1,
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Refused(refusal) => refusal.table().0,
            _ => StatusCode::OK,
        }
    }

    /// The answer to a delivery. Gitea shows it under "Recent deliveries".
    pub(crate) fn into_response(self, delivery_id: Uuid) -> Response {
        let (status, reason) = match &self {
            Self::Refused(refusal) => {
                let signed = refusal.was_signed();
                return addressed(refusal.response(), delivery_id, signed);
            }
            Self::Ignored(reason) => ("ignored", Some(reason.into())),
            Self::Accepted | Self::Duplicate => ("accepted", None),
        };
        let receipt = Receipt {
            status,
            delivery_id,
            trace_id: trace_id_text(delivery_id),
            duplicate: self == Self::Duplicate,
            reason,
        };
        addressed(Json(receipt).into_response(), delivery_id, true)
    }
}

fn addressed(mut response: Response, delivery_id: Uuid, signed: bool) -> Response {
    if let Ok(trace_id) = HeaderValue::from_str(&trace_id_text(delivery_id)) {
        response.headers_mut().insert(X_TRACE_ID, trace_id);
    }
    if signed {
        response.extensions_mut().insert(MayRest);
    }
    response
}

#[derive(Serialize)]
struct Receipt {
    status: &'static str,
    delivery_id: Uuid,
    trace_id: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

impl Refusal {
    fn response(&self) -> Response {
        let (status, code, message) = self.table();
        let mut response = error(status, code, &message, self.field());
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_SECS.into());
        }
        if matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE) {
            // The rest of the body is unread, so the connection cannot be reused.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

fn error(status: StatusCode, error: &'static str, message: &str, field: Option<&str>) -> Response {
    #[derive(Serialize)]
    struct Body<'a> {
        error: &'static str,
        message: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        field: Option<&'a str>,
    }
    (status, Json(Body { error, message, field })).into_response()
}

/// The answer to an unknown path.
pub(super) fn not_found() -> Response {
    let message = "there is nothing here; Gitea's deliveries are posted to /webhook/gitea, \
        and GET /health tells how ingest is";
    error(StatusCode::NOT_FOUND, "not_found", message, None)
}

/// The answer to a method that a path does not accept. `Allow` lists the accepted methods.
pub(super) fn method_not_allowed() -> Response {
    let message = "this path takes another method; deliveries are posted to /webhook/gitea";
    error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_status_and_code() {
        let payload = || PayloadError::new("issue", "is missing");
        for (refusal, status, code, field) in [
            (Refusal::ContentType, 415, "unsupported_content_type", None),
            (Refusal::Signature(SignatureError::Missing), 401, "signature_missing", None),
            (Refusal::Signature(SignatureError::Mismatch), 401, "signature_mismatch", None),
            (Refusal::Body(BodyError::TooLarge(7)), 413, "body_too_large", None),
            (Refusal::Body(BodyError::TooSlow), 408, "body_timeout", None),
            (Refusal::Body(BodyError::Broken), 400, "body_broken", None),
            (Refusal::Body(BodyError::Overloaded), 503, "overloaded", None),
            (Refusal::Payload(payload()), 422, "invalid_payload", Some("issue")),
            (Refusal::Journal(AppendError::Full), 503, "journal_full", None),
            (Refusal::Journal(AppendError::Unwritable), 503, "journal_unwritable", None),
            (Refusal::Journal(AppendError::Busy), 503, "overloaded", None),
            (
                Refusal::Journal(AppendError::IdReused),
                422,
                "invalid_payload",
                Some("X-Gitea-Delivery"),
            ),
            (Refusal::Interrupted, 503, "unavailable", None),
            (Refusal::HungUp, 499, "hung_up", None),
        ] {
            assert_eq!(refusal.field(), field);
            let fate = Fate::Refused(refusal);
            assert_eq!((fate.status().as_u16(), fate.outcome()), (status, code));
        }
    }
}
