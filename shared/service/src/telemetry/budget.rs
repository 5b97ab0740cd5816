//! How much a second: how many deliveries are traced where only the span store wants their spans,
//! or how many questions of other processes are answered.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use serde::{Deserialize, Serialize};

/// Seconds that are looked back.
const SECONDS: usize = 60;

/// What became of the deliveries of the last minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastMinute {
    /// Deliveries that were traced.
    pub traced: u64,
    /// All deliveries.
    pub all: u64,
}

/// Takes the first ones of each second, up to a number of them.
#[derive(Debug)]
pub struct Budget {
    per_second: u32,
    started: Instant,
    seconds: Mutex<[Second; SECONDS]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    /// Seconds since the start.
    number: u64,
    taken: u32,
    all: u32,
}

impl Budget {
    pub(crate) fn new(per_second: u32) -> Self {
        let seconds = Mutex::new([Second::default(); SECONDS]);
        Self { per_second, started: Instant::now(), seconds }
    }

    /// Whether one more is taken.
    pub(crate) fn take(&self) -> bool {
        self.take_at(self.started.elapsed().as_secs())
    }

    /// Takes back what was taken at `then`: it was none after all.
    pub(super) fn give_back(&self, then: Instant) {
        self.give_back_at(then.saturating_duration_since(self.started).as_secs());
    }

    /// What became of those of the last minute.
    pub(super) fn last_minute(&self) -> LastMinute {
        self.last_minute_at(self.started.elapsed().as_secs())
    }

    fn take_at(&self, now: u64) -> bool {
        let mut seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        let second = &mut seconds[(now % SECONDS as u64) as usize];
        if second.number != now {
            *second = Second { number: now, ..Second::default() };
        }
        second.all += 1;
        let is_taken = second.taken < self.per_second;
        second.taken += u32::from(is_taken);
        is_taken
    }

    fn give_back_at(&self, then: u64) {
        let mut seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        let second = &mut seconds[(then % SECONDS as u64) as usize];
        if second.number == then {
            second.taken = second.taken.saturating_sub(1);
            second.all = second.all.saturating_sub(1);
        }
    }

    fn last_minute_at(&self, now: u64) -> LastMinute {
        let seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = seconds.iter().filter(|second| second.number + SECONDS as u64 > now);
        recent.fold(LastMinute::default(), |sum, second| LastMinute {
            traced: sum.traced + u64::from(second.taken),
            all: sum.all + u64::from(second.all),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_first_of_each_second_are_taken_and_a_minute_is_remembered() {
        let budget = Budget::new(2);
        for (now, expected) in [
            (0, true),
            (0, true),
            (0, false),
            (1, true),
            (59, true),
            (60, true),
            (60, true),
            (60, false),
            (60, false),
        ] {
            assert_eq!(budget.take_at(now), expected, "{now}");
        }
        let mut expected = LastMinute { traced: 4, all: 6 };
        assert_eq!(budget.last_minute_at(60), expected);
        budget.give_back_at(61);
        assert_eq!(budget.last_minute_at(61).traced, 3, "nothing was taken in that second");
        budget.give_back_at(60);
        expected = LastMinute { traced: 3, all: 5 };
        assert_eq!(budget.last_minute_at(60), expected);
        assert!(budget.take_at(60));
        for (now, traced, all) in [(60, 4, 6), (61, 3, 5), (118, 3, 5), (119, 2, 4), (120, 0, 0)] {
            assert_eq!(budget.last_minute_at(now), LastMinute { traced, all }, "{now}");
        }
    }

    #[test]
    fn what_was_taken_is_given_back_to_the_second_that_it_was_taken_in() {
        let budget = Budget::new(1);
        assert!(budget.take_at(5) && budget.take_at(6));
        budget.give_back(budget.started + Duration::from_millis(5_900));
        assert!(!budget.take_at(6), "a request that took long gives nothing to another second");
        assert!(budget.take_at(5));
    }
}
