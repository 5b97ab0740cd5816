//! How figures are written.

use std::time::Duration;

use tests::process::Process;
#[cfg(target_os = "linux")]
use tests::usage::Usage;

/// A rate per second.
pub fn rate(value: f64) -> String {
    format!("{value:.0}/s")
}

/// In milliseconds.
pub fn millis(value: Duration) -> String {
    format!("{:.2} ms", value.as_secs_f64() * 1e3)
}

/// In millions of bytes.
#[cfg(target_os = "linux")]
pub fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Resident memory of a process.
#[cfg(target_os = "linux")]
pub fn memory(process: &Process) -> String {
    megabytes(Usage::of(process.pid()).memory)
}

/// Not known on other systems.
#[cfg(not(target_os = "linux"))]
pub fn memory(_: &Process) -> String {
    "unknown".into()
}

/// The value in the middle.
#[cfg(target_os = "linux")]
pub fn median<T: PartialOrd + Copy>(values: impl IntoIterator<Item = T>) -> T {
    let mut values: Vec<T> = values.into_iter().collect();
    values.sort_by(|a, b| a.partial_cmp(b).expect("numbers"));
    values[values.len() / 2]
}
