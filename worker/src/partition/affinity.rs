//! Affinity: a partition stays with one worker while that worker lives.
//!
//! A worker remembers the states of the issues that it handled last, and saves reading them again.
//! So each request for messages carries a priority, and the server serves the lowest number first.
//! It is a preference and no lease: any worker may get any message. The order per issue rests on
//! `max_ack_pending: 1` alone.

use std::{collections::hash_map::RandomState, hash::BuildHasher};

/// Levels of preference. The server knows ten priorities, and each level takes two.
const LEVELS: u64 = 5;

/// Who this worker is: random, and the same for as long as it lives.
#[derive(Debug, Default)]
pub(crate) struct Identity(RandomState);

/// The claim of this worker to one partition.
#[derive(Debug)]
pub(crate) struct Affinity {
    /// Preference for this partition, from 0. It spreads the partitions over the workers.
    level: u8,
    holds: bool,
    /// The consumer's number of the last message that came here.
    last: Option<u64>,
    coins: RandomState,
}

impl Affinity {
    pub(crate) fn new(identity: &Identity, partition: u8) -> Self {
        let level = (identity.0.hash_one(partition) % LEVELS) as u8;
        Self { level, holds: false, last: None, coins: identity.0.clone() }
    }

    /// Whether this worker got the last message, as far as it knows.
    pub(crate) fn holds(&self) -> bool {
        self.holds
    }

    /// The priority of the next request, from 0 to 9. Workers of one level would be served in turn,
    /// so that the one that holds the partition comes first.
    pub(crate) fn priority(&self) -> u8 {
        2 * self.level + u8::from(!self.holds)
    }

    /// Records that the message with this number (the consumer's sequence) came here.
    pub(crate) fn received(&mut self, number: u64) {
        self.holds = match self.last {
            None => true,
            Some(last) if last + 1 == number => true,
            // Another worker got messages in between. If it is of the same level and holds the
            // partition too, then one of the two has to give in.
            Some(_) => self.coins.hash_one((self.level, number)).is_multiple_of(2),
        };
        self.last = Some(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_comes_first_among_those_of_its_level() {
        let identity = Identity::default();
        for partition in 0..64 {
            let (mut holder, other) =
                (Affinity::new(&identity, partition), Affinity::new(&identity, partition));
            holder.received(1);
            assert_eq!(holder.priority() + 1, other.priority());
            assert!(other.priority() <= 9);
            holder.received(2);
            assert!(holder.holds());
        }
    }

    #[test]
    fn of_two_that_hold_one_partition_one_gives_in() {
        let (first, second) = (Identity::default(), Identity::default());
        let (mut one, mut other) = (Affinity::new(&first, 0), Affinity::new(&second, 0));
        one.received(1);
        other.received(2);
        let mut number = 3;
        while one.holds() == other.holds() {
            assert!(number < 200, "both hold it for ever");
            if number % 2 == 1 {
                one.received(number)
            } else {
                other.received(number)
            }
            number += 1;
        }
    }

    #[test]
    fn the_partitions_spread_over_the_workers() {
        let workers = [Identity::default(), Identity::default()];
        let level = |n: usize, partition| Affinity::new(&workers[n], partition).priority();
        let of_first = (0..64).filter(|partition| level(0, *partition) < level(1, *partition));
        // 26 in the mean, and less than 6 in one of a billion runs.
        assert!((6..=46).contains(&of_first.count()));
    }
}
