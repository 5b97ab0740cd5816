//! Deliveries against events: every 200 is kept, once, unchanged and in order.

use std::collections::{HashMap, HashSet};

use super::{Key, key, name, tails_lost};
use crate::records::{Event, Records, Sent};

pub(super) fn violations(records: &Records) -> Vec<String> {
    let sent: HashMap<&str, &Sent> =
        records.sent.iter().map(|sent| (sent.id.as_str(), sent)).collect();
    let mut found = Vec::new();
    let mut stored = HashSet::new();
    for event in &records.events {
        let id = event.delivery.as_str();
        if !stored.insert(id) {
            found.push(format!("the event of delivery {id} stands in the stream twice"));
        }
        match sent.get(id) {
            None => found.push(format!("the event of delivery {id} was never sent")),
            Some(sent) => found.extend(differences(sent, event)),
        }
    }
    for sent in &records.sent {
        match sent.status {
            200 if !stored.contains(sent.id.as_str()) => {
                found.push(format!("delivery {} was answered 200 and has no event", sent.id));
            }
            0 | 200 | 503 => {}
            status => found.push(format!("delivery {} was answered {status}", sent.id)),
        }
    }
    found.extend(out_of_order(records, &sent));
    found
}

fn differences(sent: &Sent, event: &Event) -> Vec<String> {
    let id = &sent.id;
    let mut found = Vec::new();
    if sent.snapshot != event.snapshot {
        found.push(format!("the event of delivery {id} says something else than was sent"));
    }
    if event.message_id != *id {
        found.push(format!("the event of delivery {id} has message id {}", event.message_id));
    }
    let mut tokens = event.subject.split('.').rev();
    let (_partition, number) = (tokens.next(), tokens.next());
    let action = event.subject.split('.').nth(2);
    let expected = (Some(sent.snapshot.number.to_string()), Some(sent.snapshot.action.as_str()));
    if (number.map(str::to_owned), action) != expected {
        found.push(format!("the event of delivery {id} stands under {}", event.subject));
    }
    found
}

/// Two deliveries of an issue go to one ingest, and one is answered before the
/// other is sent: then its event comes first in the stream. After a lost tail,
/// events that come again may come after events that were in flight then.
fn out_of_order(records: &Records, sent: &HashMap<&str, &Sent>) -> Vec<String> {
    let tails: Vec<_> = tails_lost(records).collect();
    let mut latest: HashMap<(Key, usize), &Sent> = HashMap::new();
    let mut partitions: HashMap<Key, &str> = HashMap::new();
    let mut found = Vec::new();
    for event in &records.events {
        let issue = key(&event.snapshot);
        let partition = event.subject.rsplit('.').next().unwrap_or_default();
        if *partitions.entry(issue).or_insert(partition) != partition {
            found.push(format!("{} is in two partitions", name(issue)));
        }
        let Some(sent) = sent.get(event.delivery.as_str()).filter(|sent| sent.status == 200) else {
            continue;
        };
        let came_again = tails
            .iter()
            .any(|tail| sent.ended_at < tail.ended_at && event.stored_at > tail.began_at);
        if came_again {
            continue;
        }
        let latest = latest.entry((issue, sent.ingest)).or_insert(sent);
        if latest.sent_at > sent.ended_at {
            found.push(format!(
                "the event of delivery {} stands behind that of {}, which was sent after its answer",
                sent.id, latest.id
            ));
        }
        if sent.sent_at > latest.sent_at {
            *latest = sent;
        }
    }
    found
}
