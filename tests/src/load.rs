//! Many deliveries on many issues, from several senders at once.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::task::JoinSet;

use crate::{
    gitea::{Delivery, Issue},
    system::try_send,
    wait,
};

/// Steps that an issue goes through repeatedly: action, assignees, state.
const STEPS: [(&str, &[&str], &str); 6] = [
    ("assigned", &["bot"], "open"),
    ("assigned", &["bot", "tom"], "open"),
    ("unassigned", &["tom"], "open"),
    ("closed", &["tom"], "closed"),
    ("reopened", &["tom"], "open"),
    ("unassigned", &[], "open"),
];

/// The story of one issue in `count` deliveries: opened, and then one change with each.
pub fn story(repository: i64, number: u64, count: usize) -> Vec<Delivery> {
    let opened = Issue::new(repository, number).delivery("opened");
    let steps = STEPS.iter().cycle().zip(1..);
    let steps = steps.map(|((action, assignees, state), second)| {
        let issue = Issue::new(repository, number).assigned(assignees).state(state).at(second);
        issue.delivery(action)
    });
    std::iter::once(opened).chain(steps).take(count).collect()
}

/// The stories of `issues` issues in one repository.
pub fn stories(repository: i64, issues: u64, count: usize) -> Vec<Vec<Delivery>> {
    (1..=issues).map(|number| story(repository, number, count)).collect()
}

/// Running senders. Each has its own issues and sends one delivery after the
/// other, so the order of an issue's deliveries is certain.
pub struct Load {
    senders: JoinSet<Sent>,
    accepted: Arc<AtomicUsize>,
}

/// What became of the deliveries.
#[derive(Debug, Default)]
pub struct Sent {
    /// Answered 200, so they must arrive.
    pub accepted: Vec<Delivery>,
    /// Not answered: the connection broke. They may arrive.
    pub unanswered: Vec<Delivery>,
}

impl Load {
    /// Starts this many senders, which share the stories and send to each of `addresses` in turn.
    pub fn start(addresses: &[SocketAddr], senders: usize, stories: Vec<Vec<Delivery>>) -> Self {
        let accepted = Arc::new(AtomicUsize::new(0));
        let mut shares = vec![Vec::new(); senders];
        for (n, story) in stories.into_iter().enumerate() {
            shares[n % senders].push(story);
        }
        let senders = shares
            .into_iter()
            .map(|share| sender(addresses.to_vec(), share, Arc::clone(&accepted)))
            .collect();
        Self { senders, accepted }
    }

    /// Waits until this many have been answered 200.
    pub async fn accepted(&self, count: usize) {
        wait::until(&format!("{count} deliveries to be accepted"), || async {
            (self.accepted.load(Ordering::Relaxed) >= count).then_some(())
        })
        .await;
    }

    /// Waits until all are sent.
    pub async fn finish(self) -> Sent {
        let mut all = Sent::default();
        for sent in wait::within("all deliveries to be sent", self.senders.join_all()).await {
            all.accepted.extend(sent.accepted);
            all.unanswered.extend(sent.unanswered);
        }
        all
    }
}

/// Sends one delivery of each story in turn. Waits while nobody listens. Panics
/// on any other answer than 200.
async fn sender(
    addresses: Vec<SocketAddr>,
    share: Vec<Vec<Delivery>>,
    accepted: Arc<AtomicUsize>,
) -> Sent {
    let mut addresses = addresses.into_iter().cycle();
    let http = reqwest::Client::new();
    let mut sent = Sent::default();
    let longest = share.iter().map(Vec::len).max().unwrap_or(0);
    for step in 0..longest {
        for story in &share {
            let Some(delivery) = story.get(step) else { continue };
            let address = addresses.next().expect("an address");
            let answer = wait::until("ingest to listen", || async {
                match try_send(&http, address, delivery).await {
                    Err(error) if error.is_connect() => None,
                    answer => Some(answer),
                }
            })
            .await;
            match answer {
                Ok(answer) => {
                    assert_eq!(answer.status, 200, "{answer:?}");
                    accepted.fetch_add(1, Ordering::Relaxed);
                    sent.accepted.push(delivery.clone());
                }
                Err(_) => sent.unanswered.push(delivery.clone()),
            }
        }
    }
    sent
}
