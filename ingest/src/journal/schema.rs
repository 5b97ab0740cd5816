//! The journal's file: lock, tables and schema version.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

use rusqlite::Connection;
use service::private;

use super::{FILES, JournalError};

/// Page size, in bytes: three typical compressed bodies. A commit of one delivery writes two pages.
const PAGE_BYTES: u32 = 16 * 1024;
/// Pages in the WAL that trigger a checkpoint: 4 MiB, which takes some milliseconds.
const WAL_PAGES: u32 = 256;
/// Page cache, in KiB.
const CACHE_KIB: i64 = 2048;

/// Migration to each schema version from the one before. The version is SQLite's `user_version`.
const STEPS: [&str; 3] = [TABLES, ID_FILTERS, FAMILY];

/// Newest schema version.
pub(super) const VERSION: i64 = STEPS.len() as i64;

/// Deliveries and bodies are separate tables, so that ids can be read without reading bodies. The
/// ids have no index: they are random, so every commit would write one index page per id.
const TABLES: &str = "
CREATE TABLE deliveries (
    seq           INTEGER PRIMARY KEY,  -- order of commit
    delivery_id   BLOB    NOT NULL,
    received_at   INTEGER NOT NULL,     -- microseconds since 1970
    event_type    TEXT,
    hook          TEXT,
    traceparent   TEXT    NOT NULL,
    repository_id INTEGER NOT NULL,
    issue_number  INTEGER NOT NULL,
    body_sha256   BLOB    NOT NULL
) STRICT;
CREATE TABLE bodies (
    seq           INTEGER PRIMARY KEY,
    lz4           BLOB    NOT NULL      -- the signed JSON text: its length (32 bit, little endian), then an LZ4 block
) STRICT;
CREATE TABLE published (                -- the broker has confirmed everything up to through_seq
    through_seq   INTEGER PRIMARY KEY,
    at            INTEGER NOT NULL
) STRICT;
CREATE TABLE set_aside (                -- what no broker takes
    seq           INTEGER PRIMARY KEY,
    reason        TEXT    NOT NULL,
    at            INTEGER NOT NULL
) STRICT;
";

/// Filters of ids. The next version drops them, because it holds the ids in memory.
const ID_FILTERS: &str = "CREATE TABLE id_filters (last_seq INTEGER PRIMARY KEY) STRICT";

/// Event family of an entry, by Gitea's name. It selects the parser. A family other than `issues`
/// needs its own migration here, so that an older program refuses the file.
const FAMILY: &str = "
DROP TABLE id_filters;
ALTER TABLE deliveries DROP COLUMN event_type;
ALTER TABLE deliveries ADD COLUMN family TEXT NOT NULL DEFAULT 'issues';
";

/// Locks `dir`, opens the file in it, and migrates the file to the newest version.
pub(super) fn open(dir: &Path, file: &str) -> Result<(File, Connection), JournalError> {
    private::make_directory(dir).map_err(JournalError::Directory)?;
    let outcome = private::put_right(dir, &[FILES]).map_err(JournalError::Private)?;
    outcome.log();
    let lock = private::open(&dir.join("journal.lock")).map_err(JournalError::Lock)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(JournalError::InUse),
        Err(TryLockError::Error(error)) => return Err(JournalError::Lock(error)),
    }
    let file = dir.join(file);
    // SQLite gives its other files the mode of this one.
    private::make_file(&file).map_err(JournalError::File)?;
    let mut connection =
        Connection::open(file).map_err(|e| JournalError::Sqlite("open the file", e))?;
    let set = |name: &str, value: &dyn rusqlite::ToSql| {
        connection
            .pragma_update(None, name, value)
            .map_err(|e| JournalError::Sqlite("set a pragma", e))
    };
    set("page_size", &PAGE_BYTES)?;
    set("journal_mode", &"WAL")?;
    set("synchronous", &"FULL")?;
    set("wal_autocheckpoint", &WAL_PAGES)?;
    set("cache_size", &-CACHE_KIB)?;
    set("journal_size_limit", &(64 * 1024 * 1024))?;
    migrate(&mut connection)?;
    Ok((lock, connection))
}

fn migrate(connection: &mut Connection) -> Result<(), JournalError> {
    let sqlite = |e| JournalError::Sqlite("create the tables", e);
    let found: i64 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(sqlite)?;
    let known = VERSION;
    if found == known {
        return Ok(());
    }
    let missing = usize::try_from(found).ok().and_then(|found| STEPS.get(found..));
    let missing = missing.ok_or(JournalError::NewerSchema { found, known })?;
    let transaction = connection.transaction().map_err(sqlite)?;
    for step in missing {
        transaction.execute_batch(step).map_err(sqlite)?;
    }
    transaction.pragma_update(None, "user_version", known).map_err(sqlite)?;
    transaction.commit().map_err(sqlite)
}
