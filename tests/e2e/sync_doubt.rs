//! Doubts that events leave are settled by Gitea's API.

use std::path::Path;

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tests::{
    bus,
    check::Key,
    gitea::SECRET,
    gitea_server::{GiteaServer, Kind, NewIssue, Order},
    nats::Nats,
    otlp::{Receiver, Span},
    services::{ingest_at, worker_at},
    synced::{Synced, short, swept_after},
    temp_dir, wait,
};

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");

/// Changes issues, twice a call and several times a second, in the seconds of Gitea's clock from
/// now on.
fn churn(gitea: &GiteaServer, repository: i64, issues: u64, seconds: i64) -> Vec<Key> {
    let keys: Vec<Key> = (0..issues)
        .map(|_| (repository, gitea.create_issue(repository, "maria", &NewIssue::default())))
        .collect();
    let mut random = fastrand::Rng::with_seed(issues);
    for _ in 0..seconds {
        for (repository, number) in &keys {
            for _ in 0..3 {
                let logins = ["bot", "tom", "li-wei"];
                let assigned: Vec<&str> = logins.into_iter().filter(|_| random.bool()).collect();
                gitea.set_assignees(*repository, *number, &assigned, "maria");
                match random.u8(0..4) {
                    0 => gitea.close(*repository, *number, "tom"),
                    1 => gitea.reopen(*repository, *number, "tom"),
                    _ => {}
                }
            }
        }
        gitea.advance(1);
    }
    keys
}

async fn ends_right(order: Order) {
    let synced = Synced::start(&[]).await;
    synced.gitea.hold_deliveries();
    synced.gitea.advance(-10);
    let issues = churn(&synced.gitea, synced.widgets, 20, 4);
    synced.gitea.use_real_clock();
    synced.gitea.deliver_at_once(8);
    synced.gitea.release_deliveries(order);
    synced.equal(&issues).await;
    let changes = synced.told(&issues).await;
    // Otherwise this would not show anything.
    assert!(changes.iter().any(|change| change.cause.synced.is_some()), "no doubt was settled");
}

#[tokio::test(flavor = "multi_thread")]
async fn issues_changed_at_once_end_right_in_whatever_order_it_is_delivered() {
    let tasks = [Order::AsMade, Order::Reversed, Order::Shuffled(7)]
        .map(|order| (order, tokio::spawn(ends_right(order))));
    for (order, task) in tasks {
        task.await.unwrap_or_else(|error| panic!("{order:?}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_settles_a_doubt_names_who_did_it() {
    let synced = Synced::start(&[]).await;
    let gitea = &synced.gitea;
    gitea.hold_deliveries();
    gitea.advance(-10);
    let number = gitea.create_issue(synced.widgets, "maria", &NewIssue::default());
    gitea.advance(1);
    gitea.assign(synced.widgets, number, "bot", "maria");
    gitea.set_assignees(synced.widgets, number, &["tom"], "li-wei");
    gitea.close(synced.widgets, number, "bot");
    gitea.use_real_clock();
    // What is said last is that bot alone is assigned.
    gitea.release_deliveries(Order::Reversed);
    synced.equal(&[(synced.widgets, number)]).await;
    let changes = synced.told(&[(synced.widgets, number)]).await;
    let settling: Vec<_> = changes.iter().filter(|change| change.cause.synced.is_some()).collect();
    let told: Vec<String> = settling.iter().map(|change| short(change)).collect();
    assert_eq!(
        told,
        [
            "doubt: unassigned -bot by li-wei",
            "doubt: closed by bot",
            "doubt: assigned +tom by li-wei"
        ]
    );
    let events = bus::events(&synced.js).await;
    let raised_by = settling[0].cause.raised_by.as_deref().expect("a delivery");
    assert!(events.iter().any(|event| event.delivery.id == raised_by), "{raised_by}");
    // One question, after the burst.
    let asked = [Kind::Issue, Kind::Timeline].map(|kind| gitea.requests_of(kind));
    assert_eq!(asked, [1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_looks_old_and_was_never_seen_ends_right() {
    let synced = Synced::start(&[]).await;
    let gitea = &synced.gitea;
    let number = gitea.create_issue(synced.widgets, "maria", &NewIssue::default());
    gitea.assign(synced.widgets, number, "bot", "maria");
    synced.equal(&[(synced.widgets, number)]).await;
    // The clock is set back by an hour.
    gitea.advance(-3600);
    gitea.close(synced.widgets, number, "tom");
    gitea.advance(1);
    gitea.unassign(synced.widgets, number, "bot", "tom");
    synced.equal(&[(synced.widgets, number)]).await;
    synced.told(&[(synced.widgets, number)]).await;
    // And goes on from there.
    gitea.advance(1);
    gitea.reopen(synced.widgets, number, "tom");
    synced.equal(&[(synced.widgets, number)]).await;
    let changes = synced.told(&[(synced.widgets, number)]).await;
    let told: Vec<String> = changes.iter().map(short).collect();
    let expected = [
        "assigned +bot",
        "doubt: unassigned -bot by tom",
        "doubt: closed by tom",
        // Until the clock shows again what it had shown.
        "doubt: reopened by tom",
    ];
    assert_eq!(told, expected);
}

/// Whether `span` is `ancestor`, or below it.
fn is_below(span: &Span, ancestor: &Span, all: &[Span]) -> bool {
    let parent = |span: &Span| all.iter().find(|other| other.id == span.parent);
    let mut at = Some(span);
    while let Some(span) = at {
        if span.id == ancestor.id {
            return true;
        }
        at = parent(span);
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn the_requests_are_in_the_trace_of_the_delivery_that_raised_the_doubt() {
    let (receiver, nats, data) = (Receiver::start().await, Nats::start().await, temp_dir());
    let gitea = GiteaServer::start().await;
    gitea.add_admin("maria");
    gitea.add_user("bot");
    let widgets = gitea.add_repository("maria", "widgets");
    let token = gitea.add_token("coordinator", "maria", &["all"]);
    let (otlp, url) = (receiver.url(), gitea.url());
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ("GITEA_URL", &url),
        ("GITEA_TOKEN", &token),
        ("LOG_LEVEL", "debug"),
    ];
    let exe = Path::new(EXE);
    let worker = worker_at(exe, &nats.url(), &[], &environment);
    let js = async_nats::jetstream::new(nats.client().await);
    let first = swept_after(&js, 0).await;
    let ingest = ingest_at(exe, &nats.url(), data.path(), &[], &environment[..3]);
    let address = ingest.address_in("ingest listens").await;
    // Ingest tells that it was away, and the sweep after that is over.
    swept_after(&js, first).await;
    gitea.deliver_to(&format!("http://{address}/webhook/gitea"), SECRET);
    gitea.hold_deliveries();
    gitea.advance(-10);
    let number = gitea.create_issue(widgets, "maria", &NewIssue::default());
    gitea.advance(1);
    gitea.assign(widgets, number, "bot", "maria");
    gitea.unassign(widgets, number, "bot", "maria");
    gitea.use_real_clock();
    gitea.release_deliveries(Order::Reversed);
    let change = wait::until("the doubt to be settled", || async {
        let last = bus::changes(&js).await.pop()?;
        (short(&last) == "doubt: unassigned -bot by maria").then_some(last)
    })
    .await;

    let raised_by = change.cause.raised_by.expect("a delivery").replace('-', "");
    let ask = receiver.span(&raised_by, |span| span.name == "ask Gitea").await;
    // The last span of the trace to end, but one.
    receiver.span(&raised_by, |s| s.name.starts_with("process ") && s.start > ask.start).await;
    let trace = receiver.trace(&raised_by);
    let root: Vec<&Span> = trace.iter().filter(|span| span.parent.is_empty()).collect();
    assert_eq!(root.len(), 1, "{trace:#?}");
    for operation in ["issue", "timeline"] {
        let span = trace.iter().find(|span| span.name == operation).expect(operation);
        assert_eq!(span.kind, SpanKind::Client, "{span:?}");
        assert!(is_below(span, &ask, &trace), "{span:?}");
    }
    assert!(is_below(&ask, root[0], &trace), "{ask:?}");
    let all = format!("{:?}", receiver.spans());
    for (what, text) in [("spans", all), ("log", worker.output())] {
        assert!(!text.contains(&token), "the token is among the {what}");
    }
}

/// Whatever stands in place of the queue of questions, events go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_the_broker_does_not_take_holds_up_no_event() {
    let mut synced = Synced::start_without_worker(&[]).await;
    // A stream that is full, and refuses what is new.
    let full = async_nats::jetstream::stream::Config {
        name: contract::names::QUESTIONS.into(),
        subjects: vec!["gitea.questions.>".into()],
        max_messages: 1,
        discard: async_nats::jetstream::stream::DiscardPolicy::New,
        ..Default::default()
    };
    synced.js.delete_stream(contract::names::QUESTIONS).await.expect("the queue");
    synced.js.create_stream(full).await.expect("the stream");
    let sent = synced.js.publish("gitea.questions.doubts.9.9", "{}".into()).await.expect("sent");
    sent.await.expect("confirmed");
    synced.worker = Some(synced.another_worker().await);
    let gitea = &synced.gitea;
    gitea.hold_deliveries();
    gitea.advance(-10);
    let issues = churn(gitea, synced.widgets, 3, 2);
    gitea.use_real_clock();
    gitea.release_deliveries(Order::Reversed);
    gitea.all_delivered().await;
    synced.calm().await;
    let worker = synced.worker.as_ref().expect("a worker");
    assert!(worker.total("coordinator_questions_total", "lost").await > 0.0, "no doubt was left");
    for key in issues {
        assert!(synced.known(key).await.is_some(), "{key:?} is not known");
    }
}
