//! Reads entries back, in commit order.

use std::{path::Path, sync::Arc, time::Duration};

use contract::{event::IssueEvent, timestamp::Timestamp, traceparent::Traceparent};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};
use service::causes::Causes;
use uuid::Uuid;

use super::{JournalError, packed::unpack, tail::Tail, window};
use crate::delivery::Delivery;

/// The issue of an entry. It is identified by the repository's id and not its name, because a
/// repository can be renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Issue {
    pub(crate) repository_id: i64,
    pub(crate) number: u64,
}

/// An entry as the relay reads it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) seq: i64,
    pub(crate) delivery: Delivery,
    pub(crate) traceparent: Option<Traceparent>,
    pub(crate) issue: Issue,
    pub(crate) content: Content,
    /// Length of the text, in bytes.
    pub(crate) text_bytes: usize,
    /// Earliest time at which the broker can have stored the entry. Set for settled entries only.
    pub(crate) stored_at: Option<Timestamp>,
}

#[derive(Debug)]
pub(crate) enum Content {
    /// The parsed event, of an entry that is still in memory.
    Event(Box<IssueEvent>),
    /// The signed JSON text, of an entry that was read from disk.
    Text(Vec<u8>),
    /// The text on disk is damaged, with the reason.
    Unreadable(String),
}

/// Selects what [`entry`] reads.
macro_rules! select_entries {
    ($which:literal) => {
        concat!(
            "SELECT seq, delivery_id, received_at, hook, traceparent, repository_id, issue_number,
                    body_sha256, family, lz4,
                    (SELECT at FROM published WHERE through_seq >= seq ORDER BY through_seq LIMIT 1)
             FROM deliveries JOIN bodies USING (seq) ",
            $which
        )
    };
}

/// Reads entries: the newest from memory, all others from disk.
#[derive(Debug)]
pub(crate) struct JournalReader {
    connection: Connection,
    tail: Arc<Tail>,
    retention: Duration,
}

impl JournalReader {
    pub(super) fn open(
        file: &Path,
        tail: Arc<Tail>,
        retention: Duration,
    ) -> Result<Self, JournalError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(file, flags)
            .map_err(|e| JournalError::Sqlite("open the file for reading", e))?;
        connection
            .pragma_update(None, "cache_size", -1024)
            .map_err(|e| JournalError::Sqlite("set a pragma", e))?;
        Ok(Self { connection, tail, retention })
    }

    /// How long settled entries may be offered again to a stream with this dedup window, and the
    /// sequence up to which all entries are older. Blocks.
    pub(crate) fn expired(&self, dedup_window: Duration) -> Result<(Duration, i64), JournalError> {
        let age = self.retention.min(window::longest_offer(dedup_window));
        let expired = window::expired(&self.connection, Timestamp::now(), age)
            .map_err(|e| JournalError::Sqlite("read what is settled", e))?;
        Ok((age, expired))
    }

    /// The entries right after `seq` if they are in memory, at most `max_rows` of them.
    pub(crate) fn after_in_memory(&self, seq: i64, max_rows: usize) -> Option<Vec<Entry>> {
        self.tail.take_after(seq, max_rows)
    }

    /// Reads the entries after `seq` from disk, at most `max_rows` of them. Stops after the entry
    /// that reaches `max_bytes` of text. Blocks.
    pub(crate) fn after(
        &self,
        seq: i64,
        max_rows: usize,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, JournalError> {
        let read = |e| JournalError::Sqlite("read entries", e);
        let mut statement = self
            .connection
            .prepare_cached(select_entries!(
                "WHERE seq > ?1 AND seq NOT IN (SELECT seq FROM set_aside) ORDER BY seq LIMIT ?2"
            ))
            .map_err(read)?;
        let mut rows = statement.query((seq, max_rows as i64)).map_err(read)?;
        let mut entries = Vec::new();
        let mut bytes = 0;
        while let Some(row) = rows.next().map_err(read)? {
            let entry = match entry(row) {
                Ok(entry) => entry,
                // The entries before the failed one are returned first. The next read reports the
                // error.
                Err(error) if entries.is_empty() => return Err(error),
                Err(_) => break,
            };
            bytes += entry.text_bytes;
            entries.push(entry);
            if bytes >= max_bytes {
                break;
            }
        }
        Ok(entries)
    }
}

impl JournalReader {
    /// The entry of a delivery among those with these sequences, and why it was set aside, if it
    /// was. Blocks.
    pub(crate) fn find(
        &self,
        sequences: &[i64],
        id: Uuid,
    ) -> Result<Option<(Entry, Option<String>)>, JournalError> {
        let read = |e| JournalError::Sqlite("look for a delivery", e);
        for seq in sequences {
            let mut statement = self
                .connection
                .prepare_cached(select_entries!("WHERE seq = ?1 AND delivery_id = ?2"))
                .map_err(read)?;
            let mut rows = statement.query((seq, id.as_bytes().as_slice())).map_err(read)?;
            if let Some(row) = rows.next().map_err(read)? {
                let reason = self
                    .connection
                    .prepare_cached("SELECT reason FROM set_aside WHERE seq = ?1")
                    .and_then(|mut reason| reason.query_row((seq,), |row| row.get(0)).optional())
                    .map_err(read)?;
                return Ok(Some((entry(row)?, reason)));
            }
        }
        Ok(None)
    }
}

fn entry(row: &Row<'_>) -> Result<Entry, JournalError> {
    let read = |e| JournalError::Sqlite("read an entry", e);
    let traceparent: String = row.get(4).map_err(read)?;
    let family: String = row.get(8).map_err(read)?;
    let packed = row.get_ref(9).map_err(read)?.as_blob();
    let packed = packed.map_err(|e| read(e.into()))?;
    let (text_bytes, content) = match unpack(packed) {
        Ok(text) => (text.len(), Content::Text(text)),
        Err(error) => (0, Content::Unreadable(format!("its body is damaged: {}", Causes(&error)))),
    };
    let stored_at: Option<i64> = row.get(10).map_err(read)?;
    Ok(Entry {
        seq: row.get(0).map_err(read)?,
        delivery: Delivery {
            id: Uuid::from_bytes(row.get(1).map_err(read)?),
            family: family.parse().map_err(|_| JournalError::Family(family))?,
            received_at: Timestamp::from_unix_micros(row.get(2).map_err(read)?),
            hook: row.get(3).map_err(read)?,
            body_sha256: row.get(7).map_err(read)?,
        },
        traceparent: traceparent.parse().ok(),
        issue: Issue {
            repository_id: row.get(5).map_err(read)?,
            number: row.get::<_, i64>(6).map_err(read)?.cast_unsigned(),
        },
        text_bytes,
        content,
        stored_at: stored_at.map(Timestamp::from_unix_micros),
    })
}

#[cfg(test)]
impl JournalReader {
    /// Number of all entries, including those set aside.
    pub(super) fn count(&self) -> i64 {
        self.connection
            .query_row("SELECT count(*) FROM deliveries", (), |row| row.get(0))
            .expect("count")
    }
}
