//! What Gitea answers with: JSON, a short message, a redirect.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use serde_json::json;
use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};

/// RFC 9110's form of the header `Date`.
const HTTP_DATE: &[BorrowedFormatItem<'_>] = format_description!(
    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);
const JSON: &str = "application/json;charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";

/// An answer, before the date of Gitea's clock is put to it.
#[derive(Debug)]
pub(super) struct Reply {
    pub status: StatusCode,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

/// Why a request is not answered with what it asked for.
#[derive(Debug)]
pub(super) enum Refusal {
    /// 404 in Gitea's form.
    NotFound,
    /// This status, with a message.
    Message(StatusCode, String),
    /// It is elsewhere: status, and a `Location` without a host.
    Moved(StatusCode, String),
}

impl Reply {
    /// An answer without a body.
    pub fn empty(status: StatusCode) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    /// An answer of this type.
    pub fn typed(status: StatusCode, content_type: &str, body: Vec<u8>) -> Self {
        Self { status, headers: vec![("Content-Type", content_type.into())], body }
    }

    /// A page as a proxy makes it.
    pub fn html(status: StatusCode, body: String) -> Self {
        Self::typed(status, HTML, body.into_bytes())
    }

    /// JSON, and the line end that Gitea puts behind it.
    pub fn json(status: StatusCode, mut json: String) -> Self {
        json.push('\n');
        Self::typed(status, JSON, json.into_bytes())
    }

    /// A list of JSON values, of `total` there are. An empty one is `[]`.
    pub fn list(values: &[String], total: usize) -> Self {
        Self::json(StatusCode::OK, format!("[{}]", values.join(","))).of_total(total)
    }

    /// With the header that tells how many there are in all.
    pub fn of_total(mut self, total: usize) -> Self {
        self.headers.push(("Access-Control-Expose-Headers", "X-Total-Count".into()));
        self.headers.push(("X-Total-Count", total.to_string()));
        self
    }

    /// The response at this time, in seconds since 1970.
    pub fn into_response(self, now: i64) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        for (name, value) in self.headers {
            headers.insert(name, HeaderValue::from_str(&value).expect("a header's value"));
        }
        let now = OffsetDateTime::from_unix_timestamp(now).expect("a time");
        let date = now.format(HTTP_DATE).expect("a date");
        headers.insert(header::DATE, HeaderValue::from_str(&date).expect("a date"));
        response
    }
}

impl Refusal {
    /// 401.
    pub fn unauthorized(message: &str) -> Self {
        Self::Message(StatusCode::UNAUTHORIZED, message.into())
    }

    /// 403.
    pub fn forbidden(message: &str) -> Self {
        Self::Message(StatusCode::FORBIDDEN, message.into())
    }

    /// 422.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::Message(StatusCode::UNPROCESSABLE_ENTITY, message.into())
    }

    /// Its answer, by a Gitea with this `ROOT_URL`.
    pub fn reply(self, root_url: &str) -> Reply {
        let url = format!("{root_url}/api/swagger");
        match self {
            Self::NotFound => Reply::json(
                StatusCode::NOT_FOUND,
                json!({ "errors": null, "message": "not found", "url": url }).to_string(),
            ),
            Self::Message(status, message) => {
                Reply::json(status, json!({ "message": message, "url": url }).to_string())
            }
            Self::Moved(status, location) => {
                let reason = status.canonical_reason().unwrap_or_default();
                let page = format!("<a href=\"{location}\">{reason}</a>.\n\n");
                let mut reply = Reply::html(status, page);
                reply.headers.push(("Location", location));
                reply
            }
        }
    }
}
