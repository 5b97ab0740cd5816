//! `coordinator up`: nats-server, ingest and worker on this machine, and a runner where there are
//! rules, started and stopped together.

use std::{path::Path, sync::Mutex, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use futures::future::BoxFuture;
use ingest::Ingest;
use reactor::Reactor;
use service::{
    operator::{HealthCheck, probe::reachable},
    role::{self, Host, Role},
    tasks::Ended,
};
use tokio::time::timeout;
use tracing::{error, info, warn};

pub(crate) use super::settings::UpArgs;
use super::{
    banner::Banner,
    data_dir::{DataDir, Instance},
    nats_server::{self, Login, NatsServer, NatsServerOptions, find_or_fetch},
    settings::{UpSettings, nats_login},
};
use crate::{CRATES, page};

/// How long a start waits for nats-server to read its store. Ingest keeps
/// deliveries without nats-server, so the start then goes on.
const NATS_READY_WAIT: Duration = Duration::from_millis(700);
/// How long a start waits if the port is known only once nats-server is ready.
const NATS_PORT_WAIT: Duration = Duration::from_secs(30);

/// Runs everything until a signal, on a runtime of its own.
pub(crate) fn main(args: &UpArgs) -> Result<()> {
    let mut settings = args.check()?;
    let data = DataDir::open(&settings.data_dir)?;
    if !settings.secret_is_given {
        settings.use_secret_file(&data.secret_file()?)?;
    }
    let common = settings.ingest.common.clone();
    let instance = Mutex::new(None);
    let start = async |host: &_| {
        data.outcome().log();
        let mut roles: Vec<Box<dyn Role>> = Vec::new();
        match start_all(&settings, &data, host, &mut roles).await {
            Ok(started) => {
                if let Ok(mut instance) = instance.lock() {
                    *instance = Some(started);
                }
                Ok(roles)
            }
            Err(error) => {
                host.stop.cancel();
                while let Some(role) = roles.pop() {
                    role.drain().await?;
                }
                Err(error)
            }
        }
    };
    let started = async |operator, format| {
        let instance = instance.lock().ok().and_then(|mut instance| instance.take());
        let mut instance = instance.context("nothing was started")?;
        instance.operator_url = format!("http://{}", reachable(operator));
        instance.write(data.path()).await?;
        Banner { instance: &instance, settings: &settings, data_dir: data.path() }.show(format);
        Ok(())
    };
    let access = &settings.worker.sync.access;
    let pages = |peers: &_, common: &_| page::router(peers, common, Some(access));
    let result = role::run("local", CRATES, &common, start, pages, started);
    result.and(Instance::remove(data.path()))
}

/// Starts all roles in their order. What is in `roles` at an error has started.
async fn start_all(
    settings: &UpSettings,
    data: &DataDir,
    host: &Host,
    roles: &mut Vec<Box<dyn Role>>,
) -> Result<Instance> {
    let mut settings = settings.clone();
    let mut nats_told = None;
    if let Some(port) = settings.own_nats_port {
        let (login, told) = nats_login(data.nats_password_file()?)?;
        let nats = start_nats(port, data.path(), login.clone()).await?;
        let url = nats.url();
        roles.push(Box::new(OwnNats(nats)));
        settings.use_nats(&url, login)?;
        nats_told = Some(told);
    }
    host.use_broker(&settings.ingest.common.broker);
    let ingest = Ingest::start(&settings.ingest, host).await?;
    let webhook = ingest.address();
    roles.push(Box::new(ingest));
    settings.worker.start(host, roles).await?;
    if let Some(reactor) = &settings.reactor {
        // SIGHUP stops all of it, as when its terminal closes.
        roles.push(Box::new(Reactor::start(reactor, host, false).await?));
    }
    Ok(Instance {
        webhook_url: format!("http://{}/webhook/gitea", reachable(webhook)),
        operator_url: String::new(),
        nats_url: settings.ingest.common.broker.servers.to_string(),
        nats_login: nats_told,
        secret_file: settings.secret_file,
        gitea_url: Some(settings.ingest.common.gitea_url.clone()),
        pid: std::process::id(),
    })
}

/// The nats-server of this machine, started first and stopped last.
struct OwnNats(NatsServer);

impl Role for OwnNats {
    fn health(&self) -> Option<HealthCheck> {
        None
    }

    fn ended(&mut self) -> BoxFuture<'_, Ended> {
        Box::pin(async {
            let log = self.0.log_file().display().to_string();
            match self.0.ended().await {
                Ok(status) => error!(exit_status = %status, log, "nats-server died"),
                Err(error) => error!(%error, log, "cannot wait for nats-server"),
            }
            Ended::Returned("nats-server")
        })
    }

    fn drain(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move { self.0.stop().await.context("stop nats-server") })
    }
}

/// Must stay on the main thread: see [`NatsServer::start`].
async fn start_nats(port: u16, dir: &Path, login: Login) -> Result<NatsServer> {
    let binary = find_or_fetch(|notice| info!("{notice}")).await?;
    let launcher = std::env::current_exe().context("find our own executable")?;
    let dir = dir.to_owned();
    let options = NatsServerOptions { binary, dir, port, login, launcher: Some(launcher) };
    let mut nats = NatsServer::start(&options).await.map_err(explain_nats)?;
    let wait = if port == 0 { NATS_PORT_WAIT } else { NATS_READY_WAIT };
    match timeout(wait, nats.ready()).await {
        Ok(ready) => ready.map_err(explain_nats)?,
        Err(_) if port == 0 => bail!("nats-server is not ready after {} s", wait.as_secs()),
        Err(_) => warn!("nats-server is still reading its store; deliveries are kept meanwhile"),
    }
    Ok(nats)
}

fn explain_nats(error: nats_server::StartError) -> anyhow::Error {
    let taken = matches!(error, nats_server::StartError::PortTaken(_));
    let error = anyhow::Error::new(error);
    if taken {
        anyhow!(
            "{error}; set NATS_PORT (--nats-port) to another, or NATS_URL to use the server that is there"
        )
    } else {
        error
    }
}
