//! Keeps the newest entries in memory, so that the relay can publish them without reading and
//! parsing them again.

use std::{collections::VecDeque, sync::Mutex};

use super::Entry;

/// Most entries in memory.
const MAX_ENTRIES: usize = 1024;
/// Bytes of text above which the oldest entries are dropped.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// Consecutive entries up to the last one that was committed.
#[derive(Debug, Default)]
pub(crate) struct Tail(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    newest: VecDeque<Entry>,
    bytes: usize,
}

impl Tail {
    /// Adds committed entries, in order. Beyond the limits the oldest are dropped, because they are
    /// on disk.
    pub(super) fn push(&self, committed: impl IntoIterator<Item = Entry>) {
        let Ok(mut tail) = self.0.lock() else { return };
        for entry in committed {
            tail.bytes += entry.text_bytes;
            tail.newest.push_back(entry);
        }
        while tail.newest.len() > MAX_ENTRIES || tail.bytes > MAX_BYTES {
            tail.pop();
        }
    }

    /// Takes the entries right after `seq`. None if they are not in memory.
    pub(super) fn take_after(&self, seq: i64, max_entries: usize) -> Option<Vec<Entry>> {
        let mut tail = self.0.lock().ok()?;
        while tail.newest.front().is_some_and(|entry| entry.seq <= seq) {
            tail.pop();
        }
        if tail.newest.front()?.seq != seq + 1 {
            return None;
        }
        Some((0..max_entries).map_while(|_| tail.pop()).collect())
    }
}

impl Entries {
    fn pop(&mut self) -> Option<Entry> {
        let entry = self.newest.pop_front()?;
        self.bytes -= entry.text_bytes;
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        delivery,
        journal::{Content, Issue},
    };
    use contract::event;

    fn entry(seq: i64, text_bytes: usize) -> Entry {
        Entry {
            seq,
            delivery: delivery::example(0),
            traceparent: None,
            issue: Issue { repository_id: 1, number: 1 },
            content: Content::Event(Box::new(event::example())),
            text_bytes,
            stored_at: None,
        }
    }

    fn taken(tail: &Tail, after: i64, max: usize) -> Option<Vec<i64>> {
        Some(tail.take_after(after, max)?.iter().map(|entry| entry.seq).collect())
    }

    #[test]
    fn only_what_follows_without_a_gap_is_taken() {
        let tail = Tail::default();
        assert_eq!(taken(&tail, 0, 9), None);
        tail.push((5..=8).map(|seq| entry(seq, 10)));
        assert_eq!(taken(&tail, 2, 9), None, "3 and 4 are on the disk only");
        assert_eq!(taken(&tail, 5, 2), Some(vec![6, 7]));
        assert_eq!(taken(&tail, 5, 2), None, "6 was taken");
        assert_eq!(taken(&tail, 7, 9), Some(vec![8]));
        assert_eq!(taken(&tail, 8, 9), None);
    }

    #[test]
    fn the_oldest_are_forgotten_beyond_the_limits() {
        let tail = Tail::default();
        tail.push((1..=MAX_ENTRIES as i64 + 1).map(|seq| entry(seq, 1)));
        assert_eq!(taken(&tail, 0, 1), None);
        assert_eq!(taken(&tail, 1, 1), Some(vec![2]));
        tail.push([entry(MAX_ENTRIES as i64 + 2, MAX_BYTES + 1)]);
        assert_eq!(taken(&tail, MAX_ENTRIES as i64 + 1, 9), None, "one that large is not kept");
    }
}
