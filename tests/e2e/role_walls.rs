//! What each role must not do at a broker with the users that are deployed: not by publishing, not
//! by subscribing, and not by having the server write to a subject for it.
//!
//! A server sends its answers to the reply subject of a message with its own rights. So each
//! subject that a role must not publish to is also given as the reply subject of everything that
//! the role may ask for.

use async_nats::{HeaderMap, jetstream};
use contract::names::{CHANGES, DEAD_LETTERS, EVENTS, ISSUE_STATE};
use futures::StreamExt;
use serde_json::{Value, json};
use tests::{bus, nats::Nats, temp_dir, wait};

use crate::broker_roles::{Role, create_streams, nats_with_roles};

/// Messages of these are in somebody's hands, so that whoever settles them is seen.
const IN_HAND: [(&str, &str); 2] = [(EVENTS, "worker-05"), (CHANGES, "other")];

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

/// A request for a message of a partition, and of a reader's consumer.
const OF_PARTITION: &str = r#"{"batch":1,"no_wait":true,"group":"workers","priority":0}"#;
const OF_READER: &str = r#"{"batch":1,"no_wait":true}"#;

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
        ],
        "worker" => vec![
            request("STREAM.INFO", &info(CHANGES), ""),
            publish("gitea.changes.closed.acme.r1.1", "change"),
            request("a pull", "$JS.API.CONSUMER.MSG.NEXT.GITEA_ISSUES.worker-63", OF_PARTITION),
            // The answer is that of a double ack, and the message stays in hand.
            request("an ack", &ack_subject(role, EVENTS, "worker-06").await, "+WPI"),
            request("CONSUMER.INFO", "$JS.API.CONSUMER.INFO.GITEA_ISSUES.worker-63", ""),
            request("MSG.GET", "$JS.API.STREAM.MSG.GET.GITEA_CHANGES", r#"{"seq":1}"#),
        ],
        _ => vec![
            request("STREAM.INFO", &info(CHANGES), ""),
            request("an ack", &ack_subject(role, CHANGES, "reader").await, "+WPI"),
            request("a pull", "$JS.API.CONSUMER.MSG.NEXT.GITEA_CHANGES.reader", OF_READER),
            request("CONSUMER.INFO", "$JS.API.CONSUMER.INFO.GITEA_CHANGES.reader", ""),
        ],
    }
}

/// Subjects with a payload that does harm there, and the roles that may publish to them.
fn targets() -> Vec<(String, String, &'static [&'static str])> {
    let mut targets: Vec<(String, String, &[&str])> = Vec::new();
    let mut nobody = |subject: &str, payload: Value| {
        let payload = if payload.is_null() { String::new() } else { payload.to_string() };
        targets.push((subject.into(), payload, &[]));
    };
    for stream in [EVENTS, CHANGES, DEAD_LETTERS, &format!("KV_{ISSUE_STATE}")] {
        let subject = json!({"name": stream, "subjects": ["elsewhere"]});
        for (verb, payload) in [
            ("PURGE", Value::Null),
            ("MSG.DELETE", json!({"seq": 1})),
            ("UPDATE", subject),
            ("SNAPSHOT", json!({"deliver_subject": "x"})),
            ("DELETE", Value::Null),
        ] {
            nobody(&format!("$JS.API.STREAM.{verb}.{stream}"), payload);
        }
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
    nobody("$JS.API.STREAM.MSG.GET.GITEA_ISSUES", json!({"seq": 1}));
    let workers: &[&str] = &["worker"];
    let more: [(&str, &str, &[&str]); 13] = [
        ("gitea.issues.closed.acme.r1.9.9", "forged", &["ingest"]),
        ("gitea.changes.closed.acme.r1.9", "forged", workers),
        ("gitea.dead.issues.closed.acme.r1.9.9", "forged", workers),
        ("$KV.GITEA_ISSUE_STATE.1.9", "forged", workers),
        ("$JS.API.CONSUMER.MSG.NEXT.GITEA_ISSUES.worker-07", OF_PARTITION, workers),
        ("$JS.API.CONSUMER.MSG.NEXT.GITEA_CHANGES.other", OF_READER, &[]),
        ("$JS.ACK.GITEA_ISSUES.worker-05.1.1.1.1.0", "", workers),
        ("$JS.ACK.GITEA_CHANGES.other.1.1.1.1.0", "", &[]),
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
    for stream in [EVENTS, CHANGES, DEAD_LETTERS, &format!("KV_{ISSUE_STATE}")] {
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
        ("gitea.changes.closed.acme.r1.2", "change-2"),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        let stored = admin.publish_with_headers(subject, headers, "x".into()).await;
        stored.expect("publish").await.expect("an ack");
    }
    // One is left for the reader, which `requests` takes in hand: then its pulls find nothing.
    let reader = admin.get_consumer_from_stream("reader", CHANGES).await.expect("the consumer");
    bus::next(&reader).await.double_ack().await.expect("an ack");
    let mut roles = vec![Role::connect(&nats, "admin").await];
    for (stream, consumer) in IN_HAND {
        ack_subject(&roles[0], stream, consumer).await;
    }
    for user in ["ingest", "worker", "reader"] {
        roles.push(Role::connect(&nats, user).await);
    }
    (nats, admin, roles.split_off(1))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_has_the_server_write_for_it() {
    let (_nats, admin, roles) = broker().await;
    let mut breaches = Vec::new();
    for (role, user) in roles.iter().zip(["ingest", "worker", "reader"]) {
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
                let inbox = role.client.new_inbox();
                for (request, reply) in [(request, target.as_str()), (&trace, inbox.as_str())] {
                    send(role, request, reply).await;
                    role.client.flush().await.expect("flush");
                    settled(role, &admin, &requests[..1]).await;
                    let after = everything(&admin).await;
                    if after != before {
                        let breach = format!("{user}: {} to {target}", request.answer);
                        eprintln!("{breach}");
                        breaches.push(breach);
                        before = after;
                    }
                }
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
    for (role, user) in roles.iter().zip(["ingest", "worker", "reader"]) {
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
            "$KV.>",
            "$JS.>",
            "$JS.API.>",
            "$JS.ACK.>",
            "$JS.EVENT.>",
            "$SYS.>",
            "_R_.>",
        ] {
            role.subscribe(subject).await;
            denied.push(subject.into());
        }
        let denied: Vec<&str> = denied.iter().map(String::as_str).collect();
        role.is_denied(&denied).await;
        assert_eq!(everything(&admin).await, before, "{user}");
    }
}
