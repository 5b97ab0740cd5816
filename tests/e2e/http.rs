//! Ingest's HTTP contract and its limits, as a sender meets them.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    io::ErrorKind,
    time::{Duration, Instant},
};

use async_nats::jetstream;
use contract::{event, names};
use futures::future::join_all;
use reqwest::{
    Method,
    header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tests::{
    bus, check,
    gitea::{Delivery, Issue, SECRET, recorded, recorded_one, sign},
    load::{Load, stories},
    system::{Answer, System, settled},
    wait,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};
use uuid::Uuid;

const RECORDINGS: [&str; 2] = ["gitea-1.25", "gitea-1.27"];
const FORMER_SECRET: &str = "f0rm3r";
/// Distinguishes a timeout of one second from the default timeouts of ten.
const ABOUT_A_SECOND: std::ops::Range<Duration> = Duration::from_secs(1)..Duration::from_secs(9);
const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: ingest\r\n";

/// A connection on which a test sends raw bytes.
struct Raw(BufReader<TcpStream>);

impl Raw {
    async fn open(system: &System) -> Self {
        let stream = TcpStream::connect(system.ingest.address).await.expect("a connection");
        Self(BufReader::new(stream))
    }

    async fn opened_with(system: &System, bytes: impl AsRef<[u8]>) -> Self {
        let mut raw = Self::open(system).await;
        raw.send(bytes).await;
        raw
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        wait::within("bytes to be sent", self.0.write_all(bytes.as_ref())).await.expect("sent");
    }

    async fn answer(&mut self) -> Answer {
        wait::within("an answer", async {
            let status_line = self.line().await;
            let status = status_line.split(' ').nth(1).expect("a status");
            let status = status.parse().expect("a number");
            let mut headers = HeaderMap::new();
            while let Some((name, value)) = self.line().await.split_once(": ") {
                let name: HeaderName = name.parse().expect("a name");
                headers.append(name, HeaderValue::from_str(value).expect("a value"));
            }
            let length = headers["content-length"].to_str().expect("a text");
            let mut body = vec![0; length.parse().expect("a number")];
            self.0.read_exact(&mut body).await.expect("a body");
            let text = String::from_utf8(body).expect("UTF-8");
            let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
            Answer { status, headers, body }
        })
        .await
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).await.expect("a line");
        line.trim_end().to_owned()
    }

    /// Reads until the other side closes.
    async fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        // A reset is an end, too.
        let _ = wait::within("the connection's end", self.0.read_to_end(&mut bytes)).await;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Sends a byte every now and then until the other side closes. Returns its answer.
    async fn trickle(&self) -> String {
        let stream = self.0.get_ref();
        let received = RefCell::new(Vec::new());
        wait::until("the other side to lose patience", || async {
            let _ = stream.try_write(b"x");
            let mut bytes = [0; 1024];
            match stream.try_read(&mut bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                Ok(0) | Err(_) => Some(()),
                Ok(count) => {
                    received.borrow_mut().extend_from_slice(&bytes[..count]);
                    None
                }
            }
        })
        .await;
        String::from_utf8_lossy(&received.take()).into_owned()
    }

    fn is_open(&self) -> bool {
        let read = self.0.get_ref().try_read(&mut [0]);
        read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }
}

/// The head of a request that posts a delivery, with one more line.
fn head(delivery: &Delivery, line: &str) -> String {
    let headers: String =
        delivery.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("POST /webhook/gitea HTTP/1.1\r\nHost: ingest\r\n{headers}{line}\r\n\r\n")
}

fn head_with_length(delivery: &Delivery) -> String {
    head(delivery, &format!("Content-Length: {}", delivery.body.len()))
}

/// Head and body, without a length, in chunks of this size, and `end`.
fn chunked(delivery: &Delivery, size: usize, end: &str) -> Vec<u8> {
    let mut request = head(delivery, "Transfer-Encoding: chunked").into_bytes();
    for chunk in delivery.body.chunks(size) {
        request.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        request.extend(chunk);
        request.extend(b"\r\n");
    }
    request.extend(end.as_bytes());
    request
}

/// A good delivery with a body of exactly this length.
fn of_length(number: u64, bytes: usize) -> Delivery {
    let mut body = Issue::new(1, number).payload("opened").to_string().into_bytes();
    assert!(body.len() <= bytes, "{bytes} are too few");
    body.resize(bytes, b' ');
    Delivery::signed_text(body, "issues")
}

fn opened(number: u64) -> Delivery {
    Issue::new(1, number).delivery("opened")
}

fn with_repeated(mut delivery: Delivery, name: &str) -> Delivery {
    let value = delivery.header(name).expect(name).to_owned();
    delivery.headers.push((name.to_owned(), value));
    delivery
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).map_or("", |value| value.to_str().expect("a text"))
}

fn trace_id(delivery_id: &str) -> String {
    delivery_id.replace('-', "")
}

/// A 200 must have exactly this body: status, ids, and the fields of `more`.
fn assert_receipt(answer: &Answer, delivery_id: &str, status: &str, more: Value) {
    let trace_id = trace_id(delivery_id);
    let mut receipt = json!({"status": status, "delivery_id": delivery_id, "trace_id": trace_id});
    let more = more.as_object().expect("an object").clone();
    receipt.as_object_mut().expect("an object").extend(more);
    assert_eq!((answer.status, &answer.body), (200, &receipt));
    assert_eq!(header(answer, "x-trace-id"), trace_id);
    assert_eq!(header(answer, "content-type"), "application/json");
}

/// What must hold for every error: JSON, a stable code, a text for people, no secret.
fn assert_error(what: &str, answer: &Answer, status: u16, code: &str) {
    let told = (answer.status, answer.body["error"].as_str());
    assert_eq!(told, (status, Some(code)), "{what}: {answer:?}");
    assert_eq!(header(answer, "content-type"), "application/json", "{what}");
    let body = answer.body.as_object().expect("an object");
    let names: BTreeSet<_> = body.keys().map(String::as_str).collect();
    let mut expected = BTreeSet::from(["error", "message"]);
    if status == 422 {
        expected.insert("field");
    }
    assert_eq!(names, expected, "{what}");
    assert!(body.values().all(|v| v.as_str().is_some_and(|text| !text.is_empty())), "{what}");
    let all = format!("{answer:?}");
    assert!(!all.contains(SECRET) && !all.contains(FORMER_SECRET), "{what}: {all}");
}

/// Sends a delivery that must be refused.
async fn refused(
    what: &str,
    system: &System,
    delivery: &Delivery,
    status: u16,
    code: &str,
) -> Answer {
    let answer = system.send(delivery).await;
    assert_error(what, &answer, status, code);
    let right = sign(SECRET, &delivery.body);
    assert!(!format!("{answer:?}").contains(&right), "{what}: tells the right signature");
    if let Some(id) = delivery.header("X-Gitea-Delivery") {
        assert_eq!(header(&answer, "x-trace-id"), trace_id(id), "{what}");
    }
    answer
}

async fn health(system: &System) -> (u16, Value) {
    let (status, body) = system.ingest.get("/health").await;
    (status, serde_json::from_str(&body).expect("JSON"))
}

async fn told(system: &System) -> (u16, String) {
    let (status, body) = health(system).await;
    (status, body["status"].as_str().expect("status").to_owned())
}

/// These deliveries, and no others, must have become events.
async fn assert_events(system: &System, accepted: &[&Delivery]) {
    wait::until_equal("an empty journal", json!(0), || async {
        health(system).await.1["journal"]["depth"].clone()
    })
    .await;
    system.settled(accepted.len() as u64).await;
    let found: BTreeSet<_> =
        bus::events(&system.js).await.into_iter().map(|event| event.delivery.id).collect();
    let expected: BTreeSet<_> = accepted.iter().map(|delivery| delivery.id().to_owned()).collect();
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_is_answered_with_its_receipt_and_kept_once_under_its_id() {
    let system = System::start().await;
    let first = recorded_one("gitea-1.27", "0002").delivery;
    let answer = system.send(&first).await;
    assert_receipt(&answer, first.id(), "accepted", json!({}));
    let again = system.send(&first).await;
    assert_receipt(&again, first.id(), "accepted", json!({"duplicate": true}));

    let other = opened(9).with_header("X-Gitea-Delivery", first.id());
    let answer = refused("another body", &system, &other, 422, "invalid_payload").await;
    assert_eq!(answer.body["field"], "X-Gitea-Delivery");

    system.settled(1).await;
    let late = system.send(&first).await;
    assert_receipt(&late, first.id(), "accepted", json!({"duplicate": true}));
    assert_events(&system, &[&first]).await;
    assert_eq!(bus::events(&system.js).await[0].issue.number, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_without_a_uuid_gets_one_and_names_of_other_forges_are_understood() {
    let system = System::start().await;
    let nameless = |number| opened(number).without_header("X-Gitea-Delivery");
    for delivery in [
        nameless(1),
        nameless(2).with_header("X-Gitea-Delivery", "7"),
        nameless(3).with_header("X-Gitea-Delivery", "00000000-0000-0000-0000-000000000000"),
        nameless(4).with_header("X-Gitea-Delivery", &"a".repeat(36)),
        nameless(5).with_header("X-GitHub-Delivery", "3c2ab24d-0c5a-4b0c-a69a-0f9c6b9e6f33"),
    ] {
        let answer = system.send(&delivery).await;
        let id = answer.body["delivery_id"].as_str().expect("an id");
        let sent = delivery.header("X-Gitea-Delivery").or(delivery.header("X-GitHub-Delivery"));
        assert_ne!(Some(id), sent);
        assert_eq!(Uuid::try_parse(id).expect("a UUID").get_version_num(), 4);
        assert_receipt(&answer, id, "accepted", json!({}));
    }
    for (number, forge) in [(6, "Forgejo"), (7, "Gogs")] {
        let id = Uuid::new_v4().to_string();
        let delivery = nameless(number)
            .without_header("X-Gitea-Event")
            .with_header(&format!("X-{forge}-Event"), "issues")
            .with_header(&format!("X-{forge}-Delivery"), &id);
        assert_receipt(&system.send(&delivery).await, &id, "accepted", json!({}));
    }
    system.settled(7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_signed_but_not_for_us_is_ignored_with_the_reason() {
    let system = System::start().await;
    let mut pull_request = Issue::new(1, 1).payload("opened");
    pull_request["issue"]["pull_request"] = json!({"merged": false, "merged_at": null});
    let pull_request = Delivery::signed(&pull_request, "issues");
    let mut rows = vec![
        (pull_request, "pull_request"),
        (opened(2).with_header("X-Gitea-Event", "pull_request"), "not_an_issue_event"),
        (opened(3).with_header("X-Gitea-Event", "one-of-tomorrow"), "not_an_issue_event"),
    ];
    for recording in RECORDINGS {
        for name in ["0019-issue_comment", "0031-push", "0038-push"] {
            rows.push((recorded_one(recording, name).delivery, "not_an_issue_event"));
        }
    }
    for (delivery, reason) in &rows {
        let answer = system.send(delivery).await;
        assert_receipt(&answer, delivery.id(), "ignored", json!({"reason": reason}));
    }
    let good = opened(4);
    system.send_accepted(&good).await;
    assert_events(&system, &[&good]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_that_is_not_right_gets_401() {
    const GITEA: &str = "X-Gitea-Signature";
    const HUB: &str = "X-Hub-Signature-256";
    let system = System::start().await;
    let good = opened(1);
    let signature = good.header(GITEA).expect(GITEA).to_owned();
    let bare = good.clone().without_header(GITEA).without_header(HUB);
    let gitea = |value: &str| good.clone().with_header(GITEA, value);
    let hub = |value: &str| bare.clone().with_header(HUB, value);
    let changed = |from: &Delivery| {
        let mut delivery = from.clone();
        let last = delivery.body.last_mut().expect("a body");
        *last = if *last == b'}' { b' ' } else { b'}' };
        delivery
    };
    let bad_json = Delivery { body: b"{\"action\": ".to_vec(), ..good.clone() };
    let push = changed(&recorded_one("gitea-1.25", "0031-push").delivery);
    let form = recorded_one("gitea-1.25", "0051").delivery;
    let over_the_form = sign(SECRET, &form.body);
    let mut rows = vec![
        ("none", bare.clone(), "signature_missing"),
        ("only SHA-1", bare.clone().with_header("X-Hub-Signature", "sha1=0"), "signature_missing"),
        ("empty", gitea(""), "signature_empty"),
        ("hub empty", hub("sha256="), "signature_empty"),
        ("short", gitea(&signature[..62]), "signature_malformed"),
        ("odd", gitea(&signature[..63]), "signature_malformed"),
        ("long", gitea(&format!("{signature}00")), "signature_malformed"),
        ("no hex", gitea(&"zz".repeat(32)), "signature_malformed"),
        ("prefixed", gitea(&format!("sha256={signature}")), "signature_malformed"),
        ("hub without its prefix", hub(&signature), "signature_malformed"),
        ("hub of another digest", hub(&format!("sha1={signature}")), "signature_malformed"),
        ("repeated", with_repeated(good.clone(), GITEA), "signature_repeated"),
        (
            "hub repeated",
            with_repeated(hub(&format!("sha256={signature}")), HUB),
            "signature_repeated",
        ),
        ("wrong", gitea(&"0".repeat(64)), "signature_mismatch"),
        ("hub wrong", hub(&format!("sha256={}", "0".repeat(64))), "signature_mismatch"),
        ("another secret's", gitea(&sign("other", &good.body)), "signature_mismatch"),
        ("no secret's", gitea(&sign("", &good.body)), "signature_mismatch"),
        ("a changed body", changed(&good), "signature_mismatch"),
        ("bad JSON", bad_json, "signature_mismatch"),
        ("a push", push, "signature_mismatch"),
        ("a changed form", changed(&form), "signature_mismatch"),
        ("of the form's text", form.with_header(GITEA, &over_the_form), "signature_mismatch"),
    ];
    for recording in RECORDINGS {
        let unsigned = recorded(recording).into_iter().filter(|r| r.path == "/nosecret");
        let before = rows.len();
        rows.extend(unsigned.map(|r| ("a hook without secret", r.delivery, "signature_empty")));
        assert_eq!(rows.len(), before + 2, "{recording}");
    }
    for (what, delivery, code) in &rows {
        refused(what, &system, delivery, 401, code).await;
    }
    let counted = system.ingest.total("coordinator_deliveries_total", "outcome=\"signature_").await;
    assert_eq!(counted, rows.len() as f64);
    system.send_accepted(&good).await;
    assert_events(&system, &[&good]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_signature_is_accepted_in_either_header_and_either_case() {
    const GITEA: &str = "X-Gitea-Signature";
    const HUB: &str = "X-Hub-Signature-256";
    let system = System::start().await;
    let upper = |text: &str| text.to_uppercase().replace("SHA256=", "sha256=");
    let re_cased = |delivery: Delivery, name: &str| {
        let value = upper(delivery.header(name).expect(name));
        assert_ne!(delivery.header(name), Some(value.as_str()));
        delivery.with_header(name, &value)
    };
    let accepted = [
        opened(1),
        re_cased(opened(2), GITEA),
        opened(3).without_header(HUB),
        opened(4).without_header(GITEA),
        re_cased(opened(5).without_header(GITEA), HUB),
        opened(6).with_header(HUB, "sha256=nonsense"),
        opened(7).with_header("Content-Type", "Application/JSON; charset=utf-8"),
    ];
    for delivery in &accepted {
        system.send_accepted(delivery).await;
    }
    assert_events(&system, &accepted.each_ref()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_payload_that_is_not_valid_gets_422_with_the_name_of_the_field() {
    let system = System::start().await;
    let payload = || Issue::new(1, 1).assigned(&["bot", "tom"]).payload("assigned");
    let with = |pointer: &str, value: Value| {
        let mut payload = payload();
        *payload.pointer_mut(pointer).expect(pointer) = value;
        payload.to_string().into_bytes()
    };
    let without = |parent: &str, field: &str| {
        let mut payload = payload();
        let object = payload.pointer_mut(parent).and_then(Value::as_object_mut).expect(parent);
        object.remove(field).expect(field);
        payload.to_string().into_bytes()
    };
    // What Gitea sends when it could not convert its own issue.
    let zero = json!({
        "id": 0, "number": 0, "title": "", "body": "", "state": "", "user": null, "labels": null,
        "assignees": null, "updated_at": "0001-01-01T00:00:00Z", "pull_request": null
    });
    for (body, field) in [
        (b"".to_vec(), "payload"),
        (b"no JSON".to_vec(), "payload"),
        (b"{\"action\":".to_vec(), "payload"),
        (b"[]".to_vec(), "payload"),
        (b"{\"action\":\"\xff\"}".to_vec(), "payload"),
        ("[".repeat(3000).into_bytes(), "payload"),
        (b"{}".to_vec(), "issue"),
        (without("", "issue"), "issue"),
        (with("/issue", json!(null)), "issue"),
        (with("/issue", zero), "issue.id"),
        (with("/issue/id", json!(0)), "issue.id"),
        (with("/issue/number", json!(0)), "issue.number"),
        (with("/issue/number", json!("1")), "issue.number"),
        (with("/issue/state", json!("s3cr3t")), "issue.state"),
        (with("/issue/updated_at", json!("s3cr3t")), "issue.updated_at"),
        (with("/issue/assignees/1/login", json!(null)), "issue.assignees[1].login"),
        (with("/issue/assignees/1", json!("s3cr3t")), "issue.assignees[1]"),
        (with("/repository", json!(null)), "repository"),
        (without("/repository", "owner"), "repository.owner"),
        (with("/repository/name", json!("")), "repository.name"),
        (with("/repository/name", json!("x".repeat(256))), "repository.name"),
        (without("", "action"), "action"),
    ] {
        let delivery = Delivery::signed_text(body, "issue_assign");
        let answer = refused(field, &system, &delivery, 422, "invalid_payload").await;
        assert_eq!(answer.body["field"], field);
        assert!(answer.body["message"].as_str().is_some_and(|text| text.starts_with(field)));
    }
    let github = opened(1).without_header("X-Gitea-Event");
    assert_eq!(github.header("X-GitHub-Event"), Some("issues"));
    let answer = refused("only GitHub's", &system, &github, 422, "invalid_payload").await;
    assert_eq!(answer.body["field"], "X-Gitea-Event");
    let no_payload = Delivery::signed_text(Vec::new(), "issues")
        .with_header("Content-Type", "application/x-www-form-urlencoded");
    let no_payload = Delivery { body: b"other=1".to_vec(), ..no_payload };
    let answer = refused("a form without it", &system, &no_payload, 422, "invalid_payload").await;
    assert_eq!(answer.body["field"], "payload");

    let good = opened(1);
    system.send_accepted(&good).await;
    assert_events(&system, &[&good]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_content_types_paths_and_methods_get_415_404_and_405() {
    let system = System::start().await;
    let good = opened(1);
    let other = |value: &str| good.clone().with_header("Content-Type", value);
    for delivery in [
        other("text/plain"),
        other("application/jsonx"),
        other("multipart/form-data; boundary=x"),
        other(""),
        good.clone().without_header("Content-Type"),
    ] {
        let what = format!("{:?}", delivery.header("Content-Type"));
        refused(&what, &system, &delivery, 415, "unsupported_content_type").await;
    }
    let http = reqwest::Client::new();
    for (method, path, status, code) in [
        (Method::GET, "/", 404, "not_found"),
        (Method::POST, "/", 404, "not_found"),
        (Method::POST, "/webhook", 404, "not_found"),
        (Method::POST, "/webhook/gitea/", 404, "not_found"),
        (Method::POST, "/webhook/gitea/7", 404, "not_found"),
        (Method::GET, "/health/live", 404, "not_found"),
        (Method::GET, "/health/ready", 404, "not_found"),
        (Method::GET, "/metrics", 404, "not_found"),
        (Method::POST, "/metrics", 404, "not_found"),
        (Method::GET, "/webhook/gitea", 405, "method_not_allowed"),
        (Method::PUT, "/webhook/gitea", 405, "method_not_allowed"),
        (Method::DELETE, "/webhook/gitea?x=1", 405, "method_not_allowed"),
        (Method::OPTIONS, "/webhook/gitea", 405, "method_not_allowed"),
    ] {
        let what = format!("{method} {path}");
        let mut request = http.request(method, format!("http://{}{path}", system.ingest.address));
        // A redirect on the way turns a good delivery into a GET with all its headers.
        for (name, value) in &good.headers {
            request = request.header(name, value);
        }
        let response = request.send().await.expect("an answer");
        let (status_got, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.json().await.expect("JSON");
        let answer = Answer { status: status_got, headers, body };
        assert_error(&what, &answer, status, code);
        let message = answer.body["message"].as_str().expect("a text");
        assert!(message.contains("posted to /webhook/gitea"), "{message}");
        assert!(status == 405 || message.contains("GET /health"), "{message}");
        let allow = answer.headers.get(ALLOW).map(|value| value.to_str().expect("a text"));
        assert_eq!(allow, (status == 405).then_some("POST"), "{what}");
    }
    system.send_accepted(&good).await;
    assert_events(&system, &[&good]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_up_to_the_limit_and_in_time_is_accepted_and_no_other() {
    const LIMIT: usize = 4096;
    let flags = ["--max-body-bytes", "4096", "--body-timeout-secs", "1"];
    let system = System::start_with(&flags, &[]).await;
    let accepted = [of_length(1, LIMIT), of_length(2, LIMIT)];
    let (whole, more) = (of_length(3, LIMIT), of_length(4, LIMIT + 1));
    let all = |delivery: &Delivery| {
        [head_with_length(delivery).as_bytes(), delivery.body.as_slice()].concat()
    };
    let half = all(&whole);
    let half = half[..half.len() - LIMIT / 2].to_vec();
    let rows = [
        ("the limit", all(&accepted[0]), 200, ""),
        ("the limit in chunks", chunked(&accepted[1], 1000, "0\r\n\r\n"), 200, ""),
        ("one byte more", all(&more), 413, "body_too_large"),
        ("one byte more, only claimed", head_with_length(&more).into(), 413, "body_too_large"),
        (
            "much more, only claimed",
            head(&whole, "Content-Length: 9999999999").into(),
            413,
            "body_too_large",
        ),
        ("one byte more in chunks", chunked(&more, 1000, ""), 413, "body_too_large"),
        ("no body", head_with_length(&whole).into(), 408, "body_timeout"),
        ("half a body", half, 408, "body_timeout"),
        ("a chunk that is none", chunked(&whole, 1000, "zz\r\n"), 400, "body_broken"),
        ("chunks without an end", chunked(&whole, 1000, ""), 408, "body_timeout"),
    ];
    let system = &system;
    join_all(rows.iter().map(|(what, request, status, code)| async move {
        let started = Instant::now();
        let mut raw = Raw::opened_with(system, request).await;
        let answer = raw.answer().await;
        if *status == 200 {
            assert_eq!(
                (answer.status, &answer.body["status"]),
                (200, &json!("accepted")),
                "{what}"
            );
            return;
        }
        assert_error(what, &answer, *status, code);
        assert_eq!(ABOUT_A_SECOND.contains(&started.elapsed()), *status == 408, "{what}");
        assert_eq!(raw.rest().await, "", "{what}");
    }))
    .await;

    let started = Instant::now();
    let raw = Raw::opened_with(system, head_with_length(&whole)).await;
    let answer = raw.trickle().await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(ABOUT_A_SECOND.contains(&started.elapsed()), "{:?}", started.elapsed());
    assert_events(system, &accepted.each_ref()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_says_the_same_as_the_json_of_another_hook() {
    let system = System::start().await;
    let mut sent = 0;
    for recording in RECORDINGS {
        for (form, json, action) in [("0051", "0053", "opened"), ("0054", "0056", "assigned")] {
            let form = recorded_one(recording, form);
            let json = recorded_one(recording, json);
            assert_eq!((form.path.as_str(), json.path.as_str()), ("/form", "/org"));
            for delivery in [&form.delivery, &json.delivery] {
                let answer = system.send(delivery).await;
                assert_receipt(&answer, delivery.id(), "accepted", json!({}));
            }
            sent += 2;
            system.settled(sent).await;
            let events = bus::events(&system.js).await;
            let of = |delivery: &Delivery| {
                let event = events.iter().find(|event| event.delivery.id == delivery.id());
                event.expect("its event").clone()
            };
            let (of_form, of_json) = (of(&form.delivery), of(&json.delivery));
            assert_eq!(of_form.action.as_str(), action);
            assert_eq!(of_form.delivery.body_sha256, of_json.delivery.body_sha256);
            let delivery: event::Delivery = of_form.delivery.clone();
            assert_eq!(of_form, event::IssueEvent { delivery, ..of_json });
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn during_a_rotation_both_secrets_are_accepted_and_counted_apart() {
    let flags = ["--gitea-webhook-secret-previous", FORMER_SECRET];
    let system = System::start_with(&flags, &[]).await;
    let signed_with = |delivery: Delivery, secret: &str| {
        let signature = sign(secret, &delivery.body);
        delivery
            .with_header("X-Gitea-Signature", &signature)
            .with_header("X-Hub-Signature-256", &format!("sha256={signature}"))
    };
    let accepted = [
        opened(1),
        signed_with(opened(2), FORMER_SECRET),
        opened(3),
        signed_with(opened(4), FORMER_SECRET),
        opened(5),
    ];
    for delivery in &accepted {
        system.send_accepted(delivery).await;
    }
    let older = signed_with(opened(6), "0ld3r");
    refused("an older one", &system, &older, 401, "signature_mismatch").await;
    let of = |secret: &str| format!("coordinator_signatures_total{{secret=\"{secret}\"}}");
    assert_eq!(system.ingest.metric(&of("current")).await, Some(3.0));
    assert_eq!(system.ingest.metric(&of("previous")).await, Some(2.0));
    assert_events(&system, &accepted.each_ref()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_too_large_for_the_broker_is_kept_and_its_event_cut_and_flagged() {
    let system = System::start().await;
    let logins = ["bot", "tom", "li-wei"];
    let mut issue = Issue::new(1, 1).assigned(&logins);
    issue.body = "Grüße: \"0123456789\"\n".repeat(70_000);
    let large = issue.delivery("assigned");
    assert!(large.body.len() > 1_500_000);
    let answer = system.send(&large).await;
    assert_receipt(&answer, large.id(), "accepted", json!({}));
    system.settled(1).await;
    system.send_accepted(&opened(2)).await;
    system.settled(2).await;

    let events = bus::events(&system.js).await;
    let (cut, whole) = (&events[0], &events[1]);
    assert_eq!((cut.delivery.id.as_str(), cut.cut, whole.cut), (large.id(), true, false));
    assert_eq!(cut.issue.assignee_logins(), logins);
    assert_eq!((&cut.issue.title, &whole.issue.body), (&issue.title, &Issue::new(1, 2).body));
    assert!(issue.body.starts_with(&cut.issue.body));
    assert_eq!(cut.delivery.body_sha256, hex::encode(Sha256::digest(&large.body)));
    let stored = bus::messages(&system.js, names::EVENTS).await.expect("the events");
    let bytes = stored[0].payload.len();
    assert!((800_000..1_048_576).contains(&bytes), "{bytes}");
    let changes = bus::changes(&system.js).await;
    assert_eq!((changes.len(), changes[0].cut, changes[0].added.len()), (1, true, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_does_not_come_in_time_ends_the_connection() {
    let system = System::start_with(&["--header-timeout-secs", "1"], &[]).await;
    let half = "POST /webhook/gitea HTTP/1.1\r\nHost: ingest\r\nX-Slow: ";
    let request = format!("{HEALTH}\r\n");
    join_all([("nothing", ""), ("half a head", half), ("a request, and rest", &request)].map(
        |(what, bytes)| {
            let system = &system;
            async move {
                let started = Instant::now();
                let mut raw = Raw::opened_with(system, bytes).await;
                let said = raw.rest().await;
                assert!(ABOUT_A_SECOND.contains(&started.elapsed()), "{what}: {said}");
                assert_eq!(
                    said.contains("\"live\":true"),
                    what.contains("request"),
                    "{what}: {said}"
                );
            }
        },
    ))
    .await;
    let started = Instant::now();
    let raw = Raw::opened_with(&system, half).await;
    raw.trickle().await;
    assert!(ABOUT_A_SECOND.contains(&started.elapsed()), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_large_or_no_http_ends_the_connection() {
    let system = System::start().await;
    let long = |bytes| format!("{HEALTH}X-Long: {}\r\n\r\n", "x".repeat(bytes));
    let mut raw = Raw::opened_with(&system, long(12 * 1024)).await;
    assert_eq!(raw.answer().await.status, 200);
    let many: String = (0..1000).map(|n| format!("X-{n}: 1\r\n")).collect();
    for (what, head, status) in [
        ("one long header", long(64 * 1024), "431"),
        ("a head without an end", "x".repeat(64 * 1024), "431"),
        ("many headers", format!("{HEALTH}{many}\r\n"), "431"),
        ("no HTTP", "\u{16}\u{3}\u{1}\r\n\r\n".to_owned(), "400"),
    ] {
        let mut raw = Raw::open(&system).await;
        // The connection may be closed before all is written, and a reset may lose the answer.
        let _ = wait::within("bytes to be sent", raw.0.write_all(head.as_bytes())).await;
        let said = raw.rest().await;
        let right = said.is_empty() || said.starts_with(&format!("HTTP/1.1 {status} "));
        assert!(right, "{what}: {said}");
    }
    system.send_accepted(&opened(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_connections_than_the_limit_are_served_one_after_the_other() {
    let flags = ["--max-connections", "2", "--max-connections-per-address", "0"];
    let system = System::start_with(&flags, &[]).await;
    let started = Instant::now();
    let mut first = Vec::new();
    for _ in 0..2 {
        let mut raw = Raw::opened_with(&system, format!("{HEALTH}\r\n")).await;
        assert_eq!(raw.answer().await.body["live"], true);
        first.push(raw);
    }
    // The first two connections are idle, so they go at once.
    let mut rested = Vec::new();
    for number in 1..=20 {
        let delivery = opened(number);
        let request = [head_with_length(&delivery).as_bytes(), &delivery.body].concat();
        let mut raw = Raw::opened_with(&system, request).await;
        assert_receipt(&raw.answer().await, delivery.id(), "accepted", json!({}));
        rested.push(raw);
    }
    assert!(started.elapsed() < ABOUT_A_SECOND.end, "{:?}", started.elapsed());
    for raw in first.iter_mut().chain(&mut rested[..18]) {
        assert_eq!(raw.rest().await, "");
    }
    assert!(rested[18..].iter().all(Raw::is_open));
    system.settled(20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn senders_that_are_slow_or_idle_cost_the_others_nothing() {
    let flags = ["--max-body-bytes", "65536", "--max-in-flight-bytes", "65536"];
    let system = System::start_with(&flags, &[]).await;
    let started = Instant::now();
    let slow = of_length(1, 60_000);
    let part_of_body = [head_with_length(&slow).as_bytes(), &slow.body[..1000]].concat();
    let mut held = Vec::new();
    for bytes in [b"".as_slice(), b"POST /webhook/gitea HTT", &part_of_body] {
        for _ in 0..10 {
            held.push(Raw::opened_with(&system, bytes).await);
        }
    }
    let sent = Load::start(&[system.ingest.address], 5, stories(2, 10, 5)).finish().await;
    assert_eq!((sent.accepted.len(), sent.unanswered.len()), (50, 0));
    assert!(started.elapsed() < ABOUT_A_SECOND.end, "{:?}", started.elapsed());
    assert!(held.iter().all(Raw::is_open), "they were to be there all the while");
    system.settled(50).await;
    check::kept(&system.js, &sent.accepted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_beyond_the_memory_for_them_get_503_until_there_is_room() {
    let flags = [
        "--max-body-bytes",
        "65536",
        "--max-in-flight-bytes",
        "131072",
        "--body-timeout-secs",
        "60",
    ];
    let system = System::start_with(&flags, &[]).await;
    let mut under_way = Vec::new();
    for number in [1, 2] {
        let delivery = of_length(number, 65_536);
        let mut raw = Raw::opened_with(&system, head_with_length(&delivery)).await;
        raw.send(&delivery.body[..60_000]).await;
        under_way.push((raw, delivery));
    }
    let answer = wait::until("the memory to be full", || async {
        let answer = system.send(&of_length(3, 20_000)).await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_error("beyond", &answer, 503, "overloaded");
    assert_eq!(answer.headers.get(RETRY_AFTER), Some(&HeaderValue::from_static("5")));
    assert_eq!(told(&system).await.0, 200);
    // A small delivery still fits beside them.
    system.send_accepted(&opened(4)).await;

    for (raw, delivery) in &mut under_way {
        raw.send(&delivery.body[60_000..]).await;
        let answer = raw.answer().await;
        assert_receipt(&answer, delivery.id(), "accepted", json!({}));
    }
    for number in [5, 6, 7] {
        system.send_accepted(&of_length(number, 65_536)).await;
    }
    let accepted = system.ingest.total("coordinator_deliveries_total", "\"accepted\"").await;
    system.settled(accepted as u64).await;
    let events = bus::events(&system.js).await;
    for number in [1, 2, 4, 5, 6, 7] {
        assert!(events.iter().any(|event| event.issue.number == number), "{number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_that_nobody_signed_keep_no_usual_delivery_out() {
    let flags = [
        "--max-body-bytes",
        "1048576",
        "--max-in-flight-bytes",
        "2097152",
        "--body-timeout-secs",
        "60",
    ];
    let system = System::start_with(&flags, &[]).await;
    let large = of_length(1, 1_048_576).with_header("X-Gitea-Signature", &"0".repeat(64));
    let stalled = RefCell::new(Vec::new());
    let answer = wait::until("no room for another large one", || async {
        // Two bodies that arrive at once can each be refused because of the other, so more than
        // one round may be needed.
        for _ in 0..4 {
            let mut raw = Raw::opened_with(&system, head_with_length(&large)).await;
            // A body that is refused before its end is closed, so this may fail.
            let _ = raw.0.write_all(&large.body[..large.body.len() - 100]).await;
            stalled.borrow_mut().push(raw);
        }
        let answer = system.send(&large).await;
        (answer.status != 401).then_some(answer)
    })
    .await;
    assert_error("a large one", &answer, 503, "overloaded");
    for number in 2..12 {
        system.send_accepted(&opened(number)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_at_its_limit_gets_503_until_the_broker_has_taken_what_it_holds() {
    let flags = [
        "--journal-max-bytes",
        "1048576",
        "--journal-retention-secs",
        "1",
        "--journal-retention-bytes",
        "0",
    ];
    let mut system = System::start_with(&flags, &["--ack-wait-secs", "2"]).await;
    wait::until_equal("a healthy start", (200, "ok".into()), || told(&system)).await;
    system.nats.kill();
    let number = Cell::new(0);
    let next = || {
        number.set(number.get() + 1);
        let mut issue = Issue::new(1, number.get());
        // A text that the journal cannot compress by much.
        issue.body = (0..4000).map(|_| Uuid::new_v4().simple().to_string()).collect();
        issue.delivery("opened")
    };
    let mut accepted = Vec::new();
    let refused_one = loop {
        let delivery = next();
        let answer = system.send(&delivery).await;
        if answer.status != 200 {
            assert_error("full", &answer, 503, "journal_full");
            assert_eq!(answer.headers.get(RETRY_AFTER), Some(&HeaderValue::from_static("5")));
            break delivery;
        }
        accepted.push(delivery);
        assert!(accepted.len() < 50, "no limit");
    };
    assert!(accepted.len() > 4, "{} fill it", accepted.len());

    let (status, body) = health(&system).await;
    assert_eq!(
        (status, &body["status"], &body["ready"]),
        (503, &json!("unavailable"), &json!(false))
    );
    assert_eq!((&body["live"], &body["journal"]["writable"]), (&json!(true), &json!(false)));
    assert_eq!(body["journal"]["depth"], accepted.len());
    assert_eq!(system.ingest.get("/health/live").await.0, 200);
    assert_eq!(system.ingest.metric("coordinator_journal_writable").await, Some(0.0));
    let small = opened(900);
    refused("a small one", &system, &small, 503, "journal_full").await;
    let push = recorded_one("gitea-1.27", "0031-push").delivery;
    let answer = system.send(&push).await;
    assert_receipt(&answer, push.id(), "ignored", json!({"reason": "not_an_issue_event"}));

    system.nats.restart().await;
    wait::until_equal("room in the journal", (200, "ok".into()), || told(&system)).await;
    for delivery in [refused_one, small, next()] {
        system.send_accepted(&delivery).await;
        accepted.push(delivery);
    }
    let js = jetstream::new(system.nats.client().await);
    settled(&js, accepted.len() as u64).await;
    check::kept(&js, &accepted).await;
    assert_eq!(system.ingest.metric("coordinator_journal_writable").await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_tell_how_it_is() {
    let mut system = System::start_with(&[], &["--ack-wait-secs", "2"]).await;
    wait::until_equal("a healthy start", (200, "ok".into()), || told(&system)).await;
    system.send_accepted(&opened(1)).await;
    refused(
        "unsigned",
        &system,
        &opened(2).with_header("X-Gitea-Signature", ""),
        401,
        "signature_empty",
    )
    .await;
    system.settled(1).await;
    system.nats.kill();
    wait::until_equal("the broker to be missed", (200, "degraded".into()), || told(&system)).await;
    let second = opened(3);
    system.send_accepted(&second).await;
    assert_eq!(system.send(&second).await.body["duplicate"], true);

    let (status, mut body) = health(&system).await;
    let problem = body["broker_problem"].take();
    assert!(problem.as_str().is_some_and(|problem| !problem.is_empty()), "{body}");
    let journal = &mut body["journal"];
    let age = journal["oldest_unpublished_age_secs"].take();
    let used = journal["used_bytes"].take();
    let (age, used) = (age.as_f64().expect("a number"), used.as_u64().expect("a number"));
    assert!(age > 0.0 && age < wait::DEADLINE.as_secs_f64() && used > 0, "{age} {used}");
    let expected = json!({
        "status": "degraded",
        "version": env!("CARGO_PKG_VERSION"),
        "live": true,
        "ready": true,
        "unfit": [],
        "broker": "disconnected",
        "broker_problem": null,
        "journal": {
            "writable": true,
            "depth": 1,
            "oldest_unpublished_age_secs": null,
            "used_bytes": null,
            "set_aside": 0,
        },
    });
    assert_eq!((status, body), (200, expected));

    for (path, content_type) in [
        ("/health", "application/json"),
        ("/health/live", "text/plain; charset=utf-8"),
        ("/metrics", "text/plain; version=0.0.4"),
    ] {
        let url = format!("http://{}{path}", system.ingest.operator);
        let response = reqwest::get(url).await.expect("an answer");
        let found = response.headers().get(CONTENT_TYPE).map(|value| value.to_str().expect("text"));
        assert_eq!((response.status().as_u16(), found), (200, Some(content_type)), "{path}");
    }
    assert_eq!(system.ingest.get("/health/live").await.1, "live\n");
    for (name, value) in [
        ("coordinator_deliveries_total{outcome=\"accepted\"}", 2.0),
        ("coordinator_deliveries_total{outcome=\"duplicate\"}", 1.0),
        ("coordinator_deliveries_total{outcome=\"signature_empty\"}", 1.0),
        ("coordinator_journal_depth", 1.0),
        ("coordinator_journal_writable", 1.0),
        ("coordinator_journal_set_aside", 0.0),
    ] {
        assert_eq!(system.ingest.metric(name).await, Some(value), "{name}");
    }
    for (status, count) in [("200", 3.0), ("401", 1.0)] {
        let label = format!("http_response_status_code=\"{status}\"");
        let timed = system.ingest.total("http_server_request_duration_seconds_count", &label).await;
        assert_eq!(timed, count, "{status}");
    }
    let sent = system.ingest.total("messaging_client_sent_messages_total", "").await;
    assert_eq!(sent, 1.0);

    system.nats.restart().await;
    wait::until_equal("health again", (200, "ok".into()), || told(&system)).await;
    let js = jetstream::new(system.nats.client().await);
    settled(&js, 2).await;
    wait::until_equal("an empty journal", Some(0.0), || {
        system.ingest.metric("coordinator_journal_depth")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_writes_all_of_a_too_large_body_gets_its_413() {
    let system = System::start().await;
    for n in 0..20 {
        let large = Delivery::signed_text(vec![b' '; 17 * 1024 * 1024], "issues");
        let http = reqwest::Client::new();
        let answer = tests::system::try_send(&http, system.ingest.address, &large).await;
        let answer = answer.unwrap_or_else(|error| panic!("{n}: {error:?}"));
        assert_error("17 MiB", &answer, 413, "body_too_large");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_there_on_the_webhooks_port_too_and_for_get_alone() {
    let system = System::start().await;
    let http = reqwest::Client::new();
    let url = format!("http://{}/health", system.ingest.address);
    assert_eq!(http.get(&url).send().await.expect("an answer").status(), 200);
    let response = http.post(url).send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.json().await.expect("JSON");
    assert_error("/health", &Answer { status, headers, body }, 405, "method_not_allowed");
    for path in ["/health", "/health/live", "/health/ready", "/metrics"] {
        let url = format!("http://{}{path}", system.ingest.operator);
        assert_eq!(http.get(&url).send().await.expect("an answer").status(), 200, "{path}");
        assert_eq!(http.post(url).send().await.expect("an answer").status(), 405, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_read_keep_nobody_out() {
    let flags = [
        "--max-connections",
        "4",
        "--max-connections-per-address",
        "0",
        "--write-timeout-secs",
        "1",
    ];
    let system = System::start_with(&flags, &[]).await;
    let requests = format!("{HEALTH}\r\n").repeat(1000);
    let mut deaf = Vec::new();
    for _ in 0..4 {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        let mut stream = socket.connect(system.ingest.address).await.expect("a connection");
        let requests = requests.clone();
        deaf.push(tokio::spawn(async move {
            // Writes until ingest stops reading, since it cannot answer, and closes the connection.
            while stream.write_all(requests.as_bytes()).await.is_ok() {}
        }));
    }
    assert_eq!(system.ingest.get("/health/live").await.0, 200, "on a listener of its own");
    system.send_accepted(&opened(1)).await;
    for deaf in deaf {
        wait::within("a client that never reads to be hung up on", deaf).await.expect("no panic");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_brought_a_signed_delivery_may_rest_and_a_strangers_may_not() {
    let system = System::start_with(&["--header-timeout-secs", "1"], &[]).await;
    let send = async |raw: &mut Raw, number| {
        let delivery = opened(number);
        raw.send([head_with_length(&delivery).as_bytes(), &delivery.body].concat()).await;
        let answer = raw.answer().await;
        assert_receipt(&answer, delivery.id(), "accepted", json!({}));
    };
    let mut known = Raw::open(&system).await;
    send(&mut known, 1).await;
    let mut stranger = Raw::opened_with(&system, format!("{HEALTH}\r\n")).await;
    assert_eq!(stranger.answer().await.status, 200);
    // The stranger's time is over. The known connection is idle for longer, and stays open.
    assert_eq!(stranger.rest().await, "");
    send(&mut known, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_a_planned_stop_answers_ask_to_close_the_connection() {
    let System { ingest, nats, worker, data, .. } = System::start().await;
    let mut raw = Raw(BufReader::new(TcpStream::connect(ingest.address).await.expect("connect")));
    raw.send(format!("{HEALTH}\r\n")).await;
    assert_eq!(raw.answer().await.headers.get("connection"), None);
    let stopping = tokio::spawn(ingest.stop());
    loop {
        raw.send(format!("{HEALTH}\r\n")).await;
        if raw.answer().await.headers.contains_key("connection") {
            break;
        }
    }
    assert_eq!(raw.rest().await, "");
    wait::within("the stop", stopping).await.expect("no panic");
    drop((nats, worker, data));
}
