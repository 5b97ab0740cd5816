//! The drain of a backlog, timed by the changes and states that result.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_nats::jetstream;
use contract::names;
use futures::StreamExt;
use tests::nats::Nats;
use tokio::task::JoinHandle;

use crate::backlog;

/// A drain whose workers are about to start.
pub struct Drain {
    js: jetstream::Context,
    started: SystemTime,
    first_change: JoinHandle<SystemTime>,
    reads: Arc<AtomicU64>,
}

/// Result of a drain.
pub struct Drained {
    pub start_to_first_change: Duration,
    /// Events a second, from the first change to the last state that was written.
    pub rate: f64,
    /// Entries of the bucket of issue states that were read.
    pub reads: u64,
}

impl Drain {
    pub async fn start(nats: &Nats) -> Self {
        let client = nats.client().await;
        let mut changes = client.subscribe("gitea.changes.>").await.expect("subscribe");
        // Only the first change: more messages would cost the server.
        changes.unsubscribe_after(1).await.expect("unsubscribe");
        client.flush().await.expect("flush");
        let first_change = tokio::spawn(async move {
            changes.next().await.expect("a change");
            SystemTime::now()
        });
        let reads = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&reads);
        let subject = format!("$JS.API.STREAM.MSG.GET.KV_{}", names::ISSUE_STATE);
        let mut requests = client.subscribe(subject).await.expect("subscribe");
        tokio::spawn(async move {
            while requests.next().await.is_some() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        client.flush().await.expect("flush");
        Self { js: jetstream::new(client), started: SystemTime::now(), first_change, reads }
    }

    /// Waits until none of `events` events is left.
    pub async fn finish(self, events: u64) -> Drained {
        backlog::drained(&self.js).await;
        let first_change = self.first_change.await.expect("no panic");
        let bucket = format!("KV_{}", names::ISSUE_STATE);
        let bucket = self.js.get_stream(bucket).await.expect("the bucket");
        let last_state = bucket.cached_info().state.last_timestamp.unix_timestamp_nanos();
        let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).expect("after 1970");
        let took = last_state as f64 / 1e9 - since(first_change).as_secs_f64();
        Drained {
            start_to_first_change: first_change.duration_since(self.started).unwrap_or_default(),
            rate: events as f64 / took.max(1e-3),
            reads: self.reads.load(Ordering::Relaxed),
        }
    }
}
