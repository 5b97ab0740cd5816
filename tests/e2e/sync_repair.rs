//! What Gitea changes without a trace is found by the repair.

use contract::{change::Change, names};
use tests::{
    bus,
    check::Key,
    gitea_server::{GiteaServer, NewIssue},
    synced::{Synced, short},
    wait,
};

/// Rounds of the repair follow each other, and sweeps do not.
const FLAGS: [&str; 4] = ["--repair-interval-secs", "1", "--gone-after-secs", "1"];

fn issue(gitea: &GiteaServer, repository: i64, assignees: &[&str]) -> Key {
    let issue = NewIssue { assignees, ..NewIssue::default() };
    (repository, gitea.create_issue(repository, "maria", &issue))
}

async fn told_by_answers(synced: &Synced, issues: &[Key]) -> Vec<String> {
    let changes: Vec<Change> = synced.told(issues).await;
    changes.iter().filter(|change| change.cause.synced.is_some()).map(short).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collaborator_who_is_removed_and_a_user_who_is_deleted_are_unassigned() {
    let synced = Synced::start(&FLAGS).await;
    let gitea = &synced.gitea;
    gitea.advance(-60);
    // Enough in one repository that its list is asked for, and one that is asked for by itself.
    let alone = gitea.add_repository("acme", "alone");
    let mut issues: Vec<Key> =
        (0..4).map(|_| issue(gitea, synced.widgets, &["bot", "tom"])).collect();
    issues.push(issue(gitea, alone, &["bot"]));
    gitea.use_real_clock();
    // Somebody took bot off once, and put it back: that is not what happens now.
    gitea.unassign(issues[0].0, issues[0].1, "bot", "li-wei");
    gitea.assign(issues[0].0, issues[0].1, "bot", "maria");
    synced.equal(&issues).await;
    let before = told_by_answers(&synced, &issues).await.len();
    gitea.remove_collaborator(synced.widgets, "bot");
    synced.equal(&issues).await;
    let told = told_by_answers(&synced, &issues).await.split_off(before);
    assert_eq!(told, ["repair: unassigned -bot"; 4]);
    gitea.delete_user("tom");
    gitea.delete_user("bot");
    synced.equal(&issues).await;
    let mut told = told_by_answers(&synced, &issues).await.split_off(before + 4);
    told.sort();
    let mut expected = vec!["repair: unassigned -bot"];
    expected.extend(["repair: unassigned -tom"; 4]);
    assert_eq!(told, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_is_followed_by_its_id_also_when_another_has_its_old_name() {
    let synced = Synced::start(&FLAGS).await;
    let gitea = &synced.gitea;
    gitea.advance(-60);
    let names = ["renamed", "transferred", "replaced", "owned"];
    gitea.add_user("former");
    let repositories: Vec<i64> = names
        .iter()
        .map(|name| gitea.add_repository(if *name == "owned" { "former" } else { "acme" }, name))
        .collect();
    let issues: Vec<Key> = repositories.iter().map(|id| issue(gitea, *id, &["bot"])).collect();
    synced.equal(&issues).await;
    gitea.set_delivering(false);
    gitea.rename_repository(repositories[0], "new-name");
    gitea.transfer(repositories[1], "tom");
    gitea.rename_repository(repositories[2], "elsewhere");
    gitea.rename_user("former", "latter");
    let other = gitea.add_repository("acme", "replaced");
    issue(gitea, other, &["li-wei"]);
    for (repository, number) in &issues {
        gitea.set_assignees(*repository, *number, &["tom"], "maria");
    }
    gitea.use_real_clock();
    synced.equal(&issues).await;
    let changes = synced.told(&issues).await;
    let of_them: Vec<_> =
        changes.iter().filter(|change| repositories.contains(&change.repository.id)).collect();
    let mut names: Vec<String> =
        of_them[of_them.len() - 8..].iter().map(|change| change.repository.full_name()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names, ["acme/elsewhere", "acme/new-name", "latter/owned", "tom/transferred"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn issues_that_are_switched_off_are_not_gone() {
    let synced = Synced::start(&FLAGS).await;
    let gitea = &synced.gitea;
    gitea.advance(-60);
    let issues: Vec<Key> = (0..2).map(|_| issue(gitea, synced.widgets, &["bot"])).collect();
    let other = gitea.add_repository("acme", "other");
    issue(gitea, other, &[]);
    gitea.use_real_clock();
    synced.equal(&issues).await;
    let worker = synced.worker.as_ref().expect("a worker");
    let answers = async || worker.total("coordinator_sync_answers_total", "same").await;
    gitea.set_has_issues(synced.widgets, false);
    gitea.remove_collaborator(synced.widgets, "bot");
    let before = answers().await;
    // Both of them, twice.
    wait::until("answers while they are off", || async {
        (answers().await >= before + 4.0).then_some(())
    })
    .await;
    let told = bus::changes(&synced.js).await;
    assert!(told.iter().all(|change| short(change) == "assigned +bot"), "{told:?}");
    gitea.set_has_issues(synced.widgets, true);
    synced.equal(&issues).await;
    synced.told(&issues).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_that_a_clock_in_the_future_began_puts_off_no_other() {
    let synced = Synced::start(&FLAGS).await;
    let gitea = &synced.gitea;
    gitea.advance(-60);
    let issues = [issue(gitea, synced.widgets, &["bot", "tom"])];
    gitea.use_real_clock();
    synced.equal(&issues).await;
    let kept = r#"{"next":1,"last":1,"began_at":99999999999,"complete":true}"#;
    let bucket = synced.js.get_key_value(names::SYNC).await.expect("the bucket");
    bucket.put("repair", kept.into()).await.expect("written");
    gitea.remove_collaborator(synced.widgets, "bot");
    synced.equal(&issues).await;
}
