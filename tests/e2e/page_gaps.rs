//! What a page says of what it does not know: of those who do not answer, and of what it did not get to.

use std::{path::Path, time::Duration};

use async_nats::{HeaderMap, jetstream};
use contract::{event, partitions::Partitions, timestamp::Timestamp};
use futures::{StreamExt, future::join_all};
use reqwest::{header::LOCATION, header::ORIGIN, redirect::Policy};
use serde_json::{Value, json};
use service::peers::{Answer, Instance, Journaled, Reply, Status};
use tests::{
    bus,
    gitea::Issue,
    nats::Nats,
    process::Process,
    services::{Both, both_at, ingest, worker, worker_at},
    system::send,
    temp_dir, wait,
};
use uuid::Uuid;

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");
/// Nobody listens there.
const NOWHERE: &str = "nats://127.0.0.1:1";
/// More messages than a page looks at one by one where it need not.
const MANY: usize = 70;
const MAY_HOLD_IT: &str = "did not answer and may hold it";

/// The pages of one process.
struct Pages {
    url: String,
    http: reqwest::Client,
}

impl Pages {
    fn at(url: String) -> Self {
        let http = reqwest::Client::builder().redirect(Policy::none()).no_proxy();
        Self { url, http: http.build().expect("a client") }
    }

    async fn of(process: &Process) -> Self {
        Self::at(format!("http://{}", process.address_in("operator listens").await))
    }

    async fn get(&self, path: &str) -> String {
        let response = self.http.get(format!("{}{path}", self.url)).send().await;
        response.expect("an answer").text().await.expect("a text")
    }

    /// The page once it has this part.
    async fn with(&self, path: &str, part: &str) -> String {
        let what = format!("{part:?} on {path}");
        let look = || async { Some(self.get(path).await).filter(|page| page.contains(part)) };
        wait::until(&what, look).await
    }

    /// Where a page leads to, if it does.
    async fn way(&self, path: &str) -> Option<String> {
        let response = self.http.get(format!("{}{path}", self.url)).send().await;
        let response = response.expect("an answer");
        response.headers().get(LOCATION).map(|way| way.to_str().expect("a text").to_owned())
    }
}

/// A step of a delivery's page.
fn step<'a>(page: &'a str, name: &str) -> &'a str {
    let rest = page.split(&format!("<h3>{name}</h3>")).nth(1).expect("the step");
    rest.split("</li>").next().expect("its end")
}

/// Answers a question after a while, as a process on another machine would.
async fn answers(nats: &Nats, role: &str, question: &str, after: Duration, reply: Reply) {
    let client = nats.client().await;
    let subject = format!("coordinator.ask.{role}.{question}");
    let mut asked = client.subscribe(subject).await.expect("subscribe");
    client.flush().await.expect("flush");
    let instance = Instance {
        id: format!("fake-{role}"),
        roles: vec![role.into()],
        host: "elsewhere".into(),
        pid: 4711,
        version: "0.1.0".into(),
        started_at: Timestamp::now(),
    };
    let json = serde_json::to_vec(&Answer { instance, reply }).expect("JSON");
    tokio::spawn(async move {
        while let Some(question) = asked.next().await {
            let (client, json) = (client.clone(), json.clone());
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                let inbox = question.reply.expect("an inbox");
                client.publish(inbox, json.into()).await.expect("publish");
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_that_does_not_answer_may_hold_it() {
    let (nats, data) = (Nats::start().await, [temp_dir(), temp_dir()]);
    let exe = Path::new(EXE);
    let (one, other) = (ingest(exe, &nats, data[0].path()), ingest(exe, &nats, data[1].path()));
    let _worker = worker(exe, &nats);
    let pages = Pages::of(&one).await;
    let webhook = other.address_in("ingest listens").await;
    let delivery = Issue::new(7, 3).assigned(&["bot"]).delivery("assigned");
    assert_eq!(send(&pages.http, webhook, &delivery).await.status, 200);
    let (address, nobody) =
        (format!("/deliveries/{}", delivery.id()), format!("/deliveries/{}", Uuid::new_v4()));
    pages.with(&address, "in the journal").await;
    pages.with(&address, "assigned +bot").await;
    // All have answered, so that it is not in a journal of these two.
    let page = pages.with(&nobody, "not in a journal").await;
    assert!(!page.contains("did not answer"), "{page}");

    other.signal("STOP");
    let who = format!("({}) {MAY_HOLD_IT}", other.pid());
    let page = pages.get(&nobody).await;
    assert!(page.contains(&who) && page.contains("Look again, with more patience"), "{page}");
    assert!(step(&page, "Kept").contains("not known"), "{page}");
    let page = pages.get(&format!("{address}?payload=1")).await;
    assert!(page.contains(&who) && !page.contains("does not hold what Gitea sent"), "{page}");
    let confirm = pages.get(&format!("{address}/redeliver")).await;
    assert!(confirm.contains(&who), "{confirm}");
    let token = confirm.split("name=\"form_token\" value=\"").nth(1).expect("a token");
    let token = token.split('"').next().expect("its end");
    let form = format!("form_token={token}");
    let request = pages.http.post(format!("{}{address}/redeliver", pages.url)).body(form);
    let answer = request.header(ORIGIN, &pages.url).send().await.expect("an answer");
    assert_eq!(answer.status(), 503);
    let text = answer.text().await.expect("a text");
    assert!(text.contains("may have been published again or not"), "{text}");

    other.signal("CONT");
    pages.with(&address, "in the journal").await;
    pages.with(&nobody, "not in a journal").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_ingest_is_waited_for_by_who_looks_again() {
    let nats = Nats::start().await;
    let worker = worker(Path::new(EXE), &nats);
    let pages = Pages::of(&worker).await;
    pages.with("/", "No ingest answers").await;
    let journaled = Journaled {
        received_at: Timestamp::now(),
        hook: None,
        published: false,
        set_aside: None,
        subject: None,
        event: Some(Box::new(event::example())),
        payload: None,
    };
    let reply = Reply::Delivery(Some(Box::new(journaled)));
    answers(&nats, "ingest", "delivery", Duration::from_secs(1), reply).await;
    let address = format!("/deliveries/{}", event::example().delivery.id);
    let page = pages.get(&address).await;
    assert!(page.contains(&format!("{address}?wait=1")), "{page}");
    pages.with(&format!("{address}?wait=1"), "in the journal").await;
    // It is known by now.
    pages.with(&address, &format!("elsewhere (4711) {MAY_HOLD_IT}")).await;
}

async fn both(nats: &Nats, data: &tempfile::TempDir) -> (Both, Pages) {
    let both = both_at(Path::new(EXE), &nats.url(), data.path(), &[]).await;
    let pages = Pages::at(both.pages.clone());
    (both, pages)
}

/// JetStream once all streams are there.
async fn with_streams(nats: &Nats) -> jetstream::Context {
    let js = jetstream::new(nats.client().await);
    for name in ["GITEA_ISSUES", "GITEA_CHANGES", "GITEA_ISSUES_DEAD"] {
        wait::until(name, || async { js.get_stream(name).await.ok().map(drop) }).await;
    }
    js
}

async fn publish(js: &jetstream::Context, subject: &str, id: &Uuid, payload: &'static str) {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", id.to_string());
    let sent = js.publish_with_headers(subject.to_owned(), headers, payload.into()).await;
    sent.expect("sent").await.expect("stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_found_behind_many_of_its_issue() {
    let (nats, data) = (Nats::start().await, temp_dir());
    let (_both, pages) = both(&nats, &data).await;
    let js = with_streams(&nats).await;
    let ids: Vec<_> = (0..MANY).map(|_| Uuid::new_v4()).collect();
    for id in &ids {
        publish(&js, "gitea.issues.closed.acme.r7.3.9", id, "{").await;
    }
    wait::until_equal("all given up", MANY as u64, || bus::count(&js, "GITEA_ISSUES_DEAD")).await;
    let last = format!("/deliveries/{}?wait=1", ids[MANY - 1]);
    let page = pages.with(&last, "a dead letter").await;
    assert!(step(&page, "Handled").contains("given up"), "{page}");
    assert!(step(&page, "Told").contains("not told"), "{page}");
    assert!(page.contains(&format!("/dead-letters/{MANY}\"")), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn event_and_change_are_found_behind_many_of_their_kind() {
    let (nats, data) = (Nats::start().await, temp_dir());
    let (both, pages) = both(&nats, &data).await;
    let js = with_streams(&nats).await;
    let ids: Vec<_> = (0..MANY).map(|_| Uuid::new_v4()).collect();
    let events = format!("gitea.issues.closed.acme.r8.3.{}", Partitions::DEFAULT.of(8, 3));
    for subject in [&*events, "gitea.changes.closed.acme.r8.3"] {
        join_all(ids.iter().map(|id| publish(&js, subject, id, "{}"))).await;
    }
    let delivery = Issue::new(8, 3).state("closed").delivery("closed");
    assert_eq!(send(&pages.http, both.webhook, &delivery).await.status, 200);
    let address = format!("/deliveries/{}?wait=1", delivery.id());
    let page = pages.with(&address, &format!("{}:closed", delivery.id())).await;
    assert!(page.contains(&format!("on {events}</p>")), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issue_is_found_whatever_the_case_of_its_letters() {
    let (nats, data) = (Nats::start().await, temp_dir());
    let (both, pages) = both(&nats, &data).await;
    let delivery = Issue::new(7, 3).assigned(&["bot"]).delivery("assigned");
    assert_eq!(send(&pages.http, both.webhook, &delivery).await.status, 200);
    pages.with("/issues/acme/r7/3", "assigned +bot").await;
    let way = pages.way("/find?q=ACME/R7%233").await.expect("a way");
    assert_eq!(pages.way(&way).await.as_deref(), Some("/issues/acme/r7/3"));
    // The events are too old to be there.
    let js = jetstream::new(nats.client().await);
    let events = js.get_stream("GITEA_ISSUES").await.expect("the stream");
    events.purge().await.expect("a purge");
    assert_eq!(pages.way("/issues/Acme/r7/3").await.as_deref(), Some("/issues/acme/r7/3"));
    for unknown in ["/issues/acme/r7/4", "/issues/acme/r77/3"] {
        assert!(pages.get(unknown).await.contains("no event of it came"), "{unknown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_well_or_not_known_is_not_shown_as_well() {
    let nats = Nats::start().await;
    let connected = worker(Path::new(EXE), &nats);
    let pages = Pages::of(&connected).await;
    let health = |more: Value| {
        let mut health = json!({"status": "degraded", "ready": true, "broker": "connected"});
        health
            .as_object_mut()
            .expect("an object")
            .extend(more.as_object().cloned().unwrap_or_default());
        Reply::Status(Box::new(Status { health, series: Vec::new() }))
    };
    let wrong = health(json!({"wrong_rules": "line 2: rule.name is \"Fix\""}));
    answers(&nats, "reactor", "status", Duration::ZERO, wrong).await;
    answers(&nats, "ingest", "status", Duration::ZERO, health(Value::Null)).await;
    let page = pages.with("/", "the new ones are wrong: line 2: rule.name is").await;
    assert!(page.contains("reactor on elsewhere goes on with its former rules"), "{page}");
    pages.with("/", "ingest on elsewhere says of its health: degraded.").await;
    let page = pages.with("/", "No change yet.").await;
    assert!(page.contains("none: no token, or none yet"), "{page}");

    let alone = worker_at(Path::new(EXE), NOWHERE, &[], &[]);
    let page = Pages::of(&alone).await.get("/").await;
    assert!(page.contains("Not known: the changes could not be read."), "{page}");
    assert!(!page.contains("No change yet.") && !page.contains("none: no token"), "{page}");
}
