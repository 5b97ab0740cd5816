//! Ingests and workers as processes.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tests::{gitea::SECRET, process::Process};

use crate::{clock::FakeClock, disk::Disk};

/// How long a service may take to listen: two cores are shared by many processes.
const START: Duration = Duration::from_secs(30);
/// Well above the age of a tail that is lost, and above a jump of the clock.
const RETENTION_SECS: &str = "300";
/// So short that a lost tail stays lost.
const FORGETFUL_RETENTION_SECS: &str = "1";
/// Time after which a dead worker's message is redelivered.
pub const ACK_WAIT: Duration = Duration::from_secs(2);
/// More attempts than a schedule of faults can make fail: a dead letter would be a violation.
const MAX_ATTEMPTS: &str = "100000";

/// Where services find the broker, and how many copies it keeps.
#[derive(Clone, Debug)]
pub struct ToBroker {
    /// Addresses for ingests.
    pub for_ingests: String,
    /// Addresses for workers.
    pub for_workers: String,
    /// `STREAM_REPLICAS`.
    pub replicas: &'static str,
}

/// All ingests and workers of a run.
pub struct Fleet {
    exe: PathBuf,
    dir: PathBuf,
    to_broker: ToBroker,
    retention_secs: &'static str,
    /// Disks of the two ingests.
    pub disks: [Disk; 2],
    /// The clock of all services, if it can be moved.
    pub clock: Option<FakeClock>,
    addresses: [SocketAddr; 2],
    ingests: [Option<Process>; 2],
    workers: Vec<Process>,
    started: usize,
}

impl Fleet {
    /// A fleet of which nothing runs yet. Logs go into `dir`.
    pub fn new(dir: &Path, to_broker: ToBroker, forgetful: bool) -> Self {
        let port = || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
            listener.and_then(|listener| listener.local_addr()).expect("a free port")
        };
        std::fs::create_dir_all(dir.join("logs")).expect("create a directory");
        Self {
            exe: std::env::current_exe().expect("this program's file"),
            dir: dir.to_owned(),
            to_broker,
            retention_secs: if forgetful { FORGETFUL_RETENTION_SECS } else { RETENTION_SECS },
            disks: [0, 1].map(|n| Disk::mount(dir.join(format!("disk-{n}")))),
            clock: FakeClock::find(dir),
            addresses: [port(), port()],
            ingests: [None, None],
            workers: Vec::new(),
            started: 0,
        }
    }

    /// Addresses of the ingests, also while they do not run.
    pub fn addresses(&self) -> [SocketAddr; 2] {
        self.addresses
    }

    /// How many workers run.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Process id of an ingest.
    pub fn ingest_pid(&self, n: usize) -> u32 {
        self.ingests[n].as_ref().expect("it runs").pid()
    }

    /// Process id of a worker.
    pub fn worker_pid(&self, n: usize) -> u32 {
        self.workers[n].pid()
    }

    fn start(&self, service: &str, own: &[(&str, &str)]) -> Process {
        let clock = self.clock.as_ref().map_or_else(Vec::new, FakeClock::environment);
        let mut environment = vec![
            ("GITEA_URL", "http://localhost:3000"),
            ("STREAM_REPLICAS", self.to_broker.replicas),
            ("OPERATOR_PORT", "0"),
        ];
        environment.extend(own);
        environment.extend(clock.iter().map(|(name, value)| (*name, value.as_str())));
        Process::start(&self.exe, service, &[], &environment)
    }

    /// Starts an ingest and waits until it listens.
    pub async fn start_ingest(&mut self, n: usize) -> Result<(), String> {
        let (data, port) = (self.disks[n].data(), self.addresses[n].port().to_string());
        let own = [
            ("GITEA_WEBHOOK_SECRET", SECRET),
            ("NATS_URL", &self.to_broker.for_ingests),
            ("DATA_DIR", data.to_str().expect("UTF-8")),
            ("HOST", "127.0.0.1"),
            ("PORT", &port),
            ("JOURNAL_RETENTION_SECS", self.retention_secs),
            ("DRAIN_TIMEOUT_SECS", "5"),
        ];
        let process = self.start("ingest", &own);
        let listens = listens(&process, "ingest listens").await;
        self.ingests[n] = Some(process);
        listens
    }

    /// Starts a worker and waits until it listens.
    pub async fn start_worker(&mut self) -> Result<(), String> {
        let ack_wait = ACK_WAIT.as_secs().to_string();
        let own = [
            ("NATS_URL", self.to_broker.for_workers.as_str()),
            ("ACK_WAIT_SECS", &ack_wait),
            ("MAX_ATTEMPTS", MAX_ATTEMPTS),
            ("DRAIN_TIMEOUT_SECS", "8"),
        ];
        let process = self.start("worker", &own);
        let listens = listens(&process, "operator listens").await;
        self.workers.push(process);
        listens
    }

    /// Kills an ingest with SIGKILL.
    pub async fn kill_ingest(&mut self, n: usize) {
        if let Some(mut process) = self.ingests[n].take() {
            process.kill().await;
            self.keep_log("ingest", &process);
        }
    }

    /// Kills a worker with SIGKILL.
    pub async fn kill_worker(&mut self, n: usize) {
        let mut process = self.workers.remove(n);
        process.kill().await;
        self.keep_log("worker", &process);
    }

    /// Ends an ingest with SIGTERM. Err if it does not end with 0.
    pub async fn end_ingest(&mut self, n: usize) -> Result<(), String> {
        let Some(process) = self.ingests[n].take() else { return Ok(()) };
        self.end("ingest", process).await
    }

    /// Ends a worker with SIGTERM. Err if it does not end with 0.
    pub async fn end_worker(&mut self, n: usize) -> Result<(), String> {
        let process = self.workers.remove(n);
        self.end("worker", process).await
    }

    async fn end(&mut self, service: &str, mut process: Process) -> Result<(), String> {
        process.signal("TERM");
        let code = process.exited().await.code();
        self.keep_log(service, &process);
        match code {
            Some(0) => Ok(()),
            code => Err(format!("{service} ends with {code:?}: {}", tail(&process))),
        }
    }

    /// Sends a signal to an ingest.
    pub fn signal_ingest(&self, n: usize, name: &str) {
        self.ingests[n].as_ref().expect("it runs").signal(name);
    }

    /// Sends a signal to a worker.
    pub fn signal_worker(&self, n: usize, name: &str) {
        self.workers[n].signal(name);
    }

    /// Keeps what the processes have printed, and the journals.
    pub fn keep(&mut self) {
        for n in 0..2 {
            self.disks[n].keep(&self.dir.join(format!("journal-{n}")));
            if let Some(process) = self.ingests[n].take() {
                self.keep_log("ingest", &process);
            }
        }
        for process in std::mem::take(&mut self.workers) {
            self.keep_log("worker", &process);
        }
    }

    fn keep_log(&mut self, service: &str, process: &Process) {
        self.started += 1;
        let file = format!("logs/{:04}-{service}-{}.log", self.started, process.pid());
        std::fs::write(self.dir.join(file), process.output()).expect("write a log");
    }
}

async fn listens(process: &Process, line: &str) -> Result<(), String> {
    let started = Instant::now();
    while !process.output().contains(line) {
        if started.elapsed() > START {
            return Err(format!("no {line:?} within {START:?}: {}", tail(process)));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

fn tail(process: &Process) -> String {
    let output = process.output();
    let lines: Vec<&str> = output.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
