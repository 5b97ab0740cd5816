//! Requests that are no delivery by their path or method. A hook with a mistyped URL is one of
//! them, and Gitea sends its deliveries once.

use std::sync::Arc;

use axum::{extract::Request, response::Response};
use service::log_limit::{Line, LogLimit};
use tracing::warn;

use super::reply;
use crate::instruments::{Instruments, Stray};

/// Longest part of a path that is logged, in characters. Anyone may send one.
const MAX_PATH: usize = 100;

/// Answers and reports stray requests.
#[derive(Debug)]
pub(super) struct StrayRequests {
    instruments: Arc<Instruments>,
    lines: LogLimit,
}

impl StrayRequests {
    pub(super) fn new(instruments: Arc<Instruments>) -> Self {
        Self { instruments, lines: LogLimit::new() }
    }

    pub(super) fn unknown_path(&self, request: &Request) -> Response {
        self.report(Stray::UnknownPath, request);
        reply::not_found()
    }

    pub(super) fn wrong_method(&self, request: &Request) -> Response {
        self.report(Stray::WrongMethod, request);
        reply::method_not_allowed()
    }

    fn report(&self, stray: Stray, request: &Request) {
        self.instruments.strayed(stray);
        let reason: &str = stray.into();
        let delivery_id = request.headers().get("x-gitea-delivery");
        let delivery_id = delivery_id.and_then(|id| id.to_str().ok()).filter(|id| id.len() <= 36);
        // What strangers try must not hide a hook.
        let cause = if delivery_id.is_some() { reason } else { "no delivery" };
        let Some(Line { left_out }) = self.lines.line(cause) else { return };
        // A query may hold a token.
        let path: String = request.uri().path().chars().take(MAX_PATH).collect();
        warn!(
            gitea.delivery.id = delivery_id,
            url.path = path,
            http.request.method = request.method().as_str(),
            reason,
            left_out,
            "no delivery is taken there; Gitea has to POST to /webhook/gitea"
        );
    }
}
