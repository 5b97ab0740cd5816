//! The checker. It knows what was sent, what was answered and what the broker
//! holds at the end. It shares no code with the product: the rules are
//! implemented here a second time, from the documents.

mod changes;
mod deliveries;
mod live;
mod model;
mod states;

use std::collections::HashMap;

use crate::records::{Event, Fault, Records, Snapshot, TAIL_LOST};

/// An issue: its repository's id and its number.
type Key = (i64, u64);

/// All that is wrong with a run.
pub fn violations(records: &Records) -> Vec<String> {
    let by_delivery: HashMap<&str, &Event> =
        records.events.iter().map(|event| (event.delivery.as_str(), event)).collect();
    let mut found = deliveries::violations(records);
    found.extend(changes::violations(records, &by_delivery));
    found.extend(states::violations(records));
    found.extend(live::violations(records));
    found.extend(records.dead.iter().map(|id| format!("delivery {id} is a dead letter")));
    found
}

fn key(snapshot: &Snapshot) -> Key {
    (snapshot.repository, snapshot.number)
}

fn name((repository, number): Key) -> String {
    format!("issue {repository}#{number}")
}

/// The moments at which the broker lost the tail of its store.
fn tails_lost(records: &Records) -> impl Iterator<Item = &Fault> {
    records.faults.iter().filter(|fault| fault.kind == TAIL_LOST)
}

#[cfg(test)]
mod tests;
