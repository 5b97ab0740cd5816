//! Processor time of a delivery, in each process of the pipeline.

use std::{path::Path, time::Duration};

use async_nats::jetstream;
use contract::names;
use tests::{
    bus,
    nats::Nats,
    process::Process,
    services::{ingest_at, worker_at},
    usage::Usage,
    wait,
};

use crate::{
    load::{self, Run, Template},
    scenarios::{CONNECTIONS, ISSUES},
};

/// Deliveries of the load with a fixed pace, and of the load as fast as possible.
const PACED: u64 = 10_000;
const UNPACED: u64 = 30_000;

/// Processor time of ingest, of the worker, and of nats-server.
#[derive(Clone, Copy, Default)]
pub struct Costs([Duration; 3]);

impl Costs {
    /// Microseconds for one delivery: in each of the three processes, and in all together.
    pub fn of_one(self, since: Self, deliveries: u64) -> [f64; 4] {
        let one = |n: usize| (self.0[n] - since.0[n]).as_secs_f64() * 1e6 / deliveries as f64;
        [one(0), one(1), one(2), one(0) + one(1) + one(2)]
    }
}

/// The running pipeline.
pub struct Pipeline {
    ingest: Process,
    worker: Option<Process>,
    nats: Nats,
    js: jetstream::Context,
    _data: tempfile::TempDir,
}

impl Pipeline {
    pub async fn start(exe: &Path, with_worker: bool) -> Self {
        Self::start_with(exe, with_worker, &[]).await
    }

    /// Starts it with more environment variables.
    pub async fn start_with(exe: &Path, with_worker: bool, more: &[(&str, &str)]) -> Self {
        let nats = Nats::start().await;
        let data = tests::temp_dir();
        let ingest = ingest_at(exe, &nats.url(), data.path(), &[], more);
        let js = jetstream::new(nats.client().await);
        let worker = with_worker.then(|| worker_at(exe, &nats.url(), &[], more));
        if with_worker {
            wait::until("the worker's consumers", || bus::lag(&js)).await;
        }
        Self { ingest, worker, nats, js, _data: data }
    }

    /// Sends `count` deliveries, each the next of its issue, and waits until all are through.
    pub async fn through(&self, count: u64, rate: f64) -> Run {
        let template = Template::recorded();
        let requests = (0..count).map(|n| template.request(n % ISSUES + 1, n / ISSUES)).collect();
        let address = self.ingest.address_in("ingest listens").await;
        let run = load::open_loop(address, requests, CONNECTIONS, rate, |_, _| {}).await;
        // Asked rarely, since the broker's answers count as well.
        while !self.is_through(count).await {
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        run
    }

    async fn is_through(&self, count: u64) -> bool {
        bus::count(&self.js, names::EVENTS).await == count
            && (self.worker.is_none() || bus::lag(&self.js).await == Some(0))
    }

    /// Name and process id of each process.
    pub fn processes(&self) -> [(&'static str, Option<u32>); 3] {
        let worker = self.worker.as_ref().map(Process::pid);
        [
            ("ingest", Some(self.ingest.pid())),
            ("worker", worker),
            ("nats-server", Some(self.nats.pid())),
        ]
    }

    /// Processor time of the processes so far.
    pub fn costs(&self) -> Costs {
        Costs(
            self.processes().map(|(_, pid)| pid.map(|pid| Usage::of(pid).cpu).unwrap_or_default()),
        )
    }
}

/// Prints a row for each load.
pub async fn run(exe: &Path) {
    println!("| processor time of a delivery | ingest | worker | nats-server | together |");
    println!("|---|---|---|---|---|");
    for (what, count, rate, with_worker) in [
        ("1,000/s, no worker", PACED, 1000.0, false),
        ("1,000/s", PACED, 1000.0, true),
        ("as fast as 64 connections go, no worker", UNPACED, f64::INFINITY, false),
        ("as fast as 64 connections go", UNPACED, f64::INFINITY, true),
    ] {
        let pipeline = Pipeline::start(exe, with_worker).await;
        let before = pipeline.costs();
        pipeline.through(count, rate).await;
        let [ingest, worker, nats, all] = pipeline.costs().of_one(before, count);
        println!("| {what} | {ingest:.0} µs | {worker:.0} µs | {nats:.0} µs | {all:.0} µs |");
    }
}
