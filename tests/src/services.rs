//! Ingest and worker as processes, with default settings and more flags.

use std::{net::SocketAddr, path::Path, process::ExitCode};

use serde_json::Value;

use crate::{gitea::SECRET, nats::Nats, process::Process};

/// Starts an ingest with default settings.
pub fn ingest(exe: &Path, nats: &Nats, data: &Path) -> Process {
    ingest_with(exe, nats, data, &[])
}

/// Starts an ingest with more flags.
pub fn ingest_with(exe: &Path, nats: &Nats, data: &Path, flags: &[&str]) -> Process {
    ingest_at(exe, &nats.url(), data, flags, &[])
}

/// Starts an ingest whose NATS is at this URL, with more flags and environment variables.
pub fn ingest_at(
    exe: &Path,
    nats_url: &str,
    data: &Path,
    flags: &[&str],
    more: &[(&str, &str)],
) -> Process {
    let own = ingest_settings(nats_url, data);
    Process::start(exe, "ingest", flags, &[&own, more].concat())
}

/// Starts an ingest whose log nobody reads. `ports` are those of the webhook and of the operator.
pub fn ingest_unread(exe: &Path, nats_url: &str, data: &Path, ports: [u16; 2]) -> Process {
    let [port, operator] = ports.map(|port| port.to_string());
    let own = ingest_settings(nats_url, data);
    Process::start_unread(
        exe,
        "ingest",
        &[],
        &[&own[..], &[("PORT", &port), ("OPERATOR_PORT", &operator)]].concat(),
    )
}

fn ingest_settings<'a>(nats_url: &'a str, data: &'a Path) -> [(&'a str, &'a str); 7] {
    [
        ("GITEA_WEBHOOK_SECRET", SECRET),
        ("GITEA_URL", "http://localhost:3000"),
        ("NATS_URL", nats_url),
        ("DATA_DIR", data.to_str().expect("UTF-8")),
        ("HOST", "127.0.0.1"),
        ("PORT", "0"),
        ("OPERATOR_PORT", "0"),
    ]
}

/// Starts a worker with default settings.
pub fn worker(exe: &Path, nats: &Nats) -> Process {
    worker_with(exe, nats, &[])
}

/// Starts a worker with more flags.
pub fn worker_with(exe: &Path, nats: &Nats, flags: &[&str]) -> Process {
    worker_at(exe, &nats.url(), flags, &[])
}

/// Starts a worker whose NATS is at this URL, with more flags and environment variables.
pub fn worker_at(exe: &Path, nats_url: &str, flags: &[&str], more: &[(&str, &str)]) -> Process {
    let own =
        [("GITEA_URL", "http://localhost:3000"), ("NATS_URL", nats_url), ("OPERATOR_PORT", "0")];
    Process::start(exe, "worker", flags, &[&own, more].concat())
}

/// Ingest and worker in one process, `coordinator up`.
pub struct Both {
    /// The process.
    pub process: Process,
    /// Where deliveries go.
    pub webhook: SocketAddr,
    /// Where the pages are: `http://127.0.0.1:` and a port.
    pub pages: String,
}

/// Starts ingest and worker in one process, on the NATS at this URL, with more environment variables.
/// Waits until both run.
pub async fn both_at(exe: &Path, nats_url: &str, data: &Path, more: &[(&str, &str)]) -> Both {
    let own = ingest_settings(nats_url, data);
    let process = Process::start(exe, "up", &[], &[&own, more].concat());
    let line = process.line_with("\"coordinator runs\"").await;
    let line: Value = serde_json::from_str(&line).expect("a JSON log line");
    let at = |name: &str| line[name].as_str().and_then(|url| url.strip_prefix("http://"));
    let webhook = at("webhook_url").and_then(|url| url.split('/').next()).expect("an address");
    Both {
        webhook: webhook.parse().expect("an address"),
        pages: format!("http://{}", at("operator_url").expect("an address")),
        process,
    }
}

/// Runs the service that the first argument names, if it names one. A program
/// that calls this first can start itself as its services.
pub fn named_by_first_argument() -> Option<ExitCode> {
    match std::env::args().nth(1).as_deref() {
        Some("ingest" | "worker" | "react" | "supervise") => Some(coordinator::cli::main()),
        _ => None,
    }
}
