//! The end of a run: there are no more faults, and everything in flight arrives.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use async_nats::jetstream;
use serde_json::Value;
use tests::bus;

use crate::{
    reader::{self, Subscriber},
    senders::Post,
    servers::EVENTS,
};

/// How long the end may take. A worker waits up to half a minute before it tries again.
const PATIENCE: Duration = Duration::from_secs(240);
/// How long nothing must change before all counts as arrived. The relay offers all
/// entries again after a reconnect, and these offers are not counted anywhere.
const QUIET: Duration = Duration::from_secs(8);

/// What the broker holds at the end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Drained {
    /// Events.
    pub events: usize,
    /// Changes.
    pub changes: usize,
    /// Number of redeliveries of events.
    pub handed_out_again: u64,
}

/// Waits until everything has arrived, and writes what the broker holds into `dir`.
/// Err with what did not arrive. The content of the broker is written then, too.
pub async fn drain(
    js: &jetstream::Context,
    ingests: [SocketAddr; 2],
    post: &Post,
    subscriber: &Subscriber,
    dir: &Path,
) -> Result<Drained, String> {
    let started = Instant::now();
    let mut quiet_since = Instant::now();
    let mut last = None;
    loop {
        let (moves, waits_for) = match state(js, ingests).await {
            Ok(state) => (state != last.clone().unwrap_or_default(), pending(&state)),
            Err(error) => (true, Some(error)),
        };
        last = state(js, ingests).await.ok();
        if moves || waits_for.is_some() {
            quiet_since = Instant::now();
        }
        let mut missing = waits_for;
        if quiet_since.elapsed() >= QUIET {
            missing = arrived(js, post, subscriber, dir).await;
        }
        if missing.is_none() && quiet_since.elapsed() >= QUIET {
            return written(js, dir).await.map_err(|error| error.to_string());
        }
        if started.elapsed() > PATIENCE {
            let _ = reader::write_all(js, dir).await;
            let missing = missing.unwrap_or_else(|| "quiet".into());
            return Err(format!("not all has arrived after {PATIENCE:?}: {missing}"));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Depths of the journals, entries that they set aside, the last event, and the workers' lag.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    depths: [u64; 2],
    set_aside: u64,
    last_event: u64,
    lag: u64,
}

async fn state(js: &jetstream::Context, ingests: [SocketAddr; 2]) -> Result<State, String> {
    let mut state = State::default();
    for (n, address) in ingests.into_iter().enumerate() {
        let answer = reqwest::get(format!("http://{address}/health")).await;
        let health = answer.map_err(|e| e.to_string())?.text().await.map_err(|e| e.to_string())?;
        let health: Value = serde_json::from_str(&health).map_err(|e| e.to_string())?;
        state.depths[n] = health["journal"]["depth"].as_u64().ok_or("no depth")?;
        state.set_aside += health["journal"]["set_aside"].as_u64().ok_or("no set_aside")?;
    }
    let stream = js.get_stream(EVENTS).await.map_err(|e| e.to_string())?;
    state.last_event = stream.cached_info().state.last_sequence;
    state.lag = bus::lag(js).await.ok_or("no lag")?;
    Ok(state)
}

fn pending(state: &State) -> Option<String> {
    let done = state.depths == [0, 0] && state.lag == 0 && state.set_aside == 0;
    (!done).then(|| format!("{state:?}"))
}

/// What has not arrived yet.
async fn arrived(
    js: &jetstream::Context,
    post: &Post,
    subscriber: &Subscriber,
    dir: &Path,
) -> Option<String> {
    let events = match reader::event_ids(js).await {
        Ok(events) => events,
        Err(error) => return Some(error.to_string()),
    };
    for ingest in 0..2 {
        let kept = post.kept(ingest);
        let lost = kept.difference(&events).count();
        if lost > 0 {
            return Some(format!("{lost} deliveries that ingest {ingest} answered 200"));
        }
    }
    let (changes, _) = match reader::write_all(js, dir).await {
        Ok(written) => written,
        Err(error) => return Some(error.to_string()),
    };
    let unseen = changes.difference(&subscriber.seen()).count();
    (unseen > 0).then(|| format!("{unseen} changes have not reached the subscriber"))
}

async fn written(
    js: &jetstream::Context,
    dir: &Path,
) -> Result<Drained, Box<dyn std::error::Error + Send + Sync>> {
    let (changes, events) = reader::write_all(js, dir).await?;
    let stream = js.get_stream(EVENTS).await?;
    let mut handed_out = 0;
    for partition in 0..64 {
        let info = stream.consumer_info(format!("worker-{partition:02}")).await?;
        handed_out += info.delivered.consumer_sequence;
    }
    let handed_out_again = handed_out.saturating_sub(events as u64);
    Ok(Drained { events, changes: changes.len(), handed_out_again })
}
