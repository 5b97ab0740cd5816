//! What this process has in hand, and what of it may be handled now. It does no IO.
//!
//! Messages of one issue are a lane: they are handled one after the other, in the order of the
//! stream. That alone keeps no order once a message was delivered and did not get here, because the
//! broker or an earlier process died: the broker gives it out again only after its ack wait, and
//! what follows of the same issue would come first. So the hand is *closed* whenever a delivery may
//! be missing:
//!
//! - at the start, and after each connection, until the broker says that all it has given out and
//!   that is not acked is here;
//! - when the consumer's count of deliveries skips a number.
//!
//! While it is closed, a message may be handled only if everything before it in the stream is known:
//! acked, or here.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use hashlink::LinkedHashMap;

/// Settled messages that are remembered, to ack them again if the broker did not take the ack in.
const MOST_SETTLED: usize = 20_000;

/// An issue: id of its repository, and its number.
pub(crate) type Lane = (i64, u64);

/// A message in hand.
#[derive(Debug)]
pub(crate) struct Held<T> {
    pub(crate) sequence: u64,
    pub(crate) id: String,
    /// Subject of its acks, of the last delivery.
    pub(crate) reply: String,
    pub(crate) lane: Lane,
    pub(crate) content: T,
    pub(crate) delivered: u64,
    /// A handler has it, or it waits for a free one.
    pub(crate) running: bool,
    /// A handler has failed, and is called again later.
    pub(crate) waiting: bool,
    pub(crate) attempts: u32,
    ticket: Ticket,
}

impl<T> Held<T> {
    pub(crate) fn new(
        sequence: u64,
        id: String,
        reply: String,
        lane: Lane,
        content: T,
        delivered: u64,
    ) -> Self {
        let ticket = Ticket { sequence, number: 0 };
        let (running, waiting, attempts) = (false, false, 0);
        Self { sequence, id, reply, lane, content, delivered, running, waiting, attempts, ticket }
    }
}

/// Names one message in hand, even if another one gets its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket {
    pub(crate) sequence: u64,
    number: u64,
}

/// A message that came to its end here, and how the broker was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) id: String,
    pub(crate) reply: String,
    pub(crate) told: Bytes,
}

/// What the broker says of the consumer at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Count of the last delivery.
    pub(crate) delivered: u64,
    /// Sequence in the stream of the last message given out.
    pub(crate) last_sequence: u64,
    /// Sequence in the stream up to which all are acked.
    pub(crate) floor: u64,
    /// Messages given out and not acked.
    pub(crate) unacked: u64,
    /// Messages that are not given out yet.
    pub(crate) undelivered: u64,
    /// Requests for messages that wait at the broker.
    pub(crate) waiting: u64,
}

/// All messages in hand.
#[derive(Debug)]
pub(crate) struct Hand<T> {
    held: BTreeMap<u64, Held<T>>,
    lanes: HashMap<Lane, BTreeSet<u64>>,
    settled: LinkedHashMap<u64, Settled>,
    open: bool,
    /// Count of the last delivery seen.
    counted: Option<u64>,
    /// Count of the last delivery that is missing.
    missing: u64,
    floor: u64,
    last_sequence: u64,
    /// Highest sequence in hand when it was closed.
    before: u64,
    tickets: u64,
}

impl<T> Hand<T> {
    pub(crate) fn new() -> Self {
        Self {
            held: BTreeMap::new(),
            lanes: HashMap::new(),
            settled: LinkedHashMap::new(),
            open: false,
            counted: None,
            missing: 0,
            floor: 0,
            last_sequence: 0,
            before: 0,
            tickets: 0,
        }
    }

    /// Whether no delivery is missing.
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// How many messages are in hand.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// The messages in hand, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Held<T>> {
        self.held.values()
    }

    /// The message in hand. The same sequence under another id is another message: the broker has
    /// lost the end of its stream.
    pub(crate) fn get(&mut self, sequence: u64, id: &str) -> Option<&mut Held<T>> {
        self.held.get_mut(&sequence).filter(|held| held.id == id)
    }

    /// The message with this ticket, if it is still in hand.
    pub(crate) fn at(&mut self, ticket: Ticket) -> Option<&mut Held<T>> {
        self.held.get_mut(&ticket.sequence).filter(|held| held.ticket == ticket)
    }

    /// How the message was settled, if it was.
    pub(crate) fn settled(&self, sequence: u64, id: &str) -> Option<&Settled> {
        self.settled.get(&sequence).filter(|settled| settled.id == id)
    }

    /// Counts a delivery. Returns whether one before it is missing; then the hand is closed.
    pub(crate) fn count(&mut self, sequence: u64, delivery: u64) -> bool {
        let former = self.counted.replace(delivery);
        self.last_sequence = self.last_sequence.max(sequence);
        if former.is_none_or(|former| delivery <= former + 1) {
            return false;
        }
        self.missing = delivery - 1;
        self.shut();
        true
    }

    fn shut(&mut self) {
        self.open = false;
        self.before = self.held.last_key_value().map_or(0, |(sequence, _)| *sequence);
    }

    /// Takes a message in hand.
    pub(crate) fn take(&mut self, mut held: Held<T>) {
        self.remove(held.sequence);
        self.tickets += 1;
        held.ticket.number = self.tickets;
        self.lanes.entry(held.lane).or_default().insert(held.sequence);
        self.held.insert(held.sequence, held);
    }

    /// A delivery may be missing from now on.
    pub(crate) fn close(&mut self) {
        self.shut();
        self.counted = None;
    }

    /// Takes in what the broker says. Returns whether the hand is open now.
    ///
    /// What is in hand and was given out by then is not acked, since nobody else acks it. So if the
    /// broker counts no more than that, nothing is missing. A broker that was killed may not
    /// remember what it gave out last: then it gives that out again, and what is in hand waits until
    /// it has.
    pub(crate) fn look(&mut self, standing: &Standing) -> bool {
        if self.counted.is_none() {
            self.counted = Some(standing.delivered);
            self.missing = standing.delivered;
        }
        self.floor = standing.floor;
        let here = self.here(standing);
        let caught_up = standing.last_sequence >= self.before || standing.undelivered == 0;
        if here >= standing.unacked && self.missing <= standing.delivered && caught_up {
            self.open = true;
        }
        self.open
    }

    /// How many of what was given out by then are in hand.
    pub(crate) fn here(&self, standing: &Standing) -> u64 {
        self.held.range(..=standing.last_sequence).count() as u64
    }

    /// First sequence above the floor that is neither here nor settled here.
    fn first_unknown(&self) -> u64 {
        let mut sequence = self.floor + 1;
        while self.held.contains_key(&sequence) || self.settled.contains_key(&sequence) {
            sequence += 1;
        }
        sequence
    }

    fn limit(&self) -> u64 {
        if self.open { u64::MAX } else { self.first_unknown() }
    }

    fn head_below(&self, lane: &BTreeSet<u64>, limit: u64) -> Option<Ticket> {
        let held = self.held.get(lane.first()?)?;
        let free = !held.running && !held.waiting && held.sequence < limit;
        free.then_some(held.ticket)
    }

    /// Heads of all lanes that may be handled now and are not, in order.
    pub(crate) fn ready(&self) -> Vec<Ticket> {
        let limit = self.limit();
        let heads = self.lanes.values().filter_map(|lane| self.head_below(lane, limit));
        let mut found: Vec<Ticket> = heads.collect();
        found.sort();
        found
    }

    /// Head of one lane, if it may be handled now and is not.
    pub(crate) fn head(&self, lane: Lane) -> Option<Ticket> {
        let sequences = self.lanes.get(&lane)?;
        // The limit is dear.
        self.head_below(sequences, u64::MAX)
            .filter(|head| self.open || head.sequence < self.limit())
    }

    /// The message is at its end. Returns the subject on which the broker is to be told. None if
    /// another message has its place by now, or the stream is another one.
    pub(crate) fn settle(&mut self, ticket: Ticket, told: Bytes) -> Option<String> {
        self.at(ticket)?;
        let Held { id, reply, .. } = self.remove(ticket.sequence)?;
        self.mark(ticket.sequence, Settled { id, reply: reply.clone(), told });
        Some(reply)
    }

    /// A message that never came in hand is at its end.
    pub(crate) fn mark(&mut self, sequence: u64, settled: Settled) {
        self.settled.remove(&sequence);
        self.settled.insert(sequence, settled);
        while self.settled.len() > MOST_SETTLED {
            self.settled.pop_front();
        }
    }

    fn remove(&mut self, sequence: u64) -> Option<Held<T>> {
        let held = self.held.remove(&sequence)?;
        if let Some(lane) = self.lanes.get_mut(&held.lane) {
            lane.remove(&sequence);
            if lane.is_empty() {
                self.lanes.remove(&held.lane);
            }
        }
        Some(held)
    }

    /// The stream is another one: its sequences mean other messages.
    pub(crate) fn forget(&mut self) {
        self.held.clear();
        self.lanes.clear();
        self.settled.clear();
        (self.floor, self.last_sequence) = (0, 0);
        self.close();
    }

    /// Puts all messages out of hand that no handler has. Returns the subjects of their acks, in
    /// order.
    pub(crate) fn give_back(&mut self) -> Vec<String> {
        let free = self.held.values().filter(|held| !held.running);
        let sequences: Vec<u64> = free.map(|held| held.sequence).collect();
        sequences
            .into_iter()
            .filter_map(|sequence| self.remove(sequence))
            .map(|h| h.reply)
            .collect()
    }

    /// Messages that are settled here and not acked as far as the broker's floor tells.
    pub(crate) fn untold(&self) -> impl Iterator<Item = &Settled> {
        let floor = self.floor;
        self.settled.iter().filter(move |(sequence, _)| **sequence > floor).map(|(_, s)| s)
    }

    /// Sequences that may have been given out and are neither here nor settled here. Empty if there
    /// would be more than `most` to look at.
    pub(crate) fn unknown(&self, standing: &Standing, most: u64) -> Vec<u64> {
        if standing.last_sequence.saturating_sub(standing.floor) > most {
            return Vec::new();
        }
        (standing.floor + 1..=standing.last_sequence)
            .filter(|sequence| !self.held.contains_key(sequence))
            .filter(|sequence| !self.settled.contains_key(sequence))
            .collect()
    }

    /// First sequence that is not known to be settled, for a consumer that is made anew.
    pub(crate) fn resume_at(&self) -> u64 {
        if !self.open {
            return self.floor + 1;
        }
        let lowest = self.held.first_key_value().map(|(sequence, _)| *sequence);
        lowest.unwrap_or(self.last_sequence + 1).max(self.floor + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ack::ACK;

    fn held(sequence: u64, lane: u64) -> Held<()> {
        named(sequence, lane, &format!("m{sequence}"))
    }

    fn named(sequence: u64, lane: u64, id: &str) -> Held<()> {
        Held::new(sequence, id.into(), format!("reply.{sequence}"), (0, lane), (), 1)
    }

    fn sequences(found: &[Ticket]) -> Vec<u64> {
        found.iter().map(|ticket| ticket.sequence).collect()
    }

    fn standing(delivered: u64, last_sequence: u64, floor: u64, unacked: u64) -> Standing {
        Standing { delivered, last_sequence, floor, unacked, ..Standing::default() }
    }

    fn opened() -> Hand<()> {
        let mut hand = Hand::new();
        hand.close();
        assert!(hand.look(&Standing::default()));
        hand
    }

    fn settle(hand: &mut Hand<()>, sequence: u64) {
        let id = format!("m{sequence}");
        let ticket = hand.get(sequence, &id).expect("in hand").ticket;
        hand.settle(ticket, ACK).expect("settled");
    }

    /// A hand that is open and has taken these, each of a lane.
    fn with(messages: &[(u64, u64)]) -> Hand<()> {
        let mut hand = opened();
        for &(sequence, lane) in messages {
            hand.count(sequence, sequence);
            hand.take(held(sequence, lane));
        }
        hand
    }

    #[test]
    fn one_of_an_issue_at_a_time_and_other_issues_go_on() {
        let mut hand = with(&[(1, 1), (2, 2), (3, 1)]);
        assert_eq!(sequences(&hand.ready()), [1, 2]);
        hand.get(1, "m1").expect("in hand").running = true;
        assert_eq!(sequences(&hand.ready()), [2]);
        settle(&mut hand, 1);
        assert_eq!(sequences(&hand.ready()), [2, 3]);
    }

    #[test]
    fn a_failed_head_lets_nothing_of_its_issue_pass() {
        let mut hand = with(&[(1, 1), (2, 1)]);
        hand.get(1, "m1").expect("in hand").waiting = true;
        assert_eq!((hand.ready(), hand.head((0, 1))), (vec![], None));
    }

    #[test]
    fn the_same_sequence_under_another_id_is_another_message() {
        let mut hand = with(&[(1, 1)]);
        let ticket = hand.ready()[0];
        assert!(hand.get(1, "other").is_none());
        hand.take(named(1, 2, "other"));
        assert_eq!(hand.iter().map(|held| held.lane.1).collect::<Vec<_>>(), [2]);
        assert_eq!(hand.settle(ticket, ACK), None, "the former one");
        assert_eq!(hand.len(), 1);
    }

    #[test]
    fn a_skipped_count_closes_it_until_the_broker_counts_no_more_than_is_here() {
        let mut hand = with(&[(1, 1)]);
        assert!(hand.count(3, 3));
        hand.take(held(3, 1));
        // 2 is missing; 1 comes before it.
        assert_eq!(sequences(&hand.ready()), [1]);
        assert!(!hand.look(&standing(3, 3, 0, 3)));
        settle(&mut hand, 1);
        assert_eq!((hand.ready(), hand.head((0, 1))), (vec![], None));
        assert!(!hand.count(2, 4));
        hand.take(held(2, 1));
        assert!(hand.look(&standing(4, 3, 1, 2)));
        assert_eq!(sequences(&hand.ready()), [2]);
    }

    #[test]
    fn what_comes_meanwhile_does_not_stand_in_for_what_is_missing() {
        let mut hand = opened();
        hand.count(1, 1);
        for sequence in [3, 4] {
            hand.count(sequence, sequence);
            hand.take(held(sequence, 1));
        }
        // Told when 4 was not out yet: 2 and 3 are not acked.
        assert!(!hand.look(&standing(3, 3, 1, 2)));
    }

    #[test]
    fn a_broker_that_forgot_what_it_gave_out_is_waited_for() {
        let mut hand = with(&[(5, 1)]);
        hand.close();
        assert!(!hand.look(&Standing { undelivered: 2, ..standing(3, 3, 3, 0) }));
        assert!(hand.look(&standing(5, 5, 4, 1)));
    }

    #[test]
    fn a_stream_that_lost_its_end_is_not_waited_for() {
        let mut hand = with(&[(5, 1)]);
        hand.close();
        assert!(hand.look(&standing(3, 3, 3, 0)));
    }

    #[test]
    fn where_to_go_on_if_the_consumer_is_made_anew() {
        let mut hand = with(&[(1, 1), (2, 2), (3, 3)]);
        settle(&mut hand, 1);
        assert_eq!(hand.resume_at(), 2);
        settle(&mut hand, 2);
        settle(&mut hand, 3);
        assert_eq!(hand.resume_at(), 4);
    }

    #[test]
    fn what_to_tell_again_and_what_to_ask_for_again() {
        let mut hand = with(&[(1, 1), (2, 2), (4, 4)]);
        settle(&mut hand, 1);
        settle(&mut hand, 2);
        hand.close();
        let standing = standing(6, 6, 1, 4);
        hand.look(&standing);
        assert_eq!(hand.untold().map(|s| s.id.as_str()).collect::<Vec<_>>(), ["m2"]);
        assert_eq!(hand.unknown(&standing, 100), [3, 5, 6]);
        assert!(hand.unknown(&standing, 2).is_empty());
    }

    #[test]
    fn what_no_handler_has_is_given_back_in_order() {
        let mut hand = with(&[(3, 1), (1, 1), (2, 2)]);
        hand.get(2, "m2").expect("in hand").running = true;
        assert_eq!(hand.give_back(), ["reply.1", "reply.3"]);
        assert_eq!(hand.len(), 1);
    }

    /// A broker whose deliveries are lost and given out again, against the order of each issue.
    #[test]
    fn no_order_is_lost_whatever_is_lost_on_the_way() {
        for seed in 0..500 {
            run_once(seed);
        }
    }

    fn run_once(seed: u64) {
        let mut chance = fastrand::Rng::with_seed(seed);
        let total = chance.u64(1..=40);
        let lanes: Vec<u64> = (0..=total).map(|_| chance.u64(1..=4)).collect();
        let mut unsent: Vec<u64> = (1..=total).rev().collect();
        let (mut unacked, mut lost) = (BTreeSet::new(), Vec::new());
        let (mut delivered, mut last) = (0, 0);
        let mut handled: Vec<u64> = Vec::new();
        let mut hand = Hand::new();
        hand.close();
        for _ in 0..5000 {
            let act = chance.f64();
            if act < 0.4 && !(unsent.is_empty() && lost.is_empty()) {
                // The broker gives out again before it gives out more, or after.
                let again = !lost.is_empty() && (unsent.is_empty() || chance.f64() < 0.3);
                let sequence = if again { lost.remove(0) } else { unsent.pop().expect("one") };
                delivered += 1;
                last = last.max(sequence);
                unacked.insert(sequence);
                if chance.f64() < 0.15 {
                    lost.push(sequence);
                    continue;
                }
                hand.count(sequence, delivered);
                if hand.get(sequence, &format!("m{sequence}")).is_none() {
                    hand.take(held(sequence, lanes[sequence as usize]));
                }
            } else if act < 0.45 {
                hand.close();
            } else if act < 0.7 && !hand.is_open() {
                let floor = unacked.first().map_or(last, |first| first - 1);
                let mut now = standing(delivered, last, floor, unacked.len() as u64);
                now.undelivered = unsent.len() as u64;
                hand.look(&now);
            } else if let Some(ticket) = chance.choice(hand.ready()) {
                handled.push(ticket.sequence);
                hand.settle(ticket, ACK).expect("settled");
                unacked.remove(&ticket.sequence);
            }
        }
        let mut all = handled.clone();
        all.sort_unstable();
        assert_eq!(all, (1..=total).collect::<Vec<_>>(), "seed {seed}");
        for lane in 1..=4 {
            let of_lane = |sequence: &u64| lanes[*sequence as usize] == lane;
            let mine: Vec<u64> = handled.iter().copied().filter(of_lane).collect();
            assert!(mine.is_sorted(), "seed {seed}: {mine:?}");
        }
    }
}
