//! The operator's page *Runs* over HTTP, with the users that are deployed: what one process shows of
//! what others run, and what an operator can have done.

use std::{collections::HashMap, net::SocketAddr, sync::Mutex};

use async_nats::jetstream;
use reqwest::{
    RequestBuilder, Response,
    header::{LOCATION, ORIGIN},
};
use serde_json::Value;
use tempfile::TempDir;
use tests::{
    gitea::{Delivery, Issue},
    nats::Nats,
    process::Process,
    runners::{Agents, run_entry},
    system::send,
    temp_dir, wait,
};

use crate::{
    broker_roles::{create_streams, nats_with_roles, start, start_at},
    page::{client, field},
};

/// Notes when it begins and when it is told to end, after it has written what a browser, a terminal or
/// a reader of text could take for something else. It writes more once the file `LOG.more` is there.
const TALKS: &str = r#"
note() { echo "$1 $COORDINATOR_RULE $COORDINATOR_ISSUE $COORDINATOR_RUN $$ 0" >> "$LOG"; }
trap 'note term; exit 0' TERM
printf '</pre><script>alert(1)</script>\033[31mred\377\n'
note start
until [ -e "$LOG.more" ]; do sleep 0.1; done
echo 'more of it'
while :; do sleep 0.1; done
"#;
const FAILS: &str = r#"
echo "start $COORDINATOR_RULE $COORDINATOR_ISSUE $COORDINATOR_RUN $$ 0" >> "$LOG"
echo said; exit 3
"#;
/// Writes 1 MB, and ends once the file `LOG.more` is there.
const WRITES_MUCH: &str = r#"
head -c 1000000 /dev/zero | tr '\0' x; echo; echo 'the end of it all'
until [ -e "$LOG.more" ]; do sleep 0.1; done
"#;

/// Bytes of a page without what a run has written.
const PAGE: usize = 10_000;
/// Bytes of output on a page.
const OUTPUT: usize = 64 * 1024;

/// An ingest, a worker and two runners.
struct Deployment {
    /// By key, the generation of the first run that was seen.
    first: Mutex<HashMap<String, u64>>,
    agents: Agents,
    webhook: SocketAddr,
    /// Where the pages of ingest, worker and both runners are.
    pages: [String; 4],
    runners: [Process; 2],
    http: reqwest::Client,
    js: jetstream::Context,
    _others: [Process; 2],
    _data: [TempDir; 3],
    _nats: Nats,
}

const INGEST: usize = 0;
const WORKER: usize = 1;

impl Deployment {
    async fn start() -> Self {
        let (nats, data) = (nats_with_roles().await, [temp_dir(), temp_dir(), temp_dir()]);
        create_streams(&nats, &data[0]).await;
        let agents = Agents::default();
        let rules = [
            Agents::rule("fix", TALKS, "concurrency = 1"),
            Agents::rule_for("login = \"tom\"", "wrong", FAILS, ""),
            Agents::rule_for("login = \"ann\"", "much", WRITES_MUCH, ""),
        ];
        agents.write_rules(&rules.concat());
        let (rules, log) = (agents.rules(), agents.log());
        let more = [
            ("REACTOR_RULES", rules.to_str().expect("UTF-8")),
            ("LOG", log.to_str().expect("UTF-8")),
        ];
        let ingest = start("ingest", &[], "ingest", &nats, &data[1]);
        let worker = start("worker", &[], "worker", &nats, &data[2]);
        let http = client();
        let page = async |process: &Process| {
            format!("http://{}", process.address_in("operator listens").await)
        };
        let ingest_page = page(&ingest).await;
        let url = format!("{ingest_page}/runs");
        let text = http.get(url).send().await.expect("an answer").text().await.expect("a text");
        assert!(text.contains("coordinator react"), "nobody runs anything: {text}");
        let runners =
            [(); 2].map(|()| start_at(&nats.url(), "react", &[], "reactor", &data[0], &more));
        for runner in &runners {
            runner.line_with("runner started").await;
        }
        let pages =
            [ingest_page, page(&worker).await, page(&runners[0]).await, page(&runners[1]).await];
        Self {
            first: Mutex::default(),
            agents,
            webhook: ingest.address_in("ingest listens").await,
            pages,
            runners,
            http,
            js: jetstream::new(nats.client().await),
            _others: [ingest, worker],
            _data: data,
            _nats: nats,
        }
    }

    async fn send(&self, issue: Issue, action: &str) -> Delivery {
        let delivery = issue.delivery(action);
        assert_eq!(send(&self.http, self.webhook, &delivery).await.status, 200);
        delivery
    }

    /// The answer to a request to a page. One that says that nobody has answered in time, which is
    /// another's lateness, is none.
    async fn answer(&self, request: RequestBuilder) -> (u16, String) {
        let what = format!("an answer to {request:?}");
        let ask = || async {
            let response = request.try_clone().expect("a short request").send().await;
            let response = response.expect("an answer");
            let status = response.status().as_u16();
            let way = response.headers().get(LOCATION).map(|way| way.to_str().expect("a text"));
            let way = way.map(str::to_owned);
            let text = match way {
                Some(way) => way,
                None => response.text().await.expect("a text"),
            };
            let is_late =
                status == 503 && text.contains("No process that runs commands has answered");
            (!is_late).then_some((status, text))
        };
        wait::until(&what, ask).await
    }

    /// Status and text of a page of one process.
    async fn get(&self, of: usize, path: &str) -> (u16, String) {
        self.answer(self.http.get(format!("{}{path}", self.pages[of]))).await
    }

    /// A run that is watched with the page of one process.
    async fn watch(&self, of: usize, key: &str) -> Response {
        let url = format!("{}/runs/{key}/live", self.pages[of]);
        let look = || async {
            let response = self.http.get(&url).send().await.expect("an answer");
            (response.status() == 200).then_some(response)
        };
        wait::until(&url, look).await
    }

    /// A page of one process, once it holds this.
    async fn with(&self, of: usize, path: &str, part: &str) -> String {
        let what = format!("{part:?} on {path} of {of}");
        let look = || async {
            let (status, page) = self.get(of, path).await;
            (status == 200 && page.contains(part)).then_some(page)
        };
        wait::until(&what, look).await
    }

    /// The entry of the `nth` run of an issue and rule, once it is so far.
    async fn phase(&self, key: &str, nth: u64, phase: &str) -> Value {
        let expected = (nth, Value::from(phase));
        wait::until_equal(&format!("{key} to be {phase}"), expected, || async {
            let entry = run_entry(&self.js, key).await;
            let Some(generation) = entry["generation"].as_u64() else { return (0, Value::Null) };
            let mut first = self.first.lock().expect("no panic");
            let first = *first.entry(key.to_owned()).or_insert(generation);
            ((generation + 1).saturating_sub(first), entry["phase"].clone())
        })
        .await;
        run_entry(&self.js, key).await
    }

    /// The form of an order, as its page has it.
    async fn form(&self, of: usize, path: &str) -> String {
        let page = self.with(of, path, "form_token").await;
        assert!(page.contains("<button"), "{page}");
        let [token, generation] = ["form_token", "generation"].map(|name| field(&page, name));
        format!("form_token={token}&generation={generation}")
    }

    /// Sends a form of ours. The text is where the answer leads to, if it does.
    async fn post(&self, of: usize, path: &str, form: &str) -> (u16, String) {
        let page = &self.pages[of];
        let request = self.http.post(format!("{page}{path}")).header(ORIGIN, page);
        self.answer(request.body(form.to_owned())).await
    }

    /// Has a run stopped or begun again, with the page of one process.
    async fn order(&self, of: usize, key: &str, name: &str) {
        let path = format!("/runs/{key}/{name}");
        let form = self.form(of, &path).await;
        let (status, way) = self.post(of, &path, &form).await;
        assert_eq!(status, 303, "{way}");
        assert!(way.ends_with(&format!("?done={name}")), "{way}");
        self.with(of, &way, "role=\"status\"").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_are_seen_and_ordered_from_the_page_of_any_process() {
    let here = Deployment::start().await;
    let first = here.send(Issue::new(1, 1).assigned(&["bot"]), "assigned").await;
    here.send(Issue::new(1, 2).assigned(&["bot"]), "assigned").await;
    for issue in ["acme/r1#1", "acme/r1#2"] {
        here.agents.noted(issue, "start", 1).await;
    }
    here.send(Issue::new(1, 3).assigned(&["bot"]), "assigned").await;
    here.send(Issue::new(1, 4).assigned(&["tom"]), "assigned").await;
    here.send(Issue::new(1, 5).assigned(&["ann"]), "assigned").await;
    here.phase("1.3.fix", 1, "waiting").await;
    here.phase("1.4.wrong", 1, "failed").await;
    here.phase("1.5.much", 1, "running").await;

    what_is_no_run_is_told(&here).await;
    its_output_is_seen_from_elsewhere(&here, &first).await;
    only_a_form_of_ours_stops_it(&here).await;
    all_are_listed(&here).await;
    what_was_stopped_begins_when_it_is_assigned_anew(&here).await;
    it_runs_again_if_its_issue_wants_it(&here).await;
    for runner in &here.runners {
        assert!(!runner.output().contains("denies"), "{}", runner.output());
    }
}

async fn what_is_no_run_is_told(here: &Deployment) {
    let long = format!("/runs/1.1.{}", "a".repeat(300));
    let controls = format!("/runs/1.1.{}", "%01".repeat(190));
    let mut wrong = Vec::new();
    for (path, expected) in [
        ("/runs/x", 400),
        ("/runs/1.1", 400),
        ("/runs/1.1.", 400),
        ("/runs/01.1.fix", 400),
        ("/runs/99999999999999999999.1.fix", 400),
        ("/runs/1.-1.fix", 400),
        // Each of these is a subject that stands for others at the broker, or none.
        ("/runs/1.1.*", 400),
        ("/runs/1.1.%3E", 400),
        ("/runs/1.1.fix%0d%0aPUB%20x%200", 400),
        ("/runs/1.1.a%20b", 400),
        ("/runs/1.1.%F0%9F%A6%80%E2%80%AE", 400),
        ("/runs/1.1.%3Cscript%3E", 400),
        ("/runs/1.1.Fix", 400),
        ("/runs/%00%ff", 400),
        (&controls, 400),
        (&long, 400),
        ("/runs/1.1.nothing", 404),
        ("/runs/1.99.fix", 404),
        ("/runs/-7.1.fix", 404),
        ("/runs/1.99.fix/stop", 404),
        ("/runs/1.99.fix/live", 404),
        ("/runs/1.1.*/again", 400),
        ("/runs/1.1.fix/nothing", 404),
        ("/runs?phase=%3Cscript%3E&q=%00%ff%3Cscript%3E", 200),
    ] {
        for of in 0..here.pages.len() {
            let (status, text) = here.get(of, path).await;
            let is_page = text.contains("href=\"/\"") && !text.contains("<script>");
            if status != expected || !is_page || text.len() > PAGE {
                wrong.push(format!("{path} of {of}: {status} {} bytes {text}", text.len()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // One that another version, or somebody's hand, has written.
    let bucket = here.js.get_key_value(contract::names::RUNS).await.expect("the bucket");
    bucket.put("1.8.fix", "{\"<script>\": 1}".into()).await.expect("written");
    let (status, text) = here.get(WORKER, "/runs/1.8.fix").await;
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("cannot be read") && !text.contains("&lt;script"), "{text}");
    let path = "/runs/1.2.fix/stop";
    let form = here.form(WORKER, path).await;
    for path in ["/runs/x/stop", "/runs/1.1.*/stop", "/runs/1.%3E.x/again"] {
        assert_eq!(here.post(WORKER, path, &form).await.0, 400, "{path}");
    }
}

async fn its_output_is_seen_from_elsewhere(here: &Deployment, delivery: &Delivery) {
    let path = "/runs/1.1.fix";
    let pids = here.runners.each_ref().map(Process::pid);
    let mut of: Vec<u32> = Vec::new();
    for page in 0..here.pages.len() {
        let text = here.with(page, path, "\\u{1b}[31mred\u{fffd}").await;
        for part in [
            "fix for acme/r1#1",
            "All of it",
            "&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;",
            "href=\"/issues/acme/r1/1\"",
            &format!("href=\"/deliveries/{}\"", delivery.id()),
            &format!("href=\"/traces/{}\"", delivery.id().replace('-', "")),
            "href=\"/runs/1%2E1%2Efix/stop\"",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        assert!(!text.contains("<script>") && !text.contains('\u{1b}'), "{text}");
        assert!(!text.contains("/again\""), "one that runs is not run again: {text}");
        assert!(text.len() < PAGE, "{} bytes", text.len());
        of.extend(pids.iter().filter(|pid| text.contains(&format!("({pid})"))));
        let much = here.with(page, "/runs/1.5.much", "the end of it all").await;
        assert!(much.contains("The end of it, of 1.0 MB."), "{}", &much[..PAGE.min(much.len())]);
        assert!(much.len() < OUTPUT + PAGE, "{} bytes", much.len());
    }
    assert_eq!(of.len(), here.pages.len(), "each names the process that runs it");
    assert!(of.iter().all(|pid| *pid == of[0]), "{of:?}");
    for (path, part) in [
        (format!("/deliveries/{}", delivery.id()), "assigned +bot"),
        (format!("/traces/{}", delivery.id().replace('-', "")), "handle assigned"),
        ("/issues/acme/r1/1".to_owned(), "assigned +bot"),
    ] {
        here.with(WORKER, &path, part).await;
    }
    // It comes as it is written, and as the end of it.
    let mut live = here.watch(INGEST, "1.1.fix").await;
    std::fs::write(here.agents.log().with_extension("more"), "").expect("write");
    let told = wait::within("what is written", async {
        let mut told = String::new();
        while !told.contains("more of it") {
            let chunk = live.chunk().await.expect("a chunk").expect("more");
            told.push_str(&String::from_utf8_lossy(&chunk));
        }
        told
    });
    assert!(!told.await.contains("<script>"));
    // Of one that is over the entry keeps less.
    here.phase("1.5.much", 1, "done").await;
    let over = here.with(WORKER, "/runs/1.5.much", "as it was kept").await;
    for part in ["The end of it, as it was kept.", "the end of it all", "exit 0"] {
        assert!(over.contains(part), "{part}: {over}");
    }
    assert!(over.len() < PAGE, "{} bytes", over.len());
    assert!(!over.contains("/stop\""), "nothing is left to stop: {over}");
}

async fn only_a_form_of_ours_stops_it(here: &Deployment) {
    let path = "/runs/1.1.fix/stop";
    let form = here.form(WORKER, path).await;
    let page = &here.pages[WORKER];
    let post = async |origin: Option<&str>, form: &str| {
        let request = here.http.post(format!("{page}{path}")).body(form.to_owned());
        let request = match origin {
            Some(origin) => request.header(ORIGIN, origin),
            None => request,
        };
        here.answer(request).await.0
    };
    let (_, of_generation) = form.split_once('&').expect("two fields");
    for (origin, form, expected) in [
        (None, form.as_str(), 403),
        (Some("null"), &form, 403),
        (Some("http://elsewhere.example"), &form, 403),
        (Some(&here.pages[INGEST]), &form, 403),
        (Some(page), of_generation, 403),
        (Some(page), &format!("form_token=00&{of_generation}"), 403),
        // Seen before the run that is under way, or never.
        (Some(page), &format!("{form}0"), 400),
        (Some(page), form.split('&').next().expect("a token"), 400),
    ] {
        assert_eq!(post(origin, form).await, expected, "{origin:?} {form}");
    }
    let (again, _) = here.post(WORKER, "/runs/1.1.fix/again", &form).await;
    assert_eq!(again, 400, "it is not over");
    for (path, method) in [(path, "PUT"), (path, "DELETE"), ("/runs/1.1.fix", "POST")] {
        let method = method.parse().expect("a method");
        let request = here.http.request(method, format!("{page}{path}")).header(ORIGIN, page);
        assert_eq!(here.answer(request.body(form.clone())).await.0, 400);
    }
    // Ingest may ask, and not order.
    let ingest_form = here.form(INGEST, path).await;
    let (status, text) = here.post(INGEST, path, &ingest_form).await;
    assert!(status == 503 && text.contains("Do it on a worker's page"), "{status}: {text}");
    assert_eq!(run_entry(&here.js, "1.1.fix").await["desired"], "run", "nothing has stopped it");

    // By the page of a runner that has it not. The one that has it says so.
    let live = here.watch(INGEST, "1.1.fix").await;
    let pids = here.runners.each_ref().map(Process::pid);
    let shown = here.with(WORKER, "/runs/1.1.fix", "Process").await;
    let holder = pids.iter().position(|pid| shown.contains(&format!("({pid})"))).expect("one");
    let other = WORKER + 1 + (1 - holder);
    here.order(other, "1.1.fix", "stop").await;
    here.agents.noted("acme/r1#1", "term", 1).await;
    let entry = here.phase("1.1.fix", 1, "stopped").await;
    assert_eq!((&entry["stop_reason"], &entry["held"]), (&"by hand".into(), &true.into()));
    let told = wait::within("its end", live.text()).await.expect("a text");
    assert!(told.ends_with("event: end\ndata: ended\n\n"), "{told}");
    for page in 0..here.pages.len() {
        let text = here.with(page, "/runs/1.1.fix", "by hand").await;
        assert!(text.contains("stopped") && text.contains("more of it"), "{text}");
        assert!(text.contains("/again\"") && !text.contains("/stop\""), "{text}");
    }
    let confirm = here.with(WORKER, path, "there is nothing to do: it is stopped.").await;
    assert!(!confirm.contains("class=\"danger\""), "{confirm}");
    assert_eq!(here.post(WORKER, path, &form).await.0, 400, "stopped twice");
    // The attempt is in the trace of what it follows from.
    let trace = run_entry(&here.js, "1.1.fix").await["traceparent"].clone();
    let trace = trace.as_str().and_then(|text| text.split('-').nth(1)).expect("a trace").to_owned();
    for page in [INGEST, WORKER, other] {
        here.with(page, &format!("/traces/{trace}"), "run fix").await;
    }
}

async fn all_are_listed(here: &Deployment) {
    here.send(Issue::new(1, 6).assigned(&["bot"]), "assigned").await;
    here.phase("1.3.fix", 1, "running").await;
    here.phase("1.6.fix", 1, "waiting").await;
    let expected = [
        ("1%2E6%2Efix", "waiting"),
        ("1%2E3%2Efix", "running"),
        ("1%2E2%2Efix", "running"),
        ("1%2E5%2Emuch", "done"),
        ("1%2E4%2Ewrong", "failed"),
        ("1%2E1%2Efix", "stopped"),
    ];
    for page in 0..here.pages.len() {
        let list = wait::until(&format!("all on the list of {page}"), || async {
            let (_, list) = here.get(page, "/runs").await;
            expected.iter().all(|(key, phase)| row(&list, key).contains(phase)).then_some(list)
        })
        .await;
        for part in ["All 6", "waiting 1", "running 2", "failed 1", "stopped 1", "exit 3", ">tom<"]
        {
            assert!(list.contains(part), "{part} is missing in {list}");
        }
        assert!(list.len() < PAGE, "{} bytes", list.len());
        assert!(!list.contains("1%2E8%2Efix"), "one that cannot be read: {list}");
        let failed = here.with(page, "/runs?phase=failed", "1%2E4%2Ewrong").await;
        assert!(!failed.contains("1%2E3%2Efix"), "{failed}");
        let toms = here.with(page, "/runs?q=Tom", "1%2E4%2Ewrong").await;
        assert!(!toms.contains("1%2E3%2Efix"), "{toms}");
    }
}

/// The row of a run in the list. Empty if it has none.
fn row<'a>(list: &'a str, key: &str) -> &'a str {
    let at = list.find(&format!("href=\"/runs/{key}\""));
    at.and_then(|at| list[at..].split("</tr>").next()).unwrap_or_default()
}

async fn what_was_stopped_begins_when_it_is_assigned_anew(here: &Deployment) {
    // Another one of its assignees is no reason.
    here.send(Issue::new(1, 1).assigned(&["bot", "eve"]).at(1), "assigned").await;
    here.send(Issue::new(1, 1).assigned(&["eve"]).at(2), "unassigned").await;
    here.send(Issue::new(1, 1).assigned(&["bot", "eve"]).at(3), "assigned").await;
    here.phase("1.1.fix", 2, "waiting").await;
    // Those that have the places.
    here.order(WORKER, "1.3.fix", "stop").await;
    here.send(Issue::new(1, 6).state("closed").at(1), "closed").await;
    here.agents.noted("acme/r1#1", "start", 2).await;
    here.phase("1.1.fix", 2, "running").await;
    let entry = here.phase("1.3.fix", 1, "stopped").await;
    assert_eq!(entry["stop_reason"], "by hand");
}

async fn it_runs_again_if_its_issue_wants_it(here: &Deployment) {
    let wrong = "acme/r1#4";
    here.agents.noted(wrong, "start", 1).await;
    assert_eq!(here.post(WORKER, "/runs/1.4.wrong/again", "generation=1").await.0, 403);
    here.order(WORKER, "1.4.wrong", "again").await;
    here.agents.noted(wrong, "start", 2).await;
    here.phase("1.4.wrong", 2, "failed").await;
    // One that was stopped by hand waits for a place, and is stopped once more before it has one.
    here.order(WORKER + 1, "1.3.fix", "again").await;
    let entry = here.phase("1.3.fix", 2, "waiting").await;
    assert_eq!((&entry["held"], &entry["desired"]), (&Value::Null, &"run".into()));
    here.order(WORKER + 2, "1.3.fix", "stop").await;
    here.phase("1.3.fix", 2, "stopped").await;
    // Unassigned meanwhile.
    here.send(Issue::new(1, 4).at(2), "unassigned").await;
    wait::until_equal("it to be unwanted", Value::from("stop"), || async {
        run_entry(&here.js, "1.4.wrong").await["desired"].clone()
    })
    .await;
    here.order(WORKER + 1, "1.4.wrong", "again").await;
    let entry = here.phase("1.4.wrong", 3, "stopped").await;
    assert_eq!(entry["stop_reason"], "unassigned");
    assert_eq!(here.agents.count(wrong, "start"), 2, "nothing has begun");
    assert_eq!(here.agents.count("acme/r1#3", "start"), 1, "nothing has begun");
    let page = here.with(INGEST, "/runs/1.4.wrong", "unassigned").await;
    assert!(page.contains("It has written nothing."), "{page}");
}
