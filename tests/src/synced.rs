//! The whole pipeline beside a Gitea: it delivers its changes, and a worker asks it.

use std::path::Path;

use async_nats::jetstream::kv;
use contract::names::GAP_SUBJECT;
use contract::{
    change::Change,
    issue_state::{self, KnownIssue, Lifecycle},
    names,
};

use service::broker::{findings::Findings, streams::Streams};

use crate::{
    bus,
    check::{self, Believed, Key},
    gitea::SECRET,
    gitea_server::GiteaServer,
    nats::Nats,
    process::Process,
    services::worker_at,
    system::{Running, asking_worker_config, ingest_config, start_asking_worker, start_ingest},
    temp_dir, wait,
};

/// What is known of an issue: logins in order, how it is, whether that is in doubt.
pub type Known = (Vec<String>, Lifecycle, bool);

/// A Gitea with an admin `maria`, a repository `acme/widgets`, and users `bot`, `tom` and `li-wei`;
/// a broker, an ingest that Gitea delivers to, and a worker that asks Gitea.
pub struct Synced {
    /// Gitea.
    pub gitea: GiteaServer,
    /// `acme/widgets`.
    pub widgets: i64,
    /// The broker.
    pub nats: Nats,
    /// JetStream as an outside reader has it.
    pub js: async_nats::jetstream::Context,
    /// The ingest.
    pub ingest: Running,
    /// The worker. None while there is none.
    pub worker: Option<Running>,
    token: String,
    flags: Vec<String>,
    _data: tempfile::TempDir,
}

impl Synced {
    /// Starts all of it, with more flags for the worker and its jobs. Without them it sweeps once and
    /// repairs nothing: only doubts make it ask.
    pub async fn start(flags: &[&str]) -> Self {
        let mut synced = Self::start_without_worker(flags).await;
        synced.start_worker().await;
        // A first sweep that comes later would find what a test does.
        synced.swept_after(0).await;
        synced
    }

    /// Like [`Synced::start`], but there is no worker yet.
    pub async fn start_without_worker(flags: &[&str]) -> Self {
        let (gitea, nats, data) = (GiteaServer::start().await, Nats::start().await, temp_dir());
        gitea.add_admin("maria");
        for login in ["acme", "bot", "tom", "li-wei"] {
            gitea.add_user(login);
        }
        let widgets = gitea.add_repository("acme", "widgets");
        let token = gitea.add_token("coordinator", "maria", &["all"]);
        let url = gitea.url();
        let config = ingest_config(&nats.url(), data.path(), &["--gitea-url", &url]);
        let js = async_nats::jetstream::new(nats.client().await);
        // Ingest tells that it was away as soon as there is somebody to tell. A sweep after that, at any
        // time, would find what a test does.
        let findings = Findings::default();
        let streams = &config.common.streams;
        let streams = Streams { js: &js, settings: streams, findings: &findings };
        let questions = streams.questions().await.expect("the queue of questions");
        let ingest = start_ingest(&config).await;
        wait::until_equal("the message of ingest", 1, || bus::count(&js, names::QUESTIONS)).await;
        questions.purge().await.expect("a purge");
        gitea.deliver_to(&webhook(&ingest), SECRET);
        let mut all: Vec<String> = ["--gitea-url", &url].map(str::to_owned).into();
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        // Tests are not to wait for the budget.
        if !flags.contains(&"--gitea-requests-per-second") {
            all.extend(["--gitea-requests-per-second", "1000"].map(str::to_owned));
        }
        Self { gitea, widgets, nats, js, ingest, worker: None, token, flags: all, _data: data }
    }

    /// Starts the worker, or another one.
    pub async fn start_worker(&mut self) {
        self.worker = Some(self.another_worker().await);
    }

    /// Starts a worker with the same settings.
    pub async fn another_worker(&self) -> Running {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        start_asking_worker(&asking_worker_config(&self.nats.url(), &self.token, &flags)).await
    }

    /// Starts a worker with the same settings as a process of its own.
    pub fn worker_process(&self, exe: &Path) -> Process {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        worker_at(exe, &self.nats.url(), &flags, &[("GITEA_TOKEN", &self.token)])
    }

    /// Gives the worker that starts next, and who asks for [`Synced::token`], another token of a user.
    pub fn use_token_of(&mut self, login: &str, scopes: &[&str]) {
        self.token = self.gitea.add_token(login, login, scopes);
    }

    /// The token of Gitea's API.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Tells that ingest was not there for a while, as it does itself.
    pub async fn tell_gap(&self) {
        let sent = self.js.publish(GAP_SUBJECT, "".into()).await.expect("published");
        sent.await.expect("confirmed");
    }

    /// What is kept of the sweeps: the revision of the last step, whether one is under way.
    pub async fn sweep(&self) -> Option<(u64, bool)> {
        sweep(&self.js).await
    }

    /// Waits until a sweep is complete whose end has a later revision than this. Returns that.
    pub async fn swept_after(&self, revision: u64) -> u64 {
        swept_after(&self.js, revision).await
    }

    /// What is known of an issue. None if nothing is.
    pub async fn known(&self, key: Key) -> Option<Known> {
        known(&self.js.get_key_value(names::ISSUE_STATE).await.ok()?, key).await
    }

    /// Waits until what is known of these issues is what Gitea has, with no doubt left.
    pub async fn equal(&self, issues: &[Key]) {
        self.gitea.all_delivered().await;
        // An event that is on its way may still undo what was equal for a moment.
        loop {
            wait::until_equal("what is known to be what Gitea has", None, || self.other(issues))
                .await;
            self.calm().await;
            if self.other(issues).await.is_none() {
                return;
            }
        }
    }

    /// The first of these issues of which something else is known than Gitea has.
    async fn other(&self, issues: &[Key]) -> Option<String> {
        let Ok(states) = self.js.get_key_value(names::ISSUE_STATE).await else {
            return Some("no bucket".to_owned());
        };
        for key in issues {
            let (known, expected) = (known(&states, *key).await, self.in_gitea(*key));
            if known.as_ref() != Some(&expected) {
                return Some(format!("{key:?}: {known:?} instead of {expected:?}"));
            }
        }
        None
    }

    /// Waits until all events are handled. Questions may wait: the repair goes on raising them.
    pub async fn calm(&self) {
        wait::until_equal("events to be handled", Some(0), || bus::lag(&self.js)).await;
    }

    /// All changes, after a check that subscribers who fold them believe what Gitea has of these
    /// issues.
    ///
    /// # Panics
    /// With a list of what is wrong.
    pub async fn told(&self, issues: &[Key]) -> Vec<Change> {
        let changes = bus::changes(&self.js).await;
        let expected: Believed =
            issues.iter().map(|(r, n)| ((*r, *n), self.gitea.state_of(*r, *n))).collect();
        let wrong = check::wrongly_told(&changes, &expected);
        assert!(wrong.is_empty(), "{} wrong:\n  {}", wrong.len(), wrong.join("\n  "));
        changes
    }

    /// What would have to be known of an issue.
    fn in_gitea(&self, (repository, number): Key) -> Known {
        let Some((mut logins, is_open)) = self.gitea.state_of(repository, number) else {
            return (Vec::new(), Lifecycle::Deleted, false);
        };
        logins.sort();
        (logins, if is_open { Lifecycle::Open } else { Lifecycle::Closed }, false)
    }
}

async fn known(states: &kv::Store, (repository, number): Key) -> Option<Known> {
    let entry = states.get(issue_state::key(repository, number)).await.ok()??;
    let known: KnownIssue = serde_json::from_slice(&entry).expect("a state");
    let mut logins: Vec<String> = known.assignees.into_iter().map(|p| p.login).collect();
    logins.sort();
    Some((logins, known.state, known.in_doubt))
}

/// What is kept of the sweeps: the revision of the last step, whether one is under way.
pub async fn sweep(js: &async_nats::jetstream::Context) -> Option<(u64, bool)> {
    let sync = js.get_key_value(names::SYNC).await.ok()?;
    let entry = sync.entry("missed").await.ok()??;
    let kept: serde_json::Value = serde_json::from_slice(&entry.value).expect("JSON");
    Some((entry.revision, !kept["under_way"].is_null()))
}

/// Waits until a sweep is complete whose end has a later revision than this. Returns that.
pub async fn swept_after(js: &async_nats::jetstream::Context, revision: u64) -> u64 {
    wait::until("a complete sweep", || async {
        let (at, is_under_way) = sweep(js).await?;
        (at > revision && !is_under_way).then_some(at)
    })
    .await
}

/// A change in short: `assigned +bot by maria`; `missed` before it names the cause of an answer.
pub fn short(change: &Change) -> String {
    let cause = change.cause.synced.map(|cause| format!("{cause}: ")).unwrap_or_default();
    let by: Vec<&str> =
        change.by.iter().map(|by| by.as_ref().map_or("?", |user| &user.login)).collect();
    let by = if by.is_empty() { String::new() } else { format!(" by {}", by.join(",")) };
    format!("{cause}{}{by}", change.summary())
}

/// The address of the webhook.
pub fn webhook(ingest: &Running) -> String {
    format!("http://{}/webhook/gitea", ingest.address)
}
