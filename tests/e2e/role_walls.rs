//! What each role must not do at a broker with the users that are deployed: not by publishing, not
//! by subscribing, and not by having the server write to a subject for it.
//!
//! A server sends its answers to the reply subject of a message with its own rights. So each
//! subject that a role must not publish to is also given as the reply subject of everything that
//! the role may ask for.

use async_nats::{HeaderMap, jetstream};
use contract::names::{CHANGES, DEAD_LETTERS, EVENTS, ISSUE_STATE, QUESTIONS, RUNS, SYNC};
use futures::StreamExt;
use serde_json::{Value, json};
use tests::{bus, nats::Nats, temp_dir, wait};

use crate::broker_roles::{Role, create_streams, nats_with_roles};

/// Messages of these are in somebody's hands, so that whoever settles them is seen.
const IN_HAND: [(&str, &str); 3] =
    [(EVENTS, "worker-05"), (CHANGES, "other"), (QUESTIONS, "doubts")];

/// A request that a role may send, and that the server answers. Answers change nothing.
struct Request {
    /// What kind of answer it is.
    answer: &'static str,
    subject: String,
    payload: &'static str,
    headers: HeaderMap,
}

fn request(answer: &'static str, subject: &str, payload: &'static str) -> Request {
    Request { answer, subject: subject.into(), payload, headers: HeaderMap::new() }
}

/// A publish that the stream knows already: it confirms it and stores nothing.
fn publish(subject: &str, id: &str) -> Request {
    let mut request = request("a PubAck", subject, "known");
    request.headers.insert("Nats-Msg-Id", id);
    request
}

/// A publish for which the subject would need another last message: the stream refuses it.
fn refused(subject: &str) -> Request {
    let mut request = request("a refusal", subject, "refused");
    request.headers.insert("Nats-Expected-Last-Subject-Sequence", "999");
    request
}

/// The ack of the question in hand. Another delivery of it would have another subject, but the server
/// looks at the sequence alone.
const ACK_OF_QUESTION: &str = "$JS.ACK.GITEA_QUESTIONS.doubts.1.1.1.1.0";

/// A request for a message of a partition, and of a reader's consumer.
const OF_PARTITION: &str = r#"{"batch":1,"no_wait":true,"group":"workers","priority":0}"#;
const OF_READER: &str = r#"{"batch":1,"no_wait":true}"#;

/// A request for many entries.
const MANY: &str = r#"{"seq":1,"next_by_subj":">","batch":256,"max_bytes":1048576}"#;

/// A question that is also a request to delete a message, and comes back as the answer.
const ECHO: &str = r#"{"seq":1}"#;

/// Answers each question that `user` may be asked with the question itself, whatever subject is to
/// get it: the worst that a process of the product could do.
async fn echo(nats: &Nats, user: &'static str) {
    let role = Role::connect(nats, user).await;
    let names: &[&str] = match user {
        "ingest" => &["status", "spans", "delivery", "redeliver", "redrive"],
        "reactor" => &["status", "spans", "runs", "run", "stop_run", "run_again"],
        _ => &["status", "spans"],
    };
    for name in names {
        let subject = format!("coordinator.ask.{user}.{name}");
        let mut questions = role.client.subscribe(subject).await.expect("subscribe");
        let client = role.client.clone();
        tokio::spawn(async move {
            while let Some(question) = questions.next().await {
                if let Some(reply) = question.reply {
                    client.publish(reply, question.payload).await.expect("publish");
                }
            }
        });
    }
    role.client.flush().await.expect("flush");
}

/// Pulls a message as `role` and leaves it in hand. Its acks have this subject.
async fn ack_subject(role: &Role, stream: &str, consumer: &str) -> String {
    let next = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
    let payload = if stream == EVENTS { OF_PARTITION } else { OF_READER };
    let message = answered(role, &request("a pull", &next, payload)).await;
    message.reply.expect("a subject for acks").to_string()
}

/// Everything that a role may ask the server for.
async fn requests(role: &Role, user: &str) -> Vec<Request> {
    let info = |stream: &str| format!("$JS.API.STREAM.INFO.{stream}");
    match user {
        "ingest" => vec![
            request("STREAM.INFO", &info(EVENTS), ""),
            publish("gitea.issues.closed.acme.r1.1.5", "event-5"),
            refused("gitea.questions.gap"),
            request("MSG.GET", "$JS.API.STREAM.MSG.GET.GITEA_ISSUES", r#"{"seq":1}"#),
            request("CONSUMER.INFO", "$JS.API.CONSUMER.INFO.GITEA_ISSUES.worker-63", ""),
            request("an answer of a worker", "coordinator.ask.worker.status", ECHO),
            request("an answer of an ingest", "coordinator.ask.ingest.redrive", ECHO),
            request("an answer of a runner", "coordinator.ask.reactor.runs", ECHO),
        ],
        "worker" => vec![
            request("STREAM.INFO", &info(CHANGES), ""),
            publish("gitea.changes.closed.acme.r1.1", "change"),
            request("a pull", "$JS.API.CONSUMER.MSG.NEXT.GITEA_ISSUES.worker-63", OF_PARTITION),
            // The answer is that of a double ack, and the message stays in hand.
            request("an ack", &ack_subject(role, EVENTS, "worker-06").await, "+WPI"),
            request("CONSUMER.INFO", "$JS.API.CONSUMER.INFO.GITEA_ISSUES.worker-63", ""),
            request("MSG.GET", "$JS.API.STREAM.MSG.GET.GITEA_CHANGES", r#"{"seq":1}"#),
            publish("gitea.issues.synced.acme.r1.1.5", "event-5"),
            refused("gitea.questions.doubts.1.1"),
            refused("$KV.GITEA_SYNC.claim"),
            // It keeps the question in hand, so that a pull finds none.
            request("an ack", ACK_OF_QUESTION, "+WPI"),
            request("a pull", "$JS.API.CONSUMER.MSG.NEXT.GITEA_QUESTIONS.doubts", OF_READER),
            request("MSG.DELETE", "$JS.API.STREAM.MSG.DELETE.GITEA_ISSUES_DEAD", r#"{"seq":99}"#),
            request("an answer of a worker", "coordinator.ask.worker.spans", ECHO),
            request("an answer of an ingest", "coordinator.ask.ingest.redeliver", ECHO),
            request("an answer of a runner", "coordinator.ask.reactor.stop_run", ECHO),
        ],
        "reactor" => vec![
            request("STREAM.INFO", &info("KV_GITEA_RUNS"), ""),
            request("MSG.GET", "$JS.API.STREAM.MSG.GET.GITEA_CHANGES", r#"{"seq":1}"#),
            request("DIRECT.GET", "$JS.API.DIRECT.GET.KV_GITEA_RUNS", MANY),
            refused("$KV.GITEA_RUNS.1.1.fix"),
            request("an ack", &ack_subject(role, CHANGES, "reactor").await, "+WPI"),
            request("a pull", "$JS.API.CONSUMER.MSG.NEXT.GITEA_CHANGES.reactor", OF_READER),
            request("CONSUMER.INFO", "$JS.API.CONSUMER.INFO.GITEA_CHANGES.reactor", ""),
            request("an answer of a worker", "coordinator.ask.worker.status", ECHO),
            request("an answer of an ingest", "coordinator.ask.ingest.spans", ECHO),
            request("an answer of a runner", "coordinator.ask.reactor.run_again", ECHO),
        ],
        _ => vec![
            request("STREAM.INFO", &info(CHANGES), ""),
            request("an ack", &ack_subject(role, CHANGES, "reader").await, "+WPI"),
            request("a pull", "$JS.API.CONSUMER.MSG.NEXT.GITEA_CHANGES.reader", OF_READER),
            request("CONSUMER.INFO", "$JS.API.CONSUMER.INFO.GITEA_CHANGES.reader", ""),
        ],
    }
}

/// All streams of the product, with those of its buckets.
fn streams() -> [String; 7] {
    let buckets = [ISSUE_STATE, SYNC, RUNS].map(|bucket| format!("KV_{bucket}"));
    let [states, sync, runs] = buckets;
    [EVENTS.into(), CHANGES.into(), DEAD_LETTERS.into(), QUESTIONS.into(), states, sync, runs]
}

/// Users of roles.
const USERS: [&str; 4] = ["ingest", "worker", "reactor", "reader"];

/// Subjects with a payload that does harm there, and the roles that may publish to them.
fn targets() -> Vec<(String, String, &'static [&'static str])> {
    let mut targets: Vec<(String, String, &[&str])> = Vec::new();
    let mut nobody = |subject: &str, payload: Value| {
        let payload = if payload.is_null() { String::new() } else { payload.to_string() };
        targets.push((subject.into(), payload, &[]));
    };
    for stream in streams() {
        let stream = stream.as_str();
        let subject = json!({"name": stream, "subjects": ["elsewhere"]});
        for (verb, payload) in [
            ("PURGE", Value::Null),
            ("UPDATE", subject),
            ("SNAPSHOT", json!({"deliver_subject": "x"})),
            ("DELETE", Value::Null),
        ] {
            nobody(&format!("$JS.API.STREAM.{verb}.{stream}"), payload);
        }
        if stream != DEAD_LETTERS {
            nobody(&format!("$JS.API.STREAM.MSG.DELETE.{stream}"), json!({"seq": 1}));
        }
    }
    for question in ["delivery", "redeliver", "redrive"] {
        nobody(&format!("coordinator.ask.worker.{question}"), Value::Null);
    }
    for (stream, consumer) in IN_HAND {
        let name = format!("{stream}.{consumer}");
        let config = json!({"durable_name": consumer, "ack_policy": "none"});
        let create = json!({"stream_name": stream, "config": config});
        nobody(&format!("$JS.API.CONSUMER.CREATE.{name}"), create.clone());
        nobody(&format!("$JS.API.CONSUMER.DURABLE.CREATE.{name}"), create);
        nobody(
            &format!("$JS.API.CONSUMER.PAUSE.{name}"),
            json!({"pause_until": "2100-01-01T00:00:00Z"}),
        );
        nobody(&format!("$JS.API.CONSUMER.RESET.{name}"), Value::Null);
        nobody(&format!("$JS.API.CONSUMER.DELETE.{name}"), Value::Null);
        nobody(&format!("$JS.API.DIRECT.GET.{stream}"), json!({"seq": 1}));
    }
    nobody("$JS.API.STREAM.CREATE.MINE", json!({"name": "MINE", "subjects": ["mine"]}));
    nobody("$JS.API.ACCOUNT.PURGE.COORDINATOR", Value::Null);
    nobody("$JS.API.META.LEADER.STEPDOWN", Value::Null);
    nobody("$JS.API.STREAM.MSG.GET.GITEA_QUESTIONS", json!({"seq": 1}));
    let workers: &[&str] = &["worker"];
    let both: &[&str] = &["ingest", "worker"];
    let (runners, all): (&[&str], &[&str]) = (&["reactor"], &["ingest", "worker", "reactor"]);
    let more: [(&str, &str, &[&str]); 33] = [
        ("gitea.issues.closed.acme.r1.9.9", "forged", &["ingest"]),
        ("gitea.changes.closed.acme.r1.9", "forged", workers),
        ("gitea.dead.issues.closed.acme.r1.9.9", "forged", workers),
        ("$KV.GITEA_ISSUE_STATE.1.9", "forged", workers),
        ("gitea.issues.synced.acme.r1.9.9", "forged", both),
        ("$JS.API.STREAM.MSG.GET.GITEA_ISSUES", ECHO, both),
        ("$JS.API.STREAM.MSG.DELETE.GITEA_ISSUES_DEAD", ECHO, workers),
        ("coordinator.ask.worker.status", r#"{"question":"status"}"#, all),
        ("coordinator.ask.reactor.runs", r#"{"question":"runs"}"#, all),
        ("coordinator.ask.reactor.stop_run", "", &["worker", "reactor"]),
        ("coordinator.runs.nudge", "1.9.fix", runners),
        ("$KV.GITEA_RUNS.1.9.fix", "forged", runners),
        ("$JS.API.STREAM.MSG.GET.KV_GITEA_RUNS", ECHO, runners),
        ("$JS.API.DIRECT.GET.KV_GITEA_RUNS", MANY, runners),
        ("$JS.API.CONSUMER.MSG.NEXT.GITEA_CHANGES.reactor", OF_READER, runners),
        ("$JS.ACK.GITEA_CHANGES.reactor.1.1.1.1.0", "", runners),
        ("coordinator.ask.ingest.delivery", "", both),
        ("coordinator.ask.ingest.redrive", r#"{"question":"redrive","sequence":1}"#, both),
        ("gitea.questions.gap", "", both),
        ("gitea.questions.doubts.1.9", "forged", workers),
        ("$KV.GITEA_SYNC.claim", "forged", workers),
        ("$JS.API.CONSUMER.MSG.NEXT.GITEA_QUESTIONS.doubts", OF_READER, workers),
        ("$JS.API.CONSUMER.MSG.NEXT.GITEA_ISSUES.worker-07", OF_PARTITION, workers),
        ("$JS.API.CONSUMER.MSG.NEXT.GITEA_CHANGES.other", OF_READER, &[]),
        ("$JS.ACK.GITEA_ISSUES.worker-05.1.1.1.1.0", "", workers),
        ("$JS.ACK.GITEA_CHANGES.other.1.1.1.1.0", "", &[]),
        (ACK_OF_QUESTION, "", workers),
        ("$JS.ACK._.2K38A3Q7.GITEA_QUESTIONS.doubts.1.1.1.1.0", "", workers),
        ("$JS.ACK._.2K38A3Q7.GITEA_ISSUES.worker-05.1.1.1.1.0", "", workers),
        ("$JS.ACK._.2K38A3Q7.GITEA_CHANGES.other.1.1.1.1.0", "", &[]),
        // In the first form these are acks of the first consumer that they name, in the second
        // one of the other. An ack can ask for the next message.
        ("$JS.ACK.GITEA_CHANGES.other.GITEA_ISSUES.worker-05.1.1.1", "+NXT", &[]),
        ("$JS.ACK.GITEA_CHANGES.other.GITEA_CHANGES.reader.1.1.1", "+NXT", &[]),
        ("$JS.ACK.GITEA_ISSUES.worker-05.GITEA_CHANGES.reader.1.1.1", "+NXT", workers),
    ];
    targets.extend(more.map(|(subject, payload, may)| (subject.into(), payload.into(), may)));
    targets
}

/// All that stands on the broker: configuration and state of streams and consumers.
async fn everything(admin: &jetstream::Context) -> Value {
    let client = admin.client();
    let ask = async |subject: &str| -> Value {
        let answer = client.request(subject.to_owned(), "".into()).await.expect(subject);
        let mut answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
        stable(&mut answer);
        answer
    };
    let mut all = vec![ask("$JS.API.STREAM.LIST").await];
    for stream in streams() {
        all.push(ask(&format!("$JS.API.CONSUMER.LIST.{stream}")).await);
    }
    all.into()
}

/// Takes out what is otherwise at every look, and when something was asked for in vain.
fn stable(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for name in ["ts", "last_active", "num_waiting", "consumer_count"] {
                fields.remove(name);
            }
            fields.values_mut().for_each(stable);
        }
        Value::Array(items) => items.iter_mut().for_each(stable),
        _ => {}
    }
}

/// Waits until the server has done what `role` asked for before.
async fn settled(role: &Role, admin: &jetstream::Context, requests: &[Request]) {
    for request in requests {
        answered(role, request).await;
    }
    for _ in 0..2 {
        let asked = admin.client().request("$JS.API.STREAM.NAMES", "".into()).await;
        asked.expect("an answer");
        // No stream has this name. The server does it behind what waits to be done.
        assert!(admin.delete_stream("NONE").await.is_err());
    }
}

/// Waits for the answer to a request.
async fn answered(role: &Role, request: &Request) -> async_nats::Message {
    let inbox = role.client.new_inbox();
    let mut answers = role.client.subscribe(inbox.clone()).await.expect("subscribe");
    send(role, request, &inbox).await;
    wait::within(request.answer, answers.next()).await.expect("an answer")
}

async fn send(role: &Role, request: &Request, reply: &str) {
    let (subject, payload) = (request.subject.clone(), request.payload.into());
    let headers = request.headers.clone();
    let sent = if headers.is_empty() {
        role.client.publish_with_reply(subject, reply.to_owned(), payload).await
    } else {
        let reply = reply.to_owned();
        role.client.publish_with_reply_and_headers(subject, reply, headers, payload).await
    };
    sent.expect("publish");
}

/// A broker with streams, events, a change, and messages in hand.
async fn broker() -> (Nats, jetstream::Context, Vec<Role>) {
    let (nats, data) = (nats_with_roles().await, temp_dir());
    create_streams(&nats, &data).await;
    let admin = jetstream::new(nats.client().await);
    for (subject, id) in [
        ("gitea.issues.closed.acme.r1.1.5", "event-5"),
        ("gitea.issues.closed.acme.r1.1.6", "event-6"),
        ("gitea.issues.closed.acme.r1.1.7", "event-7"),
        ("gitea.changes.closed.acme.r1.1", "change"),
        ("gitea.dead.issues.closed.acme.r1.1.5", "dead"),
        ("$KV.GITEA_ISSUE_STATE.1.1", "state"),
        ("gitea.questions.doubts.1.1", "question"),
        ("$KV.GITEA_SYNC.claim", "claim"),
        ("$KV.GITEA_RUNS.1.1.fix", "run"),
        ("gitea.changes.closed.acme.r1.2", "change-2"),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        let stored = admin.publish_with_headers(subject, headers, "x".into()).await;
        stored.expect("publish").await.expect("an ack");
    }
    // One is left for each, which `requests` takes in hand: then its pulls find nothing.
    for name in ["reader", "reactor"] {
        let consumer = admin.get_consumer_from_stream(name, CHANGES).await.expect("the consumer");
        bus::next(&consumer).await.double_ack().await.expect("an ack");
    }
    let mut roles = vec![Role::connect(&nats, "admin").await];
    for (stream, consumer) in IN_HAND {
        ack_subject(&roles[0], stream, consumer).await;
    }
    for user in USERS {
        roles.push(Role::connect(&nats, user).await);
    }
    for user in ["ingest", "worker", "reactor"] {
        echo(&nats, user).await;
    }
    (nats, admin, roles.split_off(1))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_has_the_server_write_for_it() {
    let (_nats, admin, roles) = broker().await;
    let mut breaches = Vec::new();
    for (role, user) in roles.iter().zip(USERS) {
        let requests = requests(role, user).await;
        settled(role, &admin, &requests).await;
        let mut before = everything(&admin).await;
        for (target, _, may) in targets() {
            if may.contains(&user) {
                continue;
            }
            for request in &requests {
                let mut traced = HeaderMap::new();
                traced.insert("Nats-Trace-Dest", target.as_str());
                traced.insert("Nats-Trace-Only", "true");
                let trace = Request {
                    answer: "a trace",
                    subject: request.subject.clone(),
                    payload: request.payload,
                    headers: traced,
                };
                send(role, request, &target).await;
                send(role, &trace, &role.client.new_inbox()).await;
            }
            // One look at everything for all answers to this subject, since it takes long.
            settled(role, &admin, &requests[..1]).await;
            let after = everything(&admin).await;
            if after != before {
                eprintln!("{user}: an answer to {target}");
                breaches.push(format!("{user}: {target}"));
                before = after;
            }
        }
        settled(role, &admin, &requests).await;
        assert_eq!(everything(&admin).await, before, "{user}: later; {breaches:#?}");
    }
    assert_eq!(breaches, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_publishes_or_reads_what_is_not_its_own() {
    let (_nats, admin, roles) = broker().await;
    for (role, user) in roles.iter().zip(USERS) {
        let before = everything(&admin).await;
        let mut denied = Vec::new();
        for (target, payload, may) in targets() {
            if !may.contains(&user) {
                let inbox = role.client.new_inbox();
                let sent = role.client.publish_with_reply(target.clone(), inbox, payload.into());
                sent.await.expect("publish");
                denied.push(target);
            }
        }
        for subject in [
            ">",
            "*.>",
            "gitea.>",
            "gitea.issues.>",
            "gitea.changes.>",
            "gitea.dead.>",
            "gitea.questions.>",
            "$KV.>",
            "$JS.>",
            "$JS.API.>",
            "$JS.ACK.>",
            "$JS.EVENT.>",
            "$SYS.>",
            "_R_.>",
            "coordinator.>",
            "coordinator.ask.*.status",
        ] {
            role.subscribe(subject).await;
            denied.push(subject.into());
        }
        let denied: Vec<&str> = denied.iter().map(String::as_str).collect();
        role.is_denied(&denied).await;
        assert_eq!(everything(&admin).await, before, "{user}");
    }
}
