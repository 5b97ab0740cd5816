//! The operator's listener of a process: health and metrics of all its roles,
//! on a separate address. A client that can post webhooks cannot read metrics,
//! and probes are answered while the webhook's port is under attack. A browser
//! that was led here gets nothing.

pub mod host;
pub mod probe;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
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
    secret::Secret,
    server::{Limits, Server},
    settings::{Problems, address, path, port, secret},
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
        operator_token: Option<Secret> = "OPERATOR_TOKEN", secret,
            "What the operator's page asks for; required where it is not on loopback";
        operator_token_file: Option<PathBuf> = "OPERATOR_TOKEN_FILE", path,
            "File that holds what the operator's page asks for; or the token in OPERATOR_TOKEN";
    }
}

impl OperatorArgs {
    /// Checks the settings and notes in `problems` what is wrong.
    pub fn settings(&self, problems: &mut Problems) -> OperatorSettings {
        let mut settings = self.check(problems);
        let token =
            problems.secret("OPERATOR_TOKEN", &self.operator_token, &self.operator_token_file);
        problems.check_password("OPERATOR_TOKEN", token.as_ref());
        settings.operator_token = token;
        settings
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
    /// `details` is a JSON object. Its fields are added to the answer, but for those that are null:
    /// in a process with several roles they would hide what another role says.
    pub fn new(status: Status, ready: bool, details: Value) -> Self {
        let mut details = if let Value::Object(fields) = details { fields } else { Map::new() };
        details.retain(|_, value| !value.is_null());
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

/// The routes of the operator's listener and its pages, for requests under an address or one of its
/// names.
pub fn router(
    settings: &OperatorSettings,
    metrics: Metrics,
    checks: Arc<[HealthCheck]>,
    pages: Router,
) -> Router {
    let names = Arc::new(settings.operator_hosts.clone().unwrap_or_default());
    Router::new()
        .route("/health", get(async |State(checks): State<Arc<[HealthCheck]>>| answer(&checks)))
        .route("/health/ready", get(ready))
        .with_state(checks)
        // Always live: a restart repairs neither the journal nor the broker.
        .route("/health/live", get(async || "live\n"))
        .route("/metrics", get(async move || metrics.render()))
        .merge(pages)
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

/// The health of the process, as `GET /health` answers it.
pub fn health(checks: &[HealthCheck]) -> Value {
    body(merged(checks))
}

fn merged(checks: &[HealthCheck]) -> Health {
    let mut all = Health { status: Status::Ok, ready: true, details: Map::new() };
    for health in checks.iter().map(|check| check()) {
        all.status = all.status.max(health.status);
        all.ready &= health.ready;
        join(&mut all.details, health.details);
    }
    all
}

/// Adds the details of another role. What several roles say under one name stays: lists are joined,
/// and of two words about the broker the worse one counts.
fn join(details: &mut Map<String, Value>, more: Map<String, Value>) {
    for (name, value) in more {
        match (details.get_mut(&name), value) {
            (Some(Value::Array(all)), Value::Array(more)) => {
                for one in more {
                    if !all.contains(&one) {
                        all.push(one);
                    }
                }
            }
            (Some(known), _) if name == "broker" && *known != "connected" => {}
            (_, value) => {
                details.insert(name, value);
            }
        }
    }
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
    fn what_one_role_says_hides_nothing_of_another() {
        let check = |details: Value| -> HealthCheck {
            Arc::new(move || Health::new(Status::Degraded, false, details.clone()))
        };
        let bad = check(json!({"unfit": ["stream A", "B"], "broker": "disconnected", "a": 1}));
        let well = check(json!({"unfit": ["B", "C"], "broker": "connected", "b": 2}));
        let none = check(json!({"unfit": []}));
        for checks in [
            [bad.clone(), well.clone(), none.clone()],
            [none.clone(), bad.clone(), well.clone()],
            [well, none, bad],
        ] {
            let health = health(&checks);
            let mut unfit: Vec<_> =
                health["unfit"].as_array().expect("a list").iter().map(Value::to_string).collect();
            unfit.sort();
            assert_eq!(unfit, [r#""B""#, r#""C""#, r#""stream A""#]);
            assert_eq!((&health["broker"], &health["a"]), (&"disconnected".into(), &1.into()));
            assert_eq!(health["b"], 2);
        }
    }

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
