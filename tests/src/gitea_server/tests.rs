//! What no recording shows: a world that changes, faults, counts, deliveries.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinHandle};

use super::{Fault, GiteaServer, Kind, Many, NewIssue, Order, lock};
use crate::{gitea::sign, wait};

/// 2026-11-26T11:42:30Z.
const NOW: i64 = 1_795_693_350;
const SECRET: &str = "of-the-receiver";

/// A Gitea with an admin, two users, an organisation and a repository, and its clock stopped.
struct Small {
    gitea: GiteaServer,
    repository: i64,
    admin: String,
    http: reqwest::Client,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    fn numbers(&self) -> Vec<u64> {
        let issues = self.json();
        let issues = issues.as_array().expect("a list").iter();
        issues.map(|issue| issue["number"].as_u64().expect("a number")).collect()
    }

    fn total(&self) -> &str {
        self.headers["X-Total-Count"].to_str().expect("a text")
    }
}

impl Small {
    async fn start() -> Self {
        let gitea = GiteaServer::start().await;
        gitea.set_now(NOW);
        gitea.add_admin("maria");
        gitea.add_user("tom");
        gitea.add_user("bot");
        gitea.add_organization("acme", &["tom"]);
        let repository = gitea.add_repository("acme", "widgets");
        let admin = gitea.add_token("admin", "maria", &["all"]);
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .expect("an HTTP client");
        Self { gitea, repository, admin, http }
    }

    fn issue(&self, title: &str, assignees: &[&str]) -> u64 {
        let issue = NewIssue { title, assignees, ..NewIssue::default() };
        self.gitea.create_issue(self.repository, "maria", &issue)
    }

    async fn try_get(&self, secret: Option<&str>, path: &str) -> reqwest::Result<Answer> {
        let mut request = self.http.get(format!("{}/api/v1{path}", self.gitea.url()));
        if let Some(secret) = secret {
            request = request.bearer_auth(secret);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Answer { status, headers, text: response.text().await? })
    }

    async fn get(&self, path: &str) -> Answer {
        self.get_as(Some(&self.admin), path).await
    }

    async fn get_as(&self, secret: Option<&str>, path: &str) -> Answer {
        self.try_get(secret, path).await.expect("an answer")
    }

    async fn numbers(&self, query: &str) -> Vec<u64> {
        self.get(&format!("/repos/issues/search?{query}")).await.numbers()
    }

    async fn timeline(&self, number: u64) -> Vec<(String, String, bool)> {
        let path = format!("/repos/acme/widgets/issues/{number}/timeline");
        let entries = self.get(&path).await.json();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let row = |entry: &Value| {
            let assignee = text(&entry["assignee"]["login"]);
            (text(&entry["type"]), assignee, entry["removed_assignee"] == true)
        };
        entries.as_array().map(|entries| entries.iter().map(row).collect()).unwrap_or_default()
    }
}

#[tokio::test]
async fn a_window_has_both_its_ends_and_the_newest_made_comes_first() {
    let small = Small::start().await;
    for second in 0..5 {
        small.gitea.set_now(NOW + second);
        small.issue("one", &[]);
    }
    // Issue 1 is updated last, and is still the oldest that was made.
    small.gitea.set_now(NOW + 9);
    small.gitea.close(small.repository, 1, "tom");
    for (query, expected) in [
        ("type=issues&state=all", &[5, 4, 3, 2, 1][..]),
        ("type=issues", &[5, 4, 3, 2]),
        ("state=closed", &[1]),
        ("type=pulls&state=all", &[]),
        ("state=all&since=2026-11-26T11:42:32Z&before=2026-11-26T11:42:33Z", &[4, 3]),
        ("state=all&since=2026-11-26T12:42:32.9%2B01:00", &[5, 4, 3, 1]),
        ("state=all&since=2026-11-26T11:42:39Z", &[1]),
        ("state=all&since=2026-11-26T11:42:40Z", &[]),
        ("state=all&limit=2&page=2", &[3, 2]),
        ("state=all&limit=2&page=4", &[]),
        ("state=all&owner=acme", &[5, 4, 3, 2, 1]),
        ("state=all&owner=tom", &[]),
    ] {
        assert_eq!(small.numbers(query).await, expected, "{query}");
    }
    let nobody = small.get("/repos/issues/search?owner=nobody").await;
    assert_eq!(nobody.status, StatusCode::BAD_REQUEST, "{}", nobody.text);
}

#[tokio::test]
async fn a_limit_is_clamped_without_a_word() {
    let small = Small::start().await;
    for _ in 0..60 {
        small.issue("one", &[]);
    }
    for (limit, expected) in [("", 30), ("limit=7", 7), ("limit=50", 50), ("limit=1000", 50)] {
        let answer = small.get(&format!("/repos/issues/search?{limit}")).await;
        assert_eq!((answer.numbers().len(), answer.total()), (expected, "60"), "{limit}");
    }
}

#[tokio::test]
async fn a_private_repository_is_seen_by_those_who_take_part() {
    let small = Small::start().await;
    let other = small.gitea.add_repository("tom", "other");
    small.issue("private", &[]);
    small.gitea.create_issue(other, "tom", &NewIssue { title: "public", ..Default::default() });
    small.gitea.set_private(small.repository, true);
    let bot = small.gitea.add_token("bot", "bot", &["all"]);
    let tom = small.gitea.add_token("tom", "tom", &["read:issue"]);
    let (search, issue) = ("/repos/issues/search?state=all", "/repos/acme/widgets/issues/1");
    let seen = async |secret: Option<&str>| {
        let found = small.get_as(secret, search).await;
        (found.numbers().len(), small.get_as(secret, issue).await.status.as_u16())
    };
    assert_eq!(seen(Some(&small.admin)).await, (2, 200));
    assert_eq!(seen(Some(&tom)).await, (2, 200), "an owner of the organisation");
    assert_eq!(seen(Some(&bot)).await, (1, 404));
    assert_eq!(seen(None).await, (1, 404));
    small.gitea.add_collaborator(small.repository, "bot");
    assert_eq!(seen(Some(&bot)).await, (2, 200));
    small.gitea.revoke_token("bot");
    let refused = small.get_as(Some(&bot), issue).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    let anonymous = small.get_as(None, "/user/hooks").await;
    assert_eq!(anonymous.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn what_was_renamed_is_answered_with_its_new_path() {
    let small = Small::start().await;
    small.issue("one", &[]);
    let (repository, gitea) = (small.repository, &small.gitea);
    let moved = async |path: &str| {
        let answer = small.get(path).await;
        let location = answer.headers.get("Location").map(|to| to.to_str().expect("a text"));
        (answer.status.as_u16(), location.map(str::to_owned))
    };
    gitea.rename_repository(repository, "gadgets");
    let expected = (301, Some("/api/v1/repos/acme/gadgets/issues/1?x=1".to_owned()));
    assert_eq!(moved("/repos/acme/widgets/issues/1?x=1").await, expected);
    gitea.transfer(repository, "tom");
    gitea.rename_user("tom", "thomas");
    let expected = (301, Some("/api/v1/repos/thomas/gadgets".to_owned()));
    assert_eq!(moved("/repos/acme/widgets").await, expected);
    let expected = (307, Some("/api/v1/repos/thomas/gadgets/issues/1".to_owned()));
    assert_eq!(moved("/repos/tom/gadgets/issues/1").await, expected);
    assert_eq!(moved("/repos/thomas/gadgets/issues/1").await, (200, None));
    assert_eq!(small.get("/repositories/1").await.json()["full_name"], "thomas/gadgets");
    let names = small.get("/users/thomas/repos").await.json();
    assert_eq!(names[0]["name"], "gadgets");
    gitea.delete_repository(repository);
    assert_eq!(moved("/repos/acme/widgets/issues/1").await, (404, None));
    assert_eq!(moved("/repositories/1").await, (404, None));
    assert_eq!(small.numbers("state=all").await, [0; 0]);
}

#[tokio::test]
async fn a_timeline_says_what_was_done_and_its_pages_are_odd() {
    let small = Small::start().await;
    let (repository, gitea) = (small.repository, &small.gitea);
    let number = small.issue("one", &["tom"]);
    gitea.set_now(NOW + 1);
    gitea.set_assignees(repository, number, &["bot"], "maria");
    gitea.close(repository, number, "tom");
    gitea.close(repository, number, "tom");
    gitea.assign(repository, number, "bot", "tom");
    gitea.reopen(repository, number, "bot");
    let expected = [
        ("assignees", "tom", false),
        ("assignees", "tom", true),
        ("assignees", "bot", false),
        ("close", "", false),
        ("reopen", "", false),
    ];
    let expected = expected.map(|(kind, who, removed)| (kind.into(), who.into(), removed));
    assert_eq!(small.timeline(number).await, expected);
    let path = format!("/repos/acme/widgets/issues/{number}/timeline");
    let since = small.get(&format!("{path}?since=2026-11-26T11:42:31Z")).await.json();
    assert_eq!(since.as_array().map(Vec::len), Some(4));
    let page = small.get(&format!("{path}?page=2&limit=3")).await;
    assert_eq!((page.json().as_array().map(Vec::len), page.total()), (Some(2), "2"));
    let ids: Vec<i64> =
        since.as_array().expect("a list").iter().map(|e| e["id"].as_i64().expect("id")).collect();
    assert!(ids.is_sorted() && ids[0] > 0, "{ids:?}");
    // An issue of which nothing is told.
    let quiet = small.issue("two", &[]);
    let path = format!("/repos/acme/widgets/issues/{quiet}/timeline");
    assert_eq!(small.get(&path).await.text, "null\n");
}

#[tokio::test]
async fn some_unassignments_leave_no_trace() {
    let small = Small::start().await;
    let (repository, gitea) = (small.repository, &small.gitea);
    let number = small.issue("one", &["bot", "tom"]);
    let path = format!("/repos/acme/widgets/issues/{number}");
    let (before, told) = (small.get(&path).await.json(), small.timeline(number).await);
    gitea.advance(60);
    gitea.remove_collaborator(repository, "bot");
    let after = small.get(&path).await.json();
    assert_eq!(after["assignees"][0]["login"], "tom");
    assert_eq!(gitea.state_of(repository, number), Some((vec!["tom".into()], true)));
    gitea.delete_user("bot");
    gitea.remove_collaborator(repository, "tom");
    let after = small.get(&path).await.json();
    assert_eq!((&after["assignees"], &after["assignee"]), (&Value::Null, &Value::Null));
    assert_eq!(after["updated_at"], before["updated_at"]);
    let entries = small.get(&format!("{path}/timeline")).await.json();
    assert_eq!(entries.as_array().map(Vec::len), Some(told.len()));
    assert_eq!(entries[0]["assignee"]["login"], "Ghost");
    // Nor does an importer that sets the time.
    gitea.set_updated_at(repository, number, NOW - 3600);
    assert_eq!(small.numbers("before=2026-11-26T11:00:00Z").await, [number]);
}

#[tokio::test]
async fn faults_are_for_the_paths_and_the_times_that_were_ordered() {
    let small = Small::start().await;
    small.issue("one", &["tom"]);
    let path = "/repos/acme/widgets/issues/1";
    for (fault, status, is_json, retry_after) in [
        (Fault::NotFound, 404, true, None),
        (Fault::ProxyNotFound, 404, false, None),
        (Fault::ServerError, 500, true, None),
        (Fault::Unauthorized, 401, true, None),
        (Fault::TooManyRequests(7), 429, false, Some("7")),
        (Fault::Unavailable(8), 503, false, Some("8")),
        (Fault::Garbage, 200, false, None),
        (Fault::Truncated, 200, false, None),
    ] {
        small.gitea.fail_next(1, fault.clone(), "issues/1");
        assert_eq!(small.get("/version").await.status, StatusCode::OK, "{fault:?}");
        let answer = small.get(path).await;
        assert_eq!(answer.status.as_u16(), status, "{fault:?}");
        let json: Result<Value, _> = serde_json::from_str(&answer.text);
        assert_eq!(json.is_ok(), is_json, "{fault:?}");
        let header = answer.headers.get("Retry-After").map(|v| v.to_str().expect("a text"));
        assert_eq!(header, retry_after, "{fault:?}");
        assert_eq!(small.get(path).await.json()["number"], 1, "after {fault:?}");
    }
    small.gitea.fail(Fault::ServerError, "");
    for _ in 0..3 {
        assert_eq!(small.get("/version").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
    small.gitea.repair();
    assert_eq!(small.get("/version").await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_answer_can_be_late_never_come_or_break_off() {
    let small = Small::start().await;
    small.issue("one", &["tom"]);
    let path = "/repos/acme/widgets/issues/1";
    let get = || small.try_get(Some(&small.admin), path);

    let delay = Duration::from_millis(50);
    small.gitea.fail_next(1, Fault::Slow(delay), path);
    let asked = Instant::now();
    assert_eq!(get().await.expect("an answer").status, StatusCode::OK);
    assert!(asked.elapsed() >= delay);

    small.gitea.fail_next(1, Fault::Closed, path);
    let closed = get().await.err().expect("no answer");
    assert!(closed.is_request(), "{closed:?}");

    small.gitea.fail_next(1, Fault::CutOff, path);
    let response = small.http.get(format!("{}/api/v1{path}", small.gitea.url())).send().await;
    let mut response = response.expect("a head");
    assert_eq!(response.status(), StatusCode::OK);
    let mut read = 0;
    let broken = loop {
        match response.chunk().await {
            Ok(chunk) => read += chunk.expect("not the end").len(),
            Err(error) => break error,
        }
    };
    assert!(read > 100 && !broken.is_timeout(), "{read} bytes, then {broken:?}");

    small.gitea.fail_next(1, Fault::Hang, path);
    let hangs = {
        let request = small.http.get(format!("{}/api/v1{path}", small.gitea.url()));
        tokio::spawn(request.send())
    };
    wait::until_equal("a request that hangs", 1, async || small.gitea.requests_under_way()).await;
    assert!(!hangs.is_finished());
    hangs.abort();
    wait::until_equal("its end", 0, async || small.gitea.requests_under_way()).await;

    let (url, http) = (small.gitea.url(), small.http.clone());
    drop(small);
    http.get(url).send().await.expect_err("a server that is gone");
}

#[tokio::test]
async fn requests_are_counted_and_their_tokens_named() {
    let small = Small::start().await;
    let reader = small.gitea.add_token("reader", "bot", &["read:issue"]);
    let search = "/repos/issues/search?state=all";
    let refused = small.get_as(Some("no token"), "/version").await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    let gitea = &small.gitea;
    gitea.fail(Fault::Hang, "search");
    let hanging: Vec<_> = [&small.admin, &small.admin, &reader]
        .map(|secret| {
            let request = small.http.get(format!("{}/api/v1{search}", gitea.url()));
            tokio::spawn(request.bearer_auth(secret).send())
        })
        .into();
    wait::until_equal("three at once", 3, async || gitea.requests_under_way()).await;
    hanging.iter().for_each(JoinHandle::abort);
    wait::until_equal("their end", 0, async || gitea.requests_under_way()).await;
    assert_eq!((gitea.requests(), gitea.requests_of(Kind::Search)), (4, 3));
    assert_eq!((gitea.requests_of(Kind::Timeline), gitea.most_requests_at_once()), (0, 3));
    let seen = gitea.last_requests();
    let named = |name: &str| seen.iter().filter(|s| s.token.as_deref() == Some(name)).count();
    assert_eq!((named("admin"), named("reader"), named("unknown")), (2, 1, 1));
    assert!(seen.iter().any(|seen| seen.path == format!("/api/v1{search}")));
    assert!(!format!("{seen:?}").contains(&reader));
    gitea.forget_requests();
    assert_eq!((gitea.requests(), gitea.most_requests_at_once()), (0, 0));
}

#[tokio::test]
async fn hooks_are_as_odd_as_giteas() {
    let small = Small::start().await;
    let url = format!("{}/api/v1/admin/hooks", small.gitea.url());
    let make = async |config: Value, events: Value| {
        let body = json!({ "type": "gitea", "events": events, "config": config });
        let request = small.http.post(&url).bearer_auth(&small.admin).json(&body);
        let made: Value = request.send().await.expect("an answer").json().await.expect("JSON");
        made
    };
    let config = |system: &str| json!({ "url": "http://a.test/", "content_type": "json", "secret": "s", "is_system_webhook": system });
    let system = make(config("true"), json!(["issues"])).await;
    let default = make(config("yes"), json!([])).await;
    assert_eq!((&system["active"], &default["events"]), (&json!(false), &json!(["push"])));
    let events: BTreeSet<&str> =
        system["events"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    let expected = ["issue_assign", "issue_comment", "issue_label", "issue_milestone", "issues"];
    assert_eq!(events, expected.into());
    let listed = async |query: &str| {
        let list = small.get(&format!("/admin/hooks{query}")).await.json();
        let ids = list.as_array().expect("a list").iter().map(|hook| hook["id"].clone());
        ids.collect::<Vec<Value>>()
    };
    assert_eq!(listed("").await, [json!(1)]);
    assert_eq!(listed("?type=default").await, [json!(2)]);
    assert_eq!(listed("?type=all").await, [json!(1), json!(2)]);
    small.gitea.list_site_hooks(false);
    assert_eq!(listed("").await, [Value::Null; 0]);
    assert_eq!(small.gitea.hook_secret(1).as_deref(), Some("s"));
    assert_eq!(small.get("/admin/hooks/1").await.json(), system);
    // A hook is found where it belongs, and nowhere else.
    assert_eq!(small.get("/user/hooks/1").await.status, StatusCode::NOT_FOUND);
    let tom = small.gitea.add_token("tom", "tom", &["all"]);
    for (path, status) in
        [("/admin/hooks", 403), ("/orgs/acme/hooks", 200), ("/orgs/tom/hooks", 404)]
    {
        assert_eq!(small.get_as(Some(&tom), path).await.status.as_u16(), status, "{path}");
    }
}

/// What a receiver got, and how much of it at once. It answers when it has a permit.
struct Receiver {
    url: String,
    got: Arc<Got>,
}

struct Got {
    deliveries: Mutex<Vec<(HeaderMap, Bytes)>>,
    permits: Semaphore,
}

impl Receiver {
    async fn start(permits: usize) -> Self {
        let permits = Semaphore::new(permits);
        let got = Arc::new(Got { deliveries: Mutex::default(), permits });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/", listener.local_addr().expect("its address"));
        let take = async |State(got): State<Arc<Got>>, headers: HeaderMap, body: Bytes| {
            lock(&got.deliveries).push((headers, body));
            got.permits.acquire().await.expect("open").forget();
        };
        let router = Router::new().route("/", post(take)).with_state(Arc::clone(&got));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, got }
    }

    fn actions(&self) -> Vec<String> {
        let deliveries = lock(&self.got.deliveries);
        let payloads = deliveries.iter().map(|(_, body)| serde_json::from_slice(body));
        let payloads = payloads.map(|payload: Result<Value, _>| payload.expect("JSON"));
        payloads.map(|payload| payload["action"].as_str().unwrap_or("push").to_owned()).collect()
    }
}

#[tokio::test]
async fn changes_are_delivered_signed_and_laid_out_as_giteas() {
    let small = Small::start().await;
    let receiver = Receiver::start(100).await;
    let (repository, gitea) = (small.repository, &small.gitea);
    gitea.deliver_to(&receiver.url, SECRET);
    let number = small.issue("one", &["tom"]);
    gitea.set_assignees(repository, number, &["bot"], "maria");
    gitea.close(repository, number, "tom");
    gitea.set_delivering(false);
    gitea.reopen(repository, number, "tom");
    gitea.set_delivering(true);
    gitea.edit_title(repository, number, "uno", "tom");
    gitea.delete_issue(repository, number, "bot");
    gitea.all_delivered().await;
    let expected = ["opened", "assigned", "unassigned", "assigned", "closed", "edited", "deleted"];
    assert_eq!((receiver.actions(), gitea.delivered()), (expected.map(Into::into).into(), (7, 0)));

    let deliveries = lock(&receiver.got.deliveries).clone();
    for (headers, body) in &deliveries {
        assert_eq!(headers["X-Gitea-Signature"], sign(SECRET, body));
        assert_eq!(headers["X-Gitea-Event"], "issues");
    }
    assert_eq!(deliveries[2].0["X-Gitea-Event-Type"], "issue_assign");
    assert_eq!(deliveries[4].0["X-Gitea-Event-Type"], "issues");
    let payload = |n: usize| -> Value { serde_json::from_slice(&deliveries[n].1).expect("JSON") };
    let recorded = crate::gitea::recorded_one("gitea-1.27", "0002-issues-assigned");
    let recorded: Value = serde_json::from_slice(&recorded.delivery.body).expect("JSON");
    for part in ["", "/issue", "/issue/repository", "/issue/assignees/0", "/sender"] {
        let keys = |payload: &Value| -> Vec<String> {
            let fields = payload.pointer(part).and_then(Value::as_object).expect("an object");
            fields.keys().cloned().collect()
        };
        assert_eq!(keys(&payload(1)), keys(&recorded), "{part}");
    }
    // Both events of a reassignment have its result.
    assert_eq!(payload(2)["issue"]["assignees"], payload(3)["issue"]["assignees"]);
    assert_eq!(payload(3)["issue"]["assignee"]["login"], "bot");
    assert_eq!(payload(5)["changes"]["title"]["from"], "one");
}

#[tokio::test]
async fn deliveries_can_be_held_back_turned_round_and_sent_at_once() {
    let small = Small::start().await;
    let receiver = Receiver::start(0).await;
    let gitea = &small.gitea;
    gitea.deliver_to(&receiver.url, SECRET);
    gitea.hold_deliveries();
    let number = small.issue("one", &[]);
    for _ in 0..4 {
        gitea.close(small.repository, number, "tom");
        gitea.reopen(small.repository, number, "tom");
    }
    assert_eq!((gitea.deliveries_waiting(), gitea.delivered()), (9, (0, 0)));
    gitea.release_deliveries(Order::Reversed);
    let arrived = async || receiver.actions().len();
    wait::until_equal("the first delivery", 1, arrived).await;
    assert_eq!(gitea.deliveries_waiting(), 8);
    gitea.deliver_at_once(8);
    wait::until_equal("eight at once", 8, arrived).await;
    assert_eq!(gitea.deliveries_waiting(), 1);
    receiver.got.permits.add_permits(9);
    gitea.all_delivered().await;
    let actions = receiver.actions();
    assert_eq!((actions[0].as_str(), actions[8].as_str()), ("reopened", "opened"));
}

#[tokio::test]
async fn hooks_deliver_what_they_are_for() {
    let small = Small::start().await;
    let receiver = Receiver::start(100).await;
    let gitea = &small.gitea;
    let make = async |path: &str, active: bool, events: &[&str]| {
        let body = json!({
            "type": "gitea", "active": active, "events": events, "authorization_header": path,
            "config": { "url": receiver.url, "content_type": "json", "secret": SECRET }
        });
        let request = small.http.post(format!("{}/api/v1{path}", gitea.url()));
        let made = request.bearer_auth(&small.admin).json(&body).send().await;
        assert_eq!(made.expect("an answer").status(), StatusCode::CREATED);
    };
    gitea.add_repository("tom", "other");
    make("/repos/acme/widgets/hooks", true, &["issues_only", "push"]).await;
    make("/orgs/acme/hooks", true, &["issues_only"]).await;
    make("/repos/tom/other/hooks", true, &["issues_only"]).await;
    make("/repos/acme/widgets/hooks", false, &["issues_only"]).await;
    let number = small.issue("one", &["tom"]);
    gitea.close(small.repository, number, "tom");
    let test = |id: i64| {
        let url = format!("{}/api/v1/repos/acme/widgets/hooks/{id}/tests", gitea.url());
        small.http.post(url).bearer_auth(&small.admin).send()
    };
    assert_eq!(test(1).await.expect("an answer").status(), StatusCode::NO_CONTENT);
    // Gitea says the same of a hook that asks for no pushes, and sends nothing.
    assert_eq!(test(4).await.expect("an answer").status(), StatusCode::NO_CONTENT);
    gitea.set_empty(small.repository, true);
    assert_eq!(test(1).await.expect("an answer").status(), StatusCode::NO_CONTENT);
    gitea.all_delivered().await;
    // Nothing is asked for about assignments, and nothing is pushed to what is empty.
    assert_eq!(receiver.actions(), ["opened", "opened", "closed", "closed", "push"]);
    let deliveries = lock(&receiver.got.deliveries).clone();
    let (repository, organization) = (&deliveries[0].0, &deliveries[1].0);
    assert_eq!(repository["X-Gitea-Hook-Installation-Target-Type"], "repository");
    assert_eq!(organization["X-Gitea-Hook-Installation-Target-Type"], "organization");
    assert_eq!(organization["Authorization"], "/orgs/acme/hooks");
    assert_eq!(deliveries[4].0["X-Gitea-Event"], "push");
}

#[tokio::test]
async fn a_hundred_thousand_issues_are_made_at_once_and_found() {
    let small = Small::start().await;
    let repositories = small.gitea.create_many(&Many {
        owner: "acme",
        repositories: 500,
        issues: 100_000,
        author: "maria",
        assigned: Some(("bot", 10)),
        closed_every: 4,
        first: NOW - 1_000_000,
        apart: 10,
        body_bytes: 2000,
    });
    assert_eq!(repositories.len(), 500);
    let page = small.get("/repos/issues/search?state=all&limit=50").await;
    assert_eq!((page.numbers().len(), page.total()), (50, "100000"));
    let newest = &page.json()[0];
    assert_eq!(newest["body"].as_str().map(str::len), Some(2000));
    // 2026-11-26T11:40:50Z is a hundred seconds before the stopped clock: ten issues.
    let window = small.get("/repos/issues/search?state=all&since=2026-11-26T11:40:50Z").await;
    assert_eq!(window.total(), "10");
    let open = small.get("/repos/issues/search?state=open").await;
    assert_eq!(open.total(), "75000");
    let of_one = small.get("/repos/acme/many-1/issues?state=all&assigned_by=bot").await;
    assert_eq!(of_one.total(), "200");
}
