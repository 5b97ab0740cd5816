//! Reads the broker from outside: changes as they come, and everything at the end.

use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_nats::jetstream::{
    self, Message,
    consumer::{AckPolicy, DeliverPolicy, pull},
};
use futures::StreamExt;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::{
    clock,
    records::{Change, Event, Lines, Seen, Snapshot, State},
    servers::{CHANGES, EVENTS, STATES},
};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The stream of dead letters.
const DEAD: &str = "GITEA_ISSUES_DEAD";
/// How long the next message of a dump may take.
const SILENCE: Duration = Duration::from_secs(10);

/// A subscriber of changes, like an agent, that records what it receives.
pub struct Subscriber {
    log: Arc<Mutex<(Lines, HashSet<String>)>>,
    task: JoinHandle<()>,
}

impl Subscriber {
    /// Starts the subscriber, which writes `seen.jsonl` into `dir`. Its consumer exists on return.
    pub async fn start(js: jetstream::Context, dir: &Path) -> Self {
        let lines = Lines::create(&dir.join("seen.jsonl")).expect("create seen.jsonl");
        let log = Arc::new(Mutex::new((lines, HashSet::new())));
        while consumer(&js).await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let its_log = Arc::clone(&log);
        let task = tokio::spawn(async move {
            loop {
                // Every error is followed by a new start: the durable consumer keeps its position.
                let _ = subscribe(&js, &its_log).await;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        Self { log, task }
    }

    /// Message ids of all changes received so far.
    pub fn seen(&self) -> HashSet<String> {
        self.log.lock().expect("no panic").1.clone()
    }

    /// Ends the subscriber, and hands its log to the system.
    pub fn stop(self) {
        self.task.abort();
        self.log.lock().expect("no panic").0.flush().expect("write seen.jsonl");
    }
}

async fn consumer(
    js: &jetstream::Context,
) -> Result<jetstream::consumer::Consumer<pull::Config>, Error> {
    let config = pull::Config {
        durable_name: Some("faults-subscriber".into()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_secs(3),
        // One message in flight, so that the order is the stream's.
        max_ack_pending: 1,
        ..pull::Config::default()
    };
    Ok(js.get_stream(CHANGES).await?.get_or_create_consumer("faults-subscriber", config).await?)
}

async fn subscribe(
    js: &jetstream::Context,
    log: &Mutex<(Lines, HashSet<String>)>,
) -> Result<(), Error> {
    let consumer = consumer(js).await?;
    let mut messages = consumer
        .stream()
        .expires(Duration::from_secs(3))
        .heartbeat(Duration::from_secs(1))
        .messages()
        .await?;
    while let Some(message) = messages.next().await {
        let message = message?;
        let (seq, message_id) = (message.info()?.stream_sequence, message_id(&message));
        {
            let mut log = log.lock().expect("no panic");
            log.0.add(&Seen { at: clock::now(), seq, message_id: message_id.clone() })?;
            log.1.insert(message_id);
        }
        message.ack().await?;
    }
    Ok(())
}

fn message_id(message: &Message) -> String {
    let id = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id"));
    id.map_or_else(String::new, |id| id.as_str().to_owned())
}

/// Hands every message of a stream to `take`, oldest first.
async fn dump(
    js: &jetstream::Context,
    stream: &str,
    mut take: impl FnMut(&Message) -> Result<(), Error>,
) -> Result<(), Error> {
    let stream = js.get_stream(stream).await?;
    let mut left = stream.cached_info().state.messages;
    let consumer = stream
        .create_consumer(pull::OrderedConfig {
            deliver_policy: DeliverPolicy::All,
            ..pull::OrderedConfig::default()
        })
        .await?;
    let mut messages = consumer.messages().await?;
    while left > 0 {
        let message = tokio::time::timeout(SILENCE, messages.next()).await?;
        take(&message.ok_or("the stream has ended")??)?;
        left -= 1;
    }
    Ok(())
}

/// Delivery ids of all events.
pub async fn event_ids(js: &jetstream::Context) -> Result<HashSet<String>, Error> {
    let mut ids = HashSet::new();
    dump(js, EVENTS, |message| {
        ids.insert(message_id(message));
        Ok(())
    })
    .await?;
    Ok(ids)
}

/// Writes events, changes, states and dead letters into `dir`. Returns the
/// message ids of the changes, and how many events there are.
pub async fn write_all(
    js: &jetstream::Context,
    dir: &Path,
) -> Result<(HashSet<String>, usize), Error> {
    let (mut changes, mut count) = (HashSet::new(), 0);
    let mut lines = Lines::create(&dir.join("events.jsonl"))?;
    dump(js, EVENTS, |message| {
        count += 1;
        Ok(lines.add(&event(message)?)?)
    })
    .await?;
    lines.flush()?;
    let mut lines = Lines::create(&dir.join("changes.jsonl"))?;
    dump(js, CHANGES, |message| {
        changes.insert(message_id(message));
        Ok(lines.add(&change(message)?)?)
    })
    .await?;
    lines.flush()?;
    let mut lines = Lines::create(&dir.join("states.jsonl"))?;
    dump(js, STATES, |message| match state(message)? {
        Some(state) => Ok(lines.add(&state)?),
        None => Ok(()),
    })
    .await?;
    lines.flush()?;
    let mut lines = Lines::create(&dir.join("dead.jsonl"))?;
    dump(js, DEAD, |message| {
        let id = message.headers.as_ref().and_then(|headers| headers.get("ce-id"));
        Ok(lines.add(&id.map_or("unknown", |id| id.as_str()))?)
    })
    .await?;
    lines.flush()?;
    Ok((changes, count))
}

fn event(message: &Message) -> Result<Event, Error> {
    let payload: Value = serde_json::from_slice(&message.payload)?;
    let (delivery, issue) = (&payload["delivery"], &payload["issue"]);
    let assignees = issue["assignees"].as_array().ok_or("no assignees")?;
    let info = message.info()?;
    Ok(Event {
        seq: info.stream_sequence,
        stored_at: (info.published.unix_timestamp_nanos() / 1000) as i64,
        subject: message.subject.to_string(),
        message_id: message_id(message),
        delivery: text(&delivery["id"]),
        snapshot: Snapshot {
            repository: payload["repository"]["id"].as_i64().unwrap_or_default(),
            number: issue["number"].as_u64().unwrap_or_default(),
            digest: text(&delivery["body_sha256"]),
            action: text(&payload["action"]),
            assignees: assignees.iter().map(|user| text(&user["login"])).collect(),
            state: text(&issue["state"]),
            updated_at: seconds(&issue["updated_at"])?,
        },
    })
}

fn change(message: &Message) -> Result<Change, Error> {
    let payload: Value = serde_json::from_slice(&message.payload)?;
    Ok(Change {
        seq: message.info()?.stream_sequence,
        message_id: message_id(message),
        delivery: text(&payload["cause"]["delivery_id"]),
        repository: payload["repository"]["id"].as_i64().unwrap_or_default(),
        number: payload["issue"]["number"].as_u64().unwrap_or_default(),
        kind: text(&payload["kind"]),
        added: texts(&payload["added"]),
        removed: texts(&payload["removed"]),
        assignees: texts(&payload["assignees"]),
        in_doubt: payload["in_doubt"] == true,
        first_seen: payload["first_seen"] == true,
    })
}

/// The state of an issue. None for the attempts of a partition, which are in the same bucket.
fn state(message: &Message) -> Result<Option<State>, Error> {
    let payload: Value = serde_json::from_slice(&message.payload)?;
    let key = message.subject.strip_prefix("$KV.GITEA_ISSUE_STATE.").ok_or("no key")?;
    if key.starts_with("attempts.") {
        return Ok(None);
    }
    Ok(Some(State {
        key: key.to_owned(),
        assignees: logins(&payload["assignees"]),
        state: text(&payload["state"]),
        updated_at: seconds(&payload["updated_at"])?,
        in_doubt: payload["in_doubt"] == true,
    }))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn logins(people: &Value) -> Vec<String> {
    people
        .as_array()
        .map_or_else(Vec::new, |all| all.iter().map(|one| text(&one["login"])).collect())
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().map_or_else(Vec::new, |values| values.iter().map(text).collect())
}

/// `2026-11-01T12:34:56Z` as seconds since 1970; the deliveries of a run are all of one month.
fn seconds(value: &Value) -> Result<Option<i64>, Error> {
    let Some(text) = value.as_str() else { return Ok(None) };
    let number = |range: std::ops::Range<usize>| -> Result<i64, Error> {
        Ok(text.get(range).ok_or("a short time")?.parse()?)
    };
    if !text.starts_with("2026-11-") || !text.ends_with('Z') {
        return Err(format!("{text} is not of November 2026").into());
    }
    let (day, hour, minute, second) =
        (number(8..10)?, number(11..13)?, number(14..16)?, number(17..19)?);
    Ok(Some(crate::history::EPOCH + (day - 1) * 86_400 + hour * 3600 + minute * 60 + second))
}
