//! A walk over all issues by windows of `updated_at`, as a pure state.
//!
//! Gitea lists issues by their creation, the newest first, so the pages of a list shift while issues
//! are made. A window that fits one page has no such fault. A window is halved until it fits, and the
//! next one is wider again where there was little. The walk goes from the oldest second to the newest,
//! and can be continued by another worker from what is kept of it.

use serde::{Deserialize, Serialize};

/// How far a walk is. Seconds are those of Gitea's clock, since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Walk {
    /// First second that is not covered.
    next: i64,
    /// Last second to cover.
    until: i64,
    /// Seconds of the next window, at least 1.
    width: i64,
    /// Page of a window of one second that does not fit a page, from 1.
    page: u32,
    /// Issues that such a window had when its first page was read.
    #[serde(default)]
    total: u64,
}

/// A window to ask for. Both seconds are part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) since: i64,
    pub(crate) before: i64,
    pub(crate) page: u32,
}

/// Issues a page. Gitea clamps more without a word.
pub(crate) const PAGE: u32 = 50;
/// Pages of one second that are read at most.
const MAX_PAGES: u32 = 100_000;

impl Walk {
    /// A walk over the seconds from `since` to `until`, which is not before it. `issues` is about how
    /// many there are, if that is known.
    pub(crate) fn new(since: i64, until: i64, issues: u64, page_size: u64) -> Self {
        let until = until.max(since);
        let width = until.saturating_sub(since).saturating_add(1);
        let mut walk = Self { next: since, until, width, page: 1, total: 0 };
        if issues > page_size {
            walk.narrow(issues, page_size);
        }
        walk
    }

    /// The window to ask for. None at the end.
    pub(crate) fn window(&self) -> Option<Window> {
        (self.next <= self.until).then(|| Window {
            since: self.next,
            before: self.end(),
            page: self.page,
        })
    }

    fn end(&self) -> i64 {
        self.next.saturating_add(self.width - 1).min(self.until)
    }

    fn narrow(&mut self, total: u64, page_size: u64) {
        // A little less than an even spread would allow, and at most half.
        let share = page_size.max(1) as f64 / total.max(1) as f64 * 0.7;
        let width = (self.width as f64 * share.min(0.5)) as i64;
        self.width = width.max(1);
    }

    /// Takes note of the answer: the page held `received` of `total` issues. Returns whether what was
    /// received counts; otherwise the window is too wide, and a part of it comes next.
    pub(crate) fn received(&mut self, received: u64, total: Option<u64>) -> bool {
        // Without a total a page that is full may not be all.
        let total = total.unwrap_or(received + u64::from(received >= PAGE.into()));
        let covered = self.end();
        self.width = covered - self.next + 1;
        if self.page == 1 && total > received && self.width > 1 {
            self.narrow(total, received);
            return false;
        }
        if self.page == 1 {
            self.total = total;
        }
        let is_paged = total > received || self.page > 1;
        if is_paged && received > 0 && self.page < MAX_PAGES {
            // Issues that leave the second move those behind them to pages that were read.
            self.page = if total < self.total { 1 } else { self.page + 1 };
            return true;
        }
        (self.next, self.page, self.total) = (covered.saturating_add(1), 1, 0);
        // What was received counts: a total that is always large would keep the windows small.
        let factor = match received {
            0 => 8,
            1..13 => 2,
            _ => 1,
        };
        self.width = self.width.saturating_mul(factor);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    const PAGE: usize = super::PAGE as usize;

    /// Walks over issues that were updated at these seconds, as Gitea lists them. Returns the numbers
    /// of the issues that were received, and how many requests that took.
    fn walk(updated: &[i64], since: i64, until: i64, guess: u64) -> (BTreeSet<usize>, usize) {
        let mut walk = Walk::new(since, until, guess, PAGE as u64);
        let (mut found, mut requests) = (BTreeSet::new(), 0);
        while let Some(window) = walk.window() {
            requests += 1;
            assert!(requests < 100_000, "no end");
            assert!(window.since >= since && window.before <= until);
            let is_within = |at: &i64| (window.since..=window.before).contains(at);
            let within: Vec<usize> =
                (0..updated.len()).filter(|n| is_within(&updated[*n])).collect();
            let page: Vec<usize> = within
                .iter()
                .rev()
                .skip((window.page as usize - 1) * PAGE)
                .take(PAGE)
                .copied()
                .collect();
            if walk.received(page.len() as u64, Some(within.len() as u64)) {
                found.extend(page);
            }
            // What is kept of a walk is enough to go on.
            walk = serde_json::from_str(&serde_json::to_string(&walk).expect("json")).expect("own");
        }
        (found, requests)
    }

    proptest! {
        #[test]
        fn every_issue_of_the_range_is_received(
            updated in vec(prop_oneof![0..2000_i64, 500..510_i64, Just(700)], 0..400),
            since in 0..1000_i64,
            length in 0..1500_i64,
            guess in 0..1000_u64,
        ) {
            let (found, _) = walk(&updated, since, since + length, guess);
            let expected = (0..updated.len())
                .filter(|n| (since..=since + length).contains(&updated[*n]))
                .collect::<BTreeSet<_>>();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_walk_asks_little_more_often_than_there_are_pages() {
        let year = 365 * 24 * 3600;
        for (name, updated) in [
            ("even", (0..10_000).map(|n| n * year / 10_000).collect::<Vec<i64>>()),
            ("all in one day of the last year", (0..10_000).map(|n| 50 * year + n * 8).collect()),
            ("imported in one second", vec![50 * year; 10_000]),
        ] {
            let until = 51 * year;
            let (found, requests) = walk(&updated, 0, until, updated.len() as u64);
            assert_eq!(found.len(), updated.len(), "{name}");
            assert!(requests < 3 * updated.len() / PAGE + 100, "{name}: {requests} requests");
        }
        assert_eq!(walk(&[], 0, 100, 0).1, 1);
    }
}
