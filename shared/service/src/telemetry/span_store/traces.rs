//! Traces in bounded memory. The oldest go first, and one with a failed span stays longest.

use hashlink::LinkedHashMap;

use super::blocks::{BLOCK_BYTES, Blocks, Chain};

/// Spans that are kept of a trace.
const MAX_SPANS: usize = 512;
/// Bytes that are kept of a trace.
const MAX_BYTES: usize = 128 * 1024;
/// A trace's last spans say how it ended. So this share of what is kept of a trace is left to spans
/// that begin the work of a process, of which there is one at each attempt.
const LEFT_TO_ENTRIES: usize = 4;

/// What the allocator adds to an allocation, at most.
const ALLOCATOR_BYTES: usize = 16;
/// Heap of an entry of a map: the entry, its two links, and what the allocator adds.
const ENTRY_BYTES: usize = size_of::<(u128, Trace)>() + 2 * size_of::<usize>() + ALLOCATOR_BYTES;
/// Heap of a place in the table of a map: a pointer and a byte.
const PLACE_BYTES: usize = size_of::<usize>() + 1;
/// Heap for a trace of one block. A failed trace may need an entry in each map. A table has up to 16
/// places for 7 entries. The last byte is its share of what its chunk takes.
const TRACE_BYTES: usize = BLOCK_BYTES + (ENTRY_BYTES + PLACE_BYTES * 16 / 7) * 3 / 2 + 1;
/// Heap of an empty store.
const EMPTY_BYTES: usize = 1024;

type Map = LinkedHashMap<u128, Trace>;

#[derive(Debug)]
struct Trace {
    spans: u32,
    chain: Chain,
}

/// A span that is to be kept.
pub(super) struct New<'a> {
    pub(super) trace_id: u128,
    pub(super) packed: &'a [u8],
    pub(super) has_failed: bool,
    /// Whether it begins the work of a process: a request that came in, or a message.
    pub(super) is_entry: bool,
    /// Whether it is kept only if its trace has others.
    pub(super) needs_others: bool,
}

/// The traces, each in one of two orders, the longest untouched first.
#[derive(Debug)]
pub(super) struct Traces {
    blocks: Blocks,
    ordinary: Map,
    failed: Map,
    /// Bytes of the two maps without their entries.
    tables: usize,
    /// Blocks of failed traces, and how many they may have.
    failed_blocks: usize,
    max_failed_blocks: usize,
    max_bytes: usize,
}

impl Traces {
    /// Traces that take at most `limit` bytes of heap.
    pub(super) fn new(limit: usize) -> Self {
        let blocks = limit.saturating_sub(EMPTY_BYTES) / TRACE_BYTES;
        let max_failed_blocks = blocks / 2;
        // The tables have their size from the start, since one that grows takes its size twice.
        let (ordinary, failed) =
            (Map::with_capacity(blocks), Map::with_capacity(max_failed_blocks + 1));
        let places = (ordinary.capacity() + failed.capacity()) * 8 / 7;
        Self {
            blocks: Blocks::new(blocks),
            ordinary,
            failed,
            tables: if blocks == 0 { 0 } else { EMPTY_BYTES + places * PLACE_BYTES },
            failed_blocks: 0,
            max_failed_blocks,
            max_bytes: MAX_BYTES.min(max_failed_blocks * BLOCK_BYTES / 2),
        }
    }

    /// Bytes of heap that are taken, at most.
    pub(super) fn bytes(&self) -> usize {
        self.tables + self.blocks.allocated() * (BLOCK_BYTES + ENTRY_BYTES * 3 / 2 + 1)
    }

    /// Keeps a span. Older traces make room for it.
    pub(super) fn add(&mut self, new: &New<'_>) {
        let has_failed_before = self.failed.contains_key(&new.trace_id);
        let removed = if has_failed_before {
            self.failed.remove(&new.trace_id)
        } else {
            self.ordinary.remove(&new.trace_id)
        };
        if removed.is_none() && new.needs_others {
            return;
        }
        let mut trace = removed.unwrap_or(Trace { spans: 0, chain: Chain::EMPTY });
        if has_failed_before {
            self.failed_blocks -= trace.chain.blocks();
        }
        let share = |of: usize| if new.is_entry { of } else { of - of / LEFT_TO_ENTRIES };
        let fits = trace.chain.bytes() + new.packed.len() <= share(self.max_bytes)
            && (trace.spans as usize) < share(MAX_SPANS);
        if fits {
            // The trace is in no order now, so it does not make room for itself.
            self.make_room(trace.chain.needs(new.packed.len()));
            self.blocks.append(&mut trace.chain, new.packed);
            trace.spans += 1;
        }
        if trace.spans == 0 {
            return;
        }
        if has_failed_before || new.has_failed {
            self.failed_blocks += trace.chain.blocks();
            self.failed.insert(new.trace_id, trace);
            while self.failed_blocks > self.max_failed_blocks && self.drop_oldest_failed() {}
        } else {
            self.ordinary.insert(new.trace_id, trace);
        }
    }

    /// The packed spans of a trace, one after the other.
    pub(super) fn read(&self, trace_id: u128) -> Vec<u8> {
        let trace = self.failed.get(&trace_id).or_else(|| self.ordinary.get(&trace_id));
        trace.map(|trace| self.blocks.read(&trace.chain)).unwrap_or_default()
    }

    fn make_room(&mut self, blocks: usize) {
        while self.blocks.left() < blocks {
            match self.ordinary.pop_front() {
                Some((_, trace)) => self.blocks.release(&trace.chain),
                None if self.drop_oldest_failed() => {}
                None => return,
            }
        }
    }

    fn drop_oldest_failed(&mut self) -> bool {
        let Some((_, trace)) = self.failed.pop_front() else { return false };
        self.failed_blocks -= trace.chain.blocks();
        self.blocks.release(&trace.chain);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1 << 20;

    fn add(traces: &mut Traces, trace_id: u128, bytes: usize, has_failed: bool) {
        let packed = vec![trace_id as u8; bytes];
        traces.add(&New {
            trace_id,
            packed: &packed,
            has_failed,
            is_entry: false,
            needs_others: false,
        });
        assert!(traces.bytes() <= LIMIT);
    }

    fn kept(traces: &Traces, ids: impl IntoIterator<Item = u128>) -> Vec<u128> {
        ids.into_iter().filter(|id| !traces.read(*id).is_empty()).collect()
    }

    #[test]
    fn the_oldest_go_first_and_what_failed_stays() {
        let mut traces = Traces::new(LIMIT);
        for id in 0..100 {
            add(&mut traces, id, 400, false);
        }
        // The error comes after the trace's other spans.
        add(&mut traces, 40, 10, true);
        for id in 1000..5000 {
            add(&mut traces, id, 400, false);
        }
        assert_eq!(kept(&traces, 0..100), [40]);
        assert_eq!(traces.read(40).len(), 410);
        let last = kept(&traces, 1000..5000);
        assert_eq!(last.last(), Some(&4999));
        assert_eq!(last.len() as u128, 5000 - last[0], "the last ones without a gap");
        assert!(last.len() > 1000, "{}", last.len());
    }

    #[test]
    fn what_failed_takes_half_at_most_and_then_its_oldest_go() {
        let mut traces = Traces::new(LIMIT);
        for id in 0..1000 {
            add(&mut traces, id, 400, false);
        }
        for id in 2000..5000 {
            add(&mut traces, id, 400, true);
        }
        let (ordinary, failed) = (kept(&traces, 0..1000).len(), kept(&traces, 2000..5000));
        assert!(ordinary >= failed.len() && failed.len() > 500, "{ordinary} {}", failed.len());
        assert_eq!(failed.len() as u128, 5000 - failed[0], "the last ones without a gap");
    }

    #[test]
    fn one_huge_trace_leaves_the_others_alone_and_ends_with_how_it_ended() {
        let mut traces = Traces::new(LIMIT);
        add(&mut traces, 1, 400, false);
        for _ in 0..100_000 {
            add(&mut traces, 2, 1000, true);
        }
        let before = traces.read(2).len();
        let packed = [7; 1000];
        traces.add(&New {
            trace_id: 2,
            packed: &packed,
            has_failed: true,
            is_entry: true,
            needs_others: false,
        });
        let after = traces.read(2);
        assert_eq!((after.len(), after.last()), (before + 1000, Some(&7)));
        assert!(after.len() <= MAX_BYTES);
        assert_eq!(traces.read(1).len(), 400);
        for _ in 0..100_000 {
            add(&mut traces, 3, 1, false);
        }
        assert_eq!(traces.read(3).len(), MAX_SPANS - MAX_SPANS / LEFT_TO_ENTRIES);
    }

    #[test]
    fn any_limit_is_kept_with_spans_of_any_size() {
        fastrand::seed(17);
        for limit in [0, 1, 700, 5_000, 100_000, LIMIT] {
            let mut traces = Traces::new(limit);
            for _ in 0..20_000 {
                let (id, bytes) = (fastrand::u128(0..3000), fastrand::usize(0..60));
                let packed = vec![0; bytes * bytes];
                traces.add(&New {
                    trace_id: id,
                    packed: &packed,
                    has_failed: fastrand::u8(..) < 30,
                    is_entry: fastrand::bool(),
                    needs_others: fastrand::u8(..) < 30,
                });
                assert!(traces.bytes() <= limit);
                assert!(traces.failed_blocks <= traces.max_failed_blocks);
            }
            let sum = |map: &Map| map.values().map(|trace| trace.chain.blocks()).sum::<usize>();
            let (ordinary, failed) = (sum(&traces.ordinary), sum(&traces.failed));
            assert_eq!(failed, traces.failed_blocks);
            let all = limit.saturating_sub(EMPTY_BYTES) / TRACE_BYTES;
            assert_eq!(traces.blocks.left(), all - ordinary - failed);
            assert!(traces.ordinary.values().all(|trace| trace.spans > 0));
        }
    }
}
