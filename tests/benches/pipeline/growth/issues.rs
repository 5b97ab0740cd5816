//! The cost of more issues for a worker: each has a state to be read, remembered and written.

use std::path::Path;

use async_nats::jetstream;
use contract::names;
use tests::{nats::Nats, services::worker, usage::Usage};

use super::{
    drain::Drain,
    table::{Table, count},
};
use crate::{
    backlog::{Change, Events},
    figures::megabytes,
};

/// Number of issues, and of the events that are spread over them. Few issues are slow, so they get
/// fewer events.
const ROWS: [(u64, u64); 6] = [
    (1, 10_000),
    (10, 50_000),
    (100, 100_000),
    (1_000, 100_000),
    (10_000, 100_000),
    (100_000, 300_000),
];

/// Measures the rate of one worker, by the number of issues.
pub async fn curve(exe: &Path) {
    let events = Events::recorded(exe).await;
    let table = Table::start(
        "A backlog over so many issues, one worker; every third event of an issue is a change.",
        &["issues", "events", "events/s", "memory of the worker, most", "bucket of issue states"],
    );
    for (issues, number) in ROWS {
        row(exe, &table, &events, (issues, number), Change::EveryThird).await;
    }
    row(exe, &table, &events, (1, 10_000), Change::Each).await;
}

async fn row(
    exe: &Path,
    table: &Table,
    events: &Events,
    (issues, number): (u64, u64),
    change: Change,
) {
    let nats = Nats::start().await;
    events.fill(&nats, number, issues, change).await;
    let drain = Drain::start(&nats).await;
    let worker = worker(exe, &nats);
    let rate = drain.finish(number).await.rate;
    let js = jetstream::new(nats.client().await);
    let bucket = js.get_stream(format!("KV_{}", names::ISSUE_STATE)).await.expect("the bucket");
    let each = if matches!(change, Change::Each) { ", each event a change" } else { "" };
    table.row(&[
        format!("{}{each}", count(issues)),
        count(number),
        count(rate as u64),
        megabytes(Usage::of(worker.pid()).peak_memory),
        megabytes(bucket.cached_info().state.bytes),
    ]);
}
