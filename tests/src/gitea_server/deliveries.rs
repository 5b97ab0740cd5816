//! Webhooks on their way out.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::Notify, task::JoinSet};

use super::{GiteaServer, hooks::Hook, lock, world::World};
use crate::{gitea::Delivery, wait};

/// Gitea's `DELIVER_TIMEOUT`, for the whole exchange.
const DELIVER_TIMEOUT: Duration = Duration::from_secs(5);

/// A delivery and where it goes.
#[derive(Debug)]
pub(super) struct Outgoing {
    url: String,
    delivery: Delivery,
}

/// In which order deliveries go out that were held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As the changes were made.
    AsMade,
    /// The last one first.
    Reversed,
    /// At random, from this seed.
    Shuffled(u64),
}

#[derive(Debug)]
pub(super) struct Deliveries {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    waiting: VecDeque<Outgoing>,
    under_way: usize,
    at_once: usize,
    held: bool,
    accepted: u64,
    failed: u64,
}

impl Default for Deliveries {
    fn default() -> Self {
        let state = State {
            waiting: VecDeque::new(),
            under_way: 0,
            at_once: 1,
            held: false,
            accepted: 0,
            failed: 0,
        };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }
}

impl GiteaServer {
    /// From now on, every change by a user is delivered to this address, as by a system
    /// hook that no list of hooks shows. Hooks that are made deliver in any case.
    pub fn deliver_to(&self, url: &str, secret: &str) {
        self.change(|world| world.receiver = Some((url.to_owned(), secret.to_owned())));
    }

    /// Whether changes are delivered. Those that are made meanwhile are never delivered.
    pub fn set_delivering(&self, delivers: bool) {
        self.change(|world| world.delivers = delivers);
    }

    /// Sends so many deliveries at once. At the start it is one, so they arrive in order.
    pub fn deliver_at_once(&self, at_once: usize) {
        self.shared.deliveries.set(|state| state.at_once = at_once);
    }

    /// Keeps deliveries back until they are released.
    pub fn hold_deliveries(&self) {
        self.shared.deliveries.set(|state| state.held = true);
    }

    /// Sends what was held back, in this order, and holds no more.
    pub fn release_deliveries(&self, order: Order) {
        self.shared.deliveries.set(|state| {
            let waiting = state.waiting.make_contiguous();
            match order {
                Order::AsMade => {}
                Order::Reversed => waiting.reverse(),
                Order::Shuffled(seed) => fastrand::Rng::with_seed(seed).shuffle(waiting),
            }
            state.held = false;
        });
    }

    /// Number of deliveries that are held back or wait for those before them.
    pub fn deliveries_waiting(&self) -> usize {
        lock(&self.shared.deliveries.state).waiting.len()
    }

    /// Numbers of deliveries that were answered with 2xx, and that were not. Gitea
    /// repeats neither.
    pub fn delivered(&self) -> (u64, u64) {
        let state = lock(&self.shared.deliveries.state);
        (state.accepted, state.failed)
    }

    /// Waits until nothing is left to deliver.
    pub async fn all_delivered(&self) {
        wait::until_equal("all webhooks to be delivered", (0, 0), async || {
            let state = lock(&self.shared.deliveries.state);
            (state.waiting.len(), state.under_way)
        })
        .await;
    }
}

impl Deliveries {
    pub fn queue(&self, outgoing: impl ExactSizeIterator<Item = Outgoing>) {
        if outgoing.len() > 0 {
            self.set(|state| state.waiting.extend(outgoing));
        }
    }

    fn set(&self, set: impl FnOnce(&mut State)) {
        set(&mut lock(&self.state));
        self.changed.notify_one();
    }

    fn next(&self) -> Option<Outgoing> {
        let mut state = lock(&self.state);
        if state.held || state.under_way >= state.at_once {
            return None;
        }
        let next = state.waiting.pop_front()?;
        state.under_way += 1;
        Some(next)
    }

    /// Sends what is queued, until it is dropped.
    pub async fn run(self: Arc<Self>) {
        let http = reqwest::Client::builder().no_proxy().timeout(DELIVER_TIMEOUT);
        let http = http.build().expect("an HTTP client");
        let mut under_way = JoinSet::new();
        loop {
            let Some(outgoing) = self.next() else {
                self.changed.notified().await;
                continue;
            };
            while under_way.try_join_next().is_some() {}
            let (deliveries, http) = (Arc::clone(&self), http.clone());
            under_way.spawn(async move {
                let accepted = send(&http, outgoing).await;
                deliveries.set(|state| {
                    state.under_way -= 1;
                    *(if accepted { &mut state.accepted } else { &mut state.failed }) += 1;
                });
            });
        }
    }
}

async fn send(http: &reqwest::Client, outgoing: Outgoing) -> bool {
    let mut request = http.post(&outgoing.url);
    for (name, value) in &outgoing.delivery.headers {
        request = request.header(name, value);
    }
    let response = request.body(outgoing.delivery.body).send().await;
    response.is_ok_and(|response| response.status().is_success())
}

impl Outgoing {
    /// A delivery of a hook.
    pub fn to_hook(
        world: &World,
        hook: &Hook,
        event: &str,
        event_type: &str,
        payload: Vec<u8>,
    ) -> Self {
        let target = hook.target_type(world);
        let mut delivery = Delivery::signed_with(&hook.secret, payload, event, event_type)
            .with_header("X-Gitea-Hook-Installation-Target-Type", target);
        if hook.content_type == "form" {
            let encoded: String = form_urlencoded::byte_serialize(&delivery.body).collect();
            delivery.body = format!("payload={encoded}").into_bytes();
            delivery = delivery.with_header("Content-Type", "application/x-www-form-urlencoded");
        }
        if !hook.authorization_header.is_empty() {
            delivery = delivery.with_header("Authorization", &hook.authorization_header);
        }
        Self { url: hook.url.clone(), delivery }
    }
}

impl World {
    /// Puts an event about an issue before all that want it.
    pub fn notify(
        &mut self,
        action: &str,
        issue: i64,
        by: i64,
        changes: Option<serde_json::Value>,
    ) {
        let event_type = match action {
            "assigned" | "unassigned" => "issue_assign",
            "label_updated" | "label_cleared" => "issue_label",
            _ => "issues",
        };
        let issue = &self.issues[&issue];
        let owner = self.repositories[&issue.repository].owner;
        let hooks: Vec<&Hook> = self
            .hooks
            .values()
            .filter(|hook| hook.active && hook.events.contains(&event_type))
            .filter(|hook| hook.is_for(issue.repository, owner))
            .collect();
        if !self.delivers || self.receiver.is_none() && hooks.is_empty() {
            return;
        }
        let payload = self.payload(action, issue, by, changes);
        let mut outgoing: Vec<Outgoing> = hooks
            .iter()
            .map(|hook| Outgoing::to_hook(self, hook, "issues", event_type, payload.clone()))
            .collect();
        if let Some((url, secret)) = &self.receiver {
            let delivery = Delivery::signed_with(secret, payload, "issues", event_type)
                .with_header("X-Gitea-Hook-Installation-Target-Type", "system");
            outgoing.push(Outgoing { url: url.clone(), delivery });
        }
        self.outbox.extend(outgoing);
    }
}
