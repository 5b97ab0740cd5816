//! Receivers that can stand behind Gitea's webhook. They are started as a user
//! would run them, killed with SIGKILL, and examined for what is left.

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use async_nats::jetstream;
use tests::{
    bus,
    gitea::SECRET,
    nats::Nats,
    process::{Process, signal},
    services::{ingest, worker},
    usage::{self, Usage},
    wait,
};
use uuid::Uuid;

use crate::{fastapi, reference};

/// Time in which the rest of a killed receiver is found, and its commands end.
const SETTLE: Duration = Duration::from_secs(3);

/// Which receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ingest with its relay at work.
    Coordinator,
    /// The FastAPI receiver in this many processes.
    FastApi { processes: usize },
    /// adnanh/webhook, which starts a command for each delivery.
    Webhook,
    /// An axum handler that waits for JetStream's confirmation.
    Confirmed { fsync_each: bool },
}

/// A receiver, and its program.
pub struct Contender {
    pub kind: Kind,
    program: PathBuf,
}

impl Contender {
    /// All receivers that can be started here. For each other one, a line says how to get it.
    pub fn all(exe: &Path) -> Vec<Self> {
        let own = std::env::current_exe().expect("own path");
        let with = |kind, program: &Path| Self { kind, program: program.into() };
        let mut all = vec![with(Kind::Coordinator, exe)];
        match fastapi::python() {
            Ok(python) => all.extend(
                [1, 2].map(|processes| with(Kind::FastApi { processes }, python.as_path())),
            ),
            Err(error) => println!("left out: FastAPI, which needs python3 with venv: {error}"),
        }
        match Command::new("webhook").arg("-version").output() {
            Ok(_) => all.push(with(Kind::Webhook, Path::new("webhook"))),
            Err(error) => {
                println!("left out: webhook, to be had by `apt-get install webhook`: {error}");
            }
        }
        all.extend([false, true].map(|fsync_each| with(Kind::Confirmed { fsync_each }, &own)));
        all
    }

    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Coordinator => "**Coordinator**: ingest, relay at work, nats-server",
            Kind::FastApi { processes: 1 } => "FastAPI, uvicorn with 1 process",
            Kind::FastApi { .. } => "FastAPI, uvicorn with 2 processes",
            Kind::Webhook => "webhook, which starts `/bin/true` for each",
            Kind::Confirmed { fsync_each: false } => "axum, awaits a PubAck of nats-server",
            Kind::Confirmed { fsync_each: true } => "the same with `sync_interval: always`",
        }
    }

    /// What is certain after a 200.
    pub fn promise(&self) -> &'static str {
        match self.kind {
            Kind::Coordinator => "on disk, fsynced",
            Kind::FastApi { .. } => "in the process's memory",
            Kind::Webhook => "a command will be started",
            Kind::Confirmed { fsync_each: false } => "with the broker, fsynced within 2 minutes",
            Kind::Confirmed { fsync_each: true } => "with the broker, fsynced",
        }
    }

    /// Starts the receiver with all that it needs. A handler in it takes `work` for each delivery.
    pub async fn start(&self, work: Duration) -> Receiver {
        let dir = tests::temp_dir();
        let nats = match self.kind {
            Kind::Coordinator => Some(Nats::start().await),
            Kind::Confirmed { fsync_each } => Some(broker(fsync_each).await),
            Kind::FastApi { .. } | Kind::Webhook => None,
        };
        let (process, address) = self.spawn(nats.as_ref(), dir.path(), work).await;
        Receiver { kind: self.kind, address, process, nats, dir }
    }

    /// Kills the receiver and its broker, starts them again, and looks for these deliveries.
    pub async fn killed(&self, exe: &Path, receiver: &mut Receiver, ids: &HashSet<Uuid>) -> Left {
        receiver.kill().await;
        let handled = receiver.handled(ids).await;
        if let Some(nats) = &mut receiver.nats {
            nats.restart().await;
        }
        let (nats, dir) = (receiver.nats.as_ref(), receiver.dir.path());
        let (process, address) = self.spawn(nats, dir, Duration::ZERO).await;
        (receiver.process, receiver.address) = (process, address);
        let found = match &receiver.nats {
            Some(nats) => receiver.found(exe, nats, ids).await,
            None => receiver.handled(ids).await.saturating_sub(handled),
        };
        Left { handled, found }
    }

    async fn spawn(
        &self,
        nats: Option<&Nats>,
        dir: &Path,
        work: Duration,
    ) -> (Process, SocketAddr) {
        let process = match (self.kind, nats) {
            (Kind::Coordinator, Some(nats)) => {
                let ingest = ingest(&self.program, nats, dir);
                let address = ingest.address_in("ingest listens").await;
                return (ingest, address);
            }
            (Kind::Confirmed { .. }, Some(nats)) => {
                return reference::start(&["confirmed-handler", &nats.url()]).await;
            }
            (Kind::FastApi { processes }, _) => self.fastapi(processes, work),
            (Kind::Webhook, _) => self.webhook(dir, work),
            (Kind::Coordinator | Kind::Confirmed { .. }, None) => panic!("it needs a broker"),
        };
        let (process, port) = process;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        wait::until("the receiver to listen", || async {
            tokio::net::TcpStream::connect(address).await.ok()
        })
        .await;
        (process, address)
    }

    fn fastapi(&self, processes: usize, work: Duration) -> (Process, u16) {
        let port = tests::free_port();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/pipeline/fastapi_receiver.py");
        let environment = [
            ("GITEA_WEBHOOK_SECRET", SECRET),
            ("GITEA_URL", "http://localhost:3000"),
            ("HOST", "127.0.0.1"),
            ("PORT", &port.to_string()),
            ("WEB_CONCURRENCY", &processes.to_string()),
            ("HANDLER_SECONDS", &work.as_secs_f64().to_string()),
            ("PYTHONDONTWRITEBYTECODE", "1"),
        ];
        (Process::start(&self.program, script, &[], &environment), port)
    }

    fn webhook(&self, dir: &Path, work: Duration) -> (Process, u16) {
        let port = tests::free_port();
        let command = if work.is_zero() { PathBuf::from("/bin/true") } else { script(dir, work) };
        let hooks = dir.join("hooks.json");
        let signed = serde_json::json!({"match": {
            "type": "payload-hmac-sha256",
            "secret": SECRET,
            "parameter": {"source": "header", "name": "X-Gitea-Signature"},
        }});
        let text = serde_json::json!([{
            "id": "gitea",
            "execute-command": command,
            "pass-arguments-to-command": [{"source": "header", "name": "X-Gitea-Delivery"}],
            "http-methods": ["POST"],
            "trigger-rule": signed,
            "trigger-rule-mismatch-http-response-code": 401,
        }]);
        std::fs::write(&hooks, text.to_string()).expect("write hooks.json");
        let flags = [
            hooks.to_str().expect("UTF-8"),
            "-ip",
            "127.0.0.1",
            "-port",
            &port.to_string(),
            "-urlprefix",
            "webhook",
        ];
        (Process::start(&self.program, "-hooks", &flags, &[]), port)
    }
}

/// A nats-server with defaults, or one that fsyncs each message before it confirms it.
async fn broker(fsync_each: bool) -> Nats {
    let mut nats = Nats::prepared("");
    if fsync_each {
        let store = nats.store().to_owned();
        // A later block of this name replaces the former one.
        nats.set_extra(&format!("jetstream {{ store_dir: {store:?}, sync_interval: always }}"));
    }
    nats.restart().await;
    nats
}

/// A command of webhook that takes `work` and then leaves a line with its delivery.
fn script(dir: &Path, work: Duration) -> PathBuf {
    let (path, done) = (dir.join("handle.sh"), dir.join("done"));
    let text = format!(
        "#!/bin/sh\nsleep {}\necho \"handled $1:\" >> {}\n",
        work.as_secs_f64(),
        done.display()
    );
    std::fs::write(&path, text).expect("write the command");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, executable).expect("make it executable");
    path
}

/// What became of deliveries that were answered 200 before a kill.
#[derive(Clone, Copy, Debug)]
pub struct Left {
    /// Handled before the kill.
    pub handled: usize,
    /// Not handled before the kill, but found afterwards.
    pub found: usize,
}

/// A running receiver. Killed when dropped, with all that it started.
pub struct Receiver {
    kind: Kind,
    pub address: SocketAddr,
    process: Process,
    nats: Option<Nats>,
    dir: tempfile::TempDir,
}

impl Receiver {
    /// Peak memory of the receiver and of its broker, in bytes.
    pub fn peak_memory(&self) -> (u64, Option<u64>) {
        let usage = match self.kind {
            Kind::FastApi { .. } => Usage::of_tree(self.process.pid()),
            // The commands that webhook starts belong to the user, and end in a moment.
            _ => Usage::of(self.process.pid()),
        };
        let broker = self.nats.as_ref().map(|nats| Usage::of(nats.pid()).peak_memory);
        (usage.peak_memory, broker)
    }

    /// Kills the receiver and its broker with SIGKILL.
    async fn kill(&mut self) {
        self.kill_processes();
        self.process.kill().await;
        if let Some(nats) = &mut self.nats {
            nats.kill();
        }
    }

    /// Kills uvicorn's processes, which would outlive the process that started them.
    fn kill_processes(&self) {
        if matches!(self.kind, Kind::FastApi { processes: 2.. }) {
            // A stopped parent starts no others in their place.
            self.process.signal("STOP");
            for process in usage::descendants(self.process.pid()) {
                signal(process, "KILL");
            }
        }
    }

    /// How many of these deliveries the receiver's own handlers reported as done.
    async fn handled(&self, ids: &HashSet<Uuid>) -> usize {
        match self.kind {
            Kind::FastApi { .. } => {
                tokio::time::sleep(SETTLE).await;
                told(&self.process.output(), ids)
            }
            Kind::Webhook => {
                // Commands outlive the process that started them.
                tokio::time::sleep(SETTLE).await;
                let done = std::fs::read_to_string(self.dir.path().join("done"));
                told(&done.unwrap_or_default(), ids)
            }
            // The handlers are workers, and none has run yet.
            Kind::Coordinator | Kind::Confirmed { .. } => 0,
        }
    }

    /// How many of these deliveries the broker has. With Coordinator a worker must
    /// have handled them. Without it they must be in a stream, to be handled later.
    async fn found(&self, exe: &Path, nats: &Nats, ids: &HashSet<Uuid>) -> usize {
        let js = jetstream::new(nats.client().await);
        if self.kind != Kind::Coordinator {
            let stored = bus::messages(&js, reference::DELIVERIES).await.unwrap_or_default();
            return among(stored.iter().map(|stored| stored.header("Nats-Msg-Id")), ids);
        }
        let _worker = worker(exe, nats);
        let started = Instant::now();
        loop {
            let changes = bus::changes(&js).await;
            let found = among(changes.iter().map(|change| &*change.cause.delivery_id), ids);
            if found == ids.len() || started.elapsed() > 10 * SETTLE {
                return found;
            }
            tokio::time::sleep(SETTLE / 10).await;
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.kill_processes();
    }
}

/// How many of `ids` are reported as handled by a line of `output`.
fn told(output: &str, ids: &HashSet<Uuid>) -> usize {
    let handled =
        output.lines().filter_map(|line| line.split_once("handled ")?.1.split(':').next());
    among(handled, ids)
}

fn among<'a>(found: impl Iterator<Item = &'a str>, ids: &HashSet<Uuid>) -> usize {
    let found: HashSet<Uuid> = found.filter_map(|id| id.parse().ok()).collect();
    found.intersection(ids).count()
}
