//! Worker: compares each event with the published state of its issue, publishes the difference, and
//! settles the message.
//!
//! A message comes from `partition` and passes through `step`, which uses `issue` and `handlers`.
//! `step` settles the message, or parks it as a dead letter.

mod context;
#[cfg(fuzzing)]
pub mod fuzzing;
mod handlers;
mod instruments;
mod issue;
mod lag;
mod partition;
pub mod settings;
mod standing;
mod step;
mod storage;

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use futures::future::BoxFuture;
use serde_json::json;
use service::{
    broker::Broker,
    operator::{Health, HealthCheck, Status},
    role::{Host, Role},
    tasks::{Ended, Tasks},
};
use tracing::{info, warn};

use crate::{
    context::Context, instruments::Instruments, partition::consume, settings::WorkerSettings,
};

/// How long to wait until the last acks are sent.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

const CONSUMERS: &str = "the consumers";

/// The running role of a worker.
pub struct Worker {
    tasks: Tasks,
    context: Arc<Context>,
    drain_timeout: Duration,
}

impl Worker {
    /// Starts all tasks. The broker may be down.
    ///
    /// # Errors
    /// If the broker's files cannot be read.
    pub async fn start(settings: &WorkerSettings, host: &Host) -> Result<Self> {
        let instruments = Instruments::new(&host.meter);
        let broker = Broker::new(&settings.common.broker, "coordinator-worker").await;
        let (broker, keeper) = broker.context("set up the broker")?;
        let context = Arc::new(Context::new(settings, broker, instruments));
        let mut tasks = Tasks::default();
        tasks.spawn("the broker's keeper", keeper);
        tasks.spawn(CONSUMERS, consume::run(Arc::clone(&context), host.stop.clone()));
        let lag = {
            let context = Arc::clone(&context);
            move || lag::measure(Arc::clone(&context))
        };
        tasks.spawn("the lag's job", lag::LAG.run(host.meter.clone(), host.stop.clone(), lag));
        let storage = {
            let context = Arc::clone(&context);
            move || storage::measure(Arc::clone(&context))
        };
        let job = storage::STORAGE.run(host.meter.clone(), host.stop.clone(), storage);
        tasks.spawn("the storage's job", job);
        let check = {
            let context = Arc::clone(&context);
            move || standing::check(Arc::clone(&context))
        };
        let job = standing::STANDING.run(host.meter.clone(), host.stop.clone(), check);
        tasks.spawn("the check of what stands on the broker", job);
        let on_suspicion = standing::check_on_suspicion(Arc::clone(&context), host.stop.clone());
        tasks.spawn("the check after failures", on_suspicion);
        info!("worker started");
        Ok(Self { tasks, context, drain_timeout: settings.common.drain_timeout })
    }
}

impl Role for Worker {
    fn health(&self) -> Option<HealthCheck> {
        let context = Arc::clone(&self.context);
        Some(Arc::new(move || health(&context)))
    }

    fn name(&self) -> Option<&'static str> {
        Some("worker")
    }

    fn ended(&mut self) -> BoxFuture<'_, Ended> {
        Box::pin(self.tasks.one_ended())
    }

    /// Finishes and settles the messages in hand.
    fn drain(mut self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            if !self.tasks.finish(CONSUMERS, self.drain_timeout).await? {
                warn!("a handler did not finish in time; its message comes again elsewhere");
            }
            // The client's own task writes the acks. Without a connection there is nothing to wait
            // for.
            if let Some(session) = self.context.broker.session() {
                let _ = tokio::time::timeout(FLUSH_TIMEOUT, session.client.flush()).await;
            }
            info!("worker stopped");
            Ok(())
        })
    }
}

/// Ready while all partitions are consumed and all on the broker is as needed. Otherwise degraded,
/// because a restart does not bring the broker back.
fn health(context: &Context) -> Health {
    let connected = context.broker.is_connected();
    let partitions_consumed = context.partitions_consumed();
    let unfit = context.findings.unfit();
    let all_consumed = partitions_consumed == usize::from(context.partitions().count());
    let ready = connected && all_consumed && unfit.is_empty();
    let problem = context.broker.problem();
    let well = ready && problem.is_none();
    let details = json!({
        "broker": if connected { "connected" } else { "disconnected" },
        "broker_problem": problem,
        "partitions_consumed": partitions_consumed,
        "unfit": unfit,
    });
    Health::new(if well { Status::Ok } else { Status::Degraded }, ready, details)
}
