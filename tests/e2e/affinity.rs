//! A partition stays with one worker while that worker lives, and goes to another one at its end.

use std::{
    collections::HashMap,
    path::Path,
    time::{Instant, SystemTime},
};

use async_nats::jetstream::{self, consumer::PriorityPolicy};
use contract::{names, partitions::Partitions};
use futures::{StreamExt, stream};
use tests::{
    bus, check,
    gitea::Issue,
    load::{Load, stories},
    nats::Nats,
    process::Process,
    services::{ingest, worker_at},
    system::{send, settled},
    temp_dir, wait,
};

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");

/// A worker that consumes all partitions.
async fn worker(nats: &Nats, ack_wait_secs: &str) -> Process {
    let process = worker_at(Path::new(EXE), &nats.url(), &[], &[("ACK_WAIT_SECS", ack_wait_secs)]);
    is_ready(&process).await;
    process
}

pub(crate) async fn is_ready(worker: &Process) {
    let address = worker.address_in("operator listens").await;
    wait::until_equal("a worker that consumes", Some(200), || async {
        let answer = reqwest::get(format!("http://{address}/health/ready")).await.ok()?;
        Some(answer.status().as_u16())
    })
    .await;
}

/// When a worker says that it has handled deliveries in issues of `repository`, and their partitions.
fn handled(worker: &Process, repository: i64) -> Vec<(String, u8)> {
    let prefix = format!("acme/r{repository}#");
    let lines = worker.output();
    let handled = lines.lines().filter(|line| line.contains("delivery handled"));
    let partition = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).expect("a JSON log line");
        let issue = line["gitea.issue.ref"].as_str().expect("an issue");
        let number = issue.strip_prefix(&prefix)?.parse().expect("a number");
        let at = line["timestamp"].as_str().expect("a time").to_owned();
        Some((at, Partitions::DEFAULT.of(repository, number)))
    };
    handled.filter_map(partition).collect()
}

/// For each partition, how often a message was handled by another worker than the one before it, and
/// how many messages there were. A worker that gets no processor for a moment hands its partitions
/// over, whenever that is: what stays is told by how seldom they move.
pub(crate) fn moves(workers: &[&Process], repository: i64) -> HashMap<u8, (usize, usize)> {
    let by_worker = workers.iter().enumerate().flat_map(|(worker, process)| {
        handled(process, repository).into_iter().map(move |(at, partition)| (at, partition, worker))
    });
    let mut all: Vec<(String, u8, usize)> = by_worker.collect();
    all.sort();
    let (mut moves, mut last) = (HashMap::new(), HashMap::new());
    for (_, partition, worker) in all {
        let (moved, all) = moves.entry(partition).or_insert((0, 0));
        let before = last.insert(partition, worker);
        *moved += usize::from(before.is_some_and(|before| before != worker));
        *all += 1;
    }
    moves
}

/// Pauses or resumes the consumers of all partitions.
async fn pause(js: &jetstream::Context, pause: bool) {
    let stream = js.get_stream(names::EVENTS).await.expect("the stream");
    let until = (SystemTime::now() + wait::DEADLINE).into();
    for partition in Partitions::DEFAULT.all() {
        let name = names::consumer_name(partition);
        let paused = match pause {
            true => stream.pause_consumer(&name, until).await,
            false => stream.resume_consumer(&name).await,
        };
        assert_eq!(paused.expect("an answer").paused, pause);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_stays_with_one_worker_while_it_lives() {
    let (nats, data) = (Nats::start().await, temp_dir());
    let ingest = ingest(Path::new(EXE), &nats, data.path());
    let address = ingest.address_in("ingest listens").await;
    let (mut first, second) = (worker(&nats, "10").await, worker(&nats, "10").await);
    let js = jetstream::new(nats.client().await);

    // Both workers ask for the whole backlog at the same time.
    pause(&js, true).await;
    let sent = Load::start(&[address], 5, stories(1, 300, 10)).finish().await;
    assert_eq!(sent.accepted.len(), 3000);
    wait::until_equal("all to be published", 3000, || bus::count(&js, names::EVENTS)).await;
    pause(&js, false).await;
    settled(&js, 3000).await;
    let moves = moves(&[&first, &second], 1);
    let total = moves.values().fold((0, 0), |sum, (moved, all)| (sum.0 + moved, sum.1 + all));
    eprintln!("{} moves in {} messages", total.0, total.1);
    assert_eq!(total.1, 3000);
    // Workers that are served in turn move every second message.
    assert!(20 * total.0 <= total.1, "{} moves: {moves:?}", total.0);
    let [ours, theirs] = [&first, &second].map(|worker| handled(worker, 1).len());
    assert!(ours >= 300 && theirs >= 300, "they do not share: {ours} and {theirs}");

    // In the middle of its work, so that it has messages in hand.
    let load = Load::start(&[address], 5, stories(2, 50, 20));
    load.accepted(300).await;
    first.kill().await;
    let more = load.finish().await;
    settled(&js, 4000).await;
    check::kept(&js, &more.accepted).await;
    assert_eq!(bus::changes(&js).await.len(), 2700 + 950);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_partitions_of_a_dead_worker_do_not_wait_for_it() {
    let (nats, data) = (Nats::start().await, temp_dir());
    let ingest = ingest(Path::new(EXE), &nats, data.path());
    let address = ingest.address_in("ingest listens").await;
    let (mut first, _second) = (worker(&nats, "600").await, worker(&nats, "600").await);
    let js = jetstream::new(nats.client().await);
    let opened = |repository| {
        let http = reqwest::Client::new();
        stream::iter(1..=128).for_each_concurrent(4, move |number| {
            let (http, delivery) =
                (http.clone(), Issue::new(repository, number).delivery("opened"));
            async move { assert_eq!(send(&http, address, &delivery).await.status, 200) }
        })
    };
    opened(1).await;
    settled(&js, 128).await;
    assert!(!handled(&first, 1).is_empty());
    first.kill().await;
    let started = Instant::now();
    opened(2).await;
    // It had nothing in hand, so that nothing waits for `ACK_WAIT_SECS`.
    settled(&js, 256).await;
    eprintln!("settled after {:?}", started.elapsed());
}

/// Sets the policy of all consumers of partitions.
pub(crate) async fn set_policy(js: &jetstream::Context, policy: PriorityPolicy) {
    let stream = js.get_stream(names::EVENTS).await.expect("the stream");
    for partition in Partitions::DEFAULT.all() {
        let info = stream.consumer_info(names::consumer_name(partition)).await.expect("its info");
        let mut config = info.config;
        config.priority_policy = policy.clone();
        config.priority_groups = match policy {
            PriorityPolicy::None => Vec::new(),
            _ => vec![names::WORKERS_GROUP.into()],
        };
        stream.create_consumer(config).await.expect("an update");
    }
}

pub(crate) async fn policies(js: &jetstream::Context) -> Vec<PriorityPolicy> {
    let stream = js.get_stream(names::EVENTS).await.expect("the stream");
    let mut policies = Vec::new();
    for partition in Partitions::DEFAULT.all() {
        let info = stream.consumer_info(names::consumer_name(partition)).await.expect("its info");
        policies.push(info.config.priority_policy);
    }
    policies.dedup();
    policies
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_of_an_older_version_get_the_policy_and_lose_it_without_harm() {
    let (nats, data) = (Nats::start().await, temp_dir());
    let ingest = ingest(Path::new(EXE), &nats, data.path());
    let address = ingest.address_in("ingest listens").await;
    let js = jetstream::new(nats.client().await);
    let mut older = worker(&nats, "30").await;
    older.signal("TERM");
    older.exited().await;
    set_policy(&js, PriorityPolicy::None).await;

    let worker = worker(&nats, "30").await;
    assert_eq!(policies(&js).await, [PriorityPolicy::Prioritized]);
    assert!(!worker.output().contains("refused"), "{}", worker.output());
    // While it runs, somebody takes the policy away: its requests name a group that is unknown.
    set_policy(&js, PriorityPolicy::None).await;
    let http = reqwest::Client::new();
    for number in 1..=64 {
        let delivery = Issue::new(1, number).assigned(&["bot"]).delivery("assigned");
        assert_eq!(send(&http, address, &delivery).await.status, 200);
    }
    settled(&js, 64).await;
    assert!(!worker.output().contains("cannot consume"), "{}", worker.output());

    // A worker of the older version names no group. It is refused, and disturbs nobody.
    set_policy(&js, PriorityPolicy::Prioritized).await;
    let client = nats.client().await;
    let inbox = client.new_inbox();
    let mut replies = client.subscribe(inbox.clone()).await.expect("subscribe");
    for partition in Partitions::DEFAULT.all() {
        let consumer = names::consumer_name(partition);
        let next = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{consumer}", names::EVENTS);
        let request = r#"{"batch":64,"expires":60000000000}"#;
        client.publish_with_reply(next, inbox.clone(), request.into()).await.expect("publish");
    }
    for _ in Partitions::DEFAULT.all() {
        let reply = wait::within("a reply", replies.next()).await.expect("a reply");
        assert_eq!(reply.status.map(|status| status.as_u16()), Some(400), "{reply:?}");
    }
    for number in 65..=128 {
        let delivery = Issue::new(1, number).assigned(&["bot"]).delivery("assigned");
        assert_eq!(send(&http, address, &delivery).await.status, 200);
    }
    settled(&js, 128).await;
    assert_eq!(bus::changes(&js).await.len(), 128);
}
