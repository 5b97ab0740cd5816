//! What is wrong, and where the runbook says what to do about it.

use contract::{names, timestamp::Timestamp};

use super::{
    super::text,
    facts::{Facts, Sweep},
    measures::{Measure, SYNC_AGE},
    process::Process,
};

/// Age of the oldest delivery that is not published, from which on it is a problem.
const OLD_SECS: f64 = 30.0;
/// Events that wait, from which on they are a problem where they grow.
const MUCH_LAG: f64 = 100.0;
/// How full a stream may be.
const FULL: f64 = 0.8;
/// How long the last sweep may be ago.
const SWEEP_SECS: f64 = 900.0;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) what: String,
    /// Deliveries are lost, or nobody is told.
    pub(super) is_grave: bool,
    /// The section of the runbook.
    pub(super) runbook: &'static str,
    /// A page that shows more: its address and its name.
    pub(super) look_at: Option<(&'static str, &'static str)>,
}

fn problem(is_grave: bool, runbook: &'static str, what: String) -> Problem {
    Problem { what, is_grave, runbook, look_at: None }
}

/// All that is wrong at `now`, the gravest first.
pub(super) fn find(
    processes: &[Process],
    measures: &[Measure],
    facts: &Facts,
    now: Timestamp,
) -> Vec<Problem> {
    let mut found = Vec::new();
    for process in processes {
        let before = found.len();
        of_process(process, &mut found);
        if found.len() == before && !process.is_well() {
            found.push(unexplained(process));
        }
    }
    if facts.connected {
        for (role, runbook, what) in [
            ("ingest", "coordinatornoingest", "No ingest answers: deliveries may be lost."),
            ("worker", "coordinatornoworker", "No worker answers: nobody is told of changes."),
        ] {
            if !processes.iter().any(|process| process.is(role)) {
                found.push(problem(true, runbook, what.into()));
            }
        }
    } else {
        let what = "This process has no connection to NATS: it shows what it knows itself.";
        found.push(problem(true, "coordinatorunpublishedold", what.into()));
    }
    if let Some(error) = facts.failed.as_deref().filter(|_| facts.connected) {
        let error = text::line(error, text::ERROR);
        let what = format!("Not all could be read from the broker: {error}.");
        found.push(problem(true, "coordinatorunpublishedold", what));
    }
    of_broker(facts, measures, now, &mut found);
    let mut seen = std::collections::HashSet::new();
    found.retain(|problem| seen.insert(problem.what.clone()));
    found.sort_by_key(|problem| !problem.is_grave);
    found
}

/// A process for people.
fn name(process: &Process) -> String {
    let roles = text::line(&process.roles.join(", "), text::NAME);
    format!("{roles} on {}", text::line(&process.host, text::NAME))
}

/// A process that is not well for a reason that is not known here.
fn unexplained(process: &Process) -> Problem {
    let status = text::line(&process.status, text::NAME);
    let ready = if process.ready { "" } else { ", and is not ready" };
    problem(false, "the-map", format!("{} says of its health: {status}{ready}.", name(process)))
}

fn of_process(process: &Process, found: &mut Vec<Problem>) {
    let who = name(process);
    if process.broker.as_deref().is_some_and(|broker| broker != "connected") {
        let what = format!("{who} has no connection to NATS; deliveries are kept meanwhile.");
        found.push(problem(true, "coordinatorunpublishedold", what));
    } else if let Some(refusal) = &process.broker_problem {
        let what = format!("NATS refuses {who}: {}", text::line(refusal, text::ERROR));
        found.push(problem(true, "coordinatorunpublishedold", what));
    }
    for unfit in &process.unfit {
        let what = format!("{who}: {}", text::line(unfit, text::ERROR));
        found.push(problem(true, "what-stands-on-the-broker", what));
    }
    if let Some(wrong) = &process.wrong_rules {
        let wrong = text::line(wrong, text::ERROR);
        let what =
            format!("{who} goes on with its former rules, since the new ones are wrong: {wrong}");
        found.push(problem(false, "runs", what));
    }
    if let Some(journal) = &process.journal {
        if !journal.writable {
            let what = format!("{who} cannot keep deliveries: its journal takes nothing.");
            found.push(problem(true, "coordinatorcannotkeep", what));
        }
        if journal.oldest_secs > OLD_SECS {
            let (depth, age) = (text::number(journal.depth), text::span(journal.oldest_secs));
            let what = format!(
                "{who} has {depth} deliveries that are not published, the oldest for {age}."
            );
            found.push(problem(true, "coordinatorunpublishedold", what));
        }
        if journal.set_aside > 0 {
            let number = text::count(journal.set_aside, "delivery", "deliveries");
            let what = format!("{who} has set {number} aside, which no broker takes.");
            found.push(problem(false, "coordinatorsetaside", what));
        }
    }
    let is_connected = process.broker.as_deref() == Some("connected");
    if process.is("worker") && is_connected && !process.ready && process.unfit.is_empty() {
        let consumed = process.partitions_consumed.unwrap_or(0);
        let what = format!("{who} consumes {consumed} partitions only: events of the others wait.");
        found.push(problem(true, "coordinatorlag", what));
    }
    if let Some(gitea) = process.gitea.as_deref().filter(|gitea| *gitea != "ok") {
        let is_token = gitea.ends_with("unauthorized") || gitea.ends_with("forbidden");
        let gitea = text::line(gitea, text::NAME);
        found.push(if is_token {
            problem(
                false,
                "coordinatortokenrefused",
                format!("Gitea refuses the token of {who} ({gitea})."),
            )
        } else {
            problem(
                false,
                "coordinatorgitearequestsfail",
                format!("Gitea does not answer {who} ({gitea})."),
            )
        });
    }
}

fn of_broker(facts: &Facts, measures: &[Measure], now: Timestamp, found: &mut Vec<Problem>) {
    for stream in &facts.streams {
        if stream.name == names::DEAD_LETTERS && stream.messages > 0 {
            let number = text::count(stream.messages, "dead letter", "dead letters");
            found.push(Problem {
                look_at: Some(("/dead-letters", "look at them")),
                ..problem(
                    false,
                    "coordinatordeadletters",
                    format!("{number}: events that were given up."),
                )
            });
        }
        if let Some(share) = stream.full().filter(|share| *share > FULL) {
            let runbook = if stream.name == names::CHANGES {
                "coordinatorchangesnearlimit"
            } else {
                "coordinatorstreamnearlimit"
            };
            let what = format!("The stream {} is {:.0} % full.", stream.name, share * 100.0);
            found.push(problem(share > 0.95, runbook, what));
        }
    }
    if let Some(lag) = facts.lag.as_ref().filter(|lag| lag.without_worker > 0) {
        let partitions = text::count(lag.without_worker, "partition", "partitions");
        let what = format!("Events wait in {partitions} that no worker consumes.");
        found.push(problem(true, "coordinatorlag", what));
    }
    if let Some(lag) = measures.iter().find(|measure| measure.name == "lag") {
        let before = lag.minutes.iter().rev().nth(5).copied().unwrap_or(0.0);
        if lag.last > MUCH_LAG && lag.last > before {
            let number = text::number(lag.last as u64);
            found.push(problem(
                false,
                "coordinatorlag",
                format!("{number} events wait, and they grow."),
            ));
        }
    }
    let swept = match facts.sweep {
        Sweep::At(at) => Some((now.unix_micros() - at.unix_micros()) as f64 / 1e6),
        Sweep::Never => None,
        // Whoever sweeps knows it too.
        Sweep::Unknown => {
            measures.iter().find(|measure| measure.name == SYNC_AGE).map(|measure| measure.last)
        }
    };
    if let Some(age) = swept.filter(|age| *age > SWEEP_SECS) {
        let what = format!("The last sweep of Gitea was complete {} ago.", text::span(age));
        found.push(problem(false, "coordinatorsweepoverdue", what));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        super::{
            super::runbook,
            facts::{Lag, StreamUse},
            measures,
            process::tests::process,
        },
        *,
    };

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_unix_micros(secs * 1_000_000)
    }

    fn of_health(role: &str, health: &Value) -> Vec<(bool, &'static str)> {
        let well = json!({"status": "ok", "ready": true, "broker": "connected"});
        let others = ["ingest", "worker"].into_iter().filter(|other| *other != role);
        let others = others.map(|other| process(other, &well));
        let processes: Vec<_> = others.chain([process(role, health)]).collect();
        let facts = Facts { connected: true, ..Facts::default() };
        let found = find(&processes, &[], &facts, at(0));
        found.into_iter().map(|problem| (problem.is_grave, problem.runbook)).collect()
    }

    #[test]
    fn what_a_process_says_is_told_with_its_section() {
        let ok = json!({"status": "ok", "ready": true, "broker": "connected", "gitea": "ok"});
        assert_eq!(of_health("worker", &ok), []);
        for (role, health, expected) in [
            ("ingest", json!({"broker": "disconnected"}), (true, "coordinatorunpublishedold")),
            ("ingest", json!({"unfit": ["x"]}), (true, "what-stands-on-the-broker")),
            (
                "worker",
                json!({"broker": "connected", "ready": true, "broker_problem": "Permissions Violation"}),
                (true, "coordinatorunpublishedold"),
            ),
            ("ingest", json!({"journal": {"writable": false}}), (true, "coordinatorcannotkeep")),
            (
                "ingest",
                json!({"journal": {"depth": 3, "oldest_unpublished_age_secs": 31.0}}),
                (true, "coordinatorunpublishedold"),
            ),
            ("ingest", json!({"journal": {"set_aside": 1}}), (false, "coordinatorsetaside")),
            (
                "worker",
                json!({"broker": "connected", "ready": false, "partitions_consumed": 3}),
                (true, "coordinatorlag"),
            ),
            ("worker", json!({"gitea": "issue: unauthorized"}), (false, "coordinatortokenrefused")),
            (
                "reactor",
                json!({"status": "degraded", "ready": true, "broker": "connected", "wrong_rules": "x"}),
                (false, "runs"),
            ),
            // For a reason that this version does not know, or with a health that did not fit.
            (
                "reactor",
                json!({"status": "degraded", "ready": true, "broker": "connected"}),
                (false, "the-map"),
            ),
            ("ingest", json!({"status": "ok", "ready": false}), (false, "the-map")),
            ("ingest", json!(null), (false, "the-map")),
            (
                "worker",
                json!({"gitea": "issue: timed_out"}),
                (false, "coordinatorgitearequestsfail"),
            ),
        ] {
            assert_eq!(of_health(role, &health), [expected], "{health}");
        }
    }

    #[test]
    fn what_the_broker_holds_is_told_too_and_every_section_is_there() {
        let stream = |name, messages, bytes| StreamUse {
            name,
            what: "x",
            messages,
            bytes,
            limit: Some(100),
            last: at(0),
        };
        let lag = Lag { partitions: 64, waiting: 9, in_hand: 0, without_worker: 2 };
        let facts = Facts {
            connected: true,
            failed: None,
            streams: vec![
                stream(names::DEAD_LETTERS, 3, 10),
                stream(names::EVENTS, 1, 99),
                stream(names::CHANGES, 1, 81),
            ],
            lag: Some(lag),
            sweep: Sweep::At(at(0)),
            latest: Some(Vec::new()),
        };
        let series = service::peers::Series {
            name: "lag".into(),
            every_secs: 60,
            points: vec![1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 500.0],
        };
        let found = find(&[], &measures::put_together(&[series]), &facts, at(1_000));
        let sections: Vec<_> = found.iter().map(|problem| problem.runbook).collect();
        assert_eq!(
            sections,
            [
                "coordinatornoingest",
                "coordinatornoworker",
                "coordinatorstreamnearlimit",
                "coordinatorlag",
                "coordinatordeadletters",
                "coordinatorchangesnearlimit",
                "coordinatorlag",
                "coordinatorsweepoverdue",
            ]
        );
        let away = find(&[], &[], &Facts::default(), at(0));
        assert_eq!(away.len(), 1);
        // What cannot be read of the broker is known to who sweeps.
        let age = service::peers::Series {
            name: SYNC_AGE.into(),
            every_secs: 60,
            points: vec![SWEEP_SECS + 1.0],
        };
        let overdue = find(&[], &measures::put_together(&[age]), &Facts::default(), at(0));
        assert_eq!(overdue.last().expect("a problem").runbook, "coordinatorsweepoverdue");
        // It is connected to a broker that hangs.
        let well = json!({"status": "ok", "ready": true, "broker": "connected"});
        let processes = [process("ingest", &well), process("worker", &well)];
        let failed = Some("NATS did not answer in time".into());
        let hangs = Facts { connected: true, failed, ..Facts::default() };
        let hung = find(&processes, &[], &hangs, at(0));
        assert!(hung.len() == 1 && hung[0].what.contains("did not answer"), "{hung:?}");
        let more = [
            "coordinatorcannotkeep",
            "coordinatorsetaside",
            "what-stands-on-the-broker",
            "coordinatortokenrefused",
            "coordinatorgitearequestsfail",
            "runs",
            "the-map",
            away[0].runbook,
        ];
        for section in sections.into_iter().chain(more) {
            assert!(runbook::has(section), "{section}");
        }
    }
}
