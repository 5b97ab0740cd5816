//! A load generator that costs little: requests are built in advance, and the
//! client writes and reads bytes.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tests::gitea;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use uuid::Uuid;

/// Where the delivery id stands in a request, to be overwritten by a fresh one.
const ID_PLACE: &str = "00000000-0000-4000-8000-000000000000";

/// A real delivery of Gitea as a template for many issues and times.
pub struct Template {
    one: String,
    two: String,
}

impl Template {
    /// From the recording: the same issue with one and with two assignees.
    pub fn recorded() -> Self {
        let text = |name| {
            let recorded = gitea::recorded_one("gitea-1.25", name);
            String::from_utf8(recorded.delivery.body).expect("UTF-8")
        };
        Self { one: text("0002"), two: text("0003") }
    }

    /// Makes the text of the issues longer by `text`, which must need no escapes in JSON.
    #[cfg(target_os = "linux")]
    pub fn with_text(self, text: &str) -> Self {
        let longer = |payload: String| {
            payload.replacen("\"body\": \"Steps", &format!("\"body\": \"{text} Steps"), 1)
        };
        Self { one: longer(self.one), two: longer(self.two) }
    }

    /// The payload of event `step` of an issue: every third one changes who is assigned.
    pub fn payload(&self, issue: u64, step: u64) -> String {
        let text = if (step / 3).is_multiple_of(2) { &self.two } else { &self.one };
        let time = format!("2026-11-24T{:02}:{:02}:{:02}Z", step / 3600, step / 60 % 60, step % 60);
        text.replace("\"number\": 1,", &format!("\"number\": {issue},"))
            .replace("2026-11-23T23:45:02Z", &time)
            .replace("2026-11-23T23:45:03Z", &time)
    }

    /// The whole request for event `step` of an issue.
    pub fn request(&self, issue: u64, step: u64) -> Request {
        let body = self.payload(issue, step);
        let signature = gitea::sign(gitea::SECRET, body.as_bytes());
        let head = format!(
            "POST /webhook/gitea HTTP/1.1\r\nHost: localhost\r\nUser-Agent: Go-http-client/1.1\r\n\
             Content-Length: {}\r\nContent-Type: application/json\r\n\
             X-GitHub-Event: issues\r\nX-GitHub-Event-Type: issue_assign\r\n\
             X-Gitea-Delivery: {ID_PLACE}\r\nX-Gitea-Event: issues\r\n\
             X-Gitea-Event-Type: issue_assign\r\n\
             X-Gitea-Hook-Installation-Target-Type: repository\r\n\
             X-Gitea-Signature: {signature}\r\nX-Hub-Signature-256: sha256={signature}\r\n\
             Accept-Encoding: gzip\r\n\r\n",
            body.len()
        );
        let id_at = head.find(ID_PLACE).expect("the place of the id");
        Request { bytes: (head + &body).into_bytes(), id_at }
    }
}

/// A request, ready to be sent under a fresh id each time.
#[derive(Clone)]
pub struct Request {
    bytes: Vec<u8>,
    id_at: usize,
}

/// A connection that is kept alive.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        Self { stream, buffer: vec![0; 4096] }
    }

    /// Sends under a fresh delivery id and returns it with the status.
    pub async fn send(&mut self, request: &mut Request) -> (Uuid, u16) {
        let id = Uuid::new_v4();
        let place = &mut request.bytes[request.id_at..request.id_at + ID_PLACE.len()];
        id.hyphenated().encode_lower(place);
        self.stream.write_all(&request.bytes).await.expect("write");
        let mut read = 0;
        loop {
            read += match self.stream.read(&mut self.buffer[read..]).await.expect("read") {
                0 => panic!("the connection was closed"),
                n => n,
            };
            if let Some(status) = complete(&self.buffer[..read]) {
                return (id, status);
            }
        }
    }
}

/// The status, once head and body are complete.
fn complete(bytes: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    })?;
    (body.len() >= length).then(|| head.get(9..12)?.parse().ok())?
}

/// Result of a run of requests.
pub struct Run {
    pub seconds: f64,
    /// Time from when a request was sent or due to its answer, sorted.
    pub latencies: Vec<Duration>,
    pub accepted: u64,
}

impl Run {
    pub fn rate(&self) -> f64 {
        self.accepted as f64 / self.seconds
    }

    pub fn percentile(&self, percent: f64) -> Duration {
        percentile(&self.latencies, percent)
    }
}

/// A percentile of sorted durations.
pub fn percentile(sorted: &[Duration], percent: f64) -> Duration {
    let at = ((sorted.len() as f64 - 1.0) * percent / 100.0).round() as usize;
    sorted.get(at).copied().unwrap_or_default()
}

/// Sends as fast as `connections` connections can, for `duration`.
pub async fn closed_loop(
    address: SocketAddr,
    requests: Arc<Vec<Request>>,
    connections: usize,
    duration: Duration,
) -> Run {
    let started = Instant::now();
    closed_loop_while(address, requests, connections, move || started.elapsed() < duration).await
}

/// Sends as fast as `connections` connections can, while `go_on` returns true.
pub async fn closed_loop_while(
    address: SocketAddr,
    requests: Arc<Vec<Request>>,
    connections: usize,
    go_on: impl Fn() -> bool + Send + Sync + 'static,
) -> Run {
    let started = Instant::now();
    let go_on = Arc::new(go_on);
    let tasks = (0..connections).map(|n| {
        let (requests, go_on) = (Arc::clone(&requests), Arc::clone(&go_on));
        tokio::spawn(async move {
            let mut connection = Connection::open(address).await;
            let mut latencies = Vec::new();
            let mut at = n * requests.len() / connections;
            let mut request = requests[at].clone();
            while go_on() {
                at = (at + 1) % requests.len();
                request.clone_from(&requests[at]);
                let sent = Instant::now();
                let (_, status) = connection.send(&mut request).await;
                assert_eq!(status, 200);
                latencies.push(sent.elapsed());
            }
            latencies
        })
    });
    collect(started, tasks.collect()).await
}

/// Sends `rate` requests a second, however long the answers take. A request's
/// latency counts from when it was due. `sent` is called with each id and the
/// moment at which its request was due.
pub async fn open_loop(
    address: SocketAddr,
    requests: Vec<Request>,
    connections: usize,
    rate: f64,
    sent: impl Fn(Uuid, Instant) + Send + Sync + 'static,
) -> Run {
    let started = Instant::now();
    let (sent, next) = (Arc::new(sent), Arc::new(AtomicU64::new(0)));
    let requests = Arc::new(requests);
    let tasks = (0..connections).map(|_| {
        let (requests, sent, next) = (Arc::clone(&requests), Arc::clone(&sent), Arc::clone(&next));
        tokio::spawn(async move {
            let mut connection = Connection::open(address).await;
            let mut latencies = Vec::new();
            loop {
                let turn = next.fetch_add(1, Ordering::Relaxed);
                let Some(request) = requests.get(turn as usize) else { break };
                let due = started + Duration::from_secs_f64(turn as f64 / rate);
                tokio::time::sleep_until(due.into()).await;
                // The timer may be late by a millisecond. The service is not responsible for that.
                let due = due.max(Instant::now());
                let (id, status) = connection.send(&mut request.clone()).await;
                assert_eq!(status, 200);
                latencies.push(due.elapsed());
                sent(id, due);
            }
            latencies
        })
    });
    collect(started, tasks.collect()).await
}

/// Sends `rate` requests a second, each on a connection of its own, as a client does that keeps few.
#[cfg(target_os = "linux")]
pub async fn on_own_connections(address: SocketAddr, requests: Vec<Request>, rate: f64) -> Run {
    let started = Instant::now();
    let tasks = requests.into_iter().enumerate().map(|(turn, mut request)| {
        tokio::spawn(async move {
            let due = started + Duration::from_secs_f64(turn as f64 / rate);
            tokio::time::sleep_until(due.into()).await;
            let due = due.max(Instant::now());
            let (_, status) = Connection::open(address).await.send(&mut request).await;
            assert_eq!(status, 200);
            vec![due.elapsed()]
        })
    });
    collect(started, tasks.collect()).await
}

async fn collect(started: Instant, tasks: Vec<tokio::task::JoinHandle<Vec<Duration>>>) -> Run {
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.expect("no panic"));
    }
    let seconds = started.elapsed().as_secs_f64();
    latencies.sort_unstable();
    Run { seconds, accepted: latencies.len() as u64, latencies }
}
