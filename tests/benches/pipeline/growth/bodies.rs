//! The cost of larger bodies for ingest.

use std::{path::Path, sync::Arc, time::Duration};

use tests::{nats::Nats, services::ingest, usage::Usage};

use super::table::{Table, count};
use crate::{
    figures::{megabytes, millis},
    load::{self, Template},
};

const MEASURED: Duration = Duration::from_secs(8);
/// Bytes of bodies in flight at once: less than `MAX_IN_FLIGHT_BYTES` leaves to large ones.
const UNDER_WAY: usize = 20_000_000;
const MOST_CONNECTIONS: usize = 64;
/// Bytes of a recorded delivery without the text that is added.
const REST: usize = 7_400;

/// Measures how fast ingest accepts, by the size of bodies.
pub async fn curve(exe: &Path) {
    let table = Table::start(
        "Deliveries of so many bytes, the relay at work; the broker takes messages of up to 1 MiB.",
        &["body", "connections", "200s/s", "MB/s", "p50", "p99", "memory of ingest, most"],
    );
    for bytes in [5_000_usize, 50_000, 500_000, 5_000_000, 10_000_000] {
        let template = Template::recorded().with_text(&text(bytes.saturating_sub(REST)));
        let connections = (UNDER_WAY / bytes).clamp(1, MOST_CONNECTIONS);
        let issues = (UNDER_WAY / bytes).clamp(4, 2_000) as u64;
        let requests: Vec<_> = (0..issues).map(|n| template.request(n + 1, 0)).collect();
        let sent = template.payload(1, 0).len();
        let nats = Nats::start().await;
        let data = tests::temp_dir();
        let ingest = ingest(exe, &nats, data.path());
        let address = ingest.address_in("ingest listens").await;
        let run = load::closed_loop(address, Arc::new(requests), connections, MEASURED).await;
        table.row(&[
            format!("{} kB", count(sent as u64 / 1000)),
            connections.to_string(),
            count(run.rate() as u64),
            format!("{:.0}", run.rate() * sent as f64 / 1e6),
            millis(run.percentile(50.0)),
            millis(run.percentile(99.0)),
            megabytes(Usage::of(ingest.pid()).peak_memory),
        ]);
    }
}

/// A text of words, so that it compresses about as well as people's texts.
fn text(bytes: usize) -> String {
    let mut random = fastrand::Rng::with_seed(7);
    let mut text = String::with_capacity(bytes + 16);
    while text.len() < bytes {
        let letters = random.usize(2..10);
        text.extend(std::iter::repeat_with(|| random.lowercase()).take(letters));
        text.push(' ');
    }
    text
}
