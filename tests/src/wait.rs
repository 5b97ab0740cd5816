//! Waiting on conditions with a deadline.

use std::{
    fmt::Debug,
    future::Future,
    time::{Duration, Instant},
};

/// How long anything may take in a test before it counts as stuck. Generous:
/// two cores run many tests at once.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until `probe` returns something, and returns it.
///
/// # Panics
/// At the deadline.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, probe: impl FnMut() -> F) -> T {
    let value = try_until(probe).await;
    value.unwrap_or_else(|| panic!("waited {DEADLINE:?} in vain for: {what}"))
}

/// Waits until `probe` returns something, and returns it. None at the deadline.
pub async fn try_until<T, F: Future<Output = Option<T>>>(
    mut probe: impl FnMut() -> F,
) -> Option<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = probe().await {
            return Some(value);
        }
        if started.elapsed() >= DEADLINE {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until `probe` returns `expected`.
///
/// # Panics
/// At the deadline, with what it returned last.
pub async fn until_equal<T: PartialEq + Debug, F: Future<Output = T>>(
    what: &str,
    expected: T,
    mut probe: impl FnMut() -> F,
) {
    let started = Instant::now();
    loop {
        let value = probe().await;
        if value == expected {
            return;
        }
        assert!(
            started.elapsed() < DEADLINE,
            "waited {DEADLINE:?} in vain for: {what}\n  expected {expected:?}\n     found {value:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits for `future`.
///
/// # Panics
/// At the deadline.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {DEADLINE:?} in vain for: {what}"),
    }
}
