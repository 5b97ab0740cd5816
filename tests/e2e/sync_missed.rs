//! What no webhook told is found by sweeps.

use contract::{
    issue_state::{self, Lifecycle},
    names,
};
use futures::TryStreamExt;
use tests::{
    bus,
    check::Key,
    gitea::SECRET,
    gitea_server::{GiteaServer, Kind, NewIssue},
    synced::{Synced, short},
    wait,
};

fn issues(gitea: &GiteaServer, repository: i64, count: usize, assignees: &[&str]) -> Vec<Key> {
    let issue = NewIssue { title: "t", assignees, ..NewIssue::default() };
    (0..count).map(|_| (repository, gitea.create_issue(repository, "maria", &issue))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_while_nothing_was_delivered_is_found_by_one_sweep() {
    let synced = Synced::start(&["--sync-interval-secs", "86400"]).await;
    let gitea = &synced.gitea;
    // In the past, so that no second is still open.
    gitea.advance(-60);
    let known = issues(gitea, synced.widgets, 15, &["bot"]);
    synced.equal(&known).await;
    gitea.set_delivering(false);
    gitea.advance(5);
    let new = issues(gitea, synced.widgets, 10, &["tom"]);
    for (repository, number) in &known[..5] {
        gitea.close(*repository, *number, "maria");
    }
    for (repository, number) in &known[5..10] {
        gitea.set_assignees(*repository, *number, &["li-wei"], "tom");
    }
    gitea.set_delivering(true);
    gitea.use_real_clock();
    // Ingest is there again.
    gitea.forget_requests();
    synced.tell_gap().await;
    let all = [&known[..], &new].concat();
    synced.equal(&all).await;
    let changes = synced.told(&all).await;
    let synced_ones = changes.iter().filter(|change| change.cause.synced.is_some());
    let mut told: Vec<String> = synced_ones.map(short).collect();
    told.sort();
    told.dedup();
    let expected = [
        "missed: assigned +li-wei by tom",
        "missed: assigned +tom by maria",
        "missed: closed by maria",
        "missed: unassigned -bot by tom",
    ];
    assert_eq!(told, expected);
    assert_eq!(gitea.requests_of(Kind::Search), 1);
    // One question for each that differed, and one more where the broker did not answer in time.
    let worker = synced.worker.as_ref().expect("a worker");
    let failed = worker.total("coordinator_sync_answers_total", "failed").await as u64;
    let asked = gitea.requests_of(Kind::Issue);
    assert!((20..=20 + failed).contains(&asked), "{asked} requests, {failed} failures");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_that_finds_nothing_is_one_request() {
    let synced = Synced::start(&["--sync-interval-secs", "1"]).await;
    let gitea = &synced.gitea;
    gitea.advance(-3600);
    let known = issues(gitea, synced.widgets, 3, &["bot"]);
    gitea.use_real_clock();
    synced.equal(&known).await;
    let mut revision = synced.swept_after(0).await;
    let before = gitea.requests();
    for _ in 0..2 {
        revision = synced.swept_after(revision).await;
    }
    let searches = gitea.last_requests().into_iter().filter(|seen| seen.kind == Kind::Search);
    let others = gitea.requests() - searches.count() as u64;
    // The last one may be complete before its end is read.
    assert!((2..=3).contains(&(gitea.requests() - before)), "{:?}", gitea.last_requests());
    assert!(others <= 1, "the repair lists the repository: {:?}", gitea.last_requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_sweep_remembers_what_nobody_is_assigned_to_and_tells_the_rest() {
    let mut synced = Synced::start_without_worker(&[]).await;
    let gitea = &synced.gitea;
    gitea.set_delivering(false);
    let now = gitea.now();
    // Closed for longer than the history reaches back.
    gitea.set_now(now - 60 * 24 * 3600);
    let old = issues(gitea, synced.widgets, 2, &["bot"]);
    gitea.close(old[0].0, old[0].1, "maria");
    let open = issues(gitea, synced.widgets, 60, &[]);
    gitea.set_now(now - 3600);
    let recent = issues(gitea, synced.widgets, 60, &[]);
    gitea.close(recent[0].0, recent[0].1, "maria");
    let assigned = issues(gitea, synced.widgets, 3, &["tom"]);
    gitea.use_real_clock();
    gitea.set_delivering(true);
    synced.start_worker().await;
    let seen = [&old[1..], &open, &recent, &assigned].concat();
    synced.equal(&seen).await;
    assert_eq!(synced.known(old[0]).await, None);
    let told: Vec<String> = bus::changes(&synced.js).await.iter().map(short).collect();
    let count = |text: &str| told.iter().filter(|told| *told == text).count();
    assert_eq!(count("missed: assigned +bot by maria"), 1, "{told:?}");
    assert_eq!(count("missed: assigned +tom by maria"), 3, "{told:?}");
    assert_eq!(told.len(), 4, "{told:?}");
    // What is remembered is known later on.
    let (repository, number) = recent[0];
    assert_eq!(synced.known(recent[0]).await, Some((Vec::new(), Lifecycle::Closed, false)));
    synced.gitea.reopen(repository, number, "maria");
    synced.equal(&[recent[0]]).await;
    let last = bus::changes(&synced.js).await.pop().expect("a change");
    assert_eq!((short(&last).as_str(), last.first_seen), ("reopened", false));
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_during_a_sweep_are_found_by_it_or_by_the_next() {
    let synced = Synced::start(&["--sync-interval-secs", "1"]).await;
    let gitea = &synced.gitea;
    gitea.set_delivering(false);
    let all = issues(gitea, synced.widgets, 120, &["bot"]);
    for round in 0..4 {
        let (at, _) = synced.sweep().await.expect("a sweep");
        for (repository, number) in all.iter().skip(round).step_by(3) {
            let login = ["tom", "li-wei"][round % 2];
            gitea.set_assignees(*repository, *number, &[login], "maria");
        }
        wait::until("another step of a sweep", || async {
            synced.sweep().await.filter(|(next, _)| *next > at)
        })
        .await;
    }
    gitea.deliver_to(&tests::synced::webhook(&synced.ingest), SECRET);
    synced.equal(&all).await;
    synced.told(&all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_cannot_be_read_keeps_the_sweep_from_no_other() {
    let synced = Synced::start(&["--sync-interval-secs", "1"]).await;
    let gitea = &synced.gitea;
    gitea.advance(-60);
    let known = issues(gitea, synced.widgets, 2, &["bot"]);
    synced.equal(&known).await;
    let states = synced.js.get_key_value(names::ISSUE_STATE).await.expect("the bucket");
    let key = issue_state::key(known[0].0, known[0].1);
    states.put(key, "{\"state\":".into()).await.expect("written");
    gitea.set_delivering(false);
    gitea.use_real_clock();
    for (repository, number) in &known {
        gitea.set_assignees(*repository, *number, &["tom"], "maria");
    }
    synced.equal(&known[1..]).await;
    // One may be under way that began before.
    let mut revision = synced.sweep().await.expect("a sweep").0;
    for _ in 0..2 {
        revision = synced.swept_after(revision).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_gitea_has_shown_is_noted_again_in_another_bucket() {
    let synced = Synced::start(&["--sync-interval-secs", "1"]).await;
    let gitea = &synced.gitea;
    gitea.advance(-60);
    let known = issues(gitea, synced.widgets, 1, &["bot"]);
    gitea.use_real_clock();
    synced.equal(&known).await;
    let shown = async || {
        let Ok(bucket) = synced.js.get_key_value(names::SYNC).await else { return None };
        let keys: Vec<String> =
            bucket.keys().await.expect("keys").try_collect().await.expect("keys");
        keys.iter().any(|key| key.starts_with("shown.")).then_some(())
    };
    wait::until("a note", shown).await;
    synced.js.delete_key_value(names::SYNC).await.expect("deleted");
    wait::until("a note", shown).await;
}
