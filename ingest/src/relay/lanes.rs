//! Lanes: entries of one issue are published one after the other, entries of different issues at
//! the same time.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use contract::timestamp::Timestamp;

use crate::journal::{Entry, Issue, window};

/// An entry to be published.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) entry: Entry,
    /// Whether the entry is unsettled, as far as this journal knows.
    pub(super) first: bool,
    /// Earliest time at which the broker can have stored the entry. Set for settled entries only.
    pub(super) stored_at: Option<Timestamp>,
    /// How long after `stored_at` the entry may be offered again.
    pub(super) age: Duration,
}

impl Offer {
    /// Whether the broker may have forgotten the message id of this settled entry.
    pub(super) fn has_expired(&self, now: Timestamp) -> bool {
        let may_be_offered = |stored_at| window::may_be_offered(stored_at, now, self.age);
        !self.first && !self.stored_at.is_some_and(may_be_offered)
    }
}

/// Entries in memory. One entry per issue is under way, and the others wait behind it.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// Waiting entries by issue. An issue has a key here for as long as one of its entries is under
    /// way.
    waiting: HashMap<Issue, VecDeque<Offer>>,
    entries: usize,
    bytes: usize,
}

impl Lanes {
    /// Adds an entry. Returns it if its lane is free. Otherwise the entry waits.
    pub(super) fn offer(&mut self, offer: Offer) -> Option<Offer> {
        self.entries += 1;
        self.bytes += offer.entry.text_bytes;
        match self.waiting.get_mut(&offer.entry.issue) {
            Some(lane) => {
                lane.push_back(offer);
                None
            }
            None => {
                self.waiting.insert(offer.entry.issue, VecDeque::new());
                Some(offer)
            }
        }
    }

    /// Records that `offer` is settled. Returns the next entry of its lane.
    pub(super) fn done(&mut self, offer: &Offer) -> Option<Offer> {
        self.entries -= 1;
        self.bytes -= offer.entry.text_bytes;
        let issue = offer.entry.issue;
        let next = self.waiting.get_mut(&issue).and_then(VecDeque::pop_front);
        if next.is_none() {
            self.waiting.remove(&issue);
        }
        next
    }

    pub(super) fn has_room(&self, entries: usize, bytes: usize) -> bool {
        self.entries < entries && self.bytes < bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{delivery, journal::Content};

    fn offer(seq: i64, number: u64) -> Offer {
        let entry = Entry {
            seq,
            delivery: delivery::example(seq as u128),
            traceparent: None,
            issue: Issue { repository_id: 1, number },
            content: Content::Text(Vec::new()),
            text_bytes: 10,
            stored_at: None,
        };
        Offer { entry, first: true, stored_at: None, age: Duration::from_secs(60) }
    }

    #[test]
    fn one_entry_an_issue_is_under_way() {
        let mut lanes = Lanes::default();
        let first = lanes.offer(offer(1, 7)).expect("free lane");
        assert!(lanes.offer(offer(2, 7)).is_none(), "waits behind 1");
        let other = lanes.offer(offer(3, 8)).expect("another issue");
        assert!(lanes.done(&other).is_none());
        let second = lanes.done(&first).expect("2 was waiting");
        assert_eq!(second.entry.seq, 2);
        assert!(lanes.done(&second).is_none());
        assert!(lanes.offer(offer(4, 7)).is_some(), "the lane is free again");
    }

    #[test]
    fn only_what_was_settled_expires() {
        let now = Timestamp::now();
        let ago =
            |secs: i64| Some(Timestamp::from_unix_micros(now.unix_micros() - secs * 1_000_000));
        for (first, stored_at, expired) in [
            (true, None, false),
            (true, ago(90), false),
            (false, ago(30), false),
            (false, ago(90), true),
            (false, None, true),
        ] {
            let offer = Offer { first, stored_at, ..offer(1, 1) };
            assert_eq!(offer.has_expired(now), expired, "{first} {stored_at:?}");
        }
    }

    #[test]
    fn room_is_counted_in_entries_and_bytes() {
        let mut lanes = Lanes::default();
        let offer = lanes.offer(offer(1, 1)).expect("free lane");
        assert!(lanes.has_room(2, 11) && !lanes.has_room(1, 11) && !lanes.has_room(2, 10));
        lanes.done(&offer);
        assert!(lanes.has_room(1, 1));
    }
}
