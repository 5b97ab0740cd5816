//! A small deployment to look at: a Gitea with some people and issues, a broker, and `coordinator up`,
//! with a runner where there are rules.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use async_nats::jetstream;
use contract::{
    dead_letter::{self, History},
    envelope::Headers,
    event::IssueEvent,
    names,
};
use tests::{
    bus,
    gitea::{Delivery, SECRET},
    gitea_server::{GiteaServer, NewIssue},
    nats::Nats,
    runners::{Agents, run_entry},
    services::{Both, both_at},
    system, temp_dir, wait,
};
use uuid::Uuid;

/// What an agent writes, longer than what a page shows of it at once.
const AT_WORK: &str = r#"
note() { echo "$1 $COORDINATOR_RULE $COORDINATOR_ISSUE $COORDINATOR_RUN $$ 0" >> "$LOG"; }
trap 'note term; exit 0' TERM
echo "working on $COORDINATOR_ISSUE, attempt $COORDINATOR_ATTEMPT"
echo 'cloned acme/widgets at main (4f2c1e7)'
for step in $(seq 1 40); do echo "test $step of 40: web::settings::keeps_the_theme_$step ... ok"; done
echo '40 passed, 0 failed'
echo 'editing web/settings.css: colors by prefers-color-scheme'
note start
until [ -e "$LOG.more" ]; do sleep 0.1; done
echo 'pushed the branch dark-mode'
while :; do sleep 0.1; done
"#;
const FINDS_FAULTS: &str = "echo 'docs/signing.md, line 12: the command needs --key'; exit 1";

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");

/// The deployment.
pub struct World {
    /// Gitea.
    pub gitea: GiteaServer,
    /// `acme/widgets`.
    pub widgets: i64,
    /// JetStream as an outside reader has it.
    pub js: jetstream::Context,
    /// What runs, where there are rules.
    pub agents: Agents,
    both: Both,
    _nats: Nats,
    _data: tempfile::TempDir,
}

impl World {
    /// Starts all of it, with more settings as environment variables.
    pub async fn start(more: &[(&str, &str)]) -> Self {
        Self::start_for(Agents::default(), more).await
    }

    /// The same with agents of three of its people: what runs after a morning, waits and has failed.
    pub async fn with_agents(more: &[(&str, &str)]) -> Self {
        let rules = [
            Agents::rule("agent", AT_WORK, ""),
            Agents::rule_for("login = \"tom\"", "triage", AT_WORK, "concurrency = 1"),
            Agents::rule_for("login = \"li-wei\"", "review", FINDS_FAULTS, ""),
        ];
        Self::with_rules(&rules.concat(), more).await
    }

    /// The same with these rules.
    pub async fn with_rules(rules: &str, more: &[(&str, &str)]) -> Self {
        let agents = Agents::default();
        agents.write_rules(rules);
        let (rules, log) = (agents.rules(), agents.log());
        let own = [
            ("REACTOR_RULES", rules.to_str().expect("UTF-8")),
            ("LOG", log.to_str().expect("UTF-8")),
        ];
        Self::start_for(agents, &[&own, more].concat()).await
    }

    async fn start_for(agents: Agents, more: &[(&str, &str)]) -> Self {
        let (gitea, nats, data) = (GiteaServer::start().await, Nats::start().await, temp_dir());
        gitea.add_admin("maria");
        for login in ["acme", "bot", "tom", "li-wei"] {
            gitea.add_user(login);
        }
        let widgets = gitea.add_repository("acme", "widgets");
        let token = gitea.add_token("coordinator", "maria", &["all"]);
        let gitea_url = gitea.url();
        let own = [
            ("GITEA_URL", gitea_url.as_str()),
            ("GITEA_TOKEN", &token),
            // A sweep would find what the webhooks are about to tell.
            ("SYNC_INTERVAL_SECS", "86400"),
        ];
        let both = both_at(Path::new(EXE), &nats.url(), data.path(), &[&own, more].concat()).await;
        gitea.deliver_to(&format!("http://{}/webhook/gitea", both.webhook), SECRET);
        let js = jetstream::new(nats.client().await);
        Self { gitea, widgets, js, agents, both, _nats: nats, _data: data }
    }

    /// Where the pages are: `http://127.0.0.1:` and a port.
    pub fn origin(&self) -> &str {
        &self.both.pages
    }

    /// The address of a page.
    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.both.pages)
    }

    /// Lets people work on some issues of `acme/widgets`, and waits until all of it is handled.
    /// Number 1 was assigned, handed over, closed and reopened.
    pub async fn live_through_a_morning(&self) {
        let (gitea, widgets) = (&self.gitea, self.widgets);
        // In the past and apart, so that no second is in doubt.
        gitea.advance(-3_600);
        let new = |title, assignees, labels| {
            let body = "Steps: open `/login`, press *Sign in*.";
            let number =
                gitea.create_issue(widgets, "maria", &NewIssue { title, body, assignees, labels });
            gitea.advance(40);
            number
        };
        let first = new("Login page returns 500", &["bot"], &["bug"]);
        let invoices = new("Invoices show the net amount twice", &["bot", "li-wei"], &["bug"]);
        let dark = new("Dark mode for the settings", &[], &["feature"]);
        let upload = new("Upload of files above 2 GB stops at 99 %", &["tom"], &["bug"]);
        new("Docs: how to rotate the signing key", &["li-wei"], &["docs"]);
        gitea.assign(widgets, first, "tom", "maria");
        gitea.advance(90);
        gitea.unassign(widgets, first, "bot", "tom");
        gitea.advance(200);
        gitea.close(widgets, first, "tom");
        gitea.advance(15);
        gitea.assign(widgets, dark, "bot", "maria");
        gitea.advance(30);
        gitea.close(widgets, invoices, "li-wei");
        gitea.advance(60);
        gitea.reopen(widgets, first, "maria");
        gitea.advance(20);
        gitea.edit_title(widgets, upload, "Uploads above 2 GB stop at 99 %", "tom");
        gitea.use_real_clock();
        self.calm().await;
    }

    /// Lets people work on many issues of other repositories for so long, with pauses.
    pub async fn work_on(&self, time: Duration) {
        let people = ["bot", "tom", "li-wei"];
        let repositories = ["website", "infra"].map(|name| self.gitea.add_repository("acme", name));
        let titles = [
            "Renew the certificate of the staging host",
            "The menu covers the search on phones",
            "Backups of the wiki take an hour",
            "Link to the imprint is dead",
        ];
        let started = Instant::now();
        for round in 0.. {
            if started.elapsed() >= time {
                break;
            }
            let (repository, title) = (repositories[round % 2], titles[round % titles.len()]);
            let (one, other) = (people[round % 3], people[(round + 1) % 3]);
            let issue = NewIssue { title, assignees: &[one], ..NewIssue::default() };
            let number = self.gitea.create_issue(repository, "maria", &issue);
            self.gitea.set_assignees(repository, number, &[other], "maria");
            self.gitea.close(repository, number, other);
            // Busy and quiet minutes take turns.
            let pause =
                if (started.elapsed().as_secs() / 60).is_multiple_of(2) { 700 } else { 3_000 };
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self.calm().await;
    }

    /// Sends a delivery of its own, which must be accepted.
    pub async fn send(&self, delivery: &Delivery) {
        let answer = system::send(&reqwest::Client::new(), self.both.webhook, delivery).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    /// Waits until all that was delivered is handled.
    pub async fn calm(&self) {
        self.gitea.all_delivered().await;
        let (delivered, _) = self.gitea.delivered();
        wait::until("the events to be in the stream", || async {
            (bus::count(&self.js, names::EVENTS).await >= delivered).then_some(())
        })
        .await;
        wait::until_equal("events to be handled", Some(0), || bus::lag(&self.js)).await;
    }

    /// The newest event of an issue of `acme/widgets` with this action.
    pub async fn event(&self, number: u64, action: &str) -> IssueEvent {
        let mut events = bus::events(&self.js).await.into_iter().rev();
        let found = events.find(|event| {
            event.repository.name == "widgets"
                && event.issue.number == number
                && event.action.as_str() == action
        });
        found.expect("such an event")
    }

    /// Gives up events as a worker does: the first event of the stream, as one of other issues, from
    /// number `first` on. All could be handled now.
    pub async fn give_up(&self, first: u64, count: u64, error: &str) {
        let stored = bus::messages(&self.js, names::EVENTS).await.expect("the stream");
        let (message, mut event) = stored
            .iter()
            .find_map(|message| {
                Some((message, serde_json::from_slice::<IssueEvent>(&message.payload).ok()?))
            })
            .expect("an event");
        let mut confirmations = Vec::new();
        for number in first..first + count {
            event.issue.number = number;
            event.delivery.id = Uuid::new_v4().to_string();
            let traceparent =
                format!("00-{}-00f067aa0ba902b7-01", event.delivery.id.replace('-', ""));
            let subject = contract::subject::EventSubject::of(
                &event,
                contract::partitions::Partitions::DEFAULT,
            );
            let mut headers = Headers::default();
            for (name, values) in message.headers.iter() {
                let value = match name.to_string().as_str() {
                    "Nats-Msg-Id" | "ce-id" => event.delivery.id.clone(),
                    "traceparent" => traceparent.clone(),
                    "ce-subject" => event.issue_ref(),
                    _ => values[0].to_string(),
                };
                headers.push(name.to_string(), value);
            }
            let history = History {
                error: error.to_owned(),
                attempts: 5,
                stream: names::EVENTS.to_owned(),
                sequence: 1_000_000 + number,
            };
            let payload = serde_json::to_vec(&event).expect("JSON");
            let letter = dead_letter::park(&subject.to_string(), &headers, payload, &history);
            let headers = bus::header_map(&letter.headers);
            let sent = self.js.publish_with_headers(letter.subject, headers, letter.payload.into());
            confirmations.push(sent.await.expect("published"));
        }
        for confirmation in confirmations {
            confirmation.await.expect("confirmed");
        }
    }

    /// The address of a run's page, once it is so far. Of an issue of `acme/widgets`.
    pub async fn run(&self, number: u64, rule: &str, phase: &str) -> String {
        let key = format!("{}.{number}.{rule}", self.widgets);
        let expected = serde_json::Value::from(phase);
        wait::until_equal(&format!("{key} to be {phase}"), expected, || async {
            run_entry(&self.js, &key).await["phase"].clone()
        })
        .await;
        format!("/runs/{}", key.replace('.', "%2E"))
    }

    /// How many dead letters there are.
    pub async fn dead_letters(&self) -> u64 {
        bus::count(&self.js, names::DEAD_LETTERS).await
    }
}
