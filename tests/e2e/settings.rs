//! Settings as their users get them wrong, and what comes of it.

use std::{
    fs::Permissions,
    net::{Ipv6Addr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::Instant,
};

use sha2::{Digest, Sha256};
use tests::{
    bus,
    gitea::{Delivery, Issue},
    nats::Nats,
    otlp::Receiver,
    process::Process,
    services::{ingest_at, worker_at},
    system::{send, total},
    temp_dir, wait,
};

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");
const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
/// URL at which there is no broker.
const NOWHERE: &str = "nats://127.0.0.1:1";
/// What no line may show.
const PASSWORD: &str = "p4ssw0rd-of-a-test";

/// Runs a service to its end; returns its exit code and its output.
async fn run(service: &str, environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let needed = [
        ("GITEA_URL", "http://localhost:3000"),
        ("GITEA_WEBHOOK_SECRET", PASSWORD),
        ("NATS_URL", NOWHERE),
        ("PORT", "0"),
        ("OPERATOR_PORT", "0"),
    ];
    let environment = [&needed, environment].concat();
    let mut process = Process::start(Path::new(EXE), service, &[], &environment);
    let code = process.exited().await.code();
    (code, process.output().trim_end().to_owned())
}

#[tokio::test]
async fn what_is_of_no_use_is_told_by_its_setting_before_anything_starts() {
    let dir = temp_dir();
    let at = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let (file, missing, directory) = (at("file"), at("missing"), at(""));
    std::fs::write(&file, "\u{feff}secret").expect("write");
    let below_a_file = format!("{file}/data");
    let (needed, shared) = (at("needed"), at("shared"));
    for (path, mode) in [(&needed, 0o755), (&shared, 0o1777)] {
        std::fs::create_dir(path).expect("a directory");
        std::fs::write(Path::new(path).join("of-somebody"), "").expect("write");
        std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
    }
    let make_private = format!("run chmod 700 {needed}, or name another");
    let url_with = |rest: &str| format!("nats://ingest:{PASSWORD}{rest}");
    for (service, name, value, problem) in [
        ("ingest", "NATS_URL", &url_with("@h:70000"), "is not a URL such as nats://host:4222"),
        ("worker", "NATS_URL", &url_with("#@h"), "is not a URL such as nats://host:4222"),
        ("worker", "NATS_URL", &"tcp://10.0.0.1:4222".into(), "has another scheme than nats://"),
        ("worker", "NATS_URL", &"wss://h".into(), "is for WebSocket"),
        ("up", "NATS_URL", &"nats://a nats://b".into(), "has a space in it"),
        ("worker", "OPERATOR_PORT", &"tcp://10.0.0.1:80".into(), "enableServiceLinks: false"),
        ("ingest", "HOST", &"example.com".into(), "is not an IP address or localhost"),
        ("ingest", "GITEA_URL", &format!("http://u:{PASSWORD}@h"), "holds a user or a password"),
        ("worker", "OTEL_EXPORTER_OTLP_ENDPOINT", &"h:4318".into(), "has no scheme"),
        ("worker", "OTEL_SDK_DISABLED", &"perhaps".into(), "is not true or false"),
        ("ingest", "DATA_DIR", &"file::memory:".into(), "is a name for SQLite"),
        ("ingest", "DATA_DIR", &"file:x?mode=memory".into(), "is a name for SQLite"),
        ("up", "DATA_DIR", &":memory:".into(), "is a name for SQLite"),
        ("ingest", "DATA_DIR", &file, "which is not a directory"),
        ("up", "DATA_DIR", &below_a_file, "which cannot be made"),
        ("ingest", "DATA_DIR", &"/proc/data".into(), "which cannot be"),
        ("up", "DATA_DIR", &"/proc/data".into(), "which cannot be"),
        ("ingest", "DATA_DIR", &needed, &make_private),
        ("up", "DATA_DIR", &needed, &make_private),
        ("ingest", "DATA_DIR", &shared, "several users share"),
        ("up", "DATA_DIR", &shared, "several users share"),
        ("worker", "NATS_CREDS_FILE", &missing, "which does not exist"),
        ("worker", "NATS_CA_FILE", &directory, "which is a directory and not a file"),
        ("ingest", "GITEA_WEBHOOK_SECRET_PREVIOUS_FILE", &file, "a byte order mark"),
        ("ingest", "GITEA_WEBHOOK_SECRET_PREVIOUS_FILE", &PASSWORD.into(), "names no file"),
        ("worker", "GITEA_TOKEN", &"CHANGE-ME".into(), "placeholder"),
        ("worker", "GITEA_TOKEN_FILE", &missing, "which does not exist"),
        ("worker", "SYNC_INTERVAL_SECS", &"0".into(), "is not a number from 1 to 86400"),
    ] {
        let (code, output) = run(service, &[(name, value)]).await;
        // A directory is tried before it is given up, so lines may stand before the last.
        let last = output.lines().last().unwrap_or_default();
        assert_eq!(code, Some(64), "{name}={value}: {output}");
        assert!(last.starts_with(&format!("coordinator: {name} ")), "{name}={value}: {output}");
        assert!(last.contains(problem), "{name}={value}: {output}");
        assert!(!output.contains(PASSWORD), "{output}");
    }
}

#[tokio::test]
async fn a_check_prints_the_settings_as_they_are_understood_and_starts_nothing() {
    let dir = temp_dir();
    let data = dir.path().join("data");
    let file = dir.path().join("password");
    std::fs::write(&file, PASSWORD).expect("write");
    let url = format!("ingest:{PASSWORD}@h, tls://[::1]:5");
    let environment = [
        ("GITEA_URL", "https://gitea.example.com/"),
        ("GITEA_WEBHOOK_SECRET", PASSWORD),
        ("GITEA_WEBHOOK_SECRET_PREVIOUS_FILE", file.to_str().expect("UTF-8")),
        ("GITEA_TOKEN", PASSWORD),
        ("NATS_URL", url.as_str()),
        ("HOST", "[::1]"),
        ("OPERATOR_HOST", "localhost"),
        ("DATA_DIR", data.to_str().expect("UTF-8")),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h:4318/v1/traces"),
        ("LOG_LEVEL", "WARN"),
        ("DRAIN_TIMEOUT_SECS", ""),
    ];
    for (service, own) in [
        (
            "ingest",
            &["HOST=::1", "PORT=8000", "GITEA_WEBHOOK_SECRET=(hidden)", "MAX_BODY_BYTES=16777216"]
                [..],
        ),
        (
            "worker",
            &[
                "ACK_WAIT_SECS=30",
                "MAX_ATTEMPTS=10",
                "GITEA_TOKEN=(hidden)",
                "SYNC_INTERVAL_SECS=300",
            ],
        ),
    ] {
        let check = ["--check"];
        let mut process = Process::start(Path::new(EXE), service, &check, &environment);
        let code = process.exited().await.code();
        let output = process.output();
        assert_eq!(code, Some(0), "{output}");
        let common = [
            "GITEA_URL=https://gitea.example.com",
            "NATS_URL=nats://ingest:(hidden)@h:4222,tls://[::1]:5",
            "NATS_PASSWORD=",
            "OPERATOR_HOST=127.0.0.1",
            "OTEL_EXPORTER_OTLP_ENDPOINT=http://h:4318",
            "OTEL_SDK_DISABLED=false",
            "LOG_LEVEL=warning",
            "LOG_FORMAT=json",
            "DRAIN_TIMEOUT_SECS=20",
            "STREAM_MAX_AGE_SECS=1209600",
        ];
        for line in common.iter().chain(own) {
            assert!(output.lines().any(|printed| printed == *line), "{line} is not in: {output}");
        }
        let is_setting = |line: &str| {
            line.split_once('=')
                .is_some_and(|(name, _)| name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
        };
        assert!(output.lines().all(is_setting) && !output.contains(PASSWORD), "{output}");
    }
    assert!(!data.exists(), "a check makes nothing");

    let mut process = Process::start(Path::new(EXE), "worker", &["--check"], &[("HOST", "h")]);
    assert_eq!(process.exited().await.code(), Some(64));
    assert_eq!(process.output(), "coordinator: GITEA_URL is required\n");
}

/// A setting that ends in `_FILE` stands there with the one that it takes the place of.
#[tokio::test]
async fn the_readme_names_every_setting() {
    let readme = std::fs::read_to_string(README).expect("README.md");
    let dir = temp_dir();
    let rules = dir.path().join("rules.toml");
    let rule = "[[rule]]\nname = \"a\"\nwho = { id = 1 }\nrun = { argv = [\"/bin/sh\"] }\n";
    std::fs::write(&rules, rule).expect("write the rules");
    for service in ["ingest", "worker", "react"] {
        let rules = rules.to_str().expect("UTF-8");
        let needed = [
            ("GITEA_URL", "http://h"),
            ("GITEA_WEBHOOK_SECRET", PASSWORD),
            ("REACTOR_RULES", rules),
        ];
        let mut process = Process::start(Path::new(EXE), service, &["--check"], &needed);
        let code = process.exited().await.code();
        let output = process.output();
        assert_eq!(code, Some(0), "{output}");
        for name in output.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name) {
            let short = name.strip_suffix("_FILE").unwrap_or(name);
            let is_named = [name, short].iter().any(|name| readme.contains(&format!("`{name}`")));
            assert!(is_named, "{name} is not in README.md");
        }
    }
}

#[tokio::test]
async fn an_address_may_be_a_name_or_have_brackets() {
    let ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    for (host, address) in
        [("localhost", "127.0.0.1"), ("::1", "::1"), ("[::1]", "::1"), ("127.0.0.1", "127.0.0.1")]
    {
        if address.contains(':') && !ipv6 {
            continue;
        }
        let data = temp_dir();
        let hosts = [("HOST", host), ("OPERATOR_HOST", host)];
        let ingest = ingest_at(Path::new(EXE), NOWHERE, data.path(), &[], &hosts);
        for listener in ["ingest listens", "operator listens"] {
            let bound = ingest.address_in(listener).await;
            assert_eq!(bound.ip().to_string(), address, "{host}");
        }
    }
}

#[tokio::test]
async fn a_password_in_a_url_is_in_no_line() {
    let url = format!("nats://worker:{PASSWORD}@127.0.0.1:1");
    let worker = worker_at(Path::new(EXE), &url, &[], &[("LOG_LEVEL", "debug")]);
    let line = worker.line_with("cannot connect to NATS").await;
    assert!(line.contains("127.0.0.1:1"), "{line}");
    assert!(!worker.output().contains(PASSWORD), "{}", worker.output());
}

#[tokio::test]
async fn a_receiver_on_this_machine_is_reached_without_the_proxy() {
    let receiver = Receiver::start().await;
    let data = temp_dir();
    // The path of a signal is no fault.
    let endpoint = format!("{}/v1/traces", receiver.url());
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "200"),
        ("HTTP_PROXY", "http://127.0.0.1:1"),
        ("http_proxy", "http://127.0.0.1:1"),
        ("ALL_PROXY", "http://127.0.0.1:1"),
    ];
    let ingest = ingest_at(Path::new(EXE), NOWHERE, data.path(), &[], &environment);
    let address = ingest.address_in("ingest listens").await;
    let delivery = Issue::new(1, 1).delivery("opened");
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    send(&http, address, &delivery).await;
    wait::until("a span", || async { (!receiver.spans().is_empty()).then_some(()) }).await;
    wait::until("a metric", || async {
        receiver.has_metric("coordinator-ingest", "coordinator.journal.depth").then_some(())
    })
    .await;
}

/// All bytes of the files of a journal.
fn journal(data: &Path) -> Vec<u8> {
    let files = ["journal.db", "journal.db-wal"].map(|file| std::fs::read(data.join(file)));
    files.into_iter().flatten().flatten().collect()
}

#[tokio::test]
async fn the_secret_in_a_payload_of_an_old_gitea_is_neither_kept_nor_told() {
    let nats = Nats::start().await;
    let data = temp_dir();
    let ingest =
        ingest_at(Path::new(EXE), &nats.url(), data.path(), &[], &[("LOG_LEVEL", "debug")]);
    let address = ingest.address_in("ingest listens").await;
    let http = reqwest::Client::new();
    let mut payload = Issue::new(1, 1).payload("opened");
    payload["secret"] = PASSWORD.into();
    payload["issue"]["body"] = "\"secret\": \"an0ther\"".into();
    let good = Delivery::signed(&payload, "issues");
    assert_eq!(send(&http, address, &good).await.status, 200);
    payload["issue"]["state"] = "ajar".into();
    let answer = send(&http, address, &Delivery::signed(&payload, "issues")).await;
    assert_eq!((answer.status, answer.body.to_string().contains(PASSWORD)), (422, false));

    let holds = |bytes: &[u8], text: &str| {
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    };
    // What repeats nothing is not compressed, so a text would be found.
    let journal = journal(data.path());
    assert!(holds(&journal, "an0ther") && !holds(&journal, PASSWORD));
    let js = async_nats::jetstream::new(nats.client().await);
    let events = wait::until("the event", || async {
        let events = bus::events(&js).await;
        (!events.is_empty()).then_some(events)
    })
    .await;
    assert_eq!(events[0].issue.body, "\"secret\": \"an0ther\"");
    assert_eq!(events[0].delivery.body_sha256, hex::encode(Sha256::digest(&good.body)));
    assert!(!serde_json::to_string(&events).expect("JSON").contains(PASSWORD));
    assert!(!ingest.output().contains(PASSWORD), "{}", ingest.output());
}

#[tokio::test]
async fn a_wrong_password_is_told_and_not_at_each_attempt() {
    let right = || async_nats::ConnectOptions::new().user_and_password("u".into(), "right".into());
    let nats = Nats::start_secured("authorization { user: u, password: right }", right).await;
    let login = [("NATS_USER", "u"), ("NATS_PASSWORD", PASSWORD)];
    let started = Instant::now();
    let worker = worker_at(Path::new(EXE), &nats.url(), &[], &login);
    let line = worker.line_with("cannot connect to NATS").await;
    assert!(line.contains("authorization violation"), "{line}");
    let log = nats.store().with_extension("log");
    wait::until("eight attempts", || async {
        let log = std::fs::read_to_string(&log).expect("the server's log");
        (log.matches("authentication error").count() >= 8).then_some(())
    })
    .await;
    let told = worker.output().lines().filter(|l| l.contains("authorization violation")).count();
    let most = 1 + started.elapsed().as_secs() / 10;
    assert!(told as u64 <= most, "{told} lines in {:?}: {}", started.elapsed(), worker.output());
    assert!(!worker.output().contains(PASSWORD));
}

#[tokio::test]
async fn a_delivery_to_another_path_or_by_another_method_is_logged_and_counted() {
    let data = temp_dir();
    let ingest = ingest_at(Path::new(EXE), NOWHERE, data.path(), &[], &[]);
    let address = ingest.address_in("ingest listens").await;
    let operator = ingest.address_in("operator listens").await;
    let http = reqwest::Client::new();
    let url = format!("http://{address}");
    let long = "x".repeat(4000);
    for (request, status) in [
        (http.get(format!("{url}/favicon.ico?token={PASSWORD}")), 404),
        (http.get(format!("{url}/robots.txt")), 404),
        (http.post(format!("{url}/webhook/gitea/")).header("X-Gitea-Delivery", "d-1"), 404),
        (http.post(format!("{url}/{long}")).header("X-Gitea-Delivery", "d-2"), 404),
        (http.put(format!("{url}/webhook/gitea")).header("X-Gitea-Delivery", "d-3"), 405),
        (http.get(format!("{url}/webhook/gitea")).header("X-Gitea-Delivery", "d-4"), 405),
    ] {
        assert_eq!(request.send().await.expect("an answer").status(), status);
    }
    let last = ingest.line_with("d-3").await;
    for part in ["wrong_method", "PUT", "/webhook/gitea", "WARN"] {
        assert!(last.contains(part), "{part} is missing in: {last}");
    }
    let output = ingest.output();
    let told: Vec<_> =
        output.lines().filter(|line| line.contains("no delivery is taken")).collect();
    assert_eq!(told.len(), 3, "{output}");
    assert!(told[1].contains("\"/webhook/gitea/\"") && told[1].contains("d-1"), "{output}");
    assert!(!output.contains(PASSWORD) && !output.contains(&long));
    for (reason, count) in [("unknown_path", 4.0), ("wrong_method", 2.0)] {
        let label = format!("reason=\"{reason}\"");
        assert_eq!(total(operator, "coordinator_stray_requests_total", &label).await, count);
    }
}
