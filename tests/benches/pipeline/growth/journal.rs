//! The cost of a growing journal for ingest: the broker is away, and comes back.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tests::{nats::Nats, services::ingest, system::total, usage::Usage};

use super::table::{Table, count, seconds};
use crate::{
    figures::{megabytes, millis},
    load::{self, Connection, Template},
};

const CONNECTIONS: usize = 64;
const ISSUES: u64 = 2_000;
/// How long deliveries are sent to a journal of each size.
const MEASURED: Duration = Duration::from_secs(3);

/// Measures how fast ingest accepts, starts and publishes, by the unpublished bytes.
pub async fn curve(exe: &Path) {
    let table = Table::start(
        "A journal of so many bytes that nobody has published yet. It grows on while it is measured.",
        &[
            "journal",
            "deliveries",
            "200s/s",
            "p99",
            "memory of ingest, most",
            "start to first 200",
            "memory after it",
            "publishing all of it",
            "deliveries/s",
            "memory of ingest, most",
        ],
    );
    for megabytes in [1, 10, 100, 1_000] {
        row(exe, &table, megabytes * 1_000_000).await;
    }
}

async fn row(exe: &Path, table: &Table, bytes: u64) {
    let template = Template::recorded();
    let requests = Arc::new((0..ISSUES).map(|n| template.request(n + 1, 0)).collect::<Vec<_>>());
    let mut nats = Nats::prepared("");
    let data = tests::temp_dir();
    let mut first = ingest(exe, &nats, data.path());
    let address = first.address_in("ingest listens").await;
    let operator = first.address_in("operator listens").await;

    let full = Arc::new(AtomicBool::new(false));
    let go_on = Arc::clone(&full);
    let go_on = move || !go_on.load(Ordering::Relaxed);
    let watch = async {
        while total(operator, "coordinator_journal_used_bytes", "").await < bytes as f64 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        full.store(true, Ordering::Relaxed);
    };
    let requests_again = Arc::clone(&requests);
    tokio::join!(load::closed_loop_while(address, requests_again, CONNECTIONS, go_on), watch);
    let used = total(operator, "coordinator_journal_used_bytes", "").await;
    let run = load::closed_loop(address, requests, CONNECTIONS, MEASURED).await;
    let while_filled = Usage::of(first.pid()).peak_memory;
    first.kill().await;

    let started = Instant::now();
    let again = ingest(exe, &nats, data.path());
    let address = again.address_in("ingest listens").await;
    let operator = again.address_in("operator listens").await;
    let (_, status) = Connection::open(address).await.send(&mut template.request(1, 1)).await;
    assert_eq!(status, 200);
    let start = started.elapsed();
    let after_start = Usage::of(again.pid()).memory;

    let depth = total(operator, "coordinator_journal_depth", "").await;
    nats.restart().await;
    let published = Instant::now();
    while total(operator, "coordinator_journal_depth", "").await > 0.0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let published = published.elapsed();
    table.row(&[
        megabytes(used as u64),
        count(depth as u64),
        count(run.rate() as u64),
        millis(run.percentile(99.0)),
        megabytes(while_filled),
        millis(start),
        megabytes(after_start),
        seconds(published),
        count((depth / published.as_secs_f64()) as u64),
        megabytes(Usage::of(again.pid()).peak_memory),
    ]);
}
