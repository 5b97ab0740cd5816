//! The command line of the worker service.

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};
use shared::{
    broker::Broker,
    config::{CommonArgs, ConfigError, EXIT_USAGE, Problems},
    health_probe, service, shutdown, streams,
    telemetry::Telemetry,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    Worker,
    config::{WorkerArgs, WorkerConfig},
};

/// Compares Gitea's issue events with what was known and publishes the changes
#[derive(Debug, Parser)]
#[command(name = "worker", version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    worker: WorkerArgs,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Ask the running service for its health, for container health checks
    Health,
    /// Create all that lives on the broker, and leave: for a broker where services may create nothing
    CreateStreams {
        /// Durable consumer of the changes for a subscriber, several by repeating it
        #[arg(long, value_name = "NAME")]
        reader: Vec<String>,
    },
}

/// Runs the service as this process was asked to, and returns its exit code.
pub fn main() -> ExitCode {
    main_from(std::env::args_os())
}

/// Runs the service with these arguments, the program's name first.
pub fn main_from(args: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = Cli::parse_from(args);
    let config = match cli.config() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("worker: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let done = match &cli.command {
        Some(Command::Health) => health_probe::check(config.host, config.port).map_err(Into::into),
        Some(Command::CreateStreams { reader }) => {
            service::block_on(create_streams(&config, reader))
        }
        None => service::block_on(run(&config)),
    };
    service::exit_code("worker", done)
}

impl Cli {
    fn config(&self) -> Result<WorkerConfig, ConfigError> {
        let mut problems = Problems::default();
        let common = self.common.check(&mut problems);
        let config = self.worker.check(common, &mut problems);
        problems.finish(config)
    }
}

async fn run(config: &WorkerConfig) -> anyhow::Result<()> {
    let telemetry = Telemetry::init(&config.common.telemetry, "worker")?;
    let worker = Worker::start(config).await?;
    let shutdown = CancellationToken::new();
    tokio::spawn(shutdown::cancel_at_signal(shutdown.clone()));
    worker.run_until(shutdown).await;
    telemetry.shutdown().await;
    Ok(())
}

/// Waits for the broker for as long as it takes; what it refuses is told at once.
async fn create_streams(config: &WorkerConfig, readers: &[String]) -> anyhow::Result<()> {
    let telemetry = Telemetry::init(&config.common.telemetry, "worker")?;
    let broker = Broker::connect(&config.common.broker, "coordinator-create-streams").await?;
    let session = broker.connected().await;
    let (js, common) = (&session.jetstream, &config.common);
    streams::create_all(js, &common.streams, config.ack_wait, readers).await?;
    info!("streams, bucket and consumers are there");
    telemetry.shutdown().await;
    Ok(())
}
