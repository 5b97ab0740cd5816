//! How much is asked of Gitea: so many requests at once, so many a second, and none while it has
//! asked for a pause.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, sleep_until},
};

use crate::error::ClientError;

/// The longest pause that is kept, whatever `Retry-After` says.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The shortest pause between two requests that can be told from none.
const FASTEST: f64 = 1e6;

/// The budget of a client and its clones.
#[derive(Debug)]
pub(crate) struct Budget {
    places: Semaphore,
    /// One request's share of time.
    interval: Duration,
    /// How far ahead of an even rate requests may be, after a pause.
    ahead: Duration,
    turns: Mutex<Turns>,
}

#[derive(Debug)]
struct Turns {
    /// When the next request is due at an even rate.
    due: Instant,
    /// Nothing is asked until then.
    paused_until: Option<Instant>,
}

/// A place among the requests under way.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    budget: &'a Budget,
    _permit: Option<SemaphorePermit<'a>>,
}

impl Budget {
    pub(crate) fn new(per_second: f64, at_once: usize) -> Result<Self, ClientError> {
        let is_rate = per_second.is_finite() && per_second > 0.0;
        if !is_rate || at_once == 0 {
            return Err(ClientError::Budget);
        }
        let interval = Duration::try_from_secs_f64(1.0 / per_second.min(FASTEST))
            .map_err(|_| ClientError::Budget)?;
        Ok(Self {
            places: Semaphore::new(at_once.min(Semaphore::MAX_PERMITS)),
            interval,
            ahead: Duration::from_secs(1).saturating_sub(interval),
            turns: Mutex::new(Turns { due: Instant::now(), paused_until: None }),
        })
    }

    /// Waits for a place. Who came first is served first.
    pub(crate) async fn place(&self) -> Place<'_> {
        // Nothing closes the semaphore.
        Place { budget: self, _permit: self.places.acquire().await.ok() }
    }

    /// Lets nothing be asked for `pause`, or for the longest pause that is kept.
    pub(crate) fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause.min(LONGEST_PAUSE);
        let mut turns = self.turns();
        turns.paused_until = turns.paused_until.max(Some(until));
    }

    /// Takes the next turn. `Err` with the end of the pause if there is one.
    fn next_turn(&self) -> Result<Instant, Instant> {
        let now = Instant::now();
        let mut turns = self.turns();
        match turns.paused_until {
            Some(until) if until > now => return Err(until),
            _ => turns.paused_until = None,
        }
        let earliest = now.checked_sub(self.ahead).unwrap_or(now);
        let turn = turns.due.max(earliest);
        turns.due = turn + self.interval;
        Ok(turn)
    }

    fn is_paused(&self) -> bool {
        self.turns().paused_until.is_some_and(|until| until > Instant::now())
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    /// Waits for a turn to ask. One that passes during a pause is lost, so that those who waited
    /// do not all ask when it ends.
    pub(crate) async fn turn(&self) {
        loop {
            match self.budget.next_turn() {
                Ok(turn) => {
                    sleep_until(turn).await;
                    if !self.budget.is_paused() {
                        return;
                    }
                }
                Err(until) => sleep_until(until).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::{task::JoinSet, time::sleep};

    use super::*;

    /// Seconds from the start at which `count` requests are made, each taking `takes`.
    async fn starts(budget: &Arc<Budget>, count: usize, takes: Duration) -> Vec<f64> {
        let start = Instant::now();
        let mut asking = JoinSet::new();
        for _ in 0..count {
            let budget = budget.clone();
            asking.spawn(async move {
                let place = budget.place().await;
                place.turn().await;
                let at = start.elapsed().as_secs_f64();
                sleep(takes).await;
                at
            });
        }
        let mut starts = asking.join_all().await;
        starts.sort_by(f64::total_cmp);
        starts
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_kept() {
        for per_second in [0.5, 1.0, 3.0, 50.0] {
            let budget = Arc::new(Budget::new(per_second, 1000).unwrap());
            sleep(Duration::from_secs(60)).await;
            let starts = starts(&budget, 200, Duration::ZERO).await;
            for (first, from) in starts.iter().enumerate() {
                for (last, to) in starts.iter().enumerate().skip(first) {
                    let allowed = per_second * (to - from) + per_second.max(1.0);
                    assert!(
                        (last - first + 1) as f64 <= allowed + 0.1,
                        "{per_second}: {from} {to}"
                    );
                }
            }
            let expected = (200.0 - per_second.max(1.0)) / per_second;
            let took = starts.last().unwrap();
            assert!((took - expected).abs() < 0.1 + 1.0 / per_second, "{per_second}: {took}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_so_many_at_once() {
        let budget = Arc::new(Budget::new(1e9, 3).unwrap());
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut asking = JoinSet::new();
        for _ in 0..20 {
            let (budget, now, most) = (budget.clone(), now.clone(), most.clone());
            asking.spawn(async move {
                let place = budget.place().await;
                place.turn().await;
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                sleep(Duration::from_secs(1)).await;
                now.fetch_sub(1, Ordering::SeqCst);
            });
        }
        asking.join_all().await;
        assert_eq!(most.load(Ordering::SeqCst), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_holds_everything_and_is_bounded() {
        let budget = Arc::new(Budget::new(2.0, 10).unwrap());
        budget.pause(Duration::from_secs(30));
        budget.pause(Duration::from_secs(10));
        let after = starts(&budget, 6, Duration::ZERO).await;
        assert!(after[0] >= 30.0 && after[0] < 30.1, "{after:?}");
        assert!(after[5] >= 31.9, "all at once after the pause: {after:?}");

        budget.pause(Duration::MAX);
        let after = starts(&budget, 1, Duration::ZERO).await;
        assert!(after[0] >= 299.9 && after[0] < 301.0, "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_also_holds_those_who_wait_for_their_turn() {
        let budget = Arc::new(Budget::new(1.0, 10).unwrap());
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { starts(&budget, 3, Duration::ZERO).await }
        });
        sleep(Duration::from_millis(500)).await;
        budget.pause(Duration::from_secs(60));
        let starts = waiting.await.unwrap();
        assert!(starts[0] < 0.1 && starts[1] >= 60.5 && starts[2] >= 61.5, "{starts:?}");
    }

    #[test]
    fn a_budget_of_nothing_is_refused() {
        for (per_second, at_once) in
            [(0.0, 1), (-1.0, 1), (f64::NAN, 1), (f64::INFINITY, 1), (1e-300, 1), (1.0, 0)]
        {
            assert!(Budget::new(per_second, at_once).is_err(), "{per_second} {at_once}");
        }
    }
}
