//! Two programs, written with the Rust client, that share a durable consumer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_nats::{
    Subscriber,
    jetstream::{
        Context,
        consumer::{Info, PullConsumer},
    },
};
use contract::names;
use coordinator_client::{Settings, Subscription, change::Change, changes};
use futures::{FutureExt, StreamExt};
use tests::{door::Door, nats::Nats, wait};
use tokio::sync::watch;

use crate::client_rust::{Running, make_stream, of, publish};

const DURABLE: &str = "two";

/// Program, issue and count of each change that was begun.
type Begun = Arc<Mutex<Vec<(&'static str, u64, u64)>>>;

fn begun(begun: &Begun) -> Vec<(&'static str, u64, u64)> {
    begun.lock().expect("begun").clone()
}

async fn info(js: &Context) -> Info {
    let consumer: PullConsumer =
        js.get_consumer_from_stream(DURABLE, names::CHANGES).await.expect("the consumer");
    consumer.cached_info().clone()
}

/// What handlers of both programs are at, and which issues they were at together.
#[derive(Default)]
struct AtWork {
    issues: Vec<u64>,
    at_once: Vec<u64>,
}

impl AtWork {
    fn begin(&mut self, issue: u64) {
        if self.issues.contains(&issue) {
            self.at_once.push(issue);
        }
        self.issues.push(issue);
    }

    fn end(&mut self, issue: u64) {
        self.issues.retain(|each| *each != issue);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_programs_share_a_consumer_and_keep_the_order() {
    let nats = Nats::start().await;
    let mut js = make_stream(&nats).await;
    let (done, at_work) = (Begun::default(), Arc::<Mutex<AtWork>>::default());
    let running = ["a", "b"].map(|name| {
        let (done, at_work) = (Arc::clone(&done), Arc::clone(&at_work));
        let subscription = changes(DURABLE, move |change| {
            let (done, at_work) = (Arc::clone(&done), Arc::clone(&at_work));
            async move {
                let (number, count) = of(&change);
                at_work.lock().expect("at work").begin(number);
                tokio::time::sleep(Duration::from_millis(2)).await;
                at_work.lock().expect("at work").end(number);
                done.lock().expect("begun").push((name, number, count));
                Ok(())
            }
        });
        Running::start(subscription, &nats)
    });
    for count in 0..10 {
        for number in 1..=4 {
            publish(&nats, &mut js, "closed", number, count).await;
        }
    }
    wait::until_equal("all to be handled", 40, || async { begun(&done).len() }).await;
    for number in 1..=4 {
        let counts = begun(&done).into_iter().filter(|(_, of, _)| *of == number).map(|(.., n)| n);
        assert!(counts.eq(0..10), "issue {number}: {:?}", begun(&done));
    }
    assert_eq!(at_work.lock().expect("at work").at_once[..], [0; 0]);
    for name in ["a", "b"] {
        assert!(begun(&done).iter().any(|(each, ..)| *each == name), "{name} has handled some");
    }
    for each in running {
        each.stop().await;
    }
}

/// A program that counts how often it began to consume. The one with `go_on` waits for it.
fn program(
    name: &'static str,
    into: &Begun,
    go_on: Option<watch::Receiver<bool>>,
) -> (Subscription<Change>, watch::Receiver<u32>) {
    let (consuming, times) = watch::channel(0);
    let into = Arc::clone(into);
    let subscription = changes(DURABLE, move |change| {
        let (number, count) = of(&change);
        into.lock().expect("begun").push((name, number, count));
        let go_on = go_on.clone();
        async move {
            if let Some(mut go_on) = go_on {
                let _ = go_on.wait_for(|go_on| *go_on).await;
            }
            Ok(())
        }
    });
    (subscription.on_consuming(move || consuming.send_modify(|times| *times += 1)), times)
}

async fn until_consuming(times: &mut watch::Receiver<u32>, wanted: u32) {
    let consuming = times.wait_for(|times| *times >= wanted);
    drop(wait::within("it to consume", consuming).await.expect("it runs"));
}

/// Waits until two programs have looked at the consumer several times each.
async fn until_both_have_looked(looks: &mut Subscriber) {
    while looks.next().now_or_never().is_some() {}
    let mut counts: HashMap<String, u32> = HashMap::new();
    while counts.values().filter(|count| **count > 2).count() < 2 {
        let look = wait::within("a look", looks.next()).await.expect("a look");
        let reply = look.reply.expect("a reply subject").to_string();
        // Its first two tokens are those of one connection.
        let connection = reply.rsplit_once('.').expect("tokens").0.to_owned();
        *counts.entry(connection).or_default() += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_program_has_in_hand_is_not_taken_from_it_after_a_restart() {
    let mut nats = Nats::start().await;
    let mut js = make_stream(&nats).await;
    let door = Door::to(nats.port()).await;
    let (go_on, waits) = watch::channel(false);
    let done = Begun::default();
    let looks = format!("$JS.API.CONSUMER.INFO.{}.{DURABLE}", names::CHANGES);
    let mut looks = nats.client().await.subscribe(looks).await.expect("subscribed");
    let (subscription, mut early_consumes) = program("early", &done, None);
    let early = Running::start(subscription, &nats);
    until_consuming(&mut early_consumes, 1).await;
    let (subscription, mut late_consumes) = program("late", &done, Some(waits));
    let through = Settings::new(format!("nats://127.0.0.1:{}", door.port()));
    let late = Running::start_with(subscription, through);
    until_consuming(&mut late_consumes, 1).await;
    until_both_have_looked(&mut looks).await;
    let mut number = 0;
    while !begun(&done).iter().any(|(name, ..)| *name == "late") {
        number += 1;
        publish(&nats, &mut js, "closed", number, 0).await;
        wait::until("it to be begun", || async {
            begun(&done).iter().any(|(_, of, _)| *of == number).then_some(())
        })
        .await;
    }
    wait::until_equal("the rest to be acked", 1, || async { info(&js).await.num_ack_pending })
        .await;
    // The broker is back for the first one, and not for the second one, who works on.
    door.shut();
    nats.stop();
    nats.restart().await;
    until_consuming(&mut early_consumes, 2).await;
    let mut js = async_nats::jetstream::new(nats.client().await);
    publish(&nats, &mut js, "closed", 50, 0).await;
    // What it had asked for again would have come before this one.
    wait::until("the last one to be given out", || async {
        (info(&js).await.delivered.stream_sequence > number).then_some(())
    })
    .await;
    door.reopen();
    until_consuming(&mut late_consumes, 2).await;
    go_on.send_replace(true);
    wait::until("the last one to be handled", || async {
        begun(&done).contains(&("early", 50, 0)).then_some(())
    })
    .await;
    let by: Vec<&str> = begun(&done)
        .into_iter()
        .filter(|(_, of, _)| *of == number)
        .map(|(name, ..)| name)
        .collect();
    assert_eq!(by, ["late"]);
    for each in [early, late] {
        each.stop().await;
    }
}
