//! Each way in which a worker settles a message, and messages that no broker takes.

use async_nats::jetstream::stream::{Config, DiscardPolicy};
use contract::{dead_letter, names, partitions::Partitions};
use service::broker::message::headers;
use tests::{
    bus::{self, Stored},
    gitea::Issue,
    nats::Nats,
    system::{System, ingest_config, start_ingest, start_worker, worker_config},
    temp_dir, wait,
};

async fn dead_letters(system: &System, count: usize) -> Vec<Stored> {
    wait::until("dead letters", || async {
        bus::messages(&system.js, names::DEAD_LETTERS).await.filter(|all| all.len() == count)
    })
    .await
}

async fn summaries(system: &System) -> Vec<String> {
    bus::changes(&system.js).await.iter().map(|change| change.summary()).collect()
}

/// Publishes a payload that ingest would not publish.
async fn publish(system: &System, issue: u64, payload: &str) -> u64 {
    wait::until("the stream of events", || async {
        system.js.get_stream(names::EVENTS).await.ok()
    })
    .await;
    let partition = Partitions::DEFAULT.of(1, issue);
    let subject = format!("gitea.issues.closed.acme.r1.{issue}.{partition}");
    let published = system.js.publish(subject, payload.to_owned().into()).await.expect("publish");
    published.await.expect("an ack").sequence
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_parked_at_once_and_stops_nothing() {
    let system = System::start().await;
    let newer = serde_json::to_value(contract::event::example()).map(|mut event| {
        event["version"] = 2.into();
        event.to_string()
    });
    let nonsense = publish(&system, 1, "no event").await;
    publish(&system, 1, &newer.expect("JSON")).await;
    // The same issue, so the same partition: this event comes after them.
    system.send_accepted(&Issue::new(1, 1).assigned(&["bot"]).delivery("assigned")).await;
    system.settled(3).await;
    assert_eq!(summaries(&system).await, ["assigned +bot"]);
    let letters = dead_letters(&system, 2).await;
    let letter = &letters[0];
    assert_eq!(letter.payload, b"no event");
    assert_eq!(
        letter.subject,
        format!("gitea.dead.issues.closed.acme.r1.1.{}", Partitions::DEFAULT.of(1, 1))
    );
    for (header, expected) in [
        (dead_letter::STREAM, names::EVENTS.to_owned()),
        (dead_letter::SEQUENCE, nonsense.to_string()),
        (dead_letter::ATTEMPTS, "1".to_owned()),
    ] {
        assert_eq!(letter.header(header), expected, "{header}");
    }
    assert!(
        letter.header(dead_letter::ERROR).starts_with("the payload is not of the expected shape")
    );
    assert_eq!(
        letters[1].header(dead_letter::ERROR),
        "the payload has version 2, this program reads up to 1"
    );
    assert_eq!(system.worker.total("coordinator_dead_letters_total", "undecodable").await, 2.0);
}

/// Makes the stream of changes refuse every message, or take messages of any size.
async fn refuse_changes(system: &System, refuse: bool) {
    let stream = system.js.get_stream(names::CHANGES).await.expect("the stream of changes");
    let config = Config {
        max_message_size: if refuse { 100 } else { -1 },
        ..stream.cached_info().config.clone()
    };
    system.js.update_stream(config).await.expect("update the stream");
}

/// Makes the stream of changes take this many more messages, or any number.
async fn leave_room(system: &System, changes: Option<i64>) {
    let stream = system.js.get_stream(names::CHANGES).await.expect("the stream of changes");
    let there = stream.cached_info().state.messages as i64;
    let config = Config {
        // 0 would mean no limit.
        max_messages: changes.map_or(-1, |more| (there + more).max(1)),
        discard: DiscardPolicy::New,
        ..stream.cached_info().config.clone()
    };
    system.js.update_stream(config).await.expect("update the stream");
}

async fn tried_again(system: &System, times: f64) {
    wait::until("more attempts", || async {
        let again = system.worker.total("coordinator_retries_total", "").await;
        (again >= times).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_for_a_while_is_tried_again_and_told_once() {
    let system = System::start().await;
    system.send_accepted(&Issue::new(1, 1).assigned(&["bot"]).at(1).delivery("assigned")).await;
    system.settled(1).await;
    leave_room(&system, Some(0)).await;
    system.send_accepted(&Issue::new(1, 1).at(2).delivery("unassigned")).await;
    tried_again(&system, 2.0).await;
    leave_room(&system, None).await;
    system.settled(2).await;
    assert_eq!(summaries(&system).await, ["assigned +bot", "unassigned -bot"]);
    assert_eq!(bus::count(&system.js, names::DEAD_LETTERS).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_half_way_is_gone_on_with_as_if_it_had_not() {
    let system = System::start().await;
    system.send_accepted(&Issue::new(1, 1).assigned(&["bot"]).at(1).delivery("assigned")).await;
    system.settled(1).await;
    leave_room(&system, Some(1)).await;
    // An unknown issue with two changes: the second change finds no room.
    let both = Issue::new(1, 2).assigned(&["tom"]).state("closed").at(1).delivery("edited");
    system.send_accepted(&both).await;
    tried_again(&system, 2.0).await;
    assert_eq!(summaries(&system).await, ["assigned +bot", "closed"]);
    leave_room(&system, None).await;
    system.settled(2).await;
    assert_eq!(summaries(&system).await, ["assigned +bot", "closed", "assigned +tom"]);
    let changes = bus::changes(&system.js).await;
    assert!(changes.iter().all(|change| change.first_seen && !change.in_doubt), "{changes:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_fails_uses_up_no_attempts() {
    let system = System::start_with(&[], &["--max-attempts", "2"]).await;
    system.send_accepted(&Issue::new(1, 1).assigned(&["bot"]).at(1).delivery("assigned")).await;
    system.settled(1).await;
    leave_room(&system, Some(0)).await;
    system.send_accepted(&Issue::new(1, 1).at(2).delivery("unassigned")).await;
    tried_again(&system, 5.0).await;
    leave_room(&system, None).await;
    system.settled(2).await;
    assert_eq!(summaries(&system).await, ["assigned +bot", "unassigned -bot"]);
    assert_eq!(bus::count(&system.js, names::DEAD_LETTERS).await, 0);
    assert_eq!(system.worker.total("coordinator_redeliveries_total", "").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_started_again_and_again_uses_up_no_attempts() {
    let mut system = System::start_with(&[], &["--max-attempts", "2"]).await;
    system.send_accepted(&Issue::new(1, 1).assigned(&["bot"]).at(1).delivery("assigned")).await;
    system.settled(1).await;
    leave_room(&system, Some(0)).await;
    system.send_accepted(&Issue::new(1, 1).at(2).delivery("unassigned")).await;
    for restarts in 1..=4 {
        tried_again(&system, f64::from(restarts)).await;
        system.nats.restart().await;
        let again = system.worker.total("coordinator_retries_total", "").await;
        tried_again(&system, again + 1.0).await;
    }
    leave_room(&system, None).await;
    system.settled(2).await;
    assert_eq!(summaries(&system).await, ["assigned +bot", "unassigned -bot"]);
    assert_eq!(bus::count(&system.js, names::DEAD_LETTERS).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_cannot_be_read_parks_its_event_and_stops_nothing() {
    let system = System::start().await;
    wait::until("the bucket", || async { system.js.get_key_value(names::ISSUE_STATE).await.ok() })
        .await
        .put("1.1", r#"{"assignees":"s3cr3t"}"#.into())
        .await
        .expect("an entry");
    system.send_accepted(&Issue::new(1, 1).at(1).delivery("opened")).await;
    let letters = dead_letters(&system, 1).await;
    let error = letters[0].header(dead_letter::ERROR);
    assert!(error.starts_with("the issue state cannot be read (line 1"), "{error}");
    assert!(!error.contains("s3cr3t"), "{error}");
    system.send_accepted(&Issue::new(1, 2).assigned(&["bot"]).at(1).delivery("assigned")).await;
    system.settled(2).await;
    assert_eq!(summaries(&system).await, ["assigned +bot"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_on_the_subject_of_another_is_parked() {
    let system = System::start().await;
    let event = contract::event::example();
    publish(&system, 5, &serde_json::to_string(&event).expect("JSON")).await;
    let letters = dead_letters(&system, 1).await;
    let error = letters[0].header(dead_letter::ERROR);
    assert_eq!(error, "its subject is not the one of its event");
    assert_eq!(bus::count(&system.js, names::CHANGES).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_whose_stream_is_gone_are_parked_in_a_new_one() {
    let system = System::start().await;
    system.send_accepted(&Issue::new(1, 1).delivery("opened")).await;
    system.settled(1).await;
    system.js.delete_stream(names::DEAD_LETTERS).await.expect("delete the stream");
    publish(&system, 1, "no event").await;
    dead_letters(&system, 1).await;
    system.settled(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_parked_and_judged_against_the_truth_when_redriven() {
    let system = System::start().await;
    system.send_accepted(&Issue::new(1, 1).assigned(&["bot"]).at(1).delivery("assigned")).await;
    system.settled(1).await;
    refuse_changes(&system, true).await;
    system.send_accepted(&Issue::new(1, 1).at(2).delivery("unassigned")).await;
    let letter = dead_letters(&system, 1).await.remove(0);
    assert_eq!(letter.header(dead_letter::ATTEMPTS), "1");
    refuse_changes(&system, false).await;
    // The decision was taken back, so the next event of the issue is compared with what was
    // published before.
    let closed = Issue::new(1, 1).state("closed").at(3).delivery("closed");
    system.send_accepted(&closed).await;
    system.settled(3).await;
    let expected = ["assigned +bot", "unassigned -bot", "closed"];
    assert_eq!(summaries(&system).await, expected);
    let again = dead_letter::redrive(
        &headers(Some(&letter.headers)),
        letter.payload,
        letter.sequence,
        Partitions::DEFAULT,
    );
    let again = again.expect("a dead letter");
    let published = system
        .js
        .publish_with_headers(again.subject, bus::header_map(&again.headers), again.payload.into())
        .await
        .expect("publish");
    published.await.expect("an ack");
    system.settled(4).await;
    assert_eq!(summaries(&system).await, expected, "it is older than what was told since");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_workers_die_of_is_parked_before_it_is_handled_again() {
    let nats = Nats::start().await;
    let exe = env!("CARGO_BIN_EXE_process-under-test");
    let data = temp_dir();
    let ingest = start_ingest(&ingest_config(&nats.url(), data.path(), &[])).await;
    let flags = ["--max-attempts", "3", "--ack-wait-secs", "1"];
    let js = async_nats::jetstream::new(nats.client().await);
    let http = reqwest::Client::new();
    let start = || tests::services::worker_with(exe.as_ref(), &nats, &flags);
    let mut worker = start();
    wait::until("the consumers", || bus::lag(&js)).await;
    // Nothing can be decided, so each worker dies with the message in hand.
    let bucket = format!("KV_{}", names::ISSUE_STATE);
    let config = js.get_stream(&bucket).await.expect("the bucket").cached_info().config.clone();
    let full = Config { max_bytes: 300, discard: DiscardPolicy::New, ..config.clone() };
    js.update_stream(full).await.expect("update the bucket");
    let delivery = Issue::new(1, 1).assigned(&["bot"]).delivery("assigned");
    assert_eq!(tests::system::send(&http, ingest.address, &delivery).await.status, 200);
    for attempt in 1..=3 {
        worker.line_with("the broker fails").await;
        worker.kill().await;
        if attempt < 3 {
            worker = start();
        }
    }
    js.update_stream(config).await.expect("update the bucket");
    let worker = start();
    let letters = wait::until("a dead letter", || async {
        bus::messages(&js, names::DEAD_LETTERS).await.filter(|all| !all.is_empty())
    })
    .await;
    assert_eq!(letters[0].header(dead_letter::ATTEMPTS), "4", "{}", worker.output());
    assert_eq!(letters[0].header(dead_letter::ORIGINAL_MESSAGE_ID), delivery.id());
    assert_eq!(bus::count(&js, names::CHANGES).await, 0, "it was handled");
    ingest.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_person_is_not_reassigned_and_a_deleted_issue_ends_its_work() {
    let system = System::start().await;
    for (second, action, people) in [
        (1, "assigned", &["bot:7"][..]),
        (2, "edited", &["robot:7"]),
        (3, "assigned", &["robot:7", "bot:8"]),
        (3, "deleted", &["robot:7", "bot:8"]),
        (4, "edited", &["robot:7"]),
    ] {
        let issue = Issue::new(1, 1).assigned(people).at(second);
        system.send_accepted(&issue.delivery(action)).await;
    }
    system.settled(5).await;
    let expected = ["assigned +bot", "assigned +bot", "unassigned -robot -bot", "deleted"];
    assert_eq!(summaries(&system).await, expected);
    let changes = bus::changes(&system.js).await;
    assert_eq!((&changes[1].added_ids, &changes[1].assignee_ids), (&vec![8], &vec![7, 8]));
    assert_eq!((&changes[2].removed_ids, changes[3].assignees.len()), (&vec![7, 8], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_of_the_first_form_is_carried_over() {
    let system = System::start().await;
    system.send_accepted(&Issue::new(1, 1).assigned(&["bot:7"]).at(1).delivery("assigned")).await;
    system.settled(1).await;
    let bucket = system.js.get_key_value(names::ISSUE_STATE).await.expect("the bucket");
    let old = r#"{"assignees":["bot"],"state":"open","updated_at":"2026-11-01T00:00:01Z",
        "issue":"acme/r1#1","delivery_id":"d"}"#;
    bucket.put("1.1", old.into()).await.expect("the former state");
    // The stream holds a change that the former state knows nothing of.
    for (second, people) in [(2, &["bot:7"][..]), (3, &["bot:7", "tom:8"]), (4, &["tom:8"])] {
        let issue = Issue::new(1, 1).assigned(people).at(second);
        system.send_accepted(&issue.delivery("assigned")).await;
    }
    system.settled(4).await;
    assert_eq!(summaries(&system).await, ["assigned +bot", "assigned +tom", "unassigned -bot"]);
}

/// An issue whose assignees' names alone take this many bytes.
pub fn crowd(number: u64, bytes: usize) -> Issue {
    let logins: Vec<String> = (0..bytes / 100).map(|n| format!("{n:0100}")).collect();
    let logins: Vec<&str> = logins.iter().map(String::as_str).collect();
    Issue::new(1, number).assigned(&logins)
}

async fn system_with_max_payload(bytes: usize) -> System {
    let nats = Nats::start_with(&format!("max_payload: {bytes}")).await;
    System::start_on(nats, &[], &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_the_broker_never_takes_is_parked_at_once() {
    // The change names each assignee three times, the event once.
    let system = system_with_max_payload(100_000).await;
    system.send_accepted(&crowd(1, 50_000).delivery("assigned")).await;
    let letters = dead_letters(&system, 1).await;
    assert_eq!(letters[0].header(dead_letter::ATTEMPTS), "1");
    assert_eq!(system.worker.total("coordinator_dead_letters_total", "permanent").await, 1.0);
    system.send_accepted(&Issue::new(1, 1).assigned(&["bot"]).at(5).delivery("assigned")).await;
    system.settled(2).await;
    assert_eq!(summaries(&system).await, ["assigned +bot"], "the state is as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_no_broker_takes_is_set_aside_in_the_journal_and_stops_nothing() {
    let system = system_with_max_payload(50_000).await;
    system.send_accepted(&crowd(1, 60_000).delivery("assigned")).await;
    system.send_accepted(&Issue::new(1, 1).assigned(&["bot"]).at(1).delivery("assigned")).await;
    system.settled(1).await;
    assert_eq!(summaries(&system).await, ["assigned +bot"]);
    wait::until_equal("it to be set aside", Some(1.0), || async {
        system.ingest.metric("coordinator_journal_set_aside").await
    })
    .await;
    wait::until_equal("an empty journal", Some(0.0), || async {
        system.ingest.metric("coordinator_journal_depth").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_does_not_fit_is_parked_without_its_payload_and_stops_nothing() {
    let nats = Nats::start().await;
    let js = async_nats::jetstream::new(nats.client().await);
    let small = Config {
        name: names::DEAD_LETTERS.into(),
        subjects: vec![format!("{}.>", names::DEAD_PREFIX)],
        max_message_size: 1500,
        ..Config::default()
    };
    js.create_stream(small).await.expect("the stream");
    let system = System::start_on(nats, &[], &[]).await;
    system.send_accepted(&Issue::new(1, 1).delivery("opened")).await;
    system.settled(1).await;
    let sequence = publish(&system, 1, &"no event ".repeat(400)).await;
    system.send_accepted(&Issue::new(1, 1).state("closed").at(1).delivery("closed")).await;
    system.settled(3).await;
    let letters = dead_letters(&system, 1).await;
    assert_eq!(letters[0].payload, b"");
    assert_eq!(letters[0].header(dead_letter::SEQUENCE), sequence.to_string());
    assert_eq!(summaries(&system).await, ["closed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_somebody_changed_is_put_right() {
    let System { nats, worker, js, .. } = System::start().await;
    wait::until_equal("a worker that consumes", 200, || async {
        worker.get("/health/ready").await.0
    })
    .await;
    worker.stop().await;
    let events = js.get_stream(names::EVENTS).await.expect("the stream");
    let name = names::consumer_name(7);
    let mut config = events.consumer_info(&name).await.expect("the consumer").config;
    (config.max_deliver, config.max_ack_pending) = (2, 64);
    events.create_consumer(config).await.expect("another consumer");
    let worker = start_worker(&worker_config(&nats.url(), &[])).await;
    wait::until_equal("a worker that consumes", 200, || async {
        worker.get("/health/ready").await.0
    })
    .await;
    let config = events.consumer_info(&name).await.expect("the consumer").config;
    assert_eq!((config.max_deliver, config.max_ack_pending), (-1, 1));
}
