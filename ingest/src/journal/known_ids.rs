//! Which deliveries the journal holds, by id.
//!
//! An index on random ids would cost the disk a page for each delivery, and all
//! of them in memory would grow with the journal. So only the newest ids are in
//! memory. Of each few thousand older ones a filter is, and the file is searched
//! where it does not rule an id out.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension};
use uuid::Uuid;

use super::id_filter::{IdFilter, IdHash};

/// Ids of one filter: what has to be searched, some milliseconds, when an old id comes again.
const FILTERED_IDS: usize = 8192;

/// Ids of deliveries that were committed.
#[derive(Debug, Default)]
pub(super) struct KnownIds {
    filtered: Vec<Filtered>,
    /// Those that no filter holds yet.
    newest: HashMap<Uuid, i64>,
    /// Filters up to this sequence are in the file.
    saved_through: i64,
}

/// The deliveries of these sequences.
#[derive(Debug)]
struct Filtered {
    first_seq: i64,
    last_seq: i64,
    ids: IdFilter,
}

impl KnownIds {
    /// Reads the filters, and the ids of all deliveries that are newer.
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let mut filters = connection
            .prepare("SELECT first_seq, last_seq, filter FROM id_filters ORDER BY last_seq")?;
        let filtered = filters.query_map((), |row| {
            let ids = IdFilter::from_bytes(row.get(2)?);
            Ok(Filtered { first_seq: row.get(0)?, last_seq: row.get(1)?, ids })
        })?;
        let mut known = Self { filtered: filtered.collect::<Result<_, _>>()?, ..Self::default() };
        known.saved_through = known.filtered_through();
        let mut newer = connection
            .prepare("SELECT delivery_id, seq FROM deliveries WHERE seq > ?1 ORDER BY seq")?;
        let mut rows = newer.query((known.saved_through,))?;
        while let Some(row) = rows.next()? {
            known.insert(Uuid::from_bytes(row.get(0)?), row.get(1)?);
        }
        Ok(known)
    }

    fn filtered_through(&self) -> i64 {
        self.filtered.last().map_or(0, |filtered| filtered.last_seq)
    }

    /// The digest of the body that was kept under this id, if one was.
    pub(super) fn kept(
        &self,
        connection: &Connection,
        id: Uuid,
    ) -> rusqlite::Result<Option<[u8; 32]>> {
        let digest = |first_seq: i64, last_seq: i64| {
            connection
                .prepare_cached(
                    "SELECT body_sha256 FROM deliveries
                     WHERE seq BETWEEN ?1 AND ?2 AND delivery_id = ?3",
                )?
                .query_row((first_seq, last_seq, id.as_bytes().as_slice()), |row| row.get(0))
                .optional()
        };
        if let Some(seq) = self.newest.get(&id) {
            return digest(*seq, *seq);
        }
        let hash = IdHash::of(&id);
        for filtered in self.filtered.iter().rev().filter(|filtered| filtered.ids.may_hold(hash)) {
            if let Some(digest) = digest(filtered.first_seq, filtered.last_seq)? {
                return Ok(Some(digest));
            }
        }
        Ok(None)
    }

    /// Notes a delivery; sequences must rise.
    pub(super) fn insert(&mut self, id: Uuid, seq: i64) {
        self.newest.insert(id, seq);
        if self.newest.len() >= FILTERED_IDS {
            let ids = IdFilter::of(self.newest.keys());
            self.filtered.push(Filtered {
                first_seq: self.filtered_through() + 1,
                last_seq: seq,
                ids,
            });
            self.newest.clear();
        }
    }

    /// Writes the filters that are not in the file yet. Returns up to where it has them, once
    /// this is committed; without them a start would read these ids one by one.
    pub(super) fn save(&self, connection: &Connection) -> rusqlite::Result<i64> {
        let mut insert = connection.prepare_cached("INSERT INTO id_filters VALUES (?1, ?2, ?3)")?;
        for filtered in self.filtered.iter().filter(|f| f.last_seq > self.saved_through) {
            insert.execute((filtered.first_seq, filtered.last_seq, filtered.ids.as_bytes()))?;
        }
        Ok(self.saved_through.max(self.filtered_through()))
    }

    pub(super) fn saved(&mut self, through: i64) {
        self.saved_through = through;
    }

    /// Removes the filters up to `through` from the file whose deliveries have all been
    /// cleared away. Returns their last sequences.
    pub(super) fn clear(
        &self,
        connection: &Connection,
        through: i64,
    ) -> rusqlite::Result<Vec<i64>> {
        let mut cleared = Vec::new();
        for filtered in self.filtered.iter().take_while(|f| f.last_seq <= through) {
            // What was set aside stays, and so does its filter.
            let left = connection
                .prepare_cached("SELECT 1 FROM deliveries WHERE seq BETWEEN ?1 AND ?2 LIMIT 1")?
                .exists((filtered.first_seq, filtered.last_seq))?;
            if !left {
                connection
                    .prepare_cached("DELETE FROM id_filters WHERE last_seq = ?1")?
                    .execute((filtered.last_seq,))?;
                cleared.push(filtered.last_seq);
            }
        }
        Ok(cleared)
    }

    /// Follows what was committed: deliveries that are gone, and the filters that [`Self::clear`] has removed.
    pub(super) fn forget(&mut self, deliveries: &[(i64, Uuid)], filters: &[i64]) {
        for (_, id) in deliveries {
            self.newest.remove(id);
        }
        if !filters.is_empty() {
            self.filtered.retain(|filtered| !filters.contains(&filtered.last_seq));
        }
    }
}
