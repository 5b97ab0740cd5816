//! `coordinator doctor`: a chain that is well, and each thing that can be wrong with it.

use std::{collections::BTreeMap, fs::Permissions, os::unix::fs::PermissionsExt, path::Path};

use async_nats::jetstream::{self, stream::DiscardPolicy};
use contract::names::{CHANGES, DEAD_LETTERS, EVENTS, Lane, QUESTIONS};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{
    bus,
    gitea_server::{Fault, GiteaServer, NewIssue},
    nats::Nats,
    process::Process,
    services, temp_dir, wait,
};

#[cfg(target_os = "linux")]
use crate::broker_roles;

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");
/// Nobody listens there.
const NOWHERE: &str = "127.0.0.1:1";
/// Long enough, other than that of other tests.
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Checks by name.
struct Report {
    code: i32,
    result: String,
    checks: BTreeMap<String, Value>,
}

impl Report {
    /// The result, what was found, and the remedy.
    fn of(&self, name: &str) -> (&str, &str, &str) {
        let check = &self.checks.get(name).unwrap_or_else(|| {
            panic!("no check {name} among {:?}", self.checks.keys().collect::<Vec<_>>())
        });
        let text = |field: &str| check[field].as_str().unwrap_or_default();
        (text("result"), text("found"), text("remedy"))
    }

    fn with_result(&self, result: &str) -> Vec<&str> {
        let of_result = self.checks.iter().filter(|(_, check)| check["result"] == result);
        of_result.map(|(name, _)| name.as_str()).collect()
    }
}

/// A Gitea, a broker, an ingest and a worker, which know each other.
struct Chain {
    gitea: GiteaServer,
    nats: Nats,
    data: TempDir,
    _ingest: Process,
    worker: Process,
    webhook: String,
    operator: std::net::SocketAddr,
    token: String,
    repository: i64,
    hook: i64,
}

impl Chain {
    async fn start() -> Self {
        let (nats, gitea, data) = (Nats::start().await, GiteaServer::start().await, temp_dir());
        let secret = data.path().join("webhook-secret");
        std::fs::write(&secret, SECRET).expect("write");
        std::fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("chmod");
        let environment = [("GITEA_WEBHOOK_SECRET", SECRET)];
        let url = nats.url();
        let ingest = services::ingest_at(Path::new(EXE), &url, data.path(), &[], &environment);
        let webhook = ingest.address_in("ingest listens").await;
        let operator = ingest.address_in("operator listens").await;
        gitea.add_admin("maria");
        gitea.add_organization("acme", &["maria"]);
        let repository = gitea.add_repository("acme", "widgets");
        gitea.create_issue(repository, "maria", &NewIssue::default());
        let token = gitea.add_token("doctor", "maria", &["all"]);
        let environment = [("GITEA_URL", &*gitea.url()), ("GITEA_TOKEN", &token)];
        let worker = services::worker_at(Path::new(EXE), &url, &[], &environment);
        let webhook = format!("http://{webhook}/webhook/gitea");
        let mut chain = Self {
            gitea,
            nats,
            data,
            _ingest: ingest,
            worker,
            webhook,
            operator,
            token,
            repository,
            hook: 0,
        };
        chain.hook = chain.add_hook(SECRET).await;
        chain.stands().await;
        chain
    }

    /// Waits until the worker consumes.
    async fn stands(&self) {
        let js = jetstream::new(self.nats.client().await);
        wait::until("the worker to ask for messages", || async {
            let stream = js.get_stream(EVENTS).await.ok()?;
            let info = stream.consumer_info("worker-63").await.ok()?;
            for name in [CHANGES, DEAD_LETTERS, "KV_GITEA_ISSUE_STATE", "KV_GITEA_SYNC"] {
                js.get_stream(name).await.ok()?;
            }
            let questions = js.get_stream(QUESTIONS).await.ok()?;
            for lane in Lane::ALL {
                questions.consumer_info(lane.consumer()).await.ok()?;
            }
            (info.num_waiting > 0).then_some(())
        })
        .await;
    }

    async fn add_hook(&self, secret: &str) -> i64 {
        let hook = json!({
            "type": "gitea", "active": true, "events": ["issues_only", "issue_assign", "push"],
            "config": { "url": self.webhook, "content_type": "json", "secret": secret },
        });
        let answer = self.api(Method::POST, "repos/acme/widgets/hooks", hook).await;
        answer["id"].as_i64().expect("an id")
    }

    async fn edit_hook(&self, edit: Value) {
        let path = format!("repos/acme/widgets/hooks/{}", self.hook);
        self.api(Method::PATCH, &path, edit).await;
    }

    async fn delete_hook(&self) {
        let path = format!("repos/acme/widgets/hooks/{}", self.hook);
        self.api(Method::DELETE, &path, Value::Null).await;
    }

    async fn api(&self, method: Method, path: &str, body: Value) -> Value {
        let request = reqwest::Client::new()
            .request(method, format!("{}/api/v1/{path}", self.gitea.url()))
            .header("Authorization", format!("token {}", self.token));
        let answer = request.json(&body).send().await.expect("an answer");
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        let text = answer.text().await.expect("a text");
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Settings as they are, but for those in `other`.
    async fn doctor(&self, args: &[&str], other: &[(&str, &str)]) -> Report {
        let (gitea, nats) = (self.gitea.url(), self.nats.url());
        let (host, port) = self.operator_place();
        let (ingest_host, ingest_port) = self.webhook_place();
        let mut environment = vec![
            ("GITEA_URL", gitea.as_str()),
            ("GITEA_TOKEN", self.token.as_str()),
            ("GITEA_REQUESTS_PER_SECOND", "1000"),
            ("NATS_URL", nats.as_str()),
            ("DATA_DIR", self.data.path().to_str().expect("UTF-8")),
            ("HOST", &ingest_host),
            ("PORT", &ingest_port),
            ("OPERATOR_HOST", &host),
            ("OPERATOR_PORT", &port),
        ];
        environment.retain(|(name, _)| !other.iter().any(|(other, _)| other == name));
        environment.extend(other.iter().filter(|(_, value)| !value.is_empty()));
        report(args, &environment).await
    }

    fn operator_place(&self) -> (String, String) {
        (self.operator.ip().to_string(), self.operator.port().to_string())
    }

    fn webhook_place(&self) -> (String, String) {
        let url: reqwest::Url = self.webhook.parse().expect("a URL");
        let port = url.port().expect("a port").to_string();
        (url.host_str().expect("a host").to_owned(), port)
    }
}

async fn report(args: &[&str], environment: &[(&str, &str)]) -> Report {
    let args = [&["--json"], args].concat();
    let mut process = Process::start(Path::new(EXE), "doctor", &args, environment);
    let code = process.exited().await.code().expect("an exit code");
    let output = process.output();
    let is_secret = |name: &str| ["GITEA_TOKEN", "GITEA_WEBHOOK_SECRET"].contains(&name);
    let secrets = environment.iter().filter(|(name, _)| is_secret(name)).map(|(_, value)| *value);
    for secret in secrets.chain([SECRET]) {
        assert!(!output.contains(secret), "{output}");
    }
    let line = output.lines().find(|line| line.starts_with('{')).unwrap_or_default();
    let report: Value = serde_json::from_str(line).unwrap_or_else(|error| {
        panic!("{error}: {output}");
    });
    let fields: Vec<_> = report.as_object().expect("an object").keys().cloned().collect();
    assert_eq!(fields, ["result", "checks"]);
    let checks = report["checks"].as_array().expect("an array").iter().map(|check| {
        let fields: Vec<_> = check.as_object().expect("an object").keys().cloned().collect();
        assert_eq!(fields, ["name", "result", "found", "remedy"]);
        let needs_remedy = matches!(check["result"].as_str(), Some("warning" | "wrong"));
        assert_eq!(check["remedy"].is_string(), needs_remedy, "{check}");
        (check["name"].as_str().expect("a name").to_owned(), check.clone())
    });
    let result = report["result"].as_str().expect("a result").to_owned();
    Report { code, result, checks: checks.collect() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_is_well_is_followed_to_its_end_and_nothing_is_left() {
    let chain = Chain::start().await;
    let report = chain.doctor(&["--deliver"], &[]).await;
    assert_eq!(report.with_result("wrong"), [""; 0], "{:#?}", report.checks);
    assert_eq!(report.with_result("warning"), [""; 0], "{:#?}", report.checks);
    assert_eq!((report.code, report.result.as_str()), (0, "ok"));
    for name in ["delivery", "delivery's event", "delivery's change", "delivery taken back"] {
        assert_eq!(report.of(name).0, "ok", "{name}");
    }
    assert_eq!(report.of("delivery of gitea").0, "ok");
    let js = jetstream::new(chain.nats.client().await);
    let changes = bus::changes(&js).await;
    let kinds: Vec<_> = changes.iter().map(|change| change.kind.as_str()).collect();
    assert_eq!(kinds, ["assigned", "unassigned", "deleted"]);
    for change in &changes {
        assert_eq!(change.repository.owner, "coordinator");
        assert!(change.repository.name.starts_with("doctor-"), "{}", change.repository.name);
        assert!(change.repository.id > 1 << 50, "no id that Gitea gives");
    }
    assert!(!changes.iter().any(|change| change.in_doubt), "{changes:#?}");
}

/// Something that is not as it should be.
struct Broken<'a> {
    args: &'a [&'a str],
    /// Settings that are other than those of the roles.
    settings: &'a [(&'a str, &'a str)],
    check: &'a str,
    result: &'a str,
    /// What the check has to say.
    found: &'a str,
    /// Checks that cannot be made then.
    skipped: &'a [&'a str],
}

impl Broken<'_> {
    async fn is_told(&self, chain: &Chain) {
        let Self { args, settings, check, result, found, skipped } = *self;
        let report = chain.doctor(args, settings).await;
        let told = report.of(check);
        assert_eq!(told.0, result, "{check}: {told:?}");
        assert!(told.1.contains(found), "{check}: {told:?}");
        for name in skipped {
            assert_eq!(report.of(name).0, "skipped", "{name}: {:?}", report.of(name));
        }
        let wrong = report.with_result("wrong");
        assert_eq!(report.code, i32::from(!wrong.is_empty()), "{wrong:?}");
    }
}

/// A check that is wrong with nothing but one setting.
fn setting<'a>(
    settings: &'a [(&'a str, &'a str)],
    check: &'a str,
    result: &'a str,
    found: &'a str,
) -> Broken<'a> {
    Broken { args: &[], settings, check, result, found, skipped: &[] }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_that_leads_nowhere_is_told() {
    let chain = Chain::start().await;
    let narrow = chain.gitea.add_token("narrow", "maria", &["read:user"]);
    let (nats, gitea) = (format!("nats://{NOWHERE}"), format!("http://{NOWHERE}"));
    for broken in [
        Broken {
            skipped: &["nats version", "streams", "workers"],
            ..setting(&[("NATS_URL", &nats)], "nats", "wrong", "no connection to")
        },
        Broken {
            skipped: &["gitea version", "clock of Gitea", "token", "hooks"],
            ..setting(&[("GITEA_URL", &gitea)], "gitea", "wrong", "cannot be reached")
        },
        Broken {
            skipped: &["token's scopes", "root url", "hooks"],
            ..setting(&[("GITEA_TOKEN", "no-such-token-here")], "token", "wrong", "401")
        },
        Broken {
            skipped: &["token's scopes", "hooks"],
            ..setting(&[("GITEA_TOKEN", "")], "token", "skipped", "GITEA_TOKEN")
        },
        setting(&[("GITEA_TOKEN", &narrow)], "token's scopes", "wrong", "needs read:issue"),
        Broken {
            args: &["--deliver"],
            skipped: &["delivery's event", "delivery's change"],
            ..setting(
                &[("GITEA_WEBHOOK_SECRET", "another secret than that")],
                "delivery",
                "wrong",
                "401",
            )
        },
        Broken {
            skipped: &["disk"],
            ..setting(&[("GITEA_WEBHOOK_SECRET", "short")], "webhook secret", "wrong", "5 bytes")
        },
        setting(&[("LOG_LEVEL", "loud")], "settings", "wrong", "LOG_LEVEL"),
        Broken {
            skipped: &["nats", "streams"],
            ..setting(&[("NATS_URL", "nats://a b")], "settings", "wrong", "NATS_URL")
        },
        setting(&[("PARTITIONS", "32")], "partitions", "wrong", "64 partitions"),
        Broken {
            args: &["--deliver"],
            skipped: &["delivery"],
            ..setting(&[("PORT", "1")], "ingest", "wrong", "no ingest at")
        },
        setting(&[("OPERATOR_PORT", "1")], "operator's listener", "warning", "no role answers"),
        setting(&[("JOURNAL_MAX_BYTES", "18446744073709551615")], "disk", "warning", "MiB free"),
    ] {
        broken.is_told(&chain).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_in_gitea_is_told() {
    let chain = Chain::start().await;
    let hook = format!("hook {} of acme/widgets", chain.hook);
    let events = |events: &[&str], active: bool| json!({ "active": active, "events": events, "config": { "content_type": "json" } });
    let of_hook = |found| setting(&[], &hook, "wrong", found);
    chain.edit_hook(events(&["issues_only", "issue_assign"], false)).await;
    of_hook("it is not active").is_told(&chain).await;
    chain.edit_hook(events(&["issues_only"], true)).await;
    of_hook("it lacks the events issue_assign").is_told(&chain).await;
    chain.edit_hook(events(&["issues_only", "issue_assign"], true)).await;
    // Gitea would say that it has sent one.
    let untestable = Broken {
        args: &["--deliver"],
        ..setting(&[], "delivery of gitea", "skipped", "Gitea tests with a push")
    };
    untestable.is_told(&chain).await;
    setting(&[], &hook, "ok", "active").is_told(&chain).await;

    let elsewhere = [("WEBHOOK_URL", "http://localhost:1/webhook/gitea")];
    setting(&elsewhere, &hook, "warning", "it posts to").is_told(&chain).await;

    chain.gitea.set_root_url("https://git.example.com");
    setting(&[], "root url", "warning", "https://git.example.com").is_told(&chain).await;
    chain.gitea.set_root_url(&chain.gitea.url());

    for seconds in [3600, -7200] {
        chain.gitea.advance(seconds);
        setting(&[], "clock of Gitea", "wrong", "ours").is_told(&chain).await;
    }
    chain.gitea.use_real_clock();

    let lab = chain.gitea.add_repository("acme", "lab");
    chain.gitea.create_issue(lab, "maria", &NewIssue::default());
    setting(&[], "hooks", "warning", "acme/lab").is_told(&chain).await;
    chain.gitea.delete_repository(lab);

    chain.delete_hook().await;
    setting(&[], "hooks", "wrong", "no hook posts to us").is_told(&chain).await;

    let id = chain.add_hook("another secret than that").await;
    let found = format!("hook {id} of acme/widgets: a push arrived, and not with a secret");
    let unsigned =
        Broken { args: &["--deliver"], ..setting(&[], "delivery of gitea", "wrong", &found) };
    unsigned.is_told(&chain).await;
    chain.gitea.set_empty(chain.repository, true);
    let empty =
        Broken { args: &["--deliver"], ..setting(&[], "delivery of gitea", "skipped", "is empty") };
    empty.is_told(&chain).await;

    let reader = chain.gitea.add_token("reader", "maria", &["read:issue"]);
    setting(&[("GITEA_TOKEN", &reader)], "hooks", "skipped", "read:repository")
        .is_told(&chain)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_on_this_side_is_told() {
    let mut chain = Chain::start().await;
    let js = jetstream::new(chain.nats.client().await);
    let config = js.get_stream(EVENTS).await.expect("the stream").cached_info().config.clone();
    let mut unfit = config.clone();
    (unfit.max_messages, unfit.discard) = (1_000_000, DiscardPolicy::Old);
    js.update_stream(&unfit).await.expect("an update");
    setting(&[], "stream GITEA_ISSUES", "wrong", "a limit with discard Old").is_told(&chain).await;
    let found = js.get_stream(EVENTS).await.expect("the stream").cached_info().config.clone();
    assert_eq!(found, unfit, "it was only looked at");
    js.update_stream(config).await.expect("an update");

    let secret = chain.data.path().join("webhook-secret");
    std::fs::set_permissions(&secret, Permissions::from_mode(0o644)).expect("chmod");
    setting(&[], "data directory", "wrong", "webhook-secret (0644)").is_told(&chain).await;
    std::fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("chmod");
    let elsewhere = temp_dir();
    let token = elsewhere.path().join("token");
    std::fs::write(&token, &chain.token).expect("write");
    std::fs::set_permissions(&token, Permissions::from_mode(0o644)).expect("chmod");
    let of_file = [("GITEA_TOKEN", ""), ("GITEA_TOKEN_FILE", token.to_str().expect("UTF-8"))];
    setting(&of_file, "secret files", "warning", "GITEA_TOKEN_FILE").is_told(&chain).await;

    let dead = js.publish("gitea.dead.issues.closed.acme.widgets.1.1", "x".into()).await;
    dead.expect("publish").await.expect("an ack");
    setting(&[], "dead letters", "warning", "1 wait").is_told(&chain).await;

    chain.worker.kill().await;
    wait::until("nobody to ask for messages", || async {
        let stream = js.get_stream(EVENTS).await.ok()?;
        for partition in 0..64 {
            let info = stream.consumer_info(format!("worker-{partition:02}")).await.ok()?;
            if info.num_waiting > 0 {
                return None;
            }
        }
        Some(())
    })
    .await;
    let report = chain.doctor(&["--deliver"], &[]).await;
    assert_eq!(report.of("workers").0, "wrong");
    assert_eq!(report.of("delivery").0, "ok");
    assert_eq!(report.of("delivery's event").0, "ok");
    let (result, found, remedy) = report.of("delivery's change");
    assert_eq!(result, "wrong", "{found}");
    assert!(remedy.contains("start a worker"), "{remedy}");
    assert_eq!((report.of("delivery taken back").0, report.code), ("ok", 1));
    // The deletion waits behind it, so that nothing stays open.
    let events = bus::events(&js).await;
    let last = events.last().expect("an event");
    assert!(last.is_deletion() && last.repository.owner == "coordinator", "{last:#?}");

    chain.nats.kill();
    let report = chain.doctor(&["--deliver"], &[]).await;
    assert_eq!(report.of("nats").0, "wrong");
    assert_eq!(report.of("delivery").0, "ok", "ingest keeps it all the same");
    assert_eq!(report.of("delivery's change").0, "skipped");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_also_where_nobody_answers() {
    let gitea = GiteaServer::start().await;
    gitea.fail(Fault::Hang, "");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("its address").port().to_string();
    let data = temp_dir();
    let environment = [
        ("GITEA_URL", &*gitea.url()),
        ("GITEA_TOKEN", "no-such-token-here"),
        ("NATS_URL", &format!("nats://127.0.0.1:{port}")),
        ("DATA_DIR", data.path().to_str().expect("UTF-8")),
        ("GITEA_WEBHOOK_SECRET", SECRET),
        ("HOST", "127.0.0.1"),
        ("PORT", &port),
        ("OPERATOR_PORT", &port),
    ];
    let began = std::time::Instant::now();
    let report = report(&["--deliver"], &environment).await;
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
    assert_eq!((report.code, report.result.as_str()), (1, "wrong"));
    assert_eq!(report.with_result("wrong"), ["gitea", "ingest", "nats"]);
}

/// The worker's user may not look at all that stands there, and nothing is wrong with that.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_may_not_look_at_is_skipped() {
    let (nats, data) = (broker_roles::nats_with_roles().await, temp_dir());
    broker_roles::create_streams(&nats, &data).await;
    let ingest = broker_roles::start("ingest", &[], "ingest", &nats, &data);
    let webhook = ingest.address_in("ingest listens").await.port().to_string();
    let operator = ingest.address_in("operator listens").await.port().to_string();
    let worker = broker_roles::start("worker", &[], "worker", &nats, &data);
    worker.line_with("worker started").await;
    let js = jetstream::new(nats.client().await);
    wait::until("the worker to ask for messages", || async {
        let info = js.get_stream(EVENTS).await.ok()?.consumer_info("worker-63").await.ok()?;
        (info.num_waiting > 0).then_some(())
    })
    .await;
    let url = nats.url();
    for (user, jetstream) in [("worker", "skipped"), ("admin", "ok")] {
        let password = data.path().join(format!("{user}-password"));
        let environment = [
            ("GITEA_URL", "http://127.0.0.1:1"),
            ("GITEA_WEBHOOK_SECRET", tests::gitea::SECRET),
            ("ALLOW_SHORT_SECRET", "true"),
            ("NATS_URL", &url),
            ("NATS_USER", user),
            ("NATS_PASSWORD_FILE", password.to_str().expect("UTF-8")),
            ("DATA_DIR", data.path().to_str().expect("UTF-8")),
            ("HOST", "127.0.0.1"),
            ("PORT", &webhook),
            ("OPERATOR_PORT", &operator),
        ];
        let report = report(&["--deliver"], &environment).await;
        assert_eq!(report.with_result("wrong"), ["gitea"], "{user}: {:#?}", report.checks);
        assert_eq!(report.of("jetstream").0, jetstream, "{user}");
        assert_eq!(report.of("delivery's event").0, "ok", "{user}");
        assert_eq!(report.of("delivery's change").0, "ok", "{user}");
        assert_eq!(report.of("consumers").0, "ok", "{user}");
    }
}
