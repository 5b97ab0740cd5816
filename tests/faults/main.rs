//! `faults`: real senders, ingests, workers and servers, a seeded schedule of
//! faults, and an independent checker. See docs/PROOF.md.

mod check;
mod clock;
mod consumers;
mod disk;
mod drain;
mod fleet;
mod fsync;
mod history;
mod lanes;
mod plan;
mod proxy;
mod reader;
mod records;
mod run;
mod senders;
mod servers;
mod torn;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

use crate::run::{Order, Result};

/// Largest number of violations that are printed. The records hold all of them.
const TOLD: usize = 20;

/// Injects faults everywhere around the product, and checks that they had no effect.
#[derive(Parser)]
#[command(name = "faults")]
struct Args {
    /// Seed of deliveries and faults; a run is repeated with the seed that it printed
    #[arg(long)]
    seed: Option<u64>,
    /// Smallest number of deliveries
    #[arg(long, default_value_t = 100_000)]
    deliveries: usize,
    /// Number of faults
    #[arg(long, default_value_t = 500)]
    faults: usize,
    /// A run of some minutes: 12000 deliveries and 100 faults
    #[arg(long)]
    short: bool,
    /// Only this kind of broker; without it three fifths of a run use one server, the rest three
    #[arg(long, value_parser = ["single", "cluster"])]
    only: Option<String>,
    /// Keep the records even if nothing is wrong
    #[arg(long)]
    keep: bool,
    /// Only faults of this kind, as named in the table; several by repeating it
    #[arg(long, value_name = "KIND")]
    kind: Vec<String>,
    /// A control that must fail: journals do not keep what was published, so a lost tail stays lost
    #[arg(long)]
    forgetful: bool,
    /// Check the records of an earlier run, and nothing else
    #[arg(long, value_name = "DIR")]
    check: Option<PathBuf>,
}

fn main() -> ExitCode {
    // This program also runs as the services, so that the run tests what was just built.
    if let Some(ended) = tests::services::named_by_first_argument() {
        return ended;
    }
    let args = Args::parse();
    if let Some(dir) = &args.check {
        return check_again(dir);
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(all(&args))
}

fn check_again(dir: &std::path::Path) -> ExitCode {
    let violations = match records::Records::read(dir) {
        Ok(records) => check::violations(&records),
        Err(error) => vec![format!("cannot read the records: {error}")],
    };
    tell_violations(&violations)
}

async fn all(args: &Args) -> ExitCode {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("seed {seed}");
    let (deliveries, faults) =
        if args.short { (12_000, 100) } else { (args.deliveries, args.faults) };
    let (single, cluster) = match args.only.as_deref() {
        Some("single") => (5, 0),
        Some(_) => (0, 5),
        None => (3, 2),
    };
    let mut violations = Vec::new();
    for (share, cluster) in [(single, false), (cluster, true)] {
        if share == 0 {
            continue;
        }
        let (deliveries, faults) = (deliveries * share / 5, faults * share / 5);
        let (forgetful, kinds) = (args.forgetful, args.kind.clone());
        let order = Order { seed, deliveries, faults, cluster, forgetful, kinds };
        let result = run::run(&order, args.keep).await;
        tell(&order, &result);
        violations.extend(result.violations);
    }
    println!("seed {seed}: {} violations", violations.len());
    if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tell(order: &Order, result: &Result) {
    let servers = if order.cluster { "three servers" } else { "one server" };
    println!("\n{servers}, seed {}, {:.0} s", order.seed, result.took.as_secs_f64());
    let status = |status| result.tally.by_status.get(&status).copied().unwrap_or(0);
    let drained = result.drained;
    for (name, count) in [
        ("deliveries sent", result.tally.sent),
        ("  of them a body again", result.tally.again),
        ("  of them deletions", result.tally.deletions),
        ("answered 200", status(200)),
        ("answered 503", status(503)),
        ("not answered", status(0)),
        ("events", drained.events),
        ("events handed out again", drained.handed_out_again as usize),
        ("changes", drained.changes),
        ("faults", result.faults.values().sum()),
    ] {
        println!("{name:<32}{count:>8}");
    }
    for (kind, count) in &result.faults {
        println!("  {kind:<30}{count:>8}");
    }
    println!("{:<32}{:>8}", "violations", result.violations.len());
    if let Some(dir) = &result.kept_in {
        println!("records kept in {}", dir.display());
        let all = result.violations.join("\n");
        std::fs::write(dir.join("violations.txt"), all).expect("write the violations");
    }
    tell_violations(&result.violations);
}

fn tell_violations(violations: &[String]) -> ExitCode {
    for violation in violations.iter().take(TOLD) {
        println!("  {violation}");
    }
    if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
