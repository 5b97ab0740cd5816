//! What is on the broker, as an outside reader sees it.

use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, PullConsumer},
};
use contract::{change::Change, event::IssueEvent, names, partitions::Partitions};
use futures::StreamExt;

use crate::wait;

/// One stored message.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: async_nats::HeaderMap,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Stored {
    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.as_str())
    }
}

/// All messages of a stream, oldest first. None while the stream is not there.
pub async fn messages(js: &jetstream::Context, stream: &str) -> Option<Vec<Stored>> {
    let mut stream = js.get_stream(stream).await.ok()?;
    let count = stream.info().await.ok()?.state.messages as usize;
    let consumer = stream
        .create_consumer(jetstream::consumer::pull::OrderedConfig {
            deliver_policy: DeliverPolicy::All,
            ..Default::default()
        })
        .await
        .ok()?;
    let mut messages = consumer.messages().await.ok()?;
    let mut stored = Vec::with_capacity(count);
    while stored.len() < count {
        let message = messages.next().await?.ok()?;
        stored.push(Stored {
            sequence: message.info().ok()?.stream_sequence,
            subject: message.subject.to_string(),
            headers: message.headers.clone().unwrap_or_default(),
            payload: message.payload.to_vec(),
        });
    }
    Some(stored)
}

/// Headers as the client takes them.
pub fn header_map(headers: &contract::envelope::Headers) -> async_nats::HeaderMap {
    let mut map = async_nats::HeaderMap::new();
    for (name, value) in &headers.0 {
        map.append(&**name, value.as_str());
    }
    map
}

/// How many messages a stream holds; 0 while it is not there.
pub async fn count(js: &jetstream::Context, stream: &str) -> u64 {
    match js.get_stream(stream).await {
        Ok(mut stream) => stream.info().await.map_or(0, |info| info.state.messages),
        Err(_) => 0,
    }
}

/// All events, oldest first.
pub async fn events(js: &jetstream::Context) -> Vec<IssueEvent> {
    let stored = messages(js, names::EVENTS).await.unwrap_or_default();
    stored.iter().map(|m| serde_json::from_slice(&m.payload).expect("an event")).collect()
}

/// All changes, oldest first.
pub async fn changes(js: &jetstream::Context) -> Vec<Change> {
    let stored = messages(js, names::CHANGES).await.unwrap_or_default();
    stored.iter().map(|m| serde_json::from_slice(&m.payload).expect("a change")).collect()
}

/// Events that no worker has settled yet: pending and in hand, over all partitions.
/// None while the consumers are not there.
pub async fn lag(js: &jetstream::Context) -> Option<u64> {
    let stream = js.get_stream(names::EVENTS).await.ok()?;
    let mut lag = 0;
    for partition in Partitions::DEFAULT.all() {
        let name = names::consumer_name(partition);
        let info = stream.consumer_info(name).await.ok()?;
        lag += info.num_pending + info.num_ack_pending as u64;
    }
    Some(lag)
}

/// The next message of a consumer, as a subscriber gets it.
///
/// # Panics
/// If none comes in time.
pub async fn next(consumer: &PullConsumer) -> jetstream::Message {
    let mut batch = consumer.batch().max_messages(1).expires(wait::DEADLINE);
    // A consumer of a partition serves nobody who names no group.
    if let Some(group) = consumer.cached_info().config.priority_groups.first() {
        batch = batch.group(group);
    }
    let message = batch.messages().await.expect("messages").next().await;
    message.expect("a message").expect("no error")
}
