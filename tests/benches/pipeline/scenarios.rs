//! What is measured. Each scenario prints rows of one table.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::jetstream;
use contract::names;
use tests::{
    bus,
    nats::Nats,
    services::{ingest, worker},
    wait,
};
#[cfg(target_os = "linux")]
use tests::{services::ingest_with, usage::Usage};

#[cfg(target_os = "linux")]
use crate::{abuse::Abuse, beside, cpu, figures::megabytes, pages, profile, spans};
use crate::{
    backlog::{self, Change, Events},
    figures::{memory, millis, rate},
    load::{self, Connection, Template},
    reference, told,
};

/// Connections that are busy at once.
pub const CONNECTIONS: usize = 64;
const BACKLOG: u64 = 200_000;
/// Issues that the load spreads over.
pub const ISSUES: u64 = 2_000;

/// Runs the scenarios whose names begin with one of `pick`. Without names, runs
/// all except those with a separate table.
pub async fn run(exe: &Path, pick: &[String]) {
    #[cfg(target_os = "linux")]
    for one in pick {
        match one.as_str() {
            "beside" => beside::run(exe).await,
            "cpu" => cpu::run(exe).await,
            "spans" => spans::run(exe).await,
            "profile" => profile::run(exe).await,
            one if one.starts_with("pages") => pages::run(exe, one).await,
            _ => {}
        }
    }
    let picked = |name: &str| pick.is_empty() || pick.iter().any(|p| name.starts_with(p.as_str()));
    if ["accept", "steady", "latency", "drain", "idle", "abuse"].into_iter().any(picked) {
        row("measured", "value", "goal");
    }
    if picked("accept") {
        accept(exe).await;
    }
    if picked("steady") {
        steady(exe).await;
    }
    if picked("latency") {
        latency(exe).await;
    }
    if picked("drain") {
        drain(exe).await;
    }
    if picked("idle") {
        idle(exe).await;
    }
    #[cfg(target_os = "linux")]
    if picked("abuse") {
        abuse(exe).await;
    }
}

/// Prints a row of the table.
pub fn row(what: &str, value: impl std::fmt::Display, goal: &str) {
    println!("{what:<58} {value:>14} {goal:>14}");
}

/// Measures durable 200s a second, beside a handler that keeps nothing.
async fn accept(exe: &Path) {
    let template = Template::recorded();
    let requests: Arc<Vec<_>> = Arc::new((0..ISSUES).map(|n| template.request(n + 1, 0)).collect());
    let duration = Duration::from_secs(8);

    let (handler, address) = reference::start(&["read-only-handler"]).await;
    let bare = load::closed_loop(address, Arc::clone(&requests), CONNECTIONS, duration).await;
    drop(handler);

    let nats = Nats::start().await;
    let data = tests::temp_dir();
    let ingest = ingest(exe, &nats, data.path());
    let address = ingest.address_in("ingest listens").await;
    let kept = load::closed_loop(address, requests, CONNECTIONS, duration).await;
    let js = jetstream::new(nats.client().await);
    let published = bus::count(&js, names::EVENTS).await;
    row("accepted, 64 connections: reads the body and keeps nothing", rate(bare.rate()), "");
    row("accepted, 64 connections: durable, relay at work", rate(kept.rate()), "13000/s");
    row("  ratio", format!("{:.2}", kept.rate() / bare.rate()), "");
    row("  p50", millis(kept.percentile(50.0)), "");
    row("  p99", millis(kept.percentile(99.0)), "");
    row("  published meanwhile", rate(published as f64 / kept.seconds), "");
    row("  memory of ingest under load", memory(&ingest), "");
}

/// Measures how long a 200 takes at 1,000 deliveries a second.
async fn steady(exe: &Path) {
    let template = Template::recorded();
    let requests = (0..10_000).map(|n| template.request(n % ISSUES + 1, n / ISSUES)).collect();
    let nats = Nats::start().await;
    let data = tests::temp_dir();
    let ingest = ingest(exe, &nats, data.path());
    let address = ingest.address_in("ingest listens").await;
    let run = load::open_loop(address, requests, CONNECTIONS, 1000.0, |_, _| {}).await;
    row("200 at 1000/s: p50", millis(run.percentile(50.0)), "");
    row("200 at 1000/s: p99", millis(run.percentile(99.0)), "10 ms");
}

/// Measures the time from HTTP in to change out at 500 deliveries a second.
async fn latency(exe: &Path) {
    let template = Template::recorded();
    // Every delivery changes something: an issue's assignees alternate.
    let requests = (0..5_000).map(|n| template.request(n % 500 + 1, n / 500 * 3)).collect();
    let latencies = told::latencies(exe, requests, CONNECTIONS, 500.0).await;
    row("HTTP in to change out at 500/s: p50", millis(load::percentile(&latencies, 50.0)), "5 ms");
    row("HTTP in to change out at 500/s: p99", millis(load::percentile(&latencies, 99.0)), "25 ms");
}

/// Measures how fast one worker drains a backlog, beside consumers that only ack.
async fn drain(exe: &Path) {
    let nats = Nats::start().await;
    let js = jetstream::new(nats.client().await);
    Events::recorded(exe).await.fill(&nats, BACKLOG, ISSUES, Change::EveryThird).await;
    let bare = reference::ack_only(&js, BACKLOG).await;

    let started = Instant::now();
    let worker = worker(exe, &nats);
    worker.line_with("operator listens").await;
    let pause = backlog::drained(&js).await;
    let kept = BACKLOG as f64 / started.elapsed().as_secs_f64();
    row("backlog of 200,000: 64 consumers that only ack", rate(bare), "");
    row("backlog of 200,000: one worker", rate(kept), "");
    row("  ratio", format!("{:.2}", kept / bare), "0.50");
    row("  longest pause of a partition", millis(pause), "1000 ms");
    row("  memory of the worker afterwards", memory(&worker), "");
    row("  changes told", bus::count(&js, names::CHANGES).await, "");
}

/// Measures idle memory, and the time to the first 200 on existing data.
async fn idle(exe: &Path) {
    let nats = Nats::start().await;
    let data = tests::temp_dir();
    let template = Template::recorded();
    let mut first = ingest(exe, &nats, data.path());
    let worker = worker(exe, &nats);
    let address = first.address_in("ingest listens").await;
    let requests = (0..2_000).map(|n| template.request(n % ISSUES + 1, n / ISSUES)).collect();
    load::open_loop(address, requests, 8, 1000.0, |_, _| {}).await;
    let js = jetstream::new(nats.client().await);
    wait::until_equal("all of it to settle", Some(0), || bus::lag(&js)).await;
    row("memory at rest after 2,000 deliveries: ingest", memory(&first), "25 MB");
    row("memory at rest after 2,000 deliveries: worker", memory(&worker), "25 MB");
    first.signal("TERM");
    first.exited().await;

    let mut starts = Vec::new();
    for _ in 0..5 {
        let started = Instant::now();
        let mut again = ingest(exe, &nats, data.path());
        let address = again.address_in("ingest listens").await;
        let (_, status) = Connection::open(address).await.send(&mut template.request(1, 1)).await;
        assert_eq!(status, 200);
        starts.push(started.elapsed());
        again.kill().await;
    }
    starts.sort_unstable();
    row("start to first 200 on existing data, median of 5", millis(starts[2]), "300 ms");
}

/// Measures how long a 200 takes at 1,000 deliveries a second on kept connections and 100 on
/// connections of their own, with abusive senders that take all places that there are by default.
#[cfg(target_os = "linux")]
async fn abuse(exe: &Path) {
    tests::usage::allow_descriptors(8_000);
    let template = Template::recorded();
    let requests: Vec<_> =
        (0..20_000).map(|n| template.request(n % ISSUES + 1, n / ISSUES)).collect();
    let nats = Nats::start().await;
    let data = tests::temp_dir();
    let ingest = ingest_with(exe, &nats, data.path(), &[]);
    let address = ingest.address_in("ingest listens").await;
    let run = async || {
        let (kept, own) = (requests.clone(), requests[..2_000].to_vec());
        tokio::join!(
            load::open_loop(address, kept, CONNECTIONS, 1000.0, |_, _| {}),
            load::on_own_connections(address, own, 100.0),
        )
    };
    let quiet = run().await;
    let abuse = Abuse::start(address);
    let abused = run().await;
    let usage = Usage::of(ingest.pid());
    drop(abuse);
    for (what, quiet, abused) in [
        ("200 at 1000/s", quiet.0, abused.0),
        ("200 at 100/s, a connection each", quiet.1, abused.1),
    ] {
        let ratio = abused.percentile(99.0).as_secs_f64() / quiet.percentile(99.0).as_secs_f64();
        row(&format!("{what}, quiet: p99"), millis(quiet.percentile(99.0)), "");
        row(&format!("{what}, under abuse: p50"), millis(abused.percentile(50.0)), "");
        row(&format!("{what}, under abuse: p99"), millis(abused.percentile(99.0)), "");
        row("  longest", millis(abused.percentile(100.0)), "");
        row("  ratio of the p99", format!("{ratio:.2}"), "2.00");
    }
    row("  connections meanwhile", usage.descriptors, "");
    row("  most memory of ingest", megabytes(usage.peak_memory), "100 MB");
    wait::until("connections to be closed", || async {
        (Usage::of(ingest.pid()).descriptors < 200).then_some(())
    })
    .await;
    let usage = Usage::of(ingest.pid());
    row("  memory of ingest afterwards", megabytes(usage.memory), "");
    row("  descriptors of ingest afterwards", usage.descriptors, "");
}
