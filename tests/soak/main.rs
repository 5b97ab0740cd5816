//! `soak`: steady mixed load through ingest, nats-server and two workers for a
//! given time. Reports whether anything has grown. See docs/PERFORMANCE.md.

mod reader;
mod traffic;
mod watch;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use async_nats::jetstream;
use clap::Parser;
use contract::names;
use tests::{
    nats::Nats,
    services::{self, ingest_with, worker_with},
};

use crate::{
    reader::Reader,
    traffic::{Sent, Traffic},
    watch::{Source, Watch},
};

/// Short limits, so that what is kept for a while reaches its full size early.
const MINUTE: [&str; 6] =
    ["--dedup-window-secs", "60", "--stream-max-age-secs", "600", "--span-store-bytes", "4194304"];

/// Sends deliveries at a steady pace, and reports whether memory, threads,
/// descriptors or the journal grew, and whether each delivery led to what it should.
#[derive(Parser)]
#[command(name = "soak")]
struct Args {
    /// Duration in seconds
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// Deliveries a second
    #[arg(long, default_value_t = 300)]
    rate: u64,
    /// Seed of the random deliveries
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writes each sample to this file, as comma-separated values
    #[arg(long, value_name = "FILE")]
    samples: Option<PathBuf>,
}

fn main() -> ExitCode {
    if let Some(ended) = services::named_by_first_argument() {
        return ended;
    }
    let args = Args::parse();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(soak(&args))
}

async fn soak(args: &Args) -> ExitCode {
    let exe = std::env::current_exe().expect("this program's file");
    let nats = Nats::start().await;
    let data = tests::temp_dir();
    let kept = [&MINUTE[..], &["--journal-retention-secs", "57"]].concat();
    let ingest = ingest_with(&exe, &nats, data.path(), &kept);
    let workers = [(); 2].map(|()| worker_with(&exe, &nats, &MINUTE));
    let address = ingest.address_in("ingest listens").await;
    let operator = ingest.address_in("operator listens").await;
    let js = jetstream::new(nats.client().await);
    let mut sources = vec![
        Source::judged("ingest", ingest.pid(), operator).with_file(data.path().join("journal.db")),
    ];
    for (worker, name) in workers.iter().zip(["worker 1", "worker 2"]) {
        let address = worker.address_in("operator listens").await;
        sources.push(Source::judged(name, worker.pid(), address));
    }
    // nats-server remembers each issue's subject while the issue has a state, which is never
    // removed.
    sources.push(Source::told("nats-server", nats.pid()));
    let reader = Reader::start(&js).await;

    let duration = Duration::from_secs(args.seconds);
    let watch = Watch::start(sources, duration, args.samples.clone());
    let sent = Traffic { address, rate: args.rate, seed: args.seed, duration }.run().await;
    let grown = watch.finish().await;
    let wrong = wrong(&js, &reader, &sent).await;
    for line in grown.iter().chain(&wrong) {
        println!("{line}");
    }
    if grown.is_empty() && wrong.is_empty() {
        println!("nothing grew, and each delivery led to what it should");
        return ExitCode::SUCCESS;
    }
    ExitCode::FAILURE
}

/// What is on the broker and should not be there, or is missing.
async fn wrong(js: &jetstream::Context, reader: &Reader, sent: &Sent) -> Vec<String> {
    // Counted by sequences, since the oldest messages are no longer there.
    let stored = async |stream: &str| match js.get_stream(stream).await {
        Ok(stream) => stream.cached_info().state.last_sequence,
        Err(_) => 0,
    };
    let found = async || {
        (
            stored(names::EVENTS).await,
            tests::bus::lag(js).await,
            stored(names::CHANGES).await,
            reader.read(),
            stored(names::DEAD_LETTERS).await,
        )
    };
    let expected = (sent.events, Some(0), sent.changes, sent.changes, 0);
    let started = std::time::Instant::now();
    let mut last = found().await;
    while last != expected && started.elapsed() < tests::wait::DEADLINE {
        tokio::time::sleep(Duration::from_millis(200)).await;
        last = found().await;
    }
    println!("\n| | expected | found |\n|---|---|---|");
    let rows = [
        ("events", expected.0, last.0),
        ("events that wait", 0, last.1.unwrap_or(u64::MAX)),
        ("changes", expected.2, last.2),
        ("changes that the reader got", expected.3, last.3),
        ("dead letters", 0, last.4),
    ];
    for (what, expected, found) in rows {
        println!("| {what} | {expected} | {found} |");
    }
    println!(
        "\n{} deliveries of {} issues: {} accepted, {} of them repeats, {} ignored, {} refused",
        sent.deliveries, sent.issues, sent.accepted, sent.duplicates, sent.ignored, sent.refused
    );
    let differ = rows.iter().filter(|(_, expected, found)| expected != found);
    let mut wrong: Vec<_> = differ
        .map(|(what, expected, found)| format!("WRONG: {what}: expected {expected}, found {found}"))
        .collect();
    wrong.extend(sent.surprises.iter().map(|surprise| format!("WRONG: {surprise}")));
    wrong
}
