//! The journal's only writer thread. It commits all waiting commands in one transaction (group
//! commit), and then answers.

use std::{
    fs::File,
    sync::{Arc, mpsc::Receiver},
    thread,
    time::Duration,
};

use contract::{timestamp::Timestamp, traceparent::trace_id_text};
use rusqlite::{Connection, MAIN_DB, Transaction, TransactionBehavior, blob::ZeroBlob};
use service::{causes::Causes, log_limit::LogLimit};
use tokio::sync::{oneshot, watch};
use tracing::{error, warn};
use uuid::Uuid;

use super::{
    AppendError, Content, Entry, Issue, JournalError, JournalSettings, Kept, NewEntry, Status,
    known_ids::KnownIds,
    schema,
    status::{Measured, measure},
    tail::Tail,
    window::{self, Mark, Window},
};

/// Largest number of entries in one commit.
const BATCH_ENTRIES: usize = 512;
/// Compressed bytes at which a batch is closed.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// How long a batch waits, once, for more entries during a rush. The processors limit a busy
/// ingest, and a commit costs as much processor time as several deliveries.
const GATHER: Duration = Duration::from_millis(1);
/// Entries in one commit from which on there is a rush. Without a rush no delivery waits for
/// others.
const RUSH_ENTRIES: usize = 4;
/// Least number of entries that one transaction may clear. If twice the batch's new entries is
/// more, that number applies, so that clearing catches up without delaying the batch for long.
const CLEAR_ENTRIES: usize = 128;
/// Size above which a body is written page by page. SQLite would copy a body twice if it were bound
/// as a whole.
const LARGE_BYTES: usize = 1024 * 1024;

type Reply<T> = oneshot::Sender<Result<T, AppendError>>;

#[derive(Debug)]
pub(super) enum Command {
    /// Boxed, because the queue allocates all its slots at the start.
    Append(Box<Waiting>),
    SetAside(SettingAside),
    Upkeep {
        reply: Reply<()>,
    },
    Close,
}

/// An entry that waits to be set aside.
#[derive(Debug)]
pub(super) struct SettingAside {
    pub(super) seq: i64,
    pub(super) delivery_id: Uuid,
    pub(super) reason: String,
    pub(super) reply: Reply<()>,
}

/// A delivery that waits to be committed.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) entry: NewEntry,
    pub(super) reply: Reply<Kept>,
}

/// State that the writer shares with other tasks.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) status: Arc<Status>,
    pub(super) window: Arc<Window>,
    pub(super) tail: Arc<Tail>,
    pub(super) known: Arc<KnownIds>,
}

pub(super) struct Writer {
    connection: Connection,
    settings: JournalSettings,
    shared: Shared,
    committed: watch::Sender<i64>,
    next_seq: i64,
    /// Number of appends in the last batch.
    last_appends: usize,
    /// Whether the last upkeep left entries to clear.
    behind: bool,
    lines: LogLimit,
    /// Keeps the directory locked while the journal is open.
    _lock: File,
}

/// Commands of one transaction.
#[derive(Default)]
struct Batch {
    appends: Vec<Waiting>,
    set_asides: Vec<SettingAside>,
    upkeep: Vec<Reply<()>>,
}

/// Effects of a transaction. They are applied to memory after the commit.
#[derive(Default)]
struct Done {
    outcomes: Vec<Result<Kept, AppendError>>,
    /// Ids and digests of the inserted entries.
    added: Vec<(Uuid, [u8; 32])>,
    mark: Option<Mark>,
    /// Indexes within the batch of entries that were set aside now, and not before.
    set_aside: Vec<usize>,
    /// Sequences of the cleared entries.
    cleared: Vec<i64>,
    behind: bool,
    measured: Measured,
}

impl Writer {
    pub(super) fn open(
        settings: &JournalSettings,
        file: &str,
    ) -> Result<(Self, Shared, watch::Receiver<i64>), JournalError> {
        let (lock, connection) = schema::open(&settings.dir, file)?;
        let start = |e| JournalError::Sqlite("read where the journal ends", e);
        let window = Arc::new(Window::read(&connection).map_err(start)?);
        let last: i64 = connection
            .query_row("SELECT coalesce(max(seq), 0) FROM deliveries", (), |row| row.get(0))
            .map_err(start)?;
        // All entries may have been cleared, and a sequence must never be used twice.
        let last = last.max(window.low_water_mark());
        let known = Arc::new(KnownIds::read(&connection).map_err(start)?);
        let status = Arc::new(Status::new(Arc::clone(&window), last));
        status.set_measured(measure(&connection, &window).map_err(start)?, settings);
        let shared = Shared { status, window, tail: Arc::default(), known };
        let (committed, receiver) = watch::channel(last);
        let writer = Self {
            connection,
            settings: settings.clone(),
            shared: shared.clone(),
            committed,
            next_seq: last + 1,
            last_appends: 0,
            behind: false,
            lines: LogLimit::new(),
            _lock: lock,
        };
        Ok((writer, shared, receiver))
    }

    /// Runs until `Command::Close`, or until all handles on the journal are dropped.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        while let Ok(first) = commands.recv() {
            let (batch, open) = self.gather(first, commands);
            self.commit(batch);
            if !open {
                break;
            }
        }
        let (reply, _) = oneshot::channel();
        self.commit(Batch { upkeep: vec![reply], ..Batch::default() });
        let fold = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()));
        if let Err(error) = fold {
            warn!(error = %Causes(&error), "cannot fold the journal's WAL; the next start does it");
        }
    }

    /// Collects `first` and all commands that wait behind it. Returns false with the last batch.
    fn gather(&mut self, first: Command, commands: &Receiver<Command>) -> (Batch, bool) {
        let mut batch = Batch::default();
        let (mut bytes, mut may_wait, mut next) = (0, true, Some(first));
        while let Some(command) = next {
            match command {
                Command::Append(waiting) => {
                    bytes += waiting.entry.packed.lz4.len();
                    batch.appends.push(*waiting);
                }
                Command::SetAside(entry) => batch.set_asides.push(entry),
                Command::Upkeep { reply } => batch.upkeep.push(reply),
                Command::Close => return (batch, false),
            }
            if batch.appends.len() >= BATCH_ENTRIES || bytes >= BATCH_BYTES {
                break;
            }
            next = commands.try_recv().ok();
            let rush = batch.appends.len().max(self.last_appends) >= RUSH_ENTRIES;
            if next.is_none() && may_wait && rush && !batch.appends.is_empty() {
                may_wait = false;
                wait_for_more();
                next = commands.try_recv().ok();
            }
        }
        self.last_appends = batch.appends.len();
        (batch, true)
    }

    /// Runs a batch as one transaction and answers.
    fn commit(&mut self, mut batch: Batch) {
        if self.shared.status.is_full() {
            for waiting in batch.appends.drain(..) {
                let _ = waiting.reply.send(Err(AppendError::Full));
            }
        }
        self.shared.status.writing(true);
        let done = self.transact(&batch);
        self.shared.status.writing(false);
        match done {
            Ok(done) => self.committed(batch, done),
            Err(error) => {
                self.shared.status.set_writable(false);
                let refused = batch.appends.len();
                let error = Causes(&error).to_string();
                if let Some(line) = self.lines.line(&error) {
                    let left_out = line.left_out;
                    error!(error, refused, left_out, "the journal cannot be written");
                }
                for waiting in batch.appends {
                    let _ = waiting.reply.send(Err(AppendError::Unwritable));
                }
                let set_asides = batch.set_asides.into_iter().map(|entry| entry.reply);
                for reply in set_asides.chain(batch.upkeep) {
                    let _ = reply.send(Err(AppendError::Unwritable));
                }
            }
        }
    }

    fn transact(&mut self, batch: &Batch) -> rusqlite::Result<Done> {
        let mut done = Done {
            outcomes: Vec::with_capacity(batch.appends.len()),
            added: Vec::with_capacity(batch.appends.len()),
            ..Done::default()
        };
        let now = Timestamp::now();
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for Waiting { entry, .. } in &batch.appends {
            let (id, digest) = (entry.delivery.id, entry.delivery.body_sha256);
            let kept = match done.added.iter().find(|(added, _)| *added == id) {
                Some((_, digest)) => Some(*digest),
                None => self.shared.known.kept(&transaction, id)?,
            };
            done.outcomes.push(match kept {
                None => {
                    insert(&transaction, self.next_seq + done.added.len() as i64, entry)?;
                    done.added.push((id, digest));
                    Ok(Kept::New)
                }
                Some(kept) if kept == digest => Ok(Kept::Before),
                // The journal holds one body per id, and a 200 would claim that this body is
                // durable.
                Some(_) => Err(AppendError::IdReused),
            });
        }
        for (place, entry) in batch.set_asides.iter().enumerate() {
            // The entry may already be settled, by another session or by an earlier command.
            let before = &batch.set_asides[..place];
            if self.shared.window.is_open(entry.seq) && before.iter().all(|e| e.seq != entry.seq) {
                window::set_aside(&transaction, entry.seq, &entry.reason, now)?;
                done.set_aside.push(place);
            }
        }
        if !self.shared.status.is_writable() {
            // Only a write shows whether the disk is writable again.
            transaction.pragma_update(None, "user_version", schema::VERSION)?;
        }
        if !batch.upkeep.is_empty() || self.behind || self.shared.status.is_full() {
            let limit = CLEAR_ENTRIES.max(2 * batch.appends.len());
            upkeep(&transaction, &self.shared, &self.settings, now, limit, &mut done)?;
        }
        done.measured = measure(&transaction, &self.shared.window)?;
        transaction.commit()?;
        Ok(done)
    }

    /// Runs after the fsync. Memory is updated first, then the senders are answered. The relay is
    /// notified last, so that it does not take the processor from the answers.
    fn committed(&mut self, batch: Batch, done: Done) {
        let Shared { status, window, tail, known } = &self.shared;
        status.set_writable(true);
        status.set_measured(done.measured, &self.settings);
        self.behind = done.behind;
        known.forget(&done.cleared);
        let set_aside: Vec<_> =
            done.set_aside.iter().map(|place| &batch.set_asides[*place]).collect();
        for SettingAside { seq, delivery_id, reason, .. } in &set_aside {
            let trace_id = trace_id_text(*delivery_id);
            error!(gitea.delivery.id = %delivery_id, trace_id, seq, reason, "set aside");
        }
        window.committed(done.mark, &set_aside.iter().map(|entry| entry.seq).collect::<Vec<_>>());
        let mut committed = Vec::with_capacity(done.added.len());
        let mut answers = Vec::with_capacity(batch.appends.len());
        for (Waiting { entry, reply }, outcome) in batch.appends.into_iter().zip(done.outcomes) {
            if outcome == Ok(Kept::New) {
                known.insert(entry.delivery.id, self.next_seq);
                committed.push(entry.committed_as(self.next_seq));
                self.next_seq += 1;
            }
            answers.push((reply, outcome));
        }
        status.committed(self.next_seq - 1);
        for (reply, outcome) in answers {
            // The sender may have hung up, but the entry is durable.
            let _ = reply.send(outcome);
        }
        for reply in batch.set_asides.into_iter().map(|entry| entry.reply).chain(batch.upkeep) {
            let _ = reply.send(Ok(()));
        }
        if !committed.is_empty() {
            tail.push(committed);
            self.committed.send_replace(self.next_seq - 1);
        }
    }
}

/// Writes the low-water mark, and clears settled entries that are too old or exceed the size limit.
fn upkeep(
    transaction: &Transaction<'_>,
    shared: &Shared,
    settings: &JournalSettings,
    now: Timestamp,
    limit: usize,
    done: &mut Done,
) -> rusqlite::Result<()> {
    let Shared { status, window, .. } = shared;
    done.mark = window.next_mark(now);
    if let Some(mark) = done.mark {
        window::write_mark(transaction, mark)?;
    }
    let expired = window::expired(transaction, now, settings.retention)?;
    let too_large = status.used_bytes() > settings.retention_bytes;
    let marked = done.mark.map_or(window.marked(), Mark::through);
    let through = if too_large { marked } else { expired };
    done.cleared = window::clear(transaction, through, limit)?;
    done.behind = done.cleared.len() == limit;
    window::forget_marks(transaction, expired)
}

#[expect(
    clippy::disallowed_methods,
    reason = "with a condition to wait on, each sender would wake this thread, which is what it spares"
)]
fn wait_for_more() {
    thread::sleep(GATHER);
}

fn insert(transaction: &Transaction<'_>, seq: i64, entry: &NewEntry) -> rusqlite::Result<()> {
    let NewEntry { delivery, event, .. } = entry;
    transaction
        .prepare_cached(
            "INSERT INTO deliveries (seq, delivery_id, received_at, hook, traceparent,
                                     repository_id, issue_number, body_sha256, family)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute((
            seq,
            delivery.id.as_bytes().as_slice(),
            delivery.received_at.unix_micros(),
            &delivery.hook,
            entry.traceparent.to_string(),
            event.repository.id,
            event.issue.number.cast_signed(),
            delivery.body_sha256.as_slice(),
            <&str>::from(delivery.family),
        ))?;
    let lz4 = &entry.packed.lz4[..];
    let mut bodies = transaction.prepare_cached("INSERT INTO bodies VALUES (?1, ?2)")?;
    if lz4.len() <= LARGE_BYTES {
        bodies.execute((seq, lz4))?;
        return Ok(());
    }
    bodies.execute((seq, ZeroBlob(lz4.len() as u64)))?;
    transaction.blob_open(MAIN_DB, "bodies", "lz4", seq, false)?.write_all_at(lz4, 0)
}

impl NewEntry {
    fn committed_as(self, seq: i64) -> Entry {
        let Self { delivery, traceparent, packed, event, .. } = self;
        let issue = Issue { repository_id: event.repository.id, number: event.issue.number };
        Entry {
            seq,
            delivery,
            traceparent: Some(traceparent),
            issue,
            text_bytes: packed.text_bytes,
            content: Content::Event(event),
            stored_at: None,
        }
    }
}
