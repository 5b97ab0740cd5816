//! Exponential backoff with jitter.

use std::time::Duration;

/// Waits that double from `first` to `longest`.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failed: u32,
}

impl Backoff {
    /// Waits that begin at `first` and grow to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failed: 0 }
    }

    /// The wait after one more failure. It is random, from half of the ceiling to the ceiling, so
    /// that clients which failed together do not retry together.
    pub fn next_wait(&mut self) -> Duration {
        let ceiling = self.ceiling(self.failed);
        self.failed = self.failed.saturating_add(1);
        ceiling.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Whether nothing has failed since the start or the last reset.
    pub fn is_fresh(&self) -> bool {
        self.failed == 0
    }

    /// Waits after one more failure, and the next time longer.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_wait()).await;
    }

    /// The longest wait after `failed` failures, counted from 0.
    pub fn ceiling(&self, failed: u32) -> Duration {
        self.first.saturating_mul(1 << failed.min(16)).min(self.longest)
    }

    /// Begins at the first wait again.
    pub fn reset(&mut self) {
        self.failed = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_the_longest_and_begin_again() {
        let (first, longest) = (Duration::from_millis(50), Duration::from_secs(2));
        let mut backoff = Backoff::new(first, longest);
        for ceiling in [50, 100, 200, 400, 800, 1600, 2000, 2000].map(Duration::from_millis) {
            let wait = backoff.next_wait();
            assert!(wait >= ceiling / 2 && wait <= ceiling, "{wait:?} of {ceiling:?}");
        }
        assert_eq!(backoff.ceiling(u32::MAX), longest);
        backoff.reset();
        assert!(backoff.next_wait() <= first);
    }
}
