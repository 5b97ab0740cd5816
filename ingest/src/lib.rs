//! Ingest: receives Gitea's webhooks, stores each one durably before it answers 200, and publishes
//! them as typed events.
//!
//! A delivery passes through `http` (request and answer), `gitea` (headers, signature, payload) and
//! `journal`. It is answered once the journal has committed it. Then `relay` publishes it to the
//! broker.

mod answers;
mod delivery;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gap;
mod gitea;
mod http;
mod instruments;
mod journal;
mod large;
mod relay;
pub mod settings;
mod standing;
mod upkeep;

use std::{net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context, Result, bail};
use futures::future::BoxFuture;
use serde_json::json;
use service::{
    broker::{Broker, findings::Findings},
    causes::Causes,
    operator::{Health, HealthCheck, Status},
    peers::Responder,
    role::{self, Host, Role},
    server::Server,
    settings::SettingsError,
    tasks::{Ended, Tasks},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    answers::Answers,
    http::webhook::Webhook,
    instruments::Instruments,
    journal::{Journal, JournalError, WRITER},
    large::LargeBodies,
    relay::Relay,
    settings::IngestSettings,
};

const WEBHOOK: &str = "the webhook's listener";
const RELAY: &str = "the relay";

/// The running role of ingest.
pub struct Ingest {
    address: SocketAddr,
    tasks: Tasks,
    stop_relay: CancellationToken,
    journal: Journal,
    health: HealthCheck,
    answers: Arc<Answers>,
    drain_timeout: std::time::Duration,
}

impl Ingest {
    /// Opens the journal, binds the port and starts all tasks. The broker may be down, because
    /// deliveries go to the journal first.
    ///
    /// # Errors
    /// The step that failed: the port, the journal, the thread for large bodies, or the broker's
    /// files.
    pub async fn start(settings: &IngestSettings, host: &Host) -> Result<Self> {
        if settings.takes_short_secret {
            warn!("a secret of the webhook is so short that it can be found by trying");
        }
        let bound = Server::bind("webhook", settings.address, settings.limits.clone()).await;
        let server = role::listen("PORT", bound, || settings.address)?;
        let mut tasks = Tasks::default();
        let journal = Journal::open(&settings.journal, &mut tasks)
            .await
            .map_err(|error| not_opened(error, &settings.journal.dir))?;
        let instruments = Instruments::new(&host.meter, &journal, settings.journal.max_bytes);
        let instruments = Arc::new(instruments);
        let broker = Broker::new(&settings.common.broker, "coordinator-ingest").await;
        let (broker, keeper) = broker.context("set up the broker")?;
        tasks.spawn("the broker's keeper", keeper);
        let large = LargeBodies::start(&mut tasks).context("start the thread for large bodies")?;
        let findings = Arc::<Findings>::default();
        let health = health(journal.clone(), broker.clone(), Arc::clone(&findings));
        let webhook = Webhook::new(settings, large, journal.clone(), Arc::clone(&instruments));
        let router = webhook.router(Arc::clone(&health));
        let (address, drain_timeout) = (server.address(), settings.common.drain_timeout);
        let (meter, stop) = (host.meter.clone(), host.stop.clone());
        tasks.spawn(WEBHOOK, server.run_until(router, meter, stop, drain_timeout));
        let stop_relay = CancellationToken::new();
        let relay = Relay::new(settings, journal.clone(), broker.clone(), instruments, findings);
        let gap = gap::tell(broker.clone(), relay.publisher(), stop_relay.clone());
        tasks.spawn("the message after a gap", gap);
        let check = {
            let publisher = relay.publisher();
            move || standing::check(broker.clone(), Arc::clone(&publisher))
        };
        tasks.spawn(
            "the check of what stands on the broker",
            standing::STANDING.run(host.meter.clone(), stop_relay.clone(), check),
        );
        let answers = Arc::new(Answers::new(journal.clone(), relay.publisher()));
        tasks.spawn(RELAY, relay.run(stop_relay.clone()));
        let upkeep = {
            let journal = journal.clone();
            move || upkeep::run(journal.clone())
        };
        tasks.spawn(
            "the journal's upkeep",
            upkeep::UPKEEP.run(host.meter.clone(), stop_relay.clone(), upkeep),
        );
        info!(%address, "ingest listens");
        Ok(Self { address, tasks, stop_relay, journal, health, answers, drain_timeout })
    }

    /// The address of the webhook, with the port that the system chose for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Role for Ingest {
    fn health(&self) -> Option<HealthCheck> {
        Some(Arc::clone(&self.health))
    }

    fn name(&self) -> Option<&'static str> {
        Some("ingest")
    }

    fn responder(&self) -> Option<Arc<dyn Responder>> {
        Some(Arc::clone(&self.answers) as Arc<dyn Responder>)
    }

    fn ended(&mut self) -> BoxFuture<'_, Ended> {
        Box::pin(self.tasks.one_ended())
    }

    /// Answers the requests under way, publishes journaled entries until the drain timeout, and
    /// closes the journal. Entries that are not published by then stay in the journal for the next
    /// start.
    fn drain(mut self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            // Each part is stopped even if the one before it failed.
            let webhook = self.tasks.finish(WEBHOOK, 2 * self.drain_timeout).await;
            self.stop_relay.cancel();
            let relay = self.tasks.finish(RELAY, self.drain_timeout).await;
            if relay == Ok(false) {
                warn!("the relay did not finish in time; the journal keeps the rest");
            }
            self.journal.close().await;
            let writer = self.tasks.finish(WRITER, self.drain_timeout).await;
            webhook.and(relay).and(writer.clone())?;
            if writer == Ok(false) {
                bail!("the journal could not be closed in time");
            }
            info!("ingest stopped");
            Ok(())
        })
    }
}

/// The error of a journal that cannot be opened. It names the setting if the directory is at fault.
fn not_opened(error: JournalError, dir: &Path) -> anyhow::Error {
    let dir = dir.display();
    match error {
        JournalError::Private(_) | JournalError::Above(..) => {
            anyhow::Error::new(SettingsError(vec![error.to_string()]))
        }
        JournalError::Directory(_) | JournalError::File(_) | JournalError::Lock(_) => {
            let problem = format!("DATA_DIR is {dir}, which cannot be used ({})", Causes(&error));
            anyhow::Error::new(SettingsError(vec![problem]))
        }
        error => anyhow::Error::new(error).context(format!("open the journal in {dir}")),
    }
}

/// Ready means that deliveries can be journaled. A broker that is disconnected, or where something
/// is not as needed, is reported, but does not cause a 503: whoever gets no deliveries loses them.
fn health(journal: Journal, broker: Broker, findings: Arc<Findings>) -> HealthCheck {
    Arc::new(move || {
        let journal = journal.status();
        let (ready, connected) = (journal.can_keep(), broker.is_connected());
        let unfit = findings.unfit();
        let problem = broker.problem();
        let well = connected && unfit.is_empty() && problem.is_none();
        let details = json!({
            "unfit": unfit,
            "broker": if connected { "connected" } else { "disconnected" },
            "broker_problem": problem,
            "journal": {
                "writable": ready,
                "depth": journal.depth(),
                "oldest_unpublished_age_secs": journal.oldest_unpublished_age().as_secs_f64(),
                "used_bytes": journal.used_bytes(),
                "set_aside": journal.set_aside(),
            },
        });
        Health::new(
            match (ready, well) {
                (true, true) => Status::Ok,
                (true, false) => Status::Degraded,
                (false, _) => Status::Unavailable,
            },
            ready,
            details,
        )
    })
}
