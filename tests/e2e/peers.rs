//! What processes ask each other over the broker, with the users that are deployed.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use contract::names;
use futures::{
    StreamExt,
    future::{join_all, select_all},
};
use service::peers::{Answer, Asked, Question, Reply};
use tests::{
    bus,
    gitea::{Delivery, Issue},
    nats::Nats,
    system::{Running, ingest_config, send, settled, start_ingest, start_worker, worker_config},
    temp_dir, wait,
};
use uuid::Uuid;

use crate::broker_roles::{Role, create_streams, nats_with_roles};

/// Longest time that a question may take where somebody does not answer, on a machine that has much
/// to do. Whoever waited for the silent one would wait for ever.
const AT_MOST: Duration = Duration::from_secs(5);

/// What nobody has to be waited for takes less than this. Others have 200 ms to answer.
const SOON: Duration = Duration::from_millis(150);

fn login(user: &str) -> [String; 4] {
    ["--nats-user".into(), user.into(), "--nats-password".into(), format!("{user}-password")]
}

async fn ingest(nats: &Nats, data: &tempfile::TempDir) -> Running {
    let login = login("ingest");
    let flags: Vec<&str> = login.iter().map(String::as_str).collect();
    start_ingest(&ingest_config(&nats.url(), data.path(), &flags)).await
}

async fn worker(nats: &Nats) -> Running {
    let login = login("worker");
    let flags: Vec<&str> = login.iter().map(String::as_str).collect();
    start_worker(&worker_config(&nats.url(), &flags)).await
}

/// How long is waited for a page.
const SHORT: Duration = Duration::from_millis(200);

/// The roles that answer, sorted.
fn roles(answers: &[Answer]) -> Vec<String> {
    let mut roles: Vec<_> = answers.iter().map(|answer| answer.instance.roles.join("+")).collect();
    roles.sort();
    roles
}

/// Asks all until these roles answer.
async fn until_answered(by: &Running, expected: &[&str]) {
    let expected: Vec<String> = expected.iter().map(|role| (*role).to_owned()).collect();
    wait::until_equal("all to answer", expected, || async {
        roles(&by.peers.ask(Asked::All, &Question::Status).await)
    })
    .await;
}

fn id(delivery: &Delivery) -> Uuid {
    let (_, id) = delivery
        .headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("x-gitea-delivery"))
        .expect("an id");
    id.parse().expect("a UUID")
}

/// What was published by a question, and what was said instead.
fn published(answers: &[Answer]) -> (Vec<u64>, Vec<String>) {
    let (mut sequences, mut refusals) = (Vec::new(), Vec::new());
    for answer in answers {
        match &answer.reply {
            Reply::Published { sequence, .. } => sequences.push(*sequence),
            Reply::Refused(reason) => refusals.push(reason.clone()),
            other => panic!("{other:?}"),
        }
    }
    (sequences, refusals)
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_answer_each_other_over_the_walls_between_their_accounts() {
    let (mut nats, data, other_data, admin_data) =
        (nats_with_roles().await, temp_dir(), temp_dir(), temp_dir());
    create_streams(&nats, &admin_data).await;
    let (first, second) = tokio::join!(ingest(&nats, &data), ingest(&nats, &other_data));
    let worker = worker(&nats).await;
    for running in [&first, &second, &worker] {
        until_answered(running, &["ingest", "ingest", "worker"]).await;
    }
    // Now all are known, and nobody waits for more.
    let answers = wait::until("all to answer before time is up", || async {
        let started = Instant::now();
        let answers = worker.peers.ask(Asked::All, &Question::Status).await;
        (answers.len() == 3 && started.elapsed() < SOON).then_some(answers)
    });
    for answer in answers.await {
        let Reply::Status(status) = answer.reply else { panic!("{answer:?}") };
        assert_eq!(status.health["version"], env!("CARGO_PKG_VERSION"));
        let is_ingest = answer.instance.roles == ["ingest"];
        assert_eq!(status.health["journal"].is_object(), is_ingest);
    }

    // Of two ingests one holds the delivery.
    let http = reqwest::Client::new();
    let delivery = Issue::new(1, 1).assigned(&["bot"]).delivery("assigned");
    assert_eq!(send(&http, first.address, &delivery).await.status, 200);
    let admin = jetstream::new(nats.client().await);
    settled(&admin, 1).await;
    let id = id(&delivery);
    for asker in [&first, &second, &worker] {
        let question = Question::Delivery { id, payload: true };
        let answers = wait::until("both to answer", || async {
            let answers = asker.peers.ask(Asked::Ingest, &question).await;
            (answers.len() == 2).then_some(answers)
        });
        let answers = answers.await;
        let held = answers.iter().filter_map(|answer| match &answer.reply {
            Reply::Delivery(Some(journaled)) => Some((&answer.instance.id, journaled)),
            Reply::Delivery(None) => None,
            other => panic!("{other:?}"),
        });
        let held: Vec<_> = held.collect();
        assert_eq!(held.len(), 1);
        let (instance, journaled) = held[0];
        assert_eq!(*instance, first.peers.instance().id);
        assert!(journaled.published && journaled.set_aside.is_none());
        let subject = journaled.subject.as_deref().expect("a subject");
        assert!(subject.starts_with("gitea.issues.assigned.acme.r1.1."), "{subject}");
        assert_eq!(journaled.event.as_ref().expect("an event").delivery.id, id.to_string());
        assert_eq!(journaled.payload.as_deref().map(str::as_bytes), Some(&delivery.body[..]));
    }
    // The worker has it published once more, twice in a moment, and tells nobody anything new.
    let again = Question::Redeliver { id };
    for _ in 0..2 {
        let (sequences, _) = published(&worker.peers.ask(Asked::Ingest, &again).await);
        assert_eq!(sequences, [2]);
    }
    settled(&admin, 2).await;
    assert_eq!(bus::count(&admin, names::CHANGES).await, 1);
    let (unknown, started) = (Question::Redeliver { id: Uuid::from_u128(1) }, Instant::now());
    let (sequences, refusals) = published(&second.peers.ask(Asked::Ingest, &unknown).await);
    assert_eq!((sequences.len(), refusals.len()), (0, 2), "{refusals:?}");
    assert!(started.elapsed() < AT_MOST, "{:?}", started.elapsed());

    // A dead letter is published again by one of the two, however often that is asked for.
    let garbage = admin.publish("gitea.issues.closed.acme.r1.1.5", "no event".into());
    garbage.await.expect("publish").await.expect("an ack");
    wait::until_equal("the dead letter", 1, || bus::count(&admin, names::DEAD_LETTERS)).await;
    for asker in [&worker, &first] {
        let redrive = Question::Redrive { sequence: 1 };
        let (sequences, refusals) = published(&asker.peers.ask(Asked::Ingest, &redrive).await);
        assert_eq!((sequences.as_slice(), refusals.len()), (&[4][..], 0), "{refusals:?}");
    }
    let dead = bus::count(&admin, names::DEAD_LETTERS);
    assert!(dead.await >= 1, "it stays until it is removed");
    // As many at once as all jobs of a page ask for: each has its turn.
    let redrive = Question::Redrive { sequence: 1 };
    let asked = (0..64).map(|_| worker.peers.ask(Asked::Ingest, &redrive));
    for answers in join_all(asked).await {
        assert_eq!(published(&answers), (vec![4], vec![]));
    }
    let (_, refusals) =
        published(&worker.peers.ask(Asked::Ingest, &Question::Redrive { sequence: 99 }).await);
    assert_eq!(refusals, ["there is no dead letter 99"]);

    // One that ends is waited for, but not long.
    let second_id = second.peers.instance().id.clone();
    second.stop().await;
    wait::until("the others to answer", || async {
        let started = Instant::now();
        let answers = worker.peers.ask(Asked::All, &Question::Status).await;
        assert!(started.elapsed() < AT_MOST, "{:?}", started.elapsed());
        (roles(&answers) == ["ingest", "worker"]).then_some(())
    })
    .await;
    // Whoever wants to know who is silent is told.
    let answered = worker.peers.ask_within(Asked::All, &Question::Status, SHORT).await;
    let silent: Vec<_> = answered.silent.into_iter().map(|one| one.id).collect();
    assert_eq!(silent, [second_id]);
    // A worker answers no question of ingest, and nobody else's silence is waited for.
    let started = Instant::now();
    let answers = first.peers.ask(Asked::Worker, &Question::Redrive { sequence: 1 }).await;
    assert!(answers.is_empty() && started.elapsed() < AT_MOST);

    // While the broker is away a process shows itself, and afterwards all are there again.
    nats.kill();
    wait::until_equal("the loss", false, || async { worker.peers.broker().is_connected() }).await;
    wait::until("an answer without any wait", || async {
        let started = Instant::now();
        assert_eq!(roles(&worker.peers.ask(Asked::All, &Question::Status).await), ["worker"]);
        (started.elapsed() < SOON).then_some(())
    })
    .await;
    nats.restart().await;
    until_answered(&worker, &["ingest", "worker"]).await;
    first.stop().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_lies_shouts_or_floods_is_passed_over() {
    let (nats, admin_data) = (nats_with_roles().await, temp_dir());
    create_streams(&nats, &admin_data).await;
    let worker = worker(&nats).await;
    let liar = Role::connect(&nats, "worker").await;
    let mut questions =
        liar.client.subscribe("coordinator.ask.worker.status").await.expect("subscribe");
    liar.client.flush().await.expect("flush");
    let client = liar.client.clone();
    // It does not end by itself, so that whoever reads all of it never answers.
    let lying = tokio::spawn(async move {
        while let Some(question) = questions.next().await {
            let reply = question.reply.expect("an inbox");
            for n in (0..3_u32).cycle() {
                let payload = match n {
                    0 => "not JSON".into(),
                    1 => r#"{"instance":{},"reply":{"reply":"status"}}"#.into(),
                    _ => "x".repeat(10_000),
                };
                client.publish(reply.clone(), payload.into()).await.expect("publish");
            }
        }
    });
    let started = Instant::now();
    assert_eq!(roles(&worker.peers.ask(Asked::All, &Question::Status).await), ["worker"]);
    assert!(started.elapsed() < AT_MOST, "{:?}", started.elapsed());
    lying.abort();

    // Many questions at once: each that is one has an answer, good or not, and the worker goes on.
    // On a connection of its own, since what the liar has written waits in the other.
    let asker = Role::connect(&nats, "worker").await;
    let ask = async |subject: &'static str, question: &'static str| {
        let request = async_nats::Request::new().payload(question.into()).timeout(None);
        asker.client.send_request(subject, request).await
    };
    let answered = async {
        let asked =
            (0..100).map(|_| ask("coordinator.ask.worker.status", r#"{"question":"status"}"#));
        let answers = tokio::time::timeout(Duration::from_secs(30), join_all(asked)).await;
        assert!(answers.expect("an answer to each").iter().all(Result::is_ok));
    };
    let no_questions = select_all((0..100).map(|n| {
        Box::pin(if n % 2 == 0 {
            ask("coordinator.ask.worker.status", r#"{"question":"redrive","sequence":1}"#)
        } else {
            ask("coordinator.ask.worker.spans", "{")
        })
    }));
    tokio::select! {
        (answer, ..) = no_questions => panic!("an answer to what is no question: {answer:?}"),
        () = answered => {}
    }
    wait::until("the worker to be well", || async {
        worker.get("/health").await.1.contains(r#""status":"ok""#).then_some(())
    })
    .await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_permission_to_ask_all_else_goes_on() {
    let users = crate::broker_roles::users();
    let former: String = users
        .lines()
        .filter(|line| !line.contains("coordinator.ask."))
        .map(|line| format!("{line}\n"))
        .collect();
    let nats = Nats::start_secured(&former, crate::broker_roles::admin).await;
    let (data, admin_data) = (temp_dir(), temp_dir());
    create_streams(&nats, &admin_data).await;
    let (ingest, worker) = tokio::join!(ingest(&nats, &data), worker(&nats));
    let delivery = Issue::new(1, 1).assigned(&["bot"]).delivery("assigned");
    let http = reqwest::Client::new();
    assert_eq!(send(&http, ingest.address, &delivery).await.status, 200);
    let admin = jetstream::new(nats.client().await);
    settled(&admin, 1).await;
    for (running, role) in [(&ingest, "ingest"), (&worker, "worker")] {
        let started = Instant::now();
        assert_eq!(roles(&running.peers.ask(Asked::All, &Question::Status).await), [role]);
        assert!(started.elapsed() < AT_MOST, "{:?}", started.elapsed());
        wait::until(&format!("{role} to be well"), || async {
            running.get("/health").await.1.contains(r#""status":"ok""#).then_some(())
        })
        .await;
    }
    ingest.stop().await;
    worker.stop().await;
}
