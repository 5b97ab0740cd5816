//! Against a real Gitea, where there is one: `GITEA_TEST_URL`, and `GITEA_TEST_TOKEN` of an admin with
//! all scopes. It must be allowed to post to this machine (`ALLOWED_HOST_LIST`). Without them the test
//! says that it is skipped.
//!
//! What it makes has names of its own, and is removed at the end.

use std::path::Path;

use contract::{
    issue_state::{self, KnownIssue, Lifecycle},
    names,
};
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use tests::{
    bus,
    check::{self, Believed},
    gitea::SECRET,
    nats::Nats,
    process::Process,
    synced::webhook,
    system::{Running, asking_worker_config, ingest_config, start_asking_worker, start_ingest},
    temp_dir, wait,
};

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");
const ISSUES: u64 = 8;

/// The Gitea, and an admin's access to it.
struct Live {
    url: String,
    token: String,
    http: reqwest::Client,
}

impl Live {
    /// None where there is no Gitea.
    fn found() -> Option<Self> {
        let variable = |wanted: &str| {
            let found = std::env::vars().find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.trim_end_matches('/').to_owned())
        };
        let (url, token) = variable("GITEA_TEST_URL").zip(variable("GITEA_TEST_TOKEN"))?;
        let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
        Some(Self { url, token, http })
    }

    async fn api(&self, method: Method, path: &str, body: Value) -> Value {
        let request = self.http.request(method, format!("{}/api/v1{path}", self.url));
        let request = request.header("Authorization", format!("token {}", self.token));
        let response = request.json(&body).send().await.expect("an answer");
        let status = response.status();
        let text = response.text().await.expect("a text");
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }
}

/// A repository of its own, with two collaborators.
struct Story {
    live: Live,
    name: String,
    id: i64,
    users: [String; 2],
    js: async_nats::jetstream::Context,
    nats: Nats,
    _data: tempfile::TempDir,
    _roles: [Running; 2],
}

impl Story {
    async fn start(live: Live) -> Self {
        let owner = live.api(Method::GET, "/user", Value::Null).await;
        let owner = owner["login"].as_str().expect("a login");
        let suffix = format!("{:08x}", fastrand::u32(..));
        let repository = json!({ "name": format!("live-{suffix}"), "private": true });
        let made = live.api(Method::POST, "/user/repos", repository).await;
        let name = format!("{owner}/live-{suffix}");
        let users = ["one", "two"].map(|user| format!("{user}-{suffix}"));
        for user in &users {
            let account = json!({
                "username": user, "email": format!("{user}@example.org"),
                "password": format!("p-{suffix}-{user}"), "must_change_password": false,
            });
            live.api(Method::POST, "/admin/users", account).await;
            let path = format!("/repos/{name}/collaborators/{user}");
            live.api(Method::PUT, &path, json!({ "permission": "write" })).await;
        }
        let (nats, data) = (Nats::start().await, temp_dir());
        let flags = ["--gitea-url", &live.url];
        let ingest = start_ingest(&ingest_config(&nats.url(), data.path(), &flags)).await;
        let worker = asking_worker_config(&nats.url(), &live.token, &flags);
        let worker = start_asking_worker(&worker).await;
        let story = Self {
            id: made["id"].as_i64().expect("an id"),
            name,
            users,
            js: async_nats::jetstream::new(nats.client().await),
            nats,
            _data: data,
            live,
            _roles: [ingest, worker],
        };
        story.run("register", &["--repo", &story.name], 0).await;
        story
    }

    /// Runs a command, which must end with this code.
    async fn run(&self, command: &str, args: &[&str], code: i32) {
        let (nats, target) = (self.nats.url(), webhook(&self._roles[0]));
        let environment = [
            ("GITEA_URL", &*self.live.url),
            ("GITEA_TOKEN", &*self.live.token),
            ("GITEA_WEBHOOK_SECRET", SECRET),
            ("WEBHOOK_URL", &*target),
            ("NATS_URL", &*nats),
            ("DATA_DIR", "/nonexistent"),
        ];
        let mut process = Process::start(Path::new(EXE), command, args, &environment);
        let found = process.exited().await.code();
        assert_eq!(found, Some(code), "{command} {args:?}: {}", process.output());
    }

    async fn issue(&self, method: Method, number: &str, body: Value) -> Value {
        self.live.api(method, &format!("/repos/{}/issues{number}", self.name), body).await
    }

    /// Changes each issue several times, all of them at once, two things a request.
    async fn burst(&self) {
        join_all((1..=ISSUES).map(async |number| {
            for round in 0..6_u32 {
                let who: Vec<&String> = self.users.iter().filter(|_| fastrand::bool()).collect();
                let state = if fastrand::bool() { "open" } else { "closed" };
                let body = json!({ "assignees": who, "state": state, "title": format!("{round}") });
                self.issue(Method::PATCH, &format!("/{number}"), body).await;
            }
        }))
        .await;
    }

    /// Waits until each issue is known as Gitea has it, with no doubt left, and so told.
    async fn equal(&self) {
        let mut expected = Believed::new();
        for number in 1..=ISSUES {
            let issue = self.issue(Method::GET, &format!("/{number}"), Value::Null).await;
            let assignees = issue["assignees"].as_array().cloned().unwrap_or_default();
            let logins = assignees.iter().filter_map(|user| user["login"].as_str());
            let end = (logins.map(str::to_owned).collect(), issue["state"] == "open");
            expected.insert((self.id, number), Some(end));
        }
        wait::until_equal("what is known to be what Gitea has", None, || async {
            for ((_, number), end) in &expected {
                let (mut logins, is_open) = end.clone().expect("an issue");
                logins.sort();
                let state = if is_open { Lifecycle::Open } else { Lifecycle::Closed };
                let wanted = Some((logins, state, false));
                let known = self.known(*number).await;
                if known != wanted {
                    return Some(format!("{number}: {known:?} instead of {wanted:?}"));
                }
            }
            None
        })
        .await;
        wait::until_equal("events to be handled", Some(0), || bus::lag(&self.js)).await;
        let wrong = check::wrongly_told(&bus::changes(&self.js).await, &expected);
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    async fn known(&self, number: u64) -> Option<(Vec<String>, Lifecycle, bool)> {
        let states = self.js.get_key_value(names::ISSUE_STATE).await.ok()?;
        let entry = states.get(issue_state::key(self.id, number)).await.ok()??;
        let known: KnownIssue = serde_json::from_slice(&entry).expect("a state");
        let mut logins: Vec<String> = known.assignees.into_iter().map(|p| p.login).collect();
        logins.sort();
        Some((logins, known.state, known.in_doubt))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_gitea_is_followed_through_bursts_gaps_and_silent_changes() {
    let Some(live) = Live::found() else {
        println!("skipped: GITEA_TEST_URL and GITEA_TEST_TOKEN are not set");
        return;
    };
    let story = Story::start(live).await;
    let repo = ["--repo", &*story.name];
    for number in 1..=ISSUES {
        story.issue(Method::POST, "", json!({ "title": format!("issue {number}") })).await;
    }
    story.burst().await;
    story.equal().await;
    // Nothing is delivered any more.
    let path = format!("/repos/{}/hooks", story.name);
    let hooks = story.live.api(Method::GET, &path, Value::Null).await;
    let hook = format!("{path}/{}", hooks[0]["id"]);
    story.live.api(Method::DELETE, &hook, Value::Null).await;
    let (first, all) = (vec![&story.users[0]], story.users.iter().collect::<Vec<_>>());
    for (number, who) in [(1, &first), (2, &all), (3, &all)] {
        let body = json!({ "assignees": who, "state": "open" });
        story.issue(Method::PATCH, &format!("/{number}"), body).await;
    }
    story.run("sync", &[&repo[..], &["--since", "1h"]].concat(), 3).await;
    story.equal().await;
    // Gitea says nothing of these.
    let path = format!("/repos/{}/collaborators/{}", story.name, story.users[1]);
    story.live.api(Method::DELETE, &path, Value::Null).await;
    story.live.api(Method::DELETE, &format!("/admin/users/{}", story.users[0]), Value::Null).await;
    story.run("sync", &repo, 3).await;
    story.equal().await;
    story.run("sync", &repo, 0).await;
    story.live.api(Method::DELETE, &format!("/repos/{}", story.name), Value::Null).await;
    story.run("sync", &repo, 3).await;
    for number in 1..=ISSUES {
        wait::until("the end of the issue", || async {
            let known = story.known(number).await?;
            (known == (Vec::new(), Lifecycle::Deleted, false)).then_some(())
        })
        .await;
    }
    story.live.api(Method::DELETE, &format!("/admin/users/{}", story.users[1]), Value::Null).await;
}
