//! Our clock against others.

use std::time::Duration;

use contract::timestamp::Timestamp;

use super::report::Check;

/// What clocks may differ by. Most servers on a network are within a second.
const SMALL: Duration = Duration::from_secs(5);
/// Beyond this, times of events, windows of sweeps and certificates are wrong.
const LARGE: Duration = Duration::from_secs(60);

/// A time that somebody else told while we asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    /// When we asked, by our clock.
    pub(super) asked: Timestamp,
    /// When we had the answer.
    pub(super) answered: Timestamp,
    /// What was told.
    pub(super) time: Timestamp,
    /// What the told time leaves out: HTTP tells seconds.
    pub(super) resolution: Duration,
}

impl Told {
    /// By how much the other clock is ahead of ours at least, in microseconds. Negative if it is
    /// behind.
    fn ahead(&self) -> i64 {
        let resolution = i64::try_from(self.resolution.as_micros()).unwrap_or(i64::MAX);
        let earliest = self.time.unix_micros();
        let latest = earliest.saturating_add(resolution);
        let (asked, answered) = (self.asked.unix_micros(), self.answered.unix_micros());
        if earliest > answered { earliest - answered } else { (latest - asked).min(0) }
    }
}

/// Compares clocks. `whose` names the other one.
pub(super) fn check(whose: &str, told: Told) -> Check {
    let (name, ahead) = (format!("clock of {whose}"), told.ahead());
    let apart = Duration::from_micros(ahead.unsigned_abs());
    if apart <= SMALL {
        return Check::ok(name, format!("{:.1} s from ours", apart.as_secs_f64()));
    }
    let direction = if ahead > 0 { "ahead of" } else { "behind" };
    let found = format!("{} s {direction} ours", apart.as_secs());
    let remedy = "run NTP on both machines (timedatectl shows it)";
    if apart <= LARGE {
        Check::warning(name, found, remedy)
    } else {
        Check::wrong(name, found, remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::report::Outcome, *};

    #[test]
    fn what_lies_between_question_and_answer_is_no_difference() {
        let at = |secs: f64| Timestamp::from_unix_micros((secs * 1e6) as i64);
        for (asked, answered, time, resolution, ahead, outcome) in [
            (100.0, 100.1, 100.05, 0, 0.0, Outcome::Ok),
            // Asked within the second that is told.
            (100.9, 100.95, 100.0, 1, 0.0, Outcome::Ok),
            (100.0, 104.0, 102.0, 1, 0.0, Outcome::Ok),
            (100.0, 100.0, 103.0, 1, 3.0, Outcome::Ok),
            (100.0, 100.0, 110.0, 1, 10.0, Outcome::Warning),
            (100.0, 100.0, 80.0, 1, -19.0, Outcome::Warning),
            (100.0, 100.0, 3700.0, 0, 3600.0, Outcome::Wrong),
            (3700.0, 3700.0, 100.0, 0, -3600.0, Outcome::Wrong),
        ] {
            let resolution = Duration::from_secs(resolution);
            let told =
                Told { asked: at(asked), answered: at(answered), time: at(time), resolution };
            assert_eq!(told.ahead(), (ahead * 1e6) as i64, "{told:?}");
            assert_eq!(check("Gitea", told).outcome, outcome, "{told:?}");
        }
    }
}
