//! Memory of bodies that were accepted. Gitea signs no time, so whoever has an old body and its
//! signature can send it again under a new delivery id. It is accepted, since a redelivery by hand
//! looks the same, and changes stay right. But it is counted and named.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use contract::timestamp::Timestamp;

/// Bodies in one row, 64 bytes.
const WAYS: usize = 8;
/// Rows, each for the bodies whose digest begins in the same way. All take 1 MiB.
const ROWS: usize = 16 * 1024;
/// Bits of an entry that hold the second since 1970: enough until 2106. The others hold a part of
/// the digest.
const SECONDS: u64 = u32::MAX as u64;

/// Digests of the last bodies with the time when each was first accepted. Fixed in size: in a row
/// that is full the oldest is forgotten. Empty after a start.
///
/// It takes no lock. Two deliveries of one row at the same moment may lose one of their entries.
#[derive(Debug)]
pub(super) struct KnownBodies {
    rows: Box<[[AtomicU64; WAYS]]>,
    replayed_after: Duration,
}

impl KnownBodies {
    pub(super) fn new(replayed_after: Duration) -> Self {
        Self { rows: (0..ROWS).map(|_| Default::default()).collect(), replayed_after }
    }

    /// Notes a body that was accepted. Returns its age if it first came so long ago that this is no
    /// longer the same occasion.
    pub(super) fn accepted(&self, body_sha256: &[u8; 32], at: Timestamp) -> Option<Duration> {
        let second = (at.unix_micros().max(0) as u64 / 1_000_000) & SECONDS;
        let [row, digest] = [0, 8].map(|from| {
            u64::from_be_bytes(body_sha256[from..from + 8].try_into().unwrap_or_default())
        });
        let (row, digest) = (&self.rows[row as usize % ROWS], digest & !SECONDS);
        let mut oldest = (u64::MAX, &row[0]);
        for place in row {
            let entry = place.load(Relaxed);
            let since = entry & SECONDS;
            if since != 0 && entry & !SECONDS == digest {
                let age = Duration::from_secs(second.saturating_sub(since));
                return (age > self.replayed_after).then_some(age);
            }
            if since < oldest.0 {
                oldest = (since, place);
            }
        }
        oldest.1.store(digest | second, Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_unix_micros((1_790_000_000 + second) * 1_000_000)
    }

    fn digest(row: u64, n: u32) -> [u8; 32] {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&row.to_be_bytes());
        digest[8..12].copy_from_slice(&n.to_be_bytes());
        digest
    }

    #[test]
    fn a_body_that_came_before_is_told_with_its_age_unless_it_is_of_one_occasion() {
        let known = KnownBodies::new(Duration::from_secs(600));
        for (body, second, age) in [
            (1, 0, None),
            (1, 0, None),
            (2, 300, None),
            (1, 600, None),
            (1, 601, Some(601)),
            (1, 1_200, Some(1_200)),
            (2, 1_200, Some(900)),
            (2, 86_700, Some(86_400)),
            // A clock that was set back.
            (1, -60, None),
        ] {
            let told = known.accepted(&digest(7, body), at(second));
            assert_eq!(told.map(|age| age.as_secs()), age, "{body} at {second}");
        }
    }

    #[test]
    fn in_a_full_row_the_oldest_body_is_forgotten() {
        let known = KnownBodies::new(Duration::from_secs(1));
        let bodies = 1..=WAYS as u32 + 1;
        for n in bodies.clone() {
            assert_eq!(known.accepted(&digest(3, n), at(n.into())), None);
        }
        for n in bodies.skip(1) {
            assert!(known.accepted(&digest(3, n), at(100)).is_some(), "{n}");
        }
        assert_eq!(known.accepted(&digest(3, 1), at(100)), None);
        assert_eq!(known.accepted(&digest(4, 2), at(100)), None, "another row");
    }
}
