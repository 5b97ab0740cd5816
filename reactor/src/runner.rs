//! Begins runs that wait, takes over those of runners that died, and hears of entries that are to be
//! looked at at once.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use contract::timestamp::Timestamp;
use futures::StreamExt;
use tracing::{debug, warn};

use crate::{
    attempt,
    context::Context,
    look, orphans, reconcile,
    rules::Rule,
    run::{Ending, Run, RunKey},
    store::{NUDGE, StoreError},
    view::View,
};

/// Time between two looks at all runs.
const LOOK: Duration = Duration::from_secs(1);
/// Entries that get an end in one look at all runs.
const EXPIRE_AT_ONCE: usize = 64;
/// Pause after the subscription to nudges has failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Looks at all runs now and then, and whenever there is room.
pub(crate) async fn run(context: Arc<Context>) {
    let mut is_due = tokio::time::interval(LOOK);
    is_due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = is_due.tick() => {}
            () = context.room.notified() => {}
            () = context.stop.cancelled() => return,
        }
        let began = Instant::now();
        if let Err(error) = round(&context).await {
            context.failed(began, &error, "runs cannot be looked at");
            // The bucket may have been deleted, or made anew.
            context.look_up_again();
        }
    }
}

async fn round(context: &Arc<Context>) -> Result<(), StoreError> {
    context.refresh().await?;
    let mut lost = context.view(|view| view.lost(context.lease, Instant::now()));
    // Those of our own that nothing works on: the confirmation of a claim or of an end was lost.
    let own = context.view(|view| view.of_host(&context.host));
    lost.extend(own.into_iter().filter(|(key, _)| context.asked(key).is_none()));
    for (key, revision) in lost {
        context.unless_unreadable(take_over(context, &key, revision).await)?;
    }
    look_at_ended(context).await?;
    begin_due(context).await?;
    let_expire(context).await?;
    let (counts, wait) = context.view(|view| (view.counts(), view.longest_wait(Timestamp::now())));
    context.instruments.now(counts, wait);
    Ok(())
}

/// Looks at the issues whose run was stopped and has ended: one may be assigned again by now. Whoever
/// wrote the end does so too, unless it died or the broker failed.
async fn look_at_ended(context: &Arc<Context>) -> Result<(), StoreError> {
    let mut issues = context.view(View::take_ended);
    while let Some(issue) = issues.pop_first() {
        let looked = look::after_end(context, issue).await;
        if let Err(error) = context.unless_unreadable(looked) {
            issues.insert(issue);
            context.view(|view| view.put_back(issues));
            return Err(error);
        }
    }
    Ok(())
}

/// Begins runs that wait, as long as there is room for them.
async fn begin_due(context: &Arc<Context>) -> Result<(), StoreError> {
    let rules = context.rules();
    if context.live_count() >= rules.concurrency {
        return Ok(());
    }
    let due = context.view(|view| view.due(Timestamp::now()));
    // Many may wait for the same rule.
    let mut full = BTreeSet::new();
    for key in due {
        if context.live_count() >= rules.concurrency {
            break;
        }
        let Some(rule) = rules.get(&key.rule).filter(|rule| !full.contains(&rule.name)) else {
            continue;
        };
        if !context.has_room(&key, rule) {
            if context.asked(&key).is_none() {
                full.insert(rule.name.clone());
            }
            continue;
        }
        match waiting(context, &key, rule).await {
            Ok(Some(found)) => _ = attempt::begin(context, &key, rule, found, None),
            other => context.unless_unreadable(other.map(drop))?,
        }
    }
    Ok(())
}

/// Reads a run for which there may be room. None if it does not wait, or not yet.
async fn waiting(
    context: &Arc<Context>,
    key: &RunKey,
    rule: &Arc<Rule>,
) -> Result<Option<(Run, u64)>, StoreError> {
    if !context.has_room(key, rule) {
        return Ok(None);
    }
    let store = context.store().await?;
    let Some((run, revision)) = context.run(&store, key).await? else { return Ok(None) };
    context.view(|view| view.note(key.clone(), Some(&run), revision, Instant::now()));
    let may_begin = reconcile::claim(&run, &context.host, Timestamp::now()).is_some();
    Ok(may_begin.then_some((run, revision)))
}

/// Begins a run that another runner has told of, if there is room for it and no other waits for longer.
async fn begin_told(context: &Arc<Context>, key: &RunKey) -> Result<(), StoreError> {
    let rules = context.rules();
    let Some(rule) = rules.get(&key.rule) else { return Ok(()) };
    if let Some(found) = waiting(context, key, rule).await? {
        attempt::begin_in_turn(context, key, rule, found, None);
    }
    Ok(())
}

/// Has entries removed some day that would stay for ever.
async fn let_expire(context: &Arc<Context>) -> Result<(), StoreError> {
    let store = context.store().await?;
    for _ in 0..EXPIRE_AT_ONCE {
        let Some((key, seen)) = context.view(View::take_lasting) else { break };
        let (Some(run), revision) = store.run(&key).await? else { continue };
        if revision != seen || !run.is_settled() {
            continue;
        }
        match store.write(&key, &run, revision).await {
            Err(error) if !error.is_conflict() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Ends a run whose runner has not renewed it, or has it begin once more.
async fn take_over(context: &Arc<Context>, key: &RunKey, seen: u64) -> Result<(), StoreError> {
    let store = context.store().await?;
    let Some((run, revision)) = context.run(&store, key).await? else { return Ok(()) };
    if revision != seen || !run.phase.is_held() || context.asked(key).is_some() {
        context.view(|view| view.note(key.clone(), Some(&run), revision, Instant::now()));
        return Ok(());
    }
    let host = run.host.clone();
    let next = reconcile::end(&run, Ending::RunnerLost, Timestamp::now(), fastrand::f64());
    match store.write(key, &next, revision).await {
        Ok(revision) => {
            context.instruments.taken_over();
            context.instruments.ended(&key.rule, &next, None);
            warn!(
                gitea.issue.ref = next.issue, gitea.delivery.id = next.delivery_id,
                trace_id = look::trace_id(&next), rule = key.rule, run = next.id(key), host,
                outcome = next.phase.as_str(), reason = next.ended.as_ref().map(ToString::to_string),
                "run taken over: its runner died or was cut off"
            );
            let rules = context.rules();
            let rule = rules.get(&key.rule);
            look::written(context, &store, key, (next, revision), rule, None).await;
            let issue = (key.repository_id, key.number);
            look::at_issue(context, issue, None).await
        }
        Err(error) if error.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Hears which entries are to be looked at at once.
pub(crate) async fn hear(context: Arc<Context>) {
    loop {
        let session = tokio::select! {
            session = context.broker.connected() => session,
            () = context.stop.cancelled() => return,
        };
        let mut is_new = true;
        match session.client.subscribe(NUDGE).await {
            Ok(mut nudges) => loop {
                if is_new {
                    is_new = false;
                    context.nudge_all();
                }
                let nudge = tokio::select! {
                    nudge = nudges.next() => nudge,
                    () = session.ended() => break,
                    // What runs is ended first, and whoever ends it hears no more.
                    () = context.stop.cancelled() => return,
                };
                let Some(nudge) = nudge else { break };
                let key = std::str::from_utf8(&nudge.payload).ok().and_then(RunKey::parse);
                let Some(key) = key else { continue };
                if let Some(reply) = nudge.reply {
                    orphans::answer(&context, &session, &key, reply).await;
                } else if !context.nudge(&key) {
                    let began = Instant::now();
                    if let Err(error) = begin_told(&context, &key).await {
                        context.failed(began, &error, "a run cannot be looked at");
                    }
                }
            },
            Err(error) => debug!(%error, "cannot hear of runs"),
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = context.stop.cancelled() => return,
        }
    }
}
