//! Senders that behave like Gitea: several at once, a timeout of five seconds,
//! and no retry.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tests::system::try_send;
use tokio::task::JoinSet;

use crate::{
    clock,
    history::{History, Outgoing},
    records::{Lines, Sent},
};

/// Gitea's `DELIVER_TIMEOUT`.
const PATIENCE: Duration = Duration::from_secs(5);
/// Deliveries in flight at once.
const SENDERS: usize = 8;

/// What became of the deliveries so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// All deliveries.
    pub sent: usize,
    /// Deliveries with a body that was sent before.
    pub again: usize,
    /// Deliveries that delete an issue, without those that were sent before.
    pub deletions: usize,
    /// Deliveries by status of the answer; 0 is no answer.
    pub by_status: BTreeMap<u16, usize>,
}

struct Log {
    lines: Lines,
    tally: Tally,
    kept: [HashSet<String>; 2],
}

/// The state that all senders share.
pub struct Post {
    http: reqwest::Client,
    history: Mutex<History>,
    log: Mutex<Log>,
    addresses: [SocketAddr; 2],
    /// Deliveries go to both ingests, and not to the first alone.
    pub both: AtomicBool,
    in_flight: [AtomicUsize; 2],
}

impl Post {
    /// Sends to these ingests and writes `sent.jsonl` into `dir`.
    pub fn new(history: History, addresses: [SocketAddr; 2], dir: &Path) -> Arc<Self> {
        let lines = Lines::create(&dir.join("sent.jsonl")).expect("create sent.jsonl");
        Arc::new(Self {
            http: reqwest::Client::builder().timeout(PATIENCE).build().expect("an HTTP client"),
            history: Mutex::new(history),
            log: Mutex::new(Log { lines, tally: Tally::default(), kept: Default::default() }),
            addresses,
            both: AtomicBool::new(false),
            in_flight: Default::default(),
        })
    }

    /// Sends one delivery, once.
    pub async fn send_next(&self) {
        let outgoing = self.history.lock().expect("no panic").next();
        if outgoing.held > Duration::ZERO {
            tokio::time::sleep(outgoing.held).await;
        }
        let both = self.both.load(Ordering::Relaxed);
        let ingest = if both { outgoing.choice % 2 } else { 0 };
        self.send(outgoing, ingest).await;
    }

    /// Sends one delivery to a certain ingest.
    pub async fn send_next_to(&self, ingest: usize) {
        let outgoing = self.history.lock().expect("no panic").next();
        self.send(outgoing, ingest).await;
    }

    async fn send(&self, outgoing: Outgoing, ingest: usize) {
        self.in_flight[ingest].fetch_add(1, Ordering::SeqCst);
        let sent_at = clock::now();
        let answer = try_send(&self.http, self.addresses[ingest], &outgoing.delivery).await;
        let status = answer.map_or(0, |answer| answer.status);
        let ended_at = clock::now();
        self.note(Sent { ingest, sent_at, ended_at, status, ..outgoing.sent });
        self.in_flight[ingest].fetch_sub(1, Ordering::SeqCst);
    }

    fn note(&self, sent: Sent) {
        let mut log = self.log.lock().expect("no panic");
        log.lines.add(&sent).expect("write sent.jsonl");
        log.tally.sent += 1;
        log.tally.again += usize::from(sent.again);
        let deletes = sent.snapshot.action == "deleted" && !sent.again;
        log.tally.deletions += usize::from(deletes);
        *log.tally.by_status.entry(sent.status).or_default() += 1;
        if sent.status == 200 {
            log.kept[sent.ingest].insert(sent.id);
        }
    }

    /// Waits until nothing is in flight to an ingest that was killed.
    pub async fn nothing_in_flight(&self, ingest: usize) {
        while self.in_flight[ingest].load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Ids of all deliveries that this ingest has answered 200.
    pub fn kept(&self, ingest: usize) -> HashSet<String> {
        self.log.lock().expect("no panic").kept[ingest].clone()
    }

    /// What became of the deliveries so far.
    pub fn tally(&self) -> Tally {
        self.log.lock().expect("no panic").tally.clone()
    }

    /// Hands the log to the system.
    pub fn flush(&self) {
        self.log.lock().expect("no panic").lines.flush().expect("write sent.jsonl");
    }
}

/// Running senders.
pub struct Senders {
    tasks: JoinSet<()>,
    stop: Arc<AtomicBool>,
}

impl Senders {
    /// Starts senders that together send `rate` deliveries a second. After a
    /// delay they send more for a while, like a queue.
    pub fn start(post: &Arc<Post>, rate: f64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let every = Duration::from_secs_f64(SENDERS as f64 / rate);
        let mut tasks = JoinSet::new();
        for _ in 0..SENDERS {
            let (post, stop) = (Arc::clone(post), Arc::clone(&stop));
            tasks.spawn(async move {
                let mut ticks = tokio::time::interval(every);
                while !stop.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    post.send_next().await;
                }
            });
        }
        Self { tasks, stop }
    }

    /// Waits for the answers of deliveries in flight, and ends.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
    }
}
