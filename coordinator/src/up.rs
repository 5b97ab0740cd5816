//! `coordinator up`: nats-server, ingest and worker on this machine, started
//! and stopped together.

mod banner;
mod settings;

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use futures::future::{TryJoin, try_join};
use ingest::Ingest;
use shared::{
    shutdown::signal_received,
    telemetry::{LogFormat, Telemetry},
};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use worker::Worker;

pub(crate) use self::settings::UpArgs;
use self::{banner::Banner, settings::UpConfig};
use crate::{
    broker::public_url,
    data_dir::{DataDir, Instance},
    nats_server::{self, NatsServer, NatsServerOptions, find_or_fetch},
};

/// How long a start waits for nats-server to read its store. Deliveries are
/// kept without it, so nobody else has to wait any longer.
const NATS_READY_WAIT: Duration = Duration::from_millis(700);
/// The same where its port is not known before.
const NATS_PORT_WAIT: Duration = Duration::from_secs(30);

/// Runs everything until a signal, on a runtime of its own.
pub(crate) fn main(args: &UpArgs) -> Result<()> {
    let mut config = args.check()?;
    let data = DataDir::open(&config.data_dir)?;
    if !config.secret_is_given {
        config.use_secret_file(&data.secret_file()?)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(run(config, &data));
    // After a second signal nothing is waited for.
    runtime.shutdown_background();
    result
}

async fn run(mut config: UpConfig, data: &DataDir) -> Result<()> {
    let telemetry = Telemetry::init(&config.ingest.common.telemetry, "local")?;
    let mut nats = match config.own_nats_port {
        Some(port) => Some(start_nats(port, data.path()).await?),
        None => None,
    };
    if let Some(nats) = &nats {
        config.use_nats(&nats.url())?;
    }
    let stop = CancellationToken::new();
    let mut services = match start_services(&config, data, telemetry.format(), &stop).await {
        Ok(services) => services,
        Err(error) => {
            stop_nats(nats).await?;
            return Err(error);
        }
    };
    let why = tokio::select! {
        signal = signal_received() => signal
            .map(|signal| info!(signal, "stopping"))
            .context("listen to signals"),
        error = nats_ended(&mut nats) => Err(error),
        ended = &mut services => return match ended {
            Ok(_) => Err(anyhow!("ingest and worker ended by themselves")),
            Err(error) => Err(error).context("a service broke down"),
        },
    };
    if let Err(error) = &why {
        warn!("{error:#}; stopping");
    }
    stop.cancel();
    let stopping = async {
        services.await.context("a service broke down")?;
        Instance::remove(data.path()).await?;
        stop_nats(nats).await?;
        telemetry.shutdown().await;
        why
    };
    tokio::select! {
        result = stopping => result,
        signal = signal_received() => bail!(
            "left at once after a second signal ({}); what was accepted is in the journal",
            signal.unwrap_or("unknown")
        ),
    }
}

/// Must stay on the main thread: see [`NatsServer::start`].
async fn start_nats(port: u16, dir: &Path) -> Result<NatsServer> {
    let binary = find_or_fetch(|notice| info!("{notice}")).await?;
    let launcher = std::env::current_exe().context("find our own executable")?;
    let options = NatsServerOptions { binary, dir: dir.to_owned(), port, launcher: Some(launcher) };
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

type Services = TryJoin<JoinHandle<()>, JoinHandle<()>>;

/// Starts ingest and worker until `stop`, and tells where they are.
async fn start_services(
    config: &UpConfig,
    data: &DataDir,
    format: LogFormat,
    stop: &CancellationToken,
) -> Result<Services> {
    let ingest = Ingest::start(&config.ingest).await.map_err(|error| match error {
        ingest::StartError::Listen(address, cause) => explain_listen("PORT", address, cause),
        error => anyhow::Error::new(error).context("start ingest"),
    })?;
    let worker = Worker::start(&config.worker).await.map_err(|error| match error {
        worker::StartError::Listen(address, cause) => explain_listen("WORKER_PORT", address, cause),
        error => anyhow::Error::new(error).context("start the worker"),
    })?;
    let instance = Instance {
        webhook_url: format!("{}/webhook/gitea", local_url(ingest.address())),
        worker_url: local_url(worker.address()),
        nats_url: public_url(&config.ingest.common.broker),
        secret_file: config.secret_file.clone(),
        pid: std::process::id(),
    };
    instance.write(data.path()).await?;
    let services = try_join(
        tokio::spawn(ingest.run_until(stop.clone())),
        tokio::spawn(worker.run_until(stop.clone())),
    );
    Banner { instance: &instance, config, data_dir: data.path() }.show(format);
    Ok(services)
}

async fn stop_nats(nats: Option<NatsServer>) -> Result<()> {
    match nats {
        Some(nats) => nats.stop().await.context("stop nats-server"),
        None => Ok(()),
    }
}

async fn nats_ended(nats: &mut Option<NatsServer>) -> anyhow::Error {
    let Some(nats) = nats else { return std::future::pending().await };
    match nats.ended().await {
        Ok(status) => {
            anyhow!("nats-server died ({status}); its log is {}", nats.log_file().display())
        }
        Err(error) => anyhow::Error::new(error).context("wait for nats-server"),
    }
}

fn explain_listen(setting: &str, address: SocketAddr, error: std::io::Error) -> anyhow::Error {
    if error.kind() == std::io::ErrorKind::AddrInUse {
        let flag = setting.to_lowercase().replace('_', "-");
        anyhow!("port {} is taken; set {setting} (--{flag}) to another", address.port())
    } else {
        anyhow::Error::new(error).context(format!("listen on {address}"))
    }
}

/// A URL by which this machine reaches an address that it listens on.
fn local_url(address: SocketAddr) -> String {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    format!("http://{}", SocketAddr::new(ip, address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_listened_on_is_told_as_one_that_can_be_called() {
        for (address, url) in [
            ("0.0.0.0:8000", "http://127.0.0.1:8000"),
            ("127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("10.1.2.3:80", "http://10.1.2.3:80"),
            ("[::]:8000", "http://[::1]:8000"),
        ] {
            assert_eq!(local_url(address.parse().expect(address)), url);
        }
    }

    #[test]
    fn a_taken_port_is_told_with_the_setting_that_changes_it() {
        let address = "0.0.0.0:8001".parse().expect("address");
        let error = explain_listen("WORKER_PORT", address, std::io::ErrorKind::AddrInUse.into());
        assert_eq!(
            error.to_string(),
            "port 8001 is taken; set WORKER_PORT (--worker-port) to another"
        );
        let error = explain_listen("PORT", address, std::io::ErrorKind::PermissionDenied.into());
        assert_eq!(format!("{error:#}"), "listen on 0.0.0.0:8001: permission denied");
    }
}
