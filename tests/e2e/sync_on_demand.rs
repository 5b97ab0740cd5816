//! `coordinator sync`: what differs from Gitea is shown, and told at once.

use std::path::Path;

use contract::{change::ChangeKind, issue_state::Lifecycle, names};
use serde_json::Value;
use tests::{
    bus,
    gitea_server::{Fault, GiteaServer, NewIssue},
    process::Process,
    synced::{Synced, short},
    wait,
};

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");
/// Exit code if something differs.
const DIFFERS: i32 = 3;

/// Runs the command. Returns its exit code and what it printed.
async fn sync(synced: &Synced, args: &[&str]) -> (i32, String) {
    sync_as(synced, synced.token(), args).await
}

async fn sync_as(synced: &Synced, token: &str, args: &[&str]) -> (i32, String) {
    let (gitea, nats) = (synced.gitea.url(), synced.nats.url());
    let environment = [
        ("GITEA_URL", &*gitea),
        ("GITEA_TOKEN", token),
        ("NATS_URL", &*nats),
        ("GITEA_REQUESTS_PER_SECOND", "1000"),
        ("DATA_DIR", "/nonexistent"),
    ];
    let mut process = Process::start(Path::new(EXE), "sync", args, &environment);
    let status = process.exited().await;
    (status.code().expect("an exit code"), process.output())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_shown_and_told_at_once() {
    let synced = Synced::start(&[]).await;
    let gitea = &synced.gitea;
    gitea.advance(-60);
    let new = |assignees: &'static [&'static str]| {
        let issue = NewIssue { assignees, ..NewIssue::default() };
        (synced.widgets, gitea.create_issue(synced.widgets, "maria", &issue))
    };
    let known = [new(&["bot"]), new(&["bot"]), new(&["tom"])];
    gitea.use_real_clock();
    synced.equal(&known).await;
    assert_eq!(sync(&synced, &[]).await.0, 0, "nothing differs");

    gitea.set_delivering(false);
    let missed = new(&["li-wei"]);
    let all = [&known[..], &[missed]].concat();
    gitea.close(known[0].0, known[0].1, "maria");
    gitea.remove_collaborator(synced.widgets, "tom");
    let before = bus::changes(&synced.js).await.len();
    let (code, shown) = sync(&synced, &["--dry-run"]).await;
    assert_eq!(code, DIFFERS, "{shown}");
    for line in [
        "acme/widgets#1  open, bot   closed, bot",
        "acme/widgets#3  open, tom   open, nobody",
        "acme/widgets#4  never seen  open, li-wei",
        "4 issues compared; 3 differ, and nobody was told (--dry-run)",
    ] {
        assert!(shown.contains(line), "{line:?} is missing in:\n{shown}");
    }
    // One issue, then one repository as JSON, then all that is left.
    let (code, shown) = sync(&synced, &["--issue", "acme/widgets#3"]).await;
    assert_eq!((code, shown.lines().count()), (DIFFERS, 3), "{shown}");
    synced.equal(&known[2..]).await;
    let (code, shown) = sync(&synced, &["--repo", "acme/widgets", "--json"]).await;
    assert_eq!((code, shown.lines().count()), (DIFFERS, 2), "{shown}");
    let row: Value = serde_json::from_str(shown.lines().next().expect("a line")).expect("JSON");
    assert_eq!((row["known"].is_null(), row["told"].as_bool()), (true, Some(true)), "{row}");
    synced.equal(&all).await;
    let told: Vec<String> = synced.told(&all).await[before..].iter().map(short).collect();
    let expected =
        ["asked: unassigned -tom", "asked: assigned +li-wei by maria", "asked: closed by maria"];
    assert_eq!(told.len(), expected.len(), "{told:?}");
    assert!(expected.iter().all(|one| told.iter().any(|told| told == one)), "{told:?}");
    for scope in [&["--owner", "acme"][..], &["--since", "1h"], &["--issue", "acme/widgets#1"]] {
        assert_eq!(sync(&synced, scope).await.0, 0, "{scope:?}");
    }

    // What is deleted is told after a second look.
    gitea.delete_issue(known[1].0, known[1].1, "maria");
    let (code, shown) = sync(&synced, &[]).await;
    assert!(code == DIFFERS && shown.contains("acme/widgets#2  open, bot  gone"), "{shown}");
    synced.equal(&all).await;
    synced.told(&all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_is_told_once_more_where_its_state_was_lost() {
    let mut synced = Synced::start(&[]).await;
    let gitea = &synced.gitea;
    gitea.set_delivering(false);
    gitea.advance(-60);
    let issue = NewIssue { assignees: &["bot"], ..NewIssue::default() };
    let known = [(synced.widgets, gitea.create_issue(synced.widgets, "maria", &issue))];
    gitea.use_real_clock();
    let tell = async |synced: &Synced| {
        let (code, shown) = sync(synced, &["--issue", "acme/widgets#1"]).await;
        assert_eq!(code, DIFFERS, "{shown}");
        synced.equal(&known).await;
    };
    tell(&synced).await;
    // A worker that goes on may remember what the bucket held until it looks at it again.
    synced.worker.take().expect("a worker").stop().await;
    synced.js.delete_key_value(names::ISSUE_STATE).await.expect("deleted");
    synced.start_worker().await;
    // The same answer to the same state has the same id, within the dedup window.
    tell(&synced).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_compared_is_said() {
    let synced = Synced::start(&[]).await;
    for (args, code, part) in [
        (&["--repo", "acme/nothing"][..], 1, "nothing of that name"),
        (&["--owner", "nobody"], 1, "nothing of that name"),
        (&["--issue", "acme/widgets"], 64, "--issue is not OWNER/NAME#NUMBER"),
        (&["--since", "yesterday"], 64, "--since is not a time"),
    ] {
        let (found, shown) = sync(&synced, args).await;
        assert!(found == code && shown.contains(part), "{args:?}: {found} {shown}");
    }
    let (code, shown) = sync_as(&synced, "a-token-that-nobody-made", &[]).await;
    assert!(code == 1 && shown.contains("401"), "{shown}");
    assert!(!shown.contains("a-token-that-nobody-made"), "{shown}");
    synced.gitea.fail(Fault::ServerError, "");
    let (code, shown) = sync(&synced, &[]).await;
    assert!(code == 1 && shown.contains("500"), "{shown}");
}

/// A hook of a private repository that the token's user may not see.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_shown_to_a_token_is_not_taken_for_gone() {
    let flags = ["--repair-interval-secs", "1", "--gone-after-secs", "1"];
    let mut synced = Synced::start_without_worker(&flags).await;
    synced.use_token_of("tom", &["all"]);
    let gitea = &synced.gitea;
    gitea.advance(-60);
    let hidden = gitea.add_repository("acme", "hidden");
    gitea.set_private(hidden, true);
    synced.start_worker().await;
    let gitea = &synced.gitea;
    let issue = |gitea: &GiteaServer, repository| {
        let issue = NewIssue { assignees: &["bot"], ..NewIssue::default() };
        (repository, gitea.create_issue(repository, "maria", &issue))
    };
    let (here, there) = (issue(gitea, synced.widgets), issue(gitea, hidden));
    gitea.use_real_clock();
    synced.equal(&[here, there]).await;
    let worker = synced.worker.as_ref().expect("a worker");
    wait::until("two rounds of the repair", || async {
        let unseen = worker.total("coordinator_sync_answers_total", "unseen").await;
        (unseen >= 2.0).then_some(())
    })
    .await;
    let changes = synced.told(&[here, there]).await;
    assert!(changes.iter().all(|change| change.kind == ChangeKind::Assigned), "{changes:?}");
    let (code, shown) = sync(&synced, &["--repo", "acme/hidden"]).await;
    assert!(code == 1 && shown.contains("never shown to this token"), "{code} {shown}");
    assert_eq!(synced.known(there).await.map(|known| known.1), Some(Lifecycle::Open));

    // A token that sees more sweeps from the beginning.
    gitea.set_delivering(false);
    gitea.advance(-60);
    let unseen = issue(gitea, hidden);
    gitea.use_real_clock();
    synced.worker.take().expect("a worker").stop().await;
    synced.use_token_of("maria", &["all"]);
    synced.start_worker().await;
    synced.equal(&[here, there, unseen]).await;
}
