//! What all parts of the runner share.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex as StdMutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use contract::timestamp::Timestamp;
use service::{
    broker::{Broker, Session, findings::Findings, streams::StreamsSettings},
    causes::Causes,
    log_limit::LogLimit,
};
use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use crate::{
    instruments::Instruments,
    process::Output,
    rules::{Rule, Rules},
    run::{Extent, Run, RunKey},
    store::{Opening, Store, StoreError},
    view::{MARGIN, View},
};

/// What all parts of the runner share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) broker: Broker,
    /// Random, made at the start: a runner that starts again is another one.
    pub(crate) host: String,
    pub(crate) lease: Duration,
    kept: Duration,
    /// The role's own environment.
    pub(crate) environment: HashMap<String, String>,
    pub(crate) instruments: Instruments,
    /// Wakes what starts runs that wait.
    pub(crate) room: Notify,
    pub(crate) stop: CancellationToken,
    /// The runs of this runner.
    pub(crate) attempts: TaskTracker,
    rules: RwLock<Arc<Rules>>,
    view: StdMutex<View>,
    live: StdMutex<Live>,
    streams: StreamsSettings,
    findings: Arc<Findings>,
    lines: LogLimit,
    /// What was looked up last.
    found: StdMutex<Option<Store>>,
    /// Something of it seems to be missing.
    is_stale: AtomicBool,
    /// One looks it up at a time.
    looking_up: Mutex<()>,
    /// Nothing begins before: the bucket was made anew, and who had a run in the former one may still end it.
    quiet_until: StdMutex<Option<Instant>>,
    /// Wakes what looks at all issues.
    pub(crate) sweep: Notify,
    reading: Mutex<Reading>,
    /// When the bucket was created that was read last.
    bucket_created_at: StdMutex<Option<Timestamp>>,
    wrong_rules: StdMutex<Option<String>>,
}

/// The runs of this runner, and where to ask them.
type Live = HashMap<RunKey, mpsc::Sender<Request>>;

/// How far the view was read.
#[derive(Debug, Default)]
struct Reading {
    /// Session of the last reading.
    session: u64,
    /// When the last reading that was complete began.
    begun: Option<Instant>,
}

/// What is asked of a run of this runner.
#[derive(Debug)]
pub(crate) enum Request {
    /// Look at its entry.
    Look,
    /// What it has written so far.
    Output(oneshot::Sender<Output>),
}

/// What a new context is made of.
pub(crate) struct Parts {
    pub(crate) broker: Broker,
    pub(crate) host: String,
    pub(crate) lease: Duration,
    /// How long the broker keeps the entry of a run that is settled.
    pub(crate) kept: Duration,
    pub(crate) environment: HashMap<String, String>,
    pub(crate) instruments: Instruments,
    pub(crate) rules: Rules,
    pub(crate) streams: StreamsSettings,
    pub(crate) stop: CancellationToken,
}

impl Context {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            broker: parts.broker,
            host: parts.host,
            lease: parts.lease,
            kept: parts.kept,
            environment: parts.environment,
            instruments: parts.instruments,
            room: Notify::new(),
            stop: parts.stop,
            attempts: TaskTracker::new(),
            rules: RwLock::new(Arc::new(parts.rules)),
            view: StdMutex::default(),
            live: StdMutex::default(),
            streams: parts.streams,
            findings: Arc::default(),
            lines: LogLimit::new(),
            found: StdMutex::default(),
            is_stale: AtomicBool::default(),
            looking_up: Mutex::default(),
            quiet_until: StdMutex::default(),
            sweep: Notify::new(),
            reading: Mutex::default(),
            bucket_created_at: StdMutex::default(),
            wrong_rules: StdMutex::default(),
        }
    }

    /// The rules as they are now.
    pub(crate) fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts other rules in place. Returns the former ones.
    pub(crate) fn set_rules(&self, rules: Rules) -> Arc<Rules> {
        let mut place = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *place, Arc::new(rules))
    }

    /// Notes what is wrong with the file of the rules, whose former ones stay in place.
    pub(crate) fn set_wrong_rules(&self, wrong: Option<String>) {
        *self.wrong_rules.lock().unwrap_or_else(PoisonError::into_inner) = wrong;
    }

    /// What is wrong with the file of the rules.
    pub(crate) fn wrong_rules(&self) -> Option<String> {
        self.wrong_rules.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at, or changes, what is known of all runs.
    pub(crate) fn view<T>(&self, with: impl FnOnce(&mut View) -> T) -> T {
        with(&mut self.view.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What stands on the broker. It is looked up once a connection, and created where it is missing.
    pub(crate) async fn store(&self) -> Result<Store, StoreError> {
        let session = self.broker.session().ok_or(StoreError::NoConnection)?;
        let good = || self.found(&session).filter(|_| !self.is_stale.load(Ordering::Relaxed));
        if let Some(store) = good() {
            return Ok(store);
        }
        let _turn = self.looking_up.lock().await;
        if let Some(store) = good() {
            return Ok(store);
        }
        let is_first = self.found.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        let opening = Opening {
            settings: &self.streams,
            findings: &self.findings,
            kept: self.kept,
            // Later on a run may wait for its renewal.
            allows_ttls: is_first,
        };
        let store = Store::open(session.clone(), opening).await?;
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(store.clone());
        self.is_stale.store(false, Ordering::Relaxed);
        Ok(store)
    }

    /// The same for a run that goes on: it must not end because something that others need is missing,
    /// so what was found before on this connection will do.
    pub(crate) async fn store_of_runs(&self) -> Result<Store, StoreError> {
        let session = self.broker.session().ok_or(StoreError::NoConnection)?;
        match self.found(&session) {
            Some(store) => Ok(store),
            None => self.store().await,
        }
    }

    fn found(&self, session: &Session) -> Option<Store> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.as_ref().filter(|store| store.session.number() == session.number()).cloned()
    }

    /// What the consumer of changes needs on the broker.
    pub(crate) async fn consumer(&self) -> Result<(), StoreError> {
        self.store().await?.consumer(&self.streams).await
    }

    /// Has what stands on the broker looked up again, since something seems to be missing.
    pub(crate) fn look_up_again(&self) {
        self.is_stale.store(true, Ordering::Relaxed);
    }

    /// What on the broker is not as needed.
    pub(crate) fn unfit(&self) -> Vec<String> {
        self.findings.unfit()
    }

    /// Reads what was written to the bucket since the last look. What was written before the call is
    /// known afterwards.
    ///
    /// # Errors
    /// If the broker fails.
    pub(crate) async fn refresh(&self) -> Result<(), StoreError> {
        let asked = Instant::now();
        let mut reading = self.reading.lock().await;
        if reading.begun.is_some_and(|begun| begun >= asked) {
            return Ok(());
        }
        let begun = Instant::now();
        let session = std::mem::take(&mut reading.session);
        let store = self.store().await?;
        // The leader's, so that nothing is missing that was written before the call.
        let Extent { created_at, last } = store.extent().await?;
        let was_created_at = self.bucket_created_at();
        // Nobody may have been able to renew since a reading that failed.
        let is_new_session = session != store.session.number();
        // A broker whose store was lost or restored counts anew. On the same connection a leader that has
        // lost its office may answer with an older revision.
        let counts_anew = is_new_session && self.view(|view| view.revision > last);
        if counts_anew || was_created_at.is_some_and(|was| was != created_at) {
            self.is_another_bucket();
        } else if is_new_session {
            self.view(|view| view.was_away(Instant::now()));
        }
        // Last: from here on a claim in this bucket may begin.
        *self.bucket_created_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(created_at);
        self.read_until(&store, last).await?;
        (reading.session, reading.begun) = (store.session.number(), Some(begun));
        self.view(View::is_read);
        Ok(())
    }

    /// Whether a claim is of the bucket that was read last. One in another bucket may be of a run that goes
    /// on by the former.
    ///
    /// # Errors
    /// If the broker fails.
    pub(crate) async fn is_of_bucket_read(
        &self,
        store: &Store,
        claimed: &Run,
    ) -> Result<bool, StoreError> {
        let read = self.bucket_created_at();
        // Entries of a former version do not say, and those of a restored bucket may name the original.
        let is_read = read.is_some()
            && (claimed.bucket_created_at == read
                || Some(store.extent().await?.created_at) == read);
        Ok(is_read && !self.is_quiet())
    }

    fn bucket_created_at(&self) -> Option<Timestamp> {
        *self.bucket_created_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the runs of a bucket that is not there any more. Whoever has one of them ends it within
    /// its lease and its grace period, and nothing begins before that.
    fn is_another_bucket(&self) {
        let longest = self.view(|view| {
            let longest = view.longest_grace();
            view.forget();
            longest
        });
        let of_rules = self.rules().iter().map(|rule| Duration::from_secs(rule.grace_secs())).max();
        let quiet = self.lease + longest.max(of_rules.unwrap_or_default()) + MARGIN;
        warn!(
            quiet_secs = quiet.as_secs(),
            "the bucket of runs is another one; all issues are looked at, and nothing begins until former runs have ended"
        );
        let mut until = self.quiet_until.lock().unwrap_or_else(PoisonError::into_inner);
        // What was known of a bucket before that may have a longer grace period.
        *until = (*until).max(Some(Instant::now() + quiet));
        drop(until);
        self.sweep.notify_one();
    }

    /// Whether former runs may still have to end, so that nothing begins.
    fn is_quiet(&self) -> bool {
        let until = *self.quiet_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Reads on until `last`, or to the end of the bucket.
    async fn read_until(&self, store: &Store, last: u64) -> Result<(), StoreError> {
        let mut next = self.view(|view| view.revision + 1);
        while next <= last {
            let entries = store.read_on(next).await?;
            // What was removed since has left revisions without an entry.
            let read = entries.last.unwrap_or(last);
            self.view(|view| {
                for entry in entries.found {
                    let is_settled = entry.run.as_ref().is_some_and(Run::is_settled);
                    if is_settled && !entry.expires && store.has_ttls() {
                        view.note_lasting(entry.key.clone(), entry.revision);
                    }
                    view.note(entry.key, entry.run.as_ref(), entry.revision, Instant::now());
                }
                view.revision = read;
            });
            next = read + 1;
        }
        Ok(())
    }

    /// Reads a run that the view knows. One that has no entry any more is forgotten.
    pub(crate) async fn run(
        &self,
        store: &Store,
        key: &RunKey,
    ) -> Result<Option<(Run, u64)>, StoreError> {
        let seen = self.view(|view| view.revision_of(key));
        let (run, revision) = store.run(key).await?;
        if let (None, Some(seen)) = (&run, seen) {
            self.view(|view| view.is_gone(key, seen));
        }
        Ok(run.map(|run| (run, revision)))
    }

    /// Whether there is room for a run of this rule.
    pub(crate) fn has_room(&self, key: &RunKey, rule: &Rule) -> bool {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_place(&live, key, rule)
    }

    fn has_place(&self, live: &Live, key: &RunKey, rule: &Rule) -> bool {
        let is_free = live.len() < self.rules().concurrency && free_of_rule(live, rule) > 0;
        is_free && !live.contains_key(key) && !self.stop.is_cancelled() && !self.is_quiet()
    }

    /// Whether there is a place for a run of this rule beside those that have waited for longer. A place
    /// for all is `concurrency` of the file, one for the rule that of the rule.
    pub(crate) fn is_in_turn(&self, run: &Run, rule: &Rule) -> bool {
        let rules = self.rules();
        self.view(|view| {
            let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
            let ahead = view.ahead(run.queued_at, Timestamp::now(), |key| live.contains_key(key));
            // What waits for its rule leaves the places for all to others.
            let ahead_in_all = ahead.iter().filter_map(|(name, count)| {
                let rule = rules.get(name)?;
                Some(free_of_rule(&live, rule).min(*count))
            });
            let ahead_in_all: usize = ahead_in_all.sum();
            let ahead_of_rule = ahead.get(rule.name.as_str()).copied().unwrap_or(0);
            live.len() + ahead_in_all < rules.concurrency
                && ahead_of_rule < free_of_rule(&live, rule)
        })
    }

    /// Takes a place for a run of this rule, if there is room. It is given back by
    /// [`Context::leave`].
    pub(crate) fn take_place(&self, key: &RunKey, rule: &Rule) -> Option<mpsc::Receiver<Request>> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.has_place(&live, key, rule) {
            return None;
        }
        let (sender, receiver) = mpsc::channel(4);
        live.insert(key.clone(), sender);
        Some(receiver)
    }

    /// Gives the place of a run back.
    pub(crate) fn leave(&self, key: &RunKey) {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        self.room.notify_one();
    }

    /// Where to ask a run of this runner. None if it has no such run.
    pub(crate) fn asked(&self, key: &RunKey) -> Option<mpsc::Sender<Request>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// How many runs this runner has.
    pub(crate) fn live_count(&self) -> usize {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Has a run of this runner look at its entry. Returns whether there is one.
    pub(crate) fn nudge(&self, key: &RunKey) -> bool {
        match self.asked(key) {
            // A full channel holds such a request already, or is read at once.
            Some(sender) => sender.try_send(Request::Look).is_ok() || !sender.is_closed(),
            None => false,
        }
    }

    /// Has all runs of this runner look at their entries, since it may not have heard of something.
    pub(crate) fn nudge_all(&self) {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        for sender in live.values() {
            let _ = sender.try_send(Request::Look);
        }
    }

    /// Logs what failed on the broker, one line a cause now and then.
    pub(crate) fn failed(&self, since: Instant, error: &StoreError, what: &'static str) {
        if matches!(error, StoreError::NoConnection) {
            // The broker's keeper says so.
            return;
        }
        let error = self.broker.explain(since, Causes(error).to_string());
        self.warn_limited(&error, what);
    }

    /// Passes over an entry that cannot be read: one of a later version, or of somebody's hand. It must
    /// not keep others from being looked at.
    pub(crate) fn unless_unreadable(
        &self,
        looked: Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        match looked {
            Err(error @ StoreError::Decode(_)) => {
                self.failed(Instant::now(), &error, "an issue or a run is passed over");
                Ok(())
            }
            looked => looked,
        }
    }

    /// Logs what failed, one line a cause now and then.
    pub(crate) fn warn_limited(&self, error: &str, what: &'static str) {
        if let Some(line) = self.lines.line(error) {
            warn!(error, left_out = line.left_out, "{what}; it is tried again");
        }
    }
}

/// Places of a rule that no run of this runner has.
fn free_of_rule(live: &Live, rule: &Rule) -> usize {
    let taken = live.keys().filter(|key| key.rule == rule.name).count();
    rule.concurrency.saturating_sub(taken)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use opentelemetry::global;
    use service::{broker::BrokerSettings, broker::streams::StreamsArgs, settings::Problems};

    use super::*;
    use crate::{attempt, run::Phase};

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        streams: StreamsArgs,
    }

    /// A runner without a broker, with these rules.
    async fn context(rules: &str) -> Arc<Context> {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("rules.toml");
        std::fs::write(&file, rules).expect("write");
        let (broker, _) = Broker::new(&BrokerSettings::default(), "test").await.expect("a broker");
        Arc::new(Context::new(Parts {
            broker,
            host: "host".into(),
            lease: Duration::from_secs(30),
            kept: Duration::from_secs(86_400),
            environment: HashMap::new(),
            instruments: Instruments::new(&global::meter("test")),
            rules: crate::rules::read(&file).expect("rules"),
            streams: Flags::parse_from(["test"]).streams.settings(&mut Problems::default()),
            stop: CancellationToken::new(),
        }))
    }

    fn rule(name: &str, concurrency: usize) -> String {
        format!(
            "[[rule]]\nname = \"{name}\"\nwho = {{ login = \"bot\" }}\n\
             run = {{ argv = [\"/bin/true\"] }}\nconcurrency = {concurrency}\n"
        )
    }

    fn key(rule: &str, number: u64) -> RunKey {
        RunKey { repository_id: 1, number, rule: rule.into() }
    }

    fn waiting(queued: i64) -> Run {
        let queued_at = Some(Timestamp::from_unix_micros(queued));
        Run { phase: Phase::Waiting, queued_at, generation: 1, ..Run::default() }
    }

    /// Whether a run of `rule`, queued after those of `ahead`, is begun at once.
    async fn begins(context: &Arc<Context>, rule: &str, ahead: &[&str]) -> bool {
        for (place, ahead) in (1..).zip(ahead) {
            let run = waiting(place);
            context.view(|view| view.note(key(ahead, place as u64), Some(&run), 1, Instant::now()));
        }
        let (key, run) = (key(rule, 100), waiting(1_000));
        context.view(|view| view.note(key.clone(), Some(&run), 2, Instant::now()));
        let rules = context.rules();
        let begun =
            attempt::begin_in_turn(context, &key, rules.get(rule).expect("it"), (run, 2), None);
        assert_eq!(context.asked(&key).is_some(), begun);
        begun
    }

    #[tokio::test]
    async fn a_new_run_leaves_a_free_place_to_those_that_wait_for_it() {
        let two = format!("concurrency = 3\n{}{}", rule("a", 2), rule("b", 3));
        for (ahead, expected) in [
            (&[][..], true),
            // Both have a place.
            (&["a"], true),
            (&["a", "a"], false),
            (&["b", "a"], true),
            (&["b", "b"], true),
            // They need all places.
            (&["b", "b", "b"], false),
            (&["b", "b", "a"], false),
            // A rule that this runner has not is begun elsewhere.
            (&["c", "c", "c", "c"], true),
        ] {
            let context = context(&two).await;
            assert_eq!(begins(&context, "a", ahead).await, expected, "{ahead:?}");
        }
    }

    #[tokio::test]
    async fn what_waits_for_a_full_rule_keeps_no_other_from_beginning() {
        let context = context(&format!("concurrency = 3\n{}{}", rule("a", 2), rule("b", 1))).await;
        let rules = context.rules();
        let b = rules.get("b").expect("it");
        let _live = context.take_place(&key("b", 50), b).expect("a place");
        assert!(!begins(&context, "b", &[]).await, "it is full");
        assert!(begins(&context, "a", &["b", "b", "b"]).await);
    }
}
