//! Looks at an issue: what is wanted of its runs is written, and its runners are told.

use std::{sync::Arc, time::Instant};

use contract::{
    change::{Change, ChangeKind},
    issue_state::{KnownIssue, Person},
    timestamp::Timestamp,
};
use tracing::{info, warn};

use crate::{
    attempt,
    context::Context,
    reconcile::{self, Look, Step, Told},
    rules::{CLOSED, DELETED, Rule, UNASSIGNED, Want},
    run::{Desired, Ending, Run, RunKey},
    store::{Known, Store, StoreError},
};

/// A change that has its issue looked at.
#[derive(Clone, Debug)]
pub(crate) struct Cause {
    pub(crate) change: Arc<Change>,
    pub(crate) sequence: u64,
    pub(crate) traceparent: Option<String>,
    /// It has not been looked at before: whom it assigned was assigned anew.
    pub(crate) is_news: bool,
}

impl Cause {
    fn told(&self, rule: &Rule) -> Told {
        let change = &self.change;
        let added = change.added.iter().enumerate().map(|(place, login)| Person {
            id: change.added_ids.get(place).copied().unwrap_or(0),
            login: login.clone(),
        });
        let is_assigned = || added.into_iter().any(|person| rule.who.person.is(&person));
        Told {
            sequence: self.sequence,
            delivery_id: change.cause.delivery_id.clone(),
            received_at: Some(change.cause.received_at),
            traceparent: self.traceparent.clone(),
            is_anew: self.is_news
                && match change.kind {
                    ChangeKind::Assigned => is_assigned(),
                    ChangeKind::Reopened => true,
                    _ => false,
                },
        }
    }
}

/// Looks at an issue: at all rules that want a run of it, and at all its runs.
///
/// # Errors
/// If the broker fails. Then it has to be looked at again.
pub(crate) async fn at_issue(
    context: &Arc<Context>,
    (repository_id, number): (i64, u64),
    cause: Option<&Cause>,
) -> Result<(), StoreError> {
    let store = context.store().await?;
    let known = match store.issue(repository_id, number).await {
        Ok(Some(known)) => known,
        Ok(None) => return Ok(()),
        // Whoever writes it anew tells a change.
        Err(error) => return context.unless_unreadable(Err(error)),
    };
    // A run gets to know a change also where none had its issue looked at.
    let last = if cause.is_none() { store.last_assignment(&known.issue).await? } else { None };
    let cause = cause.or(last.as_ref());
    let rules = context.rules();
    let mut wanting = Vec::new();
    for rule in rules.iter() {
        let labels = known.labels().or(cause.map(|cause| cause.change.issue.labels.as_slice()));
        let want = rule.wants(&known.issue, labels, false);
        if matches!(want, Want::Yes(_)) {
            let key = RunKey { repository_id, number, rule: rule.name.clone() };
            let looked = at_run(context, &store, &key, Some(rule), (&known, cause)).await;
            context.unless_unreadable(looked)?;
            wanting.push(key);
        }
    }
    // Then those that have a run, whatever its rule. An entry that is written after this reading is of
    // a runner that looks at the issue once more before it begins.
    context.refresh().await?;
    for key in context.view(|view| view.of_issue(repository_id, number)) {
        if !wanting.contains(&key) {
            let rule = rules.get(&key.rule);
            let looked = at_run(context, &store, &key, rule, (&known, cause)).await;
            context.unless_unreadable(looked)?;
        }
    }
    Ok(())
}

/// Looks at an issue whose run has ended, if it wants another one.
pub(crate) async fn after_end(context: &Arc<Context>, issue: (i64, u64)) -> Result<(), StoreError> {
    let known = context.store().await?.issue(issue.0, issue.1).await?;
    let Some(known) = known else { return Ok(()) };
    let wants =
        |rule: &Arc<Rule>| matches!(rule.wants(&known.issue, known.labels(), false), Want::Yes(_));
    if context.rules().iter().any(wants) { at_issue(context, issue, None).await } else { Ok(()) }
}

/// Looks at one run of an issue.
pub(crate) async fn at_run(
    context: &Arc<Context>,
    store: &Store,
    key: &RunKey,
    rule: Option<&Arc<Rule>>,
    (known, cause): (&Known, Option<&Cause>),
) -> Result<(), StoreError> {
    let told = match (rule, cause) {
        (Some(rule), Some(cause)) => Some(cause.told(rule)),
        // Of a rule that this runner has not, only the end is decided here.
        (None, Some(cause)) => {
            let received_at = Some(cause.change.cause.received_at);
            Some(Told { received_at, ..Told::default() })
        }
        (_, None) => None,
    };
    let is_news = cause.is_some_and(|cause| cause.is_news);
    let wants = |known: &Known, found: Option<&Run>| match rule {
        Some(rule) => by_rule(rule, known, cause, found),
        None => found.map_or(Want::Unknown, |run| by_run(run, &known.issue)),
    };
    loop {
        let (found, revision) = store.run(key).await?;
        let (mut known, mut want) = (known, wants(known, found.as_ref()));
        // The entry may follow from a newer state than the one at hand, by another task or runner. So
        // a stop is written by a state that was read after the entry, and so is the end of an
        // operator's.
        let newer;
        if matches!(want, Want::No(_))
            && found.as_ref().is_some_and(|run| run.desired == Desired::Run || run.held)
        {
            newer = store.issue(key.repository_id, key.number).await?;
            if let Some(newer) = &newer {
                (known, want) = (newer, wants(newer, found.as_ref()));
            }
        }
        // Only a first entry needs it, so that no run of a removed one had the same.
        let bucket = match (&found, &want) {
            (None, Want::Yes(_)) => Some(store.extent().await?),
            _ => None,
        };
        let look = Look {
            want: &want,
            rule: rule.map(AsRef::as_ref),
            bucket,
            issue: &known.issue.issue,
            delivery_id: &known.issue.delivery_id,
            // What has been known for long is not what ends it.
            told: told.as_ref().filter(|_| is_news || !matches!(want, Want::No(_))),
            now: Timestamp::now(),
        };
        let Step::Write(next) = reconcile::reconcile(found.as_ref(), &look) else { return Ok(()) };
        match store.write(key, &next, revision).await {
            Ok(revision) => {
                let change = cause.map(|cause| Arc::clone(&cause.change));
                written(context, store, key, (*next, revision), rule, change).await;
                return Ok(());
            }
            // Another runner has looked at it as well.
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether an issue wants a run by its rule, beside the one that was found.
fn by_rule(rule: &Rule, known: &Known, cause: Option<&Cause>, found: Option<&Run>) -> Want {
    let wanted = found.filter(|run| run.desired == Desired::Run);
    let has_begun = |run: &Run| run.started_at.is_some() || run.phase.is_over();
    // A change from before the one that queued the run does not say that it has no label.
    let told = cause.filter(|cause| wanted.is_none_or(|run| cause.sequence >= run.change));
    let told = told.map(|cause| cause.change.issue.labels.as_slice());
    let labels = known.labels().or(told);
    match rule.wants(&known.issue, labels, wanted.is_some_and(has_begun)) {
        // What is over does not go on without the label, and the next one needs it.
        Want::Yes(_)
            if found.is_some_and(|run| run.phase.is_over())
                && !matches!(rule.wants(&known.issue, labels, false), Want::Yes(_)) =>
        {
            Want::Unknown
        }
        want => want,
    }
}

/// Whether an issue wants a run whose rule this runner has not: only its end is known.
fn by_run(run: &Run, issue: &KnownIssue) -> Want {
    let is_assigned = run
        .person
        .as_ref()
        .is_none_or(|person| issue.assignees.iter().any(|assignee| assignee.is(person)));
    match issue.state {
        contract::issue_state::Lifecycle::Closed => Want::No(CLOSED),
        contract::issue_state::Lifecycle::Deleted => Want::No(DELETED),
        contract::issue_state::Lifecycle::Other => Want::Unknown,
        contract::issue_state::Lifecycle::Open if is_assigned => Want::Unknown,
        contract::issue_state::Lifecycle::Open => Want::No(UNASSIGNED),
    }
}

/// Tells whom an entry concerns that was just written.
pub(crate) async fn written(
    context: &Arc<Context>,
    store: &Store,
    key: &RunKey,
    (run, revision): (Run, u64),
    rule: Option<&Arc<Rule>>,
    change: Option<Arc<Change>>,
) {
    let (issue, delivery, trace) = (&run.issue, &run.delivery_id, trace_id(&run));
    context.view(|view| view.note(key.clone(), Some(&run), revision, Instant::now()));
    if run.ended == Some(Ending::TooMany) {
        let runs = run.recent.len();
        context.instruments.refused(&key.rule);
        warn!(
            gitea.issue.ref = issue, gitea.delivery.id = delivery, trace_id = trace,
            rule = key.rule, runs,
            "run not started: as many have begun within an hour as may; it may cause its own assignment"
        );
        return;
    }
    if run.phase.is_held() {
        if run.desired == Desired::Stop && !context.nudge(key) {
            nudge(context, store, key).await;
        }
        return;
    }
    if run.phase.is_queued() {
        info!(
            gitea.issue.ref = issue, gitea.delivery.id = delivery, trace_id = trace,
            rule = key.rule, run = run.id(key),
            "run queued"
        );
        let begun = rule.is_some_and(|rule| {
            attempt::begin_in_turn(context, key, rule, (run, revision), change)
        });
        if !begun {
            nudge(context, store, key).await;
        }
        return;
    }
    // What an operator has stopped has a line of its own.
    if run.is_settled() && run.attempt == 0 && run.stop_reason != reconcile::BY_HAND {
        info!(
            gitea.issue.ref = issue, gitea.delivery.id = delivery, trace_id = trace,
            rule = key.rule, run = run.id(key), reason = run.stop_reason,
            "run withdrawn before it began"
        );
    }
}

/// Has the other runners look at an entry. One that does not hear of it finds it within a second.
async fn nudge(context: &Arc<Context>, store: &Store, key: &RunKey) {
    if let Err(error) = store.nudge(key).await {
        context.failed(Instant::now(), &error, "other runners cannot be told of a run");
    }
}

/// Trace id of a run, for log lines.
pub(crate) fn trace_id(run: &Run) -> Option<&str> {
    run.traceparent.as_deref()?.split('-').nth(1)
}

#[cfg(test)]
pub(crate) mod tests {
    use contract::event;
    use serde_json::json;

    use super::*;
    use crate::{rules::example, run::Phase};

    /// An open issue of the bot, with the labels of its last decision if there is one.
    pub(crate) fn known(labels: Option<&[&str]>) -> Known {
        let mut known = json!({
            "assignees": [{"id": 4, "login": "bot"}], "state": "open", "issue": "acme/widgets#7",
        });
        if let Some(labels) = labels {
            known["decision"] = json!({"event": event::example()});
            known["decision"]["event"]["issue"]["labels"] = json!(labels);
        }
        serde_json::from_value(known).expect("a state")
    }

    fn cause(sequence: u64, labels: &[&str]) -> Cause {
        let mut change = Change::from_event(ChangeKind::Assigned, &event::example());
        change.issue.labels = labels.iter().map(|label| (*label).to_owned()).collect();
        Cause { change: Arc::new(change), sequence, traceparent: None, is_news: false }
    }

    #[test]
    fn what_has_not_begun_needs_the_label_and_what_has_goes_on_without_it() {
        let rule = example("who = { login = \"bot\", label = \"agent\" }");
        let run = |phase| Run { phase, change: 5, ..Run::default() };
        let (queued, done) = (run(Phase::Waiting), run(Phase::Done));
        let begun = Run { started_at: Some(Timestamp::now()), ..run(Phase::Waiting) };
        let stopped = Run { desired: Desired::Stop, ..run(Phase::Running) };
        let no = Want::No("without the label");
        let yes = Want::Yes(Person { id: 4, login: "bot".into() });
        let (with, without) = (known(Some(&["agent"])), known(Some(&["bug"])));
        for (known, found, expected) in [
            (&without, None, &no),
            (&without, Some(&queued), &no),
            (&without, Some(&begun), &yes),
            (&without, Some(&done), &Want::Unknown),
            (&without, Some(&stopped), &no),
            (&with, Some(&queued), &yes),
            (&with, Some(&done), &yes),
        ] {
            assert_eq!(by_rule(&rule, known, None, found), *expected, "{found:?}");
        }
        // The state does not say, and a change does, unless it is of before.
        let unknown = known(None);
        for (sequence, expected) in [(4, &Want::Unknown), (5, &no), (6, &no)] {
            let cause = cause(sequence, &["bug"]);
            let want = by_rule(&rule, &unknown, Some(&cause), Some(&queued));
            assert_eq!(want, *expected, "{sequence}");
        }
    }
}
