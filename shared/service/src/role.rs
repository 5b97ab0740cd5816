//! A role of a process, from its settings to its end: telemetry → start →
//! supervise → drain. This is the only place where a role is run.

use std::{
    future::pending,
    io,
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use axum::Router;
use futures::future::{BoxFuture, select_all};
use opentelemetry::metrics::Meter;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::{
    broker::{
        BrokerArgs, BrokerSettings,
        streams::{StreamsArgs, StreamsSettings},
    },
    operator::{self, HealthCheck, OperatorArgs, OperatorSettings},
    peers::{Instance, Measured, Own, Peers, Responder},
    server::Server,
    settings::{Problems, Shown, http_url, secs},
    tasks::{Ended, Tasks},
    telemetry::{
        LogFormat, Telemetry, TelemetryArgs, TelemetrySettings, metrics::Metrics,
        span_store::SpanStore,
    },
};

crate::settings! {
    /// Settings that belong to no other module and that every role has.
    pub struct OwnArgs => OwnSettings {
        gitea_url: Option<String> = "GITEA_URL", http_url,
            "URL of Gitea: the source of every event, and where its API is";
        drain_timeout_secs: Duration = "DRAIN_TIMEOUT_SECS" or "20" = Duration::from_secs(20), secs(1, 3600),
            "How long each part of stopping may take";
    }
}

/// Settings of every role, as given.
#[derive(clap::Args, Clone, Debug, Default)]
#[group(skip)]
#[allow(missing_docs, reason = "each is documented at its type")]
pub struct CommonArgs {
    #[command(flatten)]
    pub own: OwnArgs,
    #[command(flatten)]
    pub broker: BrokerArgs,
    #[command(flatten)]
    pub streams: StreamsArgs,
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
    #[command(flatten)]
    pub operator: OperatorArgs,
}

/// Settings of every role, checked.
#[derive(Clone, Debug)]
pub struct CommonSettings {
    /// Gitea's URL without a slash at its end.
    pub gitea_url: String,
    /// How long each part of stopping may take.
    pub drain_timeout: Duration,
    /// The broker.
    pub broker: BrokerSettings,
    /// Streams and bucket on the broker.
    pub streams: StreamsSettings,
    /// Logs, traces and metrics.
    pub telemetry: TelemetrySettings,
    /// The operator's listener.
    pub operator: OperatorSettings,
}

impl CommonArgs {
    /// Checks the settings and notes in `problems` what is wrong.
    pub fn check(&self, problems: &mut Problems) -> CommonSettings {
        let own = self.own.check(problems);
        if crate::settings::text(&self.own.gitea_url).is_none() {
            problems.add("GITEA_URL is required");
        }
        CommonSettings {
            gitea_url: own.gitea_url.unwrap_or_default(),
            drain_timeout: own.drain_timeout_secs,
            broker: self.broker.settings(problems),
            streams: self.streams.settings(problems),
            telemetry: self.telemetry.check(problems),
            operator: self.operator.settings(problems),
        }
    }

    /// Each setting as it is understood.
    pub fn shown(&self) -> Vec<Shown> {
        [
            self.own.shown(),
            self.broker.shown(),
            self.streams.shown(),
            self.telemetry.shown(),
            self.operator.shown(),
        ]
        .concat()
    }
}

/// A role that has started.
pub trait Role: Send {
    /// The health check for the operator's listener. None if the role has none.
    fn health(&self) -> Option<HealthCheck>;

    /// Name under which other processes ask for it: `ingest`, `worker` or `reactor`. None if they do not.
    fn name(&self) -> Option<&'static str> {
        None
    }

    /// Whether SIGHUP has it read something again. Otherwise that signal stops the process.
    fn reloads(&self) -> bool {
        false
    }

    /// Answers what other processes ask it besides its status and its spans. None if it knows no
    /// more.
    fn responder(&self) -> Option<Arc<dyn Responder>> {
        None
    }

    /// Waits until a part of the role has ended by itself. That ends the process.
    fn ended(&mut self) -> BoxFuture<'_, Ended>;

    /// Finishes the work in hand. The `stop` token of the role's [`Host`] is cancelled before.
    fn drain(self: Box<Self>) -> BoxFuture<'static, Result<()>>;
}

/// What the process provides to a role.
#[derive(Clone, Debug)]
pub struct Host {
    /// Creates the role's instruments.
    pub meter: Meter,
    /// Cancelled when the process is to stop.
    pub stop: CancellationToken,
    /// The spans that the process keeps.
    pub spans: SpanStore,
    broker: Arc<OnceLock<BrokerSettings>>,
}

impl Host {
    /// Has the process use this broker, whatever its settings say: one that was started for it is
    /// known only now.
    pub fn use_broker(&self, settings: &BrokerSettings) {
        // It is the same for all roles of a process.
        let _ = self.broker.set(settings.clone());
    }
}

/// Roles that have started in this process, in the order of their start.
pub struct Started {
    roles: Vec<Box<dyn Role>>,
    host: Host,
    operator: Tasks,
    operator_stop: CancellationToken,
    operator_address: std::net::SocketAddr,
    drain_timeout: Duration,
}

impl Started {
    /// Binds the operator's listener, starts roles and serves their health, their metrics and
    /// `pages`. What the operator's listener lets in is checked before a page is reached.
    ///
    /// # Errors
    /// If a port is taken, if meters contradict each other, or if `start` fails.
    pub async fn start(
        name: &str,
        settings: &CommonSettings,
        spans: SpanStore,
        start: impl AsyncFnOnce(&Host) -> Result<Vec<Box<dyn Role>>>,
        pages: impl FnOnce(&Peers, &CommonSettings) -> Router,
    ) -> Result<Self> {
        let server = listen("OPERATOR_PORT", operator::bind(&settings.operator).await, || {
            settings.operator.socket_address()
        })?;
        let metrics = Metrics::new(name, settings.telemetry.endpoint())?;
        let (meter, stop, broker) = (metrics.meter(), CancellationToken::new(), Arc::default());
        let host = Host { meter, stop, spans, broker };
        let roles = start(&host).await?;
        let checks: Arc<[HealthCheck]> = roles.iter().filter_map(|role| role.health()).collect();
        let mut operator = Tasks::default();
        let measured = Arc::<Measured>::default();
        operator.spawn("the series for pages", measured.clone().measure(metrics.clone()));
        let names = roles.iter().filter_map(|role| role.name()).map(str::to_owned).collect();
        let own = Own {
            instance: Instance::this(names),
            checks: Arc::clone(&checks),
            responders: roles.iter().filter_map(|role| role.responder()).collect(),
            spans: host.spans.clone(),
            measured: Arc::clone(&measured),
        };
        let broker = host.broker.get().unwrap_or(&settings.broker);
        let peers = Peers::start(broker, own, &mut operator).await;
        let peers = peers.context("set up the broker for pages")?;
        let pages = pages(&peers, settings);
        let router = operator::router(&settings.operator, metrics, checks, pages);
        let (operator_address, operator_stop) = (server.address(), CancellationToken::new());
        let (meter, stop) = (host.meter.clone(), operator_stop.clone());
        let serving = server.run_until(router, meter, stop, Duration::from_secs(1));
        operator.spawn("the operator's listener", serving);
        info!(address = %operator_address, "operator listens");
        let drain_timeout = settings.drain_timeout;
        Ok(Self { roles, host, operator, operator_stop, operator_address, drain_timeout })
    }

    /// Address of health and metrics.
    pub fn operator_address(&self) -> std::net::SocketAddr {
        self.operator_address
    }

    /// Whether SIGHUP has a role read something again.
    pub fn reloads(&self) -> bool {
        self.roles.iter().any(|role| role.reloads())
    }

    /// Supervises the roles until `stop`, or until one of their tasks ends by itself. Then drains
    /// them in the reverse order of their start.
    ///
    /// # Errors
    /// The task that ended, or a drain that failed.
    pub async fn run_until(mut self, stop: impl Future<Output = ()>) -> Result<()> {
        let why = {
            let mut roles = self.roles.iter_mut();
            let one_of_the_roles = async {
                if roles.len() == 0 {
                    pending::<()>().await;
                }
                select_all(roles.by_ref().map(|role| role.ended())).await.0
            };
            tokio::select! {
                () = stop => Ok(()),
                ended = one_of_the_roles => Err(ended),
                ended = self.operator.one_ended() => Err(ended),
            }
        };
        if let Err(ended) = &why {
            error!(error = %ended, "stopping");
        }
        self.host.stop.cancel();
        let mut drained = why.map_err(anyhow::Error::new);
        while let Some(role) = self.roles.pop() {
            drained = drained.and(role.drain().await);
        }
        self.operator_stop.cancel();
        let operator = self.operator.finish("the operator's listener", self.drain_timeout).await;
        drained.and(operator.map(drop).map_err(anyhow::Error::new))
    }
}

/// The server that was bound, or an error that names the setting to change.
///
/// # Errors
/// The error of the bind.
pub fn listen(
    setting: &str,
    bound: io::Result<Server>,
    address: impl FnOnce() -> std::net::SocketAddr,
) -> Result<Server> {
    bound.map_err(|error| {
        let address = address();
        if error.kind() == io::ErrorKind::AddrInUse {
            let flag = setting.to_lowercase().replace('_', "-");
            anyhow!("port {} is taken; set {setting} (--{flag}) to another", address.port())
        } else {
            anyhow::Error::new(error).context(format!("listen on {address}"))
        }
    })
}

/// Runs roles in this process until a signal, on a runtime of its own. `crates` are the names of
/// the crates whose log lines are the product's own. `pages` are served beside health and metrics. `started` is called once all roles run.
///
/// # Errors
/// An error of the start, a task that ended by itself, a drain that failed, or a second signal.
pub fn run(
    name: &str,
    crates: &'static [&'static str],
    settings: &CommonSettings,
    start: impl AsyncFnOnce(&Host) -> Result<Vec<Box<dyn Role>>>,
    pages: impl FnOnce(&Peers, &CommonSettings) -> Router,
    started: impl AsyncFnOnce(std::net::SocketAddr, LogFormat) -> Result<()>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let telemetry = Telemetry::init(&settings.telemetry, name, crates)?;
        let spans = telemetry.spans().clone();
        let roles = Started::start(name, settings, spans, start, pages).await?;
        if let Err(error) = started(roles.operator_address(), telemetry.format()).await {
            roles.run_until(async {}).await?;
            return Err(error);
        }
        let stopping = CancellationToken::new();
        let by_hangup = !roles.reloads() && !ignores_hangup();
        let running = roles.run_until(async {
            match asked_to_stop(by_hangup).await {
                Ok(signal) => info!(signal, "stopping"),
                // Without signals the process could not stop gracefully, so it stops now.
                Err(error) => error!(%error, "cannot listen to signals; stopping"),
            }
            stopping.cancel();
        });
        // A terminal that closes may send SIGHUP twice, so that one is no second wish.
        let second_signal = async {
            stopping.cancelled().await;
            match asked_to_stop(false).await {
                Ok(signal) => signal,
                Err(_) => pending().await,
            }
        };
        tokio::select! {
            result = async {
                let result = running.await;
                telemetry.shutdown().await;
                result
            } => result,
            signal = second_signal => bail!(
                "left at once after a second signal ({signal}); what was accepted is in the journal"
            ),
        }
    });
    // After a second signal the process does not wait for anything.
    runtime.shutdown_background();
    result
}

/// Waits for SIGTERM, SIGINT (Ctrl-C) or SIGHUP and says which it was. SIGHUP is passed over
/// where the process was started to ignore it, as by nohup.
///
/// # Errors
/// If the signals cannot be listened to.
pub async fn signal_received() -> io::Result<&'static str> {
    asked_to_stop(!ignores_hangup()).await
}

async fn asked_to_stop(by_hangup: bool) -> io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = by_hangup.then(|| signal(SignalKind::hangup())).transpose()?;
    let hung_up = async {
        match &mut hangup {
            Some(hangup) => hangup.recv().await,
            None => pending().await,
        }
    };
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        _ = hung_up => "SIGHUP",
    })
}

/// Whether SIGHUP is ignored: the first bit of proc(5)'s `SigIgn`.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|m| m & 1 == 1)
}

/// The exit code of a process: 0, [`EXIT_USAGE`](crate::settings::EXIT_USAGE) if a setting is missing or
/// wrong, 1 for any other error.
pub fn exit_code(result: &Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let usage = error.chain().any(|cause| cause.is::<crate::settings::SettingsError>());
            if usage { ExitCode::from(crate::settings::EXIT_USAGE) } else { ExitCode::FAILURE }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    struct Probe {
        name: &'static str,
        tasks: Tasks,
        drained: Arc<Mutex<Vec<&'static str>>>,
    }

    impl Role for Probe {
        fn health(&self) -> Option<HealthCheck> {
            None
        }

        fn ended(&mut self) -> BoxFuture<'_, Ended> {
            Box::pin(self.tasks.one_ended())
        }

        fn drain(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
            self.drained.lock().expect("no panic").push(self.name);
            Box::pin(async { Ok(()) })
        }
    }

    fn settings() -> CommonSettings {
        let mut args = CommonArgs::default();
        args.own.gitea_url = Some("http://h".into());
        args.operator.operator_port = Some("0".into());
        let mut problems = Problems::default();
        let settings = args.check(&mut problems);
        problems.finish(settings).expect("good settings")
    }

    /// Runs two roles, the second one with `task`. Returns the result and the order of the drains.
    async fn run(
        task: impl Future<Output = ()> + Send + 'static,
        stop: bool,
    ) -> (String, Vec<&'static str>) {
        let drained = Arc::new(Mutex::new(Vec::new()));
        let role = |name| Probe { name, tasks: Tasks::default(), drained: Arc::clone(&drained) };
        let (first, mut second) = (role("first"), role("second"));
        second.tasks.spawn("its task", task);
        let settings = settings();
        let start =
            async move |_: &Host| Ok(vec![Box::new(first) as Box<dyn Role>, Box::new(second)]);
        let spans = SpanStore::default();
        let started = Started::start("test", &settings, spans, start, |_, _| Router::new());
        let stop = async move {
            if !stop {
                pending().await
            }
        };
        let result = started.await.expect("start").run_until(stop).await;
        let drained = drained.lock().expect("no panic").clone();
        (result.map_or_else(|error| error.to_string(), |()| "ok".into()), drained)
    }

    #[tokio::test]
    async fn a_task_that_ends_or_panics_ends_the_process_after_a_drain_of_all() {
        let drained = vec!["second", "first"];
        let outcome = |text: &str| (text.to_owned(), drained.clone());
        assert_eq!(run(async {}, false).await, outcome("its task ended by itself"));
        assert_eq!(run(async { panic!("meant to") }, false).await, outcome("its task panicked"));
        assert_eq!(run(pending(), true).await, outcome("ok"));
    }

    #[test]
    fn a_taken_port_is_reported_with_the_setting_that_changes_it() {
        let address = || "0.0.0.0:8001".parse().expect("address");
        let error = |kind: io::ErrorKind| {
            format!(
                "{:#}",
                listen("OPERATOR_PORT", Err(kind.into()), address).expect_err("an error")
            )
        };
        assert_eq!(
            error(io::ErrorKind::AddrInUse),
            "port 8001 is taken; set OPERATOR_PORT (--operator-port) to another"
        );
        let denied = error(io::ErrorKind::PermissionDenied);
        assert_eq!(denied, "listen on 0.0.0.0:8001: permission denied");
    }
}
