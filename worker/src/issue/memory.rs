//! The states of one partition that a worker remembers, so that it need not read them again.

use std::collections::BTreeMap;

use super::state::IssueState;

/// States remembered per partition. Above this number all are forgotten.
const REMEMBERED: usize = 512;

/// An entry of the bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    /// None if nothing was ever decided about the issue.
    pub(crate) state: Option<IssueState>,
    /// Revision to replace. 0 if there is no entry.
    pub(crate) revision: u64,
    /// Whether it was written so long ago that its decision is published: within half of the time
    /// for which the broker remembers message ids, an event is redelivered or its issue's next
    /// event comes. What is older must not be published again, since the stream may have dropped
    /// it by now.
    pub(crate) is_old: bool,
}

/// What a worker remembers of one partition.
///
/// A remembered state may be old, which the next write shows as a conflict. Without a write it must
/// be known to be current. It is as long as the partition's messages follow each other without a
/// gap, since then no other worker had one in between. The consumer numbers them. A message that
/// was received here but not handled counts as a gap: a suspended worker may still have it in hand
/// from an earlier attempt, and handle it when it resumes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Memory {
    entries: BTreeMap<String, (Entry, u64)>,
    /// Number of gaps so far.
    gaps: u64,
    last_number: u64,
    bucket: i64,
    /// Whether the last message was handled.
    handled: bool,
}

impl Memory {
    /// Forgets all. A broker that was restored may give a revision a second time.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Records that the partition's message with this number (the consumer's sequence) is in hand.
    /// `bucket` is when the bucket was made: another bucket holds other entries.
    pub(crate) fn received(&mut self, number: u64, bucket: i64) {
        if bucket != self.bucket {
            *self = Self { bucket, ..Self::default() };
        }
        if !self.handled || number != self.last_number + 1 {
            self.gaps += 1;
        }
        if self.entries.len() > REMEMBERED {
            self.entries.clear();
        }
        self.last_number = number;
        self.handled = false;
    }

    /// Records that the message in hand is handled.
    pub(crate) fn handled(&mut self) {
        self.handled = true;
    }

    /// Takes an issue's entry out, and says whether it is known to be current. It is put back with
    /// [`Memory::remember`] once it is certain again.
    pub(crate) fn take(&mut self, key: &str) -> Option<(Entry, bool)> {
        let (entry, gaps) = self.entries.remove(key)?;
        Some((entry, gaps == self.gaps))
    }

    /// Remembers an entry that is current, and whose decision is published.
    pub(crate) fn remember(&mut self, key: &str, entry: Entry) {
        self.entries.insert(key.to_owned(), (entry, self.gaps));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_current_until_another_worker_may_have_had_a_message() {
        let mut memory = Memory::default();
        for (number, handled, current) in [
            (7, true, None),
            (8, true, Some(true)),
            (9, true, Some(true)),
            (11, true, Some(false)),
            (12, false, Some(true)),
            (13, true, Some(false)),
            (14, true, Some(true)),
        ] {
            memory.received(number, 1);
            assert_eq!(memory.take("1.1").map(|(_, current)| current), current, "{number}");
            memory.remember("1.1", Entry::default());
            if handled {
                memory.handled();
            }
        }
        for n in 0..=REMEMBERED {
            memory.remember(&n.to_string(), Entry::default());
        }
        memory.received(15, 1);
        assert_eq!(memory.take("1"), None, "beyond the limit all are forgotten");
        memory.remember("1", Entry::default());
        memory.received(16, 2);
        assert_eq!(memory.take("1"), None, "another bucket holds other entries");
    }
}
