//! The traffic: stories of issues, of which new ones begin all the time. Between
//! their deliveries come the other requests of a usual day.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fastrand::Rng;
use tests::{
    gitea::{Delivery, Issue},
    load::story,
    system::{Answer, try_send},
};
use tokio::task::JoinSet;
use uuid::Uuid;

/// Number of senders. Each has its own issues, so that the order of an issue's deliveries is
/// certain.
const SENDERS: u64 = 8;
/// Repositories that the issues are spread over.
const REPOSITORIES: u64 = 50;
/// Most deliveries of one issue.
const LONGEST_STORY: usize = 13;
/// Length of a long issue text, in bytes.
const LONG_TEXT: usize = 100_000;
/// Largest number of surprises that are reported.
const TOLD: usize = 10;

/// What to send.
pub struct Traffic {
    pub address: SocketAddr,
    pub rate: u64,
    pub seed: u64,
    pub duration: Duration,
}

/// What was sent, and what must follow from it.
#[derive(Default)]
pub struct Sent {
    pub deliveries: u64,
    pub issues: u64,
    pub accepted: u64,
    /// Accepted deliveries under an id that was sent before.
    pub duplicates: u64,
    pub ignored: u64,
    pub refused: u64,
    pub events: u64,
    pub changes: u64,
    /// Answers that were not the expected ones.
    pub surprises: Vec<String>,
}

/// What is sent between two deliveries of a story.
enum Aside {
    /// The same request once more.
    Repeat,
    /// The same body under another id, as a second hook or a redelivery by hand sends it.
    SecondHook,
    /// The first delivery of the story under another id, long after.
    Stale,
    /// A push.
    Push,
    /// A delivery with a wrong signature.
    Unsigned,
    Nothing,
}

impl Traffic {
    /// Sends until the time is over, each story to its end.
    pub async fn run(self) -> Sent {
        let issues = Arc::new(AtomicU64::new(0));
        let traffic = Arc::new(self);
        let senders: JoinSet<Sent> = (0..SENDERS)
            .map(|n| {
                sender(Arc::clone(&traffic), Rng::with_seed(traffic.seed + n), Arc::clone(&issues))
            })
            .collect();
        let mut all = Sent { issues: 0, ..Sent::default() };
        for sent in senders.join_all().await {
            all.deliveries += sent.deliveries;
            all.accepted += sent.accepted;
            all.duplicates += sent.duplicates;
            all.ignored += sent.ignored;
            all.refused += sent.refused;
            all.events += sent.events;
            all.changes += sent.changes;
            all.surprises.extend(sent.surprises);
        }
        all.issues = issues.load(Ordering::Relaxed);
        all.surprises.truncate(TOLD);
        all
    }
}

async fn sender(traffic: Arc<Traffic>, mut random: Rng, issues: Arc<AtomicU64>) -> Sent {
    let mut sender = Sender {
        http: reqwest::Client::new(),
        address: traffic.address,
        started: Instant::now(),
        pace: Duration::from_secs_f64(SENDERS as f64 / traffic.rate as f64),
        sent: Sent::default(),
    };
    while sender.started.elapsed() < traffic.duration {
        let number = issues.fetch_add(1, Ordering::Relaxed) + 1;
        let repository = (number % REPOSITORIES) as i64 + 1;
        let story = story(repository, number, random.usize(2..=LONGEST_STORY));
        for (step, delivery) in story.iter().enumerate() {
            let changes = u64::from(step > 0);
            sender.event(delivery, changes).await;
            match aside(&mut random) {
                Aside::Repeat => sender.repeat(delivery).await,
                Aside::SecondHook => sender.event(&again(delivery), 0).await,
                Aside::Stale => sender.event(&again(&story[0]), 0).await,
                Aside::Push => sender.push(delivery).await,
                Aside::Unsigned => sender.unsigned(delivery).await,
                Aside::Nothing => {}
            }
        }
        if random.u8(..) < 8 {
            // The last event of the issue, with a long text: nothing but the text changes.
            sender.event(&long(repository, number, &story), 0).await;
        }
    }
    sender.sent
}

fn aside(random: &mut Rng) -> Aside {
    match random.u8(..100) {
        0..4 => Aside::Repeat,
        4..8 => Aside::SecondHook,
        8..12 => Aside::Stale,
        12..16 => Aside::Push,
        16..20 => Aside::Unsigned,
        _ => Aside::Nothing,
    }
}

fn again(delivery: &Delivery) -> Delivery {
    delivery.clone().with_header("X-Gitea-Delivery", &Uuid::new_v4().to_string())
}

/// An edit after the last delivery of a story, with its assignees and state.
fn long(repository: i64, number: u64, story: &[Delivery]) -> Delivery {
    let last = story.last().map(|delivery| delivery.body.as_slice());
    let last: serde_json::Value = serde_json::from_slice(last.unwrap_or(b"null")).expect("JSON");
    let assignees = last["issue"]["assignees"].as_array().cloned().unwrap_or_default();
    let logins: Vec<&str> = assignees.iter().filter_map(|user| user["login"].as_str()).collect();
    let state = if last["issue"]["state"] == "closed" { "closed" } else { "open" };
    let issue = Issue::new(repository, number).assigned(&logins).state(state).at(1000);
    Issue { body: "long ".repeat(LONG_TEXT / 5), ..issue }.delivery("edited")
}

struct Sender {
    http: reqwest::Client,
    address: SocketAddr,
    started: Instant,
    /// Time from one delivery to the next.
    pace: Duration,
    sent: Sent,
}

impl Sender {
    /// An issue event under an id of its own.
    async fn event(&mut self, delivery: &Delivery, changes: u64) {
        self.sent.accepted += 1;
        self.sent.events += 1;
        self.sent.changes += changes;
        self.send(delivery, 200, "accepted").await;
    }

    async fn repeat(&mut self, delivery: &Delivery) {
        self.sent.accepted += 1;
        self.sent.duplicates += 1;
        self.send(delivery, 200, "accepted").await;
    }

    async fn push(&mut self, delivery: &Delivery) {
        self.sent.ignored += 1;
        let push = again(delivery).with_header("X-Gitea-Event", "push");
        self.send(&push, 200, "ignored").await;
    }

    async fn unsigned(&mut self, delivery: &Delivery) {
        self.sent.refused += 1;
        let wrong = "0".repeat(64);
        let unsigned = again(delivery)
            .with_header("X-Gitea-Signature", &wrong)
            .with_header("X-Hub-Signature-256", &format!("sha256={wrong}"));
        self.send(&unsigned, 401, "").await;
    }

    /// Sends a delivery when it is due.
    async fn send(&mut self, delivery: &Delivery, status: u16, says: &str) {
        let due = self.pace.mul_f64(self.sent.deliveries as f64);
        tokio::time::sleep_until((self.started + due).into()).await;
        self.sent.deliveries += 1;
        match try_send(&self.http, self.address, delivery).await {
            Ok(Answer { status: found, body, .. })
                if found == status && body["status"].as_str().unwrap_or_default() == says => {}
            other => self.sent.surprises.push(format!("{} was answered {other:?}", delivery.id())),
        }
    }
}
