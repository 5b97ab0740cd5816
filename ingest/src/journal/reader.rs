//! Reading entries back, in order of commit.

use std::{path::Path, sync::Arc};

use opentelemetry::trace::TraceId;
use rusqlite::{Connection, OpenFlags, Row};
use shared::{
    event::IssueEvent,
    timestamp::Timestamp,
    trace::{self, Traceparent},
};
use uuid::Uuid;

use super::{JournalError, tail::Tail};

/// An entry as the relay reads it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) seq: i64,
    pub(crate) delivery_id: Uuid,
    pub(crate) received_at: Timestamp,
    pub(crate) hook: Option<String>,
    pub(crate) traceparent: Option<Traceparent>,
    pub(crate) repository_id: i64,
    pub(crate) issue_number: i64,
    pub(crate) body_sha256: [u8; 32],
    pub(crate) content: Content,
    /// Length of the text, in bytes.
    pub(crate) text_bytes: usize,
}

impl Entry {
    pub(crate) fn trace_id(&self) -> TraceId {
        trace::trace_id(self.delivery_id)
    }
}

/// What an entry holds.
#[derive(Debug)]
pub(crate) enum Content {
    /// The event, of an entry that was committed a moment ago.
    Event(Box<IssueEvent>),
    /// The signed JSON text, of one read from the disk.
    Text(Vec<u8>),
}

/// Reads entries: the newest from memory, all others from the disk.
#[derive(Debug)]
pub(crate) struct JournalReader {
    connection: Connection,
    tail: Arc<Tail>,
}

impl JournalReader {
    pub(super) fn open(file: &Path, tail: Arc<Tail>) -> Result<Self, JournalError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(file, flags)
            .map_err(|e| JournalError::Sqlite("open the file for reading", e))?;
        connection
            .pragma_update(None, "cache_size", -1024)
            .map_err(|e| JournalError::Sqlite("set a pragma", e))?;
        Ok(Self { connection, tail })
    }

    /// The entries right after `seq` if they are in memory, at most `max_rows` of them.
    pub(crate) fn after_in_memory(&self, seq: i64, max_rows: usize) -> Option<Vec<Entry>> {
        self.tail.take_after(seq, max_rows)
    }

    /// The entries after `seq` from the disk, at most `max_rows` of them and, but
    /// for the first, at most `max_bytes` of text. Blocks.
    pub(crate) fn after(
        &self,
        seq: i64,
        max_rows: usize,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, JournalError> {
        let read = |e| JournalError::Sqlite("read entries", e);
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT seq, delivery_id, received_at, hook, traceparent, repository_id, issue_number,
                        body_sha256, lz4
                 FROM deliveries JOIN bodies USING (seq)
                 WHERE seq > ?1 AND seq NOT IN (SELECT seq FROM set_aside)
                 ORDER BY seq LIMIT ?2",
            )
            .map_err(read)?;
        let mut rows = statement.query((seq, max_rows as i64)).map_err(read)?;
        let mut entries = Vec::new();
        let mut bytes = 0;
        while let Some(row) = rows.next().map_err(read)? {
            let entry = entry(row)?;
            bytes += entry.text_bytes;
            entries.push(entry);
            if bytes >= max_bytes {
                break;
            }
        }
        Ok(entries)
    }
}

fn entry(row: &Row<'_>) -> Result<Entry, JournalError> {
    let read = |e| JournalError::Sqlite("read an entry", e);
    let traceparent: String = row.get(4).map_err(read)?;
    let delivery_id: [u8; 16] = row.get(1).map_err(read)?;
    let packed = row.get_ref(8).map_err(read)?.as_blob();
    let packed = packed.map_err(|e| read(e.into()))?;
    let text = lz4_flex::decompress_size_prepended(packed).map_err(JournalError::Unpack)?;
    Ok(Entry {
        seq: row.get(0).map_err(read)?,
        delivery_id: Uuid::from_bytes(delivery_id),
        received_at: Timestamp::from_unix_micros(row.get(2).map_err(read)?),
        hook: row.get(3).map_err(read)?,
        traceparent: traceparent.parse().ok(),
        repository_id: row.get(5).map_err(read)?,
        issue_number: row.get(6).map_err(read)?,
        body_sha256: row.get(7).map_err(read)?,
        text_bytes: text.len(),
        content: Content::Text(text),
    })
}

#[cfg(test)]
impl JournalReader {
    /// All entries, those set aside too.
    pub(super) fn count(&self) -> i64 {
        self.connection
            .query_row("SELECT count(*) FROM deliveries", (), |row| row.get(0))
            .expect("count")
    }
}
