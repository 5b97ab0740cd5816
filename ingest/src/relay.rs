//! From the journal to the broker: every entry, in order per issue, until the
//! broker has confirmed it.
//!
//! A confirmation (PubAck) is not an fsync on the broker's side, so after
//! every start and reconnect all that the journal still holds is offered
//! again under the same message ids; the stream drops what it has. What is under
//! way then waits for its turn among them: if the stream did lose something,
//! it would overtake what is put back.

mod lanes;
mod publish;

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use shared::{
    broker::{Broker, Session},
    causes::Causes,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use self::{
    lanes::{Lanes, Offer},
    publish::{Published, Publisher},
};
use crate::{
    config::IngestConfig,
    instruments::Instruments,
    journal::{Entry, Journal, JournalError, JournalReader},
};

/// Entries read at once.
const READ_ENTRIES: usize = 256;
/// Bytes of text read at once.
const READ_BYTES: usize = 2 * 1024 * 1024;
/// Entries in memory, waiting or under way: 8 MB of usual deliveries.
const WINDOW_ENTRIES: usize = 1024;
/// Bytes of text in memory above which nothing more is read.
const WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// Wait before a journal that cannot be read is tried again.
const READ_PAUSE: Duration = Duration::from_secs(1);

/// Publishes what the journal holds.
pub(crate) struct Relay {
    journal: Journal,
    broker: Broker,
    publisher: Arc<Publisher>,
}

impl Relay {
    pub(crate) fn new(
        config: &IngestConfig,
        journal: Journal,
        broker: Broker,
        instruments: Arc<Instruments>,
    ) -> Self {
        let publisher = Arc::new(Publisher::new(config, broker.clone(), instruments));
        Self { journal, broker, publisher }
    }

    /// Runs until `stop`, and then on until all is published or its caller loses patience.
    pub(crate) async fn run(self, stop: CancellationToken) {
        while let Err(error) = self.relay(&stop).await {
            error!(error = %Causes(&error), "cannot read the journal, trying on; nothing is published meanwhile");
            tokio::select! {
                () = tokio::time::sleep(READ_PAUSE) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn relay(&self, stop: &CancellationToken) -> Result<(), JournalError> {
        let mut reader = self.journal.reader().await?;
        let mut lanes = Lanes::new(self.journal.status().published_through());
        loop {
            let session = tokio::select! {
                biased;
                session = self.broker.connected() => session,
                () = stop.cancelled() => return Ok(()),
            };
            if session.number() > 1 {
                info!("connected again: offering again what the journal holds");
            }
            lanes.start_over();
            let ended;
            (reader, ended) = self.offer_all(reader, &mut lanes, &session, stop).await?;
            if ended == Ended::NothingLeft {
                return Ok(());
            }
        }
    }

    /// Offers what the journal holds, from its first entry on, for as long as the session lasts.
    async fn offer_all(
        &self,
        mut reader: JournalReader,
        lanes: &mut Lanes,
        session: &Session,
        stop: &CancellationToken,
    ) -> Result<(JournalReader, Ended), JournalError> {
        let mut committed = self.journal.committed();
        let mut under_way = FuturesUnordered::new();
        let mut cursor = 0;
        let mut unread = true;
        loop {
            if unread {
                // Once all that was committed is read, a look at the disk would only hold up
                // what is under way.
                unread = cursor < *committed.borrow_and_update();
            }
            if unread && !session.is_over() && lanes.has_room(WINDOW_ENTRIES, WINDOW_BYTES) {
                let entries;
                (reader, entries) = read(reader, cursor).await?;
                unread = !entries.is_empty();
                cursor = entries.last().map_or(cursor, |entry| entry.seq);
                let offers = entries.into_iter().filter_map(|entry| lanes.offer(entry));
                under_way.extend(offers.map(|offer| self.publish(offer, session)));
            }
            if stop.is_cancelled() && !unread && under_way.is_empty() {
                return Ok((reader, Ended::NothingLeft));
            }
            tokio::select! {
                Some((offer, published)) = under_way.next() => {
                    let next = self.note(lanes, &offer, published).await;
                    under_way.extend(next.map(|next| self.publish(next, session)));
                    self.journal.published_through(lanes.through());
                }
                Ok(()) = committed.changed() => unread = true,
                () = session.ended(), if under_way.is_empty() => {
                    return Ok((reader, Ended::Session));
                }
                () = stop.cancelled(), if !stop.is_cancelled() => {}
            }
        }
    }

    async fn publish(&self, mut offer: Offer, session: &Session) -> (Offer, Published) {
        let published = self.publisher.publish(&mut offer, session).await;
        (offer, published)
    }

    /// Notes what became of an entry. Returns what its lane goes on with.
    async fn note(&self, lanes: &mut Lanes, offer: &Offer, published: Published) -> Option<Offer> {
        match published {
            Published::Interrupted => return None,
            Published::Refused(reason) => {
                let entry = &offer.entry;
                let (id, trace_id) = (entry.delivery_id, entry.trace_id());
                error!(gitea.delivery.id = %id, %trace_id, seq = entry.seq, reason, "set aside");
                self.journal.set_aside(entry.seq, reason).await;
            }
            Published::Confirmed => {}
        }
        lanes.done(offer)
    }
}

/// Why offering came to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The session is over.
    Session,
    /// It was told to stop, and all is published.
    NothingLeft,
}

/// The next entries; those that are not in memory are read on a thread that may block.
async fn read(
    reader: JournalReader,
    after: i64,
) -> Result<(JournalReader, Vec<Entry>), JournalError> {
    if let Some(entries) = reader.after_in_memory(after, READ_ENTRIES) {
        return Ok((reader, entries));
    }
    let read = tokio::task::spawn_blocking(move || {
        let entries = reader.after(after, READ_ENTRIES, READ_BYTES)?;
        Ok((reader, entries))
    });
    read.await.unwrap_or_else(|panic| Err(JournalError::Thread(std::io::Error::other(panic))))
}
