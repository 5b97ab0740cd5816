//! The journal: every verified delivery is durable before it is answered.
//!
//! SQLite runs in WAL mode with `synchronous=FULL`, so every commit is an fsync. One thread writes,
//! and commits all waiting deliveries in one transaction (group commit). Published entries stay for
//! a while, because the relay offers them again after a reconnect. [`window`] defines which entries
//! stay and for how long.

mod known_ids;
pub(crate) mod packed;
mod reader;
mod schema;
mod status;
mod tail;
pub(crate) mod window;
mod writer;

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    task::{Context, Poll},
    time::Duration,
};

use contract::{event::IssueEvent, traceparent::Traceparent};
use service::tasks::Tasks;
use strum::IntoStaticStr;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use uuid::Uuid;

use crate::delivery::Delivery;

use self::{
    known_ids::KnownIds,
    tail::Tail,
    window::Window,
    writer::{Command, SettingAside, Shared, Waiting, Writer},
};
pub(crate) use self::{
    packed::Packed,
    reader::{Content, Entry, Issue, JournalReader},
    status::Status,
};

/// File of the journal within its directory.
const FILE: &str = "journal.db";
/// How the names of all files of the journal begin.
pub(crate) const FILES: &str = "journal.";
/// Name of the writer's thread.
pub(crate) const WRITER: &str = "the journal's writer";
/// Deliveries that may wait for the writer. `MAX_IN_FLIGHT_BYTES` bounds the memory of their
/// bodies.
const QUEUE: usize = 16 * 1024;

/// Location and limits of the journal.
#[derive(Clone, Debug)]
pub struct JournalSettings {
    /// Directory. It is created if it is missing.
    pub dir: PathBuf,
    /// Size in bytes at which new deliveries are refused.
    pub max_bytes: u64,
    /// How long published entries stay and may be offered again.
    pub retention: Duration,
    /// Size in bytes above which published entries are cleared before the retention ends.
    pub retention_bytes: u64,
}

/// Which operation on the journal failed.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The directory cannot be created.
    #[error("create the directory")]
    Directory(#[source] std::io::Error),
    /// Others can use the directory or a file in it, and that cannot be changed: see
    /// [`service::private::put_right`].
    #[error("DATA_DIR {0}")]
    Private(String),
    /// There is no journal in the directory, but one in the directory above.
    #[error("DATA_DIR is {}, and a journal is in {}: it may hold deliveries that are not published; move journal.* from there, or set DATA_DIR to it", .0.display(), .1.display())]
    Above(PathBuf, PathBuf),
    /// Another process has locked the directory.
    #[error("another instance uses this directory")]
    InUse,
    /// The file cannot be created.
    #[error("create the file")]
    File(#[source] std::io::Error),
    /// The lock file cannot be created or locked.
    #[error("lock the directory")]
    Lock(#[source] std::io::Error),
    /// A newer version of this program wrote the file.
    #[error("the journal has schema {found}, this program knows up to {known}")]
    NewerSchema {
        /// Schema version of the file.
        found: i64,
        /// Newest schema version that this program knows.
        known: i64,
    },
    /// A SQLite operation failed.
    #[error("{0}")]
    Sqlite(&'static str, #[source] rusqlite::Error),
    /// A newer version of this program wrote an entry of a family that this version cannot read.
    #[error("an entry is of the family {0:?}, which this program does not know")]
    Family(String),
    /// The writer's thread cannot be started, or a blocking task panicked.
    #[error("start a thread")]
    Thread(#[source] std::io::Error),
}

/// Why a command to the writer failed. The writer logs the cause if the journal cannot be written.
#[derive(Clone, Copy, Debug, Error, IntoStaticStr, PartialEq, Eq)]
pub(crate) enum AppendError {
    #[strum(serialize = "journal_full")]
    #[error("the journal has reached its size limit")]
    Full,
    #[strum(serialize = "journal_unwritable")]
    #[error("the journal cannot be written")]
    Unwritable,
    #[strum(serialize = "overloaded")]
    #[error("too much is being received at once")]
    Busy,
    #[strum(serialize = "invalid_payload")]
    #[error("another delivery came under this id")]
    IdReused,
}

/// Whether an append added a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    New,
    /// The journal already held it, under the same id.
    Before,
}

/// A delivery to be appended.
#[derive(Debug)]
pub(crate) struct NewEntry {
    pub(crate) delivery: Delivery,
    pub(crate) traceparent: Traceparent,
    /// The signed JSON text without the secret of an old Gitea, compressed.
    pub(crate) packed: Packed,
    /// The parsed event. The relay publishes it.
    pub(crate) event: Box<IssueEvent>,
    /// Permits of the memory limit for bodies. They are released once the entry is on disk.
    pub(crate) _memory: Option<OwnedSemaphorePermit>,
}

/// Resolves once the delivery is on disk. Dropping it does not cancel the append.
#[derive(Debug)]
pub(crate) struct Appending(oneshot::Receiver<Result<Kept, AppendError>>);

impl Future for Appending {
    type Output = Result<Kept, AppendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|kept| kept.unwrap_or(Err(AppendError::Unwritable)))
    }
}

/// A handle on the journal. Clones share the journal.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    commands: SyncSender<Command>,
    status: Arc<Status>,
    window: Arc<Window>,
    committed: watch::Receiver<i64>,
    tail: Arc<Tail>,
    known: Arc<KnownIds>,
    file: PathBuf,
    retention: Duration,
}

/// Refuses to begin a journal below another one, as where `DATA_DIR` was changed to a directory in
/// the former one. What the other one holds would never be published.
fn is_not_above(dir: &Path) -> Result<(), JournalError> {
    let there = |dir: &Path| dir.join(FILE).try_exists().unwrap_or(false);
    match dir.parent() {
        Some(above) if there(above) && !there(dir) => {
            Err(JournalError::Above(dir.to_owned(), above.to_owned()))
        }
        _ => Ok(()),
    }
}

impl Journal {
    /// Opens or creates the journal and starts its writer.
    pub(crate) async fn open(
        settings: &JournalSettings,
        tasks: &mut Tasks,
    ) -> Result<Self, JournalError> {
        // SQLite takes a path that begins with `file:` as a URI, which may ask for a journal in
        // memory. An absolute path is never a URI.
        let dir = std::path::absolute(&settings.dir).map_err(JournalError::Directory)?;
        let (file, retention) = (dir.join(FILE), settings.retention);
        let opening = JournalSettings { dir, ..settings.clone() };
        let open = move || {
            is_not_above(&opening.dir)?;
            Writer::open(&opening, FILE)
        };
        let (writer, shared, committed) = blocking(open).await?;
        let (commands, receiver) = sync_channel(QUEUE);
        tasks.spawn_thread(WRITER, move || writer.run(&receiver)).map_err(JournalError::Thread)?;
        let Shared { status, window, tail, known } = shared;
        Ok(Self { commands, status, window, committed, tail, known, file, retention })
    }

    /// Queues a delivery for the next commit. The returned future resolves once the delivery is on
    /// disk.
    pub(crate) fn append(&self, entry: NewEntry) -> Result<Appending, AppendError> {
        let (reply, kept) = oneshot::channel();
        let append = Command::Append(Box::new(Waiting { entry, reply }));
        match self.commands.try_send(append) {
            Ok(()) => Ok(Appending(kept)),
            Err(TrySendError::Full(_)) => Err(AppendError::Busy),
            Err(TrySendError::Disconnected(_)) => Err(AppendError::Unwritable),
        }
    }

    /// Sets aside an entry that the broker refuses permanently. The entry is not settled until this
    /// succeeds.
    pub(crate) async fn set_aside(
        &self,
        seq: i64,
        delivery_id: Uuid,
        reason: String,
    ) -> Result<(), AppendError> {
        let (reply, done) = oneshot::channel();
        self.command(Command::SetAside(SettingAside { seq, delivery_id, reason, reply })).await?;
        done.await.unwrap_or(Err(AppendError::Unwritable))
    }

    /// Writes the low-water mark and clears old entries.
    pub(crate) async fn upkeep(&self) -> Result<(), AppendError> {
        let (reply, done) = oneshot::channel();
        self.command(Command::Upkeep { reply }).await?;
        done.await.unwrap_or(Err(AppendError::Unwritable))
    }

    /// Commits all waiting commands, closes the file and unlocks its directory.
    pub(crate) async fn close(&self) {
        // On an error the writer has already ended, so there is nothing to close.
        let _ = self.command(Command::Close).await;
    }

    /// Waits while the queue is full, because a command must not be lost.
    async fn command(&self, command: Command) -> Result<(), AppendError> {
        let commands = self.commands.clone();
        let sent = tokio::task::spawn_blocking(move || commands.send(command).is_ok()).await;
        if sent.unwrap_or(false) { Ok(()) } else { Err(AppendError::Unwritable) }
    }

    /// Sequence of the last committed entry. The receiver is notified at each commit of new
    /// entries.
    pub(crate) fn committed(&self) -> watch::Receiver<i64> {
        self.committed.clone()
    }

    pub(crate) fn status(&self) -> &Arc<Status> {
        &self.status
    }

    pub(crate) fn window(&self) -> &Arc<Window> {
        &self.window
    }

    /// Sequences of the entries that may be of this delivery, for [`JournalReader::find`]. Blocks while
    /// the writer sorts ids.
    pub(crate) fn sequences(&self, id: Uuid) -> Vec<i64> {
        self.known.sequences(id)
    }

    /// Opens a reader with its own connection, which does not block the writer.
    pub(crate) async fn reader(&self) -> Result<JournalReader, JournalError> {
        let journal = self.clone();
        blocking(move || journal.open_reader()).await
    }

    /// The same. Blocks.
    pub(crate) fn open_reader(&self) -> Result<JournalReader, JournalError> {
        JournalReader::open(&self.file, Arc::clone(&self.tail), self.retention)
    }
}

/// Runs blocking work on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, JournalError> + Send + 'static,
) -> Result<T, JournalError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| Err(JournalError::Thread(std::io::Error::other(panic))))
}

#[cfg(test)]
mod tests;
