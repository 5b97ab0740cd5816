//! Relay: publishes every journal entry to the broker, in order per issue, until the broker has
//! confirmed it.
//!
//! A confirmation (PubAck) is not an fsync on the broker. So after every start and reconnect, the
//! relay offers all entries of the journal again under the same message ids, and the stream drops
//! duplicates. Entries that were under way wait for their turn in this order. Otherwise, if the
//! stream did lose entries, a later entry would be stored before an earlier one.

mod lanes;
mod publish;

use std::{sync::Arc, time::Duration};

use contract::traceparent::trace_id_text;
use futures::{StreamExt, stream::FuturesUnordered};
use service::{
    backoff::Backoff,
    broker::{Broker, findings::Findings},
    causes::Causes,
    log_limit::LogLimit,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

pub(crate) use self::publish::{NO_CONNECTION, Publisher, event};
use self::{
    lanes::{Lanes, Offer},
    publish::{Offering, Published},
};
use crate::{
    instruments::Instruments,
    journal::{Entry, Journal, JournalError, JournalReader, blocking},
    settings::IngestSettings,
};

/// Entries read at once.
const READ_ENTRIES: usize = 256;
/// Bytes of text read at once.
const READ_BYTES: usize = 2 * 1024 * 1024;
/// Entries in memory, waiting or under way: 8 MB of typical deliveries.
const WINDOW_ENTRIES: usize = 1024;
/// Bytes of text in memory above which no more entries are read.
const WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// How long a stop waits for a broker that is not reached yet.
const AT_STOP: Duration = Duration::from_secs(1);
/// Pauses before a failed read or write of the journal is retried.
const JOURNAL_PAUSE: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));

/// Publishes the entries of the journal.
pub(crate) struct Relay {
    journal: Journal,
    broker: Broker,
    publisher: Arc<Publisher>,
    lines: LogLimit,
}

impl Relay {
    pub(crate) fn new(
        settings: &IngestSettings,
        journal: Journal,
        broker: Broker,
        instruments: Arc<Instruments>,
        findings: Arc<Findings>,
    ) -> Self {
        let window = Arc::clone(journal.window());
        let publisher = Publisher::new(settings, broker.clone(), window, instruments, findings);
        Self { journal, broker, publisher: Arc::new(publisher), lines: LogLimit::new() }
    }

    /// What publishes the entries.
    pub(crate) fn publisher(&self) -> Arc<Publisher> {
        Arc::clone(&self.publisher)
    }

    /// Runs until `stop`, and then until all entries are published or the caller gives up.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut pause = JOURNAL_PAUSE;
        while let Err(error) = self.relay(&stop).await {
            let error = Causes(&error).to_string();
            if let Some(line) = self.lines.line(&error) {
                let left_out = line.left_out;
                error!(
                    error,
                    left_out, "cannot read the journal, trying on; nothing is published meanwhile"
                );
            }
            tokio::select! {
                () = pause.wait() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn relay(&self, stop: &CancellationToken) -> Result<(), JournalError> {
        let mut reader = self.journal.reader().await?;
        let mut last_session = 0;
        loop {
            let session = tokio::select! {
                biased;
                session = self.broker.connected() => session,
                () = stopped(stop) => return Ok(()),
            };
            if session.number() == last_session {
                info!("the stream of events is another one: offering again what the journal holds");
            } else if session.number() > 1 {
                info!("connected again: offering again what the journal holds");
            }
            last_session = session.number();
            let offering = tokio::select! {
                offering = self.publisher.prepare(&session) => offering,
                () = session.ended() => continue,
                () = stopped(stop) => return Ok(()),
            };
            let ended;
            (reader, ended) = self.offer_all(reader, &offering, stop).await?;
            if ended == Ended::NothingLeft {
                return Ok(());
            }
        }
    }

    /// Offers the entries of the journal for as long as session and stream last. It skips entries whose
    /// message ids the broker may have forgotten.
    async fn offer_all(
        &self,
        reader: JournalReader,
        offering: &Offering,
        stop: &CancellationToken,
    ) -> Result<(JournalReader, Ended), JournalError> {
        let dedup_window = offering.dedup_window;
        let (mut reader, (age, mut cursor)) = blocking(move || {
            let expired = reader.expired(dedup_window)?;
            Ok((reader, expired))
        })
        .await?;
        let mut lanes = Lanes::default();
        let mut committed = self.journal.committed();
        let mut under_way = FuturesUnordered::new();
        let (mut unread, mut last) = (true, 0);
        loop {
            if unread {
                // Once all committed entries are read, another read from disk would only delay the
                // entries under way.
                last = *committed.borrow_and_update();
                unread = cursor < last;
            }
            if unread && !offering.is_over() && lanes.has_room(WINDOW_ENTRIES, WINDOW_BYTES) {
                let entries;
                (reader, entries) = read(reader, cursor).await?;
                let window = self.journal.window();
                if entries.is_empty() {
                    window.read_through(last);
                }
                cursor = entries.last().map_or(last, |entry| entry.seq);
                let offers = entries.into_iter().filter_map(|entry| {
                    let first = window.offer(entry.seq);
                    let stored_at = window.stored_at(entry.seq).or(entry.stored_at);
                    lanes.offer(Offer { entry, first, stored_at, age })
                });
                under_way.extend(offers.map(|offer| self.publish(offer, offering)));
            }
            let nothing_left = !unread && under_way.is_empty() && !offering.is_of_another_stream();
            if stop.is_cancelled() && nothing_left {
                return Ok((reader, Ended::NothingLeft));
            }
            tokio::select! {
                Some((offer, settled)) = under_way.next() => {
                    let next = if settled { lanes.done(&offer) } else { None };
                    under_way.extend(next.map(|next| self.publish(next, offering)));
                }
                Ok(()) = committed.changed() => unread = true,
                () = offering.ended(), if under_way.is_empty() => {
                    return Ok((reader, Ended::Offering));
                }
                () = stop.cancelled(), if !stop.is_cancelled() => {}
            }
        }
    }

    /// Settles an entry. Returns false if the offering ended first. The entry is then offered again.
    async fn publish(&self, mut offer: Offer, offering: &Offering) -> (Offer, bool) {
        let settled = match self.publisher.publish(&mut offer, offering).await {
            Published::Confirmed | Published::Expired => true,
            Published::Interrupted => false,
            Published::Refused(reason) => tokio::select! {
                () = self.set_aside(&offer.entry, reason) => true,
                () = offering.ended() => false,
            },
        };
        (offer, settled)
    }

    /// Sets aside an entry that the broker refuses permanently. The entry counts as unsettled until
    /// the journal has recorded this.
    async fn set_aside(&self, entry: &Entry, reason: String) {
        let (id, seq, mut pause) = (entry.delivery.id, entry.seq, JOURNAL_PAUSE);
        let trace_id = trace_id_text(id);
        while let Err(error) = self.journal.set_aside(seq, id, reason.clone()).await {
            if let Some(line) = self.lines.line(error.into()) {
                let left_out = line.left_out;
                error!(gitea.delivery.id = %id, trace_id, seq, %error, left_out, "cannot set an entry aside, trying on");
            }
            pause.wait().await;
        }
    }
}

/// Why offering ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// All entries have to be offered again, and none is under way.
    Offering,
    /// `stop` is cancelled, and all entries are published.
    NothingLeft,
}

/// Waits for `stop`, and a moment longer: a stop soon after the start finds the broker not reached yet.
async fn stopped(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(AT_STOP).await;
}

/// The next entries. Entries that are not in memory are read on a thread that may block.
async fn read(
    reader: JournalReader,
    after: i64,
) -> Result<(JournalReader, Vec<Entry>), JournalError> {
    if let Some(entries) = reader.after_in_memory(after, READ_ENTRIES) {
        return Ok((reader, entries));
    }
    blocking(move || {
        let entries = reader.after(after, READ_ENTRIES, READ_BYTES)?;
        Ok((reader, entries))
    })
    .await
}
