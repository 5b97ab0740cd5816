//! What is gone is told once, and nothing else is taken for gone.

use contract::{change::ChangeKind, event::SyncCause};
use service::question::Question;
use tests::{
    bus,
    check::Key,
    gitea_server::{Fault, GiteaServer, NewIssue},
    synced::{Synced, short},
    wait,
};

const FLAGS: [&str; 8] = [
    "--repair-interval-secs",
    "1",
    "--sync-interval-secs",
    "1",
    "--gone-after-secs",
    "1",
    "--gitea-timeout-secs",
    "1",
];

fn issues(gitea: &GiteaServer, repository: i64, count: usize, assignees: &[&str]) -> Vec<Key> {
    let issue = NewIssue { assignees, ..NewIssue::default() };
    (0..count).map(|_| (repository, gitea.create_issue(repository, "maria", &issue))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_issues_and_repositories_end_once() {
    let synced = Synced::start(&FLAGS).await;
    let gitea = &synced.gitea;
    gitea.advance(-60);
    let alone = gitea.add_repository("acme", "alone");
    let (mut all, idle) =
        (issues(gitea, synced.widgets, 5, &["bot"]), issues(gitea, alone, 1, &[]));
    let assigned = issues(gitea, alone, 2, &["tom"]);
    all.extend([&idle[..], &assigned].concat());
    gitea.use_real_clock();
    synced.equal(&all).await;
    gitea.set_delivering(false);
    gitea.delete_issue(all[0].0, all[0].1, "maria");
    gitea.delete_issue(all[1].0, all[1].1, "maria");
    gitea.delete_repository(alone);
    synced.equal(&all).await;
    let told: Vec<String> = synced.told(&all).await.iter().map(short).collect();
    let count = |text: &str| told.iter().filter(|told| *told == text).count();
    assert_eq!(count("gone: deleted"), 5, "{told:?}");
    assert_eq!(count("gone: unassigned -bot"), 2, "{told:?}");
    assert_eq!(count("gone: unassigned -tom"), 2, "{told:?}");
    // What is delivered late, or again, changes nothing.
    gitea.set_delivering(true);
    gitea.delete_issue(all[2].0, all[2].1, "maria");
    synced.equal(&all).await;
    synced.told(&all).await;
}

/// While requests for a path go wrong, issues that have to be asked about are not taken for gone.
/// `missing` says whether they look so.
async fn nothing_is_gone_while(fault: Fault, path: &'static str, missing: bool) {
    let count = if fault == Fault::Hang { 8 } else { 30 };
    let synced = Synced::start(&FLAGS).await;
    let gitea = &synced.gitea;
    gitea.advance(-60);
    let known = issues(gitea, synced.widgets, count, &["bot"]);
    let other = gitea.add_repository("acme", "other");
    let others = issues(gitea, other, 1, &["tom"]);
    synced.equal(&[&known[..], &others].concat()).await;
    gitea.set_delivering(false);
    for (repository, number) in &known {
        gitea.set_assignees(*repository, *number, &["tom"], "maria");
    }
    gitea.use_real_clock();
    gitea.fail(fault, path);
    // The repair cannot list what differs now, so its questions are raised here.
    for (repository_id, number) in known.iter().copied() {
        let question = Question {
            repository_id,
            owner: "acme".into(),
            repository: "widgets".into(),
            number,
            cause: SyncCause::Repair,
            raised_by: None,
            missing_since: None,
        };
        let message = serde_json::to_vec(&question).expect("JSON");
        let sent = synced.js.publish(question.subject(), message.into()).await.expect("sent");
        sent.await.expect("confirmed");
    }
    let worker = synced.worker.as_ref().expect("a worker");
    let answers = async |outcome| worker.total("coordinator_sync_answers_total", outcome).await;
    if missing {
        wait::until("first looks", || async {
            (answers("missing").await >= count as f64).then_some(())
        })
        .await;
    }
    wait::until("looks that prove nothing", || async {
        (answers("failed").await >= count as f64).then_some(())
    })
    .await;
    gitea.repair();
    gitea.set_delivering(true);
    synced.equal(&known).await;
    let changes = synced.told(&known).await;
    assert!(changes.iter().all(|change| change.kind != ChangeKind::Deleted));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_gone_while_gitea_does_not_show_it() {
    // At once, since they mostly wait.
    let cases = [
        (Fault::NotFound, "", true),
        // Of issues that it lists: of all, or of one repository.
        (Fault::NotFound, "/issues/", false),
        (Fault::NotFound, "/widgets/issues/", false),
        (Fault::ProxyNotFound, "", false),
        (Fault::ServerError, "", false),
        (Fault::Unauthorized, "", false),
        (Fault::Hang, "", false),
    ];
    let tasks = cases.map(|(fault, path, missing)| {
        let case = format!("{fault:?} {path}");
        (case, tokio::spawn(nothing_is_gone_while(fault, path, missing)))
    });
    for (case, task) in tasks {
        task.await.unwrap_or_else(|error| panic!("{case}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_for_gone_and_is_there_comes_back() {
    let synced = Synced::start(&FLAGS).await;
    let gitea = &synced.gitea;
    gitea.advance(-60);
    gitea.set_private(synced.widgets, true);
    let known = issues(gitea, synced.widgets, 1, &["bot"]);
    let other = gitea.add_repository("acme", "other");
    issues(gitea, other, 1, &["tom"]);
    synced.equal(&known).await;
    gitea.use_real_clock();
    // It was shown to the token once.
    let worker = synced.worker.as_ref().expect("a worker");
    wait::until("a repair", || async {
        (worker.total("coordinator_sync_answers_total", "same").await > 0.0).then_some(())
    })
    .await;
    // Nothing tells a token that lost its rights from a repository that was deleted.
    gitea.set_admin("maria", false);
    wait::until("the end of the issue", || async {
        bus::changes(&synced.js).await.into_iter().find(|c| c.kind == ChangeKind::Deleted)
    })
    .await;
    // It is there again, and nobody does anything.
    gitea.set_admin("maria", true);
    synced.equal(&known).await;
    let told: Vec<String> = synced.told(&known).await.iter().map(short).collect();
    assert!(told.last().expect("changes").ends_with("assigned +bot by maria"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_repository_of_the_former_name_without_issues_proves_nothing() {
    let mut synced = Synced::start_without_worker(&FLAGS).await;
    // It may not ask for a repository by its id.
    synced.use_token_of("maria", &["read:issue"]);
    synced.start_worker().await;
    let gitea = &synced.gitea;
    gitea.advance(-60);
    let known = issues(gitea, synced.widgets, 4, &["bot"]);
    let other = gitea.add_repository("acme", "other");
    let all = [&known[..], &issues(gitea, other, 1, &["tom"])].concat();
    gitea.use_real_clock();
    synced.equal(&all).await;
    gitea.set_delivering(false);
    gitea.rename_repository(synced.widgets, "elsewhere");
    gitea.add_repository("acme", "widgets");
    let worker = synced.worker.as_ref().expect("a worker");
    let answers = async |outcome| worker.total("coordinator_sync_answers_total", outcome).await;
    let before = answers("same").await;
    // Each of them, twice.
    wait::until("answers", || async { (answers("same").await >= before + 8.0).then_some(()) })
        .await;
    assert_eq!(answers("missing").await, 0.0);
    let told: Vec<String> = synced.told(&all).await.iter().map(short).collect();
    assert!(told.iter().all(|told| told.starts_with("assigned")), "{told:?}");
}
