//! `GET /health`, `/health/ready` and `/metrics` of the worker.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use shared::{metrics::Metrics, subject::PARTITIONS};

use crate::context::Context;

/// The routes for operators.
pub(crate) fn router(context: Arc<Context>, metrics: Metrics) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/health/ready", get(ready))
        .with_state(context)
        .merge(metrics.router())
}

#[derive(Serialize)]
struct Health {
    /// `ok`; `degraded` while not all partitions are consumed.
    status: &'static str,
    version: &'static str,
    live: bool,
    ready: bool,
    broker: &'static str,
    partitions_consumed: usize,
}

impl Health {
    fn of(context: &Context) -> Self {
        let connected = context.broker.is_connected();
        let partitions_consumed = context.partitions_consumed();
        let ready = connected && partitions_consumed == usize::from(PARTITIONS);
        Self {
            status: if ready { "ok" } else { "degraded" },
            version: env!("CARGO_PKG_VERSION"),
            live: true,
            ready,
            broker: if connected { "connected" } else { "disconnected" },
            partitions_consumed,
        }
    }
}

/// 200 while the process lives: a restart does not bring the broker back.
async fn health(State(context): State<Arc<Context>>) -> Json<Health> {
    Json(Health::of(&context))
}

/// 200 while all partitions are consumed.
async fn ready(State(context): State<Arc<Context>>) -> Response {
    let health = Health::of(&context);
    let code = if health.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(health)).into_response()
}
