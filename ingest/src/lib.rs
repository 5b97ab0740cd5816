//! Ingest: takes Gitea's webhooks, keeps each one durably before it answers
//! 200, and publishes them as typed events.
//!
//! A delivery goes through `server` (connections and their limits),
//! `receive` (one request), `verify`, `parse` and `journal`, which is when it
//! is answered; then through `relay` to the broker. What is large is verified
//! and parsed in `large_bodies`.

mod body;
mod buffer;
pub mod cli;
pub mod config;
#[cfg(fuzzing)]
pub mod fuzzing;
mod health;
mod instruments;
mod journal;
mod large_bodies;
mod parse;
mod receive;
mod relay;
mod reply;
mod server;
mod verify;

use std::{net::SocketAddr, sync::Arc};

use shared::{
    broker::{Broker, ConnectError},
    metrics::{Metrics, MetricsError},
};
use thiserror::Error;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    config::IngestConfig,
    instruments::Instruments,
    journal::{Journal, JournalError},
    large_bodies::LargeBodies,
    receive::Receiver,
    relay::Relay,
    server::Server,
};

/// A running ingest.
#[derive(Debug)]
pub struct Ingest {
    server: Server,
    router: axum::Router,
    relay: JoinHandle<()>,
    stop_relay: CancellationToken,
    journal: Journal,
    config: IngestConfig,
}

/// Why ingest could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The journal.
    #[error("open the journal in {0}")]
    Journal(String, #[source] JournalError),
    /// The address to listen on.
    #[error("listen on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// The thread for large bodies.
    #[error("start the thread for large bodies")]
    LargeBodies(#[source] std::io::Error),
    /// The client of the broker.
    #[error("set up the broker")]
    Broker(#[from] ConnectError),
    /// The meters.
    #[error("set up metrics")]
    Metrics(#[from] MetricsError),
}

impl Ingest {
    /// Opens the journal, binds the port and starts the relay. The broker may
    /// be down: deliveries are kept all the same. Nothing is accepted before
    /// [`Ingest::run_until`], but connections wait.
    pub async fn start(config: &IngestConfig) -> Result<Self, StartError> {
        let journal = Journal::open(&config.journal).await.map_err(|error| {
            StartError::Journal(config.journal.dir.display().to_string(), error)
        })?;
        let address = SocketAddr::new(config.host, config.port);
        let server = Server::bind(address, config.limits.clone())
            .await
            .map_err(|error| StartError::Listen(address, error))?;
        let metrics = Metrics::new("ingest", config.common.telemetry.otlp_endpoint.as_deref())?;
        let instruments = Instruments::new(&metrics.meter(), &journal, config.journal.max_bytes);
        let instruments = Arc::new(instruments);
        let broker = Broker::connect(&config.common.broker, "coordinator-ingest").await?;
        let large_bodies = LargeBodies::start().map_err(StartError::LargeBodies)?;
        let receiver =
            Receiver::new(config, large_bodies, journal.clone(), Arc::clone(&instruments));
        let router = receive::router(receiver)
            .merge(health::router(journal.clone(), broker.clone(), metrics))
            .fallback(reply::not_found)
            .method_not_allowed_fallback(reply::method_not_allowed);
        let stop_relay = CancellationToken::new();
        let relay = Relay::new(config, journal.clone(), broker, instruments);
        let relay = tokio::spawn(relay.run(stop_relay.clone()));
        Ok(Self { server, router, relay, stop_relay, journal, config: config.clone() })
    }

    /// The address it listens on, with the port that the system chose for port 0.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Serves until `shutdown`, then answers what has begun, publishes what is
    /// kept for as long as the drain may last, and closes the journal. What is
    /// not published by then stays in the journal for the next start.
    pub async fn run_until(self, shutdown: CancellationToken) {
        info!(address = %self.address(), "ingest listens");
        self.server.run_until(self.router, shutdown, self.config.drain_timeout).await;
        self.stop_relay.cancel();
        let relay = self.relay.abort_handle();
        if tokio::time::timeout(self.config.drain_timeout, self.relay).await.is_err() {
            warn!("the relay did not finish in time; the journal keeps the rest");
            relay.abort();
        }
        self.journal.close().await;
        info!("ingest stopped");
    }
}
