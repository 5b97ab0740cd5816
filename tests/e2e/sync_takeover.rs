//! Another worker goes on where one that asked Gitea died or stood still.

use std::{path::Path, time::Duration};

use tests::{
    check::Key,
    gitea_server::{Fault, GiteaServer, Kind, Many},
    process::Process,
    synced::{Synced, short},
    usage::Usage,
    wait,
};

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");
const DAY: i64 = 24 * 3600;

/// Fills Gitea with open issues of the last 20 days, `bot` assigned to every so many. Returns all.
fn fill(
    gitea: &GiteaServer,
    repositories: usize,
    issues: usize,
    assigned_every: usize,
) -> Vec<Key> {
    let made = gitea.create_many(&Many {
        owner: "acme",
        repositories,
        issues,
        author: "maria",
        assigned: Some(("bot", assigned_every)),
        closed_every: 0,
        first: gitea.now() - 20 * DAY,
        apart: 19 * DAY / issues as i64,
        body_bytes: 500,
    });
    (0..issues).map(|n| (made[n % made.len()], (n / made.len()) as u64 + 1)).collect()
}

/// Waits until the sweep is `steps` further.
async fn steps(synced: &Synced, steps: u64) {
    let searches = synced.gitea.requests_of(Kind::Search);
    wait::until("steps of the sweep", || async {
        let (_, is_under_way) = synced.sweep().await.unwrap_or_default();
        let done = synced.gitea.requests_of(Kind::Search) - searches;
        (done >= steps && is_under_way).then_some(())
    })
    .await;
}

async fn asks(worker: &Process) {
    worker.line_with("this worker asks Gitea now").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_goes_on_where_a_worker_died_or_stood_still() {
    let synced = Synced::start_without_worker(&[]).await;
    let all = fill(&synced.gitea, 20, 1_000, 50);
    let exe = Path::new(EXE);
    synced.gitea.fail(Fault::Slow(Duration::from_millis(200)), "/issues/search");
    let mut first = synced.worker_process(exe);
    asks(&first).await;
    let second = synced.worker_process(exe);
    steps(&synced, 5).await;
    first.kill().await;
    asks(&second).await;
    steps(&synced, 5).await;
    second.signal("STOP");
    let third = synced.worker_process(exe);
    asks(&third).await;
    steps(&synced, 5).await;
    second.signal("CONT");
    second.line_with("so this worker asks Gitea no more").await;
    synced.gitea.repair();
    synced.swept_after(0).await;
    synced.equal(&all).await;
    let told: Vec<String> = synced.told(&all).await.iter().map(short).collect();
    assert_eq!(told, vec!["missed: assigned +bot by maria"; 20]);
    // A sweep of all of it makes 30 requests, and each take-over repeats one window or two.
    let searches = synced.gitea.requests_of(Kind::Search);
    assert!(searches <= 50, "{searches} requests");
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn the_first_sweep_of_many_issues_is_bounded_and_an_idle_one_is_one_request() {
    let issues = 1_500;
    let synced = Synced::start_without_worker(&["--sync-interval-secs", "1"]).await;
    let all = fill(&synced.gitea, issues / 30, issues, 30);
    let worker = synced.worker_process(Path::new(EXE));
    worker.line_with("operator listens").await;
    let before = Usage::of(worker.pid()).memory;
    let mut revision = synced.swept_after(0).await;
    let searches = synced.gitea.requests_of(Kind::Search);
    assert!(searches <= 3 * issues as u64 / 50 + 60, "{searches} requests");
    synced.equal(&all).await;
    let more = Usage::of(worker.pid()).peak_memory.saturating_sub(before);
    assert!(more < 50 << 20, "{more} bytes more than {before}");
    let mut told: Vec<String> = synced.told(&all).await.iter().map(short).collect();
    assert_eq!(told.len(), issues / 30);
    told.dedup();
    assert_eq!(told, ["missed: assigned +bot by maria"]);

    revision = synced.swept_after(revision).await;
    synced.gitea.forget_requests();
    for _ in 0..2 {
        revision = synced.swept_after(revision).await;
    }
    // The last one may be complete before its end is read.
    let searches = synced.gitea.requests_of(Kind::Search);
    assert!((2..=3).contains(&searches), "{:?}", synced.gitea.last_requests());
    assert_eq!(synced.gitea.requests(), searches, "{:?}", synced.gitea.last_requests());
}
