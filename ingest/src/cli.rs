//! The command line of the ingest service.

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};
use shared::{
    config::{CommonArgs, ConfigError, EXIT_USAGE, Problems},
    health_probe, service, shutdown,
    telemetry::Telemetry,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Ingest,
    config::{IngestArgs, IngestConfig},
};

/// Receives Gitea's issue webhooks, keeps each durably, publishes typed events
#[derive(Debug, Parser)]
#[command(name = "ingest", version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    ingest: IngestArgs,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// Ask the running service for its health, for container health checks
    Health,
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
            eprintln!("ingest: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let done = match cli.command {
        Some(Command::Health) => health_probe::check(config.host, config.port).map_err(Into::into),
        None => service::block_on(run(&config)),
    };
    service::exit_code("ingest", done)
}

impl Cli {
    fn config(&self) -> Result<IngestConfig, ConfigError> {
        let mut problems = Problems::default();
        let common = self.common.check(&mut problems);
        let config = self.ingest.check(common, &mut problems);
        problems.finish(config)
    }
}

async fn run(config: &IngestConfig) -> anyhow::Result<()> {
    let telemetry = Telemetry::init(&config.common.telemetry, "ingest")?;
    let ingest = Ingest::start(config).await?;
    let shutdown = CancellationToken::new();
    tokio::spawn(shutdown::cancel_at_signal(shutdown.clone()));
    ingest.run_until(shutdown).await;
    telemetry.shutdown().await;
    Ok(())
}
