//! The partitions that share all issues, and which one an issue belongs to.

use std::{fmt, num::NonZeroU8, ops::Range, str::FromStr};

/// Number of partitions of a deployment, 1 to 255.
///
/// Subjects hold the partition. So the number is stored with the stream of events, and all who
/// publish or consume events use the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Partitions(NonZeroU8);

impl Partitions {
    /// The smallest number.
    pub const MIN: Self = Self(NonZeroU8::MIN);
    /// The largest number.
    pub const MAX: Self = Self(NonZeroU8::MAX);
    /// The number where none is set or stored. 256 consumers cost the broker four times as much.
    pub const DEFAULT: Self = Self(NonZeroU8::MIN.saturating_add(63));

    /// The number of partitions.
    pub fn count(self) -> u8 {
        self.0.get()
    }

    /// All partitions.
    pub fn all(self) -> Range<u8> {
        0..self.count()
    }

    /// The partition of an issue: FNV-1a (64 bit) over the repository's id and the issue's number,
    /// both as little-endian 64 bit.
    /// The id is used rather than the name, since a repository can be renamed.
    pub fn of(self, repository_id: i64, number: u64) -> u8 {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in repository_id.to_le_bytes().into_iter().chain(number.to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        // The upper half: the lowest bits of FNV depend on the lowest bits of the input only.
        ((hash >> 32) % u64::from(self.count())) as u8
    }
}

impl FromStr for Partitions {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl fmt::Display for Partitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The partition is stored in subjects: these values must never change.
    #[test]
    fn partitions_are_what_they_always_were() {
        for (repository_id, number, expected) in
            [(1, 1, 58), (1, 2, 3), (2, 1, 0), (-1, 0, 54), (i64::MAX, u64::MAX, 0)]
        {
            let found = Partitions::DEFAULT.of(repository_id, number);
            assert_eq!(found, expected, "{repository_id} #{number}");
        }
    }

    #[test]
    fn issues_spread_over_all_partitions() {
        for (partitions, expected) in [("64", 50..200), ("1", 6400..6401), ("255", 5..60)] {
            let partitions: Partitions = partitions.parse().expect("a number");
            let mut counts = vec![0_u32; usize::from(partitions.count())];
            for repository_id in 1..=16 {
                for number in 1..=400 {
                    counts[usize::from(partitions.of(repository_id, number))] += 1;
                }
            }
            assert!(counts.iter().all(|n| expected.contains(n)), "{counts:?}");
        }
    }

    #[test]
    fn there_is_at_least_one_partition_and_a_byte_holds_each() {
        for wrong in ["0", "256", "-1", "", "x"] {
            assert!(wrong.parse::<Partitions>().is_err(), "{wrong}");
        }
        assert_eq!(Partitions::DEFAULT.to_string(), "64");
    }
}
