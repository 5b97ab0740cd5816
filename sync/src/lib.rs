//! Sync: asks Gitea's API for what its webhooks do not say.
//!
//! Doubts of events are settled, missed and silent changes are found. What differs goes out as an
//! event on the stream of the webhooks' events, and the worker handles it as any other.
//!
//! Architecture invariant: nothing here writes an issue's state. One worker asks at a time (`claim`),
//! so that one budget of requests is enough.

mod answer;
mod claim;
mod context;
mod difference;
mod entries;
mod instruments;
mod listed;
mod missed;
pub mod on_demand;
mod presence;
mod publish;
mod queue;
mod repair;
pub mod settings;
mod shown;
mod snapshot;
mod states;
mod trouble;
mod windows;

use std::{collections::HashSet, sync::Arc};

use anyhow::{Context as _, Result};
use contract::names::Lane;
use futures::future::{BoxFuture, join_all};
use serde_json::json;
use service::{
    broker::Broker,
    operator::{Health, HealthCheck, Status},
    role::{Host, Role},
    tasks::{Ended, Tasks},
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::{
    claim::Claim, context::Context, instruments::Instruments, missed::Missed, presence::Presence,
    queue::Queue, repair::Repair, settings::SyncSettings,
};

const JOBS: &str = "the jobs that ask Gitea";

/// The running role.
pub struct Sync {
    tasks: Tasks,
    context: Arc<Context>,
    asks: watch::Receiver<bool>,
    drain_timeout: std::time::Duration,
}

impl Sync {
    /// Starts the jobs. The broker and Gitea may be down.
    ///
    /// # Errors
    /// If the broker's files cannot be read, or if Gitea's address or token cannot be used.
    pub async fn start(settings: &SyncSettings, host: &Host) -> Result<Self> {
        let common = &settings.common;
        let broker = Broker::new(&common.broker, "coordinator-sync").await;
        let (broker, keeper) = broker.context("set up the broker")?;
        let instruments = Arc::new(Instruments::new(&host.meter));
        let context = Context::new(broker, &settings.access, &common.streams, instruments);
        let context = Arc::new(context.context("set up the client of Gitea's API")?);
        let mut tasks = Tasks::default();
        tasks.spawn("the broker's keeper", keeper);
        let (sender, asks) = watch::channel(false);
        let jobs = run(Arc::clone(&context), settings.clone(), sender, host.stop.clone());
        tasks.spawn(JOBS, jobs);
        info!("Gitea is asked for what its webhooks do not say");
        Ok(Self { tasks, context, asks, drain_timeout: common.drain_timeout })
    }
}

/// Runs the jobs whenever this worker has the claim, until `stop`.
async fn run(
    context: Arc<Context>,
    settings: SyncSettings,
    asks: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let holder = Uuid::new_v4().to_string();
    while let Some(mut claim) = Claim::win(&context, &holder, &stop).await {
        let _ = asks.send(true);
        context.shown.forget();
        let over = stop.child_token();
        let gap = Arc::new(Notify::new());
        let presence = Arc::<Presence>::default();
        let answers = Lane::ALL.map(|lane| {
            let queue = Queue {
                context: Arc::clone(&context),
                lane,
                presence: Arc::clone(&presence),
                gone_after: settings.gone_after,
                gap: Arc::clone(&gap),
            };
            Arc::new(queue).run(over.clone())
        });
        let missed = Missed {
            context: Arc::clone(&context),
            interval: settings.interval,
            history: settings.history,
            gap,
        };
        let repair = Repair {
            context: Arc::clone(&context),
            interval: settings.repair_interval,
            there: HashSet::new(),
        };
        let jobs = async {
            tokio::join!(join_all(answers), missed.run(over.clone()), repair.run(over.clone()));
        };
        let claimed = async {
            claim.lost(&context, &stop).await;
            over.cancel();
        };
        tokio::join!(jobs, claimed);
        let _ = asks.send(false);
        context.instruments.idle();
        if stop.is_cancelled() {
            claim.give_back(&context).await;
        }
    }
}

impl Role for Sync {
    fn health(&self) -> Option<HealthCheck> {
        let (context, asks) = (Arc::clone(&self.context), self.asks.clone());
        Some(Arc::new(move || health(&context, *asks.borrow())))
    }

    fn ended(&mut self) -> BoxFuture<'_, Ended> {
        Box::pin(self.tasks.one_ended())
    }

    fn drain(mut self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            if !self.tasks.finish(JOBS, self.drain_timeout).await? {
                warn!(
                    "a request to Gitea did not finish in time; its question comes again elsewhere"
                );
            }
            Ok(())
        })
    }
}

/// A Gitea that does not answer makes no worker unready: webhooks and changes go on without it.
fn health(context: &Context, asks: bool) -> Health {
    let failing = context.instruments.failing();
    let unfit = context.unfit();
    let problem = context.broker.problem();
    let details = json!({
        "asks_gitea": asks,
        "broker_problem": problem,
        "unfit": unfit,
        "gitea": failing.map_or("ok".to_owned(), |(operation, outcome)| {
            format!("{operation}: {}", outcome.as_str())
        }),
    });
    let is_well = failing.is_none() && unfit.is_empty() && problem.is_none();
    let status = if is_well { Status::Ok } else { Status::Degraded };
    Health::new(status, true, details)
}
