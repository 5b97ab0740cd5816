//! A backlog of events: published into the stream, and watched while workers drain it.

use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, Instant},
};

use async_nats::jetstream;
use contract::{
    envelope::Envelope, event::IssueEvent, names, partitions::Partitions, timestamp::Timestamp,
    traceparent::Traceparent,
};
use futures::{StreamExt, stream};
use service::broker::{findings::Findings, streams::Streams};
use tests::{bus, nats::Nats, services::ingest, system, wait};
use uuid::Uuid;

use crate::load::{Connection, Template};

/// Events in flight to the broker at once.
const UNDER_WAY: usize = 1024;

/// Which of an issue's events change who is assigned.
#[derive(Clone, Copy)]
pub enum Change {
    Each,
    EveryThird,
}

/// Recorded deliveries as ingest publishes them, as a template for many issues
/// and times. Publishing from here builds a backlog faster than ingest does.
pub struct Events([IssueEvent; 2]);

impl Events {
    pub async fn recorded(exe: &Path) -> Self {
        let nats = Nats::start().await;
        let data = tests::temp_dir();
        let ingest = ingest(exe, &nats, data.path());
        let mut connection = Connection::open(ingest.address_in("ingest listens").await).await;
        let template = Template::recorded();
        for step in [0, 3] {
            let (_, status) = connection.send(&mut template.request(1, step)).await;
            assert_eq!(status, 200);
        }
        let js = jetstream::new(nats.client().await);
        wait::until_equal("both events", 2, || bus::count(&js, names::EVENTS)).await;
        Self(bus::events(&js).await.try_into().expect("two events"))
    }

    /// Event `step` of an issue.
    fn event(&self, issue: u64, step: u64, change: Change) -> IssueEvent {
        let variant = match change {
            Change::Each => step,
            Change::EveryThird => step / 3,
        };
        let mut event = self.0[(variant % 2) as usize].clone();
        event.delivery.id = Uuid::new_v4().to_string();
        event.delivery.body_sha256 = format!("{issue:032x}{step:032x}");
        event.issue.number = issue;
        let first = self.0[0].issue.updated_at.map_or(0, Timestamp::unix_micros);
        event.issue.updated_at = Some(Timestamp::from_unix_micros(first + step as i64 * 1_000_000));
        event
    }

    /// Publishes `count` events of `issues` issues. Each issue's events are in order,
    /// and later than those that the stream already holds.
    pub async fn fill(&self, nats: &Nats, count: u64, issues: u64, change: Change) {
        let js = &jetstream::new(nats.client().await);
        let settings = &system::worker_config(&nats.url(), &[]).common.streams;
        let streams = Streams { js, settings, findings: &Findings::default() };
        streams.events().await.expect("the stream");
        let before = bus::count(js, names::EVENTS).await;
        let publish = |n: u64| async move {
            let event = self.event(n % issues + 1, n / issues, change);
            let traceparent: Traceparent =
                format!("00-{}-00f067aa0ba902b7-01", event.delivery.id.replace('-', ""))
                    .parse()
                    .expect("a traceparent");
            let envelope = Envelope::of_event(
                &event,
                "http://localhost:3000",
                &traceparent,
                Partitions::DEFAULT,
            )
            .expect("a message");
            let headers = bus::header_map(&envelope.headers);
            let sent = js.publish_with_headers(envelope.subject, headers, envelope.payload.into());
            let sent = sent.await.expect("publish");
            sent.await.expect("a confirmation");
        };
        stream::iter(before..before + count)
            .map(publish)
            .buffered(UNDER_WAY)
            .for_each(|()| async {})
            .await;
    }
}

/// Watches all partitions until no events are left. Returns the longest time for
/// which a partition with events left made no visible progress.
pub async fn drained(js: &jetstream::Context) -> Duration {
    let stream = js.get_stream(names::EVENTS).await.expect("the stream");
    let mut at: HashMap<u8, (u64, Instant)> = HashMap::new();
    let mut longest = Duration::ZERO;
    loop {
        let mut left = 0;
        for partition in Partitions::DEFAULT.all() {
            let info = stream.consumer_info(names::consumer_name(partition)).await;
            let Ok(info) = info else {
                left += 1;
                continue;
            };
            let now = Instant::now();
            let (floor, since) =
                at.entry(partition).or_insert((info.ack_floor.stream_sequence, now));
            // An upper bound: the time from one look that saw progress to the next.
            longest = longest.max(now - *since);
            if *floor != info.ack_floor.stream_sequence || info.num_pending == 0 {
                (*floor, *since) = (info.ack_floor.stream_sequence, now);
            }
            left += info.num_pending + info.num_ack_pending as u64;
        }
        if left == 0 {
            return longest;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
