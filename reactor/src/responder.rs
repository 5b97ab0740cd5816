//! Answers what pages ask of runs: which there are, one of them with its output, to stop one, to run
//! one again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use contract::timestamp::Timestamp;
use futures::{StreamExt, future::BoxFuture, stream};
use service::{
    causes::Causes,
    peers::{self, Question, Reply, RunDetail, RunList, RunSummary},
};
use tokio::{sync::oneshot, time::timeout};
use tracing::info;

use crate::{
    context::{Context, Request},
    look,
    process::Output,
    reconcile::{again_by_hand, can_be_stopped, stop_by_hand},
    run::{Desired, Phase, Run, RunKey},
    store::StoreError,
};

/// Runs of a list at most.
const MOST_LISTED: usize = 200;
/// Runs that are read at once. An asker waits for a fifth of a second.
const READ_AT_ONCE: usize = 32;
/// How long a run of this runner may take to say what it has written.
const PATIENCE: Duration = Duration::from_millis(100);

/// Answers for a runner.
pub(crate) struct Responder(pub(crate) Arc<Context>);

impl peers::Responder for Responder {
    fn answer(&self, question: Question) -> BoxFuture<'_, Option<Reply>> {
        Box::pin(async move {
            let reply = match &question {
                Question::Runs => self.runs().await,
                Question::Run { key } => self.run(key).await,
                Question::StopRun { key, generation } => {
                    self.change((key, *generation), stop_by_hand, "stopped").await
                }
                Question::RunAgain { key, generation } => {
                    self.change((key, *generation), again_by_hand, "run again").await
                }
                _ => return None,
            };
            Some(reply.unwrap_or_else(|error| Reply::Refused(Causes(&error).to_string())))
        })
    }
}

impl Responder {
    async fn runs(&self) -> Result<Reply, StoreError> {
        let context = &self.0;
        context.refresh().await?;
        let store = context.store().await?;
        let (keys, truncated) = context.view(|view| view.listed(MOST_LISTED));
        let read = |key: RunKey| {
            let store = store.clone();
            async move {
                match store.run(&key).await {
                    Ok((run, _)) => Ok(run.map(|run| summary(&key, &run))),
                    // It must not keep the others from being shown.
                    Err(StoreError::Decode(_)) => Ok(None),
                    Err(error) => Err(error),
                }
            }
        };
        let read: Vec<_> = stream::iter(keys).map(read).buffered(READ_AT_ONCE).collect().await;
        let mut runs = Vec::new();
        for run in read {
            runs.extend(run?);
        }
        let revision = context.view(|view| view.revision);
        Ok(Reply::Runs(RunList { runs, truncated, revision }))
    }

    async fn run(&self, key: &str) -> Result<Reply, StoreError> {
        let Some(key) = RunKey::parse(key) else { return Ok(Reply::Run(None)) };
        let (run, _) = self.0.store().await?.run(&key).await?;
        let Some(run) = run else { return Ok(Reply::Run(None)) };
        let live = self.live_output(&key).await;
        let is_live = live.is_some();
        let kept = Output { tail: run.output.clone(), written: 0, truncated: run.output_truncated };
        let Output { tail, written, truncated } = live.unwrap_or(kept);
        Ok(Reply::Run(Some(Box::new(RunDetail {
            summary: summary(&key, &run),
            attempt: run.attempt,
            queued_at: run.queued_at,
            started_at: run.started_at,
            ended_at: run.ended_at,
            not_before: run.not_before,
            stop_reason: some(&run.stop_reason),
            trace_id: look::trace_id(&run).map(str::to_owned),
            delivery_id: some(&run.delivery_id),
            output: tail,
            written: is_live.then_some(written),
            truncated,
            is_live,
        }))))
    }

    /// What a run of this runner has written so far. None if it has no such run.
    async fn live_output(&self, key: &RunKey) -> Option<Output> {
        let (sender, receiver) = oneshot::channel();
        self.0.asked(key)?.try_send(Request::Output(sender)).ok()?;
        timeout(PATIENCE, receiver).await.ok()?.ok()
    }

    /// Changes an entry by hand, and has its runner look at it, if it is still that of the run that was
    /// meant.
    async fn change(
        &self,
        (key, generation): (&str, u64),
        change: fn(&Run, Timestamp) -> Option<Run>,
        what: &'static str,
    ) -> Result<Reply, StoreError> {
        let context = &self.0;
        let Some(key) = RunKey::parse(key) else {
            return Ok(Reply::Refused("that is no key of a run".into()));
        };
        let store = context.store().await?;
        loop {
            let (Some(run), revision) = store.run(&key).await? else {
                return Ok(Reply::Refused("there is no such run".into()));
            };
            if run.generation != generation {
                let why =
                    format!("it is another run by now, {}; look at its page again", run.id(&key));
                return Ok(Reply::Refused(why));
            }
            let Some(next) = change(&run, Timestamp::now()) else {
                return Ok(Reply::Refused(format!("it is {} already", phase(&run))));
            };
            match store.write(&key, &next, revision).await {
                Ok(revision) => {
                    info!(
                        gitea.issue.ref = next.issue, rule = key.rule, run = next.id(&key),
                        "run {what} by hand"
                    );
                    let rules = context.rules();
                    let rule = rules.get(&key.rule);
                    context
                        .view(|view| view.note(key.clone(), Some(&next), revision, Instant::now()));
                    look::written(context, &store, &key, (next, revision), rule, None).await;
                    return Ok(Reply::Ordered);
                }
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn summary(key: &RunKey, run: &Run) -> RunSummary {
    RunSummary {
        key: key.to_string(),
        generation: run.generation,
        rule: key.rule.clone(),
        issue: run.issue.clone(),
        login: run.person.as_ref().map(|person| person.login.clone()),
        phase: phase(run).to_string(),
        since: run.ended_at.or(run.started_at).or(run.queued_at),
        host: some(&run.host),
        ended: run.ended.as_ref().map(ToString::to_string),
        can_stop: can_be_stopped(run),
        can_run_again: run.phase.is_over() || run.phase == Phase::Again,
    }
}

/// How far a run is, for people. Its runner writes that it ends with the next renewal alone.
fn phase(run: &Run) -> Phase {
    let begun = matches!(run.phase, Phase::Starting | Phase::Running);
    let ends = run.desired == Desired::Stop && !run.tells_end;
    if begun && ends { Phase::Stopping } else { run.phase }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_is_offered_what_there_is_to_do() {
        use Desired::{Run as Wanted, Stop};
        for (phase, desired, is_call, shown, can_stop, can_run_again) in [
            (Phase::Waiting, Wanted, false, "waiting", true, false),
            (Phase::Starting, Wanted, false, "starting", true, false),
            (Phase::Running, Wanted, false, "running", true, false),
            (Phase::Running, Stop, false, "stopping", false, false),
            (Phase::Starting, Stop, false, "stopping", false, false),
            (Phase::Again, Wanted, false, "again", true, true),
            (Phase::Done, Wanted, false, "done", false, true),
            (Phase::Failed, Wanted, false, "failed", false, true),
            (Phase::Stopped, Stop, false, "stopped", false, true),
            // Whoever took the call is told of the end.
            (Phase::Done, Wanted, true, "done", true, true),
        ] {
            let run = Run { phase, desired, is_call, attempt: 1, ..Run::default() };
            let key = RunKey { repository_id: 1, number: 7, rule: "fix".into() };
            let summary = summary(&key, &run);
            let found = (&*summary.phase, summary.can_stop, summary.can_run_again);
            assert_eq!(found, (shown, can_stop, can_run_again), "{phase} {desired:?}");
            let now = Timestamp::now();
            assert_eq!(stop_by_hand(&run, now).is_some(), can_stop, "{phase} {desired:?}");
            assert_eq!(again_by_hand(&run, now).is_some(), can_run_again, "{phase} {desired:?}");
        }
        let telling =
            Run { tells_end: true, desired: Stop, phase: Phase::Running, ..Run::default() };
        assert_eq!(phase(&telling), Phase::Running);
    }
}
