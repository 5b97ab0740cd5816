//! Clearing away what has been published for long enough, and measuring what is left.

use std::sync::atomic::Ordering;

use rusqlite::{Connection, OptionalExtension, Transaction};
use shared::timestamp::Timestamp;
use tracing::{error, info};
use uuid::Uuid;

use super::{JournalConfig, Status};

/// Removes published entries that are older than the retention, or that make
/// the journal larger than it should be: the oldest first, at most `limit`.
/// Returns their sequences and ids.
pub(super) fn prune(
    transaction: &Transaction<'_>,
    config: &JournalConfig,
    status: &Status,
    limit: usize,
) -> rusqlite::Result<Vec<(i64, Uuid)>> {
    let retention = i64::try_from(config.retention.as_micros()).unwrap_or(i64::MAX);
    let before = Timestamp::now().unix_micros().saturating_sub(retention);
    let expired: i64 = transaction
        .prepare_cached("SELECT coalesce(max(through_seq), 0) FROM published WHERE at < ?1")?
        .query_row((before,), |row| row.get(0))?;
    let too_large = status.used_bytes() > config.retention_bytes;
    let horizon = if too_large { status.published_through() } else { expired };
    if horizon == 0 {
        return Ok(Vec::new());
    }
    let oldest = transaction
        .prepare_cached(
            "SELECT seq, delivery_id FROM deliveries
             WHERE seq <= ?1 AND seq NOT IN (SELECT seq FROM set_aside)
             ORDER BY seq LIMIT ?2",
        )?
        .query_map((horizon, limit as i64), |row| Ok((row.get(0)?, Uuid::from_bytes(row.get(1)?))))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    if let Some((last, _)) = oldest.last() {
        for sql in [
            "DELETE FROM deliveries WHERE seq <= ?1 AND seq NOT IN (SELECT seq FROM set_aside)",
            "DELETE FROM bodies WHERE seq <= ?1 AND seq NOT IN (SELECT seq FROM set_aside)",
        ] {
            transaction.prepare_cached(sql)?.execute((last,))?;
        }
    }
    // The newest line stays: it says where the relay is.
    transaction
        .prepare_cached("DELETE FROM published WHERE through_seq < ?1")?
        .execute((expired,))?;
    Ok(oldest)
}

/// What a journal holds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Measured {
    used_bytes: u64,
    /// When the oldest unpublished entry was received, in microseconds since 1970; 0 if there is none.
    oldest_unpublished: i64,
}

/// Measures a journal. Cheapest within a transaction, whose locks it shares.
pub(super) fn measure(connection: &Connection, status: &Status) -> rusqlite::Result<Measured> {
    let number = |sql| connection.prepare_cached(sql)?.query_row((), |row| row.get::<_, i64>(0));
    let pages = number("PRAGMA page_count")? - number("PRAGMA freelist_count")?;
    let used = pages * number("PRAGMA page_size")?;
    let oldest: Option<i64> = connection
        .prepare_cached("SELECT received_at FROM deliveries WHERE seq > ?1 ORDER BY seq LIMIT 1")?
        .query_row((status.published_through(),), |row| row.get(0))
        .optional()?;
    Ok(Measured { used_bytes: used.unsigned_abs(), oldest_unpublished: oldest.unwrap_or(0) })
}

impl Measured {
    /// Tells others, and the log when the journal becomes full or has room again.
    pub(super) fn tell(self, config: &JournalConfig, status: &Status) {
        let Self { used_bytes, oldest_unpublished } = self;
        status.used_bytes.store(used_bytes, Ordering::Relaxed);
        let full = used_bytes >= config.max_bytes;
        if full != status.full.swap(full, Ordering::Relaxed) {
            if full {
                error!(used_bytes, "the journal has reached its size limit; deliveries get 503");
            } else {
                info!(used_bytes, "the journal has room again");
            }
        }
        status.oldest_unpublished.store(oldest_unpublished, Ordering::Relaxed);
    }
}
