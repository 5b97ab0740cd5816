//! What an operator's commands do with messages that somebody has forged: nothing that the operator
//! could not undo, and nothing to the terminal.

use std::path::Path;

use async_nats::{HeaderMap, jetstream};
use contract::{
    change::{Change, ChangeKind},
    dead_letter, event, names,
    partitions::Partitions,
    subject::EventSubject,
};
use service::broker::{
    findings::Findings,
    streams::{Streams, StreamsArgs},
};
use tests::{bus, nats::Nats, process::Process, wait};

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");

async fn with_streams() -> (Nats, jetstream::Context) {
    let nats = Nats::start().await;
    let js = jetstream::new(nats.client().await);
    let settings = StreamsArgs::default().settings(&mut service::settings::Problems::default());
    let streams = Streams { js: &js, settings: &settings, findings: &Findings::default() };
    streams.events().await.expect("events");
    streams.changes().await.expect("changes");
    streams.dead_letters().await.expect("dead letters");
    (nats, js)
}

/// Runs a command to its end; returns its exit code and its output.
async fn command(nats: &Nats, name: &str, args: &[&str]) -> (i32, String) {
    let mut process = Process::start(Path::new(EXE), name, args, &[("NATS_URL", &nats.url())]);
    let code = process.exited().await.code().expect("an exit code");
    (code, process.output())
}

async fn publish(js: &jetstream::Context, subject: &str, headers: HeaderMap, payload: &[u8]) {
    let sent = js.publish_with_headers(subject.to_owned(), headers, payload.to_vec().into()).await;
    sent.expect("publish").await.expect("an ack");
}

/// A dead letter that was never an event.
async fn forge(js: &jetstream::Context, headers: &[(&str, &str)], payload: &[u8]) {
    let mut all = HeaderMap::new();
    for (name, value) in [
        (dead_letter::STREAM, names::EVENTS),
        (dead_letter::SEQUENCE, "1"),
        (dead_letter::ATTEMPTS, "1"),
        (dead_letter::ERROR, "decode"),
        (dead_letter::ORIGINAL_MESSAGE_ID, "forged"),
        (dead_letter::ORIGINAL_SUBJECT, "gitea.issues.closed.acme.widgets.1.2"),
    ] {
        all.insert(name, value);
    }
    for (name, value) in headers {
        all.insert(*name, *value);
    }
    publish(js, "gitea.dead.issues.closed.acme.widgets.1.2", all, payload).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_dead_letter_is_refused_and_the_others_are_redriven() {
    let (nats, js) = with_streams().await;
    let json = serde_json::to_vec(&event::example()).expect("JSON");
    for (headers, payload) in [
        (&[(dead_letter::ORIGINAL_SUBJECT, "$JS.API.STREAM.PURGE.GITEA_CHANGES")][..], &b""[..]),
        (&[(dead_letter::ORIGINAL_SUBJECT, "gitea.changes.assigned.acme.widgets.1")], b"{}"),
        (&[(dead_letter::ORIGINAL_SUBJECT, "gitea.issues.closed.other.repo.1.2")], &json),
        (&[(dead_letter::STREAM, "GITEA_CHANGES")], b"{}"),
        (&[("Other", "x")], b"{}"),
    ] {
        forge(&js, headers, payload).await;
    }
    let subject = EventSubject::of(&event::example(), Partitions::DEFAULT).to_string();
    forge(&js, &[(dead_letter::ORIGINAL_SUBJECT, &subject)], &json).await;
    publish(&js, "gitea.changes.closed.acme.widgets.1", HeaderMap::new(), b"{}").await;

    let (code, output) = command(&nats, "dead-letters", &["redrive", "1"]).await;
    assert_eq!(code, 1, "{output}");
    assert!(
        output.contains("dead letter 1 is not published again: its original subject")
            && output.contains("STREAM.PURGE"),
        "{output}"
    );
    let (code, output) = command(&nats, "dead-letters", &["redrive", "--all"]).await;
    assert_eq!(code, 1, "{output}");
    for sequence in 1..=5 {
        let refused = format!("dead letter {sequence} is not published again");
        assert!(output.contains(&refused), "{sequence}: {output}");
    }
    assert!(output.contains(&format!("redriven 6 to {subject} as 1")), "{output}");
    assert_eq!(bus::count(&js, names::DEAD_LETTERS).await, 5);
    assert_eq!(bus::count(&js, names::EVENTS).await, 1);
    assert_eq!(bus::count(&js, names::CHANGES).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_gets_nothing_that_it_would_act_on() {
    const EVIL: &str = "\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}\u{2066}\n\u{7f}\r";
    let (nats, js) = with_streams().await;
    let mut event = event::example();
    for text in [&mut event.repository.owner, &mut event.repository.name, &mut event.sender.login] {
        text.push_str(EVIL);
    }
    event.issue.title.push_str(EVIL);
    event.issue.assignees[0].login.push_str(EVIL);
    event.delivery.id.push_str(EVIL);
    let mut change = Change::from_event(ChangeKind::Assigned, &event);
    change.added = vec![EVIL.into()];
    let events = ["gitea.issues.assigned.a.b.1.2", "gitea.issues.x\u{9b}2J\u{202e}.a.b.1.2"];
    let json = serde_json::to_vec(&event).expect("JSON");
    publish(&js, events[0], HeaderMap::new(), &json).await;
    publish(&js, events[1], HeaderMap::new(), EVIL.as_bytes()).await;
    let change_json = serde_json::to_vec(&change).expect("JSON");
    publish(&js, "gitea.changes.assigned.a.b.1", HeaderMap::new(), &change_json).await;
    let header = "\u{1b}[2J\u{9b}2J\u{202e}";
    forge(&js, &[(dead_letter::ERROR, header), ("Other", header)], EVIL.as_bytes()).await;
    forge(&js, &[(dead_letter::ORIGINAL_SUBJECT, header)], &json).await;

    let is_harmless = |text: &str| {
        let harmful = |c: char| (c.is_control() && c != '\n') || "\u{202e}\u{2066}".contains(c);
        assert!(!text.contains(harmful), "{}", text.escape_debug());
        assert!(text.contains("202e"), "it is not shown at all: {text}");
    };
    for args in [
        &["list"][..],
        &["list", "--json"],
        &["show", "1"],
        &["show", "1", "--json"],
        &["show", "2"],
        &["show", "2", "--json"],
        &["redrive", "2"],
        &["redrive", "2", "--json"],
    ] {
        let (_, output) = command(&nats, "dead-letters", args).await;
        is_harmless(&output);
    }
    let environment = [("NATS_URL", &*nats.url())];
    for (args, lines) in [(&["--all"][..], 1), (&["--all", "--events"], 2)] {
        for json in [&[][..], &["--json"]] {
            let args = [args, json].concat();
            let process = Process::start(Path::new(EXE), "tail", &args, &environment);
            wait::until_equal("all lines", lines, async || process.output().lines().count()).await;
            is_harmless(&process.output());
        }
    }
}
