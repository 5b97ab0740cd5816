//! Runners as processes: what begins when somebody is assigned, and what ends it.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use async_nats::jetstream::{self, kv, message::StreamMessage, stream::LastRawMessageErrorKind};
use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use contract::names;
use futures::StreamExt;
use serde_json::{Value, json};
use service::peers::{Asked, Question, Reply};
use tests::{
    gitea::Issue,
    nats::Nats,
    process::Process,
    runners::{AGENT, Agents, run_entry},
    system::{System, total},
    temp_dir, wait,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::{Mutex, Semaphore},
};

use crate::broker_roles::{create_streams, nats_with_roles, start, start_at};

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");

fn runner(agents: &Agents, system: &System, lease_secs: &str) -> Process {
    agents.runner(Path::new(EXE), &system.nats.url(), lease_secs)
}

async fn send(system: &System, issue: Issue, action: &str) {
    system.send_accepted(&issue.delivery(action)).await;
}

async fn phase(system: &System, key: &str, expected: &str) -> Value {
    wait::until_equal(&format!("{key} to be {expected}"), Value::from(expected), || async {
        run_entry(&system.js, key).await["phase"].clone()
    })
    .await;
    run_entry(&system.js, key).await
}

async fn nothing_runs(agents: &Agents) {
    wait::until_equal("no process of a run", vec![], || async {
        agents.running().into_keys().collect::<Vec<_>>()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_runs_once_while_it_is_assigned_whatever_ends_that() {
    let (system, agents) = (System::start().await, Agents::default());
    agents.write_rules(&Agents::rule("fix", AGENT, "max_runs_per_hour = 5"));
    let runners = [runner(&agents, &system, "10"), runner(&agents, &system, "10")];
    for runner in &runners {
        runner.line_with("runner started").await;
    }
    for number in [1, 2, 3] {
        let mut issue = Issue::new(1, number).assigned(&["bot"]);
        issue.title = "$(touch /tmp/never)".into();
        send(&system, issue, "assigned").await;
        agents.noted(&format!("acme/r1#{number}"), "start", 1).await;
    }
    let first = run_entry(&system.js, "1.1.fix").await["generation"].as_u64().expect("a number");
    let run = format!("1.1.fix.{first}");
    let input = wait::until("its input", || async { agents.input(&run) }).await;
    assert_eq!((&input["kind"], &input["issue_ref"]), (&"started".into(), &"acme/r1#1".into()));
    assert_eq!(input["issue"]["title"], "$(touch /tmp/never)");
    assert_eq!(input["change"]["kind"], "assigned");
    assert_eq!(agents.running().len(), 3);
    for (pid, environment) in agents
        .running()
        .into_values()
        .flatten()
        .map(|pid| (pid, std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default()))
    {
        let environment = String::from_utf8_lossy(&environment);
        assert!(!environment.contains("NOT_PASSED_ON") && !environment.contains("touch"), "{pid}");
    }
    // An event that changes nothing of it.
    send(&system, Issue::new(1, 1).assigned(&["bot", "tom"]).at(1), "assigned").await;
    send(&system, Issue::new(1, 1).assigned(&["tom"]).at(2), "unassigned").await;
    send(&system, Issue::new(1, 2).assigned(&["bot"]).state("closed").at(2), "closed").await;
    send(&system, Issue::new(1, 3).assigned(&["bot"]).at(2), "deleted").await;
    for (number, reason) in [(1, "unassigned"), (2, "closed"), (3, "deleted")] {
        agents.noted(&format!("acme/r1#{number}"), "term", 1).await;
        let entry = phase(&system, &format!("1.{number}.fix"), "stopped").await;
        assert_eq!((&entry["stop_reason"], &entry["host"]), (&reason.into(), &"".into()));
    }
    nothing_runs(&agents).await;
    // Anew.
    send(&system, Issue::new(1, 1).assigned(&["bot"]).at(4), "assigned").await;
    agents.noted("acme/r1#1", "start", 2).await;
    assert_eq!(phase(&system, "1.1.fix", "running").await["generation"], first + 1);
    let mut started = 0.0;
    for runner in &runners {
        let operator = runner.address_in("operator listens").await;
        started += total(operator, "coordinator_run_start_duration_seconds_count", "fix").await;
    }
    assert_eq!(started, 4.0, "each run was started once, by one of the two");
    // A graceful stop of the runners ends what runs.
    for mut runner in runners {
        runner.signal("TERM");
        assert!(runner.exited().await.success());
    }
    nothing_runs(&agents).await;
    assert_eq!(phase(&system, "1.1.fix", "failed").await["ended"], "runner_stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_a_killed_runner_begins_elsewhere_or_ends_as_its_rule_says() {
    let (system, agents) = (System::start().await, Agents::default());
    let rules = [
        Agents::rule("again", AGENT, "on_restart = \"rerun\""),
        Agents::rule("once", AGENT, "on_restart = \"stop\""),
    ];
    agents.write_rules(&rules.concat());
    let mut first = runner(&agents, &system, "2");
    first.line_with("runner started").await;
    send(&system, Issue::new(1, 1).assigned(&["bot"]), "assigned").await;
    agents.noted("acme/r1#1", "start", 2).await;
    let lost = run_entry(&system.js, "1.1.again").await;
    let second = runner(&agents, &system, "2");
    second.line_with("runner started").await;
    first.kill().await;
    // What the killed one had started ends at once, long before another begins it.
    agents.noted("acme/r1#1", "term", 2).await;
    agents.noted("acme/r1#1", "start", 3).await;
    let again = phase(&system, "1.1.again", "running").await;
    assert_eq!((&again["attempt"], &again["generation"]), (&2.into(), &lost["generation"]));
    assert_eq!(phase(&system, "1.1.once", "failed").await["ended"], "runner_lost");
    let notes = agents.notes();
    let at = |what: &str, nth: usize| {
        let mut of_rule = notes.iter().filter(|n| n.rule == "again" && n.what == what);
        of_rule.nth(nth).expect("a note").at
    };
    assert!(at("term", 0) < at("start", 1), "never two at once");
    assert_eq!(agents.running().len(), 1);
    send(&system, Issue::new(1, 1).state("closed").at(2), "closed").await;
    nothing_runs(&agents).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_has_ended_before_it_begins_anew_in_another_bucket() {
    let (system, agents) = (System::start().await, Agents::default());
    agents.write_rules(&Agents::rule("fix", AGENT, "on_restart = \"rerun\""));
    let runners = [runner(&agents, &system, "4"), runner(&agents, &system, "4")];
    for runner in &runners {
        runner.line_with("runner started").await;
    }
    send(&system, Issue::new(1, 1).assigned(&["bot"]), "assigned").await;
    agents.noted("acme/r1#1", "start", 1).await;
    // Whoever has the run in the former bucket ends it. Only then it begins anew.
    system.js.delete_key_value(contract::names::RUNS).await.expect("delete");
    send(&system, Issue::new(1, 1).assigned(&["bot", "tom"]).at(2), "assigned").await;
    agents.noted("acme/r1#1", "start", 2).await;
    let notes = agents.notes();
    let at = |what: &str, nth: usize| {
        notes.iter().filter(|note| note.what == what).nth(nth).expect("a note").at
    };
    assert!(at("term", 0) < at("start", 1), "never two at once: {notes:?}");
    assert_eq!(agents.running().len(), 1);
    let runs: BTreeSet<_> = notes.iter().map(|note| &note.run).collect();
    assert_eq!(runs.len(), 2, "a bucket that is made anew has no id of a former one: {notes:?}");
    send(&system, Issue::new(1, 1).state("closed").at(4), "closed").await;
    nothing_runs(&agents).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_queued_again_where_its_entry_was_removed() {
    let (system, agents) = (System::start().await, Agents::default());
    agents.write_rules(&Agents::rule("fix", AGENT, "concurrency = 1"));
    let _runner = runner(&agents, &system, "4");
    send(&system, Issue::new(1, 1).assigned(&["bot"]), "assigned").await;
    agents.noted("acme/r1#1", "start", 1).await;
    send(&system, Issue::new(1, 2).assigned(&["bot"]), "assigned").await;
    phase(&system, "1.2.fix", "waiting").await;
    let stream = system.js.get_stream("KV_GITEA_RUNS").await.expect("the bucket");
    stream.purge().await.expect("purged");
    // The one that ran is ended first, and one of the two begins then.
    agents.noted("acme/r1#1", "term", 1).await;
    let phases = || async {
        let of = async |key| run_entry(&system.js, key).await["phase"].clone();
        let mut phases = [of("1.1.fix").await, of("1.2.fix").await];
        phases.sort_by_key(Value::to_string);
        phases
    };
    let expected = [Value::from("running"), Value::from("waiting")];
    wait::until_equal("both to be queued again", expected, phases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_read_again_and_wrong_ones_change_nothing() {
    let (system, agents) = (System::start().await, Agents::default());
    agents.write_rules(&Agents::rule("fix", AGENT, ""));
    let process = runner(&agents, &system, "10");
    let operator = process.address_in("operator listens").await;
    process.line_with("runner started").await;
    agents.write_rules("[[rule]]\nname = \"Fix\"\n");
    process.signal("HUP");
    let line = process.line_with("the former ones stay in place").await;
    assert!(line.contains("line 2: rule.name is \\\"Fix\\\"; write it with a-z"), "{line}");
    send(&system, Issue::new(1, 1).assigned(&["bot"]), "assigned").await;
    agents.noted("acme/r1#1", "start", 1).await;
    let health = reqwest::get(format!("http://{operator}/health")).await.expect("an answer");
    let health: Value = health.json().await.expect("JSON");
    assert_eq!((&health["status"], &health["running"]), (&"degraded".into(), &1.into()));
    // A rule that is gone ends its runs. One that is new finds who is assigned already.
    agents.write_rules(&Agents::rule("other", AGENT, ""));
    process.signal("HUP");
    process.line_with("the rules were read again").await;
    assert_eq!(phase(&system, "1.1.fix", "stopped").await["stop_reason"], "rule gone");
    phase(&system, "1.1.other", "running").await;
    // One that is for others now ends them too.
    agents.write_rules(&Agents::rule("other", AGENT, "").replace("\"bot\"", "\"tom\""));
    process.signal("HUP");
    assert_eq!(phase(&system, "1.1.other", "stopped").await["stop_reason"], "unassigned");
    nothing_runs(&agents).await;
    // The check of the rules names all mistakes, and exits as for a setting that is wrong.
    agents.write_rules("concurrency = 0\n[[rule]]\nname = \"fix\"\n");
    let rules = agents.rules();
    let settings =
        [("GITEA_URL", "http://localhost:3000"), ("REACTOR_RULES", rules.to_str().expect("UTF-8"))];
    let mut check = Process::start(Path::new(EXE), "react", &["--check"], &settings);
    assert_eq!(check.exited().await.code(), Some(64));
    let output = check.output();
    for part in ["line 1: concurrency is 0;", "line 2: rule \"fix\".who is missing;"] {
        assert!(output.contains(part), "{output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_by_itself_is_told_as_it_was_and_a_loop_is_broken() {
    let (system, agents) = (System::start().await, Agents::default());
    let note = |then: &str| {
        format!("echo \"start $COORDINATOR_RULE $COORDINATOR_ISSUE x $$ 0\" >> \"$LOG\"; {then}")
    };
    let rules = [
        Agents::rule("later", &note("exit 75"), ""),
        Agents::rule("wrong", &note("echo said; exit 3"), "max_runs_per_hour = 2"),
        Agents::rule("loses", &note("kill $PPID; sleep 1000"), "on_restart = \"rerun\""),
    ];
    agents.write_rules(&rules.concat());
    let process = runner(&agents, &system, "10");
    let operator = process.address_in("operator listens").await;
    send(&system, Issue::new(1, 1).assigned(&["bot"]), "assigned").await;
    let later = phase(&system, "1.1.later", "again").await;
    assert_eq!(later["ended"]["process"]["exited"], 75);
    assert!(later["not_before"].is_string(), "{later}");
    // What ends its supervisor begins again at once, and then waits.
    let loses = phase(&system, "1.1.loses", "again").await;
    assert_eq!(loses["ended"], "runner_stopped");
    assert!(loses["losses"].as_u64() >= Some(2), "{loses}");
    assert!(loses["not_before"].is_string(), "{loses}");
    let wrong = phase(&system, "1.1.wrong", "failed").await;
    assert_eq!(
        (&wrong["output"], &wrong["ended"]["process"]["exited"]),
        (&"said\n".into(), &3.into())
    );
    let first = wrong["generation"].as_u64().expect("a number");
    for second in [2, 4, 6] {
        send(&system, Issue::new(1, 1).at(second), "unassigned").await;
        send(&system, Issue::new(1, 1).assigned(&["bot"]).at(second + 1), "assigned").await;
        let generation = first + second / 2;
        wait::until_equal("the next run", Value::from(generation), || async {
            run_entry(&system.js, "1.1.wrong").await["generation"].clone()
        })
        .await;
        phase(&system, "1.1.wrong", "failed").await;
    }
    assert_eq!(run_entry(&system.js, "1.1.wrong").await["ended"], "too_many");
    let wrong = |notes: Vec<tests::runners::Note>| {
        notes.into_iter().filter(|note| note.rule == "wrong").count()
    };
    assert_eq!(wrong(agents.notes()), 2);
    process.line_with("run not started").await;
    assert!(total(operator, "coordinator_runs_refused_total", "wrong").await >= 1.0);
    let failed = total(operator, "coordinator_runs_total", "outcome=\"failed\"").await;
    assert_eq!(failed, 2.0, "attempts alone are counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_deployed_users_a_runner_may_do_what_it_has_to() {
    let (nats, data, agents) = (nats_with_roles().await, temp_dir(), Agents::default());
    create_streams(&nats, &data).await;
    agents.write_rules(&Agents::rule("fix", AGENT, ""));
    let ingest = start("ingest", &[], "ingest", &nats, &data);
    let _worker = start("worker", &[], "worker", &nats, &data);
    let (rules, log) = (agents.rules(), agents.log());
    let more = [
        ("REACTOR_RULES", rules.to_str().expect("UTF-8")),
        ("LOG", log.to_str().expect("UTF-8")),
        ("REACTOR_LEASE_SECS", "2"),
    ];
    let runners = [0, 1].map(|_| start_at(&nats.url(), "react", &[], "reactor", &data, &more));
    for runner in &runners {
        runner.line_with("runner started").await;
    }
    let address = ingest.address_in("ingest listens").await;
    let http = reqwest::Client::new();
    let issue = Issue::new(1, 1).assigned(&["bot"]);
    tests::system::send(&http, address, &issue.delivery("assigned")).await;
    agents.noted("acme/r1#1", "start", 1).await;
    tests::system::send(&http, address, &issue.clone().state("closed").at(2).delivery("closed"))
        .await;
    agents.noted("acme/r1#1", "term", 1).await;
    for runner in &runners {
        let output = runner.output();
        let is_well = !output.contains("denies") && !output.contains("is not as needed");
        assert!(is_well, "{output}");
    }
    // Without the consumer, which they may not create, what runs is renewed all the same.
    let other = Issue::new(1, 2).assigned(&["bot"]);
    tests::system::send(&http, address, &other.delivery("assigned")).await;
    agents.noted("acme/r1#2", "start", 1).await;
    let js = jetstream::new(nats.client().await);
    let bucket = js.get_key_value(contract::names::RUNS).await.expect("the bucket");
    let lease = async || {
        let entry = bucket.get("1.2.fix").await.expect("an answer").expect("an entry");
        serde_json::from_slice::<Value>(&entry).expect("JSON")["lease"].as_u64().expect("a lease")
    };
    let before = lease().await;
    let changes = js.get_stream(contract::names::CHANGES).await.expect("the stream");
    changes.delete_consumer("reactor").await.expect("delete");
    wait::until("renewals for three leases", || async {
        (lease().await >= before + 18).then_some(())
    })
    .await;
    assert_eq!(agents.count("acme/r1#2", "term"), 0);
    create_streams(&nats, &data).await;
    tests::system::send(&http, address, &other.state("closed").at(2).delivery("closed")).await;
    agents.noted("acme/r1#2", "term", 1).await;
    nothing_runs(&agents).await;
}

/// The message of an entry, with its headers. None once it is removed.
async fn stored(js: &jetstream::Context, key: &str) -> Option<StreamMessage> {
    let bucket = js.get_stream("KV_GITEA_RUNS").await.expect("the bucket");
    let subject = format!("$KV.GITEA_RUNS.{key}");
    match bucket.get_last_raw_message_by_subject(&subject).await {
        Ok(found) => Some(found),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => None,
        Err(error) => panic!("{error}"),
    }
}

/// Seconds after which the broker removes an entry.
async fn ttl(system: &System, key: &str) -> Option<String> {
    let found = stored(&system.js, key).await.expect("an entry");
    found.headers.get("Nats-TTL").map(ToString::to_string)
}

/// Writes a message into the bucket of runs, to be removed after a time.
async fn put(js: &jetstream::Context, key: &str, payload: Bytes, ttl: Option<&str>) {
    let mut headers = async_nats::HeaderMap::new();
    if let Some(ttl) = ttl {
        headers.insert("Nats-TTL", ttl);
    }
    let subject = format!("$KV.GITEA_RUNS.{key}");
    let written = js.publish_with_headers(subject, headers, payload).await.expect("publish");
    written.await.expect("an ack");
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_runs_that_are_over_go_and_the_id_of_a_run_never_comes_again() {
    let (system, agents) = (System::start().await, Agents::default());
    agents.write_rules(&Agents::rule("fix", AGENT, ""));
    let kept = [("REACTOR_RUNS_KEPT_DAYS", "3")];
    let runner = agents.runner_with(Path::new(EXE), &system.nats.url(), "10", &kept);
    runner.line_with("runner started").await;
    send(&system, Issue::new(1, 1).assigned(&["bot"]), "assigned").await;
    agents.noted("acme/r1#1", "start", 1).await;
    assert_eq!(ttl(&system, "1.1.fix").await, None, "it runs");
    send(&system, Issue::new(1, 1).assigned(&["bot"]).state("closed").at(2), "closed").await;
    let over = phase(&system, "1.1.fix", "stopped").await;
    assert_eq!(ttl(&system, "1.1.fix").await.as_deref(), Some("259200"));
    // Three days go by.
    let last = stored(&system.js, "1.1.fix").await.expect("an entry");
    put(&system.js, "1.1.fix", last.payload, Some("1")).await;
    wait::until("the entry to be removed", || async {
        stored(&system.js, "1.1.fix").await.is_none().then_some(())
    })
    .await;
    send(&system, Issue::new(1, 1).assigned(&["bot"]).at(4), "reopened").await;
    agents.noted("acme/r1#1", "start", 2).await;
    let again = phase(&system, "1.1.fix", "running").await;
    assert!(again["generation"].as_u64() > over["generation"].as_u64(), "{again} {over}");
    assert_eq!(ttl(&system, "1.1.fix").await, None, "it runs");
    // One that ends by itself stays as long as its issue is assigned.
    agents.write_rules(&Agents::rule("done", "exit 0", ""));
    runner.signal("HUP");
    phase(&system, "1.1.done", "done").await;
    assert_eq!(ttl(&system, "1.1.done").await, None, "it is wanted");
    assert_eq!(phase(&system, "1.1.fix", "stopped").await["stop_reason"], "rule gone");
    assert_eq!(ttl(&system, "1.1.fix").await.as_deref(), Some("259200"));
    send(&system, Issue::new(1, 1).at(6), "unassigned").await;
    wait::until("the other to go as well", || async { ttl(&system, "1.1.done").await }).await;
}

/// The bucket of runs, as a former version made it.
async fn former_bucket(js: &jetstream::Context) -> kv::Store {
    let config = kv::Config { bucket: names::RUNS.into(), history: 1, ..kv::Config::default() };
    js.create_key_value(config).await.expect("a bucket")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_from_before_gets_an_end_for_its_entries() {
    let (system, agents) = (System::start().await, Agents::default());
    former_bucket(&system.js).await;
    for (number, phase, desired) in [(1, "stopped", "stop"), (2, "done", "run")] {
        let run = json!({ "generation": 1, "phase": phase, "desired": desired,
            "issue": format!("acme/r1#{number}") });
        put(&system.js, &format!("1.{number}.fix"), run.to_string().into(), None).await;
    }
    agents.write_rules(&Agents::rule("fix", AGENT, ""));
    let runner = runner(&agents, &system, "10");
    runner.line_with("runner started").await;
    wait::until("an end", || async { ttl(&system, "1.1.fix").await }).await;
    assert_eq!(ttl(&system, "1.2.fix").await, None, "it is wanted");
    send(&system, Issue::new(1, 3).assigned(&["bot"]), "assigned").await;
    agents.noted("acme/r1#3", "start", 1).await;
    send(&system, Issue::new(1, 3).at(2), "unassigned").await;
    phase(&system, "1.3.fix", "stopped").await;
    assert_eq!(ttl(&system, "1.3.fix").await.as_deref(), Some("2592000"), "30 days");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_may_not_change_the_bucket_says_so_and_goes_on_without() {
    let (nats, data, agents) = (nats_with_roles().await, temp_dir(), Agents::default());
    create_streams(&nats, &data).await;
    let js = jetstream::new(nats.client().await);
    js.delete_stream("KV_GITEA_RUNS").await.expect("delete");
    former_bucket(&js).await;
    agents.write_rules(&Agents::rule("fix", AGENT, ""));
    let (rules, log) = (agents.rules(), agents.log());
    let more =
        [("REACTOR_RULES", rules.to_str().expect("UTF-8")), ("LOG", log.to_str().expect("UTF-8"))];
    let runner = start_at(&nats.url(), "react", &[], "reactor", &data, &more);
    let line = runner.line_with("what stands on the broker is not as needed").await;
    assert!(line.contains("create-streams") && line.contains("allow_msg_ttl"), "{line}");
    let (ingest, _worker) = (
        start("ingest", &[], "ingest", &nats, &data),
        start("worker", &[], "worker", &nats, &data),
    );
    let address = ingest.address_in("ingest listens").await;
    let http = reqwest::Client::new();
    let issue = Issue::new(1, 1).assigned(&["bot"]);
    tests::system::send(&http, address, &issue.delivery("assigned")).await;
    agents.noted("acme/r1#1", "start", 1).await;
    tests::system::send(&http, address, &issue.state("closed").at(2).delivery("closed")).await;
    agents.noted("acme/r1#1", "term", 1).await;
    wait::until("its end to be written", || async {
        let found = stored(&js, "1.1.fix").await?;
        let run: Value = serde_json::from_slice(&found.payload).expect("JSON");
        assert!(found.headers.get("Nats-TTL").is_none());
        (run["phase"] == "stopped").then_some(())
    })
    .await;
    create_streams(&nats, &data).await;
    let bucket = js.get_stream("KV_GITEA_RUNS").await.expect("the bucket");
    assert!(bucket.cached_info().config.allow_message_ttl, "an operator's command sets it");
}

/// The bucket of runs, of which the server answers no requests for several entries.
async fn bucket_without_direct_reads(js: &jetstream::Context) {
    let store = former_bucket(js).await;
    let mut config = store.stream.cached_info().config.clone();
    config.allow_direct = false;
    js.update_stream(&config).await.expect("a change");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_gets_no_many_entries_at_once_reads_one_by_one() {
    let (system, agents) = (System::start().await, Agents::default());
    bucket_without_direct_reads(&system.js).await;
    // Somebody is there, and never answers.
    let client = system.nats.client().await;
    let silent = client.subscribe("$JS.API.DIRECT.GET.KV_GITEA_RUNS").await.expect("subscribe");
    client.flush().await.expect("flush");
    let over = json!({ "generation": 1, "phase": "done", "desired": "run", "issue": "acme/r1#9" });
    for number in 10..20 {
        put(&system.js, &format!("1.{number}.fix"), over.to_string().into(), None).await;
    }
    agents.write_rules(&Agents::rule("fix", AGENT, ""));
    let runner = runner(&agents, &system, "10");
    let line = runner.line_with("requests for several runs").await;
    assert!(line.contains("is not answered"), "{line}");
    send(&system, Issue::new(1, 1).assigned(&["bot"]), "assigned").await;
    agents.noted("acme/r1#1", "start", 1).await;
    // What was there before is known: it is over, and does not begin.
    send(&system, Issue::new(1, 10).at(2), "unassigned").await;
    wait::until("its end", || async {
        (run_entry(&system.js, "1.10.fix").await["desired"] == "stop").then_some(())
    })
    .await;
    drop(silent);
}

/// Answers requests for many runs as a node of a cluster that has none of them yet. The client library
/// sends no status of its own.
async fn node_without_entries(nats: &Nats) {
    let stream = TcpStream::connect(("127.0.0.1", nats.port())).await.expect("connect");
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let hello = "CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\n\
                 SUB $JS.API.DIRECT.GET.KV_GITEA_RUNS 1\r\nPING\r\n";
    write.write_all(hello.as_bytes()).await.expect("write");
    while lines.next_line().await.expect("read").expect("a line") != "PONG" {}
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            let mut words = line.split(' ');
            let answer = match words.next() {
                // MSG <subject> <sid> <reply> <bytes>
                Some("MSG") => {
                    let status = "NATS/1.0 404 Message Not Found\r\n\r\n";
                    let (to, length) = (words.nth(2).expect("a reply subject"), status.len());
                    format!("HPUB {to} {length} {length}\r\n{status}\r\n")
                }
                Some("PING") => "PONG\r\n".into(),
                _ => continue,
            };
            write.write_all(answer.as_bytes()).await.expect("write");
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_node_that_answers_has_not_got_yet_is_asked_of_the_leader() {
    let (system, agents) = (System::start().await, Agents::default());
    bucket_without_direct_reads(&system.js).await;
    node_without_entries(&system.nats).await;
    // Of a rule that is not there: only whoever has read it knows that it is to be looked at.
    let over = json!({ "generation": 1, "phase": "done", "desired": "run", "issue": "acme/r1#1",
        "person": { "id": 900, "login": "bot" } });
    for number in 1..4 {
        put(&system.js, &format!("1.{number}.former"), over.to_string().into(), None).await;
    }
    agents.write_rules(&Agents::rule("fix", AGENT, ""));
    let runner = runner(&agents, &system, "10");
    runner.line_with("runner started").await;
    send(&system, Issue::new(1, 3).assigned(&["bot"]), "assigned").await;
    agents.noted("acme/r1#3", "start", 1).await;
    send(&system, Issue::new(1, 3).at(2), "unassigned").await;
    agents.noted("acme/r1#3", "term", 1).await;
    phase(&system, "1.3.fix", "stopped").await;
    wait::until("the end of what was there before", || async {
        (run_entry(&system.js, "1.3.former").await["desired"] == "stop").then_some(())
    })
    .await;
    assert!(!runner.output().contains("requests for several runs"), "{}", runner.output());
}

async fn asked(system: &System, question: Question) -> Reply {
    let answers = system.worker.peers.ask(Asked::Reactor, &question).await;
    answers.into_iter().next().expect("an answer").reply
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_a_run_that_is_another_one_by_now_is_refused() {
    let (system, agents) = (System::start().await, Agents::default());
    agents.write_rules(&Agents::rule("fix", AGENT, ""));
    let runner = runner(&agents, &system, "10");
    runner.line_with("runner started").await;
    let issue = || Issue::new(1, 1).assigned(&["bot"]);
    send(&system, issue(), "assigned").await;
    agents.noted("acme/r1#1", "start", 1).await;
    let seen = run_entry(&system.js, "1.1.fix").await["generation"].as_u64().expect("a number");
    send(&system, issue().state("closed").at(2), "closed").await;
    phase(&system, "1.1.fix", "stopped").await;
    send(&system, issue().at(4), "reopened").await;
    agents.noted("acme/r1#1", "start", 2).await;
    let key = || "1.1.fix".to_owned();
    for question in [
        Question::StopRun { key: key(), generation: seen },
        Question::RunAgain { key: key(), generation: seen },
    ] {
        let reply = asked(&system, question).await;
        let Reply::Refused(why) = reply else { panic!("{reply:?}") };
        assert!(why.contains(&format!("another run by now, 1.1.fix.{}", seen + 1)), "{why}");
    }
    assert_eq!(run_entry(&system.js, "1.1.fix").await["desired"], "run");
    let stop = Question::StopRun { key: key(), generation: seen + 1 };
    assert!(matches!(asked(&system, stop).await, Reply::Ordered));
    agents.noted("acme/r1#1", "term", 2).await;
    phase(&system, "1.1.fix", "stopped").await;
    assert_eq!(ttl(&system, "1.1.fix").await, None, "it keeps the next one from beginning");
    send(&system, Issue::new(1, 1).at(6), "unassigned").await;
    wait::until("an end", || async { ttl(&system, "1.1.fix").await }).await;
    assert_eq!(run_entry(&system.js, "1.1.fix").await["generation"], seen + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_rule_that_no_runner_has_is_given_up_and_not_while_one_has_it() {
    let (system, agents) = (System::start().await, Agents::default());
    agents.write_rules(&Agents::rule("fix", AGENT, "concurrency = 1"));
    let mut first = runner(&agents, &system, "2");
    first.line_with("runner started").await;
    send(&system, Issue::new(1, 1).assigned(&["bot"]), "assigned").await;
    agents.noted("acme/r1#1", "start", 1).await;
    send(&system, Issue::new(1, 2).assigned(&["bot"]), "assigned").await;
    phase(&system, "1.2.fix", "waiting").await;
    first.signal("TERM");
    assert!(first.exited().await.success());
    nothing_runs(&agents).await;
    // The rule goes while no runner runs. Another runner has it still, and no room.
    let client = system.nats.client().await;
    let mut nudges = client.subscribe("coordinator.runs.nudge").await.expect("subscribe");
    client.flush().await.expect("flush");
    agents.write_rules(&Agents::rule("other", AGENT, ""));
    let second = runner(&agents, &system, "2");
    phase(&system, "1.1.other", "running").await;
    // It asks once a second, and would give up after twenty.
    let mut asked = 0;
    while asked < 25 {
        let nudge = wait::within("a question", nudges.next()).await.expect("a message");
        if let Some(reply) = nudge.reply {
            assert_eq!(nudge.payload, "1.2.fix");
            client.publish(reply, "".into()).await.expect("publish");
            asked += 1;
        }
    }
    assert_eq!(run_entry(&system.js, "1.2.fix").await["phase"], "waiting");
    drop(nudges);
    let over = phase(&system, "1.2.fix", "stopped").await;
    assert_eq!((&over["stop_reason"], &over["desired"]), (&"rule gone".into(), &"stop".into()));
    assert!(ttl(&system, "1.2.fix").await.is_some());
    second.line_with("run given up: no runner has its rule").await;
    // The rule is back, and so is its run.
    agents.write_rules(&Agents::rule("fix", AGENT, ""));
    second.signal("HUP");
    phase(&system, "1.2.fix", "running").await;
    // This runner says so to others.
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.expect("subscribe");
    for key in ["1.2.other", "1.2.fix"] {
        let sent = client.publish_with_reply("coordinator.runs.nudge", inbox.clone(), key.into());
        sent.await.expect("publish");
    }
    wait::within("an answer", answers.next()).await.expect("an answer");
}

/// What a receiver of calls was told.
type Calls = Arc<Mutex<Vec<(String, Value)>>>;

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_called_at_the_beginning_and_at_the_end() {
    let (system, agents) = (System::start().await, Agents::default());
    let calls = Calls::default();
    let answers = Arc::new(Semaphore::new(0));
    let take = |State((calls, answers)): State<(Calls, Arc<Semaphore>)>,
                headers: HeaderMap,
                body: Bytes| async move {
        let id = headers["webhook-id"].to_str().expect("a text").to_owned();
        assert!(headers["webhook-signature"].to_str().expect("a text").starts_with("v1,"));
        calls.lock().await.push((id, serde_json::from_slice(&body).expect("JSON")));
        answers.acquire().await.expect("a place").forget();
    };
    let state = (Arc::clone(&calls), Arc::clone(&answers));
    let router = Router::new().route("/hook/", post(take)).with_state(state);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("serve") });
    let secret = agents.rules().with_file_name("secret");
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef").expect("write");
    agents.write_rules(&format!(
        "[[rule]]\nname = \"tell\"\nwho = {{ login = \"bot\" }}\n\
         call = {{ url = \"http://{address}/hook/\", secret_file = {secret:?}, \
         timeout_secs = 300 }}\n"
    ));
    let process = runner(&agents, &system, "6");
    process.line_with("runner started").await;
    send(&system, Issue::new(1, 1).assigned(&["bot"]), "assigned").await;
    // Its answer takes longer than a lease, which is renewed once a second.
    let called = wait::until("a call", || async { calls.lock().await.first().cloned() }).await;
    assert_eq!(called.1["run"]["attempt"], 1);
    let lease = || async { run_entry(&system.js, "1.1.tell").await["lease"].as_u64().unwrap_or(0) };
    let renewed = lease().await + 7;
    wait::until("renewals", || async { (lease().await >= renewed).then_some(()) }).await;
    answers.add_permits(2);
    let run = phase(&system, "1.1.tell", "done").await;
    assert_eq!(run["attempt"], 1);
    send(&system, Issue::new(1, 1).state("closed").at(2), "closed").await;
    phase(&system, "1.1.tell", "stopped").await;
    let calls = calls.lock().await.clone();
    let told: Vec<_> = calls.iter().map(|(id, json)| (id.as_str(), &json["kind"])).collect();
    let id = |what| format!("1.1.tell.{}.{what}", run["generation"]);
    let (started, ended) = (id("started"), id("ended"));
    assert_eq!(told, [(&*started, &"started".into()), (&*ended, &"ended".into())]);
    assert_eq!(calls[1].1["run"]["reason"], "closed");
    server.abort();
}
