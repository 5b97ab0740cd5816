//! What real Gitea servers sent, through the real pipeline, and the changes that
//! result.
//!
//! A row is a change: `*` marks a change that is first seen, `?` one in doubt.

use contract::change::Change;
use serde_json::Value;
use tests::{
    bus,
    gitea::{Recorded, recorded},
    system::System,
};

/// Sends a whole recording, and returns the system with all of it settled.
async fn play(recording: &str) -> (System, Vec<Recorded>) {
    let system = System::start().await;
    let deliveries = recorded(recording);
    let mut events = 0;
    for sent in &deliveries {
        let answer = system.send(&sent.delivery).await;
        let expected = match sent.row["event"].as_str() {
            _ if !sent.signed => (401, &answer.body["error"], "signature_empty"),
            Some("issues") => (200, &answer.body["status"], "accepted"),
            _ => (200, &answer.body["status"], "ignored"),
        };
        assert_eq!(
            (answer.status, expected.1.as_str()),
            (expected.0, Some(expected.2)),
            "{sent:?}"
        );
        events += u64::from(expected.2 == "accepted");
    }
    system.settled(events).await;
    (system, deliveries)
}

fn row(change: &Change, deliveries: &[Recorded]) -> String {
    let from = deliveries.iter().find(|sent| sent.delivery.id() == change.cause.delivery_id);
    let name = &from.expect("a delivery that was sent").name;
    let first_seen = if change.first_seen { "*" } else { "" };
    let in_doubt = if change.in_doubt { "?" } else { "" };
    format!("{} {}{in_doubt}{first_seen}", &name[..4], change.summary())
}

/// The changes published of one issue, in their order in the stream.
async fn told(played: &(System, Vec<Recorded>), repository: &str, number: u64) -> Vec<String> {
    let changes = bus::changes(&played.0.js).await;
    let of_issue =
        |change: &&Change| change.repository.name == repository && change.issue.number == number;
    changes.iter().filter(of_issue).map(|change| row(change, &played.1)).collect()
}

/// The stored state of an issue: assignees, state, in doubt.
async fn remembered(system: &System, key: &str) -> (Vec<String>, String, bool) {
    let bucket = system.js.get_key_value(contract::names::ISSUE_STATE).await.expect("the bucket");
    let value = bucket.get(key).await.expect("an answer").expect("a state");
    let state: Value = serde_json::from_slice(&value).expect("JSON");
    let assignees = state["assignees"].as_array().expect("assignees");
    let login = |login: &Value| login.as_str().expect("a login").to_owned();
    (
        assignees.iter().map(|person| login(&person["login"])).collect(),
        login(&state["state"]),
        state["in_doubt"].as_bool().expect("in_doubt"),
    )
}

async fn check(recording: &str, issues: &[(&str, u64, &[&str])]) {
    let played = play(recording).await;
    for (repository, number, expected) in issues {
        assert_eq!(told(&played, repository, *number).await, *expected, "{repository}#{number}");
    }
    let told_of = bus::changes(&played.0.js).await.len();
    let expected: usize = issues.iter().map(|(_, _, rows)| rows.len()).sum();
    assert_eq!(told_of, expected, "changes of other issues");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_gitea_1_25_sent() {
    check(
        "gitea-1.25",
        &[
            (
                "widgets",
                1,
                &[
                    "0002 assigned +bot",
                    "0003 assigned +tom",
                    "0004 unassigned -bot",
                    "0005 unassigned -tom",
                    // Three assignees at once: the lists grow within one second.
                    "0006 assigned +li-wei",
                    "0007 assigned +bot?",
                    "0008 assigned +tom?",
                    "0009 unassigned -li-wei",
                    "0010 unassigned -bot?",
                    "0011 unassigned -tom?",
                    "0012 assigned +maria?",
                    "0020 closed",
                    "0021 reopened",
                    "0022 closed",
                    "0023 unassigned -maria",
                ],
            ),
            // Created with two assignees: `assigned` comes before `opened`, without a time.
            ("widgets", 2, &["0024 assigned +bot*", "0025 assigned +tom?"]),
            ("widgets", 3, &["0030 closed"]),
            ("widgets", 4, &["0033 deleted"]),
            ("docs.site", 1, &["0035 assigned +li-wei", "0036 closed"]),
            (
                "docs.site",
                3,
                // Eleven events within one second. 0049 has the same bytes as 0041, like a
                // redelivery, so its content is published with the next event.
                &[
                    "0040 assigned +bot",
                    "0041 unassigned -bot?",
                    "0042 assigned +tom?",
                    "0043 closed?",
                    "0044 unassigned -tom?",
                    "0045 assigned +bot?",
                    "0046 assigned +li-wei?",
                    "0047 reopened?",
                    "0048 unassigned -bot?",
                    "0050 unassigned -li-wei?",
                    "0050 closed?",
                ],
            ),
            // The form type, an organisation's hook and a redelivery by hand bring nothing new.
            ("lab", 1, &["0054 assigned +bot", "0069 closed"]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_gitea_1_27_sent() {
    check(
        "gitea-1.27",
        &[
            (
                "widgets",
                1,
                &[
                    "0002 assigned +bot",
                    "0003 assigned +tom",
                    "0004 unassigned -bot",
                    "0005 unassigned -tom",
                    // Three assignees at once: the final list three times.
                    "0006 assigned +bot +tom +li-wei",
                    "0009 unassigned -bot -tom -li-wei",
                    "0009 assigned +maria",
                    "0020 closed",
                    "0021 reopened",
                    "0022 closed",
                    "0023 unassigned -maria",
                ],
            ),
            ("widgets", 2, &["0024 assigned +bot +tom*"]),
            ("widgets", 3, &["0030 closed"]),
            ("widgets", 4, &["0033 deleted"]),
            ("docs.site", 1, &["0035 assigned +li-wei", "0036 closed"]),
            (
                "docs.site",
                3,
                &[
                    "0040 assigned +bot",
                    "0041 unassigned -bot?",
                    "0041 assigned +tom?",
                    "0043 closed?",
                    "0044 unassigned -tom?",
                    "0044 assigned +bot +li-wei?",
                    "0047 reopened?",
                    "0048 unassigned -bot -li-wei?",
                    "0050 closed?",
                ],
            ),
            ("lab", 1, &["0054 assigned +bot", "0069 closed"]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrived_out_of_order_ends_in_doubt_and_not_silently_wrong() {
    let played = play("gitea-1.26-out-of-order").await;
    // 0059 to 0062 are of second 33 and come after one of second 34.
    assert_eq!(
        told(&played, "lab", 1).await,
        ["0057 closed*", "0057 assigned +bot*", "0058 reopened", "0064 closed?"]
    );
    let event = bus::events(&played.0.js).await.pop().expect("an event");
    let key = format!("{}.1", event.repository.id);
    assert_eq!(
        remembered(&played.0, &key).await,
        (vec!["bot".to_owned()], "closed".to_owned(), true)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_recording_sent_again_by_hand_tells_nothing_more() {
    let (system, deliveries) = play("gitea-1.27").await;
    let before = bus::changes(&system.js).await.len();
    let mut events = bus::events(&system.js).await.len() as u64;
    // A redelivery by hand has a new id and the same body.
    for sent in deliveries.iter().filter(|sent| sent.signed && sent.row["event"] == "issues") {
        let id = uuid::Uuid::new_v4().to_string();
        let again = sent.delivery.clone().with_header("X-Gitea-Delivery", &id);
        system.send_accepted(&again).await;
        events += 1;
    }
    system.settled(events).await;
    assert_eq!(bus::changes(&system.js).await.len(), before);
}
