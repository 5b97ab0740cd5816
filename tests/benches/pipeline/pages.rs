//! The pages of the operator's listener: how fast and how large they are, and what they cost.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::jetstream;
use contract::names;
use tests::{
    bus,
    nats::Nats,
    services::{Both, both_at, ingest_at},
    usage::Usage,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

use crate::{
    backlog::{Change, Events},
    figures::{median, millis, rate},
    load::{self, Connection, Template, percentile},
    scenarios::{CONNECTIONS, ISSUES, row},
};

const EVENTS: u64 = 1_000_000;
const LOOKUPS: u64 = 200;
/// Pieces in which the stream is filled. Some deliveries come before each of them, and after the last.
const PIECES: u64 = 4;
/// Turns of what is compared. In turns, so that other load of the machine affects both equally.
const TURNS: usize = 4;
const VIEWED: Duration = Duration::from_secs(15);
const ACCEPTED: Duration = Duration::from_secs(6);

/// Runs what is named: `pages` for all, or one such as `pages-fates`.
pub async fn run(exe: &Path, pick: &str) {
    let picked = |name: &str| name.starts_with(pick);
    row("measured", "value", "goal");
    if picked("pages-fates") {
        fates(exe).await;
    }
    if picked("pages-viewer") {
        viewer(exe).await;
    }
    if picked("pages-accept") {
        accept(exe).await;
    }
}

/// Measures how long a delivery's whole fate takes with a million events in the stream, and the size
/// of the pages. The deliveries that are looked for lie all over the stream.
async fn fates(exe: &Path) {
    let nats = Nats::start().await;
    let events = Events::recorded(exe).await;
    let data = tests::temp_dir();
    let both = both_at(exe, &nats.url(), data.path(), &[]).await;
    let js = jetstream::new(nats.client().await);
    let mut ids = deliver(&both).await;
    for _ in 0..PIECES {
        events.fill(&nats, EVENTS / PIECES, ISSUES, Change::EveryThird).await;
        ids.extend(deliver(&both).await);
    }
    let all = EVENTS + ids.len() as u64;
    // Asked rarely, since the broker's answers cost as well.
    while bus::count(&js, names::EVENTS).await < all || bus::lag(&js).await != Some(0) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let unknown: Vec<String> = ids.iter().map(|_| uuid::Uuid::new_v4().to_string()).collect();
    for (whose, ids) in [("a delivery", &ids), ("an id that nobody knows", &unknown)] {
        let (times, whole) = looked_up(&both, ids).await;
        row(&format!("{whose}, all that is known: p50"), millis(percentile(&times, 50.0)), "");
        row("  p95", millis(percentile(&times, 95.0)), "300 ms");
        row(&format!("  whole, of {}", ids.len()), whole, "");
    }
    let id = &ids[0];
    for (page, path) in [
        ("Now", "/".to_owned()),
        ("Find", "/find?q=maria".to_owned()),
        ("Delivery", format!("/deliveries/{id}")),
        ("Issue", "/issues/acme/widgets/1".to_owned()),
        ("Dead letters", "/dead-letters".to_owned()),
    ] {
        let (size, time) = get(&both, &path).await;
        row(&format!("size of the page {page}"), format!("{:.1} kB", size as f64 / 1e3), "30 kB");
        row("  time", millis(time), "");
    }
}

/// Sends some deliveries, each the first one of an issue.
async fn deliver(both: &Both) -> Vec<String> {
    let template = Template::recorded();
    let mut connection = Connection::open(both.webhook).await;
    let mut ids = Vec::new();
    for _ in 0..LOOKUPS / (PIECES + 1) {
        let issue = ISSUES + 1 + fastrand::u64(..1 << 40);
        let (id, status) = connection.send(&mut template.request(issue, 0)).await;
        assert_eq!(status, 200);
        ids.push(id.to_string());
    }
    ids
}

/// How long each page takes, sorted, and how many of them tell that the delivery was received,
/// published and told, and that all was looked at.
async fn looked_up(both: &Both, ids: &[String]) -> (Vec<Duration>, usize) {
    let http = client();
    let (mut times, mut whole) = (Vec::new(), 0);
    for id in ids {
        let started = Instant::now();
        let page =
            http.get(format!("{}/deliveries/{id}", both.pages)).send().await.expect("a page");
        let text = page.text().await.expect("a text");
        times.push(started.elapsed());
        let parts = ["in the journal", "in the stream of events", "changes were told"];
        let all = parts.iter().all(|part| text.contains(part)) && !text.contains("more patience");
        whole += usize::from(all);
    }
    times.sort_unstable();
    (times, whole)
}

/// Size of a page, and how long it takes.
async fn get(both: &Both, path: &str) -> (usize, Duration) {
    let started = Instant::now();
    let page = client().get(format!("{}{path}", both.pages)).send().await.expect("a page");
    assert_eq!(page.status(), 200, "{path}");
    (page.bytes().await.expect("a page").len(), started.elapsed())
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().expect("an HTTP client")
}

/// Measures processor time at 1,000 deliveries a second, with somebody who watches and without.
async fn viewer(exe: &Path) {
    let nats = Nats::start().await;
    let data = tests::temp_dir();
    let both = both_at(exe, &nats.url(), data.path(), &[]).await;
    let template = Template::recorded();
    let turn = VIEWED.as_secs() * 1_000;
    let mut cores: [Vec<f64>; 2] = Default::default();
    for n in 0..2 * TURNS as u64 {
        let watched = n % 2 == 1;
        let viewer = if watched { Some(Viewer::open(&both.pages).await) } else { None };
        let requests = (n * turn..(n + 1) * turn)
            .map(|n| template.request(n % ISSUES + 1, n / ISSUES))
            .collect();
        let (before, started) = (Usage::of(both.process.pid()).cpu, Instant::now());
        load::open_loop(both.webhook, requests, CONNECTIONS, 1000.0, |_, _| {}).await;
        let used = Usage::of(both.process.pid()).cpu - before;
        cores[usize::from(watched)].push(used.as_secs_f64() / started.elapsed().as_secs_f64());
        if let Some(viewer) = viewer {
            assert!(viewer.close() > 0, "the viewer saw nothing");
        }
    }
    let [alone, watched] = cores.map(median);
    row("a core at 1000/s, nobody watches", format!("{:.2}%", alone * 100.0), "");
    row("a core at 1000/s, one watches live", format!("{:.2}%", watched * 100.0), "");
    row("  the difference", format!("{:.2}%", (watched - alone) * 100.0), "1%");
}

/// Somebody who has the page Now open, with its live part.
struct Viewer {
    reads: JoinHandle<()>,
    read: Arc<AtomicUsize>,
}

impl Viewer {
    async fn open(pages: &str) -> Self {
        let page = client().get(format!("{pages}/")).send().await.expect("a page");
        let page = page.text().await.expect("a text");
        let (_, rest) = page.split_once("data-live=\"").expect("a live part");
        let (path, _) = rest.split_once('"').expect("its address");
        let address = pages.strip_prefix("http://").expect("a URL");
        let mut stream = TcpStream::connect(address).await.expect("connect");
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("write");
        let read = Arc::default();
        let counted: Arc<AtomicUsize> = Arc::clone(&read);
        let reads = tokio::spawn(async move {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                counted.fetch_add(length, Ordering::Relaxed);
            }
        });
        Self { reads, read }
    }

    /// Goes away. Returns how many bytes it was sent.
    fn close(self) -> usize {
        self.reads.abort();
        self.read.load(Ordering::Relaxed)
    }
}

/// Measures durable 200s a second with the store of spans and a viewer, beside neither.
async fn accept(exe: &Path) {
    let template = Template::recorded();
    let requests: Arc<Vec<_>> = Arc::new((0..ISSUES).map(|n| template.request(n + 1, 0)).collect());
    let mut rates: [Vec<f64>; 2] = Default::default();
    for n in 0..2 * TURNS {
        let with = n % 2 == 1;
        let store = if with { "33554432" } else { "0" };
        let nats = Nats::start().await;
        let data = tests::temp_dir();
        let ingest = ingest_at(exe, &nats.url(), data.path(), &[], &[("SPAN_STORE_BYTES", store)]);
        let address = ingest.address_in("ingest listens").await;
        let pages = format!("http://{}", ingest.address_in("operator listens").await);
        let viewer = if with { Some(Viewer::open(&pages).await) } else { None };
        let run = load::closed_loop(address, Arc::clone(&requests), CONNECTIONS, ACCEPTED).await;
        rates[usize::from(with)].push(run.rate());
        assert_ne!(viewer.map(Viewer::close), Some(0), "the viewer saw nothing");
    }
    let [without, with] = rates.map(median);
    row("accepted, 64 connections: no store of spans, nobody watches", rate(without), "");
    row("accepted, 64 connections: both", rate(with), "");
    row("  ratio", format!("{:.2}", with / without), "0.95");
}
