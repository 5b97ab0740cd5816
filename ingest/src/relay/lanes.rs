//! Lanes: entries of one issue go out one after the other, those of
//! different issues at the same time. Also knows up to where all is published.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::journal::Entry;

/// An entry to be published.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) entry: Entry,
    /// Not confirmed before, as far as this journal knows.
    pub(super) first: bool,
}

impl Offer {
    fn lane(&self) -> (i64, i64) {
        (self.entry.repository_id, self.entry.issue_number)
    }
}

/// What is in memory: one entry an issue under way, the others waiting behind it.
#[derive(Debug)]
pub(super) struct Lanes {
    /// Waiting entries by issue. An issue is here for as long as one of its entries is under way.
    waiting: HashMap<(i64, i64), VecDeque<Offer>>,
    /// Sequences that were read and never confirmed.
    unconfirmed: BTreeSet<i64>,
    /// Highest sequence that was ever read. All below it was read too.
    highest: i64,
    entries: usize,
    bytes: usize,
}

impl Lanes {
    /// `published_through`: everything up to it was confirmed in an earlier run.
    pub(super) fn new(published_through: i64) -> Self {
        Self {
            waiting: HashMap::new(),
            unconfirmed: BTreeSet::new(),
            highest: published_through,
            entries: 0,
            bytes: 0,
        }
    }

    /// Takes an entry. Returns it when its lane is free; otherwise it waits.
    pub(super) fn offer(&mut self, entry: Entry) -> Option<Offer> {
        if entry.seq > self.highest {
            self.unconfirmed.insert(entry.seq);
            self.highest = entry.seq;
        }
        let first = self.unconfirmed.contains(&entry.seq);
        self.entries += 1;
        self.bytes += entry.text_bytes;
        let offer = Offer { entry, first };
        match self.waiting.get_mut(&offer.lane()) {
            Some(lane) => {
                lane.push_back(offer);
                None
            }
            None => {
                self.waiting.insert(offer.lane(), VecDeque::new());
                Some(offer)
            }
        }
    }

    /// Notes that `offer` is settled and returns the next one of its lane.
    pub(super) fn done(&mut self, offer: &Offer) -> Option<Offer> {
        self.unconfirmed.remove(&offer.entry.seq);
        self.entries -= 1;
        self.bytes -= offer.entry.text_bytes;
        let next = self.waiting.get_mut(&offer.lane()).and_then(VecDeque::pop_front);
        if next.is_none() {
            self.waiting.remove(&offer.lane());
        }
        next
    }

    /// Empties all lanes, also of what was under way, to be filled from the first entry on.
    pub(super) fn start_over(&mut self) {
        self.waiting.clear();
        (self.entries, self.bytes) = (0, 0);
    }

    /// Everything up to this sequence is settled.
    pub(super) fn through(&self) -> i64 {
        self.unconfirmed.first().map_or(self.highest, |seq| seq - 1)
    }

    pub(super) fn has_room(&self, entries: usize, bytes: usize) -> bool {
        self.entries < entries && self.bytes < bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Content;
    use shared::timestamp::Timestamp;
    use uuid::Uuid;

    fn entry(seq: i64, issue: i64) -> Entry {
        Entry {
            seq,
            delivery_id: Uuid::from_u128(seq as u128),
            received_at: Timestamp::now(),
            hook: None,
            traceparent: None,
            repository_id: 1,
            issue_number: issue,
            body_sha256: [0; 32],
            content: Content::Text(Vec::new()),
            text_bytes: 10,
        }
    }

    #[test]
    fn one_entry_an_issue_is_under_way_and_progress_stops_at_the_first_gap() {
        let mut lanes = Lanes::new(0);
        let first = lanes.offer(entry(1, 7)).expect("free lane");
        assert!(lanes.offer(entry(2, 7)).is_none(), "waits behind 1");
        let other = lanes.offer(entry(3, 8)).expect("another issue");
        assert_eq!(lanes.through(), 0);
        assert!(lanes.done(&other).is_none());
        assert_eq!(lanes.through(), 0, "1 is still under way");
        let second = lanes.done(&first).expect("2 was waiting");
        assert_eq!((second.entry.seq, lanes.through()), (2, 1));
        assert!(lanes.done(&second).is_none());
        assert_eq!(lanes.through(), 3);
        assert!(lanes.offer(entry(4, 7)).is_some(), "the lane is free again");
    }

    #[test]
    fn starting_over_keeps_the_order_and_does_not_move_progress_back() {
        let mut lanes = Lanes::new(2);
        let again = lanes.offer(entry(1, 7)).expect("published in an earlier run");
        assert!(!again.first);
        assert_eq!(lanes.through(), 2);
        let new = lanes.offer(entry(3, 8)).expect("new");
        assert!(new.first);
        lanes.done(&new);
        lanes.offer(entry(4, 8)).expect("under way, and then interrupted");
        assert!(lanes.offer(entry(5, 8)).is_none(), "waits behind 4");

        lanes.start_over();
        assert!(lanes.has_room(1, 1));
        let again = lanes.offer(entry(3, 8)).expect("confirmed, and offered again");
        assert_eq!((again.first, lanes.through()), (false, 3));
        assert!(lanes.offer(entry(4, 8)).is_none(), "behind 3 now");
        let fourth = lanes.done(&again).expect("4");
        assert_eq!((fourth.entry.seq, fourth.first, lanes.through()), (4, true, 3));
        lanes.done(&fourth);
        assert_eq!(lanes.through(), 4, "5 was read, and is not yet offered again");
    }

    #[test]
    fn room_is_counted_in_entries_and_bytes() {
        let mut lanes = Lanes::new(0);
        let offer = lanes.offer(entry(1, 1)).expect("free lane");
        assert!(lanes.has_room(2, 11) && !lanes.has_room(1, 11) && !lanes.has_room(2, 10));
        lanes.done(&offer);
        assert!(lanes.has_room(1, 1));
    }
}
