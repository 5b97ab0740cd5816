//! Index of the journal's deliveries, by id.
//!
//! An index on random ids in the file would write one page per delivery. So 64 bits of each id are
//! in memory, with the sequence of its entry, and the file confirms a match.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension};
use uuid::Uuid;

/// New ids that are collected before they are merged into the sorted ones.
const NEWEST_IDS: usize = 8192;

/// Ids of committed deliveries.
#[derive(Debug, Default)]
pub(super) struct KnownIds {
    /// Folded ids and their sequences, sorted.
    sorted: Vec<(u64, i64)>,
    /// Ids that were added since the last merge.
    newest: HashMap<Uuid, i64>,
}

impl KnownIds {
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let mut ids = connection.prepare("SELECT delivery_id, seq FROM deliveries")?;
        let rows =
            ids.query_map((), |row| Ok((folded(Uuid::from_bytes(row.get(0)?)), row.get(1)?)))?;
        let mut sorted = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        sorted.sort_unstable();
        Ok(Self { sorted, newest: HashMap::new() })
    }

    /// Digest of the body that the journal holds under this id, if any.
    pub(super) fn kept(
        &self,
        connection: &Connection,
        id: Uuid,
    ) -> rusqlite::Result<Option<[u8; 32]>> {
        let from = self.sorted.partition_point(|(known, _)| *known < folded(id));
        let same = self.sorted[from..].iter().take_while(|(known, _)| *known == folded(id));
        for seq in self.newest.get(&id).into_iter().chain(same.map(|(_, seq)| seq)) {
            let digest = connection
                .prepare_cached(
                    "SELECT body_sha256 FROM deliveries WHERE seq = ?1 AND delivery_id = ?2",
                )?
                .query_row((seq, id.as_bytes().as_slice()), |row| row.get(0))
                .optional()?;
            if digest.is_some() {
                return Ok(digest);
            }
        }
        Ok(None)
    }

    pub(super) fn insert(&mut self, id: Uuid, seq: i64) {
        self.newest.insert(id, seq);
        if self.newest.len() >= NEWEST_IDS {
            self.sorted.extend(self.newest.drain().map(|(id, seq)| (folded(id), seq)));
            // The vector now holds two sorted runs, which the stable sort merges.
            let newest = self.sorted.len() - NEWEST_IDS;
            self.sorted[newest..].sort_unstable();
            self.sorted.sort();
        }
    }

    /// Removes the ids of cleared deliveries.
    pub(super) fn forget(&mut self, cleared: &[i64]) {
        let Some(last) = cleared.last() else { return };
        let gone = |seq: &i64| seq <= last && cleared.binary_search(seq).is_ok();
        self.sorted.retain(|(_, seq)| !gone(seq));
        self.newest.retain(|_, seq| !gone(seq));
        if self.sorted.capacity() > 4 * self.sorted.len().max(NEWEST_IDS) {
            self.sorted.shrink_to(2 * self.sorted.len());
        }
    }
}

/// Folds both halves of an id into one, because ids may be consecutive: most senders use random
/// ids, but a sender may count.
fn folded(id: Uuid) -> u64 {
    let (high, low) = id.as_u64_pair();
    high ^ low
}
