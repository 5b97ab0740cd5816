//! The cost of a backlog in the stream for the worker that drains it.

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
    figures::{megabytes, millis},
};

const ISSUES: u64 = 2_000;

/// Measures the start and the rate of one worker, by the number of waiting events.
pub async fn curve(exe: &Path) {
    let events = Events::recorded(exe).await;
    let table = Table::start(
        "Events of 2,000 issues that wait in the stream when one worker starts.",
        &[
            "events",
            "in the stream",
            "start to first change",
            "events/s",
            "memory of the worker, most",
            "nats-server, before",
            "nats-server, most",
        ],
    );
    for number in [1_000, 10_000, 100_000, 1_000_000] {
        let nats = Nats::start().await;
        events.fill(&nats, number, ISSUES, Change::EveryThird).await;
        let before = Usage::of(nats.pid()).memory;
        let drain = Drain::start(&nats).await;
        let worker = worker(exe, &nats);
        let drained = drain.finish(number).await;
        let js = jetstream::new(nats.client().await);
        let stream = js.get_stream(names::EVENTS).await.expect("the stream");
        table.row(&[
            count(number),
            megabytes(stream.cached_info().state.bytes),
            millis(drained.start_to_first_change),
            count(drained.rate as u64),
            megabytes(Usage::of(worker.pid()).peak_memory),
            megabytes(before),
            megabytes(Usage::of(nats.pid()).peak_memory),
        ]);
    }
}
