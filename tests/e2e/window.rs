//! The journal's window: what is offered again and what is not, what is set
//! aside, and what holds back the low-water mark.

use std::{net::SocketAddr, path::Path};

use async_nats::jetstream::{self, stream};
use contract::names;
use tests::{
    bus,
    gitea::{Delivery, Issue},
    nats::Nats,
    process::Process,
    services::ingest_at,
    system::{send, total},
    temp_dir, wait,
};

use crate::settling::crowd;

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");

/// An ingest as a separate process.
struct Ingest {
    process: Process,
    address: SocketAddr,
    operator: SocketAddr,
}

impl Ingest {
    async fn start(nats_url: &str, data: &Path, settings: &[(&str, &str)]) -> Self {
        let process = ingest_at(Path::new(EXE), nats_url, data, &[], settings);
        let address = process.address_in("ingest listens").await;
        let operator = process.address_in("operator listens").await;
        Self { process, address, operator }
    }

    async fn accepts(&self, delivery: &Delivery) {
        let answer = send(&reqwest::Client::new(), self.address, delivery).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    async fn shows(&self, metric: &str, expected: f64) {
        wait::until_equal(metric, expected, || total(self.operator, metric, "")).await;
    }

    async fn ends_at(&mut self, signal: &str) {
        self.process.signal(signal);
        let code = self.process.exited().await.code();
        assert_eq!(code, Some(0), "{}", self.process.output());
    }
}

/// Takes the write lock of a journal, so that another writer finds it locked.
fn lock(data: &Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(data.join("journal.db")).expect("the journal");
    connection.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    connection
}

async fn publish(js: &jetstream::Context, id: &str) -> bool {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", id);
    let subject = "gitea.issues.probe.a.b.1.0";
    let sent = js.publish_with_headers(subject, headers, "probe".into()).await;
    sent.expect("publish").await.expect("an ack").duplicate
}

#[tokio::test]
async fn what_was_confirmed_before_a_long_stop_is_not_stored_again() {
    let (nats, data) = (Nats::start().await, temp_dir());
    let settings = [("JOURNAL_RETENTION_SECS", "8"), ("DEDUP_WINDOW_SECS", "10")];
    let mut ingest = Ingest::start(&nats.url(), data.path(), &settings).await;
    let js = jetstream::new(nats.client().await);
    for second in 1..=6 {
        ingest.accepts(&Issue::new(1, 1).at(second).delivery("edited")).await;
    }
    wait::until_equal("six events", 6, || bus::count(&js, names::EVENTS)).await;
    assert!(!publish(&js, "probe").await);
    ingest.ends_at("TERM").await;
    // Once the broker has forgotten this id, it has forgotten the six earlier ones.
    wait::until("the dedup window to end", || async {
        (!publish(&js, "probe").await).then_some(())
    })
    .await;
    let ingest = Ingest::start(&nats.url(), data.path(), &settings).await;
    // An event of the same issue comes after all that would be offered again.
    ingest.accepts(&Issue::new(1, 1).at(7).delivery("edited")).await;
    ingest.shows("coordinator_journal_depth", 0.0).await;
    let events = bus::messages(&js, names::EVENTS).await.expect("the stream");
    let probes = events.iter().filter(|event| event.payload == b"probe").count();
    assert_eq!((events.len(), probes), (9, 2), "six events, a seventh, and two probes");
}

#[tokio::test]
async fn what_could_not_be_set_aside_is_not_settled_and_is_tried_again() {
    let mut nats = Nats::prepared("max_payload: 50000");
    let data = temp_dir();
    let ingest = Ingest::start(&nats.url(), data.path(), &[]).await;
    ingest.accepts(&crowd(1, 60_000).delivery("assigned")).await;
    let locked = lock(data.path());
    nats.restart().await;
    ingest.process.line_with("cannot set an entry aside").await;
    assert_eq!(total(ingest.operator, "coordinator_journal_depth", "").await, 1.0);
    locked.execute_batch("ROLLBACK").expect("unlock");
    ingest.shows("coordinator_journal_set_aside", 1.0).await;
    ingest.shows("coordinator_journal_depth", 0.0).await;
    let kept: i64 = locked
        .query_row("SELECT count(*) FROM set_aside", (), |row| row.get(0))
        .expect("the journal");
    assert_eq!(kept, 1);
}

#[tokio::test]
async fn what_a_stream_never_takes_is_cut_or_set_aside_and_stops_nothing() {
    let (nats, data) = (Nats::start().await, temp_dir());
    let js = jetstream::new(nats.client().await);
    let config = stream::Config {
        name: names::EVENTS.into(),
        subjects: vec![format!("{}.>", names::EVENTS_PREFIX)],
        max_message_size: 4000,
        ..stream::Config::default()
    };
    js.create_stream(config).await.expect("the stream");
    let ingest = Ingest::start(&nats.url(), data.path(), &[]).await;
    let mut long = Issue::new(1, 1);
    long.body = "x".repeat(5000);
    ingest.accepts(&long.delivery("opened")).await;
    ingest.accepts(&crowd(2, 6000).delivery("assigned")).await;
    for number in 3..43 {
        ingest.accepts(&Issue::new(1, number).delivery("opened")).await;
    }
    ingest.shows("coordinator_journal_depth", 0.0).await;
    ingest.shows("coordinator_journal_set_aside", 1.0).await;
    let events = bus::events(&js).await;
    assert_eq!(events.len(), 41);
    assert!(events.iter().all(|event| event.cut == (event.issue.number == 1)));
    ingest.process.line_with("4000 bytes").await;

    // A limit that comes later is heard of by the refusal.
    let config = stream::Config {
        max_message_size: 3000,
        ..js.get_stream(names::EVENTS).await.expect("the stream").cached_info().config.clone()
    };
    js.update_stream(config).await.expect("a lower limit");
    let mut long = Issue::new(1, 50);
    long.body = "x".repeat(2200);
    ingest.accepts(&long.delivery("opened")).await;
    ingest.accepts(&crowd(51, 2000).delivery("assigned")).await;
    ingest.shows("coordinator_journal_set_aside", 2.0).await;
    ingest.shows("coordinator_journal_depth", 0.0).await;
    let events = bus::events(&js).await;
    let late: Vec<_> =
        events.iter().filter(|e| e.issue.number >= 50).map(|e| (e.issue.number, e.cut)).collect();
    assert_eq!(late, [(50, true)], "{}", ingest.process.output());
}

#[tokio::test]
async fn the_fate_of_a_delivery_is_reported_though_its_sender_has_hung_up() {
    let (nats, data) = (Nats::start().await, temp_dir());
    let ingest = Ingest::start(&nats.url(), data.path(), &[]).await;
    let locked = lock(data.path());
    let delivery = Issue::new(1, 1).delivery("opened");
    let mut request = format!(
        "POST /webhook/gitea HTTP/1.1\r\nHost: ingest\r\nContent-Length: {}\r\n",
        delivery.body.len()
    );
    for (name, value) in &delivery.headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    let request = [request.as_bytes(), b"\r\n", &delivery.body].concat();
    let mut stream = tokio::net::TcpStream::connect(ingest.address).await.expect("connect");
    // The whole request and the end of the connection are there at once when ingest reads.
    ingest.process.signal("STOP");
    tokio::io::AsyncWriteExt::write_all(&mut stream, &request).await.expect("sent");
    drop(stream);
    ingest.process.signal("CONT");
    locked.execute_batch("ROLLBACK").expect("unlock");
    let line = ingest.process.line_with("delivery accepted").await;
    let line: serde_json::Value = serde_json::from_str(&line).expect("a JSON log line");
    assert_eq!(line["gitea.delivery.id"], delivery.id());
    ingest.shows("coordinator_deliveries_total", 1.0).await;
    let js = jetstream::new(nats.client().await);
    wait::until_equal("its event", 1, || bus::count(&js, names::EVENTS)).await;
}

#[tokio::test]
async fn sighup_stops_as_gracefully_as_sigterm() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap_or_default();
    if u64::from_str_radix(ignored.trim(), 16).is_ok_and(|signals| signals & 1 == 1) {
        // Under nohup the children ignore it too, as they should.
        return println!("skipped: SIGHUP is ignored here");
    }
    let (nats, data) = (Nats::start().await, temp_dir());
    let mut ingest = Ingest::start(&nats.url(), data.path(), &[]).await;
    ingest.accepts(&Issue::new(1, 1).delivery("opened")).await;
    ingest.ends_at("HUP").await;
    assert!(ingest.process.output().contains("ingest stopped"));
    let js = jetstream::new(nats.client().await);
    assert_eq!(bus::count(&js, names::EVENTS).await, 1);
}
