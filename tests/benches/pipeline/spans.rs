//! What the spans that a process keeps cost the deliveries: ingest and worker with the span store
//! on and off, in turns.

use std::path::Path;

use crate::{
    cpu::Pipeline,
    figures::{median, millis, rate},
    load::Run,
};

const PAIRS: usize = 12;
const DELIVERIES: u64 = 20_000;
const OFF: [(&str, &str); 1] = [("SPAN_STORE_BYTES", "0")];

struct Turn {
    run: Run,
    /// Microseconds for one delivery, in ingest, worker and nats-server.
    cpu: [f64; 4],
}

/// Prints the accept rate and the processor time of a delivery, with and without the span store.
pub async fn run(exe: &Path) {
    println!("| span store | 200s a second | p99 | ingest | worker | nats-server | together |");
    println!("|---|---|---|---|---|---|---|");
    for with_worker in [false, true] {
        let (mut on, mut off) = (Vec::new(), Vec::new());
        for pair in 0..PAIRS {
            // What comes first alternates, since the machine may get slower or faster.
            for second in [false, true] {
                let is_on = (pair % 2 == 1) ^ second;
                let turn = turn(exe, is_on, with_worker).await;
                eprintln!("pair {pair}, on: {is_on}, {}, {:.0?}", rate(turn.run.rate()), turn.cpu);
                (if is_on { &mut on } else { &mut off }).push(turn);
            }
        }
        let worker = if with_worker { "" } else { ", no worker" };
        for (what, turns) in [("off", &off), ("on", &on)] {
            let cpu = |n: usize| median(turns.iter().map(|turn| turn.cpu[n]));
            println!(
                "| {what}{worker} | {} | {} | {:.1} µs | {:.1} µs | {:.1} µs | {:.1} µs |",
                rate(median(turns.iter().map(|turn| turn.run.rate()))),
                millis(median(turns.iter().map(|turn| turn.run.percentile(99.0)))),
                cpu(0),
                cpu(1),
                cpu(2),
                cpu(3),
            );
        }
        let ratios = off.iter().zip(&on).map(|(off, on)| on.run.rate() / off.run.rate());
        let ratio = median(ratios);
        println!("on beside off{worker}, median of {PAIRS} pairs: {ratio:.3}, goal 0.95");
    }
}

async fn turn(exe: &Path, is_on: bool, with_worker: bool) -> Turn {
    let more: &[_] = if is_on { &[] } else { &OFF };
    let pipeline = Pipeline::start_with(exe, with_worker, more).await;
    let before = pipeline.costs();
    let run = pipeline.through(DELIVERIES, f64::INFINITY).await;
    Turn { run, cpu: pipeline.costs().of_one(before, DELIVERIES) }
}
