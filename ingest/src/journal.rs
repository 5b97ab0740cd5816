//! The journal: every verified delivery, durable before it is answered.
//!
//! SQLite in WAL mode with `synchronous=FULL`, so a commit is an fsync. One
//! thread writes, and commits all that waits in one transaction (group
//! commit). Published entries stay for a while, since the relay offers them
//! again after a reconnect; [`window`] says which and for how long.

mod known_ids;
mod packed;
mod reader;
mod schema;
mod status;
mod tail;
pub(crate) mod window;
mod writer;

use std::{
    path::PathBuf,
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

pub(crate) use self::{
    packed::Packed,
    reader::{Content, Entry, Issue, JournalReader},
    status::Status,
};
use self::{
    tail::Tail,
    window::Window,
    writer::{Command, SettingAside, Shared, Waiting, Writer},
};

/// File of the journal within its directory.
const FILE: &str = "journal.db";
/// Name of the writer's thread.
pub(crate) const WRITER: &str = "the journal's writer";
/// Deliveries that may wait for the writer; their bodies are bounded by `MAX_IN_FLIGHT_BYTES`.
const QUEUE: usize = 16 * 1024;

/// Where deliveries are kept, and how many.
#[derive(Clone, Debug)]
pub struct JournalSettings {
    /// Directory; created if it is not there.
    pub dir: PathBuf,
    /// Size at which nothing more is taken.
    pub max_bytes: u64,
    /// How long published entries stay, and are offered again.
    pub retention: Duration,
    /// Size above which published entries go earlier.
    pub retention_bytes: u64,
}

/// Which operation on the journal failed.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The directory.
    #[error("create the directory")]
    Directory(#[source] std::io::Error),
    /// Another process has it.
    #[error("another instance uses this directory")]
    InUse,
    /// The lock file.
    #[error("lock the directory")]
    Lock(#[source] std::io::Error),
    /// A newer program made it.
    #[error("the journal has schema {found}, this program knows up to {known}")]
    NewerSchema {
        /// What the file says.
        found: i64,
        /// What this program knows.
        known: i64,
    },
    /// SQLite.
    #[error("{0}")]
    Sqlite(&'static str, #[source] rusqlite::Error),
    /// A newer program wrote an entry of a family that this one cannot read.
    #[error("an entry is of the family {0:?}, which this program does not know")]
    Family(String),
    /// A thread of its own, or one to read on.
    #[error("start a thread")]
    Thread(#[source] std::io::Error),
}

/// Why the writer did not do what it was asked for. It has logged the cause.
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

/// What the journal did with a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    New,
    /// It was there already, under the same id.
    Before,
}

/// A delivery to be kept.
#[derive(Debug)]
pub(crate) struct NewEntry {
    pub(crate) delivery: Delivery,
    pub(crate) traceparent: Traceparent,
    /// The signed JSON text, packed.
    pub(crate) packed: Packed,
    /// What it says; the relay publishes it.
    pub(crate) event: Box<IssueEvent>,
    /// The share of memory that it takes, until it is on disk.
    pub(crate) _memory: Option<OwnedSemaphorePermit>,
}

/// A delivery that waits to be on disk. It is kept whoever still waits for it.
#[derive(Debug)]
pub(crate) struct Appending(oneshot::Receiver<Result<Kept, AppendError>>);

impl Future for Appending {
    type Output = Result<Kept, AppendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|kept| kept.unwrap_or(Err(AppendError::Unwritable)))
    }
}

/// A handle on the journal; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    commands: SyncSender<Command>,
    status: Arc<Status>,
    window: Arc<Window>,
    committed: watch::Receiver<i64>,
    tail: Arc<Tail>,
    file: PathBuf,
    retention: Duration,
}

impl Journal {
    /// Opens or creates the journal and starts its writer.
    pub(crate) async fn open(
        settings: &JournalSettings,
        tasks: &mut Tasks,
    ) -> Result<Self, JournalError> {
        let (file, retention) = (settings.dir.join(FILE), settings.retention);
        let opening = settings.clone();
        let (writer, shared, committed) = blocking(move || Writer::open(&opening, FILE)).await?;
        let (commands, receiver) = sync_channel(QUEUE);
        tasks.spawn_thread(WRITER, move || writer.run(&receiver)).map_err(JournalError::Thread)?;
        let Shared { status, window, tail } = shared;
        Ok(Self { commands, status, window, committed, tail, file, retention })
    }

    /// Keeps a delivery. What this returns is done once the delivery is on disk.
    pub(crate) fn append(&self, entry: NewEntry) -> Result<Appending, AppendError> {
        let (reply, kept) = oneshot::channel();
        let append = Command::Append(Box::new(Waiting { entry, reply }));
        match self.commands.try_send(append) {
            Ok(()) => Ok(Appending(kept)),
            Err(TrySendError::Full(_)) => Err(AppendError::Busy),
            Err(TrySendError::Disconnected(_)) => Err(AppendError::Unwritable),
        }
    }

    /// Sets aside an entry that the broker refuses for good. Until this succeeds the entry is
    /// not settled.
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

    /// Writes the low-water mark and clears what is old enough.
    pub(crate) async fn upkeep(&self) -> Result<(), AppendError> {
        let (reply, done) = oneshot::channel();
        self.command(Command::Upkeep { reply }).await?;
        done.await.unwrap_or(Err(AppendError::Unwritable))
    }

    /// Commits what waits, closes the file and frees its directory.
    pub(crate) async fn close(&self) {
        // If the writer is gone there is nothing to close.
        let _ = self.command(Command::Close).await;
    }

    /// The queue may be full, and a command must not be lost.
    async fn command(&self, command: Command) -> Result<(), AppendError> {
        let commands = self.commands.clone();
        let sent = tokio::task::spawn_blocking(move || commands.send(command).is_ok()).await;
        if sent.unwrap_or(false) { Ok(()) } else { Err(AppendError::Unwritable) }
    }

    /// Sequence of the last committed entry; wakes its reader at each commit.
    pub(crate) fn committed(&self) -> watch::Receiver<i64> {
        self.committed.clone()
    }

    pub(crate) fn status(&self) -> &Arc<Status> {
        &self.status
    }

    pub(crate) fn window(&self) -> &Arc<Window> {
        &self.window
    }

    /// A reader of its own, which does not hold up the writer.
    pub(crate) async fn reader(&self) -> Result<JournalReader, JournalError> {
        let (file, tail, retention) = (self.file.clone(), Arc::clone(&self.tail), self.retention);
        blocking(move || JournalReader::open(&file, tail, retention)).await
    }
}

/// Does work that blocks on a thread that may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, JournalError> + Send + 'static,
) -> Result<T, JournalError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| Err(JournalError::Thread(std::io::Error::other(panic))))
}

#[cfg(test)]
mod tests;
