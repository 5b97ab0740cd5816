//! What a subscriber received during the run, against the stream at the end.

use std::collections::{HashMap, HashSet};

use super::tails_lost;
use crate::records::{Records, Seen};

pub(super) fn violations(records: &Records) -> Vec<String> {
    let stored: HashMap<&str, u64> =
        records.changes.iter().map(|change| (change.message_id.as_str(), change.seq)).collect();
    let lost_after = |at: i64| tails_lost(records).any(|tail| at < tail.ended_at);
    let lost_between =
        |a: i64, b: i64| tails_lost(records).any(|tail| a < tail.ended_at && b > tail.began_at);
    let mut found = Vec::new();
    let mut first: HashMap<&str, &Seen> = HashMap::new();
    let mut newest: Option<&Seen> = None;
    for seen in &records.seen {
        let id = seen.message_id.as_str();
        if !stored.contains_key(id) && !lost_after(seen.at) {
            found.push(format!("a subscriber got change {id}, which is not in the stream"));
        }
        let Some(before) = first.get(id) else {
            first.insert(id, seen);
            if let Some(newest) = newest
                && seen.seq < newest.seq
                && !lost_between(newest.at, seen.at)
            {
                let newest = &newest.message_id;
                found.push(format!("a subscriber got change {id} after the later {newest}"));
            }
            newest = Some(seen);
            continue;
        };
        if before.seq != seen.seq && !lost_between(before.at, seen.at) {
            found.push(format!("a subscriber got change {id} under two sequences"));
        }
    }
    let first: HashSet<&str> = first.into_keys().collect();
    let missed =
        records.changes.iter().filter(|change| !first.contains(change.message_id.as_str()));
    found.extend(missed.map(|change| format!("no subscriber got change {}", change.message_id)));
    found
}
