//! The journal's window: which entries may be offered to the broker, which are confirmed, which are
//! set aside, and which may be cleared.
//!
//! Architecture invariants:
//! - An entry is *settled* once the broker has confirmed it or it is set aside on disk. The
//!   low-water mark is the sequence up to which all entries are settled. Only settled entries are
//!   cleared.
//! - A settled entry is offered again only while the broker is certain to remember its message id.
//!   This time is the retention. It is shorter than the dedup window, with a margin for clock
//!   changes. Readers apply this rule, so it holds even if the file still contains expired entries.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use contract::timestamp::Timestamp;
use rusqlite::{Connection, Transaction};

/// The longest time for which settled entries may be offered again to a stream with this dedup
/// window. A 25th of the window is a margin for clock changes and for the transfer to the broker.
pub(crate) fn longest_offer(dedup_window: Duration) -> Duration {
    dedup_window - dedup_window / 25
}

/// Whether an entry that the broker stored at `stored_at` may be offered again at `now`. `age` is
/// the longest time. A `stored_at` in the future means that the clock was set back. If it exceeds
/// the margin for clock changes, the entry's age is unknown.
pub(crate) fn may_be_offered(stored_at: Timestamp, now: Timestamp, age: Duration) -> bool {
    let age = micros(age);
    (-age / 24..=age).contains(&(now.unix_micros() - stored_at.unix_micros()))
}

fn micros(duration: Duration) -> i64 {
    // Limited, so that the sum of two values does not overflow.
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX).min(i64::MAX / 4)
}

/// Tracks in memory which entries are settled.
#[derive(Debug, Default)]
pub(crate) struct Window(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Sequences of entries that were offered and are not settled.
    open: BTreeSet<i64>,
    /// Highest sequence that was offered. All lower ones were offered or are set aside.
    offered: i64,
    /// The low-water mark that was written last.
    marked: i64,
    /// Entries that were confirmed since that mark, with the earliest time at which the broker can
    /// have stored them, in microseconds since 1970.
    confirmed: BTreeMap<i64, i64>,
    set_aside: u64,
}

/// A low-water mark to be written. The broker stored the entries between the previous mark and this
/// one at `stored_at` or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    through: i64,
    stored_at: i64,
}

impl Mark {
    pub(super) fn through(self) -> i64 {
        self.through
    }
}

impl Window {
    /// Restores the window from the file.
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let number = |sql| connection.query_row(sql, (), |row| row.get::<_, i64>(0));
        let marked = number("SELECT coalesce(max(through_seq), 0) FROM published")?;
        let set_aside = number("SELECT count(*) FROM set_aside")?.unsigned_abs();
        Ok(Self(Mutex::new(State { offered: marked, marked, set_aside, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that an entry is offered. Sequences increase, except for entries that are offered
    /// again. Returns whether the entry is unsettled, as far as this journal knows.
    pub(crate) fn offer(&self, seq: i64) -> bool {
        let mut state = self.state();
        if seq > state.offered {
            state.open.insert(seq);
            state.offered = seq;
        }
        state.open.contains(&seq)
    }

    /// Records that all entries up to `seq` were read. Those that were not offered are set aside.
    pub(crate) fn read_through(&self, seq: i64) {
        let mut state = self.state();
        state.offered = state.offered.max(seq);
    }

    /// Records that the broker has confirmed an entry. `stored_at` must not be later than the time
    /// at which the broker can have stored it.
    pub(crate) fn confirm(&self, seq: i64, stored_at: Timestamp) {
        let mut state = self.state();
        if state.open.remove(&seq) {
            state.confirmed.insert(seq, stored_at.unix_micros());
        }
    }

    /// Earliest storage time of a confirmed entry, while no written mark covers the entry.
    pub(crate) fn stored_at(&self, seq: i64) -> Option<Timestamp> {
        self.state().confirmed.get(&seq).map(|micros| Timestamp::from_unix_micros(*micros))
    }

    /// Whether an entry is settled, as far as this journal knows.
    pub(crate) fn is_settled(&self, seq: i64) -> bool {
        let state = self.state();
        seq <= state.offered && !state.open.contains(&seq)
    }

    pub(super) fn is_open(&self, seq: i64) -> bool {
        self.state().open.contains(&seq)
    }

    /// Sequence up to which all entries are settled.
    pub(crate) fn low_water_mark(&self) -> i64 {
        let state = self.state();
        state.open.first().map_or(state.offered, |seq| seq - 1)
    }

    /// The low-water mark that was written last.
    pub(super) fn marked(&self) -> i64 {
        self.state().marked
    }

    /// Number of entries that the broker refuses permanently. They are kept forever.
    pub(crate) fn set_aside(&self) -> u64 {
        self.state().set_aside
    }

    /// The mark to write, if it is higher than the last one.
    pub(super) fn next_mark(&self, now: Timestamp) -> Option<Mark> {
        let through = self.low_water_mark();
        let state = self.state();
        let earliest = state.confirmed.range(..=through).map(|(_, stored_at)| *stored_at).min();
        let stored_at = earliest.unwrap_or(now.unix_micros());
        (through > state.marked).then_some(Mark { through, stored_at })
    }

    /// Applies what a committed transaction wrote.
    pub(super) fn committed(&self, mark: Option<Mark>, set_aside: &[i64]) {
        let mut state = self.state();
        if let Some(mark) = mark {
            state.marked = mark.through;
            state.confirmed = state.confirmed.split_off(&(mark.through + 1));
        }
        for seq in set_aside {
            state.open.remove(seq);
            state.set_aside += 1;
        }
    }
}

pub(super) fn write_mark(transaction: &Transaction<'_>, mark: Mark) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO published VALUES (?1, ?2)")?
        .execute((mark.through, mark.stored_at))?;
    Ok(())
}

/// Sets an entry aside. It is never offered again and never cleared.
pub(super) fn set_aside(
    transaction: &Transaction<'_>,
    seq: i64,
    reason: &str,
    now: Timestamp,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO set_aside VALUES (?1, ?2, ?3)")?
        .execute((seq, reason, now.unix_micros()))?;
    Ok(())
}

/// Sequence up to which all entries were settled too long ago to be offered again. It is the last
/// mark before the first one that is recent enough.
pub(super) fn expired(
    connection: &Connection,
    now: Timestamp,
    age: Duration,
) -> rusqlite::Result<i64> {
    let (now, age) = (now.unix_micros(), micros(age));
    connection
        .prepare_cached(
            "SELECT coalesce(max(through_seq), 0) FROM published WHERE through_seq < coalesce(
                 (SELECT min(through_seq) FROM published WHERE at BETWEEN ?1 AND ?2),
                 9223372036854775807)",
        )?
        .query_row((now - age, now + age / 24), |row| row.get(0))
}

/// Clears at most `limit` settled entries up to `through`, oldest first. Returns their sequences.
pub(super) fn clear(
    transaction: &Transaction<'_>,
    through: i64,
    limit: usize,
) -> rusqlite::Result<Vec<i64>> {
    let oldest = transaction
        .prepare_cached(
            "SELECT seq FROM deliveries
             WHERE seq <= ?1 AND seq NOT IN (SELECT seq FROM set_aside)
             ORDER BY seq LIMIT ?2",
        )?
        .query_map((through, limit as i64), |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<i64>>>()?;
    if let Some(last) = oldest.last() {
        for sql in [
            "DELETE FROM deliveries WHERE seq <= ?1 AND seq NOT IN (SELECT seq FROM set_aside)",
            "DELETE FROM bodies WHERE seq <= ?1 AND seq NOT IN (SELECT seq FROM set_aside)",
        ] {
            transaction.prepare_cached(sql)?.execute((last,))?;
        }
    }
    Ok(oldest)
}

/// Removes the marks of expired entries. The newest of these marks stays, because it defines where
/// the window begins.
pub(super) fn forget_marks(transaction: &Transaction<'_>, expired: i64) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("DELETE FROM published WHERE through_seq < ?1")?
        .execute((expired,))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_unix_micros(secs * 1_000_000)
    }

    fn mark(through: i64, secs: i64) -> Option<Mark> {
        Some(Mark { through, stored_at: secs * 1_000_000 })
    }

    #[test]
    fn the_mark_stops_at_the_first_entry_that_is_not_settled() {
        let window = Window::default();
        for seq in 1..=4 {
            assert!(window.offer(seq));
        }
        window.confirm(3, at(50));
        assert_eq!((window.low_water_mark(), window.next_mark(at(60))), (0, None));
        window.confirm(1, at(40));
        assert_eq!((window.low_water_mark(), window.next_mark(at(60))), (1, mark(1, 40)));
        window.committed(mark(1, 40), &[2]);
        assert_eq!((window.low_water_mark(), window.set_aside()), (3, 1));
        window.confirm(4, at(70));
        assert_eq!(window.low_water_mark(), 4);
    }

    #[test]
    fn what_is_offered_again_is_known_to_be_settled() {
        let window = Window::default();
        assert!(window.offer(1) && window.offer(2));
        window.confirm(1, at(1));
        assert!(!window.offer(1), "settled");
        assert!(window.offer(2), "offered before, and not settled");
        window.confirm(1, at(0));
        assert_eq!(window.next_mark(at(9)), mark(1, 1), "a second confirmation says nothing new");
    }

    #[test]
    fn a_mark_is_as_old_as_the_oldest_entry_that_it_covers_and_no_older() {
        let window = Window::default();
        for seq in 1..=4 {
            window.offer(seq);
        }
        window.confirm(1, at(30));
        window.confirm(2, at(20));
        window.confirm(4, at(25));
        assert_eq!(window.next_mark(at(60)), mark(2, 20));
        window.confirm(3, at(50));
        window.committed(mark(2, 20), &[]);
        assert_eq!(window.next_mark(at(60)), mark(4, 25));
        // Some entry is always under way here, but the age of earlier entries does not carry over.
        window.offer(5);
        window.offer(6);
        window.confirm(6, at(70));
        window.committed(mark(4, 25), &[]);
        window.confirm(5, at(65));
        assert_eq!(window.next_mark(at(80)), mark(6, 65));
    }

    #[test]
    fn what_is_read_and_not_offered_was_set_aside_before_and_holds_no_mark() {
        let window = Window::default();
        window.offer(1);
        window.confirm(1, at(1));
        window.read_through(2);
        assert_eq!(window.low_water_mark(), 2);
        assert!(!window.offer(2));
    }

    #[test]
    fn clocks_that_are_set_neither_lengthen_nor_end_the_time_to_offer_by_much() {
        let age = Duration::from_secs(2400);
        for (stored, now, offered) in [
            (1000, 1000, true),
            (1000, 3400, true),
            (1000, 3401, false),
            (1000, 900, true),
            (1000, 899, false),
        ] {
            assert_eq!(may_be_offered(at(stored), at(now), age), offered, "{stored} {now}");
        }
    }

    #[test]
    fn the_retention_leaves_room_within_the_dedup_window() {
        for (window, longest) in [(10, 9_600), (90_000, 86_400_000)] {
            assert_eq!(longest_offer(Duration::from_secs(window)), Duration::from_millis(longest));
        }
    }
}
