//! `GET /health`, `/health/live` and `/metrics`.

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use shared::{broker::Broker, metrics::Metrics};

use crate::journal::Journal;

#[derive(Clone)]
struct Sources {
    journal: Journal,
    broker: Broker,
}

/// The routes for operators.
pub(crate) fn router(journal: Journal, broker: Broker, metrics: Metrics) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/health/live", get(live))
        .with_state(Sources { journal, broker })
        .merge(metrics.router())
}

#[derive(Serialize)]
struct Health {
    /// `ok`; `degraded` while the broker is away, which harms no delivery;
    /// `unavailable` when deliveries cannot be kept.
    status: &'static str,
    version: &'static str,
    live: bool,
    ready: bool,
    broker: &'static str,
    journal: JournalHealth,
}

#[derive(Serialize)]
struct JournalHealth {
    writable: bool,
    depth: u64,
    oldest_unpublished_age_secs: f64,
    used_bytes: u64,
    set_aside: u64,
}

/// Ready means that deliveries can be kept; a broker that is away is told, but is no reason for 503.
async fn health(State(sources): State<Sources>) -> Response {
    let status = sources.journal.status();
    let ready = status.can_keep();
    let connected = sources.broker.is_connected();
    let health = Health {
        status: match (ready, connected) {
            (true, true) => "ok",
            (true, false) => "degraded",
            (false, _) => "unavailable",
        },
        version: env!("CARGO_PKG_VERSION"),
        live: true,
        ready,
        broker: if connected { "connected" } else { "disconnected" },
        journal: JournalHealth {
            writable: ready,
            depth: status.depth(),
            oldest_unpublished_age_secs: status.oldest_unpublished_age().as_secs_f64(),
            used_bytes: status.used_bytes(),
            set_aside: status.set_aside(),
        },
    };
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(health)).into_response()
}

/// Alive whatever the journal and the broker do: a restart mends neither.
async fn live() -> &'static str {
    "live\n"
}
