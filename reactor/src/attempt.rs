//! One attempt at a run: from the claim to its end.
//!
//! Architecture invariant: the entry is written as `running` before anything begins, and only in
//! place of the claim of this runner in which nobody has written a stop. What runs ends with the
//! lease: the supervisor of its process watches that, so that it holds while this program is
//! suspended.

mod calling;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use contract::{change::Change, timestamp::Timestamp, traceparent::Traceparent};
use futures::future::BoxFuture;
use service::{backoff::Backoff, telemetry::trace};
use tokio::{
    sync::mpsc,
    time::{sleep_until, timeout},
};
use tracing::{Instrument, Span, field, info, info_span, warn};

use crate::{
    context::{Context, Request},
    input, look,
    process::{self, Ended, Output, Running},
    reconcile,
    rules::{RULE_GONE, Rule, Want, Work},
    run::{Desired, Ending, KEPT_OUTPUT, Phase, Run, RunKey},
    store::{Known, StoreError},
};

/// Pauses while the end of a run cannot be written.
const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

/// Time after a renewal has failed until it is tried again.
const RENEW_AGAIN: Duration = Duration::from_secs(1);

/// Takes a run that waits, if there is room, and begins it in a task of its own. Returns whether
/// there was room.
pub(crate) fn begin(
    context: &Arc<Context>,
    key: &RunKey,
    rule: &Arc<Rule>,
    (run, revision): (Run, u64),
    change: Option<Arc<Change>>,
) -> bool {
    let Some(requests) = context.take_place(key, rule) else { return false };
    let attempt = Attempt {
        context: Arc::clone(context),
        key: key.clone(),
        rule: Arc::clone(rule),
        run,
        revision,
        change,
        after: None,
    };
    context.attempts.spawn(attempt.run(requests));
    true
}

/// Like [`begin`], unless others that have waited for longer need the place. Then what starts runs
/// begins them in their order.
pub(crate) fn begin_in_turn(
    context: &Arc<Context>,
    key: &RunKey,
    rule: &Arc<Rule>,
    run: (Run, u64),
    change: Option<Arc<Change>>,
) -> bool {
    if context.is_in_turn(&run.0, rule) {
        return begin(context, key, rule, run, change);
    }
    if context.has_room(key, rule) {
        context.room.notify_one();
    }
    false
}

struct Attempt {
    context: Arc<Context>,
    key: RunKey,
    rule: Arc<Rule>,
    run: Run,
    revision: u64,
    /// The change that the run follows from, where it is at hand.
    change: Option<Arc<Change>>,
    /// How long the receiver of a call asked to wait.
    after: Option<Duration>,
}

/// Why an attempt was given up before its end.
enum GivenUp {
    /// Another runner has the run, or it is not to be begun.
    NotOurs,
    /// The broker fails.
    Broker(StoreError),
}

impl From<StoreError> for GivenUp {
    fn from(error: StoreError) -> Self {
        if error.is_conflict() { Self::NotOurs } else { Self::Broker(error) }
    }
}

impl Attempt {
    async fn run(mut self, requests: mpsc::Receiver<Request>) {
        let asked = Instant::now();
        let attempted = self.attempt(requests).await;
        self.context.leave(&self.key);
        match attempted {
            Ok(()) => {
                // Somebody may have been assigned anew while it ended.
                let issue = (self.key.repository_id, self.key.number);
                if let Err(error) = look::at_issue(&self.context, issue, None).await {
                    self.context.failed(
                        asked,
                        &error,
                        "an issue cannot be looked at after its run",
                    );
                }
            }
            Err(GivenUp::NotOurs) => {}
            Err(GivenUp::Broker(error)) => {
                self.context.failed(asked, &error, "a run cannot be begun");
            }
        }
        self.context.room.notify_one();
    }

    async fn attempt(&mut self, requests: mpsc::Receiver<Request>) -> Result<(), GivenUp> {
        let claimed = reconcile::claim(&self.run, &self.context.host, Timestamp::now());
        let mut claimed = claimed.ok_or(GivenUp::NotOurs)?;
        // By the rule with which it runs: it may have changed since the run was queued.
        claimed.grace_secs = self.rule.grace_secs();
        (claimed.on_restart, claimed.is_call) = (self.rule.on_restart, self.rule.is_call());
        // Before the write, since others count from when they see it.
        let written = Instant::now();
        let read = self.context.view(|view| view.revision);
        self.replace(claimed).await?;
        // From here on it is ours, and whatever happens is written.
        if self.revision <= read {
            // Only a bucket that was restored counts so low. What it has forgotten may still have a live run,
            // so this one waits as if its runner were lost.
            return self.finish(Ending::RunnerLost, Output::default()).await;
        }
        let begun = self.begun().await;
        let ending = match begun {
            Ok(Err(ending)) => ending,
            Ok(Ok(input)) => {
                let span = self.span();
                let ending =
                    self.work(input, written, requests, &span).instrument(span.clone()).await;
                span.record("outcome", field::display(&ending.0));
                return self.finish(ending.0, ending.1).await;
            }
            Err(GivenUp::NotOurs) => return Err(GivenUp::NotOurs),
            Err(GivenUp::Broker(error)) => {
                self.context.failed(written, &error, "a run cannot be begun");
                // Nothing has begun, so that it may begin later whatever `on_restart` says.
                Ending::Unavailable("the broker failed before it began".into())
            }
        };
        self.finish(ending, Output::default()).await
    }

    /// Looks at the issue once more and writes that the run begins. Returns what it reads, or how the
    /// attempt ends if it is not to begin.
    async fn begun(&mut self) -> Result<Result<Vec<u8>, Ending>, GivenUp> {
        let stopped = Ending::Process(Ended::Stopped { killed: false });
        let store = self.context.store().await?;
        if !self.context.is_of_bucket_read(&store, &self.run).await? {
            // This one waits as if its runner were lost.
            return Ok(Err(Ending::RunnerLost));
        }
        let known = store.issue(self.key.repository_id, self.key.number).await?;
        let change = match self.change.take() {
            Some(change) => Some(change),
            None => {
                // A stream that was made anew has another change at this place.
                let change = store.change(self.run.change).await?;
                change.filter(|change| self.key.is_of(change)).map(Arc::new)
            }
        };
        if !self.run.tells_end {
            match self.want(known.as_ref(), change.as_deref()) {
                Want::Yes(_) => {}
                Want::No(reason) => {
                    let now = Timestamp::now();
                    self.run.desired = Desired::Stop;
                    (self.run.stop_reason, self.run.stop_told_at) = (reason.into(), Some(now));
                    return Ok(Err(stopped));
                }
                Want::Unknown => {
                    let why = "it is not known whether the issue wants it";
                    return Ok(Err(Ending::Unavailable(why.into())));
                }
            }
        }
        let input = input::json(&self.key, &self.run, known.as_ref(), change.as_deref());
        let input = input.map_err(StoreError::Encode)?;
        loop {
            let next = reconcile::begin(&self.run, &self.context.host, Timestamp::now());
            let Some(next) = next else { return Ok(Err(stopped)) };
            match self.replace(next).await {
                Ok(()) => return Ok(Ok(input)),
                // A stop was written, or a confirmation was lost.
                Err(GivenUp::NotOurs) => {
                    if !self.read_again().await? {
                        return Err(GivenUp::NotOurs);
                    }
                    if self.run.phase == Phase::Running {
                        return Ok(Ok(input));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the run may begin or go on, by the rules as they are now.
    fn want(&self, known: Option<&Known>, change: Option<&Change>) -> Want {
        let rules = self.context.rules();
        want(rules.get(&self.key.rule).map(AsRef::as_ref), &self.run, known, change)
    }

    /// Reads the entry again. Returns whether it is still this attempt's.
    async fn read_again(&mut self) -> Result<bool, StoreError> {
        let (found, revision) = self.context.store_of_runs().await?.run(&self.key).await?;
        let Some(found) = found.filter(|found| self.is_ours(found)) else { return Ok(false) };
        (self.run, self.revision) = (found, revision);
        Ok(true)
    }

    fn is_ours(&self, found: &Run) -> bool {
        found.host == self.context.host
            && found.generation == self.run.generation
            && found.attempt == self.run.attempt
    }

    async fn replace(&mut self, next: Run) -> Result<(), GivenUp> {
        let store = self.context.store_of_runs().await?;
        self.revision = store.write(&self.key, &next, self.revision).await?;
        self.run = next;
        let (run, revision) = (&self.run, self.revision);
        self.context.view(|view| view.note(self.key.clone(), Some(run), revision, Instant::now()));
        Ok(())
    }

    /// The span of the attempt, a child of the change's.
    fn span(&self) -> Span {
        let span = info_span!(
            target: trace::TRACES_ONLY,
            parent: None,
            "run",
            otel.name = format!("run {}", self.key.rule),
            otel.kind = "internal",
            gitea.issue.ref = self.run.issue,
            gitea.delivery.id = self.run.delivery_id,
            rule = self.key.rule,
            run = self.run.id(&self.key),
            attempt = self.run.attempt,
            outcome = field::Empty,
            otel.status_code = field::Empty,
        );
        if let Some(parent) = self.parent() {
            trace::make_child(&span, &parent);
        }
        span
    }

    fn parent(&self) -> Option<Traceparent> {
        self.run.traceparent.as_deref()?.parse().ok()
    }

    async fn work(
        &mut self,
        input: Vec<u8>,
        written: Instant,
        requests: mpsc::Receiver<Request>,
        span: &Span,
    ) -> (Ending, Output) {
        let rule = Arc::clone(&self.rule);
        let traceparent =
            trace::exported(span).or(self.parent()).map(|context| context.to_string());
        match &rule.work {
            Work::Call(call) => {
                let called = self.call(call, &input, traceparent, written, requests);
                (called.await, Output::default())
            }
            Work::Command(command) => {
                let environment = input::environment(
                    command,
                    &self.context.environment,
                    &self.key,
                    &self.run,
                    traceparent,
                );
                let command = process::Command {
                    argv: command.argv.clone(),
                    directory: command.directory.clone(),
                    user: command.user.clone(),
                    environment,
                    stdin: input,
                    limits: command.limits,
                    lease_until: written + hold(self.context.lease),
                };
                let started = process::start(&command).await;
                // It holds the texts of the issue twice, and may run for days.
                drop(command);
                match started {
                    Ok(running) => {
                        self.told_start();
                        self.supervise(running, requests).await
                    }
                    Err(error) => {
                        let why = service::causes::Causes(&error).to_string();
                        let ending = match error {
                            process::StartError::Command { .. } => Ending::NotStarted(why),
                            // Not for the command: this machine may have room for it later.
                            process::StartError::Supervisor(_) => {
                                self.context.warn_limited(&why, "a run cannot be supervised");
                                Ending::Unavailable(why)
                            }
                            process::StartError::LeaseOver => Ending::Unavailable(why),
                        };
                        (ending, Output::default())
                    }
                }
            }
        }
    }

    fn told_start(&self) {
        let run = &self.run;
        self.context.instruments.started(&self.key.rule, run.told_at.filter(|_| run.attempt == 1));
        info!(
            gitea.issue.ref = run.issue, gitea.delivery.id = run.delivery_id,
            trace_id = look::trace_id(run), rule = self.key.rule, run = run.id(&self.key),
            attempt = run.attempt,
            "run started"
        );
    }

    /// Watches a process until nothing is left of it: renews its lease, and ends it once it is to stop.
    async fn supervise(
        &mut self,
        mut running: Running,
        mut requests: mpsc::Receiver<Request>,
    ) -> (Ending, Output) {
        let interval = renewal(self.context.lease);
        let mut due = Instant::now() + interval;
        // A stop may have been written between the claim and now.
        let mut looking = Some(self.look(false));
        let (mut look_again, mut renews) = (false, false);
        let mut is_told = false;
        let (mut is_lost, mut is_drained) = (false, false);
        let stop = self.context.stop.clone();
        let ended = loop {
            tokio::select! {
                biased;
                ended = running.ended() => break ended,
                () = stop.cancelled(), if !is_drained => {
                    is_drained = true;
                    running.stop();
                }
                Some(looked) = next(&mut looking) => {
                    looking = None;
                    match looked {
                        Looked::Ours { run, revision, renewed } => {
                            (self.run, self.revision) = (*run, revision);
                            if let Some(begun) = renewed {
                                running.renew(begun + hold(self.context.lease));
                            }
                            if self.run.desired == Desired::Stop && !is_told {
                                is_told = true;
                                running.stop();
                                self.told_stop();
                            }
                        }
                        Looked::Lost => {
                            is_lost = true;
                            running.stop();
                        }
                        Looked::Failed(error) => due = due.min(self.not_renewed(&error)),
                    }
                    if (look_again || renews) && !is_lost {
                        looking = Some(self.look(std::mem::take(&mut renews)));
                        look_again = false;
                    }
                }
                () = sleep_until(due.into()), if !is_lost => {
                    due = Instant::now() + interval;
                    if looking.is_none() {
                        looking = Some(self.look(true));
                    } else {
                        renews = true;
                    }
                }
                Some(request) = requests.recv() => match request {
                    Request::Look if is_lost => {}
                    Request::Look => {
                        if looking.is_none() {
                            looking = Some(self.look(false));
                        } else {
                            look_again = true;
                        }
                    }
                    Request::Output(reply) => {
                        let _ = reply.send(running.output());
                    }
                },
            }
        };
        let ending = match ended {
            Ended::Stopped { .. } if is_lost => Ending::RunnerLost,
            // Also one whose supervisor was told, as a service manager does at the end of a service.
            // Its end may be seen before our own order to stop.
            Ended::Stopped { .. } if !is_told => Ending::RunnerStopped,
            ended => Ending::Process(ended),
        };
        (ending, running.output())
    }

    /// Tells that a renewal has failed. Returns when it is due again: a broker that is back has the run
    /// renewed before its lease is over.
    fn not_renewed(&self, error: &StoreError) -> Instant {
        self.context.failed(Instant::now(), error, "a run cannot be renewed");
        Instant::now() + RENEW_AGAIN.min(renewal(self.context.lease))
    }

    fn told_stop(&self) {
        let run = &self.run;
        self.context.instruments.stopping(&self.key.rule, run.stop_told_at);
        info!(
            gitea.issue.ref = run.issue, gitea.delivery.id = run.delivery_id,
            trace_id = look::trace_id(run), rule = self.key.rule, run = run.id(&self.key),
            reason = run.stop_reason,
            "run is stopped"
        );
    }

    /// Reads the entry, or renews its lease.
    fn look(&self, renews: bool) -> BoxFuture<'static, Looked> {
        let (context, key) = (Arc::clone(&self.context), self.key.clone());
        let (run, revision) = (self.run.clone(), self.revision);
        let rule = Arc::clone(&self.rule);
        let mut copy = Self { context, key, rule, run, revision, change: None, after: None };
        Box::pin(async move {
            let begun = Instant::now();
            let looked = if renews { copy.renewed().await } else { copy.read_again().await };
            match looked {
                Ok(true) => Looked::Ours {
                    run: Box::new(copy.run),
                    revision: copy.revision,
                    renewed: renews.then_some(begun),
                },
                Ok(false) => Looked::Lost,
                Err(error) => Looked::Failed(error),
            }
        })
    }

    /// Renews the lease. Returns whether the run is still ours. Now and then the issue's state is
    /// looked at too, in case that a change was not told.
    async fn renewed(&mut self) -> Result<bool, StoreError> {
        let store = self.context.store_of_runs().await?;
        loop {
            let mut next = reconcile::renew(&self.run, Timestamp::now());
            if next.desired == Desired::Stop {
                // A call goes on until it is answered.
                if !next.is_call {
                    next.phase = Phase::Stopping;
                }
            } else if let Ok(Ok(Some(known))) =
                // A renewal does not depend on it, nor wait for it.
                timeout(
                    renewal(self.context.lease) / 2,
                    store.issue(self.key.repository_id, self.key.number),
                )
                .await
                && let Want::No(reason) = self.want(Some(&known), None)
            {
                next.desired = Desired::Stop;
                (next.stop_reason, next.stop_told_at) = (reason.into(), Some(Timestamp::now()));
            }
            match self.replace(next).await {
                Ok(()) => return Ok(true),
                Err(GivenUp::NotOurs) => {
                    if !self.read_again().await? {
                        return Ok(false);
                    }
                }
                Err(GivenUp::Broker(error)) => return Err(error),
            }
        }
    }

    /// Writes how the attempt ended, as long as it is ours.
    async fn finish(&mut self, ending: Ending, output: Output) -> Result<(), GivenUp> {
        let mut pause = RETRY;
        let since = Instant::now();
        loop {
            let mut next =
                reconcile::end(&self.run, ending.clone(), Timestamp::now(), fastrand::f64());
            if let (Phase::Again, Some(after)) = (next.phase, self.after) {
                let micros = i64::try_from(after.as_micros()).unwrap_or(i64::MAX);
                let at = Timestamp::now().unix_micros().saturating_add(micros);
                next.not_before = next.not_before.max(Some(Timestamp::from_unix_micros(at)));
            }
            (next.output, next.output_truncated) = kept(&output);
            match self.replace(next).await {
                Ok(()) => break,
                Err(GivenUp::NotOurs) => match self.read_again().await {
                    Ok(true) => {}
                    // A confirmation that was lost, or a runner that has taken it over.
                    Ok(false) => return Ok(()),
                    Err(error) => self.retry(since, error, &mut pause).await,
                },
                Err(GivenUp::Broker(error)) => self.retry(since, error, &mut pause).await,
            }
            if since.elapsed() > self.context.lease * 2 {
                // Another runner has taken it over by then.
                return Ok(());
            }
        }
        self.told_end();
        Ok(())
    }

    async fn retry(&self, since: Instant, error: StoreError, pause: &mut Backoff) {
        self.context.failed(since, &error, "the end of a run cannot be written");
        tokio::select! {
            () = pause.wait() => {}
            // With the next connection at once.
            _ = self.context.broker.connected(), if matches!(error, StoreError::NoConnection) => {}
        }
    }

    fn told_end(&self) {
        let run = &self.run;
        let micros = run.ended_at.zip(run.started_at);
        let micros = micros.map(|(end, start)| end.unix_micros() - start.unix_micros());
        let took = micros.and_then(|micros| u64::try_from(micros).ok()).map(Duration::from_micros);
        self.context.instruments.ended(&self.key.rule, run, took);
        let took_ms = took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        let outcome = run.phase.as_str();
        let reason = run.ended.as_ref().map(ToString::to_string);
        let (issue, delivery, trace) = (&run.issue, &run.delivery_id, look::trace_id(run));
        let (rule, id) = (&self.key.rule, run.id(&self.key));
        if run.phase == Phase::Failed {
            warn!(
                gitea.issue.ref = issue, gitea.delivery.id = delivery, trace_id = trace,
                rule, run = id, attempt = run.attempt, outcome, reason, took_ms,
                "run failed"
            );
        } else {
            info!(
                gitea.issue.ref = issue, gitea.delivery.id = delivery, trace_id = trace,
                rule, run = id, attempt = run.attempt, outcome, reason, took_ms,
                "run ended"
            );
        }
    }
}

/// What a look at the entry of a run has shown.
enum Looked {
    Ours {
        run: Box<Run>,
        revision: u64,
        /// When the renewal began, if it was one.
        renewed: Option<Instant>,
    },
    /// Another runner has it.
    Lost,
    Failed(StoreError),
}

/// Whether a run may begin or go on. `rule` is its rule as it is now, which may be another one than
/// that with which the run was taken. `change` is the one that it follows from.
fn want(rule: Option<&Rule>, run: &Run, known: Option<&Known>, change: Option<&Change>) -> Want {
    let Some(rule) = rule else { return Want::No(RULE_GONE) };
    let Some(known) = known else { return Want::No("gone") };
    let labels = known.labels().or(change.map(|change| change.issue.labels.as_slice()));
    // It had the label when it was queued, and nothing says that it has not any more.
    let has_begun = run.started_at.is_some() || labels.is_none();
    rule.wants(&known.issue, labels, has_begun)
}

async fn next(looking: &mut Option<BoxFuture<'static, Looked>>) -> Option<Looked> {
    match looking {
        Some(looking) => Some(looking.await),
        None => None,
    }
}

/// Time after the last renewal at which a run ends by itself, sooner than another runner may take it.
fn hold(lease: Duration) -> Duration {
    lease * 3 / 4
}

/// Time between two renewals.
fn renewal(lease: Duration) -> Duration {
    (lease / 6).min(Duration::from_secs(5))
}

/// The end of the output that an entry keeps.
fn kept(output: &Output) -> (String, bool) {
    let least = output.tail.len().saturating_sub(KEPT_OUTPUT);
    let from = (least..).find(|at| output.tail.is_char_boundary(*at)).unwrap_or(least);
    (output.tail[from..].to_owned(), output.truncated || from > 0)
}

#[cfg(test)]
mod tests {
    use contract::{change::ChangeKind, event, issue_state::Person};

    use super::*;
    use crate::{look::tests::known, rules::example};

    #[test]
    fn what_was_queued_begins_by_the_rule_of_now_and_with_its_label_alone() {
        let (bot, tom) =
            (example("who = { login = \"bot\" }"), example("who = { login = \"tom\" }"));
        let label = example("who = { login = \"bot\", label = \"agent\" }");
        let (with, without) = (known(Some(&["agent"])), known(Some(&["bug"])));
        let mut change = Change::from_event(ChangeKind::Assigned, &event::example());
        change.issue.labels = vec!["bug".into()];
        let yes = Want::Yes(Person { id: 4, login: "bot".into() });
        let queued = Run { attempt: 1, ..Run::default() };
        // It was lost before it began, or after that.
        let again = Run { attempt: 2, ..Run::default() };
        let begun = Run { started_at: Some(Timestamp::now()), ..again.clone() };
        let no_label = Want::No("without the label");
        for (rule, run, known, change, expected) in [
            (None, &queued, Some(&with), None, Want::No("rule gone")),
            (Some(&bot), &queued, None, None, Want::No("gone")),
            (Some(&bot), &queued, Some(&without), None, yes.clone()),
            (Some(&tom), &queued, Some(&without), None, Want::No("unassigned")),
            (Some(&tom), &begun, Some(&without), None, Want::No("unassigned")),
            (Some(&label), &queued, Some(&with), Some(&change), yes.clone()),
            (Some(&label), &queued, Some(&without), None, no_label.clone()),
            (Some(&label), &again, Some(&without), None, no_label.clone()),
            (Some(&label), &queued, Some(&known(None)), Some(&change), no_label.clone()),
            (Some(&label), &queued, Some(&known(None)), None, yes.clone()),
            (Some(&label), &begun, Some(&without), None, yes.clone()),
        ] {
            let found = want(rule.map(AsRef::as_ref), run, known, change);
            assert_eq!(found, expected, "{rule:?} {run:?} {known:?}");
        }
    }
}
