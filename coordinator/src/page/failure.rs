//! What a request gets that gets no page.

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use maud::html;

use super::{layout, text};

/// Why there is no page. The texts are for operators.
#[derive(Debug)]
pub(super) enum Failure {
    /// What is asked for does not exist, or no longer.
    NotFound(String),
    /// The request makes no sense.
    BadRequest(String),
    /// The request is not let in.
    Forbidden(String),
    /// Something that is needed is away.
    Unavailable(String),
    /// Too much at once.
    TooMany(String),
}

/// The answer of a handler.
pub(super) type Answer = Result<Response, Failure>;

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (code, title, why) = match self {
            Self::NotFound(why) => (StatusCode::NOT_FOUND, "Nothing found", why),
            Self::BadRequest(why) => (StatusCode::BAD_REQUEST, "Not understood", why),
            Self::Forbidden(why) => (StatusCode::FORBIDDEN, "Not let in", why),
            Self::Unavailable(why) => (StatusCode::SERVICE_UNAVAILABLE, "Not available", why),
            Self::TooMany(why) => (StatusCode::TOO_MANY_REQUESTS, "Too much at once", why),
        };
        let main = html! {
            p { (text::line(&why, text::ERROR)) }
            p { a href="/" { "Back to what is now" } }
        };
        (code, layout::bare(title, main)).into_response()
    }
}
