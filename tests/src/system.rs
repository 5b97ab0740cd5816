//! The whole pipeline within the test's process: nats-server, ingest, workers.

use std::net::SocketAddr;

use async_nats::jetstream;
use clap::{Args, FromArgMatches};
use contract::names;
use ingest::{
    Ingest,
    settings::{IngestArgs, IngestSettings},
};
use service::{
    peers::Peers,
    role::{CommonArgs, CommonSettings, Host, Role, Started},
    settings::Problems,
    telemetry::span_store::SpanStore,
};
use sync::{
    Sync,
    settings::{AccessArgs, SyncArgs, SyncSettings},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use worker::{
    Worker,
    settings::{WorkerArgs, WorkerSettings},
};

use crate::{
    bus,
    gitea::{Delivery, RECORDED_SECRET, SECRET},
    nats::Nats,
    wait,
};

/// An answer to a delivery.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers.
    pub headers: reqwest::header::HeaderMap,
    /// Body, which is always JSON.
    pub body: serde_json::Value,
}

/// A role in this process.
pub struct Running {
    /// Address of the webhook of an ingest, or of the operator's listener of a worker.
    pub address: SocketAddr,
    /// Address of health and metrics.
    pub operator: SocketAddr,
    /// What it asks the other processes.
    pub peers: Peers,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    async fn start(
        name: &str,
        common: &CommonSettings,
        start: impl AsyncFnOnce(&Host) -> anyhow::Result<(Vec<Box<dyn Role>>, Option<SocketAddr>)>,
    ) -> Self {
        let mut webhook = None;
        let start = async |host: &Host| {
            let (roles, address) = start(host).await?;
            webhook = address;
            Ok(roles)
        };
        let mut peers = None;
        let pages = |started: &Peers, _: &_| {
            peers = Some(started.clone());
            axum::Router::new()
        };
        let spans = SpanStore::default();
        let started = Started::start(name, common, spans, start, pages).await;
        let started = started.expect("it starts");
        let peers = peers.expect("pages are asked for");
        let operator = started.operator_address();
        let stop = CancellationToken::new();
        let task = tokio::spawn(started.run_until(stop.clone().cancelled_owned()));
        Self { address: webhook.unwrap_or(operator), operator, peers, stop, task }
    }

    /// Stops it gracefully and waits for its end.
    pub async fn stop(self) {
        self.stop.cancel();
        let ended = wait::within("a graceful stop", self.task).await.expect("no panic");
        ended.expect("a graceful stop");
    }

    /// Its answer to a GET.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let response =
            reqwest::get(format!("http://{}{path}", self.operator)).await.expect("an answer");
        (response.status().as_u16(), response.text().await.expect("a text"))
    }

    /// The value of a metric; labels in the order in which they are rendered.
    pub async fn metric(&self, name_and_labels: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics").await;
        text.lines().find_map(|line| {
            line.strip_prefix(name_and_labels)?.strip_prefix(' ')?.trim().parse().ok()
        })
    }
}

impl Running {
    /// The sum of a counter over all its series that contain `label`.
    pub async fn total(&self, name: &str, label: &str) -> f64 {
        total(self.operator, name, label).await
    }
}

/// The sum of a counter of the service at `address` over all its series that contain `label`.
pub async fn total(address: SocketAddr, name: &str, label: &str) -> f64 {
    let response = reqwest::get(format!("http://{address}/metrics")).await.expect("an answer");
    let text = response.text().await.expect("a text");
    let series = text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
    series
        .filter(|(labels, _)| labels.is_empty() || labels.starts_with('{'))
        .filter(|(labels, _)| labels.contains(label))
        .map(|(_, value)| value.parse::<f64>().expect("a number"))
        .sum()
}

/// Settings of a service, parsed from flags like those of its command line.
pub fn settings<T: Args + FromArgMatches>(flags: &[&str]) -> T {
    let command = T::augment_args(clap::Command::new("settings").no_binary_name(true));
    let matches = command.try_get_matches_from(flags).expect("known flags");
    T::from_arg_matches(&matches).expect("matching flags")
}

fn common(nats_url: &str, flags: &[&str]) -> CommonArgs {
    let mut common: CommonArgs = settings(flags);
    common.own.gitea_url.get_or_insert_with(|| "http://localhost:3000".into());
    common.own.drain_timeout_secs.get_or_insert_with(|| "10".into());
    common.broker.nats_url = Some(nats_url.into());
    common.operator.operator_port = Some("0".into());
    common
}

/// Splits flags into those that every role has, and those of one role.
fn split<'a>(flags: &[&'a str]) -> (Vec<&'a str>, Vec<&'a str>) {
    split_off::<CommonArgs>(flags)
}

/// Splits flags into those of `T`, and the others.
fn split_off<'a, T: Args>(flags: &[&'a str]) -> (Vec<&'a str>, Vec<&'a str>) {
    let command = T::augment_args(clap::Command::new("settings"));
    let known =
        |flag: &str| command.get_arguments().any(|arg| arg.get_long() == flag.strip_prefix("--"));
    let pairs = flags.chunks(2);
    let (common, own): (Vec<_>, Vec<_>) = pairs.partition(|pair| known(pair[0]));
    (common.concat(), own.concat())
}

/// The settings of an ingest for tests, with more flags.
pub fn ingest_config(nats_url: &str, data_dir: &std::path::Path, flags: &[&str]) -> IngestSettings {
    let (of_all, own) = split(flags);
    let mut args = IngestArgs {
        host: Some("127.0.0.1".into()),
        port: Some("0".into()),
        gitea_webhook_secret: Some(SECRET.into()),
        data_dir: Some(data_dir.to_str().expect("UTF-8").into()),
        allow_short_secret: Some("true".into()),
        ..settings(&own)
    };
    args.gitea_webhook_secret_previous.get_or_insert_with(|| RECORDED_SECRET.into());
    let mut problems = Problems::default();
    let common = common(nats_url, &of_all).check(&mut problems);
    let config = args.settings(common, &mut problems);
    problems.finish(config).expect("good settings")
}

/// The settings of a worker for tests, with more flags.
pub fn worker_config(nats_url: &str, flags: &[&str]) -> WorkerSettings {
    let (of_all, own) = split(flags);
    let mut problems = Problems::default();
    let common = common(nats_url, &of_all).check(&mut problems);
    let config = settings::<WorkerArgs>(&own).settings(common, &mut problems);
    problems.finish(config).expect("good settings")
}

/// The settings of a worker that asks Gitea with this token, and of its jobs, with more flags.
pub fn asking_worker_config(
    nats_url: &str,
    token: &str,
    flags: &[&str],
) -> (WorkerSettings, SyncSettings) {
    let (of_all, own) = split(flags);
    let (of_access, own) = split_off::<AccessArgs>(&own);
    let (of_sync, own) = split_off::<SyncArgs>(&own);
    let access = AccessArgs { gitea_token: Some(token.into()), ..settings(&of_access) };
    let mut problems = Problems::default();
    let common = common(nats_url, &of_all).check(&mut problems);
    let sync = settings::<SyncArgs>(&of_sync).settings(&access, common.clone(), &mut problems);
    let mut worker = settings::<WorkerArgs>(&own).settings(common, &mut problems);
    worker.raises_questions = true;
    problems.finish((worker, sync)).expect("good settings")
}

/// Starts an ingest.
pub async fn start_ingest(config: &IngestSettings) -> Running {
    let start = async |host: &Host| {
        let ingest = Ingest::start(config, host).await?;
        let address = ingest.address();
        Ok((vec![Box::new(ingest) as Box<dyn Role>], Some(address)))
    };
    Running::start("ingest", &config.common, start).await
}

/// Starts a worker.
pub async fn start_worker(config: &WorkerSettings) -> Running {
    let start = async |host: &Host| {
        Ok((vec![Box::new(Worker::start(config, host).await?) as Box<dyn Role>], None))
    };
    Running::start("worker", &config.common, start).await
}

/// Starts a worker, and beside it the jobs that ask Gitea.
pub async fn start_asking_worker((worker, sync): &(WorkerSettings, SyncSettings)) -> Running {
    let start = async |host: &Host| {
        let roles: Vec<Box<dyn Role>> = vec![
            Box::new(Worker::start(worker, host).await?),
            Box::new(Sync::start(sync, host).await?),
        ];
        Ok((roles, None))
    };
    Running::start("worker", &worker.common, start).await
}

/// A broker, an ingest and a worker.
pub struct System {
    /// The broker.
    pub nats: Nats,
    /// The ingest.
    pub ingest: Running,
    /// The worker.
    pub worker: Running,
    /// JetStream as an outside reader has it.
    pub js: jetstream::Context,
    /// The ingest's data.
    pub data: tempfile::TempDir,
    http: reqwest::Client,
}

impl System {
    /// Starts all three with default settings.
    pub async fn start() -> Self {
        Self::start_with(&[], &[]).await
    }

    /// Starts all three with more flags for ingest and worker.
    pub async fn start_with(ingest_flags: &[&str], worker_flags: &[&str]) -> Self {
        Self::start_on(Nats::start().await, ingest_flags, worker_flags).await
    }

    /// Starts ingest and worker on this broker, with more flags.
    pub async fn start_on(nats: Nats, ingest_flags: &[&str], worker_flags: &[&str]) -> Self {
        let data = crate::temp_dir();
        let ingest = start_ingest(&ingest_config(&nats.url(), data.path(), ingest_flags)).await;
        let worker = start_worker(&worker_config(&nats.url(), worker_flags)).await;
        let js = jetstream::new(nats.client().await);
        Self { nats, ingest, worker, js, data, http: reqwest::Client::new() }
    }

    /// Sends a delivery and returns the answer.
    pub async fn send(&self, delivery: &Delivery) -> Answer {
        send(&self.http, self.ingest.address, delivery).await
    }

    /// Sends a delivery that must be accepted.
    pub async fn send_accepted(&self, delivery: &Delivery) {
        let answer = self.send(delivery).await;
        assert_eq!(
            (answer.status, &answer.body["status"]),
            (200, &"accepted".into()),
            "{answer:?}"
        );
    }

    /// Waits until `events` events are in the stream and all of them are settled.
    pub async fn settled(&self, events: u64) {
        settled(&self.js, events).await;
    }
}

/// Waits until `events` events are in the stream and all of them are settled.
pub async fn settled(js: &jetstream::Context, events: u64) {
    wait::until_equal("all events to be published and settled", (events, Some(0)), || async {
        (bus::count(js, names::EVENTS).await, bus::lag(js).await)
    })
    .await;
}

/// Sends a delivery to an address and returns the answer.
pub async fn send(http: &reqwest::Client, address: SocketAddr, delivery: &Delivery) -> Answer {
    try_send(http, address, delivery).await.expect("an answer")
}

/// Sends a delivery to an address where possibly nobody listens.
pub async fn try_send(
    http: &reqwest::Client,
    address: SocketAddr,
    delivery: &Delivery,
) -> Result<Answer, reqwest::Error> {
    let mut request = http.post(format!("http://{address}/webhook/gitea"));
    for (name, value) in &delivery.headers {
        request = request.header(name, value);
    }
    let response = request.body(delivery.body.clone()).send().await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await?;
    let body = serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text));
    Ok(Answer { status, headers, body })
}
