//! One issue alone: its events cannot be handled concurrently.

use std::path::Path;

use super::table::{Table, count};
use crate::{
    figures::millis,
    load::{Template, percentile},
    told,
};

const SECONDS: u64 = 8;

/// Measures the time from delivery to change, by deliveries a second to one issue.
pub async fn curve(exe: &Path) {
    let template = Template::recorded();
    let table = Table::start(
        "Deliveries to one issue alone, each a change: HTTP in to change out.",
        &["deliveries/s", "p50", "p99"],
    );
    for rate in [10, 100, 500, 1_000] {
        // One after the other, since each is a change only in this order.
        let requests = (0..rate * SECONDS).map(|n| template.request(1, n * 3)).collect();
        let latencies = told::latencies(exe, requests, 1, rate as f64).await;
        table.row(&[
            count(rate),
            millis(percentile(&latencies, 50.0)),
            millis(percentile(&latencies, 99.0)),
        ]);
    }
}
