//! What a Gitea server would send: issues that change, with events as Gitea sends them.

use std::{collections::VecDeque, time::Duration};

use fastrand::Rng;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tests::gitea::{Delivery, Issue};

use crate::records::{Sent, Snapshot};

/// Issues that change at the same time.
const ACTIVE: usize = 40;
/// Bodies that may be sent again by hand.
const OLD: usize = 400;
/// Seconds since 1970 of second 0 of `tests::gitea::Issue`.
pub const EPOCH: i64 = 1_793_491_200;
const PEOPLE: [&str; 5] = ["ann", "bot", "li-wei", "maria", "tom"];

/// A delivery that is to be sent.
#[derive(Clone)]
pub struct Outgoing {
    /// The request.
    pub delivery: Delivery,
    /// Its record, as far as it is known before the delivery is sent.
    pub sent: Sent,
    /// How long the delivery is delayed, so that later ones overtake it.
    pub held: Duration,
    /// Chooses among the ingests.
    pub choice: usize,
}

struct Active {
    issue: Issue,
    steps: u32,
    left: u32,
}

/// A Gitea server's issues and their past.
pub struct History {
    rng: Rng,
    second: u64,
    next_number: u64,
    active: Vec<Active>,
    old: Vec<Outgoing>,
    queue: VecDeque<Outgoing>,
}

impl History {
    /// A server without issues.
    pub fn new(rng: Rng) -> Self {
        let (active, old, queue) = (Vec::new(), Vec::new(), VecDeque::new());
        Self { rng, second: 0, next_number: 1, active, old, queue }
    }

    /// The next delivery.
    pub fn next(&mut self) -> Outgoing {
        loop {
            if let Some(next) = self.queue.pop_front() {
                return next;
            }
            self.happen();
        }
    }

    fn happen(&mut self) {
        if self.rng.u8(..3) > 0 {
            self.second += 1;
        }
        if !self.old.is_empty() && self.rng.u8(..100) < 5 {
            let old = self.rng.choice(&self.old).expect("not empty").clone();
            self.again(old);
            return;
        }
        if self.active.len() < ACTIVE {
            self.create();
            return;
        }
        let at = self.rng.usize(..self.active.len());
        let mut active = self.active.swap_remove(at);
        // Several changes within one second, now and then.
        let burst = if self.rng.u8(..6) == 0 { self.rng.u32(2..=4) } else { 1 };
        // Mostly an issue is left alone in the end, and sometimes it is deleted.
        let deleted = active.left <= burst && self.rng.u8(..5) == 0;
        for _ in 0..burst {
            self.step(&mut active);
        }
        if deleted {
            self.delete(&mut active);
            return;
        }
        active.left = active.left.saturating_sub(burst);
        if active.left > 0 {
            self.active.push(active);
        }
    }

    /// Opens an issue, sometimes with assignees. The events of the assignees then come first,
    /// without a time.
    fn create(&mut self) {
        let repository = self.rng.i64(1..=7);
        let mut active = Active {
            issue: Issue::new(repository, self.next_number).at(self.second),
            steps: 0,
            left: self.rng.u32(3..40),
        };
        self.next_number += 1;
        if self.rng.bool() {
            for login in self.some_people() {
                active.issue.assignees.push(login);
                self.tell_without_time(&mut active, "assigned");
            }
        }
        self.tell(&mut active, "opened");
        // Some are deleted before anything else is known of them.
        if self.rng.u8(..30) == 0 {
            self.delete(&mut active);
        } else {
            self.active.push(active);
        }
    }

    /// Deletes an issue. Its time stays that of the last change, or is even older if the issue was
    /// changed meanwhile. Often the deletion overtakes what was told before.
    fn delete(&mut self, active: &mut Active) {
        if self.rng.u8(..3) > 0 {
            for earlier in &mut self.queue {
                earlier.held = Duration::from_millis(self.rng.u64(20..1500));
            }
        }
        if self.rng.u8(..4) == 0 {
            active.issue.second = active.issue.second.saturating_sub(self.rng.u64(1..5));
        }
        self.tell(active, "deleted");
    }

    fn step(&mut self, active: &mut Active) {
        active.issue.second = self.second;
        let assigned = !active.issue.assignees.is_empty();
        match self.rng.u8(..10) {
            0..=3 => self.assign(active),
            4 | 5 if assigned => {
                let at = self.rng.usize(..active.issue.assignees.len());
                active.issue.assignees.remove(at);
                self.tell(active, "unassigned");
            }
            6 | 7 => {
                let (state, action) = match active.issue.state {
                    "open" => ("closed", "closed"),
                    _ => ("open", "reopened"),
                };
                active.issue.state = state;
                self.tell(active, action);
            }
            8 => self.tell(active, "label_updated"),
            _ => self.tell(active, "edited"),
        }
    }

    fn assign(&mut self, active: &mut Active) {
        let there = active.issue.assignees.clone();
        let mut new = self.some_people();
        new.retain(|login| !there.contains(login));
        if self.rng.bool() {
            // As Gitea until 1.26: one event for each assignee, with cumulative lists.
            for login in new {
                active.issue.assignees.push(login);
                self.tell(active, "assigned");
            }
        } else if !new.is_empty() {
            // As Gitea since 1.27: one event for each assignee, all with the final list and the
            // same bytes.
            let count = new.len();
            active.issue.assignees.extend(new);
            self.tell(active, "assigned");
            let told = self.queue.back().cloned().expect("it was just told");
            for _ in 1..count {
                self.again(told.clone());
            }
        }
    }

    fn some_people(&mut self) -> Vec<String> {
        let count = self.rng.usize(1..=3);
        self.rng.choose_multiple(PEOPLE, count).into_iter().map(str::to_owned).collect()
    }

    fn tell(&mut self, active: &mut Active, action: &str) {
        let payload = self.payload(active, action);
        self.deliver(active, action, payload, Some(EPOCH + active.issue.second as i64));
    }

    fn tell_without_time(&mut self, active: &mut Active, action: &str) {
        let mut payload = self.payload(active, action);
        payload["issue"]["updated_at"] = "1970-01-01T00:00:00Z".into();
        self.deliver(active, action, payload, None);
    }

    fn payload(&mut self, active: &mut Active, action: &str) -> Value {
        active.steps += 1;
        // Rarely the payload is too large for the broker, so that the text is cut.
        let words = match self.rng.u16(..2000) {
            0 => 200_000,
            1..100 => 2000,
            _ => self.rng.usize(..50),
        };
        let text = "words ".repeat(words);
        active.issue.body = format!("Step {}. {text}", active.steps);
        active.issue.payload(action)
    }

    fn deliver(&mut self, active: &Active, action: &str, payload: Value, updated_at: Option<i64>) {
        let event_type = match action {
            "assigned" | "unassigned" => "issue_assign",
            "label_updated" => "issue_label",
            _ => "issues",
        };
        let delivery = Delivery::signed(&payload, event_type);
        let snapshot = Snapshot {
            repository: active.issue.repository,
            number: active.issue.number,
            digest: hex::encode(Sha256::digest(&delivery.body)),
            action: action.to_owned(),
            assignees: active.issue.assignees.clone(),
            state: active.issue.state.to_owned(),
            updated_at,
        };
        let sent = Sent { snapshot, ..Sent::default() };
        let outgoing = Outgoing { delivery, sent, held: Duration::ZERO, choice: 0 };
        let first = self.with_own_id(outgoing);
        if first.delivery.body.len() < 100_000 {
            if self.old.len() < OLD {
                self.old.push(first.clone());
            } else {
                let at = self.rng.usize(..OLD);
                self.old[at] = first.clone();
            }
        }
        self.queue.push_back(first.clone());
        // A second hook sends the same body again.
        if self.rng.u8(..12) == 0 {
            self.again(first);
        }
    }

    fn again(&mut self, mut outgoing: Outgoing) {
        outgoing.sent.again = true;
        let again = self.with_own_id(outgoing);
        self.queue.push_back(again);
    }

    fn with_own_id(&mut self, mut outgoing: Outgoing) -> Outgoing {
        let id = uuid::Builder::from_random_bytes(self.rng.u128(..).to_le_bytes());
        let id = id.into_uuid().to_string();
        outgoing.delivery = outgoing.delivery.with_header("X-Gitea-Delivery", &id);
        outgoing.sent.id = id;
        let held = self.rng.u8(..12) == 0;
        outgoing.held = Duration::from_millis(if held { self.rng.u64(20..1500) } else { 0 });
        outgoing.choice = self.rng.usize(..1000);
        outgoing
    }
}
