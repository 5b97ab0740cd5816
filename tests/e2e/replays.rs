//! Old bodies that come again under new delivery ids, and streams that reach their limits.

use std::path::Path;

use contract::names;
use serde_json::{Value, json};
use tests::{
    bus,
    gitea::Issue,
    nats::Nats,
    services::ingest_with,
    system::{System, total, try_send},
    temp_dir, wait,
};
use uuid::Uuid;

const REPLAYED: &str = "coordinator_replayed_bodies_total";

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_comes_again_long_after_is_accepted_and_counted_and_named() {
    let (nats, data) = (Nats::start().await, temp_dir());
    let exe = Path::new(env!("CARGO_BIN_EXE_process-under-test"));
    let ingest = ingest_with(exe, &nats, data.path(), &["--replayed-after-secs", "1"]);
    let address = ingest.address_in("ingest listens").await;
    let operator = ingest.address_in("operator listens").await;
    let http = reqwest::Client::new();
    let delivery = Issue::new(1, 7).delivery("opened");
    let send = async |id: &str| {
        let again = delivery.clone().with_header("X-Gitea-Delivery", id);
        let answer = try_send(&http, address, &again).await.expect("an answer");
        assert_eq!((answer.status, &answer.body["status"]), (200, &json!("accepted")));
    };
    // Several hooks send one body each, and a sender may repeat itself.
    send(delivery.id()).await;
    send(&Uuid::new_v4().to_string()).await;
    assert_eq!(total(operator, REPLAYED, "").await, 0.0);
    let replay = wait::until("a replay to be counted", || async {
        // Under its first id it is no replay: the journal knows it.
        send(delivery.id()).await;
        let id = Uuid::new_v4().to_string();
        send(&id).await;
        (total(operator, REPLAYED, "").await > 0.0).then_some(id)
    })
    .await;
    assert_eq!(total(operator, REPLAYED, "").await, 1.0);
    let line = ingest.line_with("an old body came again").await;
    let line: Value = serde_json::from_str(&line).expect("a JSON log line");
    assert_eq!(line["gitea.delivery.id"], replay);
    let issue = line["gitea.issue.ref"].as_str().expect("an issue");
    assert!(issue.ends_with("#7"), "{issue}");
    assert!(line["age_secs"].as_u64().is_some_and(|secs| secs > 1), "{line}");
    assert!(!line.to_string().contains(delivery.header("X-Gitea-Signature").expect("signed")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_ends_at_the_limit_of_the_stream_which_is_seen_before() {
    // Each delivery is an event of 1.7 kB.
    let limit: u64 = 100_000;
    let flags = ["--stream-max-bytes", &limit.to_string()];
    let system = System::start_with(&flags, &flags).await;
    let of = |what: &str, stream: &str| {
        format!("coordinator_stream_{what}_bytes{{stream=\"{stream}\"}}")
    };
    let events = of("limit", names::EVENTS);
    wait::until_equal("its limit", Some(limit as f64), || system.worker.metric(&events)).await;
    // What may not be full has no limit.
    assert_eq!(system.worker.metric(&of("limit", names::ISSUE_STATE)).await, None);

    let delivery = Issue::new(1, 1).delivery("opened");
    let mut sent = 0;
    let stored = async || {
        let stream = system.js.get_stream(names::EVENTS).await.expect("the stream");
        stream.cached_info().state.bytes
    };
    while stored().await < limit * 9 / 10 {
        let again = delivery.clone().with_header("X-Gitea-Delivery", &Uuid::new_v4().to_string());
        system.send_accepted(&again).await;
        sent += 1;
    }
    let used = of("used", names::EVENTS);
    wait::until("the use of the stream to be seen", || async {
        let used = system.worker.metric(&used).await?;
        (used > limit as f64 * 0.8).then_some(())
    })
    .await;
    for _ in 0..40 {
        let again = delivery.clone().with_header("X-Gitea-Delivery", &Uuid::new_v4().to_string());
        system.send_accepted(&again).await;
        sent += 1;
    }
    // They wait in the journal, and none is lost once there is room.
    wait::until("the stream to refuse", || async {
        let failures = system.ingest.total("coordinator_publish_failures_total", "").await;
        (failures > 0.0).then_some(())
    })
    .await;
    assert!(stored().await <= limit);
    let stream = system.js.get_stream(names::EVENTS).await.expect("the stream");
    let mut config = stream.cached_info().config.clone();
    config.max_bytes = -1;
    system.js.update_stream(&config).await.expect("no limit");
    system.settled(sent).await;
    wait::until_equal("no limit to be seen", None, || system.worker.metric(&events)).await;
    // The replays changed nothing.
    assert!(bus::changes(&system.js).await.is_empty());
}
