//! The journal: every verified delivery, durable before it is answered.
//!
//! SQLite in WAL mode with `synchronous=FULL`, so a commit is an fsync. One
//! thread writes, and commits all that waits in one transaction (group
//! commit). Published entries stay for a while, since the relay offers them
//! again after a reconnect.

mod id_filter;
mod known_ids;
mod reader;
mod schema;
mod tail;
mod upkeep;
mod writer;

use std::{
    cell::RefCell,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use lz4_flex::block::{
    CompressError, CompressTable, compress_into, compress_into_with_table, get_maximum_output_size,
};
use shared::{event::IssueEvent, timestamp::Timestamp, trace::Traceparent};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tracing::error;
use uuid::Uuid;

use crate::buffer::{self, SMALL_BYTES};

pub(crate) use reader::{Content, Entry, JournalReader};
use tail::Tail;
use writer::{Command, Told, Waiting, Writer};

/// File of the journal within its directory.
const FILE: &str = "journal.db";
/// Deliveries that may wait for the writer; their bodies are bounded by `MAX_IN_FLIGHT_BYTES`.
const QUEUE: usize = 16 * 1024;

/// Where deliveries are kept, and how many.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// Directory; created if it is not there.
    pub dir: PathBuf,
    /// Size at which nothing more is taken.
    pub max_bytes: u64,
    /// How long published entries stay.
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
    /// A body.
    #[error("unpack a body")]
    Unpack(#[source] lz4_flex::block::DecompressError),
    /// The writer's thread.
    #[error("start the writer's thread")]
    Thread(#[source] std::io::Error),
}

/// Why a delivery was not kept. The cause has been logged by the writer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum AppendError {
    #[error("the journal has reached its size limit")]
    Full,
    #[error("the journal cannot be written")]
    Unwritable,
    #[error("too many deliveries wait for the journal")]
    Busy,
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
    pub(crate) delivery_id: Uuid,
    /// `X-Gitea-Event-Type`, for whoever looks into the file.
    pub(crate) event_type: Option<String>,
    pub(crate) traceparent: Traceparent,
    pub(crate) body_sha256: [u8; 32],
    /// The signed JSON text, packed.
    pub(crate) packed: Packed,
    /// What it says; the relay publishes it.
    pub(crate) event: Box<IssueEvent>,
    /// The share of memory that it takes, until it is on disk.
    pub(crate) _memory: Option<OwnedSemaphorePermit>,
}

/// A compressed text: a third of the disk's work, for a few microseconds.
#[derive(Debug)]
pub(crate) struct Packed {
    lz4: Bytes,
    text_bytes: usize,
}

thread_local! {
    /// What packing a small text needs beside it, made once.
    static PACKING: RefCell<(CompressTable, Vec<u8>)> = RefCell::default();
}

impl Packed {
    pub(crate) fn new(text: &[u8]) -> Self {
        let packed = if text.len() <= SMALL_BYTES {
            PACKING.with_borrow_mut(|(table, room)| packed_in_room(room, table, text))
        } else {
            packed_in_pages(text)
        };
        let lz4 = packed.unwrap_or_else(|| lz4_flex::compress_prepend_size(text).into());
        Self { lz4, text_bytes: text.len() }
    }
}

/// A small text, packed into no more memory than it then needs.
fn packed_in_room(room: &mut Vec<u8>, table: &mut CompressTable, text: &[u8]) -> Option<Bytes> {
    let most = most_packed(text);
    if room.len() < most {
        room.resize(most, 0);
    }
    let bytes = pack(text, room, |text, block| compress_into_with_table(text, block, table))?;
    Some(Bytes::copy_from_slice(&room[..bytes]))
}

/// A large text: room for the worst case costs only what is written of it.
fn packed_in_pages(text: &[u8]) -> Option<Bytes> {
    let mut pages = buffer::pages(most_packed(text)).ok()?;
    let bytes = pack(text, &mut pages, compress_into)?;
    Some(Bytes::from_owner(pages).slice(..bytes))
}

fn most_packed(text: &[u8]) -> usize {
    size_of::<u32>() + get_maximum_output_size(text.len())
}

/// Writes a text's length and what `compress` makes of it, as `compress_prepend_size` does.
/// Returns how many bytes that are.
fn pack(
    text: &[u8],
    room: &mut [u8],
    compress: impl FnOnce(&[u8], &mut [u8]) -> Result<usize, CompressError>,
) -> Option<usize> {
    let length = u32::try_from(text.len()).ok()?.to_le_bytes();
    let (prefix, block) = room.split_at_mut(length.len());
    prefix.copy_from_slice(&length);
    Some(length.len() + compress(text, block).ok()?)
}

/// How the journal is doing.
#[derive(Debug, Default)]
pub(crate) struct Status {
    writable: AtomicBool,
    last_seq: AtomicI64,
    published_through: AtomicI64,
    oldest_unpublished: AtomicI64,
    used_bytes: AtomicU64,
    set_aside: AtomicU64,
    full: AtomicBool,
}

impl Status {
    /// Whether deliveries can be kept right now.
    pub(crate) fn can_keep(&self) -> bool {
        self.writable.load(Ordering::Relaxed) && !self.full.load(Ordering::Relaxed)
    }

    /// Entries that the broker has not confirmed yet.
    pub(crate) fn depth(&self) -> u64 {
        let last = self.last_seq.load(Ordering::Relaxed);
        u64::try_from(last - self.published_through.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// How long the oldest unpublished entry has waited.
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

    /// Entries that no broker takes, kept for ever.
    pub(crate) fn set_aside(&self) -> u64 {
        self.set_aside.load(Ordering::Relaxed)
    }

    pub(crate) fn published_through(&self) -> i64 {
        self.published_through.load(Ordering::Relaxed)
    }
}

/// A handle on the journal; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    commands: SyncSender<Command>,
    status: Arc<Status>,
    committed: watch::Receiver<i64>,
    tail: Arc<Tail>,
    file: PathBuf,
    writer: Arc<Mutex<Option<thread::JoinHandle<()>>>>,
}

impl Journal {
    /// Opens or creates the journal and starts its writer.
    pub(crate) async fn open(config: &JournalConfig) -> Result<Self, JournalError> {
        let config = config.clone();
        match tokio::task::spawn_blocking(move || Self::open_blocking(&config)).await {
            Ok(opened) => opened,
            Err(panic) => Err(JournalError::Thread(std::io::Error::other(panic))),
        }
    }

    fn open_blocking(config: &JournalConfig) -> Result<Self, JournalError> {
        let (lock, connection) = schema::open(&config.dir, FILE)?;
        let status = Arc::new(Status::default());
        let (committed_sender, committed) = watch::channel(0);
        let (commands, receiver) = sync_channel(QUEUE);
        let tail = Arc::new(Tail::default());
        let told = Told {
            status: Arc::clone(&status),
            committed: committed_sender,
            tail: Arc::clone(&tail),
        };
        let writer = Writer::new(lock, connection, config, told)?;
        let thread = thread::Builder::new()
            .name("journal".into())
            .spawn(move || writer.run(&receiver))
            .map_err(JournalError::Thread)?;
        Ok(Self {
            commands,
            status,
            committed,
            tail,
            file: config.dir.join(FILE),
            writer: Arc::new(Mutex::new(Some(thread))),
        })
    }

    /// Keeps a delivery. Returns once it is on disk.
    pub(crate) async fn append(&self, entry: NewEntry) -> Result<Kept, AppendError> {
        let (reply, kept) = oneshot::channel();
        self.commands.try_send(Command::Append(Box::new(Waiting { entry, reply }))).map_err(
            |error| match error {
                TrySendError::Full(_) => AppendError::Busy,
                TrySendError::Disconnected(_) => AppendError::Unwritable,
            },
        )?;
        kept.await.unwrap_or(Err(AppendError::Unwritable))
    }

    /// Notes that everything up to `seq` is published. Written with one of the next commits.
    pub(crate) fn published_through(&self, seq: i64) {
        self.status.published_through.fetch_max(seq, Ordering::Relaxed);
    }

    /// Keeps an entry that the broker refuses for good out of the relay's way, for ever.
    pub(crate) async fn set_aside(&self, seq: i64, reason: String) {
        let commands = self.commands.clone();
        // The queue may be full, and this must not be lost.
        let sent = tokio::task::spawn_blocking(move || {
            commands.send(Command::SetAside { seq, reason }).is_ok()
        });
        if !sent.await.unwrap_or(false) {
            error!(seq, "cannot set an entry aside: the journal's writer is gone");
        }
    }

    /// Sequence of the last committed entry; wakes its reader at each commit.
    pub(crate) fn committed(&self) -> watch::Receiver<i64> {
        self.committed.clone()
    }

    pub(crate) fn status(&self) -> &Arc<Status> {
        &self.status
    }

    /// A reader of its own, which does not hold up the writer.
    pub(crate) async fn reader(&self) -> Result<JournalReader, JournalError> {
        let (file, tail) = (self.file.clone(), Arc::clone(&self.tail));
        match tokio::task::spawn_blocking(move || JournalReader::open(&file, tail)).await {
            Ok(opened) => opened,
            Err(panic) => Err(JournalError::Thread(std::io::Error::other(panic))),
        }
    }

    /// Commits what waits, closes the file and frees its directory.
    pub(crate) async fn close(&self) {
        let thread = self.writer.lock().ok().and_then(|mut writer| writer.take());
        let commands = self.commands.clone();
        let closed = tokio::task::spawn_blocking(move || {
            let _ = commands.send(Command::Close);
            thread.is_none_or(|thread| thread.join().is_ok())
        });
        if !closed.await.unwrap_or(false) {
            error!("the journal's writer has panicked");
        }
    }
}

#[cfg(test)]
mod tests;
