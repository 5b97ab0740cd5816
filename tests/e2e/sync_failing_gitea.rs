//! A Gitea that is away, slow or broken keeps no delivery and no change waiting.

use std::{collections::BTreeMap, path::Path, time::Instant};

use contract::names;
use serde_json::Value;
use tests::{
    bus,
    check::Key,
    gitea_server::{Fault, NewIssue, Order},
    process::Process,
    synced::Synced,
    system::total,
    wait,
};

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");
const FLAGS: [&str; 8] = [
    "--sync-interval-secs",
    "1",
    "--repair-interval-secs",
    "1",
    "--gone-after-secs",
    "1",
    "--gitea-timeout-secs",
    "1",
];

/// Lines at `WARN` or above, by message and error.
fn warnings(worker: &Process) -> BTreeMap<String, usize> {
    let mut lines = BTreeMap::new();
    for line in worker.output().lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        if ["WARN", "ERROR"].iter().any(|level| line["level"] == *level) {
            *lines.entry(format!("{} {}", line["message"], line["error"])).or_default() += 1;
        }
    }
    lines
}

/// Makes a change and waits until it is told.
async fn change(synced: &Synced, (repository, number): Key) {
    let told = bus::count(&synced.js, names::CHANGES).await;
    match synced.gitea.state_of(repository, number) {
        Some((_, true)) => synced.gitea.close(repository, number, "maria"),
        _ => synced.gitea.reopen(repository, number, "maria"),
    }
    synced.gitea.advance(1);
    wait::until("the change", || async {
        (bus::count(&synced.js, names::CHANGES).await > told).then_some(())
    })
    .await;
}

async fn goes_on_with(fault: Fault) {
    let synced = Synced::start_without_worker(&FLAGS).await;
    let worker = synced.worker_process(Path::new(EXE));
    synced.swept_after(0).await;
    let gitea = &synced.gitea;
    let new =
        || (synced.widgets, gitea.create_issue(synced.widgets, "maria", &NewIssue::default()));
    gitea.advance(-1000);
    let doubtful: Vec<Key> = (0..20).map(|_| new()).collect();
    let clear = new();
    synced.equal(&doubtful).await;
    gitea.advance(1);
    let began = Instant::now();
    for _ in 0..10 {
        change(&synced, clear).await;
    }
    let usual = began.elapsed();

    let broken = Instant::now();
    gitea.fail(fault, "/api/");
    gitea.hold_deliveries();
    for (repository, number) in &doubtful {
        gitea.set_assignees(*repository, *number, &["bot"], "maria");
        gitea.set_assignees(*repository, *number, &["tom"], "maria");
    }
    gitea.release_deliveries(Order::Reversed);
    gitea.all_delivered().await;
    let operator = worker.address_in("operator listens").await;
    let failed = "{outcome=\"failed\"";
    wait::until("questions without an answer", || async {
        (total(operator, "coordinator_sync_answers_total", failed).await >= 20.0).then_some(())
    })
    .await;
    let began = Instant::now();
    for _ in 0..10 {
        change(&synced, clear).await;
    }
    let now = began.elapsed();
    assert!(now < usual * 3 + std::time::Duration::from_secs(1), "{now:?} instead of {usual:?}");
    let most = 2 + broken.elapsed().as_secs() as usize / 10;
    let lines = warnings(&worker);
    assert!(!lines.is_empty() && lines.values().all(|count| *count <= most), "{lines:#?}");
    assert!(lines.len() <= 8, "{lines:#?}");
    gitea.use_real_clock();
    gitea.repair();
    let all = [&doubtful[..], &[clear]].concat();
    synced.equal(&all).await;
    synced.told(&all).await;
    assert_eq!(bus::count(&synced.js, names::DEAD_LETTERS).await, 0);
    assert_eq!(total(operator, "coordinator_redeliveries_total", "").await, 0.0);
    assert_eq!(total(operator, "coordinator_retries_total", "").await, 0.0);
    assert!(!worker.output().contains(synced.token()), "the token is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_and_changes_go_on_while_gitea_fails() {
    // At once, since they mostly wait.
    let faults = [Fault::Closed, Fault::Hang, Fault::Garbage, Fault::Unauthorized];
    let tasks = faults.map(|fault| (fault.clone(), tokio::spawn(goes_on_with(fault))));
    for (fault, task) in tasks {
        task.await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_that_cannot_be_had_keeps_no_doubt_waiting() {
    let synced = Synced::start(&[]).await;
    let gitea = &synced.gitea;
    gitea.advance(-10);
    let number = gitea.create_issue(synced.widgets, "maria", &NewIssue::default());
    gitea.fail(Fault::ServerError, "/timeline");
    gitea.hold_deliveries();
    gitea.set_assignees(synced.widgets, number, &["bot"], "maria");
    gitea.set_assignees(synced.widgets, number, &["tom"], "maria");
    gitea.use_real_clock();
    gitea.release_deliveries(Order::Reversed);
    synced.equal(&[(synced.widgets, number)]).await;
    synced.told(&[(synced.widgets, number)]).await;
}
