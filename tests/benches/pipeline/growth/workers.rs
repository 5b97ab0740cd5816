//! Gain and cost of more workers, and how long events wait when a worker is replaced.

use std::{path::Path, time::Duration};

use async_nats::jetstream;
use tests::{nats::Nats, process::Process, services::worker_with, usage::Usage};

use super::{
    drain::Drain,
    table::{Table, count, seconds},
};
use crate::{
    backlog::{self, Change, Events},
    figures::megabytes,
};

const EVENTS: u64 = 100_000;
const ISSUES: u64 = 2_000;
/// Lower than the default of 30: messages that a killed worker had in hand wait for it.
const ACK_WAIT: [&str; 2] = ["--ack-wait-secs", "5"];

/// Measures the rate at which workers drain one backlog together, by their number.
pub async fn curve(exe: &Path) {
    let events = Events::recorded(exe).await;
    let table = Table::start(
        "A backlog of 100,000 events of 2,000 issues; `ACK_WAIT_SECS=5`.",
        &[
            "workers",
            "events/s",
            "state reads an event",
            "processor time of an event: workers",
            "nats-server",
            "memory of the largest worker",
            "nats-server",
            "longest pause of a partition while one is stopped and replaced",
            "while one is killed and replaced",
        ],
    );
    for workers in [1, 2, 4, 8] {
        let nats = Nats::start().await;
        events.fill(&nats, EVENTS, ISSUES, Change::EveryThird).await;
        let (drain, filled) = (Drain::start(&nats).await, Usage::of(nats.pid()).cpu);
        let mut running: Vec<_> =
            (0..workers).map(|_| worker_with(exe, &nats, &ACK_WAIT)).collect();
        let drained = drain.finish(EVENTS).await;
        let of_event =
            |time: Duration| format!("{:.0} µs", time.as_secs_f64() * 1e6 / EVENTS as f64);
        let workers_time = running.iter().map(|worker| Usage::of(worker.pid()).cpu).sum();
        let server_time = Usage::of(nats.pid()).cpu - filled;
        let peaks = running.iter().map(|worker| Usage::of(worker.pid()).peak_memory);
        let largest = peaks.max().unwrap_or(0);
        let server = Usage::of(nats.pid()).memory;
        let stopped = pause(exe, &nats, &events, &mut running, "TERM").await;
        let killed = pause(exe, &nats, &events, &mut running, "KILL").await;
        table.row(&[
            workers.to_string(),
            count(drained.rate as u64),
            format!("{:.2}", drained.reads as f64 / EVENTS as f64),
            of_event(workers_time),
            of_event(server_time),
            megabytes(largest),
            megabytes(server),
            seconds(stopped),
            seconds(killed),
        ]);
    }
}

/// The longest pause of a partition while one worker is ended and another started. During this
/// time events come faster than they are handled.
async fn pause(
    exe: &Path,
    nats: &Nats,
    events: &Events,
    running: &mut Vec<Process>,
    signal: &str,
) -> Duration {
    let js = jetstream::new(nats.client().await);
    let replace = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut ended = running.remove(0);
        ended.signal(signal);
        ended.exited().await;
        running.push(worker_with(exe, nats, &ACK_WAIT));
    };
    let watch = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        backlog::drained(&js).await
    };
    let fill = events.fill(nats, EVENTS, ISSUES, Change::EveryThird);
    tokio::join!(watch, replace, fill).0
}
