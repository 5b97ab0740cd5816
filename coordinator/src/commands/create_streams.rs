//! `coordinator create-streams`: creates streams, bucket and consumers, for a broker
//! where roles may create nothing.

use std::time::Duration;

use anyhow::Result;
use service::{
    broker::{
        Broker,
        create::{self, Wanted},
        streams::StreamsArgs,
    },
    settings::{Problems, text},
    telemetry::{Telemetry, TelemetryArgs},
};
use tracing::info;
use worker::settings::WorkerArgs;

use super::connect::BrokerArgs;

/// What to create, and where.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct CreateStreamsArgs {
    /// Durable consumer of the changes for a subscriber, several by repeating it
    #[arg(long, value_name = "NAME")]
    reader: Vec<String>,
    /// Seconds without a new event before a change of PARTITIONS; ingest looks twice a minute
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(50..))]
    repartition_pause_secs: u64,
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    streams: StreamsArgs,
    #[command(flatten)]
    worker: WorkerArgs,
    #[command(flatten)]
    telemetry: TelemetryArgs,
}

/// Waits for the broker without a limit. A refusal of the broker is reported at once.
pub(crate) async fn main(args: &CreateStreamsArgs) -> Result<()> {
    let mut problems = Problems::default();
    let settings = args.broker.settings(&mut problems)?;
    let limits = args.streams.settings(&mut problems);
    let ack_wait: Duration = args.worker.check(&mut problems).ack_wait_secs;
    let telemetry = args.telemetry.check(&mut problems);
    problems.finish(())?;
    let telemetry = Telemetry::init(&telemetry, "create-streams", crate::CRATES)?;
    let (broker, keeper) = Broker::new(&settings, "coordinator-create-streams").await?;
    tokio::spawn(keeper);
    let session = broker.connected().await;
    let wanted = Wanted {
        settings: &limits,
        partitions: text(&args.streams.partitions).map(|_| limits.partitions),
        ack_wait,
        prioritize: session.knows_priorities(),
        readers: &args.reader,
        repartition_pause: Duration::from_secs(args.repartition_pause_secs),
    };
    create::create_all(&session.jetstream, wanted).await?;
    info!("streams, bucket and consumers are there");
    telemetry.shutdown().await;
    Ok(())
}
