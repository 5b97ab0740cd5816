//! A subscriber of changes, like an agent.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, pull},
};
use contract::names;
use futures::StreamExt;
use tests::wait;

/// The subscriber. It acks every message.
pub struct Reader {
    read: Arc<AtomicU64>,
}

impl Reader {
    pub async fn start(js: &jetstream::Context) -> Self {
        let stream = wait::until("the stream of changes", || async {
            js.get_stream(names::CHANGES).await.ok()
        })
        .await;
        let config = pull::Config {
            durable_name: Some("soak".into()),
            ack_policy: AckPolicy::Explicit,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await.expect("a consumer");
        let read = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&read);
        tokio::spawn(async move {
            let mut messages = consumer.messages().await.expect("messages");
            let mut last = 0;
            while let Some(message) = messages.next().await {
                // The next round asks again for a message that an error has cost.
                let Ok(message) = message else { continue };
                let sequence = message.info().expect("a message of a stream").stream_sequence;
                if sequence > last {
                    last = sequence;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                let _ = message.ack().await;
            }
        });
        Self { read }
    }

    /// How many changes the subscriber has received.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}
