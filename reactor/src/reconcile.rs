//! What becomes of a run, by what is wanted and how far it is. Pure functions: no IO, no clock.
//!
//! Architecture invariant: what is wanted comes from the issue's state alone. A change says only
//! which issue to look at, and whether somebody was assigned anew, after a run that is over.

use contract::timestamp::Timestamp;

use crate::{
    process::Ended,
    rules::{CLOSED, DELETED, OnRestart, RULE_GONE, Rule, UNASSIGNED, Want},
    run::{Desired, Ending, Extent, Phase, Run},
};

/// An hour, in seconds.
const HOUR: i64 = 3600;
/// First wait of a run that is tried again, in seconds.
const FIRST_WAIT: i64 = 10;
/// Longest wait of a run that is tried again, in seconds.
const LONGEST_WAIT: i64 = 600;
/// Losses of its runner in a row after which a command begins no more. It may be what takes runners
/// down. A rolling update of many runners moves a run less often.
const MOST_LOSSES: u32 = 10;
/// A run that has lived for longer, in seconds, does not take its runner down.
const LONG_LIFE: i64 = 600;

/// Attempts to tell an address of the end of a run. Later nobody wants to know.
const MOST_TELLINGS: u32 = 12;

/// What is known when an issue is looked at.
#[derive(Clone, Debug)]
pub struct Look<'a> {
    /// Whether the issue wants the run.
    pub want: &'a Want,
    /// The rule, as far as this runner has it.
    pub rule: Option<&'a Rule>,
    /// The bucket, where there is no entry of the run. Its last revision is larger than each generation that
    /// a run of this issue and rule has had.
    pub bucket: Option<Extent>,
    /// `owner/name#number`.
    pub issue: &'a str,
    /// The delivery that led to the issue's state.
    pub delivery_id: &'a str,
    /// The change that had it looked at, if one had.
    pub told: Option<&'a Told>,
    /// Now, by our clock.
    pub now: Timestamp,
}

/// The change that had an issue looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Its sequence in the stream of changes.
    pub sequence: u64,
    /// The delivery that it follows from.
    pub delivery_id: String,
    /// When that was received.
    pub received_at: Option<Timestamp>,
    /// Trace context of the change.
    pub traceparent: Option<String>,
    /// The person of the rule is among those whom it assigned, or it reopened the issue.
    pub is_anew: bool,
}

/// What to do about a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Keep,
    /// Write this entry in place of the one that was looked at.
    Write(Box<Run>),
}

/// What becomes of a run when its issue is looked at. Repeated, it ends in a state that it keeps.
pub fn reconcile(found: Option<&Run>, look: &Look<'_>) -> Step {
    match (found, look.want) {
        (_, Want::Unknown) | (None, Want::No(_)) => Step::Keep,
        (None, Want::Yes(_)) => queue(None, look),
        (Some(run), Want::No(reason)) if run.desired == Desired::Stop => release(run, reason),
        (Some(run), Want::No(reason)) => {
            let told_at = look.told.and_then(|told| told.received_at).unwrap_or(look.now);
            Step::Write(Box::new(stop(run, reason, told_at, look.now)))
        }
        (Some(run), Want::Yes(_)) => wanted(run, look),
    }
}

fn wanted(run: &Run, look: &Look<'_>) -> Step {
    // One that is being stopped ends first. Its runner looks at the issue again then.
    let anew = look.told.filter(|told| is_anew(run, told));
    if !run.phase.is_over() {
        return match anew {
            // No change says so once more when it has ended.
            Some(told) if run.held => Step::Write(Box::new(Run {
                held: false,
                change: told.sequence,
                lease: run.lease + 1,
                ..run.clone()
            })),
            _ => Step::Keep,
        };
    }
    let is_anew = anew.is_some();
    match run.desired {
        Desired::Stop if run.held && !is_anew => Step::Keep,
        Desired::Stop => queue(Some(run), look),
        Desired::Run if is_anew => queue(Some(run), look),
        Desired::Run => Step::Keep,
    }
}

/// Forgets that an operator has stopped a run whose issue is not assigned any more: whoever is assigned
/// from now on is assigned anew.
fn release(run: &Run, reason: &str) -> Step {
    let is_gone = [UNASSIGNED, CLOSED, DELETED].contains(&reason);
    if run.held && run.phase.is_over() && is_gone {
        Step::Write(Box::new(Run { held: false, lease: run.lease + 1, ..run.clone() }))
    } else {
        Step::Keep
    }
}

/// Whether the change assigned somebody after the run was queued. The state for which it was queued
/// may have held that already. The times are of two clocks, and a wrong one costs a run at most.
fn is_anew(run: &Run, told: &Told) -> bool {
    let is_later = match (told.received_at, run.queued_at) {
        (Some(received), Some(queued)) => received >= queued,
        _ => true,
    };
    let is_another = told.sequence > run.change && told.delivery_id != run.delivery_id;
    told.is_anew && is_another && is_later
}

/// The entry of a run that is not wanted any more.
fn stop(run: &Run, reason: &str, told_at: Timestamp, now: Timestamp) -> Run {
    let mut run = Run { desired: Desired::Stop, stop_reason: reason.to_owned(), ..run.clone() };
    run.stop_told_at = Some(told_at);
    match run.phase {
        // Its runner ends it.
        Phase::Starting | Phase::Running | Phase::Stopping | Phase::Stopped => {}
        // Whoever took the call is told of the end.
        _ if was_told(&run) => {
            (run.phase, run.not_before, run.attempt) = (Phase::Waiting, None, 0);
        }
        Phase::Waiting | Phase::Again => {
            (run.phase, run.ended_at, run.not_before) = (Phase::Stopped, Some(now), None);
        }
        Phase::Done | Phase::Failed => {}
    }
    run
}

/// Whether somebody may have taken the call, who is then told of the end.
fn was_told(run: &Run) -> bool {
    run.is_call && run.attempt > 0
}

/// The next run of an issue and rule, or the note that there were too many.
fn queue(before: Option<&Run>, look: &Look<'_>) -> Step {
    let (Some(rule), Want::Yes(person)) = (look.rule, look.want) else { return Step::Keep };
    let now = look.now.unix_micros() / 1_000_000;
    let mut recent: Vec<i64> = before.map(|run| run.recent.clone()).unwrap_or_default();
    // A clock that was far ahead must not count for longer.
    recent.retain(|at| (now - at).abs() < HOUR);
    let too_many = recent.len() >= rule.max_runs_per_hour;
    if !too_many {
        recent.push(now);
    }
    let (generation, bucket_created_at) = match (before, look.bucket) {
        (Some(run), _) => (run.generation + 1, run.bucket_created_at),
        (None, Some(bucket)) => (bucket.last + 1, Some(bucket.created_at)),
        (None, None) => (1, None),
    };
    let told = look.told;
    let run = Run {
        generation,
        bucket_created_at,
        desired: Desired::Run,
        phase: if too_many { Phase::Failed } else { Phase::Waiting },
        issue: look.issue.to_owned(),
        person: Some(person.clone()),
        change: told.map_or_else(|| before.map_or(0, |run| run.change), |told| told.sequence),
        delivery_id: look.delivery_id.to_owned(),
        traceparent: told.and_then(|told| told.traceparent.clone()),
        told_at: told.and_then(|told| told.received_at),
        queued_at: Some(look.now),
        ended_at: too_many.then_some(look.now),
        ended: too_many.then_some(Ending::TooMany),
        recent,
        grace_secs: rule.grace_secs(),
        on_restart: rule.on_restart,
        is_call: rule.is_call(),
        // A lease never counts down, so that no revision has the content of another.
        lease: before.map_or(0, |run| run.lease) + 1,
        ..Run::default()
    };
    Step::Write(Box::new(run))
}

/// The entry with which a runner takes a run that waits. None if it is not to be taken now.
pub fn claim(run: &Run, host: &str, now: Timestamp) -> Option<Run> {
    let is_due = run.not_before.is_none_or(|at| at <= now);
    if !run.phase.is_queued() || !is_due || (run.desired == Desired::Stop && !run.is_call) {
        return None;
    }
    Some(Run {
        phase: Phase::Starting,
        host: host.to_owned(),
        lease: run.lease + 1,
        attempt: run.attempt + 1,
        tells_end: run.desired == Desired::Stop,
        not_before: None,
        ..run.clone()
    })
}

/// The entry with which the work of an attempt may begin. None if it is to stop, or if another
/// runner has it.
pub fn begin(run: &Run, host: &str, now: Timestamp) -> Option<Run> {
    let is_wanted = run.desired == Desired::Run || run.is_call;
    let is_ours = run.phase == Phase::Starting && run.host == host;
    (is_wanted && is_ours).then(|| Run {
        phase: Phase::Running,
        lease: run.lease + 1,
        started_at: Some(now),
        ended_at: None,
        ended: None,
        ..run.clone()
    })
}

/// The entry with which a runner keeps a run for another lease.
pub fn renew(run: &Run, now: Timestamp) -> Run {
    let mut run = Run { lease: run.lease + 1, ..run.clone() };
    let lived = run.started_at.map_or(0, |at| now.unix_micros() - at.unix_micros());
    if lived > LONG_LIFE * 1_000_000 {
        run.losses = 0;
    }
    run
}

/// The entry after an attempt has ended. `jitter` from 0 to 1 draws the wait of one that is tried
/// again.
pub fn end(run: &Run, mut ending: Ending, now: Timestamp, jitter: f64) -> Run {
    let mut run = Run { host: String::new(), lease: run.lease + 1, ..run.clone() };
    let is_wanted = run.desired == Desired::Run;
    let reruns = run.is_call || (is_wanted && run.on_restart == OnRestart::Rerun);
    let is_lost = ending.is_loss();
    // `running` is written before anything begins, so that one that starts has not begun.
    let has_begun = run.phase != Phase::Starting;
    run.losses = match &ending {
        _ if is_lost => run.losses + u32::from(has_begun),
        Ending::Unavailable(_) => run.losses,
        _ => 0,
    };
    // By which of the attempts that count the wait grows.
    let mut waits = run.attempt;
    run.phase = match &ending {
        _ if is_lost && !has_begun && is_wanted => Phase::Waiting,
        _ if is_lost && reruns && !run.is_call && run.losses >= MOST_LOSSES => {
            ending = Ending::LostTooOften;
            Phase::Failed
        }
        // A runner that is started anew, or moved, keeps nobody waiting.
        _ if is_lost && reruns && run.losses < 2 => Phase::Waiting,
        _ if is_lost && reruns => {
            waits = run.losses - 1;
            Phase::Again
        }
        Ending::Unavailable(_) if is_wanted || (run.tells_end && run.attempt < MOST_TELLINGS) => {
            Phase::Again
        }
        // Whoever may have taken the call is told of the end.
        _ if !is_wanted
            && run.is_call
            && !run.tells_end
            && (has_begun || run.started_at.is_some()) =>
        {
            run.attempt = 0;
            Phase::Waiting
        }
        _ if !is_wanted => Phase::Stopped,
        Ending::Accepted | Ending::Process(Ended::Exited(0)) => Phase::Done,
        Ending::Process(Ended::Exited(AGAIN)) => Phase::Again,
        _ => Phase::Failed,
    };
    if run.phase == Phase::Again {
        let doubled = FIRST_WAIT << waits.saturating_sub(1).min(10);
        let longest = doubled.min(LONGEST_WAIT) as f64;
        let wait = (longest * (0.5 + jitter / 2.0) * 1e6) as i64;
        run.not_before = Some(Timestamp::from_unix_micros(now.unix_micros() + wait));
    }
    (run.ended_at, run.ended) = (Some(now), Some(ending));
    run
}

/// Exit code of a command that wants to be tried again later (`EX_TEMPFAIL` of sysexits.h).
pub const AGAIN: i32 = 75;

/// Why a run is stopped that an operator stops.
pub const BY_HAND: &str = "by hand";

/// Whether an operator can stop a run. One that is over has nothing to stop, but for a call: whoever
/// took it is told of the end.
pub fn can_be_stopped(run: &Run) -> bool {
    run.desired == Desired::Run && (!run.phase.is_over() || was_told(run))
}

/// The entry of a run that an operator stops. None if there is nothing to stop.
pub fn stop_by_hand(run: &Run, now: Timestamp) -> Option<Run> {
    can_be_stopped(run).then(|| Run { held: true, ..stop(run, BY_HAND, now, now) })
}

/// The entry of a run that waits, and whose rule no runner has any more. None if it does not wait. Whoever
/// took its call is not told of the end: that takes the rule.
pub fn give_up(run: &Run, now: Timestamp) -> Option<Run> {
    let is_wanted = run.desired == Desired::Run;
    run.phase.is_queued().then(|| Run {
        desired: Desired::Stop,
        phase: Phase::Stopped,
        stop_reason: if is_wanted { RULE_GONE.into() } else { run.stop_reason.clone() },
        stop_told_at: if is_wanted { Some(now) } else { run.stop_told_at },
        ended_at: Some(now),
        not_before: None,
        lease: run.lease + 1,
        ..run.clone()
    })
}

/// The entry of a run that an operator starts once more. None while one is under way. It begins only
/// if the issue still wants it.
pub fn again_by_hand(run: &Run, now: Timestamp) -> Option<Run> {
    if run.phase == Phase::Again {
        return Some(Run { not_before: Some(now), lease: run.lease + 1, ..run.clone() });
    }
    run.phase.is_over().then(|| Run {
        generation: run.generation + 1,
        desired: Desired::Run,
        phase: Phase::Waiting,
        lease: run.lease + 1,
        queued_at: Some(now),
        issue: run.issue.clone(),
        person: run.person.clone(),
        change: run.change,
        delivery_id: run.delivery_id.clone(),
        traceparent: run.traceparent.clone(),
        recent: run.recent.clone(),
        bucket_created_at: run.bucket_created_at,
        grace_secs: run.grace_secs,
        on_restart: run.on_restart,
        is_call: run.is_call,
        ..Run::default()
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use contract::issue_state::Person;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        process::Limits,
        rules::{CommandRule, Wanted, Who, Work},
    };

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_unix_micros((1_700_000_000 + secs) * 1_000_000)
    }

    fn rule(on_restart: OnRestart) -> Rule {
        let limits = Limits {
            time: None,
            memory_bytes: None,
            output_bytes: 1024,
            grace: Duration::from_secs(7),
        };
        Rule {
            name: "fix".into(),
            who: Who {
                person: Wanted::Login("bot".into()),
                owner: None,
                repository: None,
                label: None,
            },
            work: Work::Command(CommandRule {
                argv: vec!["/bin/true".into()],
                directory: None,
                user: None,
                environment: Vec::new(),
                limits,
            }),
            concurrency: 1,
            on_restart,
            max_runs_per_hour: 3,
        }
    }

    fn yes() -> Want {
        Want::Yes(Person { id: 4, login: "bot".into() })
    }

    fn told(sequence: u64) -> Told {
        Told {
            sequence,
            delivery_id: format!("d{sequence}"),
            received_at: Some(at(100 + sequence as i64)),
            traceparent: None,
            is_anew: true,
        }
    }

    fn look<'a>(want: &'a Want, rule: &'a Rule, told: Option<&'a Told>) -> Look<'a> {
        let delivery_id = told.map_or("", |told| &told.delivery_id);
        let (rule, issue) = (Some(rule), "acme/widgets#7");
        Look { want, rule, bucket: None, issue, delivery_id, told, now: at(100) }
    }

    fn written(step: Step) -> Option<Run> {
        match step {
            Step::Keep => None,
            Step::Write(run) => Some(*run),
        }
    }

    #[test]
    fn what_becomes_of_a_run_by_what_is_wanted_and_how_far_it_is() {
        use Desired::{Run as Wanted, Stop};
        use Phase::*;
        let (rule, no) = (rule(OnRestart::Stop), Want::No("closed"));
        for (phase, desired, want, anew, expected) in [
            // Live: it goes on, or its runner is told to end it.
            (Waiting, Wanted, &yes(), true, None),
            (Running, Wanted, &yes(), true, None),
            (Running, Wanted, &no, false, Some((Running, Stop, 1))),
            (Starting, Wanted, &no, false, Some((Starting, Stop, 1))),
            (Running, Wanted, &Want::Unknown, false, None),
            // One that nobody has begun ends at once.
            (Waiting, Wanted, &no, false, Some((Stopped, Stop, 1))),
            (Again, Wanted, &no, false, Some((Stopped, Stop, 1))),
            // Told already.
            (Running, Stop, &no, false, None),
            // Wanted once more while it ends: its runner looks again.
            (Running, Stop, &yes(), true, None),
            (Stopping, Stop, &yes(), true, None),
            (Stopped, Stop, &yes(), false, Some((Waiting, Wanted, 2))),
            // Over: it stays so until somebody is assigned anew.
            (Done, Wanted, &yes(), false, None),
            (Done, Wanted, &yes(), true, Some((Waiting, Wanted, 2))),
            (Failed, Wanted, &yes(), true, Some((Waiting, Wanted, 2))),
            (Done, Wanted, &no, false, Some((Done, Stop, 1))),
            (Done, Stop, &yes(), false, Some((Waiting, Wanted, 2))),
        ] {
            let run = Run { generation: 1, phase, desired, change: 5, ..Run::default() };
            let told = Told { is_anew: anew, ..told(9) };
            let step = reconcile(Some(&run), &look(want, &rule, Some(&told)));
            let found = written(step).map(|run| (run.phase, run.desired, run.generation));
            assert_eq!(found, expected, "{phase} {desired:?} {want:?} {anew}");
        }
        assert_eq!(reconcile(None, &look(&no, &rule, None)), Step::Keep);
    }

    #[test]
    fn a_change_that_the_run_follows_from_begins_no_other() {
        let rule = rule(OnRestart::Stop);
        let done = Run {
            generation: 1,
            phase: Phase::Done,
            change: 5,
            delivery_id: "d7".into(),
            ..Run::default()
        };
        // A repeat, one that came before, and one that the issue's state held already.
        for sequence in [5, 4, 7] {
            let told = told(sequence);
            assert_eq!(reconcile(Some(&done), &look(&yes(), &rule, Some(&told))), Step::Keep);
        }
        let told = told(8);
        let next = written(reconcile(Some(&done), &look(&yes(), &rule, Some(&told))));
        assert_eq!(next.map(|run| (run.generation, run.change)), Some((2, 8)));
    }

    #[test]
    fn a_loop_is_broken_and_runs_again_after_an_hour() {
        let rule = rule(OnRestart::Stop);
        let mut run: Option<Run> = None;
        let mut queued = Vec::new();
        for sequence in 1..=6 {
            let told = told(sequence);
            let mut next = written(reconcile(run.as_ref(), &look(&yes(), &rule, Some(&told))))
                .expect("an entry");
            queued.push(next.phase == Phase::Waiting);
            if next.phase == Phase::Waiting {
                next = end(&next, Ending::Process(Ended::Exited(0)), at(100), 0.0);
            } else {
                assert_eq!(next.ended, Some(Ending::TooMany));
            }
            run = Some(next);
        }
        assert_eq!(queued, [true, true, true, false, false, false]);
        let told = told(7);
        let want = yes();
        let later = Look { now: at(100 + HOUR), ..look(&want, &rule, Some(&told)) };
        let next = written(reconcile(run.as_ref(), &later)).expect("an entry");
        assert_eq!((next.phase, next.recent.len()), (Phase::Waiting, 1));
        // So does one whose times are of a clock that was far ahead.
        let earlier = Look { now: at(100 - HOUR), ..look(&want, &rule, Some(&told)) };
        let next = written(reconcile(run.as_ref(), &earlier)).expect("an entry");
        assert_eq!((next.phase, next.recent.len()), (Phase::Waiting, 1));
    }

    #[test]
    fn each_ending_has_its_phase() {
        use Ending::*;
        for (ending, rerun, wanted, expected) in [
            (Process(Ended::Exited(0)), false, true, Phase::Done),
            (Process(Ended::Exited(1)), false, true, Phase::Failed),
            (Process(Ended::Exited(75)), false, true, Phase::Again),
            (Process(Ended::Exited(75)), false, false, Phase::Stopped),
            (Process(Ended::Signaled(9)), false, true, Phase::Failed),
            (Process(Ended::TimeLimit), false, true, Phase::Failed),
            (Process(Ended::Stopped { killed: true }), false, false, Phase::Stopped),
            (Process(Ended::Exited(0)), false, false, Phase::Stopped),
            (NotStarted("x".into()), true, true, Phase::Failed),
            (RunnerLost, false, true, Phase::Failed),
            (RunnerLost, true, true, Phase::Waiting),
            (RunnerLost, true, false, Phase::Stopped),
            (Process(Ended::LeaseOver), true, true, Phase::Waiting),
            (RunnerStopped, true, true, Phase::Waiting),
        ] {
            let run = Run {
                phase: Phase::Running,
                attempt: 1,
                desired: if wanted { Desired::Run } else { Desired::Stop },
                on_restart: if rerun { OnRestart::Rerun } else { OnRestart::Stop },
                ..Run::default()
            };
            let ended = end(&run, ending.clone(), at(0), 1.0);
            assert_eq!(ended.phase, expected, "{ending:?} {rerun} {wanted}");
            assert_eq!(ended.host, "");
        }
    }

    #[test]
    fn what_has_not_begun_begins_later() {
        for (phase, wanted, ending, expected) in [
            (Phase::Starting, true, Ending::RunnerLost, Phase::Waiting),
            (Phase::Starting, false, Ending::RunnerLost, Phase::Stopped),
            (Phase::Running, true, Ending::RunnerLost, Phase::Failed),
            (Phase::Starting, true, Ending::Unavailable("x".into()), Phase::Again),
            (Phase::Running, true, Ending::Unavailable("x".into()), Phase::Again),
            (Phase::Running, false, Ending::Unavailable("x".into()), Phase::Stopped),
        ] {
            let desired = if wanted { Desired::Run } else { Desired::Stop };
            let run = Run { phase, desired, attempt: 1, ..Run::default() };
            let ended = end(&run, ending.clone(), at(0), 1.0);
            assert_eq!(ended.phase, expected, "{phase} {wanted} {ending:?}");
        }
    }

    #[test]
    fn waits_before_another_attempt_grow_to_a_limit() {
        let wait = |attempt| {
            let run = Run { phase: Phase::Running, attempt, ..Run::default() };
            let run = end(&run, Ending::Process(Ended::Exited(AGAIN)), at(0), 1.0);
            let until = run.not_before.expect("a time");
            assert_eq!(
                claim(&run, "h", Timestamp::from_unix_micros(until.unix_micros() - 1)),
                None
            );
            assert!(claim(&run, "h", until).is_some());
            (until.unix_micros() - at(0).unix_micros()) / 1_000_000
        };
        assert_eq!([1, 2, 3, 7, 100].map(wait), [10, 20, 40, 600, 600]);
    }

    /// A run that begins at `start` and is lost at once, or after it was renewed at `renewed`.
    fn lost(run: &Run, start: i64, renewed: Option<i64>, ending: Ending) -> Run {
        let due = run.not_before.unwrap_or(at(0)).max(at(start));
        let claimed = claim(run, "h", due).expect("a claim");
        let begun = begin(&claimed, "h", at(start)).expect("a beginning");
        let lived = renewed.map_or(begun.clone(), |renewed| renew(&begun, at(renewed)));
        end(&lived, ending, at(0), 1.0)
    }

    #[test]
    fn a_run_that_loses_one_runner_after_another_waits_for_longer_and_is_given_up() {
        let endings =
            [Ending::RunnerLost, Ending::RunnerStopped, Ending::Process(Ended::LeaseOver)];
        let mut run = Run { on_restart: OnRestart::Rerun, ..Run::default() };
        let mut waits = Vec::new();
        for ending in endings.iter().cycle().take(9) {
            run = lost(&run, 0, Some(599), ending.clone());
            assert!(run.phase.is_queued() && run.ended.as_ref() == Some(ending));
            let until = run.not_before.map(|until| until.unix_micros() - at(0).unix_micros());
            waits.push(until.unwrap_or(0) / 1_000_000);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 320, 600, 600]);
        let given_up = lost(&run, 0, None, Ending::RunnerLost);
        assert_eq!((given_up.phase, given_up.ended), (Phase::Failed, Some(Ending::LostTooOften)));
        // One that is moved now and then goes on for ever.
        for _ in 0..30 {
            run = lost(&run, 0, Some(601), Ending::RunnerStopped);
            assert_eq!((run.phase, run.not_before), (Phase::Waiting, None));
        }
        // So does one that ends by itself in between.
        run = lost(&run, 0, None, Ending::RunnerLost);
        let exits = Ending::Process(Ended::Exited(AGAIN));
        assert_eq!(lost(&run, 0, None, exits).losses, 0);
    }

    #[test]
    fn what_a_runner_did_not_begin_has_not_ended_it_and_a_call_is_never_given_up() {
        let run = Run { on_restart: OnRestart::Rerun, losses: 9, ..Run::default() };
        let claimed = claim(&run, "h", at(0)).expect("a claim");
        let ended = end(&claimed, Ending::RunnerLost, at(0), 1.0);
        assert_eq!((ended.phase, ended.losses), (Phase::Waiting, 9));
        let call = Run { is_call: true, ..run };
        let ended = lost(&call, 0, None, Ending::RunnerLost);
        assert_eq!((ended.phase, ended.losses), (Phase::Again, 10));
        let until = Timestamp::from_unix_micros(at(0).unix_micros() + 600_000_000);
        assert_eq!(ended.not_before, Some(until));
    }

    #[test]
    fn whoever_is_assigned_anew_while_a_run_stopped_by_hand_ends_gets_the_next_one() {
        let rule = rule(OnRestart::Stop);
        let run = Run { generation: 1, phase: Phase::Running, change: 5, ..Run::default() };
        let held = stop_by_hand(&run, at(0)).expect("an entry");
        let (before, anew) = (told(5), told(6));
        assert_eq!(reconcile(Some(&held), &look(&yes(), &rule, Some(&before))), Step::Keep);
        let freed = written(reconcile(Some(&held), &look(&yes(), &rule, Some(&anew))));
        let freed = freed.expect("an entry");
        assert_eq!((freed.held, freed.desired, freed.change), (false, Desired::Stop, 6));
        assert_eq!(reconcile(Some(&freed), &look(&yes(), &rule, Some(&anew))), Step::Keep);
        let over = end(&freed, Ending::Process(Ended::Stopped { killed: false }), at(0), 0.0);
        // Its runner looks at it then, and has no news.
        let next = written(reconcile(Some(&over), &look(&yes(), &rule, None)));
        assert_eq!(next.map(|run| (run.phase, run.generation)), Some((Phase::Waiting, 2)));
    }

    #[test]
    fn whoever_took_a_call_is_told_of_the_end() {
        let called = Run { is_call: true, phase: Phase::Done, attempt: 1, ..Run::default() };
        let rule = rule(OnRestart::Rerun);
        let told = written(reconcile(Some(&called), &look(&Want::No("closed"), &rule, None)));
        let told = told.expect("an entry");
        assert_eq!((told.phase, told.desired), (Phase::Waiting, Desired::Stop));
        let claimed = claim(&told, "h", at(0)).expect("a claim");
        assert!(claimed.tells_end && begin(&claimed, "h", at(0)).is_some());
        let ended = end(&claimed, Ending::Accepted, at(0), 0.0);
        assert_eq!(ended.phase, Phase::Stopped);
        // Nobody was called.
        let waiting = Run { is_call: true, ..Run::default() };
        let step = reconcile(Some(&waiting), &look(&Want::No("closed"), &rule, None));
        assert_eq!(written(step).map(|run| run.phase), Some(Phase::Stopped));
        // The end was told while the call was under way.
        let stopped = Run { desired: Desired::Stop, phase: Phase::Running, ..called };
        let ended = end(&stopped, Ending::Accepted, at(0), 0.0);
        assert_eq!(ended.phase, Phase::Waiting);
        // It was given back before anybody was called.
        let given_back = Run { phase: Phase::Starting, ..stopped };
        let nobody = Ending::Process(Ended::Stopped { killed: false });
        assert_eq!(end(&given_back, nobody.clone(), at(0), 0.0).phase, Phase::Stopped);
        let called_before = Run { started_at: Some(at(0)), ..given_back };
        assert_eq!(end(&called_before, nobody, at(0), 0.0).phase, Phase::Waiting);
    }

    #[test]
    fn by_hand_a_run_stops_until_somebody_is_assigned_anew_and_begins_again() {
        let rule = rule(OnRestart::Stop);
        let run = Run { generation: 1, phase: Phase::Running, change: 5, ..Run::default() };
        let held = stop_by_hand(&run, at(0)).expect("an entry");
        assert_eq!(stop_by_hand(&held, at(0)), None);
        let stopped = end(&held, Ending::Process(Ended::Stopped { killed: false }), at(0), 0.0);
        let same = told(5);
        assert_eq!(reconcile(Some(&stopped), &look(&yes(), &rule, Some(&same))), Step::Keep);
        let next = told(6);
        assert!(written(reconcile(Some(&stopped), &look(&yes(), &rule, Some(&next)))).is_some());
        assert_eq!(again_by_hand(&run, at(0)), None, "one is under way");
        let again = again_by_hand(&stopped, at(0)).expect("an entry");
        assert_eq!((again.generation, again.held, again.phase), (2, false, Phase::Waiting));
    }

    #[test]
    fn what_was_stopped_by_hand_is_settled_once_nobody_is_assigned() {
        let rule = rule(OnRestart::Stop);
        let run = Run { generation: 4, phase: Phase::Running, change: 5, ..Run::default() };
        let held = stop_by_hand(&run, at(0)).expect("an entry");
        let kept = |run: &Run, want| reconcile(Some(run), &look(&want, &rule, None)) == Step::Keep;
        // Its runner still ends it.
        assert!(kept(&held, Want::No("unassigned")));
        let over = end(&held, Ending::Process(Ended::Stopped { killed: false }), at(0), 0.0);
        assert!(!over.is_settled(), "it keeps the next one from beginning");
        // Nobody was unassigned by that.
        for reason in ["elsewhere", "without the label", "rule gone"] {
            assert!(kept(&over, Want::No(reason)), "{reason}");
        }
        for reason in ["unassigned", "closed", "deleted"] {
            let next = reconcile(Some(&over), &look(&Want::No(reason), &rule, None));
            let next = written(next).expect("an entry");
            assert!(next.is_settled() && next.generation == 4, "{reason}: {next:?}");
            assert!(kept(&next, Want::No(reason)));
            let next = written(reconcile(Some(&next), &look(&yes(), &rule, None)));
            assert_eq!(next.map(|run| (run.phase, run.generation)), Some((Phase::Waiting, 5)));
        }
    }

    #[test]
    fn a_run_whose_rule_nobody_has_is_given_up_while_it_waits() {
        for (phase, desired, is_call, expected) in [
            (Phase::Waiting, Desired::Run, false, Some("rule gone")),
            (Phase::Again, Desired::Run, true, Some("rule gone")),
            // Nobody is left to tell of its end.
            (Phase::Waiting, Desired::Stop, true, Some("closed")),
            (Phase::Starting, Desired::Run, false, None),
            (Phase::Running, Desired::Run, false, None),
            (Phase::Done, Desired::Run, false, None),
            (Phase::Stopped, Desired::Stop, false, None),
        ] {
            let stop_reason = if desired == Desired::Stop { "closed" } else { "" }.to_owned();
            let run = Run { phase, desired, is_call, stop_reason, attempt: 1, ..Run::default() };
            let next = give_up(&run, at(0));
            assert!(next.as_ref().is_none_or(Run::is_settled), "{next:?}");
            assert_eq!(next.as_ref().map(|run| run.stop_reason.as_str()), expected, "{phase}");
        }
    }

    proptest! {
        /// The id of a run is of no other one, also after its entry was removed and made anew. Other
        /// entries of the bucket raise the revision too.
        #[test]
        fn a_generation_never_comes_again(
            all in proptest::collection::vec((0..6_u8, 0..3_u64), 1..80),
        ) {
            let rule = Rule { max_runs_per_hour: 1000, ..rule(OnRestart::Stop) };
            // The entry with its revision, and the last revision of the bucket.
            let (mut entry, mut last): (Option<(Run, u64)>, u64) = (None, 0);
            let mut generations = Vec::new();
            for (what, others) in all {
                last += others;
                let run = entry.as_ref().map(|(run, _)| run);
                let looked = |want: &Want| {
                    let told = Told { sequence: last + 1, ..told(9) };
                    let bucket = Some(Extent { created_at: at(0), last });
                    let look = Look { bucket, ..look(want, &rule, Some(&told)) };
                    written(reconcile(run, &look))
                };
                let exits = Ending::Process(Ended::Exited(0));
                let next = match (what, run) {
                    (0 | 1, _) => looked(&yes()),
                    (2, _) => looked(&Want::No("closed")),
                    (3, Some(run)) => again_by_hand(run, at(0)),
                    (4, Some(run)) => claim(run, "a", at(0)).map(|run| end(&run, exits, at(0), 0.0)),
                    // It was over for long enough.
                    (_, Some(run)) if run.is_settled() => {
                        entry = None;
                        continue;
                    }
                    _ => None,
                };
                let Some(next) = next else { continue };
                last += 1;
                prop_assert!(next.generation <= last, "{} at {}", next.generation, last);
                if entry.as_ref().is_none_or(|(run, _)| run.generation != next.generation) {
                    generations.push(next.generation);
                }
                entry = Some((next, last));
            }
            prop_assert!(generations.is_sorted_by(|one, next| one < next), "{:?}", generations);
        }
    }

    /// What may happen to an entry.
    #[derive(Clone, Copy, Debug)]
    enum Happens {
        Assigned,
        Gone,
        Looked,
        Claimed(usize),
        Begun(usize),
        Ended(usize, u8),
        TakenOver(usize),
        StoppedByHand,
        AgainByHand,
    }

    fn happens() -> impl Strategy<Value = Happens> {
        prop_oneof![
            1 => Just(Happens::Assigned),
            1 => Just(Happens::Gone),
            3 => Just(Happens::Looked),
            2 => (0..2_usize).prop_map(Happens::Claimed),
            2 => (0..2_usize).prop_map(Happens::Begun),
            2 => (0..2_usize, 0..5_u8).prop_map(|(host, how)| Happens::Ended(host, how)),
            1 => (0..2_usize).prop_map(Happens::TakenOver),
            1 => Just(Happens::StoppedByHand),
            1 => Just(Happens::AgainByHand),
        ]
    }

    const HOSTS: [&str; 2] = ["a", "b"];

    proptest! {
        /// Whatever happens in whatever order, at most one runner works at a run, nothing begins after
        /// the stop is written, and what follows ends in the desired state.
        #[test]
        fn from_any_state_it_ends_in_the_desired_one_and_never_runs_twice(
            all in proptest::collection::vec(happens(), 0..60),
            reruns in any::<bool>(),
            is_call in any::<bool>(),
        ) {
            let rule = Rule {
                max_runs_per_hour: 1000,
                ..rule(if reruns { OnRestart::Rerun } else { OnRestart::Stop })
            };
            let mut entry: Option<Run> = None;
            let mut want = Want::No("unassigned");
            let mut sequence = 0;
            // The last change that was told. What is looked at later is no news.
            let mut told_until = 0;
            // Nobody was assigned anew since an operator stopped it.
            let mut is_stopped_by_hand = false;
            // The runner whose work has begun, if any: it ends with its entry alone.
            let mut works: Option<usize> = None;
            let looked = |entry: &mut Option<Run>, want: &Want, sequence, is_anew| {
                let told = Told { is_anew, ..told(sequence) };
                if let Some(mut run) =
                    written(reconcile(entry.as_ref(), &look(want, &rule, Some(&told))))
                {
                    run.is_call = is_call;
                    *entry = Some(run);
                }
            };
            for one in all {
                let Some(run) = entry.clone().or(match one {
                    Happens::Assigned | Happens::Gone | Happens::Looked => Some(Run::default()),
                    _ => None,
                }) else { continue };
                match one {
                    Happens::Assigned => {
                        sequence += 1;
                        want = yes();
                    }
                    Happens::Gone => {
                        sequence += 1;
                        want = Want::No("closed");
                    }
                    Happens::Looked => {
                        let is_anew = sequence > told_until;
                        is_stopped_by_hand &= !(is_anew && matches!(want, Want::Yes(_)));
                        looked(&mut entry, &want, sequence, is_anew);
                        told_until = sequence;
                    }
                    Happens::Claimed(host) => {
                        if let Some(claimed) = claim(&run, HOSTS[host], at(5000)) {
                            prop_assert_eq!(works, None);
                            entry = Some(claimed);
                        }
                    }
                    Happens::Begun(host) => {
                        if let Some(begun) = begin(&run, HOSTS[host], at(0)) {
                            prop_assert_eq!(works, None);
                            prop_assert!(run.desired == Desired::Run || is_call);
                            works = Some(host);
                            entry = Some(begun);
                        }
                    }
                    Happens::Ended(host, how) if run.host == HOSTS[host] => {
                        let ending = match how {
                            0 => Ending::Process(Ended::Exited(0)),
                            1 => Ending::Process(Ended::Exited(75)),
                            2 => Ending::Unavailable(String::new()),
                            3 => Ending::RunnerStopped,
                            _ => Ending::Accepted,
                        };
                        works = None;
                        entry = Some(end(&run, ending, at(0), 0.5));
                    }
                    Happens::Ended(..) => {}
                    Happens::TakenOver(host) if run.phase.is_held() && run.host != HOSTS[host] => {
                        works = None;
                        entry = Some(end(&run, Ending::RunnerLost, at(0), 0.5));
                    }
                    Happens::TakenOver(_) => {}
                    Happens::StoppedByHand => if let Some(stopped) = stop_by_hand(&run, at(0)) {
                        is_stopped_by_hand = true;
                        entry = Some(stopped);
                    },
                    Happens::AgainByHand => entry = again_by_hand(&run, at(0)).or(entry),
                }
            }
            // From here on all goes well.
            let is_anew = sequence > told_until;
            is_stopped_by_hand &= !(is_anew && matches!(want, Want::Yes(_)));
            looked(&mut entry, &want, sequence, is_anew);
            for _ in 0..10 {
                looked(&mut entry, &want, sequence, false);
                let Some(run) = entry.clone() else { break };
                if let Some(claimed) = claim(&run, "a", at(100_000)) {
                    entry = Some(claimed);
                } else if let Some(begun) = begin(&run, &run.host, at(0)) {
                    entry = Some(begun);
                } else if run.phase.is_held() && (run.desired == Desired::Stop || is_call) {
                    let stopped = Ending::Process(Ended::Stopped { killed: false });
                    let ending = if is_call { Ending::Accepted } else { stopped };
                    entry = Some(end(&run, ending, at(0), 0.0));
                }
            }
            match (&entry, &want) {
                (None, want) => prop_assert!(!matches!(want, Want::Yes(_))),
                (Some(run), Want::No(_)) => {
                    prop_assert_eq!((run.desired, run.phase.is_over()), (Desired::Stop, true));
                }
                (Some(run), _) => prop_assert!(
                    (run.held && is_stopped_by_hand)
                        || (run.desired == Desired::Run && !run.phase.is_queued()),
                    "{:?}", run
                ),
            }
            let before = entry.clone();
            looked(&mut entry, &want, sequence, false);
            prop_assert_eq!(before, entry, "it keeps that state");
        }
    }
}
