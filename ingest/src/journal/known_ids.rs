//! Index of the journal's deliveries, by id.
//!
//! An index on random ids in the file would write one page per delivery. So 64 bits of each id are
//! in memory, with the sequence of its entry, and the file confirms a match.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rusqlite::{Connection, OptionalExtension};
use uuid::Uuid;

/// New ids that are collected before they are merged into the sorted ones.
const NEWEST_IDS: usize = 8192;

/// Ids of committed deliveries. The writer changes them, and readers look for a delivery.
#[derive(Debug)]
pub(super) struct KnownIds(Mutex<Ids>);

#[derive(Debug, Default)]
struct Ids {
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
        Ok(Self(Mutex::new(Ids { sorted, newest: HashMap::new() })))
    }

    fn ids(&self) -> MutexGuard<'_, Ids> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sequences of the entries that may be of this delivery. All but one of them are not.
    pub(super) fn sequences(&self, id: Uuid) -> Vec<i64> {
        let ids = self.ids();
        let from = ids.sorted.partition_point(|(known, _)| *known < folded(id));
        let same = ids.sorted[from..].iter().take_while(|(known, _)| *known == folded(id));
        ids.newest.get(&id).into_iter().chain(same.map(|(_, seq)| seq)).copied().collect()
    }

    /// Digest of the body that the journal holds under this id, if any.
    pub(super) fn kept(
        &self,
        connection: &Connection,
        id: Uuid,
    ) -> rusqlite::Result<Option<[u8; 32]>> {
        for seq in self.sequences(id) {
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

    pub(super) fn insert(&self, id: Uuid, seq: i64) {
        let Ids { sorted, newest } = &mut *self.ids();
        newest.insert(id, seq);
        if newest.len() >= NEWEST_IDS {
            sorted.extend(newest.drain().map(|(id, seq)| (folded(id), seq)));
            // The vector now holds two sorted runs, which the stable sort merges.
            let newest = sorted.len() - NEWEST_IDS;
            sorted[newest..].sort_unstable();
            sorted.sort();
        }
    }

    /// Removes the ids of cleared deliveries.
    pub(super) fn forget(&self, cleared: &[i64]) {
        let Some(last) = cleared.last() else { return };
        let gone = |seq: &i64| seq <= last && cleared.binary_search(seq).is_ok();
        let Ids { sorted, newest } = &mut *self.ids();
        sorted.retain(|(_, seq)| !gone(seq));
        newest.retain(|_, seq| !gone(seq));
        if sorted.capacity() > 4 * sorted.len().max(NEWEST_IDS) {
            sorted.shrink_to(2 * sorted.len());
        }
    }
}

/// Folds both halves of an id into one, because ids may be consecutive: most senders use random
/// ids, but a sender may count.
fn folded(id: Uuid) -> u64 {
    let (high, low) = id.as_u64_pair();
    high ^ low
}
