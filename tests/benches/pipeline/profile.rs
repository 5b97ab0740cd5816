//! Where the time of a delivery goes: samples of `perf`, folded into steps.

use std::{
    collections::HashMap,
    path::Path,
    process::{Child, Command, Stdio},
};

use tests::process::signal;

use crate::cpu::Pipeline;

const DELIVERIES: u64 = 60_000;
/// Samples a second of each processor's time.
const FREQUENCY: &str = "199";

/// A step, and the parts of functions' names by which it is known. A sample
/// belongs to the innermost function on its stack that has one of them, and to
/// [`ELSE`] if none has.
type Steps = &'static [(&'static str, &'static [&'static str])];

/// Waiting, waking, and functions that belong to no step.
const ELSE: &str = "runtime, other";

const INGEST: Steps = &[
    ("signature and digest", &["sha2::", "hmac::", "ingest::verify"]),
    (
        "log line, spans, counts",
        &["tracing", "json_subscriber", "opentelemetry", "service::telemetry"],
    ),
    ("journal", &["ingest::journal", "lz4_flex", "rusqlite", "sqlite3"]),
    ("publish", &["ingest::relay", "contract::envelope", "async_nats", "contract::subject"]),
    ("parse", &["ingest::parse"]),
    ("HTTP", &["hyper", "axum", "http::", "httparse", "ingest::", "tower"]),
];

const WORKER: Steps = &[
    (
        "log line, spans, counts",
        &["tracing", "json_subscriber", "opentelemetry", "service::telemetry"],
    ),
    ("state", &["worker::issue_state", "async_nats::jetstream::kv"]),
    ("handler", &["worker::handlers", "worker::dispatch", "worker::diff"]),
    ("parse", &["contract::envelope::read"]),
    ("consume", &["worker::"]),
    ("NATS client", &["async_nats"]),
];

const NATS: Steps = &[
    ("consumers' state files", &["server.(*consumerFileStore)", "server.writeAtomically"]),
    ("consumers", &["server.(*consumer)"]),
    ("streams", &["server.(*stream)", "server.(*fileStore)", "server.(*msgBlock)"]),
    ("connections", &["server.(*client)"]),
];

/// Profiles the pipeline while 64 connections are busy, and prints a row for each step.
pub async fn run(exe: &Path) {
    let pipeline = Pipeline::start(exe, true).await;
    let processes = pipeline.processes();
    let samples = tests::temp_dir();
    let pids: Vec<u32> = processes.iter().filter_map(|(_, pid)| *pid).collect();
    let files = [("dwarf", &pids[..2]), ("fp", &pids[2..])].map(|(stacks, pids)| {
        let file = samples.path().join(stacks);
        (record(pids, stacks, &file), file)
    });
    let before = pipeline.costs();
    pipeline.through(DELIVERIES, f64::INFINITY).await;
    let costs = pipeline.costs().of_one(before, DELIVERIES);
    let mut script = String::new();
    for (mut perf, file) in files {
        signal(perf.id(), "INT");
        perf.wait().expect("wait for perf");
        script += &text(&file);
    }
    drop(pipeline);
    println!("| process | step | share | time of a delivery |");
    println!("|---|---|---|---|");
    for (((name, _), pid), (steps, cost)) in
        processes.iter().zip(pids).zip([INGEST, WORKER, NATS].iter().zip(costs))
    {
        let folded = fold(&script, pid, steps);
        let all: usize = folded.iter().map(|(_, count)| count).sum();
        for (step, count) in folded {
            let share = count as f64 / all.max(1) as f64;
            println!("| {name} | {step} | {:.0}% | {:.0} µs |", share * 100.0, share * cost);
        }
    }
}

/// Starts perf on these processes. Go keeps frame pointers, by which perf walks the stacks. Rust's
/// release builds do not.
fn record(pids: &[u32], stacks: &str, file: &Path) -> Child {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    Command::new("perf")
        .args(["record", "--quiet", "--event", "cpu-clock", "--freq", FREQUENCY])
        .args(["--call-graph", stacks, "--pid", &pids.join(","), "--output"])
        .arg(file)
        .stdin(Stdio::null())
        .spawn()
        .expect("perf, to be had by `apt-get install linux-perf`")
}

/// The samples as text: a line with the process, then its stack from the innermost function on.
fn text(file: &Path) -> String {
    let output = Command::new("perf")
        .args(["script", "--no-inline", "--fields", "pid,ip,sym", "--input"])
        .arg(file)
        .stderr(Stdio::null())
        .output()
        .expect("run perf");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// How many samples of process `pid` belong to each step, most first.
fn fold(script: &str, pid: u32, steps: Steps) -> Vec<(&'static str, usize)> {
    let mut folded = HashMap::new();
    for sample in script.split("\n\n") {
        let mut lines = sample.trim_start_matches('\n').lines();
        let of = lines.next().and_then(|line| line.trim().parse::<u32>().ok());
        if of == Some(pid) {
            *folded
                .entry(lines.find_map(|frame| step(frame, steps)).unwrap_or(ELSE))
                .or_default() += 1;
        }
    }
    let mut folded: Vec<_> = folded.into_iter().collect();
    folded.sort_unstable_by_key(|(_, count)| std::cmp::Reverse(*count));
    folded
}

fn step(frame: &str, steps: Steps) -> Option<&'static str> {
    // A future within a span is compiled into this function. The functions around it name the
    // step better.
    if frame.contains("Instrumented") {
        return None;
    }
    let known = |(_, names): &&(_, &[&str])| names.iter().any(|name| frame.contains(name));
    steps.iter().find(known).map(|(step, _)| *step)
}
