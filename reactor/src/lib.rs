//! Reactor: runs a command or calls an address while an issue is open and assigned to somebody.
//!
//! A change says which issue to look at (`consume`, `look`). What is wanted follows from the issue's
//! state, the rules and the entry of the run (`reconcile`), and is written by compare-and-set
//! (`store`). A runner with room takes what waits, and ends what is to stop (`runner`, `attempt`).
//!
//! Architecture invariant: at most one runner has a run. Its entry says who, and a lease that nobody
//! renews ends the work before another runner may begin it.

mod attempt;
pub mod call;
mod consume;
mod context;
mod input;
mod instruments;
mod look;
mod orphans;
pub mod process;
mod pull;
pub mod reconcile;
mod reload;
mod responder;
pub mod rules;
pub mod run;
mod runner;
pub mod settings;
mod states;
mod store;
mod view;

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use futures::future::BoxFuture;
use serde_json::json;
use service::{
    broker::Broker,
    operator::{Health, HealthCheck, Status},
    peers,
    role::{Host, Role},
    tasks::{Ended, Tasks},
};
use tracing::{info, warn};
use uuid::Uuid;

use crate::{
    context::{Context, Parts},
    instruments::Instruments,
    responder::Responder,
    settings::ReactorSettings,
};

/// How long to wait until the last messages are sent.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

const CONSUMER: &str = "the consumer of changes";

/// The running role.
pub struct Reactor {
    tasks: Tasks,
    context: Arc<Context>,
    drain_timeout: Duration,
    reloads: bool,
}

impl Reactor {
    /// Starts all tasks. The broker may be down. `reloads`: SIGHUP has the rules read again.
    ///
    /// # Errors
    /// If the broker's files cannot be read, or if the signal cannot be listened to.
    pub async fn start(settings: &ReactorSettings, host: &Host, reloads: bool) -> Result<Self> {
        let common = &settings.common;
        let broker = Broker::new(&common.broker, "coordinator-reactor").await;
        let (broker, keeper) = broker.context("set up the broker")?;
        let instruments = Instruments::new(&host.meter);
        settings.rules.iter().for_each(|rule| instruments.has_rule(&rule.name));
        let context = Arc::new(Context::new(Parts {
            broker,
            host: Uuid::new_v4().simple().to_string(),
            lease: settings.lease,
            kept: settings.kept,
            environment: settings.environment.iter().cloned().collect(),
            instruments,
            rules: settings.rules.clone(),
            streams: common.streams.clone(),
            stop: host.stop.clone(),
        }));
        process::raise_descriptors();
        let ended = process::end_former().await;
        if ended > 0 {
            warn!(
                processes = ended,
                "what a former life of this runner had left running was ended"
            );
        }
        let mut tasks = Tasks::default();
        tasks.spawn("the broker's keeper", keeper);
        if reloads {
            let hangups = reload::hangups().context("listen to SIGHUP")?;
            let file = settings.rules_file.clone();
            tasks.spawn(RELOADER, reload::on_hangup(Arc::clone(&context), file, hangups));
        }
        tasks.spawn(CONSUMER, consume::run(Arc::clone(&context)));
        tasks.spawn(RUNNER, runner::run(Arc::clone(&context)));
        tasks.spawn(LISTENER, runner::hear(Arc::clone(&context)));
        tasks.spawn(ORPHANS, orphans::run(Arc::clone(&context)));
        tasks.spawn(SWEEPER, states::run(Arc::clone(&context)));
        info!(rules = settings.rules.count(), host = context.host, "runner started");
        Ok(Self { tasks, context, drain_timeout: common.drain_timeout, reloads })
    }
}

const RELOADER: &str = "the reader of the rules";
const RUNNER: &str = "the starter of runs";
const LISTENER: &str = "the listener to other runners";
const SWEEPER: &str = "the look at all issues";
const ORPHANS: &str = "the search for runs without a rule";

impl Role for Reactor {
    fn health(&self) -> Option<HealthCheck> {
        let context = Arc::clone(&self.context);
        Some(Arc::new(move || health(&context)))
    }

    fn name(&self) -> Option<&'static str> {
        Some("reactor")
    }

    fn responder(&self) -> Option<Arc<dyn peers::Responder>> {
        Some(Arc::new(Responder(Arc::clone(&self.context))))
    }

    fn reloads(&self) -> bool {
        self.reloads
    }

    fn ended(&mut self) -> BoxFuture<'_, Ended> {
        Box::pin(self.tasks.one_ended())
    }

    /// Ends what runs. Another runner has it begin once more, where its rule says so.
    fn drain(mut self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            for name in [CONSUMER, RUNNER, LISTENER, ORPHANS, SWEEPER, RELOADER] {
                self.tasks.finish(name, self.drain_timeout).await?;
            }
            self.context.attempts.close();
            let ended = tokio::time::timeout(self.drain_timeout, self.context.attempts.wait());
            if ended.await.is_err() {
                warn!("a run did not end in time; what supervises it ends it");
            }
            if let Some(session) = self.context.broker.session() {
                let _ = tokio::time::timeout(FLUSH_TIMEOUT, session.client.flush()).await;
            }
            info!("runner stopped");
            Ok(())
        })
    }
}

/// Ready while it is connected and all on the broker is as needed. Rules that are wrong leave it at
/// work with the former ones.
fn health(context: &Context) -> Health {
    let connected = context.broker.is_connected();
    let (unfit, wrong_rules) = (context.unfit(), context.wrong_rules());
    let ready = connected && unfit.is_empty();
    let is_well = ready && wrong_rules.is_none();
    let details = json!({
        "broker": if connected { "connected" } else { "disconnected" },
        "unfit": unfit,
        "rules": context.rules().count(),
        "wrong_rules": wrong_rules,
        "running": context.live_count(),
        "waiting": context.view(|view| view.waiting()),
    });
    Health::new(if is_well { Status::Ok } else { Status::Degraded }, ready, details)
}
