//! Worker: compares each event with what the handlers were told of the issue
//! before, tells them the difference, and settles the message.
//!
//! A message goes through `consume` and `pull`, `process` (with `issue_state` and `diff`),
//! `dispatch` and a handler, and `settle`, which parks it in `dead_letter`
//! where need be.

pub mod cli;
pub mod config;
mod consume;
mod context;
mod dead_letter;
mod diff;
mod dispatch;
#[cfg(fuzzing)]
pub mod fuzzing;
mod handlers;
mod health;
mod instruments;
mod issue_state;
mod lag;
mod outcome;
mod process;
mod pull;
mod settle;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use shared::{
    broker::{Broker, ConnectError},
    metrics::{Metrics, MetricsError},
};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{config::WorkerConfig, context::Context, instruments::Instruments};

/// How long the last acks may take to leave.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    listener: TcpListener,
    address: SocketAddr,
    router: axum::Router,
    context: Arc<Context>,
    config: WorkerConfig,
}

/// Why a worker could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The address of health and metrics.
    #[error("listen on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// The client of the broker.
    #[error("set up the broker")]
    Broker(#[from] ConnectError),
    /// The meters.
    #[error("set up metrics")]
    Metrics(#[from] MetricsError),
}

impl Worker {
    /// Binds the port of health and metrics and connects. The broker may be down.
    pub async fn start(config: &WorkerConfig) -> Result<Self, StartError> {
        let address = SocketAddr::new(config.host, config.port);
        let listener =
            TcpListener::bind(address).await.map_err(|e| StartError::Listen(address, e))?;
        let address = listener.local_addr().map_err(|e| StartError::Listen(address, e))?;
        let metrics = Metrics::new("worker", config.common.telemetry.otlp_endpoint.as_deref())?;
        let instruments = Instruments::new(&metrics.meter());
        let broker = Broker::connect(&config.common.broker, "coordinator-worker").await?;
        let context = Arc::new(Context::new(config, broker, instruments));
        let router = health::router(Arc::clone(&context), metrics);
        Ok(Self { listener, address, router, context, config: config.clone() })
    }

    /// The address of `/health` and `/metrics`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Works until `shutdown`, then finishes and settles what is in hand.
    pub async fn run_until(self, shutdown: CancellationToken) {
        info!(address = %self.address, "worker listens");
        let http_stop = CancellationToken::new();
        let stop = http_stop.clone();
        let http = tokio::spawn(async move {
            let served = axum::serve(self.listener, self.router)
                .with_graceful_shutdown(stop.cancelled_owned());
            if let Err(error) = served.await {
                error!(%error, "health and metrics stopped");
            }
        });
        let lag = tokio::spawn(lag::watch(Arc::clone(&self.context), shutdown.clone()));
        let mut work = tokio::spawn(consume::run(Arc::clone(&self.context), shutdown.clone()));
        shutdown.cancelled().await;
        if tokio::time::timeout(self.config.drain_timeout, &mut work).await.is_err() {
            warn!("a handler did not finish in time; its message comes again elsewhere");
            work.abort();
        }
        lag.abort();
        // Acks are written by the client's own task. Without a connection there is nothing to wait for.
        if let Some(session) = self.context.broker.session() {
            let _ = tokio::time::timeout(FLUSH_TIMEOUT, session.client.flush()).await;
        }
        http_stop.cancel();
        // A scrape that hangs must not hold up the stop.
        let _ = tokio::time::timeout(Duration::from_secs(1), http).await;
        info!("worker stopped");
    }
}
