//! What this runner knows of all runs: kept up to date by reading what was written since the last
//! look. It says where to look; what is written follows from the entry itself.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use contract::timestamp::Timestamp;

use crate::run::{Desired, Phase, Run, RunKey};

/// Runs that are settled, of which the last ones are remembered for the page.
const REMEMBERED: usize = 100;

/// A run as far as it matters for finding it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) revision: u64,
    pub(crate) phase: Phase,
    pub(crate) desired: Desired,
    pub(crate) host: String,
    pub(crate) not_before: Option<Timestamp>,
    pub(crate) queued_at: Option<Timestamp>,
    pub(crate) grace: Duration,
    /// Since when the entry has had this revision, by our own clock, while there was a connection.
    pub(crate) since: Instant,
}

impl Seen {
    /// Whether it waits for a runner with room, and may begin now.
    fn is_due(&self, now: Timestamp) -> bool {
        self.phase.is_queued() && self.not_before.is_none_or(|at| at <= now)
    }
}

/// Entries that last although they need not, of which so many are remembered at a time.
const LASTING: usize = 10_000;

/// All runs of which something may come.
#[derive(Debug, Default)]
pub(crate) struct View {
    runs: BTreeMap<RunKey, Seen>,
    over: VecDeque<RunKey>,
    /// Issues whose run has ended since it was stopped, and that may want another one by now. Whoever
    /// wrote the end looks at them, unless it died.
    ended: BTreeSet<(i64, u64)>,
    /// Entries of settled runs that the broker would never remove, with their revisions: of a former
    /// version, or from before the bucket knew TTLs.
    lasting: BTreeMap<RunKey, u64>,
    /// Everything was read once. What had ended before is looked at by the sweep of all issues.
    is_whole: bool,
    /// The last revision that was read.
    pub(crate) revision: u64,
}

impl View {
    /// Notes an entry. None stands for one that was deleted or cannot be read.
    pub(crate) fn note(&mut self, key: RunKey, run: Option<&Run>, revision: u64, now: Instant) {
        let is_known = |seen: &Seen| seen.revision >= revision;
        if self.runs.get(&key).is_some_and(is_known) {
            return;
        }
        let Some(run) = run else {
            self.runs.remove(&key);
            self.over.retain(|other| *other != key);
            return;
        };
        if self.is_whole && run.phase.is_over() && run.desired == Desired::Stop {
            self.ended.insert((key.repository_id, key.number));
        }
        if run.is_settled() {
            self.runs.remove(&key);
            self.over.retain(|other| *other != key);
            self.over.push_back(key);
            if self.over.len() > REMEMBERED {
                self.over.pop_front();
            }
            return;
        }
        // One that is run again by hand.
        self.over.retain(|other| *other != key);
        let seen = Seen {
            revision,
            phase: run.phase,
            desired: run.desired,
            host: run.host.clone(),
            not_before: run.not_before,
            queued_at: run.queued_at,
            grace: Duration::from_secs(run.grace_secs),
            since: now,
        };
        self.runs.insert(key, seen);
    }

    /// Forgets a run that was known by this revision, and has no entry any more. Its issue may still want
    /// one.
    pub(crate) fn is_gone(&mut self, key: &RunKey, revision: u64) {
        if self.runs.get(key).is_some_and(|seen| seen.revision == revision) {
            self.runs.remove(key);
            self.ended.insert((key.repository_id, key.number));
        }
    }

    /// The revision by which a run is known.
    pub(crate) fn revision_of(&self, key: &RunKey) -> Option<u64> {
        self.runs.get(key).map(|seen| seen.revision)
    }

    /// Notes an entry that the broker should remove some day, and would not.
    pub(crate) fn note_lasting(&mut self, key: RunKey, revision: u64) {
        if self.lasting.len() < LASTING {
            self.lasting.insert(key, revision);
        }
    }

    /// Takes an entry that the broker would never remove, with its revision.
    pub(crate) fn take_lasting(&mut self) -> Option<(RunKey, u64)> {
        self.lasting.pop_first()
    }

    /// Notes that everything was read.
    pub(crate) fn is_read(&mut self) {
        self.is_whole = true;
    }

    /// Takes the issues that may want another run.
    pub(crate) fn take_ended(&mut self) -> BTreeSet<(i64, u64)> {
        std::mem::take(&mut self.ended)
    }

    /// Puts back issues that could not be looked at.
    pub(crate) fn put_back(&mut self, issues: BTreeSet<(i64, u64)>) {
        self.ended.extend(issues);
    }

    /// Begins to count the time of each lease anew: the connection was away, so that nobody could
    /// renew.
    pub(crate) fn was_away(&mut self, now: Instant) {
        self.runs.values_mut().for_each(|seen| seen.since = now);
    }

    /// The longest grace period of what runs.
    pub(crate) fn longest_grace(&self) -> Duration {
        let held = self.runs.values().filter(|seen| seen.phase.is_held());
        held.map(|seen| seen.grace).max().unwrap_or_default()
    }

    /// Forgets everything: another broker has other revisions.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// The runs of this issue of which something may come.
    pub(crate) fn of_issue(&self, repository_id: i64, number: u64) -> Vec<RunKey> {
        let first = RunKey { repository_id, number, rule: String::new() };
        let all = self.runs.range(first..).map(|(key, _)| key);
        let is_of = |key: &&RunKey| key.repository_id == repository_id && key.number == number;
        all.take_while(is_of).cloned().collect()
    }

    /// Runs that wait and are due, the one that waits longest first.
    pub(crate) fn due(&self, now: Timestamp) -> Vec<RunKey> {
        let mut due: Vec<_> = self.runs.iter().filter(|(_, seen)| seen.is_due(now)).collect();
        due.sort_by_key(|(_, seen)| (seen.queued_at, seen.revision));
        due.into_iter().map(|(key, _)| key.clone()).collect()
    }

    /// How many runs that are due have waited for longer than one queued at `queued_at`, by rule, but for
    /// those that `is_live`.
    pub(crate) fn ahead(
        &self,
        queued_at: Option<Timestamp>,
        now: Timestamp,
        is_live: impl Fn(&RunKey) -> bool,
    ) -> HashMap<&str, usize> {
        let mut ahead = HashMap::new();
        for (key, seen) in &self.runs {
            if seen.is_due(now) && seen.queued_at < queued_at && !is_live(key) {
                *ahead.entry(key.rule.as_str()).or_default() += 1;
            }
        }
        ahead
    }

    /// Runs whose runner has not renewed them for `lease` and the time that ending them takes. A
    /// runner that lives has ended them by then.
    pub(crate) fn lost(&self, lease: Duration, now: Instant) -> Vec<(RunKey, u64)> {
        let is_lost = |seen: &Seen| {
            let allowed = lease + seen.grace + MARGIN;
            seen.phase.is_held() && now.saturating_duration_since(seen.since) > allowed
        };
        let lost = self.runs.iter().filter(|(_, seen)| is_lost(seen));
        lost.map(|(key, seen)| (key.clone(), seen.revision)).collect()
    }

    /// Runs that this runner has by their entries.
    pub(crate) fn of_host(&self, host: &str) -> Vec<(RunKey, u64)> {
        let is_of = |seen: &Seen| seen.phase.is_held() && seen.host == host;
        let all = self.runs.iter().filter(|(_, seen)| is_of(seen));
        all.map(|(key, seen)| (key.clone(), seen.revision)).collect()
    }

    /// How many there are in each phase, by rule.
    pub(crate) fn counts(&self) -> HashMap<(String, Phase), u64> {
        let mut counts = HashMap::new();
        for (key, seen) in &self.runs {
            *counts.entry((key.rule.clone(), seen.phase)).or_default() += 1;
        }
        counts
    }

    /// How long the run that waits longest has waited.
    pub(crate) fn longest_wait(&self, now: Timestamp) -> Duration {
        let waits = self.runs.values().filter(|seen| seen.phase == Phase::Waiting);
        let oldest = waits.filter_map(|seen| seen.queued_at).min();
        let micros = oldest.map_or(0, |at| now.unix_micros() - at.unix_micros());
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }

    /// Runs that wait, now or for their time.
    pub(crate) fn queued(&self) -> Vec<RunKey> {
        let queued = self.runs.iter().filter(|(_, seen)| seen.phase.is_queued());
        queued.map(|(key, _)| key.clone()).collect()
    }

    /// How many runs wait.
    pub(crate) fn waiting(&self) -> usize {
        self.runs.values().filter(|seen| seen.phase.is_queued()).count()
    }

    /// Whether something may come of a run.
    pub(crate) fn knows(&self, key: &RunKey) -> bool {
        self.runs.contains_key(key)
    }

    /// Runs of a rule of which something may come.
    pub(crate) fn of_rule(&self, rule: &str) -> Vec<RunKey> {
        self.runs.keys().filter(|key| key.rule == rule).cloned().collect()
    }

    /// Keys for a page: what runs, what waits, then what is over, the newest first.
    pub(crate) fn listed(&self, most: usize) -> (Vec<RunKey>, bool) {
        let rank = |phase: Phase| match phase {
            phase if phase.is_held() => 0,
            phase if phase.is_queued() => 1,
            _ => 2,
        };
        let mut runs: Vec<_> = self.runs.iter().collect();
        runs.sort_by_key(|(_, seen)| (rank(seen.phase), std::cmp::Reverse(seen.revision)));
        let over = self.over.iter().rev();
        let keys = runs.into_iter().map(|(key, _)| key).chain(over).cloned();
        let count = self.runs.len() + self.over.len();
        (keys.take(most).collect(), count > most)
    }
}

/// How much longer than a lease another runner waits, for clocks that do not run alike.
pub(crate) const MARGIN: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> RunKey {
        RunKey { repository_id: 1, number, rule: "fix".into() }
    }

    fn run(phase: Phase, queued: i64) -> Run {
        let queued_at = Some(Timestamp::from_unix_micros(queued * 1_000_000));
        Run { phase, queued_at, grace_secs: 5, ..Run::default() }
    }

    #[test]
    fn what_waits_is_found_in_its_order_and_what_is_over_is_forgotten() {
        let (mut view, now) = (View::default(), Instant::now());
        view.note(key(1), Some(&run(Phase::Waiting, 30)), 1, now);
        view.note(key(2), Some(&run(Phase::Waiting, 20)), 2, now);
        view.note(key(3), Some(&run(Phase::Running, 10)), 3, now);
        let later = Timestamp::from_unix_micros(90_000_000);
        let again = Run { not_before: Some(later), ..run(Phase::Again, 10) };
        view.note(key(4), Some(&again), 4, now);
        let at = Timestamp::from_unix_micros(50_000_000);
        assert_eq!(view.due(at), [key(2), key(1)]);
        assert_eq!(view.due(later), [key(4), key(2), key(1)]);
        assert_eq!(view.longest_wait(at), Duration::from_secs(30));
        // An older revision that is read late changes nothing.
        view.note(key(2), Some(&run(Phase::Running, 20)), 6, now);
        view.note(key(2), Some(&run(Phase::Waiting, 20)), 5, now);
        assert_eq!(view.due(at), [key(1)]);
        let over = Run { desired: Desired::Stop, ..run(Phase::Stopped, 20) };
        view.is_read();
        view.note(key(2), Some(&over), 7, now);
        assert_eq!(view.take_ended().into_iter().collect::<Vec<_>>(), [(1, 2)]);
        assert!(view.of_issue(1, 2).is_empty() && !view.knows(&key(2)));
        assert_eq!(view.listed(10), (vec![key(3), key(4), key(1), key(2)], false));
        assert!(view.listed(2).1);
        // Somebody has removed an entry.
        view.is_gone(&key(1), 2);
        assert!(view.knows(&key(1)), "it was written anew");
        view.is_gone(&key(1), 1);
        assert_eq!((view.knows(&key(1)), view.take_ended()), (false, [(1, 1)].into()));
        view.note(key(2), Some(&run(Phase::Waiting, 20)), 8, now);
        assert_eq!(view.listed(10).0.iter().filter(|listed| **listed == key(2)).count(), 1);
    }

    #[test]
    fn what_an_operator_has_stopped_is_remembered_until_it_is_released() {
        let (mut view, now) = (View::default(), Instant::now());
        view.is_read();
        let held = Run { desired: Desired::Stop, held: true, ..run(Phase::Stopped, 1) };
        view.note(key(1), Some(&held), 1, now);
        assert_eq!((view.of_issue(1, 1), view.knows(&key(1))), (vec![key(1)], true));
        assert_eq!(view.take_ended().len(), 1, "somebody may be assigned anew by now");
        view.note(key(1), Some(&Run { held: false, ..held }), 2, now);
        assert!(view.of_issue(1, 1).is_empty() && !view.knows(&key(1)));
        assert_eq!(view.listed(10).0, [key(1)]);
    }

    #[test]
    fn those_are_ahead_that_are_due_and_have_waited_for_longer() {
        let (mut view, now) = (View::default(), Instant::now());
        let other = RunKey { rule: "other".into(), ..key(4) };
        view.note(key(1), Some(&run(Phase::Waiting, 10)), 1, now);
        view.note(key(2), Some(&run(Phase::Waiting, 20)), 2, now);
        view.note(key(3), Some(&run(Phase::Running, 5)), 3, now);
        view.note(other, Some(&run(Phase::Waiting, 15)), 4, now);
        let later = Timestamp::from_unix_micros(90_000_000);
        let again = Run { not_before: Some(later), ..run(Phase::Again, 1) };
        view.note(key(5), Some(&again), 5, now);
        let at = |secs: i64| Timestamp::from_unix_micros(secs * 1_000_000);
        let ahead = |queued, now, live: &[RunKey]| {
            let ahead = view.ahead(Some(at(queued)), now, |key| live.contains(key));
            let of = |rule| ahead.get(rule).copied().unwrap_or(0);
            (of("fix"), of("other"))
        };
        assert_eq!(ahead(10, at(50), &[]), (0, 0));
        assert_eq!(ahead(20, at(50), &[]), (1, 1));
        assert_eq!(ahead(30, at(50), &[]), (2, 1));
        assert_eq!(ahead(30, later, &[]), (3, 1));
        // This runner begins it already.
        assert_eq!(ahead(30, at(50), &[key(1)]), (1, 1));
    }

    #[test]
    fn a_run_is_lost_once_its_runner_must_have_ended_it() {
        let (mut view, now) = (View::default(), Instant::now());
        view.note(key(1), Some(&run(Phase::Running, 1)), 1, now);
        view.note(key(2), Some(&run(Phase::Done, 1)), 2, now);
        let (lease, at) = (Duration::from_secs(10), |secs| now + Duration::from_secs(secs));
        assert_eq!(view.lost(lease, at(17)), []);
        assert_eq!(view.lost(lease, at(18)), [(key(1), 1)]);
        // A renewal, and a time without a connection, begin it anew.
        view.note(key(1), Some(&run(Phase::Running, 1)), 3, at(10));
        assert_eq!(view.lost(lease, at(27)), []);
        view.was_away(at(20));
        assert_eq!(view.lost(lease, at(37)), []);
        assert_eq!(view.lost(lease, at(38)), [(key(1), 3)]);
    }
}
