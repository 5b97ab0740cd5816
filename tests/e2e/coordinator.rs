//! `coordinator`: everything on one machine, as a user starts, uses and stops it.

use std::{
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use async_nats::ConnectOptions;
use contract::{names, partitions::Partitions};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{
    bus,
    nats::Nats,
    process::{Process, signal},
    temp_dir, wait,
};

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// A data directory that is not there yet, with its canonical path.
fn data_dir() -> (TempDir, PathBuf) {
    let dir = temp_dir();
    let path = dir.path().canonicalize().expect("its path").join("data");
    (dir, path)
}

fn start(data: &Path, flags: &[&str], environment: &[(&str, &str)]) -> Process {
    let data = data.to_str().expect("UTF-8");
    let mut all = vec!["--data-dir", data];
    // The usual ports may be in use on this machine.
    for (flag, port) in [("--port", "0"), ("--operator-port", "0"), ("--nats-port", "0")] {
        if !flags.contains(&flag) {
            all.extend([flag, port]);
        }
    }
    all.extend(flags);
    Process::start(Path::new(EXE), "up", &all, environment)
}

/// The log line of a coordinator once it runs.
async fn runs(process: &Process) -> Value {
    let line = process.line_with("\"coordinator runs\"").await;
    serde_json::from_str(&line).expect("a JSON log line")
}

/// Runs a command to its end; returns its exit code and its output.
async fn command(data: &Path, args: &[&str]) -> (i32, String) {
    let flags = [&args[1..], &["--data-dir", data.to_str().expect("UTF-8")]].concat();
    let mut process = Process::start(Path::new(EXE), args[0], &flags, &[]);
    let code = process.exited().await.code().expect("an exit code");
    (code, process.output().trim_end().to_owned())
}

/// Sends a delivery, which must be accepted, and returns its id.
async fn send(data: &Path, args: &[&str]) -> String {
    let (code, output) = command(data, &[&["send"], args, &["--json"]].concat()).await;
    assert_eq!(code, 0, "{output}");
    let answer: Value = serde_json::from_str(&output).expect("JSON");
    assert_eq!((&answer["status"], &answer["body"]["status"]), (&json!(200), &json!("accepted")));
    answer["delivery_id"].as_str().expect("an id").to_owned()
}

/// Waits for the change that follows from a delivery, as `tail` shows it.
async fn change(data: &Path, delivery_id: &str) -> Value {
    let data = data.to_str().expect("UTF-8");
    let args = ["--json", "--all", "--data-dir", data];
    let mut tail = Process::start(Path::new(EXE), "tail", &args, &[]);
    let line = tail.line_with(delivery_id).await;
    tail.signal("TERM");
    assert_eq!(tail.exited().await.code(), Some(0), "{}", tail.output());
    serde_json::from_str(&line).expect("a change")
}

/// The nats-server that runs on this data directory, if there is one.
fn nats_server_of(data: &Path) -> Option<u32> {
    let data = data.to_str().expect("UTF-8");
    let processes = std::fs::read_dir("/proc").expect("/proc");
    processes.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let (name, _) = stat(pid)?;
        (name == "nats-server" && command.contains(data) && !gone(pid)).then_some(pid)
    })
}

/// A process's name and state.
fn stat(pid: u32) -> Option<(String, String)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = stat.rsplit_once(") ")?;
    Some((head.split_once('(')?.1.to_owned(), tail.split(' ').next()?.to_owned()))
}

/// Whether a process has ended. A zombie has ended, too.
fn gone(pid: u32) -> bool {
    stat(pid).is_none_or(|(_, state)| state == "Z")
}

async fn is_gone(pid: u32) {
    wait::until("nats-server to be gone", || async { gone(pid).then_some(()) }).await;
}

/// Waits for a process, which must end with 1 and with `line` as its last line.
async fn fails(mut process: Process, line: &str) {
    let code = process.exited().await.code();
    let output = process.output();
    assert_eq!((output.lines().last(), code), (Some(line), Some(1)), "{output}");
}

#[tokio::test]
async fn it_starts_without_a_setting_and_tells_where_everything_is() {
    let (_dir, data) = data_dir();
    let process = start(&data, &[], &[("LOG_FORMAT", "text")]);
    process.line_with("Stop it with Ctrl-C.").await;
    let secret_file = data.join("webhook-secret");
    let secret = std::fs::read_to_string(&secret_file).expect("the secret");
    let mode = std::fs::metadata(&secret_file).expect("its mode").permissions().mode();
    assert_eq!((secret.trim().len(), mode & 0o777), (64, 0o600));
    let output = process.output();
    assert!(!output.contains(secret.trim()), "{output}");

    let instance = std::fs::read(data.join("coordinator.json")).expect("coordinator.json");
    let instance: Value = serde_json::from_slice(&instance).expect("JSON");
    let banner: Vec<&str> =
        output.lines().skip_while(|line| *line != "Coordinator runs.").collect();
    let at = |name: &str| instance[name].as_str().expect(name).to_owned();
    let expected = [
        "Coordinator runs.".to_owned(),
        String::new(),
        format!("  webhook   {}", at("webhook_url")),
        format!("  secret    in {}", secret_file.display()),
        format!("  page      {}/", at("operator_url")),
        format!("  operator  {}/health, /metrics", at("operator_url")),
        format!(
            "  NATS      {}, user local, password in {}",
            at("nats_url"),
            data.join("nats-password").display()
        ),
        format!("  data      {}", data.display()),
        String::new(),
        format!(
            "Try it in another terminal: cargo run -- send assigned --data-dir {}",
            data.display()
        ),
        format!(
            "Subscribe to what follows: NATS_URL={} NATS_USER=local NATS_PASSWORD=$(cat {}) nats subscribe 'gitea.changes.>'",
            at("nats_url"),
            data.join("nats-password").display()
        ),
        format!(
            "or in Python: await nats.connect({:?}, user=\"local\", password=open({:?}).read().strip())",
            at("nats_url"),
            data.join("nats-password")
        ),
        "Stop it with Ctrl-C.".to_owned(),
    ];
    assert_eq!(banner.get(..13), Some(&expected.each_ref().map(String::as_str)[..]), "{output}");
    assert!(at("webhook_url").ends_with("/webhook/gitea"), "{instance}");

    let (code, answer) = command(&data, &["send", "assigned"]).await;
    assert_eq!(code, 0, "{answer}");
    assert_eq!(answer.lines().next(), Some(format!("200 from {}", at("webhook_url")).as_str()));
}

#[tokio::test]
async fn what_is_sent_is_shown_as_a_change() {
    let (_dir, data) = data_dir();
    let process = start(&data, &[], &[]);
    runs(&process).await;
    for (args, kind, added, removed) in [
        (&["assigned"][..], "assigned", json!(["bot"]), json!([])),
        (&["closed", "--assignee", "bot"], "closed", json!([]), json!([])),
        (&["opened", "--number", "2", "--assignee", "tom"], "assigned", json!(["tom"]), json!([])),
    ] {
        let id = send(&data, args).await;
        let change = change(&data, &id).await;
        assert_eq!(change["cause"]["delivery_id"], json!(id));
        assert_eq!(
            (&change["kind"], &change["added"], &change["removed"]),
            (&json!(kind), &added, &removed),
            "{change}"
        );
    }
}

/// The four commands of the README, one after the other and none waited for by a person.
#[tokio::test]
async fn what_the_readme_sends_leaves_no_doubt() {
    let readme = std::fs::read_to_string(README).expect("README.md");
    let (_, readme) = readme.split_once("### A first delivery").expect("its section");
    let (section, _) = readme.split_once("\n### ").expect("another section");
    let commands: Vec<_> =
        section.lines().filter_map(|line| line.strip_prefix("cargo run -- send ")).collect();
    assert_eq!(commands.len(), 4, "{commands:?}");
    let (_dir, data) = data_dir();
    let process = start(&data, &[], &[]);
    runs(&process).await;
    let mut last = String::new();
    for command in commands {
        last = send(&data, &command.split(' ').collect::<Vec<_>>()).await;
    }
    change(&data, &last).await;
    let data = data.to_str().expect("UTF-8");
    let args = ["--all", "--data-dir", data];
    let mut tail = Process::start(Path::new(EXE), "tail", &args, &[]);
    tail.line_with(&last[..8]).await;
    tail.signal("TERM");
    tail.exited().await;
    let output = tail.output();
    let told: Vec<_> = output
        .lines()
        .map(|line| {
            assert!(line.chars().count() <= 120, "{line}");
            let (_, line) = line.split_once(" acme/widgets#1 ").expect("an issue");
            line.split_once(" \"").expect("a title").0
        })
        .collect();
    assert_eq!(told, ["assigned +bot (first seen)", "assigned +tom", "unassigned -bot", "closed"]);
    // Both roles have a connection, and their lines say whose it is.
    let roles = process.output();
    let mut roles: Vec<_> = roles
        .lines()
        .filter(|line| line.contains("\"connected to NATS\""))
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["role"].clone())
        .collect();
    roles.sort_by_key(ToString::to_string);
    assert_eq!(roles, ["ingest", "worker"]);
}

#[tokio::test]
async fn dead_letters_are_listed_and_redriven() {
    let (_dir, data) = data_dir();
    let process = start(&data, &[], &[]);
    let nats_url = runs(&process).await["nats_url"].as_str().expect("URL").to_owned();
    assert_eq!(command(&data, &["dead-letters"]).await, (0, "no dead letters".into()));

    let password = std::fs::read_to_string(data.join("nats-password")).expect("the password");
    let login = ConnectOptions::with_user_and_password("local".into(), password.trim().into());
    let js = async_nats::jetstream::new(login.connect(&nats_url).await.expect("connect"));
    wait::until("the stream of events", || async { js.get_stream(names::EVENTS).await.ok() }).await;
    let subject = format!("gitea.issues.closed.acme.widgets.9.{}", Partitions::DEFAULT.of(1, 9));
    let publish = js.publish(subject.clone(), "no event".into()).await.expect("publish");
    let published = publish.await.expect("an ack").sequence;
    let list = || async {
        let (code, output) = command(&data, &["dead-letters", "--json"]).await;
        assert_eq!(code, 0, "{output}");
        let letters = output.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        letters.collect::<Vec<Value>>()
    };
    let letter = wait::until("a dead letter", || async { list().await.pop() }).await;
    assert_eq!(
        (&letter["sequence"], &letter["subject"], &letter["attempts"]),
        (&json!(1), &json!(subject), &json!(1)),
        "{letter}"
    );
    assert_eq!(letter["event_sequence"], json!(published), "{letter}");
    let line = process.line_with("delivery parked as a dead letter").await;
    let line: Value = serde_json::from_str(&line).expect("a JSON log line");
    assert_eq!((&line["subject"], &line["sequence"]), (&json!(subject), &json!(published)));
    let (code, output) = command(&data, &["dead-letters", "redrive", "1"]).await;
    let line = format!("redriven 1 to {subject} as {}", published + 1);
    assert_eq!((code, output), (0, line));
    // The event is as bad as before, so it comes back as another dead letter.
    let sequences = || async {
        list().await.iter().map(|letter| letter["sequence"].as_u64()).collect::<Vec<_>>()
    };
    wait::until_equal("it to come back", vec![Some(2)], sequences).await;
    let (code, output) = command(&data, &["dead-letters", "redrive", "1"]).await;
    assert_eq!((code, output.as_str()), (1, "coordinator: there is no dead letter 1"));
}

#[tokio::test]
async fn a_second_start_goes_on_where_the_first_stopped() {
    let (_dir, data) = data_dir();
    let mut process = start(&data, &[], &[]);
    runs(&process).await;
    let nats_server = nats_server_of(&data).expect("a nats-server");
    let secret = std::fs::read(data.join("webhook-secret")).expect("the secret");
    let first = send(&data, &["assigned"]).await;
    change(&data, &first).await;
    process.signal("TERM");
    assert_eq!(process.exited().await.code(), Some(0), "{}", process.output());
    assert!(gone(nats_server), "nats-server outlived a graceful stop");
    let (code, output) = command(&data, &["send", "assigned"]).await;
    assert_eq!(code, 1, "{output}");

    let process = start(&data, &[], &[]);
    runs(&process).await;
    assert_eq!(std::fs::read(data.join("webhook-secret")).expect("the secret"), secret);
    assert_eq!(change(&data, &first).await["added"], json!(["bot"]));
    let second = send(&data, &["unassigned"]).await;
    let change = change(&data, &second).await;
    // The worker knows who was removed only if it knew the issue before.
    assert_eq!((&change["removed"], &change["first_seen"]), (&json!(["bot"]), &json!(false)));
}

#[tokio::test]
async fn a_data_directory_in_use_is_told() {
    let (_dir, data) = data_dir();
    let process = start(&data, &[], &[]);
    runs(&process).await;
    let line = format!(
        "coordinator: the data directory {} is in use by another instance; stop that one, or set DATA_DIR (--data-dir)",
        data.display()
    );
    let nats_server = nats_server_of(&data).expect("a nats-server");
    fails(start(&data, &[], &[]), &line).await;
    assert_eq!(nats_server_of(&data), Some(nats_server));
    send(&data, &["assigned"]).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_with_the_setting_that_changes_it() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = taken.local_addr().expect("its address").port();
    for (flag, line) in [
        ("--port", format!("coordinator: port {port} is taken; set PORT (--port) to another")),
        (
            "--operator-port",
            format!(
                "coordinator: port {port} is taken; set OPERATOR_PORT (--operator-port) to another"
            ),
        ),
        (
            "--nats-port",
            format!(
                "coordinator: port {port} of 127.0.0.1 is taken, and nats-server needs it; set NATS_PORT (--nats-port) to another, or NATS_URL to use the server that is there"
            ),
        ),
    ] {
        let (_dir, data) = data_dir();
        fails(start(&data, &[flag, &port.to_string()], &[]), &line).await;
        assert_eq!(nats_server_of(&data), None);
    }
}

#[tokio::test]
async fn a_nats_server_that_dies_is_told() {
    let (_dir, data) = data_dir();
    let process = start(&data, &[], &[]);
    runs(&process).await;
    signal(nats_server_of(&data).expect("a nats-server"), "KILL");
    let line = process.line_with("nats-server died").await;
    let line: Value = serde_json::from_str(&line).expect("a JSON log line");
    assert_eq!(line["exit_status"], "signal: 9 (SIGKILL)");
    assert!(Path::new(line["log"].as_str().expect("its log")).is_file(), "{line}");
    fails(process, "coordinator: nats-server ended by itself").await;
}

#[tokio::test]
async fn after_a_kill_no_nats_server_stays_and_the_next_start_works() {
    let (_dir, data) = data_dir();
    let port = free_port().to_string();
    let flags = ["--nats-port", port.as_str()];
    let mut process = start(&data, &flags, &[]);
    runs(&process).await;
    let nats_server = nats_server_of(&data).expect("a nats-server");
    let first = send(&data, &["assigned"]).await;
    change(&data, &first).await;
    process.kill().await;
    is_gone(nats_server).await;

    // Also at once, while the former server has not yet ended.
    let mut process = start(&data, &flags, &[]);
    runs(&process).await;
    assert_eq!(change(&data, &first).await["added"], json!(["bot"]));
    process.kill().await;
    let process = start(&data, &flags, &[]);
    runs(&process).await;
    let second = send(&data, &["unassigned"]).await;
    assert_eq!(change(&data, &second).await["removed"], json!(["bot"]));
}

#[tokio::test]
async fn with_a_nats_of_ones_own_none_is_started() {
    let nats = Nats::start().await;
    let (_dir, data) = data_dir();
    let mut process = start(&data, &[], &[("NATS_URL", &nats.url())]);
    let told = runs(&process).await;
    assert_eq!(told["nats_url"], json!(nats.url()));
    assert_eq!(nats_server_of(&data), None);
    let id = send(&data, &["assigned"]).await;
    let js = async_nats::jetstream::new(nats.client().await);
    let change = wait::until("the change", || async { bus::changes(&js).await.pop() }).await;
    assert_eq!(change.cause.delivery_id, id);
    process.signal("INT");
    assert_eq!(process.exited().await.code(), Some(0), "{}", process.output());
    assert_eq!(bus::count(&js, names::CHANGES).await, 1);
}
