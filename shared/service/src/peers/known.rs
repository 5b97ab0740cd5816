//! Which other processes there are, as their answers tell. Whoever knows them need not wait for more.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::Instance;

/// How long a process is waited for after its last answer.
const WAITED_FOR: Duration = Duration::from_secs(30);
/// How long it is missed after its last answer. A journal keeps what was published for a day.
const MISSED: Duration = Duration::from_secs(24 * 60 * 60);
/// Processes that are remembered. More are neither waited for nor missed.
const MAX_KNOWN: usize = 256;

/// The other processes that have answered.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By id.
    processes: HashMap<String, Seen>,
    /// By role: when all had the time to answer last.
    rounds: HashMap<&'static str, Instant>,
}

/// A process, and when it answered first and last.
#[derive(Debug)]
struct Seen {
    instance: Instance,
    first: Instant,
    last: Instant,
}

impl Seen {
    fn runs(&self, role: &str) -> bool {
        self.instance.roles.iter().any(|own| own == role)
    }

    /// Whether it is gone, and `other` has come in its place: a restarted process has another id.
    fn is_followed_by(&self, other: &Instance, first: Instant, now: Instant) -> bool {
        self.last < first
            && !is_within(WAITED_FOR, self.last, now)
            && (&self.instance.host, &self.instance.roles) == (&other.host, &other.roles)
    }
}

impl Known {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a process has answered.
    pub(super) fn answered(&self, instance: &Instance, now: Instant) {
        let processes = &mut self.state().processes;
        let first = processes.get(&instance.id).map_or(now, |seen| seen.first);
        processes.retain(|_, seen| {
            is_within(MISSED, seen.last, now) && !seen.is_followed_by(instance, first, now)
        });
        if processes.len() >= MAX_KNOWN && !processes.contains_key(&instance.id) {
            let silent =
                processes.iter().filter(|(_, seen)| !is_within(WAITED_FOR, seen.last, now));
            let longest = silent.min_by_key(|(_, seen)| seen.last).map(|(id, _)| id.clone());
            let Some(longest) = longest else { return };
            processes.remove(&longest);
        }
        let seen = Seen { instance: instance.clone(), first, last: now };
        processes.insert(instance.id.clone(), seen);
    }

    /// Notes that whoever runs `role` had the time to answer.
    pub(super) fn round_over(&self, role: &'static str, now: Instant) {
        self.state().rounds.insert(role, now);
    }

    /// Ids of those who run `role` and have answered lately. None if that is not known, or if it is
    /// nobody.
    pub(super) fn who_runs(&self, role: &'static str, now: Instant) -> Option<Vec<String>> {
        self.who(role, WAITED_FOR, now)
    }

    /// Like [`Known::who_runs`], with those who are silent.
    pub(super) fn who_ran(&self, role: &'static str, now: Instant) -> Option<Vec<String>> {
        self.who(role, MISSED, now)
    }

    fn who(&self, role: &'static str, within: Duration, now: Instant) -> Option<Vec<String>> {
        let state = self.state();
        state.rounds.get(role).filter(|at| is_within(WAITED_FOR, **at, now))?;
        let seen = state.processes.iter().filter(|(_, seen)| is_within(within, seen.last, now));
        let ids: Vec<_> = seen.filter(|(_, s)| s.runs(role)).map(|(id, _)| id.clone()).collect();
        (!ids.is_empty()).then_some(ids)
    }

    /// All that are remembered and run one of `roles`.
    pub(super) fn all(&self, roles: &[&str], now: Instant) -> Vec<Instance> {
        let state = self.state();
        let seen = state.processes.values().filter(|seen| is_within(MISSED, seen.last, now));
        let of_roles = seen.filter(|seen| roles.iter().any(|role| seen.runs(role)));
        of_roles.map(|seen| seen.instance.clone()).collect()
    }
}

fn is_within(time: Duration, at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < time
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, role: &str) -> Instance {
        Instance { id: id.into(), ..Instance::this(vec![role.into()]) }
    }

    #[test]
    fn they_are_known_after_a_round_and_until_they_are_silent_for_long() {
        let (known, start) = (Known::default(), Instant::now());
        let at = |secs| start + Duration::from_secs(secs);
        known.answered(&instance("a", "worker"), start);
        assert_eq!(known.who_runs("worker", start), None, "there may be more");
        known.round_over("worker", start);
        assert_eq!(known.who_runs("worker", at(29)), Some(vec!["a".into()]));
        assert_eq!(known.who_runs("ingest", at(1)), None);
        known.answered(&instance("b", "worker"), at(20));
        known.round_over("worker", at(20));
        assert_eq!(known.who_runs("worker", at(31)), Some(vec!["b".into()]), "a was killed");
        assert_eq!(known.who_runs("worker", at(50)), None);
    }

    #[test]
    fn who_is_silent_is_missed_for_a_day_or_until_another_comes_in_its_place() {
        let (known, start) = (Known::default(), Instant::now());
        let at = |secs| start + Duration::from_secs(secs);
        let missed = |secs| {
            let mut ids: Vec<_> =
                known.all(&["ingest"], at(secs)).into_iter().map(|instance| instance.id).collect();
            ids.sort();
            ids
        };
        let on = |id: &str, host: &str| Instance { host: host.into(), ..instance(id, "ingest") };
        for (secs, id, host) in [(0, "a", "one"), (0, "b", "two"), (5, "c", "one")] {
            known.answered(&on(id, host), at(secs));
        }
        known.answered(&instance("w", "worker"), at(5));
        // Two on one machine: the one that goes on takes nobody's place.
        known.answered(&on("a", "one"), at(100));
        known.round_over("ingest", at(100));
        assert_eq!(missed(100), ["a", "b", "c"]);
        assert_eq!(known.who_runs("ingest", at(100)), Some(vec!["a".into()]));
        assert_eq!(known.who_ran("ingest", at(100)).map(|ids| ids.len()), Some(3));
        // b was started anew, and c too.
        known.answered(&on("b2", "two"), at(110));
        known.answered(&on("c2", "one"), at(120));
        assert_eq!(missed(120), ["a", "b2", "c2"]);
        assert_eq!(missed(120 + 24 * 60 * 60), [""; 0]);
    }

    #[test]
    fn a_crowd_that_has_gone_keeps_nobody_out() {
        let (known, start) = (Known::default(), Instant::now());
        for n in 0..MAX_KNOWN {
            let host = n.to_string();
            known.answered(&Instance { host, ..instance(&n.to_string(), "worker") }, start);
        }
        let later = start + WAITED_FOR;
        known.answered(&instance("new", "worker"), later);
        known.round_over("worker", later);
        assert_eq!(known.who_runs("worker", later), Some(vec!["new".into()]));
        assert_eq!(known.all(&["worker"], later).len(), MAX_KNOWN);
    }

    #[test]
    fn a_crowd_takes_no_memory() {
        let (known, now) = (Known::default(), Instant::now());
        for n in 0..2 * MAX_KNOWN {
            known.answered(&instance(&n.to_string(), "worker"), now);
        }
        known.round_over("worker", now);
        assert_eq!(known.who_runs("worker", now).map(|ids| ids.len()), Some(MAX_KNOWN));
    }
}
