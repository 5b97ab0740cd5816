//! The journal's state, as health checks and metrics read it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use contract::timestamp::Timestamp;
use rusqlite::{Connection, OptionalExtension};
use tracing::{error, info};

use super::{JournalSettings, window::Window};

#[derive(Debug)]
pub(crate) struct Status {
    window: Arc<Window>,
    writable: AtomicBool,
    full: AtomicBool,
    last_seq: AtomicI64,
    oldest_unpublished: AtomicI64,
    used_bytes: AtomicU64,
    /// Start of the running transaction, in microseconds since 1970. 0 if there is none.
    writing_since: AtomicI64,
}

/// How long a commit may take before the disk counts as hanging. By then Gitea has hung up.
const HANGING: Duration = Duration::from_secs(5);

impl Status {
    pub(super) fn new(window: Arc<Window>, last_seq: i64) -> Self {
        Self {
            window,
            writable: true.into(),
            full: false.into(),
            last_seq: last_seq.into(),
            oldest_unpublished: 0.into(),
            used_bytes: 0.into(),
            writing_since: 0.into(),
        }
    }

    /// Whether deliveries can be kept right now.
    pub(crate) fn can_keep(&self) -> bool {
        self.is_writable() && !self.is_full() && !self.hangs()
    }

    fn hangs(&self) -> bool {
        let since = self.writing_since.load(Ordering::Relaxed);
        let now = Timestamp::now().unix_micros();
        since > 0 && now.saturating_sub(since) > HANGING.as_micros() as i64
    }

    pub(super) fn writing(&self, writing: bool) {
        let since = if writing { Timestamp::now().unix_micros() } else { 0 };
        self.writing_since.store(since, Ordering::Relaxed);
    }

    pub(super) fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }

    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Number of unsettled entries.
    pub(crate) fn depth(&self) -> u64 {
        let last = self.last_seq.load(Ordering::Relaxed);
        u64::try_from(last - self.window.low_water_mark()).unwrap_or(0)
    }

    /// How long the oldest unsettled entry has waited.
    pub(crate) fn oldest_unpublished_age(&self) -> Duration {
        let micros = self.oldest_unpublished.load(Ordering::Relaxed);
        if micros == 0 || self.depth() == 0 {
            return Duration::ZERO;
        }
        let age = Timestamp::now().unix_micros().saturating_sub(micros);
        Duration::from_micros(u64::try_from(age).unwrap_or(0))
    }

    /// Bytes in use within the file.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Number of entries that the broker refuses permanently. They are kept forever.
    pub(crate) fn set_aside(&self) -> u64 {
        self.window.set_aside()
    }

    pub(super) fn committed(&self, last_seq: i64) {
        self.last_seq.store(last_seq, Ordering::Relaxed);
    }

    /// Records whether the last transaction succeeded. Logs when the journal is writable again.
    pub(super) fn set_writable(&self, writable: bool) {
        if !self.writable.swap(writable, Ordering::Relaxed) && writable {
            info!("the journal can be written again");
        }
    }

    pub(super) fn set_measured(&self, measured: Measured, settings: &JournalSettings) {
        let Measured { used_bytes, oldest_unpublished } = measured;
        self.used_bytes.store(used_bytes, Ordering::Relaxed);
        self.oldest_unpublished.store(oldest_unpublished, Ordering::Relaxed);
        let full = used_bytes >= settings.max_bytes;
        if full != self.full.swap(full, Ordering::Relaxed) {
            if full {
                error!(used_bytes, "the journal has reached its size limit; deliveries get 503");
            } else {
                info!(used_bytes, "the journal has room again");
            }
        }
    }
}

/// Measurements of a journal.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Measured {
    used_bytes: u64,
    /// When the oldest unsettled entry was received, in microseconds since 1970. 0 if there is
    /// none.
    oldest_unpublished: i64,
}

/// Cheapest within a transaction, because it shares that transaction's locks.
pub(super) fn measure(connection: &Connection, window: &Window) -> rusqlite::Result<Measured> {
    let number = |sql| connection.prepare_cached(sql)?.query_row((), |row| row.get::<_, i64>(0));
    let pages = number("PRAGMA page_count")? - number("PRAGMA freelist_count")?;
    let used = pages * number("PRAGMA page_size")?;
    let oldest: Option<i64> = connection
        .prepare_cached("SELECT received_at FROM deliveries WHERE seq > ?1 ORDER BY seq LIMIT 1")?
        .query_row((window.low_water_mark(),), |row| row.get(0))
        .optional()?;
    Ok(Measured { used_bytes: used.unsigned_abs(), oldest_unpublished: oldest.unwrap_or(0) })
}
