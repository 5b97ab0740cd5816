//! The routes of the page.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    http::{Method, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use gitea::NoObserver;
use service::{peers::Peers, role::CommonSettings};
use sync::settings::AccessSettings;

use super::{
    assets, dead_letters, delivery, failure::Failure, find, issue, live, live::Live, now, runbook,
    runs, security, security::Security, state::Shared, trace,
};

/// Largest form, in bytes. One of chosen letters has some kB.
const MOST: usize = 64 * 1024;
/// How long a form may take.
const FORM_TIMEOUT: Duration = Duration::from_secs(10);

/// The pages of a process. `access` is that to Gitea's API, where the process has one.
pub(crate) fn router(
    peers: &Peers,
    settings: &CommonSettings,
    access: Option<&AccessSettings>,
) -> Router {
    let with_token = access.filter(|access| access.token.is_some());
    let shared = Arc::new(Shared {
        peers: peers.clone(),
        security: Security::new(&settings.operator),
        gitea_url: settings.gitea_url.clone(),
        // What cannot be used ends the process elsewhere.
        gitea: with_token.and_then(|access| access.client(Arc::new(NoObserver)).ok()),
        trace_url: settings.telemetry.trace_url.clone(),
        live: Arc::new(Live::new()),
        jobs: Default::default(),
    });
    let wrong_method = || async { Failure::BadRequest("Not by this method.".into()) };
    Router::new()
        .route("/", get(now::show))
        .route("/live", get(live::now))
        .route("/find", get(find::show))
        .route("/deliveries/{id}", get(delivery::show))
        .route("/deliveries/{id}/redeliver", get(delivery::confirm).post(delivery::redeliver))
        .route("/traces/{id}", get(trace::show))
        .route("/issues/{owner}/{repository}/{number}", get(issue::show))
        .route("/issues/{owner}/{repository}/{number}/gitea", post(issue::ask_gitea))
        .route("/dead-letters", get(dead_letters::show))
        .route("/dead-letters/confirm", get(dead_letters::confirm))
        .route("/dead-letters/jobs", post(dead_letters::start))
        .route("/dead-letters/jobs/{id}", get(dead_letters::show_job))
        .route("/dead-letters/jobs/{id}/live", get(dead_letters::live_job))
        .route("/dead-letters/{sequence}", get(dead_letters::look))
        .route("/runs", get(runs::show))
        .route("/runs/{key}", get(runs::show_one))
        .route("/runs/{key}/live", get(runs::live_one))
        .route("/runs/{key}/stop", get(runs::confirm_stop).post(runs::stop))
        .route("/runs/{key}/again", get(runs::confirm_again).post(runs::run_again))
        .route("/runbook", get(runbook::contents))
        .route("/runbook/{anchor}", get(runbook::show))
        .route("/login", get(security::login_form).post(security::login))
        .route("/logout", post(security::logout))
        .route("/page.css", get(assets::css))
        .route("/page.js", get(assets::js))
        .route("/icon.svg", get(assets::icon))
        .method_not_allowed_fallback(wrong_method)
        .fallback(|| async { Failure::NotFound("There is no such page.".into()) })
        .layer(middleware::from_fn(whole_form))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), security::check))
        .with_state(shared)
}

/// Takes a form as a whole, within its limits, before anything looks at it.
async fn whole_form(request: Request, next: Next) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    match tokio::time::timeout(FORM_TIMEOUT, to_bytes(body, MOST)).await {
        Ok(Ok(body)) => next.run(Request::from_parts(parts, Body::from(body))).await,
        Ok(Err(_)) => {
            Failure::BadRequest("The form is too large, or broke off.".into()).into_response()
        }
        Err(_) => (StatusCode::REQUEST_TIMEOUT, "the form took too long\n").into_response(),
    }
}
