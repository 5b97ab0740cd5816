//! The operator's listener of a process: health and metrics of all its roles,
//! on a separate address. A client that can post webhooks cannot read metrics,
//! and probes are answered while the webhook's port is under attack. A browser
//! that was led here gets nothing.

pub mod host;
pub mod probe;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Map, Value, json};

use self::host::HostNames;
use crate::{
    server::{Limits, Server},
    settings::{address, port},
    telemetry::metrics::Metrics,
};

crate::settings! {
    /// The operator's listener.
    pub struct OperatorArgs => OperatorSettings {
        operator_host: IpAddr = "OPERATOR_HOST" or "127.0.0.1" = Ipv4Addr::LOCALHOST.into(), address,
            "Address of the operator's listener: health and metrics";
        operator_port: u16 = "OPERATOR_PORT" or "8001" = 8001, port,
            "Port of the operator's listener; 0 for any";
        operator_hosts: Option<HostNames> = "OPERATOR_HOSTS", HostNames::read,
            "Names of the operator's listener besides localhost and addresses, with commas between";
    }
}

impl OperatorSettings {
    /// Address to listen on.
    pub fn socket_address(&self) -> SocketAddr {
        SocketAddr::new(self.operator_host, self.operator_port)
    }
}

/// Enough for operators and their tools, which are few.
const MAX_CONNECTIONS: usize = 64;
/// Limit for request heads, for idle connections and for unread answers.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Health of a role.
#[derive(Clone, Debug)]
pub struct Health {
    /// The health in one word.
    pub status: Status,
    /// Whether the role does its work right now.
    pub ready: bool,
    /// Further details, as fields of the answer.
    pub details: Map<String, Value>,
}

/// Health of a role in one word, from good to bad. The worst one counts for the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// All is well.
    Ok,
    /// Something is missing, and the role will catch up.
    Degraded,
    /// The role cannot do its main work.
    Unavailable,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Unavailable => "unavailable",
        }
    }
}

impl Health {
    /// `details` is a JSON object. Its fields are added to the answer.
    pub fn new(status: Status, ready: bool, details: Value) -> Self {
        let details = if let Value::Object(fields) = details { fields } else { Map::new() };
        Self { status, ready, details }
    }
}

/// Returns the health of a role. Must not block.
pub type HealthCheck = Arc<dyn Fn() -> Health + Send + Sync>;

/// Binds the operator's listener.
///
/// # Errors
/// The errors of bind and listen.
pub async fn bind(settings: &OperatorSettings) -> io::Result<Server> {
    let limits = Limits {
        header_timeout: TIMEOUT,
        idle_timeout: TIMEOUT,
        write_timeout: TIMEOUT,
        max_connections: MAX_CONNECTIONS,
        max_connections_per_address: MAX_CONNECTIONS / 2,
    };
    Server::bind("operator", settings.socket_address(), limits).await
}

/// The routes of the operator's listener, for requests under an address or one of its names.
pub fn router(settings: &OperatorSettings, metrics: Metrics, checks: Vec<HealthCheck>) -> Router {
    let names = Arc::new(settings.operator_hosts.clone().unwrap_or_default());
    let checks: Arc<[HealthCheck]> = checks.into();
    Router::new()
        .route("/health", get(async |State(checks): State<Arc<[HealthCheck]>>| answer(&checks)))
        .route("/health/ready", get(ready))
        .with_state(checks)
        // Always live: a restart repairs neither the journal nor the broker.
        .route("/health/live", get(async || "live\n"))
        .route("/metrics", get(async move || metrics.render()))
        .layer(middleware::from_fn_with_state(names, host::check))
}

async fn ready(State(checks): State<Arc<[HealthCheck]>>) -> Response {
    let health = merged(&checks);
    let code = if health.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(body(health))).into_response()
}

/// The answer to `GET /health`: 503 only if a role is [`Status::Unavailable`].
pub fn answer(checks: &[HealthCheck]) -> Response {
    let health = merged(checks);
    let code = match health.status {
        Status::Ok | Status::Degraded => StatusCode::OK,
        Status::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, Json(body(health))).into_response()
}

fn merged(checks: &[HealthCheck]) -> Health {
    let mut all = Health { status: Status::Ok, ready: true, details: Map::new() };
    for health in checks.iter().map(|check| check()) {
        all.status = all.status.max(health.status);
        all.ready &= health.ready;
        all.details.extend(health.details);
    }
    all
}

fn body(health: Health) -> Value {
    let mut body = json!({
        "status": health.status.as_str(),
        "version": env!("CARGO_PKG_VERSION"),
        "live": true,
        "ready": health.ready,
    });
    if let Value::Object(fields) = &mut body {
        fields.extend(health.details);
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_all_roles_counts_for_the_process() {
        let check = |status, ready, name: &'static str| -> HealthCheck {
            Arc::new(move || {
                let details = Map::from_iter([(name.to_owned(), json!(1))]);
                Health { status, ready, details }
            })
        };
        let well = check(Status::Ok, true, "a");
        for (checks, status, code, ready) in [
            (vec![well.clone()], "ok", 200, true),
            (vec![well.clone(), check(Status::Degraded, false, "b")], "degraded", 200, false),
            (vec![check(Status::Unavailable, false, "b"), well], "unavailable", 503, false),
        ] {
            assert_eq!(answer(&checks).status().as_u16(), code);
            let health = body(merged(&checks));
            assert_eq!((&health["status"], &health["ready"]), (&json!(status), &json!(ready)));
            assert_eq!(health["a"], 1);
        }
    }
}
