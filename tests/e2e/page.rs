//! The operator's page over HTTP, as browsers, scripts and strangers meet it.

use std::{path::Path, time::Duration};

use async_nats::{ConnectOptions, HeaderMap, jetstream};
use reqwest::{
    Response,
    header::{AUTHORIZATION, COOKIE, HOST, LOCATION, ORIGIN, SET_COOKIE},
    redirect::Policy,
};
use serde_json::Value;
use tempfile::TempDir;
use tests::{
    bus,
    gitea::{Issue, SECRET},
    process::Process,
    services::{ingest_at, worker_at},
    system::send,
    temp_dir, wait,
};

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");
/// Nobody listens there. The pages are up all the same.
const NOWHERE: &str = "nats://127.0.0.1:1";
const TOKEN: &str = "0123456789abcdef-of-operators";

/// A Coordinator on this machine, and a client that follows no redirects.
struct Here {
    _dir: TempDir,
    _process: Process,
    line: Value,
    http: reqwest::Client,
}

/// A client that follows no redirects.
pub(crate) fn client() -> reqwest::Client {
    reqwest::Client::builder().redirect(Policy::none()).no_proxy().build().expect("a client")
}

impl Here {
    async fn start() -> Self {
        let dir = temp_dir();
        let data = dir.path().canonicalize().expect("its path").join("data");
        let mut flags = vec!["--data-dir", data.to_str().expect("UTF-8")];
        flags.extend(["--port", "0", "--operator-port", "0", "--nats-port", "0"]);
        // Whatever room there is on this machine.
        flags.extend(["--stream-max-bytes", "16777216"]);
        let environment = [("GITEA_WEBHOOK_SECRET", SECRET), ("LOG_FORMAT", "json")];
        let process = Process::start(Path::new(EXE), "up", &flags, &environment);
        let line = process.line_with("\"coordinator runs\"").await;
        let line = serde_json::from_str(&line).expect("a JSON log line");
        Self { _dir: dir, _process: process, line, http: client() }
    }

    fn url(&self, name: &str) -> &str {
        self.line[name].as_str().expect("an address")
    }

    fn page_url(&self) -> &str {
        self.url("operator_url")
    }

    async fn jetstream(&self) -> jetstream::Context {
        let password = std::fs::read_to_string(self.url("nats_password_file")).expect("a password");
        let options =
            ConnectOptions::with_user_and_password("local".into(), password.trim().into());
        let client = options.connect(self.url("nats_url")).await.expect("a connection");
        jetstream::new(client)
    }

    async fn accepted(&self, issue: &Issue, action: &str) -> String {
        let delivery = issue.delivery(action);
        let address = self.url("webhook_url").trim_start_matches("http://");
        let address = address.trim_end_matches("/webhook/gitea").parse().expect("an address");
        assert_eq!(send(&self.http, address, &delivery).await.status, 200);
        delivery.id().to_owned()
    }

    /// Status and text of a page.
    async fn get(&self, path: &str) -> (u16, String) {
        let response = self.http.get(format!("{}{path}", self.page_url())).send();
        let response = response.await.expect("an answer");
        (response.status().as_u16(), response.text().await.expect("a text"))
    }

    /// A page that has to be there.
    async fn page(&self, path: &str) -> String {
        let (status, text) = self.get(path).await;
        assert_eq!(status, 200, "{path}: {text}");
        text
    }

    /// Where a page leads to.
    async fn way(&self, path: &str) -> String {
        let response = self.http.get(format!("{}{path}", self.page_url())).send();
        let response = response.await.expect("an answer");
        assert_eq!(response.status(), 303, "{path}");
        location(&response)
    }

    /// Sends a form of ours.
    async fn post(&self, path: &str, form: &str) -> Response {
        let request = self.http.post(format!("{}{path}", self.page_url()));
        let request = request.header(ORIGIN, self.page_url()).body(form.to_owned());
        request.send().await.expect("an answer")
    }

    async fn page_with(&self, path: &str, part: &str) -> String {
        let what = format!("{part:?} on {path}");
        let look = || async { Some(self.page(path).await).filter(|page| page.contains(part)) };
        wait::until(&what, look).await
    }
}

fn location(response: &Response) -> String {
    response.headers()[LOCATION].to_str().expect("a text").to_owned()
}

/// The value of a hidden field.
pub(crate) fn field(page: &str, name: &str) -> String {
    let field = page.split(&format!("name=\"{name}\" value=\"")).nth(1).expect("the field");
    field.split('"').next().expect("its value").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_is_found_by_every_key_and_its_page_tells_its_fate() {
    let here = Here::start().await;
    let mut issue = Issue::new(7, 3).assigned(&["bot"]);
    issue.title = "<script>alert(1)</script>\"><img src=x onerror=alert(1)> \u{202e}".into();
    let first = here.accepted(&issue, "assigned").await;
    let second = here.accepted(&issue.clone().assigned(&[]).at(1), "unassigned").await;
    let address = format!("/deliveries/{first}");
    let page = here.page_with(&address, "assigned +bot").await;
    for part in [
        "received and verified",
        "in the journal",
        "in the stream of events",
        "gitea.issues.assigned.acme.r7.3.",
        &format!("{first}:assigned"),
        "/issues/acme/r7/3",
        "POST /webhook/gitea",
        "&lt;script&gt;",
        "\\u{202e}",
    ] {
        assert!(page.contains(part), "{part} is missing in {page}");
    }
    let page = here.page_with(&address, "Verdict: changed.").await;
    assert!(page.contains("handle assigned"), "{page}");
    assert!(page.len() < 30_000, "{} bytes", page.len());
    let bare = first.replace('-', "");
    for (sought, way) in [
        (first.as_str(), address.as_str()),
        (&bare, &address),
        (&format!("{first}:assigned"), &address),
        ("acme/r7%233", "/issues/acme/r7/3"),
        ("http://localhost:3000/acme/r7/issues/3", "/issues/acme/r7/3"),
    ] {
        assert_eq!(here.way(&format!("/find?q={sought}")).await, way, "{sought}");
    }
    assert_eq!(here.way(&format!("/deliveries/{bare}")).await, address);
    let found = here.page_with("/find?q=bot", "was unassigned").await;
    assert!(
        found.contains("/issues/acme/r7/3") && found.contains("the newest 2 changes"),
        "{found}"
    );
    let page = here.page("/issues/acme/r7/3").await;
    for part in ["assigned +bot", "unassigned -bot", &first, &second, "nobody", "/deliveries/"] {
        assert!(page.contains(part), "{part} is missing in {page}");
    }
    let payload = here.page(&format!("{address}?payload=1")).await;
    assert!(payload.contains("As Gitea sent it") && payload.contains("ce-type"), "{payload}");
    assert!(!payload.to_lowercase().contains("signature") && !payload.contains(SECRET));
    for page in [
        &page,
        &payload,
        &found,
        &here.page("/").await,
        &here.page(&format!("/traces/{bare}")).await,
    ] {
        assert!(!page.contains("<script>") && !page.contains("<img") && !page.contains('\u{202e}'));
        assert!(!page.contains("style=") && !page.contains(" onerror=alert(1)>"), "{page}");
    }

    let confirm = here.page(&format!("{address}/redeliver")).await;
    let form = format!("form_token={}", field(&confirm, "form_token"));
    let response = here.post(&format!("{address}/redeliver"), &form).await;
    assert_eq!(response.status(), 303, "{}", response.text().await.expect("a text"));
    let way = location(&response);
    assert!(way.starts_with(&format!("{address}?redelivered=")), "{way}");
    let page = here.page_with(&way, "published again").await;
    assert!(page.contains("Published again as message 3"), "{page}");
    assert_eq!(bus::count(&here.jetstream().await, "GITEA_ISSUES").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_id_and_no_page_is_told_and_never_an_error_of_ours() {
    let here = Here::start().await;
    let nobody = "00000000-0000-4000-8000-000000000000";
    for (path, expected) in [
        ("/deliveries/x", 400),
        ("/deliveries/%00%ff", 400),
        ("/deliveries/..%2f..%2fetc", 400),
        ("/traces/b60f8ed36a1a4e58b31e0b00968f94cg", 400),
        ("/issues/acme/widgets/x", 400),
        ("/issues/acme/widgets/99999999999999999999", 400),
        ("/dead-letters/x", 400),
        ("/dead-letters/-1", 400),
        ("/dead-letters/7", 404),
        ("/dead-letters/confirm?what=drop", 400),
        ("/dead-letters/confirm?what=drop&sequence=9", 404),
        ("/dead-letters/jobs/x", 404),
        (&format!("/dead-letters/jobs/{nobody}"), 404),
        ("/runbook/nothing", 404),
        ("/find?q=%3Cscript%3E", 400),
        ("/find?q=%00", 400),
        ("/nothing", 404),
        ("/page", 404),
        ("/issues/%3Cb%3E/..%2f/1", 200),
        (&format!("/deliveries/{nobody}"), 200),
        ("/dead-letters?before=x&q=%F0", 200),
    ] {
        let (status, text) = here.get(path).await;
        assert_eq!(status, expected, "{path}: {text}");
        assert!(text.contains("href=\"/\"") && !text.contains("<script>"), "{path}: {text}");
    }
    let page = here.page_with("/", "Nothing that can be seen from here").await;
    for (name, kind) in [("page.css", "text/css"), ("page.js", "text/javascript")] {
        let at = page.find(&format!("/{name}?v=")).expect("an address");
        let address: String = page[at..].chars().take_while(|c| *c != '"').collect();
        let response = here.http.get(format!("{}{address}", here.page_url())).send().await;
        let response = response.expect("an answer");
        let header = |name: &str| response.headers()[name].to_str().expect("a text").to_owned();
        assert!(
            header("content-type").starts_with(kind)
                && header("cache-control").contains("immutable")
        );
        assert!(
            header("content-security-policy").starts_with("default-src 'none'; script-src 'self'")
        );
    }
    // What is live goes on by itself, and ends with the process.
    let mut live =
        here.http.get(format!("{}/live", here.page_url())).send().await.expect("an answer");
    for _ in 0..2 {
        let chunk = wait::within("an event", live.chunk()).await.expect("a chunk").expect("more");
        assert!(String::from_utf8_lossy(&chunk).contains("As of"), "{chunk:?}");
    }
    let mut process = here._process;
    process.signal("TERM");
    let ended = wait::within("the end", async { while let Ok(Some(_)) = live.chunk().await {} });
    ended.await;
    assert_eq!(process.exited().await.code(), Some(0));
    assert!(!process.output().contains("requests did not end in time"), "{}", process.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_filtered_redriven_and_dropped_and_two_who_do_it_do_no_harm() {
    let here = Here::start().await;
    let js = here.jetstream().await;
    wait::until("the streams", || async {
        js.get_stream("GITEA_ISSUES_DEAD").await.ok().map(drop)
    })
    .await;
    for number in 1..=60_u64 {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("broken-{number}"));
        let subject = format!("gitea.issues.closed.acme.r{}.{number}.{}", number % 2, number % 64);
        let payload = "{\"<script>\": 1".into();
        js.publish_with_headers(subject, headers, payload)
            .await
            .expect("sent")
            .await
            .expect("stored");
    }
    wait::until_equal("all given up", 60, || bus::count(&js, "GITEA_ISSUES_DEAD")).await;
    let page = here.page("/").await;
    assert!(page.contains("60 dead letters: events that were given up"), "{page}");
    let list = here.page("/dead-letters").await;
    assert!(list.contains("60 dead letters") && list.contains("Older"), "{list}");
    assert!(list.len() < 30_000, "{} bytes", list.len());
    let filtered = here.page("/dead-letters?q=ACME.R1").await;
    assert_eq!(filtered.matches("type=\"checkbox\"").count(), 30);
    assert!(here.page("/dead-letters?q=nothing").await.contains("None that match"));
    let letter = here.page("/dead-letters/1").await;
    assert!(letter.contains("{&quot;&lt;script&gt;&quot;: 1"), "{letter}");

    // Redriven, they are given up again under new numbers: they cannot be read.
    let confirm = here.page("/dead-letters/confirm?what=redrive-all&q=acme.r1").await;
    assert!(confirm.contains("30 events are published again"), "{confirm}");
    assert!(confirm.contains("30 events cannot be read by this version"), "{confirm}");
    let form = format!(
        "what=redrive-all&q=acme.r1&through={}&form_token={}",
        field(&confirm, "through"),
        field(&confirm, "form_token")
    );
    let jobs = futures::future::join_all([(); 2].map(|()| here.post("/dead-letters/jobs", &form)));
    let ways: Vec<_> = jobs.await.iter().map(location).collect();
    for way in &ways {
        here.page_with(way, "Ended.").await;
    }
    wait::until_equal("all there", 60, || bus::count(&js, "GITEA_ISSUES_DEAD")).await;
    assert_eq!(bus::count(&js, "GITEA_ISSUES").await, 90, "each was published again once");
    let live = here.http.get(format!("{}{}/live", here.page_url(), ways[0])).send().await;
    let live = wait::within("its end", live.expect("an answer").text()).await.expect("a text");
    assert!(live.contains("event: region") && live.contains("event: end"), "{live}");

    let list = here.page("/dead-letters?q=acme.r0").await;
    let sequences = list.split("name=\"sequence\" value=\"").skip(1);
    let sequence = |rest: &str| rest.split('"').next().expect("its end").to_owned();
    let chosen: Vec<String> = sequences.map(sequence).take(2).collect();
    let chosen = format!("what=drop&sequence={}&sequence={}", chosen[0], chosen[1]);
    let confirm = here.page(&format!("/dead-letters/confirm?{chosen}")).await;
    assert!(confirm.contains("2 dead letters are removed"), "{confirm}");
    let form = format!("{chosen}&form_token={}", field(&confirm, "form_token"));
    let way = location(&here.post("/dead-letters/jobs", &form).await);
    assert!(here.page_with(&way, "Ended.").await.contains("2 of 2 dropped"));
    assert_eq!(bus::count(&js, "GITEA_ISSUES_DEAD").await, 58);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_form_of_ours_with_the_token_changes_anything() {
    let worker = worker_at(Path::new(EXE), NOWHERE, &[], &[("OPERATOR_TOKEN", TOKEN)]);
    let address = worker.address_in("operator listens").await;
    let (http, url) = (client(), format!("http://{address}"));
    let request = |path: &str| http.get(format!("{url}{path}"));
    let status = async |request: reqwest::RequestBuilder| {
        request.send().await.expect("an answer").status().as_u16()
    };
    for path in ["/", "/live", "/dead-letters", "/deliveries/x", "/nothing"] {
        assert_eq!(status(request(path)).await, 401, "{path}");
    }
    for path in ["/health", "/metrics", "/login", "/page.css"] {
        let expected = if path == "/login" { 401 } else { 200 };
        assert_eq!(status(request(path)).await, expected, "{path}");
    }
    let login = |origin: &str, token: &str| {
        let form = format!("token={token}");
        http.post(format!("{url}/login")).header(ORIGIN, origin).body(form)
    };
    assert_eq!(status(login(&url, "wrong")).await, 401);
    assert_eq!(status(login("http://elsewhere.example", TOKEN)).await, 403);
    assert_eq!(status(login("null", TOKEN)).await, 403);
    assert_eq!(status(request("/").header(AUTHORIZATION, "Bearer wrong")).await, 401);
    assert_eq!(status(request("/").header(AUTHORIZATION, format!("Bearer {TOKEN}"))).await, 200);
    let response = login(&url, TOKEN).send().await.expect("an answer");
    assert_eq!(response.status(), 303);
    let cookie = response.headers()[SET_COOKIE].to_str().expect("a text").to_owned();
    for part in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(part) && !cookie.contains(TOKEN), "{cookie}");
    }
    let cookie = cookie.split(';').next().expect("a pair").to_owned();
    let page = request("/").header(COOKIE, &cookie).send().await.expect("an answer");
    assert_eq!(page.status(), 200);
    let token = field(&page.text().await.expect("a text"), "form_token");
    let forged = cookie.replacen("=1", "=9", 1);
    assert_eq!(status(request("/").header(COOKIE, forged)).await, 401);

    // A real change, but for what is wrong with it.
    let path = "/dead-letters/jobs";
    let post = |origin: Option<&str>, cookie: &str, token: &str| {
        let form = format!("what=drop&sequence=1&form_token={token}");
        let request = http.post(format!("{url}{path}")).header(COOKIE, cookie).body(form);
        match origin {
            Some(origin) => request.header(ORIGIN, origin),
            None => request,
        }
    };
    assert_eq!(status(post(Some(&url), &cookie, &token)).await, 503, "there is no broker");
    let another_token =
        format!("{}{}", if token.starts_with('a') { "b" } else { "a" }, &token[1..]);
    for (origin, cookie, token, expected) in [
        (Some("http://elsewhere.example"), cookie.as_str(), token.as_str(), 403),
        (Some("null"), &cookie, &token, 403),
        (None, &cookie, &token, 403),
        (Some(&*url), "", &token, 401),
        (Some(&*url), &cookie, "", 403),
        (Some(&*url), &cookie, &another_token, 403),
    ] {
        let answer = status(post(origin, cookie, token)).await;
        assert_eq!(answer, expected, "{origin:?} {cookie:?} {token:?}");
    }
    let embedded = request("/").header(COOKIE, &cookie).header("sec-fetch-site", "cross-site");
    assert_eq!(status(embedded.header("sec-fetch-mode", "no-cors")).await, 403);
    assert_eq!(
        status(request("/").header(COOKIE, &cookie).header(HOST, "rebind.example")).await,
        421
    );
    let get = http.get(format!("{url}{path}")).header(COOKIE, &cookie);
    assert_eq!(status(get).await, 400, "not by GET");
    let logout = http.post(format!("{url}/logout")).header(ORIGIN, &url).header(COOKIE, &cookie);
    let response = logout.send().await.expect("an answer");
    assert!(response.headers()[SET_COOKIE].to_str().expect("a text").contains("Max-Age=0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_others_reach_has_no_page_without_a_token() {
    let data = temp_dir();
    let everywhere = [("OPERATOR_HOST", "0.0.0.0")];
    let ingest = ingest_at(Path::new(EXE), NOWHERE, data.path(), &[], &everywhere);
    let port = ingest.address_in("operator listens").await.port();
    let get = async |path: &str| {
        let response = client().get(format!("http://127.0.0.1:{port}{path}")).send().await;
        let response = response.expect("an answer");
        (response.status().as_u16(), response.text().await.expect("a text"))
    };
    for path in ["/", "/dead-letters", "/live"] {
        let (status, text) = get(path).await;
        assert_eq!(status, 403, "{path}");
        assert!(text.contains("OPERATOR_TOKEN_FILE"), "{text}");
    }
    assert_eq!((get("/health").await.0, get("/metrics").await.0), (200, 200));
    let started = tokio::time::Instant::now();
    let weak = [("OPERATOR_TOKEN", "short")];
    let mut refused = ingest_at(Path::new(EXE), NOWHERE, data.path(), &[], &weak);
    assert_eq!(refused.exited().await.code(), Some(64), "{}", refused.output());
    assert!(refused.output().contains("OPERATOR_TOKEN has 5 bytes"), "{}", refused.output());
    assert!(started.elapsed() < Duration::from_secs(30));
}

/// Every user of a machine reaches its loopback.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn another_user_of_the_machine_gets_no_page() {
    use std::os::unix::process::CommandExt;

    if !rustix::process::geteuid().is_root() {
        return println!("skipped: only root can ask as another user");
    }
    let here = Here::start().await;
    let port = here.page_url().rsplit(':').next().expect("a port").to_owned();
    let as_user = async |user: u32| {
        let ask = format!(
            "exec 3<>/dev/tcp/127.0.0.1/{port}; \
             printf 'GET / HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3"
        );
        let asking = tokio::task::spawn_blocking(move || {
            std::process::Command::new("bash").args(["-c", &ask]).uid(user).output()
        });
        let output = wait::within("an answer", asking).await.expect("no panic").expect("bash");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let own = as_user(0).await;
    assert!(own.starts_with("HTTP/1.1 200"), "{own}");
    let other = as_user(65_534).await;
    assert!(other.starts_with("HTTP/1.1 403") && other.contains("OPERATOR_TOKEN"), "{other}");
}

/// With the users that are deployed: either page shows the whole deployment, and a worker's alone
/// removes dead letters.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn with_the_deployed_users_each_page_shows_all_and_does_what_its_role_may() {
    use crate::broker_roles::{create_streams, nats_with_roles, start};

    let (nats, data) = (nats_with_roles().await, [temp_dir(), temp_dir(), temp_dir()]);
    create_streams(&nats, &data[0]).await;
    let ingest = start("ingest", &[], "ingest", &nats, &data[1]);
    let worker = start("worker", &[], "worker", &nats, &data[2]);
    let webhook = ingest.address_in("ingest listens").await;
    let ingest_page = format!("http://{}", ingest.address_in("operator listens").await);
    let worker_page = format!("http://{}", worker.address_in("operator listens").await);
    let http = client();
    let get = async |url: String| {
        let response = http.get(url).send().await.expect("an answer");
        response.text().await.expect("a text")
    };
    let with = async |url: String, part: &str| {
        let look = || async { Some(get(url.clone()).await).filter(|page| page.contains(part)) };
        wait::until(&format!("{part:?} on {url}"), look).await
    };
    let delivery = Issue::new(7, 3).assigned(&["bot"]).delivery("assigned");
    assert_eq!(send(&http, webhook, &delivery).await.status, 200);
    let js = jetstream::new(nats.client().await);
    let broken = js.publish("gitea.issues.closed.acme.r7.4.9", "{".into()).await;
    broken.expect("sent").await.expect("stored");
    wait::until_equal("given up", 1, || bus::count(&js, "GITEA_ISSUES_DEAD")).await;
    for page in [&ingest_page, &worker_page] {
        let now = with(format!("{page}/"), "1 dead letter").await;
        for role in [">ingest<", ">worker<"] {
            with(format!("{page}/"), role).await;
        }
        assert!(!now.contains("NATS:") && !now.contains("did not answer"), "{now}");
        let fate = with(format!("{page}/deliveries/{}", delivery.id()), "assigned +bot").await;
        assert!(
            fate.contains("in the journal") && fate.contains("as this delivery left it"),
            "{fate}"
        );
        let issue = get(format!("{page}/issues/acme/r7/3")).await;
        assert!(issue.contains("assigned +bot") && issue.contains("revision"), "{issue}");
    }
    let confirm = "/dead-letters/confirm?what=redrive&sequence=1";
    let refused = get(format!("{ingest_page}{confirm}")).await;
    assert!(
        refused.contains("Do it on a worker's page") && refused.contains(" disabled"),
        "{refused}"
    );
    let post = async |page: &str, token: &str| {
        let form = format!("what=redrive&sequence=1&form_token={token}");
        let request = http.post(format!("{page}/dead-letters/jobs")).header(ORIGIN, page);
        request.body(form).send().await.expect("an answer")
    };
    assert_eq!(post(&ingest_page, &field(&refused, "form_token")).await.status(), 503);
    assert_eq!(bus::count(&js, "GITEA_ISSUES").await, 2, "nothing is published that stays here");
    let confirm = get(format!("{worker_page}{confirm}")).await;
    let way = location(&post(&worker_page, &field(&confirm, "form_token")).await);
    with(format!("{worker_page}{way}"), "1 of 1 redriven").await;
    wait::until_equal("published again", 3, || bus::count(&js, "GITEA_ISSUES")).await;
}
