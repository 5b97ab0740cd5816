//! Ingest and worker as processes that are killed or stopped, or that must refuse to start.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
};

use async_nats::jetstream;
use contract::{names, partitions::Partitions};
use tests::{
    bus, check,
    gitea::Issue,
    load::{Load, Sent, stories},
    nats::Nats,
    process::{Process, signal},
    services::{ingest_at, worker_at},
    system::{send, settled, total},
    temp_dir, wait,
};

use crate::telemetry::refuse_changes;

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");

fn start_ingest_process(nats_url: &str, data: &Path, port: u16) -> Process {
    ingest_at(Path::new(EXE), nats_url, data, &[], &[("PORT", &port.to_string())])
}

fn start_worker_process(nats_url: &str, ack_wait_secs: &str) -> Process {
    worker_at(Path::new(EXE), nats_url, &[], &[("ACK_WAIT_SECS", ack_wait_secs)])
}

async fn ingest(nats_url: &str, data: &Path, port: u16) -> (Process, SocketAddr) {
    let process = start_ingest_process(nats_url, data, port);
    let address = process.address_in("ingest listens").await;
    (process, address)
}

/// A worker that consumes all partitions.
async fn worker(nats_url: &str, ack_wait_secs: &str) -> (Process, SocketAddr) {
    let process = start_worker_process(nats_url, ack_wait_secs);
    let address = process.address_in("operator listens").await;
    wait::until_equal("a worker that consumes", Some(200), || async {
        let answer = reqwest::get(format!("http://{address}/health/ready")).await.ok()?;
        Some(answer.status().as_u16())
    })
    .await;
    (process, address)
}

async fn reader(nats: &Nats) -> jetstream::Context {
    jetstream::new(nats.client().await)
}

async fn handled(worker: SocketAddr) -> f64 {
    total(worker, "coordinator_events_total", "").await
}

async fn redelivered(worker: SocketAddr) -> f64 {
    total(worker, "coordinator_redeliveries_total", "").await
}

async fn retried(worker: SocketAddr) -> f64 {
    total(worker, "coordinator_retries_total", "").await
}

async fn depth(ingest: SocketAddr) -> u64 {
    let answer = reqwest::get(format!("http://{ingest}/health")).await.expect("an answer");
    let health = answer.bytes().await.expect("a body");
    let health: serde_json::Value = serde_json::from_slice(&health).expect("JSON");
    health["journal"]["depth"].as_u64().expect("depth")
}

/// Waits until all accepted deliveries are settled, and checks them. Deliveries without an answer
/// may be there, too.
async fn arrived(js: &jetstream::Context, ingest: SocketAddr, sent: &Sent) {
    wait::until_equal("an empty journal", 0, || depth(ingest)).await;
    settled(js, bus::count(js, names::EVENTS).await).await;
    check::kept(js, &sent.accepted).await;
    let known: HashSet<&str> =
        sent.accepted.iter().chain(&sent.unanswered).map(|delivery| delivery.id()).collect();
    for event in bus::events(js).await {
        assert!(known.contains(event.delivery.id.as_str()), "{} was never sent", event.delivery.id);
    }
}

/// Events in the hands of workers.
async fn in_hand(js: &jetstream::Context) -> usize {
    let stream = js.get_stream(names::EVENTS).await.expect("the stream");
    let mut in_hand = 0;
    for partition in Partitions::DEFAULT.all() {
        let name = names::consumer_name(partition);
        in_hand += stream.consumer_info(name).await.expect("its info").num_ack_pending;
    }
    in_hand
}

/// 500 events in the stream that no worker has seen.
async fn backlog(nats: &Nats, ingest: SocketAddr) -> (jetstream::Context, Sent) {
    let sent = Load::start(&[ingest], 5, stories(1, 50, 10)).finish().await;
    assert_eq!((sent.accepted.len(), sent.unanswered.len()), (500, 0));
    wait::until_equal("all to be published", 0, || depth(ingest)).await;
    (reader(nats).await, sent)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_worker_had_in_hand_is_taken_over() {
    let (nats, data) = (Nats::start().await, temp_dir());
    let (_ingest, address) = ingest(&nats.url(), data.path(), 0).await;
    let (js, sent) = backlog(&nats, address).await;
    let process = start_worker_process(&nats.url(), "2");
    let mut killed = (process.address_in("operator listens").await, process);
    wait::until("it to be in the middle", || async {
        (handled(killed.0).await >= 50.0).then_some(())
    })
    .await;
    // The worker now waits for the broker in vain, and is killed in the middle of its work.
    signal(nats.pid(), "STOP");
    killed.1.kill().await;
    signal(nats.pid(), "CONT");
    let (_other, other) = worker(&nats.url(), "2").await;
    settled(&js, 500).await;
    check::kept(&js, &sent.accepted).await;
    assert_eq!(bus::changes(&js).await.len(), 450);
    assert!(redelivered(other).await >= 1.0, "the killed one had nothing in hand");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_killed_one_after_the_other_cost_nothing() {
    let (nats, data) = (Nats::start().await, temp_dir());
    let (_ingest, address) = ingest(&nats.url(), data.path(), 0).await;
    let (mut first, _) = worker(&nats.url(), "2").await;
    let load = Load::start(&[address], 5, stories(1, 20, 50));
    load.accepted(200).await;
    first.kill().await;
    let (mut second, _) = worker(&nats.url(), "2").await;
    let (_third, third) = worker(&nats.url(), "2").await;
    load.accepted(500).await;
    second.kill().await;
    let sent = load.finish().await;
    let js = reader(&nats).await;
    settled(&js, 1000).await;
    check::kept(&js, &sent.accepted).await;
    assert_eq!(bus::changes(&js).await.len(), 980);
    assert!(handled(third).await >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_sleeps_past_its_time_doubles_nothing_when_it_wakes() {
    let (nats, data) = (Nats::start().await, temp_dir());
    let (_ingest, address) = ingest(&nats.url(), data.path(), 0).await;
    let (sleeper, _) = worker(&nats.url(), "1").await;
    let (_other, other) = worker(&nats.url(), "1").await;
    let load = Load::start(&[address], 5, stories(1, 20, 50));
    load.accepted(300).await;
    sleeper.signal("STOP");
    let before = redelivered(other).await;
    wait::until("the other one to take over what the sleeper had", || async {
        (redelivered(other).await >= before + 5.0).then_some(())
    })
    .await;
    sleeper.signal("CONT");
    let sent = load.finish().await;
    let js = reader(&nats).await;
    settled(&js, 1000).await;
    check::kept(&js, &sent.accepted).await;
    assert_eq!(bus::changes(&js).await.len(), 980);
    assert_eq!(bus::count(&js, names::DEAD_LETTERS).await, 0);
}

/// Sends a delivery that assigns `bot` while a worker sleeps. Returns whether the worker has it in
/// hand. A worker whose request for messages has just expired does not get it, and then handles
/// it once it is awake.
async fn asleep_with_one_in_hand(
    (sleeper, ingest): (&Process, SocketAddr),
    js: &jetstream::Context,
    number: u64,
) -> bool {
    let events = 2 * number - 1;
    let http = reqwest::Client::new();
    send(&http, ingest, &Issue::new(1, number).at(1).delivery("opened")).await;
    settled(js, events).await;
    refuse_changes(js, true).await;
    sleeper.signal("STOP");
    let assigned = Issue::new(1, number).assigned(&["bot"]).at(2).delivery("assigned");
    send(&http, ingest, &assigned).await;
    wait::until_equal("it to be published", events + 1, || bus::count(js, names::EVENTS)).await;
    wait::until_equal("all to be published", 0, || depth(ingest)).await;
    if in_hand(js).await == 1 {
        return true;
    }
    refuse_changes(js, false).await;
    sleeper.signal("CONT");
    settled(js, events + 1).await;
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sleeper_does_when_it_wakes_is_known_to_the_one_that_failed_at_it() {
    let (nats, data) = (Nats::start().await, temp_dir());
    let (_ingest, address) = ingest(&nats.url(), data.path(), 0).await;
    let (mut sleeper, _) = worker(&nats.url(), "1").await;
    let js = reader(&nats).await;
    let mut number = 1;
    while !asleep_with_one_in_hand((&sleeper, address), &js, number).await {
        number += 1;
    }
    let (_other, other) = worker(&nats.url(), "1").await;
    wait::until("the other one to fail", || async { (retried(other).await >= 2.0).then_some(()) })
        .await;
    refuse_changes(&js, false).await;
    sleeper.signal("CONT");
    settled(&js, 2 * number).await;
    sleeper.kill().await;
    let both = Issue::new(1, number).assigned(&["bot", "tom"]).at(3).delivery("assigned");
    send(&reqwest::Client::new(), address, &both).await;
    settled(&js, 2 * number + 1).await;
    let changes = bus::changes(&js).await;
    let of_issue = changes.iter().filter(|change| change.issue.number == number);
    let told: Vec<_> = of_issue.map(|change| change.summary()).collect();
    assert_eq!(told, ["assigned +bot", "assigned +tom"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_killed_between_answer_and_publish_publishes_after_its_next_start() {
    let (mut nats, data) = (Nats::prepared(""), temp_dir());
    let (mut process, address) = ingest(&nats.url(), data.path(), 0).await;
    let sent = Load::start(&[address], 3, stories(1, 6, 10)).finish().await;
    assert_eq!((sent.accepted.len(), sent.unanswered.len()), (60, 0));
    process.kill().await;
    let (_ingest, address) = ingest(&nats.url(), data.path(), 0).await;
    assert_eq!(depth(address).await, 60);
    nats.restart().await;
    let (_worker, _) = worker(&nats.url(), "2").await;
    let js = reader(&nats).await;
    settled(&js, 60).await;
    arrived(&js, address, &sent).await;
    assert_eq!(bus::changes(&js).await.len(), 54);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_killed_again_and_again_under_load_keeps_every_200() {
    let (nats, data) = (Nats::start().await, temp_dir());
    let (_worker, _) = worker(&nats.url(), "2").await;
    let (mut process, address) = ingest(&nats.url(), data.path(), 0).await;
    let load = Load::start(&[address], 5, stories(1, 20, 50));
    for killed_at in [100, 300, 500, 700] {
        load.accepted(killed_at).await;
        process.kill().await;
        (process, _) = ingest(&nats.url(), data.path(), address.port()).await;
    }
    let sent = load.finish().await;
    // At a kill, each of the five senders has one delivery in flight, and maybe one in the backlog
    // of the killed process.
    assert!(sent.unanswered.len() <= 4 * 5 * 2, "{} are not answered", sent.unanswered.len());
    assert_eq!(sent.accepted.len() + sent.unanswered.len(), 1000);
    arrived(&reader(&nats).await, address, &sent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_told_to_end_under_load_ends_with_0_and_loses_nothing() {
    let (nats, data) = (Nats::start().await, temp_dir());
    let (_worker, _) = worker(&nats.url(), "2").await;
    let (mut process, address) = ingest(&nats.url(), data.path(), 0).await;
    let load = Load::start(&[address], 5, stories(1, 20, 50));
    load.accepted(300).await;
    process.signal("TERM");
    assert_eq!(process.exited().await.code(), Some(0), "{}", process.output());
    let (_ingest, _) = ingest(&nats.url(), data.path(), address.port()).await;
    let sent = load.finish().await;
    assert_eq!(sent.accepted.len() + sent.unanswered.len(), 1000);
    arrived(&reader(&nats).await, address, &sent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_told_to_end_under_load_ends_with_0_and_leaves_nothing_in_hand() {
    let (nats, data) = (Nats::start().await, temp_dir());
    let (_ingest, address) = ingest(&nats.url(), data.path(), 0).await;
    let (mut process, _) = worker(&nats.url(), "600").await;
    let load = Load::start(&[address], 5, stories(1, 20, 50));
    load.accepted(300).await;
    process.signal("TERM");
    assert_eq!(process.exited().await.code(), Some(0), "{}", process.output());
    let js = reader(&nats).await;
    assert_eq!(in_hand(&js).await, 0, "events that nobody gets before ack_wait is over");
    let (_other, _) = worker(&nats.url(), "600").await;
    let sent = load.finish().await;
    settled(&js, 1000).await;
    check::kept(&js, &sent.accepted).await;
    assert_eq!(bus::changes(&js).await.len(), 980);
}

#[tokio::test]
async fn bad_settings_are_told_in_one_line_before_anything_binds() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = taken.local_addr().expect("address").port().to_string();
    for (service, environment, line) in [
        ("ingest", vec![], "coordinator: GITEA_URL is required; GITEA_WEBHOOK_SECRET is required"),
        ("worker", vec![], "coordinator: GITEA_URL is required"),
        (
            "ingest",
            vec![("PORT", port.as_str()), ("GITEA_URL", "ftp://x"), ("MAX_CONNECTIONS", "0")],
            "coordinator: GITEA_URL is not an http:// or https:// URL; MAX_CONNECTIONS is not a number from 1 to 1048576; GITEA_WEBHOOK_SECRET is required",
        ),
        (
            "worker",
            vec![
                ("OPERATOR_PORT", port.as_str()),
                ("NATS_URL", "nats://a b"),
                ("ACK_WAIT_SECS", "x"),
            ],
            "coordinator: GITEA_URL is required; NATS_URL has a space in it; several servers go with commas between; ACK_WAIT_SECS is not a number from 1 to 3600",
        ),
    ] {
        let mut process = Process::start(Path::new(EXE), service, &[], &environment);
        let code = process.exited().await.code();
        assert_eq!((process.output().trim_end(), code), (line, Some(64)));
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_told() {
    let data = temp_dir();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = taken.local_addr().expect("address").port();
    let mut process = start_ingest_process("nats://127.0.0.1:1", data.path(), port);
    assert_eq!(process.exited().await.code(), Some(1));
    let line = format!("coordinator: port {port} is taken; set PORT (--port) to another");
    assert_eq!(process.output().lines().last(), Some(line.as_str()), "{}", process.output());

    let flags = ["--operator-port", &port.to_string()];
    let environment = [("GITEA_URL", "http://localhost:3000")];
    let mut process = Process::start(Path::new(EXE), "worker", &flags, &environment);
    assert_eq!(process.exited().await.code(), Some(1));
    let line = format!(
        "coordinator: port {port} is taken; set OPERATOR_PORT (--operator-port) to another"
    );
    assert_eq!(process.output().lines().last(), Some(line.as_str()), "{}", process.output());
}

#[tokio::test]
async fn a_data_directory_of_another_ingest_is_told_and_left_alone() {
    let data = temp_dir();
    let (_first, address) = ingest("nats://127.0.0.1:1", data.path(), 0).await;
    let mut second = start_ingest_process("nats://127.0.0.1:1", data.path(), 0);
    assert_eq!(second.exited().await.code(), Some(1));
    let line = format!(
        "coordinator: open the journal in {}: another instance uses this directory",
        data.path().display()
    );
    assert_eq!(second.output().lines().last(), Some(line.as_str()), "{}", second.output());
    let sent = Load::start(&[address], 1, stories(1, 1, 5)).finish().await;
    assert_eq!(sent.accepted.len(), 5);
    assert_eq!(depth(address).await, 5);
}

#[tokio::test]
async fn the_health_command_tells_whether_the_role_is_up() {
    let data = temp_dir();
    let nats_url = "nats://127.0.0.1:1";
    let (ingest, _) = ingest(nats_url, data.path(), 0).await;
    let worker = start_worker_process(nats_url, "2");
    let ingest = ingest.address_in("operator listens").await.port().to_string();
    let worker = worker.address_in("operator listens").await.port().to_string();
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr());
    let nobody = free.expect("a port").port().to_string();
    for (port, code) in [(&ingest, 0), (&worker, 0), (&nobody, 1)] {
        let environment = [("OPERATOR_PORT", port.as_str())];
        let mut process = Process::start(Path::new(EXE), "health", &[], &environment);
        assert_eq!(process.exited().await.code(), Some(code), "{}", process.output());
        let output = process.output();
        let said = output.starts_with("coordinator: no answer: ");
        assert_eq!((said, output.lines().count()), (code == 1, code as usize), "{output}");
    }
}
