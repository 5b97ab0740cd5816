//! The time from a delivery's request to the change that it leads to.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_nats::jetstream;
use futures::StreamExt;
use tests::{
    bus,
    nats::Nats,
    services::{ingest, worker},
    wait,
};
use uuid::Uuid;

use crate::load::{self, Request};

/// Sends requests at `rate` a second, each of which leads to one change. Returns the times, sorted.
pub async fn latencies(
    exe: &Path,
    requests: Vec<Request>,
    connections: usize,
    rate: f64,
) -> Vec<Duration> {
    let expected = requests.len();
    let nats = Nats::start().await;
    let data = tests::temp_dir();
    let ingest = ingest(exe, &nats, data.path());
    let address = ingest.address_in("ingest listens").await;
    let _worker = worker(exe, &nats);
    let client = nats.client().await;
    let js = jetstream::new(client.clone());
    wait::until("the worker's consumers", || bus::lag(&js)).await;
    // A plain subscriber receives a change when the stream does.
    let mut changes = client.subscribe("gitea.changes.>").await.expect("subscribe");
    client.flush().await.expect("flush");
    let told: Arc<Mutex<HashMap<Uuid, Instant>>> = Arc::default();
    let seen = Arc::clone(&told);
    tokio::spawn(async move {
        while let Some(message) = changes.next().await {
            let now = Instant::now();
            let id = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id"));
            if let Some(id) = id.and_then(|id| id.as_str()[..36].parse().ok()) {
                seen.lock().expect("no panic").entry(id).or_insert(now);
            }
        }
    });
    let sent: Arc<Mutex<Vec<(Uuid, Instant)>>> = Arc::default();
    let note = Arc::clone(&sent);
    load::open_loop(address, requests, connections, rate, move |id, due| {
        note.lock().expect("no panic").push((id, due));
    })
    .await;
    wait::until("all changes", || async {
        (told.lock().expect("no panic").len() >= expected).then_some(())
    })
    .await;
    let told = told.lock().expect("no panic");
    let mut latencies: Vec<Duration> =
        sent.lock().expect("no panic").iter().map(|(id, due)| told[id] - *due).collect();
    latencies.sort_unstable();
    latencies
}
