//! The number of partitions is stored with the stream of events. Another one is refused until all that
//! there is has been handled, and no order is lost by the change.

use std::time::Duration;

use async_nats::jetstream;
use contract::{envelope::Envelope, names, partitions::Partitions};
use serde_json::Value;
use service::broker::{
    create::{self, Wanted},
    repartition::Stored,
};
use tempfile::TempDir;
use tests::{
    bus,
    gitea::Issue,
    nats::Nats,
    system::{
        Running, System, ingest_config, send, settled, start_ingest, start_worker, worker_config,
    },
    wait,
};

const ISSUES: u64 = 20;

/// Begins to make `partitions` the number, as `create-streams` does. The tests wait until ingest has
/// seen it.
fn create(
    js: &jetstream::Context,
    partitions: &'static str,
) -> tokio::task::JoinHandle<Result<(), create::CreateError>> {
    create_after(js, partitions, Duration::ZERO)
}

/// The same, once nothing new has come for `repartition_pause`.
fn create_after(
    js: &jetstream::Context,
    partitions: &'static str,
    repartition_pause: Duration,
) -> tokio::task::JoinHandle<Result<(), create::CreateError>> {
    let js = js.clone();
    tokio::spawn(async move {
        let config = worker_config("nats://127.0.0.1:1", &["--partitions", partitions]);
        let wanted = Wanted {
            settings: &config.common.streams,
            partitions: Some(config.common.streams.partitions),
            ack_wait: config.ack_wait,
            prioritize: true,
            readers: &[],
            repartition_pause,
        };
        create::create_all(&js, wanted).await
    })
}

async fn stored(js: &jetstream::Context) -> Stored {
    Stored::of(&js.get_stream(names::EVENTS).await.expect("the stream").cached_info().config)
}

/// Waits until a role names something that contains `text`.
async fn names_as_unfit(role: &Running, text: &str) {
    wait::until(&format!("{text} to be named"), || async {
        let health: Value = serde_json::from_str(&role.get("/health").await.1).expect("JSON");
        let unfit = health["unfit"].as_array()?;
        unfit.iter().any(|one| one.to_string().contains(text)).then_some(())
    })
    .await;
}

/// Sends one event of each issue: assigned to `bot` if `odd`, otherwise to nobody.
async fn round(ingest: &Running, number: u64) {
    let http = reqwest::Client::new();
    for issue in 1..=ISSUES {
        let (assigned, action): (&[&str], _) =
            if number % 2 == 1 { (&["bot"], "assigned") } else { (&[], "unassigned") };
        let delivery = Issue::new(1, issue).assigned(assigned).at(number).delivery(action);
        assert_eq!(send(&http, ingest.address, &delivery).await.status, 200);
    }
}

/// A system without a worker, where each issue has one event that is handled and one that is not.
async fn with_unhandled() -> (Nats, Running, jetstream::Context, TempDir) {
    let System { nats, ingest, worker, js, data, .. } = System::start().await;
    round(&ingest, 1).await;
    settled(&js, ISSUES).await;
    worker.stop().await;
    round(&ingest, 2).await;
    wait::until_equal("all to be published", 2 * ISSUES, || bus::count(&js, names::EVENTS)).await;
    (nats, ingest, js, data)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_partitions_changes_once_all_is_handled_and_every_order_is_kept() {
    let (nats, ingest, js, data) = with_unhandled().await;
    // Events are unhandled, so that the change has to wait.
    let change = create(&js, "8");
    wait::until("the change to begin", || async { stored(&js).await.next }).await;
    // A running ingest sees it by itself, and keeps what comes.
    names_as_unfit(&ingest, "64 partitions, being changed to 8").await;
    round(&ingest, 3).await;
    let new_worker = start_worker(&worker_config(&nats.url(), &["--partitions", "8"])).await;
    names_as_unfit(&new_worker, "and PARTITIONS is 8; start all roles with").await;
    assert_eq!(new_worker.get("/health/ready").await.0, 503);
    ingest.stop().await;
    let config = ingest_config(&nats.url(), data.path(), &["--partitions", "8"]);
    let ingest = start_ingest(&config).await;
    round(&ingest, 4).await;
    names_as_unfit(&ingest, "64 partitions, being changed to 8").await;
    assert_eq!(bus::count(&js, names::EVENTS).await, 2 * ISSUES);
    assert!(!change.is_finished());

    // The workers of the former number handle what is there.
    let worker = start_worker(&worker_config(&nats.url(), &[])).await;
    wait::within("the change", change).await.expect("no panic").expect("changed");
    worker.stop().await;
    let eight = "8".parse().expect("a number");
    assert_eq!(stored(&js).await, Stored { partitions: eight, next: None });
    wait::until_equal("all to be published", 4 * ISSUES, || bus::count(&js, names::EVENTS)).await;
    wait::until_equal("all to be told", 4 * ISSUES, || bus::count(&js, names::CHANGES)).await;
    let changes = bus::changes(&js).await;
    for issue in 1..=ISSUES {
        let told = changes.iter().filter(|change| change.issue.number == issue);
        let told: Vec<_> = told.map(|change| change.summary()).collect();
        let expected = ["assigned +bot", "unassigned -bot", "assigned +bot", "unassigned -bot"];
        assert_eq!(told, expected, "#{issue}");
    }
    wait::until_equal("it to be ready", 200, || async { new_worker.get("/health/ready").await.0 })
        .await;
    new_worker.stop().await;
    ingest.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_begun_can_be_taken_back() {
    let (nats, ingest, js, _data) = with_unhandled().await;
    let change = create(&js, "255");
    wait::until("the change to begin", || async { stored(&js).await.next }).await;
    change.abort();
    let another = create(&js, "16").await.expect("no panic").expect_err("another is under way");
    assert!(another.to_string().contains("64 partitions, being changed to 255"), "{another}");
    create(&js, "64").await.expect("no panic").expect("taken back");
    assert_eq!(stored(&js).await.next, None);
    let worker = start_worker(&worker_config(&nats.url(), &[])).await;
    settled(&js, 2 * ISSUES).await;
    worker.stop().await;
    ingest.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_not_through_while_somebody_still_publishes() {
    let System { nats: _nats, ingest, worker, js, data: _data, .. } = System::start().await;
    round(&ingest, 1).await;
    settled(&js, ISSUES).await;
    let pause = Duration::from_secs(2);
    let change = create_after(&js, "8", pause);
    // An ingest that does not see the change, such as one that was suspended.
    let mut event = contract::event::example();
    let parent = "00-b60f8ed36a1a4e58b31e0b00968f94cb-00f067aa0ba902b7-01";
    let started = std::time::Instant::now();
    let mut published = ISSUES;
    while started.elapsed() < 2 * pause {
        event.delivery.id = format!("late-{published}");
        let parent = parent.parse().expect("a traceparent");
        let late = Envelope::of_event(&event, "http://g", &parent, Partitions::DEFAULT);
        let late = late.expect("a message");
        let headers = bus::header_map(&late.headers);
        let sent = js.publish_with_headers(late.subject, headers, late.payload.into()).await;
        sent.expect("publish").await.expect("an ack");
        published += 1;
        settled(&js, published).await;
        assert!(!change.is_finished());
    }
    wait::within("the change", change).await.expect("no panic").expect("changed");
    worker.stop().await;
    ingest.stop().await;
}
