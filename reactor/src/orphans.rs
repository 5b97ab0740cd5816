//! Ends runs that wait for a rule that no runner has any more: it was taken out of the file while no
//! runner ran, or one that died was the last to have it.
//!
//! Runners may have different files, while these are rolled out or for good. So whoever sees a run
//! wait whose rule it has not asks the others. Only if none has said for a while that it has the rule,
//! the run is ended. A run that was ended although its issue wants it is queued again by the runner
//! that comes with the rule.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::Subject;
use contract::timestamp::Timestamp;
use futures::StreamExt;
use service::broker::Session;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::{
    context::Context,
    look, reconcile,
    rules::Rules,
    run::RunKey,
    store::{NUDGE, StoreError},
};

/// Leases for which no runner may have had the rule before its runs are ended: a runner that dies or is
/// started anew is back before that.
const LEASES: u32 = 10;
/// How long others may take to say that they have a rule.
const PATIENCE: Duration = Duration::from_secs(1);

/// Asks for rules that this runner has not, and ends what waits for those that nobody has.
pub(crate) async fn run(context: Arc<Context>) {
    let mut is_due = tokio::time::interval(context.lease / 2);
    is_due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut missing = Missing::default();
    loop {
        tokio::select! {
            _ = is_due.tick() => {}
            () = context.stop.cancelled() => return,
        }
        let began = Instant::now();
        if let Err(error) = look(&context, &mut missing).await {
            context.failed(began, &error, "runs without a rule cannot be looked at");
            // Whoever has the rule may not have heard the question.
            missing = Missing::default();
        }
    }
}

async fn look(context: &Arc<Context>, missing: &mut Missing) -> Result<(), StoreError> {
    let waiting = without_rule(context.view(|view| view.queued()), &context.rules());
    let store = context.store().await?;
    missing.keep(store.session.number(), &waiting);
    for (rule, keys) in waiting {
        let Some(one) = keys.first() else { continue };
        let asked = Instant::now();
        let is_there = has_somebody(&store.session, one).await?;
        let since = missing.note(&rule, is_there, asked);
        if since.is_none_or(|since| asked.duration_since(since) < context.lease * LEASES) {
            continue;
        }
        for key in keys {
            // The file may have been read again meanwhile.
            if context.rules().get(&key.rule).is_none() {
                context.unless_unreadable(end(context, &key).await)?;
            }
        }
    }
    Ok(())
}

/// Runs that wait and whose rule is not among `rules`, by their rule.
fn without_rule(queued: Vec<RunKey>, rules: &Rules) -> BTreeMap<String, Vec<RunKey>> {
    let mut waiting = BTreeMap::<String, Vec<RunKey>>::new();
    for key in queued.into_iter().filter(|key| rules.get(&key.rule).is_none()) {
        waiting.entry(key.rule.clone()).or_default().push(key);
    }
    waiting
}

/// Rules that nobody had when they were asked for.
#[derive(Debug, Default)]
struct Missing {
    /// Number of the connection: what was asked on another one says nothing of the time between.
    session: u64,
    since: BTreeMap<String, Instant>,
}

impl Missing {
    /// Forgets what nothing waits for any more, and what was asked on another connection.
    fn keep<T>(&mut self, session: u64, waiting: &BTreeMap<String, T>) {
        if self.session != session {
            *self = Self { session, since: BTreeMap::new() };
        }
        self.since.retain(|rule, _| waiting.contains_key(rule));
    }

    /// Notes whether somebody has the rule. Returns since when nobody has had it.
    fn note(&mut self, rule: &str, is_there: bool, asked: Instant) -> Option<Instant> {
        if is_there {
            self.since.remove(rule);
            return None;
        }
        Some(*self.since.entry(rule.to_owned()).or_insert(asked))
    }
}

/// Whether a runner says that it has the rule of this run.
async fn has_somebody(session: &Session, key: &RunKey) -> Result<bool, StoreError> {
    let client = &session.client;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(StoreError::Listen)?;
    let asked = client.publish_with_reply(NUDGE, inbox, key.to_string().into()).await;
    asked.map_err(StoreError::Nudge)?;
    match timeout(PATIENCE, answers.next()).await {
        Ok(Some(answer)) => Ok(answer.status.is_none()),
        Ok(None) => Err(StoreError::NoConnection),
        Err(_) => Ok(false),
    }
}

/// Answers another runner if this one has the rule of the run.
pub(crate) async fn answer(context: &Context, session: &Session, key: &RunKey, reply: Subject) {
    if context.rules().get(&key.rule).is_none() {
        return;
    }
    if let Err(error) = session.client.publish(reply, "".into()).await {
        debug!(%error, "cannot say which rules there are");
    }
}

/// Ends a run that waits for a rule that nobody has.
async fn end(context: &Arc<Context>, key: &RunKey) -> Result<(), StoreError> {
    let store = context.store().await?;
    let Some((run, revision)) = context.run(&store, key).await? else { return Ok(()) };
    let Some(next) = reconcile::give_up(&run, Timestamp::now()) else { return Ok(()) };
    match store.write(key, &next, revision).await {
        Ok(revision) => {
            context.view(|view| view.note(key.clone(), Some(&next), revision, Instant::now()));
            warn!(
                gitea.issue.ref = next.issue, gitea.delivery.id = next.delivery_id,
                trace_id = look::trace_id(&next), rule = key.rule, run = next.id(key),
                reason = next.stop_reason,
                "run given up: no runner has its rule"
            );
            Ok(())
        }
        // Somebody has it in hand.
        Err(error) if error.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_missing_since_nobody_had_it_without_a_break() {
        let (mut missing, now) = (Missing::default(), Instant::now());
        let at = |secs| now + Duration::from_secs(secs);
        let waiting = BTreeMap::from([("fix".to_owned(), ())]);
        missing.keep(1, &waiting);
        assert_eq!(missing.note("fix", false, at(0)), Some(at(0)));
        assert_eq!(missing.note("fix", false, at(5)), Some(at(0)));
        // A runner that has it is there for a moment.
        assert_eq!(missing.note("fix", true, at(6)), None);
        assert_eq!(missing.note("fix", false, at(7)), Some(at(7)));
        // Nothing waits, and then something does again.
        missing.keep(1, &BTreeMap::<String, ()>::new());
        missing.keep(1, &waiting);
        assert_eq!(missing.note("fix", false, at(8)), Some(at(8)));
        // Another connection.
        missing.keep(2, &waiting);
        assert_eq!(missing.note("fix", false, at(9)), Some(at(9)));
    }
}
