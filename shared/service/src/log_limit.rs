//! A limit on log lines that a repeated failure would write again and again.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Least time between two lines of one cause.
const INTERVAL: Duration = Duration::from_secs(10);
/// Causes that are told apart. Further ones share one line, since others may choose their texts.
const MAX_CAUSES: usize = 64;

/// Lets one line of each cause pass every ten seconds, and counts the others.
///
/// ```
/// # let error = "connection refused";
/// # let limit = service::log_limit::LogLimit::new();
/// if let Some(line) = limit.line(error) {
///     tracing::warn!(error, left_out = line.left_out, "cannot connect");
/// }
/// ```
#[derive(Debug, Default)]
pub struct LogLimit {
    causes: Mutex<Vec<Cause>>,
}

/// A line that may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Lines of the same cause that were left out since the last one. None instead of zero.
    pub left_out: Option<u64>,
}

#[derive(Debug)]
struct Cause {
    /// None for all causes beyond the limit.
    text: Option<String>,
    written: Instant,
    left_out: u64,
}

impl LogLimit {
    /// A limit that has seen no line yet.
    pub const fn new() -> Self {
        Self { causes: Mutex::new(Vec::new()) }
    }

    /// Whether a line of `cause` may be written now.
    pub fn line(&self, cause: &str) -> Option<Line> {
        self.line_at(cause, Instant::now())
    }

    fn line_at(&self, cause: &str, now: Instant) -> Option<Line> {
        let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = causes.iter_mut().find(|known| known.text.as_deref() == Some(cause)) {
            return known.line_at(now);
        }
        if causes.len() >= MAX_CAUSES {
            causes.retain(|known| known.text.is_none() || !known.is_over(now));
        }
        let is_beyond = causes.len() >= MAX_CAUSES;
        if is_beyond && let Some(others) = causes.iter_mut().find(|known| known.text.is_none()) {
            return others.line_at(now);
        }
        let text = (!is_beyond).then(|| cause.to_owned());
        causes.push(Cause { text, written: now, left_out: 0 });
        Some(Line { left_out: None })
    }
}

impl Cause {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.written) >= INTERVAL
    }

    fn line_at(&mut self, now: Instant) -> Option<Line> {
        if !self.is_over(now) {
            self.left_out += 1;
            return None;
        }
        self.written = now;
        let left_out = std::mem::take(&mut self.left_out);
        Some(Line { left_out: (left_out > 0).then_some(left_out) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_every_ten_seconds_with_the_number_of_lines_left_out() {
        let (limit, start) = (LogLimit::new(), Instant::now());
        let line = |left_out| Some(Line { left_out });
        for (millis, cause, expected) in [
            (0, "a", line(None)),
            (1, "a", None),
            (2, "b", line(None)),
            (9_999, "a", None),
            (10_000, "a", line(Some(2))),
            (10_001, "a", None),
            (10_002, "b", line(None)),
            (30_000, "a", line(Some(1))),
            (60_000, "a", line(None)),
        ] {
            let now = start + Duration::from_millis(millis);
            assert_eq!(limit.line_at(cause, now), expected, "{cause} at {millis} ms");
        }
    }

    #[test]
    fn causes_beyond_the_limit_share_a_line_and_take_no_memory() {
        let (limit, start) = (LogLimit::new(), Instant::now());
        let told = (0..10_000).filter(|n| limit.line_at(&n.to_string(), start).is_some()).count();
        assert_eq!(told, MAX_CAUSES + 1);
        assert_eq!(limit.causes.lock().expect("no panic").len(), MAX_CAUSES + 1);
        let later = start + INTERVAL;
        assert_eq!(limit.line_at("new", later), Some(Line { left_out: None }));
        assert_eq!(limit.causes.lock().expect("no panic").len(), 2);
    }
}
