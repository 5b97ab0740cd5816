//! A broker that gives each user only the rights for its part, TLS, and
//! credentials files. The accounts and permissions are those that are deployed.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_nats::{
    Client, ConnectOptions, Event,
    jetstream::{
        self, AckKind,
        consumer::{PriorityPolicy, PullConsumer},
    },
};
use contract::names;
use tempfile::TempDir;
use tests::{
    bus,
    certificates::Certificates,
    check,
    gitea::{Issue, SECRET},
    gitea_server::{GiteaServer, NewIssue},
    load::{Load, stories},
    nats::Nats,
    process::Process,
    system::{send, settled},
    temp_dir, wait,
};

use crate::affinity;

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");
const USERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/nats/users.conf");

fn password(user: &str) -> String {
    format!("{user}-password")
}

/// Configuration of a server with the users that are deployed.
pub(crate) fn users() -> String {
    let users = std::fs::read_to_string(USERS).expect("users.conf");
    let passwords: String = ["admin", "ingest", "worker", "reactor", "reader"]
        .map(|user| format!("{}_PASSWORD: \"{}\"\n", user.to_uppercase(), password(user)))
        .concat();
    passwords + &users
}

/// Options of a client that may do everything.
pub(crate) fn admin() -> ConnectOptions {
    ConnectOptions::with_user_and_password("admin".into(), password("admin"))
}

/// A server with the users that are deployed.
pub(crate) async fn nats_with_roles() -> Nats {
    Nats::start_secured(&users(), admin).await
}

/// Settings of every service, and more.
fn environment<'a>(nats_url: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut all = vec![
        ("GITEA_URL", "http://localhost:3000"),
        ("GITEA_WEBHOOK_SECRET", SECRET),
        ("NATS_URL", nats_url),
        ("HOST", "127.0.0.1"),
        ("PORT", "0"),
        ("OPERATOR_PORT", "0"),
    ];
    all.extend(more);
    all
}

/// A service as `user`, with the settings of the deployment.
pub(crate) fn start(
    service: &str,
    args: &[&str],
    user: &str,
    nats: &Nats,
    data: &TempDir,
) -> Process {
    start_at(&nats.url(), service, args, user, data, &[])
}

/// The same with the broker at `url`, and more settings.
pub(crate) fn start_at(
    url: &str,
    service: &str,
    args: &[&str],
    user: &str,
    data: &TempDir,
    more: &[(&str, &str)],
) -> Process {
    let password_file = data.path().join(format!("{user}-password"));
    std::fs::write(&password_file, password(user)).expect("write the password");
    let role = [
        ("NATS_USER", user),
        ("NATS_PASSWORD_FILE", password_file.to_str().expect("UTF-8")),
        ("DATA_DIR", data.path().to_str().expect("UTF-8")),
    ];
    Process::start(Path::new(EXE), service, args, &environment(url, &[&role, more].concat()))
}

pub(crate) async fn create_streams(nats: &Nats, data: &TempDir) {
    let args = ["--reader", "reader", "--reader", "other"];
    let mut created = start("create-streams", &args, "admin", nats, data);
    assert_eq!(created.exited().await.code(), Some(0), "{}", created.output());
}

/// A raw client as `user`, and what the server denied it.
pub(crate) struct Role {
    pub(crate) client: Client,
    pub(crate) js: jetstream::Context,
    denied: Arc<Mutex<Vec<String>>>,
}

impl Role {
    pub(crate) async fn connect(nats: &Nats, user: &str) -> Self {
        let denied = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&denied);
        let client = ConnectOptions::with_user_and_password(user.into(), password(user))
            .event_callback(move |event| {
                if let Event::ServerError(error) = event {
                    noted.lock().expect("no panic").push(error.to_string());
                }
                async {}
            })
            .connect(nats.url())
            .await
            .expect("connect");
        let js = jetstream::new(client.clone());
        Self { client, js, denied }
    }

    async fn publish(&self, subject: &str) {
        self.client.publish(subject.to_owned(), "forged".into()).await.expect("publish");
    }

    pub(crate) async fn subscribe(&self, subject: &str) {
        self.client.subscribe(subject.to_owned()).await.expect("subscribe");
    }

    /// Waits until the server has denied each of `subjects`. It reports a denial as
    /// `Publish to "…"` or `Subscription to "…"`.
    pub(crate) async fn is_denied(&self, subjects: &[&str]) {
        for subject in subjects {
            wait::until(&format!("{subject} to be denied"), || async {
                let denied = self.denied.lock().expect("no panic");
                let found = denied.iter().any(|text| {
                    text.to_lowercase().contains("permissions violation")
                        && text.contains(&format!("\"{subject}\""))
                });
                found.then_some(())
            })
            .await;
        }
    }

    fn nothing_was_denied(&self) {
        assert_eq!(*self.denied.lock().expect("no panic"), Vec::<String>::new());
    }
}

async fn messages(nats: &Nats, stream: &str) -> u64 {
    bus::count(&jetstream::new(nats.client().await), stream).await
}

/// Sends a delivery to `ingest`, and waits for the change.
async fn a_delivery_becomes_a_change(nats: &Nats, ingest: &Process) {
    let address: SocketAddr = ingest.address_in("ingest listens").await;
    let delivery = Issue::new(1, 1).assigned(&["bot"]).delivery("assigned");
    assert_eq!(send(&reqwest::Client::new(), address, &delivery).await.status, 200);
    wait::until_equal("the change", 1, || messages(nats, names::CHANGES)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_least_privilege_everybody_can_do_their_part() {
    let (nats, data) = (nats_with_roles().await, temp_dir());
    create_streams(&nats, &data).await;
    let ingest = start("ingest", &[], "ingest", &nats, &data);
    let worker = start("worker", &[], "worker", &nats, &data);
    a_delivery_becomes_a_change(&nats, &ingest).await;
    let admin = jetstream::new(nats.client().await);
    wait::until_equal("it to be settled", Some(0), || bus::lag(&admin)).await;

    let reader = Role::connect(&nats, "reader").await;
    let stream = reader.js.get_stream(names::CHANGES).await.expect("the stream");
    let consumer: PullConsumer = stream.get_consumer("reader").await.expect("the consumer");
    let change = bus::next(&consumer).await;
    assert_eq!(change.subject.as_str(), "gitea.changes.assigned.acme.r1.1");
    change.double_ack().await.expect("ack");
    reader.nothing_was_denied();

    // The worker's user may look at dead letters.
    let garbage = admin.publish("gitea.issues.closed.acme.r1.1.5", "no event".into());
    garbage.await.expect("publish").await.expect("an ack");
    wait::until_equal("the dead letter", 1, || messages(&nats, names::DEAD_LETTERS)).await;
    for (args, shown) in [(&["list"][..], "no event"), (&["show", "1"], "Coordinator-Stream")] {
        let mut command = start("dead-letters", args, "worker", &nats, &data);
        assert_eq!(command.exited().await.code(), Some(0), "{}", command.output());
        let output = command.output();
        assert!(output.contains(shown) || output.contains("after 1 attempts"), "{output}");
    }
    for process in [&ingest, &worker] {
        let output = process.output();
        assert!(!output.contains("NATS denies"), "{output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_consumes_nothing_and_nobody_else_can_write_events() {
    let (nats, data) = (nats_with_roles().await, temp_dir());
    create_streams(&nats, &data).await;
    let event = "gitea.issues.closed.acme.r1.1.5";
    let change = "gitea.changes.closed.acme.r1.1";

    let ingest = Role::connect(&nats, "ingest").await;
    ingest.subscribe("gitea.issues.>").await;
    ingest.publish("$JS.API.CONSUMER.CREATE.GITEA_ISSUES.mine").await;
    ingest.publish("$JS.API.CONSUMER.MSG.NEXT.GITEA_ISSUES.worker-00").await;
    ingest.publish("$JS.API.STREAM.MSG.GET.GITEA_QUESTIONS").await;
    ingest.publish("$JS.API.STREAM.DELETE.GITEA_ISSUES").await;
    ingest.publish("$KV.GITEA_ISSUE_STATE.1.1").await;
    ingest.publish("gitea.questions.doubts.1.1").await;
    ingest.publish(change).await;
    let denied = [
        "gitea.issues.>",
        "$JS.API.CONSUMER.CREATE.GITEA_ISSUES.mine",
        "$JS.API.CONSUMER.MSG.NEXT.GITEA_ISSUES.worker-00",
        "$JS.API.STREAM.MSG.GET.GITEA_QUESTIONS",
        "$JS.API.STREAM.DELETE.GITEA_ISSUES",
        "$KV.GITEA_ISSUE_STATE.1.1",
        "gitea.questions.doubts.1.1",
        change,
    ];
    ingest.is_denied(&denied).await;

    let worker = Role::connect(&nats, "worker").await;
    worker.publish(event).await;
    worker.subscribe("gitea.issues.>").await;
    worker.publish("$JS.API.STREAM.PURGE.GITEA_ISSUES").await;
    worker.publish("$JS.API.CONSUMER.DELETE.GITEA_ISSUES.worker-00").await;
    let denied = [
        event,
        "gitea.issues.>",
        "$JS.API.STREAM.PURGE.GITEA_ISSUES",
        "$JS.API.CONSUMER.DELETE.GITEA_ISSUES.worker-00",
    ];
    worker.is_denied(&denied).await;

    let reader = Role::connect(&nats, "reader").await;
    reader.publish(event).await;
    reader.publish(change).await;
    reader.is_denied(&[event, change]).await;
    for stream in [names::EVENTS, names::CHANGES] {
        assert_eq!(messages(&nats, stream).await, 0, "{stream}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_can_neither_see_nor_settle_what_is_anothers() {
    let (nats, data) = (nats_with_roles().await, temp_dir());
    create_streams(&nats, &data).await;
    let admin = jetstream::new(nats.client().await);
    let published = admin.publish("gitea.changes.closed.acme.r1.1", "x".into()).await;
    published.expect("publish").await.expect("an ack");

    let stream = admin.get_stream(names::CHANGES).await.expect("the stream");
    let mut other: PullConsumer = stream.get_consumer("other").await.expect("the consumer");
    let message = bus::next(&other).await;
    let settle = message.reply.as_ref().expect("a reply subject").to_string();

    let reader = Role::connect(&nats, "reader").await;
    let next = "$JS.API.CONSUMER.MSG.NEXT.GITEA_CHANGES.other";
    let worker = "$JS.API.CONSUMER.MSG.NEXT.GITEA_ISSUES.worker-00";
    let create = "$JS.API.CONSUMER.CREATE.GITEA_CHANGES.reader";
    for subject in [next, worker, create, settle.as_str()] {
        reader.publish(subject).await;
    }
    reader.subscribe("gitea.changes.>").await;
    let denied = [next, worker, create, settle.as_str(), "gitea.changes.>"];
    reader.is_denied(&denied).await;
    assert_eq!(other.info().await.expect("info").num_ack_pending, 1, "somebody settled it");
    message.ack_with(AckKind::Ack).await.expect("ack");
}

/// A worker with a token that finds an issue of which no webhook told, and hears of a gap of ingest.
async fn gitea_is_asked(nats: &Nats, data: &TempDir) {
    create_streams(nats, data).await;
    let gitea = GiteaServer::start().await;
    gitea.add_user("ann");
    let repository = gitea.add_repository("ann", "widgets");
    let issue = NewIssue { title: "Missed", assignees: &["ann"], ..NewIssue::default() };
    let number = gitea.create_issue(repository, "ann", &issue);
    let token_file = data.path().join("gitea-token");
    let token = gitea.add_token("worker", "ann", &["read:issue", "read:repository"]);
    std::fs::write(&token_file, token).expect("write the token");

    let url = gitea.url();
    let more =
        [("GITEA_URL", url.as_str()), ("GITEA_TOKEN_FILE", token_file.to_str().expect("UTF-8"))];
    let worker = start_at(&nats.url(), "worker", &[], "worker", data, &more);
    wait::until_equal("the change", 1, || messages(nats, names::CHANGES)).await;
    wait::until_equal("no question", 0, || messages(nats, names::QUESTIONS)).await;

    let ingest = Role::connect(nats, "ingest").await;
    let told = ingest.js.publish("gitea.questions.gap", "".into()).await.expect("publish");
    told.await.expect("an ack");
    wait::until_equal("the gap to be heard", 0, || messages(nats, names::QUESTIONS)).await;
    ingest.nothing_was_denied();

    gitea.close(repository, number, "ann");
    let mut command = start_at(&nats.url(), "sync", &[], "worker", data, &more);
    assert_eq!(command.exited().await.code(), Some(3), "{}", command.output());
    wait::until_equal("the second change", 2, || messages(nats, names::CHANGES)).await;
    let output = worker.output();
    assert!(output.contains("this worker asks Gitea now"), "{output}");
    for output in [output, command.output()] {
        assert!(!output.contains("NATS denies"), "{output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_a_token_has_every_right_that_it_needs() {
    let (nats, data) = (nats_with_roles().await, temp_dir());
    gitea_is_asked(&nats, &data).await;
}

/// Two workers that consume all partitions, with deliveries for them until they are settled.
async fn a_load_is_shared(nats: &Nats, data: &TempDir) -> [Process; 2] {
    create_streams(nats, data).await;
    let ingest = start("ingest", &[], "ingest", nats, data);
    let workers = [(); 2].map(|()| start("worker", &[], "worker", nats, data));
    for worker in &workers {
        affinity::is_ready(worker).await;
    }
    let address = ingest.address_in("ingest listens").await;
    let sent = Load::start(&[address], 5, stories(1, 100, 10)).finish().await;
    assert_eq!((sent.accepted.len(), sent.unanswered.len()), (1000, 0));
    let admin = jetstream::new(nats.client().await);
    settled(&admin, 1000).await;
    check::kept(&admin, &sent.accepted).await;
    assert_eq!(bus::changes(&admin).await.len(), 900);
    for process in workers.iter().chain([&ingest]) {
        let output = process.output();
        assert!(!output.contains("NATS denies"), "{output}");
    }
    workers
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_stay_with_their_workers_across_accounts() {
    let (nats, data) = (nats_with_roles().await, temp_dir());
    let [mut first, second] = a_load_is_shared(&nats, &data).await;
    let admin = jetstream::new(nats.client().await);
    assert_eq!(affinity::policies(&admin).await, [PriorityPolicy::Prioritized]);
    let moves = affinity::moves(&[&first, &second], 1);
    let (moved, all) = moves.values().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert!(10 * moved <= all, "{moved} moves in {all} messages");

    // What was meant for a dead worker does not wait for it: the server sees that it is gone.
    first.kill().await;
    let data = temp_dir();
    let ingest = start("ingest", &[], "ingest", &nats, &data);
    let address = ingest.address_in("ingest listens").await;
    let started = Instant::now();
    let sent = Load::start(&[address], 5, stories(2, 64, 1)).finish().await;
    assert_eq!(sent.accepted.len(), 64);
    settled(&admin, 1064).await;
    assert!(started.elapsed() < Duration::from_secs(30), "it waited for {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_of_the_second_form_reach_the_streams_account() {
    let extra = "\nfeature_flags { js_ack_fc_v2: true }\n";
    let (nats, data) = (Nats::start_secured(&(users() + extra), admin).await, temp_dir());
    a_load_is_shared(&nats, &data).await;
    let reader = Role::connect(&nats, "reader").await;
    let stream = reader.js.get_stream(names::CHANGES).await.expect("the stream");
    let consumer: PullConsumer = stream.get_consumer("reader").await.expect("the consumer");
    let change = bus::next(&consumer).await;
    let reply = change.reply.as_ref().expect("a reply subject");
    assert!(reply.starts_with("$JS.ACK._."), "the server does not use the second form: {reply}");
    change.double_ack().await.expect("ack");
    reader.nothing_was_denied();
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_of_questions_in_the_second_form_reach_the_streams_account() {
    let extra = "\nfeature_flags { js_ack_fc_v2: true }\n";
    let (nats, data) = (Nats::start_secured(&(users() + extra), admin).await, temp_dir());
    gitea_is_asked(&nats, &data).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_is_logged_as_what_it_is() {
    let (nats, data) = (nats_with_roles().await, temp_dir());
    create_streams(&nats, &data).await;
    let ingest = start("ingest", &[], "reader", &nats, &data);
    let address = ingest.address_in("ingest listens").await;
    let delivery = Issue::new(1, 1).assigned(&["bot"]).delivery("assigned");
    assert_eq!(send(&reqwest::Client::new(), address, &delivery).await.status, 200);
    let line = ingest.line_with("cannot publish").await;
    assert!(line.contains("NATS denies: Permissions Violation for Publish to"), "{line}");
    assert!(line.contains("$JS.API.STREAM.INFO.GITEA_ISSUES"), "{line}");
    is_degraded_by(&ingest, "Permissions Violation").await;

    let worker = start("worker", &[], "ingest", &nats, &data);
    let line = worker.line_with("cannot consume").await;
    assert!(line.contains("NATS denies: Permissions Violation for Publish to"), "{line}");
    is_degraded_by(&worker, "Permissions Violation").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_refuses_our_user_is_named_by_the_health() {
    let (nats, data) = (nats_with_roles().await, temp_dir());
    for role in ["ingest", "worker"] {
        let process = start(role, &[], "nobody", &nats, &data);
        is_degraded_by(&process, "authorization violation").await;
    }
}

/// Waits until the health of a role says `problem` of the broker.
async fn is_degraded_by(process: &Process, problem: &str) {
    let operator = process.address_in("operator listens").await;
    let url = format!("http://{operator}/health");
    wait::until("the health to say it", || async {
        let health = reqwest::get(&url).await.ok()?.json::<serde_json::Value>().await.ok()?;
        let said = health["broker_problem"].as_str()?.contains(problem);
        (said && health["status"] == "degraded").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_may_not_set_the_policy_of_consumers_goes_on_without() {
    let (nats, data) = (nats_with_roles().await, temp_dir());
    create_streams(&nats, &data).await;
    let admin = jetstream::new(nats.client().await);
    affinity::set_policy(&admin, PriorityPolicy::None).await;
    let ingest = start("ingest", &[], "ingest", &nats, &data);
    let worker = start("worker", &[], "worker", &nats, &data);
    a_delivery_becomes_a_change(&nats, &ingest).await;
    wait::until_equal("it to be settled", Some(0), || bus::lag(&admin)).await;
    let told = |process: &Process| process.output().matches("workers have no priorities").count();
    assert_eq!(told(&worker), 1, "{}", worker.output());
    assert!(!worker.output().contains("cannot consume"), "{}", worker.output());
    // What it goes on without is no problem.
    let url = format!("http://{}/health", worker.address_in("operator listens").await);
    let health = reqwest::get(url).await.expect("an answer").text().await.expect("a text");
    assert!(health.contains(r#""status":"ok""#) && !health.contains("broker_problem"), "{health}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tls_both_sides_prove_who_they_are() {
    let (known, unknown, data) = (Certificates::new(), Certificates::new(), temp_dir());
    let (ca, certificate, key) =
        (known.path("ca.pem"), known.path("client.pem"), known.path("client-key.pem"));
    let tls = format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {ca:?}, verify: true }}",
        known.path("server.pem"),
        known.path("server-key.pem"),
    );
    let options = (ca.clone(), certificate.clone(), key.clone());
    let nats = Nats::start_secured(&tls, move || {
        ConnectOptions::new()
            .add_root_certificates(options.0.clone().into())
            .add_client_certificate(options.1.clone().into(), options.2.clone().into())
            .require_tls(true)
    })
    .await;
    let url = nats.url();
    let data_dir = data.path().to_str().expect("UTF-8");
    let trusted = [
        ("NATS_CA_FILE", ca.as_str()),
        ("NATS_CERT_FILE", certificate.as_str()),
        ("NATS_KEY_FILE", key.as_str()),
        ("DATA_DIR", data_dir),
    ];
    let ingest = Process::start(Path::new(EXE), "ingest", &[], &environment(&url, &trusted));
    let _worker = Process::start(Path::new(EXE), "worker", &[], &environment(&url, &trusted));
    a_delivery_becomes_a_change(&nats, &ingest).await;

    let other_ca = unknown.path("ca.pem");
    for (more, reason) in [
        // A server that we do not trust, and a server that asks for a certificate that we lack.
        ([("NATS_CA_FILE", other_ca.as_str())], "invalid peer certificate"),
        ([("NATS_CA_FILE", ca.as_str())], "CertificateRequired"),
    ] {
        let refused = Process::start(Path::new(EXE), "worker", &[], &environment(&url, &more));
        let line = refused.line_with("cannot connect to NATS").await;
        assert!(line.contains(reason), "{line}");
    }
}

/// Accounts, users and their signed claims as `nsc` makes them (NATS's JWT version 2).
mod claims {
    use data_encoding::BASE64URL_NOPAD;
    use nkeys::KeyPair;
    use serde_json::{Value, json};

    fn signed(issuer: &KeyPair, subject: &KeyPair, name: &str, nats: Value) -> String {
        let head = json!({"typ": "JWT", "alg": "ed25519-nkey"});
        let claims = json!({
            "jti": "X", "iat": 1_700_000_000, "iss": issuer.public_key(), "name": name,
            "sub": subject.public_key(), "nats": nats,
        });
        let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let text = format!("{}.{}", part(&head), part(&claims));
        let signature = issuer.sign(text.as_bytes()).expect("a signature");
        format!("{text}.{}", BASE64URL_NOPAD.encode(&signature))
    }

    /// Configuration of a server that knows one account, and the credentials of a user of it.
    pub fn server_and_credentials() -> (String, String) {
        let (operator, account, user) =
            (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
        let system = KeyPair::new_account();
        let unlimited = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
            "conn": -1, "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
        });
        let operator_claims = json!({
            "type": "operator", "version": 2, "system_account": system.public_key(),
        });
        let operator_jwt = signed(&operator, &operator, "o", operator_claims);
        let account_of = |limits: Value| json!({"type": "account", "version": 2, "limits": limits});
        let account_jwt = signed(&operator, &account, "a", account_of(unlimited.clone()));
        let no_jetstream = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
            "conn": -1, "leaf": -1,
        });
        let system_jwt = signed(&operator, &system, "SYS", account_of(no_jetstream));
        let user_claims = json!({
            "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1,
        });
        let user_jwt = signed(&account, &user, "u", user_claims);
        let server = format!(
            "operator: {operator_jwt}\nsystem_account: {}\nresolver: MEMORY\n\
             resolver_preload: {{ {}: {account_jwt}, {}: {system_jwt} }}",
            system.public_key(),
            account.public_key(),
            system.public_key(),
        );
        let credentials = format!(
            "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            user.seed().expect("a seed"),
        );
        (server, credentials)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credentials_file_says_who_we_are() {
    let data = temp_dir();
    let (server, credentials) = claims::server_and_credentials();
    let file = data.path().join("user.creds");
    std::fs::write(&file, &credentials).expect("write the credentials");
    let nats = Nats::start_secured(&server, move || {
        ConnectOptions::with_credentials(&credentials).expect("credentials")
    })
    .await;
    let url = nats.url();
    let more = [
        ("NATS_CREDS_FILE", file.to_str().expect("UTF-8")),
        ("DATA_DIR", data.path().to_str().expect("UTF-8")),
    ];
    let ingest = Process::start(Path::new(EXE), "ingest", &[], &environment(&url, &more));
    let _worker = Process::start(Path::new(EXE), "worker", &[], &environment(&url, &more));
    a_delivery_becomes_a_change(&nats, &ingest).await;

    let nobody = Process::start(Path::new(EXE), "worker", &[], &environment(&url, &[]));
    let line = nobody.line_with("cannot connect to NATS").await;
    assert!(line.to_lowercase().contains("authorization violation"), "{line}");
}
