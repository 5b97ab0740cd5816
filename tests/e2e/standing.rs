//! What stands on the broker is checked: what is missing is made again, what is not as needed is put
//! right, and what cannot be put right is named.

use async_nats::{
    ConnectOptions,
    jetstream::{
        self,
        consumer::{self, AckPolicy},
        stream::{Config, DiscardPolicy, RetentionPolicy},
    },
};
use contract::{names, partitions::Partitions};
use serde_json::Value;
use service::{
    broker::{findings::Findings, streams::Streams},
    causes::Causes,
};
use tests::{
    bus,
    gitea::Issue,
    nats::Nats,
    system::{Running, System, ingest_config, start_ingest, start_worker, worker_config},
    temp_dir, wait,
};

const STATES: &str = "KV_GITEA_ISSUE_STATE";

async fn summaries(system: &System) -> Vec<String> {
    bus::changes(&system.js).await.iter().map(|change| change.summary()).collect()
}

async fn ready(role: &Running) -> (u16, Value) {
    let (status, body) = role.get("/health/ready").await;
    (status, serde_json::from_str(&body).expect("JSON"))
}

async fn is_ready(role: &Running) {
    wait::until_equal("it to be ready", 200, || async { ready(role).await.0 }).await;
}

/// Waits until `role` is not ready and names something that contains all of `texts`.
async fn names_as_unfit(role: &Running, texts: &[&str]) {
    wait::until(&format!("{texts:?} to be named"), || async {
        let (status, health) = ready(role).await;
        let unfit = health["unfit"].as_array()?;
        let named = |text: &Value| texts.iter().all(|part| text.to_string().contains(part));
        (status == 503 && unfit.iter().any(named)).then_some(())
    })
    .await;
}

/// A system that has handled one event.
async fn with_one_handled() -> System {
    let system = System::start().await;
    system.send_accepted(&Issue::new(1, 1).assigned(&["bot"]).at(1).delivery("assigned")).await;
    system.settled(1).await;
    is_ready(&system.worker).await;
    system
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_deleted_is_made_again() {
    let system = with_one_handled().await;
    system.js.delete_stream(STATES).await.expect("delete");
    system.send_accepted(&Issue::new(1, 1).at(2).delivery("unassigned")).await;
    system.send_accepted(&Issue::new(1, 2).assigned(&["tom"]).at(2).delivery("assigned")).await;
    system.settled(3).await;
    let mut told = summaries(&system).await;
    told.sort();
    // Nobody knows who was assigned, so that it is told as of an issue that is new.
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told.contains(&"assigned +tom".into()), "{told:?}");
    assert_eq!(bus::count(&system.js, names::DEAD_LETTERS).await, 0);
    is_ready(&system.worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_is_deleted_is_made_again() {
    let system = with_one_handled().await;
    let stream = system.js.get_stream(names::EVENTS).await.expect("the stream");
    let name = names::consumer_name(Partitions::DEFAULT.of(1, 1));
    stream.delete_consumer(&name).await.expect("delete");
    system.send_accepted(&Issue::new(1, 1).at(2).delivery("unassigned")).await;
    system.settled(2).await;
    // The first event came again, and was known.
    assert_eq!(summaries(&system).await, ["assigned +bot", "unassigned -bot"]);
    is_ready(&system.worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_changes_that_is_deleted_is_made_again() {
    let system = with_one_handled().await;
    system.js.delete_stream(names::CHANGES).await.expect("delete");
    system.send_accepted(&Issue::new(1, 1).at(2).delivery("unassigned")).await;
    system.settled(2).await;
    assert_eq!(summaries(&system).await, ["unassigned -bot"]);
    assert_eq!(bus::count(&system.js, names::DEAD_LETTERS).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_dead_letters_that_is_deleted_is_made_again() {
    let system = with_one_handled().await;
    system.js.delete_stream(names::DEAD_LETTERS).await.expect("delete");
    let subject = format!("gitea.issues.closed.acme.r1.1.{}", Partitions::DEFAULT.of(1, 1));
    let garbage = system.js.publish(subject, "no event".into()).await.expect("publish");
    garbage.await.expect("an ack");
    wait::until_equal("the dead letter", 1, || bus::count(&system.js, names::DEAD_LETTERS)).await;
    system.settled(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_deleted_stream_of_events_held_is_offered_again() {
    let System { nats, ingest, worker, js, data, .. } = with_one_handled().await;
    worker.stop().await;
    let http = reqwest::Client::new();
    for number in 2..=40 {
        let delivery = Issue::new(1, number).assigned(&["bot"]).at(1).delivery("assigned");
        assert_eq!(tests::system::send(&http, ingest.address, &delivery).await.status, 200);
    }
    wait::until_equal("all to be published", 40, || bus::count(&js, names::EVENTS)).await;
    for made_by_worker in [false, true] {
        js.delete_stream(names::EVENTS).await.expect("delete");
        if made_by_worker {
            // Ingest finds the stream there, and its sequence begins anew.
            let worker = start_worker(&worker_config(&nats.url(), &[])).await;
            wait::until("the stream", || async { js.get_stream(names::EVENTS).await.ok() }).await;
            worker.stop().await;
        }
        let number = 41 + u64::from(made_by_worker);
        let delivery = Issue::new(1, number).assigned(&["bot"]).at(1).delivery("assigned");
        assert_eq!(tests::system::send(&http, ingest.address, &delivery).await.status, 200);
        wait::until_equal("all to be there again", number, || bus::count(&js, names::EVENTS)).await;
    }
    let worker = start_worker(&worker_config(&nats.url(), &[])).await;
    tests::system::settled(&js, 42).await;
    // The first one was handled before, and is not told again.
    assert_eq!(bus::changes(&js).await.len(), 42);
    // Deleted while the worker runs.
    js.delete_stream(names::EVENTS).await.expect("delete");
    let delivery = Issue::new(1, 43).assigned(&["bot"]).at(1).delivery("assigned");
    assert_eq!(tests::system::send(&http, ingest.address, &delivery).await.status, 200);
    tests::system::settled(&js, 43).await;
    assert_eq!(bus::changes(&js).await.len(), 43);
    is_ready(&worker).await;
    worker.stop().await;
    ingest.stop().await;
    drop(data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_somebody_changed_is_put_right_within_a_minute() {
    let system = with_one_handled().await;
    let stream = system.js.get_stream(names::EVENTS).await.expect("the stream");
    let name = names::consumer_name(Partitions::DEFAULT.of(1, 1));
    let ours = stream.consumer_info(&name).await.expect("its info").config;
    let theirs = consumer::Config { max_deliver: 2, max_ack_pending: 5, ..ours.clone() };
    stream.create_consumer(theirs).await.expect("an update");
    // Nothing happens that would show it, and nobody misses the dead letters.
    system.js.delete_stream(names::DEAD_LETTERS).await.expect("delete");
    let is_right = || async {
        let config = stream.consumer_info(&name).await.expect("its info").config;
        let dead_letters = system.js.get_stream(names::DEAD_LETTERS).await;
        (config == ours && dead_letters.is_ok()).then_some(())
    };
    // The deadline of one wait is a minute.
    if wait::try_until(is_right).await.is_none() {
        wait::until("it to be put right", is_right).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_cannot_be_put_right_is_named_until_it_is_deleted() {
    let nats = Nats::start().await;
    let worker = start_worker(&worker_config(&nats.url(), &[])).await;
    is_ready(&worker).await;
    let js = async_nats::jetstream::new(nats.client().await);
    let stream = js.get_stream(names::EVENTS).await.expect("the stream");
    let name = names::consumer_name(7);
    let ours = stream.consumer_info(&name).await.expect("its info").config;
    worker.stop().await;
    stream.delete_consumer(&name).await.expect("delete");
    let theirs = consumer::Config { ack_policy: AckPolicy::None, ..ours };
    let theirs = consumer::Config { max_ack_pending: 0, ..theirs };
    stream.create_consumer(theirs).await.expect("create");
    let worker = start_worker(&worker_config(&nats.url(), &[])).await;
    let found = ["1 of 64 (worker-07)", "ack_policy: found none, needed explicit"];
    names_as_unfit(&worker, &found).await;
    stream.delete_consumer(&name).await.expect("delete");
    is_ready(&worker).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_with_too_few_consumers_is_named_with_their_number() {
    let account =
        "accounts { A { jetstream: { max_consumers: 40 }, users: [{ user: a, password: a }] } }";
    let options = || ConnectOptions::with_user_and_password("a".into(), "a".into());
    let nats = Nats::start_secured(account, options).await;
    let flags = ["--nats-user", "a", "--nats-password", "a"];
    let worker = start_worker(&worker_config(&nats.url(), &flags)).await;
    names_as_unfit(&worker, &["24 of 64", "maximum consumers limit reached"]).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_requires_a_limit_gets_one_or_is_named_with_the_remedy() {
    let account = "accounts { A { jetstream: { max_file: 1G, max_bytes_required: true }, \
                   users: [{ user: a, password: a }] } }";
    let options = || ConnectOptions::with_user_and_password("a".into(), "a".into());
    let (nats, data) = (Nats::start_secured(account, options).await, temp_dir());
    let login = ["--nats-user", "a", "--nats-password", "a"];
    let none = [&login[..], &["--stream-max-bytes", "0"]].concat();
    let worker = start_worker(&worker_config(&nats.url(), &none)).await;
    names_as_unfit(&worker, &["set STREAM_MAX_BYTES"]).await;
    worker.stop().await;

    let flags = [&login[..], &["--stream-max-bytes", "10000000"]].concat();
    let ingest = start_ingest(&ingest_config(&nats.url(), data.path(), &flags)).await;
    let worker = start_worker(&worker_config(&nats.url(), &flags)).await;
    is_ready(&worker).await;
    let delivery = Issue::new(1, 1).assigned(&["bot"]).delivery("assigned");
    let answer = tests::system::send(&reqwest::Client::new(), ingest.address, &delivery).await;
    assert_eq!(answer.status, 200);
    let js = async_nats::jetstream::new(nats.client().await);
    tests::system::settled(&js, 1).await;
    for name in [names::EVENTS, names::CHANGES, names::DEAD_LETTERS, STATES] {
        let stream = js.get_stream(name).await.expect(name);
        assert_eq!(stream.cached_info().config.max_bytes, 10_000_000, "{name}");
    }
    worker.stop().await;
    ingest.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_unfit_is_named_and_an_operators_limits_are_kept() {
    let (nats, data) = (Nats::start().await, temp_dir());
    let js = async_nats::jetstream::new(nats.client().await);
    let stream = |name: &str, prefix: &str| Config {
        name: name.into(),
        subjects: vec![format!("{prefix}.>")],
        duplicate_window: std::time::Duration::from_secs(100_000),
        ..Config::default()
    };
    let events = Config {
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        ..stream(names::EVENTS, names::EVENTS_PREFIX)
    };
    js.create_stream(events).await.expect("create");
    let theirs = Config { max_bytes: 123_456, ..stream(names::CHANGES, names::CHANGES_PREFIX) };
    js.create_stream(theirs.clone()).await.expect("create");
    let ingest = start_ingest(&ingest_config(&nats.url(), data.path(), &[])).await;
    let worker = start_worker(&worker_config(&nats.url(), &[])).await;
    names_as_unfit(&worker, &["stream GITEA_ISSUES", "WorkQueue"]).await;
    wait::until("ingest to name it", || async {
        let (status, health) = ready(&ingest).await;
        let named = health["unfit"].to_string().contains("WorkQueue");
        // Deliveries are kept all the same.
        (status == 200 && health["status"] == "degraded" && named).then_some(())
    })
    .await;
    assert!(!ready(&worker).await.1["unfit"].to_string().contains(names::CHANGES));
    let changes = js.get_stream(names::CHANGES).await.expect("the stream");
    assert_eq!(changes.cached_info().config.max_bytes, theirs.max_bytes);
    worker.stop().await;
    ingest.stop().await;
}

async fn limits_of(js: &async_nats::jetstream::Context) -> Vec<i64> {
    let limits = [names::EVENTS, names::CHANGES, names::DEAD_LETTERS, STATES]
        .map(async |name| js.get_stream(name).await.expect(name).cached_info().config.max_bytes);
    futures::future::join_all(limits).await
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_have_a_limit_by_default_which_leaves_room_on_a_small_broker() {
    const MIB: i64 = 1 << 20;
    for (room, limits) in [
        ("100GB", [2048 * MIB, 2048 * MIB, 2048 * MIB, -1]),
        ("1GB", [128 * MIB, 128 * MIB, 128 * MIB, -1]),
    ] {
        let mut nats = Nats::prepared("");
        let store =
            format!("jetstream {{ store_dir: {:?}, max_file_store: {room} }}", nats.store());
        nats.set_extra(&store);
        nats.restart().await;
        let js = async_nats::jetstream::new(nats.client().await);
        let data = temp_dir();
        let ingest = start_ingest(&ingest_config(&nats.url(), data.path(), &[])).await;
        wait::until("the stream of events", || async { js.get_stream(names::EVENTS).await.ok() })
            .await;
        wait::until_equal("its limit", limits[0], || async {
            js.get_stream(names::EVENTS).await.expect("it").cached_info().config.max_bytes
        })
        .await;
        let worker = start_worker(&worker_config(&nats.url(), &[])).await;
        is_ready(&worker).await;
        assert_eq!(limits_of(&js).await, limits, "{room}");
        let delivery = Issue::new(1, 1).assigned(&["bot"]).delivery("assigned");
        let answer = tests::system::send(&reqwest::Client::new(), ingest.address, &delivery).await;
        assert_eq!(answer.status, 200);
        tests::system::settled(&js, 1).await;
        worker.stop().await;
        ingest.stop().await;

        // What is set is not made less.
        js.delete_stream(names::DEAD_LETTERS).await.expect("delete");
        let flags = ["--stream-max-bytes", "99999999999999"];
        let worker = start_worker(&worker_config(&nats.url(), &flags)).await;
        names_as_unfit(&worker, &["set a smaller STREAM_MAX_BYTES"]).await;
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_start_together_reserve_no_more_than_there_is() {
    const MIB: i64 = 1 << 20;
    let mut nats = Nats::prepared("");
    let room = format!("jetstream {{ store_dir: {:?}, max_file_store: 1GB }}", nats.store());
    nats.set_extra(&room);
    nats.restart().await;
    let connect = async || jetstream::new(nats.client().await);
    let (js, ingest, worker, other) = tokio::join!(connect(), connect(), connect(), connect());
    let settings = worker_config(&nats.url(), &[]).common.streams;
    let (settings, findings) = (&settings, &Findings::default());
    let [of_ingest, of_worker, of_other] =
        [&ingest, &worker, &other].map(|js| Streams { js, settings, findings });
    for round in 0..20 {
        let made = futures::try_join!(
            of_ingest.events(),
            of_worker.changes(),
            of_worker.questions(),
            of_other.dead_letters(),
            of_other.changes(),
        );
        made.unwrap_or_else(|error| panic!("round {round}: {}", Causes(&error)));
        of_worker.issue_state().await.expect("room for the bucket");
        assert_eq!(limits_of(&js).await, [128 * MIB, 128 * MIB, 128 * MIB, -1], "round {round}");
        for name in [names::EVENTS, names::CHANGES, names::DEAD_LETTERS, names::QUESTIONS, STATES] {
            js.delete_stream(name).await.expect(name);
        }
    }

    // As a process leaves it that ends in between.
    let config = Config {
        name: names::EVENTS.into(),
        subjects: vec![format!("{}.>", names::EVENTS_PREFIX)],
        discard: DiscardPolicy::New,
        max_bytes: 1024 * MIB,
        metadata: [("coordinator-max-bytes".to_owned(), (100 * MIB).to_string())].into(),
        ..Config::default()
    };
    js.create_stream(config).await.expect("create");
    let worker = start_worker(&worker_config(&nats.url(), &[])).await;
    is_ready(&worker).await;
    assert_eq!(limits_of(&js).await, [100 * MIB, 100 * MIB, 100 * MIB, -1]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_requires_limits_gets_them_by_default() {
    let account = "accounts { A { jetstream: { max_file: 1G, max_bytes_required: true }, \
                   users: [{ user: a, password: a }] } }";
    let options = || ConnectOptions::with_user_and_password("a".into(), "a".into());
    let nats = Nats::start_secured(account, options).await;
    let login = ["--nats-user", "a", "--nats-password", "a"];
    let worker = start_worker(&worker_config(&nats.url(), &login)).await;
    is_ready(&worker).await;
    let js = async_nats::jetstream::new(nats.client().await);
    let limits = limits_of(&js).await;
    assert!(limits.iter().all(|limit| *limit > 0), "{limits:?}");
    worker.stop().await;
}
