//! Traces, log lines and metrics, as they leave the processes.

use std::{net::SocketAddr, path::Path};

use async_nats::{
    HeaderMap,
    jetstream::{self, stream::DiscardPolicy},
};
use contract::{
    dead_letter,
    names::{self, consumer_name},
    partitions::Partitions,
};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::{Value, json};
use tests::{
    bus, free_port,
    gitea::{Delivery, Issue, SECRET, sign},
    nats::Nats,
    otlp::{Receiver, Span, Status},
    process::{Process, signal},
    services::{ingest_at, ingest_unread, worker_at},
    system::{Answer, send, settled, total},
    temp_dir, wait,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use uuid::Uuid;

use crate::settling::crowd;

const EXE: &str = env!("CARGO_BIN_EXE_process-under-test");
/// URL at which there is no broker.
const NOWHERE: &str = "nats://127.0.0.1:1";
/// A trace that somebody else began.
const FOREIGN_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const FOREIGN_SPAN: &str = "b7ad6b7169203331";

const HTTP: &str = "POST /webhook/gitea";
const PUBLISH: &str = "publish gitea.issues.{action}.{owner}.{repo}.{number}.{partition}";
const PROCESS: &str = "process gitea.issues.{action}.{owner}.{repo}.{number}.{partition}";
const CHANGE: &str = "publish gitea.changes.{kind}.{owner}.{repo}.{number}";

const BROKER_FAILS: &str = "the broker fails, trying on with the delivery in hand";

/// Settings in addition to those that every test needs.
type Settings<'a> = [(&'a str, &'a str)];

/// Settings for an export to `url` without much delay.
fn exporting(url: &str) -> [(&str, &str); 3] {
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "200"),
    ]
}

/// Ingest or worker as a separate process.
struct Service {
    process: Process,
    address: SocketAddr,
    /// Address of health and metrics.
    operator: SocketAddr,
}

impl Service {
    async fn ingest(nats_url: &str, data: &Path, settings: &Settings<'_>) -> Self {
        Self::listening("ingest", ingest_at(Path::new(EXE), nats_url, data, &[], settings)).await
    }

    async fn worker(nats_url: &str, settings: &Settings<'_>) -> Self {
        Self::listening("worker", worker_at(Path::new(EXE), nats_url, &[], settings)).await
    }

    async fn listening(service: &str, process: Process) -> Self {
        let operator = address_in(&process.line_with("operator listens").await);
        let address = match service {
            "ingest" => address_in(&process.line_with("ingest listens").await),
            _ => operator,
        };
        Self { address, operator, process }
    }

    async fn send(&self, delivery: &Delivery) -> Answer {
        send(&reqwest::Client::new(), self.address, delivery).await
    }

    async fn accepts(&self, delivery: &Delivery) {
        let answer = self.send(delivery).await;
        assert_eq!((answer.status, &answer.body["status"]), (200, &json!("accepted")));
    }

    /// The value of a series without labels. None while there is none.
    async fn value(&self, name: &str) -> Option<f64> {
        let answer = reqwest::get(format!("http://{}/metrics", self.operator)).await;
        let text = answer.expect("an answer").text().await.expect("a text");
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    /// Waits until the series of a metric that have these labels add up to `expected`.
    async fn counts(&self, name: &str, labels: &str, expected: f64) {
        wait::until_equal(&format!("{name} {labels}"), expected, || {
            total(self.operator, name, labels)
        })
        .await;
    }

    /// Names of its threads that export; Linux cuts them to 15 bytes.
    fn exporters(&self) -> Vec<String> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.process.pid()));
        let mut names: Vec<String> = threads
            .expect("its threads")
            .flatten()
            .filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok())
            .map(|name| name.trim_end().to_owned())
            .filter(|name| name.starts_with("OpenTelemetry") || name.starts_with("reqwest"))
            .collect();
        names.sort();
        names
    }

    /// Stops the process gracefully. Returns all that it printed.
    async fn stop(mut self) -> String {
        self.process.signal("TERM");
        let code = self.process.exited().await.code();
        let output = self.process.output();
        assert_eq!(code, Some(0), "{output}");
        output
    }
}

/// The address in a log line of any format.
fn address_in(line: &str) -> SocketAddr {
    let address = line.split(['"', '=', ' ']).find_map(|word| word.parse().ok());
    address.expect("an address")
}

async fn reader(nats: &Nats) -> jetstream::Context {
    jetstream::new(nats.client().await)
}

/// Waits for a stream to be created.
async fn stream(js: &jetstream::Context, name: &str) -> jetstream::stream::Stream {
    wait::until(name, || async { js.get_stream(name).await.ok() }).await
}

/// Makes the broker refuse every change for as long as its stream is full, or take them again.
pub(crate) async fn refuse_changes(js: &jetstream::Context, refuse: bool) {
    // The worker makes the bucket last, once the streams have their limits.
    stream(js, "KV_GITEA_ISSUE_STATE").await;
    let (max_bytes, discard) =
        if refuse { (1, DiscardPolicy::New) } else { (-1, DiscardPolicy::Old) };
    let config = jetstream::stream::Config {
        max_bytes,
        discard,
        ..stream(js, names::CHANGES).await.cached_info().config.clone()
    };
    js.update_stream(config).await.expect("update the stream");
}

/// Publishes a message that is not an event, directly to the stream of events.
async fn publish_garbage(js: &jetstream::Context, id: &str, payload: &str) -> String {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", id);
    headers.insert("traceparent", format!("00-{FOREIGN_TRACE}-{FOREIGN_SPAN}-01").as_str());
    let subject = format!("gitea.issues.closed.acme.r1.9.{}", Partitions::DEFAULT.of(1, 9));
    stream(js, names::EVENTS).await;
    let sent = js.publish_with_headers(subject.clone(), headers, payload.to_owned().into()).await;
    sent.expect("publish").await.expect("an ack");
    subject
}

fn trace_id(delivery_id: &str) -> String {
    delivery_id.replace('-', "")
}

/// An issue that somebody is assigned to.
fn assigned(number: u64) -> Delivery {
    Issue::new(1, number).assigned(&["bot"]).delivery("assigned")
}

/// The delivery of [`assigned`], signed with another secret.
fn forged(number: u64) -> Delivery {
    let delivery = assigned(number);
    let signature = sign("another", &delivery.body);
    delivery
        .with_header("X-Gitea-Signature", &signature)
        .with_header("X-Hub-Signature-256", &format!("sha256={signature}"))
}

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

/// The only span of this name.
fn one<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let [span] = named(spans, name)[..] else { panic!("not one {name} in {spans:#?}") };
    span
}

/// All spans except the spans of jobs, which have traces of their own.
fn of_deliveries(receiver: &Receiver) -> Vec<String> {
    let spans = receiver.spans().into_iter().map(|span| span.name);
    spans
        .filter(|name| !["lag", "storage", "journal_upkeep", "standing"].contains(&name.as_str()))
        .collect()
}

fn names(spans: &[Span]) -> Vec<&str> {
    let mut names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    names.sort_unstable();
    names
}

fn assert_attributes(span: &Span, expected: &[(&str, Value)]) {
    let found: Vec<_> =
        expected.iter().map(|(name, _)| (*name, span.attribute(name).clone())).collect();
    assert_eq!(found, expected, "{span:#?}");
}

/// How a span ended: status and `error.type`.
fn end(span: &Span) -> (Status, Value) {
    (span.status, span.attribute("error.type").clone())
}

fn lines(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).expect("a JSON log line")).collect()
}

/// Info lines that are about a delivery.
fn fates(output: &str, delivery_id: &str) -> Vec<Value> {
    let about = output.lines().filter(|line| line.contains(delivery_id)).collect::<Vec<_>>();
    let mut fates = lines(&about.join("\n"));
    fates.retain(|line| line["level"] == "INFO");
    fates
}

fn complaints(output: &str) -> Vec<Value> {
    let mut complaints = lines(output);
    complaints.retain(|line| line["level"] == "WARN" || line["level"] == "ERROR");
    complaints
}

#[tokio::test]
async fn a_delivery_is_one_tree_of_spans_under_its_own_id() {
    let (nats, data, receiver) = (Nats::start().await, temp_dir(), Receiver::start().await);
    let url = receiver.url();
    let ingest = Service::ingest(&nats.url(), data.path(), &exporting(&url)).await;
    let worker = Service::worker(&nats.url(), &exporting(&url)).await;
    let delivery = assigned(7);
    ingest.accepts(&delivery).await;
    let js = reader(&nats).await;
    settled(&js, 1).await;
    ingest.stop().await;
    worker.stop().await;

    let trace = trace_id(delivery.id());
    let spans = receiver.trace(&trace);
    assert_eq!(names(&spans), [HTTP, "handle assigned", "journal", PROCESS, CHANGE, PUBLISH]);
    assert_eq!(of_deliveries(&receiver).len(), spans.len(), "{:#?}", receiver.spans());
    let span = |name| one(&spans, name);
    let (http, publish, process) = (span(HTTP), span(PUBLISH), span(PROCESS));
    let (journal, handle) = (span("journal"), span("handle assigned"));
    let change = span(CHANGE);
    for (span, kind, parent, service) in [
        (http, SpanKind::Server, "", "coordinator-ingest"),
        (journal, SpanKind::Internal, &http.id, "coordinator-ingest"),
        (publish, SpanKind::Producer, &http.id, "coordinator-ingest"),
        (process, SpanKind::Consumer, &publish.id, "coordinator-worker"),
        (handle, SpanKind::Internal, &process.id, "coordinator-worker"),
        (change, SpanKind::Producer, &handle.id, "coordinator-worker"),
    ] {
        assert_eq!(
            (span.kind, span.parent.as_str(), span.resource("service.name")),
            (kind, parent, &json!(service)),
            "{span:#?}"
        );
        assert_eq!(end(span), (Status::Unset, Value::Null), "{span:#?}");
        assert_eq!(span.resource("host.name"), http.resource("host.name"));
        assert_ne!(span.resource("host.name"), &Value::Null);
        let links =
            if span.name == PROCESS { vec![(trace.clone(), publish.id.clone())] } else { vec![] };
        assert_eq!(span.links, links, "{span:#?}");
    }

    let of_delivery = [
        ("gitea.delivery.id", json!(delivery.id())),
        ("gitea.action", json!("assigned")),
        ("gitea.issue.ref", json!("acme/r1#7")),
    ];
    let of_repository = [
        ("vcs.provider.name", json!("gitea")),
        ("vcs.owner.name", json!("acme")),
        ("vcs.repository.name", json!("r1")),
    ];
    let of_message = [
        ("messaging.system", json!("nats")),
        (
            "messaging.destination.template",
            json!("gitea.issues.{action}.{owner}.{repo}.{number}.{partition}"),
        ),
        ("messaging.message.id", json!(delivery.id())),
    ];
    for span in [http, journal, publish, process, handle, change] {
        assert_attributes(span, &[("gitea.event", json!("issues"))]);
        assert_attributes(span, &of_delivery);
        assert_attributes(span, &of_repository);
    }
    for span in [publish, process] {
        assert_attributes(span, &of_message);
    }
    assert_attributes(
        change,
        &[
            ("messaging.system", json!("nats")),
            ("messaging.operation.name", json!("publish")),
            ("messaging.operation.type", json!("send")),
            (
                "messaging.destination.template",
                json!("gitea.changes.{kind}.{owner}.{repo}.{number}"),
            ),
            ("messaging.destination.name", json!("gitea.changes.assigned.acme.r1.7")),
            ("messaging.message.id", json!(format!("{}:assigned", delivery.id()))),
        ],
    );
    assert_attributes(
        http,
        &[
            ("gitea.event", json!("issues")),
            ("http.request.method", json!("POST")),
            ("http.route", json!("/webhook/gitea")),
            ("http.response.status_code", json!(200)),
        ],
    );
    assert_attributes(
        publish,
        &[
            ("messaging.operation.name", json!("publish")),
            ("messaging.operation.type", json!("send")),
        ],
    );
    let partition = Partitions::DEFAULT.of(1, 7);
    assert_attributes(
        process,
        &[
            ("messaging.operation.name", json!("process")),
            ("messaging.operation.type", json!("process")),
            (
                "messaging.destination.name",
                json!(format!("gitea.issues.assigned.acme.r1.7.{partition}")),
            ),
            ("messaging.consumer.group.name", json!(consumer_name(partition))),
            ("coordinator.verdict", json!("changed")),
        ],
    );

    // A reader of an event or a change continues the trace from these spans.
    for (stream, span) in [(names::EVENTS, publish), (names::CHANGES, change)] {
        let stored = bus::messages(&js, stream).await.expect("the stream");
        let traceparents: Vec<_> = stored.iter().map(|m| m.header("traceparent")).collect();
        assert_eq!(traceparents, [format!("00-{trace}-{}-01", span.id)], "{stream}");
    }
}

#[tokio::test]
async fn a_trace_outlives_an_outage_of_the_broker_and_a_kill_of_ingest() {
    let (mut nats, data, receiver) = (Nats::start().await, temp_dir(), Receiver::start().await);
    let url = receiver.url();
    let settings =
        |instance| [&exporting(&url)[..], &[("OTEL_RESOURCE_ATTRIBUTES", instance)]].concat();
    let first = settings("service.instance.id=first");
    let mut first = Service::ingest(&nats.url(), data.path(), &first).await;
    let before = assigned(1);
    first.accepts(&before).await;
    receiver.span(&trace_id(before.id()), |span| span.name == PUBLISH).await;

    nats.kill();
    let delivery = assigned(2);
    let trace = trace_id(delivery.id());
    first.accepts(&delivery).await;
    receiver.span(&trace, |span| span.name == HTTP).await;
    receiver.span(&trace, |span| span.name == "journal").await;
    first.process.kill().await;

    let second = settings("service.instance.id=second");
    let second = Service::ingest(&nats.url(), data.path(), &second).await;
    wait::until("the delivery to wait, and to grow old", || async {
        let depth = second.value("coordinator_journal_depth").await?;
        let age = second.value("coordinator_journal_oldest_unpublished_age_seconds").await?;
        (depth >= 1.0 && age > 0.0).then_some(())
    })
    .await;
    assert_eq!(names(&receiver.trace(&trace)), [HTTP, "journal"]);
    nats.restart().await;
    let worker = Service::worker(&nats.url(), &exporting(&url)).await;
    settled(&reader(&nats).await, 2).await;
    for name in ["coordinator_journal_depth", "coordinator_journal_oldest_unpublished_age_seconds"]
    {
        wait::until_equal(name, Some(0.0), || second.value(name)).await;
    }
    second.stop().await;
    worker.stop().await;

    let spans = receiver.trace(&trace);
    assert_eq!(names(&spans), [HTTP, "handle assigned", "journal", PROCESS, CHANGE, PUBLISH]);
    let span = |name| one(&spans, name);
    let (http, publish, process) = (span(HTTP), span(PUBLISH), span(PROCESS));
    let instance = |span: &Span| span.resource("service.instance.id").clone();
    assert_eq!((instance(http), instance(publish)), (json!("first"), json!("second")));
    assert_eq!((&publish.parent, &process.parent), (&http.id, &publish.id));
    assert_eq!(span("handle assigned").parent, process.id);
}

#[tokio::test]
async fn each_failure_of_the_broker_is_a_failed_span_within_the_delivery_in_hand() {
    let (nats, data, receiver) = (Nats::start().await, temp_dir(), Receiver::start().await);
    let (url, js) = (receiver.url(), reader(&nats).await);
    let ingest = Service::ingest(&nats.url(), data.path(), &exporting(&url)).await;
    let worker = Service::worker(&nats.url(), &exporting(&url)).await;
    refuse_changes(&js, true).await;
    let delivery = assigned(1);
    let trace = trace_id(delivery.id());
    ingest.accepts(&delivery).await;
    let is_failed_handle =
        |span: &Span| span.name == "handle assigned" && span.status == Status::Error;
    receiver.span(&trace, is_failed_handle).await;
    refuse_changes(&js, false).await;
    worker.process.line_with("delivery handled").await;
    settled(&js, 1).await;
    let retries = total(worker.operator, "coordinator_retries_total", "").await;
    let redeliveries = total(worker.operator, "coordinator_redeliveries_total", "").await;
    ingest.stop().await;
    let output = worker.stop().await;

    let spans = receiver.trace(&trace);
    let publish = one(&spans, PUBLISH);
    let process = one(&spans, PROCESS);
    assert_eq!(end(process), (Status::Unset, Value::Null));
    let handles = named(&spans, "handle assigned");
    let (last, failed) = handles.split_last().expect("handles");
    assert!(!failed.is_empty(), "{spans:#?}");
    assert_eq!((retries, redeliveries), (failed.len() as f64, 0.0));
    assert_eq!(end(last), (Status::Unset, Value::Null));
    for handle in failed {
        assert_eq!(end(handle), (Status::Error, json!("failed")));
        let change = named(&spans, CHANGE).into_iter().find(|span| span.parent == handle.id);
        assert_eq!(end(change.expect("its publish")), (Status::Error, json!("unavailable")));
    }
    for handle in &handles {
        assert_eq!(handle.parent, process.id);
    }
    let attempts = [process];
    for attempt in &attempts {
        assert_eq!(attempt.parent, publish.id);
        assert_eq!(attempt.links, [(trace.clone(), publish.id.clone())]);
    }

    // The causes are logged at a higher level. The outcome is one line, whatever the number of
    // attempts.
    let fates = fates(&output, delivery.id());
    assert_eq!(fates.len(), 1, "{fates:#?}");
    assert_eq!((&fates[0]["verdict"], &fates[0]["attempt"]), (&json!("changed"), &json!(1)));
    let causes = complaints(&output);
    let causes: Vec<_> = causes.iter().filter(|line| line["message"] == BROKER_FAILS).collect();
    assert_eq!(causes.len(), 1, "{output}");
    for cause in causes {
        assert_eq!(cause["gitea.delivery.id"], delivery.id());
        assert_eq!(cause["trace_id"], trace);
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_a_failed_span_and_a_dead_letter() {
    let (nats, receiver) = (Nats::start().await, Receiver::start().await);
    let (url, js) = (receiver.url(), reader(&nats).await);
    let worker = Service::worker(&nats.url(), &exporting(&url)).await;
    let id = Uuid::new_v4().to_string();
    let subject = publish_garbage(&js, &id, "no event").await;
    worker.process.line_with("delivery parked as a dead letter").await;
    worker.counts("coordinator_dead_letters_total", r#"reason="undecodable""#, 1.0).await;

    let letters = bus::messages(&js, names::DEAD_LETTERS).await.expect("the stream");
    let [letter] = &letters[..] else { panic!("not one dead letter in {letters:?}") };
    let traceparent = format!("00-{FOREIGN_TRACE}-{FOREIGN_SPAN}-01");
    for (name, value) in [
        (dead_letter::ORIGINAL_SUBJECT, subject.clone()),
        (dead_letter::ORIGINAL_MESSAGE_ID, id.clone()),
        (dead_letter::ATTEMPTS, "1".into()),
        ("traceparent", traceparent),
    ] {
        assert_eq!(letter.header(name), value, "{name}");
    }
    assert_ne!(letter.header(dead_letter::ERROR), "");
    worker.stop().await;
    let spans = receiver.trace(FOREIGN_TRACE);
    let process = one(&spans, PROCESS);
    assert_eq!((spans.len(), process.kind), (1, SpanKind::Consumer));
    assert_eq!(end(process), (Status::Error, json!("undecodable")));
    assert_eq!(process.parent, FOREIGN_SPAN);
    assert_attributes(
        process,
        &[
            ("messaging.system", json!("nats")),
            ("messaging.message.id", json!(id)),
            ("messaging.destination.name", json!(subject)),
        ],
    );
    assert_eq!(process.links, [(FOREIGN_TRACE.to_owned(), FOREIGN_SPAN.to_owned())]);
}

#[tokio::test]
async fn a_refusal_is_the_clients_error_and_a_full_journal_is_ours() {
    let (data, receiver) = (temp_dir(), Receiver::start().await);
    let url = receiver.url();
    let settings = [&exporting(&url)[..], &[("JOURNAL_MAX_BYTES", "1048576")]].concat();
    let ingest = Service::ingest(NOWHERE, data.path(), &settings).await;
    let refused = forged(1);
    assert_eq!(ingest.send(&refused).await.status, 401);
    let invalid = Delivery::signed(&json!({"action": "opened"}), "issues");
    assert_eq!(ingest.send(&invalid).await.status, 422);
    // Random, so that it stays large when it is compressed.
    let body: String = (0..8_000).map(|_| Uuid::new_v4().to_string()).collect();
    let large = |number| Issue { body: body.clone(), ..Issue::new(1, number) }.delivery("opened");
    let mut kept = Vec::new();
    let full = loop {
        let delivery = large(kept.len() as u64 + 1);
        let answer = ingest.send(&delivery).await;
        if answer.status != 200 {
            assert_eq!((answer.status, &answer.body["error"]), (503, &json!("journal_full")));
            assert_eq!(answer.headers["x-trace-id"], trace_id(delivery.id()));
            break delivery;
        }
        kept.push(delivery);
        assert!(kept.len() < 20, "a journal of 1 MiB holds {} of them", kept.len());
    };
    assert!(!kept.is_empty());
    let output = ingest.stop().await;

    for (delivery, status, expected_end) in [
        (&refused, 401, (Status::Unset, Value::Null)),
        (&invalid, 422, (Status::Unset, Value::Null)),
        (&kept[0], 200, (Status::Unset, Value::Null)),
        (&full, 503, (Status::Error, json!("journal_full"))),
    ] {
        let spans = receiver.trace(&trace_id(delivery.id()));
        let http = one(&spans, HTTP);
        assert_eq!(end(http), expected_end, "{http:#?}");
        assert_attributes(
            http,
            &[
                ("http.response.status_code", json!(status)),
                ("gitea.delivery.id", json!(delivery.id())),
            ],
        );
        let fates = fates(&output, delivery.id());
        assert_eq!(fates.len(), 1, "{fates:#?}");
        assert_eq!(
            (&fates[0]["http.response.status_code"], &fates[0]["trace_id"]),
            (&json!(status), &json!(http.trace_id))
        );
    }
}

#[tokio::test]
async fn the_trace_is_the_deliverys_whatever_else_a_request_says() {
    let (data, receiver) = (temp_dir(), Receiver::start().await);
    let url = receiver.url();
    let ingest = Service::ingest(NOWHERE, data.path(), &exporting(&url)).await;
    let traceparent = format!("00-{FOREIGN_TRACE}-{FOREIGN_SPAN}-01");
    let send = |delivery: Delivery| {
        let delivery = delivery.with_header("traceparent", &traceparent);
        let ingest = &ingest;
        async move {
            let answer = ingest.send(&delivery).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let text = |value: &Value| value.as_str().expect("a text").to_owned();
            let (id, trace) = (text(&answer.body["delivery_id"]), text(&answer.body["trace_id"]));
            assert_eq!(trace, trace_id(&id));
            assert_eq!(answer.headers["x-trace-id"], trace);
            (Uuid::parse_str(&id).expect("a UUID"), trace)
        }
    };
    let delivery = assigned(1);
    let good = send(delivery.clone()).await;
    assert_eq!(good.0.to_string(), delivery.id());
    let mut traces = vec![good.1];
    let nil = Uuid::nil().to_string();
    let without_dashes = Uuid::new_v4().simple().to_string();
    let too_long = format!("{}0", Uuid::new_v4());
    for (number, id) in
        [None, None, Some("1"), Some(""), Some(&nil), Some(&without_dashes), Some(&too_long)]
            .into_iter()
            .enumerate()
    {
        let delivery = assigned(number as u64 + 2).without_header("X-Gitea-Delivery");
        let delivery = match id {
            Some(id) => delivery.with_header("X-Gitea-Delivery", id),
            None => delivery,
        };
        let (given, trace) = send(delivery).await;
        assert_eq!(given.get_version_num(), 4, "{given}");
        assert_ne!(Some(given), id.and_then(|id| Uuid::parse_str(id).ok()));
        assert!(!traces.contains(&trace), "{trace} came twice");
        traces.push(trace);
    }
    ingest.stop().await;

    for trace in &traces {
        let spans = receiver.trace(trace);
        let http = one(&spans, HTTP);
        assert_eq!((http.parent.as_str(), &http.links[..]), ("", &[][..]));
        let id = http.attribute("gitea.delivery.id").as_str().expect("an id");
        assert_eq!(trace_id(id), *trace);
    }
    assert_eq!(named(&receiver.spans(), HTTP).len(), traces.len());
    assert_eq!(names(&receiver.trace(FOREIGN_TRACE)), [""; 0]);
}

#[tokio::test]
async fn a_ratio_of_0_exports_no_trace_and_tells_the_next_one_so() {
    let (nats, data, receiver) = (Nats::start().await, temp_dir(), Receiver::start().await);
    let url = receiver.url();
    let settings = [&exporting(&url)[..], &[("OTEL_TRACES_SAMPLER_ARG", "0")]].concat();
    let ingest = Service::ingest(&nats.url(), data.path(), &settings).await;
    // The worker's ratio is 1, but the process that begins a trace decides.
    let worker = Service::worker(&nats.url(), &exporting(&url)).await;
    let deliveries: Vec<_> = (1..=5).map(assigned).collect();
    for delivery in &deliveries {
        ingest.accepts(delivery).await;
    }
    let js = reader(&nats).await;
    settled(&js, 5).await;
    // Their metrics show that they export at all.
    for (service, metric) in [
        ("coordinator-ingest", "coordinator.deliveries"),
        ("coordinator-worker", "coordinator.events"),
    ] {
        wait::until(metric, || async { receiver.has_metric(service, metric).then_some(()) }).await;
    }
    ingest.stop().await;
    worker.stop().await;
    assert_eq!(of_deliveries(&receiver), Vec::<String>::new());
    for (stream, count) in [(names::EVENTS, 5), (names::CHANGES, 5)] {
        let stored = bus::messages(&js, stream).await.expect("the stream");
        assert_eq!(stored.len(), count, "{stream}");
        for message in &stored {
            let traceparent = message.header("traceparent");
            assert!(traceparent.ends_with("-00"), "{stream}: {traceparent}");
            let known = deliveries.iter().any(|d| traceparent.contains(&trace_id(d.id())));
            assert!(known, "{stream}: {traceparent}");
        }
    }
}

#[tokio::test]
async fn without_an_endpoint_nothing_exports_and_nothing_is_complained_about() {
    let (nats, data, receiver) = (Nats::start().await, temp_dir(), Receiver::start().await);
    let url = receiver.url();
    let exporting_ingest = Service::ingest(NOWHERE, data.path(), &exporting(&url)).await;
    wait::until("threads that export traces and metrics", || async {
        (exporting_ingest.exporters().len() >= 2).then_some(())
    })
    .await;

    let data = temp_dir();
    let ingest = Service::ingest(&nats.url(), data.path(), &[]).await;
    let worker = Service::worker(&nats.url(), &[]).await;
    let delivery = assigned(1);
    ingest.accepts(&delivery).await;
    let js = reader(&nats).await;
    settled(&js, 1).await;
    for service in [&ingest, &worker] {
        assert_eq!(service.exporters(), [""; 0]);
    }
    for service in [ingest, worker] {
        let output = service.stop().await;
        assert_eq!(complaints(&output), [json!(null); 0], "{output}");
    }
    // A reader that exports traces finds the delivery's trace, marked as sampled.
    for stream in [names::EVENTS, names::CHANGES] {
        let stored = bus::messages(&js, stream).await.expect("the stream");
        let traceparents: Vec<_> = stored.iter().map(|m| m.header("traceparent")).collect();
        let [traceparent] = traceparents[..] else { panic!("{stream}: {traceparents:?}") };
        let start = format!("00-{}-", trace_id(delivery.id()));
        assert!(traceparent.starts_with(&start) && traceparent.ends_with("-01"), "{traceparent}");
    }
}

#[tokio::test]
async fn a_graceful_stop_sends_what_waits() {
    let (nats, data, receiver) = (Nats::start().await, temp_dir(), Receiver::start().await);
    let url = receiver.url();
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "600000"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "600000"),
    ];
    let ingest = Service::ingest(&nats.url(), data.path(), &settings).await;
    let worker = Service::worker(&nats.url(), &settings).await;
    let delivery = assigned(1);
    ingest.accepts(&delivery).await;
    settled(&reader(&nats).await, 1).await;
    assert_eq!(receiver.trace_requests(), 0);
    ingest.stop().await;
    let trace = trace_id(delivery.id());
    assert_eq!(names(&receiver.trace(&trace)), [HTTP, "journal", PUBLISH]);
    assert!(receiver.has_metric("coordinator-ingest", "coordinator.deliveries"));
    worker.stop().await;
    let spans = receiver.trace(&trace);
    assert_eq!(names(&spans), [HTTP, "handle assigned", "journal", PROCESS, CHANGE, PUBLISH]);
    assert!(receiver.has_metric("coordinator-worker", "coordinator.events"));
}

#[tokio::test]
async fn a_receiver_that_is_away_is_told_of_once_and_holds_up_nothing() {
    let (nats, data) = (Nats::start().await, temp_dir());
    let settings = exporting("http://127.0.0.1:1");
    let ingest = Service::ingest(&nats.url(), data.path(), &settings).await;
    let worker = Service::worker(&nats.url(), &settings).await;
    ingest.accepts(&assigned(1)).await;
    for service in [&ingest, &worker] {
        service.process.line_with("cannot export traces").await;
    }
    for number in 2..=20 {
        ingest.accepts(&assigned(number)).await;
    }
    settled(&reader(&nats).await, 20).await;
    for service in [ingest, worker] {
        let output = service.stop().await;
        let is_outage = |line: &Value| {
            line["message"].as_str().is_some_and(|text| text.starts_with("cannot export traces"))
        };
        let (outages, others): (Vec<_>, Vec<_>) =
            complaints(&output).into_iter().partition(is_outage);
        assert_eq!(outages.len(), 1, "{outages:#?}");
        assert!(others.len() <= 1, "{others:#?}");
    }
}

#[tokio::test]
async fn what_no_broker_takes_has_a_line_that_says_why() {
    let (nats, data) = (Nats::start_with("max_payload: 50000").await, temp_dir());
    let ingest = Service::ingest(&nats.url(), data.path(), &[("LOG_FORMAT", "json")]).await;
    let delivery = crowd(1, 60_000).delivery("assigned");
    ingest.accepts(&delivery).await;
    ingest.process.line_with("set aside").await;
    let complaints = complaints(&ingest.stop().await);
    let [line] = &complaints[..] else { panic!("{complaints:#?}") };
    assert_eq!(line["gitea.delivery.id"], delivery.id(), "{line}");
    assert_eq!(line["trace_id"], trace_id(delivery.id()), "{line}");
    assert!(line["reason"].as_str().expect("a reason").contains("50000 bytes"), "{line}");
}

/// Sends requests that are refused, each with a log line, on one connection, without waiting for
/// answers.
async fn refused_at_once(address: SocketAddr, count: usize) {
    let head = "POST /webhook/gitea HTTP/1.1\r\nHost: ingest\r\nContent-Length: 0\r\n";
    let requests = format!("{head}\r\n").repeat(count - 1) + head + "Connection: close\r\n\r\n";
    let mut stream = TcpStream::connect(address).await.expect("connect");
    let (mut answers, mut sender) = stream.split();
    let mut read = Vec::new();
    let (sent, _) =
        tokio::join!(sender.write_all(requests.as_bytes()), answers.read_to_end(&mut read));
    sent.expect("send all requests");
    assert_eq!(String::from_utf8_lossy(&read).matches("HTTP/1.1 4").count(), count);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_holds_up_nothing_and_what_it_loses_is_counted() {
    let (data, port, operator_port) = (temp_dir(), free_port(), free_port());
    let process = ingest_unread(Path::new(EXE), NOWHERE, data.path(), [port, operator_port]);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let operator = SocketAddr::from(([127, 0, 0, 1], operator_port));
    let ingest = Service { process, address, operator };
    let health = format!("http://{}/health", ingest.address);
    wait::until("ingest listens", || async { reqwest::get(&health).await.ok() }).await;
    let dropped = || total(ingest.operator, "coordinator_log_dropped_total", "");
    assert_eq!(dropped().await, 0.0);
    wait::until("lines that are dropped", || async {
        tokio::join!(refused_at_once(ingest.address, 2000), refused_at_once(ingest.address, 2000));
        (dropped().await > 0.0).then_some(())
    })
    .await;
    ingest.accepts(&assigned(1)).await;
}

/// Two accepted deliveries, of which the first is sent twice, one forged delivery
/// and one ignored delivery.
struct Told {
    accepted: [Delivery; 2],
    forged: Delivery,
    ignored: Delivery,
    ingest: String,
    worker: String,
}

/// Logs deliveries of each outcome in this format.
async fn told(format: &str) -> Told {
    let (nats, data) = (Nats::start().await, temp_dir());
    let settings = [("LOG_LEVEL", "info"), ("LOG_FORMAT", format)];
    let ingest = Service::ingest(&nats.url(), data.path(), &settings).await;
    let worker = Service::worker(&nats.url(), &settings).await;
    let closed = Issue::new(1, 2).state("closed").delivery("closed");
    let (accepted, forged) = ([assigned(1), closed], forged(3));
    let ignored = assigned(4).with_header("X-Gitea-Event", "push");
    for (delivery, status) in [
        (&accepted[0], 200),
        (&accepted[1], 200),
        (&accepted[0], 200),
        (&forged, 401),
        (&ignored, 200),
    ] {
        assert_eq!(ingest.send(delivery).await.status, status);
    }
    settled(&reader(&nats).await, 2).await;
    let (ingest, worker) = (ingest.stop().await, worker.stop().await);
    Told { accepted, forged, ignored, ingest, worker }
}

/// What every line about an accepted delivery must carry.
fn fields(delivery: &Delivery, action: &str, number: u64) -> [(&'static str, String); 5] {
    [
        ("gitea.delivery.id", delivery.id().to_owned()),
        ("trace_id", trace_id(delivery.id())),
        ("gitea.repository", "acme/r1".into()),
        ("gitea.issue.ref", format!("acme/r1#{number}")),
        ("gitea.action", action.into()),
    ]
}

#[tokio::test]
async fn each_fate_is_one_line_that_can_be_searched_by_its_fields() {
    let Told { accepted: [assigned, closed], forged, ignored, ingest, worker } = told("json").await;
    for (output, delivery, field, expected) in [
        (&ingest, &assigned, "outcome", &["accepted", "duplicate"][..]),
        (&ingest, &closed, "outcome", &["accepted"]),
        (&ingest, &forged, "outcome", &["signature_mismatch"]),
        (&ingest, &ignored, "outcome", &["ignored"]),
        (&worker, &assigned, "verdict", &["changed"]),
        (&worker, &closed, "verdict", &["changed"]),
        (&worker, &forged, "verdict", &[]),
        (&worker, &ignored, "verdict", &[]),
    ] {
        let fates = fates(output, delivery.id());
        let found: Vec<_> = fates.iter().map(|line| line[field].clone()).collect();
        assert_eq!(found, expected, "{fates:#?}");
        for line in &fates {
            assert_eq!(line["gitea.delivery.id"], delivery.id(), "{line}");
            assert_eq!(line["trace_id"], trace_id(delivery.id()), "{line}");
        }
    }
    for (delivery, action, number) in [(&assigned, "assigned", 1), (&closed, "closed", 2)] {
        for line in [fates(&ingest, delivery.id()), fates(&worker, delivery.id())].concat() {
            for (name, value) in fields(delivery, action, number) {
                assert_eq!(line[name], value, "{name} in {line}");
            }
        }
    }
}

#[tokio::test]
async fn lines_for_people_fit_a_terminal() {
    let Told { accepted: [assigned, closed], forged, ingest, worker, .. } = told("text").await;
    for line in ingest.lines().chain(worker.lines()) {
        // All of them fit without being cut, which would end in an ellipsis.
        assert!(line.chars().count() <= 120 && line.is_ascii(), "{line}");
        assert!(!line.contains('\u{1b}'), "{line}");
    }
    let about = |output: &str, id: &str| {
        let lines = output.lines().filter_map(|line| line.strip_suffix(&format!(" {}", &id[..8])));
        lines.map(|line| line.split_once(' ').expect("a time").1.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(
        [about(&ingest, assigned.id()), about(&worker, assigned.id())].concat(),
        [
            "INFO  acme/r1#1 delivery accepted: assigned",
            "INFO  acme/r1#1 delivery accepted: assigned, duplicate",
            "INFO  acme/r1#1 delivery handled: changed, assigned +bot"
        ]
    );
    assert_eq!(about(&worker, closed.id()), ["INFO  acme/r1#2 delivery handled: changed, closed"]);
    assert_eq!(about(&ingest, forged.id()), ["INFO  delivery refused: signature_mismatch"]);
}

#[tokio::test]
async fn no_line_shows_a_payload_a_signature_or_a_secret() {
    const MARKER: &str = "xyzzy-4711";
    const FORMER_SECRET: &str = "f0rm3r-s3cr3t-of-it";
    let (nats, data) = (Nats::start().await, temp_dir());
    let settings = [("LOG_LEVEL", "debug"), ("GITEA_WEBHOOK_SECRET_PREVIOUS", FORMER_SECRET)];
    let ingest = Service::ingest(&nats.url(), data.path(), &settings).await;
    let worker = Service::worker(&nats.url(), &settings).await;
    let marked = |number| {
        let text = format!("The password is {MARKER}.");
        let issue = Issue { title: text.clone(), body: text, ..Issue::new(1, number) };
        issue.assigned(&["bot"])
    };
    let good = marked(1).delivery("assigned");
    let unsigned = marked(2).delivery("assigned").without_header("X-Gitea-Signature");
    let unsigned = unsigned.without_header("X-Hub-Signature-256");
    let mut misfit = marked(3).payload("assigned");
    misfit["issue"]["number"] = json!(MARKER);
    let misfit = Delivery::signed(&misfit, "issue_assign");
    let no_json = Delivery::signed_text(format!("{{\"{MARKER}").into_bytes(), "issues");
    let forged = {
        let delivery = marked(4).delivery("assigned");
        let signature = sign("another", &delivery.body);
        delivery
            .with_header("X-Gitea-Signature", &signature)
            .with_header("X-Hub-Signature-256", &format!("sha256={signature}"))
    };
    let odd = marked(5).delivery("assigned").with_header("X-Gitea-Signature", MARKER);
    let mut signatures = Vec::new();
    for (delivery, status) in [
        (&good, 200),
        (&unsigned, 401),
        (&misfit, 422),
        (&no_json, 422),
        (&forged, 401),
        (&odd, 401),
    ] {
        assert_eq!(ingest.send(delivery).await.status, status, "{delivery:?}");
        signatures.push(sign(SECRET, &delivery.body));
        signatures.extend(delivery.header("X-Gitea-Signature").map(str::to_owned));
    }
    let js = reader(&nats).await;
    publish_garbage(&js, "garbage", &format!("{{\"version\": 1, \"delivery\": \"{MARKER}\"}}"))
        .await;
    settled(&js, 2).await;
    worker.process.line_with("delivery parked as a dead letter").await;

    for service in [ingest, worker] {
        let output = service.stop().await;
        assert!(output.contains(r#""level":"DEBUG""#), "{output}");
        for forbidden in
            [SECRET, FORMER_SECRET, MARKER].into_iter().chain(signatures.iter().map(String::as_str))
        {
            let line = output.lines().find(|line| line.contains(forbidden));
            assert_eq!(line, None, "it shows {forbidden}");
        }
    }
}

#[tokio::test]
async fn metrics_tell_what_came_what_became_of_it_and_how_long_it_took() {
    let (nats, data, receiver) = (Nats::start().await, temp_dir(), Receiver::start().await);
    let (url, js) = (receiver.url(), reader(&nats).await);
    let ingest = Service::ingest(&nats.url(), data.path(), &exporting(&url)).await;
    let worker = Service::worker(&nats.url(), &exporting(&url)).await;
    let opened = assigned(1);
    let closed = Issue::new(1, 2).state("closed").delivery("closed");
    let ignored = assigned(3).with_header("X-Gitea-Event", "push");
    for delivery in [&opened, &opened, &closed, &ignored, &forged(4)] {
        ingest.send(delivery).await;
    }
    publish_garbage(&js, "garbage", "no event").await;
    settled(&js, 3).await;
    // From here on no change can be published, so this event stays with the worker.
    refuse_changes(&js, true).await;
    ingest.accepts(&assigned(5)).await;

    for (name, labels, expected) in [
        ("coordinator_deliveries_total", r#"outcome="accepted""#, 3.0),
        ("coordinator_deliveries_total", r#"outcome="duplicate""#, 1.0),
        ("coordinator_deliveries_total", r#"outcome="ignored""#, 1.0),
        ("coordinator_deliveries_total", r#"outcome="signature_mismatch""#, 1.0),
        ("coordinator_deliveries_total", "", 6.0),
        ("coordinator_signatures_total", r#"secret="current""#, 5.0),
        (
            "http_server_request_duration_seconds_count",
            r#"{http_request_method="POST",http_response_status_code="200",http_route="/webhook/gitea"}"#,
            5.0,
        ),
        ("http_server_request_duration_seconds_count", r#"status_code="401""#, 1.0),
        (
            "messaging_client_sent_messages_total",
            r#"duplicate="false",messaging_system="nats""#,
            3.0,
        ),
        ("coordinator_publish_duration_seconds_count", "", 3.0),
    ] {
        ingest.counts(name, labels, expected).await;
    }
    for name in ["coordinator_journal_depth", "coordinator_journal_oldest_unpublished_age_seconds"]
    {
        wait::until_equal(name, Some(0.0), || ingest.value(name)).await;
    }
    for (name, labels, expected) in [
        ("coordinator_events_total", r#"{action="assigned",verdict="changed"}"#, 1.0),
        ("coordinator_events_total", r#"{action="closed",verdict="changed"}"#, 1.0),
        ("coordinator_events_total", r#"verdict="undecodable""#, 1.0),
        ("coordinator_changes_total", r#"kind="assigned""#, 1.0),
        ("coordinator_changes_total", r#"kind="closed""#, 1.0),
        ("coordinator_dead_letters_total", r#"reason="undecodable""#, 1.0),
        ("coordinator_delivery_duration_seconds_count", "", 2.0),
    ] {
        worker.counts(name, labels, expected).await;
    }
    wait::until("a second attempt", || async {
        let again = total(worker.operator, "coordinator_retries_total", "").await;
        (again >= 2.0).then_some(())
    })
    .await;
    worker.counts("messaging_process_duration_seconds_count", "", 3.0).await;
    for (address, name) in [
        (ingest.operator, "http_server_request_duration_seconds"),
        (ingest.operator, "coordinator_publish_duration_seconds"),
        (worker.operator, "messaging_process_duration_seconds"),
        (worker.operator, "coordinator_delivery_duration_seconds"),
    ] {
        let sum = total(address, &format!("{name}_sum"), "").await;
        assert!(sum > 0.0 && sum < 60.0, "{name}: {sum} s");
    }
    wait::until_equal("the lag", Some(1.0), || worker.value("coordinator_lag")).await;

    for (service, metric) in [
        ("coordinator-ingest", "coordinator.deliveries"),
        ("coordinator-ingest", "coordinator.journal.depth"),
        ("coordinator-worker", "coordinator.events"),
        ("coordinator-worker", "coordinator.lag"),
    ] {
        wait::until(metric, || async { receiver.has_metric(service, metric).then_some(()) }).await;
    }
}

#[tokio::test]
async fn a_publish_that_a_stop_cuts_short_is_a_failed_span() {
    let (mut nats, data, receiver) = (Nats::start().await, temp_dir(), Receiver::start().await);
    let url = receiver.url();
    let settings = [&exporting(&url)[..], &[("DRAIN_TIMEOUT_SECS", "1")]].concat();
    let ingest = Service::ingest(&nats.url(), data.path(), &settings).await;
    ingest.accepts(&assigned(1)).await;
    ingest.counts("messaging_client_sent_messages_total", "", 1.0).await;
    signal(nats.pid(), "STOP");
    let delivery = assigned(2);
    ingest.accepts(&delivery).await;
    ingest.stop().await;
    nats.restart().await;
    let ingest = Service::ingest(&nats.url(), data.path(), &exporting(&url)).await;
    ingest.counts("messaging_client_sent_messages_total", "", 2.0).await;
    ingest.stop().await;
    let spans = receiver.trace(&trace_id(delivery.id()));
    let http = one(&spans, HTTP);
    let publish = named(&spans, PUBLISH);
    assert_eq!(
        publish.iter().map(|span| end(span)).collect::<Vec<_>>(),
        [(Status::Error, json!("cut_short")), (Status::Unset, Value::Null)]
    );
    for span in publish {
        assert_eq!(span.parent, http.id);
    }
}
