//! The one thread that writes: takes all that waits, commits it at once, and answers.

use std::{
    fs::File,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, MAIN_DB, Transaction, TransactionBehavior, blob::ZeroBlob};
use shared::{causes::Causes, timestamp::Timestamp};
use tokio::sync::{oneshot, watch};
use tracing::{error, info, warn};
use uuid::Uuid;

use super::{
    AppendError, Content, Entry, JournalConfig, JournalError, Kept, NewEntry, Status,
    known_ids::KnownIds,
    tail::Tail,
    upkeep::{Measured, measure, prune},
};

/// Most entries of one commit.
const BATCH_ENTRIES: usize = 512;
/// Bytes on disk at which a batch is closed.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// How long a batch waits for more, once, when there is a rush. Processors are what limits a busy
/// ingest, and a commit costs them as much as some deliveries do.
const GATHER: Duration = Duration::from_millis(1);
/// There is a rush when so many are committed at once. Without one nobody waits for others.
const RUSH_ENTRIES: usize = 4;
/// Least number of entries that one transaction clears away. Twice what the
/// batch adds where that is more, so that it catches up without holding up the batch for long.
const PRUNE_ENTRIES: usize = 128;
/// Above this size a body is written page by page: bound as a whole, SQLite would copy it twice.
const LARGE_BYTES: usize = 1024 * 1024;
/// How often progress is written and old entries are looked for.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) enum Command {
    /// Apart, since the queue has its places for all of them from the start.
    Append(Box<Waiting>),
    SetAside {
        seq: i64,
        reason: String,
    },
    Close,
}

/// A delivery that waits to be kept.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) entry: NewEntry,
    pub(super) reply: oneshot::Sender<Result<Kept, AppendError>>,
}

/// What others see of the writer's work.
pub(super) struct Told {
    pub(super) status: Arc<Status>,
    pub(super) committed: watch::Sender<i64>,
    pub(super) tail: Arc<Tail>,
}

pub(super) struct Writer {
    connection: Connection,
    config: JournalConfig,
    told: Told,
    known: KnownIds,
    next_seq: i64,
    written_through: i64,
    last_upkeep: Instant,
    /// Entries of the last batch.
    last_batch: usize,
    /// The last upkeep left something to clear away.
    behind: bool,
    /// Held for as long as the journal is open.
    _lock: File,
}

/// What a transaction has done, once it is committed.
#[derive(Default)]
struct Done {
    outcomes: Vec<Result<Kept, AppendError>>,
    /// Ids and digests of what was inserted.
    added: Vec<(Uuid, [u8; 32])>,
    /// Sequences and ids of what was cleared away.
    removed: Vec<(i64, Uuid)>,
    /// Last sequences of the filters of ids that went with it.
    cleared_filters: Vec<i64>,
    /// Up to where filters of ids were written.
    filters_through: Option<i64>,
    through: Option<i64>,
    behind: bool,
    measured: Measured,
}

impl Writer {
    pub(super) fn new(
        lock: File,
        connection: Connection,
        config: &JournalConfig,
        told: Told,
    ) -> Result<Self, JournalError> {
        let start = |e| JournalError::Sqlite("read where the journal ends", e);
        let number = |sql| connection.query_row(sql, (), |row| row.get::<_, i64>(0)).map_err(start);
        let through = number("SELECT coalesce(max(through_seq), 0) FROM published")?;
        // Everything may have been cleared away, and a sequence must never come twice.
        let last = number("SELECT coalesce(max(seq), 0) FROM deliveries")?.max(through);
        let set_aside = number("SELECT count(*) FROM set_aside")?;
        let known = KnownIds::read(&connection).map_err(start)?;
        let status = &told.status;
        status.last_seq.store(last, Ordering::Relaxed);
        status.published_through.store(through, Ordering::Relaxed);
        status.set_aside.store(set_aside.unsigned_abs(), Ordering::Relaxed);
        measure(&connection, status).map_err(start)?.tell(config, status);
        status.writable.store(true, Ordering::Relaxed);
        told.committed.send_replace(last);
        Ok(Self {
            connection,
            config: config.clone(),
            told,
            known,
            next_seq: last + 1,
            written_through: through,
            last_upkeep: Instant::now(),
            last_batch: 0,
            behind: false,
            _lock: lock,
        })
    }

    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        let mut open = true;
        while open {
            match commands.recv_timeout(UPKEEP_INTERVAL) {
                Ok(first) => open = self.take(first, commands),
                Err(RecvTimeoutError::Timeout) => self.commit(Vec::new()),
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
        }
        self.commit(Vec::new());
        let fold = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()));
        if let Err(error) = fold {
            warn!(error = %Causes(&error), "cannot fold the journal's WAL; the next start does it");
        }
    }

    /// Commits `first` and all that waits behind it. False when asked to close.
    fn take(&mut self, first: Command, commands: &Receiver<Command>) -> bool {
        let mut batch = Vec::with_capacity(BATCH_ENTRIES / 8);
        let mut bytes = 0;
        let mut next = Some(first);
        let mut may_wait = true;
        while let Some(command) = next {
            match command {
                Command::Append(waiting) => {
                    bytes += waiting.entry.packed.lz4.len();
                    batch.push(*waiting);
                }
                Command::SetAside { seq, reason } => self.set_aside(seq, &reason),
                Command::Close => {
                    self.commit(batch);
                    return false;
                }
            }
            if batch.len() >= BATCH_ENTRIES || bytes >= BATCH_BYTES {
                break;
            }
            next = commands.try_recv().ok();
            let rush = batch.len().max(self.last_batch) >= RUSH_ENTRIES;
            if next.is_none() && may_wait && rush {
                may_wait = false;
                wait_for_more();
                next = commands.try_recv().ok();
            }
        }
        self.last_batch = batch.len();
        self.commit(batch);
        true
    }

    /// One transaction: the batch, and upkeep when it is due.
    fn commit(&mut self, mut batch: Vec<Waiting>) {
        let full = self.told.status.full.load(Ordering::Relaxed);
        if full {
            for waiting in batch.drain(..) {
                let _ = waiting.reply.send(Err(AppendError::Full));
            }
        }
        let due = batch.is_empty() || self.last_upkeep.elapsed() >= UPKEEP_INTERVAL;
        let upkeep = due || full || self.behind;
        match self.transact(&batch, upkeep) {
            Ok(done) => self.committed(batch, done),
            Err(error) => {
                self.told.status.writable.store(false, Ordering::Relaxed);
                error!(error = %Causes(&error), refused = batch.len(), "the journal cannot be written");
                for waiting in batch {
                    let _ = waiting.reply.send(Err(AppendError::Unwritable));
                }
            }
        }
        if upkeep {
            self.last_upkeep = Instant::now();
        }
    }

    fn transact(&mut self, batch: &[Waiting], upkeep: bool) -> rusqlite::Result<Done> {
        let mut done = Done {
            outcomes: Vec::with_capacity(batch.len()),
            added: Vec::with_capacity(batch.len()),
            ..Done::default()
        };
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for Waiting { entry, .. } in batch {
            let seq = self.next_seq + done.added.len() as i64;
            let kept = match done.added.iter().find(|(id, _)| *id == entry.delivery_id) {
                Some((_, digest)) => Some(*digest),
                None => self.known.kept(&transaction, entry.delivery_id)?,
            };
            done.outcomes.push(match kept {
                None => {
                    insert(&transaction, seq, entry)?;
                    done.added.push((entry.delivery_id, entry.body_sha256));
                    Ok(Kept::New)
                }
                Some(digest) if digest == entry.body_sha256 => Ok(Kept::Before),
                // Under one id only one body can be kept, and a 200 means kept.
                Some(_) => Err(AppendError::IdReused),
            });
        }
        if upkeep {
            let status = &self.told.status;
            let through = status.published_through();
            // After a failure this write is also what finds out whether the disk is back.
            if through > self.written_through || !status.writable.load(Ordering::Relaxed) {
                let now = Timestamp::now().unix_micros();
                transaction
                    .prepare_cached("INSERT OR REPLACE INTO published VALUES (?1, ?2)")?
                    .execute((through, now))?;
                done.through = Some(through);
            }
            let limit = PRUNE_ENTRIES.max(2 * batch.len());
            done.removed = prune(&transaction, &self.config, status, limit)?;
            done.behind = done.removed.len() == limit;
            done.filters_through = Some(self.known.save(&transaction)?);
            if let Some((last, _)) = done.removed.last() {
                done.cleared_filters = self.known.clear(&transaction, *last)?;
            }
        }
        done.measured = measure(&transaction, &self.told.status)?;
        transaction.commit()?;
        Ok(done)
    }

    /// After the fsync: memory follows the disk, then whoever waits is told.
    fn committed(&mut self, batch: Vec<Waiting>, done: Done) {
        let status = &self.told.status;
        if !status.writable.swap(true, Ordering::Relaxed) {
            info!("the journal can be written again");
        }
        done.measured.tell(&self.config, status);
        self.behind = done.behind;
        self.written_through = done.through.unwrap_or(self.written_through);
        if let Some(through) = done.filters_through {
            self.known.saved(through);
        }
        self.known.forget(&done.removed, &done.cleared_filters);
        let mut committed = Vec::with_capacity(done.added.len());
        let mut replies = Vec::with_capacity(batch.len());
        for (Waiting { entry, reply }, outcome) in batch.into_iter().zip(done.outcomes) {
            if outcome == Ok(Kept::New) {
                self.known.insert(entry.delivery_id, self.next_seq);
                committed.push(entry.committed_as(self.next_seq));
                self.next_seq += 1;
            }
            replies.push((reply, outcome));
        }
        status.last_seq.store(self.next_seq - 1, Ordering::Relaxed);
        if !committed.is_empty() {
            self.told.tail.push(committed);
            self.told.committed.send_replace(self.next_seq - 1);
        }
        for (reply, outcome) in replies {
            // Whoever asked may have hung up; the entry is kept all the same.
            let _ = reply.send(outcome);
        }
    }

    fn set_aside(&mut self, seq: i64, reason: &str) {
        let now = Timestamp::now().unix_micros();
        let sql = "INSERT OR REPLACE INTO set_aside VALUES (?1, ?2, ?3)";
        match self.connection.execute(sql, (seq, reason, now)) {
            Ok(_) => {
                self.told.status.set_aside.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => error!(error = %Causes(&error), seq, "cannot set an entry aside"),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "with a condition to wait on, each sender would wake this thread, which is what it spares"
)]
fn wait_for_more() {
    thread::sleep(GATHER);
}

fn insert(transaction: &Transaction<'_>, seq: i64, entry: &NewEntry) -> rusqlite::Result<()> {
    let event = &entry.event;
    transaction
        .prepare_cached("INSERT INTO deliveries VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?
        .execute((
            seq,
            entry.delivery_id.as_bytes().as_slice(),
            event.delivery.received_at.unix_micros(),
            &entry.event_type,
            &event.delivery.hook,
            entry.traceparent.to_string(),
            event.repository.id,
            event.issue.number as i64,
            entry.body_sha256.as_slice(),
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
        Entry {
            seq,
            delivery_id: self.delivery_id,
            received_at: self.event.delivery.received_at,
            hook: self.event.delivery.hook.clone(),
            traceparent: Some(self.traceparent),
            repository_id: self.event.repository.id,
            issue_number: self.event.issue.number as i64,
            body_sha256: self.body_sha256,
            text_bytes: self.packed.text_bytes,
            content: Content::Event(self.event),
        }
    }
}
