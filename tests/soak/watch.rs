//! Resource usage of each process, sampled once a second, and whether it has
//! grown.

use std::{io::Write, net::SocketAddr, path::PathBuf, time::Duration};

use ::tests::usage::Usage;
use tokio::{task::JoinHandle, time::interval};

/// What is measured of one process, and how much it may grow: by `share`, or by `least` if that is
/// more. Memory grows by a step when a stall of the machine makes more requests wait at once than
/// ever before. A leak of a hundred bytes with each delivery is found in five minutes.
const MEASURES: [Measure; 4] = [
    Measure { name: "memory", unit: 1e6, share: 0.1, least: 4e6, decimals: 1 },
    Measure { name: "descriptors", unit: 1.0, share: 0.0, least: 4.0, decimals: 0 },
    Measure { name: "threads", unit: 1.0, share: 0.0, least: 4.0, decimals: 0 },
    Measure { name: "journal", unit: 1e6, share: 0.1, least: 4e6, decimals: 1 },
];

struct Measure {
    name: &'static str,
    unit: f64,
    share: f64,
    least: f64,
    decimals: usize,
}

/// A process that is watched.
pub struct Source {
    name: &'static str,
    pid: u32,
    /// Metrics, scraped with each sample, as Prometheus does.
    metrics: Option<SocketAddr>,
    file: Option<PathBuf>,
    judged: bool,
    samples: Vec<[f64; MEASURES.len()]>,
}

impl Source {
    /// A process that must not grow. Its metrics are at `address`.
    pub fn judged(name: &'static str, pid: u32, address: SocketAddr) -> Self {
        let samples = Vec::new();
        Self { name, pid, metrics: Some(address), file: None, judged: true, samples }
    }

    /// A process that is only reported.
    pub fn told(name: &'static str, pid: u32) -> Self {
        Self { name, pid, metrics: None, file: None, judged: false, samples: Vec::new() }
    }

    /// Also watches a file that the process writes.
    pub fn with_file(mut self, file: PathBuf) -> Self {
        self.file = Some(file);
        self
    }

    async fn look(&mut self) {
        if let Some(address) = self.metrics {
            let metrics = reqwest::get(format!("http://{address}/metrics")).await.expect("metrics");
            metrics.bytes().await.expect("their text");
        }
        let usage = Usage::of(self.pid);
        let file = self.file.as_ref().and_then(|file| std::fs::metadata(file).ok());
        self.samples.push([
            usage.memory as f64,
            usage.descriptors as f64,
            usage.threads as f64,
            file.map_or(0.0, |file| file.len() as f64),
        ]);
    }
}

/// A running watch.
pub struct Watch(JoinHandle<Vec<Source>>);

impl Watch {
    /// Samples `sources` for `duration`.
    pub fn start(mut sources: Vec<Source>, duration: Duration, file: Option<PathBuf>) -> Self {
        Self(tokio::spawn(async move {
            let mut file = file.map(|file| std::fs::File::create(file).expect("create the file"));
            let mut second = interval(Duration::from_secs(1));
            for at in 0..=duration.as_secs() {
                second.tick().await;
                for source in &mut sources {
                    source.look().await;
                    if let (Some(file), Some(sample)) = (&mut file, source.samples.last()) {
                        let [memory, descriptors, threads, journal] = sample;
                        writeln!(
                            file,
                            "{at},{},{memory},{descriptors},{threads},{journal}",
                            source.name
                        )
                        .expect("write a sample");
                    }
                }
            }
            sources
        }))
    }

    /// Prints the measurements, and returns what has grown.
    pub async fn finish(self) -> Vec<String> {
        let sources = self.0.await.expect("no panic");
        println!("| | | second quarter | last quarter | most | |\n|---|---|---|---|---|---|");
        let mut grown = Vec::new();
        for source in &sources {
            for (n, measure) in MEASURES.iter().enumerate() {
                let values: Vec<f64> = source.samples.iter().map(|sample| sample[n]).collect();
                let most = values.iter().copied().fold(0.0, f64::max);
                if most == 0.0 {
                    continue;
                }
                let (earlier, later) = quarters(&values);
                let grew = source.judged && later > measure.most_after(earlier);
                let said = match (source.judged, grew) {
                    (false, _) => "not judged",
                    (true, false) => "",
                    (true, true) => "GREW",
                };
                let show = |value: f64| format!("{:.*}", measure.decimals, value / measure.unit);
                println!(
                    "| {} | {} | {} | {} | {} | {said} |",
                    source.name,
                    measure.name,
                    show(earlier),
                    show(later),
                    show(most)
                );
                if grew {
                    let (name, from, to) = (measure.name, show(earlier), show(later));
                    grown.push(format!("GREW: {} of {}: {from} to {to}", name, source.name));
                }
            }
        }
        grown
    }
}

impl Measure {
    fn most_after(&self, earlier: f64) -> f64 {
        earlier + (earlier * self.share).max(self.least)
    }
}

/// Medians of the second quarter, when everything has warmed up, and of the last quarter.
fn quarters(values: &[f64]) -> (f64, f64) {
    let quarter = values.len() / 4;
    (median(&values[quarter..2 * quarter]), median(&values[values.len() - quarter..]))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_warms_up_and_breathes_has_not_grown_and_what_climbs_has() {
        let memory = &MEASURES[0];
        let grew = |value: fn(f64) -> f64| {
            let values: Vec<f64> = (0..300).map(|n| value(f64::from(n))).collect();
            let (earlier, later) = quarters(&values);
            later > memory.most_after(earlier)
        };
        assert!(!grew(|n| 40e6 * (n / 60.0).min(1.0) + 3e6 * (n / 5.0).sin()));
        assert!(grew(|n| 40e6 + 40e3 * n));
        assert!(!grew(|n| if n == 290.0 { 200e6 } else { 40e6 }), "one peak is none");
    }
}
