//! Subscribers that are written with the Rust client.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_nats::{
    ConnectOptions,
    jetstream::{self, consumer, consumer::PullConsumer, stream},
};
use contract::names;
use coordinator_client::{
    Error, Failure, Received, Settings, Start, Subscription, change::Change, changes,
};
use futures::StreamExt;
use serde_json::{Value, json};
use tests::{nats::Nats, wait};
use tokio::{sync::oneshot, task::JoinHandle};

/// Issue and count of each change that was handled.
pub(crate) type Handled = Arc<Mutex<Vec<(u64, u64)>>>;

pub(crate) fn of(change: &Received<Change>) -> (u64, u64) {
    (change.issue.number, change.issue.title.parse().expect("a count"))
}

pub(crate) fn handled(handled: &Handled) -> Vec<(u64, u64)> {
    handled.lock().expect("handled").clone()
}

pub(crate) async fn make_stream(nats: &Nats) -> jetstream::Context {
    let js = jetstream::new(nats.client().await);
    let subjects = vec![format!("{}.>", names::CHANGES_PREFIX)];
    let config = stream::Config { name: names::CHANGES.into(), subjects, ..Default::default() };
    js.create_stream(config).await.expect("the stream");
    js
}

/// The payload of a change.
fn payload(kind: &str, number: u64, count: u64) -> Value {
    let bot = json!({"id": 4, "login": "bot"});
    json!({
        "version": 1, "kind": kind, "added": [], "removed": [], "assignees": ["bot"],
        "in_doubt": false, "first_seen": false, "sender": bot,
        "issue": {"id": number, "number": number, "title": count.to_string(), "body": "", "url": "",
            "state": "open", "assignees": [bot], "labels": [], "author": bot},
        "repository": {"id": 1, "owner": "acme", "name": "widgets", "url": "", "clone_url": "",
            "default_branch": "main"},
        "cause": {"delivery_id": "d", "action": kind, "received_at": "2026-11-23T23:45:00Z"},
    })
}

/// Publishes a change, again and again under one id until the stream has it.
pub(crate) async fn publish(
    nats: &Nats,
    js: &mut jetstream::Context,
    kind: &str,
    number: u64,
    count: u64,
) {
    let payload = payload(kind, number, count);
    let subject = format!("{}.{kind}.acme.widgets.{number}", names::CHANGES_PREFIX);
    loop {
        let message = jetstream::message::PublishMessage::build()
            .message_id(format!("{kind}-{number}-{count}"))
            .payload(payload.to_string().into());
        let sent = js.send_publish(subject.clone(), message).await.expect("send");
        if matches!(tokio::time::timeout(Duration::from_secs(2), sent).await, Ok(Ok(_))) {
            return;
        }
        *js = jetstream::new(nats.client().await);
    }
}

/// A client at work.
pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), Error>>,
}

impl Running {
    pub(crate) fn start(subscription: Subscription<Change>, nats: &Nats) -> Self {
        Self::start_with(subscription, Settings::new(nats.url()))
    }

    pub(crate) fn start_with(subscription: Subscription<Change>, settings: Settings) -> Self {
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(subscription.serve(settings, async { drop(stopped.await) }));
        Self { stop, serving }
    }

    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        wait::within("the client to stop", self.serving).await.expect("joined").expect("stopped");
    }

    /// What it ends with by itself.
    async fn failure(self) -> Error {
        let ended = wait::within("the client to end", self.serving).await.expect("joined");
        ended.expect_err("it cannot work")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_keep_their_order_and_come_once_while_the_broker_is_killed() {
    let mut nats = Nats::prepared("");
    let done = Handled::default();
    let into = Arc::clone(&done);
    // It waits for a broker and a stream that are not there yet.
    let running = Running::start(
        changes("kills", move |change| {
            let into = Arc::clone(&into);
            async move {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(0..8))).await;
                into.lock().expect("handled").push(of(&change));
                Ok(())
            }
        }),
        &nats,
    );
    nats.restart().await;
    let mut js = make_stream(&nats).await;
    let mut expected = 0;
    for round in 0..3 {
        for count in round * 40..(round + 1) * 40 {
            for number in 1..=3 {
                publish(&nats, &mut js, "closed", number, count).await;
                expected += 1;
            }
        }
        nats.restart().await;
    }
    wait::until_equal("all to be handled", expected, || async { handled(&done).len() }).await;
    for number in 1..=3 {
        let counts = handled(&done).into_iter().filter(|(of, _)| *of == number).map(|(_, n)| n);
        assert!(counts.eq(0..120), "issue {number}: {:?}", handled(&done));
    }
    // A broker that was killed may have forgotten acks. What it gives out again is settled, not handled.
    let js = jetstream::new(nats.client().await);
    wait::until_equal("all to be settled", (0, 0), || async {
        let consumer: PullConsumer =
            js.get_consumer_from_stream("kills", names::CHANGES).await.expect("the consumer");
        let info = consumer.cached_info();
        (info.num_ack_pending, info.num_pending)
    })
    .await;
    running.stop().await;
    assert_eq!(handled(&done).len(), expected, "nothing was handled twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_change_holds_its_issue_up_and_one_that_can_never_work_does_not() {
    let nats = Nats::start().await;
    let mut js = make_stream(&nats).await;
    for (kind, number, count) in
        [("closed", 1, 0), ("closed", 1, 1), ("closed", 2, 0), ("closed", 2, 1), ("new_kind", 3, 0)]
    {
        publish(&nats, &mut js, kind, number, count).await;
    }
    let calls: Arc<Mutex<Vec<(u64, u64, u64)>>> = Arc::default();
    let into = Arc::clone(&calls);
    let running = Running::start(
        changes("failures", move |change| {
            let (number, count) = of(&change);
            let attempt = change.message.attempt;
            into.lock().expect("calls").push((number, count, attempt));
            async move {
                match (number, count, attempt) {
                    (1, 0, 1) => Err(Failure::Again(Duration::from_millis(50))),
                    (1, 0, 2) => panic!("the handler of this test"),
                    (1, 0, 3) => Err("an error".into()),
                    (2, 0, _) => Err(Failure::never("of no use")),
                    _ => Ok(()),
                }
            }
        })
        .delays(Duration::from_millis(20), Duration::from_millis(50)),
        &nats,
    );
    let all = 4 + 1 + 2;
    wait::until_equal("all calls", all, || async { calls.lock().expect("calls").len() }).await;
    let of_issue = |wanted: u64| -> Vec<(u64, u64)> {
        let calls = calls.lock().expect("calls").clone();
        let mine = calls.into_iter().filter(|(number, ..)| *number == wanted);
        mine.map(|(_, count, attempt)| (count, attempt)).collect()
    };
    assert_eq!(of_issue(1), [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1)]);
    assert_eq!(of_issue(2), [(0, 1), (1, 1)]);
    running.stop().await;
    let consumer: PullConsumer =
        js.get_consumer_from_stream("failures", names::CHANGES).await.expect("the consumer");
    let info = consumer.cached_info();
    assert_eq!((info.num_ack_pending, info.num_pending), (0, 0));
    assert_eq!(info.delivered.consumer_sequence, 5, "nothing was given out again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_leaves_payloads_out_is_refused() {
    let nats = Nats::start().await;
    let js = make_stream(&nats).await;
    let config = consumer::pull::Config {
        durable_name: Some("headers".into()),
        headers_only: true,
        ..Default::default()
    };
    js.create_consumer_on_stream(config, names::CHANGES).await.expect("the consumer");
    let error = Running::start(changes("headers", |_| async { Ok(()) }), &nats).failure().await;
    assert!(error.to_string().contains("headers_only"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_version_ends_it_and_is_left_to_who_can_read_it() {
    let nats = Nats::start().await;
    let mut js = make_stream(&nats).await;
    // One has the shape of this version, and one has not.
    let mut alike = payload("closed", 2, 0);
    alike["version"] = 2.into();
    let mut other = alike.clone();
    other["kind"] = json!({"name": "closed"});
    for (round, later) in [alike, other].into_iter().enumerate() {
        let durable = format!("later-{round}");
        let count = 2 * round as u64;
        publish(&nats, &mut js, "closed", 1, count).await;
        let subject = format!("{}.closed.acme.widgets.2", names::CHANGES_PREFIX);
        let published = js.publish(subject, later.to_string().into()).await.expect("sent");
        let sequence = published.await.expect("stored").sequence;
        publish(&nats, &mut js, "closed", 1, count + 1).await;
        let unreadable = Arc::<Mutex<Vec<u64>>>::default();
        let into = Arc::clone(&unreadable);
        let subscription = changes(durable.as_str(), |_| async { Ok(()) })
            .start(Start::Sequence(sequence - 1))
            .ack_wait(Duration::from_secs(1))
            .on_unreadable(move |_, message| {
                into.lock().expect("unreadable").push(message.sequence);
                Ok(())
            });
        let error = Running::start(subscription, &nats).failure().await;
        assert!(error.to_string().contains("version 2"), "{error}");
        assert!(unreadable.lock().expect("unreadable").is_empty());
        let consumer: PullConsumer =
            js.get_consumer_from_stream(&durable, names::CHANGES).await.expect("the consumer");
        assert_eq!(consumer.cached_info().ack_floor.stream_sequence, sequence - 1);
        // It comes to whoever asks next, after the ack wait.
        let mut messages = consumer.messages().await.expect("messages");
        let mut came = 0;
        while came != sequence {
            let next = wait::within("the message", messages.next()).await.expect("a message");
            came = next.expect("a message").info().expect("info").stream_sequence;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_stream_is_read_from_its_beginning_though_a_question_has_no_answer() {
    let users = |permissions: &str| {
        format!(
            r#"authorization: {{ users: [
                {{ user: admin, password: admin }},
                {{ user: client, password: client, permissions: {{ {permissions} }} }}
            ] }}"#
        )
    };
    let silent = users(r#"publish: { deny: "$JS.API.STREAM.INFO.>" }"#);
    let admin = || ConnectOptions::with_user_and_password("admin".into(), "admin".into());
    let mut nats = Nats::start_secured(&silent, admin).await;
    let mut js = make_stream(&nats).await;
    let done = Handled::default();
    let into = Arc::clone(&done);
    let subscription = changes("unanswered", move |change| {
        into.lock().expect("handled").push(of(&change));
        async { Ok(()) }
    });
    let mut settings = Settings::new(nats.url());
    (settings.user, settings.password) = (Some("client".into()), Some("client".into()));
    let running = Running::start_with(subscription, settings);
    for count in 0..5 {
        publish(&nats, &mut js, "closed", 1, count).await;
    }
    wait::until_equal("the first stream to be handled", 5, || async { handled(&done).len() }).await;
    js.delete_stream(names::CHANGES).await.expect("deleted");
    let mut js = make_stream(&nats).await;
    for count in 5..8 {
        publish(&nats, &mut js, "closed", 1, count).await;
    }
    // Between two of these it asks how old the stream is, in vain.
    let looks = format!("$JS.API.CONSUMER.INFO.{}.unanswered", names::CHANGES);
    let mut looks = nats.client().await.subscribe(looks).await.expect("subscribed");
    for _ in 0..3 {
        wait::within("the client to ask for its consumer", looks.next()).await.expect("a question");
    }
    let made: Result<PullConsumer, _> =
        js.get_consumer_from_stream("unanswered", names::CHANGES).await;
    assert!(made.is_err(), "it goes on in the new stream where it was in the old one");
    nats.set_extra(&users(""));
    nats.restart().await;
    let expected: Vec<(u64, u64)> = (0..8).map(|count| (1, count)).collect();
    wait::until_equal("all to be handled", expected, || async { handled(&done) }).await;
    running.stop().await;
}
