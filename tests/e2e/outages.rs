//! Outages: the broker is away or comes back with less than it had, and workers
//! and ingests come and go. Nothing is lost, nothing is doubled, and the order per
//! issue is kept.

use std::{path::Path, process::Command, time::Duration};

use async_nats::jetstream;
use contract::{names, partitions::Partitions};
use serde_json::Value;
use tests::{
    bus, check,
    load::{Load, stories},
    nats::Nats,
    system::{
        Running, System, ingest_config, send, settled, start_ingest, start_worker, worker_config,
    },
    temp_dir, wait,
};

/// Well below the 30 s after which the server gives up on a worker.
const NO_STALL: Duration = Duration::from_secs(20);

async fn reader(nats: &Nats) -> jetstream::Context {
    jetstream::new(nats.client().await)
}

async fn health(ingest: &Running) -> (u16, Value) {
    let (status, body) = ingest.get("/health").await;
    (status, serde_json::from_str(&body).expect("JSON"))
}

async fn depth(ingest: &Running) -> u64 {
    health(ingest).await.1["journal"]["depth"].as_u64().expect("depth")
}

/// Events that the broker took as new ones.
async fn stored(ingest: &Running) -> f64 {
    ingest.total("messaging_client_sent_messages_total", "duplicate=\"false\"").await
}

/// Partitions that are not settled: their number, events pending, events in hand.
async fn unsettled(js: &jetstream::Context) -> Vec<(u8, u64, usize)> {
    let stream = js.get_stream(names::EVENTS).await.expect("the stream");
    let mut unsettled = Vec::new();
    for partition in Partitions::DEFAULT.all() {
        let info = stream.consumer_info(names::consumer_name(partition)).await.expect("its info");
        if info.num_pending > 0 || info.num_ack_pending > 0 {
            unsettled.push((partition, info.num_pending, info.num_ack_pending));
        }
    }
    unsettled
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(status.expect("run cp").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_down_at_the_start_gets_everything_when_it_comes_up() {
    let mut nats = Nats::prepared("");
    let data = temp_dir();
    let ingest = start_ingest(&ingest_config(&nats.url(), data.path(), &[])).await;
    let worker = start_worker(&worker_config(&nats.url(), &[])).await;
    let sent = Load::start(&[ingest.address], 3, stories(1, 6, 10)).finish().await;
    assert_eq!((sent.accepted.len(), sent.unanswered.len()), (60, 0));
    let (status, body) = health(&ingest).await;
    assert_eq!((status, &body["status"]), (200, &"degraded".into()), "{body}");
    assert_eq!((&body["broker"], &body["journal"]["depth"]), (&"disconnected".into(), &60.into()));

    nats.restart().await;
    let js = reader(&nats).await;
    settled(&js, 60).await;
    check::kept(&js, &sent.accepted).await;
    assert_eq!(bus::changes(&js).await.len(), 54);
    wait::until_equal("an empty journal", 0, || depth(&ingest)).await;
    let (status, body) = health(&ingest).await;
    assert_eq!((status, &body["status"]), (200, &"ok".into()), "{body}");
    worker.stop().await;
    ingest.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_twice_under_load_costs_nothing() {
    let mut system = System::start_with(&[], &["--ack-wait-secs", "2"]).await;
    let load = Load::start(&[system.ingest.address], 5, stories(1, 20, 50));
    for killed_at in [200, 600] {
        load.accepted(killed_at).await;
        system.nats.kill();
        load.accepted(killed_at + 100).await;
        system.nats.restart().await;
    }
    let sent = load.finish().await;
    assert_eq!((sent.accepted.len(), sent.unanswered.len()), (1000, 0));
    let js = reader(&system.nats).await;
    settled(&js, 1000).await;
    check::kept(&js, &sent.accepted).await;
    assert_eq!(bus::changes(&js).await.len(), 980);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broker_lost_of_its_tail_is_offered_again() {
    let mut system = System::start().await;
    let mut first = stories(1, 10, 30);
    let second: Vec<_> = first.iter_mut().map(|story| story.split_off(10)).collect();
    let mut sent = Load::start(&[system.ingest.address], 3, first).finish().await;
    system.settled(100).await;
    system.nats.kill();
    let store = system.nats.store().to_owned();
    let older = store.with_extension("older");
    copy(&store, &older);
    system.nats.restart().await;
    let later = Load::start(&[system.ingest.address], 3, second).finish().await;
    let js = reader(&system.nats).await;
    settled(&js, 300).await;
    sent.accepted.extend(later.accepted);
    check::kept(&js, &sent.accepted).await;
    assert_eq!(stored(&system.ingest).await, 300.0);

    system.nats.kill();
    std::fs::remove_dir_all(&store).expect("remove the store");
    std::fs::rename(&older, &store).expect("put the older one there");
    system.nats.restart().await;
    let js = reader(&system.nats).await;
    settled(&js, 300).await;
    check::kept(&js, &sent.accepted).await;
    assert_eq!(bus::changes(&js).await.len(), 290);
    // The tail of 200 was really lost, and nothing else was stored.
    assert_eq!(stored(&system.ingest).await, 500.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_lost_all_gets_all_that_the_journal_holds() {
    let mut system = System::start().await;
    let sent = Load::start(&[system.ingest.address], 3, stories(1, 10, 30)).finish().await;
    system.settled(300).await;
    system.nats.kill();
    std::fs::remove_dir_all(system.nats.store()).expect("remove the store");
    system.nats.restart().await;
    let js = reader(&system.nats).await;
    settled(&js, 300).await;
    check::kept(&js, &sent.accepted).await;
    assert_eq!(bus::changes(&js).await.len(), 290);
    assert_eq!(stored(&system.ingest).await, 600.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_leaves_in_the_middle_stalls_nothing() {
    let System { nats, ingest, worker, js, data: _data, .. } = System::start().await;
    let other = start_worker(&worker_config(&nats.url(), &[])).await;
    for worker in [&worker, &other] {
        wait::until_equal("both to consume", 200, || async { worker.get("/health/ready").await.0 })
            .await;
    }
    let load = Load::start(&[ingest.address], 5, stories(1, 20, 50));
    load.accepted(500).await;
    let handled = other.total("coordinator_events_total", "").await;
    assert!(handled > 0.0, "the one that leaves handled nothing before");
    other.stop().await;
    let sent = load.finish().await;
    if tokio::time::timeout(NO_STALL, settled(&js, 1000)).await.is_err() {
        panic!(
            "still in hand after {NO_STALL:?}, of (partition, pending, in hand): {:?}",
            unsettled(&js).await
        );
    }
    check::kept(&js, &sent.accepted).await;
    assert_eq!(bus::changes(&js).await.len(), 980);
    let stayed = worker.total("coordinator_events_total", "").await;
    assert!((1.0..1000.0).contains(&stayed), "the one that stayed handled {stayed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_stopped_under_load_has_published_what_it_answered() {
    let System { nats, ingest, worker: _worker, js, data, .. } = System::start().await;
    let mut config = ingest_config(&nats.url(), data.path(), &[]);
    config.address = ingest.address;
    let load = Load::start(&[ingest.address], 5, stories(1, 20, 50));
    load.accepted(300).await;
    ingest.stop().await;
    let ingest = start_ingest(&config).await;
    load.accepted(600).await;
    ingest.stop().await;
    let ingest = start_ingest(&config).await;
    let sent = load.finish().await;
    // A stop closes idle connections, maybe while a request is in flight. That request is not
    // kept.
    assert!(sent.unanswered.len() <= 2 * 5, "{} are not answered", sent.unanswered.len());
    settled(&js, sent.accepted.len() as u64).await;
    check::kept(&js, &sent.accepted).await;
    ingest.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_stopped_while_the_broker_is_away_keeps_what_it_answered() {
    let mut nats = Nats::prepared("");
    let data = temp_dir();
    let mut config = ingest_config(&nats.url(), data.path(), &[]);
    let ingest = start_ingest(&config).await;
    config.address = ingest.address;
    let load = Load::start(&[ingest.address], 5, stories(1, 20, 50));
    load.accepted(300).await;
    ingest.stop().await;
    let ingest = start_ingest(&config).await;
    let sent = load.finish().await;
    assert!(sent.unanswered.len() <= 5, "{} are not answered", sent.unanswered.len());
    let accepted = sent.accepted.len() as u64;
    assert_eq!(depth(&ingest).await, accepted);
    ingest.stop().await;

    nats.restart().await;
    let _worker = start_worker(&worker_config(&nats.url(), &[])).await;
    let ingest = start_ingest(&config).await;
    let js = reader(&nats).await;
    settled(&js, accepted).await;
    check::kept(&js, &sent.accepted).await;
    assert_eq!(stored(&ingest).await, accepted as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_ingests_share_the_deliveries_of_each_issue() {
    let system = System::start().await;
    let data = temp_dir();
    let other = start_ingest(&ingest_config(&system.nats.url(), data.path(), &[])).await;
    let addresses = [system.ingest.address, other.address];
    let sent = Load::start(&addresses, 5, stories(1, 20, 50)).finish().await;
    assert_eq!((sent.accepted.len(), sent.unanswered.len()), (1000, 0));
    system.settled(1000).await;
    for ingest in [&system.ingest, &other] {
        assert_eq!(stored(ingest).await, 500.0);
    }
    // A delivery that comes again, also at the other ingest, is still the same delivery.
    let http = reqwest::Client::new();
    for delivery in &sent.accepted[..10] {
        for address in addresses {
            let answer = send(&http, address, delivery).await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }
    for ingest in [&system.ingest, &other] {
        wait::until_equal("an empty journal", 0, || depth(ingest)).await;
    }
    system.settled(1000).await;
    check::kept_in_any_order(&system.js, &sent.accepted).await;
}
